package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/db"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
)

// AnchorArgs asks for one run of the anchor: the ledger's tree, where it grew or the
// heartbeat is due, is signed and goes into the bucket.
type AnchorArgs struct{}

func (AnchorArgs) Kind() string { return "anchor" }

// InsertOpts lets a job come although, in River's eyes, another runs: its process
// may have been killed. Two runs at once do no harm.
func (AnchorArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueLedger, MaxAttempts: 1}
}

// AnchorConfig says when checkpoints are made.
type AnchorConfig struct {
	// Lease is how long another copy of the database is kept from anchoring after the
	// last checkpoint; default 3 hours. Heartbeat is how old the newest checkpoint gets
	// while the tree does not grow; default 1 hour.
	Lease, Heartbeat time.Duration
	// Timeout bounds a run; default 50 minutes. The first one puts the whole tree.
	Timeout time.Duration
	// OthersWait is how long a run waits for another that uses the same signer; default
	// 5 s.
	OthersWait time.Duration
}

func (c AnchorConfig) withDefaults() AnchorConfig {
	c.Timeout = cmp.Or(c.Timeout, 50*time.Minute)
	c.OthersWait = cmp.Or(c.OthersWait, 5*time.Second)
	return c
}

// AnchorWorker anchors the ledger. It writes a run record only when it fails or a
// command asked for it, as [SealWorker] does: a record is an event, and the anchor
// itself must not make the tree grow for ever.
type AnchorWorker struct {
	river.WorkerDefaults[AnchorArgs]
	Deps
	quiet quiet
}

// anchorGrace is what a run may take beyond its own limit to close its record.
const anchorGrace = time.Minute

func (w *AnchorWorker) Timeout(*river.Job[AnchorArgs]) time.Duration {
	return w.Config.Anchor.withDefaults().Timeout + anchorGrace
}

func (w *AnchorWorker) Work(ctx context.Context, job *river.Job[AnchorArgs]) error {
	if ownQueue(job.Queue) {
		return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
			result, err := w.anchor(ctx)
			run.Count("checkpoints", boolCount(result.Anchored))
			run.Count("tiles", result.Tiles)
			return err
		})
	}
	result, err := w.anchor(ctx)
	if errors.Is(err, ledger.ErrBusy) {
		// The other run does the same, or the next one does.
		w.Log.Debug("anchor is busy", "job", "anchor")
		return nil
	}
	w.Metrics.anchored(result, err)
	if err != nil {
		return recordFailure(ctx, &w.quiet, w.Deps, job, err)
	}
	w.quiet.well()
	w.Metrics.observe(Report{Job: "anchor", Status: "succeeded", EndedAt: time.Now(), Counts: map[string]int64{
		"checkpoints": boolCount(result.Anchored), "tiles": result.Tiles,
	}})
	return nil
}

func (w *AnchorWorker) anchor(ctx context.Context) (ledger.Result, error) {
	config := w.Config.Anchor.withDefaults()
	switch {
	case w.Signer == nil:
		return ledger.Result{}, &Failure{Step: "anchor", Code: "no signer: set PGCUSTODY_SIGNER", Err: ErrNoSigner}
	case w.Store == nil:
		return ledger.Result{}, &Failure{Step: "anchor", Code: "no store: set PGCUSTODY_STORE", Err: store.ErrNone}
	}
	ctx, cancel := context.WithTimeout(ctx, config.Timeout)
	defer cancel()
	result, err := NewAnchor(w.Deps).Run(ctx)
	for _, object := range result.Strange {
		w.Log.Error("an object of the log is not what its name says, and was passed over", "job", "anchor", "object", object)
	}
	if t := result.TakenOver; t != nil {
		w.Log.Warn("the ledger was set to what is anchored", "job", "anchor", "common_leaves", t.Prefix, "leaves_taken_over", t.Leaves, "leaves_replaced", t.Replaced)
	}
	if result.Anchored {
		w.Log.Debug("anchored", "job", "anchor", "checkpoint", result.Number, "tree_size", result.Size, "tiles", result.Tiles)
	}
	return result, fail("anchor", err)
}

// ErrNoSigner says that no signer is configured.
var ErrNoSigner = errors.New("no signer is configured")

// NewAnchor is the anchor of the database, store and signer of d.
func NewAnchor(d Deps) *ledger.Anchor {
	config := d.Config.Anchor.withDefaults()
	return &ledger.Anchor{
		Database: ledgerDatabase{d}, Store: d.Store, Signer: d.Signer,
		Lease: config.Lease, Heartbeat: config.Heartbeat, Wait: config.OthersWait,
	}
}

