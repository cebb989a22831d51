package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names inside the directory that the nodes and the harness share.
const (
	// OracleSocket is the unix stream socket on which the harness hears the agents. A socket
	// with a path crosses network namespaces, so no cut of the lab's network can silence it.
	OracleSocket = "oracle.sock"
	// LockDir holds one lock file per address.
	LockDir = "locks"
)

const (
	agentEvery     = 5 * time.Millisecond
	agentBusyEvery = time.Millisecond
)

// AgentConfig is what the agent on one node must know.
type AgentConfig struct {
	Node string `json:"node"`
	Boot string `json:"boot"`
	// Shared is the directory with OracleSocket and LockDir, as seen on the node.
	Shared string `json:"shared"`
	// Own lists the node's own addresses: every other address that appears is a service address.
	Own []netip.Addr `json:"own"`
}

// hold is one service address that is on this node now.
type hold struct {
	lock   *os.File
	asked  int64 // when the lock was first asked for
	locked bool
	seq    uint64
	last   int64 // newest time at which the address was certainly here
}

type agent struct {
	cfg   AgentConfig
	conn  net.Conn
	nl    *netlink.Handle
	holds map[netip.Addr]*hold
}

// RunAgent watches the addresses of the node it runs on until ctx ends. While a service address
// is there it holds the address's shared lock and reports a sighting every 5 ms. It learns of
// addresses from the kernel only, never from picket. It runs as a child of the node's pid 1 and
// so dies with the node, which frees its locks.
func RunAgent(ctx context.Context, cfg AgentConfig) error {
	conn, err := net.Dial("unix", filepath.Join(cfg.Shared, OracleSocket))
	if err != nil {
		return fmt.Errorf("reach the oracle: %w", err)
	}
	defer conn.Close()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	// Events only wake the agent early; what it reports is always a fresh answer of the kernel.
	events := make(chan netlink.AddrUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.AddrSubscribe(events, done); err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	a := &agent{cfg: cfg, conn: conn, nl: nl, holds: make(map[netip.Addr]*hold)}
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok {
				events = nil // the subscription died (ENOBUFS): the tick still looks
			}
		case <-tick.C:
		}
		busy, err := a.look()
		if err != nil {
			return err
		}
		if busy {
			tick.Reset(agentBusyEvery)
		} else {
			tick.Reset(agentEvery)
		}
	}
}

// look asks the kernel once and reports every service address; busy says that a lock is wanted.
func (a *agent) look() (busy bool, err error) {
	from := Now()
	list, err := a.nl.AddrList(nil, netlink.FAMILY_ALL)
	to := Now()
	if err != nil {
		return false, fmt.Errorf("list addresses: %w", err)
	}
	here := make(map[netip.Addr]bool)
	for _, l := range list {
		ip, ok := netip.AddrFromSlice(l.IP)
		ip = ip.Unmap()
		if ok && a.service(ip, l.Flags) {
			here[ip] = true
		}
	}
	var ips []netip.Addr
	for ip := range here {
		ips = append(ips, ip)
	}
	for ip := range a.holds {
		if !here[ip] {
			ips = append(ips, ip)
		}
	}
	sort.Slice(ips, func(i, j int) bool { return ips[i].Less(ips[j]) })
	for _, ip := range ips {
		if here[ip] {
			err = a.present(ip, from, to)
		} else {
			err = a.gone(ip, to)
		}
		if err != nil {
			return false, err
		}
		h := a.holds[ip]
		busy = busy || h != nil && !h.locked
	}
	return busy, nil
}

// service says whether an address is neither the node's own nor the kernel's.
func (a *agent) service(ip netip.Addr, flags int) bool {
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() || flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
		return false
	}
	for _, own := range a.cfg.Own {
		if own == ip {
			return false
		}
	}
	return true
}

func (a *agent) present(ip netip.Addr, from, to int64) error {
	h := a.holds[ip]
	kind := KindWrite
	if h == nil {
		f, err := os.OpenFile(filepath.Join(a.cfg.Shared, LockDir, ip.String()), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return fmt.Errorf("open the lock of %s: %w", ip, err)
		}
		h = &hold{lock: f, asked: Now()}
		a.holds[ip] = h
		kind = KindAcquire
	}
	first := h.seq == 0
	h.seq++
	h.last = from
	if err := a.say(Record{Stream: StreamWriter, Kind: kind, VIP: ip.String(), From: from, To: to, Seq: h.seq}); err != nil {
		return err
	}
	if h.locked {
		return nil
	}
	err := unix.Flock(int(h.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case err == nil:
		h.locked = true
		return a.say(Record{Stream: StreamLock, Kind: KindLocked, VIP: ip.String(), Wait: Now() - h.asked})
	case !errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("lock %s: %w", ip, err)
	case first:
		return a.say(Record{Stream: StreamLock, Kind: KindBusy, VIP: ip.String()})
	}
	return nil
}

func (a *agent) gone(ip netip.Addr, to int64) error {
	h := a.holds[ip]
	delete(a.holds, ip)
	// The lock goes first: the next owner's agent may already be asking for it.
	if err := h.lock.Close(); err != nil {
		return fmt.Errorf("unlock %s: %w", ip, err)
	}
	wait := int64(0)
	if !h.locked {
		wait = Now() - h.asked
	}
	if err := a.say(Record{Stream: StreamWriter, Kind: KindRelease, VIP: ip.String(), From: h.last, To: to, Seq: h.seq + 1}); err != nil {
		return err
	}
	return a.say(Record{Stream: StreamLock, Kind: KindUnlocked, VIP: ip.String(), Wait: wait})
}

// say sends one record to the harness. An agent that cannot be heard must end: its silence is
// then seen as a missing stream instead of as peace.
func (a *agent) say(r Record) error {
	r.Node, r.Boot = a.cfg.Node, a.cfg.Boot
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode a record: %w", err)
	}
	if err := a.conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := a.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("tell the oracle: %w", err)
	}
	return nil
}
