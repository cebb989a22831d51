package udp

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/heartbeat/wire"
)

func TestTwoFreshProcessesMeet(t *testing.T) {
	const interval = 400 * time.Millisecond
	a, b, _ := duo(t, "0.11", interval)
	both := func() bool { return a.peer("b").Up == 1 && b.peer("a").Up == 1 }
	took := eventually(t, "both see each other", both, a, b)
	t.Logf("met after %v at an interval of %v", took, interval)
	if took > 2*interval {
		t.Errorf("met after %v: more than two intervals of %v", took, interval)
	}
	v := a.peer("b")
	if d := cmp.Diff([]ids.Node{"y", "z"}, v.Beat.Silent); d != "" || v.Beat.Applied != 7 || v.Beat.From != "b" {
		t.Errorf("content (-want +got)\n%s%+v", d, v.Beat)
	}
	if want := []heartbeat.Path{{Peer: "b", Interface: "lo"}}; !slices.Equal(a.Paths(), want) {
		t.Errorf("paths %v, want %v", a.Paths(), want)
	}
}

func TestPeerRestarts(t *testing.T) {
	const interval = 400 * time.Millisecond
	a, b, port := duo(t, "0.12", interval)
	eventually(t, "both see each other", func() bool { return a.peer("b").Up == 1 && b.peer("a").Up == 1 }, a, b)
	b.stop()
	b = startHost(t, hostConfig{name: "b", links: b.opts.Links, port: port, session: 201, start: 2, interval: interval})
	eventually(t, "socket open", func() bool { return b.Status()[0].Open }, b)
	b.setPeers(t, Peer{Name: "a", Links: a.opts.Links})
	took := eventually(t, "both see the new process", func() bool {
		return a.peer("b").Beat.Session == 201 && b.peer("a").Up == 1
	}, a, b)
	t.Logf("new process accepted after %v at an interval of %v", took, interval)
	if took > 2*interval {
		t.Errorf("accepted after %v: more than two intervals", took)
	}
	b.stop()
	eventually(t, "a peer that stopped is dead", func() bool { return a.peer("b").Silent }, a)
}

func TestKick(t *testing.T) {
	a, b, _ := duo(t, "0.13", 5*time.Second)
	eventually(t, "both see each other", func() bool { a.Kick(); return a.peer("b").Up == 1 && b.peer("a").Up == 1 }, a, b)
	before := b.peer("a").Beat.Seq
	a.Kick()
	if took := eventually(t, "the kicked beat", func() bool { return b.peer("a").Beat.Seq > before }, a, b); took > time.Second {
		t.Errorf("a kick took %v", took)
	}
}

// hostile is one packet that somebody may throw at a node, and what must become of it.
type hostile struct {
	name   string
	packet []byte
	want   wire.Cause // "" means accepted
}

// hostilePackets builds packets to node a, whose session is 100, in the name of its peer c.
func hostilePackets(t *testing.T) []hostile {
	t.Helper()
	other := testKey()
	other.Secret[9]++
	codec := func(cluster string, k wire.Key) *wire.Codec {
		c, err := wire.NewCodec(cluster, k)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ours, alien, forger := codec("c1", testKey()), codec("c2", testKey()), codec("c1", other)
	seq := uint64(boottime())
	seal := func(c *wire.Codec, l wire.Label, edit func(*heartbeat.Beat)) []byte {
		seq++
		b := heartbeat.Beat{From: "c", Boot: "cboot", Start: 1, Session: 300, Echo: 100, Seq: seq}
		if edit != nil {
			edit(&b)
		}
		p, _, err := c.Seal(l, b)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	label := wire.Label{To: "a", From: "lo", At: "lo"}
	good := seal(ours, label, nil)
	bad := func(i int) []byte { p := bytes.Clone(good); p[i] ^= 1; return p }
	return []hostile{
		{"empty", []byte{}, wire.Short},
		{"one byte", []byte{1}, wire.Short},
		{"oversized", make([]byte, 1401), wire.Oversized},
		{"far oversized", make([]byte, 60000), wire.Oversized},
		{"magic", bad(0), wire.Magic},
		{"version", bad(4), wire.BadVersion},
		{"cross-cluster", seal(alien, label, nil), wire.Cluster},
		{"forged", seal(forger, label, nil), wire.Forged},
		{"truncated", good[:len(good)-3], wire.Forged},
		{"bit changed", bad(len(good) / 2), wire.Forged},
		{"for another node", seal(ours, wire.Label{To: "x", From: "lo", At: "lo"}, nil), wire.Misdirected},
		{"for another NIC", seal(ours, wire.Label{To: "a", From: "lo", At: "eth1"}, nil), wire.Misdirected},
		{"from another NIC", seal(ours, wire.Label{To: "a", From: "eth1", At: "lo"}, nil), wire.Misdirected},
		{"from a stranger", seal(ours, label, func(b *heartbeat.Beat) { b.From = "d" }), wire.Unknown},
		{"unverified", seal(ours, label, func(b *heartbeat.Beat) { b.Echo = 99 }), wire.Unverified},
		{"good", good, ""},
		{"replayed", good, wire.Replayed},
		{"before the replayed", seal(ours, label, func(b *heartbeat.Beat) { b.Seq -= 1e6 }), wire.Replayed},
	}
}

// TestHostile throws packets at a node's socket and wants each counted by its cause and dropped.
func TestHostile(t *testing.T) {
	a, _, port := duo(t, "0.14", 50*time.Millisecond)
	eventually(t, "b is heard", func() bool { return a.peer("b").Up == 1 }, a)
	// c is a peer that only this test speaks for.
	a.setPeers(t, Peer{Name: "b", Links: []Link{lo("127.0.14.2")}}, Peer{Name: "c", Links: []Link{lo("127.0.14.3")}})
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.14.3:0")),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.14.1"), port)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, tc := range hostilePackets(t) {
		before, accepted := a.Counters().Of(tc.want), a.peer("c").Beat.Seq
		if _, err := conn.Write(tc.packet); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		eventually(t, tc.name, func() bool {
			if tc.want == "" {
				return a.peer("c").Beat.Seq > accepted
			}
			return a.Counters().Of(tc.want) > before
		}, a)
		if tc.want != "" && a.peer("c").Beat.Seq != accepted {
			t.Errorf("%s: reached the detector", tc.name)
		}
	}
	if a.peer("b").Up != 1 {
		t.Error("b is no longer heard")
	}
	if !strings.Contains(a.log.String(), "cause=forged") {
		t.Error("a forged packet is not in the log")
	}
}

