package sim

import (
	"fmt"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/fencing"
)

// bmc is the fence device of one machine. It lives while its cord does.
type bmc struct {
	m       *machine
	guid    string        // what it calls itself
	wires   *machine      // which machine it really switches; nil is its own
	latency time.Duration // of one answer
	act     time.Duration // between a command's answer and its effect
	dead    bool
	lies    string            // "": honest; "ok": it answers and does nothing; "off": its status lies too
	claims  bool              // it claims to be off although it is not
	cut     map[ids.Node]bool // nodes that cannot reach it
}

// sessionLife is how long a session of a BMC outlives its last packet (IPMI 2.0 section 6.12.15).
const sessionLife = 60 * time.Second

func (b *bmc) target() *machine {
	if b.wires != nil {
		return b.wires
	}
	return b.m
}

func (b *bmc) reach(from *machine) bool { return !b.dead && b.m.cord && !b.cut[from.name] }

func (b *bmc) isOn() bool { t := b.target(); return (t.on || t.warm) && !b.claims }

// attemptID names one attempt.
type attemptID struct {
	fence uint64
	n     int
}

// attempt is one power attempt as the driver runs it: log in, read the identity, read the power, ask
// the gate, send, read back twice.
type attempt struct {
	p      *process
	a      core.Power
	b      *bmc
	begun  time.Duration // own clock
	turn   int           // the question under way
	token  uint64
	asked  time.Duration // virtual time of the gate's question
	last   time.Duration // virtual time of the session's last answer
	offs   int
	done   bool
	report fencing.Report
}

// power begins an attempt.
func (p *process) power(a core.Power) {
	w := p.m.w
	at := &attempt{p: p, a: a, b: &w.machine(a.Node).bmc, begun: p.m.clock()}
	at.report = fencing.Report{Op: a.Op, Identity: fencing.IdentityUnproven}
	p.attempts[attemptID{a.Fence, a.N}] = at
	p.later(a.Deadline, func() { at.finish(fencing.OutcomeExpired, "the deadline came first") })
	at.ask(func() {}, at.login)
}

// ask is one question to the BMC; without an answer within four seconds the attempt has failed.
func (at *attempt) ask(do func(), then func()) {
	at.turn++
	n, w, b := at.turn, at.p.m.w, at.b
	half := b.latency/2 + w.between(0, 5*time.Millisecond)
	from := at.p.m
	w.after(half, func() {
		if !b.reach(from) {
			return
		}
		do()
		w.after(half, func() {
			at.p.deliver(func() {
				if at.done || at.turn != n || !b.reach(from) {
					return
				}
				at.last = w.now
				then()
			})
		})
	})
	at.p.later(4*time.Second, func() {
		if !at.done && at.turn == n {
			at.finish(fencing.OutcomeFailed, "the BMC does not answer")
		}
	})
}

// login judges the identity; to another machine nothing is ever sent.
func (at *attempt) login() {
	at.report.Login = at.p.m.clock() - at.begun
	at.report.GUID = at.b.guid
	trusted := at.a.Device.IPMI != nil && at.a.Device.IPMI.TrustIdentity
	switch {
	case fencing.MatchUUID(at.b.guid, at.a.UUID):
		at.report.Identity = fencing.IdentityMatched
	case trusted:
		at.report.Identity = fencing.IdentityTrusted
	case at.b.guid == "" || at.a.UUID == "":
		at.report.Identity = fencing.IdentityUnproven
	default:
		at.report.Identity = fencing.IdentityMismatch
		at.finish(fencing.OutcomeRefused, "the BMC belongs to another machine")
		return
	}
	at.read(true)
}

// read reads the power state: first to see whether a command is needed, then until it is proven.
func (at *attempt) read(first bool) {
	on := false
	at.ask(func() { on = at.b.isOn() }, func() {
		want := at.a.Op == fencing.OpOn
		switch {
		case on == want && at.a.Op == fencing.OpOn:
			at.finish(fencing.OutcomeOn, "on")
		case on == want:
			at.offs++
			at.report.OffReadings = at.offs
			at.report.AlreadyOff = at.report.Sent == 0
			if at.offs >= fencing.NeedOffReadings {
				at.finish(fencing.OutcomeOff, "read off twice")
				return
			}
			at.p.later(100*time.Millisecond, func() { at.read(false) })
		case first:
			at.offs = 0
			at.gate()
		default:
			at.offs, at.report.OffReadings = 0, 0
			at.p.later(200*time.Millisecond, func() { at.read(at.report.Sent == 0) })
		}
	})
}

