package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/picket-ha/picket/consensus/ids"
)

// MaxNodeFile is the largest local node file accepted, in bytes.
const MaxNodeFile = 64 << 10

// Node is the local node file, /etc/picket/node.yaml: what this machine must know before it can talk
// to anyone. init and join write it.
type Node struct {
	Cluster string
	// ClusterID is the identity init gave the cluster: 8 to 64 lower-case hex digits (and '-').
	ClusterID string
	Name      string
	Role      string // RoleMember or RoleWitness
	Links     []Link
	Port      int    // 1 to 65535, UDP and TCP; DefaultPort unless given
	Group     string // unix group that may open the control socket; DefaultGroup unless given
	LogLevel  string // debug, info, warn or error; info unless given
}

// logLevels are the accepted log levels.
var logLevels = []string{"debug", "info", "warn", "error"}

// unixGroup is what groupadd(8) accepts by default.
var unixGroup = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

var nodeFileKeys = keys{
	known: []string{"cluster", "cluster_id", "name", "role", "links", "port", "group", "log_level"},
	later: []string{"watchdog", "metrics"},
}

// ReadNode reads and parses the local node file. A file that is not there is an error for which
// errors.Is(err, os.ErrNotExist) holds, and which says what to do.
func ReadNode(path string) (Node, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Node{}, fmt.Errorf("this node belongs to no cluster yet (%w): run picket init or picket join", err)
	case err != nil:
		return Node{}, fmt.Errorf("the node file cannot be read: %w", err)
	case !fi.Mode().IsRegular():
		return Node{}, fmt.Errorf("the node file %s is not a regular file", path)
	case fi.Size() > MaxNodeFile:
		return Node{}, fmt.Errorf("the node file %s is %d bytes long: at most %d are accepted", path, fi.Size(), MaxNodeFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Node{}, fmt.Errorf("the node file cannot be read: %w", err)
	}
	return ParseNode(path, data)
}

// ParseNode parses a local node file. On error it returns *Errors with everything found.
func ParseNode(name string, data []byte) (Node, error) {
	d := newDoc(name, data)
	root := d.parse(data, MaxNodeFile)
	if len(d.errs) > 0 {
		return Node{}, d.err()
	}
	n := Node{Role: RoleMember, Port: DefaultPort, Group: DefaultGroup, LogLevel: "info"}
	seen := map[string]bool{}
	for _, f := range d.fields(root, "the node file", "for example 'name: node1'") {
		if !d.known(f, "the node file", nodeFileKeys) {
			continue
		}
		seen[f.name] = true
		d.nodeField(&n, f)
	}
	for _, need := range []string{"cluster", "cluster_id", "name", "links"} {
		if !seen[need] && len(d.errs) == 0 {
			d.failAt(1, 1, "restore it: picket init and picket join write it", "the node file has no key '%s'", need)
		}
	}
	if err := d.err(); err != nil {
		return Node{}, err
	}
	return n, nil
}

func (d *doc) nodeField(n *Node, f field) {
	if f.name == "links" {
		n.Links = d.links(f)
		return
	}
	if f.name == "port" {
		n.Port = d.integer(f, "port", 1, 65535)
		return
	}
	s, ok := d.text(f, f.name, "a value")
	if !ok {
		return
	}
	switch f.name {
	case "cluster":
		n.Cluster = s
	case "cluster_id":
		n.ClusterID = s
	case "name":
		n.Name = s
	case "role":
		n.Role = s
	case "group":
		n.Group = s
	case "log_level":
		n.LogLevel = s
	}
	if err := checkNodeValue(f.name, s); err != nil {
		d.fail(f.val, "", "%s", err)
	}
}

func checkNodeValue(key, s string) error {
	switch key {
	case "cluster":
		return ids.CheckName("the cluster's name", s)
	case "name":
		return ids.CheckName("the node's name", s)
	case "cluster_id":
		raw := strings.ReplaceAll(s, "-", "")
		if _, err := hex.DecodeString(raw); err != nil || len(raw) < 8 || len(s) > 64 || strings.ToLower(s) != s {
			return fmt.Errorf("cluster_id '%s' is not a cluster id: 8 to 64 lower-case hex digits were expected", clip(s))
		}
	case "role":
		if s != RoleMember && s != RoleWitness {
			return fmt.Errorf("role is '%s': use member or witness", clip(s))
		}
	case "group":
		if !unixGroup.MatchString(s) {
			return fmt.Errorf("group '%s' is not the name of a unix group", clip(s))
		}
	case "log_level":
		for _, l := range logLevels {
			if l == s {
				return nil
			}
		}
		return fmt.Errorf("log_level is '%s': use %s", clip(s), strings.Join(logLevels, ", "))
	}
	return nil
}

