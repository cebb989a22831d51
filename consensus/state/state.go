// Package state is the replicated state machine of picket: Apply(State, Command) (State, Result),
// the invariants it enforces, and the codec of log entries and snapshots. It is pure: the same
// entries in the same order give the same bytes on every node, whatever its clock or locale.
//
// Apply never mutates its input: every slice that a command changes is cloned first, so a State
// may be read freely while the next one is made.
package state

import (
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/fencing"
)

// Bounds on what the state remembers.
const (
	MaxNodes       = 16  // nodes in a cluster
	MaxFences      = 64  // closed fences kept as history
	MaxAttempts    = 32  // attempts kept per fence, beside those under way and those that prove
	MaxUnderWay    = 16  // attempts of one fence under way at once
	MaxCondemned   = 128 // condemned boots, and past boots, remembered per node
	MaxTokens      = 64  // join tokens kept, the newest
	MaxNotes       = 64  // operator notes kept
	MaxLinks       = 8   // links per node
	MaxReason      = 512 // bytes of one free text in an entry
	MaxArgs        = 16  // arguments of one reason
	MaxGroupsLimit = 4096
	// MaxTimeout bounds every start, stop and revoke: sums of durations stay far from overflowing.
	MaxTimeout = time.Hour
)

// State is everything that the log decides.
type State struct {
	// Index is the log index of the last applied entry.
	Index uint64 `json:"index"`
	// Revision is the log index of the ConfigSet that Config came from; zero means none yet.
	Revision uint64  `json:"revision"`
	Config   Config  `json:"config"`
	Nodes    []Node  `json:"nodes"`  // sorted by name
	Groups   []Group `json:"groups"` // sorted by name
	Fences   []Fence `json:"fences"` // in the order of their intents
	Tokens   []Token `json:"tokens"` // in the order they were minted
	Notes    []Note  `json:"notes"`  // newest last
}

// Role says what a node may do.
type Role string

// Roles: a member votes and may own; a witness votes and never owns.
const (
	Member  Role = "member"
	Witness Role = "witness"
)

// LinkAddr is one NIC of a node and its address on it, without a port.
type LinkAddr struct {
	Interface string `json:"interface"`
	Addr      string `json:"addr"` // netip.Addr in text
}

// Node is one admitted node.
type Node struct {
	Name     ids.Node   `json:"name"`
	Role     Role       `json:"role"`
	Links    []LinkAddr `json:"links"`
	Admitted uint64     `json:"admitted"` // log index of its NodeAdmit
	// Up is the newest incarnation that announced itself; zero before the first NodeUp.
	Up ids.Incarnation `json:"up"`
	// Session is the announcing process's own mark: the same announcement twice is one.
	Session uint64 `json:"session"`
	// Start is the highest start counter of its state directory that ever announced itself: one behind
	// it comes from a restored backup (rule 3).
	Start uint64 `json:"start,omitempty"`
	// UUID is the machine's DMI product uuid as that incarnation declared it; "" where unreadable.
	UUID string `json:"uuid"`
	// Version is the product version that incarnation declared.
	Version string `json:"version,omitempty"`
	// UpAt is the proposer's wall clock (ms since 1970) at NodeUp; for display only.
	UpAt int64 `json:"up_at"`
	// Leaving is set by the first half of a clean stop, Left by the second. Both are cleared by NodeUp.
	Leaving bool `json:"leaving,omitempty"`
	Left    bool `json:"left,omitempty"`
	// Standby is the operator's wish that the node owns nothing.
	Standby bool `json:"standby,omitempty"`
	// TickK and TickIndex are the newest accepted lease renewal of any generation of the current boot
	// (docs/safety.md, rule 2) and the log index of its tick.
	TickK     uint64 `json:"tick_k"`
	TickIndex uint64 `json:"tick_index"`
	// Condemned are the boots with an intent, open or closed, newest last (invariant I4).
	Condemned []ids.Boot `json:"condemned,omitempty"`
	// Past are the boots that a NodeUp of a later one replaced, newest last: they never come back.
	Past []ids.Boot `json:"past,omitempty"`
}

// Phase says how far the owner of a group has come, as the log knows it.
type Phase string

// Phases of an owned group. A group without an owner has phase "".
const (
	PhaseGranted    Phase = "granted"     // the owner may start it
	PhaseStarted    Phase = "started"     // the owner said that everything runs
	PhaseRevoked    Phase = "revoked"     // the owner must stop it
	PhaseStopFailed Phase = "stop-failed" // the owner could not stop it: it is to be fenced
)

