package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/reason"
)

var update = flag.Bool("update", false, "rewrite the golden files and scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"picket": func() {
		os.Exit(Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, testHooks()))
	}})
}

// testHooks print what they were asked for.
func testHooks() Hooks {
	return Hooks{
		Version: "v0.0.0-test",
		Init: func(_ context.Context, o config.InitOptions) (config.InitResult, error) {
			if o.Name == "refused" {
				return config.InitResult{}, control.Refused("", "this machine is a node already", "remove /var/lib/picket first")
			}
			return config.InitResult{ClusterID: "0123456789abcdef", Fingerprint: "aa55", Notes: []string{fmt.Sprintf("links %v port %d config %s", o.Links, o.Port, o.ConfigPath)},
				JoinCommand: "picket join 192.168.60.11 --token T --name NODE --link eth0=ADDRESS"}, nil
		},
		Join: func(_ context.Context, o config.JoinOptions) (config.JoinResult, error) {
			return config.JoinResult{Cluster: "prod", ClusterID: "0123456789abcdef", Notes: []string{fmt.Sprintf("addrs %v token %d bytes", o.Addrs, len(o.Token))}}, nil
		},
		Daemon: func(_ context.Context, o config.DaemonOptions) error {
			return fmt.Errorf("the node file cannot be read: %s", o.ConfigPath)
		},
	}
}

// backend answers from canned data and records operations.
type backend struct {
	*control.EventLog
	state  string
	lastOp atomic.Pointer[control.Operation]
}

var _ control.Backend = (*backend)(nil)

func (b *backend) Status(context.Context) (control.Status, error) {
	s := cannedStatus()
	s.State = b.state
	if b.state == control.StateOK {
		s.Conditions = nil
	}
	return s, nil
}

func (b *backend) Why(_ context.Context, s string) (control.Explanation, error) {
	if s != "web" {
		return control.Explanation{}, control.Usage("'%s' is neither a group nor a node: groups are db, web; nodes are node1, node2, node3", s)
	}
	return cannedWhy(), nil
}
func (b *backend) FenceHistory(context.Context) ([]control.FenceRecord, error) {
	return cannedFences(), nil
}
func (b *backend) Config(context.Context) (control.ConfigText, error) {
	return control.ConfigText{Source: "cluster: prod\n# mine\n", Revision: 7, Applied: at(0), By: "root(uid 0)"}, nil
}

func (b *backend) Operate(_ context.Context, op control.Operation) (control.Answer, error) {
	b.lastOp.Store(&op)
	switch {
	case strings.Contains(op.Text, "canary"):
		return control.Answer{}, control.Usage("the daemon was sent a password")
	case op.Node == "owner" || strings.Contains(op.Text, "# refuse"):
		return control.Answer{}, control.Refused("REFUSED_OWNED", "group web is owned by node1", "wait for its release")
	case op.Node == "lonely":
		return control.Answer{}, control.Unavailable("NO_QUORUM", "no quorum: 1 of 3 voters can be reached", "bring back a node")
	case op.Kind == control.OpTokenCreate:
		return control.Answer{Text: "made", Token: "tok", JoinCommand: "picket join 192.168.60.11 --token tok", Expires: at(0)}, nil
	case op.Kind == control.OpApply || op.Kind == control.OpApplyCheck:
		return control.Answer{Text: op.Kind + " ok", Changes: []string{"group web: new"}, Warnings: []string{"mind the gap"}}, nil
	}
	return control.Answer{Text: fmt.Sprintf("%s node=%s group=%s to=%s reason=%q confirm=%s for=%v by %s", op.Kind, op.Node, op.Group, op.To, op.Reason, op.Confirm, op.For, op.Operator)}, nil
}

// startDaemon serves a backend on path.
func startDaemon(path, state string) (*backend, func() error, error) {
	b := &backend{EventLog: control.NewEventLog(16), state: state}
	b.Append(control.Event{Time: at(0), Kind: "fence", Node: "node2", Code: "PROVEN_OFF", Text: "node2 was read back as off by ipmi-1", Args: []control.Arg{{Key: "node", Value: "node2"}}})
	b.Append(control.Event{Time: at(1), Kind: "group", Node: "node1", Group: "web", Text: "started\x1b[2J"})
	ln, err := control.Listen(path, "root", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	s := control.NewServer(b, slog.New(slog.DiscardHandler), control.Options{PeerOf: func(net.Conn) control.Peer { return control.Peer{Known: true} }})
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	return b, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return errors.Join(s.Close(ctx), <-done)
	}, nil
}

