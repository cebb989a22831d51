package raftnode

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	dbName       = "raft.db"
	identityName = "identity.json"
	lockName     = "lock"
	maxIdentity  = 4096
)

// identity is kept beside the store and says where it was made. A store that is copied or restored
// from a backup forgets votes it has given and entries it has acknowledged; raft's safety rests on
// neither ever being forgotten.
type identity struct {
	// Store is a random id that the store repeats inside.
	Store string `json:"store"`
	// Inode and Birth (ns since 1970, 0 where the file system keeps none) are of the store's file, from
	// statx(2). The device number is not kept: it may change from boot to boot.
	Inode uint64 `json:"inode"`
	Birth int64  `json:"birth_ns"`
	// Machine is the machine id.
	Machine string `json:"machine"`
	// Starts counts the times the store was opened; Opening is true while the count is being raised in
	// both places.
	Starts  uint64 `json:"starts"`
	Opening bool   `json:"opening"`
}

func moved(dir, node, what string) error {
	return fmt.Errorf("%w: %s: %s; a restored node could vote twice and is not started: remove it with"+
		" picket node remove %s on another node, move the directory away and join again", ErrMoved, dir, what, node)
}

// lockDir takes the state directory for this process; the lock ends with the file or the process.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory %s: %w", dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s: stop it first (systemctl stop picket), or give this one another --state-dir", ErrLocked, dir)
	}
	return nil, fmt.Errorf("lock the state directory %s: %w", dir, err)
}

// whereabouts reads inode and birth time of a file.
func whereabouts(path string) (inode uint64, birth int64, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME|unix.STATX_TYPE, &st)
	if err != nil {
		return 0, 0, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, 0, fmt.Errorf("%s is not a regular file", path)
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return st.Ino, birth, nil
}

func machineID(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return "", fmt.Errorf("read the machine id, which tells a copied store from the original: %w (make one with systemd-machine-id-setup)", err)
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", errors.New("/etc/machine-id is empty: make one with systemd-machine-id-setup")
	}
	return id, nil
}

// readIdentity returns nil where the file does not exist.
func readIdentity(dir string) (*identity, error) {
	path := filepath.Join(dir, identityName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	id := &identity{}
	if len(b) > maxIdentity || json.Unmarshal(b, id) != nil || id.Store == "" {
		return nil, fmt.Errorf("%w: %s cannot be read as the identity of the store", ErrDamaged, path)
	}
	return id, nil
}

// write stores the identity: whole or not at all, on disk when it returns.
func (id *identity) write(dir string) error {
	path := filepath.Join(dir, identityName)
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(append(b, '\n'))
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// checkIdentity compares the recorded identity with what is there. The store's file exists.
func checkIdentity(dir, node, machine string, id *identity, log *slog.Logger) error {
	inode, birth, err := whereabouts(filepath.Join(dir, dbName))
	if err != nil {
		return err
	}
	switch {
	case id.Machine != machine:
		return moved(dir, node, "it was made on another machine (machine id "+id.Machine+", here "+machine+")")
	case id.Inode != inode:
		return moved(dir, node, fmt.Sprintf("%s is another file than the one made here (inode %d, recorded %d)", dbName, inode, id.Inode))
	case id.Birth != birth && id.Birth != 0 && birth != 0:
		return moved(dir, node, dbName+" was created at another time than recorded")
	}
	if birth == 0 {
		log.Warn("the file system keeps no creation times: a restored backup is harder to notice", "dir", dir)
	}
	return nil
}

// newIdentity describes the store that was just created.
func newIdentity(dir, machine string) (*identity, error) {
	inode, birth, err := whereabouts(filepath.Join(dir, dbName))
	if err != nil {
		return nil, err
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("generate the store's id: %w", err)
	}
	return &identity{Store: hex.EncodeToString(raw), Inode: inode, Birth: birth, Machine: machine}, nil
}
