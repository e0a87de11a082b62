package jobs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"pgcustody/db"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
)

// Failure is why a run failed, in words that may be kept and logged: the step
// and a code. What the database or a server said stays behind Unwrap, because
// it may quote rows.
type Failure struct {
	Step, Code string
	Err        error
}

func (f *Failure) Error() string { return f.Step + ": " + f.Code }
func (f *Failure) Unwrap() error { return f.Err }

// fail names the step that err ended. It keeps the failure of an inner step.
func fail(step string, err error) error {
	var inner *Failure
	if err == nil || errors.As(err, &inner) {
		return err
	}
	return &Failure{Step: step, Code: Code(err), Err: err}
}

// spoken makes an error say nothing but the steps and codes of the failures in it,
// because River keeps and logs what it says.
func spoken(err error) error {
	var words []string
	var walk func(error)
	walk = func(err error) {
		switch inner := err.(type) { //nolint:errorlint // it looks at each error of the tree itself
		case *Failure:
			words = append(words, inner.Error())
		case *put:
			walk(inner.err)
		case interface{ Unwrap() []error }:
			for _, err := range inner.Unwrap() {
				walk(err)
			}
		case interface{ Unwrap() error }:
			walk(inner.Unwrap())
		}
	}
	walk(err)
	if len(words) == 0 {
		words = []string{Code(err)}
	}
	return &put{message: strings.Join(words, "; "), err: err}
}

// spokenPanic is what may be kept of a panic: the runtime's own say what went wrong
// and with which types, whatever else may quote a value.
func spokenPanic(cause any) string {
	if inner, ok := cause.(runtime.Error); ok {
		return inner.Error()
	}
	return fmt.Sprintf("panic of type %T", cause)
}

// Code is an error in one word or two that name nobody: a SQLSTATE, a kind of
// store, ledger or key provider error, or a kind of its own.
func Code(err error) string {
	var failure *Failure
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	var object *store.Error
	var key *keys.Error
	var log *ledger.Error
	var status *statusError
	var timeout net.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &failure):
		return failure.Code
	case errors.As(err, &pg):
		return pg.Code
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.As(err, &key): // which may hold a timeout: it is the provider's
		return key.Kind.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.As(err, &connect):
		return "database unreachable"
	case errors.As(err, &object):
		return object.Kind.Error()
	case errors.As(err, &log):
		return log.Finding()
	case errors.As(err, &status):
		return fmt.Sprintf("status %d", status.code)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return fmt.Sprintf("%T", err)
}

// refused tells whether the database refused for the reason that the sentinel
// names.
func refused(err, sentinel error) bool { return errors.Is(db.FromPg(err), sentinel) }

// state is the SQLSTATE of an error, or "".
func state(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
