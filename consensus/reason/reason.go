// Package reason is the closed catalogue of why picket did, or did not do, something. The same
// codes feed the log, status, why, events, metrics and the golden files, so that an answer is never
// "unknown". It is a pure leaf.
package reason

import (
	"sort"
	"strings"
)

// Code names one reason, in capitals. Codes are part of the JSON contract: they may be added, never
// renamed.
type Code string

// Severity orders conditions: the most damaging is shown first.
type Severity int

// Severities, mildest first.
const (
	Info     Severity = iota // nothing is wrong
	Warning                  // redundancy is reduced, the service is not touched
	Critical                 // a service is held, stopped or at risk
)

// Arg is one named argument of a reason: {Key: "node", Value: "node2"}.
type Arg struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Reason is a code with its arguments, in the order they were given.
type Reason struct {
	Code Code  `json:"code"`
	Args []Arg `json:"args,omitempty"`
}

// New builds a reason from a code and alternating keys and values. A key without a value is dropped.
func New(c Code, kv ...string) Reason {
	r := Reason{Code: c}
	for i := 0; i+1 < len(kv); i += 2 {
		r.Args = append(r.Args, Arg{kv[i], kv[i+1]})
	}
	return r
}

// IsZero reports whether no reason was given.
func (r Reason) IsZero() bool { return r.Code == "" }

// Get returns the value of an argument, or "".
func (r Reason) Get(key string) string {
	for _, a := range r.Args {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

// Text renders the reason as one sentence for a human. A code outside the catalogue renders as the
// code itself, so that nothing is ever silent.
func (r Reason) Text() string { return r.fill(Explain(r.Code).Text) }

// Action renders what the operator may do about it, or "" when nothing is needed.
func (r Reason) Action() string { return r.fill(Explain(r.Code).Action) }

// String is the compact form used in logs and golden files: CODE key=value ...
func (r Reason) String() string {
	var b strings.Builder
	b.WriteString(string(r.Code))
	for _, a := range r.Args {
		b.WriteString(" " + a.Key + "=" + a.Value)
	}
	return b.String()
}

func (r Reason) fill(s string) string {
	for _, a := range r.Args {
		s = strings.ReplaceAll(s, "{"+a.Key+"}", a.Value)
	}
	return s
}

// Entry is the catalogue's page on one code.
type Entry struct {
	Code     Code
	Severity Severity
	// Text is one sentence with {argument} places.
	Text string
	// Action is what the operator may do, or "" when nothing is needed.
	Action string
}

// Explain returns the catalogue's entry for a code. An unknown code gives an entry whose text is the
// code.
func Explain(c Code) Entry {
	i := sort.Search(len(catalogue), func(i int) bool { return catalogue[i].Code >= c })
	if i < len(catalogue) && catalogue[i].Code == c {
		return catalogue[i]
	}
	return Entry{Code: c, Severity: Info, Text: string(c)}
}

// All returns the whole catalogue, sorted by code.
func All() []Entry { return append([]Entry(nil), catalogue...) }
