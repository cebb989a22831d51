package core

import (
	"slices"
	"sort"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/resources"
)

// local is one group on this node, under one epoch.
type local struct {
	serial      uint64
	name        ids.Group
	epoch       ids.Epoch
	held        []state.ResourceConfig
	stopTimeout time.Duration
	start       time.Duration
	runner      *resources.Runner
	// since is when the grant was applied here, or the process started on what the record names: a start
	// needs a renewal sent later, and the lease of what runs counts from it at the earliest.
	since time.Duration
	// mayRun: an earlier process of this boot may have left it running. It holds until every resource
	// was taken over: the runner itself would stop only those that it has got to.
	mayRun bool
	// failed is why taking it over failed, while all of it is stopped, verified.
	failed string
	// grace is the record's word on how long it may run without a grant; zero if it is not of a record.
	grace time.Duration
	// stray: it is stopped only to be sure, before the node announces itself.
	stray bool
	// stopping once begun is finished (rule 14); final: nothing is ever run under this epoch again (rule 4).
	stopping, final bool
	why             reason.Reason
	retryStop       time.Duration
}

func newLocal(name ids.Group, e ids.Epoch, held []state.ResourceConfig, start, stop time.Duration, now time.Duration, mayRun bool) *local {
	var specs []resources.Spec
	for _, r := range held {
		specs = append(specs, resources.Spec{ID: r.ID, Monitor: r.Monitor})
	}
	return &local{name: name, epoch: e, held: held, start: start, stopTimeout: stop, since: now, mayRun: mayRun,
		runner: resources.NewRunner(name, specs, start, stop)}
}

// atRest reports whether nothing of the group runs here, verified.
func (l *local) atRest() bool {
	p := l.runner.Phase()
	return !l.mayRun && (p == resources.PhaseStopped || p == resources.PhaseStartFailed)
}

