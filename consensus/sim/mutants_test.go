package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var only = flag.String("mutant", "", "only the mutants whose name holds this text")

var mutants = flag.Bool("mutants", os.Getenv("PICKET_SIM_MUTANTS") != "", "run TestMutants: it builds the product once per mutant")

// change is one textual replacement in a source file below consensus/; the text must be there once.
type change struct{ file, old, new string }

// mutant is the product with one safety rule taken out.
type mutant struct {
	name    string
	changes []change
	seeds   int // how many seeds may be needed; the stories always run
}

// The rules that were taken out. Where two rooms hold the same rule (the planner does not ask, and the
// state machine refuses), both are broken: what is tested is that the simulator sees it.
var mutantList = []mutant{
	{"a grant does not look for an owner", []change{
		{"state/apply_group.go", "	if g.Epoch != 0 {\n		return refuse(reason.RefusedOwned", "	if false {\n		return refuse(reason.RefusedOwned"},
		{"plan/place.go", "if g.Epoch != 0 || g.Stopped ||", "if (g.Epoch != 0 && g.Phase != state.PhaseStarted) || g.Stopped ||"}}, 16},
	{"a command that was sent proves death", []change{
		{"state/apply_fence.go", "case r.Op != fencing.OpOff || r.Outcome != fencing.OutcomeOff || r.OffReadings < 2:", "case r.Op != fencing.OpOff || (r.Sent == 0 && !r.AlreadyOff):"},
		{"core/facts.go", "if a.Report.Outcome == fencing.OutcomeOff {", "if true {"}}, 64},
	{"a condemned boot may go on", []change{
		{"state/apply_node.go", "if slices.Contains(old.Condemned, cmd.Boot) {", "if false {"},
		{"core/core.go", "if c.st.IsCondemned(c.opt.Self, c.opt.Boot) {", "if false {"}}, 48},
	{"a start needs no lease", []change{
		{"lease/lease.go", "return o.granted.k != 0 && o.granted.at >= since && applied >= o.index && now < o.granted.at+o.cfg.Lease-o.cfg.Budget", "return true"}}, 8},
	{"a start takes a lease from before the grant", []change{
		{"lease/lease.go", "o.granted.k != 0 && o.granted.at >= since &&", "o.granted.k != 0 &&"}}, 32},
	{"a lost lease stops nothing", []change{
		{"core/owner.go", "if c.now >= by {", "if false && c.now >= by {"}}, 16},
	{"the leader answers an executor without asking raft", []change{
		{"core/leader.go", "c.do(Verify{n})", "c.verified(Verified{Nonce: n, OK: true})"}}, 32},
	{"an attempt is begun without an entry", []change{
		{"core/executor.go", "for _, a := range f.Attempts {\n			k := attemptKey{f.ID, a.N}", "for _, a := range append([]state.Attempt{{N: f.Begun + 1, Executor: c.opt.Self, Device: \"ipmi-1\", Op: fencing.OpOff, Deadline: time.Minute}}, f.Attempts...) {\n			k := attemptKey{f.ID, a.N}"},
		{"core/leader.go", "	return false\n}\n\nfunc (c *Core) verified", "	return true\n}\n\nfunc (c *Core) verified"}}, 32},
	{"nobody else must agree that a node is lost", []change{
		{"plan/view.go", "case !fact.Agreed:", "case false:"}}, 64},
	{"what was released may start again", []change{
		{"core/owner.go", "		l.final = true\n		c.record()\n		c.say(\"group/\"+string(l.name), state.Released{", "		l.stopping = false\n		c.record()\n		c.say(\"group/\"+string(l.name), state.Released{"}}, 32},
	{"a new boot takes over what its old boot owned", []change{
		{"state/apply_node.go", "if o.Boot == cmd.Boot {", "if true {"}}, 32},
	{"a revoke is taken for a release", []change{
		{"state/apply_group.go", "g.Phase, g.RevokeAt, g.RevokeFor, g.Why, g.Since = PhaseRevoked, c.index, cmd.For, clipReason(cmd.Why), c.at", "c.free(g, cmd.Why)"}}, 16},
	{"a shot may go although its fence is closed", []change{
		{"core/leader.go", "(t.Op != fencing.OpOff || f.Open())", "(t.Op != fencing.OpOff || true)"}}, 64},
	{"a power attempt that ended cannot strike any more", []change{
		{"state/state.go", "return a.Settled == 0 && a.Report.Sent > 0 && a.Report.Outcome != fencing.OutcomeOff", "return false"}}, 1},
	{"a node that talks is off if its BMC says so", []change{
		{"plan/fence.go", "return x.fact.Age >= 2*timing(s).Interval && !x.fact.Others", "return true"}}, 1},
	{"a witness may own", []change{
		{"state/apply_group.go", "case n.Role != Member:\n		return deny(\"a witness owns nothing\")\n	case !slices.Contains(gc.Nodes, cmd.To.Node):", "case false:"},
		{"plan/place.go", "order := slices.Clone(p.conf.Nodes)", "order := append([]ids.Node{\"node3\"}, p.conf.Nodes...)"},
		{"plan/place.go", "case x.node.Role != state.Member:", "case false:"}}, 16},
	{"a take-over that was cut short releases what it had got to", []change{
		{"core/owner.go", "	if l.mayRun {\n		l.runner.MarkUnknown(c.now)", "	if l.mayRun && l.runner.Phase() == resources.PhaseStopped {\n		l.runner.MarkUnknown(c.now)"}}, 16},
	{"a leader waits to hear its own new boot", []change{
		{"core/facts.go", "if fe.Target.Node == c.opt.Self && c.inc.Gen != 0 {", "if false {"}}, 1},
	{"a daemon that is just back gets no grace", []change{
		{"core/core.go", "	case r != nil:\n		r.over = true\n", "	case r != nil:\n		delete(c.refused, e.Peer)\n"}}, 64},
	{"a release is said before the stop is verified", []change{
		{"core/owner.go", "	case resources.PhaseStopped, resources.PhaseStartFailed:\n		l.final = true", "	case resources.PhaseStopped, resources.PhaseStartFailed, resources.PhaseStopping:\n		l.final = true"}}, 8},
	{"a node is fenced that owned nothing", []change{
		{"state/apply_fence.go", "case cmd.Operator == \"\" && len(c.s.Owned(cmd.Target.Node, cmd.Target.Boot)) == 0:", "case false:"},
		{"plan/fence.go", "	for _, inc := range s.OwnedBoots(x.node.Name) {", "	for _, inc := range []ids.Incarnation{x.node.Up} {\n		if inc.Gen == 0 {\n			continue\n		}"}}, 32},
}

