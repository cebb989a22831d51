package mesh

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
)

var errTodo = errors.New("not built yet")

type Mesh struct{}

func New(o Options) (*Mesh, error) { return nil, errTodo }

// SetPeers replaces the known peers and their addresses.
func (m *Mesh) SetPeers(peers map[ids.Node][]PeerLink) {}

// Dial connects over the best link.
func (m *Mesh) Dial(ctx context.Context, peer ids.Node, alpn string) (net.Conn, error) {
	return nil, errTodo
}

// DropLink closes every connection to peer that runs over the link.
func (m *Mesh) DropLink(peer ids.Node, link string) {}

// Refused: every reachable link refused (kernel alive, daemon dead), and the age of that knowledge.
func (m *Mesh) Refused(peer ids.Node) (bool, time.Duration) { return false, 0 }

// Probe tries a bare TCP connect on each link and reports whether all reachable ones refuse.
func (m *Mesh) Probe(ctx context.Context, peer ids.Node) (refused bool, err error) {
	return false, errTodo
}

// Accept returns the listener of one protocol.
func (m *Mesh) Accept(alpn string) (net.Listener, error) { return nil, errTodo }

// PeerOf names the peer and link of a connection of this mesh.
func PeerOf(c net.Conn) (ids.Node, string, bool) { return "", "", false }

func (m *Mesh) Close() error { return nil }

// Handler answers a call.
type Handler func(ctx context.Context, from ids.Node, method string, body []byte) ([]byte, error)

// RemoteError is what the remote handler returned.
type RemoteError struct{ Code, Msg string }

func (e *RemoteError) Error() string { return e.Msg }

// CallError is a call that got no answer. MayHaveRun is false where the request was certainly not delivered.
type CallError struct {
	To         ids.Node
	Method     string
	MayHaveRun bool
	Err        error
}

func (e *CallError) Error() string { return e.Err.Error() }
func (e *CallError) Unwrap() error { return e.Err }

// Caller is the client side; CallServer the server side of picket-call/1.
type Caller struct{}

func NewCaller(m *Mesh) *Caller { return &Caller{} }

func (c *Caller) Call(ctx context.Context, to ids.Node, method string, body []byte) ([]byte, error) {
	return nil, errTodo
}

// CallIdempotent asks again over another link when the first one is silent.
func (c *Caller) CallIdempotent(ctx context.Context, to ids.Node, method string, body []byte) ([]byte, error) {
	return nil, errTodo
}
func (c *Caller) Close() {}

type Server struct{}

func (s *Server) Close() error { return nil }

func ServeCalls(m *Mesh, h Handler) (*Server, error) { return nil, errTodo }

type JoinHandler func(ctx context.Context, remote netip.AddrPort, body []byte) ([]byte, error)

func ServeJoin(m *Mesh, h JoinHandler) (*Server, error) { return nil, errTodo }

func JoinCall(ctx context.Context, addrs []netip.AddrPort, token pki.Token, body []byte) ([]byte, error) {
	return nil, errTodo
}
