package udp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/heartbeat/wire"
)

// send is the sending loop: one beat per interval, answers and kicks in between. It measures
// how late it runs itself, because a process that did not run heard nothing either.
func (s *Service) send(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := s.opts.Clock()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
			s.beat("", 0)
			continue
		case a := <-s.answers:
			s.beat(a.peer, a.session)
			continue
		case <-s.timings:
		case <-timer.C:
		}
		now, interval := s.opts.Clock(), s.currentInterval()
		if now < due && due-now <= interval {
			timer.Reset(due - now)
			continue
		}
		s.late(now-due, interval)
		s.beat("", 0)
		if due += interval; due <= now || due-now > interval {
			due = now + interval
		}
		timer.Reset(due - s.opts.Clock())
	}
}

func (s *Service) currentInterval() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.interval
}

func (s *Service) late(by, interval time.Duration) {
	limit := max(interval/2, MinLate)
	if by <= limit {
		return
	}
	if s.opts.OnLate != nil {
		s.opts.OnLate(by)
	}
	s.log.Warn(fmt.Sprintf("heartbeat loop ran %d ms late (> %d ms)", by.Milliseconds(), limit.Milliseconds()),
		"late", by, "limit", limit)
}

// target is one packet to be sent.
type target struct {
	link *link
	sock socket
	pair pair
}

// beat sends one beat over every open path, or only to one peer with the given session echoed.
func (s *Service) beat(only ids.Node, session uint64) {
	targets, codec := s.targets(only)
	if len(targets) == 0 {
		return
	}
	b := s.opts.Source()
	b.From, b.Session = s.opts.Self, s.opts.Session
	b.Refused, b.Silent = tidy(b.Refused), tidy(b.Silent)
	var to ids.Node
	for _, t := range targets {
		// Targets come peer by peer. The echo turns with each call, so it is asked for once.
		if t.pair.peer != to {
			to = t.pair.peer
			b.Echo = session
			if only == "" {
				s.hear.Lock()
				b.Echo = s.guard.Echo(s.opts.Clock(), to)
				s.hear.Unlock()
			}
		}
		s.seq = max(s.seq+1, uint64(max(s.opts.Clock(), 0)))
		b.Seq = s.seq
		s.emit(t, codec, b)
	}
}

// targets lists the open destinations, sorted by peer.
func (s *Service) targets(only ids.Node) ([]target, *wire.Codec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []target
	for _, p := range pairs(s.localsLocked(), s.peers) {
		if only != "" && p.peer != only {
			continue
		}
		i := slices.IndexFunc(s.links, func(l *link) bool { return l.Interface == p.local })
		if l := s.links[i]; l.sock != nil {
			out = append(out, target{link: l, sock: l.sock, pair: p})
		}
	}
	slices.SortStableFunc(out, func(a, b target) int {
		return heartbeat.Path{Peer: a.pair.peer}.Compare(heartbeat.Path{Peer: b.pair.peer})
	})
	return out, s.codec
}

func (s *Service) emit(t target, codec *wire.Codec, b heartbeat.Beat) {
	packet, _, err := codec.Seal(wire.Label{To: t.pair.peer, From: t.link.Interface, At: t.pair.link.Interface}, b)
	if err == nil {
		err = t.sock.Send(packet, netip.AddrPortFrom(t.pair.link.Addr, s.opts.Port))
	}
	if err == nil {
		t.link.sent.Add(1)
		return
	}
	if n := t.link.sendErrors.Add(1); n == 1 || n%1024 == 0 {
		s.log.Warn("heartbeat not sent", "interface", t.link.Interface, "peer", t.pair.peer, "error", err, "total", n)
	}
	if gone(err) {
		_ = t.sock.Close() // the reader returns, and serve opens a new one when it can
	}
}

// gone says that a send failed because the socket's interface or address is away. The socket is
// of no more use then: an interface that comes back has another index (SO_BINDTODEVICE keeps the
// old one), and to keep sending would only hide that from the status.
func gone(err error) bool {
	for _, e := range []error{syscall.ENODEV, syscall.ENXIO, syscall.EADDRNOTAVAIL, syscall.EINVAL,
		syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EBADF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tidy returns the names sorted and without duplicates, as the wire format wants them.
func tidy(names []ids.Node) []ids.Node {
	out := slices.Clone(names)
	slices.Sort(out)
	return slices.Compact(out)
}
