package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/bmcsim"
	"github.com/picket-ha/picket/integration/check"
)

// request is what a client of the control socket asks: one per connection, except that a
// running exec may be followed by signals.
type request struct {
	Op   string         `json:"op"`
	Node string         `json:"node,omitempty"`
	Cut  *Cut           `json:"cut,omitempty"`
	Link string         `json:"link,omitempty"`
	On   bool           `json:"on,omitempty"`
	Argv []string       `json:"argv,omitempty"`
	Env  []string       `json:"env,omitempty"`
	Sig  int            `json:"sig,omitempty"`
	VIP  netip.Addr     `json:"vip,omitzero"`
	BMC  *bmcsim.Faults `json:"bmc,omitempty"`
	Echo bool           `json:"echo,omitempty"`
}

// Kinds of replies: any number of echo lines and one started may precede the one done.
const (
	replyEcho    = "echo"
	replyStarted = "started"
	replyDone    = "done"
)

type reply struct {
	Kind string          `json:"kind"`
	Text string          `json:"text,omitempty"`
	Err  string          `json:"err,omitempty"`
	Code int             `json:"code,omitempty"`
	Data json.RawMessage `json:"data,omitempty"`
}

// converse serves one connection.
func (s *supervisor) converse(c *net.UnixConn) {
	var req request
	files, err := receive(c, &req)
	if err != nil {
		return
	}
	defer closeAll(files)
	var mu sync.Mutex
	say := func(r reply) {
		mu.Lock()
		defer mu.Unlock()
		_ = send(c, r) // a client that went away needs no answer
	}
	if req.Echo {
		defer s.sh.listen(func(line string) { say(reply{Kind: replyEcho, Text: line}) })()
	}
	r := reply{Kind: replyDone}
	if req.Op == "exec" {
		r.Code, err = s.exec(c, req, files, say)
	} else {
		r.Data, err = s.obey(req)
	}
	if err != nil {
		r.Err = err.Error()
	}
	say(r)
	if req.Op == "down" {
		s.stop()
	}
}

// obey carries out one order that is not exec.
func (s *supervisor) obey(req request) (json.RawMessage, error) {
	switch req.Op {
	case "status":
		return json.Marshal(s.status())
	case "watch":
		return nil, s.watch(req.VIP)
	case "flush":
		return nil, s.rec.Flush()
	case "down":
		return nil, s.rec.Flush()
	case "heal":
		return nil, s.heal(req)
	}
	m, err := s.find(req.Node, req.Op == "list" || req.Op == "cut")
	if err != nil {
		return nil, err
	}
	switch req.Op {
	case "cut":
		return nil, s.cut(m, req.Cut)
	case "power":
		m.fault(fmt.Sprintf("power on=%v", req.On))
		if req.On {
			return nil, m.powerOn("lab")
		}
		return nil, m.powerOff("lab")
	case "plug":
		m.fault("plug in")
		return nil, m.plug()
	case "unplug":
		m.fault("pull the cord of node and BMC")
		return nil, m.unplug()
	case "start":
		return nil, m.startDaemon()
	case "signal":
		return nil, m.signalDaemon(unix.Signal(req.Sig))
	case "bmc":
		if req.BMC == nil {
			return nil, errors.New("which faults the BMC shall have is missing")
		}
		m.fault(fmt.Sprintf("BMC faults %+v", *req.BMC))
		return nil, m.setFaults(*req.BMC)
	case "list":
		l, err := m.current()
		if err != nil {
			return nil, err
		}
		r, err := l.call(initRequest{Op: opList})
		if err != nil {
			return nil, err
		}
		return json.Marshal(r.Procs)
	}
	return nil, fmt.Errorf("the lab does not know the order %q", req.Op)
}

func (s *supervisor) cut(m *machine, c *Cut) error {
	if c == nil {
		return errors.New("which link to cut is missing")
	}
	links := []string{LinkPublic, LinkHeartbeat, LinkMgmt, LinkBMC}
	if m == s.client {
		links = links[:1]
	}
	if !slices.Contains(links, c.Link) {
		return fmt.Errorf("%s has no link %q (it has %v)", m.name, c.Link, links)
	}
	if c.Direction == "" {
		c.Direction = Both
	}
	if c.Direction != Both && c.Direction != In && c.Direction != Out {
		return fmt.Errorf("a cut goes in, out or both ways, not %q", c.Direction)
	}
	if c.Carrier && c.Direction != Both {
		return errors.New("a cable without carrier is cut both ways; leave --direction out")
	}
	m.fault(fmt.Sprintf("cut %s %s carrier-lost=%v", c.Link, c.Direction, c.Carrier))
	return s.sw.cut(m.name, *c)
}

func (s *supervisor) heal(req request) error {
	if req.Node != "" {
		if _, err := s.find(req.Node, true); err != nil {
			return err
		}
	}
	n, err := s.sw.heal(req.Node, req.Link)
	s.rec.Add(check.Record{Stream: check.StreamFault, Kind: "heal", Node: req.Node, Text: fmt.Sprintf("mended %d cable(s) %s", n, req.Link)})
	return err
}

// exec runs a program on a node with the client's own files as its standard streams. When the
// client goes away the program's whole process group is killed.
func (s *supervisor) exec(c *net.UnixConn, req request, files []*os.File, say func(reply)) (int, error) {
	m, err := s.find(req.Node, true)
	if err != nil {
		return 0, err
	}
	l, err := m.current()
	if err != nil {
		return 0, err
	}
	t, err := l.run(initRequest{Argv: req.Argv, Env: append(m.env(), req.Env...)}, files)
	if err != nil {
		return 0, err
	}
	closeAll(files) // or a pipe of the client would never end
	say(reply{Kind: replyStarted})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var more request
			extra, err := receive(c, &more)
			if err != nil {
				return
			}
			closeAll(extra)
			if more.Op == "signal" {
				_ = l.signal(-t.pid, unix.Signal(more.Sig)) // it may have ended meanwhile
			}
		}
	}()
	select {
	case <-t.done:
	case <-gone:
		_ = l.signal(-t.pid, unix.SIGKILL)
		<-t.done
	}
	if t.code == 128+int(unix.SIGKILL) {
		select {
		case <-l.dead:
			return t.code, fmt.Errorf("%s: %w", m.name, errNodeDied)
		default:
		}
	}
	return t.code, nil
}
