package sim

import (
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// Class is a kind of random schedule.
type Class int

// The classes. A run of a gentle one must see no fence at all.
const (
	ClassAll     Class = iota // every fault
	ClassNone                 // no fault; operators work
	ClassOneNIC               // one NIC of one node at a time; gentle
	ClassGentle               // short cuts between two nodes, short pauses, quick restarts; gentle
	ClassNetwork              // partitions, one-way cuts, loss
	ClassProcess              // kills, pauses, restarts
	ClassPower                // power cuts, cords, slow and lying BMCs
	ClassService              // starts and stops that fail or hang
	classes
)

// Run runs one seed: a random cluster, random faults for a while, then everything heals and must come
// to rest within Settle. The same seed and options give the same result.
func Run(seed uint64, o Options) Result {
	if o.Duration == 0 {
		o.Duration = 90 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 200 * time.Second
	}
	w := newWorld(seed, o)
	w.gentle = o.Class == ClassNone || o.Class == ClassOneNIC || o.Class == ClassGentle
	if !w.gentle && w.chance(30) {
		w.confused = w.between(0, 3*time.Second)
	}
	if w.chance(30) && o.Class != ClassNone {
		w.net.loss = w.rng.IntN(3)
	}
	w.start()
	w.run(w.between(0, 15*time.Second))
	end := w.now + o.Duration
	for w.now < end && len(w.bad) < maxBad {
		w.disturb()
		w.run(w.between(200*time.Millisecond, 8*time.Second))
	}
	w.heal()
	for spent := time.Duration(0); spent < o.Settle && len(w.bad) < maxBad && !(spent > 10*time.Second && w.calm()); spent += 5 * time.Second {
		w.run(5 * time.Second)
	}
	if len(w.bad) < maxBad {
		w.checkAlive()
	}
	return w.result()
}

// SeedOptions derives the shape of the cluster and the class of faults from a seed, so that a range of
// seeds covers all of them.
func SeedOptions(seed uint64) Options {
	o := Options{Class: Class(seed % uint64(classes)), Witness: seed/8%3 == 1, Failback: seed/8%4 == 2, Grow: seed/8%5 == 3,
		Groups: 1 + int(seed/16%3)}
	if seed/8%4 == 1 {
		o.Profile = "default"
	}
	return o
}

// leader returns the newest leader that runs, or nil.
func (w *World) leader() *process {
	var best *process
	for _, m := range w.machines {
		if p := m.proc; p != nil && p.raft != nil && p.raft.role == leading && !p.paused && !m.frozen {
			if best == nil || p.raft.d.term > best.raft.d.term {
				best = p
			}
		}
	}
	return best
}

// operate is an operator's command: it goes to whoever leads, and is lost where nobody does.
func (w *World) operate(cmd state.Command) bool {
	p := w.leader()
	if p == nil {
		w.say("operator: %T: no leader", cmd)
		return false
	}
	w.say("operator: %T%+v", cmd, cmd)
	p.raft.propose(cmd, func(bool, bool) {})
	return true
}

// heal ends every fault, powers everything on and lets the operator undo what he did.
func (w *World) heal() {
	w.say("---- everything heals ----")
	w.blocked = map[pair]bool{}
	w.net.loss, w.res.fail, w.confused = 0, 0, 0
	for _, m := range w.machines {
		m.healHardware()
	}
	w.after(time.Second, w.tidy)
}

func (m *machine) healHardware() {
	for i := range m.nics {
		m.setNIC(i, nic{})
	}
	m.faulty = map[string]string{}
	m.bmc.dead, m.bmc.lies, m.bmc.claims, m.bmc.cut, m.bmc.guid, m.bmc.act, m.bmc.latency = false, "", false, nil, m.uuid, 0, 20*time.Millisecond
	m.cord, m.stays = true, false
	m.thaw()
	if m.proc != nil {
		m.proc.resume()
	}
	if m.on {
		m.startDaemon()
	}
	m.powerOn(time.Second)
}

// tidy undoes standby, stopped groups and failures; it is repeated until it reached a leader.
func (w *World) tidy() {
	if w.leader() == nil {
		w.after(time.Second, w.tidy)
		return
	}
	for _, m := range w.machines {
		if n := w.ledger.head.Node(m.name); n != nil && n.Standby {
			w.operate(state.NodeMode{Node: m.name, Operator: "root"})
		}
		if m.on {
			m.startDaemon()
		}
		m.powerOn(0)
	}
	for _, g := range w.ledger.head.Groups {
		if g.Stopped || len(g.Failures) > 0 {
			w.operate(state.GroupMode{Group: g.Name, Operator: "root"})
		}
	}
	// What was lost on the way to a falling leader, or failed since, is undone a little later.
	if !w.calm() {
		w.after(5*time.Second, w.tidy)
	}
}

// calm reports whether every group runs where the log says, whole, and every node is up.
func (w *World) calm() bool {
	st := w.ledger.head
	if len(st.Groups) == 0 {
		return false
	}
	for i := range st.Groups {
		if w.why(&st.Groups[i]) != "" {
			return false
		}
	}
	for _, m := range w.machines {
		n := st.Node(m.name)
		if m.proc == nil || n == nil || n.Up.Boot != m.boot || n.Left {
			return false
		}
	}
	return true
}

// why says why a group does not run as it should, or nothing.
func (w *World) why(g *state.Group) string {
	m := w.machine(g.Owner.Node)
	switch {
	case g.Epoch == 0:
		return "nobody owns it"
	case m == nil || !m.on || m.boot != g.Owner.Boot:
		return "its owner is gone"
	case g.Phase != state.PhaseStarted:
		return "it is " + string(g.Phase)
	}
	for _, r := range g.Held {
		if m.runs[r.ID] == nil {
			return string(r.ID) + " does not run"
		}
	}
	return ""
}

// checkAlive is the demand on a healed cluster: every group runs, every node is back.
func (w *World) checkAlive() {
	st := w.ledger.head
	if len(st.Groups) != min(w.opt.Groups, 4) {
		w.violation("NOT ALIVE: the log knows %d groups", len(st.Groups))
	}
	for i := range st.Groups {
		if why := w.why(&st.Groups[i]); why != "" {
			w.violation("NOT ALIVE: group %s: %s (%s)", st.Groups[i].Name, why, w.planOf(st.Groups[i].Name))
		}
	}
	for _, m := range w.machines {
		if n := st.Node(m.name); m.proc == nil || n == nil || n.Up.Boot != m.boot || n.Left {
			w.violation("NOT ALIVE: %s is not back (on %t, daemon %t)", m.name, m.on, m.proc != nil)
		}
	}
}

// planOf is the leader's own word on a group.
func (w *World) planOf(g ids.Group) string {
	p := w.leader()
	if p == nil {
		return "no leader"
	}
	for _, v := range p.c.View().Plan.Groups {
		if v.Name == g {
			return v.State + ": " + v.Reason.String()
		}
	}
	return "the leader has no plan"
}
