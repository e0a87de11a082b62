// Package verify tells whether the audit trail is what was sealed and anchored,
// and if not, what was altered.
//
// It decides by bytes: rows as COPY sends them, tiles, the objects of the bucket,
// and by what its caller configures, which is the log's origin, the keys that sign
// for it and the bucket. Of the database it calls no function and reads no view
// that could have been replaced, and believes no record that says how far
// something was verified. Everything of the database and of the bucket may have
// been changed by whoever has the right to; what cannot be changed unseen is a
// checkpoint that a key signed and the bucket locked.
//
// What is found, and what it is called, is in expected.md.
package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgcustody/jobs/lean"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// Kind of a finding; expected.md says what each means.
type Kind string

// Kinds of findings.
const (
	RowChanged              Kind = "row_changed"
	RowMissing              Kind = "row_missing"
	RowInserted             Kind = "row_inserted"
	RowsHidden              Kind = "rows_hidden"
	XIDBeyond               Kind = "xid_beyond"
	Backdated               Kind = "backdated"
	LeafChanged             Kind = "leaf_changed"
	TileChanged             Kind = "tile_changed"
	MapChanged              Kind = "map_changed"
	StretchesChanged        Kind = "stretches_changed"
	HeadChanged             Kind = "head_changed"
	CheckpointChanged       Kind = "checkpoint_changed"
	CheckpointForked        Kind = "checkpoint_forked"
	CheckpointHidden        Kind = "checkpoint_hidden"
	CheckpointMissing       Kind = "checkpoint_missing"
	CheckpointUnlocked      Kind = "checkpoint_unlocked"
	CheckpointRecordChanged Kind = "checkpoint_record_changed"
	StaleAnchor             Kind = "stale_anchor"
	ArchiveRecordFalse      Kind = "archive_record_false"
	DropRecordFalse         Kind = "drop_record_false"
	IncarnationRecordFalse  Kind = "incarnation_record_false"
	ObjectChanged           Kind = "object_changed"
	ObjectHidden            Kind = "object_hidden"
	TreeShort               Kind = "tree_short"
	LeavesLost              Kind = "leaves_lost"
)

// Status of a verification, which is also the command's exit status.
const (
	StatusIntact    = 0
	StatusAltered   = 1
	StatusUnchecked = 2
	StatusSetBack   = 3
)

// Finding is something that is not as it was sealed and anchored. It names things,
// and nothing that stands in them.
type Finding struct {
	Kind Kind `json:"kind"`
	// Leaf is the index in the tree, Last the last of several.
	Leaf *int64 `json:"leaf,omitempty"`
	Last *int64 `json:"last_leaf,omitempty"`
	// Event is the log_entry_id.
	Event *uuid.UUID `json:"log_entry_id,omitempty"`
	// Fields are the columns that were changed, where that could be told.
	Fields []string `json:"fields,omitempty"`
	// Checkpoint is a number.
	Checkpoint *int64 `json:"checkpoint,omitempty"`
	// Object is a key in the bucket, or a record, tile or relation of the database.
	Object string `json:"object,omitempty"`
	// Detail says it in words.
	Detail string `json:"detail"`
}

func (f Finding) String() string {
	s := string(f.Kind)
	if f.Leaf != nil {
		s += fmt.Sprintf(" leaf %d", *f.Leaf)
		if f.Last != nil {
			s += fmt.Sprintf(" to %d", *f.Last)
		}
	}
	if f.Event != nil {
		s += " event " + f.Event.String()
	}
	for i, field := range f.Fields {
		s += [...]string{" field ", ", "}[min(i, 1)] + field
	}
	if f.Checkpoint != nil {
		s += fmt.Sprintf(" checkpoint %d", *f.Checkpoint)
	}
	if f.Object != "" {
		s += " " + f.Object
	}
	return s + ": " + f.Detail
}

