// Package ipmi switches a node's power through its BMC: RMCP+ (IPMI 2.0, "lanplus"), configured in
// ipmitool's words, spoken by bougou/go-ipmi behind guards of our own (see DESIGN.md).
package ipmi

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// Device is one BMC. It may be used from many goroutines: calls are carried out one at a time,
// each in a session of its own, so that a BMC with four session slots is never exhausted. The
// exported fields are set before the first call and not changed after.
type Device struct {
	// PollMin and PollMax bound the pause between two readings of the power status: 100 ms, growing
	// to 500 ms. The first reading follows the command at once.
	PollMin, PollMax time.Duration
	// ConfirmGap is the pause between the first "off" and the reading that must agree; 25 ms.
	ConfirmGap time.Duration
	// ResendAfter is how long a command that the BMC accepted is given before it is sent again; 5 s.
	ResendAfter time.Duration
	// CloseWait bounds the logout, which happens after the answer has been given; 1 s.
	CloseWait time.Duration
	// Limit bounds a call whose context has no earlier deadline; 1 min.
	Limit time.Duration

	node     ids.Node
	opts     state.IPMIOpts
	declared func() string
	log      *slog.Logger
	addr     string
	slot     chan struct{} // held by the one call that is being carried out, and by its logout
}

var _ fencing.Device = (*Device)(nil)

// New makes the device of a node from options as [Parse] returns them. declaredUUID is asked in
// each session for the DMI UUID that the node declared ("" if it never did). It opens nothing.
func New(node ids.Node, o state.IPMIOpts, declaredUUID func() string, logger *slog.Logger) *Device {
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	if o.Suite == 0 {
		o.Suite = DefaultSuite
	}
	if o.Privilege == "" {
		o.Privilege = Operator
	}
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	o.Interval = min(o.Interval, maxInterval*time.Second)
	o.Retries = min(max(o.Retries, 0), maxRetries)
	if declaredUUID == nil {
		declaredUUID = func() string { return "" }
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Device{
		PollMin: 100 * time.Millisecond, PollMax: 500 * time.Millisecond, ConfirmGap: 25 * time.Millisecond,
		ResendAfter: 5 * time.Second, CloseWait: time.Second, Limit: time.Minute,
		node: node, opts: o, declared: declaredUUID, log: logger.With("fence", "ipmi", "node", string(node)),
		addr: net.JoinHostPort(o.Host, strconv.Itoa(int(o.Port))), slot: make(chan struct{}, 1),
	}
}

// Describe names the device, for example "ipmi 10.0.0.1:623 as admin".
func (d *Device) Describe() string { return "ipmi " + d.addr + " as " + d.opts.User }

// Close waits until no call and no logout is under way, or until ctx ends, which is its only error.
// The device can be used again afterwards.
func (d *Device) Close(ctx context.Context) error {
	select {
	case d.slot <- struct{}{}:
		<-d.slot
		return nil
	case <-ctx.Done():
		return fmt.Errorf("BMC at %s is still being spoken to: %w", d.addr, ctx.Err())
	}
}

// attempt is what one call has found so far. The worker fills it; the caller takes a copy when the
// worker is done or when time is up, whichever is first.
type attempt struct {
	start time.Time

	mu       sync.Mutex
	rep      fencing.Report
	err      error
	on       bool // the newest reading
	read     bool // there was one
	accepted int  // commands the BMC said OK to
	stage    string
	w        *wire
	power    time.Time // the first power command, or the first reading
	sealed   bool
	done     chan struct{}
}

// update changes the attempt; it reports false, and does nothing, when the caller has gone.
func (a *attempt) update(f func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sealed {
		return false
	}
	f()
	return true
}

// finish sets the outcome.
func (a *attempt) finish(o fencing.Outcome, detail string, err error) {
	a.update(func() { a.rep.Outcome, a.rep.Detail, a.err = o, detail, err })
}

// seal ends the attempt for the caller. From here on the worker can send no power command.
func (a *attempt) seal() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sealed = true
	if a.w != nil {
		a.rep.Sent = a.w.forbid()
	}
	now := time.Now()
	a.rep.Took = now.Sub(a.start)
	if !a.power.IsZero() {
		a.rep.Power = now.Sub(a.power)
	}
}

