package ledger

import (
	"errors"
	"fmt"
	"slices"
)

// What can be wrong. Compare with errors.Is; the error itself is an *Error, which
// says more.
var (
	ErrOrigin    = errors.New("origin is not valid")
	ErrMalformed = errors.New("does not have the form it should have")
	ErrUnsigned  = errors.New("is not signed by a key that is trusted for it")
	ErrProof     = errors.New("proof does not hold")
	ErrFork      = errors.New("the log has forked")
	ErrBehind    = errors.New("the database is set back")
	ErrLease     = errors.New("another database anchors under this origin")
	ErrAltered   = errors.New("is not what was written")
	ErrState     = errors.New("does not go on from what the signer signed last")
	ErrClock     = errors.New("the clock is wrong")
	ErrBusy      = errors.New("another process is at it")
	ErrNoSigner  = errors.New("no signing key")
	ErrExists    = errors.New("signing key exists already")
	ErrExposed   = errors.New("others can read or change it")
)

// Error says what happened, to what, and what to do. It holds neither a private
// key nor an entry.
type Error struct {
	Op     string // what was tried: "anchor", "sign", "check", …
	Object string // the file, object, checkpoint or proof
	Kind   error  // one of the errors above
	Hint   string // the way out
	Err    error  // what was found, may be nil
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %s", e.Op, e.Object, e.Kind)
	if e.Err != nil {
		s += fmt.Sprintf(" (%s)", e.Err)
	}
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Finding is what is wrong with the log, with the counts and clusters that tell how:
// it names no file and nobody, and may be kept.
func (e *Error) Finding() string {
	if e.Err != nil && slices.Contains([]error{ErrFork, ErrBehind, ErrLease}, e.Kind) {
		return e.Kind.Error() + ": " + e.Err.Error()
	}
	return e.Kind.Error()
}

// ExitCode is what a command ends with, as the README lists the codes.
func (e *Error) ExitCode() int {
	for _, known := range []struct {
		code  int
		kinds []error
	}{
		{2, []error{ErrOrigin}},
		{3, []error{ErrMalformed, ErrLease, ErrExists, ErrBusy}},
		{4, []error{ErrUnsigned, ErrProof, ErrFork, ErrBehind, ErrAltered, ErrState, ErrClock}},
		{5, []error{ErrExposed}},
		{8, []error{ErrNoSigner}},
	} {
		if slices.Contains(known.kinds, e.Kind) {
			return known.code
		}
	}
	return 1
}

// errorString is a detail that nobody compares with.
type errorString string

func (s errorString) Error() string { return string(s) }
