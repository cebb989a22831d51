package core

import (
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// marks are the moments, on this node's clock, at which it applied what the leader may have to wait
// from. They are volatile: after a restart, or for what came in a snapshot, they begin when they are
// first asked for, which only ever lengthens a wait.
type marks struct {
	intent map[uint64]time.Duration     // fence -> intent applied
	end    map[uint64]time.Duration     // fence -> newest attempt ended
	proof  map[uint64]time.Duration     // fence -> an attempt that read off ended
	begin  map[attemptKey]time.Duration // attempt begun
	revoke map[ids.Group]time.Duration
	grant  map[ids.Node]time.Duration // newest grant, or adoption, of a node
	after  map[uint64]ids.Boot        // fence -> boot of the newest beat since the intent
	silent map[ids.Node]time.Duration // peer -> fell silent here
	up     map[uint64]time.Duration   // generation -> first seen by the leader
}

func newMarks() marks {
	return marks{map[uint64]time.Duration{}, map[uint64]time.Duration{}, map[uint64]time.Duration{}, map[attemptKey]time.Duration{},
		map[ids.Group]time.Duration{}, map[ids.Node]time.Duration{}, map[uint64]ids.Boot{}, map[ids.Node]time.Duration{}, map[uint64]time.Duration{}}
}

func since[K comparable](m map[K]time.Duration, k K, now time.Duration) time.Duration {
	if _, ok := m[k]; !ok {
		m[k] = now
	}
	return now - m[k]
}

func (m *marks) begun(k attemptKey, now time.Duration) time.Duration {
	since(m.begin, k, now)
	return m.begin[k]
}

// heard remembers the newest boot that spoke since each open intent of a node was applied here.
func (m *marks) heard(s state.State, from ids.Node, b ids.Boot) {
	for i := range s.Fences {
		if f := &s.Fences[i]; f.Open() && f.Target.Node == from {
			m.after[f.ID] = b
		}
	}
}

// mark stamps an applied entry.
func (c *Core) mark(e Applied) {
	if !e.Result.OK() {
		return
	}
	switch cmd := e.Entry.Cmd.(type) {
	case state.LeaseTick:
		for _, t := range e.Result.Accepted {
			c.stamps.Applied(c.now, t.Inc, t.K)
			if c.lead.is {
				c.do(Send{t.Inc.Node, Message{Renewed: &Renewed{Inc: t.Inc, K: t.K, Index: e.Index}}})
			}
		}
	case state.FenceIntent:
		c.marks.intent[e.Index] = c.now
	case state.NodeUp:
		c.marks.grant[cmd.Node] = c.now
		if f := c.st.Fence(e.Index); f != nil {
			c.marks.intent[e.Index] = c.now
		}
	case state.FenceBegin:
		c.marks.begin[attemptKey{cmd.Fence, cmd.N}] = c.now
		if cmd.Op == fencing.OpOff {
			c.prepareAhead(cmd.Fence)
		}
	case state.FenceEnd:
		c.marks.end[cmd.Fence] = c.now
		if cmd.Report.Outcome == fencing.OutcomeOff {
			c.marks.proof[cmd.Fence] = c.now
			c.prepareAhead(cmd.Fence)
		}
	case state.Revoke:
		c.marks.revoke[cmd.Group] = c.now
	case state.MonitorFailed:
		c.marks.revoke[cmd.Group] = c.now
	case state.Grant:
		c.marks.grant[cmd.To.Node] = c.now
	}
}

// facts gathers what the planner needs, as values.
func (c *Core) facts() plan.Facts {
	f := plan.Facts{Self: c.opt.Self, Settled: c.now - c.lead.settled, Uptime: c.now - c.opt.Now, Devices: c.deviceFacts()}
	for i := range c.st.Nodes {
		f.Nodes = append(f.Nodes, c.nodeFact(&c.st.Nodes[i]))
	}
	for i := range c.st.Fences {
		fe := &c.st.Fences[i]
		if !fe.Open() && len(fe.Attempts) == 0 {
			continue
		}
		ff := plan.FenceFact{ID: fe.ID, SinceProof: -1, SinceEnd: -1, SinceIntent: since(c.marks.intent, fe.ID, c.now),
			Heard: c.marks.after[fe.ID], Expired: c.expired(fe), Overdue: c.overdue(fe)}
		if fe.Target.Node == c.opt.Self && c.inc.Gen != 0 {
			// Nobody hears itself: a new boot that leads is its own sign of life. Otherwise its groups
			// would be held for as long as it leads.
			ff.Heard = c.opt.Boot
		}
		for _, a := range fe.Attempts {
			if a.End == 0 {
				continue
			}
			ff.SinceEnd = since(c.marks.end, fe.ID, c.now)
			if a.Report.Outcome == fencing.OutcomeOff {
				ff.SinceProof = since(c.marks.proof, fe.ID, c.now)
			}
		}
		f.Fences = append(f.Fences, ff)
	}
	for i := range c.st.Groups {
		if g := &c.st.Groups[i]; g.Phase == state.PhaseRevoked {
			f.Revokes = append(f.Revokes, plan.RevokeFact{Group: g.Name, Age: since(c.marks.revoke, g.Name, c.now)})
		}
	}
	return f
}

func (c *Core) nodeFact(n *state.Node) plan.NodeFact {
	p := c.det.Peer(c.now, n.Name)
	f := plan.NodeFact{Name: n.Name, Ever: p.Ever, Silent: p.Silent, Age: p.Age, Boot: p.Beat.Boot, Refused: c.refused[n.Name] != nil,
		TickAge: -1, Voter: c.isVoter(n.Name)}
	if !p.Silent {
		delete(c.marks.silent, n.Name)
	}
	quiet := time.Duration(0)
	if p.Silent {
		quiet = since(c.marks.silent, n.Name, c.now)
	}
	for _, o := range c.st.Nodes {
		if o.Name == n.Name || o.Name == c.opt.Self || !c.isVoter(o.Name) || !c.peerHeard(o.Name) {
			continue
		}
		q := c.det.Peer(c.now, o.Name)
		says := slices.Contains(q.Beat.Silent, n.Name)
		if p.Silent && says && q.Age <= quiet {
			f.Agreed = true
		}
		if !says {
			f.Others = true
		}
		f.Refused = f.Refused || slices.Contains(q.Beat.Refused, n.Name)
	}
	if age, ok := c.stamps.Age(c.now, n.Name, n.Up.Boot); ok {
		f.TickAge = age
	}
	// An ownership begins without a tick: its own age bounds how old the newest one may seem.
	if at, ok := c.marks.grant[n.Name]; ok && (f.TickAge < 0 || c.now-at < f.TickAge) {
		f.TickAge = c.now - at
	}
	return f
}

// prepareAhead does the part of a start that claims nothing while the fence is still under way, on the
// one node that will most likely be granted the groups: two that probe for one address at the same
// time would each take the other for its holder. A wrong guess costs nothing.
func (c *Core) prepareAhead(fence uint64) {
	f := c.st.Fence(fence)
	if f == nil || !f.Open() || c.life != lifeUp {
		return
	}
	for i := range c.st.Groups {
		g := &c.st.Groups[i]
		if g.Epoch == 0 || !g.Owner.SameBoot(f.Target) || plan.Heir(c.st, g) != c.opt.Self {
			continue
		}
		for _, r := range g.Held {
			c.do(Prepare{r})
		}
	}
}
