package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/keys"
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
	ExitKeys        = 8 // locked: no key provider, or it is unreachable or has no such key
	ExitWarning     = 9 // pgcustody check found warnings, and no error
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
	var key *keys.Error
	var connect *pgconn.ConnectError
	var refused *db.Error
	mapped := db.FromPg(err)
	switch {
	case err == nil:
		return ExitOK, ""
	case errors.As(err, &failure):
		return failure.Code, failure.Error()
	case errors.As(err, &config):
		return ExitUsage, config.Error()
	case errors.As(err, &usage):
		return ExitUsage, usage.Error()
	case errors.Is(err, context.Canceled):
		return ExitInternal, "interrupted: run the command again to go on"
	case errors.As(err, &object):
		return ExitObjectStore, object.Error()
	case errors.As(err, &key):
		return keysCode(err), key.Error()
	case errors.Is(err, jobs.ErrNoKey), errors.Is(err, jobs.ErrKeyInUse):
		return ExitRefused, err.Error()
	case errors.As(err, &coder):
		return coder.ExitCode(), err.Error()
	case errors.As(err, &connect) && !errors.As(err, new(*pgconn.PgError)):
		return ExitDatabase, fmt.Sprintf("database unreachable: %s:%d/%s: check that it runs and that the PG* variables or --database-url are right",
			connect.Config.Host, connect.Config.Port, connect.Config.Database)
	case errors.As(mapped, &refused):
		return databaseCode(mapped), databaseLine(mapped, refused)
	}
	return ExitInternal, err.Error()
}

// keysCode is the exit code of what a key provider said.
func keysCode(err error) int {
	switch {
	case errors.Is(err, keys.ErrInvalid):
		return ExitUsage
	case errors.Is(err, keys.ErrRefused), errors.Is(err, keys.ErrExposed):
		return ExitPermission
	}
	return ExitKeys
}

// databaseCode is the exit code of what the database refused.
func databaseCode(err error) int {
	for _, known := range []struct {
		code  int
		kinds []error
	}{
		{ExitPermission, []error{db.ErrPermission, db.ErrNotForCaller}},
		{ExitCheck, []error{db.ErrResidue, db.ErrArchiveMismatch, db.ErrLedgerMismatch}},
		{ExitKeys, []error{db.ErrLocked}},
		{ExitDatabase, []error{db.ErrUnreachable, db.ErrNotMigrated, db.ErrRoutineMissing}},
		{ExitInternal, []error{db.ErrConflict, db.ErrLockTimeout, db.ErrCanceled}},
	} {
		for _, kind := range known.kinds {
			if errors.Is(err, kind) {
				return known.code
			}
		}
	}
	var refused *db.Error
	if errors.As(err, &refused) && strings.HasPrefix(refused.Code, "PC") || errors.Is(err, db.ErrInvalidInput) {
		return ExitRefused
	}
	return ExitInternal
}

// databaseLine is what the database said in one line. DETAIL of Postgres's own
// errors may quote rows; that of class PC is written to be shown.
func databaseLine(err error, refused *db.Error) string {
	parts := []string{strings.TrimSuffix(refused.Message, ".")}
	if errors.Is(err, db.ErrUnreachable) && refused.Code != "" {
		parts = append([]string{"database unreachable"}, parts...)
	}
	if strings.HasPrefix(refused.Code, "PC") {
		for _, part := range []string{refused.Detail, refused.Hint} {
			if part != "" {
				parts = append(parts, strings.TrimSuffix(part, "."))
			}
		}
	}
	line := strings.Join(parts, ": ")
	if refused.Code != "" {
		line += " (" + refused.Code + ")"
	}
	return line
}

// usageError is a command line that cobra or a command could not read.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}
