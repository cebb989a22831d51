package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
)

// slack is what two clocks of one machine may differ by in a comparison: events carry the wall
// clock, observers CLOCK_MONOTONIC_RAW, and the distance of the two is read once per audit.
const slack = 2 * time.Millisecond

// Lines of the log, as picket events tells them.
var (
	reBegin   = regexp.MustCompile(`^attempt (\d+): (\S+) powers it (off|on) with (\S+)$`)
	reEnd     = regexp.MustCompile(`^attempt (\d+) ended: (\S+?),`)
	reIntent  = regexp.MustCompile(`^(\S+) must be proven dead: `)
	reGrant   = regexp.MustCompile(`^group (\S+) granted to (\S+) at epoch (\d+): `)
	reRuns    = regexp.MustCompile(`^group (\S+) runs on (\S+)$`)
	reRelease = regexp.MustCompile(`^group (\S+) (?:released by|failed to start on) (\S+): `)
)

// PowerCommand is one chassis control command as a BMC received it.
type PowerCommand struct {
	At   time.Time // by the wall clock
	Node string    // whose BMC
	From string    // the node that sent it; its address if it is none of the nodes
	Op   string    // down, up, cycle, reset, soft
	Lied bool
}

// PowerCommands lists what the BMCs received since a harness time (see check.Now), oldest first.
func (c *Cluster) PowerCommands(ctx context.Context, since int64) ([]PowerCommand, error) {
	h, err := c.Lab.History(ctx)
	if err != nil {
		return nil, err
	}
	return c.powerCommands(h, since), nil
}

func (c *Cluster) powerCommands(h check.History, since int64) []PowerCommand {
	wall := time.Duration(time.Now().UnixNano() - check.Now())
	var list []PowerCommand
	for _, r := range h.Window(since, 0).Records {
		op, ok := strings.CutPrefix(r.Text, "power ")
		if r.Stream != check.StreamBMC || r.Kind != "power" || !ok {
			continue
		}
		op, note, _ := strings.Cut(op, " ")
		p := PowerCommand{At: time.Unix(0, r.T+int64(wall)), Node: r.Node, From: r.Source, Op: op, Lied: note != ""}
		if a, err := netip.ParseAddrPort(r.Source); err == nil {
			for i, n := range c.Nodes {
				if a.Addr().Unmap() == netlab.Addr(i, netlab.LinkMgmt) {
					p.From = n
				}
			}
		}
		list = append(list, p)
	}
	return list
}

// attempt is one use of a fence device, from its entries in the log.
type attempt struct {
	node, executor, op string
	begun, ended       time.Time
}

// audit walks the log's own story in its order.
type audit struct {
	broken   []string
	intents  map[string]bool // nodes with an open intent
	freed    map[string]bool // nodes whose newest fence is confirmed
	attempts map[string]*attempt
	owner    map[string]string // group -> owner until it released or was proven dead
	granted  map[string]string // group -> node that may report that it runs
	rounds   map[string]int    // node -> number of its intents: attempts are numbered anew in each
}

func (a *audit) breaks(format string, args ...any) {
	a.broken = append(a.broken, fmt.Sprintf(format, args...))
}

// Audit compares what the cluster wrote into its log with what the BMCs received, and returns what
// does not fit, one sentence each. events are all events of the cluster's life (some daemon must have
// lived through it); powers all commands the BMCs received. The rules:
//
//   - an attempt to power a node off begins only under an intent to fence that node, one to power it
//     on only after the proof;
//   - every power command a BMC received lies within a committed attempt against that very node, by
//     the node that sent it, in that direction; no reset and no cycle was ever sent;
//   - proof comes after its intent and not while an attempt that is to prove it still runs;
//   - a group is granted only when its owner released it (or reported that it could not start it and
//     stopped what it had started), or was proven dead, and runs only where it was granted, afterwards.
func Audit(events []Event, powers []PowerCommand) []string {
	a := &audit{intents: map[string]bool{}, freed: map[string]bool{}, attempts: map[string]*attempt{}, owner: map[string]string{}, granted: map[string]string{}, rounds: map[string]int{}}
	seen := map[string]bool{}
	for _, e := range events {
		key := fmt.Sprintf("%d %s", e.Index, e.Text)
		if e.Index == 0 || seen[key] {
			continue
		}
		seen[key] = true
		if e.Kind == "fence" {
			a.fence(e)
		}
		if e.Kind == "group" {
			a.group(e)
		}
	}
	for _, p := range powers {
		a.power(p)
	}
	return a.broken
}

