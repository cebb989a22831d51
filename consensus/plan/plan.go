// Package plan decides what the leader wants done: Decide(State, Facts) Plan. It is pure and leader
// only; what it decides is proposed as log entries, and the state machine verifies each of them
// again. Every decision, and every thing not done, carries a reason.
package plan

import (
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// Facts is what the leader knows and the log does not. All ages are on the leader's own clock. Facts
// are values: the same facts give the same plan, in whatever order they were collected.
type Facts struct {
	Self ids.Node `json:"self"`
	// Settled is the time since this leader's first applied entry of its term, or since it last ran
	// late itself, whichever is shorter: nothing older is held against anybody (rule 12).
	Settled time.Duration `json:"settled"`
	// Uptime is the time since this process could first hear others: initial_dead counts from it.
	Uptime time.Duration `json:"uptime"`
	Nodes  []NodeFact    `json:"nodes"`
	Fences []FenceFact   `json:"fences,omitempty"`
	// Devices are the newest checks of fence devices by the nodes that may use them.
	Devices []DeviceFact `json:"devices,omitempty"`
	Revokes []RevokeFact `json:"revokes,omitempty"`
}

// NodeFact is what the leader knows of one node.
type NodeFact struct {
	Name   ids.Node `json:"name"`
	Ever   bool     `json:"ever"`   // heard by this process at least once
	Silent bool     `json:"silent"` // dead on every link
	// Age is the time since its newest heartbeat; meaningless unless Ever.
	Age time.Duration `json:"age"`
	// Boot is the boot of its newest heartbeat.
	Boot ids.Boot `json:"boot,omitempty"`
	// Refused says that its kernel refuses connections: the daemon is dead and the machine is not.
	Refused bool `json:"refused,omitempty"`
	// Agreed says that another quorate member reported it silent, since it fell silent here.
	Agreed bool `json:"agreed,omitempty"`
	// Others says that another quorate member still hears it.
	Others bool `json:"others,omitempty"`
	// TickAge is the age of its newest tick by the leader's own stamp; -1 where none was applied here.
	TickAge time.Duration `json:"tick_age"`
	Voter   bool          `json:"voter"`
}

// FenceFact is what the leader knows of one fence.
type FenceFact struct {
	ID uint64 `json:"id"`
	// SinceProof is the time since the leader learned of the newest attempt that read off, or -1.
	SinceProof time.Duration `json:"since_proof"`
	// SinceEnd is the time since the newest attempt ended, or -1 while none has.
	SinceEnd time.Duration `json:"since_end"`
	// SinceIntent is the time since the leader applied the intent.
	SinceIntent time.Duration `json:"since_intent"`
	// Heard is the boot of the newest heartbeat that arrived after the intent was applied; "" for none.
	Heard ids.Boot `json:"heard,omitempty"`
	// Expired are the attempts whose deadline, and the life of the BMC session after it, have passed.
	Expired []int `json:"expired,omitempty"`
	// Overdue are the open attempts that need not be waited for: their deadline is over, or their
	// executor is gone. Another attempt may begin beside them.
	Overdue []int `json:"overdue,omitempty"`
}

// DeviceFact is one check of one fence device by one node.
type DeviceFact struct {
	Executor ids.Node      `json:"executor"`
	Node     ids.Node      `json:"node"`
	Device   string        `json:"device"`
	OK       bool          `json:"ok"`
	Identity string        `json:"identity,omitempty"`
	Detail   string        `json:"detail,omitempty"`
	Age      time.Duration `json:"age"`
}

// RevokeFact is how long ago the leader applied the revoke of a group.
type RevokeFact struct {
	Group ids.Group     `json:"group"`
	Age   time.Duration `json:"age"`
}

// Op is one thing to be done: the command to propose. Key is stable: while an op of that key is on its
// way it is not proposed again.
type Op struct {
	Key string
	Cmd state.Command
}

// Verdict is what is true of one node with respect to one group.
type Verdict struct {
	Node ids.Node `json:"node"`
	// Is is owner, chosen, eligible or excluded.
	Is     string        `json:"is"`
	Reason reason.Reason `json:"reason"`
}

// GroupView is one group as the plan sees it.
type GroupView struct {
	Name ids.Group `json:"name"`
	// State is running, starting, stopping, stopped, held or failed.
	State  string        `json:"state"`
	Reason reason.Reason `json:"reason"`
	Nodes  []Verdict     `json:"nodes"`
}

// NodeView is one node as the plan sees it.
type NodeView struct {
	Name ids.Node `json:"name"`
	// State is online, joining, lost, fencing, fenced or left.
	State  string        `json:"state"`
	Reason reason.Reason `json:"reason"`
}

// Condition is something an operator should know; the most damaging comes first.
type Condition struct {
	Subject string        `json:"subject"`
	Reason  reason.Reason `json:"reason"`
}

// Plan is one decision: what to do, and how everything stands and why.
type Plan struct {
	Ops        []Op
	Nodes      []NodeView
	Groups     []GroupView
	Conditions []Condition
}

// Timing of the fence ladder.
const (
	// AttemptDeadline is how long one power attempt may take.
	AttemptDeadline = 15 * time.Second
	// SessionLife is how long a BMC may keep acting on a session that was given up: 60 s is the
	// session inactivity timeout of IPMI 2.0 section 6.12.15.
	SessionLife = 63 * time.Second
	// retryMin and retryMax bound the pause between two attempts.
	retryMin = 1 * time.Second
	retryMax = 30 * time.Second
	// onTries bounds the attempts to switch a fenced node on again.
	onTries = 5
)

// Decide is the whole planner, as stages that each return a new value: how the nodes are, what must be
// fenced, what must be released, where the rest belongs.
func Decide(s state.State, f Facts) Plan {
	f = normal(f)
	v := view(s, f)
	p := Plan{Nodes: v.views()}
	p.Ops = append(p.Ops, fences(s, f, v)...)
	v.doom(p.Ops)
	places := placements(s, f, v)
	p.Ops = append(p.Ops, releases(s, f, v, places)...)
	p.Ops = append(p.Ops, grants(s, places)...)
	p.Groups = groupViews(s, f, v, places)
	for i := range p.Nodes {
		x := v.get(p.Nodes[i].Name)
		if fe := s.OpenFence(x.node.Name, x.node.Up.Boot); fe != nil {
			p.Nodes[i].Reason = fenceHold(s, f, v, fe)
		}
	}
	p.Conditions = conditions(s, f, v, p.Groups)
	return p
}

// normal sorts the facts, so that the order in which they were collected does not matter.
func normal(f Facts) Facts {
	f.Nodes = sortedBy(f.Nodes, func(n NodeFact) string { return string(n.Name) })
	f.Devices = sortedBy(f.Devices, func(d DeviceFact) string {
		return string(d.Node) + "/" + d.Device + "/" + string(d.Executor)
	})
	f.Revokes = sortedBy(f.Revokes, func(r RevokeFact) string { return string(r.Group) })
	f.Fences = slices.Clone(f.Fences)
	slices.SortFunc(f.Fences, func(a, b FenceFact) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	return f
}

func sortedBy[T any](in []T, key func(T) string) []T {
	out := slices.Clone(in)
	slices.SortStableFunc(out, func(a, b T) int {
		ka, kb := key(a), key(b)
		switch {
		case ka < kb:
			return -1
		case ka > kb:
			return 1
		}
		return 0
	})
	return out
}

func (f Facts) node(n ids.Node) (NodeFact, bool) {
	for _, x := range f.Nodes {
		if x.Name == n {
			return x, true
		}
	}
	return NodeFact{Name: n, TickAge: -1}, false
}

func (f Facts) fence(id uint64) FenceFact {
	for _, x := range f.Fences {
		if x.ID == id {
			return x
		}
	}
	return FenceFact{ID: id, SinceProof: -1, SinceEnd: -1}
}
