package bench

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
)

// step is one line of a daemon's trace: an event that came in or an action that went out.
type step struct {
	t    int64 // harness time, ns
	node string
	what string // "in applied state.Grant index=7 ok=true", "out run start ip:..."
}

// tracer follows the logs of all daemons.
type tracer struct {
	files map[string]*tail
	nodes []string
	steps []step
}

func newTracer(lab *netlab.Lab, nodes []string) *tracer {
	t := &tracer{files: map[string]*tail{}, nodes: nodes}
	for _, n := range nodes {
		t.files[n] = &tail{path: filepath.Join(lab.Dir(), "nodes", n, "daemon.log")}
	}
	return t
}

var traceLine = regexp.MustCompile(`msg=trace at=(\d+) dir=(in|out) what=(.*)$`)

// read takes in what the daemons have written since, in the order of time.
func (t *tracer) read() error {
	off := bootOffset()
	for _, n := range t.nodes {
		err := t.files[n].lines(func(line []byte) error {
			m := traceLine.FindSubmatch(line)
			if m == nil {
				return nil
			}
			at, err := strconv.ParseInt(string(m[1]), 10, 64)
			if err != nil {
				return nil
			}
			what := string(m[3])
			if s, err := strconv.Unquote(what); err == nil {
				what = s
			}
			t.steps = append(t.steps, step{at + off, n, string(m[2]) + " " + what})
			return nil
		})
		if err != nil {
			return err
		}
	}
	slices.SortStableFunc(t.steps, func(a, b step) int {
		switch {
		case a.t < b.t:
			return -1
		case a.t > b.t:
			return 1
		}
		return 0
	})
	return nil
}

// forget drops what was read so far.
func (t *tracer) forget() error {
	err := t.read()
	t.steps = t.steps[:0]
	return err
}

// find returns the first step at or after since on a node ("" for any) that begins with what.
func (t *tracer) find(since int64, node, what string) (step, bool) {
	for _, s := range t.steps {
		if s.t >= since && (node == "" || s.node == node) && strings.HasPrefix(s.what, what) {
			return s, true
		}
	}
	return step{}, false
}

// last returns the last such step in [since, before].
func (t *tracer) last(since, before int64, node, what string) (step, bool) {
	var out step
	for _, s := range t.steps {
		if s.t >= since && s.t <= before && (node == "" || s.node == node) && strings.HasPrefix(s.what, what) {
			out = s
		}
	}
	return out, out.t != 0
}

// bootOffset is what is added to CLOCK_BOOTTIME, which the daemons' traces carry, for harness time
// (CLOCK_MONOTONIC_RAW). Both are of the host: no namespace of the lab shifts them.
func bootOffset() int64 {
	best, off := int64(1<<62), int64(0)
	for range 5 {
		var ts unix.Timespec
		a := check.Now()
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			return 0
		}
		b := check.Now()
		if b-a < best {
			best, off = b-a, (a+b)/2-ts.Nano()
		}
	}
	return off
}
