package sim

import (
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
)

// pair is one direction between two nodes on one NIC.
type pair struct {
	from, to ids.Node
	nic      int
}

// netConfig is how the networks behave at large.
type netConfig struct {
	delay, jitter time.Duration
	loss          int // percent of packets
}

// open reports whether a packet gets from one machine to another on a NIC.
func (w *World) open(a, b *machine, i int) bool {
	return a.on && b.on && !a.nics[i].outCut && !b.nics[i].inCut && !a.nics[i].noCarrier && !b.nics[i].noCarrier &&
		!w.blocked[pair{a.name, b.name, i}]
}

// stream reports whether a connection between two machines can live: a NIC on which both directions work.
func (w *World) stream(a, b *machine) bool {
	for i := range a.nics {
		if w.open(a, b, i) && w.open(b, a, i) {
			return true
		}
	}
	return false
}

func (w *World) transit() time.Duration { return w.net.delay + w.between(0, w.net.jitter) }

// beat sends one heartbeat per NIC per peer.
func (p *process) beat() {
	w := p.m.w
	for _, to := range p.beats {
		b := p.c.Content(p.m.clock(), to.peer)
		b.Seq = uint64(p.m.clock())
		o := w.machine(to.peer)
		lost := w.net.loss + p.m.nics[to.nic].loss + o.nics[to.nic].loss
		if !w.open(p.m, o, to.nic) || w.chance(lost) {
			continue
		}
		i := to.nic
		w.after(w.transit(), func() {
			if q := o.proc; q != nil && w.open(p.m, o, i) {
				q.deliver(func() { q.step(core.Beat{Interface: nicName(i), Beat: b}) })
			}
		})
	}
}

// tcp carries something to another node's process, over any link on which both directions work. It is
// lost where there is none, and where the process at the other end ends.
func (w *World) tcp(from, to *machine, do func(q *process)) {
	if !w.stream(from, to) || to.proc == nil {
		return
	}
	d := w.transit()
	if w.chance(w.net.loss) {
		d += w.between(200*time.Millisecond, 600*time.Millisecond) // retransmission
	}
	q := to.proc
	w.after(d, func() {
		if to.proc == q && w.stream(from, to) {
			q.deliver(func() { do(q) })
		}
	})
}

// send is a message of the core to a node, this one included.
func (p *process) send(a core.Send) {
	w := p.m.w
	w.watchSend(p, a)
	if a.To == p.m.name {
		w.after(0, func() { p.deliver(func() { p.step(core.Received{From: p.m.name, Msg: a.Msg}) }) })
		return
	}
	to := w.machine(a.To)
	if to == nil {
		return
	}
	from := p.m.name
	w.tcp(p.m, to, func(q *process) { q.step(core.Received{From: from, Msg: a.Msg}) })
}

// probe looks whose kernel refuses connections: the machine answers and no daemon listens.
func (p *process) probe() {
	w := p.m.w
	for _, o := range w.machines {
		if o == p.m {
			continue
		}
		is := o.on && !o.frozen && o.proc == nil && w.stream(p.m, o)
		if is != p.refused[o.name] {
			p.refused[o.name] = is
			p.step(core.Refused{Peer: o.name, Is: is})
		}
	}
}

// setNIC changes one interface. A pulled cable takes the carrier at both the NIC and its links.
func (m *machine) setNIC(i int, n nic) {
	was := m.nics[i]
	m.nics[i] = n
	if was.noCarrier != n.noCarrier && m.proc != nil {
		p := m.proc
		p.deliver(func() { p.step(core.Carrier{Interface: nicName(i), Up: !n.noCarrier}) })
	}
}

// block cuts or opens one direction between two nodes on every NIC.
func (w *World) block(a, b ids.Node, on bool) {
	for i := range w.machine(a).nics {
		if on {
			w.blocked[pair{a, b, i}] = true
		} else {
			delete(w.blocked, pair{a, b, i})
		}
	}
}
