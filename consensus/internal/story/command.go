package story

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
)

// Command reads one command. Where an argument is absent, it takes what fits the state: the newest
// incarnation, the epoch of the group, the revision, the next attempt. F is a fence's index, or a node
// for its newest fence.
//
//	admit N ROLE [IF=ADDR]... [tok=X]      remove N                 up N boot=B [session=S] [uuid=U] [start=C]
//	leave N [done]                         standby N [off]          tick N [k=K] ...
//	intent N why=CODE [op=NAME]            begin F [n=N] exec=N dev=D [on] [for=D]
//	end F N OUTCOME [guid=U] [detail=T]    confirm F off=N | reboot=B | human=NAME [reason=T]
//	grant G N [rev=R]                      started|released|startfailed|stopfailed G [by=INC] [e=EPOCH]
//	revoke G [e=EPOCH] [for=D] why=CODE    monitor G RESOURCE       want G stopped|started
//	move G [N]                             cleanup G                mint X [ttl=MS]    note TEXT
func Command(s state.State, text string) (state.Command, error) {
	l := Split(text)
	cmd := nodeCommand(s, &l)
	if cmd == nil {
		cmd = fenceCommand(s, &l)
	}
	if cmd == nil {
		cmd = groupCommand(s, &l)
	}
	switch {
	case l.Bad != nil:
		return nil, fmt.Errorf("%s: %w", text, l.Bad)
	case cmd == nil:
		return nil, fmt.Errorf("%s: no such command", text)
	}
	return cmd, nil
}

// Hash is the stored form of the token that a story calls x.
func Hash(x string) string { return fmt.Sprintf("%064x", x) }

func nodeCommand(s state.State, l *Line) state.Command {
	n := ids.Node(l.Word(1))
	switch l.Word(0) {
	case "admit":
		c := state.NodeAdmit{Name: n, Role: state.Role(l.Word(2))}
		for _, k := range []string{"eth0", "eth1", "eth2", "eth0123456789abcdef"} {
			if a, ok := l.Args[k]; ok {
				c.Links = append(c.Links, state.LinkAddr{Interface: k, Addr: a})
			}
		}
		if t, ok := l.Args["tok"]; ok {
			c.TokenHash = Hash(t)
		}
		return c
	case "remove":
		return state.NodeRemove{Name: n, Operator: "op"}
	case "up":
		return state.NodeUp{Node: n, Boot: ids.Boot(l.Args["boot"]), Session: l.Uint("session", 1), UUID: UUID(l.Args["uuid"]), Version: "1", Start: l.Uint("start", 0)}
	case "leave":
		return state.NodeLeave{Inc: Inc(s, l.Word(1)), Done: l.Has("done")}
	case "standby":
		return state.NodeMode{Node: n, Standby: !l.Has("off"), Operator: "op"}
	case "tick":
		var t state.LeaseTick
		for _, w := range l.Words[1:] {
			t.Ticks = append(t.Ticks, state.Tick{Inc: Inc(s, w), K: l.Uint("k", 1)})
		}
		return t
	case "mint":
		return state.TokenMint{Hash: Hash(l.Word(1)), Expires: int64(l.Uint("ttl", 1000)), By: "op"}
	case "note":
		return state.NoteCmd{Operator: "op", Text: strings.Join(l.Words[1:], " ")}
	}
	return nil
}

func fenceCommand(s state.State, l *Line) state.Command {
	id, err := strconv.ParseUint(l.Word(1), 10, 64)
	for _, f := range s.Fences {
		if err != nil && string(f.Target.Node) == l.Word(1) {
			id = f.ID
		}
	}
	switch l.Word(0) {
	case "intent":
		return state.FenceIntent{Target: Inc(s, l.Word(1)), Reason: why(*l), Operator: l.Args["op"]}
	case "begin":
		c := state.FenceBegin{Fence: id, Executor: ids.Node(l.Args["exec"]), Device: l.Args["dev"], Op: fencing.OpOff, Deadline: l.Dur("for", 15*time.Second)}
		if l.Has("on") {
			c.Op = fencing.OpOn
		}
		if l.Has("cycle") {
			c.Op = "cycle"
		}
		c.N = 1
		if f := s.Fence(id); f != nil {
			c.N = f.Begun + 1
		}
		c.N = int(l.Uint("n", uint64(c.N)))
		return c
	case "end":
		var n int
		fmt.Sscan(l.Word(2), &n)
		return state.FenceEnd{Fence: id, N: n, Report: report(l)}
	case "confirm":
		ev := state.Evidence{Kind: "guess"}
		switch {
		case l.Args["off"] != "":
			ev = state.Evidence{Kind: state.PowerOff, Attempt: int(l.Uint("off", 0))}
		case l.Args["reboot"] != "":
			ev = state.Evidence{Kind: state.Rebooted, NewBoot: ids.Boot(l.Args["reboot"])}
		case l.Args["human"] != "":
			ev = state.Evidence{Kind: state.Human, Operator: l.Args["human"], Why: l.Args["reason"]}
		}
		return state.FenceConfirm{Fence: id, Evidence: ev}
	}
	return nil
}

func groupCommand(s state.State, l *Line) state.Command {
	g := ids.Group(l.Word(1))
	var inc ids.Incarnation
	epoch := ids.Epoch(0)
	if gr := s.Group(g); gr != nil {
		inc, epoch = gr.Owner, gr.Epoch
	}
	if by, ok := l.Args["by"]; ok {
		inc = Inc(s, by)
	}
	epoch = ids.Epoch(l.Uint("e", uint64(epoch)))
	switch l.Word(0) {
	case "grant":
		return state.Grant{Group: g, To: Inc(s, l.Word(2)), Revision: l.Uint("rev", s.Revision), Why: why(*l)}
	case "started":
		return state.Started{Group: g, Inc: inc, Epoch: epoch}
	case "revoke":
		return state.Revoke{Group: g, Epoch: epoch, Why: why(*l), For: l.Dur("for", 10*time.Second)}
	case "released":
		return state.Released{Group: g, Inc: inc, Epoch: epoch, Why: why(*l)}
	case "startfailed":
		return state.StartFailed{Group: g, Inc: inc, Epoch: epoch, Why: l.Args["cause"]}
	case "stopfailed":
		return state.StopFailed{Group: g, Inc: inc, Epoch: epoch, Why: l.Args["cause"]}
	case "monitor":
		return state.MonitorFailed{Group: g, Inc: inc, Epoch: epoch, Resource: Resource(l.Word(2)).ID, Why: l.Args["cause"]}
	case "want":
		return state.GroupMode{Group: g, Stopped: l.Has("stopped"), Operator: "op"}
	case "move":
		return state.Move{Group: g, To: ids.Node(l.Word(2)), Operator: "op"}
	case "cleanup":
		return state.Cleanup{Group: g, Operator: "op"}
	}
	return nil
}
