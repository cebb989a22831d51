package heartbeat

import (
	"cmp"
	"slices"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

// Detector follows every link of one node. All times it is given are readings of one monotonic
// clock whose zero is arbitrary. It is not safe for concurrent use.
//
// A link becomes up by an accepted beat and by nothing else; it becomes late and dead by silence
// or, at once, by the loss of the NIC's carrier.
type Detector struct {
	cfg   Config
	base  time.Duration // silence is not counted from before this time
	guard *Guard
	links []*link // sorted by path
	peers []*peer // sorted by name
	down  []nic   // interfaces without carrier, sorted by name
}

type link struct {
	Path
	state    LinkState // as of the last event; silence since then is added on reading
	reported LinkState // as last told by Tick
	base     time.Duration
	heard    time.Duration
	ever     bool
	was      LinkState     // the state before silence last changed it
	fell     time.Duration // when silence last changed it
	slipped  bool          // was and fell are set
	cut      bool          // dead because of the carrier: silence has no say
}

type peer struct {
	name  ids.Node
	ever  bool
	heard time.Duration
	beat  Beat
}

type nic struct {
	name string
	at   time.Duration
}

// NewDetector returns a detector of the given paths. Links begin as late: nothing was heard yet,
// and nothing is dead before cfg.Dead has passed.
func NewDetector(cfg Config, now time.Duration, paths []Path) *Detector {
	d := &Detector{cfg: cfg, base: now, guard: NewGuard(cfg.Session, cfg.Interval, cfg.Dead)}
	d.SetPaths(now, paths)
	return d
}

// SetConfig replaces the timings. The session of a process cannot change: cfg.Session is ignored.
func (d *Detector) SetConfig(cfg Config) {
	cfg.Session = d.cfg.Session
	d.cfg = cfg
	d.guard.SetTimings(cfg.Interval, cfg.Dead)
}

// SetPaths replaces the set of links. What is known of a link that stays is kept; a new link
// begins as late, or as dead if its NIC has no carrier. Duplicates are dropped and at most
// MaxPaths are watched.
func (d *Detector) SetPaths(now time.Duration, paths []Path) {
	paths = slices.Clone(paths)
	slices.SortFunc(paths, Path.Compare)
	paths = slices.Compact(paths)
	paths = paths[:min(len(paths), MaxPaths)]
	links := make([]*link, 0, len(paths))
	var peers []*peer
	var names []ids.Node
	for _, p := range paths {
		l := d.find(p)
		if l == nil {
			l = &link{Path: p, state: LinkLate, reported: LinkLate, base: now}
			if d.downSince(p.Interface) != nil {
				l.state, l.reported, l.cut = LinkDead, LinkDead, true
			}
		}
		links = append(links, l)
		if len(names) > 0 && names[len(names)-1] == p.Peer {
			continue
		}
		names = append(names, p.Peer)
		known := d.peer(p.Peer)
		if known == nil {
			known = &peer{name: p.Peer}
		}
		peers = append(peers, known)
	}
	d.links, d.peers = links, peers
	d.guard.Keep(names)
}

// Heard takes in an authenticated beat that was read from the local interface iface at time now.
// Only Accepted changes what is believed alive. Unverified still teaches the sender's session,
// which Echo then returns.
func (d *Detector) Heard(now time.Duration, iface string, b Beat) Verdict {
	l := d.find(Path{Peer: b.From, Interface: iface})
	p := d.peer(b.From)
	if l == nil || p == nil {
		return Unknown
	}
	v, _ := d.guard.Check(now, iface, b)
	if v != Accepted {
		return v
	}
	l.ever, l.heard = true, max(now, l.heard)
	if !d.stillDown(now, iface) {
		l.state, l.cut, l.slipped = LinkUp, false, false
	}
	newer := !p.ever || p.beat.Session != b.Session || p.beat.Boot != b.Boot || b.Seq > p.beat.Seq
	if newer {
		p.beat = b
	}
	p.ever, p.heard = true, max(now, p.heard)
	return Accepted
}

// Echo returns the session to echo in the next beat to the peer, 0 if none was learned. Call it
// once per beat sent: see Guard.Echo.
func (d *Detector) Echo(now time.Duration, to ids.Node) uint64 { return d.guard.Echo(now, to) }

// Carrier tells that a NIC lost or regained its carrier. Loss kills the NIC's links at once;
// return alone revives nothing: they wait for a beat.
func (d *Detector) Carrier(now time.Duration, iface string, up bool) {
	at, found := slices.BinarySearchFunc(d.down, iface, func(n nic, s string) int {
		return cmp.Compare(n.name, s)
	})
	switch {
	case up && found:
		d.down = slices.Delete(d.down, at, at+1)
	case !up && !found && len(d.down) < MaxPaths:
		d.down = slices.Insert(d.down, at, nic{name: iface, at: now})
	}
	if up {
		return
	}
	for _, l := range d.links {
		if l.Interface == iface {
			l.state, l.cut, l.slipped = LinkDead, true, false
		}
	}
}

// Late tells that the observer itself ran late by the given time: every clock of the detector
// restarts at now, and what was concluded from silence during that time is taken back. Call it
// before Tick whenever the caller's own loop did not run when it should have: a node that slept
// has no ground to call others dead. Times of zero or less change nothing.
func (d *Detector) Late(now, by time.Duration) {
	if by <= 0 {
		return
	}
	d.base = max(d.base, now)
	for _, l := range d.links {
		l.base = max(l.base, now)
		if l.slipped && l.fell >= now-by {
			l.state, l.slipped = l.was, false
		}
	}
}

// Tick returns the transitions since the last call, sorted by peer and interface. A link that
// changed and changed back in between is not among them.
func (d *Detector) Tick(now time.Duration) []Change {
	var out []Change
	for _, l := range d.links {
		if s := d.stateAt(now, l); s != l.state {
			l.was, l.fell, l.slipped = l.state, now, true
			l.state = s
		}
		if l.state == l.reported {
			continue
		}
		out = append(out, Change{Path: l.Path, From: l.reported, To: l.state, Age: l.age(now)})
		l.reported = l.state
	}
	return out
}

// Peer returns what is known of one peer. A peer without any path has Total 0 and is silent.
func (d *Detector) Peer(now time.Duration, name ids.Node) PeerView {
	v := PeerView{Peer: name, Age: -1, Silent: true}
	for _, l := range d.links {
		if l.Peer != name {
			continue
		}
		v.Total++
		switch d.stateAt(now, l) {
		case LinkUp:
			v.Up++
			v.Silent = false
		case LinkLate:
			v.Silent = false
		}
	}
	p := d.peer(name)
	if p == nil || !p.ever {
		// Carrier loss right after the start must not make a stranger lost before Dead.
		v.Silent = v.Silent && now-d.base > d.cfg.Dead
		return v
	}
	v.Ever, v.Age, v.Beat = true, max(now-p.heard, 0), p.beat
	return v
}

// Peers returns the view of every peer that has a path, sorted by name.
func (d *Detector) Peers(now time.Duration) []PeerView {
	out := make([]PeerView, 0, len(d.peers))
	for _, p := range d.peers {
		out = append(out, d.Peer(now, p.name))
	}
	return out
}

// Links returns the view of every link, sorted by peer and interface.
func (d *Detector) Links(now time.Duration) []LinkView {
	out := make([]LinkView, 0, len(d.links))
	for _, l := range d.links {
		out = append(out, LinkView{Peer: l.Peer, Interface: l.Interface, State: d.stateAt(now, l), Age: l.age(now)})
	}
	return out
}

// stateAt is the state of a link with the silence up to now counted in.
func (d *Detector) stateAt(now time.Duration, l *link) LinkState {
	if l.state == LinkDead {
		return LinkDead
	}
	since := max(l.base, d.base)
	if l.ever {
		since = max(since, l.heard)
	}
	switch silence := now - since; {
	case silence > d.cfg.Dead:
		return LinkDead
	case silence > d.cfg.Warn:
		return LinkLate
	}
	return l.state
}

func (l *link) age(now time.Duration) time.Duration {
	if !l.ever {
		return -1
	}
	return max(now-l.heard, 0)
}

// stillDown says that a beat from a NIC without carrier is only one that waited in the socket's
// buffer. Beyond Warn it cannot have: then the news of the carrier's return was lost.
func (d *Detector) stillDown(now time.Duration, iface string) bool {
	n := d.downSince(iface)
	if n == nil {
		return false
	}
	if now-n.at <= d.cfg.Warn {
		return true
	}
	d.Carrier(now, iface, true)
	return false
}

func (d *Detector) downSince(iface string) *nic {
	at, found := slices.BinarySearchFunc(d.down, iface, func(n nic, s string) int {
		return cmp.Compare(n.name, s)
	})
	if !found {
		return nil
	}
	return &d.down[at]
}

func (d *Detector) find(p Path) *link {
	at, found := slices.BinarySearchFunc(d.links, p, func(l *link, p Path) int { return l.Path.Compare(p) })
	if !found {
		return nil
	}
	return d.links[at]
}

func (d *Detector) peer(name ids.Node) *peer {
	at, found := slices.BinarySearchFunc(d.peers, name, func(p *peer, n ids.Node) int {
		return cmp.Compare(p.name, n)
	})
	if !found {
		return nil
	}
	return d.peers[at]
}
