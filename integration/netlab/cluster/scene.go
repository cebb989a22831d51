package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/picket-ha/picket/integration/check"
)

// Kinds of what a scene tells while it is played.
const (
	TellDid     = "did"     // what was done: a command
	TellAnswer  = "answer"  // what that command printed
	TellEvent   = "event"   // what the cluster said by itself, with the time since the fault
	TellExplain = "explain" // a word to the reader
	TellClient  = "client"  // what the client saw
	TellCheck   = "check"   // one expectation that held
	TellBroken  = "broken"  // one expectation that did not hold
)

// Scene is one thing that can happen to a cluster.
type Scene struct {
	// Key names the scene ("cord"); Title says what happens.
	Key, Title string
	play       func(context.Context, *Stage) error
}

// Scenes lists the six scenes in the order in which they are played.
func Scenes() []Scene {
	return []Scene{
		{"switchover", "planned work: standby, and a clean stop of the daemon", switchover},
		{"one-cable", "one cable of the owner is cut (the heartbeat cable, eth1)", oneCable},
		{"both-cables", "both cables of the owner are cut", bothCables},
		{"kill", "kill -9 of the owner's daemon", killDaemon},
		{"power", "the owner loses power, its BMC still answers", powerCut},
		{"cord", "the owner's cord is pulled: node and BMC die together", pulledCord},
	}
}

// Check is one expectation and whether it held.
type Check struct {
	OK   bool
	Text string
}

// Result is how one play of a scene went.
type Result struct {
	Key    string
	Checks []Check
	// Did is what the cluster did, and Fenced how the old owner was proven dead, in a few words.
	Did, Fenced string
	// Outage is what the client measured, Held how much of it the group was held on purpose.
	Outage, Held time.Duration
	// Fault is when the fault was made; From is harness time at the beginning of the scene.
	Fault time.Time
	From  int64
}

// OK reports whether every expectation held.
func (r Result) OK() bool {
	for _, c := range r.Checks {
		if !c.OK {
			return false
		}
	}
	return len(r.Checks) > 0
}

// Stage is one play of one scene.
type Stage struct {
	C *Cluster
	// Tell hears what is told, a line at a time; since is the time since the fault for TellEvent.
	Tell func(kind, text string, since time.Duration)
	// Hold is for how long a held group is watched before it is freed.
	Hold time.Duration

	res    Result
	before Status
	fences int
	told   map[string]bool
	fault  int64 // harness time of the fault
}

// settleTimeout bounds the wait for a cluster to be well again after a scene.
const settleTimeout = 30 * time.Second

// Play plays one scene on a cluster that is well, and brings it back to that. An error means that the
// scene could not be played to its end; what it found so far is in the result.
func (st *Stage) Play(ctx context.Context, s Scene) (Result, error) {
	st.res = Result{Key: s.Key, From: check.Now()}
	st.told = make(map[string]bool)
	if st.Tell == nil {
		st.Tell = func(string, string, time.Duration) {}
	}
	err := st.ready(ctx)
	if err == nil {
		err = s.play(ctx, st)
	}
	if err == nil {
		err = st.finish(ctx)
	}
	if err != nil && ctx.Err() == nil {
		st.expect(false, "the scene was not played to its end: %v", err)
	}
	return st.res, err
}

// ready takes stock before the fault.
func (st *Stage) ready(ctx context.Context) error {
	var err error
	if st.before, err = st.C.AwaitOK(ctx, settleTimeout); err != nil {
		return err
	}
	list, err := st.C.Fences(ctx)
	if err != nil {
		return err
	}
	st.fences = len(list)
	if err := st.C.Answers(ctx, 5*time.Second); err != nil {
		return err
	}
	g := st.before.Group(Web)
	st.Tell(TellExplain, fmt.Sprintf("before: %s runs on %s (epoch %d), leader %s, term %d", Web, g.Owner, g.Epoch, st.before.Leader, st.before.Term), 0)
	return nil
}

// owner is who owned the group before the fault; other is a node that did not.
func (st *Stage) owner() string { return st.before.Group(Web).Owner }

func (st *Stage) other() string {
	for _, n := range st.C.Nodes {
		if n != st.owner() && n != st.C.Witness {
			return n
		}
	}
	return ""
}

// expect notes one expectation.
func (st *Stage) expect(ok bool, format string, args ...any) {
	c := Check{ok, fmt.Sprintf(format, args...)}
	st.res.Checks = append(st.res.Checks, c)
	kind := TellCheck
	if !ok {
		kind = TellBroken
	}
	st.Tell(kind, c.Text, 0)
}

// strike makes the fault and starts the clock.
func (st *Stage) strike(ctx context.Context, command string, do func(context.Context) error) error {
	st.Tell(TellDid, command, 0)
	st.fault, st.res.Fault = check.Now(), time.Now()
	return do(ctx)
}

