package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// record runs a command as a tier and returns what was shown and the file of events.
func record(t *testing.T, script string) (shown, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "tier.json")
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"run", "-out", file, "-tier", "x", "--", "sh", "-c", script}, &out, &errs); code != 0 {
		t.Fatalf("run ended with %d: %s", code, errs.String())
	}
	return out.String(), file
}

func summarise(t *testing.T, files ...string) (text string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"sum"}, files...), &out, &errs)
	return out.String() + errs.String(), code
}

// TestSummary: what go test says becomes counts, reasons and an exit status.
func TestSummary(t *testing.T) {
	const pass = `printf "%s\n" '{"Action":"run","Package":"p/a","Test":"TestA"}
{"Action":"output","Package":"p/a","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p/a","Test":"TestA","Elapsed":1}
{"Action":"pass","Package":"p/a","Elapsed":1}';`
	for name, c := range map[string]struct {
		script    string
		code      int
		last      string
		has, hide []string // in the shown text or the summary; nowhere
	}{
		"all pass": {script: pass, last: "1 passed, 0 failed, 0 skipped", hide: []string{"chatter", "skipped, and why", "failed:"}},
		"subtests count, their parent does not": {script: pass + `printf "%s\n" '{"Action":"run","Package":"p/b","Test":"T"}
{"Action":"run","Package":"p/b","Test":"T/one"}
{"Action":"run","Package":"p/b","Test":"T/two"}
{"Action":"output","Package":"p/b","Test":"T/two","Output":"x_test.go:3: boom\n"}
{"Action":"pass","Package":"p/b","Test":"T/one"}
{"Action":"fail","Package":"p/b","Test":"T/two"}
{"Action":"fail","Package":"p/b","Test":"T"}
{"Action":"fail","Package":"p/b"}'; exit 1`, code: 1, last: "2 passed, 1 failed, 0 skipped",
			has: []string{"p/b T/two (failed)", "| x_test.go:3: boom", "-- log of p/b T/two"}, hide: []string{"p/b T (failed)"}},
		"a subtest's name may hold slashes": {script: pass + `printf "%s\n" '{"Action":"run","Package":"p/b","Test":"T"}
{"Action":"run","Package":"p/b","Test":"T/01/one"}
{"Action":"pass","Package":"p/b","Test":"T/01/one"}
{"Action":"pass","Package":"p/b","Test":"T"}'`, last: "2 passed, 0 failed, 0 skipped", hide: []string{"did not end"}},
		"a skip gives its reason": {script: pass + `printf "%s\n" '{"Action":"run","Package":"github.com/picket-ha/picket/s","Test":"TestS"}
{"Action":"output","Package":"github.com/picket-ha/picket/s","Test":"TestS","Output":"=== RUN   TestS\n"}
{"Action":"output","Package":"github.com/picket-ha/picket/s","Test":"TestS","Output":"    s_test.go:73: needs ipmitool: not installed\n"}
{"Action":"output","Package":"github.com/picket-ha/picket/s","Test":"TestS","Output":"--- SKIP: TestS (0.00s)\n"}
{"Action":"skip","Package":"github.com/picket-ha/picket/s","Test":"TestS"}'`,
			last: "1 passed, 0 failed, 1 skipped", has: []string{"  s TestS: needs ipmitool: not installed\n"}, hide: []string{"--- SKIP"}},
		"only skips have proven nothing": {script: `printf "%s\n" '{"Action":"run","Package":"s","Test":"TestS"}
{"Action":"skip","Package":"s","Test":"TestS"}'`, code: 1, last: "0 passed, 1 failed, 1 skipped", has: []string{"tier x ran no test", "no reason was given"}},
		"nothing ran": {script: "true", code: 1, last: "0 passed, 1 failed, 0 skipped", has: []string{"tier x ran no test"}},
		"go is not there": {script: "echo 'go: cannot find main module'; exit 1", code: 1, last: "0 passed, 1 failed, 0 skipped",
			has: []string{"tier x: exit status 1: go: cannot find main module"}},
		"a test that never ended": {script: pass + `printf "%s\n" '{"Action":"run","Package":"p/c","Test":"TestHang"}
{"Action":"output","Package":"p/c","Test":"TestHang","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"p/c"}'; exit 1`, code: 1, last: "1 passed, 1 failed, 0 skipped",
			has: []string{"p/c TestHang (began and did not end)", "| panic: test timed out"}},
		"a package that does not build": {script: pass + `printf "%s\n" '{"ImportPath":"p/d","Action":"build-output","Output":"d.go:3: undefined: x\n"}
{"ImportPath":"p/d","Action":"build-fail"}
{"Action":"start","Package":"p/d"}
{"Action":"output","Package":"p/d","Output":"FAIL p/d [build failed]\n"}
{"Action":"fail","Package":"p/d","Elapsed":0,"FailedBuild":"p/d"}'; exit 1`, code: 1, last: "1 passed, 1 failed, 0 skipped",
			has: []string{"p/d (failed)", "| d.go:3: undefined: x"}},
		"no test files are noted": {script: pass + `printf "%s\n" '{"Action":"skip","Package":"p/none"}'`,
			last: "1 passed, 0 failed, 0 skipped", has: []string{"no test files (tier x): p/none"}},
		"all pass, and the command fails": {script: pass + "exit 3", code: 1, last: "1 passed, 1 failed, 0 skipped", has: []string{"tier x: exit status 3"}},
	} {
		t.Run(name, func(t *testing.T) {
			shown, file := record(t, c.script)
			text, code := summarise(t, file)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			if got := lines[len(lines)-1]; got != c.last {
				t.Errorf("last line %q, want %q", got, c.last)
			}
			for _, h := range c.has {
				if !strings.Contains(shown+text, h) {
					t.Errorf("%q is missing in:\n%s%s", h, shown, text)
				}
			}
			_, shown, _ = strings.Cut(shown, c.script) // the command itself is shown
			for _, h := range c.hide {
				if strings.Contains(shown+text, h) {
					t.Errorf("%q is in:\n%s%s", h, shown, text)
				}
			}
		})
	}
}

