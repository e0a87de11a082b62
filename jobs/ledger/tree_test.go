package ledger

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// memory is a tree that is kept in tiles as the database keeps it.
type memory struct {
	mu    sync.Mutex
	size  int64
	tiles map[place][]byte
}

// entry is the one at a place of a test's log.
func entry(label string, i int64) []byte {
	return fmt.Appendf(nil, `{"v":1,"log":%q,"n":%d}`, label, i)
}

// grown is a tree of entries of one label.
func grown(label string, size int64) *memory {
	m := &memory{tiles: map[place][]byte{}}
	m.grow(label, size)
	return m
}

// grow adds entries until there are size.
func (m *memory) grow(label string, size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; m.size < size; m.size++ {
		m.add(tlog.RecordHash(entry(label, m.size)))
	}
}

func (m *memory) add(hash tlog.Hash) {
	for level, n := 0, m.size; ; level++ {
		at := place{level, n / TileWidth}
		m.tiles[at] = append(m.tiles[at], hash[:]...)
		if len(m.tiles[at]) < TileWidth*HashSize {
			return
		}
		hash = root(m.tiles[at])
		n /= TileWidth
	}
}

// root is that of a full tile, computed plainly.
func root(hashes []byte) tlog.Hash {
	if len(hashes) == HashSize {
		return tlog.Hash(hashes)
	}
	half := len(hashes) / 2
	return tlog.NodeHash(root(hashes[:half]), root(hashes[half:]))
}

// cut sets the tree back to its first leaves.
func (m *memory) cut(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	leaves := make([]tlog.Hash, size)
	for i := range leaves {
		at := m.tiles[place{0, int64(i) / TileWidth}][i%TileWidth*HashSize:]
		leaves[i] = tlog.Hash(at[:HashSize])
	}
	m.tiles, m.size = map[place][]byte{}, 0
	for _, leaf := range leaves {
		m.add(leaf)
		m.size++
	}
}

func (m *memory) Tile(_ context.Context, level int, index int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.tiles[place{level, index}]...), nil
}

func (m *memory) tree(ctx context.Context) tlog.Tree {
	m.mu.Lock()
	size := m.size
	m.mu.Unlock()
	hash, err := tlog.TreeHash(size, databaseTiles(ctx, m))
	if err != nil {
		panic(err)
	}
	return tlog.Tree{N: size, Hash: hash}
}
