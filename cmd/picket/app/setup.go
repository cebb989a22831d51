package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
	"github.com/picket-ha/picket/consensus/state"
)

// What lies in the state directory.
const (
	pkiDir      = "pki"
	raftDir     = "raft"
	peersFile   = "peers.json"
	foundFile   = "bootstrap.json"
	initialLife = time.Hour // of the token that init prints
)

// founding is what init leaves for the first start of the daemon.
type founding struct {
	TokenHash string `json:"token_hash"`
	Expires   int64  `json:"expires"`
}

// joinRequest and joinReply travel over the pinned join stream.
type joinRequest struct {
	Name   string           `json:"name"`
	Role   string           `json:"role"`
	Links  []state.LinkAddr `json:"links"`
	CSR    []byte           `json:"csr"`
	Secret []byte           `json:"secret"`
}

type joinReply struct {
	Cluster string `json:"cluster"`
	Cert    []byte `json:"cert"`
	CACert  []byte `json:"ca_cert"`
	CAKey   []byte `json:"ca_key"`
	HBKey   []byte `json:"hb_key"`
	Peers   []peer `json:"peers"`
}

func linkAddrs(links []config.Link) []state.LinkAddr {
	var out []state.LinkAddr
	for _, l := range links {
		out = append(out, state.LinkAddr{Interface: l.Interface, Addr: l.Addr.String()})
	}
	return out
}

// fresh refuses to set up a node where one is already, and says how to begin anew.
func fresh(p config.Paths) error {
	if _, err := os.Stat(p.ConfigPath); err == nil {
		return fmt.Errorf("this machine is already a picket node (%s exists): to begin anew, stop picket and remove %s and %s", p.ConfigPath, p.ConfigPath, p.StateDir)
	}
	if _, err := os.Stat(filepath.Join(p.StateDir, raftDir)); err == nil {
		return fmt.Errorf("%s already holds a node's state: to begin anew, stop picket and remove %s", p.StateDir, p.StateDir)
	}
	// Without a node file and a log this machine never was a node: what else is there was left by a set-up
	// that was cut short, and its keys are good for nothing.
	for _, name := range []string{pkiDir, peersFile, foundFile} {
		if err := os.RemoveAll(filepath.Join(p.StateDir, name)); err != nil {
			return fmt.Errorf("clear what an earlier set-up left: %w", err)
		}
	}
	return nil
}

// stage is a directory beside the state directory in which everything is made; land moves it in place
// at the end, so that a failure leaves nothing half done.
type stage struct {
	paths config.Paths
	dir   string
	made  []string // directories that were not there before, innermost first
}

func newStage(p config.Paths) (*stage, error) {
	s := &stage{paths: p}
	if err := s.mkdir(p.StateDir, 0o700); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("make the state directory: %w: become root", err)
		}
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	var err error
	if s.dir, err = os.MkdirTemp(p.StateDir, ".setup-"); err != nil {
		s.drop()
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, pkiDir), 0o700); err != nil {
		s.drop()
		return nil, err
	}
	return s, nil
}

// mkdir makes a directory with its parents, and remembers which of them drop may take away again.
func (s *stage) mkdir(path string, mode fs.FileMode) error {
	var made []string
	for d := filepath.Clean(path); ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, d)
	}
	err := os.MkdirAll(path, mode)
	s.made = append(made, s.made...)
	return err
}

// drop takes away what is left of the stage. After land that is nothing: the directories hold files.
func (s *stage) drop() {
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
	for _, d := range s.made {
		_ = os.Remove(d)
	}
}

func (s *stage) json(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return config.WriteFile(filepath.Join(s.dir, name), append(b, '\n'), 0o600)
}

// land moves the files in place, the node file last: without it the machine is no node.
func (s *stage) land(n config.Node) error {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var done []string
	undo := func(err error) error {
		for _, d := range done {
			_ = os.RemoveAll(d)
		}
		return err
	}
	for _, e := range list {
		to := filepath.Join(s.paths.StateDir, e.Name())
		if err := os.Rename(filepath.Join(s.dir, e.Name()), to); err != nil {
			return undo(fmt.Errorf("set up %s: %w", s.paths.StateDir, err))
		}
		done = append(done, to)
	}
	if err := s.mkdir(filepath.Dir(s.paths.ConfigPath), 0o755); err != nil {
		return undo(fmt.Errorf("write the node file: %w", err))
	}
	if err := n.Write(s.paths.ConfigPath); err != nil {
		return undo(fmt.Errorf("write the node file: %w", err))
	}
	return os.Remove(s.dir)
}

