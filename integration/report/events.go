package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"
)

// event is one line of `go test -json` (go doc test2json), and of build output (go help buildjson).
// Tier is ours: the first line of an event file names its tier, the last says how it ended.
type event struct {
	Action      string
	Package     string  `json:",omitempty"`
	ImportPath  string  `json:",omitempty"` // of build-output and build-fail
	Test        string  `json:",omitempty"`
	Output      string  `json:",omitempty"`
	Elapsed     float64 `json:",omitempty"` // seconds
	FailedBuild string  `json:",omitempty"`
	Tier        string  `json:",omitempty"`
}

// Our own actions.
const (
	tierBegin = "tier"
	tierEnd   = "tier-end"
)

// maxLine bounds one event; go test cuts output into lines, and a test may print a long one.
const maxLine = 16 << 20

// maxKept bounds the output kept of one test that has not ended, in bytes.
const maxKept = 8 << 20

// test is one test or subtest, or a package as a whole (name "").
type test struct {
	pkg, name string
	action    string // "", pass, fail, skip
	output    []string
	bytes     int
	elapsed   float64
	children  bool
	badChild  bool // a subtest failed: the parent's own failure is its echo
}

func (t *test) keep(s string) {
	if t.bytes += len(s); t.bytes <= maxKept {
		t.output = append(t.output, s)
	}
}

// tier is what one event file holds.
type tier struct {
	name    string
	tests   map[string]*test
	builds  map[string]*test // build output by import path
	empty   []string         // packages without test files
	elapsed float64
	ended   bool
	broken  string // the command could not run, or ended badly without a failed test
}

func newTier(name string) *tier {
	return &tier{name: name, tests: map[string]*test{}, builds: map[string]*test{}}
}

func (t *tier) test(pkg, name string) *test {
	k := pkg + "\x00" + name
	x := t.tests[k]
	if x == nil {
		x = &test{pkg: pkg, name: name}
		t.tests[k] = x
	}
	return x
}

// add takes one event in and returns what it ended, or nil.
func (t *tier) add(e event) *test {
	switch e.Action {
	case tierBegin:
		t.name = e.Tier
		return nil
	case tierEnd:
		t.ended, t.broken = true, e.Output
		t.elapsed += e.Elapsed
		return nil
	case "build-output", "build-fail":
		b := t.builds[e.ImportPath]
		if b == nil {
			b = &test{pkg: e.ImportPath}
			t.builds[e.ImportPath] = b
		}
		b.keep(e.Output)
		return nil
	}
	x := t.test(e.Package, e.Test)
	switch e.Action {
	case "run":
		for _, p := range t.parents(e.Package, e.Test) {
			p.children = true
		}
	case "output":
		x.keep(e.Output)
	case "pass", "fail", "skip":
		x.action, x.elapsed = e.Action, e.Elapsed
		t.finish(e, x)
		return x
	}
	return nil
}

func (t *tier) finish(e event, x *test) {
	if e.Test == "" && e.Action == "skip" {
		t.empty = append(t.empty, e.Package)
		return
	}
	if e.Action != "fail" {
		return
	}
	if b := t.builds[e.FailedBuild]; b != nil {
		x.output = append(b.output, x.output...)
	}
	for _, p := range t.parents(e.Package, e.Test) {
		p.badChild = true
	}
}

// parents returns the tests that a subtest ran in. A name may hold slashes of its own: "T/01/move" may
// be a child of "T" with no test between them.
func (t *tier) parents(pkg, name string) []*test {
	var out []*test
	for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name, '/') {
		name = name[:i]
		if x := t.tests[pkg+"\x00"+name]; x != nil {
			out = append(out, x)
		}
	}
	return out
}

// counts are results of leaves: a test with subtests counts through them, unless it failed on its own.
type counts struct{ passed, failed, skipped int }

func (c *counts) add(o counts) {
	c.passed += o.passed
	c.failed += o.failed
	c.skipped += o.skipped
}

// result sorts a tier's tests.
func (t *tier) result() (c counts, failed, skipped []*test) {
	var all []*test
	inTest := map[string]bool{} // packages in which a test failed: their own failure is its echo
	for _, x := range t.tests {
		all = append(all, x)
		if x.name != "" && (x.action == "fail" || x.action == "") {
			inTest[x.pkg] = true
		}
	}
	sort.Slice(all, func(i, j int) bool {
		return all[i].pkg < all[j].pkg || all[i].pkg == all[j].pkg && all[i].name < all[j].name
	})
	for _, x := range all {
		switch {
		case x.name == "" && (x.action != "fail" || inTest[x.pkg]):
			// A package that passed, has no tests, or echoes its tests.
		case x.action == "fail" && x.badChild:
		case x.action == "fail", x.action == "": // began and never ended: a panic, a timeout or a kill
			c.failed++
			failed = append(failed, x)
		case x.action == "skip":
			c.skipped++
			skipped = append(skipped, x)
		case !x.children:
			c.passed++
		}
	}
	return c, failed, skipped
}

