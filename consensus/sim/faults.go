package sim

import (
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// any is one machine.
func (w *World) any() *machine { return w.machines[w.rng.IntN(len(w.machines))] }

// other is one machine that is not m.
func (w *World) other(m *machine) *machine {
	return w.machines[(m.index+1+w.rng.IntN(len(w.machines)-1))%len(w.machines)]
}

// disturb does one random thing of the run's class.
func (w *World) disturb() {
	if w.chance(15) {
		w.operatorActs()
		return
	}
	switch w.opt.Class {
	case ClassNone:
		w.operatorActs()
	case ClassOneNIC:
		w.oneNIC()
	case ClassGentle:
		w.gentleFault()
	case ClassNetwork:
		w.networkFault()
	case ClassProcess:
		w.processFault()
	case ClassPower:
		w.powerFault()
	case ClassService:
		w.serviceFault()
	default:
		[]func(){w.networkFault, w.networkFault, w.processFault, w.processFault, w.powerFault, w.powerFault, w.serviceFault, w.gentleFault}[w.rng.IntN(8)]()
	}
}

// oneNIC cuts one NIC of one node, after the last one healed.
func (w *World) oneNIC() {
	for _, m := range w.machines {
		for i := range m.nics {
			m.setNIC(i, nic{})
		}
	}
	w.run(2 * w.timing().Dead)
	m, i := w.any(), w.rng.IntN(2)
	n := []nic{{outCut: true, inCut: true}, {outCut: true}, {inCut: true}, {noCarrier: true}, {loss: 40}}[w.rng.IntN(5)]
	w.say("fault: %s %s %+v", m.name, nicName(i), n)
	m.setNIC(i, n)
}

// gentleFault is something that a cluster must ride out without a fence.
func (w *World) gentleFault() {
	t := w.timing()
	m := w.any()
	switch w.rng.IntN(3) {
	case 0:
		o := w.other(m)
		d := w.between(t.Dead/2, t.Dead+t.Dead/2)
		w.say("fault: %s and %s do not hear each other for %v", m.name, o.name, d)
		w.block(m.name, o.name, true)
		w.block(o.name, m.name, true)
		w.after(d, func() {
			w.say("heal: %s and %s", m.name, o.name)
			w.block(m.name, o.name, false)
			w.block(o.name, m.name, false)
		})
		w.run(d + t.Lost())
	case 1:
		d := w.between(10*time.Millisecond, t.Dead-4*t.Interval)
		w.pauseFor(m, d)
		w.run(d + t.Lost())
	case 2:
		w.say("fault: %s: picket is killed and comes back", m.name)
		m.kill()
		w.after(w.between(100*time.Millisecond, t.RestartGrace-6*t.Interval), m.startDaemon)
		w.run(2 * t.Lost())
	}
}

func (w *World) pauseFor(m *machine, d time.Duration) {
	p := m.proc
	if p == nil || p.paused {
		return
	}
	w.say("fault: %s: picket stands still for %v", m.name, d)
	p.pause()
	w.after(d, p.resume)
}

// long is how long a fault lasts.
func (w *World) long() time.Duration {
	switch w.rng.IntN(3) {
	case 0:
		return w.between(100*time.Millisecond, 2*time.Second)
	case 1:
		return w.between(time.Second, 15*time.Second)
	}
	return w.between(10*time.Second, 90*time.Second)
}

func (w *World) networkFault() {
	m, d := w.any(), w.long()
	o := w.other(m)
	undo := func() {}
	switch w.rng.IntN(6) {
	case 0:
		w.say("fault: %s is cut off for %v", m.name, d)
		n := []nic{{outCut: true, inCut: true}, {outCut: true}, {inCut: true}, {noCarrier: true}}[w.rng.IntN(4)]
		m.setNIC(0, n)
		m.setNIC(1, n)
		undo = func() { m.setNIC(0, nic{}); m.setNIC(1, nic{}) }
	case 1:
		w.say("fault: %s does not reach %s for %v", m.name, o.name, d)
		w.block(m.name, o.name, true)
		undo = func() { w.block(m.name, o.name, false) }
	case 2:
		w.say("fault: %s and %s do not hear each other for %v", m.name, o.name, d)
		w.block(m.name, o.name, true)
		w.block(o.name, m.name, true)
		undo = func() { w.block(m.name, o.name, false); w.block(o.name, m.name, false) }
	case 3:
		w.say("fault: packets are lost for %v", d)
		w.net.loss = 1 + w.rng.IntN(50)
		undo = func() { w.net.loss = 0 }
	case 4:
		w.say("fault: nobody hears anybody for %v", d)
		for _, x := range w.machines {
			x.setNIC(0, nic{outCut: true})
			x.setNIC(1, nic{outCut: true})
		}
		undo = func() {
			for _, x := range w.machines {
				x.setNIC(0, nic{})
				x.setNIC(1, nic{})
			}
		}
	case 5:
		i := w.rng.IntN(2)
		w.say("fault: %s loses %s for %v", m.name, nicName(i), d)
		m.setNIC(i, nic{noCarrier: true})
		undo = func() { m.setNIC(i, nic{}) }
	}
	w.after(d, func() { w.say("heal: network of %s", m.name); undo() })
}

func (w *World) processFault() {
	m, d := w.any(), w.long()
	switch w.rng.IntN(5) {
	case 0:
		if p := w.leader(); p != nil {
			m = p.m // the leader is the most interesting one
		}
		fallthrough
	case 1:
		w.say("fault: %s: picket is killed, for %v", m.name, d)
		m.kill()
		w.after(d, m.startDaemon)
	case 2:
		w.pauseFor(m, d)
	case 3:
		if m.on && !m.frozen {
			w.say("fault: %s stands still, kernel and all, for %v", m.name, d)
			m.freeze()
			w.after(d, m.thaw)
		}
	case 4:
		if p := m.proc; p != nil {
			w.say("fault: %s stops picket cleanly for %v", m.name, d)
			p.deliver(p.shutdown)
			w.after(d+10*time.Second, m.startDaemon)
		}
	}
}

func (w *World) powerFault() {
	m, d := w.any(), w.long()
	b := &m.bmc
	switch w.rng.IntN(9) {
	case 0, 1:
		m.powerOff("power cut")
		if w.chance(50) {
			m.powerOn(d)
		}
	case 2:
		w.say("fault: the cord of %s is pulled for %v", m.name, d)
		m.cord = false
		m.powerOff("cord pulled")
		w.after(d, func() { m.cord = true; m.powerOn(time.Second) })
	case 3:
		m.reset("it reboots")
	case 4:
		w.say("fault: the BMC of %s is slow for %v", m.name, d)
		b.latency, b.act = w.between(time.Second, 3500*time.Millisecond), w.between(0, 20*time.Second)
		w.after(d, func() { b.latency, b.act = 20*time.Millisecond, 0 })
	case 5:
		w.say("fault: the BMC of %s is dead for %v", m.name, d)
		b.dead = true
		w.after(d, func() { b.dead = false })
	case 6:
		w.say("fault: the BMC of %s says OK and does nothing for %v", m.name, d)
		b.lies = "ok"
		w.after(d, func() { b.lies = "" })
	case 7:
		w.say("fault: the BMC address of %s leads to another machine for %v", m.name, d)
		b.guid = w.other(m).uuid
		w.after(d, func() { b.guid = m.uuid })
	case 8:
		o := w.other(m)
		w.say("fault: %s cannot reach the BMC of %s for %v", o.name, m.name, d)
		if b.cut == nil {
			b.cut = map[ids.Node]bool{}
		}
		b.cut[o.name] = true
		w.after(d, func() { delete(b.cut, o.name) })
	}
}

func (w *World) serviceFault() {
	m, d := w.any(), w.long()
	g := groupName(w.rng.IntN(w.opt.Groups))
	what := []string{"start", "start", "stop", "monitor"}[w.rng.IntN(4)] + " " + string(g)
	mode := []string{"fail", "hang", "late"}[w.rng.IntN(3)]
	w.say("fault: on %s, %s will %s for %v", m.name, what, mode, d)
	m.faulty[what] = mode
	w.after(d, func() { delete(m.faulty, what) })
	w.operatorActs()
}

// operatorActs is an ordinary day at the console.
func (w *World) operatorActs() {
	m := w.any()
	g := groupName(w.rng.IntN(w.opt.Groups))
	switch w.rng.IntN(8) {
	case 0, 1, 2:
		w.operate(state.Move{Group: g, To: m.name, Operator: "root"})
	case 3:
		w.operate(state.NodeMode{Node: m.name, Standby: true, Operator: "root"})
		w.after(w.long(), func() { w.operate(state.NodeMode{Node: m.name, Operator: "root"}) })
	case 4:
		w.operate(state.GroupMode{Group: g, Stopped: true, Operator: "root"})
		w.after(w.long(), func() { w.operate(state.GroupMode{Group: g, Operator: "root"}) })
	case 5:
		w.operate(state.Cleanup{Group: g, Operator: "root"})
	case 6:
		if p := m.proc; p != nil && (!w.gentle || w.calm()) {
			w.say("operator: %s stops picket", m.name)
			p.deliver(p.shutdown)
			w.after(w.between(5*time.Second, 40*time.Second), m.startDaemon)
		}
	case 7:
		if n := w.ledger.head.Node(m.name); n != nil && !w.gentle && n.Up.Gen != 0 {
			w.operate(state.FenceIntent{Target: n.Up, Operator: "root", Reason: reason.New(reason.OperatorFence, "why", "drill")})
		}
	}
}

// shutdown is SIGTERM.
func (p *process) shutdown() { p.step(core.Shutdown{}) }
