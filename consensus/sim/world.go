// Package sim is a deterministic world for consensus/core: nodes with clocks of their own, links,
// fence devices, resources and a model of raft that keeps raft's promises and no others. It executes
// the same core as production does; one seed gives one trace.
//
// After every committed entry and every act on the world it compares what the product believes with
// what is true: see check.go.
package sim

import (
	"container/heap"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// Options shapes a world. The zero value is three members with the fast profile and no faults.
type Options struct {
	// Witness makes the third node a witness: two members and a witness.
	Witness bool
	// Profile is the timing profile: fast (the default here), default or cautious.
	Profile string
	// Groups is how many groups there are; 2 unless given. Group i prefers the nodes from i on.
	Groups int
	// Failback is set on every group.
	Failback bool
	// Grow lets the first node start alone; the others are admitted and become voters at run time.
	Grow bool
	// Duration is the simulated time under faults; Settle the time after all of them healed.
	Duration, Settle time.Duration
	// Class picks the kind of random faults; see Class.
	Class Class
}

// Result is what one run came to.
type Result struct {
	// Hash is over everything that happened: equal seeds give equal hashes.
	Hash uint64
	// Violations are broken invariants, in the order they were found; empty in a sound run.
	Violations []string
	// Story is the readable time line.
	Story []string
	// Stats counts what the run has seen, so that a run that saw nothing can be told from a good one.
	Stats Stats
}

// Stats counts what happened in a run.
type Stats struct {
	Events, Entries, Grants, Fences, PowerOffs, Starts, Elections, Snapshots, Unknown, Refused int
}

// event is one entry of the queue; equal times go in the order of their making.
type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || (q[i].at == q[j].at && q[i].seq < q[j].seq)
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	o := *q
	e := o[len(o)-1]
	*q = o[:len(o)-1]
	return e
}

// World is one simulated cluster.
type World struct {
	opt      Options
	rng      *rand.Rand
	now      time.Duration
	seq      uint64
	q        queue
	machines []*machine // sorted by name
	hash     hash.Hash64
	story    []string
	bad      []string
	stats    Stats
	blocked  map[pair]bool // one-way blocks between two nodes on one NIC
	ledger   ledger
	net      netConfig
	res      resConfig
	told     map[uint64]bool // log indexes whose journal line is in the story
	maxTerm  uint64
	confused time.Duration           // how much longer than its lease a cut-off leader believes in itself
	gentle   bool                    // no fence is expected at all
	traps    map[string]func()       // stories: kind of a committed entry -> what happens then, once
	verify   map[ids.Node][]verified // quorum rounds that succeeded
	quiet    bool                    // stories: no lines about single links
}

type verified struct{ begun, done time.Duration }

// newWorld makes a world whose machines are off.
func newWorld(seed uint64, o Options) *World {
	if o.Profile == "" {
		o.Profile = "fast"
	}
	if o.Groups == 0 {
		o.Groups = 2
	}
	w := &World{opt: o, rng: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), hash: fnv.New64a(), blocked: map[pair]bool{},
		told: map[uint64]bool{}, verify: map[ids.Node][]verified{}, traps: map[string]func(){}, now: time.Second}
	w.net = netConfig{delay: 500 * time.Microsecond, jitter: 2 * time.Millisecond}
	w.res = resConfig{took: 20 * time.Millisecond}
	for i := range 3 {
		w.machines = append(w.machines, newMachine(w, i))
	}
	w.found()
	return w
}

// start powers every machine on.
func (w *World) start() {
	for _, m := range w.machines {
		m.powerOn(w.between(0, 500*time.Millisecond))
	}
}

func (w *World) machine(n ids.Node) *machine {
	for _, m := range w.machines {
		if m.name == n {
			return m
		}
	}
	return nil
}

// after schedules something; a delay below zero counts as zero.
func (w *World) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.q, event{w.now + max(d, 0), w.seq, do})
}

// run lets the world go on for a while.
func (w *World) run(d time.Duration) {
	end := w.now + d
	for len(w.q) > 0 && w.q[0].at <= end && len(w.bad) < maxBad {
		e := heap.Pop(&w.q).(event)
		w.now = e.at
		w.stats.Events++
		e.do()
	}
	w.now = end
}

// maxBad bounds how many violations one run collects before it ends.
const maxBad = 5

func (w *World) between(a, b time.Duration) time.Duration {
	if b <= a {
		return a
	}
	return a + time.Duration(w.rng.Int64N(int64(b-a)))
}

func (w *World) chance(percent int) bool { return w.rng.IntN(100) < percent }

// say adds a line to the story.
func (w *World) say(f string, a ...any) {
	line := fmt.Sprintf(f, a...)
	w.mark("%d %s", int64(w.now), line)
	if len(w.story) < 20000 {
		w.story = append(w.story, fmt.Sprintf("%9.3f  %s", w.now.Seconds(), line))
	}
}

// mark folds a line into the trace hash.
func (w *World) mark(f string, a ...any) { fmt.Fprintf(w.hash, f, a...) }

// violation notes a broken invariant, once per text.
func (w *World) violation(f string, a ...any) {
	line := fmt.Sprintf(f, a...)
	for _, b := range w.bad {
		if b == line {
			return
		}
	}
	w.bad = append(w.bad, line)
	w.say("VIOLATION %s", line)
}

func (w *World) result() Result {
	return Result{Hash: w.hash.Sum64(), Violations: w.bad, Story: w.story, Stats: w.stats}
}

func (w *World) timing() state.Timing {
	t, err := state.Profile(w.opt.Profile)
	if err != nil {
		t, _ = state.Profile("fast")
	}
	return t
}
