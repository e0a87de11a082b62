package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs/agekeys"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// archiveBench is a bench with a superuser, who alone can write events of any
// time, as an import would.
type archiveBench struct {
	*bench
	super  *pgxpool.Pool
	today  time.Time
	bucket string
}

func newArchiveBench(t *testing.T) *archiveBench {
	b := newBench(t)
	return &archiveBench{
		bench: b, super: b.database.Pool(t, stack.Superuser),
		today: time.Now().UTC().Truncate(24 * time.Hour), bucket: strings.TrimPrefix(b.deps.Store.URL(), "s3://"),
	}
}

// day is that many days before today.
func (b *archiveBench) day(ago int) time.Time { return b.today.AddDate(0, 0, -ago) }

const insertEvents = `
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action, resource_type, resource_id, metadata, personal, import_id)
select $1, gen_random_uuid(), $2::timestamptz + random() * interval '86399 s', $2::timestamptz + interval '86399 s', gen_random_uuid(), $4, 'phi.access', 'document',
  E'x"\\\n\t' || i, jsonb_build_object('count', i), '\x0100000001'::bytea || sha512(i::text::bytea), gen_random_uuid()
from generate_series(1, $3) i`

// events writes n events of a day in a transaction of their own.
func (b *archiveBench) events(tenant string, day time.Time, n int) {
	b.Helper()
	b.partition(day)
	_, err := b.super.Exec(b.Context(), insertEvents, tenant, day, n, nil)
	require.NoError(b, err)
}

func (b *archiveBench) partition(day time.Time) {
	b.Helper()
	b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) error {
		_, err := db.New().EnsureAuditPartitions(b.Context(), tx, db.EnsureAuditPartitionsParams{FromAt: day, ToAt: day})
		return err
	})
}

// settle waits until no transaction of the cluster is open that began before now:
// other tests' transactions hold the archive back too. With an open transaction
// of the test's own it waits for those before that.
func (b *archiveBench) settle(before ...string) {
	b.Helper()
	end := append(before, "")[0]
	if end == "" {
		require.NoError(b, b.super.QueryRow(b.Context(), "select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text").Scan(&end))
	}
	require.Eventually(b, func() bool {
		var over bool
		err := b.super.QueryRow(b.Context(), "select pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) >= $1::text::xid8", end).Scan(&over)
		return err == nil && over
	}, 5*time.Minute, 2*time.Millisecond, "a transaction of another test does not end")
}

// run does one run through River, after everything that was written before, and
// expects it to succeed.
func (b *archiveBench) run(before ...string) Report {
	b.Helper()
	b.settle(before...)
	event := b.work(ArchiveArgs{})
	require.Equal(b, river.EventKindJobCompleted, event.Kind)
	reports := b.reports.of("archive")
	return reports[len(reports)-1]
}

// direct is run without River's queue.
func (b *archiveBench) direct(ctx context.Context, change func(*ArchiveWorker)) (map[string]int64, error) {
	b.Helper()
	b.settle()
	return b.now(ctx, change)
}

// now is direct at once.
func (b *archiveBench) now(ctx context.Context, change func(*ArchiveWorker)) (map[string]int64, error) {
	w := &ArchiveWorker{Deps: b.deps}
	if change != nil {
		change(w)
	}
	run := &Run{Job: "archive", deps: w.Deps, counts: map[string]int64{}}
	config := w.Config.Archive.withDefaults()
	err := w.all(ctx, run, config)
	return run.counts, err
}

type rowID struct{ tenant, id string }

// archived reads every object of the bucket that a manifest names and returns each
// line by its id. It fails if an event is there twice, if a version lies there that no
// manifest names, or if an upload was left unfinished.
func (b *archiveBench) archived() map[rowID]string {
	b.Helper()
	lines := map[rowID]string{}
	listed := map[string]bool{}
	for object, err := range b.deps.Store.List(b.Context(), segment.Prefix) {
		require.NoError(b, err)
		if isIndex(object.Key) || strings.HasSuffix(object.Key, ".age") {
			continue
		}
		name, err := segment.ParseKey(object.Key)
		require.NoError(b, err)
		manifest := b.manifest(name)
		require.Equal(b, name.ObjectKey(), manifest.ObjectKey)
		o, err := b.deps.Store.Get(b.Context(), manifest.ObjectKey, manifest.ObjectVersion)
		require.NoError(b, err)
		require.NoError(b, segment.Verify(o, identities(), manifest, func(line []byte, _ *segment.Entry) error {
			var entry struct{ Log_entry_id, Tenant_id string }
			require.NoError(b, json.Unmarshal(line, &entry))
			id := rowID{entry.Tenant_id, entry.Log_entry_id}
			_, twice := lines[id]
			require.False(b, twice, "an event is archived twice")
			lines[id] = string(line)
			require.True(b, segment.MayHold(manifest.People, entry.Tenant_id, ""))
			return nil
		}))
		require.NoError(b, o.Close())
		manifestInfo, err := b.deps.Store.Head(b.Context(), object.Key, "")
		require.NoError(b, err)
		for key, version := range map[string]string{object.Key: manifestInfo.Version, manifest.ObjectKey: manifest.ObjectVersion} {
			info, err := b.deps.Store.Head(b.Context(), key, version)
			require.NoError(b, err)
			require.True(b, info.LockedUntil(name.Day.AddDate(7, 0, 1)), "%s is locked until %s", key, info.RetainUntil)
			require.True(b, info.LockedUntil(time.Now().AddDate(0, 0, 30)), "%s is locked until %s", key, info.RetainUntil)
			listed[key+" "+version] = true
		}
		for _, version := range manifest.SupersededVersions {
			listed[manifest.ObjectKey+" "+version] = true
		}
	}
	for info, err := range b.deps.Store.Versions(b.Context(), segment.Prefix) {
		require.NoError(b, err)
		if !isIndex(info.Key) {
			require.Contains(b, listed, info.Key+" "+info.Version, "a version that no manifest names")
		}
	}
	uploads, err := stacktest.Shared(b.T).S3().ListMultipartUploads(b.Context(), &s3.ListMultipartUploadsInput{Bucket: &b.bucket})
	require.NoError(b, err)
	for _, upload := range uploads.Uploads {
		require.Fail(b, "an upload is unfinished", "%s since %s", *upload.Key, upload.Initiated)
	}
	return lines
}

// opens the archive of every bench.
var opens = func() *age.X25519Identity {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		panic(err)
	}
	return identity
}()

func identities() []age.Identity { return []age.Identity{opens} }

func recipients() agekeys.Recipients {
	return agekeys.Recipients{Keys: []age.Recipient{opens.Recipient()}, Text: []string{opens.Recipient().String()}}
}

func (b *archiveBench) manifest(name segment.Name) *segment.Manifest {
	b.Helper()
	o, err := b.deps.Store.Get(b.Context(), name.ManifestKey(), "")
	require.NoError(b, err)
	defer o.Close()
	m, err := segment.DecodeManifest(o)
	require.NoError(b, err)
	return m
}

