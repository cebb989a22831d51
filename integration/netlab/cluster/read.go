package cluster

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// What picket's --json answers contain, as far as the scenes read it. These types are written down
// anew on purpose: a witness that decodes with the product's own types would not notice when the
// product changes what it promises to its users.
type (
	// Status is picket status --json.
	Status struct {
		Node   string `json:"node"`
		Leader string `json:"leader"`
		Term   uint64 `json:"term"`
		Index  uint64 `json:"index"`
		Quorum struct {
			Voters    int  `json:"voters"`
			Reachable int  `json:"reachable"`
			OK        bool `json:"ok"`
		} `json:"quorum"`
		State      string      `json:"state"`
		Conditions []Condition `json:"conditions"`
		Nodes      []Node      `json:"nodes"`
		Groups     []Group     `json:"groups"`
		Source     string      `json:"source"`
	}
	// Condition is one thing that is not as it should be.
	Condition struct {
		Code    string `json:"code"`
		Text    string `json:"text"`
		Action  string `json:"action"`
		Subject string `json:"subject"`
	}
	// Node is one node of a status.
	Node struct {
		Name        string `json:"name"`
		Role        string `json:"role"`
		State       string `json:"state"`
		Mode        string `json:"mode"`
		Incarnation string `json:"incarnation"`
		BootID      string `json:"boot_id"`
		Voter       bool   `json:"voter"`
		Fence       []struct {
			Device string `json:"device"`
			State  string `json:"state"`
			Text   string `json:"text"`
		} `json:"fence"`
		Links []struct {
			Peer      string `json:"peer"`
			Interface string `json:"interface"`
			State     string `json:"state"`
		} `json:"links"`
	}
	// Group is one group of a status.
	Group struct {
		Name   string `json:"name"`
		State  string `json:"state"`
		Owner  string `json:"owner"`
		Epoch  uint64 `json:"epoch"`
		Reason struct {
			Code   string `json:"code"`
			Text   string `json:"text"`
			Action string `json:"action"`
		} `json:"reason"`
	}
	// Event is one line of picket events --json. Index is 0 for what is no log entry.
	Event struct {
		Time  time.Time `json:"time"`
		Index uint64    `json:"index"`
		Node  string    `json:"node"`
		Group string    `json:"group"`
		Kind  string    `json:"kind"`
		Code  string    `json:"code"`
		Text  string    `json:"text"`
		// From is the node whose daemon told it first.
		From string `json:"-"`
	}
	// Fence is one fence of picket fence history --json.
	Fence struct {
		Intent   uint64    `json:"intent"`
		Node     string    `json:"node"`
		BootID   string    `json:"boot_id"`
		Code     string    `json:"code"`
		Text     string    `json:"text"`
		State    string    `json:"state"`
		Attempts []Attempt `json:"attempts"`
		Evidence string    `json:"evidence"`
		Operator string    `json:"operator"`
		Reason   string    `json:"reason"`
	}
	// Attempt is one use of one fence device.
	Attempt struct {
		Device   string `json:"device"`
		Executor string `json:"executor"`
		Outcome  string `json:"outcome"`
		Text     string `json:"text"`
	}
)

// Group returns the named group of a status, or the zero Group.
func (s Status) Group(name string) Group {
	for _, g := range s.Groups {
		if g.Name == name {
			return g
		}
	}
	return Group{}
}

// NodeNamed returns the named node of a status, or the zero Node.
func (s Status) NodeNamed(name string) Node {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	return Node{}
}

// Has returns the condition with that code about that subject ("": about anything).
func (s Status) Has(code, subject string) (Condition, bool) {
	for _, c := range s.Conditions {
		if c.Code == code && (subject == "" || c.Subject == subject) {
			return c, true
		}
	}
	return Condition{}, false
}

// Cable returns the condition by which the status tells that a cable is out: of one link, or of a NIC
// on which this node hears nobody at all.
func (s Status) Cable() (Condition, bool) {
	if c, ok := s.Has("NIC_DEAF", ""); ok {
		return c, true
	}
	return s.Has("LINK_DEAD", "")
}

