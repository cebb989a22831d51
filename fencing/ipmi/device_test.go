package ipmi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/integration/bmcsim"
)

const (
	testUser = "admin"
	testPass = "s3cret-of-the-bmc"
	testGUID = "8f3a5c1e-0d2b-4e6f-9a7c-1b2d3e4f5a6b"
)

type machine struct {
	on    atomic.Bool
	delay atomic.Int64 // nanoseconds PowerOff takes
}

func (m *machine) On() bool { return m.on.Load() }
func (m *machine) PowerOff() error {
	time.Sleep(time.Duration(m.delay.Load())) // the time a machine takes to die; not a synchronisation
	m.on.Store(false)
	return nil
}
func (m *machine) PowerOn() error { m.on.Store(true); return nil }

// rig is one BMC on loopback and one device that talks to it.
type rig struct {
	t    *testing.T
	b    *bmcsim.BMC
	m    *machine
	d    *Device
	opts state.IPMIOpts
	uuid string
	logs *strings.Builder
}

func passFile(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "bmc.pass")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func newRig(t *testing.T, change ...func(*state.IPMIOpts, *bmcsim.Options)) *rig {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) }) // runs last
	r := &rig{t: t, m: &machine{}, uuid: testGUID, logs: &strings.Builder{}}
	r.m.on.Store(true)
	opt := bmcsim.Options{Addr: "127.0.0.1:0", User: testUser, Password: testPass, GUID: testGUID, Chassis: r.m}
	r.opts = state.IPMIOpts{User: testUser, PasswordFile: passFile(t, testPass+"\n"), Privilege: Operator, Suite: 17, Interval: 300 * time.Millisecond, Retries: 4}
	for _, f := range change {
		f(&r.opts, &opt)
	}
	b, err := bmcsim.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	r.b = b
	t.Cleanup(func() { b.Close() })
	a := b.Addr().(*net.UDPAddr)
	r.opts.Host, r.opts.Port = a.IP.String(), uint16(a.Port)
	r.d = r.device()
	return r
}

func (r *rig) device() *Device {
	h := slog.NewTextHandler(&lockedWriter{b: r.logs}, &slog.HandlerOptions{Level: slog.LevelDebug})
	d := New("node2", r.opts, func() string { return r.uuid }, slog.New(h))
	d.PollMin, d.PollMax = 20*time.Millisecond, 60*time.Millisecond
	r.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := d.Close(ctx); err != nil {
			r.t.Error(err)
		}
	})
	return d
}

type lockedWriter struct {
	mu sync.Mutex
	b  *strings.Builder
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func open(context.Context) error { return nil }

// power runs one operation, checks that the report is sound, in time and without the secret.
func (r *rig) power(op fencing.Op, within time.Duration, gate fencing.Gate) fencing.Report {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), within)
	defer cancel()
	start := time.Now()
	rep := r.d.Power(ctx, op, gate)
	if took := time.Since(start); took > within+100*time.Millisecond {
		r.t.Errorf("returned after %v: the deadline was %v", took, within)
	}
	if err := rep.Check(); err != nil {
		r.t.Errorf("report %+v: %v", rep, err)
	}
	if strings.Contains(fmt.Sprintf("%+v", rep), testPass) {
		r.t.Errorf("report holds the password: %+v", rep)
	}
	return rep
}

// commands is the BMC's own record of power commands.
func (r *rig) commands() string {
	var s []string
	for _, e := range r.b.PowerCommands() {
		s = append(s, e.Op)
	}
	return strings.Join(s, " ")
}

func (r *rig) expect(rep fencing.Report, o fencing.Outcome, id fencing.Identity, sent int, detail, record string) {
	r.t.Helper()
	if rep.Outcome != o || rep.Identity != id || rep.Sent != sent || !strings.Contains(rep.Detail, detail) {
		r.t.Errorf("got %+v\nwant outcome %s, identity %s, sent %d, detail with %q", rep, o, id, sent, detail)
	}
	if got := r.commands(); got != record {
		r.t.Errorf("the BMC recorded %q, want %q", got, record)
	}
}

