package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// fences decides which boots to condemn and what the next step of every fence is.
func fences(s state.State, f Facts, v nodeViews) []Op {
	var ops []Op
	for _, x := range v {
		ops = append(ops, intents(s, f, x)...)
	}
	for i := range s.Fences {
		fe := &s.Fences[i]
		ops = append(ops, expire(fe, f.fence(fe.ID))...)
		x := v.get(fe.Target.Node)
		if x == nil {
			continue
		}
		if fe.Open() {
			ops = append(ops, pursue(s, f, v, x, fe)...)
		} else {
			ops = append(ops, powerOn(f, v, x, fe)...)
		}
	}
	return ops
}

// intents condemns the boots of one node that must die: an owner that is lost, and an owner that could
// not stop what it was told to stop. A node that owns nothing is left alone (invariant I7).
func intents(s state.State, f Facts, x nodeView) []Op {
	if x.self {
		return nil // a leader that cannot stop its own group gives up its leadership first
	}
	var ops []Op
	for _, inc := range s.OwnedBoots(x.node.Name) {
		if s.IsCondemned(inc.Node, inc.Boot) {
			continue
		}
		why := stopFailed(s, f, inc)
		if x.lost && inc.Boot == x.node.Up.Boot {
			why = x.why
		}
		if why.IsZero() {
			continue
		}
		ops = append(ops, Op{"intent/" + string(inc.Node) + "/" + string(inc.Boot), state.FenceIntent{Target: inc, Reason: why}})
	}
	return ops
}

// stopFailed returns why a boot must be fenced for not stopping: it said so, or its revoke is long
// past its deadline (rule 14).
func stopFailed(s state.State, f Facts, inc ids.Incarnation) reason.Reason {
	t := timing(s)
	for i := range s.Groups {
		g := &s.Groups[i]
		if g.Epoch == 0 || !g.Owner.SameBoot(inc) {
			continue
		}
		if g.Phase == state.PhaseStopFailed {
			return g.Why
		}
		if g.Phase != state.PhaseRevoked {
			continue
		}
		for _, r := range f.Revokes {
			if r.Group == g.Name && r.Age > g.RevokeFor+t.Lost() && f.Settled > g.RevokeFor+t.Lost() {
				return reason.New(reason.StopFailed, "node", string(inc.Node), "group", string(g.Name), "why", "no answer in "+dur(r.Age))
			}
		}
	}
	return reason.Reason{}
}

func expire(fe *state.Fence, ff FenceFact) []Op {
	var ops []Op
	for _, a := range fe.Attempts {
		if (a.End == 0 || a.MayStrike()) && slices.Contains(ff.Expired, a.N) {
			ops = append(ops, Op{fmt.Sprintf("end/%d/%d", fe.ID, a.N), state.FenceEnd{Fence: fe.ID, N: a.N,
				Report: fencing.Report{Op: a.Op, Outcome: fencing.OutcomeExpired, Identity: fencing.IdentityUnproven, Detail: "no answer from " + string(a.Executor)}}})
		}
	}
	return ops
}

// pursue takes an open fence one step further: confirm on proof, or try the next device.
func pursue(s state.State, f Facts, v nodeViews, x *nodeView, fe *state.Fence) []Op {
	ff := f.fence(fe.ID)
	confirm := func(ev state.Evidence) []Op {
		return []Op{{fmt.Sprintf("confirm/%d", fe.ID), state.FenceConfirm{Fence: fe.ID, Evidence: ev}}}
	}
	// A new boot of the same machine, heard after the intent, proves the old one dead (I3). The drain
	// counts from the intent at the latest.
	if ff.Heard != "" && ff.Heard != fe.Target.Boot && ff.Heard == x.node.Up.Boot {
		ev := state.Evidence{Kind: state.Rebooted, NewBoot: ff.Heard}
		if state.Admissible(&s, fe, ev) == "" {
			if ff.SinceIntent < fe.Drain {
				return nil
			}
			return confirm(ev)
		}
	}
	if ev, ok := proven(&s, fe); ok {
		if ff.SinceProof >= fe.Drain && quiet(s, x, fe) {
			return confirm(ev)
		}
		return nil
	}
	if fe.NoPower && !x.gone(f, timing(s)) {
		return nil // the new boot is expected to speak: no command is needed
	}
	return nextAttempt(s, f, v, x, fe, ff)
}

// proven returns the first attempt that proves the target off.
func proven(s *state.State, fe *state.Fence) (state.Evidence, bool) {
	for _, a := range fe.Attempts {
		ev := state.Evidence{Kind: state.PowerOff, Attempt: a.N}
		if a.Op == fencing.OpOff && state.Admissible(s, fe, ev) == "" {
			return ev, true
		}
	}
	return state.Evidence{}, false
}

