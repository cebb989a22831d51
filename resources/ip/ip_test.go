package ip

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/vishvananda/netlink"
)

var (
	vip  = netip.MustParseAddr("192.168.60.200")
	none = netip.IPv4Unspecified()
	zero = make(net.HardwareAddr, 6)
)

func start(t *testing.T, a *Address) {
	t.Helper()
	if err := a.Start(t.Context(), 1, false); err != nil {
		t.Fatalf("start: %v", err)
	}
}

func stop(t *testing.T, a *Address) {
	t.Helper()
	if err := a.Stop(t.Context()); err != nil {
		t.Fatalf("stop: %v", err)
	}
}

func wantErr(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Fatalf("error is\n  %v\nnot\n  %s", err, want)
	}
}

// neighbour is the hardware address a room has for the service address, nil where it has none.
func neighbour(r *room) net.HardwareAddr {
	list, err := r.nl.NeighList(r.dev("eth0").Attrs().Index, netlink.FAMILY_V4)
	r.must(err)
	for _, n := range list {
		if n.IP.String() == vip.String() && len(n.HardwareAddr) == 6 {
			return n.HardwareAddr
		}
	}
	return nil
}

// echo answers datagrams in a room; it returns its name for itself.
func echo(r *room, name string) {
	var c net.PacketConn
	r.in(func() (err error) { c, err = net.ListenPacket("udp4", "0.0.0.0:7007"); return err })
	done := make(chan struct{})
	r.t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(name), from)
		}
	}()
}

// ask sends one datagram to the service address and returns who answers within 300 ms.
func ask(r *room) string {
	var c net.Conn
	r.in(func() (err error) { c, err = net.Dial("udp4", vip.String()+":7007"); return err })
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	buf := make([]byte, 64)
	if _, err := c.Write([]byte("who")); err != nil {
		return ""
	}
	n, _ := c.Read(buf)
	return string(buf[:n])
}

// TestTakeover moves the address between two nodes: the client's neighbour cache must follow at once
// without the client sending anything, also right after an earlier move (locktime).
func TestTakeover(t *testing.T) {
	l := newLab(t)
	echo(l.n1, "n1")
	echo(l.n2, "n2")
	a1, a2 := l.n1.address(Options{}), l.n2.address(Options{})
	start(t, a1)
	eventually(t, "an answer of n1", func() bool { return ask(l.client) == "n1" })
	if got := neighbour(l.client); !bytes.Equal(got, l.n1.mac("eth0")) {
		t.Fatalf("the client has %s for %s", got, vip)
	}
	from, to := a1, a2
	rooms := map[*Address]*room{a1: l.n1, a2: l.n2}
	names := map[*Address]string{a1: "n1", a2: "n2"}
	for range 4 {
		stop(t, from)
		if got := rooms[from].addrs("eth0"); len(got) != 0 {
			t.Fatalf("after the stop %s has %q", names[from], got)
		}
		start(t, to)
		began := time.Now()
		eventually(t, "the new neighbour", func() bool { return bytes.Equal(neighbour(l.client), rooms[to].mac("eth0")) })
		t.Logf("the client's neighbour moved to %s %v after the start returned", names[to], time.Since(began))
		if d := time.Since(began); d > 500*time.Millisecond {
			t.Errorf("the burst did not move it: %v", d)
		}
		if got := ask(l.client); got != names[to] {
			t.Fatalf("%q answers, not %s", got, names[to])
		}
		if err := to.Monitor(t.Context()); err != nil {
			t.Fatal(err)
		}
		from, to = to, from
	}
}

func TestConflict(t *testing.T) {
	l := newLab(t)
	l.n2.addr("eth0", "192.168.60.200/24", "")
	o := l.client.observe("eth0")
	a := l.n1.address(Options{ProbeWait: time.Second})
	began := time.Now()
	err := a.Start(t.Context(), 1, false)
	wantErr(t, err, "192.168.60.200 is in use by "+l.n2.mac("eth0").String()+" on eth0")
	if d := time.Since(began); d > 800*time.Millisecond {
		t.Errorf("a conflict took %v: the answer must end the wait", d)
	}
	if got := l.n1.addrs("eth0"); len(got) != 0 {
		t.Fatalf("left behind: %q", got)
	}
	eventually(t, "the probe", func() bool { return len(o.from(l.n1.mac("eth0"))) > 0 })
	for _, h := range o.from(l.n1.mac("eth0")) {
		if h.Operation != arp.OperationRequest || h.SenderIP != none || h.TargetIP != vip || !bytes.Equal(h.TargetHardwareAddr, zero) {
			t.Errorf("sent, beside a probe: %+v", h)
		}
	}
	stop(t, a)
	if got := ask(l.client); got != "" {
		t.Logf("%s answers", got)
	}
	if err := a.Monitor(t.Context()); err == nil || err.Error() != "192.168.60.200/24 is no longer on eth0" {
		t.Errorf("monitor: %v", err)
	}
}

