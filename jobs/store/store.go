// Package store keeps objects where a database superuser cannot reach them: in
// a bucket that is versioned and under Object Lock.
//
// The package promises little, so that each promise can be held by every kind
// of store: an object is written once, under a lock that not even its owner can
// shorten, and is read back as a stream. What a bucket must have for that is
// checked by [Store.Check], which tries the lock instead of believing a
// setting.
package store

import (
	"context"
	"io"
	"iter"
	"time"
)

// ModeCompliance is the only lock mode that counts: nobody, the account's owner
// included, may delete the version or shorten its lock. GOVERNANCE falls to
// whoever has the right to bypass it.
const ModeCompliance = "COMPLIANCE"

const modeGovernance = "GOVERNANCE"

// PutOptions says how an object is written.
type PutOptions struct {
	// RetainUntil locks the object in COMPLIANCE mode until then. The zero time
	// writes it without a lock of its own.
	RetainUntil time.Time
	// ContentType is application/octet-stream if empty.
	ContentType string
	// IfNoneMatch writes only if no object has the key yet. Of many writers one
	// wins and the others get ErrExists.
	IfNoneMatch bool
}

// PutResult is what the store answered about an object it took.
type PutResult struct {
	Key     string
	Version string // empty in a bucket without versioning
	Size    int64
	// Checksum is the store's own sum over what it received, compared with what was
	// sent: SHA-256 in base64, with "-N" behind it when it is made of the sums of N
	// parts; of Google's, crc32c: and its hexadecimal.
	Checksum string
}

// Info describes a stored object.
type Info struct {
	Key      string
	Version  string
	Size     int64
	Modified time.Time
	Checksum string // as in PutResult; empty in a listing
	// RetainMode and RetainUntil are the lock as the store reports it to Head,
	// empty where none is known, and not to be relied on elsewhere.
	RetainMode  string
	RetainUntil time.Time
	// LegalHold is the store's own hold, StorageClass the class as the store names it
	// (empty: its standard one). Both as reported to Head.
	LegalHold    bool
	StorageClass string
	// DeleteMarker says that this is no object: History found a marker that hides one.
	DeleteMarker bool
}

// LockedUntil tells whether the object is under a COMPLIANCE lock that ends no
// earlier than t.
func (i Info) LockedUntil(t time.Time) bool {
	// Stores keep whole seconds.
	return i.RetainMode == ModeCompliance && !i.RetainUntil.Before(t.Truncate(time.Second))
}

// Object is an object being read. Its reader fails with ErrTruncated when the
// store sends less than it announced.
type Object struct {
	io.ReadCloser
	Info Info
}

// Store is a place for objects. Keys are relative to the store's prefix and use
// slashes. Every error is an *Error and names the object.
type Store interface {
	// URL is the address that the store was opened with, without credentials.
	URL() string

	// Put streams body into an object in constant memory. An error leaves no
	// object behind, unless the connection was lost while the store answered:
	// then only the store knows, and a second Put with IfNoneMatch tells.
	Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (PutResult, error)

	// Get opens an object; version "" is the current one. The caller closes it. Of an
	// object in a class that must be thawed first it asks for the thaw and returns
	// ErrFrozen, which says when to come back.
	Get(ctx context.Context, key, version string) (*Object, error)

	// Head reads what the store knows about an object, its lock included.
	Head(ctx context.Context, key, version string) (Info, error)

	// List yields the current objects whose keys start with prefix, in order.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Versions yields every version of the objects whose keys start with prefix,
	// those hidden by a delete marker too: key by key, of each the oldest first.
	Versions(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// History is Versions with the delete markers of each key before its versions.
	History(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Extend moves the end of an object's COMPLIANCE lock to a later time.
	Extend(ctx context.Context, key, version string, until time.Time) error

	// SetLegalHold puts a version under the store's own hold, or takes it off. While it
	// is on the version cannot be deleted, whatever its lock says.
	SetLegalHold(ctx context.Context, key, version string, on bool) error

	// Sweep ends unfinished uploads of a key, which cost money and are seen by
	// no listing, and returns how many there were. A writer that is killed
	// leaves one behind.
	Sweep(ctx context.Context, key string) (int, error)

	// Unfinished are the keys that start with prefix and have unfinished uploads.
	Unfinished(ctx context.Context, prefix string) ([]string, error)

	// Delete removes every version and delete marker of a key, and its unfinished
	// uploads, and returns how many versions there were; of a key that does not
	// exist, none. Versions under a lock stay, and the error is then ErrLocked; the
	// others go all the same.
	Delete(ctx context.Context, key string) (int, error)

	// CheckSettings asks the store whether it is versioned and has Object Lock. It is
	// cheap, writes nothing, and comes before anything that needs the lock is begun.
	// Accept says what follows from the findings.
	CheckSettings(ctx context.Context) ([]Finding, error)

	// Check proves that the store is fit for an archive, by what it does with a canary
	// that it must refuse to delete, to shorten and to overwrite. Whatever it finds it
	// names; the error is for a store that could not be asked.
	Check(ctx context.Context) ([]Finding, error)
}
