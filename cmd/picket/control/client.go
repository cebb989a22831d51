package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

// maxAnswer is the largest answer a client reads, in bytes.
const maxAnswer = 16 << 20

// Client speaks to the daemon's control socket. It is safe for concurrent use.
type Client struct {
	path string
	http *http.Client
}

// NewClient makes a client of the socket at path. It does not connect yet.
func NewClient(path string) *Client {
	d := net.Dialer{Timeout: 3 * time.Second}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		DisableKeepAlives: true,
	}}}
}

// Status asks for GET /v1/status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, "GET", "/v1/status", nil, &s)
}

// Why asks for GET /v1/why.
func (c *Client) Why(ctx context.Context, subject string) (e Explanation, err error) {
	return e, c.call(ctx, "GET", "/v1/why?subject="+url.QueryEscape(subject), nil, &e)
}

// FenceHistory asks for GET /v1/fence-history.
func (c *Client) FenceHistory(ctx context.Context) (list []FenceRecord, err error) {
	return list, c.call(ctx, "GET", "/v1/fence-history", nil, &list)
}

// Config asks for GET /v1/config.
func (c *Client) Config(ctx context.Context) (t ConfigText, err error) {
	return t, c.call(ctx, "GET", "/v1/config", nil, &t)
}

// Operate posts an operation.
func (c *Client) Operate(ctx context.Context, op Operation) (a Answer, err error) {
	if err := op.Check(); err != nil {
		return a, err
	}
	return a, c.call(ctx, "POST", "/v1/operate", op, &a)
}

// Events streams events to emit until the server ends, ctx ends or emit fails.
func (c *Client) Events(ctx context.Context, since uint64, follow bool, emit func(Event) error) error {
	path := "/v1/events?since=" + strconv.FormatUint(since, 10)
	if follow {
		path += "&follow=1"
	}
	res, err := c.do(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var e Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return fmt.Errorf("an event of the daemon could not be read: %w", err)
		}
		if err := emit(e); err != nil {
			return err
		}
	}
	switch err := sc.Err(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return Unavailable("", "the daemon ended the event stream", "it may be stopping, or this reader was too slow")
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	res, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	// Unknown fields are fine here: a newer daemon may say more.
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(into); err != nil {
		return c.broken(ctx, method, err)
	}
	return nil
}

// broken describes a connection that ended in the middle of a request.
func (c *Client) broken(ctx context.Context, method string, err error) error {
	if method == "GET" {
		return Unavailable("", fmt.Sprintf("the daemon did not answer: %v", cause(ctx, err)), "is it stopping? look at: systemctl status picket")
	}
	return &Error{Class: ClassUnknown, Text: fmt.Sprintf("the daemon took the request and did not answer: %v", cause(ctx, err)),
		Action: "it may still happen: look at picket status before you repeat it"}
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// do sends a request and returns an answer of status 200, or the error the daemon gave.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://picket"+path, rd)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		if e := c.dialError(err); e != nil {
			return nil, e
		}
		return nil, c.broken(ctx, method, err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var w wireError
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&w); err != nil || w.Error == nil {
		return nil, &Error{Class: ClassInternal, Text: fmt.Sprintf("the daemon answered %s and nothing readable", res.Status)}
	}
	return nil, w.Error
}

// dialError says why there is no connection, or nil when there was one.
func (c *Client) dialError(err error) *Error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return nil
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return Unavailable("", "picket is not running on this node (nobody answers on "+c.path+")", "start it: systemctl start picket")
	case errors.Is(err, fs.ErrPermission):
		return Refused("", "you may not open "+c.path, "become root, or a member of the group that owns it: ls -l "+c.path)
	}
	return Unavailable("", fmt.Sprintf("the control socket %s cannot be reached: %v", c.path, op.Err), "look at: systemctl status picket")
}
