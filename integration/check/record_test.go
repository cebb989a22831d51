package check

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRecorderAndLoad(t *testing.T) {
	dir := t.TempDir()
	r, err := NewRecorder(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []Record{
		{T: 5, Stream: StreamPower, Kind: KindBoot, Node: "node1", Boot: "a"},
		{T: 7, Stream: StreamARP, Kind: KindProbe, VIP: vip, MACs: []string{"m1"}, From: 6},
		{T: 9, Stream: StreamPower, Kind: KindOff, Node: "node1", Boot: "a", Source: "bmc"},
	}
	for _, i := range []int{0, 2, 1} {
		r.Add(want[i])
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, h.Records); d != "" {
		t.Error(d)
	}
	// A harness that was killed leaves half a line; anything else that is no record is an error.
	path := filepath.Join(dir, "power.jsonl")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for text, bad := range map[string]bool{string(b) + `{"t":10,"str`: false, "rubbish\n" + string(b): true, `{"t":1,"stream":"arp"}` + "\n": true} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); (err != nil) != bad {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func TestRecorderKeepsItsFirstError(t *testing.T) {
	r, err := NewRecorder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r.Add(Record{Stream: "gossip"})
	if err := r.Close(); err == nil || !strings.Contains(err.Error(), "gossip") {
		t.Errorf("Close: %v", err)
	}
	if _, err := NewRecorder("/dev/null/x"); err == nil {
		t.Error("a record directory below a device")
	}
}

func TestOracle(t *testing.T) {
	dir := t.TempDir()
	rec, err := NewRecorder(filepath.Join(dir, "records"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOracle(dir, rec, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", filepath.Join(dir, OracleSocket))
	if err != nil {
		t.Fatal(err)
	}
	before := Now()
	// An agent may not forge the power record.
	_, err = io.WriteString(c, `{"t":1,"stream":"writer","kind":"write","node":"node1"}`+"\n"+`{"stream":"power","kind":"off"}`+"\n"+`{"stream":"lock","kind":"busy"}`+"\n")
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	var h History
	for len(h.Records) < 2 && time.Now().Before(deadline) {
		if err := rec.Flush(); err != nil {
			t.Fatal(err)
		}
		if h, err = Load(filepath.Join(dir, "records")); err != nil {
			t.Fatal(err)
		}
	}
	if len(h.Records) != 2 || h.Records[0].T < before || h.Records[1].Stream != StreamLock {
		t.Errorf("heard %+v", h.Records)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	c.Close()
	if err := rec.Close(); err != nil {
		t.Error(err)
	}
}

// TestARPAnswer: only a reply to this prober's own question counts.
func TestARPAnswer(t *testing.T) {
	own := net.HardwareAddr{2, 0, 0, 0, 0x60, 0xfb}
	p := &ARPProber{mac: own, ip: netip.MustParseAddr("192.168.60.251"), vip: netip.MustParseAddr(vip)}
	owner := net.HardwareAddr{2, 0, 0, 0, 0x60, 0x11}
	good := p.request()
	binary.BigEndian.PutUint16(good[20:], 2)
	copy(good[22:], owner)
	copy(good[28:], p.vip.AsSlice())
	copy(good[32:], own)
	copy(good[38:], p.ip.AsSlice())
	if got := p.answer(good); got != owner.String() {
		t.Fatalf("a good answer: %q", got)
	}
	change := func(f func(b []byte)) []byte {
		b := append([]byte(nil), good...)
		f(b)
		return b
	}
	for name, b := range map[string][]byte{
		"short":                   good[:41],
		"empty":                   nil,
		"a request":               change(func(b []byte) { b[21] = 1 }),
		"not ARP":                 change(func(b []byte) { b[12] = 0x86 }),
		"gratuitous":              change(func(b []byte) { copy(b[38:], p.vip.AsSlice()) }),
		"of another address":      change(func(b []byte) { b[31]++ }),
		"to another host":         change(func(b []byte) { b[37]++ }),
		"to another host address": change(func(b []byte) { b[41]++ }),
	} {
		if got := p.answer(b); got != "" {
			t.Errorf("%s: taken as an answer of %s", name, got)
		}
	}
}