// gate asks the core immediately before the command.
func (at *attempt) gate() {
	if at.done {
		return
	}
	p := at.p
	p.tokens++
	at.token, at.asked = p.tokens, p.m.w.now
	at.turn++
	p.step(core.GateAsked{Fence: at.a.Fence, N: at.a.N, Token: at.token})
}

func (p *process) gateAnswer(a core.GateAnswer) {
	for _, at := range p.sortedAttempts() {
		if at.token != a.Token || at.done {
			continue
		}
		switch {
		case !a.OK:
			at.finish(fencing.OutcomeRefused, "the leader does not confirm the attempt")
		case p.m.clock() >= a.Until:
			at.finish(fencing.OutcomeExpired, "the answer came too late")
		default:
			p.m.w.checkGate(p, at)
			p.later(p.m.w.between(0, time.Millisecond), at.command)
		}
		return
	}
}

// sortedAttempts is in order of fence and number.
func (p *process) sortedAttempts() []*attempt {
	var out []*attempt
	for _, at := range p.attempts {
		i := len(out)
		for i > 0 && (out[i-1].a.Fence > at.a.Fence || (out[i-1].a.Fence == at.a.Fence && out[i-1].a.N > at.a.N)) {
			i--
		}
		out = append(out[:i], append([]*attempt{at}, out[i:]...)...)
	}
	return out
}

// command sends the power command. It takes effect even if the sender dies meanwhile, as long as the
// BMC's session lives.
func (at *attempt) command() {
	if at.done {
		return
	}
	w, b, session := at.p.m.w, at.b, at.last
	at.report.Sent++
	w.say("%s sends power %s to the BMC of %s (fence %d, attempt %d)", at.p.m.name, at.a.Op, at.a.Node, at.a.Fence, at.a.N)
	at.ask(func() {
		if b.lies != "" {
			b.claims = b.lies == "off" && at.a.Op == fencing.OpOff
			return
		}
		if w.now-session > sessionLife {
			return
		}
		w.after(b.act, func() {
			if !b.reach(at.p.m) || w.now-session > sessionLife {
				return
			}
			t := b.target()
			if at.a.Op == fencing.OpOn {
				if !t.on && !t.warm {
					t.powerOn(w.between(4*time.Second, 10*time.Second))
				}
				return
			}
			w.checkShot(at, t)
			t.powerOff(fmt.Sprintf("its BMC was told so by %s", at.p.m.name))
		})
	}, func() { at.read(false) })
}

// finish reports, once.
func (at *attempt) finish(o fencing.Outcome, detail string) {
	if at.done {
		return
	}
	at.done = true
	at.report.Outcome, at.report.Detail, at.report.Took = o, detail, at.p.m.clock()-at.begun
	if o != fencing.OutcomeOff {
		at.report.OffReadings, at.report.AlreadyOff = 0, false
	}
	at.p.step(core.PowerDone{Fence: at.a.Fence, N: at.a.N, Report: at.report})
}

// checkDevices looks at every fence device that this node may have to use.
func (p *process) checkDevices() {
	w := p.m.w
	for _, o := range w.machines {
		if o == p.m {
			continue
		}
		f := plan.DeviceFact{Executor: p.m.name, Node: o.name, Device: deviceID, OK: o.bmc.reach(p.m)}
		if !f.OK {
			f.Detail = "no answer"
		} else if !fencing.MatchUUID(o.bmc.guid, o.uuid) {
			f.OK, f.Identity, f.Detail = false, string(fencing.IdentityMismatch), "it belongs to another machine"
		}
		p.step(core.DeviceChecked{Fact: f})
	}
}

const deviceID = "ipmi-1"
