package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/picket-ha/picket/cmd/picket/app"
	"github.com/picket-ha/picket/cmd/picket/cli"
	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// profileDir is where a profiled daemon writes, as its node sees it; the lab finds it under etc.
const profileDir = "/etc/picket"

// profiledPicket is the product with another main: on SIGUSR1 the daemon writes a CPU profile of the
// next while and a profile of its allocations. The product itself has no such switch.
func profiledPicket(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	daemon := func(ctx context.Context, o config.DaemonOptions) error {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		go func() {
			for range c {
				if err := profileNow(profileLength()); err != nil {
					fmt.Fprintln(os.Stderr, "profile:", err)
				}
			}
		}()
		return app.RunDaemon(ctx, o)
	}
	code := cli.Run(ctx, args, os.Stdin, os.Stdout, os.Stderr, cli.Hooks{Daemon: daemon, Init: app.Init, Join: app.Join, Version: app.Version})
	stop()
	os.Exit(code)
	return nil
}

func profileLength() time.Duration {
	raw, err := os.ReadFile(filepath.Join(profileDir, "profile.length"))
	if err != nil {
		return time.Minute
	}
	d, err := time.ParseDuration(strings.TrimSpace(string(raw)))
	if err != nil {
		return time.Minute
	}
	return d
}

func profileNow(d time.Duration) error {
	cpu, err := os.Create(filepath.Join(profileDir, "cpu.pprof"))
	if err != nil {
		return err
	}
	defer cpu.Close()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return err
	}
	t := time.NewTimer(d)
	<-t.C
	pprof.StopCPUProfile()
	runtime.ReadMemStats(&m1)
	allocs, err := os.Create(filepath.Join(profileDir, "allocs.pprof"))
	if err != nil {
		return err
	}
	defer allocs.Close()
	if err := pprof.Lookup("allocs").WriteTo(allocs, 0); err != nil {
		return err
	}
	s := fmt.Sprintf("%.0f allocations/s, %.1f kB/s, %.2f GC cycles/min, heap %.1f MB, %d goroutines\n", float64(m1.Mallocs-m0.Mallocs)/d.Seconds(),
		float64(m1.TotalAlloc-m0.TotalAlloc)/d.Seconds()/1e3, float64(m1.NumGC-m0.NumGC)/d.Minutes(), float64(m1.HeapInuse)/1e6, runtime.NumGoroutine())
	if err := os.WriteFile(filepath.Join(profileDir, "mem.txt"), []byte(s), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(profileDir, "profile.done"), nil, 0o644)
}