// Report is what a verification found.
type Report struct {
	Status int `json:"status"`
	// Origin of the log, and its newest checkpoint.
	Origin     string    `json:"origin"`
	Checkpoint int64     `json:"checkpoint"`
	Anchored   int64     `json:"anchored_leaves"`
	AnchoredAt time.Time `json:"anchored_at"`
	// From is the leaf that was the first to be looked at: 0 unless incremental.
	From int64 `json:"from_leaf"`
	// Leaves of the tree, Events that were held against theirs, Archived those of
	// them that came from the archive, Unsealed those that have no leaf yet.
	Leaves   int64 `json:"leaves"`
	Events   int64 `json:"events"`
	Archived int64 `json:"archived_events"`
	// Expired are those whose archive has expired, by a sealed event or a signed index.
	Expired  int64 `json:"expired_events"`
	Unsealed int64 `json:"unsealed_events"`
	// Findings, of each kind no more than the first hundred; Counts has them all.
	Findings []Finding      `json:"findings"`
	Counts   map[Kind]int64 `json:"counts"`
	// Notes are what is to be known and no finding.
	Notes []string `json:"notes,omitempty"`
	// Progress is what the next verification may begin after; nil after findings.
	Progress *Progress `json:"-"`
}

// findingsOfAKind bounds what is named.
const findingsOfAKind = 100

// Beginner is a pool or a connection.
type Beginner interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// Options of a verification.
type Options struct {
	// Database is nil to verify from objects alone.
	Database Beginner
	// Prepare makes the rows of all tenants visible to a login that row-level
	// security confines; it is called in the transaction, which is read only.
	Prepare func(ctx context.Context, tx pgx.Tx) error
	Store   store.Store
	Origin  string
	// Keys are the verifier's own, not those that the database or the bucket names.
	Keys []ledger.VerifierKey
	// Identities open the archive's objects. Without one its lines are not read: what an
	// archived event said is then not known, nor what it said was done to the trail.
	Identities []age.Identity
	// MaxAge is how old the newest checkpoint may be; default 2 h, since there is
	// one at least each hour.
	MaxAge time.Duration
	// KnownLost are leaves of which the verifier knows that their events were lost, and
	// how: lost leaves among them are a note and no finding.
	KnownLost []Leaves
	// Since is the progress of an earlier verification that found nothing: the rows of
	// the leaves that it covers are not read again, nor the checkpoints; all leaves and
	// tiles are, and nothing may lie over an object.
	Since *Progress
	// Show is told how far it is; it may be nil.
	Show func(stage string, done, total int64)
	// Now is for tests.
	Now func() time.Time
}

// Leaves are those from First to Last, both inclusive.
type Leaves struct{ First, Last int64 }

// ParseLeaves reads FIRST-LAST.
func ParseLeaves(text string) (l Leaves, err error) {
	first, last, _ := strings.Cut(text, "-")
	if l.First, err = strconv.ParseInt(first, 10, 64); err == nil {
		l.Last, err = strconv.ParseInt(last, 10, 64)
	}
	if err != nil || l.First < 0 || l.Last < l.First {
		return Leaves{}, errors.New("want FIRST-LAST, the first and the last leaf, as in 300-559")
	}
	return l, nil
}

// Progress is what a verification without findings leaves for the next. It must be
// kept where the database's superuser does not reach.
type Progress struct {
	Origin     string         `json:"origin"`
	Checkpoint int64          `json:"checkpoint"`
	Size       int64          `json:"size"`
	Root       segment.SHA256 `json:"root"`
	SealedTo   uint64         `json:"sealed_to"`
	// Latest is the time of the event that was recorded last, in microseconds since 2000.
	Latest int64 `json:"latest"`
	// VerifiedAt is when this was found intact, FullAt when all of it last was.
	VerifiedAt time.Time `json:"verified_at"`
	FullAt     time.Time `json:"full_at"`
}

// CannotCheck is an error that kept something from being looked at.
type CannotCheck struct{ Err error }

func (e *CannotCheck) Error() string { return "could not verify: " + e.Err.Error() }
func (e *CannotCheck) Unwrap() error { return e.Err }

// ExitCode is that of a verification that could not be made.
func (e *CannotCheck) ExitCode() int { return StatusUnchecked }

// ErrNothingAnchored says that there is no checkpoint.
var ErrNothingAnchored = errors.New("nothing is anchored")

// Run verifies. Findings are no error: an error says that something could not be
// looked at, and the report then has what was found before.
func Run(ctx context.Context, o Options) (*Report, error) {
	o.MaxAge = cmp.Or(o.MaxAge, 2*time.Hour)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Show == nil {
		o.Show = func(string, int64, int64) {}
	}
	c := &check{
		Options: o,
		report:  &Report{Origin: o.Origin, Findings: []Finding{}, Counts: map[Kind]int64{}},
		drops:   map[string]bool{}, segmentEvents: map[string]segmentClaim{}, incarnationEvents: map[string]bool{}, expired: map[string]map[Hash]bool{},
	}
	defer lean.Heap()()
	err := c.run(ctx)
	c.conclude(err)
	if err != nil {
		return c.report, &CannotCheck{err}
	}
	return c.report, nil
}

