package app

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/resources"
)

var _ control.Backend = (*Node)(nil)

// askTimeout bounds one question to the leader.
const askTimeout = 1500 * time.Millisecond

func (n *Node) view(ctx context.Context) (v core.View, err error) {
	err = n.driver.Do(ctx, func(c *core.Core) { v = c.View() })
	return v, err
}

// Status answers with the leader's view, and this node's own links. Without a leader it answers from
// the own log and says so.
func (n *Node) Status(ctx context.Context) (control.Status, error) {
	v, err := n.view(ctx)
	if err != nil {
		return control.Status{}, err
	}
	if v.Leading || v.Leader == "" || v.Leader == n.self {
		return n.render(v), nil
	}
	actx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	b, err := n.calls.CallIdempotent(actx, v.Leader, callStatus, nil)
	var s control.Status
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return n.render(v), nil
	}
	own := n.render(v)
	s.Node, s.Index, s.AsOf = own.Node, own.Index, own.AsOf
	for i := range s.Nodes {
		for _, o := range own.Nodes {
			if o.Name == s.Nodes[i].Name {
				s.Nodes[i].Links = o.Links
			}
		}
	}
	return s, nil
}

// render turns a view into the status that cmd/picket/control/README.md describes.
func (n *Node) render(v core.View) control.Status {
	now := time.Now()
	s := control.Status{Cluster: n.conf.Cluster, Node: string(n.self), Leader: string(v.Leader), Term: v.Term, Index: v.State.Index,
		ClusterID: n.conf.ClusterID, Revision: v.State.Revision, Version: Version, AsOf: now, Source: control.SourceLog,
		Conditions: []control.Condition{}, Nodes: []control.NodeStatus{}, Groups: []control.GroupStatus{}}
	if v.Leading {
		s.Source = control.SourceLeader
	} else {
		v.Plan = plan.Plan{Nodes: staleNodes(v)}
		s.AgeMS = leaderAge(v)
	}
	s.Quorum = quorum(n.self, v)
	for _, x := range v.State.Nodes {
		s.Nodes = append(s.Nodes, n.renderNode(v, x, s.Source))
	}
	for i := range v.State.Groups {
		s.Groups = append(s.Groups, renderGroup(v, &v.State.Groups[i], s.Source))
	}
	s.Conditions = append(s.Conditions, conditions(v, s.Quorum, now)...)
	s.State = control.StateOK
	for _, c := range s.Conditions {
		if c.Severity != "info" {
			s.State = control.StateDegraded
		}
	}
	if !s.Quorum.OK || v.Leader == "" {
		s.State = control.StateNoQuorum
	}
	return s
}

// staleNodes is what a node that does not lead can say of the others: what it hears itself.
func staleNodes(v core.View) []plan.NodeView {
	var out []plan.NodeView
	for _, x := range v.State.Nodes {
		st := "joining"
		for _, p := range v.Peers {
			if p.Peer != x.Name || !p.Ever {
				continue
			}
			if st = "online"; p.Silent {
				st = "lost"
			}
		}
		if x.Left {
			st = "left"
		}
		if x.Name == v.Inc.Node {
			st = "online"
		}
		out = append(out, plan.NodeView{Name: x.Name, State: st})
	}
	return out
}

func leaderAge(v core.View) int64 {
	for _, p := range v.Peers {
		if p.Peer == v.Leader && p.Ever {
			return p.Age.Milliseconds()
		}
	}
	return -1
}

func quorum(self ids.Node, v core.View) control.Quorum {
	q := control.Quorum{}
	for _, s := range v.Servers {
		if !s.Voter {
			continue
		}
		q.Voters++
		if s.Name == self || slices.ContainsFunc(v.Peers, func(p heartbeat.PeerView) bool { return p.Peer == s.Name && p.Ever && !p.Silent }) {
			q.Reachable++
		}
	}
	q.OK = q.Voters > 0 && q.Reachable*2 > q.Voters
	return q
}

