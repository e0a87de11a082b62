package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/sql"
)

func newMigrateCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database to this pgcustody, or see how they differ",
		Long: `Bring the database to this pgcustody, or see how they differ.

The login of --migrate-url owns the database and may create roles; it is no
superuser, and it connects to the server directly, not through a pooler.`,
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&app.MigrateURL, "migrate-url", "", "database as the login that owns it")
	fromEnv(flags, "migrate-url", "PGCUSTODY_MIGRATE_URL")

	up := &migrateUp{App: app}
	upCmd := &cobra.Command{
		Use:   "up",
		Short: "Apply what the database lacks",
		Long: `Apply what the database lacks. It may be run at any time, by many at once, and
again after it was interrupted: it goes on where it stopped.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return up.Run(cmd.Context()) },
	}
	upCmd.Flags().BoolVar(&up.Force, "force", false, "apply functions, views, grants and settings again although they are recorded as applied")
	upCmd.Flags().DurationVar(&up.LockTimeout, "lock-timeout", 10*time.Second, "how long a statement waits for applications before the migration gives up")
	upCmd.Flags().DurationVar(&up.LockWait, "lock-wait", 5*time.Minute, "how long to wait for another migration")

	down := &migrateDown{App: app}
	downCmd := &cobra.Command{
		Use:   "down",
		Short: "Roll versions back and lose their data (development only)",
		RunE:  func(cmd *cobra.Command, _ []string) error { return down.Run(cmd.Context()) },
	}
	downCmd.Flags().BoolVar(&down.Development, "development", false, "confirm that this database is for development: its data is lost")
	downCmd.Flags().Int64Var(&down.To, "to", -1, "version to go back to, 0 for an empty database; default one back")
	downCmd.Flags().BoolVar(&down.DryRun, "dry-run", false, "print what would be rolled back")

	status := &migrateStatus{App: app}
	statusCmd := &cobra.Command{
		Use:   "status",
		Short: "Compare the database with this pgcustody",
		RunE:  func(cmd *cobra.Command, _ []string) error { return status.Run(cmd.Context()) },
	}

	plan := &migrateSQL{App: app}
	planCmd := &cobra.Command{
		Use:   "sql",
		Short: "Print the SQL that up would run",
		Long: `Print the SQL that up would run, for a DBA to read, or to run with
psql -X -v ON_ERROR_STOP=1 -f FILE. Nothing is changed.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return plan.Run(cmd.Context()) },
	}
	planCmd.Flags().BoolVar(&plan.Force, "force", false, "print also what is recorded as applied and not versioned")

	cmd.AddCommand(upCmd, downCmd, statusCmd, planCmd)
	return cmd
}

// migrateConfig is the migration login's, or for those that only look, the
// runner's where no other is named.
func (a *App) migrateConfig(look bool) (sql.Config, error) {
	flag, address := "migrate-url", a.MigrateURL
	switch {
	case address == "" && look:
		flag, address = "database-url", a.DatabaseURL
	case address == "":
		return sql.Config{}, &ConfigError{Field: "--migrate-url", Problem: "required: the login that owns the database, or set PGCUSTODY_MIGRATE_URL"}
	}
	if _, err := pgxpool.ParseConfig(address); err != nil {
		return sql.Config{}, a.wrong(flag, redact(address), "not a PostgreSQL address, as in postgres://user@host:port/database")
	}
	return sql.Config{URL: address, Logger: a.Log}, nil
}

// migrateFailure keeps the file and line at which the database refused.
func migrateFailure(err error) error {
	if errors.As(err, new(*pgconn.PgError)) && !errors.As(err, new(*pgconn.ConnectError)) {
		return &Failure{Code: databaseCode(db.FromPg(err)), What: err.Error(), Err: err}
	}
	return err
}

type migrateUp struct {
	*App
	Force                 bool
	LockTimeout, LockWait time.Duration
}

// Run applies what the database lacks.
func (c *migrateUp) Run(ctx context.Context) error {
	config, err := c.migrateConfig(false)
	if err != nil {
		return err
	}
	config.Force, config.LockTimeout, config.LockWait = c.Force, c.LockTimeout, c.LockWait
	result, err := sql.Up(ctx, config)
	if err != nil {
		return migrateFailure(err)
	}
	return c.printMigration(result)
}

