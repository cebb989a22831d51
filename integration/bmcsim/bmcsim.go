// Package bmcsim is a BMC for labs and tests: RMCP+ (IPMI 2.0 section 13) on a real UDP socket, a
// chassis that really ends and revives something, faults that can be switched while it runs, and a
// record of every power command that does not depend on what the fencing side believes. The
// protocol is go-ipmi's server; only the hardware behind it, the socket in front of it and the
// faults are ours.
package bmcsim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/picket-ha/picket/fencing"
)

// Limits.
const (
	// MaxEvents is how many events are kept; older ones are forgotten (Record saw them all).
	MaxEvents = 4096
	// maxQueued bounds the power commands accepted and not yet carried out; past it the BMC is "busy".
	maxQueued = 16
	// lanUser is the slot of the one user; slot 1 is the anonymous user of IPMI 2.0 section 22.27.
	lanUser = 2
)

// Chassis is the machine behind the BMC. Calls are never concurrent with each other, except On.
type Chassis interface {
	// On reports whether the machine runs. It must not block.
	On() bool
	// PowerOff ends the machine and returns when nothing of it runs any more. The BMC goes on
	// reporting "on" until it has returned. Off already is success.
	PowerOff() error
	// PowerOn starts the machine. On already is success.
	PowerOn() error
}

// GUIDOrder is the byte order in which the GUID goes on the wire; real BMCs use all three.
type GUIDOrder int

// The byte orders.
const (
	OrderSMBIOS  GUIDOrder = iota // first three fields little-endian (DSP0134 section 7.2.1): what most vendors do
	OrderRFC4122                  // as written
	OrderIPMI                     // wholly reversed (IPMI 2.0 section 20.8)
)

// Options describes one BMC.
type Options struct {
	// Addr is the "ip:port" to listen on; port 0 picks one (see Addr). Not used when Conn is set.
	Addr string
	// Conn is a socket the caller bound, for example in another network namespace. Close closes it.
	Conn net.PacketConn
	// User (at most 16 bytes) and Password (at most 20 bytes) are of the one account.
	User, Password string
	// GUID is what the BMC calls its machine, as text; empty behaves as the NoGUID fault does.
	GUID  string
	Order GUIDOrder
	// Sessions is the number of session slots; 4 (the least IPMI 2.0 section 6.12.15 allows) if 0.
	// When all are taken the least recently used session is dropped, as most BMCs do.
	Sessions int
	// OperatorOnly limits the account to the Operator privilege.
	OperatorOnly bool
	// Suites are the RMCP+ cipher suites offered, of 3 and 17; both if empty.
	Suites  []int
	Chassis Chassis
	// Logger may be nil.
	Logger *slog.Logger
	// Record, when set, is called with every event, in order, never concurrently. It must not call
	// the BMC and must not block for long: the BMC answers after it.
	Record func(Event)
}

// EventKind says what an event is about.
type EventKind string

// The kinds of events.
const (
	EventSession EventKind = "session" // a session was opened
	EventClose   EventKind = "close"   // a session was closed by its owner
	EventPower   EventKind = "power"   // a chassis control command arrived; retransmissions arrive too
	EventChassis EventKind = "chassis" // the machine was switched (or failed to be: Err)
)

// Event is one line of the BMC's own record.
type Event struct {
	Time time.Time
	Kind EventKind
	// Op is down, up, cycle, reset, soft or pulse-nmi; for EventChassis it is down or up.
	Op string
	// From is the address of the console; empty for EventChassis.
	From string
	// Lied is true for a command that was answered with OK and not carried out.
	Lied bool
	Err  string
}

// Faults are switched while the BMC runs. The zero value is a healthy BMC.
type Faults struct {
	// Dead: no packet is read or answered.
	Dead bool
	// Slow delays each answer.
	Slow time.Duration
	// LieOK: commands are answered with OK and not carried out; the status stays true.
	LieOK bool
	// LieOff: as LieOK, and after a "down" the status says off while the machine runs.
	LieOff bool
	// WrongGUID: the BMC names another machine. NoGUID: it does not know the command.
	WrongGUID, NoGUID bool
	// RejectLogin: the password is refused.
	RejectLogin bool
	// DropResponses swallows that many answers, then works again.
	DropResponses int
}

