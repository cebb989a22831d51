package mesh

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

const (
	maxConnsPerPeer = 128             // inbound and outbound together
	streamQueue     = 16              // accepted connections that wait for Accept
	refusedFresh    = 3 * time.Second // how long the outcome of a dial counts as knowledge
	suspectFor      = time.Second     // how long a link that did not answer is tried last
)

// Mesh holds the listeners and all connections of one node. It is safe for concurrent use.
type Mesh struct {
	o      Options
	log    *slog.Logger
	links  []*link
	server *tls.Config
	start  time.Time

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	slotsPeers, slotsStrangers chan struct{}
	counts                     counters
	moan                       limiter

	mu      sync.Mutex
	closed  bool
	peers   map[ids.Node][]PeerLink
	addrs   map[netip.Addr]bool
	conns   map[*Conn]struct{}
	perPeer map[ids.Node]int
	serving map[string]*streams
	dials   map[path]outcome
	suspect map[path]time.Time
}

// path is one way to a peer: the local link's name and the peer's address.
type path struct {
	peer ids.Node
	link string
	to   netip.AddrPort
}

type outcome struct {
	at      time.Time
	refused bool // ECONNREFUSED: a kernel answered, nobody listens
	ok      bool
}

type counters struct {
	accepted, busy, failed, dialled, dropped atomic.Uint64
}

// Stats are counters since New.
type Stats struct {
	Accepted uint64 // inbound connections that authenticated
	Busy     uint64 // inbound connections closed because too many handshakes were open
	Failed   uint64 // inbound handshakes that failed
	Dialled  uint64 // outbound connections that authenticated
	Dropped  uint64 // connections closed by DropLink
}

// New checks the options and starts to listen on every link. A NIC or address that does not exist
// yet is not an error: the link keeps trying, on that NIC and address only, and says so once.
func New(o Options) (*Mesh, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mesh{o: o, log: o.Logger, ctx: ctx, cancel: cancel, start: time.Now(),
		slotsPeers: make(chan struct{}, o.MaxPeers), slotsStrangers: make(chan struct{}, o.MaxStrangers),
		peers: map[ids.Node][]PeerLink{}, addrs: map[netip.Addr]bool{}, conns: map[*Conn]struct{}{},
		perPeer: map[ids.Node]int{}, serving: map[string]*streams{},
		dials: map[path]outcome{}, suspect: map[path]time.Time{}}
	m.server = o.Identity.ServerConfig([]string{ALPNRaft, ALPNCall}, []string{ALPNJoin}, o.Admitted)
	for _, l := range o.Links {
		s := &link{Link: l, wake: make(chan struct{}, 1)}
		m.links = append(m.links, s)
		m.spawn(func() { m.serveLink(s) })
	}
	return m, nil
}

// Self is the name of this node.
func (m *Mesh) Self() ids.Node { return m.o.Self }

// Close closes every listener and connection and waits for all goroutines of the mesh.
func (m *Mesh) Close() error {
	m.mu.Lock()
	m.closed = true
	m.cancel()
	conns := make([]*Conn, 0, len(m.conns))
	for c := range m.conns {
		conns = append(conns, c)
	}
	serving := make([]*streams, 0, len(m.serving))
	for _, s := range m.serving {
		serving = append(serving, s)
	}
	m.mu.Unlock()
	for _, s := range serving {
		_ = s.Close()
	}
	for _, c := range conns {
		c.kill()
	}
	m.wg.Wait()
	return nil
}

// spawn runs f in a goroutine that Close waits for; false after Close.
func (m *Mesh) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Go(f)
	return true
}

// SetPeers replaces the known peers and their addresses. It is called at start and whenever the log
// changes them. Connections to a node that is no longer there are closed. At most 64 peers are kept.
func (m *Mesh) SetPeers(peers map[ids.Node][]PeerLink) {
	m.mu.Lock()
	m.peers, m.addrs = map[ids.Node][]PeerLink{}, map[netip.Addr]bool{}
	for n, ls := range peers {
		if n == m.o.Self || len(m.peers) >= maxPeers {
			continue
		}
		m.peers[n] = slices.Clone(ls[:min(len(ls), maxLinks)])
		for _, l := range m.peers[n] {
			m.addrs[l.Addr.Unmap()] = true
		}
	}
	for p := range m.dials {
		if m.peers[p.peer] == nil {
			delete(m.dials, p)
		}
	}
	for p := range m.suspect {
		if m.peers[p.peer] == nil {
			delete(m.suspect, p)
		}
	}
	m.mu.Unlock()
	m.drop(func(c *Conn) bool { return c.peer != "" && !m.knows(c.peer) && !m.admits(c.peer) })
}

