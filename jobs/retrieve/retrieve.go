// Package retrieve reads events back from the archive.
//
// Which segments can hold what is asked for a catalog says, and only those are
// read. Each line is held against the leaf that it is in the ledger's tree before it is
// handed out, so that nobody is given an event that was not sealed, whoever wrote
// the object. What is read is streamed: memory does not grow with it.
package retrieve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// Query says which events are wanted: all that it names must hold.
type Query struct {
	// From (inclusive) and To (exclusive) bound occurred_at.
	From, To time.Time
	// Tenant is empty for all tenants.
	Tenant string
	// Identity by which or about which the events are; it is of Tenant.
	Identity uuid.UUID
	// Entry is the event's log_entry_id.
	Entry uuid.UUID
	// Action of the event.
	Action string
}

// Days that the query's events are of: the first and the last, in UTC.
func (q Query) Days() (first, last time.Time) {
	day := func(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }
	return day(q.From), day(q.To.Add(-time.Nanosecond))
}

// Segment is one that may hold events that are wanted.
type Segment struct {
	ObjectKey, ManifestKey string
	// ManifestSHA256 and Leaves are as they are on record. Where there is no record
	// they are empty, and ManifestVersion is the one that was found.
	ManifestSHA256  segment.SHA256
	Leaves          segment.Runs
	ManifestVersion string
}

// Catalog knows the segments.
type Catalog interface {
	// Segments that can hold events of a query, by day and part.
	Segments(ctx context.Context, q Query) ([]Segment, error)
}

// Tree has the leaf hashes of the ledger.
type Tree interface {
	// Tiles are those of level 0 of these indexes, as far as there are any: of each
	// up to 256 hashes of 32 bytes.
	Tiles(ctx context.Context, indexes []int64) ([][]byte, error)
}

// Options of a retrieval.
type Options struct {
	Store      store.Store
	Catalog    Catalog
	Tree       Tree
	Identities []age.Identity
	Query      Query
	// Show is told how far it is: segments read, of how many, and lines. It may be nil.
	Show func(done, total int, lines int64)
}

// Event is a line that is what was sealed, and what was asked for. It is valid until
// the next one.
type Event struct {
	Line   []byte // without its line feed
	Leaf   int64
	Object string
	Entry  *segment.Entry
}

// Result counts what was done.
type Result struct {
	// Segments were read, and Lines of them held against the tree; Bytes is how many
	// were fetched.
	Segments int   `json:"segments"`
	Lines    int64 `json:"lines"`
	Bytes    int64 `json:"bytes"`
	// Rows are the events that were handed out.
	Rows int64 `json:"rows"`
}

// Finding is what is wrong with the archive: an object that is not what it should be.
// It names the object, and nothing that stands in it.
type Finding struct {
	Object, What, Do string
	Err              error
}

func (f *Finding) Error() string {
	parts := []string{f.Object, f.What}
	if f.Do != "" {
		parts = append(parts, f.Do)
	}
	return strings.Join(parts, ": ")
}

func (f *Finding) Unwrap() error { return f.Err }

// ExitCode is that of a failed check, or of a key that does not fit.
func (f *Finding) ExitCode() int {
	if errors.Is(f.Err, segment.ErrIdentity) {
		return 8
	}
	return 4
}

// ErrNothing says that no segment of the archive is of the time that was asked for.
var ErrNothing = errors.New("no segment of the archive can hold such events")

const haveLookedAt = "run pgcustody archive verify and have the case looked at"

// Run hands every event to take that is wanted, in the order of days, parts and
// leaves. What take was given before an error was found is right all the same.
func Run(ctx context.Context, o Options, take func(*Event) error) (Result, error) {
	var r Result
	if !o.Query.To.After(o.Query.From) {
		return r, fmt.Errorf("the time that is asked for ends before it begins")
	}
	segments, err := o.Catalog.Segments(ctx, o.Query)
	if err != nil {
		return r, err
	}
	if len(segments) == 0 {
		return r, ErrNothing
	}
	wanted := newFilter(o.Query)
	for i, s := range segments {
		if o.Show != nil {
			o.Show(i, len(segments), r.Lines)
		}
		one := reading{Options: o, segment: s, result: &r, wanted: wanted, take: take}
		if err := one.run(ctx); err != nil {
			return r, err
		}
	}
	if o.Show != nil {
		o.Show(len(segments), len(segments), r.Lines)
	}
	return r, nil
}

// filter is a query as lines are compared with it.
type filter struct {
	Query
	identity, action []byte
}

func newFilter(q Query) *filter {
	f := &filter{Query: q}
	if q.Identity != uuid.Nil {
		f.identity = []byte(q.Identity.String())
	}
	if q.Action != "" {
		// As JSON writes it, without the quotes.
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(q.Action) // a string always encodes
		f.action = bytes.Trim(bytes.TrimSpace(text.Bytes()), `"`)
	}
	return f
}

func (f *filter) holds(e *segment.Entry) bool {
	return !e.OccurredAt.Before(f.From) && e.OccurredAt.Before(f.To) &&
		(f.Tenant == "" || string(e.Tenant) == f.Tenant) &&
		(f.Entry == uuid.Nil || e.ID == f.Entry) &&
		(f.identity == nil || bytes.Equal(e.Actor, f.identity) || bytes.Equal(e.Subject, f.identity)) &&
		(f.action == nil || bytes.Equal(e.Action, f.action))
}

