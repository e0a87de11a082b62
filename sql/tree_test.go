package sql_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// The tree in SQL against two that others wrote: golang.org/x/mod/sumdb/tlog, which
// works by tiles too, and github.com/transparency-dev/merkle.

// memory is tlog's storage of a tree's hashes.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(m)) {
			return nil, fmt.Errorf("no hash %d", index)
		}
		hashes[i] = m[index]
	}
	return hashes, nil
}

// grown is a tree of the same leaves in the database and in both libraries.
type grown struct {
	conn   *pgx.Conn
	leaves [][]byte
	tlog   memory
	tree   *testonly.Tree
}

func newGrown(t *testing.T) *grown {
	t.Helper()
	g := &grown{conn: stacktest.DB(t).Conn(t, stack.Superuser), tree: testonly.New(rfc6962.DefaultHasher)}
	// The context lasts as long as the transaction.
	_, err := g.conn.Exec(t.Context(), `begin; select custody.set_context('system', 'tester'); insert into custody_data.ledger_heads default values`)
	require.NoError(t, err)
	return g
}

func (g *grown) size() int { return len(g.leaves) }

func (g *grown) append(t *testing.T, entries ...[]byte) {
	t.Helper()
	first := g.size()
	for _, entry := range entries {
		hash := tlog.RecordHash(entry)
		stored, err := tlog.StoredHashesForRecordHash(int64(g.size()), hash, g.tlog)
		require.NoError(t, err)
		g.tlog = append(g.tlog, stored...)
		g.tree.AppendData(entry)
		g.leaves = append(g.leaves, hash[:])
	}
	_, err := g.conn.Exec(t.Context(), `select custody_data.append_hashes(0, $1, $2)`, first, g.leaves[first:])
	require.NoError(t, err)
	_, err = g.conn.Exec(t.Context(), `update custody_data.ledger_heads set tree_size = $1`, g.size())
	require.NoError(t, err)
}

// askPairs reads an expression for each pair of numbers a and b.
func askPairs[T any](t *testing.T, g *grown, query string, pairs [][2]int) []T {
	t.Helper()
	var a, b []int
	for _, p := range pairs {
		a, b = append(a, p[0]), append(b, p[1])
	}
	rows, err := g.conn.Query(t.Context(), query+` from unnest($1::bigint[], $2::bigint[]) with ordinality p (a, b, n) order by n`, a, b)
	require.NoError(t, err)
	values, err := pgx.CollectRows(rows, pgx.RowTo[T])
	require.NoError(t, err)
	require.Len(t, values, len(pairs))
	return values
}

func (g *grown) requireRoots(t *testing.T, sizes ...int) {
	t.Helper()
	var pairs [][2]int
	for _, size := range sizes {
		pairs = append(pairs, [2]int{size, 0})
	}
	for i, root := range askPairs[[]byte](t, g, "select custody.ledger_root(p.a)", pairs) {
		want, err := tlog.TreeHash(int64(sizes[i]), g.tlog)
		require.NoError(t, err)
		require.Equal(t, want[:], root, "of %d leaves", sizes[i])
		require.Equal(t, g.tree.HashAt(uint64(sizes[i])), root, "of %d leaves", sizes[i])
	}
}

// requireInclusion compares the paths of leaves in trees, each a pair of index and size.
func (g *grown) requireInclusion(t *testing.T, pairs [][2]int) {
	t.Helper()
	for i, path := range askPairs[[][]byte](t, g, "select custody_data.inclusion_path(p.a, p.b)", pairs) {
		leaf, size := uint64(pairs[i][0]), uint64(pairs[i][1])
		want, err := tlog.ProveRecord(int64(size), int64(leaf), g.tlog)
		require.NoError(t, err)
		requirePath(t, want, path, fmt.Sprintf("of leaf %d in %d", leaf, size))
		other, err := g.tree.InclusionProof(leaf, size)
		require.NoError(t, err)
		require.Equal(t, len(other), len(path))
		for n := range other {
			require.Equal(t, other[n], path[n], "of leaf %d in %d", leaf, size)
		}
		require.NoError(t, proof.VerifyInclusion(rfc6962.DefaultHasher, leaf, size, g.leaves[leaf], path, g.tree.HashAt(size)))
	}
}

// requireConsistency compares the paths between trees, each a pair of sizes.
func (g *grown) requireConsistency(t *testing.T, pairs [][2]int) {
	t.Helper()
	for i, path := range askPairs[[][]byte](t, g, "select custody_data.consistency_path(p.a, p.b)", pairs) {
		size1, size2 := uint64(pairs[i][0]), uint64(pairs[i][1])
		want, err := tlog.ProveTree(int64(size2), int64(size1), g.tlog)
		require.NoError(t, err)
		requirePath(t, tlog.RecordProof(want), path, fmt.Sprintf("from %d to %d", size1, size2))
		other, err := g.tree.ConsistencyProof(size1, size2)
		require.NoError(t, err)
		require.Equal(t, len(other), len(path))
		for n := range other {
			require.Equal(t, other[n], path[n], "from %d to %d", size1, size2)
		}
		require.NoError(t, proof.VerifyConsistency(rfc6962.DefaultHasher, size1, size2, path, g.tree.HashAt(size1), g.tree.HashAt(size2)))
	}
}

