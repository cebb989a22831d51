package netlab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/bmcsim"
	"github.com/picket-ha/picket/integration/check"
)

// hears says whether one datagram from a node reaches another's address.
func hears(t *testing.T, l *Lab, from, to, addr string) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan bool, 1)
	go func() {
		out, err := l.Run(ctx, to, "picket", "stub-hear", addr)
		done <- err == nil && strings.Contains(out.Stdout, "heard hello")
	}()
	eventually(t, "the listener is there", func() bool {
		return strings.Contains(run(t, l, to, "ss", "-uln").Stdout, addr)
	})
	for range 3 {
		run(t, l, from, "picket", "stub-send", addr)
	}
	select {
	case ok := <-done:
		return ok
	case <-time.After(300 * time.Millisecond):
		return false
	}
}

func TestCutOneWay(t *testing.T) {
	l := start(t)
	const a, b = "192.168.60.11:4000", "192.168.60.12:4000"
	// Neighbours know each other, or a cut of ARP would hide the direction.
	if !ping(t, l, "node1", "192.168.60.12") {
		t.Fatal("no way to begin with")
	}
	for _, c := range []struct {
		d              Direction
		sends, listens bool
	}{{Out, false, true}, {In, true, false}, {Both, false, false}} {
		must(t, l.Cut(t.Context(), "node1", LinkPublic, c.d))
		if got := hears(t, l, "node1", "node2", b); got != c.sends {
			t.Errorf("cut %s: node1 can send: %v", c.d, got)
		}
		if got := hears(t, l, "node2", "node1", a); got != c.listens {
			t.Errorf("cut %s: node1 can hear: %v", c.d, got)
		}
	}
	if !ping(t, l, "node1", "10.10.10.12") {
		t.Error("a cut of eth0 cut eth1")
	}
	if out := run(t, l, "node1", "cat", "/sys/class/net/eth0/carrier").Stdout; out != "1\n" {
		t.Errorf("a cut took the carrier: %q", out)
	}
	must(t, l.Power(t.Context(), "node1", false))
	must(t, l.Power(t.Context(), "node1", true))
	if ping(t, l, "node1", "192.168.60.12") {
		t.Error("a boot healed a cut cable")
	}
	must(t, l.Heal(t.Context(), "node1", LinkPublic))
	if cuts := node(t, l, "node1").Cuts; len(cuts) != 0 {
		t.Errorf("after heal: %+v", cuts)
	}
	// A neighbour that was asked for in vain is asked for again only after a second.
	eventually(t, "heal heals", func() bool { return ping(t, l, "node1", "192.168.60.12") })
	must(t, l.CutCarrier(t.Context(), "node1", LinkHeartbeat))
	eventually(t, "the carrier goes", func() bool {
		return run(t, l, "node1", "cat", "/sys/class/net/eth1/carrier").Stdout == "0\n"
	})
	must(t, l.Heal(t.Context(), "", ""))
	eventually(t, "the carrier comes back", func() bool { return ping(t, l, "node1", "10.10.10.12") })
	for _, bad := range [][2]string{{"node1", "eth7"}, {"nodeX", "eth0"}} {
		if err := l.Cut(t.Context(), bad[0], bad[1], Both); err == nil {
			t.Errorf("cut %v was accepted", bad)
		}
	}
}

func TestPowerOffEndsEveryProcess(t *testing.T) {
	l := start(t)
	if out := run(t, l, "node1", "picket", "stub-orphans"); out.Code != 0 {
		t.Fatal(out.Stderr)
	}
	mark := "orphan\x00stub-daemon"
	eventually(t, "the orphan runs", func() bool { return onHost(mark) == 1 })
	must(t, l.Power(t.Context(), "node1", false))
	// No polling: power off has promised that everything is gone.
	if n := onHost(mark); n != 0 {
		t.Errorf("%d processes of a dead node still run", n)
	}
	if ping(t, l, "node2", "192.168.60.11") {
		t.Error("a dead node answers")
	}
}

// onHost counts the host's processes whose command line begins with a text.
func onHost(cmdline string) int {
	list, _ := os.ReadDir("/proc")
	n := 0
	for _, e := range list {
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.HasPrefix(string(b), cmdline) {
			n++
		}
	}
	return n
}

