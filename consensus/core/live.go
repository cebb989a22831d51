package core

import (
	"slices"
	"sort"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// report is a command that this node wants in the log, repeated until its effect shows in the state.
type report struct {
	cmd  state.Command
	sent time.Duration
	ever bool
}

// say wants a command in the log. A report of the same key that is not settled yet stands: it says the
// same thing, and the newest incarnation is put in when it is sent.
func (c *Core) say(key string, cmd state.Command) {
	if _, ok := c.reports[key]; !ok {
		c.reports[key] = &report{cmd: cmd}
	}
}

// resend sends every report that is due to the leader, in order of their keys, and forgets those whose
// effect is there.
func (c *Core) resend() {
	var keys []string
	for k := range c.reports {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		r := c.reports[k]
		if c.settledReport(r.cmd) {
			delete(c.reports, k)
			continue
		}
		if c.leader == "" || (r.ever && c.now-r.sent < c.timing.Retry) {
			continue
		}
		b, err := state.Encode(state.Entry{Cmd: c.asNow(r.cmd)})
		if err != nil {
			delete(c.reports, k) // cannot happen: reports are built here from bounded parts
			continue
		}
		r.sent, r.ever = c.now, true
		c.do(Send{c.leader, Message{Report: &Report{b}}})
	}
}

// asNow puts the newest own incarnation into a report: a second announcement of this process gave it a
// newer generation, and what it has to say is as true as before.
func (c *Core) asNow(cmd state.Command) state.Command {
	switch cmd := cmd.(type) {
	case state.Released:
		cmd.Inc = c.inc
		return cmd
	case state.StartFailed:
		cmd.Inc = c.inc
		return cmd
	case state.Started:
		cmd.Inc = c.inc
		return cmd
	case state.StopFailed:
		cmd.Inc = c.inc
		return cmd
	case state.MonitorFailed:
		cmd.Inc = c.inc
		return cmd
	case state.NodeLeave:
		cmd.Inc = c.inc
		return cmd
	}
	return cmd
}

// settledReport reports whether the state shows the effect of a report, or that it can have none.
func (c *Core) settledReport(cmd state.Command) bool {
	at := func(g ids.Group, e ids.Epoch) *state.Group {
		if gr := c.st.Group(g); gr != nil && gr.Epoch == e && gr.Owner.SameBoot(c.inc) {
			return gr
		}
		return nil
	}
	switch cmd := cmd.(type) {
	case state.Released:
		return at(cmd.Group, cmd.Epoch) == nil
	case state.StartFailed:
		return at(cmd.Group, cmd.Epoch) == nil
	case state.Started:
		g := at(cmd.Group, cmd.Epoch)
		return g == nil || g.Phase != state.PhaseGranted
	case state.StopFailed:
		g := at(cmd.Group, cmd.Epoch)
		return g == nil || g.Phase == state.PhaseStopFailed
	case state.MonitorFailed:
		g := at(cmd.Group, cmd.Epoch)
		return g == nil || (g.Phase != state.PhaseGranted && g.Phase != state.PhaseStarted)
	case state.NodeUp:
		return c.inc.Gen != 0
	case state.NodeLeave:
		n := c.st.Node(cmd.Inc.Node)
		return n == nil || n.Up != c.inc || (n.Leaving && (!cmd.Done || n.Left))
	case state.FenceEnd:
		f := c.st.Fence(cmd.Fence)
		if f == nil {
			return true
		}
		for _, a := range f.Attempts {
			if a.N == cmd.N {
				return a.End != 0
			}
		}
		return true
	}
	return true
}

// live takes the node through its life: catch up, clean up, announce, and at the end leave.
func (c *Core) live() {
	switch c.life {
	case lifeCatchUp:
		if c.caughtUp() {
			c.life = lifeCleaning
			c.cleanUp()
		}
	case lifeCleaning:
		if c.clean() {
			c.life = lifeAnnounce
			c.record() // from now on the record, even an empty one, is the truth about this boot
		}
	case lifeAnnounce:
		if c.inc.Gen != 0 {
			c.life = lifeUp
			return
		}
		if n := c.st.Node(c.opt.Self); n != nil && slices.Contains(n.Past, c.opt.Boot) {
			return // a later boot of this node has announced itself: this one never owns again
		}
		c.say("up", state.NodeUp{Node: c.opt.Self, Boot: c.opt.Boot, Session: c.opt.Session, UUID: c.opt.UUID, Version: c.opt.Version, Start: c.opt.Start})
	case lifeUp:
		// A NodeUp of another process of this node (an old packet that was late) took our place.
		if n := c.st.Node(c.opt.Self); n != nil && n.Up != c.inc {
			c.inc.Gen, c.life = 0, lifeAnnounce
		}
	case lifeLeaving:
		c.leave()
	}
}

// caughtUp reports whether the local state is as new as the leader's was when it was first heard: a
// node never judges what to clean up, nor announces itself, by a stale configuration.
func (c *Core) caughtUp() bool {
	if c.st.Node(c.opt.Self) == nil || c.leader == "" {
		return false
	}
	if c.leader == c.opt.Self {
		return c.lead.ready
	}
	if c.caught == 0 {
		p := c.det.Peer(c.now, c.leader)
		if !p.Ever || p.Silent {
			return false
		}
		c.caught = max(p.Beat.Applied, 1)
	}
	return c.st.Index >= c.caught
}

// cleanUp stops everything that is configured for this node and may have been left running. It is done
// only where no record of this boot exists: a record says exactly what may run (rule 13).
func (c *Core) cleanUp() {
	if c.opt.HasRecord {
		return
	}
	for i := range c.st.Config.Groups {
		g := &c.st.Config.Groups[i]
		if _, ok := c.groups[g.Name]; ok {
			continue
		}
		l := newLocal(g.Name, 0, g.Resources, g.StartTimeout, g.StopTimeout, c.now, true)
		l.stray = true
		c.groups[g.Name] = l
		c.stop(l, reason.New(reason.CleanStop, "node", string(c.opt.Self)))
	}
}

func (c *Core) clean() bool {
	for _, l := range c.groups {
		if l.stray {
			return false
		}
	}
	return true
}

// leave is the clean stop: tell the log, stop everything in order, tell the log again, go. Where the
// log cannot be told within the lease, everything is stopped all the same.
func (c *Core) leave() {
	n := c.st.Node(c.opt.Self)
	// A process that was never announced has nothing to hand over.
	stranger := c.inc.Gen == 0 || n == nil || n.Up != c.inc
	if !stranger && !n.Leaving && c.now-c.leaveAt < c.timing.Lease {
		c.say("leave", state.NodeLeave{Inc: c.inc})
		return
	}
	running := false
	for _, name := range c.names() {
		l := c.groups[name]
		if !l.stopping && !l.final {
			c.stop(l, reason.New(reason.CleanStop, "node", string(c.opt.Self)))
		}
		running = running || !l.atRest()
	}
	if running || c.restAt == 0 {
		c.restAt = c.now
	}
	late := stranger || c.now-c.restAt >= c.timing.Lease // nobody takes what there is to say
	switch {
	case running && c.now-c.leaveAt < c.timing.Lease+c.longestStop():
	case n != nil && n.Left && n.Up == c.inc:
		c.life = lifeLeft
		c.do(Exit{Clean: true})
	case running || late:
		c.life = lifeLeft
		c.do(Exit{Clean: false})
	case len(c.st.Owned(c.opt.Self, c.opt.Boot)) == 0:
		c.say("left", state.NodeLeave{Inc: c.inc, Done: true})
	}
}

func (c *Core) longestStop() time.Duration {
	var d time.Duration
	for _, l := range c.groups {
		d = max(d, l.stopTimeout)
	}
	return d + time.Second
}
