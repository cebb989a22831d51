package control

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Listen makes the control socket: mode 0660, owned by root and by the unix group, so that members of
// it may read status without being root. A group that does not exist is said once and root's is used.
// A stale socket (nobody answers) is replaced. It refuses to remove anything that is not a socket, and
// a socket somebody still answers on: that is a second daemon.
func Listen(path, group string, log *slog.Logger) (net.Listener, error) {
	if len(path) > 107 { // sockaddr_un.sun_path, unix(7)
		return nil, fmt.Errorf("control socket path %s is %d bytes long: the kernel allows 107", path, len(path))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The name appears only when mode and group are right: made under a private directory, then renamed.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer os.RemoveAll(dir)
	tmp := filepath.Join(dir, "s")
	if len(tmp) > 107 {
		return nil, fmt.Errorf("control socket path %s is too long: at most about 90 bytes are usable", path)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := publish(tmp, path, group, log); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &socketListener{UnixListener: ln, path: path, made: fi}, nil
}

func publish(tmp, path, group string, log *slog.Logger) error {
	gid, err := groupID(group)
	if err != nil {
		log.Warn("the unix group of the control socket does not exist: only root can read status", "group", group, "err", err,
			"action", "groupadd --system "+group+", then restart picket")
		gid = 0
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(tmp, 0, gid); err != nil {
			log.Warn("the control socket could not be given to its group", "group", group, "err", err)
		}
	}
	if err := os.Chmod(tmp, 0o660); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

func removeStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("control socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("control socket: %s exists and is not a socket: move it away, or give another --socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("control socket: another picket daemon answers on %s: stop it first", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("control socket: %s is in use or cannot be tried: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// socketListener removes its name on Close, unless somebody has replaced it since.
type socketListener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

// Close stops listening and removes the socket's name.
func (l *socketListener) Close() error {
	if fi, err := os.Lstat(l.path); err == nil && os.SameFile(fi, l.made) {
		os.Remove(l.path)
	}
	return l.UnixListener.Close()
}
