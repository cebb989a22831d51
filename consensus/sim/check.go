package sim

import (
	"fmt"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/resources"
)

// watch is what the world notes of one process, to judge its starts and stops by a book-keeping of its
// own. All times are on the machine's clock.
type watch struct {
	born    time.Duration
	sent    map[uint64]time.Duration // renewal -> sent
	granted time.Duration            // sending time of the newest granted renewal
	any     bool                     // one was granted
	up      bool                     // its own NodeUp was applied here
	since   map[ids.Epoch]time.Duration
	stops   map[ids.Group]bool // a stop was asked for since the last start
}

// watchSend notes when a renewal leaves.
func (w *World) watchSend(p *process, a core.Send) {
	if a.Msg.Renew != nil {
		p.watch.sent[a.Msg.Renew.Renewal.K] = p.m.clock()
	}
}

// watchEvent notes what the process has just learned, before it acts on it.
func (w *World) watchEvent(p *process, ev core.Event) {
	switch e := ev.(type) {
	case core.Received:
		if r := e.Msg.Renewed; r != nil && r.Inc.Boot == p.m.boot {
			if at, ok := p.watch.sent[r.K]; ok {
				p.watch.granted, p.watch.any = max(p.watch.granted, at), true
			}
		}
	case core.Applied:
		w.watchState(p, e.State)
	case core.Restored:
		w.watchState(p, e.State)
	}
}

func (w *World) watchState(p *process, st state.State) {
	n := st.Node(p.m.name)
	p.watch.up = n != nil && n.Up.Boot == p.m.boot && n.Session == p.session
	if p.watch.since == nil {
		p.watch.since, p.watch.stops = map[ids.Epoch]time.Duration{}, map[ids.Group]bool{}
	}
	for _, g := range st.Groups {
		if _, ok := p.watch.since[g.Epoch]; !ok && g.Owner.Node == p.m.name && g.Owner.Boot == p.m.boot {
			p.watch.since[g.Epoch] = p.m.clock()
		}
	}
}

// checkRun judges a start when it is asked for: own NodeUp applied, a lease that comes of a renewal sent
// after the grant was applied, and that does not end within the stop budget (invariant I5, rules 4, 5).
func (w *World) checkRun(p *process, a core.Run) {
	g := a.Request.Group
	if p.watch.stops == nil {
		p.watch.since, p.watch.stops = map[ids.Epoch]time.Duration{}, map[ids.Group]bool{}
	}
	if a.Request.Op == resources.OpStop {
		p.watch.stops[g] = true
	}
	if a.Request.Op != resources.OpStart {
		return
	}
	p.watch.stops[g] = false
	t, now := w.timing(), p.m.clock()
	since, ok := p.watch.since[a.Request.Epoch]
	switch {
	case !p.watch.up:
		w.violation("%s starts %s before it applied its own NodeUp", p.m.name, g)
	case !ok:
		w.violation("%s starts %s at epoch %d, which it never saw granted to it", p.m.name, g, a.Request.Epoch)
	case !p.watch.any || p.watch.granted < since:
		w.violation("%s starts %s without a lease that was asked for after the grant", p.m.name, g)
	case now >= p.watch.granted+t.Lease:
		w.violation("%s starts %s after its lease has ended", p.m.name, g)
	}
}

// leaseSlack is how long after its lease a group may run until its stop is asked for.
const leaseSlack = 100 * time.Millisecond

// checkLease finds what runs on a node after its lease without a stop under way (invariant I5).
func (w *World) checkLease(p *process) {
	if p.dead {
		return
	}
	t, now := w.timing(), p.m.clock()
	for _, r := range p.m.sortedRuns() {
		run := p.m.runs[r]
		from := max(p.watch.born, p.watch.since[run.epoch])
		if p.watch.any {
			from = max(from, p.watch.granted)
		}
		if now > from+t.Lease+leaseSlack && !p.watch.stops[run.group] {
			w.violation("%s runs %s %v after its lease has ended and does not stop it", p.m.name, r, now-from-t.Lease)
		}
	}
}

func (m *machine) sortedRuns() []ids.Resource {
	var out []ids.Resource
	for r := range m.runs {
		i := len(out)
		for i > 0 && out[i-1] > r {
			i--
		}
		out = append(out[:i], append([]ids.Resource{r}, out[i:]...)...)
	}
	return out
}

// checkStart judges a start when it takes effect: by the truth, and by the committed log.
func (w *World) checkStart(p *process, a core.Run, cur *running) {
	for _, o := range w.machines {
		if o != p.m && o.on && o.runs[a.Request.Resource] != nil {
			w.violation("TWO OWNERS: %s runs on %s and starts on %s", a.Request.Resource, o.name, p.m.name)
		}
	}
	g := w.ledger.head.Group(a.Request.Group)
	if g == nil || g.Epoch != a.Request.Epoch || g.Owner.Node != p.m.name || g.Owner.Boot != p.m.boot {
		w.violation("%s starts %s at epoch %d and does not own it by the log", p.m.name, a.Request.Group, a.Request.Epoch)
	}
	if cur != nil && cur.group != a.Request.Group {
		w.violation("%s takes %s of group %s over for group %s", p.m.name, a.Request.Resource, cur.group, a.Request.Group)
	}
}

