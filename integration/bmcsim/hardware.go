package bmcsim

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// hardware is go-ipmi's hardware abstraction over a BMC: a chassis and nothing else.
type hardware struct{ b *BMC }

func (h hardware) Chassis() hal.ChassisHAL { return h }
func (hardware) Sensors() hal.SensorHAL    { return nil }
func (hardware) Storage() hal.StorageHAL   { return nil }
func (hardware) Network() hal.NetworkHAL   { return nil }
func (hardware) GPIO() hal.GPIOHAL         { return nil }
func (hardware) I2C() hal.I2CHAL           { return nil }
func (hardware) Console() hal.ConsoleHAL   { return nil }
func (hardware) Close() error              { return nil }

// PowerState is what Get Chassis Status answers.
func (h hardware) PowerState(context.Context) (bool, error) {
	h.b.mu.Lock()
	fake, going := h.b.fakeOff, h.b.goingOff
	h.b.mu.Unlock()
	switch {
	case fake:
		return false, nil
	case going: // not off before PowerOff has returned, whatever the machine looks like
		return true, nil
	}
	return h.b.opt.Chassis.On(), nil
}

// The power methods are not reached: Chassis Control has a handler of our own, which knows the
// console's address. They refuse rather than act unrecorded.

func (hardware) SetPower(context.Context, bool) error         { return hal.ErrNotSupported }
func (hardware) PowerCycle(context.Context) error             { return hal.ErrNotSupported }
func (hardware) ColdReset(context.Context) error              { return hal.ErrNotSupported }
func (hardware) WarmReset(context.Context) error              { return hal.ErrNotSupported }
func (hardware) Identify(context.Context, uint8) error        { return nil }
func (hardware) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }
func (hardware) SetBootFlags(context.Context, *types.BootOptionParam_BootFlags) error {
	return hal.ErrNotSupported
}
func (hardware) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	return nil, hal.ErrNotSupported
}
func (hardware) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}
func (hardware) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}

// registerOwn adds what go-ipmi's server lacks (Get System GUID) and replaces what we must see.
func (b *BMC) registerOwn(reg *handlers.Registry) {
	reg.RegisterFunc(types.CommandGetSystemGUID, b.handleGUID)
	reg.RegisterFunc(types.CommandGetDeviceGUID, b.handleGUID)
	reg.RegisterFunc(types.CommandChassisControl, b.handleControl)
}

// handleGUID answers Get System GUID (IPMI 2.0 section 22.14).
func (b *BMC) handleGUID(context.Context, *handlers.HandlerContext, []byte) ([]byte, types.CompletionCode, error) {
	f := b.Faults()
	if f.NoGUID || !b.hasID {
		return nil, types.CodeInvalidCommand, nil
	}
	g := b.guid
	if f.WrongGUID {
		for i := range g {
			g[i] ^= byte(0x5a + i)
		}
	}
	return g[:], types.CodeOK, nil
}

// handleControl answers Chassis Control (IPMI 2.0 section 28.3). Like a real BMC it answers when it
// has accepted the command; the machine is switched afterwards.
func (b *BMC) handleControl(_ context.Context, hctx *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
	var typed chassis.ChassisControlRequest
	if err := typed.Unpack(req); err != nil {
		return nil, types.CodeRequestDataTruncated, nil
	}
	name, steps := "", []string(nil)
	switch typed.ChassisControl {
	case chassis.ChassisControlPowerDown:
		name, steps = "down", []string{"down"}
	case chassis.ChassisControlPowerUp:
		name, steps = "up", []string{"up"}
	case chassis.ChassisControlPowerCycle:
		name, steps = "cycle", []string{"down", "up"}
	case chassis.ChassisControlHardReset:
		name, steps = "reset", []string{"down", "up"}
	case chassis.ChassisControlSoftShutdown:
		name = "soft"
	default:
		name = fmt.Sprintf("control-%d", typed.ChassisControl)
	}
	code, lied := b.accept(name, steps)
	b.record(Event{Kind: EventPower, Op: name, From: from(hctx), Lied: lied})
	if code == types.CodeOK && !lied {
		for _, s := range steps {
			b.orders <- s // room for it was counted by accept
		}
	}
	return nil, code, nil
}

