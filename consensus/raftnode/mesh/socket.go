package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// control returns a net.Dialer or net.ListenConfig hook that binds the socket to a NIC before it is
// bound or connected: an address that moved to another NIC must fail, not silently use that one.
func control(iface string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, iface)
		})
		if err == nil {
			err = serr
		}
		if err != nil {
			return fmt.Errorf("bind the socket to interface %s: %w", iface, err)
		}
		return nil
	}
}

// tune makes a half-open connection die: unacknowledged data after dead (TCP_USER_TIMEOUT, RFC 5482),
// an idle connection after keepalive probes that go unanswered for about as long. Keepalive counts in
// whole seconds, so an idle connection lives at least 2 s.
func tune(c *net.TCPConn, dead time.Duration) error {
	secs := max(dead.Round(time.Second), time.Second)
	if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: secs, Interval: secs, Count: 2}); err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(dead.Milliseconds()))
	})
	if err := errors.Join(err, serr); err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	return nil
}

// dialTCP connects from the link's address, bound to its NIC.
func dialTCP(ctx context.Context, l Link, to netip.AddrPort, dead time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.Addr, 0)),
		Control:   control(l.Interface),
		KeepAlive: -1, // tune sets it
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	tc := c.(*net.TCPConn)
	if err := tune(tc, dead); err != nil {
		tc.Close()
		return nil, err
	}
	return tc, nil
}

// listenTCP listens on the link's address, bound to its NIC, and returns the NIC's index.
func listenTCP(ctx context.Context, l Link, port uint16) (net.Listener, int, error) {
	index, _, err := nic(l)
	if err != nil {
		return nil, 0, err
	}
	lc := net.ListenConfig{Control: control(l.Interface), KeepAlive: -1}
	ln, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(l.Addr, port).String())
	if err != nil {
		return nil, 0, err
	}
	return ln, index, nil
}

// nic looks up a link's interface: its index, and the subnet of the link's address on it (invalid
// where the NIC does not carry the address now).
func nic(l Link) (index int, subnet netip.Prefix, err error) {
	i, err := net.InterfaceByName(l.Interface)
	if err != nil {
		return 0, netip.Prefix{}, fmt.Errorf("interface %s: %w", l.Interface, err)
	}
	if l.Bits > 0 {
		p, err := l.Addr.Prefix(l.Bits)
		if err != nil {
			return 0, netip.Prefix{}, fmt.Errorf("link %s: prefix length %d does not fit %s", l.Name, l.Bits, l.Addr)
		}
		return i.Index, p, nil
	}
	addrs, err := i.Addrs()
	if err != nil {
		return 0, netip.Prefix{}, fmt.Errorf("addresses of interface %s: %w", l.Interface, err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		if ones, _ := n.Mask.Size(); ip.Unmap() == l.Addr.Unmap() {
			p, err := l.Addr.Unmap().Prefix(ones)
			if err == nil {
				return i.Index, p, nil
			}
		}
	}
	return i.Index, netip.Prefix{}, nil
}
