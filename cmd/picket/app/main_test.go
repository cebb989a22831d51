package app

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

// inside is set in the environment of the tests that run in a network namespace of their own, and says
// why in that of those that do not.
const inside = "PICKET_APP_TEST_NETNS"

// serviceNIC carries the service addresses of the tests; its other end is serviceNIC + "p".
const serviceNIC = "svc0"

// TestMain runs the tests again in a network namespace of their own: they add service addresses, and
// the machine's own interfaces are not theirs to change.
func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(again())
	}
	if os.Getenv(inside) == "1" {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "the network namespace of the tests cannot be set up:", err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// again runs this program once more, in a new network namespace if that is allowed.
func again() int {
	ways := []*syscall.SysProcAttr{
		{Cloneflags: syscall.CLONE_NEWNET},
		{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}},
		{},
	}
	mark := "1"
	var why error
	for _, w := range ways {
		if w.Cloneflags == 0 {
			mark = "no: " + why.Error()
		}
		w.Pdeathsig = syscall.SIGKILL
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"="+mark)
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdin, os.Stdout, os.Stderr, w
		if why = cmd.Start(); why != nil {
			continue
		}
		err := cmd.Wait()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			return max(exit.ExitCode(), 1)
		case err != nil:
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	fmt.Fprintln(os.Stderr, why)
	return 1
}

func furnish() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: serviceNIC}, PeerName: serviceNIC + "p"}); err != nil {
		return err
	}
	for _, name := range []string{serviceNIC, serviceNIC + "p"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	return nil
}

// needNetns skips a test where it would change the machine's own interfaces.
func needNetns(t *testing.T) {
	t.Helper()
	if v := os.Getenv(inside); v != "1" {
		t.Skip("needs a network namespace of its own: ", strings.TrimPrefix(v, "no: "))
	}
}
