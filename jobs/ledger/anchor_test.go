package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/store"
)

// newStore opens a bucket of the test's own on the shared stack.
func newStore(t testing.TB) store.Store {
	t.Helper()
	bucket := stacktest.Bucket(t)
	setAWS.Do(func() {
		for name, value := range stacktest.Shared(t).Env() {
			if strings.HasPrefix(name, "AWS_") {
				require.NoError(t, os.Setenv(name, value)) //nolint:usetesting // for all tests, which run in parallel
			}
		}
	})
	s, err := store.OpenURL(t.Context(), "s3://"+bucket)
	require.NoError(t, err)
	return s
}

// setAWS names the stack's S3 server, the same one for all tests.
var setAWS sync.Once

// ledgerOf is a database as the anchor sees it, whose tree is in memory: the real
// one is behind SQL that has tests of its own.
type ledgerOf struct {
	*memory
	head    Head
	mu      sync.Mutex
	records map[int64]Record
	until   time.Time
	lie     tlog.Hash // told as the root, where set
}

func newLedger(label string, size int64) *ledgerOf {
	return &ledgerOf{memory: grown(label, size), records: map[int64]Record{}, until: time.Now().Add(time.Hour).UTC().Truncate(time.Second),
		head: Head{SystemIdentifier: "7400000000000000001", Timeline: 1, IncarnationID: uuid.New(), SealedTo: "812"}}
}

// clone is the database's copy, in a cluster of that identifier and timeline.
func (l *ledgerOf) clone(identifier string, timeline int64) *ledgerOf {
	c := newLedger("", 0)
	c.size = l.size
	for at, hashes := range l.tiles {
		c.tiles[at] = bytes.Clone(hashes)
	}
	for n, record := range l.records {
		c.records[n] = record
	}
	c.head.SystemIdentifier, c.head.Timeline = identifier, timeline
	return c
}

func (l *ledgerOf) Head(ctx context.Context) (Head, error) {
	head := l.head
	tree := l.tree(ctx)
	head.Size, head.Root, head.RetainUntil = tree.N, tree.Hash, l.until
	if l.lie != (tlog.Hash{}) {
		head.Root = l.lie
	}
	return head, nil
}

func (l *ledgerOf) LastCheckpoint(context.Context) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := int64(0)
	for n := range l.records {
		last = max(last, n)
	}
	return last, nil
}

func (l *ledgerOf) Checkpoint(_ context.Context, number int64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.records[number].Note, nil
}

func (l *ledgerOf) RecordCheckpoint(_ context.Context, record Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.records[record.Number-1]; !ok && record.Number > 1 {
		return fmt.Errorf("checkpoint %d leaves a gap", record.Number)
	}
	l.records[record.Number] = record
	return nil
}

func (l *ledgerOf) TakeOver(_ context.Context, prefix int64, leaves []byte, observed json.RawMessage) error {
	if !json.Valid(observed) {
		return errors.New("observed is no JSON")
	}
	l.cut(prefix)
	l.memory.mu.Lock()
	defer l.memory.mu.Unlock()
	for leaf := range slices.Chunk(leaves, HashSize) {
		l.add(tlog.Hash(leaf))
		l.size++
	}
	l.head.IncarnationID = uuid.New()
	return nil
}

// anchors is an anchor and the clock that it goes by.
type anchors struct {
	*Anchor
	t   testing.TB
	dir string
	at  time.Time
}

func newAnchor(t testing.TB, db *ledgerOf, s store.Store) *anchors {
	t.Helper()
	signer, dir := newSigner(t)
	a := &anchors{t: t, dir: dir, at: time.Now().UTC()}
	a.Anchor = &Anchor{Database: db, Store: s, Signer: signer, now: func() time.Time { return a.at }}
	return a
}

// on is the same anchor on another database.
func (a *anchors) on(db *ledgerOf) *anchors {
	other := &anchors{t: a.t, dir: a.dir, at: a.at}
	other.Anchor = &Anchor{Database: db, Store: a.Store, Signer: a.Signer, now: func() time.Time { return other.at }}
	return other
}

func (a *anchors) run() Result {
	a.t.Helper()
	result, err := a.Run(a.t.Context())
	require.NoError(a.t, err)
	return result
}

