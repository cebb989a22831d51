package check

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const vip = "192.168.60.200"

// story fabricates histories; times are milliseconds.
type story struct {
	h    History
	seqs map[string]uint64
}

func newStory() *story {
	return &story{
		h:    History{MACs: map[string]string{"m1": "node1", "m2": "node2", "m3": "node3"}},
		seqs: make(map[string]uint64),
	}
}

func ms(n int) int64 { return int64(n+1000) * int64(time.Millisecond) } // no time is zero

func (s *story) add(r Record) { s.h.Records = append(s.h.Records, r) }

// boot and off are the power record of a node; its boot id is named after its number.
func (s *story) boot(at int, node, boot string) {
	s.add(Record{T: ms(at), Stream: StreamPower, Kind: KindBoot, Node: node, Boot: boot, From: ms(at)})
}

func (s *story) off(at int, node, boot string) {
	s.add(Record{T: ms(at), Stream: StreamPower, Kind: KindOff, Node: node, Boot: boot, Source: "bmc"})
}

// holds says that the agent saw the address on a node, every 5 ms from one time to another;
// last adds the release.
func (s *story) holds(from, to int, node, boot string, last bool) {
	seq := uint64(0)
	rec := func(at int, kind string) {
		seq++
		s.add(Record{T: ms(at) + 2000, Stream: StreamWriter, Kind: kind, Node: node, Boot: boot, VIP: vip, From: ms(at), To: ms(at) + 1000, Seq: seq})
	}
	rec(from, KindAcquire)
	s.lock(from, KindLocked, node, boot, 0)
	for at := from + 5; at <= to; at += 5 {
		rec(at, KindWrite)
	}
	if last {
		rec(to, KindRelease)
		s.lock(to, KindUnlocked, node, boot, 0)
	}
}

func (s *story) lock(at int, kind, node, boot string, wait int) {
	s.add(Record{T: ms(at) + 2500, Stream: StreamLock, Kind: kind, Node: node, Boot: boot, VIP: vip, Wait: int64(wait) * int64(time.Millisecond)})
}

// arp says who answered the probes of a time span, one every 20 ms.
func (s *story) arp(from, to int, macs ...string) {
	for at := from; at < to; at += 20 {
		s.add(Record{T: ms(at + 20), From: ms(at), Stream: StreamARP, Kind: KindProbe, VIP: vip, MACs: macs})
	}
}

// takeover is a good history: node1 owns, is shot, node2 takes over and hands over to node1's
// next boot.
func takeover() *story {
	s := newStory()
	s.boot(0, "node1", "a")
	s.boot(0, "node2", "b")
	s.holds(100, 1000, "node1", "a", false)
	s.arp(100, 1000, "m1")
	s.off(1300, "node1", "a")
	s.arp(1000, 1400)
	s.holds(1400, 3000, "node2", "b", true)
	s.arp(1400, 3000, "m2")
	s.boot(1800, "node1", "c")
	s.holds(3001, 4000, "node1", "c", true)
	s.arp(3000, 4000, "m1")
	return s
}

// judged is a fabricated history and the verdict it must get.
type judged struct {
	name  string
	story func() *story
	rules string // broken rules, sorted and joined
	miss  string // part of the first reason for not observed
	max   int
}

// ownerCases tries the presence intervals.
func ownerCases() []judged {
	return []judged{
		{"takeover and return", takeover, "", "", 1},
		{"nothing at all", newStory, "", "arp stream is empty", 0},
		{"the owner was shot after its successor began", func() *story {
			s := newStory()
			s.boot(0, "node1", "a")
			s.holds(0, 500, "node1", "a", false)
			s.arp(0, 500, "m1")
			s.holds(700, 900, "node2", "b", true)
			s.arp(700, 900, "m2")
			s.off(800, "node1", "a") // silent since 500, but nothing proves it dead before 800
			return s
		}, "two-owners", "", 2},
		{"the owner was never shot and fell silent", func() *story {
			s := newStory()
			s.boot(0, "node1", "a")
			s.holds(0, 500, "node1", "a", false)
			s.arp(0, 500, "m1")
			s.holds(700, 900, "node2", "b", true)
			return s
		}, "two-owners", "", 2},
		{"another boot of the owner was shot", func() *story {
			s := newStory()
			s.holds(0, 500, "node1", "a", false)
			s.arp(0, 500, "m1")
			s.off(600, "node1", "z")
			s.holds(700, 900, "node2", "b", true)
			return s
		}, "two-owners", "", 2},
		{"overlap of one sample", func() *story {
			s := newStory()
			s.boot(0, "node1", "a")
			s.holds(0, 500, "node1", "a", true)
			s.arp(0, 500, "m1")
			s.holds(495, 900, "node2", "b", true)
			return s
		}, "two-owners", "", 2},
		{"hand-over with no gap is no overlap", func() *story {
			s := newStory()
			s.boot(0, "node1", "a")
			s.holds(0, 500, "node1", "a", true)
			s.holds(500, 900, "node2", "b", true)
			s.arp(0, 500, "m1")
			return s
		}, "", "", 1},
	}
}

