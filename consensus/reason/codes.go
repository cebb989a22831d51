package reason

import "sort"

// Placement and ownership.
const (
	PreferredNode   Code = "PREFERRED_NODE"
	OnlyCandidate   Code = "ONLY_CANDIDATE"
	Eligible        Code = "ELIGIBLE"
	NextAfterFence  Code = "NEXT_AFTER_FENCE"
	NodeConfirmed   Code = "NODE_CONFIRMED_OFF"
	Stays           Code = "STAYS"
	Failback        Code = "FAILBACK"
	Moved           Code = "MOVED_BY_OPERATOR"
	NodeStandby     Code = "NODE_STANDBY"
	NodeWitness     Code = "NODE_WITNESS"
	NodeNotUp       Code = "NODE_NOT_UP"
	NodeLeft        Code = "NODE_LEFT"
	NodeLost        Code = "NODE_LOST"
	NodeFenced      Code = "NODE_FENCED"
	NodeFencing     Code = "NODE_FENCING"
	NodeNotListed   Code = "NODE_NOT_LISTED"
	NodeNotAdmitted Code = "NODE_NOT_ADMITTED"
	StartFailedHere Code = "START_FAILED_HERE"
	FailedHere      Code = "FAILED_HERE"
	LateAttempt     Code = "FENCE_ATTEMPT_PENDING"
	GroupStopped    Code = "GROUP_STOPPED"
	NoCandidate     Code = "NO_CANDIDATE"
	GroupFailed     Code = "GROUP_FAILED"
	StopFailed      Code = "STOP_FAILED"
	Starting        Code = "STARTING"
	Releasing       Code = "RELEASING"
	Removed         Code = "GROUP_REMOVED"
	ResourceKept    Code = "RESOURCE_RESERVED"
	MonitorFailed   Code = "MONITOR_FAILED"
	LeaseLost       Code = "LEASE_LOST"
	CleanStop       Code = "CLEAN_STOP"
	ConfigChanged   Code = "CONFIG_CHANGED"
	Adopted         Code = "ADOPTED"
)

// Detection and fencing.
const (
	LostSilent        Code = "LOST_SILENT"
	LostLease         Code = "LOST_LEASE"
	NewBoot           Code = "NEW_BOOT"
	OperatorFence     Code = "OPERATOR_FENCE"
	WaitsForFence     Code = "WAITS_FOR_FENCE"
	WaitsForAgreement Code = "WAITS_FOR_AGREEMENT"
	WaitsForDrain     Code = "WAITS_FOR_DRAIN"
	WaitsForInitial   Code = "WAITS_FOR_INITIAL_DEAD"
	FenceUnproven     Code = "FENCE_UNPROVEN"
	FenceNoDevice     Code = "FENCE_NO_DEVICE"
	FenceNoExecutor   Code = "FENCE_NO_EXECUTOR"
	RebootUnproven    Code = "REBOOT_UNPROVEN"
	FenceContradicted Code = "FENCE_CONTRADICTED"
	FenceIdentity     Code = "FENCE_IDENTITY"
	FenceDeviceFailed Code = "FENCE_DEVICE_FAILED"
	FenceTrusted      Code = "FENCE_IDENTITY_TRUSTED"
	ProvenOff         Code = "PROVEN_OFF"
	ProvenRebooted    Code = "PROVEN_REBOOTED"
	ProvenHuman       Code = "PROVEN_BY_HUMAN"
	LinkDead          Code = "LINK_DEAD"
	LinkLate          Code = "LINK_LATE"
	NICDeaf           Code = "NIC_DEAF"
	LoopLate          Code = "LOOP_LATE"
)

// Refusals of the state machine: each names the rule that refused.
const (
	RefusedOwned      Code = "REFUSED_OWNED"
	RefusedNotOwner   Code = "REFUSED_NOT_OWNER"
	RefusedStale      Code = "REFUSED_STALE"
	RefusedFenced     Code = "REFUSED_FENCED"
	RefusedUnknown    Code = "REFUSED_UNKNOWN"
	RefusedExists     Code = "REFUSED_EXISTS"
	RefusedEvidence   Code = "REFUSED_EVIDENCE"
	RefusedIdle       Code = "REFUSED_OWNED_NOTHING"
	RefusedRevision   Code = "REFUSED_REVISION"
	RefusedConfig     Code = "REFUSED_CONFIG"
	RefusedToken      Code = "REFUSED_TOKEN"
	RefusedNotAllowed Code = "REFUSED_NOT_ALLOWED"
	RefusedOpen       Code = "REFUSED_OPEN"
	RefusedSelf       Code = "REFUSED_SELF"
	RefusedAlive      Code = "REFUSED_ALIVE"
	RefusedRestored   Code = "REFUSED_RESTORED"
)

