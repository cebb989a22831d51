package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/reason"
)

func (r *runner) status() *cobra.Command {
	var asJSON, watch bool
	var every time.Duration
	c := &cobra.Command{
		Use:     "status [--json] [--watch]",
		GroupID: "look",
		Short:   "Show the cluster: what is wrong, what to do, every node, every group",
		Long: `Shows the cluster as this node sees it: the most damaging condition first, with what
you may do about it; then every node and every group, each with its reason. Every
value has an age: "as of" and "heard" say how old what you see is.

Exit codes: 0 fine, 1 degraded, 3 no daemon or no quorum.`,
		Args: exactly(),
		RunE: act(func(cmd *cobra.Command, _ []string) error {
			if watch {
				return r.watch(cmd.Context(), asJSON, every)
			}
			s, err := r.showStatus(cmd.Context(), asJSON)
			if err != nil {
				return err
			}
			return statusExit(s)
		}),
	}
	jsonFlag(c, &asJSON)
	c.Flags().BoolVar(&watch, "watch", false, "show it again and again until interrupted")
	c.Flags().DurationVar(&every, "every", time.Second, "`TIME` between two looks with --watch, at least 100ms")
	return c
}

func (r *runner) showStatus(ctx context.Context, asJSON bool) (control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := r.client().Status(ctx)
	if err != nil {
		return s, err
	}
	if asJSON {
		return s, r.json(s)
	}
	r.answer(renderStatus(s, r.now()))
	return s, nil
}

func statusExit(s control.Status) error {
	switch s.State {
	case control.StateOK:
		return nil
	case control.StateNoQuorum:
		return exitWith(control.ExitUnavailable)
	}
	return exitWith(control.ExitDegraded)
}

// watch shows status until ctx ends. A daemon that is away for a while is talk, not the end.
func (r *runner) watch(ctx context.Context, asJSON bool, every time.Duration) error {
	tick := time.NewTicker(max(every, 100*time.Millisecond))
	defer tick.Stop()
	for {
		if !asJSON && r.terminal() {
			r.answer("\x1b[H\x1b[2J\x1b[3J")
		}
		if _, err := r.showStatus(ctx, asJSON); err != nil && ctx.Err() == nil {
			r.say("picket: %s", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !asJSON {
			r.answer("\n")
		}
	}
}

func (r *runner) why() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "why GROUP|NODE",
		GroupID: "look",
		Short:   "Explain why a group is where it is, or what holds a node back",
		Long: `Gives a verdict, then one line per node: chosen, eligible or excluded, each with its
reason, who said so, and how old that is.`,
		Example: "  picket why web\n  picket why node2",
		Args:    exactly("GROUP or NODE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			ctx, cancel := timed(cmd)
			defer cancel()
			e, err := r.client().Why(ctx, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return r.json(e)
			}
			r.answer(renderWhy(e, r.now()))
			return nil
		}),
	}
	jsonFlag(c, &asJSON)
	return c
}

func (r *runner) events() *cobra.Command {
	var asJSON, follow bool
	var since uint64
	c := &cobra.Command{
		Use:     "events [--follow] [--json]",
		GroupID: "look",
		Short:   "Show what happened, and with --follow what happens",
		Args:    exactly(),
		RunE: act(func(cmd *cobra.Command, _ []string) error {
			err := r.client().Events(cmd.Context(), since, follow, func(e control.Event) error {
				if !asJSON {
					r.answer(renderEvent(e))
					return nil
				}
				b, err := json.Marshal(e)
				if err == nil {
					r.answer(string(b))
				}
				return err
			})
			if follow && cmd.Context().Err() != nil && errors.Is(err, cmd.Context().Err()) {
				return nil // interrupted by the reader: that is how it ends
			}
			return err
		}),
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	c.Flags().Uint64Var(&since, "since", 0, "only events after the one with this `SEQ`")
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object per line (a stable contract that only grows)")
	return c
}

func (r *runner) explain() *cobra.Command {
	return &cobra.Command{
		Use:     "explain [CODE]",
		GroupID: "look",
		Short:   "Say what a code means; without CODE, list them all (needs no daemon)",
		Example: "  picket explain FENCE_UNPROVEN",
		Args:    cobra.MaximumNArgs(1),
		RunE: act(func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				r.answer(renderCodes(reason.All()))
				return nil
			}
			code := strings.ToUpper(strings.Trim(strings.ReplaceAll(args[0], "-", "_"), "[] "))
			var near []string
			for _, e := range reason.All() {
				if string(e.Code) == code {
					r.answer(renderCode(e))
					return nil
				}
				if code != "" && strings.Contains(string(e.Code), code) {
					near = append(near, string(e.Code))
				}
			}
			if len(near) > 0 {
				return control.Usage("code %s is not known; did you mean %s?", code, strings.Join(near[:min(len(near), 5)], ", "))
			}
			return control.Usage("code %s is not known; list them all with: picket explain", code)
		}),
	}
}

func (r *runner) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		GroupID: "setup",
		Short:   "Print the version",
		Args:    exactly(),
		RunE: act(func(*cobra.Command, []string) error {
			v := r.hooks.Version
			if info, ok := debug.ReadBuildInfo(); ok && v == "" {
				v = info.Main.Version
			}
			if v == "" {
				v = "(devel)"
			}
			r.answer(fmt.Sprintf("picket %s (%s, %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH))
			return nil
		}),
	}
}
