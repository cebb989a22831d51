package state_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/internal/story"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

var update = flag.Bool("update", false, "rewrite the golden bytes: only for a new format version")

func typeName(v any) string { return fmt.Sprintf("%T", v) }

func equalPrefix(a, b netip.Prefix) bool { return a == b }

// every is one full command of every kind. A field that is added must be set here, too.
func every(t testing.TB) []state.Command {
	c, err := story.Config("node n1 ipmi-1@2 trusted\nnode n2\ngroup web n1,n2 ip1,disk1 failback\nsingle\n")
	if err != nil {
		t.Fatal(err)
	}
	c.Source = "cluster: prod\n"
	inc := ids.Incarnation{Node: "n1", Boot: "5c0a7e32-7d9c-4b0c-9df4-6d7b2b6d4a11", Gen: 7}
	why := reason.New(reason.LostSilent, "node", "n1", "age", "1s")
	report := fencing.Report{Op: fencing.OpOff, Outcome: fencing.OutcomeOff, Detail: "off", GUID: story.UUID("1"), Identity: fencing.IdentityMatched,
		OffReadings: 2, AlreadyOff: true, Sent: 1, Took: 3 * time.Second, Login: time.Second, Power: 2 * time.Second}
	return []state.Command{
		state.NodeAdmit{Name: "n1", Role: state.Member, Links: []state.LinkAddr{{Interface: "eth0", Addr: "10.0.0.1"}}, TokenHash: story.Hash("a")},
		state.NodeRemove{Name: "n1", Operator: "ann"},
		state.NodeUp{Node: "n1", Boot: inc.Boot, Session: 1<<64 - 1, UUID: story.UUID("1"), Version: "0.1", Start: 12},
		state.NodeLeave{Inc: inc, Done: true},
		state.ConfigSet{Base: 3, Config: c, Operator: "ann"},
		state.LeaseTick{Ticks: []state.Tick{{Inc: inc, K: 9}}},
		state.FenceIntent{Target: inc, Reason: why, Operator: "ann"},
		state.FenceBegin{Fence: 8, N: 1, Executor: "n2", Device: "ipmi-1", Op: fencing.OpOff, Deadline: 15 * time.Second},
		state.FenceEnd{Fence: 8, N: 1, Report: report},
		state.FenceConfirm{Fence: 8, Evidence: state.Evidence{Kind: state.PowerOff, Attempt: 1, NewBoot: "b", Operator: "ann", Why: "cord pulled"}},
		state.Grant{Group: "web", To: inc, Revision: 3, Why: why},
		state.Started{Group: "web", Inc: inc, Epoch: 9},
		state.Revoke{Group: "web", Epoch: 9, Why: why, For: time.Second},
		state.Released{Group: "web", Inc: inc, Epoch: 9, Why: why},
		state.StartFailed{Group: "web", Inc: inc, Epoch: 9, Why: "port taken"},
		state.StopFailed{Group: "web", Inc: inc, Epoch: 9, Why: "busy"},
		state.MonitorFailed{Group: "web", Inc: inc, Epoch: 9, Resource: "ip:10.9.0.1", Why: "gone"},
		state.NodeMode{Node: "n1", Standby: true, Operator: "ann"},
		state.GroupMode{Group: "web", Stopped: true, Operator: "ann"},
		state.Move{Group: "web", To: "n2", Operator: "ann"},
		state.Cleanup{Group: "web", Operator: "ann"},
		state.TokenMint{Hash: story.Hash("a"), Expires: 1700000000000, By: "ann"},
		state.NoteCmd{Operator: "ann", Text: "hello"},
	}
}

