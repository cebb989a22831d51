package raftnode

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
)

// linkMark separates a node's name from the link to use, in the addresses that the transport gives
// to its own stream layer. Raft itself only ever sees names.
const linkMark = "%"

// maxHedges bounds the goroutines that wait for a slower link.
const maxHedges = 64

var errStalled = errors.New("the local store does not finish its writes: another node must lead")

// streamLayer is raft's view of the mesh.
type streamLayer struct {
	net.Listener
	m    *mesh.Mesh
	name ids.Node

	mu     sync.Mutex
	closed bool
	conns  map[*stream]struct{}
}

var _ raft.StreamLayer = (*streamLayer)(nil)

// stream is a connection that its layer can close: raft leaves inbound ones open at shutdown.
type stream struct {
	net.Conn
	layer *streamLayer
}

func (s *stream) Close() error {
	s.layer.mu.Lock()
	delete(s.layer.conns, s)
	s.layer.mu.Unlock()
	return s.Conn.Close()
}

func newStreamLayer(m *mesh.Mesh, name ids.Node) (*streamLayer, error) {
	ln, err := m.Accept(mesh.ALPNRaft)
	if err != nil {
		return nil, err
	}
	return &streamLayer{Listener: ln, m: m, name: name, conns: map[*stream]struct{}{}}, nil
}

func (l *streamLayer) track(c net.Conn) (net.Conn, error) {
	s := &stream{Conn: c, layer: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	l.conns[s] = struct{}{}
	return s, nil
}

// Accept returns the next raft connection of a peer.
func (l *streamLayer) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.track(c)
}

// Dial connects to a node by name, or by name and link.
func (l *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	name, link, pinned := strings.Cut(string(address), linkMark)
	var c net.Conn
	var err error
	if pinned {
		c, err = l.m.DialLink(ctx, ids.Node(name), link, mesh.ALPNRaft)
	} else {
		c, err = l.m.Dial(ctx, ids.Node(name), mesh.ALPNRaft)
	}
	if err != nil {
		return nil, err
	}
	return l.track(c)
}

// Addr is this node's name: server addresses are names.
func (l *streamLayer) Addr() net.Addr { return nameAddr(l.name) }

// Close stops accepting and closes every raft connection.
func (l *streamLayer) Close() error {
	l.mu.Lock()
	l.closed = true
	all := make([]*stream, 0, len(l.conns))
	for c := range l.conns {
		all = append(all, c)
	}
	l.mu.Unlock()
	err := l.Listener.Close()
	for _, c := range all {
		_ = c.Close()
	}
	return err
}

type nameAddr string

func (nameAddr) Network() string  { return "picket" }
func (a nameAddr) String() string { return string(a) }

// transport adds three things to raft's network transport. Heartbeats go over every
// live link, and votes that one link does not answer at once also over the next: a cut cable then costs tens of milliseconds, which
// the leader lease survives, instead of a TCP timeout, which it does not. The answers say how far
// each follower is. And a leader whose disk hangs falls silent: its heartbeats would otherwise keep
// the others from electing one that works.
type transport struct {
	*raft.NetworkTransport
	m         *mesh.Mesh
	hedge     time.Duration
	busy      *stall
	stallMax  time.Duration
	hedges    atomic.Int64
	wg        sync.WaitGroup
	mu        sync.Mutex
	followers map[ids.Node]contact
}

type contact struct {
	at   time.Time
	last uint64
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func (t *transport) stalled() bool { return t.stallMax > 0 && t.busy.age() > t.stallMax }

// AppendEntries sends entries, or a heartbeat.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse) error {
	if t.stalled() {
		return errStalled
	}
	// The test raft's own transport uses to know a heartbeat (net_transport.go).
	heartbeat := req.PrevLogEntry == 0 && req.PrevLogTerm == 0 && len(req.Entries) == 0 && req.LeaderCommitIndex == 0
	var err error
	if heartbeat {
		err = overLinks(t, target, true, resp, func(a raft.ServerAddress, r *raft.AppendEntriesResponse) error {
			return t.NetworkTransport.AppendEntries(id, a, req, r)
		})
	} else {
		err = t.NetworkTransport.AppendEntries(id, target, req, resp)
	}
	if err == nil && resp.Term == req.Term {
		t.mu.Lock()
		t.followers[ids.Node(id)] = contact{at: time.Now(), last: resp.LastLog}
		t.mu.Unlock()
	}
	return err
}