// TestSteps: plain commands are tests of a tier; 77 is a skip, whose last line is the reason.
func TestSteps(t *testing.T) {
	file := filepath.Join(t.TempDir(), "v.json")
	for _, s := range [][2]string{{"one", "echo fine"}, {"two", "echo noise; echo needs gcc: not installed; exit 77"}, {"three", "echo bad; exit 1"}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"step", "-out", file, "-tier", "verify", "-name", s[0], "--", "sh", "-c", s[1]}, &out, &errs); code != 0 {
			t.Fatalf("step %s ended with %d: %s", s[0], code, errs.String())
		}
		if s[0] == "one" && strings.Contains(out.String(), "fine") {
			t.Error("the log of a passing step is shown")
		}
		if s[0] == "three" && !strings.Contains(out.String(), "| bad") {
			t.Error("the log of a failing step is not shown")
		}
	}
	text, code := summarise(t, file)
	if code != 1 || !strings.HasSuffix(text, "\n1 passed, 1 failed, 1 skipped\n") ||
		!strings.Contains(text, "  verify two: needs gcc: not installed\n") || !strings.Contains(text, "verify three (failed)") {
		t.Errorf("code %d:\n%s", code, text)
	}
}

// TestTotals: tiers add up, and one bad tier is a bad end.
func TestTotals(t *testing.T) {
	_, good := record(t, `printf "%s\n" '{"Action":"run","Package":"p","Test":"T"}
{"Action":"pass","Package":"p","Test":"T"}'`)
	text, code := summarise(t, good, good)
	if code != 0 || !strings.HasSuffix(text, "\n2 passed, 0 failed, 0 skipped\n") {
		t.Errorf("code %d:\n%s", code, text)
	}
	// The run was killed: its file has no end.
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.json")
	if err := os.WriteFile(cut, []byte(strings.Join(strings.SplitAfter(string(b), "\n")[:2], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	text, code = summarise(t, good, cut)
	if code != 1 || !strings.Contains(text, "was cut short") {
		t.Errorf("code %d:\n%s", code, text)
	}
	if text, code := summarise(t, filepath.Join(t.TempDir(), "none")); code != exitBroken || strings.Contains(text, "passed") {
		t.Errorf("a tier that left no events: code %d:\n%s", code, text)
	}
}

// TestInterrupted: ctrl-C reaches the tests (they take their labs down) and ends run with an error.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	mark := filepath.Join(dir, "mark")
	done := make(chan int, 1)
	go func() {
		var out, errs bytes.Buffer
		done <- run(ctx, []string{"run", "-out", filepath.Join(dir, "t.json"), "-tier", "x", "--",
			"sh", "-c", "trap 'echo down > " + mark + ".term; exit 0' TERM; echo up > " + mark + "; while :; do sleep 0.05; done"}, &out, &errs)
	}()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := os.Stat(mark); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the command did not begin")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if code := <-done; code == 0 {
		t.Error("an interrupted run ended well")
	}
	if _, err := os.Stat(mark + ".term"); err != nil {
		t.Errorf("the command was not asked to end: %v", err)
	}
}

// TestUsage: what makes no sense is said in one sentence.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "usage: report run|step|sum"},
		{[]string{"dance"}, `"dance" is not a verb`},
		{[]string{"run", "-tier", "x", "--", "true"}, "wants -out FILE"},
		{[]string{"step", "-out", "f", "-tier", "x", "--", "true"}, "wants -out FILE"},
		{[]string{"sum"}, "no event file was given"},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), c.args, &out, &errs)
		if code != exitBroken || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%q: code %d (want %d), stderr %q, want %q", c.args, code, exitBroken, errs.String(), c.want)
		}
	}
}

// TestReason: the file and line are cut, several lines become one.
func TestReason(t *testing.T) {
	x := &test{pkg: "a/b", output: []string{"=== RUN   T\n", "    x_test.go:12: needs nft:\n", "        exec: not found\n", "--- SKIP: T\n"}}
	if d := cmp.Diff("needs nft: exec: not found", x.why()); d != "" {
		t.Error(d)
	}
}
