package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
)

// refusal turns a state machine's no into an error with the way out.
func refusal(r reason.Reason) *control.Error {
	return control.Refused(string(r.Code), r.Text(), r.Action())
}

func unavailable(err error) *control.Error {
	if errors.Is(err, raftnode.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) {
		return &control.Error{Class: control.ClassUnknown, Text: "the cluster did not answer in time: " + err.Error(), Action: "it may still happen: look at picket status before you repeat it"}
	}
	return noLeader()
}

func noLeader() *control.Error {
	return control.Unavailable(string(reason.NoLeader), "the cluster has no leader right now: nothing was changed", "wait a moment and repeat it; if it stays so, look at picket status: a majority of the voters must be reachable")
}

// fromRemote gives an operator the leader's own answer.
func fromRemote(re *mesh.RemoteError) error {
	var e control.Error
	if json.Unmarshal([]byte(re.Msg), &e) == nil && e.Class != "" {
		return &e
	}
	return &control.Error{Class: control.ClassInternal, Text: re.Msg}
}

func toRemote(err error) error {
	var e *control.Error
	if !errors.As(err, &e) {
		e = &control.Error{Class: control.ClassInternal, Text: err.Error()}
	}
	b, jerr := json.Marshal(e)
	if jerr != nil {
		return err
	}
	return &mesh.RemoteError{Code: "OPERATOR", Msg: string(b)}
}

// opMemory answers a repeated operation with the first answer, also where the first one is still being
// carried out.
type opMemory struct {
	mu    sync.Mutex
	order []string
	m     map[string]control.Answer
	busy  map[string]chan struct{} // closed when the operation has ended
}

const opMemoryLen = 256

// begin returns the remembered answer; or nil, and then end must follow the operation.
func (o *opMemory) begin(ctx context.Context, id string) (*control.Answer, error) {
	for {
		o.mu.Lock()
		if a, ok := o.m[id]; ok {
			o.mu.Unlock()
			return &a, nil
		}
		first := o.busy[id]
		if first == nil {
			if o.busy == nil {
				o.busy = map[string]chan struct{}{}
			}
			o.busy[id] = make(chan struct{})
		}
		o.mu.Unlock()
		if first == nil {
			return nil, nil
		}
		select {
		case <-first: // where it failed, this one is carried out in its place
		case <-ctx.Done():
			return nil, unavailable(ctx.Err())
		}
	}
}

func (o *opMemory) end(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.busy[id])
	delete(o.busy, id)
}

func (o *opMemory) put(id string, a control.Answer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = map[string]control.Answer{}
	}
	if _, ok := o.m[id]; !ok {
		o.order = append(o.order, id)
	}
	o.m[id] = a
	if len(o.order) > opMemoryLen {
		delete(o.m, o.order[0])
		o.order = o.order[1:]
	}
}

// Operate carries out an operator's command: here if this node leads, and otherwise by the leader, with
// the operator's name.
func (n *Node) Operate(ctx context.Context, op control.Operation) (control.Answer, error) {
	leader, _ := n.raft.Leader()
	switch leader {
	case "":
		return control.Answer{}, noLeader()
	case n.self:
		return n.operate(ctx, op)
	}
	op.Operator += " at " + string(n.self)
	b, err := json.Marshal(op)
	if err != nil {
		return control.Answer{}, err
	}
	out, err := n.calls.Call(ctx, leader, callOperate, b)
	var re *mesh.RemoteError
	var ce *mesh.CallError
	switch {
	case errors.As(err, &re):
		return control.Answer{}, fromRemote(re)
	case errors.As(err, &ce) && !ce.MayHaveRun:
		return control.Answer{}, noLeader()
	case err != nil:
		return control.Answer{}, &control.Error{Class: control.ClassUnknown, Text: "the leader did not answer: " + err.Error(), Action: "it may still happen: look at picket status before you repeat it"}
	}
	var a control.Answer
	return a, json.Unmarshal(out, &a)
}

// handleOperator answers another node's question on behalf of its operator.
func (n *Node) handleOperator(ctx context.Context, from ids.Node, method string, body []byte) ([]byte, error) {
	v, err := n.view(ctx)
	if err != nil {
		return nil, err
	}
	if !v.Leading {
		return nil, toRemote(noLeader())
	}
	var out any
	switch method {
	case callStatus:
		out = n.render(v)
	case callWhy:
		out, err = explain(v, string(body), time.Now())
	default:
		var op control.Operation
		if jerr := json.Unmarshal(body, &op); jerr != nil {
			return nil, toRemote(control.Usage("the command could not be read: %v", jerr))
		}
		if cerr := op.Check(); cerr != nil {
			return nil, toRemote(cerr)
		}
		n.log.Info("an operator's command comes from another node", "node", from, "kind", op.Kind, "operator", op.Operator)
		out, err = n.operate(ctx, op)
	}
	if err != nil {
		return nil, toRemote(err)
	}
	return json.Marshal(out)
}