func TestDaemonSignals(t *testing.T) {
	l := start(t)
	ctx := t.Context()
	eventually(t, "the daemon runs", func() bool { return node(t, l, "node1").Daemon == daemonRunning })
	eventually(t, "the daemon speaks", func() bool { b, err := os.ReadFile(node(t, l, "node1").Log); return err == nil && len(b) > 0 })
	must(t, l.Pause(ctx, "node1"))
	n := node(t, l, "node1")
	if n.Daemon != daemonPaused || state(t, l, n.DaemonPID) != "T" {
		t.Errorf("paused: %+v, kernel says %s", n, state(t, l, n.DaemonPID))
	}
	must(t, l.Resume(ctx, "node1"))
	if n := node(t, l, "node1"); n.Daemon != daemonRunning || state(t, l, n.DaemonPID) == "T" {
		t.Errorf("resumed: %+v", n)
	}
	must(t, l.Kill(ctx, "node1"))
	eventually(t, "the lab knows of the kill", func() bool { return node(t, l, "node1").Daemon == daemonNone })
	if err := l.Kill(ctx, "node1"); err == nil || !strings.Contains(err.Error(), "start node1") {
		t.Errorf("killing what does not run: %v", err)
	}
	log := func() string {
		b, err := os.ReadFile(node(t, l, "node1").Log)
		must(t, err)
		return string(b)
	}
	must(t, l.StartDaemon(ctx, "node1"))
	eventually(t, "the daemon handles signals", func() bool { return strings.Count(log(), "daemon up") == 2 })
	must(t, l.StopDaemon(ctx, "node1"))
	if got := log(); strings.Count(got, "daemon up") != 2 || strings.Count(got, "daemon down") != 1 {
		t.Errorf("daemon log: %q", got)
	}
}

func state(t *testing.T, l *Lab, pid int) string {
	t.Helper()
	list, err := l.Processes(t.Context(), "node1")
	must(t, err)
	for _, p := range list {
		if p.PID == pid {
			return p.State
		}
	}
	return ""
}

func TestDaemonIsRestarted(t *testing.T) {
	l := start(t, func(o *Options) { o.RestartDaemon = 20 * time.Millisecond })
	eventually(t, "the daemon runs", func() bool { return node(t, l, "node2").Daemon == daemonRunning })
	must(t, l.Kill(t.Context(), "node2"))
	eventually(t, "it runs again", func() bool { n := node(t, l, "node2"); return n.Daemon == daemonRunning && n.Starts == 2 })
}

func TestRebootEndsOnlyTheNode(t *testing.T) {
	l := start(t)
	old := node(t, l, "node2").Boot
	_, _ = l.Run(t.Context(), "node2", "picket", "stub-reboot") // the answer dies with the node
	eventually(t, "the node boots again", func() bool { n := node(t, l, "node2"); return n.Power == "on" && n.Boot != old })
	_, _ = l.Run(t.Context(), "node2", "picket", "stub-reboot", "halt")
	eventually(t, "the node stays off", func() bool { return node(t, l, "node2").Power == "off" })
	must(t, l.Power(t.Context(), "node2", true))
	h, err := l.History(t.Context())
	must(t, err)
	var kinds []string
	for _, r := range h.Records {
		if r.Stream == check.StreamPower && r.Node == "node2" {
			kinds = append(kinds, r.Kind+"/"+r.Source)
		}
	}
	if got := strings.Join(kinds, " "); got != "boot/lab reset/self boot/self halt/self boot/lab" {
		t.Errorf("power record: %s", got)
	}
}

func ipmi(t *testing.T, l *Lab, from string, target int, args ...string) (string, error) {
	t.Helper()
	argv := append([]string{"ipmitool", "-I", "lanplus", "-C", "17", "-N", "1", "-R", "1", "-H", Addr(target, LinkBMC).String(),
		"-U", BMCUser, "-f", fmt.Sprintf("/etc/picket/node%d.bmc", target+1)}, args...)
	out, err := l.Run(t.Context(), from, argv...)
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("code %d: %s", out.Code, out.Stderr)
	}
	return strings.TrimSpace(out.Stdout), err
}