// do carries out work in a session, in a goroutine of its own, and returns when it has set an
// outcome or when ctx ends. Everything that can hang or panic in the library does so in there. The
// goroutine holds the slot until it is through, so at most one is ever left behind per device.
func (d *Device) do(ctx context.Context, a *attempt, work func(context.Context, *session)) {
	ctx, cancel := context.WithTimeout(ctx, d.Limit)
	a.stage = "waiting for an earlier call to end"
	select {
	case d.slot <- struct{}{}:
	case <-ctx.Done():
		cancel()
		a.seal()
		return
	}
	go func() {
		defer func() { <-d.slot }()
		defer cancel()
		defer d.answer(a)
		s := d.begin(ctx, a)
		if s == nil {
			return
		}
		defer d.end(s)
		defer d.answer(a) // before the logout
		work(ctx, s)
	}()
	select {
	case <-a.done:
	case <-ctx.Done():
	}
	a.seal()
}

// answer releases the caller, and turns a panic of the library into a failure. It is deferred.
func (d *Device) answer(a *attempt) {
	if p := recover(); p != nil {
		d.log.Error("the IPMI library panicked", "bmc", d.addr, "panic", fmt.Sprint(p))
		err := d.fail(KindProtocol, nil, "sent something the IPMI library panicked on; check its firmware")
		a.finish(fencing.OutcomeFailed, err.Error(), err)
	}
	select {
	case <-a.done:
	default:
		close(a.done)
	}
}

// end logs out. A panic of the library here has no caller to tell any more.
func (d *Device) end(s *session) {
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("the IPMI library panicked at logout", "bmc", d.addr, "panic", fmt.Sprint(p))
			s.w.shutdown()
		}
	}()
	s.close()
}

// begin logs in and reads the identity. On failure it sets the outcome and returns nil. On a
// mismatch it logs out and returns nil: nobody gets a session with the wrong machine.
func (d *Device) begin(ctx context.Context, a *attempt) *session {
	a.update(func() { a.stage = "the login" })
	s, err := d.login(ctx, func(w *wire) bool { return a.update(func() { a.w = w }) })
	if err != nil {
		d.failed(ctx, a, err)
		return nil
	}
	a.update(func() { a.rep.Login, a.stage = time.Since(a.start), "the question for its GUID" })
	guid, err := s.guid(ctx)
	if err != nil {
		d.failed(ctx, a, err)
		d.end(s)
		return nil
	}
	declared := d.declared()
	id := s.identity(guid, declared)
	a.update(func() { a.rep.GUID, a.rep.Identity = guid, id })
	if id != fencing.IdentityMismatch {
		return s
	}
	err = d.fail(KindIdentity, nil, "is of machine %s, but %s is %s: nothing was sent; check -H, or say identity: trusted", guid, d.node, shown(declared))
	a.finish(fencing.OutcomeRefused, err.Error(), err)
	d.answer(a)
	d.end(s)
	return nil
}

func shown(uuid string) string {
	if c, err := fencing.CanonicalUUID(uuid); err == nil {
		return c
	}
	return "unknown"
}

// failed sets the outcome of an error: expired when time was up, failed otherwise.
func (d *Device) failed(ctx context.Context, a *attempt, err error) {
	o := fencing.OutcomeFailed
	if over(ctx) {
		o = fencing.OutcomeExpired
	}
	a.finish(o, err.Error(), err)
}

