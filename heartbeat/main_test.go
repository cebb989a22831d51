package heartbeat

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestPure keeps clocks, randomness and the system out of this room, its own imports only.
func TestPure(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports " "}}`, ".").Output()
	if err != nil {
		t.Skip("needs the go command:", err)
	}
	allowed := []string{"cmp", "slices", "time", "github.com/picket-ha/picket/consensus/ids"}
	for _, i := range strings.Fields(string(out)) {
		if !slices.Contains(allowed, i) {
			t.Errorf("imports %s: time and randomness are inputs here", i)
		}
	}
}
