package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/check"
)

// Files of a lab directory.
const (
	controlSocket = "control.sock"
	lockFile      = "lock"
	markFile      = ".picket-lab" // only a directory with this file is ever cleared
	recordDir     = "records"
)

// hello is the first message to the supervisor, welcome its answer.
type hello struct {
	Options Options `json:"options"`
	UserNS  bool    `json:"user_ns"`
}

type welcome struct {
	Err         string `json:"err,omitempty"`
	Unsupported bool   `json:"unsupported,omitempty"`
}

// supervisor is pid 1 of the lab's pid namespace. Its network namespace is the switch.
type supervisor struct {
	world
	userNS   bool
	machines []*machine // the nodes, in order
	client   *machine
	observer *netns
	oracle   *check.Oracle
	down     chan struct{}
	downOnce sync.Once

	mu   sync.Mutex
	vips map[netip.Addr]bool
}

// supervisorMain is the life of the supervisor. When it returns, or is killed, the kernel ends
// every process and namespace of the lab.
func supervisorMain(log *slog.Logger) error {
	conn, err := connOf(os.NewFile(3, "starter"))
	if err != nil {
		return err
	}
	var h hello
	if _, err := receive(conn, &h); err != nil {
		return fmt.Errorf("hear the starter: %w", err)
	}
	s, ln, err := newSupervisor(h, log)
	if err != nil {
		w := welcome{Err: err.Error(), Unsupported: errors.Is(err, ErrUnsupported)}
		return errors.Join(err, send(conn, w))
	}
	go s.serve(ln)
	if err := send(conn, welcome{}); err != nil {
		return err
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGINT, unix.SIGTERM)
	if !h.Options.Detach {
		go func() {
			var v struct{}
			// The starter never speaks again: whatever ends this ends the lab.
			_, _ = receive(conn, &v)
			s.stop()
		}()
	}
	select {
	case <-s.down:
	case <-sigs:
	}
	return s.end()
}

func newSupervisor(h hello, log *slog.Logger) (*supervisor, net.Listener, error) {
	if err := os.Chdir(h.Options.Dir); err != nil {
		return nil, nil, fmt.Errorf("enter the lab directory: %w", err)
	}
	if err := takeLock(); err != nil {
		return nil, nil, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, nil, fmt.Errorf("%w: mount /proc: %w", ErrUnsupported, err)
	}
	s := &supervisor{down: make(chan struct{}), vips: make(map[netip.Addr]bool), userNS: h.UserNS}
	s.opt, s.dir, s.log = h.Options, h.Options.Dir, log
	s.sh = &shell{log: os.Stderr}
	var err error
	if s.rec, err = check.NewRecorder(recordDir); err != nil {
		return nil, nil, err
	}
	if s.sw, err = newSwitch(s.sh); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll("shared", 0o755); err != nil {
		return nil, nil, fmt.Errorf("create the shared directory: %w", err)
	}
	if s.oracle, err = check.NewOracle("shared", s.rec, log); err != nil {
		return nil, nil, err
	}
	if err := s.populate(); err != nil {
		return nil, nil, err
	}
	for _, v := range s.opt.VIPs {
		if err := s.watch(v); err != nil {
			return nil, nil, err
		}
	}
	// The working directory is the lab's, so the path stays short (sun_path has 108 bytes).
	_ = os.Remove(controlSocket)
	ln, err := net.Listen("unixpacket", controlSocket)
	if err != nil {
		return nil, nil, fmt.Errorf("open the control socket: %w", err)
	}
	return s, ln, nil
}

