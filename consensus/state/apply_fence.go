package state

import (
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/fencing"
)

// MaxDeadline bounds one power attempt.
const MaxDeadline = 5 * time.Minute

// fenceIntent condemns a boot. Without an operator's word only a boot that owns something may be
// condemned (invariant I7).
func (c ctx) fenceIntent(cmd FenceIntent) Result {
	n := c.s.Node(cmd.Target.Node)
	switch {
	case n == nil:
		return refuse(reason.RefusedUnknown, "what", "node", "name", string(cmd.Target.Node))
	case cmd.Target.Boot == "" || (n.Up.Boot != cmd.Target.Boot && len(c.s.Owned(cmd.Target.Node, cmd.Target.Boot)) == 0):
		return refuse(reason.RefusedUnknown, "what", "boot of node", "name", string(cmd.Target.Node))
	case c.s.OpenFence(cmd.Target.Node, cmd.Target.Boot) != nil:
		return refuse(reason.RefusedExists, "what", "fence of", "name", string(cmd.Target.Node))
	case c.s.IsCondemned(cmd.Target.Node, cmd.Target.Boot):
		return refuse(reason.RefusedFenced, "node", string(cmd.Target.Node))
	case cmd.Operator == "" && len(c.s.Owned(cmd.Target.Node, cmd.Target.Boot)) == 0:
		return refuse(reason.RefusedIdle, "node", string(cmd.Target.Node))
	}
	uuid := ""
	if n.Up.Boot == cmd.Target.Boot {
		uuid = n.UUID
	}
	c.openFence(cmd.Target, uuid, cmd.Reason, clip(cmd.Operator), false)
	return Result{}
}

// openFence appends the intent and condemns the boot.
func (c ctx) openFence(target ids.Incarnation, uuid string, why reason.Reason, operator string, noPower bool) {
	f := Fence{ID: c.index, Target: target, UUID: uuid, Revision: c.s.Revision, Reason: clipReason(why), Operator: operator, NoPower: noPower, At: c.at}
	if nc := c.s.Config.Node(target.Node); nc != nil {
		f.Devices = slices.Clone(nc.Fence)
	}
	f.Groups = c.s.Owned(target.Node, target.Boot)
	f.Drain = c.drain(f.Groups)
	c.s.Fences = trimFences(append(slices.Clone(c.s.Fences), f))
	n := c.node(target.Node)
	n.Condemned = c.s.trimCondemned(target.Node, append(slices.Clone(n.Condemned), target.Boot))
}

// trimCondemned forgets the oldest condemned boots beyond MaxCondemned, but never one that is not
// proven dead yet.
func (s *State) trimCondemned(node ids.Node, boots []ids.Boot) []ids.Boot {
	for i := 0; len(boots) > MaxCondemned && i < len(boots); {
		if s.OpenFence(node, boots[i]) != nil {
			i++
			continue
		}
		boots = slices.Delete(boots, i, i+1)
	}
	return boots
}

func (c ctx) drain(groups []ids.Group) time.Duration {
	for _, name := range groups {
		for _, r := range c.s.Group(name).Held {
			if r.Drains() {
				return c.s.Config.Timing.Drain
			}
		}
	}
	return 0
}

// NewBootOwns reports whether a later boot of the target's machine owns something: a power command
// for the old boot would hit an owner that nobody condemned (invariant I6).
func (s *State) NewBootOwns(f *Fence) bool {
	n := s.Node(f.Target.Node)
	return n != nil && n.Up.Boot != f.Target.Boot && len(s.Owned(n.Name, n.Up.Boot)) > 0
}

// trimFences forgets the oldest closed fences beyond MaxFences. One with an attempt under way stays.
func trimFences(f []Fence) []Fence {
	for i := 0; len(f) > MaxFences && i < len(f); {
		if f[i].Open() || slices.ContainsFunc(f[i].Attempts, func(a Attempt) bool { return a.End == 0 || a.MayStrike() }) {
			i++
			continue
		}
		f = slices.Delete(f, i, i+1)
	}
	return f
}

