package ipmi

import (
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/integration/bmcsim"
)

// relay is a bad network between console and BMC: it passes everything on, and lets evil add to
// what goes to the console, before and after each genuine answer.
type relay struct {
	front, back *net.UDPConn
	mu          sync.Mutex
	console     *net.UDPAddr
	wg          sync.WaitGroup
}

func newRelay(t *testing.T, bmc net.Addr, before, after func(genuine []byte) [][]byte) *relay {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp", nil, bmc.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{front: front, back: back}
	send := func(ps ...[]byte) {
		r.mu.Lock()
		to := r.console
		r.mu.Unlock()
		for _, p := range ps {
			if to != nil {
				_, _ = front.WriteToUDP(p, to)
			}
		}
	}
	r.wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := front.ReadFromUDP(buf)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.console = from
			r.mu.Unlock()
			_, _ = back.Write(buf[:n])
		}
	})
	r.wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			p := append([]byte(nil), buf[:n]...)
			send(before(p)...)
			send(p)
			send(after(p)...)
		}
	})
	t.Cleanup(func() { front.Close(); back.Close(); r.wg.Wait() })
	return r
}

func (r *rig) through(before, after func([]byte) [][]byte) {
	r.t.Helper()
	rel := newRelay(r.t, r.b.Addr(), before, after)
	r.opts.Port = uint16(rel.front.LocalAddr().(*net.UDPAddr).Port)
	r.d = r.device()
}

func none([]byte) [][]byte { return nil }

// ipmb builds a response message (IPMI 2.0 section 13.8) with right checksums.
func ipmb(netFn, seq, cmd byte, data ...byte) []byte {
	sum := func(b []byte) (s byte) {
		for _, x := range b {
			s -= x
		}
		return s
	}
	m := []byte{0x81, netFn << 2, 0, 0x20, seq << 2, cmd, 0}
	m[2] = sum(m[:2])
	m = append(m, data...)
	return append(m, sum(m[3:]))
}

// forged answers "power is off" to every number the question can have, in each clear-text form that
// go-ipmi's client takes for an answer.
func forged() (all [][]byte) {
	off := []byte{0x60, 0x00, 0x40} // Get Chassis Status: bit 0 of the first byte is "power is on"
	for seq := byte(0); seq < 64; seq++ {
		m := ipmb(0x01, seq, 0x01, off...)
		v20 := []byte{6, 0, 0xff, 7, 6, 0x00, 0xa3, 0xa2, 0xa1, 0xa0, 9, 0, 0, 0, byte(len(m)), 0}
		v15 := []byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(m))}
		all = append(all, append(v20, m...), append(v15, m...))
	}
	return all
}

func TestForgedOffIsNotBelieved(t *testing.T) {
	r := newRig(t)
	r.b.SetFaults(bmcsim.Faults{LieOK: true})
	lies := forged()
	r.through(func([]byte) [][]byte { return lies }, none)
	rep := r.power(fencing.OpOff, 1500*time.Millisecond, open)
	if rep.Outcome == fencing.OutcomeOff || rep.OffReadings > 0 || rep.AlreadyOff {
		t.Errorf("believed a forger: %+v", rep)
	}
	if rep.Sent == 0 {
		t.Errorf("the session did not get through the noise: %+v", rep)
	}
}

// Packets that made go-ipmi's client panic, before each genuine one.
func TestPoisonIsDropped(t *testing.T) {
	r := newRig(t)
	var poison [][]byte
	for _, n := range []int{0, 1, 15, 16, 17, 31, 33, 47} {
		p := []byte{6, 0, 0xff, 7, 6, 0xc0, 0xa3, 0xa2, 0xa1, 0xa0, 9, 0, 0, 0, byte(n), 0}
		p = append(p, make([]byte, n)...)
		poison = append(poison, p, append(append([]byte(nil), p...), make([]byte, 32)...))
	}
	for _, n := range []int{0, 1, 4, 13, 14, 15} {
		poison = append(poison, append([]byte{6, 0, 0xff, 7, 6, 0xc0, 1, 1, 1, 1, 1, 1, 1, 1, 255, 255}, 0)[:n])
	}
	for _, typ := range []byte{0x11, 0x13, 0x15, 0x01, 0x02, 0xc1} {
		poison = append(poison, []byte{6, 0, 0xff, 7, 6, typ, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0})
	}
	r.through(func([]byte) [][]byte { return poison }, none)
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
}

// A network that delivers everything twice, and old answers again, changes nothing.
func TestDuplicatedAnswers(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var old [][]byte
	r.through(func([]byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return old
	}, func(p []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		old = append(old, p)
		return [][]byte{p, p}
	})
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
}

