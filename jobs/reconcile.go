package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
	"pgcustody/jobs/logship"
	"pgcustody/jobs/store"
)

// ReconcileArgs asks for log, trail and store to be held against each other.
type ReconcileArgs struct{}

func (ReconcileArgs) Kind() string { return "reconcile" }

func (ReconcileArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 3, UniqueOpts: once()}
}

// reconcileBack is how far a run looks back: further than the daily one needs, for logs
// that came late.
const reconcileBack = 3 * 24 * time.Hour

// ReconcileWorker records what log and trail have not in common, and which batches the
// store does not have; and lets months of access events and batches go whose time is over.
type ReconcileWorker struct {
	river.WorkerDefaults[ReconcileArgs]
	Deps
}

func (w *ReconcileWorker) Timeout(*river.Job[ReconcileArgs]) time.Duration { return time.Hour }

func (w *ReconcileWorker) Work(ctx context.Context, job *river.Job[ReconcileArgs]) error {
	return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
		now := time.Now()
		err := InContext(ctx, w.Pool, w.scope(SystemTenant, "reconcile"), func(tx pgx.Tx) error {
			rows, err := db.New().ReconcileLogs(ctx, tx, db.ReconcileLogsParams{Since: now.Add(-reconcileBack), Until: now})
			for _, row := range rows {
				run.Count(row.Kind, row.Findings)
			}
			return err
		})
		if err != nil {
			return fail("reconcile", err)
		}
		if _, err := w.dropMonths(ctx, run, w.scope(SystemTenant, "retention"), func(tx pgx.Tx) ([]string, map[string]int64, error) {
			months, err := db.New().DropAccessMonths(ctx, tx, 1)
			return months, nil, err
		}); err != nil {
			return err
		}
		if w.Store == nil {
			return nil
		}
		report, err := VerifyLogs(ctx, w.Deps, false)
		if err != nil {
			return fail("look for batches", err)
		}
		run.Count("batches", report.Batches)
		run.Count("batch_findings", int64(len(report.Findings)))
		return w.expire(ctx, run)
	})
}

// expire deletes the objects of batches that nothing keeps any more.
func (w *ReconcileWorker) expire(ctx context.Context, run *Run) error {
	for {
		var due []db.CustodyDataLogBatch
		err := InContext(ctx, w.Pool, w.scope(SystemTenant, "retention"), func(tx pgx.Tx) (err error) {
			due, err = db.New().DueLogBatches(ctx, tx, 100)
			return err
		})
		if err != nil {
			return fail("look for due batches", err)
		}
		if len(due) == 0 {
			break
		}
		for _, b := range due {
			// The object first: should this end here, the next run deletes nothing and marks it.
			for _, key := range []string{b.ObjectKey, b.ManifestKey} {
				if _, err := w.Store.Delete(ctx, key); err != nil {
					return fail("delete batch", err)
				}
			}
			err := InContext(ctx, w.Pool, w.scope(SystemTenant, "retention"), func(tx pgx.Tx) error {
				return db.New().MarkLogBatchDeleted(ctx, tx, b.Number)
			})
			if err != nil {
				return fail("mark batch", err)
			}
			run.Count("batches_deleted", 1)
		}
	}
	return nil
}

// LogReport is what a look at the batches in the store found.
type LogReport struct {
	Batches  int64             `json:"batches"`
	Objects  int64             `json:"objects"`
	Read     bool              `json:"read"` // whether their content was read
	Findings []logship.Finding `json:"findings"`
}

// VerifyLogs holds the batches against the store: each is there, in order, with its
// digest, and nothing else is. With read it reads every object, otherwise manifests and
// sizes. What it finds is recorded.
func VerifyLogs(ctx context.Context, d Deps, read bool) (*LogReport, error) {
	if d.Store == nil {
		return nil, store.ErrNone
	}
	report := &LogReport{Read: read, Findings: []logship.Finding{}}
	sizes := map[string]int64{}
	for info, err := range d.Store.List(ctx, logship.Prefix) {
		if err != nil {
			return nil, err
		}
		sizes[info.Key] = info.Size
		report.Objects++
	}
	find := func(kind string, batch int64, key, what string) {
		f := logship.Finding{Kind: kind, N: 1, Detail: map[string]string{"object": key, "what": what}}
		if batch > 0 {
			f.Batch = &batch
		}
		report.Findings = append(report.Findings, f)
	}
	previous := logship.SHA256{}
	for from := int64(1); ; {
		var batches []db.CustodyDataLogBatch
		err := InContext(ctx, d.Pool, d.scope(SystemTenant, "verify logs"), func(tx pgx.Tx) (err error) {
			batches, err = db.New().LogBatches(ctx, tx, db.LogBatchesParams{FromNumber: from, UpTo: 1000})
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, b := range batches {
			if b.Number != from {
				find("batch_without_object", from, "", "a number is missing in the database")
			} else if !slices.Equal(b.PreviousSha256, previous[:]) {
				find("batch_altered", b.Number, b.ManifestKey, "the chain is broken before it")
			}
			from = b.Number + 1
			copy(previous[:], b.ManifestSha256)
			report.Batches++
			size, there := sizes[b.ObjectKey]
			_, described := sizes[b.ManifestKey]
			delete(sizes, b.ObjectKey)
			delete(sizes, b.ManifestKey)
			switch {
			case b.DeletedAt != nil:
				continue
			case !there:
				find("batch_without_object", b.Number, b.ObjectKey, "the store does not have it")
				continue
			case !described:
				find("batch_without_object", b.Number, b.ManifestKey, "the store does not have it")
				continue
			case size != b.StoredBytes:
				find("batch_altered", b.Number, b.ObjectKey, "it has another size")
				continue
			}
			manifest, err := objectDigest(ctx, d.Store, b.ManifestKey)
			if err != nil {
				return nil, err
			}
			if !slices.Equal(manifest[:], b.ManifestSha256) {
				find("batch_altered", b.Number, b.ManifestKey, "it has another digest")
			}
			if read {
				object, err := objectDigest(ctx, d.Store, b.ObjectKey)
				if err != nil {
					return nil, err
				}
				if !slices.Equal(object[:], b.Sha256) {
					find("batch_altered", b.Number, b.ObjectKey, "it has another digest")
				}
			}
		}
		if len(batches) < 1000 {
			break
		}
	}
	for key := range sizes {
		if _, ok := logship.NumberOf(key); ok {
			find("orphan", 0, key, "no batch names it: a run was killed before it recorded its batch, or the database was set back")
		}
	}
	slices.SortFunc(report.Findings, func(a, b logship.Finding) int {
		if a.Detail["object"] < b.Detail["object"] {
			return -1
		}
		return 1
	})
	if len(report.Findings) == 0 {
		return report, nil
	}
	document, err := json.Marshal(report.Findings)
	if err != nil {
		return nil, err
	}
	return report, InContext(ctx, d.Pool, d.scope(SystemTenant, "verify logs"), func(tx pgx.Tx) error {
		_, err := db.New().AddLogFindings(ctx, tx, db.AddLogFindingsParams{Source: "store", Findings: document})
		return err
	})
}

func objectDigest(ctx context.Context, s store.Store, key string) (sum [sha256.Size]byte, err error) {
	o, err := s.Get(ctx, key, "")
	if err != nil {
		return sum, err
	}
	hash := sha256.New()
	_, err = io.Copy(hash, o)
	hash.Sum(sum[:0])
	return sum, errors.Join(err, o.Close())
}
