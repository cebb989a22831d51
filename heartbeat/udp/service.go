// Package udp sends and receives the heartbeats of one node: one socket per local link, bound to
// the link's address and to its NIC.
package udp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/heartbeat/wire"
)

// Bounds of a Service.
const (
	// MaxLinks is the most local links of a node, and of one peer.
	MaxLinks = 8
	// MaxPeers is the most peers.
	MaxPeers = 32
	// MinLate is the least lateness of the sending loop that is reported.
	MinLate = 50 * time.Millisecond
)

// Link is one NIC and the address that heartbeats use on it.
type Link struct {
	Interface string
	Addr      netip.Addr
}

// Peer is another node and its links, as the cluster knows them. Interface is the name of the
// peer's own NIC.
type Peer struct {
	Name  ids.Node
	Links []Link
}

// Options is what a Service needs. All fields are required unless they say otherwise.
type Options struct {
	Self      ids.Node
	Links     []Link        // local links, at most MaxLinks, interfaces unique
	Port      uint16        // UDP port, the same on every node
	Interval  time.Duration // between two beats on a link
	Dead      time.Duration // furthest a beat may lag behind the newest; 0: five intervals
	Keys      []wire.Key    // the first seals, all open
	ClusterID string
	Session   uint64 // random, drawn at start of the process; the detector's Config.Session
	Logger    *slog.Logger

	// Clock reads CLOCK_BOOTTIME (clock_gettime(2)): it counts suspended time too.
	Clock func() time.Duration
	// Source returns the content of the next beats: once per interval, per Kick and per answer
	// to a peer that just started. From, Session, Seq and Echo are filled in by the Service. It
	// must not block.
	Source func() heartbeat.Beat
	// Deliver takes an authentic beat that was meant for this link. now is when it was read.
	// Beats that do not prove life yet (heartbeat.Unverified) are delivered too, for the
	// detector to judge; replayed ones are not. Calls come one at a time and must not block.
	Deliver func(now time.Duration, iface string, b heartbeat.Beat)
	// OnLate hears that the sending loop ran late by more than half an interval (and more
	// than MinLate). It comes before the late beat is sent. It must not block. Optional.
	OnLate func(by time.Duration)
	// OnPaths hears the new set of paths whenever it changes: after SetPeers, and when the
	// subnet of a NIC becomes known or changes. It must not block and must not call back into
	// the Service. Optional.
	OnPaths func([]heartbeat.Path)

	system system // the operating system; tests put sockets into other namespaces with it
}

// Service sends one beat per interval over every pair of a local NIC and a peer's address in its
// connected subnet, and delivers what the peers send. It is safe for concurrent use.
type Service struct {
	opts     Options
	log      *slog.Logger
	counters wire.Counters
	kick     chan struct{}
	answers  chan answer
	// seq is touched by the sending loop only.
	seq uint64
	// timings wakes the sending loop after SetTimings.
	timings chan struct{}

	mu       sync.Mutex
	codec    *wire.Codec
	interval time.Duration
	links    []*link // in the order of Options.Links
	peers    []Peer  // sorted by name
	paths    []heartbeat.Path

	// hear serialises guard and Deliver. It may be held when mu is taken, never the reverse.
	hear  sync.Mutex
	guard *heartbeat.Guard
	said  map[wire.Cause]time.Duration // when a drop was last logged, bounded by wire.Causes
}

// answer asks for a beat out of turn that echoes the session of a peer's new process.
type answer struct {
	peer    ids.Node
	session uint64
}

// New checks the options and returns a Service that is not running yet.
func New(o Options) (*Service, error) {
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	codec, err := wire.NewCodec(o.ClusterID, o.Keys...)
	if err != nil {
		return nil, err
	}
	if o.Dead == 0 {
		o.Dead = 5 * o.Interval
	}
	if o.system == nil {
		o.system = linux{}
	}
	o.Links = slices.Clone(o.Links)
	s := &Service{
		opts:     o,
		log:      o.Logger,
		kick:     make(chan struct{}, 1),
		timings:  make(chan struct{}, 1),
		answers:  make(chan answer, 4*MaxPeers),
		codec:    codec,
		interval: o.Interval,
		guard:    heartbeat.NewGuard(o.Session, o.Interval, o.Dead),
		said:     map[wire.Cause]time.Duration{},
	}
	for _, l := range o.Links {
		s.links = append(s.links, &link{Link: l, refresh: make(chan struct{}, 1)})
	}
	return s, nil
}

func checkOptions(o Options) error {
	errs := []error{ids.CheckName("node name", string(o.Self))}
	if len(o.Links) == 0 || len(o.Links) > MaxLinks {
		errs = append(errs, fmt.Errorf("heartbeat: %d links given: 1 to %d are possible", len(o.Links), MaxLinks))
	}
	for i, l := range o.Links {
		errs = append(errs, checkLink(l))
		// One port per address and one path per NIC and peer: a second link on one NIC would
		// be a second name for the same cable.
		if slices.ContainsFunc(o.Links[:i], func(k Link) bool { return k.Interface == l.Interface }) {
			errs = append(errs, fmt.Errorf("heartbeat: interface %s is given twice: name each NIC once", l.Interface))
		}
	}
	errs = append(errs, checkTimings(o.Interval, o.Dead))
	switch {
	case o.Port == 0:
		errs = append(errs, errors.New("heartbeat: port 0: give the port that all nodes use"))
	case o.Session == 0:
		errs = append(errs, errors.New("heartbeat: session 0: draw a random one at start"))
	case o.Logger == nil || o.Clock == nil || o.Source == nil || o.Deliver == nil:
		errs = append(errs, errors.New("heartbeat: Logger, Clock, Source and Deliver must be set"))
	}
	return errors.Join(errs...)
}

