// Package driver carries out what core decides: it owns the one goroutine in which core runs, feeds
// it events and executes its actions through interfaces that the application fills. It decides
// nothing itself.
package driver

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/resources"
)

// Log is the replicated log.
type Log interface {
	// Propose appends an entry and waits for it to be applied here.
	Propose(ctx context.Context, data []byte) (index uint64, result any, err error)
	// Unknown reports whether an error of Propose leaves the outcome open.
	Unknown(err error) bool
	Barrier(ctx context.Context) error
	VerifyLeader(ctx context.Context) error
	// Nudge tells the followers at once what is committed. It waits for nothing.
	Nudge()
	Leader() (ids.Node, uint64)
	Servers() []core.Server
	AddNonvoter(ctx context.Context, n ids.Node) error
	AddVoter(ctx context.Context, n ids.Node) error
	RemoveServer(ctx context.Context, n ids.Node) error
	// StepDown hands the leadership to another voter.
	StepDown(ctx context.Context) error
}

// Network carries messages between nodes.
type Network interface {
	// Send delivers one message; an error says that it may not have arrived.
	Send(ctx context.Context, to ids.Node, msg []byte) error
	// Relay asks another node to deliver a message.
	Relay(ctx context.Context, via, to ids.Node, msg []byte) error
	// Kick sends a heartbeat at once.
	Kick()
	// Refused reports whether a peer's kernel refuses connections while its daemon is gone.
	Refused(n ids.Node) bool
}

// Machine is what the node can do to itself and what it runs.
type Machine interface {
	// RunResource runs one resource operation and returns when it is done.
	RunResource(ctx context.Context, r state.ResourceConfig, req resources.Request) error
	// Prepare lets a resource do the part of a start that claims nothing. It must not block.
	Prepare(ctx context.Context, r state.ResourceConfig)
	// Power runs one power attempt.
	Power(ctx context.Context, p core.Power, gate fencing.Gate) fencing.Report
	// Record stores what may run on this boot, durable against the end of the process.
	Record(entries []core.RunEntry) error
	// Reset ends this machine at once. It does not return in production.
	Reset(why reason.Reason)
	// Fatal ends this process: it cannot go on safely.
	Fatal(err error)
	// Journal tells of something that happened.
	Journal(j core.Journal)
	// Exit says that a clean stop is complete.
	Exit(clean bool)
}

// Options is what New needs.
type Options struct {
	Core    core.Options
	Network Network
	Machine Machine
	Logger  *slog.Logger
	// Clock reads CLOCK_BOOTTIME, Wall the wall clock in ms since 1970.
	Clock func() time.Duration
	Wall  func() int64
}

// TickEvery is how often time passes for core when nothing else happens.
const TickEvery = 20 * time.Millisecond

// lateAfter is the lateness of the loop that restarts its clocks of others.
const lateAfter = 50 * time.Millisecond

// queueLen bounds the events on their way. Beats are dropped when it is full; everything else waits.
const queueLen = 4096

// Driver runs one node.
type Driver struct {
	o     Options
	c     *core.Core
	log   Log
	queue chan func()
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	began atomic.Bool
	// dropped counts beats that found the queue full.
	dropped atomic.Uint64

	mu    sync.Mutex
	out   map[ids.Node]chan []byte
	gates map[uint64]chan core.GateAnswer
	token uint64

	content  atomic.Pointer[heartbeat.Beat]
	lastTick time.Duration
	leader   core.Leadership
	servers  []core.Server
	refused  map[ids.Node]bool
	looked   time.Duration
}

// New makes a driver that is not running yet. Applied and Restored may be called from then on.
func New(o Options) *Driver {
	ctx, stop := context.WithCancel(context.Background())
	d := &Driver{o: o, c: core.New(o.Core), queue: make(chan func(), queueLen), ctx: ctx, stop: stop,
		out: map[ids.Node]chan []byte{}, gates: map[uint64]chan core.GateAnswer{}, refused: map[ids.Node]bool{}}
	return d
}

// SetStart tells core the start counter of the state directory. It must come before Start.
func (d *Driver) SetStart(n uint64) { d.c.SetStart(n) }

// Content is what the next heartbeats carry, at most one tick old. It never blocks.
func (d *Driver) Content() heartbeat.Beat {
	if b := d.content.Load(); b != nil {
		return *b
	}
	return heartbeat.Beat{From: d.o.Core.Self, Boot: d.o.Core.Boot, Session: d.o.Core.Session}
}

