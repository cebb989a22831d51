package cli

import (
	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/control"
)

func (r *runner) node() *cobra.Command {
	standby := &cobra.Command{
		Use:   "standby NODE",
		Short: "Move everything off a node and use it for nothing",
		Long: `Moves every group off NODE, in order, and gives it no group until
"picket node online NODE". It stays a voter of the cluster. Use it before you work
on a machine.`,
		Args: exactly("NODE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.operate(cmd, control.Operation{Kind: control.OpNodeStandby, Node: args[0]}, false)
		}),
	}
	online := &cobra.Command{
		Use:   "online NODE",
		Short: "Use a node again",
		Long: `Ends standby. Groups come back to NODE only where the cluster file says
"failback: true", or when you move them.`,
		Args: exactly("NODE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.operate(cmd, control.Operation{Kind: control.OpNodeOnline, Node: args[0]}, false)
		}),
	}
	remove := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node out of the cluster for good",
		Long: `Takes NODE out of the cluster: it votes no more and nobody listens to it. Stop its
daemon first. Refused while it owns a group, while it is not proven off, or while the
cluster file still names it in a group. To use the machine again, remove its node
file and state directory there and join it with a new token.`,
		Args: exactly("NODE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.operate(cmd, control.Operation{Kind: control.OpNodeRemove, Node: args[0]}, false)
		}),
	}
	return parent("node", "act", "Put a node on standby, use it again, or remove it", "", standby, online, remove)
}

func (r *runner) group() *cobra.Command {
	var to string
	move := &cobra.Command{
		Use:   "move GROUP [--to NODE]",
		Short: "Move a group to another node",
		Long: `Stops GROUP where it runs, in order, and starts it on another node. Without --to,
picket picks the next best node. The group then stays there as long as that node
may own it; with "failback: true" in the cluster file, until "picket group cleanup".`,
		Example: "  picket group move web --to node2",
		Args:    exactly("GROUP"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.operate(cmd, control.Operation{Kind: control.OpGroupMove, Group: args[0], To: to}, false)
		}),
	}
	move.Flags().StringVar(&to, "to", "", "the `NODE` to move to (default: the next best)")
	simple := func(use, kind, short, long string) *cobra.Command {
		return &cobra.Command{Use: use + " GROUP", Short: short, Long: long, Args: exactly("GROUP"),
			RunE: act(func(cmd *cobra.Command, args []string) error {
				return r.operate(cmd, control.Operation{Kind: kind, Group: args[0]}, false)
			})}
	}
	return parent("group", "act", "Start, stop, move or clean up a group", "",
		simple("start", control.OpGroupStart, "Start a group that was stopped or has failed",
			"Lets GROUP run again, and forgets its earlier failures."),
		simple("stop", control.OpGroupStop, "Stop a group and keep it stopped",
			"Stops GROUP in order. It stays stopped, through restarts of every node,\nuntil \"picket group start GROUP\"."),
		move,
		simple("cleanup", control.OpGroupCleanup, "Forget a group's failures, so that every node may try again",
			"Forgets where GROUP failed to start or to run. Mend the cause first:\npicket why GROUP."))
}
