package check

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// Oracle hears the agents of all nodes and writes down what they say, stamped on arrival.
type Oracle struct {
	ln  net.Listener
	rec *Recorder
	log *slog.Logger

	mu    sync.Mutex
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

// NewOracle listens on OracleSocket in the shared directory and creates its LockDir. A stale
// socket of an earlier run is replaced.
func NewOracle(shared string, rec *Recorder, log *slog.Logger) (*Oracle, error) {
	if err := os.MkdirAll(filepath.Join(shared, LockDir), 0o755); err != nil {
		return nil, fmt.Errorf("create the lock directory: %w", err)
	}
	path := filepath.Join(shared, OracleSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old oracle socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for agents: %w", err)
	}
	o := &Oracle{ln: ln, rec: rec, log: log, conns: make(map[net.Conn]bool)}
	o.wg.Add(1)
	go o.accept()
	return o, nil
}

// Close stops listening, drops every agent and waits for the readers to end.
func (o *Oracle) Close() error {
	err := o.ln.Close()
	o.mu.Lock()
	for c := range o.conns {
		c.Close()
	}
	o.conns = nil
	o.mu.Unlock()
	o.wg.Wait()
	return err
}

func (o *Oracle) accept() {
	defer o.wg.Done()
	for {
		c, err := o.ln.Accept()
		if err != nil {
			return // Close
		}
		o.mu.Lock()
		if o.conns == nil {
			o.mu.Unlock()
			c.Close()
			return
		}
		o.conns[c] = true
		o.wg.Add(1)
		o.mu.Unlock()
		go o.hear(c)
	}
}

func (o *Oracle) hear(c net.Conn) {
	defer o.wg.Done()
	defer c.Close()
	sc := bufio.NewScanner(c)
	for sc.Scan() {
		var r Record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			o.log.Warn("an agent said something that is no record", "error", err)
			break
		}
		if r.Stream != StreamWriter && r.Stream != StreamLock {
			o.log.Warn("an agent wrote to a stream that is not its own", "stream", r.Stream, "node", r.Node)
			continue
		}
		r.T = Now()
		o.rec.Add(r)
	}
	o.mu.Lock()
	delete(o.conns, c)
	o.mu.Unlock()
}
