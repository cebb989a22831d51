package core

import (
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/lease"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// TestCleanStart: one node, alone, cleans up, announces itself, grants, waits for the lease, starts.
func TestCleanStart(t *testing.T) {
	s := cluster(t, "remove n2", "remove n3")
	s.Config.SingleNode = true
	b := newBench(t, "n1", s, Options{})
	b.step(Tick{})
	if d := b.did(); strings.Contains(d, "propose") || strings.Contains(d, "stop") {
		t.Fatalf("before there is a leader:\n%s", d)
	}
	b.lead()
	b.wait(2 * secs)
	d := b.did()
	g := b.s.Group("web")
	if g.Owner.Node != "n1" || g.Phase != state.PhaseStarted {
		t.Fatalf("web is %q of %s\n%s", g.Phase, g.Owner, d)
	}
	// In this order: strays away, announced, owned, leased, written down, started.
	rest := d
	for _, w := range []string{"stop ip:10.9.0.1", "propose NodeUp", "propose Grant", "send n1 renew", "propose LeaseTick", "send n1 renewed", "record web@", "start ip:10.9.0.1", "propose Started"} {
		i := strings.Index(rest, w)
		if i < 0 {
			t.Fatalf("%q does not come where it should:\n%s", w, d)
		}
		rest = rest[i:]
	}
}

// TestNothingBeforeBarrier: a new leader decides nothing, and grants no tick, before its Barrier (rule 12).
func TestNothingBeforeBarrier(t *testing.T) {
	b := newBench(t, "n1", cluster(t), Options{HasRecord: true})
	b.step(Leadership{Leader: "n1", Term: 2})
	b.wait(secs, "n2", "n3")
	want(t, "proposals before the barrier", count(b.did(), "propose"), 0)
	b.step(BarrierDone{Term: 1, OK: true})
	b.step(Tick{})
	want(t, "proposals after another term's barrier", count(b.did(), "propose"), 0)
	b.step(BarrierDone{Term: 2})
	want(t, "proposals after a failed barrier", count(b.did(), "propose"), 0)
	b.step(BarrierDone{Term: 2, OK: true})
	b.wait(50*time.Millisecond, "n2", "n3")
	if d := b.did(); count(d, "propose NodeUp") != 1 {
		t.Errorf("after the barrier:\n%s", d)
	}
}

// TestStartNeedsLease: a grant alone starts nothing; nor does the answer to a renewal from before the grant,
// nor one to another incarnation.
func TestStartNeedsLease(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c"), Options{HasRecord: true})
	b.follow()
	b.commitReports()
	b.commit("grant web n1")
	b.wait(300*time.Millisecond, "n3")
	d := b.did()
	want(t, "starts without a lease", count(d, "start ip"), 0)
	if count(d, "renew") == 0 {
		t.Fatalf("no renewal was sent:\n%s", d)
	}
	other := b.c.inc
	other.Gen--
	b.step(Received{From: "n3", Msg: Message{Renewed: &Renewed{Inc: other, K: 1, Index: b.s.Index}}})
	b.step(Received{From: "n3", Msg: Message{Renewed: &Renewed{Inc: b.c.inc, K: 99, Index: b.s.Index}}})
	b.step(Received{From: "n3", Msg: Message{Renewed: &Renewed{Inc: b.c.inc, K: 1, Index: b.s.Index + 1}}})
	b.step(Tick{})
	want(t, "starts on a lease of another life, of nothing, or ahead of the local log", count(b.did(), "start ip"), 0)
	b.commit("tick n1 k=1")
	b.step(Tick{})
	d = b.did()
	if i := strings.Index(d, "record web"); i < 0 || i > strings.Index(d, "start ip") {
		t.Errorf("it must be written down, then started:\n%s", d)
	}
}

// TestSelfStop: without grants the stop begins at L-S after the last granted renewal was sent, and Released is
// repeated until it is applied; the epoch is never run again (I5, rules 4 and 14).
func TestSelfStop(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c"), Options{HasRecord: true})
	b.own()
	tm := b.c.timing
	granted := b.now
	for b.now < granted+2*tm.Lease && count(b.did(), "stop ip") == 0 {
		b.wait(50*time.Millisecond, "n3")
	}
	if after := b.now - granted; after < tm.Lease-tm.StopBudget-300*time.Millisecond || after > tm.Lease-tm.StopBudget {
		t.Errorf("the stop began %v after the last grant, want about %v", after, tm.Lease-tm.StopBudget)
	}
	b.take()
	b.wait(2*secs, "n3")
	n := count(b.did(), "report Released")
	if n < 3 {
		t.Errorf("Released was sent %d times in 2s without an answer", n)
	}
	// A late grant of a renewal does not bring it back.
	b.step(Received{From: "n3", Msg: Message{Renewed: &Renewed{Inc: b.c.inc, K: 1, Index: 1}}})
	b.wait(secs, "n3")
	d := b.did()
	want(t, "starts after Released", count(d, "start ip"), 0)
	b.wait(400*time.Millisecond, "n3")
	b.commitReports()
	b.wait(2*secs, "n3")
	d = b.did()
	want(t, "Released after it was applied", count(d, "report Released"), 0)
	want(t, "renewals of a node that owns nothing", count(d, "renew"), 0)
	if b.s.Group("web").Epoch != 0 {
		t.Error("web was not released")
	}
}

// TestReleasedIsFinal: after Released was proposed nothing runs under its epoch, even where the log still
// names the node as the owner, and even with a fresh lease (rule 4).
func TestReleasedIsFinal(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c"), Options{HasRecord: true})
	b.own()
	b.commit("revoke web why=NODE_STANDBY")
	b.wait(3*secs, "n3")
	d := b.did()
	if count(d, "stop ip") != 1 || count(d, "report Released") < 2 || count(d, "start ip") != 0 {
		t.Errorf("after a revoke:\n%s", d)
	}
	if e := b.s.Group("web").Epoch; e == 0 {
		t.Fatal("the story is wrong: it was released already")
	}
}

// TestAdoption: a restarted daemon takes over what its record names, after its own NodeUp and lease, and
// without a stop in between. Without a lease in time it stops it.
func TestAdoption(t *testing.T) {
	s := cluster(t, "up n1 boot=a uuid=1", "up n3 boot=c", "grant web n1", "started web")
	g := s.Group("web")
	o := Options{HasRecord: true, Record: []RunEntry{{Group: "web", Epoch: g.Epoch, Held: g.Held, Start: 20 * secs, Stop: 10 * secs}}}
	b := newBench(t, "n1", s, o)
	b.follow()
	d := b.did()
	if count(d, "report NodeUp") == 0 || count(d, "start ip") != 0 || count(d, "stop ip") != 0 {
		t.Fatalf("before its NodeUp:\n%s", d)
	}
	b.wait(300*time.Millisecond, "n3")
	b.commitReports()
	b.wait(50*time.Millisecond, "n3")
	b.grantAll()
	b.wait(100*time.Millisecond, "n3")
	d = b.did()
	if count(d, "start ip:10.9.0.1 epoch") != 1 || count(d, "adopt") != 1 || count(d, "stop ip") != 0 {
		t.Errorf("after the grant:\n%s", d)
	}
	if g := b.s.Group("web"); g.Owner != b.c.inc || g.Epoch == 0 {
		t.Errorf("web is owned by %s, I am %s", g.Owner, b.c.inc)
	}

	b = newBench(t, "n1", s, o) // nobody answers this one
	b.wait(b.c.timing.Lease)
	if d = b.did(); count(d, "stop ip") != 1 {
		t.Errorf("what was adopted must be stopped when no lease comes:\n%s", d)
	}
}

// TestRecordOfAnotherEpoch: what the record names and the log does not is stopped, once announced, and is
// not restarted under an ownership that came since.
func TestRecordOfAnotherEpoch(t *testing.T) {
	s := cluster(t, "up n1 boot=a uuid=1", "up n3 boot=c", "up n2 boot=b", "grant web n1", "released web", "grant web n2")
	o := Options{HasRecord: true, Record: []RunEntry{{Group: "web", Epoch: 10, Held: s.Group("web").Held, Start: secs, Stop: secs}}}
	b := newBench(t, "n1", s, o)
	b.follow()
	b.commitReports()
	b.wait(200*time.Millisecond, "n3")
	d := b.did()
	if count(d, "stop ip") != 1 || count(d, "start ip") != 0 {
		t.Errorf("what is not owned:\n%s", d)
	}
}

// TestStrays: without a record everything that is configured is stopped, verified, before the announcement; a
// stray that cannot be stopped is tried again and nothing is announced (rule 13).
func TestStrays(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c"), Options{})
	b.holdRuns = true
	b.follow()
	d := b.did()
	if count(d, "stop ip") != 1 || count(d, "NodeUp") != 0 {
		t.Fatalf("with a stray:\n%s", d)
	}
	run := b.runs[0]
	b.runs = nil
	b.done(run, "busy")
	b.wait(3*secs, "n3")
	d = b.did()
	if count(d, "stop ip") < 1 || count(d, "NodeUp") != 0 {
		t.Fatalf("after a failed stop:\n%s", d)
	}
	b.done(b.runs[len(b.runs)-1], "")
	b.wait(100*time.Millisecond, "n3")
	if d = b.did(); count(d, "NodeUp") == 0 {
		t.Errorf("after the stop:\n%s", d)
	}
}

// TestCondemned: a node that hears that its boot is condemned resets itself, and does nothing after; the
// intent of another boot, or of another node, is nothing to it (I4).
func TestCondemned(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c", "up n1 boot=old uuid=1", "grant web n1", "intent n1 why=LOST_SILENT", "up n2 boot=b"), Options{HasRecord: true})
	b.follow()
	b.commitReports()
	d := b.did()
	want(t, "resets for another boot's intent", count(d, "SelfReset"), 0)
	if b.c.inc.Gen == 0 {
		t.Fatalf("not announced:\n%s", d)
	}
	b.commit("intent n1 why=OPERATOR_FENCE op=ann")
	want(t, "resets", count(b.did(), "SelfReset"), 1)
	b.commit("note later")
	b.lead()
	b.step(Received{From: "n2", Msg: Message{Renew: &Renew{Inc: b.s.Node("n2").Up, Renewal: lease.Renewal{K: 1, First: 1}}}})
	b.wait(2*secs, "n2", "n3")
	b.step(GateAsked{Token: 9})
	if d := b.did(); d != "gate 9 false" {
		t.Errorf("after its reset:\n%s", d)
	}
}

// TestStopFailedResets: what runs without a lease and cannot be stopped takes the machine with it.
func TestStopFailedResets(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c"), Options{HasRecord: true})
	b.own()
	b.fail = "busy"
	b.commit("revoke web why=NODE_STANDBY")
	b.wait(300*time.Millisecond, "n3")
	d := b.did()
	if count(d, "report StopFailed") == 0 || count(d, "SelfReset") != 0 {
		t.Errorf("with a lease:\n%s", d)
	}
	b.wait(b.c.timing.Lease, "n3")
	d = b.did()
	want(t, "resets", count(d, "SelfReset"), 1)
	if !strings.Contains(d, "SelfReset") {
		t.Fatal(d)
	}
	if i := strings.Index(d, "SelfReset"); strings.TrimSpace(d[i+len("SelfReset"):]) != "" {
		t.Errorf("after the reset:\n%s", d[i:])
	}
}

// TestLeave: told, stopped, released, told again, gone; and a stop that takes longer than a lease is still
// handed over, so that nobody is fenced for it.
func TestLeave(t *testing.T) {
	for name, slow := range map[string]time.Duration{"at once": 0, "slowly": 8 * secs} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, "n1", cluster(t, "up n3 boot=c"), Options{HasRecord: true})
			b.own()
			b.holdRuns = slow > 0
			b.step(Shutdown{})
			var did string
			for end := b.now + 20*secs; b.now < end && !strings.Contains(did, "Exit"); {
				b.now += 50 * time.Millisecond
				b.beat("n3", "c")
				b.step(Tick{})
				log := b.take()
				b.log = log
				b.grantAll()
				b.log = append(b.log, log...)
				did += b.did() + "\n"
				for _, a := range log {
					if s, ok := a.(Send); ok && s.Msg.Report != nil {
						e, err := state.Decode(s.Msg.Report.Entry)
						if err != nil {
							t.Fatal(err)
						}
						b.commitCmd(e.Cmd)
					}
				}
				if slow -= 50 * time.Millisecond; slow <= 0 && len(b.runs) > 0 {
					b.holdRuns = false
					b.done(b.runs[0], "")
					b.runs = nil
				}
			}
			n := b.s.Node("n1")
			if !n.Left || b.s.Group("web").Epoch != 0 || !strings.Contains(did, "Exit") {
				t.Errorf("left %t, web %+v\n%s", n.Left, b.s.Group("web").Owner, did)
			}
		})
	}
}

