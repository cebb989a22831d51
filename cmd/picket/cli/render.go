package cli

import (
	"fmt"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/reason"
)

// width is the widest line of a rendering, in columns: a console at 3 a.m. has 80.
const width = 80

// printable replaces what a terminal might obey; newlines stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError || r == 0x2028 || r == 0x2029 || r == 0x202e {
			return '?'
		}
		return r
	}, s)
}

func printableLines(s string) string { return printable(strings.ReplaceAll(s, "\r\n", "\n")) }

// plain is printable on one line.
func plain(s string) string { return strings.Join(strings.Fields(printable(s)), " ") }

// age renders a duration in at most four columns: 0.4s 12s 3m 5h 12d. Negative is unknown.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "?"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// ageMS renders an age in milliseconds; -1 is never.
func ageMS(ms int64) string {
	if ms < 0 {
		return "never"
	}
	return age(time.Duration(ms) * time.Millisecond)
}

// sinceAt renders how long ago t was, "-" for the zero time. A t in the future (clocks differ) is 0.0s.
func sinceAt(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return age(max(now.Sub(t), 0))
}

func orDash(s string) string {
	if s = plain(s); s == "" {
		return "-"
	}
	return s
}

func code(c string) string {
	if c == "" {
		return ""
	}
	return "[" + plain(c) + "]"
}

// labelled writes "label    text", wrapped at width with the text's column kept.
func labelled(b *strings.Builder, label, text string) {
	const col = 9
	for i, l := range wrap(text, width-col) {
		if i > 0 {
			label = ""
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("%-*s%s", col, label, l), " ") + "\n")
	}
}

// wrap cuts text into lines of at most n columns, at blanks; a longer word stands alone.
func wrap(text string, n int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(text) {
		switch {
		case line == "":
			line = w
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(w) <= n:
			line += " " + w
		default:
			lines = append(lines, line)
			line = w
		}
	}
	if line != "" || len(lines) == 0 {
		lines = append(lines, line)
	}
	return lines
}

// table renders rows under heads; columns are as wide as their widest cell, two blanks apart, and the
// last one is wrapped at width (but given 20 columns at least).
func table(b *strings.Builder, heads []string, rows [][]string) {
	last := len(heads) - 1
	w := make([]int, len(heads))
	for _, r := range append([][]string{heads}, rows...) {
		for i, c := range r {
			w[i] = max(w[i], utf8.RuneCountInString(c))
		}
	}
	left := 0
	for _, n := range w[:last] {
		left += n + 2
	}
	for _, r := range append([][]string{heads}, rows...) {
		for n, l := range wrap(r[last], max(width-left, 20)) {
			line := ""
			for i := range last {
				cell := r[i]
				if n > 0 {
					cell = ""
				}
				line += cell + strings.Repeat(" ", w[i]-utf8.RuneCountInString(cell)+2)
			}
			b.WriteString(strings.TrimRight(line+l, " ") + "\n")
		}
	}
}

// seen says who tells this and how old it is.
func seen(node, source string, ms int64, asOf, now time.Time) string {
	s := "as of " + sinceAt(asOf, now) + " ago"
	if asOf.IsZero() {
		s = "of unknown age"
	}
	if node != "" {
		s = "by " + plain(node) + ", " + s
	}
	switch source {
	case control.SourceLeader:
		s += ", from the leader"
	case control.SourceLog:
		s += ", from its own log" + leaderHeard(ms)
	case control.SourceStale:
		s += ", STALE: last known" + leaderHeard(ms)
	}
	return s
}

func renderWhy(e control.Explanation, now time.Time) string {
	var b strings.Builder
	labelled(&b, plain(e.Kind), plain(e.Subject))
	labelled(&b, "verdict", plain(e.Verdict)+" "+code(e.Code))
	if e.Action != "" {
		labelled(&b, "action", plain(e.Action))
	}
	labelled(&b, "seen", seen("", e.Source, e.AgeMS, e.AsOf, now))
	if len(e.Lines) > 0 {
		head := "node"
		if e.Kind == "node" {
			head = "about"
		}
		var rows [][]string
		for _, l := range e.Lines {
			from := plain(l.Source)
			if l.AgeMS >= 0 && from != "" {
				from += " " + ageMS(l.AgeMS)
			}
			rows = append(rows, []string{orDash(l.Name), orDash(l.Verdict), orDash(from), strings.TrimSpace(plain(l.Text) + " " + code(l.Code))})
		}
		b.WriteString("\n")
		table(&b, []string{head, "verdict", "source", "why"}, rows)
	}
	return b.String()
}

