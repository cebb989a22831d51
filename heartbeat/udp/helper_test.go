package udp

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/heartbeat/internal/testns"
	"github.com/picket-ha/picket/heartbeat/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

func testKey() wire.Key { return wire.Key{ID: 1, Secret: [wire.KeySize]byte{1, 2, 3}} }

// inNS opens sockets in a namespace; the poller does not mind which one they belong to.
type inNS struct{ ns *testns.NS }

func (i inNS) Open(ctx context.Context, l Link, port uint16) (s socket, p netip.Prefix, err error) {
	err = i.ns.Do(func() error {
		s, p, err = linux{}.Open(ctx, l, port)
		return err
	})
	return s, p, err
}

// lockedLog collects log lines.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// host is one node under test: a Service and the detector that hears it.
type host struct {
	*Service
	log  *lockedLog
	mu   sync.Mutex
	det  *heartbeat.Detector
	got  []heartbeat.Beat
	late []time.Duration
	stop func()
}

type hostConfig struct {
	name     ids.Node
	links    []Link
	port     uint16
	session  uint64
	start    uint64
	interval time.Duration
	system   system
	source   func()
}

func startHost(t *testing.T, c hostConfig) *host {
	t.Helper()
	h := &host{log: &lockedLog{}}
	h.det = heartbeat.NewDetector(heartbeat.Config{Interval: c.interval, Warn: 5 * c.interval / 2, Dead: 5 * c.interval,
		Session: c.session}, boottime(), nil)
	var err error
	h.Service, err = New(Options{
		Self: c.name, Links: c.links, Port: c.port, Interval: c.interval, Keys: []wire.Key{testKey()},
		ClusterID: "c1", Session: c.session, Clock: boottime, system: c.system,
		Logger: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Source: func() heartbeat.Beat {
			if c.source != nil {
				c.source()
			}
			return heartbeat.Beat{Boot: "boot", Start: c.start, Applied: 7, Silent: []ids.Node{"z", "y", "z"}}
		},
		Deliver: func(now time.Duration, iface string, b heartbeat.Beat) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.det.Heard(now, iface, b)
			if len(h.got) < 10000 {
				h.got = append(h.got, b)
			}
		},
		OnLate: func(by time.Duration) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.late = append(h.late, by)
			h.det.Late(boottime(), by)
		},
		OnPaths: func(p []heartbeat.Path) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.det.SetPaths(boottime(), p)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Error("the service does not stop")
			}
		})
	}
	t.Cleanup(h.stop)
	return h
}

// peer reads the detector; state returns one link's state, "" if there is no such path.
func (h *host) peer(name ids.Node) heartbeat.PeerView {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.det.Peer(boottime(), name)
}

func (h *host) state(name ids.Node, iface string) heartbeat.LinkState {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.det.Links(boottime()) {
		if l.Peer == name && l.Interface == iface {
			return l.State
		}
	}
	return ""
}

func (h *host) setPeers(t *testing.T, peers ...Peer) {
	t.Helper()
	if err := h.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until f holds; it returns how long that took.
func eventually(t *testing.T, what string, f func() bool, logs ...*host) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Since(began) > 10*time.Second {
			for _, h := range logs {
				t.Logf("%s:\n%s", h.opts.Self, h.log)
			}
			t.Fatalf("not within 10 s: %s", what)
		}
		<-tick.C
	}
	return time.Since(began)
}

// freePort finds a UDP port that nobody uses on loopback; without loopback the test is skipped.
func freePort(t *testing.T) uint16 {
	t.Helper()
	if ifi, err := net.InterfaceByName("lo"); err != nil || ifi.Flags&net.FlagUp == 0 {
		t.Skipf("needs a loopback interface that is up: ip link set lo up (%v)", err)
	}
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func lo(addr string) Link { return Link{Interface: "lo", Addr: netip.MustParseAddr(addr)} }

// duo starts two nodes on loopback that know each other.
func duo(t *testing.T, net string, interval time.Duration) (a, b *host, port uint16) {
	t.Helper()
	port = freePort(t)
	la, lb := lo("127."+net+".1"), lo("127."+net+".2")
	a = startHost(t, hostConfig{name: "a", links: []Link{la}, port: port, session: 100, start: 1, interval: interval})
	b = startHost(t, hostConfig{name: "b", links: []Link{lb}, port: port, session: 200, start: 1, interval: interval})
	for _, h := range []*host{a, b} {
		eventually(t, "socket open", func() bool { return h.Status()[0].Open || skipLo(t, h) }, h)
	}
	a.setPeers(t, Peer{Name: "b", Links: []Link{lb}})
	b.setPeers(t, Peer{Name: "a", Links: []Link{la}})
	return a, b, port
}

func skipLo(t *testing.T, h *host) bool {
	t.Helper()
	if p := h.Status()[0].Problem; bytes.Contains([]byte(p), []byte("permitted")) {
		t.Skipf("needs the right to bind to a device: %s", p)
	}
	return false
}