// TestLeaveAlone: without a leader everything is stopped all the same, and the exit is called unclean.
func TestLeaveAlone(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c"), Options{HasRecord: true})
	b.own()
	b.step(Leadership{Term: 3})
	b.step(Shutdown{})
	b.wait(3 * b.c.timing.Lease)
	clean, exits, stops := false, 0, 0
	for _, a := range b.take() {
		switch a := a.(type) {
		case Exit:
			clean, exits = a.Clean, exits+1
		case Run:
			stops++
		}
	}
	if exits != 1 || clean || stops != 1 {
		t.Errorf("%d exits, clean %t, %d stops", exits, clean, stops)
	}
}

// TestPastBoot: a boot that a later one of the same node replaced does not announce itself again.
func TestPastBoot(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c", "up n1 boot=a session=3", "up n1 boot=a2"), Options{HasRecord: true})
	b.follow()
	b.wait(2*secs, "n3")
	want(t, "announcements", count(b.did(), "NodeUp"), 0)
}

// TestRenewalsHeard: an owner whose grants do not reach it gets no more ticks; one that hears them does; a
// stranger's, an older life's and a condemned one's renewals get none (rule 12).
func TestRenewalsHeard(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n3 boot=c", "up n2 boot=b", "grant web n2"), Options{HasRecord: true})
	b.lead()
	inc := b.s.Node("n2").Up
	renew := func(inc ids.Incarnation, k, first, last uint64) int {
		b.take()
		b.step(Received{From: "n2", Msg: Message{Renew: &Renew{Inc: inc, Renewal: lease.Renewal{K: k, First: first, LastGrant: last}}}})
		return count(b.did(), "send n2 renewed")
	}
	want(t, "grants to the first renewal", renew(inc, 1, 1, 0), 1)
	old := inc
	old.Gen--
	want(t, "grants to an older life", renew(old, 2, 1, 1), 0)
	want(t, "grants to a stranger", renew(ids.Incarnation{Node: "x", Boot: "y", Gen: 1}, 2, 1, 1), 0)
	for range 3 {
		b.wait(secs, "n2", "n3")
		want(t, "grants to one that heard", renew(inc, b.s.Node("n2").TickK+1, 1, b.s.Node("n2").TickK), 1)
	}
	heard := b.s.Node("n2").TickK
	for i := range uint64(6) {
		b.wait(secs, "n2", "n3")
		got := renew(inc, heard+1+i, 1, heard)
		if late := i >= 5; late && got != 0 {
			t.Errorf("a tick %ds after the last grant that was heard", i+1)
		}
	}
}