// Init makes a new cluster with this node as its first member: the cluster CA, the node's certificate,
// the heartbeat key and the node file. The log is begun by the daemon's first start.
func Init(ctx context.Context, o config.InitOptions) (config.InitResult, error) {
	var res config.InitResult
	if err := fresh(o.Paths); err != nil {
		return res, err
	}
	now := time.Now()
	ca, err := pki.NewCluster(o.Cluster, now)
	if err != nil {
		return res, err
	}
	keyPEM, csr, err := pki.NewNodeKey(ids.Node(o.Name))
	if err != nil {
		return res, err
	}
	cert, err := ca.SignNode(csr, ids.Node(o.Name), pki.RoleMember, now, pki.NodeLife)
	if err != nil {
		return res, err
	}
	hb, err := pki.NewHeartbeatKey()
	if err != nil {
		return res, err
	}
	tok, err := pki.NewToken(ca.Fingerprint(), initialLife, now)
	if err != nil {
		return res, err
	}
	st, err := newStage(o.Paths)
	if err != nil {
		return res, err
	}
	defer st.drop()
	dir := filepath.Join(st.dir, pkiDir)
	err = errors.Join(pki.SaveCA(dir, ca), pki.SaveNode(dir, cert, keyPEM, ca.Cert), pki.SaveHeartbeatKey(dir, hb),
		st.json(foundFile, founding{TokenHash: tok.Hash, Expires: tok.Expires.UnixMilli()}), st.json(peersFile, []peer{}))
	if err != nil {
		return res, err
	}
	node := config.Node{Cluster: o.Cluster, ClusterID: ca.ClusterID, Name: o.Name, Role: config.RoleMember, Links: o.Links, Port: o.Port, Group: config.DefaultGroup, LogLevel: "info"}
	if err := st.land(node); err != nil {
		return res, err
	}
	res = config.InitResult{ClusterID: ca.ClusterID, Fingerprint: ca.Fingerprint().String(), JoinCommand: joinCommand(linkAddrs(o.Links), o.Port, tok.Text)}
	notes, err := startUnit(ctx, o.Paths, o.NoStart)
	res.Notes = append(absent(o.Links), notes...)
	return res, err
}

// absent says which addresses this machine does not have now. That is no error: a network may come up
// later; but most often it is a mistyped address.
func absent(links []config.Link) []string {
	var out []string
	for _, l := range links {
		nic, err := net.InterfaceByName(l.Interface)
		if err != nil {
			out = append(out, fmt.Sprintf("this machine has no interface %s now: picket waits for it (is --link %s right?)", l.Interface, l))
			continue
		}
		addrs, err := nic.Addrs()
		has := err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Addr() == l.Addr
		})
		if !has {
			out = append(out, fmt.Sprintf("%s has no address %s now: picket waits for it (is --link %s right?)", l.Interface, l.Addr, l))
		}
	}
	return out
}

// joinCommand is the exact command for the next node, with places for what only its operator knows.
func joinCommand(links []state.LinkAddr, port int, token string) string {
	var addrs, flags []string
	for _, l := range links {
		addrs = append(addrs, l.Addr)
		flags = append(flags, "--link "+l.Interface+"=ADDRESS")
	}
	cmd := fmt.Sprintf("picket join %s --token %s --name NAME %s", strings.Join(addrs, ","), token, strings.Join(flags, " "))
	if port != config.DefaultPort {
		cmd += fmt.Sprintf(" --port %d", port)
	}
	return cmd
}

// Join asks a cluster to admit this machine: the token proves the cluster to us and us to the cluster.
// Nothing is written before the cluster has said yes.
func Join(ctx context.Context, o config.JoinOptions) (config.JoinResult, error) {
	var res config.JoinResult
	if err := fresh(o.Paths); err != nil {
		return res, err
	}
	tok, err := pki.ParseToken(o.Token)
	if err != nil {
		return res, err
	}
	st, err := newStage(o.Paths) // before the token is spent: a full disk must not cost one
	if err != nil {
		return res, err
	}
	defer st.drop()
	keyPEM, csr, err := pki.NewNodeKey(ids.Node(o.Name))
	if err != nil {
		return res, err
	}
	body, err := json.Marshal(joinRequest{Name: o.Name, Role: o.Role, Links: linkAddrs(o.Links), CSR: csr, Secret: tok.Secret})
	if err != nil {
		return res, err
	}
	b, err := mesh.JoinCall(ctx, o.Addrs, tok, body)
	if err != nil {
		return res, err
	}
	var rep joinReply
	if err := json.Unmarshal(b, &rep); err != nil {
		return res, fmt.Errorf("the cluster's answer could not be read: %w", err)
	}
	id, err := takeReply(filepath.Join(st.dir, pkiDir), keyPEM, rep)
	if err != nil {
		return res, err
	}
	if err := st.json(peersFile, rep.Peers); err != nil {
		return res, err
	}
	node := config.Node{Cluster: rep.Cluster, ClusterID: id.ClusterID(), Name: o.Name, Role: o.Role, Links: o.Links, Port: o.Port, Group: config.DefaultGroup, LogLevel: "info"}
	if err := st.land(node); err != nil {
		return res, err
	}
	res = config.JoinResult{Cluster: rep.Cluster, ClusterID: id.ClusterID()}
	notes, err := startUnit(ctx, o.Paths, o.NoStart)
	res.Notes = append(absent(o.Links), notes...)
	return res, err
}

// takeReply writes what the cluster gave and checks that it fits together.
func takeReply(dir string, keyPEM []byte, rep joinReply) (*pki.Identity, error) {
	id, err := pki.NewIdentity(rep.Cert, keyPEM, rep.CACert)
	if err != nil {
		return nil, fmt.Errorf("the certificate that the cluster gave does not fit: %w", err)
	}
	ca, err := pki.ParseCA(rep.CACert, rep.CAKey)
	if err != nil {
		return nil, fmt.Errorf("the CA that the cluster gave does not fit: %w", err)
	}
	var hb [pki.HeartbeatKeyLen]byte
	if copy(hb[:], rep.HBKey) != pki.HeartbeatKeyLen || len(rep.HBKey) != pki.HeartbeatKeyLen {
		return nil, errors.New("the heartbeat key that the cluster gave has the wrong length")
	}
	return id, errors.Join(pki.SaveCA(dir, ca), pki.SaveNode(dir, rep.Cert, keyPEM, rep.CACert), pki.SaveHeartbeatKey(dir, hb))
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
