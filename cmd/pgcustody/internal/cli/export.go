package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
)

func newExportCmd(app *App) *cobra.Command {
	e := &export{App: app}
	cmd := &cobra.Command{
		Use:   "export USER",
		Short: "Export everything the database holds about a person",
		Long: `Export everything the database holds about a person, as JSON (GDPR Art. 15 and 20).

The request is committed first; the job export then carries it out and streams
the document to the file, or to standard output. With --json and a file, what
is printed is the record of the run.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return e.Run(cmd.Context(), args[0]) },
	}
	cmd.Flags().StringVarP(&e.Output, "output", "o", "-", "file to write, readable by its owner alone; - is standard output")
	cmd.Flags().StringVar(&e.Reason, "reason", "", "why, without naming the person")
	cmd.Flags().StringVar(&e.RequestID, "request-id", "", "id of the request: the same id again is the same request")
	return cmd
}

type export struct {
	*App
	Output, Reason, RequestID string
}

func (e *export) Run(ctx context.Context, user string) error {
	tenant, err := e.NeedTenant()
	if err != nil {
		return err
	}
	given, err := parseID("--request-id", e.RequestID)
	if err != nil {
		return err
	}
	if e.Output != "-" {
		if info, err := os.Stat(filepath.Dir(e.Output)); err != nil || !info.IsDir() {
			return &ConfigError{"--output", e.Output, "its folder does not exist"}
		}
	}
	return e.withDatabase(ctx, "export", func(pool *pgxpool.Pool) error {
		var id uuid.UUID
		if err := e.inTenantUnlocked(ctx, pool, "export request", func(tx pgx.Tx) (err error) {
			id, err = db.New().RequestExport(ctx, tx, db.RequestExportParams{UserID: user, Reason: textOrNil(e.Reason), RequestID: given})
			return err
		}); err != nil {
			return err
		}
		deps, err := e.deps(pool, nil)
		if err != nil {
			return err
		}
		deps.ExportTo = func(_ context.Context, _ string, body io.Reader) (int64, error) { return e.write(body) }
		reports, err := e.workNow(ctx, deps, jobs.ExportArgs{Tenant: tenant, RequestID: id})
		if err != nil || e.Output == "-" {
			return err
		}
		return e.Print(struct {
			RequestID uuid.UUID     `json:"request_id"`
			File      string        `json:"file"`
			Runs      []jobs.Report `json:"runs"`
		}{id, e.Output, reports}, func(out io.Writer) {
			for _, report := range reports {
				fmt.Fprintf(out, "request %s: %d bytes written to %s (%s)\n", id, report.Bytes, e.Output, countsText(report.Counts))
			}
		})
	})
}

// write puts the document where it was asked for. A file appears whole or not at
// all, and only its owner may read it.
func (e *export) write(body io.Reader) (int64, error) {
	if e.Output == "-" {
		n, err := io.Copy(e.Out, body)
		if err == nil {
			_, err = io.WriteString(e.Out, "\n")
		}
		return n, err
	}
	file, err := os.CreateTemp(filepath.Dir(e.Output), ".pgcustody-export-*") // made with mode 0600
	if err != nil {
		return 0, fmt.Errorf("write export: %w", err)
	}
	n, err := io.Copy(file, body)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), e.Output)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(file.Name()))
	}
	return n, nil
}
