package retrieve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pgcustody/db"
)

// system is the tenant in whose context the archive is looked at.
const system = "system"

// Database is the catalog and the tree of a database, and keeps the record of what was
// fetched.
type Database struct {
	// In runs work in one transaction in the context of a tenant.
	In func(ctx context.Context, tenant string, work func(pgx.Tx) error) error
}

// Segments asks custody.find_segments.
func (d Database) Segments(ctx context.Context, q Query) (found []Segment, _ error) {
	first, last := q.Days()
	var rows []db.FindSegmentsRow
	err := d.In(ctx, system, func(tx pgx.Tx) (err error) {
		rows, err = db.New().FindSegments(ctx, tx, db.FindSegmentsParams{
			FromDay: first.Format(time.DateOnly), ToDay: last.Format(time.DateOnly),
			IdentityID: orNil(q.Identity), LogEntryID: orNil(q.Entry), Tenant: orNil(q.Tenant),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find segments: %w", err)
	}
	for _, row := range rows {
		s := Segment{ObjectKey: row.ObjectKey, ManifestKey: row.ManifestKey}
		if copy(s.ManifestSHA256[:], row.ManifestSha256) != len(s.ManifestSHA256) {
			return nil, &Finding{Object: row.ManifestKey, What: "the record has no digest of it", Do: haveLookedAt}
		}
		found = append(found, s)
	}
	return found, nil
}

// Tiles are those of the database. pgcustody verify is what holds them against signed
// checkpoints.
func (d Database) Tiles(ctx context.Context, indexes []int64) ([][]byte, error) {
	var rows []db.LedgerTilesRow
	err := d.In(ctx, system, func(tx pgx.Tx) (err error) {
		rows, err = db.New().LedgerTiles(ctx, tx, indexes)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read leaf hashes: %w", err)
	}
	known := make(map[int64][]byte, len(rows))
	for _, row := range rows {
		known[row.TileIndex] = row.Hashes
	}
	tiles := make([][]byte, len(indexes))
	for i, index := range indexes {
		tiles[i] = known[index]
	}
	return tiles, nil
}

// Identity of a person of a tenant, by the user_id, or by the identity itself: one
// who was erased has no user_id any more.
func (d Database) Identity(ctx context.Context, tenant, person string) (id uuid.UUID, err error) {
	parsed, _ := uuid.Parse(person) // Nil where it is none
	err = d.In(ctx, tenant, func(tx pgx.Tx) error {
		id, err = db.New().IdentityOf(ctx, tx, db.IdentityOfParams{Tenant: tenant, UserID: person, IdentityID: orNil(parsed)})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return id, db.ErrUnknownPerson
	}
	return id, err
}

// Restore is the record of a retrieval.
type Restore struct {
	ID       uuid.UUID
	database Database
	tenant   string // of the context
}

// Begin records what is asked for, and why, and is committed when it returns: whatever is
// handed out is on record. keep is how long rows of custody.restored_events stay; 0 is
// as long as the policy allows.
func (d Database) Begin(ctx context.Context, q Query, reason string, keep time.Duration) (*Restore, error) {
	r := &Restore{database: d, tenant: q.Tenant}
	if r.tenant == "" {
		r.tenant = system
	}
	var interval *string
	if keep > 0 {
		text := fmt.Sprintf("%d seconds", int64(keep.Seconds()))
		interval = &text
	}
	err := d.In(ctx, r.tenant, func(tx pgx.Tx) (err error) {
		r.ID, err = db.New().BeginRestore(ctx, tx, db.BeginRestoreParams{
			RangeFrom: q.From, RangeTo: q.To, OfTenant: orNil(q.Tenant), IdentityID: orNil(q.Identity), LogEntryID: orNil(q.Entry), Action: orNil(q.Action),
			Reason: reason, Keep: interval,
		})
		return err
	})
	return r, err
}

// Finish records how it ended.
func (r *Restore) Finish(ctx context.Context, result Result) error {
	return r.database.In(ctx, r.tenant, func(tx pgx.Tx) error {
		return db.New().FinishRestore(ctx, tx, db.FinishRestoreParams{RestoreID: r.ID, Rows: result.Rows, Segments: int64(result.Segments)})
	})
}

// batch of lines that go into the table at a time, and how many do at once.
const (
	batchLines = 2000
	batchBytes = 4 << 20
	batchesOut = 3
)

// Table puts events into custody.restored_events, which holds each against its leaf
// again.
type Table struct {
	*Restore
	ctx    context.Context
	batch  db.AddRestoredEventsParams
	bytes  int
	group  *errgroup.Group // batches on their way
	failed context.Context // done when one of them has failed, or all is over
}

// Table takes the events of a restore.
func (r *Restore) Table(ctx context.Context) *Table {
	t := &Table{Restore: r, ctx: ctx}
	t.begin()
	return t
}

func (t *Table) begin() {
	t.group, t.failed = errgroup.WithContext(t.ctx)
	t.group.SetLimit(batchesOut)
}

// Take adds an event; those of a batch are stored together.
func (t *Table) Take(e *Event) error {
	if e.Object != t.batch.ObjectKey || len(t.batch.Leaves) >= batchLines || t.bytes >= batchBytes {
		t.send()
		if err := t.failed.Err(); err != nil {
			return cmp.Or(t.Flush(), err)
		}
		t.batch = db.AddRestoredEventsParams{RestoreID: t.ID, ObjectKey: e.Object}
	}
	t.batch.Leaves = append(t.batch.Leaves, e.Leaf)
	t.batch.Entries = append(t.batch.Entries, string(e.Line))
	t.bytes += len(e.Line)
	return nil
}

// send has the batch stored, beside what is read meanwhile.
func (t *Table) send() {
	batch, ctx := t.batch, t.failed
	t.batch, t.bytes = db.AddRestoredEventsParams{}, 0
	if len(batch.Leaves) == 0 {
		return
	}
	t.group.Go(func() error {
		return t.database.In(ctx, t.tenant, func(tx pgx.Tx) error {
			_, err := db.New().AddRestoredEvents(ctx, tx, batch)
			return err
		})
	})
}

// Flush stores what is left, and waits for all of it.
func (t *Table) Flush() error {
	t.send()
	err := t.group.Wait()
	t.begin()
	return err
}

// orNil is nil for the zero value.
func orNil[T comparable](value T) *T {
	var zero T
	if value == zero {
		return nil
	}
	return &value
}
