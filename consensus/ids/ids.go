// Package ids holds the identifiers that every room of picket shares: node, boot,
// incarnation, group, resource and epoch. It is a pure leaf: it imports nothing of picket
// and reads neither clock nor system.
package ids

import (
	"fmt"
	"strings"
)

// Limits on names. They are allow-lists on purpose: a name ends up in file names, in
// certificates and in log lines.
const (
	// MaxName is the longest node, group or cluster name, in bytes (a DNS label, RFC 1035 2.3.4).
	MaxName = 63
	// MaxBoot is the longest boot id accepted, in bytes (the kernel's are 36).
	MaxBoot = 64
)

// Node is the name of a node, unique in its cluster.
type Node string

// Group is the name of a resource group, unique in its cluster.
type Group string

// Resource names one resource as KIND:WHAT, for example "ip:192.168.60.200".
// A resource id belongs to one group only.
type Resource string

// Boot is the identity of one boot of one machine: the content of
// /proc/sys/kernel/random/boot_id (see random(4)).
type Boot string

// Epoch is the log index of a Grant: the fencing token of one ownership. Zero means none.
type Epoch uint64

// Incarnation is one life of one node: the machine's boot, and the generation the log gave to
// the process that announced itself on it (the log index of its NodeUp; zero before that).
type Incarnation struct {
	Node Node   `json:"node"`
	Boot Boot   `json:"boot"`
	Gen  uint64 `json:"gen"`
}

// IsZero reports whether the incarnation names nobody.
func (i Incarnation) IsZero() bool { return i == Incarnation{} }

// SameBoot reports whether two incarnations are lives of the same boot of the same node: what
// a fence kills is a boot, whatever the generation (invariant I4).
func (i Incarnation) SameBoot(o Incarnation) bool { return i.Node == o.Node && i.Boot == o.Boot }

// String renders an incarnation as node/boot/generation with the boot id shortened to eight bytes.
func (i Incarnation) String() string {
	if i.IsZero() {
		return "-"
	}
	b := string(i.Boot)
	if len(b) > 8 {
		b = b[:8]
	}
	return fmt.Sprintf("%s/%s/%d", i.Node, b, i.Gen)
}

// CheckName returns an error that says what is wrong with a node, group or cluster name, or nil.
// A name is 1 to 63 bytes of a-z, 0-9 and '-', begins with a letter and does not end with '-'
// (the letters-digits-hyphen rule of RFC 1035 2.3.1, lower case only).
func CheckName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s is empty: give it a name such as %q", what, "node1")
	case len(name) > MaxName:
		return fmt.Errorf("%s is %d bytes long: at most %d are allowed", what, len(name), MaxName)
	case name[0] < 'a' || name[0] > 'z':
		return fmt.Errorf("%s %q must begin with a letter a-z", what, clip(name))
	case strings.HasSuffix(name, "-"):
		return fmt.Errorf("%s %q must not end with '-'", what, clip(name))
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%s %q holds %q: only a-z, 0-9 and '-' are allowed", what, clip(name), c)
		}
	}
	return nil
}

// CheckBoot returns an error that says what is wrong with a boot id, or nil.
func CheckBoot(b Boot) error {
	if b == "" || len(b) > MaxBoot {
		return fmt.Errorf("boot id is %d bytes long: 1 to %d are allowed", len(b), MaxBoot)
	}
	for _, c := range []byte(b) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("boot id holds %q: only a-z, 0-9 and '-' are allowed", c)
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}
