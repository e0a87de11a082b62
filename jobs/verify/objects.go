package verify

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

const tileLimit = tileWidth * 32

// fetched is an object on its way.
type fetched struct {
	content []byte
	err     error
}

// inOrder fetches the objects that key names, for 0 to n-1, several at a time, and
// hands them over in order; content is nil of one that is not there.
func (c *check) inOrder(ctx context.Context, n int64, key func(int64) string, each func(i int64, key string, content []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waiting := make([]chan fetched, 0, fetchAtOnce)
	next := int64(0)
	start := func() {
		result := make(chan fetched, 1)
		waiting = append(waiting, result)
		go func(key string) {
			content, err := c.oldest(ctx, key, tileLimit)
			if errors.Is(err, store.ErrNotFound) {
				content, err = nil, nil
			}
			result <- fetched{content, err}
		}(key(next))
		next++
	}
	for i := int64(0); i < n; i++ {
		for next < n && len(waiting) < fetchAtOnce {
			start()
		}
		got := <-waiting[0]
		waiting = waiting[1:]
		err := got.err
		if err == nil {
			err = each(i, key(i), got.content)
		}
		if err != nil {
			cancel()
			for _, left := range waiting {
				<-left
			}
			return err
		}
	}
	return nil
}

// oldest reads the version of a tile that was written first: an anchor writes where
// nothing is, so what lies over it is not its.
func (c *check) oldest(ctx context.Context, key string, limit int64) ([]byte, error) {
	version, hidden := c.hidden[key]
	if hidden && version == "" {
		return nil, &store.Error{Op: "get", Object: key, Kind: store.ErrNotFound}
	}
	content, _, err := get(ctx, c.Store, key, version, limit)
	return content, err
}

// lookForHidden remembers the objects of the log that have more than one version,
// or a delete marker, with the version to read instead.
func (c *check) lookForHidden(ctx context.Context, report bool) error {
	c.hidden = map[string]string{}
	return histories(ctx, c.Store, ledger.Prefix(c.Origin)+"tile/", func(object stored) error {
		switch {
		case len(object.versions) == 0:
			c.hidden[object.key] = ""
		case object.marker || len(object.versions) > 1:
			c.hidden[object.key] = object.versions[0].Version
		default:
			return nil
		}
		if report {
			c.find(Finding{Kind: ObjectHidden, Object: object.key,
				Detail: fmt.Sprintf("%d versions of it, and a delete marker: %t; the first counts", len(object.versions), object.marker)})
		}
		return nil
	})
}

// readBucketTiles takes over the anchored leaf hashes of a tree of that size, as far
// as there are any.
func (c *check) readBucketTiles(ctx context.Context, size int64) (*spool, error) {
	if err := c.lookForHidden(ctx, c.Database == nil); err != nil {
		return nil, err
	}
	leaves, err := newSpool(hashWidth)
	if err != nil {
		return nil, err
	}
	// Sizes of checkpoints at which the last tile may be found in part.
	tiles := (size + tileWidth - 1) / tileWidth
	err = c.inOrder(ctx, size/tileWidth, func(i int64) string { return ledger.TileKey(c.Origin, 0, i, tileWidth) },
		func(i int64, key string, content []byte) error {
			if content == nil {
				return errEnough
			}
			if len(content) != tileWidth*hashWidth {
				c.find(Finding{Kind: ObjectChanged, Object: key, Detail: fmt.Sprintf("it has %d bytes where a full tile has %d", len(content), tileWidth*hashWidth)})
				return errEnough
			}
			c.Show("anchored tiles", i, tiles)
			return leaves.append(content)
		})
	if err == nil && size%tileWidth > 0 {
		err = c.appendPartial(ctx, leaves, size)
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, errEnough) {
		// As many as there are. A checkpoint beyond them is then without its tree; one
		// that ends within the next tile may still have its own.
		err = nil
		for i := len(c.checkpoints) - 1; i >= 0 && err == nil; i-- {
			if known := c.checkpoints[i]; known.size > leaves.count && known.size < leaves.count+tileWidth {
				if err = c.appendPartial(ctx, leaves, known.size); err == nil {
					break
				}
				if errors.Is(err, store.ErrNotFound) {
					err = nil
				}
			}
		}
	}
	if err == nil {
		err = leaves.done()
	}
	if err != nil {
		leaves.close()
		return nil, err
	}
	return leaves, nil
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

func (c *check) appendPartial(ctx context.Context, leaves *spool, size int64) error {
	width := int(size % tileWidth)
	key := ledger.TileKey(c.Origin, 0, size/tileWidth, width)
	content, err := c.oldest(ctx, key, tileLimit)
	if err != nil {
		return err
	}
	if len(content) != width*hashWidth {
		c.find(Finding{Kind: ObjectChanged, Object: key, Detail: fmt.Sprintf("it has %d bytes where it should have %d", len(content), width*hashWidth)})
		return nil
	}
	return leaves.append(content)
}

// verifyObjects decides by the bucket alone. Tiles are many and small: they are waited
// for while the archive is read.
func (c *check) verifyObjects(ctx context.Context) error {
	if len(c.checkpoints) == 0 {
		return nil
	}
	var lines []error
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := c.verifyTiles(groupCtx)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tiled = true
		return err
	})
	group.Go(func() (err error) {
		if err = c.listArchive(groupCtx); err == nil {
			lines, err = c.readAllLines(groupCtx)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return c.findArchive(ctx, lines)
}

// verifyTiles holds the tiles in the bucket against the checkpoints.
func (c *check) verifyTiles(ctx context.Context) (err error) {
	t := &c.tree
	bySize := slices.Clone(c.checkpoints)
	slices.SortStableFunc(bySize, func(a, b checkpoint) int { return cmp.Compare(a.size, b.size) })
	if t.leaves, err = c.readBucketTiles(ctx, bySize[len(bySize)-1].size); err != nil {
		return err
	}
	t.size, t.total = t.leaves.count, t.leaves.count
	c.report.Leaves = t.size
	reach := len(bySize)
	for reach > 0 && bySize[reach-1].size > t.size {
		reach--
	}
	holds, _, above, err := walk(t.leaves, t.size, bySize[:reach], func(done int64) { c.Show("tree", done, t.size) })
	if err != nil {
		return err
	}
	// A tile can be replaced by whoever breaks its lock, a checkpoint only with the
	// key: one whose tree the leaves do not make is looked at by the tiles at the edge of
	// its tree, which have its root, or it is the odd one.
	proved := int64(-1) // size up to which the leaves are anchored
	for i := range reach {
		if holds[i] {
			proved = bySize[i].size
		}
	}
	trusted := upper(nil)
	var before checkpoint
	var last [][]Hash // edge of the tree of before
	for i, known := range bySize {
		if i < reach && holds[i] {
			continue
		}
		if known.size > proved {
			edge, ok, err := c.edgeOf(ctx, known)
			if err != nil {
				return err
			}
			if ok {
				if trusted, err = c.descend(ctx, known, edge); err != nil {
					return err
				}
				before, last = known, edge
				continue
			}
			// The tile may be told from the one of an earlier checkpoint that it begins with.
			if len(edge) > 0 && before.size/tileWidth == known.size/tileWidth && len(last) > 0 && len(edge[0]) >= len(last[0]) &&
				!slices.Equal(edge[0][:len(last[0])], last[0]) {
				c.find(Finding{Kind: ObjectChanged, Object: ledger.TileKey(c.Origin, 0, known.size/tileWidth, int(known.size%tileWidth)),
					Detail: "it does not begin with the hashes that it had at an earlier checkpoint"})
				t.holes.add(known.size/tileWidth*tileWidth, t.size)
				continue
			}
		}
		c.find(Finding{Kind: CheckpointForked, Checkpoint: &known.number, Object: ledger.CheckpointKey(c.Origin, known.number),
			Detail: "the tiles in the bucket make another tree"})
	}
	if trusted == nil {
		err = c.checkTileObjects(ctx, bySize[:reach], above)
	} else {
		c.nameTiles(above, trusted)
	}
	return err
}

// edgeOf reads the tiles at the right edge of a checkpoint's tree, level by level,
// and tells whether they have its root.
func (c *check) edgeOf(ctx context.Context, known checkpoint) (edge [][]Hash, ok bool, err error) {
	for level, size := 0, known.size; size > 0; level, size = level+1, size>>8 {
		var hashes []Hash
		if width := int(size % tileWidth); width > 0 {
			content, err := c.oldest(ctx, ledger.TileKey(c.Origin, level, size/tileWidth, width), tileLimit)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return nil, false, err
			}
			if len(content) != width*hashWidth {
				return edge, false, nil
			}
			for ; len(content) > 0; content = content[hashWidth:] {
				hashes = append(hashes, Hash(content[:hashWidth]))
			}
		}
		edge = append(edge, hashes)
	}
	var f frontier
	for level := len(edge) - 1; level >= 0; level-- {
		for _, hash := range edge[level] {
			f.appendSubtree(hash, 8*level)
		}
	}
	return edge, f.root() == known.root, nil
}

// descend reads the tiles above level 0 of a checkpoint's tree from its edge down,
// each held against the hash that the one above has for it.
func (c *check) descend(ctx context.Context, known checkpoint, edge [][]Hash) (upper, error) {
	trusted := make(upper, max(len(edge)-1, 1))
	for level := len(edge) - 1; level >= 1; level-- {
		var hashes []Hash
		err := c.inOrder(ctx, known.size>>(8*level)/tileWidth, func(i int64) string { return ledger.TileKey(c.Origin, level, i, tileWidth) },
			func(i int64, key string, content []byte) error {
				tile := make([]Hash, tileWidth)
				var f frontier
				for k := range tile {
					if len(content) == tileWidth*hashWidth {
						tile[k] = Hash(content[k*hashWidth : (k+1)*hashWidth])
					}
					f.append(tile[k])
				}
				if f.root() != trusted[level][i] {
					c.find(Finding{Kind: ObjectChanged, Object: key, Detail: "its hashes are not those of the signed tree"})
				}
				hashes = append(hashes, tile...)
				return nil
			})
		if err != nil {
			return nil, err
		}
		trusted[level-1] = append(hashes, edge[level]...)
	}
	return trusted, nil
}

// nameTiles names the tiles of level 0 that are not those of the signed tree.
func (c *check) nameTiles(above, trusted upper) {
	for i, right := range trusted[0] {
		if len(above) == 0 || i >= len(above[0]) || above[0][i] != right {
			c.find(Finding{Kind: ObjectChanged, Object: ledger.TileKey(c.Origin, 0, int64(i), tileWidth), Detail: "its hashes are not those of the signed tree"})
			c.tree.holes.add(int64(i)*tileWidth, int64(i+1)*tileWidth)
		}
	}
}

// checkTileObjects holds every other tile that the anchors must have written against
// the leaves: those above level 0, and the partial ones of each anchored size.
func (c *check) checkTileObjects(ctx context.Context, bySize []checkpoint, above upper) error {
	type wanted struct {
		index        int64
		level, width int32
	}
	var want []wanted
	asked := map[wanted]bool{}
	full := make([]int64, 8) // tiles of each level that were asked for
	before := int64(-1)
	for i := range bySize {
		size := bySize[i].size
		if size == before {
			continue
		}
		before = size
		for level := int32(0); size > 0; level, size = level+1, size>>8 {
			for ; full[level] < size/tileWidth; full[level]++ {
				if level > 0 {
					want = append(want, wanted{index: full[level], level: level, width: tileWidth})
				}
			}
			w := wanted{index: size / tileWidth, level: level, width: int32(size % tileWidth)} //nolint:gosec // less than 256
			if w.width > 0 && !asked[w] {
				want = append(want, w)
				asked[w] = level > 0 // of level 0 none comes twice
			}
		}
	}
	key := func(i int64) string {
		return ledger.TileKey(c.Origin, int(want[i].level), want[i].index, int(want[i].width))
	}
	return c.inOrder(ctx, int64(len(want)), key, func(i int64, key string, content []byte) error {
		c.Show("tiles", i, int64(len(want)))
		w := want[i]
		right := make([]byte, int(w.width)*hashWidth)
		if w.level == 0 {
			if _, err := c.tree.leaves.read(right, w.index*tileWidth); err != nil {
				return err
			}
		} else {
			for k := range int(w.width) {
				copy(right[k*hashWidth:], above[w.level-1][int(w.index)*tileWidth+k][:])
			}
		}
		switch {
		case content == nil:
			c.find(Finding{Kind: ObjectChanged, Object: key, Detail: "it is missing"})
		case !bytes.Equal(content, right):
			c.find(Finding{Kind: ObjectChanged, Object: key, Detail: "its hashes are not those of the tree"})
		}
		return nil
	})
}

// segmentsAtOnce is how many segments are read at a time.
const segmentsAtOnce = 3

// readAllLines holds the object of every segment of the archive against its manifest.
func (c *check) readAllLines(ctx context.Context) ([]error, error) {
	lines := make([]error, len(c.archive.segments))
	var done atomic.Int64
	err := c.eachSegment(ctx, func(ctx context.Context, i int, s archived) error {
		lines[i] = c.readLines(ctx, s, nil)
		c.showArchive("archived days", int(done.Add(1)), len(lines))
		if errors.Is(lines[i], segment.ErrIdentity) || errors.Is(lines[i], segment.ErrDamaged) {
			return nil
		}
		return lines[i]
	})
	return lines, err
}

// findArchive holds the manifest of every segment against the leaves, and then what its
// lines said counts.
func (c *check) findArchive(ctx context.Context, lines []error) error {
	c.rows.archived = newBitmap(c.tree.total)
	err := c.eachSegment(ctx, func(_ context.Context, i int, s archived) error {
		if fits, err := c.fits(s, true); err != nil || !fits {
			return err
		}
		return c.judgeLines(s, lines[i])
	})
	if c.archive.unread {
		c.note("no identity opens the archive: its objects were held against their manifests by the digest of what is stored, and the manifests against the tree")
	}
	return err
}

func (c *check) eachSegment(ctx context.Context, work func(ctx context.Context, i int, s archived) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(segmentsAtOnce)
	for i, s := range c.archive.segments {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return work(ctx, i, s)
		})
	}
	return group.Wait()
}