// BMC is one running BMC.
type BMC struct {
	opt    Options
	log    *slog.Logger
	guid   [16]byte
	hasID  bool
	conn   *conn
	bmc    *bmc.BMC
	srv    *server.Server
	cancel context.CancelFunc
	orders chan string
	done   sync.WaitGroup

	mu       sync.Mutex
	faults   Faults
	events   []Event
	pending  int                  // accepted power commands not yet carried out
	goingOff bool                 // PowerOff has been called and has not returned
	fakeOff  bool                 // LieOff answered a "down"
	sessions map[uint32]time.Time // last use, for dropping the least recently used

	recMu sync.Mutex // keeps Record in order
}

// New starts a BMC. It is ready for packets when New returns. Errors: bad options, or the address
// cannot be bound.
func New(opt Options) (*BMC, error) {
	if opt.Chassis == nil {
		return nil, errors.New("bmcsim: no chassis given")
	}
	if opt.User == "" || len(opt.User) > 16 || opt.Password == "" || len(opt.Password) > 20 {
		return nil, errors.New("bmcsim: user must be 1 to 16 bytes and password 1 to 20")
	}
	for _, n := range opt.Suites {
		if n != 3 && n != 17 {
			return nil, fmt.Errorf("bmcsim: cipher suite %d is not offered: use 3 or 17", n)
		}
	}
	if opt.Sessions <= 0 {
		opt.Sessions = bmc.MaxSessions
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	b := &BMC{opt: opt, log: opt.Logger, orders: make(chan string, 2*maxQueued), sessions: map[uint32]time.Time{}}
	if opt.GUID != "" {
		g, err := wireGUID(opt.GUID, opt.Order)
		if err != nil {
			return nil, fmt.Errorf("bmcsim: %w", err)
		}
		b.guid, b.hasID = g, true
	}
	pc := opt.Conn
	if pc == nil {
		var err error
		if pc, err = net.ListenPacket("udp", opt.Addr); err != nil {
			return nil, fmt.Errorf("bmcsim: listen on %s: %w", opt.Addr, err)
		}
	}
	b.conn = newConn(pc, b)
	if err := b.serve(); err != nil {
		pc.Close()
		return nil, err
	}
	return b, nil
}

// serve builds go-ipmi's BMC and starts the two goroutines: packets and power.
func (b *BMC) serve() error {
	info := bmc.DeviceInfo{DeviceID: 0x20, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x20, AdditionalDeviceSupport: 0x80}
	b.bmc = bmc.New(info, b.guid, hardware{b}, bmc.WithV15Disabled())
	store := bmc.NewSessionStoreWithOptions(b.bmc.Clock(), bmc.WithMaxSessions(b.opt.Sessions))
	store.SetOnRemove(b.bmc.SOL.DeactivateBySession)
	b.bmc.Sessions = store
	u, err := b.bmc.Users.Add(lanUser, b.opt.User)
	if err != nil {
		return fmt.Errorf("bmcsim: add user: %w", err)
	}
	u.SetPassword([]byte(b.opt.Password))
	u.Enabled = true
	level := bmc.PrivilegeLevelAdministrator
	if b.opt.OperatorOnly {
		level = bmc.PrivilegeLevelOperator
	}
	u.ChannelAccess[1] = bmc.UserChannelAccess{MaxPrivilege: level, Enabled: true}
	suites := []types.CipherSuiteID{types.CipherSuiteID3, types.CipherSuiteID17}
	if len(b.opt.Suites) > 0 {
		suites = nil
		for _, n := range b.opt.Suites {
			suites = append(suites, types.CipherSuiteID(n))
		}
	}
	b.bmc.SetCipherSuites(suites)

	reg := handlers.NewRegistry()
	reg.Use(b.watchSessions) // before any Register: middleware is bound at registration
	handlers.RegisterAllHandlers(reg)
	b.registerOwn(reg)
	b.srv = server.NewServer(b.bmc, b.conn, server.WithHandlerRegistry(reg))

	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.done.Add(2)
	go func() {
		defer b.done.Done()
		if err := b.srv.Serve(ctx); err != nil && ctx.Err() == nil {
			b.log.Error("bmcsim stopped serving", "err", err)
		}
	}()
	go func() {
		defer b.done.Done()
		b.actuate(ctx)
	}()
	return nil
}

// Addr is the address the BMC listens on.
func (b *BMC) Addr() net.Addr { return b.conn.LocalAddr() }

// Close ends the BMC: it answers nothing any more and carries out nothing that is still queued. It
// waits for a running Chassis call, so a Chassis must not call it. A second Close does nothing.
func (b *BMC) Close() error {
	b.cancel()
	err := b.srv.Close()
	b.done.Wait()
	return err
}

// Faults returns the faults in force, with DropResponses counted down.
func (b *BMC) Faults() Faults {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults
}

// SetFaults replaces the faults in force; Faults{} heals the BMC.
func (b *BMC) SetFaults(f Faults) {
	b.mu.Lock()
	was := b.faults
	b.faults = f
	if !f.LieOff {
		b.fakeOff = false
	}
	b.mu.Unlock()
	if was.RejectLogin == f.RejectLogin {
		return
	}
	pass := []byte(b.opt.Password)
	if f.RejectLogin {
		pass = []byte(rand.Text())[:20]
	}
	err := b.bmc.Users.Update(lanUser, func(u *bmc.User) error { u.SetPassword(pass); return nil })
	if err != nil {
		b.log.Error("bmcsim cannot change the password", "err", err)
	}
}

// Events returns the newest MaxEvents events, oldest first.
func (b *BMC) Events() []Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Event(nil), b.events...)
}

