package raftnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// Layout of a bbolt file (bbolt internal/common: meta.go, page.go, bucket.go): pages that begin with a
// 16-byte header (id, flags, count, overflow); the first two hold a meta each. Host byte order.
const (
	pageHead    = 16
	elemLen     = 16
	metaLen     = 56
	metaPageAt  = pageHead + 8
	metaRootAt  = pageHead + 16
	metaFreeAt  = pageHead + 32
	metaHighAt  = pageHead + 40
	metaTxAt    = pageHead + 48
	metaSumAt   = pageHead + metaLen
	metaEnd     = metaSumAt + 8
	maxPageSize = 64 << 10
	maxDepth    = 16

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	elemBucket   = 0x01
	noFreelist   = ^uint64(0)
)

// dbFile reads a bbolt file by itself, without mapping it. bbolt has a checker, but it runs in a
// goroutine of its own and follows damaged pointers out of the map, which ends the process without a
// word; and what bbolt itself does with a damaged meta page is to fall back to the one before, that
// is, to forget the newest transaction: a vote, or an acknowledged entry.
type dbFile struct {
	f                *os.File
	size, high       uint64 // page size in bytes, number of pages in use
	root, free       uint64
	used             map[uint64]bool
	empty            bool
	order            binary.ByteOrder
	lastKey, lastBkt []byte
}

// inspect checks everything of a store's file that a CRC per value does not: meta pages, the tree, the
// names of buckets and keys (a damaged key would read as "not found") and the list of free pages (a
// used page on it would be overwritten). empty is true for a store that never held anything.
func inspect(path, node string) (empty bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("open the store: %w", err)
	}
	defer f.Close()
	d := &dbFile{f: f, used: map[uint64]bool{}, empty: true, order: binary.NativeEndian}
	err = d.metas()
	if err == nil {
		err = d.walk(d.root, "", 0)
	}
	if err == nil {
		err = d.freelist()
	}
	if err != nil {
		return false, damaged(path, node, err.Error())
	}
	return d.empty, nil
}

// metas checks both meta pages and takes the newer one. The meta lies in one sector, so a power cut
// does not tear it: a broken one is damage.
func (d *dbFile) metas() error {
	d.size = uint64(os.Getpagesize())
	var tx [2]uint64
	for i := range tx {
		b := make([]byte, metaEnd)
		if _, err := d.f.ReadAt(b, int64(i)*int64(d.size)); err != nil {
			return fmt.Errorf("meta page %d cannot be read: %w", i, err)
		}
		h := fnv.New64a()
		h.Write(b[pageHead:metaSumAt])
		if h.Sum64() != d.order.Uint64(b[metaSumAt:]) {
			return fmt.Errorf("the checksum of meta page %d does not fit", i)
		}
		if i == 0 {
			d.size = uint64(d.order.Uint32(b[metaPageAt:]))
			if d.size < 512 || d.size > maxPageSize {
				return fmt.Errorf("its page size is %d", d.size)
			}
		}
		tx[i] = d.order.Uint64(b[metaTxAt:])
		if i == 0 || tx[1] > tx[0] {
			d.root, d.free, d.high = d.order.Uint64(b[metaRootAt:]), d.order.Uint64(b[metaFreeAt:]), d.order.Uint64(b[metaHighAt:])
		}
	}
	if tx[0]+1 != tx[1] && tx[1]+1 != tx[0] {
		return fmt.Errorf("its meta pages are of transactions %d and %d, not neighbours", tx[0], tx[1])
	}
	st, err := d.f.Stat()
	if err != nil {
		return err
	}
	if d.high > uint64(st.Size())/d.size {
		return fmt.Errorf("it is cut: %d bytes instead of %d", st.Size(), d.high*d.size)
	}
	return nil
}

// page reads a page with its overflow pages and marks them used.
func (d *dbFile) page(id uint64) ([]byte, error) {
	if id < 2 || id >= d.high {
		return nil, fmt.Errorf("a pointer leads to page %d of %d", id, d.high)
	}
	head := make([]byte, pageHead)
	if _, err := d.f.ReadAt(head, int64(id*d.size)); err != nil {
		return nil, fmt.Errorf("page %d cannot be read: %w", id, err)
	}
	n := uint64(d.order.Uint32(head[12:])) + 1
	if d.order.Uint64(head) != id || n > d.high-id {
		return nil, fmt.Errorf("the header of page %d is damaged", id)
	}
	for i := id; i < id+n; i++ {
		if d.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		d.used[i] = true
	}
	b := make([]byte, n*d.size)
	if _, err := d.f.ReadAt(b, int64(id*d.size)); err != nil {
		return nil, fmt.Errorf("page %d cannot be read: %w", id, err)
	}
	return b, nil
}

// walk checks the tree below a page; bucket "" is the root, which holds the buckets.
func (d *dbFile) walk(id uint64, bucket string, depth int) error {
	if depth > maxDepth {
		return errors.New("its tree is too deep")
	}
	b, err := d.page(id)
	if err != nil {
		return err
	}
	return d.elements(b, id, bucket, depth)
}