// refused runs the anchor, which must write nothing, and returns what it said.
func (a *anchors) refused(kind error) (said string) {
	a.t.Helper()
	before := objects(a.t, a.Store)
	_, err := a.Run(a.t.Context())
	require.ErrorIs(a.t, err, kind)
	require.Equal(a.t, before, objects(a.t, a.Store), "nothing is written")
	var wrong *Error
	require.ErrorAs(a.t, err, &wrong)
	require.NotEmpty(a.t, wrong.Hint)
	return err.Error()
}

// objects counts the versions of each object.
func objects(t testing.TB, s store.Store) map[string]int {
	t.Helper()
	found := map[string]int{}
	for info, err := range s.Versions(t.Context(), "") {
		require.NoError(t, err)
		found[info.Key]++
	}
	return found
}

func content(t testing.TB, s store.Store, key string) []byte {
	t.Helper()
	object, err := s.Get(t.Context(), key, "")
	require.NoError(t, err)
	defer object.Close()
	all, err := io.ReadAll(object)
	require.NoError(t, err)
	return all
}

func TestAnchor(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := newLedger("x", 0)
	a := newAnchor(t, db, s)

	// The empty tree is anchored too: from then on nothing can be before it.
	require.True(t, a.run().Anchored)
	require.Equal(t, map[string]int{CheckpointKey(origin, 1): 1, NewestKey(origin): 1}, objects(t, s))
	a.at = a.at.Add(time.Minute)
	require.False(t, a.run().Anchored)

	for i, size := range []int64{17, 256, 300, 66_000} {
		db.grow("x", size)
		a.at = a.at.Add(time.Minute)
		result := a.run()
		require.True(t, result.Anchored)
		require.EqualValues(t, i+2, result.Number)
		require.Equal(t, db.tree(t.Context()), result.Newest.Tree())
		require.Equal(t, content(t, s, result.Key), content(t, s, NewestKey(origin)))
		info, err := s.Head(t.Context(), result.Key, "")
		require.NoError(t, err)
		require.True(t, info.LockedUntil(a.at.AddDate(7, 0, 0)))
		require.Equal(t, content(t, s, result.Key), db.records[result.Number].Note)
		require.False(t, a.run().Anchored)
	}
	require.Len(t, db.records, 5)
	all := objects(t, s)
	for _, key := range []string{"tile/0/000.p/17", "tile/0/000", "tile/1/000.p/1", "tile/0/001.p/44", "tile/0/256", "tile/0/257.p/208", "tile/1/000", "tile/1/001.p/1", "tile/2/000.p/1"} {
		require.Equal(t, 1, all[Prefix(origin)+key], key)
		info, err := s.Head(t.Context(), Prefix(origin)+key, "")
		require.NoError(t, err)
		require.True(t, info.LockedUntil(a.at.AddDate(7, 0, -1)), key)
	}
	require.Len(t, slices.DeleteFunc(slices.Collect(keysOf(all)), func(k string) bool { return !strings.Contains(k, "/tile/") }), 257+6+1)

	// The database may ask for more.
	db.until = a.at.AddDate(12, 0, 0).Truncate(time.Second)
	// The heartbeat: as large, later.
	a.at = a.at.Add(59 * time.Minute)
	require.False(t, a.run().Anchored)
	a.at = a.at.Add(time.Minute)
	beat := a.run()
	require.True(t, beat.Anchored)
	require.EqualValues(t, 66_000, beat.Size)
	require.Zero(t, beat.Tiles)
	require.Equal(t, a.at.Truncate(time.Second), beat.Time)
	info, err := s.Head(t.Context(), beat.Key, "")
	require.NoError(t, err)
	require.True(t, info.LockedUntil(db.until))

	// A rotation ends with the next one.
	require.NoError(t, a.Signer.Rotate(t.Context(), a.at))
	a.at = a.at.Add(time.Hour)
	require.True(t, a.run().Anchored)
	require.Len(t, a.Signer.private, 1)
	a.at = a.at.Add(time.Hour)
	require.True(t, a.run().Anchored)
}