// operate carries out a command on the leader.
func (n *Node) operate(ctx context.Context, op control.Operation) (control.Answer, error) {
	if !n.awaitFounded(ctx) {
		return control.Answer{}, noLeader()
	}
	if op.ID == "" {
		return n.operateOnce(ctx, op)
	}
	switch a, err := n.ops.begin(ctx, op.ID); {
	case err != nil:
		return control.Answer{}, err
	case a != nil:
		return *a, nil
	}
	defer n.ops.end(op.ID)
	a, err := n.operateOnce(ctx, op)
	if err == nil {
		n.ops.put(op.ID, a)
	}
	return a, err
}

func (n *Node) operateOnce(ctx context.Context, op control.Operation) (control.Answer, error) {
	node, group := ids.Node(op.Node), ids.Group(op.Group)
	who := op.Operator
	if op.Reason != "" {
		who += " (" + op.Reason + ")"
	}
	say := func(cmd state.Command, f string, a ...any) (control.Answer, error) {
		i, err := n.propose(ctx, cmd)
		return control.Answer{Text: fmt.Sprintf(f, a...), Index: i}, err
	}
	if op.For != 0 && op.Kind != control.OpTokenCreate {
		return control.Answer{}, control.Usage("--for is not supported by this version: undo it by hand")
	}
	switch op.Kind {
	case control.OpApply, control.OpApplyCheck:
		return n.apply(ctx, op)
	case control.OpNodeStandby:
		return say(state.NodeMode{Node: node, Standby: true, Operator: who}, "%s is on standby: what it owns moves away now", node)
	case control.OpNodeOnline:
		return say(state.NodeMode{Node: node, Operator: who}, "%s may own groups again", node)
	case control.OpNodeRemove:
		return n.remove(ctx, op, who)
	case control.OpGroupStart:
		return say(state.GroupMode{Group: group, Operator: who}, "group %s is to run; its failures are forgotten", group)
	case control.OpGroupStop:
		return say(state.GroupMode{Group: group, Stopped: true, Operator: who}, "group %s is to be stopped", group)
	case control.OpGroupCleanup:
		return say(state.Cleanup{Group: group, Operator: who}, "the failures of group %s are forgotten", group)
	case control.OpGroupMove:
		return n.move(ctx, op, who)
	case control.OpFence:
		return n.fence(ctx, op, who)
	case control.OpFenceConfirm:
		return n.confirm(ctx, op)
	case control.OpTokenCreate:
		return n.token(ctx, op)
	}
	return control.Answer{}, control.Usage("this version does not know the command %q", op.Kind)
}

func (n *Node) apply(ctx context.Context, op control.Operation) (control.Answer, error) {
	file := op.File
	if file == "" {
		file = "cluster file"
	}
	c, err := config.ParseCluster(file, []byte(op.Text))
	if err != nil {
		return control.Answer{}, control.Usage("%s", err.Error())
	}
	s := n.fsm.State()
	if len(c.Secrets) > 0 {
		return control.Answer{}, control.Usage("%s holds a password (-P): put it into a file of its own and use -f", file)
	}
	if err := n.fits(c.Config, s); err != nil {
		return control.Answer{}, err
	}
	base := op.Revision
	if base == 0 {
		base = s.Revision
	}
	a := control.Answer{Warnings: c.Warnings, Revision: s.Revision, Changes: changes(s, c.Config)}
	if op.Kind == control.OpApplyCheck || op.DryRun {
		_, r := state.Apply(s, s.Index+1, state.Entry{At: wallMS(), Cmd: state.ConfigSet{Base: base, Config: c.Config, Operator: op.Operator}})
		if !r.OK() {
			return a, refusal(r.Refused)
		}
		a.Text = "the file is fine; nothing was changed"
		return a, nil
	}
	if s.Revision != 0 && base == s.Revision && s.Config.Source == c.Config.Source {
		a.Text = "nothing to change: this file is in force already"
		return a, nil
	}
	i, err := n.propose(ctx, state.ConfigSet{Base: base, Config: c.Config, Operator: op.Operator})
	if err != nil {
		return a, err
	}
	a.Index, a.Revision, a.Text = i, i, fmt.Sprintf("applied: revision %d is in force", i)
	return a, nil
}

