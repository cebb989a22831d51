package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// Errors of a handshake; test with errors.Is.
var (
	// ErrWrongCluster means the certificate was not signed by this cluster's CA.
	ErrWrongCluster = errors.New("the certificate is not of this cluster")
	// ErrWrongName means a good certificate of this cluster was shown for another node's name.
	ErrWrongName = errors.New("the certificate names another node")
	// ErrNoCert means the peer showed no certificate at all.
	ErrNoCert = errors.New("the peer showed no certificate")
)

// Identity is what a node proves itself with: its certificate and key, and the CA it trusts.
// It is immutable and safe for concurrent use.
//
// Handshakes check signature, name, key usage and protocol version, and do not check the validity
// period: an expired certificate, or a clock that is wrong, would otherwise stop consensus on every
// node within minutes, and a cluster that cannot agree cannot fail over. Expires is there for a
// warning long before.
type Identity struct {
	// Node is the name and Role the role the certificate was signed for.
	Node ids.Node
	Role string
	// Expires is the certificate's NotAfter.
	Expires time.Time
	// CA is the certificate of the cluster's CA.
	CA *x509.Certificate

	cert  tls.Certificate
	roots *x509.CertPool
}

// NewIdentity checks that the three PEM texts belong together and returns the identity.
func NewIdentity(certPEM, keyPEM, caPEM []byte) (*Identity, error) {
	ca, err := ParseCACert(caPEM)
	if err != nil {
		return nil, err
	}
	leaf, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("the node certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the node key: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("the node key does not belong to the certificate of %q", leaf.Subject.CommonName)
	}
	id := &Identity{CA: ca, roots: x509.NewCertPool(), Expires: leaf.NotAfter}
	id.roots.AddCert(ca)
	// The CA travels in the chain so that a joining node, which knows only a fingerprint, can find it.
	id.cert = tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key, Leaf: leaf}
	name, err := id.Verify(leaf)
	if err != nil {
		return nil, fmt.Errorf("the node certificate: %w", err)
	}
	id.Node, id.Role = name, roleOf(leaf)
	return id, nil
}

// ClusterID returns the id of the cluster this identity belongs to.
func (id *Identity) ClusterID() string { return ClusterID(id.CA) }

// Fingerprint returns the fingerprint of the cluster's CA.
func (id *Identity) Fingerprint() Fingerprint { return FingerprintOf(id.CA) }

// Verify checks a peer's certificate against this cluster's CA and returns the node it names. Errors
// wrap ErrWrongCluster or ErrWrongName.
func (id *Identity) Verify(leaf *x509.Certificate) (ids.Node, error) {
	return verifyLeaf(leaf, id.CA, id.roots)
}

// verifyLeaf checks signature, key usage and the agreement of CN and SAN, at a moment inside the
// validity of both certificates instead of now.
func verifyLeaf(leaf, ca *x509.Certificate, roots *x509.CertPool) (ids.Node, error) {
	at := leaf.NotBefore
	if ca.NotBefore.After(at) {
		at = ca.NotBefore
	}
	if at.After(leaf.NotAfter) {
		return "", fmt.Errorf("%w: its validity ends before the CA's begins", ErrWrongCluster)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil {
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrWrongCluster, err)
	}
	if leaf.IsCA {
		return "", fmt.Errorf("%w: it is a CA certificate", ErrWrongName)
	}
	name := leaf.Subject.CommonName
	if err := ids.CheckName("node name", name); err != nil {
		return "", fmt.Errorf("%w: %w", ErrWrongName, err)
	}
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != DNSName(ids.Node(name)) {
		return "", fmt.Errorf("%w: CN %q and SAN %q differ", ErrWrongName, name, strings.Join(leaf.DNSNames, ","))
	}
	return ids.Node(name), nil
}

func roleOf(leaf *x509.Certificate) string {
	if slices.Contains(leaf.Subject.OrganizationalUnit, RoleWitness) {
		return RoleWitness
	}
	return RoleMember
}

