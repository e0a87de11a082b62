package store

import (
	"errors"
	"fmt"
)

// What can be wrong with a store. Compare with errors.Is; the error itself is
// an *Error, which says more.
var (
	ErrNotFound      = errors.New("object does not exist")
	ErrExists        = errors.New("object exists already")
	ErrBucketMissing = errors.New("bucket does not exist")
	ErrNoVersioning  = errors.New("bucket is not versioned")
	ErrNoObjectLock  = errors.New("bucket has no Object Lock")
	ErrNotLocked     = errors.New("store does not hold the lock")
	ErrLocked        = errors.New("object is locked")
	ErrUnfit         = errors.New("store is not fit to keep evidence")
	ErrFrozen        = errors.New("object is frozen")
	ErrFull          = errors.New("store is full")
	ErrNone          = errors.New("no store is configured")
	ErrUnreachable   = errors.New("store cannot be reached")
	ErrAccessDenied  = errors.New("access denied")
	ErrTruncated     = errors.New("object ended early")
	ErrSource        = errors.New("content could not be read")
	ErrTooLarge      = errors.New("object is too large")
	ErrBadURL        = errors.New("store URL is wrong")
	ErrRefused       = errors.New("store refused the request")
)

// Error says what happened, to which object, and what to do.
type Error struct {
	Op     string // what was tried: "put", "get", …
	Object string // URL of the bucket or object
	Kind   error  // one of the errors above
	Hint   string // the way out
	Err    error  // what the store or the network said, may be nil
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
