package raftnode

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hlog hands raft's log lines to slog, two levels quieter: raft reports each failed dial as an error
// and each election as a warning, and what matters of that the cluster says itself.
type hlog struct {
	to   *slog.Logger
	name string
	args []any
}

var _ hclog.Logger = (*hlog)(nil)

func level(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelInfo
	case hclog.Warn:
		return slog.LevelDebug
	default:
		return slog.LevelDebug - 4
	}
}

// Log writes one line.
func (h *hlog) Log(l hclog.Level, msg string, args ...any) {
	if !h.to.Enabled(context.Background(), level(l)) {
		return
	}
	for i, a := range args {
		if s, ok := a.(fmt.Stringer); ok && i%2 == 1 {
			args[i] = s.String()
		}
	}
	h.to.Log(context.Background(), level(l), "raft: "+msg, args...)
}

func (h *hlog) Trace(msg string, args ...any) { h.Log(hclog.Trace, msg, args...) }
func (h *hlog) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hlog) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hlog) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hlog) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hlog) on(l hclog.Level) bool { return h.to.Enabled(context.Background(), level(l)) }

func (h *hlog) IsTrace() bool { return h.on(hclog.Trace) }
func (h *hlog) IsDebug() bool { return h.on(hclog.Debug) }
func (h *hlog) IsInfo() bool  { return h.on(hclog.Info) }
func (h *hlog) IsWarn() bool  { return h.on(hclog.Warn) }
func (h *hlog) IsError() bool { return h.on(hclog.Error) }

func (h *hlog) ImpliedArgs() []any { return h.args }
func (h *hlog) With(args ...any) hclog.Logger {
	return &hlog{to: h.to.With(args...), name: h.name, args: append(append([]any(nil), h.args...), args...)}
}
func (h *hlog) Name() string                        { return h.name }
func (h *hlog) Named(name string) hclog.Logger      { return h.ResetNamed(name) }
func (h *hlog) ResetNamed(name string) hclog.Logger { return &hlog{to: h.to, name: name, args: h.args} }
func (h *hlog) SetLevel(hclog.Level)                {}
func (h *hlog) GetLevel() hclog.Level               { return hclog.Trace }

func (h *hlog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(h.to.Handler(), slog.LevelDebug)
}
func (h *hlog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return h.StandardLogger(o).Writer()
}
