package udp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/heartbeat/wire"
)

// Pauses before a socket is opened again. Refresh cuts them short.
const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = time.Second
	// sayEvery spaces the log lines about dropped packets of one cause.
	sayEvery = 30 * time.Second
)

// link is one local link: configuration, and the socket while there is one.
type link struct {
	Link
	refresh          chan struct{}
	sent, sendErrors atomic.Uint64

	// Guarded by Service.mu.
	sock    socket
	subnet  netip.Prefix // last known; kept while the interface is away
	problem string
}

// socket is an open socket of one link.
type socket interface {
	// Read blocks for one packet. n is the packet's true length even if buf was too short.
	Read(buf []byte) (n int, err error)
	// Send hands over one packet without ever blocking.
	Send(packet []byte, to netip.AddrPort) error
	Close() error
}

// system is the one seam to the operating system.
type system interface {
	// Open opens the socket of a link and returns the connected subnet of its address. It
	// fails unless the interface exists, is up and holds exactly that address.
	Open(ctx context.Context, l Link, port uint16) (socket, netip.Prefix, error)
}

// serve keeps one link's socket open and reads from it until ctx ends.
func (s *Service) serve(ctx context.Context, l *link) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		sock, subnet, err := s.opts.system.Open(ctx, l.Link, s.opts.Port)
		if err != nil {
			s.lost(l, err)
			if !pause(ctx, l.refresh, backoff) {
				return
			}
			backoff = min(2*backoff, lastBackoff)
			continue
		}
		opened := s.opts.Clock()
		s.found(l, sock, subnet)
		err = s.read(ctx, l, sock)
		s.lost(l, err)
		_ = sock.Close()
		// A socket that opens but cannot send must not be opened twenty times a second.
		if backoff = min(2*backoff, lastBackoff); s.opts.Clock()-opened > lastBackoff {
			backoff = firstBackoff
		}
		if !pause(ctx, l.refresh, backoff) {
			return
		}
	}
}

// pause waits for d or a wake-up; false means that ctx ended.
func pause(ctx context.Context, early <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-early:
	case <-t.C:
	}
	return ctx.Err() == nil
}

func (s *Service) found(l *link, sock socket, subnet netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.sock, l.problem = sock, ""
	if l.subnet != subnet {
		l.subnet = subnet
		s.repairLocked()
	}
	s.Kick() // the peers learn at once that the link is back
	s.log.Info("heartbeat link open", "interface", l.Interface, "address", l.Addr, "subnet", subnet)
}

// lost notes why a link has no socket. The reason is logged when it changes, not at every try.
func (s *Service) lost(l *link, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.sock = nil
	text := "closed"
	if err != nil && !errors.Is(err, net.ErrClosed) {
		text = err.Error()
	}
	if l.problem == text {
		return
	}
	l.problem = text
	s.log.Warn("heartbeat link waits", "interface", l.Interface, "address", l.Addr, "reason", text)
}

// repairLocked recomputes the paths and tells if they changed. s.mu is held.
func (s *Service) repairLocked() {
	paths := Pair(s.localsLocked(), s.peers)
	if slices.Equal(paths, s.paths) {
		return
	}
	s.paths = paths
	if s.opts.OnPaths != nil {
		s.opts.OnPaths(slices.Clone(paths))
	}
}

func (s *Service) localsLocked() []Local {
	var out []Local
	for _, l := range s.links {
		out = append(out, Local{Interface: l.Interface, Subnet: l.subnet})
	}
	return out
}

// read takes packets until the socket fails or is closed, which ctx and the sending loop do.
func (s *Service) read(ctx context.Context, l *link, sock socket) error {
	stop := context.AfterFunc(ctx, func() { _ = sock.Close() })
	defer stop()
	buf := make([]byte, wire.MaxPacket+1)
	for {
		n, err := sock.Read(buf)
		now := s.opts.Clock()
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			continue // an ICMP answer to an earlier packet: the peer's daemon is away
		case err != nil:
			return err
		case n > len(buf):
			s.drop(now, l.Interface, "", wire.Oversized)
			continue
		}
		s.receive(now, l, buf[:n])
	}
}

// receive judges one packet.
func (s *Service) receive(now time.Duration, l *link, packet []byte) {
	s.mu.Lock()
	codec := s.codec
	s.mu.Unlock()
	label, beat, err := codec.Open(packet)
	if err != nil {
		cause, _ := wire.CauseOf(err)
		s.drop(now, l.Interface, "", cause)
		return
	}
	if label.To != s.opts.Self || label.At != l.Interface {
		s.drop(now, l.Interface, beat.From, wire.Misdirected)
		return
	}
	if cause := s.wayOf(l, beat.From, label.From); cause != "" {
		s.drop(now, l.Interface, beat.From, cause)
		return
	}
	s.hear.Lock()
	defer s.hear.Unlock()
	verdict, reply := s.guard.Check(now, l.Interface, beat)
	switch verdict {
	case heartbeat.Accepted:
		s.counters.Accept()
	case heartbeat.Unverified:
		s.dropLocked(now, l.Interface, beat.From, wire.Unverified)
	case heartbeat.Replayed:
		s.dropLocked(now, l.Interface, beat.From, wire.Replayed)
		return
	default:
		s.dropLocked(now, l.Interface, beat.From, wire.Unknown)
		return
	}
	if reply {
		select {
		case s.answers <- answer{peer: beat.From, session: beat.Session}:
		default: // the regular beats will echo it
		}
	}
	s.opts.Deliver(now, l.Interface, beat)
}

// wayOf says whether the peer has a NIC of that name on the link, or why the packet is dropped.
func (s *Service) wayOf(l *link, peer ids.Node, iface string) wire.Cause {
	s.mu.Lock()
	defer s.mu.Unlock()
	cause := wire.Unknown
	for _, p := range s.peers {
		if p.Name != peer {
			continue
		}
		for _, k := range p.Links {
			if !l.subnet.Contains(k.Addr) {
				continue
			}
			if k.Interface == iface {
				return ""
			}
			cause = wire.Misdirected
		}
	}
	return cause
}

func (s *Service) drop(now time.Duration, iface string, from ids.Node, cause wire.Cause) {
	s.hear.Lock()
	defer s.hear.Unlock()
	s.dropLocked(now, iface, from, cause)
}

// dropLocked counts a dropped packet, and says so now and then. s.hear is held.
func (s *Service) dropLocked(now time.Duration, iface string, from ids.Node, cause wire.Cause) {
	n := s.counters.Drop(cause)
	last, ever := s.said[cause]
	if ever && now-last < sayEvery {
		return
	}
	s.said[cause] = now
	// Both happen whenever a process starts or two links differ in speed: no cause for alarm.
	level := slog.LevelWarn
	if cause == wire.Unverified || cause == wire.Replayed {
		level = slog.LevelDebug
	}
	s.log.Log(context.Background(), level, "heartbeat packet dropped", "interface", iface, "from", from,
		"cause", cause, "text", cause.Text(), "total", n)
}
