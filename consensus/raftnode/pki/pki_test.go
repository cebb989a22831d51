package pki

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

func testCA(t *testing.T) CA {
	t.Helper()
	ca, err := NewCluster("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func testID(t *testing.T, ca CA, name ids.Node, at time.Time, life time.Duration) *Identity {
	t.Helper()
	key, csr, err := NewNodeKey(name)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, name, RoleWitness, at, life)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(cert, key, ca.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// shake runs a handshake over loopback TCP and returns both sides' errors; the client also reads once, since
// in TLS 1.3 it learns of a refused certificate only then.
func shake(t *testing.T, server, client *tls.Config) (serr, cerr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		s := tls.Server(c, server)
		err = s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	c := tls.Client(raw, client)
	if cerr = c.Handshake(); cerr == nil {
		_, cerr = c.Read(make([]byte, 1))
	}
	raw.Close()
	return <-done, cerr
}

func TestHandshakes(t *testing.T) {
	other := testCA(t)
	now := time.Now()
	ca, err := NewCluster("prod", now.Add(-10*365*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	a, b := testID(t, ca, "node1", now, 0), testID(t, ca, "node2", now, 0)
	stranger := testID(t, other, "node2", now, 0)
	expired := testID(t, ca, "node2", now.Add(-3*365*24*time.Hour), time.Hour)
	server := a.ServerConfig([]string{"m"}, []string{"o"}, func(n ids.Node) bool { return n != "node9" })
	old := b.ClientConfig("node1", "m")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	bare := b.ClientConfig("node1", "m")
	bare.Certificates = nil
	sneaky := b.ClientConfig("node1", "m")
	sneaky.Certificates, sneaky.NextProtos = nil, []string{"o", "m"}
	noALPN := b.ClientConfig("node1", "m")
	noALPN.NextProtos = nil
	for _, tc := range []struct {
		name   string
		client *tls.Config
		ok     bool
		is     error
	}{
		{"good", b.ClientConfig("node1", "m"), true, nil},
		{"expired is still let in", expired.ClientConfig("node1", "m"), true, nil},
		{"signed by a clock of 1970", testID(t, ca, "node2", time.Unix(0, 0), 0).ClientConfig("node1", "m"), true, nil},
		{"wrong server name", b.ClientConfig("node3", "m"), false, ErrWrongName},
		{"another cluster's client", stranger.ClientConfig("node1", "m"), false, ErrWrongCluster},
		{"no certificate", bare, false, nil},
		{"open and mutual protocol together", sneaky, false, nil},
		{"no protocol", noALPN, false, nil},
		{"unknown protocol", b.ClientConfig("node1", "z"), false, nil},
		{"TLS 1.2", old, false, nil},
		{"not admitted", testID(t, ca, "node9", now, 0).ClientConfig("node1", "m"), false, ErrWrongName},
		{"pin", PinConfig(ca.Fingerprint(), "o"), true, nil},
		{"pin of another cluster", PinConfig(other.Fingerprint(), "o"), false, ErrWrongCluster},
		{"pin on a mutual protocol", PinConfig(ca.Fingerprint(), "m"), false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			serr, cerr := shake(t, server, tc.client)
			if ok := serr == nil && cerr == nil; ok != tc.ok {
				t.Fatalf("server %v, client %v", serr, cerr)
			}
			if tc.is != nil && !errors.Is(serr, tc.is) && !errors.Is(cerr, tc.is) {
				t.Errorf("server %v, client %v, want %v", serr, cerr, tc.is)
			}
		})
	}
}

func TestPinNeedsTheSigner(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	id := testID(t, other, "node1", time.Now(), 0)
	// A server that shows the right CA beside a certificate that CA never signed.
	c, err := ParseCACert(ca.Cert)
	if err != nil {
		t.Fatal(err)
	}
	id.cert.Certificate = [][]byte{id.cert.Certificate[0], c.Raw}
	if _, cerr := shake(t, id.ServerConfig(nil, []string{"o"}, nil), PinConfig(ca.Fingerprint(), "o")); !errors.Is(cerr, ErrWrongCluster) {
		t.Errorf("got %v", cerr)
	}
}

func TestSignNodeRefuses(t *testing.T) {
	ca := testCA(t)
	_, csr, err := NewNodeKey("node1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.SignNode(csr, "node2", RoleMember, time.Now(), 0); err == nil || !strings.Contains(err.Error(), `made for "node1"`) {
		t.Errorf("name: %v", err)
	}
	if _, err := ca.SignNode(csr, "node1", "king", time.Now(), 0); err == nil {
		t.Error("role king was signed")
	}
	for _, bad := range []string{"", "junk", string(ca.Cert), strings.Repeat("x", maxPEM+1)} {
		if _, err := ca.SignNode([]byte(bad), "node1", RoleMember, time.Now(), 0); err == nil {
			t.Errorf("signed %.20q", bad)
		}
	}
}

func TestTokens(t *testing.T) {
	ca := testCA(t)
	now := time.Now()
	tok, err := NewToken(ca.Fingerprint(), time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(tok.Text) != 97 || !tok.Expires.Equal(now.Add(time.Hour)) || tok.Hash != HashSecret(tok.Secret) {
		t.Errorf("token %+v", tok)
	}
	half := len(tok.Text) / 2
	for _, same := range []string{tok.Text, strings.ToUpper(tok.Text), " " + tok.Text[:half] + "\n  " + tok.Text[half:] + "\n"} {
		got, err := ParseToken(same)
		if err != nil || got.Hash != tok.Hash || got.CA != ca.Fingerprint() {
			t.Errorf("%q: %v", same, err)
		}
	}
	for i := len(tokenPrefix) + 1; i < len(tok.Text); i++ { // every mistyped letter is noticed
		if tok.Text[i] == '.' {
			continue
		}
		c := byte('a')
		if tok.Text[i] == 'a' {
			c = 'b'
		}
		if _, err := ParseToken(tok.Text[:i] + string(c) + tok.Text[i+1:]); err == nil || !strings.Contains(err.Error(), "mistyped") {
			t.Errorf("letter %d: %v", i, err)
		}
	}
	for _, bad := range []string{"", "hello", "picket1.", "picket1.a.b", tok.Text[:90], tok.Text + "a", "picket1.0" + tok.Text[9:], strings.Repeat("p", 5000), "picket2" + tok.Text[7:]} {
		if _, err := ParseToken(bad); err == nil {
			t.Errorf("%.30q was accepted", bad)
		} else if strings.Contains(err.Error(), string(tok.Text[8:40])) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	for _, ttl := range []time.Duration{0, -1, time.Second, 31 * 24 * time.Hour} {
		if _, err := NewToken(ca.Fingerprint(), ttl, now); err == nil {
			t.Errorf("ttl %v was accepted", ttl)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("picket1.aaaa.bbbb")
	f.Fuzz(func(t *testing.T, s string) { _, _ = ParseToken(s) })
}

func TestFiles(t *testing.T) {
	ca := testCA(t)
	dir := filepath.Join(t.TempDir(), "keys")
	if err := SaveCA(dir, ca); err != nil {
		t.Fatal(err)
	}
	key, csr, err := NewNodeKey("node1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, "node1", RoleMember, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	hb, err := NewHeartbeatKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(SaveNode(dir, cert, key, ca.Cert), SaveHeartbeatKey(dir, hb)); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadHeartbeatKey(dir); err != nil || got != hb {
		t.Errorf("heartbeat key: %v", err)
	}
	if got, err := LoadCA(dir); err != nil || got.ClusterID != ca.ClusterID || len(got.ClusterID) != 32 {
		t.Errorf("CA: %v", err)
	}
	if id, err := LoadNode(dir); err != nil || id.Node != "node1" || id.Role != RoleMember || id.ClusterID() != ca.ClusterID {
		t.Errorf("node: %v", err)
	}
	path := filepath.Join(dir, NodeKeyFile)
	refuse := func(what, want string) {
		t.Helper()
		if _, err := LoadNode(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	chmod := func(p string, m os.FileMode) {
		t.Helper()
		if err := os.Chmod(p, m); err != nil {
			t.Fatal(err)
		}
	}
	chmod(path, 0o640)
	refuse("group can read", "chmod 600 "+path)
	chmod(path, 0o600)
	chmod(dir, 0o755)
	refuse("directory", "chmod 700 "+dir)
	chmod(dir, 0o700)
	if err := errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path)); err != nil {
		t.Fatal(err)
	}
	refuse("symlink", "symbolic link")
	if err := errors.Join(os.Remove(path), WriteSecret(dir, NodeKeyFile, ca.Key)); err != nil {
		t.Fatal(err)
	}
	refuse("key of another", "does not belong")
}
