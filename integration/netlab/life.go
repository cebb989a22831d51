package netlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readyTimeout bounds how long a node's pid 1 may take to build its root.
const readyTimeout = 10 * time.Second

// errNodeDied says that a node ended while it was doing something for us.
var errNodeDied = errors.New("the node died")

// life is one boot of one machine: its pid 1 and the channel to it. The channel is an inherited
// socket pair, which no cut of the lab's network touches.
type life struct {
	name string
	boot string
	cmd  *exec.Cmd
	conn *net.UnixConn
	ns   *netns
	// dead closes when pid 1 has been reaped, which the kernel allows only after every other
	// process of the node is gone (pid_namespaces(7)). status is valid from then on.
	dead   chan struct{}
	status unix.WaitStatus
	ready  chan initReply

	mu   sync.Mutex
	next uint64
	wait map[uint64]chan initReply
}

// begin starts a pid 1 in namespaces of its own and hands it its configuration. The node is not
// ready before await returns, but its network namespace exists. where is the lab's directory.
func begin(name, boot, where string, cfg initConfig, stderr *os.File) (*life, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", argInit, where) // for ps(1) only
	cmd.Args[0] = "picket-lab-init-" + name
	cmd.Env = append(os.Environ(), "PATH="+nodePath)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	l := &life{
		name: name, boot: boot, cmd: cmd, conn: ours, dead: make(chan struct{}),
		ready: make(chan initReply, 1), wait: make(map[uint64]chan initReply),
	}
	go l.hear()
	go func() {
		_ = cmd.Wait() // the status says how
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			l.status = unix.WaitStatus(ws)
		}
		close(l.dead)
	}()
	if l.ns, err = netnsOf(name, cmd.Process.Pid); err == nil {
		err = send(ours, cfg)
	}
	if err != nil {
		l.kill()
		return nil, err
	}
	return l, nil
}

// await returns when the node's pid 1 takes orders.
func (l *life) await() error {
	select {
	case r := <-l.ready:
		if r.Err != "" {
			return fmt.Errorf("set %s up: %s", l.name, r.Err)
		}
		return nil
	case <-l.dead:
		return fmt.Errorf("set %s up: its pid 1 ended: %s", l.name, l.cmd.ProcessState)
	case <-time.After(readyTimeout):
		return fmt.Errorf("set %s up: no answer in %s", l.name, readyTimeout)
	}
}

// kill ends the node at once and returns when nothing of it runs.
func (l *life) kill() {
	_ = l.cmd.Process.Kill() // an error means that it is dead already
	<-l.dead
	l.conn.Close()
	l.ns.close()
}

// hear passes the answers of pid 1 to whoever waits for them.
func (l *life) hear() {
	for {
		var r initReply
		files, err := receive(l.conn, &r)
		if err != nil {
			return // dead says the rest
		}
		closeAll(files)
		if r.Kind == ansReady {
			l.ready <- r
			continue
		}
		l.mu.Lock()
		c := l.wait[r.ID]
		if r.Kind != ansStarted {
			delete(l.wait, r.ID)
		}
		l.mu.Unlock()
		if c != nil {
			c <- r // two answers at most, and room for two
		}
	}
}

func (l *life) ask(req initRequest, files ...*os.File) (<-chan initReply, error) {
	c := make(chan initReply, 2)
	l.mu.Lock()
	l.next++
	req.ID = l.next
	l.wait[req.ID] = c
	l.mu.Unlock()
	if err := send(l.conn, req, files...); err != nil {
		l.mu.Lock()
		delete(l.wait, req.ID)
		l.mu.Unlock()
		return nil, fmt.Errorf("order %s on %s: %w", req.Op, l.name, err)
	}
	return c, nil
}

func (l *life) answer(c <-chan initReply) (initReply, error) {
	select {
	case r := <-c:
		if r.Err != "" {
			return r, errors.New(r.Err)
		}
		return r, nil
	case <-l.dead:
		return initReply{}, errNodeDied
	case <-time.After(readyTimeout):
		return initReply{}, fmt.Errorf("%s did not answer in %s", l.name, readyTimeout)
	}
}

// call asks pid 1 for one answer.
func (l *life) call(req initRequest) (initReply, error) {
	c, err := l.ask(req)
	if err != nil {
		return initReply{}, err
	}
	return l.answer(c)
}

// task is a program that runs on a node.
type task struct {
	pid int
	// done closes when the program ended or its node died (code 137, as if killed).
	done chan struct{}
	code int
}

// run starts a program on the node with three files as its standard streams, which stay the
// caller's to close.
func (l *life) run(req initRequest, files []*os.File) (*task, error) {
	req.Op = opRun
	c, err := l.ask(req, files...)
	if err != nil {
		return nil, err
	}
	r, err := l.answer(c)
	if err != nil {
		return nil, err
	}
	t := &task{pid: r.Pid, done: make(chan struct{}), code: 128 + int(unix.SIGKILL)}
	go func() {
		defer close(t.done)
		select {
		case r := <-c:
			t.code = r.Code
		case <-l.dead:
		}
	}()
	return t, nil
}

// signal sends a signal to a process of the node, or with a negative pid to a process group.
func (l *life) signal(pid int, sig unix.Signal) error {
	_, err := l.call(initRequest{Op: opSignal, Pid: pid, Sig: int(sig)})
	return err
}
