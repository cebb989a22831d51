package raftnode

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/picket-ha/picket/consensus/ids"
)

const (
	maxPending     = 1024 // proposals whose outcome is open
	enqueueTimeout = time.Second
	poolPerPeer    = 2
)

// Node is one running node of the replicated log. It is safe for concurrent use.
type Node struct {
	o       Options
	log     *slog.Logger
	raft    *raft.Raft
	machine *machine
	store   *store
	trans   *transport
	layer   *streamLayer
	lock    *os.File
	starts  uint64
	pending chan struct{}
	notify  chan bool
	quit    chan struct{}
	stop    sync.Once

	mu     sync.Mutex // guards wg against Go after Wait
	closed bool
	wg     sync.WaitGroup

	stopErr error
}

// Open opens or creates the store in o.Dir and runs the node. Errors wrap ErrLocked, ErrMoved or
// ErrDamaged; each is one sentence that says how to go on. The mesh stays the caller's and must
// outlive the node.
func Open(o Options) (*Node, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	n, err := open(o, lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return n, nil
}

func open(o Options, lock *os.File) (*Node, error) {
	// Until the node runs, a failure is Open's error and not the end of the process.
	report := &gate{to: o.Fatal}
	so := o
	so.Fatal = report.fatal
	s, starts, err := openStore(&so)
	if err != nil {
		return nil, err
	}
	n := &Node{o: o, log: o.Logger, store: s, lock: lock, starts: starts, pending: make(chan struct{}, maxPending),
		notify: make(chan bool, 16), quit: make(chan struct{}), machine: &machine{fsm: o.FSM, fatal: s.fail}}
	if err := n.run(); err != nil {
		if first := report.held(); first != nil {
			err = first
		}
		return nil, errors.Join(err, s.Close())
	}
	report.release()
	n.spawn(n.tellLeadership)
	return n, nil
}

// gate holds fatal errors back while Open runs.
type gate struct {
	mu   sync.Mutex
	to   func(error)
	open bool
	err  error
}

func (g *gate) fatal(err error) {
	g.mu.Lock()
	if !g.open {
		g.err = err
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	g.to(err)
}

func (g *gate) held() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *gate) release() {
	g.mu.Lock()
	g.open = true
	err := g.err
	g.mu.Unlock()
	if err != nil {
		g.to(err)
	}
}

// run starts transport and raft on the open store.
func (n *Node) run() error {
	hl := &hlog{to: n.log}
	snaps, err := openSnapshots(n.o.Dir, n.store, hl)
	if err != nil {
		return err
	}
	index, err := snaps.newest()
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	if err := n.store.checkLog(index); err != nil {
		return err
	}
	if n.layer, err = newStreamLayer(n.o.Mesh, n.o.Name); err != nil {
		return err
	}
	t := n.o.Timing
	n.trans = &transport{m: n.o.Mesh, busy: &n.store.busy, stallMax: t.DiskStall, followers: map[ids.Node]contact{},
		hedge: min(max(t.RaftLease/6, 15*time.Millisecond), 100*time.Millisecond),
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: n.layer, MaxPool: poolPerPeer, Logger: hl,
			// Long enough for a follower's fsync on a busy disk; links that die are noticed by other means.
			Timeout: min(max(2*t.RaftElection, 500*time.Millisecond), 5*time.Second),
		})}
	cache, err := raft.NewLogCache(512, n.store)
	if err == nil {
		n.raft, err = raft.NewRaft(n.config(hl), n.machine, cache, n.store, snaps, n.trans)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start raft: %w", err), n.trans.Close(), n.layer.Close())
	}
	return nil
}

func (n *Node) config(hl *hlog) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.o.Name)
	c.HeartbeatTimeout = n.o.Timing.RaftHeartbeat
	c.ElectionTimeout = n.o.Timing.RaftElection
	c.LeaderLeaseTimeout = n.o.Timing.RaftLease
	c.SnapshotThreshold = n.o.SnapshotThreshold
	c.TrailingLogs = n.o.TrailingLogs
	c.NotifyCh = n.notify
	c.NoLegacyTelemetry = true
	c.PreVoteDisabled = false
	c.Logger = hl
	return c
}

