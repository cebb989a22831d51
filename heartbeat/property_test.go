package heartbeat

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/picket-ha/picket/consensus/ids"
)

const step = 200 * time.Millisecond

var propertyConfig = Config{Interval: step, Warn: 500 * time.Millisecond, Dead: time.Second}

// TestModel compares the detector with a deliberately dumb second one: a list of all that
// happened, looked through on every question.
func TestModel(t *testing.T) {
	type event struct {
		at   time.Duration
		kind string // beat, cut, late
	}
	rapid.Check(t, func(t *rapid.T) {
		cfg := propertyConfig
		cfg.Session = 1
		d := NewDetector(cfg, 0, []Path{{"b", "eth0"}})
		var events []event
		var now time.Duration
		seq := uint64(1 << 40)
		model := LinkLate
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			now += time.Duration(rapid.IntRange(0, 700).Draw(t, "ms")) * time.Millisecond
			// The link can only sink while time passes, counted from the last beat or lateness.
			since := time.Duration(0)
			for _, e := range events {
				if e.kind != "cut" {
					since = max(since, e.at)
				}
			}
			if silent := now - since; silent > cfg.Dead {
				model = LinkDead
			} else if silent > cfg.Warn && model == LinkUp {
				model = LinkLate
			}
			kind := rapid.SampledFrom([]string{"beat", "beat", "cut", "late", "tick", "replay"}).Draw(t, "kind")
			switch kind {
			case "beat":
				seq += uint64(step)
				if v := d.Heard(now, "eth0", Beat{From: "b", Boot: "x", Session: 2, Echo: 1, Seq: seq}); v != Accepted {
					t.Fatalf("a new beat is %s", v)
				}
				model = LinkUp
				events = append(events, event{now, "beat"})
			case "cut":
				d.Carrier(now, "eth0", false)
				d.Carrier(now, "eth0", true)
				model = LinkDead
				events = append(events, event{now, "cut"})
			case "late":
				d.Tick(now)
				d.Late(now, 1) // shorter than any step: nothing to take back
				events = append(events, event{now, "late"})
			case "replay":
				if seq == 1<<40 {
					continue // nothing to replay yet
				}
				if v := d.Heard(now, "eth0", Beat{From: "b", Boot: "x", Session: 2, Echo: 1, Seq: seq}); v != Replayed {
					t.Fatalf("a replay is %s", v)
				}
			}
			if got := d.Links(now)[0].State; kind != "late" && got != model {
				t.Fatalf("at %v after %s: %s, model says %s", now, kind, got, model)
			}
			if got := d.Links(now)[0].State; kind == "late" {
				model = got // what Tick concluded at this very instant may be taken back
			}
			d.Tick(now)
			if again := d.Tick(now); len(again) != 0 {
				t.Fatalf("a second Tick at the same time says %v", again)
			}
		}
	})
}

// node is one node of the two-node world: processes come and go, boots too.
type node struct {
	name    ids.Node
	d       *Detector
	boot    int
	booted  time.Duration
	session uint64
	start   uint64
	seq     uint64
}

// packet is one sent beat; an attacker keeps them all.
type packet struct {
	to    ids.Node
	iface string
	beat  Beat
	lost  bool
}

type duel struct {
	now     time.Duration
	nodes   [2]*node
	session uint64
	kept    []packet
	seen    map[string]bool
	boots   map[string]bool
}

func (w *duel) other(n *node) *node {
	if n == w.nodes[0] {
		return w.nodes[1]
	}
	return w.nodes[0]
}

func (w *duel) startProcess(n *node, reboot bool) {
	if reboot {
		n.boot++
		n.booted = w.now
		n.seq = 0
	}
	w.session++
	n.session, n.start = w.session, n.start+1
	cfg := propertyConfig
	cfg.Session = n.session
	peer := w.other(n).name
	n.d = NewDetector(cfg, w.now, []Path{{peer, "eth0"}, {peer, "eth1"}})
}

func (w *duel) send(n *node, iface string, lost bool) {
	peer := w.other(n)
	n.seq = max(n.seq+1, uint64(w.now-n.booted))
	p := packet{to: peer.name, iface: iface, lost: lost, beat: Beat{
		From: n.name, Boot: ids.Boot(fmt.Sprintf("%s-%d", n.name, n.boot)), Start: n.start,
		Session: n.session, Echo: n.d.Echo(w.now, peer.name), Seq: n.seq}}
	w.kept = append(w.kept, p)
	if !lost && peer.d != nil {
		w.deliver(peer, p)
	}
}

