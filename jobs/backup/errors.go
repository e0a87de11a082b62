package backup

import "strings"

// Exit statuses of the command line, as README lists them.
const (
	exitUsage      = 2
	exitRefused    = 3
	exitCheck      = 4
	exitPermission = 5
	exitDatabase   = 6
)

// Error is what a backup or a restore refuses, or fails on.
type Error struct {
	// Code is the exit status of a command that ends with it.
	Code int
	// What happened, to which Object, and what to Do; the last two may be empty.
	What, Object, Do string
	Err              error
}

func (e *Error) Error() string {
	parts := []string{e.What}
	for _, part := range []string{e.Object, e.Do} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

func (e *Error) Unwrap() error { return e.Err }
func (e *Error) ExitCode() int { return e.Code }
