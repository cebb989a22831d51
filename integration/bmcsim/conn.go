package bmcsim

import (
	"net"
	"sync"
	"time"
)

// payloadOpenSession is the payload type of an RMCP+ Open Session Request (IPMI 2.0 table 13-16).
const payloadOpenSession = 0x10

// conn stands between the socket and go-ipmi's server and plays the faults of the wire.
type conn struct {
	net.PacketConn
	b      *BMC
	closed chan struct{}
	once   sync.Once
}

func newConn(pc net.PacketConn, b *BMC) *conn {
	return &conn{PacketConn: pc, b: b, closed: make(chan struct{})}
}

// ReadFrom returns the next packet that the BMC is alive to see. After Close it returns
// net.ErrClosed; other errors are slowed down, because the server retries them at once.
func (c *conn) ReadFrom(buf []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.PacketConn.ReadFrom(buf)
		if err != nil {
			select {
			case <-c.closed:
				return 0, nil, net.ErrClosed
			case <-time.After(10 * time.Millisecond):
				return 0, nil, err
			}
		}
		if c.b.Faults().Dead {
			continue
		}
		if n > 5 && buf[3]&0x1f == 7 && buf[4] == 6 && buf[5]&0x3f == payloadOpenSession {
			c.b.makeRoom()
		}
		return n, addr, nil
	}
}

// WriteTo sends an answer, late or not at all when a fault says so. It claims success either way: a
// BMC does not know what the network loses.
func (c *conn) WriteTo(p []byte, addr net.Addr) (int, error) {
	c.b.mu.Lock()
	f := c.b.faults
	if f.DropResponses > 0 {
		c.b.faults.DropResponses--
	}
	c.b.mu.Unlock()
	if f.Slow > 0 {
		t := time.NewTimer(f.Slow)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	if f.DropResponses > 0 || f.Dead || c.b.Faults().Dead {
		return len(p), nil
	}
	return c.PacketConn.WriteTo(p, addr)
}

// Close closes the socket once.
func (c *conn) Close() error {
	var err error
	c.once.Do(func() {
		close(c.closed)
		err = c.PacketConn.Close()
	})
	return err
}
