package check

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// Options tunes the checker. The zero value means the defaults.
type Options struct {
	// Require lists the streams that must have seen something; nil means arp, writer, lock and
	// power. A run whose required stream is empty fails as not observed.
	Require []Stream
	// LockGrace is how long a lock may be contended while the agent on the old owner notices
	// that its address went (default 50 ms). Presence intervals have no such grace.
	LockGrace time.Duration
	// MaxGap is the longest silence of a running observer (default 1 s).
	MaxGap time.Duration
	// Around is how much of the time line a violation shows on each side (default 1 s).
	Around time.Duration
}

func (o Options) withDefaults() Options {
	if o.Require == nil {
		o.Require = []Stream{StreamARP, StreamWriter, StreamLock, StreamPower}
	}
	if o.LockGrace == 0 {
		o.LockGrace = 50 * time.Millisecond
	}
	if o.MaxGap == 0 {
		o.MaxGap = time.Second
	}
	if o.Around == 0 {
		o.Around = time.Second
	}
	return o
}

// Rules a violation can break.
const (
	// RuleTwoOwners: the address was on two incarnations at one time (writer oracle).
	RuleTwoOwners = "two-owners"
	// RuleTwoMACs: two hosts answered one ARP probe.
	RuleTwoMACs = "two-macs"
	// RuleOldMAC: the former owner answered ARP after its successor had.
	RuleOldMAC = "old-mac"
	// RuleDeadAnswers: a node answered ARP while the power record says it is off.
	RuleDeadAnswers = "dead-answers"
	// RuleLock: the lock of an address was still held elsewhere after the grace.
	RuleLock = "lock"
)

// Violation is one broken rule.
type Violation struct {
	Rule string
	VIP  string
	// At is the harness time at which it is certain.
	At   int64
	Text string
	// Around is the merged time line about At.
	Around []Record
}

// Report is the verdict over one history.
type Report struct {
	// MaxOwners is the largest number of owners any address had at any time.
	MaxOwners int
	// Observations counts the samples the verdict rests on: sightings of an address on a node,
	// answered ARP probes and lock records.
	Observations int
	// Takeovers counts how often an address appeared on another incarnation than before.
	Takeovers  int
	Counts     map[Stream]int
	Violations []Violation
	// NotObserved says in one sentence each what the observers missed.
	NotObserved []string
}

// OK reports whether nothing was broken and everything was watched.
func (r Report) OK() bool { return len(r.Violations) == 0 && len(r.NotObserved) == 0 }

// Run checks a history.
func Run(h History, o Options) Report {
	o = o.withDefaults()
	h.Records = append([]Record(nil), h.Records...) // the caller keeps its order
	h.sort()
	c := &checker{h: h, o: o, rep: Report{Counts: make(map[Stream]int)}}
	for _, r := range h.Records {
		c.rep.Counts[r.Stream]++
	}
	c.stays()
	c.overlaps()
	c.arp()
	c.locks()
	c.observed()
	sort.SliceStable(c.rep.Violations, func(i, j int) bool { return c.rep.Violations[i].At < c.rep.Violations[j].At })
	for i := range c.rep.Violations {
		v := &c.rep.Violations[i]
		v.Around = h.Window(v.At-int64(o.Around), v.At+int64(o.Around)).Records
	}
	return c.rep
}

// stay is one uninterrupted presence of an address on one incarnation.
type stay struct {
	vip, node, boot string
	// from is the first instant at which the address is certain to be there, to the last.
	from, to int64
	released bool
}

type checker struct {
	h     History
	o     Options
	rep   Report
	all   []*stay // in order of acquisition
	begun map[string][]int64
}

func (c *checker) violate(rule, vip string, at int64, format string, args ...any) {
	c.rep.Violations = append(c.rep.Violations, Violation{Rule: rule, VIP: vip, At: at, Text: fmt.Sprintf(format, args...)})
}

