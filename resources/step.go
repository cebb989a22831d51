package resources

import (
	"fmt"
	"time"
)

// margin is the largest part of a budget that is kept for the answer of an operation that ran into
// its timeout to travel back; small budgets keep a sixteenth.
const margin = 250 * time.Millisecond

// step looks at where the group stands and returns the requests that follow from it. Everything that
// changes the state calls it last.
func (r *Runner) step() []Request {
	r.due = nil
	switch r.phase {
	case PhaseStopping:
		return r.stepStop()
	case PhaseStarting:
		return r.stepStart()
	case PhaseRunning:
		return r.stepMonitor()
	}
	return nil
}

// stepStart first stops what was dropped or stands half-way, last one first, and then starts the first
// resource that does not run. One request is out at a time.
func (r *Runner) stepStart() []Request {
	if r.busy() {
		return nil
	}
	for i := len(r.entries) - 1; i >= 0; i-- {
		e := r.entries[i]
		if e.dirty && (e.dropped || !e.started) {
			return r.stop(e)
		}
		if e.dropped {
			r.remove(i)
		}
	}
	r.stopBy = nil
	if r.startBy == nil {
		r.startBy = after(r.now, r.startTimeout)
	}
	for _, e := range r.entries {
		if e.started {
			continue
		}
		if r.now >= *r.startBy {
			r.startFailed(e, "the group's start timeout passed before its turn came")
			return r.step()
		}
		e.state, e.err, e.dirty = StateStarting, "", true
		return []Request{r.request(e, OpStart, *r.startBy)}
	}
	r.phase, r.startBy = PhaseRunning, nil
	return nil
}

// stepStop stops the last resource that may run. A start in flight, or the stop of a dropped
// resource, is waited for first; the stop budget begins after that.
func (r *Runner) stepStop() []Request {
	if r.busy() {
		return nil
	}
	for i := len(r.entries) - 1; i >= 0; i-- {
		e := r.entries[i]
		if e.dirty {
			return r.stop(e)
		}
		if e.dropped {
			r.remove(i)
		}
	}
	r.phase = PhaseStopped
	if r.undo {
		r.phase = PhaseStartFailed
	}
	r.stopBy, r.undo = nil, false
	return nil
}

// stop asks for the stop of one resource unless something keeps it waiting: an operation under way,
// or a start that was given up and has not answered.
func (r *Runner) stop(e *entry) []Request {
	if r.stopBy == nil {
		r.stopBy = after(r.now, r.stopTimeout)
	}
	if e.op != nil && !e.op.overdue {
		return nil
	}
	if r.now >= *r.stopBy {
		why := "the group's stop timeout passed before its turn came"
		if e.held {
			why = "a start of it was given up and never answered, so it may still take effect"
		}
		r.stopFailed(e, why)
		return nil
	}
	if e.held {
		return nil
	}
	if e.op != nil {
		r.hung[e.spec.ID] = e.op.seq
	}
	e.state, e.started = StateStopping, false
	return []Request{r.request(e, OpStop, *r.stopBy)}
}

// stepMonitor returns the monitors that are due; a resource with an operation under way waits.
func (r *Runner) stepMonitor() []Request {
	var out []Request
	for _, e := range r.entries {
		if e.op != nil || e.spec.Monitor <= 0 || r.now < e.next {
			continue
		}
		if r.hung[e.spec.ID] != 0 {
			r.monitored(e, "an earlier check of it has never returned")
			continue
		}
		out = append(out, r.request(e, OpMonitor, r.now+r.patience(e)))
	}
	return out
}

// patience is the time a monitor may take: half of the stop budget at most, so that a stop that has to
// wait for a hanging monitor still has the other half.
func (r *Runner) patience(e *entry) time.Duration { return min(e.spec.Monitor, r.stopTimeout/2) }

// request numbers a request and notes that it is out.
func (r *Runner) request(e *entry, op Op, deadline time.Duration) Request {
	r.seq++
	e.op = &flight{seq: r.seq, op: op, deadline: deadline}
	left := deadline - r.now
	return Request{
		Seq: r.seq, Group: r.group, Resource: e.spec.ID, Op: op, Epoch: r.epoch,
		Timeout: left - min(left/16, margin), Adopt: op == OpStart && e.adopt,
	}
}

// answer books the result of an operation that was still waited for.
func (r *Runner) answer(e *entry, f *flight, err string) {
	switch f.op {
	case OpStart:
		if err != "" {
			r.startFailed(e, err)
			return
		}
		e.state, e.err, e.started = StateRunning, "", true
		e.next = r.now + e.spec.Monitor
	case OpStop:
		r.stopped(e, err)
	case OpMonitor:
		r.monitored(e, err)
	}
}

