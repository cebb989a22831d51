package config

import (
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// Bounds on what one cluster file may hold.
const (
	MaxNodes     = 32
	MaxGroups    = 256
	MaxResources = 64 // of one group
	MaxDevices   = 8  // fence devices of one node
	MaxLevel     = 8
)

// Cluster is a cluster file, read.
type Cluster struct {
	Config state.Config
	// Secrets are the passwords that the file holds inline (ipmitool -P). They are not in Config, but
	// they are in Config.Source: Config must not leave this process while there are any. See Externalise.
	Secrets []Secret
	// Warnings are findings that do not refuse the file, FILE:LINE:COLUMN: text each.
	Warnings []string

	options map[secretKey]deviceOptions
}

// Secret is one inline password. It never prints.
type Secret struct {
	Node     ids.Node
	Device   string // state.FenceDevice.ID
	Password string
	// Line and Column are where the option string begins.
	Line, Column int
}

// String hides the password from %v and %s.
func (s Secret) String() string { return fmt.Sprintf("inline password of %s of %s", s.Device, s.Node) }

// GoString hides the password from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the password from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the password from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

type secretKey struct {
	node   ids.Node
	device string
}

// deviceOptions remembers where an option string stands.
type deviceOptions struct {
	text         string
	line, column int
}

var (
	topKeys = keys{
		known: []string{"cluster", "timing", "heartbeat", "single_node", "nodes", "groups"},
		later: []string{"connectivity", "watchdog", "watchdog_evidence", "port"},
	}
	nodeKeys = keys{known: []string{"fence"}, later: []string{"watchdog", "role", "mode"}}
)

// ParseCluster reads a cluster file. name is used in messages. On error it returns *Errors with
// everything found. It never panics, whatever data holds.
func ParseCluster(name string, data []byte) (Cluster, error) {
	r := &clusterReader{doc: newDoc(name, data), options: map[secretKey]deviceOptions{}, where: map[string]ast.Node{}}
	root := r.parse(data, state.MaxConfigSource)
	if len(r.errs) > 0 {
		return Cluster{}, r.err()
	}
	r.top(root)
	if len(r.errs) == 0 {
		r.cross()
		r.comments()
	}
	if err := r.err(); err != nil {
		return Cluster{}, err
	}
	r.cfg.Source = string(data)
	out := Cluster{Config: r.cfg, Secrets: r.secrets, options: r.options}
	byPlace(r.warns)
	for _, w := range r.warns {
		out.Warnings = append(out.Warnings, w.Head())
	}
	return out, nil
}

// clusterReader gathers a state.Config from a document.
type clusterReader struct {
	*doc
	cfg     state.Config
	secrets []Secret
	options map[secretKey]deviceOptions
	// where remembers the place of a thing for the checks that compare: "node/NAME", "id/RESOURCE", ...
	where map[string]ast.Node
	// uses lists the nodes that groups name, in file order.
	uses []use
}

type use struct {
	group ids.Group
	node  ids.Node
	at    ast.Node
}

func (r *clusterReader) top(root ast.Node) {
	fields := r.fields(root, "the cluster file", "for example 'cluster: prod'")
	byName := map[string]field{}
	for _, f := range fields {
		if r.known(f, "the cluster file", topKeys) {
			byName[f.name] = f
		}
	}
	for _, need := range []string{"cluster", "nodes"} {
		if _, ok := byName[need]; !ok && len(r.errs) == 0 {
			r.failAt(1, 1, map[string]string{"cluster": "add a line such as 'cluster: prod'",
				"nodes": "add a section such as 'nodes: {node1: {}, node2: {}}'"}[need], "the cluster file has no key '%s'", need)
		}
	}
	if f, ok := byName["cluster"]; ok {
		r.cfg.Cluster = r.name(f, "the cluster's name", "a name such as prod")
	}
	if f, ok := byName["single_node"]; ok {
		if s, ok := r.text(f, "single_node", "accepted"); ok && s != "accepted" {
			r.fail(f.val, "write 'single_node: accepted', or remove the line", "single_node is '%s': the only value is accepted", clip(s))
		}
		r.cfg.SingleNode = true
	}
	r.timing(byName)
	if f, ok := byName["nodes"]; ok {
		r.nodes(f)
	}
	if f, ok := byName["groups"]; ok {
		r.groups(f)
	}
}

func (r *clusterReader) name(f field, what, example string) string {
	s, ok := r.text(f, what, example)
	if !ok {
		return ""
	}
	if err := ids.CheckName(what, s); err != nil {
		r.fail(f.where(), "", "%s", err)
		return ""
	}
	return s
}

// keyName checks a mapping key that is a name.
func (r *clusterReader) keyName(f field, what string) bool {
	if err := ids.CheckName(what, f.name); err != nil {
		r.fail(f.key, "", "%s", err)
		return false
	}
	return true
}

// timingKeys are the keys of `timing:` and `heartbeat:` and where their values go.
func timingKeys(t *state.Timing) (timing, heartbeat map[string]*time.Duration) {
	return map[string]*time.Duration{"renew": &t.Renew, "lease": &t.Lease, "stop_budget": &t.StopBudget,
			"restart_grace": &t.RestartGrace, "drain": &t.Drain, "raft_heartbeat": &t.RaftHeartbeat, "raft_election": &t.RaftElection,
			"raft_lease": &t.RaftLease, "disk_stall": &t.DiskStall, "grant_latency": &t.GrantLatency, "retry": &t.Retry},
		map[string]*time.Duration{"interval": &t.Interval, "warn": &t.Warn, "dead": &t.Dead, "initial_dead": &t.InitialDead}
}

func (r *clusterReader) timing(top map[string]field) {
	t, hasTiming := top["timing"]
	h, hasHeart := top["heartbeat"]
	profile, fields := "default", []field(nil)
	at := map[string]ast.Node{}
	before := len(r.errs)
	if hasTiming {
		at[""] = t.key
		if s, ok := scalarText(t.val); ok && !isNull(t.val) {
			profile, at["profile"] = s, t.val
		} else {
			fields = r.fields(t.where(), "timing", "a profile (fast, default or cautious), or keys such as {profile: fast, drain: 2s}")
		}
		for _, f := range fields {
			if f.name == "profile" {
				profile, _ = r.text(f, "the timing profile", "fast, default or cautious")
				at["profile"] = f.where()
			}
		}
	}
	base, err := state.Profile(profile)
	if err != nil {
		fix := ""
		if s := nearest(profile, []string{"fast", "default", "cautious"}); s != "" {
			fix = "did you mean '" + s + "'?"
		}
		r.fail(at["profile"], fix, "timing profile '%s' is not known: use fast, default or cautious", clip(profile))
		base, _ = state.Profile("default")
	}
	r.cfg.Timing = base
	tk, hk := timingKeys(&r.cfg.Timing)
	r.durations(fields, "timing", tk, at)
	if hasHeart {
		at["heartbeat"] = h.key
		r.durations(r.fields(h.val, "heartbeat", "keys such as {interval: 200ms, dead: 1s}"), "heartbeat", hk, at)
	}
	if r.cfg.Timing != base {
		r.cfg.Timing.Profile = "custom"
	}
	if len(r.errs) > before {
		return
	}
	if err := state.CheckTiming(r.cfg.Timing); err != nil {
		r.fail(blame(err.Error(), at), "change one of the two, or use a whole profile: 'timing: fast', 'default' or 'cautious'", "%s", err)
	}
}

// durations reads the keys of m from fields and notes their places in at.
func (r *clusterReader) durations(fields []field, what string, m map[string]*time.Duration, at map[string]ast.Node) {
	names := []string{"profile"}
	if what == "heartbeat" {
		names = nil
	}
	var rest []string
	for n := range m {
		rest = append(rest, n)
	}
	sort.Strings(rest)
	for _, f := range fields {
		if !r.known(f, what, keys{known: append(names, rest...)}) || f.name == "profile" {
			continue
		}
		lo := time.Millisecond
		if f.name == "drain" {
			lo = 0
		}
		*m[f.name] = r.duration(f, what+" "+f.name, *m[f.name], lo, time.Hour)
		at[f.name] = f.where()
	}
}

// blame picks the place to show for a failed inequality: a value the file itself gives and the message
// names, else the section.
func blame(msg string, at map[string]ast.Node) ast.Node {
	spaced := strings.ReplaceAll(msg, "_", " ")
	var names []string
	for n := range at {
		if n != "" && n != "profile" && n != "heartbeat" {
			names = append(names, n)
		}
	}
	sort.Slice(names, func(i, j int) bool {
		return len(names[i]) > len(names[j]) || len(names[i]) == len(names[j]) && names[i] < names[j]
	})
	for _, n := range names {
		if strings.Contains(spaced, strings.ReplaceAll(n, "_", " ")) {
			return at[n]
		}
	}
	for _, n := range append(names, "heartbeat", "") {
		if at[n] != nil {
			return at[n]
		}
	}
	return nil
}

func (r *clusterReader) nodes(f field) {
	fields := r.fields(f.val, "nodes", "one key per node, such as 'node1: {fence: [...]}'")
	if len(fields) == 0 && len(r.errs) == 0 {
		r.fail(f.key, "name every member that may own a group", "nodes names no node")
	}
	if len(fields) > MaxNodes {
		r.fail(f.key, "", "nodes names %d nodes: at most %d are accepted", len(fields), MaxNodes)
		return
	}
	for _, n := range fields {
		if !r.keyName(n, "node name") {
			continue
		}
		node := state.NodeConfig{Name: ids.Node(n.name)}
		r.where["node/"+n.name] = n.key
		what := "node " + n.name
		for _, k := range r.fields(n.val, what, "its keys, such as 'fence: [...]', or nothing") {
			if r.known(k, what, nodeKeys) && k.name == "fence" {
				node.Fence = r.fence(node.Name, k)
			}
		}
		r.cfg.Nodes = append(r.cfg.Nodes, node)
	}
	sort.Slice(r.cfg.Nodes, func(i, j int) bool { return r.cfg.Nodes[i].Name < r.cfg.Nodes[j].Name })
}
