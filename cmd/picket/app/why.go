package app

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

func itoa(n int) string { return strconv.Itoa(n) }

// explain renders the plan's own verdicts on a group or a node.
func explain(v core.View, subject string, now time.Time) (control.Explanation, error) {
	e := control.Explanation{Subject: subject, Lines: []control.WhyLine{}, AsOf: now, Source: control.SourceLeader}
	if !v.Leading {
		e.Source, e.AgeMS = control.SourceLog, leaderAge(v)
	}
	if v.State.Group(ids.Group(subject)) != nil {
		return explainGroup(v, e), nil
	}
	if v.State.Node(ids.Node(subject)) != nil {
		return explainNode(v, e), nil
	}
	return e, control.Usage("%q is neither a group nor a node of this cluster: it has %s", subject, known(v.State))
}

// maxKnown bounds the names that an error lists.
const maxKnown = 12

// known names the nodes and groups there are, for somebody who mistyped one.
func known(s state.State) string {
	var nodes, groups []string
	for _, n := range s.Nodes {
		nodes = append(nodes, string(n.Name))
	}
	for _, g := range s.Groups {
		groups = append(groups, string(g.Name))
	}
	list := func(what string, names []string) string {
		switch n := len(names); {
		case n == 0:
			return "no " + what
		case n > maxKnown:
			return fmt.Sprintf("%ss %s and %d more", what, strings.Join(names[:maxKnown], ", "), n-maxKnown)
		}
		return what + "s " + strings.Join(names, ", ")
	}
	return list("node", nodes) + " and " + list("group", groups)
}

func explainGroup(v core.View, e control.Explanation) control.Explanation {
	e.Kind = "group"
	g := v.State.Group(ids.Group(e.Subject))
	var gv *plan.GroupView
	for i := range v.Plan.Groups {
		if v.Plan.Groups[i].Name == g.Name {
			gv = &v.Plan.Groups[i]
		}
	}
	if gv == nil {
		r := reason.New(reason.NoLeader)
		e.Verdict, e.Code, e.Action = fmt.Sprintf("group %s: by the last known log it is owned by %q; nobody leads the cluster now", g.Name, g.Owner.Node), string(r.Code), r.Action()
		return e
	}
	where := ""
	if g.Epoch != 0 {
		where = fmt.Sprintf(" on %s since epoch %d", g.Owner.Node, g.Epoch)
	}
	e.Verdict = fmt.Sprintf("group %s is %s%s: %s", g.Name, gv.State, where, gv.Reason.Text())
	e.Code, e.Action = string(gv.Reason.Code), gv.Reason.Action()
	for _, x := range gv.Nodes {
		l := control.WhyLine{Name: string(x.Node), Verdict: x.Is, Code: string(x.Reason.Code), Text: x.Reason.Text(), Source: control.SourceLeader, AgeMS: -1}
		for _, f := range v.Facts.Nodes {
			if f.Name == x.Node && f.Ever {
				l.AgeMS = f.Age.Milliseconds()
			}
			if f.Name == x.Node && f.Name == v.Facts.Self {
				l.AgeMS = 0
			}
		}
		e.Lines = append(e.Lines, l)
	}
	return e
}

func explainNode(v core.View, e control.Explanation) control.Explanation {
	e.Kind = "node"
	n := v.State.Node(ids.Node(e.Subject))
	e.Verdict = fmt.Sprintf("%s: nobody leads the cluster now", n.Name)
	for _, x := range v.Plan.Nodes {
		if x.Name != n.Name {
			continue
		}
		e.Verdict = fmt.Sprintf("%s is %s", n.Name, x.State)
		if !x.Reason.IsZero() {
			e.Verdict += ": " + x.Reason.Text()
			e.Code, e.Action = string(x.Reason.Code), x.Reason.Action()
		}
	}
	for _, g := range v.Plan.Groups {
		for _, x := range g.Nodes {
			if x.Node == n.Name {
				e.Lines = append(e.Lines, control.WhyLine{Name: "group " + string(g.Name), Verdict: x.Is, Code: string(x.Reason.Code), Text: x.Reason.Text(), Source: control.SourceLeader, AgeMS: -1})
			}
		}
	}
	for _, c := range v.Plan.Conditions {
		if c.Subject == string(n.Name) && string(c.Reason.Code) != e.Code {
			e.Lines = append(e.Lines, control.WhyLine{Name: "condition", Verdict: strings.ToLower(severity(c.Reason.Code)), Code: string(c.Reason.Code), Text: c.Reason.Text(), Source: control.SourceLeader, AgeMS: -1})
		}
	}
	for _, l := range v.Links {
		if l.Peer == n.Name {
			age := int64(-1)
			if l.Age >= 0 {
				age = l.Age.Milliseconds()
			}
			e.Lines = append(e.Lines, control.WhyLine{Name: "link " + l.Interface, Verdict: string(l.State), Text: "heartbeats heard by " + string(v.Facts.Self), Source: control.SourceLocal, AgeMS: age})
		}
	}
	return e
}
