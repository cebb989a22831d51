package raftnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Keys of the stable store. Raft's are spelled in its raft.go; ours begin with "picket/".
const (
	keyTerm     = "CurrentTerm"
	keyVoteTerm = "LastVoteTerm"
	keyVoteFor  = "LastVoteCand"
	keyStarts   = "picket/starts"
	keyStore    = "picket/store"
)

const openTimeout = time.Second // for bbolt's own lock; ours was taken before

// openStore opens or creates the store in o.Dir, refuses one that was copied or is damaged, and
// raises the start counter. The directory is locked.
func openStore(o *Options) (*store, uint64, error) {
	machine, err := machineID(o.MachineID)
	if err != nil {
		return nil, 0, err
	}
	id, err := readIdentity(o.Dir)
	if err != nil {
		return nil, 0, err
	}
	path := filepath.Join(o.Dir, dbName)
	_, err = os.Lstat(path)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("open the store: %w", err)
	}
	switch {
	case id != nil && !exists:
		return nil, 0, damaged(path, string(o.Name), "the file is gone")
	case !exists:
		if err := createDB(o.Dir); err != nil {
			return nil, 0, err
		}
	case id != nil:
		if err := checkIdentity(o.Dir, string(o.Name), machine, id, o.Logger); err != nil {
			return nil, 0, err
		}
	}
	empty, err := inspect(path, string(o.Name))
	if err != nil {
		return nil, 0, err
	}
	if id == nil {
		if !empty {
			return nil, 0, moved(o.Dir, string(o.Name), identityName+" is missing")
		}
		if id, err = newIdentity(o.Dir, machine); err != nil {
			return nil, 0, err
		}
	}
	in, err := openBolt(path)
	if err != nil {
		return nil, 0, fmt.Errorf("open the store %s: %w", path, err)
	}
	if o.wrap != nil {
		in = o.wrap(in)
	}
	s := newStore(in, path, string(o.Name), o.Fatal)
	if err := s.start(o.Dir, id, empty); err != nil {
		return nil, 0, errors.Join(err, s.Close())
	}
	return s, id.Starts, nil
}

func openBolt(path string) (inner, error) {
	return raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: openTimeout}})
}

// createDB makes an empty store under another name first: a crash leaves either none or a whole one.
func createDB(dir string) error {
	path := filepath.Join(dir, dbName)
	err := os.Remove(path + ".new")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		var b inner
		if b, err = openBolt(path + ".new"); err == nil {
			err = b.Close()
		}
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("create the store %s: %w", path, err)
	}
	return nil
}

// start compares the store's inside with its identity and raises the start counter in both: announced
// outside, counted inside, confirmed outside, so that a crash at any point is told from a restore.
func (s *store) start(dir string, id *identity, empty bool) error {
	fresh := empty && id.Starts == 0
	if !fresh {
		in, err := s.GetUint64([]byte(keyStarts))
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return err
		}
		name, err := s.Get([]byte(keyStore))
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return err
		}
		first := id.Opening && id.Starts == 1 && in == 0
		if string(name) != id.Store && !(first && len(name) == 0) {
			return moved(dir, s.node, "store and identity do not belong together")
		}
		if in != id.Starts && !(id.Opening && in+1 == id.Starts) {
			return moved(dir, s.node, fmt.Sprintf("the store was opened %d times, its identity says %d", in, id.Starts))
		}
		id.Starts = in
	}
	id.Starts, id.Opening = id.Starts+1, true
	if err := id.write(dir); err != nil {
		return err
	}
	if err := s.Set([]byte(keyStore), []byte(id.Store)); err != nil {
		return err
	}
	if err := s.SetUint64([]byte(keyStarts), id.Starts); err != nil {
		return err
	}
	id.Opening = false
	return id.write(dir)
}

// checkLog reads every entry once and checks that nothing is missing between the newest snapshot
// (index snap, 0 for none) and the end, and that the term was not lost. Below the snapshot gaps are
// normal: a snapshot that was installed from the leader skips entries.
func (s *store) checkLog(snap uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	var l raft.Log
	for i := first; first > 0 && i <= last; i++ {
		err := s.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) && i <= snap {
			continue
		}
		if errors.Is(err, raft.ErrLogNotFound) {
			return damaged(s.path, s.node, fmt.Sprintf("entry %d is missing", i))
		}
		if err != nil {
			return err
		}
	}
	if last > snap && first > snap+1 {
		return damaged(s.path, s.node, fmt.Sprintf("entries %d to %d are missing", snap+1, first-1))
	}
	term, err := s.GetUint64([]byte(keyTerm))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if term < l.Term {
		return damaged(s.path, s.node, fmt.Sprintf("its term %d is older than its last entry's, %d", term, l.Term))
	}
	return nil
}
