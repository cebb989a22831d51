package state

import (
	"encoding/hex"
	"net/netip"
	"slices"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/fencing"
)

func (c ctx) nodeAdmit(cmd NodeAdmit) Result {
	if err := ids.CheckName("node name", string(cmd.Name)); err != nil {
		return refuse(reason.RefusedConfig, "why", err.Error())
	}
	if cmd.Role != Member && cmd.Role != Witness {
		return refuse(reason.RefusedConfig, "why", "role must be member or witness")
	}
	if r := checkLinks(c.s, cmd); !r.OK() {
		return r
	}
	old := c.s.Node(cmd.Name)
	if old != nil && !old.Up.IsZero() {
		return refuse(reason.RefusedExists, "what", "node", "name", string(cmd.Name))
	}
	if old == nil && len(c.s.Nodes) >= MaxNodes {
		return refuse(reason.RefusedConfig, "why", "the cluster has its largest number of nodes already")
	}
	if len(c.s.Nodes) > 0 {
		if r := c.useToken(cmd); !r.OK() {
			return r
		}
	}
	n := Node{Name: cmd.Name, Role: cmd.Role, Links: slices.Clone(cmd.Links), Admitted: c.index, Condemned: c.s.condemnedBefore(cmd.Name)}
	nodes := slices.DeleteFunc(slices.Clone(c.s.Nodes), func(x Node) bool { return x.Name == cmd.Name })
	nodes = append(nodes, n)
	slices.SortFunc(nodes, func(a, b Node) int { return cmpString(string(a.Name), string(b.Name)) })
	c.s.Nodes = nodes
	return Result{}
}

// condemnedBefore returns the boots that were condemned under a name that was removed since: a node
// that is admitted again does not wash its boot clean (invariant I4).
func (s *State) condemnedBefore(name ids.Node) []ids.Boot {
	var out []ids.Boot
	for i := range s.Fences {
		if t := s.Fences[i].Target; t.Node == name && !slices.Contains(out, t.Boot) {
			out = append(out, t.Boot)
		}
	}
	return out
}

func checkLinks(s *State, cmd NodeAdmit) Result {
	if len(cmd.Links) == 0 || len(cmd.Links) > MaxLinks {
		return refuse(reason.RefusedConfig, "why", "a node needs 1 to 8 links")
	}
	for i, l := range cmd.Links {
		if a, err := netip.ParseAddr(l.Addr); err != nil || a.Zone() != "" || l.Interface == "" || len(l.Interface) > 15 {
			return refuse(reason.RefusedConfig, "why", "link "+clip(l.Interface+"="+l.Addr)+" is not INTERFACE=ADDRESS")
		}
		for _, o := range cmd.Links[:i] {
			if o.Addr == l.Addr || o.Interface == l.Interface {
				return refuse(reason.RefusedConfig, "why", "link "+l.Interface+"="+l.Addr+" repeats an interface or an address")
			}
		}
		for _, n := range s.Nodes {
			for _, o := range n.Links {
				if n.Name != cmd.Name && o.Addr == l.Addr {
					return refuse(reason.RefusedExists, "what", "address", "name", l.Addr+" (node "+string(n.Name)+")")
				}
			}
		}
	}
	return Result{}
}

// useToken consumes a join token: single use, and expired by the proposing leader's wall clock.
func (c ctx) useToken(cmd NodeAdmit) Result {
	i := slices.IndexFunc(c.s.Tokens, func(t Token) bool { return t.Hash == cmd.TokenHash && t.Hash != "" })
	switch {
	case i < 0:
		return refuse(reason.RefusedToken, "why", "it was not made by this cluster")
	case c.s.Tokens[i].Used != 0:
		return refuse(reason.RefusedToken, "why", "it was used already by "+string(c.s.Tokens[i].UsedBy))
	case c.at >= c.s.Tokens[i].Expires:
		return refuse(reason.RefusedToken, "why", "it has expired: make a new one with picket token create")
	}
	c.s.Tokens = slices.Clone(c.s.Tokens)
	c.s.Tokens[i].Used, c.s.Tokens[i].UsedBy = c.index, cmd.Name
	return Result{}
}

func (c ctx) tokenMint(cmd TokenMint) Result {
	if b, err := hex.DecodeString(cmd.Hash); err != nil || len(b) != 32 || slices.ContainsFunc(c.s.Tokens, func(t Token) bool { return t.Hash == cmd.Hash }) {
		return refuse(reason.RefusedToken, "why", "its hash is not a new SHA-256 in hex")
	}
	c.s.Tokens = bounded(append(slices.Clone(c.s.Tokens), Token{Hash: cmd.Hash, Expires: cmd.Expires, By: clip(cmd.By)}), MaxTokens)
	return Result{}
}

func (c ctx) nodeRemove(cmd NodeRemove) Result {
	n := c.s.Node(cmd.Name)
	if n == nil {
		return refuse(reason.RefusedUnknown, "what", "node", "name", string(cmd.Name))
	}
	if len(c.s.Nodes) == 1 {
		return refuse(reason.RefusedOpen, "what", "the cluster", "why", string(cmd.Name)+" is its last node")
	}
	if len(c.s.OwnedBoots(cmd.Name)) > 0 {
		return refuse(reason.RefusedOpen, "what", "ownership", "why", string(cmd.Name)+" owns groups: move them away first")
	}
	for i := range c.s.Fences {
		if f := &c.s.Fences[i]; f.Open() && f.Target.Node == cmd.Name {
			return refuse(reason.RefusedOpen, "what", "a fence", "why", string(cmd.Name)+" is not proven off yet")
		}
	}
	if c.s.PendingPower(cmd.Name) {
		return refuse(reason.RefusedOpen, "what", "a power command", "why", "one may still be on its way to "+string(cmd.Name))
	}
	c.s.Nodes = slices.DeleteFunc(slices.Clone(c.s.Nodes), func(x Node) bool { return x.Name == cmd.Name })
	return Result{}
}

