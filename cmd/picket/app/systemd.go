package app

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/packaging"
)

const unitPath = "/etc/systemd/system/picket.service"

// startUnit installs, enables and starts the unit where systemd runs (sd_booted(3)), and otherwise says
// what to run. Only the default places are the unit's.
func startUnit(ctx context.Context, p config.Paths, noStart bool) ([]string, error) {
	manual := "start the daemon: picket daemon --config " + p.ConfigPath + " --state-dir " + p.StateDir + " --socket " + p.Socket
	if p.ConfigPath == config.DefaultConfigPath && p.StateDir == config.DefaultStateDir && p.Socket == config.DefaultSocket {
		manual = "start the daemon: picket daemon"
	}
	if noStart {
		return []string{manual}, nil
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return []string{"systemd does not run here; " + manual}, nil
	}
	if manual != "start the daemon: picket daemon" {
		return []string{"the paths are not the default ones, so no unit was installed; " + manual}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the picket binary: %w", err)
	}
	unit := strings.ReplaceAll(packaging.Unit, "/usr/bin/picket", self)
	if err := config.WriteFile(unitPath, []byte(unit), 0o644); err != nil {
		return nil, fmt.Errorf("install the systemd unit: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, args := range [][]string{{"daemon-reload"}, {"enable", "--now", "picket.service"}} {
		if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return []string{"picket.service is enabled and running"}, nil
}
