package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/reason"
)

// stopPatience bounds a clean stop; the unit's TimeoutStopSec is longer.
const stopPatience = 80 * time.Second

// startControl serves the control socket.
func (n *Node) startControl() error {
	group := n.conf.Group
	if group == "" {
		group = config.DefaultGroup
	}
	if err := os.MkdirAll(filepath.Dir(n.opt.Socket), 0o755); err != nil {
		return fmt.Errorf("make the directory of the control socket: %w", err)
	}
	ln, err := control.Listen(n.opt.Socket, group, n.log)
	if err != nil {
		return err
	}
	srv := control.NewServer(n, n.log, control.Options{})
	n.goRun("control socket", func() error { return srv.Serve(ln) })
	n.onClose("control socket", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return srv.Close(ctx)
	})
	return nil
}

// RunDaemon runs one node until ctx ends, which asks for a clean stop: everything owned is handed over
// before the process goes. It returns an error when the node could not start.
func RunDaemon(ctx context.Context, o config.DaemonOptions) error {
	level := slog.LevelInfo
	name := o.LogLevel
	if conf, err := config.ReadNode(o.ConfigPath); err == nil && name == "" {
		name = conf.LogLevel
	}
	if name != "" {
		if err := level.UnmarshalText([]byte(strings.ToUpper(name))); err != nil {
			return fmt.Errorf("log level %q is not known: use debug, info, warn or error", name)
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	n, err := New(Options{Paths: o.Paths, Logger: log,
		Reset: func(reason.Reason) {
			err := resetMachine()
			log.Error("the machine could not be reset: the process ends", "err", err)
			os.Exit(70)
		},
		Fatal: func(error) { os.Exit(71) },
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.Socket), 0o755); err != nil {
		return fmt.Errorf("make the directory of the control socket: %w", err)
	}
	if err := n.Start(); err != nil {
		return err
	}
	<-ctx.Done()
	log.Info("a clean stop was asked for: what this node owns is handed over first")
	sctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	clean := n.Shutdown(sctx)
	err = n.Close()
	if !clean {
		return errors.Join(errors.New("the node did not leave cleanly: the cluster may fence it if it still owned something"), err)
	}
	log.Info("left cleanly")
	return err
}
