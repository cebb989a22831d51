package cli

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/picket-ha/picket/cmd/picket/control"
)

// newID names one command of one user, so that a repeat can be told from a second command.
func newID() string {
	var b [12]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// send carries out one operation; its warnings are talk.
func (r *runner) send(cmd *cobra.Command, op control.Operation) (control.Answer, error) {
	ctx, cancel := timed(cmd)
	defer cancel()
	op.ID = newID()
	a, err := r.client().Operate(ctx, op)
	if err != nil {
		return a, err
	}
	for _, w := range a.Warnings {
		r.warn(w)
	}
	return a, nil
}

// warn says a warning once: the daemon finds in a file what was found here before it was sent.
func (r *runner) warn(w string) {
	if r.warned == nil {
		r.warned = map[string]bool{}
	}
	if !r.warned[w] {
		r.warned[w] = true
		r.say("warning: %s", w)
	}
}

// operate carries out one operation and prints its answer.
func (r *runner) operate(cmd *cobra.Command, op control.Operation, asJSON bool) error {
	a, err := r.send(cmd, op)
	if err != nil {
		return err
	}
	if asJSON {
		return r.json(a)
	}
	r.answer(printable(a.Text))
	return nil
}

func (r *runner) json(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	r.answer(string(b))
	return nil
}

func jsonFlag(cmd *cobra.Command, v *bool) {
	cmd.Flags().BoolVar(v, "json", false, "answer in JSON (a stable contract that only grows)")
}
