package state

import (
	"fmt"
	"slices"

	"github.com/picket-ha/picket/consensus/ids"
)

// CheckConfig re-checks what Apply relies on, whoever made the configuration: names, references,
// unique resources and the timing inequalities. The friendly errors are cmd/picket/config's.
func CheckConfig(c *Config) error {
	if err := ids.CheckName("cluster name", c.Cluster); err != nil {
		return err
	}
	if err := CheckTiming(c.Timing); err != nil {
		return err
	}
	if len(c.Source) > MaxConfigSource || len(c.Nodes) > MaxNodes || len(c.Groups) > MaxGroupsLimit {
		return fmt.Errorf("the configuration is too large: at most %d nodes, %d groups, %d bytes", MaxNodes, MaxGroupsLimit, MaxConfigSource)
	}
	for i, n := range c.Nodes {
		if err := ids.CheckName("node name", string(n.Name)); err != nil {
			return err
		}
		if i > 0 && c.Nodes[i-1].Name >= n.Name {
			return fmt.Errorf("nodes are not in order: %s", n.Name)
		}
		for j, d := range n.Fence {
			if d.ID == "" || slices.ContainsFunc(n.Fence[:j], func(o FenceDevice) bool { return o.ID == d.ID }) {
				return fmt.Errorf("node %s has two fence devices %q", n.Name, d.ID)
			}
		}
	}
	return checkGroups(c)
}

func checkGroups(c *Config) error {
	owner := map[ids.Resource]ids.Group{}
	for i, g := range c.Groups {
		if err := ids.CheckName("group name", string(g.Name)); err != nil {
			return err
		}
		if i > 0 && c.Groups[i-1].Name >= g.Name {
			return fmt.Errorf("groups are not in order: %s", g.Name)
		}
		if len(g.Nodes) == 0 || len(g.Resources) == 0 || g.StartTimeout <= 0 || g.StopTimeout <= 0 {
			return fmt.Errorf("group %s needs nodes, resources and timeouts", g.Name)
		}
		if g.StartTimeout > MaxTimeout || g.StopTimeout > MaxTimeout {
			return fmt.Errorf("group %s: start_timeout and stop_timeout must be at most %v", g.Name, MaxTimeout)
		}
		for j, n := range g.Nodes {
			if c.Node(n) == nil {
				return fmt.Errorf("group %s names node %s, which is not under nodes", g.Name, n)
			}
			if slices.Contains(g.Nodes[:j], n) {
				return fmt.Errorf("group %s names node %s twice", g.Name, n)
			}
		}
		for _, r := range g.Resources {
			if r.ID == "" || r.Monitor < 0 || r.Monitor > MaxTimeout {
				return fmt.Errorf("group %s: resource %q needs an id, and a monitor interval of at most %v", g.Name, r.ID, MaxTimeout)
			}
			if o, ok := owner[r.ID]; ok {
				return fmt.Errorf("resource %s is in group %s and in group %s", r.ID, o, g.Name)
			}
			owner[r.ID] = g.Name
		}
	}
	return nil
}

// Violation is one broken invariant.
type Violation struct {
	Rule string // I1, I2, ... or the rule of the design
	Text string
}

// Check re-checks every invariant that one state can show. It returns nothing on a sound state.
func Check(s State) []Violation {
	var v []Violation
	bad := func(rule, f string, a ...any) { v = append(v, Violation{rule, fmt.Sprintf(f, a...)}) }
	held := map[ids.Resource]ids.Group{}
	epochs := map[ids.Epoch]ids.Group{}
	for _, g := range s.Groups {
		if (g.Epoch == 0) != g.Owner.IsZero() || (g.Epoch == 0) != (g.Phase == "") {
			bad("I1", "group %s: owner %s, epoch %d and phase %q do not go together", g.Name, g.Owner, g.Epoch, g.Phase)
		}
		if uint64(g.LastEpoch) > s.Index || g.Epoch > g.LastEpoch {
			bad("I1", "group %s: epoch %d, last %d, index %d", g.Name, g.Epoch, g.LastEpoch, s.Index)
		}
		if g.Epoch == 0 {
			if s.Config.Group(g.Name) == nil {
				bad("rule 7", "group %s is in no configuration and nobody owns it", g.Name)
			}
			continue
		}
		if o, ok := epochs[g.Epoch]; ok {
			bad("I1", "groups %s and %s share epoch %d", o, g.Name, g.Epoch)
		}
		epochs[g.Epoch] = g.Name
		n := s.Node(g.Owner.Node)
		if n == nil {
			bad("rule 7", "group %s is owned by %s, which was removed", g.Name, g.Owner.Node)
		} else if n.Role != Member {
			bad("I5", "group %s is owned by witness %s", g.Name, g.Owner.Node)
		} else if n.Up.Boot != g.Owner.Boot && s.OpenFence(g.Owner.Node, g.Owner.Boot) == nil {
			bad("rule 10", "group %s is owned by an older boot of %s without an open fence", g.Name, g.Owner.Node)
		}
		for _, f := range s.Fences {
			if !f.Open() && f.Target.SameBoot(g.Owner) {
				bad("I2", "group %s is owned by %s, proven dead at %d", g.Name, g.Owner, f.Confirmed)
			}
		}
		for _, r := range g.Held {
			if o, ok := held[r.ID]; ok {
				bad("rule 7", "resource %s is held by groups %s and %s", r.ID, o, g.Name)
			}
			held[r.ID] = g.Name
		}
	}
	return append(v, checkNodesAndFences(s)...)
}