// expired writes the verdict on an attempt that was sealed before it had an outcome.
func (d *Device) expired(a *attempt) {
	other := fencing.OpOn // what it reads if nothing happened
	if a.rep.Op == fencing.OpOn {
		other = fencing.OpOff
	}
	switch {
	case a.accepted > 0 && a.read && a.on == (other == fencing.OpOn):
		a.rep.Outcome = fencing.OutcomeFailed
		a.err = &Error{Kind: KindTimeout, msg: fmt.Sprintf("the BMC said OK to power %s but still reads %s: check %s and the machine by hand", a.rep.Op, other, d.addr)}
	case a.w == nil:
		a.rep.Outcome = fencing.OutcomeExpired
		a.err = d.fail(KindBusy, nil, "was not asked: the time was up while %s", a.stage)
	default:
		a.rep.Outcome = fencing.OutcomeExpired
		if !a.w.facts().heard {
			a.err = d.fail(KindUnreachable, nil, "does not answer; check -H and -p, the cable, and that IPMI over LAN is enabled")
		} else {
			a.err = d.fail(KindTimeout, nil, "answered, but the time was up during %s", a.stage)
		}
	}
	a.rep.Detail = a.err.Error()
}

func (d *Device) attempt(op fencing.Op) *attempt {
	return &attempt{start: time.Now(), rep: fencing.Report{Op: op, Identity: fencing.IdentityUnproven}, done: make(chan struct{})}
}

// Verify logs in, reads the identity and the power status, and logs out. Errors are [Error]; on a
// mismatch the status holds what was read.
func (d *Device) Verify(ctx context.Context) (fencing.Status, error) {
	a := d.attempt("")
	d.do(ctx, a, func(ctx context.Context, s *session) {
		on, err := d.reading(ctx, a, s)
		if err != nil {
			d.failed(ctx, a, err)
			return
		}
		o := fencing.OutcomeOff
		if on {
			o = fencing.OutcomeOn
		}
		a.finish(o, "", nil)
	})
	if a.rep.Outcome == "" {
		d.expired(a)
	}
	return fencing.Status{On: a.on, GUID: a.rep.GUID, Identity: a.rep.Identity, Took: a.rep.Took}, a.err
}

// reading asks for the power status once and notes the answer.
func (d *Device) reading(ctx context.Context, a *attempt, s *session) (bool, error) {
	a.update(func() {
		a.stage = "the question for its power status"
		if a.power.IsZero() {
			a.power = time.Now()
		}
	})
	on, err := s.on(ctx)
	a.update(func() {
		switch {
		case err != nil:
			a.rep.OffReadings = 0
		case on:
			a.on, a.read, a.rep.OffReadings = true, true, 0
		default:
			a.on, a.read = false, true
			a.rep.OffReadings++
		}
	})
	return on, err
}

// Power performs op and reads the result back; see [fencing.Device]. ctx should leave it 10 s or
// more: many machines take 5 s to go off. The gate is asked before each of at most
// [fencing.MaxSent] commands; each command is one packet, which is never repeated on its own.
func (d *Device) Power(ctx context.Context, op fencing.Op, gate fencing.Gate) fencing.Report {
	a := d.attempt(op)
	switch {
	case op != fencing.OpOff && op != fencing.OpOn:
		a.rep.Outcome, a.rep.Detail = fencing.OutcomeRefused, "this power operation is not known: nothing was sent"
		return a.rep
	case gate == nil:
		a.rep.Outcome, a.rep.Detail = fencing.OutcomeRefused, "no gate was given: nothing was sent"
		return a.rep
	}
	d.do(ctx, a, func(ctx context.Context, s *session) { d.switchTo(ctx, a, s, gate) })
	if a.rep.Outcome == "" {
		d.expired(a)
	}
	a.rep.Detail = fencing.ClipDetail(a.rep.Detail)
	return a.rep
}

