package cli

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
)

func newCheckCmd(app *App) *cobra.Command {
	c := &check{App: app}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that the guards stand, that no setting writes keys to the log, and that the log tells who read what",
		Long: `Check that the guards stand as the last migration put them up, that no setting writes keys to
the server's log, that this log tells who read what, and that each login is on record as a person's
or an application's: what custody_check.findings and custody_check.log_findings show, each with the
control that asks for it and with what mends it, errors first.

The exit status says which is the worst: 4 an error, 9 a warning, 0 where nothing is found.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.Run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&c.Format, "format", "text", "text or json; json is what --json prints")
	return cmd
}

type check struct {
	*App
	Format string
}

type finding struct {
	ID          string `json:"id"`
	Title       string `json:"title"`
	Level       string `json:"level"`
	Control     string `json:"control"`
	Object      string `json:"object"`
	Detail      string `json:"detail"`
	Remediation string `json:"remediation"`
}

func (c *check) Run(ctx context.Context) error {
	switch c.Format {
	case "text":
	case "json":
		c.JSON = true
	default:
		return c.wrong("format", c.Format, "must be one of text, json")
	}
	return c.withDatabase(ctx, "check", func(pool *pgxpool.Pool) error {
		rows, err := db.New().Findings(ctx, pool)
		if err != nil {
			return err
		}
		list, errors := []finding{}, 0
		for _, r := range rows {
			f := finding(r)
			list = append(list, f)
			if f.Level == "error" {
				errors++
			}
		}
		if err := c.Print(list, func(out io.Writer) {
			if len(list) == 0 {
				fmt.Fprintln(out, "nothing found")
				return
			}
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "LEVEL\tID\tFINDING\tOBJECT\tDETAIL\tCONTROL\tWHAT TO DO")
			for _, f := range list {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Level, f.ID, f.Title, f.Object, f.Detail, f.Control, f.Remediation)
			}
			_ = table.Flush()
		}); err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		// The worst comes first.
		found := &Failure{Code: ExitCheck, What: fmt.Sprintf("%d of %d findings are errors: %s", errors, len(list), list[0].Title), Object: list[0].Object, Do: list[0].Remediation}
		if errors == 0 {
			found.Code, found.What = ExitWarning, fmt.Sprintf("%d warnings: %s", len(list), list[0].Title)
		}
		return found
	})
}
