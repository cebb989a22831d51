package app

import (
	"fmt"
	"strings"
	"testing"

	"github.com/picket-ha/picket/consensus/core"
	"github.com/picket-ha/picket/consensus/state"
)

// recorder makes a machine whose hooks are counted.
func recorder() (m *machine, applied *[]core.Applied, restored, changed *int) {
	applied, restored, changed = new([]core.Applied), new(int), new(int)
	m = &machine{applied: func(a core.Applied) { *applied = append(*applied, a) }, restored: func(state.State) { *restored++ }, changed: func() { *changed++ }}
	return m, applied, restored, changed
}

func entry(t *testing.T, c state.Command) []byte {
	t.Helper()
	b, err := state.Encode(state.Entry{At: 1, Cmd: c})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func admission() state.NodeAdmit {
	return state.NodeAdmit{Name: "node1", Role: state.Member, Links: []state.LinkAddr{{Interface: "eth0", Addr: "10.0.0.1"}}}
}

func TestMachine(t *testing.T) {
	m, applied, _, changed := recorder()
	res := m.Apply(3, 1, entry(t, admission()))
	if r, ok := res.(state.Result); !ok || !r.OK() || *changed != 1 {
		t.Fatalf("result %+v, changed %d", res, *changed)
	}
	res = m.Apply(5, 1, entry(t, state.NodeMode{Node: "nobody", Standby: true}))
	if r := res.(state.Result); r.OK() || r.Refused.Code != "REFUSED_UNKNOWN" {
		t.Errorf("result %+v", r)
	}
	if len(*applied) != 2 || (*applied)[0].Index != 3 || (*applied)[1].Index != 5 || (*applied)[1].State.Index != 5 {
		t.Errorf("handed on: %+v", *applied)
	}
	// A reader keeps what it has read.
	before := m.State()
	digest := before.Digest()
	m.Apply(6, 1, entry(t, state.TokenMint{Hash: strings.Repeat("ab", 32), Expires: 9, By: "me"}))
	if before.Digest() != digest || len(m.State().Tokens) != 1 {
		t.Error("a state that was read has changed")
	}

	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	other, _, restored, changed := recorder()
	if err := other.Restore(snap); err != nil {
		t.Fatal(err)
	}
	if a, b := m.State(), other.State(); a.Digest() != b.Digest() || a.Index != b.Index || *restored != 1 || *changed != 1 {
		t.Errorf("restored %d times to index %d, wanted index %d", *restored, b.Index, a.Index)
	}
}

// TestUndecodable: a committed entry that cannot be read stops the process; nothing is guessed at.
func TestUndecodable(t *testing.T) {
	good := entry(t, admission())
	for name, data := range map[string][]byte{
		"nothing": nil, "noise": []byte("\xff\xfe\x00noise"), "cut": good[:len(good)-1], "longer": append(append([]byte(nil), good...), '}'),
		"an unknown kind": append([]byte{good[0], good[1], 250}, good[3:]...), "a newer version": append([]byte{good[0], good[1] + 1}, good[2:]...),
	} {
		t.Run(name, func(t *testing.T) {
			m, applied, _, _ := recorder()
			defer func() {
				v := fmt.Sprint(recover())
				if !strings.Contains(v, "committed entry 7") {
					t.Errorf("panic %q", v)
				}
				if len(*applied) != 0 || m.State().Index != 0 {
					t.Error("it was applied all the same")
				}
			}()
			m.Apply(7, 1, data)
		})
	}
}

func TestBrokenSnapshot(t *testing.T) {
	m, _, restored, changed := recorder()
	m.Apply(3, 1, entry(t, admission()))
	snap, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	was := m.State()
	*changed = 0
	for name, data := range map[string][]byte{"nothing": nil, "noise": []byte("noise"), "cut": snap[:len(snap)/2], "longer": append(append([]byte(nil), snap...), "{}"...)} {
		if err := m.Restore(data); err == nil {
			t.Errorf("%s was taken for a snapshot", name)
		}
	}
	if now := m.State(); now.Digest() != was.Digest() || *restored != 0 || *changed != 0 {
		t.Error("a refused snapshot changed something")
	}
}
