package ipmi

import (
	"context"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/picket-ha/picket/consensus/state"
	"github.com/picket-ha/picket/fencing"
	"github.com/picket-ha/picket/integration/bmcsim"
)

// BenchmarkOff is one whole fence against a BMC and a machine that take no time of their own: login,
// identity, status, command, off read twice. ConfirmGap (25 ms) is in it, on purpose.
func BenchmarkOff(b *testing.B) {
	m := &machine{}
	sim, err := bmcsim.New(bmcsim.Options{Addr: "127.0.0.1:0", User: testUser, Password: testPass, GUID: testGUID, Chassis: m})
	if err != nil {
		b.Fatal(err)
	}
	defer sim.Close()
	file := b.TempDir() + "/pass"
	if err := os.WriteFile(file, []byte(testPass), 0o600); err != nil {
		b.Fatal(err)
	}
	a := sim.Addr().(*net.UDPAddr)
	d := New("node2", state.IPMIOpts{Host: a.IP.String(), Port: uint16(a.Port), User: testUser, PasswordFile: file},
		func() string { return testGUID }, slog.New(slog.DiscardHandler))
	var login, power time.Duration
	for b.Loop() {
		m.on.Store(true)
		rep := d.Power(context.Background(), fencing.OpOff, open)
		if rep.Outcome != fencing.OutcomeOff {
			b.Fatalf("%+v", rep)
		}
		login += rep.Login
		power += rep.Power
	}
	b.ReportMetric(float64(login.Microseconds())/float64(b.N)/1000, "login-ms")
	b.ReportMetric(float64(power.Microseconds())/float64(b.N)/1000, "power-ms")
	_ = d.Close(context.Background())
}
