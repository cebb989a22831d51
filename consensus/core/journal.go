package core

import (
	"fmt"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/plan"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/heartbeat"
	"github.com/picket-ha/picket/resources"
)

func (c *Core) journal(kind string, index uint64, r reason.Reason, subject, text string) {
	if text == "" {
		text = r.Text()
	}
	c.do(Journal{Kind: kind, Index: index, Reason: r, Subject: subject, Text: text})
}

// explain tells what an applied entry did, in the words an operator uses.
func (c *Core) explain(e Applied) {
	if c.life == lifeCatchUp && !c.lead.ready {
		return // history, told when it happened
	}
	if !e.Result.OK() {
		if _, ok := e.Entry.Cmd.(state.LeaseTick); !ok {
			c.journal("refused", e.Index, e.Result.Refused, "", "refused: "+what(e.Entry.Cmd)+": "+e.Result.Refused.Text())
		}
		return
	}
	switch cmd := e.Entry.Cmd.(type) {
	case state.NodeAdmit:
		c.journal("node", e.Index, reason.Reason{}, string(cmd.Name), fmt.Sprintf("%s was admitted as a %s", cmd.Name, cmd.Role))
	case state.NodeRemove:
		c.journal("node", e.Index, reason.Reason{}, string(cmd.Name), fmt.Sprintf("%s was removed by %s", cmd.Name, cmd.Operator))
	case state.NodeUp:
		c.journal("node", e.Index, reason.Reason{}, string(cmd.Node), fmt.Sprintf("%s is up (boot %.8s, generation %d)", cmd.Node, cmd.Boot, e.Index))
	case state.NodeLeave:
		text := "wants to leave: it gives up what it owns"
		if cmd.Done {
			text = "left cleanly"
		}
		c.journal("node", e.Index, reason.Reason{}, string(cmd.Inc.Node), string(cmd.Inc.Node)+" "+text)
	case state.NodeMode:
		text := "is online again"
		if cmd.Standby {
			text = "goes standby"
		}
		c.journal("node", e.Index, reason.Reason{}, string(cmd.Node), fmt.Sprintf("%s %s, by %s", cmd.Node, text, cmd.Operator))
	case state.ConfigSet:
		c.journal("config", e.Index, reason.Reason{}, "", fmt.Sprintf("configuration revision %d set by %s", e.Index, cmd.Operator))
	case state.TokenMint:
		c.journal("node", e.Index, reason.Reason{}, "", "a join token was made by "+cmd.By)
	default:
		c.explainFence(e)
		c.explainGroup(e)
	}
}

// what names a command in an operator's words.
func what(cmd state.Command) string {
	switch cmd := cmd.(type) {
	case state.NodeAdmit:
		return "admission of " + string(cmd.Name)
	case state.NodeRemove:
		return "removal of " + string(cmd.Name)
	case state.NodeUp:
		return "announcement of " + string(cmd.Node)
	case state.NodeLeave:
		return "leave of " + string(cmd.Inc.Node)
	case state.NodeMode:
		return "standby or online of " + string(cmd.Node)
	case state.ConfigSet:
		return "configuration by " + cmd.Operator
	case state.FenceIntent:
		return "fence of " + string(cmd.Target.Node)
	case state.FenceBegin, state.FenceEnd:
		return "power attempt"
	case state.FenceConfirm:
		return "proof of a fence"
	case state.Grant:
		return "grant of group " + string(cmd.Group) + " to " + string(cmd.To.Node)
	case state.Started:
		return "start of group " + string(cmd.Group)
	case state.Revoke:
		return "revoke of group " + string(cmd.Group)
	case state.Released:
		return "release of group " + string(cmd.Group)
	case state.StartFailed:
		return "failed start of group " + string(cmd.Group)
	case state.StopFailed:
		return "failed stop of group " + string(cmd.Group)
	case state.MonitorFailed:
		return "failed monitor of group " + string(cmd.Group)
	case state.GroupMode:
		return "start or stop of group " + string(cmd.Group)
	case state.Move:
		return "move of group " + string(cmd.Group)
	case state.Cleanup:
		return "cleanup of group " + string(cmd.Group)
	case state.TokenMint:
		return "join token"
	}
	return "an entry"
}

