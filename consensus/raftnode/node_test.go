package raftnode

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/raftnode/mesh"
)

func TestThreeNodes(t *testing.T) {
	c := newCluster(t, 3, 1)
	c.up()
	index, result, err := c.leader().node.Propose(within(t, 5*time.Second), []byte("hello"))
	if err != nil || result != fmt.Sprintf("%d:hello", index) {
		t.Fatalf("got %d %v %v", index, result, err)
	}
	servers, _, err := c.members[2].node.Servers()
	if err != nil || len(servers) != 3 {
		t.Fatalf("servers %v %v", servers, err)
	}
	for _, s := range servers {
		if !s.Voter {
			t.Errorf("%s is no voter", s.Name)
		}
	}
	for _, m := range c.members[1:] {
		if _, _, err := m.node.Propose(within(t, time.Second), []byte("x")); !errors.Is(err, ErrNotLeader) {
			t.Errorf("follower: got %v", err)
		}
		if err := m.node.Bootstrap(); !errors.Is(err, ErrUsed) {
			t.Errorf("second bootstrap: got %v", err)
		}
	}
	lead := c.leader()
	if err := lead.node.Barrier(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	if lead.node.AppliedIndex() != index {
		t.Errorf("applied %d, want %d", lead.node.AppliedIndex(), index)
	}
	if err := lead.node.Transfer(within(t, 5*time.Second), "node2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "node2 leads", func() bool { n, _ := lead.node.Leader(); return n == "node2" && c.members[1].node.IsLeader() })
	c.propose("after")
	if err := c.leader().node.RemoveServer(within(t, 5*time.Second), "node3"); err != nil {
		t.Fatal(err)
	}
	if servers, _, _ := c.leader().node.Servers(); len(servers) != 2 {
		t.Errorf("servers after removal: %v", servers)
	}
}

func TestPipelining(t *testing.T) {
	c := newCluster(t, 3, 1)
	c.up()
	lead := c.leader().node
	var ps []*Pending
	for i := range 500 {
		p, err := lead.Submit(within(t, 10*time.Second), fmt.Appendf(nil, "%d", i))
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	last := uint64(0)
	for i, p := range ps {
		index, _, err := p.Wait(within(t, 10*time.Second))
		if err != nil || index <= last {
			t.Fatalf("entry %d: index %d after %d, %v", i, index, last, err)
		}
		last = index
	}
	if got := c.agree(500); got[0] != "0" || got[499] != "499" {
		t.Errorf("order lost: %v", got)
	}
}

func TestLeaderLossAndRestartLoseNothing(t *testing.T) {
	c := newCluster(t, 3, 2)
	c.up()
	var want []string
	say := func(n int) {
		for range n {
			want = append(want, fmt.Sprintf("e%d", len(want)))
			c.propose(want[len(want)-1])
		}
	}
	check := func() {
		t.Helper()
		got := slices.Compact(c.agree(len(want))) // a proposal that was repeated may be there twice
		if !slices.Equal(got, want) {
			t.Fatalf("log holds %v, want %v", got, want)
		}
	}
	say(20)
	old := c.leader()
	c.stop(old)
	say(20)
	if c.leader() == old {
		t.Fatal("the stopped node leads")
	}
	c.start(old)
	check()
	for _, m := range c.members {
		c.stop(m)
	}
	for _, m := range c.members {
		c.start(m)
		if m.node.StartCounter() < 2 {
			t.Errorf("%s: start counter %d", m.name, m.node.StartCounter())
		}
	}
	say(5)
	check()
}

func TestSnapshotAndRestore(t *testing.T) {
	c := newCluster(t, 3, 1)
	c.tune = func(o *Options) { o.TrailingLogs = 1; o.SnapshotThreshold = 4 }
	c.up()
	for i := range 30 {
		c.propose(fmt.Sprint(i))
	}
	want := c.agree(30)
	late := c.members[2]
	if late == c.leader() {
		if err := late.node.Transfer(within(t, 5*time.Second), "node1"); err != nil {
			t.Fatal(err)
		}
	}
	c.stop(late)
	for i := range 30 {
		c.propose(fmt.Sprint(100 + i))
	}
	for _, m := range c.members[:2] {
		if err := m.node.Snapshot(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.members[:2] { // restart from the snapshot
		before := m.node.AppliedIndex()
		c.stop(m)
		c.start(m)
		if m.node.AppliedIndex() != before {
			t.Errorf("%s: applied %d after the restart, %d before", m.name, m.node.AppliedIndex(), before)
		}
	}
	c.leader()
	c.start(late) // must be sent a snapshot: the log no longer reaches back
	c.propose("end")
	got := c.agree(len(want) + 31)
	if !slices.Equal(got[:len(want)], want) {
		t.Errorf("lost entries: %v", got)
	}
	c.stop(late) // the installed snapshot leaves a gap in the log, which is no damage
	c.start(late)
	c.agree(len(want) + 31)
}

// A link is closed on the leader's side: heartbeats notice, the mesh drops the connections, and
// neither leadership nor a proposal is lost.
func TestDeadLinkCostsNothing(t *testing.T) {
	c := newCluster(t, 3, 2)
	c.up()
	lead := c.leader()
	term := lead.node.Term()
	for round, link := range []string{"la", "lb"} {
		for i := range 20 {
			if i == 5 {
				for _, m := range c.members {
					m.setRank(link, mesh.RankDead)
				}
				for _, m := range c.members {
					for _, p := range c.members {
						m.mesh.DropLink(p.name, link)
					}
				}
			}
			if _, _, err := lead.node.Propose(within(t, 5*time.Second), fmt.Appendf(nil, "%d-%d", round, i)); err != nil {
				t.Fatalf("proposal %d: %v", i, err)
			}
		}
		for _, m := range c.members {
			m.setRank(link, mesh.RankUp)
		}
	}
	if !lead.node.IsLeader() || lead.node.Term() != term {
		t.Errorf("leadership changed: term %d, was %d", lead.node.Term(), term)
	}
	c.agree(40)
}

func TestSecondOpenIsRefused(t *testing.T) {
	c := newCluster(t, 1, 1)
	c.up()
	o := Options{Name: "node1", Dir: c.members[0].dir, Timing: c.timing, Mesh: c.members[0].mesh, FSM: newFSM(), Fatal: func(error) {}, MachineID: "x"}
	if _, err := Open(o); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("got %v", err)
	}
}
