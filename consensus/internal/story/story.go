// Package story reads the short lines in which the golden stories of the deciding core are told, and
// renders states for them. Only tests import it.
package story

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// Line is one line of a story: words, and key=value arguments.
type Line struct {
	Words []string
	Args  map[string]string
	// Bad is the first argument that could not be read.
	Bad error
}

// Split cuts a line into words and arguments. An underscore in a value stands for a blank.
func Split(s string) Line {
	l := Line{Args: map[string]string{}}
	for _, f := range strings.Fields(s) {
		if k, v, ok := strings.Cut(f, "="); ok && k != "" {
			l.Args[k] = strings.ReplaceAll(v, "_", " ")
			continue
		}
		l.Words = append(l.Words, f)
	}
	return l
}

// Word returns the i-th word, or "".
func (l *Line) Word(i int) string {
	if i >= len(l.Words) {
		return ""
	}
	return l.Words[i]
}

// Has reports whether a word after the first is in the line.
func (l *Line) Has(w string) bool {
	for _, x := range l.Words[1:] {
		if x == w {
			return true
		}
	}
	return false
}

// Uint returns a number, or def where the argument is absent.
func (l *Line) Uint(key string, def uint64) uint64 {
	s, ok := l.Args[key]
	if !ok {
		return def
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		l.Bad = fmt.Errorf("%s=%s: want a number", key, s)
	}
	return n
}

// Dur returns a duration, or def where the argument is absent.
func (l *Line) Dur(key string, def time.Duration) time.Duration {
	s, ok := l.Args[key]
	if !ok {
		return def
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		l.Bad = fmt.Errorf("%s=%s: want a duration", key, s)
	}
	return d
}

// Inc reads an incarnation: NODE is the newest one the state knows, NODE/BOOT/GEN is exactly that one.
func Inc(s state.State, w string) ids.Incarnation {
	p := strings.Split(w, "/")
	if len(p) == 3 {
		g, _ := strconv.ParseUint(p[2], 10, 64)
		return ids.Incarnation{Node: ids.Node(p[0]), Boot: ids.Boot(p[1]), Gen: g}
	}
	if n := s.Node(ids.Node(w)); n != nil {
		return n.Up
	}
	return ids.Incarnation{Node: ids.Node(w)}
}

// UUID is the machine uuid written as one number, or "" for none.
func UUID(n string) string {
	if n == "" || n == "none" {
		return ""
	}
	if len(n) > 12 {
		return n
	}
	return "8f3a5c1e-0d2b-4e6f-9a7c-" + strings.Repeat("0", 12-len(n)) + n
}

// Resource reads ip1 as the address 10.9.0.1, and any other word as a resource that holds data.
func Resource(w string) state.ResourceConfig {
	if n, err := strconv.Atoi(strings.TrimPrefix(w, "ip")); err == nil && strings.HasPrefix(w, "ip") {
		a := netip.AddrFrom4([4]byte{10, 9, 0, byte(n)})
		return state.ResourceConfig{ID: ids.Resource("ip:" + a.String()), Monitor: 5 * time.Second,
			IP: &state.IPResource{Prefix: netip.PrefixFrom(a, 24), Interface: "eth0", ProbeWait: 40 * time.Millisecond, Refresh: 10 * time.Second}}
	}
	return state.ResourceConfig{ID: ids.Resource("disk:" + w), Monitor: 5 * time.Second}
}

// Config reads a cluster configuration, one node, group, timing or flag a line:
//
//	node NAME [DEVICE[@LEVEL]]... [trusted]
//	group NAME NODE,NODE RESOURCE,RESOURCE [failback] [start=D] [stop=D]
//	timing PROFILE [drain=D]
//	single
func Config(text string) (state.Config, error) {
	c := state.Config{Cluster: "prod"}
	c.Timing, _ = state.Profile("default")
	for _, s := range strings.Split(strings.TrimSpace(text), "\n") {
		l := Split(s)
		switch l.Word(0) {
		case "":
		case "node":
			c.Nodes = append(c.Nodes, node(l))
		case "group":
			g := state.GroupConfig{Name: ids.Group(l.Word(1)), Failback: l.Has("failback"), StartTimeout: l.Dur("start", 20*time.Second), StopTimeout: l.Dur("stop", 10*time.Second)}
			for _, n := range list(l.Word(2)) {
				g.Nodes = append(g.Nodes, ids.Node(n))
			}
			for _, r := range list(l.Word(3)) {
				g.Resources = append(g.Resources, Resource(r))
			}
			c.Groups = append(c.Groups, g)
		case "timing":
			t, err := state.Profile(l.Word(1))
			if err != nil {
				return c, err
			}
			t.Drain = l.Dur("drain", t.Drain)
			t.Lease = l.Dur("lease", t.Lease)
			c.Timing = t
		case "single":
			c.SingleNode = true
		default:
			return c, fmt.Errorf("%s: not a line of a configuration", s)
		}
		if l.Bad != nil {
			return c, l.Bad
		}
	}
	return c, nil
}

func list(s string) []string {
	if s == "" || s == "-" {
		return nil
	}
	return strings.Split(s, ",")
}

func node(l Line) state.NodeConfig {
	n := state.NodeConfig{Name: ids.Node(l.Word(1))}
	for _, w := range l.Words[2:] {
		if w == "trusted" {
			continue
		}
		id, lev, _ := strings.Cut(w, "@")
		level, _ := strconv.Atoi(lev)
		n.Fence = append(n.Fence, state.FenceDevice{ID: id, Level: max(level, 1), IPMI: &state.IPMIOpts{Host: "bmc-" + string(n.Name), Port: 623,
			User: "admin", PasswordFile: "/etc/picket/bmc", Privilege: "OPERATOR", Suite: 17, Interval: time.Second, Retries: 2, TrustIdentity: l.Has("trusted")}})
	}
	return n
}

// report reads the outcome of a power attempt.
func report(l *Line) fencing.Report {
	r := fencing.Report{Op: fencing.OpOff, Outcome: fencing.Outcome(l.Word(3)), Identity: fencing.IdentityUnproven, Detail: l.Args["detail"]}
	switch r.Outcome {
	case fencing.OutcomeOff:
		r.OffReadings, r.Sent = int(l.Uint("readings", 2)), 1
	case fencing.OutcomeOn:
		r.Op, r.Sent = fencing.OpOn, 1
	}
	if l.Args["op"] == "on" {
		r.Op = fencing.OpOn
	}
	if g := UUID(l.Args["guid"]); g != "" {
		r.GUID, r.Identity = g, fencing.IdentityMatched
	}
	return r
}

// why reads CODE as a reason.
func why(l Line) reason.Reason {
	if c := l.Args["why"]; c != "" {
		return reason.New(reason.Code(strings.ReplaceAll(c, " ", "_")))
	}
	return reason.Reason{}
}
