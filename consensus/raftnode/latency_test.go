package raftnode

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkFollowerApply measures how long after Propose a follower has applied the entry: with the
// library's CommitTimeout alone, and with one follow-up entry right after the commit.
func BenchmarkFollowerApply(b *testing.B) {
	for _, follow := range []bool{false, true} {
		name := map[bool]string{false: "default", true: "follow-up"}[follow]
		b.Run(name, func(b *testing.B) {
			c := newCluster(b, 3, 2)
			c.up()
			lead, other := c.leader(), c.members[1]
			if other == lead {
				other = c.members[2]
			}
			var commit, apply []time.Duration
			for b.Loop() {
				pause := time.NewTimer(150 * time.Millisecond) // a quiet log, as before a grant
				<-pause.C
				start := time.Now()
				index, _, err := lead.node.Propose(within(b, 3*time.Second), []byte("grant"))
				if err != nil {
					b.Fatal(err)
				}
				commit = append(commit, time.Since(start))
				if follow {
					lead.node.Nudge()
				}
				for {
					other.fsm.mu.Lock()
					seen := other.fsm.seen
					other.fsm.mu.Unlock()
					if other.node.AppliedIndex() >= index {
						break
					}
					select {
					case <-seen:
					case <-time.After(time.Millisecond):
					}
				}
				apply = append(apply, time.Since(start))
			}
			slices.Sort(commit)
			slices.Sort(apply)
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			b.ReportMetric(ms(commit[len(commit)/2]), "commit-p50-ms")
			b.ReportMetric(ms(apply[len(apply)/2]), "apply-p50-ms")
			b.ReportMetric(ms(apply[len(apply)*99/100]), "apply-p99-ms")
		})
	}
}
