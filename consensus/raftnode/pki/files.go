package pki

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Names of the files in a node's key directory. CACertFile and NodeCertFile are public, the others
// are secrets: 0600 in a directory of 0700.
const (
	CACertFile    = "ca.pem"
	CAKeyFile     = "ca.key"
	NodeCertFile  = "node.pem"
	NodeKeyFile   = "node.key"
	HeartbeatFile = "heartbeat.key"
)

// HeartbeatKeyLen is the length of the heartbeat key in bytes.
const HeartbeatKeyLen = 32

// NewHeartbeatKey makes the cluster's key for sealed heartbeats: 32 random bytes.
func NewHeartbeatKey() ([HeartbeatKeyLen]byte, error) {
	var k [HeartbeatKeyLen]byte
	if _, err := rand.Read(k[:]); err != nil {
		return k, fmt.Errorf("generate the heartbeat key: %w", err)
	}
	return k, nil
}

// SaveHeartbeatKey writes the heartbeat key into a key directory.
func SaveHeartbeatKey(dir string, key [HeartbeatKeyLen]byte) error {
	return WriteSecret(dir, HeartbeatFile, key[:])
}

// LoadHeartbeatKey reads the heartbeat key from a key directory.
func LoadHeartbeatKey(dir string) ([HeartbeatKeyLen]byte, error) {
	var k [HeartbeatKeyLen]byte
	b, err := ReadSecret(dir, HeartbeatFile)
	if err != nil {
		return k, err
	}
	if len(b) != len(k) {
		return k, fmt.Errorf("%s holds %d bytes instead of %d: copy it again from another node", filepath.Join(dir, HeartbeatFile), len(b), len(k))
	}
	copy(k[:], b)
	return k, nil
}

// SaveCA writes the CA's certificate and key into a key directory.
func SaveCA(dir string, ca CA) error {
	if err := WriteSecret(dir, CAKeyFile, ca.Key); err != nil {
		return err
	}
	return writeFile(dir, CACertFile, ca.Cert, 0o644)
}

// LoadCA reads the CA with its key from a key directory. The error wraps fs.ErrNotExist where this
// node holds no CA key.
func LoadCA(dir string) (CA, error) {
	key, err := ReadSecret(dir, CAKeyFile)
	if err != nil {
		return CA{}, err
	}
	cert, err := readPublic(dir, CACertFile)
	if err != nil {
		return CA{}, err
	}
	ca, err := ParseCA(cert, key)
	if err != nil {
		return CA{}, fmt.Errorf("load the cluster CA from %s: %w", dir, err)
	}
	return ca, nil
}

// SaveNode writes a node's certificate, key and CA certificate (PEM) into a key directory.
func SaveNode(dir string, certPEM, keyPEM, caPEM []byte) error {
	if err := WriteSecret(dir, NodeKeyFile, keyPEM); err != nil {
		return err
	}
	if err := writeFile(dir, NodeCertFile, certPEM, 0o644); err != nil {
		return err
	}
	return writeFile(dir, CACertFile, caPEM, 0o644)
}

// LoadNode reads a node's identity from a key directory.
func LoadNode(dir string) (*Identity, error) {
	key, err := ReadSecret(dir, NodeKeyFile)
	if err != nil {
		return nil, err
	}
	cert, err := readPublic(dir, NodeCertFile)
	if err != nil {
		return nil, err
	}
	ca, err := readPublic(dir, CACertFile)
	if err != nil {
		return nil, err
	}
	id, err := NewIdentity(cert, key, ca)
	if err != nil {
		return nil, fmt.Errorf("load the node's identity from %s: %w", dir, err)
	}
	return id, nil
}

// WriteSecret writes a secret file, 0600, into a directory that is made with 0700 where it is
// missing. The file appears whole or not at all and is on disk when WriteSecret returns.
func WriteSecret(dir, name string, data []byte) error {
	return writeFile(dir, name, data, 0o600)
}

func writeFile(dir, name string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the key directory %s: %w", dir, err)
	}
	if err := checkDir(dir); err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
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

// ReadSecret reads a secret file of at most 64 KiB. It refuses a symlink, anything that is not a
// regular file, a file or directory that group or others may read, and an owner who is neither this
// user nor root; the error names the file and the command that mends it.
func ReadSecret(dir, name string) ([]byte, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link: a secret must be a file of its own", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the secret %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the secret %s: %w", path, err)
	}
	if err := checkMode(path, st, "600"); err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file (%s)", path, st.Mode().Type())
	}
	return readLimited(f, path)
}

// checkDir refuses a key directory that is a symlink or open to group or others.
func checkDir(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("read the key directory %s: %w", dir, err)
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link: the key directory must be a directory of its own", dir)
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	return checkMode(dir, st, "700")
}

func checkMode(path string, st os.FileInfo, want string) error {
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be read by others (mode %04o): mend it with: chmod %s %s", path, st.Mode().Perm(), want, path)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to uid %d: mend it with: chown %d %s", path, sys.Uid, os.Geteuid(), path)
	}
	return nil
}

func readPublic(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the certificate %s: %w", path, err)
	}
	defer f.Close()
	return readLimited(f, path)
}

func readLimited(f io.Reader, path string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%s is longer than %d bytes: it is not one of picket's files", path, maxPEM)
	}
	return b, nil
}
