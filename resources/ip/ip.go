// Package ip implements the service address: an IPv4 address that a node adds to one of its
// interfaces, announces by gratuitous ARP, watches and removes again. It speaks netlink
// (rtnetlink(7)) and AF_PACKET (packet(7)) itself and starts no program.
package ip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/picket-ha/picket/consensus/ids"
	"github.com/picket-ha/picket/resources"
)

// Defaults of Options.
const (
	// DefaultProbeWait is how long the duplicate-address probe waits for an answer. RFC 5227 1.1 asks
	// for 1 to 2 s and three probes, which no failover can afford.
	DefaultProbeWait = 40 * time.Millisecond
	// DefaultRefresh is the time between two periodic announcements.
	DefaultRefresh = 10 * time.Second
	// DefaultLabel is what follows the interface's name in the label of an address of ours.
	DefaultLabel = "picket"
)

// maxLabel is the longest address label in bytes (IFNAMSIZ less the final zero, netdevice(7)).
const maxLabel = 15

// Options describes one service address.
type Options struct {
	// ID names the resource in log lines.
	ID ids.Resource
	// Prefix is the address with its prefix length, for example 192.168.60.200/24. IPv4 only.
	Prefix netip.Prefix
	// Interface is the name of the interface that carries it, at most 15 bytes.
	Interface string
	// ProbeWait is how long a start waits for somebody who has the address already: zero means
	// DefaultProbeWait, less than zero no probe at all.
	ProbeWait time.Duration
	// Refresh is the time between periodic announcements: zero means DefaultRefresh, less than zero none.
	Refresh time.Duration
	// Logger receives what happens in the background; nil discards it.
	Logger *slog.Logger
	// Label follows INTERFACE: in the label of the address (ip-address(8)), DefaultLabel where empty.
	// A label that would be longer than 15 bytes in all is left away.
	Label string
}

// Address is a service address; it implements resources.Resource. All of its netlink and packet
// sockets live in the network namespace of the thread that called New.
type Address struct {
	opt   Options
	log   *slog.Logger
	space *space

	mu      sync.Mutex // serialises Start, Stop, Monitor and Close
	closed  bool
	foreign string         // interface on which Start found the address and refused to take it
	voice   *announcer     // nil while the address is not announced
	voiceMu sync.Mutex     // guards voice against Announce, which must not wait for a Stop
	closing sync.WaitGroup // goroutines of announcers, until their sockets are closed

	asked   *asking // the newest Prepare, taken by the next Start
	askedMu sync.Mutex
}

var (
	_ resources.Resource = (*Address)(nil)
	_ resources.Preparer = (*Address)(nil)
)

// New checks the options and opens the netlink socket; nothing is configured yet. Close frees it.
func New(opt Options) (*Address, error) {
	if err := check(&opt); err != nil {
		return nil, err
	}
	s, err := openSpace()
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", opt.Prefix.Addr(), err)
	}
	log := opt.Logger.With("resource", string(opt.ID), "address", opt.Prefix.String(), "interface", opt.Interface)
	return &Address{opt: opt, log: log, space: s}, nil
}