// wireCases tries what the wire saw.
func wireCases() []judged {
	return []judged{
		{"three owners", func() *story {
			s := newStory()
			s.boot(0, "node1", "a")
			s.holds(0, 500, "node1", "a", true)
			s.holds(100, 500, "node2", "b", true)
			s.holds(200, 500, "node3", "c", true)
			s.arp(0, 500, "m1")
			return s
		}, "two-owners two-owners two-owners", "", 3},
		{"two hosts answer one probe", func() *story {
			s := takeover()
			s.arp(4000, 4020, "m1", "m2")
			return s
		}, "old-mac two-macs", "", 2},
		{"the old owner answers after the new one", func() *story {
			s := newStory()
			s.boot(0, "node1", "a")
			s.holds(0, 500, "node1", "a", true)
			s.arp(0, 500, "m1")
			s.holds(600, 2000, "node2", "b", true)
			s.arp(600, 1500, "m2")
			s.arp(1500, 1520, "m1")
			s.arp(1520, 2000, "m2")
			return s
		}, "old-mac old-mac", "", 1},
		{"a dead node answers", func() *story {
			s := takeover()
			s.off(4100, "node1", "c")
			s.arp(4200, 4220, "m1")
			return s
		}, "dead-answers", "", 1},
	}
}

// watchCases tries locks and the completeness gate.
func watchCases() []judged {
	return []judged{
		{"the lock was contended for long", func() *story {
			s := takeover()
			s.lock(3001, KindBusy, "node1", "c", 0)
			s.lock(3200, KindLocked, "node1", "c", 199)
			return s
		}, "lock", "", 1},
		{"the lock was contended within the grace", func() *story {
			s := takeover()
			s.lock(3001, KindBusy, "node1", "c", 0)
			s.lock(3010, KindLocked, "node1", "c", 9)
			return s
		}, "", "", 1},
		{"the lock was never free", func() *story {
			s := takeover()
			s.boot(4000, "node3", "x")
			s.add(Record{T: ms(4100), Stream: StreamWriter, Kind: KindAcquire, Node: "node3", Boot: "x", VIP: vip, From: ms(4100), To: ms(4100), Seq: 1})
			s.lock(4100, KindBusy, "node3", "x", 0)
			for at := 4105; at < 4300; at += 5 {
				s.add(Record{T: ms(at), Stream: StreamWriter, Kind: KindWrite, Node: "node3", Boot: "x", VIP: vip, From: ms(at), To: ms(at)})
			}
			return s
		}, "lock", "", 1},
		{"the prober stalled", func() *story {
			s := takeover()
			s.arp(5500, 5600, "m1")
			return s
		}, "", "ARP prober was silent", 1},
		{"the agent stalled", func() *story {
			s := takeover()
			s.holds(4100, 4200, "node1", "c", false)
			s.add(Record{T: ms(5900), Stream: StreamWriter, Kind: KindWrite, Node: "node1", Boot: "c", VIP: vip, From: ms(5900), To: ms(5900)})
			return s
		}, "", "agent on node1 was silent", 1},
		{"nobody ever answered", func() *story {
			s := newStory()
			s.boot(0, "node1", "a")
			s.holds(0, 500, "node1", "a", true)
			s.arp(0, 500)
			return s
		}, "", "no ARP probe was ever answered", 1},
	}
}

