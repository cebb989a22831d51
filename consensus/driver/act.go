package driver

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/resources"
)

// Bounds on what one action may take.
const (
	proposeTimeout = 5 * time.Second
	memberTimeout  = 5 * time.Second
	sendTimeout    = time.Second
	sendQueue      = 256
)

// do carries out one action. Nothing here blocks the loop except Record, which writes to memory-backed
// storage and must be complete before the next action. It reports whether the driver may go on: what
// cannot be recorded must not be started.
func (d *Driver) do(a core.Action) bool {
	switch a := a.(type) {
	case core.Propose:
		d.propose(a)
	case core.Barrier:
		d.spawn(func() {
			ctx, cancel := context.WithTimeout(d.ctx, proposeTimeout)
			defer cancel()
			d.post(core.BarrierDone{Term: a.Term, OK: d.log.Barrier(ctx) == nil})
		})
	case core.Verify:
		d.spawn(func() {
			ctx, cancel := context.WithTimeout(d.ctx, sendTimeout)
			defer cancel()
			d.post(core.Verified{Nonce: a.Nonce, OK: d.log.VerifyLeader(ctx) == nil})
		})
	case core.Send:
		d.send(a)
	case core.Record:
		if err := d.o.Machine.Record(a.Entries); err != nil {
			d.o.Machine.Fatal(err)
			return false
		}
	case core.Run:
		d.run(a)
	case core.Prepare:
		d.spawn(func() {
			ctx, cancel := context.WithTimeout(d.ctx, sendTimeout)
			defer cancel()
			d.o.Machine.Prepare(ctx, a.Resource)
			<-ctx.Done() // the preparation lives as long as its context
		})
	case core.Power:
		d.power(a)
	case core.GateAnswer:
		d.answerGate(a)
	case core.Membership:
		d.member(a)
	case core.StepDown:
		d.spawn(func() {
			ctx, cancel := context.WithTimeout(d.ctx, proposeTimeout)
			defer cancel()
			if err := d.log.StepDown(ctx); err != nil {
				d.o.Logger.Warn("could not hand over the leadership", "err", err)
			}
		})
	case core.Push:
		d.log.Nudge()
	case core.Kick:
		d.o.Network.Kick()
	case core.Journal:
		d.o.Machine.Journal(a)
	case core.SelfReset:
		d.o.Machine.Reset(a.Why)
	case core.Exit:
		d.o.Machine.Exit(a.Clean)
	}
	return true
}

// spawn runs f in a goroutine that Stop waits for. Their number is bounded by core: one proposal per
// key, one operation per resource, one attempt per fence device.
func (d *Driver) spawn(f func()) {
	d.wg.Add(1)
	go func() {
		defer d.wg.Done()
		f()
	}()
}

func (d *Driver) propose(a core.Propose) {
	b, err := state.Encode(state.Entry{At: d.o.Wall(), Cmd: a.Cmd})
	if err != nil {
		d.o.Logger.Error("an entry could not be encoded", "err", err)
		d.spawn(func() { d.post(core.Proposed{ID: a.ID, Known: true}) })
		return
	}
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(d.ctx, proposeTimeout)
		defer cancel()
		_, _, err := d.log.Propose(ctx, b)
		d.post(core.Proposed{ID: a.ID, OK: err == nil, Known: err == nil || !d.log.Unknown(err)})
	})
}

func (d *Driver) member(a core.Membership) {
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(d.ctx, memberTimeout)
		defer cancel()
		var err error
		switch {
		case a.Remove:
			err = d.log.RemoveServer(ctx, a.Name)
		case a.Voter:
			err = d.log.AddVoter(ctx, a.Name)
		default:
			err = d.log.AddNonvoter(ctx, a.Name)
		}
		if err != nil {
			d.o.Logger.Warn("the set of voters could not be changed", "node", a.Name, "err", err)
		}
		d.post(core.Servers{List: d.log.Servers()})
		d.post(core.MembershipDone{Name: a.Name})
	})
}