// checkEntry judges a committed entry against the invariants and against the truth.
func (w *World) checkEntry(old, st state.State, index uint64, e state.Entry, r state.Result) {
	for _, v := range append(state.Check(st), state.CheckStep(old, st, e.Cmd)...) {
		w.violation("[%d] %T: %s: %s", index, e.Cmd, v.Rule, v.Text)
	}
	if !r.OK() {
		w.stats.Refused++
		return
	}
	if kind := fmt.Sprintf("%T", e.Cmd); w.traps[kind] != nil {
		w.after(0, w.traps[kind])
		delete(w.traps, kind)
	}
	switch cmd := e.Cmd.(type) {
	case state.Grant:
		w.stats.Grants++
		w.checkCondemned(old, index, cmd.To.Node, cmd.To.Boot, "is granted "+string(cmd.Group))
	case state.NodeUp:
		w.checkCondemned(old, index, cmd.Node, cmd.Boot, "announces itself")
	case state.LeaseTick:
		for _, t := range r.Accepted {
			w.checkCondemned(old, index, t.Inc.Node, t.Inc.Boot, "is given a tick")
		}
	case state.FenceIntent:
		w.stats.Fences++
		if cmd.Operator == "" && len(old.Owned(cmd.Target.Node, cmd.Target.Boot)) == 0 {
			w.violation("[%d] %s is to be fenced and owned nothing", index, cmd.Target.Node)
		}
		if w.gentle && cmd.Operator == "" {
			w.violation("[%d] needless fence of %s: %s", index, cmd.Target.Node, cmd.Reason)
		}
	case state.FenceConfirm:
		f := old.Fence(cmd.Fence)
		if m := w.machine(f.Target.Node); m.on && m.boot == f.Target.Boot {
			w.violation("[%d] %s is declared dead by %s and lives", index, f.Target, cmd.Evidence.Kind)
		}
	case state.Released:
		w.checkReleased(old, index, cmd.Group, cmd.Inc)
	case state.StartFailed:
		w.checkReleased(old, index, cmd.Group, cmd.Inc)
	}
}

// checkCondemned finds a boot that goes on after its intent (invariant I4).
func (w *World) checkCondemned(old state.State, index uint64, n ids.Node, b ids.Boot, what string) {
	if old.IsCondemned(n, b) {
		w.violation("[%d] I4: condemned boot %s %s", index, b, what)
	}
}

// checkReleased holds an owner to its word: nothing of the group runs there.
func (w *World) checkReleased(old state.State, index uint64, name ids.Group, inc ids.Incarnation) {
	m := w.machine(inc.Node)
	if !m.on || m.boot != inc.Boot {
		return
	}
	for _, r := range m.sortedRuns() {
		if m.runs[r].group == name && m.runs[r].epoch == old.Group(name).Epoch {
			w.violation("[%d] %s says that it released %s, and %s runs there", index, inc.Node, name, r)
		}
	}
}

// checkGate judges the word that lets a command go (invariant I6): the intent and the attempt are
// committed, and a quorum round that began after the question has confirmed a leader.
func (w *World) checkGate(p *process, at *attempt) {
	f := w.ledger.head.Fence(at.a.Fence)
	ok := false
	if f != nil {
		for _, x := range f.Attempts {
			ok = ok || (x.N == at.a.N && x.Executor == p.m.name && x.Op == at.a.Op)
		}
	}
	if !ok {
		w.violation("%s may send power %s to %s without a committed attempt", p.m.name, at.a.Op, at.a.Node)
		return
	}
	if at.a.Op == fencing.OpOff && !f.Open() && w.ledger.at[f.Confirmed-1] < at.asked {
		w.violation("%s may power %s off for fence %d, which was closed before it asked", p.m.name, at.a.Node, f.ID)
	}
	for _, m := range w.machines {
		for _, v := range w.verify[m.name] {
			if v.begun >= at.asked {
				return
			}
		}
	}
	w.violation("%s may send power %s to %s and no leader was confirmed by a quorum since it asked", p.m.name, at.a.Op, at.a.Node)
}

// checkShot judges a power-off at the moment it happens: it must hit the boot that was condemned, or
// at least nobody who owns something.
func (w *World) checkShot(at *attempt, t *machine) {
	w.stats.PowerOffs++
	f := w.ledger.head.Fence(at.a.Fence)
	switch {
	case f == nil:
		w.violation("%s is powered off by %s without an intent", t.name, at.p.m.name)
	case t.name != f.Target.Node:
		w.violation("%s is powered off for %s", t.name, f.Target.Node)
	case t.on && t.boot != f.Target.Boot:
		w.say("late shot: boot %s of %s is powered off for %s", t.boot, t.name, f.Target.Boot)
		if len(w.ledger.head.Owned(t.name, t.boot)) > 0 && !w.ledger.head.IsCondemned(t.name, t.boot) {
			w.violation("late shot: %s owns %v and is powered off for its old boot", t.name, w.ledger.head.Owned(t.name, t.boot))
		}
	}
}