// recorder writes events to a file, adds them to a tier and shows what is worth showing.
type recorder struct {
	enc  *json.Encoder
	tier *tier
	show io.Writer
}

func newRecorder(w io.Writer, name string, show io.Writer) *recorder {
	return &recorder{enc: json.NewEncoder(w), tier: newTier(name), show: show}
}

// copy takes the events of one `go test -json` in. Lines that are not events are kept as output of
// the run itself.
func (r *recorder) copy(in io.Reader) error {
	if err := r.enc.Encode(event{Action: tierBegin, Tier: r.tier.name}); err != nil {
		return err
	}
	sc := bufio.NewScanner(in)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil || e.Action == "" {
			if strings.HasPrefix(sc.Text(), "go: downloading ") {
				continue
			}
			e = event{Action: "build-output", ImportPath: "go", Output: sc.Text() + "\n"}
			fmt.Fprintf(r.show, "   %s\n", sc.Text())
		}
		if err := r.enc.Encode(e); err != nil {
			return err
		}
		if x := r.tier.add(e); x != nil {
			r.tell(x, e)
		}
	}
	return sc.Err()
}

// tell shows a package that ended, and a test that failed with its whole log. The log of a test that
// passed is never shown.
func (r *recorder) tell(x *test, e event) {
	switch {
	case e.Test == "" && e.Action == "skip":
	case e.Test == "":
		fmt.Fprintf(r.show, "   %-5s %s  %.1fs\n", e.Action, short(e.Package), e.Elapsed)
		if e.Action == "fail" {
			// Also what tests printed that never ended: the panic or the timeout is there.
			for _, y := range sorted(r.tier.tests) {
				if y.pkg == x.pkg && y.name != "" && y.action == "" {
					dump(r.show, y)
				}
			}
			dump(r.show, x)
		}
	case e.Action == "fail":
		dump(r.show, x)
	}
	if e.Test != "" && e.Action != "skip" {
		x.output = nil
	}
}

func sorted(m map[string]*test) []*test {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var out []*test
	for _, k := range keys {
		out = append(out, m[k])
	}
	return out
}

func dump(w io.Writer, x *test) {
	fmt.Fprintf(w, "-- log of %s\n", x.label())
	for _, o := range x.output {
		fmt.Fprintf(w, "   | %s\n", strings.TrimRight(o, "\n"))
	}
}

func (t *test) label() string { return strings.TrimSpace(short(t.pkg) + " " + t.name) }

// end notes how the command ended. A failure that no event tells of is one of its own: a tier must
// not look well because its tests never began.
func (r *recorder) end(ctx context.Context, err error, took time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := event{Action: tierEnd, Elapsed: took.Seconds()}
	if c, _, _ := r.tier.result(); err != nil && c.failed == 0 {
		e.Output = err.Error()
		if g := r.tier.builds["go"]; g != nil {
			e.Output += ": " + strings.TrimSpace(strings.Join(g.output, " "))
		}
	}
	r.tier.add(e)
	return r.enc.Encode(e)
}

// step records a plain command as one test.
func (r *recorder) step(check, action, out string, took time.Duration) error {
	fmt.Fprintf(r.show, "   %-5s %s: %s  %.1fs\n", action, r.tier.name, check, took.Seconds())
	if action == "fail" {
		x := &test{pkg: r.tier.name, name: check, output: strings.SplitAfter(strings.TrimRight(out, "\n"), "\n")}
		dump(r.show, x)
	}
	var errs []error
	for _, e := range []event{
		{Action: tierBegin, Tier: r.tier.name},
		{Action: "run", Package: r.tier.name, Test: check},
		{Action: "output", Package: r.tier.name, Test: check, Output: out},
		{Action: action, Package: r.tier.name, Test: check, Elapsed: took.Seconds()},
		{Action: tierEnd, Elapsed: took.Seconds()},
	} {
		errs = append(errs, r.enc.Encode(e))
	}
	return errors.Join(errs...)
}

// readTier reads an event file back.
func readTier(path string) (*tier, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the events: %w", err)
	}
	defer f.Close()
	t := newTier(path)
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("read the events: %s holds a line that is none: %w", path, err)
		}
		t.add(e)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read the events of %s: %w", path, err)
	}
	return t, nil
}
