package bmcsim

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	testUser = "admin"
	testPass = "s3cret-of-the-bmc"
	testGUID = "8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a6b"
)

// machine is a chassis in memory.
type machine struct {
	on   atomic.Bool
	hold chan struct{} // when set, PowerOff waits for it
	fail atomic.Bool
}

func (m *machine) On() bool { return m.on.Load() }

func (m *machine) PowerOff() error {
	if m.fail.Load() {
		return errors.New("relay stuck")
	}
	if m.hold != nil {
		<-m.hold
	}
	m.on.Store(false)
	return nil
}

func (m *machine) PowerOn() error { m.on.Store(true); return nil }

func start(t *testing.T, opt Options) (*BMC, *machine) {
	t.Helper()
	m, _ := opt.Chassis.(*machine)
	if m == nil {
		m = &machine{}
		m.on.Store(true)
		opt.Chassis = m
	}
	if opt.Addr == "" && opt.Conn == nil {
		opt.Addr = "127.0.0.1:0"
	}
	opt.User, opt.Password = testUser, testPass
	if opt.GUID == "" {
		opt.GUID = testGUID
	}
	b, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b, m
}

// tool runs the real ipmitool against b and returns what it printed.
func tool(t *testing.T, b *BMC, args ...string) (string, error) {
	t.Helper()
	bin, err := exec.LookPath("ipmitool")
	if err != nil {
		t.Skip("needs ipmitool: it is the independent client (apt install ipmitool)")
	}
	host, port, err := net.SplitHostPort(b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	all := append([]string{"-I", "lanplus", "-H", host, "-p", port, "-U", testUser, "-P", testPass, "-N", "1", "-R", "2"}, args...)
	out, err := exec.CommandContext(ctx, bin, all...).CombinedOutput()
	return string(out), err
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("did not happen within 5s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestIpmitool(t *testing.T) {
	for _, extra := range [][]string{{"-C", "3"}, {"-C", "17"}, {"-C", "17", "-L", "OPERATOR"}, {"-C", "3", "-L", "ADMINISTRATOR"}} {
		t.Run(strings.Join(extra, " "), func(t *testing.T) {
			b, m := start(t, Options{})
			out, err := tool(t, b, append(extra, "chassis", "power", "status")...)
			if err != nil || !strings.Contains(out, "Chassis Power is on") {
				t.Fatalf("status: %q, %v", out, err)
			}
			if out, err = tool(t, b, append(extra, "chassis", "power", "off")...); err != nil {
				t.Fatalf("off: %q, %v", out, err)
			}
			eventually(t, "machine off", func() bool { return !m.On() })
			if out, err = tool(t, b, append(extra, "chassis", "power", "status")...); err != nil || !strings.Contains(out, "is off") {
				t.Fatalf("status: %q, %v", out, err)
			}
			if out, err = tool(t, b, append(extra, "chassis", "power", "on")...); err != nil {
				t.Fatalf("on: %q, %v", out, err)
			}
			eventually(t, "machine on", m.On)
			if got := ops(b); got != "down up" {
				t.Errorf("recorded commands: %q", got)
			}
			if b.OpenSessions() != 0 {
				t.Errorf("%d sessions left open", b.OpenSessions())
			}
		})
	}
}

func ops(b *BMC) string {
	var names []string
	for _, e := range b.PowerCommands() {
		names = append(names, e.Op)
	}
	return strings.Join(names, " ")
}

func TestIpmitoolGUID(t *testing.T) {
	b, _ := start(t, Options{Order: OrderRFC4122})
	out, err := tool(t, b, "-C", "17", "mc", "guid", "rfc4122")
	if err != nil || !strings.Contains(strings.ToLower(out), testGUID) {
		t.Fatalf("guid: %q, %v", out, err)
	}
	b.SetFaults(Faults{NoGUID: true})
	if out, err = tool(t, b, "-C", "17", "mc", "guid"); err == nil && strings.Contains(strings.ToLower(out), testGUID) {
		t.Fatalf("guid under NoGUID: %q, %v", out, err)
	}
}

func TestIpmitoolCycle(t *testing.T) {
	b, m := start(t, Options{})
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "cycle"); err != nil {
		t.Fatalf("cycle: %q, %v", out, err)
	}
	switched := func() (n int) {
		for _, e := range b.Events() {
			if e.Kind == EventChassis {
				n++
			}
		}
		return n
	}
	eventually(t, "two switches", func() bool { return switched() == 2 })
	if !m.On() {
		t.Error("machine is off after a cycle")
	}
}

// The status stays "on" until PowerOff has returned.
func TestOffOnlyWhenOff(t *testing.T) {
	m := &machine{hold: make(chan struct{})}
	m.on.Store(true)
	b, _ := start(t, Options{Chassis: m})
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "off"); err != nil {
		t.Fatalf("off: %q, %v", out, err)
	}
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "status"); err != nil || !strings.Contains(out, "is on") {
		t.Fatalf("status while PowerOff runs: %q, %v", out, err)
	}
	close(m.hold)
	eventually(t, "machine off", func() bool { return !m.On() })
	out, err := tool(t, b, "-C", "17", "chassis", "power", "status")
	if err != nil || !strings.Contains(out, "is off") {
		t.Fatalf("status after PowerOff: %q, %v", out, err)
	}
}