func (d *doc) links(f field) []Link {
	var out []Link
	before := len(d.errs)
	items := d.items(f.val, "links", "one entry per NIC, such as '- {interface: eth0, address: 192.168.60.11}'")
	if len(items) > MaxLinks {
		d.fail(f.key, "", "%d links are given: at most %d are accepted", len(items), MaxLinks)
		return nil
	}
	for _, it := range items {
		var l Link
		for _, k := range d.fields(it, "a link", "{interface: eth0, address: 192.168.60.11}") {
			if !d.known(k, "a link", keys{known: []string{"interface", "address"}}) {
				continue
			}
			s, ok := d.text(k, k.name, "a value")
			if !ok {
				continue
			}
			if k.name == "interface" {
				l.Interface = s
				continue
			}
			a, err := netip.ParseAddr(s)
			if err != nil {
				d.fail(k.val, "write the bare address, such as 192.168.60.11", "'%s' is not an IP address", clip(s))
				continue
			}
			l.Addr = a.Unmap()
		}
		out = append(out, l)
		if len(d.errs) == before {
			if err := checkLink(l); err != nil {
				d.fail(it, "", "%s", err)
			}
		}
	}
	if len(d.errs) == before {
		if err := CheckLinks(out); err != nil {
			d.fail(f.where(), "", "%s", err)
		}
	}
	return out
}

// Check reports what is wrong with the values, or nil.
func (n Node) Check() error {
	for _, kv := range [][2]string{{"cluster", n.Cluster}, {"cluster_id", n.ClusterID}, {"name", n.Name}, {"role", n.Role}, {"group", n.Group}, {"log_level", n.LogLevel}} {
		if err := checkNodeValue(kv[0], kv[1]); err != nil {
			return err
		}
	}
	if err := CheckPort(n.Port); err != nil {
		return err
	}
	return CheckLinks(n.Links)
}

// Encode renders the file, with comments. ParseNode(Encode()) gives the same Node.
func (n Node) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# The local settings of this picket node, written by picket init or picket join.
# What the whole cluster shares (nodes, fence devices, groups) is in the cluster file:
# see it with "picket config show", change it with "picket apply FILE".
# After a change here: systemctl restart picket

cluster: %q
cluster_id: %q          # the cluster's identity: never change it
name: %q                # this node's name, as in its certificate: never change it
role: %s                # member (votes, may own groups) or witness (votes, never owns)

# The NICs that carry heartbeats and everything between nodes, with this node's address on each.
links:
`, n.Cluster, n.ClusterID, n.Name, n.Role)
	for _, l := range n.Links {
		fmt.Fprintf(&b, "  - {interface: %q, address: %s}\n", l.Interface, l.Addr)
	}
	fmt.Fprintf(&b, `
port: %d                # UDP heartbeats and TCP, on every node the same
group: %q               # unix group whose members may read status; only root may change things
log_level: %s           # debug, info, warn or error
`, n.Port, n.Group, n.LogLevel)
	return b.Bytes()
}

// Write checks n and writes it to path: whole or not at all, mode 0644 (it holds no secret). The
// directory is made (0755) when it is missing.
func (n Node) Write(path string) error {
	if err := n.Check(); err != nil {
		return fmt.Errorf("the node file is not written: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("the node file is not written: %w", err)
	}
	if err := WriteFile(path, n.Encode(), 0o644); err != nil {
		return fmt.Errorf("the node file is not written: %w", err)
	}
	return nil
}

// WriteFile replaces path by data, whole or not at all: a temporary file beside it, fsync, rename,
// fsync of the directory. The mode is exact whatever the umask. A symbolic link at path is replaced,
// not followed.
func WriteFile(path string, data []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // CreateTemp opens 0600 with O_EXCL
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
