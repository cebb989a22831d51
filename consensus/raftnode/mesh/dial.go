package mesh

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// handshakeGrace is the head start that a link keeps once TCP is connected and only TLS is left: the
// wire is good then, and a second handshake would only cost processor time.
const handshakeGrace = 250 * time.Millisecond

// pathsLocked returns the ways to a peer: each of its addresses from the NIC whose subnet it lies
// in. Only where no NIC shares a subnet with the peer at all (a witness behind a router) every NIC
// of the same address family is tried.
func (m *Mesh) pathsLocked(peer ids.Node) []path {
	var near, far []path
	for _, l := range m.links {
		subnet := l.net()
		for _, a := range m.peers[peer] {
			if !a.Addr.IsValid() || a.Addr.Is4() != l.Addr.Is4() {
				continue
			}
			port := a.Port
			if port == 0 {
				port = m.o.Port
			}
			p := path{peer: peer, link: l.Name, to: netip.AddrPortFrom(a.Addr.Unmap(), port)}
			if subnet.IsValid() && subnet.Contains(a.Addr.Unmap()) {
				near = append(near, p)
			} else {
				far = append(far, p)
			}
		}
	}
	if len(near) > 0 {
		return near
	}
	return far
}

// paths returns the ways to a peer, best first: up, unknown, then dead or suspect as a last resort.
func (m *Mesh) paths(peer ids.Node) []path {
	ps, _ := m.ranked(peer)
	return ps
}

// ranked returns the ways to a peer, best first, and how many of them are not dead or suspect.
func (m *Mesh) ranked(peer ids.Node) ([]path, int) {
	now := time.Now()
	m.mu.Lock()
	ps := m.pathsLocked(peer)
	suspect := map[path]bool{}
	for _, p := range ps {
		suspect[p] = now.Before(m.suspect[p])
	}
	m.mu.Unlock()
	rank := map[path]Rank{}
	for _, p := range ps {
		rank[p] = RankUnknown
		if m.o.LinkUp != nil {
			rank[p] = m.o.LinkUp(peer, p.link)
		}
		if suspect[p] {
			rank[p] = RankDead
		}
	}
	slices.SortStableFunc(ps, func(a, b path) int { return cmp.Compare(rank[a], rank[b]) })
	alive := slices.IndexFunc(ps, func(p path) bool { return rank[p] == RankDead })
	if alive < 0 {
		alive = len(ps)
	}
	return ps, alive
}

// LinksTo returns the names of the links that lead to a peer, best first, and how many of them are
// neither dead nor suspect.
func (m *Mesh) LinksTo(peer ids.Node) (links []string, alive int) {
	ps, n := m.ranked(peer)
	for i, p := range ps {
		if !slices.Contains(links, p.link) {
			links = append(links, p.link)
			if i < n {
				alive++
			}
		}
	}
	return links, alive
}

// Dial connects to a peer with one of the mutual protocols over the best link that answers. Each
// link gets a head start of Stagger before the next is tried beside it; all of it ends with ctx or
// DialTimeout. Errors wrap ErrUnknownPeer, ErrNotAdmitted, ErrClosed, or the socket's and TLS's.
func (m *Mesh) Dial(ctx context.Context, peer ids.Node, alpn string) (net.Conn, error) {
	return m.dial(ctx, peer, alpn, m.paths(peer))
}

// DialLink is Dial over one link and no other.
func (m *Mesh) DialLink(ctx context.Context, peer ids.Node, link, alpn string) (net.Conn, error) {
	ps := slices.DeleteFunc(m.paths(peer), func(p path) bool { return p.link != link })
	return m.dial(ctx, peer, alpn, ps)
}

func (m *Mesh) dial(ctx context.Context, peer ids.Node, alpn string, ps []path) (net.Conn, error) {
	if !m.admits(peer) {
		return nil, fmt.Errorf("dial %s: %w", peer, ErrNotAdmitted)
	}
	if len(ps) == 0 {
		return nil, fmt.Errorf("dial %s: %w", peer, ErrUnknownPeer)
	}
	ctx, cancel := context.WithTimeout(ctx, m.o.DialTimeout)
	defer cancel()
	stop := context.AfterFunc(m.ctx, cancel)
	defer stop()
	c, err := m.race(ctx, cancel, ps, alpn)
	if err != nil {
		if m.ctx.Err() != nil {
			err = ErrClosed
		}
		return nil, fmt.Errorf("dial %s: %w", peer, err)
	}
	m.counts.dialled.Add(1)
	return c, nil
}

// step is news of one attempt of a race.
type step struct {
	conn      *Conn
	err       error
	connected bool // TCP is up, TLS goes on
}

