package udp

import (
	"net/netip"
	"slices"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
)

// Local is a local link whose subnet is known.
type Local struct {
	Interface string
	Subnet    netip.Prefix // the connected subnet of the link's address
}

// pair is one destination: a local NIC and a peer's address in its subnet.
type pair struct {
	peer  ids.Node
	local string
	link  Link // the peer's
}

// Pair returns the paths between local links and peers: a NIC has a path to a peer if the peer
// has an address in the NIC's connected subnet. Sorted by peer and interface, without duplicates.
func Pair(locals []Local, peers []Peer) []heartbeat.Path {
	var out []heartbeat.Path
	for _, p := range pairs(locals, peers) {
		out = append(out, heartbeat.Path{Peer: p.peer, Interface: p.local})
	}
	slices.SortFunc(out, heartbeat.Path.Compare)
	return slices.Compact(out)
}

// pairs lists every destination. Two NICs in one subnet see each other crosswise; each such
// packet names both NICs, and they count for the path of the receiving one.
func pairs(locals []Local, peers []Peer) []pair {
	var out []pair
	for _, l := range locals {
		if !l.Subnet.IsValid() {
			continue
		}
		for _, p := range peers {
			for _, k := range p.Links {
				if l.Subnet.Contains(k.Addr) {
					out = append(out, pair{peer: p.Name, local: l.Interface, link: k})
				}
			}
		}
	}
	return out
}
