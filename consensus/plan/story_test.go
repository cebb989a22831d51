package plan_test

import (
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/picket-ha/picket/consensus/internal/story"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// TestStories runs the golden stories in testdata. Verbs:
//
//	config  a ConfigSet of the input (story.Config)
//	apply   one command a line (story.Command)
//	decide  the facts in the input (parseFacts), answered by the plan
//	do      the same, and the plan's ops are applied
//
// Every decision is made again from shuffled facts, its ops are applied to the very state they were
// decided on, and deciding after that must not ask for any of them again.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var s state.State
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "config":
				c, err := story.Config(d.Input)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				s = must(t, s, state.ConfigSet{Base: s.Revision, Config: c})
				return ""
			case "apply":
				for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
					cmd, err := story.Command(s, line)
					if err != nil {
						d.Fatalf(t, "%v", err)
					}
					var r state.Result
					if s, r = state.Apply(s, s.Index+1, state.Entry{Cmd: cmd}); !r.OK() {
						return line + ": " + r.Refused.String() + "\n" // a story that is not told as it was meant
					}
				}
				return ""
			case "decide", "do":
				f, err := parseFacts(s, d.Input)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				p := plan.Decide(s, f)
				next := sound(t, s, f, p)
				if d.Cmd == "do" {
					s = next
				}
				return render(p)
			}
			d.Fatalf(t, "unknown verb %s", d.Cmd)
			return ""
		})
	})
}

type failer interface {
	Helper()
	Fatalf(string, ...any)
}

func must(t failer, s state.State, cmd state.Command) state.State {
	t.Helper()
	s, r := state.Apply(s, s.Index+1, state.Entry{Cmd: cmd})
	if !r.OK() {
		t.Fatalf("%#v was refused: %s", cmd, r.Refused)
	}
	return s
}

// sound checks what is true of every decision and returns the state after its ops.
func sound(t failer, s state.State, f plan.Facts, p plan.Plan) state.State {
	t.Helper()
	rng := rand.New(rand.NewSource(1))
	g := f
	g.Nodes, g.Fences, g.Devices, g.Revokes = slices.Clone(f.Nodes), slices.Clone(f.Fences), slices.Clone(f.Devices), slices.Clone(f.Revokes)
	rng.Shuffle(len(g.Nodes), func(i, j int) { g.Nodes[i], g.Nodes[j] = g.Nodes[j], g.Nodes[i] })
	rng.Shuffle(len(g.Fences), func(i, j int) { g.Fences[i], g.Fences[j] = g.Fences[j], g.Fences[i] })
	rng.Shuffle(len(g.Devices), func(i, j int) { g.Devices[i], g.Devices[j] = g.Devices[j], g.Devices[i] })
	rng.Shuffle(len(g.Revokes), func(i, j int) { g.Revokes[i], g.Revokes[j] = g.Revokes[j], g.Revokes[i] })
	if a, b := render(p), render(plan.Decide(s, g)); a != b {
		t.Fatalf("the order of the facts matters:\n%s\nor\n%s", a, b)
	}
	next, keys := s, map[string]bool{}
	for _, op := range p.Ops {
		if keys[op.Key] {
			t.Fatalf("two ops have the key %s", op.Key)
		}
		keys[op.Key] = true
		must(t, s, op.Cmd)
		before := next
		next = must(t, next, op.Cmd)
		for _, v := range append(state.Check(next), state.CheckStep(before, next, op.Cmd)...) {
			t.Fatalf("after %s: %s: %s", op.Key, v.Rule, v.Text)
		}
	}
	for _, op := range plan.Decide(next, f).Ops {
		if keys[op.Key] {
			t.Fatalf("%s is wanted again after it was done:\n%s", op.Key, story.Show(next))
		}
	}
	return next
}

// TestStoriesShowEveryCode makes sure that every code that this room gives is told in a story.
func TestStoriesShowEveryCode(t *testing.T) {
	stories, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(stories) == 0 {
		t.Fatal("no stories", err)
	}
	src, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	told, source := read(t, stories), ""
	for _, f := range src {
		if !strings.HasSuffix(f, "_test.go") {
			source += read(t, []string{f})
		}
	}
	for name, code := range codes(t) {
		if strings.Contains(source, "reason."+name) && !strings.Contains(told, "["+string(code)) {
			t.Errorf("no story shows %s", code)
		}
	}
}

func read(t *testing.T, files []string) string {
	t.Helper()
	out := ""
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out += string(b)
	}
	return out
}

// codes maps the names of the catalogue's constants to the codes, read from its source.
func codes(t *testing.T) map[string]reason.Code {
	t.Helper()
	out := map[string]reason.Code{}
	for _, line := range strings.Split(read(t, []string{"../reason/codes.go"}), "\n") {
		w := strings.Fields(line)
		if len(w) == 4 && w[1] == "Code" && w[2] == "=" {
			out[w[0]] = reason.Code(strings.Trim(w[3], "\""))
		}
	}
	return out
}
