package ip

import (
	"testing"

	"github.com/mdlayher/arp"
)

func probes(l *lab, o *observer) int {
	n := 0
	for _, h := range o.from(l.n1.mac("eth0")) {
		if h.Operation == arp.OperationRequest && h.SenderIP == none && h.TargetIP == vip {
			n++
		}
	}
	return n
}

// TestPrepare sees one probe on the wire for a Prepare and the Start after it, and nothing configured
// by the Prepare alone.
func TestPrepare(t *testing.T) {
	l := newLab(t)
	o := l.client.observe("eth0")
	a := l.n1.address(Options{})
	a.Prepare(t.Context())
	eventually(t, "the probe", func() bool { return probes(l, o) == 1 })
	if got := l.n1.addrs("eth0"); len(got) != 0 {
		t.Fatalf("a preparation configured %q", got)
	}
	start(t, a)
	eventually(t, "the announcement", func() bool { return len(o.from(l.n1.mac("eth0"))) >= 3 })
	if n := probes(l, o); n != 1 {
		t.Errorf("%d probes were sent: the start must take the answer of the preparation", n)
	}
	stop(t, a)
	start(t, a)
	eventually(t, "the probe of a start without a preparation", func() bool { return probes(l, o) == 2 })
}

// TestPrepareStale sees that a start asks again when the preparation is too old.
func TestPrepareStale(t *testing.T) {
	l := newLab(t)
	o := l.client.observe("eth0")
	a := l.n1.address(Options{})
	a.Prepare(t.Context())
	eventually(t, "the probe", func() bool { return probes(l, o) == 1 })
	pause(2 * fresh)
	start(t, a)
	eventually(t, "the second probe", func() bool { return probes(l, o) == 2 })
}

// TestPrepareConflict sees that a start after a conflict asks by itself, and that it names the other.
func TestPrepareConflict(t *testing.T) {
	l := newLab(t)
	l.n2.addr("eth0", "192.168.60.200/24", "")
	a := l.n1.address(Options{})
	a.Prepare(t.Context())
	wantErr(t, a.Start(t.Context(), 1, false), "192.168.60.200 is in use by "+l.n2.mac("eth0").String()+" on eth0")
	if got := l.n1.addrs("eth0"); len(got) != 0 {
		t.Fatalf("left behind: %q", got)
	}
}
