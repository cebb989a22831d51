package sim

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// TestStories runs the golden stories in testdata. Every verb is answered by what happened since the
// last one; go test -rewrite writes the answers anew. The verbs:
//
//	cluster [witness] [failback] [profile=P] [groups=N] [leader=NODE] [for=5s]  power everything on
//	tick D                     let time pass
//	status                     what the leader's plan says, and what really runs where
//	cut node=N [nic=eth0] [dir=in|out|both|cable]   without nic: every NIC
//	block from=A to=B          one direction, every NIC; heal [node=N] ends cuts and blocks
//	power node=N off|on|reboot    plug node=N in|out     the cord feeds the BMC too
//	kill|start|pause|resume|freeze|thaw|leave node=N      the daemon, or with freeze the machine
//	bmc node=N honest|dead|slow|late|ok|off|wrong
//	fault node=N op=start|stop|monitor group=G mode=fail|hang|late|none
//	standby|online node=N    move group=G to=N    group group=G stop|start    cleanup group=G
//	fence|confirm node=N     an operator's fence, and his word that it is off
//	trap entry=FenceIntent kill=leader|NODE   once, when such an entry is committed; or standby=NODE
//	elect node=N             it becomes the leader, if a majority can vote for it
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		s := &story{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if s.w == nil && d.Cmd != "cluster" {
				t.Fatalf("%s: a story begins with cluster", path)
			}
			s.do(t, d)
			if len(s.w.bad) > 0 && !strings.Contains(path, "violation") {
				t.Errorf("%s: VIOLATION %s", path, strings.Join(s.w.bad, "\nVIOLATION "))
			}
			return s.news()
		})
	})
}

type story struct {
	w     *World
	told  int
	extra string
}

func arg(d *datadriven.TestData, key, or string) string {
	v := or
	d.MaybeScanArgs(&testing.T{}, key, &v)
	return v
}

