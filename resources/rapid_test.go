package resources

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/picket-ha/picket/consensus/ids"
)

// world is the executor as seen from outside: it knows every request and answer, and decides by its
// own book-keeping what may be running.
type world struct {
	t     *rapid.T
	r     *Runner
	now   time.Duration
	clock int // numbers requests and answers in the order in which they happened
	out   []*sent
	last  map[ids.Resource]*story
	lists [][]ids.Resource // every list of resources ever given, newest last
}

type sent struct {
	Request
	at    time.Duration
	order int
}

type story struct {
	ever      bool // ever started or unknown
	started   int  // order of the last start's answer, or of becoming unknown
	open      int  // starts without an answer
	stopped   int  // order in which the last successful stop was asked for
	up        bool // last start went well, no stop asked for since
	monitored int  // monitors without an answer
}

func (w *world) tick() int { w.clock++; return w.clock }

func (w *world) of(id ids.Resource) *story {
	if w.last[id] == nil {
		w.last[id] = &story{}
	}
	return w.last[id]
}

func (s *story) mayRun() bool { return s.ever && (s.open > 0 || s.stopped < s.started) }

func (w *world) take(reqs []Request) {
	for _, q := range reqs {
		s := w.of(q.Resource)
		if q.Timeout <= 0 {
			w.t.Fatalf("request without a timeout: %+v", q)
		}
		for _, o := range w.out {
			if o.Resource == q.Resource && w.now < o.at+o.Timeout {
				w.t.Fatalf("%s of %s asked for at %v while %s #%d of it is under way", q.Op, q.Resource, w.now, o.Op, o.Seq)
			}
		}
		switch q.Op {
		case OpStart:
			w.checkStart(q)
			s.ever = true
			s.open++
		case OpStop:
			w.checkStop(q)
			s.up = false
		case OpMonitor:
			if s.monitored > 0 {
				w.t.Fatalf("second monitor of %s while one is unanswered", q.Resource)
			}
			if !s.up {
				w.t.Fatalf("monitor of %s, which was not started", q.Resource)
			}
			s.monitored++
		}
		w.out = append(w.out, &sent{Request: q, at: w.now, order: w.tick()})
	}
	w.check()
}

func (w *world) checkStart(q Request) {
	if s := w.of(q.Resource); s.mayRun() || s.up {
		w.t.Fatalf("start of %s, which may run: %+v", q.Resource, s)
	}
	for _, id := range w.lists[len(w.lists)-1] {
		if id == q.Resource {
			return
		}
		if !w.of(id).up {
			w.t.Fatalf("start of %s before %s runs", q.Resource, id)
		}
	}
	w.t.Fatalf("start of %s, which is not in the list", q.Resource)
}

func (w *world) checkStop(q Request) {
	current := w.lists[len(w.lists)-1]
	if w.r.Phase() == PhaseStarting {
		if slices.Contains(current, q.Resource) && w.of(q.Resource).up {
			w.t.Fatalf("stop of %s, which is unchanged", q.Resource)
		}
		return
	}
	at := slices.Index(current, q.Resource)
	for i, id := range current {
		if at >= 0 && i > at && w.of(id).mayRun() {
			w.t.Fatalf("stop of %s while %s may run", q.Resource, id)
		}
	}
}

func (w *world) answer(i int, ok bool, again bool) {
	o := w.out[i]
	res := Result{Seq: o.Seq, Group: o.Group, Resource: o.Resource, Op: o.Op}
	if !ok {
		res.Err = "no luck"
	}
	if !again {
		w.out = slices.Delete(w.out, i, i+1)
		s := w.of(o.Resource)
		switch o.Op {
		case OpStart:
			s.open--
			s.started = w.tick()
			// A start whose answer comes after the runner gave it up does not make it run for good.
			s.up = ok && w.holds(o)
		case OpStop:
			if ok && s.open == 0 {
				s.stopped = max(s.stopped, o.order)
			}
		case OpMonitor:
			s.monitored--
		}
	}
	w.take(w.r.Done(w.now, res))
	if again {
		w.t.Logf("duplicate")
	}
}

// holds reports whether the runner still waits for that request.
func (w *world) holds(o *sent) bool {
	for _, e := range w.r.entries {
		if e.op != nil && e.op.seq == o.Seq {
			return true
		}
	}
	return false
}

func (w *world) check() {
	p := w.r.Phase()
	for id, s := range w.last {
		if (p == PhaseStopped || p == PhaseStartFailed) && s.mayRun() {
			w.t.Fatalf("phase %s while %s may run: %+v", p, id, s)
		}
	}
	if p == PhaseRunning {
		for _, id := range w.lists[len(w.lists)-1] {
			if !w.of(id).up {
				w.t.Fatalf("phase running while %s was not started", id)
			}
		}
	}
	if (p == PhaseStarting || p == PhaseStopping) && w.r.Next() < 0 {
		w.t.Fatalf("phase %s with nothing scheduled", p)
	}
	if p == PhaseStopFailed && w.r.Failure() == "" {
		w.t.Fatalf("stop-failed without a word")
	}
}