// race starts the paths in order, each Stagger after the one before or as soon as that failed, and
// returns the first connection that authenticated.
func (m *Mesh) race(ctx context.Context, cancel func(), ps []path, alpn string) (*Conn, error) {
	news := make(chan step, 2*len(ps))
	timer := time.NewTimer(0)
	defer timer.Stop()
	started, open := 0, 0
	var errs []error
	for {
		if open == 0 && started == len(ps) {
			return nil, errors.Join(errs...)
		}
		select {
		case <-timer.C:
		case s := <-news:
			if s.connected {
				timer.Reset(handshakeGrace)
				continue
			}
			open--
			if s.err == nil {
				cancel()
				m.reap(news, open)
				return s.conn, nil
			}
			errs = append(errs, s.err)
		}
		if started == len(ps) {
			continue
		}
		p := ps[started]
		started++
		open++
		timer.Reset(m.o.Stagger)
		if !m.spawn(func() { m.attempt(ctx, p, alpn, news) }) {
			m.reap(news, open-1)
			return nil, ErrClosed
		}
	}
}

// reap closes the connections of attempts that lost the race.
func (m *Mesh) reap(news chan step, open int) {
	if open == 0 {
		return
	}
	f := func() {
		for open > 0 {
			if s := <-news; !s.connected {
				open--
				if s.conn != nil {
					_ = s.conn.Close()
				}
			}
		}
	}
	if !m.spawn(f) {
		f()
	}
}

// attempt dials one path; it always sends one step that is not `connected`.
func (m *Mesh) attempt(ctx context.Context, p path, alpn string, news chan<- step) {
	c, err := m.connect(ctx, p, alpn, func() { news <- step{connected: true} })
	if err != nil {
		news <- step{err: fmt.Errorf("link %s to %s: %w", p.link, p.to, err)}
		return
	}
	news <- step{conn: c}
}

func (m *Mesh) connect(ctx context.Context, p path, alpn string, connected func()) (*Conn, error) {
	i := slices.IndexFunc(m.o.Links, func(l Link) bool { return l.Name == p.link })
	raw, err := dialTCP(ctx, m.o.Links[i], p.to, m.o.DeadAfter)
	m.note(ctx, p, err)
	if err != nil {
		return nil, err
	}
	connected()
	t := tls.Client(raw, m.o.Identity.ClientConfig(p.peer, alpn))
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	c := &Conn{Conn: t, raw: raw, mesh: m, peer: p.peer, link: p.link}
	if err := m.register(c); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// note remembers how a connect ended, for Refused. A race that was won elsewhere says nothing.
func (m *Mesh) note(ctx context.Context, p path, err error) {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers[p.peer] == nil {
		return
	}
	m.dials[p] = outcome{at: time.Now(), ok: err == nil, refused: errors.Is(err, syscall.ECONNREFUSED)}
}

// Refused reports whether, as far as the dials of the last 3 s tell, the peer's kernel answers and
// nobody listens: at least one link refused, none connected, and no connection is open. Links that
// did not answer at all are left out. age is how old the newest refusal is.
func (m *Mesh) Refused(peer ids.Node) (refused bool, age time.Duration) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.perPeer[peer] > 0 {
		return false, 0
	}
	for _, p := range m.pathsLocked(peer) {
		o, ok := m.dials[p]
		if !ok || now.Sub(o.at) > refusedFresh {
			continue
		}
		if o.ok {
			return false, 0
		}
		if o.refused && (!refused || now.Sub(o.at) < age) {
			refused, age = true, now.Sub(o.at)
		}
	}
	return refused, age
}

// Probe makes a bare TCP connect to the peer on every link at once and reports whether at least one
// was refused and none connected. It feeds Refused. The error wraps ErrUnknownPeer.
func (m *Mesh) Probe(ctx context.Context, peer ids.Node) (refused bool, err error) {
	ps := m.paths(peer)
	if len(ps) == 0 {
		return false, fmt.Errorf("probe %s: %w", peer, ErrUnknownPeer)
	}
	ctx, cancel := context.WithTimeout(ctx, m.o.DialTimeout)
	defer cancel()
	results := make(chan error, len(ps))
	for _, p := range ps {
		ok := m.spawn(func() {
			i := slices.IndexFunc(m.o.Links, func(l Link) bool { return l.Name == p.link })
			raw, err := dialTCP(ctx, m.o.Links[i], p.to, m.o.DeadAfter)
			m.note(ctx, p, err)
			if err == nil {
				raw.Close()
			}
			results <- err
		})
		if !ok {
			return false, fmt.Errorf("probe %s: %w", peer, ErrClosed)
		}
	}
	alive := false
	for range ps {
		switch err := <-results; {
		case err == nil:
			alive = true
		case errors.Is(err, syscall.ECONNREFUSED):
			refused = true
		}
	}
	return refused && !alive, nil
}
