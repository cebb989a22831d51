package resources

import (
	"fmt"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// defaultTimeout bounds a start or stop whose timeout was given as zero or less.
const defaultTimeout = time.Minute

// Runner drives one group on one node. It is a state machine: the caller feeds it results and the
// time, and executes the requests that it returns. Times are readings of one monotonic clock with an
// arbitrary zero; one that goes backwards is held at the newest reading seen. A Runner is not safe
// for concurrent use.
//
// The start timeout bounds the ordered start of the whole group and the stop timeout its ordered
// stop. A Runner lives as long as results of it may come: a new Runner numbers its requests anew.
type Runner struct {
	group        ids.Group
	startTimeout time.Duration
	stopTimeout  time.Duration

	now     time.Duration
	seq     uint64
	epoch   ids.Epoch
	phase   Phase
	undo    bool // the stop under way undoes a failed start
	failure string
	entries []*entry // in group order; dropped ones stay in their old place until they are stopped

	// hung holds monitors that a stop overtook and that were never answered, one per resource: they
	// keep further monitors of it away, also after a new start.
	hung map[ids.Resource]uint64

	startBy *time.Duration // end of the start budget, nil while none is running
	stopBy  *time.Duration // end of the stop budget, nil while none is running
	due     *time.Duration // when a step is owed (Update returns no requests)
}

// entry is one resource of the group.
type entry struct {
	spec    Spec
	state   string
	err     string
	adopt   bool // its next start may find it running
	dropped bool // no longer in the group; removed once it is stopped
	dirty   bool // a start was asked for, or it became unknown, since the last verified stop
	started bool // its start went well and no stop was asked for since
	op      *flight
	// late is the number of a start that was given up without an answer: it may still take effect.
	// While it is set no stop counts as proof.
	late uint64
	// held says that a stop went well while late was set: the entry now waits for the answer.
	held bool
	// again says that the stop under way proves nothing: it may have looked before a given-up start,
	// whose answer came meanwhile, took effect. Another must follow.
	again  bool
	next   time.Duration  // when the next monitor is due
	report *ResourceState // monitor failure not yet drained
}

// flight is a request that was not answered yet.
type flight struct {
	seq      uint64
	op       Op
	deadline time.Duration
	overdue  bool // monitors only: counted as failed; it still keeps other monitors away
}

// NewRunner returns a runner for a group in PhaseStopped. Specs whose id occurs twice count once.
// Timeouts of zero or less are taken as one minute.
func NewRunner(group ids.Group, specs []Spec, startTimeout, stopTimeout time.Duration) *Runner {
	if startTimeout <= 0 {
		startTimeout = defaultTimeout
	}
	if stopTimeout <= 0 {
		stopTimeout = defaultTimeout
	}
	r := &Runner{group: group, startTimeout: startTimeout, stopTimeout: stopTimeout, phase: PhaseStopped,
		hung: map[ids.Resource]uint64{}}
	r.merge(specs)
	return r
}

// Start begins the ordered start under an epoch and returns the first request. With adopt, the
// resources may already run (the daemon was restarted) and the executor takes a present one for its
// own. From any phase but PhaseStopped and PhaseStartFailed it does nothing and returns nil.
func (r *Runner) Start(now time.Duration, epoch ids.Epoch, adopt bool) []Request {
	r.clock(now)
	if r.phase != PhaseStopped && r.phase != PhaseStartFailed {
		return nil
	}
	r.epoch, r.failure = epoch, ""
	for _, e := range r.entries {
		e.err, e.adopt = "", adopt
	}
	r.phase, r.startBy = PhaseStarting, after(r.now, r.startTimeout)
	return r.step()
}

// Stop begins the ordered stop, last resource first, from any phase, and returns the first request.
// A start in flight is waited for until its result or its timeout, and then undone. It is idempotent,
// and from PhaseStopFailed it tries again. It ends in PhaseStopped or PhaseStopFailed, also where it
// met the undoing of a failed start (Failure keeps what went wrong).
func (r *Runner) Stop(now time.Duration) []Request {
	r.clock(now)
	r.undo = false
	if r.phase == PhaseStopping {
		return r.step()
	}
	if r.phase == PhaseStopFailed {
		r.failure = "" // what it says is about to be tried again
	}
	r.stopAll()
	return r.step()
}

// MarkUnknown says that nothing is known of what runs, as at the start of a daemon that finds no
// record: every resource counts as possibly running, and only a verified stop of each changes that.
// A resting group goes to PhaseStopFailed ("something may still run"); call Stop next.
func (r *Runner) MarkUnknown(now time.Duration) {
	r.clock(now)
	for _, e := range r.entries {
		e.dirty = true
		e.again = e.again || (e.op != nil && e.op.op == OpStop)
	}
	switch r.phase {
	case PhaseStopped, PhaseStartFailed, PhaseStopFailed:
		for _, e := range r.entries {
			e.state = StateUnknown
		}
		if len(r.entries) > 0 {
			r.phase = PhaseStopFailed
			r.failure = fmt.Sprintf("it is not known what runs of group %s: nothing was verified as stopped yet", r.group)
		}
	}
}

// Done feeds one result and returns what follows. Results that answer no open request are ignored.
func (r *Runner) Done(now time.Duration, res Result) []Request {
	r.clock(now)
	if res.Seq == 0 || (res.Group != "" && res.Group != r.group) {
		return nil
	}
	for id, seq := range r.hung { // at most one matches
		if seq == res.Seq {
			delete(r.hung, id)
			return r.step()
		}
	}
	for _, e := range r.entries {
		switch {
		case e.op != nil && e.op.seq == res.Seq:
			f := e.op
			e.op = nil
			r.answer(e, f, res.Err)
			return r.step()
		case e.late == res.Seq:
			e.late, e.held = 0, false
			e.again = e.op != nil && e.op.op == OpStop
			return r.step()
		}
	}
	return nil
}

// Tick gives up what is overdue and returns what is due: monitors, and whatever an Update owes.
func (r *Runner) Tick(now time.Duration) []Request {
	r.clock(now)
	for _, e := range r.entries {
		if e.op != nil && !e.op.overdue && r.now >= e.op.deadline {
			r.overdue(e)
		}
	}
	return r.step()
}

// Check makes the monitors of a running group due at the latest after d: something happened that they
// may have to see, and their own time may be far off. The requests come from a later Tick.
func (r *Runner) Check(now, d time.Duration) {
	r.clock(now)
	for _, e := range r.entries {
		e.next = min(e.next, r.now+max(d, 0))
	}
}

// Update changes the list of resources. In a running group dropped resources are stopped first, last
// one first, then added ones are started in order; the phase is PhaseStarting until that is done, and
// a failure ends as one of a start or stop does. Unchanged resources are not touched. In a stopped
// group only the list changes. The requests come from the next Tick, which Next calls due at once.
func (r *Runner) Update(now time.Duration, specs []Spec) {
	r.clock(now)
	r.merge(specs)
	switch r.phase {
	case PhaseRunning:
		if !r.settled() {
			r.phase = PhaseStarting
			r.due = after(r.now, 0)
		}
	case PhaseStarting:
		r.startBy = nil
		r.due = after(r.now, 0)
	case PhaseStopping:
		r.due = after(r.now, 0)
	}
}

// Phase says where the group stands.
func (r *Runner) Phase() Phase { return r.phase }

// Failure is the last start, stop or monitor failure in one sentence that names the resource; empty
// if there was none since the last Start, or since a Stop tried a failed stop again.
func (r *Runner) Failure() string { return r.failure }

// Epoch is the epoch of the last Start, zero before the first.
func (r *Runner) Epoch() ids.Epoch { return r.epoch }

// Resources returns the state of every resource in group order, dropped ones that are not stopped
// yet included.
func (r *Runner) Resources() []ResourceState {
	out := make([]ResourceState, 0, len(r.entries))
	for _, e := range r.entries {
		out = append(out, ResourceState{ID: e.spec.ID, State: e.state, Err: e.err})
	}
	return out
}

// MonitorFailures returns the monitor failures since the last call, in group order: each resource
// once per streak of failures.
func (r *Runner) MonitorFailures() []ResourceState {
	var out []ResourceState
	for _, e := range r.entries {
		if e.report != nil {
			out = append(out, *e.report)
			e.report = nil
		}
	}
	return out
}

// Next is the earliest time at which Tick has something to do, or -1 if nothing is scheduled.
func (r *Runner) Next() time.Duration {
	next := time.Duration(-1)
	take := func(d time.Duration) {
		if next < 0 || d < next {
			next = max(d, 0)
		}
	}
	if r.due != nil {
		take(*r.due)
	}
	if r.stopBy != nil {
		take(*r.stopBy)
	}
	for _, e := range r.entries {
		switch {
		case e.op != nil && !e.op.overdue:
			take(e.op.deadline)
		case e.op == nil && r.phase == PhaseRunning && e.spec.Monitor > 0:
			take(e.next)
		}
	}
	return next
}

func (r *Runner) clock(now time.Duration) { r.now = max(r.now, now) }

func after(now, d time.Duration) *time.Duration {
	t := now + d
	return &t
}
