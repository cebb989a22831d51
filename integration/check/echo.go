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

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// DefaultEchoInterval is the time between two echo requests: the resolution of the outage.
const DefaultEchoInterval = 5 * time.Millisecond

// tallyEvery is how often the echo prober says that it lives.
const tallyEvery = time.Second

// echoMagic begins the payload of our requests; the rest is the 64-bit probe number, because
// the 16-bit sequence of RFC 792 wraps after five minutes.
const echoMagic = "picket-lab"

// EchoProber measures what a client sees: ICMP echo through the kernel's own neighbour cache,
// so a takeover whose gratuitous ARP is lost costs what it would cost a real client.
type EchoProber struct {
	conn *icmp.PacketConn
	vip  netip.Addr
	id   int
	rec  *Recorder
}

// NewEchoProber opens a raw ICMP socket in the calling thread's network namespace (it needs
// CAP_NET_RAW there). id tells the probers of one namespace apart.
func NewEchoProber(vip netip.Addr, id int, rec *Recorder) (*EchoProber, error) {
	if !vip.Is4() {
		return nil, fmt.Errorf("probe %s: the echo prober knows IPv4 only", vip)
	}
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("open an ICMP socket: %w", err)
	}
	return &EchoProber{conn: conn, vip: vip, id: id, rec: rec}, nil
}

// Run sends a request every interval and records each first reply until ctx ends, then closes
// the socket.
func (p *EchoProber) Run(ctx context.Context, interval time.Duration) error {
	defer p.conn.Close()
	to := &net.IPAddr{IP: p.vip.AsSlice()}
	var sent, got, newest uint64
	next, tally := time.Now(), time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		if !now.Before(next) {
			sent++
			// A send error (no route, neighbour failed) is an unanswered probe.
			if b, err := p.request(sent); err == nil {
				_, _ = p.conn.WriteTo(b, to)
			}
			if next = next.Add(interval); next.Before(now) {
				next = now // never send a backlog after a stall
			}
		}
		if now.Sub(tally) >= tallyEvery {
			tally = now
			p.rec.Add(Record{Stream: StreamEcho, Kind: KindTally, VIP: p.vip.String(), N: sent, Got: got})
		}
		n, at, err := p.reply(next)
		if err != nil {
			return fmt.Errorf("read echo replies of %s: %w", p.vip, err)
		}
		if n > newest {
			newest = n
			got++
			p.rec.Add(Record{T: at, Stream: StreamEcho, Kind: KindReply, VIP: p.vip.String(), N: n})
		}
	}
	return nil
}

func (p *EchoProber) request(n uint64) ([]byte, error) {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: p.id, Seq: int(n & 0xffff), Data: binary.BigEndian.AppendUint64([]byte(echoMagic), n),
	}}
	return m.Marshal(nil)
}

// reply waits for one reply until the deadline; number 0 means none came.
func (p *EchoProber) reply(deadline time.Time) (n uint64, at int64, err error) {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 512)
	l, from, err := p.conn.ReadFrom(buf)
	at = Now()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, at, nil
	}
	if err != nil {
		// ICMP errors queued on the socket (host unreachable) come back here once each.
		var op *net.OpError
		if errors.As(err, &op) && !errors.Is(err, net.ErrClosed) {
			return 0, at, nil
		}
		return 0, at, err
	}
	m, err := icmp.ParseMessage(1, buf[:l])
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply || from.String() != p.vip.String() {
		return 0, at, nil
	}
	e, ok := m.Body.(*icmp.Echo)
	if !ok || e.ID != p.id || len(e.Data) != len(echoMagic)+8 || string(e.Data[:len(echoMagic)]) != echoMagic {
		return 0, at, nil
	}
	return binary.BigEndian.Uint64(e.Data[len(echoMagic):]), at, nil
}
