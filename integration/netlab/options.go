// Package netlab is a cluster on one machine: every node has its own network, pid, mount, uts
// and ipc namespace with an init of ours as pid 1, two network cards on two bridges, a
// management card, and a BMC that really ends and revives it. Beside the nodes stand a client
// and an observer on the public network.
//
// Everything belongs to one supervisor process, which is pid 1 of a pid namespace inside a user
// namespace: when it ends, however it ends, the kernel takes everything with it, and nothing it
// does can reach the host's network, mounts or processes.
package netlab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"time"
)

// ErrUnsupported says that this machine cannot run the lab, and why. Tests skip on it, aloud.
var ErrUnsupported = errors.New("this machine cannot run the lab")

// Limits that keep a slip of the finger from eating the machine.
const (
	// MaxNodes is the largest lab.
	MaxNodes = 9
	// DefaultBootDelay is the time from power-on to the start of the node's daemon.
	DefaultBootDelay = 300 * time.Millisecond
)

// Names that are not nodes but may be used where a node is asked for.
const (
	// Client is the host on the public network that uses the service (192.168.60.250).
	Client = "client"
)

// Links of a node.
const (
	// LinkPublic is the card on the public network, 192.168.60.0/24.
	LinkPublic = "eth0"
	// LinkHeartbeat is the card on the heartbeat network, 10.10.10.0/24.
	LinkHeartbeat = "eth1"
	// LinkMgmt is the card on the management network, 10.20.30.0/24: BMC traffic only.
	LinkMgmt = "mgmt0"
	// LinkBMC is the card of the node's BMC on the management network.
	LinkBMC = "bmc"
)

// Direction says which packets a cut drops, seen from the node.
type Direction string

// Directions of a cut.
const (
	// Both drops everything.
	Both Direction = "both"
	// In drops what others send to the node: it is deaf.
	In Direction = "in"
	// Out drops what the node sends: it is mute.
	Out Direction = "out"
)

// BMC user and password of every BMC in the lab. The password also lies in
// /etc/picket/NODE.bmc (mode 0600) of every node, without a newline.
const (
	BMCUser     = "admin"
	BMCPassword = "lab-secret"
)

// Options describes a lab.
type Options struct {
	// Dir holds the lab's files: state of the nodes, logs, records, control socket. It is
	// created. Empty means DefaultDir.
	Dir string `json:"dir"`
	// Nodes are the node names (default node1, node2, node3).
	Nodes []string `json:"nodes"`
	// Witness names the node that is meant as witness. The lab treats it like the others;
	// status tells it to whoever builds the cluster.
	Witness string `json:"witness,omitempty"`
	// Picket is the picket binary. It is copied at start and found in PATH on every node.
	// Empty: none.
	Picket string `json:"picket,omitempty"`
	// Daemon is the command line of a node's daemon (default picket daemon).
	Daemon []string `json:"daemon"`
	// Env is added to the environment of every program on a node, as NAME=VALUE.
	Env []string `json:"env,omitempty"`
	// Autostart starts the daemon at the very first boot too. Without it, StartDaemon does, and
	// from then on every later boot of that node.
	Autostart bool `json:"autostart,omitempty"`
	// BootDelay is the time from power-on to the daemon's start (default 300 ms).
	BootDelay time.Duration `json:"boot_delay"`
	// RestartDaemon is how long after the daemon ended by itself it is started again, as a
	// service manager would. Zero: never.
	RestartDaemon time.Duration `json:"restart_daemon,omitempty"`
	// VIPs are watched by the ARP and echo probers from the start; Watch adds more.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// Rootless insists on a user namespace. Without it the lab uses one whenever the kernel
	// lets it, and root may do without.
	Rootless bool `json:"rootless,omitempty"`
	// Detach lets the lab outlive the process that started it (picket-lab up). Otherwise it
	// ends with its starter, even when that is killed.
	Detach bool `json:"detach,omitempty"`
	// Echo, when set, receives every ip and nft command with its namespace.
	Echo io.Writer `json:"-"`
}

var nodeName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,8}$`)

func (o Options) withDefaults() (Options, error) {
	if len(o.Nodes) == 0 {
		o.Nodes = []string{"node1", "node2", "node3"}
	}
	if len(o.Nodes) > MaxNodes {
		return o, fmt.Errorf("a lab has at most %d nodes, not %d", MaxNodes, len(o.Nodes))
	}
	seen := make(map[string]bool)
	for _, n := range o.Nodes {
		// Port names are NODE-LINK and an interface name has at most 15 bytes (IFNAMSIZ).
		if !nodeName.MatchString(n) || n == Client || n == "observer" {
			return o, fmt.Errorf("%q is not a node name for the lab: use a lower-case letter and up to eight more letters, digits or dashes", n)
		}
		if seen[n] {
			return o, fmt.Errorf("two nodes are named %q", n)
		}
		seen[n] = true
	}
	if o.Witness != "" && !seen[o.Witness] {
		return o, fmt.Errorf("the witness %q is not one of the nodes", o.Witness)
	}
	if o.Dir == "" {
		o.Dir = DefaultDir()
	}
	if len(o.Daemon) == 0 {
		o.Daemon = []string{"picket", "daemon"}
	}
	if o.BootDelay == 0 {
		o.BootDelay = DefaultBootDelay
	}
	return o, nil
}

// Addresses of the lab.
const (
	publicNet    = "192.168.60."
	heartbeatNet = "10.10.10."
	mgmtNet      = "10.20.30."
)

// Addr is the address of node number i (from 0) on a link; LinkBMC gives its BMC's.
func Addr(i int, link string) netip.Addr {
	switch link {
	case LinkPublic:
		return netip.MustParseAddr(fmt.Sprintf("%s%d", publicNet, 11+i))
	case LinkHeartbeat:
		return netip.MustParseAddr(fmt.Sprintf("%s%d", heartbeatNet, 11+i))
	case LinkMgmt:
		return netip.MustParseAddr(fmt.Sprintf("%s%d", mgmtNet, 11+i))
	case LinkBMC:
		return netip.MustParseAddr(fmt.Sprintf("%s%d", mgmtNet, 101+i))
	}
	return netip.Addr{}
}

// clientAddr and observerAddr are the hosts on the public network that are not nodes.
func clientAddr() netip.Addr   { return netip.MustParseAddr(publicNet + "250") }
func observerAddr() netip.Addr { return netip.MustParseAddr(publicNet + "251") }

// MAC is the hardware address of node number i on a link. It is the same after every boot, as a
// real card's is, and tells node and link to whoever reads a capture.
func MAC(i int, link string) string {
	n := map[string]int{LinkPublic: 0x60, LinkHeartbeat: 0x10, LinkMgmt: 0x30, LinkBMC: 0x31}[link]
	return fmt.Sprintf("02:00:00:00:%02x:%02x", n, 0x11+i)
}

// UUID is the machine uuid of node number i: what its firmware would report as product_uuid
// (SMBIOS type 1), and its BMC as GUID. Nodes find it in PICKET_MACHINE_UUID and in the file
// that PICKET_MACHINE_UUID_FILE names.
func UUID(i int) string {
	return fmt.Sprintf("6c616200-7069-4b65-8174-0000000000%02x", 0x11+i)
}
