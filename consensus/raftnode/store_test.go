package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// failing makes the writes of a store fail once armed.
type failing struct {
	inner
	armed *atomic.Bool
}

var errDisk = errors.New("input/output error")

func (f failing) StoreLogs(ls []*raft.Log) error {
	if f.armed.Load() {
		return errDisk
	}
	return f.inner.StoreLogs(ls)
}

func (f failing) Set(k, v []byte) error {
	if f.armed.Load() {
		return errDisk
	}
	return f.inner.Set(k, v)
}

func TestStoreErrorIsFatal(t *testing.T) {
	var armed atomic.Bool
	c := newCluster(t, 1, 1)
	c.tune = func(o *Options) { o.wrap = func(in inner) inner { return failing{in, &armed} } }
	c.up()
	c.propose("good")
	armed.Store(true)
	_, _, err := c.members[0].node.Propose(within(t, 5*time.Second), []byte("bad"))
	if !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	got := c.members[0].fatals()
	if len(got) != 1 || !errors.Is(got[0], errDisk) || !strings.Contains(got[0].Error(), "raft.db") {
		t.Errorf("fatal: %v", got)
	}
}

// hanging lets writes wait until it is released.
type hanging struct {
	inner
	armed *atomic.Bool
	gate  chan struct{}
}

func (h hanging) StoreLogs(ls []*raft.Log) error {
	if h.armed.Load() {
		<-h.gate
	}
	return h.inner.StoreLogs(ls)
}

// A leader whose disk hangs must fall silent, so that the others elect one that works.
func TestStalledLeaderIsReplaced(t *testing.T) {
	var armed atomic.Bool
	gate := make(chan struct{})
	c := newCluster(t, 3, 1)
	c.tune = func(o *Options) {
		if o.Name == "node1" {
			o.wrap = func(in inner) inner { return hanging{in, &armed, gate} }
		}
	}
	c.up()
	old := c.leader()
	if old.name != "node1" {
		t.Fatalf("%s leads", old.name)
	}
	release := sync.OnceFunc(func() { armed.Store(false); close(gate) })
	t.Cleanup(release)
	armed.Store(true)
	p, err := old.node.Submit(within(t, time.Second), []byte("stuck"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "another node leads", func() bool {
		return c.members[1].node.IsLeader() || c.members[2].node.IsLeader()
	})
	release()
	if _, _, err := p.Wait(within(t, 10*time.Second)); err == nil {
		t.Error("an entry of the deposed leader committed under it")
	}
	c.propose("after")
	c.agree(1)
}

// build makes a one-node store with n entries and closes it.
func build(t *testing.T, n int) (*cluster, *member) {
	t.Helper()
	c := newCluster(t, 1, 1)
	c.up()
	for i := range n {
		c.propose(strings.Repeat(fmt.Sprintf("entry-%d ", i), 4))
	}
	c.stop(c.members[0])
	return c, c.members[0]
}

// Any byte that is flipped in the store is either harmless (free space, a time stamp) or refuses the
// start; it never shows as other data.
func TestFlippedBytes(t *testing.T) {
	c, m := build(t, 40)
	path := filepath.Join(m.dir, dbName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m.mesh.Close()
	var want []string
	refused, harmless := 0, 0
	seed := time.Now().UnixNano()
	rng := rand.New(rand.NewSource(seed))
	t.Logf("seed %d", seed)
	live := livePages(t, path)
	for range 400 {
		bad := slices.Clone(good)
		at := live[rng.Intn(len(live))]*os.Getpagesize() + rng.Intn(os.Getpagesize())
		if rng.Intn(2) == 0 { // heads of pages hold what matters
			at = at/os.Getpagesize()*os.Getpagesize() + rng.Intn(200)
		}
		bad[at] ^= 1 << rng.Intn(8)
		if err := os.WriteFile(path, bad, 0o600); err != nil { // in place: the inode stays
			t.Fatal(err)
		}
		entries, err := readAll(m.dir, path)
		switch {
		case errors.Is(err, ErrDamaged):
			refused++
		case err != nil:
			t.Fatalf("byte %d: another error: %v", at, err)
		default:
			harmless++
			if want == nil {
				want = entries
			}
			if !slices.Equal(entries, want) || len(entries) < 40 {
				t.Fatalf("byte %d: silently wrong: %v", at, entries)
			}
		}
	}
	t.Logf("%d flips refused, %d harmless", refused, harmless)
	if refused == 0 || harmless == 0 {
		t.Errorf("%d refused, %d harmless: the test sees nothing", refused, harmless)
	}
	_ = c
}

func livePages(t *testing.T, path string) []int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := &dbFile{f: f, used: map[uint64]bool{}, order: binary.NativeEndian}
	if err := errors.Join(d.metas(), d.walk(d.root, "", 0), d.freelist()); err != nil {
		t.Fatal(err)
	}
	out := []int{0, 1}
	for p := range d.used {
		out = append(out, int(p))
	}
	slices.Sort(out)
	return out
}

// Big, compacted and emptied stores are sound too: the checker must not cry wolf.
func TestInspectAcceptsEverySoundStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	b, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { b.Close() }()
	check := func(what string) {
		t.Helper()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := inspect(path, "node1"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if b, err = openBolt(path); err != nil {
			t.Fatal(err)
		}
	}
	check("fresh")
	next := uint64(1)
	grow := func(n int) {
		t.Helper()
		for n > 0 {
			var ls []*raft.Log
			for range min(n, 500) {
				ls = append(ls, &raft.Log{Index: next, Term: 1, Data: make([]byte, rand.Intn(400))})
				next++
			}
			n -= len(ls)
			if err := b.StoreLogs(ls); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(lo, hi uint64) {
		t.Helper()
		if err := b.DeleteRange(lo, hi); err != nil {
			t.Fatal(err)
		}
	}
	grow(12000)
	check("grown")
	cut(1, 9000)
	check("compacted")
	grow(5000)
	cut(9001, 9100)
	cut(next-50, next-1)
	check("grown and cut at both ends")
	if err := b.StoreLogs([]*raft.Log{{Index: next, Term: 1, Data: make([]byte, 900_000)}}); err != nil {
		t.Fatal(err)
	}
	check("an entry over many pages")
	cut(1, next)
	check("emptied")
}

// readAll opens the store as Open does and returns every entry and stable value.
func readAll(dir, path string) ([]string, error) {
	if _, err := inspect(path, "node1"); err != nil {
		return nil, err
	}
	o := &Options{Name: "node1", Dir: dir, MachineID: "machine-node1", Fatal: func(error) {}}
	in, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	s := newStore(in, path, "node1", o.Fatal)
	defer s.Close()
	if err := s.checkLog(0); err != nil {
		return nil, err
	}
	last, err := s.LastIndex()
	if err != nil {
		return nil, err
	}
	var out []string
	for i := uint64(1); i <= last; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%d %d %d %q", l.Index, l.Term, l.Type, l.Data))
	}
	for _, k := range []string{keyTerm, keyVoteTerm, keyVoteFor, keyStarts, keyStore} {
		v, err := s.Get([]byte(k))
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%s %q", k, v))
	}
	return out, nil
}

// A byte of an entry that is flipped on disk refuses the start with a sentence that helps.
func TestDamagedEntryRefusesToStart(t *testing.T) {
	c, m := build(t, 5)
	path := filepath.Join(m.dir, dbName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i := range b {
		if strings.HasPrefix(string(b[i:min(i+8, len(b))]), "entry-3 ") {
			b[i+6] = '4'
			n++
		}
	}
	if n == 0 {
		t.Fatal("the entry is not in the file")
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	err = c.open(m)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "picket node remove node1") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func TestCopiedOrRestoredStoreIsRefused(t *testing.T) {
	c, m := build(t, 3)
	orig, backup := m.dir, filepath.Join(t.TempDir(), "backup")
	copyDir(t, orig, backup)
	refuse := func(what string) {
		t.Helper()
		err := c.open(m)
		if !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "picket node remove node1") {
			t.Errorf("%s: got %v", what, err)
		}
		if err == nil {
			c.stop(m)
		}
	}
	m.dir = backup
	refuse("copy")

	m.dir = orig
	c.start(m) // the original still works
	c.stop(m)

	old, err := os.ReadFile(filepath.Join(backup, dbName))
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(filepath.Join(orig, dbName))
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(orig, dbName), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old) // restored in place: same inode, older content
	refuse("restored in place")
	write(now)
	c.start(m)
	c.stop(m)

	c.tune = func(o *Options) { o.MachineID = "another machine" }
	refuse("another machine")
	c.tune = nil

	if err := os.Remove(filepath.Join(orig, identityName)); err != nil {
		t.Fatal(err)
	}
	refuse("no identity")
}

func TestLostStoreIsRefused(t *testing.T) {
	c, m := build(t, 1)
	if err := os.Remove(filepath.Join(m.dir, dbName)); err != nil {
		t.Fatal(err)
	}
	if err := c.open(m); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.dir, dbName)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an empty store was put in the place of the lost one: it would vote again")
	}
}