// closedRows are the canonical entries of all events before today.
func (b *archiveBench) closedRows() map[rowID]string {
	b.Helper()
	rows, err := b.super.Query(b.Context(), `
		select a.tenant_id, a.log_entry_id::text, custody.audit_entry(a) from custody_data.audit_logs a where a.occurred_at < $1`, b.today)
	require.NoError(b, err)
	entries := map[rowID]string{}
	var id rowID
	var entry string
	_, err = pgx.ForEachRow(rows, []any{&id.tenant, &id.id, &entry}, func() error {
		entries[id] = entry
		return nil
	})
	require.NoError(b, err)
	return entries
}

// requireAllArchived holds the bucket against the trail.
func (b *archiveBench) requireAllArchived() {
	b.Helper()
	closed, lines := b.closedRows(), b.archived()
	for id, entry := range closed {
		if lines[id] != entry {
			require.Equal(b, entry, lines[id])
		}
	}
	require.Len(b, lines, len(closed), "lines are archived that are not in the trail")
	require.Zero(b, b.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is null"))
}

func TestArchiveTakesClosedDaysOfAllTenants(t *testing.T) {
	b := newArchiveBench(t)
	b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.register_tenant('other', 'Other')")
		return err
	})
	b.events(tenant, b.day(1), 30)
	b.events("other", b.day(1), 20)
	b.events(tenant, b.day(3), 10)
	b.exec("select custody.record_audit_event('phi.access')") // today: not yet

	report := b.run()
	require.EqualValues(t, 2, report.Counts["segments"])
	require.EqualValues(t, 60, report.Counts["events"])
	require.Positive(t, report.Bytes)
	b.requireAllArchived()
	require.Len(t, b.archived(), 60)

	m := b.manifest(segment.NewName(b.day(1), 1))
	require.EqualValues(t, 50, m.Rows)
	require.NotEqual(t, "", m.SoftwareVersion)
	require.EqualValues(t, 2, b.number(SystemTenant, "select count(*) from custody_data.audit_logs where tenant_id = 'system' and action = 'archive.segment'"))
	require.EqualValues(t, 1, b.number(SystemTenant, `
		select count(*) from custody_data.audit_logs
		where tenant_id = 'system' and action = 'archive.segment' and resource_type = 'archive_segment' and resource_id = $1
			and metadata @> '{"rows": 50, "part": 1}'`, b.day(1).Format(time.DateOnly)+".1"))
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job = 'archive' and status = 'succeeded' and (counts ->> 'events')::int = 60 and bytes > 0"))

	again := b.run()
	require.Zero(t, again.Counts["segments"])
	b.requireAllArchived()
}

func TestLateEventsMakeTheNextPart(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(2), 5)
	b.run()
	b.events(tenant, b.day(2), 3)
	b.events(tenant, b.day(5), 2) // a day that nobody had seen, before one that is archived
	b.run()
	b.events(tenant, b.day(2), 1)
	b.run()
	b.requireAllArchived()
	for part, rows := range map[int]int64{1: 5, 2: 3, 3: 1} {
		require.Equal(t, rows, b.manifest(segment.NewName(b.day(2), part)).Rows)
	}
	require.EqualValues(t, 2, b.manifest(segment.NewName(b.day(5), 1)).Rows)
}

// TestOpenTransactionsAreNotLost leaves transactions open, prepared and rolled
// back while others commit and are archived. A cursor on time or id would pass
// them over.
func TestOpenTransactionsAreNotLost(t *testing.T) {
	b := newArchiveBench(t)
	day := b.day(1)
	b.partition(day)
	var open []pgx.Tx
	var xids []string
	for range 3 {
		tx, err := b.super.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), insertEvents, tenant, day, 4, nil)
		require.NoError(t, err)
		var xid string
		require.NoError(t, tx.QueryRow(t.Context(), "select pg_catalog.pg_current_xact_id()::text").Scan(&xid))
		open, xids = append(open, tx), append(xids, xid)
		b.events(tenant, day, 2)
	}
	// Nothing beyond the oldest open transaction can be taken yet.
	require.Zero(t, b.run(xids[0]).Counts["events"])
	require.NoError(t, open[0].Commit(t.Context()))
	require.EqualValues(t, 6, b.run(xids[1]).Counts["events"])
	require.NoError(t, open[2].Commit(t.Context()))
	require.Zero(t, b.run(xids[1]).Counts["events"], "the second transaction is open before it")
	require.NoError(t, open[1].Rollback(t.Context()))
	require.EqualValues(t, 8, b.run().Counts["events"])
	b.requireAllArchived()
	require.Len(t, b.archived(), 14)
}

// TestArchiveWhileAppending archives again and again while many transactions of
// different length append to closed days.
func TestArchiveWhileAppending(t *testing.T) {
	b := newArchiveBench(t)
	for ago := range 3 {
		b.partition(b.day(ago + 1))
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for n := 0; ctx.Err() == nil && n < 60; n++ {
				tx, err := b.super.Begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				for range n%3 + 1 {
					if _, err := tx.Exec(t.Context(), insertEvents, tenant, b.day((n+i)%3+1), n%4+1, nil); err != nil {
						t.Error(err)
					}
				}
				end := tx.Commit
				if n%7 == 6 {
					end = tx.Rollback
				}
				if err := end(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		_, err := b.now(t.Context(), nil)
		require.NoError(t, err)
	}
	_, err := b.direct(t.Context(), nil)
	require.NoError(t, err)
	b.requireAllArchived()
}

func TestTwoArchivesAtOnce(t *testing.T) {
	b := newArchiveBench(t)
	for ago := range 6 {
		b.events(tenant, b.day(ago+1), 20)
	}
	b.settle()
	var workers sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		workers.Go(func() {
			_, errs[i] = b.now(t.Context(), nil)
		})
	}
	workers.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	b.requireAllArchived()
	require.EqualValues(t, 6, b.number(SystemTenant, "select count(*) from custody_data.audit_logs where action = 'archive.segment'"))
}

// TestSegmentOfAnotherWorker leaves a segment alone that somebody streams.
func TestSegmentOfAnotherWorker(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(1), 10)
	tx, err := b.deps.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.Background())
	locked, err := db.New().LockSegment(t.Context(), tx, segment.NewName(b.day(1), 1).String())
	require.NoError(t, err)
	require.True(t, locked)
	counts, err := b.direct(t.Context(), func(w *ArchiveWorker) { w.Config.Archive.OthersWait = time.Millisecond })
	require.NoError(t, err)
	require.EqualValues(t, 1, counts["segments_of_others"])
	require.Empty(t, b.versions())

	// It waits for the other, should that be about to end.
	done := make(chan error, 1)
	go func() {
		_, err := b.now(t.Context(), func(w *ArchiveWorker) { w.Config.Archive.OthersWait = time.Minute })
		done <- err
	}()
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-done)
	b.requireAllArchived()
}

