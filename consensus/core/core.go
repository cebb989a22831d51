// Package core is one node's whole decision making: the leader's loop, the owner's loop, the
// executor of power commands and the life of the node itself, as one pure machine. Step takes an
// event and the time and returns what is to be done; the driver and the simulator carry the same
// actions out. It reads no clock, starts no goroutine and does no I/O.
package core

import (
	"sort"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/lease"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/heartbeat"
)

// Options is what a node knows of itself when its process starts.
type Options struct {
	Self    ids.Node
	Boot    ids.Boot
	Session uint64 // drawn at random by the process; never zero
	Start   uint64 // start counter of the state directory
	UUID    string // DMI product uuid; "" where unreadable
	Version string
	// Now is the time at which the process started; the lease of what the record names counts from it.
	Now time.Duration
	// Record is what the last process on this boot may have left running. HasRecord is false where
	// there is none: then everything configured is stopped, verified, before the node announces itself.
	Record    []RunEntry
	HasRecord bool
}

// Core is one node. It is not safe for concurrent use.
type Core struct {
	opt  Options
	out  []Action
	now  time.Duration
	next uint64 // ids of proposals, nonces and tokens

	st      state.State
	timing  state.Timing
	det     *heartbeat.Detector
	paths   map[ids.Node]bool
	leader  ids.Node
	term    uint64
	servers []Server
	refused map[ids.Node]*refusal

	// The node's own life.
	life    life
	inc     ids.Incarnation // own incarnation; Gen is zero before the own NodeUp was applied
	caught  uint64          // applied index to reach before the node announces itself
	reports map[string]*report
	reset   bool
	leaveAt time.Duration
	restAt  time.Duration // the clean stop: when something was last seen running

	own    lease.Owner
	stamps lease.Stamps
	groups map[ids.Group]*local

	lead      leading
	attempt   map[attemptKey]*attempt
	gates     map[uint64]gate // nonce -> gate waiting for the leader's word
	devices   map[string]plan.DeviceFact
	devSent   time.Duration
	marks     marks
	silent    []ids.Node
	lastPlan  plan.Plan
	lastFacts plan.Facts
}

// life is how far the node has come.
type life int

const (
	lifeCatchUp  life = iota // replaying the log
	lifeCleaning             // stopping strays
	lifeAnnounce             // waiting for its own NodeUp
	lifeUp
	lifeLeaving // waiting to own nothing
	lifeLeft
)

// New returns the core of a process that has just started.
func New(o Options) *Core {
	t, _ := state.Profile("default")
	c := &Core{opt: o, now: o.Now, timing: t, paths: map[ids.Node]bool{}, refused: map[ids.Node]*refusal{},
		reports: map[string]*report{}, groups: map[ids.Group]*local{}, attempt: map[attemptKey]*attempt{},
		gates: map[uint64]gate{}, devices: map[string]plan.DeviceFact{}, marks: newMarks()}
	c.inc = ids.Incarnation{Node: o.Self, Boot: o.Boot}
	c.det = heartbeat.NewDetector(c.detector(), o.Now, nil)
	c.configure()
	for _, e := range o.Record {
		c.groups[e.Group] = newLocal(e.Group, e.Epoch, e.Held, e.Start, e.Stop, o.Now, true)
		c.groups[e.Group].grace = e.Grace
	}
	return c
}

// SetStart sets the start counter of the state directory, which is known only once the store is open.
func (c *Core) SetStart(n uint64) { c.opt.Start = n }

func (c *Core) detector() heartbeat.Config {
	return heartbeat.Config{Interval: c.timing.Interval, Warn: c.timing.Warn, Dead: c.timing.Dead, Session: c.opt.Session}
}

// configure takes over the timing of the state's configuration.
func (c *Core) configure() {
	if c.st.Revision != 0 {
		c.timing = c.st.Config.Timing
	}
	t := c.timing
	c.det.SetConfig(c.detector())
	c.own.SetConfig(lease.Config{Renew: t.Renew, Retry: t.Retry, Lease: t.Lease, Budget: t.StopBudget})
}

