package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
)

// Body, version 1, in this order. str is a length byte and that many bytes; var is an unsigned
// LEB128 varint of at most 64 bits in its shortest form (encoding/binary); fix is 8 bytes big
// endian.
//
//	label   str to, str sending NIC, str receiving NIC
//	sender  str from, str boot, var start, var gen, fix seq, fix session, fix echo
//	log     var applied, var last index
//	flags   1 byte: bit 0 leaving, the others zero
//	refused count byte, str each; strictly rising
//	silent  count byte, str each; strictly rising
//	links   count byte; each str peer, str interface, 1 byte state, var age in ms + 1 (0: never)
//
// Nothing may follow. There is one encoding of every beat, so decode(encode(b)) and
// encode(decode(p)) are both identities (ages in whole milliseconds).

const (
	flagLeaving = 1
	// maxInterface is IFNAMSIZ-1 (linux/if.h).
	maxInterface = 15
	// maxAge bounds ages to what a time.Duration can hold.
	maxAge = uint64(math.MaxInt64 / int64(time.Millisecond))
)

var linkStates = [...]heartbeat.LinkState{heartbeat.LinkUp, heartbeat.LinkLate, heartbeat.LinkDead}

// encodeFitting encodes a beat, leaving out what does not fit, least needed first.
func encodeFitting(l Label, b heartbeat.Beat) ([]byte, int, error) {
	left := 0
	cut := func(n, most int) int {
		if n <= most {
			return n
		}
		left += n - most
		return most
	}
	b.Links = b.Links[:cut(len(b.Links), heartbeat.MaxLinks)]
	b.Refused = b.Refused[:cut(len(b.Refused), heartbeat.MaxReport)]
	b.Silent = b.Silent[:cut(len(b.Silent), heartbeat.MaxReport)]
	for {
		body, err := encode(l, b)
		if err != nil {
			return nil, 0, err
		}
		switch {
		case len(body) <= maxBody:
			return body, left, nil
		case len(b.Links) > 0:
			b.Links = b.Links[:len(b.Links)-1]
		case len(b.Refused) > 0:
			b.Refused = b.Refused[:len(b.Refused)-1]
		case len(b.Silent) > 0:
			b.Silent = b.Silent[:len(b.Silent)-1]
		default:
			return nil, 0, fmt.Errorf("heartbeat: a beat of %d bytes does not fit %d", len(body), maxBody)
		}
		left++
	}
}

func encode(l Label, b heartbeat.Beat) ([]byte, error) {
	if err := check(l, b); err != nil {
		return nil, fmt.Errorf("heartbeat: cannot encode a beat: %w", err)
	}
	p := make([]byte, 0, 512)
	p = putString(p, string(l.To), l.From, l.At, string(b.From), string(b.Boot))
	p = binary.AppendUvarint(p, b.Start)
	p = binary.AppendUvarint(p, b.Gen)
	p = binary.BigEndian.AppendUint64(p, b.Seq)
	p = binary.BigEndian.AppendUint64(p, b.Session)
	p = binary.BigEndian.AppendUint64(p, b.Echo)
	p = binary.AppendUvarint(p, b.Applied)
	p = binary.AppendUvarint(p, b.LastIndex)
	var flags byte
	if b.Leaving {
		flags |= flagLeaving
	}
	p = append(p, flags)
	for _, names := range [][]ids.Node{b.Refused, b.Silent} {
		p = append(p, byte(len(names)))
		for _, n := range names {
			p = putString(p, string(n))
		}
	}
	p = append(p, byte(len(b.Links)))
	for _, v := range b.Links {
		p = putString(p, string(v.Peer), v.Interface)
		p = append(p, byte(slices.Index(linkStates[:], v.State)))
		age := uint64(0)
		if v.Age >= 0 {
			age = min(uint64(v.Age/time.Millisecond)+1, maxAge)
		}
		p = binary.AppendUvarint(p, age)
	}
	return p, nil
}

