package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	retryMin   = 100 * time.Millisecond
	retryMax   = 2 * time.Second
	nicPoll    = 2 * time.Second
	warnPeriod = 10 * time.Second
)

// errStarting is a link's status before its first attempt to listen.
var errStarting = errors.New("not tried yet")

// link is one local link with the state of its listener.
type link struct {
	Link
	wake chan struct{}

	mu     sync.Mutex
	ready  bool
	err    error
	subnet netip.Prefix
	looked time.Time
}

func (l *link) status() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ready && l.err == nil {
		return errStarting
	}
	return l.err
}

// set records whether the link listens and reports whether that is news.
func (l *link) set(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.err
	news := (was == nil) != (err == nil) || !l.ready || (err != nil && was.Error() != err.Error())
	l.ready, l.err = true, err
	return news
}

// look refreshes what is known of the NIC; 0 where it does not exist.
func (l *link) look() int {
	index, subnet, err := nic(l.Link)
	if err != nil {
		index, subnet = 0, netip.Prefix{}
	}
	l.mu.Lock()
	l.subnet, l.looked = subnet, time.Now()
	l.mu.Unlock()
	return index
}

// net returns the subnet of the link's address; invalid while the NIC does not carry it. The kernel
// is asked at most every retryMin.
func (l *link) net() netip.Prefix {
	l.mu.Lock()
	stale := !l.subnet.IsValid() && time.Since(l.looked) > retryMin
	l.mu.Unlock()
	if stale {
		l.look()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.subnet
}

// serveLink listens on one link until Close: never on another address, never giving up.
func (m *Mesh) serveLink(l *link) {
	wait := retryMin
	for m.ctx.Err() == nil {
		ln, index, err := listenTCP(m.ctx, l.Link, m.o.Port)
		if l.set(err) && m.ctx.Err() == nil {
			if err != nil {
				m.log.Warn("cannot listen on a link yet; it is tried again until it works", "link", l.Name, "address", l.Addr.String(), "error", err)
			} else {
				m.log.Info("listening", "link", l.Name, "address", l.Addr.String(), "port", m.o.Port)
			}
		}
		if err != nil {
			m.pause(l, wait)
			wait = min(2*wait, retryMax)
			continue
		}
		wait = retryMin
		l.look()
		m.acceptOn(l, ln, index)
	}
}

func (m *Mesh) pause(l *link, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.wake:
	case <-m.ctx.Done():
	}
}

// acceptOn accepts until the listener fails, the NIC is replaced by another of the same name, or Close.
func (m *Mesh) acceptOn(l *link, ln net.Listener, index int) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer ln.Close()
		t := time.NewTicker(nicPoll)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-m.ctx.Done():
				return
			case <-t.C:
			case <-l.wake:
			}
			if l.look() != index {
				return
			}
		}
	})
	defer wg.Wait()
	defer close(done)
	for {
		c, err := ln.Accept()
		if err != nil {
			if m.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, or a peer that reset before accept: the listener is still good.
			m.moaning("cannot accept a connection", "link", l.Name, "error", err)
			m.pause(l, retryMin)
			continue
		}
		m.admit(l, c.(*net.TCPConn))
	}
}

// admit starts the handshake of an inbound connection if a slot for one is free. Strangers share a
// few slots of their own, so that a flood from outside does not keep peers out.
func (m *Mesh) admit(l *link, raw *net.TCPConn) {
	from := addrOf(raw.RemoteAddr())
	m.mu.Lock()
	known := m.addrs[from.Addr()]
	m.mu.Unlock()
	slots := m.slotsStrangers
	if known {
		slots = m.slotsPeers
	}
	select {
	case slots <- struct{}{}:
	default:
		m.counts.busy.Add(1)
		raw.Close()
		m.moaning("too many handshakes are open: closed a connection", "link", l.Name, "from", from.String())
		return
	}
	ok := m.spawn(func() {
		c, err := m.handshake(l, raw)
		<-slots
		if err != nil {
			raw.Close()
			m.counts.failed.Add(1)
			if !quiet(err) {
				m.moaning("refused a connection", "link", l.Name, "from", from.String(), "error", err)
			}
			return
		}
		m.counts.accepted.Add(1)
		m.deliver(c)
	})
	if !ok {
		<-slots
		raw.Close()
	}
}

// quiet is true for connections that ended before they said anything: probes and port checks.
func quiet(err error) bool {
	return errors.Is(err, net.ErrClosed) || err.Error() == "EOF"
}

func (m *Mesh) handshake(l *link, raw *net.TCPConn) (*Conn, error) {
	if err := tune(raw, m.o.DeadAfter); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.o.HandshakeTimeout)
	defer cancel()
	t := tls.Server(raw, m.server)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c := &Conn{Conn: t, raw: raw, mesh: m, link: l.Name}
	cs := t.ConnectionState()
	if cs.NegotiatedProtocol != ALPNJoin {
		peer, err := m.o.Identity.PeerName(cs)
		if err != nil {
			return nil, err
		}
		c.peer = peer
	}
	return c, m.register(c)
}

// deliver hands a connection to the listener of its protocol, or closes it.
func (m *Mesh) deliver(c *Conn) {
	m.mu.Lock()
	s := m.serving[c.ConnectionState().NegotiatedProtocol]
	m.mu.Unlock()
	if s == nil {
		c.Close()
		return
	}
	t := time.NewTimer(m.o.HandshakeTimeout)
	defer t.Stop()
	select {
	case s.ch <- c:
		select {
		case <-s.done: // closed meanwhile: nobody reads the queue any more
			c.Close()
		default:
		}
	case <-s.done:
		c.Close()
	case <-m.ctx.Done():
		c.Close()
	case <-t.C:
		c.Close()
		m.moaning("nobody takes the connections of a protocol: closed one", "protocol", s.alpn)
	}
}

// moaning logs a warning that outsiders can cause, at most every 10 s.
func (m *Mesh) moaning(msg string, args ...any) {
	if ok, skipped := m.moan.allow(time.Now(), warnPeriod); ok {
		m.log.Warn(msg, append(args, "more_since", skipped)...)
	}
}

func addrOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
