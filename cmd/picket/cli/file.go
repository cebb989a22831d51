package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/state"
)

func (r *runner) apply() *cobra.Command {
	var dryRun bool
	var revision uint64
	c := &cobra.Command{
		Use:     "apply FILE [--dry-run]",
		GroupID: "act",
		Short:   "Put a cluster file into force on every node",
		Long: `Checks FILE ('-': stdin) and puts it into force on the whole cluster, or refuses it and
changes nothing. Errors name file, line and column, and how to mend them.

A BMC password written into the file (ipmitool -P) is not sent: it is moved to a file
of mode 0600 beside the node file on this machine, and FILE's text is sent with
"-f PATH" in its place. Copy that file to the other nodes: each of them may have to
fence.`,
		Example: "  picket apply --dry-run cluster.yaml && picket apply cluster.yaml",
		Args:    exactly("FILE"),
		RunE: act(func(cmd *cobra.Command, args []string) error {
			return r.applyFile(cmd, args[0], dryRun, revision)
		}),
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check it against the running cluster and change nothing")
	c.Flags().Uint64Var(&revision, "revision", 0, "refuse unless `N` is the revision in force (see picket config show)")
	return c
}

func (r *runner) applyFile(cmd *cobra.Command, file string, dryRun bool, revision uint64) error {
	c, err := r.readCluster(file)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(filepath.Dir(r.paths.ConfigPath))
	if err != nil {
		return err
	}
	clean, secrets, err := config.Externalise(name(file), c, dir)
	if err != nil {
		return control.Usage("%s", err)
	}
	check := control.Operation{Kind: control.OpApplyCheck, File: name(file), Text: clean.Config.Source, Revision: revision, DryRun: true}
	if dryRun {
		for _, s := range secrets {
			r.say("note: the password of %s of %s would be moved to %s", s.Device, s.Node, s.Path)
		}
		a, err := r.send(cmd, check)
		if err != nil {
			return err
		}
		r.answerChanges(a)
		return nil
	}
	if len(secrets) > 0 { // nothing is written for a file that the cluster refuses
		if _, err := r.send(cmd, check); err != nil {
			return err
		}
	}
	undo, err := r.storePasswords(secrets)
	if err != nil {
		return err
	}
	op := check
	op.Kind, op.DryRun = control.OpApply, false
	a, err := r.send(cmd, op)
	if err != nil {
		var e *control.Error
		if !errors.As(err, &e) || e.Class != control.ClassUnknown { // else it may be in force
			undo()
		}
		return err
	}
	r.answerChanges(a)
	return nil
}

func (r *runner) answerChanges(a control.Answer) {
	r.answer(printable(a.Text))
	for _, c := range a.Changes {
		r.answer("  " + printable(c))
	}
}

// name is how messages call the file.
func name(file string) string {
	if file == "-" {
		return "stdin"
	}
	return file
}

// readCluster reads and parses a cluster file and says its warnings.
func (r *runner) readCluster(file string) (config.Cluster, error) {
	in := r.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return config.Cluster{}, control.Usage("the cluster file cannot be read: %v", err)
		}
		defer f.Close()
		if fi, err := f.Stat(); err != nil || fi.IsDir() {
			return config.Cluster{}, control.Usage("the cluster file cannot be read: %s is a directory", file)
		}
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, state.MaxConfigSource+1))
	if err != nil {
		return config.Cluster{}, control.Usage("the cluster file cannot be read: %v", err)
	}
	c, err := config.ParseCluster(name(file), data)
	if err != nil {
		fmt.Fprintln(r.err, err)
		return c, exitWith(control.ExitUsage)
	}
	for _, w := range c.Warnings {
		r.warn(w)
	}
	return c, nil
}

// storePasswords writes each password to its file, mode 0600, and returns how to take that back. A
// file that is there with another content is not replaced: it may be the one that works.
func (r *runner) storePasswords(files []config.PasswordFile) (undo func(), err error) {
	var made []string
	undo = func() {
		for _, p := range made {
			if err := os.Remove(p); err == nil {
				r.say("note: %s was removed again", p)
			}
		}
	}
	for _, f := range files {
		have, err := os.ReadFile(f.Path)
		switch {
		case err == nil && bytes.Equal(bytes.TrimRight(have, "\r\n"), []byte(f.Password)):
		case err == nil:
			undo()
			return nil, control.Refused("", fmt.Sprintf("%s exists and holds another password than the file's -P for %s", f.Path, f.Node),
				"write the right one there and give -f "+f.Path+" instead of -P")
		case !errors.Is(err, fs.ErrNotExist):
			undo()
			return nil, control.Refused("", fmt.Sprintf("the password file of %s cannot be read: %v", f.Node, err), "run it as root")
		default:
			if err := config.WriteFile(f.Path, []byte(f.Password+"\n"), 0o600); err != nil {
				undo()
				return nil, control.Refused("", fmt.Sprintf("the password file of %s cannot be written: %v", f.Node, err), "run it as root, or give -f FILE instead of -P")
			}
			made = append(made, f.Path)
		}
		r.say("warning: the password of %s of %s is now in %s (mode 0600): copy that file to the other nodes, and write -f %s instead of -P", f.Device, f.Node, f.Path, f.Path)
	}
	return undo, nil
}

func (r *runner) config() *cobra.Command {
	var asJSON bool
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the cluster file in force",
		Args:  exactly(),
		RunE: act(func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := timed(cmd)
			defer cancel()
			t, err := r.client().Config(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return r.json(t)
			}
			if t.Revision == 0 && t.Source == "" {
				r.say("No cluster file has been applied yet. Write one and run: picket apply FILE")
				return nil
			}
			r.say("%s", configTalk(t))
			r.answer(printableLines(t.Source))
			return nil
		}),
	}
	jsonFlag(show, &asJSON)
	validate := &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a cluster file without a daemon and without sending it anywhere",
		Args:  exactly("FILE"),
		RunE: act(func(_ *cobra.Command, args []string) error {
			c, err := r.readCluster(args[0])
			if err != nil {
				return err
			}
			r.answer(fmt.Sprintf("%s is valid: cluster %s, %s, %s, timing %s", name(args[0]), c.Config.Cluster,
				count(len(c.Config.Nodes), "node"), count(len(c.Config.Groups), "group"), c.Config.Timing.Profile))
			return nil
		}),
	}
	return parent("config", "look", "Show the cluster file in force, or check one", "", show, validate)
}

func configTalk(t control.ConfigText) string {
	s := fmt.Sprintf("# revision %d", t.Revision)
	if !t.Applied.IsZero() {
		s += ", applied " + t.Applied.UTC().Format("2006-01-02T15:04:05Z")
	}
	if t.By != "" {
		s += " by " + t.By
	}
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
