package state

import (
	"slices"
	"strconv"
	"strings"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/reason"
)

// Result is what an entry came to. A refused entry changes nothing but State.Index.
type Result struct {
	// Refused is why the entry was refused; zero when it applied.
	Refused reason.Reason
	// Accepted are the renewals that a LeaseTick granted: only these are answered (rule 8).
	Accepted []Tick
}

// OK reports whether the entry applied.
func (r Result) OK() bool { return r.Refused.IsZero() }

func refuse(c reason.Code, kv ...string) Result { return Result{Refused: reason.New(c, kv...)} }

// Apply applies the committed entry with the given log index. It is total: any command on any state
// gives a state and a result, and never a panic. s itself is not changed.
func Apply(s State, index uint64, e Entry) (State, Result) {
	s.Index = index
	before := s
	c := ctx{s: &s, index: index, at: e.At}
	var r Result
	switch cmd := e.Cmd.(type) {
	case NodeAdmit:
		r = c.nodeAdmit(cmd)
	case NodeRemove:
		r = c.nodeRemove(cmd)
	case NodeUp:
		r = c.nodeUp(cmd)
	case NodeLeave:
		r = c.nodeLeave(cmd)
	case NodeMode:
		r = c.nodeMode(cmd)
	case LeaseTick:
		r = c.leaseTick(cmd)
	case ConfigSet:
		r = c.configSet(cmd)
	case FenceIntent:
		r = c.fenceIntent(cmd)
	case FenceBegin:
		r = c.fenceBegin(cmd)
	case FenceEnd:
		r = c.fenceEnd(cmd)
	case FenceConfirm:
		r = c.fenceConfirm(cmd)
	case Grant:
		r = c.grant(cmd)
	default:
		r = c.applyGroup(e.Cmd)
	}
	if !r.OK() {
		return before, r
	}
	return s, r
}

func (c ctx) applyGroup(cmd Command) Result {
	switch cmd := cmd.(type) {
	case Started:
		return c.started(cmd)
	case Revoke:
		return c.revoke(cmd)
	case Released:
		return c.released(cmd.Group, cmd.Inc, cmd.Epoch, cmd.Why)
	case StartFailed:
		return c.startFailed(cmd)
	case StopFailed:
		return c.stopFailed(cmd)
	case MonitorFailed:
		return c.monitorFailed(cmd)
	case GroupMode:
		return c.groupMode(cmd)
	case Move:
		return c.move(cmd)
	case Cleanup:
		return c.cleanup(cmd)
	case TokenMint:
		return c.tokenMint(cmd)
	case NoteCmd:
		c.s.Notes = bounded(append(slices.Clone(c.s.Notes), Note{Index: c.index, At: c.at, Operator: clip(cmd.Operator), Text: clip(cmd.Text)}), MaxNotes)
		return Result{}
	}
	return refuse(reason.RefusedUnknown, "what", "command", "name", "?")
}

// ctx is one application: the state being made, the entry's index and wall clock.
type ctx struct {
	s     *State
	index uint64
	at    int64
}

// node returns a node of a cloned list, ready to be changed.
func (c ctx) node(n ids.Node) *Node {
	if c.s.Node(n) == nil {
		return nil
	}
	c.s.Nodes = slices.Clone(c.s.Nodes)
	return c.s.Node(n)
}

func (c ctx) group(g ids.Group) *Group {
	if c.s.Group(g) == nil {
		return nil
	}
	c.s.Groups = slices.Clone(c.s.Groups)
	return c.s.Group(g)
}

func (c ctx) fence(id uint64) *Fence {
	if c.s.Fence(id) == nil {
		return nil
	}
	c.s.Fences = slices.Clone(c.s.Fences)
	return c.s.Fence(id)
}

// current checks that inc is the newest incarnation of its node and is not condemned: rule 4 and
// invariant I4 in one place.
func (c ctx) current(inc ids.Incarnation) Result {
	n := c.s.Node(inc.Node)
	switch {
	case n == nil:
		return refuse(reason.RefusedUnknown, "what", "node", "name", string(inc.Node))
	case slices.Contains(n.Condemned, inc.Boot):
		return refuse(reason.RefusedFenced, "node", string(inc.Node))
	case n.Up != inc || inc.Gen == 0 || n.Left:
		return refuse(reason.RefusedStale, "node", string(inc.Node))
	}
	return Result{}
}

// owns checks that inc owns the group at that epoch.
func (c ctx) owns(g ids.Group, inc ids.Incarnation, e ids.Epoch) Result {
	gr := c.s.Group(g)
	if gr == nil {
		return refuse(reason.RefusedUnknown, "what", "group", "name", string(g))
	}
	if gr.Epoch == 0 || gr.Epoch != e || gr.Owner != inc {
		return refuse(reason.RefusedNotOwner, "node", string(inc.Node), "group", string(g), "epoch", itoa(uint64(e)))
	}
	return Result{}
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

// clip bounds a text and keeps it valid UTF-8: what JSON cannot carry unchanged would give a node that
// restored a snapshot another digest than one that applied the log.
func clip(s string) string {
	if len(s) > MaxReason {
		s = s[:MaxReason]
	}
	return strings.ToValidUTF8(s, "")
}

// clipReason bounds a reason that came with an entry.
func clipReason(r reason.Reason) reason.Reason {
	out := reason.Reason{Code: reason.Code(clip(string(r.Code)))}
	for i, a := range r.Args {
		if i == MaxArgs {
			break
		}
		out.Args = append(out.Args, reason.Arg{Key: clip(a.Key), Value: clip(a.Value)})
	}
	return out
}

func bounded[T any](s []T, n int) []T {
	if len(s) > n {
		return slices.Clone(s[len(s)-n:])
	}
	return s
}