func (w *world) list(t *rapid.T) []Spec {
	var specs []Spec
	var names []ids.Resource
	for i := range rapid.IntRange(0, 4).Draw(t, "count") {
		id := ids.Resource(fmt.Sprintf("r%d", rapid.IntRange(0, 5).Draw(t, fmt.Sprint("id", i))))
		specs = append(specs, Spec{ID: id, Monitor: time.Duration(rapid.IntRange(0, 3).Draw(t, "monitor")) * time.Second})
		if !slices.Contains(names, id) {
			names = append(names, id)
		}
	}
	w.lists = append(w.lists, names)
	return specs
}

func (w *world) pass(d time.Duration) {
	w.now += d
	w.take(w.r.Tick(w.now))
}

// TestRunnerAnyOrder throws calls and late, duplicate and missing answers at a runner in any order.
func TestRunnerAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, last: map[ids.Resource]*story{}}
		w.r = NewRunner("web", w.list(t), 5*time.Second, 4*time.Second)
		pick := func() int { return rapid.IntRange(0, len(w.out)-1).Draw(t, "which") }
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { w.check() },
			"start": func(t *rapid.T) {
				w.take(w.r.Start(w.now, ids.Epoch(w.clock+1), rapid.Bool().Draw(t, "adopt")))
			},
			"stop": func(*rapid.T) { w.take(w.r.Stop(w.now)) },
			"unknown": func(t *rapid.T) {
				if rapid.IntRange(0, 5).Draw(t, "rare") > 0 {
					t.Skip()
				}
				w.r.MarkUnknown(w.now)
				for _, s := range w.r.Resources() {
					st := w.of(s.ID)
					st.ever, st.started = true, w.tick()
				}
				w.check()
			},
			"update": func(t *rapid.T) {
				if rapid.IntRange(0, 2).Draw(t, "rare") > 0 {
					t.Skip()
				}
				specs := w.list(t)
				w.r.Update(w.now, specs)
				w.settle(t)
			},
			"tick": func(t *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond)
			},
			"next": func(t *rapid.T) {
				if n := w.r.Next(); n > w.now {
					w.pass(n - w.now)
				} else {
					w.pass(0)
				}
			},
			"answer": func(t *rapid.T) {
				if len(w.out) == 0 {
					t.Skip()
				}
				w.answer(pick(), rapid.IntRange(0, 4).Draw(t, "luck") > 0, false)
			},
			"twice": func(t *rapid.T) {
				if len(w.out) == 0 {
					t.Skip()
				}
				i := pick()
				o := *w.out[i]
				w.answer(i, true, false)
				w.take(w.r.Done(w.now, Result{Seq: o.Seq, Group: o.Group, Resource: o.Resource, Op: o.Op}))
			},
			"stranger": func(t *rapid.T) {
				w.take(w.r.Done(w.now, Result{Seq: 1 << 40, Group: "web", Err: "who is that"}))
			},
		})
		w.finish()
	})
}

// settle lets the runner act on an update: it returns nothing itself.
func (w *world) settle(t *rapid.T) {
	if p := w.r.Phase(); p == PhaseStarting || p == PhaseStopping {
		if w.r.Next() > w.now {
			for _, o := range w.out {
				if o.Op != OpMonitor {
					return
				}
			}
		}
		w.pass(0)
	}
	_ = t
}

// finish answers everything well and asks for a stop: it must end stopped, in few steps.
func (w *world) finish() {
	for range 200 {
		if len(w.out) > 0 {
			w.answer(0, true, false)
			continue
		}
		switch w.r.Phase() {
		case PhaseStopped:
			return
		default:
			w.take(w.r.Stop(w.now))
		}
		if n := w.r.Next(); len(w.out) == 0 && n >= 0 {
			w.pass(max(n-w.now, 0))
		}
	}
	w.t.Fatalf("not stopped in the end: phase %s, %s, %+v", w.r.Phase(), w.r.Failure(), w.r.Resources())
}

// TestRunnerSilence never answers anything: every phase must still end by itself.
func TestRunnerSilence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, last: map[ids.Resource]*story{}}
		w.r = NewRunner("web", w.list(t), 5*time.Second, 4*time.Second)
		n := len(w.lists[0])
		w.take(w.r.Start(0, 7, false))
		if rapid.Bool().Draw(t, "stop") {
			w.take(w.r.Stop(0))
		}
		for range 10 {
			p := w.r.Phase()
			if p == PhaseStopFailed || (n == 0 && (p == PhaseRunning || p == PhaseStopped)) {
				return
			}
			w.pass(w.r.Next() - w.now)
		}
		t.Fatalf("still %s at %v", w.r.Phase(), w.now)
	})
}
