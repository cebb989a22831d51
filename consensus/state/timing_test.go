package state_test

import (
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/state"
)

// TestTimingProfiles: the three profiles hold every inequality, and D_lost is what the table says.
func TestTimingProfiles(t *testing.T) {
	for name, lost := range map[string]time.Duration{"fast": 3800 * time.Millisecond, "default": 6600 * time.Millisecond, "cautious": 13 * time.Second} {
		p, err := state.Profile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := state.CheckTiming(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if p.Lost() != lost || p.Profile != name {
			t.Errorf("%s: lost after %v, want %v", name, p.Lost(), lost)
		}
	}
	if _, err := state.Profile("brave"); err == nil {
		t.Error("a profile of any name exists")
	}
}

// TestTimingInequalities: each inequality has a set of timings that only it refuses, in numbers.
func TestTimingInequalities(t *testing.T) {
	for want, change := range map[string]func(*state.Timing){
		"raft lease <= raft heartbeat":    func(x *state.Timing) { x.RaftLease = x.RaftHeartbeat + 1 },
		"raft heartbeat <= raft election": func(x *state.Timing) { x.RaftElection = x.RaftHeartbeat - 1 },
		"10ms <= heartbeat interval":      func(x *state.Timing) { x.Interval = 9 * time.Millisecond },
		"2 x interval <= warn":            func(x *state.Timing) { x.Warn = 2*x.Interval - 1 },
		"warn + interval <= dead":         func(x *state.Timing) { x.Warn = x.Dead },
		"dead <= initial_dead":            func(x *state.Timing) { x.InitialDead = x.Dead - 1 },
		"dead <= restart_grace":           func(x *state.Timing) { x.RestartGrace = x.Dead - 1 },
		"renew + grant + election + retry + disk stall <= lease - stop budget":     func(x *state.Timing) { x.StopBudget = x.Lease - 2*time.Second },
		"restart_grace <= lost - renew - grant":                                    func(x *state.Timing) { x.RestartGrace = x.Lost() },
		"interval is 0s: it must be more than 0":                                   func(x *state.Timing) { x.Interval = 0 },
		"lease is 2562047h47m16.854775807s: it must be more than 0 and at most 1h": func(x *state.Timing) { x.Lease = 1<<63 - 1 },
		"drain is -1ns": func(x *state.Timing) { x.Drain = -1 },
		"drain is 2h":   func(x *state.Timing) { x.Drain = 2 * time.Hour },
	} {
		p, err := state.Profile("default")
		if err != nil {
			t.Fatal(err)
		}
		change(&p)
		if err := state.CheckTiming(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want a refusal with %q, got %v", want, err)
		}
	}
}

// TestTimingImplied: the rows on a failed transfer and on D_lost follow from others as long as those
// hold; they stay in the check, because it is what an operator is shown.
func TestTimingImplied(t *testing.T) {
	for _, name := range []string{"fast", "default", "cautious"} {
		p, _ := state.Profile(name)
		e := 3*p.RaftHeartbeat + 2*p.RaftElection
		need := p.Renew + p.GrantLatency + e + p.Retry + p.DiskStall
		if transfer := p.Renew + p.GrantLatency + 2*p.RaftElection + p.Retry; transfer >= need {
			t.Errorf("%s: a failed transfer takes %v, a stall and an election %v", name, transfer, need)
		}
		if need > p.Lease-p.StopBudget || p.Lost() <= p.Lease {
			t.Errorf("%s: %v, lease %v, lost %v", name, need, p.Lease, p.Lost())
		}
	}
}
