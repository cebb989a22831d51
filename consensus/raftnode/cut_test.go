package raftnode

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/raftnode/mesh"
)

const inNamespace = "PICKET_TEST_IN_NAMESPACE"

// TestSilentCut drops, in a network namespace of its own, every packet of one of the leader's two
// links, without anyone being told: no reset, no error, no word from a heartbeat detector. The
// transport itself must keep leadership and commit everything, for either link.
func TestSilentCut(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		for _, tool := range []string{"unshare", "nft", "ip"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("needs %s to cut a link: %v", tool, err)
			}
		}
		if out, err := exec.Command("unshare", "-Urn", "true").CombinedOutput(); err != nil {
			t.Skipf("needs a network namespace: %v: %s", err, out)
		}
		cmd := exec.Command("unshare", "-Urn", os.Args[0], "-test.run=^TestSilentCut$", "-test.v", "-test.count=1", "-test.timeout=100s")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; }")
	c := newCluster(t, 3, 2)
	c.up()
	lead := c.leader()
	term := lead.node.Term()
	for round, link := range []int{0, 1, 0, 1} {
		run(t, "nft", fmt.Sprintf("add rule inet cut in ip saddr %s drop; add rule inet cut in ip daddr %s drop", lead.addrs[link], lead.addrs[link]))
		cutAt, worst := time.Now(), time.Duration(0)
		n := 0
		for time.Since(cutAt) < 3*time.Second {
			if time.Since(cutAt) > time.Second { // by then the detector says so
				for _, m := range c.members {
					m.setRank(linkNames[link], mesh.RankDead)
				}
			}
			start := time.Now()
			if _, _, err := lead.node.Propose(within(t, 3*time.Second), fmt.Appendf(nil, "%d-%d", round, n)); err != nil {
				t.Fatalf("round %d, %v after the cut: %v", round, time.Since(cutAt), err)
			}
			worst = max(worst, time.Since(start))
			n++
		}
		t.Logf("cut %s: %d entries in 3 s, the slowest took %v", linkNames[link], n, worst)
		if !lead.node.IsLeader() || lead.node.Term() != term {
			t.Fatalf("round %d: leadership changed: term %d, was %d", round, lead.node.Term(), term)
		}
		run(t, "nft", "flush chain inet cut in")
		for _, m := range c.members {
			m.setRank(linkNames[link], mesh.RankUp)
		}
	}
	c.agree(10)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}
