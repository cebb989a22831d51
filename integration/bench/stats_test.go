package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sample is one measured run: named parts in milliseconds, in the order of the names.
type sample struct {
	Bench  string             `json:"bench"`
	Run    int                `json:"run"`
	Commit string             `json:"commit"`
	MS     map[string]float64 `json:"ms"`
	Note   string             `json:"note,omitempty"`
	// Busy is the share of the machine's CPU time that was used in the moments before the run, Load
	// the 1-minute load average: noise made by others.
	Busy float64 `json:"busy_before"`
	Load float64 `json:"load1"`
}

// series is all runs of one bench.
type series struct {
	name, commit string
	order        []string
	runs         []sample
	failed       int
}

func newSeries(name string, order ...string) *series {
	return &series{name: name, order: order, commit: commit()}
}

func (s *series) add(b *testing.B, ms map[string]float64, note string, busy float64) {
	b.Helper()
	x := sample{Bench: s.name, Run: len(s.runs) + 1, Commit: s.commit, MS: ms, Note: note, Busy: busy, Load: load1()}
	s.runs = append(s.runs, x)
	record(b, s.name, x)
}

// record appends one JSON line to the bench's file.
func record(b *testing.B, name string, x any) {
	b.Helper()
	line, err := json.Marshal(x)
	if err == nil {
		err = os.MkdirAll(opt.out, 0o755)
	}
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(opt.out, name+".jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(append(line, '\n')); err != nil {
		b.Fatal(err)
	}
}

// values returns one part of all runs, ascending.
func (s *series) values(part string, keep func(sample) bool) []float64 {
	var out []float64
	for _, r := range s.runs {
		if v, ok := r.MS[part]; ok && (keep == nil || keep(r)) {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

// quantile is the nearest-rank quantile of ascending values.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	i := int(q*float64(len(v)) + 0.999999)
	return v[min(max(i, 1), len(v))-1]
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// calm is the machine's use by others below which a run counts as undisturbed.
const calm = 0.25

// table prints the parts of all runs, and the median of the undisturbed ones.
func (s *series) table(b *testing.B) string {
	b.Helper()
	quiet := func(r sample) bool { return r.Busy < calm }
	loads := []float64{}
	n := 0
	for _, r := range s.runs {
		loads = append(loads, r.Load)
		if quiet(r) {
			n++
		}
	}
	slices.Sort(loads)
	var t strings.Builder
	fmt.Fprintf(&t, "\n%s: %d runs (%d failed), %d of them calm (others used < %.0f %% of the CPU just before); load %.1f..%.1f; commit %s\n",
		s.name, len(s.runs), s.failed, n, 100*calm, quantile(loads, 0), quantile(loads, 1), s.commit)
	fmt.Fprintf(&t, "  %-46s %8s %8s %8s %8s   %s\n", "ms", "median", "p99", "max", "min", "median, calm")
	for _, p := range s.order {
		v := s.values(p, nil)
		if len(v) == 0 {
			continue
		}
		c := "-"
		if q := s.values(p, quiet); len(q) > 0 {
			c = fmt.Sprintf("%.1f", median(q))
		}
		fmt.Fprintf(&t, "  %-46s %8.1f %8.1f %8.1f %8.1f   %s\n", p, median(v), quantile(v, 0.99), quantile(v, 1), v[0], c)
	}
	if len(s.runs) < 100 && len(s.runs) > 0 {
		fmt.Fprintf(&t, "  (fewer than 100 runs: p99 is the maximum)\n")
	}
	sum := map[string]any{"bench": s.name, "summary": true, "commit": s.commit, "runs": len(s.runs), "failed": s.failed, "calm": n,
		"load1": []float64{quantile(loads, 0), quantile(loads, 1)}}
	for _, p := range s.order {
		if v := s.values(p, nil); len(v) > 0 {
			sum[p] = map[string]float64{"median": median(v), "p99": quantile(v, 0.99), "max": quantile(v, 1), "min": v[0]}
		}
	}
	record(b, s.name, sum)
	if v := s.values(s.order[0], nil); len(v) > 0 {
		opt.medians[s.name] = median(v)
	}
	return t.String()
}

// ratios compares what was measured by this process: the same machine, the same minutes.
func ratios() {
	for _, r := range []struct{ name, of, to string }{
		{"planned move, picket / keepalived 0.1 s", "move", "keepalived-planned"},
		{"node death, picket (fenced) / keepalived 0.1 s (not fenced)", "crash", "keepalived-node-death"},
		{"death of owner and leader, picket (fenced) / keepalived 0.1 s (not fenced)", "crash-of-the-leader", "keepalived-node-death"},
		{"planned move, picket / by hand", "move", "floor-move-by-hand"},
		{"planned move without the wait of the ARP probe, picket / by hand", "move-probe-wait-1ms", "floor-move-by-hand"},
		{"planned move, with / without the wait of the ARP probe", "move", "move-probe-wait-1ms"},
		{"one commit / one fsync of 4 KiB", "commit", "floor-fsync-4k"},
	} {
		if x, y := opt.medians[r.of], opt.medians[r.to]; x > 0 && y > 0 {
			show("ratio of medians: %-76s %7.2f / %7.2f ms = %.2f", r.name, x, y, x/y)
		}
	}
}

// show prints what a human reads, without the prefixes of the testing package.
func show(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// verdict says whether a figure holds.
func verdict(what string, got, limit float64) string {
	word := "holds"
	if got > limit {
		word = "DOES NOT HOLD"
	}
	return fmt.Sprintf("  %s: %.1f ms, wanted at most %.0f ms: %s", what, got, limit, word)
}

func load1() float64 {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	v, _ := strconv.ParseFloat(strings.Fields(string(raw))[0], 64)
	return v
}

// busyNow watches the whole machine for a moment: the share of CPU time that somebody used.
func busyNow() float64 {
	read := func() (busy, all float64) {
		raw, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0, 0
		}
		line, _, _ := strings.Cut(string(raw), "\n")
		for i, f := range strings.Fields(line)[1:9] {
			v, _ := strconv.ParseFloat(f, 64)
			if all += v; i != 3 && i != 4 { // idle, iowait (proc_stat(5))
				busy += v
			}
		}
		return busy, all
	}
	b1, a1 := read()
	t := time.NewTimer(250 * time.Millisecond)
	<-t.C
	b2, a2 := read()
	if a2 <= a1 {
		return 0
	}
	return (b2 - b1) / (a2 - a1)
}

// calmDown waits, for a while, until the machine is calm, and returns how busy it is.
func calmDown() float64 {
	b := busyNow()
	for range 5 {
		if b < calm {
			break
		}
		b = busyNow()
	}
	return b
}

func ms(ns int64) float64 { return float64(ns) / 1e6 }
