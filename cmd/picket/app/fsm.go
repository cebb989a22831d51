package app

import (
	"fmt"
	"sync"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/state"
)

// machine is the replicated state machine behind raft: a thin adapter over state.Apply that hands
// every applied entry on. It does no I/O.
type machine struct {
	mu    sync.Mutex
	state state.State
	// applied and restored hand on what happened, in order; changed is poked when the set of nodes or the
	// configuration may have changed.
	applied  func(core.Applied)
	restored func(state.State)
	changed  func()
}

// Apply applies one committed entry. An entry that does not decode, or that leaves a broken invariant
// behind, stops the process: what is committed must not be guessed at (invariant I8).
func (m *machine) Apply(index, _ uint64, data []byte) any {
	e, err := state.Decode(data)
	if err != nil {
		panic(fmt.Sprintf("committed entry %d: %v", index, err))
	}
	m.mu.Lock()
	old := m.state
	next, res := state.Apply(old, index, e)
	m.state = next
	m.mu.Unlock()
	if _, tick := e.Cmd.(state.LeaseTick); !tick {
		if v := append(state.CheckStep(old, next, e.Cmd), state.Check(next)...); len(v) > 0 {
			panic(fmt.Sprintf("committed entry %d (%T) broke invariant %s: %s", index, e.Cmd, v[0].Rule, v[0].Text))
		}
	}
	m.applied(core.Applied{Index: index, Entry: e, Result: res, State: next})
	switch e.Cmd.(type) {
	case state.NodeAdmit, state.NodeRemove, state.ConfigSet:
		m.changed()
	}
	return res
}

// Snapshot encodes the whole state.
func (m *machine) Snapshot() ([]byte, error) { return state.EncodeState(m.State()) }

// Restore replaces the whole state.
func (m *machine) Restore(data []byte) error {
	s, err := state.DecodeState(data)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.state = s
	m.mu.Unlock()
	m.restored(s)
	m.changed()
	return nil
}

// State returns the newest applied state. It may be read freely: Apply never changes it in place.
func (m *machine) State() state.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}
