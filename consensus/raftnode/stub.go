package raftnode

import (
	"context"
	"errors"

	"github.com/picket-ha/picket/consensus/ids"
)

var errTodo = errors.New("not built yet")

type Node struct{}

func Open(o Options) (*Node, error) { return nil, errTodo }
func (n *Node) Bootstrap() error    { return errTodo }
func (n *Node) Bootstrapped() bool  { return false }
func (n *Node) Propose(ctx context.Context, data []byte) (index uint64, result any, err error) {
	return 0, nil, errTodo
}
func (n *Node) Barrier(ctx context.Context) error                     { return errTodo }
func (n *Node) VerifyLeader(ctx context.Context) error                { return errTodo }
func (n *Node) Leader() (ids.Node, uint64)                            { return "", 0 }
func (n *Node) IsLeader() bool                                        { return false }
func (n *Node) AddNonvoter(ctx context.Context, name ids.Node) error  { return errTodo }
func (n *Node) AddVoter(ctx context.Context, name ids.Node) error     { return errTodo }
func (n *Node) RemoveServer(ctx context.Context, name ids.Node) error { return errTodo }
func (n *Node) Servers() ([]Server, uint64, error)                    { return nil, 0, errTodo }
func (n *Node) Transfer(ctx context.Context, to ids.Node) error       { return errTodo }
func (n *Node) AppliedIndex() uint64                                  { return 0 }
func (n *Node) LastIndex() uint64                                     { return 0 }
func (n *Node) CommitIndex() uint64                                   { return 0 }
func (n *Node) Followers() []Follower                                 { return nil }
func (n *Node) StartCounter() uint64                                  { return 0 }
func (n *Node) Stats() map[string]string                              { return nil }
func (n *Node) Shutdown() error                                       { return nil }
