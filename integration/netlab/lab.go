package netlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/bmcsim"
	"github.com/picket-ha/picket/integration/check"
)

// orderTimeout bounds one order to the lab other than exec.
const orderTimeout = 60 * time.Second

// maxOutput bounds what Run keeps of a program's output, in bytes per stream.
const maxOutput = 4 << 20

// Lab is a handle on a running lab. It is safe for concurrent use.
type Lab struct {
	dir    string
	echo   io.Writer
	starts *net.UnixConn // nil for a lab that somebody else started
	ended  <-chan struct{}
}

// DefaultDir is where a lab lives when nothing else is said: a directory of this user's.
func DefaultDir() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return filepath.Join(d, "picket-lab")
	}
	return fmt.Sprintf("/tmp/picket-lab-%d", os.Getuid())
}

// Open finds the lab that runs in dir (empty: DefaultDir). echo may be nil; it receives the ip
// and nft commands that this handle's orders cause.
func Open(dir string, echo io.Writer) (*Lab, error) {
	if dir == "" {
		dir = DefaultDir()
	}
	l := &Lab{dir: dir, echo: echo}
	c, err := l.dial()
	if err != nil {
		return nil, err
	}
	return l, c.Close()
}

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// dial connects to the control socket through an open directory, because the path of a unix
// socket has at most 107 bytes and a test's directory may have more.
func (l *Lab) dial() (*net.UnixConn, error) {
	d, err := os.OpenFile(l.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("no lab runs in %s; start one with: picket-lab up", l.dir)
	}
	defer d.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), controlSocket)
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		return nil, fmt.Errorf("no lab runs in %s; start one with: picket-lab up", l.dir)
	}
	return c, nil
}

// order sends one request and waits for its end; out, when not nil, receives the answer's data.
func (l *Lab) order(ctx context.Context, req request, out any) error {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	c, err := l.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	req.Echo = l.echo != nil
	if err := send(c, req); err != nil {
		return err
	}
	r, err := l.result(ctx, c)
	if err != nil {
		return err
	}
	if out != nil {
		if err := json.Unmarshal(r.Data, out); err != nil {
			return fmt.Errorf("understand the lab's answer to %s: %w", req.Op, err)
		}
	}
	return nil
}

// result reads replies to the last one.
func (l *Lab) result(ctx context.Context, c *net.UnixConn) (reply, error) {
	for {
		var r reply
		files, err := receive(c, &r)
		if err != nil {
			if ctx.Err() != nil {
				return r, ctx.Err()
			}
			return r, fmt.Errorf("the lab ended before it answered: %w", err)
		}
		closeAll(files)
		switch {
		case r.Kind == replyEcho && l.echo != nil:
			fmt.Fprintln(l.echo, r.Text)
		case r.Kind == replyDone && r.Err != "":
			return r, errors.New(r.Err)
		case r.Kind == replyDone:
			return r, nil
		}
	}
}

// Status asks the lab what it knows of its nodes.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, l.order(ctx, request{Op: "status"}, &s)
}

// Node asks for the status of one node.
func (l *Lab) Node(ctx context.Context, name string) (NodeStatus, error) {
	s, err := l.Status(ctx)
	if err != nil {
		return NodeStatus{}, err
	}
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return NodeStatus{}, fmt.Errorf("there is no node %q in this lab", name)
}

// Cut drops packets of one cable of a node (or of Client) in the switch; the carrier stays.
func (l *Lab) Cut(ctx context.Context, node, link string, d Direction) error {
	return l.order(ctx, request{Op: "cut", Node: node, Cut: &Cut{Link: link, Direction: d}}, nil)
}

// CutCarrier takes the switch port of one cable down: the node sees its carrier go.
func (l *Lab) CutCarrier(ctx context.Context, node, link string) error {
	return l.order(ctx, request{Op: "cut", Node: node, Cut: &Cut{Link: link, Direction: Both, Carrier: true}}, nil)
}

// Heal mends one cable, all cables of a node (link ""), or all cables (node "").
func (l *Lab) Heal(ctx context.Context, node, link string) error {
	return l.order(ctx, request{Op: "heal", Node: node, Link: link}, nil)
}

// Power switches a node on or off as its power button would; off returns when every process of
// the node has been reaped. Its BMC lives on.
func (l *Lab) Power(ctx context.Context, node string, on bool) error {
	return l.order(ctx, request{Op: "power", Node: node, On: on}, nil)
}

// Unplug pulls the cord: node and BMC die together.
func (l *Lab) Unplug(ctx context.Context, node string) error {
	return l.order(ctx, request{Op: "unplug", Node: node}, nil)
}

// Plug puts the cord back: the BMC revives and the node boots.
func (l *Lab) Plug(ctx context.Context, node string) error {
	return l.order(ctx, request{Op: "plug", Node: node}, nil)
}

