package state

import (
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/fencing"
)

// Command is one log entry's content: a closed set, each with a stable kind byte (codec.go).
type Command interface{ kind() Kind }

// Entry is a command with the proposer's wall clock (ms since 1970), which is used for display and
// for the life of join tokens only, never for safety.
type Entry struct {
	At  int64
	Cmd Command
}

// Kind is the byte that names a command on disk. Kinds are never reused.
type Kind uint8

// The kinds, in the order they were introduced.
const (
	KindNodeAdmit Kind = iota + 1
	KindNodeRemove
	KindNodeUp
	KindNodeLeave
	KindConfigSet
	KindLeaseTick
	KindFenceIntent
	KindFenceBegin
	KindFenceEnd
	KindFenceConfirm
	KindGrant
	KindStarted
	KindRevoke
	KindReleased
	KindStartFailed
	KindStopFailed
	KindMonitorFailed
	KindNodeMode
	KindGroupMode
	KindMove
	KindCleanup
	KindTokenMint
	KindNote
	kindEnd
)

// NodeAdmit makes a node part of the cluster. The first one needs no token; every other consumes one.
type NodeAdmit struct {
	Name      ids.Node   `json:"name"`
	Role      Role       `json:"role"`
	Links     []LinkAddr `json:"links"`
	TokenHash string     `json:"token_hash,omitempty"`
}

// NodeRemove takes a node out of the cluster. Refused for an owner or with an intent open (rule 7).
type NodeRemove struct {
	Name     ids.Node `json:"name"`
	Operator string   `json:"operator"`
}

// NodeUp announces a process on a boot; the entry's index becomes its generation.
type NodeUp struct {
	Node ids.Node `json:"node"`
	Boot ids.Boot `json:"boot"`
	// Session tells the process its own announcement from an older one of the same boot.
	Session uint64 `json:"session"`
	UUID    string `json:"uuid,omitempty"`
	Version string `json:"version,omitempty"`
	// Start is the start counter of the node's state directory: it rises with every start of a process.
	Start uint64 `json:"start,omitempty"`
}

// NodeLeave is a clean stop in two steps: Done false says that the node wants to own nothing, Done
// true that it owns nothing and goes.
type NodeLeave struct {
	Inc  ids.Incarnation `json:"inc"`
	Done bool            `json:"done,omitempty"`
}

// ConfigSet replaces the cluster configuration. Base is the revision it was edited from.
type ConfigSet struct {
	Base     uint64 `json:"base"`
	Config   Config `json:"config"`
	Operator string `json:"operator"`
}

// Tick is one accepted renewal.
type Tick struct {
	Inc ids.Incarnation `json:"inc"`
	K   uint64          `json:"k"`
}

// LeaseTick is the batch of renewals granted by one entry.
type LeaseTick struct {
	Ticks []Tick `json:"ticks,omitempty"`
}

// FenceIntent condemns a boot: from here on it gets no tick, no grant and no NodeUp.
type FenceIntent struct {
	Target   ids.Incarnation `json:"target"`
	Reason   reason.Reason   `json:"reason"`
	Operator string          `json:"operator,omitempty"`
}

// FenceBegin precedes every power command: who, with which device, until when.
type FenceBegin struct {
	Fence    uint64        `json:"fence"`
	N        int           `json:"n"`
	Executor ids.Node      `json:"executor"`
	Device   string        `json:"device"`
	Op       fencing.Op    `json:"op"`
	Deadline time.Duration `json:"deadline"`
}

// FenceEnd closes an attempt with what the executor saw, or as expired.
type FenceEnd struct {
	Fence  uint64         `json:"fence"`
	N      int            `json:"n"`
	Report fencing.Report `json:"report"`
}

// FenceConfirm is the proof of death: it ends every ownership of that boot.
type FenceConfirm struct {
	Fence    uint64   `json:"fence"`
	Evidence Evidence `json:"evidence"`
}

// Grant makes an incarnation the owner of a group; the entry's index is the epoch.
type Grant struct {
	Group    ids.Group       `json:"group"`
	To       ids.Incarnation `json:"to"`
	Revision uint64          `json:"revision"`
	Why      reason.Reason   `json:"why"`
}

