package netlab

import (
	"fmt"
	"log/slog"
	"os"
)

// Hidden first arguments under which a binary that links this package runs as part of the lab.
const (
	argSupervisor = "__picket-lab-supervisor"
	argInit       = "__picket-lab-init"
	argAgent      = "__picket-lab-agent"
)

// Reexec must be the first statement of main or TestMain of every binary that starts a lab: the
// lab runs its supervisor, the pid 1 of its nodes and their agents from the same binary. It
// returns at once in the binary's own life, and never in a lab process.
func Reexec() {
	if len(os.Args) < 2 {
		return
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch os.Args[1] {
	case argSupervisor:
		err = supervisorMain(log)
	case argInit:
		err = initMain()
	case argAgent:
		err = agentMain()
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	os.Exit(0)
}
