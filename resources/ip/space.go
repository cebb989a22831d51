package ip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds one netlink exchange. The kernel answers within microseconds; it only waits
// where another holds the configuration lock (rtnl).
const netlinkTimeout = 5 * time.Second

// dumpTries bounds how often an address list is asked for anew that changed while it was read.
const dumpTries = 8

// space is the seam to one network namespace: a kept netlink handle, and the namespace itself, so that
// sockets opened later belong to it too.
type space struct {
	nl *netlink.Handle
	ns netns.NsHandle
}

// link is what is needed to know of an interface.
type link struct {
	name    string
	index   int
	hw      net.HardwareAddr
	up      bool
	carrier bool
	arp     bool // ethernet that speaks ARP
}

// found is an address on an interface.
type found struct {
	addr  netip.Addr
	bits  int
	label string
	index int
	name  string
}

// openSpace takes the network namespace of the calling thread.
func openSpace() (*space, error) {
	runtime.LockOSThread() // the handle and the namespace must be those of one thread
	defer runtime.UnlockOSThread()
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		ns.Close()
		return nil, fmt.Errorf("set the netlink timeout: %w", err)
	}
	return &space{nl: h, ns: ns}, nil
}

func (s *space) close() error {
	s.nl.Close()
	return s.ns.Close()
}

// inside calls f on a thread that is in the namespace. In a daemon every thread is, and nothing is
// switched; tests that hold several namespaces in one process need CAP_SYS_ADMIN for the switch.
func (s *space) inside(f func() error) error {
	runtime.LockOSThread()
	here, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer here.Close()
	if here.Equal(s.ns) {
		defer runtime.UnlockOSThread()
		return f()
	}
	if err := netns.Set(s.ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace of the address: %w", err)
	}
	err = f()
	if back := netns.Set(here); back != nil {
		// The thread stays locked: it must not serve other goroutines, and ends with this one.
		return errors.Join(err, fmt.Errorf("return to the network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// link looks an interface up by its name.
func (s *space) link(name string) (link, error) {
	nl, err := s.nl.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing), errors.Is(err, unix.ENODEV):
		return link{}, fmt.Errorf("%s does not exist on this node", name)
	case err != nil:
		return link{}, fmt.Errorf("look up %s: %w", name, err)
	}
	at := nl.Attrs()
	return link{
		name: name, index: at.Index, hw: at.HardwareAddr,
		up:      at.RawFlags&unix.IFF_UP != 0,
		carrier: at.RawFlags&unix.IFF_LOWER_UP != 0,
		arp:     at.RawFlags&(unix.IFF_NOARP|unix.IFF_LOOPBACK) == 0 && len(at.HardwareAddr) == 6,
	}, nil
}

// find lists where any of the given IPv4 addresses is configured, on all interfaces.
func (s *space) find(want ...netip.Addr) ([]found, error) {
	var list []netlink.Addr
	var err error
	for range dumpTries {
		if list, err = s.nl.AddrList(nil, netlink.FAMILY_V4); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this node: %w", err)
	}
	var out []found
	for _, l := range list {
		if l.IPNet == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(l.IP)
		if addr = addr.Unmap(); !ok || !slices.Contains(want, addr) {
			continue
		}
		bits, _ := l.Mask.Size()
		out = append(out, found{addr: addr, bits: bits, label: l.Label, index: l.LinkIndex, name: s.name(l.LinkIndex)})
	}
	return out, nil
}

// name is the name of an interface, or "interface 7" where it vanished meanwhile.
func (s *space) name(index int) string {
	l, err := s.nl.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("interface %d", index)
	}
	return l.Attrs().Name
}

// add configures an address; that it is there already is success.
func (s *space) add(l link, p netip.Prefix, label string) error {
	err := s.nl.AddrAdd(nil, &netlink.Addr{IPNet: ipnet(p), Label: label, LinkIndex: l.index})
	switch {
	case err == nil, errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("add %s to %s: %w: picket must run as root or with CAP_NET_ADMIN", p, l.name, err)
	}
	return fmt.Errorf("add %s to %s: %w", p, l.name, err)
}

// remove deletes an address; that it, or its interface, is not there is success.
func (s *space) remove(index int, p netip.Prefix) error {
	err := s.nl.AddrDel(nil, &netlink.Addr{IPNet: ipnet(p), LinkIndex: index})
	switch {
	case err == nil, errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("remove %s from %s: %w: picket must run as root or with CAP_NET_ADMIN", p, s.name(index), err)
	}
	return fmt.Errorf("remove %s from %s: %w", p, s.name(index), err)
}

// promote sets promote_secondaries of an interface and says whether that changed it.
func (s *space) promote(name string) (changed bool, err error) {
	file := "/proc/sys/net/ipv4/conf/" + name + "/promote_secondaries"
	err = s.inside(func() error {
		now, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(now)) != "0" {
			return err
		}
		changed = true
		return os.WriteFile(file, []byte("1\n"), 0o644)
	})
	return changed && err == nil, err
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