// Cluster conditions.
const (
	NoQuorum     Code = "NO_QUORUM"
	NoLeader     Code = "NO_LEADER"
	NoConfig     Code = "NO_CONFIG"
	TooFewVoters Code = "TOO_FEW_VOTERS"
	VoterDown    Code = "VOTER_DOWN"
	LastKnown    Code = "LAST_KNOWN"
	AllWell      Code = "ALL_WELL"
)

// catalogue is sorted by code at package initialisation; it is never written again.
var catalogue = sorted([]Entry{
	{PreferredNode, Info, "{node} is the most preferred node that may own it", ""},
	{OnlyCandidate, Info, "{node} is the only node that may own it now", ""},
	{Eligible, Info, "{node} may own it", ""},
	{NextAfterFence, Info, "{node} is next, once {owner} is proven off", ""},
	{NodeConfirmed, Warning, "{node} counts as off by the word of {operator}", "keep {node} off until it is mended, then start it: it rejoins by itself"},
	{Stays, Info, "it stays on {node}: failback is off", ""},
	{Failback, Info, "it goes back to {node}, the preferred node: failback is on", ""},
	{Moved, Info, "an operator moved it to {node}", ""},
	{NodeStandby, Warning, "{node} is on standby", "to use it again: picket node online {node}"},
	{NodeWitness, Info, "{node} is a witness: it votes and never owns", ""},
	{NodeNotUp, Warning, "{node} has not announced itself since the cluster started", "start picket on {node}: systemctl start picket"},
	{NodeLeft, Warning, "{node} left cleanly: its daemon was stopped", "start picket on {node}: systemctl start picket"},
	{NodeLost, Warning, "{node} is lost: {why}", "look at {node}; it rejoins by itself when it is back"},
	{NodeFenced, Warning, "{node} was fenced and is not back yet", "look at {node}: it was powered off and on; it rejoins by itself"},
	{NodeFencing, Critical, "{node} is being fenced", ""},
	{NodeNotListed, Info, "{node} is not in the group's list of nodes", ""},
	{NodeNotAdmitted, Critical, "{node} is named in group {group} but has not joined the cluster", "join it: picket token create, then picket join on {node}; or set single_node: accepted"},
	{StartFailedHere, Critical, "it failed to start on {node}: {why}", "mend the cause, then: picket group start {group}"},
	{FailedHere, Warning, "group {group} failed on {node}: {why}; until a cleanup other nodes come first", "mend the cause, then: picket group cleanup {group}"},
	{LateAttempt, Warning, "a power command against {node} may still be on its way", ""},
	{GroupStopped, Info, "an operator stopped the group", "to start it again: picket group start {group}"},
	{NoCandidate, Critical, "no node may own it now: {why}", ""},
	{GroupFailed, Critical, "it failed on every node that may own it: {why}", "mend the cause, then: picket group start {group}"},
	{StopFailed, Critical, "it could not be stopped on {node}: {why}", "{node} is fenced next; look at the resource there"},
	{Starting, Info, "it is being started on {node}", ""},
	{Releasing, Info, "{node} is stopping it: {why}", ""},
	{Removed, Info, "the group was removed from the configuration", ""},
	{ResourceKept, Warning, "resource {resource} is still reserved to {node}, which has not reported it stopped", ""},
	{MonitorFailed, Warning, "resource {resource} failed on {node}: {why}", ""},
	{LeaseLost, Warning, "{node} lost its lease and stopped it", ""},
	{CleanStop, Info, "{node} was stopped cleanly", ""},
	{ConfigChanged, Info, "the configuration changed", ""},
	{Adopted, Info, "{node} restarted its daemon and kept what was running", ""},

	{LostSilent, Warning, "no heartbeat of {node} on any link and no lease tick for {age}", "look at the power and the network of {node}; while it owns nothing it is not fenced"},
	{LostLease, Warning, "{node} owns {groups} and its newest lease tick is {age} old", ""},
	{NewBoot, Info, "{node} came back with a new boot while its old one still owned {groups}", ""},
	{OperatorFence, Info, "an operator asked for it: {why}", ""},
	{WaitsForFence, Critical, "it waits for proof that {node} is off", "if you have cut {node}'s power yourself: picket fence confirm {node}"},
	{WaitsForAgreement, Warning, "{node} is silent here; no other node has agreed yet", ""},
	{WaitsForDrain, Info, "{node} is off; writes on their way may still land for {left}", ""},
	{WaitsForInitial, Info, "{node} has not been heard since the cluster started; it has {left} left", ""},
	{FenceUnproven, Critical, "{node} is lost and it is not proven off: {why}; {groups} held", "check its fence device and power; if you are sure {node} has no power: picket fence confirm {node}"},
	{FenceNoDevice, Critical, "{node} has no fence device", "add one under nodes: {node}: fence: in the cluster file, then picket apply"},
	{FenceNoExecutor, Critical, "no node can reach a fence device of {node}", "check the network between the nodes and the BMC of {node}"},
	{RebootUnproven, Critical, "{node} is back with a new boot, but that does not prove its old one dead: {why}; {groups} held", "if you are sure that this is the same machine, rebooted: picket fence confirm {node}"},
	{FenceContradicted, Critical, "the fence device says {node} is off, but {node} still talks", "the fence device may belong to another machine: check its address in the cluster file"},
	{FenceIdentity, Critical, "the fence device of {node} does not prove which machine it powers: {why}", "check the BMC address; if it is right, set identity: trusted on the fence device"},
	{FenceDeviceFailed, Warning, "fence device {device} of {node} does not answer from {executor}: {why}", "check the BMC's address, user and password file; until then {node} may not be provable dead"},
	{FenceTrusted, Warning, "fence device {device} of {node} is trusted without proof of identity (identity: trusted)", ""},
	{ProvenOff, Info, "{node} was read back as off by {device}", ""},
	{ProvenRebooted, Info, "{node} is back with a new boot: the old one is dead", ""},
	{ProvenHuman, Info, "{operator} confirmed that {node} is off: {why}", ""},
	{LinkDead, Warning, "link {node}:{interface} is dead", "check the cable and the switch port of {interface}"},
	{NICDeaf, Warning, "{interface} of {node} hears nobody", "check the cable and the switch port of {interface} of {node}"},
	{LinkLate, Warning, "link {node}:{interface} is late: last heartbeat {age} ago", ""},
	{LoopLate, Warning, "heartbeat loop ran {late} late (> {limit})", "the machine is overloaded or was paused"},

	{RefusedOwned, Info, "group {group} is owned by {owner}: it must release it, or be proven dead, first", ""},
	{RefusedNotOwner, Info, "{node} does not own group {group} at epoch {epoch}", ""},
	{RefusedStale, Info, "{node} is not the newest incarnation", ""},
	{RefusedFenced, Info, "that boot of {node} has been condemned: it must reboot", ""},
	{RefusedUnknown, Info, "{what} {name} is not known", ""},
	{RefusedExists, Info, "{what} {name} exists already", "choose another one; a node that is gone for good is taken out with: picket node remove"},
	{RefusedEvidence, Info, "the evidence does not prove {node} dead: {why}", ""},
	{RefusedIdle, Info, "{node} owns nothing and no operator asked: it is not fenced", ""},
	{RefusedRevision, Info, "the configuration is at revision {have}, not {want}: read it again and repeat", ""},
	{RefusedConfig, Info, "the configuration was refused: {why}", ""},
	{RefusedToken, Info, "the join token was refused: {why}", ""},
	{RefusedNotAllowed, Info, "{node} may not own group {group}: {why}", ""},
	{RefusedOpen, Info, "{what} is still open: {why}", ""},
	{RefusedSelf, Info, "{node} may not do this to itself", ""},
	{RefusedRestored, Critical, "the state directory of {node} is older than one it used before (start {start}, the cluster has seen {have}): it was restored from a backup", "stop picket on {node}, remove its state directory and node file, remove the node from the cluster and join it again"},
	{RefusedAlive, Info, "{node} shows signs of life ({why}): it is not off", "fence it: picket fence {node}"},

	{NoQuorum, Critical, "no quorum: {reachable} of {voters} voters can be reached", "bring back at least one of the missing nodes; nothing is started or fenced until then"},
	{NoLeader, Warning, "no leader right now: an election is running", ""},
	{NoConfig, Info, "no cluster file has been applied yet", "write one and run: picket apply FILE"},
	{TooFewVoters, Warning, "voters: {voters}; the cluster does not survive the loss of a node yet", "join more nodes: picket token create; the second node gets its vote together with the third"},
	{VoterDown, Warning, "voter {node} is not reachable: the loss of one more node stops the cluster", ""},
	{LastKnown, Warning, "so it was when this node last knew; nobody leads the cluster now", "look at the other nodes; a majority of the voters must be reachable"},
	{AllWell, Info, "all nodes are online and every group runs where it is wanted", ""},
})

func sorted(e []Entry) []Entry {
	sort.Slice(e, func(i, j int) bool { return e[i].Code < e[j].Code })
	return e
}
