package netlab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/check"
)

// initConfig is the first message a node's pid 1 receives.
type initConfig struct {
	Hostname string     `json:"hostname"`
	Root     rootConfig `json:"root"`
}

// Operations of a node's pid 1.
const (
	opRun    = "run"    // start Argv with the three files that come along; answers started, later exited
	opSignal = "signal" // send Sig to Pid (negative: a process group)
	opList   = "list"   // answer the processes of the node
)

type initRequest struct {
	ID   uint64   `json:"id"`
	Op   string   `json:"op"`
	Argv []string `json:"argv,omitempty"`
	Env  []string `json:"env,omitempty"`
	Pid  int      `json:"pid,omitempty"`
	Sig  int      `json:"sig,omitempty"`
	Self bool     `json:"self,omitempty"` // run this very binary instead of looking Argv[0] up
}

// Answers of a node's pid 1.
const (
	ansReady   = "ready"
	ansStarted = "started"
	ansExited  = "exited"
	ansDone    = "done"
)

type initReply struct {
	ID    uint64    `json:"id"`
	Kind  string    `json:"kind"`
	Pid   int       `json:"pid,omitempty"`
	Code  int       `json:"code,omitempty"`
	Err   string    `json:"err,omitempty"`
	Procs []Process `json:"procs,omitempty"`
}

// Process is one process of a node, with the pid it has there.
type Process struct {
	PID     int    `json:"pid"`
	PPID    int    `json:"ppid"`
	State   string `json:"state"` // one letter, as in proc(5)
	Command string `json:"command"`
}

// pid1 is the init of a node: it runs programs for the supervisor and buries the dead.
type pid1 struct {
	conn *net.UnixConn
	// mu covers starting a child and writing it down, so that the reaper never meets a child
	// that it cannot name.
	mu       sync.Mutex
	children map[int]uint64
	sendMu   sync.Mutex
}

// initMain is the life of a node's pid 1. When the supervisor goes, it goes, and the kernel
// takes the node's other processes with it (pid_namespaces(7)).
func initMain() error {
	conn, err := connOf(os.NewFile(3, "supervisor"))
	if err != nil {
		return err
	}
	var cfg initConfig
	if _, err := receive(conn, &cfg); err != nil {
		return fmt.Errorf("hear the supervisor: %w", err)
	}
	p := &pid1{conn: conn, children: make(map[int]uint64)}
	err = errors.Join(unix.Sethostname([]byte(cfg.Hostname)), buildRoot(cfg.Root))
	if err == nil {
		// Datagram ICMP (ping without privileges) is off in a new namespace; 0 is root's group.
		err = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o644)
	}
	r := initReply{Kind: ansReady}
	if err != nil {
		r.Err = err.Error()
	}
	if serr := p.reply(r); serr != nil || err != nil {
		return errors.Join(err, serr)
	}
	unix.Umask(0o022)
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	go p.reap(chld)
	for {
		var req initRequest
		files, err := receive(conn, &req)
		if err != nil {
			return nil // the supervisor is gone
		}
		p.handle(req, files)
	}
}

func (p *pid1) reply(r initReply) error {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	return send(p.conn, r)
}

func (p *pid1) handle(req initRequest, files []*os.File) {
	defer closeAll(files)
	r := initReply{ID: req.ID, Kind: ansDone}
	var err error
	switch req.Op {
	case opRun:
		err = p.run(req, files)
		if err == nil {
			return // run answered
		}
	case opSignal:
		if err = unix.Kill(req.Pid, unix.Signal(req.Sig)); err != nil {
			err = fmt.Errorf("signal process %d: %w", req.Pid, err)
		}
	case opList:
		r.Procs, err = processes()
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	if err != nil {
		r.Err = err.Error()
	}
	_ = p.reply(r) // a dead supervisor is noticed by the next receive
}

// run starts a program in a session of its own, so that one signal reaches its whole group.
func (p *pid1) run(req initRequest, files []*os.File) error {
	if len(req.Argv) == 0 || len(files) != 3 {
		return errors.New("run a program: it needs a command line and three files")
	}
	path, err := lookup(req)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(path, req.Argv, &syscall.ProcAttr{
		Dir: "/", Env: req.Env, Sys: &syscall.SysProcAttr{Setsid: true},
		Files: []uintptr{files[0].Fd(), files[1].Fd(), files[2].Fd()},
	})
	if err != nil {
		return fmt.Errorf("run %s: %w", req.Argv[0], err)
	}
	p.children[pid] = req.ID
	return p.reply(initReply{ID: req.ID, Kind: ansStarted, Pid: pid})
}

// lookup finds a program in the PATH of the request.
func lookup(req initRequest) (string, error) {
	if req.Self {
		return "/proc/self/exe", nil
	}
	name := req.Argv[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, e := range req.Env {
		path, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			full := filepath.Join(dir, name)
			if st, err := os.Stat(full); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
				return full, nil
			}
		}
	}
	return "", fmt.Errorf("run %s: %w on the node", name, exec.ErrNotFound)
}

// reap waits for every child, adopted ones included, and reports those it started.
func (p *pid1) reap(chld <-chan os.Signal) {
	for range chld {
		for {
			var ws unix.WaitStatus
			p.mu.Lock()
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			id, known := p.children[pid]
			if pid > 0 {
				delete(p.children, pid)
			}
			p.mu.Unlock()
			if pid <= 0 || err != nil {
				break // none left, or none dead; EINTR comes back with the next signal
			}
			if known {
				_ = p.reply(initReply{ID: id, Kind: ansExited, Pid: pid, Code: exitCode(ws)})
			}
		}
	}
}

// exitCode is the shell's convention: 128 plus the signal that ended it.
func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// processes reads the node's /proc (proc(5)).
func processes() ([]Process, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	const most = 500 // one answer is one bounded message
	var out []Process
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || len(out) >= most {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // gone meanwhile
		}
		s := string(b)
		open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
		if open < 0 || end < open {
			continue
		}
		f := strings.Fields(s[end+1:])
		if len(f) < 2 {
			continue
		}
		ppid, _ := strconv.Atoi(f[1])
		out = append(out, Process{PID: pid, PPID: ppid, State: f[0], Command: s[open+1 : end]})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].PID < out[j].PID })
	return out, nil
}

// agentMain runs the address agent on a node; its configuration is the second argument.
func agentMain() error {
	if len(os.Args) < 3 {
		return errors.New("the agent needs its configuration")
	}
	var cfg check.AgentConfig
	if err := json.Unmarshal([]byte(os.Args[2]), &cfg); err != nil {
		return fmt.Errorf("read the agent's configuration: %w", err)
	}
	return check.RunAgent(context.Background(), cfg)
}
