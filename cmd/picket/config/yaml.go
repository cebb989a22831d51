package config

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds on the text, checked before the parser runs: it recurses once per nesting level, and a Go
// stack that overflows cannot be recovered from; and its time grows with the square of the keys of one
// mapping (0.3 s for 10,000).
const (
	maxKeys   = 10_000
	maxLine   = 4096 // bytes of one line
	maxIndent = 64   // leading blanks of one line
	maxFlow   = 8    // [ and { inside each other
	maxMarks  = 8    // "- " and "? " on one line
)

// doc is one YAML file being read. It collects findings instead of stopping at the first.
type doc struct {
	file  string
	lines []string
	errs  []Diag
	warns []Diag
	more  int
}

func newDoc(file string, data []byte) *doc {
	return &doc{file: file, lines: strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n")}
}

// diag makes a finding at a place. The source line is blotted.
func (d *doc) diag(line, col int, text, fix string) Diag {
	g := Diag{File: d.file, Line: line, Column: max(col, 1), Text: text, Fix: fix}
	if line >= 1 && line <= len(d.lines) {
		prev := ""
		if line >= 2 {
			prev = d.lines[line-2]
		}
		if src := blot(d.lines[line-1], prev); len(src) <= 200 {
			g.Source = src
		}
	}
	return g
}

// fail records an error at a node, fix may be "".
func (d *doc) fail(n ast.Node, fix, format string, args ...any) {
	line, col := place(n)
	d.failAt(line, col, fix, format, args...)
}

func (d *doc) failAt(line, col int, fix, format string, args ...any) {
	if len(d.errs) >= maxErrors {
		d.more++
		return
	}
	d.errs = append(d.errs, d.diag(line, col, fmt.Sprintf(format, args...), fix))
}

func (d *doc) warn(n ast.Node, fix, format string, args ...any) {
	if len(d.warns) < maxErrors {
		line, col := place(n)
		d.warns = append(d.warns, d.diag(line, col, fmt.Sprintf(format, args...), fix))
	}
}

// err returns everything found, sorted by place, or nil.
func (d *doc) err() error {
	if len(d.errs) == 0 {
		return nil
	}
	byPlace(d.errs)
	return &Errors{Diags: d.errs, More: d.more}
}

func byPlace(ds []Diag) {
	sort.SliceStable(ds, func(i, j int) bool {
		a, b := ds[i], ds[j]
		return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
	})
}

func place(n ast.Node) (line, col int) {
	if n == nil {
		return 1, 1
	}
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		n = m.Values[0].Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line, t.Position.Column
	}
	return 1, 1
}

