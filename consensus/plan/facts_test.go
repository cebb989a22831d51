package plan_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/internal/story"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/state"
)

// parseFacts reads what the leader knows, one line a thing. Every admitted node that is not named is heard
// with its newest boot, its newest tick 100 ms old; one that is silent has no newer tick unless said. self is
// n3 unless said.
//
//	self N [settled=D] [uptime=D]
//	node N [never] [silent=D | age=D] [boot=B] [agreed] [others] [refused] [tick=D] [nonvoter]
//	fence N [proof=D] [end=D] [intent=D] [heard=B] [expired=N,N] [overdue=N,N]
//	device EXECUTOR NODE DEVICE [failed] [detail=T]
//	revoke G age=D
func parseFacts(s state.State, text string) (plan.Facts, error) {
	f := plan.Facts{Self: "n3", Settled: time.Minute, Uptime: time.Hour}
	for _, n := range s.Nodes {
		f.Nodes = append(f.Nodes, plan.NodeFact{Name: n.Name, Ever: n.Up.Gen != 0 && !n.Left, Silent: n.Up.Gen == 0 || n.Left, Age: 100 * time.Millisecond, Boot: n.Up.Boot, TickAge: 100 * time.Millisecond, Voter: true})
	}
	for i := range s.Fences {
		f.Fences = append(f.Fences, plan.FenceFact{ID: s.Fences[i].ID, SinceProof: -1, SinceEnd: -1})
	}
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		l := story.Split(line)
		switch l.Word(0) {
		case "":
		case "self":
			f.Self, f.Settled, f.Uptime = ids.Node(l.Word(1)), l.Dur("settled", f.Settled), l.Dur("uptime", f.Uptime)
		case "node":
			nodeFact(&f, l)
		case "fence":
			fenceFact(s, &f, l)
		case "device":
			f.Devices = append(f.Devices, plan.DeviceFact{Executor: ids.Node(l.Word(1)), Node: ids.Node(l.Word(2)), Device: l.Word(3), OK: !l.Has("failed"), Detail: l.Args["detail"]})
		case "revoke":
			f.Revokes = append(f.Revokes, plan.RevokeFact{Group: ids.Group(l.Word(1)), Age: l.Dur("age", 0)})
		default:
			return f, fmt.Errorf("%s: not a fact", line)
		}
		if l.Bad != nil {
			return f, fmt.Errorf("%s: %w", line, l.Bad)
		}
	}
	return f, nil
}

func nodeFact(f *plan.Facts, l story.Line) {
	i := slices.IndexFunc(f.Nodes, func(n plan.NodeFact) bool { return string(n.Name) == l.Word(1) })
	if i < 0 {
		f.Nodes = append(f.Nodes, plan.NodeFact{Name: ids.Node(l.Word(1)), TickAge: -1})
		i = len(f.Nodes) - 1
	}
	n := &f.Nodes[i]
	n.Age = l.Dur("age", n.Age)
	if d := l.Dur("silent", -1); d >= 0 {
		n.Silent, n.Age, n.TickAge = true, d, d
	}
	if l.Has("never") {
		n.Ever, n.Silent, n.Boot, n.TickAge = false, true, "", -1
	}
	if b, ok := l.Args["boot"]; ok {
		n.Ever, n.Boot = true, ids.Boot(b)
		n.Silent = l.Args["silent"] != ""
	}
	n.Agreed, n.Others, n.Refused, n.Voter = l.Has("agreed"), l.Has("others"), l.Has("refused"), !l.Has("nonvoter")
	n.TickAge = l.Dur("tick", n.TickAge)
}

func fenceFact(s state.State, f *plan.Facts, l story.Line) {
	for i := range s.Fences {
		if string(s.Fences[i].Target.Node) != l.Word(1) {
			continue
		}
		x := &f.Fences[i]
		x.SinceProof, x.SinceEnd, x.SinceIntent = l.Dur("proof", -1), l.Dur("end", -1), l.Dur("intent", 0)
		x.Heard, x.Expired, x.Overdue = ids.Boot(l.Args["heard"]), numbers(l.Args["expired"]), numbers(l.Args["overdue"])
	}
}

func numbers(s string) []int {
	var out []int
	for _, w := range strings.Split(s, ",") {
		if n, err := strconv.Atoi(w); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// render shows a plan: what to do, how everything stands, and why.
func render(p plan.Plan) string {
	var b strings.Builder
	for _, op := range p.Ops {
		fmt.Fprintf(&b, "do %s: %s\n", op.Key, command(op.Cmd))
	}
	for _, n := range p.Nodes {
		fmt.Fprintf(&b, "node %s %s", n.Name, n.State)
		if !n.Reason.IsZero() {
			fmt.Fprintf(&b, " [%s]", n.Reason)
		}
		b.WriteString("\n")
	}
	for _, g := range p.Groups {
		fmt.Fprintf(&b, "group %s %s [%s]\n", g.Name, g.State, g.Reason)
		for _, v := range g.Nodes {
			fmt.Fprintf(&b, "  %s %s [%s]\n", v.Node, v.Is, v.Reason)
		}
	}
	for _, c := range p.Conditions {
		fmt.Fprintf(&b, "condition %s [%s]\n", c.Subject, c.Reason)
	}
	return b.String()
}

func command(c state.Command) string {
	switch c := c.(type) {
	case state.Grant:
		return fmt.Sprintf("grant to %s [%s]", c.To, c.Why)
	case state.Revoke:
		return fmt.Sprintf("revoke epoch %d within %v [%s]", c.Epoch, c.For, c.Why)
	case state.FenceIntent:
		return fmt.Sprintf("condemn %s [%s]", c.Target, c.Reason)
	case state.FenceBegin:
		return fmt.Sprintf("%s powers it %s with %s within %v", c.Executor, c.Op, c.Device, c.Deadline)
	case state.FenceEnd:
		return fmt.Sprintf("%s: %s", c.Report.Outcome, c.Report.Detail)
	case state.FenceConfirm:
		return fmt.Sprintf("proof %s attempt %d boot %q", c.Evidence.Kind, c.Evidence.Attempt, c.Evidence.NewBoot)
	}
	return fmt.Sprintf("%#v", c)
}
