// Package app wires one picket node: New, Start, Stop. Nothing in it is global, so that several nodes
// can live in one process.
package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/driver"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/heartbeat/linkmon"
	"github.com/picket-ha/picket/heartbeat/udp"
	"github.com/picket-ha/picket/heartbeat/wire"
)

// Options is what New needs.
type Options struct {
	config.Paths
	Logger *slog.Logger
	// Host overrides what the machine says of itself; nil reads it.
	Host *Host
	// Bits is the prefix length of the links' subnets; 0 asks the kernel. Tests on loopback set it.
	Bits int
	// Reset ends the machine and Fatal the process. They must be given: a test must never reset its host.
	Reset func(why reason.Reason)
	Fatal func(err error)
	// CheckDevices is the interval between two checks of every fence device; 30 s unless given.
	CheckDevices time.Duration
}

// Node is one running node. It is single-use.
type Node struct {
	opt    Options
	log    *slog.Logger
	host   Host
	conf   config.Node
	id     *pki.Identity
	ca     pki.CA
	self   ids.Node
	before []peer

	fsm    *machine
	mesh   *mesh.Mesh
	calls  *mesh.Caller
	raft   *raftnode.Node
	udp    *udp.Service
	driver *driver.Driver
	events *control.EventLog
	ranks  ranks
	memory *memory

	session uint64
	shelf   shelf

	ready   chan struct{} // closed when calls may be answered
	founded chan struct{} // closed when the log of a new cluster has its first entries
	changed chan struct{}
	exited  chan bool
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup
	mu      sync.Mutex
	cleanup []cleanup
	ops     opMemory
	stopped atomic.Bool
}

type cleanup struct {
	name string
	f    func() error
}

// New reads the node's files and makes a node that is not running yet.
func New(o Options) (*Node, error) {
	if o.Reset == nil || o.Fatal == nil || o.Logger == nil {
		return nil, errors.New("app: Reset, Fatal and Logger must be given")
	}
	if o.CheckDevices <= 0 {
		o.CheckDevices = 30 * time.Second
	}
	conf, err := config.ReadNode(o.ConfigPath)
	if err != nil {
		return nil, err
	}
	n := &Node{opt: o, log: o.Logger, conf: conf, self: ids.Node(conf.Name), events: control.NewEventLog(control.DefaultEvents),
		ready: make(chan struct{}), founded: make(chan struct{}), changed: make(chan struct{}, 1), exited: make(chan bool, 1)}
	n.ctx, n.stop = context.WithCancel(context.Background())
	if o.Host != nil {
		n.host = *o.Host
	} else if n.host, err = ReadHost(); err != nil {
		return nil, err
	}
	dir := filepath.Join(o.StateDir, pkiDir)
	if n.id, err = pki.LoadNode(dir); err != nil {
		return nil, err
	}
	if n.id.Node != n.self {
		return nil, fmt.Errorf("%s says this is node %s, the certificate in %s says %s: one of them is of another node", o.ConfigPath, n.self, dir, n.id.Node)
	}
	if n.id.ClusterID() != conf.ClusterID {
		return nil, fmt.Errorf("%s names cluster %s, the certificate in %s is of cluster %s: one of them is of another cluster", o.ConfigPath, conf.ClusterID, dir, n.id.ClusterID())
	}
	if n.ca, err = pki.LoadCA(dir); err != nil {
		return nil, err
	}
	if n.memory, err = newMemory(o.StateDir, n.log); err != nil {
		return nil, fmt.Errorf("read %s: %w", seenFile, err)
	}
	if err := readJSON(filepath.Join(o.StateDir, peersFile), &n.before); err != nil {
		return nil, fmt.Errorf("read %s: %w", peersFile, err)
	}
	return n, nil
}

// Start brings the node up: the mesh, the log, the heartbeats, the driver. It returns when all of them
// run; the node then catches up and announces itself by itself. On an error nothing is left running.
func (n *Node) Start() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.host.UUID == "" {
		n.log.Warn("this machine's DMI uuid cannot be read: a fence device cannot prove that it powers this machine (identity: trusted in the cluster file replaces the proof)")
	}
	if err := n.startMesh(); err != nil {
		return err
	}
	starts, err := n.startDriver()
	if err != nil {
		return err
	}
	n.log.Info("picket starts", "node", n.self, "cluster", n.conf.Cluster, "boot", n.host.Boot, "start", starts, "version", Version)
	n.refreshPeers()
	n.goRun("heartbeats", func() error { return n.udp.Run(n.ctx) })
	n.goRun("link monitor", func() error {
		return linkmon.Run(n.ctx, linkmon.Options{Interfaces: n.interfaces(), Logger: n.log, OnEvent: n.linkEvent})
	})
	n.driver.Start(raftLog{n.raft})
	n.onClose("driver", func() error { n.driver.Stop(); return nil })
	close(n.ready)
	n.goRun("peers", n.followPeers)
	n.goRun("memory of the peers", n.remember)
	n.goRun("founding", n.found)
	n.goRun("fence device checks", n.checkDevices)
	return n.startControl()
}