// TestProbeFirst sees that nothing is configured while the probe waits, and that a start whose time is
// up configures nothing.
func TestProbeFirst(t *testing.T) {
	l := newLab(t)
	o := l.client.observe("eth0")
	a := l.n1.address(Options{ProbeWait: time.Minute})
	ctx, cancel := context.WithCancel(t.Context())
	res := make(chan error)
	go func() { res <- a.Start(ctx, 1, false) }()
	eventually(t, "the probe", func() bool { return len(o.from(l.n1.mac("eth0"))) == 1 })
	if got := l.n1.addrs("eth0"); len(got) != 0 {
		t.Errorf("configured before the probe ended: %q", got)
	}
	cancel()
	if err := <-res; err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("start: %v", err)
	}
	if got := l.n1.addrs("eth0"); len(got) != 0 {
		t.Errorf("configured after the start was given up: %q", got)
	}
}

// TestAnnouncements looks at what is on the wire: both forms with the right targets, a burst at once,
// refreshes, another burst when asked, nothing after the stop.
func TestAnnouncements(t *testing.T) {
	l := newLab(t)
	o := l.client.observe("eth0")
	hw := l.n1.mac("eth0")
	a := l.n1.address(Options{Refresh: 150 * time.Millisecond})
	start(t, a)
	eventually(t, "6 pairs", func() bool { return len(o.from(hw)) >= 13 })
	list := o.from(hw)
	if p := list[0]; p.SenderIP != none || p.TargetIP != vip {
		t.Errorf("the first packet is no probe: %+v", p)
	}
	for i, h := range list[1:13] {
		want, target := arp.OperationRequest, zero
		if i%2 == 1 {
			want, target = arp.OperationReply, hw
		}
		if h.Operation != want || !bytes.Equal(h.TargetHardwareAddr, target) || h.SenderIP != vip || h.TargetIP != vip ||
			!bytes.Equal(h.eth, ethernet.Broadcast) {
			t.Errorf("packet %d is wrong: to %s %+v", i, h.eth, h.Packet)
		}
	}
	if d := list[5].at.Sub(list[1].at); d < 150*time.Millisecond || d > 600*time.Millisecond {
		t.Errorf("the burst took %v, not about 200 ms", d)
	}
	stop(t, a)
	n := len(o.from(hw))
	a.Announce() // not started: nothing
	pause(400 * time.Millisecond)
	if got := len(o.from(hw)); got != n {
		t.Errorf("%d packets after the stop", got-n)
	}
}

func TestAnnounceAgain(t *testing.T) {
	l := newLab(t)
	o := l.client.observe("eth0")
	hw := l.n1.mac("eth0")
	a := l.n1.address(Options{Refresh: -1, ProbeWait: -1})
	start(t, a)
	eventually(t, "the first burst", func() bool { return len(o.from(hw)) == 6 })
	a.Announce()
	eventually(t, "the second burst", func() bool { return len(o.from(hw)) == 12 })
	pause(300 * time.Millisecond)
	if got := len(o.from(hw)); got != 12 {
		t.Errorf("%d packets without refresh, not 12", got)
	}
}

// TestLinkMadeAnew: announcements follow an interface that vanished and came back with another index.
func TestLinkMadeAnew(t *testing.T) {
	l := newLab(t)
	var log notes
	a := l.n1.address(Options{Refresh: 20 * time.Millisecond, Logger: log.logger()})
	start(t, a)
	l.n1.must(l.n1.nl.LinkDel(l.n1.dev("eth0")))
	eventually(t, "a word in the log", func() bool { return strings.Contains(log.String(), "could not be announced") })
	wantErr(t, a.Monitor(t.Context()), "eth0 does not exist on this node")
	l.n1.plug(l.sw, "eth0", "p1")
	o := l.client.observe("eth0")
	eventually(t, "announcements from the new interface", func() bool { return len(o.from(l.n1.mac("eth0"))) > 2 })
	if n := strings.Count(log.String(), "could not be announced"); n > 2 {
		t.Errorf("logged %d times:\n%s", n, log.String())
	}
}