func keysOf(m map[string]int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// What a static file server over the bucket serves is a log that x/mod's own client
// reads.
func TestStaticServer(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := newLedger("x", 0)
	a := newAnchor(t, db, s)
	for _, size := range []int64{100, 300, 65_536, 66_051} {
		db.grow("x", size)
		a.run()
	}
	dir := t.TempDir()
	for info, err := range s.List(t.Context(), "log/") {
		require.NoError(t, err)
		path := filepath.Join(dir, filepath.FromSlash(info.Key))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, content(t, s, info.Key), 0o600))
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	get := func(path string) []byte {
		response, err := server.Client().Get(server.URL + "/log/" + origin + "/" + path)
		require.NoError(t, err)
		defer response.Body.Close()
		require.Equal(t, http.StatusOK, response.StatusCode, path)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return body
	}
	newest, err := Open(get("checkpoint"), origin, a.Signer.VerifierKeys())
	require.NoError(t, err)
	require.EqualValues(t, 66_051, newest.Size)
	for number := int64(1); number <= newest.Number; number++ {
		c, err := Open(get(strings.TrimPrefix(CheckpointKey(origin, number), Prefix(origin))), origin, a.Signer.VerifierKeys())
		require.NoError(t, err)
		client := tlog.TileHashReader(c.Tree(), staticTiles(get))
		for _, index := range []int64{0, 255, 256, c.Size / 2, c.Size - 1} {
			if index >= c.Size {
				continue
			}
			hashes, err := tlog.ProveRecord(c.Size, index, client)
			require.NoError(t, err)
			require.NoError(t, tlog.CheckRecord(hashes, c.Size, c.Root, index, tlog.RecordHash(entry("x", index))))
		}
		if c.Size < newest.Size {
			hashes, err := tlog.ProveTree(newest.Size, c.Size, tlog.TileHashReader(newest.Tree(), staticTiles(get)))
			require.NoError(t, err)
			require.NoError(t, tlog.CheckTree(hashes, newest.Size, newest.Root, c.Size, c.Root))
		}
	}
}

// staticTiles reads tiles by their C2SP paths.
type staticTiles func(path string) []byte

func (staticTiles) Height() int                     { return 8 }
func (staticTiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (get staticTiles) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		data = append(data, get(strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
	}
	return data, nil
}

// A run may end at any step; the next one ends in the same state.
func TestAnchorKilledAnywhere(t *testing.T) {
	t.Parallel()
	steps := []string{"before finishing", "after tiles", "after sign", "after checkpoint", "after newest", "after record"}
	for _, grows := range []bool{false, true} {
		t.Run(fmt.Sprintf("grows=%t", grows), func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			db := newLedger("x", 300)
			a := newAnchor(t, db, s)
			a.run()
			want := int64(1)
			for _, killed := range steps {
				db.grow("x", db.size+200)
				a.at = a.at.Add(time.Minute)
				died := errors.New("killed " + killed)
				a.step = func(step string) error {
					if step == killed {
						return died
					}
					return nil
				}
				_, err := a.Run(t.Context())
				require.ErrorIs(t, err, died)
				want++
				a.step = nil
				// Another process has its own idea of the files.
				signer, err := OpenSigner(a.dir)
				require.NoError(t, err)
				a.Signer.Close()
				a.Signer = signer
				t.Cleanup(signer.Close)
				if grows {
					db.grow("x", db.size+100)
				}
				a.at = a.at.Add(time.Minute)
				result := a.run()
				if grows && slices.Contains(steps[3:], killed) {
					want++ // what was put covers less than there is now
				}
				require.Equal(t, want, result.Number, killed)
				require.Equal(t, db.tree(t.Context()), result.Newest.Tree(), killed)
				require.Equal(t, content(t, s, result.Key), content(t, s, NewestKey(origin)))
				require.Len(t, db.records, int(want))
				require.False(t, a.run().Anchored)
				state, err := a.Signer.State()
				require.NoError(t, err)
				require.Equal(t, State{Number: want, Size: db.size, Root: result.Root, Finished: want}, state)
			}
			for key, versions := range objects(t, s) {
				if key != NewestKey(origin) {
					require.Equal(t, 1, versions, key)
				}
			}
			everyCheckpointExtends(t, a)
		})
	}
}