func TestOff(t *testing.T) {
	for _, suite := range []int{3, 17} {
		for _, order := range []bmcsim.GUIDOrder{bmcsim.OrderSMBIOS, bmcsim.OrderRFC4122, bmcsim.OrderIPMI} {
			t.Run(fmt.Sprintf("suite %d order %d", suite, order), func(t *testing.T) {
				r := newRig(t, func(o *state.IPMIOpts, b *bmcsim.Options) { o.Suite, b.Order = suite, order })
				rep := r.power(fencing.OpOff, 5*time.Second, open)
				r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "reads off", "down")
				if rep.OffReadings < 2 || rep.AlreadyOff || rep.Login <= 0 || rep.Power <= 0 || !fencing.MatchUUID(rep.GUID, testGUID) {
					t.Errorf("%+v", rep)
				}
				if r.m.On() {
					t.Error("the machine runs")
				}
			})
		}
	}
}

func TestOffSlowMachine(t *testing.T) {
	r := newRig(t)
	const delay = 400 * time.Millisecond
	r.m.delay.Store(int64(delay))
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
	if rep.Power < delay {
		t.Errorf("off after %v: the machine took %v", rep.Power, delay)
	}
}

func TestAlreadyOff(t *testing.T) {
	r := newRig(t)
	r.m.on.Store(false)
	rep := r.power(fencing.OpOff, 5*time.Second, func(context.Context) error { t.Error("the gate was asked"); return nil })
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 0, "already", "")
	if !rep.AlreadyOff || rep.OffReadings != 2 {
		t.Errorf("%+v", rep)
	}
}

func TestOn(t *testing.T) {
	r := newRig(t)
	r.m.on.Store(false)
	rep := r.power(fencing.OpOn, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOn, fencing.IdentityMatched, 1, "reads on", "up")
	rep = r.power(fencing.OpOn, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOn, fencing.IdentityMatched, 0, "already", "up")
}

func TestVerify(t *testing.T) {
	r := newRig(t)
	for _, want := range []bool{true, false} {
		r.m.on.Store(want)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		st, err := r.d.Verify(ctx)
		cancel()
		if err != nil || st.On != want || st.Identity != fencing.IdentityMatched || st.GUID == "" || st.Took <= 0 {
			t.Errorf("%+v, %v", st, err)
		}
	}
	if c := r.commands(); c != "" {
		t.Errorf("verify sent %q", c)
	}
}

func TestGateRefuses(t *testing.T) {
	r := newRig(t)
	rep := r.power(fencing.OpOff, 5*time.Second, func(context.Context) error { return errors.New("not the leader any more") })
	r.expect(rep, fencing.OutcomeRefused, fencing.IdentityMatched, 0, "not the leader any more", "")
	if rep := r.d.Power(t.Context(), fencing.OpOff, nil); rep.Outcome != fencing.OutcomeRefused {
		t.Errorf("no gate: %+v", rep)
	}
	if rep := r.d.Power(t.Context(), "cycle", open); rep.Outcome != fencing.OutcomeRefused {
		t.Errorf("cycle: %+v", rep)
	}
	if c := r.commands(); c != "" || !r.m.On() {
		t.Errorf("commands %q", c)
	}
}

// The gate is asked before each command, with exactly the earlier commands on record; and a gate
// that changes its mind stops the rest.
func TestGateBeforeEachCommand(t *testing.T) {
	r := newRig(t)
	r.b.SetFaults(bmcsim.Faults{LieOK: true})
	r.d.ResendAfter = 50 * time.Millisecond
	asked := 0
	rep := r.power(fencing.OpOff, 5*time.Second, func(context.Context) error {
		if n := len(r.b.PowerCommands()); n != asked {
			t.Errorf("gate %d asked with %d commands on record", asked, n)
		}
		if asked++; asked == 3 {
			return errors.New("deposed")
		}
		return nil
	})
	r.expect(rep, fencing.OutcomeRefused, fencing.IdentityMatched, 2, "no further power command", "down down")
}