// quiet reports whether nothing authenticated of the condemned boot has arrived for two heartbeat
// intervals: a machine that talks is not off, whatever its BMC says (rule 9).
func quiet(s state.State, x *nodeView, fe *state.Fence) bool {
	if !x.fact.Ever {
		// This process never heard it. If another does, and no later boot has announced itself, what it
		// hears is the boot that should be dead.
		return !x.fact.Others || x.node.Up.Boot != fe.Target.Boot
	}
	if x.fact.Boot != fe.Target.Boot {
		return true
	}
	return x.fact.Age >= 2*timing(s).Interval && !x.fact.Others
}

// nextAttempt begins the next power attempt when none is under way and the pause is over.
func nextAttempt(s state.State, f Facts, v nodeViews, x *nodeView, fe *state.Fence, ff FenceFact) []Op {
	if len(fe.Devices) == 0 || s.NewBootOwns(fe) {
		return nil
	}
	under := 0
	for _, a := range fe.Attempts {
		if a.End == 0 {
			under++
		}
	}
	if under >= state.MaxUnderWay {
		return nil
	}
	for _, a := range fe.Attempts {
		if a.End == 0 && !slices.Contains(ff.Overdue, a.N) {
			return nil
		}
	}
	dev, round := nextDevice(fe)
	if ff.SinceEnd >= 0 && round > 0 && ff.SinceEnd < backoff(round) {
		return nil
	}
	exec := executor(f, v, fe.Target.Node, dev.ID, fe.Begun)
	if exec == "" {
		return nil
	}
	return begin(fe, dev.ID, exec, fencing.OpOff)
}

func begin(fe *state.Fence, dev string, exec ids.Node, op fencing.Op) []Op {
	n := fe.Begun + 1
	return []Op{{fmt.Sprintf("begin/%d/%d", fe.ID, n), state.FenceBegin{Fence: fe.ID, N: n, Executor: exec, Device: dev, Op: op, Deadline: AttemptDeadline}}}
}

// nextDevice walks the devices in the order of their levels; within a level the one that has not been
// read off yet. round counts how often the whole list was walked.
func nextDevice(fe *state.Fence) (state.FenceDevice, int) {
	devs := slices.Clone(fe.Devices)
	slices.SortStableFunc(devs, func(a, b state.FenceDevice) int { return a.Level - b.Level })
	return devs[fe.Begun%len(devs)], fe.Begun / len(devs)
}

func backoff(round int) time.Duration {
	d := retryMin
	for i := 1; i < round && d < retryMax; i++ {
		d *= 2
	}
	return min(d, retryMax)
}

// executor picks who uses the device: a voter that is here and is not the target, first those whose
// last check of the device succeeded, then those that never checked it, the leader first in each
// class. After a failure the next one is taken.
func executor(f Facts, v nodeViews, target ids.Node, device string, tries int) ids.Node {
	var good, unknown, bad []ids.Node
	for _, x := range v {
		if x.node.Name == target || !x.here || !x.fact.Voter {
			continue
		}
		list := &unknown
		for _, d := range f.Devices {
			if d.Executor == x.node.Name && d.Node == target && d.Device == device {
				if list = &bad; d.OK {
					list = &good
				}
			}
		}
		if x.self {
			*list = append([]ids.Node{x.node.Name}, *list...)
		} else {
			*list = append(*list, x.node.Name)
		}
	}
	all := append(append(good, unknown...), bad...)
	if len(all) == 0 {
		return ""
	}
	return all[tries%len(all)]
}

// powerOn switches a node that was powered off on again, in the background of the takeover.
func powerOn(f Facts, v nodeViews, x *nodeView, fe *state.Fence) []Op {
	if fe.Evidence == nil || fe.Evidence.Kind != state.PowerOff || x.node.Up.Boot != fe.Target.Boot {
		return nil
	}
	if x.fact.Ever && !x.fact.Silent && x.fact.Boot != fe.Target.Boot {
		return nil // it is back already and about to announce itself
	}
	ff, tries := f.fence(fe.ID), 0
	for _, a := range fe.Attempts {
		switch {
		case a.End == 0:
			return nil
		case a.Op == fencing.OpOn && a.Report.Outcome == fencing.OutcomeOn:
			return nil
		case a.Op == fencing.OpOn:
			tries++
		}
	}
	if tries >= onTries || (tries > 0 && ff.SinceEnd < backoff(tries)) {
		return nil
	}
	dev := ""
	for _, a := range fe.Attempts {
		if a.N == fe.Evidence.Attempt {
			dev = a.Device
		}
	}
	exec := executor(f, v, fe.Target.Node, dev, tries)
	if exec == "" || dev == "" {
		return nil
	}
	return begin(fe, dev, exec, fencing.OpOn)
}
