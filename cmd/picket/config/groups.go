package config

import (
	"encoding/binary"
	"net/netip"
	"sort"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// Defaults and bounds of groups and resources.
const (
	DefaultStartTimeout = 20 * time.Second
	DefaultStopTimeout  = 10 * time.Second
	DefaultMonitor      = 5 * time.Second
	DefaultProbeWait    = 40 * time.Millisecond
	DefaultRefresh      = 10 * time.Second
)

const ipExample = "'- ip: 192.168.60.200/24'"

var (
	groupKeys = keys{
		known: []string{"nodes", "failback", "start_timeout", "stop_timeout", "resources"},
		later: []string{"with", "apart", "after", "failure_limit", "connectivity", "managed"},
	}
	resourceKeys = keys{
		known: []string{"ip", "interface", "probe_wait", "refresh", "monitor"},
		later: []string{"filesystem", "systemd", "ocf", "script", "device", "type", "options", "params"},
	}
)

func (r *clusterReader) groups(f field) {
	fields := r.fields(f.val, "groups", "one key per group, such as 'web: {nodes: [node1, node2], resources: [...]}'")
	if len(fields) > MaxGroups {
		r.fail(f.key, "", "groups names %d groups: at most %d are accepted", len(fields), MaxGroups)
		return
	}
	for _, g := range fields {
		if r.keyName(g, "group name") {
			r.group(g)
		}
	}
	sort.Slice(r.cfg.Groups, func(i, j int) bool { return r.cfg.Groups[i].Name < r.cfg.Groups[j].Name })
}

func (r *clusterReader) group(f field) {
	what := "group " + f.name
	g := state.GroupConfig{Name: ids.Group(f.name), StartTimeout: DefaultStartTimeout, StopTimeout: DefaultStopTimeout}
	seen := map[string]bool{}
	before := len(r.errs) + r.more
	for _, k := range r.fields(f.val, what, "its keys: nodes and resources") {
		if !r.known(k, what, groupKeys) {
			continue
		}
		seen[k.name] = true
		switch k.name {
		case "nodes":
			g.Nodes = r.groupNodes(g.Name, k)
		case "failback":
			g.Failback = r.boolean(k, "failback of "+what)
		case "start_timeout":
			g.StartTimeout = r.duration(k, "start_timeout of "+what, DefaultStartTimeout, time.Second, time.Hour)
		case "stop_timeout":
			g.StopTimeout = r.duration(k, "stop_timeout of "+what, DefaultStopTimeout, time.Second, time.Hour)
		case "resources":
			g.Resources = r.resources(what, k)
		}
	}
	if len(r.errs)+r.more == before {
		if !seen["nodes"] {
			r.fail(f.key, "add 'nodes: [node1, node2]', most preferred first", "%s has no key 'nodes'", what)
		}
		if !seen["resources"] {
			r.fail(f.key, "add 'resources:' with an entry such as "+ipExample, "%s has no key 'resources'", what)
		}
	}
	if len(g.Nodes) == 1 && len(r.errs)+r.more == before {
		r.warn(f.key, "", "%s may run on %s only: there is nowhere to fail over to", what, g.Nodes[0])
	}
	r.cfg.Groups = append(r.cfg.Groups, g)
}

func (r *clusterReader) groupNodes(group ids.Group, f field) []ids.Node {
	what := "nodes of group " + string(group)
	items := r.items(f.val, what, "[node1, node2], most preferred first")
	if len(items) > MaxNodes {
		r.fail(f.key, "", "%s lists %d nodes: at most %d are accepted", what, len(items), MaxNodes)
		return nil
	}
	if len(items) == 0 && (isNull(f.val) || f.val.Type() == ast.SequenceType) {
		r.fail(f.where(), "write [node1, node2], most preferred first", "%s is empty: no node may own the group", what)
	}
	var out []ids.Node
	seen := map[ids.Node]bool{}
	for _, it := range items {
		s, ok := scalarText(it)
		if !ok {
			r.fail(it, "", "%s: a node's name was expected, not %s", what, kindOf(it))
			continue
		}
		if err := ids.CheckName("node name", s); err != nil {
			r.fail(it, "", "%s: %s", what, err)
			continue
		}
		n := ids.Node(s)
		if seen[n] {
			r.fail(it, "remove one", "%s names %s twice", what, n)
			continue
		}
		seen[n] = true
		out = append(out, n)
		r.uses = append(r.uses, use{group: group, node: n, at: it})
	}
	return out
}

func (r *clusterReader) resources(what string, f field) []state.ResourceConfig {
	items := r.items(f.val, "resources of "+what, "one entry per resource, such as "+ipExample)
	if len(items) > MaxResources {
		r.fail(f.key, "", "%s lists %d resources: at most %d are accepted", what, len(items), MaxResources)
		return nil
	}
	if len(items) == 0 && (isNull(f.val) || f.val.Type() == ast.SequenceType) {
		r.fail(f.where(), "write an entry such as "+ipExample, "%s has no resource", what)
	}
	var out []state.ResourceConfig
	for _, it := range items {
		if res, ok := r.resource("a resource of "+what, it); ok {
			if first := r.where["id/"+string(res.ID)]; first != nil {
				line, _ := place(first)
				r.fail(it, "a resource belongs to one group, once", "resource %s is given twice (first on line %d)", res.ID, line)
				continue
			}
			r.where["id/"+string(res.ID)] = it
			out = append(out, res)
		}
	}
	return out
}

func (r *clusterReader) resource(what string, n ast.Node) (state.ResourceConfig, bool) {
	before := len(r.errs) + r.more
	res := state.ResourceConfig{Monitor: DefaultMonitor}
	ip := state.IPResource{ProbeWait: DefaultProbeWait, Refresh: DefaultRefresh}
	for _, f := range r.fields(n, what, ipExample) {
		if !r.known(f, what, resourceKeys) {
			continue
		}
		switch f.name {
		case "ip":
			ip.Prefix = r.prefix(f)
		case "interface":
			if s, ok := r.text(f, "interface", "the NIC's name, such as eth0"); ok {
				if err := CheckInterface(s); err != nil {
					r.fail(f.val, "", "%s", err)
				}
				ip.Interface = s
			}
		case "probe_wait":
			ip.ProbeWait = r.duration(f, "probe_wait", DefaultProbeWait, time.Millisecond, 5*time.Second)
		case "refresh":
			ip.Refresh = r.duration(f, "refresh", DefaultRefresh, time.Second, time.Hour)
		case "monitor":
			res.Monitor = r.monitor(what, f)
		}
	}
	if len(r.errs)+r.more > before {
		return res, false
	}
	if !ip.Prefix.IsValid() {
		r.fail(n, "write "+ipExample, "%s has no kind: the key 'ip' was expected", what)
		return res, false
	}
	if ip.Interface == "" {
		r.fail(n, "add the NIC that carries it, such as 'interface: eth0'", "the address %s has no interface", ip.Prefix)
		return res, false
	}
	res.ID, res.IP = ids.Resource("ip:"+ip.Prefix.Addr().String()), &ip
	return res, true
}

func (r *clusterReader) monitor(what string, f field) time.Duration {
	every := DefaultMonitor
	for _, k := range r.fields(f.val, "monitor", "{interval: 10s}") {
		if r.known(k, "monitor of "+what, keys{known: []string{"interval"}, later: []string{"timeout"}}) {
			every = r.duration(k, "monitor interval", DefaultMonitor, 200*time.Millisecond, time.Hour)
		}
	}
	return every
}

// prefix reads ADDRESS/LENGTH and refuses what cannot be one machine's address on a network.
func (r *clusterReader) prefix(f field) netip.Prefix {
	s, ok := r.text(f, "ip", "ADDRESS/LENGTH, such as 192.168.60.200/24")
	if !ok {
		return netip.Prefix{}
	}
	bad := func(fix, format string, args ...any) netip.Prefix {
		r.fail(f.val, fix, format, args...)
		return netip.Prefix{}
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Is4() {
			return bad("write the network's length too, such as "+s+"/24", "the address %s has no prefix length", a)
		}
		return bad("", "'%s' is an IPv6 address, which is not supported yet by this version of picket", a)
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return bad("write ADDRESS/LENGTH, such as 192.168.60.200/24", "'%s' is not an IPv4 address with a prefix length", clip(s))
	}
	a := p.Addr()
	if !a.Is4() {
		return bad("", "'%s' is an IPv6 address, which is not supported yet by this version of picket", p)
	}
	if p.Bits() == 0 {
		return bad("write the network's length, such as "+a.String()+"/24", "the prefix length of %s is 0: 1 to 32 are allowed", p)
	}
	b := a.As4()
	switch {
	case a.IsUnspecified() || b[0] == 0:
		return bad("", "%s is not the address of one machine (0.0.0.0/8 is reserved)", a)
	case a.IsLoopback():
		return bad("", "%s is a loopback address: no other machine can reach it", a)
	case a.IsMulticast() || b[0] >= 240:
		return bad("", "%s is not a unicast address", a)
	}
	if p.Bits() <= 30 { // RFC 3021: a /31 has neither network nor broadcast address
		host := binary.BigEndian.Uint32(b[:]) & (1<<(32-p.Bits()) - 1)
		switch host {
		case 0:
			return bad("give an address inside it", "%s is the address of the network %s itself", a, p.Masked())
		case 1<<(32-p.Bits()) - 1:
			return bad("give an address inside it", "%s is the broadcast address of %s", a, p.Masked())
		}
	}
	return p
}
