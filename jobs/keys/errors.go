package keys

import (
	"errors"
	"fmt"
)

// What can be wrong with a key or its provider. Compare with errors.Is; the error
// itself is an *Error, which says more. Only ErrUnavailable may pass by itself.
var (
	ErrUnavailable = errors.New("key provider cannot be reached")
	ErrRefused     = errors.New("key provider refused")
	ErrUnknown     = errors.New("key is unknown")
	ErrDestroyed   = errors.New("key was destroyed")
	ErrWeak        = errors.New("key is not 64 random bytes")
	ErrExposed     = errors.New("key can be read by others")
	ErrInvalid     = errors.New("name is not valid")
)

// Error says what happened, to which key, and what to do. It never holds a key or
// a part of one.
type Error struct {
	Op     string // what was tried: "make", "get", "destroy", "open"
	Object string // the key and its provider
	Kind   error  // one of the errors above
	Hint   string // the way out
	Err    error  // what the provider or the network said, may be nil
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

// Unwrap gives the kind and, if there is one, the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}
