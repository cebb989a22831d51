package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// keepalivedConf is a VRRP version 3 instance with adverts of 0.1 s, as fast as keepalived goes.
const keepalivedConf = `global_defs {
  router_id %s
  vrrp_version 3
}
vrrp_instance web {
  state BACKUP
  interface eth0
  virtual_router_id 60
  priority %d
  advert_int 0.1
  virtual_ipaddress {
    %s/24 dev eth0
  }
}
`

// other is a lab without picket: the same bridges, client and prober for somebody else.
type other struct {
	lab  *netlab.Lab
	echo *prober
}

func newOther(b *testing.B, daemon []string, put func(dir string, node string, i int) error) *other {
	b.Helper()
	ctx := b.Context()
	lab, err := netlab.Start(ctx, netlab.Options{Dir: labDir(b), Nodes: []string{"node1", "node2"}, Daemon: daemon})
	if errors.Is(err, netlab.ErrUnsupported) {
		b.Skipf("needs namespaces, ip and nft: %v", err)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := lab.Close(); err != nil {
			b.Errorf("end the lab: %v", err)
		}
	})
	o := &other{lab: lab}
	for i, n := range []string{"node1", "node2"} {
		if err := put(filepath.Join(lab.Dir(), "nodes", n, "etc"), n, i); err != nil {
			b.Fatal(err)
		}
	}
	if o.echo, err = startProber(b, lab, cluster.VIP); err != nil {
		b.Fatal(err)
	}
	return o
}

// holders returns the nodes that have the service address now.
func (o *other) holders(ctx context.Context) []string {
	var has []string
	for _, n := range []string{"node1", "node2"} {
		out, err := o.lab.Run(ctx, n, "ip", "-o", "-4", "addr", "show", "to", cluster.VIP)
		if err == nil && out.Stdout != "" {
			has = append(has, n)
		}
	}
	return has
}

// steady waits until the preferred node alone has held the address, and answered, for a while.
func (o *other) steady(ctx context.Context) error {
	held := 0
	return until(ctx, 30*time.Second, func() (bool, error) {
		if err := wait(ctx, 150*time.Millisecond); err != nil {
			return false, err
		}
		if h := o.holders(ctx); len(h) != 1 || h[0] != "node1" {
			held = 0
			return false, nil
		}
		held++
		ok, err := o.echo.answering(check.Now() - int64(100*time.Millisecond))
		return ok && held >= 8, err
	})
}

// outage injects a fault into the steady state and measures what the client saw.
func (o *other) outage(ctx context.Context, fault func() error) (check.Gap, float64, error) {
	if err := o.steady(ctx); err != nil {
		return check.Gap{}, 0, err
	}
	busy := calmDown()
	if err := wait(ctx, time.Duration(rand.Int64N(int64(300*time.Millisecond)))); err != nil {
		return check.Gap{}, 0, err
	}
	from := check.Now()
	if err := fault(); err != nil {
		return check.Gap{}, 0, err
	}
	if err := wait(ctx, 1200*time.Millisecond); err != nil {
		return check.Gap{}, 0, err
	}
	g, err := o.echo.gap(ctx, from, check.Now())
	if err == nil && g.Open {
		err = errors.New("the client gets no answer")
	}
	return g, busy, err
}

// BenchmarkKeepalived measures the same moves of the same address with keepalived.
func BenchmarkKeepalived(b *testing.B) {
	if !once(b) {
		return
	}
	if _, err := exec.LookPath("keepalived"); err != nil {
		b.Skip("needs keepalived (apt-get install keepalived): not installed")
	}
	o := newOther(b, []string{"keepalived", "-n", "-l", "-G", "-f", "/etc/picket/keepalived.conf", "-p", "/run/ka.pid", "-r", "/run/ka-vrrp.pid"},
		func(dir, node string, i int) error {
			return os.WriteFile(filepath.Join(dir, "keepalived.conf"), []byte(fmt.Sprintf(keepalivedConf, node, 150-50*i, cluster.VIP)), 0o600)
		})
	ctx := b.Context()
	for _, n := range []string{"node1", "node2"} {
		if err := o.lab.StartDaemon(ctx, n); err != nil {
			b.Fatal(err)
		}
	}
	out, _ := exec.Command("keepalived", "--version").CombinedOutput()
	line, _, _ := bytesCut(out)
	show("\npeer: %s, VRRP version 3, advert 0.1 s. It does not fence: with a killed or frozen daemon both nodes hold the address.", line)
	o.case3(b, "keepalived-planned", opt.peerRuns, func() error { return o.lab.StopDaemon(ctx, "node1") }, func() error { return o.lab.StartDaemon(ctx, "node1") })
	o.case3(b, "keepalived-node-death", opt.peerRuns, func() error { return o.lab.Power(ctx, "node1", false) }, func() error { return o.lab.Power(ctx, "node1", true) })
	if err := o.steady(ctx); err != nil {
		b.Fatal(err)
	}
	// Both processes at once, as the kernel's memory killer or a bug in common would end them: a child
	// that outlives its parent cleans up.
	if err := o.kill9(ctx, "node1"); err != nil {
		b.Fatal(err)
	}
	if err := wait(ctx, 2*time.Second); err != nil {
		b.Fatal(err)
	}
	show("  after kill -9 of all its processes on node1, 2 s later, the address is on: %v", o.holders(ctx))
	b.ReportMetric(0, "ns/op")
}

// kill9 ends every process of keepalived on a node, in one instant as far as that goes.
func (o *other) kill9(ctx context.Context, node string) error {
	list, err := o.lab.Processes(ctx, node)
	if err != nil {
		return err
	}
	argv := []string{"kill", "-9"}
	for _, p := range list {
		if strings.Contains(p.Command, "keepalived") {
			argv = append(argv, fmt.Sprint(p.PID))
		}
	}
	_, err = o.lab.Run(ctx, node, argv...)
	return err
}

