package jobs

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/db"
)

// pace says how many rows the next batch takes and how long it waits before. What
// others feel slows it down, calm lets it grow again.
type pace struct {
	least, most    int
	pause          time.Duration // between two batches
	backoff, limit time.Duration // after a batch that was ended, doubled up to the limit
	calm           int           // batches in a row by which nobody was kept waiting, before one takes twice as much

	batch  int
	next   time.Duration
	quiet  int
	yields int64
}

func newPace(c RetentionConfig) *pace {
	return &pace{least: c.MinBatch, most: c.Batch, pause: c.Pause, backoff: c.Backoff, limit: c.MaxBackoff, calm: c.Calm, batch: c.Batch, next: c.Backoff}
}

// done takes over how a batch went that was committed, and returns the pause.
func (p *pace) done(took time.Duration, felt bool) time.Duration {
	p.next = p.backoff
	if felt {
		p.halve()
		// At least half of the time is the others'.
		return max(p.pause, took)
	}
	if p.quiet++; p.quiet >= p.calm {
		p.quiet, p.batch = 0, min(2*p.batch, p.most)
	}
	return p.pause
}

// ended takes over that a batch was ended before it was done, and returns the wait.
func (p *pace) ended() time.Duration {
	p.halve()
	wait := p.next
	p.next = min(2*p.next, p.limit)
	return wait
}

func (p *pace) halve() {
	p.quiet, p.batch = 0, max(p.batch/2, p.least)
	p.yields++
}

// watched runs one statement of a transaction while another connection looks after
// who waits for a lock behind it. One that has waited for longer than patience ends
// the statement, as a timeout would (57014). It tells whether anybody waited.
func (d Deps) watched(ctx context.Context, tx pgx.Tx, look, patience time.Duration, statement func() error) (felt bool, err error) {
	pid, err := db.New().BackendPID(ctx, tx)
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithCancel(ctx)
	waited := make(chan bool, 1)
	go func() {
		felt := false
		defer func() { waited <- felt }()
		for sleep(ctx, look) == nil {
			waiting, err := db.New().WaitingFor(ctx, d.Pool, pid)
			if err != nil {
				continue // the statement has its own limits
			}
			felt = felt || waiting.Sessions > 0
			if waiting.Seconds > patience.Seconds() {
				_, _ = db.New().CancelBackend(ctx, d.Pool, pid)
			}
		}
	}()
	err = statement()
	stop()
	return <-waited, err
}
