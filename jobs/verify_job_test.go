package jobs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/db"
	"pgcustody/jobs/verify"
)

// verified verifies all of a database, or the bucket alone.
func (b *ledgerBench) verified(fromObjects bool, with ...age.Identity) *verify.Report {
	b.Helper()
	o := verify.Options{Store: b.deps.Store, Origin: ledgerOrigin, Keys: b.deps.Signer.VerifierKeys(), Identities: with}
	if !fromObjects {
		o.Database = b.deps.Pool
		o.Prepare = func(ctx context.Context, tx pgx.Tx) error {
			return db.New().SetContext(ctx, tx, db.SetContextParams{Tenant: SystemTenant, Actor: "tester"})
		}
	}
	report, err := verify.Run(b.Context(), o)
	require.NoError(b, err)
	return report
}

func TestVerifyJob(t *testing.T) {
	b := newLedgerBench(t)
	b.deps.Config.Verify.ProgressFile = filepath.Join(t.TempDir(), "verified.json")
	require.Equal(t, river.EventKindJobSnoozed, b.work(VerifyArgs{}).Kind, "nothing is anchored yet")
	_, err := b.super.Exec(t.Context(), "delete from river.river_job where kind = 'verify'") // it would come again later
	require.NoError(t, err)

	b.events(300)
	b.sealed()
	b.anchor()
	require.Equal(t, river.EventKindJobCompleted, b.work(VerifyArgs{}).Kind)
	first := b.lastRun(SystemTenant, "verify")
	require.GreaterOrEqual(t, b.count(first, "events"), int64(300))
	require.Zero(t, b.metric("pgcustody_ledger_verify_status"))
	full := b.metric("pgcustody_ledger_verified_timestamp_seconds", "full")
	require.NotZero(t, full)

	ids := b.events(5)
	b.sealed()
	b.anchor()
	require.Equal(t, river.EventKindJobCompleted, b.work(VerifyArgs{}).Kind)
	require.Less(t, b.count(b.lastRun(SystemTenant, "verify"), "events"), int64(50), "only what is new is read")
	require.Equal(t, full, b.metric("pgcustody_ledger_verified_timestamp_seconds", "full"))

	_, err = b.super.Exec(t.Context(), "set session_replication_role = replica")
	require.NoError(t, err)
	_, err = b.super.Exec(t.Context(), "alter table custody_data."+partitionOf(time.Now().UTC())+" disable trigger all")
	require.NoError(t, err)
	_, err = b.super.Exec(t.Context(), "delete from custody_data."+partitionOf(time.Now().UTC())+" where log_entry_id = $1", ids[2])
	require.NoError(t, err)
	require.Equal(t, river.EventKindJobCompleted, b.work(VerifyArgs{}).Kind, "it was verified before; the daily one reads it again")
	b.deps.Config.Verify.Full = time.Nanosecond
	require.Equal(t, river.EventKindJobFailed, b.work(VerifyArgs{}).Kind)
	require.Equal(t, "verify: altered: 1 findings, the first is row_missing", *b.lastRun(SystemTenant, "verify").Error)
	require.EqualValues(t, verify.StatusAltered, b.metric("pgcustody_ledger_verify_status"))
	require.EqualValues(t, 1, b.metric("pgcustody_ledger_findings", "row_missing"))
	require.NoFileExists(t, b.deps.Config.Verify.ProgressFile)
}

// Months that left Postgres are no finding.
func TestVerifyAfterMonthsWereDropped(t *testing.T) {
	l := newLedgerBench(t)
	b := &archiveBench{bench: l.bench, super: l.database.Pool(t, stack.Superuser), today: time.Now().UTC().Truncate(24 * time.Hour)}
	for _, ago := range []int{400, 150, 40, 2} {
		b.events(tenant, b.day(ago), 30)
	}
	l.sealed()
	l.anchor()
	b.run()
	b.aged()
	require.EqualValues(t, 2, b.run().Counts["months_dropped"])
	l.events(20)
	l.sealed()
	l.anchor()
	for _, fromObjects := range []bool{false, true} {
		for _, with := range [][]age.Identity{nil, identities()} {
			report := l.verified(fromObjects, with...)
			require.Empty(t, report.Findings)
			require.EqualValues(t, 120, report.Archived)
			unread := slices.ContainsFunc(report.Notes, func(note string) bool { return strings.HasPrefix(note, "no identity opens the archive") })
			require.Equal(t, with == nil, unread)
		}
	}
	require.Equal(t, l.verified(false).Leaves, l.verified(false).Events+60)

	// Those of a day that is in the archive, but not gone from Postgres by right.
	_, err := l.super.Exec(t.Context(), "drop table custody_data."+partitionOf(b.day(40)))
	require.NoError(t, err)
	require.EqualValues(t, map[verify.Kind]int64{verify.RowMissing: 30}, l.verified(false).Counts)
}