// stays builds the presence intervals from the sightings. A sighting asked at From and answered
// at To proves presence at one instant between, so a stay is certain from the first To to the
// last From; a stay that ends without a word is stretched to the end of the node (or of the
// history), because nothing says the address went earlier.
func (c *checker) stays() {
	open := make(map[string]*stay)
	c.begun = make(map[string][]int64)
	last := make(map[string]string) // vip -> incarnation that had it last
	for _, r := range c.h.of(StreamWriter) {
		c.rep.Observations++
		key := r.VIP + " " + r.Node + " " + r.Boot
		s := open[key]
		if s == nil {
			s = &stay{vip: r.VIP, node: r.Node, boot: r.Boot, from: r.To, to: r.To}
			open[key] = s
			c.all = append(c.all, s)
			c.begun[r.VIP+" "+r.Node] = append(c.begun[r.VIP+" "+r.Node], r.From)
			if inc := r.Node + " " + r.Boot; last[r.VIP] != inc {
				if last[r.VIP] != "" {
					c.rep.Takeovers++
				}
				last[r.VIP] = inc
			}
		}
		if r.From > s.to {
			if r.Kind == KindWrite && r.From-s.to > int64(c.o.MaxGap) {
				c.miss("the agent on %s was silent for %s while %s was there", r.Node, seconds(r.From-s.to), r.VIP)
			}
			s.to = r.From
		}
		if r.Kind == KindRelease {
			s.released = true
			delete(open, key)
		}
	}
	for _, s := range c.all {
		if !s.released {
			s.to = c.end(s)
		}
	}
}

// end says when an incarnation that fell silent was certainly over.
func (c *checker) end(s *stay) int64 {
	over := s.to
	for _, r := range c.h.Records {
		over = max(over, r.T)
		dead := r.Stream == StreamPower && r.Node == s.node && (r.Kind == KindOff || r.Kind == KindReset || r.Kind == KindHalt)
		if dead && r.T >= s.to && (r.Boot == "" || r.Boot == s.boot) {
			return r.T
		}
	}
	return over
}

// overlaps finds the largest number of stays of one address at one time.
func (c *checker) overlaps() {
	byVIP := make(map[string][]*stay)
	var vips []string
	for _, s := range c.all {
		if byVIP[s.vip] == nil {
			vips = append(vips, s.vip)
		}
		byVIP[s.vip] = append(byVIP[s.vip], s)
	}
	sort.Strings(vips)
	for _, vip := range vips {
		list := byVIP[vip]
		sort.SliceStable(list, func(i, j int) bool { return list[i].from < list[j].from })
		for i, s := range list {
			owners := 1
			for _, earlier := range list[:i] {
				if earlier.to <= s.from || (earlier.node == s.node && earlier.boot == s.boot) {
					continue
				}
				owners++
				c.violate(RuleTwoOwners, vip, s.from, "%s was on %s and on %s at the same time for %s",
					vip, earlier.node, s.node, seconds(min(earlier.to, s.to)-s.from))
			}
			c.rep.MaxOwners = max(c.rep.MaxOwners, owners)
		}
	}
}

// arp checks what a neighbour on the wire was told.
func (c *checker) arp() {
	type seen struct {
		mac  string
		last int64
	}
	cur := make(map[string]seen)               // vip -> who answered last
	former := make(map[string]map[string]bool) // vip -> who answered before that
	prev := make(map[string]int64)
	power := c.powerOf()
	for _, r := range c.h.of(StreamARP) {
		if p := prev[r.VIP]; p != 0 && r.T-p > int64(c.o.MaxGap) {
			c.miss("the ARP prober was silent about %s for %s", r.VIP, seconds(r.T-p))
		}
		prev[r.VIP] = r.T
		if len(r.MACs) > 0 {
			c.rep.Observations++
			c.rep.MaxOwners = max(c.rep.MaxOwners, len(r.MACs))
		}
		if len(r.MACs) > 1 {
			c.violate(RuleTwoMACs, r.VIP, r.T, "%s: %s and %s answered one ARP probe", r.VIP, c.h.who(r.MACs[0]), c.h.who(r.MACs[1]))
		}
		for _, mac := range r.MACs {
			node := c.h.who(mac)
			if off := power.offSince(node, r.From); off != 0 {
				c.violate(RuleDeadAnswers, r.VIP, r.T, "%s: %s answered ARP %s after it was switched off", r.VIP, node, seconds(r.From-off))
			}
			was := cur[r.VIP]
			if was.mac != "" && was.mac != mac {
				if former[r.VIP] == nil {
					former[r.VIP] = make(map[string]bool)
				}
				former[r.VIP][was.mac] = true
				if former[r.VIP][mac] && !c.acquiredAfter(r.VIP, node, was.last, r.T) {
					c.violate(RuleOldMAC, r.VIP, r.T, "%s: %s answered ARP again after %s had taken over, without acquiring it anew", r.VIP, node, c.h.who(was.mac))
				}
			}
			cur[r.VIP] = seen{mac, r.T}
		}
	}
}

