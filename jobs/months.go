package jobs

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs/fault"
)

// dropMonths drops months until drop finds none, one a transaction: DDL locks the whole
// table, and who appends or reads queues behind it, so it waits for its lock not long and
// tries again. A table that stays busy is left to the next run, and done is false.
func (d Deps) dropMonths(ctx context.Context, run *Run, scope Scope, drop func(pgx.Tx) (months []string, counts map[string]int64, err error)) (done bool, err error) {
	config := d.Config.Archive.withDefaults()
	scope.LockTimeout = config.DropLockTimeout
	scope.Isolation = pgx.ReadCommitted
	pause := config.DropPause
	for attempt := 1; ; {
		var months []string
		var counts map[string]int64
		err := InContext(ctx, d.Pool, scope, func(tx pgx.Tx) (err error) {
			fault.Point("before drop")
			months, counts, err = drop(tx)
			return err
		})
		fault.Point("after drop")
		switch {
		case err == nil && len(months) == 0:
			return true, nil
		case err == nil:
			run.Count("months_dropped", int64(len(months)))
			for what, n := range counts {
				run.Count(what, n)
			}
			d.Log.Info("months dropped", "partitions", months)
			attempt, pause = 1, config.DropPause
		case state(err) != lockNotAvailable && state(err) != deadlockDetected:
			return false, fail("drop month", err)
		case attempt >= config.DropAttempts:
			// Whoever holds the table goes before: the next run tries again.
			run.Count("drops_put_off", 1)
			d.Log.Warn("month not dropped: the table is busy", "purpose", scope.Purpose, "attempts", attempt)
			return false, nil
		default:
			if err := sleep(ctx, pause); err != nil {
				return false, err
			}
			attempt++
			pause = min(2*pause, time.Minute)
		}
	}
}