// Step takes one event at the given time and returns what is to be done about it. Time never runs
// backwards: an older reading counts as the newest one.
func (c *Core) Step(now time.Duration, ev Event) []Action {
	c.now = max(c.now, now)
	c.out = nil
	if c.reset {
		return c.dead(ev)
	}
	switch e := ev.(type) {
	case Applied:
		c.applied(e)
	case Restored:
		c.restored(e.State)
	case Received:
		c.received(e)
	case Beat:
		c.beat(e)
	case Ran:
		c.ran(e)
	case Proposed:
		c.proposed(e)
	case Leadership:
		c.leadership(e)
	default:
		c.stepOther(ev)
	}
	c.drive()
	out := c.out
	c.out = nil
	return out
}

// dead answers the one question that must not stay open on a boot that is about to be reset, with no.
func (c *Core) dead(ev Event) []Action {
	if g, ok := ev.(GateAsked); ok {
		return []Action{GateAnswer{Token: g.Token}}
	}
	return nil
}

func (c *Core) stepOther(ev Event) {
	switch e := ev.(type) {
	case Carrier:
		c.det.Carrier(c.now, e.Interface, e.Up)
		if !e.Up {
			c.checkSoon()
		}
	case Late:
		c.det.Late(c.now, e.By)
		c.lead.settled = c.now
		c.journal("node", 0, reason.New(reason.LoopLate, "late", ms(e.By), "limit", ms(max(c.timing.Interval/2, 50*time.Millisecond))), string(c.opt.Self), "")
	case Refused:
		c.refusal(e)
	case Servers:
		c.servers = e.List
	case MembershipDone:
		delete(c.lead.inflight, "member/"+string(e.Name))
	case Paths:
		c.setPaths(e.Paths)
	case BarrierDone:
		c.barrierDone(e)
	case Verified:
		c.verified(e)
	case GateAsked:
		c.gateAsked(e)
	case PowerDone:
		c.powerDone(e)
	case DeviceChecked:
		c.deviceChecked(e.Fact)
	case Shutdown:
		if c.life < lifeLeaving {
			c.life, c.leaveAt = lifeLeaving, c.now
		}
	case Tick:
	}
}

// drive runs every loop once, in a fixed order.
func (c *Core) drive() {
	c.links()
	c.condemned()
	if c.reset {
		return // nothing more is done on a boot that must die
	}
	c.live()
	c.owner()
	if c.reset {
		return
	}
	c.execute()
	c.sendDevices()
	c.leaderLoop()
	c.resend()
}

func (c *Core) do(a Action) { c.out = append(c.out, a) }

func (c *Core) id() uint64 {
	c.next++
	return c.next
}

func (c *Core) setPaths(p []heartbeat.Path) {
	c.paths = map[ids.Node]bool{}
	for _, x := range p {
		c.paths[x.Peer] = true
	}
	c.det.SetPaths(c.now, p)
}

func (c *Core) applied(e Applied) {
	c.st = e.State
	c.mark(e)
	if _, ok := e.Entry.Cmd.(state.ConfigSet); ok && e.Result.OK() {
		c.configure()
	}
	if n := c.st.Node(c.opt.Self); n != nil && n.Up.Boot == c.opt.Boot && n.Session == c.opt.Session {
		c.inc = n.Up
	}
	c.explain(e)
	c.lead.dirty = true
}

func (c *Core) restored(s state.State) {
	c.st = s
	c.configure()
	if n := c.st.Node(c.opt.Self); n != nil && n.Up.Boot == c.opt.Boot && n.Session == c.opt.Session {
		c.inc = n.Up
	}
	c.lead.dirty = true
}

// condemned resets the node when its own boot has an intent (invariant I4). An intent of another boot
// is history.
func (c *Core) condemned() {
	if c.st.IsCondemned(c.opt.Self, c.opt.Boot) {
		c.reset = true
		c.do(SelfReset{reason.New(reason.RefusedFenced, "node", string(c.opt.Self))})
	}
}

