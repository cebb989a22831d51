package plan_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/picket-ha/picket/consensus/internal/story"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/state"
)

var configs = []string{
	"node n1 ipmi-1 ipmi-2\nnode n2 ipmi-1 trusted\nnode n3\ngroup db n1,n2 disk1\ngroup web n2,n1 ip1 failback\n",
	"node n1 ipmi-1\nnode n2\nnode n3\ngroup api n1,n2 disk1\ngroup web n2,n1 ip1,ip2\nsingle\n",
}

var commands = []string{"up n1 boot=B session=S uuid=1", "up n2 boot=B session=S uuid=2", "up n2 boot=B session=S", "grant web n1", "grant web n2", "grant db n1", "grant db n2",
	"grant api n2", "started web", "started db", "revoke web why=CONFIG_CHANGED", "revoke db why=CONFIG_CHANGED", "released web", "startfailed web cause=x", "stopfailed web cause=x", "stopfailed db cause=x",
	"monitor web ip1 cause=x", "standby n1", "standby n1 off", "standby n2 off", "leave n1", "leave n2 done", "want web stopped", "want web started", "move web n1", "move db n2",
	"intent n1 why=OPERATOR_FENCE op=ann", "intent n2 why=LOST_SILENT", "intent n1 why=LOST_SILENT", "begin n1 exec=n2 dev=ipmi-1", "begin n2 exec=n3 dev=ipmi-1", "begin n1 exec=n3 dev=ipmi-2",
	"begin n1 exec=n3 dev=ipmi-1 on", "end n1 N off guid=1", "end n1 N failed", "end n2 N off", "confirm n1 off=N", "confirm n2 off=N", "confirm n1 reboot=B", "confirm n2 human=ann reason=x",
	"remove n2", "config 0", "config 1", "up w boot=B uuid=9"}

var facts = []string{"self n1", "self n3 settled=S uptime=S", "self n2 uptime=S", "node n1 silent=S agreed", "node n2 silent=S agreed", "node n1 silent=S", "node n2 never agreed", "node n1 never others",
	"node n1 boot=B", "node n2 boot=B", "node n2 boot=B silent=S agreed", "node n1 tick=S", "node n2 tick=S others", "node n1 silent=S agreed refused", "fence n1 proof=S end=S intent=S heard=B", "fence n2 proof=S end=S intent=S heard=B",
	"fence n1 overdue=N expired=N", "fence n2 end=S overdue=N", "device n2 n1 ipmi-1 failed", "device n3 n1 ipmi-1", "device n3 n2 ipmi-1 failed", "revoke web age=S", "revoke db age=S", "node n3 nonvoter"}

// fill replaces the capitals of a template by small random values.
func fill(t *rapid.T, s string) string {
	one := func(of ...string) string { return rapid.SampledFrom(of).Draw(t, "value") }
	w := strings.Fields(s)
	for i := range w {
		if i == 0 {
			continue
		}
		head, val, ok := strings.Cut(w[i], "=")
		if !ok {
			head, val = "", w[i]
		}
		switch val {
		case "B":
			val = one("a", "b", "c", "d", "e", "f")
		case "S":
			val = one("0s", "50ms", "1s", "3s", "10s", "1m", "5m")
			if head == "session" {
				val = one("1", "2", "3")
			}
		case "N":
			val = one("1", "2", "3")
		}
		if ok {
			val = head + "=" + val
		}
		w[i] = val
	}
	return strings.Join(w, " ")
}

// TestDecideAnything: on any state that commands can make, and any facts, the plan does not depend on the
// order of the facts, is never refused, asks for nothing twice, and gives a reason for everything.
func TestDecideAnything(t *testing.T) {
	ops := map[string]int{}
	check := func(t *rapid.T) {
		s := randomState(t)
		var text strings.Builder
		for range rapid.IntRange(0, 8).Draw(t, "facts") {
			text.WriteString(fill(t, rapid.SampledFrom(facts).Draw(t, "fact")) + "\n")
		}
		f, err := parseFacts(s, text.String())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			p := plan.Decide(s, f)
			explained(t, p)
			for _, op := range p.Ops {
				ops[fmt.Sprintf("%T", op.Cmd)]++
			}
			s = sound(t, s, f, p)
		}
	}
	for range 20 { // a plan takes microseconds: many more than rapid's hundred
		rapid.Check(t, check)
		if t.Failed() {
			return
		}
	}
	for _, k := range []string{"Grant", "Revoke", "FenceIntent", "FenceBegin", "FenceEnd", "FenceConfirm"} {
		if ops["state."+k] == 0 {
			t.Errorf("no random plan ever had a %s: %v", k, ops)
		}
	}
}

func randomState(t *rapid.T) state.State {
	var s state.State
	try := func(line string) {
		if n, ok := strings.CutPrefix(line, "config "); ok {
			c, err := story.Config(configs[n[0]-'0'])
			if err != nil {
				t.Fatal(err)
			}
			s, _ = state.Apply(s, s.Index+1, state.Entry{Cmd: state.ConfigSet{Base: s.Revision, Config: c}})
			return
		}
		cmd, err := story.Command(s, line)
		if err != nil {
			t.Fatal(err)
		}
		s, _ = state.Apply(s, s.Index+1, state.Entry{Cmd: cmd})
	}
	for _, line := range []string{"admit n1 member eth0=10.0.0.1", "mint a", "mint b", "mint c", "admit n2 member eth0=10.0.0.2 tok=a", "admit n3 member eth0=10.0.0.3 tok=b",
		"admit w witness eth0=10.0.0.4 tok=c", "up n1 boot=a uuid=1", "up n2 boot=a uuid=2", "up n3 boot=a uuid=3", "config 0"} {
		try(line)
	}
	for range rapid.IntRange(20, 60).Draw(t, "steps") {
		try(fill(t, rapid.SampledFrom(commands).Draw(t, "command")))
	}
	return s
}

// explained checks that nothing stands without a reason and that every reason is in the catalogue with
// all its arguments.
func explained(t *rapid.T, p plan.Plan) {
	for _, g := range p.Groups {
		if g.Reason.IsZero() && g.State != "running" {
			t.Fatalf("group %s is %s without a reason", g.Name, g.State)
		}
		for _, v := range g.Nodes {
			if v.Reason.IsZero() && v.Is != "owner" {
				t.Fatalf("group %s: node %s is %s without a reason", g.Name, v.Node, v.Is)
			}
		}
		if strings.Contains(g.Reason.Text()+g.Reason.Action(), "{") {
			t.Fatalf("group %s: %s", g.Name, g.Reason.Text())
		}
	}
	for _, n := range p.Nodes {
		if n.State != "online" && n.Reason.IsZero() {
			t.Fatalf("node %s is %s without a reason", n.Name, n.State)
		}
	}
	for _, c := range p.Conditions {
		if s := c.Reason.Text() + c.Reason.Action(); strings.Contains(s, "{") || s == string(c.Reason.Code) {
			t.Fatalf("condition %s: %q", c.Subject, s)
		}
	}
}
