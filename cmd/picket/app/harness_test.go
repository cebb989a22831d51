package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/integration/bmcsim"
)

// lines collects a node's log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	bmcUser   = "admin"
	bmcSecret = "canary-b3c-Pa55word" // at most 20 bytes
)

// box is one machine of a test: its disk, what it says of itself, its BMC and the node that runs on it.
type box struct {
	t      testing.TB
	name   string
	addr   netip.Addr
	port   int
	role   string
	paths  config.Paths
	run    string // what a reboot clears
	uuid   string
	secret string // the password file of its BMC
	bmc    *bmcsim.BMC
	log    *lines
	cli    *control.Client

	mu     sync.Mutex
	boot   ids.Boot
	boots  int
	on     bool // the machine has power
	node   *Node
	resets []reason.Reason
	fatals []error
}

// yard is the machines of one cluster.
type yard struct {
	t     *testing.T
	net   int // 127.net.0.x
	port  int
	boxes []*box
	// timing is the profile of the cluster's files. What does not wait for a detection uses cautious: a
	// busy test machine runs a node's loops some 200 ms late, which fast is not made for.
	timing string
	tokens []string // that were used to join
}

// newYard makes n machines named node1, node2, ... with nothing on them.
func newYard(t *testing.T, n int) *yard {
	t.Helper()
	port := freePort(t)
	y := &yard{t: t, net: 20 + port%200, port: port, timing: "fast"}
	for i := range n {
		y.add(fmt.Sprintf("node%d", i+1))
	}
	return y
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (y *yard) add(name string) *box {
	y.t.Helper()
	i := len(y.boxes) + 1
	dir := y.t.TempDir()
	run, err := os.MkdirTemp("", "pkt-") // a short path: a socket's name has 107 bytes
	if err != nil {
		y.t.Fatal(err)
	}
	b := &box{t: y.t, name: name, addr: netip.AddrFrom4([4]byte{127, byte(y.net), 0, byte(i)}), port: y.port, role: config.RoleMember, run: run,
		paths: config.Paths{ConfigPath: filepath.Join(dir, "etc", "node.yaml"), StateDir: filepath.Join(dir, "lib"), Socket: filepath.Join(run, "s", "p.sock")},
		uuid:  fmt.Sprintf("4c4c4544-0033-4a10-80%02x-b4c04f4e%02x%02x", y.net, y.net, i), log: &lines{}, on: true}
	b.cli = control.NewClient(b.paths.Socket)
	b.newBoot()
	b.secret = filepath.Join(dir, "bmc.pass")
	if err := os.WriteFile(b.secret, []byte(bmcSecret+"\n"), 0o600); err != nil {
		y.t.Fatal(err)
	}
	b.bmc, err = bmcsim.New(bmcsim.Options{Addr: "127.0.0.1:0", User: bmcUser, Password: bmcSecret, GUID: b.uuid, Chassis: (*chassis)(b)})
	if err != nil {
		y.t.Fatal(err)
	}
	y.t.Cleanup(func() {
		if err := b.bmc.Close(); err != nil {
			y.t.Error(err)
		}
		b.crash()
		b.wipe()
		os.RemoveAll(run)
		if os.Getenv(inside) == "1" {
			b.unplug(false)
		}
		if y.t.Failed() {
			text := b.log.String()
			if len(text) > 6000 && os.Getenv("PICKET_TEST_LOG") == "" {
				text = text[len(text)-6000:]
			}
			y.t.Logf("log of %s:\n%s", b.name, text)
		}
		for _, err := range b.fatals {
			y.t.Errorf("%s stopped itself: %v", b.name, err)
		}
	})
	y.boxes = append(y.boxes, b)
	return b
}

func (b *box) newBoot() {
	b.boots++
	b.boot = ids.Boot(fmt.Sprintf("%02x%02x0000-1111-4222-8333-%012x", b.addr.As4()[1], b.addr.As4()[3], b.boots))
}

func (b *box) links() []config.Link { return []config.Link{{Interface: "lo", Addr: b.addr}} }

func (b *box) initOptions(cluster string) config.InitOptions {
	return config.InitOptions{Paths: b.paths, Name: b.name, Cluster: cluster, Links: b.links(), Port: b.port, NoStart: true}
}

func (b *box) joinOptions(to *box, token string) config.JoinOptions {
	return config.JoinOptions{Paths: b.paths, Addrs: []netip.AddrPort{netip.AddrPortFrom(to.addr, uint16(to.port))}, Token: token,
		Name: b.name, Role: b.role, Links: b.links(), Port: b.port, NoStart: true}
}

// tryStart starts the node of this machine.
func (b *box) tryStart() error {
	b.mu.Lock()
	host := &Host{Boot: b.boot, UUID: b.uuid}
	b.mu.Unlock()
	n, err := New(Options{Paths: b.paths, Host: host, Bits: 24, CheckDevices: time.Second,
		Logger: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Reset: func(why reason.Reason) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.resets = append(b.resets, why)
		},
		Fatal: func(err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.fatals = append(b.fatals, err)
		}})
	if err != nil {
		return err
	}
	if err := n.Start(); err != nil {
		return err
	}
	b.mu.Lock()
	b.node, b.on = n, true
	b.mu.Unlock()
	return nil
}