// fits refuses what only a running cluster can see: another cluster's file, or a service address that
// is a node's own.
func (n *Node) fits(c state.Config, s state.State) error {
	if c.Cluster != n.conf.Cluster {
		return control.Refused(string(reason.RefusedConfig), fmt.Sprintf("the file is of cluster %q, this is cluster %q", c.Cluster, n.conf.Cluster), "correct cluster: in the file, or apply it on the right cluster")
	}
	for _, g := range c.Groups {
		for _, r := range g.Resources {
			if r.IP == nil {
				continue
			}
			for _, x := range s.Nodes {
				if slices.ContainsFunc(x.Links, func(l state.LinkAddr) bool { return l.Addr == r.IP.Prefix.Addr().String() }) {
					return control.Refused(string(reason.RefusedConfig), fmt.Sprintf("group %s: %s is the own address of %s", g.Name, r.IP.Prefix.Addr(), x.Name), "a service address must be one that no node has by itself")
				}
			}
		}
	}
	return nil
}

// changes says in sentences what an apply would change.
func changes(s state.State, c state.Config) []string {
	var out []string
	for _, g := range s.Groups {
		if c.Group(g.Name) == nil {
			out = append(out, fmt.Sprintf("group %s is removed: it is stopped first", g.Name))
		}
	}
	for _, g := range c.Groups {
		old := s.Config.Group(g.Name)
		switch {
		case s.Revision == 0 || old == nil:
			out = append(out, fmt.Sprintf("group %s is new", g.Name))
		case !slices.EqualFunc(old.Resources, g.Resources, func(a, b state.ResourceConfig) bool {
			return a.ID == b.ID && a.Monitor == b.Monitor && (a.IP == nil) == (b.IP == nil) && (a.IP == nil || *a.IP == *b.IP)
		}):
			out = append(out, fmt.Sprintf("group %s has other resources: it is stopped and started again", g.Name))
		}
	}
	if s.Revision != 0 && s.Config.Timing != c.Timing {
		out = append(out, "the timing changes")
	}
	return out
}

func (n *Node) move(ctx context.Context, op control.Operation, who string) (control.Answer, error) {
	s := n.fsm.State()
	g, to := s.Group(ids.Group(op.Group)), ids.Node(op.To)
	if g == nil {
		return control.Answer{}, refusal(reason.New(reason.RefusedUnknown, "what", "group", "name", op.Group))
	}
	if to == "" {
		v, err := n.view(ctx)
		if err != nil {
			return control.Answer{}, err
		}
		for _, gv := range v.Plan.Groups {
			for _, x := range gv.Nodes {
				if gv.Name == g.Name && x.Is != "excluded" && x.Node != g.Owner.Node && to == "" {
					to = x.Node
				}
			}
		}
		if to == "" {
			return control.Answer{}, control.Refused(string(reason.NoCandidate), fmt.Sprintf("no other node may own group %s now", g.Name), "see: picket why "+op.Group)
		}
	}
	if g.Owner.Node == to && g.Epoch != 0 {
		return control.Answer{Text: fmt.Sprintf("nothing to do: group %s is on %s already", g.Name, to)}, nil
	}
	i, err := n.propose(ctx, state.Move{Group: g.Name, To: to, Operator: who})
	return control.Answer{Text: fmt.Sprintf("group %s moves to %s", g.Name, to), Index: i}, err
}

// remove takes a node out of the cluster. A group that still names it could never be granted again
// (rule 15), so the cluster file comes first.
func (n *Node) remove(ctx context.Context, op control.Operation, who string) (control.Answer, error) {
	s := n.fsm.State()
	for _, g := range s.Config.Groups {
		if slices.Contains(g.Nodes, ids.Node(op.Node)) {
			return control.Answer{}, control.Refused(string(reason.RefusedOpen), fmt.Sprintf("group %s still names %s in the cluster file", g.Name, op.Node), "take it out of the file and picket apply it first")
		}
	}
	if op.Node == string(n.self) {
		return n.elsewhere(ctx, op)
	}
	i, err := n.propose(ctx, state.NodeRemove{Name: ids.Node(op.Node), Operator: who})
	return control.Answer{Text: fmt.Sprintf("%s is no longer part of the cluster; to use the machine again, stop picket there, remove its node file and state directory and join it", op.Node), Index: i}, err
}

