package jobs

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"pgcustody/db"
	"pgcustody/jobs/logship"
	"pgcustody/jobs/store"
)

// watchedStore tells of each Put before it is done.
type watchedStore struct {
	store.Store
	before func(key string)
}

func (w *watchedStore) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	w.before(key)
	return w.Store.Put(ctx, key, body, o)
}

// watch has the store tell of each Put.
func (b *shipBench) watch(before func(key string)) (restore func()) {
	whole := b.deps.Store
	b.deps.Store = &watchedStore{whole, before}
	return func() { b.deps.Store = whole }
}

// full keeps the database from recording batches until it is told to.
func (b *shipBench) full() (release func()) {
	b.Helper()
	tx, err := b.super.Begin(b.Context())
	require.NoError(b, err)
	_, err = tx.Exec(b.Context(), "select pg_advisory_xact_lock(hashtextextended('pgcustody.log_batches', 0))")
	require.NoError(b, err)
	release = sync.OnceFunc(func() { require.NoError(b, tx.Rollback(context.WithoutCancel(b.Context()))) })
	b.Cleanup(release)
	return release
}

// refuse has the database refuse to record the batches of a condition.
func (b *shipBench) refuse(when, code string) (accept func()) {
	b.Helper()
	_, err := b.super.Exec(b.Context(), `
create function public.refuse() returns trigger language plpgsql as $$ begin raise exception using errcode = '`+code+`', message = 'refused'; end $$;
create trigger refuse before insert on custody_data.log_batches for each row when (`+when+`) execute function public.refuse()`)
	require.NoError(b, err)
	return func() {
		_, err := b.super.Exec(b.Context(), "drop function public.refuse() cascade")
		require.NoError(b, err)
	}
}

// shipping ships beside the test.
func (b *shipBench) shipping(ctx context.Context) (done chan error) {
	d := b.deps
	done = make(chan error, 1)
	go func() { done <- ShipLogs(ctx, d, func(string, int64) {}) }()
	return done
}

func within[T any](t *testing.T, from <-chan T, what string) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(time.Minute):
		t.Fatal("a minute went by without " + what)
	}
	return got
}

// second tells of a key whether it is of the second batch's manifest: then that batch is
// in the store.
func second(key string) bool {
	number, _ := logship.NumberOf(key)
	return number == 2 && strings.HasSuffix(key, ".manifest.json")
}

// While the database takes a batch the next one goes into the store, and no other.
func TestShipTwoOnTheWay(t *testing.T) {
	b := newShipBench(t)
	lines := b.several("a.json", 5)
	release := b.full()
	there := make(chan string, 1)
	restore := b.watch(func(key string) {
		var recorded int64
		assert.NoError(t, b.super.QueryRow(t.Context(), "select coalesce(max(b.number), 0) from custody_data.log_batches b").Scan(&recorded))
		number, _ := logship.NumberOf(key)
		assert.LessOrEqual(t, number, recorded+onTheWay, "one more is on its way")
		if second(key) {
			there <- key
		}
	})
	done := b.shipping(t.Context())
	within(t, there, "the second batch in the store")
	require.Empty(t, b.batches(), "before the first is recorded")
	require.Never(t, func() bool {
		return len(b.ask("select 1 from pg_locks l where l.locktype = 'advisory' and not l.granted and l.database = (select d.oid from pg_database d where d.datname = current_database())")) > 1
	}, time.Second, 50*time.Millisecond, "and does not ask for its own turn")
	release()
	require.NoError(t, within(t, done, "an end"))
	restore()
	require.Len(t, b.seen(), lines)
	for _, batch := range b.batches() {
		require.NotContains(t, batch.ObjectKey, "-2.", "each was put once")
	}
	require.Empty(t, b.findings())
}

