package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
)

func newRetentionCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{Use: "retention", Short: "Show what retention would delete, and delete it; set how long data is kept"}
	r := &retention{App: app}
	due := &cobra.Command{
		Use:   "due",
		Short: "Show what is due now or at a time, and what holds keep",
		RunE:  func(cmd *cobra.Command, _ []string) error { return r.Due(cmd.Context()) },
	}
	run := &cobra.Command{
		Use:   "run",
		Short: "Delete what is due, in batches; of all tenants, or of --tenant alone",
		RunE:  func(cmd *cobra.Command, _ []string) error { return r.Run(cmd.Context()) },
	}
	for _, sub := range []*cobra.Command{due, run} {
		sub.Flags().StringVar(&r.AsOf, "as-of", "", "as if it were this time, as in 2026-11-01T00:00:00Z; run takes no future one")
	}
	run.Flags().StringVar(&r.Class, "class", "", "only this class: "+strings.Join(deletedClasses, ", "))
	run.Flags().BoolVar(&r.DryRun, "dry-run", false, "show what would go, and delete nothing")
	cmd.AddCommand(due, run)
	addPolicyCmds(app, cmd)
	return cmd
}

// deletedClasses are those that retention deletes row by row.
var deletedClasses = []string{"conversations", "consent", "entry_ids", "erased_ids", "alerts", "restored"}

type retention struct {
	*App
	AsOf, Class string
	DryRun      bool
}

type dueRow struct {
	Tenant   string     `json:"tenant"`
	Class    string     `json:"class"`
	Relation string     `json:"relation"`
	DueRows  int64      `json:"due_rows"`
	HeldRows int64      `json:"held_rows"`
	OldestAt *time.Time `json:"oldest_at"`
	DueBytes int64      `json:"due_bytes"` // by estimate
	HeldBy   []string   `json:"held_by"`   // references of holds
}

func (r *retention) asOf() (*time.Time, error) {
	if r.AsOf == "" {
		return nil, nil
	}
	at, err := parseTime("--as-of", r.AsOf)
	return &at, err
}

func (r *retention) Due(ctx context.Context) error {
	asOf, err := r.asOf()
	if err != nil {
		return err
	}
	return r.withDatabase(ctx, "due", func(pool *pgxpool.Pool) error {
		due, err := dueRows(ctx, r.App, pool, asOf, r.Class)
		if err != nil {
			return err
		}
		return r.Print(due, func(out io.Writer) { printDue(out, due) })
	})
}

// dueRows asks for one tenant, or for each in turn.
func dueRows(ctx context.Context, a *App, pool *pgxpool.Pool, asOf *time.Time, class string) ([]dueRow, error) {
	tenants := []string{a.Tenant}
	if a.Tenant == "" {
		rows, err := db.New().ListTenants(ctx, pool)
		if err != nil {
			return nil, err
		}
		tenants = nil
		for _, row := range rows {
			tenants = append(tenants, row.TenantID)
		}
	}
	due := []dueRow{}
	for _, tenant := range tenants {
		err := jobs.InContext(ctx, pool, jobs.Scope{Tenant: tenant, Actor: a.Actor, Purpose: "retention"}, func(tx pgx.Tx) error {
			rows, err := db.New().RetentionDue(ctx, tx, asOf)
			for _, row := range rows {
				if class == "" || row.Class == class {
					due = append(due, dueRow{tenant, row.Class, row.Relation, row.DueRows, row.HeldRows, utc(row.OldestAt), row.DueBytes, row.HeldBy})
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return due, nil
}

// printDue leaves out what has nothing due and nothing held, as most months of the trail.
func printDue(out io.Writer, due []dueRow) {
	due = slices.DeleteFunc(slices.Clone(due), func(row dueRow) bool { return row.DueRows == 0 && row.HeldRows == 0 })
	if len(due) == 0 {
		fmt.Fprintln(out, "nothing is due")
		return
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "TENANT\tCLASS\tRELATION\tDUE\tHELD\tABOUT\tOLDEST\tHELD BY")
	for _, row := range due {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", row.Tenant, row.Class, row.Relation, row.DueRows, row.HeldRows,
			sizeText(row.DueBytes), timeText(row.OldestAt), cmp.Or(strings.Join(row.HeldBy, ", "), "-"))
	}
	_ = table.Flush()
}

func (r *retention) Run(ctx context.Context) error {
	if r.Class != "" && !slices.Contains(deletedClasses, r.Class) {
		return &ConfigError{"--class", r.Class, "must be one of " + strings.Join(deletedClasses, ", ")}
	}
	if r.DryRun {
		return r.Due(ctx)
	}
	asOf, err := r.asOf()
	if err != nil {
		return err
	}
	return r.runJobs(ctx, "run", false, func(*pgxpool.Pool, *jobs.Deps) ([]jobArgs, error) {
		return []jobArgs{jobs.RetentionArgs{Tenant: r.Tenant, Class: r.Class, AsOf: asOf}}, nil
	})
}

// sizeText writes a number of bytes for people.
func sizeText(n int64) string {
	size, unit := float64(n), 0
	for size >= 1000 && unit < 4 {
		size, unit = size/1000, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %cB", size, "kMGT"[unit-1])
}