// accept decides what becomes of a power command, and reserves room for its steps.
func (b *BMC) accept(name string, steps []string) (types.CompletionCode, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case len(steps) == 0: // soft, nmi: this machine has no operating system to ask
		return types.CodeParameterOutOfRange, false
	case b.faults.LieOff:
		b.fakeOff = name == "down"
		return types.CodeOK, true
	case b.faults.LieOK:
		return types.CodeOK, true
	case b.pending+len(steps) > maxQueued:
		return types.CodeNodeBusy, false
	}
	b.pending += len(steps)
	if steps[0] == "down" && b.pending == len(steps) {
		// From here on "off" needs PowerOff to have returned. Commands queued behind others get there
		// in actuate.
		b.goingOff = b.opt.Chassis.On()
	}
	return types.CodeOK, false
}

// actuate switches the machine, one order after the other, until ctx ends.
func (b *BMC) actuate(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case op := <-b.orders:
			if ctx.Err() != nil {
				return
			}
			var err error
			if op == "down" {
				b.mu.Lock()
				b.goingOff = b.opt.Chassis.On()
				b.mu.Unlock()
				err = b.opt.Chassis.PowerOff()
			} else {
				err = b.opt.Chassis.PowerOn()
			}
			b.mu.Lock()
			b.pending--
			b.goingOff = false
			b.mu.Unlock()
			e := Event{Kind: EventChassis, Op: op}
			if err != nil {
				e.Err = err.Error()
				b.log.Error("bmcsim: the machine did not switch", "op", op, "err", err)
			}
			b.record(e)
		}
	}
}

// watchSessions is middleware that sees each command: it records sessions and remembers their use.
func (b *BMC) watchSessions(next handlers.Handler) handlers.Handler {
	return handlers.HandlerFunc(func(ctx context.Context, hctx *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
		data, code, err := next.Handle(ctx, hctx, req)
		if hctx == nil || hctx.Session == nil {
			return data, code, err
		}
		id := hctx.Session.BMCID
		closing := hctx.Command.NetFn == types.NetFnAppRequest && hctx.Command.ID == types.CommandCloseSession.ID
		b.mu.Lock()
		_, known := b.sessions[id]
		if closing {
			delete(b.sessions, id)
		} else {
			b.sessions[id] = time.Now()
		}
		b.mu.Unlock()
		switch {
		case closing:
			b.record(Event{Kind: EventClose, From: from(hctx)})
		case !known:
			b.record(Event{Kind: EventSession, From: from(hctx)})
		}
		return data, code, err
	})
}

// makeRoom drops the least recently used session when all slots are taken. go-ipmi's server drops
// pending sessions only and would refuse everybody for a minute after four crashed consoles.
func (b *BMC) makeRoom() {
	if b.bmc.Sessions.Count() < b.bmc.Sessions.Cap() {
		return
	}
	b.mu.Lock()
	var oldest uint32
	var when time.Time
	for id, used := range b.sessions {
		if _, err := b.bmc.Sessions.Get(id); err != nil { // expired meanwhile
			delete(b.sessions, id)
			continue
		}
		if oldest == 0 || used.Before(when) {
			oldest, when = id, used
		}
	}
	delete(b.sessions, oldest)
	b.mu.Unlock()
	if oldest != 0 {
		_ = b.bmc.Sessions.Close(oldest) // an error means it closed itself first
	}
}

func from(hctx *handlers.HandlerContext) string {
	if hctx == nil || hctx.Session == nil {
		return ""
	}
	var a net.Addr = hctx.Session.GetAddr()
	if a == nil {
		return ""
	}
	return a.String()
}

func parseCanonical(c string) (g [16]byte, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(c, "-", ""))
	if err != nil || len(raw) != len(g) {
		return g, fmt.Errorf("guid %q is not 16 bytes of hex", c)
	}
	copy(g[:], raw)
	return g, nil
}
