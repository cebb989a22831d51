package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"net/http/httptrace"

	"github.com/picket-ha/picket/consensus/raftnode/pki"
)

const (
	// MaxJoinBody is the largest join request or answer, in bytes.
	MaxJoinBody = 64 << 10
	joinPath    = "/join"
	joinSlots   = 4
	joinBurst   = 10
	joinEvery   = 200 * time.Millisecond // one more request is allowed after each of these
	joinTimeout = 15 * time.Second
	joinDial    = 3 * time.Second
	maxJoinTo   = 16 // addresses tried by JoinCall
)

// JoinHandler answers one join request of a node that is not yet a member: nobody has authenticated
// it but the secret in its body. A *RemoteError reaches the joining node as it is.
type JoinHandler func(ctx context.Context, remote netip.AddrPort, body []byte) ([]byte, error)

// ServeJoin answers join requests with h: at most 4 at once and 5 a second (10 in a burst), so that
// guessing a secret is hopeless and a flood costs little. A handler has 15 s.
func ServeJoin(m *Mesh, h JoinHandler) (*Server, error) {
	slots := make(chan struct{}, joinSlots)
	rate := &bucket{tokens: joinBurst, last: time.Now()}
	return m.serve(ALPNJoin, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _ := r.Context().Value(connKey{}).(*Conn)
		if conn == nil || r.URL.Path != joinPath || r.Method != http.MethodPost {
			http.Error(w, "not a picket join", http.StatusNotFound)
			return
		}
		w.Header().Set("Connection", "close")
		busy := &RemoteError{CodeBusy, "too many join requests at once: wait a moment and try again"}
		if !rate.take(time.Now()) {
			answer(w, nil, busy, MaxJoinBody)
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			answer(w, nil, busy, MaxJoinBody)
			return
		}
		body, err := readBody(w, r, MaxJoinBody)
		if err != nil {
			answer(w, nil, err, MaxJoinBody)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), joinTimeout)
		defer cancel()
		out, err := h(ctx, addrOf(conn.RemoteAddr()), body)
		answer(w, out, err, MaxJoinBody)
	}), 5*time.Second)
}

// bucket is a token bucket: joinBurst at most, one more every joinEvery.
type bucket struct {
	mu     sync.Mutex
	tokens int
	last   time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := int(now.Sub(b.last) / joinEvery); n > 0 {
		b.tokens = min(joinBurst, b.tokens+n)
		b.last = b.last.Add(time.Duration(n) * joinEvery)
	}
	if b.tokens == 0 {
		return false
	}
	b.tokens--
	return true
}

// Errors of JoinCall; test with errors.Is. A wrong cluster is pki.ErrWrongCluster.
var (
	// ErrUnreachable means no address accepted a connection.
	ErrUnreachable = errors.New("no node of the cluster can be reached")
	// ErrNotPicket means something answered that is not a picket node.
	ErrNotPicket = errors.New("it is not a picket node")
	// ErrJoinUnknown means the request was sent and no answer came: the join may have been carried out.
	ErrJoinUnknown = errors.New("the connection broke before the answer came")
)

// JoinCall sends a join request to the first of the addresses that proves to be a node of the cluster
// whose CA the token pins, and returns the answer. Each failure is one sentence: nothing reachable
// (ErrUnreachable), not picket (ErrNotPicket), another cluster (pki.ErrWrongCluster), an answer that
// never came (ErrJoinUnknown; not tried again elsewhere, a token works once), or what the cluster
// said (*RemoteError).
func JoinCall(ctx context.Context, addrs []netip.AddrPort, token pki.Token, body []byte) ([]byte, error) {
	if len(addrs) == 0 || len(addrs) > maxJoinTo {
		return nil, fmt.Errorf("join: %d addresses given: 1 to %d are allowed", len(addrs), maxJoinTo)
	}
	var odd error
	var silent []string
	for _, a := range addrs {
		conn, err := joinConn(ctx, a, token.CA)
		switch {
		case err == nil:
			return joinSend(ctx, conn, a, body)
		case errors.Is(err, pki.ErrWrongCluster):
			return nil, fmt.Errorf("join %s: %w: use a token made by this cluster, or the address of the right one", a, err)
		case errors.Is(err, ErrNotPicket):
			odd = fmt.Errorf("join %s: %w", a, err)
		default:
			silent = append(silent, err.Error())
		}
	}
	if odd != nil {
		return nil, odd
	}
	return nil, fmt.Errorf("join: %w (%s): check the address, that picket runs there, and that no firewall drops TCP port %d",
		ErrUnreachable, strings.Join(silent, "; "), addrs[0].Port())
}

func joinConn(ctx context.Context, to netip.AddrPort, pin pki.Fingerprint) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, joinDial)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	t := tls.Client(raw, pki.PinConfig(pin, ALPNJoin))
	err = t.HandshakeContext(ctx)
	if err == nil {
		return t, nil
	}
	raw.Close()
	if errors.Is(err, pki.ErrWrongCluster) {
		return nil, err
	}
	return nil, fmt.Errorf("%w, or it is one that is too busy to answer: %w", ErrNotPicket, err)
}

// joinSend makes the one request of a join connection.
func joinSend(ctx context.Context, conn *tls.Conn, to netip.AddrPort, body []byte) ([]byte, error) {
	defer conn.NetConn().Close()
	ctx, cancel := context.WithTimeout(ctx, 2*joinTimeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://picket"+joinPath, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("join %s: %w", to, err)
	}
	used := false
	tr := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 8 << 10,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, errors.New("a join is sent once")
			}
			used = true
			return conn, nil
		}}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	var out []byte
	if err == nil {
		out, err = readAnswer(resp, MaxJoinBody)
	}
	var re *RemoteError
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &re):
		return nil, err
	case sent.Load():
		return nil, fmt.Errorf("join %s: %w: %w: look at picket status there before you try again", to, ErrJoinUnknown, err)
	}
	return nil, fmt.Errorf("join %s: %w", to, err)
}