// TestMembership: voters come in pairs, so that two never need each other (rule 15).
func TestMembership(t *testing.T) {
	b := newBench(t, "n1", cluster(t, "up n2 boot=b", "up n3 boot=c"), Options{HasRecord: true})
	b.step(Servers{[]Server{{"n1", true}}})
	b.lead()
	b.wait(200*time.Millisecond, "n2")
	if d := b.did(); count(d, "member n2 voter=false") == 0 || count(d, "voter=true") != 0 {
		t.Fatalf("the second node becomes a non-voter:\n%s", d)
	}
	b.step(MembershipDone{"n2"})
	b.step(Servers{[]Server{{"n1", true}, {"n2", false}}})
	b.wait(secs, "n2")
	want(t, "promotions of the second alone", count(b.did(), "voter=true"), 0)
	b.step(Servers{[]Server{{"n1", true}, {"n2", false}, {"n3", false}}})
	b.wait(100*time.Millisecond, "n2", "n3")
	if d := b.did(); count(d, "member n2 voter=true") != 1 || count(d, "member n3 voter") != 0 {
		t.Fatalf("one change at a time:\n%s", d)
	}
	b.step(MembershipDone{"n2"})
	b.step(Servers{[]Server{{"n1", true}, {"n2", true}, {"n3", false}}})
	b.wait(100*time.Millisecond, "n2", "n3")
	want(t, "promotions of the third", count(b.did(), "member n3 voter=true"), 1)
	b.step(MembershipDone{"n3"})
	b.step(Servers{[]Server{{"n1", true}, {"n2", true}, {"n3", true}}})
	b.commit("remove n3")
	b.wait(100*time.Millisecond, "n2")
	want(t, "removals of a node that the log removed", count(b.did(), "member n3 voter=false remove=true"), 1)
}

