package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/verify"
)

// VerifyArgs asks for one verification of the audit ledger.
type VerifyArgs struct{}

func (VerifyArgs) Kind() string { return "verify" }

func (VerifyArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 1, UniqueOpts: once()}
}

// VerifyConfig says what is verified by which keys.
type VerifyConfig struct {
	// Origin of the log and its verifier keys; by default those of the signer.
	Origin string
	Keys   []ledger.VerifierKey
	// ProgressFile remembers, outside the database, what was found intact. Empty: all
	// is verified each time.
	ProgressFile string
	// Full is how often all of it is verified; in between only what came since.
	// Default 24 h.
	Full time.Duration
	// MaxAge is how old the newest checkpoint may be; default 2 h.
	MaxAge time.Duration
	// KnownLost are leaves whose loss somebody has looked into.
	KnownLost []verify.Leaves
	// Identities open the archive. The worker needs none: without, archived lines are not
	// read, and the rest is verified all the same.
	Identities []age.Identity
	// Timeout bounds a run; default 6 h.
	Timeout time.Duration
}

func (c VerifyConfig) withDefaults() VerifyConfig {
	c.Full = cmp.Or(c.Full, 24*time.Hour)
	c.Timeout = cmp.Or(c.Timeout, 6*time.Hour)
	return c
}

// VerifyWorker verifies the audit ledger: what came since the last time, and all of
// it once a day. Findings fail the run; each is in the log, their number by kind in
// the metrics.
type VerifyWorker struct {
	river.WorkerDefaults[VerifyArgs]
	Deps
}

func (w *VerifyWorker) Timeout(*river.Job[VerifyArgs]) time.Duration {
	return w.Config.Verify.withDefaults().Timeout
}

func (w *VerifyWorker) Work(ctx context.Context, job *river.Job[VerifyArgs]) error {
	return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
		config := w.Config.Verify.withDefaults()
		if w.Signer != nil {
			config.Origin = cmp.Or(config.Origin, w.Signer.Origin())
			if len(config.Keys) == 0 {
				config.Keys = w.Signer.VerifierKeys()
			}
		}
		switch {
		case w.Store == nil:
			return &Failure{Step: "verify", Code: "no store: set PGCUSTODY_STORE"}
		case len(config.Keys) == 0:
			return &Failure{Step: "verify", Code: "no verifier keys: set PGCUSTODY_SIGNER", Err: ErrNoSigner}
		}
		err := w.verify(ctx, run, config)
		if errors.Is(err, verify.ErrNothingAnchored) {
			return later(job, anchorSoon, err)
		}
		return err
	})
}

// anchorSoon is when a ledger is looked at again that was never anchored.
const anchorSoon = 5 * time.Minute

func (w *VerifyWorker) verify(ctx context.Context, run *Run, config VerifyConfig) error {
	log := w.Log.With("job", "verify", "run_id", run.ID)
	since, err := readProgress(config.ProgressFile)
	if err != nil {
		log.Warn("progress of the last verification cannot be read: all is verified", "error", err.Error())
	}
	if since != nil && (since.Origin != config.Origin || time.Since(since.FullAt) >= config.Full) {
		since = nil
	}
	report, err := verify.Run(ctx, verify.Options{
		Database: w.Pool, Store: w.Store, Origin: config.Origin, Keys: config.Keys, MaxAge: config.MaxAge, Since: since, Identities: config.Identities, KnownLost: config.KnownLost,
		Prepare: func(ctx context.Context, tx pgx.Tx) error {
			purpose := "verify"
			return db.New().SetContext(ctx, tx, db.SetContextParams{Tenant: SystemTenant, Actor: w.Actor, Purpose: &purpose})
		},
		Show: func(stage string, done, total int64) { run.Progress(stage, done, total) },
	})
	run.Count("events", report.Events)
	run.Count("archived_events", report.Archived)
	run.Count("leaves", report.Leaves-report.From)
	w.Metrics.verified(report, since == nil)
	findings := int64(0)
	for _, n := range report.Counts {
		findings += n
	}
	run.Count("findings", findings)
	for _, f := range report.Findings {
		attributes := []any{"kind", string(f.Kind), "detail", f.Detail}
		if f.Leaf != nil {
			attributes = append(attributes, "leaf", *f.Leaf)
		}
		if f.Event != nil {
			attributes = append(attributes, "log_entry_id", f.Event.String())
		}
		if f.Checkpoint != nil {
			attributes = append(attributes, "checkpoint", *f.Checkpoint)
		}
		if f.Object != "" {
			attributes = append(attributes, "object", f.Object)
		}
		log.Error("verification found", attributes...)
	}
	if findings > 0 {
		// What was found intact before does not count any more: the next run looks at all.
		if err := removeProgress(config.ProgressFile); err != nil {
			log.Warn("progress of the last verification not removed", "error", err.Error())
		}
		what := map[int]string{verify.StatusAltered: "altered", verify.StatusSetBack: "set back"}[report.Status]
		return &Failure{Step: "verify", Code: fmt.Sprintf("%s: %d findings, the first is %s", what, findings, report.Findings[0].Kind), Err: err}
	}
	if errors.Is(err, verify.ErrNothingAnchored) && since == nil {
		return &Failure{Step: "verify", Code: verify.ErrNothingAnchored.Error(), Err: err}
	}
	if err != nil {
		// Should all be gone that was there, that is no beginning.
		return &Failure{Step: "verify", Code: "could not verify: " + Code(err)}
	}
	if err := writeProgress(config.ProgressFile, report.Progress); err != nil {
		return fail("write progress", err)
	}
	return nil
}

// readProgress is nil where there is none.
func readProgress(name string) (*verify.Progress, error) {
	if name == "" {
		return nil, nil
	}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var progress verify.Progress
	if err := json.Unmarshal(text, &progress); err != nil {
		return nil, err
	}
	return &progress, nil
}

func removeProgress(name string) error {
	if name == "" {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeProgress replaces the file whole.
func writeProgress(name string, progress *verify.Progress) (err error) {
	if name == "" || progress == nil {
		return nil
	}
	text, err := json.MarshalIndent(progress, "", "  ")
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(name), ".verified-") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = temp.Write(append(text, '\n'))
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), name)
}