// StartDaemon starts the node's daemon now and at every later boot.
func (l *Lab) StartDaemon(ctx context.Context, node string) error {
	return l.order(ctx, request{Op: "start", Node: node}, nil)
}

// StopDaemon ends the node's daemon with SIGTERM, waits for it, and starts it no more.
func (l *Lab) StopDaemon(ctx context.Context, node string) error {
	return l.order(ctx, request{Op: "signal", Node: node, Sig: int(unix.SIGTERM)}, nil)
}

// Kill ends the node's daemon with SIGKILL and waits for it.
func (l *Lab) Kill(ctx context.Context, node string) error {
	return l.order(ctx, request{Op: "signal", Node: node, Sig: int(unix.SIGKILL)}, nil)
}

// Pause stops the node's daemon with SIGSTOP; Resume lets it go on.
func (l *Lab) Pause(ctx context.Context, node string) error {
	return l.order(ctx, request{Op: "signal", Node: node, Sig: int(unix.SIGSTOP)}, nil)
}

// Resume undoes Pause.
func (l *Lab) Resume(ctx context.Context, node string) error {
	return l.order(ctx, request{Op: "signal", Node: node, Sig: int(unix.SIGCONT)}, nil)
}

// BMC sets what is wrong with a node's BMC; the zero Faults heals it.
func (l *Lab) BMC(ctx context.Context, node string, f bmcsim.Faults) error {
	return l.order(ctx, request{Op: "bmc", Node: node, BMC: &f}, nil)
}

// Processes lists what runs on a node.
func (l *Lab) Processes(ctx context.Context, node string) ([]Process, error) {
	var p []Process
	return p, l.order(ctx, request{Op: "list", Node: node}, &p)
}

// Watch lets the ARP and echo probers watch an IPv4 address on the public network.
func (l *Lab) Watch(ctx context.Context, vip netip.Addr) error {
	return l.order(ctx, request{Op: "watch", VIP: vip}, nil)
}

// History reads what the observers recorded so far.
func (l *Lab) History(ctx context.Context) (check.History, error) {
	s, err := l.Status(ctx)
	if err != nil {
		return check.History{}, err
	}
	if err := l.order(ctx, request{Op: "flush"}, nil); err != nil {
		return check.History{}, err
	}
	h, err := check.Load(s.Records)
	if err != nil {
		return check.History{}, err
	}
	h.MACs = make(map[string]string)
	for i, n := range s.Nodes {
		h.MACs[MAC(i, LinkPublic)] = n.Name
	}
	return h, nil
}

// Exec runs a program on a node (or on Client) with the given files as its standard streams and
// returns its exit code (128 plus the signal if one ended it). Signals sent to sigs reach the
// program; the end of ctx kills it.
func (l *Lab) Exec(ctx context.Context, node string, argv, env []string, stdio [3]*os.File, sigs <-chan os.Signal) (int, error) {
	c, err := l.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	req := request{Op: "exec", Node: node, Argv: argv, Env: env, Echo: l.echo != nil}
	if err := send(c, req, stdio[:]...); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case s, ok := <-sigs:
				if !ok {
					return
				}
				if n, ok := s.(unix.Signal); ok {
					_ = send(c, request{Op: "signal", Sig: int(n)}) // it may have ended meanwhile
				}
			}
		}
	}()
	r, err := l.result(ctx, c)
	return r.Code, err
}

// Output is what a program left.
type Output struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a program on a node (or on Client) to its end and returns what it printed. A
// non-zero exit code is not an error.
func (l *Lab) Run(ctx context.Context, node string, argv ...string) (Output, error) {
	return l.RunInput(ctx, nil, node, argv...)
}

// RunInput is Run with something on the program's standard input.
func (l *Lab) RunInput(ctx context.Context, stdin []byte, node string, argv ...string) (Output, error) {
	// Memory files instead of pipes: a program that leaves children behind with its output
	// open must not make the caller wait for them.
	var f [3]*os.File
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		fd, err := unix.MemfdCreate("picket-lab-"+name, unix.MFD_CLOEXEC)
		if err != nil {
			return Output{}, fmt.Errorf("make a memory file: %w", err)
		}
		f[i] = os.NewFile(uintptr(fd), name)
		defer f[i].Close()
	}
	if _, err := f[0].WriteAt(stdin, 0); err != nil {
		return Output{}, fmt.Errorf("fill the standard input: %w", err)
	}
	code, err := l.Exec(ctx, node, argv, nil, f, nil)
	if err != nil {
		return Output{Code: code}, fmt.Errorf("run %s on %s: %w", argv[0], node, err)
	}
	out := Output{Code: code}
	for i, s := range map[int]*string{1: &out.Stdout, 2: &out.Stderr} {
		var b bytes.Buffer
		if _, err := io.Copy(&b, io.NewSectionReader(f[i], 0, maxOutput)); err != nil {
			return out, fmt.Errorf("read what %s printed: %w", argv[0], err)
		}
		*s = b.String()
	}
	return out, nil
}
