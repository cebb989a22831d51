package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where a node finds what the lab gives it.
const (
	// NodeLabDir is the lab's directory on a node.
	NodeLabDir = "/run/picket-lab"
	// NodeUUIDFile holds the node's machine uuid; PICKET_MACHINE_UUID_FILE names it.
	NodeUUIDFile = NodeLabDir + "/machine-uuid"
	nodeShared   = NodeLabDir + "/shared"
	nodeBin      = NodeLabDir + "/bin"
)

// rootConfig says what a node's file system is made of. Paths are of the supervisor's view.
type rootConfig struct {
	Etc       string            `json:"etc"` // becomes /etc/picket
	Lib       string            `json:"lib"` // becomes /var/lib/picket
	Shared    string            `json:"shared"`
	Bin       string            `json:"bin"`
	BootID    string            `json:"boot_id"` // a file
	EtcFiles  map[string]string `json:"etc_files"`
	MachineID string            `json:"machine_id"`
	UUID      string            `json:"uuid"`
}

// buildRoot gives the calling process (pid 1 of a node, alone in its mount namespace) a root of
// its own: the host's programs read-only, the node's own /run, /tmp, /etc/picket and
// /var/lib/picket, a /dev without the host's devices (no disk, no /dev/watchdog) and a /proc
// without what would reach the host (sysrq, sysctls that are not the network's). Nothing is
// created on the host: a bind mount needs an existing target, so the root is a fresh tmpfs.
func buildRoot(c rootConfig) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Held open across the mount over /tmp, which may hide them.
	src := make(map[string]string)
	for name, path := range map[string]string{"etc": c.Etc, "lib": c.Lib, "shared": c.Shared, "bin": c.Bin, "boot": c.BootID, "hosttmp": "/tmp"} {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		defer unix.Close(fd)
		src[name] = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	const root = "/tmp"
	if err := tmpfs(root, "mode=0755,size=64m"); err != nil {
		return err
	}
	steps := []func() error{
		func() error { return hostTree(root) },
		func() error { return stateTree(root, src) },
		func() error { return deviceTree(root) },
		func() error { return kernelTree(root, src["boot"]) },
		func() error { return etcFiles(root, c) },
		func() error { return enterRoot(root) },
	}
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// own lists the top-level names a node does not share with the host.
func own(name string) bool {
	switch name {
	case "proc", "sys", "dev", "run", "tmp", "etc", "var", "lost+found", ".host":
		return true
	}
	return false
}

// hostTree brings in the host's programs and homes, read-only.
func hostTree(root string) error {
	list, err := os.ReadDir("/")
	if err != nil {
		return fmt.Errorf("read /: %w", err)
	}
	for _, e := range list {
		if own(e.Name()) {
			continue
		}
		from, to := "/"+e.Name(), filepath.Join(root, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			err = copyLink(from, to)
		case e.IsDir():
			err = bindReadOnly(from, to)
		}
		if err != nil {
			return err
		}
	}
	// /etc and /var/lib gain entries of ours, which a read-only bind mount cannot: they are
	// directories of links to the host's, except for our own.
	for _, d := range []string{"etc", "var"} {
		if err := bindReadOnly("/"+d, filepath.Join(root, ".host", d)); err != nil {
			return err
		}
	}
	if err := linkFarm(root, "/etc", "picket", "machine-id", "hostname", "hosts", "mtab"); err != nil {
		return err
	}
	if err := linkFarm(root, "/var", "lib", "tmp", "run", "lock"); err != nil {
		return err
	}
	return linkFarm(root, "/var/lib", "picket")
}

// linkFarm fills root+dir with links to the host's entries, leaving out some names.
func linkFarm(root, dir string, except ...string) error {
	if err := os.MkdirAll(root+dir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the host's %s: %w", dir, err)
	}
	skip := " " + strings.Join(except, " ") + " "
	for _, e := range list {
		if strings.Contains(skip, " "+e.Name()+" ") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if e.Type()&os.ModeSymlink != 0 {
			err = copyLink(path, root+path)
		} else {
			err = os.Symlink("/.host"+path, root+path)
		}
		if err != nil {
			return fmt.Errorf("link %s: %w", path, err)
		}
	}
	return nil
}

func copyLink(from, to string) error {
	target, err := os.Readlink(from)
	if err != nil {
		return fmt.Errorf("read the link %s: %w", from, err)
	}
	return os.Symlink(target, to)
}

// stateTree mounts what survives a power cut (/etc/picket, /var/lib/picket) and what does not.
func stateTree(root string, src map[string]string) error {
	for path, opts := range map[string]string{"/run": "mode=0755,size=32m", "/tmp": "mode=1777,size=64m"} {
		if err := os.MkdirAll(root+path, 0o755); err != nil {
			return fmt.Errorf("create %s: %w", path, err)
		}
		if err := tmpfs(root+path, opts); err != nil {
			return err
		}
	}
	for path, from := range map[string]string{"/etc/picket": src["etc"], "/var/lib/picket": src["lib"], nodeShared: src["shared"], nodeBin: src["bin"]} {
		if err := bind(from, root+path); err != nil {
			return err
		}
	}
	if err := readOnly(root + nodeBin); err != nil {
		return err
	}
	for _, l := range [][2]string{{"/run", "/var/run"}, {"/run/lock", "/var/lock"}, {"/tmp", "/var/tmp"}, {"/proc/self/mounts", "/etc/mtab"}} {
		if err := os.Symlink(l[0], root+l[1]); err != nil {
			return fmt.Errorf("link %s: %w", l[1], err)
		}
	}
	return os.MkdirAll(root+"/run/lock", 0o1777)
}

// deviceTree makes a /dev with the harmless devices only. The host's /dev/watchdog above all
// must not be there: opening it arms a timer that resets the host.
func deviceTree(root string) error {
	dev := root + "/dev"
	if err := os.MkdirAll(dev, 0o755); err != nil {
		return fmt.Errorf("create /dev: %w", err)
	}
	if err := tmpfs(dev, "mode=0755,size=1m"); err != nil {
		return err
	}
	for _, n := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		f, err := os.Create(filepath.Join(dev, n))
		if err != nil {
			return fmt.Errorf("create /dev/%s: %w", n, err)
		}
		f.Close()
		if err := unix.Mount("/dev/"+n, filepath.Join(dev, n), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /dev/%s: %w", n, err)
		}
	}
	for _, d := range []string{"pts", "shm"} {
		if err := os.Mkdir(filepath.Join(dev, d), 0o755); err != nil {
			return fmt.Errorf("create /dev/%s: %w", d, err)
		}
	}
	if err := unix.Mount("devpts", dev+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	if err := tmpfs(dev+"/shm", "mode=1777,size=16m"); err != nil {
		return err
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return fmt.Errorf("link /dev/%s: %w", name, err)
		}
	}
	return nil
}

