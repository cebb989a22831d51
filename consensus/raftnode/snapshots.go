package raftnode

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	retain      = 2
	snapDir     = "snapshots" // FileSnapshotStore's own name for it
	snapMagic   = "pksnap1\n"
	snapHead    = len(snapMagic) + crcLen
	stateMagic  = "pkstate1"
	stateHead   = len(stateMagic) + 8
	maxSnapshot = 256 << 20 // bytes
)

// snapshots wraps raft's FileSnapshotStore. That store has a checksum over the state but none over
// the index, term and server list beside it, and skips what it cannot read; here both are covered,
// and damage ends the process like any other.
type snapshots struct {
	in *raft.FileSnapshotStore
	s  *store
}

var _ raft.SnapshotStore = (*snapshots)(nil)

func openSnapshots(dir string, s *store, log hclog.Logger) (*snapshots, error) {
	in, err := raft.NewFileSnapshotStoreWithLogger(dir, retain, log)
	if err != nil {
		return nil, fmt.Errorf("open the snapshots in %s: %w", dir, err)
	}
	sn := &snapshots{in: in, s: s}
	metas, err := in.List()
	if err != nil {
		return nil, fmt.Errorf("list the snapshots in %s: %w", dir, err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, snapDir))
	if err != nil {
		return nil, fmt.Errorf("list the snapshots in %s: %w", dir, err)
	}
	n := 0
	for _, e := range entries {
		if e.IsDir() && !strings.HasSuffix(e.Name(), ".tmp") {
			n++
		}
	}
	if len(metas) < min(n, retain) {
		return nil, damaged(filepath.Join(dir, snapDir), s.node, "a snapshot cannot be read")
	}
	return sn, nil
}

// newest returns the index of the newest snapshot, 0 where there is none.
func (sn *snapshots) newest() (uint64, error) {
	metas, err := sn.in.List()
	if err != nil || len(metas) == 0 {
		return 0, err
	}
	return metas[0].Index, nil
}

func (sn *snapshots) sum(index, term, confIndex uint64, conf raft.Configuration) uint32 {
	var b [24]byte
	binary.BigEndian.PutUint64(b[0:], index)
	binary.BigEndian.PutUint64(b[8:], term)
	binary.BigEndian.PutUint64(b[16:], confIndex)
	return crc32.Update(crc32.Update(0, sn.s.table, b[:]), sn.s.table, raft.EncodeConfiguration(conf))
}

// Create begins a snapshot, of our own state or one that the leader sends.
func (sn *snapshots) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64,
	t raft.Transport) (raft.SnapshotSink, error) {
	in, err := sn.in.Create(v, index, term, conf, confIndex, t)
	if err == nil {
		head := binary.BigEndian.AppendUint32([]byte(snapMagic), sn.sum(index, term, confIndex, conf))
		_, err = in.Write(head)
	}
	if err != nil {
		err = fmt.Errorf("create a snapshot beside %s: %w", sn.s.path, err)
		sn.s.fail(err)
		return nil, err
	}
	return &sink{SnapshotSink: in, s: sn.s}, nil
}

// List returns the snapshots, newest first.
func (sn *snapshots) List() ([]*raft.SnapshotMeta, error) {
	ms, err := sn.in.List()
	if err != nil {
		sn.s.fail(fmt.Errorf("list the snapshots beside %s: %w", sn.s.path, err))
	}
	return ms, err
}

// Open opens a snapshot; all of it has been checked when it returns.
func (sn *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, r, err := sn.in.Open(id)
	if err != nil {
		err = damaged(sn.s.path, sn.s.node, fmt.Sprintf("snapshot %s: %v", id, err))
		sn.s.fail(err)
		return nil, nil, err
	}
	head := make([]byte, snapHead)
	_, err = io.ReadFull(r, head)
	if err != nil || string(head[:len(snapMagic)]) != snapMagic ||
		binary.BigEndian.Uint32(head[len(snapMagic):]) != sn.sum(m.Index, m.Term, m.ConfigurationIndex, m.Configuration) {
		r.Close()
		err = damaged(sn.s.path, sn.s.node, fmt.Sprintf("the description of snapshot %s does not fit its checksum", id))
		sn.s.fail(err)
		return nil, nil, err
	}
	c := *m
	c.Size -= int64(snapHead)
	return &c, r, nil
}

// sink ends the process when a snapshot cannot be written. Cancel is normal: the sender went away.
type sink struct {
	raft.SnapshotSink
	s *store
}

func (k *sink) Write(p []byte) (int, error) {
	n, err := k.SnapshotSink.Write(p)
	if err != nil {
		err = fmt.Errorf("write a snapshot beside %s: %w", k.s.path, err)
		k.s.fail(err)
	}
	return n, err
}

func (k *sink) Close() error {
	err := k.SnapshotSink.Close()
	if err != nil {
		err = fmt.Errorf("finish a snapshot beside %s: %w", k.s.path, err)
		k.s.fail(err)
	}
	return err
}