// reading is that of one segment.
type reading struct {
	Options
	segment Segment
	result  *Result
	wanted  *filter
	take    func(*Event) error
	event   Event // the one that is handed out
}

func (r *reading) run(ctx context.Context) error {
	m, err := Manifest(ctx, r.Store, r.segment)
	if err != nil {
		return err
	}
	if !may(m, r.Query) {
		return nil
	}
	r.result.Segments++
	object, err := r.Store.Get(ctx, m.ObjectKey, m.ObjectVersion)
	if errors.Is(err, store.ErrNotFound) {
		return &Finding{Object: m.ObjectKey, What: "object is missing", Do: haveLookedAt}
	}
	if err != nil {
		return err // of a frozen one it says when to come back
	}
	defer object.Close()

	// Decrypting, decompressing and hashing go on while lines are compared and taken.
	chunks := newChunks(object, r.Identities)
	defer chunks.stop(object)
	proof := newProof(ctx, r.Tree, m)
	for c := range chunks.full {
		<-c.hashed
		for i := range c.lines {
			if err := r.line(m, proof, c, &c.lines[i]); err != nil {
				return err
			}
		}
		chunks.free <- c
	}
	sums, err := chunks.sums, chunks.err
	r.result.Bytes += sums.StoredBytes
	switch {
	case errors.Is(err, segment.ErrIdentity):
		return &Finding{Object: m.ObjectKey, What: "none of the identities given opens it", Err: err,
			Do: "it is encrypted to " + strings.Join(m.Recipients, ", ") + ": give the identity of one of them"}
	case errors.Is(err, segment.ErrDamaged):
		return &Finding{Object: m.ObjectKey, What: err.Error(), Do: haveLookedAt, Err: err}
	case err != nil:
		return err
	}
	return proof.end(m, sums)
}

// line holds the next line against its leaf and hands it out.
func (r *reading) line(m *segment.Manifest, proof *proof, c *chunk, l *line) error {
	leaf, err := proof.next(m, l.hash)
	if err != nil {
		return err
	}
	r.result.Lines++
	if !l.readable {
		// What was sealed before 1 or after 9999 has a time of another form.
		return &Finding{Object: m.ObjectKey, What: fmt.Sprintf("line %d is an entry that cannot be read", proof.lines), Do: "read it without pgcustody: README says how"}
	}
	if !r.wanted.holds(&l.entry) {
		return nil
	}
	r.result.Rows++
	r.event = Event{Line: c.lineText(l), Leaf: leaf, Object: m.ObjectKey, Entry: &l.entry}
	return r.take(&r.event)
}

// Manifest reads the manifest of a segment. On record, it must be the one that was
// recorded, byte for byte; another version or a delete marker may lie over it.
func Manifest(ctx context.Context, s store.Store, of Segment) (*segment.Manifest, error) {
	onRecord := of.ManifestSHA256 != segment.SHA256{}
	text, err := read(ctx, s, of.ManifestKey, of.ManifestVersion)
	missing := errors.Is(err, store.ErrNotFound)
	if err != nil && !missing {
		return nil, err
	}
	if onRecord && digest(text) != of.ManifestSHA256 {
		if text, err = recorded(ctx, s, of); err != nil {
			return nil, err
		}
		if text == nil && !missing {
			return nil, &Finding{Object: of.ManifestKey, What: "manifest is not the one on record", Do: haveLookedAt}
		}
	}
	if text == nil {
		return nil, &Finding{Object: of.ManifestKey, What: "manifest is missing", Do: haveLookedAt}
	}
	m, err := segment.DecodeManifest(bytes.NewReader(text))
	switch {
	case err != nil:
		return nil, &Finding{Object: of.ManifestKey, What: "manifest cannot be read: " + err.Error(), Do: haveLookedAt, Err: err}
	case m.ObjectKey != of.ObjectKey:
		return nil, &Finding{Object: of.ManifestKey, What: "manifest is of another object, " + m.ObjectKey, Do: haveLookedAt}
	case m.Leaves.Count() != m.Rows || of.Leaves != nil && !slices.Equal(of.Leaves, m.Leaves):
		return nil, &Finding{Object: of.ManifestKey, What: "manifest does not fit: its leaves are not those on record", Do: haveLookedAt}
	}
	return m, nil
}

// recorded looks for the version of a manifest that is on record; nil where there is
// none.
func recorded(ctx context.Context, s store.Store, of Segment) ([]byte, error) {
	for info, err := range s.Versions(ctx, of.ManifestKey) {
		if err != nil {
			return nil, err
		}
		if info.Key != of.ManifestKey {
			continue
		}
		text, err := read(ctx, s, info.Key, info.Version)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if err == nil && digest(text) == of.ManifestSHA256 {
			return text, nil
		}
	}
	return nil, nil
}

// manifestLimit is what the format allows.
const manifestLimit = 64 << 20

func read(ctx context.Context, s store.Store, key, version string) ([]byte, error) {
	object, err := s.Get(ctx, key, version)
	if err != nil {
		return nil, err
	}
	defer object.Close()
	return io.ReadAll(io.LimitReader(object, manifestLimit+1))
}

func digest(text []byte) segment.SHA256 {
	_, sum, _ := segment.Digest(bytes.NewReader(text)) // a reader of bytes never fails
	return sum
}
