package netlab

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/check"
)

// bootDaemon starts the daemon some time after power-on, if the same boot still lives.
func (m *machine) bootDaemon(l *life) {
	m.mu.Lock()
	want := m.enabled && m.life == l && m.daemon == nil
	m.mu.Unlock()
	if !want {
		return
	}
	err := m.startDaemon()
	m.mu.Lock()
	alive := m.life == l && !m.dying
	m.mu.Unlock()
	if err != nil && alive {
		m.w.log.Error("the daemon did not start at boot", "node", m.name, "error", err)
	}
}

// startDaemon starts the node's daemon now and at every later boot. It is fine when it runs.
func (m *machine) startDaemon() error {
	l, err := m.current()
	if err != nil {
		return err
	}
	m.starting.Lock()
	defer m.starting.Unlock()
	m.mu.Lock()
	m.enabled = true
	running := m.daemon != nil
	m.mu.Unlock()
	if running {
		return nil
	}
	t, err := m.spawn(l, initRequest{Argv: m.w.opt.Daemon, Env: m.env()}, "daemon.log")
	if err != nil {
		return fmt.Errorf("start the daemon on %s: %w", m.name, err)
	}
	m.mu.Lock()
	m.daemon, m.paused, m.wanted = t, false, true
	m.starts++
	m.mu.Unlock()
	go m.watchDaemon(l, t)
	return nil
}

func (m *machine) watchDaemon(l *life, t *task) {
	<-t.done
	m.mu.Lock()
	if m.daemon == t {
		m.daemon, m.paused = nil, false
	}
	again := m.wanted && m.enabled && m.life == l && !m.dying && m.w.opt.RestartDaemon > 0
	m.mu.Unlock()
	m.w.log.Info("the daemon ended", "node", m.name, "code", t.code)
	if again {
		time.AfterFunc(m.w.opt.RestartDaemon, func() { m.bootDaemon(l) })
	}
}

// signalDaemon sends a signal to the daemon, by its pid on the node. SIGKILL and SIGTERM return
// when it ended (SIGTERM: within stopTimeout).
func (m *machine) signalDaemon(sig unix.Signal) error {
	const stopTimeout = 30 * time.Second
	l, err := m.current()
	if err != nil {
		return err
	}
	m.mu.Lock()
	t := m.daemon
	if t != nil && sig == unix.SIGTERM {
		m.wanted, m.enabled = false, false
	}
	m.mu.Unlock()
	if t == nil {
		return fmt.Errorf("no daemon runs on %s; start it with: picket-lab start %s", m.name, m.name)
	}
	m.fault(unix.SignalName(sig) + " to the daemon")
	if err := l.signal(t.pid, sig); err != nil {
		return err
	}
	switch sig {
	case unix.SIGSTOP, unix.SIGCONT:
		m.mu.Lock()
		m.paused = sig == unix.SIGSTOP && m.daemon == t
		m.mu.Unlock()
		if sig == unix.SIGSTOP {
			return stopped(l, t)
		}
		return nil
	}
	select {
	case <-t.done:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("the daemon on %s did not end within %s of %s", m.name, stopTimeout, unix.SignalName(sig))
	}
}

// stopped waits until every thread of a program has stopped: a signal is only an announcement.
func stopped(l *life, t *task) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		r, err := l.call(initRequest{Op: opList})
		if err != nil {
			return err
		}
		for _, p := range r.Procs {
			if p.PID == t.pid && p.State == "T" {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon on %s did not stop", l.name)
		}
		time.Sleep(time.Millisecond)
	}
}

// fault writes down what the harness does to the machine on purpose.
func (m *machine) fault(text string) {
	m.w.rec.Add(check.Record{Stream: check.StreamFault, Kind: "inject", Node: m.name, Text: text})
}
