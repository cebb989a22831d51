// Package fencing is the contract between those who decide that a node must be provably dead and
// the devices that make it so. It is pure: it reads no clock, opens nothing and starts nothing, so
// that the state machine can import it and judge a [Report] the same way on every node. The
// devices live in sub-rooms (fencing/ipmi).
package fencing

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Op is a power operation. Only idempotent ones exist: a BMC that gets the same command twice,
// because an answer was lost on the way, must end in the same state. Cycle and reset are missing
// on purpose: a lost answer would run them again, and "on" afterwards proves nothing.
type Op string

// The operations.
const (
	OpOff Op = "off" // IPMI chassis control 0, power down (IPMI 2.0 section 28.3)
	OpOn  Op = "on"  // IPMI chassis control 1, power up
)

// Identity says how sure we are that the device belongs to the node we mean.
type Identity string

// The identities, from best to worst.
const (
	// IdentityMatched: the device named itself in the same session and it is the node's machine.
	IdentityMatched Identity = "matched"
	// IdentityTrusted: the operator's word in the configuration stands in for a match.
	IdentityTrusted Identity = "trusted"
	// IdentityUnproven: the device does not tell, or the node never declared its machine's UUID.
	IdentityUnproven Identity = "unproven"
	// IdentityMismatch: the device named another machine. Nothing is ever sent to it.
	IdentityMismatch Identity = "mismatch"
)

// Outcome is how one attempt ended.
type Outcome string

// The outcomes. Only OutcomeOff can ever become evidence of death.
const (
	OutcomeOff     Outcome = "off"     // read back off at least twice in a row
	OutcomeOn      Outcome = "on"      // read back on
	OutcomeFailed  Outcome = "failed"  // the device did not answer, refused, or did not do it
	OutcomeRefused Outcome = "refused" // the gate said no, or the identity mismatched; no command was sent after that
	OutcomeExpired Outcome = "expired" // the deadline came first; a command may or may not have arrived
)

// Limits on a [Report], so that one attempt is a small log entry whatever a device says.
const (
	// MaxDetail is the longest Detail, in bytes.
	MaxDetail = 200
	// MaxSent is the largest number of power commands one attempt may send.
	MaxSent = 3
	// NeedOffReadings is how many consecutive "off" readings make OutcomeOff.
	NeedOffReadings = 2
)

// Report is what one attempt at one device did. It travels in the log as JSON; durations are in
// nanoseconds.
type Report struct {
	Op      Op      `json:"op"`
	Outcome Outcome `json:"outcome"`
	// Detail is one sentence for people, at most MaxDetail bytes, never a secret.
	Detail string `json:"detail,omitempty"`
	// GUID is what the BMC called itself in this session (Get System GUID, IPMI 2.0 section 22.14),
	// in the byte order it sent, as 8-4-4-4-12 lower case hex. Empty when it could not be read.
	// Compare it with MatchUUID, never with ==.
	GUID     string   `json:"guid,omitempty"`
	Identity Identity `json:"identity"`
	// OffReadings counts the consecutive "off" readings at the end: after the last command, or from
	// the start when the machine was off already.
	OffReadings int `json:"off_readings"`
	// AlreadyOff is true when the first reading was off, so that no command was needed.
	AlreadyOff bool `json:"already_off,omitempty"`
	// Sent counts the power commands put on the wire, retransmissions excluded. A command whose
	// answer never came counts.
	Sent int `json:"sent"`
	// Took is the whole attempt; Login the time until the session was open; Power the time from the
	// first power command (or the first reading, if none was needed) to the end.
	Took  time.Duration `json:"took_ns"`
	Login time.Duration `json:"login_ns"`
	Power time.Duration `json:"power_ns"`
}