// A gate that hangs must not hold the caller, and nothing is sent when it comes round.
func TestGateHangs(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	rep := r.power(fencing.OpOff, 300*time.Millisecond, func(context.Context) error { <-release; return nil })
	r.expect(rep, fencing.OutcomeExpired, fencing.IdentityMatched, 0, "still stands", "")
	rep = r.power(fencing.OpOff, 200*time.Millisecond, open)
	r.expect(rep, fencing.OutcomeExpired, fencing.IdentityUnproven, 0, "earlier call", "")
	close(release)
	if err := r.d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := r.commands(); c != "" || !r.m.On() {
		t.Errorf("a late shot: %q", c)
	}
}

func TestLieOK(t *testing.T) {
	r := newRig(t)
	r.b.SetFaults(bmcsim.Faults{LieOK: true})
	r.d.ResendAfter = 100 * time.Millisecond
	rep := r.power(fencing.OpOff, time.Second, open)
	r.expect(rep, fencing.OutcomeFailed, fencing.IdentityMatched, 3, "the BMC said OK to power off but still reads on", "down down down")
}

// A BMC that lies twice over (says OK, does nothing, reads off) is believed here: nothing that is
// asked of the BMC alone can tell. The heartbeats of the machine that still runs block the confirm.
func TestLieOffIsBelieved(t *testing.T) {
	r := newRig(t)
	r.b.SetFaults(bmcsim.Faults{LieOff: true})
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "reads off", "down")
	if !r.m.On() {
		t.Error("the machine went off")
	}
}

func TestDead(t *testing.T) {
	r := newRig(t)
	r.b.SetFaults(bmcsim.Faults{Dead: true})
	rep := r.power(fencing.OpOff, 500*time.Millisecond, open)
	r.expect(rep, fencing.OutcomeExpired, fencing.IdentityUnproven, 0, "does not answer", "")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	start := time.Now()
	if _, err := r.d.Verify(ctx); KindOf(err) != KindUnreachable && KindOf(err) != KindBusy {
		t.Errorf("verify: %v", err)
	}
	if took := time.Since(start); took > 200*time.Millisecond {
		t.Errorf("cancel took %v", took)
	}
	r.b.SetFaults(bmcsim.Faults{})
	rep = r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
}

// Without a deadline of the caller's a silent BMC still ends the call.
func TestDeadWithoutDeadline(t *testing.T) {
	r := newRig(t)
	r.b.SetFaults(bmcsim.Faults{Dead: true})
	r.d.Limit = 300 * time.Millisecond
	if rep := r.d.Power(context.Background(), fencing.OpOff, open); rep.Outcome != fencing.OutcomeExpired || rep.Took > 400*time.Millisecond {
		t.Errorf("%+v", rep)
	}
}

// The BMC dies at the moment of the command: the report must not say off.
func TestDiesAfterGate(t *testing.T) {
	r := newRig(t)
	rep := r.power(fencing.OpOff, 700*time.Millisecond, func(context.Context) error {
		r.b.SetFaults(bmcsim.Faults{Dead: true})
		return nil
	})
	r.expect(rep, fencing.OutcomeExpired, fencing.IdentityMatched, 1, "answered, but the time was up", "")
}

func TestSlow(t *testing.T) {
	for _, slow := range []time.Duration{50 * time.Millisecond, 450 * time.Millisecond} { // below and above Interval
		t.Run(slow.String(), func(t *testing.T) {
			r := newRig(t)
			r.b.SetFaults(bmcsim.Faults{Slow: slow})
			rep := r.power(fencing.OpOff, 30*time.Second, open)
			if rep.Outcome != fencing.OutcomeOff || rep.Identity != fencing.IdentityMatched || r.m.On() {
				t.Errorf("%+v", rep)
			}
			if got := len(r.b.PowerCommands()); got != rep.Sent {
				t.Errorf("%d commands on record, %d reported", got, rep.Sent)
			}
		})
	}
}

