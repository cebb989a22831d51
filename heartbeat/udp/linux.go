package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// linux is the system of production: the calling process's network namespace.
type linux struct{}

// Open implements system. It looks the address up before it binds: bind(2) alone would succeed
// on an address of another interface.
func (linux) Open(ctx context.Context, l Link, port uint16) (socket, netip.Prefix, error) {
	subnet, index, err := lookup(l)
	if err != nil {
		return nil, netip.Prefix{}, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var opt error
		err := rc.Control(func(fd uintptr) { opt = options(int(fd), l.Interface) })
		return errors.Join(err, opt)
	}}
	addr := l.Addr
	if addr.IsLinkLocalUnicast() && addr.Is6() {
		addr = addr.WithZone(l.Interface)
	}
	pc, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return nil, netip.Prefix{}, fmt.Errorf("cannot listen on %s port %d of %s: %w", l.Addr, port, l.Interface, err)
	}
	conn := pc.(*net.UDPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, netip.Prefix{}, fmt.Errorf("cannot use the socket of %s: %w", l.Interface, err)
	}
	return &udpSocket{conn: conn, raw: raw, index: index}, subnet, nil
}

// options sets what must hold before bind: packets of this NIC only, and priority 6
// (TC_PRIO_INTERACTIVE), which the default queueing discipline serves first: a heartbeat must
// not wait behind bulk data (socket(7), tc-prio(8)).
func options(fd int, iface string) error {
	if err := unix.BindToDevice(fd, iface); err != nil {
		return fmt.Errorf("cannot bind to interface %s (needs CAP_NET_RAW on old kernels): %w", iface, err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, 6); err != nil {
		return fmt.Errorf("cannot raise the priority on %s: %w", iface, err)
	}
	return nil
}

// lookup finds the address on its interface and returns its connected subnet.
func lookup(l Link) (netip.Prefix, int, error) {
	ifi, err := net.InterfaceByName(l.Interface)
	if err != nil {
		return netip.Prefix{}, 0, fmt.Errorf("there is no interface %s: %w", l.Interface, err)
	}
	if ifi.Flags&net.FlagUp == 0 {
		return netip.Prefix{}, 0, fmt.Errorf("interface %s is down: ip link set %s up", l.Interface, l.Interface)
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return netip.Prefix{}, 0, fmt.Errorf("cannot read the addresses of %s: %w", l.Interface, err)
	}
	for _, a := range addrs {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(ipnet.IP)
		if !ok {
			continue
		}
		ones, _ := ipnet.Mask.Size()
		subnet := netip.PrefixFrom(ip.Unmap(), ones).Masked()
		// Every address of 127.0.0.0/8 is lo's without being listed.
		loop := ifi.Flags&net.FlagLoopback != 0 && l.Addr.IsLoopback() && subnet.Contains(l.Addr)
		if loop || ip.Unmap() == l.Addr.WithZone("") {
			return subnet, ifi.Index, nil
		}
	}
	return netip.Prefix{}, 0, fmt.Errorf("interface %s has no address %s", l.Interface, l.Addr)
}

type udpSocket struct {
	conn  *net.UDPConn
	raw   syscall.RawConn
	index int
}

// Read implements socket. MSG_TRUNC makes the kernel tell the true length (recv(2)).
func (u *udpSocket) Read(buf []byte) (int, error) {
	n := 0
	var opErr error
	err := u.raw.Read(func(fd uintptr) bool {
		n, _, opErr = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		return !errors.Is(opErr, unix.EAGAIN)
	})
	if err != nil {
		return 0, err
	}
	return n, os.NewSyscallError("recvfrom", opErr)
}

// Send implements socket. A full queue is an error, never a wait: one dead link must not delay
// the beats on the others.
func (u *udpSocket) Send(packet []byte, to netip.AddrPort) error {
	var sa unix.Sockaddr
	if a := to.Addr(); a.Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	} else {
		v6 := &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}
		if a.IsLinkLocalUnicast() {
			v6.ZoneId = uint32(u.index)
		}
		sa = v6
	}
	var opErr error
	err := u.raw.Write(func(fd uintptr) bool {
		opErr = unix.Sendto(int(fd), packet, unix.MSG_DONTWAIT, sa)
		return true
	})
	return errors.Join(err, os.NewSyscallError("sendto", opErr))
}

// Close implements socket.
func (u *udpSocket) Close() error { return u.conn.Close() }
