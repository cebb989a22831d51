package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/driver"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/consensus/raftnode/mesh"
	"github.com/picket-ha/picket/consensus/reason"
	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/fencing/ipmi"
	"github.com/picket-ha/picket/resources"
	"github.com/picket-ha/picket/resources/ip"
)

var _ driver.Machine = (*Node)(nil)

// held is one resource of this node with the parameters it was made from.
type held struct {
	conf state.ResourceConfig
	res  resources.Resource
	ip   *ip.Address
}

// shelf keeps the resources that this process has touched.
type shelf struct {
	mu sync.Mutex
	m  map[ids.Resource]*held
}

// take returns the resource of that configuration, made anew when its parameters changed.
func (s *shelf) take(c state.ResourceConfig, n *Node) (*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[ids.Resource]*held{}
	}
	if h, ok := s.m[c.ID]; ok && c.IP != nil && h.conf.IP != nil && *h.conf.IP == *c.IP {
		return h, nil
	}
	if c.IP == nil {
		return nil, fmt.Errorf("resource %s is of a kind that this version does not run: upgrade picket on this node", c.ID)
	}
	a, err := ip.New(ip.Options{ID: c.ID, Prefix: c.IP.Prefix, Interface: c.IP.Interface, ProbeWait: c.IP.ProbeWait,
		Refresh: c.IP.Refresh, Logger: n.log})
	if err != nil {
		return nil, err
	}
	if old := s.m[c.ID]; old != nil && old.ip != nil {
		_ = old.ip.Close()
	}
	s.m[c.ID] = &held{conf: c, res: a, ip: a}
	return s.m[c.ID], nil
}

// announce tells the network again where the addresses on an interface are, after a heal.
func (s *shelf) announce(iface string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.m {
		if h.ip != nil && h.conf.IP.Interface == iface {
			h.ip.Announce()
		}
	}
}

func (s *shelf) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, h := range s.m {
		if h.ip != nil {
			errs = append(errs, h.ip.Close())
		}
	}
	return errors.Join(errs...)
}

// RunResource runs one resource operation.
func (n *Node) RunResource(ctx context.Context, r state.ResourceConfig, req resources.Request) error {
	h, err := n.shelf.take(r, n)
	if err != nil {
		return err
	}
	began := time.Now()
	switch req.Op {
	case resources.OpStart:
		n.log.Info("acquiring "+h.res.Describe(), "group", req.Group, "epoch", req.Epoch)
		err = h.res.Start(ctx, req.Epoch, req.Adopt)
	case resources.OpStop:
		n.log.Info("releasing "+h.res.Describe(), "group", req.Group, "epoch", req.Epoch)
		err = h.res.Stop(ctx)
	default:
		return h.res.Monitor(ctx)
	}
	if err != nil {
		n.log.Warn(string(req.Op)+" failed: "+h.res.Describe(), "err", err, "took", time.Since(began).Round(time.Millisecond))
	}
	return err
}

// Prepare lets a resource do the part of a start that claims nothing.
func (n *Node) Prepare(ctx context.Context, r state.ResourceConfig) {
	h, err := n.shelf.take(r, n)
	if err != nil {
		return // the start says so
	}
	if p, ok := h.res.(resources.Preparer); ok {
		p.Prepare(ctx)
	}
}

// Power runs one power attempt with the identity pinned in the fence.
func (n *Node) Power(ctx context.Context, p core.Power, gate fencing.Gate) fencing.Report {
	if p.Device.IPMI == nil {
		return fencing.Report{Op: p.Op, Outcome: fencing.OutcomeFailed, Identity: fencing.IdentityUnproven, Detail: "this version cannot use a fence device of that kind"}
	}
	d := ipmi.New(p.Node, *p.Device.IPMI, func() string { return p.UUID }, n.log)
	d.PollMin = 20 * time.Millisecond // a machine that is off is off: every poll waits on the way to a takeover
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := d.Close(ctx); err != nil {
			n.log.Warn("a fence device's session was not closed", "node", p.Node, "err", err)
		}
	}()
	return d.Power(ctx, p.Op, gate)
}

// Record stores what may run on this boot.
func (n *Node) Record(entries []core.RunEntry) error {
	return writeRecord(recordPath(n.opt.Paths), n.host.Boot, entries)
}

// Reset ends the machine.
func (n *Node) Reset(why reason.Reason) {
	n.log.Error("this machine is reset now: "+why.Text(), "code", why.Code)
	n.opt.Reset(why)
}

// Fatal ends the process.
func (n *Node) Fatal(err error) {
	n.log.Error("picket stops: it cannot go on safely", "err", err)
	n.opt.Fatal(err)
}

// Exit says that a clean stop is complete.
func (n *Node) Exit(clean bool) {
	select {
	case n.exited <- clean:
	default:
	}
}

// Journal writes one line to the log and to the event stream, and keeps the mesh's view of the links.
func (n *Node) Journal(j core.Journal) {
	ev := control.Event{Time: time.Now(), Index: j.Index, Kind: j.Kind, Code: string(j.Reason.Code), Text: j.Text}
	for _, a := range j.Reason.Args {
		ev.Args = append(ev.Args, control.Arg{Key: a.Key, Value: a.Value})
	}
	switch j.Kind {
	case "group":
		ev.Group = j.Subject
	case "lease":
		ev.Kind, ev.Group = "group", j.Subject
	case "refused":
		ev.Kind = "operator"
	case "link":
		p, l := splitLink(j.Subject)
		ev.Node = string(p)
		n.link(p, l, j.Reason.Code)
	default:
		ev.Node = j.Subject
	}
	n.events.Append(ev)
	if reason.Explain(j.Reason.Code).Severity >= reason.Warning {
		n.log.Warn(j.Text)
	} else {
		n.log.Info(j.Text)
	}
}

// link follows one link: the mesh drops what runs over a dead one, and a link that comes back makes
// the addresses on it be announced again.
func (n *Node) link(p ids.Node, l string, c reason.Code) {
	switch c {
	case reason.LinkDead:
		n.ranks.set(string(p)+":"+l, mesh.RankDead)
		n.mesh.DropLink(p, l)
	case reason.LinkLate:
		// Raft's election timeout is shorter than the time after which a link is dead: what runs over a
		// late link moves to another one now, so that a cut cable costs no election.
		n.ranks.set(string(p)+":"+l, mesh.RankUnknown)
		n.mesh.Suspect(p, l)
	default:
		n.ranks.set(string(p)+":"+l, mesh.RankUp)
		n.shelf.announce(l)
	}
}
