package sim

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// groupName names group i.
func groupName(i int) ids.Group { return ids.Group([]string{"db", "web", "mail", "ftp"}[i%4]) }

// config is the cluster file of the world: every group has two addresses and may run on every member,
// group i preferring member i.
func (w *World) config() state.Config {
	c := state.Config{Cluster: "sim", Timing: w.timing()}
	var members []ids.Node
	for _, m := range w.machines {
		c.Nodes = append(c.Nodes, state.NodeConfig{Name: m.name, Fence: []state.FenceDevice{{ID: deviceID, Level: 1,
			IPMI: &state.IPMIOpts{Host: "bmc-" + string(m.name), Port: 623, User: "picket", Privilege: "OPERATOR", Suite: 17}}}})
		if m.role == state.Member {
			members = append(members, m.name)
		}
	}
	for i := range min(w.opt.Groups, 4) {
		g := state.GroupConfig{Name: groupName(i), Failback: w.opt.Failback, StartTimeout: 2 * time.Second, StopTimeout: time.Second}
		for j := range members {
			g.Nodes = append(g.Nodes, members[(i+j)%len(members)])
		}
		for k := range 2 {
			addr := netip.AddrFrom4([4]byte{192, 168, byte(60 + i), byte(200 + k)})
			g.Resources = append(g.Resources, state.ResourceConfig{ID: ids.Resource("ip:" + addr.String()), Monitor: 2 * time.Second,
				IP: &state.IPResource{Prefix: netip.PrefixFrom(addr, 24), Interface: "eth0"}})
		}
		c.Groups = append(c.Groups, g)
	}
	// The groups of a configuration are in order of their names.
	for i := range c.Groups {
		for j := i + 1; j < len(c.Groups); j++ {
			if c.Groups[j].Name < c.Groups[i].Name {
				c.Groups[i], c.Groups[j] = c.Groups[j], c.Groups[i]
			}
		}
	}
	return c
}

// found writes the beginning of the log on the disks: who is admitted, and the configuration.
func (w *World) found() {
	w.ledger = ledger{digests: map[uint64]string{}}
	var conf []core.Server
	for _, m := range w.machines {
		if m.index == 0 || !w.opt.Grow {
			conf = append(conf, core.Server{Name: m.name, Voter: true})
		}
	}
	log := []entry{{servers: conf}}
	add := func(c state.Command) {
		b, err := state.Encode(state.Entry{Cmd: c})
		if err != nil {
			w.violation("the beginning of the log does not encode: %v", err)
		}
		log = append(log, entry{cmd: b})
	}
	for i, m := range w.machines {
		hash := strings.Repeat(fmt.Sprintf("%02x", i+1), 32)
		if i > 0 {
			add(state.TokenMint{Hash: hash, Expires: 1 << 50, By: "root"})
		}
		a := state.NodeAdmit{Name: m.name, Role: m.role, TokenHash: hash}
		for k := range m.nics {
			a.Links = append(a.Links, state.LinkAddr{Interface: nicName(k), Addr: fmt.Sprintf("10.0.%d.%d", k, i+1)})
		}
		add(a)
	}
	add(state.ConfigSet{Config: w.config(), Operator: "root"})
	for i := range log {
		log[i].term, log[i].index = 1, uint64(i+1)
	}
	w.maxTerm = 1
	for _, m := range w.machines {
		if m.index == 0 || !w.opt.Grow {
			m.disk.term, m.disk.log = 1, append([]entry(nil), log...)
		}
	}
}
