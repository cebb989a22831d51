package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/control"
)

func (r *runner) node() *cobra.Command {
	var forT time.Duration
	standby := &cobra.Command{
		Use:   "standby NODE [--for 1h]",
		Short: "Move everything off a node and use it for nothing",
		Long: `Moves every group off NODE, in order, and gives it no group until
"picket node online NODE". It stays a voter of the cluster. Use it before you work
on a machine.`,
		Args: exactly("NODE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.operate(cmd, control.Operation{Kind: control.OpNodeStandby, Node: args[0], For: forT}, false)
		}),
	}
	standby.Flags().DurationVar(&forT, "for", 0, "come back online by itself after this `TIME` (default: never)")
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
	return parent("node", "act", "Put a node on standby, or use it again", "", standby, online)
}

func (r *runner) group() *cobra.Command {
	var to string
	var forT time.Duration
	move := &cobra.Command{
		Use:   "move GROUP [--to NODE] [--for 1h]",
		Short: "Move a group to another node",
		Long: `Stops GROUP where it runs, in order, and starts it on another node. Without --to,
picket picks the next best node. The group then stays there (unless the cluster
file says "failback: true", or --for ends).`,
		Example: "  picket group move web --to node2",
		Args:    exactly("GROUP"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.operate(cmd, control.Operation{Kind: control.OpGroupMove, Group: args[0], To: to, For: forT}, false)
		}),
	}
	move.Flags().StringVar(&to, "to", "", "the `NODE` to move to (default: the next best)")
	move.Flags().DurationVar(&forT, "for", 0, "forget the move after this `TIME` (default: never)")
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
