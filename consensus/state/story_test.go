package state_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/picket-ha/picket/consensus/internal/story"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// TestStories runs the golden stories in testdata/stories. Verbs:
//
//	new     an empty state
//	config  [base=N] a ConfigSet of the configuration in the input (story.Config)
//	apply   [at=MS] one command a line (story.Command); each is answered by its index and ok, or by why it
//	        was refused
//	repeat  n=N the same, N times, with {i} in the lines replaced; answered by the last of each
//	show    the state
//
// Every invariant is re-checked after every entry.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		w := world{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "new":
				w = world{}
				return ""
			case "config":
				c, err := story.Config(d.Input)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				base := w.s.Revision
				d.MaybeScanArgs(t, "base", &base)
				return w.apply(t, 0, state.ConfigSet{Base: base, Config: c, Operator: "op"})
			case "apply":
				var at int64
				d.MaybeScanArgs(t, "at", &at)
				return w.lines(t, at, d.Input)
			case "repeat":
				var n int
				d.ScanArgs(t, "n", &n)
				out := ""
				for i := range n {
					out = w.lines(t, 0, strings.ReplaceAll(d.Input, "{i}", fmt.Sprint(i)))
				}
				return out
			case "show":
				return story.Show(w.s)
			}
			d.Fatalf(t, "unknown verb %s", d.Cmd)
			return ""
		})
	})
}

type world struct{ s state.State }

func (w *world) lines(t *testing.T, at int64, input string) string {
	t.Helper()
	var b strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(input), "\n") {
		cmd, err := story.Command(w.s, line)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(w.apply(t, at, cmd))
	}
	return b.String()
}

// apply applies one command at the next index and re-checks everything.
func (w *world) apply(t *testing.T, at int64, cmd state.Command) string {
	t.Helper()
	before, was := w.s, w.s.Digest()
	after, r := state.Apply(w.s, w.s.Index+1, state.Entry{At: at, Cmd: cmd})
	if before.Digest() != was {
		t.Fatalf("%#v changed the state it was given", cmd)
	}
	for _, v := range append(state.Check(after), state.CheckStep(before, after, cmd)...) {
		t.Errorf("after %#v: %s: %s", cmd, v.Rule, v.Text)
	}
	w.s = after
	if !r.OK() {
		return fmt.Sprintf("%d %s\n", after.Index, r.Refused)
	}
	if tick, ok := cmd.(state.LeaseTick); ok {
		return fmt.Sprintf("%d ok: %d of %d ticks\n", after.Index, len(r.Accepted), len(tick.Ticks))
	}
	return fmt.Sprintf("%d ok\n", after.Index)
}

// TestStoriesShowEveryRefusal makes sure that no refusal of this room goes untold.
func TestStoriesShowEveryRefusal(t *testing.T) {
	files, err := filepath.Glob("testdata/stories/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	for _, e := range reason.All() {
		refusal := strings.HasPrefix(string(e.Code), "REFUSED_") && e.Code != reason.RefusedAlive // the daemon's own, before it proposes
		if (refusal || e.Code == reason.ResourceKept || e.Code == reason.NodeNotAdmitted) && !strings.Contains(all.String(), " "+string(e.Code)+" ") {
			t.Errorf("no story shows %s", e.Code)
		}
	}
}
