package control

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// EventLog keeps the newest events of a running daemon and serves any number of readers, each at its
// own pace. The ring is the only queue: Append never waits for a reader, and a reader who falls out of
// the ring is told so and disconnected. The zero value is not usable: NewEventLog.
type EventLog struct {
	mu   sync.Mutex
	ring []Event
	next uint64        // Seq of the next event; the first is 1
	more chan struct{} // closed and replaced by every Append
}

// DefaultEvents is how many events a daemon keeps.
const DefaultEvents = 4096

// NewEventLog keeps the newest size events (at least 1).
func NewEventLog(size int) *EventLog {
	return &EventLog{ring: make([]Event, max(size, 1)), next: 1, more: make(chan struct{})}
}

// Append adds an event and gives it the next Seq, which it returns. It never blocks on a reader. The
// caller must not change e.Args afterwards.
func (l *EventLog) Append(e Event) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Seq = l.next
	l.ring[e.Seq%uint64(len(l.ring))] = e
	l.next++
	close(l.more)
	l.more = make(chan struct{})
	return e.Seq
}

// batch is how many events are copied under the lock at once.
const batch = 64

// Events implements Backend.Events. A reader that starts behind the ring gets one event of kind "gap"
// first; a reader that falls behind the ring while reading gets ErrSlowClient. since beyond the newest
// event (it was read from an earlier daemon) starts from the oldest kept.
func (l *EventLog) Events(ctx context.Context, since uint64, follow bool, emit func(Event) error) error {
	started := false
	for {
		l.mu.Lock()
		oldest := uint64(1)
		if l.next > uint64(len(l.ring)) {
			oldest = l.next - uint64(len(l.ring))
		}
		if !started && since >= l.next {
			since = 0
		}
		from, more := since+1, l.more
		lost := uint64(0)
		if from < oldest {
			lost, from = oldest-from, oldest
		}
		var out []Event
		for seq := from; seq < l.next && len(out) < batch; seq++ {
			out = append(out, l.ring[seq%uint64(len(l.ring))])
		}
		l.mu.Unlock()

		if lost > 0 {
			if started {
				return fmt.Errorf("%w: %d events were dropped; read again from the newest event seen", ErrSlowClient, lost)
			}
			gap := Event{Seq: from - 1, Kind: "gap", Time: out[0].Time, Text: fmt.Sprintf("%d older events are no longer kept", lost)}
			out = slices.Insert(out, 0, gap)
		}
		started = true
		for _, e := range out {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := emit(e); err != nil {
				return err
			}
			since = e.Seq
		}
		if len(out) > 0 {
			continue
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
	}
}
