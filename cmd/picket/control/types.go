package control

import "time"

// Values of Status.State, mildest first.
const (
	StateOK       = "ok"        // every node is online, every group runs where it is wanted
	StateDegraded = "degraded"  // a condition of severity warning or critical holds
	StateNoQuorum = "no-quorum" // this node cannot reach a majority of the voters
)

// Values of a Source field: who said it.
const (
	SourceLeader = "leader" // read from the leader, or this node is it
	SourceLog    = "log"    // read from this node's applied log
	SourceLocal  = "local"  // measured by this node itself
	SourceStale  = "stale"  // last known; whoever said it cannot be reached now
)

// Status is the answer of GET /v1/status and of `picket status --json`.
type Status struct {
	Cluster string `json:"cluster"`
	// Node is the node that answers.
	Node string `json:"node"`
	// Leader is the leader this node follows, "" while there is none.
	Leader string `json:"leader"`
	Term   uint64 `json:"term"`
	// Index is the newest log index this node has applied.
	Index  uint64 `json:"index"`
	Quorum Quorum `json:"quorum"`
	// State is ok, degraded or no-quorum.
	State string `json:"state"`
	// Conditions are sorted: the most damaging first. Never null.
	Conditions []Condition `json:"conditions"`
	// Nodes and Groups are sorted by name. Never null.
	Nodes  []NodeStatus  `json:"nodes"`
	Groups []GroupStatus `json:"groups"`

	// ClusterID is the identity init gave the cluster.
	ClusterID string `json:"cluster_id,omitempty"`
	// Revision is the revision of the cluster file in force, 0 before the first apply.
	Revision uint64 `json:"revision"`
	// Version is the picket version of the answering daemon.
	Version string `json:"version,omitempty"`
	// AsOf is the answering node's clock when the answer was made (RFC 3339, with fractions).
	AsOf time.Time `json:"as_of"`
	// Source is leader, log or stale: where Nodes and Groups come from. AgeMS is the time in
	// milliseconds since this node last heard from the leader (0 when it is the leader).
	Source string `json:"source"`
	AgeMS  int64  `json:"age_ms"`
}

// Quorum counts voters. Reachable includes the answering node.
type Quorum struct {
	Voters    int  `json:"voters"`
	Reachable int  `json:"reachable"`
	OK        bool `json:"ok"`
}

// Condition is one thing that is not as it should be, from the reason catalogue.
type Condition struct {
	Code string `json:"code"`
	Text string `json:"text"`
	// Action is what the operator may do, "" when nothing is needed.
	Action string `json:"action"`
	// Subject is the node, group or fence device concerned, "" when it is the whole cluster.
	Subject string `json:"subject"`
	// Severity is info, warning or critical. Conditions of severity info do not degrade the state.
	Severity string `json:"severity"`
	// Since is when it began (RFC 3339), the zero time when that is not known.
	Since time.Time `json:"since,omitzero"`
}

// NodeStatus is one node as the answering node sees it.
type NodeStatus struct {
	Name string `json:"name"`
	// Role is member (votes, may own) or witness (votes, never owns).
	Role string `json:"role"`
	// State is online, joining, lost, fencing, fenced or left.
	State string `json:"state"`
	// Mode is active, standby, maintenance or quarantined.
	Mode        string `json:"mode"`
	Incarnation string `json:"incarnation"`
	BootID      string `json:"boot_id"`
	// Links are the answering node's links to this node; for the answering node itself, its own.
	Links []LinkStatus `json:"links"`
	// Ping is nil while connectivity is not configured.
	Ping *PingStatus `json:"ping,omitempty"`
	// Watchdog is nil while the node has declared none.
	Watchdog *WatchdogStatus `json:"watchdog,omitempty"`
	Fence    []FenceStatus   `json:"fence"`

	// Voter is false while the node is admitted but does not vote yet.
	Voter bool `json:"voter"`
	// Since is when State was entered (RFC 3339), the zero time when that is not known.
	Since time.Time `json:"since,omitzero"`
	// Source and AgeMS: who said so, and how old its newest word is, in milliseconds; -1: never heard.
	Source string `json:"source,omitempty"`
	AgeMS  int64  `json:"age_ms"`
	// TickAgeMS is the age of the node's newest lease tick, in milliseconds; nil when it holds none.
	TickAgeMS *int64 `json:"tick_age_ms,omitempty"`
	// Version is the picket version the node runs, "" when it is not known.
	Version string `json:"version,omitempty"`
}

// LinkStatus is one heartbeat link: a local interface and a peer.
type LinkStatus struct {
	Peer      string `json:"peer"`
	Interface string `json:"interface"`
	// State is up, late or dead.
	State string `json:"state"`
	// AgeMS is the age of the newest heartbeat, in milliseconds; -1: none was ever heard.
	AgeMS int64 `json:"age_ms"`
	// Addr is the peer's address on this link.
	Addr string `json:"addr,omitempty"`
}

