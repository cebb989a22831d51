package state

import (
	"slices"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
)

// configSet replaces the configuration whole. A group that is owned stays in the state, with what it
// holds, until its owner has released it (rule 7).
func (c ctx) configSet(cmd ConfigSet) Result {
	if cmd.Base != c.s.Revision {
		return refuse(reason.RefusedRevision, "have", itoa(c.s.Revision), "want", itoa(cmd.Base))
	}
	if err := CheckConfig(&cmd.Config); err != nil {
		return refuse(reason.RefusedConfig, "why", clip(err.Error()))
	}
	var groups []Group
	for _, g := range c.s.Groups {
		if cmd.Config.Group(g.Name) != nil || g.Epoch != 0 {
			groups = append(groups, g)
		}
	}
	for _, gc := range cmd.Config.Groups {
		if c.s.Group(gc.Name) == nil {
			groups = append(groups, Group{Name: gc.Name, Since: c.at})
		}
	}
	slices.SortFunc(groups, func(a, b Group) int { return cmpString(string(a.Name), string(b.Name)) })
	c.s.Config, c.s.Revision, c.s.Groups = cmd.Config, c.index, groups
	return Result{}
}

// grant is the only way to own. Invariants I1 and I2 live here: no owner, or no grant.
func (c ctx) grant(cmd Grant) Result {
	g, gc := c.s.Group(cmd.Group), c.s.Config.Group(cmd.Group)
	if g == nil || gc == nil {
		return refuse(reason.RefusedUnknown, "what", "group", "name", string(cmd.Group))
	}
	if g.Epoch != 0 {
		return refuse(reason.RefusedOwned, "group", string(cmd.Group), "owner", string(g.Owner.Node))
	}
	if cmd.Revision != c.s.Revision {
		return refuse(reason.RefusedRevision, "have", itoa(c.s.Revision), "want", itoa(cmd.Revision))
	}
	if r := c.current(cmd.To); !r.OK() {
		return r
	}
	deny := func(why string) Result {
		return refuse(reason.RefusedNotAllowed, "node", string(cmd.To.Node), "group", string(cmd.Group), "why", why)
	}
	n := c.s.Node(cmd.To.Node)
	switch {
	case n.Role != Member:
		return deny("a witness owns nothing")
	case !slices.Contains(gc.Nodes, cmd.To.Node):
		return deny("it is not in the group's list of nodes")
	case g.Stopped:
		return deny("an operator stopped the group")
	case n.Standby || n.Leaving:
		return deny("it is on standby or leaving")
	case c.s.PendingPower(cmd.To.Node):
		return deny("a power command may still be on its way to it")
	}
	if !c.s.Config.SingleNode {
		for _, name := range gc.Nodes {
			if c.s.Node(name) == nil {
				return refuse(reason.NodeNotAdmitted, "node", string(name), "group", string(cmd.Group))
			}
		}
	}
	for _, r := range gc.Resources {
		if o := c.s.reservedBy(r.ID, cmd.Group); o != nil {
			return refuse(reason.ResourceKept, "resource", string(r.ID), "node", string(o.Owner.Node))
		}
	}
	g = c.group(cmd.Group)
	g.Owner, g.Epoch, g.Phase, g.LastEpoch = cmd.To, ids.Epoch(c.index), PhaseGranted, ids.Epoch(c.index)
	g.Held, g.HeldStart, g.HeldStop = slices.Clone(gc.Resources), gc.StartTimeout, gc.StopTimeout
	g.RevokeAt, g.RevokeFor, g.Why, g.Since = 0, 0, clipReason(cmd.Why), c.at
	return Result{}
}

// reservedBy returns another group whose owner may still have that resource running, or nil.
func (s *State) reservedBy(r ids.Resource, except ids.Group) *Group {
	for i := range s.Groups {
		g := &s.Groups[i]
		if g.Epoch == 0 || g.Name == except {
			continue
		}
		if slices.ContainsFunc(g.Held, func(h ResourceConfig) bool { return h.ID == r }) {
			return g
		}
	}
	return nil
}

