package netlab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hostState is what a lab must leave as it was.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{{"ip", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "route"}, {"nft", "list", "ruleset"}, {"ip", "netns"}} {
		path, err := tool(argv[0])
		if err != nil {
			t.Skipf("needs %s: %v", argv[0], err)
		}
		out, err := exec.Command(path, argv[1:]...).CombinedOutput()
		fmt.Fprintf(&b, "$ %s (%v)\n%s", strings.Join(argv, " "), err, out)
	}
	m, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	b.Write(m)
	h, err := os.Hostname()
	must(t, err)
	b.WriteString(h)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	b.Write(boot)
	return b.String()
}

// labProcesses lists the host's processes that belong to the lab in a directory, by their pid.
func labProcesses(dir string) []string {
	list, _ := os.ReadDir("/proc")
	var out []string
	for _, e := range list {
		c, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && bytes.Contains(c, []byte("__picket-lab-")) && bytes.Contains(c, []byte("\x00"+dir+"\x00")) {
			out = append(out, e.Name()+" "+string(bytes.ReplaceAll(c, []byte{0}, []byte{' '})))
		}
	}
	sort.Strings(out)
	return out
}

// TestHostIsUntouched holds the host's network, mounts and identity against what they were,
// while a lab runs and after it.
func TestHostIsUntouched(t *testing.T) {
	before := hostState(t)
	l := start(t)
	if len(labProcesses(l.Dir())) < 7 { // supervisor, client, and two on each of three nodes
		t.Errorf("the lab's processes are %q: the test looks in the wrong place", labProcesses(l.Dir()))
	}
	if now := hostState(t); now != before {
		t.Errorf("a running lab changed the host from\n%s\nto\n%s", before, now)
	}
	must(t, l.Cut(t.Context(), "node1", LinkPublic, Both))
	must(t, l.Power(t.Context(), "node1", false))
	must(t, l.Close())
	if now := hostState(t); now != before {
		t.Errorf("a lab left the host changed from\n%s\nto\n%s", before, now)
	}
	if left := labProcesses(l.Dir()); left != nil {
		t.Errorf("processes left behind: %q", left)
	}
	must(t, Remove(l.Dir()))
	if _, err := os.Stat(l.Dir()); err == nil {
		t.Error("Remove left the directory")
	}
	l.starts, l.ended = nil, nil
	if err := l.Close(); err == nil {
		t.Error("closing a lab that is gone succeeded")
	}
	l.ended = closed()
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// starter runs this binary as a program that starts a lab, perhaps as somebody else.
func starter(t *testing.T, dir string, cred *syscall.Credential) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "stub-start-lab", dir)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: cred}
	cmd.Dir = "/"
	out, err := cmd.StdoutPipe()
	must(t, err)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		log, _ := os.ReadFile(dir + "/lab.log")
		if strings.Contains(errs.String(), ErrUnsupported.Error()) {
			t.Skipf("needs namespaces for this user: %s", errs.String())
		}
		t.Fatalf("the starter said %q, %v: %s\n%s", line, err, errs.String(), log)
	}
	return cmd
}

// TestNothingSurvivesItsStarter kills, in turn, the program that started the lab and the lab's
// supervisor, and interrupts the starter as ctrl-C does.
func TestNothingSurvivesItsStarter(t *testing.T) {
	probe := start(t) // skips where no lab can run
	must(t, probe.Close())
	before := hostState(t)
	kill := map[string]func(*exec.Cmd, string) error{
		"SIGKILL": func(c *exec.Cmd, dir string) error { return c.Process.Kill() },
		"ctrl-C":  func(c *exec.Cmd, dir string) error { return syscall.Kill(-c.Process.Pid, syscall.SIGINT) },
		"SIGKILL of the supervisor": func(c *exec.Cmd, dir string) error {
			for _, p := range labProcesses(dir) {
				if strings.Contains(p, argSupervisor) {
					var pid int
					if _, err := fmt.Sscan(p, &pid); err != nil {
						return err
					}
					return syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			return fmt.Errorf("no supervisor found")
		},
	}
	for name, f := range kill {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir() + "/lab"
			cmd := starter(t, dir, nil)
			if len(labProcesses(dir)) < 7 {
				t.Error("no lab processes: the test looks in the wrong place")
			}
			must(t, f(cmd, dir))
			eventually(t, "every process of the lab is gone", func() bool { return labProcesses(dir) == nil })
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if now := hostState(t); now != before {
				t.Errorf("the host changed from\n%s\nto\n%s", before, now)
			}
		})
	}
}

// TestOrdinaryUser runs a lab as a user without any privilege.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become somebody else: the other tests run as an ordinary user already")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("/tmp", "picket-lab-nobody-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chown(dir, nobody, nobody))
	begin := time.Now()
	cmd := starter(t, dir+"/lab", &syscall.Credential{Uid: nobody, Gid: nobody})
	t.Logf("lab of an ordinary user up in %s", time.Since(begin).Round(time.Millisecond))
	l, err := Open(dir+"/lab", nil)
	must(t, err)
	if !ping(t, l, "node1", "10.10.10.12") || !ping(t, l, Client, "192.168.60.13") {
		t.Error("no network")
	}
	must(t, l.Cut(t.Context(), "node1", LinkHeartbeat, In))
	if ping(t, l, "node1", "10.10.10.12") {
		t.Error("a cut did not cut")
	}
	must(t, l.Power(t.Context(), "node2", false))
	must(t, l.Power(t.Context(), "node2", true))
	s, err := l.Status(t.Context())
	must(t, err)
	if !s.UserNS || s.Nodes[1].Power != "on" {
		t.Errorf("status: %+v", s)
	}
	must(t, l.Close())
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Nodes: []string{"node1", "node1"}}, "two nodes"},
		{Options{Nodes: []string{"a-name-too-long"}}, "not a node name"},
		{Options{Nodes: []string{"client"}}, "not a node name"},
		{Options{Nodes: strings.Fields("a b c d e f g h i j")}, "at most 9"},
		{Options{Witness: "node7"}, "witness"},
	} {
		if _, err := Start(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/precious", nil, 0o600))
	if _, err := Start(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory with something in it: %v", err)
	}
	if err := Remove(dir); err == nil {
		t.Error("Remove cleared a directory that is no lab's")
	}
}

// TestWithoutUserNamespace runs the lab as root where the kernel forbids user namespaces.
func TestWithoutUserNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: without a user namespace only root may make the others")
	}
	before := hostState(t)
	o, err := Options{Dir: t.TempDir() + "/lab", Picket: "/proc/self/exe", Daemon: stub(), Autostart: true}.withDefaults()
	must(t, err)
	must(t, prepareDir(o))
	l, err := launch(t.Context(), o, false)
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("needs namespaces: %v", err)
	}
	must(t, err)
	if !ping(t, l, "node1", "10.10.10.12") {
		t.Error("no network")
	}
	for _, p := range []string{"/usr/x", "/proc/sys/kernel/panic", "/proc/sysrq-trigger/x", "/sys/x"} {
		if out := run(t, l, "node1", "sh", "-c", "echo x >> "+p); out.Code == 0 {
			t.Errorf("a node could write %s", p)
		}
	}
	if now := hostState(t); now != before {
		t.Errorf("the lab changed the host from\n%s\nto\n%s", before, now)
	}
	must(t, l.Close())
	if left := labProcesses(l.Dir()); left != nil {
		t.Errorf("processes left behind: %q", left)
	}
}