// waiting returns once a session of the database waits for a lock.
func (b *archiveBench) waiting(locktype, mode string) {
	b.Helper()
	require.Eventually(b, func() bool {
		var waiting bool
		err := b.super.QueryRow(b.Context(), `
			select exists (select from pg_catalog.pg_locks l
				where l.locktype = $1 and l.mode = $2 and not l.granted
					and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))`, locktype, mode).Scan(&waiting)
		return err == nil && waiting
	}, 5*time.Minute, 2*time.Millisecond)
}

// TestOpenSegmentsTakeTurns lets one call wait for another that has not committed.
func TestOpenSegmentsTakeTurns(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(2), 1)
	b.run()
	b.events(tenant, b.day(1), 10)
	b.settle()
	scope := Scope{Tenant: SystemTenant, Actor: "tester"}
	opened := make(chan error, 1)
	var second []db.OpenSegmentsRow
	err := InContext(t.Context(), b.deps.Pool, scope, func(tx pgx.Tx) error {
		first, err := db.New().OpenSegments(t.Context(), tx, 100)
		require.NoError(t, err)
		require.Len(t, first, 1)
		go func() {
			opened <- InContext(t.Context(), b.deps.Pool, scope, func(tx pgx.Tx) (err error) {
				second, err = db.New().OpenSegments(t.Context(), tx, 100)
				return err
			})
		}()
		b.waiting("advisory", "ExclusiveLock")
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, <-opened)
	require.Len(t, second, 1, "the same day was opened twice")
}

// TestOpenSegmentsOfEarlierDays asks for days before some that are archived.
func TestOpenSegmentsOfEarlierDays(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(1), 10)
	b.run()
	b.events(tenant, b.day(1), 1)
	b.events(tenant, b.day(5), 1)
	b.settle()
	b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.open_segments($1::text::date)", b.day(3).Format(time.DateOnly))
		return err
	})
	b.run()
	b.requireAllArchived()
}

var archiveSteps = []string{
	"before lock", "after lock", "before look", "after look", "before stream", "after stream", "before read back", "after read back",
	"before put manifest", "after put manifest", "before read back manifest", "after read back manifest",
	"before lock objects", "after lock objects", "before sweep", "after sweep", "before record", "after record",
}

// TestKilledAtEachStep ends a run at each step of a segment, by an error and by
// the end of its context, and lets the next run finish.
func TestArchiveKilledAtEachStep(t *testing.T) {
	t.Parallel()
	killed := errors.New("killed")
	for _, how := range []string{"error", "context"} {
		for _, at := range archiveSteps {
			t.Run(how+" "+at, func(t *testing.T) {
				b := newArchiveBench(t)
				b.events(tenant, b.day(2), 10)
				b.events(tenant, b.day(1), 10)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err := b.direct(ctx, func(w *ArchiveWorker) {
					w.step = func(step string, _ segment.Name) error {
						if step != at {
							return nil
						}
						if how == "error" {
							return killed
						}
						cancel()
						return nil
					}
				})
				if how == "error" {
					require.ErrorIs(t, err, killed)
				} else {
					require.ErrorIs(t, err, context.Canceled)
				}
				before := b.versions()
				b.events(tenant, b.day(2), 1) // must not change what the killed run began

				_, err = b.direct(t.Context(), nil)
				require.NoError(t, err)
				b.requireAllArchived()
				after := b.versions()
				for key, version := range before {
					name, err := segment.ParseKey(key)
					require.NoError(t, err)
					if _, known := before[name.ManifestKey()]; known {
						require.Equal(t, version, after[key], "%s was written again", key)
					} else {
						// Nobody could tell what was in it.
						require.Contains(t, b.manifest(name).SupersededVersions, version)
					}
				}
			})
		}
	}
}

// versions are the objects' current versions by key.
func (b *archiveBench) versions() map[string]string {
	b.Helper()
	versions := map[string]string{}
	for object, err := range b.deps.Store.List(b.Context(), segment.Prefix) {
		require.NoError(b, err)
		info, err := b.deps.Store.Head(b.Context(), object.Key, "")
		require.NoError(b, err)
		versions[object.Key] = info.Version
	}
	return versions
}

// breaking is a store that fails at will.
type breaking struct {
	store.Store
	put func(key string) error
	// answer, if it returns an error, replaces the answer to a Put that was done.
	answer func(key string) error
	get    func(key string) (*store.Object, error)
	check  []store.Finding
}

func (s *breaking) Check(ctx context.Context) ([]store.Finding, error) {
	if s.check != nil {
		return s.check, nil
	}
	return s.Store.Check(ctx)
}

func (s *breaking) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	if s.put != nil {
		if err := s.put(key); err != nil {
			return store.PutResult{}, err
		}
	}
	res, err := s.Store.Put(ctx, key, body, o)
	if err == nil && s.answer != nil {
		err = s.answer(key)
	}
	return res, err
}

func (s *breaking) Get(ctx context.Context, key, version string) (*store.Object, error) {
	if s.get != nil {
		if o, err := s.get(key); o != nil || err != nil {
			return o, err
		}
	}
	return s.Store.Get(ctx, key, version)
}

