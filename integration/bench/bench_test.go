package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/netlab"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// opt is what the command line asks for; it is set once, before anything runs.
var opt struct {
	runs, peerRuns int
	idle           time.Duration
	out            string
	keep           bool
	medians        map[string]float64 // of each series, in ms
}

// TestMain makes the test binary also the programs that run on the lab's machines.
func TestMain(m *testing.M) {
	netlab.Reexec()
	if f := program(); f != nil {
		if err := f(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.IntVar(&opt.runs, "runs", 20, "how often each takeover is measured")
	flag.IntVar(&opt.peerRuns, "peer-runs", 10, "how often each case of a peer or limit is measured")
	flag.DurationVar(&opt.idle, "idle", 65*time.Second, "how long an idle cluster is watched (at least 60 s)")
	flag.StringVar(&opt.out, "out", "../../out/bench", "directory for the JSON lines")
	flag.BoolVar(&opt.keep, "keep", false, "keep the labs' directories")
	flag.Parse()
	opt.medians = map[string]float64{}
	code := m.Run()
	ratios()
	os.Exit(code)
}

// program returns what this process is meant to be instead of a test, nil for a test.
func program() func([]string) error {
	switch {
	case filepath.Base(os.Args[0]) == "picket":
		return profiledPicket
	case len(os.Args) > 1 && os.Args[1] == "bench-echo":
		return echoProgram
	case len(os.Args) > 1 && os.Args[1] == "bench-hand":
		return handProgram
	}
	return nil
}

// once reports whether this call is the one that measures: a benchmark here decides by itself how
// often it does what it measures (-runs), and the testing package's search for b.N means nothing to it.
func once(b *testing.B) bool { return b.N == 1 }

// buildPicket builds the product as make build does and returns the binary's path.
func buildPicket(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "picket")
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/picket")
	c.Dir, c.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		b.Fatalf("build picket: %v\n%s", err, out)
	}
	return path
}

// bed is a cluster in a lab with the bench's own prober and the daemons' traces.
type bed struct {
	*cluster.Cluster
	echo  *prober
	trace *tracer
}

// newBed forms a cluster. extra goes to the end of the group in the cluster file. trace asks the
// daemons for their trace lines (debug level); without it they run as they are shipped.
func newBed(b *testing.B, picket, extra string, trace bool) *bed {
	b.Helper()
	ctx := b.Context()
	o := cluster.Options{Lab: netlab.Options{Dir: labDir(b), Picket: picket}}
	if trace {
		o.Lab.Daemon = []string{"picket", "daemon", "--log-level", "debug"}
	}
	if extra != "" {
		o.File = cluster.File([]string{"node1", "node2", "node3"}, "", extra)
	}
	c, err := cluster.Form(ctx, o)
	if errors.Is(err, netlab.ErrUnsupported) {
		b.Skipf("needs namespaces, ip and nft: %v", err)
	}
	if err != nil {
		b.Fatalf("form a cluster: %v", err)
	}
	b.Cleanup(func() {
		if b.Failed() {
			b.Log(c.Logs(30))
		}
		if err := c.Lab.Close(); err != nil {
			b.Errorf("end the lab: %v", err)
		}
	})
	t := &bed{Cluster: c}
	if t.echo, err = startProber(b, c.Lab, cluster.VIP); err != nil {
		b.Fatal(err)
	}
	t.trace = newTracer(c.Lab, c.Nodes)
	return t
}

// labDir is a short-lived directory outside b.TempDir where -keep asks for it.
func labDir(b *testing.B) string {
	if !opt.keep {
		return filepath.Join(b.TempDir(), "lab")
	}
	d, err := os.MkdirTemp("", "picket-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("the lab's directory is kept: %s", d)
	return d
}

// place sees to it that all is well and that accept allows owner and leader, by moving the group.
func (t *bed) place(ctx context.Context, accept func(owner, leader string) bool) (cluster.Status, error) {
	for range 6 {
		s, err := t.AwaitOK(ctx, 40*time.Second)
		if err != nil {
			return s, err
		}
		owner := s.Group(cluster.Web).Owner
		if accept(owner, s.Leader) {
			return s, nil
		}
		for _, n := range t.Nodes {
			if n == owner || !accept(n, s.Leader) {
				continue
			}
			if _, err := t.Must(ctx, n, "group", "move", cluster.Web, "--to", n); err != nil {
				return s, err
			}
			if _, err := t.Runs(ctx, 10*time.Second, func(o string) bool { return o == n }); err != nil {
				return s, err
			}
			break
		}
	}
	return cluster.Status{}, errors.New("the group does not stay where the bench needs it")
}

// until polls f every few milliseconds, which costs less than asking the cluster.
func until(ctx context.Context, within time.Duration, f func() (bool, error)) error {
	end := time.Now().Add(within)
	for {
		ok, err := f()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("it did not happen within %s", within)
		}
		if err := wait(ctx, 15*time.Millisecond); err != nil {
			return err
		}
	}
}

// wait lets time pass: the phase of an injection, or the rest of a window of observation.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--exclude", "*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