// free ends an ownership. A group that the configuration no longer names leaves the state with it.
func (c ctx) free(g *Group, why reason.Reason) {
	g.Owner, g.Epoch, g.Phase, g.Held = ids.Incarnation{}, 0, "", nil
	g.HeldStart, g.HeldStop, g.RevokeAt, g.RevokeFor = 0, 0, 0, 0
	g.Why, g.Since = why, c.at
}

func (c ctx) dropRemoved(name ids.Group) {
	if g := c.s.Group(name); g != nil && g.Epoch == 0 && c.s.Config.Group(name) == nil {
		c.s.Groups = slices.DeleteFunc(slices.Clone(c.s.Groups), func(x Group) bool { return x.Name == name })
	}
}

func (c ctx) started(cmd Started) Result {
	if r := c.owns(cmd.Group, cmd.Inc, cmd.Epoch); !r.OK() {
		return r
	}
	g := c.group(cmd.Group)
	if g.Phase != PhaseGranted {
		return refuse(reason.RefusedStale, "node", string(cmd.Inc.Node))
	}
	g.Phase, g.Since = PhaseStarted, c.at
	if gc := c.s.Config.Group(cmd.Group); g.MoveTo == cmd.Inc.Node && gc != nil && !gc.Failback {
		g.MoveTo = "" // a move leaves no residue behind
	}
	return Result{}
}

func (c ctx) revoke(cmd Revoke) Result {
	g := c.s.Group(cmd.Group)
	switch {
	case g == nil:
		return refuse(reason.RefusedUnknown, "what", "group", "name", string(cmd.Group))
	case g.Epoch == 0 || g.Epoch != cmd.Epoch:
		return refuse(reason.RefusedNotOwner, "node", string(g.Owner.Node), "group", string(cmd.Group), "epoch", itoa(uint64(cmd.Epoch)))
	case g.Phase == PhaseRevoked || g.Phase == PhaseStopFailed:
		return refuse(reason.RefusedExists, "what", "revoke of group", "name", string(cmd.Group))
	case cmd.For <= 0 || cmd.For > MaxTimeout:
		return refuse(reason.RefusedConfig, "why", "a revoke needs a deadline of at most "+MaxTimeout.String())
	}
	g = c.group(cmd.Group)
	g.Phase, g.RevokeAt, g.RevokeFor, g.Why, g.Since = PhaseRevoked, c.index, cmd.For, clipReason(cmd.Why), c.at
	return Result{}
}

// released ends an ownership by the owner's own word. A condemned owner's word counts too: a clean
// stop that was already on its way is the truth, and shortens the hold.
func (c ctx) released(name ids.Group, inc ids.Incarnation, e ids.Epoch, why reason.Reason) Result {
	if r := c.owns(name, inc, e); !r.OK() {
		return r
	}
	c.free(c.group(name), clipReason(why))
	c.dropRemoved(name)
	return Result{}
}

func (c ctx) startFailed(cmd StartFailed) Result {
	r := c.released(cmd.Group, cmd.Inc, cmd.Epoch, reason.New(reason.StartFailedHere, "node", string(cmd.Inc.Node), "group", string(cmd.Group), "why", clip(cmd.Why)))
	if r.OK() && c.s.Group(cmd.Group) != nil {
		c.fail(cmd.Group, cmd.Inc.Node, cmd.Why, true)
	}
	return r
}

func (c ctx) stopFailed(cmd StopFailed) Result {
	if r := c.owns(cmd.Group, cmd.Inc, cmd.Epoch); !r.OK() {
		return r
	}
	g := c.group(cmd.Group)
	g.Phase, g.Since = PhaseStopFailed, c.at
	g.Why = reason.New(reason.StopFailed, "node", string(cmd.Inc.Node), "group", string(cmd.Group), "why", clip(cmd.Why))
	return Result{}
}