// TestScripts runs testdata/script. Beside testscript's own commands there are:
//
//	daemon [STATE]   serve a canned daemon on $SOCK; STATE is ok, degraded or no-quorum
//	exits CODE ARGS  run picket and want this exit code; stdout and stderr can be matched afterwards
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			e.Setenv("SOCK", filepath.Join(e.WorkDir, "p.sock"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": func(ts *testscript.TestScript, _ bool, args []string) {
				_, stop, err := startDaemon(ts.Getenv("SOCK"), append(args, control.StateOK)[0])
				ts.Check(err)
				ts.Defer(func() { ts.Check(stop()) })
			},
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec("picket", append([]string{"--socket", ts.Getenv("SOCK"), "--config", filepath.Join(ts.Getenv("WORK"), "etc", "node.yaml")}, args[1:]...)...)
				got := 0
				var exit interface{ ExitCode() int }
				if errors.As(err, &exit) {
					got = exit.ExitCode()
				} else {
					ts.Check(err)
				}
				if fmt.Sprint(got) != args[0] {
					ts.Fatalf("picket %q exited with %d, want %s", args[1:], got, args[0])
				}
			},
		},
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

// checkShape holds every rendering to plain ASCII and 80 columns.
func checkShape(t *testing.T, s string) {
	t.Helper()
	for _, l := range strings.Split(s, "\n") {
		if len(l) > width {
			t.Errorf("%d columns: %s", len(l), l)
		}
		if strings.TrimRight(l, " ") != l {
			t.Errorf("trailing blanks: %q", l)
		}
		for _, c := range []byte(l) {
			if c < ' ' || c > '~' {
				t.Errorf("byte %q in %q", c, l)
			}
		}
	}
}

func at(sec int) time.Time { return time.Date(2026, 3, 4, 3, 0, sec, 0, time.UTC) }

func TestRenderStatus(t *testing.T) {
	now := at(0).Add(400 * time.Millisecond)
	healthy := cannedStatus()
	healthy.State, healthy.Conditions = control.StateOK, nil
	healthy.Nodes[1] = healthy.Nodes[0]
	healthy.Nodes[1].Name, healthy.Nodes[1].AgeMS = "node2", 80
	healthy.Groups = healthy.Groups[1:]
	alone := cannedStatus()
	alone.State, alone.Source, alone.AgeMS, alone.Leader = control.StateNoQuorum, control.SourceStale, 41_000, ""
	alone.Quorum = control.Quorum{Voters: 3, Reachable: 1}
	alone.Conditions = []control.Condition{{Code: "NO_QUORUM", Severity: "critical", Since: at(-41),
		Text: "no quorum: 1 of 3 voters can be reached", Action: "bring back at least one of the missing nodes; nothing is started or fenced until then"}}
	for i := range alone.Nodes {
		alone.Nodes[i].Source = control.SourceStale
	}
	alone.Groups[0].Source = control.SourceStale
	many := cannedStatus()
	for i := range 12 {
		many.Conditions = append(many.Conditions, control.Condition{Code: "LINK_LATE", Text: fmt.Sprintf("link node%d:eth0 is late", i), Severity: "warning"})
	}
	hostile := cannedStatus()
	hostile.Cluster, hostile.Groups[0].Reason.Text, hostile.Nodes[0].Name = "p\x1b]0;x\a", "a\nb\tc\u202e", ""
	for name, s := range map[string]control.Status{"healthy": healthy, "degraded": cannedStatus(), "no_quorum": alone, "many": many, "hostile": hostile, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			got := renderStatus(s, now)
			checkShape(t, got)
			golden(t, "status_"+name+".txt", got)
		})
	}
	js, _ := json.MarshalIndent(cannedStatus(), "", "  ")
	golden(t, "status.json", string(js)+"\n")
}

func TestRenderOthers(t *testing.T) {
	now := at(60)
	for name, got := range map[string]string{
		"why.txt":      renderWhy(cannedWhy(), now),
		"why_node.txt": renderWhy(control.Explanation{Subject: "node3", Kind: "node", Verdict: "node3 is a witness", Code: "NODE_WITNESS"}, now),
		"fences.txt":   renderFences(cannedFences(), now),
		"nofences.txt": renderFences(nil, now),
		"explain.txt":  renderCode(reason.Explain(reason.FenceUnproven)),
	} {
		checkShape(t, got)
		golden(t, name, got)
	}
	checkShape(t, renderCodes(reason.All()))
	for _, c := range []struct {
		d    time.Duration
		want string
	}{{-1, "?"}, {0, "0.0s"}, {400 * time.Millisecond, "0.4s"}, {12 * time.Second, "12s"}, {90 * time.Second, "1m"}, {3 * time.Hour, "3h"}, {72 * time.Hour, "3d"}} {
		if got := age(c.d); got != c.want {
			t.Errorf("age(%v) = %s, want %s", c.d, got, c.want)
		}
	}
}

