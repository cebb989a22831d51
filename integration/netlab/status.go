package netlab

import "github.com/picket-ha/picket/integration/bmcsim"

// Status is what the lab itself knows. It says nothing about the cluster.
type Status struct {
	Dir     string       `json:"dir"`
	Nodes   []NodeStatus `json:"nodes"`
	VIPs    []string     `json:"vips,omitempty"`
	Records string       `json:"records"` // directory of the observers' files
	UserNS  bool         `json:"user_namespace"`
}

// NodeStatus is one node of the lab.
type NodeStatus struct {
	Name    string `json:"name"`
	Witness bool   `json:"witness,omitempty"`
	// Power is on, off or unplugged.
	Power string `json:"power"`
	// Boot is the boot id; empty when the node is off.
	Boot string `json:"boot,omitempty"`
	// Daemon is running, paused or stopped; DaemonPID is its pid on the node, 0 when stopped;
	// Starts counts how often it was started.
	Daemon    string `json:"daemon"`
	DaemonPID int    `json:"daemon_pid,omitempty"`
	Starts    int    `json:"starts"`
	Cuts      []Cut  `json:"cuts,omitempty"`
	// BMC is the address of its BMC, Faults what is wrong with it (nil: it has no power).
	BMC    string         `json:"bmc"`
	Faults *bmcsim.Faults `json:"faults,omitempty"`
	UUID   string         `json:"uuid"`
	Log    string         `json:"log"` // the daemon's output
}

func (m *machine) status() NodeStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := NodeStatus{
		Name: m.name, Witness: m.name == m.w.opt.Witness, Power: "off", Daemon: daemonNone, Starts: m.starts,
		BMC: Addr(m.index, LinkBMC).String(), UUID: UUID(m.index), Log: m.dir + "/daemon.log",
	}
	switch {
	case m.life != nil:
		s.Power, s.Boot = "on", m.life.boot
	case !m.plugged:
		s.Power = "unplugged"
	}
	if m.daemon != nil {
		s.Daemon, s.DaemonPID = daemonRunning, m.daemon.pid
		if m.paused {
			s.Daemon = daemonPaused
		}
	}
	if m.bmc != nil {
		f := m.bmc.sim.Faults()
		s.Faults = &f
	}
	s.Cuts = m.w.sw.cutsOf(m.name)
	return s
}