func (c *Core) names() []ids.Group {
	var out []ids.Group
	for n := range c.groups {
		out = append(out, n)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}

// owner runs what this node owns, and nothing else.
func (c *Core) owner() {
	c.adoptGrants()
	c.renew()
	c.selfStop()
	for _, name := range c.names() {
		l := c.groups[name]
		c.run(l, l.runner.Tick(c.now))
		c.driveGroup(l)
	}
}

// adoptGrants makes a local group of every grant of this very incarnation, and finds the local groups
// that are no longer its own.
func (c *Core) adoptGrants() {
	for i := range c.st.Groups {
		g := &c.st.Groups[i]
		if g.Epoch == 0 || g.Owner != c.inc || c.inc.Gen == 0 {
			continue
		}
		l := c.groups[g.Name]
		if l == nil || (l.epoch != g.Epoch && l.atRest()) {
			c.groups[g.Name] = newLocal(g.Name, g.Epoch, g.Held, g.HeldStart, g.HeldStop, c.now, false)
			for _, r := range g.Held {
				c.do(Prepare{r})
			}
		}
	}
	for _, name := range c.names() {
		l, g := c.groups[name], c.st.Group(name)
		mine := g != nil && g.Epoch == l.epoch && g.Epoch != 0 && g.Owner.SameBoot(c.inc)
		switch {
		case l.stray:
		case mine && g.Phase == state.PhaseRevoked && g.Owner == c.inc && !l.stopping && !l.final:
			c.stop(l, g.Why)
		case mine:
		case l.atRest():
			delete(c.groups, name)
			c.record()
		case c.life >= lifeUp && !l.stopping && !l.final:
			c.stop(l, reason.New(reason.RefusedNotOwner, "node", string(c.opt.Self), "group", string(name), "epoch", itoa(uint64(l.epoch))))
		}
	}
}

// renew keeps the lease while anything is owned or runs, and rests otherwise.
func (c *Core) renew() {
	var newest time.Duration
	need := false
	for _, l := range c.groups {
		if !l.stray && !l.final {
			need = true
			newest = max(newest, l.since)
		}
	}
	if !need || c.inc.Gen == 0 {
		c.own.Rest()
		return
	}
	if c.leader == "" || !(c.own.Due(c.now) || c.own.NeedsFresh(newest)) {
		return
	}
	c.do(Send{c.leader, Message{Renew: &Renew{Inc: c.inc, Renewal: c.own.Send(c.now), Applied: c.st.Index}}})
}

// selfStop begins to stop everything when the lease is about to end (invariant I5).
func (c *Core) selfStop() {
	for _, name := range c.names() {
		l := c.groups[name]
		if l.stray || l.stopping || l.final {
			continue
		}
		by := c.own.StopBy(l.since)
		if l.grace > 0 && c.st.Revision == 0 {
			by = min(by, l.since+l.grace) // the log is not replayed yet: the lease is the one recorded
		}
		if c.now >= by {
			why := reason.New(reason.LeaseLost, "node", string(c.opt.Self))
			c.journal("lease", 0, why, string(name), "")
			c.stop(l, why)
		}
	}
}

// stop begins the ordered stop of a group, once.
func (c *Core) stop(l *local, why reason.Reason) {
	l.stopping, l.why = true, why
	if l.mayRun {
		l.runner.MarkUnknown(c.now)
		l.mayRun = false
	}
	c.run(l, l.runner.Stop(c.now))
}

// driveGroup takes one group one step on.
func (c *Core) driveGroup(l *local) {
	phase := l.runner.Phase()
	g := c.st.Group(l.name)
	switch {
	case l.stray:
		if phase == resources.PhaseStopped {
			delete(c.groups, l.name)
		} else if phase == resources.PhaseStopFailed {
			c.tryStopAgain(l)
		}
	case l.final:
	case l.stopping:
		c.driveStop(l, phase)
	case g == nil || g.Owner != c.inc || g.Epoch != l.epoch:
	case l.mayRun && phase == resources.PhaseStartFailed:
		l.mayRun, l.failed = false, l.runner.Failure()
		l.runner.MarkUnknown(c.now)
		c.run(l, l.runner.Stop(c.now))
	case phase == resources.PhaseStopped && l.failed != "":
		l.final = true
		c.say("group/"+string(l.name), state.StartFailed{Group: l.name, Inc: c.inc, Epoch: l.epoch, Why: l.failed})
	case phase == resources.PhaseStopped:
		if c.life == lifeUp && c.own.MayStart(c.now, l.since, c.st.Index) {
			c.startGroup(l)
		}
	case phase == resources.PhaseStartFailed:
		l.final = true
		c.say("group/"+string(l.name), state.StartFailed{Group: l.name, Inc: c.inc, Epoch: l.epoch, Why: l.runner.Failure()})
	case phase == resources.PhaseStopFailed:
		l.stopping, l.why = true, reason.New(reason.StopFailed, "node", string(c.opt.Self), "group", string(l.name), "why", l.runner.Failure())
		c.driveStop(l, phase)
	case phase == resources.PhaseRunning:
		l.mayRun = false
		if g.Phase == state.PhaseGranted {
			c.say("started/"+string(l.name), state.Started{Group: l.name, Inc: c.inc, Epoch: l.epoch})
		}
	}
	for _, m := range l.runner.MonitorFailures() {
		if !l.stopping && !l.final {
			c.say("monitor/"+string(l.name), state.MonitorFailed{Group: l.name, Inc: c.inc, Epoch: l.epoch, Resource: m.ID, Why: m.Err})
		}
	}
}

// checkSoon looks at everything that runs here once a cable that was pulled has been out for as long
// as a silent node is waited for. Without it a service would wait for its next monitor, several seconds;
// at once, and every short flap of a link would move it.
func (c *Core) checkSoon() {
	for _, name := range c.names() {
		c.groups[name].runner.Check(c.now, c.timing.Dead)
	}
}

// startGroup writes down what may run from now on, and starts it.
func (c *Core) startGroup(l *local) {
	reqs := l.runner.Start(c.now, l.epoch, l.mayRun)
	c.record()
	c.run(l, reqs)
}

// driveStop follows a stop to its end: released, or a stop that failed.
func (c *Core) driveStop(l *local, phase resources.Phase) {
	switch phase {
	case resources.PhaseStopped, resources.PhaseStartFailed:
		l.final = true
		c.record()
		c.say("group/"+string(l.name), state.Released{Group: l.name, Inc: c.inc, Epoch: l.epoch, Why: l.why})
	case resources.PhaseStopFailed:
		c.say("stopfailed/"+string(l.name), state.StopFailed{Group: l.name, Inc: c.inc, Epoch: l.epoch, Why: l.runner.Failure()})
		if end, ok := c.own.Until(); !ok || c.now >= end {
			// It runs without a lease and cannot be stopped: this machine must not live on.
			c.reset = true
			c.do(SelfReset{reason.New(reason.StopFailed, "node", string(c.opt.Self), "group", string(l.name), "why", l.runner.Failure())})
			return
		}
		c.tryStopAgain(l)
	}
}

func (c *Core) tryStopAgain(l *local) {
	if c.now-l.retryStop < time.Second {
		return
	}
	l.retryStop = c.now
	c.run(l, l.runner.Stop(c.now))
}

// record asks for what may run to be written down: every local group that is not verified at rest.
func (c *Core) record() {
	var out []RunEntry
	for _, name := range c.names() {
		if l := c.groups[name]; !l.stray && !l.final && !l.atRest() {
			grace := c.timing.Lease - c.timing.StopBudget
			if l.grace > 0 && c.st.Revision == 0 {
				grace = l.grace
			}
			out = append(out, RunEntry{Group: l.name, Epoch: l.epoch, Held: l.held, Start: l.start, Stop: l.stopTimeout, Grace: grace})
		}
	}
	c.do(Record{out})
}

// run turns the runner's requests into actions.
func (c *Core) run(l *local, reqs []resources.Request) {
	for _, r := range reqs {
		i := slices.IndexFunc(l.held, func(h state.ResourceConfig) bool { return h.ID == r.Resource })
		if i >= 0 {
			if l.serial == 0 {
				l.serial = c.id()
			}
			c.do(Run{Serial: l.serial, Resource: l.held[i], Request: r})
		}
	}
}

func (c *Core) ran(e Ran) {
	if l := c.groups[e.Result.Group]; l != nil && l.serial == e.Serial {
		c.run(l, l.runner.Done(c.now, e.Result))
	}
}