// check holds the rules that both directions share.
func check(l Label, b heartbeat.Beat) error {
	err := errors.Join(
		ids.CheckName("destination", string(l.To)),
		CheckInterface(l.From), CheckInterface(l.At),
		ids.CheckName("sender", string(b.From)),
		ids.CheckBoot(b.Boot),
		checkReport("refused", b.Refused),
		checkReport("silent", b.Silent),
	)
	if len(b.Links) > heartbeat.MaxLinks {
		err = errors.Join(err, fmt.Errorf("%d links: at most %d fit", len(b.Links), heartbeat.MaxLinks))
	}
	for _, v := range b.Links {
		if !slices.Contains(linkStates[:], v.State) {
			err = errors.Join(err, fmt.Errorf("unknown link state %q", v.State))
		}
		err = errors.Join(err, ids.CheckName("peer", string(v.Peer)), CheckInterface(v.Interface))
	}
	return err
}

func checkReport(what string, names []ids.Node) error {
	if len(names) > heartbeat.MaxReport {
		return fmt.Errorf("%d %s peers: at most %d fit", len(names), what, heartbeat.MaxReport)
	}
	for i, n := range names {
		if err := ids.CheckName(what+" peer", string(n)); err != nil {
			return err
		}
		if i > 0 && names[i-1] >= n {
			return fmt.Errorf("%s peers are not sorted or not unique at %q", what, n)
		}
	}
	return nil
}

// CheckInterface returns an error that says what is wrong with the name of a network interface,
// or nil: 1 to 15 printable ASCII bytes without '/' and ':' (dev_valid_name in the kernel's
// net/core/dev.c, narrowed to ASCII), and not "." or "..".
func CheckInterface(name string) error {
	if name == "" || len(name) > maxInterface || name == "." || name == ".." {
		return fmt.Errorf("interface name %q: 1 to %d characters are allowed", name[:min(len(name), 40)], maxInterface)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '/' || c == ':' {
			return fmt.Errorf("interface name %q holds %q", name, c)
		}
	}
	return nil
}

func putString(p []byte, all ...string) []byte {
	for _, s := range all {
		p = append(p, byte(len(s)))
		p = append(p, s...)
	}
	return p
}

var errMalformed = errors.New("malformed heartbeat body")

// reader takes a body apart. After the first failure it returns zero values only.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.rest) {
		r.bad = true
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) string() string { return string(r.take(int(r.byte()))) }

func (r *reader) fixed() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) varint() uint64 {
	if r.bad {
		return 0
	}
	v, n := binary.Uvarint(r.rest)
	// A last byte of zero is a longer spelling of a shorter varint.
	if n <= 0 || (n > 1 && r.rest[n-1] == 0) {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) count(most int) int {
	n := int(r.byte())
	if n > most {
		r.bad = true
	}
	if r.bad {
		return 0
	}
	return n
}

func (r *reader) names() []ids.Node {
	n := r.count(heartbeat.MaxReport)
	if n == 0 {
		return nil
	}
	out := make([]ids.Node, 0, n)
	for range n {
		out = append(out, ids.Node(r.string()))
	}
	return out
}

func decode(body []byte) (Label, heartbeat.Beat, error) {
	r := &reader{rest: body}
	l := Label{To: ids.Node(r.string()), From: r.string(), At: r.string()}
	b := heartbeat.Beat{From: ids.Node(r.string()), Boot: ids.Boot(r.string())}
	b.Start, b.Gen = r.varint(), r.varint()
	b.Seq, b.Session, b.Echo = r.fixed(), r.fixed(), r.fixed()
	b.Applied, b.LastIndex = r.varint(), r.varint()
	flags := r.byte()
	b.Leaving = flags&flagLeaving != 0
	b.Refused, b.Silent = r.names(), r.names()
	b.Links = r.links()
	if r.bad || len(r.rest) != 0 || flags&^flagLeaving != 0 {
		return Label{}, heartbeat.Beat{}, errMalformed
	}
	if err := check(l, b); err != nil {
		return Label{}, heartbeat.Beat{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return l, b, nil
}

func (r *reader) links() []heartbeat.LinkView {
	n := r.count(heartbeat.MaxLinks)
	if n == 0 {
		return nil
	}
	out := make([]heartbeat.LinkView, 0, n)
	for range n {
		v := heartbeat.LinkView{Peer: ids.Node(r.string()), Interface: r.string(), Age: -1}
		state, age := int(r.byte()), r.varint()
		if state >= len(linkStates) || age > maxAge {
			r.bad = true
			return nil
		}
		v.State = linkStates[state]
		if age > 0 {
			v.Age = time.Duration(age-1) * time.Millisecond
		}
		out = append(out, v)
	}
	return out
}
