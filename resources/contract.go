// Package resources holds the contract that every kind of resource fulfils and the runner that
// starts, watches and stops one group of them in order. It is pure: it reads no clock, starts no
// goroutine and touches no system. The kinds themselves live in sub-rooms.
package resources

import (
	"context"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// Resource is one thing that a node starts, watches and stops. Implementations live in sub-rooms.
// The context carries the deadline; an implementation returns soon after it ends. Calls on one
// Resource may overlap only after an earlier call's deadline has passed; an implementation
// serialises them itself.
type Resource interface {
	// Start brings the resource up under the given epoch (the fencing token of the ownership). With
	// adopt, one that is already present is taken for our own: it was started by an earlier life of
	// this daemon. An error says in one sentence what is wrong; the caller stops the resource then.
	Start(ctx context.Context, epoch ids.Epoch, adopt bool) error
	// Stop takes the resource down and verifies it: nil is returned only when it is gone. Stopping
	// what does not run is success.
	Stop(ctx context.Context) error
	// Monitor returns nil when the resource runs, and otherwise says in one sentence what is wrong.
	Monitor(ctx context.Context) error
	// Describe names the resource for people, for example "address 192.168.60.200/24 on eth0".
	Describe() string
}

// Preparer is a Resource that can do part of a start beforehand: something that claims nothing,
// changes nothing and is harmless when no start follows, such as asking the network whether an
// address is free. It must not block and ends with its context.
type Preparer interface {
	Prepare(ctx context.Context)
}

// Op is what is asked of a resource.
type Op string

// The operations.
const (
	OpStart   Op = "start"
	OpStop    Op = "stop"
	OpMonitor Op = "monitor"
)

// Spec is one resource of a group, as the runner sees it. The order of specs is the order of starts.
type Spec struct {
	ID ids.Resource
	// Monitor is the time between the end of one check and the begin of the next; zero or less means
	// that the resource is not monitored.
	Monitor time.Duration
}

// Request asks the executor for one operation. Exactly one Result per Request comes back, within
// Timeout where the resource honours its context.
type Request struct {
	// Seq numbers the requests of one Runner, from 1.
	Seq      uint64
	Group    ids.Group
	Resource ids.Resource
	Op       Op
	// Epoch is the ownership under which the group was last started; zero if it never was.
	Epoch ids.Epoch
	// Timeout is the time the operation may take. It is a little shorter than what the runner itself
	// waits, so that an operation that runs into it is answered before it is given up.
	Timeout time.Duration
	// Adopt is set on starts of a group that an earlier life of this daemon may have left running.
	Adopt bool
}

// Result answers one Request.
type Result struct {
	Seq      uint64
	Group    ids.Group
	Resource ids.Resource
	Op       Op
	// Err is empty for success, and otherwise one sentence that says what is wrong.
	Err string
}

// Phase is where a group stands on this node.
type Phase string

// The phases of a group.
const (
	// PhaseStopped: nothing of the group runs here; each resource that was started, or of which
	// nothing was known, was stopped and verified since.
	PhaseStopped Phase = "stopped"
	// PhaseStarting: resources are being started, or a changed list of resources is being put in place.
	PhaseStarting Phase = "starting"
	// PhaseRunning: all resources were started; they are being monitored.
	PhaseRunning Phase = "running"
	// PhaseStopping: resources are being stopped, on request or to undo a failed start.
	PhaseStopping Phase = "stopping"
	// PhaseStartFailed: a start failed, and everything was stopped again and verified.
	PhaseStartFailed Phase = "start-failed"
	// PhaseStopFailed: something may still run. Only Stop leads out of it.
	PhaseStopFailed Phase = "stop-failed"
)

// The states of one resource, in ResourceState.State.
const (
	StateStopped  = "stopped"
	StateStarting = "starting"
	StateRunning  = "running"
	StateStopping = "stopping"
	StateFailed   = "failed"
	StateUnknown  = "unknown"
)

// ResourceState is what is known of one resource.
type ResourceState struct {
	ID ids.Resource
	// State is stopped, starting, running, stopping, failed or unknown.
	State string
	// Err is the last failure of the resource in one sentence, empty if it is well.
	Err string
}
