package store

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// What can be found about a store that was asked. A finding is accepted by its name.
const (
	NoVersioning       = "no-versioning"
	NoLock             = "no-lock"
	NoDefaultRetention = "no-default-retention"
	Governance         = "governance"
	BypassRight        = "bypass-right"
	EncryptionIgnored  = "encryption-ignored"
	PublicAccess       = "public-access"
	CanaryDeleted      = "canary-deleted"
	CanaryShortened    = "canary-shortened"
	CanaryOverwritten  = "canary-overwritten"
)

// FindingNames lists all of them.
var FindingNames = []string{
	NoVersioning, NoLock, NoDefaultRetention, Governance, BypassRight, EncryptionIgnored, PublicAccess,
	CanaryDeleted, CanaryShortened, CanaryOverwritten,
}

// Finding is one thing about a store that makes it less than it should be.
type Finding struct {
	Name   string // one of FindingNames
	Object string // URL of the store or the canary
	What   string // what was seen
	Do     string // the way out
	// Warning marks what a store may lack and still be fit: it need not be accepted.
	Warning bool
}

func (f Finding) String() string { return f.Name + " (" + f.What + ")" }

// Accept returns an error if a finding is neither a warning nor among the accepted
// names. The error is ErrUnfit, and says by which names the findings would be accepted.
func Accept(findings []Finding, accepted []string) error {
	var left []string
	var names []string
	var kinds []error
	var first Finding
	for _, f := range findings {
		if f.Warning || slices.Contains(accepted, f.Name) {
			continue
		}
		first = cmp.Or(first, f)
		left = append(left, f.String())
		if !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
			kinds = append(kinds, kind(f.Name))
		}
	}
	if left == nil {
		return nil
	}
	hint := first.Do
	if hint != "" {
		hint += "; or "
	}
	return &Error{
		Op: "check", Object: first.Object, Kind: ErrUnfit, Err: &unfit{strings.Join(left, ", "), kinds},
		Hint: hint + "accept it by name: PGCUSTODY_STORE_ACCEPT=" + strings.Join(names, ","),
	}
}

// kind is the error that stands for a finding.
func kind(name string) error {
	switch name {
	case NoVersioning:
		return ErrNoVersioning
	case NoLock:
		return ErrNoObjectLock
	}
	return ErrNotLocked
}

// unfit says what was found, and compares equal to what it stands for.
type unfit struct {
	what  string
	kinds []error
}

func (u *unfit) Error() string   { return u.what }
func (u *unfit) Unwrap() []error { return u.kinds }

// CheckNames refuses a name of no finding.
func CheckNames(names []string) error {
	for _, name := range names {
		if !slices.Contains(FindingNames, name) {
			return fmt.Errorf("no finding is called %q: the names are %s", name, strings.Join(FindingNames, ", "))
		}
	}
	return nil
}