func (b *box) start() {
	b.t.Helper()
	if os.Getenv(inside) == "1" {
		b.unplug(false)
	}
	if err := b.tryStart(); err != nil {
		b.t.Fatalf("start %s: %v", b.name, err)
	}
}

// running returns the node, or nil.
func (b *box) running() *Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.node
}

// crash ends the daemon at once, as kill -9 does: what runs stays as it is.
func (b *box) crash() {
	b.mu.Lock()
	n := b.node
	b.node = nil
	b.mu.Unlock()
	if n != nil {
		if err := n.Close(); err != nil {
			b.t.Errorf("close %s: %v", b.name, err)
		}
	}
}

// wipe clears what a loss of power clears: the run directory and the addresses it had.
func (b *box) wipe() {
	rec, _ := readRecord(recordPath(b.paths), b.boot)
	for _, e := range rec {
		for _, r := range e.Held {
			if r.IP != nil {
				removeAddress(b.t, r.IP.Prefix)
			}
		}
	}
	os.RemoveAll(filepath.Dir(b.paths.Socket))
}

// reboot starts the machine anew.
func (b *box) reboot() {
	b.t.Helper()
	b.crash()
	b.wipe()
	b.mu.Lock()
	b.newBoot()
	b.mu.Unlock()
	b.start()
}

// leave is a clean stop, as the daemon does it on SIGTERM.
func (b *box) leave() bool {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	clean := b.running().Shutdown(ctx)
	b.crash()
	return clean
}

// chassis is what the BMC switches: the daemon ends and the run directory goes.
type chassis box

func (c *chassis) On() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.on
}

func (c *chassis) PowerOff() error {
	b := (*box)(c)
	b.crash()
	b.wipe()
	b.unplug(true)
	b.mu.Lock()
	b.on = false
	b.mu.Unlock()
	return nil
}

