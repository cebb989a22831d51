package app

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// kept is what no restart may lose or change.
func kept(s *state.State) map[string]any {
	out := map[string]any{"config": s.Config.Source, "revision": s.Revision, "tokens": s.Tokens, "fences": s.Fences}
	for _, n := range s.Nodes {
		out["node "+string(n.Name)] = []any{n.Role, n.Links, n.Admitted, n.Standby}
	}
	for _, g := range s.Groups {
		out["group "+string(g.Name)] = []any{g.Owner.Node, g.Owner.Boot, g.Epoch, g.Phase, g.Stopped}
	}
	return out
}

// TestRestart restarts one daemon, all daemons at once, and machines.
func TestRestart(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.timing = "cautious"
	y.formed("prod")
	y.apply(y.file("prod", "web", "db"))
	y.runs("web")
	y.runs("db")
	a := y.boxes[0].must(control.Operation{Kind: control.OpTokenCreate})
	before := y.agree()

	// What serves must go on serving: the daemon's end and start leave it alone.
	serving := func() {
		t.Helper()
		for i := range 2 {
			if !slices.Contains(addresses(t), y.address(i).String()) {
				t.Fatalf("%s is gone: %v", y.address(i), addresses(t))
			}
		}
	}
	up := func(b *box, gen uint64) {
		t.Helper()
		eventually(t, patience, b.name+" has announced itself again", func() bool {
			serving()
			s := b.running().fsm.State()
			x := s.Node(ids.Node(b.name))
			return x != nil && x.Up.Gen > gen && x.Up.Boot == b.boot
		})
	}
	check := func(what string) {
		t.Helper()
		y.runs("web")
		y.runs("db")
		if d := cmp.Diff(kept(before), kept(y.agree()), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("%s changed something: %s", what, d)
		}
		y.nobodyFenced()
	}
	gen := func(b *box) uint64 { return y.agree().Node(ids.Node(b.name)).Up.Gen }

	for _, b := range []*box{y.runs("web"), y.follower(), y.leading()} {
		g := gen(b)
		b.crash()
		serving()
		b.start()
		up(b, g)
		y.settled(3)
		check("the restart of " + b.name)
	}
	var gens []uint64
	for _, b := range y.boxes {
		gens = append(gens, gen(b))
	}
	for _, b := range y.boxes {
		b.crash()
	}
	for _, b := range y.boxes {
		b.start()
	}
	for i, b := range y.boxes {
		up(b, gens[i])
	}
	y.settled(3)
	check("the restart of all")

	spare := y.add("node4")
	if _, err := Join(t.Context(), spare.joinOptions(y.boxes[0], a.Token)); err != nil {
		t.Fatalf("a token that was made before the restarts: %v", err)
	}
	if err := os.RemoveAll(spare.paths.ConfigPath); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(spare.paths.StateDir); err != nil {
		t.Fatal(err)
	}
	all := y.boxes
	y.boxes = y.boxes[:3]
	for _, b := range y.boxes {
		b.crash()
	}
	for _, b := range y.boxes {
		b.start()
	}
	y.settled(3)
	_, err := Join(t.Context(), spare.joinOptions(y.boxes[0], a.Token))
	refused(t, err, "it was used already by node4")
	y.boxes = all
}

// TestReboot: an owner that reboots before anybody acts comes back as a new incarnation, and its old
// boot is proven dead by the new one, without a power command.
func TestReboot(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.formed("prod")
	y.apply(y.file("prod", "web"))
	owner := y.runs("web")
	var idle *box
	for _, b := range y.boxes {
		if b != owner && b != y.leading() {
			idle = b
		}
	}
	old := *y.agree()
	idle.reboot()
	eventually(t, patience, "the idle node is back", func() bool {
		s := idle.running().fsm.State()
		x := s.Node(ids.Node(idle.name))
		return x != nil && x.Up.Boot == idle.boot
	})
	y.settled(3)
	s := y.agree()
	if a, b := old.Node(ids.Node(idle.name)).Up, s.Node(ids.Node(idle.name)).Up; a.Boot == b.Boot || a.Gen >= b.Gen {
		t.Errorf("after the reboot %v is %v", a, b)
	}
	if g, was := s.Group("web"), old.Group("web"); g.Owner != was.Owner || g.Epoch != was.Epoch {
		t.Errorf("the reboot of a node that owned nothing moved the group: %+v", g)
	}
	y.nobodyFenced()

	boot := owner.boot
	owner.reboot()
	eventually(t, patience, "the group runs under a new epoch", func() bool {
		l := y.leader()
		if l == nil || l.running() == nil {
			return false
		}
		s := l.running().fsm.State()
		g := s.Group("web")
		return g != nil && g.Phase == state.PhaseStarted && g.Epoch > old.Group("web").Epoch
	})
	y.settled(3)
	if !slices.Contains(addresses(t), y.address(0).String()) {
		t.Errorf("addresses %v", addresses(t))
	}
	for _, b := range y.boxes {
		h, err := b.cli.FenceHistory(t.Context())
		if err != nil || len(h) != 1 || h[0].BootID != string(boot) || h[0].State != "confirmed" || h[0].Evidence != "rebooted" || len(h[0].Attempts) != 0 {
			t.Errorf("fence history on %s: %+v, %v", b.name, h, err)
		}
		if p := b.bmc.PowerCommands(); len(p) > 0 {
			t.Errorf("the BMC of %s was told %+v", b.name, p)
		}
		if len(b.resets) > 0 {
			t.Errorf("%s was to be reset: %v", b.name, b.resets)
		}
	}
}

