package check

import (
	"fmt"
	"io"
	"strings"
)

// maxTimeline bounds the lines one violation prints.
const maxTimeline = 60

// Summary is the verdict in one line: "owners at any time: at most 1 (4211 observations)".
func (r Report) Summary() string {
	s := fmt.Sprintf("owners at any time: at most %d (%d observations)", r.MaxOwners, r.Observations)
	if n := len(r.Violations); n > 0 {
		s += fmt.Sprintf(", %d violation%s", n, plural(n))
	}
	if n := len(r.NotObserved); n > 0 {
		s += fmt.Sprintf(", NOT OBSERVED (%d reason%s)", n, plural(n))
	}
	return s
}

// Write prints the verdict, what every stream saw, and each violation with its time line.
func (r Report) Write(w io.Writer) error {
	var b strings.Builder
	b.WriteString(r.Summary() + "\n")
	for _, s := range Streams() {
		fmt.Fprintf(&b, "  %-6s %7d records\n", s, r.Counts[s])
	}
	for _, n := range r.NotObserved {
		fmt.Fprintf(&b, "not observed: %s\n", n)
	}
	for i, v := range r.Violations {
		fmt.Fprintf(&b, "violation %d of %d [%s] %s\n", i+1, len(r.Violations), v.Rule, v.Text)
		v.timeline(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// timeline prints the records about a violation, dropping the monotony of writes and echoes
// first when there are too many.
func (v Violation) timeline(b *strings.Builder) {
	lines := 0
	prev := ""
	same := 0
	for _, r := range v.Around {
		text := r.line()
		if text == prev {
			same++
			continue
		}
		if same > 0 {
			fmt.Fprintf(b, "             ... %d more like it\n", same)
			same = 0
			lines++
		}
		prev = text
		if lines++; lines > maxTimeline {
			b.WriteString("             ... cut here; the rest is in the record files\n")
			return
		}
		fmt.Fprintf(b, "  %10s %s\n", seconds(r.T-v.At), text)
	}
	if same > 0 {
		fmt.Fprintf(b, "             ... %d more like it\n", same)
	}
}

// line renders a record without its counters, so that repetitions look the same.
func (r Record) line() string {
	parts := []string{fmt.Sprintf("%-6s %-8s", r.Stream, r.Kind)}
	for _, p := range []string{r.Node, r.VIP, strings.Join(r.MACs, "+"), r.Source, r.Text} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.TrimRight(strings.Join(parts, " "), " ")
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}
