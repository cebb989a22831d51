package ip

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// reexec is set in the environment of a re-executed test that is not to try again.
const reexec = "PICKET_IP_TEST_REEXEC"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 && os.Getenv(reexec) == "" {
		if path, err := exec.LookPath("unshare"); err == nil && exec.Command(path, "-Urnm", "true").Run() == nil {
			cmd := exec.Command(path, append([]string{"-Urnm", os.Args[0]}, os.Args[1:]...)...)
			cmd.Env = append(os.Environ(), reexec+"=1")
			cmd.Stdout, cmd.Stderr, cmd.Stdin = os.Stdout, os.Stderr, os.Stdin
			err := cmd.Run()
			var exit *exec.ExitError
			switch {
			case errors.As(err, &exit):
				os.Exit(exit.ExitCode())
			case err != nil:
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

// room is one network namespace of a test.
type room struct {
	t  testing.TB
	ns netns.NsHandle
	nl *netlink.Handle
}

// newRoom makes an empty network namespace that ends with the test.
func newRoom(t testing.TB) *room {
	t.Helper()
	r := &room{t: t}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		ns, err := netns.New()
		if err == nil {
			r.ns = ns
			r.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("needs network namespaces: %v (run as root, or allow user namespaces)", err)
	}
	t.Cleanup(func() { r.nl.Close(); r.ns.Close() })
	return r
}

// in runs f on a thread of the namespace.
func (r *room) in(f func() error) {
	r.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(r.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	r.must(<-done)
}

func (r *room) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *room) dev(name string) netlink.Link {
	r.t.Helper()
	l, err := r.nl.LinkByName(name)
	r.must(err)
	return l
}

func (r *room) up(name string)   { r.t.Helper(); r.must(r.nl.LinkSetUp(r.dev(name))) }
func (r *room) down(name string) { r.t.Helper(); r.must(r.nl.LinkSetDown(r.dev(name))) }

func (r *room) addr(name, cidr, label string) {
	r.t.Helper()
	a, err := netlink.ParseAddr(cidr)
	r.must(err)
	a.Label = label
	r.must(r.nl.AddrAdd(r.dev(name), a))
}

// addrs lists the IPv4 addresses of an interface as the kernel has them.
func (r *room) addrs(name string) []string {
	r.t.Helper()
	list, err := r.nl.AddrList(r.dev(name), netlink.FAMILY_V4)
	r.must(err)
	out := []string{}
	for _, a := range list {
		out = append(out, a.IPNet.String()+" "+a.Label)
	}
	return out
}

func (r *room) mac(name string) net.HardwareAddr { return r.dev(name).Attrs().HardwareAddr }

// plug makes NAME in the room, with its other end PORT on the bridge of the switch.
func (r *room) plug(sw *room, name, port string) {
	r.t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: name, PeerNamespace: netlink.NsFd(int(r.ns))}
	r.must(sw.nl.LinkAdd(v))
	r.must(sw.nl.LinkSetMaster(sw.dev(port), sw.dev("br0")))
	sw.up(port)
	r.up(name)
}

// lab is two nodes and a client on one bridge; the nodes' eth0 has no address, the client's has .9.
type lab struct{ sw, n1, n2, client *room }

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{sw: newRoom(t), n1: newRoom(t), n2: newRoom(t), client: newRoom(t)}
	l.sw.must(l.sw.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	l.sw.up("br0")
	l.n1.plug(l.sw, "eth0", "p1")
	l.n2.plug(l.sw, "eth0", "p2")
	l.client.plug(l.sw, "eth0", "p9")
	l.client.addr("eth0", "192.168.60.9/24", "")
	for _, r := range []*room{l.n1, l.n2, l.client} {
		eventually(t, "carrier", func() bool { return r.dev("eth0").Attrs().RawFlags&unix.IFF_LOWER_UP != 0 })
	}
	for _, p := range []string{"p1", "p2", "p9"} { // bridge ports learn before they forward
		eventually(t, "forwarding port", func() bool {
			l, err := l.sw.nl.LinkByName(p)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
	return l
}

// address makes an Address in the room and closes it at the end of the test.
func (r *room) address(opt Options) *Address {
	r.t.Helper()
	if !opt.Prefix.IsValid() {
		opt.Prefix = netip.MustParsePrefix("192.168.60.200/24")
	}
	if opt.Interface == "" {
		opt.Interface = "eth0"
	}
	opt.ID = "ip:192.168.60.200"
	var a *Address
	r.in(func() (err error) { a, err = New(opt); return err })
	r.t.Cleanup(func() { r.must(a.Close()) })
	return a
}

// eventually polls until ok, for 5 s at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if ok() {
			return
		}
		pause(2 * time.Millisecond)
	}
	t.Fatalf("%s did not come about within 5 s", what)
}

func pause(d time.Duration) { <-time.After(d) }

// heard is one ARP packet as an observer on the wire saw it.
type heard struct {
	at  time.Time
	eth net.HardwareAddr
	arp.Packet
}

// observer collects the ARP packets that reach an interface.
type observer struct {
	mu   sync.Mutex
	list []heard
}

func (r *room) observe(name string) *observer {
	r.t.Helper()
	o := &observer{}
	var conn *packet.Conn
	r.in(func() (err error) {
		l := r.dev(name).Attrs()
		conn, err = packet.Listen(&net.Interface{Index: l.Index, Name: name, HardwareAddr: l.HardwareAddr}, packet.Raw, unix.ETH_P_ARP, nil)
		return err
	})
	done := make(chan struct{})
	r.t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var f ethernet.Frame
			h := heard{at: time.Now()}
			if f.UnmarshalBinary(buf[:n]) != nil || h.UnmarshalBinary(f.Payload) != nil {
				continue
			}
			h.eth = f.Destination
			o.mu.Lock()
			o.list = append(o.list, h)
			o.mu.Unlock()
		}
	}()
	return o
}

// from returns what was heard from a hardware address.
func (o *observer) from(hw net.HardwareAddr) []heard {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []heard
	for _, h := range o.list {
		if bytes.Equal(h.SenderHardwareAddr, hw) {
			out = append(out, h)
		}
	}
	return out
}

// notes is a logger that keeps what is written.
type notes struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (n *notes) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.buf.Write(b)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.buf.String()
}

func (n *notes) logger() *slog.Logger { return slog.New(slog.NewTextHandler(n, nil)) }