// A crash at any step of raising the start counter must not look like a restored backup.
func TestCrashWhileCountingStarts(t *testing.T) {
	c, m := build(t, 1)
	id, err := readIdentity(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	id.Starts, id.Opening = id.Starts+1, true // announced, not counted
	if err := id.write(m.dir); err != nil {
		t.Fatal(err)
	}
	c.start(m)
	if m.node.StartCounter() != id.Starts {
		t.Errorf("counter %d, want %d", m.node.StartCounter(), id.Starts)
	}
	c.stop(m)
	if id, err = readIdentity(m.dir); err != nil {
		t.Fatal(err)
	}
	id.Opening = true // counted, not confirmed
	if err := id.write(m.dir); err != nil {
		t.Fatal(err)
	}
	c.start(m)
	if m.node.StartCounter() != id.Starts+1 {
		t.Errorf("counter %d, want %d", m.node.StartCounter(), id.Starts+1)
	}
}

func TestDamagedSnapshotIsRefused(t *testing.T) {
	for _, file := range []string{"state.bin", "meta.json"} {
		t.Run(file, func(t *testing.T) {
			c := newCluster(t, 1, 1)
			c.tune = func(o *Options) { o.TrailingLogs = 1 }
			c.up()
			m := c.members[0]
			for i := range 10 {
				c.propose(fmt.Sprint("state", i))
			}
			if err := m.node.Snapshot(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			c.stop(m)
			found, err := filepath.Glob(filepath.Join(m.dir, snapDir, "*", file))
			if err != nil || len(found) != 1 {
				t.Fatalf("snapshots: %v %v", found, err)
			}
			b, err := os.ReadFile(found[0])
			if err != nil {
				t.Fatal(err)
			}
			from, to := "state3", "state4"
			if file == "meta.json" {
				from, to = `"Term":2`, `"Term":3`
			}
			bad := strings.Replace(string(b), from, to, 1)
			if bad == string(b) {
				t.Fatalf("%q is not in %s", from, b)
			}
			if err := os.WriteFile(found[0], []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.open(m); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}