// TestBlackout: all machines lose their power at once, and come back.
func TestBlackout(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.formed("prod")
	y.apply(y.file("prod", "web", "db"))
	y.runs("web")
	y.runs("db")
	before := y.agree()
	for _, b := range y.boxes {
		b.crash()
	}
	for _, b := range y.boxes {
		b.wipe()
		b.newBoot()
		b.start()
	}
	y.settled(3)
	eventually(t, patience, "everything runs under a new epoch, on a boot that lives", func() bool {
		l := y.leader()
		if l == nil {
			return false
		}
		s := l.running().fsm.State()
		for _, g := range s.Groups {
			if g.Phase != state.PhaseStarted || g.Epoch <= before.Group(g.Name).Epoch || g.Owner.Boot != y.box(g.Owner.Node).boot {
				return false
			}
		}
		return len(s.Groups) == 2
	})
	for _, f := range y.agree().Fences {
		if f.Open() || f.Evidence.Kind != state.Rebooted || len(f.Attempts) > 0 {
			t.Errorf("fence %+v", f)
		}
	}
	for _, b := range y.boxes {
		if p := b.bmc.PowerCommands(); len(p) > 0 || len(b.resets) > 0 {
			t.Errorf("%s: the BMC was told %+v, resets %v", b.name, p, b.resets)
		}
	}
}

// TestCleanStop: a node that is stopped hands over what it owns and the leadership, and nobody fences it.
func TestCleanStop(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.timing = "default"
	y.formed("prod")
	y.apply(y.file("prod", "web"))
	owner := y.runs("web")
	// The leader is to own the group, so that both have to be handed over.
	if l := y.leading(); l != owner {
		l.must(control.Operation{Kind: control.OpGroupMove, Group: "web", To: l.name})
		owner = y.runs("web", l)
	}
	before := y.agree()
	led := time.Now()
	if !owner.leave() {
		t.Fatal("it did not leave cleanly")
	}
	next := y.runs("web")
	t.Logf("the group ran again %v after the stop was asked for", time.Since(led).Round(time.Millisecond))
	if next == owner || y.leading() == owner {
		t.Error("it still owns or leads")
	}
	s := y.agree()
	x := s.Node(ids.Node(owner.name))
	if !x.Left || s.Group("web").Epoch <= before.Group("web").Epoch {
		t.Errorf("node %+v, group %+v", x, s.Group("web"))
	}
	y.nobodyFenced()
	var st control.Status
	eventually(t, patience, "status says that it left", func() bool {
		var err error
		st, err = next.cli.Status(t.Context())
		return err == nil && slices.ContainsFunc(st.Nodes, func(n control.NodeStatus) bool { return n.Name == owner.name && n.State == "left" })
	})
	if e, err := next.cli.Why(t.Context(), owner.name); err != nil || e.Code != "NODE_LEFT" {
		t.Errorf("why %s: %+v, %v", owner.name, e, err)
	}
	// A silence of a node that left is no reason for anything, however long: look a while.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_ = next.running().Events(ctx, 0, true, func(e control.Event) error {
		if e.Kind == "fence" {
			t.Errorf("event %+v", e)
		}
		return nil
	})
	y.nobodyFenced()

	owner.start()
	y.settled(3)
	if s := y.agree(); s.Group("web").Owner.Node != ids.Node(next.name) || s.Node(ids.Node(owner.name)).Left {
		t.Error("the return of the node moved the group, or it is left still")
	}

	// All stop at once. The last ones have no quorum to tell: they stop what runs all the same.
	var wg sync.WaitGroup
	for _, b := range y.boxes {
		wg.Go(func() { b.leave() })
	}
	wg.Wait()
	if a := addresses(t); len(a) > 0 {
		t.Errorf("after all nodes stopped there is still %v", a)
	}
	for _, b := range y.boxes {
		b.start()
	}
	y.settled(3)
	y.runs("web")
	y.nobodyFenced()
}