// fence condemns a node's newest boot by an operator's word. Proof is still needed.
func (n *Node) fence(ctx context.Context, op control.Operation, who string) (control.Answer, error) {
	s := n.fsm.State()
	x := s.Node(ids.Node(op.Node))
	switch {
	case x == nil:
		return control.Answer{}, refusal(reason.New(reason.RefusedUnknown, "what", "node", "name", op.Node))
	case x.Up.IsZero():
		return control.Answer{}, control.Refused(string(reason.RefusedUnknown), op.Node+" has never been up: there is nothing to fence", "")
	case x.Name == n.self:
		return n.elsewhere(ctx, op)
	}
	why := op.Reason
	if why == "" {
		why = "by " + op.Operator
	}
	i, err := n.propose(ctx, state.FenceIntent{Target: x.Up, Operator: who, Reason: reason.New(reason.OperatorFence, "why", why)})
	return control.Answer{Text: fmt.Sprintf("%s is condemned: it is powered off, and what it owns moves when it is proven off (picket fence history)", op.Node), Index: i}, err
}

// elsewhere hands the leadership over, and with it a command that is against this very node: nobody
// fences or removes itself.
func (n *Node) elsewhere(ctx context.Context, op control.Operation) (control.Answer, error) {
	if err := (raftLog{n.raft}).StepDown(ctx); err != nil {
		return control.Answer{}, control.Unavailable("", "this node leads and could not hand the leadership over: "+err.Error(), "repeat the command from another node")
	}
	op.ID = "" // this node is still busy with that id, should the leadership come straight back
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		if leader, _ := n.raft.Leader(); leader != "" && leader != n.self {
			return n.Operate(ctx, op)
		}
		select {
		case <-ctx.Done():
			return control.Answer{}, noLeader()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// confirm takes a human's word that a node is off: never while it shows signs of life, and only with the
// node's name typed once more and a reason. It is kept in the log for ever.
func (n *Node) confirm(ctx context.Context, op control.Operation) (control.Answer, error) {
	if op.Confirm != op.Node || strings.TrimSpace(op.Reason) == "" {
		return control.Answer{}, control.Usage("fence confirm needs the node's name once more (--confirm %s) and --reason", op.Node)
	}
	s := n.fsm.State()
	x := s.Node(ids.Node(op.Node))
	if x == nil {
		return control.Answer{}, refusal(reason.New(reason.RefusedUnknown, "what", "node", "name", op.Node))
	}
	var open *state.Fence
	for i := range s.Fences {
		if f := &s.Fences[i]; f.Open() && f.Target.Node == x.Name {
			open = f
		}
	}
	// A later boot that talks is no sign of life of the condemned one.
	if open == nil || open.Target.Boot == x.Up.Boot {
		if sign := n.alive(ctx, x.Name, s.Config.Timing); sign != "" {
			return control.Answer{}, refusal(reason.New(reason.RefusedAlive, "node", op.Node, "why", sign))
		}
	}
	if open == nil {
		return control.Answer{}, control.Refused(string(reason.RefusedOpen), fmt.Sprintf("no fence of %s waits for proof: there is nothing to confirm", op.Node), "see: picket fence history")
	}
	i, err := n.propose(ctx, state.FenceConfirm{Fence: open.ID, Evidence: state.Evidence{Kind: state.Human, Operator: op.Operator, Why: op.Reason}})
	return control.Answer{Text: fmt.Sprintf("%s counts as dead by your word; what it owned starts elsewhere now", op.Node), Index: i}, err
}

// alive looks for signs of life of a node and returns one, or "".
func (n *Node) alive(ctx context.Context, name ids.Node, t state.Timing) string {
	if name == n.self {
		return "it is answering you"
	}
	v, err := n.view(ctx)
	if err != nil {
		return "this node's own view could not be read"
	}
	for _, f := range v.Facts.Nodes {
		if f.Name != name {
			continue
		}
		switch {
		case f.Ever && f.Age < 3*t.Dead:
			return "its newest heartbeat is " + f.Age.Round(time.Millisecond).String() + " old"
		case f.Others:
			return "another node still hears it"
		case f.Refused:
			return "its kernel answers on the network"
		}
	}
	pctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if refused, err := n.mesh.Probe(pctx, name); err == nil && refused {
		return "its kernel answers on the network"
	}
	return ""
}

func (n *Node) token(ctx context.Context, op control.Operation) (control.Answer, error) {
	ttl := op.For
	if ttl == 0 {
		ttl = config.DefaultTokenTTL
	}
	t, err := pki.NewToken(n.ca.Fingerprint(), ttl, time.Now())
	if err != nil {
		return control.Answer{}, control.Usage("%s", err.Error())
	}
	i, err := n.propose(ctx, state.TokenMint{Hash: t.Hash, Expires: t.Expires.UnixMilli(), By: op.Operator})
	if err != nil {
		return control.Answer{}, err
	}
	return control.Answer{Text: "the token admits one node", Index: i, Token: t.Text, Expires: t.Expires,
		JoinCommand: joinCommand(linkAddrs(n.conf.Links), n.conf.Port, t.Text)}, nil
}
