package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"pgcustody/jobs/store"
)

// Exit codes. README lists them; a script may rely on them.
const (
	ExitOK          = 0
	ExitInternal    = 1 // a failure of pgcustody itself, or an interrupt
	ExitUsage       = 2 // wrong usage or configuration: names field and value
	ExitRefused     = 3 // bad input, or a call that the database refused (class PC)
	ExitCheck       = 4 // a check failed: archive, residue, erasure held
	ExitPermission  = 5 // the login may not do this
	ExitDatabase    = 6 // unreachable, not migrated, or too new
	ExitObjectStore = 7 // unreachable, no bucket, no Object Lock, or refused
)

// Failure is an error that knows its exit code and its one line.
type Failure struct {
	Code int
	// What happened, to which Object, and what to Do; Object and Do may be empty.
	What, Object, Do string
	Err              error
}

func (f *Failure) Error() string {
	parts := []string{f.What}
	for _, part := range []string{f.Object, f.Do} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

func (f *Failure) Unwrap() error { return f.Err }

// exitCoder is implemented by errors of other packages that know their exit code.
type exitCoder interface{ ExitCode() int }

// explain turns an error into its exit code and its one line.
func explain(err error) (code int, line string) {
	var failure *Failure
	var config *ConfigError
	var usage *usageError
	var coder exitCoder
	var object *store.Error
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case err == nil:
		return ExitOK, ""
	case errors.As(err, &failure):
		return failure.Code, failure.Error()
	case errors.As(err, &config):
		return ExitUsage, config.Error()
	case errors.As(err, &usage):
		return ExitUsage, usage.Error()
	case errors.As(err, &pg):
		return explainPostgres(pg)
	case errors.As(err, &connect):
		return ExitDatabase, fmt.Sprintf("database unreachable: %s:%d/%s: check that it runs and that the PG* variables or --database-url are right",
			connect.Config.Host, connect.Config.Port, connect.Config.Database)
	case errors.As(err, &object):
		return ExitObjectStore, object.Error()
	case errors.As(err, &coder):
		return coder.ExitCode(), err.Error()
	case errors.Is(err, context.Canceled):
		return ExitInternal, "interrupted: run the command again to go on"
	}
	return ExitInternal, err.Error()
}

func explainPostgres(pg *pgconn.PgError) (int, string) {
	line := pg.Message
	for _, part := range []string{pg.Detail, pg.Hint} {
		// DETAIL of Postgres's own errors quotes rows; ours are written to be shown.
		if part != "" && strings.HasPrefix(pg.Code, "PC") {
			line += ": " + part
		}
	}
	line += " (" + pg.Code + ")"
	switch {
	case pg.Code == "PC015", pg.Code == "42501":
		return ExitPermission, line
	case pg.Code == "PC019", pg.Code == "PC029":
		return ExitCheck, line
	case pg.Code == "PC031":
		return ExitDatabase, line
	case strings.HasPrefix(pg.Code, "PC"), strings.HasPrefix(pg.Code, "22"):
		return ExitRefused, line
	case pg.Code == "3F000", pg.Code == "42P01", pg.Code == "42883":
		return ExitDatabase, "database not migrated: " + line + ": run `pgcustody migrate up`"
	case strings.HasPrefix(pg.Code, "08"), strings.HasPrefix(pg.Code, "28"), strings.HasPrefix(pg.Code, "57P"), pg.Code == "3D000", pg.Code == "53300":
		return ExitDatabase, "database unreachable: " + line
	}
	return ExitInternal, line
}

// usageError is a command line that cobra or a command could not read.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}