// TestHelp renders the help of every command: each has a short text, an example or a long one, and fits.
func TestHelp(t *testing.T) {
	var buf bytes.Buffer
	r := newRunner(strings.NewReader(""), &buf, &buf, testHooks())
	var walk func(c *cobra.Command)
	var all strings.Builder
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.Short == "" {
			t.Errorf("%s has no short help", c.CommandPath())
		}
		buf.Reset()
		c.SetOut(&buf)
		if err := c.Help(); err != nil {
			t.Error(err)
		}
		all.WriteString("$ " + c.CommandPath() + " --help\n" + buf.String() + "\n")
		for _, k := range c.Commands() {
			walk(k)
		}
	}
	walk(r.root())
	golden(t, "help.txt", all.String())
}

// TestConfirmAtTerminal types at the prompts of fence confirm.
func TestConfirmAtTerminal(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "p.sock")
	b, stop, err := startDaemon(sock, control.StateOK)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		name, typed, flags string
		exit               int
		out                string
	}{
		{"both typed", "node2\ncords pulled\n", "", 0, `reason="cords pulled" confirm=node2`},
		{"wrong name", "node1\ncords pulled\n", "", 4, "'node1' is not 'node2'"},
		{"yes is not a name", "yes\n", "", 4, "nothing was confirmed"},
		{"nothing", "", "", 4, "nothing was confirmed"},
		{"no reason", "node2\n\n", "", 4, "a reason is needed"},
		{"name by flag", "cords pulled\n", "--confirm=node2", 0, `reason="cords pulled"`},
		{"wrong flag", "cords pulled\n", "--yes-i-mean=node3", 4, "'node3' is not 'node2'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			r := newRunner(strings.NewReader(c.typed), &out, &errs, Hooks{})
			r.terminal = func() bool { return true }
			args := append([]string{"--socket", sock, "fence", "confirm", "node2"}, strings.Fields(c.flags)...)
			b.lastOp.Store(nil)
			if exit := r.run(context.Background(), args); exit != c.exit || !strings.Contains(out.String()+errs.String(), c.out) {
				t.Errorf("exit %d\n%s%s", exit, &out, &errs)
			}
			if sent := b.lastOp.Load() != nil; sent != (c.exit == 0) {
				t.Errorf("sent: %v", sent)
			}
		})
	}
}

