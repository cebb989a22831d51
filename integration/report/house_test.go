package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A room's rule: which rooms of ours it may import beside leaves, and why it must see no more.
type rule struct {
	room string
	may  []string // room, or room/... for a room and all below it
	why  string
}

// leaves may be imported by every room: names, reasons, and the clean types of the configuration.
var leaves = []string{"consensus/ids", "consensus/reason", "consensus/state"}

var rules = []rule{
	{"consensus/ids", nil, "names are the bottom of the house"},
	{"consensus/reason", nil, "codes are the bottom of the house"},
	{"consensus/state", []string{"fencing"}, "the state knows what counts as evidence, and nothing that acts"},
	{"consensus/plan", []string{"fencing"}, "a decision depends on facts handed in, not on who gathers them"},
	{"consensus/lease", nil, "the lease is arithmetic on times handed in"},
	{"consensus/core", []string{"consensus/plan", "consensus/lease", "fencing", "resources", "heartbeat"},
		"the core sees the pure contracts, so that production and simulation run the same code"},
	{"consensus/internal/story", []string{"fencing"}, "stories drive state and plan"},
	{"consensus/sim", []string{"consensus/core", "consensus/plan", "consensus/lease", "fencing", "resources", "heartbeat"},
		"a simulation that touches the system is no simulation"},
	{"consensus/raftnode", []string{"consensus/raftnode/..."}, "raft carries entries and does not know what they mean"},
	{"consensus/raftnode/mesh", []string{"consensus/raftnode/pki"}, "connections do not know what they carry"},
	{"consensus/raftnode/pki", nil, "keys and certificates stand alone"},
	{"consensus/driver", []string{"consensus/core", "consensus/plan", "consensus/lease", "fencing", "resources", "heartbeat"},
		"the driver executes through interfaces; app fills them"},
	{"fencing", nil, "the contract of fencing: pure, and apart from resources and heartbeat"},
	{"fencing/ipmi", []string{"fencing"}, "a fence device knows its contract only"},
	{"resources", nil, "the contract of resources: pure, and apart from fencing and heartbeat"},
	{"resources/ip", []string{"resources"}, "a resource knows its contract only"},
	{"heartbeat", nil, "the detector: pure, and apart from fencing and resources"},
	{"heartbeat/wire", []string{"heartbeat"}, "the format of heartbeats"},
	{"heartbeat/udp", []string{"heartbeat", "heartbeat/wire", "heartbeat/internal/testns"}, "the sockets of heartbeats"},
	{"heartbeat/linkmon", []string{"heartbeat", "heartbeat/internal/testns"}, "the links of this machine"},
	{"heartbeat/internal/testns", nil, "a helper of tests"},
	{"packaging", nil, "embedded files"},
	{"cmd/picket", []string{"cmd/picket/app", "cmd/picket/cli"}, "main translates flags and signals"},
	{"cmd/picket/config", []string{"fencing/ipmi"}, "the configuration sees parsers and nothing that acts"},
	{"cmd/picket/control", nil, "the API is a contract of its own"},
	{"cmd/picket/cli", []string{"cmd/picket/config", "cmd/picket/control"}, "the command line speaks to the daemon through its socket only"},
	{"cmd/picket/app", []string{"cmd/picket/config", "cmd/picket/control", "consensus/...", "fencing/...", "resources/...", "heartbeat/...", "packaging"},
		"app wires one node; it never sees the command line or the lab"},
	{"cmd/picket-lab", []string{"integration/..."}, "the lab starts picket as processes and must not share its code"},
	{"integration/bmcsim", []string{"fencing"}, "a BMC of ours shares the UUID's byte orders with the product, nothing else"},
	{"integration/check", []string{"integration/check/..."}, "observers are independent of what they observe"},
	{"integration/netlab", []string{"integration/..."}, "machines are namespaces; the product is a binary in them"},
	{"integration/...", []string{"integration/..."}, "stories see picket from outside"},
}

