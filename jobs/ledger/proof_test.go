package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	formatslog "github.com/transparency-dev/formats/log"
	formatsproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const origin = "example.com/custody"

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// testKey makes a key that signs and the key that checks it.
func testKey(t testing.TB, name string) (note.Signer, VerifierKey) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	require.NoError(t, err)
	signer, err := note.NewSigner(private)
	require.NoError(t, err)
	key, err := ParseVerifierKey(public)
	require.NoError(t, err)
	return signer, key
}

func testCheckpoint(tree tlog.Tree, number int64) Checkpoint {
	waiting := noon.Add(-time.Minute - 123456*time.Microsecond)
	return Checkpoint{Origin: origin, Size: tree.N, Root: tree.Hash, Anchored: Anchored{
		Number: number, Time: noon, SystemIdentifier: "7400000000000000001", Timeline: 1,
		IncarnationID: uuid.MustParse("01a1fd8f-a944-73e5-8efc-e491a597d13b"), SealedTo: "812", WaitingSince: &waiting,
	}}
}

func sign(t testing.TB, c Checkpoint, signers ...note.Signer) []byte {
	t.Helper()
	text, err := c.Text()
	require.NoError(t, err)
	signed, err := note.Sign(&note.Note{Text: text}, signers...)
	require.NoError(t, err)
	return signed
}

func random(t testing.TB, below int64) int64 {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(below))
	require.NoError(t, err)
	return n.Int64()
}

// sizes are those around which trees change their shape, and some at random.
func sizes(t testing.TB) []int64 {
	var list []int64
	for _, around := range []int64{1, 2, 4, 8, 64, 128, 256, 512, 768, 1024, 4096, 7 * 256, 65_280, 65_536, 65_536 + 256} {
		list = append(list, around-1, around, around+1)
	}
	for range 20 {
		list = append(list, 1+random(t, 70_000))
	}
	list = append(list, 70_000)
	slices.Sort(list)
	return slices.Compact(list)
}

// Roots, and proofs of both kinds, are those that other people's programs compute
// and accept.
func TestAgainstOtherImplementations(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const most = 70_000
	m := grown("x", most)
	reader := databaseTiles(ctx, m)
	roots := map[int64]tlog.Hash{}
	theirs := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	want := sizes(t)
	for i := int64(0); ; i++ {
		if i == 0 || slices.Contains(want, i) {
			root, err := theirs.GetRootHash(nil)
			require.NoError(t, err)
			if i == 0 {
				root = rfc6962.DefaultHasher.EmptyRoot()
			}
			ours, err := tlog.TreeHash(i, reader)
			require.NoError(t, err)
			require.Equal(t, root, ours[:], i)
			roots[i] = ours
		}
		if i == most {
			break
		}
		require.NoError(t, theirs.Append(rfc6962.DefaultHasher.HashLeaf(entry("x", i)), nil))
	}

	signer, key := testKey(t, origin)
	raw := func(hashes []tlog.Hash) [][]byte {
		var out [][]byte
		for _, hash := range hashes {
			out = append(out, hash[:])
		}
		return out
	}
	for at, size := range want {
		if size == 0 {
			continue
		}
		tree := tlog.Tree{N: size, Hash: roots[size]}
		checked := reader.checked(tree)
		c := testCheckpoint(tree, 1)
		signed := sign(t, c, signer)
		for _, index := range []int64{0, size - 1, size / 2, random(t, size)} {
			hashes, err := tlog.ProveRecord(size, index, checked)
			require.NoError(t, err)
			require.NoError(t, proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(index), uint64(size),
				rfc6962.DefaultHasher.HashLeaf(entry("x", index)), raw(hashes), tree.Hash[:]))
			p := InclusionProof{Entry: entry("x", index), Index: index, Hashes: hashes, Checkpoint: signed}

			var read formatsproof.TLogProof
			require.NoError(t, read.Unmarshal(p.Marshal()))
			require.EqualValues(t, index, read.Index)
			require.Equal(t, p.Entry, read.ExtraData)
			require.Equal(t, signed, read.Checkpoint)
			require.Equal(t, read.Marshal(), p.Marshal())

			again, err := ParseInclusion(p.Marshal())
			require.NoError(t, err)
			require.Equal(t, p.Marshal(), again.Marshal())
			found, err := again.Check(origin, []VerifierKey{key}, nil)
			require.NoError(t, err)
			require.Equal(t, c, found)
		}
		olds := []int64{0, 1, size, size / 2, random(t, size) + 1}
		if at > 0 {
			olds = append(olds, want[at-1])
		}
		for _, old := range olds {
			older := tlog.Tree{N: old}
			var err error
			older.Hash, err = tlog.TreeHash(old, reader)
			require.NoError(t, err)
			var hashes []tlog.Hash
			if old > 0 && old < size {
				hashes, err = tlog.ProveTree(size, old, checked)
				require.NoError(t, err)
			}
			require.NoError(t, proof.VerifyConsistency(rfc6962.DefaultHasher, uint64(old), uint64(size), raw(hashes), older.Hash[:], tree.Hash[:]))
			p := ConsistencyProof{Hashes: hashes, Old: sign(t, testCheckpoint(older, 1), signer), New: signed}
			again, err := ParseConsistency(p.Marshal())
			require.NoError(t, err)
			require.Equal(t, p.Marshal(), again.Marshal())
			require.True(t, IsConsistency(p.Marshal()))
			_, _, err = again.Check(origin, []VerifierKey{key})
			require.NoError(t, err, "%d of %d", old, size)
			ok, err := extends(older, tree, checked)
			require.NoError(t, err)
			require.True(t, ok)
		}
	}

	// Their reader of checkpoints takes ours, and reads the same.
	tree := tlog.Tree{N: most, Hash: roots[most]}
	verifier, err := note.NewVerifier(key.Key)
	require.NoError(t, err)
	read, rest, _, err := formatslog.ParseCheckpoint(sign(t, testCheckpoint(tree, 7), signer), origin, verifier)
	require.NoError(t, err)
	require.EqualValues(t, most, read.Size)
	require.Equal(t, tree.Hash[:], read.Hash)
	require.True(t, strings.HasPrefix(string(rest), extensionPrefix))
}