// everyCheckpointExtends looks at the numbered checkpoints as an auditor does.
func everyCheckpointExtends(t testing.TB, a *anchors) {
	t.Helper()
	var last Checkpoint
	for number := int64(1); ; number++ {
		object, err := a.Store.Get(t.Context(), CheckpointKey(origin, number), "")
		if errors.Is(err, store.ErrNotFound) {
			require.Greater(t, number, int64(1))
			return
		}
		require.NoError(t, err)
		signed, err := io.ReadAll(object)
		object.Close()
		require.NoError(t, err)
		c, err := Open(signed, origin, a.Signer.VerifierKeys())
		require.NoError(t, err)
		require.Equal(t, number, c.Number)
		b := bucket{a.Store, origin, a.Signer.VerifierKeys()}
		checked := b.tiles(t.Context()).checked(c.Tree())
		root, err := tlog.TreeHash(c.Size, checked)
		require.NoError(t, err)
		require.Equal(t, c.Root, root)
		if number > 1 {
			ok, err := extends(last.Tree(), c.Tree(), checked)
			require.NoError(t, err)
			require.True(t, ok, "%d does not go on from %d", number, last.Number)
			require.False(t, c.Time.Before(last.Time))
		}
		last = c
	}
}

// copySigner is a signer of another machine, with the same key.
func copySigner(t testing.TB, dir string) *Signer {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	require.NoError(t, os.Chmod(copied, 0o700))
	for _, name := range []string{keyFile, vkeysFile, stateFile, lockFile} {
		require.NoError(t, os.Chmod(filepath.Join(copied, name), 0o600))
	}
	return reopen(t, copied)
}

