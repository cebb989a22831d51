package raftnode

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// machine adapts an FSM to raft and remembers the newest command it applied: raft's own applied index
// runs ahead, it counts entries handed over and not yet applied.
type machine struct {
	fsm     FSM
	applied atomic.Uint64
	fatal   func(error)
}

var _ raft.FSM = (*machine)(nil)

// Apply applies one command.
func (m *machine) Apply(l *raft.Log) any {
	r := m.fsm.Apply(l.Index, l.Term, l.Data)
	m.applied.Store(l.Index)
	return r
}

// Snapshot takes the state now; writing it happens beside later entries.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	b, err := m.fsm.Snapshot()
	if err != nil {
		err = fmt.Errorf("take a snapshot of the state: %w", err)
		m.fatal(err)
		return nil, err
	}
	return &frozen{index: m.applied.Load(), data: b}, nil
}

// Restore replaces the state by a snapshot of at most 256 MiB.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSnapshot+1))
	if err == nil && (len(b) > maxSnapshot || len(b) < stateHead || string(b[:len(stateMagic)]) != stateMagic) {
		err = fmt.Errorf("it is not a snapshot of picket's state (%d bytes)", len(b))
	}
	if err == nil {
		err = m.fsm.Restore(b[stateHead:])
	}
	if err != nil {
		err = fmt.Errorf("restore the state from a snapshot: %w", err)
		m.fatal(err)
		return err
	}
	m.applied.Store(binary.BigEndian.Uint64(b[len(stateMagic):]))
	return nil
}

// frozen is a state that waits to be written.
type frozen struct {
	index uint64
	data  []byte
}

// Persist writes the state.
func (f *frozen) Persist(s raft.SnapshotSink) error {
	_, err := s.Write(binary.BigEndian.AppendUint64([]byte(stateMagic), f.index))
	if err == nil {
		_, err = s.Write(f.data)
	}
	if err == nil {
		return s.Close()
	}
	_ = s.Cancel()
	return err
}

// Release has nothing to release.
func (f *frozen) Release() {}