func TestLies(t *testing.T) {
	for _, c := range []struct {
		name   string
		f      Faults
		status string
	}{{"LieOK", Faults{LieOK: true}, "is on"}, {"LieOff", Faults{LieOff: true}, "is off"}} {
		t.Run(c.name, func(t *testing.T) {
			b, m := start(t, Options{})
			b.SetFaults(c.f)
			if out, err := tool(t, b, "-C", "17", "chassis", "power", "off"); err != nil {
				t.Fatalf("off: %q, %v", out, err)
			}
			out, err := tool(t, b, "-C", "17", "chassis", "power", "status")
			if err != nil || !strings.Contains(out, c.status) {
				t.Fatalf("status: %q, %v", out, err)
			}
			if !m.On() {
				t.Error("the machine went off")
			}
			if cmds := b.PowerCommands(); len(cmds) != 1 || !cmds[0].Lied || cmds[0].From == "" {
				t.Errorf("record: %+v", cmds)
			}
		})
	}
}

func TestRejectLoginAndHeal(t *testing.T) {
	b, _ := start(t, Options{})
	b.SetFaults(Faults{RejectLogin: true})
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "status"); err == nil {
		t.Fatalf("login was let in: %q", out)
	}
	b.SetFaults(Faults{})
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "status"); err != nil {
		t.Fatalf("healed login: %q, %v", out, err)
	}
}

func TestDead(t *testing.T) {
	b, m := start(t, Options{})
	b.SetFaults(Faults{Dead: true})
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "off"); err == nil {
		t.Fatalf("a dead BMC answered: %q", out)
	}
	if !m.On() || len(b.Events()) != 0 {
		t.Errorf("on %v, events %+v", m.On(), b.Events())
	}
}

func TestChassisFailureIsRecorded(t *testing.T) {
	b, m := start(t, Options{})
	m.fail.Store(true)
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "off"); err != nil {
		t.Fatalf("off: %q, %v", out, err)
	}
	eventually(t, "failure recorded", func() bool {
		for _, e := range b.Events() {
			if e.Kind == EventChassis && e.Err != "" {
				return true
			}
		}
		return false
	})
	out, err := tool(t, b, "-C", "17", "chassis", "power", "status")
	if err != nil || !strings.Contains(out, "is on") {
		t.Fatalf("status: %q, %v", out, err)
	}
}

func TestRecordSeesEventsInOrder(t *testing.T) {
	var mu sync.Mutex
	var seen []EventKind
	b, _ := start(t, Options{Record: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e.Kind)
	}})
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "off"); err != nil {
		t.Fatalf("off: %q, %v", out, err)
	}
	eventually(t, "all events", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == 4 })
	mu.Lock()
	defer mu.Unlock()
	if seen[0] != EventSession || seen[1] != EventPower {
		t.Errorf("order %v", seen)
	}
}

// Garbage from the network must not end the BMC.
func TestGarbage(t *testing.T) {
	b, _ := start(t, Options{})
	c, err := net.Dial("udp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, p := range []string{"", "x", "\x06\x00\xff\x07", "\x06\x00\xff\x07\x06\x10", "\x06\x00\xff\x07\x06\x12\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00abcd", strings.Repeat("\xff", 1400)} {
		if _, err := c.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := tool(t, b, "-C", "17", "chassis", "power", "status"); err != nil {
		t.Fatalf("status after garbage: %q, %v", out, err)
	}
}

func TestOwnSocketAndClose(t *testing.T) {
	defer goleak.VerifyNone(t)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := start(t, Options{Conn: pc})
	if b.Addr().String() != pc.LocalAddr().String() {
		t.Errorf("addr %v", b.Addr())
	}
	if err := b.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestBadOptions(t *testing.T) {
	m := &machine{}
	for name, opt := range map[string]Options{
		"no chassis":    {Addr: "127.0.0.1:0", User: "u", Password: "p"},
		"no user":       {Addr: "127.0.0.1:0", Password: "p", Chassis: m},
		"long password": {Addr: "127.0.0.1:0", User: "u", Password: strings.Repeat("x", 21), Chassis: m},
		"bad guid":      {Addr: "127.0.0.1:0", User: "u", Password: "p", Chassis: m, GUID: "nope"},
		"bad address":   {Addr: "192.0.2.1:1", User: "u", Password: "p", Chassis: m},
	} {
		if b, err := New(opt); err == nil {
			b.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}
