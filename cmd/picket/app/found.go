package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
	"github.com/picket-ha/picket/consensus/state"
)

// Version is the product's version; the build sets it.
var Version = "0.1.0-dev"

// timingFile keeps the timing in force, for the next start: raft needs it before the log is read.
const timingFile = "timing.json"

// refreshTiming takes over the timing of a new configuration.
func (n *Node) refreshTiming() {
	s := n.fsm.State()
	if s.Revision == 0 {
		return
	}
	t := s.Config.Timing
	if err := n.udp.SetTimings(t.Interval, t.Dead); err != nil {
		n.log.Error("the heartbeat timing could not be taken over", "err", err)
	}
	if err := n.raft.Reload(t); err != nil {
		n.log.Error("raft's timing could not be taken over", "err", err)
	}
	b, err := json.Marshal(t)
	if err == nil {
		err = config.WriteFile(filepath.Join(n.opt.StateDir, timingFile), b, 0o600)
	}
	if err != nil {
		n.log.Error("the timing could not be kept for the next start", "err", err)
	}
}

// found begins the log of a new cluster: init left a file that asks for it. Every step may be repeated
// after a crash; the file goes when all are done.
func (n *Node) found() error {
	path := filepath.Join(n.opt.StateDir, foundFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		close(n.founded)
		return nil
	}
	var f founding
	if err := readJSON(path, &f); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := n.raft.Bootstrap(); err != nil && !errors.Is(err, raftnode.ErrUsed) {
		return err
	}
	for n.ctx.Err() == nil {
		if n.raft.IsLeader() && n.foundOnce(f) == nil {
			close(n.founded)
			return os.Remove(path)
		}
		select {
		case <-n.ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// awaitFounded waits until the founding is done, for a short time. The founder is admitted without a
// token, which the log allows only while it names nobody: a join or a token that came before it would
// shut it out of its own cluster for ever.
func (n *Node) awaitFounded(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	select {
	case <-n.founded:
		return true
	case <-ctx.Done():
		return false
	}
}

func (n *Node) foundOnce(f founding) error {
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	if err := n.raft.Barrier(ctx); err != nil {
		return err
	}
	s := n.fsm.State()
	if s.Node(n.self) == nil {
		if _, err := n.propose(ctx, state.NodeAdmit{Name: n.self, Role: state.Role(n.conf.Role), Links: linkAddrs(n.conf.Links)}); err != nil {
			return err
		}
	}
	if len(s.Tokens) == 0 && f.TokenHash != "" {
		if _, err := n.propose(ctx, state.TokenMint{Hash: f.TokenHash, Expires: f.Expires, By: "picket init"}); err != nil {
			return err
		}
	}
	return nil
}

// propose appends a command on this node, which must lead, and returns its log index. A refusal of the
// state machine is an error.
func (n *Node) propose(ctx context.Context, cmd state.Command) (uint64, error) {
	b, err := state.Encode(state.Entry{At: wallMS(), Cmd: cmd})
	if err != nil {
		return 0, err
	}
	index, res, err := n.raft.Propose(ctx, b)
	if err != nil {
		return 0, unavailable(err)
	}
	if r, ok := res.(state.Result); ok && !r.OK() {
		return 0, refusal(r.Refused)
	}
	n.raft.Nudge()
	return index, nil
}

// handle answers the calls of other nodes.
func (n *Node) handle(ctx context.Context, from ids.Node, method string, body []byte) ([]byte, error) {
	select {
	case <-n.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case method == callMessage:
		return nil, n.driver.Message(from, body)
	case len(method) > len(callRelay) && method[:len(callRelay)] == callRelay:
		_, err := n.calls.CallIdempotent(ctx, ids.Node(method[len(callRelay):]), callRelayed+string(from), body)
		return nil, err
	case len(method) > len(callRelayed) && method[:len(callRelayed)] == callRelayed:
		return nil, n.driver.Message(ids.Node(method[len(callRelayed):]), body)
	case method == callStatus, method == callWhy, method == callOperate:
		return n.handleOperator(ctx, from, method, body)
	case method == callJoin:
		return n.admit(ctx, body)
	}
	return nil, &mesh.RemoteError{Code: "UNKNOWN_METHOD", Msg: "this version does not know the call " + method + ": upgrade picket on this node"}
}

// handleJoin takes a join request in and has the leader decide about it.
func (n *Node) handleJoin(ctx context.Context, remote netip.AddrPort, body []byte) ([]byte, error) {
	select {
	case <-n.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.log.Info("a node asks to join", "from", remote.String())
	leader, _ := n.raft.Leader()
	switch leader {
	case n.self:
		return n.admit(ctx, body)
	case "":
		return nil, &mesh.RemoteError{Code: "NO_LEADER", Msg: "the cluster has no leader right now: try again in a few seconds"}
	}
	return n.calls.Call(ctx, leader, callJoin, body)
}

// admit decides about a join request: the log consumes the token and admits the node in one entry, and
// only then is anything signed or handed out.
func (n *Node) admit(ctx context.Context, body []byte) ([]byte, error) {
	if !n.awaitFounded(ctx) {
		return nil, &mesh.RemoteError{Code: "NO_LEADER", Msg: "the cluster is only just being made: try again in a few seconds"}
	}
	var q joinRequest
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, &mesh.RemoteError{Code: "BAD_REQUEST", Msg: "the join request could not be read: use the same picket version on both nodes"}
	}
	bad := func(err error) error {
		return &mesh.RemoteError{Code: "REFUSED", Msg: err.Error()}
	}
	if err := ids.CheckName("node name", q.Name); err != nil {
		return nil, bad(err)
	}
	// The signature comes first: a request that cannot be signed must not spend a token.
	cert, err := n.ca.SignNode(q.CSR, ids.Node(q.Name), q.Role, time.Now(), pki.NodeLife)
	if err != nil {
		return nil, bad(err)
	}
	hb, err := pki.LoadHeartbeatKey(filepath.Join(n.opt.StateDir, pkiDir))
	if err != nil {
		return nil, bad(err)
	}
	_, err = n.propose(ctx, state.NodeAdmit{Name: ids.Node(q.Name), Role: state.Role(q.Role), Links: q.Links, TokenHash: pki.HashSecret(q.Secret)})
	if err != nil {
		return nil, bad(err)
	}
	rep := joinReply{Cluster: n.conf.Cluster, Cert: cert, CACert: n.ca.Cert, CAKey: n.ca.Key, HBKey: hb[:]}
	for _, x := range n.fsm.State().Nodes {
		if x.Name != ids.Node(q.Name) {
			rep.Peers = append(rep.Peers, peer{x.Name, x.Links})
		}
	}
	return json.Marshal(rep)
}
