package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"pgcustody/db"
)

// Run is one attempt of a job, with a record of its own in custody_data.job_runs.
// Its methods may be called from several goroutines.
type Run struct {
	ID     uuid.UUID
	Job    string
	Tenant string

	deps   Deps
	mu     sync.Mutex
	counts map[string]int64
	bytes  int64
}

// Count adds n to one of the run's counts; the name is snake_case.
func (r *Run) Count(name string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[name] += n
}

// Total sets what stands after the run, where Count says what the run did.
func (r *Run) Total(name string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[totalPrefix+name] = n
}

// totalPrefix tells totals from counts in a record; metrics add up counts alone.
const totalPrefix = "total_"

// Bytes adds n to the bytes that the run wrote or read.
func (r *Run) Bytes(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes += n
}

// Progress tells whoever watches that done of total units are done; total 0
// means that nobody knows.
func (r *Run) Progress(unit string, done, total int64) {
	if r.deps.OnProgress != nil {
		r.deps.OnProgress(Progress{Job: r.Job, Unit: unit, Done: done, Total: total})
	}
}

// Progress is how far a run is.
type Progress struct {
	Job, Unit   string
	Done, Total int64
}

// Report is a finished run. Err keeps what Error leaves out.
type Report struct {
	RunID      uuid.UUID        `json:"run_id"`
	Job        string           `json:"job"`
	Tenant     string           `json:"tenant"`
	RiverJobID int64            `json:"river_job_id"`
	Status     string           `json:"status"`
	StartedAt  time.Time        `json:"started_at"`
	EndedAt    time.Time        `json:"ended_at"`
	Counts     map[string]int64 `json:"counts"`
	Bytes      int64            `json:"bytes"`
	Error      string           `json:"error,omitempty"`
	Err        error            `json:"-"`
}

// finishTimeout is how long the record of an interrupted run may take.
const finishTimeout = 10 * time.Second

// record does one attempt of a job under a run record of tenant's. The record's
// end and the job's completion are one transaction; a failed or interrupted
// attempt is recorded as failed with a code. Records that an attempt which died
// left open are closed first.
func record[T river.JobArgs](ctx context.Context, d Deps, job *river.Job[T], tenant string, work func(context.Context, *Run) error) error {
	queries := db.New()
	scope := d.scope(tenant, "job "+job.Kind)
	run := &Run{ID: uuid.New(), Job: job.Kind, Tenant: tenant, deps: d, counts: map[string]int64{}}
	started := time.Now()
	log := d.Log.With("job", job.Kind, "run_id", run.ID, "river_job_id", job.ID, "tenant", tenant, "attempt", job.Attempt)

	report := func(status string, err error) {
		done := Report{
			RunID: run.ID, Job: job.Kind, Tenant: tenant, RiverJobID: job.ID, Status: status, StartedAt: started.UTC(), EndedAt: time.Now().UTC(),
			Counts: maps.Clone(run.counts), Bytes: run.bytes, Err: err,
		}
		attributes := []any{"status", status, "bytes", run.bytes, "duration", done.EndedAt.Sub(started).Round(time.Millisecond)}
		for _, name := range slices.Sorted(maps.Keys(run.counts)) {
			attributes = append(attributes, name, run.counts[name])
		}
		if err != nil {
			done.Error = err.Error()
			log.Error("job run", append(attributes, "error", done.Error)...)
		} else {
			log.Info("job run", attributes...)
		}
		d.Metrics.observe(done)
		if d.OnReport != nil {
			d.OnReport(done)
		}
	}

	err := InContext(ctx, d.Pool, scope, func(tx pgx.Tx) error {
		dead, err := queries.UnfinishedRuns(ctx, tx, db.UnfinishedRunsParams{RiverJobID: &job.ID, Job: job.Kind})
		if err != nil {
			return err
		}
		for _, id := range dead {
			if err := queries.FinishRun(ctx, tx, db.FinishRunParams{
				RunID: id, Status: "failed", Counts: json.RawMessage("{}"), Error: optional("the process died"),
			}); err != nil {
				return err
			}
		}
		_, err = queries.StartRun(ctx, tx, db.StartRunParams{Job: job.Kind, RiverJobID: &job.ID, RunID: &run.ID})
		return err
	})
	if err != nil {
		err = spoken(fail("start run", err))
		report("failed", err)
		return err
	}
	log.Debug("job started")

	// close writes the end of a failed attempt, although the job's own context may
	// be over.
	closeFailed := func(message string) {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
		defer cancel()
		if err := InContext(closing, d.Pool, scope, func(tx pgx.Tx) error {
			return run.finish(closing, tx, "failed", &message)
		}); err != nil {
			log.Warn("run record not closed", "error", Code(err))
		}
	}
	finished := false
	defer func() {
		if finished {
			return
		}
		cause := recover() // nil: a test ends its goroutine
		closeFailed(job.Kind + ": panic")
		if cause != nil {
			panic(spokenPanic(cause)) // on its way to River, which keeps and logs it
		}
	}()

	err = work(ctx, run)
	if err == nil {
		err = fail("finish run", InContext(ctx, d.Pool, scope, func(tx pgx.Tx) error {
			if err := run.finish(ctx, tx, "succeeded", nil); err != nil {
				return err
			}
			_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
			return err
		}))
	}
	finished = true
	if err == nil {
		report("succeeded", nil)
		return nil
	}
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		// Whatever the driver made of it, the context's end is what ended the work.
		err = &Failure{Step: job.Kind, Code: Code(ctx.Err()), Err: errors.Join(ctx.Err(), err)}
	}
	err = spoken(fail(job.Kind, err))
	closeFailed(err.Error())
	report("failed", err)
	return err
}

func (r *Run) finish(ctx context.Context, tx pgx.Tx, status string, message *string) error {
	r.mu.Lock()
	counts, err := json.Marshal(r.counts)
	bytes := r.bytes
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return db.New().FinishRun(ctx, tx, db.FinishRunParams{RunID: r.ID, Status: status, Counts: counts, Bytes: bytes, Error: message})
}

// later puts an attempt off that only time can help: the job comes again after
// delay without losing an attempt. On a queue of one command's own nobody would
// wait for it, so there the attempt is the last.
func later[T river.JobArgs](job *river.Job[T], delay time.Duration, err error) error {
	order := river.JobSnooze(delay)
	if ownQueue(job.Queue) {
		order = river.JobCancel(err)
	}
	return &put{message: err.Error(), err: err, order: order}
}

// put is an error put into words that may be kept, with River's order beside it
// where there is one.
type put struct {
	message    string
	err, order error
}

func (p *put) Error() string { return p.message }

func (p *put) Unwrap() []error {
	if p.order == nil {
		return []error{p.err}
	}
	return []error{p.err, p.order}
}

var _ slog.LogValuer = Report{}

// LogValue keeps Err out of logs.
func (r Report) LogValue() slog.Value {
	return slog.GroupValue(slog.String("job", r.Job), slog.String("run_id", r.RunID.String()), slog.String("status", r.Status))
}
