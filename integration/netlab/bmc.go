package netlab

import (
	"errors"
	"fmt"
	"net"

	"github.com/picket-ha/picket/integration/bmcsim"
	"github.com/picket-ha/picket/integration/check"
)

// bmcPort is a node's BMC: its own namespace with one card on the management network, so that a
// pulled cord leaves nothing there that could answer, not even with a refusal.
type bmcPort struct {
	ns  *netns
	sim *bmcsim.BMC
}

// chassis is the machine as its BMC sees it.
type chassis struct{ m *machine }

// On reports whether anything of the node may still run.
func (c chassis) On() bool { return c.m.on() }

// PowerOff ends the node and returns when all of it has been reaped.
func (c chassis) PowerOff() error { return c.m.powerOff("bmc") }

// PowerOn boots the node.
func (c chassis) PowerOn() error { return c.m.powerOn("bmc") }

// plugBMC brings the node's BMC to life.
func (m *machine) plugBMC() error {
	addr := Addr(m.index, LinkBMC)
	ns, err := newNetns(m.name + "-bmc")
	if err != nil {
		return err
	}
	err = m.w.sw.plugIn(m.name, ns, []cable{{LinkBMC, "eth0", MAC(m.index, LinkBMC), addr.String()}})
	if err != nil {
		ns.close()
		return fmt.Errorf("plug in the BMC of %s: %w", m.name, err)
	}
	var conn net.PacketConn
	err = ns.do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: addr.AsSlice(), Port: 623})
		return err
	})
	if err != nil {
		ns.close()
		return fmt.Errorf("open the BMC port of %s: %w", m.name, err)
	}
	sim, err := bmcsim.New(bmcsim.Options{
		Conn: conn, User: BMCUser, Password: BMCPassword, GUID: UUID(m.index), Chassis: chassis{m},
		Logger: m.w.log.With("bmc", m.name), Record: m.recordBMC,
	})
	if err != nil {
		ns.close()
		return fmt.Errorf("start the BMC of %s: %w", m.name, err)
	}
	m.mu.Lock()
	m.bmc = &bmcPort{ns: ns, sim: sim}
	m.mu.Unlock()
	return nil
}

func (m *machine) recordBMC(e bmcsim.Event) {
	text := string(e.Kind)
	if e.Op != "" {
		text += " " + e.Op
	}
	if e.Lied {
		text += " (answered OK and did nothing)"
	}
	if e.Err != "" {
		text += ": " + e.Err
	}
	m.w.rec.Add(check.Record{Stream: check.StreamBMC, Kind: string(e.Kind), Node: m.name, Source: e.From, Text: text})
}

// unplug pulls the cord: node and BMC die together.
func (m *machine) unplug() error {
	m.mu.Lock()
	b := m.bmc
	m.plugged, m.bmc = false, nil
	m.mu.Unlock()
	var errs []error
	if b != nil {
		b.sim.SetFaults(bmcsim.Faults{Dead: true}) // dark from here on, whatever is in flight
		errs = append(errs, m.w.sw.pull(m.name, LinkBMC))
	}
	errs = append(errs, m.powerOff("lab"))
	if b != nil {
		// Only now: Close waits for a chassis call that may be running.
		errs = append(errs, b.sim.Close())
		b.ns.close()
	}
	return errors.Join(errs...)
}

// plug puts the cord back: the BMC comes up, and the node with it (power restore policy
// "always on").
func (m *machine) plug() error {
	m.mu.Lock()
	was := m.plugged
	m.plugged = true
	m.mu.Unlock()
	if !was {
		if err := m.plugBMC(); err != nil {
			return err
		}
	}
	return m.powerOn("lab")
}

// setFaults switches the faults of the node's BMC.
func (m *machine) setFaults(f bmcsim.Faults) error {
	m.mu.Lock()
	b := m.bmc
	m.mu.Unlock()
	if b == nil {
		return fmt.Errorf("the BMC of %s has no power; plug it in with: picket-lab plug %s", m.name, m.name)
	}
	b.sim.SetFaults(f)
	return nil
}