// PowerCommands returns the chassis control commands received so far, oldest first: the
// independent record that tests hold against what the fencing side reports.
func (b *BMC) PowerCommands() []Event {
	var out []Event
	for _, e := range b.Events() {
		if e.Kind == EventPower {
			out = append(out, e)
		}
	}
	return out
}

// OpenSessions is the number of session slots in use.
func (b *BMC) OpenSessions() int { return b.bmc.Sessions.Count() }

// record appends an event and tells the caller's Record.
func (b *BMC) record(e Event) {
	b.recMu.Lock()
	defer b.recMu.Unlock()
	e.Time = time.Now()
	b.mu.Lock()
	if len(b.events) >= MaxEvents {
		b.events = append(b.events[:0], b.events[1:]...)
	}
	b.events = append(b.events, e)
	b.mu.Unlock()
	b.log.Debug("bmcsim", "kind", e.Kind, "op", e.Op, "from", e.From, "lied", e.Lied, "err", e.Err)
	if b.opt.Record != nil {
		b.opt.Record(e)
	}
}

// wireGUID turns a UUID's text into the bytes a BMC of that order sends.
func wireGUID(text string, order GUIDOrder) ([16]byte, error) {
	c, err := fencing.CanonicalUUID(text)
	if err != nil {
		return [16]byte{}, err
	}
	g, err := parseCanonical(c)
	if err != nil {
		return g, err
	}
	switch order {
	case OrderSMBIOS:
		g[0], g[1], g[2], g[3] = g[3], g[2], g[1], g[0]
		g[4], g[5] = g[5], g[4]
		g[6], g[7] = g[7], g[6]
	case OrderIPMI:
		for i, j := 0, 15; i < j; i, j = i+1, j-1 {
			g[i], g[j] = g[j], g[i]
		}
	case OrderRFC4122:
	default:
		return g, fmt.Errorf("guid order %d is not known", order)
	}
	return g, nil
}