func (n *Node) renderNode(v core.View, x state.Node, source string) control.NodeStatus {
	out := control.NodeStatus{Name: string(x.Name), Role: string(x.Role), State: "joining", Mode: "active", Incarnation: x.Up.String(),
		BootID: string(x.Up.Boot), Links: []control.LinkStatus{}, Fence: []control.FenceStatus{}, Source: source, AgeMS: -1, Version: x.Version, Since: at(x.UpAt)}
	if x.Standby {
		out.Mode = "standby"
	}
	for _, p := range v.Plan.Nodes {
		if p.Name == x.Name {
			out.State = p.State
		}
	}
	out.Voter = slices.ContainsFunc(v.Servers, func(s core.Server) bool { return s.Name == x.Name && s.Voter })
	for _, p := range v.Peers {
		if p.Peer == x.Name && p.Ever {
			out.AgeMS = p.Age.Milliseconds()
		}
	}
	if x.Name == n.self {
		out.AgeMS = 0
	}
	for _, l := range v.Links {
		if l.Peer == x.Name || x.Name == n.self {
			out.Links = append(out.Links, renderLink(v.State, l))
		}
	}
	for _, f := range v.Facts.Nodes {
		if f.Name == x.Name && f.TickAge >= 0 && len(v.State.Owned(x.Name, x.Up.Boot)) > 0 {
			ms := f.TickAge.Milliseconds()
			out.TickAgeMS = &ms
		}
	}
	if nc := v.State.Config.Node(x.Name); nc != nil {
		for _, d := range nc.Fence {
			out.Fence = append(out.Fence, renderDevice(v, x.Name, d))
		}
	}
	return out
}

func renderLink(s state.State, l heartbeat.LinkView) control.LinkStatus {
	out := control.LinkStatus{Peer: string(l.Peer), Interface: l.Interface, State: string(l.State), AgeMS: -1}
	if l.Age >= 0 {
		out.AgeMS = l.Age.Milliseconds()
	}
	if p := s.Node(l.Peer); p != nil {
		for _, a := range p.Links {
			if a.Interface == l.Interface {
				out.Addr = a.Addr
			}
		}
	}
	return out
}

// renderDevice shows the newest check of a device; a failure that any node saw outweighs a success.
func renderDevice(v core.View, node ids.Node, d state.FenceDevice) control.FenceStatus {
	out := control.FenceStatus{Device: d.ID, Level: d.Level, State: "unproven", AgeMS: -1, Text: "it has not been checked yet"}
	for _, f := range v.Facts.Devices {
		if f.Node != node || f.Device != d.ID || f.Executor == node || (out.State == "failed" && f.OK) {
			continue
		}
		out.AgeMS, out.By, out.Text = f.Age.Milliseconds(), string(f.Executor), f.Detail
		out.Checked = time.Now().Add(-f.Age)
		switch {
		case f.OK:
			out.State = "ok"
		case f.Identity == "unproven":
			out.State = "unproven"
		default:
			out.State = "failed"
		}
	}
	return out
}

func renderGroup(v core.View, g *state.Group, source string) control.GroupStatus {
	out := control.GroupStatus{Name: string(g.Name), Wanted: "started", State: "stopped", Owner: string(g.Owner.Node), Epoch: uint64(g.Epoch),
		Resources: []control.ResourceStatus{}, Since: at(g.Since), Source: source, Reason: reasonText(g.Why)}
	if g.Stopped || v.State.Config.Group(g.Name) == nil {
		out.Wanted = "stopped"
	}
	switch g.Phase {
	case state.PhaseStarted:
		out.State = "running"
	case state.PhaseGranted:
		out.State = "starting"
	case state.PhaseRevoked:
		out.State = "stopping"
	case state.PhaseStopFailed:
		out.State = "held"
	}
	if v.Leader == "" && g.Epoch != 0 {
		out.State, out.Reason = unled(v, g, out.State)
	}
	for _, p := range v.Plan.Groups {
		if p.Name == g.Name {
			out.State, out.Reason = p.State, reasonText(p.Reason)
		}
	}
	list := g.Held
	if c := v.State.Config.Group(g.Name); g.Epoch == 0 && c != nil {
		list = c.Resources
	}
	for _, r := range list {
		out.Resources = append(out.Resources, renderResource(v, g.Name, r, out.State))
	}
	return out
}