// parse checks the bounds and returns the root node, or nil with errors recorded. An empty file
// gives nil without an error.
func (d *doc) parse(data []byte, limit int) (root ast.Node) {
	if !d.bounded(data, limit) {
		return nil
	}
	defer func() {
		// The parser is third-party code fed with what people type; a panic there must not end the daemon.
		if r := recover(); r != nil {
			d.failAt(0, 0, "look for unbalanced quotes or brackets", "the YAML parser gave up on this file (%v)", clip(fmt.Sprint(r)))
			root = nil
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if !d.shallow(tokens) {
		return nil
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err)
		return nil
	}
	var bodies []*ast.DocumentNode
	for _, doc := range f.Docs {
		if doc.Body != nil {
			bodies = append(bodies, doc)
		}
	}
	switch {
	case len(bodies) == 0:
		return nil
	case len(bodies) > 1:
		d.fail(bodies[1].Body, "remove the '---' line and what follows it", "the file holds more than one YAML document")
		return nil
	}
	return bodies[0].Body
}

// bounded checks size, encoding and the shape of lines.
func (d *doc) bounded(data []byte, limit int) bool {
	if len(data) > limit {
		d.failAt(0, 0, "", "the file is %d bytes long: at most %d are accepted", len(data), limit)
		return false
	}
	if !utf8.Valid(data) {
		d.failAt(0, 0, "save it as UTF-8", "the file is not UTF-8 text")
		return false
	}
	for i, l := range d.lines {
		trimmed := strings.TrimLeft(l, " ")
		indent := len(l) - len(trimmed)
		switch {
		case len(l) > maxLine:
			d.failAt(i+1, 1, "", "the line is %d bytes long: at most %d are accepted", len(l), maxLine)
		case strings.HasPrefix(trimmed, "\t") && strings.TrimSpace(l) != "":
			d.failAt(i+1, indent+1, "use blanks", "a tab is used for indentation, which YAML forbids")
		case indent > maxIndent && trimmed != "":
			d.failAt(i+1, indent+1, "", "the line is indented by %d blanks: at most %d are accepted", indent, maxIndent)
		}
		for _, r := range l {
			if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfeff || r == 0x2028 || r == 0x2029 {
				d.failAt(i+1, 1, "remove it", "the line holds a control character (U+%04X)", r)
				break
			}
		}
		if len(d.errs) >= maxErrors {
			break
		}
	}
	return len(d.errs) == 0
}

// shallow refuses what nests too deeply, before anything recurses over it, and what picket's files
// never need: anchors, aliases, merge keys, tags and directives.
func (d *doc) shallow(tokens token.Tokens) bool {
	depth, marks, line, count := 0, 0, 0, 0
	bad := func(t *token.Token, fix, text string) {
		d.failAt(t.Position.Line, t.Position.Column, fix, "%s", text)
	}
	for _, t := range tokens {
		if t.Position.Line != line {
			marks, line = 0, t.Position.Line
		}
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			if depth++; depth > maxFlow {
				bad(t, "", fmt.Sprintf("brackets are nested more than %d deep", maxFlow))
				return false
			}
		case token.MappingEndType, token.SequenceEndType:
			depth = max(depth-1, 0)
		case token.SequenceEntryType, token.MappingKeyType:
			if marks++; marks > maxMarks {
				bad(t, "", fmt.Sprintf("more than %d list entries begin on one line", maxMarks))
				return false
			}
		case token.MappingValueType:
			if count++; count > maxKeys {
				bad(t, "", fmt.Sprintf("the file has more than %d keys", maxKeys))
				return false
			}
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			bad(t, "write the value out; quote it if it is meant as text", "anchors, aliases and merge keys (& * <<) are not accepted")
		case token.TagType:
			bad(t, "remove it; quote the value if it is meant as text", "YAML tags (!) are not accepted")
		case token.DirectiveType:
			bad(t, "remove the line", "YAML directives (%) are not accepted")
		}
		if len(d.errs) >= maxErrors {
			break
		}
	}
	return len(d.errs) == 0
}

func (d *doc) syntax(err error) {
	var y yaml.Error
	if errors.As(err, &y) && y.GetToken() != nil && y.GetToken().Position != nil {
		p := y.GetToken().Position
		d.failAt(p.Line, p.Column, "check the indentation and the quotes here and on the line above", "not valid YAML: %s", blot(clip(y.GetMessage()), ""))
		return
	}
	d.failAt(0, 0, "", "not valid YAML: %s", blot(clip(err.Error()), ""))
}

// field is one key of a mapping.
type field struct {
	name string
	key  ast.Node
	val  ast.Node
}

// where is the node to blame for a field: its value, or its key when the value is empty.
func (f field) where() ast.Node {
	if isNull(f.val) {
		return f.key
	}
	return f.val
}

func isNull(n ast.Node) bool {
	if n == nil {
		return true
	}
	_, ok := n.(*ast.NullNode)
	return ok
}

// fields returns a mapping's keys in file order; an empty value gives none. Anything else than a
// mapping, and a key given twice, is an error.
func (d *doc) fields(n ast.Node, what, example string) []field {
	if isNull(n) {
		return nil
	}
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		d.fail(n, "write "+example, "%s must be a mapping of keys to values, not %s", what, kindOf(n))
		return nil
	}
	var out []field
	seen := map[string]int{}
	for _, v := range values {
		name, ok := scalarText(v.Key)
		if !ok {
			d.fail(v.Key, "", "a key of %s must be plain text", what)
			continue
		}
		line, _ := place(v.Key)
		if first, dup := seen[name]; dup {
			d.fail(v.Key, "remove one of them", "key '%s' is given twice in %s (first on line %d)", clip(name), what, first)
			continue
		}
		seen[name] = line
		out = append(out, field{name: name, key: v.Key, val: v.Value})
	}
	return out
}

