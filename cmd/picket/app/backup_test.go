package app

import (
	"log/slog"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
)

// TestRestoredBackup walks a peer through restarts that lose nothing and through a restored backup.
func TestRestoredBackup(t *testing.T) {
	dir := t.TempDir()
	m, err := newMemory(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	seq := uint64(1e9)
	beat := func(start, last, applied uint64) bool {
		for range 12 { // a second and a bit of heartbeats
			seq += 1e8
			m.heard(7, heartbeat.Beat{From: "node2", Session: start, Start: start, Seq: seq, LastIndex: last, Applied: applied})
		}
		return m.restored("node2")
	}
	for _, c := range []struct {
		what                 string
		start, last, applied uint64
		want                 bool
	}{
		{"first heard", 1, 10, 9, false},
		{"goes on", 1, 50, 50, false},
		{"an uncommitted end of the log is cut off", 1, 50, 50, false},
		{"restarted: nothing applied yet, the log is there", 2, 50, 0, false},
		{"the backup: fewer starts", 1, 30, 0, true},
	} {
		if got := beat(c.start, c.last, c.applied); got != c.want {
			t.Fatalf("%s: restored=%t, want %t", c.what, got, c.want)
		}
	}
	m.heard(7, heartbeat.Beat{From: "node2", Session: 2, Start: 2, Seq: seq + 1, LastIndex: 50, Applied: 50})
	m.save()
	if m, err = newMemory(dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if !beat(9, 30, 0) {
		t.Error("a backup that was started often enough to pass the counter still has the shorter log, and the memory must outlive a restart")
	}
	m.heard(99, heartbeat.Beat{From: "node2", Start: 1, LastIndex: 1})
	if m.restored("node2") {
		t.Error("a node that joined anew begins anew")
	}
}

// TestOneLatePacket sees that a packet that was long under way accuses nobody.
func TestOneLatePacket(t *testing.T) {
	m, err := newMemory(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m.heard(7, heartbeat.Beat{From: "node2", Session: 2, Start: 2, Seq: 9e9, LastIndex: 80, Applied: 80})
	m.heard(7, heartbeat.Beat{From: "node2", Session: 2, Start: 2, Seq: 1e9, LastIndex: 40, Applied: 40})
	m.heard(7, heartbeat.Beat{From: "node2", Session: 1, Start: 1, Seq: 5e9, LastIndex: 40, Applied: 40})
	if m.restored("node2") {
		t.Error("a late packet was taken for a restored backup")
	}
}

// TestMemoryIsFed sees that heartbeats carry the end of the sender's log, that what is heard is compared
// with what was heard before, and that a node that went back in time is not let in: the parts above are
// worth nothing unless a running node uses them.
func TestMemoryIsFed(t *testing.T) {
	needNetns(t)
	y := newYard(t, 3)
	y.formed("prod")
	lead := y.leading().running()
	lead.raft.Nudge() // an entry that no state machine sees: the log ends beyond what is applied
	var others []ids.Node
	for _, b := range y.boxes {
		if n := b.running(); n != lead {
			others = append(others, n.self)
		}
	}
	eventually(t, 10*time.Second, "heartbeats with the end of the log", func() bool {
		v, err := y.box(others[0]).running().view(t.Context())
		if err != nil {
			return false
		}
		for _, p := range v.Peers {
			if p.Peer == lead.self {
				return p.Beat.LastIndex > p.Beat.Applied && p.Beat.LastIndex == lead.raft.LastIndex()
			}
		}
		return false
	})
	for i, n := range others {
		eventually(t, 10*time.Second, "a memory of "+string(n), func() bool {
			lead.memory.mu.Lock()
			defer lead.memory.mu.Unlock()
			return lead.memory.peers[n].Start > 0 && lead.memory.peers[n].Applied > 0
		})
		if lead.memory.restored(n) || !lead.admitted(n) {
			t.Fatalf("%s is refused although it lost nothing", n)
		}
		// The leader remembers more than the node has: more starts of the one, more entries of the other.
		lead.memory.mu.Lock()
		p := lead.memory.peers[n]
		if i == 0 {
			p.Start += 100
		} else {
			p.Applied += 1 << 20
		}
		lead.memory.peers[n] = p
		lead.memory.mu.Unlock()
		eventually(t, 10*time.Second, string(n)+" to be refused", func() bool { return !lead.admitted(n) })
	}
}
