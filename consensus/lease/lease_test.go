package lease

import (
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

const ms = time.Millisecond

// cfg is the default profile: h 800 ms, r 300 ms, L 5 s, S 1 s.
var cfg = Config{Renew: 800 * ms, Retry: 300 * ms, Lease: 5000 * ms, Budget: 1000 * ms}

func owner() *Owner {
	o := &Owner{}
	o.SetConfig(cfg)
	return o
}

// TestDue: at once in a new streak, then every h, and every r while the newest is unanswered.
func TestDue(t *testing.T) {
	o := owner()
	if !o.Due(0) || !o.Resting() {
		t.Error("a new owner sends at once")
	}
	r := o.Send(1000 * ms)
	if r != (Renewal{K: 1, First: 1}) || o.Resting() {
		t.Errorf("the first renewal is %+v", r)
	}
	for at, due := range map[time.Duration]bool{1000 * ms: false, 1299 * ms: false, 1300 * ms: true, 1800 * ms: true} {
		if o.Due(at) != due {
			t.Errorf("unanswered, at %v: due %t", at, !due)
		}
	}
	o.Granted(1, 50)
	for at, due := range map[time.Duration]bool{1300 * ms: false, 1799 * ms: false, 1800 * ms: true} {
		if o.Due(at) != due {
			t.Errorf("answered, at %v: due %t", at, !due)
		}
	}
	if r = o.Send(1800 * ms); r != (Renewal{K: 2, First: 1, LastGrant: 1}) {
		t.Errorf("the second renewal is %+v", r)
	}
	o.Rest()
	if !o.Due(1801*ms) || !o.Resting() {
		t.Error("after a rest it sends at once")
	}
	if r = o.Send(9000 * ms); r != (Renewal{K: 3, First: 3}) {
		t.Errorf("a new streak begins with %+v: K must rise, grants of the old streak are forgotten", r)
	}
}

// TestStopBy: L-S after the newest granted renewal was sent (not answered), or after the caller began to
// answer for what runs, whichever is later; no lease at all while nothing was granted.
func TestStopBy(t *testing.T) {
	o := owner()
	if _, ok := o.Until(); ok || o.StopBy(2000*ms) != 6000*ms {
		t.Error("without a grant it counts from the caller's own beginning")
	}
	o.Send(1000 * ms)
	o.Granted(1, 50)
	if u, ok := o.Until(); !ok || u != 6000*ms {
		t.Errorf("lease until %v", u)
	}
	for from, by := range map[time.Duration]time.Duration{0: 5000 * ms, 1000 * ms: 5000 * ms, 3000 * ms: 7000 * ms} {
		if o.StopBy(from) != by {
			t.Errorf("from %v: stop by %v, want %v", from, o.StopBy(from), by)
		}
	}
	o.Send(2000 * ms) // unanswered: nothing changes
	if o.StopBy(0) != 5000*ms {
		t.Error("a renewal that nobody granted extends the lease")
	}
	o.SetConfig(Config{Renew: cfg.Renew, Retry: cfg.Retry, Lease: 3000 * ms, Budget: 500 * ms})
	if o.StopBy(0) != 3500*ms {
		t.Error("a shorter lease counts at once")
	}
	o.Rest()
	if _, ok := o.Until(); ok {
		t.Error("a rest keeps no lease")
	}
}

// TestGranted: only the answer to a renewal of this streak that was sent counts, and only a newer one.
func TestGranted(t *testing.T) {
	o := owner()
	o.Granted(1, 9)
	o.Granted(0, 9)
	if _, ok := o.Until(); ok {
		t.Error("an answer to nothing was taken")
	}
	for i := range 4 {
		o.Send(time.Duration(i+1) * 1000 * ms) // 1..4 at 1 s..4 s
	}
	o.Granted(3, 70)
	o.Granted(2, 60) // late
	o.Granted(9, 99) // of the future
	if u, _ := o.Until(); u != 8000*ms {
		t.Errorf("lease until %v, want 3 s + L", u)
	}
	o.Rest()
	o.Send(10000 * ms)
	o.Granted(4, 80) // of the streak before
	if _, ok := o.Until(); ok {
		t.Error("an answer of an earlier streak was taken")
	}
	for range 2 * pending {
		o.Send(11000 * ms)
	}
	o.Granted(5, 90) // too old to be remembered: it grants nothing
	if _, ok := o.Until(); ok || len(o.out) > pending {
		t.Errorf("%d renewals are remembered", len(o.out))
	}
}

// TestMayStart: a lease of a renewal sent at or after the grant was applied, not within the stop budget, and
// the local log at least at the tick (I5, rule 5).
func TestMayStart(t *testing.T) {
	for name, c := range map[string]struct {
		now, since time.Duration
		applied    uint64
		granted    bool
		may        bool
	}{
		"fresh":                    {2100 * ms, 2000 * ms, 50, true, true},
		"sent before the grant":    {2100 * ms, 2001 * ms, 50, true, false},
		"the log is ahead":         {2100 * ms, 2000 * ms, 51, true, true},
		"the log lags":             {2100 * ms, 2000 * ms, 49, true, false},
		"just before the budget":   {5999 * ms, 2000 * ms, 50, true, true},
		"within the stop budget":   {6000 * ms, 2000 * ms, 50, true, false},
		"the lease is over":        {7001 * ms, 2000 * ms, 50, true, false},
		"nothing was ever granted": {2100 * ms, 0, 50, false, false},
	} {
		o := owner()
		o.Send(2000 * ms)
		if c.granted {
			o.Granted(1, 50)
		}
		if o.MayStart(c.now, c.since, c.applied) != c.may {
			t.Errorf("%s: may start: %t", name, !c.may)
		}
	}
}

func TestNeedsFresh(t *testing.T) {
	o := owner()
	if !o.NeedsFresh(0) {
		t.Error("nothing was sent")
	}
	o.Send(2000 * ms)
	if o.NeedsFresh(2000*ms) || !o.NeedsFresh(2001*ms) {
		t.Error("a renewal counts for grants applied before it was sent")
	}
}

// TestAge: the newest tick of any generation of that very boot, by this process's own clock (rules 2, 8).
func TestAge(t *testing.T) {
	var s Stamps
	if _, ok := s.Age(1000*ms, "n1", "a"); ok {
		t.Error("an age of nothing")
	}
	s.Applied(1000*ms, ids.Incarnation{Node: "n1", Boot: "a", Gen: 4}, 7)
	s.Applied(2000*ms, ids.Incarnation{Node: "n1", Boot: "a", Gen: 9}, 1)
	s.Applied(2500*ms, ids.Incarnation{Node: "n1", Boot: "b", Gen: 11}, 1)
	s.Applied(2600*ms, ids.Incarnation{Node: "n2", Boot: "a", Gen: 12}, 1)
	for b, want := range map[ids.Boot]time.Duration{"a": 1000 * ms, "b": 500 * ms} {
		if age, ok := s.Age(3000*ms, "n1", b); !ok || age != want {
			t.Errorf("boot %s: %v %t", b, age, ok)
		}
	}
	if _, ok := s.Age(3000*ms, "n1", "c"); ok {
		t.Error("an age of a boot that never ticked")
	}
	for k := range uint64(1000) {
		s.Applied(4000*ms, ids.Incarnation{Node: "n1", Boot: "b", Gen: 11}, k)
	}
	if len(s.node["n1"]) > marks {
		t.Errorf("%d stamps are kept", len(s.node["n1"]))
	}
}

// TestHears: no tick for an owner whose last received grant, or whose streak without any, is older than L.
func TestHears(t *testing.T) {
	inc := ids.Incarnation{Node: "n1", Boot: "a", Gen: 4}
	var s Stamps
	s.Applied(0, ids.Incarnation{Node: "n1", Boot: "a", Gen: 1}, 99) // another life
	s.Applied(1000*ms, inc, 5)
	s.Applied(2000*ms, inc, 6)
	s.Applied(3000*ms, inc, 7)
	for name, c := range map[string]struct {
		now time.Duration
		r   Renewal
		ok  bool
	}{
		"heard the newest":                  {7000 * ms, Renewal{K: 8, First: 5, LastGrant: 7}, true},
		"heard one within the lease":        {6000 * ms, Renewal{K: 8, First: 5, LastGrant: 5}, true},
		"heard none since longer than L":    {6001 * ms, Renewal{K: 8, First: 5, LastGrant: 5}, false},
		"heard none of its streak":          {6000 * ms, Renewal{K: 8, First: 5}, true},
		"heard none of its streak too long": {6001 * ms, Renewal{K: 8, First: 5}, false},
		"a new streak":                      {60000 * ms, Renewal{K: 9, First: 9}, true},
		"granted before this process came":  {60000 * ms, Renewal{K: 30, First: 20, LastGrant: 29}, true},
		"the streak began between ticks":    {7000 * ms, Renewal{K: 8, First: 6}, true},
	} {
		if got := s.Hears(c.now, inc, c.r, cfg.Lease); got != c.ok {
			t.Errorf("%s: hears %t", name, got)
		}
	}
	inc.Gen++
	if !s.Hears(60000*ms, inc, Renewal{K: 1, First: 1}, cfg.Lease) {
		t.Error("another life is judged by its own ticks")
	}
}
