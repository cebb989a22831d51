package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
)

const (
	// MaxBody is the largest body of a call or of its answer, in bytes.
	MaxBody = 1 << 20
	// maxCalls is how many inbound calls run at once; more are answered with CodeBusy.
	maxCalls   = 128
	maxMethod  = 64
	callPrefix = "/call/"
	// hedgeAfter is how long CallIdempotent waits for one link before it asks over the next.
	hedgeAfter = 100 * time.Millisecond
	// statusRemote marks an answer that is a RemoteError. Any other status is not from our handler.
	statusRemote = http.StatusUnprocessableEntity
)

// Codes that the server itself puts in a RemoteError. Handlers use codes of their own.
const (
	// CodeInternal stands for a handler's error that is not a RemoteError.
	CodeInternal = "INTERNAL"
	// CodeBusy means the handler did not run: too many calls, or the rate limit.
	CodeBusy = "BUSY"
	// CodeTooLarge means the handler did not run, or its answer was over the limit.
	CodeTooLarge = "TOO_LARGE"
)

// Handler answers one call. from is the node whose certificate the connection showed. A *RemoteError
// reaches the caller as it is; any other error as CodeInternal with its text.
type Handler func(ctx context.Context, from ids.Node, method string, body []byte) ([]byte, error)

// RemoteError is an answer of the remote handler that says no: the call was delivered and answered.
type RemoteError struct {
	Code string `json:"code"`
	Msg  string `json:"msg"`
}

// Error returns the remote's sentence.
func (e *RemoteError) Error() string { return e.Msg }

// CallError is a call that got no answer.
type CallError struct {
	To     ids.Node
	Method string
	// MayHaveRun is false where the request was certainly not delivered, so that any call may be
	// repeated; where it is true the handler may have run, or may still.
	MayHaveRun bool
	Err        error
}

// Error names the call and the cause.
func (e *CallError) Error() string {
	return fmt.Sprintf("call %s on %s: %v", e.Method, e.To, e.Err)
}

// Unwrap returns the cause.
func (e *CallError) Unwrap() error { return e.Err }

// Server serves one of the request protocols until Close.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Close closes the listener and the connections, and waits until no handler runs any more; a
// handler's context ends at once.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

type connKey struct{}

// serve runs an HTTP/1.1 server on one of the mesh's protocols (RFC 9112).
func (m *Mesh) serve(alpn string, h http.Handler, read time.Duration) (*Server, error) {
	ln, err := m.Accept(alpn)
	if err != nil {
		return nil, err
	}
	var running atomic.Int64
	idle := make(chan struct{}, 1)
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer func() {
			running.Add(-1)
			select {
			case idle <- struct{}{}:
			default:
			}
		}()
		h.ServeHTTP(w, r)
	})
	s := &Server{done: make(chan struct{}), http: &http.Server{
		Handler:           counted,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       read,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(ln) // always ErrServerClosed or the listener's end
		_ = s.http.Close()
		for running.Load() > 0 {
			<-idle
		}
	}()
	return s, nil
}

// ServeCalls answers calls of admitted peers with h. At most 128 run at once.
func ServeCalls(m *Mesh, h Handler) (*Server, error) {
	slots := make(chan struct{}, maxCalls)
	return m.serve(ALPNCall, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _ := r.Context().Value(connKey{}).(*Conn)
		method, ok := strings.CutPrefix(r.URL.Path, callPrefix)
		if conn == nil || conn.peer == "" || !ok || !goodMethod(method) || r.Method != http.MethodPost {
			http.Error(w, "not a picket call", http.StatusNotFound)
			return
		}
		if !m.admits(conn.peer) { // it was when it connected
			conn.kill()
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			answer(w, nil, &RemoteError{CodeBusy, fmt.Sprintf("%s is busy: %d calls are running", m.o.Self, maxCalls)}, MaxBody)
			return
		}
		body, err := readBody(w, r, MaxBody)
		if err != nil {
			answer(w, nil, err, MaxBody)
			return
		}
		out, err := h(r.Context(), conn.peer, method, body)
		answer(w, out, err, MaxBody)
	}), 10*time.Second)
}

// goodMethod allows a-z, 0-9, '-', '_' and '/': what our own code calls.
func goodMethod(s string) bool {
	if s == "" || len(s) > maxMethod {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '/' {
			return false
		}
	}
	return !strings.Contains(s, "//") && s[0] != '/'
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return nil, &RemoteError{CodeTooLarge, fmt.Sprintf("the request is larger than %d bytes", limit)}
	}
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	return body, nil
}