func check(opt *Options) error {
	p := opt.Prefix
	a := p.Addr()
	switch {
	case !p.IsValid():
		return errors.New("service address is missing or wrong: write it as 192.168.60.200/24")
	case !a.Is4():
		return fmt.Errorf("service address %s is not IPv4: only IPv4 addresses are supported", p)
	case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("service address %s is not an address of one host: use an unused address of the interface's network", p)
	case p.Bits() == 0:
		return fmt.Errorf("service address %s has prefix length 0: give the network's, for example /24", p)
	case opt.Interface == "" || len(opt.Interface) > maxLabel || strings.ContainsAny(opt.Interface, "/: \t\n"):
		return fmt.Errorf("interface %.40q of service address %s is not a name: use 1 to 15 bytes without '/', ':' or blanks", opt.Interface, p)
	}
	if opt.ProbeWait == 0 {
		opt.ProbeWait = DefaultProbeWait
	}
	if opt.Refresh == 0 {
		opt.Refresh = DefaultRefresh
	}
	if opt.Label == "" {
		opt.Label = DefaultLabel
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Describe names the resource: "address 192.168.60.200/24 on eth0".
func (a *Address) Describe() string {
	return fmt.Sprintf("address %s on %s", a.opt.Prefix, a.opt.Interface)
}

// Close ends the announcements and frees the sockets. It leaves the address where it is: a daemon
// that restarts adopts it. Later calls on the Address fail; a second Close does nothing.
func (a *Address) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	a.silence()
	a.closing.Wait()
	return a.space.close()
}

// Start adds the address to its interface and announces it. Before that it asks once by an ARP probe
// (RFC 5227 2.1.1) whether somebody has the address and waits ProbeWait for an answer; a conflict is
// an error that names the other's hardware address, and leaves nothing configured. An address that is
// on the interface already is taken, with a word in the log unless adopt is set. The first pair of
// announcements is sent before Start returns. The epoch plays no part: ARP carries no fencing token.
func (a *Address) Start(ctx context.Context, _ ids.Epoch, adopt bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errClosed
	}
	a.silence()
	l, err := a.link()
	if err != nil {
		return err
	}
	present, err := a.present(l, adopt)
	if err != nil {
		return err
	}
	v, err := newAnnouncer(a, l)
	if err != nil {
		return err
	}
	if !present {
		err = a.add(ctx, v, l)
	}
	if err == nil {
		if err = v.pair(); err != nil && !present {
			err = errors.Join(err, a.remove(l.index, a.opt.Prefix.Bits()))
		}
	}
	if err != nil {
		v.shut()
		return err
	}
	v.run()
	a.voiceMu.Lock()
	a.voice = v
	a.voiceMu.Unlock()
	return nil
}

// add probes for the address, unless Prepare has just done so, and adds it.
func (a *Address) add(ctx context.Context, v *announcer, l link) error {
	if !a.prepared(ctx) {
		if err := v.probe(ctx, a.opt.ProbeWait); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s was not added to %s: %w", a.opt.Prefix, l.name, err)
	}
	a.promote(l.name)
	return a.space.add(l, a.opt.Prefix, a.label())
}

// present says whether the address is on the interface already and may be taken as it is.
func (a *Address) present(l link, adopt bool) (bool, error) {
	found, err := a.space.find(a.opt.Prefix.Addr())
	if err != nil {
		return false, err
	}
	a.foreign = ""
	have := false
	for _, f := range found {
		switch {
		case f.index != l.index:
			if !a.ours(f) {
				a.foreign = f.name
			}
			return false, fmt.Errorf("%s is on %s of this node, but belongs on %s: remove it there, or correct the interface in the cluster file",
				a.opt.Prefix.Addr(), f.name, l.name)
		case f.bits != a.opt.Prefix.Bits():
			a.log.Warn("address is present with another prefix length and is set anew", "found", f.bits)
			if err := a.remove(f.index, f.bits); err != nil {
				return false, err
			}
		default:
			have = true
		}
	}
	if have && !adopt {
		a.log.Warn("address is on the interface already and is taken for ours")
	}
	return have, nil
}

// Stop ends the announcements, removes the address and verifies that it is on no interface of this
// node any more. An address or interface that does not exist is success. An address that carries our
// label on another interface is removed too; one that does not is an error, unless it is the one that
// Start found and refused: that was never ours to stop.
func (a *Address) Stop(_ context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errClosed
	}
	a.silence()
	found, err := a.space.find(a.opt.Prefix.Addr())
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.name != a.opt.Interface && !a.ours(f) {
			continue
		}
		if err := a.remove(f.index, f.bits); err != nil {
			return err
		}
	}
	if len(found) == 0 {
		return nil
	}
	left, err := a.space.find(a.opt.Prefix.Addr())
	if err != nil {
		return fmt.Errorf("removal could not be verified: %w", err)
	}
	for _, f := range left {
		if f.name == a.foreign && f.name != a.opt.Interface && !a.ours(f) {
			a.log.Warn("address is on another interface, where it was not set by picket, and is left there", "other", f.name)
			continue
		}
		return fmt.Errorf("%s is still on %s: remove it with: ip addr del %s/%d dev %s",
			a.opt.Prefix.Addr(), f.name, a.opt.Prefix.Addr(), f.bits, f.name)
	}
	return nil
}

