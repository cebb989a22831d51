package plan

import (
	"slices"
	"strings"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// groupViews says of every group how it stands and why, from the same values the ops came from.
func groupViews(s state.State, f Facts, v nodeViews, places []placement) []GroupView {
	var out []GroupView
	for _, p := range places {
		gv := GroupView{Name: p.group.Name, Nodes: slices.Clone(p.nodes)}
		gv.State, gv.Reason = p.stands(s, f, v)
		for i := range gv.Nodes {
			if p.group.Epoch != 0 && gv.Nodes[i].Node == p.group.Owner.Node {
				gv.Nodes[i].Is = "owner"
				if gv.Nodes[i].Reason.IsZero() || !excludes(gv.Nodes[i].Reason) {
					gv.Nodes[i].Reason = p.group.Why
				}
			} else if p.group.Epoch != 0 && gv.Nodes[i].Is == "chosen" {
				gv.Nodes[i].Is = "eligible"
				if gv.State == "held" {
					gv.Nodes[i].Reason = reason.New(reason.NextAfterFence, "node", string(gv.Nodes[i].Node), "owner", string(p.group.Owner.Node))
				}
			}
		}
		out = append(out, gv)
	}
	return out
}

func excludes(r reason.Reason) bool {
	return r.Code != reason.Eligible && r.Code != reason.PreferredNode && r.Code != reason.OnlyCandidate && r.Code != reason.Moved
}

func (p *placement) stands(s state.State, f Facts, v nodeViews) (string, reason.Reason) {
	g := p.group
	if g.Epoch == 0 {
		return p.unowned()
	}
	owner := string(g.Owner.Node)
	x := v.get(g.Owner.Node)
	if x == nil || g.Owner.Boot != x.node.Up.Boot || s.IsCondemned(g.Owner.Node, g.Owner.Boot) {
		return "held", p.heldBy(s, f, v)
	}
	if x.lost || (!x.here && x.fact.Ever) {
		return "held", reason.New(reason.WaitsForFence, "node", owner)
	}
	switch g.Phase {
	case state.PhaseStarted:
		why := g.Why
		if p.conf != nil && !p.conf.Failback && !p.best.IsZero() && p.best.Node != g.Owner.Node {
			why = reason.New(reason.Stays, "node", owner)
		}
		return "running", why
	case state.PhaseGranted:
		return "starting", reason.New(reason.Starting, "node", owner)
	case state.PhaseStopFailed:
		return "held", g.Why
	}
	return "stopping", reason.New(reason.Releasing, "node", owner, "why", g.Why.Text())
}

func (p *placement) unowned() (string, reason.Reason) {
	g := p.group
	switch {
	case g.Stopped:
		return "stopped", reason.New(reason.GroupStopped, "group", string(g.Name))
	case p.conf == nil:
		return "stopped", reason.New(reason.Removed)
	case !p.wait.IsZero():
		return "held", p.wait
	case !p.best.IsZero():
		return "starting", reason.New(reason.Starting, "node", string(p.best.Node))
	}
	var why []string
	failed := len(p.nodes) > 0
	for _, n := range p.nodes {
		why = append(why, n.Reason.Text())
		failed = failed && n.Reason.Code == reason.StartFailedHere
	}
	if failed {
		return "failed", reason.New(reason.GroupFailed, "group", string(g.Name), "why", strings.Join(why, "; "))
	}
	return "held", reason.New(reason.NoCandidate, "why", strings.Join(why, "; "))
}

// heldBy says what a group waits for while its owner is condemned.
func (p *placement) heldBy(s state.State, f Facts, v nodeViews) reason.Reason {
	g := p.group
	fe := s.OpenFence(g.Owner.Node, g.Owner.Boot)
	if fe == nil {
		return reason.New(reason.WaitsForFence, "node", string(g.Owner.Node))
	}
	return fenceHold(s, f, v, fe)
}

// fenceHold says why an open fence is not confirmed yet.
func fenceHold(s state.State, f Facts, v nodeViews, fe *state.Fence) reason.Reason {
	x := v.get(fe.Target.Node)
	node, groups := string(fe.Target.Node), joinGroups(s.Owned(fe.Target.Node, fe.Target.Boot))
	if _, ok := proven(&s, fe); ok {
		ff := f.fence(fe.ID)
		if x != nil && !quiet(s, x, fe) {
			return reason.New(reason.FenceContradicted, "node", node)
		}
		return reason.New(reason.WaitsForDrain, "node", node, "left", dur(max(0, fe.Drain-ff.SinceProof)))
	}
	if heard := f.fence(fe.ID).Heard; heard != "" && heard != fe.Target.Boot && x != nil && heard == x.node.Up.Boot {
		if why := state.Admissible(&s, fe, state.Evidence{Kind: state.Rebooted, NewBoot: heard}); why != "" {
			return reason.New(reason.RebootUnproven, "node", node, "why", why, "groups", groups)
		}
	}
	if len(fe.Devices) == 0 && !fe.NoPower {
		return reason.New(reason.FenceNoDevice, "node", node)
	}
	for i := len(fe.Attempts) - 1; i >= 0; i-- {
		a := fe.Attempts[i]
		if a.Report == nil {
			continue
		}
		why := a.Report.Detail
		if dev := (&state.NodeConfig{Fence: fe.Devices}).Device(a.Device); a.Report.Outcome == "off" && dev != nil {
			return reason.New(reason.FenceIdentity, "node", node, "why", state.Admissible(&s, fe, state.Evidence{Kind: state.PowerOff, Attempt: a.N}))
		}
		if why == "" {
			why = string(a.Report.Outcome)
		}
		return reason.New(reason.FenceUnproven, "node", node, "why", why, "groups", groups)
	}
	if len(fe.Devices) == 0 {
		return reason.New(reason.WaitsForFence, "node", node)
	}
	if dev, _ := nextDevice(fe); executor(f, v, fe.Target.Node, dev.ID, fe.Begun) == "" {
		return reason.New(reason.FenceNoExecutor, "node", node)
	}
	return reason.New(reason.WaitsForFence, "node", node)
}

// conditions collects what an operator should know, the most damaging first.
func conditions(s state.State, f Facts, v nodeViews, groups []GroupView) []Condition {
	var out []Condition
	add := func(subject string, r reason.Reason) { out = append(out, Condition{subject, r}) }
	for i := range s.Fences {
		if fe := &s.Fences[i]; fe.Open() {
			add(string(fe.Target.Node), fenceHold(s, f, v, fe))
		}
	}
	for _, g := range groups {
		if (g.State == "held" || g.State == "failed") && !told(out, g.Reason) {
			add(string(g.Name), g.Reason)
		}
	}
	for _, g := range s.Groups {
		for _, fl := range g.Failures {
			add(string(g.Name), reason.New(reason.FailedHere, "group", string(g.Name), "node", string(fl.Node), "why", fl.Why))
		}
	}
	for _, gc := range s.Config.Groups {
		for _, n := range gc.Nodes {
			if r := reason.New(reason.NodeNotAdmitted, "node", string(n), "group", string(gc.Name)); s.Node(n) == nil && !s.Config.SingleNode && !told(out, r) {
				add(string(n), r)
			}
		}
	}
	for _, x := range v {
		name := string(x.node.Name)
		if st := x.state(); st == "fencing" {
			continue // its open fence is told already
		} else if st != "online" && !x.reason().IsZero() {
			add(name, x.reason())
		} else if x.node.Standby {
			add(name, reason.New(reason.NodeStandby, "node", name))
		}
	}
	out = append(out, deviceConditions(s, f, v)...)
	if s.Revision == 0 {
		add(string(f.Self), reason.New(reason.NoConfig))
	}
	slices.SortStableFunc(out, func(a, b Condition) int {
		return int(reason.Explain(b.Reason.Code).Severity) - int(reason.Explain(a.Reason.Code).Severity)
	})
	return slices.CompactFunc(out, func(a, b Condition) bool { return a.Subject == b.Subject && a.Reason.String() == b.Reason.String() })
}

// told reports whether the very same reason is among the conditions already: a group that is held for a
// fence has nothing to add to it.
func told(list []Condition, r reason.Reason) bool {
	return slices.ContainsFunc(list, func(c Condition) bool { return c.Reason.String() == r.String() })
}

// deviceConditions names fence devices that no node can use, and owners without one.
func deviceConditions(s state.State, f Facts, v nodeViews) []Condition {
	var out []Condition
	owners := map[ids.Node]bool{}
	for _, g := range s.Config.Groups {
		for _, n := range g.Nodes {
			owners[n] = true
		}
	}
	for _, nc := range s.Config.Nodes {
		if owners[nc.Name] && len(nc.Fence) == 0 {
			out = append(out, Condition{string(nc.Name), reason.New(reason.FenceNoDevice, "node", string(nc.Name))})
		}
		for _, d := range nc.Fence {
			if d.IPMI != nil && d.IPMI.TrustIdentity {
				out = append(out, Condition{string(nc.Name), reason.New(reason.FenceTrusted, "device", d.ID, "node", string(nc.Name))})
			}
			for _, df := range f.Devices {
				x := v.get(df.Executor)
				if df.Node != nc.Name || df.Device != d.ID || df.Executor == nc.Name || x == nil || !x.here {
					continue // what a node that is gone once saw is no news
				}
				if df.Identity == string(fencing.IdentityMismatch) {
					out = append(out, Condition{string(nc.Name), reason.New(reason.FenceIdentity, "node", string(nc.Name), "why", df.Detail)})
				} else if !df.OK {
					out = append(out, Condition{string(nc.Name), reason.New(reason.FenceDeviceFailed, "device", d.ID, "node", string(nc.Name), "executor", string(df.Executor), "why", df.Detail)})
				}
			}
		}
	}
	return out
}