// Many runs at once, with one signer or with copies of it, put each number once.
func TestAnchorTogether(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := newLedger("x", 10)
	a := newAnchor(t, db, s)
	a.run()
	for round := range 5 {
		db.grow("x", int64(100*(round+1)))
		var wg sync.WaitGroup
		for i := range 6 {
			signer := reopen(t, a.dir)
			if i%2 == 1 {
				signer = copySigner(t, a.dir)
			}
			wg.Go(func() {
				_, err := (&Anchor{Database: db, Store: s, Signer: signer}).Run(t.Context())
				if err != nil && !errors.Is(err, ErrBusy) {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 100*(round+1), a.run().Size)
	}
	everyCheckpointExtends(t, a)
}

// A key that was rotated on one machine is not used on another any more.
func TestRotatedElsewhere(t *testing.T) {
	t.Parallel()
	db := newLedger("x", 10)
	a := newAnchor(t, db, newStore(t))
	a.run()
	b := a.on(db)
	b.Signer = copySigner(t, a.dir)
	db.grow("x", 20)
	require.EqualValues(t, 2, b.run().Number)
	require.NoError(t, a.Signer.Rotate(t.Context(), a.at))
	db.grow("x", 30)
	a.at = a.at.Add(time.Minute)
	require.EqualValues(t, 3, a.run().Number)
	db.grow("x", 40)
	b.at = a.at
	require.Contains(t, b.refused(ErrUnsigned), "copy it from there")
	b.Signer = copySigner(t, a.dir)
	require.EqualValues(t, 4, b.run().Number)
	everyCheckpointExtends(t, b)
}

// The database lost what was anchored, or has other events there.
func TestSetBackAndFork(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := newLedger("x", 1000)
	a := newAnchor(t, db, s)
	a.run()

	db.cut(700)
	said := a.refused(ErrBehind)
	require.Contains(t, said, "set back to 700 of 1000 anchored leaves")
	a.at = a.at.Add(24 * time.Hour) // no lease lets a database take over from itself
	a.refused(ErrBehind)
	db.grow("y", 900)
	said = a.refused(ErrFork)
	require.Contains(t, said, "agrees with the 1000 anchored leaves only on the first 700")
	db.grow("y", 1500)
	a.refused(ErrFork)

	// An operator has it go on: the anchored leaves come back, as leaves without
	// events, and the log with them.
	newest, state, err := a.Adopt(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1000, newest.Size)
	require.EqualValues(t, 1, state.Adopted.After)
	result := a.run()
	require.Equal(t, &TakeOver{Prefix: 700, Leaves: 300, Replaced: 800}, result.TakenOver)
	require.EqualValues(t, 2, result.Number)
	db.grow("y", 2000)
	require.EqualValues(t, 3, a.run().Number)
	everyCheckpointExtends(t, a)
	// Once.
	db.cut(1900)
	a.refused(ErrBehind)
}

// Tiles that were put before a checkpoint that never came do not fit a database that
// was set back since.
func TestTilesInTheWay(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := newLedger("x", 200)
	a := newAnchor(t, db, s)
	a.run()
	db.grow("x", 600)
	died := errors.New("killed")
	a.step = func(step string) error {
		if step == "after tiles" {
			return died
		}
		return nil
	}
	_, err := a.Run(t.Context())
	require.ErrorIs(t, err, died)
	a.step = nil
	db.cut(200)
	db.grow("y", 600)
	_, err = a.Run(t.Context())
	require.ErrorIs(t, err, ErrFork)
	_, _, err = a.Adopt(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 600, a.run().Size)
	everyCheckpointExtends(t, a)
}

func TestLease(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	primary := newLedger("x", 500)
	a := newAnchor(t, primary, s)
	a.run()

	// A standby that was promoted takes over when the lease is over, with other events
	// after the anchored ones, and with other events in their place.
	promoted := primary.clone(primary.head.SystemIdentifier, 2)
	promoted.cut(450)
	promoted.grow("y", 700)
	b := a.on(promoted)
	b.at = a.at.Add(time.Hour)
	b.refused(ErrLease)
	b.at = a.at.Add(3*time.Hour + time.Minute)
	result := b.run()
	require.Equal(t, &TakeOver{Prefix: 450, Leaves: 50, Replaced: 250}, result.TakenOver)
	require.EqualValues(t, 2, result.Number)
	require.EqualValues(t, 2, result.Newest.Timeline)

	// The old primary comes back.
	primary.grow("x", 600)
	a.at = b.at.Add(time.Minute)
	said := a.refused(ErrLease)
	require.Contains(t, said, "goes on with the log at")

	// A second clone of the same timeline.
	promoted.grow("y", 800)
	clone := promoted.clone(promoted.head.SystemIdentifier, promoted.head.Timeline)
	b.at = b.at.Add(2 * time.Minute)
	b.run()
	c := a.on(clone)
	c.at = b.at
	c.refused(ErrLease)

	// A copy in another cluster waits for an operator, however long.
	copied := promoted.clone("7400000000000000002", 1)
	d := a.on(copied)
	d.at = b.at.Add(1000 * time.Hour)
	said = d.refused(ErrLease)
	require.Contains(t, said, "pgcustody signer adopt")
	_, _, err := d.Adopt(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 4, d.run().Number)
	copied.grow("z", 1000)
	require.EqualValues(t, 5, d.run().Number)
	// And the one that it took over from waits for one now.
	b.at = d.at.Add(1000 * time.Hour)
	b.refused(ErrLease)
	// An adoption is over when somebody has anchored since.
	elsewhere := b.on(promoted)
	elsewhere.Signer = copySigner(t, a.dir)
	_, _, err = elsewhere.Adopt(t.Context())
	require.NoError(t, err)
	d.at = d.at.Add(time.Hour)
	require.EqualValues(t, 6, d.run().Number)
	elsewhere.at = d.at
	elsewhere.refused(ErrLease)
	// It holds for the database that it was of alone.
	_, _, err = d.Adopt(t.Context())
	require.NoError(t, err)
	b.refused(ErrLease)
	everyCheckpointExtends(t, a)
}

// What an attacker can do to the bucket is noticed, or changes nothing.
func TestBucketChanged(t *testing.T) {
	t.Parallel()
	put := func(t *testing.T, s store.Store, key string, content []byte) {
		t.Helper()
		_, err := s.Put(t.Context(), key, bytes.NewReader(content), store.PutOptions{})
		require.NoError(t, err)
	}
	start := func(t *testing.T) (*ledgerOf, *anchors) {
		t.Helper()
		db := newLedger("x", 500)
		a := newAnchor(t, db, newStore(t))
		a.run()
		db.grow("x", 600)
		return db, a
	}
	signed := func(t *testing.T, a *anchors, number int64, m *memory) []byte {
		t.Helper()
		c := testCheckpoint(m.tree(t.Context()), number)
		c.Time = a.at.Truncate(time.Second)
		return sign(t, c, a.Signer.private...)
	}

	t.Run("another root signed", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		put(t, a.Store, CheckpointKey(origin, 1), signed(t, a, 1, grown("y", 500)))
		a.refused(ErrFork)
	})
	t.Run("signed by another key", func(t *testing.T) {
		t.Parallel()
		db, a := start(t)
		stranger, _ := testKey(t, origin)
		put(t, a.Store, CheckpointKey(origin, 1), sign(t, testCheckpoint(grown("y", 500).tree(t.Context()), 1), stranger))
		put(t, a.Store, CheckpointPrefix(origin)+"000000000001.txt", nil)
		put(t, a.Store, NewestKey(origin), []byte("nonsense"))
		result := a.run()
		require.Len(t, result.Strange, 2)
		require.EqualValues(t, 2, result.Number)
		require.Equal(t, db.tree(t.Context()), result.Newest.Tree())
		require.Equal(t, content(t, a.Store, result.Key), content(t, a.Store, NewestKey(origin)))
	})
	t.Run("its own with more signatures", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		own := content(t, a.Store, CheckpointKey(origin, 1))
		stranger, _ := testKey(t, "stranger")
		_, line, _ := strings.Cut(string(sign(t, testCheckpoint(grown("x", 500).tree(t.Context()), 1), stranger)), sigSplit)
		put(t, a.Store, CheckpointKey(origin, 1), append(own, line...))
		require.EqualValues(t, 2, a.run().Number)
	})
	t.Run("only strangers'", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		stranger, _ := testKey(t, origin)
		put(t, a.Store, CheckpointKey(origin, 2), sign(t, testCheckpoint(grown("y", 500).tree(t.Context()), 2), stranger))
		before := objects(t, a.Store)
		_, err := a.Run(t.Context())
		require.ErrorIs(t, err, ErrUnsigned)
		require.Equal(t, before, objects(t, a.Store))
	})
	t.Run("a gap", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		put(t, a.Store, CheckpointKey(origin, 3), signed(t, a, 3, grown("x", 600)))
		a.refused(ErrAltered)
	})
	t.Run("another number's", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		put(t, a.Store, CheckpointKey(origin, 2), signed(t, a, 1, grown("x", 500)))
		a.refused(ErrAltered)
	})
	t.Run("another bucket", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		a.Store = newStore(t)
		a.refused(ErrAltered)
	})
	t.Run("lost", func(t *testing.T) {
		t.Parallel()
		db, a := start(t)
		for range 3 {
			db.grow("x", db.size+300)
			a.run()
		}
		old := a.Store
		a.Store = newStore(t)
		a.refused(ErrAltered)
		changed := db.records[3]
		db.records[3] = db.records[2]
		_, _, err := a.Adopt(t.Context())
		require.ErrorIs(t, err, ErrAltered)
		db.records[3] = changed
		a.Store = newStore(t)
		newest, _, err := a.Adopt(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 4, newest.Number)
		a.at = a.at.Add(time.Minute)
		require.False(t, a.run().Anchored)
		require.Equal(t, objects(t, old), func() map[string]int {
			all := objects(t, a.Store)
			all[NewestKey(origin)] = 4 // which was written once here
			return all
		}())
		db.grow("x", db.size+300)
		require.EqualValues(t, 5, a.run().Number)
		everyCheckpointExtends(t, a)
	})
	t.Run("what was signed and is gone", func(t *testing.T) {
		t.Parallel()
		db, a := start(t)
		// Number 2 was signed and not put: it is signed again. Number 3 cannot be.
		tree := db.tree(t.Context())
		require.NoError(t, a.Signer.setState(State{Number: 3, Size: tree.N, Root: tree.Hash, Finished: 1}))
		a.refused(ErrAltered)
		require.NoError(t, a.Signer.setState(State{Number: 2, Size: tree.N, Root: tree.Hash, Finished: 1}))
		require.EqualValues(t, 2, a.run().Number)
	})
	t.Run("delete marker", func(t *testing.T) {
		t.Parallel()
		db, a := start(t)
		s := stacktest.Shared(t).S3()
		deleteCurrent(t, s, a.Store, CheckpointKey(origin, 1))
		result := a.run()
		require.EqualValues(t, 2, result.Number)
		require.Equal(t, db.tree(t.Context()), result.Newest.Tree())
	})
	t.Run("the future", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		a.at = a.at.Add(-time.Hour)
		a.refused(ErrClock)
	})
	t.Run("the database's own tiles", func(t *testing.T) {
		t.Parallel()
		db, a := start(t)
		db.tiles[place{0, 1}][5]++ // a leaf that is anchored
		a.refused(ErrAltered)
		db.tiles[place{0, 1}][5]--
		db.lie = emptyRoot()
		a.refused(ErrAltered)
		db.lie = tlog.Hash{}
		db.tiles[place{0, 2}][5]++ // one that is not yet: another tree, which nobody can know
		require.EqualValues(t, 2, a.run().Number)
	})
	t.Run("the signer's state", func(t *testing.T) {
		t.Parallel()
		_, a := start(t)
		require.NoError(t, os.Remove(filepath.Join(a.dir, stateFile)))
		a.refused(ErrState)
		_, _, err := a.Adopt(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 2, a.run().Number)
	})
}