// Monitor checks that the interface exists, is up and has carrier, and that the address is on it.
func (a *Address) Monitor(_ context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errClosed
	}
	l, err := a.link()
	if err != nil {
		return err
	}
	found, err := a.space.find(a.opt.Prefix.Addr())
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.index == l.index && f.bits == a.opt.Prefix.Bits() {
			return nil
		}
	}
	return fmt.Errorf("%s is no longer on %s", a.opt.Prefix, l.name)
}

// Announce sends a burst of announcements in the background, as after a partition healed or a link
// came back. It never blocks, and does nothing while the address is not started.
func (a *Address) Announce() {
	a.voiceMu.Lock()
	defer a.voiceMu.Unlock()
	if a.voice != nil {
		a.voice.again()
	}
}

// silence ends the announcements: nothing is sent after it returns.
func (a *Address) silence() {
	a.voiceMu.Lock()
	v := a.voice
	a.voice = nil
	a.voiceMu.Unlock()
	if v != nil {
		v.stop()
	}
}

// link looks the interface up and names what keeps it from serving.
func (a *Address) link() (link, error) {
	l, err := a.space.link(a.opt.Interface)
	switch {
	case err != nil:
		return link{}, err
	case !l.up:
		return link{}, fmt.Errorf("%s is down", l.name)
	case !l.carrier:
		return link{}, fmt.Errorf("%s has no carrier", l.name)
	}
	return l, nil
}

// remove deletes the address from one interface; that it was not there is success.
func (a *Address) remove(index, bits int) error {
	return a.space.remove(index, netip.PrefixFrom(a.opt.Prefix.Addr(), bits))
}

// label is the address label, or empty where it would not fit.
func (a *Address) label() string {
	if s := a.opt.Interface + ":" + a.opt.Label; len(s) <= maxLabel {
		return s
	}
	return ""
}

// ours reports whether an address carries a label that we set, on whichever interface.
func (a *Address) ours(f found) bool { return f.label == f.name+":"+a.opt.Label }

// promote makes the kernel keep the other addresses of a subnet when the first one is removed
// (promote_secondaries in Documentation/networking/ip-sysctl.rst): otherwise the removal of one
// service address takes others down with it. systemd sets it everywhere; a bare system does not.
func (a *Address) promote(name string) {
	switch changed, err := a.space.promote(name); {
	case err != nil:
		a.log.Warn("promote_secondaries could not be set: removing this address may remove others of its subnet", "error", err)
	case changed:
		a.log.Info("promote_secondaries was set, so that removing this address keeps others of its subnet")
	}
}

var errClosed = errors.New("the resource is closed")

// Stray is a service address found on this node.
type Stray struct {
	Prefix    netip.Prefix // with the prefix length it is configured with
	Interface string
}

// Strays lists which of the given addresses are on this node now, in the network namespace of the
// calling thread, whatever their prefix lengths: what a daemon that knows nothing of its past must
// remove before it announces itself. In the order of the kernel's list.
func Strays(prefixes []netip.Prefix) ([]Stray, error) {
	s, err := openSpace()
	if err != nil {
		return nil, err
	}
	defer s.close()
	want := make([]netip.Addr, 0, len(prefixes))
	for _, p := range prefixes {
		want = append(want, p.Addr())
	}
	list, err := s.find(want...)
	if err != nil {
		return nil, err
	}
	var out []Stray
	for _, f := range list {
		out = append(out, Stray{Prefix: netip.PrefixFrom(f.addr, f.bits), Interface: f.name})
	}
	return out, nil
}