// nodeUp makes the entry's index the generation of a process. On the boot of its predecessor it
// inherits what that owned (the daemon was restarted); on a new boot, what the old boot owned gets a
// fence that needs no power command (rule 10).
func (c ctx) nodeUp(cmd NodeUp) Result {
	old := c.s.Node(cmd.Node)
	if old == nil {
		return refuse(reason.RefusedUnknown, "what", "node", "name", string(cmd.Node))
	}
	if err := ids.CheckBoot(cmd.Boot); err != nil {
		return refuse(reason.RefusedConfig, "why", err.Error())
	}
	if slices.Contains(old.Condemned, cmd.Boot) {
		return refuse(reason.RefusedFenced, "node", string(cmd.Node))
	}
	// A late announcement of an earlier boot, or of a process that left, must not take the place of
	// the living one, and even less condemn the boot that owns now (rule 4).
	if slices.Contains(old.Past, cmd.Boot) || (old.Left && old.Up.Boot == cmd.Boot && old.Session == cmd.Session) {
		return refuse(reason.RefusedStale, "node", string(cmd.Node))
	}
	if old.Up.Boot == cmd.Boot && old.Session == cmd.Session {
		return Result{} // the same announcement again, after an unknown outcome
	}
	if cmd.Start != 0 && cmd.Start <= old.Start {
		return refuse(reason.RefusedRestored, "node", string(cmd.Node), "have", itoa(old.Start), "start", itoa(cmd.Start))
	}
	uuid, err := fencing.CanonicalUUID(cmd.UUID)
	if err != nil || fencing.FillerUUID(uuid) {
		uuid = "" // an unreadable identity is none: evidence that needs one is refused later
	}
	prev := *old
	inc := ids.Incarnation{Node: cmd.Node, Boot: cmd.Boot, Gen: c.index}
	for _, o := range c.s.OwnedBoots(cmd.Node) {
		if o.Boot == cmd.Boot {
			c.adopt(o, inc)
		} else if c.s.OpenFence(cmd.Node, o.Boot) == nil {
			c.openFence(o, prev.UUID, reason.New(reason.NewBoot, "node", string(cmd.Node), "groups", join(c.s.Owned(o.Node, o.Boot))), "", true)
		}
	}
	n := c.node(cmd.Node)
	if n.Up.Boot != cmd.Boot {
		n.TickIndex = 0
		if n.Up.Boot != "" {
			n.Past = bounded(append(slices.Clone(n.Past), n.Up.Boot), MaxCondemned)
		}
	}
	// Renewals count from one in every process; TickIndex stays, since the ticks of all generations
	// of a boot count for how long that boot may act (rule 2).
	n.TickK, n.Session, n.Start = 0, cmd.Session, max(n.Start, cmd.Start)
	n.Up, n.UUID, n.Version, n.UpAt = inc, uuid, clip(cmd.Version), c.at
	n.Leaving, n.Left = false, false
	return Result{}
}

// adopt hands the groups of an older generation of the same boot to the newest one: same machine,
// same kernel, so what runs there is still exactly one copy (rule 13).
func (c ctx) adopt(old, inc ids.Incarnation) {
	c.s.Groups = slices.Clone(c.s.Groups)
	for i := range c.s.Groups {
		if g := &c.s.Groups[i]; g.Epoch != 0 && g.Owner.SameBoot(old) {
			g.Owner = inc
			g.Why = reason.New(reason.Adopted, "node", string(inc.Node))
		}
	}
}

func (c ctx) nodeLeave(cmd NodeLeave) Result {
	if r := c.current(cmd.Inc); !r.OK() {
		return r
	}
	if cmd.Done && len(c.s.Owned(cmd.Inc.Node, cmd.Inc.Boot)) > 0 {
		return refuse(reason.RefusedOpen, "what", "ownership", "why", string(cmd.Inc.Node)+" still owns groups")
	}
	n := c.node(cmd.Inc.Node)
	n.Leaving, n.Left = true, cmd.Done
	return Result{}
}

func (c ctx) nodeMode(cmd NodeMode) Result {
	n := c.node(cmd.Node)
	if n == nil {
		return refuse(reason.RefusedUnknown, "what", "node", "name", string(cmd.Node))
	}
	n.Standby = cmd.Standby
	return Result{}
}

// leaseTick grants renewals. A tick of a condemned boot, of an older generation, of a node that left,
// or one that does not rise, is not accepted; the others of the batch are.
func (c ctx) leaseTick(cmd LeaseTick) Result {
	var r Result
	for _, t := range cmd.Ticks {
		if !c.current(t.Inc).OK() || t.K <= c.s.Node(t.Inc.Node).TickK {
			continue
		}
		n := c.node(t.Inc.Node)
		n.TickK, n.TickIndex = t.K, c.index
		r.Accepted = append(r.Accepted, t)
	}
	return r
}

func join(g []ids.Group) string {
	out := ""
	for i, x := range g {
		if i > 0 {
			out += ","
		}
		out += string(x)
	}
	return out
}
