package app

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/picket-ha/picket/cmd/picket/control"
	"github.com/picket-ha/picket/consensus/raftnode/pki"
)

// noSecrets looks for what must never be shown or stored: the BMCs' password, and the secret of a join
// token, in every file, log and answer. Only the password file and the CLI's one answer have them.
func (y *yard) noSecrets() {
	t := y.t
	t.Helper()
	b := y.follower()
	a := b.must(control.Operation{Kind: control.OpTokenCreate})
	y.agree()
	canaries := map[string][]byte{"the BMC password": []byte(bmcSecret)}
	var tok pki.Token
	for i, text := range append(y.tokens, a.Token) { // used ones, and one that was not used
		var err error
		if tok, err = pki.ParseToken(text); err != nil {
			t.Fatal(err)
		}
		canaries[fmt.Sprintf("join token %d", i)] = []byte(strings.Split(text, ".")[1])
		canaries[fmt.Sprintf("the secret of join token %d", i)] = tok.Secret
		canaries[fmt.Sprintf("the secret of join token %d in base64", i)] = []byte(base64.StdEncoding.EncodeToString(tok.Secret))
	}
	look := func(where string, data []byte) {
		for what, c := range canaries {
			if bytes.Contains(data, c) {
				t.Errorf("%s holds %s", where, what)
			}
		}
	}
	canaries["a token's hash"] = []byte(tok.Hash) // the log has it, by design; nothing else
	for _, b := range y.boxes {
		look("the log of "+b.name, []byte(b.log.String()))
		for _, f := range []func() (any, error){
			func() (any, error) { return b.cli.Status(t.Context()) },
			func() (any, error) { return b.cli.FenceHistory(t.Context()) },
			func() (any, error) { return b.cli.Config(t.Context()) },
			func() (any, error) { return b.cli.Why(t.Context(), "web") },
			func() (any, error) { return b.cli.Why(t.Context(), b.name) },
			func() (any, error) {
				var list []control.Event
				err := b.running().Events(t.Context(), 0, false, func(e control.Event) error { list = append(list, e); return nil })
				return list, err
			},
		} {
			var v any
			eventually(t, patience, b.name+" answers", func() bool { // a busy machine changes leaders now and then
				var err error
				v, err = f()
				return err == nil
			})
			text, err := json.Marshal(v)
			if err != nil {
				t.Error(err)
			}
			look("an answer of "+b.name, text)
		}
	}
	delete(canaries, "a token's hash")
	raft := false
	for _, b := range y.boxes {
		for _, dir := range []string{b.root(), b.run} {
			err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() || p == b.secret {
					return err
				}
				data, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				raft = raft || bytes.Contains(data, []byte(tok.Hash))
				look(p, data)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	if !raft {
		t.Error("the raft store does not hold the token's hash: this test looks at the wrong files")
	}
}
