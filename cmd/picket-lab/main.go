// Picket-lab is a picket cluster on one machine: nodes, cables, BMCs and a client as namespaces,
// to be broken by hand. It needs no privileges where the kernel gives ordinary users namespaces.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/netlab"
)

func main() {
	netlab.Reexec() // this binary is also the lab's supervisor, pid 1 and agent
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	err := newRoot().ExecuteContext(ctx)
	var code exitCode
	switch {
	case errors.As(err, &code):
		os.Exit(int(code))
	case err != nil:
		fmt.Fprintln(os.Stderr, "picket-lab:", err)
		os.Exit(1)
	}
}

// exitCode is the result of a program that ran on a node, passed on as our own.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }
