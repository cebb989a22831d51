package wire

import "sync/atomic"

// Cause says why a packet was dropped.
type Cause string

// The causes, in the order in which they are checked.
const (
	Oversized   Cause = "oversized"
	Short       Cause = "short"
	Magic       Cause = "magic"
	BadVersion  Cause = "version"
	Cluster     Cause = "cluster"
	Forged      Cause = "forged"
	Malformed   Cause = "malformed"
	Misdirected Cause = "misdirected"
	Unknown     Cause = "unknown"
	Replayed    Cause = "replayed"
	Unverified  Cause = "unverified"
)

// Causes returns every cause in a fixed order.
func Causes() []Cause {
	return []Cause{Oversized, Short, Magic, BadVersion, Cluster, Forged, Malformed, Misdirected, Unknown, Replayed, Unverified}
}

// Text explains the cause in a few words.
func (c Cause) Text() string {
	switch c {
	case Oversized:
		return "longer than any heartbeat"
	case Short:
		return "shorter than any heartbeat"
	case Magic:
		return "not a picket heartbeat"
	case BadVersion:
		return "of another version of the heartbeat format"
	case Cluster:
		return "of another cluster"
	case Forged:
		return "not sealed with a key of this cluster"
	case Malformed:
		return "sealed with our key but not well formed"
	case Misdirected:
		return "meant for another node or another link"
	case Unknown:
		return "from a node without a link here"
	case Replayed:
		return "seen before, too old, or of an earlier life of its sender"
	case Unverified:
		return "authentic, but not proved to be newer than this process"
	}
	return "unknown cause"
}

// Counters counts packets. The zero value is ready; it is safe for concurrent use.
type Counters struct {
	accepted atomic.Uint64
	dropped  [11]atomic.Uint64
}

// Count is one reading of one counter.
type Count struct {
	Cause   Cause
	Packets uint64
}

// Accept counts one accepted packet.
func (c *Counters) Accept() { c.accepted.Add(1) }

// Drop counts one dropped packet and returns the new count; 0 for a cause that does not exist.
func (c *Counters) Drop(cause Cause) uint64 {
	for i, x := range Causes() {
		if x == cause {
			return c.dropped[i].Add(1)
		}
	}
	return 0
}

// Accepted returns the number of accepted packets.
func (c *Counters) Accepted() uint64 { return c.accepted.Load() }

// Dropped returns one count per cause, in the order of Causes, zeros included.
func (c *Counters) Dropped() []Count {
	out := make([]Count, 0, len(c.dropped))
	for i, x := range Causes() {
		out = append(out, Count{Cause: x, Packets: c.dropped[i].Load()})
	}
	return out
}

// Of returns the count of one cause.
func (c *Counters) Of(cause Cause) uint64 {
	for i, x := range Causes() {
		if x == cause {
			return c.dropped[i].Load()
		}
	}
	return 0
}
