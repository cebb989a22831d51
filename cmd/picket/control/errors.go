package control

import (
	"errors"
	"fmt"
)

// Class sorts errors by what the caller can do about them. Each has an exit code and an HTTP status.
type Class string

// Classes of errors.
const (
	// ClassUsage: the request itself is wrong (unknown name, bad value). Exit 2, HTTP 400.
	ClassUsage Class = "usage"
	// ClassRefused: understood, and refused by the rules or by permission. Exit 4, HTTP 409 or 403.
	ClassRefused Class = "refused"
	// ClassUnavailable: no daemon, no leader, no quorum, or too busy. Nothing was changed. Exit 3, HTTP 503.
	ClassUnavailable Class = "unavailable"
	// ClassUnknown: the change was sent and its outcome is not known (time-out, lost leader). It may
	// still happen: look at status before repeating. Exit 3, HTTP 504.
	ClassUnknown Class = "unknown"
	// ClassInternal: a fault of picket itself. Exit 1, HTTP 500.
	ClassInternal Class = "internal"
)

// Exit codes of every picket command.
const (
	ExitOK          = 0 // fine
	ExitDegraded    = 1 // it works, but the cluster is degraded; or the command failed
	ExitUsage       = 2 // wrong command line or wrong file
	ExitUnavailable = 3 // no daemon, or no quorum
	ExitRefused     = 4 // understood and refused
)

// Error is an error that crosses the socket.
type Error struct {
	Class Class `json:"class"`
	// Code is a reason code, "" when none fits.
	Code string `json:"code,omitempty"`
	// Text is one sentence: what is wrong.
	Text string `json:"text"`
	// Action says how to mend it, "" when nothing can be done.
	Action string `json:"action,omitempty"`
}

// Error is the text and the action.
func (e *Error) Error() string {
	if e.Action == "" {
		return e.Text
	}
	return e.Text + "; " + e.Action
}

// Exit is the exit code of the class.
func (e *Error) Exit() int {
	switch e.Class {
	case ClassUsage:
		return ExitUsage
	case ClassRefused:
		return ExitRefused
	case ClassUnavailable, ClassUnknown:
		return ExitUnavailable
	}
	return ExitDegraded
}

// Refused builds a ClassRefused error. code may be "".
func Refused(code, text, action string) *Error {
	return &Error{Class: ClassRefused, Code: code, Text: text, Action: action}
}

// Unavailable builds a ClassUnavailable error: nothing was changed.
func Unavailable(code, text, action string) *Error {
	return &Error{Class: ClassUnavailable, Code: code, Text: text, Action: action}
}

// Usage builds a ClassUsage error.
func Usage(format string, args ...any) *Error {
	return &Error{Class: ClassUsage, Text: fmt.Sprintf(format, args...)}
}

// ErrSlowClient is returned by emit, and by EventLog, when a client does not read its events.
var ErrSlowClient = errors.New("the client reads its events too slowly")

// ExitCode gives the exit code for any error: that of an *Error in its chain, else 1; nil gives 0.
func ExitCode(err error) int {
	var e *Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.Exit()
	}
	return ExitDegraded
}
