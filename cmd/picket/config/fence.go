package config

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing/ipmi"
)

const ipmiExample = "'- ipmitool: -I lanplus -H 10.20.30.101 -U admin -f /etc/picket/node1.bmc'"

var fenceKeys = keys{known: []string{"ipmitool", "identity", "level"}, later: []string{"watchdog", "agent", "params"}}

// fence reads the fence devices of one node. Ids follow the order in the file, so that a level given
// later does not rename a device.
func (r *clusterReader) fence(node ids.Node, f field) []state.FenceDevice {
	what := "fence of " + string(node)
	items := r.items(f.val, what, "one entry per fence device, such as "+ipmiExample)
	if len(items) > MaxDevices {
		r.fail(f.key, "", "%s lists %d fence devices: at most %d are accepted", what, len(items), MaxDevices)
		return nil
	}
	var out []state.FenceDevice
	levels := 0
	for i, it := range items {
		id := fmt.Sprintf("ipmi-%d", i+1)
		dev, hasLevel, ok := r.device(node, id, it)
		if !ok {
			continue
		}
		if hasLevel {
			levels++
		} else {
			dev.Level = i + 1
		}
		r.where["fence/"+string(node)+"/"+id] = it
		out = append(out, dev)
	}
	if levels > 0 && levels < len(out) {
		r.fail(f.key, "give every fence device a level, or none of them", "%s gives a level to some fence devices and not to others", what)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Level < out[j].Level })
	return out
}

func (r *clusterReader) device(node ids.Node, id string, n ast.Node) (dev state.FenceDevice, hasLevel, ok bool) {
	what := fmt.Sprintf("fence device of %s", node)
	before := len(r.errs) + r.more
	dev.ID = id
	trusted := false
	for _, f := range r.fields(n, "a "+what, ipmiExample) {
		if !r.known(f, "a "+what, fenceKeys) {
			continue
		}
		switch f.name {
		case "ipmitool":
			dev.IPMI = r.ipmitool(node, id, f)
		case "identity":
			s, _ := r.text(f, "identity", "trusted")
			if trusted = s == "trusted"; !trusted && s != "" {
				r.fail(f.val, "write 'identity: trusted', or remove the line: the identity is then proven by the BMC's GUID", "identity is '%s': the only value is trusted", clip(s))
			}
		case "level":
			dev.Level, hasLevel = r.integer(f, "level", 1, MaxLevel), true
		}
	}
	if len(r.errs)+r.more > before {
		return dev, hasLevel, false
	}
	if dev.IPMI == nil {
		r.fail(n, "write "+ipmiExample, "a %s has no 'ipmitool' key", what)
		return dev, hasLevel, false
	}
	if trusted {
		dev.IPMI.TrustIdentity = true
		r.warn(n, "use it only where the BMC's GUID cannot match the machine", "the identity of a %s is trusted, not proven", what)
	}
	return dev, hasLevel, true
}

func (r *clusterReader) ipmitool(node ids.Node, id string, f field) *state.IPMIOpts {
	s, ok := r.text(f, "ipmitool", "an option string such as -I lanplus -H 10.20.30.101 -U admin -f /etc/picket/node1.bmc")
	if !ok {
		return nil
	}
	p, err := ipmi.Parse(s)
	if err != nil {
		r.fail(f.val, "", "fence device of %s: %s", node, printable(err.Error()))
		return nil
	}
	line, col := place(f.val)
	r.options[secretKey{node, id}] = deviceOptions{text: s, line: line, column: col}
	for _, w := range p.Warnings {
		if !strings.HasPrefix(w, "-P") { // said below, in terms of this file
			r.warn(f.val, "", "fence device of %s: %s", node, w)
		}
	}
	if p.Password != "" {
		r.secrets = append(r.secrets, Secret{Node: node, Device: id, Password: p.Password, Line: line, Column: col})
		r.warn(f.val, "better: write the password to a file of mode 0600 and give -f FILE",
			"fence device of %s: its password stands in this file (-P), for everybody who can read it", node)
	}
	return &p.Opts
}

// cross compares what stands in different places of the file. It runs only on a file that has no
// other error, so that its findings are not echoes.
func (r *clusterReader) cross() {
	for _, u := range r.uses {
		if r.cfg.Node(u.node) != nil {
			continue
		}
		var names []string
		for _, n := range r.cfg.Nodes {
			names = append(names, string(n.Name))
		}
		fix := "add it under nodes:, or use one of " + strings.Join(names, ", ")
		if s := nearest(string(u.node), names); s != "" {
			fix = "did you mean '" + s + "'?"
		}
		r.fail(u.at, fix, "group %s names node '%s', which is not under nodes:", u.group, u.node)
	}
	r.sharedBMC()
	r.unfenced()
}

// sharedBMC refuses one BMC for two devices: fencing one node would cut the other.
func (r *clusterReader) sharedBMC() {
	type bmc struct {
		host string
		port uint16
	}
	seen := map[bmc]string{}
	service := map[netip.Addr]ids.Group{}
	for _, g := range r.cfg.Groups {
		for _, res := range g.Resources {
			if res.IP != nil {
				service[res.IP.Prefix.Addr()] = g.Name
			}
		}
	}
	for _, n := range r.cfg.Nodes {
		for _, d := range n.Fence {
			at := r.where["fence/"+string(n.Name)+"/"+d.ID]
			key := bmc{strings.ToLower(d.IPMI.Host), d.IPMI.Port}
			if other, dup := seen[key]; dup {
				r.fail(at, "give each node its own BMC", "the BMC %s port %d of %s is already the fence device of %s", clip(d.IPMI.Host), d.IPMI.Port, n.Name, other)
				continue
			}
			seen[key] = string(n.Name)
			if a, err := netip.ParseAddr(d.IPMI.Host); err == nil {
				if g, clash := service[a.Unmap()]; clash {
					r.fail(at, "check the BMC's address", "the BMC of %s has address %s, which is a service address of group %s", n.Name, a, g)
				}
			}
		}
	}
}

// unfenced warns of nodes that may own a group and cannot be proven dead.
func (r *clusterReader) unfenced() {
	may := map[ids.Node][]string{}
	for _, g := range r.cfg.Groups {
		for _, n := range g.Nodes {
			may[n] = append(may[n], string(g.Name))
		}
	}
	for _, n := range r.cfg.Nodes {
		if groups := may[n.Name]; len(groups) > 0 && len(n.Fence) == 0 {
			r.warn(r.where["node/"+string(n.Name)], "add one: fence: ["+strings.Trim(ipmiExample, "'- ")+"]",
				"node %s has no fence device: when it is lost, what it owns (%s may run there) is held until an operator confirms that it is off", n.Name, clip(strings.Join(groups, ", ")))
		}
	}
}