// shares are what a CPU profile is split into. A stack belongs to the first whose words it contains,
// in this order; what matches none is the Go runtime's own (scheduler, timers, garbage collection).
var shares = []struct {
	name  string
	words []string
}{
	{"profiler itself", []string{"runtime/pprof.", "profileWriter"}},
	{"raft (library, store, transport)", []string{"hashicorp/raft", "/consensus/raftnode.", "go.etcd.io/bbolt", "boltdb"}},
	{"heartbeats (seal, send, receive)", []string{"/heartbeat/udp", "/heartbeat/wire", "/heartbeat/linkmon"}},
	{"deciding (driver, core, plan, state, detector)", []string{"/consensus/driver", "/consensus/core", "/consensus/plan", "/consensus/state", "/picket/heartbeat."}},
	{"node calls (renewals) and mesh", []string{"/consensus/raftnode/mesh"}},
	{"resources", []string{"/picket/resources"}},
	{"fence device checks", []string{"/picket/fencing", "bougou/go-ipmi"}},
	{"the rest of picket", []string{"picket-ha/picket"}},
	{"garbage collection", []string{"runtime.gcBgMarkWorker", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcStart"}},
}

// BenchmarkProfile takes a CPU profile of every daemon of an idle cluster and splits it by room.
func BenchmarkProfile(b *testing.B) {
	if !once(b) {
		return
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	t := newBed(b, self, "", false)
	ctx := b.Context()
	st, err := t.place(ctx, func(o, l string) bool { return o != l })
	if err != nil {
		b.Fatal(err)
	}
	if err := wait(ctx, 5*time.Second); err != nil {
		b.Fatal(err)
	}
	busy := busyNow()
	labs, err := t.Lab.Status(ctx)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range labs.Nodes {
		etc := filepath.Join(t.Lab.Dir(), "nodes", n.Name, "etc")
		if err := os.WriteFile(filepath.Join(etc, "profile.length"), []byte(opt.idle.String()), 0o644); err != nil {
			b.Fatal(err)
		}
		if _, err := t.Lab.Run(ctx, n.Name, "kill", "-USR1", fmt.Sprint(n.DaemonPID)); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range labs.Nodes {
		etc := filepath.Join(t.Lab.Dir(), "nodes", n.Name, "etc")
		err := until(ctx, opt.idle+20*time.Second, func() (bool, error) {
			_, err := os.Stat(filepath.Join(etc, "profile.done"))
			return err == nil, nil
		})
		if err != nil {
			b.Fatalf("profile of %s: %v", n.Name, err)
		}
		t.reportProfile(b, n.Name, roleOf(n.Name, st), etc, busy)
	}
	b.ReportMetric(0, "ns/op")
}

// roleOf says what a node is in that cluster.
func roleOf(n string, s cluster.Status) string {
	switch {
	case n == s.Group(cluster.Web).Owner && n == s.Leader:
		return "owner and leader"
	case n == s.Group(cluster.Web).Owner:
		return "owner"
	case n == s.Leader:
		return "leader"
	}
	return "non-owner"
}

func (t *bed) reportProfile(b *testing.B, node, role, etc string, busy float64) {
	b.Helper()
	keep := filepath.Join(opt.out, "profiles")
	if err := os.MkdirAll(keep, 0o755); err != nil {
		b.Fatal(err)
	}
	name := strings.ReplaceAll(role, " ", "-")
	for _, f := range []string{"cpu", "allocs"} {
		raw, err := os.ReadFile(filepath.Join(etc, f+".pprof"))
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(keep, name+"-"+f+".pprof"), raw, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	split, total, err := splitProfile(filepath.Join(keep, name+"-cpu.pprof"))
	if err != nil {
		b.Fatalf("read the profile of %s: %v", node, err)
	}
	mem, _ := os.ReadFile(filepath.Join(etc, "mem.txt"))
	show("\nprofile of %s (%s), idle for %s: %.2f CPU s/min; %s  (others used %.0f %% of the CPU just before; load %.1f)", node, role, opt.idle,
		total*60/opt.idle.Seconds(), strings.TrimSpace(string(mem)), 100*busy, load1())
	var names []string
	for n := range split {
		names = append(names, n)
	}
	slices.SortFunc(names, func(x, y string) int { return int(1e6 * (split[y] - split[x])) })
	for _, n := range names {
		show("  %-50s %6.3f CPU s/min %5.1f %%", n, split[n]*60/opt.idle.Seconds(), 100*split[n]/total)
	}
	record(b, "profile", map[string]any{"node": node, "role": role, "commit": commit(), "total_s": total, "length_s": opt.idle.Seconds(), "split_s": split, "busy_before": busy, "load1": load1()})
}

// splitProfile sums the stacks of a profile, in CPU seconds, by whose they are.
func splitProfile(path string) (map[string]float64, float64, error) {
	out, err := exec.Command("go", "tool", "pprof", "-traces", path).Output()
	if err != nil {
		return nil, 0, fmt.Errorf("go tool pprof: %w", err)
	}
	split, total := map[string]float64{}, 0.0
	for _, block := range bytes.Split(out, []byte("-----------+-------------------------------------------------------")) {
		text := strings.TrimSpace(string(block))
		value, _, _ := strings.Cut(text, " ")
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			continue // the head of the list
		}
		total += d.Seconds()
		split[whose(text)] += d.Seconds()
	}
	if total == 0 {
		return nil, 0, errors.New("it has no samples")
	}
	return split, total, nil
}

func whose(stack string) string {
	for _, s := range shares {
		for _, w := range s.words {
			if strings.Contains(stack, w) {
				return s.name
			}
		}
	}
	return "Go scheduler and timers (whose wake-up it was is not known)"
}
