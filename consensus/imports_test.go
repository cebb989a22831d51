package consensus_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/picket-ha/picket"

// room is one row of the import rules: a directory with all below it (unless a longer row names that), the
// rooms of this repository that it may import, and why. Every room may import ids, reason and the clean
// configuration types in state, and the rooms below itself.
type room struct {
	dir  string
	may  []string
	pure bool
	why  string
}

var leaves = []string{"consensus/ids", "consensus/reason", "consensus/state"}

var rooms = []room{
	{"consensus/ids", []string{}, true, "a leaf: everything imports it"},
	{"consensus/reason", []string{}, true, "a leaf: everything imports it"},
	{"consensus/state", []string{"consensus/ids", "consensus/reason", "fencing"}, true, "the same entries give the same bytes on every node; it judges fence reports by their contract only"},
	{"consensus/plan", []string{"fencing"}, true, "a decision is a function of state and facts, so that it can be replayed"},
	{"consensus/lease", []string{}, true, "safety rests on it: it is told the time and nothing else"},
	{"consensus/core", []string{"consensus/plan", "consensus/lease", "fencing", "resources", "heartbeat"}, true, "one node as one machine, run by driver and by sim alike: contracts only, no device, no socket"},
	{"consensus/internal/story", []string{"fencing"}, true, "the language of the golden stories; tests only"},
	{"consensus/sim", []string{"consensus/core", "consensus/plan", "consensus/lease", "fencing", "resources", "heartbeat"}, false, "it executes the same core as production; a second one would prove nothing"},
	{"consensus/driver", []string{"consensus/core", "consensus/plan", "consensus/lease", "fencing", "resources", "heartbeat"}, false, "it carries out what core asks, through interfaces that app fills"},
	{"consensus/raftnode", []string{}, false, "raft knows bytes and node names: it must not know what the log means"},
	{"fencing", []string{}, false, "a device decides nothing, and knows neither heartbeats nor resources"},
	{"resources", []string{}, false, "a resource decides nothing, and knows neither heartbeats nor fencing"},
	{"heartbeat", []string{}, false, "the detector observes; what silence means is decided elsewhere"},
	{"cmd/picket/config", []string{"fencing", "resources", "heartbeat"}, false, "it turns a file into values: parsers of the rooms that own the syntax, nothing that runs"},
	{"cmd/picket/control", []string{"cmd/picket/config"}, false, "the written contract between the daemon and its clients"},
	{"cmd/picket/cli", []string{"cmd/picket/control", "cmd/picket/config"}, false, "what the command line shows comes over the socket, or it would work on one node only"},
	{"cmd/picket/app", []string{"cmd/picket/config", "cmd/picket/control", "consensus", "fencing", "resources", "heartbeat", "packaging"}, false, "the one place that wires all; not cli, and nothing of the laboratory"},
	{"cmd/picket", []string{"cmd/picket", "packaging"}, false, "flags and signals"},
	{"cmd/picket-lab", []string{"integration/netlab", "integration/bmcsim", "integration/check"}, false, "the laboratory starts the real binary as processes: it must not share its code"},
	{"integration/bmcsim", []string{"fencing"}, false, "a BMC: of picket it needs the spelling of a UUID and no more"},
	{"integration", []string{}, false, "observers that are not picket: they must not share its mistakes"},
	{"packaging", []string{}, false, "files"},
}

// pureRoots are rooms whose root package is pure although what lies below is not.
var pureRoots = []string{"fencing", "resources", "heartbeat"}

func find(dir string) *room {
	var best *room
	for i := range rooms {
		r := &rooms[i]
		if (dir == r.dir || strings.HasPrefix(dir, r.dir+"/")) && (best == nil || len(r.dir) > len(best.dir)) {
			best = r
		}
	}
	return best
}

type file struct {
	path string // from the root of the repository
	dir  string
	test bool
	set  *token.FileSet
	ast  *ast.File
	size int // lines
}

// sources parses every Go file of the repository.
func sources(t *testing.T) []file {
	t.Helper()
	var out []file
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != ".." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, p, src, parser.ParseComments)
		if err != nil {
			return err
		}
		path := filepath.ToSlash(strings.TrimPrefix(p, ".."+string(filepath.Separator)))
		out = append(out, file{path, filepath.ToSlash(filepath.Dir(path)), strings.HasSuffix(name, "_test.go"), set, f, strings.Count(string(src), "\n")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("only %d files were found: the scan is blind", len(out))
	}
	return out
}