func requirePath(t *testing.T, want tlog.RecordProof, path [][]byte, about string) {
	t.Helper()
	require.Len(t, path, len(want), about)
	for i := range want {
		require.Equal(t, want[i][:], path[i], "hash %d %s", i, about)
	}
}

// requireTiles compares every tile.
func (g *grown) requireTiles(t *testing.T) {
	t.Helper()
	type tile struct {
		Level, Index int64
		Hashes       []byte
	}
	rows, err := g.conn.Query(t.Context(), `select t.level::bigint, t.tile_index, t.hashes from custody_data.ledger_tiles t order by 1, 2`)
	require.NoError(t, err)
	tiles, err := pgx.CollectRows(rows, pgx.RowToStructByPos[tile])
	require.NoError(t, err)
	count := 0
	for _, want := range tlog.NewTiles(8, 0, int64(g.size())) {
		data, err := tlog.ReadTileData(want, g.tlog)
		require.NoError(t, err)
		require.Less(t, count, len(tiles))
		require.Equal(t, tile{int64(want.L), want.N, data}, tiles[count])
		count++
	}
	require.Len(t, tiles, count)
}

// Roots, paths and tiles of trees of 0 to 70,000 leaves, grown in random steps: each
// size up to 300, those around each power of two and each multiple of 256, and others.
func TestTreeAgreesWithOthers(t *testing.T) {
	t.Parallel()
	const largest = 70_000
	g := newGrown(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	g.requireRoots(t, 0)
	g.requireTiles(t)
	for g.size() < largest {
		step := 1 + random.IntN(1<<random.IntN(14))
		if random.IntN(4) == 0 {
			step = 256 - g.size()%256 // to the end of a tile
		}
		entries := make([][]byte, min(step, largest-g.size()))
		for i := range entries {
			entries[i] = fmt.Appendf(nil, "%d %d", seed, g.size()+i)
		}
		g.append(t, entries...)
		// at the right edge, where tiles are partial
		g.requireRoots(t, g.size())
		g.requireInclusion(t, [][2]int{{0, g.size()}, {g.size() - 1, g.size()}})
	}
	g.requireTiles(t)

	edges := map[int]bool{}
	for n := 256; n <= largest+1; n += 256 {
		edges[n-1], edges[n], edges[n+1] = true, true, true
	}
	for n := 1; n <= largest; n *= 2 {
		for near := max(n-2, 1); near <= n+2; near++ {
			edges[near] = true
		}
	}
	var sizes []int
	for n := range largest + 1 {
		if n <= 300 || edges[n] || random.IntN(500) == 0 {
			sizes = append(sizes, n)
		}
	}
	g.requireRoots(t, sizes...)

	var inclusion, consistency [][2]int
	for size := 1; size <= 40; size++ {
		for other := range size {
			inclusion = append(inclusion, [2]int{other, size})
			consistency = append(consistency, [2]int{other + 1, size})
		}
	}
	for _, size := range sizes[1:] {
		other := sizes[1+random.IntN(len(sizes)-1)]
		inclusion = append(inclusion, [2]int{random.IntN(size), size})
		consistency = append(consistency, [2]int{min(size, other), max(size, other)})
	}
	g.requireInclusion(t, inclusion)
	g.requireConsistency(t, consistency)
	t.Logf("%d roots, %d inclusion paths, %d consistency paths", len(sizes), len(inclusion), len(consistency))
}

// The vectors that implementations of RFC 6962 share, first published with Certificate
// Transparency's C++ tree.
func TestTreeVectors(t *testing.T) {
	t.Parallel()
	unhex := func(texts ...string) (all [][]byte) {
		for _, text := range texts {
			b, err := hex.DecodeString(text)
			require.NoError(t, err)
			all = append(all, b)
		}
		return all
	}
	g := newGrown(t)
	for _, leaf := range unhex("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f") {
		g.append(t, leaf)
	}
	for size, root := range unhex(
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	) {
		require.Equal(t, root, askPairs[[]byte](t, g, "select custody.ledger_root(p.a)", [][2]int{{size, 0}})[0], "of %d leaves", size)
	}
	for pair, path := range map[[2]int][][]byte{ // index and size
		{0, 1}: {},
		{0, 8}: unhex("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7", "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e", "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"),
		{5, 8}: unhex("bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b", "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
		{2, 3}: unhex("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
		{1, 5}: unhex("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e", "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"),
	} {
		require.Equal(t, path, askPairs[[][]byte](t, g, "select custody_data.inclusion_path(p.a, p.b)", [][2]int{pair})[0], pair)
	}
	for pair, path := range map[[2]int][][]byte{ // two sizes
		{1, 1}: {},
		{1, 8}: unhex("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7", "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e", "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"),
		{6, 8}: unhex("0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a", "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
		{2, 5}: unhex("5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e", "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"),
		{6, 7}: unhex("0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a", "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
	} {
		require.Equal(t, path, askPairs[[][]byte](t, g, "select custody_data.consistency_path(p.a, p.b)", [][2]int{pair})[0], pair)
	}
}