// TestExecutor: a power command only for an open attempt that names this node, each asked of the leader, the
// answer waited for, the end reported until it is applied (I6).
func TestExecutor(t *testing.T) {
	s := cluster(t, "up n3 boot=c", "up n2 boot=b", "grant web n2", "intent n2 why=LOST_SILENT")
	b := newBench(t, "n1", s, Options{HasRecord: true})
	b.follow()
	b.commitReports()
	b.wait(200*time.Millisecond, "n3")
	want(t, "power commands without an attempt", count(b.did(), "power"), 0)
	b.step(GateAsked{Fence: s.Fences[0].ID, N: 1, Token: 4})
	want(t, "gates open without an attempt", count(b.did(), "gate 4 false"), 1)
	b.commit("begin n2 exec=n3 dev=ipmi-1")
	want(t, "power commands for another's attempt", count(b.did(), "power"), 0)
	b.commit("begin n2 exec=n1 dev=ipmi-1")
	b.step(Tick{})
	want(t, "power commands", count(b.did(), "power n2 off attempt 2"), 1)

	ask := func(token uint64) uint64 {
		b.take()
		b.step(GateAsked{Fence: s.Fences[0].ID, N: 2, Token: token})
		for _, a := range b.take() {
			if x, ok := a.(Send); ok && x.Msg.Ask != nil {
				return x.Msg.Ask.Nonce
			}
		}
		t.Fatal("the leader was not asked")
		return 0
	}
	b.step(Received{From: "n3", Msg: Message{Stand: &Stand{Nonce: ask(5), OK: true}}})
	want(t, "yes", count(b.did(), "gate 5 true"), 1)
	b.step(Received{From: "n3", Msg: Message{Stand: &Stand{Nonce: ask(6)}}})
	want(t, "no", count(b.did(), "gate 6 false"), 1)
	nonce := ask(7)
	b.wait(3*secs, "n3")
	want(t, "no answer", count(b.did(), "gate 7 false"), 1)
	b.step(Received{From: "n3", Msg: Message{Stand: &Stand{Nonce: nonce, OK: true}}})
	want(t, "an answer too late", count(b.did(), "gate 7"), 0)
	b.step(Leadership{Term: 3})
	b.step(GateAsked{Fence: s.Fences[0].ID, N: 2, Token: 8})
	want(t, "no leader", count(b.did(), "gate 8 false"), 1)
	b.follow()

	b.step(PowerDone{Fence: s.Fences[0].ID, N: 2, Report: fencing.Report{Op: fencing.OpOff, Outcome: fencing.OutcomeOff}}) // not read twice: senseless
	b.wait(secs, "n3")
	d := b.did()
	if count(d, "report FenceEnd") < 2 {
		t.Errorf("the end must be repeated until it is applied:\n%s", d)
	}
	b.commitReports()
	b.wait(500*time.Millisecond, "n3")
	b.commitReports()
	f := b.s.Fences[0]
	if r := f.Attempts[1].Report; r == nil || r.Outcome != fencing.OutcomeFailed {
		t.Errorf("a report that makes no sense became %+v", r)
	}
	b.wait(secs, "n3")
	d = b.did()
	want(t, "ends after it was applied", count(d, "FenceEnd"), 0)
	want(t, "a second run of the attempt", count(d, "power"), 0)
}

