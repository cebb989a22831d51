package check

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// flushEvery bounds how much of a record a killed harness can lose.
const flushEvery = 100 * time.Millisecond

// Recorder writes records as JSON lines, one file per stream. It is safe for concurrent use.
type Recorder struct {
	mu    sync.Mutex
	files map[Stream]*os.File
	bufs  map[Stream]*bufio.Writer
	err   error // first write error; a record with a hole is no record

	stop chan struct{}
	done chan struct{}
}

// NewRecorder creates dir if it is missing and appends to the stream files in it.
func NewRecorder(dir string) (*Recorder, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create the record directory: %w", err)
	}
	r := &Recorder{
		files: make(map[Stream]*os.File), bufs: make(map[Stream]*bufio.Writer),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for _, s := range Streams() {
		f, err := os.OpenFile(filepath.Join(dir, string(s)+".jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			r.closeFiles()
			return nil, fmt.Errorf("open the %s record: %w", s, err)
		}
		r.files[s], r.bufs[s] = f, bufio.NewWriterSize(f, 64<<10)
	}
	go r.flusher()
	return r, nil
}

// Add writes one record down. A zero T is replaced by Now. Errors are kept and returned by
// Flush and Close, so that observers need not each know what to do about a full disk.
func (r *Recorder) Add(rec Record) {
	if rec.T == 0 {
		rec.T = Now()
	}
	line, err := json.Marshal(rec)
	r.mu.Lock()
	defer r.mu.Unlock()
	buf := r.bufs[rec.Stream]
	if err == nil && buf == nil {
		err = fmt.Errorf("no stream named %q", rec.Stream)
	}
	if err == nil {
		_, err = buf.Write(append(line, '\n'))
	}
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("write a %s record: %w", rec.Stream, err)
	}
}

// Flush brings everything added so far to the files and returns the first error of the
// recorder's life, if any.
func (r *Recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range Streams() {
		if b := r.bufs[s]; b != nil {
			if err := b.Flush(); err != nil && r.err == nil {
				r.err = fmt.Errorf("flush the %s record: %w", s, err)
			}
		}
	}
	return r.err
}

// Close flushes and closes the files. Records added later are lost and counted as an error.
func (r *Recorder) Close() error {
	close(r.stop)
	<-r.done
	err := r.Flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(err, r.closeFiles())
}

func (r *Recorder) closeFiles() error {
	var errs []error
	for _, s := range Streams() {
		if f := r.files[s]; f != nil {
			errs = append(errs, f.Close())
		}
		delete(r.files, s)
		delete(r.bufs, s)
	}
	return errors.Join(errs...)
}

func (r *Recorder) flusher() {
	defer close(r.done)
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-t.C:
			_ = r.Flush() // kept in r.err and reported by Close
		}
	}
}
