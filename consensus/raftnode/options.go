// Package raftnode runs one node of the replicated log: hashicorp/raft over the mesh, on a bbolt
// store that would rather stop the process than be silently wrong.
package raftnode

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/state"
)

// FSM is the state machine behind the log. The three methods are called from one goroutine, must do
// no I/O and must be quick: while one runs, nothing commits on this node. A panic is not recovered:
// an entry that cannot be applied must stop the process (invariant I8).
type FSM interface {
	// Apply applies one committed entry and returns what Propose hands to the proposer.
	Apply(index, term uint64, data []byte) any
	// Snapshot returns the whole state in a form that Restore reads.
	Snapshot() ([]byte, error)
	// Restore replaces the whole state.
	Restore(data []byte) error
}

// Options is what Open needs.
type Options struct {
	Name   ids.Node
	Dir    string // state directory of the store alone; made with 0700
	Timing state.Timing
	Mesh   *mesh.Mesh
	FSM    FSM
	Logger *slog.Logger
	// Fatal is called, once, with the sentence to log when the store failed or is damaged. It must end
	// the process and not return; in tests it may return, and the node is then useless.
	Fatal func(error)
	// OnLeader is told when this node becomes or stops being the leader, in order, from a goroutine of
	// its own; rapid changes may be merged into the newest. It may be nil.
	OnLeader func(isLeader bool, term uint64)

	// MachineID identifies the machine the store was made on; "" reads /etc/machine-id (machine-id(5)).
	MachineID string
	// SnapshotThreshold is the number of entries between snapshots (8192) and TrailingLogs how many
	// are kept behind one (10240). 0 takes the value in brackets.
	SnapshotThreshold, TrailingLogs uint64

	wrap func(inner) inner // tests put a failing store here
}

// Errors of this package; test with errors.Is.
var (
	// ErrNotLeader means the entry was certainly not appended: another node leads, or none.
	ErrNotLeader = errors.New("this node is not the leader")
	// ErrBusy means the entry was certainly not appended: too many are outstanding or the log is slow.
	ErrBusy = errors.New("the log does not take more entries now")
	// ErrUnknown means the outcome is not known: the entry may be committed, now or later, or never.
	ErrUnknown = errors.New("the outcome of the entry is not known")
	// ErrUsed means Bootstrap was asked of a store that already belongs to a cluster.
	ErrUsed = errors.New("the store already belongs to a cluster")
	// ErrLocked means another process has the state directory open.
	ErrLocked = errors.New("another picket daemon uses this state directory")
	// ErrMoved means the store was copied or restored from a backup, and must not vote.
	ErrMoved = errors.New("the state directory was copied or restored from a backup")
	// ErrDamaged means the store does not hold what was written to it.
	ErrDamaged = errors.New("the store is damaged")
)

// Server is one server of the raft configuration.
type Server struct {
	Name  ids.Node
	Voter bool
}

// Follower is what the leader knows of another server.
type Follower struct {
	Name ids.Node
	// LastContact is the age of its newest answer; negative where there was none yet.
	LastContact time.Duration
	// LastIndex is the newest log index it said it holds.
	LastIndex uint64
}

func (o *Options) check() error {
	if err := ids.CheckName("node name", string(o.Name)); err != nil {
		return err
	}
	switch {
	case o.Dir == "":
		return errors.New("raft: no state directory given")
	case o.FSM == nil || o.Mesh == nil || o.Fatal == nil:
		return errors.New("raft: FSM, Mesh and Fatal must be given")
	case o.Timing.RaftHeartbeat <= 0 || o.Timing.RaftElection < o.Timing.RaftHeartbeat || o.Timing.RaftLease > o.Timing.RaftHeartbeat:
		return fmt.Errorf("raft: timing needs lease <= heartbeat <= election, not %v, %v, %v",
			o.Timing.RaftLease, o.Timing.RaftHeartbeat, o.Timing.RaftElection)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SnapshotThreshold == 0 {
		o.SnapshotThreshold = 8192
	}
	if o.TrailingLogs == 0 {
		o.TrailingLogs = 10240
	}
	return nil
}