// unled says what this node can say of an owned group while nobody leads: what it does itself, or what
// its log said last.
func unled(v core.View, g *state.Group, last string) (string, control.ReasonText) {
	if g.Owner.Node != v.Inc.Node {
		return last, reasonText(reason.New(reason.LastKnown))
	}
	for _, l := range v.Local {
		if l.Name == g.Name && l.Phase != resources.PhaseStopped {
			return last, reasonText(reason.New(reason.LastKnown))
		}
	}
	return "stopped", reasonText(reason.New(reason.LeaseLost, "node", string(g.Owner.Node)))
}

// renderResource shows what this node itself sees of a resource it runs, and else follows the group.
func renderResource(v core.View, g ids.Group, r state.ResourceConfig, group string) control.ResourceStatus {
	out := control.ResourceStatus{ID: string(r.ID), Kind: r.Kind(), State: group}
	if group == "held" || group == "failed" {
		out.State = "stopped"
		if group == "held" && v.State.Group(g).Epoch != 0 {
			out.State, out.Text = "unknown", "it may still run on its old owner"
		}
	}
	for _, l := range v.Local {
		if l.Name != g {
			continue
		}
		for _, x := range l.Resources {
			if x.ID == r.ID && x.State != resources.StateUnknown {
				out.State, out.Text = x.State, x.Err
			}
		}
	}
	return out
}

// conditions renders what an operator should know, the most damaging first.
func conditions(v core.View, q control.Quorum, now time.Time) []control.Condition {
	var list []plan.Condition
	if !q.OK || v.Leader == "" {
		r := reason.New(reason.NoQuorum, "reachable", itoa(q.Reachable), "voters", itoa(q.Voters))
		if q.OK {
			r = reason.New(reason.NoLeader)
		}
		list = append(list, plan.Condition{Reason: r})
	}
	list = append(list, v.Plan.Conditions...)
	for _, s := range v.Servers {
		if q.OK && s.Voter && s.Name != v.Inc.Node && slices.ContainsFunc(v.Peers, func(p heartbeat.PeerView) bool { return p.Peer == s.Name && p.Silent }) {
			list = append(list, plan.Condition{Subject: string(s.Name), Reason: reason.New(reason.VoterDown, "node", string(s.Name))})
		}
	}
	if q.Voters > 0 && q.Voters < 3 {
		list = append(list, plan.Condition{Reason: reason.New(reason.TooFewVoters, "voters", itoa(q.Voters))})
	}
	for _, nic := range deafNICs(v) {
		list = append(list, plan.Condition{Subject: string(v.Inc.Node) + ":" + nic, Reason: reason.New(reason.NICDeaf, "node", string(v.Inc.Node), "interface", nic)})
	}
	for _, l := range v.Links {
		if l.State == heartbeat.LinkDead && !silent(v, l.Peer) && !slices.Contains(deafNICs(v), l.Interface) {
			list = append(list, plan.Condition{Subject: string(l.Peer) + ":" + l.Interface, Reason: reason.New(reason.LinkDead, "node", string(l.Peer), "interface", l.Interface)})
		}
	}
	slices.SortStableFunc(list, func(a, b plan.Condition) int {
		return int(reason.Explain(b.Reason.Code).Severity) - int(reason.Explain(a.Reason.Code).Severity)
	})
	var out []control.Condition
	for _, c := range list {
		out = append(out, control.Condition{Code: string(c.Reason.Code), Text: c.Reason.Text(), Action: c.Reason.Action(), Subject: c.Subject, Severity: severity(c.Reason.Code)})
	}
	return out
}