// TestMutants takes one safety rule after the other out of the product and demands that the seeds or
// the stories notice. It takes some minutes: go test ./consensus/sim -run TestMutants -mutants.
func TestMutants(t *testing.T) {
	if !*mutants {
		t.Skip("needs -mutants or PICKET_SIM_MUTANTS=1: it builds the product once per mutant, some minutes in all")
	}
	caught, tried := 0, 0
	for _, m := range mutantList {
		if !strings.Contains(m.name, *only) {
			continue
		}
		tried++
		how, err := m.run(t.TempDir())
		switch {
		case err != nil:
			t.Errorf("mutant %q: %v", m.name, err)
		case how == "":
			t.Errorf("mutant %q was not caught", m.name)
		default:
			caught++
			fmt.Printf("mutant caught: %s: %s\n", m.name, how)
		}
	}
	fmt.Printf("sim: mutants: caught %d of %d\n", caught, tried)
}

// run builds and runs the mutant. It returns by what it was caught, or nothing.
func (m mutant) run(dir string) (string, error) {
	replace := map[string]string{}
	for i, c := range m.changes {
		path, err := filepath.Abs(filepath.Join("..", c.file))
		if err != nil {
			return "", err
		}
		from := path
		if replace[path] != "" {
			from = replace[path]
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(b), c.old); n != 1 {
			return "", fmt.Errorf("%s holds %q %d times, not once: the mutant must follow the source", c.file, c.old, n)
		}
		to := filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(to, []byte(strings.Replace(string(b), c.old, c.new, 1)), 0o600); err != nil {
			return "", err
		}
		replace[path] = to
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "test", "-vet=off", "-overlay", overlay, ".", "-run", "TestSeeds|TestStories", "-seeds", fmt.Sprint(m.seeds), "-stop", "1")
	cmd.Env = append(os.Environ(), "PICKET_SIM_SEEDS=", "PICKET_SIM_MUTANTS=")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return "", nil
	}
	return caughtBy(string(out))
}

// caughtBy finds the first thing that was noticed. A mutant that does not build is not caught.
func caughtBy(out string) (string, error) {
	if strings.Contains(out, "[build failed]") || strings.Contains(out, "[setup failed]") {
		return "", fmt.Errorf("it does not build:\n%s", out)
	}
	for line := range strings.Lines(out) {
		if _, v, ok := strings.Cut(line, "VIOLATION "); ok {
			return strings.TrimSpace(v), nil
		}
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "--- FAIL: TestStories/") {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fmt.Errorf("it failed in another way:\n%.2000s", out)
}
