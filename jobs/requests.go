package jobs

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
)

// RequestsArgs asks for one look at what is due: requests to execute, notices to
// send. It only inserts jobs for them, so that a request committed while no
// runner was there, or a notice whose job was lost, is found.
type RequestsArgs struct {
	Tenant string `json:"tenant,omitempty"`
}

func (RequestsArgs) Kind() string { return "requests" }

func (RequestsArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 1, UniqueOpts: once()}
}

// RequestsConfig says when requests are executed.
type RequestsConfig struct {
	// ErasureGrace is how long a received erasure rests, and may be cancelled,
	// before it is executed; default none.
	ErasureGrace time.Duration
	// CertificateGrace is how long the job that erases has to put the certificate
	// under lock before it is looked after; default 1 minute.
	CertificateGrace time.Duration
	// Batch is how many of a kind one look takes for each tenant; default 100.
	Batch int
}

// RequestsWorker inserts a job for each request and notice that is due.
type RequestsWorker struct {
	river.WorkerDefaults[RequestsArgs]
	Deps
}

// Work writes a run record only when it found something: it comes every minute.
func (w *RequestsWorker) Work(ctx context.Context, job *river.Job[RequestsArgs]) error {
	tenants, err := w.tenants(ctx, job.Args.Tenant)
	if err != nil {
		return fail("list tenants", err)
	}
	var failures error
	found := map[string][]river.InsertManyParams{}
	for _, tenant := range tenants {
		jobs, err := w.due(ctx, job, tenant)
		if ctx.Err() != nil {
			return fail("look for what is due", err)
		}
		failures = errors.Join(failures, fail("look for what is due", err))
		if len(jobs) > 0 {
			found[tenant] = jobs
		}
	}
	if len(found) == 0 {
		return failures
	}

	client := river.ClientFromContext[pgx.Tx](ctx)
	inserted := map[string]int64{}
	for _, jobs := range found {
		results, err := client.InsertMany(ctx, jobs)
		failures = errors.Join(failures, fail("insert jobs", err))
		for _, result := range results {
			if !result.UniqueSkippedAsDuplicate {
				inserted[result.Job.Kind]++
			}
		}
	}
	if len(inserted) == 0 {
		return failures
	}
	return record(ctx, w.Deps, job, cmp.Or(job.Args.Tenant, SystemTenant), func(_ context.Context, run *Run) error {
		for kind, n := range inserted {
			run.Count(kind, n)
		}
		return failures
	})
}

// due lists the jobs that a tenant's requests and notices want.
func (w *RequestsWorker) due(ctx context.Context, job *river.Job[RequestsArgs], tenant string) (jobs []river.InsertManyParams, err error) {
	config := w.Config.Requests
	batch := int32(cmp.Or(config.Batch, 100))
	add := func(args river.JobArgs) {
		jobs = append(jobs, river.InsertManyParams{Args: args, InsertOpts: follow(job.Queue)})
	}
	err = InContext(ctx, w.Pool, w.scope(tenant, "requests"), func(tx pgx.Tx) error {
		queries := db.New()
		for _, kind := range []string{"erasure", "export"} {
			grace := time.Duration(0)
			if kind == "erasure" {
				grace = config.ErasureGrace
			}
			due, err := queries.DueRequests(ctx, tx, db.DueRequestsParams{Kind: kind, MaxRows: batch, GraceSeconds: grace.Seconds()})
			if err != nil {
				return err
			}
			for _, id := range due {
				if kind == "erasure" {
					add(EraseArgs{Tenant: tenant, RequestID: id})
				} else {
					add(ExportArgs{Tenant: tenant, RequestID: id})
				}
			}
		}
		// Erased by SQL, or when the store was away: the certificate is still to be put under
		// lock, and exports of the person to be deleted.
		if w.Store != nil {
			unstored, err := queries.UnstoredCertificates(ctx, tx, db.UnstoredCertificatesParams{
				MaxRows: batch, GraceSeconds: cmp.Or(config.CertificateGrace, time.Minute).Seconds(),
			})
			if err != nil {
				return err
			}
			for _, id := range unstored {
				add(EraseArgs{Tenant: tenant, RequestID: id})
			}
		}
		return eachDueNotice(ctx, w.Deps, tx, batch, func(id uuid.UUID, again bool) {
			opts := follow(job.Queue)
			if again && opts == nil {
				opts = reminder()
			}
			jobs = append(jobs, river.InsertManyParams{Args: NotifyArgs{Tenant: tenant, NoticeID: id}, InsertOpts: opts})
		})
	})
	return jobs, err
}
