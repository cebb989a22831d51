package core

import (
	"sort"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

type attemptKey struct {
	fence uint64
	n     int
}

// attempt is one power attempt that this process executes.
type attempt struct {
	deadline time.Duration
	done     bool
}

// gate is one power command that waits for the leader's word.
type gate struct {
	token uint64
	to    ids.Node // the leader that was asked: only its word counts
	key   attemptKey
	asked time.Duration // before the question was sent: the attempt's deadline counts from here
}

// gateWait bounds the wait for the leader's word.
const gateWait = 2 * time.Second

// execute begins every attempt that names this node and that it has not begun, and gives up on
// questions that nobody answers.
func (c *Core) execute() {
	for i := range c.st.Fences {
		f := &c.st.Fences[i]
		for _, a := range f.Attempts {
			k := attemptKey{f.ID, a.N}
			if a.Executor != c.opt.Self || a.End != 0 || c.attempt[k] != nil || c.leader == "" || c.inc.Gen == 0 {
				continue
			}
			dev := (&state.NodeConfig{Fence: f.Devices}).Device(a.Device)
			if dev == nil || f.Target.Node == c.opt.Self {
				continue
			}
			if a.Begin < c.inc.Gen {
				// An earlier process of this node may have sent the command: only the end of the BMC's
				// session says that it will not strike any more.
				c.attempt[k] = &attempt{done: true}
				c.say("end/"+itoa(f.ID)+"/"+itoa(uint64(a.N)), state.FenceEnd{Fence: f.ID, N: a.N, Report: fencing.Report{Op: a.Op,
					Outcome: fencing.OutcomeExpired, Identity: fencing.IdentityUnproven, Sent: 1, Detail: "its executor was restarted"}})
				continue
			}
			c.attempt[k] = &attempt{deadline: a.Deadline}
			c.do(Power{Fence: f.ID, N: a.N, Node: f.Target.Node, Device: *dev, Op: a.Op, UUID: f.UUID, Deadline: a.Deadline})
		}
	}
	for _, n := range c.gateNonces() {
		if g := c.gates[n]; c.now-g.asked >= gateWait {
			delete(c.gates, n)
			c.do(GateAnswer{Token: g.token})
		}
	}
}

func (c *Core) gateNonces() []uint64 {
	var out []uint64
	for n := range c.gates {
		out = append(out, n)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}

// gateAsked asks the leader, with a nonce, whether the attempt stands. No leader means no.
func (c *Core) gateAsked(e GateAsked) {
	k := attemptKey{e.Fence, e.N}
	if c.leader == "" || c.attempt[k] == nil || c.attempt[k].done || c.reset {
		c.do(GateAnswer{Token: e.Token})
		return
	}
	n := c.id()
	c.gates[n] = gate{token: e.Token, to: c.leader, key: k, asked: c.now}
	c.do(Send{c.leader, Message{Ask: &Ask{Fence: e.Fence, N: e.N, Nonce: n}}})
}

func (c *Core) takeStand(from ids.Node, s Stand) {
	g, ok := c.gates[s.Nonce]
	if !ok || g.to != from {
		return
	}
	delete(c.gates, s.Nonce)
	a := c.attempt[g.key]
	until := g.asked
	if a != nil {
		until += a.deadline
	}
	c.do(GateAnswer{Token: g.token, OK: s.OK && a != nil && !a.done && c.now < until, Until: until})
}

func (c *Core) powerDone(e PowerDone) {
	k := attemptKey{e.Fence, e.N}
	a := c.attempt[k]
	if a == nil || a.done {
		return
	}
	a.done = true
	if e.Report.Check() != nil { // a device room that breaks its own contract proves nothing
		e.Report = fencing.Report{Op: fencing.OpOff, Outcome: fencing.OutcomeFailed, Identity: fencing.IdentityUnproven, Detail: "the fence device's report made no sense"}
	}
	c.say("end/"+itoa(e.Fence)+"/"+itoa(uint64(e.N)), state.FenceEnd{Fence: e.Fence, N: e.N, Report: e.Report})
}

// maxDevices bounds the facts kept of fence devices.
const maxDevices = state.MaxNodes * state.MaxNodes * 4

// devicesEvery is how often the own facts are repeated to the leader.
const devicesEvery = 5 * time.Second

func (c *Core) deviceChecked(d plan.DeviceFact) {
	d.Executor = c.opt.Self
	c.putDevice(d)
	c.devSent = c.now - devicesEvery
	c.lead.dirty = true
}

// putDevice keeps a fact with Age as the moment it was learned; facts() turns that into an age.
func (c *Core) putDevice(d plan.DeviceFact) {
	d.Age = c.now - d.Age
	c.devices[string(d.Executor)+"/"+string(d.Node)+"/"+d.Device] = d
	c.lead.dirty = true
}

// sendDevices tells the leader what this node knows of the fence devices.
func (c *Core) sendDevices() {
	if c.leader == "" || c.leader == c.opt.Self || c.now-c.devSent < devicesEvery {
		return
	}
	c.devSent = c.now
	var m Message
	for _, d := range c.deviceFacts() {
		if d.Executor == c.opt.Self {
			m.Devices = append(m.Devices, d)
		}
	}
	if len(m.Devices) > 0 {
		c.do(Send{c.leader, m})
	}
}

func (c *Core) deviceFacts() []plan.DeviceFact {
	var keys []string
	for k := range c.devices {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var out []plan.DeviceFact
	for _, k := range keys {
		d := c.devices[k]
		d.Age = c.now - d.Age
		out = append(out, d)
	}
	return out
}

// expired lists the attempts of a fence whose deadline, counted from the last moment at which this
// leader or one before it can have said that they stand, and the life of a BMC session are over.
func (c *Core) expired(f *state.Fence) []int {
	var out []int
	for _, a := range f.Attempts {
		if (a.End == 0 || a.MayStrike()) && c.now-c.lastWord(f, a) > a.Deadline+plan.SessionLife {
			out = append(out, a.N)
		}
	}
	return out
}

// overdue lists the open attempts whose deadline is over: another may be tried beside them, although
// they still bar the target's new boot from owning anything (rule 10).
func (c *Core) overdue(f *state.Fence) []int {
	var out []int
	for _, a := range f.Attempts {
		p := c.det.Peer(c.now, a.Executor)
		gone := a.Executor != c.opt.Self && p.Ever && p.Silent
		if a.End == 0 && (gone || c.now-c.lastWord(f, a) > a.Deadline+gateWait) {
			out = append(out, a.N)
		}
	}
	return out
}

func (c *Core) lastWord(f *state.Fence, a state.Attempt) time.Duration {
	k := attemptKey{f.ID, a.N}
	return max(c.marks.begun(k, c.now), c.lead.readyAt, c.lead.stands[k])
}

func (c *Core) peerHeard(n ids.Node) bool {
	p := c.det.Peer(c.now, n)
	return p.Ever && !p.Silent
}
