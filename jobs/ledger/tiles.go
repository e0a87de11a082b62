package ledger

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// Tiles are those of a tree in the database: the hashes of a tile as far as there
// are any, 32 bytes each. The last tile of each level grows.
type Tiles interface {
	Tile(ctx context.Context, level int, index int64) ([]byte, error)
}

// tileReader reads tiles for one call. It remembers those above level 0, which are
// asked for again and again and are few, and the last of level 0.
type tileReader struct {
	ctx  context.Context
	read func(context.Context, tlog.Tile) ([]byte, error)

	mu     sync.Mutex
	known  map[place][]byte
	bottom place
	failed error // of the last reading
}

type place struct {
	level int
	index int64
}

func newTileReader(ctx context.Context, read func(context.Context, tlog.Tile) ([]byte, error)) *tileReader {
	return &tileReader{ctx: ctx, read: read, known: map[place][]byte{}}
}

// databaseTiles reads the tiles of a tree that may have grown since.
func databaseTiles(ctx context.Context, tiles Tiles) *tileReader {
	return newTileReader(ctx, func(ctx context.Context, tile tlog.Tile) ([]byte, error) {
		return tiles.Tile(ctx, tile.L, tile.N)
	})
}

func (r *tileReader) Height() int { return tileHeight }

// SaveTiles has nothing to do: what was read is remembered whether or not it is
// right, for the time of one call.
func (r *tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		var err error
		if data[i], err = r.tile(tile); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func (r *tileReader) tile(tile tlog.Tile) ([]byte, error) {
	at, size := place{tile.L, tile.N}, tile.W*HashSize
	r.mu.Lock()
	data := r.known[at]
	r.mu.Unlock()
	if len(data) >= size {
		return data[:size], nil
	}
	data, err := r.read(r.ctx, tile)
	if err == nil && len(data) < size {
		err = &Error{Op: "read", Object: TilePath(tile.L, tile.N, tile.W), Kind: ErrAltered,
			Err: fmt.Errorf("it has %d bytes", len(data)), Hint: "pgcustody verify tells what was changed"}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = err
	if err != nil {
		return nil, err
	}
	if tile.L == 0 && r.bottom != at {
		delete(r.known, r.bottom)
		r.bottom = at
	}
	r.known[at] = data
	return data[:size], nil
}

// ReadHashes believes the tiles. [tileReader.checked] does not.
func (r *tileReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		tile := tlog.TileForIndex(tileHeight, index)
		data, err := r.tile(tile)
		if err != nil {
			return nil, err
		}
		if hashes[i], err = tlog.HashFromTile(tile, data, index); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// checked reads hashes that belong to the tree.
func (r *tileReader) checked(tree tlog.Tree) tlog.HashReader {
	inner := tlog.TileHashReader(tree, r)
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, err := inner.ReadHashes(indexes)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err != nil && r.failed == nil {
			err = &Error{Op: "read", Object: fmt.Sprintf("tiles of the tree of size %d", tree.N), Kind: ErrAltered,
				Err: errorString("they do not give its root"), Hint: "pgcustody verify tells what was changed"}
		}
		return hashes, err
	})
}

// extends tells whether the tree of which reader has the hashes begins with old.
func extends(old, tree tlog.Tree, reader tlog.HashReader) (bool, error) {
	switch {
	case old.N > tree.N:
		return false, nil
	case old.N == tree.N:
		return old.Hash == tree.Hash, nil
	case old.N == 0:
		return old.Hash == emptyRoot(), nil
	}
	proof, err := tlog.ProveTree(tree.N, old.N, reader)
	if err != nil {
		return false, err
	}
	return tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash) == nil, nil
}

// emptyRoot is the root of the tree without leaves.
func emptyRoot() tlog.Hash {
	root, _ := tlog.TreeHash(0, nil)
	return root
}
