package app

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/fencing"
)

// Host is what the machine says of itself. Tests and labs fill it themselves.
type Host struct {
	Boot ids.Boot
	UUID string
}

const (
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	uuidFile   = "/sys/class/dmi/id/product_uuid"
	// uuidEnv stands in for the DMI uuid where a lab gives several nodes one machine.
	uuidEnv = "PICKET_MACHINE_UUID"
)

// ReadHost reads the boot id (random(4)) and the machine's DMI uuid (SMBIOS 3, type 1). A uuid that
// cannot be read is "": fencing evidence that needs it is then refused, and status says so.
func ReadHost() (Host, error) {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return Host{}, fmt.Errorf("read the boot id: %w", err)
	}
	h := Host{Boot: ids.Boot(strings.TrimSpace(string(b)))}
	if err := ids.CheckBoot(h.Boot); err != nil {
		return Host{}, fmt.Errorf("%s: %w", bootIDFile, err)
	}
	uuid := os.Getenv(uuidEnv)
	if uuid == "" {
		if b, err := os.ReadFile(uuidFile); err == nil {
			uuid = strings.TrimSpace(string(b))
		}
	}
	if u, err := fencing.CanonicalUUID(uuid); err == nil {
		h.UUID = u
	}
	return h, nil
}

// bootClock reads CLOCK_BOOTTIME (clock_gettime(2)): it is not stepped and counts suspended time.
func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME cannot be read: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

func wallMS() int64 { return time.Now().UnixMilli() }

// session draws the mark of this process, never zero.
func session() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("draw the session: %w", err)
	}
	return binary.BigEndian.Uint64(b[:]) | 1, nil
}

// runRecord is the file that says what may run on this boot. It lies beside the control socket, on
// storage that a reboot clears, and names the boot in case that storage is not.
type runRecord struct {
	Boot    ids.Boot        `json:"boot"`
	Entries []core.RunEntry `json:"entries"`
}

func recordPath(p config.Paths) string { return filepath.Join(filepath.Dir(p.Socket), "run.json") }

// readRecord returns the record of this boot, and whether there is one. A record that cannot be read
// is none: everything configured is then stopped before the node announces itself.
func readRecord(path string, boot ids.Boot) ([]core.RunEntry, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	var r runRecord
	if json.Unmarshal(b, &r) != nil || r.Boot != boot {
		return nil, false
	}
	return r.Entries, true
}

func writeRecord(path string, boot ids.Boot, entries []core.RunEntry) error {
	b, err := json.Marshal(runRecord{Boot: boot, Entries: entries})
	if err != nil {
		return fmt.Errorf("encode the record of what runs: %w", err)
	}
	if err := config.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("write the record of what runs: %w", err)
	}
	return nil
}

// resetMachine ends this machine at once, without syncing or stopping anything: reboot(2). In a pid
// namespace it ends that namespace's init only, so a lab never resets its host. Where the call is
// denied in the initial namespace, sysrq does it (Documentation/admin-guide/sysrq.rst).
func resetMachine() error {
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	if inInitialPIDNamespace() {
		return errors.Join(err, os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0))
	}
	return err
}

// initialPIDNamespace is the inode of the kernel's first pid namespace (PROC_PID_INIT_INO,
// include/linux/proc_ns.h).
const initialPIDNamespace = 0xEFFFFFFC

func inInitialPIDNamespace() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == initialPIDNamespace
}
