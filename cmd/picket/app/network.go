package app

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/driver"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/heartbeat/udp"
)

// Methods of the node calls.
const (
	callMessage = "message" // a core message for this node
	callRelay   = "relay/"  // + node: a core message to be passed on
	callRelayed = "from/"   // + node: a core message that another node passes on
	callOperate = "operate" // an operator's command, for the leader
	callStatus  = "status"  // the leader's view
	callWhy     = "why"
	callJoin    = "join" // a join request that another node took in
)

// network is driver.Network over the mesh.
type network struct {
	mesh  *mesh.Mesh
	calls *mesh.Caller
	kick  func()
}

var _ driver.Network = (*network)(nil)

func (n *network) Send(ctx context.Context, to ids.Node, msg []byte) error {
	_, err := n.calls.CallIdempotent(ctx, to, callMessage, msg)
	return err
}

func (n *network) Relay(ctx context.Context, via, to ids.Node, msg []byte) error {
	_, err := n.calls.CallIdempotent(ctx, via, callRelay+string(to), msg)
	return err
}

func (n *network) Kick() { n.kick() }

func (n *network) Refused(p ids.Node) bool {
	is, _ := n.mesh.Refused(p)
	return is
}

// raftLog is driver.Log over raftnode.
type raftLog struct{ *raftnode.Node }

var _ driver.Log = raftLog{}

func (l raftLog) Unknown(err error) bool { return errors.Is(err, raftnode.ErrUnknown) }

func (l raftLog) Servers() []core.Server {
	list, _, err := l.Node.Servers()
	if err != nil {
		return nil
	}
	var out []core.Server
	for _, s := range list {
		out = append(out, core.Server{Name: s.Name, Voter: s.Voter})
	}
	return out
}

// StepDown hands the leadership to the voter that is the furthest in the log among those heard lately.
func (l raftLog) StepDown(ctx context.Context) error {
	voter := map[ids.Node]bool{}
	for _, s := range l.Servers() {
		voter[s.Name] = s.Voter
	}
	var best raftnode.Follower
	for _, f := range l.Followers() {
		if voter[f.Name] && f.LastContact >= 0 && f.LastContact < time.Second && (best.Name == "" || f.LastIndex > best.LastIndex) {
			best = f
		}
	}
	if best.Name == "" {
		return errors.New("no other voter has been heard in the last second")
	}
	return l.Transfer(ctx, best.Name)
}

// ranks remembers what heartbeats think of every link, for the mesh to dial the best one first.
type ranks struct {
	mu sync.Mutex
	m  map[string]mesh.Rank
}

func (r *ranks) get(peer ids.Node, link string) mesh.Rank {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok := r.m[string(peer)+":"+link]; ok {
		return v
	}
	return mesh.RankUnknown
}

func (r *ranks) set(subject string, v mesh.Rank) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[string]mesh.Rank{}
	}
	r.m[subject] = v
}

// splitLink takes "node2:eth0" apart.
func splitLink(s string) (ids.Node, string) {
	n, l, _ := strings.Cut(s, ":")
	return ids.Node(n), l
}

// peer is one node's addresses, as they are kept beside the log for the time before it is read.
type peer struct {
	Name  ids.Node         `json:"name"`
	Links []state.LinkAddr `json:"links"`
}

// peersOf lists the other nodes: those of the log, or, while the log names none, those that the join
// was told of.
func peersOf(self ids.Node, s state.State, before []peer) []peer {
	var out []peer
	for _, n := range s.Nodes {
		if n.Name != self {
			out = append(out, peer{n.Name, n.Links})
		}
	}
	if s.Node(self) == nil {
		for _, p := range before {
			if s.Node(p.Name) == nil && p.Name != self {
				out = append(out, p)
			}
		}
	}
	return out
}

func meshPeers(peers []peer) map[ids.Node][]mesh.PeerLink {
	out := map[ids.Node][]mesh.PeerLink{}
	for _, p := range peers {
		for _, l := range p.Links {
			if a, err := netip.ParseAddr(l.Addr); err == nil {
				out[p.Name] = append(out[p.Name], mesh.PeerLink{Interface: l.Interface, Addr: a})
			}
		}
	}
	return out
}

func udpPeers(peers []peer) []udp.Peer {
	var out []udp.Peer
	for _, p := range peers {
		u := udp.Peer{Name: p.Name}
		for _, l := range p.Links {
			if a, err := netip.ParseAddr(l.Addr); err == nil {
				u.Links = append(u.Links, udp.Link{Interface: l.Interface, Addr: a})
			}
		}
		out = append(out, u)
	}
	return out
}
