package netlab

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/picket-ha/picket/integration/check"
)

const nodePath = nodeBin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Daemon states.
const (
	daemonNone    = "stopped"
	daemonRunning = "running"
	daemonPaused  = "paused"
)

// machine is one node, or the client: what stays when the power goes.
type machine struct {
	name  string
	index int // -1 for the client
	dir   string
	w     *world

	// power serialises switching on and off. What it takes long to change is published under mu.
	power sync.Mutex
	// starting serialises starts of the daemon.
	starting sync.Mutex

	mu      sync.Mutex
	life    *life // nil when off
	dying   bool  // the life is being ended by us, not by itself
	plugged bool
	enabled bool // the daemon is started at boot
	daemon  *task
	paused  bool
	wanted  bool // the daemon is restarted when it ends by itself
	starts  int
	bmc     *bmcPort
}

// world is what machines share.
type world struct {
	opt Options
	dir string // the supervisor's working directory, absolute
	sh  *shell
	sw  *netswitch
	rec *check.Recorder
	log *slog.Logger
}

func (m *machine) cables() []cable {
	if m.index < 0 {
		return []cable{{LinkPublic, LinkPublic, "02:00:00:00:60:fa", clientAddr().String()}}
	}
	var out []cable
	for _, l := range []string{LinkPublic, LinkHeartbeat, LinkMgmt} {
		out = append(out, cable{l, l, MAC(m.index, l), Addr(m.index, l).String()})
	}
	return out
}

// on reports whether anything of the machine may still run.
func (m *machine) on() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life != nil
}

// current returns the running life or an error that says what to do.
func (m *machine) current() (*life, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == nil {
		return nil, fmt.Errorf("%s is off; switch it on with: picket-lab power %s on", m.name, m.name)
	}
	return m.life, nil
}