// TestFence: an owner that falls silent is powered off, and what it owned starts elsewhere only then.
func TestFence(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.formed("prod")
	y.apply(y.file("prod", "web"))
	owner := y.runs("web")
	eventually(t, patience, "its fence device is proven", func() bool {
		st, err := y.leading().cli.Status(t.Context())
		i := slices.IndexFunc(st.Nodes, func(n control.NodeStatus) bool { return n.Name == owner.name })
		return err == nil && st.Nodes[i].Fence[0].State == "ok"
	})
	boot, epoch := owner.boot, y.agree().Group("web").Epoch
	owner.crash() // kill -9 of the daemon, and nobody restarts it
	eventually(t, patience, "the group is taken over", func() bool {
		l := y.leader()
		if l == nil {
			return false
		}
		s := l.running().fsm.State()
		g := s.Group("web")
		return g != nil && g.Phase == state.PhaseStarted && g.Owner.Node != ids.Node(owner.name) && g.Epoch > epoch
	})
	cmds := owner.bmc.PowerCommands()
	if len(cmds) == 0 || cmds[0].Op != "down" {
		t.Errorf("the BMC was told %+v", cmds)
	}
	for _, b := range y.boxes {
		if b == owner {
			continue
		}
		if p := b.bmc.PowerCommands(); len(p) > 0 {
			t.Errorf("the BMC of %s was told %+v", b.name, p)
		}
		eventually(t, patience, "its history tells of the fence", func() bool {
			h, err := b.cli.FenceHistory(t.Context())
			return err == nil && len(h) == 1 && h[0].State == "confirmed"
		})
		h, _ := b.cli.FenceHistory(t.Context())
		r := h[0]
		if r.Node != owner.name || r.BootID != string(boot) || r.Evidence != "power-off" || r.Text == "" || r.Opened.IsZero() || r.Closed.IsZero() ||
			!slices.ContainsFunc(r.Attempts, func(a control.FenceAttempt) bool {
				return a.Outcome == "off" && a.Executor != owner.name && a.Device == "ipmi-1" && a.TookMS > 0
			}) {
			t.Errorf("fence history on %s: %+v", b.name, r)
		}
	}
	eventually(t, patience, "it is powered on again", owner.bmcOn)
	owner.start()
	y.settled(3)
	if s := y.agree(); s.Group("web").Owner.Node == ids.Node(owner.name) {
		t.Error("the group went back although failback is off")
	}
	y.noSecrets()
}

func (b *box) bmcOn() bool { return (*chassis)(b).On() }

// TestHeld: the machine and its BMC are dead at once. The group is held, and says how to free it; a
// human's word does.
func TestHeld(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.formed("prod")
	y.apply(y.file("prod", "web"))
	owner := y.runs("web")
	f := owner.bmc.Faults()
	f.Dead = true
	owner.bmc.SetFaults(f)
	if err := (*chassis)(owner).PowerOff(); err != nil {
		t.Fatal(err)
	}
	var e control.Explanation
	eventually(t, patience, "the group is held and says so", func() bool {
		l := y.leader()
		if l == nil {
			return false
		}
		var err error
		e, err = l.cli.Why(t.Context(), "web")
		return err == nil && strings.Contains(e.Verdict, "is held") && strings.Contains(e.Action, "picket fence confirm "+owner.name)
	})
	b := y.follower()
	var a control.Answer
	eventually(t, patience, "the word is taken once it has been silent long enough", func() bool {
		var err error
		a, err = b.cli.Operate(t.Context(), control.Operation{Kind: control.OpFenceConfirm, Node: owner.name, Confirm: owner.name, Reason: "the cord is in my hand"})
		return err == nil
	})
	if a.Index == 0 || !strings.Contains(a.Text, "by your word") {
		t.Errorf("answer %+v", a)
	}
	if got := y.runs("web"); got == owner {
		t.Error("it runs on the dead machine")
	}
	h, err := b.cli.FenceHistory(t.Context())
	if err != nil || len(h) != 1 || h[0].Evidence != "human" || h[0].Reason != "the cord is in my hand" || !strings.HasPrefix(h[0].Operator, "root(uid 0)") {
		t.Errorf("fence history %+v, %v", h, err)
	}
	if p := owner.bmc.PowerCommands(); len(p) > 0 {
		t.Errorf("the dead BMC was told %+v", p)
	}
}