// command runs a picket command as the operator would, shows it and its answer, and starts the clock
// if the scene has no fault yet.
func (st *Stage) command(ctx context.Context, node string, args ...string) error {
	var shown []string
	for _, a := range args {
		if strings.ContainsAny(a, " '") {
			a = "'" + a + "'"
		}
		shown = append(shown, a)
	}
	run := func(ctx context.Context) error {
		out, err := st.C.Must(ctx, node, args...)
		for _, l := range strings.Split(first(out.Stdout, out.Stderr), "\n") {
			st.Tell(TellAnswer, l, 0)
		}
		return err
	}
	text := fmt.Sprintf("[%s] picket %s", node, strings.Join(shown, " "))
	if st.fault == 0 {
		return st.strike(ctx, text, run)
	}
	st.Tell(TellDid, text, 0)
	return run(ctx)
}

// tellEvents tells what the cluster said since the fault and has not been told yet, in order: all
// log entries, and of the links those that died, as the nodes that were not struck saw it.
func (st *Stage) tellEvents(ctx context.Context) error {
	all, err := st.C.Events(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		local := e.Index == 0
		if e.Time.Before(st.res.Fault) || st.told[e.Text] || (local && (e.Code != "LINK_DEAD" || e.From == st.owner())) {
			continue
		}
		st.told[e.Text] = true
		text := e.Text
		if e.Code != "" {
			text += " [" + e.Code + "]"
		}
		if local {
			text += ", says " + e.From
		} else {
			text += fmt.Sprintf(" (log entry %d)", e.Index)
		}
		st.Tell(TellEvent, text, e.Time.Sub(st.res.Fault))
	}
	return nil
}

// client measures what the client saw from a harness time until now. The window is widened until its
// longest gap has an end: the newest answer is always a few milliseconds old.
func (st *Stage) client(ctx context.Context, from int64) (time.Duration, error) {
	if err := st.C.Answers(ctx, 10*time.Second); err != nil {
		return 0, err
	}
	var g check.Gap
	err := Until(ctx, 5*time.Second, func() (string, error) {
		var err error
		if g, err = st.C.Outage(ctx, from, check.Now()); err != nil {
			return "", err
		}
		return want(!g.Open, fmt.Sprintf("the client gets no answer for %d ms", g.Length().Milliseconds())), nil
	})
	return g.Length(), err
}

// tellClient says what was measured.
func (st *Stage) tellClient(d time.Duration, what string) {
	st.Tell(TellClient, fmt.Sprintf("%s: longest time without an answer: %d ms", what, d.Milliseconds()), 0)
}

// NoOutage is below what the longest gap between two answers counts as no outage. The client asks
// every 5 ms; the rest is what a busy machine does to whoever asks and answers. A move may be faster:
// that nothing moved is for Untouched to say.
const NoOutage = 300 * time.Millisecond

// newFences returns the fences since the scene began.
func (st *Stage) newFences(ctx context.Context) ([]Fence, error) {
	list, err := st.C.Fences(ctx)
	if err != nil {
		return nil, err
	}
	return list[min(st.fences, len(list)):], nil
}

// expectFences checks the number of fences since the scene began, and that each hit the node and was
// proven in the given way.
func (st *Stage) expectFences(ctx context.Context, n int, node, evidence string) error {
	list, err := st.newFences(ctx)
	if err != nil {
		return err
	}
	if n == 0 {
		st.res.Fenced = "no"
		st.expect(len(list) == 0, "nobody was fenced%s", count(list, 0))
		return nil
	}
	ok := len(list) == n
	for _, f := range list {
		ok = ok && f.Node == node && f.State == "confirmed" && f.Evidence == evidence
		st.res.Fenced = "yes: " + f.Evidence
	}
	st.expect(ok, "fenced exactly once: %s, proof: %s%s", node, evidence, count(list, n))
	return nil
}

// count adds what there was instead, when it is not what was expected.
func count(list []Fence, n int) string {
	if len(list) == n {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, " (in the history: %d fences", len(list))
	for _, f := range list {
		fmt.Fprintf(&b, "; %s %s %s %s", f.Node, f.Code, f.State, f.Evidence)
	}
	return b.String() + ")"
}

// finish waits until all is well and compares the log with the BMCs.
func (st *Stage) finish(ctx context.Context) error {
	if _, err := st.C.AwaitOK(ctx, settleTimeout); err != nil {
		return err
	}
	events, err := st.C.Events(ctx)
	if err != nil {
		return err
	}
	powers, err := st.C.PowerCommands(ctx, 0)
	if err != nil {
		return err
	}
	broken := Audit(events, powers)
	st.expect(len(broken) == 0, "the log covers every power command, and proof came before grant before start%s", strings.Join(append([]string{""}, broken...), "; "))
	return nil
}
