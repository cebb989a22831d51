package core

import (
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/lease"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/resources"
)

// Event is something that happened to the node: a closed set.
type Event interface{ event() }

// Action is something that the caller must do: a closed set. Actions of one call are carried out in
// their order; a Record must be on disk before the Runs that follow it begin.
type Action interface{ action() }

// Applied is a committed entry, after it was applied to the state machine. Entries come in order,
// each once. State is the state after it.
type Applied struct {
	Index  uint64
	Entry  state.Entry
	Result state.Result
	State  state.State
}

// Restored replaces the whole state by a snapshot's.
type Restored struct{ State state.State }

// Leadership is a change of who leads, as raft reports it. Leader is "" while nobody is known to.
type Leadership struct {
	Leader ids.Node
	Term   uint64
}

// BarrierDone answers a Barrier: with OK everything committed before it has been applied here.
type BarrierDone struct {
	Term uint64
	OK   bool
}

// Proposed answers a Propose. Known is false where the outcome is open: the entry may still commit.
type Proposed struct {
	ID    uint64
	OK    bool // it committed (and was applied, or refused, by an Applied before this)
	Known bool
}

// Beat is an authenticated heartbeat that came in on a NIC.
type Beat struct {
	Interface string
	Beat      heartbeat.Beat
}

// Carrier is a change of a NIC's carrier.
type Carrier struct {
	Interface string
	Up        bool
}

// Late says that this process ran late by that much: its clocks of others restart.
type Late struct{ By time.Duration }

// Refused says whether a peer's kernel refuses connections on every link that answers.
type Refused struct {
	Peer ids.Node
	Is   bool
}

// Servers is raft's current configuration.
type Servers struct{ List []Server }

// Server is one raft server.
type Server struct {
	Name  ids.Node
	Voter bool
}

// MembershipDone answers a Membership action.
type MembershipDone struct{ Name ids.Node }

// Paths replaces the links that the detector follows.
type Paths struct{ Paths []heartbeat.Path }

// Received is a message of another node (or of this one, looped back).
type Received struct {
	From ids.Node
	Msg  Message
}

// Verified answers a Verify: with OK this node was still the leader after the question came.
type Verified struct {
	Nonce uint64
	OK    bool
}

// Ran is the result of one resource operation. Serial is the Run's.
type Ran struct {
	Serial uint64
	Result resources.Result
}

// GateAsked says that a power command is about to be sent, unless the answer is no.
type GateAsked struct {
	Fence uint64
	N     int
	Token uint64
}

// PowerDone is the end of a power attempt that this node executed.
type PowerDone struct {
	Fence  uint64
	N      int
	Report fencing.Report
}

// DeviceChecked is this node's newest check of a fence device.
type DeviceChecked struct{ Fact plan.DeviceFact }

// Shutdown asks for a clean stop.
type Shutdown struct{}

// Tick lets time pass; it should come at least every 50 ms.
type Tick struct{}

func (Applied) event()        {}
func (Restored) event()       {}
func (Leadership) event()     {}
func (BarrierDone) event()    {}
func (Proposed) event()       {}
func (Beat) event()           {}
func (Carrier) event()        {}
func (Late) event()           {}
func (Refused) event()        {}
func (Servers) event()        {}
func (MembershipDone) event() {}
func (Paths) event()          {}
func (Received) event()       {}
func (Verified) event()       {}
func (Ran) event()            {}
func (GateAsked) event()      {}
func (PowerDone) event()      {}
func (DeviceChecked) event()  {}
func (Shutdown) event()       {}
func (Tick) event()           {}

// Propose asks for an entry to be committed. Exactly one Proposed answers it.
type Propose struct {
	ID  uint64
	Cmd state.Command
}

// Barrier asks raft to apply everything committed so far, as the leader of that term.
type Barrier struct{ Term uint64 }

// Verify asks raft whether this node leads, by a quorum round begun now.
type Verify struct{ Nonce uint64 }

// Send sends a message to a node; To may be this node. Messages may be lost.
type Send struct {
	To  ids.Node
	Msg Message
}

// Membership changes raft's configuration: as a non-voter, as a voter, or not at all.
type Membership struct {
	Name   ids.Node
	Voter  bool
	Remove bool
}