// Start begins the loop. log must be open; until then events queue up.
func (d *Driver) Start(log Log) {
	d.log = log
	d.began.Store(true)
	d.lastTick = d.o.Clock()
	d.wg.Add(1)
	go d.loop()
}

// Stop ends the loop and every goroutine the driver began, and waits for them.
func (d *Driver) Stop() {
	d.stop()
	d.wg.Wait()
}

// loop is the only goroutine that touches core.
func (d *Driver) loop() {
	defer d.wg.Done()
	t := time.NewTicker(TickEvery)
	defer t.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case f := <-d.queue:
			d.late()
			f()
		case <-t.C:
			d.late()
			d.lastTick = d.o.Clock()
			d.look()
			d.step(core.Tick{})
		}
	}
}

// late tells core that this process did not run when it should have, before anything else is judged.
func (d *Driver) late() {
	now := d.o.Clock()
	if by := now - d.lastTick - TickEvery; by > lateAfter {
		d.lastTick = now
		d.step(core.Late{By: by})
	}
}

// look polls what has no events of its own: who leads, the servers, whose kernel refuses.
func (d *Driver) look() {
	d.lookLeader()
	now := d.o.Clock()
	if now-d.looked < 200*time.Millisecond {
		return
	}
	d.looked = now
	if s := d.log.Servers(); !equalServers(s, d.servers) {
		d.servers = s
		d.step(core.Servers{List: s})
	}
	for _, s := range d.servers {
		if s.Name == d.o.Core.Self {
			continue
		}
		if is := d.o.Network.Refused(s.Name); is != d.refused[s.Name] {
			d.refused[s.Name] = is
			d.step(core.Refused{Peer: s.Name, Is: is})
		}
	}
}

func (d *Driver) lookLeader() {
	n, term := d.log.Leader()
	if l := (core.Leadership{Leader: n, Term: term}); l != d.leader {
		d.leader = l
		d.step(l)
	}
}

func equalServers(a, b []core.Server) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func (d *Driver) step(ev core.Event) {
	d.trace("in", ev)
	acts := d.c.Step(d.o.Clock(), ev)
	if _, tick := ev.(core.Tick); tick || hasKick(acts) {
		b := d.c.Report(d.o.Clock())
		d.content.Store(&b)
	}
	d.carry(acts)
}

// carry carries out actions in their order, up to one after which this process must not go on.
func (d *Driver) carry(acts []core.Action) {
	for _, a := range acts {
		d.trace("out", a)
		if !d.do(a) {
			d.stop()
			return
		}
	}
}

func hasKick(acts []core.Action) bool {
	return slices.ContainsFunc(acts, func(a core.Action) bool { _, ok := a.(core.Kick); return ok })
}

// post queues an event and waits for room; it gives up when the driver stops.
func (d *Driver) post(ev core.Event) {
	select {
	case d.queue <- func() { d.step(ev) }:
	case <-d.ctx.Done():
	}
}

// Applied takes in a committed entry, in order. It is called by the log's state machine.
func (d *Driver) Applied(a core.Applied) { d.post(a) }

// Restored takes in a snapshot's state.
func (d *Driver) Restored(s state.State) { d.post(core.Restored{State: s}) }

// Poke looks at once who leads.
func (d *Driver) Poke() {
	select {
	case d.queue <- d.lookLeader:
	default:
	}
}

// Beat takes in a heartbeat. It never blocks: a full queue drops it.
func (d *Driver) Beat(b core.Beat) { d.Offer(b) }

// Post takes in any other observation (Carrier, Late, Paths, DeviceChecked, Shutdown).
func (d *Driver) Post(ev core.Event) { d.post(ev) }

// Offer takes in an observation that may be lost when the queue is full. It never blocks.
func (d *Driver) Offer(ev core.Event) {
	select {
	case d.queue <- func() { d.step(ev) }:
	default:
		d.dropped.Add(1)
	}
}

// Message takes in a message from another node.
func (d *Driver) Message(from ids.Node, b []byte) error {
	var m core.Message
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	select {
	case d.queue <- func() { d.step(core.Received{From: from, Msg: m}) }:
		return nil
	case <-d.ctx.Done():
		return d.ctx.Err()
	default:
		return errors.New("this node is too busy")
	}
}

// Do runs f in the loop, with core at rest, and waits for it.
func (d *Driver) Do(ctx context.Context, f func(*core.Core)) error {
	done := make(chan struct{})
	select {
	case d.queue <- func() { f(d.c); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-d.ctx.Done():
		return d.ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-d.ctx.Done():
		return d.ctx.Err()
	}
}
