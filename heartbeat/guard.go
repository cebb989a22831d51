package heartbeat

import (
	"cmp"
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// Bounds on what a Guard remembers of one peer, so that no amount of replayed packets can make
// it grow.
const (
	maxCandidates = 4
	maxBoots      = 32
	maxInterfaces = 64
)

// Guard decides whether a beat is news. It learns the sessions of the peers, tells what to echo
// to them, and refuses what was recorded earlier. Authentication alone cannot do that: a packet
// recorded yesterday is still authentic.
//
// A beat is news when (1) it echoes our own session, so that it was built after this process
// started; (2) its sequence is above every earlier one of the same life on the same interface,
// and not further than the window behind the newest on any interface; (3) if it is of another
// life of the peer than the current one, its sequence is above all that was ever accepted of
// that boot, and its start counter does not go back while the current life still talks.
//
// A Guard is not safe for concurrent use.
type Guard struct {
	own    uint64
	gap    time.Duration
	window time.Duration
	peers  map[ids.Node]*acquaintance // looked up by name only, never iterated into output
}

// acquaintance is what a Guard knows of one peer.
type acquaintance struct {
	current    *life
	boots      []bootMark // highest accepted sequence per boot, oldest first
	candidates []candidate
	toggle     bool
}

// life is one process of a peer that has proved to be fresh.
type life struct {
	boot    ids.Boot
	session uint64
	start   uint64
	newest  uint64
	heard   time.Duration
	links   []linkMark
}

type linkMark struct {
	iface string
	seq   uint64
}

type bootMark struct {
	boot ids.Boot
	seq  uint64
}

// candidate is a life that we heard of but that has not proved yet that it knows our session.
type candidate struct {
	boot     ids.Boot
	session  uint64
	start    uint64
	seq      uint64
	heard    time.Duration
	answered time.Duration
	asked    bool // answered holds a time
}

// NewGuard returns a Guard of the process whose session is own. interval spaces the answers to
// one unverified session (one per half an interval); window is the furthest a beat may lag
// behind the newest one of its peer.
func NewGuard(own uint64, interval, window time.Duration) *Guard {
	g := &Guard{own: own, peers: map[ids.Node]*acquaintance{}}
	g.SetTimings(interval, window)
	return g
}

// SetTimings replaces the timings given to NewGuard.
func (g *Guard) SetTimings(interval, window time.Duration) {
	g.gap = interval / 2
	g.window = window
}

// Keep forgets every peer that is not listed. A Guard only learns of listed peers.
func (g *Guard) Keep(peers []ids.Node) {
	next := make(map[ids.Node]*acquaintance, len(peers))
	for _, p := range peers {
		if a := g.peers[p]; a != nil {
			next[p] = a
			continue
		}
		next[p] = &acquaintance{}
	}
	g.peers = next
}

// Check says what a beat read at time now from the local interface iface is worth. answer asks
// the caller to send the peer a beat at once that echoes b.Session: two processes that just met
// then know each other within a round trip. It is rate limited per session.
func (g *Guard) Check(now time.Duration, iface string, b Beat) (v Verdict, answer bool) {
	a := g.peers[b.From]
	if a == nil {
		return Unknown, false
	}
	if b.Session == 0 {
		return Unverified, false
	}
	known := a.current != nil && a.current.is(b)
	switch {
	case known && b.Echo == g.own:
		return a.current.advance(now, iface, b.Seq, g.window, a), false
	case known:
		return Unverified, false
	case b.Seq <= a.accepted(b.Boot):
		return Replayed, false
	case b.Echo != g.own:
		return a.learn(now, b, g.gap)
	case a.precedes(b) && (a.accepted(b.Boot) > 0 || now-a.current.heard <= g.window):
		return Replayed, false
	}
	a.adopt(b)
	return a.current.advance(now, iface, b.Seq, g.window, a), true
}

// Echo returns the session to echo in the next regular beat to the peer, 0 for none.
//
// It is the current life's. If another life was heard later that can follow the current one
// (same boot, or a higher start counter), or any other life once the current one is silent for
// longer than the window, the two take turns: whoever replays an old packet then costs the true
// peer every second echo at most, and a peer that restarted is answered even if the answer
// asked for by Check was lost.
func (g *Guard) Echo(now time.Duration, peer ids.Node) uint64 {
	a := g.peers[peer]
	if a == nil {
		return 0
	}
	best := a.challenger(now, g.window)
	switch {
	case best == nil && a.current == nil:
		return 0
	case best == nil:
		return a.current.session
	case a.current == nil:
		return best.session
	}
	a.toggle = !a.toggle
	if a.toggle {
		return best.session
	}
	return a.current.session
}

func (l *life) is(b Beat) bool { return l.boot == b.Boot && l.session == b.Session }

// advance applies the sequence rules within one life.
func (l *life) advance(now time.Duration, iface string, seq uint64, window time.Duration, a *acquaintance) Verdict {
	if seq < l.newest && l.newest-seq > uint64(max(window, 0)) {
		return Replayed
	}
	i := slices.IndexFunc(l.links, func(m linkMark) bool { return m.iface == iface })
	switch {
	case i < 0 && len(l.links) >= maxInterfaces:
		return Unknown
	case i < 0:
		l.links = append(l.links, linkMark{iface: iface, seq: seq})
	case seq <= l.links[i].seq:
		return Replayed
	default:
		l.links[i].seq = seq
	}
	l.newest = max(l.newest, seq)
	l.heard = now
	a.mark(l.boot, l.newest)
	return Accepted
}

// precedes says that by its start counter a beat belongs to a boot before the current one. Only
// a restored state directory makes that wrong; then the boot is one that was never heard.
func (a *acquaintance) precedes(b Beat) bool {
	return a.current != nil && b.Boot != a.current.boot && b.Start <= a.current.start
}

// accepted returns the highest sequence accepted of a boot, 0 if none.
func (a *acquaintance) accepted(b ids.Boot) uint64 {
	for _, m := range a.boots {
		if m.boot == b {
			return m.seq
		}
	}
	return 0
}

func (a *acquaintance) mark(b ids.Boot, seq uint64) {
	for i := range a.boots {
		if a.boots[i].boot == b {
			a.boots[i].seq = max(a.boots[i].seq, seq)
			return
		}
	}
	if len(a.boots) >= maxBoots {
		a.boots = slices.Delete(a.boots, 0, 1)
	}
	a.boots = append(a.boots, bootMark{boot: b, seq: seq})
}

// learn notes a life that does not know our session yet.
func (a *acquaintance) learn(now time.Duration, b Beat, gap time.Duration) (Verdict, bool) {
	i := slices.IndexFunc(a.candidates, func(c candidate) bool {
		return c.boot == b.Boot && c.session == b.Session
	})
	if i < 0 {
		if len(a.candidates) >= maxCandidates && !a.evict(b.Start) {
			return Unverified, false
		}
		a.candidates = append(a.candidates, candidate{boot: b.Boot, session: b.Session})
		i = len(a.candidates) - 1
	}
	c := &a.candidates[i]
	if b.Seq <= c.seq {
		return Replayed, false
	}
	c.start, c.seq, c.heard = b.Start, b.Seq, now
	if c.asked && now-c.answered < gap {
		return Unverified, false
	}
	c.asked, c.answered = true, now
	return Unverified, true
}

// evict makes room for a candidate with the given start counter. The lowest counter goes first,
// and among equals the one heard longest ago: recordings are older than the living.
func (a *acquaintance) evict(start uint64) bool {
	worst := slices.MinFunc(a.candidates, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(x.start, y.start), cmp.Compare(x.heard, y.heard))
	})
	if worst.start > start {
		return false
	}
	a.candidates = slices.DeleteFunc(a.candidates, func(c candidate) bool { return c == worst })
	return true
}

// challenger returns the candidate that may deserve an echo beside, or instead of, the current
// life: the one with the highest start counter, then the one heard last.
func (a *acquaintance) challenger(now, window time.Duration) *candidate {
	var best *candidate
	for i := range a.candidates {
		c := &a.candidates[i]
		if a.current != nil {
			if c.heard < a.current.heard {
				continue
			}
			follows := c.boot == a.current.boot || c.start > a.current.start
			if !follows && now-a.current.heard <= window {
				continue
			}
		}
		if best == nil || cmp.Or(cmp.Compare(c.start, best.start), cmp.Compare(c.heard, best.heard)) > 0 {
			best = c
		}
	}
	return best
}

// adopt makes the life of a beat the current one.
func (a *acquaintance) adopt(b Beat) {
	a.current = &life{boot: b.Boot, session: b.Session, start: b.Start}
	a.candidates = slices.DeleteFunc(a.candidates, func(c candidate) bool {
		return c.boot == b.Boot && (c.session == b.Session || c.seq <= b.Seq)
	})
}
