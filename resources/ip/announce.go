package ip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The burst: pairs of announcements, so that one lost frame, or a switch port that is still learning,
// does not leave clients with the old hardware address until the next refresh.
const (
	burstPairs = 3
	burstGap   = 100 * time.Millisecond
)

// probeReads bounds the frames looked at during one probe: a storm must not keep a start from ending.
const probeReads = 4096

// announcer speaks ARP for one address. Its methods up to run are called by one goroutine; then only
// the background goroutine uses the socket.
type announcer struct {
	a    *Address
	l    link
	conn *packet.Conn // nil on an interface that speaks no ARP
	kick chan struct{}
	quit chan struct{}
	mum  chan struct{} // closed when nothing will be sent any more
	ill  bool          // the last announcement failed and that was logged
}

func newAnnouncer(a *Address, l link) (*announcer, error) {
	v := &announcer{a: a, kick: make(chan struct{}, 1), quit: make(chan struct{}), mum: make(chan struct{})}
	if err := v.open(l); err != nil {
		return nil, err
	}
	return v, nil
}

// open binds a packet socket to the interface. arp.Dial cannot be used: it refuses an interface that
// has no IPv4 address yet.
func (v *announcer) open(l link) error {
	v.shut()
	v.l = l
	if !l.arp {
		return nil
	}
	return v.a.space.inside(func() error {
		conn, err := packet.Listen(&net.Interface{Index: l.index, Name: l.name, HardwareAddr: l.hw}, packet.Raw, unix.ETH_P_ARP, nil)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("open an ARP socket on %s: %w: picket must run as root or with CAP_NET_RAW", l.name, err)
		}
		if err != nil {
			return fmt.Errorf("open an ARP socket on %s: %w", l.name, err)
		}
		v.conn = conn
		return nil
	})
}

func (v *announcer) shut() {
	if v.conn != nil {
		v.conn.Close()
		v.conn = nil
	}
}

// probe sends one ARP probe (RFC 5227 1.1: a request with sender address zero) and waits for somebody
// who has the address, or is probing for it too (2.1.1). A wait below zero skips the probe.
func (v *announcer) probe(ctx context.Context, wait time.Duration) error {
	if v.conn == nil || wait < 0 {
		return nil
	}
	addr := v.a.opt.Prefix.Addr()
	frame, err := encode(arp.OperationRequest, v.l.hw, netip.IPv4Unspecified(), make(net.HardwareAddr, 6), addr)
	if err != nil {
		return err
	}
	end := time.Now().Add(wait)
	if by, ok := ctx.Deadline(); ok && by.Before(end) {
		end = by
	}
	if err := v.conn.SetReadDeadline(end); err != nil {
		return fmt.Errorf("probe for %s on %s: %w", addr, v.l.name, err)
	}
	conn := v.conn
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	if err := v.write(frame); err != nil {
		return fmt.Errorf("probe for %s on %s: %w", addr, v.l.name, err)
	}
	buf := make([]byte, 128)
	for range probeReads {
		n, _, err := v.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return fmt.Errorf("probe for %s on %s: %w", addr, v.l.name, err)
		}
		if who := conflict(buf[:n], v.l.hw, addr); who != nil {
			return fmt.Errorf("%s is in use by %s on %s", addr, who, v.l.name)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("probe for %s on %s was cut short: %w", addr, v.l.name, err)
	}
	return nil
}

// conflict returns the hardware address of another host that has the address or probes for it
// (RFC 5227 2.1.1), or nil. Whatever is not ARP for IPv4 over ethernet is nobody.
func conflict(frame []byte, own net.HardwareAddr, addr netip.Addr) net.HardwareAddr {
	var f ethernet.Frame
	var p arp.Packet
	if f.UnmarshalBinary(frame) != nil || f.EtherType != ethernet.EtherTypeARP || p.UnmarshalBinary(f.Payload) != nil {
		return nil
	}
	if p.HardwareAddrLength != 6 || p.IPLength != 4 || bytes.Equal(p.SenderHardwareAddr, own) {
		return nil
	}
	probing := p.Operation == arp.OperationRequest && p.SenderIP == netip.IPv4Unspecified() && p.TargetIP == addr
	if p.SenderIP != addr && !probing {
		return nil
	}
	return p.SenderHardwareAddr
}