// TestLeaderAnswersGate: the leader says yes only for an open attempt of the asker, after raft has confirmed
// that it still leads.
func TestLeaderAnswersGate(t *testing.T) {
	s := cluster(t, "up n3 boot=c", "up n2 boot=b", "up n1 boot=a session=77", "grant web n2", "intent n2 why=LOST_SILENT", "begin n2 exec=n3 dev=ipmi-1")
	b := newBench(t, "n1", s, Options{HasRecord: true})
	f := s.Fences[0].ID
	ask := func(from ids.Node, n int) (verify uint64, did string) {
		b.take()
		b.step(Received{From: from, Msg: Message{Ask: &Ask{Fence: f, N: n, Nonce: 1}}})
		for _, a := range b.log {
			if v, ok := a.(Verify); ok {
				verify = v.Nonce
			}
		}
		return verify, b.did()
	}
	if v, d := ask("n3", 1); v != 0 || count(d, "stand false") != 1 {
		t.Errorf("a follower answered: %s", d)
	}
	b.lead()
	if v, d := ask("n2", 1); v != 0 || count(d, "stand false") != 1 {
		t.Errorf("another's attempt: %s", d)
	}
	if v, d := ask("n3", 2); v != 0 || count(d, "stand false") != 1 {
		t.Errorf("no such attempt: %s", d)
	}
	v, d := ask("n3", 1)
	if v == 0 || strings.Contains(d, "stand") {
		t.Fatalf("it must ask raft first: %s", d)
	}
	b.step(Verified{Nonce: v, OK: true})
	want(t, "yes", count(b.did(), "stand true"), 1)
	v, _ = ask("n3", 1)
	b.step(Verified{Nonce: v})
	want(t, "raft says no", count(b.did(), "stand false"), 1)
	v, _ = ask("n3", 1)
	b.commit("confirm n2 human=ann reason=cord_pulled")
	b.take()
	b.step(Verified{Nonce: v, OK: true})
	want(t, "the fence was closed meanwhile", count(b.did(), "stand false"), 1)
}