// prepare lays out the directories that survive power cuts.
func (m *machine) prepare(secrets map[string]string) error {
	for _, d := range []string{"etc", "lib"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o755); err != nil {
			return fmt.Errorf("create the state of %s: %w", m.name, err)
		}
	}
	for name, text := range secrets {
		path := filepath.Join(m.dir, "etc", name)
		if _, err := os.Stat(path); err == nil {
			continue // kept from an earlier lab in this directory
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// powerOn boots the machine if it is off: a new boot id, an empty /run, the same state. source
// says who asked ("lab", "bmc" or "self").
func (m *machine) powerOn(source string) error {
	m.power.Lock()
	defer m.power.Unlock()
	m.mu.Lock()
	on, plugged := m.life != nil, m.plugged
	m.mu.Unlock()
	if on {
		return nil
	}
	if !plugged {
		return fmt.Errorf("%s has no power; plug it in with: picket-lab plug %s", m.name, m.name)
	}
	return m.boot(source)
}

func (m *machine) boot(source string) error {
	started := check.Now()
	boot := newUUID()
	bootFile := filepath.Join(m.dir, "boot_id")
	if err := os.WriteFile(bootFile, []byte(boot+"\n"), 0o644); err != nil {
		return fmt.Errorf("write the boot id of %s: %w", m.name, err)
	}
	console, err := os.OpenFile(filepath.Join(m.dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the console of %s: %w", m.name, err)
	}
	defer console.Close()
	l, err := begin(m.name, boot, m.w.dir, m.initConfig(bootFile), console)
	if err != nil {
		return err
	}
	err = m.w.sw.plugIn(m.name, l.ns, m.cables())
	if err == nil {
		err = l.await()
	}
	if err != nil {
		l.kill()
		return errors.Join(err, m.pull())
	}
	m.mu.Lock()
	m.life, m.dying = l, false
	m.mu.Unlock()
	if m.index >= 0 {
		m.w.rec.Add(check.Record{Stream: check.StreamPower, Kind: check.KindBoot, Node: m.name, Boot: boot, From: started, Source: source})
		if err := m.startAgent(l); err != nil {
			return err
		}
		time.AfterFunc(m.w.opt.BootDelay, func() { m.bootDaemon(l) })
	}
	go m.watch(l)
	return nil
}

func (m *machine) initConfig(bootFile string) initConfig {
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for i, n := range m.w.opt.Nodes {
		hosts += fmt.Sprintf("%s %s\n", Addr(i, LinkPublic), n)
	}
	uuid := newUUID()
	if m.index >= 0 {
		uuid = UUID(m.index)
	}
	return initConfig{Hostname: m.name, Root: rootConfig{
		Etc: filepath.Join(m.dir, "etc"), Lib: filepath.Join(m.dir, "lib"), BootID: bootFile,
		Shared: filepath.Join(m.w.dir, "shared"), Bin: filepath.Join(m.w.dir, "bin"),
		EtcFiles:  map[string]string{"hostname": m.name + "\n", "hosts": hosts},
		MachineID: strings.ReplaceAll(uuid, "-", ""), UUID: uuid,
	}}
}

func (m *machine) pull() error {
	var links []string
	for _, c := range m.cables() {
		links = append(links, c.link)
	}
	return m.w.sw.pull(m.name, links...)
}

// powerOff ends the machine if it is on, and returns when every process of it has been reaped
// and its cards are gone.
func (m *machine) powerOff(source string) error {
	m.power.Lock()
	defer m.power.Unlock()
	m.mu.Lock()
	l := m.life
	if l != nil {
		m.dying = true
	}
	m.mu.Unlock()
	if l == nil {
		return nil
	}
	l.kill()
	// The kernel of a namespace answers ARP and ICMP without any process: the node is off when
	// its cards are gone too, not before.
	err := m.pull()
	m.w.rec.Add(check.Record{Stream: check.StreamPower, Kind: check.KindOff, Node: m.name, Boot: l.boot, Source: source})
	m.buried()
	return err
}

// buried publishes that nothing of the machine runs any more.
func (m *machine) buried() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life, m.daemon, m.paused = nil, nil, false
}

// watch notices when a machine ends itself. reboot(2) in a pid namespace ends its pid 1: with
// SIGHUP when it asked to boot again, with SIGINT when it asked to stay off.
func (m *machine) watch(l *life) {
	<-l.dead
	m.mu.Lock()
	ours := m.dying || m.life != l
	m.mu.Unlock()
	if ours {
		return
	}
	m.power.Lock()
	defer m.power.Unlock()
	m.mu.Lock()
	ours = m.dying || m.life != l
	m.mu.Unlock()
	if ours {
		return
	}
	again := l.status.Signaled() && l.status.Signal() == unix.SIGHUP
	kind := check.KindHalt
	if again {
		kind = check.KindReset
	}
	l.kill()
	err := m.pull()
	m.w.rec.Add(check.Record{Stream: check.StreamPower, Kind: kind, Node: m.name, Boot: l.boot, Source: "self"})
	m.buried()
	if err == nil && again {
		err = m.boot("self")
	}
	if err != nil {
		m.w.log.Error("a node ended itself and could not be booted again", "node", m.name, "error", err)
	}
}

func (m *machine) env() []string {
	e := []string{"PATH=" + nodePath, "HOME=/run", "LANG=C.UTF-8", "PICKET_LAB_NODE=" + m.name}
	if m.index >= 0 {
		e = append(e, "PICKET_MACHINE_UUID="+UUID(m.index), "PICKET_MACHINE_UUID_FILE="+NodeUUIDFile)
	}
	return append(e, m.w.opt.Env...)
}

// spawn runs a program on the node with its output appended to a log file of the node.
func (m *machine) spawn(l *life, req initRequest, logName string) (*task, error) {
	null, err := os.Open("/dev/null")
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, err := os.OpenFile(filepath.Join(m.dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", m.name, err)
	}
	defer out.Close()
	return l.run(req, []*os.File{null, out, out})
}

// startAgent starts the address agent, a child of the node's pid 1 that dies with the node.
func (m *machine) startAgent(l *life) error {
	cfg := check.AgentConfig{Node: m.name, Boot: l.boot, Shared: nodeShared}
	for _, k := range []string{LinkPublic, LinkHeartbeat, LinkMgmt} {
		cfg.Own = append(cfg.Own, Addr(m.index, k))
	}
	b, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("encode the agent's configuration: %w", err)
	}
	req := initRequest{Self: true, Argv: []string{"picket-lab-agent", argAgent, string(b), m.w.dir}, Env: []string{"PATH=" + nodePath}}
	t, err := m.spawn(l, req, "console.log")
	if err != nil {
		return fmt.Errorf("start the agent on %s: %w", m.name, err)
	}
	go func() {
		<-t.done
		m.mu.Lock()
		alive := m.life == l && !m.dying
		m.mu.Unlock()
		if alive {
			m.w.log.Warn("the agent ended while its node lives: the writer and lock oracles are blind there", "node", m.name, "code", t.code)
		}
	}()
	return nil
}

// newUUID makes a random UUID (RFC 9562 section 5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
