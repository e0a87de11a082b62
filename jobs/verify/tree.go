package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"pgcustody/jobs/ledger"
)

// tileWidth is the number of hashes in a full tile.
const tileWidth = 256

// frontier is the right edge of a growing tree: the roots of its perfect
// subtrees, largest first.
type frontier struct {
	size  int64
	stack []Hash
	// subtree, where it is not nil, is told the root of every perfect subtree of
	// 256, 65536, … leaves as it is complete: level 1, 2, …
	subtree func(level int, root Hash)
}

func nodeHash(left, right *Hash) Hash {
	var both [1 + 2*sha256.Size]byte
	both[0] = 1
	copy(both[1:], left[:])
	copy(both[1+sha256.Size:], right[:])
	return sha256.Sum256(both[:])
}

func (f *frontier) append(leaf Hash) { f.appendSubtree(leaf, 0) }

// appendSubtree adds the root of a perfect subtree of 1<<height leaves, of which
// size is a multiple.
func (f *frontier) appendSubtree(root Hash, height int) {
	f.size += 1 << height
	f.stack = append(f.stack, root)
	for n := f.size >> height; n&1 == 0; n >>= 1 {
		height++
		last := len(f.stack) - 1
		f.stack[last-1] = nodeHash(&f.stack[last-1], &f.stack[last])
		f.stack = f.stack[:last]
		if height%8 == 0 && f.subtree != nil {
			f.subtree(height/8, f.stack[last-1])
		}
	}
}

func (f *frontier) root() Hash {
	if f.size == 0 {
		return sha256.Sum256(nil)
	}
	last := len(f.stack) - 1
	root := f.stack[last]
	for i := last - 1; i >= 0; i-- {
		root = nodeHash(&f.stack[i], &root)
	}
	return root
}

func sum256(b []byte) Hash { return sha256.Sum256(b) }

// tree is what the rows are held against.
type tree struct {
	// leaves are the hashes that count: the database's, or where those are not the
	// anchored ones, the bucket's. keys are the database's word on which event each is.
	leaves, keys *spool
	// size is how many leaves the database has, total how many there are in leaves:
	// more where the database was set back.
	size, total int64
	short       bool
	mapped      int64
	// holes are leaves of which nobody has the hash, unmapped those without an entry
	// in the map.
	holes, unmapped spans
	// bounds are the times between which the events of each tile lie, by the map;
	// microseconds since 2000.
	bounds [][2]int64
	// misranged are tiles of the map whose first_xid and last_xid do not hold their transactions,
	// wrong those of which a leaf is named.
	misranged []int64
	wrong     map[int64]bool
	// anchored is up to where a checkpoint vouches for the leaves.
	anchored int64
}

func (t *tree) close() {
	t.leaves.close()
	t.keys.close()
}

// upper are the hashes of the levels above 0, from level 1 on.
type upper [][]Hash

func (u *upper) add(level int, root Hash) {
	for len(*u) < level {
		*u = append(*u, nil)
	}
	(*u)[level-1] = append((*u)[level-1], root)
}

// walk hashes leaves up to size and tells which of the checkpoints, given in the
// order of their sizes, have the root of such a tree.
func walk(leaves *spool, size int64, checkpoints []checkpoint, show func(done int64)) (holds []bool, roots []Hash, above upper, err error) {
	holds, roots = make([]bool, len(checkpoints)), make([]Hash, len(checkpoints))
	f := frontier{subtree: func(level int, root Hash) { above.add(level, root) }}
	at := 0
	due := func() {
		var root Hash
		for first := true; at < len(checkpoints) && checkpoints[at].size == f.size; at, first = at+1, false {
			if first {
				root = f.root()
			}
			roots[at], holds[at] = root, root == checkpoints[at].root
		}
	}
	due()
	err = leaves.each(0, size, func(index int64, records []byte) error {
		for len(records) > 0 {
			f.append(Hash(records[:hashWidth]))
			records = records[hashWidth:]
			if at < len(checkpoints) && checkpoints[at].size == f.size {
				due()
			}
		}
		show(f.size)
		return nil
	})
	return holds, roots, above, err
}

// checkTree holds the database's leaves and tiles against the anchored roots, and
// where they do not have them against the bucket's tiles.
func (c *check) checkTree(ctx context.Context, d *database) error {
	t := &c.tree
	t.total = t.size
	bySize := slices.Clone(c.checkpoints)
	slices.SortStableFunc(bySize, func(a, b checkpoint) int { return cmp.Compare(a.size, b.size) })
	reach := len(bySize) // those that the database's tree reaches
	for reach > 0 && bySize[reach-1].size > t.size {
		reach--
	}
	holds, roots, above, err := walk(t.leaves, t.size, bySize[:reach], func(done int64) { c.Show("tree", done, t.size) })
	if err != nil {
		return err
	}
	ours := above // what the database's own leaves make
	if reach < len(bySize) || slices.Contains(holds, false) || t.holes.below(c.newest.size) {
		if above, err = c.consultBucket(ctx, bySize, holds, roots, above); err != nil {
			return err
		}
	} else if reach > 0 {
		t.anchored = bySize[reach-1].size
	}
	return c.checkUpper(ctx, d, above, ours)
}