func (s *story) span(t *testing.T, text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// news is what happened since the last time, with times to a tenth of a second.
func (s *story) news() string {
	var b strings.Builder
	for _, l := range s.w.story[s.told:] {
		var at float64
		_, _ = fmt.Sscanf(l, "%f", &at)
		fmt.Fprintf(&b, "%6.1f %s\n", at, strings.TrimSpace(l[min(len(l), 9):]))
	}
	s.told = len(s.w.story)
	b.WriteString(s.extra)
	s.extra = ""
	return b.String()
}

func (s *story) do(t *testing.T, d *datadriven.TestData) {
	var m *machine
	if s.w != nil {
		m = s.w.machine(ids.Node(arg(d, "node", "")))
	}
	switch d.Cmd {
	case "cluster":
		s.cluster(t, d)
	case "tick":
		s.w.run(s.span(t, d.CmdArgs[0].Key))
	case "status":
		s.extra = s.w.status()
	case "cut", "block", "heal":
		s.network(d, m)
	case "power":
		switch {
		case d.HasArg("off"):
			m.powerOff("the story says so")
		case d.HasArg("on"):
			m.powerOn(time.Second)
		default:
			m.reset("reboot")
		}
	case "plug":
		m.cord = d.HasArg("in")
		if !m.cord {
			m.powerOff("the cord is pulled")
		} else {
			m.powerOn(time.Second)
		}
	case "bmc":
		s.bmc(m, d.CmdArgs[1].Key)
	case "fault":
		what, mode := arg(d, "op", "")+" "+arg(d, "group", ""), arg(d, "mode", "fail")
		delete(m.faulty, what)
		if mode != "none" {
			m.faulty[what] = mode
		}
	case "trap":
		if n := ids.Node(arg(d, "standby", "")); n != "" {
			s.w.traps["state."+arg(d, "entry", "")] = func() { s.w.operate(state.NodeMode{Node: n, Standby: true, Operator: "root"}) }
			return
		}
		s.trap(arg(d, "entry", ""), arg(d, "kill", "leader"))
	default:
		if !s.daemon(d, m) && !s.operator(d) {
			t.Fatalf("verb %q is not known", d.Cmd)
		}
	}
}

func (s *story) cluster(t *testing.T, d *datadriven.TestData) {
	n := 1
	d.MaybeScanArgs(t, "groups", &n)
	s.w = newWorld(1, Options{Witness: d.HasArg("witness"), Failback: d.HasArg("failback"), Profile: arg(d, "profile", ""), Groups: n, Grow: d.HasArg("grow")})
	s.w.quiet, s.told = true, 0
	s.w.start()
	s.w.run(s.span(t, arg(d, "for", "5s")))
	if l := s.w.machine(ids.Node(arg(d, "leader", ""))); l != nil && s.w.leader() != l.proc {
		l.proc.raft.campaign(true)
		s.w.run(time.Second)
	}
}

func (s *story) network(d *datadriven.TestData, m *machine) {
	switch d.Cmd {
	case "block":
		s.w.block(ids.Node(arg(d, "from", "")), ids.Node(arg(d, "to", "")), true)
	case "heal":
		for _, o := range s.w.machines {
			for i := range o.nics {
				if m == nil || m == o {
					o.setNIC(i, nic{})
				}
			}
		}
		if m == nil {
			s.w.blocked = map[pair]bool{}
		}
	case "cut":
		n := map[string]nic{"both": {outCut: true, inCut: true}, "in": {inCut: true}, "out": {outCut: true}, "cable": {noCarrier: true}}[arg(d, "dir", "both")]
		for i := range m.nics {
			if only := arg(d, "nic", ""); only == "" || only == nicName(i) {
				m.setNIC(i, n)
			}
		}
	}
}

func (s *story) bmc(m *machine, how string) {
	b := &m.bmc
	*b = bmc{m: m, guid: m.uuid, latency: 20 * time.Millisecond, claims: b.claims && how == "off"}
	switch how {
	case "dead":
		b.dead = true
	case "slow":
		b.latency, b.act = 3*time.Second, 10*time.Second
	case "late":
		b.act = 40 * time.Second
	case "ok", "off":
		b.lies = how
	case "wrong":
		b.guid = s.w.machines[(m.index+1)%3].uuid
	}
}

func (s *story) trap(entry, who string) {
	s.w.traps["state."+entry] = func() {
		m := s.w.machine(ids.Node(who))
		if p := s.w.leader(); who == "leader" && p != nil {
			m = p.m
		}
		s.w.say("trap: %s: picket on %s is killed", entry, m.name)
		m.kill()
	}
}

func (s *story) daemon(d *datadriven.TestData, m *machine) bool {
	if m == nil {
		return false
	}
	p := m.proc
	switch d.Cmd {
	case "kill":
		m.kill()
	case "start":
		m.startDaemon()
	case "pause":
		p.pause()
	case "resume":
		p.resume()
	case "freeze":
		m.freeze()
	case "elect":
		p.raft.campaign(true)
	case "thaw":
		m.thaw()
	case "leave":
		p.step(core.Shutdown{})
	default:
		return false
	}
	return true
}

func (s *story) operator(d *datadriven.TestData) bool {
	const op = "root"
	node, group := ids.Node(arg(d, "node", "")), ids.Group(arg(d, "group", ""))
	st := s.w.ledger.head
	switch d.Cmd {
	case "standby", "online":
		s.w.operate(state.NodeMode{Node: node, Standby: d.Cmd == "standby", Operator: op})
	case "move":
		s.w.operate(state.Move{Group: group, To: ids.Node(arg(d, "to", "")), Operator: op})
	case "group":
		s.w.operate(state.GroupMode{Group: group, Stopped: d.HasArg("stop"), Operator: op})
	case "cleanup":
		s.w.operate(state.Cleanup{Group: group, Operator: op})
	case "fence":
		s.w.operate(state.FenceIntent{Target: st.Node(node).Up, Operator: op, Reason: reason.New(reason.OperatorFence, "why", "drill")})
	case "confirm":
		for _, f := range st.Fences {
			if f.Open() && f.Target.Node == node {
				s.w.operate(state.FenceConfirm{Fence: f.ID, Evidence: state.Evidence{Kind: state.Human, Operator: op, Why: "I pulled the plug"}})
			}
		}
	default:
		return false
	}
	return true
}

// status is the leader's word, and the truth beside it.
func (w *World) status() string {
	var b strings.Builder
	p := w.leader()
	if p == nil {
		b.WriteString("no leader\n")
	} else {
		v := p.c.View()
		fmt.Fprintf(&b, "leader %s\n", p.m.name)
		for _, n := range v.Plan.Nodes {
			fmt.Fprintf(&b, "node %s: %s %s\n", n.Name, n.State, n.Reason)
		}
		for _, g := range v.Plan.Groups {
			fmt.Fprintf(&b, "group %s: %s, owner %s: %s\n", g.Name, g.State, v.State.Group(g.Name).Owner.Node, g.Reason)
		}
		writeConditions(&b, v.Plan.Conditions)
	}
	for _, m := range w.machines {
		for _, r := range m.sortedRuns() {
			fmt.Fprintf(&b, "truth: %s runs on %s\n", r, m.name)
		}
	}
	return b.String()
}

func writeConditions(b *strings.Builder, list []plan.Condition) {
	for _, c := range list {
		fmt.Fprintf(b, "condition: %s: %s\n", c.Subject, c.Reason.Text())
		if a := c.Reason.Action(); a != "" {
			fmt.Fprintf(b, "           %s\n", a)
		}
	}
}
