package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
)

// Version is the format of entries and snapshots. A newer one is refused, never guessed at.
const Version = 1

// MaxEntry is the largest encoded entry, in bytes: room for a whole configuration with its source.
const MaxEntry = 8 << 20

const entryMagic = 'P'

// Encode renders an entry: magic 'P', version, kind, then the command as JSON with its time. The
// bytes are stable: golden files hold them.
func Encode(e Entry) ([]byte, error) {
	if e.Cmd == nil {
		return nil, fmt.Errorf("encode entry: no command")
	}
	body, err := json.Marshal(struct {
		At  int64   `json:"at"`
		Cmd Command `json:"cmd"`
	}{e.At, e.Cmd})
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	if len(body)+3 > MaxEntry {
		return nil, fmt.Errorf("encode entry: %d bytes are more than the %d allowed", len(body)+3, MaxEntry)
	}
	return append([]byte{entryMagic, Version, byte(e.Cmd.kind())}, body...), nil
}

// Decode parses an entry strictly: unknown fields, kinds or versions and trailing bytes are errors. A
// committed entry that does not decode must stop the process (invariant I8).
func Decode(b []byte) (Entry, error) {
	switch {
	case len(b) < 3 || b[0] != entryMagic:
		return Entry{}, fmt.Errorf("decode entry: not a picket entry")
	case len(b) > MaxEntry:
		return Entry{}, fmt.Errorf("decode entry: %d bytes are more than the %d allowed", len(b), MaxEntry)
	case b[1] != Version:
		return Entry{}, fmt.Errorf("decode entry: format %d is not known, this version knows %d: upgrade picket on this node", b[1], Version)
	}
	cmd := newCommand(Kind(b[2]))
	if cmd == nil {
		return Entry{}, fmt.Errorf("decode entry: kind %d is not known to this version: upgrade picket on this node", b[2])
	}
	var env struct {
		At  int64           `json:"at"`
		Cmd json.RawMessage `json:"cmd"`
	}
	if err := strictJSON(b[3:], &env); err != nil {
		return Entry{}, fmt.Errorf("decode entry of kind %d: %w", b[2], err)
	}
	if err := strictJSON(env.Cmd, cmd); err != nil {
		return Entry{}, fmt.Errorf("decode entry of kind %d: command: %w", b[2], err)
	}
	return Entry{At: env.At, Cmd: deref(cmd)}, nil
}

// strictJSON parses one JSON object. A null, or nothing at all, is not one: it would leave v as it is,
// and a command of zeros is not what somebody committed.
func strictJSON(b []byte, v any) error {
	if len(b) == 0 || b[0] != '{' {
		return fmt.Errorf("not a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("trailing bytes")
	}
	return nil
}

// EncodeState renders the whole state for a snapshot; DecodeState reads it back. Equal states give
// equal bytes.
func EncodeState(s State) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return append([]byte{entryMagic, Version, 0}, b...), nil
}

// DecodeState parses what EncodeState wrote, strictly.
func DecodeState(b []byte) (State, error) {
	if len(b) < 3 || b[0] != entryMagic || b[2] != 0 {
		return State{}, fmt.Errorf("decode state: not a picket snapshot")
	}
	if b[1] != Version {
		return State{}, fmt.Errorf("decode state: format %d is not known, this version knows %d: upgrade picket on this node", b[1], Version)
	}
	var s State
	if err := strictJSON(b[3:], &s); err != nil {
		return State{}, fmt.Errorf("decode state: %w", err)
	}
	return s, nil
}

// Digest is the hex SHA-256 of the encoded state: equal on every node at an equal index.
func (s State) Digest() string {
	b, err := EncodeState(s)
	if err != nil {
		return "unencodable: " + err.Error()
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func newCommand(k Kind) any {
	switch k {
	case KindNodeAdmit:
		return new(NodeAdmit)
	case KindNodeRemove:
		return new(NodeRemove)
	case KindNodeUp:
		return new(NodeUp)
	case KindNodeLeave:
		return new(NodeLeave)
	case KindConfigSet:
		return new(ConfigSet)
	case KindLeaseTick:
		return new(LeaseTick)
	case KindFenceIntent:
		return new(FenceIntent)
	case KindFenceBegin:
		return new(FenceBegin)
	case KindFenceEnd:
		return new(FenceEnd)
	case KindFenceConfirm:
		return new(FenceConfirm)
	case KindGrant:
		return new(Grant)
	case KindStarted:
		return new(Started)
	case KindRevoke:
		return new(Revoke)
	case KindReleased:
		return new(Released)
	case KindStartFailed:
		return new(StartFailed)
	case KindStopFailed:
		return new(StopFailed)
	case KindMonitorFailed:
		return new(MonitorFailed)
	case KindNodeMode:
		return new(NodeMode)
	case KindGroupMode:
		return new(GroupMode)
	case KindMove:
		return new(Move)
	case KindCleanup:
		return new(Cleanup)
	case KindTokenMint:
		return new(TokenMint)
	case KindNote:
		return new(NoteCmd)
	}
	return nil
}

func deref(c any) Command {
	switch p := c.(type) {
	case *NodeAdmit:
		return *p
	case *NodeRemove:
		return *p
	case *NodeUp:
		return *p
	case *NodeLeave:
		return *p
	case *ConfigSet:
		return *p
	case *LeaseTick:
		return *p
	case *FenceIntent:
		return *p
	case *FenceBegin:
		return *p
	case *FenceEnd:
		return *p
	case *FenceConfirm:
		return *p
	case *Grant:
		return *p
	case *Started:
		return *p
	case *Revoke:
		return *p
	case *Released:
		return *p
	case *StartFailed:
		return *p
	case *StopFailed:
		return *p
	case *MonitorFailed:
		return *p
	case *NodeMode:
		return *p
	case *GroupMode:
		return *p
	case *Move:
		return *p
	case *Cleanup:
		return *p
	case *TokenMint:
		return *p
	case *NoteCmd:
		return *p
	}
	return nil
}
