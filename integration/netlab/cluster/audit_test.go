package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// base is when the told story begins.
var base = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// entry makes a log entry at so many milliseconds; its index is its place in the story.
type entry struct {
	at         int
	kind, node string
	code, text string
}

func story(list ...entry) []Event {
	var out []Event
	for i, e := range list {
		out = append(out, Event{Time: base.Add(time.Duration(e.at) * time.Millisecond), Index: uint64(i + 1), Kind: e.kind, Node: e.node, Code: e.code, Text: e.text})
	}
	return out
}

func power(at int, node, from, op string) PowerCommand {
	return PowerCommand{At: base.Add(time.Duration(at) * time.Millisecond), Node: node, From: from, Op: op}
}

// failover is a takeover as it should be: node1 owns, dies, is fenced by node2, node2 owns.
func failover() []entry {
	return []entry{
		{0, "group", "", "PREFERRED_NODE", "group web granted to node1 at epoch 1: node1 is the most preferred node that may own it"},
		{10, "group", "", "", "group web runs on node1"},
		{500, "fence", "node1", "LOST_SILENT", "node1 must be proven dead: no heartbeat of node1"},
		{510, "fence", "node1", "", "attempt 1: node2 powers it off with ipmi-1"},
		{600, "fence", "node1", "", "attempt 1 ended: off, identity matched, in 80ms; reads off"},
		{610, "fence", "node1", "PROVEN_OFF", "node1 was read back as off by ipmi-1"},
		{620, "group", "", "PREFERRED_NODE", "group web granted to node2 at epoch 7: node2 is the most preferred node that may own it"},
		{625, "fence", "node1", "", "attempt 2: node2 powers it on with ipmi-1"},
		{650, "group", "", "", "group web runs on node2"},
		{660, "fence", "node1", "", "attempt 2 ended: on, identity matched, in 30ms; reads on"},
	}
}

func without(list []entry, text string) []entry {
	var out []entry
	for _, e := range list {
		if !strings.HasPrefix(e.text, text) {
			out = append(out, e)
		}
	}
	return out
}

func swapped(list []entry, a, b int) []entry {
	list[a], list[b] = list[b], list[a]
	return list
}

// An audit that finds nothing is worth nothing unless it finds what is there: each story breaks one
// rule.
func TestAudit(t *testing.T) {
	good := []PowerCommand{power(530, "node1", "node2", "down"), power(640, "node1", "node2", "up")}
	for _, c := range []struct {
		name   string
		log    []entry
		powers []PowerCommand
		want   string // part of the one thing found; "" for nothing
	}{
		{"as it should be", failover(), good, ""},
		{"a command resent within its attempt", failover(), append(good, power(540, "node1", "node2", "down")), ""},
		{"no intent", without(failover(), "node1 must be"), good, "without an open intent"},
		{"no attempt in the log", without(failover(), "attempt 1"), good, "no attempt in the log covers it"},
		{"shot before the attempt was committed", failover(), []PowerCommand{power(505, "node1", "node2", "down")}, "no attempt in the log covers it"},
		{"shot after the attempt ended", failover(), []PowerCommand{power(610, "node1", "node2", "down")}, "no attempt in the log covers it"},
		{"shot by another node", failover(), []PowerCommand{power(530, "node1", "node3", "down")}, "from node3"},
		{"shot at another node", failover(), []PowerCommand{power(530, "node3", "node2", "down")}, "BMC of node3"},
		{"on where off was decided", failover(), []PowerCommand{power(530, "node1", "node2", "up")}, "power up"},
		{"cycle", failover(), []PowerCommand{power(530, "node1", "node2", "cycle")}, `received "cycle"`},
		{"granted before the proof", swapped(failover(), 5, 6), good, "granted to node2 while node1 neither"},
		{"never proven", without(without(failover(), "node1 was read"), "attempt 2"), good[:1], "granted to node2 while node1 neither"},
		{"runs without a grant", without(failover(), "group web granted to node2"), good, "runs on node2 without a grant"},
		{"powered on before the proof", swapped(failover(), 5, 7), good, "powers node1 on before"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Audit(story(c.log...), c.powers)
			if c.want == "" && len(got) != 0 {
				t.Fatalf("found %q", got)
			}
			if c.want != "" && (len(got) == 0 || !strings.Contains(fmt.Sprint(got), c.want)) {
				t.Fatalf("found %q, want %q", got, c.want)
			}
		})
	}
}

// A log entry is told once, in the log's order, whatever the clocks say; the rest lies between.
func TestOrdered(t *testing.T) {
	at := func(ms int) time.Time { return base.Add(time.Duration(ms) * time.Millisecond) }
	got := ordered([]Event{
		{Index: 3, Time: at(20), Text: "c"}, {Index: 2, Time: at(21), Text: "b"}, {Time: at(5), Text: "a"}, {Time: at(30), Text: "d"},
	})
	var text string
	for _, e := range got {
		text += e.Text
	}
	if text != "abcd" {
		t.Errorf("order %q", text)
	}
}

func TestFile(t *testing.T) {
	f := File([]string{"node1", "node2", "node3"}, "node3", "    failback: true\n")
	for _, want := range []string{"nodes: [node1, node2]\n", "-H 10.20.30.102 ", "timing: fast\n", "    failback: true\n"} {
		if !strings.Contains(f, want) {
			t.Errorf("no %q in\n%s", want, f)
		}
	}
	if strings.Contains(f, "node3") {
		t.Errorf("the witness is in\n%s", f)
	}
}
