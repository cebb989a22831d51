package raftnode

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
	"github.com/picket-ha/picket/consensus/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listFSM keeps every entry in order.
type listFSM struct {
	mu      sync.Mutex
	entries []string
	seen    chan struct{} // closed and replaced at each Apply
}

func newFSM() *listFSM { return &listFSM{seen: make(chan struct{})} }

func (f *listFSM) Apply(index, _ uint64, data []byte) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries = append(f.entries, string(data))
	close(f.seen)
	f.seen = make(chan struct{})
	return fmt.Sprintf("%d:%s", index, data)
}

func (f *listFSM) Snapshot() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return json.Marshal(f.entries)
}

func (f *listFSM) Restore(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries = nil
	return json.Unmarshal(b, &f.entries)
}

func (f *listFSM) list() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.entries...)
}

func (f *listFSM) digest() string { return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, f.list()))) }

// member is one node of a test cluster.
type member struct {
	name  ids.Node
	id    *pki.Identity
	addrs [2]netip.Addr
	dir   string
	mesh  *mesh.Mesh
	fsm   *listFSM
	node  *Node
	mu    sync.Mutex
	ranks map[string]mesh.Rank
	fatal []error
	terms []uint64
}

func (m *member) setRank(link string, r mesh.Rank) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ranks[link] = r
}

func (m *member) fatals() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]error(nil), m.fatal...)
}

type cluster struct {
	t       testing.TB
	port    uint16
	links   int
	timing  state.Timing
	members []*member
	tune    func(*Options)
}

func freePort(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func newCA(t testing.TB, name string) pki.CA {
	t.Helper()
	ca, err := pki.NewCluster(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newID(t testing.TB, ca pki.CA, name ids.Node) *pki.Identity {
	t.Helper()
	key, csr, err := pki.NewNodeKey(name)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, name, pki.RoleMember, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(cert, key, ca.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// newCluster makes n members with their meshes on 127.77.LINK.NODE; nothing runs raft yet.
func newCluster(t testing.TB, n, links int) *cluster {
	t.Helper()
	timing, err := state.Profile("default")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, port: freePort(t), links: links, timing: timing}
	ca := newCA(t, "test")
	for i := range n {
		m := &member{name: ids.Node(fmt.Sprintf("node%d", i+1)), dir: filepath.Join(t.TempDir(), "raft"), ranks: map[string]mesh.Rank{}}
		m.id = newID(t, ca, m.name)
		for l := range 2 {
			m.addrs[l] = netip.AddrFrom4([4]byte{127, 77, byte(l + 1), byte(i + 1)})
		}
		c.members = append(c.members, m)
	}
	for _, m := range c.members {
		c.startMesh(m)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			c.stop(m)
		}
		for _, m := range c.members {
			m.mesh.Close()
		}
	})
	return c
}

var linkNames = [2]string{"la", "lb"}

func (c *cluster) logger(m *member) *slog.Logger {
	if os.Getenv("PICKET_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", string(m.name))
}

func (c *cluster) startMesh(m *member) {
	c.t.Helper()
	o := mesh.Options{Self: m.name, Identity: m.id, Port: c.port, Logger: c.logger(m),
		LinkUp: func(_ ids.Node, link string) mesh.Rank {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.ranks[link]
		}}
	for l := range c.links {
		o.Links = append(o.Links, mesh.Link{Interface: "lo", Addr: m.addrs[l], Bits: 24, Name: linkNames[l]})
	}
	var err error
	if m.mesh, err = mesh.New(o); err != nil {
		c.t.Fatal(err)
	}
	peers := map[ids.Node][]mesh.PeerLink{}
	for _, p := range c.members {
		for l := range c.links {
			peers[p.name] = append(peers[p.name], mesh.PeerLink{Interface: linkNames[l], Addr: p.addrs[l]})
		}
	}
	m.mesh.SetPeers(peers)
	eventually(c.t, 5*time.Second, "the mesh of "+string(m.name)+" listens", func() bool {
		for _, err := range m.mesh.Listening() {
			if err != nil {
				return false
			}
		}
		return true
	})
}

func (c *cluster) open(m *member) error {
	m.fsm = newFSM()
	o := Options{Name: m.name, Dir: m.dir, Timing: c.timing, Mesh: m.mesh, FSM: m.fsm, Logger: c.logger(m), MachineID: "machine-" + string(m.name),
		Fatal: func(err error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.fatal = append(m.fatal, err)
		},
		OnLeader: func(is bool, term uint64) {
			if is {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.terms = append(m.terms, term)
			}
		}}
	if c.tune != nil {
		c.tune(&o)
	}
	var err error
	m.node, err = Open(o)
	return err
}

func (c *cluster) start(m *member) {
	c.t.Helper()
	if err := c.open(m); err != nil {
		c.t.Fatalf("open %s: %v", m.name, err)
	}
}

func (c *cluster) stop(m *member) {
	if m.node != nil {
		if err := m.node.Shutdown(); err != nil {
			c.t.Errorf("shutdown %s: %v", m.name, err)
		}
		m.node = nil
	}
}

// up starts all members, bootstraps the first and makes the others voters.
func (c *cluster) up() {
	c.t.Helper()
	for _, m := range c.members {
		c.start(m)
	}
	first := c.members[0].node
	if err := first.Bootstrap(); err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, 10*time.Second, "node1 leads", first.IsLeader)
	for _, m := range c.members[1:] {
		ctx := within(c.t, 10*time.Second)
		if err := first.AddNonvoter(ctx, m.name); err != nil {
			c.t.Fatal(err)
		}
		eventually(c.t, 10*time.Second, string(m.name)+" has caught up", func() bool {
			for _, f := range first.Followers() {
				if f.Name == m.name && f.LastContact >= 0 && f.LastIndex >= first.LastIndex() {
					return true
				}
			}
			return false
		})
		if err := first.AddVoter(ctx, m.name); err != nil {
			c.t.Fatal(err)
		}
	}
}

// leader waits for a running member that leads.
func (c *cluster) leader() *member {
	c.t.Helper()
	var out *member
	eventually(c.t, 15*time.Second, "somebody leads", func() bool {
		for _, m := range c.members {
			if m.node != nil && m.node.IsLeader() && m.node.VerifyLeader(within(c.t, time.Second)) == nil {
				out = m
				return true
			}
		}
		return false
	})
	return out
}

// propose repeats until an entry certainly committed; the entry may then be in the log twice.
func (c *cluster) propose(data string) {
	c.t.Helper()
	eventually(c.t, 15*time.Second, "propose "+data, func() bool {
		_, _, err := c.leader().node.Propose(within(c.t, 3*time.Second), []byte(data))
		if err != nil && !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrBusy) {
			c.t.Fatalf("propose: unexpected error %v", err)
		}
		return err == nil
	})
}

// agree waits until all running members applied the same entries, and returns them.
func (c *cluster) agree(atLeast int) []string {
	c.t.Helper()
	var got []string
	eventually(c.t, 15*time.Second, fmt.Sprintf("all agree on %d entries or more", atLeast), func() bool {
		want := ""
		for _, m := range c.members {
			if m.node == nil {
				continue
			}
			got = m.fsm.list()
			if d := m.fsm.digest(); want == "" {
				want = d
			} else if d != want {
				return false
			}
		}
		return len(got) >= atLeast
	})
	return got
}

func eventually(t testing.TB, d time.Duration, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(d)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen within %v: %s", d, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
