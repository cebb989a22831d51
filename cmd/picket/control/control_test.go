package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a Backend whose methods are set by each test.
type fake struct {
	*EventLog
	status  func(context.Context) (Status, error)
	operate func(context.Context, Operation) (Answer, error)
}

var _ Backend = (*fake)(nil)

func (f *fake) Status(ctx context.Context) (Status, error) {
	if f.status != nil {
		return f.status(ctx)
	}
	return Status{Cluster: "prod", State: StateOK}, nil
}

func (f *fake) Why(_ context.Context, s string) (Explanation, error) {
	if s != "web" {
		return Explanation{}, Usage("%q is neither a group nor a node", s)
	}
	return Explanation{Subject: s, Kind: "group"}, nil
}
func (f *fake) FenceHistory(context.Context) ([]FenceRecord, error) { return nil, nil }
func (f *fake) Config(context.Context) (ConfigText, error) {
	return ConfigText{Source: "cluster: prod\n"}, nil
}
func (f *fake) Operate(ctx context.Context, op Operation) (Answer, error) {
	if f.operate != nil {
		return f.operate(ctx, op)
	}
	return Answer{Text: op.Kind + " by " + op.Operator}, nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve starts a server on a real socket and returns its path.
func serve(t *testing.T, b Backend, opt Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p.sock")
	ln, err := Listen(path, "root", quiet())
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(b, quiet(), opt)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket was left behind: %v", err)
		}
	})
	return path
}

func as(uid uint32) func(net.Conn) Peer {
	return func(net.Conn) Peer { return Peer{UID: uid, Known: true} }
}

func TestRoutes(t *testing.T) {
	ctx := context.Background()
	c := NewClient(serve(t, &fake{EventLog: NewEventLog(8)}, Options{PeerOf: as(0)}))
	if s, err := c.Status(ctx); err != nil || s.Cluster != "prod" {
		t.Errorf("status %+v %v", s, err)
	}
	if e, err := c.Why(ctx, "web"); err != nil || e.Kind != "group" {
		t.Errorf("why %+v %v", e, err)
	}
	if _, err := c.Why(ctx, "no such/&?"); ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "no such/&?") {
		t.Errorf("why: %v", err)
	}
	if _, err := c.Why(ctx, ""); ExitCode(err) != ExitUsage {
		t.Errorf("why of nothing: %v", err)
	}
	if h, err := c.FenceHistory(ctx); err != nil || h == nil {
		t.Errorf("history %v %v", h, err)
	}
	if s, err := c.Config(ctx); err != nil || s.Source != "cluster: prod\n" {
		t.Errorf("config %v %v", s, err)
	}
	a, err := c.Operate(ctx, Operation{Kind: OpFence, Node: "node2", Operator: "forged"})
	if err != nil || a.Text != "fence by root(uid 0)" {
		t.Errorf("operate %+v %v", a, err)
	}
}

func TestErrorsCross(t *testing.T) {
	var give error
	f := &fake{EventLog: NewEventLog(8), operate: func(ctx context.Context, _ Operation) (Answer, error) { return Answer{}, give }}
	c := NewClient(serve(t, f, Options{PeerOf: as(0)}))
	for _, tc := range []struct {
		give error
		exit int
		text string
	}{
		{Refused("REFUSED_OWNED", "it is owned", "wait"), ExitRefused, "it is owned; wait"},
		{fmt.Errorf("wrapped: %w", Unavailable("NO_QUORUM", "no quorum", "")), ExitUnavailable, "no quorum"},
		{Usage("bad name %q", "x"), ExitUsage, `bad name "x"`},
		{errors.New("disk on fire"), ExitDegraded, "disk on fire"},
		{context.DeadlineExceeded, ExitUnavailable, "may still happen"},
	} {
		give = tc.give
		_, err := c.Operate(context.Background(), Operation{Kind: OpFence, Node: "n"})
		if ExitCode(err) != tc.exit || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%v crossed as %v, exit %d", tc.give, err, ExitCode(err))
		}
	}
}

