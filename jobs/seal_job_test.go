package jobs

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

// The daemon seals by itself, several of them with one sealer at a time, and leaves
// neither events nor run records behind.
func TestSealSchedule(t *testing.T) {
	b := newLedgerBench(t)
	b.events(20)
	stopping := make(chan struct{})
	b.deps.Stopping = stopping
	b.deps.Config.Seal.Batch = 7
	for range 3 {
		b.start(b.client(b.deps, Schedule{Seal: 100 * time.Millisecond, Anchor: time.Second}))
	}
	b.Cleanup(func() { close(stopping) }) // before the clients, so that they need not wait for the shift's end
	for range 3 {
		b.events(10)
		require.Eventually(t, func() bool { return b.unsealed() == 0 }, 5*time.Minute, 20*time.Millisecond)
	}
	require.Eventually(t, func() bool {
		return b.number(SystemTenant, "select coalesce(max(tree_size), 0) from custody.ledger_checkpoints") ==
			b.number(SystemTenant, "select count(*) from custody.audit_entries")
	}, 5*time.Minute, 20*time.Millisecond)
	require.Zero(t, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job in ('anchor', 'seal')"))
	require.Zero(t, b.number(SystemTenant, "select count(*) from custody.verify_ledger()"))
	require.Positive(t, b.metric("pgcustody_job_items_total", "events", "seal"))
	require.Zero(t, b.metric("pgcustody_ledger_unsealed_events"))
}

// A job that is interrupted, or told that its process ends, ends at once; the next
// goes on.
func TestSealStops(t *testing.T) {
	b := newLedgerBench(t)
	b.events(3)
	job := &river.Job[SealArgs]{JobRow: &rivertype.JobRow{ID: 1, Attempt: 1, Kind: "seal", Queue: QueueLedger, ScheduledAt: time.Now()}}
	stopping := make(chan struct{})
	b.deps.Stopping = stopping
	worker := &SealWorker{Deps: b.deps}
	time.AfterFunc(100*time.Millisecond, func() { close(stopping) })
	begun := time.Now()
	require.NoError(t, worker.Work(t.Context(), job))
	require.Less(t, time.Since(begun), 5*time.Second)

	b.deps.Stopping = nil
	worker = &SealWorker{Deps: b.deps}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, worker.Work(ctx, job), context.DeadlineExceeded)
	// One that has waited for long does one round.
	job.ScheduledAt = time.Now().Add(-time.Minute)
	begun = time.Now()
	require.NoError(t, worker.Work(t.Context(), job))
	require.Less(t, time.Since(begun), 5*time.Second)
	b.sealed()
	require.Zero(t, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job = 'seal'"))
}

// A failure goes on record once, not with every job, and again when it is another.
func TestSealFailureIsOnRecordOnce(t *testing.T) {
	b := newLedgerBench(t)
	b.events(1)
	b.sealed()
	_, err := b.super.Exec(t.Context(), "revoke execute on function custody.seal_audit_log from custody_worker")
	require.NoError(t, err)
	worker := &SealWorker{Deps: b.deps}
	job := &river.Job[SealArgs]{JobRow: &rivertype.JobRow{ID: 1, Attempt: 1, Kind: "seal", Queue: QueueLedger, ScheduledAt: time.Now()}}
	failed := func() int64 {
		return b.number(SystemTenant, "select count(*) from custody_data.job_runs where job = 'seal' and status = 'failed'")
	}
	for range 3 {
		require.EqualError(t, worker.Work(t.Context(), job), "seal: 42501")
		require.EqualValues(t, 1, failed())
	}
	_, err = b.super.Exec(t.Context(), "alter function custody.seal_audit_log rename to gone")
	require.NoError(t, err)
	require.EqualError(t, worker.Work(t.Context(), job), "seal: 42883")
	require.EqualValues(t, 2, failed())
}

// The lag and the transaction that causes it are in the metrics.
func TestSealingMetrics(t *testing.T) {
	b := newLedgerBench(t)
	holder := b.database.Conn(t, stack.Superuser)
	tx, err := holder.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // ended below
	_, err = tx.Exec(t.Context(), "select pg_current_xact_id()")
	require.NoError(t, err)
	ids := b.events(4)
	_, err = Seal(t.Context(), b.deps)
	require.NoError(t, err)
	require.GreaterOrEqual(t, b.metric("pgcustody_ledger_unsealed_events"), 4.0)
	require.Positive(t, b.metric("pgcustody_ledger_unsealed_age_seconds"))
	require.NoError(t, tx.Rollback(t.Context()))
	b.sealed()
	require.Zero(t, b.metric("pgcustody_ledger_unsealed_events"))
	b.anchor()
	b.proved(ids)
}

// Many sealers and appenders at once: every event has one leaf.
func TestSealTogether(t *testing.T) {
	b := newLedgerBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	var sealers, appenders sync.WaitGroup
	for range 4 {
		sealers.Go(func() {
			for ctx.Err() == nil {
				_, _, err := sealBatches(ctx, b.deps)
				if err != nil && ctx.Err() == nil {
					t.Errorf("seal: %v", err)
				}
			}
		})
	}
	var mu sync.Mutex
	var all []uuid.UUID
	for range 4 {
		appenders.Go(func() {
			for range 50 {
				var id uuid.UUID
				err := b.unlock.InContext(t.Context(), b.app, Scope{Tenant: tenant, Actor: "tester", Purpose: "test"}, func(tx pgx.Tx) error {
					return tx.QueryRow(t.Context(), "select custody.record_audit_event('phi.access', 'conversations', 'c-1', 'success')").Scan(&id)
				})
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				mu.Lock()
				all = append(all, id)
				mu.Unlock()
			}
		})
	}
	appenders.Wait()
	cancel()
	sealers.Wait()
	b.sealed()
	b.anchor()
	require.Len(t, all, 200)
	b.proved(all)
	require.Zero(t, b.number(SystemTenant, "select count(*) from custody.verify_ledger()"))
	require.Equal(t, b.number(SystemTenant, "select count(*) from custody.audit_entries"), b.number(SystemTenant, "select (custody.ledger_head() ->> 'tree_size')::bigint"))
}
