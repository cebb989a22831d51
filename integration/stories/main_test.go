package stories

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/bmcsim"
	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
	"github.com/picket-ha/picket/integration/netlab/cluster"
)

// settle bounds the wait for a cluster to be well; act bounds the wait for what must come.
const (
	settle = 40 * time.Second
	act    = 20 * time.Second
)

// setup is what the whole test binary shares.
type setup struct {
	picket string // the binary under test
	repeat int    // how often the scenes are played
}

// shared is set once by TestMain, before any test runs.
var shared setup

func TestMain(m *testing.M) {
	netlab.Reexec()
	repeat := flag.Int("repeat", repeatFromEnv(), "how often each scene is played (or PICKET_STORIES_REPEAT)")
	flag.Parse()
	os.Exit(run(m, *repeat))
}

func repeatFromEnv() int {
	if n, err := strconv.Atoi(os.Getenv("PICKET_STORIES_REPEAT")); err == nil && n > 0 {
		return n
	}
	return 3
}

// run builds the product afresh: a story about yesterday's binary proves nothing about today's code.
func run(m *testing.M, repeat int) int {
	dir, err := os.MkdirTemp("", "picket-stories-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shared = setup{picket: os.Getenv("PICKET_BINARY"), repeat: repeat}
	if shared.picket == "" {
		shared.picket = filepath.Join(dir, "picket")
		build := exec.Command("go", "build", "-o", shared.picket, "../../cmd/picket")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build picket: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// world is one cluster that several stories share.
type world struct {
	*cluster.Cluster
	t    *testing.T
	dead bool // a story left it in a state from which it did not recover
}

// form makes a cluster for the stories of one test, and judges it at the end.
func form(t *testing.T, change ...func(*cluster.Options)) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("stories play for minutes: not with -short")
	}
	o := cluster.Options{Lab: netlab.Options{Dir: filepath.Join(t.TempDir(), "lab"), Picket: shared.picket}}
	for _, f := range change {
		f(&o)
	}
	c, err := cluster.Form(t.Context(), o)
	if errors.Is(err, netlab.ErrUnsupported) {
		t.Skipf("needs namespaces, ip and nft: %v", err)
	}
	if err != nil {
		t.Fatalf("form a cluster: %v", err)
	}
	w := &world{Cluster: c, t: t}
	t.Cleanup(func() {
		if err := c.Lab.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return w
}

// story is one story that is being played.
type story struct {
	*cluster.Cluster
	*testing.T
	ctx    context.Context
	before cluster.Status
	owner  string // who owned the group when the story began
	from   int64  // harness time of the beginning
	fences int    // fences in the history before
}

// story plays one story on a cluster that is well, and afterwards brings it back to that, compares
// the log with the BMCs and lets the observers judge.
func (w *world) story(name string, play func(*story)) {
	w.t.Run(name, func(t *testing.T) {
		if w.dead {
			t.Fatal("not played: the cluster did not recover from an earlier story")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		s := &story{Cluster: w.Cluster, T: t, ctx: ctx, from: check.Now()}
		var err error
		if s.before, err = w.AwaitOK(ctx, settle); err != nil {
			w.dead = true
			t.Fatalf("before the story: %v\n%s", err, w.Logs(40))
		}
		s.owner = s.before.Group(cluster.Web).Owner
		seen := w.judge(t, ctx, 0)
		s.fences = len(s.history())
		defer func() {
			s.mend()
			if _, err := w.AwaitOK(ctx, settle); err != nil {
				w.dead = true
				t.Errorf("after the story: %v", err)
			}
			s.audit()
			w.judge(t, ctx, seen)
			if t.Failed() {
				t.Logf("events:\n%s\n%s", s.told(), w.Logs(40))
			}
		}()
		play(s)
	})
}

// judge lets the checker look at everything the observers saw since the lab began, and demands that
// they saw something since an earlier look. It returns how much they have seen.
func (w *world) judge(t *testing.T, ctx context.Context, seen int) int {
	t.Helper()
	h, err := w.Lab.History(ctx)
	if err != nil {
		t.Errorf("read the observers' records: %v", err)
		return 0
	}
	rep := check.Run(h, check.Options{})
	if !rep.OK() {
		var b strings.Builder
		_ = rep.Write(&b) // a strings.Builder does not fail
		t.Errorf("the observers object:\n%s", b.String())
	}
	if rep.MaxOwners > 1 {
		t.Errorf("the address had %d owners at one time", rep.MaxOwners)
	}
	if rep.Observations <= seen {
		t.Errorf("the observers saw nothing: %d observations before, %d after", seen, rep.Observations)
	}
	return rep.Observations
}

// mend undoes every fault that a story may have left.
func (s *story) mend() {
	s.Helper()
	lab, err := s.Lab.Status(s.ctx)
	s.must(err)
	s.must(s.Lab.Heal(s.ctx, "", ""))
	for _, n := range lab.Nodes {
		switch {
		case n.Power == "unplugged":
			s.must(s.Lab.Plug(s.ctx, n.Name))
		default:
			s.must(s.Lab.BMC(s.ctx, n.Name, bmcsim.Faults{}))
			if n.Daemon == "paused" {
				s.must(s.Lab.Resume(s.ctx, n.Name))
			}
			if n.Power == "off" {
				s.must(s.Lab.Power(s.ctx, n.Name, true))
			}
		}
		s.must(cluster.Until(s.ctx, act, func() (string, error) { return "", s.Lab.StartDaemon(s.ctx, n.Name) }))
	}
}

// audit compares the log with what the BMCs received.
func (s *story) audit() {
	s.Helper()
	events, err := s.Events(s.ctx)
	s.must(err)
	powers, err := s.PowerCommands(s.ctx, 0)
	s.must(err)
	for _, b := range cluster.Audit(events, powers) {
		s.Errorf("audit: %s", b)
	}
}

// told lists the events since the story began.
func (s *story) told() string {
	events, err := s.Events(context.WithoutCancel(s.ctx))
	if err != nil {
		return err.Error()
	}
	begin := time.Now().Add(-time.Duration(check.Now() - s.from))
	var b strings.Builder
	for _, e := range events {
		if e.Time.After(begin) {
			fmt.Fprintf(&b, "  %+8.3f %-5d %s: %s [%s]\n", e.Time.Sub(begin).Seconds(), e.Index, e.From, e.Text, e.Code)
		}
	}
	return b.String()
}

func (s *story) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// history reads the fences of the cluster's whole life; newFences those since the story began.
func (s *story) history() []cluster.Fence {
	s.Helper()
	list, err := s.Fences(s.ctx)
	s.must(err)
	return list
}

func (s *story) newFences() []cluster.Fence { s.Helper(); return s.history()[s.fences:] }

// noFence demands that nobody was condemned since the story began, and no BMC received a command.
func (s *story) noFence() {
	s.Helper()
	if list := s.newFences(); len(list) != 0 {
		s.Errorf("somebody was fenced: %+v", list)
	}
	s.noPower("")
}

// noPower demands that the BMC of a node ("": any) received no power command since the story began.
func (s *story) noPower(node string) {
	s.Helper()
	list, err := s.PowerCommands(s.ctx, s.from)
	s.must(err)
	for _, p := range list {
		if node == "" || p.Node == node {
			s.Errorf("power command: %+v", p)
		}
	}
}

// await waits until the cluster's status is as wanted.
func (s *story) await(what string, ok func(cluster.Status) bool) cluster.Status {
	s.Helper()
	return s.awaitIn(act, what, ok)
}

// awaitIn is await with a bound of its own.
func (s *story) awaitIn(d time.Duration, what string, ok func(cluster.Status) bool) cluster.Status {
	s.Helper()
	st, err := s.Await(s.ctx, d, func(st cluster.Status) string {
		if ok(st) {
			return ""
		}
		return what
	})
	s.must(err)
	return st
}

// stays demands that the status is as wanted for a while, at every look.
func (s *story) stays(what string, d time.Duration, ok func(cluster.Status) bool) cluster.Status {
	s.Helper()
	var last cluster.Status
	end := time.Now().Add(d)
	err := cluster.Until(s.ctx, d+act, func() (string, error) {
		st, err := s.Status(s.ctx)
		if err != nil {
			return "", err
		}
		if last = st; !ok(st) {
			s.Fatalf("not for %s: %s; %s", d, what, st.Line())
		}
		if time.Now().After(end) {
			return "", nil
		}
		return "the time is not over", nil
	})
	s.must(err)
	return last
}

// well waits until all is well.
func (s *story) well() cluster.Status {
	s.Helper()
	st, err := s.AwaitOK(s.ctx, settle)
	s.must(err)
	return st
}

// unmoved demands that the group is where it was, under the same epoch.
func (s *story) unmoved(st cluster.Status) {
	s.Helper()
	g, was := st.Group(cluster.Web), s.before.Group(cluster.Web)
	if g.Owner != was.Owner || g.Epoch != was.Epoch || g.State != "running" {
		s.Errorf("the group was %s on %s at epoch %d, and is %s on %s at epoch %d", was.State, was.Owner, was.Epoch, g.State, g.Owner, g.Epoch)
	}
}

// noOutage demands that the client noticed nothing since the story began.
func (s *story) noOutage() {
	s.Helper()
	s.must(s.Answers(s.ctx, act))
	g, err := s.Outage(s.ctx, s.from, check.Now())
	s.must(err)
	if g.Length() >= cluster.NoOutage {
		s.Errorf("the client had no answer for %s", g.Length())
	}
	touched, err := s.Untouched(s.ctx, s.from)
	s.must(err)
	if touched != "" {
		s.Errorf("the address was touched: %s", touched)
	}
}

// cut cuts cables of a node; split both of its cables to other nodes and to the clients.
func (s *story) cut(node string, d netlab.Direction, links ...string) {
	s.Helper()
	for _, l := range links {
		s.must(s.Lab.Cut(s.ctx, node, l, d))
	}
}

func (s *story) split(node string, d netlab.Direction) {
	s.Helper()
	s.cut(node, d, netlab.LinkPublic, netlab.LinkHeartbeat)
}

// picket runs a command that has to succeed; refused one that has to be refused (exit code 4), and
// returns what it said.
func (s *story) picket(node string, args ...string) string {
	s.Helper()
	out, err := s.Must(s.ctx, node, args...)
	s.must(err)
	return out.Stdout
}

func (s *story) refused(node string, args ...string) string {
	s.Helper()
	out, err := s.Ask(s.ctx, node, args...)
	s.must(err)
	if out.Code != 4 {
		s.Errorf("picket %s: exit code %d, not 4: %s%s", strings.Join(args, " "), out.Code, out.Stdout, out.Stderr)
	}
	return out.Stderr
}

// others are the members that do not own the group.
func (s *story) others() []string {
	var list []string
	for _, n := range s.Nodes {
		if n != s.owner && n != s.Witness {
			list = append(list, n)
		}
	}
	return list
}
