package core

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// decideEvery is how often the leader decides when nothing has happened: ages grow by themselves.
const decideEvery = 25 * time.Millisecond

// stepDownEvery is the pause between two offers to hand the leadership over.
const stepDownEvery = 5 * time.Second

// leading is the leader's volatile side. It is made anew with every term.
type leading struct {
	is, ready bool
	readyAt   time.Duration // first applied entry of the term: the Barrier
	settled   time.Duration // the later of readyAt and the last own lateness
	decided   time.Duration
	dirty     bool
	stepped   time.Duration       // when the leadership was last offered to others
	inflight  map[string]uint64   // key -> proposal
	byID      map[uint64]proposal // proposal -> what it was
	renewals  map[ids.Node]Renew  // asked for and not proposed yet
	verifying map[uint64]question
	stands    map[attemptKey]time.Duration // when an attempt was last told that it stands
}

type proposal struct {
	key  string
	push bool
}

type question struct {
	from ids.Node
	ask  Ask
}

// leadership takes in who leads. A new term begins with nothing: no fact, no proposal and no
// verification of an earlier one is believed, and nothing is decided before the Barrier (rule 12).
func (c *Core) leadership(e Leadership) {
	c.leader = e.Leader
	is := e.Leader == c.opt.Self
	if is && c.lead.is && e.Term == c.term {
		return
	}
	c.term = e.Term
	c.lead = leading{is: is, inflight: map[string]uint64{}, byID: map[uint64]proposal{}, renewals: map[ids.Node]Renew{},
		verifying: map[uint64]question{}, stands: map[attemptKey]time.Duration{}, dirty: true}
	c.lastPlan = plan.Plan{}
	if is {
		c.do(Barrier{e.Term})
	}
	for _, r := range c.reports {
		r.ever = false // the new leader is told at once
	}
}

func (c *Core) barrierDone(e BarrierDone) {
	if !c.lead.is || e.Term != c.term || c.lead.ready {
		return
	}
	if !e.OK {
		c.do(Barrier{e.Term})
		return
	}
	c.lead.ready, c.lead.readyAt, c.lead.settled, c.lead.dirty = true, c.now, max(c.now, c.lead.settled), true
}

// propose asks for an entry unless one of the same key is on its way. push tells the followers at once
// that it is committed, instead of with raft's next entry or timeout.
func (c *Core) propose(key string, cmd state.Command, push bool) {
	if _, busy := c.lead.inflight[key]; busy {
		return
	}
	id := c.id()
	c.lead.inflight[key], c.lead.byID[id] = id, proposal{key, push}
	c.do(Propose{id, cmd})
}

func (c *Core) proposed(e Proposed) {
	p, ok := c.lead.byID[e.ID]
	if !ok {
		return
	}
	delete(c.lead.byID, e.ID)
	delete(c.lead.inflight, p.key)
	c.lead.dirty = true
	if e.OK && p.push && len(c.servers) > 1 {
		c.do(Push{})
	}
}

// leaderLoop is what a leader does: grant ticks, shape the cluster, decide.
func (c *Core) leaderLoop() {
	if !c.lead.is || !c.lead.ready {
		return
	}
	c.flushTicks()
	if !c.lead.dirty && c.now-c.lead.decided < decideEvery {
		return
	}
	c.lead.dirty, c.lead.decided = false, c.now
	c.membership()
	c.lastFacts = c.facts()
	c.lastPlan = plan.Decide(c.st, c.lastFacts)
	for _, op := range c.lastPlan.Ops {
		c.propose(op.Key, op.Cmd, true)
	}
	for i := range c.st.Groups {
		if g := &c.st.Groups[i]; g.Phase == state.PhaseStopFailed && g.Owner.Node == c.opt.Self {
			c.stepDown() // nobody fences itself: another leader must
			return
		}
	}
}

// stepDown asks for the leadership to be handed over, and asks again: a transfer may fail, and the group
// that waits for it would wait for ever.
func (c *Core) stepDown() {
	if c.lead.stepped != 0 && c.now-c.lead.stepped < stepDownEvery {
		return
	}
	c.lead.stepped = c.now
	c.do(StepDown{})
}

