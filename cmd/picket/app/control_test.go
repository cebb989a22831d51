package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// exit checks the exit class of an error, and that it is one sentence.
func exit(t *testing.T, err error, code int, want string) {
	t.Helper()
	if control.ExitCode(err) != code {
		t.Fatalf("error %v has exit code %d, wanted %d", err, control.ExitCode(err), code)
	}
	refused(t, err, want)
}

// TestOperate is an operator's day with a cluster of three.
func TestOperate(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.timing = "cautious"
	y.formed("prod")
	y.apply(y.file("prod", "web", "db"))
	y.runs("web")
	y.runs("db")
	for _, c := range []struct {
		name string
		f    func(*testing.T, *yard)
	}{
		{"refused files change nothing", refusedFiles},
		{"forwarded by a follower", forwarded},
		{"asked twice", askedTwice},
		{"move, stop and start", moveStopStart},
		{"standby", standby},
		{"fence confirm is refused", refusedConfirm},
		{"the JSON of status", statusJSON},
		{"why is never empty", whyAll},
		{"events", events},
		{"without a leader", leaderless},
	} {
		t.Run(c.name, func(t *testing.T) {
			was := y.t
			defer func() { y.t = was }()
			y.t = t
			for _, b := range y.boxes {
				b.t = t
			}
			c.f(t, y)
			y.agree()
		})
		for _, b := range y.boxes {
			b.t = t
		}
	}
	y.nobodyFenced()
}

// nobodyFenced checks every node's fence history and what the BMCs and the resets have seen.
func (y *yard) nobodyFenced() {
	y.t.Helper()
	for _, b := range y.boxes {
		if n := b.running(); n != nil {
			if h, err := b.cli.FenceHistory(y.t.Context()); err != nil || len(h) > 0 {
				y.t.Errorf("%s knows the fences %+v, %v", b.name, h, err)
			}
		}
		if p := b.bmc.PowerCommands(); len(p) > 0 {
			y.t.Errorf("the BMC of %s was told %+v", b.name, p)
		}
		if len(b.resets) > 0 {
			y.t.Errorf("%s was to be reset: %v", b.name, b.resets)
		}
	}
}

func refusedFiles(t *testing.T, y *yard) {
	b := y.leading()
	good := y.file("prod", "web", "db")
	before := y.agree()
	for _, c := range []struct {
		name, text, want string
		code             int
		rev              uint64
	}{
		{"not YAML", "cluster: [", "test.yaml:1:", control.ExitUsage, 0},
		{"unknown key", strings.Replace(good, "groups:", "gruops:", 1), "test.yaml:", control.ExitUsage, 0},
		{"another cluster", strings.Replace(good, "cluster: prod", "cluster: test", 1), `the file is of cluster "test"`, control.ExitRefused, 0},
		{"stale revision", good + "# changed\n", "the configuration is at revision", control.ExitRefused, before.Revision - 1},
		{"impossible timing", strings.Replace(good, "timing: cautious", "timing: {profile: cautious, lease: 1s}", 1), "does not hold", control.ExitUsage, 0},
		{"a password", strings.Replace(good, "-f "+y.boxes[0].secret, "-P s3cr3t-inl1ne", 1), "holds a password", control.ExitUsage, 0},
	} {
		for _, kind := range []string{control.OpApply, control.OpApplyCheck} {
			_, err := b.operate(control.Operation{Kind: kind, File: "test.yaml", Text: c.text, Revision: c.rev})
			if control.ExitCode(err) != c.code || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("%s, %s: %v (exit code %d, wanted %d with %q)", kind, c.name, err, control.ExitCode(err), c.code, c.want)
			}
		}
	}
	more := y.file("prod", "web", "db", "mail")
	a := b.must(control.Operation{Kind: control.OpApply, File: "test.yaml", Text: more, DryRun: true})
	if !slices.Contains(a.Changes, "group mail is new") || a.Index != 0 || a.Revision != before.Revision {
		t.Errorf("a dry run answered %+v", a)
	}
	if a := b.must(control.Operation{Kind: control.OpApply, File: "test.yaml", Text: good}); a.Index != 0 || !strings.Contains(a.Text, "nothing to change") {
		t.Errorf("the file in force, applied again: %+v", a)
	}
	after := y.agree()
	if after.Revision != before.Revision || after.Config.Source != before.Config.Source || len(after.Groups) != 2 {
		t.Errorf("revision %d became %d", before.Revision, after.Revision)
	}
	if c, err := b.cli.Config(t.Context()); err != nil || c.Source != good || c.Revision != before.Revision {
		t.Errorf("config shows revision %d: %v", c.Revision, err)
	}
}