// muted is a system whose sockets swallow what they should send while the flag is set.
type muted struct {
	linux
	mute *atomic.Bool
}

type mutedSocket struct {
	socket
	mute *atomic.Bool
}

func (m muted) Open(ctx context.Context, l Link, port uint16) (socket, netip.Prefix, error) {
	s, p, err := m.linux.Open(ctx, l, port)
	if err != nil {
		return nil, p, err
	}
	return mutedSocket{s, m.mute}, p, nil
}

func (m mutedSocket) Send(packet []byte, to netip.AddrPort) error {
	if m.mute.Load() {
		return nil
	}
	return m.socket.Send(packet, to)
}

// TestOneWay cuts the way from a to b only, restarts a during the cut, and heals it.
func TestOneWay(t *testing.T) {
	const interval = 50 * time.Millisecond
	var mute atomic.Bool
	port := freePort(t)
	la, lb := []Link{lo("127.0.16.1")}, []Link{lo("127.0.16.2")}
	ca := hostConfig{name: "a", links: la, port: port, session: 100, start: 1, interval: interval, system: muted{mute: &mute}}
	a := startHost(t, ca)
	b := startHost(t, hostConfig{name: "b", links: lb, port: port, session: 200, start: 1, interval: interval})
	eventually(t, "sockets open", func() bool { return a.Status()[0].Open && b.Status()[0].Open || skipLo(t, b) }, a, b)
	a.setPeers(t, Peer{"b", lb})
	b.setPeers(t, Peer{"a", la})
	eventually(t, "both see each other", func() bool { return a.peer("b").Up == 1 && b.peer("a").Up == 1 }, a, b)

	mute.Store(true)
	eventually(t, "b no longer hears a", func() bool { return b.peer("a").Silent }, a, b)
	if v := a.peer("b"); v.Up != 1 {
		t.Errorf("a hears b well and sees %+v", v)
	}
	a.stop()
	ca.session, ca.start = 101, 2
	a = startHost(t, ca)
	a.setPeers(t, Peer{"b", lb})
	eventually(t, "b's beats prove nothing to the new process", func() bool {
		return a.Counters().Of(wire.Unverified) > 10 && a.peer("b").Silent
	}, a, b)
	if a.peer("b").Ever {
		t.Error("a beat that echoes an earlier process was accepted")
	}
	mute.Store(false)
	eventually(t, "both see each other again", func() bool { return a.peer("b").Up == 1 && b.peer("a").Beat.Session == 101 }, a, b)
}

// TestOwnLateness holds the sending loop up once and wants it said as an administrator knows it.
func TestOwnLateness(t *testing.T) {
	var hold atomic.Bool
	port := freePort(t)
	a := startHost(t, hostConfig{name: "a", links: []Link{lo("127.0.15.1")}, port: port, session: 1, interval: 20 * time.Millisecond,
		source: func() {
			if hold.CompareAndSwap(true, false) {
				<-time.After(150 * time.Millisecond)
			}
		}})
	eventually(t, "socket open", func() bool { return a.Status()[0].Open || skipLo(t, a) }, a)
	a.setPeers(t, Peer{Name: "b", Links: []Link{lo("127.0.15.2")}})
	hold.Store(true)
	eventually(t, "lateness is told", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.ContainsFunc(a.late, func(by time.Duration) bool { return by > 100*time.Millisecond })
	}, a)
	eventually(t, "lateness is logged", func() bool {
		log := a.log.String()
		return strings.Contains(log, "heartbeat loop ran 1") && strings.Contains(log, "ms late (> 50 ms)")
	}, a)
}

