package jobs

import (
	"cmp"
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
)

// PartitionsArgs asks for the partitions of the audit trail, and of access events, that
// lie ahead.
type PartitionsArgs struct{}

func (PartitionsArgs) Kind() string { return "partitions" }

func (PartitionsArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 5, UniqueOpts: once()}
}

// PartitionsConfig says how far ahead partitions are made.
type PartitionsConfig struct {
	// MonthsAhead after the current month; default 3.
	MonthsAhead int
	// LockTimeout ends an attempt that waits for the trail's lock; default 5 s.
	LockTimeout time.Duration
}

func (c PartitionsConfig) withDefaults() PartitionsConfig {
	c.MonthsAhead = cmp.Or(c.MonthsAhead, 3)
	c.LockTimeout = cmp.Or(c.LockTimeout, 5*time.Second)
	return c
}

// PartitionsWorker makes partitions before events need them. Appending makes a
// missing one on demand, but then one writer pays for it.
type PartitionsWorker struct {
	river.WorkerDefaults[PartitionsArgs]
	Deps
}

func (w *PartitionsWorker) Work(ctx context.Context, job *river.Job[PartitionsArgs]) error {
	config := w.Config.Partitions.withDefaults()
	return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
		scope := w.scope(SystemTenant, "partitions")
		scope.LockTimeout = config.LockTimeout
		return fail("make partitions", InContext(ctx, w.Pool, scope, func(tx pgx.Tx) error {
			now := time.Now().UTC()
			month := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
			created, err := db.New().EnsureAuditPartitions(ctx, tx, db.EnsureAuditPartitionsParams{
				FromAt: now, ToAt: month.AddDate(0, config.MonthsAhead, 0),
			})
			run.Count("created", created)
			if err != nil {
				return err
			}
			created, err = db.New().EnsureAccessPartitions(ctx, tx, db.EnsureAccessPartitionsParams{
				FromAt: now, ToAt: month.AddDate(0, config.MonthsAhead, 0),
			})
			run.Count("created", created)
			return err
		}))
	})
}
