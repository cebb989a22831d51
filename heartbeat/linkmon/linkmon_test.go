package linkmon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/picket-ha/picket/heartbeat/internal/testns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a monitor in a namespace and returns its events.
func start(t *testing.T, ns *testns.NS, names ...string) <-chan Event {
	t.Helper()
	events := make(chan Event, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Interfaces: names, Logger: slog.New(slog.DiscardHandler),
			OnEvent: func(e Event) { events <- e }, ns: &ns.Handle})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the monitor does not stop")
		}
	})
	return events
}

// await takes events until one of the interface fits.
func await(t *testing.T, events <-chan Event, name, what string, fits func(Event) bool) Event {
	t.Helper()
	deadline := time.After(5 * time.Second)
	var last []Event
	for {
		select {
		case e := <-events:
			if e.Interface == name && fits(e) {
				return e
			}
			last = append(last, e)
		case <-deadline:
			t.Fatalf("%s: %s was not told; got %+v", name, what, last)
		}
	}
}

func TestCarrierAndAddresses(t *testing.T) {
	a, b := testns.New(t), testns.New(t)
	testns.Veth(t, a, "eth0", "10.1.0.1/24", b, "far0", "10.1.0.2/24")
	events := start(t, a, "eth0", "eth9")
	has := func(e Event, p string) bool { return slices.Contains(e.Addrs, netip.MustParsePrefix(p)) }
	await(t, events, "eth0", "the first state", func(e Event) bool { return e.Present && e.Up && e.Carrier && has(e, "10.1.0.1/24") })
	await(t, events, "eth9", "an absent interface", func(e Event) bool { return !e.Present && !e.Up && !e.Carrier })

	began := time.Now()
	b.Down(t, "far0")
	await(t, events, "eth0", "carrier loss by the far end", func(e Event) bool { return e.Up && !e.Carrier })
	t.Logf("carrier loss told after %v", time.Since(began))
	b.Up(t, "far0")
	await(t, events, "eth0", "carrier return", func(e Event) bool { return e.Up && e.Carrier })

	a.AddrAdd(t, "eth0", "10.1.0.9/24")
	await(t, events, "eth0", "a new address", func(e Event) bool { return has(e, "10.1.0.9/24") && has(e, "10.1.0.1/24") })
	a.AddrDel(t, "eth0", "10.1.0.1/24")
	await(t, events, "eth0", "a lost address", func(e Event) bool { return !has(e, "10.1.0.1/24") })

	a.Down(t, "eth0")
	await(t, events, "eth0", "down", func(e Event) bool { return e.Present && !e.Up && !e.Carrier })
	a.Del(t, "eth0")
	await(t, events, "eth0", "gone", func(e Event) bool { return !e.Present && len(e.Addrs) == 0 })
	testns.Veth(t, a, "eth0", "10.1.0.1/24", b, "far0", "10.1.0.2/24")
	await(t, events, "eth0", "back with another index", func(e Event) bool { return e.Carrier && has(e, "10.1.0.1/24") })
	testns.Veth(t, a, "eth9", "10.2.0.1/24", b, "far9", "10.2.0.2/24")
	await(t, events, "eth9", "an interface that did not exist at start", func(e Event) bool { return e.Carrier && has(e, "10.2.0.1/24") })
}

// TestStorm makes more changes than anybody reads and wants the last state told.
func TestStorm(t *testing.T) {
	a, b := testns.New(t), testns.New(t)
	testns.Veth(t, a, "eth0", "10.1.0.1/24", b, "far0", "10.1.0.2/24")
	events := start(t, a, "eth0")
	for range 150 {
		b.Down(t, "far0")
		b.Up(t, "far0")
	}
	b.Down(t, "far0")
	a.AddrAdd(t, "eth0", "10.1.0.77/24")
	mark := netip.MustParsePrefix("10.1.0.77/24")
	await(t, events, "eth0", "the last state", func(e Event) bool { return !e.Carrier && slices.Contains(e.Addrs, mark) })
}

// TestOverflow makes the kernel drop events (ENOBUFS) and wants a new subscription to mend it.
func TestOverflow(t *testing.T) {
	a, b := testns.New(t), testns.New(t)
	testns.Veth(t, a, "eth0", "10.1.0.1/24", b, "far0", "10.1.0.2/24")
	log := &lockedLog{}
	hold, told := make(chan struct{}), make(chan struct{}, 1)
	events := make(chan Event, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	first := true
	go func() {
		done <- Run(ctx, Options{Interfaces: []string{"eth0"}, Logger: slog.New(slog.NewTextHandler(log, nil)),
			ns: &a.Handle, buffer: 1, OnEvent: func(e Event) {
				if first {
					first = false
					told <- struct{}{}
					<-hold
				}
				events <- e
			}})
	}()
	<-told
	// More than channel and socket hold while nobody reads.
	for i := range 600 {
		addr := fmt.Sprintf("10.9.%d.%d/32", i/250, i%250+1)
		a.AddrAdd(t, "eth0", addr)
		a.AddrDel(t, "eth0", addr)
	}
	a.AddrAdd(t, "eth0", "10.1.0.77/24")
	close(hold)
	mark := netip.MustParsePrefix("10.1.0.77/24")
	await(t, events, "eth0", "the state after the overflow", func(e Event) bool { return slices.Contains(e.Addrs, mark) })
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(log.String(), "subscribing again"); {
		if time.Now().After(deadline) {
			t.Fatalf("no overflow happened, so nothing was tested: %s", log)
		}
		runtime.Gosched()
	}
	b.Down(t, "far0")
	await(t, events, "eth0", "a change after the overflow", func(e Event) bool { return !e.Carrier })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
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

func TestOptions(t *testing.T) {
	l := slog.New(slog.DiscardHandler)
	for name, o := range map[string]Options{
		"no interfaces": {Logger: l, OnEvent: func(Event) {}},
		"too many":      {Logger: l, OnEvent: func(Event) {}, Interfaces: make([]string, MaxInterfaces+1)},
		"no callback":   {Logger: l, Interfaces: []string{"eth0"}},
	} {
		if err := Run(t.Context(), o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestOwnNamespace watches lo of the process's own namespace and changes nothing.
func TestOwnNamespace(t *testing.T) {
	events := make(chan Event, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Interfaces: []string{"lo"}, Logger: slog.New(slog.DiscardHandler), OnEvent: func(e Event) { events <- e }})
	}()
	await(t, events, "lo", "loopback", func(e Event) bool { return e.Present })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