func checkTimings(interval, dead time.Duration) error {
	if interval < 5*time.Millisecond || interval > time.Minute {
		return fmt.Errorf("heartbeat: interval %v: 5 ms to 1 min are possible", interval)
	}
	if dead < 0 || (dead > 0 && dead < interval) {
		return fmt.Errorf("heartbeat: dead %v is below the interval %v: raise it", dead, interval)
	}
	return nil
}

func checkLink(l Link) error {
	if err := wire.CheckInterface(l.Interface); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	a := l.Addr
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
		return fmt.Errorf("heartbeat: link %s has address %v: give it one unicast address of that NIC", l.Interface, a)
	}
	return nil
}

// Run sends and receives until ctx ends, then closes every socket and returns nil. It never
// gives up for want of an interface or an address: it waits for them. It may be called once.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, l := range s.links {
		wg.Go(func() { s.serve(ctx, l) })
	}
	s.send(ctx)
	wg.Wait()
	return nil
}

// Kick sends a beat to everybody at once, beside the regular ones: for news that cannot wait,
// such as Leaving. Several calls before it goes out are one.
func (s *Service) Kick() { wake(s.kick) }

// Refresh tells that the kernel reported a change of an interface: a socket that waits for its
// interface or address to return tries again at once.
func (s *Service) Refresh(iface string) {
	for _, l := range s.links {
		if l.Interface == iface {
			wake(l.refresh)
		}
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SetPeers replaces the peers; what is known of those that stay is kept.
func (s *Service) SetPeers(peers []Peer) error {
	if len(peers) > MaxPeers {
		return fmt.Errorf("heartbeat: %d peers: at most %d are possible", len(peers), MaxPeers)
	}
	clean := make([]Peer, 0, len(peers))
	names := make([]ids.Node, 0, len(peers))
	for _, p := range peers {
		if err := s.checkPeer(p); err != nil {
			return err
		}
		p.Links = slices.Clone(p.Links)
		clean = append(clean, p)
		names = append(names, p.Name)
	}
	slices.SortFunc(clean, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	for i := 1; i < len(clean); i++ {
		if clean[i].Name == clean[i-1].Name {
			return fmt.Errorf("heartbeat: peer %s is given twice", clean[i].Name)
		}
	}
	s.hear.Lock()
	defer s.hear.Unlock()
	s.guard.Keep(names)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = clean
	s.repairLocked()
	s.Kick() // a new peer need not wait for the next interval
	return nil
}

func (s *Service) checkPeer(p Peer) error {
	if err := ids.CheckName("peer", string(p.Name)); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	if p.Name == s.opts.Self {
		return fmt.Errorf("heartbeat: %s is this node: it is no peer of itself", p.Name)
	}
	if len(p.Links) > MaxLinks {
		return fmt.Errorf("heartbeat: peer %s has %d links: at most %d are possible", p.Name, len(p.Links), MaxLinks)
	}
	for _, l := range p.Links {
		if err := checkLink(l); err != nil {
			return fmt.Errorf("peer %s: %w", p.Name, err)
		}
	}
	return nil
}

// SetTimings replaces interval and dead (0: five intervals) at the next beat.
func (s *Service) SetTimings(interval, dead time.Duration) error {
	if err := checkTimings(interval, dead); err != nil {
		return err
	}
	if dead == 0 {
		dead = 5 * interval
	}
	s.hear.Lock()
	s.guard.SetTimings(interval, dead)
	s.hear.Unlock()
	s.mu.Lock()
	s.interval = interval
	s.mu.Unlock()
	wake(s.timings)
	return nil
}

// SetKeys replaces the keys: the first seals from now on, all open.
func (s *Service) SetKeys(keys ...wire.Key) error {
	codec, err := wire.NewCodec(s.opts.ClusterID, keys...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.codec = codec
	s.mu.Unlock()
	return nil
}

// Paths returns the paths that exist now, sorted by peer and interface.
func (s *Service) Paths() []heartbeat.Path {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.paths)
}

// Counters returns the live counters of received packets.
func (s *Service) Counters() *wire.Counters { return &s.counters }

// LinkStatus is the state of one local socket.
type LinkStatus struct {
	Link
	Open       bool
	Problem    string // why it is not open; empty if it is
	Sent       uint64 // packets handed to the kernel
	SendErrors uint64 // packets the kernel did not take
}

// Status returns the state of every local link, in the order of Options.Links.
func (s *Service) Status() []LinkStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]LinkStatus, 0, len(s.links))
	for _, l := range s.links {
		out = append(out, LinkStatus{Link: l.Link, Open: l.sock != nil, Problem: l.problem,
			Sent: l.sent.Load(), SendErrors: l.sendErrors.Load()})
	}
	return out
}
