package core

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/internal/story"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/resources"
)

// bench is one core with everything around it played by the test: a log that commits at once (or holds),
// resources that succeed at once (or wait), peers that are only heartbeats.
type bench struct {
	t   *testing.T
	c   *Core
	now time.Duration
	s   state.State
	seq uint64
	// hold keeps proposals, and runs keeps operations, unanswered.
	hold, holdRuns bool
	proposals      []Propose
	runs           []Run
	fail           string // what every operation answers
	// log holds every action since the last take, and events at hand.
	log []Action
}

const (
	session = 77
	secs    = time.Second
)

// newBench starts the core of a node on boot a at 100 s.
func newBench(t *testing.T, self ids.Node, s state.State, o Options) *bench {
	o.Self, o.Boot, o.Session, o.UUID, o.Now = self, "a", session, story.UUID("1"), 100*secs
	b := &bench{t: t, c: New(o), now: o.Now, s: s}
	b.step(Restored{s})
	var paths []heartbeat.Path
	var servers []Server
	for _, n := range s.Nodes {
		servers = append(servers, Server{n.Name, true})
		if n.Name != self {
			paths = append(paths, heartbeat.Path{Peer: n.Name, Interface: "eth0"})
		}
	}
	b.step(Paths{paths})
	b.step(Servers{servers})
	return b
}

// cluster is the state of three admitted nodes with one group on n1 and n2, and what the lines add to it.
func cluster(t *testing.T, lines ...string) state.State {
	t.Helper()
	var s state.State
	conf, err := story.Config("node n1 ipmi-1\nnode n2 ipmi-1\ngroup web n1,n2 ip1\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range append([]string{"admit n1 member eth0=10.0.0.1", "mint a", "mint b", "admit n2 member eth0=10.0.0.2 tok=a", "admit n3 witness eth0=10.0.0.3 tok=b", "CONFIG"}, lines...) {
		var cmd state.Command = state.ConfigSet{Config: conf}
		if line != "CONFIG" {
			if cmd, err = story.Command(s, line); err != nil {
				t.Fatal(err)
			}
		}
		var r state.Result
		if s, r = state.Apply(s, s.Index+1, state.Entry{Cmd: cmd}); !r.OK() {
			t.Fatalf("%s: %s", line, r.Refused)
		}
	}
	return s
}

// step gives one event, and plays the world to what comes of it.
func (b *bench) step(ev Event) {
	for _, a := range b.c.Step(b.now, ev) {
		b.log = append(b.log, a)
		switch a := a.(type) {
		case Propose:
			if b.hold {
				b.proposals = append(b.proposals, a)
				continue
			}
			b.commitCmd(a.Cmd)
			b.step(Proposed{ID: a.ID, OK: true, Known: true})
		case Run:
			if b.holdRuns {
				b.runs = append(b.runs, a)
				continue
			}
			b.done(a, b.fail)
		case Send:
			if a.To == b.c.opt.Self {
				b.step(Received{From: a.To, Msg: a.Msg})
			}
		}
	}
}

func (b *bench) done(r Run, err string) {
	b.step(Ran{Serial: r.Serial, Result: resources.Result{Seq: r.Request.Seq, Group: r.Request.Group, Resource: r.Request.Resource, Op: r.Request.Op, Err: err}})
}

func (b *bench) commitCmd(cmd state.Command) state.Result {
	s, r := state.Apply(b.s, b.s.Index+1, state.Entry{Cmd: cmd})
	for _, v := range append(state.Check(s), state.CheckStep(b.s, s, cmd)...) {
		b.t.Errorf("%s: %s", v.Rule, v.Text)
	}
	b.s = s
	b.step(Applied{Index: s.Index, Entry: state.Entry{Cmd: cmd}, Result: r, State: s})
	return r
}

// commit puts a line into the log, as another leader would.
func (b *bench) commit(line string) {
	b.t.Helper()
	cmd, err := story.Command(b.s, line)
	if err != nil {
		b.t.Fatal(err)
	}
	if r := b.commitCmd(cmd); !r.OK() {
		b.t.Fatalf("%s: %s", line, r.Refused)
	}
}

// commitReports puts what the core has sent to the leader into the log.
func (b *bench) commitReports() {
	for _, a := range b.take() {
		if s, ok := a.(Send); ok && s.Msg.Report != nil {
			e, err := state.Decode(s.Msg.Report.Entry)
			if err != nil {
				b.t.Fatal(err)
			}
			b.commitCmd(e.Cmd)
		}
	}
}

// beat lets a peer be heard; what it says of others is in silent.
func (b *bench) beat(from ids.Node, boot ids.Boot, silent ...ids.Node) {
	b.seq++
	b.step(Beat{Interface: "eth0", Beat: heartbeat.Beat{From: from, Boot: boot, Start: 1, Seq: b.seq + uint64(b.now), Session: 5, Echo: session, Applied: b.s.Index, Silent: silent}})
}

