package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// marks are named moments of one run; split turns them into the parts between them.
type marks struct {
	names []string
	at    []int64
}

func (m *marks) add(name string, t int64) {
	m.names, m.at = append(m.names, name), append(m.at, t)
}

// split gives every mark the time since the one before it.
func (m *marks) split(ms map[string]float64) {
	for i := 1; i < len(m.at); i++ {
		ms[m.names[i]] = float64(m.at[i]-m.at[i-1]) / 1e6
	}
}

// Parts that takeovers of every kind have.
const (
	partOutage  = "client-seen outage"
	partApplied = "grant committed -> applied on the new owner"
	partLease   = "  -> lease in hand, start begun"
	partStart   = "  -> start done"
	partAnswer  = "  -> first answer"
	partGrant   = "grant committed -> start begun on the owner"
	partFirst   = "grant committed -> first answer"
)

// await waits until a group was started somewhere after since and answers.
func (t *bed) await(ctx context.Context, since int64, within time.Duration) error {
	return until(ctx, within, func() (bool, error) {
		if err := t.trace.read(); err != nil {
			return false, err
		}
		r, ok := t.trace.find(since, "", "in ran start")
		if !ok {
			return false, nil
		}
		return t.echo.answering(r.t)
	})
}

// tailOf adds the marks from the commit of the grant to the first answer.
func (t *bed) tailOf(m *marks, ms map[string]float64, since int64, g check.Gap) error {
	run, ok := t.trace.find(since, "", "out run start")
	if !ok {
		return fmt.Errorf("the trace shows no start")
	}
	prop, ok := t.trace.last(since, run.t, "", "out propose state.Grant")
	if !ok {
		return fmt.Errorf("the trace shows no grant")
	}
	commit, ok1 := t.trace.find(prop.t, prop.node, "in applied state.Grant")
	here, ok2 := t.trace.find(prop.t, run.node, "in applied state.Grant")
	done, ok3 := t.trace.find(run.t, run.node, "in ran start")
	if !ok1 || !ok2 || !ok3 {
		return fmt.Errorf("the trace has no complete start")
	}
	m.add("  -> grant committed", commit.t)
	m.add(partApplied, here.t)
	m.add(partLease, run.t)
	m.add(partStart, done.t)
	m.add(partAnswer, max(g.End, done.t))
	ms[partGrant] = float64(run.t-commit.t) / 1e6
	ms[partFirst] = float64(g.End-commit.t) / 1e6
	ms["start, with what the ARP probe still takes"] = float64(done.t-run.t) / 1e6
	if tick, ok := t.trace.last(here.t-1, run.t, prop.node, "out propose state.LeaseTick"); ok {
		if k, ok := t.trace.find(tick.t, prop.node, "in applied state.LeaseTick"); ok {
			ms["lease: renewal asked -> tick proposed"] = float64(tick.t-here.t) / 1e6
			ms["lease: tick proposed -> committed"] = float64(k.t-tick.t) / 1e6
			ms["lease: tick committed -> start begun"] = float64(run.t-k.t) / 1e6
		}
	}
	return nil
}

var tailParts = []string{"  -> grant committed", partApplied, partLease, partStart, partAnswer}
var leaseParts = []string{partGrant, partFirst, "lease: renewal asked -> tick proposed", "lease: tick proposed -> committed", "lease: tick committed -> start begun"}

// runSeries repeats a trial and stands a few that went wrong, aloud.
func (t *bed) runSeries(b *testing.B, s *series, n int, trial func(ctx context.Context, i int) (map[string]float64, string, error)) {
	b.Helper()
	for i := 0; i < n; i++ {
		busy := 0.0
		ms, note, err := func() (map[string]float64, string, error) {
			ctx, cancel := context.WithTimeout(b.Context(), 90*time.Second)
			defer cancel()
			return trial(ctx, i)
		}()
		if ms != nil {
			busy = ms["busy"]
			delete(ms, "busy")
		}
		if err != nil {
			s.failed++
			show("%s: run %d does not count: %v", s.name, i+1, err)
			if s.failed > 3+n/5 {
				b.Fatalf("%s: too many runs went wrong, the last one: %v", s.name, err)
			}
			continue
		}
		s.add(b, ms, note, busy)
	}
	if len(s.runs) == 0 {
		b.Fatalf("%s: nothing was measured", s.name)
	}
	show("%s", s.table(b))
	v := s.values(partOutage, nil)
	b.ReportMetric(median(v), "outage-ms-p50")
	b.ReportMetric(quantile(v, 0.99), "outage-ms-p99")
	b.ReportMetric(0, "ns/op")
}

