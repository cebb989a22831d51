package sim

import (
	"fmt"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/resources"
)

// machine is the hardware of one node and what is on its disk.
type machine struct {
	w      *World
	index  int
	name   ids.Node
	role   state.Role
	uuid   string
	ppm    int64 // how much faster its clock runs
	nics   []nic
	on     bool // it runs
	warm   bool // it is between a reset and its next boot: nothing runs, and its power is on
	cord   bool // plugged in
	frozen bool // the whole machine stands still, kernel included
	boots  int
	boot   ids.Boot
	origin time.Duration // virtual time of this boot
	base   time.Duration // clock at origin: arbitrary
	life   int           // rises with every power off: what belongs to an older life is gone
	stays  bool          // a boot is not followed by a start of the daemon

	runs   map[ids.Resource]*running
	faulty map[string]string // "start web" -> fail, hang or late
	record []core.RunEntry   // /run: cleared by a reboot
	hasRec bool
	starts uint64 // start counter in the state directory
	disk   disk
	proc   *process
	bmc    bmc
}

// nic is one interface: what leaves it, what comes in, and the carrier.
type nic struct {
	outCut, inCut, noCarrier bool
	loss                     int // percent
}

// process is one life of the daemon.
type process struct {
	m        *machine
	c        *core.Core
	raft     *server
	session  uint64
	dead     bool
	paused   bool
	since    time.Duration // virtual time of the pause
	inbox    []func()
	beats    []beatTo
	refused  map[ids.Node]bool
	attempts map[attemptID]*attempt
	tokens   uint64
	watch    watch
}

type beatTo struct {
	peer ids.Node
	nic  int
}

// inboxLimit is what socket buffers hold while nobody reads.
const inboxLimit = 4096

func newMachine(w *World, i int) *machine {
	m := &machine{w: w, index: i, name: ids.Node(fmt.Sprintf("node%d", i+1)), role: state.Member, cord: true,
		uuid: fmt.Sprintf("8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a%02x", i+1), nics: make([]nic, 2),
		runs: map[ids.Resource]*running{}, faulty: map[string]string{}}
	if w.opt.Witness && i == 2 {
		m.role = state.Witness
	}
	m.ppm = w.rng.Int64N(4001) - 2000
	m.base = w.between(0, 1000*time.Hour)
	m.bmc = bmc{m: m, guid: m.uuid, latency: 20 * time.Millisecond}
	return m
}

// clock is the machine's monotonic clock: its own zero and its own rate.
func (m *machine) clock() time.Duration {
	d := m.w.now - m.origin
	return m.base + d + time.Duration(int64(d)/1000*m.ppm/1000)
}

// later runs something on this machine's life, after a span of its own clock.
func (m *machine) later(d time.Duration, do func()) {
	life := m.life
	m.w.after(d-time.Duration(int64(d)/1000*m.ppm/1000), func() {
		if m.life == life && m.on {
			do()
		}
	})
}

// powerOn boots the machine after a delay, unless it runs or has no power.
func (m *machine) powerOn(delay time.Duration) {
	life := m.life
	m.w.after(delay, func() {
		if m.on || !m.cord || m.life != life {
			return
		}
		m.on, m.warm, m.frozen = true, false, false
		m.boots++
		m.boot = ids.Boot(fmt.Sprintf("%s-boot-%d", m.name, m.boots))
		m.origin, m.base = m.w.now, m.w.between(0, 1000*time.Hour)
		m.record, m.hasRec = nil, false
		m.w.say("%s boots (%s)", m.name, m.boot)
		if !m.stays {
			m.startDaemon()
		}
	})
}

// powerOff is instant death of everything on the machine.
func (m *machine) powerOff(why string) {
	if m.warm {
		m.warm = false
		m.life++ // the boot that was about to begin is off too
		m.w.say("%s is powered off while it boots: %s", m.name, why)
	}
	if !m.on {
		return
	}
	m.w.say("%s dies: %s", m.name, why)
	m.kill()
	m.on, m.frozen = false, false
	m.life++
	m.runs = map[ids.Resource]*running{}
}

// reset ends everything on the machine and boots it; its power stays on.
func (m *machine) reset(why string) {
	if !m.on {
		return
	}
	m.powerOff(why)
	m.warm = true
	m.powerOn(m.w.between(3*time.Second, 8*time.Second))
}

// kill ends the daemon and leaves what it started alone.
func (m *machine) kill() {
	if m.proc != nil {
		m.proc.dead = true
		m.proc = nil
		m.reprobe()
	}
}

