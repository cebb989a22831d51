package sim

import (
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// entry is one raft log entry: a command, a configuration, or neither (a term's first entry, a barrier).
type entry struct {
	term    uint64
	index   uint64
	cmd     []byte // encoded, as on disk
	servers []core.Server
}

// disk is what raft keeps across a restart of the process.
type disk struct {
	term      uint64
	snapIndex uint64
	snapTerm  uint64
	snapState []byte
	snapConf  []core.Server
	log       []entry // log[i].index == snapIndex+1+i
}

type role int

const (
	follower role = iota
	leading
)

// pending is a proposal that waits for its outcome.
type pending struct {
	term   uint64
	answer func(ok, known bool)
}

type round struct {
	nonce uint64
	begun time.Duration
	term  uint64
	n     uint64
	acks  map[ids.Node]bool
}

// server is raft's volatile side. Elections are made by the world in one instant, out of the voters
// that can talk, never for a candidate whose log is behind a majority's; replication goes by messages.
// So leaders are complete, deposed leaders cannot commit, and an entry that was under way when its
// leader fell may come back or not.
type server struct {
	p        *process
	d        *disk
	st       state.State
	commit   uint64
	applied  uint64
	role     role
	leader   ids.Node
	contact  time.Duration // last word of a leader, in virtual time
	patience time.Duration
	next     map[ids.Node]uint64
	match    map[ids.Node]uint64
	heard    map[ids.Node]time.Duration // last answer of a follower in this term
	wait     map[uint64]pending         // index -> who waits
	rounds   []*round
	roundN   uint64
	conf     []core.Server
	beatAt   time.Duration
}

func newServer(p *process) *server {
	d := &p.m.disk
	s := &server{p: p, d: d, applied: d.snapIndex, commit: d.snapIndex, contact: p.m.w.now, wait: map[uint64]pending{}}
	s.patience = s.draw()
	return s
}

// draw is one election timeout, on top of the heartbeat timeout.
func (s *server) draw() time.Duration {
	t := s.p.m.w.timing()
	return t.RaftHeartbeat + s.p.m.w.between(0, t.RaftElection)
}

// begin restores the snapshot and tells the core what raft knows at the start.
func (s *server) begin() {
	if s.d.snapIndex > 0 {
		st, err := state.DecodeState(s.d.snapState)
		if err != nil {
			s.p.m.w.violation("snapshot of %s does not decode: %v", s.p.m.name, err)
			return
		}
		s.st = st
		s.p.step(core.Restored{State: st})
	}
	s.configure()
}

func (s *server) last() (index, term uint64) {
	if n := len(s.d.log); n > 0 {
		return s.d.log[n-1].index, s.d.log[n-1].term
	}
	return s.d.snapIndex, s.d.snapTerm
}

// termAt returns the term of a stored entry; false where it was compacted or is not there.
func (s *server) termAt(i uint64) (uint64, bool) {
	switch {
	case i == s.d.snapIndex:
		return s.d.snapTerm, true
	case i < s.d.snapIndex || i > s.d.snapIndex+uint64(len(s.d.log)):
		return 0, false
	}
	return s.d.log[i-s.d.snapIndex-1].term, true
}

// configure takes over the newest configuration in the log, committed or not, as raft does.
func (s *server) configure() {
	conf := s.d.snapConf
	for i := len(s.d.log) - 1; i >= 0; i-- {
		if s.d.log[i].servers != nil {
			conf = s.d.log[i].servers
			break
		}
	}
	if slices.Equal(conf, s.conf) {
		return
	}
	s.conf = conf
	s.p.step(core.Servers{List: slices.Clone(conf)})
}

func voters(conf []core.Server) []ids.Node {
	var out []ids.Node
	for _, v := range conf {
		if v.Voter {
			out = append(out, v.Name)
		}
	}
	return out
}

func (s *server) isVoter() bool { return slices.Contains(voters(s.conf), s.p.m.name) }

// tick watches the leader's silence, or, as the leader, its followers'.
func (s *server) tick() {
	w := s.p.m.w
	if s.role == leading {
		if w.now-s.beatAt >= w.timing().RaftHeartbeat/4 {
			s.beatAt = w.now
			s.replicate()
		}
		s.lease()
		return
	}
	if w.now-s.contact < s.patience {
		return
	}
	s.patience = s.draw()
	if s.leader != "" {
		s.leader = ""
		s.p.step(core.Leadership{Term: s.d.term})
	}
	if !s.p.dead && s.isVoter() && w.chance(80) {
		s.campaign(false)
	}
	s.contact = w.now
}

// lease makes a leader without a majority give up, after a while in which it believes in itself.
func (s *server) lease() {
	w := s.p.m.w
	limit := w.timing().RaftLease + w.confused
	n := 0
	vs := voters(s.conf)
	for _, v := range vs {
		if v == s.p.m.name || w.now-s.heard[v] <= limit {
			n++
		}
	}
	if n*2 <= len(vs) {
		w.say("raft: %s gives up term %d: no majority", s.p.m.name, s.d.term)
		s.stepDown(s.d.term, "")
	}
}

// stepDown ends a leadership: every entry under way has an unknown outcome.
func (s *server) stepDown(term uint64, leader ids.Node) {
	was := s.role
	s.role, s.leader, s.contact = follower, leader, s.p.m.w.now
	if term > s.d.term {
		s.d.term = term
	}
	if was == leading {
		s.p.step(core.Leadership{Leader: leader, Term: s.d.term})
		s.fail()
	}
}

// fail answers everything that waited for this leadership, in order.
func (s *server) fail() {
	var at []uint64
	for i := range s.wait {
		at = append(at, i)
	}
	slices.Sort(at)
	for _, i := range at {
		s.p.m.w.stats.Unknown++
		answer := s.wait[i].answer
		delete(s.wait, i)
		answer(false, false)
	}
	for _, r := range s.rounds {
		s.p.step(core.Verified{Nonce: r.nonce})
	}
	s.rounds = nil
}

// upToDate reports whether this log may lead one that ends at (index, term).
func (s *server) upToDate(o *server) bool {
	i, t := s.last()
	oi, ot := o.last()
	return t > ot || (t == ot && i >= oi)
}

// campaign asks every voter in one instant. With force (a transfer) a voter that hears a leader helps
// all the same; otherwise it does not (pre-vote).
func (s *server) campaign(force bool) bool {
	w := s.p.m.w
	vs := voters(s.conf)
	var with []*server
	for _, v := range vs {
		m := w.machine(v)
		if v == s.p.m.name || m.proc == nil || m.proc.paused || m.frozen || m.proc.raft == nil || !w.stream(s.p.m, m) {
			continue
		}
		o := m.proc.raft
		happy := o.role == leading || (o.leader != "" && w.now-o.contact < w.timing().RaftHeartbeat)
		if (force || !happy) && s.upToDate(o) {
			with = append(with, o)
		}
	}
	if (len(with)+1)*2 <= len(vs) || !slices.Contains(vs, s.p.m.name) {
		return false
	}
	w.maxTerm++
	term := w.maxTerm
	for _, o := range with {
		if o.role == leading {
			o.stepDown(term, "")
		}
		o.d.term, o.contact = term, w.now
	}
	s.lead(term)
	return true
}

// lead begins a term with an entry of its own.
func (s *server) lead(term uint64) {
	w := s.p.m.w
	w.stats.Elections++
	w.say("raft: %s leads term %d", s.p.m.name, term)
	s.d.term, s.role, s.leader = term, leading, s.p.m.name
	s.next, s.match, s.heard = map[ids.Node]uint64{}, map[ids.Node]uint64{}, map[ids.Node]time.Duration{}
	last, _ := s.last()
	for _, m := range w.machines {
		s.next[m.name], s.heard[m.name] = last+1, w.now
	}
	s.step1(core.Leadership{Leader: s.p.m.name, Term: term})
	s.append(entry{}, nil)
}

// step1 hands an event to the core after what runs now is over.
func (s *server) step1(ev core.Event) {
	s.p.m.w.after(0, func() { s.p.deliver(func() { s.p.step(ev) }) })
}

// transfer hands the leadership to the best other voter that can be reached.
func (s *server) transfer() {
	w := s.p.m.w
	s.p.later(w.transit(), func() {
		if s.role != leading {
			return
		}
		for _, v := range voters(s.conf) {
			m := w.machine(v)
			if v == s.p.m.name || m.proc == nil || m.proc.paused || m.frozen || !w.stream(s.p.m, m) || !m.proc.raft.upToDate(s) {
				continue
			}
			w.say("raft: %s hands over to %s", s.p.m.name, v)
			if m.proc.raft.campaign(true) {
				return
			}
		}
	})
}

// append stores an entry at the leader and sends it out. It returns the entry's index.
func (s *server) append(e entry, answer func(ok, known bool)) uint64 {
	last, _ := s.last()
	e.term, e.index = s.d.term, last+1
	s.d.log = append(s.d.log, e)
	if answer != nil {
		s.wait[e.index] = pending{s.d.term, answer}
	}
	if e.servers != nil {
		s.configure()
	}
	term := s.d.term
	s.p.later(s.p.m.w.between(300*time.Microsecond, 2*time.Millisecond), func() {
		if s.role == leading && s.d.term == term {
			s.match[s.p.m.name] = max(s.match[s.p.m.name], e.index)
			s.advance()
		}
	})
	s.replicate()
	return e.index
}

// propose commits a command, or not. The answer comes exactly once.
func (s *server) propose(cmd state.Command, answer func(ok, known bool)) {
	w := s.p.m.w
	later := func(ok, known bool) { w.after(0, func() { s.p.deliver(func() { answer(ok, known) }) }) }
	if s.role != leading {
		later(false, true)
		return
	}
	b, err := state.Encode(state.Entry{At: int64(w.now / time.Millisecond), Cmd: cmd})
	if err != nil {
		w.violation("%s proposes what does not encode: %v", s.p.m.name, err)
		later(false, true)
		return
	}
	s.append(entry{cmd: b}, answer)
}

func (s *server) barrier(term uint64) {
	done := func(ok, known bool) { s.p.step(core.BarrierDone{Term: term, OK: ok}) }
	if s.role != leading || s.d.term != term {
		s.step1(core.BarrierDone{Term: term})
		return
	}
	s.append(entry{}, done)
}

// member changes the configuration, one change at a time.
func (s *server) member(a core.Membership) {
	w := s.p.m.w
	done := func(bool, bool) { s.p.step(core.MembershipDone{Name: a.Name}) }
	busy := s.role != leading
	for _, e := range s.d.log {
		busy = busy || (e.servers != nil && e.index > s.commit)
	}
	if t, ok := s.termAt(s.commit); !ok || t != s.d.term || busy {
		w.after(100*time.Millisecond, func() { s.p.deliver(func() { done(false, true) }) })
		return
	}
	conf := slices.DeleteFunc(slices.Clone(s.conf), func(x core.Server) bool { return x.Name == a.Name })
	if !a.Remove {
		conf = append(conf, core.Server{Name: a.Name, Voter: a.Voter})
		slices.SortFunc(conf, func(x, y core.Server) int { return slices.Compare([]byte(x.Name), []byte(y.Name)) })
	}
	w.say("raft: %s changes %s: voter %t, remove %t", s.p.m.name, a.Name, a.Voter, a.Remove)
	s.append(entry{servers: conf}, done)
}

// verifyRound is a quorum round begun now.
func (s *server) verifyRound(nonce uint64) {
	if s.role != leading {
		s.step1(core.Verified{Nonce: nonce})
		return
	}
	s.roundN++
	r := &round{nonce: nonce, begun: s.p.m.w.now, term: s.d.term, n: s.roundN, acks: map[ids.Node]bool{s.p.m.name: true}}
	s.rounds = append(s.rounds, r)
	s.replicate()
	s.settleRounds()
	s.p.later(2*time.Second, func() {
		if i := slices.Index(s.rounds, r); i >= 0 {
			s.rounds = slices.Delete(s.rounds, i, i+1)
			s.p.step(core.Verified{Nonce: r.nonce})
		}
	})
}

// settleRounds answers the rounds that a majority has joined.
func (s *server) settleRounds() {
	vs := voters(s.conf)
	for _, r := range slices.Clone(s.rounds) {
		n := 0
		for _, v := range vs {
			if r.acks[v] {
				n++
			}
		}
		if n*2 > len(vs) {
			s.rounds = slices.DeleteFunc(s.rounds, func(x *round) bool { return x == r })
			w := s.p.m.w
			w.verify[s.p.m.name] = append(w.verify[s.p.m.name], verified{r.begun, w.now})
			s.step1(core.Verified{Nonce: r.nonce, OK: true})
		}
	}
}