// AppendEntriesPipeline opens a stream of entries to a follower.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if t.stalled() {
		return nil, errStalled
	}
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return &pipeline{p, t}, nil
}

// pipeline falls silent with its leader's disk: raft sends an empty request every CommitTimeout here,
// and followers take that for a heartbeat.
type pipeline struct {
	raft.AppendPipeline
	t *transport
}

// AppendEntries sends entries without waiting for the answer.
func (p *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if p.t.stalled() {
		return nil, errStalled
	}
	return p.AppendPipeline.AppendEntries(req, resp)
}

// RequestVote asks for a vote. Asking twice is harmless: a voter repeats its answer.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return overLinks(t, target, false, resp, func(a raft.ServerAddress, r *raft.RequestVoteResponse) error {
		return t.NetworkTransport.RequestVote(id, a, req, r)
	})
}

// RequestPreVote asks whether a vote would be given.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest,
	resp *raft.RequestPreVoteResponse) error {
	return overLinks(t, target, false, resp, func(a raft.ServerAddress, r *raft.RequestPreVoteResponse) error {
		return t.NetworkTransport.RequestPreVote(id, a, req, r)
	})
}

// Close closes the transport and its connections and waits for its goroutines.
func (t *transport) Close() error {
	err := t.NetworkTransport.Close()
	t.wg.Wait()
	return err
}

type reply[R any] struct {
	link int
	resp *R
	err  error
}

// overLinks makes an idempotent call over the best link, and over the next one too when that is
// silent for t.hedge or fails; with all, over every live link at once. The first success counts. A
// link that stays silent after another has answered is suspect: that closes the connections over it,
// among them the one that raft sends its entries on.
func overLinks[R any](t *transport, target raft.ServerAddress, all bool, resp *R, call func(raft.ServerAddress, *R) error) error {
	peer := ids.Node(target)
	links, alive := t.m.LinksTo(peer)
	if len(links) < 2 || t.hedges.Load() >= maxHedges {
		return call(target, resp)
	}
	replies := make(chan reply[R], len(links))
	silent := map[int]bool{}
	send := func() {
		i := len(silent)
		silent[i] = true
		t.hedges.Add(1)
		t.wg.Go(func() {
			defer t.hedges.Add(-1)
			r := new(R)
			err := call(target+raft.ServerAddress(linkMark+links[i]), r)
			replies <- reply[R]{i, r, err}
		})
	}
	for send(); all && len(silent) < alive; {
		send()
	}
	timer := time.NewTimer(t.hedge)
	defer timer.Stop()
	started, open := len(silent), len(silent)
	for {
		select {
		case <-timer.C:
		case r := <-replies:
			open--
			silent[r.link] = false
			if r.err == nil {
				*resp = *r.resp
				if open > 0 {
					t.wg.Go(func() { judge(t, peer, links, silent, open, replies) })
				}
				return nil
			}
			if open == 0 && started == len(links) {
				return r.err
			}
		}
		if started < len(links) {
			send()
			started++
			open++
			timer.Reset(t.hedge)
		}
	}
}

// judge waits a little longer for the links that another one has outrun, and gives up on those that
// say nothing at all: an error is an answer.
func judge[R any](t *transport, peer ids.Node, links []string, silent map[int]bool, open int, replies <-chan reply[R]) {
	timer := time.NewTimer(max(3*t.hedge, 100*time.Millisecond))
	defer timer.Stop()
	for open > 0 {
		select {
		case r := <-replies:
			open--
			silent[r.link] = false
		case <-timer.C:
			for i, l := range links {
				if silent[i] {
					t.m.Suspect(peer, l)
				}
			}
			return
		}
	}
}

func (t *transport) contacts() map[ids.Node]contact {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[ids.Node]contact, len(t.followers))
	for n, c := range t.followers {
		out[n] = c
	}
	return out
}