// flushTicks proposes one entry with every renewal asked for. While one is on its way the next batch
// gathers, so that the log never holds more than it must.
func (c *Core) flushTicks() {
	if len(c.lead.renewals) == 0 {
		return
	}
	if _, busy := c.lead.inflight["tick"]; busy {
		return
	}
	var t state.LeaseTick
	urgent := false
	for _, r := range c.lead.renewals {
		t.Ticks = append(t.Ticks, state.Tick{Inc: r.Inc, K: r.Renewal.K})
		urgent = urgent || c.waits(r.Inc)
	}
	sort.Slice(t.Ticks, func(i, j int) bool { return t.Ticks[i].Inc.Node < t.Ticks[j].Inc.Node })
	c.lead.renewals = map[ids.Node]Renew{}
	c.propose("tick", t, urgent)
}

// waits reports whether an incarnation has a grant that it has not started: its tick is urgent.
func (c *Core) waits(inc ids.Incarnation) bool {
	for i := range c.st.Groups {
		if g := &c.st.Groups[i]; g.Owner == inc && g.Phase == state.PhaseGranted {
			return true
		}
	}
	return false
}

// membership brings raft's configuration to what the log says: every admitted node that speaks is a
// server; voters are added so that an even number of them never lasts (rule 15).
func (c *Core) membership() {
	if len(c.servers) == 0 {
		return
	}
	voters := 0
	known := map[ids.Node]bool{}
	for _, s := range c.servers {
		known[s.Name] = true
		if s.Voter {
			voters++
		}
		if c.st.Node(s.Name) == nil && s.Name != c.opt.Self && len(c.st.Nodes) > 0 {
			c.member(Membership{Name: s.Name, Remove: true})
		}
	}
	var ready []ids.Node
	for i := range c.st.Nodes {
		n := &c.st.Nodes[i]
		p := c.det.Peer(c.now, n.Name)
		here := p.Ever && !p.Silent
		if p.Ever && p.Beat.Start < n.Start && p.Beat.Start != 0 && p.Age+c.timing.Interval < since(c.marks.up, n.Up.Gen, c.now) {
			// Its state directory went back in time: a restored backup must not vote (rule 3). A heartbeat
			// from before the announcement says nothing: the announcement came first, over another way.
			if known[n.Name] {
				c.member(Membership{Name: n.Name, Remove: true})
			}
			continue
		}
		if !known[n.Name] && here {
			c.member(Membership{Name: n.Name})
		}
		if known[n.Name] && here && n.Up.Gen != 0 && !n.Left && p.Beat.Applied+catchUpLag >= c.st.Index && !c.isVoter(n.Name) {
			ready = append(ready, n.Name)
		}
	}
	if len(ready) >= 2 || (len(ready) == 1 && voters%2 == 0) {
		c.member(Membership{Name: ready[0], Voter: true})
	}
}

// catchUpLag is how many entries a non-voter may be behind when it becomes a voter.
const catchUpLag = 64

func (c *Core) isVoter(n ids.Node) bool {
	return slices.ContainsFunc(c.servers, func(s Server) bool { return s.Name == n && s.Voter })
}

// member asks for one change at a time: raft allows no more.
func (c *Core) member(m Membership) {
	for k := range c.lead.inflight {
		if len(k) > 7 && k[:7] == "member/" {
			return
		}
	}
	c.lead.inflight["member/"+string(m.Name)] = 0
	c.do(m)
}

// received takes in a message. Only admitted nodes are listened to.
func (c *Core) received(e Received) {
	if c.st.Node(e.From) == nil {
		return
	}
	switch m := e.Msg; {
	case m.Report != nil:
		c.takeReport(e.From, m.Report.Entry)
	case m.Renew != nil:
		c.takeRenewal(e.From, *m.Renew)
	case m.Renewed != nil:
		if m.Renewed.Inc == c.inc {
			c.own.Granted(m.Renewed.K, m.Renewed.Index)
		}
	case m.Ask != nil:
		c.takeAsk(e.From, *m.Ask)
	case m.Stand != nil:
		c.takeStand(e.From, *m.Stand)
	case len(m.Devices) > 0:
		for _, d := range m.Devices {
			if d.Executor == e.From && len(c.devices) < maxDevices {
				c.putDevice(d)
			}
		}
	}
}

