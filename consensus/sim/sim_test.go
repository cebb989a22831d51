package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	seeds = flag.Int("seeds", 200, "how many seeds TestSeeds runs; PICKET_SIM_SEEDS overrides the default")
	from  = flag.Uint64("from", 1, "the first seed of TestSeeds")
	stop  = flag.Int("stop", 5, "TestSeeds ends after this many bad seeds")
	tell  = flag.Bool("tell", false, "print the whole story of every seed")
)

// TestSeeds runs a range of seeds, on as many processors as there are, and prints what it saw. Each
// world is a single goroutine: the seeds are independent of each other.
func TestSeeds(t *testing.T) {
	n := *seeds
	if v, err := strconv.Atoi(os.Getenv("PICKET_SIM_SEEDS")); err == nil && v > 0 {
		n = v
	}
	begun := time.Now()
	var mu sync.Mutex
	var sum Stats
	var wg sync.WaitGroup
	next := *from
	bad := 0
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= *from+uint64(n) && bad < *stop
	}
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				r := Run(seed, SeedOptions(seed))
				mu.Lock()
				sum = add(sum, r.Stats)
				if len(r.Violations) > 0 {
					bad++
				}
				if len(r.Violations) > 0 || *tell {
					report(t, seed, r)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	fmt.Printf("sim: seeds %d to %d in %v: %d failed; %+v\n", *from, next-1, time.Since(begun).Round(time.Second/10), bad, sum)
	if n >= 100 && bad == 0 && (sum.Fences == 0 || sum.PowerOffs == 0 || sum.Snapshots == 0 || sum.Unknown == 0 || sum.Elections < n) {
		t.Errorf("the runs saw too little to mean anything: %+v", sum)
	}
}

func report(t *testing.T, seed uint64, r Result) {
	story := r.Story
	if len(story) > 400 && !*tell {
		story = story[len(story)-400:]
	}
	text := fmt.Sprintf("seed %d (%+v): go test ./consensus/sim -run TestSeeds -from %d -seeds 1 -tell\n%s\n%s", seed, SeedOptions(seed), seed,
		strings.Join(story, "\n"), strings.Join(r.Violations, "\n"))
	if len(r.Violations) > 0 {
		t.Error(text)
		return
	}
	fmt.Println(text)
}

func add(a, b Stats) Stats {
	return Stats{a.Events + b.Events, a.Entries + b.Entries, a.Grants + b.Grants, a.Fences + b.Fences, a.PowerOffs + b.PowerOffs,
		a.Starts + b.Starts, a.Elections + b.Elections, a.Snapshots + b.Snapshots, a.Unknown + b.Unknown, a.Refused + b.Refused}
}

// TestSameSeedSameTrace runs seeds of every class twice: everything that happened must be the same.
func TestSameSeedSameTrace(t *testing.T) {
	for seed := uint64(1); seed <= uint64(classes); seed++ {
		a, b := Run(seed, SeedOptions(seed)), Run(seed, SeedOptions(seed))
		if a.Hash != b.Hash {
			for i := range min(len(a.Story), len(b.Story)) {
				if a.Story[i] != b.Story[i] {
					t.Fatalf("seed %d: two traces: %q and %q", seed, a.Story[i], b.Story[i])
				}
			}
			t.Errorf("seed %d: two traces: %x and %x", seed, a.Hash, b.Hash)
		}
	}
}
