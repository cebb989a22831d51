package reason_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/picket-ha/picket/consensus/reason"
)

// constants reads the code constants of this package from its source: name -> code.
func constants(t *testing.T) map[string]reason.Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]reason.Code{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); !ok || id.Name != "Code" {
			return true
		}
		s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		out[v.Names[0].Name] = reason.Code(s)
		return true
	})
	return out
}

// TestCatalogue: every constant is in the catalogue once, and nothing else is; no text is empty.
func TestCatalogue(t *testing.T) {
	known := map[reason.Code]bool{}
	for name, c := range constants(t) {
		if known[c] {
			t.Errorf("%s: the code %s is taken twice", name, c)
		}
		known[c] = true
		if e := reason.Explain(c); e.Text == string(c) || e.Code != c {
			t.Errorf("%s (%s) is not in the catalogue", name, c)
		}
		if !regexp.MustCompile(`^[A-Z][A-Z_]+$`).MatchString(string(c)) {
			t.Errorf("%s: %q is not a code", name, c)
		}
	}
	if len(known) < 50 {
		t.Fatalf("only %d constants were found", len(known))
	}
	seen := map[reason.Code]bool{}
	for _, e := range reason.All() {
		switch {
		case !known[e.Code]:
			t.Errorf("%s is in the catalogue and no constant", e.Code)
		case seen[e.Code]:
			t.Errorf("%s is in the catalogue twice", e.Code)
		case strings.TrimSpace(e.Text) == "" || strings.HasSuffix(e.Text, "."):
			t.Errorf("%s: text %q", e.Code, e.Text)
		}
		seen[e.Code] = true
	}
}

func TestReason(t *testing.T) {
	r := reason.New(reason.NodeLost, "node", "n1", "why", "no heartbeat", "odd")
	if got, want := r.Text(), "n1 is lost: no heartbeat"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := r.Action(), "look at n1; it rejoins by itself when it is back"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := r.String(), "NODE_LOST node=n1 why=no heartbeat"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if r.Get("node") != "n1" || r.Get("odd") != "" || r.IsZero() || !(reason.Reason{}).IsZero() {
		t.Error("Get or IsZero")
	}
	x := reason.New("NEW_IN_A_LATER_VERSION", "node", "n1")
	if x.Text() != "NEW_IN_A_LATER_VERSION" || x.Action() != "" || reason.Explain(x.Code).Severity != reason.Info {
		t.Errorf("an unknown code renders as %q", x.Text())
	}
}

var places = regexp.MustCompile(`\{([a-z_]+)\}`)

// TestArguments looks at every reason.New(...) of the deciding rooms: each argument that the text or the
// action has a place for is given there.
func TestArguments(t *testing.T) {
	consts, calls := constants(t), 0
	for _, room := range []string{"../state", "../plan", "../core"} {
		files, err := filepath.Glob(room + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			f, err := parser.ParseFile(set, file, src, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) == 0 || call.Ellipsis != token.NoPos {
					return true
				}
				name := callee(call)
				code, ok := consts[selector(call.Args[0])]
				if !ok || (name != "New" && name != "refuse") {
					return true
				}
				calls++
				e, keys := reason.Explain(code), given(call.Args[1:])
				for _, m := range places.FindAllStringSubmatch(e.Text+e.Action, -1) {
					if !slices.Contains(keys, m[1]) {
						t.Errorf("%s: %s is built without %q", set.Position(call.Pos()), code, m[1])
					}
				}
				return true
			})
		}
	}
	if calls < 60 {
		t.Errorf("only %d places were found that build a reason: the scan is blind", calls)
	}
}

func callee(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

// selector returns X of reason.X, or "".
func selector(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if id, ok := s.X.(*ast.Ident); !ok || id.Name != "reason" {
		return ""
	}
	return s.Sel.Name
}

// given lists the keys of alternating keys and values.
func given(args []ast.Expr) []string {
	var out []string
	for i := 0; i < len(args); i += 2 {
		if l, ok := args[i].(*ast.BasicLit); ok {
			if s, err := strconv.Unquote(l.Value); err == nil {
				out = append(out, s)
			}
		}
	}
	return out
}