func TestArchiveStoreFails(t *testing.T) {
	t.Parallel()
	away := &store.Error{Op: "put", Object: "s3://x", Kind: store.ErrUnreachable}
	cases := map[string]func(*breaking){
		"object cannot be put":   func(s *breaking) { s.put = func(key string) error { return onObject(key, away) } },
		"manifest cannot be put": func(s *breaking) { s.put = func(key string) error { return onManifest(key, away) } },
		"object cannot be read":  func(s *breaking) { s.get = func(key string) (*store.Object, error) { return nil, onObject(key, away) } },
		"manifest cannot be read": func(s *breaking) {
			s.get = func(key string) (*store.Object, error) { return nil, onManifest(key, away) }
		},
		"manifest's answer is lost": func(s *breaking) { s.answer = func(key string) error { return onManifest(key, away) } },
	}
	for name, breaks := range cases {
		t.Run(name, func(t *testing.T) {
			b := newArchiveBench(t)
			b.events(tenant, b.day(1), 10)
			_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
				s := &breaking{Store: w.Store}
				breaks(s)
				w.Store = s
			})
			require.ErrorIs(t, err, store.ErrUnreachable)
			var failure *Failure
			require.ErrorAs(t, err, &failure)
			require.Equal(t, store.ErrUnreachable.Error(), failure.Code)
			require.Zero(t, b.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is not null"))

			_, err = b.direct(t.Context(), nil)
			require.NoError(t, err)
			b.requireAllArchived()
		})
	}
	t.Run("the object's answer is lost", func(t *testing.T) {
		// What the store took is known by its size and its digest.
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		counts, err := b.direct(t.Context(), func(w *ArchiveWorker) {
			w.Store = &breaking{Store: w.Store, answer: func(key string) error { return onObject(key, away) }}
		})
		require.NoError(t, err)
		require.EqualValues(t, 1, counts["answers_lost"])
		b.requireAllArchived()
		require.Empty(t, b.manifest(segment.NewName(b.day(1), 1)).SupersededVersions)
	})
	t.Run("a lost answer is retried by the client and refused", func(t *testing.T) {
		// The SDK sends a request again whose answer was lost; the store says that the object is there.
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
			exists := func(string) error { return &store.Error{Op: "put", Kind: store.ErrExists} }
			w.Store = &breaking{Store: w.Store, answer: exists}
		})
		require.NoError(t, err)
		b.requireAllArchived()
	})
	t.Run("bucket without Object Lock", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		bucket := "nolock-" + b.bucket[len(b.bucket)-12:]
		require.NoError(t, stacktest.Shared(t).NewBucket(t.Context(), bucket, false))
		s, err := store.OpenURL(t.Context(), "s3://"+bucket)
		require.NoError(t, err)
		_, err = b.direct(t.Context(), func(w *ArchiveWorker) { w.Store = s })
		require.ErrorIs(t, err, store.ErrNoObjectLock)
		require.Zero(t, b.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is not null"))
	})
	t.Run("store that fails its check", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
			w.Store = &breaking{Store: w.Store, check: []store.Finding{{Name: store.CanaryDeleted}}}
		})
		require.ErrorIs(t, err, store.ErrNotLocked)
		require.Empty(t, b.versions(), "it was written to all the same")
	})
	t.Run("store that forgets the lock", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		_, err := b.direct(t.Context(), func(w *ArchiveWorker) { w.Store = &forgetful{w.Store} })
		var finding *ArchiveFinding
		require.ErrorAs(t, err, &finding)
		require.Equal(t, "object is not locked long enough", finding.What)
		require.Zero(t, b.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is not null"))
	})
	t.Run("object that appears while it is streamed", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		var other store.PutResult
		_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
			w.Store = &breaking{Store: w.Store, put: onObjectDo(func(key string) (err error) {
				other, err = b.deps.Store.Put(t.Context(), key, strings.NewReader("something else"), store.PutOptions{})
				return err
			})}
		})
		require.NoError(t, err)
		require.Equal(t, []string{other.Version}, b.manifest(segment.NewName(b.day(1), 1)).SupersededVersions)
		b.requireAllArchived()
	})
	t.Run("upload that a killed run left", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		_, err := stacktest.Shared(t).S3().CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
			Bucket: &b.bucket, Key: aws.String(segment.NewName(b.day(1), 1).ObjectKey()),
		})
		require.NoError(t, err)
		counts, err := b.direct(t.Context(), nil)
		require.NoError(t, err)
		require.EqualValues(t, 1, counts["uploads_swept"])
		b.requireAllArchived()
	})
	t.Run("database that goes away while it sends", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 20_000) // more than the connection holds
		_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
			w.Store = &breaking{Store: w.Store, put: onObjectDo(func(string) error {
				_, err := b.super.Exec(t.Context(), `
					select pg_catalog.pg_terminate_backend(a.pid) from pg_catalog.pg_stat_activity a
					where a.datname = current_database() and a.usename = 'custody_runner'`)
				return err
			})}
		})
		require.Error(t, err)
		require.Empty(t, b.versions())
		_, err = b.direct(t.Context(), nil)
		require.NoError(t, err)
		b.requireAllArchived()
	})
	t.Run("no store", func(t *testing.T) {
		b := newArchiveBench(t)
		b.deps.Store = nil
		require.Equal(t, river.EventKindJobSnoozed, b.work(ArchiveArgs{}).Kind)
	})
}

func onObject(key string, err error) error {
	if strings.HasSuffix(key, ".age") {
		return err
	}
	return nil
}

func onObjectDo(do func(key string) error) func(key string) error {
	return func(key string) error {
		if strings.HasSuffix(key, ".age") {
			return do(key)
		}
		return nil
	}
}

// forgetful writes without any lock and says that it lengthened one.
type forgetful struct{ store.Store }

func (s *forgetful) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	o.RetainUntil = time.Time{}
	return s.Store.Put(ctx, key, body, o)
}

func (s *forgetful) Extend(context.Context, string, string, time.Time) error { return nil }

func onManifest(key string, err error) error {
	if strings.HasSuffix(key, ".json") {
		return err
	}
	return nil
}

// TestForeignObjects finds something else where its own objects should be.
func TestForeignObjects(t *testing.T) {
	t.Parallel()
	t.Run("object without a manifest", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		name := segment.NewName(b.day(1), 1)
		put, err := b.deps.Store.Put(t.Context(), name.ObjectKey(), strings.NewReader("something else"), store.PutOptions{})
		require.NoError(t, err)
		_, err = b.direct(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, []string{put.Version}, b.manifest(name).SupersededVersions, "nobody knows of it")
		b.requireAllArchived()
	})
	t.Run("manifest", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		key := segment.NewName(b.day(1), 1).ManifestKey()
		put, err := b.deps.Store.Put(t.Context(), key, strings.NewReader("{}"), store.PutOptions{})
		require.NoError(t, err)
		b.requireFinding(key, "manifest cannot be read")
		require.Equal(t, map[string]string{key: put.Version}, b.versions(), "something was written")
	})
	// The manifest of an attempt that was killed, changed by somebody since.
	for what, c := range map[string]struct {
		change  func(m *segment.Manifest)
		object  func(name segment.Name) string
		finding string
	}{
		"stored digest":  {func(m *segment.Manifest) { m.StoredSHA256[0] ^= 1 }, segment.Name.ObjectKey, "object is not what was sent"},
		"stored bytes":   {func(m *segment.Manifest) { m.StoredBytes++ }, segment.Name.ObjectKey, "object is not what was sent"},
		"plain digest":   {func(m *segment.Manifest) { m.PlainSHA256[0] ^= 1 }, segment.Name.ManifestKey, "manifest is not of what the database holds"},
		"root":           {func(m *segment.Manifest) { m.Root[0] ^= 1 }, segment.Name.ManifestKey, "manifest is not of what the database holds"},
		"leaves":         {func(m *segment.Manifest) { m.Leaves[0].First++ }, segment.Name.ManifestKey, "manifest is not of what the database holds"},
		"people":         {func(m *segment.Manifest) { m.People[0] ^= 1 }, segment.Name.ManifestKey, "manifest is not of what the database holds"},
		"object version": {func(m *segment.Manifest) { m.ObjectVersion = "01ARZ3NDEKTSV4RRFFQ69G5FAV" }, segment.Name.ObjectKey, "object that the manifest names is missing"},
	} {
		t.Run("own object with another manifest: "+what, func(t *testing.T) {
			b := newArchiveBench(t)
			b.events(tenant, b.day(1), 10)
			name := segment.NewName(b.day(1), 1)
			stop := errors.New("stop")
			_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
				w.step = func(step string, _ segment.Name) error {
					if step == "before record" {
						return stop
					}
					return nil
				}
			})
			require.ErrorIs(t, err, stop)
			m := b.manifest(name)
			c.change(m)
			document, err := m.Encode()
			require.NoError(t, err)
			_, err = b.deps.Store.Put(t.Context(), name.ManifestKey(), bytes.NewReader(document), store.PutOptions{})
			require.NoError(t, err)
			b.requireFinding(c.object(name), c.finding)
		})
	}
	t.Run("a shorter lock is lengthened", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, b.day(1), 10)
		killed := errors.New("killed")
		_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
			// As if it had been written under a shorter policy.
			w.Store = &shorter{w.Store}
			w.step = func(step string, _ segment.Name) error {
				if step == "after read back manifest" {
					return killed
				}
				return nil
			}
		})
		require.ErrorIs(t, err, killed)
		for key := range b.versions() {
			info, err := b.deps.Store.Head(t.Context(), key, "")
			require.NoError(t, err)
			require.False(t, info.LockedUntil(time.Now().Add(24*time.Hour)))
		}
		_, err = b.direct(t.Context(), nil)
		require.NoError(t, err)
		b.requireAllArchived() // asks for the full lock
	})
}