func checkNodesAndFences(s State) []Violation {
	var v []Violation
	bad := func(rule, f string, a ...any) { v = append(v, Violation{rule, fmt.Sprintf(f, a...)}) }
	for i := range s.Fences {
		f := &s.Fences[i]
		if n := s.Node(f.Target.Node); n != nil && !slices.Contains(n.Condemned, f.Target.Boot) && f.Open() {
			bad("I4", "fence %d: boot of %s is not condemned", f.ID, f.Target.Node)
		}
		if f.Confirmed != 0 && f.Evidence == nil {
			bad("I3", "fence %d is confirmed without evidence", f.ID)
		}
		if ev := f.Evidence; ev != nil && ((ev.Kind == Human && (ev.Operator == "" || ev.Why == "")) || (ev.Kind == Rebooted && (ev.NewBoot == "" || ev.NewBoot == f.Target.Boot))) {
			bad("I3", "fence %d: %s without its facts", f.ID, ev.Kind)
		}
		if f.Evidence != nil && f.Evidence.Kind == PowerOff && powerOffProves(f, f.Evidence.Attempt) != "" {
			bad("I3", "fence %d: %s", f.ID, powerOffProves(f, f.Evidence.Attempt))
		}
		for j := range s.Fences[:i] {
			if o := &s.Fences[j]; o.Open() && f.Open() && o.Target.SameBoot(f.Target) {
				bad("I4", "fences %d and %d are open for one boot of %s", o.ID, f.ID, f.Target.Node)
			}
		}
		for _, a := range f.Attempts {
			if a.Executor == f.Target.Node {
				bad("I6", "fence %d: %s is to fence itself", f.ID, a.Executor)
			}
		}
	}
	for i, n := range s.Nodes {
		if i > 0 && s.Nodes[i-1].Name >= n.Name {
			bad("I1", "nodes are not in order: %s", n.Name)
		}
		if n.TickIndex > s.Index || n.Admitted > s.Index || n.Up.Gen > s.Index {
			bad("I1", "node %s has an index from the future", n.Name)
		}
	}
	return v
}

// CheckStep re-checks what one step may do to ownership: an owner is only ever replaced by nobody,
// by a later generation of its own boot, or, from nobody, at a strictly greater epoch.
func CheckStep(old, new State, cmd Command) []Violation {
	var v []Violation
	bad := func(rule, f string, a ...any) { v = append(v, Violation{rule, fmt.Sprintf(f, a...)}) }
	for i := range old.Groups {
		o := &old.Groups[i]
		n := new.Group(o.Name)
		if n == nil {
			if o.Epoch != 0 {
				switch cmd.(type) {
				case Released, StartFailed, FenceConfirm:
				default:
					bad("rule 7", "group %s left the state while %s owned it", o.Name, o.Owner)
				}
			}
			continue
		}
		switch {
		case o.Epoch != 0 && n.Epoch == 0:
			switch cmd.(type) {
			case Released, StartFailed, FenceConfirm:
			default:
				bad("I2", "group %s lost its owner by %T", o.Name, cmd)
			}
		case o.Epoch != 0 && n.Epoch != o.Epoch:
			bad("I2", "group %s went from epoch %d to %d without a release", o.Name, o.Epoch, n.Epoch)
		case o.Epoch != 0 && !n.Owner.SameBoot(o.Owner):
			bad("I2", "group %s went from %s to %s in one epoch", o.Name, o.Owner, n.Owner)
		case o.Epoch == 0 && n.Epoch != 0 && n.Epoch <= o.LastEpoch:
			bad("I1", "group %s: epoch %d does not rise above %d", o.Name, n.Epoch, o.LastEpoch)
		case o.Epoch == 0 && n.Epoch != 0 && (old.IsCondemned(n.Owner.Node, n.Owner.Boot) || old.PendingPower(n.Owner.Node)):
			bad("I4", "group %s was granted to %s, which is condemned or may still be hit by a power command", n.Name, n.Owner)
		}
	}
	return append(v, checkStepNodes(old, new, cmd)...)
}

// checkStepNodes re-checks what one step may do to incarnations and fences.
func checkStepNodes(old, new State, cmd Command) []Violation {
	var v []Violation
	bad := func(rule, f string, a ...any) { v = append(v, Violation{rule, fmt.Sprintf(f, a...)}) }
	for i := range old.Nodes {
		o := &old.Nodes[i]
		n := new.Node(o.Name)
		if n == nil {
			continue
		}
		dead := slices.Contains(o.Condemned, n.Up.Boot)
		switch {
		case n.Up != o.Up && (dead || slices.Contains(o.Past, n.Up.Boot) || n.Up.Gen <= o.Up.Gen):
			bad("rule 4", "node %s went from %s to %s, an older or a condemned life", o.Name, o.Up, n.Up)
		case n.TickIndex > o.TickIndex && dead:
			bad("I4", "node %s got a tick although its boot is condemned", o.Name)
		}
	}
	for i := range new.Fences {
		n := &new.Fences[i]
		o := old.Fence(n.ID)
		switch {
		case o == nil && n.Operator == "" && len(old.Owned(n.Target.Node, n.Target.Boot)) == 0:
			bad("I7", "fence %d: %s owned nothing", n.ID, n.Target)
		case o != nil && !o.Open() && (n.Confirmed != o.Confirmed || n.Target != o.Target):
			bad("I3", "fence %d changed after its proof by %T", n.ID, cmd)
		}
	}
	return v
}