// reprobe makes the others look soon: connections to a dead daemon break at once, and to a new one they
// are made again.
func (m *machine) reprobe() {
	for _, o := range m.w.machines {
		m.w.after(m.w.between(5*time.Millisecond, 60*time.Millisecond), func() {
			if p := o.proc; p != nil && o != m {
				p.deliver(p.probe)
			}
		})
	}
}

// startDaemon starts a process on what this boot and the disk hold.
func (m *machine) startDaemon() {
	if !m.on || m.proc != nil {
		return
	}
	w := m.w
	m.starts++
	p := &process{m: m, session: w.rng.Uint64()>>8 | 1, refused: map[ids.Node]bool{}, attempts: map[attemptID]*attempt{}}
	m.proc = p
	p.c = core.New(core.Options{Self: m.name, Boot: m.boot, Session: p.session, Start: m.starts, UUID: m.uuid, Version: "sim",
		Now: m.clock(), Record: m.record, HasRecord: m.hasRec})
	p.watch = watch{born: m.clock(), sent: map[uint64]time.Duration{}}
	w.say("%s starts picket (record: %t, %d groups)", m.name, m.hasRec, len(m.record))
	p.raft = newServer(p)
	p.deliver(func() {
		p.setPaths()
		p.raft.begin()
		p.checkDevices()
	})
	m.reprobe()
	p.every(25*time.Millisecond, func() { p.step(core.Tick{}); w.checkLease(p) })
	p.every(w.timing().Interval, p.beat)
	p.every(250*time.Millisecond, p.probe)
	p.every(10*time.Second, p.checkDevices)
	p.every(50*time.Millisecond, p.raft.tick)
}

// every repeats something on the process's own clock while it runs; a paused one misses its turns.
func (p *process) every(d time.Duration, do func()) {
	first := p.m.w.between(0, d)
	var turn func()
	turn = func() {
		if p.dead {
			return
		}
		if !p.paused && !p.m.frozen {
			do()
		}
		if !p.dead {
			p.m.later(d, turn)
		}
	}
	p.m.later(first, turn)
}

// deliver hands something to the process: at once, or when it runs again.
func (p *process) deliver(do func()) {
	switch {
	case p.dead:
	case p.paused || p.m.frozen:
		if len(p.inbox) < inboxLimit {
			p.inbox = append(p.inbox, do)
		}
	default:
		do()
	}
}

// later runs something in the process after a span of its own clock.
func (p *process) later(d time.Duration, do func()) {
	p.m.later(d, func() { p.deliver(do) })
}

// pause stops the process (SIGSTOP) or, for a frozen machine, notes since when it stands.
func (p *process) pause() {
	if !p.paused {
		p.paused, p.since = true, p.m.w.now
	}
}

// resume lets it run again: it first notices how late it is, then everything that waited comes at once.
func (p *process) resume() {
	if p.dead || !p.paused {
		return
	}
	p.paused = false
	if p.m.frozen {
		return
	}
	p.step(core.Late{By: p.m.w.now - p.since})
	p.drain()
}

func (p *process) drain() {
	in := p.inbox
	p.inbox = nil
	for _, do := range in {
		p.deliver(do)
	}
}

// freeze and thaw stop the whole machine: its clocks go on, as when a hypervisor is stopped.
func (m *machine) freeze() {
	m.frozen = true
	if m.proc != nil {
		m.proc.since = m.w.now
	}
}

func (m *machine) thaw() {
	if !m.frozen {
		return
	}
	m.frozen = false
	if p := m.proc; p != nil && !p.paused {
		p.step(core.Late{By: m.w.now - p.since})
		p.drain()
	}
}

// step is the only door into the core.
func (p *process) step(ev core.Event) {
	if p.dead || p.paused || p.m.frozen {
		p.deliver(func() { p.step(ev) })
		return
	}
	w := p.m.w
	out := p.c.Step(p.m.clock(), ev)
	if len(out) > 0 {
		w.mark("%s %T %d", p.m.name, ev, len(out))
	}
	w.watchEvent(p, ev)
	for _, a := range out {
		if p.dead {
			return
		}
		p.act(a)
	}
}

