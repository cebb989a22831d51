package ip

import (
	"context"
	"time"
)

// fresh is how long the answer of a Prepare counts: a start that comes later asks again.
const fresh = 250 * time.Millisecond

// asking is one probe that began before its start.
type asking struct {
	done chan struct{} // closed when err and at are set
	err  error
	at   time.Time
}

// Prepare begins the duplicate-address probe in the background, so that it runs while the node still
// waits for its lease: the probe configures nothing and claims nothing. A Start soon after takes its
// good answer; after a bad one, or none, it asks again itself. It never blocks.
func (a *Address) Prepare(ctx context.Context) {
	p := &asking{done: make(chan struct{})}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	a.closing.Add(1)
	a.mu.Unlock()
	if !a.askAnew(p) {
		a.closing.Done()
		return
	}
	go func() {
		defer a.closing.Done()
		var v *announcer
		v, p.err = a.ask(ctx)
		p.at = time.Now()
		close(p.done)
		if v != nil {
			v.shut() // closing a packet socket takes some ten milliseconds: nobody waits for it
		}
	}()
}

// askAnew makes p the newest probe, unless one is under way or has only just found nobody.
func (a *Address) askAnew(p *asking) bool {
	a.askedMu.Lock()
	defer a.askedMu.Unlock()
	if o := a.asked; o != nil {
		select {
		case <-o.done:
			if o.err == nil && time.Since(o.at) < fresh/2 {
				return false
			}
		default:
			return false
		}
	}
	a.asked = p
	return true
}

func (a *Address) ask(ctx context.Context) (*announcer, error) {
	l, err := a.link()
	if err != nil {
		return nil, err
	}
	v, err := newAnnouncer(a, l)
	if err != nil {
		return nil, err
	}
	return v, v.probe(ctx, a.opt.ProbeWait)
}

// prepared waits for the newest Prepare, if there is one, and reports whether it found nobody, just now.
func (a *Address) prepared(ctx context.Context) bool {
	a.askedMu.Lock()
	p := a.asked
	a.asked = nil
	a.askedMu.Unlock()
	if p == nil {
		return false
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return false
	}
	return p.err == nil && time.Since(p.at) < fresh
}