// takeLock makes sure that one directory holds one lab. The lock goes with the process.
func takeLock() error {
	fd, err := unix.Open(lockFile, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("open the lab's lock: %w", err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.New("a lab runs in this directory already; end it with: picket-lab down")
	}
	return nil // never closed
}

// populate brings up BMCs, observer, client and nodes, all at once.
func (s *supervisor) populate() error {
	if err := os.MkdirAll("bin", 0o755); err != nil {
		return fmt.Errorf("create the program directory: %w", err)
	}
	secrets := make(map[string]string)
	for _, n := range s.opt.Nodes {
		secrets[n+".bmc"] = BMCPassword
	}
	for i, n := range s.opt.Nodes {
		m := s.machine(n, i)
		m.enabled = s.opt.Autostart
		s.machines = append(s.machines, m)
	}
	s.client = s.machine(Client, -1)
	var jobs []func() error
	jobs = append(jobs, s.placeObserver)
	for _, m := range append([]*machine{s.client}, s.machines...) {
		given := secrets
		if m == s.client {
			given = nil
		}
		jobs = append(jobs, func() error {
			if err := m.prepare(given); err != nil {
				return err
			}
			return m.powerOn("lab")
		})
		if m != s.client {
			jobs = append(jobs, m.plugBMC)
		}
	}
	errs := make([]error, len(jobs))
	var wg sync.WaitGroup
	for i, j := range jobs {
		wg.Go(func() { errs[i] = j() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *supervisor) machine(name string, index int) *machine {
	return &machine{name: name, index: index, dir: filepath.Join(s.dir, "nodes", name), w: &s.world, plugged: true}
}

// placeObserver makes the host from which the ARP prober watches.
func (s *supervisor) placeObserver() (err error) {
	if s.observer, err = newNetns("observer"); err != nil {
		return err
	}
	return s.sw.plugIn("observer", s.observer, []cable{{LinkPublic, LinkPublic, "02:00:00:00:60:fb", observerAddr().String()}})
}

// watch starts the observers of one address. Watching twice is fine.
func (s *supervisor) watch(vip netip.Addr) error {
	const most = 32
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vips[vip] {
		return nil
	}
	if len(s.vips) >= most {
		return fmt.Errorf("watch %s: the lab watches at most %d addresses", vip, most)
	}
	var arp *check.ARPProber
	err := s.observer.do(func() (err error) {
		arp, err = check.NewARPProber(LinkPublic, observerAddr(), vip, s.rec)
		return err
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", vip, err)
	}
	l, err := s.client.current()
	if err != nil {
		return err
	}
	var echo *check.EchoProber
	err = l.ns.do(func() (err error) {
		echo, err = check.NewEchoProber(vip, 0x7000+len(s.vips), s.rec)
		return err
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", vip, err)
	}
	s.vips[vip] = true
	go s.observe("ARP prober", vip, func() error { return arp.Run(context.Background(), check.DefaultARPInterval) })
	go s.observe("echo prober", vip, func() error { return echo.Run(context.Background(), check.DefaultEchoInterval) })
	return nil
}

// observe says so when an observer ends; the checker then finds its stream silent.
func (s *supervisor) observe(what string, vip netip.Addr, run func() error) {
	if err := run(); err != nil {
		s.log.Error(what+" ended", "vip", vip, "error", err)
	}
}

func (s *supervisor) stop() { s.downOnce.Do(func() { close(s.down) }) }

// end brings the records to disk and the nodes to an end. What is left, the kernel ends.
func (s *supervisor) end() error {
	var wg sync.WaitGroup
	for _, m := range append([]*machine{s.client}, s.machines...) {
		wg.Go(func() {
			m.mu.Lock()
			l := m.life
			m.dying = true
			m.mu.Unlock()
			if l != nil {
				l.kill()
			}
		})
	}
	wg.Wait()
	err := errors.Join(s.oracle.Close(), s.rec.Flush())
	if rerr := os.Remove(controlSocket); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// find looks a machine up; client is one only where it may be.
func (s *supervisor) find(name string, client bool) (*machine, error) {
	if client && name == Client {
		return s.client, nil
	}
	for _, m := range s.machines {
		if m.name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("there is no node %q in this lab (there are %v)", name, s.opt.Nodes)
}

func (s *supervisor) status() Status {
	st := Status{Dir: s.dir, Records: filepath.Join(s.dir, recordDir), UserNS: s.userNS}
	for _, m := range s.machines {
		st.Nodes = append(st.Nodes, m.status())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range s.vips {
		st.VIPs = append(st.VIPs, v.String())
	}
	sort.Strings(st.VIPs)
	return st
}

// serve answers the control socket until it is closed.
func (s *supervisor) serve(ln net.Listener) {
	const most = 64
	slots := make(chan struct{}, most)
	for {
		c, err := ln.Accept()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.log.Error("the control socket failed", "error", err)
			}
			return
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			c.Close()
			continue
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			defer u.Close()
			s.converse(u)
		}()
	}
}