// shorter locks for an hour only.
type shorter struct{ store.Store }

func (s *shorter) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	o.RetainUntil = time.Now().Add(time.Hour)
	return s.Store.Put(ctx, key, body, o)
}

func (b *archiveBench) requireFinding(key, what string) {
	b.Helper()
	_, err := b.direct(b.Context(), nil)
	var finding *ArchiveFinding
	require.ErrorAs(b, err, &finding)
	require.Equal(b, key, finding.Object)
	require.Equal(b, what, finding.What)
	require.Contains(b, err.Error(), key)
	require.Equal(b, 4, finding.ExitCode())
	require.Zero(b, b.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is not null"))
}

// months are the trail's months that are still there, by state.
func (b *archiveBench) months() map[string]string {
	b.Helper()
	months := map[string]string{}
	b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) error {
		rows, err := db.New().AuditMonths(b.Context(), tx)
		for _, m := range rows {
			months[m.PartitionName] = m.State
		}
		return err
	})
	return months
}

// aged lets a week pass since segments were recorded.
func (b *archiveBench) aged() {
	b.Helper()
	b.asSuper("alter table custody_data.archive_segments disable trigger all",
		"update custody_data.archive_segments set recorded_at = recorded_at - interval '8 days' where recorded_at > now() - interval '7 days'")
}

func partitionOf(day time.Time) string { return "audit_logs_" + day.Format("2006_01") }

func TestMonthsAreDroppedOnceArchived(t *testing.T) {
	b := newArchiveBench(t)
	old, older, hot := b.day(150), b.day(400), b.day(40)
	for _, day := range []time.Time{old, older, hot} {
		b.events(tenant, day, 10)
	}
	require.Equal(t, "unarchived", b.months()[partitionOf(old)])
	require.Empty(t, b.dropNow(), "a month was dropped that is in no object")

	require.Zero(t, b.run().Counts["months_dropped"])
	require.Equal(t, "unarchived", b.months()[partitionOf(old)], "its segment is younger than a week")
	b.aged()
	report := b.run()
	require.EqualValues(t, 2, report.Counts["months_dropped"])
	require.EqualValues(t, 20, report.Counts["events_dropped"])
	months := b.months()
	require.NotContains(t, months, partitionOf(old))
	require.NotContains(t, months, partitionOf(older))
	require.Equal(t, "hot", months[partitionOf(hot)])
	require.Equal(t, "hot", months[partitionOf(b.today)])
	require.Len(t, b.archived(), 30)
	require.EqualValues(t, 2, b.number(SystemTenant, "select count(*) from custody_data.audit_logs where action = 'partition.drop' and metadata ->> 'rows' = '10'"))
	require.EqualValues(t, 20, b.number(SystemTenant, "select sum(rows_dropped)::bigint from custody_data.partition_drops"))

	// A late event makes its month anew, and that goes the same way.
	b.events(tenant, old, 3)
	require.Empty(t, b.dropNow())
	report = b.run()
	require.EqualValues(t, 3, report.Counts["events"])
	b.aged()
	require.EqualValues(t, 1, b.run().Counts["months_dropped"])
	require.Len(t, b.archived(), 33)
}

// dropNow calls the database's function alone.
func (b *archiveBench) dropNow() (dropped []db.DropArchivedPartitionsRow) {
	b.Helper()
	b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) (err error) {
		dropped, err = db.New().DropArchivedPartitions(b.Context(), tx, 100)
		return err
	})
	return dropped
}

