package fencing

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// CanonicalUUID returns a UUID as 8-4-4-4-12 lower case hex (RFC 9562 section 4). It takes either
// case, surrounding blanks (files under /sys end in a newline) and dashes at any place or none;
// anything that is not 32 hexadecimal digits is an error.
func CanonicalUUID(s string) (string, error) {
	b, err := parseUUID(s)
	if err != nil {
		return "", err
	}
	return FormatUUID(b), nil
}

// FormatUUID writes 16 bytes, in the order given, as 8-4-4-4-12 lower case hex.
func FormatUUID(b [16]byte) string {
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// MatchUUID reports whether a BMC's GUID and a machine's DMI UUID name the same machine.
//
// The same sixteen bytes are in use in three orders, and a BMC does not say which it sends:
// network order (RFC 9562 section 4); the mixed order of SMBIOS (DSP0134 section 7.2.1), where the
// first three fields are little-endian; and least significant byte first (IPMI 2.0 section 20.8).
// All three are tried. Case and dashes do not matter. An unreadable or filler UUID (see
// [FillerUUID]) matches nothing, not even itself: boards that ship with the same filler would all
// pass for each other.
func MatchUUID(guid, uuid string) bool {
	g, err := parseUUID(guid)
	if err != nil {
		return false
	}
	u, err := parseUUID(uuid)
	if err != nil || isFiller(g) || isFiller(u) {
		return false
	}
	return g == u || mixed(g) == u || reversed(g) == u
}

// FillerUUID reports whether a string is no UUID at all or one that vendors leave in many boards:
// all bytes alike (zeros, ones, fe...), or one of the well-known templates, in any byte order.
func FillerUUID(s string) bool {
	b, err := parseUUID(s)
	return err != nil || isFiller(b)
}

// maxUUIDText bounds what is looked at; 32 digits, 4 dashes, braces and blanks fit well.
const maxUUIDText = 64

func parseUUID(s string) (b [16]byte, err error) {
	if len(s) > maxUUIDText {
		return b, fmt.Errorf("uuid is %d bytes long: want 32 hexadecimal digits such as 8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a6b", len(s))
	}
	h := strings.ReplaceAll(strings.TrimSpace(s), "-", "")
	if n, err := hex.Decode(b[:], []byte(clip32(h))); len(h) != 32 || n != 16 || err != nil {
		return [16]byte{}, fmt.Errorf("uuid %q is not 32 hexadecimal digits such as 8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a6b", clip(s))
	}
	return b, nil
}

// clip32 keeps hex.Decode inside its 16 byte destination.
func clip32(s string) string {
	if len(s) > 32 {
		return s[:32]
	}
	return s
}

// mixed swaps the first three fields: network order to SMBIOS order and back.
func mixed(b [16]byte) [16]byte {
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
	return b
}

// reversed turns all sixteen bytes round: network order to IPMI order and back.
func reversed(b [16]byte) [16]byte {
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return b
}

// isFiller knows the values that name no machine.
func isFiller(b [16]byte) bool {
	same := true
	for _, x := range b[1:] {
		same = same && x == b[0]
	}
	if same {
		return true
	}
	for _, order := range [...][16]byte{b, mixed(b), reversed(b)} {
		switch FormatUUID(order) {
		case "03000200-0400-0500-0006-000700080009", // AMI template, the most common of all
			"12345678-1234-5678-90ab-cddeefaabbcc", // AMI template
			"12345678-1234-5678-1234-567812345678",
			"12345678-1234-1234-1234-123456789abc",
			"12345678-9abc-def0-1234-56789abcdef0",
			"00010203-0405-0607-0809-0a0b0c0d0e0f", // counting bytes
			"01020304-0506-0708-090a-0b0c0d0e0f10",
			"00112233-4455-6677-8899-aabbccddeeff",
			"11111111-2222-3333-4444-555555555555",
			"4c4c4544-0000-2010-8020-80c04f202020", // Dell with a blank service tag
			"a1b2c3d4-e5f6-7890-abcd-ef1234567890":
			return true
		}
	}
	return false
}
