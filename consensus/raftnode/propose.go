package raftnode

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/picket-ha/picket/consensus/ids"
)

// Pending is a proposal on its way.
type Pending struct {
	done   chan struct{}
	index  uint64
	result any
	err    error
}

// Done is closed when the outcome is there.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Wait returns the entry's index and what the FSM made of it. When ctx ends first the error wraps
// ErrUnknown; the entry may still commit, and Wait may be called again.
func (p *Pending) Wait(ctx context.Context) (index uint64, result any, err error) {
	select {
	case <-p.done:
		return p.index, p.result, p.err
	default:
	}
	select {
	case <-p.done:
		return p.index, p.result, p.err
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

// Submit hands an entry to the log and returns before it commits, so that many can be outstanding;
// those of one goroutine keep their order. The error wraps ErrNotLeader or ErrBusy, and then the
// entry was certainly not appended; that may also come out of Wait, as may ErrUnknown. At most 1024
// may be open. data must not change any more.
func (n *Node) Submit(ctx context.Context, data []byte) (*Pending, error) {
	if n.raft.State() != raft.Leader { // saves the queue; the answer that counts is raft's
		return nil, ErrNotLeader
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	select {
	case n.pending <- struct{}{}:
	default:
		return nil, fmt.Errorf("%w: %d entries wait for their outcome", ErrBusy, maxPending)
	}
	p := &Pending{done: make(chan struct{})}
	f := n.raft.Apply(data, enqueueFor(ctx))
	ok := n.spawn(func() {
		p.err = outcome(f.Error())
		if p.err == nil {
			p.index, p.result = f.Index(), f.Response()
		}
		<-n.pending
		close(p.done)
	})
	if !ok {
		return nil, fmt.Errorf("%w: the node is shut down", ErrUnknown)
	}
	return p, nil
}

// Propose appends an entry and waits until the FSM of this node has applied it. Errors wrap
// ErrNotLeader or ErrBusy (certainly not appended) or ErrUnknown (it may be committed, now or later).
func (n *Node) Propose(ctx context.Context, data []byte) (index uint64, result any, err error) {
	p, err := n.Submit(ctx, data)
	if err != nil {
		return 0, nil, err
	}
	return p.Wait(ctx)
}

// Nudge appends an entry that no FSM sees, and waits for nothing. Followers learn of a commit with
// the next entry or after raft's CommitTimeout (50-100 ms); a nudge right after a commit is that next
// entry. It does nothing on a node that does not lead.
func (n *Node) Nudge() {
	if n.raft.State() != raft.Leader {
		return
	}
	select {
	case n.pending <- struct{}{}:
	default:
		return
	}
	f := n.raft.Barrier(enqueueTimeout)
	n.spawn(func() {
		_ = f.Error() // an unsent nudge costs a follower some milliseconds
		<-n.pending
	})
}

// enqueueFor is how long raft may wait for its queue.
func enqueueFor(ctx context.Context) time.Duration {
	d := enqueueTimeout
	if at, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(at))
	}
	return max(d, time.Millisecond) // 0 would mean for ever
}

// outcome sorts raft's errors by what they say about the entry. Only those that raft gives before it
// appends count as "not appended"; a shutdown or a lost leadership may come after.
func outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// Barrier returns when the FSM of this node, which must lead, has applied everything that was
// committed before the call. Errors as for Propose.
func (n *Node) Barrier(ctx context.Context) error {
	return n.leaderCall(ctx, func() raft.Future { return n.raft.Barrier(enqueueFor(ctx)) })
}

// VerifyLeader asks a majority whether this node still leads. An answer to a heartbeat sent shortly
// before the call may count (hashicorp/raft, replication.go). nil means it led at some moment since
// then.
func (n *Node) VerifyLeader(ctx context.Context) error {
	return n.leaderCall(ctx, func() raft.Future { return n.raft.VerifyLeader() })
}

// leaderCall runs a call that raft may block in, for as long as ctx lasts.
func (n *Node) leaderCall(ctx context.Context, call func() raft.Future) error {
	select {
	case n.pending <- struct{}{}:
	default:
		return fmt.Errorf("%w: %d entries wait for their outcome", ErrBusy, maxPending)
	}
	done := make(chan error, 1)
	ok := n.spawn(func() {
		done <- call().Error()
		<-n.pending
	})
	if !ok {
		return fmt.Errorf("%w: the node is shut down", ErrNotLeader)
	}
	select {
	case err := <-done:
		return outcome(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}

// AddNonvoter adds a server that receives the log and does not vote. A server that is one already
// stays what it is. Only the leader can; errors as for Propose.
func (n *Node) AddNonvoter(ctx context.Context, name ids.Node) error {
	return n.change(ctx, "add non-voter", name, func(id raft.ServerID, a raft.ServerAddress) raft.Future {
		return n.raft.AddNonvoter(id, a, 0, enqueueFor(ctx))
	})
}

// AddVoter adds a voter or makes a non-voter one. Whether it has caught up the caller must know: see
// Followers.
func (n *Node) AddVoter(ctx context.Context, name ids.Node) error {
	return n.change(ctx, "add voter", name, func(id raft.ServerID, a raft.ServerAddress) raft.Future {
		return n.raft.AddVoter(id, a, 0, enqueueFor(ctx))
	})
}

// RemoveServer removes a server. A leader that removes itself stops leading once that is committed,
// and its raft stops.
func (n *Node) RemoveServer(ctx context.Context, name ids.Node) error {
	return n.change(ctx, "remove", name, func(id raft.ServerID, _ raft.ServerAddress) raft.Future {
		return n.raft.RemoveServer(id, 0, enqueueFor(ctx))
	})
}

func (n *Node) change(ctx context.Context, what string, name ids.Node, f func(raft.ServerID, raft.ServerAddress) raft.Future) error {
	if err := ids.CheckName("node name", string(name)); err != nil {
		return err
	}
	err := n.leaderCall(ctx, func() raft.Future { return f(raft.ServerID(name), raft.ServerAddress(name)) })
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	return nil
}

// Transfer hands leadership to a voter and returns when that has happened or failed; raft stops
// taking proposals meanwhile, at most for one election timeout. The error wraps ErrNotLeader or
// ErrUnknown.
func (n *Node) Transfer(ctx context.Context, to ids.Node) error {
	return n.change(ctx, "transfer leadership to", to, func(id raft.ServerID, a raft.ServerAddress) raft.Future {
		return n.raft.LeadershipTransferToServer(id, a)
	})
}

// Snapshot takes a snapshot now and compacts the log. Without it that happens by itself after
// Options.SnapshotThreshold entries.
func (n *Node) Snapshot(ctx context.Context) error {
	done := make(chan error, 1)
	if !n.spawn(func() { done <- n.raft.Snapshot().Error() }) {
		return errors.New("take a snapshot: the node is shut down")
	}
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	return nil
}