// act carries out one action, as the driver does.
func (p *process) act(a core.Action) {
	w := p.m.w
	switch a := a.(type) {
	case core.Propose:
		p.raft.propose(a.Cmd, func(ok, known bool) { p.step(core.Proposed{ID: a.ID, OK: ok, Known: known}) })
	case core.Barrier:
		p.raft.barrier(a.Term)
	case core.Verify:
		p.raft.verifyRound(a.Nonce)
	case core.Send:
		p.send(a)
	case core.Membership:
		p.raft.member(a)
	case core.Record:
		p.m.record, p.m.hasRec = a.Entries, true
	case core.Run:
		p.runOp(a)
	case core.Power:
		p.power(a)
	case core.GateAnswer:
		p.gateAnswer(a)
	case core.Push:
		p.raft.replicate()
	case core.StepDown:
		p.raft.transfer()
	case core.Kick:
		p.deliver(p.beat)
	case core.SelfReset:
		w.say("%s resets itself: %s", p.m.name, a.Why)
		p.m.reset("self-reset")
	case core.Exit:
		w.say("%s: picket exits (clean: %t)", p.m.name, a.Clean)
		p.m.kill()
	case core.Journal:
		w.journal(p, a)
	}
}

// journal puts a line of the product into the story: what the log decided once, what a node saw by name.
func (w *World) journal(p *process, a core.Journal) {
	if a.Index == 0 {
		if !w.quiet || a.Kind != "link" {
			w.say("%s sees: %s", p.m.name, a.Text)
		}
		return
	}
	if !w.told[a.Index] {
		w.told[a.Index] = true
		w.say("[%d] %s", a.Index, a.Text)
	}
}

// setPaths tells the detector which links exist: every NIC towards every other admitted node, or,
// before the log says who that is, towards those that joining told of.
func (p *process) setPaths() {
	var paths []heartbeat.Path
	p.beats = nil
	for _, o := range p.m.w.machines {
		if o == p.m || (len(p.raft.st.Nodes) > 0 && p.raft.st.Node(o.name) == nil) {
			continue
		}
		for i := range p.m.nics {
			paths = append(paths, heartbeat.Path{Peer: o.name, Interface: nicName(i)})
			p.beats = append(p.beats, beatTo{o.name, i})
		}
	}
	p.step(core.Paths{Paths: paths})
}

func nicName(i int) string { return fmt.Sprintf("eth%d", i) }

// running is one resource that runs on a machine.
type running struct {
	group ids.Group
	epoch ids.Epoch
}

// resConfig is how resources behave at large.
type resConfig struct {
	took time.Duration
	fail int // percent of starts that fail
}

// runOp carries out one operation of a resource.
func (p *process) runOp(a core.Run) {
	w, m := p.m.w, p.m
	w.checkRun(p, a)
	took := w.between(time.Millisecond, w.res.took)
	mode := m.faulty[string(a.Request.Op)+" "+string(a.Request.Group)]
	if a.Request.Op == resources.OpStart && w.chance(w.res.fail) {
		mode = "fail"
	}
	answer := func(d time.Duration, err string) {
		p.later(d, func() {
			p.step(core.Ran{Serial: a.Serial, Result: resources.Result{Seq: a.Request.Seq, Group: a.Request.Group, Resource: a.Request.Resource, Op: a.Request.Op, Err: err}})
		})
	}
	switch mode {
	case "fail":
		answer(took, fmt.Sprintf("%s of %s fails in this story", a.Request.Op, a.Request.Resource))
		return
	case "hang":
		answer(a.Request.Timeout, fmt.Sprintf("%s of %s hung", a.Request.Op, a.Request.Resource))
		return
	case "late": // it takes effect and answers long after it was given up
		took = a.Request.Timeout + took*20
	}
	p.later(took, func() { answer(0, p.effect(a)) })
}

// effect is the moment at which an operation changes the machine.
func (p *process) effect(a core.Run) string {
	m, r := p.m, a.Request
	cur := m.runs[r.Resource]
	switch r.Op {
	case resources.OpStart:
		if cur != nil && !r.Adopt {
			return fmt.Sprintf("%s is present already", r.Resource)
		}
		p.m.w.checkStart(p, a, cur)
		m.runs[r.Resource] = &running{r.Group, r.Epoch}
		if cur == nil {
			m.w.stats.Starts++
			m.w.say("%s: %s runs (epoch %d)", m.name, r.Resource, r.Epoch)
		} else {
			m.w.say("%s: %s is taken over as it runs (epoch %d)", m.name, r.Resource, r.Epoch)
		}
	case resources.OpStop:
		if cur != nil {
			m.w.say("%s: %s stops", m.name, r.Resource)
		}
		delete(m.runs, r.Resource)
	case resources.OpMonitor:
		if cur == nil {
			return fmt.Sprintf("%s is not there", r.Resource)
		}
	}
	return ""
}
