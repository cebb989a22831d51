package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/bmcsim"
	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
)

func upCmd(f *flags) *cobra.Command {
	var nodes int
	var witness, picket string
	var rootless, foreground bool
	var vips []string
	c := &cobra.Command{
		Use: "up", Short: "Start a lab; it runs until picket-lab down", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := netlab.Options{Dir: f.dir, Witness: witness, Rootless: rootless, Detach: !foreground, Echo: f.echo()}
			for i := range nodes {
				o.Nodes = append(o.Nodes, fmt.Sprintf("node%d", i+1))
			}
			for _, v := range vips {
				a, err := netip.ParseAddr(v)
				if err != nil {
					return usage(cmd, fmt.Errorf("--watch wants an IPv4 address: %w", err))
				}
				o.VIPs = append(o.VIPs, a)
			}
			if o.Picket = picket; picket == "" {
				o.Picket = findPicket()
			}
			begin := time.Now()
			l, err := netlab.Start(cmd.Context(), o)
			if err != nil {
				return err
			}
			fmt.Printf("lab up in %s: %d nodes, files in %s\n", time.Since(begin).Round(time.Millisecond), nodes, l.Dir())
			if o.Picket == "" {
				fmt.Fprintln(os.Stderr, "no picket binary found: the nodes have none (give --picket BIN)")
			}
			if !foreground {
				return nil
			}
			<-cmd.Context().Done()
			return l.Close()
		},
	}
	c.Flags().IntVar(&nodes, "nodes", 3, fmt.Sprintf("number of nodes, 1 to %d", netlab.MaxNodes))
	c.Flags().StringVar(&witness, "witness", "", "node that shall be the witness (for status and demo)")
	c.Flags().StringVar(&picket, "picket", "", "picket binary (default: beside picket-lab, or in PATH)")
	c.Flags().BoolVar(&rootless, "rootless", false, "insist on a user namespace, also as root")
	c.Flags().BoolVar(&foreground, "foreground", false, "stay, and end the lab on ctrl-C")
	c.Flags().StringSliceVar(&vips, "watch", nil, "service addresses to watch from the start")
	return c
}

// findPicket looks for the product where a build or an installation puts it.
func findPicket() string {
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), "picket")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p
		}
	}
	p, err := exec.LookPath("picket")
	if err != nil {
		return ""
	}
	return p
}

func downCmd(f *flags) *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use: "down", Short: "End the lab and remove its directory", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := f.open()
			if err != nil {
				// A lab that was killed leaves its files.
				if !keep && netlab.Remove(f.dir) == nil {
					fmt.Println("no lab was running; its files are removed")
					return nil
				}
				return err
			}
			if err := l.Close(); err != nil || keep {
				return err
			}
			return netlab.Remove(f.dir)
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "keep the directory with state, logs and records")
	return c
}

func statusCmd(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Show the lab's nodes, cables and BMCs (not the cluster)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			s, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(os.Stdout)
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			return printStatus(os.Stdout, s)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func printStatus(w io.Writer, s netlab.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tPOWER\tBOOT\tDAEMON\tBMC\tCABLES")
	for _, n := range s.Nodes {
		boot := "-"
		if len(n.Boot) > 8 {
			boot = n.Boot[:8]
		}
		bmc := n.BMC
		switch {
		case n.Faults == nil:
			bmc += " dead"
		case *n.Faults != bmcsim.Faults{}:
			bmc += " faulty"
		}
		var cuts []string
		for _, c := range n.Cuts {
			how := string(c.Direction)
			if c.Carrier {
				how = "no carrier"
			}
			cuts = append(cuts, fmt.Sprintf("%s cut (%s)", c.Link, how))
		}
		if cuts == nil {
			cuts = []string{"fine"}
		}
		name := n.Name
		if n.Witness {
			name += " (witness)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", name, n.Power, boot, n.Daemon, bmc, strings.Join(cuts, ", "))
	}
	return t.Flush()
}

func cutCmd(f *flags) *cobra.Command {
	var direction string
	var carrier bool
	c := &cobra.Command{
		Use: "cut NODE LINK", Short: "Cut a cable: eth0, eth1, mgmt0, or bmc", Args: cobra.ExactArgs(2),
		Long: `Cut a cable: eth0, eth1, mgmt0, or bmc (the BMC's own). Packets vanish in the switch and the
carrier stays, unless --carrier takes the switch port down. "in" is what the node would
receive, "out" what it sends. A cut outlives the node's boots, until heal.`,
		RunE: func(cmd *cobra.Command, a []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			if carrier {
				if direction != string(netlab.Both) {
					return usage(cmd, errors.New("--carrier cuts both ways: leave --direction out"))
				}
				return l.CutCarrier(cmd.Context(), a[0], a[1])
			}
			return l.Cut(cmd.Context(), a[0], a[1], netlab.Direction(direction))
		},
	}
	c.Flags().StringVar(&direction, "direction", string(netlab.Both), "in, out or both, seen from the node")
	c.Flags().BoolVar(&carrier, "carrier", false, "take the carrier away too")
	return c
}

func healCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "heal [NODE [LINK]]", Short: "Mend one cable, a node's cables, or all", Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, a []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			a = append(a, "", "")
			return l.Heal(cmd.Context(), a[0], a[1])
		},
	}
}

func powerCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "power NODE on|off|plug|unplug", Short: "Switch a node; its BMC lives on unless the cord goes", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, a []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			switch a[1] {
			case "on", "off":
				return l.Power(cmd.Context(), a[0], a[1] == "on")
			case "plug":
				return l.Plug(cmd.Context(), a[0])
			case "unplug":
				return l.Unplug(cmd.Context(), a[0])
			}
			return usage(cmd, fmt.Errorf("%q: power is switched on, off, plug or unplug", a[1]))
		},
	}
}

// nodeCmd is a verb with one node and nothing else.
func nodeCmd(f *flags, verb, short string, do func(*netlab.Lab, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NODE", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			return do(l, cmd.Context(), a[0])
		},
	}
}

func bmcCmd(f *flags) *cobra.Command {
	var slow time.Duration
	c := &cobra.Command{
		Use: "bmc NODE ok|dead|slow|lie-ok|lie-off|wrong-guid|no-guid|reject-login", Short: "Break or heal a node's BMC", Args: cobra.ExactArgs(2),
		Long: `Break or heal a node's BMC: ok heals it, dead answers nothing, slow delays each answer (--delay),
lie-ok says OK and does nothing, lie-off also says off while the node runs, wrong-guid is
another machine's BMC, no-guid does not know who it is, reject-login refuses the password.`,
		RunE: func(cmd *cobra.Command, a []string) error {
			faults, ok := map[string]bmcsim.Faults{
				"ok": {}, "dead": {Dead: true}, "slow": {Slow: slow}, "lie-ok": {LieOK: true}, "lie-off": {LieOff: true},
				"wrong-guid": {WrongGUID: true}, "no-guid": {NoGUID: true}, "reject-login": {RejectLogin: true},
			}[a[1]]
			if !ok {
				return usage(cmd, fmt.Errorf("a BMC cannot be %q", a[1]))
			}
			l, err := f.open()
			if err != nil {
				return err
			}
			return l.BMC(cmd.Context(), a[0], faults)
		},
	}
	c.Flags().DurationVar(&slow, "delay", 5*time.Second, "delay of each answer of a slow BMC")
	return c
}

func execCmd(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use: "exec NODE CMD [ARG...]", Short: "Run a command on a node, or on the client", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, a []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			sigs := make(chan os.Signal, 4)
			signal.Notify(sigs, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGWINCH)
			defer signal.Stop(sigs)
			var env []string
			if term := os.Getenv("TERM"); term != "" {
				env = append(env, "TERM="+term)
			}
			// Not the command's context: an interrupt is for the program on the node to handle.
			code, err := l.Exec(context.WithoutCancel(cmd.Context()), a[0], a[1:], env, [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, sigs)
			if err != nil {
				return err
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	c.Flags().SetInterspersed(false) // what follows the node is the command's
	return c
}

func psCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "ps NODE", Short: "List a node's processes", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			list, err := l.Processes(cmd.Context(), a[0])
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "PID\tPPID\tSTATE\tCOMMAND")
			for _, p := range list {
				fmt.Fprintf(t, "%d\t%d\t%s\t%s\n", p.PID, p.PPID, p.State, p.Command)
			}
			return t.Flush()
		},
	}
}

func watchCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "watch ADDRESS", Short: "Let the observers watch a service address", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			vip, err := netip.ParseAddr(a[0])
			if err != nil {
				return usage(cmd, fmt.Errorf("watch wants an IPv4 address: %w", err))
			}
			l, err := f.open()
			if err != nil {
				return err
			}
			return l.Watch(cmd.Context(), vip)
		},
	}
}

func checkCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Judge what the observers saw: was an address ever owned twice?", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			h, err := l.History(cmd.Context())
			if err != nil {
				return err
			}
			r := check.Run(h, check.Options{})
			if err := r.Write(os.Stdout); err != nil {
				return err
			}
			if !r.OK() {
				return exitCode(1)
			}
			return nil
		},
	}
}

func outageCmd(f *flags) *cobra.Command {
	var last time.Duration
	c := &cobra.Command{
		Use: "outage ADDRESS", Short: "Show the longest outage that a client saw", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			h, err := l.History(cmd.Context())
			if err != nil {
				return err
			}
			now := check.Now()
			g, err := h.Outage(a[0], now-int64(last), now)
			if err != nil {
				return err
			}
			fmt.Println(g.Length().Round(time.Millisecond))
			return nil
		},
	}
	c.Flags().DurationVar(&last, "last", 30*time.Second, "how far to look back")
	return c
}
