package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// Peer is who is at the other end of the control socket.
type Peer struct {
	// UID is the peer's effective uid when it connected, as the daemon's user namespace sees it; a uid
	// outside the namespace's map reads as the overflow uid, 65534 (user_namespaces(7)), and is nobody.
	UID uint32
	// Known is false when the connection carries no credentials: it may read, as all who can open the
	// socket, and change nothing.
	Known bool
}

// MayChange reports whether the peer may change the cluster: uid 0 alone.
func (p Peer) MayChange() bool { return p.Known && p.UID == 0 }

// String is NAME(uid N), for the audit. uid 65534 is shown as unmapped: it is nobody's name.
func (p Peer) String() string {
	switch {
	case !p.Known:
		return "unknown"
	case p.UID == 0:
		return "root(uid 0)"
	case p.UID == overflowUID:
		return "unmapped(uid 65534)"
	}
	name := "user"
	if u, err := user.LookupId(strconv.FormatUint(uint64(p.UID), 10)); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s(uid %d)", name, p.UID)
}

const overflowUID = 65534

type peerKey struct{}

// withPeer reads the credentials once per connection (http.Server.ConnContext).
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p, err := peerOf(c)
	if err != nil {
		p = Peer{}
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerFrom(ctx context.Context) Peer {
	p, _ := ctx.Value(peerKey{}).(Peer)
	return p
}

func peerOf(c net.Conn) (Peer, error) {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if credErr != nil {
		return Peer{}, credErr
	}
	return Peer{UID: cred.Uid, Known: true}, nil
}
