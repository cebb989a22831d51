package fencing

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const (
	network  = "8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a6b"
	smbios   = "1e5c3a8f-2b0d-6f4e-9a7c-1b2d3e4f5a6b"
	backward = "6b5a4f3e-2d1b-7c9a-6f4e-2b0d1e5c3a8f"
)

func TestMatchUUID(t *testing.T) {
	for _, c := range []struct {
		guid, uuid string
		want       bool
	}{
		{network, network, true},
		{smbios, network, true},
		{network, smbios, true},
		{backward, network, true},
		{network, backward, true},
		{strings.ToUpper(network), network, true},
		{strings.ReplaceAll(smbios, "-", ""), " " + strings.ToUpper(network) + "\n", true},
		{"8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a6c", network, false},
		{"8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a6", network, false},
		{network + "00", network, false},
		{"", "", false},
		{"", network, false},
		{network, "", false},
		{"not a uuid", "not a uuid", false},
		{"00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000", false},
		{"ffffffff-ffff-ffff-ffff-ffffffffffff", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", false},
		{"fefefefe-fefe-fefe-fefe-fefefefefefe", "fefefefe-fefe-fefe-fefe-fefefefefefe", false},
		{"03000200-0400-0500-0006-000700080009", "03000200-0400-0500-0006-000700080009", false},
		{"00020003-0004-0005-0006-000700080009", "03000200-0400-0500-0006-000700080009", false},
		{"09000800-0700-0600-0005-000400020003", "03000200-0400-0500-0006-000700080009", false},
		{"4c4c4544-0000-2010-8020-80c04f202020", "4c4c4544-0000-2010-8020-80c04f202020", false},
		// Supermicro builds the UUID from the MAC address: mostly zeros, and still one machine's own.
		{"00000000-0000-0000-0000-0cc47a123456", "00000000-0000-0000-0000-0cc47a123456", true},
	} {
		if got := MatchUUID(c.guid, c.uuid); got != c.want {
			t.Errorf("MatchUUID(%q, %q) = %v", c.guid, c.uuid, got)
		}
	}
}

func TestCanonicalUUID(t *testing.T) {
	for _, in := range []string{network, strings.ToUpper(network), strings.ReplaceAll(network, "-", ""), "\t" + network + "\n"} {
		if got, err := CanonicalUUID(in); err != nil || got != network {
			t.Errorf("CanonicalUUID(%q) = %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", network[1:], network + "0", strings.Replace(network, "8", "g", 1), strings.Repeat("0", 1000), "{" + network + "}"} {
		if got, err := CanonicalUUID(in); err == nil || got != "" || len(err.Error()) > 200 {
			t.Errorf("CanonicalUUID(%q) = %q, %v", in, got, err)
		}
	}
}

func FuzzMatchUUID(f *testing.F) {
	f.Add(network, smbios)
	f.Add(network, backward)
	f.Add("", "\xff")
	f.Fuzz(func(t *testing.T, a, b string) {
		got := MatchUUID(a, b)
		if got != MatchUUID(b, a) {
			t.Fatalf("not symmetric: %q %q", a, b)
		}
		if got && (FillerUUID(a) || FillerUUID(b)) {
			t.Fatalf("a filler matched: %q %q", a, b)
		}
		c, err := CanonicalUUID(a)
		if err != nil {
			if got || !FillerUUID(a) {
				t.Fatalf("%q is no uuid", a)
			}
			return
		}
		if again, err := CanonicalUUID(c); err != nil || again != c || len(c) != 36 {
			t.Fatalf("canonical form of %q is not stable: %q", a, c)
		}
		raw, _ := parseUUID(a)
		for _, order := range [][16]byte{raw, mixed(raw), reversed(raw)} {
			if MatchUUID(FormatUUID(order), a) == FillerUUID(a) {
				t.Fatalf("%q in another order", a)
			}
		}
		if mixed(mixed(raw)) != raw || reversed(reversed(raw)) != raw {
			t.Fatal("the orders do not undo themselves")
		}
	})
}

func good() Report {
	return Report{Op: OpOff, Outcome: OutcomeOff, Detail: "reads off", GUID: smbios, Identity: IdentityMatched,
		OffReadings: 2, Sent: 1, Took: 30 * time.Millisecond, Login: 10 * time.Millisecond, Power: 20 * time.Millisecond}
}

func TestReportCheck(t *testing.T) {
	for name, f := range map[string]func(*Report){
		"as it is":     func(*Report) {},
		"already off":  func(r *Report) { r.Sent, r.AlreadyOff = 0, true },
		"on":           func(r *Report) { r.Op, r.Outcome, r.OffReadings = OpOn, OutcomeOn, 0 },
		"failed":       func(r *Report) { r.Outcome, r.OffReadings, r.Sent = OutcomeFailed, 0, 3 },
		"refused":      func(r *Report) { r.Outcome, r.Identity, r.Sent = OutcomeRefused, IdentityMismatch, 0 },
		"unproven off": func(r *Report) { r.Identity, r.GUID = IdentityUnproven, "" },
	} {
		r := good()
		f(&r)
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func(*Report){
		"operation":        func(r *Report) { r.Op = "cycle" },
		"outcome":          func(r *Report) { r.Outcome = "maybe" },
		"identity":         func(r *Report) { r.Identity = "" },
		"long detail":      func(r *Report) { r.Detail = strings.Repeat("x", MaxDetail+1) },
		"detail encoding":  func(r *Report) { r.Detail = "\xff" },
		"many commands":    func(r *Report) { r.Sent = MaxSent + 1 },
		"negative":         func(r *Report) { r.Sent = -1 },
		"time":             func(r *Report) { r.Took = -1 },
		"readings":         func(r *Report) { r.OffReadings = -1 },
		"guid form":        func(r *Report) { r.GUID = strings.ToUpper(r.GUID) },
		"off once":         func(r *Report) { r.OffReadings = 1 },
		"off of nothing":   func(r *Report) { r.Sent = 0 },
		"off by on":        func(r *Report) { r.Op = OpOn },
		"on by off":        func(r *Report) { r.Outcome = OutcomeOn },
		"another machine":  func(r *Report) { r.Identity = IdentityMismatch },
		"match of nothing": func(r *Report) { r.GUID = "" },
	} {
		r := good()
		f(&r)
		if err := r.Check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The JSON form is in logs on disk: it may grow and never change.
func TestReportJSON(t *testing.T) {
	raw, err := json.Marshal(good())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"op":"off","outcome":"off","detail":"reads off","guid":"` + smbios + `","identity":"matched",` +
		`"off_readings":2,"sent":1,"took_ns":30000000,"login_ns":10000000,"power_ns":20000000}`
	if string(raw) != want {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
	var back Report
	if err := json.Unmarshal(raw, &back); err != nil || back != good() {
		t.Errorf("%+v, %v", back, err)
	}
}

func FuzzClipDetail(f *testing.F) {
	f.Add("a\nb\xff" + strings.Repeat("ä", 150))
	f.Fuzz(func(t *testing.T, s string) {
		got := ClipDetail(s)
		if len(got) > MaxDetail || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\r\x00\x7f") {
			t.Fatalf("%q", got)
		}
		if ClipDetail(got) != got {
			t.Fatalf("not stable: %q", got)
		}
	})
}
