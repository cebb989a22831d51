package ipmi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/picket-ha/picket/fencing"
)

const (
	// maxLogins bounds the logins of one call, each on a socket of its own.
	maxLogins = 3
	// loginPause is the pause before another login where the BMC had no free session.
	loginPause = 300 * time.Millisecond
)

// session is one login. It is used by one goroutine.
type session struct {
	d *Device
	c *client.Client
	w *wire
}

// suiteAlgorithms gives the three algorithms of a cipher suite.
func suiteAlgorithms(suite int) (algorithms, error) {
	if suite != 3 && suite != 17 {
		return algorithms{}, fmt.Errorf("cipher suite %d is not supported: use 3 or 17", suite)
	}
	a, i, c, ok := types.GetCipherSuiteAlgorithms(types.CipherSuiteID(suite))
	if !ok {
		return algorithms{}, fmt.Errorf("cipher suite %d is not known", suite)
	}
	return algorithms{a, i, c}, nil
}

// login opens a session. A login is repeated, on a new socket and with more patience, where the
// failure may be the network's: the handshake has no transaction numbers, so a repeated packet can
// make a good password look wrong.
func (d *Device) login(ctx context.Context, onWire func(*wire) bool) (*session, error) {
	password, err := d.readPassword()
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		s, err := d.loginOnce(ctx, password, try, onWire)
		if err == nil || over(ctx) || try == maxLogins {
			return s, err
		}
		again := errors.Is(err, errRepeated)
		if KindOf(err) == KindBusy {
			again = pause(ctx, loginPause)
		}
		if !again {
			return nil, err
		}
	}
}

// errRepeated marks a login that failed after some packet of it had gone out twice.
var errRepeated = errors.New("a packet of the handshake was repeated")

func (d *Device) loginOnce(ctx context.Context, password string, try int, onWire func(*wire) bool) (*session, error) {
	alg, err := suiteAlgorithms(d.opts.Suite)
	if err != nil {
		return nil, d.fail(KindSuite, err, "cannot be used: %v", err)
	}
	level := types.PrivilegeLevelOperator
	if d.opts.Privilege == Administrator {
		level = types.PrivilegeLevelAdministrator
	}
	w := &wire{alg: alg, password: password}
	if !onWire(w) {
		return nil, d.fail(KindTimeout, nil, "was not asked: the call is over")
	}
	c, err := client.NewClient(d.opts.Host, int(d.opts.Port), d.opts.User, password)
	if err != nil {
		return nil, d.fail(KindLogin, err, "cannot be used: the user name is longer than %d bytes", MaxUser)
	}
	c.WithUDPProxy(&dialer{ctx: ctx, host: d.opts.Host, port: d.opts.Port, w: w}).
		WithCipherSuiteID(types.CipherSuiteID(d.opts.Suite)).
		WithMaxPrivilegeLevel(level).
		WithTimeout(d.opts.Interval * time.Duration(try)).
		WithRetry(d.opts.Retries)
	s := &session{d: d, c: c, w: w}
	if err := c.Connect(ctx); err != nil {
		f := w.facts()
		out := d.explain(ctx, w, "the login", err)
		if f.inSession {
			s.close() // the login itself worked: give the slot back
		}
		w.shutdown()
		if f.repeated && f.heard {
			out = &Error{Kind: KindOf(out), msg: out.Error(), err: errRepeated}
		}
		return nil, out
	}
	return s, nil
}

// close logs out and closes the socket, in bounded time whatever the BMC does. The client's Close
// panics when called twice and waits for an answer as long as it is let: it is called once, here.
func (s *session) close() {
	defer s.w.shutdown()
	ctx, cancel := context.WithTimeout(context.Background(), s.d.CloseWait)
	defer cancel()
	s.c.WithRetry(0)
	if err := s.c.Close(ctx); err != nil {
		s.d.log.Debug("BMC logout was not answered", "bmc", s.d.addr)
	}
}

// guid reads the System GUID (IPMI 2.0 section 22.14), in the byte order sent. Empty: the BMC does
// not tell. An error: the session or the call is over.
func (s *session) guid(ctx context.Context) (string, error) {
	r, err := s.c.GetSystemGUID(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return "", s.d.explain(ctx, s.w, "the question for its GUID", err)
		}
		s.d.log.Debug("BMC does not tell its GUID", "bmc", s.d.addr)
		return "", nil
	}
	return fencing.FormatUUID(r.GUID), nil
}

// identity compares the BMC's GUID with what the node declared.
func (s *session) identity(guid, declared string) fencing.Identity {
	switch {
	case fencing.MatchUUID(guid, declared):
		return fencing.IdentityMatched
	case s.d.opts.TrustIdentity:
		return fencing.IdentityTrusted
	case fencing.FillerUUID(guid), fencing.FillerUUID(declared): // nothing to compare
		return fencing.IdentityUnproven
	}
	return fencing.IdentityMismatch
}

// on reads the power status (IPMI 2.0 section 28.2).
func (s *session) on(ctx context.Context) (bool, error) {
	r, err := s.c.GetChassisStatus(ctx)
	if err != nil {
		return false, s.d.explain(ctx, s.w, "the question for its power status", err)
	}
	return r.PowerIsOn, nil
}

// control sends one power command, in one packet that is never repeated, and waits for the answer.
// sent tells whether it left; a nil error that the BMC accepted it.
func (s *session) control(ctx context.Context, op fencing.Op) (sent bool, err error) {
	c := chassis.ChassisControlPowerDown
	if op == fencing.OpOn {
		c = chassis.ChassisControlPowerUp
	}
	before := s.w.disarm()
	if !s.w.arm(c) {
		return false, s.d.fail(KindTimeout, nil, "was not sent the command: the call is over")
	}
	s.c.WithRetry(0)
	_, err = s.c.ChassisControl(ctx, c)
	s.c.WithRetry(s.d.opts.Retries)
	sent = s.w.disarm() > before
	if err != nil {
		err = s.d.explain(ctx, s.w, "the power command", err)
	}
	return sent, err
}

// pause waits, and reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