// later names keys that are planned and not built yet; they get an honest refusal of their own.
type keys struct {
	known []string
	later []string
}

// known reports whether the field's key is one of k.known, and records an error when it is not.
func (d *doc) known(f field, what string, k keys) bool {
	for _, n := range k.known {
		if f.name == n {
			return true
		}
	}
	for _, n := range k.later {
		if f.name == n {
			d.fail(f.key, "remove it", "'%s' in %s is not supported yet by this version of picket", n, what)
			return false
		}
	}
	if s := nearest(f.name, append(append([]string(nil), k.known...), k.later...)); s != "" {
		d.fail(f.key, "did you mean '"+s+"'?", "unknown key '%s' in %s", clip(f.name), what)
		return false
	}
	d.fail(f.key, "known keys are "+strings.Join(k.known, ", "), "unknown key '%s' in %s", clip(f.name), what)
	return false
}

// items returns a sequence's entries; an empty value gives none.
func (d *doc) items(n ast.Node, what, example string) []ast.Node {
	if isNull(n) {
		return nil
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(n, "write "+example, "%s must be a list, not %s", what, kindOf(n))
		return nil
	}
	return s.Values
}

// text returns a scalar on one line as it is written.
func (d *doc) text(f field, what, example string) (string, bool) {
	if isNull(f.val) {
		d.fail(f.key, "write "+example, "%s has no value", what)
		return "", false
	}
	s, ok := scalarText(f.val)
	if !ok {
		d.fail(f.val, "write "+example, "%s must be text on one line, not %s", what, kindOf(f.val))
	}
	return s, ok
}

// boolean accepts true and false alone: words such as on and yes are text in YAML 1.2.
func (d *doc) boolean(f field, what string) bool {
	if b, ok := f.val.(*ast.BoolNode); ok {
		return b.Value
	}
	fix := "write true or false"
	if s, ok := scalarText(f.where()); ok && !isNull(f.val) {
		switch strings.ToLower(s) {
		case "on", "yes", "y":
			fix = "write true"
		case "off", "no", "n":
			fix = "write false"
		}
	}
	d.fail(f.where(), fix, "%s must be true or false", what)
	return false
}

// duration accepts a Go duration ("200ms", "1m30s") from lo to hi; on error it returns def.
func (d *doc) duration(f field, what string, def, lo, hi time.Duration) time.Duration {
	s, ok := d.text(f, what, "a duration with its unit, such as "+short(def))
	if !ok {
		return def
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		fix := "write a duration with its unit, such as " + short(def)
		if _, e := strconv.ParseFloat(s, 64); e == nil {
			fix = fmt.Sprintf("write the unit: %sms, %ss or %sm", clip(s), clip(s), clip(s))
		}
		d.fail(f.where(), fix, "%s: '%s' is not a duration", what, clip(s))
		return def
	}
	if v < lo || v > hi {
		d.fail(f.where(), "", "%s is %s: it must be %s to %s", what, short(v), short(lo), short(hi))
		return def
	}
	return v
}

// integer accepts a decimal whole number from lo to hi; on error it returns lo.
func (d *doc) integer(f field, what string, lo, hi int) int {
	s, ok := d.text(f, what, strconv.Itoa(lo))
	if !ok {
		return lo
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < lo || v > hi {
		d.fail(f.where(), "", "%s must be a whole number from %d to %d, not '%s'", what, lo, hi, clip(s))
		return lo
	}
	return v
}

// scalarText gives the text of a one-line scalar exactly as written, whatever YAML type it would have.
func scalarText(n ast.Node) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, !strings.ContainsAny(v.Value, "\n\r\x00")
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode, *ast.NullNode:
		return v.GetToken().Value, true
	case *ast.MappingKeyNode:
		return scalarText(v.Value)
	}
	return "", false
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.LiteralNode:
		return "a text block"
	case *ast.NullNode:
		return "nothing"
	}
	if s, ok := scalarText(n); ok {
		return "'" + clip(blot(s, "")) + "'"
	}
	return "this"
}

// short renders a duration without trailing zero units: 30s, not 30.000s or 0h0m30s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
