package ipmi

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"net"
	"strconv"
	"sync"

	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/types"
)

// phase is what the last packet written asks for, and so what may be read.
type phase int

const (
	phaseNone    phase = iota
	phaseCaps          // Get Channel Authentication Capabilities, in IPMI 1.5 format
	phaseOpen          // RMCP+ Open Session
	phaseRAKP2         // RAKP message 1 was written
	phaseRAKP4         // RAKP message 3 was written
	phaseSession       // in the session: everything is encrypted and authenticated
)

// Offsets in an RMCP+ packet (IPMI 2.0 table 13-8), counted from the RMCP header.
const (
	offAuthType = 4
	offPayload  = 5 // payload type, with the flags of the session
	offLength   = 14
	offData     = 16
	sessionHead = offData - offAuthType

	flagsSession = 0xc0 // encrypted and authenticated
)

var (
	errNotArmed = errors.New("this power command was not let through")
	errSilenced = errors.New("this packet was not let through")
)

// wire is the UDP socket under go-ipmi's client. It does what the client leaves out:
//
//   - The client takes any datagram that carries the right command and a six bit number, with no
//     authentication at all: one forged packet would read "off". The wire follows the handshake,
//     derives the same keys and passes on only packets whose authentication code is right.
//   - The client panics in a goroutine of its own on a ciphertext of odd length, where nobody can
//     recover. The wire passes on only what decrypts.
//   - An answer that comes after its question was repeated would be taken for the answer to the next
//     question of the handshake. The wire passes on only the type that is waited for.
//   - The client repeats a lost request on its own. The wire lets one chassis control packet through
//     for each permission, so that each has had its gate, and refuses any other control than the
//     permitted one.
type wire struct {
	net.Conn
	alg      algorithms
	password string

	mu        sync.Mutex
	seen      facts
	phase     phase
	last      []byte // the last packet of the handshake, to notice repetition
	rakp1     []byte // payload of the RAKP message 1 sent
	k1, k2    []byte
	armed     bool
	control   chassis.ChassisControl
	commands  int // power commands written
	forbidden bool
	shut      bool
}

// facts are what the wire saw of a login. The client's errors do not tell: it prints the causes of a
// failed handshake into one text.
type facts struct {
	inSession bool
	heard     bool                 // something usable came back
	repeated  bool                 // some packet of the handshake went out twice
	weaker    bool                 // the BMC offered other algorithms than asked for
	late      bool                 // the newest wait for a packet ended with none
	status    types.RmcpStatusCode // the refusal in the newest handshake packet
	err       error                // the newest error of the socket, a timeout excepted
}

// algorithms are what a cipher suite stands for (IPMI 2.0 table 22-20).
type algorithms struct {
	auth  types.AuthAlg
	integ types.IntegrityAlg
	crypt types.CryptAlg
}

// dialer opens the one socket of one login; go-ipmi calls it in place of its own dialling, which
// knows neither contexts nor IPv6 addresses.
type dialer struct {
	ctx  context.Context
	host string
	port uint16
	w    *wire
}

// Dial is golang.org/x/net/proxy.Dialer; the address asked for is ours anyway.
func (d *dialer) Dial(string, string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(d.ctx, "udp", net.JoinHostPort(d.host, strconv.Itoa(int(d.port))))
	if err != nil {
		return nil, err
	}
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.w.shut || d.w.Conn != nil {
		c.Close()
		return nil, net.ErrClosed
	}
	d.w.Conn = c
	return d.w, nil
}

// shutdown closes the socket, if there is one, for good. It may be called more than once.
func (w *wire) shutdown() {
	w.mu.Lock()
	c := w.Conn
	was := w.shut
	w.shut = true
	w.mu.Unlock()
	if c != nil && !was {
		c.Close()
	}
}

// Close is shutdown for go-ipmi.
func (w *wire) Close() error { w.shutdown(); return nil }

// arm lets exactly one chassis control packet of this kind through. It reports false after forbid.
func (w *wire) arm(c chassis.ChassisControl) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut || w.forbidden {
		return false
	}
	w.armed, w.control = true, c
	return true
}

// forbid lets no power command through from now on and returns how many have been written. The
// socket stays open for the logout.
func (w *wire) forbid() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, w.forbidden = false, true
	return w.commands
}

// disarm takes the permission back and returns how many power commands have been written.
func (w *wire) disarm() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = false
	return w.commands
}

// facts returns what was seen so far.
func (w *wire) facts() facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.seen
	f.inSession = w.phase == phaseSession
	return f
}

// note remembers an error of the socket. w.mu is held.
func (w *wire) note(err error) {
	var ne net.Error
	switch {
	case err == nil:
	case errors.As(err, &ne) && ne.Timeout():
		w.seen.late = true
	default:
		w.seen.err = err
	}
}

// Write sends one packet and notes what it asks for.
func (w *wire) Write(p []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.note(err) }()
	if w.shut {
		return 0, net.ErrClosed
	}
	if len(p) > offPayload && p[offAuthType] != byte(types.AuthTypeRMCPPlus) {
		w.phase = phaseCaps
		return w.Conn.Write(p)
	}
	if len(p) < offData {
		return 0, errSilenced
	}
	switch types.PayloadType(p[offPayload] & 0x3f) {
	case types.PayloadTypeRmcpOpenSessionRequest:
		w.phase = phaseOpen
	case types.PayloadTypeRAKPMessage1:
		w.phase, w.rakp1 = phaseRAKP2, bytes.Clone(p[offData:])
	case types.PayloadTypeRAKPMessage3:
		w.phase = phaseRAKP4
	case types.PayloadTypeIPMI:
		power, err := w.checkCommand(p)
		if err != nil {
			return 0, err
		}
		w.phase = phaseSession
		n, err = w.Conn.Write(p)
		if power && err == nil {
			w.commands++
		}
		return n, err
	default:
		return 0, errSilenced
	}
	w.seen.repeated = w.seen.repeated || bytes.Equal(p, w.last)
	w.last = bytes.Clone(p)
	return w.Conn.Write(p)
}

