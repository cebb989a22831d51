package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
)

// takeoverTimeout bounds a takeover in a lab with fast timing on a busy machine.
const takeoverTimeout = 15 * time.Second

// switchover: a planned move, and a clean stop. Nobody is fenced, and the client hardly notices.
func switchover(ctx context.Context, st *Stage) error {
	one, c := st.owner(), st.C
	if err := st.command(ctx, one, "node", "standby", one); err != nil {
		return err
	}
	s, err := c.Runs(ctx, takeoverTimeout, func(o string) bool { return o != one })
	if err != nil {
		return err
	}
	two := s.Group(Web).Owner
	if st.res.Outage, err = st.client(ctx, st.fault); err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	st.tellClient(st.res.Outage, "standby")
	st.expect(s.Group(Web).Epoch > st.before.Group(Web).Epoch, "%s moved from %s to %s, with a new epoch", Web, one, two)
	if err := st.command(ctx, one, "node", "online", one); err != nil {
		return err
	}
	if _, err := c.AwaitOK(ctx, settleTimeout); err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	from := check.Now()
	st.res.Fault = time.Now()
	st.Tell(TellDid, fmt.Sprintf("[%s] systemctl stop picket (SIGTERM to the daemon)", two), 0)
	if err := c.Lab.StopDaemon(ctx, two); err != nil {
		return err
	}
	s, err = c.Runs(ctx, takeoverTimeout, func(o string) bool { return o != two })
	if err != nil {
		return err
	}
	d, err := st.client(ctx, from)
	if err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	st.tellClient(d, "clean stop")
	st.expect(s.NodeNamed(two).State == "left", "%s left in order, %s runs on %s", two, Web, s.Group(Web).Owner)
	st.Tell(TellDid, fmt.Sprintf("[%s] systemctl start picket", two), 0)
	if err := c.Lab.StartDaemon(ctx, two); err != nil {
		return err
	}
	if _, err := c.AwaitOK(ctx, settleTimeout); err != nil {
		return err
	}
	st.res.Outage = max(st.res.Outage, d)
	st.res.Did = "released, moved"
	return st.expectFences(ctx, 0, "", "")
}

// oneCable: the other cable carries on. Nothing happens, and that is the point.
func oneCable(ctx context.Context, st *Stage) error {
	one, c := st.owner(), st.C
	err := st.strike(ctx, fmt.Sprintf("picket-lab cut %s eth1", one), func(ctx context.Context) error {
		return c.Lab.Cut(ctx, one, netlab.LinkHeartbeat, netlab.Both)
	})
	if err != nil {
		return err
	}
	_, err = c.Await(ctx, takeoverTimeout, func(s Status) string { _, ok := s.Cable(); return want(ok, "the dead link is shown") })
	if err != nil {
		return err
	}
	// Long enough for what must not happen: an election, a fence, a move.
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if st.res.Outage, err = st.client(ctx, st.fault); err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	cond, _ := s.Cable()
	st.Tell(TellExplain, fmt.Sprintf("status: %s [%s]; %s", cond.Text, cond.Code, cond.Action), 0)
	st.tellClient(st.res.Outage, "the cut")
	st.Tell(TellDid, fmt.Sprintf("picket-lab heal %s eth1", one), 0)
	if err := c.Lab.Heal(ctx, one, ""); err != nil {
		return err
	}
	s, err = c.AwaitOK(ctx, settleTimeout)
	if err != nil {
		return err
	}
	g, was := s.Group(Web), st.before.Group(Web)
	st.expect(s.Term == st.before.Term && s.Leader == st.before.Leader, "no election: leader %s, term %d, as before (%s, %d)", s.Leader, s.Term, st.before.Leader, st.before.Term)
	st.expect(g.Owner == was.Owner && g.Epoch == was.Epoch, "%s stayed on %s at epoch %d", Web, g.Owner, g.Epoch)
	touched, err := c.Untouched(ctx, st.fault)
	if err != nil {
		return err
	}
	st.expect(st.res.Outage < NoOutage && touched == "", "the client noticed nothing, no node gained or lost the address%s", touched)
	st.res.Did = "nothing, rightly"
	return st.expectFences(ctx, 0, "", "")
}