type migrateDown struct {
	*App
	Development, DryRun bool
	To                  int64
}

// Run rolls versions back.
func (c *migrateDown) Run(ctx context.Context) error {
	config, err := c.migrateConfig(false)
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.dryRun(ctx, config)
	}
	if !c.Development {
		return usagef("migrate down: data would be lost: confirm with --development that this database is for development, or see --dry-run")
	}
	config.Development = true
	result, err := sql.Down(ctx, config, c.To)
	if err != nil {
		return migrateFailure(err)
	}
	return c.printMigration(result)
}

func (c *migrateDown) dryRun(ctx context.Context, config sql.Config) error {
	report, err := sql.Status(ctx, config)
	if err != nil {
		return migrateFailure(err)
	}
	to := c.To
	if to < 0 {
		to = max(report.Applied-1, 0)
	}
	plan := struct {
		From     int64    `json:"from"`
		To       int64    `json:"to"`
		RollBack []string `json:"roll_back"`
	}{report.Applied, to, []string{}}
	for i := len(report.Versions) - 1; i >= 0; i-- {
		if v := report.Versions[i]; v.Version > to && v.AppliedAt != nil {
			plan.RollBack = append(plan.RollBack, v.Name)
		}
	}
	return c.Print(plan, func(w io.Writer) {
		if len(plan.RollBack) == 0 {
			fmt.Fprintln(w, "nothing to roll back")
			return
		}
		fmt.Fprintf(w, "would roll back, with their data: %s\n", strings.Join(plan.RollBack, ", "))
	})
}

type migrateStatus struct{ *App }

// Run compares database and binary.
func (c *migrateStatus) Run(ctx context.Context) error {
	config, err := c.migrateConfig(true)
	if err != nil {
		return err
	}
	report, err := sql.Status(ctx, config)
	if err != nil {
		return migrateFailure(err)
	}
	return c.Print(report, func(w io.Writer) {
		line := fmt.Sprintf("database is %s", report.Relation)
		if report.Problem != "" {
			line += ": " + report.Problem
		}
		fmt.Fprintln(w, line)
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		row := func(name, state string, at *time.Time, by string) {
			when := ""
			if at != nil {
				when = at.Format("2006-01-02 15:04:05Z07:00")
			}
			fmt.Fprintln(table, strings.TrimRight(strings.Join([]string{name, state, when, by}, "\t"), "\t"))
		}
		for _, v := range report.Versions {
			state := v.State
			if v.Breaking {
				state += ", breaking"
			}
			row(v.Name, state, v.AppliedAt, v.AppliedBy)
		}
		for _, p := range report.Parts {
			row(p.Part, p.State, p.AppliedAt, p.AppliedBy)
		}
		table.Flush()
	})
}

type migrateSQL struct {
	*App
	Force bool
}

// Run prints what up would run.
func (c *migrateSQL) Run(ctx context.Context) error {
	config, err := c.migrateConfig(true)
	if err != nil {
		return err
	}
	config.Force = c.Force
	var text strings.Builder
	if err := sql.Plan(ctx, config, &text); err != nil {
		return migrateFailure(err)
	}
	return c.Print(map[string]string{"sql": text.String()}, func(w io.Writer) { io.WriteString(w, text.String()) })
}

// printMigration tells what a migration did.
func (a *App) printMigration(result *sql.Result) error {
	value := struct {
		*sql.Result
		Changed bool `json:"changed"`
	}{result, result.Changed()}
	return a.Print(value, func(w io.Writer) {
		for _, step := range result.Steps {
			switch {
			case step.Problem != "":
				fmt.Fprintf(w, "%s: %s: %s\n", step.Step, step.Outcome, step.Problem)
			case step.Outcome != sql.Unchanged:
				fmt.Fprintf(w, "%s: %s\n", step.Step, step.Outcome)
			}
		}
		if result.Changed() {
			fmt.Fprintf(w, "migrated from version %d to %d\n", result.From, result.To)
		} else {
			fmt.Fprintf(w, "no change: version %d\n", result.To)
		}
	})
}