// TestStepDownAgain: a leader that cannot stop its own group offers its leadership until it is taken.
func TestStepDownAgain(t *testing.T) {
	s := cluster(t, "up n3 boot=c", "up n2 boot=b", "up n1 boot=a session=77", "grant web n1", "stopfailed web cause=busy")
	b := newBench(t, "n1", s, Options{HasRecord: true, Record: nil})
	b.lead()
	b.wait(4500*time.Millisecond, "n2", "n3")
	want(t, "offers in 4.5s", count(b.did(), "StepDown"), 1)
	b.wait(2*secs, "n2", "n3")
	want(t, "offers in the 2s after", count(b.did(), "StepDown"), 1)
}

// TestLateIsNoProof: a leader that was late itself holds nothing from before against anybody; nor does a new
// one; nor is an owner that was just granted, after an idle hour, called lost for having no tick.
func TestLateIsNoProof(t *testing.T) {
	s := cluster(t, "up n3 boot=c", "up n2 boot=b", "up n1 boot=a session=77", "standby n1")
	b := newBench(t, "n1", s, Options{HasRecord: true})
	b.lead()
	b.wait(60*secs, "n2", "n3") // grants web to n2 at once, and no tick comes
	d := b.did()
	want(t, "intents of a silent lease", count(d, "propose FenceIntent"), 1)

	b = newBench(t, "n1", cluster(t, "up n3 boot=c", "up n2 boot=b", "up n1 boot=a session=77", "standby n1", "want web stopped"), Options{HasRecord: true})
	b.lead()
	b.wait(60*secs, "n2", "n3")
	b.take()
	b.commit("want web started")
	b.wait(b.c.timing.Lost()-500*time.Millisecond, "n2", "n3")
	d = b.did()
	if count(d, "propose Grant") != 1 || count(d, "FenceIntent") != 0 {
		t.Errorf("a new ownership after an idle minute:\n%s", d)
	}
	b.step(Late{By: 5 * secs})
	b.wait(b.c.timing.Lost()-500*time.Millisecond, "n2", "n3")
	want(t, "intents soon after the own lateness", count(b.did(), "FenceIntent"), 0)
	b.step(Leadership{Leader: "n3", Term: 3})
	b.step(Leadership{Leader: "n1", Term: 4})
	b.step(BarrierDone{Term: 4, OK: true})
	b.wait(b.c.timing.Lost()-500*time.Millisecond, "n2", "n3")
	want(t, "intents soon after a change of leader", count(b.did(), "FenceIntent"), 0)
}