// Group is the ownership of one group.
type Group struct {
	Name ids.Group `json:"name"`
	// Owner and Epoch are set by Grant and cleared only by Released of that owner and epoch, or by
	// FenceConfirm of that owner's boot (invariants I1, I2).
	Owner ids.Incarnation `json:"owner"`
	Epoch ids.Epoch       `json:"epoch"`
	Phase Phase           `json:"phase"`
	// Held is what the owner may have running: the resources of the configuration at the grant. They
	// stay reserved to it until it has released them, whatever the configuration says since (rule 7).
	Held []ResourceConfig `json:"held,omitempty"`
	// HeldStop and HeldStart are the timeouts that go with Held.
	HeldStart time.Duration `json:"held_start,omitempty"`
	HeldStop  time.Duration `json:"held_stop,omitempty"`
	// LastEpoch is the newest epoch ever granted.
	LastEpoch ids.Epoch `json:"last_epoch"`
	// Why is the reason of the last change of ownership.
	Why reason.Reason `json:"why"`
	// RevokeAt is the log index of the Revoke, RevokeFor its deadline from the moment it is applied.
	RevokeAt  uint64        `json:"revoke_at,omitempty"`
	RevokeFor time.Duration `json:"revoke_for,omitempty"`
	// Stopped is the operator's wish that nobody runs it.
	Stopped bool `json:"stopped,omitempty"`
	// MoveTo is where an operator sent it; cleared when it has started there and failback is off.
	MoveTo ids.Node `json:"move_to,omitempty"`
	// Failures are the nodes on which it failed since the last cleanup, sorted by node.
	Failures []Failure `json:"failures,omitempty"`
	// Since is the proposer's wall clock (ms since 1970) of the last change; for display only.
	Since int64 `json:"since"`
}

// Failure counts what went wrong with a group on one node.
type Failure struct {
	Node  ids.Node `json:"node"`
	Count int      `json:"count"`
	// Start says that a start failed: the node is not tried again before a cleanup.
	Start bool   `json:"start,omitempty"`
	Why   string `json:"why"`
	Index uint64 `json:"index"`
}

// FailureLimit is how many monitor failures on one node exclude it until a cleanup.
const FailureLimit = 3

// Fence is one decision to make a boot provably dead, with everything that was tried.
type Fence struct {
	ID     uint64          `json:"id"` // log index of the intent
	Target ids.Incarnation `json:"target"`
	// UUID is what the target's machine declared at NodeUp: the identity its fence device must show.
	UUID string `json:"uuid"`
	// Devices are pinned at the intent: a later configuration changes nothing here (rule 9).
	Devices  []FenceDevice `json:"devices,omitempty"`
	Revision uint64        `json:"revision"`
	Reason   reason.Reason `json:"reason"`
	Operator string        `json:"operator,omitempty"`
	// NoPower marks the intent that a new boot's NodeUp opened: the new boot is the proof, and no power
	// command is needed unless that boot falls silent before it is heard again.
	NoPower bool `json:"no_power,omitempty"`
	// Drain is how long after the proof a takeover waits for writes on their way; zero where no owned
	// resource holds data.
	Drain time.Duration `json:"drain"`
	// Groups are those the target owned at the intent.
	Groups   []ids.Group `json:"groups,omitempty"`
	Attempts []Attempt   `json:"attempts,omitempty"`
	// Begun counts all attempts ever begun: the next one is Begun+1.
	Begun     int       `json:"begun"`
	Confirmed uint64    `json:"confirmed,omitempty"` // log index of the FenceConfirm; zero while open
	Evidence  *Evidence `json:"evidence,omitempty"`
	At        int64     `json:"at"`      // wall clock of the intent, ms; display only
	DoneAt    int64     `json:"done_at"` // wall clock of the confirm, ms; display only
}

// Open reports whether the fence still waits for proof.
func (f *Fence) Open() bool { return f.Confirmed == 0 }

// Attempt is one try of one executor at one fence device.
type Attempt struct {
	N        int           `json:"n"`
	Begin    uint64        `json:"begin"` // log index
	Executor ids.Node      `json:"executor"`
	Device   string        `json:"device"`
	Op       fencing.Op    `json:"op"`
	Deadline time.Duration `json:"deadline"` // on the executor's clock, from its question to the leader
	End      uint64        `json:"end,omitempty"`
	// Report is what the executor saw; nil while the attempt runs.
	Report *fencing.Report `json:"report,omitempty"`
	// Settled is the log index at which the life of the BMC's session was waited out, for an attempt that
	// ended with a command sent and nothing read off: until then the command may still strike.
	Settled uint64 `json:"settled,omitempty"`
	At      int64  `json:"at"`
	DoneAt  int64  `json:"done_at,omitempty"`
}

// EvidenceKind says why a boot is believed dead.
type EvidenceKind string