// deafNICs lists the NICs of this node that hear none of two peers or more: then the NIC is the news.
func deafNICs(v core.View) []string {
	all, dead := map[string]int{}, map[string]int{}
	for _, l := range v.Links {
		all[l.Interface]++
		if l.State == heartbeat.LinkDead {
			dead[l.Interface]++
		}
	}
	var out []string
	for nic, n := range all {
		if n > 1 && dead[nic] == n {
			out = append(out, nic)
		}
	}
	slices.Sort(out)
	return out
}

// silent reports whether a peer is heard on no link: then its node is the news, not its cables.
func silent(v core.View, p ids.Node) bool {
	return slices.ContainsFunc(v.Peers, func(x heartbeat.PeerView) bool { return x.Peer == p && x.Silent })
}

func severity(c reason.Code) string {
	switch reason.Explain(c).Severity {
	case reason.Critical:
		return "critical"
	case reason.Warning:
		return "warning"
	}
	return "info"
}

func reasonText(r reason.Reason) control.ReasonText {
	return control.ReasonText{Code: string(r.Code), Text: r.Text(), Action: r.Action()}
}

func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// Events streams what this node saw.
func (n *Node) Events(ctx context.Context, since uint64, follow bool, emit func(control.Event) error) error {
	return n.events.Events(ctx, since, follow, emit)
}

// FenceHistory lists every fence that the log remembers, oldest first.
func (n *Node) FenceHistory(context.Context) ([]control.FenceRecord, error) {
	out := []control.FenceRecord{}
	s := n.fsm.State()
	for _, f := range s.Fences {
		r := control.FenceRecord{Intent: f.ID, Node: string(f.Target.Node), BootID: string(f.Target.Boot), Code: string(f.Reason.Code), Text: f.Reason.Text(),
			State: "open", Opened: at(f.At), Operator: f.Operator, Attempts: []control.FenceAttempt{}}
		for _, a := range f.Attempts {
			level := 0
			if d := (&state.NodeConfig{Fence: f.Devices}).Device(a.Device); d != nil {
				level = d.Level
			}
			x := control.FenceAttempt{Device: a.Device, Level: level, Executor: string(a.Executor), Outcome: "running", Began: at(a.At)}
			if a.Report != nil {
				x.Outcome, x.Text, x.TookMS = string(a.Report.Outcome), a.Report.Detail, a.Report.Took.Milliseconds()
			}
			r.Attempts = append(r.Attempts, x)
		}
		if !f.Open() {
			r.State, r.Closed, r.Evidence = "confirmed", at(f.DoneAt), string(f.Evidence.Kind)
			r.EvidenceText = state.Proof(&f).Text()
			if f.Evidence.Operator != "" {
				r.Operator, r.Reason = f.Evidence.Operator, f.Evidence.Why
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// Config returns the cluster file in force.
func (n *Node) Config(context.Context) (control.ConfigText, error) {
	s := n.fsm.State()
	return control.ConfigText{Source: s.Config.Source, Revision: s.Revision}, nil
}

// Why explains one group or node by the leader's own verdicts.
func (n *Node) Why(ctx context.Context, subject string) (control.Explanation, error) {
	v, err := n.view(ctx)
	if err != nil {
		return control.Explanation{}, err
	}
	if !v.Leading && v.Leader != "" && v.Leader != n.self {
		actx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		var e control.Explanation
		b, err := n.calls.CallIdempotent(actx, v.Leader, callWhy, []byte(subject))
		if err == nil && json.Unmarshal(b, &e) == nil {
			return e, nil
		}
		var re *mesh.RemoteError
		if errors.As(err, &re) {
			return control.Explanation{}, fromRemote(re)
		}
	}
	return explain(v, subject, time.Now())
}
