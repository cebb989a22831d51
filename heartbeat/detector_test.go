package heartbeat

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/picket-ha/picket/consensus/ids"
)

// world is one detector under test and the processes of its peers. Its verbs:
//
//	new [interval= warn= dead=] PEER/IFACE...      a detector whose session is 1000
//	at DURATION                                    moves the clock
//	beat FROM IFACE seq=N [session= boot= start= echo= gen= silent=]
//	beats FROM IFACE from=D until=D every=D ...    a series; seq is the time in ms, with Tick at each
//	carrier IFACE up|down / late DURATION / paths PEER/IFACE... / config dead=
//	tick / peer NAME / peers / links / echo NAME
type world struct {
	d   *Detector
	cfg Config
	now time.Duration
}

func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		w := &world{cfg: Config{Interval: 200 * time.Millisecond, Warn: 500 * time.Millisecond, Dead: time.Second, Session: 1000}}
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			var out strings.Builder
			if td.Cmd != "run" {
				td.Fatalf(t, "unknown command %q", td.Cmd)
			}
			for line := range strings.Lines(td.Input) {
				f := strings.Fields(line)
				if len(f) == 0 || f[0] == "#" {
					continue
				}
				w.do(t, &out, f[0], f[1:])
			}
			return out.String()
		})
	})
}

func (w *world) do(t *testing.T, out *strings.Builder, verb string, args []string) {
	t.Helper()
	switch verb {
	case "new":
		args = w.timings(t, args)
		w.d = NewDetector(w.cfg, w.now, pathsOf(args))
	case "config":
		w.timings(t, args)
		w.d.SetConfig(w.cfg)
	case "paths":
		w.d.SetPaths(w.now, pathsOf(args))
	case "at":
		w.now = dur(t, args[0])
	case "beat":
		b := w.beat(t, args)
		fmt.Fprintf(out, "%v %s on %s: %s\n", w.now, b.From, args[1], w.d.Heard(w.now, args[1], b))
	case "beats":
		w.beats(t, out, args)
	case "carrier":
		w.d.Carrier(w.now, args[0], args[1] == "up")
	case "late":
		w.d.Late(w.now, dur(t, args[0]))
	case "tick":
		w.tick(out)
	case "echo":
		fmt.Fprintf(out, "echo to %s: %d\n", args[0], w.d.Echo(w.now, ids.Node(args[0])))
	case "peer":
		showPeer(out, w.d.Peer(w.now, ids.Node(args[0])))
	case "peers":
		for _, p := range w.d.Peers(w.now) {
			showPeer(out, p)
		}
	case "links":
		for _, l := range w.d.Links(w.now) {
			fmt.Fprintf(out, "%s/%s %s age %s\n", l.Peer, l.Interface, l.State, age(l.Age))
		}
	default:
		t.Fatalf("unknown verb %q", verb)
	}
}

func (w *world) tick(out *strings.Builder) {
	for _, c := range w.d.Tick(w.now) {
		fmt.Fprintf(out, "%v %s/%s %s -> %s age %s\n", w.now, c.Peer, c.Interface, c.From, c.To, age(c.Age))
	}
}

func (w *world) beats(t *testing.T, out *strings.Builder, args []string) {
	from, until := dur(t, option(args, "from")), dur(t, option(args, "until"))
	for w.now = from; w.now <= until; w.now += dur(t, option(args, "every")) {
		b := w.beat(t, append(slices.Clone(args), "seq="+strconv.FormatInt(w.now.Milliseconds(), 10)))
		if v := w.d.Heard(w.now, args[1], b); v != Accepted {
			fmt.Fprintf(out, "%v %s on %s: %s\n", w.now, b.From, args[1], v)
		}
		w.tick(out)
	}
	w.now = until
}

// beat builds a beat. Sequences are written in milliseconds.
func (w *world) beat(t *testing.T, args []string) Beat {
	b := Beat{From: ids.Node(args[0]), Boot: "boot1", Start: 1, Session: 2000, Echo: w.cfg.Session}
	num := func(name string, to *uint64) {
		if s := option(args, name); s != "" {
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			*to = n
		}
	}
	num("seq", &b.Seq)
	b.Seq *= uint64(time.Millisecond)
	num("session", &b.Session)
	num("start", &b.Start)
	num("echo", &b.Echo)
	num("gen", &b.Gen)
	if s := option(args, "boot"); s != "" {
		b.Boot = ids.Boot(s)
	}
	if s := option(args, "silent"); s != "" {
		b.Silent = []ids.Node{ids.Node(s)}
	}
	return b
}

func (w *world) timings(t *testing.T, args []string) (rest []string) {
	for _, a := range args {
		name, value, found := strings.Cut(a, "=")
		switch {
		case !found:
			rest = append(rest, a)
		case name == "interval":
			w.cfg.Interval = dur(t, value)
		case name == "warn":
			w.cfg.Warn = dur(t, value)
		case name == "dead":
			w.cfg.Dead = dur(t, value)
		}
	}
	return rest
}

func option(args []string, name string) string {
	for _, a := range args {
		if k, v, ok := strings.Cut(a, "="); ok && k == name {
			return v
		}
	}
	return ""
}

func dur(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func pathsOf(args []string) (out []Path) {
	for _, a := range args {
		p, i, _ := strings.Cut(a, "/")
		out = append(out, Path{Peer: ids.Node(p), Interface: i})
	}
	return out
}

func age(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	return d.String()
}

func showPeer(out *strings.Builder, p PeerView) {
	fmt.Fprintf(out, "%s ever=%v silent=%v age=%s up=%d/%d", p.Peer, p.Ever, p.Silent, age(p.Age), p.Up, p.Total)
	if p.Ever {
		fmt.Fprintf(out, " boot=%s session=%d start=%d gen=%d", p.Beat.Boot, p.Beat.Session, p.Beat.Start, p.Beat.Gen)
		if len(p.Beat.Silent) > 0 {
			fmt.Fprintf(out, " reports=%v", p.Beat.Silent)
		}
	}
	out.WriteString("\n")
}