func answer(w http.ResponseWriter, out []byte, err error, limit int) {
	if err == nil && len(out) > limit {
		err = &RemoteError{CodeTooLarge, fmt.Sprintf("the answer is larger than %d bytes", limit)}
	}
	status := http.StatusOK
	if err != nil {
		var re *RemoteError
		if !errors.As(err, &re) {
			re = &RemoteError{CodeInternal, err.Error()}
		}
		status = statusRemote
		if out, err = json.Marshal(re); err != nil {
			http.Error(w, "cannot encode the error", http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	w.WriteHeader(status)
	_, _ = w.Write(out) // a caller that went away has its own error
}

// Caller makes calls over kept connections. It is safe for concurrent use.
type Caller struct {
	m    *Mesh
	http *http.Transport
}

// NewCaller returns a caller over m. Close it before m.
func NewCaller(m *Mesh) *Caller {
	c := &Caller{m: m}
	c.http = &http.Transport{
		DialContext:            c.dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    4,
		MaxConnsPerHost:        64,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 8 << 10,
	}
	return c
}

// dial turns the URL's host into a peer. The port is no port: 80 means any link, 1000+i link i only,
// which gives each link a pool of its own.
func (c *Caller) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	if i := n - 1000; i >= 0 && i < len(c.m.o.Links) {
		return c.m.DialLink(ctx, ids.Node(host), c.m.o.Links[i].Name, ALPNCall)
	}
	return c.m.Dial(ctx, ids.Node(host), ALPNCall)
}

// Call sends one request and returns the answer. The error is a *RemoteError where the handler said
// no, else a *CallError that says whether the request may have been delivered. It is never repeated
// here. Without a deadline in ctx a call may last as long as the connection lives.
func (c *Caller) Call(ctx context.Context, to ids.Node, method string, body []byte) ([]byte, error) {
	return c.call(ctx, to, string(to), method, body)
}

func (c *Caller) call(ctx context.Context, to ids.Node, host, method string, body []byte) ([]byte, error) {
	var sent atomic.Bool
	fail := func(err error) ([]byte, error) {
		return nil, &CallError{To: to, Method: method, MayHaveRun: sent.Load(), Err: err}
	}
	if !goodMethod(method) {
		return fail(fmt.Errorf("method %q is not allowed", method))
	}
	if len(body) > MaxBody {
		return fail(fmt.Errorf("the request is larger than %d bytes", MaxBody))
	}
	// A handler cannot have run before the whole header was written.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+callPrefix+method, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return fail(err)
	}
	out, err := readAnswer(resp, MaxBody)
	var re *RemoteError
	if err != nil && !errors.As(err, &re) {
		return fail(err)
	}
	return out, err
}

func readAnswer(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	out, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if int64(len(out)) > limit {
		return nil, fmt.Errorf("the answer is larger than %d bytes", limit)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return out, nil
	case statusRemote:
		re := &RemoteError{}
		if err := json.Unmarshal(out, re); err != nil {
			return nil, fmt.Errorf("cannot read the remote's error: %w", err)
		}
		return nil, re
	}
	return nil, fmt.Errorf("unexpected HTTP status %d: the peer runs another version of picket", resp.StatusCode)
}

// CallIdempotent is Call for requests that may run twice. When the best link has not answered within
// 100 ms, or fails, the same request also goes over the next link, and the first answer counts; a
// silent link is then suspect, and its connections are closed.
func (c *Caller) CallIdempotent(ctx context.Context, to ids.Node, method string, body []byte) ([]byte, error) {
	links, _ := c.m.LinksTo(to)
	if len(links) < 2 {
		return c.Call(ctx, to, method, body)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		link string
		out  []byte
		err  error
	}
	results := make(chan result, len(links))
	timer := time.NewTimer(0)
	defer timer.Stop()
	started, open := 0, 0
	var last error
	for started < len(links) || open > 0 {
		select {
		case <-timer.C:
		case r := <-results:
			open--
			var re *RemoteError
			if r.err == nil || errors.As(r.err, &re) {
				if r.link != links[0] {
					c.m.Suspect(to, links[0])
				}
				return r.out, r.err
			}
			last = r.err
		}
		if started == len(links) || ctx.Err() != nil && started > 0 {
			if open == 0 {
				break
			}
			continue
		}
		l := links[started]
		started++
		open++
		timer.Reset(hedgeAfter)
		i := slices.IndexFunc(c.m.o.Links, func(x Link) bool { return x.Name == l })
		host := net.JoinHostPort(string(to), strconv.Itoa(1000+i))
		go func() {
			out, err := c.call(ctx, to, host, method, body)
			results <- result{l, out, err}
		}()
	}
	return nil, last
}

// Close closes the idle connections.
func (c *Caller) Close() { c.http.CloseIdleConnections() }
