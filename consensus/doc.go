// Package consensus is the house of all that decides: the replicated state and its rules, the planner,
// the lease, the machine that is one node, and raft under them. It holds no code itself; its test keeps
// the import rules of the whole repository.
package consensus