func TestDropIsRefused(t *testing.T) {
	t.Parallel()
	day := func(b *archiveBench) time.Time { return b.day(150) }
	archiveOnly := func(b *archiveBench) {
		b.settle()
		w := &ArchiveWorker{Deps: b.deps}
		require.NoError(b, w.archive(b.Context(), &Run{deps: b.deps, counts: map[string]int64{}}, ArchiveConfig{}.withDefaults()))
		b.aged()
	}
	// What may not go stays in a partition of the month, and nothing else does.
	stays := func(b *archiveBench, gone, kept int64) {
		b.Helper()
		dropped := b.dropNow()
		require.Len(b, dropped, 1)
		require.Equal(b, []int64{gone, kept}, []int64{dropped[0].RowsDropped, dropped[0].RowsKept})
		require.Equal(b, "unarchived", b.months()[partitionOf(day(b))])
		require.Empty(b, b.dropNow())
	}
	t.Run("while an event is in no segment", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, day(b), 10)
		archiveOnly(b)
		b.events(tenant, day(b), 1)
		stays(b, 10, 1)
		archiveOnly(b)
		require.Len(t, b.dropNow(), 1)
		require.NotContains(t, b.months(), partitionOf(day(b)))
	})
	t.Run("while most of its events are in no segment", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, day(b), 3)
		archiveOnly(b)
		b.events(tenant, day(b), 4)
		require.Empty(t, b.dropNow())
		require.Equal(t, "unarchived", b.months()[partitionOf(day(b))])
	})
	t.Run("while a segment is open", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, day(b), 10)
		archiveOnly(b)
		b.events(tenant, day(b), 1)
		b.settle()
		b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) error {
			_, err := db.New().OpenSegments(t.Context(), tx, 100)
			return err
		})
		stays(b, 10, 1)
	})
	t.Run("while a transaction may still add to it", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, day(b), 10)
		archiveOnly(b)
		tx, err := b.super.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(context.Background())
		_, err = tx.Exec(t.Context(), insertEvents, tenant, day(b), 1, nil)
		require.NoError(t, err)
		counts, err := b.now(t.Context(), func(w *ArchiveWorker) {
			w.Config.Archive = ArchiveConfig{DropLockTimeout: 50 * time.Millisecond, DropPause: time.Millisecond, DropAttempts: 3}
		})
		require.NoError(t, err)
		require.EqualValues(t, 1, counts["drops_put_off"])
		require.NoError(t, tx.Commit(t.Context()))
		stays(b, 10, 1)
		b.run()
		b.aged()
		b.run()
		require.NotContains(t, b.months(), partitionOf(day(b)))
		require.Len(t, b.archived(), 11)
	})
	t.Run("when rows are gone that were archived", func(t *testing.T) {
		b := newArchiveBench(t)
		b.events(tenant, day(b), 10)
		archiveOnly(b)
		b.asSuper("set session_replication_role = replica", "alter table custody_data."+partitionOf(day(b))+" disable trigger all",
			"delete from custody_data."+partitionOf(day(b))+" where ctid = (select min(ctid) from custody_data."+partitionOf(day(b))+")")
		require.Equal(t, "mismatch", b.months()[partitionOf(day(b))])
		_, err := b.direct(t.Context(), nil)
		require.ErrorIs(t, db.FromPg(err), db.ErrArchiveMismatch)
		require.Contains(t, b.months(), partitionOf(day(b)))
	})
	t.Run("in the future", func(t *testing.T) {
		b := newArchiveBench(t)
		err := InContext(t.Context(), b.deps.Pool, Scope{Tenant: SystemTenant, Actor: "tester"}, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), "select custody.drop_archived_partitions(1, now() + interval '1 second')")
			return err
		})
		require.Equal(t, "PC009", state(err))
	})
	for scope, hold := range map[string]string{
		"tenant": `{"tenant": true}`, "person": `{"user_id": "held-person"}`,
	} {
		t.Run("under a hold on a "+scope, func(t *testing.T) {
			b := newArchiveBench(t)
			b.person("held-person")
			b.partition(day(b))
			var person string
			require.NoError(t, b.super.QueryRow(t.Context(), "select identity_id from custody_data.identities where user_id = 'held-person'").Scan(&person))
			_, err := b.super.Exec(t.Context(), insertEvents, tenant, day(b), 1, person)
			require.NoError(t, err)
			b.events(tenant, b.day(400), 5)
			b.events("system", b.day(300), 5)
			b.asRunner("select custody.place_hold($1, 'case 1', 'test')", hold)
			report := b.run()
			require.EqualValues(t, 11, report.Counts["events"], "held events are archived all the same")
			b.aged()
			report = b.run()
			require.Equal(t, "held", b.months()[partitionOf(day(b))])
			if scope == "tenant" {
				require.Equal(t, "held", b.months()[partitionOf(b.day(400))])
			} else {
				require.NotContains(t, b.months(), partitionOf(b.day(400)))
			}
			require.NotContains(t, b.months(), partitionOf(b.day(300)), "a month without a held event was kept")
			require.Positive(t, report.Counts["total_months_held"])

			b.asRunner("select custody.release_hold(hold_id, 'over') from custody.holds where active")
			b.run()
			require.NotContains(t, b.months(), partitionOf(day(b)))
		})
	}
}

// TestDropLooksAgainUnderItsLock lets a drop wait for the trail's lock while an
// event and a hold are written that it could not see before.
func TestDropLooksAgainUnderItsLock(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]struct{ query, state string }{
		"event": {strings.ReplaceAll(strings.ReplaceAll(insertEvents, "$3", "1"), "$4", "null"), "unarchived"},
		"hold":  {"select custody.place_hold('{\"tenant\": true}', $1 || ' case', 'test') where $2::timestamptz < now()", "held"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newArchiveBench(t)
			day := b.day(150)
			b.events(tenant, day, 10)
			b.settle()
			require.NoError(t, (&ArchiveWorker{Deps: b.deps}).archive(t.Context(), &Run{deps: b.deps, counts: map[string]int64{}}, ArchiveConfig{}.withDefaults()))
			b.aged()

			// An event holds the month that it goes to, a hold the trail.
			writer, lock := b.super, "ShareLock"
			if name == "hold" {
				writer, lock = b.deps.Pool, "AccessExclusiveLock"
			}
			tx, err := writer.Begin(t.Context())
			require.NoError(t, err)
			defer tx.Rollback(context.Background())
			require.NoError(t, db.New().SetContext(t.Context(), tx, db.SetContextParams{Tenant: tenant, Actor: "tester"}))
			_, err = tx.Exec(t.Context(), write.query, tenant, day)
			require.NoError(t, err)

			var dropped []db.DropArchivedPartitionsRow
			done := make(chan error, 1)
			go func() {
				done <- InContext(t.Context(), b.deps.Pool, Scope{Tenant: SystemTenant, Actor: "tester"}, func(tx pgx.Tx) (err error) {
					dropped, err = db.New().DropArchivedPartitions(t.Context(), tx, 100)
					return err
				})
			}()
			b.waiting("relation", lock)
			require.NoError(t, tx.Commit(t.Context()))
			if name == "hold" {
				require.Equal(t, lockNotAvailable, state(<-done), "it is to come again")
				require.Empty(t, b.dropNow())
			} else {
				require.NoError(t, <-done)
				require.Len(t, dropped, 1)
				require.EqualValues(t, 10, dropped[0].RowsDropped)
				require.EqualValues(t, 1, dropped[0].RowsKept)
			}
			require.Equal(t, write.state, b.months()[partitionOf(day)])
		})
	}
}

// asSuper runs statements in one session as the superuser.
func (b *archiveBench) asSuper(statements ...string) {
	b.Helper()
	conn := b.database.Conn(b.T, stack.Superuser)
	for _, statement := range statements {
		_, err := conn.Exec(b.Context(), statement)
		require.NoError(b, err)
	}
}

// TestAnotherCluster makes the database believe that it was restored into another
// cluster: some rows come from transactions far ahead, which nobody had sealed, and
// the numbers begin again.
func TestAnotherCluster(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(3), 5)
	b.run()
	b.events(tenant, b.day(2), 4) // not archived before the restore
	b.asSuper(
		"alter table custody_data.audit_logs disable trigger all",
		"alter table custody_data."+partitionOf(b.day(2))+" disable trigger all",
		"update custody_data.audit_logs set xid = (xid::text::bigint + 1000000000)::text::xid8 where occurred_at >= '"+b.day(2).Format(time.DateOnly)+
			" 00:00:00+00' and occurred_at < '"+b.day(1).Format(time.DateOnly)+" 00:00:00+00'",
		"alter table custody_data.incarnations disable trigger all",
		"update custody_data.incarnations set system_identifier = 1",
	)
	b.events(tenant, b.day(3), 2)
	b.events(tenant, b.day(2), 2)
	b.events(tenant, b.day(1), 2)
	b.settle()
	due := b.number(SystemTenant, "select coalesce(sum(rows), 0)::bigint from custody.archive_due()")
	report := b.run()
	require.Equal(t, due, report.Counts["events"], "the dry run said something else")
	require.EqualValues(t, 2, b.number(SystemTenant, "select count(*) from custody_data.incarnations"))
	require.EqualValues(t, 2, b.number(SystemTenant, "select count(*) from custody_data.audit_logs where action = 'incarnation.open'"))

	b.events(tenant, b.day(1), 1)
	b.events(tenant, b.day(3), 1)
	b.run()
	require.Zero(t, b.run().Counts["segments"])
	b.requireAllArchived()
	require.Len(t, b.closedRows(), 5+4+6+2)
}

