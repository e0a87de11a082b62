package jobs

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
	"pgcustody/jobs/verify"
)

// TestArchiveIndex lists what came, in a chain of signed notes.
func TestArchiveIndex(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(1), 3)
	require.EqualValues(t, 1, b.run().Counts["index_skipped"], "without a signer")
	signer, err := ledger.InitSigner(filepath.Join(t.TempDir(), "signer"), "example.com/index", time.Now().Add(-time.Minute))
	require.NoError(t, err)
	t.Cleanup(signer.Close)
	b.deps.Signer = signer

	b.events(tenant, b.day(2), 3)
	require.EqualValues(t, 1, b.run().Counts["indexes"])
	require.Zero(t, b.run().Counts["indexes"], "nothing is new")
	first, one, err := readIndex(t.Context(), b.deps, 1)
	require.NoError(t, err)
	require.Equal(t, [32]byte{}, one.Previous)
	for _, day := range []time.Time{b.day(1), b.day(2)} {
		key := segment.NewName(day, 1).ManifestKey()
		content, info := b.get(key)
		require.Contains(t, one.Lines, fmt.Sprintf("segment %s %s %x", key, info.Version, sha256.Sum256(content)))
	}
	require.Len(t, one.Lines, 2)
	info, err := b.deps.Store.Head(t.Context(), ledger.ArchiveIndexKey(1), "")
	require.NoError(t, err)
	require.True(t, info.LockedUntil(b.today.AddDate(7, 0, 0)), info.RetainUntil)

	// A writer whom nobody waits for any more.
	key := segment.NewName(b.day(1), 1).ObjectKey()
	content, _ := b.get(key)
	stray, err := b.deps.Store.Put(t.Context(), key, strings.NewReader("late"), store.PutOptions{})
	require.NoError(t, err)
	_, err = b.deps.Store.Put(t.Context(), key, strings.NewReader(string(content)), store.PutOptions{})
	require.NoError(t, err)
	b.events(tenant, b.day(2), 1)
	require.EqualValues(t, 1, b.run().Counts["indexes"])
	_, two, err := readIndex(t.Context(), b.deps, 2)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(first), two.Previous)
	require.Contains(t, two.Lines, "orphan "+key+" "+stray.Version)
	require.Len(t, two.Lines, 3)
	last, err := newestIndex(t.Context(), b.deps.Store)
	require.NoError(t, err)
	require.EqualValues(t, 2, last)

	// An index that another key signed, or that was written by hand.
	_, err = b.deps.Store.Put(t.Context(), ledger.ArchiveIndexKey(3), strings.NewReader("x"), store.PutOptions{})
	require.NoError(t, err)
	b.events(tenant, b.day(2), 1)
	_, err = b.direct(t.Context(), nil)
	var finding *ArchiveFinding
	require.ErrorAs(t, err, &finding)
	require.Equal(t, ledger.ArchiveIndexKey(3), finding.Object)
}

// TestAnOrphanOverASegmentIsANote: what a writer left whom nobody waited for is no
// alteration, once the index lists it.
func TestAnOrphanOverASegmentIsANote(t *testing.T) {
	b := newArchiveBench(t)
	signer, err := ledger.InitSigner(filepath.Join(t.TempDir(), "signer"), "example.com/orphans", time.Now().Add(-time.Minute))
	require.NoError(t, err)
	t.Cleanup(signer.Close)
	b.deps.Signer = signer
	b.events(tenant, b.day(1), 3)
	b.run()
	key := segment.NewName(b.day(1), 1).ObjectKey()
	about := func() (check SegmentCheck) {
		t.Helper()
		checks, err := VerifyArchive(t.Context(), b.deps, identities(), 0, func(int, int) {})
		require.NoError(t, err)
		require.Equal(t, key, checks[0].Object)
		return checks[0]
	}
	require.Equal(t, SegmentCheck{Segment: segment.NewName(b.day(1), 1).String(), Object: key, Events: 3, StoredBytes: about().StoredBytes}, about())
	_, err = b.deps.Store.Put(t.Context(), key, strings.NewReader("late"), store.PutOptions{})
	require.NoError(t, err)
	require.Contains(t, about().Finding, "hidden under another version")
	require.EqualValues(t, 1, b.run().Counts["indexes"])
	require.Empty(t, about().Finding)
	require.Contains(t, about().Note, "lies over it")
	_, err = b.deps.Store.Put(t.Context(), key, strings.NewReader("later"), store.PutOptions{})
	require.NoError(t, err)
	require.Contains(t, about().Finding, "hidden under another version", "this one is not listed")
}

