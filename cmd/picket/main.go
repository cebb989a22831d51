// Command picket runs a node of a high-availability cluster and speaks to it. This file only turns
// the process's arguments and signals into calls.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/picket-ha/picket/cmd/picket/app"
	"github.com/picket-ha/picket/cmd/picket/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	code := cli.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr,
		cli.Hooks{Daemon: app.RunDaemon, Init: app.Init, Join: app.Join, Version: app.Version})
	stop()
	os.Exit(code)
}