func TestDroppedResponses(t *testing.T) {
	for n := 1; n <= 4; n++ {
		t.Run(fmt.Sprintf("login %d", n), func(t *testing.T) {
			r := newRig(t)
			r.b.SetFaults(bmcsim.Faults{DropResponses: n})
			rep := r.power(fencing.OpOff, 20*time.Second, open)
			r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
		})
		t.Run(fmt.Sprintf("command %d", n), func(t *testing.T) {
			r := newRig(t)
			once := sync.Once{}
			rep := r.power(fencing.OpOff, 20*time.Second, func(context.Context) error {
				once.Do(func() { r.b.SetFaults(bmcsim.Faults{DropResponses: n}) })
				return nil
			})
			r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
		})
	}
}

func TestWrongPassword(t *testing.T) {
	r := newRig(t)
	r.b.SetFaults(bmcsim.Faults{RejectLogin: true})
	rep := r.power(fencing.OpOff, 10*time.Second, open)
	r.expect(rep, fencing.OutcomeFailed, fencing.IdentityUnproven, 0, "check -U and the password file", "")
	if rep.Took > time.Second {
		t.Errorf("took %v", rep.Took)
	}
	r.b.SetFaults(bmcsim.Faults{})
	r.opts.User = "nobody"
	r.d = r.device()
	rep = r.power(fencing.OpOff, 10*time.Second, open)
	r.expect(rep, fencing.OutcomeFailed, fencing.IdentityUnproven, 0, "user nobody", "")
}

func TestIdentity(t *testing.T) {
	for _, c := range []struct {
		name     string
		faults   bmcsim.Faults
		declared string
		trust    bool
		outcome  fencing.Outcome
		id       fencing.Identity
		sent     int
		detail   string
		record   string
	}{
		{"wrong", bmcsim.Faults{WrongGUID: true}, testGUID, false, fencing.OutcomeRefused, fencing.IdentityMismatch, 0, "nothing was sent", ""},
		{"other node", bmcsim.Faults{}, "11111111-0d2b-4e6f-9a7c-1b2d3e4f5a6b", false, fencing.OutcomeRefused, fencing.IdentityMismatch, 0, "nothing was sent", ""},
		{"wrong but trusted", bmcsim.Faults{WrongGUID: true}, testGUID, true, fencing.OutcomeOff, fencing.IdentityTrusted, 1, "operator's word", "down"},
		{"none", bmcsim.Faults{NoGUID: true}, testGUID, false, fencing.OutcomeOff, fencing.IdentityUnproven, 1, "not proven", "down"},
		{"none but trusted", bmcsim.Faults{NoGUID: true}, testGUID, true, fencing.OutcomeOff, fencing.IdentityTrusted, 1, "", "down"},
		{"undeclared", bmcsim.Faults{}, "", false, fencing.OutcomeOff, fencing.IdentityUnproven, 1, "not proven", "down"},
		{"filler declared", bmcsim.Faults{}, "03000200-0400-0500-0006-000700080009", false, fencing.OutcomeOff, fencing.IdentityUnproven, 1, "not proven", "down"},
		{"upper case", bmcsim.Faults{}, strings.ToUpper(testGUID), true, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(o *state.IPMIOpts, _ *bmcsim.Options) { o.TrustIdentity = c.trust })
			r.b.SetFaults(c.faults)
			r.uuid = c.declared
			rep := r.power(fencing.OpOff, 5*time.Second, open)
			r.expect(rep, c.outcome, c.id, c.sent, c.detail, c.record)
			if c.faults.NoGUID != (rep.GUID == "") {
				t.Errorf("guid %q", rep.GUID)
			}
			if _, err := r.d.Verify(t.Context()); (KindOf(err) == KindIdentity) != (c.id == fencing.IdentityMismatch) {
				t.Errorf("verify: %v", err)
			}
		})
	}
}

func TestConcurrentCalls(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if rep := r.d.Power(ctx, fencing.OpOff, open); rep.Outcome != fencing.OutcomeOff {
				t.Errorf("%+v", rep)
			}
		})
	}
	wg.Wait()
	if c := r.commands(); c != "down" {
		t.Errorf("record %q", c)
	}
	if err := r.d.Close(t.Context()); err != nil || r.b.OpenSessions() != 0 {
		t.Errorf("%v, %d sessions left open", err, r.b.OpenSessions())
	}
}

