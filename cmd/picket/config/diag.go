package config

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxErrors bounds how many errors of one file are reported together.
const maxErrors = 20

// Diag is one finding in a file.
type Diag struct {
	File string
	// Line and Column count from 1, columns in characters; 0 when no place applies.
	Line, Column int
	// Text says what is wrong, Fix how to mend it ("" when Text says it all).
	Text, Fix string
	// Source is the offending line with secrets blotted out, "" when no place applies.
	Source string
}

// Head is FILE:LINE:COLUMN: what is wrong; how to mend it.
func (d Diag) Head() string {
	var b strings.Builder
	b.WriteString(d.File)
	if d.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", d.Line, d.Column)
	}
	b.WriteString(": " + d.Text)
	if d.Fix != "" {
		b.WriteString("; " + d.Fix)
	}
	return b.String()
}

// String is Head with, below it, the source line and a marker under the column.
func (d Diag) String() string {
	if d.Source == "" || d.Line == 0 {
		return d.Head()
	}
	num := fmt.Sprintf("%5d", d.Line)
	pad := []rune(d.Source)
	if len(pad) > d.Column-1 {
		pad = pad[:max(d.Column-1, 0)]
	}
	for i, r := range pad {
		if r != '\t' {
			pad[i] = ' '
		}
	}
	return d.Head() + "\n" + num + " | " + d.Source + "\n" + strings.Repeat(" ", len(num)) + " | " + string(pad) + "^"
}

// Errors are all findings that make a file unusable, in the order of their places. It holds at least
// one and at most maxErrors; More counts the ones left out.
type Errors struct {
	Diags []Diag
	More  int
}

// Error renders all of them, one below the other.
func (e *Errors) Error() string {
	var out []string
	for _, d := range e.Diags {
		out = append(out, d.String())
	}
	if e.More > 0 {
		out = append(out, fmt.Sprintf("... and %d more", e.More))
	}
	return strings.Join(out, "\n")
}

// Short renders the heads only, without source lines: for logs and for answers on the wire.
func (e *Errors) Short() string {
	var out []string
	for _, d := range e.Diags {
		out = append(out, d.Head())
	}
	return strings.Join(out, "\n")
}

// passwordOption finds an inline password of an ipmitool option string; everything behind it on the
// line is blotted out, because a quoted password may hold blanks.
var passwordOption = regexp.MustCompile(`(^|[^A-Za-z0-9])-P.*`)

// blot returns the source line with anything that may be a password removed. prev is the line above:
// a folded scalar may break between -P and its value.
func blot(line, prev string) string {
	if t := strings.TrimSpace(prev); strings.HasSuffix(t, "-P") {
		return "***"
	}
	return printable(passwordOption.ReplaceAllString(line, "${1}-P ***"))
}

// printable replaces what a terminal might obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError || r == 0x2028 || r == 0x2029 || r == 0xfeff {
			return '?'
		}
		return r
	}, s)
}

// nearest returns the word of known that is most like got, or "" when none is near enough to suggest.
func nearest(got string, known []string) string {
	best, score := "", 3
	if len(got) <= 4 {
		score = 2
	}
	for _, k := range known {
		if d := distance(strings.ToLower(got), k, score); d < score {
			best, score = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance with transpositions of neighbours counted as one (optimal
// string alignment). It gives up with limit when the lengths alone differ by as much.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev2, prev, cur := rows[(i-1)%3], rows[i%3], rows[(i+1)%3]
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
	}
	return rows[(len(a)+1)%3][len(b)]
}