// read runs a picket command that prints JSON and decodes it. status answers with exit code 1 or 3
// when it is not well: that is an answer too.
func (c *Cluster) read(ctx context.Context, node string, into any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := c.Lab.Run(ctx, node, append([]string{"picket"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out.Stdout), into); err != nil {
		return fmt.Errorf("picket %s on %s: exit code %d: %s", strings.Join(args, " "), node, out.Code, first(out.Stderr, out.Stdout, "no answer"))
	}
	return nil
}

// StatusOf asks one node.
func (c *Cluster) StatusOf(ctx context.Context, node string) (Status, error) {
	var s Status
	return s, c.read(ctx, node, &s, "status", "--json")
}

// Up lists the nodes whose daemon runs now, in the lab's order.
func (c *Cluster) Up(ctx context.Context) ([]string, error) {
	st, err := c.Lab.Status(ctx)
	if err != nil {
		return nil, err
	}
	var up []string
	for _, n := range st.Nodes {
		if n.Power == "on" && n.Daemon == "running" {
			up = append(up, n.Name)
		}
	}
	return up, nil
}

// Status asks the nodes in turn and prefers the leader's answer, then that of a node which follows
// a leader.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	up, err := c.Up(ctx)
	if err != nil {
		return Status{}, err
	}
	if i := slices.Index(up, c.lastLeader); i > 0 {
		up[0], up[i] = up[i], up[0]
	}
	var best Status
	last := fmt.Errorf("no daemon runs on any node")
	for _, n := range up {
		s, err := c.StatusOf(ctx, n)
		switch {
		case err != nil:
			last = err
		case s.Leader == n && s.Quorum.OK:
			c.lastLeader = n
			return s, nil
		case best.Node == "" || (s.Quorum.OK && s.Leader != "" && (!best.Quorum.OK || best.Leader == "")):
			best = s
		}
	}
	if best.Node == "" {
		return best, last
	}
	return best, nil
}

// Fences reads the fence history of a node with quorum.
func (c *Cluster) Fences(ctx context.Context) ([]Fence, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	var f []Fence
	return f, c.read(ctx, s.Node, &f, "fence", "history", "--json")
}

// Events merges what all running daemons tell and have told in earlier calls: a log entry once, with
// the earliest time at which any daemon had applied it; what is not in the log (links, lateness) as
// each daemon told it. A daemon that was restarted replays the log and tells old entries anew, and
// the executor of a fence applies an entry earlier than a follower hears that it is committed: so
// what a daemon said before it died is kept.
func (c *Cluster) Events(ctx context.Context) ([]Event, error) {
	up, err := c.Up(ctx)
	if err != nil {
		return nil, err
	}
	if c.heard == nil {
		c.heard = make(map[string]Event)
	}
	for _, n := range up {
		list, err := c.eventsOf(ctx, n)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			key := fmt.Sprintf("%d %s", e.Index, e.Text)
			if e.Index == 0 {
				key = fmt.Sprintf("%s %d %s", n, e.Time.UnixNano(), e.Text)
			}
			if old, ok := c.heard[key]; !ok || e.Time.Before(old.Time) {
				c.heard[key] = e
			}
		}
	}
	return ordered(slices.Collect(maps.Values(c.heard))), nil
}

// ordered puts log entries in the log's order and everything else between them by its time. The
// times of two entries need not rise with the log: they may come from different daemons.
func ordered(list []Event) []Event {
	byTime := func(a, b Event) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Text, b.Text), cmp.Compare(a.From, b.From))
	}
	var entries, local []Event
	for _, e := range list {
		if e.Index != 0 {
			entries = append(entries, e)
		} else {
			local = append(local, e)
		}
	}
	slices.SortFunc(entries, func(a, b Event) int { return cmp.Or(cmp.Compare(a.Index, b.Index), byTime(a, b)) })
	slices.SortFunc(local, byTime)
	var all []Event
	for _, e := range entries {
		for len(local) > 0 && local[0].Time.Before(e.Time) {
			all, local = append(all, local[0]), local[1:]
		}
		all = append(all, e)
	}
	return append(all, local...)
}

func (c *Cluster) eventsOf(ctx context.Context, node string) ([]Event, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := c.Lab.Run(ctx, node, "picket", "events", "--json")
	if err != nil {
		return nil, err
	}
	var list []Event
	sc := bufio.NewScanner(strings.NewReader(out.Stdout))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var e Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("picket events on %s: %w", node, err)
		}
		e.From = node
		list = append(list, e)
	}
	return list, sc.Err()
}

// first returns the first of the texts that is not empty, trimmed.
func first(texts ...string) string {
	for _, t := range texts {
		if t = strings.TrimSpace(t); t != "" {
			return t
		}
	}
	return ""
}

// contains is strings.Contains for text that may be wrapped to a terminal's width.
func contains(text, part string) bool {
	return strings.Contains(strings.Join(strings.Fields(text), " "), part)
}