// acquiredAfter says whether the agent on a node saw the address arrive between two times. The
// kernel may answer ARP before the agent gets to look (a sampling interval, more on a busy
// machine), and the answer of the other node is only known to within one probe window.
func (c *checker) acquiredAfter(vip, node string, after, until int64) bool {
	const window, late = int64(50 * time.Millisecond), int64(500 * time.Millisecond)
	for _, t := range c.begun[vip+" "+node] {
		if t > after-window && t < until+late {
			return true
		}
	}
	return false
}

// locks checks the shared lock of each address.
func (c *checker) locks() {
	type ask struct {
		at   int64
		node string
	}
	waiting := make(map[string]ask)
	for _, r := range c.h.of(StreamLock) {
		c.rep.Observations++
		key := r.VIP + " " + r.Node + " " + r.Boot
		switch r.Kind {
		case KindBusy:
			waiting[key] = ask{r.T, r.Node}
		case KindLocked, KindUnlocked:
			delete(waiting, key)
			if r.Wait > int64(c.o.LockGrace) {
				c.violate(RuleLock, r.VIP, r.T-r.Wait, "%s: its lock was held elsewhere for %s while it was on %s", r.VIP, seconds(r.Wait), r.Node)
			}
		}
	}
	var keys []string
	for k := range waiting {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		end := c.h.Records[len(c.h.Records)-1].T
		for _, s := range c.all {
			if s.vip+" "+s.node+" "+s.boot == k && s.from <= waiting[k].at+int64(c.o.MaxGap) {
				end = s.to
			}
		}
		if end-waiting[k].at > int64(c.o.LockGrace) {
			c.violate(RuleLock, strings.Fields(k)[0], waiting[k].at, "its lock was never free while it was on %s", waiting[k].node)
		}
	}
}

func (c *checker) miss(format string, args ...any) {
	const most = 20 // a stalled machine would repeat itself without end
	if len(c.rep.NotObserved) < most {
		c.rep.NotObserved = append(c.rep.NotObserved, fmt.Sprintf(format, args...))
	}
}

// observed is the completeness gate: a checker that saw nothing must not say that all is well.
func (c *checker) observed() {
	answered := false
	for _, r := range c.h.of(StreamARP) {
		answered = answered || len(r.MACs) > 0
	}
	for _, s := range c.o.Require {
		switch {
		case c.rep.Counts[s] == 0:
			c.miss("the %s stream is empty", s)
		case s == StreamARP && !answered:
			c.miss("no ARP probe was ever answered")
		}
	}
}

// lives is the power record of every node, in order of time.
type lives map[string][]power

type power struct {
	at int64
	on bool
}

func (c *checker) powerOf() lives {
	l := make(lives)
	for _, r := range c.h.of(StreamPower) {
		switch r.Kind {
		case KindBoot:
			// From is when the boot began: its kernel may answer before the record is written.
			at := r.T
			if r.From != 0 {
				at = r.From
			}
			l[r.Node] = append(l[r.Node], power{at, true})
		case KindOff, KindReset, KindHalt:
			l[r.Node] = append(l[r.Node], power{r.T, false})
		}
	}
	return l
}

// offSince returns when a node that is off at time t was switched off, or 0 when it was on, was
// never heard of, or was switched within the probe window itself.
func (l lives) offSince(node string, t int64) int64 {
	since := int64(0)
	for _, p := range l[node] {
		if p.at > t {
			break
		}
		since = p.at
		if p.on {
			since = 0
		}
	}
	return since
}
