package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/control"
)

func (r *runner) fence() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:     "fence NODE [--reason R]",
		GroupID: "act",
		Short:   "Cut a node's power now, and see past fences",
		Long: `Cuts NODE's power through its fence device, reads back that it is off, lets other
nodes take over what it ran, and powers it on again. What runs on NODE dies at once.

For planned work use "picket node standby NODE" instead: it moves things in order.`,
		Example: "  picket fence node2 --reason 'hangs, console is dead'\n  picket fence confirm node2    # only if you have cut its power yourself",
		Args:    exactly("NODE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.operate(cmd, control.Operation{Kind: control.OpFence, Node: args[0], Reason: reason}, false)
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, in your own `WORDS`: it is kept in the history")
	c.AddCommand(r.fenceConfirm(), r.fenceHistory())
	return c
}

func (r *runner) fenceConfirm() *cobra.Command {
	var reason, confirm string
	c := &cobra.Command{
		Use:   "confirm NODE",
		Short: "Tell the cluster that a node is off, when nothing else can prove it",
		Long: `Tells the cluster that NODE has no power, on your word, so that what it ran may start
elsewhere. Your name, the time and your reason are kept in the log.

IF NODE IS STILL RUNNING, ITS DATA WILL BE DESTROYED: two nodes will then write to the same disks and answer on the same address. "It does not answer" is not proof. Before you confirm, do one of these:

  - see with your own eyes that it is off, or pull its power cords;
  - power it off at the PDU, or in the hypervisor, and see that it is off.

Keep it off until this command has answered.`,
		Example: "  picket fence confirm node2 --reason 'both power cords pulled, rack 4'\n  picket fence confirm node2 --confirm node2 --reason '...'      # in a script",
		Args:    exactly("NODE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			if err := r.askConfirm(args[0], &confirm, &reason); err != nil {
				return err
			}
			return r.operate(cmd, control.Operation{Kind: control.OpFenceConfirm, Node: args[0], Confirm: confirm, Reason: reason}, false)
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "how you know that it is off, in your own `WORDS`")
	c.Flags().StringVar(&confirm, "confirm", "", "the `NODE`'s name once more, instead of typing it when asked")
	c.Flags().StringVar(&confirm, "yes-i-mean", "", "the same as --confirm `NODE`")
	return c
}

// askConfirm fills what the flags did not give by asking a person at a terminal. Nothing is ever
// assumed: without a terminal both flags are wanted.
func (r *runner) askConfirm(node string, confirm, reason *string) error {
	if *confirm == "" || *reason == "" {
		if !r.terminal() {
			return control.Usage("without a terminal both are needed: --confirm %s and --reason 'how you know that it is off'", node)
		}
	}
	in := bufio.NewReader(io.LimitReader(r.in, 4096))
	ask := func(question string, into *string) error {
		if *into != "" {
			return nil
		}
		fmt.Fprint(r.err, question)
		line, err := in.ReadString('\n')
		if err != nil && line == "" {
			return control.Refused("", "nothing was confirmed", "")
		}
		*into = strings.TrimSpace(line)
		return nil
	}
	if *confirm == "" {
		r.say("If %s is still running, its data will be destroyed. Is it certain that it has no power?", printable(node))
	}
	if err := ask("Type the node's name to confirm: ", confirm); err != nil {
		return err
	}
	if *confirm != node {
		return control.Refused("", fmt.Sprintf("nothing was confirmed: '%s' is not '%s'", *confirm, node), "")
	}
	if err := ask("How do you know that it is off? ", reason); err != nil {
		return err
	}
	if *reason == "" {
		return control.Refused("", "nothing was confirmed: a reason is needed", "")
	}
	return nil
}

func (r *runner) fenceHistory() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "history",
		Short: "Show every fence in the log: why, how, by whom, and the proof",
		Args:  exactly(),
		RunE: act(func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := timed(cmd)
			defer cancel()
			list, err := r.client().FenceHistory(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return r.json(list)
			}
			r.answer(renderFences(list, r.now()))
			return nil
		}),
	}
	jsonFlag(c, &asJSON)
	return c
}