// TestFits: what only a running cluster can see. The nodes of these tests have loopback addresses, which
// no cluster file may name; so the cluster is made up here.
func TestFits(t *testing.T) {
	n := &Node{}
	n.conf.Cluster = "prod"
	s := state.State{Nodes: []state.Node{{Name: "node1", Links: []state.LinkAddr{{Interface: "eth0", Addr: "192.168.60.11"}}},
		{Name: "node2", Links: []state.LinkAddr{{Interface: "eth0", Addr: "192.168.60.12"}, {Interface: "eth1", Addr: "10.10.10.12"}}}}}
	at := func(a string) state.Config {
		return state.Config{Cluster: "prod", Groups: []state.GroupConfig{{Name: "web", Resources: []state.ResourceConfig{{ID: "ip:x", IP: &state.IPResource{Prefix: netip.MustParsePrefix(a)}}}}}}
	}
	if err := n.fits(at("192.168.60.200/24"), s); err != nil {
		t.Error(err)
	}
	exit(t, n.fits(at("10.10.10.12/24"), s), control.ExitRefused, "group web: 10.10.10.12 is the own address of node2")
	exit(t, n.fits(state.Config{Cluster: "test"}, s), control.ExitRefused, `the file is of cluster "test"`)
}

func forwarded(t *testing.T, y *yard) {
	f := y.follower()
	a := f.must(control.Operation{Kind: control.OpTokenCreate, For: 2 * time.Hour, Operator: "somebody else"})
	s := y.agree()
	tok := s.Tokens[len(s.Tokens)-1]
	if want := "root(uid 0) at " + f.name; tok.By != want {
		t.Errorf("the token was made by %q, wanted %q", tok.By, want)
	}
	if left := time.Until(a.Expires); left < 119*time.Minute || left > 120*time.Minute || tok.Expires != a.Expires.UnixMilli() {
		t.Errorf("the token lives %v", left)
	}
	if !strings.HasPrefix(a.JoinCommand, "picket join "+y.leading().addr.String()+" --token "+a.Token) {
		t.Errorf("join command %q", a.JoinCommand)
	}
	_, err := f.operate(control.Operation{Kind: control.OpNodeStandby, Node: "nobody"})
	exit(t, err, control.ExitRefused, "node nobody is not known")
	_, err = f.operate(control.Operation{Kind: control.OpTokenCreate, For: time.Second})
	exit(t, err, control.ExitUsage, "cannot live 1s")
	_, err = f.operate(control.Operation{Kind: control.OpNodeStandby, Node: "node1", For: time.Hour})
	exit(t, err, control.ExitUsage, "--for is not supported")
}