// consultBucket compares the database's leaves with the anchored ones and makes
// those count.
func (c *check) consultBucket(ctx context.Context, bySize []checkpoint, holds []bool, roots []Hash, above upper) (upper, error) {
	t := &c.tree
	bucket, err := c.readBucketTiles(ctx, bySize[len(bySize)-1].size)
	if err != nil {
		return nil, err
	}
	defer func() { bucket.close() }()
	reach := len(bySize)
	for reach > 0 && bySize[reach-1].size > bucket.count {
		reach--
	}
	there, bucketRoots, bucketAbove, err := walk(bucket, bucket.count, bySize[:reach], func(done int64) { c.Show("anchored tree", done, bucket.count) })
	if err != nil {
		return nil, err
	}
	vouched := int64(0)
	for i := range reach {
		if there[i] {
			vouched = max(vouched, bySize[i].size)
		}
	}
	for i := range holds {
		if holds[i] && !t.holes.below(bySize[i].size) && vouched < bySize[i].size {
			t.anchored = max(t.anchored, bySize[i].size)
		}
	}
	for i, known := range bySize {
		byDatabase := i < len(holds) && holds[i] && !t.holes.below(known.size)
		byBucket := i < reach && there[i]
		if byDatabase || byBucket {
			continue
		}
		detail := "it is over another tree than the other checkpoints and the tiles"
		if i >= reach {
			detail = "the bucket has no tiles that make its tree, nor has the database"
		} else if known.size > vouched && (i >= len(roots) || roots[i] != bucketRoots[i]) {
			detail = "neither the database nor the bucket has its tree, and they differ: its tiles were altered in both"
		}
		c.find(Finding{Kind: CheckpointForked, Checkpoint: &known.number, Object: ledger.CheckpointKey(c.Origin, known.number), Detail: detail})
	}

	if vouched < t.anchored {
		return above, nil // the database has more of what is anchored than the bucket
	}
	t.anchored = vouched
	// The anchored leaves count, and those that came after them as the database has them.
	merged, err := newSpool(hashWidth)
	if err != nil {
		return nil, err
	}
	keep := func(_ int64, records []byte) error { return merged.append(records) }
	err = errors.Join(
		bucket.each(0, vouched, func(index int64, records []byte) error {
			ours := make([]byte, len(records))
			if index < t.size {
				if _, err := t.leaves.read(ours[:min(int64(len(records)), (t.size-index)*int64(hashWidth))], index); err != nil {
					return err
				}
			}
			for i := int64(0); i < int64(len(records)/hashWidth); i++ {
				leaf, at := index+i, i*int64(hashWidth)
				if leaf < t.size && !bytes.Equal(ours[at:at+int64(hashWidth)], records[at:at+int64(hashWidth)]) && !t.holes.has(leaf) {
					c.find(Finding{Kind: LeafChanged, Leaf: &leaf, Object: fmt.Sprintf("ledger_tiles 0/%d", leaf/tileWidth), Detail: "its hash is not the anchored one"})
				}
			}
			return keep(index, records)
		}),
		t.leaves.each(min(vouched, t.size), t.size, keep), merged.done())
	if err != nil {
		merged.close()
		return nil, err
	}
	t.leaves.close()
	t.leaves = merged
	t.total = max(t.size, vouched)
	var holes spans
	for _, hole := range t.holes {
		holes.add(max(hole[0], vouched), max(hole[1], vouched))
	}
	t.holes = holes
	if t.size < vouched {
		t.short = true
		last := vouched - 1
		c.find(Finding{Kind: TreeShort, Leaf: &t.size, Last: &last, Checkpoint: &c.newest.number,
			Detail: fmt.Sprintf("set back to %d of %d leaves: the database has no leaf from %d on", t.size, vouched, t.size)})
	}
	if vouched >= t.size {
		return bucketAbove, nil
	}
	_, _, all, err := walk(t.leaves, t.size, nil, func(int64) {})
	return all, err
}

// checkUpper holds the tiles above level 0 against the leaves that count. A tile
// that was made from leaves that were changed is named by those leaves.
func (c *check) checkUpper(ctx context.Context, d *database, right, ours upper) error {
	t := &c.tree
	counts := func(u upper, level int) []Hash {
		if level > len(u) {
			return nil
		}
		return u[level-1][:min(int64(len(u[level-1])), t.size>>(8*level))]
	}
	tileOf := func(hashes []Hash, index int64) []byte {
		if index*tileWidth >= int64(len(hashes)) {
			return nil
		}
		hashes = hashes[index*tileWidth : min((index+1)*tileWidth, int64(len(hashes)))]
		flat := make([]byte, 0, len(hashes)*hashWidth)
		for i := range hashes {
			flat = append(flat, hashes[i][:]...)
		}
		return flat
	}
	seen := map[[2]int64]bool{}
	err := d.copyTo(ctx, 3, `select t.level, t.tile_index, t.hashes from custody_data.ledger_tiles t
		where t.tenant_id = 'system' and t.level <> 0 order by t.level, t.tile_index`, func(f [][]byte) error {
		level, index := int(int16(binary.BigEndian.Uint16(f[0]))), micros(f[1]) //nolint:gosec // two's complement, as it was sent
		if level < 1 || level > 7 || index < 0 {
			c.findTile(level, index, "there is no such tile")
			return nil
		}
		want := tileOf(counts(right, level), index)
		switch {
		case want == nil:
			c.findTile(level, index, "there is no such tile yet")
		case !bytes.Equal(f[2], want) && !bytes.Equal(f[2], tileOf(counts(ours, level), index)):
			c.findTile(level, index, "its hashes are not those of the tiles below")
		}
		seen[[2]int64{int64(level), index}] = true
		return nil
	})
	if err != nil {
		return err
	}
	for level := 1; level <= len(right); level++ {
		for index := int64(0); index*tileWidth < int64(len(counts(right, level))); index++ {
			if !seen[[2]int64{int64(level), index}] {
				c.findTile(level, index, "it is missing")
			}
		}
	}
	return nil
}
