package retrieve

import (
	"context"
	"fmt"
	"slices"

	"pgcustody/jobs/segment"
)

const (
	tileWidth = 256
	hashSize  = 32
	// tilesAhead are asked for at a time.
	tilesAhead = 64
)

// proof holds the lines of one segment, in their order, against the tree.
type proof struct {
	ctx   context.Context
	tree  Tree
	lines int64

	runs segment.Runs // what is left
	tile int64        // index of hashes
	// hashes are those of the tile, ahead those of the next ones, by index.
	hashes []byte
	ahead  map[int64][]byte
}

func newProof(ctx context.Context, tree Tree, m *segment.Manifest) *proof {
	return &proof{ctx: ctx, tree: tree, runs: m.Leaves, tile: -1, ahead: map[int64][]byte{}}
}

// next holds the hash of a line against the next leaf, which it returns.
func (p *proof) next(m *segment.Manifest, hash segment.SHA256) (leaf int64, err error) {
	p.lines++
	if len(p.runs) == 0 {
		return 0, &Finding{Object: m.ObjectKey, What: fmt.Sprintf("object has more lines than the %d of its manifest", m.Rows), Do: haveLookedAt}
	}
	leaf = p.runs[0].First
	sealed, ok, err := p.leaf()
	switch {
	case err != nil:
		return 0, err
	case !ok:
		return 0, &Finding{Object: m.Name().ManifestKey(), What: fmt.Sprintf("the ledger has no leaf %d", leaf), Do: haveLookedAt}
	case sealed != hash:
		return 0, &Finding{Object: m.ObjectKey, What: fmt.Sprintf("line %d is not what was sealed as leaf %d", p.lines, leaf), Do: haveLookedAt}
	}
	return leaf, nil
}

// leaf takes the hash of the next leaf; ok is false where the ledger has none.
func (p *proof) leaf() (hash segment.SHA256, ok bool, err error) {
	leaf := p.runs[0].First
	if p.tile != leaf/tileWidth {
		if err := p.turn(leaf / tileWidth); err != nil {
			return hash, false, err
		}
	}
	at := int(leaf % tileWidth * hashSize)
	if len(p.hashes) < at+hashSize {
		return hash, false, nil
	}
	p.runs[0].First++
	if p.runs[0].Count--; p.runs[0].Count == 0 {
		p.runs = p.runs[1:]
	}
	return segment.SHA256(p.hashes[at : at+hashSize]), true, nil
}

// turn goes on to another tile.
func (p *proof) turn(tile int64) error {
	if _, ok := p.ahead[tile]; !ok {
		clear(p.ahead)
		var indexes []int64
		last := int64(-1)
		for _, run := range p.runs {
			for n := max(run.First/tileWidth, last+1); n*tileWidth < run.End() && len(indexes) < tilesAhead; n++ {
				indexes = append(indexes, n)
				last = n
			}
			if len(indexes) == tilesAhead {
				break
			}
		}
		tiles, err := p.tree.Tiles(p.ctx, indexes)
		if err != nil {
			return err
		}
		for i, n := range indexes {
			p.ahead[n] = tiles[i]
		}
	}
	p.tile, p.hashes = tile, p.ahead[tile]
	return nil
}

// end holds the whole against the manifest. What its root says each line has shown.
func (p *proof) end(m *segment.Manifest, sums segment.Sums) error {
	type claim struct {
		what      string
		want, got any
	}
	for _, c := range []claim{
		{"rows", m.Rows, p.lines},
		{"stored_sha256", m.StoredSHA256, sums.StoredSHA256},
		{"compressed_sha256", m.CompressedSHA256, sums.CompressedSHA256},
		{"plain_sha256", m.PlainSHA256, sums.PlainSHA256},
	} {
		if c.want != c.got {
			return &Finding{Object: m.ObjectKey, What: fmt.Sprintf("%s is %v, the manifest says %v", c.what, c.got, c.want), Do: haveLookedAt}
		}
	}
	return nil
}

// Root is that of a tree (RFC 6962) of these leaves alone, by the hashes that the
// ledger has for them: what a manifest says of its lines. ok is false where the
// ledger lacks one.
func Root(ctx context.Context, tree Tree, leaves segment.Runs) (root segment.SHA256, ok bool, err error) {
	p := &proof{ctx: ctx, tree: tree, runs: slices.Clone(leaves), tile: -1, ahead: map[int64][]byte{}}
	sum := segment.NewRoot()
	for len(p.runs) > 0 {
		hash, ok, err := p.leaf()
		if err != nil || !ok {
			return root, false, err
		}
		sum.Append(hash)
	}
	return sum.Sum(), true, nil
}
