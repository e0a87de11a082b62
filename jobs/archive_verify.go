package jobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"

	"pgcustody/db"
	"pgcustody/jobs/retrieve"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// SegmentCheck is what verification found about a segment, or about an object
// that belongs to none.
type SegmentCheck struct {
	Segment     string `json:"segment,omitempty"`
	Object      string `json:"object"`
	Events      int64  `json:"events"`
	StoredBytes int64  `json:"stored_bytes"`
	// Finding is what is wrong, empty where nothing is.
	Finding string `json:"finding,omitempty"`
	// Note is what is to be known of an object that is on no record and right there.
	Note string `json:"note,omitempty"`
}

// VerifyArchive reads recorded segments back from the store and holds each
// against its manifest and both against the record. With sample > 0 it takes the
// newest segment and others at random, that many in all; with 0 it takes all, and
// looks for objects that are on no record. Findings are not errors: an error says
// that something could not be looked at.
func VerifyArchive(ctx context.Context, d Deps, identities []age.Identity, sample int, progress func(done, total int)) ([]SegmentCheck, error) {
	var recorded []db.ArchiveSegmentsRow
	var in timeline
	known := map[string]bool{}
	err := InContext(ctx, d.Pool, d.scope(SystemTenant, "archive verify"), func(tx pgx.Tx) error {
		row, err := db.New().ArchiveBranch(ctx, tx)
		if err != nil {
			return err
		}
		in = timeline(row)
		open, err := db.New().OpenArchiveSegments(ctx, tx)
		if err != nil {
			return err
		}
		for _, s := range open {
			// A run is at it, or was killed: what it has written so far is no finding.
			name := segment.NewName(s.Day, int(s.Part))
			known[name.ObjectKey()], known[name.ManifestKey()] = true, true
			name.Branch = in.Branch
			known[name.ObjectKey()], known[name.ManifestKey()] = true, true
		}
		recorded, err = db.New().ArchiveSegments(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, s := range recorded {
		known[s.ObjectKey], known[s.ManifestKey] = true, true
	}

	checked := recorded
	if sample > 0 && sample < len(recorded) {
		newest := len(recorded) - 1
		chosen := rand.Perm(newest)[:sample-1]
		slices.Sort(chosen)
		chosen = append(chosen, newest)
		checked = nil
		for _, i := range chosen {
			checked = append(checked, recorded[i])
		}
	}
	checks, versions := []SegmentCheck{}, map[string]bool{} // objects whose manifest was read, and KEY VERSION
	for i, s := range checked {
		progress(i, len(checked))
		c := SegmentCheck{
			Segment: segment.NewName(s.Day, int(s.Part)).String(), Object: s.ObjectKey, Events: s.Events, StoredBytes: s.StoredBytes,
		}
		manifest, err := verifySegment(ctx, d, identities, s)
		if manifest != nil {
			versions[s.ObjectKey] = true
			for _, version := range append(manifest.SupersededVersions, manifest.ObjectVersion) {
				versions[s.ObjectKey+" "+version] = true
			}
		}
		var finding *ArchiveFinding
		var over *overlaid
		switch {
		case errors.As(err, &over):
			listed, err := indexedOrphans(ctx, d)
			if err != nil {
				return checks, err
			}
			if listed[s.ObjectKey+" "+over.version] {
				c.Note = "a version that a writer left whom nobody waited for lies over it; the archive's index lists it, and the version on record is whole"
			} else {
				c.Finding = over.Error()
			}
		case errors.As(err, &finding):
			c.Object, c.Finding = finding.Object, finding.What
		case errors.Is(err, store.ErrFrozen):
			c.Note = "object is frozen and was not read; a thaw was asked for: look again when it is over"
		case err != nil:
			return checks, err
		}
		checks = append(checks, c)
	}
	progress(len(checked), len(checked))
	if sample > 0 {
		return checks, nil
	}
	stray, err := strays(ctx, d, known, versions, in)
	for _, check := range stray {
		// What lies over an object is said once.
		if !slices.ContainsFunc(checks, func(c SegmentCheck) bool { return c.Object == check.Object && c.Finding != "" }) {
			checks = append(checks, check)
		}
	}
	return checks, err
}

// strays are the versions of objects that no record and no manifest names.
func strays(ctx context.Context, d Deps, known, versions map[string]bool, in timeline) (list []SegmentCheck, err error) {
	first := map[string]bool{}
	var orphans map[string]bool
	for object, err := range d.Store.Versions(ctx, segment.Prefix) {
		if err != nil {
			return list, err
		}
		stray := SegmentCheck{Object: object.Key, StoredBytes: object.Size}
		again := first[object.Key]
		first[object.Key] = true
		switch name, wrong := segment.ParseKey(object.Key); {
		case isIndex(object.Key) && !again, versions[object.Key+" "+object.Version]:
			continue
		case known[object.Key] && (wrong != nil || object.Key == name.ManifestKey()) && !again:
			continue // the manifest itself
		case known[object.Key] && !versions[object.Key]:
			continue // of an open segment, or its manifest could not be read, which is a finding
		case !known[object.Key] && in.leftBehind(object):
			stray.Note = "archived after the backup that this database was restored from, by the one that was backed up"
		default:
			if orphans == nil {
				if orphans, err = indexedOrphans(ctx, d); err != nil {
					return list, err
				}
			}
			if orphans[object.Key+" "+object.Version] {
				stray.Note = "a version that a writer left whom nobody waited for; the archive's index lists it"
			} else if stray.Finding = "object is on no record"; known[object.Key] || again {
				stray.Finding = "a version of it is on no record"
			}
		}
		list = append(list, stray)
	}
	return list, nil
}

// timeline is where a database stands that was restored.
type timeline db.ArchiveBranchRow

// leftBehind tells whether an object is of the database that was backed up, which went
// on until its backup was restored: of another branch, and archived between what the
// backup knows of and the restore.
func (t timeline) leftBehind(object store.Info) bool {
	// Whole seconds, and clocks that differ.
	const slack = time.Minute
	name, err := segment.ParseKey(object.Key)
	return err == nil && t.Branch != "" && name.Branch != t.Branch &&
		object.Modified.After(t.RecordedUntil.Add(-slack)) && object.Modified.Before(t.OpenedAt.Add(slack))
}

// verifySegment returns the manifest, and the finding beside it.
func verifySegment(ctx context.Context, d Deps, identities []age.Identity, record db.ArchiveSegmentsRow) (*segment.Manifest, error) {
	s := d.Store
	wrong := func(key, what string) error { return &ArchiveFinding{Object: key, What: what} }
	// missing turns the store's answer into a finding.
	missing := func(key, what string, err error) error {
		if errors.Is(err, store.ErrNotFound) {
			return wrong(key, what)
		}
		return err
	}
	locked := func(info store.Info) error {
		if record.RetainUntil.After(time.Now()) && !info.LockedUntil(record.RetainUntil) {
			return wrong(info.Key, "lock is not the one on record")
		}
		return nil
	}

	object, err := s.Get(ctx, record.ManifestKey, "")
	if err != nil {
		return nil, missing(record.ManifestKey, "manifest is missing or hidden", err)
	}
	defer object.Close()
	digest := sha256.New()
	stored, err := segment.DecodeManifest(io.TeeReader(object, digest))
	if unread := new(store.Error); errors.As(err, &unread) {
		return nil, err
	}
	if err != nil {
		return nil, wrong(record.ManifestKey, "manifest cannot be read")
	}
	if !bytes.Equal(digest.Sum(nil), record.ManifestSha256) || stored.ObjectKey != record.ObjectKey || stored.Rows != record.Events {
		return nil, wrong(record.ManifestKey, "manifest is not the one on record")
	}
	info, err := s.Head(ctx, record.ManifestKey, "")
	if err != nil {
		return stored, missing(record.ManifestKey, "manifest is missing or hidden", err)
	}
	if err := locked(info); err != nil {
		return stored, err
	}

	// One that was superseded has leaves that stand for other events now.
	if !record.Superseded {
		root, ok, err := retrieve.Root(ctx, ArchiveDatabase(d.Pool, d.scope(SystemTenant, "archive verify")), stored.Leaves)
		switch {
		case err != nil:
			return stored, err
		case !ok:
			return stored, wrong(record.ManifestKey, "the ledger lacks leaves of it")
		case root != stored.Root:
			return stored, wrong(record.ManifestKey, "its root is not that of its leaves in the ledger")
		}
	}

	info, err = s.Head(ctx, record.ObjectKey, stored.ObjectVersion)
	if err != nil {
		return stored, missing(record.ObjectKey, "object is missing", err)
	}
	if err := locked(info); err != nil {
		return stored, err
	}
	events, err := s.Get(ctx, record.ObjectKey, stored.ObjectVersion)
	if err != nil {
		return stored, missing(record.ObjectKey, "object is missing", err)
	}
	defer events.Close()
	// Without an identity that opens it, what is stored is held against the manifest.
	err = segment.Verify(events, identities, stored, nil)
	switch {
	case errors.Is(err, segment.ErrDamaged):
		return stored, wrong(record.ObjectKey, err.Error())
	case err != nil && (!errors.Is(err, segment.ErrIdentity) || len(identities) > 0):
		return stored, err
	}
	// The archive is whole. Still, whoever asks the store without a version must get it.
	current, err := s.Head(ctx, record.ObjectKey, "")
	if err != nil {
		return stored, missing(record.ObjectKey, "object is hidden under a delete marker; the locked version is whole", err)
	}
	if current.Version != stored.ObjectVersion {
		return stored, &overlaid{current.Version}
	}
	return stored, nil
}

// overlaid says that a version lies over the one on record, which is whole.
type overlaid struct{ version string }

func (*overlaid) Error() string {
	return "object is hidden under another version; the locked version is whole"
}