// TestLockLastsAsLongAsTheLongestPolicy archives events of a tenant that keeps
// them longer than all others.
func TestLockLastsAsLongAsTheLongestPolicy(t *testing.T) {
	b := newArchiveBench(t)
	b.asRunner("select custody.set_retention_policy('audit', interval '10 years', 'a contract')")
	b.events(tenant, b.day(1), 1)
	b.events(tenant, b.day(12*365), 1)
	b.run()
	for _, c := range []struct {
		day   time.Time
		until time.Time
	}{{b.day(1), b.day(0).AddDate(10, 0, 0)}, {b.day(12 * 365), b.day(0).AddDate(10, 0, 0)}} { // imported ones from when they came
		info, err := b.deps.Store.Head(t.Context(), segment.NewName(c.day, 1).ObjectKey(), "")
		require.NoError(t, err)
		require.True(t, info.LockedUntil(c.until), "locked until %s, not %s", info.RetainUntil, c.until)
		require.False(t, info.LockedUntil(c.until.AddDate(0, 0, 3)), "locked until %s, far beyond %s", info.RetainUntil, c.until)
	}
}

func TestLedgerSetBack(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(1), 1)
	b.run()
	b.asSuper("alter table custody_data.archive_heads disable trigger all",
		"update custody_data.archive_heads set opened_to = opened_to + 1000000")
	_, err := b.direct(t.Context(), nil)
	require.ErrorIs(t, db.FromPg(err), db.ErrArchiveMismatch)
}

func TestVerifyArchiveFindsWhatWasDone(t *testing.T) {
	b := newArchiveBench(t)
	for ago := range 3 {
		b.events(tenant, b.day(ago+1), 10)
	}
	b.run()
	with := identities()
	verify := func(sample int) map[string]string {
		t.Helper()
		checks, err := VerifyArchive(t.Context(), b.deps, with, sample, func(int, int) {})
		require.NoError(t, err)
		findings := map[string]string{}
		for _, c := range checks {
			if c.Finding != "" {
				findings[c.Object] = c.Finding
			}
		}
		return findings
	}
	require.Empty(t, verify(0))
	require.Empty(t, verify(2))
	client := stacktest.Shared(t).S3()
	name := segment.NewName(b.day(1), 1)
	put := func(key, text string) string {
		t.Helper()
		res, err := b.deps.Store.Put(t.Context(), key, strings.NewReader(text), store.PutOptions{})
		require.NoError(t, err)
		return res.Version
	}
	undo := func(key, version string) {
		t.Helper()
		_, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b.bucket, Key: &key, VersionId: &version})
		require.NoError(t, err)
	}

	version := put(name.ObjectKey(), "tampered")
	require.Equal(t, map[string]string{name.ObjectKey(): "object is hidden under another version; the locked version is whole"}, verify(0))
	require.Equal(t, map[string]string{name.ObjectKey(): "object is hidden under another version; the locked version is whole"}, verify(1), "the newest is in every sample")
	undo(name.ObjectKey(), version)

	marker, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &b.bucket, Key: aws.String(name.ObjectKey())})
	require.NoError(t, err)
	require.Equal(t, map[string]string{name.ObjectKey(): "object is hidden under a delete marker; the locked version is whole"}, verify(0))
	undo(name.ObjectKey(), *marker.VersionId)

	for _, change := range []func(*segment.Manifest){
		func(m *segment.Manifest) { m.PlainBytes-- },
		func(m *segment.Manifest) { m.LastOccurredAt = m.LastOccurredAt.Add(time.Microsecond) },
	} {
		m := b.manifest(name)
		change(m)
		document, err := m.Encode()
		require.NoError(t, err)
		version = put(name.ManifestKey(), string(document))
		require.Equal(t, map[string]string{name.ManifestKey(): "manifest is not the one on record"}, verify(0))
		undo(name.ManifestKey(), version)
	}
	version = put(name.ManifestKey(), "{")
	require.Equal(t, map[string]string{name.ManifestKey(): "manifest cannot be read"}, verify(0))
	undo(name.ManifestKey(), version)

	stray := segment.NewName(b.day(9), 1).ObjectKey()
	version = put(stray, "x")
	require.Equal(t, map[string]string{stray: "object is on no record"}, verify(0))
	undo(stray, version)
	require.Empty(t, verify(0))

	// What a real store would not give: bytes that changed under their lock.
	genuine := b.deps.Store
	b.deps.Store = &breaking{Store: genuine, get: func(key string) (*store.Object, error) {
		if key != name.ObjectKey() {
			return nil, nil
		}
		o, err := genuine.Get(t.Context(), key, "")
		if err == nil {
			o.ReadCloser = &flipped{o.ReadCloser}
		}
		return o, err
	}}
	for _, with = range [][]age.Identity{identities(), nil} {
		found := verify(0)
		require.Equal(t, []string{name.ObjectKey()}, slices.Collect(maps.Keys(found)))
		require.Contains(t, found[name.ObjectKey()], segment.ErrDamaged.Error())
	}
	for says, get := range map[string]func() (*store.Object, error){
		segment.ErrDamaged.Error(): func() (*store.Object, error) { // of another day
			return genuine.Get(t.Context(), segment.NewName(b.day(2), 1).ObjectKey(), "")
		},
		"stored_bytes": func() (*store.Object, error) { // cut short
			o, err := genuine.Get(t.Context(), name.ObjectKey(), "")
			if err == nil {
				o.ReadCloser = struct {
					io.Reader
					io.Closer
				}{io.LimitReader(o.ReadCloser, 200), o.ReadCloser}
			}
			return o, err
		},
		"object is missing": func() (*store.Object, error) { return nil, store.ErrNotFound },
	} {
		b.deps.Store = &breaking{Store: genuine, get: func(key string) (*store.Object, error) {
			if key != name.ObjectKey() {
				return nil, nil
			}
			return get()
		}}
		with = nil // by digests alone
		found := verify(0)
		require.Equal(t, []string{name.ObjectKey()}, slices.Collect(maps.Keys(found)))
		require.Contains(t, found[name.ObjectKey()], says)
	}
	b.deps.Store = genuine
	require.Empty(t, verify(0), "without an identity")
	stranger, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	_, err = VerifyArchive(t.Context(), b.deps, []age.Identity{stranger}, 0, func(int, int) {})
	require.ErrorIs(t, err, segment.ErrIdentity)

	b.asSuper("alter table custody_data.archive_segments disable trigger all",
		fmt.Sprintf("update custody_data.archive_segments set retain_until = retain_until + interval '1 day' where day = '%s'", b.day(2).Format(time.DateOnly)))
	require.Equal(t, map[string]string{segment.NewName(b.day(2), 1).ManifestKey(): "lock is not the one on record"}, verify(0))
}