// wait lets time pass in ticks of 50 ms; each of the nodes is heard all along.
func (b *bench) wait(d time.Duration, heard ...ids.Node) {
	for end := b.now + d; b.now < end; {
		b.now += 50 * time.Millisecond
		for _, n := range heard {
			boot := ids.Boot("a")
			if x := b.s.Node(n); x != nil && x.Up.Boot != "" {
				boot = x.Up.Boot
			}
			b.beat(n, boot)
		}
		b.step(Tick{})
	}
}

// take returns the actions since the last take.
func (b *bench) take() []Action {
	out := b.log
	b.log = nil
	return out
}

// did renders the actions since the last take, leaving out what does not matter here.
func (b *bench) did() string {
	var out []string
	for _, a := range b.take() {
		switch a := a.(type) {
		case Journal, Kick, Push, Barrier, Verify, Prepare:
		case Propose:
			out = append(out, fmt.Sprintf("propose %T", a.Cmd))
		case Send:
			out = append(out, "send "+string(a.To)+" "+message(b.t, a.Msg))
		case Run:
			w := fmt.Sprintf("%s %s epoch %d", a.Request.Op, a.Request.Resource, a.Request.Epoch)
			if a.Request.Adopt {
				w += " adopt"
			}
			out = append(out, w)
		case Record:
			w := "record"
			for _, e := range a.Entries {
				w += fmt.Sprintf(" %s@%d", e.Group, e.Epoch)
			}
			out = append(out, w)
		case Power:
			out = append(out, fmt.Sprintf("power %s %s attempt %d", a.Node, a.Op, a.N))
		case GateAnswer:
			out = append(out, fmt.Sprintf("gate %d %t", a.Token, a.OK))
		case Membership:
			out = append(out, fmt.Sprintf("member %s voter=%t remove=%t", a.Name, a.Voter, a.Remove))
		default:
			out = append(out, strings.TrimPrefix(fmt.Sprintf("%T", a), "core."))
		}
	}
	return strings.ReplaceAll(strings.Join(out, "\n"), "state.", "")
}

func message(t *testing.T, m Message) string {
	switch {
	case m.Report != nil:
		e, err := state.Decode(m.Report.Entry)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("report %T", e.Cmd)
	case m.Renew != nil:
		return "renew"
	case m.Renewed != nil:
		return "renewed"
	case m.Ask != nil:
		return "ask"
	case m.Stand != nil:
		return fmt.Sprintf("stand %t", m.Stand.OK)
	}
	return "devices"
}

// count says how many lines of what was done hold a text.
func count(did, what string) int {
	n := 0
	for _, l := range strings.Split(did, "\n") {
		if strings.Contains(l, what) {
			n++
		}
	}
	return n
}

func want(t *testing.T, what string, got, wanted int) {
	t.Helper()
	if got != wanted {
		t.Errorf("%s: %d times, want %d", what, got, wanted)
	}
}

// lead makes the core the leader, with its Barrier done.
func (b *bench) lead() {
	b.step(Leadership{Leader: b.c.opt.Self, Term: 2})
	b.step(BarrierDone{Term: 2, OK: true})
}

// follow makes n3 the leader, heard and as new as the log.
func (b *bench) follow() {
	b.step(Leadership{Leader: "n3", Term: 2})
	b.beat("n3", "c")
	b.wait(100 * time.Millisecond)
}

// own brings the core, as a follower of n3, to where it runs web: announced, granted, leased, started.
func (b *bench) own() {
	b.t.Helper()
	b.follow()
	b.commitReports()
	b.commit("grant web n1")
	b.wait(50*time.Millisecond, "n3")
	b.grantAll()
	b.wait(50*time.Millisecond, "n3")
	b.commitReports()
	if g := b.s.Group("web"); g.Phase != state.PhaseStarted {
		b.t.Fatalf("web is %s of %s\n%s", g.Phase, g.Owner, b.did())
	}
}

// grantAll answers every renewal that was sent since the last take, as a leader does: with a tick, then the word.
func (b *bench) grantAll() {
	for _, a := range b.take() {
		s, ok := a.(Send)
		if !ok || s.Msg.Renew == nil {
			continue
		}
		k := s.Msg.Renew.Renewal.K
		if r := b.commitCmd(state.LeaseTick{Ticks: []state.Tick{{Inc: s.Msg.Renew.Inc, K: k}}}); len(r.Accepted) == 1 {
			b.step(Received{From: "n3", Msg: Message{Renewed: &Renewed{Inc: s.Msg.Renew.Inc, K: k, Index: b.s.Index}}})
		}
	}
}