func renderEvent(e control.Event) string {
	where := e.Node
	if e.Group != "" {
		where = strings.Trim(e.Node+"/"+e.Group, "/")
	}
	s := fmt.Sprintf("%s  %-8s  %-12s  %s", e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), orDash(e.Kind), orDash(where), plain(e.Text))
	if e.Code != "" {
		s += " " + code(e.Code)
	}
	return s
}

func renderFences(list []control.FenceRecord, now time.Time) string {
	if len(list) == 0 {
		return "no fence is in the log\n"
	}
	var b strings.Builder
	for i, f := range list {
		if i > 0 {
			b.WriteString("\n")
		}
		labelled(&b, "fence", fmt.Sprintf("%d of %s, %s", f.Intent, plain(f.Node), strings.ToUpper(plain(f.State))))
		when := sinceAt(f.Opened, now) + " ago"
		if !f.Opened.IsZero() {
			when = f.Opened.UTC().Format("2006-01-02T15:04:05.000Z") + " (" + when + ")"
		}
		if !f.Closed.IsZero() && !f.Opened.IsZero() {
			when += ", took " + age(f.Closed.Sub(f.Opened))
		}
		labelled(&b, "when", when)
		labelled(&b, "why", plain(f.Text)+" "+code(f.Code))
		for _, a := range f.Attempts {
			s := fmt.Sprintf("%s level %d from %s: %s", plain(a.Device), a.Level, plain(a.Executor), plain(a.Outcome))
			if a.TookMS > 0 {
				s += fmt.Sprintf(" in %d ms", a.TookMS)
			}
			if a.Text != "" {
				s += ": " + plain(a.Text)
			}
			labelled(&b, "attempt", s)
		}
		if f.Evidence != "" {
			labelled(&b, "proof", strings.TrimRight(plain(f.Evidence)+": "+plain(f.EvidenceText), ": "))
		}
		if f.Operator != "" {
			labelled(&b, "operator", strings.TrimRight(plain(f.Operator)+": "+plain(f.Reason), ": "))
		}
	}
	return b.String()
}

func severity(s reason.Severity) string {
	switch s {
	case reason.Critical:
		return "critical: a service is held, stopped or at risk"
	case reason.Warning:
		return "warning: redundancy is reduced, the service is not touched"
	}
	return "info: nothing is wrong"
}

func renderCode(e reason.Entry) string {
	var b strings.Builder
	labelled(&b, "code", string(e.Code))
	labelled(&b, "grade", severity(e.Severity))
	labelled(&b, "meaning", places(e.Text))
	action := places(e.Action)
	if action == "" {
		action = "nothing is needed from you"
	}
	labelled(&b, "action", action)
	return b.String()
}

func renderCodes(all []reason.Entry) string {
	var b strings.Builder
	var rows [][]string
	for _, e := range all {
		rows = append(rows, []string{string(e.Code), places(e.Text)})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i][0] < rows[j][0] })
	table(&b, []string{"code", "meaning"}, rows)
	return b.String()
}

// places shows the argument places of a catalogue text as NODE, GROUP, ...
func places(s string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '{')
		j := strings.IndexByte(s, '}')
		if i < 0 || j < i {
			return b.String() + s
		}
		b.WriteString(s[:i] + strings.ToUpper(s[i+1:j]))
		s = s[j+1:]
	}
}

// leaderHeard says how long ago the leader was heard; below zero: there is none.
func leaderHeard(ms int64) string {
	if ms < 0 {
		return " (no leader)"
	}
	return " (leader heard " + ageMS(ms) + " ago)"
}
