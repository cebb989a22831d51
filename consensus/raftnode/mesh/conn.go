package mesh

import (
	"crypto/tls"
	"net"
	"sync"

	"github.com/picket-ha/picket/consensus/ids"
)

// Conn is one authenticated connection of the mesh.
type Conn struct {
	*tls.Conn
	raw  *net.TCPConn
	mesh *Mesh
	peer ids.Node // "" on a join connection
	link string
	once sync.Once
}

// Peer is the node that the handshake proved; "" where a joining node shows no certificate.
func (c *Conn) Peer() ids.Node { return c.peer }

// Link is the name of the local link that the connection runs over.
func (c *Conn) Link() string { return c.link }

// Close closes the socket at once. No TLS close alert is sent: sending it may block for seconds on a
// dead link, and both protocols on top know the length of what they read.
func (c *Conn) Close() error {
	var err error = net.ErrClosed
	c.once.Do(func() {
		c.mesh.forget(c)
		err = c.raw.Close()
	})
	return err
}

// kill closes the socket and throws away what it has not sent, so that readers and writers on both
// sides fail now.
func (c *Conn) kill() {
	_ = c.raw.SetLinger(0) // fails only on a socket that is closed already
	_ = c.Close()
}

// PeerOf returns the peer and the local link of a connection that this package made.
func PeerOf(c net.Conn) (peer ids.Node, link string, ok bool) {
	mc, ok := c.(*Conn)
	if !ok {
		return "", "", false
	}
	return mc.peer, mc.link, true
}

// streams is the listener of one protocol.
type streams struct {
	alpn string
	addr net.Addr
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
	quit func(*streams)
}

var _ net.Listener = (*streams)(nil)

// Accept returns the next authenticated connection, or net.ErrClosed.
func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.ch:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Close stops accepting this protocol; connections that were accepted live on.
func (s *streams) Close() error {
	s.once.Do(func() {
		close(s.done)
		s.quit(s)
		for {
			select {
			case c := <-s.ch:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return nil
}

// Addr is the first link's address; a mesh listens on several.
func (s *streams) Addr() net.Addr { return s.addr }