// ready waits for calm, forgets the past and waits for a random phase.
func (t *bed) ready(ctx context.Context) (float64, error) {
	busy := calmDown()
	if err := t.trace.forget(); err != nil {
		return busy, err
	}
	if _, err := t.echo.gap(ctx, 0, check.Now()); err != nil {
		return busy, err
	}
	return busy, wait(ctx, time.Duration(rand.Int64N(int64(400*time.Millisecond))))
}

var moveParts = append(append([]string{partOutage, "command asked -> revoke committed", "  -> stop begun", "  -> stop done (address gone)", "  -> released committed"},
	tailParts...), append([]string{"stop begun -> last answer"}, leaseParts...)...)

// move measures one planned move: by group move, or by standby of the owner.
func (t *bed) move(ctx context.Context, standby bool) (map[string]float64, string, error) {
	st, err := t.place(ctx, func(string, string) bool { return true })
	if err != nil {
		return nil, "", err
	}
	owner := st.Group(cluster.Web).Owner
	to := t.Nodes[(t.Index(owner)+1)%len(t.Nodes)]
	busy, err := t.ready(ctx)
	if err != nil {
		return nil, "", err
	}
	args, note := []string{"group", "move", cluster.Web, "--to", to}, "group move "+owner+" -> "+to+", leader "+st.Leader
	if standby {
		args, note = []string{"node", "standby", owner}, "standby "+owner+", leader "+st.Leader
	}
	from := check.Now()
	if _, err := t.Must(ctx, st.Leader, args...); err != nil {
		return nil, note, err
	}
	if err := t.await(ctx, from, 10*time.Second); err != nil {
		return nil, note, err
	}
	if err := wait(ctx, 300*time.Millisecond); err != nil {
		return nil, note, err
	}
	g, err := t.echo.gap(ctx, from, check.Now())
	if err != nil || g.Open {
		return nil, note, fmt.Errorf("the client gets no answer: %v", err)
	}
	if err := t.trace.read(); err != nil {
		return nil, note, err
	}
	ms, err := t.splitMove(from, owner, g)
	if ms != nil {
		ms["busy"] = busy
	}
	if standby {
		if _, err := t.Must(ctx, st.Leader, "node", "online", owner); err != nil {
			return nil, note, err
		}
	}
	return ms, note, err
}

func (t *bed) splitMove(from int64, owner string, g check.Gap) (map[string]float64, error) {
	ms := map[string]float64{partOutage: float64(g.Length()) / 1e6}
	prop, ok := t.trace.find(from, "", "out propose state.Revoke")
	if !ok {
		return nil, fmt.Errorf("the trace shows no revoke")
	}
	rev, ok1 := t.trace.find(prop.t, prop.node, "in applied state.Revoke")
	stop, ok2 := t.trace.find(prop.t, owner, "out run stop")
	gone, ok3 := t.trace.find(prop.t, owner, "in ran stop")
	rel, ok4 := t.trace.find(prop.t, prop.node, "in applied state.Released")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return nil, fmt.Errorf("the trace has no complete stop")
	}
	m := &marks{}
	m.add("", from)
	m.add("command asked -> revoke committed", rev.t)
	m.add("  -> stop begun", stop.t)
	m.add("  -> stop done (address gone)", gone.t)
	m.add("  -> released committed", rel.t)
	if err := t.tailOf(m, ms, rel.t-int64(time.Millisecond), g); err != nil {
		return nil, err
	}
	m.split(ms)
	ms["stop begun -> last answer"] = float64(g.Start-stop.t) / 1e6
	return ms, nil
}

var crashParts = append([]string{partOutage, "fault asked -> last answer", "detection: last answer -> intent proposed", "  of it: -> new leader elected", "  of it: -> barrier done",
	"  of it: -> intent proposed", "intent proposed -> committed", "  -> attempt begin committed", "  -> power command handed to the executor",
	"  -> power attempt done", "  of it: the leader's word (gate)", "  of it: the BMC", "  -> attempt end committed", "  -> proof confirmed"},
	append(append([]string{}, tailParts...), append([]string{partRest}, leaseParts...)...)...)

