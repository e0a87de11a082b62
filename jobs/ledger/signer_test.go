package ledger

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"
)

func newSigner(t testing.TB) (*Signer, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "signer")
	s, err := InitSigner(dir, origin, noon.Add(-time.Hour))
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s, dir
}

func reopen(t testing.TB, dir string) *Signer {
	t.Helper()
	s, err := OpenSigner(dir)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func TestInitSigner(t *testing.T) {
	t.Parallel()
	s, dir := newSigner(t)
	require.Equal(t, origin, s.Origin())
	for _, name := range []string{keyFile, vkeysFile, stateFile, lockFile, "."} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, name)
	}
	content, err := os.ReadFile(filepath.Join(dir, keyFile))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(content), "PRIVATE+KEY+"+origin+"+"))

	_, err = InitSigner(dir, origin, noon)
	require.ErrorIs(t, err, ErrExists)
	again, err := os.ReadFile(filepath.Join(dir, keyFile))
	require.NoError(t, err)
	require.Equal(t, content, again)
	require.Equal(t, s.VerifierKeys()[0].String(), reopen(t, dir).VerifierKeys()[0].String())

	_, err = InitSigner(filepath.Join(t.TempDir(), "x"), "a//b", noon)
	require.ErrorIs(t, err, ErrOrigin)
	_, err = InitSigner(filepath.Join(t.TempDir(), "x", "y"), origin, noon)
	require.ErrorIs(t, err, ErrNoSigner)
	_, err = OpenSigner(filepath.Join(t.TempDir(), "x"))
	require.ErrorIs(t, err, ErrNoSigner)

	// Of many who make one at once, one does.
	dir = filepath.Join(t.TempDir(), "many")
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := InitSigner(dir, origin, noon)
			if err == nil {
				made.Add(1)
				s.Close()
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, made.Load())
	require.Len(t, reopen(t, dir).VerifierKeys(), 1)
}

// A key that was lost is replaced in its folder; what was signed last, and the old
// verifier key, stay known.
func TestLostKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, dir := newSigner(t)
	m := grown("x", 10)
	signed, err := s.Sign(testCheckpoint(m.tree(ctx), 1), databaseTiles(ctx, m))
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, keyFile)))
	_, err = OpenSigner(dir)
	require.ErrorIs(t, err, ErrNoSigner)
	_, err = InitSigner(dir, "example.com/other", noon.Add(time.Hour))
	require.ErrorIs(t, err, ErrExists)
	s, err = InitSigner(dir, origin, noon.Add(time.Hour))
	require.NoError(t, err)
	defer s.Close()
	require.Len(t, s.VerifierKeys(), 2)
	require.Equal(t, noon.Add(time.Hour), s.VerifierKeys()[0].Until)
	_, err = Open(signed, origin, s.VerifierKeys())
	require.NoError(t, err)
	state, err := s.State()
	require.NoError(t, err)
	require.EqualValues(t, 10, state.Size)
}

func TestExposedSigner(t *testing.T) {
	t.Parallel()
	_, dir := newSigner(t)
	for _, name := range []string{keyFile, vkeysFile, "."} {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		require.NoError(t, err)
		for _, bits := range []os.FileMode{0o040, 0o020, 0o010, 0o004, 0o002, 0o001} {
			require.NoError(t, os.Chmod(path, info.Mode().Perm()|bits))
			_, err = OpenSigner(dir)
			require.ErrorIs(t, err, ErrExposed, "%s %o", name, bits)
		}
		require.NoError(t, os.Chmod(path, info.Mode().Perm()))
		reopen(t, dir)
	}
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(filepath.Join(dir, keyFile), 12345, -1))
		_, err := OpenSigner(dir)
		require.ErrorIs(t, err, ErrExposed)
	}
}

func TestBrokenSignerFiles(t *testing.T) {
	t.Parallel()
	s, dir := newSigner(t)
	for name, contents := range map[string][]string{
		keyFile:   {"", "x", "PRIVATE+KEY+x"},
		vkeysFile: {"", "x"},
		stateFile: {"", "x"},
	} {
		path := filepath.Join(dir, name)
		good, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, content := range append(contents, string(good[:len(good)/2])) {
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			broken, err := OpenSigner(dir)
			if name == stateFile {
				require.NoError(t, err)
				_, err = broken.State()
			}
			require.ErrorIs(t, err, ErrMalformed, "%s: %q", name, content)
			require.NotContains(t, err.Error(), strings.TrimSpace(string(good)))
		}
		require.NoError(t, os.WriteFile(path, good, 0o600))
	}
	require.NoError(t, os.Remove(filepath.Join(dir, stateFile)))
	_, err := s.State()
	require.ErrorIs(t, err, ErrState)
}

