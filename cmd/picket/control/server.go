package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/picket-ha/picket/consensus/state"
)

// Limits of the server.
const (
	// MaxConns is how many connections are served at once; more wait in the kernel's backlog.
	MaxConns = 64
	// MaxFollowers is how many event streams may be open at once, so that they never use up MaxConns.
	MaxFollowers = 32
	// MaxBody is the largest request body: a whole cluster file as JSON, each byte escaped at worst.
	MaxBody = 6*state.MaxConfigSource + 64<<10
	// MaxSubject is the longest name asked for, in bytes.
	MaxSubject = 256
	// maxHandlers bounds requests other than event streams that run at once.
	maxHandlers = 32
)

// Options adjust a Server; the zero value is for production.
type Options struct {
	// WriteTimeout is how long one write to a client may take before it is disconnected; 2 s unless given.
	WriteTimeout time.Duration
	// ReadTimeout is how long a client may take to send its request; 10 s unless given.
	ReadTimeout time.Duration
	// RequestTimeout bounds one request other than an event stream; 60 s unless given.
	RequestTimeout time.Duration
	// PeerOf overrides who the peer of a connection is. Tests use it; nil means SO_PEERCRED.
	PeerOf func(net.Conn) Peer
}

// Server serves a Backend on a unix socket.
type Server struct {
	backend   Backend
	log       *slog.Logger
	opt       Options
	http      *http.Server
	handlers  chan struct{}
	followers chan struct{}
	// streams ends when Close begins: event streams must not hold up a stop.
	streams context.Context
	stop    context.CancelFunc
}

// NewServer makes a server; Serve starts it.
func NewServer(b Backend, log *slog.Logger, opt Options) *Server {
	if opt.WriteTimeout <= 0 {
		opt.WriteTimeout = 2 * time.Second
	}
	if opt.RequestTimeout <= 0 {
		opt.RequestTimeout = 60 * time.Second
	}
	if opt.ReadTimeout <= 0 {
		opt.ReadTimeout = 10 * time.Second
	}
	streams, stop := context.WithCancel(context.Background())
	s := &Server{backend: b, log: log, opt: opt, streams: streams, stop: stop,
		handlers: make(chan struct{}, maxHandlers), followers: make(chan struct{}, MaxFollowers)}
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: opt.ReadTimeout,
		ReadTimeout:       opt.ReadTimeout,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if opt.PeerOf != nil {
				return context.WithValue(ctx, peerKey{}, opt.PeerOf(c))
			}
			return withPeer(ctx, c)
		},
	}
	return s
}

// Serve answers on ln until Close; it returns nil after Close.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(&limitedListener{Listener: ln, slots: make(chan struct{}, MaxConns), done: make(chan struct{})})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("control socket: %w", err)
}

// Close ends event streams at once, lets other requests finish until ctx ends, and closes the listener.
func (s *Server) Close(ctx context.Context) error {
	defer s.http.Close() // whatever is left when ctx ended
	s.stop()
	return s.http.Shutdown(ctx)
}

// whole is called when a request has been read whole. The read deadline must go: net/http reads on in
// the background to notice a client that leaves, and takes a deadline for one, which would end every
// request that takes longer than ReadTimeout.
func whole(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.get(func(ctx context.Context, _ *http.Request) (any, error) { return s.backend.Status(ctx) }))
	mux.HandleFunc("GET /v1/why", s.get(func(ctx context.Context, r *http.Request) (any, error) {
		subject := r.URL.Query().Get("subject")
		if subject == "" || len(subject) > MaxSubject {
			return nil, Usage("subject must be the name of a group or a node (1 to %d bytes)", MaxSubject)
		}
		return s.backend.Why(ctx, subject)
	}))
	mux.HandleFunc("GET /v1/fence-history", s.get(func(ctx context.Context, _ *http.Request) (any, error) {
		list, err := s.backend.FenceHistory(ctx)
		if list == nil {
			list = []FenceRecord{}
		}
		return list, err
	}))
	mux.HandleFunc("GET /v1/config", s.get(func(ctx context.Context, _ *http.Request) (any, error) { return s.backend.Config(ctx) }))
	mux.HandleFunc("GET /v1/events", s.events)
	mux.HandleFunc("POST /v1/operate", s.operate)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, http.StatusNotFound, Usage("%s %s is not known: see the control socket's README", r.Method, cut(r.URL.Path, 80)))
	})
	return mux
}

// enter takes a slot, or answers that the daemon is busy. It never waits.
func (s *Server) enter(w http.ResponseWriter, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		s.fail(w, 0, Unavailable("", "the daemon is busy with other requests", "try again in a moment"))
		return false
	}
}

func (s *Server) get(f func(context.Context, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.enter(w, s.handlers) {
			return
		}
		defer func() { <-s.handlers }()
		whole(w)
		ctx, cancel := context.WithTimeout(r.Context(), s.opt.RequestTimeout)
		defer cancel()
		v, err := f(ctx, r)
		s.answer(w, v, err)
	}
}

func (s *Server) operate(w http.ResponseWriter, r *http.Request) {
	peer := peerFrom(r.Context())
	if !peer.MayChange() {
		s.fail(w, http.StatusForbidden, Refused("", "only root may change the cluster: this request came from "+peer.String(), "run it as root, for example with sudo"))
		return
	}
	if !s.enter(w, s.handlers) {
		return
	}
	defer func() { <-s.handlers }()
	var op Operation
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&op); err != nil {
		s.fail(w, 0, Usage("the request is not a valid operation: %s", cut(err.Error(), 200)))
		return
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		s.fail(w, 0, Usage("the request holds more than one operation"))
		return
	}
	if err := op.Check(); err != nil {
		s.fail(w, 0, err)
		return
	}
	whole(w)
	op.Operator = peer.String()
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.RequestTimeout)
	defer cancel()
	a, err := s.backend.Operate(ctx, op)
	s.answer(w, a, err)
}

