// Package cli is picket's command line: the verbs, one file per noun, with rendering (render*.go) apart
// from fetching. It speaks to the daemon through the control socket only; init, join and daemon are
// handed in as Hooks, because the command line does not know how a node is wired.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
)

// Hooks are the commands that need a node's wiring. A nil hook answers that this build has no such
// command. Errors decide the exit code by control.ExitCode.
type Hooks struct {
	// Daemon runs a node until ctx ends, then stops it cleanly.
	Daemon func(ctx context.Context, o config.DaemonOptions) error
	// Init makes a cluster of one node; it leaves nothing behind when it fails.
	Init func(ctx context.Context, o config.InitOptions) (config.InitResult, error)
	// Join makes this machine a node of an existing cluster; it leaves nothing behind when it fails.
	Join func(ctx context.Context, o config.JoinOptions) (config.JoinResult, error)
	// Version is the version to report; "" takes what the Go toolchain recorded in the binary.
	Version string
}

// Run carries out one command line (without the program's name) and returns its exit code: 0 fine, 1
// degraded or failed, 2 usage, 3 no daemon or no quorum, 4 refused. Answers go to stdout, everything
// else to stderr. It never calls os.Exit.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, hooks Hooks) int {
	return newRunner(stdin, stdout, stderr, hooks).run(ctx, args)
}

// runner is one command line being carried out.
type runner struct {
	in       io.Reader
	out, err io.Writer
	hooks    Hooks
	paths    config.Paths
	warned   map[string]bool
	// now and terminal are the seams for tests: the clock that ages are counted on, and whether a person
	// sits at stdin.
	now      func() time.Time
	terminal func() bool
}

func newRunner(stdin io.Reader, stdout, stderr io.Writer, hooks Hooks) *runner {
	return &runner{in: stdin, out: stdout, err: stderr, hooks: hooks, now: time.Now, terminal: func() bool { return isTerminal(stdin) }}
}

// ran marks an error of a command that did run: everything else that cobra returns is a usage error.
type ran struct{ err error }

// Error is the wrapped error's text.
func (r ran) Error() string { return r.err.Error() }

// Unwrap gives the wrapped error.
func (r ran) Unwrap() error { return r.err }

// exitWith ends a command with a code and without a message: the answer has said it all.
type exitWith int

// Error names the code; it is never shown.
func (e exitWith) Error() string { return fmt.Sprintf("exit %d", int(e)) }

func (r *runner) run(ctx context.Context, args []string) int {
	root := r.root()
	if args == nil {
		args = []string{} // cobra would take os.Args
	}
	root.SetArgs(args)
	root.SetIn(r.in)
	root.SetOut(r.out)
	root.SetErr(r.err)
	cmd, err := root.ExecuteContextC(ctx)
	var done ran
	var code exitWith
	switch {
	case err == nil:
		return control.ExitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &done):
		fmt.Fprintln(r.err, "picket: "+printable(done.err.Error()))
		return control.ExitCode(done.err)
	}
	fmt.Fprintf(r.err, "picket: %s\nSee: %s --help\n", printable(strings.TrimSpace(err.Error())), cmd.CommandPath())
	return control.ExitUsage
}

func (r *runner) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "picket",
		Short: "Keep a service running on exactly one node of a cluster",
		Long: `picket keeps a service (an address, a file system, a daemon) running on exactly
one node of a small cluster. When a node dies, picket proves that it is dead (it
cuts its power and reads back that it is off) before another node takes over.

When something is wrong, in this order:
  picket status              what is wrong, and what to do about it
  picket why GROUP|NODE      why a group is where it is, or why a node is not used
  picket explain CODE        what a code such as FENCE_UNPROVEN means
  picket events --follow     what is happening now`,
		Example: `  picket init --name node1 --link eth0=192.168.60.11 --link eth1=10.10.10.11
  picket apply cluster.yaml
  picket group move web --to node2`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          onlySubcommands,
		RunE:          needSubcommand,

		SuggestionsMinimumDistance: 2,
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&r.paths.ConfigPath, "config", config.DefaultConfigPath, "this node's `FILE`")
	f.StringVar(&r.paths.StateDir, "state-dir", config.DefaultStateDir, "`DIR` of keys, certificates and the log")
	f.StringVar(&r.paths.Socket, "socket", config.DefaultSocket, "control socket of the daemon, a `PATH`")
	root.AddGroup(&cobra.Group{ID: "look", Title: "Look:"}, &cobra.Group{ID: "act", Title: "Act:"}, &cobra.Group{ID: "setup", Title: "Set up:"})
	root.AddCommand(r.status(), r.why(), r.events(), r.explain(), r.node(), r.group(), r.fence(), r.apply(), r.config(),
		r.initCluster(), r.join(), r.daemon(), r.token(), r.version())
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", fmt.Sprintf(".FlagUsagesWrapped %d", width)))
	reflow(root)
	return root
}

// reflow fits the long help of a command and its children to width. Paragraphs whose lines begin with
// a blank are left as they are.
func reflow(c *cobra.Command) {
	var out []string
	for _, p := range strings.Split(c.Long, "\n\n") {
		if !strings.HasPrefix(p, " ") && !strings.Contains(p, "\n ") {
			p = strings.Join(wrap(p, width), "\n")
		}
		out = append(out, p)
	}
	c.Long = strings.TrimSpace(strings.Join(out, "\n\n"))
	for _, k := range c.Commands() {
		reflow(k)
	}
}

// act wraps a command's body: its errors keep their own exit codes.
func act(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		var code exitWith
		if err == nil || errors.As(err, &code) {
			return err
		}
		return ran{err}
	}
}

func onlySubcommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = "; did you mean '" + s[0] + "'?"
	}
	return fmt.Errorf("'%s' is not a command of %s%s", args[0], cmd.CommandPath(), hint)
}

func needSubcommand(cmd *cobra.Command, _ []string) error {
	cmd.SetOut(cmd.ErrOrStderr())
	_ = cmd.Help()
	return exitWith(control.ExitUsage)
}

// parent makes a command that only holds others.
func parent(use, group, short, long string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, GroupID: group, Short: short, Long: long, Args: onlySubcommands, RunE: needSubcommand,
		SuggestionsMinimumDistance: 2}
	c.AddCommand(children...)
	return c
}

// exactly wants n arguments and names them.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("%s is missing: %s", names[len(args)], cmd.UseLine())
		case len(args) > len(names):
			return fmt.Errorf("'%s' is one argument too many: %s", args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

func (r *runner) client() *control.Client { return control.NewClient(r.paths.Socket) }

// requestTimeout is a little more than the daemon gives itself.
const requestTimeout = 70 * time.Second

func timed(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), requestTimeout)
}

// say writes one line of talk.
func (r *runner) say(format string, args ...any) {
	fmt.Fprintln(r.err, printable(fmt.Sprintf(format, args...)))
}

// answer writes text to stdout.
func (r *runner) answer(s string) {
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	io.WriteString(r.out, s)
}

func isTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
