package main

import (
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
)

// module is cut off package names in what people read.
const module = "github.com/picket-ha/picket/"

func short(pkg string) string { return strings.TrimPrefix(pkg, module) }

// where is what testing puts before a message: the file and line.
var where = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)

// why is the reason a skipped test gave.
func (t *test) why() string {
	var lines []string
	for _, o := range t.output {
		for _, l := range strings.Split(strings.TrimRight(o, "\n"), "\n") {
			s := strings.TrimSpace(l)
			if s == "" || strings.HasPrefix(s, "=== ") || strings.HasPrefix(s, "--- ") {
				continue
			}
			lines = append(lines, strings.TrimSpace(where.ReplaceAllString(l, "")))
		}
	}
	if len(lines) == 0 {
		return "no reason was given"
	}
	if t.pkg != "" && !strings.Contains(t.pkg, "/") { // a plain command: the last line says it
		return lines[len(lines)-1]
	}
	return strings.Join(lines, " ")
}

// summary prints the closing summary and reports whether everything held: no failure, and every tier
// ran something. Its last line is for machines: "N passed, N failed, N skipped".
func summary(w io.Writer, tiers []*tier) bool {
	ok := true
	var total counts
	var took float64
	var failed, skipped, notes []string
	fmt.Fprintf(w, "\n== summary\n\n%-28s %7s %7s %7s %8s\n", "tier", "passed", "failed", "skipped", "time")
	for _, t := range tiers {
		c, bad, skip := t.result()
		for _, x := range bad {
			how := "failed"
			if x.action == "" {
				how = "began and did not end"
			}
			failed = append(failed, fmt.Sprintf("%s (%s)", x.label(), how))
		}
		for _, x := range skip {
			skipped = append(skipped, fmt.Sprintf("%s: %s", x.label(), x.why()))
		}
		switch {
		case t.broken != "" && len(bad) == 0:
			c.failed++
			failed = append(failed, fmt.Sprintf("tier %s: %s", t.name, t.broken))
		case !t.ended:
			c.failed++
			failed = append(failed, fmt.Sprintf("tier %s was cut short", t.name))
		case c.passed+c.failed == 0:
			c.failed++
			failed = append(failed, fmt.Sprintf("tier %s ran no test: a tier that saw nothing has proven nothing", t.name))
		}
		if len(t.empty) > 0 {
			sort.Strings(t.empty)
			for i, p := range t.empty {
				t.empty[i] = short(p)
			}
			notes = append(notes, fmt.Sprintf("no test files (tier %s): %s", t.name, strings.Join(t.empty, ", ")))
		}
		ok = ok && c.failed == 0
		total.add(c)
		took += t.elapsed
		fmt.Fprintf(w, "%-28s %7d %7d %7d %7.0fs\n", t.name, c.passed, c.failed, c.skipped, t.elapsed)
	}
	fmt.Fprintf(w, "%-28s %7d %7d %7d %7.0fs\n", "total", total.passed, total.failed, total.skipped, took)
	list(w, "skipped, and why", skipped)
	list(w, "noted", notes)
	list(w, "failed", failed)
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	return ok
}

func list(w io.Writer, head string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s:\n", head)
	for _, l := range lines {
		fmt.Fprintf(w, "  %s\n", l)
	}
}
