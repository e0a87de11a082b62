package jobs

import (
	"cmp"
	"context"
	"errors"
	"time"

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
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 3, UniqueOpts: once()}
}

// RetentionConfig says how hard retention works.
type RetentionConfig struct {
	// Batch is how many rows one transaction deletes; default 2,000. A batch that
	// runs into its limits is halved, down to MinBatch (50), and tried again.
	Batch, MinBatch int
	// BatchTimeout ends a batch that takes too long; default 30 s.
	BatchTimeout time.Duration
	// LockTimeout ends a batch that waits for a row; default 2 s.
	LockTimeout time.Duration
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

		// What is due is counted first, so that a run can say how far it is.
		due := map[string][]db.RetentionItem{}
		var total, done int64
		for _, tenant := range tenants {
			rows, err := retentionDue(ctx, w.Deps, tenant, job.Args.AsOf)
			if err != nil {
				return fail("look for what is due", err)
			}
			for _, row := range rows {
				if job.Args.Class != "" && row.Class != job.Args.Class {
					continue
				}
				run.Count("held", row.HeldRows)
				if row.DueRows > 0 && deletable(row.Class) {
					due[tenant] = append(due[tenant], row)
					total += row.DueRows
				}
			}
		}

		var failures error
		for _, tenant := range tenants {
			for _, row := range due[tenant] {
				err := w.enforce(ctx, config, deadline, tenant, row.Class, job.Args.AsOf, func(rows int64) {
					done += rows
					run.Count(row.Class, rows)
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

// deletable tells the classes that retention deletes rows of; audit partitions
// are the archive's to drop.
func deletable(class string) bool { return class != "audit" && class != "audit_hot" }

var errNoTime = errors.New("no time left")

// enforce deletes batch after batch of one class of one tenant until nothing is
// left that was due.
func (w *RetentionWorker) enforce(ctx context.Context, c RetentionConfig, deadline time.Time, tenant, class string, asOf *time.Time, deleted func(int64)) error {
	scope := w.scope(tenant, "retention")
	scope.LockTimeout, scope.Timeout = c.LockTimeout, c.BatchTimeout
	batch, backoff, failed := c.Batch, c.Backoff, 0
	for {
		if time.Now().After(deadline) {
			return errNoTime
		}
		var rows int64
		err := InContext(ctx, w.Pool, scope, func(tx pgx.Tx) (err error) {
			rows, err = db.New().EnforceRetention(ctx, tx, db.EnforceRetentionParams{Class: class, Batch: int32(batch), AsOf: asOf})
			return err
		})
		wait := c.Pause
		switch {
		case err == nil && rows == 0:
			return nil
		case err == nil:
			deleted(rows)
			backoff, failed = c.Backoff, 0
		case transient(err) && failed+1 < c.Attempts:
			failed++
			batch = max(batch/2, c.MinBatch)
			wait, backoff = backoff, min(2*backoff, c.MaxBackoff)
			w.Log.Warn("retention batch ended", "tenant", tenant, "class", class, "error", Code(err), "next_batch", batch, "wait", wait)
		default:
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
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

func retentionDue(ctx context.Context, d Deps, tenant string, asOf *time.Time) (rows []db.RetentionItem, err error) {
	err = InContext(ctx, d.Pool, d.scope(tenant, "retention"), func(tx pgx.Tx) error {
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
