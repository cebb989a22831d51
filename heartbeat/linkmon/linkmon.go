// Package linkmon tells when a network interface gains or loses its carrier, its up flag or an
// address. It listens to the kernel (rtnetlink(7)) and polls nothing.
package linkmon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Bounds of a monitor.
const (
	// MaxInterfaces is the most interfaces one monitor watches.
	MaxInterfaces = 64
	// receiveBuffer is the size asked for each netlink socket's buffer, in bytes. A burst that
	// still overflows it costs a new subscription, not an event.
	receiveBuffer = 1 << 20
	backlog       = 256
	firstBackoff  = 50 * time.Millisecond
	lastBackoff   = 2 * time.Second
)

// Event is the state of one interface. It describes a state, not a step: two changes in quick
// succession may be told as one event.
type Event struct {
	Interface string
	Present   bool // the interface exists
	Up        bool // it is set up by the administrator (IFF_UP, netdevice(7))
	// Carrier says that packets can pass: the interface is up, the driver sees the other end
	// (IFF_LOWER_UP) and the operational state is up or unknown (RFC 2863; lo has no state).
	Carrier bool
	Addrs   []netip.Prefix // its addresses with prefix length, sorted
}

func (e Event) equal(o Event) bool {
	return e.Interface == o.Interface && e.Present == o.Present && e.Up == o.Up &&
		e.Carrier == o.Carrier && slices.Equal(e.Addrs, o.Addrs)
}

// Options is what a monitor needs.
type Options struct {
	// Interfaces lists the names to watch, at most MaxInterfaces. They need not exist yet.
	Interfaces []string
	Logger     *slog.Logger
	// OnEvent hears the state of every listed interface once at the start, absent ones
	// included, and then whenever it changed. Calls come one at a time and must not block.
	OnEvent func(Event)

	// For tests: the network namespace (nil: the process's own) and the buffer size.
	ns     *netns.NsHandle
	buffer int
}

type monitor struct {
	opts  Options
	ns    netns.NsHandle
	told  []Event // last told, in the order of opts.Interfaces
	index []int   // interface index at that time, 0 if absent
	fresh []bool  // told holds an event
}

// errLost ends one subscription: the kernel dropped events or closed the socket.
var errLost = errors.New("the kernel's link events were interrupted")

// Run watches until ctx ends and then returns nil. When a subscription breaks (ENOBUFS after a
// burst, for one) it subscribes anew and reads everything again, so that no change is missed.
// An error means that the options are wrong.
func Run(ctx context.Context, o Options) error {
	if o.Logger == nil || o.OnEvent == nil {
		return errors.New("linkmon: Logger and OnEvent must be set")
	}
	if n := len(o.Interfaces); n == 0 || n > MaxInterfaces {
		return fmt.Errorf("linkmon: %d interfaces given: 1 to %d are possible", n, MaxInterfaces)
	}
	m := &monitor{opts: o, ns: netns.None()}
	if o.ns != nil {
		m.ns = *o.ns
	}
	if m.opts.buffer == 0 {
		m.opts.buffer = receiveBuffer
	}
	m.opts.Interfaces = slices.Clone(o.Interfaces)
	m.told = make([]Event, len(o.Interfaces))
	m.index = make([]int, len(o.Interfaces))
	m.fresh = make([]bool, len(o.Interfaces))
	backoff := firstBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := m.watch(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > lastBackoff {
			backoff = firstBackoff
		}
		o.Logger.Warn("link events interrupted, subscribing again", "error", err, "after", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
	return nil
}

// watch is one life of the subscriptions. Messages only say that something changed; what holds
// is then read from the kernel. So the order between the two sockets does not matter, and a
// message that was lost is mended by the next reading.
func (m *monitor) watch(ctx context.Context) error {
	done := make(chan struct{})
	links := make(chan netlink.LinkUpdate, backlog)
	addrs := make(chan netlink.AddrUpdate, backlog)
	fail := func(err error) { m.opts.Logger.Debug("netlink subscription", "error", err) }
	var ns *netns.NsHandle
	if m.ns != netns.None() {
		ns = &m.ns
	}
	err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{
		Namespace: ns, ErrorCallback: fail, ReceiveBufferSize: m.opts.buffer})
	if err != nil {
		close(done)
		return fmt.Errorf("cannot subscribe to link events: %w", err)
	}
	defer drain(links)
	err = netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{
		Namespace: ns, ErrorCallback: fail, ReceiveBufferSize: m.opts.buffer})
	if err != nil {
		close(done)
		return fmt.Errorf("cannot subscribe to address events: %w", err)
	}
	defer drain(addrs)
	// Deferred calls run last first: the sockets close, then both channels are emptied until
	// their readers have ended.
	defer close(done)

	h, err := netlink.NewHandleAt(m.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	defer h.Close()
	if err := m.readAll(h); err != nil {
		return err
	}
	for {
		changed := false
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-links:
			if !ok {
				return errLost
			}
			changed = m.concerns(u.Attrs().Index, u.Attrs().Name)
		case u, ok := <-addrs:
			if !ok {
				return errLost
			}
			changed = m.concerns(u.LinkIndex, "")
		}
		if !changed {
			continue
		}
		if err := m.readAll(h); err != nil {
			return err
		}
	}
}