// takeReport proposes what a node says of itself. Only such commands are taken.
func (c *Core) takeReport(from ids.Node, b []byte) {
	if !c.lead.is || !c.lead.ready {
		return
	}
	e, err := state.Decode(b)
	if err != nil {
		return
	}
	if c.speaker(e.Cmd) != from {
		return // a node speaks for itself only
	}
	_, started := e.Cmd.(state.Started)
	push := !started
	c.propose("report/"+string(from)+"/"+string(b), e.Cmd, push)
}

// speaker returns the node that may say a command, or "" for a command that no node reports.
func (c *Core) speaker(cmd state.Command) ids.Node {
	switch cmd := cmd.(type) {
	case state.NodeUp:
		return cmd.Node
	case state.NodeLeave:
		return cmd.Inc.Node
	case state.Started:
		return cmd.Inc.Node
	case state.Released:
		return cmd.Inc.Node
	case state.StartFailed:
		return cmd.Inc.Node
	case state.StopFailed:
		return cmd.Inc.Node
	case state.MonitorFailed:
		return cmd.Inc.Node
	case state.FenceEnd:
		if f := c.st.Fence(cmd.Fence); f != nil {
			for _, a := range f.Attempts {
				if a.N == cmd.N {
					return a.Executor
				}
			}
		}
	}
	return ""
}

// takeRenewal queues a renewal of the newest incarnation of a node that shows that it hears its
// grants; every other gets no tick (rule 12).
func (c *Core) takeRenewal(from ids.Node, r Renew) {
	n := c.st.Node(r.Inc.Node)
	if r.Inc.Node != from || !c.lead.is || !c.lead.ready || n == nil || n.Up != r.Inc || n.Left || c.st.IsCondemned(r.Inc.Node, r.Inc.Boot) {
		return
	}
	if !c.stamps.Hears(c.now, r.Inc, r.Renewal, c.timing.Lease) {
		return
	}
	if old, ok := c.lead.renewals[r.Inc.Node]; ok && old.Inc == r.Inc && old.Renewal.K > r.Renewal.K {
		return
	}
	c.lead.renewals[r.Inc.Node] = r
}

// takeAsk answers an executor only after raft has confirmed, by a round begun now, that this node
// still leads (invariant I6).
func (c *Core) takeAsk(from ids.Node, a Ask) {
	if !c.lead.is || !c.lead.ready || !c.stands(from, a) {
		c.do(Send{from, Message{Stand: &Stand{Nonce: a.Nonce}}})
		return
	}
	if len(c.lead.verifying) > 64 {
		return
	}
	n := c.id()
	c.lead.verifying[n] = question{from, a}
	c.do(Verify{n})
}

// stands reports whether that attempt is open, of that executor, and not given up; and, to switch off,
// whether its fence is open still: once another proof has closed it, the shot would hit a new boot.
func (c *Core) stands(from ids.Node, a Ask) bool {
	f := c.st.Fence(a.Fence)
	if f == nil {
		return false
	}
	for _, t := range f.Attempts {
		if t.N == a.N {
			return t.End == 0 && t.Executor == from && !slices.Contains(c.expired(f), t.N) &&
				(t.Op != fencing.OpOff || f.Open())
		}
	}
	return false
}

func (c *Core) verified(e Verified) {
	q, ok := c.lead.verifying[e.Nonce]
	if !ok {
		return
	}
	delete(c.lead.verifying, e.Nonce)
	yes := e.OK && c.lead.is && c.stands(q.from, q.ask)
	if yes {
		c.lead.stands[attemptKey{q.ask.Fence, q.ask.N}] = c.now
	}
	c.do(Send{q.from, Message{Stand: &Stand{Nonce: q.ask.Nonce, OK: yes}}})
}

func itoa(n uint64) string { return fmt.Sprintf("%d", n) }