// takeover is what three scenes have in common: a fault, one fence, a move, a return.
func (st *Stage) takeover(ctx context.Context, mend func(context.Context) error) error {
	one, c := st.owner(), st.C
	s, err := c.Runs(ctx, takeoverTimeout, func(o string) bool { return o != one })
	if err != nil {
		return err
	}
	two, epoch := s.Group(Web).Owner, s.Group(Web).Epoch
	if st.res.Outage, err = st.client(ctx, st.fault); err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	st.tellClient(st.res.Outage, "takeover")
	moved := check.Now()
	if mend != nil {
		if err := mend(ctx); err != nil {
			return err
		}
	}
	if s, err = c.AwaitOK(ctx, settleTimeout); err != nil {
		return err
	}
	after, err := st.client(ctx, moved)
	if err != nil {
		return err
	}
	touched, err := c.Untouched(ctx, moved)
	if err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	g := s.Group(Web)
	st.expect(two != one && epoch > st.before.Group(Web).Epoch, "%s moved from %s to %s, with a new epoch (%d)", Web, one, two, epoch)
	st.expect(s.NodeNamed(one).BootID != st.before.NodeNamed(one).BootID, "%s came back as a new boot, with nothing running", one)
	st.expect(g.Owner == two && g.Epoch == epoch && after < NoOutage && touched == "", "its return restarted nothing: %s on %s at epoch %d, address untouched%s, client's longest gap %d ms", Web, g.Owner, g.Epoch, touched, after.Milliseconds())
	st.res.Did = "fenced, moved"
	return st.expectFences(ctx, 1, one, "power-off")
}

// bothCables: a partition. The majority fences, then takes over; the cut node sends nothing.
func bothCables(ctx context.Context, st *Stage) error {
	one, c := st.owner(), st.C
	err := st.strike(ctx, fmt.Sprintf("picket-lab cut %s eth0; picket-lab cut %s eth1", one, one), func(ctx context.Context) error {
		if err := c.Lab.Cut(ctx, one, netlab.LinkPublic, netlab.Both); err != nil {
			return err
		}
		return c.Lab.Cut(ctx, one, netlab.LinkHeartbeat, netlab.Both)
	})
	if err != nil {
		return err
	}
	err = st.takeover(ctx, func(ctx context.Context) error {
		st.Tell(TellDid, fmt.Sprintf("picket-lab heal %s", one), 0)
		return c.Lab.Heal(ctx, one, "")
	})
	if err != nil {
		return err
	}
	return st.minority(ctx, one)
}

// minority checks that a node which was cut off sent no power command.
func (st *Stage) minority(ctx context.Context, node string) error {
	powers, err := st.C.PowerCommands(ctx, st.fault)
	if err != nil {
		return err
	}
	n := 0
	for _, p := range powers {
		if p.From == node {
			n++
		}
	}
	st.expect(n == 0, "%s, cut off and without quorum, sent %d power commands", node, n)
	return nil
}

// killDaemon: the kernel goes on answering for the address; only a fence ends that.
func killDaemon(ctx context.Context, st *Stage) error {
	one := st.owner()
	err := st.strike(ctx, fmt.Sprintf("picket-lab kill %s (SIGKILL to the daemon, nobody restarts it)", one), func(ctx context.Context) error { return st.C.Lab.Kill(ctx, one) })
	if err != nil {
		return err
	}
	return st.takeover(ctx, nil)
}

// powerCut: silence alone is no proof; the BMC is asked, and reads off.
func powerCut(ctx context.Context, st *Stage) error {
	one := st.owner()
	err := st.strike(ctx, fmt.Sprintf("picket-lab power %s off", one), func(ctx context.Context) error { return st.C.Lab.Power(ctx, one, false) })
	if err != nil {
		return err
	}
	return st.takeover(ctx, nil)
}

