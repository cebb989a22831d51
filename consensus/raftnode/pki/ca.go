// Package pki makes and checks the identities of a picket cluster: its certificate authority,
// one certificate per node, join tokens, the heartbeat key, and the files they live in.
//
// Everything is TLS 1.3 with ECDSA P-256. Validity periods are written but not enforced during a
// handshake (see Identity): a cluster must neither stop because a year went by nor because the
// clock of a machine is wrong. Who may speak is decided by membership, which the log holds.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

const (
	// caLife is the life of the cluster CA. There is nobody to renew it, so it is long.
	caLife = 30 * 365 * 24 * time.Hour
	// NodeLife is the life SignNode gives a node certificate where 0 is asked: one year.
	NodeLife = 365 * 24 * time.Hour
	// backdate is subtracted from every NotBefore, so that a node whose clock is behind the signer's
	// does not look at a certificate from its future.
	backdate = time.Hour
	// maxPEM is the largest PEM input parsed, in bytes.
	maxPEM = 64 << 10
)

// Roles of a node, as written in its certificate (subject OU).
const (
	RoleMember  = "member"
	RoleWitness = "witness"
)

// Fingerprint is the SHA-256 of the DER form of the CA certificate. It is what a join token pins.
type Fingerprint [sha256.Size]byte

// String renders a fingerprint in lower-case hex.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// CA is a cluster's certificate authority with its private key.
type CA struct {
	// Cert is the certificate, Key the PKCS #8 private key (RFC 5958), both in PEM.
	Cert, Key []byte
	// ClusterID is the hex of the first 16 bytes of the SHA-256 of the CA's public key (PKIX DER): 32
	// characters that no other cluster has, whatever its name.
	ClusterID string
	// Name is the cluster's name.
	Name string
}

// NewCluster makes the certificate authority of a new cluster. The name must satisfy ids.CheckName;
// now is the wall clock and only dates the certificate.
func NewCluster(name string, now time.Time) (CA, error) {
	if err := ids.CheckName("cluster name", name); err != nil {
		return CA{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return CA{}, fmt.Errorf("generate the CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return CA{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name, Organization: []string{"picket cluster"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return CA{}, fmt.Errorf("sign the CA certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return CA{}, err
	}
	return ParseCA(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM)
}

// ParseCA reads a CA from its two PEM texts and checks that the key belongs to the certificate.
func ParseCA(certPEM, keyPEM []byte) (CA, error) {
	cert, err := ParseCACert(certPEM)
	if err != nil {
		return CA{}, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return CA{}, fmt.Errorf("the CA key: %w", err)
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return CA{}, errors.New("the CA key does not belong to the CA certificate: take both from the same node")
	}
	return CA{Cert: certPEM, Key: keyPEM, ClusterID: ClusterID(cert), Name: cert.Subject.CommonName}, nil
}

// ParseCACert reads a CA certificate in PEM.
func ParseCACert(certPEM []byte) (*x509.Certificate, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("the CA certificate: %w", err)
	}
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return nil, fmt.Errorf("the certificate of %q is not a CA certificate", cert.Subject.CommonName)
	}
	return cert, nil
}

// ClusterID returns the cluster id that belongs to a CA certificate.
func ClusterID(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:16])
}

// FingerprintOf returns the fingerprint of a CA certificate.
func FingerprintOf(ca *x509.Certificate) Fingerprint { return sha256.Sum256(ca.Raw) }

// Fingerprint returns the SHA-256 of the CA certificate's DER form. It is zero for a CA that was
// not made by NewCluster or ParseCA.
func (c CA) Fingerprint() Fingerprint {
	cert, err := ParseCACert(c.Cert)
	if err != nil {
		return Fingerprint{}
	}
	return FingerprintOf(cert)
}

// NewNodeKey makes a node's private key (PKCS #8 PEM) and a certificate signing request (RFC 2986,
// PEM) with the node's name. The key never leaves the node; the request may.
func NewNodeKey(name ids.Node) (keyPEM, csrPEM []byte, err error) {
	if err := ids.CheckName("node name", string(name)); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate the key of node %s: %w", name, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: string(name)}, DNSNames: []string{DNSName(name)}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the certificate request of node %s: %w", name, err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// SignNode signs a node's request and returns its certificate in PEM. Only the public key is taken
// from the request: name and role are the caller's, and a request made for another name is refused.
// life 0 means NodeLife.
func (c CA) SignNode(csrPEM []byte, name ids.Node, role string, now time.Time, life time.Duration) ([]byte, error) {
	if err := ids.CheckName("node name", string(name)); err != nil {
		return nil, err
	}
	if role != RoleMember && role != RoleWitness {
		return nil, fmt.Errorf("role %q is not known: use %s or %s", role, RoleMember, RoleWitness)
	}
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return nil, err
	}
	if csr.Subject.CommonName != string(name) {
		return nil, fmt.Errorf("the certificate request was made for %q, not for %q", csr.Subject.CommonName, name)
	}
	ca, err := ParseCACert(c.Cert)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(c.Key)
	if err != nil {
		return nil, fmt.Errorf("the CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	if life <= 0 {
		life = NodeLife
	}
	if now.Before(ca.NotBefore) { // the clock of this node is wrong; the certificate must work all the same
		now = ca.NotBefore.Add(backdate)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: string(name), OrganizationalUnit: []string{role}, Organization: []string{ca.Subject.CommonName}},
		DNSNames:     []string{DNSName(name)},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},

		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, csr.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of node %s: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// DNSName is the subject alternative name that a node's certificate carries: NODE.picket.
func DNSName(n ids.Node) string { return string(n) + ".picket" }

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("generate a certificate serial number: %w", err)
	}
	return n, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// decode returns the DER of the first block of a PEM text, which must be of the type wanted.
func decode(text []byte, want string) ([]byte, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("is %d bytes long: at most %d are read", len(text), maxPEM)
	}
	b, _ := pem.Decode(text)
	if b == nil {
		return nil, errors.New("is not PEM text")
	}
	if b.Type != want {
		return nil, fmt.Errorf("is a PEM block of type %q, not %q", b.Type, want)
	}
	return b.Bytes, nil
}

func parseCert(text []byte) (*x509.Certificate, error) {
	der, err := decode(text, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("cannot be parsed: %w", err)
	}
	return cert, nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	der, err := decode(text, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("cannot be parsed: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("is not an ECDSA P-256 key")
	}
	return key, nil
}

func parseCSR(text []byte) (*x509.CertificateRequest, error) {
	der, err := decode(text, "CERTIFICATE REQUEST")
	if err != nil {
		return nil, fmt.Errorf("the certificate request %w", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate request cannot be parsed: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	if pub, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("the certificate request does not hold an ECDSA P-256 key")
	}
	return csr, nil
}