func drain[T any](c <-chan T) {
	for range c {
	}
}

// concerns says whether a message is about a listed interface. While one is absent, a message
// about an unknown index may be about it: the two sockets are not ordered.
func (m *monitor) concerns(index int, name string) bool {
	return slices.Contains(m.index, index) || slices.Contains(m.opts.Interfaces, name) ||
		(name == "" && slices.Contains(m.index, 0))
}

// readAll reads every listed interface and tells what changed.
func (m *monitor) readAll(h *netlink.Handle) error {
	for i, name := range m.opts.Interfaces {
		e, index, err := read(h, name)
		if err != nil {
			return err
		}
		m.index[i] = index
		if m.fresh[i] && m.told[i].equal(e) {
			continue
		}
		m.told[i], m.fresh[i] = e, true
		told := e
		told.Addrs = slices.Clone(e.Addrs)
		m.opts.OnEvent(told)
	}
	return nil
}

// read returns the state of one interface. An interface that vanishes meanwhile is absent; a
// listing that the kernel marks as interrupted (NLM_F_DUMP_INTR) is repeated a few times.
func read(h *netlink.Handle, name string) (Event, int, error) {
	gone := Event{Interface: name}
	var err error
	for range 5 {
		var link netlink.Link
		link, err = h.LinkByName(name)
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing || errors.Is(err, unix.ENODEV) {
			return gone, 0, nil
		}
		if err != nil {
			continue
		}
		var addrs []netlink.Addr
		addrs, err = h.AddrList(link, netlink.FAMILY_ALL)
		if errors.Is(err, unix.ENODEV) {
			return gone, 0, nil
		}
		if err != nil {
			continue
		}
		return describe(link.Attrs(), addrs), link.Attrs().Index, nil
	}
	return gone, 0, fmt.Errorf("cannot read interface %s: %w", name, err)
}

func describe(a *netlink.LinkAttrs, addrs []netlink.Addr) Event {
	e := Event{Interface: a.Name, Present: true, Up: a.Flags&net.FlagUp != 0}
	oper := a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown
	e.Carrier = e.Up && a.RawFlags&unix.IFF_LOWER_UP != 0 && oper
	for _, x := range addrs {
		if x.IPNet == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(x.IP)
		if !ok {
			continue
		}
		ones, _ := x.Mask.Size()
		e.Addrs = append(e.Addrs, netip.PrefixFrom(ip.Unmap(), ones))
	}
	slices.SortFunc(e.Addrs, netip.Prefix.Compare)
	return e
}
