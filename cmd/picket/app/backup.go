package app

import (
	"encoding/json"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/picket-ha/picket/cmd/picket/config"
	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/heartbeat"
)

// seenFile keeps, over a restart, how far every peer had come.
const seenFile = "seen.json"

// seen is the furthest that one peer was ever heard to be: what a store that has lost nothing still
// holds. Admitted is the log index of its admission: a node that joined anew begins anew.
type seen struct {
	Admitted uint64 `json:"admitted"`
	Start    uint64 `json:"start"`
	Applied  uint64 `json:"applied"`
}

// memory notices a peer whose state directory went back in time: a restored backup has forgotten votes
// and entries that it once promised to keep, and must neither vote nor be believed (rule 3).
type memory struct {
	mu     sync.Mutex
	path   string
	log    *slog.Logger
	peers  map[ids.Node]seen
	doubt  map[ids.Node]doubt
	behind map[ids.Node]bool
	dirty  bool
}

// doubt is a run of heartbeats of one process that are all behind. A single one may have been under way
// for long; a process that says so for a second means it.
type doubt struct{ session, first uint64 }

const doubtFor = uint64(time.Second)

func newMemory(dir string, log *slog.Logger) (*memory, error) {
	m := &memory{path: filepath.Join(dir, seenFile), log: log, peers: map[ids.Node]seen{}, doubt: map[ids.Node]doubt{}, behind: map[ids.Node]bool{}}
	return m, readJSON(m.path, &m.peers)
}

// heard compares a heartbeat that proves life with what was heard before. A node's log never ends before
// an entry that it has applied, and its start counter never falls.
func (m *memory) heard(admitted uint64, b heartbeat.Beat) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[b.From]
	if p.Admitted != admitted {
		p = seen{Admitted: admitted}
		delete(m.behind, b.From)
		delete(m.doubt, b.From)
	}
	if b.Start >= p.Start && b.LastIndex >= p.Applied {
		if d := m.doubt[b.From]; d.session != b.Session || b.Seq > d.first {
			delete(m.doubt, b.From)
		}
		if n := (seen{admitted, b.Start, max(p.Applied, b.Applied)}); n != p {
			m.peers[b.From], m.dirty = n, true
		}
		return
	}
	d := m.doubt[b.From]
	if d.session != b.Session || d.first > b.Seq {
		m.doubt[b.From] = doubt{b.Session, b.Seq}
		return
	}
	if b.Seq-d.first >= doubtFor && !m.behind[b.From] {
		m.behind[b.From] = true
		m.log.Error("a node's state directory is older than one it used before: it was restored from a backup and is not listened to; remove the node and join it again",
			"node", b.From, "start", b.Start, "start_seen", p.Start, "last_index", b.LastIndex, "applied_seen", p.Applied)
	}
}

// restored reports whether a peer went back in time.
func (m *memory) restored(n ids.Node) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.behind[n]
}

// save writes what was heard since the last save.
func (m *memory) save() {
	m.mu.Lock()
	b, err := json.Marshal(m.peers)
	was := m.dirty
	m.dirty = false
	m.mu.Unlock()
	if !was {
		return
	}
	if err == nil {
		err = config.WriteFile(m.path, b, 0o600)
	}
	if err != nil {
		m.log.Warn("how far the peers have come could not be kept", "err", err)
	}
}

// remember saves every few seconds until the node stops.
func (n *Node) remember() error {
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			n.memory.save()
			return nil
		case <-t.C:
			n.memory.save()
		}
	}
}
