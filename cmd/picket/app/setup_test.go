package app

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
	"github.com/picket-ha/picket/consensus/state"
)

// tree lists everything below a directory: mode, and a digest of what a file holds.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%s %v", rel, fi.Mode())
		if fi.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(b))
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// root is the directory that holds the machine's configuration and state.
func (b *box) root() string { return filepath.Dir(b.paths.StateDir) }

// refused checks that an error is one sentence that says the right thing.
func refused(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case err == nil:
		t.Fatalf("it worked; wanted an error with %q", want)
	case !strings.Contains(err.Error(), want):
		t.Fatalf("the error is %q; wanted one with %q", err, want)
	case strings.ContainsAny(err.Error(), "\n\r\t") || len(err.Error()) > 400:
		t.Fatalf("the error is not one sentence: %q", err)
	}
}

func TestInit(t *testing.T) {
	y := newYard(t, 1)
	b := y.boxes[0]
	res, err := Init(t.Context(), b.initOptions("prod"))
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(b.paths.StateDir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		switch {
		case d.IsDir():
			want = 0o700
		case d.Name() == "ca.pem", d.Name() == "node.pem": // certificates: every peer is shown them
			want = 0o644
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, not %v", p, fi.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	conf, err := config.ReadNode(b.paths.ConfigPath)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Node{Cluster: "prod", ClusterID: res.ClusterID, Name: "node1", Role: "member", Links: b.links(), Port: b.port, Group: "picket", LogLevel: "info"}
	if d := cmp.Diff(want, conf, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("node.yaml: %s", d)
	}
	dir := filepath.Join(b.paths.StateDir, pkiDir)
	ca, err := pki.LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ca.Fingerprint().String() != res.Fingerprint {
		t.Errorf("init says fingerprint %s, the CA on disk has %s", res.Fingerprint, ca.Fingerprint())
	}
	if _, err := pki.LoadHeartbeatKey(dir); err != nil {
		t.Error(err)
	}
	if id, err := pki.LoadNode(dir); err != nil || id.Node != "node1" || id.ClusterID() != res.ClusterID {
		t.Errorf("certificate: %+v, %v", id, err)
	}

	before := tree(t, b.root())
	_, err = Init(t.Context(), b.initOptions("other"))
	refused(t, err, "already a picket node")
	_, err = Join(t.Context(), b.joinOptions(b, "nonsense"))
	refused(t, err, "already a picket node")
	if d := cmp.Diff(before, tree(t, b.root())); d != "" {
		t.Errorf("a refused init changed something: %s", d)
	}
	// Without the node file a log still says that this was a node.
	if err := errors.Join(os.Remove(b.paths.ConfigPath), os.Mkdir(filepath.Join(b.paths.StateDir, raftDir), 0o700)); err != nil {
		t.Fatal(err)
	}
	_, err = Init(t.Context(), b.initOptions("other"))
	refused(t, err, "already holds a node's state")
	// With neither, what is there was left by a set-up that was cut short: it is made anew.
	if err := os.Remove(filepath.Join(b.paths.StateDir, raftDir)); err != nil {
		t.Fatal(err)
	}
	again, err := Init(t.Context(), b.initOptions("other"))
	if err != nil || again.ClusterID == res.ClusterID {
		t.Errorf("a set-up after one that was cut short: %+v, %v", again, err)
	}
}

func TestInitLeavesNothingWhenItFails(t *testing.T) {
	y := newYard(t, 1)
	b := y.boxes[0]
	if err := os.WriteFile(filepath.Dir(b.paths.ConfigPath), nil, 0o600); err != nil { // a file where a directory must be
		t.Fatal(err)
	}
	before := tree(t, b.root())
	_, err := Init(t.Context(), b.initOptions("prod"))
	refused(t, err, "write the node file")
	if d := cmp.Diff(before, tree(t, b.root())); d != "" {
		t.Errorf("a failed init left something: %s", d)
	}
}

// TestFounding starts and ends the first daemon at any moment of its founding.
func TestFounding(t *testing.T) {
	y := newYard(t, 1)
	b := y.boxes[0]
	if _, err := Init(t.Context(), b.initOptions("prod")); err != nil {
		t.Fatal(err)
	}
	order := filepath.Join(b.paths.StateDir, foundFile)
	copied, err := os.ReadFile(order)
	if err != nil {
		t.Fatal(err)
	}
	stages := []func(n *Node) bool{
		func(*Node) bool { return true },
		func(n *Node) bool { return n.raft.Bootstrapped() },
		func(n *Node) bool { return n.raft.IsLeader() },
		func(n *Node) bool { s := n.fsm.State(); return s.Node("node1") != nil },
		func(n *Node) bool { s := n.fsm.State(); return len(s.Tokens) > 0 },
		func(*Node) bool { _, err := os.Stat(order); return err != nil },
	}
	for i, reached := range stages {
		b.start()
		eventually(t, patience, fmt.Sprintf("stage %d of the founding", i), func() bool { return reached(b.running()) })
		b.crash()
	}
	if err := os.WriteFile(order, copied, 0o600); err != nil { // as if the end of it had not been written
		t.Fatal(err)
	}
	b.start()
	eventually(t, patience, "the founding is complete", func() bool {
		_, err := os.Stat(order)
		s := b.running().fsm.State()
		return err != nil && s.Node("node1") != nil && !s.Node("node1").Up.IsZero()
	})
	s := b.running().fsm.State()
	var f founding
	if err := json.Unmarshal(copied, &f); err != nil {
		t.Fatal(err)
	}
	if len(s.Nodes) != 1 || len(s.Tokens) != 1 || s.Tokens[0].Hash != f.TokenHash || s.Tokens[0].Expires != f.Expires {
		t.Errorf("after repeated foundings there are %d nodes and the tokens %+v", len(s.Nodes), s.Tokens)
	}
}

// fill puts a name and an address into a printed join command and reads it as options.
func fill(t *testing.T, b *box, command string) config.JoinOptions {
	t.Helper()
	words := strings.Fields(strings.NewReplacer("NAME", b.name, "ADDRESS", b.addr.String()).Replace(command))
	if len(words) < 4 || words[0] != "picket" || words[1] != "join" {
		t.Fatalf("join command %q", command)
	}
	o := config.JoinOptions{Paths: b.paths, Role: config.RoleMember, Port: config.DefaultPort, NoStart: true}
	var links []string
	for i := 3; i+1 < len(words); i += 2 {
		switch words[i] {
		case "--token":
			o.Token = words[i+1]
		case "--name":
			o.Name = words[i+1]
		case "--link":
			links = append(links, words[i+1])
		case "--port":
			if _, err := fmt.Sscan(words[i+1], &o.Port); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("join command %q holds %q", command, words[i])
		}
	}
	var err error
	if o.Links, err = config.ParseLinks(links); err != nil {
		t.Fatal(err)
	}
	if o.Addrs, err = config.ParseJoinAddrs(words[2], o.Port); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestThirdNodeMakesVoters: the printed command joins a node; it votes only together with a third; a
// witness votes and is never given a group.
func TestThirdNodeMakesVoters(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.boxes[2].role = config.RoleWitness
	res := y.found("prod")
	first, second, witness := y.boxes[0], y.boxes[1], y.boxes[2]
	got, err := Join(t.Context(), fill(t, second, res.JoinCommand))
	if err != nil {
		t.Fatal(err)
	}
	if got.Cluster != "prod" || got.ClusterID != res.ClusterID {
		t.Errorf("joined %+v, wanted cluster prod with id %s", got, res.ClusterID)
	}
	voters := func() (n int) {
		list, _, err := first.running().raft.Servers()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.Voter {
				n++
			}
		}
		return n
	}
	second.start()
	eventually(t, patience, "node2 is up and caught up", func() bool {
		s := second.running().fsm.State()
		list, _, err := first.running().raft.Servers()
		return err == nil && len(list) == 2 && s.Node("node2") != nil && !s.Node("node2").Up.IsZero()
	})
	for range 60 { // a third of a second in which the leader decides a dozen times
		if n := voters(); n != 1 {
			t.Fatalf("%d voters with two nodes: the loss of either one would stop the cluster", n)
		}
		<-time.After(5 * time.Millisecond)
	}
	y.join(witness)
	y.settled(3)

	y.apply(y.file("prod", "web"))
	y.runs("web", first)
	first.must(control.Operation{Kind: control.OpNodeStandby, Node: "node1"})
	y.runs("web", second)
	first.must(control.Operation{Kind: control.OpNodeStandby, Node: "node2"})
	eventually(t, patience, "nobody runs the group", func() bool { s := first.running().fsm.State(); return s.Group("web").Epoch == 0 })
	var e control.Explanation
	eventually(t, patience, "it is said why", func() bool {
		e, err = first.cli.Why(t.Context(), "web")
		return err == nil && e.Code == "NO_CANDIDATE"
	})
	for _, s := range []string{"node1", "node2", "node3"} {
		if !slices.ContainsFunc(e.Lines, func(l control.WhyLine) bool { return l.Name == s && l.Verdict == "excluded" && l.Text != "" }) {
			t.Errorf("why web says nothing of %s: %+v", s, e.Lines)
		}
	}
	if _, err := first.operate(control.Operation{Kind: control.OpGroupMove, Group: "web", To: "node3"}); control.ExitCode(err) != control.ExitRefused {
		t.Errorf("moving a group to the witness: %v", err)
	}
	first.must(control.Operation{Kind: control.OpNodeOnline, Node: "node2"})
	y.runs("web", second)
	if s := y.agree(); s.Group("web").Owner.Node == "node3" {
		t.Error("the witness owns a group")
	}
}

// cutter passes a join on and cuts the connection once the cluster has admitted the node, before the
// answer comes through.
func cutter(t *testing.T, to netip.AddrPort, admitted func() bool) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		in, err := l.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := net.Dial("tcp", to.String())
		if err != nil {
			return
		}
		defer out.Close()
		go func() { _, _ = io.Copy(out, in); out.Close() }()
		buf := make([]byte, 64<<10)
		for {
			n, err := out.Read(buf)
			if err != nil || admitted() {
				return
			}
			if _, err := in.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// deaf accepts connections and says something that is not TLS.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n")
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func mistype(token string) string {
	b := []byte(token)
	i := len(b) / 4
	if b[i] == 'a' {
		b[i] = 'b'
	} else {
		b[i] = 'a'
	}
	return string(b)
}

func TestRefusedJoins(t *testing.T) {
	y := newYard(t, 3)
	y.found("prod")
	first, second, third := y.boxes[0], y.boxes[1], y.boxes[2]
	n := first.running()
	mint := func(expires time.Time) string {
		tok, err := pki.NewToken(n.ca.Fingerprint(), time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if !expires.IsZero() {
			if _, err := n.propose(t.Context(), state.TokenMint{Hash: tok.Hash, Expires: expires.UnixMilli(), By: "test"}); err != nil {
				t.Fatal(err)
			}
		}
		return tok.Text
	}
	later := time.Now().Add(time.Hour)
	otherCA, err := pki.NewCluster("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := pki.NewToken(otherCA.Fingerprint(), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	used := mint(later)
	if _, err := Join(t.Context(), second.joinOptions(first, used)); err != nil {
		t.Fatal(err)
	}
	second.start()
	eventually(t, patience, "node2 is up", func() bool { s := n.fsm.State(); return !s.Node("node2").Up.IsZero() })

	admitted := func() bool { s := n.fsm.State(); return s.Node("node3") != nil }
	for _, c := range []struct {
		name, want string
		spends     bool // the cluster admitted the node before it failed
		f          func(o *config.JoinOptions)
	}{
		{"mistyped", "mistyped", false, func(o *config.JoinOptions) { o.Token = mistype(mint(later)) }},
		{"empty", "token is empty", false, func(o *config.JoinOptions) { o.Token = "" }},
		{"other cluster", "use a token made by this cluster", false, func(o *config.JoinOptions) { o.Token = foreign.Text }},
		{"unknown secret", "not made by this cluster", false, func(o *config.JoinOptions) { o.Token = mint(time.Time{}) }},
		{"expired", "it has expired", false, func(o *config.JoinOptions) { o.Token = mint(time.Now()) }},
		{"used twice", "it was used already by node2", false, func(o *config.JoinOptions) { o.Token = used }},
		{"name taken", "node node2 exists already", false, func(o *config.JoinOptions) { o.Name = "node2" }},
		{"address taken", "(node node1) exists already", false, func(o *config.JoinOptions) { o.Links = first.links() }},
		{"bad name", "node name", false, func(o *config.JoinOptions) { o.Name = "Node Three" }},
		{"bad role", "role", false, func(o *config.JoinOptions) { o.Role = "king" }},
		{"unreachable", "no node of the cluster can be reached", false, func(o *config.JoinOptions) {
			o.Addrs = []netip.AddrPort{netip.AddrPortFrom(first.addr, uint16(freePort(t)))}
		}},
		{"not picket", "it is not a picket node", false, func(o *config.JoinOptions) { o.Addrs = []netip.AddrPort{deaf(t)} }},
		{"interrupted", "look at picket status there before you try again", true, func(o *config.JoinOptions) {
			o.Addrs = []netip.AddrPort{cutter(t, o.Addrs[0], admitted)}
		}},
		{"no room for the node file", "write the node file", true, func(o *config.JoinOptions) {
			o.ConfigPath = filepath.Join(third.secret, "node.yaml") // below a file
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := third.joinOptions(first, mint(later))
			c.f(&o)
			before, tokens := tree(t, third.root()), n.fsm.State().Tokens
			_, err := Join(t.Context(), o)
			refused(t, err, c.want)
			if d := cmp.Diff(before, tree(t, third.root())); d != "" {
				t.Errorf("a refused join left something: %s", d)
			}
			if d := cmp.Diff(tokens, n.fsm.State().Tokens); !c.spends && d != "" {
				t.Errorf("a refused join spent a token: %s", d)
			}
			if !c.spends && admitted() {
				t.Error("a refused join admitted the node")
			}
		})
	}
	if _, err := Join(t.Context(), third.joinOptions(first, mint(later))); err != nil {
		t.Fatalf("a good join after all that: %v", err)
	}
	third.start()
	y.settled(3)
	s := y.agree()
	if got := s.Node(ids.Node("node3")).Links[0].Addr; got != third.addr.String() {
		t.Errorf("node3 is known at %s", got)
	}
}
