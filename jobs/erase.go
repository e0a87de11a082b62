package jobs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
	"pgcustody/jobs/store"
)

// EraseArgs asks for one committed erasure request to be executed.
type EraseArgs struct {
	Tenant    string    `json:"tenant"`
	RequestID uuid.UUID `json:"request_id"`
}

func (EraseArgs) Kind() string { return "erase" }

func (EraseArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueSubjects, MaxAttempts: 25, UniqueOpts: once()}
}

// EraseConfig says how patient erasure is.
type EraseConfig struct {
	// LockTimeout ends an attempt that waits for a row of the person; default 5 s.
	LockTimeout time.Duration
	// SearchTimeout bounds the search for residue, EraseTimeout the erasure;
	// defaults 10 and 2 minutes.
	SearchTimeout, EraseTimeout time.Duration
	// Again is when an erasure comes again that found residue; default 1 h.
	Again time.Duration
	// KeepCertificate is how long the store locks a certificate; default 7 years.
	KeepCertificate time.Duration
}

func (c EraseConfig) withDefaults() EraseConfig {
	c.LockTimeout = cmp.Or(c.LockTimeout, 5*time.Second)
	c.SearchTimeout = cmp.Or(c.SearchTimeout, 10*time.Minute)
	c.EraseTimeout = cmp.Or(c.EraseTimeout, 2*time.Minute)
	c.Again = cmp.Or(c.Again, time.Hour)
	c.KeepCertificate = cmp.Or(c.KeepCertificate, 7*366*24*time.Hour)
	return c
}

// EraseWorker executes erasure requests: searches for residue, erases in one
// transaction together with the jobs for its notices, deletes the person's exports
// from the store, puts the certificate under lock, and notes that it is there. Each step may be done again:
// the erasure returns the certificate that it issued, and the store takes it once.
type EraseWorker struct {
	river.WorkerDefaults[EraseArgs]
	Deps
}

func (w *EraseWorker) Timeout(*river.Job[EraseArgs]) time.Duration {
	config := w.Config.Erase.withDefaults()
	return config.SearchTimeout + config.EraseTimeout + 2*time.Minute
}

// CertificateKey is where a certificate is in the store.
func CertificateKey(tenant string, request uuid.UUID) string {
	return "erasure-certificates/" + tenant + "/" + request.String() + ".json"
}

func (w *EraseWorker) Work(ctx context.Context, job *river.Job[EraseArgs]) error {
	config := w.Config.Erase.withDefaults()
	tenant, id := job.Args.Tenant, job.Args.RequestID
	return record(ctx, w.Deps, job, tenant, func(ctx context.Context, run *Run) error {
		queries := db.New()
		run.Progress("steps", 0, 3)

		// With its key the tenant's sealed values are searched too, so an erasure waits for a
		// provider that is away rather than search less. What was carried out needs no key.
		unlock := w.Unlock
		open, err := w.open(ctx, tenant, id)
		if err != nil {
			return fail("look at request", err)
		}
		if !open {
			unlock = nil
		}

		// The long part takes no lock that others wait for, and notes how far it looked.
		search := w.scope(tenant, "erasure request")
		search.Timeout = config.SearchTimeout
		err = unlock.InContext(ctx, w.Pool, search, func(tx pgx.Tx) error {
			_, err := queries.SearchResidue(ctx, tx, id)
			return err
		})
		// A request that is done or cancelled has nothing to search; the erasure itself
		// says which.
		if err != nil && !refused(err, db.ErrRequestState) {
			return fail("search residue", err)
		}
		run.Progress("steps", 1, 3)

		erase := w.scope(tenant, "erasure request")
		erase.LockTimeout, erase.Timeout = config.LockTimeout, config.EraseTimeout
		var certificate json.RawMessage
		err = unlock.InContext(ctx, w.Pool, erase, func(tx pgx.Tx) (err error) {
			certificate, err = queries.EraseSubject(ctx, tx, db.EraseSubjectParams{RequestID: id, ResidueBasis: optional(w.ResidueBasis)})
			if err != nil {
				return err
			}
			return w.notify(ctx, tx, job)
		})
		switch {
		case refused(err, db.ErrResidue):
			run.Count("residue", 1)
			return later(job, config.Again, fail("erase subject", err))
		case err != nil:
			return fail("erase subject", err)
		}
		var outcome struct {
			Status  string           `json:"status"`
			Deleted map[string]int64 `json:"deleted"`
		}
		// Whatever else the certificate says, its shape is SQL's matter.
		_ = json.Unmarshal(certificate, &outcome)
		if outcome.Status == "held" {
			// custody.due_requests names it again once the hold is gone.
			run.Count("held", 1)
			return nil
		}
		for table, rows := range outcome.Deleted {
			run.Count(table, rows)
		}
		run.Count("erased", 1)
		run.Progress("steps", 2, 3)

		// The one does not wait for the other.
		dropped := w.dropExports(ctx, run, tenant, id)
		if w.Store == nil && dropped == nil {
			w.Log.Warn("certificate not stored: no store configured", "tenant", tenant, "request_id", id)
			return nil
		}
		if w.Store == nil {
			return later(job, config.Again, dropped)
		}
		if err := w.keep(ctx, CertificateKey(tenant, id), certificate, time.Now().Add(config.KeepCertificate)); err != nil {
			return errors.Join(dropped, fail("store certificate", err))
		}
		run.Bytes(int64(len(certificate)))
		run.Count("certificates_stored", 1)
		if errors.Is(dropped, store.ErrLocked) {
			return later(job, config.Again, dropped)
		}
		if dropped != nil {
			return dropped
		}
		// From here on nothing of the request is left to do: requests passes it over.
		err = InContext(ctx, w.Pool, w.scope(tenant, "erasure request"), func(tx pgx.Tx) error {
			return queries.MarkCertificateStored(ctx, tx, db.MarkCertificateStoredParams{RequestID: id, ObjectKey: CertificateKey(tenant, id)})
		})
		run.Progress("steps", 3, 3)
		return fail("note the certificate", err)
	})
}