// full is a state in which every kind of thing occurs.
func full(t testing.TB) state.State {
	var s state.State
	lines := "admit n1 member eth0=10.0.0.1 eth1=10.1.0.1|mint a ttl=1800000000000|admit n2 member eth0=10.0.0.2 tok=a|up n1 boot=a uuid=1|up n2 boot=b uuid=2|CONFIG|" +
		"grant web n1 why=PREFERRED_NODE|started web|tick n1 k=4|revoke web why=NODE_STANDBY|standby n1|released web|grant web n2|monitor web ip1 cause=gone|move db n2|grant db n2|startfailed db cause=no_disk|" +
		"want db stopped|intent n2 why=LOST_SILENT|begin n2 exec=n1 dev=ipmi-1|end n2 1 off guid=2|confirm n2 off=1|standby n1 off|grant web n1|up n1 boot=a2 uuid=1|leave n1|note hello"
	for _, line := range strings.Split(lines, "|") {
		var cmd state.Command
		if line == "CONFIG" {
			c, err := story.Config("node n1 ipmi-1\nnode n2 ipmi-1\ngroup db n1,n2 disk1\ngroup web n1,n2 ip1\n")
			if err != nil {
				t.Fatal(err)
			}
			cmd = state.ConfigSet{Config: c}
		} else {
			var err error
			if cmd, err = story.Command(s, line); err != nil {
				t.Fatal(err)
			}
		}
		var r state.Result
		if s, r = state.Apply(s, s.Index+1, state.Entry{At: 1700000000000, Cmd: cmd}); !r.OK() {
			t.Fatalf("%s: %s", line, r.Refused)
		}
	}
	return s
}

// golden compares bytes with a file of their hex and text form: three bytes of head, then JSON.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	file := filepath.Join("testdata", "codec", name+".golden")
	text := hex.EncodeToString(b[:3]) + " " + string(b[3:]) + "\n"
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s: the format has changed: entries that are on disks would mean something else\n%s", name, diff)
	}
}

// TestGoldenBytes holds the bytes of every kind of entry and of a snapshot.
func TestGoldenBytes(t *testing.T) {
	kinds := map[byte]bool{}
	for _, cmd := range every(t) {
		e := state.Entry{At: 1700000000123, Cmd: cmd}
		b, err := state.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		kinds[b[2]] = true
		golden(t, fmt.Sprintf("%02d_%s", b[2], strings.TrimPrefix(typeName(cmd), "state.")), b)
		got, err := state.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, got, cmp.Comparer(equalPrefix)); diff != "" {
			t.Errorf("%T: %s", cmd, diff)
		}
	}
	if len(kinds) != int(state.KindNote) {
		t.Errorf("%d kinds are tested, there are %d", len(kinds), state.KindNote)
	}
	b, err := state.EncodeState(full(t))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "state", b)
}

// TestDecodeRefuses: a committed entry is taken as it was meant, or not at all.
func TestDecodeRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":             "",
		"two bytes":           "P\x01",
		"another magic":       "Q\x01\x11{\"at\":1,\"cmd\":{}}",
		"a newer format":      "P\x02\x15{\"at\":1,\"cmd\":{\"group\":\"web\",\"operator\":\"\"}}",
		"kind zero":           "P\x01\x00{\"at\":1,\"cmd\":{}}",
		"an unknown kind":     "P\x01\xee{\"at\":1,\"cmd\":{}}",
		"no body":             "P\x01\x15",
		"a null body":         "P\x01\x15null",
		"no command":          "P\x01\x15{\"at\":1}",
		"a null command":      "P\x01\x15{\"at\":1,\"cmd\":null}",
		"a text as a command": "P\x01\x15{\"at\":1,\"cmd\":\"x\"}",
		"an unknown field":    "P\x01\x15{\"at\":1,\"cmd\":{\"group\":\"web\",\"force\":true}}",
		"an unknown wrapping": "P\x01\x15{\"at\":1,\"cmd\":{\"group\":\"web\"},\"by\":1}",
		"trailing bytes":      "P\x01\x15{\"at\":1,\"cmd\":{\"group\":\"web\"}}x",
		"two entries":         "P\x01\x15{\"at\":1,\"cmd\":{\"group\":\"web\"}}{}",
		"half an entry":       "P\x01\x15{\"at\":1,\"cmd\":{\"group\":",
		"a negative index":    "P\x01\x0b{\"at\":1,\"cmd\":{\"group\":\"web\",\"revision\":-1}}",
		"too much":            "P\x01\x15" + strings.Repeat(" ", state.MaxEntry),
	} {
		if e, err := state.Decode([]byte(in)); err == nil {
			t.Errorf("%s: decoded as %#v", name, e)
		}
	}
	if _, err := state.Encode(state.Entry{}); err == nil {
		t.Error("an entry without a command was encoded")
	}
	if _, err := state.Encode(state.Entry{Cmd: state.NoteCmd{Text: strings.Repeat("x", state.MaxEntry)}}); err == nil {
		t.Error("an entry that is too large was encoded")
	}
	for name, in := range map[string]string{
		"nothing": "", "an entry": "P\x01\x15{}", "a newer format": "P\x02\x00{}", "null": "P\x01\x00null",
		"an unknown field": "P\x01\x00{\"leader\":1}", "trailing bytes": "P\x01\x00{} x",
	} {
		if s, err := state.DecodeState([]byte(in)); err == nil {
			t.Errorf("%s: decoded as state %#v", name, s)
		}
	}
}

