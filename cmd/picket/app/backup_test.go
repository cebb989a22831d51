package app

import (
	"log/slog"
	"testing"

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
