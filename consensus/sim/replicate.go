package sim

import (
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// appendMsg is a leader's word to one follower; with snap it replaces everything.
type appendMsg struct {
	from      ids.Node
	term      uint64
	prevIndex uint64
	prevTerm  uint64
	entries   []entry
	commit    uint64
	round     uint64
	snap      *disk
}

// replicate sends every follower what it lacks, as far as the leader knows.
func (s *server) replicate() {
	for _, c := range s.conf {
		if c.Name != s.p.m.name {
			s.feed(c.Name)
		}
	}
}

// maxBatch bounds the entries of one message.
const maxBatch = 64

func (s *server) feed(to ids.Node) {
	w := s.p.m.w
	m := w.machine(to)
	if m == nil {
		return
	}
	if s.next[to] == 0 {
		s.next[to] = 1
	}
	msg := appendMsg{from: s.p.m.name, term: s.d.term, commit: s.commit, round: s.roundN, prevIndex: s.next[to] - 1}
	t, ok := s.termAt(msg.prevIndex)
	if !ok {
		snap := disk{snapIndex: s.d.snapIndex, snapTerm: s.d.snapTerm, snapState: s.d.snapState, snapConf: s.d.snapConf}
		msg.snap = &snap
	} else {
		msg.prevTerm = t
		rest := s.d.log[msg.prevIndex-s.d.snapIndex:]
		msg.entries = slices.Clone(rest[:min(len(rest), maxBatch)])
	}
	from := s.p
	w.tcp(s.p.m, m, func(q *process) {
		ok, match, hint := q.raft.take(msg)
		w.tcp(m, from.m, func(back *process) {
			if back == from {
				s.answer(to, msg, ok, match, hint, q.raft.d.term)
			}
		})
	})
}

// take is the follower's side: terms, log matching, and the commit index.
func (s *server) take(m appendMsg) (ok bool, match, hint uint64) {
	w := s.p.m.w
	last, _ := s.last()
	if m.term < s.d.term {
		return false, 0, last
	}
	if s.role == leading && m.term > s.d.term {
		s.stepDown(m.term, m.from)
	}
	if m.term > s.d.term || s.leader != m.from {
		s.d.term, s.leader = m.term, m.from
		s.step1(core.Leadership{Leader: m.from, Term: m.term})
	}
	s.contact = w.now
	if m.snap != nil {
		return true, s.install(m.snap), 0
	}
	if t, have := s.termAt(m.prevIndex); m.prevIndex < s.d.snapIndex || !have || t != m.prevTerm {
		if m.prevIndex < s.d.snapIndex {
			return true, s.d.snapIndex, 0 // all of it is committed here
		}
		return false, 0, min(last, m.prevIndex-1)
	}
	for _, e := range m.entries {
		if t, have := s.termAt(e.index); have && t == e.term {
			continue
		}
		if e.index <= s.commit {
			w.violation("raft model: %s would overwrite committed entry %d", s.p.m.name, e.index)
			return false, 0, s.commit
		}
		s.d.log = append(slices.Clone(s.d.log[:e.index-s.d.snapIndex-1]), e)
	}
	s.configure()
	match = m.prevIndex + uint64(len(m.entries))
	if c := min(m.commit, match); c > s.commit {
		s.commit = c
		s.p.later(0, s.apply)
	}
	return true, match, 0
}

// install replaces the whole log and state by a snapshot.
func (s *server) install(d *disk) uint64 {
	w := s.p.m.w
	if d.snapIndex <= s.commit {
		return s.commit
	}
	st, err := state.DecodeState(d.snapState)
	if err != nil {
		w.violation("a snapshot does not decode: %v", err)
		return s.commit
	}
	w.stats.Snapshots++
	w.say("raft: %s takes a snapshot at %d", s.p.m.name, d.snapIndex)
	term := s.d.term
	*s.d = *d
	s.d.term, s.d.log = term, nil
	s.commit, s.applied, s.st = d.snapIndex, d.snapIndex, st
	s.configure()
	s.p.step(core.Restored{State: st})
	s.p.setPaths()
	return d.snapIndex
}

// answer is what a follower said.
func (s *server) answer(from ids.Node, m appendMsg, ok bool, match, hint, term uint64) {
	switch {
	case term > s.d.term:
		s.stepDown(term, "")
		return
	case s.role != leading || m.term != s.d.term:
		return
	}
	s.heard[from] = s.p.m.w.now
	for _, r := range s.rounds {
		if m.round >= r.n && m.term == r.term {
			r.acks[from] = true
		}
	}
	s.settleRounds()
	if !ok {
		s.next[from] = max(1, min(s.next[from]-1, hint+1))
		s.feed(from)
		return
	}
	s.match[from] = max(s.match[from], match)
	s.next[from] = max(s.next[from], s.match[from]+1)
	s.advance()
}

// advance commits what a majority of the voters has stored, if it is of this term.
func (s *server) advance() {
	vs := voters(s.conf)
	if s.role != leading || len(vs) == 0 {
		return
	}
	var have []uint64
	for _, v := range vs {
		have = append(have, s.match[v])
	}
	slices.Sort(have)
	c := have[(len(have)-1)/2]
	if t, ok := s.termAt(c); !ok || t != s.d.term || c <= s.commit {
		return
	}
	s.commit = c
	s.apply()
}

// apply hands committed entries to the state machine and to the core, in order, each once.
func (s *server) apply() {
	w := s.p.m.w
	for s.applied < s.commit && !s.p.dead {
		e := s.d.log[s.applied-s.d.snapIndex]
		w.ledger.commit(w, e)
		s.applied = e.index
		if e.cmd != nil {
			s.applyOne(e)
		}
		if p, ok := s.wait[e.index]; ok {
			delete(s.wait, e.index)
			p.answer(p.term == e.term, true)
		}
	}
	if !s.p.dead && s.applied-s.d.snapIndex > 150+uint64(w.rng.IntN(100)) {
		s.compact()
	}
}

func (s *server) applyOne(e entry) {
	w := s.p.m.w
	en, err := state.Decode(e.cmd)
	if err != nil {
		w.violation("entry %d does not decode: %v", e.index, err)
		return
	}
	st, r := state.Apply(s.st, e.index, en)
	s.st = st
	w.ledger.compare(w, s.p.m.name, st)
	s.p.step(core.Applied{Index: e.index, Entry: en, Result: r, State: st})
	if s.p.dead {
		return
	}
	switch en.Cmd.(type) {
	case state.NodeAdmit, state.NodeRemove:
		s.p.setPaths()
	}
}

// compact takes a snapshot of what is applied and keeps a short tail of the log out of it.
func (s *server) compact() {
	t, ok := s.termAt(s.applied)
	b, err := state.EncodeState(s.st)
	if !ok || err != nil {
		s.p.m.w.violation("%s cannot take a snapshot at %d: %v", s.p.m.name, s.applied, err)
		return
	}
	for _, e := range s.d.log[:s.applied-s.d.snapIndex] {
		if e.servers != nil {
			s.d.snapConf = e.servers
		}
	}
	s.d.log = slices.Clone(s.d.log[s.applied-s.d.snapIndex:])
	s.d.snapIndex, s.d.snapTerm, s.d.snapState = s.applied, t, b
}

// ledger is the one true log: what was committed anywhere, and the state that follows from it.
type ledger struct {
	entries []entry // entries[i].index == i+1
	head    state.State
	digests map[uint64]string
	at      []time.Duration
}

// commit takes in an entry that some node knows to be committed. Two nodes that disagree about an
// index would be a fault of the raft model.
func (l *ledger) commit(w *World, e entry) {
	if n := uint64(len(l.entries)); e.index <= n {
		if o := l.entries[e.index-1]; o.term != e.term || string(o.cmd) != string(e.cmd) {
			w.violation("raft model: two entries are committed at %d", e.index)
		}
		return
	} else if e.index != n+1 {
		w.violation("raft model: entry %d is committed after %d", e.index, n)
		return
	}
	l.entries, l.at = append(l.entries, e), append(l.at, w.now)
	w.stats.Entries++
	if e.cmd == nil {
		return
	}
	en, err := state.Decode(e.cmd)
	if err != nil {
		w.violation("entry %d does not decode: %v", e.index, err)
		return
	}
	old := l.head
	st, r := state.Apply(old, e.index, en)
	l.head = st
	l.digests[e.index] = st.Digest()
	w.mark("commit %d %x", e.index, l.digests[e.index])
	w.checkEntry(old, st, e.index, en, r)
}

// compare checks that equal logs gave equal states.
func (l *ledger) compare(w *World, n ids.Node, st state.State) {
	if got := st.Digest(); got != l.digests[st.Index] {
		w.violation("%s has another state at %d than the log gives", n, st.Index)
	}
}
