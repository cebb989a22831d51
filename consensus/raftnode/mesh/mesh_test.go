package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type peer struct {
	*Mesh
	id    *pki.Identity
	ranks [2]atomic.Int64
}

// lab is two nodes with two links each on 127.78.LINK.NODE.
type lab struct {
	ca    pki.CA
	port  uint16
	peers map[ids.Node]*peer
	known map[ids.Node][]PeerLink
}

func identity(t *testing.T, ca pki.CA, name ids.Node) *pki.Identity {
	t.Helper()
	key, csr, err := pki.NewNodeKey(name)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, name, pki.RoleMember, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(cert, key, ca.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newLab(t *testing.T, tune func(*Options)) *lab {
	t.Helper()
	ca, err := pki.NewCluster("lab", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{ca: ca, port: uint16(ln.Addr().(*net.TCPAddr).Port), peers: map[ids.Node]*peer{}, known: map[ids.Node][]PeerLink{}}
	ln.Close()
	for i, n := range []ids.Node{"node1", "node2"} {
		p := &peer{id: identity(t, ca, n)}
		o := Options{Self: n, Identity: p.id, Port: l.port, LinkUp: func(_ ids.Node, link string) Rank {
			return Rank(p.ranks[strings.Index("ab", link)].Load())
		}}
		for k, name := range []string{"a", "b"} {
			addr := netip.AddrFrom4([4]byte{127, 78, byte(k), byte(i + 1)})
			o.Links = append(o.Links, Link{Interface: "lo", Addr: addr, Bits: 24, Name: name})
			l.known[n] = append(l.known[n], PeerLink{Interface: name, Addr: addr})
		}
		if tune != nil {
			tune(&o)
		}
		if p.Mesh, err = New(o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		l.peers[n] = p
		eventually(t, "listening", func() bool { s := p.Listening(); return s["a"] == nil && s["b"] == nil })
	}
	for _, p := range l.peers {
		p.SetPeers(l.known)
	}
	return l
}

func (l *lab) addr(n ids.Node, link int) netip.AddrPort {
	return netip.AddrPortFrom(l.known[n][link].Addr, l.port)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func linkOf(t *testing.T, c net.Conn) string {
	t.Helper()
	_, link, ok := PeerOf(c)
	if !ok {
		t.Fatal("not a mesh connection")
	}
	return link
}

func TestDialPrefersLiveLinksAndDropLinkCloses(t *testing.T) {
	l := newLab(t, nil)
	a, b := l.peers["node1"], l.peers["node2"]
	ln, err := b.Accept(ALPNRaft)
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Dial(soon(t), "node2", ALPNRaft)
	if err != nil {
		t.Fatal(err)
	}
	if got := linkOf(t, c); got != "a" {
		t.Errorf("dialled over %s", got)
	}
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if p, link, _ := PeerOf(in); p != "node1" || link != "a" {
		t.Errorf("inbound from %s over %s", p, link)
	}
	ended := make(chan error, 1)
	go func() { _, err := in.Read(make([]byte, 1)); ended <- err }()
	a.ranks[0].Store(int64(RankDead))
	a.DropLink("node2", "a")
	if err := <-ended; err == nil {
		t.Error("the connection lives on")
	}
	c2, err := a.Dial(soon(t), "node2", ALPNRaft)
	if err != nil || linkOf(t, c2) != "b" {
		t.Errorf("redial: %v", err)
	}
	a.ranks[1].Store(int64(RankDead)) // all dead: still tried, as a last resort
	if c, err := a.Dial(soon(t), "node2", ALPNRaft); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	a.ranks[0].Store(0)
	a.ranks[1].Store(0)
	a.Suspect("node2", "a")
	if c, err := a.Dial(soon(t), "node2", ALPNRaft); err != nil || linkOf(t, c) != "b" {
		t.Errorf("a suspect link was preferred: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	var admitted atomic.Bool
	admitted.Store(true)
	l := newLab(t, func(o *Options) { o.Admitted = func(ids.Node) bool { return admitted.Load() } })
	a := l.peers["node1"]
	if _, err := a.Accept(ALPNRaft); err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewCluster("lab", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	try := func(cfg *tls.Config) error {
		raw, err := net.Dial("tcp", l.addr("node1", 0).String())
		if err != nil {
			return err
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(300 * time.Millisecond))
		c := tls.Client(raw, cfg)
		if err := c.Handshake(); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return nil // let in: the server just has nothing to say
		}
		return err
	}
	good := func() *tls.Config { return identity(t, l.ca, "node2").ClientConfig("node1", ALPNRaft) }
	if err := try(good()); err != nil {
		t.Errorf("a good peer was refused: %v", err)
	}
	bare, old := good(), good()
	bare.Certificates = nil
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	foreign := good()
	foreign.Certificates = identity(t, other, "node2").ClientConfig("node1", ALPNRaft).Certificates
	for name, cfg := range map[string]*tls.Config{"no certificate": bare, "TLS 1.2": old, "another CA": foreign} {
		if err := try(cfg); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	if err := try(identity(t, l.ca, "node2").ClientConfig("node3", ALPNRaft)); !errors.Is(err, pki.ErrWrongName) {
		t.Errorf("node1 passed for node3: %v", err)
	}
	admitted.Store(false)
	if err := try(good()); err == nil {
		t.Error("a node that is not admitted was let in")
	}
	if _, err := a.Dial(soon(t), "node2", ALPNRaft); !errors.Is(err, ErrNotAdmitted) {
		t.Errorf("dial: %v", err)
	}
	admitted.Store(true)
	if _, err := a.Dial(soon(t), "node7", ALPNRaft); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("dial: %v", err)
	}
}

func TestRefusedMeansDaemonDead(t *testing.T) {
	l := newLab(t, nil)
	a, b := l.peers["node1"], l.peers["node2"]
	if refused, err := a.Probe(soon(t), "node2"); refused || err != nil {
		t.Errorf("alive: %v %v", refused, err)
	}
	b.Close()
	if refused, err := a.Probe(soon(t), "node2"); !refused || err != nil {
		t.Errorf("daemon dead: %v %v", refused, err)
	}
	if refused, age := a.Refused("node2"); !refused || age > time.Second {
		t.Errorf("Refused: %v %v", refused, age)
	}
}

func TestHandshakesAreBounded(t *testing.T) {
	l := newLab(t, func(o *Options) { o.MaxStrangers = 2; o.HandshakeTimeout = 500 * time.Millisecond })
	a := l.peers["node1"]
	for range 6 { // 127.0.0.1 is no peer's address
		c, err := net.Dial("tcp", l.addr("node1", 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "four closed, two timed out", func() bool { s := a.Stats(); return s.Busy == 4 && s.Failed == 2 })
	ln, err := a.Accept(ALPNCall) // and peers come in all the same
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.peers["node2"].Dial(soon(t), "node1", ALPNCall); err != nil {
		t.Error(err)
	}
	if _, err := ln.Accept(); err != nil {
		t.Error(err)
	}
}

func TestAbsentAddressIsRetried(t *testing.T) {
	l := newLab(t, nil)
	id := identity(t, l.ca, "node3")
	blocker, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.78.0.3"), l.port).String())
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{Self: "node3", Identity: id, Port: l.port, Links: []Link{
		{Interface: "nosuch0", Addr: netip.MustParseAddr("127.78.1.3")}, {Interface: "lo", Addr: netip.MustParseAddr("127.78.0.3"), Bits: 24}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	eventually(t, "both links fail", func() bool {
		s := m.Listening()
		return s["nosuch0"] != nil && s["nosuch0"] != errStarting && s["lo"] != nil && s["lo"] != errStarting
	})
	blocker.Close()
	m.Recheck()
	eventually(t, "lo listens once it can", func() bool { return m.Listening()["lo"] == nil })
	if m.Listening()["nosuch0"] == nil {
		t.Error("a link whose NIC does not exist listens")
	}
}

func TestCalls(t *testing.T) {
	l := newLab(t, nil)
	a, b := l.peers["node1"], l.peers["node2"]
	var ran atomic.Int64
	block := make(chan struct{})
	srv, err := ServeCalls(b.Mesh, func(ctx context.Context, from ids.Node, method string, body []byte) ([]byte, error) {
		ran.Add(1)
		switch method {
		case "echo":
			return fmt.Appendf(nil, "%s %s", from, body), nil
		case "no":
			return nil, &RemoteError{"REFUSED_STALE", "not the newest"}
		case "wait":
			select {
			case <-block:
			case <-ctx.Done():
			}
			return nil, errors.New("waited")
		}
		return make([]byte, MaxBody+1), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	c := NewCaller(a.Mesh)
	defer c.Close()
	for range 20 {
		if out, err := c.Call(soon(t), "node2", "echo", []byte("hi")); err != nil || string(out) != "node1 hi" {
			t.Fatalf("%q %v", out, err)
		}
	}
	if n := a.Stats().Dialled; n != 1 {
		t.Errorf("%d connections for 20 calls", n)
	}
	if out, err := c.CallIdempotent(soon(t), "node2", "echo", []byte("hi")); err != nil || string(out) != "node1 hi" {
		t.Errorf("%q %v", out, err)
	}
	var re *RemoteError
	if _, err := c.Call(soon(t), "node2", "no", nil); !errors.As(err, &re) || re.Code != "REFUSED_STALE" || re.Msg != "not the newest" {
		t.Errorf("got %v", err)
	}
	if _, err := c.Call(soon(t), "node2", "big", nil); !errors.As(err, &re) || re.Code != CodeTooLarge {
		t.Errorf("got %v", err)
	}
	var ce *CallError
	if _, err := c.Call(soon(t), "node2", "echo", make([]byte, MaxBody+1)); !errors.As(err, &ce) || ce.MayHaveRun {
		t.Errorf("too large: %v", err)
	}
	before := ran.Load()
	res := make(chan error, 1)
	go func() { _, err := c.Call(soon(t), "node2", "wait", nil); res <- err }()
	eventually(t, "the call runs", func() bool { return ran.Load() > before })
	a.DropLink("node2", "a")
	a.DropLink("node2", "b")
	if err := <-res; !errors.As(err, &ce) || !ce.MayHaveRun {
		t.Errorf("dropped: %v", err)
	}
	close(block)
	if out, err := c.Call(soon(t), "node2", "echo", nil); err != nil { // redials
		t.Errorf("%q %v", out, err)
	}
	srv.Close()
	b.Close()
	// The first call may find a kept connection that is about to end, and then cannot tell.
	eventually(t, "calls know that they were not delivered", func() bool {
		_, err := c.Call(soon(t), "node2", "echo", nil)
		return errors.As(err, &ce) && !ce.MayHaveRun
	})
}

func TestJoin(t *testing.T) {
	l := newLab(t, nil)
	a := l.peers["node1"]
	srv, err := ServeJoin(a.Mesh, func(_ context.Context, remote netip.AddrPort, body []byte) ([]byte, error) {
		if string(body) == "bad" {
			return nil, &RemoteError{"REFUSED_TOKEN", "the join token has expired"}
		}
		return fmt.Appendf(nil, "welcome %s %s", remote.Addr(), body), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	tok, err := pki.NewToken(l.ca.Fingerprint(), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.AddrPortFrom(netip.MustParseAddr("127.78.9.9"), l.port)
	out, err := JoinCall(soon(t), []netip.AddrPort{nobody, l.addr("node1", 0)}, tok, []byte("me"))
	if err != nil || string(out) != "welcome 127.0.0.1 me" {
		t.Errorf("%q %v", out, err)
	}
	var re *RemoteError
	if _, err := JoinCall(soon(t), []netip.AddrPort{l.addr("node1", 0)}, tok, []byte("bad")); !errors.As(err, &re) || re.Code != "REFUSED_TOKEN" {
		t.Errorf("got %v", err)
	}
	if _, err := JoinCall(soon(t), []netip.AddrPort{nobody}, tok, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	wrong := tok
	wrong.CA[0] ^= 1
	if _, err := JoinCall(soon(t), []netip.AddrPort{l.addr("node1", 0)}, wrong, nil); !errors.Is(err, pki.ErrWrongCluster) || !strings.Contains(err.Error(), "fingerprint") {
		t.Errorf("got %v", err)
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	go func() {
		for c, err := web.Accept(); err == nil; c, err = web.Accept() {
			fmt.Fprint(c, "HTTP/1.0 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	at := web.Addr().(*net.TCPAddr).AddrPort()
	if _, err := JoinCall(soon(t), []netip.AddrPort{at}, tok, nil); !errors.Is(err, ErrNotPicket) {
		t.Errorf("got %v", err)
	}
	busy := 0
	for range 30 {
		if _, err := JoinCall(soon(t), []netip.AddrPort{l.addr("node1", 0)}, tok, []byte("me")); errors.As(err, &re) && re.Code == CodeBusy {
			busy++
		}
	}
	if busy == 0 {
		t.Error("30 joins at once and none was told to wait")
	}
}
