//go:build !faults

// Package fault kills the process at a step of its work, so that tests can see what
// the next run makes of it. It does so only in binaries that are built with the tag
// faults, which no release is; in others Point is nothing.
package fault

// Point is passed before or after a step.
func Point(string) {}