func (m *Mesh) knows(n ids.Node) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peers[n] != nil
}

func (m *Mesh) admits(n ids.Node) bool { return m.o.Admitted == nil || m.o.Admitted(n) }

// Accept returns the listener of one protocol. Until it is called, and after the listener is closed,
// connections for that protocol are closed after their handshake. A protocol has one listener at a
// time.
func (m *Mesh) Accept(alpn string) (net.Listener, error) {
	if alpn != ALPNRaft && alpn != ALPNCall && alpn != ALPNJoin {
		return nil, fmt.Errorf("mesh: protocol %q is not known", alpn)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if m.serving[alpn] != nil {
		return nil, fmt.Errorf("mesh: protocol %s has a listener already", alpn)
	}
	s := &streams{alpn: alpn, ch: make(chan net.Conn, streamQueue), done: make(chan struct{}),
		addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(m.o.Links[0].Addr, m.o.Port)),
		quit: func(s *streams) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.serving[s.alpn] == s {
				delete(m.serving, s.alpn)
			}
		}}
	m.serving[alpn] = s
	return s, nil
}

// register makes a connection known, so that DropLink and Close reach it.
func (m *Mesh) register(c *Conn) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if m.perPeer[c.peer] >= maxConnsPerPeer {
		return fmt.Errorf("%s has %d connections open already", c.peer, maxConnsPerPeer)
	}
	m.conns[c] = struct{}{}
	m.perPeer[c.peer]++
	return nil
}

func (m *Mesh) forget(c *Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.conns[c]; !ok {
		return
	}
	delete(m.conns, c)
	if m.perPeer[c.peer]--; m.perPeer[c.peer] <= 0 {
		delete(m.perPeer, c.peer)
	}
}

// drop kills the connections that pick chooses, and returns how many. pick is called unlocked.
func (m *Mesh) drop(pick func(*Conn) bool) int {
	m.mu.Lock()
	all := make([]*Conn, 0, len(m.conns))
	for c := range m.conns {
		all = append(all, c)
	}
	m.mu.Unlock()
	n := 0
	for _, c := range all {
		if pick(c) {
			c.kill()
			n++
		}
	}
	return n
}

// DropLink closes, now, every connection to and from peer that runs over the link, so that whoever
// used one dials again over another link. Called when heartbeats say that the link died.
func (m *Mesh) DropLink(peer ids.Node, link string) {
	n := m.drop(func(c *Conn) bool { return c.peer == peer && c.link == link })
	if n > 0 {
		m.counts.dropped.Add(uint64(n))
		m.log.Info("closed the connections over a dead link", "peer", string(peer), "link", link, "connections", n)
	}
}

// Suspect tries the link to peer last for the next second and closes its connections. Called by a
// user of the mesh that saw another link answer while this one was silent: that is known long before
// heartbeats call the link dead.
func (m *Mesh) Suspect(peer ids.Node, link string) {
	now := time.Now()
	m.mu.Lock()
	for _, p := range m.pathsLocked(peer) {
		if p.link == link {
			m.suspect[p] = now.Add(suspectFor)
		}
	}
	m.mu.Unlock()
	m.DropLink(peer, link)
}

// Recheck makes every link look at its NIC again now, for example after a netlink event. Without it
// links look every 2 s.
func (m *Mesh) Recheck() {
	for _, l := range m.links {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// Listening returns, for each link by name, nil where it listens, or why it does not yet.
func (m *Mesh) Listening() map[string]error {
	out := map[string]error{}
	for _, l := range m.links {
		out[l.Name] = l.status()
	}
	return out
}

// Stats returns the counters.
func (m *Mesh) Stats() Stats {
	return Stats{Accepted: m.counts.accepted.Load(), Busy: m.counts.busy.Load(), Failed: m.counts.failed.Load(),
		Dialled: m.counts.dialled.Load(), Dropped: m.counts.dropped.Load()}
}

// limiter lets one message per period through and counts the rest.
type limiter struct {
	mu      sync.Mutex
	next    time.Time
	skipped int
}

// allow reports whether to speak now, and how many were left out since the last time.
func (l *limiter) allow(now time.Time, period time.Duration) (bool, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.next) {
		l.skipped++
		return false, 0
	}
	n := l.skipped
	l.next, l.skipped = now.Add(period), 0
	return true, n
}
