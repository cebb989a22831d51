package netlab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// commandTimeout bounds one ip or nft command.
const commandTimeout = 5 * time.Second

// netns is a network namespace held open by a file. Without a process in it, closing the file
// ends the namespace and the cards in it.
type netns struct {
	name string
	file *os.File
}

// newNetns makes a namespace that no process lives in. It must run on a thread of its own: the
// thread is thrown away with the goroutine, so that no other code ever runs in the namespace by
// accident (runtime.LockOSThread without its unlock).
func newNetns(name string) (*netns, error) {
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- result{nil, fmt.Errorf("make the namespace of %s: %w", name, err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- result{f, err}
	}()
	r := <-c
	if r.err != nil {
		return nil, r.err
	}
	return &netns{name: name, file: r.f}, nil
}

// netnsOf opens the namespace of a process.
func netnsOf(name string, pid int) (*netns, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open the namespace of %s: %w", name, err)
	}
	return &netns{name: name, file: f}, nil
}

// do runs f in the namespace. What f opens stays in the namespace; goroutines that f starts do
// not. A nil namespace is the supervisor's own, the switch.
func (n *netns) do(f func() error) error {
	if n == nil {
		return f()
	}
	c := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, see newNetns
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			c <- fmt.Errorf("enter the namespace of %s: %w", n.name, err)
			return
		}
		c <- f()
	}()
	return <-c
}

// path names the namespace in a way that ip(8) takes for its netns argument.
func (n *netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

func (n *netns) label() string {
	if n == nil {
		return "switch"
	}
	return n.name
}

func (n *netns) close() {
	if n != nil {
		n.file.Close()
	}
}

// shell runs the system's own tools, so that everything the lab does to a network can be read,
// repeated by hand, and looked up in a manual page.
type shell struct {
	mu    sync.Mutex
	hears map[int]func(string)
	next  int
	log   io.Writer
}

// listen calls f with every command from now on until the returned function is called.
func (s *shell) listen(f func(string)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hears == nil {
		s.hears = make(map[int]func(string))
	}
	id := s.next
	s.next++
	s.hears[id] = f
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.hears, id)
	}
}

func (s *shell) echo(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(s.log, line)
	for _, f := range s.hears {
		f(line)
	}
}

// ip runs several ip(8) commands in one process, in order, stopping at the first that fails.
func (s *shell) ip(ns *netns, lines ...string) error {
	for _, l := range lines {
		s.echo(fmt.Sprintf("[%s] ip %s", ns.label(), l))
	}
	return s.run(ns, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
}

// nft runs one nft(8) script in the switch, as one transaction.
func (s *shell) nft(script string) error {
	sc := bufio.NewScanner(strings.NewReader(script))
	for sc.Scan() {
		s.echo("[switch] nft " + sc.Text())
	}
	return s.run(nil, script, "nft", "-f", "-")
}

func (s *shell) run(ns *netns, stdin, name string, args ...string) error {
	path, err := tool(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// A child inherits the namespace of the thread that forks it.
	if err := ns.do(cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", name, ns.label(), err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s in %s: %w: %s", name, ns.label(), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// tool finds a system tool; an ordinary user's PATH often lacks the sbin directories.
func tool(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, d := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if p, err := exec.LookPath(d + name); err == nil {
			return p, nil
		}
	}
	pkg := map[string]string{"ip": "iproute2", "nft": "nftables"}[name]
	return "", fmt.Errorf("%w: %s is missing (on Debian: apt install %s)", ErrUnsupported, name, pkg)
}