// tellLeadership hands leadership changes to OnLeader. The reader never blocks raft: while a callback
// runs, changes merge into the newest.
func (n *Node) tellLeadership() {
	type news struct {
		leads bool
		term  uint64
	}
	out := make(chan news, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(out)
	wg.Go(func() {
		for v := range out {
			if n.o.OnLeader != nil {
				n.o.OnLeader(v.leads, v.term)
			}
		}
	})
	for {
		select {
		case leads := <-n.notify:
			v := news{leads, n.raft.CurrentTerm()}
			select {
			case out <- v:
			case <-out: // not taken yet: replaced
				out <- v
			}
		case <-n.quit:
			return
		}
	}
}

// Bootstrap makes a new cluster whose only voter is this node. It refuses (ErrUsed) a store that ever
// belonged to one. Run it on one node only, once in the life of a cluster.
func (n *Node) Bootstrap() error {
	id := raft.ServerID(n.o.Name)
	err := n.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: id, Address: raft.ServerAddress(n.o.Name)}}}).Error()
	if errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("bootstrap in %s: %w: start the daemon without it", n.o.Dir, ErrUsed)
	}
	if err != nil {
		return fmt.Errorf("bootstrap in %s: %w", n.o.Dir, err)
	}
	return nil
}

// Bootstrapped reports whether the store belongs to a cluster: bootstrapped here or joined.
func (n *Node) Bootstrapped() bool {
	servers, _, err := n.Servers()
	return err == nil && len(servers) > 0
}

// Leader returns the leader this node knows of, "" for none, and the current term.
func (n *Node) Leader() (ids.Node, uint64) {
	_, id := n.raft.LeaderWithID()
	return ids.Node(id), n.raft.CurrentTerm()
}

// IsLeader reports whether this node believes to lead. It may be wrong for as long as a leader lease
// (Timing.RaftLease) lasts; VerifyLeader asks.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader }

// AppliedIndex is the index of the newest command that the FSM has applied (or that its snapshot
// held). Entries that are not commands do not count, so it may stay below CommitIndex for ever.
func (n *Node) AppliedIndex() uint64 { return n.machine.applied.Load() }

// LastIndex is the index of the newest entry this node holds, committed or not.
func (n *Node) LastIndex() uint64 { return n.raft.LastIndex() }

// CommitIndex is the newest index this node knows to be committed.
func (n *Node) CommitIndex() uint64 { return n.raft.CommitIndex() }

// StartCounter is the number of times this store was opened, this one included. It never goes back,
// except when the machine's disk was restored to an earlier state.
func (n *Node) StartCounter() uint64 { return n.starts }

// Term is the current term.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// StoreStall is how long the oldest running call of the store has been running; 0 where none runs.
func (n *Node) StoreStall() time.Duration { return n.store.busy.age() }

// Stats returns raft's own figures, by name.
func (n *Node) Stats() map[string]string { return n.raft.Stats() }

// Servers returns the servers of the newest configuration, committed or not, by name, and its index.
func (n *Node) Servers() ([]Server, uint64, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, 0, fmt.Errorf("read the raft configuration: %w", err)
	}
	var out []Server
	for _, s := range f.Configuration().Servers {
		out = append(out, Server{Name: ids.Node(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, f.Index(), nil
}

// Followers returns what this node, as the leader, has heard of the other servers, by name. On a node
// that does not lead it is what it heard when it last did.
func (n *Node) Followers() []Follower {
	servers, _, err := n.Servers()
	if err != nil {
		return nil
	}
	now, heard := time.Now(), n.trans.contacts()
	var out []Follower
	for _, s := range servers {
		if s.Name == n.o.Name {
			continue
		}
		f := Follower{Name: s.Name, LastContact: -1}
		if c, ok := heard[s.Name]; ok {
			f.LastContact, f.LastIndex = now.Sub(c.at), c.last
		}
		out = append(out, f)
	}
	return out
}

// Shutdown stops the node and closes the store. Proposals without an outcome end with ErrUnknown. It
// hands leadership to nobody: Transfer does. The second call returns what the first did.
func (n *Node) Shutdown() error {
	n.stop.Do(func() {
		f := n.raft.Shutdown()
		lerr := n.layer.Close() // ends the calls to peers that raft would wait for
		err := errors.Join(f.Error(), lerr, n.trans.Close())
		close(n.quit)
		n.mu.Lock()
		n.closed = true
		n.mu.Unlock()
		n.wg.Wait()
		n.stopErr = errors.Join(err, n.store.Close(), n.lock.Close())
	})
	return n.stopErr
}

// spawn runs f in a goroutine that Shutdown waits for; false after that.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.wg.Go(f)
	return true
}
