package story

import (
	"fmt"
	"strings"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
)

// Show renders a state, one line for each node, group, fence and attempt, token and note.
func Show(s state.State) string {
	var b strings.Builder
	fmt.Fprintf(&b, "index %d revision %d\n", s.Index, s.Revision)
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "node %s %s up=%s", n.Name, n.Role, n.Up)
		flag(&b, "leaving", n.Leaving && !n.Left)
		flag(&b, "left", n.Left)
		flag(&b, "standby", n.Standby)
		if n.TickIndex != 0 {
			fmt.Fprintf(&b, " tick=%d@%d", n.TickK, n.TickIndex)
		}
		boots(&b, "condemned", n.Condemned)
		boots(&b, "past", n.Past)
		b.WriteString("\n")
	}
	for _, g := range s.Groups {
		showGroup(&b, g)
	}
	for _, f := range s.Fences {
		showFence(&b, f)
	}
	for _, t := range s.Tokens {
		fmt.Fprintf(&b, "token ...%s by=%s used=%d %s\n", t.Hash[len(t.Hash)-4:], t.By, t.Used, t.UsedBy)
	}
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "note %d %s: %s\n", n.Index, n.Operator, n.Text)
	}
	return b.String()
}

func flag(b *strings.Builder, name string, is bool) {
	if is {
		b.WriteString(" " + name)
	}
}

func boots(b *strings.Builder, name string, list []ids.Boot) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, " %s=%v", name, list)
}

func showGroup(b *strings.Builder, g state.Group) {
	fmt.Fprintf(b, "group %s", g.Name)
	if g.Epoch != 0 {
		fmt.Fprintf(b, " owner=%s epoch=%d %s", g.Owner, g.Epoch, g.Phase)
		for _, r := range g.Held {
			fmt.Fprintf(b, " %s", r.ID)
		}
	}
	if g.RevokeFor != 0 {
		fmt.Fprintf(b, " revoke=%d for=%v", g.RevokeAt, g.RevokeFor)
	}
	flag(b, "stopped", g.Stopped)
	if g.MoveTo != "" {
		fmt.Fprintf(b, " move=%s", g.MoveTo)
	}
	for _, f := range g.Failures {
		fmt.Fprintf(b, " failed=%s*%d", f.Node, f.Count)
		flag(b, "start", f.Start)
	}
	if !g.Why.IsZero() {
		fmt.Fprintf(b, " why=[%s]", g.Why)
	}
	b.WriteString("\n")
}

func showFence(b *strings.Builder, f state.Fence) {
	fmt.Fprintf(b, "fence %d %s groups=%v drain=%v", f.ID, f.Target, f.Groups, f.Drain)
	flag(b, "no-power", f.NoPower)
	if f.Operator != "" {
		fmt.Fprintf(b, " operator=%s", f.Operator)
	}
	if f.Open() {
		b.WriteString(" open")
	} else {
		fmt.Fprintf(b, " confirmed=%d by %s", f.Confirmed, f.Evidence.Kind)
	}
	if !f.Reason.IsZero() {
		fmt.Fprintf(b, " why=[%s]", f.Reason)
	}
	b.WriteString("\n")
	for _, a := range f.Attempts {
		fmt.Fprintf(b, "  attempt %d %s %s with %s", a.N, a.Executor, a.Op, a.Device)
		if a.Report != nil {
			fmt.Fprintf(b, ": %s %s", a.Report.Outcome, a.Report.Identity)
		}
		b.WriteString("\n")
	}
}