// events streams one JSON event per line. emit writes straight to the client under a deadline: there is
// no queue here, and the backend's own ring decides when a reader has fallen behind.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	since, err := strconv.ParseUint(orZero(q.Get("since")), 10, 64)
	if err != nil {
		s.fail(w, 0, Usage("since must be a whole number"))
		return
	}
	follow := q.Get("follow") == "1"
	if !s.enter(w, s.followers) {
		return
	}
	defer func() { <-s.followers }()
	whole(w)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.streams, cancel)()
	rc := http.NewResponseController(w)
	var once sync.Once
	header := func() { w.Header().Set("Content-Type", "application/x-ndjson") }
	started := false
	emit := func(e Event) error {
		once.Do(header)
		started = true
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if err := rc.SetWriteDeadline(time.Now().Add(s.opt.WriteTimeout)); err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return fmt.Errorf("%w: %w", ErrSlowClient, err)
		}
		if err := rc.Flush(); err != nil {
			return fmt.Errorf("%w: %w", ErrSlowClient, err)
		}
		return nil
	}
	if follow { // the client learns at once that it is connected
		once.Do(header)
		w.WriteHeader(http.StatusOK)
		started = true
		_ = rc.SetWriteDeadline(time.Now().Add(s.opt.WriteTimeout))
		_ = rc.Flush()
	}
	err = s.backend.Events(ctx, since, follow, emit)
	switch {
	case err == nil:
	case errors.Is(err, ErrSlowClient):
		s.log.Warn("an event reader was disconnected", "peer", peerFrom(r.Context()).String(), "err", err)
		panic(http.ErrAbortHandler) // closes the connection without a proper end: the client sees the break
	case !started:
		s.answer(w, nil, err)
	default:
		panic(http.ErrAbortHandler)
	}
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

func (s *Server) answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		var e *Error
		switch {
		case errors.As(err, &e):
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			e = &Error{Class: ClassUnknown, Text: "the daemon did not answer in time", Action: "it may still happen: look at picket status before you repeat it"}
		default:
			s.log.Error("a control request failed", "err", err)
			e = &Error{Class: ClassInternal, Text: cut(err.Error(), 1000)}
		}
		s.fail(w, 0, e)
		return
	}
	s.write(w, http.StatusOK, v)
}

// fail answers an error; status 0 takes the class's own.
func (s *Server) fail(w http.ResponseWriter, status int, e *Error) {
	if status == 0 {
		status = map[Class]int{ClassUsage: http.StatusBadRequest, ClassRefused: http.StatusConflict,
			ClassUnavailable: http.StatusServiceUnavailable, ClassUnknown: http.StatusGatewayTimeout}[e.Class]
		if status == 0 {
			status = http.StatusInternalServerError
		}
	}
	s.write(w, status, wireError{Error: e})
}

type wireError struct {
	Error *Error `json:"error"`
}

func (s *Server) write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.log.Error("a control answer could not be encoded", "err", err)
		http.Error(w, `{"error":{"class":"internal","text":"the answer could not be encoded"}}`, http.StatusInternalServerError)
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(s.opt.WriteTimeout + 5*time.Second))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// Check reports what is wrong with an operation's shape, or nil. It knows nothing of the cluster.
func (op Operation) Check() *Error {
	need := map[string]string{OpApply: "text", OpApplyCheck: "text", OpNodeStandby: "node", OpNodeOnline: "node", OpNodeRemove: "node", OpGroupStart: "group",
		OpGroupStop: "group", OpGroupMove: "group", OpGroupCleanup: "group", OpFence: "node", OpFenceConfirm: "node", OpTokenCreate: ""}
	field, known := need[op.Kind]
	have := map[string]string{"": "x", "text": op.Text, "node": op.Node, "group": op.Group}[field]
	switch {
	case !known:
		return Usage("operation %q is not known", cut(op.Kind, 40))
	case have == "":
		return Usage("operation %s needs a %s", op.Kind, field)
	case len(op.Text) > state.MaxConfigSource:
		return Usage("the cluster file is %d bytes long: at most %d are accepted", len(op.Text), state.MaxConfigSource)
	case len(op.Reason) > MaxReason:
		return Usage("the reason is %d bytes long: at most %d are accepted", len(op.Reason), MaxReason)
	case len(op.ID) > 64 || len(op.Node) > MaxSubject || len(op.Group) > MaxSubject || len(op.To) > MaxSubject || len(op.Confirm) > MaxSubject || len(op.File) > 4096:
		return Usage("a name in the request is too long")
	case op.For < 0 || op.For > 366*24*time.Hour:
		return Usage("a duration of %v is not accepted: 0 to 366 days", op.For)
	case op.Kind == OpFenceConfirm && op.Confirm != op.Node:
		return Usage("fence confirm of %s was not confirmed: the node's name must be typed once more", cut(op.Node, 80))
	case op.Kind == OpFenceConfirm && op.Reason == "":
		return Usage("fence confirm needs a reason: how do you know that %s is off?", cut(op.Node, 80))
	}
	for _, s := range []string{op.ID, op.Node, op.Group, op.To, op.Confirm, op.File, op.Reason} {
		if !utf8.ValidString(s) || hasControl(s) {
			return Usage("a value in the request holds control characters")
		}
	}
	return nil
}

func hasControl(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return true
		}
	}
	return false
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}
