package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/resources"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errLost = errors.New("the connection broke")

// world is everything around a driver: log, network, machine and clock.
type world struct {
	t   *testing.T
	d   *Driver
	now atomic.Int64 // the clock, when frozen
	run atomic.Bool  // the clock runs by itself

	mu      sync.Mutex
	st      state.State
	index   uint64
	leader  ids.Node
	servers []core.Server
	lose    int // this many proposals lose their answer after they committed
	order   []string
	fatal   []error
	resets  []reason.Reason
	records [][]core.RunEntry
	recErr  error
	sent    map[ids.Node]int
	relayed []string
	power   func(ctx context.Context, p core.Power, gate fencing.Gate) fencing.Report
	send    func(ctx context.Context, to ids.Node) error
}

var (
	_ Log     = (*world)(nil)
	_ Network = (*world)(nil)
	_ Machine = (*world)(nil)
)

const boot = ids.Boot("11111111-1111-4111-8111-111111111111")

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, sent: map[ids.Node]int{}}
	w.run.Store(true)
	began := time.Now()
	clock := func() time.Duration {
		if w.run.Load() {
			return time.Since(began)
		}
		return time.Duration(w.now.Load())
	}
	w.d = New(Options{Network: w, Machine: w, Logger: slog.New(slog.DiscardHandler), Clock: clock, Wall: func() int64 { return 1 },
		Core: core.Options{Self: "a", Boot: boot, Session: 7, Version: "test", Now: clock(), HasRecord: true}})
	t.Cleanup(w.d.Stop)
	return w
}

// freeze stops the clock where it is; jump moves it.
func (w *world) freeze() {
	w.now.Store(int64(w.d.o.Clock()))
	w.run.Store(false)
}

func (w *world) jump(d time.Duration) { w.now.Add(int64(d)) }

func (w *world) note(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order = append(w.order, s)
}

func (w *world) notes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.order)
}

// Propose commits at once.
func (w *world) Propose(_ context.Context, data []byte) (uint64, any, error) {
	e, err := state.Decode(data)
	if err != nil {
		return 0, nil, err
	}
	w.mu.Lock()
	w.index++
	i := w.index
	next, res := state.Apply(w.st, i, e)
	w.st = next
	lost := w.lose > 0
	if lost {
		w.lose--
	}
	w.mu.Unlock()
	w.d.Applied(core.Applied{Index: i, Entry: e, Result: res, State: next})
	if lost {
		return 0, nil, errLost
	}
	return i, res, nil
}

func (w *world) Unknown(err error) bool             { return errors.Is(err, errLost) }
func (w *world) Barrier(context.Context) error      { return nil }
func (w *world) VerifyLeader(context.Context) error { return nil }
func (w *world) Nudge()                             {}
func (w *world) Leader() (ids.Node, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leader, 1
}
func (w *world) Servers() []core.Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.servers)
}
func (w *world) AddNonvoter(context.Context, ids.Node) error  { return nil }
func (w *world) AddVoter(context.Context, ids.Node) error     { return nil }
func (w *world) RemoveServer(context.Context, ids.Node) error { return nil }
func (w *world) StepDown(context.Context) error               { return nil }

func (w *world) Send(ctx context.Context, to ids.Node, _ []byte) error {
	if w.send != nil {
		if err := w.send(ctx, to); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[to]++
	return nil
}

func (w *world) Relay(_ context.Context, via, to ids.Node, msg []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.relayed = append(w.relayed, fmt.Sprintf("%s>%s %s", via, to, msg))
	return nil
}
func (w *world) Kick()                 {}
func (w *world) Refused(ids.Node) bool { return false }

func (w *world) Prepare(context.Context, state.ResourceConfig) {}
func (w *world) RunResource(ctx context.Context, r state.ResourceConfig, q resources.Request) error {
	w.note("run " + string(r.ID))
	return nil
}
func (w *world) Power(ctx context.Context, p core.Power, gate fencing.Gate) fencing.Report {
	return w.power(ctx, p, gate)
}
func (w *world) Record(e []core.RunEntry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, e)
	return w.recErr
}
func (w *world) Reset(r reason.Reason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resets = append(w.resets, r)
}
func (w *world) Fatal(err error) {
	w.note("fatal")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fatal = append(w.fatal, err)
}
func (w *world) Journal(j core.Journal) { w.note("journal " + string(j.Reason.Code)) }
func (w *world) Exit(clean bool)        { w.note(fmt.Sprintf("exit clean=%t", clean)) }

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 10 s: " + what)
		}
	}
}

