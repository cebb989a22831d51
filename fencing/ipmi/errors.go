package ipmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Kind classifies what went wrong with a BMC.
type Kind string

// The kinds.
const (
	KindUnreachable Kind = "unreachable" // nothing came back, or there is no route or no such name
	KindRefused     Kind = "refused"     // the machine answers, but nothing listens on the port
	KindLogin       Kind = "login"       // wrong user or password
	KindPrivilege   Kind = "privilege"   // the account may not do this
	KindSuite       Kind = "suite"       // the BMC does not offer the cipher suite
	KindBusy        Kind = "busy"        // no session slot is free, or an earlier call still runs
	KindTimeout     Kind = "timeout"     // it answered at first and not in time later
	KindPassword    Kind = "password"    // our own password file or environment is not usable
	KindIdentity    Kind = "identity"    // it is the BMC of another machine
	KindProtocol    Kind = "protocol"    // it answered something else than IPMI asks for
)

// Error is one sentence that names the BMC and what to check. It holds no secret.
type Error struct {
	Kind Kind
	msg  string
	err  error
}

// Error is the sentence.
func (e *Error) Error() string { return e.msg }

// Unwrap is the cause, or nil.
func (e *Error) Unwrap() error { return e.err }

// KindOf is the kind of an error of this package, or "".
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

func (d *Device) fail(k Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: k, err: cause, msg: "BMC at " + d.addr + " " + fmt.Sprintf(format, args...)}
}

// explain turns an error of the library into one of ours. ctx is the call's: its state counts for
// more than the error, which is not reliably context.DeadlineExceeded.
func (d *Device) explain(ctx context.Context, w *wire, what string, err error) error {
	var own *Error
	if errors.As(err, &own) {
		return err
	}
	f := w.facts()
	var dns *net.DNSError
	var resp *types.ResponseError
	switch {
	case errors.As(err, &dns) && !over(ctx):
		return d.fail(KindUnreachable, err, "has no address: the name cannot be resolved; check -H and DNS, or give the address")
	case errors.Is(f.err, syscall.ECONNREFUSED):
		return d.fail(KindRefused, err, "refuses connections: nothing listens on that UDP port; check -H and -p, and that IPMI over LAN is enabled")
	case unreachable(err), unreachable(f.err):
		return d.fail(KindUnreachable, err, "cannot be reached: no route; check -H and this node's network to the BMC")
	case f.status != types.RmcpStatusCodeNoErrors:
		return d.explainStatus(f.status, err)
	case strings.Contains(err.Error(), client.ErrRAKPAuthentication.Error()):
		return d.fail(KindLogin, err, "does not accept user %s with this password; check -U and the password file", d.opts.User)
	case errors.As(err, &resp):
		return d.explainCode(what, resp)
	case f.weaker:
		return d.fail(KindSuite, err, "offers weaker algorithms than cipher suite %d; enable the suite in the BMC or choose -C 3 or 17", d.opts.Suite)
	case !f.heard:
		return d.fail(KindUnreachable, err, "does not answer; check -H and -p, the cable, and that IPMI over LAN is enabled")
	case over(ctx) || f.late:
		return d.fail(KindTimeout, err, "stopped answering during %s; check its load and the network to it", what)
	}
	return d.fail(KindProtocol, err, "answered %s in a way that is not IPMI 2.0; check -H, -p and its firmware", what)
}

// explainStatus explains a refusal of the handshake (IPMI 2.0 table 13-15).
func (d *Device) explainStatus(code types.RmcpStatusCode, e error) error {
	switch code {
	case types.RmcpStatusCodeUnauthorizedName, types.RmcpStatusCodeInvalidNameLength, types.RmcpStatusCodeInvalidIntegrityCheckValue:
		return d.fail(KindLogin, e, "does not accept user %s with this password; check -U and the password file", d.opts.User)
	case types.RmcpStatusCodeInvalidRole, types.RmcpStatusCodeUnauthorizedRoleOfPriLevel:
		return d.fail(KindPrivilege, e, "does not let user %s in as %s; raise the account's LAN privilege or choose another -L", d.opts.User, d.opts.Privilege)
	case types.RmcpStatusCodeInvalidAuthAlg, types.RmcpStatusCodeInvalidIntegrityAlg, types.RmcpStatusCodeNoMatchingAuthPayload,
		types.RmcpStatusCodeNoMatchingIntegrityPayload, types.RmcpStatusCodeInvalidConfidentAlg, types.RmcpStatusCodeNoCipherSuiteMatch:
		return d.fail(KindSuite, e, "does not offer cipher suite %d; choose -C 3 or 17, or enable the suite in the BMC", d.opts.Suite)
	case types.RmcpStatusCodeNoResToCreateSess, types.RmcpStatusCodeNoResToCreateSessAtRole,
		types.RmcpStatusCodeInvalidSessionID, types.RmcpStatusCodeInactiveSessionID:
		return d.fail(KindBusy, e, "has no free session; check who else is logged in to it")
	}
	return d.fail(KindProtocol, e, "refused the login with RMCP+ status %#02x; check its IPMI settings", uint8(code))
}

// explainCode explains a completion code (IPMI 2.0 table 5-2).
func (d *Device) explainCode(what string, e *types.ResponseError) error {
	switch cc := e.CompletionCode(); cc {
	case types.CodeInsufficientPrivilege, types.CodeSetSessionPrivilegeLevelLevelNotAvailable, types.CodeSetSessionPrivilegeLevelExceedsLimit:
		return d.fail(KindPrivilege, e, "does not allow user %s %s as %s; raise the account's LAN privilege or choose another -L", d.opts.User, what, d.opts.Privilege)
	case types.CodeNodeBusy, types.CodeOutOfSpace, types.CodeProcessTimeout:
		return d.fail(KindBusy, e, "is too busy for %s (completion code %#02x); check its load", what, uint8(cc))
	case types.CodeOK:
		return d.fail(KindProtocol, e, "answered %s with too few bytes; check its firmware", what)
	default:
		return d.fail(KindProtocol, e, "refused %s with completion code %#02x; check its settings and firmware", what, uint8(cc))
	}
}

func unreachable(err error) bool {
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// over reports whether ctx has ended or is about to: a socket's deadline set from ctx's fires a
// little before ctx itself does.
func over(ctx context.Context) bool {
	at, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(at) < 5*time.Millisecond
}