// TestHoldsReachTheStore puts the objects of held events under the store's own hold.
func TestHoldsReachTheStore(t *testing.T) {
	b := newArchiveBench(t)
	b.person("held-person")
	var person string
	require.NoError(t, b.super.QueryRow(t.Context(), "select identity_id from custody_data.identities where user_id = 'held-person'").Scan(&person))
	b.events(tenant, b.day(1), 3)
	// Half of a segment.
	b.events(tenant, b.day(2), 2)
	_, err := b.super.Exec(t.Context(), insertEvents, tenant, b.day(2), 2, person)
	require.NoError(t, err)
	b.run()
	held := func(day time.Time) bool {
		t.Helper()
		name := segment.NewName(day, 1)
		object, err := b.deps.Store.Head(t.Context(), name.ObjectKey(), b.manifest(name).ObjectVersion)
		require.NoError(t, err)
		manifest, err := b.deps.Store.Head(t.Context(), name.ManifestKey(), "")
		require.NoError(t, err)
		require.Equal(t, object.LegalHold, manifest.LegalHold)
		return object.LegalHold
	}
	require.False(t, held(b.day(1)))
	b.asRunner(`select custody.place_hold('{"user_id": "held-person"}', 'case 1', 'test')`)
	require.EqualValues(t, 1, b.run().Counts["segments_held"])
	require.True(t, held(b.day(2)))
	require.False(t, held(b.day(1)), "nothing of the person is in it")
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.audit_logs where action = 'archive.hold'"))

	b.asRunner("select custody.release_hold(hold_id, 'over') from custody.holds where active")
	require.EqualValues(t, 1, b.run().Counts["segments_freed"])
	require.False(t, held(b.day(2)))

	// A store that says yes and does nothing.
	b.asRunner(`select custody.place_hold('{"user_id": "held-person"}', 'case 2', 'test')`)
	_, err = b.direct(t.Context(), func(w *ArchiveWorker) { w.Store = &careless{w.Store} })
	var finding *ArchiveFinding
	require.ErrorAs(t, err, &finding)
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody.held_segments()"), "it was recorded all the same")
}

type careless struct{ store.Store }

func (s *careless) SetLegalHold(context.Context, string, string, bool) error { return nil }

// unlocked puts the archive without any lock, as if its locks had run out.
type unlocked struct{ store.Store }

func (s *unlocked) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	if strings.HasPrefix(key, segment.Prefix) && !isIndex(key) {
		o.RetainUntil = time.Time{}
	}
	return s.Store.Put(ctx, key, body, o)
}

// TestArchiveExpires lets the retention of a segment end: its objects go, its leaves
// stay, and the verifier knows why.
func TestArchiveExpires(t *testing.T) {
	l := newLedgerBench(t)
	l.deps.Store, l.deps.Config.Archive.Accept = &unlocked{l.deps.Store}, []string{store.NoLock}
	b := &archiveBench{bench: l.bench, super: l.database.Pool(t, stack.Superuser), today: time.Now().UTC().Truncate(24 * time.Hour)}
	day := b.day(8 * 366)
	b.events(tenant, day, 30)
	l.sealed()
	l.anchor()
	b.run()
	name := segment.NewName(day, 1)
	b.asSuper("alter table custody_data.archive_segments disable trigger all",
		"update custody_data.archive_segments set recorded_at = now() - interval '7 years', opened_at = now() - interval '8 years', retain_until = now() - interval '1 day'")
	b.asRunner(`select custody.place_hold('{"tenant": true}', 'case', 'test')`)
	require.Zero(t, b.run().Counts["segments_expired"], "it is held")
	b.asRunner("select custody.release_hold(hold_id, 'over') from custody.holds where active")
	report := b.run()
	require.Zero(t, report.Counts["segments_expired"], "its month was in Postgres")
	require.EqualValues(t, 1, report.Counts["months_dropped"])
	report = b.run()
	require.EqualValues(t, 1, report.Counts["segments_expired"])
	require.EqualValues(t, 2, report.Counts["versions_deleted"])
	for _, key := range []string{name.ObjectKey(), name.ManifestKey()} {
		_, err := b.deps.Store.Head(t.Context(), key, "")
		require.ErrorIs(t, err, store.ErrNotFound)
	}
	last, err := newestIndex(t.Context(), b.deps.Store)
	require.NoError(t, err)
	_, index, err := readIndex(t.Context(), b.deps, last)
	require.NoError(t, err)
	require.Len(t, index.Lines, 1)
	require.Regexp(t, "^expired "+name.ManifestKey()+" [0-9a-f]{64}$", index.Lines[0])
	require.Zero(t, b.run().Counts["segments_expired"])

	l.sealed()
	l.anchor()
	verified := l.verified(false)
	require.Empty(t, verified.Findings)
	require.EqualValues(t, 30, verified.Expired)
	require.Empty(t, l.verified(true).Findings)

	// Other leaves on record than those that expired.
	b.asSuper("update custody_data.archive_segments set leaves = int8multirange(int8range(1000000, 1000030)) where expired_at is not null")
	require.EqualValues(t, map[verify.Kind]int64{verify.RowMissing: 30, verify.ArchiveRecordFalse: 1}, l.verified(false).Counts)
}
