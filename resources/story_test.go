package resources

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/picket-ha/picket/consensus/ids"
)

// TestStories runs the golden stories in testdata/runner. Verbs, each at the time at=DURATION (default:
// when the last one was) and each answered by the requests that follow and the state:
//
//	new    a runner for the resources named in the input, "NAME [MONITOR]", start 10s, stop 8s
//	start  [epoch=N] [adopt]
//	stop, tick, unknown
//	next   a tick at the time that Next gives
//	done   seq=N [err="..."]
//	update with the resources named in the input
//	failures  drains the monitor failures
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/runner", func(t *testing.T, path string) {
		var r *Runner
		var now time.Duration
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.HasArg("at") {
				var at string
				d.ScanArgs(t, "at", &at)
				now = span(t, at)
			}
			var reqs []Request
			switch d.Cmd {
			case "new":
				r, now = NewRunner("web", specs(t, d.Input), 10*time.Second, 8*time.Second), 0
			case "start":
				var epoch uint64 = 7
				d.MaybeScanArgs(t, "epoch", &epoch)
				reqs = r.Start(now, ids.Epoch(epoch), d.HasArg("adopt"))
			case "stop":
				reqs = r.Stop(now)
			case "tick":
				reqs = r.Tick(now)
			case "next":
				now = max(now, r.Next())
				reqs = r.Tick(now)
			case "unknown":
				r.MarkUnknown(now)
			case "check":
				var in string
				d.ScanArgs(t, "in", &in)
				r.Check(now, span(t, in))
			case "update":
				r.Update(now, specs(t, d.Input))
			case "done":
				var seq uint64
				var err string
				d.ScanArgs(t, "seq", &seq)
				d.MaybeScanArgs(t, "err", &err)
				reqs = r.Done(now, Result{Seq: seq, Group: "web", Err: err})
			case "failures":
				var b strings.Builder
				for _, f := range r.MonitorFailures() {
					fmt.Fprintf(&b, "%s %s: %s\n", f.ID, f.State, f.Err)
				}
				return b.String()
			default:
				t.Fatalf("%s: verb %q is not known", path, d.Cmd)
			}
			return render(r, now, reqs)
		})
	})
}

func span(t *testing.T, s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func specs(t *testing.T, input string) []Spec {
	var out []Spec
	for line := range strings.Lines(input) {
		f := strings.Fields(line)
		s := Spec{ID: ids.Resource(f[0])}
		if len(f) > 1 {
			s.Monitor = span(t, f[1])
		}
		out = append(out, s)
	}
	return out
}

func render(r *Runner, now time.Duration, reqs []Request) string {
	var b strings.Builder
	for _, q := range reqs {
		fmt.Fprintf(&b, "-> #%d %s %s epoch=%d timeout=%v", q.Seq, q.Op, q.Resource, q.Epoch, q.Timeout)
		if q.Adopt {
			b.WriteString(" adopt")
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "%v %s:", now, r.Phase())
	for _, s := range r.Resources() {
		fmt.Fprintf(&b, " %s=%s", s.ID, s.State)
	}
	if n := r.Next(); n >= 0 {
		fmt.Fprintf(&b, " next=%v", n)
	}
	b.WriteString("\n")
	if f := r.Failure(); f != "" {
		fmt.Fprintf(&b, "%s\n", f)
	}
	return b.String()
}