func TestAbsentInterface(t *testing.T) {
	port := freePort(t)
	a := startHost(t, hostConfig{name: "a", port: port, session: 1, interval: 20 * time.Millisecond,
		links: []Link{{"hbnone0", netip.MustParseAddr("192.0.2.1")}, {"lo", netip.MustParseAddr("192.0.2.2")}}})
	a.setPeers(t, Peer{Name: "b", Links: []Link{{"eth0", netip.MustParseAddr("192.0.2.9")}}})
	eventually(t, "both links say why they wait", func() bool {
		s := a.Status()
		return strings.Contains(s[0].Problem, "no interface hbnone0") && strings.Contains(s[1].Problem, "has no address 192.0.2.2")
	}, a)
	a.Refresh("hbnone0")
	if len(a.Paths()) != 0 {
		t.Errorf("paths without a subnet: %v", a.Paths())
	}
}

func TestPair(t *testing.T) {
	pre, addr := netip.MustParsePrefix, netip.MustParseAddr
	locals := []Local{{"eth0", pre("192.168.60.0/24")}, {"eth1", pre("10.10.10.0/24")}, {"eth2", netip.Prefix{}}, {"eth3", pre("fd00:1::/64")}}
	peers := []Peer{
		{"n2", []Link{{"ens1", addr("10.10.10.12")}, {"ens0", addr("192.168.60.12")}}},
		{"n3", []Link{{"eth0", addr("192.168.60.13")}}}, // a witness with one NIC
		{"n4", []Link{{"eth0", addr("172.16.0.4")}}},    // no common subnet
		{"n5", []Link{{"a", addr("10.10.10.15")}, {"b", addr("10.10.10.16")}, {"c", addr("fd00:1::5")}}},
	}
	want := []heartbeat.Path{{Peer: "n2", Interface: "eth0"}, {Peer: "n2", Interface: "eth1"}, {Peer: "n3", Interface: "eth0"},
		{Peer: "n5", Interface: "eth1"}, {Peer: "n5", Interface: "eth3"}}
	if d := cmp.Diff(want, Pair(locals, peers)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestBadOptions(t *testing.T) {
	good := Options{Self: "a", Links: []Link{lo("127.0.0.1")}, Port: 1, Interval: time.Second, Keys: []wire.Key{testKey()},
		ClusterID: "c", Session: 1, Logger: slog.New(slog.DiscardHandler), Clock: boottime,
		Source: func() heartbeat.Beat { return heartbeat.Beat{} }, Deliver: func(time.Duration, string, heartbeat.Beat) {}}
	s, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Options){
		"name":      func(o *Options) { o.Self = "A" },
		"no links":  func(o *Options) { o.Links = nil },
		"nine":      func(o *Options) { o.Links = make([]Link, 9) },
		"twice":     func(o *Options) { o.Links = []Link{lo("127.0.0.1"), lo("127.0.0.2")} },
		"wildcard":  func(o *Options) { o.Links = []Link{lo("0.0.0.0")} },
		"multicast": func(o *Options) { o.Links = []Link{lo("224.0.0.1")} },
		"interface": func(o *Options) { o.Links = []Link{{"a/b", netip.MustParseAddr("10.0.0.1")}} },
		"port":      func(o *Options) { o.Port = 0 },
		"interval":  func(o *Options) { o.Interval = 0 },
		"dead":      func(o *Options) { o.Dead = time.Millisecond },
		"session":   func(o *Options) { o.Session = 0 },
		"keys":      func(o *Options) { o.Keys = nil },
		"cluster":   func(o *Options) { o.ClusterID = "" },
		"clock":     func(o *Options) { o.Clock = nil },
	} {
		o := good
		edit(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	many := make([]Peer, MaxPeers+1)
	for i := range many {
		many[i] = Peer{Name: ids.Node(fmt.Sprintf("p%d", i))}
	}
	for name, peers := range map[string][]Peer{
		"self":      {{Name: "a"}},
		"twice":     {{Name: "b"}, {Name: "b"}},
		"bad name":  {{Name: "B"}},
		"bad link":  {{Name: "b", Links: []Link{{"eth0", netip.Addr{}}}}},
		"many":      many,
		"nine NICs": {{Name: "b", Links: make([]Link, 9)}},
	} {
		if err := s.SetPeers(peers); err == nil {
			t.Errorf("peers %s: accepted", name)
		}
	}
	if err := s.SetTimings(time.Second, time.Millisecond); err == nil {
		t.Error("dead below interval accepted")
	}
	if err := s.SetTimings(100*time.Millisecond, 0); err != nil {
		t.Error(err)
	}
	if err := s.SetKeys(); err == nil {
		t.Error("no keys accepted")
	}
	if err := s.SetKeys(testKey()); err != nil {
		t.Error(err)
	}
}