// Consoles that crash without logging out must not lock the fence out.
func TestCrashedConsoles(t *testing.T) {
	r := newRig(t)
	for range 6 {
		s, err := r.d.login(t.Context(), func(*wire) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		s.w.shutdown() // the console is gone; the BMC does not know
		s.close()      // ends the library's keep-alive
	}
	if n := r.b.OpenSessions(); n != 4 {
		t.Errorf("%d sessions on the BMC", n)
	}
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
}

func TestNothingListens(t *testing.T) {
	r := newRig(t)
	if err := r.b.Close(); err != nil {
		t.Fatal(err)
	}
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeFailed, fencing.IdentityUnproven, 0, "refuses connections", "")
	r.opts.Host = "no-such-host.invalid"
	r.d = r.device()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := r.d.Verify(ctx); KindOf(err) != KindUnreachable {
		t.Errorf("no such host: %v", err)
	}
}

func TestIPv6(t *testing.T) {
	pc, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		t.Skip("needs IPv6 on loopback: ", err)
	}
	r := newRig(t, func(_ *state.IPMIOpts, b *bmcsim.Options) { b.Conn = pc })
	rep := r.power(fencing.OpOff, 5*time.Second, open)
	r.expect(rep, fencing.OutcomeOff, fencing.IdentityMatched, 1, "", "down")
	if want := "ipmi [::1]:"; !strings.HasPrefix(r.d.Describe(), want) || !strings.HasSuffix(r.d.Describe(), " as admin") {
		t.Errorf("describe %q", r.d.Describe())
	}
}

func TestPasswordSources(t *testing.T) {
	r := newRig(t)
	verify := func(o func(*state.IPMIOpts)) error {
		opts := r.opts
		o(&opts)
		d := New("node2", opts, func() string { return testGUID }, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := d.Verify(ctx)
		if err := d.Close(ctx); err != nil {
			t.Error(err)
		}
		return err
	}
	file := func(text string, mode os.FileMode) func(*state.IPMIOpts) {
		f := passFile(t, text)
		if err := os.Chmod(f, mode); err != nil {
			t.Fatal(err)
		}
		return func(o *state.IPMIOpts) { o.PasswordFile = f }
	}
	for _, c := range []struct {
		name string
		o    func(*state.IPMIOpts)
		want string
	}{
		{"plain", file(testPass, 0o600), ""},
		{"newline", file(testPass+"\r\n", 0o400), ""},
		{"group readable", file(testPass, 0o640), "chmod 600"},
		{"world readable", file(testPass, 0o604), "chmod 600"},
		{"too long", file(testPass+"-and-more", 0o600), "IPMI 2.0 allows 20"},
		{"empty", file("\n", 0o600), "empty"},
		{"two lines", file(testPass+"\nx\n", 0o600), "more than one line"},
		{"zero byte", file("a\x00b", 0o600), "zero byte"},
		{"directory", func(o *state.IPMIOpts) { o.PasswordFile = t.TempDir() }, "not a regular file"},
		{"missing", func(o *state.IPMIOpts) { o.PasswordFile = "/nonexistent/p" }, "cannot be opened"},
		{"nothing", func(o *state.IPMIOpts) { o.PasswordFile = "" }, "add -f FILE"},
		{"environment unset", func(o *state.IPMIOpts) { o.PasswordFile, o.PasswordEnv = "", true }, "neither IPMITOOL_PASSWORD"},
	} {
		err := verify(c.o)
		if c.want == "" && err != nil || c.want != "" && (KindOf(err) != KindPassword || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), testPass) {
			t.Errorf("%s: leaks: %v", c.name, err)
		}
	}
	t.Setenv("IPMI_PASSWORD", testPass)
	if err := verify(func(o *state.IPMIOpts) { o.PasswordFile, o.PasswordEnv = "", true }); err != nil {
		t.Errorf("environment: %v", err)
	}
}
