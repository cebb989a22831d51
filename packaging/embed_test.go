package packaging

import (
	"strings"
	"testing"
)

// TestUnit holds what the daemon and the set-up rely on in the unit.
func TestUnit(t *testing.T) {
	directives := map[string]string{}
	for i, l := range strings.Split(Unit, "\n") {
		l = strings.TrimSpace(l)
		if l == "" || l[0] == '#' || l[0] == '[' {
			continue
		}
		k, v, ok := strings.Cut(l, "=")
		if _, dup := directives[k]; !ok || dup {
			t.Errorf("line %d is no directive, or is given twice: %s", i+1, l)
		}
		directives[k] = v
	}
	for k, want := range map[string]string{
		"ExecStart":                "/usr/bin/picket daemon", // init and join put the real path there
		"KillMode":                 "process",                // what runs outlives the daemon's crash
		"Restart":                  "always",
		"TimeoutStopSec":           "90s", // longer than the daemon's own patience with a clean stop, 80 s
		"RuntimeDirectory":         "picket",
		"RuntimeDirectoryPreserve": "restart", // the record of what may run survives a crash
		"StateDirectoryMode":       "0700",    // it holds keys
		"ConditionPathExists":      "/etc/picket/node.yaml",
	} {
		if directives[k] != want {
			t.Errorf("%s=%s, want %s", k, directives[k], want)
		}
	}
	for _, c := range []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_BOOT"} {
		if !strings.Contains(" "+directives["CapabilityBoundingSet"]+" ", " "+c+" ") {
			t.Errorf("CapabilityBoundingSet lacks %s", c)
		}
	}
	for k := range directives {
		if strings.HasPrefix(k, "Private") || strings.HasPrefix(k, "Protect") || strings.HasPrefix(k, "ReadOnly") {
			t.Errorf("%s gives the daemon a mount table of its own", k)
		}
	}
}
