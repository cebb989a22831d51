package driver

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/picket-ha/picket/consensus/core"
)

// trace writes one line per event and action at debug level, so that a slow takeover can be taken
// apart afterwards. at is Options.Clock in nanoseconds: it is finer than the log's own time, and
// comparable between processes of one machine. What comes all the time and says nothing (ticks,
// heartbeats, reports of the loop) is left out.
func (d *Driver) trace(dir string, x any) {
	if !d.o.Logger.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	what := describe(x)
	if what == "" {
		return
	}
	d.o.Logger.Debug("trace", "at", int64(d.o.Clock()), "dir", dir, "what", what)
}

// describe names an event or action in few words, "" for one that is not worth a line.
func describe(x any) string {
	switch x := x.(type) {
	case core.Applied:
		return fmt.Sprintf("applied %T index=%d ok=%t", x.Entry.Cmd, x.Index, x.Result.OK())
	case core.Propose:
		return fmt.Sprintf("propose %T id=%d", x.Cmd, x.ID)
	case core.Proposed:
		return fmt.Sprintf("proposed id=%d ok=%t", x.ID, x.OK)
	case core.Run:
		return fmt.Sprintf("run %s %s", x.Request.Op, x.Request.Resource)
	case core.Ran:
		return fmt.Sprintf("ran %s %s ok=%t", x.Result.Op, x.Result.Resource, x.Result.Err == "")
	case core.Prepare:
		return fmt.Sprintf("prepare %s", x.Resource.ID)
	case core.Send:
		return fmt.Sprintf("send %s to=%s", describeMessage(x.Msg), x.To)
	case core.Received:
		return fmt.Sprintf("received %s from=%s", describeMessage(x.Msg), x.From)
	case core.Power:
		return fmt.Sprintf("power %s %s n=%d", x.Op, x.Node, x.N)
	case core.PowerDone:
		return fmt.Sprintf("powered %s n=%d took=%s", x.Report.Op, x.N, x.Report.Took)
	case core.GateAnswer:
		return fmt.Sprintf("gate answer ok=%t", x.OK)
	case core.Leadership:
		return fmt.Sprintf("leadership %q term=%d", x.Leader, x.Term)
	case core.GateAsked:
		return "gate asked"
	case core.Verify:
		return "verify"
	case core.Verified:
		return fmt.Sprintf("verified ok=%t", x.OK)
	case core.Barrier:
		return "barrier"
	case core.BarrierDone:
		return fmt.Sprintf("barrier done ok=%t", x.OK)
	case core.Push:
		return "push"
	case core.Record:
		return "record"
	case core.Late:
		return fmt.Sprintf("late %s", x.By)
	case core.Refused:
		return fmt.Sprintf("refused %s %t", x.Peer, x.Is)
	}
	return ""
}

// describeMessage names what a message carries.
func describeMessage(m core.Message) string {
	switch {
	case m.Report != nil:
		return "report"
	case m.Renew != nil:
		return fmt.Sprintf("renew k=%d", m.Renew.Renewal.K)
	case m.Renewed != nil:
		return fmt.Sprintf("renewed k=%d index=%d", m.Renewed.K, m.Renewed.Index)
	case m.Ask != nil:
		return "ask"
	case m.Stand != nil:
		return fmt.Sprintf("stand ok=%t", m.Stand.OK)
	}
	return "devices"
}