// A database that was set back, and went on, says what it lost and no more.
func TestVerifySetBack(t *testing.T) {
	b := newLedgerBench(t)
	b.events(300)
	b.sealed()
	first := b.anchor()
	old := b.snapshot()
	b.events(260)
	b.sealed()
	second := b.anchor()
	require.Empty(t, b.verified(false).Findings)

	report := old.verified(false)
	require.Equal(t, map[verify.Kind]int64{verify.TreeShort: 1}, report.Counts)
	require.Equal(t, verify.StatusSetBack, report.Status)
	require.Equal(t, first.Size, *report.Findings[0].Leaf)
	require.Equal(t, second.Size-1, *report.Findings[0].Last)

	old.events(100)
	old.sealed()
	_, _, err := NewAnchor(old.deps).Adopt(t.Context())
	require.NoError(t, err)
	old.anchor()
	old.sealed()
	old.anchor()
	report = old.verified(false)
	require.Equal(t, map[verify.Kind]int64{verify.LeavesLost: 1}, report.Counts, "%v", report.Findings)
	require.Equal(t, verify.StatusSetBack, report.Status)
	require.Equal(t, first.Size, *report.Findings[0].Leaf)
	require.Equal(t, second.Size-1, *report.Findings[0].Last)
	require.Empty(t, old.verified(true).Findings)

	// Once somebody has looked into it, it is known: exactly that, and nothing besides it.
	config := &old.deps.Config.Verify
	for _, known := range []verify.Leaves{{First: first.Size + 1, Last: second.Size - 1}, {First: first.Size, Last: second.Size - 2}} {
		config.KnownLost = []verify.Leaves{known}
		require.Equal(t, river.EventKindJobFailed, old.work(VerifyArgs{}).Kind, "%v is not all of it", known)
	}
	config.KnownLost = []verify.Leaves{{First: 0, Last: 0}, {First: first.Size, Last: second.Size - 1}}
	require.Equal(t, river.EventKindJobCompleted, old.work(VerifyArgs{}).Kind)
	_, err = old.super.Exec(t.Context(), "alter table custody_data."+partitionOf(time.Now().UTC())+" disable trigger all")
	require.NoError(t, err)
	_, err = old.super.Exec(t.Context(), "delete from custody_data."+partitionOf(time.Now().UTC())+" where log_entry_id = (select max(a.log_entry_id::text)::uuid from custody_data.audit_logs a where a.action = 'phi.access')")
	require.NoError(t, err)
	require.Equal(t, river.EventKindJobFailed, old.work(VerifyArgs{}).Kind)
	require.Equal(t, "verify: altered: 1 findings, the first is row_missing", *old.lastRun(SystemTenant, "verify").Error)
}

// While events are written in every way, sealed and anchored, verification finds
// nothing.
func TestVerifyWhileAtWork(t *testing.T) {
	b := newLedgerBench(t)
	b.events(10)
	b.sealed()
	b.anchor()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	begun := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	loop := func(work func() error) {
		group.Go(func() error {
			for ctx.Err() == nil {
				if err := work(); err != nil && ctx.Err() == nil {
					return err
				}
			}
			return nil
		})
	}
	const record = "select custody.record_audit_event('phi.access', 'conversations', 'c-1', 'success') from generate_series(1, $1)"
	for i := range 6 {
		conn := b.database.Conn(t, "custody_app")
		loop(func() error {
			err := InContext(ctx, conn, Scope{Tenant: tenant, Actor: "tester", Purpose: "test"}, func(tx pgx.Tx) error {
				for range rand.IntN(4) {
					if _, err := tx.Exec(ctx, record, 1+rand.IntN(20)); err != nil {
						return err
					}
					inner, err := tx.Begin(ctx) // a savepoint
					if err != nil {
						return err
					}
					if _, err := inner.Exec(ctx, record, 1+rand.IntN(3)); err != nil {
						return err
					}
					if err := []func(context.Context) error{inner.Commit, inner.Rollback}[rand.IntN(2)](ctx); err != nil {
						return err
					}
				}
				if i == 0 { // a long one
					_, err := tx.Exec(ctx, "select pg_catalog.pg_sleep(1.5)")
					return err
				}
				if rand.IntN(4) == 0 {
					return errRolledBack
				}
				return nil
			})
			if errors.Is(err, errRolledBack) {
				return nil
			}
			return err
		})
	}
	prepared := b.database.Conn(t, "custody_app")
	loop(func() error {
		gid := randomName("verify")
		purpose := "test"
		for _, step := range []func() error{
			func() error { _, err := prepared.Exec(ctx, "begin"); return err },
			func() error {
				return db.New().SetContext(ctx, prepared, db.SetContextParams{Tenant: tenant, Actor: "tester", Purpose: &purpose})
			},
			func() error { _, err := prepared.Exec(ctx, record, 3); return err },
			func() error {
				_, err := prepared.Exec(context.WithoutCancel(ctx), "prepare transaction '"+gid+"'")
				return err
			},
		} {
			if err := step(); err != nil {
				return err
			}
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		_, err := prepared.Exec(context.WithoutCancel(ctx), []string{"commit", "rollback"}[rand.IntN(2)]+" prepared '"+gid+"'")
		return err
	})
	loop(func() error { _, err := Seal(ctx, b.deps); return err })
	loop(func() error { _, err := NewAnchor(b.deps).Run(ctx); return err })
	runs := 0
	var progress *verify.Progress
	loop(func() error {
		o := verify.Options{Database: b.deps.Pool, Store: b.deps.Store, Origin: ledgerOrigin, Keys: b.deps.Signer.VerifierKeys(),
			Prepare: func(ctx context.Context, tx pgx.Tx) error {
				return db.New().SetContext(ctx, tx, db.SetContextParams{Tenant: SystemTenant, Actor: "tester"})
			}}
		if runs%2 == 1 {
			o.Since = progress
		}
		report, err := verify.Run(ctx, o)
		if err != nil {
			return err
		}
		if len(report.Findings) > 0 {
			return fmt.Errorf("run %d: %v", runs, report.Findings)
		}
		progress = report.Progress
		if runs++; runs > 4 && time.Since(begun) > 8*time.Second {
			stop()
		}
		return nil
	})
	require.NoError(t, group.Wait())
	require.Greater(t, runs, 4)
	b.sealed()
	b.anchor()
	report := b.verified(false)
	require.Empty(t, report.Findings)
	require.Equal(t, report.Leaves, report.Events)
	require.Empty(t, b.verified(true).Findings)
	t.Logf("%d verifications, %d events", runs, report.Events)
}

var errRolledBack = errors.New("rolled back")
