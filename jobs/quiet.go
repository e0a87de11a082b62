package jobs

import (
	"context"
	"sync"
	"time"

	"github.com/riverqueue/river"
)

// quiet is the memory of a worker that is at work all the time: what its last
// failure was that went on record.
type quiet struct {
	mu   sync.Mutex
	said string
	at   time.Time
}

// recordAgain is when a failure goes on record again that has not changed.
const recordAgain = 10 * time.Minute

// again tells whether a failure is to go on record.
func (q *quiet) again(failure string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.said == failure && time.Since(q.at) < recordAgain {
		return false
	}
	q.said, q.at = failure, time.Now()
	return true
}

// well forgets the last failure.
func (q *quiet) well() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.said = ""
}

// recordFailure writes the run record of an attempt that failed, unless the worker's
// last failure was the same and on record not long ago: such jobs come every minute
// or more often, and each record is an event. The log and River have each.
func recordFailure[T river.JobArgs](ctx context.Context, q *quiet, d Deps, job *river.Job[T], err error) error {
	put := spoken(fail(job.Kind, err))
	if ctx.Err() != nil || !q.again(put.Error()) {
		d.Log.Error("job failed", "job", job.Kind, "river_job_id", job.ID, "error", put.Error())
		return put
	}
	return record(ctx, d, job, SystemTenant, func(context.Context, *Run) error { return err })
}
