package jobs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
	"pgcustody/jobs/store"
)

// ExportArgs asks for one committed export request to be carried out.
type ExportArgs struct {
	Tenant    string    `json:"tenant"`
	RequestID uuid.UUID `json:"request_id"`
}

func (ExportArgs) Kind() string { return "export" }

func (ExportArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueSubjects, MaxAttempts: 25, UniqueOpts: once()}
}

// ExportConfig says how patient an export is.
type ExportConfig struct {
	// Timeout bounds one export; default 30 minutes.
	Timeout time.Duration
	// Again is when an export comes again that has nowhere to go; default 1 h.
	Again time.Duration
}

func (c ExportConfig) withDefaults() ExportConfig {
	c.Timeout = cmp.Or(c.Timeout, 30*time.Minute)
	c.Again = cmp.Or(c.Again, time.Hour)
	return c
}

// ExportWorker streams what the database holds about a person to the store, or to
// whatever the command in the same process takes it with, in constant memory. The
// event of the export and the end of the request commit after the document is
// there, together; an attempt that died in between finds the document and only
// repeats what is on record.
type ExportWorker struct {
	river.WorkerDefaults[ExportArgs]
	Deps
}

func (w *ExportWorker) Timeout(*river.Job[ExportArgs]) time.Duration {
	return w.Config.Export.withDefaults().Timeout
}

// ExportKey is where an export is in the store.
func ExportKey(tenant string, request uuid.UUID) string {
	return "exports/" + tenant + "/" + request.String() + ".json"
}

func (w *ExportWorker) Work(ctx context.Context, job *river.Job[ExportArgs]) error {
	config := w.Config.Export.withDefaults()
	tenant, id := job.Args.Tenant, job.Args.RequestID
	return record(ctx, w.Deps, job, tenant, func(ctx context.Context, run *Run) error {
		if w.ExportTo == nil && w.Store == nil {
			return later(job, config.Again, &Failure{Step: "write export", Code: "no store: set PGCUSTODY_STORE"})
		}
		scope := w.scope(tenant, "export request")
		scope.Isolation = pgx.RepeatableRead // all parts are of one moment
		var written, items int64
		err := w.Unlock.InContext(ctx, w.Pool, scope, func(tx pgx.Tx) (err error) {
			written, items, err = w.export(ctx, tx, run, ExportKey(tenant, id), id)
			if err != nil {
				return err
			}
			return db.New().CompleteExport(ctx, tx, db.CompleteExportParams{RequestID: id, Bytes: written})
		})
		switch {
		case refused(err, db.ErrSubjectErased):
			// The request would come back for ever; there is nobody left to answer. An
			// attempt before this one may have stored its document and died.
			if w.Store != nil {
				switch _, err := w.Store.Delete(ctx, ExportKey(tenant, id)); {
				case errors.Is(err, store.ErrLocked):
					return later(job, config.Again, fail("delete export", err))
				case err != nil:
					return fail("delete export", err)
				}
			}
			err := InContext(ctx, w.Pool, w.scope(tenant, "export request"), func(tx pgx.Tx) error {
				_, err := db.New().CancelRequest(ctx, tx, db.CancelRequestParams{RequestID: id, Reason: optional("the person has been erased")})
				return err
			})
			if refused(err, db.ErrRequestState) { // it was done before the erasure
				return nil
			}
			run.Count("cancelled", 1)
			return fail("cancel request", err)
		case err != nil:
			return fail("export subject", err)
		}
		run.Bytes(written)
		run.Count("items", items)
		run.Count("exported", 1)
		return nil
	})
}

// export writes the document where it belongs and returns its size and its items.
func (w *ExportWorker) export(ctx context.Context, tx pgx.Tx, run *Run, key string, id uuid.UUID) (size, items int64, err error) {
	if w.Store != nil && w.ExportTo == nil {
		there, err := w.Store.Head(ctx, key, "")
		if err == nil {
			// An attempt before this one died after its Put: put it on record again.
			items, err = w.document(ctx, tx, run, id, io.Discard)
			return there.Size, items, err
		}
		if !errors.Is(err, store.ErrNotFound) {
			return 0, 0, err
		}
	}

	reader, writer := io.Pipe()
	written := make(chan error, 1)
	go func() {
		var err error
		items, err = w.document(ctx, tx, run, id, writer)
		writer.CloseWithError(err) // nil is the end of the document
		written <- err
	}()
	returned := false
	defer func() {
		if !returned { // a panic, which ends the transaction on its way
			reader.CloseWithError(io.ErrClosedPipe)
			<-written
		}
	}()
	if w.ExportTo != nil {
		size, err = w.ExportTo(ctx, key, reader)
	} else {
		var put store.PutResult
		put, err = w.Store.Put(ctx, key, reader, store.PutOptions{ContentType: "application/json", IfNoneMatch: true})
		size = put.Size
	}
	returned = true
	// Whoever reads no further ends the writer too: the transaction is its alone until then.
	reader.CloseWithError(cmp.Or[error](err, io.ErrClosedPipe))
	if documentErr := <-written; documentErr != nil && !errors.Is(documentErr, io.ErrClosedPipe) {
		return 0, 0, documentErr
	}
	return size, items, err
}

// single are the parts that are one value, or null, rather than a list.
var single = map[string]bool{"profile": true, "preferences": true}

// document puts the items of an export together as the object that
// custody.export_subject returns, and says how many there are.
func (w *ExportWorker) document(ctx context.Context, tx pgx.Tx, run *Run, id uuid.UUID, out io.Writer) (total int64, err error) {
	buffered := bufio.NewWriterSize(out, 64<<10) // keeps its first error for Flush
	// sqlc reads all rows before it returns one.
	rows, err := tx.Query(ctx, "select e.part, e.kind, e.body from custody.export_items($1) e", id)
	if err != nil {
		return 0, err
	}
	defer rows.Close()

	open, items := "", 0
	closePart := func() {
		switch {
		case open == "":
		case !single[open]:
			fmt.Fprint(buffered, "]}")
		case items == 0:
			fmt.Fprint(buffered, "null}")
		default:
			fmt.Fprint(buffered, "}")
		}
	}
	for rows.Next() {
		var part, kind string
		var body json.RawMessage
		if err := rows.Scan(&part, &kind, &body); err != nil {
			return total, err
		}
		switch kind {
		case "head":
			if err := writeOpen(buffered, body); err != nil {
				return total, err
			}
		case "part":
			closePart()
			open, items = part, 0
			fmt.Fprintf(buffered, ",%q:", part)
			if err := writeOpen(buffered, body); err != nil {
				return total, err
			}
			fmt.Fprint(buffered, `,"data":`)
			if !single[part] {
				fmt.Fprint(buffered, "[")
			}
		case "item":
			if items > 0 {
				fmt.Fprint(buffered, ",")
			}
			fmt.Fprintf(buffered, "%s", body)
			items++
			total++
			run.Progress("items", total, 0)
		default:
			return total, fmt.Errorf("export has an item of unknown kind %q", kind)
		}
	}
	if err := rows.Err(); err != nil {
		return total, err
	}
	closePart()
	fmt.Fprint(buffered, "}")
	return total, buffered.Flush()
}

// writeOpen writes an object without its last brace, so that more can follow.
func writeOpen(out io.Writer, object json.RawMessage) error {
	trimmed, ok := bytes.CutSuffix(bytes.TrimSpace(object), []byte("}"))
	if !ok || len(trimmed) < 2 {
		return errors.New("export has a part that is no object")
	}
	_, err := out.Write(trimmed)
	return err
}
