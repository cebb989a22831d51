// Package wire seals heartbeats into packets and opens them again.
//
// A packet is a fixed header, a nonce and a sealed body (XChaCha20-Poly1305,
// draft-irtf-cfrg-xchacha-03). Nothing of the body is parsed before it has authenticated, and
// every packet that is dropped is counted by its cause.
package wire

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
)

// Layout of a packet, in bytes: magic 4, version 1, cluster tag 8, key id 4 (big endian),
// nonce 24, sealed body, tag 16. All that comes before the body is authenticated with it.
const (
	// MaxPacket is the longest packet sent or accepted. It fits one Ethernet frame with room
	// for IPv6 and a tunnel header, so that a heartbeat is never fragmented.
	MaxPacket = 1400
	// Version is the version of header and body.
	Version = 1

	magic      = "PKHB"
	headerLen  = 4 + 1 + 8 + 4
	prefixLen  = headerLen + chacha20poly1305.NonceSizeX
	overhead   = prefixLen + chacha20poly1305.Overhead
	maxBody    = MaxPacket - overhead
	clusterLen = 8
	maxKeys    = 4
)

// KeySize is the length of a key's secret in bytes.
const KeySize = chacha20poly1305.KeySize

// Key is one heartbeat key of the cluster. It never shows its secret when printed or logged.
type Key struct {
	ID     uint32
	Secret [KeySize]byte
}

// String returns the key's id without the secret.
func (k Key) String() string { return fmt.Sprintf("key %d", k.ID) }

// GoString is String: "%#v" must not show the secret either.
func (k Key) GoString() string { return k.String() }

// Format is String for every verb.
func (k Key) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, k.String()) }

// LogValue is String for log/slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns the key's id without the secret, for encoders that know nothing of it.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Drop is the error of a packet that was not accepted. It wraps nothing: what a stranger sent is
// not worth more words than its cause.
type Drop struct{ Cause Cause }

// Error names the cause.
func (d Drop) Error() string { return "heartbeat packet dropped: " + d.Cause.Text() }

// CauseOf returns the cause of a drop, and false if err is not one.
func CauseOf(err error) (Cause, bool) {
	var d Drop
	ok := errors.As(err, &d)
	return d.Cause, ok
}

// Label is the part of a sealed packet that binds it to one link.
type Label struct {
	To   ids.Node // the peer the packet is for
	From string   // name of the sending NIC, on the sender
	At   string   // name of the receiving NIC, on the receiver
}

// Codec seals and opens the packets of one cluster. It is immutable and safe for concurrent use.
type Codec struct {
	cluster [clusterLen]byte
	seal    keyed
	open    []keyed
	random  io.Reader
}

type keyed struct {
	id   uint32
	aead cipher.AEAD
}

// NewCodec returns the codec of a cluster. Packets are sealed with the first key and opened
// with any: during a key change the others are the former ones. At most four keys, ids unique.
func NewCodec(clusterID string, keys ...Key) (*Codec, error) {
	return newCodec(rand.Reader, clusterID, keys)
}

func newCodec(random io.Reader, clusterID string, keys []Key) (*Codec, error) {
	if clusterID == "" {
		return nil, errors.New("heartbeat: the cluster id is empty: pass the id that init made")
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("heartbeat: %d keys given: 1 to %d are possible", len(keys), maxKeys)
	}
	c := &Codec{cluster: clusterTag(clusterID), random: random}
	for _, k := range keys {
		if k.Secret == [KeySize]byte{} {
			return nil, fmt.Errorf("heartbeat: %v is all zeros: make a random one", k)
		}
		if c.key(k.ID) != nil {
			return nil, fmt.Errorf("heartbeat: %v is given twice: key ids are unique", k)
		}
		aead, err := chacha20poly1305.NewX(k.Secret[:])
		if err != nil {
			return nil, fmt.Errorf("heartbeat: %v: %w", k, err)
		}
		c.open = append(c.open, keyed{id: k.ID, aead: aead})
	}
	c.seal = c.open[0]
	return c, nil
}

// clusterTag tells clusters apart before a key is tried: a packet of a neighbour cluster on the
// same wire is a wrong cluster, not a forgery.
func clusterTag(id string) (tag [clusterLen]byte) {
	sum := sha256.Sum256([]byte("picket heartbeat cluster\x00" + id))
	copy(tag[:], sum[:])
	return tag
}

func (c *Codec) key(id uint32) cipher.AEAD {
	for _, k := range c.open {
		if k.id == id {
			return k.aead
		}
	}
	return nil
}

// Seal builds the packet that carries a beat over the labelled link. A beat that would not fit
// MaxPacket loses first entries of Links, then of Refused, then of Silent, each from the end;
// left says how many. An error means that a name breaks its rules (see ids.CheckName) or that
// the system has no randomness.
func (c *Codec) Seal(l Label, b heartbeat.Beat) (packet []byte, left int, err error) {
	body, left, err := encodeFitting(l, b)
	if err != nil {
		return nil, 0, err
	}
	packet = make([]byte, prefixLen, prefixLen+len(body)+chacha20poly1305.Overhead)
	copy(packet, magic)
	packet[4] = Version
	copy(packet[5:], c.cluster[:])
	binary.BigEndian.PutUint32(packet[5+clusterLen:], c.seal.id)
	nonce := packet[headerLen:prefixLen]
	if _, err := io.ReadFull(c.random, nonce); err != nil {
		return nil, 0, fmt.Errorf("heartbeat: no random nonce: %w", err)
	}
	return c.seal.aead.Seal(packet, nonce, body, packet[:prefixLen]), left, nil
}

// Open authenticates a packet and returns its label and beat. It does not compare the label:
// only the receiver knows its links (see Label). Every error is a Drop. The packet is not kept.
func (c *Codec) Open(packet []byte) (Label, heartbeat.Beat, error) {
	body, cause := c.authenticate(packet)
	if cause != "" {
		return Label{}, heartbeat.Beat{}, Drop{cause}
	}
	l, b, err := decode(body)
	if err != nil {
		return Label{}, heartbeat.Beat{}, Drop{Malformed}
	}
	return l, b, nil
}

func (c *Codec) authenticate(packet []byte) ([]byte, Cause) {
	switch {
	case len(packet) > MaxPacket:
		return nil, Oversized
	case len(packet) < overhead:
		return nil, Short
	case string(packet[:4]) != magic:
		return nil, Magic
	case packet[4] != Version:
		return nil, BadVersion
	case [clusterLen]byte(packet[5:5+clusterLen]) != c.cluster:
		return nil, Cluster
	}
	aead := c.key(binary.BigEndian.Uint32(packet[5+clusterLen:]))
	if aead == nil {
		return nil, Forged
	}
	body, err := aead.Open(nil, packet[headerLen:prefixLen], packet[prefixLen:], packet[:prefixLen])
	if err != nil {
		return nil, Forged
	}
	return body, ""
}