// TestOnlyRootChanges checks the mapping of peers, and reads real credentials once.
func TestOnlyRootChanges(t *testing.T) {
	ctx := context.Background()
	for _, p := range []Peer{{UID: 1000, Known: true}, {UID: overflowUID, Known: true}, {}} {
		c := NewClient(serve(t, &fake{EventLog: NewEventLog(8)}, Options{PeerOf: func(net.Conn) Peer { return p }}))
		if _, err := c.Status(ctx); err != nil {
			t.Errorf("%v may not read: %v", p, err)
		}
		if _, err := c.Operate(ctx, Operation{Kind: OpFence, Node: "n"}); ExitCode(err) != ExitRefused || !strings.Contains(err.Error(), p.String()) {
			t.Errorf("%v: %v", p, err)
		}
	}
	c := NewClient(serve(t, &fake{EventLog: NewEventLog(8)}, Options{}))
	a, err := c.Operate(ctx, Operation{Kind: OpFence, Node: "n"})
	if os.Geteuid() == 0 && (err != nil || a.Text != "fence by root(uid 0)") {
		t.Errorf("as root: %+v %v", a, err)
	}
	if os.Geteuid() != 0 && ExitCode(err) != ExitRefused {
		t.Errorf("as uid %d: %v", os.Geteuid(), err)
	}
}