// case3 repeats fault and repair and prints the outage.
func (o *other) case3(b *testing.B, name string, n int, fault, repair func() error) {
	b.Helper()
	s := newSeries(name, partOutage)
	for i := 0; i < n; i++ {
		g, busy, err := o.outage(b.Context(), fault)
		if err == nil {
			s.add(b, map[string]float64{partOutage: ms(int64(g.Length()))}, "", busy)
		} else {
			s.failed++
			show("%s: run %d does not count: %v", name, i+1, err)
		}
		if err := repair(); err != nil {
			b.Fatal(err)
		}
	}
	if len(s.runs) == 0 {
		b.Fatalf("%s: nothing was measured", name)
	}
	show("%s", s.table(b))
	b.ReportMetric(median(s.values(partOutage, nil)), name+"-ms-p50")
}

func bytesCut(b []byte) (string, string, bool) {
	i := slices.Index(b, '\n')
	if i < 0 {
		return string(b), "", false
	}
	return string(b[:i]), string(b[i+1:]), true
}

// handPort is where the taker waits for the giver's word, on the heartbeat network.
const handPort = "10.10.10.12:6949"

// handProgram is the floor of a move: bench-hand give|take. The giver removes the address on SIGUSR1
// and says so in one datagram, whereupon the taker adds and announces it. Nothing is decided, agreed,
// written down, probed or leased.
func handProgram(args []string) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(cluster.VIP + "/24")
	if err != nil {
		return err
	}
	if args[1] == "give" {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		conn, err := net.Dial("udp4", handPort)
		if err != nil {
			return err
		}
		for range c {
			if err := netlink.AddrDel(eth0, addr); err != nil {
				return err
			}
			if _, err := conn.Write([]byte("gone")); err != nil {
				return err
			}
		}
		return nil
	}
	conn, err := net.ListenPacket("udp4", handPort)
	if err != nil {
		return err
	}
	ifi := &net.Interface{Index: eth0.Attrs().Index, Name: "eth0", HardwareAddr: eth0.Attrs().HardwareAddr}
	arp, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, nil)
	if err != nil {
		return err
	}
	for buf := make([]byte, 16); ; {
		if _, _, err := conn.ReadFrom(buf); err != nil {
			return err
		}
		if err := netlink.AddrAdd(eth0, addr); err != nil {
			return err
		}
		if err := announce(arp, ifi.HardwareAddr); err != nil {
			return err
		}
	}
}

// announce broadcasts one gratuitous ARP request (RFC 5227 2.3).
func announce(c *packet.Conn, mac net.HardwareAddr) error {
	vip := netip.MustParseAddr(cluster.VIP).AsSlice()
	b := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, mac, vip, make([]byte, 6), vip)
	_, err := c.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
	return err
}

// BenchmarkFloor measures the limits: a move by hand, and what one commit must wait for.
func BenchmarkFloor(b *testing.B) {
	if !once(b) {
		return
	}
	o := newOther(b, []string{"sleep", "infinity"}, func(string, string, int) error { return nil })
	ctx := b.Context()
	if err := onMachine(b, o.lab, "node1", "bench-hand", "give"); err != nil {
		b.Fatal(err)
	}
	if err := onMachine(b, o.lab, "node2", "bench-hand", "take"); err != nil {
		b.Fatal(err)
	}
	give := func(op, node string) error {
		out, err := o.lab.Run(ctx, node, "ip", "addr", op, cluster.VIP+"/24", "dev", "eth0")
		if err == nil && out.Code != 0 {
			err = errors.New(out.Stderr)
		}
		return err
	}
	if err := give("add", "node1"); err != nil {
		b.Fatal(err)
	}
	pid := ""
	err := until(ctx, 5*time.Second, func() (bool, error) {
		list, err := o.lab.Processes(ctx, "node1")
		for _, p := range list {
			if p.Command == "0" { // the kernel's name for what was run as /proc/self/fd/0
				pid = fmt.Sprint(p.PID)
			}
		}
		return pid != "", err
	})
	if err != nil {
		b.Fatalf("find the program that gives the address away: %v", err)
	}
	giver := func() error {
		out, err := o.lab.Run(ctx, "node1", "kill", "-USR1", pid)
		if err == nil && out.Code != 0 {
			err = errors.New(out.Stderr)
		}
		return err
	}
	o.case3(b, "floor-move-by-hand", opt.peerRuns, giver, func() error {
		return errors.Join(give("del", "node2"), give("add", "node1"), o.flush(ctx))
	})
	s := newSeries("floor-fsync-4k", "write and fsync of 4 KiB")
	busy := calmDown()
	for range 20 * opt.peerRuns {
		v, err := fsync(o.lab.Dir())
		if err != nil {
			b.Fatal(err)
		}
		s.add(b, map[string]float64{s.order[0]: v}, "", busy)
	}
	show("%s", s.table(b))
	b.ReportMetric(median(s.values(s.order[0], nil)), "fsync-ms-p50")
	b.ReportMetric(0, "ns/op")
}

// flush makes the client ask anew who has the address: the way back is not measured.
func (o *other) flush(ctx context.Context) error {
	_, err := o.lab.Run(ctx, netlab.Client, "ip", "neigh", "flush", "to", cluster.VIP)
	return err
}

// fsync appends 4 KiB to a file on the lab's disk, which is the one the log is on, and makes it durable.
func fsync(dir string) (float64, error) {
	f, err := os.OpenFile(filepath.Join(dir, "fsync"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	from := check.Now()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return 0, err
	}
	err = f.Sync()
	return ms(check.Now() - from), err
}