// Record writes what may run on this boot from now on to a place that a reboot clears. It must be
// durable against a crash of the process before anything that follows is done; a failure to write
// it ends the process.
type Record struct{ Entries []RunEntry }

// RunEntry is one group that may be running on this boot.
type RunEntry struct {
	Group ids.Group              `json:"group"`
	Epoch ids.Epoch              `json:"epoch"`
	Held  []state.ResourceConfig `json:"held"`
	Start time.Duration          `json:"start"`
	Stop  time.Duration          `json:"stop"`
	// Grace is how long the next process of this boot may leave it running without a grant, while it
	// does not know the configuration yet.
	Grace time.Duration `json:"grace"`
}

// Run asks for one resource operation; exactly one Ran with the same Serial answers it.
type Run struct {
	// Serial tells the lives of one group's runner apart: a result that comes after its group was
	// granted anew belongs to nobody.
	Serial   uint64
	Resource state.ResourceConfig
	Request  resources.Request
}

// Prepare lets a resource do the part of a start that claims nothing, while the node that was granted
// its group still waits for a lease. Nothing answers it.
type Prepare struct{ Resource state.ResourceConfig }

// Power runs one power attempt against a fence device. Before each command the executor must ask with
// GateAsked and wait for GateAnswer. Exactly one PowerDone answers it.
type Power struct {
	Fence    uint64
	N        int
	Node     ids.Node
	Device   state.FenceDevice
	Op       fencing.Op
	UUID     string
	Deadline time.Duration
}

// GateAnswer answers a GateAsked. With OK the command may be sent until Until on this node's clock.
type GateAnswer struct {
	Token uint64
	OK    bool
	Until time.Duration
}

// Push asks raft to tell the followers now what is committed. Losing it costs some ten milliseconds.
type Push struct{}

// StepDown asks raft to hand the leadership to another node.
type StepDown struct{}

// Kick asks for a heartbeat to be sent at once: what it carries has changed.
type Kick struct{}

// SelfReset asks the machine to be reset at once, without any orderly stop.
type SelfReset struct{ Why reason.Reason }

// Exit says that the clean stop is complete and the process may end.
type Exit struct{ Clean bool }

// Journal is a line for the log and the event stream.
type Journal struct {
	Kind   string // link, node, fence, group, config, lease
	Index  uint64 // log index, zero for local observations
	Reason reason.Reason
	Text   string
	// Subject is the node, group or link the line is about.
	Subject string
}

func (Propose) action()    {}
func (Barrier) action()    {}
func (Verify) action()     {}
func (Send) action()       {}
func (Membership) action() {}
func (Record) action()     {}
func (Run) action()        {}
func (Prepare) action()    {}
func (Power) action()      {}
func (GateAnswer) action() {}
func (Push) action()       {}
func (StepDown) action()   {}
func (Kick) action()       {}
func (SelfReset) action()  {}
func (Exit) action()       {}
func (Journal) action()    {}

// Message travels between nodes over mutual TLS. Exactly one field is set.
type Message struct {
	Report  *Report           `json:"report,omitempty"`
	Renew   *Renew            `json:"renew,omitempty"`
	Renewed *Renewed          `json:"renewed,omitempty"`
	Ask     *Ask              `json:"ask,omitempty"`
	Stand   *Stand            `json:"stand,omitempty"`
	Devices []plan.DeviceFact `json:"devices,omitempty"`
}

// Report is a command that a node asks the leader to propose. It is repeated until its effect is seen
// in the state, so losing one costs time only.
type Report struct{ Entry []byte }

// Renew is an owner's request for a lease tick.
type Renew struct {
	Inc     ids.Incarnation `json:"inc"`
	Renewal lease.Renewal   `json:"renewal"`
	Applied uint64          `json:"applied"`
}

// Renewed is the grant of one renewal, by the tick at that log index.
type Renewed struct {
	Inc   ids.Incarnation `json:"inc"`
	K     uint64          `json:"k"`
	Index uint64          `json:"index"`
}

// Ask is an executor's question, immediately before a power command, whether its attempt stands.
type Ask struct {
	Fence uint64 `json:"fence"`
	N     int    `json:"n"`
	Nonce uint64 `json:"nonce"`
}

// Stand is the leader's answer.
type Stand struct {
	Nonce uint64 `json:"nonce"`
	OK    bool   `json:"ok"`
}
