package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/picket-ha/picket/integration/check"
)

// pollEvery is the pause between two looks at the cluster.
const pollEvery = 60 * time.Millisecond

// ErrNotYet says that what was waited for did not come in time.
var ErrNotYet = errors.New("it did not come in time")

// want turns a condition into what Await needs: "" when it holds, else what is missing.
func want(ok bool, what string) string {
	if ok {
		return ""
	}
	return what
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Until polls until missing returns "", for at most within; otherwise its error wraps ErrNotYet and
// says what was missing at the end.
func Until(ctx context.Context, within time.Duration, missing func() (string, error)) error {
	deadline := time.Now().Add(within)
	for {
		what, err := missing()
		if err == nil && what == "" {
			return nil
		}
		if time.Now().After(deadline) {
			if err != nil {
				return fmt.Errorf("within %s: %w: %w", within, ErrNotYet, err)
			}
			return fmt.Errorf("within %s: %w: %s", within, ErrNotYet, what)
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// Await polls the cluster's status until missing returns "", and returns that status.
func (c *Cluster) Await(ctx context.Context, within time.Duration, missing func(Status) string) (Status, error) {
	var s Status
	err := Until(ctx, within, func() (string, error) {
		var err error
		if s, err = c.Status(ctx); err != nil {
			return "", err
		}
		return missing(s), nil
	})
	if err != nil {
		err = fmt.Errorf("%w (status: %s)", err, s.Line())
	}
	return s, err
}

// AwaitOK waits until the leader says that all is well: every node online with a vote, every fence
// device proven, every group running.
func (c *Cluster) AwaitOK(ctx context.Context, within time.Duration) (Status, error) {
	return c.Await(ctx, within, c.Missing)
}

// Missing says what keeps a status from being all well, "" for nothing.
func (c *Cluster) Missing(s Status) string {
	var miss []string
	add := func(ok bool, format string, args ...any) {
		if !ok {
			miss = append(miss, fmt.Sprintf(format, args...))
		}
	}
	add(s.State == "ok", "state %s", s.State)
	add(s.Leader == s.Node, "no answer from the leader")
	add(s.Quorum.OK && s.Quorum.Reachable == len(c.Nodes) && s.Quorum.Voters == len(c.Nodes), "quorum %d/%d", s.Quorum.Reachable, s.Quorum.Voters)
	add(len(s.Nodes) == len(c.Nodes) && len(s.Groups) > 0, "nodes or groups not shown")
	for _, n := range s.Nodes {
		add(n.State == "online" && n.Mode == "active", "%s is %s, %s", n.Name, n.State, n.Mode)
		for _, l := range n.Links {
			add(l.State != "dead", "link %s:%s is dead", l.Peer, l.Interface)
		}
		for _, f := range n.Fence {
			add(f.State == "ok", "fence device of %s is %s", n.Name, f.State)
		}
	}
	for _, g := range s.Groups {
		add(g.State == "running", "group %s is %s", g.Name, g.State)
	}
	return strings.Join(miss, ", ")
}

// Line is a status in one line, for messages.
func (s Status) Line() string {
	b := fmt.Sprintf("by %s: state %s, leader %s, term %d, quorum %d/%d", s.Node, s.State, s.Leader, s.Term, s.Quorum.Reachable, s.Quorum.Voters)
	for _, n := range s.Nodes {
		b += fmt.Sprintf(", %s %s", n.Name, n.State)
	}
	for _, g := range s.Groups {
		b += fmt.Sprintf(", group %s %s on %s at epoch %d [%s]", g.Name, g.State, first(g.Owner, "nobody"), g.Epoch, g.Reason.Code)
	}
	for _, c := range s.Conditions {
		b += fmt.Sprintf("; %s %s", c.Subject, c.Code)
	}
	return b
}

// Runs waits until the group runs on a node that accept allows, and returns that status.
func (c *Cluster) Runs(ctx context.Context, within time.Duration, accept func(owner string) bool) (Status, error) {
	return c.Await(ctx, within, func(s Status) string {
		g := s.Group(Web)
		return want(g.State == "running" && accept(g.Owner), fmt.Sprintf("group %s is %s on %q", Web, g.State, g.Owner))
	})
}

// Outage measures what the client saw of the service address in [from, to] of harness time (see
// check.Now). It waits until the probers' records reach past the window.
func (c *Cluster) Outage(ctx context.Context, from, to int64) (check.Gap, error) {
	var g check.Gap
	err := Until(ctx, 5*time.Second, func() (string, error) {
		h, err := c.Lab.History(ctx)
		if err != nil {
			return "", err
		}
		past := false
		for _, r := range h.Records {
			past = past || (r.Stream == check.StreamEcho && r.VIP == VIP && r.T >= to)
		}
		if !past {
			return "the echo prober's records end too early", nil
		}
		g, err = h.Outage(VIP, from, to)
		return "", err
	})
	return g, err
}

// Answers waits until the client gets answers from the service address again.
func (c *Cluster) Answers(ctx context.Context, within time.Duration) error {
	since := check.Now()
	return Until(ctx, within, func() (string, error) {
		h, err := c.Lab.History(ctx)
		if err != nil {
			return "", err
		}
		for _, r := range h.Records {
			if r.Stream == check.StreamEcho && r.Kind == check.KindReply && r.VIP == VIP && r.T > since {
				return "", nil
			}
		}
		return "the client gets no answer from " + VIP, nil
	})
}

// Untouched checks that no node gained or lost the service address since a harness time (see
// check.Now), by the word of the writers on the nodes. It returns what happened instead, "" for
// nothing.
func (c *Cluster) Untouched(ctx context.Context, since int64) (string, error) {
	h, err := c.Lab.History(ctx)
	if err != nil {
		return "", err
	}
	var all []string
	for _, r := range h.Window(since, 0).Records {
		if r.Stream == check.StreamWriter && r.VIP == VIP && (r.Kind == check.KindAcquire || r.Kind == check.KindRelease) {
			all = append(all, r.Node+": "+r.Kind)
		}
	}
	return strings.Join(all, ", "), nil
}
