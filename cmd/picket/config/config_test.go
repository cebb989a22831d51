package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/picket-ha/picket/consensus/state"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with FILE.golden.
func golden(t *testing.T, file, got string) {
	t.Helper()
	path := file + ".golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func files(t testing.TB, pattern string) []string {
	t.Helper()
	fs, err := filepath.Glob(pattern)
	if err != nil || len(fs) == 0 {
		t.Fatalf("no files match %s: %v", pattern, err)
	}
	return fs
}

// TestClusterFiles reads every file of testdata/cluster: good ones must give their golden config and
// warnings, bad ones their golden errors, and none may show a password.
func TestClusterFiles(t *testing.T) {
	for _, f := range files(t, "testdata/cluster/*.yaml") {
		t.Run(filepath.Base(f), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			c, err := ParseCluster(filepath.Base(f), data)
			var got string
			if strings.HasPrefix(filepath.Base(f), "bad_") {
				var list *Errors
				if !errors.As(err, &list) {
					t.Fatalf("want *Errors, got %v", err)
				}
				got = err.Error() + "\n"
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if c.Config.Source != string(data) {
					t.Error("source was not kept as it is")
				}
				c.Config.Source = ""
				js, _ := json.MarshalIndent(c.Config, "", "  ")
				got = string(js) + "\nwarnings:\n" + strings.Join(c.Warnings, "\n") + "\n" + fmt.Sprintf("secrets: %v %+v %#v\n", c.Secrets, c.Secrets, c.Secrets)
			}
			if strings.Contains(got, "canary") {
				t.Errorf("a password is shown:\n%s", got)
			}
			golden(t, f, got)
		})
	}
}

func TestNodeFiles(t *testing.T) {
	for _, f := range files(t, "testdata/node/*.yaml") {
		t.Run(filepath.Base(f), func(t *testing.T) {
			n, err := ReadNode(f)
			got := fmt.Sprintf("%+v\n", n)
			if err != nil {
				got = err.Error() + "\n"
			}
			if (err != nil) != strings.HasPrefix(filepath.Base(f), "bad_") {
				t.Errorf("error %v does not fit the file's name", err)
			}
			golden(t, f, strings.ReplaceAll(got, filepath.Dir(f)+"/", ""))
		})
	}
}

