package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout bounds the start of a lab.
const startTimeout = 30 * time.Second

// Start starts a lab and returns when all nodes run. The calling binary must have called Reexec.
// Errors wrap ErrUnsupported when this machine cannot run one.
func Start(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("find the lab directory: %w", err)
	}
	for _, t := range []string{"ip", "nft"} {
		if _, err := tool(t); err != nil {
			return nil, err
		}
	}
	if c, err := (&Lab{dir: o.Dir}).dial(); err == nil {
		c.Close()
		return nil, fmt.Errorf("a lab runs in %s already; end it with: picket-lab down", o.Dir)
	}
	if err := prepareDir(o); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	l, err := launch(ctx, o, true)
	if errors.Is(err, ErrUnsupported) && os.Getuid() == 0 && !o.Rootless {
		// Root can do without a user namespace where the kernel forbids them. The other
		// namespaces still keep the lab off the host.
		if l2, err2 := launch(ctx, o, false); err2 == nil {
			return l2, nil
		}
	}
	return l, err
}

// prepareDir creates the lab's directory, marks it as ours and copies the product into it.
func prepareDir(o Options) error {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("create the lab directory: %w", err)
	}
	// The default directory has a name that anybody could have guessed and taken.
	var st unix.Stat_t
	if err := unix.Lstat(o.Dir, &st); err != nil {
		return fmt.Errorf("look at the lab directory: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s is not a directory of yours; choose another with --dir", o.Dir)
	}
	if list, err := os.ReadDir(o.Dir); err != nil {
		return fmt.Errorf("read the lab directory: %w", err)
	} else if _, err := os.Stat(filepath.Join(o.Dir, markFile)); err != nil && len(list) > 0 {
		return fmt.Errorf("%s is not empty and is no lab directory; choose another with --dir", o.Dir)
	}
	if err := os.WriteFile(filepath.Join(o.Dir, markFile), nil, 0o644); err != nil {
		return fmt.Errorf("mark the lab directory: %w", err)
	}
	if o.Picket == "" {
		return nil
	}
	bin := filepath.Join(o.Dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("create the program directory: %w", err)
	}
	// A copy: a rebuild in the middle of a lab must not change what the nodes run.
	return copyFile(o.Picket, filepath.Join(bin, "picket"))
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("open the picket binary: %w", err)
	}
	defer src.Close()
	_ = os.Remove(to) // of an earlier lab
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("copy the picket binary: %w", err)
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy the picket binary: %w", err)
	}
	return nil
}

// launch starts the supervisor in namespaces of its own and waits until it is ready.
func launch(ctx context.Context, o Options, userNS bool) (*Lab, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	log, err := os.OpenFile(filepath.Join(o.Dir, "lab.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("open the lab's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", argSupervisor, o.Dir) // the directory is for ps(1) only
	cmd.Args[0] = "picket-lab-supervisor"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
	for _, k := range []string{"GORACE", "GOTRACEBACK"} { // for tests of the lab
		if v := os.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = namespaces(userNS)
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, unsupported(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the log says why
		close(ended)
	}()
	l := &Lab{dir: o.Dir, echo: o.Echo, starts: ours, ended: ended}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	err = greet(ours, hello{Options: o, UserNS: userNS})
	if err != nil {
		_ = cmd.Process.Kill()
		<-ended
		ours.Close()
		return nil, fmt.Errorf("start the lab (its log is %s): %w", log.Name(), err)
	}
	if o.Echo != nil {
		b, err := os.ReadFile(log.Name())
		if err == nil {
			_, _ = o.Echo.Write(b)
		}
	}
	return l, nil
}

func namespaces(userNS bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		// A session of its own: ctrl-C reaches the starter, and the lab ends because it does.
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if userNS {
		a.Cloneflags |= unix.CLONE_NEWUSER
		// One mapping, the caller to root: what an ordinary user may do (user_namespaces(7)),
		// and the same for root, so that both run the same lab.
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return a
}

func unsupported(err error) error {
	return fmt.Errorf("%w: it refuses user, network or pid namespaces (see kernel.unprivileged_userns_clone, "+
		"kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces in sysctl): %w", ErrUnsupported, err)
}

func greet(c *net.UnixConn, h hello) error {
	if err := send(c, h); err != nil {
		return err
	}
	var w welcome
	if _, err := receive(c, &w); err != nil {
		return fmt.Errorf("the supervisor ended: %w", err)
	}
	switch {
	case w.Unsupported:
		return fmt.Errorf("%w: %s", ErrUnsupported, w.Err)
	case w.Err != "":
		return errors.New(w.Err)
	}
	return nil
}

// Close ends the lab and returns when no process of it is left. The directory stays.
func (l *Lab) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	pidfd, perr := l.pidfd()
	err := l.order(ctx, request{Op: "down"}, nil)
	if l.starts != nil {
		l.starts.Close() // ends the supervisor even if it cannot hear orders any more
	}
	switch {
	case l.ended != nil:
		select {
		case <-l.ended:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("end the lab: %w", errors.Join(err, ctx.Err()))
		}
	case err != nil:
		return err
	case perr != nil:
		return perr
	}
	defer unix.Close(pidfd)
	// pid 1 of a pid namespace is waited for only after all others in it are gone.
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(startTimeout.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the lab's end: %w", err)
		case n == 0:
			return fmt.Errorf("the lab did not end within %s", startTimeout)
		default:
			return nil
		}
	}
}

// pidfd finds the supervisor behind the control socket (SO_PEERCRED, unix(7)).
func (l *Lab) pidfd() (int, error) {
	if l.ended != nil {
		return -1, nil
	}
	c, err := l.dial()
	if err != nil {
		return -1, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr); err != nil {
		return -1, fmt.Errorf("find the supervisor: %w", err)
	}
	fd, err := unix.PidfdOpen(int(cred.Pid), 0)
	if err != nil {
		return -1, fmt.Errorf("watch the supervisor: %w", err)
	}
	return fd, nil
}

// Remove clears a directory that a lab left. It refuses a directory without the lab's mark, and
// one in which a lab runs.
func Remove(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, markFile)); err != nil {
		return fmt.Errorf("%s is no lab directory", dir)
	}
	if c, err := (&Lab{dir: dir}).dial(); err == nil {
		c.Close()
		return fmt.Errorf("a lab runs in %s; end it with: picket-lab down", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the lab directory: %w", err)
	}
	return nil
}