// Check returns an error that says what makes no sense in a report, or nil. Whoever takes a report
// from another node calls it before believing a word: it bounds every field and refuses an
// "off" that was not read back NeedOffReadings times, or that comes with a mismatch.
func (r Report) Check() error {
	switch {
	case r.Op != OpOff && r.Op != OpOn:
		return fmt.Errorf("fence report: operation %q is not known: want off or on", clip(string(r.Op)))
	case !r.Outcome.known():
		return fmt.Errorf("fence report: outcome %q is not known", clip(string(r.Outcome)))
	case !r.Identity.known():
		return fmt.Errorf("fence report: identity %q is not known", clip(string(r.Identity)))
	case len(r.Detail) > MaxDetail:
		return fmt.Errorf("fence report: detail is %d bytes long: at most %d are allowed", len(r.Detail), MaxDetail)
	case !utf8.ValidString(r.Detail):
		return errors.New("fence report: detail is not valid UTF-8")
	case r.Sent < 0 || r.Sent > MaxSent:
		return fmt.Errorf("fence report: %d commands sent: 0 to %d are possible", r.Sent, MaxSent)
	case r.OffReadings < 0:
		return fmt.Errorf("fence report: %d off readings are impossible", r.OffReadings)
	case r.Took < 0 || r.Login < 0 || r.Power < 0:
		return errors.New("fence report: a duration is negative")
	}
	if r.GUID != "" {
		if c, err := CanonicalUUID(r.GUID); err != nil || c != r.GUID {
			return fmt.Errorf("fence report: guid %q is not in canonical form", clip(r.GUID))
		}
	}
	return r.checkClaims()
}

// checkClaims refuses combinations of fields that no honest device can report.
func (r Report) checkClaims() error {
	switch {
	case r.Outcome == OutcomeOff && r.Op != OpOff, r.Outcome == OutcomeOn && r.Op != OpOn:
		return fmt.Errorf("fence report: outcome %q cannot come of operation %q", r.Outcome, r.Op)
	case r.Outcome == OutcomeOff && r.OffReadings < NeedOffReadings:
		return fmt.Errorf("fence report: outcome off with %d off readings: %d in a row are needed", r.OffReadings, NeedOffReadings)
	case r.Outcome == OutcomeOff && r.Sent == 0 && !r.AlreadyOff:
		return errors.New("fence report: outcome off, but no command was sent and the machine was not off already")
	case r.Identity == IdentityMismatch && (r.Outcome == OutcomeOff || r.Outcome == OutcomeOn || r.Sent > 0):
		return errors.New("fence report: a device of another machine was used")
	case r.Identity == IdentityMatched && r.GUID == "":
		return errors.New("fence report: identity matched, but no guid was read")
	}
	return nil
}

func (o Outcome) known() bool {
	switch o {
	case OutcomeOff, OutcomeOn, OutcomeFailed, OutcomeRefused, OutcomeExpired:
		return true
	}
	return false
}

func (i Identity) known() bool {
	switch i {
	case IdentityMatched, IdentityTrusted, IdentityUnproven, IdentityMismatch:
		return true
	}
	return false
}

// Gate is asked immediately before each power command. An error means: do not send. It is how a
// late shot is stopped: the caller checks there that its leadership and the intent still stand.
// It must return when ctx ends.
type Gate func(ctx context.Context) error

// Status is what a device answers when asked, with no power command sent.
type Status struct {
	On       bool
	GUID     string // as Report.GUID
	Identity Identity
	Took     time.Duration // from the call to the answer
}

// Device is one way to switch one node. An implementation may be called from many goroutines.
type Device interface {
	// Describe names the device for people, for example "ipmi 10.0.0.1:623 as admin". No secrets.
	Describe() string
	// Verify logs in, reads the identity and the power status, and sends no power command. On a
	// mismatch it returns what it read together with an error.
	Verify(ctx context.Context) (Status, error)
	// Power performs one operation and reads the result back. It asks gate immediately before each
	// power command. It never panics and always returns by ctx's deadline (plus 100 ms at most).
	Power(ctx context.Context, op Op, gate Gate) Report
}

// ClipDetail makes any text fit Report.Detail: one line, valid UTF-8, at most MaxDetail bytes.
func ClipDetail(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) <= MaxDetail {
		return s
	}
	cut := MaxDetail - len("...")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}
