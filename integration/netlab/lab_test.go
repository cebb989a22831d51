package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the stub daemon and a few programs to run on nodes.
func TestMain(m *testing.M) {
	Reexec()
	if len(os.Args) > 1 {
		if f, ok := programs()[os.Args[1]]; ok {
			if err := f(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	// A program under the race detector otherwise sleeps for a second before it exits.
	os.Setenv("GORACE", noSleep) // read by the children only
	os.Exit(m.Run())
}

const noSleep = "atexit_sleep_ms=0"

func programs() map[string]func([]string) error {
	return map[string]func([]string) error{
		"stub-daemon": stubDaemon, "stub-reboot": stubReboot, "stub-orphans": stubOrphans,
		"stub-send": stubSend, "stub-hear": stubHear, "stub-start-lab": stubStartLab,
	}
}

// stubDaemon stands in for picket: it says who it is and waits.
func stubDaemon([]string) error {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM)
	fmt.Printf("daemon up on boot %s", b)
	<-c
	fmt.Println("daemon down")
	return nil
}

func stubReboot(args []string) error {
	how := unix.LINUX_REBOOT_CMD_RESTART
	if len(args) > 0 && args[0] == "halt" {
		how = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	return unix.Reboot(how)
}

// stubOrphans leaves a process behind that has left its session and its parent.
func stubOrphans(args []string) error {
	p, err := os.StartProcess("/proc/self/exe", []string{"orphan", "stub-daemon"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	fmt.Println(p.Pid)
	return p.Release()
}

// stubSend sends one datagram; stubHear waits for one.
func stubSend(args []string) error {
	c, err := net.Dial("udp4", args[0])
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("hello"))
	return err
}

func stubHear(args []string) error {
	c, err := net.ListenPacket("udp4", args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, from, err := c.ReadFrom(b)
	if err != nil {
		return err
	}
	fmt.Printf("heard %s from %s\n", b[:n], from)
	return nil
}

// stubStartLab starts a lab and waits to be killed.
func stubStartLab(args []string) error {
	l, err := Start(context.Background(), Options{Dir: args[0], Picket: "/proc/self/exe", Daemon: stub(), Autostart: true})
	if err != nil {
		return err
	}
	fmt.Println("lab up in", l.Dir())
	select {}
}

func stub() []string { return []string{"picket", "stub-daemon"} }

func start(t *testing.T, change ...func(*Options)) *Lab {
	t.Helper()
	o := Options{Dir: t.TempDir() + "/lab", Picket: "/proc/self/exe", Daemon: stub(), Autostart: true, BootDelay: 50 * time.Millisecond, Env: []string{"GORACE=" + noSleep}}
	for _, f := range change {
		f(&o)
	}
	begin := time.Now()
	l, err := Start(t.Context(), o)
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("needs namespaces, ip and nft: %v", err)
	}
	if err != nil {
		b, _ := os.ReadFile(o.Dir + "/lab.log")
		t.Fatalf("Start: %v\n%s", err, b)
	}
	t.Logf("lab up in %s", time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(o.Dir + "/lab.log")
			t.Logf("lab.log:\n%s", b)
		}
	})
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls; it is no sleep: it ends when the condition holds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func run(t *testing.T, l *Lab, node string, argv ...string) Output {
	t.Helper()
	out, err := l.Run(t.Context(), node, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func node(t *testing.T, l *Lab, name string) NodeStatus {
	t.Helper()
	n, err := l.Node(t.Context(), name)
	must(t, err)
	return n
}

func ping(t *testing.T, l *Lab, from, to string) bool {
	t.Helper()
	return run(t, l, from, "ping", "-c1", "-W1", "-n", to).Code == 0
}

func TestNodesAreMachines(t *testing.T) {
	l := start(t)
	seen := make(map[string]bool)
	for i, n := range []string{"node1", "node2", "node3"} {
		if got := strings.TrimSpace(run(t, l, n, "cat", "/proc/sys/kernel/hostname").Stdout); got != n {
			t.Errorf("%s calls itself %q", n, got)
		}
		boot := strings.TrimSpace(run(t, l, n, "cat", "/proc/sys/kernel/random/boot_id").Stdout)
		if boot != node(t, l, n).Boot || seen[boot] {
			t.Errorf("%s reads boot id %q, the lab says %q (seen elsewhere: %v)", n, boot, node(t, l, n).Boot, seen[boot])
		}
		seen[boot] = true
		if got := run(t, l, n, "sh", "-c", `cat "$PICKET_MACHINE_UUID_FILE"; echo "$PICKET_MACHINE_UUID"`).Stdout; got != UUID(i)+"\n"+UUID(i)+"\n" {
			t.Errorf("%s: machine uuid is %q", n, got)
		}
		if got := run(t, l, n, "sh", "-c", "echo $$; ls /run; stat -c %a /etc/picket/node1.bmc; cat /etc/picket/node1.bmc").Stdout; !strings.Contains(got, "600\n"+BMCPassword) {
			t.Errorf("%s: BMC password file: %q", n, got)
		}
		links := run(t, l, n, "ip", "-br", "-4", "addr").Stdout
		for _, link := range []string{LinkPublic, LinkHeartbeat, LinkMgmt} {
			if !strings.Contains(links, Addr(i, link).String()+"/24") {
				t.Errorf("%s has no %s: %s", n, link, links)
			}
		}
	}
	for _, to := range []string{"192.168.60.12", "10.10.10.13", "10.20.30.12", "10.20.30.101", "192.168.60.250"} {
		if !ping(t, l, "node1", to) {
			t.Errorf("node1 cannot reach %s", to)
		}
	}
	if !ping(t, l, Client, "192.168.60.11") {
		t.Error("the client cannot reach node1")
	}
	// State survives, /run does not, and the host's tree cannot be written.
	run(t, l, "node1", "sh", "-c", "echo kept > /etc/picket/x; echo kept > /var/lib/picket/x; echo gone > /run/x; echo gone > /tmp/x")
	for _, p := range []string{"/usr/x", "/etc/passwd", "/root/x", "/.host/etc/x", "/proc/sys/kernel/panic", "/proc/sysrq-trigger/x", "/sys/x"} {
		if out := run(t, l, "node1", "sh", "-c", "echo x >> "+p); out.Code == 0 {
			t.Errorf("a node could write %s", p)
		}
	}
	if out := run(t, l, "node1", "ls", "/dev"); strings.Contains(out.Stdout, "watchdog") || strings.Contains(out.Stdout, "vd") {
		t.Errorf("the host's devices are on the node: %s", out.Stdout)
	}
	old := node(t, l, "node1").Boot
	must(t, l.Power(t.Context(), "node1", false))
	if n := node(t, l, "node1"); n.Power != "off" || n.Boot != "" {
		t.Errorf("after power off: %+v", n)
	}
	if _, err := l.Run(t.Context(), "node1", "true"); err == nil || !strings.Contains(err.Error(), "power node1 on") {
		t.Errorf("running on a node that is off: %v", err)
	}
	must(t, l.Power(t.Context(), "node1", true))
	if now := node(t, l, "node1").Boot; now == old || now == "" {
		t.Errorf("boot id before %q and after %q", old, now)
	}
	if out := run(t, l, "node1", "sh", "-c", "cat /etc/picket/x /var/lib/picket/x; cat /run/x /tmp/x; true"); out.Stdout != "kept\nkept\n" {
		t.Errorf("after the boot: %q %q", out.Stdout, out.Stderr)
	}
	eventually(t, "the daemon runs again after the boot", func() bool { return node(t, l, "node1").Daemon == daemonRunning })
}

func TestExec(t *testing.T) {
	l := start(t)
	out, err := l.RunInput(t.Context(), []byte("in"), "node2", "sh", "-c", "cat; echo err >&2; exit 7")
	must(t, err)
	if out.Stdout != "in" || out.Stderr != "err\n" || out.Code != 7 {
		t.Errorf("got %+v", out)
	}
	if out := run(t, l, "node2", "sh", "-c", "kill -9 $$"); out.Code != 137 {
		t.Errorf("killed by a signal: code %d", out.Code)
	}
	if _, err := l.Run(t.Context(), "node2", "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err := l.Run(t.Context(), "node9", "true"); err == nil || !strings.Contains(err.Error(), "node9") {
		t.Errorf("a node that is not there: %v", err)
	}
	// A client that goes away takes its program along.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := l.Run(ctx, "node2", "sh", "-c", "sleep 1000; true"); done <- err }()
	sleeping := func() bool { return count(t, l, "node2", "sleep") == 1 }
	eventually(t, "the sleeper runs", sleeping)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled run: %v", err)
	}
	eventually(t, "the sleeper is gone", func() bool { return count(t, l, "node2", "sleep") == 0 })
}

func count(t *testing.T, l *Lab, name, command string) int {
	t.Helper()
	list, err := l.Processes(t.Context(), name)
	must(t, err)
	n := 0
	for _, p := range list {
		if p.Command == command {
			n++
		}
		if p.State == "Z" && p.PPID == 1 {
			// A zombie may be seen for an instant; one that stays is a bug of pid 1.
			eventually(t, "pid 1 reaps "+p.Command, func() bool {
				again, err := l.Processes(t.Context(), name)
				must(t, err)
				for _, q := range again {
					if q.PID == p.PID && q.State == "Z" {
						return false
					}
				}
				return true
			})
		}
	}
	return n
}
