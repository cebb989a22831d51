package app

import (
	"context"
	"log/slog"
)

// quieter passes on warnings and errors, and everything where debug is on: raft repeats every failed
// heartbeat to a dead peer, which the link lines have told already.
type quieter struct{ slog.Handler }

// Enabled reports whether a record of that level is written.
func (q quieter) Enabled(ctx context.Context, l slog.Level) bool {
	return (l >= slog.LevelWarn || q.Handler.Enabled(ctx, slog.LevelDebug)) && q.Handler.Enabled(ctx, l)
}

// WithAttrs keeps the filter.
func (q quieter) WithAttrs(a []slog.Attr) slog.Handler { return quieter{q.Handler.WithAttrs(a)} }

// WithGroup keeps the filter.
func (q quieter) WithGroup(name string) slog.Handler { return quieter{q.Handler.WithGroup(name)} }
