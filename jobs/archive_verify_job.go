package jobs

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/riverqueue/river"
)

// ArchiveVerifyArgs asks for one look at a sample of the archive.
type ArchiveVerifyArgs struct{}

func (ArchiveVerifyArgs) Kind() string { return "archive_verify" }

func (ArchiveVerifyArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 3, UniqueOpts: once()}
}

// ArchiveVerifyConfig says how much is looked at.
type ArchiveVerifyConfig struct {
	// Sample is how many segments are read, the newest among them; default 10.
	Sample int
	// Timeout bounds a run; default 6 h.
	Timeout time.Duration
}

func (c ArchiveVerifyConfig) withDefaults() ArchiveVerifyConfig {
	c.Sample = cmp.Or(c.Sample, 10)
	c.Timeout = cmp.Or(c.Timeout, 6*time.Hour)
	return c
}

// ArchiveVerifyWorker reads a sample of the archive back. The worker has no identity that
// would open it: objects are held against their manifests by digest, manifests and
// locks against the record, and what they say of their lines against the ledger.
// Findings fail the run; each is in the log, their number in the metrics.
type ArchiveVerifyWorker struct {
	river.WorkerDefaults[ArchiveVerifyArgs]
	Deps
}

func (w *ArchiveVerifyWorker) Timeout(*river.Job[ArchiveVerifyArgs]) time.Duration {
	return w.Config.ArchiveVerify.withDefaults().Timeout
}

func (w *ArchiveVerifyWorker) Work(ctx context.Context, job *river.Job[ArchiveVerifyArgs]) error {
	config := w.Config.ArchiveVerify.withDefaults()
	return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
		if w.Store == nil {
			return &Failure{Step: "verify archive", Code: "no store: set PGCUSTODY_STORE"}
		}
		checks, err := VerifyArchive(ctx, w.Deps, nil, config.Sample, func(done, total int) { run.Progress("segments", int64(done), int64(total)) })
		log := w.Log.With("job", job.Kind, "run_id", run.ID)
		var findings []SegmentCheck
		for _, c := range checks {
			switch {
			case c.Finding != "":
				findings = append(findings, c)
				log.Error("archive verification found", "object", c.Object, "detail", c.Finding)
			case c.Note != "":
				run.Count("not_read", 1)
				log.Warn("archive verification", "object", c.Object, "detail", c.Note)
			default:
				run.Count("segments", 1)
				run.Count("events", c.Events)
				run.Bytes(c.StoredBytes)
			}
		}
		run.Count("findings", int64(len(findings)))
		w.Metrics.archiveVerified(len(findings), err)
		if len(findings) > 0 {
			return &Failure{Step: "verify archive", Err: err,
				Code: fmt.Sprintf("%d findings, the first is %s: %s", len(findings), findings[0].Object, findings[0].Finding)}
		}
		return fail("verify archive", err)
	})
}