func (n *Node) startMesh() error {
	var links []mesh.Link
	for _, l := range n.conf.Links {
		links = append(links, mesh.Link{Interface: l.Interface, Addr: l.Addr, Bits: n.opt.Bits})
	}
	m, err := mesh.New(mesh.Options{Self: n.self, Identity: n.id, Links: links, Port: uint16(n.conf.Port), Logger: n.log,
		LinkUp: n.ranks.get, Admitted: n.admitted})
	if err != nil {
		return err
	}
	n.mesh, n.calls = m, mesh.NewCaller(m)
	n.onClose("mesh", m.Close)
	n.onClose("calls", func() error { n.calls.Close(); return nil })
	return nil
}

// startDriver opens the log and what is fed by it, and returns the start counter of the state directory.
func (n *Node) startDriver() (uint64, error) {
	n.fsm = &machine{applied: func(core.Applied) {}, restored: func(state.State) {}, changed: n.poke}
	sess, err := session()
	if err != nil {
		return 0, err
	}
	n.session = sess
	entries, has := readRecord(recordPath(n.opt.Paths), n.host.Boot)
	o := driver.Options{Network: &network{n.mesh, n.calls, func() { n.udp.Kick() }}, Machine: n, Logger: n.log, Clock: bootClock, Wall: wallMS,
		Core: core.Options{Self: n.self, Boot: n.host.Boot, Session: sess, UUID: n.host.UUID, Version: Version, Now: bootClock(), Record: entries, HasRecord: has}}
	n.driver = driver.New(o)
	n.fsm.applied, n.fsm.restored = n.driver.Applied, n.driver.Restored
	timing, _ := state.Profile("default")
	if err := readJSON(filepath.Join(n.opt.StateDir, timingFile), &timing); err != nil {
		return 0, fmt.Errorf("read %s: %w", timingFile, err)
	}
	n.raft, err = raftnode.Open(raftnode.Options{Name: n.self, Dir: filepath.Join(n.opt.StateDir, raftDir), Timing: timing, Mesh: n.mesh, FSM: n.fsm,
		Logger: slog.New(quieter{n.log.Handler()}), Fatal: n.Fatal, OnLeader: func(bool, uint64) { n.driver.Poke() }})
	if err != nil {
		return 0, err
	}
	n.onClose("raft", n.raft.Shutdown)
	n.driver.SetStart(n.raft.StartCounter())
	if err := n.startHeartbeats(sess, timing); err != nil {
		return 0, err
	}
	srv, err := mesh.ServeCalls(n.mesh, n.handle)
	if err != nil {
		return 0, err
	}
	n.onClose("call server", srv.Close)
	join, err := mesh.ServeJoin(n.mesh, n.handleJoin)
	if err != nil {
		return 0, err
	}
	n.onClose("join server", join.Close)
	n.onClose("resources", n.shelf.close)
	return n.raft.StartCounter(), nil
}

func (n *Node) startHeartbeats(sess uint64, t state.Timing) error {
	key, err := pki.LoadHeartbeatKey(filepath.Join(n.opt.StateDir, pkiDir))
	if err != nil {
		return err
	}
	var links []udp.Link
	for _, l := range n.conf.Links {
		links = append(links, udp.Link{Interface: l.Interface, Addr: l.Addr})
	}
	n.udp, err = udp.New(udp.Options{Self: n.self, Links: links, Port: uint16(n.conf.Port), Interval: t.Interval, Dead: t.Dead,
		Keys: []wire.Key{{ID: 1, Secret: key}}, ClusterID: n.conf.ClusterID, Session: sess, Logger: n.log, Clock: bootClock,
		Source: n.content, Deliver: n.deliver,
		OnLate:  func(by time.Duration) { n.driver.Offer(core.Late{By: by}) },
		OnPaths: func(p []heartbeat.Path) { n.driver.Post(core.Paths{Paths: p}) }})
	return err
}