func TestRun(t *testing.T) {
	for _, c := range slices.Concat(ownerCases(), wireCases(), watchCases()) {
		t.Run(c.name, func(t *testing.T) {
			r := Run(c.story().h, Options{})
			var rules []string
			for _, v := range r.Violations {
				rules = append(rules, v.Rule)
			}
			var b strings.Builder
			if err := r.Write(&b); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(sorted(rules), " "); got != c.rules {
				t.Errorf("broken rules %q, want %q\n%s", got, c.rules, b.String())
			}
			if got := strings.Join(r.NotObserved, "; "); (c.miss == "") != (got == "") || !strings.Contains(got, c.miss) {
				t.Errorf("not observed: %q, want %q", got, c.miss)
			}
			if r.MaxOwners != c.max {
				t.Errorf("at most %d owners, want %d", r.MaxOwners, c.max)
			}
			if r.OK() != (c.rules == "" && c.miss == "") {
				t.Errorf("OK is %v", r.OK())
			}
			for _, v := range r.Violations {
				if len(v.Around) == 0 {
					t.Errorf("%s shows no time line", v.Rule)
				}
			}
		})
	}
}

func sorted(s []string) []string {
	for i := range s {
		for j := i; j > 0 && s[j] < s[j-1]; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
	return s
}

// TestEveryStreamIsNeeded removes each required stream from a good history: none may pass.
func TestEveryStreamIsNeeded(t *testing.T) {
	for _, s := range []Stream{StreamARP, StreamWriter, StreamLock, StreamPower} {
		var h History
		for _, r := range takeover().h.Records {
			if r.Stream != s {
				h.Records = append(h.Records, r)
			}
		}
		if r := Run(h, Options{}); r.OK() || !strings.Contains(r.Summary(), "NOT OBSERVED") {
			t.Errorf("without %s: %s", s, r.Summary())
		}
	}
}

// TestOrderOfInputDoesNotMatter feeds the records backwards.
func TestOrderOfInputDoesNotMatter(t *testing.T) {
	h := takeover().h
	want := Run(h, Options{})
	for i, j := 0, len(h.Records)-1; i < j; i, j = i+1, j-1 {
		h.Records[i], h.Records[j] = h.Records[j], h.Records[i]
	}
	got := Run(h, Options{})
	if got.Summary() != want.Summary() || got.Takeovers != 2 || want.Takeovers != 2 {
		t.Errorf("forwards %s (%d takeovers), backwards %s (%d)", want.Summary(), want.Takeovers, got.Summary(), got.Takeovers)
	}
}

func TestOutage(t *testing.T) {
	var h History
	for at := 0; at < 2000; at += 5 {
		if at < 1000 || at >= 1480 {
			h.Records = append(h.Records, Record{T: ms(at), Stream: StreamEcho, Kind: KindReply, VIP: vip})
		}
		if at%1000 == 0 {
			h.Records = append(h.Records, Record{T: ms(at), Stream: StreamEcho, Kind: KindTally, VIP: vip})
		}
	}
	for _, c := range []struct {
		from, to int
		want     time.Duration
		open     bool
	}{
		{0, 1995, 485 * time.Millisecond, false},
		{0, 900, 5 * time.Millisecond, false},
		{500, 1200, 205 * time.Millisecond, true},
		{1200, 1990, 280 * time.Millisecond, false},
	} {
		g, err := h.Outage(vip, ms(c.from), ms(c.to))
		if err != nil || g.Length() != c.want || g.Open != c.open {
			t.Errorf("%d..%d: %s open=%v %v, want %s", c.from, c.to, g.Length(), g.Open, err, c.want)
		}
	}
	if _, err := h.Outage("192.168.60.201", ms(0), ms(2000)); err == nil {
		t.Error("an address that nobody watched has an outage")
	}
	if g, err := h.Outage(vip, ms(990), ms(1400)); err != nil || !g.Open {
		t.Errorf("silence of the address while the prober lives: %+v %v", g, err)
	}
}

func TestTimelineIsBounded(t *testing.T) {
	s := takeover()
	for i := range 500 {
		s.add(Record{T: ms(4000) + int64(i), Stream: StreamFault, Kind: "inject", Text: fmt.Sprint(i)})
	}
	s.arp(4000, 4020, "m1", "m2")
	var b strings.Builder
	if err := Run(s.h, Options{}).Write(&b); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n"); n > 3*maxTimeline {
		t.Errorf("%d lines", n)
	}
}
