package netlab

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
)

// bridges of the switch; the link of a node tells its bridge.
const (
	bridgePublic    = "pub"
	bridgeHeartbeat = "hb"
	bridgeMgmt      = "mgmt"
)

func bridgeOf(link string) string {
	switch link {
	case LinkPublic:
		return bridgePublic
	case LinkHeartbeat:
		return bridgeHeartbeat
	}
	return bridgeMgmt
}

// Cut is one fault of one cable.
type Cut struct {
	Link      string    `json:"link"`
	Direction Direction `json:"direction"`
	// Carrier says the switch port is down, so that the node sees the cable unplugged. Otherwise
	// the carrier stays and packets vanish in the switch.
	Carrier bool `json:"carrier,omitempty"`
}

// netswitch is the supervisor's own network namespace: three bridges with one port per cable.
// A cut is a rule in the switch about a port's name, never about anything on the node, so it
// outlives the node's boots and the node cannot heal it.
type netswitch struct {
	sh *shell
	mu sync.Mutex
	// cuts by node and link; ports that exist now.
	cuts  map[string]map[string]Cut
	ports map[string]bool
}

func port(node, link string) string { return node + "-" + link }

// newSwitch builds the bridges and the empty cut table in the calling process's namespace.
func newSwitch(sh *shell) (*netswitch, error) {
	// The bridges are a switch, not hosts: no addresses, no chatter of their own.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("keep IPv6 off the switch: %w", err)
	}
	lines := []string{"link set lo up"}
	for _, b := range []string{bridgePublic, bridgeHeartbeat, bridgeMgmt} {
		lines = append(lines,
			fmt.Sprintf("link add %s type bridge stp_state 0 forward_delay 0 mcast_snooping 0", b),
			fmt.Sprintf("link set %s up", b))
	}
	if err := sh.ip(nil, lines...); err != nil {
		return nil, err
	}
	err = sh.nft(`table bridge picketlab {
	set mute { type ifname; }
	set deaf { type ifname; }
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname @mute counter drop
		oifname @deaf counter drop
	}
}
`)
	if err != nil {
		return nil, fmt.Errorf("%w: the kernel must know nftables' bridge family: %w", ErrUnsupported, err)
	}
	return &netswitch{sh: sh, cuts: make(map[string]map[string]Cut), ports: make(map[string]bool)}, nil
}

// plugIn lays cables from the switch into a namespace. There they are set up and get addresses
// ("192.168.60.11/24") by their place in the list.
func (s *netswitch) plugIn(node string, ns *netns, cables []cable) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var add, up []string
	there := []string{"link set lo up"}
	for _, c := range cables {
		p := port(node, c.link)
		add = append(add,
			fmt.Sprintf("link add %s type veth peer name %s address %s netns %s", p, c.name, c.mac, ns.path()),
			fmt.Sprintf("link set %s master %s", p, bridgeOf(c.link)))
		if !s.cuts[node][c.link].Carrier {
			up = append(up, fmt.Sprintf("link set %s up", p))
		}
		there = append(there, fmt.Sprintf("addr add %s/24 brd + dev %s", c.addr, c.name), fmt.Sprintf("link set %s up", c.name))
		s.ports[p] = true
	}
	if err := s.sh.ip(nil, append(add, up...)...); err != nil {
		return err
	}
	return s.sh.ip(ns, there...)
}

// cable is one card in a namespace and its way to the switch.
type cable struct {
	link, name, mac, addr string
}

// pull removes the ports of a node's cables; the other ends vanish with them.
func (s *netswitch) pull(node string, links ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for _, l := range links {
		if p := port(node, l); s.ports[p] {
			delete(s.ports, p)
			// A veth dies with its namespace, which the kernel clears away when it likes: the
			// port may be gone already, and that is no error.
			if _, err := os.Stat("/proc/sys/net/ipv4/conf/" + p); err == nil {
				lines = append(lines, "link del "+p)
			}
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if err := s.sh.ip(nil, lines...); err != nil {
		for _, l := range links {
			if _, serr := os.Stat("/proc/sys/net/ipv4/conf/" + port(node, l)); serr == nil {
				return err
			}
		}
	}
	return nil
}

// cut makes one cable faulty. A second cut of the same cable replaces the first.
func (s *netswitch) cut(node string, c Cut) error {
	if _, err := s.heal(node, c.Link); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := port(node, c.Link)
	var err error
	switch {
	case c.Carrier && s.ports[p]:
		err = s.sh.ip(nil, "link set "+p+" down")
	case c.Carrier: // remembered until the node boots
	default:
		err = s.sh.nft(elements("add", p, c.Direction))
	}
	if err != nil {
		return err
	}
	if s.cuts[node] == nil {
		s.cuts[node] = make(map[string]Cut)
	}
	s.cuts[node][c.Link] = c
	return nil
}

func elements(verb, p string, d Direction) string {
	script := ""
	if d != In {
		script += fmt.Sprintf("%s element bridge picketlab mute { %q }\n", verb, p)
	}
	if d != Out {
		script += fmt.Sprintf("%s element bridge picketlab deaf { %q }\n", verb, p)
	}
	return script
}

// heal mends one cable of a node, all of them (link ""), or everything (node ""). It returns
// how many cables were mended.
func (s *netswitch) heal(node, link string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var nodes []string
	for n := range s.cuts {
		if node == "" || n == node {
			nodes = append(nodes, n)
		}
	}
	sort.Strings(nodes)
	healed := 0
	for _, n := range nodes {
		for _, c := range s.list(n) {
			if link != "" && c.Link != link {
				continue
			}
			p := port(n, c.Link)
			var err error
			switch {
			case !c.Carrier:
				err = s.sh.nft(elements("delete", p, c.Direction))
			case s.ports[p]:
				err = s.sh.ip(nil, "link set "+p+" up")
			}
			if err != nil {
				return healed, err
			}
			delete(s.cuts[n], c.Link)
			healed++
		}
	}
	return healed, nil
}

// list returns a node's cuts ordered by link; the caller holds the lock.
func (s *netswitch) list(node string) []Cut {
	var out []Cut
	for _, c := range s.cuts[node] {
		out = append(out, c)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Link < out[j].Link })
	return out
}

// cutsOf returns a node's cuts ordered by link.
func (s *netswitch) cutsOf(node string) []Cut {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list(node)
}