// pair sends the announcement in both forms, since hosts differ in which they heed: as a request with
// target hardware address zero (RFC 5227 2.3), and as a reply. The reply's target is our own hardware
// address: Linux takes one with a broadcast target for unsolicited and ignores it for a second after
// the entry last changed (locktime, arp(7)).
func (v *announcer) pair() error {
	if v.conn == nil {
		return nil
	}
	addr := v.a.opt.Prefix.Addr()
	request, err := encode(arp.OperationRequest, v.l.hw, addr, make(net.HardwareAddr, 6), addr)
	if err != nil {
		return err
	}
	reply, err := encode(arp.OperationReply, v.l.hw, addr, v.l.hw, addr)
	if err != nil {
		return err
	}
	if err := errors.Join(v.write(request), v.write(reply)); err != nil {
		return fmt.Errorf("announce %s on %s: %w", addr, v.l.name, err)
	}
	return nil
}

func (v *announcer) write(frame []byte) error {
	_, err := v.conn.WriteTo(frame, &packet.Addr{HardwareAddr: ethernet.Broadcast})
	return err
}

// encode makes a broadcast ethernet frame with an ARP packet (RFC 826).
func encode(op arp.Operation, hw net.HardwareAddr, ip netip.Addr, thw net.HardwareAddr, tip netip.Addr) ([]byte, error) {
	p, err := arp.NewPacket(op, hw, ip, thw, tip)
	if err != nil {
		return nil, fmt.Errorf("make an ARP packet: %w", err)
	}
	body, err := p.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("make an ARP packet: %w", err)
	}
	f := ethernet.Frame{Destination: ethernet.Broadcast, Source: hw, EtherType: ethernet.EtherTypeARP, Payload: body}
	frame, err := f.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("make an ARP frame: %w", err)
	}
	return frame, nil
}

// run starts the background goroutine: the rest of the first burst, then the refreshes. It closes the
// socket last and apart, since the kernel takes about 10 ms for that (packet_release waits for a grace
// period of RCU) and a stop need not: Close waits for it.
func (v *announcer) run() {
	v.mute()
	v.a.closing.Add(1)
	go func() {
		defer v.a.closing.Done()
		defer v.shut()
		defer close(v.mum)
		v.speak()
	}()
}

// mute keeps the socket from collecting frames that nobody reads, by a filter that lets none in. That it fails costs some memory of
// the socket's own bounded buffer and nothing else.
func (v *announcer) mute() {
	if v.conn == nil {
		return
	}
	if raw, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}}); err == nil {
		_ = v.conn.SetBPF(raw)
	}
}

// again asks for another burst.
func (v *announcer) again() {
	select {
	case v.kick <- struct{}{}:
	default: // one is asked for already
	}
}

// stop returns when nothing will be sent any more.
func (v *announcer) stop() {
	close(v.quit)
	<-v.mum
}

func (v *announcer) speak() {
	timer := time.NewTimer(burstGap)
	defer timer.Stop()
	left := burstPairs - 1
	for {
		select {
		case <-v.quit:
			return
		case <-v.kick:
			left = burstPairs
		case <-timer.C:
			left = max(left, 1)
		}
		v.refresh()
		left--
		switch {
		case left > 0:
			timer.Reset(burstGap)
		case v.a.opt.Refresh > 0:
			timer.Reset(v.a.opt.Refresh)
		default:
			timer.Stop()
		}
	}
}

// refresh sends one pair, on a new socket if the interface was made anew or changed its hardware
// address since. It says so once when that begins to fail, and once when it works again.
func (v *announcer) refresh() {
	err := v.follow()
	if err == nil {
		err = v.pair()
	}
	switch {
	case err != nil && !v.ill:
		v.a.log.Warn("address could not be announced", "error", err)
	case err == nil && v.ill:
		v.a.log.Info("address is announced again")
	}
	v.ill = err != nil
}

func (v *announcer) follow() error {
	l, err := v.a.space.link(v.a.opt.Interface)
	if err != nil {
		return err
	}
	if l.index == v.l.index && bytes.Equal(l.hw, v.l.hw) && (v.conn != nil || !l.arp) {
		return nil
	}
	if err := v.open(l); err != nil {
		return err
	}
	v.mute()
	return nil
}