// kernelTree mounts /proc and /sys of the node's own namespaces. Without a user namespace, or
// under real root in one, some files in them would reach the host: they are covered.
func kernelTree(root, bootID string) error {
	proc, sys := root+"/proc", root+"/sys"
	for _, d := range []string{proc, sys} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("create %s: %w", d, err)
		}
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", proc, "proc", safe, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", sys, "sysfs", safe|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	net, err := unix.Open(proc+"/sys/net", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/sys/net: %w", err)
	}
	defer unix.Close(net)
	for _, p := range []string{"/sys", "/irq", "/bus", "/fs"} {
		if err := bindReadOnly(proc+p, proc+p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// The network's sysctls are the namespace's own.
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", net), proc+"/sys/net", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /proc/sys/net: %w", err)
	}
	for _, p := range []string{"/sysrq-trigger", "/kcore"} {
		err := unix.Mount("/dev/null", proc+p, "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cover /proc%s: %w", p, err)
		}
	}
	if err := unix.Mount(bootID, proc+"/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the boot id: %w", err)
	}
	return nil
}

// etcFiles writes the files that tell a node who it is.
func etcFiles(root string, c rootConfig) error {
	files := map[string]string{"/etc/machine-id": c.MachineID + "\n", NodeUUIDFile: c.UUID + "\n"}
	for name, text := range c.EtcFiles {
		files["/etc/"+name] = text
	}
	for path, text := range files {
		if err := os.WriteFile(root+path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

// enterRoot makes root the root of this mount namespace and lets go of the host's (pivot_root(2)).
func enterRoot(root string) error {
	old := root + "/.host/root"
	if err := os.MkdirAll(old, 0o700); err != nil {
		return fmt.Errorf("create the old root's place: %w", err)
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("enter the node's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("enter /: %w", err)
	}
	if err := unix.Unmount("/.host/root", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return nil
}

func tmpfs(path, opts string) error {
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID, opts); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", path, err)
	}
	return nil
}

// bind mounts a directory on another, which it creates.
func bind(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", to, err)
	}
	// Recursive: a user namespace may not bind a tree without the mounts that cover parts of it.
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", from, to, err)
	}
	return nil
}

func readOnly(path string) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

func bindReadOnly(from, to string) error {
	if _, err := os.Stat(from); err != nil {
		return err
	}
	if err := bind(from, to); err != nil {
		return err
	}
	return readOnly(to)
}