// pulledCord: nothing can prove the owner dead. The group is held until a human says so.
func pulledCord(ctx context.Context, st *Stage) error {
	one, two, c := st.owner(), st.other(), st.C
	if out, err := c.Ask(ctx, two, "fence", "confirm", one, "--confirm", one, "--reason", "a test"); err != nil || out.Code == 0 {
		st.expect(false, "fence confirm of a living node is refused (%v, exit code %d)", err, out.Code)
	} else {
		st.expect(out.Code == 4, "while %s lives, fence confirm is refused: %s", one, first(out.Stderr, out.Stdout))
	}
	err := st.strike(ctx, fmt.Sprintf("picket-lab unplug %s", one), func(ctx context.Context) error { return c.Lab.Unplug(ctx, one) })
	if err != nil {
		return err
	}
	unproven := func(s Status) string {
		_, ok := s.Has("FENCE_UNPROVEN", one)
		return want(ok && s.Group(Web).State == "held", "the group is held with FENCE_UNPROVEN")
	}
	if _, err := c.Await(ctx, takeoverTimeout, unproven); err != nil {
		return err
	}
	if err := st.held(ctx, unproven); err != nil {
		return err
	}
	confirmed := check.Now()
	st.res.Held = time.Duration(confirmed - st.fault)
	if err := st.command(ctx, two, "fence", "confirm", one, "--confirm", one, "--reason", "its cord is in my hand"); err != nil {
		return err
	}
	s, err := c.Runs(ctx, takeoverTimeout, func(o string) bool { return o != one })
	if err != nil {
		return err
	}
	freed, err := st.client(ctx, confirmed)
	if err != nil {
		return err
	}
	st.res.Outage = st.res.Held + freed
	g := s.Group(Web)
	st.Tell(TellDid, fmt.Sprintf("picket-lab plug %s", one), 0)
	if err := c.Lab.Plug(ctx, one); err != nil {
		return err
	}
	if s, err = c.AwaitOK(ctx, settleTimeout); err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	st.Tell(TellClient, fmt.Sprintf("no answer for %d ms: held %d ms until the operator's word, served %d ms after it", st.res.Outage.Milliseconds(), st.res.Held.Milliseconds(), freed.Milliseconds()), 0)
	st.expect(s.Group(Web).Owner == g.Owner && s.Group(Web).Epoch == g.Epoch, "%s moved from %s to %s only then, and stayed there when %s returned", Web, one, g.Owner, one)
	st.res.Did = "HELD until confirmed"
	return st.audited(ctx, one)
}

// held watches a held group for a while: nothing may move, and nobody may answer for the address.
func (st *Stage) held(ctx context.Context, unproven func(Status) string) error {
	c, one := st.C, st.owner()
	end := time.Now().Add(st.Hold)
	for time.Now().Before(end) {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if miss := unproven(s); miss != "" {
			st.expect(false, "it stays held for %s: %s; %s", st.Hold, miss, s.Line())
			return nil
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if err := st.tellEvents(ctx); err != nil {
		return err
	}
	cond, _ := s.Has("FENCE_UNPROVEN", one)
	st.Tell(TellExplain, fmt.Sprintf("status: %s [%s]", cond.Text, cond.Code), 0)
	st.Tell(TellExplain, "action: "+cond.Action, 0)
	why, err := c.Ask(ctx, st.other(), "why", Web)
	if err != nil {
		return err
	}
	g, err := c.Outage(ctx, st.fault, check.Now())
	if err != nil {
		return err
	}
	st.expect(g.Open, "%s was held for %s: nobody answered for %s", Web, st.Hold, VIP)
	st.expect(contains(why.Stdout, "FENCE_UNPROVEN") && contains(cond.Action, "picket fence confirm "+one), "status and why give the reason, and the command that frees it: picket fence confirm %s", one)
	return nil
}

// audited checks that the human's word is in the history, with name and reason.
func (st *Stage) audited(ctx context.Context, node string) error {
	if err := st.expectFences(ctx, 1, node, "human"); err != nil {
		return err
	}
	list, err := st.newFences(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	f := list[len(list)-1]
	st.expect(f.Operator != "" && contains(f.Reason, "cord is in my hand"), "picket fence history keeps who said so and why: %s, %q", f.Operator, f.Reason)
	return nil
}
