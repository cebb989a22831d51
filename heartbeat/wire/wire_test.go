package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
)

var update = flag.Bool("update", false, "rewrite the golden packets")

func testKey(id uint32) Key {
	k := Key{ID: id}
	for i := range k.Secret {
		k.Secret[i] = byte(i) ^ byte(id)
	}
	return k
}

// counting is a nonce source for golden bytes.
type counting struct{ n byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		c.n++
		p[i] = c.n
	}
	return len(p), nil
}

func goldenCodec(t testing.TB) *Codec {
	t.Helper()
	c, err := newCodec(&counting{}, "3f1c0d6e-prod", []Key{testKey(7)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	testLabel = Label{To: "node2", From: "eth0", At: "ens3"}
	testBeat  = heartbeat.Beat{
		From: "node1", Boot: "6f6f3a6e-3f0c-4f5d-9b5a-0c6d1f1b2a3c", Start: 3, Gen: 4711,
		Seq: 1234567890123456789, Session: 0x1122334455667788, Echo: 0x99aabbccddeeff00,
		Applied: 4211, LastIndex: 4213, Leaving: true,
		Refused: []ids.Node{"node3"}, Silent: []ids.Node{"node3", "node4"},
		Links: []heartbeat.LinkView{
			{Peer: "node2", Interface: "eth0", State: heartbeat.LinkUp, Age: 12 * time.Millisecond},
			{Peer: "node2", Interface: "eth1", State: heartbeat.LinkDead, Age: -1},
			{Peer: "node3", Interface: "eth0", State: heartbeat.LinkLate, Age: 0},
		},
	}
	smallBeat = heartbeat.Beat{From: "n", Boot: "b"}
)

func TestGolden(t *testing.T) {
	c := goldenCodec(t)
	for _, tc := range []struct {
		name  string
		label Label
		beat  heartbeat.Beat
	}{
		{"full", testLabel, testBeat},
		{"small", Label{To: "m", From: "a", At: "b"}, smallBeat},
	} {
		body, err := encode(tc.label, tc.beat)
		if err != nil {
			t.Fatal(err)
		}
		packet, left, err := c.Seal(tc.label, tc.beat)
		if err != nil || left != 0 {
			t.Fatal(left, err)
		}
		got := "body " + hex.EncodeToString(body) + "\npacket " + hex.EncodeToString(packet) + "\n"
		file := filepath.Join("testdata", tc.name+".hex")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s: the format changed: raise Version (-want +got)\n%s", tc.name, d)
		}
		label, beat, err := c.Open(packet)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tc.label, label) + cmp.Diff(tc.beat, beat); d != "" {
			t.Errorf("%s: round trip (-want +got)\n%s", tc.name, d)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	c := goldenCodec(t)
	good, _, err := c.Seal(testLabel, testBeat)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCodec("another", testKey(7))
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, _ := other.Seal(testLabel, testBeat)
	wrong := testKey(7)
	wrong.Secret[0]++
	forger, _ := NewCodec("3f1c0d6e-prod", wrong)
	forged, _, _ := forger.Seal(testLabel, testBeat)
	unknownKey, _ := NewCodec("3f1c0d6e-prod", testKey(8))
	unkeyed, _, _ := unknownKey.Seal(testLabel, testBeat)
	sealed := func(body []byte) []byte {
		p := bytes.Clone(good[:prefixLen])
		return c.seal.aead.Seal(p, p[headerLen:prefixLen], body, p[:prefixLen])
	}
	body, _ := encode(testLabel, testBeat)
	flip := func(i int) []byte {
		p := bytes.Clone(good)
		p[i] ^= 1
		return p
	}
	for _, tc := range []struct {
		name   string
		packet []byte
		want   Cause
	}{
		{"nothing", nil, Short},
		{"header only", good[:prefixLen], Short},
		{"one byte below the least", good[:overhead-1], Short},
		{"too long", make([]byte, MaxPacket+1), Oversized},
		{"other magic", flip(0), Magic},
		{"other version", flip(4), BadVersion},
		{"other cluster", foreign, Cluster},
		{"cluster tag changed", flip(5), Cluster},
		{"unknown key", unkeyed, Forged},
		{"wrong key", forged, Forged},
		{"key id changed", flip(headerLen - 1), Forged},
		{"nonce changed", flip(headerLen), Forged},
		{"body changed", flip(prefixLen), Forged},
		{"tag changed", flip(len(good) - 1), Forged},
		{"cut by one", good[:len(good)-1], Forged},
		{"longer by one", append(bytes.Clone(good), 0), Forged},
		{"sealed: empty body", sealed(nil), Malformed},
		{"sealed: trailing byte", sealed(append(bytes.Clone(body), 0)), Malformed},
		{"sealed: cut body", sealed(body[:len(body)-1]), Malformed},
	} {
		_, _, err := c.Open(tc.packet)
		if cause, ok := CauseOf(err); !ok || cause != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
	// Every single bit of a packet is under the seal or in the checked header.
	for i := range len(good) * 8 {
		p := bytes.Clone(good)
		p[i/8] ^= 1 << (i % 8)
		if _, _, err := c.Open(p); err == nil {
			t.Fatalf("bit %d changed and still accepted", i)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	edit := func(f func(l *Label, b *heartbeat.Beat)) []byte {
		l, b := testLabel, testBeat
		b.Refused, b.Links = append([]ids.Node{}, b.Refused...), append([]heartbeat.LinkView{}, b.Links...)
		b.Silent = append([]ids.Node{}, b.Silent...)
		f(&l, &b)
		return rawEncode(l, b)
	}
	many := func(n int) (out []ids.Node) {
		for i := range n {
			out = append(out, ids.Node(fmt.Sprintf("n%02d", i)))
		}
		return out
	}
	for name, body := range map[string][]byte{
		"upper case sender":   edit(func(_ *Label, b *heartbeat.Beat) { b.From = "Node1" }),
		"empty sender":        edit(func(_ *Label, b *heartbeat.Beat) { b.From = "" }),
		"long sender":         edit(func(_ *Label, b *heartbeat.Beat) { b.From = ids.Node(strings.Repeat("a", 64)) }),
		"empty boot":          edit(func(_ *Label, b *heartbeat.Beat) { b.Boot = "" }),
		"boot with slash":     edit(func(_ *Label, b *heartbeat.Beat) { b.Boot = "a/b" }),
		"destination empty":   edit(func(l *Label, _ *heartbeat.Beat) { l.To = "" }),
		"long interface":      edit(func(l *Label, _ *heartbeat.Beat) { l.From = "abcdefghijklmnop" }),
		"interface dots":      edit(func(l *Label, _ *heartbeat.Beat) { l.At = ".." }),
		"interface space":     edit(func(l *Label, _ *heartbeat.Beat) { l.At = "a b" }),
		"silent unsorted":     edit(func(_ *Label, b *heartbeat.Beat) { b.Silent = []ids.Node{"b", "a"} }),
		"silent twice":        edit(func(_ *Label, b *heartbeat.Beat) { b.Silent = []ids.Node{"a", "a"} }),
		"too many refused":    edit(func(_ *Label, b *heartbeat.Beat) { b.Refused = many(17) }),
		"unknown flag":        bytes.Replace(edit(func(*Label, *heartbeat.Beat) {}), []byte{1, 1, 5, 'n', 'o', 'd', 'e', '3'}, []byte{2, 1, 5, 'n', 'o', 'd', 'e', '3'}, 1),
		"unknown state":       bytes.Replace(edit(func(*Label, *heartbeat.Beat) {}), []byte{'e', 't', 'h', '1', 2}, []byte{'e', 't', 'h', '1', 3}, 1),
		"long varint":         bytes.Replace(edit(func(*Label, *heartbeat.Beat) {}), []byte{'3', 'c', 3}, []byte{'3', 'c', 0x83, 0}, 1),
		"varint of 11 bytes":  bytes.Replace(edit(func(*Label, *heartbeat.Beat) {}), []byte{'3', 'c', 3}, append([]byte{'3', 'c'}, bytes.Repeat([]byte{0xff}, 11)...), 1),
		"65 links":            edit(func(_ *Label, b *heartbeat.Beat) { b.Links = make([]heartbeat.LinkView, 65) }),
		"age beyond duration": append(rawEncode(testLabel, smallBeat)[:len(rawEncode(testLabel, smallBeat))-1], 1, 1, 'a', 1, 'b', 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1),
	} {
		if _, _, err := decode(body); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := decode(rawEncode(testLabel, testBeat)); err != nil {
		t.Error("the unedited body is refused:", err)
	}
}

// rawEncode writes a body without checking it.
func rawEncode(l Label, b heartbeat.Beat) []byte {
	var w bytes.Buffer
	str := func(s string) { w.WriteByte(byte(len(s))); w.WriteString(s) }
	for _, s := range []string{string(l.To), l.From, l.At, string(b.From), string(b.Boot)} {
		str(s)
	}
	// The numbers in the middle come from the checked encoder.
	mid, err := encode(Label{To: "a", From: "b", At: "c"}, heartbeat.Beat{From: "d", Boot: "e", Start: b.Start,
		Gen: b.Gen, Seq: b.Seq, Session: b.Session, Echo: b.Echo, Applied: b.Applied, LastIndex: b.LastIndex, Leaving: b.Leaving})
	if err != nil {
		panic(err)
	}
	w.Write(mid[10 : len(mid)-3])
	for _, names := range [][]ids.Node{b.Refused, b.Silent} {
		w.WriteByte(byte(len(names)))
		for _, n := range names {
			str(string(n))
		}
	}
	w.WriteByte(byte(len(b.Links)))
	for _, v := range b.Links {
		str(string(v.Peer))
		str(v.Interface)
		state := byte(0)
		for i, s := range linkStates {
			if s == v.State {
				state = byte(i)
			}
		}
		w.WriteByte(state)
		if v.Age < 0 {
			w.WriteByte(0)
			continue
		}
		w.WriteByte(byte(v.Age/time.Millisecond) + 1)
	}
	return w.Bytes()
}

func TestSealFits(t *testing.T) {
	c := goldenCodec(t)
	long := func(i int) ids.Node { return ids.Node(fmt.Sprintf("n%02d%s", i, strings.Repeat("x", 60))) }
	b := testBeat
	b.From, b.Boot = long(99), ids.Boot(strings.Repeat("f", 64))
	b.Refused, b.Silent, b.Links = nil, nil, nil
	for i := range 20 {
		b.Refused = append(b.Refused, long(i))
		b.Silent = append(b.Silent, long(i))
	}
	for i := range 70 {
		b.Links = append(b.Links, heartbeat.LinkView{Peer: long(i), Interface: "eth0", State: heartbeat.LinkUp})
	}
	p, left, err := c.Seal(testLabel, b)
	if err != nil || len(p) > MaxPacket {
		t.Fatal(len(p), err)
	}
	_, got, err := c.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Silent) < 15 || len(got.Links) != 0 {
		t.Errorf("kept %d silent and %d links: the loss report goes last", len(got.Silent), len(got.Links))
	}
	if kept := len(got.Silent) + len(got.Refused) + len(got.Links); left != 110-kept {
		t.Errorf("left %d, want %d", left, 110-kept)
	}
	// An ordinary full house goes through whole: 16 nodes, 4 links each.
	b = testBeat
	b.Links = nil
	for i := range 64 {
		b.Links = append(b.Links, heartbeat.LinkView{Peer: ids.Node(fmt.Sprintf("node%d", i/4)),
			Interface: fmt.Sprintf("eth%d", i%4), State: heartbeat.LinkUp, Age: 90 * time.Millisecond})
	}
	if p, left, err := c.Seal(testLabel, b); err != nil || left != 0 {
		t.Errorf("64 links: %d bytes, %d left out, %v", len(p), left, err)
	}
	for name, bad := range map[string]heartbeat.Beat{
		"no boot":    {From: "a"},
		"bad sender": {From: "A", Boot: "b"},
		"bad state":  {From: "a", Boot: "b", Links: []heartbeat.LinkView{{Peer: "c", Interface: "d", State: "?"}}},
	} {
		if _, _, err := c.Seal(testLabel, bad); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

func TestKeys(t *testing.T) {
	oldOnly, _ := NewCodec("c", testKey(1))
	both, _ := NewCodec("c", testKey(2), testKey(1))
	newOnly, _ := NewCodec("c", testKey(2))
	p, _, _ := oldOnly.Seal(testLabel, testBeat)
	if _, _, err := both.Open(p); err != nil {
		t.Error("a former key must open:", err)
	}
	if _, _, err := newOnly.Open(p); err == nil {
		t.Error("a dropped key opened")
	}
	p, _, _ = both.Seal(testLabel, testBeat)
	if _, _, err := newOnly.Open(p); err != nil {
		t.Error("the first key seals:", err)
	}
	for name, f := range map[string]func() (*Codec, error){
		"no cluster": func() (*Codec, error) { return NewCodec("", testKey(1)) },
		"no key":     func() (*Codec, error) { return NewCodec("c") },
		"twice":      func() (*Codec, error) { return NewCodec("c", testKey(1), testKey(1)) },
		"zero key":   func() (*Codec, error) { return NewCodec("c", Key{ID: 1}) },
		"five": func() (*Codec, error) {
			return NewCodec("c", testKey(1), testKey(2), testKey(3), testKey(4), testKey(5))
		},
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	k := testKey(3)
	j, _ := json.Marshal(k)
	shown := fmt.Sprintf("%v %+v %#v %s %d %x %q ", k, k, k, k, k, k, k) + string(j)
	if strings.Contains(shown, "1,") || strings.Contains(shown, "0x") || strings.Count(shown, "key 3") != 8 {
		t.Errorf("a key shows its secret: %s", shown)
	}
}

func TestRandomNonces(t *testing.T) {
	c, _ := NewCodec("c", testKey(1))
	a, _, _ := c.Seal(testLabel, testBeat)
	b, _, _ := c.Seal(testLabel, testBeat)
	if bytes.Equal(a[headerLen:prefixLen], b[headerLen:prefixLen]) {
		t.Error("a nonce was used twice")
	}
}

func TestCounters(t *testing.T) {
	var c Counters
	if len(Causes()) != len(c.dropped) {
		t.Fatal("a cause has no counter")
	}
	for i, cause := range Causes() {
		for range i + 1 {
			c.Drop(cause)
		}
		if cause.Text() == "unknown cause" {
			t.Errorf("%s has no text", cause)
		}
	}
	c.Accept()
	for i, n := range c.Dropped() {
		if n.Packets != uint64(i+1) || c.Of(n.Cause) != n.Packets {
			t.Errorf("%s: %d, want %d", n.Cause, n.Packets, i+1)
		}
	}
	if c.Accepted() != 1 || c.Drop("nonsense") != 0 {
		t.Error("counters mix up")
	}
}

func genName(t *rapid.T, what string) string {
	return rapid.StringMatching(`[a-z]([a-z0-9-]{0,8}[a-z0-9])?`).Draw(t, what)
}

func genNames(t *rapid.T, what string) []ids.Node {
	var out []ids.Node
	for range rapid.IntRange(0, 5).Draw(t, what) {
		out = append(out, ids.Node(genName(t, what)))
	}
	return sortedUnique(out)
}

func sortedUnique(in []ids.Node) []ids.Node {
	seen := map[ids.Node]bool{}
	var out []ids.Node
	for _, n := range in {
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	for i := range out {
		for j := i; j > 0 && out[j-1] > out[j]; j-- {
			out[j-1], out[j] = out[j], out[j-1]
		}
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	c, _ := NewCodec("c", testKey(1))
	rapid.Check(t, func(t *rapid.T) {
		l := Label{To: ids.Node(genName(t, "to")), From: genName(t, "nic"), At: genName(t, "at")}
		b := heartbeat.Beat{
			From: ids.Node(genName(t, "from")), Boot: ids.Boot(genName(t, "boot")),
			Start: rapid.Uint64().Draw(t, "start"), Gen: rapid.Uint64().Draw(t, "gen"),
			Seq: rapid.Uint64().Draw(t, "seq"), Session: rapid.Uint64().Draw(t, "session"),
			Echo: rapid.Uint64().Draw(t, "echo"), Applied: rapid.Uint64().Draw(t, "applied"),
			LastIndex: rapid.Uint64().Draw(t, "last"), Leaving: rapid.Bool().Draw(t, "leaving"),
			Refused: genNames(t, "refused"), Silent: genNames(t, "silent"),
		}
		for range rapid.IntRange(0, 9).Draw(t, "links") {
			b.Links = append(b.Links, heartbeat.LinkView{Peer: ids.Node(genName(t, "peer")), Interface: genName(t, "if"),
				State: rapid.SampledFrom(linkStates[:]).Draw(t, "state"),
				Age:   max(-1, time.Duration(rapid.Int64Range(-1, 1<<40).Draw(t, "age"))*time.Millisecond)})
		}
		p, left, err := c.Seal(l, b)
		if err != nil || left != 0 {
			t.Fatal(left, err)
		}
		gl, gb, err := c.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(l, gl) + cmp.Diff(b, gb); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzOpen(f *testing.F) {
	c := goldenCodec(f)
	for _, b := range []heartbeat.Beat{testBeat, smallBeat} {
		p, _, _ := c.Seal(testLabel, b)
		f.Add(p)
		f.Add(p[:len(p)-1])
	}
	f.Add([]byte("PKHB"))
	f.Add(make([]byte, MaxPacket+1))
	f.Fuzz(func(t *testing.T, p []byte) {
		_, _, err := c.Open(p)
		if _, ok := CauseOf(err); err != nil && !ok {
			t.Fatalf("an error without a cause: %v", err)
		}
	})
}

func FuzzBody(f *testing.F) {
	for _, b := range []heartbeat.Beat{testBeat, smallBeat} {
		body, _ := encode(testLabel, b)
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		l, b, err := decode(body)
		if err != nil {
			return
		}
		again, err := encode(l, b)
		if err != nil {
			t.Fatalf("decoded but does not encode: %v", err)
		}
		if !bytes.Equal(body, again) {
			t.Fatalf("two encodings of one beat:\n%x\n%x", body, again)
		}
	})
}
