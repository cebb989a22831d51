package plan

import (
	"strings"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// nodeView is the first stage's verdict on one node.
type nodeView struct {
	node *state.Node
	fact NodeFact
	self bool
	// here: its newest announced incarnation is heard now.
	here bool
	// open: the fence of its newest announced boot waits for proof.
	open bool
	// byWord: the operator on whose word that boot counts as dead.
	byWord string
	// lost: rule 12 holds for the boot it last announced; why says by which half.
	lost bool
	why  reason.Reason
	// doomed: its boot is condemned by this very plan.
	doomed bool
}

type nodeViews []nodeView

func (v nodeViews) get(n ids.Node) *nodeView {
	for i := range v {
		if v[i].node.Name == n {
			return &v[i]
		}
	}
	return nil
}

// view decides for every admitted node whether it is here, lost, or not to be judged yet.
func view(s state.State, f Facts) nodeViews {
	var out nodeViews
	t := timing(s)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		fact, _ := f.node(n.Name)
		v := nodeView{node: n, fact: fact, self: n.Name == f.Self, open: s.OpenFence(n.Name, n.Up.Boot) != nil}
		for j := range s.Fences {
			if fe := &s.Fences[j]; fe.Evidence != nil && fe.Target.Node == n.Name && fe.Target.Boot == n.Up.Boot {
				v.byWord = fe.Evidence.Operator
			}
		}
		v.here = n.Up.Gen != 0 && !n.Left && (v.self || (fact.Ever && !fact.Silent && fact.Boot == n.Up.Boot))
		if !v.self && !v.here {
			v.lost, v.why = lost(s, f, n, fact, t)
		} else if !v.self {
			v.lost, v.why = lostLease(s, f, n, fact, t)
		}
		out = append(out, v)
	}
	return out
}

// doom marks the nodes that the plan's own intents condemn: nothing is given to them any more.
func (v nodeViews) doom(ops []Op) {
	for _, op := range ops {
		if in, ok := op.Cmd.(state.FenceIntent); ok {
			x := v.get(in.Target.Node)
			x.doomed = x.doomed || in.Target.Boot == x.node.Up.Boot
		}
	}
}

// gone reports whether a node is silent on every link, here and for another quorate member, and not
// only because this process has just started.
func (x *nodeView) gone(f Facts, t state.Timing) bool {
	return x.fact.Silent && x.fact.Agreed && (x.fact.Ever || f.Uptime >= t.InitialDead)
}

func timing(s state.State) state.Timing {
	if s.Revision == 0 {
		t, _ := state.Profile("default")
		return t
	}
	return s.Config.Timing
}

// lost is rule 12 for a node that is not heard: every link silent, no tick, and another quorate member
// says so too; or, for an owner, its newest tick too old.
func lost(s state.State, f Facts, n *state.Node, fact NodeFact, t state.Timing) (bool, reason.Reason) {
	if ok, why := lostLease(s, f, n, fact, t); ok {
		return true, why
	}
	if fact.Ever && !fact.Silent {
		return false, reason.Reason{} // it talks, with a boot that it has not announced yet
	}
	after := t.Dead
	if fact.Refused {
		after = max(t.Dead, t.RestartGrace)
	}
	age := fact.Age
	if !fact.Ever {
		after, age = t.InitialDead, f.Uptime
	}
	tick := fact.TickAge
	if tick < 0 {
		tick = f.Uptime // none since this process could have applied one
	}
	name := string(n.Name)
	switch {
	case !fact.Ever && age < after:
		return false, reason.New(reason.WaitsForInitial, "node", name, "left", dur(after-age))
	case age < after || tick < t.Dead:
		return false, reason.Reason{}
	case !fact.Agreed:
		return false, reason.New(reason.WaitsForAgreement, "node", name)
	}
	return true, reason.New(reason.LostSilent, "node", name, "age", dur(age))
}

// lostLease is the second half of rule 12: an owner whose ticks stopped is lost even while its links
// still speak. Nothing from before this leader settled is held against it.
func lostLease(s state.State, f Facts, n *state.Node, fact NodeFact, t state.Timing) (bool, reason.Reason) {
	owned := s.Owned(n.Name, n.Up.Boot)
	if len(owned) == 0 {
		return false, reason.Reason{}
	}
	// A grant begins an ownership without a tick: its own age bounds how old the tick may seem.
	age := fact.TickAge
	if age < 0 || age > f.Settled {
		age = f.Settled
	}
	if age < t.Lost() {
		return false, reason.Reason{}
	}
	return true, reason.New(reason.LostLease, "node", string(n.Name), "groups", joinGroups(owned), "age", dur(age))
}

// views renders the stage for status.
func (v nodeViews) views() []NodeView {
	var out []NodeView
	for _, x := range v {
		out = append(out, NodeView{Name: x.node.Name, State: x.state(), Reason: x.reason()})
	}
	return out
}

func (x nodeView) state() string {
	n := x.node
	switch {
	case x.condemned() && x.open:
		return "fencing"
	case x.condemned():
		return "fenced"
	case n.Left:
		return "left"
	case n.Up.Gen == 0:
		return "joining"
	case x.here && !x.lost:
		return "online"
	case x.lost || (x.fact.Ever && x.fact.Silent):
		return "lost"
	}
	return "joining"
}

// condemned reports whether the node's newest announced boot has an intent.
func (x nodeView) condemned() bool {
	for _, b := range x.node.Condemned {
		if b == x.node.Up.Boot {
			return true
		}
	}
	return false
}

func (x nodeView) reason() reason.Reason {
	name := string(x.node.Name)
	switch x.state() {
	case "fencing":
		return reason.New(reason.NodeFencing, "node", name)
	case "fenced":
		if x.byWord != "" {
			return reason.New(reason.NodeConfirmed, "node", name, "operator", x.byWord)
		}
		return reason.New(reason.NodeFenced, "node", name)
	case "left":
		return reason.New(reason.NodeLeft, "node", name)
	case "lost":
		if !x.why.IsZero() {
			return x.why
		}
		return reason.New(reason.LostSilent, "node", name, "age", dur(x.fact.Age))
	case "joining":
		if !x.why.IsZero() {
			return x.why
		}
		return reason.New(reason.NodeNotUp, "node", name)
	}
	if x.node.Standby {
		return reason.New(reason.NodeStandby, "node", name)
	}
	return reason.Reason{}
}

func joinGroups(g []ids.Group) string {
	s := make([]string, len(g))
	for i := range g {
		s[i] = string(g[i])
	}
	return strings.Join(s, ",")
}

// dur rounds a duration for people: milliseconds below ten seconds, seconds above.
func dur(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