const partRest = "everything except detection and the BMC"

// crash measures one power cut of the owner, which leads or does not.
func (t *bed) crash(ctx context.Context, leads bool) (map[string]float64, string, error) {
	st, err := t.place(ctx, func(o, l string) bool { return (o == l) == leads })
	if err != nil {
		return nil, "", err
	}
	owner := st.Group(cluster.Web).Owner
	note := "power off " + owner + ", leader " + st.Leader
	busy, err := t.ready(ctx)
	if err != nil {
		return nil, note, err
	}
	from := check.Now()
	if err := t.Lab.Power(ctx, owner, false); err != nil {
		return nil, note, err
	}
	if err := t.await(ctx, from, 20*time.Second); err != nil {
		return nil, note, err
	}
	if err := wait(ctx, 200*time.Millisecond); err != nil {
		return nil, note, err
	}
	g, err := t.echo.gap(ctx, from, check.Now())
	if err != nil || g.Open {
		return nil, note, fmt.Errorf("the client gets no answer: %v", err)
	}
	if err := t.trace.read(); err != nil {
		return nil, note, err
	}
	ms, err := t.splitCrash(from, leads, g)
	if ms != nil {
		ms["busy"] = busy
	}
	return ms, note, err
}

func (t *bed) splitCrash(from int64, leads bool, g check.Gap) (map[string]float64, error) {
	ms := map[string]float64{partOutage: float64(g.Length()) / 1e6, "fault asked -> last answer": float64(g.Start-from) / 1e6}
	prop, ok := t.trace.find(from, "", "out propose state.FenceIntent")
	if !ok {
		return nil, fmt.Errorf("the trace shows no intent")
	}
	lead := prop.node
	intent, ok1 := t.trace.find(prop.t, lead, "in applied state.FenceIntent")
	begin, ok2 := t.trace.find(prop.t, lead, "in applied state.FenceBegin")
	power, ok3 := t.trace.find(prop.t, "", "out power off")
	done, ok4 := t.trace.find(power.t, power.node, "in powered off")
	end, ok5 := t.trace.find(power.t, lead, "in applied state.FenceEnd")
	proof, ok6 := t.trace.find(power.t, lead, "in applied state.FenceConfirm")
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 {
		return nil, fmt.Errorf("the trace has no complete fence")
	}
	m := &marks{}
	m.add("", prop.t)
	m.add("intent proposed -> committed", intent.t)
	m.add("  -> attempt begin committed", begin.t)
	m.add("  -> power command handed to the executor", max(power.t, begin.t))
	m.add("  -> power attempt done", done.t)
	m.add("  -> attempt end committed", end.t)
	m.add("  -> proof confirmed", proof.t)
	if err := t.tailOf(m, ms, proof.t-int64(time.Millisecond), g); err != nil {
		return nil, err
	}
	m.split(ms)
	gate := t.gates(power, done.t)
	bmc := float64(done.t-power.t)/1e6 - gate
	ms["  of it: the leader's word (gate)"], ms["  of it: the BMC"] = gate, bmc
	ms["detection: last answer -> intent proposed"] = float64(prop.t-g.Start) / 1e6
	ms[partRest] = float64(g.End-prop.t)/1e6 - bmc
	if leads {
		won, ok1 := t.trace.find(from, lead, fmt.Sprintf("in leadership %q", lead))
		bar, ok2 := t.trace.find(won.t, lead, "in barrier done")
		if ok1 && ok2 {
			ms["  of it: -> new leader elected"] = float64(won.t-g.Start) / 1e6
			ms["  of it: -> barrier done"] = float64(bar.t-won.t) / 1e6
			ms["  of it: -> intent proposed"] = float64(prop.t-bar.t) / 1e6
		}
	}
	return ms, nil
}

// gates sums the time the executor waited for the leader's word during one attempt, in ms.
func (t *bed) gates(power step, end int64) float64 {
	sum := 0.0
	var asked int64
	for _, s := range t.trace.steps {
		if s.node != power.node || s.t < power.t || s.t > end {
			continue
		}
		switch {
		case s.what == "in gate asked":
			asked = s.t
		case strings.HasPrefix(s.what, "out gate answer") && asked != 0:
			sum, asked = sum+float64(s.t-asked)/1e6, 0
		}
	}
	return sum
}