// fenceBegin records a power attempt before its command: off while the fence is open, on after it was
// confirmed and before a new boot has announced itself.
func (c ctx) fenceBegin(cmd FenceBegin) Result {
	f := c.s.Fence(cmd.Fence)
	if f == nil {
		return refuse(reason.RefusedUnknown, "what", "fence", "name", itoa(cmd.Fence))
	}
	exec := c.s.Node(cmd.Executor)
	dev := (&NodeConfig{Fence: f.Devices}).Device(cmd.Device)
	switch {
	case cmd.Op == fencing.OpOff && c.s.NewBootOwns(f):
		return refuse(reason.RefusedOwned, "group", "of the new boot", "owner", string(f.Target.Node))
	case cmd.Op == fencing.OpOff && !f.Open():
		return refuse(reason.RefusedOpen, "what", "the fence", "why", "it is confirmed already")
	case cmd.Op == fencing.OpOn && f.Open():
		return refuse(reason.RefusedOpen, "what", "the fence", "why", "power comes back only after it is confirmed")
	case cmd.Op == fencing.OpOn && c.s.Node(f.Target.Node) != nil && c.s.Node(f.Target.Node).Up.Boot != f.Target.Boot:
		return refuse(reason.RefusedStale, "node", string(f.Target.Node))
	case cmd.Op != fencing.OpOff && cmd.Op != fencing.OpOn:
		return refuse(reason.RefusedUnknown, "what", "power command", "name", clip(string(cmd.Op)))
	case exec == nil || dev == nil:
		return refuse(reason.RefusedUnknown, "what", "executor or fence device", "name", clip(string(cmd.Executor)+"/"+cmd.Device))
	case cmd.Executor == f.Target.Node:
		return refuse(reason.RefusedSelf, "node", string(cmd.Executor))
	case cmd.N != f.Begun+1:
		return refuse(reason.RefusedStale, "node", string(cmd.Executor))
	case underWay(f) >= MaxUnderWay:
		return refuse(reason.RefusedOpen, "what", "the newest power attempt", "why", "too many are under way")
	case mayStrike(f) >= MaxAttempts:
		return refuse(reason.RefusedOpen, "what", "a power command", "why", "too many may still be on their way to "+string(f.Target.Node))
	case cmd.Deadline <= 0 || cmd.Deadline > MaxDeadline:
		return refuse(reason.RefusedConfig, "why", "a power attempt needs a deadline of at most 5m")
	}
	f = c.fence(cmd.Fence)
	f.Begun = cmd.N
	f.Attempts = append(slices.Clone(f.Attempts), Attempt{N: cmd.N, Begin: c.index, Executor: cmd.Executor,
		Device: cmd.Device, Op: cmd.Op, Deadline: cmd.Deadline, At: c.at})
	f.trimAttempts()
	return Result{}
}

// mayStrike counts the attempts whose command may still take effect: none of them is ever forgotten.
func mayStrike(f *Fence) int {
	n := 0
	for _, a := range f.Attempts {
		if a.MayStrike() {
			n++
		}
	}
	return n
}

// underWay counts the attempts that have begun and not ended.
func underWay(f *Fence) int {
	n := 0
	for _, a := range f.Attempts {
		if a.End == 0 {
			n++
		}
	}
	return n
}

// trimAttempts forgets the oldest attempts beyond MaxAttempts. One that is under way stays, and so
// does, for each fence device, the first that proves its part of the death.
func (f *Fence) trimAttempts() {
	proved := map[string]bool{}
	keep := func(a Attempt) bool {
		d := (&NodeConfig{Fence: f.Devices}).Device(a.Device)
		if a.End == 0 || a.MayStrike() || (f.Evidence != nil && f.Evidence.Attempt == a.N) {
			return true
		}
		if d == nil || proved[a.Device] || attemptProves(f, *d, a) != "" {
			return false
		}
		proved[a.Device] = true
		return true
	}
	drop := len(f.Attempts) - MaxAttempts
	f.Attempts = slices.DeleteFunc(f.Attempts, func(a Attempt) bool {
		if keep(a) || drop <= 0 {
			return false
		}
		drop--
		return true
	})
}

func (c ctx) fenceEnd(cmd FenceEnd) Result {
	f := c.s.Fence(cmd.Fence)
	if f == nil {
		return refuse(reason.RefusedUnknown, "what", "fence", "name", itoa(cmd.Fence))
	}
	i := slices.IndexFunc(f.Attempts, func(a Attempt) bool { return a.N == cmd.N })
	// A second end is the leader's, who has waited out the life of the BMC's session.
	settles := i >= 0 && f.Attempts[i].End != 0 && f.Attempts[i].MayStrike() && cmd.Report.Outcome == fencing.OutcomeExpired && cmd.Report.Sent == 0
	if i < 0 || (f.Attempts[i].End != 0 && !settles) {
		return refuse(reason.RefusedStale, "node", string(f.Target.Node))
	}
	if err := cmd.Report.Check(); err != nil {
		return refuse(reason.RefusedEvidence, "node", string(f.Target.Node), "why", clip(err.Error()))
	}
	f = c.fence(cmd.Fence)
	f.Attempts = slices.Clone(f.Attempts)
	if settles {
		f.Attempts[i].Settled = c.index
		return Result{}
	}
	rep := cmd.Report
	rep.Detail = clip(rep.Detail)
	f.Attempts[i].End, f.Attempts[i].Report, f.Attempts[i].DoneAt = c.index, &rep, c.at
	return Result{}
}

