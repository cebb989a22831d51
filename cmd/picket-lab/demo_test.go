package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// plainText fails on anything that a terminal of 80 columns in plain ASCII would not show.
func plainText(t *testing.T, text string) {
	t.Helper()
	for _, l := range strings.Split(text, "\n") {
		if len(l) > demoWidth || strings.TrimRight(l, " ") != l {
			t.Errorf("%d columns: %q", len(l), l)
		}
		for _, r := range l {
			if r < 32 || r > 126 {
				t.Errorf("not plain ASCII: %q", l)
				break
			}
		}
	}
}

func TestDemoText(t *testing.T) {
	var b strings.Builder
	s := &show{w: &b}
	s.intro()
	s.ran("node1", []string{"picket", "join", "--token", "picket1.secret.secret", "--name", "node2"}, netlab.Output{})
	var results []cluster.Result
	for i, sc := range cluster.Scenes() {
		s.scene(i+1, sc)
		for _, k := range []string{cluster.TellDid, cluster.TellAnswer, cluster.TellEvent, cluster.TellExplain, cluster.TellClient, cluster.TellCheck} {
			s.tell(k, "a line of "+k+" that is long enough to be wrapped, since nobody knows how long a reason may be \u00fc", 12345*time.Millisecond)
		}
		r := cluster.Result{Key: sc.Key, Did: "HELD until confirmed", Fenced: "yes: power-off", Outage: 12345 * time.Millisecond, Checks: []cluster.Check{{OK: true}}}
		if sc.Key == "cord" {
			r.Held = 11 * time.Second
		}
		s.verdict(r)
		results = append(results, r)
	}
	s.tables(results)
	s.judge(check.Report{MaxOwners: 1, Observations: 4211}, time.Minute)
	s.end(true)
	plainText(t, b.String())
	for _, want := range []string{"owners at any time: at most 1 (4211 observations)", "NOT of this run", "1741 dual", "held, then 1345 ms", "TOKEN"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in the text", want)
		}
	}
	if strings.Contains(b.String(), "secret") {
		t.Error("the token is shown")
	}
	b.Reset()
	s.tell(cluster.TellBroken, "the group moved", 0)
	s.verdict(cluster.Result{})
	s.end(false)
	if strings.Count(b.String(), "NOT") < 3 {
		t.Errorf("a broken expectation is not told aloud: %s", b.String())
	}
}

// One real scene, and an interruption that leaves nothing behind.
func TestDemo(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "picket")
	build := exec.Command("go", "build", "-o", bin, "../picket")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build picket: %v\n%s", err, out)
	}
	start := func(args ...string) (*exec.Cmd, *strings.Builder, string) {
		tmp := t.TempDir()
		cmd := exec.Command("/proc/self/exe", append([]string{"demo", "--picket", bin}, args...)...)
		cmd.Env = append(os.Environ(), "PICKET_LAB_TEST_MAIN=1", "TMPDIR="+tmp)
		out := &strings.Builder{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, out, tmp
	}
	empty := func(dir, text string) {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v\n%s", left, err, text)
		}
	}
	cmd, out, tmp := start("--scene", "one-cable")
	err := cmd.Wait()
	if strings.Contains(out.String(), netlab.ErrUnsupported.Error()) {
		t.Skipf("needs namespaces, ip and nft: %s", out)
	}
	if err != nil || !strings.Contains(out.String(), "Everything held.") {
		t.Errorf("%v\n%s", err, out)
	}
	plainText(t, out.String())
	empty(tmp, out.String())

	cmd, out, tmp = start()
	deadline := time.Now().Add(20 * time.Second)
	for {
		if dirs, _ := filepath.Glob(tmp + "/picket-demo-*/lab/nodes/node2/daemon.log"); len(dirs) > 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond) // a poll: the loop has a deadline
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("an interrupted demonstration: %v\n%s", err, out)
	}
	empty(tmp, out.String())

	cmd, out, _ = start("--scene", "no-such")
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("exit code %d: %s", cmd.ProcessState.ExitCode(), out)
	}
}