// TestOtherUser connects as uid 65533 from a child process: it may read and not change.
func TestOtherUser(t *testing.T) {
	if path := os.Getenv("PICKET_TEST_SOCKET"); path != "" {
		c := NewClient(path)
		_, errRead := c.Status(context.Background())
		_, errWrite := c.Operate(context.Background(), Operation{Kind: OpFence, Node: "n"})
		fmt.Printf("read=%v write=%v exit=%d\n", errRead, errWrite, ExitCode(errWrite))
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: a child must run as another user")
	}
	path := serve(t, &fake{EventLog: NewEventLog(8)}, Options{})
	for p := filepath.Dir(path); len(p) > len(os.TempDir()); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func() string {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestOtherUser$", "-test.v")
		cmd.Env = append(os.Environ(), "PICKET_TEST_SOCKET="+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
		exe, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path = filepath.Join(filepath.Dir(path), "child")
		if err := os.WriteFile(cmd.Path, exe, 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("child: %v\n%s", err, out)
		}
		return string(out)
	}
	if out := run(); !strings.Contains(out, "you may not open") {
		t.Errorf("mode 0660 let a stranger in: %s", out)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := run(); !strings.Contains(out, "read=<nil>") || !strings.Contains(out, "(uid 65533)") || !strings.Contains(out, "exit=4") {
		t.Errorf("child: %s", out)
	}
}

func TestOperationCheck(t *testing.T) {
	ok := Operation{Kind: OpFenceConfirm, Node: "n", Confirm: "n", Reason: "cord pulled"}
	if err := ok.Check(); err != nil {
		t.Error(err)
	}
	for _, op := range []Operation{
		{}, {Kind: "reboot-all"}, {Kind: OpFence}, {Kind: OpApply}, {Kind: OpGroupMove}, {Kind: OpFenceConfirm, Node: "n", Confirm: "m", Reason: "r"},
		{Kind: OpFenceConfirm, Node: "n", Confirm: "n"}, {Kind: OpFence, Node: "n\nm"}, {Kind: OpFence, Node: "n", Reason: "\x1b[2J"},
		{Kind: OpFence, Node: strings.Repeat("n", 300)}, {Kind: OpFence, Node: "n", Reason: strings.Repeat("r", 501)},
		{Kind: OpTokenCreate, For: -1}, {Kind: OpTokenCreate, For: 400 * 24 * time.Hour}, {Kind: OpApply, Text: strings.Repeat("x", 1<<20+1)},
	} {
		if err := op.Check(); err == nil || err.Class != ClassUsage {
			t.Errorf("%.80v: %v", op, err)
		}
	}
}

// TestBadRequests sends raw bytes.
func TestBadRequests(t *testing.T) {
	path := serve(t, &fake{EventLog: NewEventLog(8)}, Options{PeerOf: as(0)})
	for _, c := range []struct{ req, want string }{
		{"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"GET /v1/events?since=-1 HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{post("{"), "400"}, {post(`{"kind":"fence","node":"n","extra":1}`), "400"}, {post(`{"kind":"fence","node":"n"}{}`), "400"},
		{post(`{"kind":"apply","text":"` + strings.Repeat("x", MaxBody) + `"}`), "400"},
		{"GET /" + strings.Repeat("x", 20<<10) + " HTTP/1.1\r\n\r\n", "431"},
		{"\x16\x03\x01\x02\x00\x01", "400"},
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(conn, c.req); _ = conn.(*net.UnixConn).CloseWrite() }()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.Contains(line, c.want) {
			t.Errorf("%.60q answered %q, want %s", c.req, line, c.want)
		}
		conn.Close()
	}
}

func post(body string) string {
	return fmt.Sprintf("POST /v1/operate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func TestSlowRequestOutlivesReadTimeout(t *testing.T) {
	f := &fake{EventLog: NewEventLog(8), operate: func(ctx context.Context, _ Operation) (Answer, error) {
		select {
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		case <-time.After(400 * time.Millisecond):
			return Answer{Text: "done"}, nil
		}
	}}
	c := NewClient(serve(t, f, Options{PeerOf: as(0), ReadTimeout: 100 * time.Millisecond}))
	if a, err := c.Operate(context.Background(), Operation{Kind: OpFence, Node: "n"}); err != nil || a.Text != "done" {
		t.Errorf("%+v %v", a, err)
	}
}

func TestRequestTimeout(t *testing.T) {
	f := &fake{EventLog: NewEventLog(8), status: func(ctx context.Context) (Status, error) { <-ctx.Done(); return Status{}, ctx.Err() }}
	c := NewClient(serve(t, f, Options{RequestTimeout: 50 * time.Millisecond}))
	if _, err := c.Status(context.Background()); ExitCode(err) != ExitUnavailable {
		t.Errorf("%v", err)
	}
}

func TestEventsFollow(t *testing.T) {
	l := NewEventLog(8)
	for i := range 20 {
		l.Append(Event{Kind: "node", Text: fmt.Sprint(i)})
	}
	c := NewClient(serve(t, &fake{EventLog: l}, Options{ReadTimeout: 50 * time.Millisecond}))
	var got []Event
	if err := c.Events(context.Background(), 0, false, func(e Event) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 9 || got[0].Kind != "gap" || got[1].Seq != 13 || got[8].Seq != 20 {
		t.Errorf("got %+v", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// The first event is there before the follower; two more come later than the read timeout.
	enough := errors.New("enough")
	n := 0
	err := c.Events(ctx, 19, true, func(e Event) error {
		if n++; n == 3 {
			return enough
		}
		time.AfterFunc(150*time.Millisecond, func() { l.Append(Event{Kind: "node"}) })
		return nil
	})
	if !errors.Is(err, enough) || n != 3 {
		t.Errorf("followed %d events: %v", n, err)
	}
}

// TestSlowReader shows that a reader who stops reading is disconnected while Append never waits.
func TestSlowReader(t *testing.T) {
	l := NewEventLog(64)
	path := serve(t, &fake{EventLog: l}, Options{WriteTimeout: 100 * time.Millisecond})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if !strings.Contains(line, "200") {
		t.Fatalf("answer %q", line)
	}
	big := strings.Repeat("x", 10_000)
	deadline := time.Now().Add(20 * time.Second)
	for i := 0; ; i++ {
		began := time.Now()
		l.Append(Event{Kind: "node", Text: big})
		if d := time.Since(began); d > time.Second {
			t.Fatalf("Append took %v", d)
		}
		// A write to a connection the server has closed fails: that is how the disconnect shows.
		if _, err := conn.Write([]byte(" ")); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a reader that reads nothing is still connected after 20 s")
		}
	}
}

func TestTooManyFollowers(t *testing.T) {
	path := serve(t, &fake{EventLog: NewEventLog(8)}, Options{})
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range MaxFollowers {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		_, _ = io.WriteString(conn, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
		if line, _ := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, "200") {
			t.Fatalf("answer %q", line)
		}
	}
	c := NewClient(path)
	if err := c.Events(context.Background(), 0, true, func(Event) error { return nil }); ExitCode(err) != ExitUnavailable {
		t.Errorf("one too many: %v", err)
	}
	if _, err := c.Status(context.Background()); err != nil {
		t.Errorf("status while the followers are full: %v", err)
	}
}

func TestEventLogConcurrent(t *testing.T) {
	l := NewEventLog(1 << 16)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	const writers, each, readers = 4, 500, 4
	var wg sync.WaitGroup
	for range readers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			want, enough := uint64(1), errors.New("enough")
			err := l.Events(ctx, 0, true, func(e Event) error {
				if e.Seq != want {
					return fmt.Errorf("seq %d after %d", e.Seq, want-1)
				}
				if want++; want > writers*each {
					return enough
				}
				return nil
			})
			if !errors.Is(err, enough) {
				t.Error(err)
			}
		}()
	}
	for range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range each {
				l.Append(Event{Kind: "node"})
			}
		}()
	}
	wg.Wait()
	// A reader that falls out of the ring while reading is told.
	small := NewEventLog(4)
	small.Append(Event{})
	err := small.Events(ctx, 0, true, func(e Event) error {
		for range 10 {
			small.Append(Event{})
		}
		return nil
	})
	if !errors.Is(err, ErrSlowClient) {
		t.Errorf("fell behind: %v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, "root", quiet()); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(link, "root", quiet()); err == nil {
		t.Error("over a symbolic link")
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file was touched")
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 120)), "root", quiet()); err == nil {
		t.Error("a path that is too long")
	}

	path := filepath.Join(dir, "run", "p.sock")
	ln, err := Listen(path, "root", quiet())
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v %v", fi.Mode(), err)
	}
	if _, err := Listen(path, "root", quiet()); err == nil || !strings.Contains(err.Error(), "another picket daemon") {
		t.Errorf("twice: %v", err)
	}
	// A killed daemon leaves its socket behind: close without removing.
	if err := ln.(*socketListener).UnixListener.Close(); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	ln, err = Listen(path, "no-such-group-here", slog.New(slog.NewTextHandler(&buf, nil)))
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if strings.Count(buf.String(), "level=WARN") != 1 || !strings.Contains(buf.String(), "groupadd") {
		t.Errorf("a missing group is said once: %q", buf.String())
	}
	if es, _ := os.ReadDir(filepath.Dir(path)); len(es) != 1 {
		t.Errorf("left behind: %v", es)
	}
	ln.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("Close left the socket")
	}
}

func TestNoDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no.sock")
	_, err := NewClient(path).Status(context.Background())
	if ExitCode(err) != ExitUnavailable || !strings.Contains(err.Error(), "picket is not running on this node") || !strings.Contains(err.Error(), "systemctl start picket") {
		t.Errorf("%v", err)
	}
}

func TestDaemonDiesWhileAnswering(t *testing.T) {
	f := &fake{EventLog: NewEventLog(8),
		status:  func(context.Context) (Status, error) { panic(http.ErrAbortHandler) },
		operate: func(context.Context, Operation) (Answer, error) { panic(http.ErrAbortHandler) }}
	c := NewClient(serve(t, f, Options{PeerOf: as(0)}))
	var e *Error
	if _, err := c.Status(context.Background()); !errors.As(err, &e) || e.Class != ClassUnavailable {
		t.Errorf("status: %v", err)
	}
	if _, err := c.Operate(context.Background(), Operation{Kind: OpFence, Node: "n"}); !errors.As(err, &e) || e.Class != ClassUnknown {
		t.Errorf("operate: %v", err)
	}
}

// TestStatusFields pins the names of the status contract: they may grow and never go.
func TestStatusFields(t *testing.T) {
	tick := int64(1)
	b, err := json.Marshal(Status{Conditions: []Condition{{}}, Groups: []GroupStatus{{Resources: []ResourceStatus{{}}}},
		Nodes: []NodeStatus{{Links: []LinkStatus{{}}, Ping: &PingStatus{}, Watchdog: &WatchdogStatus{}, TickAgeMS: &tick,
			Fence: []FenceStatus{{Checked: time.Unix(1, 0)}}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(`cluster node leader term index quorum voters reachable ok state conditions code text action subject
		nodes name role mode incarnation boot_id links peer interface age_ms ping total watchdog device identity timeout_s armed admissible
		fence level checked groups wanted owner epoch reason resources id kind as_of source revision`) {
		if !bytes.Contains(b, []byte(`"`+name+`":`)) {
			t.Errorf("status has no field %q", name)
		}
	}
}