// checkCommand looks into a packet of the session, tells whether it is a power command, and stops
// one that is not permitted. A permission is used up by it.
func (w *wire) checkCommand(p []byte) (power bool, err error) {
	if p[offPayload]&flagsSession != flagsSession {
		return false, errSilenced // nothing leaves in clear text
	}
	n := int(binary.LittleEndian.Uint16(p[offLength:]))
	if offData+n > len(p) {
		return false, errSilenced
	}
	msg, err := crypto.DecryptAESPayload(p[offData:offData+n], w.k2)
	if err != nil || len(msg) < 7 { // address, function, checksum, address, sequence, command, checksum
		return false, errSilenced
	}
	fn, cmd := types.NetFn(msg[1]>>2), msg[5]
	if fn != types.CommandChassisControl.NetFn || cmd != types.CommandChassisControl.ID {
		return false, nil
	}
	if !w.armed || len(msg) < 8 || chassis.ChassisControl(msg[6]) != w.control {
		return false, errNotArmed
	}
	w.armed = false
	return true, nil
}

// Read returns the next packet that can be the answer to the last one written.
func (w *wire) Read(b []byte) (int, error) {
	for {
		n, err := w.Conn.Read(b)
		if err != nil {
			w.mu.Lock()
			w.note(err)
			w.mu.Unlock()
			return 0, err
		}
		if w.accept(b[:n]) {
			return n, nil
		}
	}
}

// accept judges one datagram.
func (w *wire) accept(p []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(p) < offLength || p[0] != 6 || p[3]&0x1f != byte(types.MessageClassIPMI) {
		return false
	}
	ok := false
	if w.phase == phaseCaps {
		// IPMI 1.5 format without a session: authentication type 0, length at 13, then an IPMB message.
		ok = p[offAuthType] == 0 && p[13] >= 8 && len(p) >= offLength+int(p[13])
	} else if p[offAuthType] == byte(types.AuthTypeRMCPPlus) && len(p) >= offData {
		n := int(binary.LittleEndian.Uint16(p[offLength:]))
		if offData+n > len(p) {
			return false
		}
		data := p[offData : offData+n]
		if w.phase != phaseSession && len(data) < 8 {
			return false
		}
		switch w.phase {
		case phaseOpen:
			ok = p[offPayload] == byte(types.PayloadTypeRmcpOpenSessionResponse) && w.acceptOpen(data)
		case phaseRAKP2:
			ok = p[offPayload] == byte(types.PayloadTypeRAKPMessage2) && w.acceptRAKP2(data)
		case phaseRAKP4:
			ok = p[offPayload] == byte(types.PayloadTypeRAKPMessage4)
		case phaseSession:
			return w.heardIf(w.acceptSession(p, data))
		}
		if ok {
			w.seen.status = types.RmcpStatusCode(data[1])
		}
	}
	return w.heardIf(ok)
}

func (w *wire) heardIf(ok bool) bool {
	if ok {
		w.seen.heard, w.seen.late = true, false
	}
	return ok
}

// acceptOpen refuses other algorithms than those asked for: the client would use whatever it is
// told, "none" included (IPMI 2.0 table 13-10).
func (w *wire) acceptOpen(data []byte) bool {
	if data[1] != 0 {
		return true // a refusal, which the client reports
	}
	if len(data) < 36 {
		return false
	}
	same := data[16]&0x3f == byte(w.alg.auth) && data[24]&0x3f == byte(w.alg.integ) && data[32]&0x3f == byte(w.alg.crypt)
	w.seen.weaker = w.seen.weaker || !same
	return same
}

// acceptRAKP2 derives the session's keys (IPMI 2.0 sections 13.31 and 13.32). Whether the BMC knows
// the password is checked by the client, from the same packet.
func (w *wire) acceptRAKP2(data []byte) bool {
	if data[1] != 0 {
		return true
	}
	if len(data) < 40 || len(w.rakp1) < 28 || len(w.rakp1) < 28+int(w.rakp1[27]) {
		return false
	}
	user := string(w.rakp1[28 : 28+int(w.rakp1[27])])
	_, k1, k2, err := crypto.DeriveSessionKeys(w.alg.auth, w.rakp1[8:24], data[8:24], w.rakp1[24], user, crypto.PadPassword20([]byte(w.password)))
	if err != nil {
		return false
	}
	w.k1, w.k2 = k1, k2
	return true
}

// acceptSession checks the authentication code (IPMI 2.0 section 13.28.4) and that the payload
// decrypts to an IPMB response.
func (w *wire) acceptSession(p, data []byte) bool {
	if p[offPayload] != flagsSession|byte(types.PayloadTypeIPMI) || len(data) < 32 || len(data)%16 != 0 {
		return false
	}
	codeLen, ok := crypto.IntegrityAuthCodeLen(w.alg.integ)
	if !ok || codeLen == 0 || len(w.k1) == 0 {
		return false
	}
	end := offData + len(data) + types.IntegrityPadLen(sessionHead, len(data)) + 2 // pad length, next header
	if len(p) < end+codeLen {
		return false
	}
	want, err := crypto.SessionIntegrityAuthCode(w.alg.integ, p[offAuthType:end], w.k1, w.password)
	if err != nil || !hmac.Equal(want, p[end:end+codeLen]) {
		return false
	}
	msg, err := crypto.DecryptAESPayload(data, w.k2)
	return err == nil && len(msg) >= 8
}
