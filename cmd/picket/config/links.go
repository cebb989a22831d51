package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// MaxLinks is the largest number of links of one node.
const MaxLinks = 8

// maxInterface is the longest interface name (IFNAMSIZ less its NUL: netdevice(7)).
const maxInterface = 15

// Link is one NIC that carries heartbeats, and this node's address on it.
type Link struct {
	Interface string
	Addr      netip.Addr // IPv4, unicast
}

// String renders the link as it is written on the command line.
func (l Link) String() string { return l.Interface + "=" + l.Addr.String() }

// ParseLinks parses the values of --link: INTERFACE=ADDRESS each.
func ParseLinks(args []string) ([]Link, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("no link was given: name each NIC that carries heartbeats, for example --link eth0=192.168.60.11")
	}
	var links []Link
	for _, a := range args {
		l, err := ParseLink(a)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, CheckLinks(links)
}

// ParseLink parses one INTERFACE=ADDRESS.
func ParseLink(s string) (Link, error) {
	ifc, addr, ok := strings.Cut(s, "=")
	if !ok {
		return Link{}, fmt.Errorf("link %q has no '=': write INTERFACE=ADDRESS, for example eth0=192.168.60.11", clip(s))
	}
	if strings.Contains(addr, "/") {
		return Link{}, fmt.Errorf("link %q has a prefix length: write the bare address, %s=%s", clip(s), clip(ifc), strings.SplitN(clip(addr), "/", 2)[0])
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return Link{}, fmt.Errorf("link %q: %q is not an IP address: write INTERFACE=ADDRESS, for example eth0=192.168.60.11", clip(s), clip(addr))
	}
	l := Link{Interface: ifc, Addr: a.Unmap()}
	return l, checkLink(l)
}

// CheckLinks reports what is wrong with a node's links taken together, or nil.
func CheckLinks(links []Link) error {
	switch {
	case len(links) == 0:
		return fmt.Errorf("the node has no link: at least one NIC must carry heartbeats")
	case len(links) > MaxLinks:
		return fmt.Errorf("%d links were given: at most %d are allowed", len(links), MaxLinks)
	}
	for i, l := range links {
		if err := checkLink(l); err != nil {
			return err
		}
		for _, o := range links[:i] {
			switch {
			case o.Interface == l.Interface:
				return fmt.Errorf("interface %s is given twice: one link per interface", l.Interface)
			case o.Addr == l.Addr:
				return fmt.Errorf("address %s is given twice, on %s and on %s", l.Addr, o.Interface, l.Interface)
			}
		}
	}
	return nil
}

func checkLink(l Link) error {
	if err := CheckInterface(l.Interface); err != nil {
		return err
	}
	switch a := l.Addr; {
	case !a.IsValid():
		return fmt.Errorf("link %s has no address", l.Interface)
	case !a.Is4():
		return fmt.Errorf("link %s: %s is an IPv6 address, which links do not carry yet: give the IPv4 address", l.Interface, a)
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("link %s: %s is not the address of one machine", l.Interface, a)
	}
	return nil
}

// CheckInterface reports what is wrong with the name of a network interface, or nil: 1 to 15 bytes,
// no blank, '/', ':' or control byte, not "." or ".." (the kernel's dev_valid_name).
func CheckInterface(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the interface name is empty: give one such as eth0")
	case len(name) > maxInterface:
		return fmt.Errorf("interface name %q is %d bytes long: the kernel allows %d", clip(name), len(name), maxInterface)
	case name == "." || name == "..":
		return fmt.Errorf("interface name %q is not allowed", name)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '=' || c == '@' || c == '%' {
			return fmt.Errorf("interface name %q holds %q: letters, digits, '.', '-' and '_' are allowed", clip(name), c)
		}
	}
	return nil
}

// MaxJoinAddrs is the largest number of addresses one join tries.
const MaxJoinAddrs = 16

// ParseJoinAddrs parses ADDRESS[:PORT][,ADDRESS[:PORT]...]; port is used where none is given.
func ParseJoinAddrs(s string, port int) ([]netip.AddrPort, error) {
	parts := strings.Split(s, ",")
	if len(parts) > MaxJoinAddrs {
		return nil, fmt.Errorf("%d addresses were given: at most %d are tried", len(parts), MaxJoinAddrs)
	}
	var out []netip.AddrPort
	for _, p := range parts {
		p = strings.TrimSpace(p)
		if p == "" {
			return nil, fmt.Errorf("%q holds an empty address: write ADDRESS[,ADDRESS...], for example 192.168.60.11,10.10.10.11", clip(s))
		}
		if a, err := netip.ParseAddr(p); err == nil {
			out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(port)))
			continue
		}
		ap, err := netip.ParseAddrPort(p)
		if err != nil || ap.Port() == 0 {
			return nil, fmt.Errorf("%q is not an IP address: write ADDRESS or ADDRESS:PORT, for example 192.168.60.11", clip(p))
		}
		out = append(out, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return out, nil
}

// CheckPort reports what is wrong with a port, or nil.
func CheckPort(p int) error {
	if p < 1 || p > 65535 {
		return fmt.Errorf("port %s is not a port: 1 to 65535 are allowed", strconv.Itoa(p))
	}
	return nil
}

// clip makes text from outside fit for a message: at most 60 bytes, valid UTF-8, no control bytes.
func clip(s string) string {
	if len(s) > 60 {
		s = s[:60] + "..."
	}
	return printable(strings.ReplaceAll(s, "\t", " "))
}
