package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// usage is what a daemon has used so far (proc_pid_stat(5), proc_pid_smaps_rollup(5)).
type usage struct {
	cpu, children float64 // seconds; children: waited-for
	threads       int
	rss, pss      float64 // MB
	pids          int     // newest pid of the node: every fork and thread takes one
	at            time.Time
}

// ticks is USER_HZ, which Linux fixes at 100 for all that /proc shows (time(7)).
const ticks = 100

func (t *bed) usage(ctx context.Context, node string, pid int) (usage, error) {
	u := usage{at: time.Now()}
	out, err := t.Lab.Run(ctx, node, "sh", "-c", fmt.Sprintf("echo $$; cat /proc/%d/stat; grep -E '^(Rss|Pss):' /proc/%d/smaps_rollup", pid, pid))
	if err != nil {
		return u, err
	}
	lines := strings.Split(strings.TrimSpace(out.Stdout), "\n")
	if len(lines) < 4 {
		return u, fmt.Errorf("read /proc/%d on %s: %s%s", pid, node, out.Stdout, out.Stderr)
	}
	num := func(s string) float64 { v, _ := strconv.ParseFloat(s, 64); return v }
	u.pids = int(num(lines[0]))
	_, rest, _ := strings.Cut(lines[1], ") ")
	f := strings.Fields(rest) // f[0] is field 3 of proc_pid_stat(5)
	if len(f) < 20 {
		return u, fmt.Errorf("read /proc/%d/stat on %s: %q", pid, node, lines[1])
	}
	u.cpu, u.children, u.threads = (num(f[11])+num(f[12]))/ticks, (num(f[13])+num(f[14]))/ticks, int(num(f[17]))
	for _, l := range lines[2:] {
		w := strings.Fields(l)
		if len(w) > 1 && w[0] == "Rss:" {
			u.rss = num(w[1]) / 1000
		} else if len(w) > 1 && w[0] == "Pss:" {
			u.pss = num(w[1]) / 1000
		}
	}
	return u, nil
}

// BenchmarkIdle measures what the daemons of an idle cluster use, as shipped, in each role.
func BenchmarkIdle(b *testing.B) {
	if !once(b) {
		return
	}
	t := newBed(b, buildPicket(b), "", false)
	for _, leads := range []bool{false, true} {
		if err := t.idle(b, leads); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op")
}

func (t *bed) idle(b *testing.B, leads bool) error {
	ctx := b.Context()
	st, err := t.place(ctx, func(o, l string) bool { return (o == l) == leads })
	if err != nil {
		return err
	}
	if err := wait(ctx, 5*time.Second); err != nil { // the burst of announcements and the checks are over
		return err
	}
	labs, err := t.Lab.Status(ctx)
	if err != nil {
		return err
	}
	busy, before := busyNow(), map[string]usage{}
	for _, n := range labs.Nodes {
		if before[n.Name], err = t.usage(ctx, n.Name, n.DaemonPID); err != nil {
			return err
		}
	}
	if err := wait(ctx, max(opt.idle, time.Minute)); err != nil {
		return err
	}
	show("\nidle for %s (others used %.0f %% of the CPU just before; load %.1f; commit %s)", max(opt.idle, time.Minute), 100*busy, load1(), commit())
	show("  %-8s %-18s %12s %10s %8s %8s %8s %22s", "node", "role", "CPU s/min", "children", "RSS MB", "PSS MB", "threads", "forks + threads / min")
	for _, n := range labs.Nodes {
		u, err := t.usage(ctx, n.Name, n.DaemonPID)
		if err != nil {
			return err
		}
		o := before[n.Name]
		per := u.at.Sub(o.at).Minutes()
		role := roleOf(n.Name, st)
		// Each look takes three pids (sh, cat, grep), of which the first names itself; the two others of the
		// first look and the shell of the second are not the daemon's.
		forks := float64(u.pids-o.pids-3) / per
		cpu := (u.cpu - o.cpu) / per
		show("  %-8s %-18s %12.2f %10.2f %8.1f %8.1f %8d %22.1f", n.Name, role, cpu, u.children-o.children, u.rss, u.pss, u.threads, forks)
		record(b, "idle", map[string]any{"node": n.Name, "role": role, "commit": commit(), "cpu_s_per_min": cpu, "rss_mb": u.rss, "pss_mb": u.pss, "threads": u.threads,
			"forks_per_min": forks, "busy_before": busy, "load1": load1()})
		b.ReportMetric(cpu, strings.ReplaceAll(role, " ", "-")+"-cpu-s/min")
	}
	after, err := t.Status(ctx)
	if err == nil && (after.Term != st.Term || after.Group(cluster.Web).Epoch != st.Group(cluster.Web).Epoch) {
		return fmt.Errorf("the cluster was not idle: term %d -> %d", st.Term, after.Term)
	}
	return err
}
