// Command report runs the tiers of `make test` and says at the end what they found: how many tests
// passed, failed and were skipped in each tier, and why each skip was one.
//
//	report run  -out FILE -tier NAME -- go test -json ...   run a tier, keep its events in FILE
//	report step -out FILE -tier NAME -name CHECK -- CMD ... run a plain command as one test of a tier
//	report sum  FILE...                                     print the closing summary
//
// run and step end with 0 whether tests failed or not, so that every tier has its turn; sum ends with
// 1 when anything failed or a tier ran no test. All end with 2 when they could not do their work, and
// with 130 when they were interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Exit codes, beside 0 and 1.
const (
	exitBroken      = 2
	exitInterrupted = 130
	// exitSkip of a step's command means "skipped"; its last line of output is the reason (automake's
	// convention for test programs).
	exitSkip = 77
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if ctx.Err() != nil {
		code = exitInterrupted
	}
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintln(stderr, "usage: report run|step|sum ...")
		return exitBroken
	}
	var err error
	switch verb, rest := args[0], args[1:]; verb {
	case "run", "step":
		err = runTier(ctx, verb, rest, stdout, stderr)
	case "sum":
		var ok bool
		if ok, err = sum(rest, stdout); err == nil && !ok {
			return 1
		}
	default:
		err = fmt.Errorf("%q is not a verb: use run, step or sum", verb)
	}
	if err != nil {
		fmt.Fprintln(stderr, "report:", err)
		return exitBroken
	}
	return 0
}

// sum prints the summary of all files and reports whether everything held.
func sum(files []string, w io.Writer) (bool, error) {
	if len(files) == 0 {
		return false, errors.New("no event file was given")
	}
	var tiers []*tier
	for _, f := range files {
		t, err := readTier(f)
		if err != nil {
			return false, err
		}
		tiers = append(tiers, t)
	}
	return summary(w, tiers), nil
}

// runTier runs one command of a tier and keeps its events.
func runTier(ctx context.Context, verb string, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet(verb, flag.ContinueOnError)
	fs.SetOutput(stderr)
	out := fs.String("out", "", "file of events (step appends)")
	name := fs.String("tier", "", "name of the tier")
	check := fs.String("name", "", "name of the check (step)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *out == "" || *name == "" || fs.NArg() == 0 || (verb == "step") != (*check != "") {
		return fmt.Errorf("%s wants -out FILE -tier NAME, step also -name CHECK, and then -- COMMAND", verb)
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return fmt.Errorf("keep the events: %w", err)
	}
	mode := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if verb == "run" {
		mode |= os.O_TRUNC
	}
	f, err := os.OpenFile(*out, mode, 0o644)
	if err != nil {
		return fmt.Errorf("keep the events: %w", err)
	}
	defer f.Close()
	rec := newRecorder(f, *name, stdout)
	begin := time.Now()
	if verb == "step" {
		return runStep(ctx, rec, *check, fs.Args(), begin)
	}
	return runGo(ctx, rec, fs.Args(), begin)
}

// command prepares a child that is asked to end (SIGTERM) when ctx ends, and killed 20 s later:
// namespace tests take their labs down meanwhile.
func command(ctx context.Context, argv []string) *exec.Cmd {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	return c
}

// runGo runs `go test -json` and shows packages as they end, and the whole log of what failed.
func runGo(ctx context.Context, rec *recorder, argv []string, begin time.Time) error {
	fmt.Fprintf(rec.show, "\n== tier %s\n   %s\n", rec.tier.name, strings.Join(argv, " "))
	r, w := io.Pipe()
	c := command(ctx, argv)
	c.Stdout, c.Stderr = w, w // go's own complaints are events too: lines that are not JSON
	done := make(chan error, 1)
	go func() {
		err := c.Run()
		w.Close()
		done <- err
	}()
	readErr := rec.copy(r)
	r.CloseWithError(readErr)
	err := <-done
	return errors.Join(readErr, rec.end(ctx, err, time.Since(begin)))
}

// runStep runs a plain command as one test.
func runStep(ctx context.Context, rec *recorder, check string, argv []string, begin time.Time) error {
	out, err := command(ctx, argv).CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	action := "pass"
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == exitSkip:
		action = "skip"
	case err != nil:
		action = "fail"
		out = append(out, fmt.Sprintf("%s: %v\n", strings.Join(argv, " "), err)...)
	}
	return rec.step(check, action, string(out), time.Since(begin))
}