// fenceConfirm is where death is accepted, and only on admissible evidence (invariant I3).
func (c ctx) fenceConfirm(cmd FenceConfirm) Result {
	f := c.s.Fence(cmd.Fence)
	if f == nil {
		return refuse(reason.RefusedUnknown, "what", "fence", "name", itoa(cmd.Fence))
	}
	if !f.Open() {
		return refuse(reason.RefusedExists, "what", "proof of fence", "name", itoa(cmd.Fence))
	}
	if why := Admissible(c.s, f, cmd.Evidence); why != "" {
		return refuse(reason.RefusedEvidence, "node", string(f.Target.Node), "why", why)
	}
	f = c.fence(cmd.Fence)
	ev := clean(cmd.Evidence)
	f.Confirmed, f.Evidence, f.DoneAt = c.index, &ev, c.at
	for _, name := range c.s.Owned(f.Target.Node, f.Target.Boot) {
		c.free(c.group(name), proof(f, ev))
		c.dropRemoved(name)
	}
	c.s.Fences = trimFences(c.s.Fences)
	return Result{}
}

// clean keeps of an evidence what its kind needs, bounded.
func clean(ev Evidence) Evidence {
	switch ev.Kind {
	case PowerOff:
		return Evidence{Kind: ev.Kind, Attempt: ev.Attempt}
	case Rebooted:
		return Evidence{Kind: ev.Kind, NewBoot: ev.NewBoot}
	}
	return Evidence{Kind: ev.Kind, Operator: clip(ev.Operator), Why: clip(ev.Why)}
}

// Proof says in an operator's words why the target of a confirmed fence counts as dead.
func Proof(f *Fence) reason.Reason {
	if f.Evidence == nil {
		return reason.Reason{}
	}
	return proof(f, *f.Evidence)
}

func proof(f *Fence, ev Evidence) reason.Reason {
	node := string(f.Target.Node)
	switch ev.Kind {
	case Rebooted:
		return reason.New(reason.ProvenRebooted, "node", node)
	case Human:
		return reason.New(reason.ProvenHuman, "node", node, "operator", ev.Operator, "why", ev.Why)
	}
	dev := ""
	for _, a := range f.Attempts {
		if a.N == ev.Attempt {
			dev = a.Device
		}
	}
	return reason.New(reason.ProvenOff, "node", node, "device", dev)
}

// Admissible returns "" when the evidence proves the fence's target dead (invariant I3, rules 9 and
// 10), and otherwise one clause that says why not.
func Admissible(s *State, f *Fence, ev Evidence) string {
	switch ev.Kind {
	case PowerOff:
		return powerOffProves(f, ev.Attempt)
	case Rebooted:
		n := s.Node(f.Target.Node)
		switch {
		case n == nil || ev.NewBoot == "" || ev.NewBoot == f.Target.Boot || n.Up.Boot != ev.NewBoot:
			return "that boot is not the node's newest"
		case f.UUID == "" || n.UUID == "":
			return "a machine that cannot read its uuid cannot prove that it is the same machine"
		case f.UUID != n.UUID:
			return "the new boot is of another machine"
		}
		return ""
	case Human:
		if ev.Operator == "" || ev.Why == "" {
			return "a human's word needs a name and a reason"
		}
		return ""
	}
	return "no such kind of evidence"
}

// powerOffProves demands, for the level of the named attempt, an ended attempt of this very fence for
// every device of the level, each read back off twice with the machine's identity proven in the same
// session, or trusted by the operator's word in the pinned configuration.
func powerOffProves(f *Fence, attempt int) string {
	i := slices.IndexFunc(f.Attempts, func(a Attempt) bool { return a.N == attempt })
	if i < 0 {
		return "there is no such attempt"
	}
	dev := (&NodeConfig{Fence: f.Devices}).Device(f.Attempts[i].Device)
	if dev == nil {
		return "the attempt used an unknown fence device"
	}
	for _, d := range f.Devices {
		if d.Level != dev.Level {
			continue
		}
		why := "fence device " + d.ID + " of the same level was not tried"
		for _, a := range f.Attempts {
			if a.Device != d.ID {
				continue
			}
			if why = attemptProves(f, d, a); why == "" {
				break
			}
		}
		if why != "" {
			return why
		}
	}
	return ""
}

func attemptProves(f *Fence, d FenceDevice, a Attempt) string {
	r := a.Report
	switch {
	case a.Op != fencing.OpOff || a.End == 0 || r == nil:
		return "the attempt has not ended"
	case r.Op != fencing.OpOff || r.Outcome != fencing.OutcomeOff || r.OffReadings < 2:
		return "it was not read back as off twice"
	case d.IPMI != nil && d.IPMI.TrustIdentity:
		return ""
	case !fencing.MatchUUID(r.GUID, f.UUID):
		return "the BMC's identity does not match the machine's"
	}
	return ""
}
