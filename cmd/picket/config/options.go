package config

import (
	"net/netip"
	"time"
)

// Where things are unless flags say otherwise, and the one port picket uses (UDP heartbeats, TCP
// everything else).
const (
	DefaultConfigPath = "/etc/picket/node.yaml"
	DefaultStateDir   = "/var/lib/picket"
	DefaultSocket     = "/run/picket/picket.sock"
	DefaultPort       = 6940
	DefaultGroup      = "picket"
	DefaultTokenTTL   = time.Hour
)

// Roles of a node.
const (
	RoleMember  = "member"  // votes and may own groups
	RoleWitness = "witness" // votes and never owns
)

// Paths are the three places every command knows.
type Paths struct {
	ConfigPath string // the local node file, DefaultConfigPath
	StateDir   string // keys, certificates and the log, DefaultStateDir
	Socket     string // the control socket, DefaultSocket
}

// InitOptions are what `picket init` was asked for. Name, Cluster and Links have been checked.
type InitOptions struct {
	Paths
	Name    string
	Cluster string // "picket" unless given
	Links   []Link // at least one
	Port    int    // 1 to 65535
	NoStart bool   // do not install, enable or start the systemd unit
}

// InitResult is what init made.
type InitResult struct {
	ClusterID string
	// Fingerprint is the SHA-256 of the cluster CA, in hex.
	Fingerprint string
	// JoinCommand is the exact command for the next node.
	JoinCommand string
	// Notes are sentences for the operator, in order.
	Notes []string
}

// JoinOptions are what `picket join` was asked for.
type JoinOptions struct {
	Paths
	// Addrs are the addresses of nodes of the cluster, tried in order. At least one.
	Addrs   []netip.AddrPort
	Token   string
	Name    string
	Role    string // RoleMember or RoleWitness
	Links   []Link // at least one
	Port    int    // 1 to 65535: this node's own port
	NoStart bool
}

// JoinResult is what a join made.
type JoinResult struct {
	Cluster   string
	ClusterID string
	// Voter is false while the node waits to be promoted.
	Voter bool
	Notes []string
}

// DaemonOptions are what `picket daemon` was asked for.
type DaemonOptions struct {
	Paths
	// LogLevel is debug, info, warn or error; "" takes it from the node file.
	LogLevel string
}
