// Package mesh carries every byte that two picket nodes exchange over TCP: one listener per link
// address, TLS 1.3 on all of it, streams told apart by their ALPN protocol (RFC 7301). There is no
// plaintext mode.
package mesh

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
)

// ALPN protocols of the one TCP port. Raft and Call need a certificate on both sides; Join shows the
// server's only.
const (
	ALPNRaft = "picket-raft/1"
	ALPNCall = "picket-call/1"
	ALPNJoin = "picket-join/1"
)

// DefaultPort is picket's port, for TCP and UDP.
const DefaultPort uint16 = 6940

// Rank is what the heartbeat detector thinks of a link to a peer; dialling goes in this order.
type Rank int

// The ranks, best first.
const (
	RankUp Rank = iota
	RankUnknown
	RankDead
)

// Link is one local NIC with the address picket uses on it.
type Link struct {
	// Interface is the NIC; sockets are bound to it with SO_BINDTODEVICE (socket(7)).
	Interface string
	// Addr is the address to listen on and to dial from. It need not exist yet.
	Addr netip.Addr
	// Bits is the length of the NIC's subnet prefix. 0: ask the kernel, which is right outside tests.
	Bits int
	// Name is how LinkUp, DropLink and logs name the link; Interface where it is empty.
	Name string
}

// PeerLink is one address of a peer. Interface is the peer's own name for the NIC and is only shown.
type PeerLink struct {
	Interface string
	Addr      netip.Addr
	// Port is the peer's port; 0 means the mesh's own.
	Port uint16
}

// Options is what New needs. Zero durations and counts take the defaults written beside them.
type Options struct {
	Self     ids.Node
	Identity *pki.Identity
	Links    []Link
	Port     uint16 // DefaultPort; the same on every link
	Logger   *slog.Logger

	// LinkUp says what heartbeats think of the link to a peer. It must be quick and may be called from
	// several goroutines. nil: every link is RankUnknown.
	LinkUp func(peer ids.Node, link string) Rank
	// Admitted says whether a node may speak to us. Asked at each handshake, inbound and outbound. nil
	// admits every holder of a certificate of the cluster.
	Admitted func(ids.Node) bool

	DialTimeout      time.Duration // 1 s: all of one Dial, handshake included
	Stagger          time.Duration // 50 ms: head start of a link before the next is tried beside it
	HandshakeTimeout time.Duration // 2 s: inbound, from accept to finished handshake
	DeadAfter        time.Duration // 1 s: TCP_USER_TIMEOUT and keepalive (tcp(7))
	MaxPeers         int           // 64: concurrent unfinished handshakes from addresses of known peers
	MaxStrangers     int           // 16: the same from all other addresses together
}

// Errors; test with errors.Is.
var (
	// ErrUnknownPeer means SetPeers never named that node, so there is no address to dial.
	ErrUnknownPeer = errors.New("the node has no known address")
	// ErrNotAdmitted means the node holds a good certificate and is not a member.
	ErrNotAdmitted = errors.New("the node is not admitted to the cluster")
	// ErrClosed means the mesh was closed.
	ErrClosed = errors.New("the mesh is closed")
)

func (o *Options) check() error {
	if o.Identity == nil {
		return errors.New("mesh: no identity given")
	}
	if o.Identity.Node != o.Self {
		return fmt.Errorf("mesh: the certificate names node %s, this is node %s: load the right key directory", o.Identity.Node, o.Self)
	}
	if len(o.Links) == 0 || len(o.Links) > maxLinks {
		return fmt.Errorf("mesh: %d links given: 1 to %d are allowed", len(o.Links), maxLinks)
	}
	seen := map[string]bool{}
	for i := range o.Links {
		l := &o.Links[i]
		if l.Name == "" {
			l.Name = l.Interface
		}
		if l.Interface == "" || !l.Addr.IsValid() || l.Addr.IsUnspecified() || l.Addr.IsMulticast() {
			return fmt.Errorf("mesh: link %q needs an interface and one address of it, not %q", l.Interface, l.Addr)
		}
		if seen[l.Name] {
			return fmt.Errorf("mesh: link %s is given twice", l.Name)
		}
		seen[l.Name] = true
	}
	o.defaults()
	return nil
}

func (o *Options) defaults() {
	dur := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	num := func(n *int, def int) {
		if *n <= 0 {
			*n = def
		}
	}
	dur(&o.DialTimeout, time.Second)
	dur(&o.Stagger, 50*time.Millisecond)
	dur(&o.HandshakeTimeout, 2*time.Second)
	dur(&o.DeadAfter, time.Second)
	num(&o.MaxPeers, 64)
	num(&o.MaxStrangers, 16)
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Links = append([]Link(nil), o.Links...)
}

const (
	maxLinks = 8
	maxPeers = 64 // nodes given to SetPeers
)