// pure rooms take time and randomness as inputs and touch no system.
var pure = []string{"consensus/ids", "consensus/reason", "consensus/state", "consensus/plan", "consensus/lease", "consensus/core",
	"fencing", "resources", "heartbeat"}

// banned in pure rooms: they would make a decision depend on something that is not in its input.
var banned = []string{"os", "os/*", "net", "net/http", "net/url", "math/rand", "math/rand/v2", "crypto/rand", "sync", "sync/atomic", "log", "log/slog",
	"syscall", "golang.org/x/sys/unix", "runtime", "io/fs"}

// clocks are what a pure room may not take from package time.
var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep", "Local"}

// Sizes that keep files and functions readable. Tests and stories may tell long tables.
const (
	maxFileLines = 600
	maxFuncLines = 70
)

type pkg struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
}

func (p pkg) room() string { return strings.TrimPrefix(p.ImportPath, module) }

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "../../...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("go list found %d packages: the test does not see the tree", len(all))
	}
	return all
}

func covers(pattern, room string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return room == base || strings.HasPrefix(room, base+"/")
	}
	return pattern == room
}

// TestHouseImports: every room has a rule, and imports what its rule allows.
func TestHouseImports(t *testing.T) {
	for _, p := range packages(t) {
		room := p.room()
		i := slices.IndexFunc(rules, func(r rule) bool { return covers(r.room, room) })
		if i < 0 {
			t.Errorf("%s has no rule: say in integration/report/house_test.go what it may import, and why", room)
			continue
		}
		r := rules[i]
		for _, imp := range p.Imports {
			target, ours := strings.CutPrefix(imp, module)
			if !ours || slices.Contains(leaves, target) && !slices.Contains(leaves[:2], room) && !strings.HasPrefix(room, "integration") {
				continue
			}
			if !slices.ContainsFunc(r.may, func(m string) bool { return covers(m, target) }) {
				t.Errorf("%s imports %s: %s", room, target, r.why)
			}
		}
	}
}

// TestHousePure: time, randomness and the system are inputs of pure rooms.
func TestHousePure(t *testing.T) {
	seen := 0
	for _, p := range packages(t) {
		if !slices.Contains(pure, p.room()) {
			continue
		}
		seen++
		for _, imp := range p.Imports {
			for _, b := range banned {
				if ok, _ := path.Match(b, imp); ok {
					t.Errorf("%s imports %s: time, randomness and the system are inputs there", p.room(), imp)
				}
			}
		}
		for _, f := range p.GoFiles {
			purity(t, p.room(), filepath.Join(p.Dir, f))
		}
	}
	if seen != len(pure) {
		t.Errorf("%d of %d pure rooms were found", seen, len(pure))
	}
}

func purity(t *testing.T, room, file string) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			t.Errorf("%s starts a goroutine: pure rooms are stepped by their caller", fset.Position(n.Pos()))
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clocks, n.Sel.Name) {
				t.Errorf("%s: %s uses time.%s: time comes in as an argument", fset.Position(n.Pos()), room, n.Sel.Name)
			}
		case *ast.Ident:
			if n.Name == "float64" || n.Name == "float32" {
				t.Errorf("%s: a float in %s: rounding must not decide", fset.Position(n.Pos()), room)
			}
		}
		return true
	})
}

// TestHouseSizes: files and functions stay readable; nothing registers itself at start.
func TestHouseSizes(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			file := filepath.Join(p.Dir, name)
			where := p.room() + "/" + name
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(src, []byte("\n")); n > maxFileLines {
				t.Errorf("%s has %d lines: at most %d", where, n, maxFileLines)
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, file, src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Body == nil {
					continue
				}
				if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > maxFuncLines {
					t.Errorf("%s: %s has %d lines: at most %d", where, fn.Name.Name, n, maxFuncLines)
				}
				if fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: func init: several nodes live in one process, nothing registers itself", where)
				}
			}
		}
	}
}