// ClientConfig returns the TLS configuration for a connection to one peer with one ALPN protocol
// (RFC 7301). The server must prove to be exactly that peer and must agree on the protocol.
func (id *Identity) ClientConfig(peer ids.Node, alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		ServerName:   DNSName(peer),
		NextProtos:   []string{alpn},
		Certificates: []tls.Certificate{id.cert},
		// The library's own check cannot leave out the validity period; VerifyConnection does the whole
		// check in its place, and it runs on every handshake.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := checkALPN(cs, alpn); err != nil {
				return err
			}
			got, err := id.PeerName(cs)
			if err != nil {
				return err
			}
			if got != peer {
				return fmt.Errorf("%w: %s answered where %s was expected", ErrWrongName, got, peer)
			}
			return nil
		},
	}
}

// ServerConfig returns the TLS configuration of a listener. A client that asks for one of the mutual
// protocols must show a certificate of this cluster whose node admitted accepts (nil accepts all);
// one that asks for an open protocol shows none and gets the server's chain with the CA in it.
func (id *Identity) ServerConfig(mutual, open []string, admitted func(ids.Node) bool) *tls.Config {
	closed := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             mutual,
		Certificates:           []tls.Certificate{id.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := checkALPN(cs, mutual...); err != nil {
				return err
			}
			name, err := id.PeerName(cs)
			if err != nil {
				return err
			}
			if admitted != nil && !admitted(name) {
				return fmt.Errorf("%w: %s is not admitted to this cluster", ErrWrongName, name)
			}
			return nil
		},
	}
	opened := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             open,
		Certificates:           []tls.Certificate{id.cert},
		SessionTicketsDisabled: true,
		VerifyConnection:       func(cs tls.ConnectionState) error { return checkALPN(cs, open...) },
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// One protocol per hello: a client that offers an open one beside a mutual one gets the mutual
		// rules, so no choice of protocols avoids them.
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if len(h.SupportedProtos) == 1 && slices.Contains(open, h.SupportedProtos[0]) {
				return opened, nil
			}
			return closed, nil
		},
	}
}

// PeerName returns the node that a finished handshake proved. Errors wrap ErrNoCert, ErrWrongCluster
// or ErrWrongName.
func (id *Identity) PeerName(cs tls.ConnectionState) (ids.Node, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", ErrNoCert
	}
	return id.Verify(cs.PeerCertificates[0])
}

func checkALPN(cs tls.ConnectionState, want ...string) error {
	if cs.Version < tls.VersionTLS13 {
		return errors.New("the peer speaks a TLS older than 1.3")
	}
	if !slices.Contains(want, cs.NegotiatedProtocol) {
		return fmt.Errorf("the peer speaks %q where %s is served: it is not picket, or another version of it",
			cs.NegotiatedProtocol, strings.Join(want, ", "))
	}
	return nil
}

// PinConfig returns the TLS configuration of a node that has not joined yet and knows the cluster
// only by the fingerprint of its CA. It shows no certificate. The server's chain must hold the CA
// with that fingerprint, and that CA must have signed the server's certificate; otherwise the
// handshake ends with ErrWrongCluster.
func PinConfig(pin Fingerprint, alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		InsecureSkipVerify:     true, // VerifyConnection below checks against the pin
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := checkALPN(cs, alpn); err != nil {
				return err
			}
			return verifyPin(cs.PeerCertificates, pin)
		},
	}
}

func verifyPin(chain []*x509.Certificate, pin Fingerprint) error {
	if len(chain) == 0 {
		return ErrNoCert
	}
	for _, ca := range chain[1:] {
		if FingerprintOf(ca) != pin || !ca.IsCA {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca)
		_, err := verifyLeaf(chain[0], ca, roots)
		return err
	}
	seen := "none"
	if len(chain) > 1 {
		seen = FingerprintOf(chain[len(chain)-1]).String()
	}
	return fmt.Errorf("%w: its CA has fingerprint %s, the token was made for %s", ErrWrongCluster, seen, pin)
}
