// Package lease is both sides of the lease that the log grants: the owner's renewals, and every
// voter's stamps of when it applied a node's newest tick. It is pure: all times are readings of the
// caller's own monotonic clock, and no clocks of two nodes are ever compared.
package lease

import (
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// Config is the timing both sides need (state.Timing).
type Config struct {
	Renew  time.Duration // h: between two renewals
	Retry  time.Duration // r: before an unanswered renewal is repeated
	Lease  time.Duration // L: from the sending of a granted renewal
	Budget time.Duration // S: the last part of L, kept for stopping
}

// Renewal is one request for a tick.
type Renewal struct {
	K uint64 `json:"k"` // rises by one with every renewal of a process
	// First is the K that began this streak of renewals; LastGrant the newest K of the streak that was
	// granted, zero while none was. The leader gives no tick to an owner that receives no grants (rule 12).
	First     uint64 `json:"first"`
	LastGrant uint64 `json:"last_grant"`
}

// pending bounds the renewals whose grant may still arrive.
const pending = 32

type sent struct {
	k  uint64
	at time.Duration
}

// Owner is the owner's side. The zero value with a Config set by SetConfig is ready.
type Owner struct {
	cfg      Config
	k, first uint64
	lastSent time.Duration
	out      []sent
	granted  sent   // the newest granted renewal; k 0 = none in this streak
	index    uint64 // log index of its tick
}

// SetConfig changes the timing; it applies from the next call on.
func (o *Owner) SetConfig(c Config) { o.cfg = c }

// Due reports whether a renewal should be sent now: none is under way in this streak, the interval is
// over, or the newest one was not answered within the retry time.
func (o *Owner) Due(now time.Duration) bool {
	if o.first == 0 {
		return true
	}
	if now-o.lastSent >= o.cfg.Renew {
		return true
	}
	return o.granted.k < o.k && now-o.lastSent >= o.cfg.Retry
}

// Send takes the next renewal; now is read before it is sent, which is what the lease counts from.
func (o *Owner) Send(now time.Duration) Renewal {
	o.k++
	if o.first == 0 {
		o.first, o.granted = o.k, sent{}
	}
	o.lastSent = now
	o.out = append(o.out, sent{o.k, now})
	if len(o.out) > pending {
		o.out = o.out[1:]
	}
	return Renewal{K: o.k, First: o.first, LastGrant: o.granted.k}
}

// Granted takes the answer to renewal k, whose tick has that log index. An answer that is older than
// one already taken, or to a renewal of an earlier streak, changes nothing.
func (o *Owner) Granted(k, index uint64) {
	if k <= o.granted.k || k < o.first || o.first == 0 {
		return
	}
	for _, s := range o.out {
		if s.k == k {
			o.granted, o.index = s, index
			return
		}
	}
}

// Rest ends the streak: the node owns nothing and renews nothing.
func (o *Owner) Rest() { o.first, o.granted, o.index, o.out = 0, sent{}, 0, o.out[:0] }

// Resting reports whether no streak is under way.
func (o *Owner) Resting() bool { return o.first == 0 }

// Until returns the end of the lease on the own clock, and false while none was granted.
func (o *Owner) Until() (time.Duration, bool) {
	return o.granted.at + o.cfg.Lease, o.granted.k != 0
}

// StopBy returns when the self-stop must begin unless another grant comes: s_k + L - S. Where nothing
// was granted yet it counts from `from`, the moment from which the caller answers for what runs.
func (o *Owner) StopBy(from time.Duration) time.Duration {
	if o.granted.k != 0 && o.granted.at > from {
		from = o.granted.at
	}
	return from + o.cfg.Lease - o.cfg.Budget
}

// MayStart reports whether a group granted and applied here at `since` may be started now: the lease
// comes of a renewal that was sent after that, it does not end within the stop budget, and the local
// state is at least as new as the tick (invariant I5, rule 5).
func (o *Owner) MayStart(now, since time.Duration, applied uint64) bool {
	return o.granted.k != 0 && o.granted.at >= since && applied >= o.index && now < o.granted.at+o.cfg.Lease-o.cfg.Budget
}

// NeedsFresh reports whether no renewal has been sent since `since`: a start waits for one.
func (o *Owner) NeedsFresh(since time.Duration) bool { return o.first == 0 || o.lastSent < since }

// mark is one applied tick.
type mark struct {
	inc ids.Incarnation
	k   uint64
	at  time.Duration
}

const marks = 64

// Stamps is every voter's side: when, on its own clock, it applied which tick. Stamps live outside the
// state and its snapshots and are never reused after a restart (rule 8).
type Stamps struct {
	node map[ids.Node][]mark
}

// Applied stamps an accepted tick.
func (s *Stamps) Applied(now time.Duration, inc ids.Incarnation, k uint64) {
	if s.node == nil {
		s.node = map[ids.Node][]mark{}
	}
	m := append(s.node[inc.Node], mark{inc, k, now})
	if len(m) > marks {
		m = m[len(m)-marks:]
	}
	s.node[inc.Node] = m
}

// Age returns the age of the newest tick of any generation of that boot, and false where none was
// applied by this process.
func (s *Stamps) Age(now time.Duration, n ids.Node, b ids.Boot) (time.Duration, bool) {
	m := s.node[n]
	for i := len(m) - 1; i >= 0; i-- {
		if m[i].inc.Boot == b {
			return now - m[i].at, true
		}
	}
	return 0, false
}

// Hears reports whether the owner shows that it receives grants: the last one it names was applied
// here within the lease, or, while it names none, the first tick of its streak was (rule 12). A tick
// that this process never applied counts as fresh: it may be older than this process.
func (s *Stamps) Hears(now time.Duration, inc ids.Incarnation, r Renewal, lease time.Duration) bool {
	k := r.LastGrant
	if k == 0 {
		k = r.First
	}
	for _, m := range s.node[inc.Node] {
		if m.inc == inc && m.k >= k {
			return now-m.at <= lease
		}
	}
	return true
}
