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
	return &cobra.Command{
		Use:   "check",
		Short: "Check that the guards stand as the last migration put them up, and that no setting writes keys to the log",
		Long: `Check that the guards stand as the last migration put them up, and that no setting writes
keys to the server's log: what custody_check.findings shows, each with what mends it. The exit
status is 4 where one of them is an error, 0 where there are none or warnings alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.Run(cmd.Context()) },
	}
}

type check struct{ *App }

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
	return c.withDatabase(ctx, "check", func(pool *pgxpool.Pool) error {
		rows, err := db.New().Findings(ctx, pool)
		if err != nil {
			return err
		}
		list, failed := []finding{}, []finding{}
		for _, r := range rows {
			f := finding(r)
			list = append(list, f)
			if f.Level == "error" {
				failed = append(failed, f)
			}
		}
		if err := c.Print(list, func(out io.Writer) {
			if len(list) == 0 {
				fmt.Fprintln(out, "nothing found")
				return
			}
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "LEVEL\tFINDING\tOBJECT\tDETAIL\tWHAT TO DO")
			for _, f := range list {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", f.Level, f.Title, f.Object, f.Detail, f.Remediation)
			}
			_ = table.Flush()
		}); err != nil {
			return err
		}
		if len(failed) > 0 {
			return &Failure{Code: ExitCheck, What: fmt.Sprintf("%d findings are errors: %s", len(failed), failed[0].Title), Object: failed[0].Object, Do: failed[0].Remediation}
		}
		return nil
	})
}
