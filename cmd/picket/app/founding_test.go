package app

import (
	"regexp"
	"testing"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/ids"
)

// TestHurriedOperator: a script makes a token in the very moment the new cluster has a leader. It must
// not come before the founder's own entries: those are allowed in an empty log only, and both tokens
// have to be good.
func TestHurriedOperator(t *testing.T) {
	for range 5 {
		y := newYard(t, 2)
		b := y.boxes[0]
		res, err := Init(within(t, patience), b.initOptions("prod"))
		if err != nil {
			t.Fatal(err)
		}
		b.start()
		b.must(control.Operation{Kind: control.OpTokenCreate})
		s := b.running().fsm.State()
		if x := s.Node(ids.Node(b.name)); x == nil || len(s.Tokens) != 2 {
			t.Fatalf("after the first operation the log names the founder: %t, tokens: %d", x != nil, len(s.Tokens))
		}
		if _, err := Join(within(t, patience), y.boxes[1].joinOptions(b, regexp.MustCompile(`picket1\.\S+`).FindString(res.JoinCommand))); err != nil {
			t.Fatalf("join with the token that init printed: %v", err)
		}
	}
}