func askedTwice(t *testing.T, y *yard) {
	for _, b := range []*box{y.leading(), y.follower()} {
		n := len(y.agree().Tokens)
		op := control.Operation{Kind: control.OpTokenCreate, ID: "twice-" + b.name}
		first, again := b.must(op), b.must(op)
		if first.Token == "" || first.Token != again.Token || first.Index != again.Index {
			t.Errorf("the same operation answered %+v and %+v", first, again)
		}
		if got := len(y.agree().Tokens); got != n+1 {
			t.Errorf("%d tokens were made by one operation", got-n)
		}
	}
	// Both at once, as a client repeats one that takes long.
	n := len(y.agree().Tokens)
	b := y.leading()
	var wg sync.WaitGroup
	got := make([]control.Answer, 4)
	for i := range got {
		wg.Go(func() {
			got[i], _ = b.cli.Operate(t.Context(), control.Operation{Kind: control.OpTokenCreate, ID: "at-once"})
		})
	}
	wg.Wait()
	for _, a := range got {
		if a.Token == "" || a.Token != got[0].Token {
			t.Errorf("the same operation, four times at once, answered %+v and %+v", got[0], a)
		}
	}
	if m := len(y.agree().Tokens); m != n+1 {
		t.Errorf("%d tokens were made by one operation sent four times at once", m-n)
	}
}

func (y *yard) box(name ids.Node) *box {
	for _, b := range y.boxes {
		if b.name == string(name) {
			return b
		}
	}
	y.t.Fatalf("no machine %s", name)
	return nil
}

func moveStopStart(t *testing.T, y *yard) {
	b := y.follower()
	at := y.runs("web")
	epoch := y.agree().Group("web").Epoch
	to := y.boxes[0]
	if at == to {
		to = y.boxes[1]
	}
	b.must(control.Operation{Kind: control.OpGroupMove, Group: "web", To: to.name})
	y.runs("web", to)
	if e := y.agree().Group("web").Epoch; e <= epoch {
		t.Errorf("epoch %d after %d", e, epoch)
	}
	if a := b.must(control.Operation{Kind: control.OpGroupMove, Group: "web", To: to.name}); !strings.Contains(a.Text, "nothing to do") {
		t.Errorf("a move to where it is: %q", a.Text)
	}
	b.must(control.Operation{Kind: control.OpGroupMove, Group: "web"})
	eventually(t, patience, "it runs on another node", func() bool { s := b.running().fsm.State(); return s.Group("web").Owner.Node != ids.Node(to.name) })
	y.runs("web")
	_, err := b.operate(control.Operation{Kind: control.OpGroupMove, Group: "nothing"})
	exit(t, err, control.ExitRefused, "group nothing is not known")
	_, err = b.operate(control.Operation{Kind: control.OpGroupMove, Group: "web", To: "nobody"})
	exit(t, err, control.ExitRefused, "nobody")

	b.must(control.Operation{Kind: control.OpGroupStop, Group: "db"})
	eventually(t, patience, "db is stopped and its address is gone", func() bool {
		s := b.running().fsm.State()
		return s.Group("db").Epoch == 0 && !slices.Contains(addresses(t), y.address(1).String())
	})
	st, err := b.cli.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(st.Groups, func(g control.GroupStatus) bool { return g.Name == "db" })
	if g := st.Groups[i]; g.Wanted != "stopped" || g.State != "stopped" || g.Owner != "" || g.Reason.Code != "GROUP_STOPPED" {
		t.Errorf("a stopped group shows as %+v", g)
	}
	b.must(control.Operation{Kind: control.OpGroupStart, Group: "db"})
	y.runs("db")
	if !slices.Contains(addresses(t), y.address(1).String()) {
		t.Errorf("addresses %v", addresses(t))
	}
}

func standby(t *testing.T, y *yard) {
	at := y.runs("web")
	y.follower().must(control.Operation{Kind: control.OpNodeStandby, Node: at.name, Reason: "new disk"})
	eventually(t, patience, "it moves away", func() bool {
		s := y.leading().running().fsm.State()
		g := s.Group("web")
		return g.Phase == state.PhaseStarted && g.Owner.Node != ids.Node(at.name) && len(s.Owned(ids.Node(at.name), at.boot)) == 0
	})
	st, err := y.follower().cli.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range st.Nodes {
		if (x.Mode == "standby") != (x.Name == at.name) {
			t.Errorf("%s has mode %s", x.Name, x.Mode)
		}
	}
	y.follower().must(control.Operation{Kind: control.OpNodeOnline, Node: at.name})
	s := y.agree()
	if s.Node(ids.Node(at.name)).Standby {
		t.Error("it is on standby still")
	}
	if g := s.Group("web"); g.Owner.Node == ids.Node(at.name) {
		t.Error("the group came back although failback is off")
	}
	y.runs("db")
}

