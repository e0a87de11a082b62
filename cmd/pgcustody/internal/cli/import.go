package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/jobs"
	"pgcustody/jobs/importer"
)

func newImportCmd(app *App) *cobra.Command {
	i := &importFiles{App: app}
	cmd := &cobra.Command{
		Use:   "import FILE...",
		Short: "Import JSON Lines files into the tables of record",
		Long: `Import JSON Lines files into the tables of record.

The table comes from the beginning of a file's name, or from --table: ` + strings.Join(importer.Tables(), ", ") + `.
A file is imported whole or not at all, in one transaction; what was imported
before another file failed stays. A file that was imported whole before adds and
changes nothing, whatever an erasure, retention or the application took away or
changed since; --again imports it all the same. The order of the files does not
matter: profiles go first, events last.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return i.Run(cmd.Context(), args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&i.Table, "table", "", "table of all the files, where their names do not tell")
	flags.StringSliceVar(&i.Personal, "personal", nil, "fields of an event's metadata that move to its personal part, as in source_ip,user_agent")
	flags.BoolVar(&i.RegisterVocabulary, "register-vocabulary", false, "add unknown actions, metadata keys and resource types to the tenant's vocabulary")
	flags.BoolVar(&i.Again, "again", false, "import files that were imported whole before: people who were erased come back")
	flags.StringVar(&i.Rejects, "rejects", "", "new file for the lines that cannot be imported; without it the first of them refuses its file")
	return cmd
}

type importFiles struct {
	*App
	Table, Rejects     string
	Personal           []string
	RegisterVocabulary bool
	Again              bool
}

func (i *importFiles) Run(ctx context.Context, files []string) error {
	tenant, err := i.NeedTenant()
	if err != nil {
		return err
	}
	if i.Table != "" && !slices.Contains(importer.Tables(), i.Table) {
		return &ConfigError{"--table", i.Table, "must be one of " + strings.Join(importer.Tables(), ", ")}
	}
	if slices.Contains(i.Personal, "") {
		return &ConfigError{"--personal", strings.Join(i.Personal, ","), "has a field without a name"}
	}
	return i.withDatabase(ctx, "import", func(pool *pgxpool.Pool) (err error) {
		bar := i.newProgress()
		defer bar.Done()
		cfg := importer.Config{
			Database: pool, Unlock: i.unlocker(pool), Log: i.Log, Tenant: tenant, Actor: i.Actor, Table: i.Table, Personal: i.Personal,
			RegisterVocabulary: i.RegisterVocabulary, Again: i.Again,
			Progress: func(p importer.Progress) { bar.Show(importProgress(p)) },
		}
		if i.Rejects != "" {
			if cfg.Rejects, err = importer.CreateRejects(i.Rejects); err != nil {
				return i.explainImport(err)
			}
			defer func() { err = errors.Join(err, cfg.Rejects.Close()) }()
		}
		reports, failed := importer.Run(ctx, cfg, files)
		bar.Done()
		if len(reports) > 0 || failed == nil {
			if err := i.report(reports, cfg.Rejects.Lines()); err != nil {
				return err
			}
		}
		return i.explainImport(failed)
	})
}

func importProgress(p importer.Progress) jobs.Progress {
	name := "import " + filepath.Base(p.File)
	if p.Storing > 0 {
		return jobs.Progress{Job: name + ", storing", Unit: "rows", Done: p.Storing, Total: p.Storing}
	}
	return jobs.Progress{Job: name, Unit: "bytes", Done: p.Bytes, Total: p.Size}
}

func (i *importFiles) report(reports []importer.Report, rejected int64) error {
	document := struct {
		Files   []importer.Report `json:"files"`
		Rejects string            `json:"rejects,omitempty"`
	}{Files: reports}
	if rejected > 0 {
		document.Rejects = i.Rejects
	}
	return i.Print(document, func(out io.Writer) {
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "FILE\tTABLE\tREAD\tADDED\tCHANGED\tUNCHANGED\tREJECTED\tSECONDS")
		for _, r := range reports {
			fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%.1f\n", r.File, r.Table, r.RowsRead, r.RowsAdded, r.RowsChanged, r.RowsUnchanged, r.RowsRejected, r.Seconds)
		}
		table.Flush()
		for _, r := range reports {
			if r.Known {
				fmt.Fprintf(out, "%s was imported before: nothing was changed; --again imports it all the same\n", r.File)
			}
		}
		if rejected > 0 {
			fmt.Fprintf(out, "%d lines were not imported: see %s\n", rejected, i.Rejects)
		}
	})
}

// explainImport says which line of which file is wrong, and what can be done about it.
func (i *importFiles) explainImport(err error) error {
	var line *importer.LineError
	var file *importer.FileError
	switch {
	case errors.As(err, &line):
		object := fmt.Sprintf("%s line %d", line.File, line.Line)
		if line.Field != "" {
			object += ", field " + line.Field
		}
		do := "correct the line, or keep such lines apart with --rejects FILE"
		if line.Code == "PC004" || line.Code == "PC005" || line.Code == "PC006" {
			do += ", or add the word with --register-vocabulary"
		}
		return &Failure{Code: ExitRefused, What: "import refused (" + line.Code + ")", Object: object, Do: line.Problem + ": " + do, Err: err}
	case errors.As(err, &file) && file.Changed:
		return &Failure{Code: ExitRefused, What: "import refused", Object: file.File, Do: file.Problem + ": import it again", Err: err}
	case errors.As(err, &file):
		return &Failure{Code: ExitUsage, What: "cannot import", Object: file.File, Do: file.Problem, Err: err}
	}
	return err
}
