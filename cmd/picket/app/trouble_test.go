package app

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// TestJoinThroughFollower: any node takes a join in; one token admits one node, whatever the hurry.
func TestJoinThroughFollower(t *testing.T) {
	y := newYard(t, 5)
	all := y.boxes
	y.boxes = all[:3]
	y.formed("prod")
	f := y.follower()
	tok := f.must(control.Operation{Kind: control.OpTokenCreate}).Token
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, b := range all[3:] {
		wg.Go(func() { _, errs[i] = Join(t.Context(), b.joinOptions(f, tok)) })
	}
	wg.Wait()
	won, lost := all[3], all[4]
	if errs[0] != nil {
		won, lost, errs[1] = lost, won, errs[0]
	}
	refused(t, errs[1], "it was used already by "+won.name)
	if got := tree(t, lost.root()); len(got) != 2 { // the directory, and the password file of the BMC
		t.Errorf("a refused join left %v", got)
	}
	won.start()
	eventually(t, patience, "it is up", func() bool {
		s := won.running().fsm.State()
		return s.Node(ids.Node(won.name)) != nil && !s.Node(ids.Node(won.name)).Up.IsZero()
	})
	y.boxes = append(all[:3:3], won)
	y.agree()

	// Without a leader a join says so and changes nothing.
	for _, b := range y.boxes {
		if b != f {
			b.crash()
		}
	}
	eventually(t, patience, "nobody leads", func() bool { l, _ := f.running().raft.Leader(); return l == "" })
	before := tree(t, lost.root())
	_, err := Join(t.Context(), lost.joinOptions(f, tok))
	refused(t, err, "the cluster has no leader right now")
	if d := cmp.Diff(before, tree(t, lost.root())); d != "" {
		t.Error(d)
	}

	// A node that finds nobody to announce itself to ends as soon as it is asked to.
	won.start()
	began := time.Now()
	if won.leave() {
		t.Error("it says that it left cleanly, and nobody knows")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v to end", took)
	}
	y.boxes = all
}