// links follows the detector and tells of every transition.
func (c *Core) links() {
	for _, ch := range c.det.Tick(c.now) {
		switch ch.To {
		case heartbeat.LinkDead:
			c.journal("link", 0, reason.New(reason.LinkDead, "node", string(ch.Peer), "interface", ch.Interface), string(ch.Peer)+":"+ch.Interface, "")
		case heartbeat.LinkLate:
			c.journal("link", 0, reason.New(reason.LinkLate, "node", string(ch.Peer), "interface", ch.Interface, "age", ms(ch.Age)), string(ch.Peer)+":"+ch.Interface, "")
		default:
			c.journal("link", 0, reason.Reason{}, string(ch.Peer)+":"+ch.Interface, "link "+string(ch.Peer)+":"+ch.Interface+" up")
		}
		c.lead.dirty = true
	}
	was := c.silent
	c.silent = nil
	for _, p := range c.det.Peers(c.now) {
		if p.Silent {
			c.silent = append(c.silent, p.Peer)
			since(c.marks.silent, p.Peer, c.now) // from now on another's word counts, whoever comes to lead
		} else {
			delete(c.marks.silent, p.Peer)
		}
	}
	if !equalNodes(was, c.silent) {
		c.do(Kick{})
		c.lead.dirty = true
	}
}

func equalNodes(a, b []ids.Node) bool {
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

func (c *Core) beat(e Beat) {
	was := c.det.Peer(c.now, e.Beat.From)
	if c.det.Heard(c.now, e.Interface, e.Beat) != heartbeat.Accepted {
		return
	}
	if was.Silent || was.Beat.Boot != e.Beat.Boot || was.Beat.Leaving != e.Beat.Leaving || !equalNodes(was.Beat.Silent, e.Beat.Silent) {
		c.lead.dirty = true
	}
	c.marks.heard(c.st, e.Beat.From, e.Beat.Boot)
	if r := c.refused[e.Beat.From]; r != nil && r.over {
		delete(c.refused, e.Beat.From)
	}
}

// refusal is a peer whose kernel refuses connections, or did and has not been heard since.
type refusal struct {
	at   time.Duration
	over bool // it accepts connections again
}

// refusal notes a peer's refusals. One that accepts connections again has a daemon that has only just
// started: its grace goes on until it is heard, or it would be called lost on the very moment it is back.
func (c *Core) refusal(e Refused) {
	r := c.refused[e.Peer]
	switch p := c.det.Peer(c.now, e.Peer); {
	case e.Is && r == nil:
		c.refused[e.Peer] = &refusal{at: c.now}
	case e.Is:
		r.over = false
	case r != nil && p.Ever && c.now-p.Age > r.at:
		delete(c.refused, e.Peer)
	case r != nil:
		r.over = true
	}
}

// Content is what the next heartbeat to a peer carries. Seq is the caller's.
func (c *Core) Content(now time.Duration, to ids.Node) heartbeat.Beat {
	b := c.Report(now)
	b.Echo = c.det.Echo(max(now, c.now), to)
	return b
}

// Report is what the next heartbeats carry, whoever they go to. Seq and Echo are the caller's.
func (c *Core) Report(now time.Duration) heartbeat.Beat {
	now = max(now, c.now)
	b := heartbeat.Beat{From: c.opt.Self, Boot: c.opt.Boot, Start: c.opt.Start, Gen: c.inc.Gen, Session: c.opt.Session,
		Applied: c.st.Index, LastIndex: c.st.Index, Leaving: c.life >= lifeLeaving, Silent: c.silent}
	for n := range c.refused {
		b.Refused = append(b.Refused, n)
	}
	sort.Slice(b.Refused, func(i, j int) bool { return b.Refused[i] < b.Refused[j] })
	if b.Links = c.det.Links(now); len(b.Links) > heartbeat.MaxLinks {
		b.Links = b.Links[:heartbeat.MaxLinks]
	}
	return b
}

func ms(d time.Duration) string { return d.Round(time.Millisecond).String() }