// deliver hands a packet over and notes what was accepted; it returns false if that happened twice.
func (w *duel) deliver(to *node, p packet) bool {
	if to.d.Heard(w.now, p.iface, p.beat) != Accepted {
		return true
	}
	key := fmt.Sprintf("%s/%d/%s/%s/%d/%d", to.name, to.session, p.iface, p.beat.Boot, p.beat.Session, p.beat.Seq)
	w.boots[fmt.Sprintf("%s/%d/%s/%s", to.name, to.session, p.iface, p.beat.Boot)] = true
	twice := w.seen[key]
	w.seen[key] = true
	return !twice
}

// TestReplayWorld runs two nodes with restarts, reboots, losses and one-way cuts, and an attacker
// who replays what was ever delivered, and what was lost of former lives.
func TestReplayWorld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &duel{seen: map[string]bool{}, boots: map[string]bool{}, now: time.Hour}
		w.nodes = [2]*node{{name: "a"}, {name: "b"}}
		w.startProcess(w.nodes[0], true)
		w.startProcess(w.nodes[1], true)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			n := w.nodes[rapid.IntRange(0, 1).Draw(t, "who")]
			switch rapid.SampledFrom([]string{"none", "none", "none", "restart", "reboot", "stop"}).Draw(t, "fault") {
			case "restart":
				w.startProcess(n, false)
			case "reboot":
				w.startProcess(n, true)
			case "stop":
				n.d = nil
			}
			w.round(t, rapid.SampledFrom([]string{"", "a", "b", "ab"}).Draw(t, "mute"))
		}
		// Peace: both run, nothing is lost, the attacker goes on. They find each other.
		for _, n := range w.nodes {
			if n.d == nil {
				w.startProcess(n, false)
			}
		}
		for range 5 {
			w.round(t, "")
		}
		for _, n := range w.nodes {
			if v := n.d.Peer(w.now, w.other(n).name); v.Up != 2 || v.Beat.Session != w.other(n).session {
				t.Fatalf("%s sees %+v after five quiet rounds", n.name, v)
			}
		}
		// Death: b is gone, the attacker goes on. a must see it.
		w.nodes[1].d = nil
		for range 7 {
			w.round(t, "")
		}
		if v := w.nodes[0].d.Peer(w.now, "b"); !v.Silent {
			t.Fatalf("a dead peer is kept alive by replays: %+v", v)
		}
	})
}

// news says that a packet that was held back may rightly count: it is of the peer's current
// process, or of a boot that this process never heard (DESIGN.md says what that costs).
func (w *duel) news(to *node, p packet) bool {
	if p.beat.Session == w.other(to).session {
		return true
	}
	for _, iface := range []string{"eth0", "eth1"} {
		if w.boots[fmt.Sprintf("%s/%d/%s/%s", to.name, to.session, iface, p.beat.Boot)] {
			return false
		}
	}
	return true
}

// round lets every running node send on both links, then the attacker replay.
func (w *duel) round(t *rapid.T, mute string) {
	w.now += step
	for _, n := range w.nodes {
		if n.d == nil {
			continue
		}
		for _, iface := range []string{"eth0", "eth1"} {
			w.send(n, iface, slices.Contains([]byte(mute), n.name[0]))
		}
	}
	for range rapid.IntRange(0, 8).Draw(t, "replays") {
		p := w.kept[rapid.IntRange(0, len(w.kept)-1).Draw(t, "packet")]
		i := slices.IndexFunc(w.nodes[:], func(n *node) bool { return n.name == p.to })
		to := w.nodes[i]
		if to.d == nil || (p.lost && w.news(to, p)) {
			continue
		}
		if !w.deliver(to, p) {
			t.Fatalf("accepted twice by %s: %+v", to.name, p)
		}
	}
	for _, n := range w.nodes {
		if n.d != nil && !slices.IsSortedFunc(n.d.Tick(w.now), func(a, b Change) int { return cmp.Or(a.Compare(b.Path)) }) {
			t.Fatal("changes are not sorted")
		}
	}
}