func (c *Core) explainFence(e Applied) {
	line := func(id uint64, r reason.Reason, text string) {
		f := c.st.Fence(id)
		if f == nil {
			return
		}
		if text == "" {
			text = r.Text()
		}
		c.journal("fence", e.Index, r, string(f.Target.Node), text)
	}
	switch cmd := e.Entry.Cmd.(type) {
	case state.FenceIntent:
		line(e.Index, cmd.Reason, fmt.Sprintf("%s must be proven dead: %s", cmd.Target.Node, cmd.Reason.Text()))
	case state.FenceBegin:
		line(cmd.Fence, reason.Reason{}, fmt.Sprintf("attempt %d: %s powers it %s with %s", cmd.N, cmd.Executor, cmd.Op, cmd.Device))
	case state.FenceEnd:
		line(cmd.Fence, reason.Reason{}, fmt.Sprintf("attempt %d ended: %s, identity %s, in %s; %s", cmd.N, cmd.Report.Outcome, cmd.Report.Identity, ms(cmd.Report.Took), cmd.Report.Detail))
	case state.FenceConfirm:
		if f := c.st.Fence(cmd.Fence); f != nil {
			r := reason.New(reason.Code(map[state.EvidenceKind]reason.Code{state.PowerOff: reason.ProvenOff, state.Rebooted: reason.ProvenRebooted, state.Human: reason.ProvenHuman}[cmd.Evidence.Kind]),
				"node", string(f.Target.Node), "device", deviceOf(f, cmd.Evidence.Attempt), "operator", cmd.Evidence.Operator, "why", cmd.Evidence.Why)
			line(cmd.Fence, r, "")
		}
	}
}

func deviceOf(f *state.Fence, n int) string {
	for _, a := range f.Attempts {
		if a.N == n {
			return a.Device
		}
	}
	return ""
}

func (c *Core) explainGroup(e Applied) {
	line := func(g ids.Group, r reason.Reason, text string) { c.journal("group", e.Index, r, string(g), text) }
	switch cmd := e.Entry.Cmd.(type) {
	case state.Grant:
		line(cmd.Group, cmd.Why, fmt.Sprintf("group %s granted to %s at epoch %d: %s", cmd.Group, cmd.To.Node, e.Index, cmd.Why.Text()))
	case state.Started:
		line(cmd.Group, reason.Reason{}, fmt.Sprintf("group %s runs on %s", cmd.Group, cmd.Inc.Node))
	case state.Revoke:
		line(cmd.Group, cmd.Why, fmt.Sprintf("group %s is to be released: %s", cmd.Group, cmd.Why.Text()))
	case state.Released:
		line(cmd.Group, cmd.Why, fmt.Sprintf("group %s released by %s: %s", cmd.Group, cmd.Inc.Node, cmd.Why.Text()))
	case state.StartFailed:
		line(cmd.Group, reason.New(reason.StartFailedHere, "node", string(cmd.Inc.Node), "group", string(cmd.Group), "why", cmd.Why), fmt.Sprintf("group %s failed to start on %s: %s", cmd.Group, cmd.Inc.Node, cmd.Why))
	case state.StopFailed:
		line(cmd.Group, reason.New(reason.StopFailed, "node", string(cmd.Inc.Node), "group", string(cmd.Group), "why", cmd.Why), fmt.Sprintf("group %s failed to stop on %s: %s", cmd.Group, cmd.Inc.Node, cmd.Why))
	case state.MonitorFailed:
		line(cmd.Group, reason.New(reason.MonitorFailed, "resource", string(cmd.Resource), "node", string(cmd.Inc.Node), "group", string(cmd.Group), "why", cmd.Why), fmt.Sprintf("resource %s of group %s failed on %s: %s", cmd.Resource, cmd.Group, cmd.Inc.Node, cmd.Why))
	case state.GroupMode:
		line(cmd.Group, reason.Reason{}, fmt.Sprintf("group %s is to be %s, by %s", cmd.Group, map[bool]string{true: "stopped", false: "started"}[cmd.Stopped], cmd.Operator))
	case state.Cleanup:
		line(cmd.Group, reason.Reason{}, fmt.Sprintf("group %s: its failures were forgotten, by %s", cmd.Group, cmd.Operator))
	case state.Move:
		line(cmd.Group, reason.Reason{}, fmt.Sprintf("group %s is to move to %s, by %s", cmd.Group, cmd.To, cmd.Operator))
	}
}

// View is what a node knows at one moment, for status and why.
type View struct {
	State   state.State
	Plan    plan.Plan
	Facts   plan.Facts
	Leader  ids.Node
	Term    uint64
	Leading bool // this node leads and has decided: Plan is its own
	Inc     ids.Incarnation
	Links   []heartbeat.LinkView
	Peers   []heartbeat.PeerView
	Servers []Server
	Local   []LocalGroup
}

// LocalGroup is one group as this node runs it.
type LocalGroup struct {
	Name      ids.Group
	Phase     resources.Phase
	Resources []resources.ResourceState
}

// View returns what this node knows now.
func (c *Core) View() View {
	v := View{State: c.st, Plan: c.lastPlan, Facts: c.lastFacts, Leader: c.leader, Term: c.term, Leading: c.lead.is && c.lead.ready,
		Inc: c.inc, Links: c.det.Links(c.now), Peers: c.det.Peers(c.now), Servers: append([]Server(nil), c.servers...)}
	for _, n := range c.names() {
		l := c.groups[n]
		v.Local = append(v.Local, LocalGroup{n, l.runner.Phase(), l.runner.Resources()})
	}
	return v
}