// Somebody in between talks the session down to no authentication and no encryption.
func TestDowngradeIsRefused(t *testing.T) {
	r := newRig(t, func(o *state.IPMIOpts, _ *bmcsim.Options) { o.Interval, o.Retries = 100*time.Millisecond, 0 })
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp", nil, r.b.Addr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := front.ReadFromUDP(buf)
			if err != nil {
				return
			}
			_, _ = back.Write(buf[:n])
			_ = back.SetReadDeadline(time.Now().Add(time.Second))
			if n, err = back.Read(buf); err != nil {
				return
			}
			if n > 50 && buf[5] == 0x11 {
				buf[offData+16], buf[offData+24], buf[offData+32] = 0, 0, 0
			}
			_, _ = front.WriteToUDP(buf[:n], from)
		}
	})
	t.Cleanup(func() { front.Close(); back.Close(); wg.Wait() })
	r.opts.Port = uint16(front.LocalAddr().(*net.UDPAddr).Port)
	r.d = r.device()
	rep := r.power(fencing.OpOff, 3*time.Second, open)
	r.expect(rep, fencing.OutcomeFailed, fencing.IdentityUnproven, 0, "weaker algorithms", "")
}

func TestPrivilegeAndSuite(t *testing.T) {
	r := newRig(t, func(o *state.IPMIOpts, b *bmcsim.Options) { b.OperatorOnly, b.Suites = true, []int{3}; o.Suite = 3 })
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
	r.opts.Privilege = Administrator
	r.d = r.device()
	if _, err := r.d.Verify(t.Context()); KindOf(err) != KindPrivilege {
		t.Errorf("privilege: %v", err)
	}
	r.opts.Privilege, r.opts.Suite = Operator, 17
	r.d = r.device()
	if _, err := r.d.Verify(t.Context()); KindOf(err) != KindSuite {
		t.Errorf("suite: %v", err)
	}
	r.opts.Suite = 0x0f
	r.d = r.device()
	if _, err := r.d.Verify(t.Context()); KindOf(err) != KindSuite {
		t.Errorf("bad suite: %v", err)
	}
}

// tape is a socket that keeps what is written.
type tape struct {
	net.Conn
	out [][]byte
}

func (t *tape) Write(p []byte) (int, error) { t.out = append(t.out, p); return len(p), nil }
func (t *tape) Close() error                { return nil }

func sessionWire(tb testing.TB) (*wire, *tape) {
	alg, err := suiteAlgorithms(17)
	if err != nil {
		tb.Fatal(err)
	}
	t := &tape{}
	key := make([]byte, 32)
	return &wire{Conn: t, alg: alg, password: "p", phase: phaseSession, k1: key, k2: key}, t
}

// request encrypts an IPMB request as the client does.
func request(tb testing.TB, w *wire, netFn, cmd byte, data ...byte) []byte {
	m := append([]byte{0x20, netFn << 2, 0, 0x81, 4, cmd}, data...)
	enc, err := crypto.EncryptAESPayload(append(m, 0), w.k2, make([]byte, 16))
	if err != nil {
		tb.Fatal(err)
	}
	p := []byte{6, 0, 0xff, 7, 6, 0xc0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint16(p[offLength:], uint16(len(enc)))
	return append(p, enc...)
}

// One permission lets one packet of the permitted kind through, once; nothing else of the kind.
func TestPowerNeedsPermission(t *testing.T) {
	w, out := sessionWire(t)
	down, reset := request(t, w, 0x00, 0x02, 0x00), request(t, w, 0x00, 0x02, 0x03)
	status := request(t, w, 0x00, 0x01)
	write := func(p []byte, ok bool) {
		t.Helper()
		if _, err := w.Write(p); (err == nil) != ok {
			t.Errorf("wrote %v: %v", ok, err)
		}
	}
	write(status, true)
	write(down, false)
	w.arm(chassis.ChassisControlPowerDown)
	write(reset, false)
	write(down, true)
	write(down, false) // a retransmission
	w.arm(chassis.ChassisControlPowerDown)
	if w.disarm() != 1 {
		t.Error("one command was written")
	}
	write(down, false)
	if w.forbid() != 1 || w.arm(chassis.ChassisControlPowerDown) {
		t.Error("armed after forbid")
	}
	write(down, false)
	write(status, true) // the logout still goes out
	clear := append([]byte(nil), down...)
	clear[5] = 0
	write(clear, false)
	w.shutdown()
	w.shutdown()
	write(status, false)
	if len(out.out) != 3 {
		t.Errorf("%d packets on the wire", len(out.out))
	}
}

// Any datagram in any phase: no panic, and in the session nothing without the right code.
func FuzzAccept(f *testing.F) {
	for _, p := range forged()[:4] {
		f.Add(p, uint8(phaseSession))
	}
	f.Add([]byte{6, 0, 0xff, 7, 6, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 40, 0}, uint8(phaseRAKP2))
	f.Fuzz(func(t *testing.T, p []byte, ph uint8) {
		w, _ := sessionWire(t)
		w.phase = phase(ph % 6)
		w.rakp1 = p
		ok := w.accept(p)
		if ok && w.phase == phaseSession {
			t.Fatalf("accepted %x", p)
		}
		if ok && w.phase != phaseSession { // what is passed on must not panic the client's parser
			_ = (&types.Rmcp{}).Unpack(p)
		}
		_, _ = w.Write(p)
	})
}
