package ids_test

import (
	"strings"
	"testing"

	"github.com/picket-ha/picket/consensus/ids"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"n": true, "node1": true, "a-b": true, strings.Repeat("a", ids.MaxName): true,
		"": false, "1node": false, "-a": false, "a-": false, "Node": false, "a_b": false, "a.b": false, "a/b": false, "a\x00": false, "ä": false,
		strings.Repeat("a", ids.MaxName+1): false, strings.Repeat("a", 9000): false,
	} {
		err := ids.CheckName("node name", name)
		if (err == nil) != ok {
			t.Errorf("%.20q: %v", name, err)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("%.20q: the error is %d bytes long", name, len(err.Error()))
		}
	}
}

func TestCheckBoot(t *testing.T) {
	for boot, ok := range map[ids.Boot]bool{
		"5c0a7e32-7d9c-4b0c-9df4-6d7b2b6d4a11": true, "a": true,
		"": false, "A": false, "a b": false, "a\n": false, ids.Boot(strings.Repeat("a", ids.MaxBoot+1)): false,
	} {
		if err := ids.CheckBoot(boot); (err == nil) != ok {
			t.Errorf("%.20q: %v", boot, err)
		}
	}
}

func TestIncarnation(t *testing.T) {
	a := ids.Incarnation{Node: "n1", Boot: "5c0a7e32-7d9c", Gen: 7}
	b := a
	b.Gen = 9
	if !a.SameBoot(b) || a == b || a.IsZero() || !(ids.Incarnation{}).IsZero() {
		t.Error("two generations of a boot are one boot and two lives")
	}
	for _, o := range []ids.Incarnation{{Node: "n2", Boot: a.Boot, Gen: 7}, {Node: "n1", Boot: "x", Gen: 7}} {
		if a.SameBoot(o) {
			t.Errorf("%s and %s are not one boot", a, o)
		}
	}
	if a.String() != "n1/5c0a7e32/7" || (ids.Incarnation{}).String() != "-" || (ids.Incarnation{Node: "n", Boot: "b"}).String() != "n/b/0" {
		t.Errorf("%s", a)
	}
}