// More checkpoints than one page of a listing.
func TestManyCheckpoints(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := newLedger("x", 1)
	a := newAnchor(t, db, s)
	tree := db.tree(t.Context())
	const many = 1003
	for number := int64(1); number < many; number++ {
		c := testCheckpoint(tree, number)
		c.SystemIdentifier, c.Timeline, c.IncarnationID, c.Time = db.head.SystemIdentifier, db.head.Timeline, db.head.IncarnationID, noon
		_, err := s.Put(t.Context(), CheckpointKey(origin, number), bytes.NewReader(sign(t, c, a.Signer.private...)), store.PutOptions{})
		require.NoError(t, err)
	}
	for _, finished := range []int64{0, 1, 998, 999, 1000, 1001, many - 1} {
		state, err := a.Signer.State()
		require.NoError(t, err)
		state.Finished = finished
		require.NoError(t, a.Signer.setState(state))
		newest, _, err := bucket{s, origin, a.Signer.VerifierKeys()}.newest(t.Context(), finished)
		require.NoError(t, err)
		require.EqualValues(t, many-1, newest.Number)
	}
	_, _, err := bucket{s, origin, a.Signer.VerifierKeys()}.newest(t.Context(), many)
	require.ErrorIs(t, err, ErrAltered)
	_, _, err = bucket{s, origin, a.Signer.VerifierKeys()}.newest(t.Context(), 2000)
	require.ErrorIs(t, err, ErrAltered)
	// A database that has none on record gets all.
	result := a.run()
	require.EqualValues(t, many, result.Number)
	require.Len(t, db.records, many)
}

// lockless is a store that takes objects without their lock, and, where deaf, does not
// lock them when it is told to again.
type lockless struct {
	store.Store
	deaf bool
}

func (s lockless) Put(ctx context.Context, key string, body io.Reader, opts store.PutOptions) (store.PutResult, error) {
	opts.RetainUntil = time.Time{}
	return s.Store.Put(ctx, key, body, opts)
}

func (s lockless) Extend(ctx context.Context, key, version string, until time.Time) error {
	if s.deaf {
		return nil
	}
	return s.Store.Extend(ctx, key, version, until)
}

// What is not locked is no anchor, whatever the store answered.
func TestLockIsReadBack(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a := newAnchor(t, newLedger("x", 3), lockless{s, true})
	_, err := a.Run(t.Context())
	require.ErrorIs(t, err, store.ErrNotLocked)
	require.Empty(t, a.Database.(*ledgerOf).records)
	a = newAnchor(t, newLedger("x", 3), lockless{newStore(t), false})
	info, err := a.Store.Head(t.Context(), a.run().Key, "")
	require.NoError(t, err)
	require.True(t, info.LockedUntil(a.at.AddDate(7, 0, 0)))
}