func TestNodeRoundTrip(t *testing.T) {
	links, err := ParseLinks([]string{"eth0=192.168.60.11", "br-lan.7=10.10.10.11"})
	if err != nil {
		t.Fatal(err)
	}
	n := Node{Cluster: "prod", ClusterID: "0123456789abcdef", Name: "node1", Role: RoleWitness, Links: links, Port: 7000, Group: "ha", LogLevel: "warn"}
	path := filepath.Join(t.TempDir(), "etc", "node.yaml")
	if err := n.Write(path); err != nil {
		t.Fatal(err)
	}
	if err := n.Write(path); err != nil { // over an existing one
		t.Fatal(err)
	}
	got, err := ReadNode(path)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(n) {
		t.Errorf("got %+v want %+v", got, n)
	}
	if es, _ := os.ReadDir(filepath.Dir(path)); len(es) != 1 {
		t.Errorf("left behind: %v", es)
	}
	n.Role = "boss"
	if err := n.Write(path); err == nil {
		t.Error("a bad node was written")
	}
	if _, err := ReadNode(filepath.Join(t.TempDir(), "no.yaml")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "picket init") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := ReadNode(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
}

func TestWriteFileReplacesLink(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "secret")
	if err := os.WriteFile(victim, []byte("v"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, path); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "v" {
		t.Error("the link was followed")
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v %v", fi.Mode(), err)
	}
}

func TestLinksAndAddrs(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"eth0=192.168.60.11", ""},
		{"eth0", "has no '='"},
		{"=1.2.3.4", "interface name is empty"},
		{"eth0=", "not an IP address"},
		{"eth0=1.2.3.4/24", "bare address"},
		{"eth0=fd00::1", "IPv6"},
		{"eth0=0.0.0.0", "not the address of one machine"},
		{"eth0=224.0.0.1", "not the address of one machine"},
		{"e h=1.2.3.4", "interface name"},
		{"..=1.2.3.4", "not allowed"},
		{strings.Repeat("x", 16) + "=1.2.3.4", "16 bytes"},
		{strings.Repeat("é", 600), "has no '='"},
	} {
		_, err := ParseLinks([]string{c.in})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.30q: %v, want %q", c.in, err, c.want)
		}
	}
	for _, l := range [][]string{nil, {"a=1.2.3.4", "a=1.2.3.5"}, {"a=1.2.3.4", "b=1.2.3.4"}} {
		if _, err := ParseLinks(l); err == nil {
			t.Errorf("%v was accepted", l)
		}
	}
	got, err := ParseJoinAddrs("192.168.60.11, 10.10.10.11:7000", 6940)
	if err != nil || fmt.Sprint(got) != "[192.168.60.11:6940 10.10.10.11:7000]" {
		t.Errorf("%v %v", got, err)
	}
	for _, s := range []string{"", "a,b", "1.2.3.4,", "1.2.3.4:0", strings.Repeat("1.2.3.4,", 20)} {
		if _, err := ParseJoinAddrs(s, 6940); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestExternalise(t *testing.T) {
	file := func(opts ...string) string {
		s := "cluster: prod # keep me\nnodes:\n"
		for i, o := range opts {
			s += fmt.Sprintf("  node%d:\n    fence:\n      - ipmitool: %s\n", i+1, o)
		}
		return s
	}
	for _, c := range []struct {
		name, in, want, err string
	}{
		{"none", file("-I lanplus -H 10.0.0.1 -U a -f /x"), file("-I lanplus -H 10.0.0.1 -U a -f /x"), ""},
		{"plain", file("-I lanplus -H 10.0.0.1 -U ADMIN -P ADMIN -C 3 # c"), file("-I lanplus -H 10.0.0.1 -U ADMIN -f /etc/picket/node1.ipmi-1.bmc -C 3 # c"), ""},
		{"two", file(`"-I lanplus -H 10.0.0.1 -U a -P canary"`, "'-P canary -I lanplus -H 10.0.0.2 -U a'"),
			file(`"-I lanplus -H 10.0.0.1 -U a -f /etc/picket/node1.ipmi-1.bmc"`, "'-f /etc/picket/node2.ipmi-1.bmc -I lanplus -H 10.0.0.2 -U a'"), ""},
		{"folded", file("-I lanplus -H 10.0.0.1\n          -U a -P canary"), "", "not understood"},
		{"escaped", file(`"-I lanplus -H 10.0.0.1 -U a -P can\x61ry"`), "", "not understood"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, err := ParseCluster("f.yaml", []byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			got, files, err := Externalise("f.yaml", in, "/etc/picket")
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "canary") {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || got.Config.Source != c.want {
				t.Errorf("%v\n%s", err, cmp.Diff(c.want, got.Config.Source))
			}
			for _, f := range files {
				if got.Config.Node(f.Node).Device(f.Device).IPMI.PasswordFile != f.Path || !strings.EqualFold(f.Password, "canary") && f.Password != "ADMIN" {
					t.Errorf("file %v does not fit", f)
				}
			}
			if len(files) != len(in.Secrets) || len(got.Secrets) != 0 {
				t.Errorf("%d files for %d secrets, %d left", len(files), len(in.Secrets), len(got.Secrets))
			}
		})
	}
	in, _ := ParseCluster("f", []byte(file("-I lanplus -H 10.0.0.1 -U a -P canary")))
	if _, _, err := Externalise("f", in, "relative"); err == nil {
		t.Error("a relative directory was accepted")
	}
}

// TestBigInputs shows that the largest files are read, or refused, in bounded time.
func TestBigInputs(t *testing.T) {
	n := state.MaxConfigSource
	fill := func(unit string) []byte { return bytes.Repeat([]byte(unit), n/len(unit)) }
	for name, data := range map[string][]byte{
		"too big":  bytes.Repeat([]byte("#"), n+1),
		"brackets": fill("["), "braces": fill("{a: "), "dashes": fill("- "), "questions": fill("? "),
		"lines": fill("\n"), "comments": fill("# x\n"), "keys": fill("a: 1\n"), "items": fill("- a\n"),
		"flow lines": append([]byte("cluster: ["), fill("a,\n")...), "quotes": fill("\"\n"), "text": fill("word\n"),
		"blocks": fill("a: |\n  x\n"), "nested": []byte(stairs()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			done := make(chan struct{})
			go func() { defer close(done); _, _ = ParseCluster("big.yaml", data) }()
			select {
			case <-done:
			case <-time.After(90 * time.Second):
				t.Error("still reading after 90 s")
			}
		})
	}
}

// stairs is a file in which each line is indented one blank deeper.
func stairs() string {
	var b strings.Builder
	for i := range 1000 {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func FuzzParseCluster(f *testing.F) {
	for _, p := range files(f, "testdata/cluster/*.yaml") {
		data, _ := os.ReadFile(p)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseCluster("fuzz.yaml", data)
		if err != nil {
			_ = err.Error()
			return
		}
		if err := state.CheckTiming(c.Config.Timing); err != nil {
			t.Errorf("accepted timing: %v", err)
		}
		for _, g := range c.Config.Groups {
			if len(g.Nodes) == 0 || len(g.Resources) == 0 {
				t.Errorf("accepted an empty group: %+v", g)
			}
		}
		again, err := ParseCluster("fuzz.yaml", []byte(c.Config.Source))
		if err != nil || !cmp.Equal(c.Config, again.Config, cmp.Comparer(func(a, b state.IPResource) bool { return a == b })) {
			t.Errorf("reading the source again differs: %v", err)
		}
		_, _, _ = Externalise("fuzz.yaml", c, "/etc/picket")
	})
}

func FuzzParseNode(f *testing.F) {
	for _, p := range files(f, "testdata/node/*.yaml") {
		data, _ := os.ReadFile(p)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := ParseNode("fuzz.yaml", data)
		if err != nil {
			return
		}
		if err := n.Check(); err != nil {
			t.Errorf("accepted and then refused: %v", err)
		}
		if again, err := ParseNode("again.yaml", n.Encode()); err != nil || fmt.Sprint(again) != fmt.Sprint(n) {
			t.Errorf("round trip: %v\n%+v\n%+v", err, n, again)
		}
	})
}