// check is one verification.
type check struct {
	Options
	report *Report
	// mu is for what several goroutines tell: those that read the archive, and, from
	// objects alone, the one that reads tiles beside them, until tiled.
	mu    sync.Mutex
	tiled bool

	checkpoints []checkpoint // by number
	listed      int64        // number of the last that was looked at
	newest      checkpoint

	hidden map[string]string // objects whose current version does not count: the one that does

	tree    tree // the leaves that count, and the map
	rows    rows
	archive archive

	// What sealed events say about what was done to the trail.
	drops             map[string]bool // partitions, by name
	segmentEvents     map[string]segmentClaim
	incarnationEvents map[string]bool // by id
	// expired are the digests of the runs of segments that were said to have expired.
	expired map[string]map[Hash]bool
}

func (c *check) run(ctx context.Context) error {
	if err := ledger.CheckOrigin(c.Origin); err != nil {
		return err
	}
	if len(c.Keys) == 0 {
		return errors.New("no verifier key: name those of the log's signer, as pgcustody signer show prints them, with --vkey")
	}
	if c.Since != nil && (c.Since.Origin != c.Origin || c.Database == nil) {
		return fmt.Errorf("the progress to begin after is that of the log %q", c.Since.Origin)
	}
	if err := c.readCheckpoints(ctx); err != nil {
		return err
	}
	defer c.tree.close()
	if c.Database == nil {
		return c.verifyObjects(ctx)
	}
	return c.verifyDatabase(ctx)
}

func (c *check) find(f Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Counts[f.Kind]++
	if c.report.Counts[f.Kind] <= findingsOfAKind {
		c.report.Findings = append(c.report.Findings, f)
	}
}

func (c *check) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

func (c *check) conclude(err error) {
	slices.SortStableFunc(c.report.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(at(a.Leaf), at(b.Leaf)), cmp.Compare(at(a.Checkpoint), at(b.Checkpoint)))
	})
	switch {
	case len(c.report.Findings) == 0 && err != nil:
		c.report.Status = StatusUnchecked
	case len(c.report.Findings) == 0:
		c.report.Status = StatusIntact
		c.progress()
	default:
		c.report.Status = StatusSetBack
		for _, f := range c.report.Findings {
			if f.Kind != TreeShort && f.Kind != LeavesLost {
				c.report.Status = StatusAltered
			}
		}
		if err != nil && c.report.Status == StatusSetBack {
			c.report.Status = StatusUnchecked // what is left was not all seen to be whole
		}
	}
}

// progress is what was found intact.
func (c *check) progress() {
	if c.Database == nil {
		return
	}
	now := c.Now().UTC()
	c.report.Progress = &Progress{Origin: c.Origin, Checkpoint: c.newest.number, Size: c.newest.size, Root: c.newest.root,
		SealedTo: c.newest.sealedTo, Latest: c.rows.latest, VerifiedAt: now, FullAt: now}
	if c.Since != nil {
		c.report.Progress.FullAt = c.Since.FullAt
		c.report.Progress.Latest = max(c.rows.latest, c.Since.Latest)
	}
}

// from is the first leaf whose row is looked at.
func (c *check) from() int64 {
	if c.Since == nil {
		return 0
	}
	return min(c.Since.Size, c.tree.total)
}

func order(f Finding) int {
	return slices.Index([]Kind{
		TreeShort, LeavesLost, RowChanged, RowMissing, RowInserted, RowsHidden, XIDBeyond, Backdated, LeafChanged, TileChanged, MapChanged, StretchesChanged,
		HeadChanged, CheckpointChanged, CheckpointForked, CheckpointHidden, CheckpointMissing, CheckpointUnlocked, CheckpointRecordChanged,
		StaleAnchor, ArchiveRecordFalse, DropRecordFalse, IncarnationRecordFalse, ObjectChanged, ObjectHidden,
	}, f.Kind)
}

func at(n *int64) int64 {
	if n == nil {
		return -1
	}
	return *n
}