// PingStatus counts the ping nodes that a node reaches.
type PingStatus struct {
	Reachable int `json:"reachable"`
	Total     int `json:"total"`
}

// WatchdogStatus is what a node declared about its watchdog.
type WatchdogStatus struct {
	Device     string  `json:"device"`
	Identity   string  `json:"identity"`
	TimeoutS   float64 `json:"timeout_s"`
	Armed      bool    `json:"armed"`
	Admissible bool    `json:"admissible"`
}

// FenceStatus is the newest check of one fence device, by whichever node checked it last.
type FenceStatus struct {
	Device string `json:"device"`
	Level  int    `json:"level"`
	// State is ok, failed or unproven (never checked, or its identity is not proven).
	State string `json:"state"`
	// Checked is when it was last checked (RFC 3339), the zero time: never.
	Checked time.Time `json:"checked,omitzero"`
	// AgeMS is the age of that check in milliseconds; -1: never checked.
	AgeMS int64 `json:"age_ms"`
	// By is the node that checked; Text says what is wrong, "" when ok.
	By   string `json:"by,omitempty"`
	Text string `json:"text,omitempty"`
}

// GroupStatus is one group.
type GroupStatus struct {
	Name string `json:"name"`
	// Wanted is started or stopped.
	Wanted string `json:"wanted"`
	// State is running, starting, stopping, stopped, held, failed or unmanaged.
	State string `json:"state"`
	// Owner is "" when nobody owns it. A held group names its last, unproven owner.
	Owner     string           `json:"owner"`
	Epoch     uint64           `json:"epoch"`
	Reason    ReasonText       `json:"reason"`
	Resources []ResourceStatus `json:"resources"`
	Since     time.Time        `json:"since,omitzero"`
	// Source and AgeMS: who said so and how old it is, in milliseconds.
	Source string `json:"source,omitempty"`
	AgeMS  int64  `json:"age_ms"`
}

// ReasonText is a reason, rendered.
type ReasonText struct {
	Code   string `json:"code"`
	Text   string `json:"text"`
	Action string `json:"action,omitempty"`
}

// ResourceStatus is one resource of a group.
type ResourceStatus struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	// State is running, starting, stopping, stopped, failed, or unknown (it may still run on a lost node).
	State string `json:"state"`
	Text  string `json:"text,omitempty"`
}

// Explanation is the answer of GET /v1/why.
type Explanation struct {
	Subject string `json:"subject"`
	// Kind is group or node.
	Kind string `json:"kind"`
	// Verdict is one sentence; Code its reason; Action what the operator may do, "" for nothing.
	Verdict string `json:"verdict"`
	Code    string `json:"code"`
	Action  string `json:"action"`
	// Lines has one line per node for a group, and one per group or fact for a node. Never null.
	Lines []WhyLine `json:"lines"`
	// AsOf, Source and AgeMS as in Status.
	AsOf   time.Time `json:"as_of"`
	Source string    `json:"source"`
	AgeMS  int64     `json:"age_ms"`
}

// WhyLine is one line of an explanation.
type WhyLine struct {
	// Name is the node (for a group) or the group, link or fence device (for a node) concerned.
	Name string `json:"name"`
	// Verdict is chosen, eligible or excluded for a node; free words otherwise.
	Verdict string `json:"verdict"`
	Code    string `json:"code"`
	Text    string `json:"text"`
	// Source and AgeMS: who said so, and how old it is in milliseconds; -1: no age applies.
	Source string `json:"source,omitempty"`
	AgeMS  int64  `json:"age_ms"`
}

// Event is one thing that happened. One event is one line of GET /v1/events.
type Event struct {
	// Seq rises by one per event of the answering daemon's life; it starts at 1.
	Seq uint64 `json:"seq"`
	// Time is the answering node's clock (RFC 3339, with fractions).
	Time time.Time `json:"time"`
	// Index is the log index it comes from, 0 when it is local.
	Index uint64 `json:"index,omitempty"`
	// Node and Group name what it concerns, "" when nothing.
	Node  string `json:"node,omitempty"`
	Group string `json:"group,omitempty"`
	// Kind is its class: node, link, fence, group, resource, config, operator, raft or gap (events
	// that are no longer kept).
	Kind string `json:"kind"`
	Code string `json:"code,omitempty"`
	Text string `json:"text"`
	// Args are the reason's arguments, in order.
	Args []Arg `json:"args,omitempty"`
}

