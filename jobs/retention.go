package jobs

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
)

// RetentionArgs asks for one run of retention. Only the policies in the database
// say what goes: the job deletes in batches until custody.retention_due is empty.
type RetentionArgs struct {
	// Tenant and Class narrow the run; "" means all.
	Tenant string `json:"tenant,omitempty"`
	Class  string `json:"class,omitempty"`
	// AsOf deletes only what was due at that time; nil means now.
	AsOf *time.Time `json:"as_of,omitempty"`
}

func (RetentionArgs) Kind() string { return "retention" }

func (RetentionArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueBulk, MaxAttempts: 3, UniqueOpts: once()}
}

// RetentionConfig says how hard retention works.
type RetentionConfig struct {
	// Batch is how many rows one transaction deletes; default 2,000. A batch that
	// runs into its limits, or behind which others waited, is halved, down to MinBatch
	// (50); after Calm (8) in a row that nobody felt it is doubled again.
	Batch, MinBatch, Calm int
	// BatchTimeout ends a batch that takes too long; default 30 s.
	BatchTimeout time.Duration
	// LockTimeout ends a batch that waits for a lock; default 2 s.
	LockTimeout time.Duration
	// Look is how often it is looked after who waits behind a batch, Patience how long
	// anybody may before the batch is ended; defaults 50 ms and 500 ms.
	Look, Patience time.Duration
	// Pause lets others through between two batches; default 20 ms.
	Pause time.Duration
	// Backoff is the wait after a batch that was ended, doubled each time up to
	// MaxBackoff; defaults 1 s and 30 s. Attempts in a row before a class is given
	// up until the next run: default 6.
	Backoff, MaxBackoff time.Duration
	Attempts            int
	// Timeout is how long a run may take; what is left, the next run takes.
	// Default 50 minutes.
	Timeout time.Duration
}

func (c RetentionConfig) withDefaults() RetentionConfig {
	c.Batch = cmp.Or(c.Batch, 2000)
	c.MinBatch = cmp.Or(c.MinBatch, 50)
	c.Calm = cmp.Or(c.Calm, 8)
	c.Look = cmp.Or(c.Look, 50*time.Millisecond)
	c.Patience = cmp.Or(c.Patience, 500*time.Millisecond)
	c.BatchTimeout = cmp.Or(c.BatchTimeout, 30*time.Second)
	c.LockTimeout = cmp.Or(c.LockTimeout, 2*time.Second)
	c.Pause = cmp.Or(c.Pause, 20*time.Millisecond)
	c.Backoff = cmp.Or(c.Backoff, time.Second)
	c.MaxBackoff = cmp.Or(c.MaxBackoff, 30*time.Second)
	c.Attempts = cmp.Or(c.Attempts, 6)
	c.Timeout = cmp.Or(c.Timeout, 50*time.Minute)
	return c
}

// RetentionWorker deletes what the policies no longer keep.
type RetentionWorker struct {
	river.WorkerDefaults[RetentionArgs]
	Deps
}

// retentionGrace is what a run may take beyond its own limit to close its record.
const retentionGrace = time.Minute

func (w *RetentionWorker) Timeout(*river.Job[RetentionArgs]) time.Duration {
	return w.Config.Retention.withDefaults().Timeout + retentionGrace
}

func (w *RetentionWorker) Work(ctx context.Context, job *river.Job[RetentionArgs]) error {
	config := w.Config.Retention.withDefaults()
	return record(ctx, w.Deps, job, cmp.Or(job.Args.Tenant, SystemTenant), func(ctx context.Context, run *Run) error {
		tenants, err := w.tenants(ctx, job.Args.Tenant)
		if err != nil {
			return fail("list tenants", err)
		}
		deadline := time.Now().Add(config.Timeout)

		// What is due is counted first, so that a run can say how far it is. Where that
		// takes too long it goes without saying.
		due := map[string][]db.RetentionItem{}
		var total, done int64
		for _, tenant := range tenants {
			rows, err := retentionDue(ctx, w.Deps, tenant, job.Args.AsOf, config.BatchTimeout)
			if transient(err) && ctx.Err() == nil {
				run.Count("uncounted", 1)
				rows = nil
				for _, class := range deletedClasses {
					rows = append(rows, db.RetentionItem{Class: class, DueRows: 1})
				}
			} else if err != nil {
				return fail("look for what is due", err)
			}
			for _, row := range rows {
				if job.Args.Class != "" && row.Class != job.Args.Class {
					continue
				}
				run.Count("held", row.HeldRows)
				if row.DueRows > 0 && slices.Contains(deletedClasses, row.Class) {
					due[tenant] = append(due[tenant], row)
					total += row.DueRows
				}
			}
		}

		var failures error
		for _, tenant := range tenants {
			for _, row := range due[tenant] {
				err := w.enforce(ctx, config, deadline, run, tenant, row.Class, job.Args.AsOf, func(rows int64) {
					done += rows
					run.Count(row.Class, rows)
					run.Bytes(rows * row.DueBytes / row.DueRows)
					run.Progress("rows", done, total)
				})
				if errors.Is(err, errNoTime) {
					run.Count("unfinished", 1)
					return failures
				}
				if ctx.Err() != nil {
					return err
				}
				// One class or tenant that fails keeps no other from its turn.
				failures = errors.Join(failures, fail("retention of "+row.Class, err))
			}
		}
		return failures
	})
}

