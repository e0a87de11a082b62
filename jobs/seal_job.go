package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
)

// SealArgs asks for one shift of the sealer: events that have no leaf in the ledger
// yet get theirs.
type SealArgs struct{}

func (SealArgs) Kind() string { return "seal" }

// InsertOpts does not keep a second sealer out, as once would: a process that is
// killed leaves its job running in River's eyes for rescueAfter, and sealing must
// not wait for that. The database lets one seal at a time, and the others find it
// busy.
func (SealArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueLedger, MaxAttempts: 1}
}

// sealShift is how long a job seals, every [Schedule.Seal], before the next one does.
//
// One job a second would be an insert, two updates, a notification and later a
// delete for mostly nothing, and 86,400 rows a day in River's table. One job without
// an end would be missing for rescueAfter once its process was killed, and would keep
// a process from stopping. So the leader inserts a job for each shift: whoever is
// killed is missing for one.
const sealShift = 10 * time.Second

// SealConfig says how events are sealed.
type SealConfig struct {
	// Batch is how many events a transaction seals; default 10,000.
	Batch int64
}

// SealWorker seals events as their transactions end. It writes a run record only
// when it fails or a command asked for it, and then not for each job: it is always at
// work, and each record is an event that would have to be sealed in turn. What it
// did is in the metrics, and in the log at level debug.
type SealWorker struct {
	river.WorkerDefaults[SealArgs]
	Deps
	quiet quiet
}

// Timeout leaves time for a sweep: where the database lives anew, all events may have
// to be looked at in one transaction.
func (w *SealWorker) Timeout(*river.Job[SealArgs]) time.Duration { return time.Hour }

func (w *SealWorker) Work(ctx context.Context, job *river.Job[SealArgs]) error {
	if ownQueue(job.Queue) {
		return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
			sealed, err := Seal(ctx, w.Deps)
			run.Count("events", sealed)
			return fail("seal", err)
		})
	}
	begun := time.Now()
	// Jobs that have waited for longer than a shift came in a heap: one round each.
	late := begun.Sub(job.ScheduledAt) > sealShift
	for {
		if err := w.round(ctx); err != nil {
			return recordFailure(ctx, &w.quiet, w.Deps, job, fail("seal", err))
		}
		every := cmp.Or(w.Config.Schedule.Seal, time.Second)
		if late || time.Since(begun)+every >= sealShift {
			return nil
		}
		select {
		case <-ctx.Done():
			return fail("seal", ctx.Err())
		case <-w.Stopping:
			return nil
		case <-time.After(every):
		}
	}
}

// round seals until nothing is left, another sealer is found at work, or the process
// is to stop.
func (w *SealWorker) round(ctx context.Context) error {
	begun := time.Now()
	sealed, _, err := sealBatches(ctx, w.Deps)
	if sealed > 0 {
		w.Log.Debug("sealed", "job", "seal", "events", sealed, "duration", time.Since(begun).Round(time.Millisecond))
	}
	if err == nil {
		w.quiet.well()
		w.Metrics.observe(Report{Job: "seal", Status: "succeeded", EndedAt: time.Now(), Counts: map[string]int64{"events": sealed}})
	}
	return err
}

// Seal seals all events whose transactions have ended, and returns how many it did.
// While another sealer is at work it waits.
func Seal(ctx context.Context, d Deps) (sealed int64, err error) {
	for {
		n, busy, err := sealBatches(ctx, d)
		sealed += n
		if err != nil || !busy {
			return sealed, err
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return sealed, err
		}
	}
}

// sealBatches calls custody.seal_audit_log while there is more.
func sealBatches(ctx context.Context, d Deps) (sealed int64, busy bool, err error) {
	for {
		var outcome struct {
			Sealed        int64     `json:"sealed"`
			More          bool      `json:"more"`
			Busy          bool      `json:"busy"`
			Opened        bool      `json:"opened"`
			IncarnationID uuid.UUID `json:"incarnation_id"`
		}
		err := InContext(ctx, d.Pool, d.scope(SystemTenant, "seal"), func(tx pgx.Tx) error {
			raw, err := db.New().SealAuditLog(ctx, tx, cmp.Or(d.Config.Seal.Batch, 10_000))
			if err != nil {
				return err
			}
			return json.Unmarshal(raw, &outcome)
		})
		if err != nil {
			return sealed, false, err
		}
		sealed += outcome.Sealed
		if outcome.Opened {
			d.Log.Warn("an incarnation of the database was opened", "incarnation_id", outcome.IncarnationID, "events_sealed", outcome.Sealed)
		}
		if outcome.Busy || !outcome.More || d.stopping() {
			return sealed, outcome.Busy, nil
		}
	}
}