func refusedConfirm(t *testing.T, y *yard) {
	f, l := y.follower(), y.leading()
	_, err := f.operate(control.Operation{Kind: control.OpFenceConfirm, Node: l.name, Reason: "I pulled the cord"})
	exit(t, err, control.ExitUsage, "must be typed once more")
	_, err = f.operate(control.Operation{Kind: control.OpFenceConfirm, Node: l.name, Confirm: l.name})
	exit(t, err, control.ExitUsage, "reason")
	_, err = f.operate(control.Operation{Kind: control.OpFenceConfirm, Node: "nobody", Confirm: "nobody", Reason: "I pulled the cord"})
	exit(t, err, control.ExitRefused, "nobody is not known")
	for _, b := range y.boxes {
		_, err = f.operate(control.Operation{Kind: control.OpFenceConfirm, Node: b.name, Confirm: b.name, Reason: "I pulled the cord"})
		exit(t, err, control.ExitRefused, "signs of life")
	}
}

// shape describes the fields and the types of a value, sorted.
func shape(at string, v any) []string {
	switch v := v.(type) {
	case map[string]any:
		var out []string
		for k, x := range v {
			out = append(out, shape(at+"."+k, x)...)
		}
		slices.Sort(out)
		return out
	case []any:
		out := []string{at + "[]"}
		for _, x := range v {
			out = append(out, shape(at+"[]", x)...)
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return []string{fmt.Sprintf("%s %v", at, reflect.TypeOf(v))}
}

// contract is the documented shape of status, less what needs a ping node or a watchdog.
const contract = `{"cluster":"prod","node":"node1","leader":"node3","term":5,"index":4211,"quorum":{"voters":3,"reachable":3,"ok":true},
 "state":"ok","conditions":[{"code":"","text":"","action":"","subject":"","severity":""}],
 "nodes":[{"name":"","role":"member","state":"online","mode":"active","incarnation":"","boot_id":"","voter":true,
   "links":[{"peer":"node2","interface":"eth0","state":"up","age_ms":12,"addr":""}],
   "fence":[{"device":"ipmi","level":1,"state":"ok","checked":"","age_ms":1,"by":""}],"since":"","source":"","age_ms":1,"tick_age_ms":1,"version":""}],
 "groups":[{"name":"web","wanted":"started","state":"running","owner":"node1","epoch":4102,"reason":{"code":"","text":""},
   "resources":[{"id":"","kind":"ip","state":"running"}],"since":"","source":"","age_ms":0}],
 "cluster_id":"","revision":7,"version":"","as_of":"","source":"leader","age_ms":0}`

func statusJSON(t *testing.T, y *yard) {
	for _, b := range y.boxes {
		var st control.Status
		var err error
		eventually(t, patience, "every fence device is proven, from "+b.name, func() bool {
			st, err = b.cli.Status(within(t, 3*time.Second))
			return err == nil && st.Source == control.SourceLeader && !slices.ContainsFunc(st.Nodes, func(n control.NodeStatus) bool { return n.Fence[0].State != "ok" })
		})
		if st.State != control.StateOK || len(st.Conditions) > 0 {
			t.Errorf("%s: state %s, conditions %+v", b.name, st.State, st.Conditions)
		}
		st.Conditions = append(st.Conditions, control.Condition{}) // for its shape
		text, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if err := errors.Join(json.Unmarshal([]byte(contract), &want), json.Unmarshal(text, &got)); err != nil {
			t.Fatal(err)
		}
		have := shape("", got)
		for _, line := range shape("", want) {
			if !slices.Contains(have, line) {
				t.Errorf("%s: status has no %q", b.name, line)
			}
		}
		checkEnums(t, b, st)
	}
}

func checkEnums(t *testing.T, b *box, st control.Status) {
	t.Helper()
	in := func(what, v string, of ...string) {
		t.Helper()
		if !slices.Contains(of, v) {
			t.Errorf("%s: %s is %q, wanted one of %v", b.name, what, v, of)
		}
	}
	if st.Node != b.name || st.Cluster != "prod" || st.Leader == "" || st.Term == 0 || st.Index == 0 || st.Revision == 0 || st.AsOf.IsZero() {
		t.Errorf("%s: head of status %+v", b.name, st)
	}
	if d := cmp.Diff(control.Quorum{Voters: 3, Reachable: 3, OK: true}, st.Quorum); d != "" {
		t.Errorf("%s: quorum %s", b.name, d)
	}
	if len(st.Nodes) != 3 || len(st.Groups) != 2 {
		t.Fatalf("%s: %d nodes, %d groups", b.name, len(st.Nodes), len(st.Groups))
	}
	for i, n := range st.Nodes {
		in("role", n.Role, "member", "witness")
		in("state", n.State, "online")
		in("mode", n.Mode, "active")
		if n.Name != fmt.Sprintf("node%d", i+1) || n.BootID == "" || n.Incarnation == "" || !n.Voter {
			t.Errorf("%s: node %+v", b.name, n)
		}
		if want := 1; n.Name == b.name && len(n.Links) != 2 || n.Name != b.name && len(n.Links) != want {
			t.Errorf("%s: links of %s: %+v", b.name, n.Name, n.Links)
		}
		for _, l := range n.Links {
			in("link", l.State, "up", "late")
			if l.Interface != "lo" || l.AgeMS < 0 || l.Peer == b.name || l.Addr != string(y(b, l.Peer)) {
				t.Errorf("%s: link %+v", b.name, l)
			}
		}
		in("device", n.Fence[0].State, "ok")
		if n.Fence[0].By == n.Name || n.Fence[0].AgeMS < 0 {
			t.Errorf("%s: fence device %+v", b.name, n.Fence[0])
		}
	}
	for _, g := range st.Groups {
		in("wanted", g.Wanted, "started")
		in("group", g.State, "running")
		if g.Owner == "" || g.Epoch == 0 || g.Reason.Code == "" || g.Reason.Text == "" || len(g.Resources) != 1 {
			t.Errorf("%s: group %+v", b.name, g)
		}
		for _, r := range g.Resources {
			in("resource", r.State, "running")
			in("kind", r.Kind, "ip")
		}
	}
}

// y is the address of a peer on the loopback link, as text.
func y(b *box, peer string) string {
	a := b.addr.As4()
	return fmt.Sprintf("%d.%d.%d.%s", a[0], a[1], a[2], strings.TrimPrefix(peer, "node"))
}

func whyAll(t *testing.T, y *yard) {
	for _, b := range y.boxes {
		for _, subject := range []string{"web", "db", "node1", "node2", "node3"} {
			e, err := b.cli.Why(t.Context(), subject)
			if err != nil {
				t.Fatalf("%s: why %s: %v", b.name, subject, err)
			}
			kind := "group"
			if strings.HasPrefix(subject, "node") {
				kind = "node"
			}
			if e.Subject != subject || e.Kind != kind || e.Verdict == "" || len(e.Lines) == 0 || e.Source != control.SourceLeader || e.AsOf.IsZero() {
				t.Errorf("%s: why %s: %+v", b.name, subject, e)
			}
			if kind == "group" && (e.Code == "" || len(e.Lines) != 3) {
				t.Errorf("%s: why %s: %+v", b.name, subject, e)
			}
			for _, l := range e.Lines {
				if l.Name == "" || l.Verdict == "" || l.Text == "" {
					t.Errorf("%s: why %s has an empty line: %+v", b.name, subject, l)
				}
			}
		}
		_, err := b.cli.Why(t.Context(), "nothing")
		exit(t, err, control.ExitUsage, "it has nodes node1, node2, node3 and groups db, web")
	}
}

func events(t *testing.T, y *yard) {
	b := y.follower()
	var got []control.Event
	enough := errors.New("enough")
	at := y.runs("web")
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		n := 0
		done <- b.cli.Events(within(t, patience), 0, true, func(e control.Event) error {
			if n++; n == 1 {
				close(started)
			}
			got = append(got, e)
			if e.Group == "web" && e.Kind == "group" && e.Text == "group web runs on "+at.name && slices.ContainsFunc(got, func(x control.Event) bool {
				return strings.Contains(x.Text, "by root(uid 0)") && x.Group == "web" && strings.Contains(x.Text, at.name)
			}) {
				return enough
			}
			return nil
		})
	}()
	<-started
	y.leading().must(control.Operation{Kind: control.OpGroupMove, Group: "web"})
	eventually(t, patience, "it moves", func() bool {
		s := b.running().fsm.State()
		g := s.Group("web")
		return g.Owner.Node != ids.Node(at.name) && g.Phase == state.PhaseStarted
	})
	y.leading().must(control.Operation{Kind: control.OpGroupMove, Group: "web", To: at.name})
	if err := <-done; !errors.Is(err, enough) {
		t.Fatalf("the stream ended with %v after %d events", err, len(got))
	}
	for i, e := range got {
		if e.Seq != uint64(i)+1 || e.Time.IsZero() || e.Kind == "" || e.Text == "" {
			t.Errorf("event %d: %+v", i, e)
		}
	}
	last := got[len(got)-1]
	var tail []control.Event
	if err := b.running().Events(t.Context(), last.Seq-1, false, func(e control.Event) error { tail = append(tail, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(tail) == 0 || tail[0].Seq != last.Seq {
		t.Errorf("events since %d begin with %+v", last.Seq-1, tail)
	}
}

func leaderless(t *testing.T, y *yard) {
	before := y.agree()
	left := y.boxes[0]
	for _, b := range y.boxes[1:] {
		b.crash()
	}
	var ce *control.Error
	eventually(t, patience, "it is said that nobody leads", func() bool {
		_, err := left.cli.Operate(t.Context(), control.Operation{Kind: control.OpNodeStandby, Node: "node1"})
		if control.ExitCode(err) != control.ExitUnavailable {
			t.Fatalf("without a quorum an operation answered %v", err)
		}
		return errors.As(err, &ce) && ce.Class == control.ClassUnavailable && ce.Code == "NO_LEADER"
	})
	refused(t, ce, "nothing was changed")
	var st control.Status
	eventually(t, patience, "status says that there is no quorum", func() (ok bool) {
		var err error
		st, err = left.cli.Status(t.Context())
		return err == nil && st.State == control.StateNoQuorum && !st.Quorum.OK
	})
	if len(st.Nodes) != 3 || len(st.Groups) != 2 || st.Conditions[0].Code != "NO_QUORUM" || st.Conditions[0].Action == "" {
		t.Errorf("status without a quorum: %+v", st)
	}
	for _, subject := range []string{"web", "node2"} {
		if e, err := left.cli.Why(t.Context(), subject); err != nil || e.Verdict == "" {
			t.Errorf("why %s without a quorum: %+v, %v", subject, e, err)
		}
	}
	for _, b := range y.boxes[1:] {
		b.start()
	}
	y.settled(3)
	after := y.agree()
	if after.Revision != before.Revision || len(after.Tokens) != len(before.Tokens) {
		t.Error("something was lost")
	}
	y.runs("web")
	y.runs("db")
}