func (a *audit) fence(e Event) {
	key := func(n string) string { return fmt.Sprintf("%s/%d/%s", e.Node, a.rounds[e.Node], n) }
	switch m := reBegin.FindStringSubmatch(e.Text); {
	case m != nil:
		if m[3] == "off" && !a.intents[e.Node] {
			a.breaks("entry %d: %s powers %s off without an open intent", e.Index, m[2], e.Node)
		}
		if m[3] == "on" && !a.freed[e.Node] {
			a.breaks("entry %d: %s powers %s on before it was proven dead", e.Index, m[2], e.Node)
		}
		a.attempts[key(m[1])] = &attempt{node: e.Node, executor: m[2], op: m[3], begun: e.Time}
		return
	case reIntent.MatchString(e.Text):
		a.intents[e.Node], a.freed[e.Node] = true, false
		a.rounds[e.Node]++
		return
	case strings.HasPrefix(e.Code, "PROVEN_"):
		if !a.intents[e.Node] && e.Code != "PROVEN_REBOOTED" {
			a.breaks("entry %d: %s is proven dead without an intent", e.Index, e.Node)
		}
		a.intents[e.Node], a.freed[e.Node] = false, true
		for g, owner := range a.owner {
			if owner == e.Node {
				a.owner[g] = ""
			}
		}
		return
	}
	if m := reEnd.FindStringSubmatch(e.Text); m != nil {
		t := a.attempts[key(m[1])]
		if t == nil {
			a.breaks("entry %d: attempt %s against %s ends and never began", e.Index, m[1], e.Node)
		} else if m[2] != "expired" { // what expired may still land
			t.ended = e.Time
		}
	}
}

func (a *audit) group(e Event) {
	if m := reGrant.FindStringSubmatch(e.Text); m != nil {
		if o := a.owner[m[1]]; o != "" {
			a.breaks("entry %d: group %s is granted to %s while %s neither released it nor was proven dead", e.Index, m[1], m[2], o)
		}
		a.owner[m[1]], a.granted[m[1]] = m[2], m[2]
	}
	if m := reRuns.FindStringSubmatch(e.Text); m != nil && a.granted[m[1]] != m[2] {
		a.breaks("entry %d: group %s runs on %s without a grant", e.Index, m[1], m[2])
	}
	if m := reRelease.FindStringSubmatch(e.Text); m != nil && a.owner[m[1]] == m[2] {
		a.owner[m[1]], a.granted[m[1]] = "", ""
	}
}

func (a *audit) power(p PowerCommand) {
	op := map[string]string{"down": "off", "up": "on"}[p.Op]
	if op == "" {
		a.breaks("the BMC of %s received %q from %s: picket sends down and up only", p.Node, p.Op, p.From)
		return
	}
	for _, t := range a.attempts {
		if t.node == p.Node && t.executor == p.From && t.op == op && p.At.After(t.begun.Add(-slack)) && (t.ended.IsZero() || p.At.Before(t.ended.Add(slack))) {
			return
		}
	}
	a.breaks("the BMC of %s received power %s from %s at %s, and no attempt in the log covers it", p.Node, p.Op, p.From, p.At.UTC().Format("15:04:05.000"))
}

// Grants lists the grants of a group among the events, oldest first, as "node epoch".
func Grants(events []Event, group string) []string {
	var list []string
	for _, e := range events {
		if m := reGrant.FindStringSubmatch(e.Text); m != nil && m[1] == group && e.Index != 0 {
			list = append(list, m[2]+" "+m[3])
		}
	}
	return slices.Compact(list)
}