// Where the database refuses a batch, what is behind it is not recorded, and nothing goes on
// when the run has ended: not even a Put that takes its time.
func TestShipRefusedOnTheWay(t *testing.T) {
	b := newShipBench(t)
	lines := b.several("a.json", 4)
	release, accept := b.full(), b.refuse("new.number = 1", "XX000")
	there, goOn := make(chan string, 1), make(chan struct{})
	var over atomic.Bool
	restore := b.watch(func(key string) {
		assert.False(t, over.Load(), "%s after the end", key)
		if second(key) {
			there <- key
			select {
			case <-goOn:
			case <-t.Context().Done():
			}
		}
	})
	done := b.shipping(t.Context())
	go func() {
		err := <-done
		over.Store(true)
		done <- err
	}()
	within(t, there, "the second batch on its way")
	release()
	// The first is refused now; the run is not over while the second is at the store.
	require.Never(t, over.Load, time.Second, 10*time.Millisecond)
	close(goOn)
	require.Eventually(t, over.Load, time.Minute, 10*time.Millisecond)
	err := <-done
	require.Equal(t, "XX000", Code(err), "what failed first, not what it brought down")
	require.ErrorContains(t, err, "record batch")
	require.Empty(t, b.batches())
	require.Empty(t, b.ask("select * from custody_data.log_sources"))
	restore()
	accept()
	b.ship()
	require.Len(t, b.seen(), lines)
	for _, batch := range b.batches()[:2] {
		require.Contains(t, batch.ObjectKey, "-2.", "what was put before is passed over")
	}
	require.Empty(t, b.findings())
}

// A run that is interrupted, or told to stop, ends; the next one goes on where the last
// recorded batch ends. One that is told to stop leaves nothing in the store unrecorded.
func TestShipEndsOnTheWay(t *testing.T) {
	b := newShipBench(t)
	lines := b.several("a.json", 6)
	release := b.full()
	there := make(chan string, 1)
	restore := b.watch(func(key string) {
		if second(key) {
			there <- key
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := b.shipping(ctx)
	within(t, there, "the second batch in the store")
	cancel()
	require.ErrorIs(t, within(t, done, "an end"), context.Canceled)
	release()
	require.Empty(t, b.batches())
	restore()

	stop := make(chan struct{})
	b.deps.Stopping = stop
	put := 0
	release = b.full()
	restore = b.watch(func(key string) {
		if strings.HasSuffix(key, ".manifest.json") {
			put++
		}
		if second(key) {
			close(stop)
		}
	})
	done = b.shipping(t.Context())
	within(t, stop, "the second batch on its way")
	select {
	case err := <-done:
		t.Fatal("it did not wait for what is on its way", err)
	case <-time.After(time.Second):
	}
	release()
	require.NoError(t, within(t, done, "an end"))
	restore()
	require.Len(t, b.batches(), put, "all that was put is recorded")
	require.Less(t, len(b.seen()), lines)
	b.deps.Stopping = nil
	b.ship()
	require.Len(t, b.seen(), lines)
	require.Empty(t, b.findings())
}

// A number that is always another's is an error at last, and no batch that was not recorded.
func TestShipNeverInTurn(t *testing.T) {
	b := newShipBench(t)
	lines := b.several("a.json", 1)
	accept := b.refuse("true", "PC071")
	err := ShipLogs(t.Context(), b.deps, func(name string, _ int64) { assert.NotEqual(t, "batches", name) })
	require.True(t, refused(err, db.ErrLogChain), "%v", err)
	accept()
	b.ship()
	require.Len(t, b.seen(), lines)
}

// A place that moves without lines waits for the batch before it, too.
func TestShipPlaceBehindABatch(t *testing.T) {
	b := newShipBench(t)
	b.several("a.json", 1)
	b.rotated("a.json", time.Minute)
	b.write("b.json", "")
	release := b.full()
	there := make(chan string, 10)
	restore := b.watch(func(key string) { there <- key })
	done := b.shipping(t.Context())
	within(t, there, "the batch on its way")
	release()
	require.NoError(t, within(t, done, "an end"))
	restore()
	require.Equal(t, []string{"b.json 0"}, b.ask("select s.file_name, s.file_offset from custody_data.log_sources s"))
	b.write("b.json", b.line("1a.2b", "more", nil))
	b.ship()
	require.NotEmpty(t, b.seen())
	require.Empty(t, b.findings())
}