// switchTo is Power within a session of the right machine.
func (d *Device) switchTo(ctx context.Context, a *attempt, s *session, gate fencing.Gate) {
	op := a.rep.Op
	reached, err := d.settled(ctx, a, s)
	switch {
	case err != nil:
		d.failed(ctx, a, err)
		return
	case reached:
		a.update(func() { a.rep.AlreadyOff = op == fencing.OpOff })
		d.succeed(a, 0)
		return
	}
	a.update(func() { a.power = time.Time{} }) // counted from the first command
	for sent := 0; sent < fencing.MaxSent && ctx.Err() == nil; {
		a.update(func() { a.stage = "the question whether the attempt still stands" })
		if err := gate(ctx); err != nil {
			if ctx.Err() == nil {
				a.finish(fencing.OutcomeRefused, fmt.Sprintf("no %spower command was sent to %s: %v", more(sent), d.addr, err), err)
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		a.update(func() {
			a.stage, a.rep.OffReadings, a.read = "the power command", 0, false
			if a.power.IsZero() {
				a.power = time.Now()
			}
		})
		left, err := s.control(ctx, op)
		if left {
			sent++
		}
		switch k := KindOf(err); {
		case err == nil:
			a.update(func() { a.accepted++ })
		case !left, k == KindPrivilege, k == KindProtocol:
			d.failed(ctx, a, err)
			return
		}
		// Not accepted, or lost on the way: read back all the same, for it may have arrived.
		wait := d.ResendAfter
		if err != nil {
			wait = d.PollMax
		}
		if sent == fencing.MaxSent {
			wait = d.Limit // nothing left to send: watch until time is up
		}
		if d.watch(ctx, a, s, wait) {
			d.succeed(a, sent)
			return
		}
	}
}

func more(sent int) string {
	if sent > 0 {
		return "further "
	}
	return ""
}

// succeed writes the outcome of an operation that was read back.
func (d *Device) succeed(a *attempt, sent int) {
	o, state := fencing.OutcomeOff, "off"
	if a.rep.Op == fencing.OpOn {
		o, state = fencing.OutcomeOn, "on"
	}
	how := fmt.Sprintf("after %d power command(s)", sent)
	if sent == 0 {
		how = "already"
	}
	id := ""
	switch a.rep.Identity {
	case fencing.IdentityUnproven:
		id = "; that it is the BMC of " + string(d.node) + " is not proven"
	case fencing.IdentityTrusted:
		id = "; that it is the BMC of " + string(d.node) + " is the operator's word"
	}
	a.finish(o, fmt.Sprintf("%s reads %s %s%s", d.addr, state, how, id), nil)
}

// settled reports whether the machine is already in the state wanted: on once, or off twice.
func (d *Device) settled(ctx context.Context, a *attempt, s *session) (bool, error) {
	want := a.rep.Op == fencing.OpOn
	on, err := d.reading(ctx, a, s)
	if err != nil || on != want {
		return false, err
	}
	for range fencing.NeedOffReadings - 1 {
		if want {
			break
		}
		if !pause(ctx, d.ConfirmGap) {
			return false, d.fail(KindTimeout, ctx.Err(), "read off once, and the time was up before it was read again")
		}
		if on, err = d.reading(ctx, a, s); err != nil || on {
			return false, err
		}
	}
	return true, nil
}

// watch reads the status until it is as wanted (true), or until wait is over with the machine still
// in the other state, or ctx ends. A reading that fails is not the end: at the moment of power-off
// many BMCs that share the machine's network port lose their link for seconds.
func (d *Device) watch(ctx context.Context, a *attempt, s *session, wait time.Duration) bool {
	end := time.Now().Add(wait)
	gap := d.PollMin
	for ctx.Err() == nil {
		reached, err := d.settled(ctx, a, s)
		if reached {
			return true
		}
		if err == nil && time.Now().After(end) {
			return false
		}
		if !pause(ctx, gap) {
			return false
		}
		gap = min(gap*3/2, d.PollMax)
	}
	return false
}
