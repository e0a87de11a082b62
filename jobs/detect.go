package jobs

import (
	"cmp"
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
)

// DetectArgs asks for one run of all detection rules over what was shipped since the
// last one.
type DetectArgs struct{}

func (DetectArgs) Kind() string { return "detect" }

func (DetectArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 1, UniqueOpts: once()}
}

// DetectConfig says how detection works, and where its alerts go.
type DetectConfig struct {
	// Timeout bounds one run; default 10 minutes.
	Timeout time.Duration
	// Endpoint is posted every alert that is opened; "" for none. Messages are signed
	// and retried as [NotifyConfig] says.
	Endpoint string
	// Stale is when an alert that could not be sent is no longer tried; default 7 days.
	Stale time.Duration
}

func (c DetectConfig) withDefaults() DetectConfig {
	c.Timeout = cmp.Or(c.Timeout, 10*time.Minute)
	c.Stale = cmp.Or(c.Stale, 7*24*time.Hour)
	return c
}

// DetectWorker runs the rules. It writes a run record only when an alert was opened,
// when it failed, or when a command asked for it: it comes every minute.
type DetectWorker struct {
	river.WorkerDefaults[DetectArgs]
	Deps
	quiet quiet
}

func (w *DetectWorker) Timeout(*river.Job[DetectArgs]) time.Duration {
	return w.Config.Detect.withDefaults().Timeout + time.Minute
}

func (w *DetectWorker) Work(ctx context.Context, job *river.Job[DetectArgs]) error {
	found, err := w.detect(ctx)
	if err == nil {
		err = fail("send alerts", w.send(ctx, job))
	}
	switch {
	case err != nil && !ownQueue(job.Queue):
		return recordFailure(ctx, &w.quiet, w.Deps, job, err)
	case found["opened"] == 0 && !ownQueue(job.Queue):
		w.quiet.well()
		return nil
	}
	return record(ctx, w.Deps, job, SystemTenant, func(_ context.Context, run *Run) error {
		for outcome, n := range found {
			run.Count(outcome, n)
		}
		return err
	})
}

// detect runs the rules and counts findings by what became of them.
func (w *DetectWorker) detect(ctx context.Context) (map[string]int64, error) {
	scope := w.scope(SystemTenant, "detection")
	scope.Timeout = w.Config.Detect.withDefaults().Timeout
	scope.Isolation = pgx.ReadCommitted
	found := map[string]int64{}
	err := InContext(ctx, w.Pool, scope, func(tx pgx.Tx) error {
		rows, err := db.New().Detect(ctx, tx, db.DetectParams{})
		for _, row := range rows {
			found[row.Outcome]++
		}
		return err
	})
	return found, fail("detect", err)
}

// send inserts a job for each alert that the webhook has not taken.
func (w *DetectWorker) send(ctx context.Context, job *river.Job[DetectArgs]) error {
	alerts, err := DueAlerts(ctx, w.Deps)
	if err != nil || len(alerts) == 0 {
		return err
	}
	var params []river.InsertManyParams
	for _, args := range alerts {
		params = append(params, river.InsertManyParams{Args: args, InsertOpts: follow(job.Queue)})
	}
	_, err = river.ClientFromContext[pgx.Tx](ctx).InsertMany(ctx, params)
	return err
}

// maxAlerts is how many alerts one look takes.
const maxAlerts = 1000

// DueAlerts lists the alerts that wait for the webhook, as jobs; none without one.
func DueAlerts(ctx context.Context, d Deps) ([]AlertArgs, error) {
	config := d.Config.Detect.withDefaults()
	if config.Endpoint == "" || len(d.Config.Notify.Key) == 0 {
		return nil, nil
	}
	var ids []uuid.UUID
	err := InContext(ctx, d.Pool, d.scope(SystemTenant, "alerts"), func(tx pgx.Tx) (err error) {
		ids, err = db.New().AlertsToSend(ctx, tx, db.AlertsToSendParams{OpenedAfter: time.Now().Add(-config.Stale), MaxRows: maxAlerts})
		return err
	})
	due := make([]AlertArgs, len(ids))
	for i, id := range ids {
		due[i] = AlertArgs{AlertID: id}
	}
	return due, err
}
