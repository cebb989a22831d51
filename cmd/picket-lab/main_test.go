package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/picket-ha/picket/integration/netlab"
)

// The test binary is picket-lab too, so that the tests run it as a user does.
func TestMain(m *testing.M) {
	netlab.Reexec()
	if os.Getenv("PICKET_LAB_TEST_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // the children shall not sleep before they exit
	os.Exit(m.Run())
}

func lab(t *testing.T, dir, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"--dir", dir}, args...)...)
	cmd.Env = append(os.Environ(), "PICKET_LAB_TEST_MAIN=1")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestVerbs(t *testing.T) {
	dir := t.TempDir() + "/lab"
	_, errs, code := lab(t, dir, "", "up", "--nodes", "2", "--witness", "node2", "--watch", "192.168.60.200", "--picket", "/bin/true", "-v")
	if strings.Contains(errs, netlab.ErrUnsupported.Error()) {
		t.Skipf("needs namespaces, ip and nft: %s", errs)
	}
	if code != 0 || !strings.Contains(errs, "[node1] ip addr add 192.168.60.11/24") {
		t.Fatalf("up: code %d, %s", code, errs)
	}
	defer lab(t, dir, "", "down")
	for _, c := range []struct {
		args  string
		stdin string
		code  int
		out   string // part of stdout and stderr together
	}{
		{"status", "", 0, "node2 (witness)"},
		{"status --json", "", 0, `"uuid": "6c616200`},
		{"up", "", 1, "runs in"},
		{"cut node1 eth0 --direction in -v", "", 0, `nft add element bridge picketlab deaf { "node1-eth0" }`},
		{"status", "", 0, "eth0 cut (in)"},
		{"cut node1 eth0 --direction sideways", "", 1, "sideways"},
		{"cut node1", "", 2, "usage: picket-lab cut NODE LINK"},
		{"cut node1 eth0 --carrier --direction in", "", 2, "leave --direction out"},
		{"heal node1 eth0 -v", "", 0, "delete element"},
		{"heal", "", 0, ""},
		{"exec node1 cat", "from here", 0, "from here"},
		{"exec node1 false", "", 1, ""},
		{"exec node1 sh -c exit${IFS}7", "", 7, ""},
		{"exec client ping -c1 -W1 192.168.60.12", "", 0, "1 received"},
		{"exec node1 picket status", "", 0, ""}, // /bin/true stands in
		{"power node2 off", "", 0, ""},
		{"status", "", 0, "off"},
		{"exec node2 true", "", 1, "power node2 on"},
		{"power node2 on", "", 0, ""},
		{"power node2 sideways", "", 2, "plug or unplug"},
		{"unplug node2", "", 0, ""},
		{"status", "", 0, "10.20.30.102 dead"},
		{"power node2 plug", "", 0, ""},
		{"bmc node1 lie-ok", "", 0, ""},
		{"status", "", 0, "faulty"},
		{"bmc node1 drunk", "", 2, "drunk"},
		{"kill node1", "", 1, "no daemon runs on node1"},
		{"ps node1", "", 0, "PPID"},
		{"watch nonsense", "", 2, "IPv4"},
		{"check", "", 1, "NOT OBSERVED"},
		{"frobnicate", "", 2, "unknown command"},
		{"status --frob", "", 2, "unknown flag"},
		{"down", "", 0, ""},
		{"status", "", 1, "no lab runs in"},
	} {
		out, errs, code := lab(t, dir, c.stdin, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out+errs, c.out) {
			t.Errorf("picket-lab %s: code %d (want %d), want %q in:\n%s%s", c.args, code, c.code, c.out, out, errs)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("down left the directory")
	}
}