// TestTakeover: the whole of it on the leader: silence, agreement, intent, attempt, proof, grant elsewhere.
func TestTakeover(t *testing.T) {
	s := cluster(t, "up n3 boot=c uuid=3", "up n1 boot=a session=77", "up n2 boot=b uuid=2", "standby n1", "grant web n2", "started web", "standby n1 off")
	b := newBench(t, "n1", s, Options{HasRecord: true})
	b.lead()
	b.wait(secs, "n2", "n3")
	b.take()
	for range 30 { // n3 agrees only after a while
		b.wait(50*time.Millisecond, "n3")
	}
	want(t, "intents without agreement", count(b.did(), "FenceIntent"), 0)
	for range 4 {
		b.now += 50 * time.Millisecond
		b.beat("n3", "c", "n2")
	}
	d := b.did()
	if count(d, "propose FenceIntent") != 1 || count(d, "propose FenceBegin") != 1 || count(d, "propose Grant") != 0 {
		t.Fatalf("lost:\n%s", d)
	}
	b.commit("end n2 1 off guid=2")
	b.wait(300 * time.Millisecond)
	d = b.did()
	if b.s.Group("web").Owner.Node != "n1" || count(d, "propose FenceConfirm") != 1 || count(d, "propose Grant") != 1 {
		t.Errorf("proven:\n%s", d)
	}
}

// TestPrepareAhead: while the owner is being fenced, the heir alone asks for its addresses, and starts
// nothing.
func TestPrepareAhead(t *testing.T) {
	prepared := func(self ids.Node, lines ...string) (n int) {
		s := cluster(t, append([]string{"up n1 boot=a", "up n3 boot=c", "up n2 boot=b", "grant web n2", "intent n2 why=LOST_SILENT"}, lines...)...)
		b := newBench(t, self, s, Options{HasRecord: true})
		b.follow()
		b.commitReports()
		b.wait(200*time.Millisecond, "n3")
		b.commitReports()
		b.wait(200*time.Millisecond, "n3")
		b.take()
		b.commit("begin n2 exec=n3 dev=ipmi-1")
		for _, a := range b.take() {
			switch a.(type) {
			case Prepare:
				n++
			case Run:
				t.Errorf("%s runs something: %+v", self, a)
			}
		}
		return n
	}
	want(t, "addresses asked for by the heir", prepared("n1"), 1)
	want(t, "by a node on standby", prepared("n1", "standby n1"), 0)
}