// BenchmarkTakeover measures planned moves and crashes on one cluster.
func BenchmarkTakeover(b *testing.B) {
	if !once(b) {
		return
	}
	t := newBed(b, buildPicket(b), "", true)
	b.Run("move", func(b *testing.B) {
		if once(b) {
			s := newSeries("move", moveParts...)
			t.runSeries(b, s, opt.runs, func(ctx context.Context, i int) (map[string]float64, string, error) { return t.move(ctx, i%2 == 1) })
			show("%s", verdict("grant to start begun, median", median(s.values(partGrant, nil)), 10))
		}
	})
	for _, leads := range []bool{false, true} {
		name := map[bool]string{false: "crash", true: "crash-of-the-leader"}[leads]
		b.Run(name, func(b *testing.B) {
			if once(b) {
				s := newSeries(name, crashParts...)
				t.runSeries(b, s, opt.runs, func(ctx context.Context, _ int) (map[string]float64, string, error) { return t.crash(ctx, leads) })
				v := s.values(partRest, nil)
				show("%s; p99 %.1f ms", verdict(partRest+", median", median(v), 50), quantile(v, 0.99))
				show("%s", verdict("grant to start begun, median", median(s.values(partGrant, nil)), 10))
			}
		})
	}
	b.Run("commit", func(b *testing.B) {
		if once(b) {
			t.commits(b)
		}
	})
	t.judge(b)
}

// commits measures one entry of the idle cluster's log, lease ticks, from the moment at which the
// leader's core wants it to the moment at which it has been applied there: two stores in turn (the
// leader's, then the quicker follower's), one journey there and back over TLS.
func (t *bed) commits(b *testing.B) {
	b.Helper()
	ctx := b.Context()
	if _, err := t.place(ctx, func(o, l string) bool { return o != l }); err != nil {
		b.Fatal(err)
	}
	s := newSeries("commit", "lease tick proposed -> committed", "  committed on the leader -> applied on the owner", "  renewal sent -> its grant in hand")
	busy := calmDown()
	if err := t.trace.forget(); err != nil {
		b.Fatal(err)
	}
	if err := wait(ctx, time.Duration(opt.runs)*800*time.Millisecond); err != nil {
		b.Fatal(err)
	}
	if err := t.trace.read(); err != nil {
		b.Fatal(err)
	}
	for _, x := range t.trace.steps {
		if !strings.HasPrefix(x.what, "out propose state.LeaseTick") {
			continue
		}
		done, ok1 := t.trace.find(x.t, x.node, "in applied state.LeaseTick")
		sent, ok2 := t.trace.last(x.t-int64(200*time.Millisecond), x.t, "", "out send renew")
		got, ok3 := t.trace.find(x.t, sent.node, "in received renewed")
		here, ok4 := t.trace.find(x.t, sent.node, "in applied state.LeaseTick")
		if ok1 && ok2 && ok3 && ok4 {
			s.add(b, map[string]float64{s.order[0]: ms(done.t - x.t), s.order[1]: ms(here.t - done.t), s.order[2]: ms(got.t - sent.t)}, "", busy)
		}
	}
	show("%s", s.table(b))
	b.ReportMetric(median(s.values(s.order[0], nil)), "commit-ms-p50")
	b.ReportMetric(0, "ns/op")
}

// judge lets the lab's own observers say whether the address ever had two owners meanwhile.
func (t *bed) judge(b *testing.B) {
	h, err := t.Lab.History(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	// The lock's witnesses are processes of this machine too: when others use all of its CPU time, an agent
	// may see late that its address went. Two stays of the address that overlap need no grace to count.
	r := check.Run(h, check.Options{LockGrace: 300 * time.Millisecond})
	show("  %s", r.Summary())
	if len(r.Violations) > 0 {
		var text strings.Builder
		if err := r.Write(&text); err != nil {
			b.Error(err)
		}
		b.Errorf("the observers saw what must not happen: %s", text.String())
	}
}

// BenchmarkProbeWait measures what the ARP probe costs a planned move: 1 ms instead of the default.
func BenchmarkProbeWait(b *testing.B) {
	if !once(b) {
		return
	}
	t := newBed(b, buildPicket(b), "        probe_wait: 1ms\n", true)
	s := newSeries("move-probe-wait-1ms", moveParts...)
	t.runSeries(b, s, opt.peerRuns, func(ctx context.Context, _ int) (map[string]float64, string, error) { return t.move(ctx, false) })
}
