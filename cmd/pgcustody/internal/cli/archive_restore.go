package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/retrieve"
)

func newArchiveRestoreCmd(app *App) *cobra.Command {
	r := &archiveRestore{retrieval: retrieval{App: app}}
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Read events back from the archive, each held against the ledger",
		Long: `Read events back from the archive. Only segments that can hold what is asked for are
read, and each line is held against its leaf in the ledger before it is handed out.

To standard output go the canonical entries, one a line, byte for byte as they were
sealed. With --into table they go into the database, where custody.restored_events
shows them, marked, until they expire. With --tenant, those of that tenant alone.

Who asks, for what and why is recorded, and an event of the trail, before the first
line is handed out. With --from-objects neither the database is asked nor anything
recorded: leaves are then those of the newest signed checkpoint in the bucket, and a
person is named by the identity.

Exit status 3 if no segment is of that time, 4 if an object is not what was archived
(what was handed out until then is right), 8 if no identity opens it.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.Run(cmd.Context()) },
	}
	r.addFlags(cmd)
	cmd.Flags().StringVar(&r.Into, "into", "-", "where the events go: - is standard output, table is custody.restored_events")
	cmd.Flags().DurationVar(&r.Keep, "keep", 0, "with --into table, how long they stay; default and most is the policy restored")
	return cmd
}

func newArchiveExportCmd(app *App) *cobra.Command {
	e := &archiveExport{retrieval: retrieval{App: app}}
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write events of the archive to a Parquet file, for analysts",
		Long: `Write events of the archive to a Parquet file, one row an event. What is read, checked
and recorded is as with archive restore. The columns are in the README; the sealed
personal part is not among them. The file appears whole or not at all, and only its
owner may read it.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.Run(cmd.Context()) },
	}
	e.addFlags(cmd)
	cmd.Flags().StringVar(&e.Parquet, "parquet", "", "file to write")
	return cmd
}

// retrieval is what both commands ask for.
type retrieval struct {
	*App
	From, To            string
	User, Entry, Action string
	Reason              string
	Identities          []string
	FromObjects         bool
	VKeys               []string
}

func (r *retrieval) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&r.From, "from", "", "events from this time on, as in 2026-11-20 (UTC) or 2026-11-20T10:00:00Z")
	flags.StringVar(&r.To, "to", "", "events before this time")
	flags.StringVar(&r.User, "user", "", "events by or about this person: user_id, or the identity of one who was erased")
	flags.StringVar(&r.Entry, "entry", "", "the event of this log_entry_id")
	flags.StringVar(&r.Action, "action", "", "events of this action")
	flags.StringVar(&r.Reason, "reason", "", "why, without naming the person")
	addIdentities(flags, &r.Identities)
	flags.BoolVar(&r.FromObjects, "from-objects", false, "do without a database: by the bucket and the log's verifier keys alone")
	addVerifierKeys(flags, &r.VKeys)
}

// query is what the flags ask for; a user_id is not looked up yet.
func (r *retrieval) query() (q retrieve.Query, err error) {
	for _, bound := range []struct {
		flag, text string
		at         *time.Time
	}{{"--from", r.From, &q.From}, {"--to", r.To, &q.To}} {
		if bound.text == "" {
			return q, &ConfigError{Field: bound.flag, Problem: "required: bound the search in time; only the segments between are read"}
		}
		if *bound.at, err = parseTime(bound.flag, bound.text); err != nil {
			return q, err
		}
	}
	if !q.To.After(q.From) {
		return q, &ConfigError{"--to", r.To, "must be after --from"}
	}
	entry, err := parseID("--entry", r.Entry)
	if err != nil {
		return q, err
	}
	if entry != nil {
		q.Entry = *entry
	}
	q.Tenant, q.Action = r.Tenant, r.Action
	switch {
	case r.User != "" && r.Tenant == "":
		return q, &ConfigError{Field: "--tenant", Problem: "required with --user: a person is of one tenant"}
	case r.Reason == "" && !r.FromObjects:
		return q, &ConfigError{Field: "--reason", Problem: "required: say why the events are needed, without naming the person; it is recorded"}
	case len(r.Identities) == 0:
		return q, &ConfigError{Field: "--identity", Problem: "required: the archive is encrypted; give the file of an identity (AGE-SECRET-KEY-1…) of one of its recipients"}
	}
	return q, nil
}

// sink takes the events of a retrieval.
type sink struct {
	take func(*retrieve.Event) error
	// flush is called when a segment has been read, and at the end.
	flush func() error
}

