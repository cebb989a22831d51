package plan

import (
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// placement is where one group belongs, with a verdict on every node of its list.
type placement struct {
	group *state.Group
	conf  *state.GroupConfig // nil once the configuration no longer names it
	// best is the node that should own it; zero when none may, or when it is better to wait.
	best ids.Incarnation
	why  reason.Reason
	// wait says that nobody gets it yet although somebody could have it.
	wait  reason.Reason
	nodes []Verdict
}

// placements finds the best node for every group, owned or not.
func placements(s state.State, f Facts, v nodeViews) []placement {
	var out []placement
	for i := range s.Groups {
		g := &s.Groups[i]
		p := placement{group: g, conf: s.Config.Group(g.Name)}
		if p.conf != nil {
			p.place(s, f, v)
		}
		out = append(out, p)
	}
	return out
}

func (p *placement) place(s state.State, f Facts, v nodeViews) {
	// A node on which it failed lately comes after those on which it did not: a service that lost its NIC
	// must not be tried first where the NIC is gone.
	order := slices.Clone(p.conf.Nodes)
	slices.SortStableFunc(order, func(a, b ids.Node) int { return failures(p.group, a) - failures(p.group, b) })
	if to := p.group.MoveTo; to != "" && slices.Contains(order, to) {
		order = append([]ids.Node{to}, slices.DeleteFunc(order, func(n ids.Node) bool { return n == to })...)
	}
	eligible := 0
	for _, name := range order {
		r := exclusion(s, v, p.group, name)
		ver := Verdict{Node: name, Is: "eligible", Reason: r}
		if !r.IsZero() {
			ver.Is = "excluded"
		} else {
			eligible++
			if p.best.IsZero() {
				p.best = v.get(name).node.Up
				ver.Is = "chosen"
			}
		}
		p.nodes = append(p.nodes, ver)
	}
	if p.best.IsZero() {
		return
	}
	p.why = reason.New(reason.OnlyCandidate, "node", string(p.best.Node))
	switch {
	case p.best.Node == p.group.MoveTo:
		p.why = reason.New(reason.Moved, "node", string(p.best.Node))
	case eligible > 1:
		p.why = reason.New(reason.PreferredNode, "node", string(p.best.Node))
	}
	p.wait = p.waits(s, f, v, order)
	for i := range p.nodes {
		if p.nodes[i].Is != "excluded" {
			p.nodes[i].Reason = reason.New(reason.Eligible, "node", string(p.nodes[i].Node))
		}
		if p.nodes[i].Is == "chosen" {
			p.nodes[i].Reason = p.why
		}
	}
}

// failures is 1 where the group has failed on a node since the last cleanup, and 0 elsewhere.
func failures(g *state.Group, n ids.Node) int {
	if slices.ContainsFunc(g.Failures, func(f state.Failure) bool { return f.Node == n }) {
		return 1
	}
	return 0
}

// waits says why a group without an owner is not granted although a node could have it: a node that
// it needs has not joined, a more preferred one may still be booting, or a resource is reserved.
func (p *placement) waits(s state.State, f Facts, v nodeViews, order []ids.Node) reason.Reason {
	if !s.Config.SingleNode {
		for _, name := range p.conf.Nodes {
			if s.Node(name) == nil {
				return reason.New(reason.NodeNotAdmitted, "node", string(name), "group", string(p.group.Name))
			}
		}
	}
	t := timing(s)
	for _, name := range order {
		x := v.get(name)
		if name == p.best.Node || x == nil {
			break
		}
		// Only at the cluster's first start of the group: later, service comes before preference.
		if p.group.LastEpoch == 0 && x.node.Up.Gen == 0 && f.Uptime < t.InitialDead {
			return reason.New(reason.WaitsForInitial, "node", string(name), "left", dur((t.InitialDead - f.Uptime).Round(time.Second)))
		}
	}
	for _, r := range p.conf.Resources {
		for i := range s.Groups {
			o := &s.Groups[i]
			if o.Epoch != 0 && o.Name != p.group.Name && slices.ContainsFunc(o.Held, func(h state.ResourceConfig) bool { return h.ID == r.ID }) {
				return reason.New(reason.ResourceKept, "resource", string(r.ID), "node", string(o.Owner.Node))
			}
		}
	}
	return reason.Reason{}
}

// exclusion says why a node may not own a group now, or nothing if it may.
func exclusion(s state.State, v nodeViews, g *state.Group, name ids.Node) reason.Reason {
	x := v.get(name)
	n := string(name)
	if x == nil {
		return reason.New(reason.NodeNotAdmitted, "node", n, "group", string(g.Name))
	}
	switch {
	case x.node.Role != state.Member:
		return reason.New(reason.NodeWitness, "node", n)
	case x.condemned() && s.OpenFence(name, x.node.Up.Boot) != nil:
		return reason.New(reason.NodeFencing, "node", n)
	case x.condemned():
		return reason.New(reason.NodeFenced, "node", n)
	case x.node.Left || x.node.Leaving:
		return reason.New(reason.NodeLeft, "node", n)
	case x.node.Up.Gen == 0:
		return reason.New(reason.NodeNotUp, "node", n)
	case x.node.Standby:
		return reason.New(reason.NodeStandby, "node", n)
	case !x.here || x.lost:
		return reason.New(reason.NodeLost, "node", n, "why", x.lostWhy())
	case s.PendingPower(name):
		return reason.New(reason.LateAttempt, "node", n)
	case x.doomed || powerMayCome(s, name):
		return reason.New(reason.NodeFencing, "node", n)
	}
	for _, fl := range g.Failures {
		if fl.Node == name && (fl.Start || fl.Count >= state.FailureLimit) {
			return reason.New(reason.StartFailedHere, "node", n, "group", string(g.Name), "why", fl.Why)
		}
	}
	return reason.Reason{}
}

// powerMayCome reports whether an earlier boot of the node is not proven dead yet and has a fence device:
// the machine may have to be switched off for it, which is refused once its new boot owns something.
// The proof by the new boot's own packet takes one heartbeat; until then it gets nothing.
func powerMayCome(s state.State, name ids.Node) bool {
	for i := range s.Fences {
		if f := &s.Fences[i]; f.Open() && f.Target.Node == name && len(f.Devices) > 0 {
			return true
		}
	}
	return false
}

// Heir guesses, from the log alone, who is granted a group next when its owner is gone: the first of its
// nodes that the log does not exclude; "" for nobody. Only the leader's facts decide in the end.
func Heir(s state.State, g *state.Group) ids.Node {
	gc := s.Config.Group(g.Name)
	if gc == nil || g.Stopped {
		return ""
	}
	for _, name := range gc.Nodes {
		n := s.Node(name)
		if n == nil || name == g.Owner.Node || n.Role != state.Member || n.Up.Gen == 0 || n.Standby || n.Leaving || n.Left || slices.Contains(n.Condemned, n.Up.Boot) {
			continue
		}
		if !slices.ContainsFunc(g.Failures, func(f state.Failure) bool { return f.Node == name && (f.Start || f.Count >= state.FailureLimit) }) {
			return name
		}
	}
	return ""
}

func (x nodeView) lostWhy() string {
	if !x.why.IsZero() {
		return x.why.Text()
	}
	if !x.fact.Ever {
		return "it has not been heard yet"
	}
	return "no heartbeat for " + dur(x.fact.Age)
}

// releases decides which owners must stop what they have.
func releases(s state.State, f Facts, v nodeViews, places []placement) []Op {
	var ops []Op
	for _, p := range places {
		g := p.group
		if g.Epoch == 0 || (g.Phase != state.PhaseGranted && g.Phase != state.PhaseStarted) {
			continue
		}
		x := v.get(g.Owner.Node)
		if x == nil || x.lost || x.condemned() || g.Owner != x.node.Up {
			continue // there is nobody to tell
		}
		why := p.leave(s, x)
		if why.IsZero() {
			continue
		}
		ops = append(ops, Op{"revoke/" + string(g.Name), state.Revoke{Group: g.Name, Epoch: g.Epoch, Why: why, For: max(g.HeldStop, time.Second)}})
	}
	return ops
}

// leave says why the owner must give the group up, or nothing if it keeps it.
func (p *placement) leave(s state.State, x *nodeView) reason.Reason {
	owner := string(x.node.Name)
	switch {
	case p.conf == nil:
		return reason.New(reason.Removed)
	case p.group.Stopped:
		return reason.New(reason.GroupStopped, "group", string(p.group.Name))
	case x.node.Leaving:
		return reason.New(reason.CleanStop, "node", owner)
	case x.node.Standby:
		return reason.New(reason.NodeStandby, "node", owner)
	case !slices.Contains(p.conf.Nodes, x.node.Name):
		return reason.New(reason.NodeNotListed, "node", owner)
	case !sameResources(p.group.Held, p.conf.Resources):
		return reason.New(reason.ConfigChanged)
	case p.best.IsZero() || p.best.Node == x.node.Name || !p.wait.IsZero():
		return reason.Reason{}
	case p.group.MoveTo == p.best.Node:
		return reason.New(reason.Moved, "node", string(p.best.Node))
	case p.conf.Failback && p.preferred(p.best.Node, x.node.Name):
		return reason.New(reason.Failback, "node", string(p.best.Node))
	}
	return reason.Reason{}
}

// preferred reports whether a stands before b in the group's list, or b has been moved away from.
func (p *placement) preferred(a, b ids.Node) bool {
	if p.group.MoveTo == b {
		return false
	}
	if d := failures(p.group, a) - failures(p.group, b); d != 0 {
		return d < 0
	}
	return slices.Index(p.conf.Nodes, a) < slices.Index(p.conf.Nodes, b)
}

func sameResources(a, b []state.ResourceConfig) bool {
	return slices.EqualFunc(a, b, func(x, y state.ResourceConfig) bool {
		if x.ID != y.ID || x.Monitor != y.Monitor || (x.IP == nil) != (y.IP == nil) {
			return false
		}
		return x.IP == nil || *x.IP == *y.IP
	})
}

// grants gives every group without an owner to its best node.
func grants(s state.State, places []placement) []Op {
	var ops []Op
	for _, p := range places {
		g := p.group
		if g.Epoch != 0 || g.Stopped || p.conf == nil || p.best.IsZero() || !p.wait.IsZero() {
			continue
		}
		ops = append(ops, Op{"grant/" + string(g.Name), state.Grant{Group: g.Name, To: p.best, Revision: s.Revision, Why: p.why}})
	}
	return ops
}