// send queues a message. Each peer has one sender and a bounded queue, so that a dead peer delays
// nobody else; when the queue is full the message is lost, as the network may lose it too.
func (d *Driver) send(a core.Send) {
	if a.To == d.o.Core.Self {
		m := a.Msg
		select {
		case d.queue <- func() { d.step(core.Received{From: d.o.Core.Self, Msg: m}) }:
		default:
			d.spawn(func() { d.post(core.Received{From: d.o.Core.Self, Msg: m}) })
		}
		return
	}
	b, err := json.Marshal(a.Msg)
	if err != nil {
		d.o.Logger.Error("a message could not be encoded", "err", err)
		return
	}
	d.mu.Lock()
	q := d.out[a.To]
	if q == nil {
		q = make(chan []byte, sendQueue)
		d.out[a.To] = q
		d.spawn(func() { d.sender(a.To, q) })
	}
	d.mu.Unlock()
	select {
	case q <- b:
	default:
	}
}

func (d *Driver) sender(to ids.Node, q chan []byte) {
	for {
		select {
		case <-d.ctx.Done():
			return
		case b := <-q:
			ctx, cancel := context.WithTimeout(d.ctx, sendTimeout)
			err := d.o.Network.Send(ctx, to, b)
			cancel()
			if err != nil && d.ctx.Err() == nil {
				d.relay(to, b)
			}
		}
	}
}

// relay lets another server deliver what could not be sent: an owner that the leader can only be
// reached from by way of a third node still renews and releases (rule 12).
func (d *Driver) relay(to ids.Node, b []byte) {
	for _, s := range d.log.Servers() {
		if s.Name == to || s.Name == d.o.Core.Self {
			continue
		}
		ctx, cancel := context.WithTimeout(d.ctx, sendTimeout)
		err := d.o.Network.Relay(ctx, s.Name, to, b)
		cancel()
		if err == nil || d.ctx.Err() != nil {
			return
		}
	}
}

func (d *Driver) run(a core.Run) {
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(d.ctx, a.Request.Timeout)
		defer cancel()
		r := resources.Result{Seq: a.Request.Seq, Group: a.Request.Group, Resource: a.Request.Resource, Op: a.Request.Op}
		if err := d.o.Machine.RunResource(ctx, a.Resource, a.Request); err != nil {
			r.Err = err.Error()
		}
		d.post(core.Ran{Serial: a.Serial, Result: r})
	})
}

// errGate is what a fence device hears when a command must not be sent.
var errGate = errors.New("the leader did not say that this attempt stands")

// power runs one attempt. The gate asks core, which asks the leader; a yes holds until a moment on
// this node's clock, and the device's context ends then.
func (d *Driver) power(a core.Power) {
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(d.ctx, a.Deadline+5*time.Second)
		defer cancel()
		var timer *time.Timer
		gate := func(gctx context.Context) error {
			ans, err := d.ask(gctx, a)
			if err != nil {
				return err
			}
			left := ans.Until - d.o.Clock()
			if left <= 0 {
				return errGate
			}
			if timer != nil {
				timer.Stop()
			}
			timer = time.AfterFunc(left, cancel)
			return nil
		}
		rep := d.o.Machine.Power(ctx, a, gate)
		if timer != nil {
			timer.Stop()
		}
		d.post(core.PowerDone{Fence: a.Fence, N: a.N, Report: rep})
	})
}

func (d *Driver) ask(ctx context.Context, a core.Power) (core.GateAnswer, error) {
	ch := make(chan core.GateAnswer, 1)
	d.mu.Lock()
	d.token++
	t := d.token
	d.gates[t] = ch
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.gates, t)
		d.mu.Unlock()
	}()
	d.post(core.GateAsked{Fence: a.Fence, N: a.N, Token: t})
	select {
	case ans := <-ch:
		if !ans.OK {
			return ans, errGate
		}
		return ans, nil
	case <-ctx.Done():
		return core.GateAnswer{}, ctx.Err()
	case <-d.ctx.Done():
		return core.GateAnswer{}, d.ctx.Err()
	}
}

func (d *Driver) answerGate(a core.GateAnswer) {
	d.mu.Lock()
	ch := d.gates[a.Token]
	d.mu.Unlock()
	if ch != nil {
		select {
		case ch <- a:
		default:
		}
	}
}
