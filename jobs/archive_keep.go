package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/db"
	"pgcustody/jobs/fault"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// hold puts the objects of segments that hold what a legal hold covers under the
// store's own legal hold, and frees those that no hold covers any more.
func (w *ArchiveWorker) hold(ctx context.Context, run *Run) error {
	var segments []db.HeldSegmentsRow
	err := InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) (err error) {
		segments, err = db.New().HeldSegments(ctx, tx)
		return err
	})
	if err != nil {
		return fail("look at legal holds", err)
	}
	for _, s := range segments {
		if err := w.holdSegment(ctx, s); err != nil {
			return fail("legal hold of segment "+segment.NewName(s.Day, int(s.Part)).String(), err)
		}
		if s.Wanted {
			run.Count("segments_held", 1)
		} else {
			run.Count("segments_freed", 1)
		}
	}
	return nil
}

func (w *ArchiveWorker) holdSegment(ctx context.Context, s db.HeldSegmentsRow) error {
	manifest, version, err := findManifest(ctx, w.Store, s.ManifestKey, s.ManifestSha256)
	if err != nil {
		return err
	}
	for _, object := range []struct{ key, version string }{{s.ObjectKey, manifest.ObjectVersion}, {s.ManifestKey, version}} {
		fault.Point("before set hold")
		if err := w.Store.SetLegalHold(ctx, object.key, object.version, s.Wanted); err != nil {
			return err
		}
		fault.Point("after set hold")
		info, err := w.Store.Head(ctx, object.key, object.version)
		if err != nil {
			return err
		}
		if info.LegalHold != s.Wanted {
			return &ArchiveFinding{Object: object.key, What: "store does not keep the legal hold that it was asked for", Do: "run pgcustody store check"}
		}
	}
	fault.Point("before record hold")
	err = InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) error {
		_, err := db.New().RecordSegmentHold(ctx, tx, db.RecordSegmentHoldParams{Day: s.Day.Format(time.DateOnly), Part: s.Part, IsOn: s.Wanted})
		return err
	})
	fault.Point("after record hold")
	return err
}

// expire ends the life of segments whose retention has ended. What the event says is
// committed, and in an index, before an object goes.
func (w *ArchiveWorker) expire(ctx context.Context, run *Run) error {
	_, err := w.expired(ctx)
	return err
}

// expired are segments whose objects are to be deleted.
func (w *ArchiveWorker) expired(ctx context.Context) (segments []db.ExpireSegmentsRow, err error) {
	fault.Point("before expire")
	err = InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) (err error) {
		segments, err = db.New().ExpireSegments(ctx, tx, segmentsAtOnce)
		return err
	})
	fault.Point("after expire")
	return segments, fail("expire segments", err)
}

// remove deletes the objects of expired segments, all versions of them, the manifest
// last. One that the store still locks, because its lock was lengthened, is left to a
// later run.
func (w *ArchiveWorker) remove(ctx context.Context, run *Run) error {
	segments, err := w.expired(ctx)
	if err != nil {
		return err
	}
	for _, s := range segments {
		name := segment.NewName(s.Day, int(s.Part))
		locked := false
		for _, key := range []string{s.ObjectKey, s.ManifestKey} {
			fault.Point("before delete object")
			n, err := w.Store.Delete(ctx, key)
			fault.Point("after delete object")
			if errors.Is(err, store.ErrLocked) {
				locked = true
				break
			}
			if err != nil {
				return fail("delete segment "+name.String(), err)
			}
			run.Count("versions_deleted", int64(n))
		}
		if locked {
			run.Count("segments_still_locked", 1)
			w.Log.Warn("expired segment is still under lock", "segment", name.String())
			continue
		}
		fault.Point("before record gone")
		err := InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) error {
			_, err := db.New().RecordSegmentGone(ctx, tx, db.RecordSegmentGoneParams{Day: s.Day.Format(time.DateOnly), Part: s.Part})
			return err
		})
		if err != nil {
			return fail("record that segment "+name.String()+" is gone", err)
		}
		fault.Point("after record gone")
		run.Count("segments_expired", 1)
		w.Log.Info("segment expired", "segment", name.String(), "events", s.Events, "stored_bytes", s.StoredBytes)
	}
	return nil
}