// ledgerDatabase is the ledger in Postgres as the anchor sees it. Each call is a
// transaction of its own: a long one would hold sealing back.
type ledgerDatabase struct{ Deps }

func (l ledgerDatabase) in(ctx context.Context, work func(pgx.Tx) error) error {
	return InContext(ctx, l.Pool, l.scope(SystemTenant, "anchor"), work)
}

// Head seals first where the database lives anew and the sealer has not noticed yet:
// until then the ledger would say that it is still the database that it was.
func (l ledgerDatabase) Head(ctx context.Context) (ledger.Head, error) {
	head, err := l.head(ctx)
	if !errors.Is(err, errLivesAnew) {
		return head, err
	}
	if _, err := Seal(ctx, l.Deps); err != nil {
		return ledger.Head{}, err
	}
	return l.head(ctx)
}

var errLivesAnew = errors.New("the sealer has not noticed yet that the database lives anew")

func (l ledgerDatabase) head(ctx context.Context) (ledger.Head, error) {
	var raw json.RawMessage
	var incarnation uuid.UUID
	if err := l.in(ctx, func(tx pgx.Tx) (err error) {
		if incarnation, err = db.New().OpenIncarnation(ctx, tx); err != nil {
			return err
		}
		raw, err = db.New().LedgerHead(ctx, tx)
		return err
	}); err != nil {
		return ledger.Head{}, err
	}
	var found struct {
		TreeSize         int64      `json:"tree_size"`
		Root             string     `json:"root"`
		IncarnationID    *uuid.UUID `json:"incarnation_id"`
		SystemIdentifier string     `json:"system_identifier"`
		Timeline         int64      `json:"timeline"`
		SealedTo         string     `json:"sealed_to"`
		NextXID          string     `json:"next_xid"`
		WaitingSince     *time.Time `json:"waiting_since"`
		RetainUntil      time.Time  `json:"retain_until"`
	}
	if err := json.Unmarshal(raw, &found); err != nil {
		return ledger.Head{}, fmt.Errorf("read ledger head: %w", err)
	}
	if found.IncarnationID == nil || *found.IncarnationID != incarnation {
		return ledger.Head{}, errLivesAnew
	}
	root, err := tlog.ParseHash(found.Root)
	if err != nil {
		return ledger.Head{}, fmt.Errorf("read ledger head: %w", err)
	}
	return ledger.Head{
		Size: found.TreeSize, Root: root, SystemIdentifier: found.SystemIdentifier, Timeline: found.Timeline, IncarnationID: incarnation,
		SealedTo: found.SealedTo, NextXID: found.NextXID, WaitingSince: found.WaitingSince, RetainUntil: found.RetainUntil,
	}, nil
}

// Tile is empty where there is none: nobody has hashes beyond the end.
func (l ledgerDatabase) Tile(ctx context.Context, level int, index int64) (hashes []byte, err error) {
	err = l.in(ctx, func(tx pgx.Tx) (err error) {
		hashes, err = db.New().LedgerTile(ctx, tx, db.LedgerTileParams{Level: int16(level), TileIndex: index})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return hashes, err
}

func (l ledgerDatabase) LastCheckpoint(ctx context.Context) (number int64, err error) {
	err = l.in(ctx, func(tx pgx.Tx) (err error) {
		number, err = db.New().LastCheckpoint(ctx, tx)
		return err
	})
	return number, err
}

func (l ledgerDatabase) Checkpoint(ctx context.Context, number int64) (signed []byte, err error) {
	err = l.in(ctx, func(tx pgx.Tx) error {
		text, err := db.New().LedgerCheckpoint(ctx, tx, number)
		signed = []byte(text)
		return err
	})
	return signed, err
}

func (l ledgerDatabase) RecordCheckpoint(ctx context.Context, r ledger.Record) error {
	return l.in(ctx, func(tx pgx.Tx) error {
		_, err := db.New().RecordCheckpoint(ctx, tx, db.RecordCheckpointParams{
			Number: r.Number, TreeSize: r.Size, RootHash: r.Root[:], Note: string(r.Note),
			ObjectKey: r.Key, RetainUntil: r.RetainUntil, AnchoredAt: r.AnchoredAt,
		})
		return err
	})
}

func (l ledgerDatabase) TakeOver(ctx context.Context, prefix int64, leaves []byte, observed json.RawMessage) error {
	return l.in(ctx, func(tx pgx.Tx) error {
		_, err := db.New().TakeOverLeaves(ctx, tx, db.TakeOverLeavesParams{Kept: prefix, Hashes: leaves, Observed: observed})
		return err
	})
}