// A byte changed anywhere in a file makes the proof fail, save in the last letter of a
// signature, of which base64 uses some bits alone.
func TestAlteredProofsFail(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	m := grown("x", 700)
	reader := databaseTiles(ctx, m)
	signer, key := testKey(t, origin)
	keys := []VerifierKey{key}
	tree := m.tree(ctx)
	hashes, err := tlog.ProveRecord(700, 333, reader)
	require.NoError(t, err)
	signed := sign(t, testCheckpoint(tree, 2), signer)
	inclusion := InclusionProof{Entry: entry("x", 333), Index: 333, Hashes: hashes, Checkpoint: signed}
	file := inclusion.Marshal()
	check := func(file []byte) error {
		p, err := ParseInclusion(file)
		if err == nil {
			_, err = p.Check(origin, keys, nil)
		}
		return err
	}
	require.NoError(t, check(file))
	unused := len(file) - len("x=\n")
	for i := range file {
		for _, other := range []byte{file[i] ^ 1, '\n', '\r', ' '} {
			if other != file[i] {
				altered := slices.Clone(file)
				altered[i] = other
				if i != unused {
					require.Error(t, check(altered), "byte %d of\n%s", i, file)
				}
			}
		}
		require.Error(t, check(file[:i]))
	}

	oldRoot, err := tlog.TreeHash(300, reader)
	require.NoError(t, err)
	between, err := tlog.ProveTree(700, 300, reader)
	require.NoError(t, err)
	consistency := ConsistencyProof{Hashes: between, Old: sign(t, testCheckpoint(tlog.Tree{N: 300, Hash: oldRoot}, 1), signer), New: signed}
	file = consistency.Marshal()
	check = func(file []byte) error {
		p, err := ParseConsistency(file)
		if err == nil {
			_, _, err = p.Check(origin, keys)
		}
		return err
	}
	require.NoError(t, check(file))
	for i := range file {
		altered := slices.Clone(file)
		altered[i] ^= 1
		if i != len(file)-len("x=\n") && i != bytes.Index(file, consistency.Old)+len(consistency.Old)-len("x=\n") {
			require.Error(t, check(altered), "byte %d of\n%s", i, file)
		}
		require.Error(t, check(file[:i]))
	}

	// An entry that is not in the file, and one that is another.
	bare := inclusion
	bare.Entry = nil
	_, err = bare.Check(origin, keys, nil)
	require.ErrorIs(t, err, ErrMalformed)
	_, err = bare.Check(origin, keys, entry("x", 333))
	require.NoError(t, err)
	_, err = bare.Check(origin, keys, entry("x", 332))
	require.ErrorIs(t, err, ErrProof)
	_, err = inclusion.Check(origin, keys, entry("x", 332))
	require.ErrorIs(t, err, ErrProof)
	leaf := tlog.RecordHash(entry("x", 333))
	require.NoError(t, bare.CheckLeaf(testCheckpoint(tree, 2), leaf[:]))
	require.ErrorIs(t, bare.CheckLeaf(testCheckpoint(tree, 2), leaf[1:]), ErrMalformed)

	// A fork of the same sizes.
	fork := grown("y", 700).tree(ctx)
	consistency.New = sign(t, testCheckpoint(fork, 2), signer)
	_, _, err = consistency.Check(origin, keys)
	require.ErrorIs(t, err, ErrProof)
	consistency.Old, consistency.New = signed, consistency.Old
	_, _, err = consistency.Check(origin, keys)
	require.ErrorIs(t, err, ErrProof)
	same := ConsistencyProof{Old: signed, New: sign(t, testCheckpoint(fork, 3), signer)}
	_, _, err = same.Check(origin, keys)
	require.ErrorIs(t, err, ErrProof)
}

func FuzzParseProofs(f *testing.F) {
	signer, key := testKey(f, origin)
	m := grown("x", 3)
	signed := sign(f, testCheckpoint(m.tree(context.Background()), 1), signer)
	f.Add(InclusionProof{Entry: []byte("e"), Hashes: make([]tlog.Hash, 2), Checkpoint: signed}.Marshal())
	f.Add(ConsistencyProof{Old: signed, New: signed}.Marshal())
	f.Fuzz(func(t *testing.T, file []byte) {
		if p, err := ParseInclusion(file); err == nil {
			require.Equal(t, file, p.Marshal())
			_, _ = p.Check(origin, []VerifierKey{key}, nil)
		}
		if p, err := ParseConsistency(file); err == nil {
			require.Equal(t, file, p.Marshal())
			_, _, _ = p.Check(origin, []VerifierKey{key})
		}
	})
}