// Arg is one named argument of an event's reason.
type Arg struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// FenceRecord is one fence: its intent, its attempts and how it ended.
type FenceRecord struct {
	// Intent is the log index of the intent: the fence's identity.
	Intent uint64 `json:"intent"`
	// Node and BootID name what was condemned.
	Node   string `json:"node"`
	BootID string `json:"boot_id"`
	// Code and Text say why.
	Code string `json:"code"`
	Text string `json:"text"`
	// State is open, confirmed or withdrawn.
	State    string         `json:"state"`
	Opened   time.Time      `json:"opened,omitzero"`
	Closed   time.Time      `json:"closed,omitzero"`
	Attempts []FenceAttempt `json:"attempts"`
	// Evidence is power-off, watchdog, rebooted or human; "" while the fence is open.
	Evidence     string `json:"evidence,omitempty"`
	EvidenceText string `json:"evidence_text,omitempty"`
	// Operator and Reason are set where a human asked or confirmed.
	Operator string `json:"operator,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// FenceAttempt is one use of one fence device.
type FenceAttempt struct {
	Device   string `json:"device"`
	Level    int    `json:"level"`
	Executor string `json:"executor"`
	// Outcome is running, off, failed or expired.
	Outcome string    `json:"outcome"`
	Text    string    `json:"text,omitempty"`
	Began   time.Time `json:"began,omitzero"`
	// TookMS is how long it took, in milliseconds; 0 while it runs.
	TookMS int64 `json:"took_ms,omitempty"`
}

// ConfigText is the cluster file in force.
type ConfigText struct {
	// Source is the file as it was applied, "" before the first apply.
	Source   string `json:"source"`
	Revision uint64 `json:"revision"`
	// Applied and By: when, and by whom.
	Applied time.Time `json:"applied,omitzero"`
	By      string    `json:"by,omitempty"`
}

// Kinds of operations.
const (
	OpApply        = "apply"         // File, Text, Revision (0: whatever is in force)
	OpApplyCheck   = "apply-check"   // the same, changes nothing
	OpNodeStandby  = "node-standby"  // Node
	OpNodeOnline   = "node-online"   // Node
	OpNodeRemove   = "node-remove"   // Node
	OpGroupStart   = "group-start"   // Group
	OpGroupStop    = "group-stop"    // Group
	OpGroupMove    = "group-move"    // Group, To ("": to the next best node)
	OpGroupCleanup = "group-cleanup" // Group: forget its failures
	OpFence        = "fence"         // Node, Reason
	OpFenceConfirm = "fence-confirm" // Node, Reason, Confirm (the node's name once more)
	OpTokenCreate  = "token-create"  // For: how long the token is valid
)

// Operation is one change, as it is posted to /v1/operate.
type Operation struct {
	Kind string `json:"kind"`
	// ID is a random name the client gives to one command of a user, so that a repeat after a time-out
	// can be told from a second command. 1 to 64 bytes of a-z, 0-9 and '-'.
	ID string `json:"id,omitempty"`
	// Operator is who asks, "root(uid 0)": filled by the server from the socket's peer credentials
	// (unix(7), SO_PEERCRED). What a client writes here is ignored.
	Operator string `json:"operator,omitempty"`
	Node     string `json:"node,omitempty"`
	Group    string `json:"group,omitempty"`
	To       string `json:"to,omitempty"`
	// Reason is the operator's own words, at most MaxReason bytes, for the audit.
	Reason string `json:"reason,omitempty"`
	// Confirm is the node's name, typed once more by the operator.
	Confirm string `json:"confirm,omitempty"`
	// File is the name of the applied file, for messages; Text its content.
	File string `json:"file,omitempty"`
	Text string `json:"text,omitempty"`
	// For is a duration in nanoseconds; 0: no end.
	For time.Duration `json:"for_ns,omitempty"`
	// DryRun asks what would happen and changes nothing.
	DryRun bool `json:"dry_run,omitempty"`
	// Revision makes the change conditional: refused unless this revision is in force. 0: no condition.
	Revision uint64 `json:"revision,omitempty"`
}

// MaxReason is the longest Operation.Reason, in bytes.
const MaxReason = 500

// Answer is what an operation answers once it is committed.
type Answer struct {
	// Text is one sentence for the operator: what is now so, or what happens next.
	Text     string   `json:"text"`
	Warnings []string `json:"warnings,omitempty"`
	// Index is the log index of the change, 0 for a dry run.
	Index uint64 `json:"index,omitempty"`
	// Revision is the revision of the cluster file after the change (apply, apply-check).
	Revision uint64 `json:"revision,omitempty"`
	// Changes says, one sentence each, what an apply changes ("group web: move is not needed ...").
	Changes []string `json:"changes,omitempty"`
	// Token, JoinCommand and Expires are the answer to token-create. The token is shown only here.
	Token       string    `json:"token,omitempty"`
	JoinCommand string    `json:"join_command,omitempty"`
	Expires     time.Time `json:"expires,omitzero"`
}