func TestPresent(t *testing.T) {
	for _, c := range []struct {
		name  string
		cidr  string
		adopt bool
		log   string
		want  []string
	}{
		{"adopted", "192.168.60.200/24", true, "", []string{"192.168.60.200/24 eth0"}},
		{"taken, said aloud", "192.168.60.200/24", false, "is on the interface already", []string{"192.168.60.200/24 eth0"}},
		{"other prefix length", "192.168.60.200/32", false, "another prefix length", []string{"192.168.60.200/24 eth0:picket"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			o := l.client.observe("eth0")
			l.n1.addr("eth0", c.cidr, "")
			var log notes
			a := l.n1.address(Options{Logger: log.logger()})
			if err := a.Start(t.Context(), 1, c.adopt); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, l.n1.addrs("eth0")); d != "" {
				t.Error(d)
			}
			if got := log.String(); (c.log == "" && strings.Contains(got, "WARN")) || !strings.Contains(got, c.log) {
				t.Errorf("log:\n%s", got)
			}
			eventually(t, "announcements", func() bool { return len(o.from(l.n1.mac("eth0"))) > 4 })
			start(t, a) // a second start changes nothing
			stop(t, a)
			if got := l.n1.addrs("eth0"); len(got) != 0 {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

func TestLabel(t *testing.T) {
	l := newLab(t)
	a := l.n1.address(Options{Label: "longer-than-fits", ProbeWait: -1})
	start(t, a)
	if d := cmp.Diff([]string{"192.168.60.200/24 eth0"}, l.n1.addrs("eth0")); d != "" {
		t.Error(d)
	}
}

// TestLinkFailures names what is wrong with the link, in Start and Monitor alike.
func TestLinkFailures(t *testing.T) {
	l := newLab(t)
	a := l.n1.address(Options{ProbeWait: -1})
	both := func(want string) {
		t.Helper()
		wantErr(t, a.Monitor(t.Context()), want)
		wantErr(t, a.Start(t.Context(), 1, false), want)
		if err := a.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l.sw.down("p1")
	eventually(t, "no carrier", func() bool { return a.Monitor(t.Context()).Error() == "eth0 has no carrier" })
	both("eth0 has no carrier")
	l.n1.down("eth0")
	both("eth0 is down")
	l.n1.must(l.n1.nl.LinkDel(l.n1.dev("eth0")))
	both("eth0 does not exist on this node")
}

func TestMonitorRemoved(t *testing.T) {
	l := newLab(t)
	a := l.n1.address(Options{ProbeWait: -1})
	start(t, a)
	if err := a.Monitor(t.Context()); err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("192.168.60.200/24")
	l.n1.must(l.n1.nl.AddrDel(l.n1.dev("eth0"), addr))
	wantErr(t, a.Monitor(t.Context()), "192.168.60.200/24 is no longer on eth0")
	stop(t, a)
	stop(t, a)
}

// TestOtherInterface: an address that sits elsewhere on this node is refused by name, and a stop says
// so rather than calling it gone, except where it was never ours.
func TestOtherInterface(t *testing.T) {
	l := newLab(t)
	l.n1.plug(l.sw, "eth1", "p1b")
	eventually(t, "carrier", func() bool { return l.n1.dev("eth1").Attrs().OperState == netlink.OperUp })
	l.n1.addr("eth1", "192.168.60.200/24", "")
	a := l.n1.address(Options{ProbeWait: -1})
	wantErr(t, a.Stop(t.Context()), "192.168.60.200 is still on eth1: remove it with: ip addr del 192.168.60.200/24 dev eth1")
	wantErr(t, a.Start(t.Context(), 1, false),
		"192.168.60.200 is on eth1 of this node, but belongs on eth0: remove it there, or correct the interface in the cluster file")
	stop(t, a)
	if d := cmp.Diff([]string{"192.168.60.200/24 eth1"}, l.n1.addrs("eth1")); d != "" {
		t.Errorf("a foreign address was touched: %s", d)
	}
	addr, _ := netlink.ParseAddr("192.168.60.200/24")
	l.n1.must(l.n1.nl.AddrDel(l.n1.dev("eth1"), addr))
	l.n1.addr("eth1", "192.168.60.200/24", "eth1:picket") // ours, of before a change of the interface
	stop(t, a)
	if got := l.n1.addrs("eth1"); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

// TestSecondaries: removing the first address of a subnet must keep the others.
func TestSecondaries(t *testing.T) {
	l := newLab(t)
	first := l.n1.address(Options{ProbeWait: -1})
	second := l.n1.address(Options{ProbeWait: -1, Prefix: netip.MustParsePrefix("192.168.60.201/24")})
	start(t, first)
	start(t, second)
	stop(t, first)
	if err := second.Monitor(t.Context()); err != nil {
		t.Error(err)
	}
	stop(t, second)
}

func TestStrays(t *testing.T) {
	l := newLab(t)
	l.n1.addr("eth0", "192.168.60.200/32", "")
	l.n1.addr("eth0", "192.168.60.11/24", "")
	var got []Stray
	l.n1.in(func() (err error) {
		got, err = Strays([]netip.Prefix{netip.MustParsePrefix("192.168.60.200/24"), netip.MustParsePrefix("192.168.60.201/24")})
		return err
	})
	if d := cmp.Diff([]Stray{{Prefix: netip.MustParsePrefix("192.168.60.200/32"), Interface: "eth0"}}, got,
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// TestLoopback: an interface that speaks no ARP carries an address without probe and announcement.
func TestLoopback(t *testing.T) {
	r := newRoom(t)
	r.up("lo")
	a := r.address(Options{Interface: "lo", Refresh: 10 * time.Millisecond})
	start(t, a)
	if err := a.Monitor(t.Context()); err != nil {
		t.Error(err)
	}
	stop(t, a)
}

func TestClosed(t *testing.T) {
	r := newRoom(t)
	a := r.address(Options{})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a.Announce()
	for _, err := range []error{a.Start(t.Context(), 1, false), a.Stop(t.Context()), a.Monitor(t.Context())} {
		wantErr(t, err, "the resource is closed")
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		prefix, dev, want string
	}{
		{"2001:db8::1/64", "eth0", "only IPv4 addresses are supported"},
		{"::ffff:192.168.60.200/120", "eth0", "only IPv4"},
		{"", "eth0", "write it as 192.168.60.200/24"},
		{"224.0.0.1/24", "eth0", "not an address of one host"},
		{"0.0.0.0/0", "eth0", "not an address of one host"},
		{"192.168.60.200/0", "eth0", "prefix length 0"},
		{"192.168.60.200/24", "", "is not a name"},
		{"192.168.60.200/24", "../../../etc/pas", "is not a name"},
		{"192.168.60.200/24", "eth0:1", "is not a name"},
	} {
		p, _ := netip.ParsePrefix(c.prefix)
		if c.prefix == "::ffff:192.168.60.200/120" {
			p = netip.PrefixFrom(netip.MustParseAddr("::ffff:192.168.60.200"), 120)
		}
		if _, err := New(Options{Prefix: p, Interface: c.dev}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s on %s: %v", c.prefix, c.dev, err)
		}
	}
}

// TestConflictPackets covers which packets are a conflict (RFC 5227 2.1.1) and which are not.
func TestConflictPackets(t *testing.T) {
	own := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	other := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	third := netip.MustParseAddr("192.168.60.7")
	for _, c := range []struct {
		name   string
		op     arp.Operation
		hw     net.HardwareAddr
		ip, to netip.Addr
		want   net.HardwareAddr
	}{
		{"reply", arp.OperationReply, other, vip, none, other},
		{"announcement", arp.OperationRequest, other, vip, vip, other},
		{"the owner asks for somebody", arp.OperationRequest, other, vip, third, other},
		{"competing probe", arp.OperationRequest, other, none, vip, other},
		{"probe for another address", arp.OperationRequest, other, none, third, nil},
		{"somebody asks for it", arp.OperationRequest, other, third, vip, nil},
		{"our own probe comes back", arp.OperationRequest, own, none, vip, nil},
		{"our own address comes back", arp.OperationReply, own, vip, vip, nil},
	} {
		frame, err := encode(c.op, c.hw, c.ip, zero, c.to)
		if err != nil {
			t.Fatal(err)
		}
		if got := conflict(frame, own, vip); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %s, not %s", c.name, got, c.want)
		}
		for n := range frame[:41] {
			if got := conflict(frame[:n], own, vip); got != nil {
				t.Errorf("%s cut to %d bytes: %s", c.name, n, got)
			}
		}
	}
}

func FuzzConflict(f *testing.F) {
	own := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	frame, _ := encode(arp.OperationReply, net.HardwareAddr{2, 0, 0, 0, 0, 2}, vip, zero, none)
	f.Add(frame)
	f.Fuzz(func(t *testing.T, b []byte) {
		if who := conflict(b, own, vip); who != nil && len(who) != 6 {
			t.Errorf("%x", who)
		}
	})
}

// TestStartLatency prints what a start costs beside the wait for the probe.
func TestStartLatency(t *testing.T) {
	l := newLab(t)
	a := l.n1.address(Options{ProbeWait: -1})
	var took, gone []time.Duration
	for range 100 {
		began := time.Now()
		start(t, a)
		took = append(took, time.Since(began))
		began = time.Now()
		stop(t, a)
		gone = append(gone, time.Since(began))
	}
	slices.Sort(took)
	slices.Sort(gone)
	t.Logf("start without probe wait: p50 %v p99 %v; stop: p50 %v p99 %v", took[50], took[98], gone[50], gone[98])
}

// BenchmarkStart measures a start, without the wait for the probe, and a stop.
func BenchmarkStart(b *testing.B) {
	l := newLab(b)
	a := l.n1.address(Options{ProbeWait: -1})
	for b.Loop() {
		if err := a.Start(context.Background(), 1, false); err != nil {
			b.Fatal(err)
		}
		if err := a.Stop(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