// elements checks one page's elements: inside the page, keys rising through the whole bucket.
func (d *dbFile) elements(b []byte, id uint64, bucket string, depth int) error {
	flags, count := d.order.Uint16(b[8:]), uint64(d.order.Uint16(b[10:]))
	if flags != flagBranch && flags != flagLeaf {
		return fmt.Errorf("page %d is of the unknown kind %#x", id, flags)
	}
	if pageHead+count*elemLen > uint64(len(b)) || flags == flagBranch && count == 0 {
		return fmt.Errorf("page %d cannot hold %d elements", id, count)
	}
	for i := range count {
		at := pageHead + i*elemLen
		e := b[at : at+elemLen]
		pos, ksize, vsize := uint64(d.order.Uint32(e[4:])), uint64(d.order.Uint32(e[8:])), uint64(d.order.Uint32(e[12:]))
		if flags == flagBranch {
			pos, ksize, vsize = uint64(d.order.Uint32(e)), uint64(d.order.Uint32(e[4:])), 0
		}
		if pos < elemLen || at+pos+ksize+vsize > uint64(len(b)) {
			return fmt.Errorf("element %d of page %d leads out of it", i, id)
		}
		key := b[at+pos : at+pos+ksize]
		val := b[at+pos+ksize : at+pos+ksize+vsize]
		var err error
		if flags == flagBranch {
			err = d.branch(key, d.order.Uint64(e[8:]), bucket, depth)
		} else {
			err = d.leaf(d.order.Uint32(e), key, val, bucket, depth)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// branch follows one pointer; its key is not greater than the first key below, and greater than all
// keys before.
func (d *dbFile) branch(key []byte, to uint64, bucket string, depth int) error {
	last := &d.lastKey
	if bucket == "" {
		last = &d.lastBkt
	}
	if *last != nil && bytes.Compare(*last, key) >= 0 {
		return fmt.Errorf("the branch key %x in %q is out of order", key, bucket)
	}
	below := append([]byte(nil), key...)
	before := *last
	*last = nil
	if len(below) > 0 {
		*last = prev(below)
	} else {
		*last = before
	}
	return d.walk(to, bucket, depth+1)
}

// prev returns a string just below key, so that key itself may come next.
func prev(key []byte) []byte {
	p := append([]byte(nil), key...)
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] > 0 {
			p[i]--
			return append(p[:i+1], bytes.Repeat([]byte{0xff}, len(key)-i)...)
		}
	}
	return nil
}

// leaf checks one key, or descends into a bucket of the root.
func (d *dbFile) leaf(flags uint32, key, val []byte, bucket string, depth int) error {
	last := &d.lastKey
	if bucket == "" {
		last = &d.lastBkt
	}
	if *last != nil && bytes.Compare(*last, key) >= 0 {
		return fmt.Errorf("key %x in %q is out of order", key, bucket)
	}
	*last = append([]byte(nil), key...)
	if bucket != "" {
		d.empty = false
		if flags != 0 {
			return fmt.Errorf("key %x in %q has the unknown flags %#x", key, bucket, flags)
		}
		return checkKey(bucket, key)
	}
	if flags != elemBucket || (string(key) != "logs" && string(key) != "conf") || len(val) < pageHead {
		return fmt.Errorf("unknown bucket %q", key)
	}
	d.lastKey = nil
	if root := d.order.Uint64(val); root != 0 {
		return d.walk(root, string(key), depth+1)
	}
	inline := val[16:] // a small bucket lies in its own entry: 16 bytes of header, then a page
	if len(inline) < pageHead {
		return fmt.Errorf("bucket %q is cut", key)
	}
	return d.elements(inline, 0, string(key), depth+1)
}

// freelist checks that no used page is listed as free.
func (d *dbFile) freelist() error {
	if d.free == noFreelist {
		return nil
	}
	b, err := d.page(d.free)
	if err != nil {
		return fmt.Errorf("the free list: %w", err)
	}
	n, at := uint64(d.order.Uint16(b[10:])), uint64(pageHead)
	if n == 0xffff {
		n, at = d.order.Uint64(b[at:]), at+8
	}
	if d.order.Uint16(b[8:]) != flagFreelist || n > (uint64(len(b))-at)/8 {
		return errors.New("the free list is damaged")
	}
	seen := uint64(1)
	for i := range n {
		id := d.order.Uint64(b[at+8*i:])
		if id <= seen || id >= d.high || d.used[id] {
			return fmt.Errorf("the free list holds page %d, which is in use or does not exist", id)
		}
		seen = id
	}
	return nil
}

func checkKey(bucket string, k []byte) error {
	switch bucket {
	case "logs":
		if len(k) == 8 {
			return nil
		}
	case "conf":
		switch string(k) {
		case keyTerm, keyVoteTerm, keyVoteFor, keyStarts, keyStore:
			return nil
		}
	}
	return fmt.Errorf("unknown key %q in %q", k, bucket)
}
