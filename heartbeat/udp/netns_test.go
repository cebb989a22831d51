package udp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/heartbeat/internal/testns"
)

// pairOfHosts joins two namespaces by two cables; the NICs have other names on each side.
func pairOfHosts(t *testing.T) (na, nb *testns.NS, a, b *host) {
	t.Helper()
	na, nb = testns.New(t), testns.New(t)
	cable0(t, na, nb)
	testns.Veth(t, na, "eth1", "10.2.0.1/24", nb, "ens1", "10.2.0.2/24")
	nic := func(name, addr string) Link { return Link{name, netip.MustParseAddr(addr)} }
	la := []Link{nic("eth0", "10.1.0.1"), nic("eth1", "10.2.0.1")}
	lb := []Link{nic("ens0", "10.1.0.2"), nic("ens1", "10.2.0.2")}
	const interval = 50 * time.Millisecond
	a = startHost(t, hostConfig{name: "a", links: la, port: 6940, session: 100, start: 1, interval: interval, system: inNS{na}})
	b = startHost(t, hostConfig{name: "b", links: lb, port: 6940, session: 200, start: 1, interval: interval, system: inNS{nb}})
	a.setPeers(t, Peer{"b", lb})
	b.setPeers(t, Peer{"a", la})
	eventually(t, "both links up on both sides", func() bool { return a.peer("b").Up == 2 && b.peer("a").Up == 2 }, a, b)
	return na, nb, a, b
}

func cable0(t *testing.T, na, nb *testns.NS) {
	t.Helper()
	testns.Veth(t, na, "eth0", "10.1.0.1/24", nb, "ens0", "10.1.0.2/24")
}

// TestLinksDieAndReturn takes one link away in every way there is; the other one never notices.
func TestLinksDieAndReturn(t *testing.T) {
	na, nb, a, b := pairOfHosts(t)
	for _, tc := range []struct {
		name       string
		cut        func()
		mend       func()
		wantReason string // of a's eth0; "" if a cannot know
	}{
		{"own NIC down", func() { na.Down(t, "eth0") }, func() { na.Up(t, "eth0") }, "is down"},
		{"address away", func() { na.AddrDel(t, "eth0", "10.1.0.1/24") }, func() { na.AddrAdd(t, "eth0", "10.1.0.1/24") }, "has no address"},
		{"peer's NIC down", func() { nb.Down(t, "ens0") }, func() { nb.Up(t, "ens0") }, ""},
		{"peer's address away", func() { nb.AddrDel(t, "ens0", "10.1.0.2/24") }, func() { nb.AddrAdd(t, "ens0", "10.1.0.2/24") }, ""},
		{"NIC deleted, made anew", func() { na.Del(t, "eth0") }, func() { cable0(t, na, nb) }, "no interface"},
		{"other address instead", func() { na.AddrDel(t, "eth0", "10.1.0.1/24"); na.AddrAdd(t, "eth0", "10.1.0.99/24") },
			func() { na.AddrDel(t, "eth0", "10.1.0.99/24"); na.AddrAdd(t, "eth0", "10.1.0.1/24") }, "has no address"},
	} {
		tc.cut()
		eventually(t, tc.name+": the link dies on both sides", func() bool {
			return a.state("b", "eth0") == heartbeat.LinkDead && b.state("a", "ens0") == heartbeat.LinkDead
		}, a, b)
		if tc.wantReason != "" {
			eventually(t, tc.name+": the reason is known", func() bool {
				return strings.Contains(a.Status()[0].Problem, tc.wantReason)
			}, a)
		}
		if pa, pb := a.peer("b"), b.peer("a"); pa.Silent || pb.Silent || pa.Up != 1 || pb.Up != 1 {
			t.Errorf("%s: the other link suffers: %+v %+v", tc.name, pa, pb)
		}
		tc.mend()
		a.Refresh("eth0")
		took := eventually(t, tc.name+": the link returns on both sides", func() bool {
			return a.peer("b").Up == 2 && b.peer("a").Up == 2
		}, a, b)
		t.Logf("%s: back after %v", tc.name, took)
	}
}

// TestSubnetAppears starts before the NIC exists: the path comes into being with it.
func TestSubnetAppears(t *testing.T) {
	na, nb := testns.New(t), testns.New(t)
	nic := func(name, addr string) []Link { return []Link{{name, netip.MustParseAddr(addr)}} }
	const interval = 50 * time.Millisecond
	a := startHost(t, hostConfig{name: "a", links: nic("eth0", "10.1.0.1"), port: 6940, session: 100, start: 1, interval: interval, system: inNS{na}})
	b := startHost(t, hostConfig{name: "b", links: nic("ens0", "10.1.0.2"), port: 6940, session: 200, start: 1, interval: interval, system: inNS{nb}})
	a.setPeers(t, Peer{"b", b.opts.Links})
	b.setPeers(t, Peer{"a", a.opts.Links})
	if len(a.Paths()) != 0 {
		t.Errorf("paths %v before the NIC exists", a.Paths())
	}
	cable0(t, na, nb)
	eventually(t, "the new link is up", func() bool { return a.peer("b").Up == 1 && b.peer("a").Up == 1 }, a, b)
}

// TestPeerWithoutNeighbour has one peer that answers no ARP on the link: its packets pile up in
// the kernel, and the beats to the living one must not wait for it.
func TestPeerWithoutNeighbour(t *testing.T) {
	_, _, a, b := pairOfHosts(t)
	a.setPeers(t, Peer{"b", b.opts.Links}, Peer{"ghost", []Link{{"eth0", netip.MustParseAddr("10.1.0.200")}}})
	sent := func() uint64 { return a.Status()[0].Sent }
	from := sent()
	eventually(t, "many packets to nobody", func() bool { a.Kick(); return sent() > from+300 }, a)
	if v := b.peer("a"); v.Up != 2 {
		t.Errorf("the living peer suffers: %+v", v)
	}
	eventually(t, "a peer that never spoke is silent", func() bool {
		g := a.peer("ghost")
		return !g.Ever && g.Silent
	}, a)
}
