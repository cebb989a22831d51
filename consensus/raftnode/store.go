package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

const crcLen = 4

// inner is what the checked store wraps: raft-boltdb's BoltStore outside tests.
type inner interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// store adds to a bbolt store what hashicorp/raft leaves out. Every entry and every stable value
// carries a CRC-32C over its place and its content, checked on each read; and any error other than
// "not found" ends the process before raft, which only logs such errors, can go on without its disk
// (invariant I8).
type store struct {
	in    inner
	path  string
	node  string
	fatal func(error)
	table *crc32.Table
	once  sync.Once
	done  atomic.Bool
	busy  stall
}

var (
	_ raft.LogStore    = (*store)(nil)
	_ raft.StableStore = (*store)(nil)
)

func newStore(in inner, path, node string, fatal func(error)) *store {
	return &store{in: in, path: path, node: node, fatal: fatal, table: crc32.MakeTable(crc32.Castagnoli)}
}

// fail reports the first error that makes this node's word worthless.
func (s *store) fail(err error) {
	if s.done.Load() {
		return
	}
	s.once.Do(func() { s.fatal(err) })
}

// damaged says what is wrong with the store and how to get out of it.
func damaged(path, node, what string) error {
	return fmt.Errorf("%w: %s: %s; the other nodes hold the data: stop the daemon, remove this node with"+
		" picket node remove %s on another node, move the state directory away and join again", ErrDamaged, path, what, node)
}

// guard runs one store call. A panic in bbolt is how it reports most damage to its pages.
func (s *store) guard(op string, f func() error) (err error) {
	s.busy.begin()
	defer s.busy.end()
	defer func() {
		if p := recover(); p != nil {
			err = damaged(s.path, s.node, fmt.Sprintf("%s: %v", op, p))
			s.fail(err)
		}
	}()
	err = f()
	switch {
	case err == nil, errors.Is(err, raft.ErrLogNotFound), errors.Is(err, raftboltdb.ErrKeyNotFound):
		return err
	case errors.Is(err, ErrDamaged):
	default:
		err = fmt.Errorf("%s in the store %s: %w", op, s.path, err)
	}
	s.fail(err)
	return err
}

func (s *store) logCRC(l *raft.Log, data []byte) uint32 {
	var head [25]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	binary.BigEndian.PutUint64(head[16:], uint64(len(data)))
	head[24] = byte(l.Type)
	sum := crc32.Update(0, s.table, head[:])
	sum = crc32.Update(sum, s.table, data)
	return crc32.Update(sum, s.table, l.Extensions)
}

// FirstIndex returns the first index held; 0 where there is none.
func (s *store) FirstIndex() (i uint64, err error) {
	err = s.guard("read the first index", func() (err error) { i, err = s.in.FirstIndex(); return err })
	return i, err
}

// LastIndex returns the last index held; 0 where there is none.
func (s *store) LastIndex() (i uint64, err error) {
	err = s.guard("read the last index", func() (err error) { i, err = s.in.LastIndex(); return err })
	return i, err
}

// GetLog reads one entry and checks it.
func (s *store) GetLog(index uint64, l *raft.Log) error {
	return s.guard(fmt.Sprintf("read entry %d", index), func() error {
		if err := s.in.GetLog(index, l); err != nil {
			if !errors.Is(err, raft.ErrLogNotFound) {
				return damaged(s.path, s.node, fmt.Sprintf("entry %d cannot be decoded: %v", index, err))
			}
			return err
		}
		n := len(l.Data) - crcLen
		if n < 0 || l.Index != index {
			return damaged(s.path, s.node, fmt.Sprintf("entry %d is not the one that was written", index))
		}
		data, sum := l.Data[:n], binary.BigEndian.Uint32(l.Data[n:])
		if s.logCRC(l, data) != sum {
			return damaged(s.path, s.node, fmt.Sprintf("the checksum of entry %d does not fit", index))
		}
		l.Data = data[:n:n]
		return nil
	})
}

// StoreLog appends one entry.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries; they are on disk when it returns. The entries given stay as they are:
// raft replicates the same structures.
func (s *store) StoreLogs(ls []*raft.Log) error {
	out := make([]*raft.Log, len(ls))
	for i, l := range ls {
		c := *l
		c.Data = binary.BigEndian.AppendUint32(append(make([]byte, 0, len(l.Data)+crcLen), l.Data...), s.logCRC(l, l.Data))
		out[i] = &c
	}
	return s.guard("append entries", func() error { return s.in.StoreLogs(out) })
}

// DeleteRange deletes the entries from lo to hi.
func (s *store) DeleteRange(lo, hi uint64) error {
	return s.guard("delete entries", func() error { return s.in.DeleteRange(lo, hi) })
}

func (s *store) valCRC(k, v []byte) uint32 {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(k)))
	return crc32.Update(crc32.Update(crc32.Update(0, s.table, n[:]), s.table, k), s.table, v)
}

// Set stores a stable value; it is on disk when Set returns.
func (s *store) Set(k, v []byte) error {
	b := binary.BigEndian.AppendUint32(append(make([]byte, 0, len(v)+crcLen), v...), s.valCRC(k, v))
	return s.guard(fmt.Sprintf("write %s", k), func() error { return s.in.Set(k, b) })
}

// Get reads a stable value and checks it.
func (s *store) Get(k []byte) (v []byte, err error) {
	err = s.guard(fmt.Sprintf("read %s", k), func() error {
		b, err := s.in.Get(k)
		if err != nil {
			return err
		}
		n := len(b) - crcLen
		if n < 0 || s.valCRC(k, b[:n]) != binary.BigEndian.Uint32(b[n:]) {
			return damaged(s.path, s.node, fmt.Sprintf("the checksum of %s does not fit", k))
		}
		v = b[:n:n]
		return nil
	})
	return v, err
}

// SetUint64 stores a number.
func (s *store) SetUint64(k []byte, v uint64) error {
	return s.Set(k, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 reads a number.
func (s *store) GetUint64(k []byte) (uint64, error) {
	b, err := s.Get(k)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		err := damaged(s.path, s.node, fmt.Sprintf("%s is not a number", k))
		s.fail(err)
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// Close closes the store; errors of calls that come later are not fatal.
func (s *store) Close() error {
	s.done.Store(true)
	return s.in.Close()
}

// stall knows how long the oldest running store call has been running.
type stall struct {
	mu    sync.Mutex
	since time.Time
	open  int
}

func (s *stall) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == 0 {
		s.since = time.Now()
	}
	s.open++
}

func (s *stall) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	// With overlapping calls this restarts the clock at each end: a disk that finishes calls is not stalled.
	s.open--
	s.since = time.Now()
}

// age is 0 where no call runs.
func (s *stall) age() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == 0 {
		return 0
	}
	return time.Since(s.since)
}