// Started says that the owner has everything of the group running.
type Started struct {
	Group ids.Group       `json:"group"`
	Inc   ids.Incarnation `json:"inc"`
	Epoch ids.Epoch       `json:"epoch"`
}

// Revoke tells the owner to stop a group within For of applying it.
type Revoke struct {
	Group ids.Group     `json:"group"`
	Epoch ids.Epoch     `json:"epoch"`
	Why   reason.Reason `json:"why"`
	For   time.Duration `json:"for"`
}

// Released is the owner's word that nothing of the group runs under that epoch, and never will.
type Released struct {
	Group ids.Group       `json:"group"`
	Inc   ids.Incarnation `json:"inc"`
	Epoch ids.Epoch       `json:"epoch"`
	Why   reason.Reason   `json:"why"`
}

// StartFailed is the owner's word that a start failed and everything was stopped again, verified: it
// releases the group.
type StartFailed struct {
	Group ids.Group       `json:"group"`
	Inc   ids.Incarnation `json:"inc"`
	Epoch ids.Epoch       `json:"epoch"`
	Why   string          `json:"why"`
}

// StopFailed says that something of the group may still run: the node is to be fenced.
type StopFailed struct {
	Group ids.Group       `json:"group"`
	Inc   ids.Incarnation `json:"inc"`
	Epoch ids.Epoch       `json:"epoch"`
	Why   string          `json:"why"`
}

// MonitorFailed says that a running resource was found broken.
type MonitorFailed struct {
	Group    ids.Group       `json:"group"`
	Inc      ids.Incarnation `json:"inc"`
	Epoch    ids.Epoch       `json:"epoch"`
	Resource ids.Resource    `json:"resource"`
	Why      string          `json:"why"`
}

// NodeMode sets or clears standby.
type NodeMode struct {
	Node     ids.Node `json:"node"`
	Standby  bool     `json:"standby"`
	Operator string   `json:"operator"`
}

// GroupMode sets what the operator wants of a group. Starting one clears its failures.
type GroupMode struct {
	Group    ids.Group `json:"group"`
	Stopped  bool      `json:"stopped"`
	Operator string    `json:"operator"`
}

// Move sends a group to a node; an empty To clears an earlier move.
type Move struct {
	Group    ids.Group `json:"group"`
	To       ids.Node  `json:"to"`
	Operator string    `json:"operator"`
}

// Cleanup forgets the failures of a group.
type Cleanup struct {
	Group    ids.Group `json:"group"`
	Operator string    `json:"operator"`
}

// TokenMint stores the hash of a new join token.
type TokenMint struct {
	Hash    string `json:"hash"`
	Expires int64  `json:"expires"` // ms since 1970
	By      string `json:"by"`
}

// NoteCmd records an operator's action.
type NoteCmd struct {
	Operator string `json:"operator"`
	Text     string `json:"text"`
}

func (NodeAdmit) kind() Kind     { return KindNodeAdmit }
func (NodeRemove) kind() Kind    { return KindNodeRemove }
func (NodeUp) kind() Kind        { return KindNodeUp }
func (NodeLeave) kind() Kind     { return KindNodeLeave }
func (ConfigSet) kind() Kind     { return KindConfigSet }
func (LeaseTick) kind() Kind     { return KindLeaseTick }
func (FenceIntent) kind() Kind   { return KindFenceIntent }
func (FenceBegin) kind() Kind    { return KindFenceBegin }
func (FenceEnd) kind() Kind      { return KindFenceEnd }
func (FenceConfirm) kind() Kind  { return KindFenceConfirm }
func (Grant) kind() Kind         { return KindGrant }
func (Started) kind() Kind       { return KindStarted }
func (Revoke) kind() Kind        { return KindRevoke }
func (Released) kind() Kind      { return KindReleased }
func (StartFailed) kind() Kind   { return KindStartFailed }
func (StopFailed) kind() Kind    { return KindStopFailed }
func (MonitorFailed) kind() Kind { return KindMonitorFailed }
func (NodeMode) kind() Kind      { return KindNodeMode }
func (GroupMode) kind() Kind     { return KindGroupMode }
func (Move) kind() Kind          { return KindMove }
func (Cleanup) kind() Kind       { return KindCleanup }
func (TokenMint) kind() Kind     { return KindTokenMint }
func (NoteCmd) kind() Kind       { return KindNote }
