package state

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// Config is the clean, replicated cluster configuration. It is produced by cmd/picket/config from
// the cluster file and travels whole in a ConfigSet entry. Slices are sorted by name, except where
// order carries meaning (GroupConfig.Nodes, GroupConfig.Resources, NodeConfig.Fence).
type Config struct {
	// Cluster is the cluster's name; it must match the one the node was initialised with.
	Cluster string `json:"cluster"`
	// Timing holds every interval that the safety argument or the detector uses.
	Timing Timing `json:"timing"`
	// SingleNode is "accepted" where the operator allows grants while a node named in a group is not
	// admitted yet (docs/safety.md, rule 15: "single_node: accepted").
	SingleNode bool          `json:"single_node,omitempty"`
	Nodes      []NodeConfig  `json:"nodes"`
	Groups     []GroupConfig `json:"groups"`
	// Source is the text of the cluster file as the operator wrote it, kept so that `config show`
	// gives back comments and order. At most MaxConfigSource bytes. Never holds a secret: passwords
	// live in files that the config names.
	Source string `json:"source,omitempty"`
}

// MaxConfigSource is the largest cluster file accepted, in bytes.
const MaxConfigSource = 1 << 20

// Timing is every duration of the protocol, in nanoseconds in JSON. All are positive. The
// inequalities between them are checked together by CheckTiming.
type Timing struct {
	// Profile is the name of the profile the values come from: fast, default, cautious or custom.
	Profile string `json:"profile"`
	// Interval is the time between two heartbeats on a link.
	Interval time.Duration `json:"interval"`
	// Warn is the age of the last heartbeat at which a link is called late.
	Warn time.Duration `json:"warn"`
	// Dead is the age of the last heartbeat at which a link is called dead.
	Dead time.Duration `json:"dead"`
	// InitialDead is how long after quorum was first reached a node that never spoke is waited for.
	InitialDead time.Duration `json:"initial_dead"`
	// RestartGrace is how long a node whose kernel refuses connections (daemon dead, kernel alive) is
	// left before it is called lost; never less than Dead (docs/safety.md, rule 13).
	RestartGrace time.Duration `json:"restart_grace"`
	// RaftHeartbeat, RaftElection and RaftLease are hashicorp/raft's HeartbeatTimeout,
	// ElectionTimeout and LeaderLeaseTimeout. They are local settings of the store at start-up.
	RaftHeartbeat time.Duration `json:"raft_heartbeat"`
	RaftElection  time.Duration `json:"raft_election"`
	RaftLease     time.Duration `json:"raft_lease"`
	// Renew is the interval h at which an owner renews its lease.
	Renew time.Duration `json:"renew"`
	// Lease is L: how long a granted renewal lets an owner act, from the moment it was sent.
	Lease time.Duration `json:"lease"`
	// StopBudget is S: the last part of the lease, kept for stopping resources.
	StopBudget time.Duration `json:"stop_budget"`
	// DiskStall is D_c: the age of a store call at which the leader lets others elect.
	DiskStall time.Duration `json:"disk_stall"`
	// GrantLatency (g) and Retry (r) are the allowances for a grant's commit and for one lost message.
	GrantLatency time.Duration `json:"grant_latency"`
	Retry        time.Duration `json:"retry"`
	// Drain is delta: how long writes issued before a node's death may still land on shared storage.
	Drain time.Duration `json:"drain"`
}

// Lost is D_lost = L + 2h: the age of an owner's newest tick at which it is lost even though its
// links still speak (docs/safety.md, rule 12).
func (t Timing) Lost() time.Duration { return t.Lease + 2*t.Renew }

// NodeConfig is what the cluster file says of one node.
type NodeConfig struct {
	Name ids.Node `json:"name"`
	// Fence holds the node's fence devices in the order of their levels.
	Fence []FenceDevice `json:"fence,omitempty"`
}

// FenceDevice is one configured way to make a node provably dead. Exactly one of the kinds is set.
type FenceDevice struct {
	// ID names the device within its node: "ipmi-1" is the first. Stable across applies of the same list.
	ID string `json:"id"`
	// Level orders devices: lower levels are tried first, all devices of a level must succeed.
	Level int       `json:"level"`
	IPMI  *IPMIOpts `json:"ipmi,omitempty"`
}