// TestFollowEnds shows that an interrupt ends events --follow and status --watch with exit code 0.
func TestFollowEnds(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "p.sock")
	_, stop, err := startDaemon(sock, control.StateOK)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"events --follow", "events --follow --json", "status --watch --every 100ms"} {
		ctx, cancel := context.WithCancel(context.Background())
		w := &cancelAfter{lines: 3, cancel: cancel}
		if exit := Run(ctx, append([]string{"--socket", sock}, strings.Fields(args)...), nil, w, &bytes.Buffer{}, Hooks{}); exit != 0 {
			t.Errorf("%s: exit %d", args, exit)
		}
		cancel()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// cancelAfter cancels when it has seen some lines; events has two canned ones, so a timer helps it.
type cancelAfter struct {
	lines  int
	cancel func()
}

func (c *cancelAfter) Write(p []byte) (int, error) {
	if c.lines -= bytes.Count(p, []byte("\n")); c.lines <= 1 {
		c.cancel()
	}
	return len(p), nil
}

func cannedStatus() control.Status {
	tick := int64(300)
	return control.Status{
		Cluster: "prod", ClusterID: "0123456789abcdef", Node: "node1", Leader: "node3", Term: 5, Index: 4211, Revision: 7,
		Quorum: control.Quorum{Voters: 3, Reachable: 2, OK: true}, State: control.StateDegraded, AsOf: at(0), Source: control.SourceLog, AgeMS: 120, Version: "v0.1.0",
		Conditions: []control.Condition{
			{Code: "FENCE_UNPROVEN", Severity: "critical", Subject: "node2", Since: at(-41),
				Text:   "node2 is lost and it is not proven off: ipmi-1 does not answer; web held",
				Action: "check its fence device and power; if you are sure node2 has no power: picket fence confirm node2"},
			{Code: "VOTER_DOWN", Severity: "warning", Subject: "node2", Text: "voter node2 is not reachable: the loss of one more node stops the cluster"},
		},
		Nodes: []control.NodeStatus{
			{Name: "node1", Role: "member", State: "online", Mode: "active", Voter: true, Since: at(-3 * 86400), Source: control.SourceLocal, TickAgeMS: &tick,
				Links: []control.LinkStatus{{Peer: "node3", Interface: "eth0", State: "up", AgeMS: 12}, {Peer: "node3", Interface: "eth1", State: "up", AgeMS: 40}},
				Fence: []control.FenceStatus{{Device: "ipmi-1", Level: 1, State: "ok", Checked: at(-12), AgeMS: 12_400, By: "node3"}}},
			{Name: "node2", Role: "member", State: "lost", Mode: "standby", Voter: true, Since: at(-41), AgeMS: 41_400, Source: control.SourceLog,
				Links: []control.LinkStatus{{Peer: "node2", Interface: "eth0", State: "dead", AgeMS: 41_400}, {Peer: "node2", Interface: "eth1", State: "late", AgeMS: 600}},
				Fence: []control.FenceStatus{{Device: "ipmi-1", Level: 1, State: "failed", Checked: at(-2), AgeMS: 2_400, By: "node3", Text: "the BMC does not answer"},
					{Device: "ipmi-2", Level: 2, State: "unproven", AgeMS: -1}}},
			{Name: "node3", Role: "witness", State: "online", Mode: "active", AgeMS: 80, Source: control.SourceLocal},
		},
		Groups: []control.GroupStatus{
			{Name: "web", Wanted: "started", State: "held", Owner: "node2", Epoch: 4102, Since: at(-41), AgeMS: 120, Source: control.SourceLog,
				Reason:    control.ReasonText{Code: "WAITS_FOR_FENCE", Text: "it waits for proof that node2 is off", Action: "if you have cut node2's power yourself: picket fence confirm node2"},
				Resources: []control.ResourceStatus{{ID: "ip:192.168.60.200", Kind: "ip", State: "failed", Text: "00:11:22:33:44:55 has the address"}}},
			{Name: "db", Wanted: "started", State: "running", Owner: "node1", Epoch: 4000, Reason: control.ReasonText{Code: "PREFERRED_NODE", Text: "node1 is the most preferred node that may own it"}},
		},
	}
}

func cannedWhy() control.Explanation {
	return control.Explanation{Subject: "web", Kind: "group", Verdict: "it waits for proof that node2 is off", Code: "WAITS_FOR_FENCE",
		Action: "if you have cut node2's power yourself: picket fence confirm node2", AsOf: at(59), Source: control.SourceLeader,
		Lines: []control.WhyLine{
			{Name: "node1", Verdict: "eligible", Code: "ONLY_CANDIDATE", Text: "node1 is the only node that may own it now", Source: "leader", AgeMS: 120},
			{Name: "node2", Verdict: "excluded", Code: "NODE_LOST", Text: "node2 is lost: no heartbeat on any link and no lease tick for 41s, as node3 agrees", Source: "log", AgeMS: 41_000},
			{Name: "node3", Verdict: "excluded", Code: "NODE_WITNESS", Text: "node3 is a witness: it votes and never owns", AgeMS: -1},
		}}
}

func cannedFences() []control.FenceRecord {
	return []control.FenceRecord{
		{Intent: 4180, Node: "node2", BootID: "b", Code: "LOST_LEASE", Text: "node2 owns web and its newest lease tick is 6.6s old", State: "open", Opened: at(0),
			Attempts: []control.FenceAttempt{{Device: "ipmi-1", Level: 1, Executor: "node3", Outcome: "failed", Text: "the BMC does not answer", TookMS: 5003},
				{Device: "ipmi-1", Level: 1, Executor: "node1", Outcome: "running"}}},
		{Intent: 3001, Node: "node1", Code: "OPERATOR_FENCE", Text: "an operator asked for it: hangs", State: "confirmed", Opened: at(-7200), Closed: at(-7199),
			Attempts: []control.FenceAttempt{{Device: "ipmi-1", Level: 1, Executor: "node3", Outcome: "off", TookMS: 412}},
			Evidence: "power-off", EvidenceText: "node1 was read back as off by ipmi-1", Operator: "root(uid 0)", Reason: "hangs"},
	}
}