// ends fails the test where f takes longer than it may.
func ends(t *testing.T, within time.Duration, what string, f func()) time.Duration {
	t.Helper()
	began := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(within):
		t.Fatalf("not within %v: %s", within, what)
	}
	return time.Since(began)
}

// alone makes node a the leader of a cluster of one.
func (w *world) alone() {
	w.leader, w.servers = "a", []core.Server{{Name: "a", Voter: true}}
	b, err := state.Encode(state.Entry{Cmd: state.NodeAdmit{Name: "a", Role: state.Member, Links: []state.LinkAddr{{Interface: "eth0", Addr: "10.0.0.1"}}}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.d.Start(w)
	if _, _, err := w.Propose(w.t.Context(), b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) state() state.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.st
}

// TestLife takes a node alone through its life: it announces itself, and leaves when asked to. The
// answers of its first proposals are lost, and nothing is done twice for it.
func TestLife(t *testing.T) {
	w := newWorld(t)
	w.alone()
	w.mu.Lock()
	w.lose = 3
	w.mu.Unlock()
	eventually(t, "it is up", func() bool { s := w.state(); return !s.Node("a").Up.IsZero() })
	var v core.View
	eventually(t, "it leads and knows of it", func() bool {
		if err := w.d.Do(t.Context(), func(c *core.Core) { v = c.View() }); err != nil {
			t.Fatal(err)
		}
		return v.Leading && v.Inc.Gen != 0
	})
	if s := w.state(); s.Node("a").Up.Gen != v.Inc.Gen {
		t.Errorf("it calls itself %v, the log says %v", v.Inc, s.Node("a").Up)
	}
	eventually(t, "heartbeats carry the generation", func() bool { return w.d.Content().Gen == v.Inc.Gen })
	w.d.Post(core.Shutdown{})
	eventually(t, "it has left", func() bool { return slices.Contains(w.notes(), "exit clean=true") })
	if s := w.state(); !s.Node("a").Left {
		t.Error("the log does not know that it left")
	}
	if len(w.fatal)+len(w.resets) > 0 {
		t.Errorf("fatal %v, resets %v", w.fatal, w.resets)
	}
}

// sending is a fence device that asks before its one command.
func sending(sent *atomic.Int32, after func(ctx context.Context)) func(context.Context, core.Power, fencing.Gate) fencing.Report {
	return func(ctx context.Context, p core.Power, gate fencing.Gate) fencing.Report {
		if err := gate(ctx); err != nil {
			return fencing.Report{Op: p.Op, Outcome: fencing.OutcomeRefused, Identity: fencing.IdentityUnproven, Detail: err.Error()}
		}
		sent.Add(1)
		if after != nil {
			after(ctx)
		}
		return fencing.Report{Op: p.Op, Outcome: fencing.OutcomeFailed, Identity: fencing.IdentityUnproven, Sent: 1}
	}
}

// ask waits until the gate has asked, and answers. The loop does not run: nobody else answers.
func (w *world) answer(token uint64, ok bool, until time.Duration) {
	w.t.Helper()
	eventually(w.t, "the gate asks", func() bool {
		w.d.mu.Lock()
		defer w.d.mu.Unlock()
		return w.d.gates[token] != nil
	})
	w.d.answerGate(core.GateAnswer{Token: token, OK: ok, Until: until})
}

func TestGate(t *testing.T) {
	shot := core.Power{Fence: 9, N: 1, Node: "b", Op: fencing.OpOff, Deadline: time.Minute}
	for _, c := range []struct {
		name  string
		ok    bool
		until time.Duration // from now
		sends int32
	}{
		{"no", false, time.Minute, 0},
		{"yes, but too late", true, -time.Millisecond, 0},
		{"yes", true, time.Minute, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			var sent atomic.Int32
			w.power = sending(&sent, nil)
			w.d.power(shot)
			w.answer(1, c.ok, w.d.o.Clock()+c.until)
			ends(t, 5*time.Second, "the attempt", w.d.wg.Wait)
			if n := len(w.d.queue); n != 2 { // asked, and done
				t.Errorf("%d events came of it", n)
			}
			if sent.Load() != c.sends {
				t.Errorf("%d commands were sent, wanted %d", sent.Load(), c.sends)
			}
			if len(w.d.gates) != 0 {
				t.Error("the gate waits still")
			}
		})
	}
	t.Run("unknown to core", func(t *testing.T) { // the loop runs, and core knows of no such attempt
		w := newWorld(t)
		var sent atomic.Int32
		w.power = sending(&sent, nil)
		w.alone()
		done := make(chan fencing.Report, 1)
		inner := w.power
		w.power = func(ctx context.Context, p core.Power, g fencing.Gate) fencing.Report {
			r := inner(ctx, p, g)
			done <- r
			return r
		}
		w.d.power(shot)
		if r := <-done; r.Outcome != fencing.OutcomeRefused || sent.Load() != 0 {
			t.Errorf("report %+v, %d sent", r, sent.Load())
		}
	})
	t.Run("deadline", func(t *testing.T) {
		w := newWorld(t)
		var sent atomic.Int32
		ended := make(chan time.Duration, 1)
		w.power = sending(&sent, func(ctx context.Context) { // the BMC never answers
			<-ctx.Done()
			ended <- w.d.o.Clock()
		})
		w.d.power(shot)
		until := w.d.o.Clock() + 200*time.Millisecond
		w.answer(1, true, until)
		if at := <-ended; at < until || at > until+2*time.Second {
			t.Errorf("the device was stopped %v after its deadline", at-until)
		}
	})
	t.Run("never answered", func(t *testing.T) { // a short deadline: the attempt ends 5 s after it at the latest
		w := newWorld(t)
		var sent atomic.Int32
		w.power = func(ctx context.Context, p core.Power, gate fencing.Gate) fencing.Report {
			gctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			return sending(&sent, nil)(gctx, p, gate)
		}
		w.d.power(shot)
		ends(t, 5*time.Second, "the attempt", w.d.wg.Wait)
		if sent.Load() != 0 {
			t.Error("a command was sent without an answer")
		}
	})
	t.Run("stopped", func(t *testing.T) {
		w := newWorld(t)
		var sent atomic.Int32
		w.power = sending(&sent, nil)
		w.d.power(shot)
		eventually(t, "the gate asks", func() bool { return len(w.d.queue) == 1 })
		ends(t, 2*time.Second, "the stop", w.d.Stop)
		if sent.Load() != 0 {
			t.Error("a command was sent by a driver that stops")
		}
	})
}

// TestDeadPeer: what goes to a peer that swallows everything is bounded and delays nobody else.
func TestDeadPeer(t *testing.T) {
	w := newWorld(t)
	w.send = func(ctx context.Context, to ids.Node) error {
		if to == "dead" {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	w.servers = []core.Server{{Name: "a"}, {Name: "dead"}}
	w.d.Start(w)
	took := ends(t, 2*time.Second, "sending to a dead peer", func() {
		for range 10 * sendQueue {
			w.d.send(core.Send{To: "dead", Msg: core.Message{Report: &core.Report{}}})
		}
	})
	t.Logf("%d messages were queued or lost in %v", 10*sendQueue, took)
	w.d.mu.Lock()
	if n := len(w.d.out["dead"]); n > sendQueue {
		t.Errorf("%d messages wait", n)
	}
	w.d.mu.Unlock()
	for range 100 {
		w.d.send(core.Send{To: "b", Msg: core.Message{Report: &core.Report{}}})
	}
	eventually(t, "the living peer gets all of its messages", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.sent["b"] == 100
	})
	ends(t, 2*time.Second, "the stop", w.d.Stop)
}

// TestRelay: what cannot be sent goes by way of another server.
func TestRelay(t *testing.T) {
	w := newWorld(t)
	w.send = func(context.Context, ids.Node) error { return errLost }
	w.servers = []core.Server{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	w.d.Start(w)
	msg := core.Message{Ask: &core.Ask{Fence: 3, N: 1, Nonce: 2}}
	w.d.send(core.Send{To: "b", Msg: msg})
	body, err := json.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is relayed by c", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Equal(w.relayed, []string{"c>b " + string(body)})
	})
}

// TestOverflow: with the queue full, beats and other observations that come again are dropped, a
// message is refused so that its sender knows, and what must not be lost waits.
func TestOverflow(t *testing.T) {
	w := newWorld(t)
	ends(t, 5*time.Second, "filling the queue", func() {
		for range queueLen + 100 {
			w.d.Beat(core.Beat{Interface: "eth0", Beat: heartbeat.Beat{From: "b"}})
		}
	})
	if n := w.d.dropped.Load(); n != 100 || len(w.d.queue) != queueLen {
		t.Errorf("%d beats were dropped, %d wait", n, len(w.d.queue))
	}
	if err := w.d.Message("b", []byte(`{}`)); err == nil {
		t.Error("a message was taken into a full queue")
	}
	w.d.Poke() // must not block
	w.mu.Lock()
	w.leader = "b"
	w.mu.Unlock()
	posted := make(chan struct{})
	go func() {
		defer close(posted)
		w.d.Applied(core.Applied{Index: 4, State: state.State{Index: 4}})
	}()
	select {
	case <-posted:
		t.Fatal("an applied entry did not wait for room")
	case <-time.After(50 * time.Millisecond):
	}
	w.d.Start(w)
	<-posted
	eventually(t, "the applied entry arrives", func() bool { return w.d.Content().Applied == 4 })
	if n := w.d.dropped.Load(); n != 100 {
		t.Errorf("%d were dropped", n)
	}
}

func TestMessage(t *testing.T) {
	w := newWorld(t)
	for _, b := range [][]byte{nil, []byte("x"), []byte(`[]`), []byte(`{"report":5}`), bytes.Repeat([]byte("["), 1<<16)} {
		if err := w.d.Message("b", b); err == nil {
			t.Errorf("%.20q was taken for a message", b)
		}
	}
	w.alone()
	for _, s := range []string{`{}`, `{"report":{}}`, `{"renew":{}}`, `{"ask":{"fence":1}}`, `{"stand":{"nonce":77}}`, `{"renewed":{}}`, `{"devices":[{}]}`, `{"report":{"Entry":"AAAA"}}`} {
		if err := w.d.Message("b", []byte(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	if err := w.d.Do(t.Context(), func(*core.Core) {}); err != nil {
		t.Error(err)
	}
}

// TestRecordFails: what cannot be recorded is not started.
func TestRecordFails(t *testing.T) {
	w := newWorld(t)
	w.recErr = errors.New("no space left on device")
	w.d.carry([]core.Action{core.Record{}, core.Run{Resource: state.ResourceConfig{ID: "ip:1"}, Request: resources.Request{Timeout: time.Second}}})
	w.d.wg.Wait()
	if got := w.notes(); !slices.Equal(got, []string{"fatal"}) {
		t.Errorf("after a failed record: %v", got)
	}
	if len(w.fatal) != 1 || !errors.Is(w.fatal[0], w.recErr) {
		t.Errorf("fatal %v", w.fatal)
	}
}

// TestLate: a loop that did not run says so before it judges anything else.
func TestLate(t *testing.T) {
	w := newWorld(t)
	w.freeze()
	w.d.Start(w)
	ready := make(chan struct{})
	hold := make(chan struct{})
	w.d.queue <- func() { close(ready); <-hold }
	<-ready
	w.jump(TickEvery + lateAfter + 150*time.Millisecond) // the process was paused
	w.d.queue <- func() { w.note("event") }
	close(hold)
	eventually(t, "the event", func() bool { return slices.Contains(w.notes(), "event") })
	if got := w.notes(); !slices.Equal(got, []string{"journal LOOP_LATE", "event"}) {
		t.Errorf("order: %v", got)
	}
	w.jump(TickEvery + lateAfter/2) // not late enough to speak of
	if err := w.d.Do(t.Context(), func(*core.Core) {}); err != nil {
		t.Fatal(err)
	}
	if got := w.notes(); len(got) != 2 {
		t.Errorf("order: %v", got)
	}
}

// TestStopped: after Stop nothing blocks and nothing runs.
func TestStopped(t *testing.T) {
	w := newWorld(t)
	w.alone()
	w.d.Stop()
	ends(t, 2*time.Second, "calls after the stop", func() {
		for range queueLen + 10 {
			w.d.Applied(core.Applied{})
			w.d.Post(core.Shutdown{})
		}
		w.d.Restored(state.State{})
		if err := w.d.Do(t.Context(), func(*core.Core) {}); err == nil {
			t.Error("Do ran after the stop")
		}
		w.d.Stop()
	})
}