// IPMIOpts is the clean form of an ipmitool-style option string (ipmitool(1)).
type IPMIOpts struct {
	Host string `json:"host"` // -H: address or name of the BMC
	Port uint16 `json:"port"` // -p: UDP port, 623 unless given
	User string `json:"user"` // -U
	// PasswordFile (-f) is read on the node that executes, at the moment of use. PasswordEnv (-E) takes
	// the password from IPMITOOL_PASSWORD or IPMI_PASSWORD of the daemon's environment.
	PasswordFile string `json:"password_file,omitempty"`
	PasswordEnv  bool   `json:"password_env,omitempty"`
	// Privilege (-L) is USER, OPERATOR or ADMINISTRATOR; OPERATOR unless given.
	Privilege string `json:"privilege"`
	// Suite (-C) is the RMCP+ cipher suite: 3 or 17; 17 unless given.
	Suite int `json:"suite"`
	// Interval (-N) is the time between retransmissions and Retries (-R) their number.
	Interval time.Duration `json:"interval"`
	Retries  int           `json:"retries"`
	// TrustIdentity is the operator's word (`identity: trusted`) that this BMC belongs to this node,
	// where its GUID does not match the machine's DMI uuid. Loud in status.
	TrustIdentity bool `json:"trust_identity,omitempty"`
}

// GroupConfig is one group: resources that live together on one node.
type GroupConfig struct {
	Name ids.Group `json:"name"`
	// Nodes is the preference order; only these may own the group.
	Nodes []ids.Node `json:"nodes"`
	// Failback moves the group to a more preferred node when one is free; the default is to stay.
	Failback  bool             `json:"failback,omitempty"`
	Resources []ResourceConfig `json:"resources"`
	// StopTimeout bounds an orderly stop; past it the stop has failed (docs/safety.md, rule 14).
	StopTimeout time.Duration `json:"stop_timeout"`
	// StartTimeout bounds a start.
	StartTimeout time.Duration `json:"start_timeout"`
}

// ResourceConfig is one resource of a group. Exactly one of the kinds is set.
type ResourceConfig struct {
	ID ids.Resource `json:"id"`
	// Monitor is the interval between two checks of a running resource.
	Monitor time.Duration `json:"monitor"`
	IP      *IPResource   `json:"ip,omitempty"`
}

// Kind names the resource's kind as users write it.
func (r ResourceConfig) Kind() string {
	if r.IP != nil {
		return "ip"
	}
	return "unknown"
}

// Drains reports whether writes of a dead owner may still land after its death, so that a takeover
// must wait Timing.Drain after a power-off was read back. An address holds no data: it does not.
func (r ResourceConfig) Drains() bool { return r.IP == nil }

// IPResource is a service address (resources/ip).
type IPResource struct {
	Prefix    netip.Prefix `json:"prefix"`    // address and prefix length, e.g. 192.168.60.200/24
	Interface string       `json:"interface"` // e.g. eth0
	// ProbeWait is how long the duplicate-address probe waits for an answer; 40 ms unless given. RFC
	// 5227 1.1 asks for 1-2 s, which no failover can afford.
	ProbeWait time.Duration `json:"probe_wait"`
	// Refresh is the interval of the periodic gratuitous ARP; 10 s unless given.
	Refresh time.Duration `json:"refresh"`
}

// Node returns the configuration of a node, or nil.
func (c *Config) Node(n ids.Node) *NodeConfig {
	for i := range c.Nodes {
		if c.Nodes[i].Name == n {
			return &c.Nodes[i]
		}
	}
	return nil
}

// Group returns the configuration of a group, or nil.
func (c *Config) Group(g ids.Group) *GroupConfig {
	for i := range c.Groups {
		if c.Groups[i].Name == g {
			return &c.Groups[i]
		}
	}
	return nil
}

// Device returns a node's fence device by id, or nil.
func (n *NodeConfig) Device(id string) *FenceDevice {
	for i := range n.Fence {
		if n.Fence[i].ID == id {
			return &n.Fence[i]
		}
	}
	return nil
}

