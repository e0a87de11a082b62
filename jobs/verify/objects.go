package verify

import (
	"context"
	"errors"
	"fmt"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
)

const tileLimit = tileWidth * 32

// fetched is an object on its way.
type fetched struct {
	content []byte
	err     error
}

// inOrder fetches the objects that key names, for 0 to n-1, several at a time, and
// hands them over in order.
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

// verifyObjects decides by the bucket alone.
func (c *check) verifyObjects(ctx context.Context) error {
	return errors.New("not yet")
}
