package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// demoHold is for how long the demonstration watches a held group before it frees it.
const demoHold = 4 * time.Second

// demoOptions are the flags of the demonstration.
type demoOptions struct {
	dir, picket string
	only        []string
	keep        bool
}

func demoCmd(f *flags) *cobra.Command {
	var o demoOptions
	var keys []string
	for _, s := range cluster.Scenes() {
		keys = append(keys, s.Key)
	}
	c := &cobra.Command{
		Use: "demo", Short: "Show a three-node cluster fail over, in about a minute", Args: cobra.NoArgs,
		Long: `Forms a cluster of three picket nodes in a lab of its own, lets six things happen to it,
and tells of each what was done, what the cluster did and why, and what a client noticed.
The exit code is 0 if everything held, 1 if not. Interrupt it at any time: nothing stays.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, k := range o.only {
				if !slices.Contains(keys, k) {
					return usage(cmd, fmt.Errorf("there is no scene %q: use %s", k, strings.Join(keys, ", ")))
				}
			}
			if cmd.Flags().Changed("dir") {
				o.dir = f.dir
			}
			if o.picket == "" {
				o.picket = findPicket()
			}
			if o.picket == "" {
				return errors.New("no picket binary found beside picket-lab or in PATH: build it, or give --picket BIN")
			}
			return demo(cmd.Context(), o)
		},
	}
	c.Flags().StringVar(&o.picket, "picket", "", "picket binary (default: beside picket-lab, or in PATH)")
	c.Flags().StringSliceVar(&o.only, "scene", nil, "play only these scenes: "+strings.Join(keys, ", "))
	c.Flags().BoolVar(&o.keep, "keep", false, "keep the lab's directory with its logs and records")
	return c
}

// demo plays the scenes. Whatever happens, the lab is ended; its directory stays only when there is
// something in it to look at.
func demo(ctx context.Context, o demoOptions) error {
	sh := &show{w: os.Stdout}
	made := ""
	if o.dir == "" {
		d, err := os.MkdirTemp("", "picket-demo-")
		if err != nil {
			return fmt.Errorf("make a directory for the lab: %w", err)
		}
		made, o.dir = d, filepath.Join(d, "lab")
	}
	begin := time.Now()
	sh.intro()
	c, err := cluster.Form(ctx, cluster.Options{Lab: netlab.Options{Dir: o.dir, Picket: o.picket}, Ran: sh.ran})
	if err != nil {
		if ctx.Err() != nil {
			return errors.Join(errors.New("interrupted"), clearUp(made, o.dir))
		}
		return fmt.Errorf("form the cluster (the lab's files are in %s): %w", o.dir, err)
	}
	sh.formed(ctx, c, time.Since(begin))
	held, err := demoScenes(ctx, c, o, sh)
	logs := ""
	if !held {
		logs = c.Logs(20)
	}
	if cerr := c.Lab.Close(); cerr != nil && err == nil {
		err = cerr
	}
	switch {
	case ctx.Err() != nil:
		return errors.Join(errors.New("interrupted"), clearUp(made, o.dir))
	case !held:
		sh.line("")
		sh.raw(logs)
		sh.line("The lab's files are kept in " + o.dir)
	case o.keep:
		sh.line("The lab's files are kept in " + o.dir)
	default:
		err = errors.Join(err, clearUp(made, o.dir))
	}
	if err != nil {
		return err
	}
	if !held {
		return exitCode(1)
	}
	return nil
}

func clearUp(made, dir string) error {
	if err := netlab.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if made != "" {
		return os.Remove(made)
	}
	return nil
}

// demoScenes plays the scenes and judges the whole run.
func demoScenes(ctx context.Context, c *cluster.Cluster, o demoOptions, sh *show) (bool, error) {
	var results []cluster.Result
	held := true
	began := time.Now()
	for i, s := range cluster.Scenes() {
		if len(o.only) > 0 && !slices.Contains(o.only, s.Key) {
			continue
		}
		sh.scene(i+1, s)
		st := &cluster.Stage{C: c, Tell: sh.tell, Hold: demoHold}
		r, err := st.Play(ctx, s)
		if ctx.Err() != nil {
			return false, nil
		}
		sh.verdict(r)
		results = append(results, r)
		held = held && r.OK()
		if err != nil {
			break // the cluster is not well: what follows would prove nothing
		}
	}
	h, err := c.Lab.History(ctx)
	if err != nil {
		return false, err
	}
	rep := check.Run(h, check.Options{Require: []check.Stream{check.StreamARP, check.StreamWriter, check.StreamLock, check.StreamPower, check.StreamBMC}})
	sh.tables(results)
	sh.judge(rep, time.Since(began))
	held = held && rep.OK()
	sh.end(held)
	return held, nil
}