// TestDigest: equal states have equal digests, and any difference shows.
func TestDigest(t *testing.T) {
	a, b := full(t), full(t)
	if a.Digest() != b.Digest() || len(a.Digest()) != 64 {
		t.Errorf("equal states, digests %s and %s", a.Digest(), b.Digest())
	}
	b, _ = state.Apply(b, b.Index+1, state.Entry{Cmd: state.NoteCmd{}})
	if a.Digest() == b.Digest() {
		t.Error("different states, equal digests")
	}
	c, err := story.Config("node n1\n")
	if err != nil {
		t.Fatal(err)
	}
	x, _ := state.Apply(state.State{}, 1, state.Entry{Cmd: state.ConfigSet{Config: c}})
	if x.Digest() == (state.State{}).Digest() {
		t.Error("a configuration is not in the digest")
	}
}

// TestBatchOrder: the order of the renewals in a batch does not matter.
func TestBatchOrder(t *testing.T) {
	s := full(t)
	s, _ = state.Apply(s, s.Index+1, state.Entry{Cmd: state.NodeUp{Node: "n2", Boot: "b9", Session: 4}})
	a, b := state.Tick{Inc: s.Node("n1").Up, K: 5}, state.Tick{Inc: s.Node("n2").Up, K: 6}
	x, rx := state.Apply(s, s.Index+1, state.Entry{Cmd: state.LeaseTick{Ticks: []state.Tick{a, b}}})
	y, ry := state.Apply(s, s.Index+1, state.Entry{Cmd: state.LeaseTick{Ticks: []state.Tick{b, a}}})
	if x.Digest() != y.Digest() || len(rx.Accepted) != 2 || len(ry.Accepted) != 2 {
		t.Errorf("accepted %v and %v", rx.Accepted, ry.Accepted)
	}
}

func FuzzDecode(f *testing.F) {
	for _, cmd := range every(f) {
		b, err := state.Encode(state.Entry{At: 1, Cmd: cmd})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := full(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := state.Decode(b)
		if err != nil {
			return
		}
		once, err := state.Encode(e)
		if err != nil {
			return // it grew by escapes beyond the limit
		}
		again, err := state.Decode(once)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := state.Encode(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("not stable: %q and %q (%v)", once, twice, err)
		}
		next, _ := state.Apply(s, s.Index+1, e)
		for _, v := range append(state.Check(next), state.CheckStep(s, next, e.Cmd)...) {
			t.Fatalf("%s: %s", v.Rule, v.Text)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	b, err := state.EncodeState(full(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("P\x01\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := state.DecodeState(b)
		if err != nil {
			return
		}
		_ = state.Check(s) // whatever it is, nothing panics
		once, err := state.EncodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := state.DecodeState(once)
		if err != nil {
			t.Fatal(err)
		}
		if again.Digest() != s.Digest() {
			t.Fatal("a snapshot changes the digest")
		}
	})
}