// TestStartErrors: what is wrong is said in a sentence, and nothing is left running (goleak).
func TestStartErrors(t *testing.T) {
	y := newYard(t, 3)
	y.found("prod")
	b, stranger := y.boxes[0], y.boxes[1]
	err := stranger.tryStart()
	refused(t, err, "run picket init or picket join")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v is not os.ErrNotExist", err)
	}
	_, err = New(Options{Paths: b.paths, Logger: slog.New(slog.DiscardHandler), Reset: func(reason.Reason) {}})
	refused(t, err, "must be given")

	// A second daemon on the same state directory.
	n, err := New(Options{Paths: b.paths, Logger: slog.New(slog.DiscardHandler), Bits: 24, Host: &Host{Boot: b.boot}, Reset: func(reason.Reason) { t.Error("reset") }, Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err == nil {
		t.Error("two daemons run on one state directory")
		n.Close()
	} else {
		refused(t, err, "")
		t.Log(err)
	}
	if s := b.running().fsm.State(); s.Node("node1").Up.Boot != b.boot || !b.running().raft.IsLeader() {
		t.Error("the first daemon was disturbed")
	}
	b.crash()

	for _, c := range []struct {
		name, file, from, to, want string
	}{
		{"another node's file", b.paths.ConfigPath, `name: "node1"`, `name: "node9"`, "one of them is of another node"},
		{"another cluster's file", b.paths.ConfigPath, "cluster_id: \"", "cluster_id: \"00", "one of them is of another cluster"},
		{"no interface", b.paths.ConfigPath, "interface: \"lo\"", "interface: \"l o\"", "interface"},
		{"no key", filepath.Join(b.paths.StateDir, pkiDir, "node.key"), "BEGIN", "BEGAN", "the node key"},
		{"broken peers", filepath.Join(b.paths.StateDir, peersFile), "[", "{", "peers.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			was, err := os.ReadFile(c.file)
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Replace(string(was), c.from, c.to, 1); text == string(was) {
				// The list of peers may be null: any change will do.
				was = append([]byte(nil), was...)
				if err := os.WriteFile(c.file, []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(c.file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			err = b.tryStart()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, wanted one with %q", err, c.want)
			}
			if b.running() != nil {
				b.crash()
			}
			if err := os.WriteFile(c.file, was, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	if err := os.Chmod(b.paths.ConfigPath, 0o644); err != nil {
		t.Fatal(err)
	}
	b.start()
	eventually(t, patience, "it starts again", func() bool { return b.running().raft.IsLeader() })
}

// TestStrays: a daemon that finds no record of its boot does not know what runs. It stops everything
// configured before it announces itself, and what it owns starts again.
func TestStrays(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.timing = "cautious"
	y.formed("prod")
	y.apply(y.file("prod", "web", "db"))
	owner := y.runs("web")
	y.runs("db")
	gen := y.agree().Node(ids.Node(owner.name)).Up.Gen
	for name, spoil := range map[string]func(){
		"no record":       func() { os.Remove(recordPath(owner.paths)) },
		"a broken record": func() { _ = os.WriteFile(recordPath(owner.paths), []byte(`{"boot":`), 0o600) },
		"another boot's": func() {
			if err := writeRecord(recordPath(owner.paths), "99999999-9999-4999-8999-999999999999", nil); err != nil {
				t.Error(err)
			}
		},
	} {
		owner.crash()
		spoil()
		owner.start()
		eventually(t, patience, name+": it is up again", func() bool {
			s := owner.running().fsm.State()
			x := s.Node(ids.Node(owner.name))
			if x != nil && x.Up.Gen > gen {
				gen = x.Up.Gen
				return true
			}
			return false
		})
		for i, g := range []string{"web", "db"} {
			y.runs(g)
			eventually(t, patience, name+": "+g+" serves again", func() bool { return slices.Contains(addresses(t), y.address(i).String()) })
		}
	}
	y.agree()
	y.nobodyFenced()

	// An address that nobody owns, left behind on a machine that joins in: the group is stopped first.
	idle := y.boxes[0]
	for _, b := range y.boxes {
		if s := y.agree(); len(s.Owned(ids.Node(b.name), b.boot)) == 0 {
			idle = b
		}
	}
	idle.must(control.Operation{Kind: control.OpGroupStop, Group: "db"})
	eventually(t, patience, "db is stopped", func() bool { s := y.agree(); return s.Group("db").Epoch == 0 })
	l, err := netlink.LinkByName(serviceNIC)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(y.address(1).String())
	if err != nil {
		t.Fatal(err)
	}
	idle.crash()
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
	os.Remove(recordPath(idle.paths))
	idle.start()
	eventually(t, patience, "the stray is gone", func() bool { return !slices.Contains(addresses(t), y.address(1).String()) })
	y.settled(3)
	y.nobodyFenced()
}

// TestOperatorFence: an operator has the node that leads and owns fenced, although it is healthy.
func TestOperatorFence(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.formed("prod")
	y.apply(y.file("prod", "web"))
	target := y.runs("web")
	if l := y.leading(); l != target {
		l.must(control.Operation{Kind: control.OpGroupMove, Group: "web", To: l.name})
		target = y.runs("web", l)
	}
	boot := target.boot
	f := y.follower()
	op := control.Operation{Kind: control.OpFence, Node: target.name, Reason: "it smells"}
	a := f.must(op) // the leadership is handed over first, and the command repeated
	if !strings.Contains(a.Text, target.name+" is condemned") {
		t.Errorf("answer %+v", a)
	}
	eventually(t, patience, "the group runs elsewhere", func() bool {
		l := y.leader()
		if l == nil || l == target {
			return false
		}
		s := l.running().fsm.State()
		g := s.Group("web")
		return g != nil && g.Phase == state.PhaseStarted && g.Owner.Node != ids.Node(target.name)
	})
	h, err := f.cli.FenceHistory(t.Context())
	if err != nil || len(h) != 1 || h[0].Code != "OPERATOR_FENCE" || h[0].BootID != string(boot) || h[0].Evidence != "power-off" || !strings.Contains(h[0].Text, "it smells") ||
		!strings.HasPrefix(h[0].Operator, "root(uid 0)") {
		t.Errorf("fence history %+v, %v", h, err)
	}
	for _, b := range y.boxes {
		if p := b.bmc.PowerCommands(); (b == target) != (len(p) > 0 && p[0].Op == "down") {
			t.Errorf("the BMC of %s was told %+v", b.name, p)
		}
	}
	// A daemon that comes back on the condemned boot resets its machine and does nothing else.
	eventually(t, patience, "the machine is on again", target.bmcOn)
	next := target.boot
	target.mu.Lock()
	target.boot, target.resets = boot, nil
	target.mu.Unlock()
	target.start()
	eventually(t, patience, "the condemned boot resets itself", func() bool {
		target.mu.Lock()
		defer target.mu.Unlock()
		return len(target.resets) > 0
	})
	if s := f.running().fsm.State(); s.Node(ids.Node(target.name)).Up.Boot != boot {
		t.Errorf("it announced itself: %v", s.Node(ids.Node(target.name)).Up)
	}
	target.crash()
	target.mu.Lock()
	target.boot = next
	target.mu.Unlock()
	target.start()
	y.settled(3)
}