// deletedClasses are those that retention deletes rows of; audit partitions are the
// archive's to drop.
var deletedClasses = []string{"conversations", "consent", "entry_ids", "erased_ids", "alerts", "restored"}

var errNoTime = errors.New("no time left")

// enforce deletes batch after batch of one class of one tenant until nothing is
// left that was due, and gives way to live traffic.
func (w *RetentionWorker) enforce(ctx context.Context, c RetentionConfig, deadline time.Time, run *Run, tenant, class string, asOf *time.Time, deleted func(int64)) error {
	scope := w.scope(tenant, "retention")
	scope.LockTimeout, scope.Timeout = c.LockTimeout, c.BatchTimeout
	pace, failed := newPace(c), 0
	defer func() { run.Count("yields", pace.yields) }()
	// Consents go by stretches of people, after the one up to the other, nil where no more come.
	var after uuid.UUID
	var to *uuid.UUID
	for {
		if time.Now().After(deadline) {
			return errNoTime
		}
		var rows int64
		var felt bool
		batch := pace.batch
		started := time.Now()
		err := InContext(ctx, w.Pool, scope, func(tx pgx.Tx) (err error) {
			felt, err = w.watched(ctx, tx, c.Look, c.Patience, func() (err error) {
				if class == "consent" {
					if to, err = personAfter(ctx, tx, after, consentsRead*batch); err != nil {
						return err
					}
				}
				rows, err = db.New().EnforceRetention(ctx, tx, db.EnforceRetentionParams{Class: class, Batch: int32(batch), AsOf: asOf, After: after, To: to})
				return err
			})
			return err
		})
		var wait time.Duration
		switch {
		case err == nil && rows == 0 && to == nil:
			return nil
		case err == nil:
			if rows > 0 {
				deleted(rows)
				run.Count("batches", 1)
			}
			if rows < int64(batch) && to != nil {
				after = *to
			}
			failed = 0
			wait = pace.done(time.Since(started), felt)
		case transient(err) && failed+1 < c.Attempts:
			failed++
			wait = pace.ended()
			w.Log.Warn("retention batch ended", "tenant", tenant, "class", class, "error", Code(err), "next_batch", pace.batch, "wait", wait)
		default:
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// consentsRead is how many consent records a batch reads, with the rest of the last
// person's, for each that it may delete: most of those that are old are still in force.
const consentsRead = 10

// personAfter is the person with whom a stretch of n consent records ends, nil where not
// as many are left.
func personAfter(ctx context.Context, tx pgx.Tx, after uuid.UUID, n int) (*uuid.UUID, error) {
	id, err := db.New().PersonAfter(ctx, tx, db.PersonAfterParams{After: after, Records: int32(n - 1)}) //nolint:gosec // batches are small
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // the last stretch has no end
	}
	return &id, err
}

// transient tells what a smaller or later batch may get past: a lock or time
// limit, a deadlock, a serialization failure.
func transient(err error) bool {
	return refused(err, db.ErrLockTimeout) || refused(err, db.ErrCanceled) || refused(err, db.ErrConflict)
}

// tenants is the one that was asked for, or all.
func (d Deps) tenants(ctx context.Context, only string) ([]string, error) {
	if only != "" {
		return []string{only}, nil
	}
	rows, err := db.New().ListTenants(ctx, d.Pool)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(rows))
	for i, row := range rows {
		names[i] = row.TenantID
	}
	return names, nil
}

func retentionDue(ctx context.Context, d Deps, tenant string, asOf *time.Time, timeout time.Duration) (rows []db.RetentionItem, err error) {
	scope := d.scope(tenant, "retention")
	scope.Timeout = timeout
	err = InContext(ctx, d.Pool, scope, func(tx pgx.Tx) error {
		rows, err = db.New().RetentionDue(ctx, tx, asOf)
		return err
	})
	return rows, err
}

// sleep waits, or ends with the context.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
