package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/integration/netlab"
)

// codeUsage is the exit code for a command line that makes no sense.
const codeUsage = exitCode(2)

// flags are common to all verbs.
type flags struct {
	dir     string
	verbose bool
}

// echo is where ip and nft commands go, or nil.
func (f *flags) echo() io.Writer {
	if f.verbose {
		return os.Stderr
	}
	return nil
}

func (f *flags) open() (*netlab.Lab, error) { return netlab.Open(f.dir, f.echo()) }

func newRoot() *cobra.Command {
	f := &flags{}
	root := &cobra.Command{
		Use:   "picket-lab",
		Short: "A picket cluster on one machine, to be broken by hand",
		Long: `A picket cluster on one machine, to be broken by hand.

Every node has namespaces of its own, eth0 on the public network (192.168.60.0/24), eth1 on
the heartbeat network (10.10.10.0/24) and mgmt0 on the management network (10.20.30.0/24),
where its BMC listens at 10.20.30.101 and up. A client lives at 192.168.60.250. Nothing
outside the lab's namespaces and directory is touched.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.Args = func(c *cobra.Command, a []string) error {
		if err := cobra.NoArgs(c, a); err != nil {
			return usage(c, err)
		}
		return nil
	}
	root.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	root.PersistentFlags().StringVar(&f.dir, "dir", netlab.DefaultDir(), "directory of the lab")
	root.PersistentFlags().BoolVarP(&f.verbose, "verbose", "v", false, "echo every ip and nft command with its namespace")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err) })
	for _, c := range []*cobra.Command{
		upCmd(f), downCmd(f), statusCmd(f), cutCmd(f), healCmd(f), powerCmd(f),
		nodeCmd(f, "plug", "Put a node's cord back: BMC and node come up", (*netlab.Lab).Plug),
		nodeCmd(f, "unplug", "Pull a node's cord: node and BMC die together", (*netlab.Lab).Unplug),
		nodeCmd(f, "kill", "Kill a node's daemon (SIGKILL)", (*netlab.Lab).Kill),
		nodeCmd(f, "pause", "Stop a node's daemon (SIGSTOP)", (*netlab.Lab).Pause),
		nodeCmd(f, "resume", "Let a paused daemon go on (SIGCONT)", (*netlab.Lab).Resume),
		nodeCmd(f, "start", "Start a node's daemon, now and at every boot", (*netlab.Lab).StartDaemon),
		nodeCmd(f, "stop", "Stop a node's daemon in order (SIGTERM)", (*netlab.Lab).StopDaemon),
		demoCmd(f), bmcCmd(f), execCmd(f), psCmd(f), watchCmd(f), checkCmd(f), outageCmd(f),
	} {
		if args := c.Args; args != nil {
			c.Args = func(cmd *cobra.Command, a []string) error {
				if err := args(cmd, a); err != nil {
					return usage(cmd, err)
				}
				return nil
			}
		}
		root.AddCommand(c)
	}
	return root
}

// usage prints what is wrong with a command line and how it should look.
func usage(c *cobra.Command, err error) error {
	fmt.Fprintf(os.Stderr, "picket-lab: %v\nusage: %s\n", err, c.UseLine())
	return codeUsage
}