// unplug makes the machine's address unreachable, or reachable again: a kernel without a daemon refuses
// connections, a machine without power does not.
func (b *box) unplug(off bool) {
	r := &netlink.Route{Dst: &net.IPNet{IP: b.addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_LOCAL}
	f, bad := netlink.RouteDel, unix.ESRCH
	if off {
		f, bad = netlink.RouteAdd, unix.EEXIST
	}
	if err := f(r); err != nil && !errors.Is(err, bad) {
		b.t.Errorf("unplug %s: %v", b.name, err)
	}
}

// PowerOn gives the machine power and a new boot id; the test starts the daemon, if it wants one.
func (c *chassis) PowerOn() error {
	b := (*box)(c)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.on {
		b.on = true
		b.newBoot()
	}
	return nil
}

func addresses(t testing.TB) []string {
	t.Helper()
	l, err := netlink.LinkByName(serviceNIC)
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range list {
		out = append(out, a.IPNet.String())
	}
	return out
}

func removeAddress(t testing.TB, p netip.Prefix) {
	if l, err := netlink.LinkByName(serviceNIC); err == nil {
		if a, err := netlink.ParseAddr(p.String()); err == nil {
			_ = netlink.AddrDel(l, a)
		}
	}
}

// eventually polls until f holds.
func eventually(t testing.TB, d time.Duration, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(d)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

const patience = 30 * time.Second

// found makes a cluster of the first machine and starts it.
func (y *yard) found(cluster string) config.InitResult {
	y.t.Helper()
	b := y.boxes[0]
	res, err := Init(within(y.t, patience), b.initOptions(cluster))
	if err != nil {
		y.t.Fatal(err)
	}
	b.start()
	eventually(y.t, patience, "the first node is up", func() bool {
		s := b.running().fsm.State()
		return s.Node(ids.Node(b.name)) != nil && !s.Node(ids.Node(b.name)).Up.IsZero() && len(s.Tokens) > 0
	})
	return res
}

// operate has this machine's daemon carry an operation out; what is unavailable for a moment is repeated.
func (b *box) operate(op control.Operation) (control.Answer, error) {
	b.t.Helper()
	var a control.Answer
	var err error
	eventually(b.t, patience, op.Kind+" is answered", func() bool {
		a, err = b.cli.Operate(within(b.t, patience), op)
		var ce *control.Error
		return !errors.As(err, &ce) || ce.Class != control.ClassUnavailable
	})
	return a, err
}

func (b *box) must(op control.Operation) control.Answer {
	b.t.Helper()
	a, err := b.operate(op)
	if err != nil {
		b.t.Fatalf("%s: %v", op.Kind, err)
	}
	return a
}

// join makes the machine a node of the cluster and starts it.
func (y *yard) join(b *box) {
	y.t.Helper()
	tok := y.boxes[0].must(control.Operation{Kind: control.OpTokenCreate})
	y.tokens = append(y.tokens, tok.Token)
	if _, err := Join(within(y.t, patience), b.joinOptions(y.boxes[0], tok.Token)); err != nil {
		y.t.Fatal(err)
	}
	b.start()
}

// formed makes a cluster of all machines and waits until all of them vote.
func (y *yard) formed(cluster string) {
	y.t.Helper()
	y.found(cluster)
	for _, b := range y.boxes[1:] {
		y.join(b)
	}
	y.settled(len(y.boxes))
}

// settled waits until that many nodes vote and are up.
func (y *yard) settled(voters int) {
	y.t.Helper()
	eventually(y.t, patience, fmt.Sprintf("%d voters are up", voters), func() bool {
		l := y.leader()
		if l == nil {
			return false
		}
		st, err := l.cli.Status(within(y.t, 3*time.Second))
		n := 0
		for _, x := range st.Nodes {
			if x.Voter && x.State == "online" {
				n++
			}
		}
		return err == nil && n == voters
	})
}

// leader returns the machine whose node leads now, or nil.
func (y *yard) leader() *box {
	for _, b := range y.boxes {
		if n := b.running(); n != nil && n.raft.IsLeader() {
			return b
		}
	}
	return nil
}

// leading waits for a leader.
func (y *yard) leading() *box {
	y.t.Helper()
	var l *box
	eventually(y.t, patience, "somebody leads", func() bool { l = y.leader(); return l != nil })
	return l
}

func (y *yard) follower() *box {
	y.t.Helper()
	l := y.leading()
	for _, b := range y.boxes {
		if b != l && b.running() != nil {
			return b
		}
	}
	y.t.Fatal("nobody follows")
	return nil
}

// agree waits until all running nodes have the same state, and returns it.
func (y *yard) agree() *state.State {
	y.t.Helper()
	var s state.State
	eventually(y.t, patience, "all nodes have the same state", func() bool {
		s = state.State{}
		for _, b := range y.boxes {
			n := b.running()
			if n == nil {
				continue
			}
			x := n.fsm.State()
			if s.Index == 0 {
				s = x
			}
			if x.Index != s.Index || x.Digest() != s.Digest() {
				return false
			}
		}
		return s.Index > 0
	})
	return &s
}

// file is a cluster file with one group per name, each with one address.
func (y *yard) file(cluster string, groups ...string) string {
	var f strings.Builder
	fmt.Fprintf(&f, "cluster: %s\ntiming: %s\nnodes:\n", cluster, y.timing)
	var names []string // the witness among them: it must never be given a group all the same
	for _, b := range y.boxes {
		names = append(names, b.name)
		if b.role != config.RoleMember {
			fmt.Fprintf(&f, "  %s: {}\n", b.name)
			continue
		}
		p := b.bmc.Addr().(*net.UDPAddr).Port
		fmt.Fprintf(&f, "  %s:\n    fence:\n      - ipmitool: -I lanplus -H 127.0.0.1 -p %d -U %s -f %s -C 17\n", b.name, p, bmcUser, b.secret)
	}
	f.WriteString("groups:\n")
	for i, g := range groups {
		fmt.Fprintf(&f, "  %s:\n    nodes: [%s]\n    resources:\n      - ip: %s\n        interface: %s\n", g, strings.Join(names, ", "), y.address(i), serviceNIC)
	}
	return f.String()
}

// address is the service address of the i-th group.
func (y *yard) address(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(y.net), 9, byte(200 + i)}), 24)
}

// apply brings a cluster file into force.
func (y *yard) apply(text string) control.Answer {
	y.t.Helper()
	return y.leading().must(control.Operation{Kind: control.OpApply, File: "test.yaml", Text: text})
}

// runs waits until the group runs, and returns its owner's machine.
func (y *yard) runs(group string, on ...*box) *box {
	y.t.Helper()
	var owner *box
	eventually(y.t, patience, "group "+group+" runs where it should", func() bool {
		owner = nil
		l := y.leader()
		if l == nil {
			return false
		}
		n := l.running()
		if n == nil {
			return false
		}
		s := n.fsm.State()
		g := s.Group(ids.Group(group))
		if g == nil || g.Phase != state.PhaseStarted {
			return false
		}
		for _, b := range y.boxes {
			if string(g.Owner.Node) == b.name && b.running() != nil {
				owner = b
			}
		}
		return owner != nil && (len(on) == 0 || owner == on[0])
	})
	return owner
}