// open tells whether a request is still to be carried out. One that nobody knows is:
// whoever carries it out says so.
func (w *EraseWorker) open(ctx context.Context, tenant string, id uuid.UUID) (bool, error) {
	var request struct {
		Status string `json:"status"`
	}
	err := InContext(ctx, w.Pool, w.scope(tenant, "erasure request"), func(tx pgx.Tx) error {
		document, err := db.New().RequestStatus(ctx, tx, id)
		if err != nil || document == nil {
			return err
		}
		return json.Unmarshal(document, &request)
	})
	return request.Status != "done" && request.Status != "cancelled", err
}

// dropExports deletes what the store has of the person: the documents of earlier
// export requests, all versions. It may be done again.
func (w *EraseWorker) dropExports(ctx context.Context, run *Run, tenant string, id uuid.UUID) error {
	var exports []uuid.UUID
	err := InContext(ctx, w.Pool, w.scope(tenant, "erasure request"), func(tx pgx.Tx) (err error) {
		exports, err = db.New().ExportsOfErased(ctx, tx, id)
		return err
	})
	if err == nil && len(exports) > 0 && w.Store == nil {
		err = &store.Error{Op: "delete", Object: "exports of the person", Kind: store.ErrNone,
			Hint: "they may be in a store: name it in PGCUSTODY_STORE, then run erase again for request " + id.String()}
	}
	if err != nil {
		return fail("delete exports", err)
	}
	var failures error
	for _, export := range exports {
		versions, err := w.Store.Delete(ctx, ExportKey(tenant, export))
		run.Count("exports_deleted", int64(versions))
		failures = errors.Join(failures, fail("delete exports", err))
	}
	return failures
}

// notify inserts the jobs for the request's notices in the erasure's own
// transaction, so that neither goes without the other.
func (w *EraseWorker) notify(ctx context.Context, tx pgx.Tx, job *river.Job[EraseArgs]) error {
	if len(w.Config.Notify.Key) == 0 {
		return nil
	}
	notices, err := db.New().RequestNotices(ctx, tx, job.Args.RequestID)
	if err != nil {
		return err
	}
	var jobs []river.InsertManyParams
	for _, notice := range notices {
		if notice.SentAt == nil && notice.AcknowledgedAt == nil {
			jobs = append(jobs, river.InsertManyParams{
				Args: NotifyArgs{Tenant: job.Args.Tenant, NoticeID: notice.NoticeID}, InsertOpts: follow(job.Queue),
			})
		}
	}
	if len(jobs) == 0 {
		return nil
	}
	_, err = river.ClientFromContext[pgx.Tx](ctx).InsertManyTx(ctx, tx, jobs)
	return err
}

// keep puts a document under lock once. An attempt that died after its Put finds
// the object there: it must say the same.
func (w *EraseWorker) keep(ctx context.Context, key string, document []byte, until time.Time) error {
	_, err := w.Store.Put(ctx, key, bytes.NewReader(document), store.PutOptions{
		RetainUntil: until, ContentType: "application/json", IfNoneMatch: true,
	})
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	object, err := w.Store.Get(ctx, key, "")
	if err != nil {
		return err
	}
	defer object.Close()
	stored, err := io.ReadAll(io.LimitReader(object, int64(len(document))+1))
	if err != nil {
		return err
	}
	if !sameCertificate(stored, document) {
		return &Failure{Step: "store certificate", Code: "another certificate is stored for this request"}
	}
	return nil
}

// sameCertificate compares two certificates, not their spelling, and without what the
// holders' answers and the next checkpoint of the ledger change.
func sameCertificate(a, b []byte) bool {
	var x, y map[string]any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	for _, changing := range []string{"status", "external_holders", "audit_event_proof"} {
		delete(x, changing)
		delete(y, changing)
	}
	p, _ := json.Marshal(x)
	q, _ := json.Marshal(y)
	return bytes.Equal(p, q)
}