// Profile returns the timing of a named profile (docs/timing.md): fast, default or cautious.
func Profile(name string) (Timing, error) {
	const ms = time.Millisecond
	switch name {
	case "fast":
		return Timing{Profile: name, Interval: 100 * ms, Warn: 250 * ms, Dead: 500 * ms, InitialDead: 10_000 * ms, RestartGrace: 1500 * ms,
			RaftHeartbeat: 300 * ms, RaftElection: 300 * ms, RaftLease: 150 * ms, Renew: 400 * ms, Lease: 3000 * ms, StopBudget: 500 * ms,
			DiskStall: 300 * ms, GrantLatency: 100 * ms, Retry: 200 * ms, Drain: 1000 * ms}, nil
	case "", "default":
		return Timing{Profile: "default", Interval: 200 * ms, Warn: 500 * ms, Dead: 1000 * ms, InitialDead: 30_000 * ms, RestartGrace: 3000 * ms,
			RaftHeartbeat: 400 * ms, RaftElection: 400 * ms, RaftLease: 200 * ms, Renew: 800 * ms, Lease: 5000 * ms, StopBudget: 1000 * ms,
			DiskStall: 500 * ms, GrantLatency: 100 * ms, Retry: 300 * ms, Drain: 2000 * ms}, nil
	case "cautious":
		return Timing{Profile: name, Interval: 400 * ms, Warn: 1000 * ms, Dead: 2000 * ms, InitialDead: 60_000 * ms, RestartGrace: 5000 * ms,
			RaftHeartbeat: 1000 * ms, RaftElection: 1000 * ms, RaftLease: 500 * ms, Renew: 1500 * ms, Lease: 10_000 * ms, StopBudget: 2000 * ms,
			DiskStall: 500 * ms, GrantLatency: 500 * ms, Retry: 500 * ms, Drain: 10_000 * ms}, nil
	}
	return Timing{}, fmt.Errorf("timing profile %q is not known: use fast, default or cautious", name)
}

// CheckTiming checks every inequality of docs/timing.md between the durations and returns the first
// that fails, in numbers.
func CheckTiming(t Timing) error {
	type row struct {
		text string
		a, b time.Duration // a <= b must hold
	}
	e := 3*t.RaftHeartbeat + 2*t.RaftElection
	rows := []row{
		{"raft lease <= raft heartbeat", t.RaftLease, t.RaftHeartbeat},
		{"raft heartbeat <= raft election", t.RaftHeartbeat, t.RaftElection},
		{"10ms <= heartbeat interval", 10 * time.Millisecond, t.Interval},
		{"2 x interval <= warn", 2 * t.Interval, t.Warn},
		{"warn + interval <= dead", t.Warn + t.Interval, t.Dead},
		{"dead <= initial_dead", t.Dead, t.InitialDead},
		{"dead <= restart_grace", t.Dead, t.RestartGrace},
		{"renew + grant + election + retry + disk stall <= lease - stop budget",
			t.Renew + t.GrantLatency + e + t.Retry + t.DiskStall, t.Lease - t.StopBudget},
		{"failed transfer: renew + grant + 2 x raft election + retry <= lease - stop budget",
			t.Renew + t.GrantLatency + 2*t.RaftElection + t.Retry, t.Lease - t.StopBudget},
		{"renew + grant + election + retry + disk stall <= lost (lease + 2 x renew)",
			t.Renew + t.GrantLatency + e + t.Retry + t.DiskStall, t.Lost()},
		{"restart_grace <= lost - renew - grant", t.RestartGrace, t.Lost() - t.Renew - t.GrantLatency},
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"interval", t.Interval}, {"warn", t.Warn}, {"dead", t.Dead}, {"initial_dead", t.InitialDead}, {"restart_grace", t.RestartGrace},
		{"raft_heartbeat", t.RaftHeartbeat}, {"raft_election", t.RaftElection}, {"raft_lease", t.RaftLease}, {"renew", t.Renew},
		{"lease", t.Lease}, {"stop_budget", t.StopBudget}, {"disk_stall", t.DiskStall}, {"grant_latency", t.GrantLatency}, {"retry", t.Retry}} {
		if d.v <= 0 || d.v > time.Hour {
			return fmt.Errorf("timing: %s is %v: it must be more than 0 and at most 1h", d.name, d.v)
		}
	}
	if t.Drain < 0 || t.Drain > time.Hour {
		return fmt.Errorf("timing: drain is %v: it must be 0 to 1h", t.Drain)
	}
	for _, r := range rows {
		if r.a > r.b {
			return fmt.Errorf("timing: %s does not hold: %v > %v", r.text, r.a, r.b)
		}
	}
	return nil
}
