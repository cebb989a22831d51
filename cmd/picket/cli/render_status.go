package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/reason"
)

// maxAlso is how many conditions are listed below the first.
const maxAlso = 8

// renderStatus shows a status: state, status and action first, as zpool(8) does, then the tables.
func renderStatus(s control.Status, now time.Time) string {
	var b strings.Builder
	labelled(&b, "cluster", fmt.Sprintf("%s, quorum %d/%d, leader %s, term %d, index %d, revision %d", orDash(s.Cluster),
		s.Quorum.Reachable, s.Quorum.Voters, orDash(s.Leader), s.Term, s.Index, s.Revision))
	labelled(&b, "seen", seen(s.Node, s.Source, s.AgeMS, s.AsOf, now))
	labelled(&b, "state", stateWord(s))
	renderConditions(&b, s, now)
	if len(s.Nodes) > 0 {
		b.WriteString("\n")
		renderNodes(&b, s, now)
	}
	if len(s.Groups) > 0 {
		b.WriteString("\n")
		renderGroups(&b, s)
	}
	return b.String()
}

func stateWord(s control.Status) string {
	switch s.State {
	case control.StateOK:
		return "OK"
	case control.StateNoQuorum:
		return "NO QUORUM"
	}
	return strings.ToUpper(orDash(s.State))
}

func renderConditions(b *strings.Builder, s control.Status, now time.Time) {
	line := func(c control.Condition) string {
		t := plain(c.Text) + " " + code(c.Code)
		if !c.Since.IsZero() {
			t += " for " + sinceAt(c.Since, now)
		}
		return t
	}
	if len(s.Conditions) == 0 {
		if s.State == control.StateOK {
			labelled(b, "status", reason.New(reason.AllWell).Text()+" "+code(string(reason.AllWell)))
		}
		return
	}
	first := s.Conditions[0]
	labelled(b, "status", line(first))
	if first.Action != "" {
		labelled(b, "action", plain(first.Action))
	}
	if first.Severity != "info" && first.Code != "" {
		labelled(b, "see", "picket explain "+plain(first.Code))
	}
	for i, c := range s.Conditions[1:] {
		if i == maxAlso {
			labelled(b, "also", fmt.Sprintf("%d more conditions: picket status --json", len(s.Conditions)-1-maxAlso))
			break
		}
		labelled(b, "also", line(c))
		if c.Action != "" {
			labelled(b, "", "-> "+plain(c.Action))
		}
	}
}

func renderNodes(b *strings.Builder, s control.Status, now time.Time) {
	var rows [][]string
	for _, n := range s.Nodes {
		state := plain(n.State)
		switch n.State {
		case "lost", "fencing", "fenced":
			state = strings.ToUpper(state)
		}
		if n.Mode != "" && n.Mode != "active" {
			state += ", " + plain(n.Mode)
		}
		if !n.Voter {
			state += ", no vote"
		}
		heard := ageMS(n.AgeMS)
		if n.Name == s.Node {
			heard = "here"
		}
		if n.Source == control.SourceStale && s.Source != control.SourceStale {
			heard += " STALE"
		}
		devices := fence(n)
		rows = append(rows, []string{orDash(n.Name), orDash(n.Role), orDash(state), links(n), heard, sinceAt(n.Since, now), devices[0]})
		for _, d := range devices[1:] {
			rows = append(rows, []string{"", "", "", "", "", "", d})
		}
	}
	table(b, []string{"node", "role", "state", "links", "heard", "since", "fence device"}, rows)
}

// links counts the links that are up.
func links(n control.NodeStatus) string {
	if len(n.Links) == 0 {
		return "-"
	}
	up := 0
	for _, l := range n.Links {
		if l.State == "up" {
			up++
		}
	}
	return fmt.Sprintf("%d/%d", up, len(n.Links))
}

// fence has a line for each device: its state and the age of its check. What is wrong with it is a
// condition of its own.
func fence(n control.NodeStatus) []string {
	if n.Role == "witness" && len(n.Fence) == 0 {
		return []string{"not needed"}
	}
	if len(n.Fence) == 0 {
		return []string{"NONE"}
	}
	var out []string
	for _, f := range n.Fence {
		state := plain(f.State)
		if f.State != "ok" {
			state = strings.ToUpper(state)
		}
		t := plain(f.Device) + " " + state
		if f.AgeMS >= 0 && !f.Checked.IsZero() {
			t += " " + ageMS(f.AgeMS)
		}
		out = append(out, t)
	}
	return out
}

func renderGroups(b *strings.Builder, s control.Status) {
	var rows [][]string
	for _, g := range s.Groups {
		state := plain(g.State)
		switch g.State {
		case "held", "failed":
			state = strings.ToUpper(state)
		}
		why := plain(g.Reason.Text) + " " + code(g.Reason.Code)
		for _, r := range g.Resources {
			if r.State == "failed" {
				why += "; " + plain(r.ID) + " FAILED " + plain(r.Text)
			}
		}
		if g.Source == control.SourceStale {
			why += " (STALE " + ageMS(g.AgeMS) + ")"
		}
		rows = append(rows, []string{orDash(g.Name), orDash(g.Wanted), orDash(state), orDash(g.Owner), strings.TrimSpace(why)})
	}
	table(b, []string{"group", "wanted", "state", "node", "why"}, rows)
}
