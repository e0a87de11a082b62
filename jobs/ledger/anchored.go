package ledger

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/jobs/store"
)

// AnchoredTree is the tree of the newest signed checkpoint in a bucket, for whoever
// has no database. It is for one goroutine.
type AnchoredTree struct {
	Checkpoint
	reader tlog.HashReader
}

// OpenAnchored reads the newest checkpoint of a log, which must bear the signature of
// one of the keys.
func OpenAnchored(ctx context.Context, s store.Store, origin string, keys []VerifierKey) (*AnchoredTree, error) {
	b := bucket{store: s, origin: origin, keys: keys}
	newest, _, err := b.newest(ctx, 0)
	if err != nil {
		return nil, err
	}
	if newest == nil {
		return nil, &Error{Op: "read", Object: CheckpointPrefix(origin), Kind: ErrMalformed,
			Err: errorString("there is no checkpoint of this origin in the bucket"), Hint: "check --origin and the address of the store"}
	}
	return &AnchoredTree{Checkpoint: newest.Checkpoint, reader: b.tiles(ctx).checked(newest.Tree())}, nil
}

// LeafHashes are those of a tile of level 0, as far as the checkpoint covers it, each
// proved to be in its tree.
func (t *AnchoredTree) LeafHashes(tile int64) ([]byte, error) {
	first := tile * TileWidth
	width := min(t.Size-first, TileWidth)
	if first < 0 || width <= 0 {
		return nil, &Error{Op: "read", Object: fmt.Sprintf("leaf %d", first), Kind: ErrMalformed,
			Err: fmt.Errorf("checkpoint %d covers %d leaves", t.Number, t.Size), Hint: "the next anchor covers it"}
	}
	indexes := make([]int64, width)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
	}
	hashes, err := t.reader.ReadHashes(indexes)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, width*HashSize)
	for _, hash := range hashes {
		out = append(out, hash[:]...)
	}
	return out, nil
}