// The admissible kinds of evidence (invariant I3).
const (
	PowerOff EvidenceKind = "power-off" // sent, then read back off twice, identity proven in the same session
	Rebooted EvidenceKind = "rebooted"  // same machine, new boot id, heard after the intent
	Human    EvidenceKind = "human"     // an operator's audited word
)

// Evidence is the proof in a FenceConfirm.
type Evidence struct {
	Kind EvidenceKind `json:"kind"`
	// Attempt is the attempt that read off (power-off).
	Attempt int `json:"attempt,omitempty"`
	// NewBoot is the boot heard since (rebooted).
	NewBoot ids.Boot `json:"new_boot,omitempty"`
	// Operator and Why are the human's name and reason (human).
	Operator string `json:"operator,omitempty"`
	Why      string `json:"why,omitempty"`
}

// Token is a join token: only its hash is ever stored.
type Token struct {
	Hash    string   `json:"hash"`    // hex SHA-256 of the secret
	Expires int64    `json:"expires"` // ms since 1970, on the leader's wall clock at use
	By      string   `json:"by"`
	UsedBy  ids.Node `json:"used_by,omitempty"`
	Used    uint64   `json:"used,omitempty"` // log index
}

// Note is an operator's audited action that has no other place in the state.
type Note struct {
	Index    uint64 `json:"index"`
	At       int64  `json:"at"`
	Operator string `json:"operator"`
	Text     string `json:"text"`
}

// Node returns the node of that name, or nil.
func (s *State) Node(n ids.Node) *Node {
	i, ok := slices.BinarySearchFunc(s.Nodes, n, func(x Node, n ids.Node) int { return cmpString(string(x.Name), string(n)) })
	if !ok {
		return nil
	}
	return &s.Nodes[i]
}

// Group returns the group of that name, or nil.
func (s *State) Group(g ids.Group) *Group {
	i, ok := slices.BinarySearchFunc(s.Groups, g, func(x Group, g ids.Group) int { return cmpString(string(x.Name), string(g)) })
	if !ok {
		return nil
	}
	return &s.Groups[i]
}

// Fence returns the fence with that intent index, or nil.
func (s *State) Fence(id uint64) *Fence {
	for i := range s.Fences {
		if s.Fences[i].ID == id {
			return &s.Fences[i]
		}
	}
	return nil
}

// OpenFence returns the open fence of that boot, or nil.
func (s *State) OpenFence(n ids.Node, b ids.Boot) *Fence {
	for i := range s.Fences {
		f := &s.Fences[i]
		if f.Open() && f.Target.Node == n && f.Target.Boot == b {
			return f
		}
	}
	return nil
}

// Owned returns the groups that any generation of that boot owns, sorted by name.
func (s *State) Owned(n ids.Node, b ids.Boot) []ids.Group {
	var out []ids.Group
	for i := range s.Groups {
		if g := &s.Groups[i]; g.Owner.Node == n && g.Owner.Boot == b && g.Epoch != 0 {
			out = append(out, g.Name)
		}
	}
	return out
}

// OwnedBoots returns the boots of a node that own something, in order of their groups.
func (s *State) OwnedBoots(n ids.Node) []ids.Incarnation {
	var out []ids.Incarnation
	for i := range s.Groups {
		g := &s.Groups[i]
		if g.Epoch == 0 || g.Owner.Node != n {
			continue
		}
		if !slices.ContainsFunc(out, func(o ids.Incarnation) bool { return o.SameBoot(g.Owner) }) {
			out = append(out, g.Owner)
		}
	}
	return out
}

// IsCondemned reports whether that boot has an intent, open or closed (invariant I4).
func (s *State) IsCondemned(n ids.Node, b ids.Boot) bool {
	node := s.Node(n)
	return node != nil && slices.Contains(node.Condemned, b)
}

// MayStrike reports whether the attempt's power-off may still take effect: the attempt has not ended, or
// it ended with a command sent and nothing read off, and that is not settled yet.
func (a Attempt) MayStrike() bool {
	switch {
	case a.Op != fencing.OpOff:
		return false
	case a.End == 0 || a.Report == nil:
		return true
	}
	return a.Settled == 0 && a.Report.Sent > 0 && a.Report.Outcome != fencing.OutcomeOff
}

// PendingPower reports whether a power-off attempt against the node may still strike: its command may
// be on its way, so no boot of that node may own anything (rule 10).
func (s *State) PendingPower(n ids.Node) bool {
	for i := range s.Fences {
		if s.Fences[i].Target.Node != n {
			continue
		}
		for _, a := range s.Fences[i].Attempts {
			if a.MayStrike() {
				return true
			}
		}
	}
	return false
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
