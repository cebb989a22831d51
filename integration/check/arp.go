package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
)

// DefaultARPInterval is the time between two ARP probes of one address, and the width of the
// window in which answers count for one probe.
const DefaultARPInterval = 20 * time.Millisecond

const (
	etherTypeARP = 0x0806
	arpFrame     = 14 + 28 // Ethernet header and an ARP packet for IPv4 (RFC 826)
)

// ARPProber asks the wire who has an address, again and again, from a host of its own: were it
// the measured client, its questions would refresh the client's neighbour cache and hide a
// missing gratuitous ARP.
type ARPProber struct {
	conn *packet.Conn
	mac  net.HardwareAddr
	ip   netip.Addr
	vip  netip.Addr
	rec  *Recorder
}

// NewARPProber opens a raw ARP socket on an interface of the calling thread's network
// namespace; own is the IPv4 address the probes name as their sender (an RFC 5227 probe with
// sender 0.0.0.0 would look like a competing claim to picket's own conflict detection). It
// needs CAP_NET_RAW there.
func NewARPProber(ifname string, own, vip netip.Addr, rec *Recorder) (*ARPProber, error) {
	if !own.Is4() || !vip.Is4() {
		return nil, fmt.Errorf("probe %s from %s: ARP knows IPv4 only", vip, own)
	}
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("find the observer's interface %s: %w", ifname, err)
	}
	conn, err := packet.Listen(ifi, packet.Raw, etherTypeARP, nil)
	if err != nil {
		return nil, fmt.Errorf("open an ARP socket on %s: %w", ifname, err)
	}
	return &ARPProber{conn: conn, mac: ifi.HardwareAddr, ip: own, vip: vip, rec: rec}, nil
}

// Run probes every interval until ctx ends, then closes the socket. Every window leaves one
// record, answered or not, so that a stalled prober shows.
func (p *ARPProber) Run(ctx context.Context, interval time.Duration) error {
	defer p.conn.Close()
	frame := p.request()
	to := &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	for n := uint64(1); ctx.Err() == nil; n++ {
		r := Record{Stream: StreamARP, Kind: KindProbe, VIP: p.vip.String(), N: n, From: Now()}
		deadline := time.Now().Add(interval)
		if _, err := p.conn.WriteTo(frame, to); err != nil && !errors.Is(err, net.ErrClosed) {
			r.Text = err.Error() // a downed interface is worth a line, not the end of the watch
		}
		macs, err := p.window(deadline)
		if err != nil {
			return fmt.Errorf("read ARP answers for %s: %w", p.vip, err)
		}
		r.MACs = macs
		p.rec.Add(r)
	}
	return nil
}

// request builds the broadcast "who has vip, tell ip" (RFC 826).
func (p *ARPProber) request() []byte {
	b := make([]byte, arpFrame)
	for i := range 6 {
		b[i] = 0xff
	}
	copy(b[6:], p.mac)
	binary.BigEndian.PutUint16(b[12:], etherTypeARP)
	copy(b[14:], []byte{0, 1, 8, 0, 6, 4, 0, 1}) // Ethernet, IPv4, lengths, request
	copy(b[22:], p.mac)
	copy(b[28:], p.ip.AsSlice())
	copy(b[38:], p.vip.AsSlice())
	return b
}

// window collects who answers until the deadline.
func (p *ARPProber) window(deadline time.Time) ([]string, error) {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	var macs []string
	buf := make([]byte, 256)
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return macs, nil
		}
		if err != nil {
			return macs, err
		}
		if mac := p.answer(buf[:n]); mac != "" && !contains(macs, mac) {
			macs = append(macs, mac)
		}
	}
}

// answer returns the sender of a reply to this prober, or "". A gratuitous reply is sent to
// everybody and proves nothing about who answers questions, so only replies to us count: that
// is what ties an answer to one probe.
func (p *ARPProber) answer(b []byte) string {
	if len(b) < arpFrame || binary.BigEndian.Uint16(b[12:]) != etherTypeARP || binary.BigEndian.Uint16(b[20:]) != 2 {
		return ""
	}
	sender, _ := netip.AddrFromSlice(b[28:32])
	target, _ := netip.AddrFromSlice(b[38:42])
	if sender != p.vip || target != p.ip || string(b[32:38]) != string(p.mac) {
		return ""
	}
	return net.HardwareAddr(b[22:28]).String()
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
