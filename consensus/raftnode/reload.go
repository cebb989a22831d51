package raftnode

import (
	"fmt"

	"github.com/picket-ha/picket/consensus/state"
)

// Reload takes over the raft timings of a new configuration without a restart, as far as raft allows:
// the heartbeat and election timeouts at once, the leader lease at the next start (it is no safety
// bound here). A lease longer than the new heartbeat timeout is an error and changes nothing.
func (n *Node) Reload(t state.Timing) error {
	c := n.raft.ReloadableConfig()
	if c.HeartbeatTimeout == t.RaftHeartbeat && c.ElectionTimeout == t.RaftElection {
		return nil
	}
	c.HeartbeatTimeout, c.ElectionTimeout = t.RaftHeartbeat, t.RaftElection
	if err := n.raft.ReloadConfig(c); err != nil {
		return fmt.Errorf("take over raft's timing: %w", err)
	}
	return nil
}
