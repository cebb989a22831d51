// Package heartbeat says which links and peers are alive. It is pure: it opens no socket, reads
// no clock and draws no randomness; time and authenticated packets are handed in.
//
// The rooms beside it do the rest: wire seals and opens packets, udp owns the sockets and
// linkmon listens to the kernel's link events.
package heartbeat

import (
	"cmp"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// Bounds on what one beat may carry. They keep a sealed beat of ordinary names below one
// Ethernet frame and every list that comes from the network short.
const (
	// MaxReport is the most names in Beat.Refused and in Beat.Silent.
	MaxReport = 16
	// MaxLinks is the most entries in Beat.Links.
	MaxLinks = 64
	// MaxPaths is the most paths one Detector watches; what is beyond it is ignored.
	MaxPaths = 256
)

// LinkState is what the detector believes of one link.
type LinkState string

// The three states of a link.
const (
	LinkUp   LinkState = "up"   // a beat came within Config.Warn
	LinkLate LinkState = "late" // no beat for longer than Warn, or none yet since the link exists
	LinkDead LinkState = "dead" // no beat for longer than Dead, or the NIC has no carrier
)

// Config holds the timings of the detector and the identity of the observing process.
type Config struct {
	// Interval is the time between two beats of a peer on a link. It spaces the answers to
	// peers that just started.
	Interval time.Duration
	// Warn is the silence after which a link is late.
	Warn time.Duration
	// Dead is the silence after which a link is dead. It is also the furthest that a beat may
	// lag behind the newest beat of the same peer and still count.
	Dead time.Duration
	// Session is the random number this process drew when it started; never zero. A beat
	// proves life only if it echoes it.
	Session uint64
}

// Path is one link: a local NIC towards one peer.
type Path struct {
	Peer      ids.Node
	Interface string // name of the local NIC
}

// Compare orders paths by peer, then by interface.
func (p Path) Compare(o Path) int {
	return cmp.Or(cmp.Compare(p.Peer, o.Peer), cmp.Compare(p.Interface, o.Interface))
}

// LinkView is the state of one link at the time it was asked for.
type LinkView struct {
	Peer      ids.Node
	Interface string // name of the observer's NIC
	State     LinkState
	Age       time.Duration // since the last accepted beat on this link; below zero: never
}

// Beat is the clean content of one authenticated packet.
type Beat struct {
	From ids.Node
	Boot ids.Boot
	// Start is the start counter kept in the sender's state directory. It goes backwards only
	// when that directory was restored from a backup.
	Start uint64
	// Gen is the generation of the sender's incarnation, 0 before its NodeUp is applied.
	Gen uint64
	// Seq is the sender's CLOCK_BOOTTIME in nanoseconds (clock_gettime(2)) when it built the
	// packet. It rises with every packet of a process, and from one process to the next of the
	// same boot.
	Seq uint64
	// Session is the random number of the sending process. Echo is the Session of the receiver
	// as the sender knows it, 0 if it knows none.
	Session, Echo uint64
	// Applied and LastIndex are log indexes: the last one applied and the last one stored.
	Applied, LastIndex uint64
	// Leaving is set in the last beats of a clean stop.
	Leaving bool
	// Refused lists the peers whose kernel refuses this sender's TCP connections (the host
	// lives, the daemon does not). Sorted, at most MaxReport.
	Refused []ids.Node
	// Silent is the sender's loss report: the peers it hears on no link. Sorted, at most MaxReport.
	Silent []ids.Node
	// Links is the sender's view of its links, at most MaxLinks.
	Links []LinkView
}

// Change is one transition of one link.
type Change struct {
	Path
	From, To LinkState
	Age      time.Duration // since the last accepted beat on the link; below zero: never
}

// PeerView is what the detector knows of one peer.
type PeerView struct {
	Peer ids.Node
	// Ever says that at least one beat of the peer was accepted.
	Ever bool
	// Silent says that no link to the peer is up or late. A peer that was never heard is
	// silent only when Dead has passed since its links exist.
	Silent bool
	// Age is the time since the newest accepted beat on any link; below zero: never.
	Age time.Duration
	// Beat is the newest accepted beat.
	Beat Beat
	// Up and Total count the links to the peer: those that are up, and all.
	Up, Total int
}

// Verdict is what became of one beat.
type Verdict string

// The verdicts of Detector.Heard and Guard.Check.
const (
	Accepted   Verdict = "accepted"   // proves that the peer lives
	Replayed   Verdict = "replayed"   // seen before, too old, or of an earlier life
	Unknown    Verdict = "unknown"    // no such path
	Unverified Verdict = "unverified" // authentic, but maybe from before this process started
)
