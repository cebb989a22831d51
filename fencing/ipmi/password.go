package ipmi

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// readPassword gets the password at the moment of use: a changed file needs no restart. Errors name
// the file and hold nothing of its content.
func (d *Device) readPassword() (string, error) {
	o := d.opts
	var pass string
	var err error
	switch {
	case o.PasswordFile != "":
		pass, err = passwordFile(o.PasswordFile)
	case o.PasswordEnv:
		pass = os.Getenv("IPMITOOL_PASSWORD")
		if pass == "" {
			pass = os.Getenv("IPMI_PASSWORD")
		}
		if pass == "" {
			err = errors.New("neither IPMITOOL_PASSWORD nor IPMI_PASSWORD is set in the daemon's environment: set one, or use -f FILE")
		}
	default:
		err = errors.New("no password is configured: add -f FILE")
	}
	if err == nil {
		err = checkPassword(pass)
		if err != nil && o.PasswordFile != "" {
			err = fmt.Errorf("password file %s: %w", o.PasswordFile, err)
		}
	}
	if err != nil {
		return "", &Error{Kind: KindPassword, err: err, msg: "BMC at " + d.addr + ": " + err.Error()}
	}
	return pass, nil
}

// passwordFile reads one line from a regular file that only its owner may read.
func passwordFile(path string) (string, error) {
	// O_NONBLOCK: opening a pipe that nobody writes must not hang a fence.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("password file cannot be opened on this node: %w", err)
	}
	defer f.Close()
	st, err := f.Stat() // of the open file: what was checked is what is read
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("password file %s is not a regular file: put the password in a plain file", path)
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return "", fmt.Errorf("password file %s has mode %04o, so others can use it: chmod 600 %s", path, perm, path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, 1024))
	if err != nil {
		return "", fmt.Errorf("password file %s cannot be read: %w", path, err)
	}
	pass := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	if strings.ContainsAny(pass, "\r\n") {
		return "", fmt.Errorf("password file %s has more than one line: keep the password alone", path)
	}
	return pass, nil
}