// monitorFailed counts the failure and revokes the group; where it starts next is the planner's.
func (c ctx) monitorFailed(cmd MonitorFailed) Result {
	if r := c.owns(cmd.Group, cmd.Inc, cmd.Epoch); !r.OK() {
		return r
	}
	g := c.group(cmd.Group)
	if g.Phase != PhaseStarted && g.Phase != PhaseGranted {
		return refuse(reason.RefusedStale, "node", string(cmd.Inc.Node))
	}
	g.Phase, g.RevokeAt, g.RevokeFor, g.Since = PhaseRevoked, c.index, g.HeldStop, c.at
	g.Why = reason.New(reason.MonitorFailed, "resource", clip(string(cmd.Resource)), "node", string(cmd.Inc.Node), "group", string(cmd.Group), "why", clip(cmd.Why))
	c.fail(cmd.Group, cmd.Inc.Node, cmd.Why, false)
	return Result{}
}

func (c ctx) fail(name ids.Group, node ids.Node, why string, start bool) {
	g := c.group(name)
	g.Failures = slices.Clone(g.Failures)
	i := slices.IndexFunc(g.Failures, func(f Failure) bool { return f.Node == node })
	if i < 0 {
		g.Failures = append(g.Failures, Failure{Node: node})
		slices.SortFunc(g.Failures, func(a, b Failure) int { return cmpString(string(a.Node), string(b.Node)) })
		i = slices.IndexFunc(g.Failures, func(f Failure) bool { return f.Node == node })
	}
	f := &g.Failures[i]
	f.Count, f.Start, f.Why, f.Index = f.Count+1, f.Start || start, clip(why), c.index
}

func (c ctx) groupMode(cmd GroupMode) Result {
	g := c.group(cmd.Group)
	if g == nil || c.s.Config.Group(cmd.Group) == nil {
		return refuse(reason.RefusedUnknown, "what", "group", "name", string(cmd.Group))
	}
	g.Stopped = cmd.Stopped
	if !cmd.Stopped {
		g.Failures = nil
	}
	return Result{}
}

func (c ctx) move(cmd Move) Result {
	gc := c.s.Config.Group(cmd.Group)
	if gc == nil || c.s.Group(cmd.Group) == nil {
		return refuse(reason.RefusedUnknown, "what", "group", "name", string(cmd.Group))
	}
	if cmd.To != "" {
		n := c.s.Node(cmd.To)
		deny := func(why string) Result {
			return refuse(reason.RefusedNotAllowed, "node", string(cmd.To), "group", string(cmd.Group), "why", why)
		}
		switch {
		case n == nil:
			return refuse(reason.RefusedUnknown, "what", "node", "name", string(cmd.To))
		case !slices.Contains(gc.Nodes, cmd.To):
			return deny("it is not in the group's list of nodes")
		case n.Role != Member:
			return deny("a witness owns nothing")
		case n.Standby:
			return deny("it is on standby: picket node online " + string(cmd.To))
		case n.Up.IsZero() || n.Left || slices.Contains(n.Condemned, n.Up.Boot):
			return deny("it is not up")
		}
	}
	g := c.group(cmd.Group)
	g.MoveTo = cmd.To
	if g.Owner.Node == cmd.To && !gc.Failback {
		g.MoveTo = ""
	}
	g.Failures = slices.DeleteFunc(slices.Clone(g.Failures), func(f Failure) bool { return f.Node == cmd.To })
	return Result{}
}

func (c ctx) cleanup(cmd Cleanup) Result {
	g := c.group(cmd.Group)
	if g == nil {
		return refuse(reason.RefusedUnknown, "what", "group", "name", string(cmd.Group))
	}
	g.Failures, g.MoveTo = nil, ""
	return Result{}
}