// run reads the archive back into what open makes; restore is nil without a database.
func (r *retrieval) run(ctx context.Context, keep time.Duration, open func(restore *retrieve.Restore) (sink, error)) (*retrieve.Restore, retrieve.Result, error) {
	var result retrieve.Result
	var restore *retrieve.Restore
	q, err := r.query()
	if err != nil {
		return nil, result, err
	}
	identities, err := r.identities(r.Identities)
	if err != nil {
		return nil, result, err
	}
	opened, err := r.namedStore(ctx)
	if err != nil {
		return nil, result, err
	}
	o := retrieve.Options{Store: opened, Identities: identities, Query: q}
	bar := r.newProgress()
	defer bar.Done()
	work := func() error {
		to, err := open(restore)
		if err != nil {
			return err
		}
		var failed error
		o.Show = func(done, total int, lines int64) {
			failed = errors.Join(failed, to.flush())
			bar.Show(jobs.Progress{Job: r.Command, Unit: "segments", Done: int64(done), Total: int64(total)})
		}
		result, err = retrieve.Run(ctx, o, to.take)
		// What is right is handed out, whatever came after it.
		err = errors.Join(err, failed, to.flush())
		if errors.Is(err, retrieve.ErrNothing) {
			return &Failure{Code: ExitRefused, What: "no segment of the archive can hold such events", Object: r.From + " to " + r.To,
				Do: "pgcustody archive list shows what there is; events of the hot period may be in Postgres alone", Err: err}
		}
		return err
	}
	if r.FromObjects {
		keys, origin, err := r.verifierKeys(r.VKeys)
		if err != nil {
			return nil, result, err
		}
		if r.User != "" {
			if o.Query.Identity, err = uuid.Parse(r.User); err != nil {
				return nil, result, &ConfigError{"--user", r.User, "without a database nobody knows who that is: give the identity, a UUID"}
			}
		}
		tree, err := ledger.OpenAnchored(ctx, opened, origin, keys)
		if err != nil {
			return nil, result, err
		}
		o.Catalog, o.Tree = retrieve.Objects{Store: opened, Origin: origin, Keys: keys}, retrieve.AnchoredTree{AnchoredTree: tree}
		return nil, result, work()
	}
	err = r.withDatabase(ctx, r.Command, func(pool *pgxpool.Pool) (err error) {
		database := jobs.ArchiveDatabase(pool, jobs.Scope{Actor: r.Actor, Purpose: r.Command})
		o.Catalog, o.Tree = database, database
		if r.User != "" {
			if o.Query.Identity, err = database.Identity(ctx, r.Tenant, r.User); errors.Is(err, db.ErrUnknownPerson) {
				return &Failure{Code: ExitRefused, What: "unknown person in tenant " + r.Tenant, Do: "give the identity of one who was erased", Err: err}
			} else if err != nil {
				return err
			}
		}
		if restore, err = database.Begin(ctx, o.Query, r.Reason, keep); err != nil {
			return err
		}
		if err := work(); err != nil {
			return err
		}
		return restore.Finish(ctx, result)
	})
	return restore, result, err
}

// said is how a retrieval is reported.
func said(result retrieve.Result) string {
	return fmt.Sprintf("%d events, out of %d in %d segments", result.Rows, result.Lines, result.Segments)
}

type archiveRestore struct {
	retrieval
	Into string
	Keep time.Duration
}

func (r *archiveRestore) Run(ctx context.Context) error {
	switch {
	case r.Into != "-" && r.Into != "table":
		return &ConfigError{"--into", r.Into, "must be - or table"}
	case r.Into == "table" && r.FromObjects:
		return &ConfigError{"--into", r.Into, "there is no table without a database"}
	case r.Keep != 0 && r.Into != "table":
		return &ConfigError{"--keep", r.Keep.String(), "only with --into table: what goes to standard output is not pgcustody's to delete"}
	case r.Keep < 0:
		return &ConfigError{"--keep", r.Keep.String(), "must be more than 0"}
	}
	restore, result, err := r.run(ctx, r.Keep, func(restore *retrieve.Restore) (sink, error) {
		if r.Into == "table" {
			table := restore.Table(ctx)
			return sink{table.Take, table.Flush}, nil
		}
		out := bufio.NewWriterSize(r.Out, 256<<10)
		first := true
		return sink{func(e *retrieve.Event) error {
			_, _ = out.Write(e.Line) // its error stays
			if err := out.WriteByte('\n'); err != nil || !first {
				return err
			}
			// Whoever waits sees something soon.
			first = false
			return out.Flush()
		}, out.Flush}, nil
	})
	if err != nil {
		return err
	}
	if r.Into == "-" {
		// Standard output is the events'.
		r.Log.Info("archive restored", "events", result.Rows, "lines", result.Lines, "segments", result.Segments, "bytes", result.Bytes)
		return nil
	}
	return r.Print(struct {
		RestoreID uuid.UUID `json:"restore_id"`
		retrieve.Result
	}{restore.ID, result}, func(out io.Writer) {
		fmt.Fprintf(out, "restore %s: %s, are in custody.restored_events\n", restore.ID, said(result))
	})
}

type archiveExport struct {
	retrieval
	Parquet string
}

func (e *archiveExport) Run(ctx context.Context) (err error) {
	if e.Parquet == "" {
		return &ConfigError{Field: "--parquet", Problem: "required: name the file to write"}
	}
	if info, err := os.Stat(filepath.Dir(e.Parquet)); err != nil || !info.IsDir() {
		return &ConfigError{"--parquet", e.Parquet, "its folder does not exist"}
	}
	file, err := os.CreateTemp(filepath.Dir(e.Parquet), ".pgcustody-export-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	out := retrieve.NewParquet(file)
	restore, result, err := e.run(ctx, 0, func(*retrieve.Restore) (sink, error) {
		return sink{out.Take, func() error { return nil }}, nil
	})
	if err != nil {
		return err
	}
	if err := errors.Join(out.Close(), file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", e.Parquet, err)
	}
	if err := os.Rename(file.Name(), e.Parquet); err != nil {
		return err
	}
	report := struct {
		RestoreID *uuid.UUID `json:"restore_id,omitempty"`
		File      string     `json:"file"`
		retrieve.Result
	}{File: e.Parquet, Result: result}
	if restore != nil {
		report.RestoreID = &restore.ID
	}
	return e.Print(report, func(out io.Writer) { fmt.Fprintf(out, "%s, written to %s\n", said(result), e.Parquet) })
}
