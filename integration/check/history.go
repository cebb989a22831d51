package check

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"
)

// maxLine bounds one record line, in bytes.
const maxLine = 1 << 20

// History is all streams of a run, merged and sorted by time.
type History struct {
	Records []Record
	// MACs names the node behind a hardware address ("02:..": "node1"). Answers of other
	// addresses are shown as they are.
	MACs map[string]string
}

// Load reads every stream of a record directory. A missing file is an empty stream; a last line
// cut short by a killed harness is skipped; any other malformed line is an error that names
// file and line.
func Load(dir string) (History, error) {
	var h History
	for _, s := range Streams() {
		recs, err := loadStream(filepath.Join(dir, string(s)+".jsonl"), s)
		if err != nil {
			return History{}, err
		}
		h.Records = append(h.Records, recs...)
	}
	h.sort()
	return h, nil
}

func loadStream(path string, s Stream) ([]Record, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the %s record: %w", s, err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	var out []Record
	var bad error
	for n := 1; sc.Scan(); n++ {
		if bad != nil {
			return nil, bad // a malformed line that is not the last one
		}
		var r Record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			bad = fmt.Errorf("%s:%d: not a record: %w", path, n, err)
			continue
		}
		if r.Stream != s {
			return nil, fmt.Errorf("%s:%d: a record of stream %q in the file of %q", path, n, r.Stream, s)
		}
		out = append(out, r)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read the %s record: %w", s, err)
	}
	return out, nil
}

// sort orders by time; of records of one instant the one with the lower count came first.
func (h *History) sort() {
	sort.SliceStable(h.Records, func(i, j int) bool {
		a, b := h.Records[i], h.Records[j]
		if a.T != b.T {
			return a.T < b.T
		}
		return a.Seq < b.Seq
	})
}

// Window returns the records with from <= T <= to (a zero bound is open).
func (h History) Window(from, to int64) History {
	out := History{MACs: h.MACs}
	for _, r := range h.Records {
		if (from == 0 || r.T >= from) && (to == 0 || r.T <= to) {
			out.Records = append(out.Records, r)
		}
	}
	return out
}

// of returns the records of one stream.
func (h History) of(s Stream) []Record {
	var out []Record
	for _, r := range h.Records {
		if r.Stream == s {
			out = append(out, r)
		}
	}
	return out
}

// who names the owner of a hardware address.
func (h History) who(mac string) string {
	if n := h.MACs[mac]; n != "" {
		return n
	}
	return mac
}

// Gap is the longest time in a window in which a client got no answer.
type Gap struct {
	// Start and End are harness times (ns). An edge of the window stands in where no answer was.
	Start, End int64
	// Answers is how many answers the window holds.
	Answers int
	// Open says the gap had not ended when the window did.
	Open bool
}

// Length is the duration of the gap. It includes one probe interval even when nothing failed.
func (g Gap) Length() time.Duration { return time.Duration(g.End - g.Start) }

// ErrNotObserved says that an observer saw nothing, so no verdict may be drawn.
var ErrNotObserved = errors.New("not observed")

// Outage measures the longest gap between successive echo answers of one address in [from, to],
// in harness time. It wraps ErrNotObserved when the prober was not running there: silence of the
// observer is not an outage.
func (h History) Outage(vip string, from, to int64) (Gap, error) {
	g := Gap{Start: from, End: from}
	last, tallies := from, 0
	for _, r := range h.Records {
		if r.Stream != StreamEcho || r.VIP != vip || r.T < from || r.T > to {
			continue
		}
		if r.Kind == KindTally {
			tallies++
			continue
		}
		g.Answers++
		if r.T-last > g.End-g.Start {
			g.Start, g.End = last, r.T
		}
		last = r.T
	}
	if to-last > g.End-g.Start {
		g.Start, g.End, g.Open = last, to, true
	}
	if tallies == 0 && g.Answers == 0 {
		return Gap{}, fmt.Errorf("the outage of %s: the echo prober recorded nothing in that window: %w", vip, ErrNotObserved)
	}
	return g, nil
}