// stopped books the result of a stop. It is proof only if no start of the resource can have taken
// effect after the stop looked.
func (r *Runner) stopped(e *entry, err string) {
	switch {
	case err != "":
		e.again = false
		r.stopFailed(e, err)
	case e.again:
		e.again = false
	case e.late != 0:
		e.held = true
		e.state = StateUnknown
	default:
		e.dirty, e.adopt = false, false
		e.state = StateStopped
	}
}

// monitored books the result of a monitor. Once the group is being stopped it means nothing: what
// is being taken apart may well look broken.
func (r *Runner) monitored(e *entry, err string) {
	e.next = r.now + e.spec.Monitor
	if r.phase != PhaseRunning && r.phase != PhaseStarting {
		return
	}
	if err == "" {
		e.state, e.err = StateRunning, ""
		return
	}
	first := e.state != StateFailed
	e.state, e.err = StateFailed, err
	r.failure = fmt.Sprintf("resource %s failed its monitor: %s", e.spec.ID, err)
	if first {
		e.report = &ResourceState{ID: e.spec.ID, State: StateFailed, Err: err}
	}
}

// overdue gives up an operation that was not answered in time.
func (r *Runner) overdue(e *entry) {
	f := e.op
	switch f.op {
	case OpStart:
		e.op, e.late, e.held = nil, f.seq, false
		r.startFailed(e, fmt.Sprintf("no answer before the group's start timeout of %v passed", r.startTimeout))
	case OpStop:
		e.op, e.again = nil, false
		r.stopFailed(e, fmt.Sprintf("no answer before the group's stop timeout of %v passed", r.stopTimeout))
	case OpMonitor:
		f.overdue = true
		r.monitored(e, fmt.Sprintf("no answer within %v", r.patience(e)))
	}
}

// startFailed notes why a start failed and turns the group round, unless the group or the resource is
// to be stopped anyway.
func (r *Runner) startFailed(e *entry, why string) {
	e.err = why
	if e.dirty {
		e.state = StateFailed
	}
	r.failure = fmt.Sprintf("resource %s failed to start: %s", e.spec.ID, why)
	if r.phase == PhaseStarting && !e.dropped {
		r.stopAll()
		r.undo = true
	}
}

// stopFailed notes why a stop failed. The group rests until Stop is called again: resources below
// the failed one are left alone, since it may still stand on them.
func (r *Runner) stopFailed(e *entry, why string) {
	e.state, e.err = StateFailed, why
	r.failure = fmt.Sprintf("resource %s failed to stop: %s", e.spec.ID, why)
	r.phase, r.undo = PhaseStopFailed, false
	r.startBy, r.stopBy = nil, nil
}

// stopAll turns to stopping; the stop budget begins with the first stop that can be tried.
func (r *Runner) stopAll() {
	r.phase, r.undo = PhaseStopping, false
	r.startBy, r.stopBy = nil, nil
	for _, e := range r.entries {
		e.held = false
	}
}

// busy reports whether a start or a stop is under way: they go one at a time.
func (r *Runner) busy() bool {
	for _, e := range r.entries {
		if e.op != nil && e.op.op != OpMonitor {
			return true
		}
	}
	return false
}

// settled reports whether the group is as its list says: nothing dropped is left, everything is up.
func (r *Runner) settled() bool {
	for _, e := range r.entries {
		if e.dropped || !e.started {
			return false
		}
	}
	return true
}

func (r *Runner) remove(i int) { r.entries = append(r.entries[:i], r.entries[i+1:]...) }

// merge puts a new list in place. Entries that are no longer wanted stay behind the neighbour they
// had, as dropped, while they may run or are owed an answer.
func (r *Runner) merge(specs []Spec) {
	old := r.entries
	var list []*entry
	for _, s := range specs {
		if find(list, s) >= 0 {
			continue
		}
		e := &entry{spec: s, state: StateStopped}
		if i := find(old, s); i >= 0 {
			e = old[i]
			if e.spec.Monitor != s.Monitor {
				e.next = r.now + s.Monitor
			}
			e.spec, e.dropped = s, false
		}
		list = append(list, e)
	}
	for i, e := range old {
		if find(list, e.spec) >= 0 || (!e.dirty && e.op == nil) {
			continue
		}
		e.dropped = true
		at := 0
		for j := i - 1; j >= 0 && at == 0; j-- {
			at = find(list, old[j].spec) + 1
		}
		list = append(list[:at], append([]*entry{e}, list[at:]...)...)
	}
	r.entries = list
}

func find(list []*entry, s Spec) int {
	for i, e := range list {
		if e.spec.ID == s.ID {
			return i
		}
	}
	return -1
}
