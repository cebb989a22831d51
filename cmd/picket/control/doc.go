// Package control is the daemon's front door: HTTP and JSON over a unix socket. It holds the wire
// types, the server, the client and the event log that feeds slow readers safely. README.md beside
// this file is the written contract: fields and routes may be added, never renamed or removed.
package control

import "context"

// Backend is what a running node offers through the socket. The daemon implements it. Every method
// may be called from many goroutines at once and returns soon after ctx ends.
//
// Errors: a method returns *Error (see Refused, Unavailable, Usage) when the caller can do something
// about it; any other error is reported as an internal one.
type Backend interface {
	// Status returns what this node knows now. It works without a leader and without quorum: what is
	// old says so by its age.
	Status(ctx context.Context) (Status, error)
	// Why explains a group or a node by its name: a verdict, then one line per node. An unknown subject
	// is a Usage error that lists the known names.
	Why(ctx context.Context, subject string) (Explanation, error)
	// Events calls emit for each kept event with Seq > since, oldest first, and with follow goes on
	// until ctx ends or emit fails. It calls emit with no lock held: emit writes to the client and may
	// take up to the server's write timeout before it returns ErrSlowClient. EventLog implements this.
	Events(ctx context.Context, since uint64, follow bool, emit func(Event) error) error
	// FenceHistory returns the fences that the log holds, oldest first.
	FenceHistory(ctx context.Context) ([]FenceRecord, error)
	// Config returns the cluster file in force, as the operator wrote it.
	Config(ctx context.Context) (ConfigText, error)
	// Operate carries out every change. The server has already filled Operator and refused callers who
	// may not change anything. The answer comes after the change is committed (not after its effects).
	Operate(ctx context.Context, op Operation) (Answer, error)
}