func TestBMC(t *testing.T) {
	if _, err := tool("ipmitool"); err != nil {
		t.Skip("needs ipmitool: not installed")
	}
	l := start(t)
	ctx := t.Context()
	status := func(want string) func() bool {
		return func() bool {
			s, err := ipmi(t, l, "node2", 0, "chassis", "power", "status")
			return err == nil && s == "Chassis Power is "+want
		}
	}
	if !status("on")() {
		s, err := ipmi(t, l, "node2", 0, "chassis", "power", "status")
		t.Fatalf("status: %q, %v", s, err)
	}
	old := node(t, l, "node1").Boot
	if _, err := ipmi(t, l, "node2", 0, "chassis", "power", "off"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "off is read back", status("off"))
	if n := node(t, l, "node1"); n.Power != "off" {
		t.Errorf("the BMC says off and the lab says %s", n.Power)
	}
	if _, err := ipmi(t, l, "node2", 0, "chassis", "power", "on"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node boots", func() bool { n := node(t, l, "node1"); return n.Power == "on" && n.Boot != old })

	must(t, l.BMC(ctx, "node1", bmcsim.Faults{LieOK: true}))
	old = node(t, l, "node1").Boot
	if _, err := ipmi(t, l, "node2", 0, "chassis", "power", "off"); err != nil {
		t.Errorf("a lying BMC says OK, not %v", err)
	}
	if n := node(t, l, "node1"); n.Boot != old {
		t.Error("a lying BMC acted")
	}
	must(t, l.BMC(ctx, "node1", bmcsim.Faults{}))

	must(t, l.Unplug(ctx, "node1"))
	if n := node(t, l, "node1"); n.Power != "unplugged" || n.Faults != nil {
		t.Errorf("unplugged: %+v", n)
	}
	if s, err := ipmi(t, l, "node2", 0, "chassis", "power", "status"); err == nil {
		t.Errorf("a BMC without power answered %q", s)
	}
	if err := l.Power(ctx, "node1", true); err == nil || !strings.Contains(err.Error(), "plug node1") {
		t.Errorf("power on without a cord: %v", err)
	}
	must(t, l.Plug(ctx, "node1"))
	eventually(t, "node and BMC are back", func() bool { return node(t, l, "node1").Power == "on" && status("on")() })
	must(t, l.Cut(ctx, "node1", LinkBMC, Both))
	if s, err := ipmi(t, l, "node2", 0, "chassis", "power", "status"); err == nil {
		t.Errorf("a BMC behind a cut cable answered %q", s)
	}
}

// TestObservers moves an address by hand, rightly and wrongly, and asks the checker.
func TestObservers(t *testing.T) {
	vip := netip.MustParseAddr("192.168.60.200")
	l := start(t, func(o *Options) { o.VIPs = []netip.Addr{vip} })
	add := func(n string) {
		t.Helper()
		if out := run(t, l, n, "ip", "addr", "add", vip.String()+"/24", "dev", "eth0"); out.Code != 0 {
			t.Fatal(out.Stderr)
		}
	}
	answered := func(want string) func() bool {
		return func() bool {
			h, err := l.History(t.Context())
			must(t, err)
			for i := len(h.Records) - 1; i >= 0; i-- {
				if r := h.Records[i]; r.Stream == check.StreamARP {
					return len(r.MACs) > 0 && h.MACs[r.MACs[0]] == want && sighted(h, want)
				}
			}
			return false
		}
	}
	add("node1")
	eventually(t, "node1 answers", answered("node1"))
	run(t, l, "node1", "ip", "addr", "del", vip.String()+"/24", "dev", "eth0")
	add("node2")
	eventually(t, "node2 answers", answered("node2"))
	must(t, l.Power(t.Context(), "node2", false)) // dies with the address
	add("node3")
	eventually(t, "node3 answers", answered("node3"))
	h, err := l.History(t.Context())
	must(t, err)
	if r := check.Run(h, check.Options{}); !r.OK() || r.MaxOwners != 1 || r.Takeovers != 2 {
		var b strings.Builder
		_ = r.Write(&b)
		t.Errorf("a clean history was refused (%d takeovers):\n%s", r.Takeovers, b.String())
	}
	add("node1") // the crime
	eventually(t, "two hosts answer one probe", func() bool {
		h, err = l.History(t.Context())
		must(t, err)
		return !check.Run(h, check.Options{}).OK()
	})
	eventually(t, "every oracle saw it", func() bool {
		h, err = l.History(t.Context())
		must(t, err)
		rules := make(map[string]bool)
		r := check.Run(h, check.Options{})
		for _, v := range r.Violations {
			rules[v.Rule] = true
		}
		return r.MaxOwners == 2 && rules[check.RuleTwoOwners] && rules[check.RuleTwoMACs] && rules[check.RuleLock]
	})
}

func sighted(h check.History, name string) bool {
	for i := len(h.Records) - 1; i >= 0; i-- {
		if r := h.Records[i]; r.Stream == check.StreamWriter {
			return r.Node == name
		}
	}
	return false
}
