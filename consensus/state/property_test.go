package state_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/internal/story"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// start is a cluster of three nodes and a witness with two groups, as every random walk begins.
func start(t *rapid.T) state.State {
	var s state.State
	lines := "admit n1 member eth0=10.0.0.1\nmint a\nmint b\nmint c\nadmit n2 member eth0=10.0.0.2 tok=a\n" +
		"admit n3 member eth0=10.0.0.3 tok=b\nadmit w witness eth0=10.0.0.4 tok=c\nmint d\nmint e\nup n1 boot=a uuid=1\nup n2 boot=b uuid=2\nup w boot=c uuid=3"
	for _, line := range strings.Split(lines, "\n") {
		cmd, err := story.Command(s, line)
		if err != nil {
			t.Fatal(err)
		}
		s, _ = state.Apply(s, s.Index+1, state.Entry{Cmd: cmd})
	}
	s, r := state.Apply(s, s.Index+1, state.Entry{Cmd: state.ConfigSet{Config: config(t, 0)}})
	if !r.OK() {
		t.Fatal(r.Refused)
	}
	return s
}

// config is one of a few configurations that take groups and resources from each other.
func config(t *rapid.T, n int) state.Config {
	text := []string{
		"node n1 ipmi-1 ipmi-2\nnode n2 ipmi-1 trusted\nnode n3\ngroup db n1,n2 disk1\ngroup web n2,n1 ip1,ip2\n",
		"node n1 ipmi-1\nnode n2 ipmi-1@1 ipmi-2@2\nnode n3\ngroup db n1,n2,n3 disk1,ip2\n",
		"node n1\nnode n2 ipmi-1\ngroup api n1,n2 ip1\ngroup web n2,n1 disk1,ip2\nsingle\n",
		"node n1\n",
	}[n]
	c, err := story.Config(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// gen draws commands that make sense on a state, and ones that do not.
type gen struct {
	t *rapid.T
	s state.State
}

func pick[T any](g gen, of ...T) T { return rapid.SampledFrom(of).Draw(g.t, "pick") }

// odd is true once in n draws.
func (g gen) odd(n int) bool { return g.one(n) == n-1 }

// one draws evenly from 0 to n-1 (rapid.IntRange prefers the ends).
func (g gen) one(n int) int {
	of := make([]int, n)
	for i := range of {
		of[i] = i
	}
	return pick(g, of...)
}

func (g gen) text() string {
	return pick(g, "", "why", "\x00\xff{why}", strings.Repeat("ä", 700), strings.Repeat("x", 511)+"ü", "<&>\u2028")
}

func (g gen) node() ids.Node {
	if g.odd(12) {
		return pick[ids.Node](g, "", "nobody", "N1", ids.Node(strings.Repeat("n", 5000)))
	}
	return pick[ids.Node](g, "n1", "n2", "n3", "w")
}

func (g gen) boot() ids.Boot {
	if g.odd(15) {
		return pick(g, "", "Boot", ids.Boot(strings.Repeat("b", 99)))
	}
	return pick[ids.Boot](g, "a", "b", "c", "d", "e", "f", "g", "h")
}

func (g gen) inc() ids.Incarnation {
	n := g.node()
	if x := g.s.Node(n); x != nil && !g.odd(5) {
		return x.Up
	}
	return ids.Incarnation{Node: n, Boot: g.boot(), Gen: rapid.Uint64Range(0, g.s.Index+1).Draw(g.t, "gen")}
}

func (g gen) group() state.Group {
	if len(g.s.Groups) == 0 || g.odd(10) {
		return state.Group{Name: pick[ids.Group](g, "", "gone", ids.Group(strings.Repeat("g", 5000))), Epoch: 7}
	}
	return g.s.Groups[rapid.IntRange(0, len(g.s.Groups)-1).Draw(g.t, "group")]
}

// mine is a group, and mostly its true owner and epoch.
func (g gen) mine() (ids.Group, ids.Incarnation, ids.Epoch) {
	gr := g.group()
	inc, e := gr.Owner, gr.Epoch
	if g.odd(5) {
		inc = g.inc()
	}
	if g.odd(8) {
		e = ids.Epoch(rapid.Uint64Range(0, g.s.Index+5).Draw(g.t, "epoch"))
	}
	return gr.Name, inc, e
}

func (g gen) fence() state.Fence {
	if len(g.s.Fences) == 0 || g.odd(15) {
		return state.Fence{ID: rapid.Uint64Range(0, 99).Draw(g.t, "fence")}
	}
	return g.s.Fences[rapid.IntRange(0, len(g.s.Fences)-1).Draw(g.t, "fence")]
}

func (g gen) why() reason.Reason {
	r := reason.New(pick(g, reason.LostSilent, reason.Code(g.text())), "node", g.text())
	if g.odd(10) {
		for range 50 {
			r.Args = append(r.Args, reason.Arg{Key: g.text(), Value: g.text()})
		}
	}
	return r
}

func (g gen) dur() time.Duration {
	return pick(g, 10*time.Second, time.Minute, time.Second, time.Millisecond, 4*time.Minute, 0, 1<<63-1, -1<<63)
}

func (g gen) num() int { return rapid.IntRange(-1, 5).Draw(g.t, "n") }

func (g gen) command() state.Command {
	if g.odd(2) {
		return g.ownership()
	}
	switch g.one(12) {
	case 0:
		return state.NodeAdmit{Name: g.node(), Role: pick(g, state.Member, state.Witness, state.Role("x")), TokenHash: pick(g, story.Hash("d"), story.Hash("e"), ""),
			Links: []state.LinkAddr{{Interface: "eth0", Addr: pick(g, "10.0.0.1", "10.0.0.9", "10.0.0.8", "fe80::1%"+strings.Repeat("z", 600))}}}
	case 1:
		if !g.odd(4) {
			return g.ownership()
		}
		return state.NodeRemove{Name: g.node(), Operator: g.text()}
	case 2, 3, 4:
		return state.NodeUp{Node: g.node(), Boot: g.boot(), Session: rapid.Uint64Range(0, 3).Draw(g.t, "session"), UUID: pick(g, story.UUID("1"), story.UUID("2"), "", "zz"), Version: g.text()}
	case 5:
		return state.NodeLeave{Inc: g.inc(), Done: g.odd(2)}
	case 6:
		c := config(g.t, rapid.IntRange(0, 3).Draw(g.t, "config"))
		if g.odd(6) {
			c.Groups = append(c.Groups, state.GroupConfig{Name: "z", StartTimeout: g.dur(), StopTimeout: g.dur(), Nodes: []ids.Node{g.node()}, Resources: []state.ResourceConfig{{ID: ids.Resource(g.text())}}})
		}
		return state.ConfigSet{Base: g.s.Revision - uint64(pick(g, 0, 0, 0, 1)), Config: c, Operator: g.text()}
	case 7:
		return state.LeaseTick{Ticks: []state.Tick{{Inc: g.inc(), K: rapid.Uint64Range(0, 20).Draw(g.t, "k")}, {Inc: g.inc(), K: 1}}}
	case 8:
		return state.NodeMode{Node: g.node(), Standby: g.odd(4), Operator: g.text()}
	case 9:
		return state.TokenMint{Hash: pick(g, story.Hash(g.text()), story.Hash("f"), strings.Repeat("z", 64)), Expires: 5, By: g.text()}
	case 10:
		return state.NoteCmd{Operator: g.text(), Text: g.text()}
	}
	return nil
}

func (g gen) ownership() state.Command {
	name, inc, epoch := g.mine()
	kind := g.one(18)
	if len(g.s.Fences) > 0 && g.odd(2) {
		kind = 17
	}
	switch kind {
	case 0, 1, 2:
		return state.Grant{Group: name, To: g.inc(), Revision: g.s.Revision - uint64(pick(g, 0, 0, 0, 1)), Why: g.why()}
	case 3:
		return state.Started{Group: name, Inc: inc, Epoch: epoch}
	case 4:
		return state.Revoke{Group: name, Epoch: epoch, Why: g.why(), For: g.dur()}
	case 5:
		return state.Released{Group: name, Inc: inc, Epoch: epoch, Why: g.why()}
	case 6:
		return state.StartFailed{Group: name, Inc: inc, Epoch: epoch, Why: g.text()}
	case 7:
		return state.StopFailed{Group: name, Inc: inc, Epoch: epoch, Why: g.text()}
	case 8:
		return state.MonitorFailed{Group: name, Inc: inc, Epoch: epoch, Resource: ids.Resource(g.text()), Why: g.text()}
	case 9:
		return pick[state.Command](g, state.GroupMode{Group: name, Stopped: g.odd(2)}, state.Move{Group: name, To: g.node()}, state.Cleanup{Group: name})
	case 10, 11:
		c := state.FenceIntent{Target: inc, Reason: g.why(), Operator: pick(g, "", "", g.text())}
		if g.odd(3) {
			c.Target = g.inc()
		}
		return c
	}
	f := g.fence()
	switch g.one(5) {
	case 0:
		return state.FenceBegin{Fence: f.ID, N: f.Begun + pick(g, 1, 1, 1, 0, 2), Executor: g.node(), Device: pick(g, "ipmi-1", "ipmi-1", "ipmi-2", g.text()),
			Op: pick(g, fencing.OpOff, fencing.OpOff, fencing.OpOn, "cycle"), Deadline: g.dur()}
	case 1, 2, 3:
		out := pick(g, fencing.OutcomeOff, fencing.OutcomeFailed, fencing.OutcomeOn, fencing.OutcomeExpired, "x")
		r := fencing.Report{Op: fencing.OpOff, Outcome: out, Identity: fencing.IdentityMatched, OffReadings: pick(g, 2, 2, 1, -1), Sent: 1, GUID: pick(g, story.UUID("1"), story.UUID("2"), "zz"), Detail: pick(g, "", "ok", strings.Repeat("d", 400))}
		if out == fencing.OutcomeOn {
			r.Op = fencing.OpOn
		}
		return state.FenceEnd{Fence: f.ID, N: f.Begun - pick(g, 0, 0, 0, 1, -1), Report: r}
	}
	return state.FenceConfirm{Fence: f.ID, Evidence: pick(g, state.Evidence{Kind: state.PowerOff, Attempt: g.num()}, state.Evidence{Kind: state.Rebooted, NewBoot: g.boot()},
		state.Evidence{Kind: state.Human, Operator: g.text(), Why: g.text(), NewBoot: "smuggled"}, state.Evidence{Kind: "guess"})}
}

// TestApplyAnything walks at random and re-checks after every step: no panic, every invariant, no change
// of the state that was given, refusals that change nothing but the index, entries and states that
// survive their encoding, and the same state on a node that restored a snapshot.
func TestApplyAnything(t *testing.T) {
	applied := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		s := start(t)
		var old []state.Command
		for range rapid.IntRange(50, 90).Draw(t, "steps") {
			g := gen{t, s}
			cmd := g.command()
			if len(old) > 0 && g.odd(8) {
				cmd = pick(g, old...) // a replay
			}
			old = append(old, cmd)
			s = step(t, s, cmd, applied)
		}
	})
	// A property that never reaches the interesting commands proves nothing.
	for _, k := range []string{"Grant", "Released", "FenceIntent", "FenceBegin", "FenceEnd", "FenceConfirm", "NodeUp", "ConfigSet", "StopFailed", "NodeRemove"} {
		if applied["state."+k] == 0 && !testing.Short() {
			t.Errorf("no random %s was ever applied: %v", k, applied)
		}
	}
}