// content is what the next heartbeats carry.
func (n *Node) content() heartbeat.Beat {
	b := n.driver.Content()
	b.LastIndex = n.raft.LastIndex()
	return b
}

// deliver takes in a heartbeat, unless its sender's state directory went back in time.
func (n *Node) deliver(_ time.Duration, iface string, b heartbeat.Beat) {
	s := n.fsm.State()
	if x := s.Node(b.From); x != nil && b.Echo == n.session {
		n.memory.heard(x.Admitted, b) // it echoes this process: it was not recorded before our time
	}
	n.driver.Beat(core.Beat{Interface: iface, Beat: b})
}

func (n *Node) interfaces() []string {
	var out []string
	for _, l := range n.conf.Links {
		if !slices.Contains(out, l.Interface) {
			out = append(out, l.Interface)
		}
	}
	return out
}

// linkEvent passes on what the kernel says of a NIC.
func (n *Node) linkEvent(e linkmon.Event) {
	n.driver.Post(core.Carrier{Interface: e.Interface, Up: e.Carrier})
	n.udp.Refresh(e.Interface)
	n.mesh.Recheck()
	if e.Carrier {
		n.shelf.announce(e.Interface)
	}
}

// admitted says whether a node may speak to us: one that the log names, or, while the log does not name
// this node itself, one that the join was told of.
func (n *Node) admitted(name ids.Node) bool {
	if n.fsm == nil {
		return false
	}
	s := n.fsm.State()
	if n.memory.restored(name) {
		return false
	}
	if s.Node(name) != nil {
		return true
	}
	return s.Node(n.self) == nil && slices.ContainsFunc(n.before, func(p peer) bool { return p.Name == name })
}

func (n *Node) poke() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// followPeers keeps the addresses and the timing in step with the log.
func (n *Node) followPeers() error {
	for {
		select {
		case <-n.ctx.Done():
			return nil
		case <-n.changed:
			n.refreshPeers()
			n.keepPeers()
			n.refreshTiming()
		}
	}
}

func (n *Node) refreshPeers() {
	peers := peersOf(n.self, n.fsm.State(), n.before)
	n.mesh.SetPeers(meshPeers(peers))
	if err := n.udp.SetPeers(udpPeers(peers)); err != nil {
		n.log.Error("the peers' addresses could not be taken over", "err", err)
	}
}

// keepPeers writes the addresses of the others beside the log. After a restart a node knows of its own
// log only what a leader has told it is committed: without this it would not know whom to ask.
func (n *Node) keepPeers() {
	s := n.fsm.State()
	if s.Node(n.self) == nil {
		return
	}
	b, err := json.Marshal(peersOf(n.self, s, nil))
	if err == nil {
		err = config.WriteFile(filepath.Join(n.opt.StateDir, peersFile), b, 0o600)
	}
	if err != nil {
		n.log.Error("the peers' addresses could not be kept for the next start", "err", err)
	}
}

// onClose registers a clean-up; Close runs them in reverse order.
func (n *Node) onClose(name string, f func() error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cleanup = append(n.cleanup, cleanup{name, f})
}

// goRun runs f until the node stops; an error of it is fatal, since nobody would notice otherwise.
func (n *Node) goRun(name string, f func() error) {
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		if err := f(); err != nil && n.ctx.Err() == nil {
			n.Fatal(fmt.Errorf("%s: %w", name, err))
		}
	}()
}

// Shutdown asks for a clean stop and waits until everything owned was handed over, or for ctx. It
// reports whether the node left cleanly. Close must follow.
func (n *Node) Shutdown(ctx context.Context) bool {
	n.driver.Post(core.Shutdown{})
	select {
	case clean := <-n.exited:
		if n.raft.IsLeader() {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			if err := (raftLog{n.raft}).StepDown(ctx); err != nil {
				n.log.Info("the leadership was not handed over", "err", err)
			}
		}
		return clean
	case <-ctx.Done():
		return false
	}
}

// Close ends the node at once, without handing anything over: what runs stays as it is.
func (n *Node) Close() error {
	if n.stopped.Swap(true) {
		return nil
	}
	n.stop()
	n.mu.Lock()
	list := n.cleanup
	n.mu.Unlock()
	var errs []error
	for i := len(list) - 1; i >= 0; i-- {
		if err := list[i].f(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", list[i].name, err))
		}
	}
	n.wg.Wait()
	return errors.Join(errs...)
}