func imports(f file) []string {
	var out []string
	for _, i := range f.ast.Imports {
		if s, err := strconv.Unquote(i.Path.Value); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// within reports whether a path is one of the rooms or lies below one.
func within(path string, of []string) bool {
	return slices.ContainsFunc(of, func(d string) bool { return path == d || strings.HasPrefix(path, d+"/") })
}

// TestImports keeps the rule of every room, tests left out: those may build what they like around it.
func TestImports(t *testing.T) {
	for _, f := range sources(t) {
		r := find(f.dir)
		if r == nil {
			if f.dir != "consensus" {
				t.Errorf("%s: no rule names this room", f.path)
			}
			continue
		}
		for _, imp := range imports(f) {
			to, ok := strings.CutPrefix(imp, module+"/")
			if !ok || f.test {
				continue
			}
			if to == "consensus/internal/story" {
				t.Errorf("%s imports %s: only tests may", f.path, to)
			}
			if !slices.Contains(leaves, to) && !within(to, r.may) && !within(to, []string{r.dir}) || (slices.Contains(leaves[:2], r.dir) && to != r.dir) {
				t.Errorf("%s imports %s: not allowed, %s", f.path, to, r.why)
			}
			if root := strings.SplitN(to, "/", 2)[0]; r.dir == "consensus/core" && root == to[:min(len(to), len(root))] && slices.Contains(pureRoots, root) && to != root {
				t.Errorf("%s imports %s: core sees only the contract at the root", f.path, to)
			}
		}
	}
}

// TestLabStaysOutside: the product never imports the laboratory; its tests may talk to the laboratory's BMC.
func TestLabStaysOutside(t *testing.T) {
	for _, f := range sources(t) {
		for _, imp := range imports(f) {
			if f.test && imp == module+"/integration/bmcsim" {
				continue
			}
			if strings.HasPrefix(imp, module+"/integration") && within(f.dir, []string{"cmd/picket", "consensus"}) {
				t.Errorf("%s imports %s: a lab must not reach into the product, nor the product into a lab", f.path, imp)
			}
		}
	}
}

// forbidden are the packages that pure rooms do without, and why.
var forbidden = map[string]string{
	"os":           "the system is not an input that can be replayed",
	"os/exec":      "the system is not an input that can be replayed",
	"net":          "addresses are net/netip; sockets live elsewhere",
	"math/rand":    "randomness is an input",
	"math/rand/v2": "randomness is an input",
	"crypto/rand":  "randomness is an input",
	"sync":         "one machine, one caller",
	"sync/atomic":  "one machine, one caller",
	"log":          "what is to be said is returned",
	"log/slog":     "what is to be said is returned",
	"syscall":      "the system is not an input that can be replayed",
}

var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}

func pure(dir string) bool {
	r := find(dir)
	return r != nil && ((r.pure && dir == r.dir) || slices.Contains(pureRoots, dir))
}

// TestPureRooms: no clock, no system, no randomness, no goroutine, no float: the same inputs give the same
// outputs on every machine, for ever.
func TestPureRooms(t *testing.T) {
	n := 0
	for _, f := range sources(t) {
		if f.test || !pure(f.dir) {
			continue
		}
		n++
		for _, imp := range imports(f) {
			if why, ok := forbidden[imp]; ok {
				t.Errorf("%s imports %s: %s", f.path, imp, why)
			}
		}
		ast.Inspect(f.ast, func(x ast.Node) bool {
			at := func() token.Position { return f.set.Position(x.Pos()) }
			switch x := x.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a goroutine in a pure room", at())
			case *ast.SelectorExpr:
				if id, ok := x.X.(*ast.Ident); ok && id.Name == "time" && slices.Contains(clocks, x.Sel.Name) {
					t.Errorf("%s: time.%s in a pure room: time is an input", at(), x.Sel.Name)
				}
			case *ast.Ident:
				if x.Name == "float64" || x.Name == "float32" {
					t.Errorf("%s: a float in a pure room: it need not be equal on every machine", at())
				}
			case *ast.BasicLit:
				if x.Kind == token.FLOAT {
					t.Errorf("%s: a float in a pure room", at())
				}
			}
			return true
		})
	}
	if n < 20 {
		t.Errorf("only %d pure files were found: the scan is blind", n)
	}
}

// The limits of the house.
const (
	maxFile = 600 // lines
	maxFunc = 70  // lines, tests left out
)

// TestHouse: small files, small functions, no init, and every exported name of a pure room explained.
func TestHouse(t *testing.T) {
	for _, f := range sources(t) {
		if f.size > maxFile {
			t.Errorf("%s has %d lines: at most %d", f.path, f.size, maxFile)
		}
		if f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				if pure(f.dir) {
					undocumented(t, f, d.(*ast.GenDecl))
				}
				continue
			}
			if n := f.set.Position(fn.End()).Line - f.set.Position(fn.Pos()).Line + 1; n > maxFunc {
				t.Errorf("%s: %s has %d lines: at most %d", f.set.Position(fn.Pos()), fn.Name.Name, n, maxFunc)
			}
			if fn.Name.Name == "init" && fn.Recv == nil {
				t.Errorf("%s: init: registration at start-up hides who depends on whom", f.path)
			}
			if pure(f.dir) && fn.Name.IsExported() && receiver(fn) && fn.Doc == nil {
				t.Errorf("%s: %s is exported and not explained", f.set.Position(fn.Pos()), fn.Name.Name)
			}
		}
	}
}

// receiver reports whether a function's receiver, if it has one, is exported, too.
func receiver(fn *ast.FuncDecl) bool {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return true
	}
	return ast.IsExported(strings.TrimPrefix(fmt.Sprint(typeName(fn.Recv.List[0].Type)), "*"))
}

func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// undocumented reports exported types, variables and constants without a word: theirs, their line's, or
// their block's.
func undocumented(t *testing.T, f file, d *ast.GenDecl) {
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
				t.Errorf("%s: type %s is exported and not explained", f.set.Position(s.Pos()), s.Name.Name)
			}
		case *ast.ValueSpec:
			if s.Names[0].IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
				t.Errorf("%s: %s is exported and not explained", f.set.Position(s.Pos()), s.Names[0].Name)
			}
		}
	}
}