func step(t *rapid.T, s state.State, cmd state.Command, applied map[string]int) state.State {
	was := s.Digest()
	e := state.Entry{At: 3, Cmd: cmd}
	if cmd != nil {
		e = roundTrip(t, e)
	}
	next, r := state.Apply(s, s.Index+1, e)
	if s.Digest() != was {
		t.Fatalf("%#v changed the state it was given", cmd)
	}
	for _, v := range append(state.Check(next), state.CheckStep(s, next, e.Cmd)...) {
		t.Fatalf("after %#v: %s: %s\n%s", cmd, v.Rule, v.Text, story.Show(next))
	}
	if !r.OK() {
		same := next
		same.Index = s.Index
		if same.Digest() != was {
			t.Fatalf("%#v was refused (%s) and changed the state", cmd, r.Refused)
		}
		if reason.Explain(r.Refused.Code).Text == string(r.Refused.Code) {
			t.Fatalf("%#v was refused with %s, which the catalogue does not know", cmd, r.Refused.Code)
		}
	} else {
		applied[strings.TrimPrefix(typeName(cmd), "*")]++
	}
	if size := len(encodeState(t, next)); size > 1<<20 {
		t.Fatalf("the state has grown to %d bytes", size)
	}
	restored, err := state.DecodeState(encodeState(t, next))
	if err != nil {
		t.Fatal(err)
	}
	if restored.Digest() != next.Digest() {
		t.Fatalf("a snapshot changes the digest after %#v", cmd)
	}
	if rapid.IntRange(0, 3).Draw(t, "restore") == 0 {
		return restored
	}
	return next
}

func encodeState(t *rapid.T, s state.State) []byte {
	b, err := state.EncodeState(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func roundTrip(t *rapid.T, e state.Entry) state.Entry {
	b, err := state.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	d, err := state.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	b2, err := state.Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	d2, err := state.Decode(b2)
	if err != nil || !bytes.Equal(mustEncode(t, d2), b2) {
		t.Fatalf("%#v does not survive its encoding: %v", e.Cmd, err)
	}
	if diff := cmp.Diff(d, d2, cmp.Comparer(equalPrefix)); diff != "" {
		t.Fatal(diff)
	}
	return d
}

func mustEncode(t *rapid.T, e state.Entry) []byte {
	b, err := state.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