// flipped changes one bit of what it reads.
type flipped struct{ io.ReadCloser }

func (f *flipped) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if n > 20 {
		p[n-20] ^= 1
	}
	return n, err
}

// TestArchiveBehindPgBouncer runs through a pooler in transaction mode.
func TestArchiveBehindPgBouncer(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(1), 10)
	config, err := pgxpool.ParseConfig(stacktest.PgBouncer(t, b.database)["custody_runner"])
	require.NoError(t, err)
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	counts, err := b.direct(t.Context(), func(w *ArchiveWorker) { w.Pool = pool })
	require.NoError(t, err)
	require.EqualValues(t, 10, counts["events"])
	b.requireAllArchived()
}

func TestRecordSegmentRefuses(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(1), 10)
	stop := errors.New("stop")
	var recorded db.RecordSegmentParams
	_, err := b.direct(t.Context(), func(w *ArchiveWorker) {
		w.step = func(step string, name segment.Name) error {
			if step != "before record" {
				return nil
			}
			m := b.manifest(name)
			document, err := m.Encode()
			require.NoError(t, err)
			digest := sha256.Sum256(document)
			recorded = db.RecordSegmentParams{
				Day: m.Day.String(), Part: 1, ObjectKey: name.ObjectKey(), ManifestKey: name.ManifestKey(), RetainUntil: m.RetainUntil,
				Manifest: document, ManifestSha256: digest[:], People: m.People,
			}
			return stop
		}
	})
	require.ErrorIs(t, err, stop)
	record := func(pool *pgxpool.Pool, in string, change func(*db.RecordSegmentParams)) string {
		p := recorded
		change(&p)
		return state(InContext(t.Context(), pool, Scope{Tenant: in, Actor: "tester"}, func(tx pgx.Tx) error {
			_, err := db.New().RecordSegment(t.Context(), tx, p)
			return err
		}))
	}
	same := func(*db.RecordSegmentParams) {}
	for name, c := range map[string]struct {
		state  string
		change func(*db.RecordSegmentParams)
	}{
		"never opened":       {"PC029", func(p *db.RecordSegmentParams) { p.Part = 2 }},
		"short digest":       {"PC023", func(p *db.RecordSegmentParams) { p.ManifestSha256 = p.ManifestSha256[1:] }},
		"short lock":         {"PC029", func(p *db.RecordSegmentParams) { p.RetainUntil = time.Now().AddDate(6, 11, 0) }},
		"manifest of others": {"PC029", func(p *db.RecordSegmentParams) { p.ObjectKey += "x" }},
		"fewer rows": {"PC029", func(p *db.RecordSegmentParams) {
			p.Manifest = bytes.Replace(p.Manifest, []byte(`"rows": 10`), []byte(`"rows": 9`), 1)
		}},
	} {
		require.Equal(t, c.state, record(b.deps.Pool, SystemTenant, c.change), name)
	}
	require.Equal(t, "PC015", record(b.deps.Pool, tenant, same), "another tenant's context")
	require.Equal(t, "42501", record(b.app, tenant, same), "the application")
	require.Equal(t, "", record(b.deps.Pool, SystemTenant, same))
	require.Equal(t, "", record(b.deps.Pool, SystemTenant, same), "the same again")
	require.Equal(t, "PC029", record(b.deps.Pool, SystemTenant, func(p *db.RecordSegmentParams) { p.ManifestSha256 = make([]byte, 32) }), "something else again")
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.audit_logs where action = 'archive.segment'"))

	// What is on record does not change, for the owner neither.
	for _, statement := range []string{
		"update custody_data.archive_segments set events = 1", "delete from custody_data.archive_segments", "truncate custody_data.archive_segments",
	} {
		err := InContext(t.Context(), b.database.Pool(t, stack.MigratorLogin), Scope{}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), "set local role custody_owner; set local custody.tenant = 'system'"); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), statement)
			return err
		})
		want := "PC020"
		if strings.HasPrefix(statement, "update") {
			want = "PC030"
		}
		require.Equal(t, want, state(err), statement)
	}
}

// TestAFindingKeepsBackItselfAlone archives the other days, and goes on with what is on
// record.
func TestAFindingKeepsBackItselfAlone(t *testing.T) {
	b := newArchiveBench(t)
	for ago := 1; ago <= 4; ago++ {
		b.events(tenant, b.day(ago), 5)
	}
	for _, ago := range []int{4, 2} {
		_, err := b.deps.Store.Put(t.Context(), segment.NewName(b.day(ago), 1).ManifestKey(), strings.NewReader("{}"), store.PutOptions{})
		require.NoError(t, err)
	}
	counts, err := b.direct(t.Context(), nil)
	for _, ago := range []int{4, 2} {
		require.ErrorContains(t, err, segment.NewName(b.day(ago), 1).ManifestKey())
	}
	require.EqualValues(t, 2, counts["segments"])
	require.EqualValues(t, 2, counts["total_segments"], "the run ended early")
	require.EqualValues(t, 2, b.number(SystemTenant, "select count(*) from custody.archive_segments where recorded_at is null"))
}

// TestUploadsOfTheDeadAreEnded: whoever lost its session may have begun an upload after
// another worker recorded the segment.
func TestUploadsOfTheDeadAreEnded(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(1), 5)
	b.run()
	client := stacktest.Shared(t).S3()
	name, foreign := segment.NewName(b.day(1), 1), segment.NewName(b.day(1), 1)
	foreign.Branch = "0123abcd"
	for _, key := range []string{name.ObjectKey(), name.ObjectKey(), name.ManifestKey(), foreign.ObjectKey(), segment.Prefix + "else"} {
		_, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &b.bucket, Key: &key})
		require.NoError(t, err)
	}
	// A segment that somebody may be at.
	b.events(tenant, b.day(2), 5)
	open := segment.NewName(b.day(2), 1)
	b.settle()
	b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) error {
		_, err := db.New().OpenSegments(t.Context(), tx, 10)
		return err
	})
	_, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &b.bucket, Key: aws.String(open.ObjectKey())})
	require.NoError(t, err)
	run := &Run{Job: "archive", deps: b.deps, counts: map[string]int64{}}
	require.NoError(t, (&ArchiveWorker{Deps: b.deps}).sweep(t.Context(), run))
	require.EqualValues(t, 3, run.counts["uploads_swept"])
	left, err := b.deps.Store.Unfinished(t.Context(), segment.Prefix)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{foreign.ObjectKey(), segment.Prefix + "else", open.ObjectKey()}, left)

	// A manifest of a million runs has parts, too.
	_, err = client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &b.bucket, Key: aws.String(open.ManifestKey())})
	require.NoError(t, err)
	require.EqualValues(t, 2, b.run().Counts["uploads_swept"])
}
