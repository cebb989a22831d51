// Package testns gives tests network namespaces of their own, joined by veth pairs. Nothing
// outside these namespaces is touched.
package testns

import (
	"net"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace that lives as long as the test.
type NS struct {
	Handle netns.NsHandle
	Link   *netlink.Handle
}

// New makes an empty namespace with lo up. Without the right to do so the test is skipped aloud.
func New(t *testing.T) *NS {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		t.Skipf("needs network namespaces: %v", err)
	}
	defer home.Close()
	made, err := netns.New()
	if err != nil {
		runtime.UnlockOSThread()
		t.Skipf("needs network namespaces (root, or unshare -Urn): %v", err)
	}
	if err := netns.Set(home); err != nil {
		// The thread stays locked and dies with this goroutine.
		t.Fatalf("cannot return to the first namespace: %v", err)
	}
	runtime.UnlockOSThread()
	h, err := netlink.NewHandleAt(made, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	n := &NS{Handle: made, Link: h}
	t.Cleanup(func() {
		h.Close()
		_ = made.Close()
	})
	n.Up(t, "lo")
	return n
}

// Do runs f on a thread inside the namespace.
func (n *NS) Do(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(n.Handle); err != nil {
		return err
	}
	err = f()
	if back := netns.Set(home); back != nil {
		return back // the thread stays locked on purpose
	}
	runtime.UnlockOSThread()
	return err
}

// Veth joins two namespaces by a cable whose ends have the given names and addresses, both up.
func Veth(t *testing.T, a *NS, aName, aAddr string, b *NS, bName, bAddr string) {
	t.Helper()
	err := a.Link.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName,
		PeerNamespace: netlink.NsFd(int(b.Handle))})
	if err != nil {
		t.Skipf("needs veth: %v", err)
	}
	a.AddrAdd(t, aName, aAddr)
	b.AddrAdd(t, bName, bAddr)
	a.Up(t, aName)
	b.Up(t, bName)
}

// Up sets an interface up.
func (n *NS) Up(t *testing.T, name string) { t.Helper(); n.set(t, name, n.Link.LinkSetUp) }

// Down sets an interface down.
func (n *NS) Down(t *testing.T, name string) { t.Helper(); n.set(t, name, n.Link.LinkSetDown) }

// Del deletes an interface.
func (n *NS) Del(t *testing.T, name string) { t.Helper(); n.set(t, name, n.Link.LinkDel) }

func (n *NS) set(t *testing.T, name string, f func(netlink.Link) error) {
	t.Helper()
	l, err := n.Link.LinkByName(name)
	if err == nil {
		err = f(l)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// AddrAdd gives an interface an address such as 10.0.0.1/24.
func (n *NS) AddrAdd(t *testing.T, name, addr string) {
	t.Helper()
	n.set(t, name, func(l netlink.Link) error { return n.Link.AddrAdd(l, parse(t, addr)) })
}

// AddrDel takes an address away.
func (n *NS) AddrDel(t *testing.T, name, addr string) {
	t.Helper()
	n.set(t, name, func(l netlink.Link) error { return n.Link.AddrDel(l, parse(t, addr)) })
}

func parse(t *testing.T, addr string) *netlink.Addr {
	t.Helper()
	ip, ipnet, err := net.ParseCIDR(addr)
	if err != nil {
		t.Fatal(err)
	}
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: ipnet.Mask}}
}