// The signer signs nothing that does not go on from what it signed last, however it
// is asked, and remembers it before anybody sees the signature.
func TestSignOnlyWhatExtends(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, dir := newSigner(t)
	m, fork := grown("x", 1000), grown("y", 2000)
	tree := m.tree(ctx)
	signed, err := s.Sign(testCheckpoint(tree, 5), databaseTiles(ctx, m))
	require.NoError(t, err)
	_, err = Open(signed, origin, s.VerifierKeys())
	require.NoError(t, err)

	refused := func(c Checkpoint, m *memory) {
		t.Helper()
		s := reopen(t, dir)
		before, err := s.State()
		require.NoError(t, err)
		_, err = s.Sign(c, databaseTiles(ctx, m))
		require.ErrorIs(t, err, ErrState)
		after, err := s.State()
		require.NoError(t, err)
		require.Equal(t, before, after)
	}
	refused(testCheckpoint(tree, 4), m)
	refused(testCheckpoint(fork.tree(ctx), 6), fork)
	same := grown("y", 1000)
	refused(testCheckpoint(same.tree(ctx), 5), same)
	small := grown("x", 999)
	refused(testCheckpoint(small.tree(ctx), 6), small)
	refused(testCheckpoint(tlog.Tree{Hash: emptyRoot()}, 6), small)
	other := testCheckpoint(tree, 6)
	other.Origin = "example.com/other"
	refused(other, m)
	// A root that the tiles do not have.
	m.grow("x", 1500)
	wrong := testCheckpoint(tlog.Tree{N: 1500, Hash: fork.tree(ctx).Hash}, 6)
	refused(wrong, m)

	s = reopen(t, dir)
	_, err = s.Sign(testCheckpoint(m.tree(ctx), 6), databaseTiles(ctx, m))
	require.NoError(t, err)
	// The same again, as after a run that was killed.
	_, err = s.Sign(testCheckpoint(m.tree(ctx), 6), databaseTiles(ctx, m))
	require.NoError(t, err)
}

// After a rotation one checkpoint is signed by both keys; then the old one is gone
// and its verifier key ends.
func TestRotate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, dir := newSigner(t)
	m := grown("x", 1)
	at := func(n int64, later time.Duration) Checkpoint {
		m.grow("x", n)
		c := testCheckpoint(m.tree(ctx), n)
		c.Time = noon.Add(later)
		return c
	}
	before, err := s.Sign(at(1, 0), databaseTiles(ctx, m))
	require.NoError(t, err)
	old := s.VerifierKeys()
	require.NoError(t, s.Rotate(ctx, noon.Add(time.Minute)))
	err = s.Rotate(ctx, noon.Add(time.Minute))
	require.ErrorIs(t, err, ErrBusy)

	s = reopen(t, dir)
	both := at(2, 2*time.Minute)
	signed, err := s.Sign(both, databaseTiles(ctx, m))
	require.NoError(t, err)
	require.Len(t, s.VerifierKeys(), 2)
	fresh := s.VerifierKeys()[1:]
	for _, keys := range [][]VerifierKey{old, fresh, s.VerifierKeys()} {
		_, err = Open(signed, origin, keys)
		require.NoError(t, err)
	}
	// A checkpoint from before the rotation, finished after it, does not end it.
	require.NoError(t, s.finish(at(1, 0), before))
	require.Len(t, s.private, 2)
	require.NoError(t, s.finish(both, signed))

	s = reopen(t, dir)
	require.Len(t, s.private, 1)
	content, err := os.ReadFile(filepath.Join(dir, keyFile))
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(content), "PRIVATE"))
	signed, err = s.Sign(at(3, 3*time.Minute), databaseTiles(ctx, m))
	require.NoError(t, err)
	_, err = Open(signed, origin, old)
	require.ErrorIs(t, err, ErrUnsigned)
	_, err = Open(signed, origin, s.VerifierKeys())
	require.NoError(t, err)
	_, err = Open(before, origin, s.VerifierKeys())
	require.NoError(t, err)
	require.Equal(t, both.Time.Add(time.Second), s.VerifierKeys()[0].Until)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 4) // nothing left beside
}

func TestSignerLock(t *testing.T) {
	t.Parallel()
	s, dir := newSigner(t)
	unlock, err := s.lock(t.Context())
	require.NoError(t, err)
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = reopen(t, dir).lock(short)
	require.ErrorIs(t, err, ErrBusy)
	unlock()
	again, err := reopen(t, dir).lock(t.Context())
	require.NoError(t, err)
	again()
}
