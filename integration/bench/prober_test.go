package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/picket-ha/picket/integration/check"
	"github.com/picket-ha/picket/integration/netlab"
)

const (
	// echoEvery is the prober's interval: the resolution of every outage here.
	echoEvery = 2 * time.Millisecond
	// echoID tells this prober from the lab's own in the client's namespace.
	echoID = 0x6b62
	// clientDir is the prober's directory as the client sees it.
	clientDir = "/etc/picket/bench"
)

// echoProgram runs on the lab's client: bench-echo ADDRESS. It ends with the lab.
func echoProgram(args []string) error {
	rec, err := check.NewRecorder(clientDir)
	if err != nil {
		return err
	}
	p, err := check.NewEchoProber(netip.MustParseAddr(args[1]), echoID, rec)
	if err != nil {
		return err
	}
	return p.Run(context.Background(), echoEvery)
}

// onMachine runs this test binary as a program on a machine of the lab, until b ends. The binary goes
// there as standard input, since a machine sees nothing of the place where go test builds.
func onMachine(b *testing.B, lab *netlab.Lab, machine string, args ...string) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	errs, err := os.Create(filepath.Join(lab.Dir(), machine+"-"+args[0]+".log"))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = lab.Exec(ctx, machine, append([]string{"/proc/self/fd/0"}, args...), nil, [3]*os.File{self, errs, errs}, nil)
		self.Close()
		errs.Close()
	}()
	b.Cleanup(func() { stop(); <-done })
	return nil
}

// prober reads what echoProgram writes.
type prober struct {
	tail    tail
	replies []int64 // harness times, ascending
}

func startProber(b *testing.B, lab *netlab.Lab, vip string) (*prober, error) {
	p := &prober{tail: tail{path: filepath.Join(lab.Dir(), "nodes", netlab.Client, "etc", "bench", "echo.jsonl")}}
	if err := onMachine(b, lab, netlab.Client, "bench-echo", vip); err != nil {
		return nil, err
	}
	return p, nil
}

// read takes in what was written since.
func (p *prober) read() error {
	return p.tail.lines(func(line []byte) error {
		var r check.Record
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("%s: %w", p.tail.path, err)
		}
		if r.Kind == check.KindReply || r.Kind == check.KindTally {
			t := r.T
			if r.Kind == check.KindTally {
				t = -t
			}
			p.replies = append(p.replies, t)
		}
		return nil
	})
}

// gap returns the longest time without an answer in [from, to], once the records reach past to.
func (p *prober) gap(ctx context.Context, from, to int64) (check.Gap, error) {
	g := check.Gap{Start: from, End: from}
	err := until(ctx, 10*time.Second, func() (bool, error) {
		if err := p.read(); err != nil {
			return false, err
		}
		n := len(p.replies)
		return n > 0 && max(p.replies[n-1], -p.replies[n-1]) >= to, nil
	})
	if err != nil {
		return g, fmt.Errorf("wait for the echo prober: %w", err)
	}
	last := from
	for _, t := range p.replies {
		if t < from || t > to {
			continue
		}
		g.Answers++
		if t-last > g.End-g.Start {
			g.Start, g.End = last, t
		}
		last = t
	}
	if to-last > g.End-g.Start {
		g.Start, g.End, g.Open = last, to, true
	}
	p.replies = p.replies[:0]
	return g, nil
}

// answering reports whether an answer came after since.
func (p *prober) answering(since int64) (bool, error) {
	if err := p.read(); err != nil {
		return false, err
	}
	return len(p.replies) > 0 && p.replies[len(p.replies)-1] > since, nil
}

// tail reads the complete lines that a file has gained since the last look.
type tail struct {
	path string
	at   int64
}

func (t *tail) lines(f func([]byte) error) error {
	file, err := os.Open(t.path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(t.at, io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReaderSize(file, 1<<16)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil // an unfinished line is read again later
		}
		t.at += int64(len(line))
		if err := f(bytes.TrimRight(line, "\n")); err != nil {
			return err
		}
	}
}
