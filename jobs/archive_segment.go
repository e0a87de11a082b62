package jobs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pgcustody/db"
	"pgcustody/jobs/fault"
	"pgcustody/jobs/lean"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// errTaken says that another worker has the segment.
var errTaken = errors.New("another worker has the segment")

// turn lets one segment of a process at a time be worked at: each needs several
// connections and some memory, whatever the number of runs.
var turn = make(chan struct{}, 1)

// archiving is the work on one segment.
type archiving struct {
	*ArchiveWorker
	run    *Run
	config ArchiveConfig
	name   segment.Name
	row    db.OpenSegmentsRow
	done   int64 // events of the segments before

	tx     pgx.Tx       // holds the segment's lock
	schema int64        // version of the database
	leaves segment.Runs // as the database opened it

	// sums, root, people and the times are what the database sent. Without an object
	// of this attempt the sums of compressed and stored bytes are empty.
	sums        segment.Sums
	root        segment.SHA256
	people      []byte
	first, last time.Time

	version  string            // of the object
	manifest *segment.Manifest // as it was read from the store
	document []byte            // its bytes
	found    bool              // an attempt before this one wrote it
	retained time.Time         // until when both are locked
}

func (a *archiving) work(ctx context.Context) error {
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	defer lean.Heap()()
	// The lock's transaction reads the map as well. It holds no snapshot between its
	// statements, so nothing waits for its end.
	return InContext(ctx, a.Pool, a.archiveScope(), func(tx pgx.Tx) error {
		a.tx = tx
		for _, step := range []struct {
			name string
			do   func(context.Context) error
		}{
			{"lock", a.lock}, {"look", a.look}, {"stream", a.stream}, {"read back", a.readBack},
			{"put manifest", a.putManifest}, {"read back manifest", a.readBackManifest}, {"lock objects", a.lockObjects}, {"sweep", a.sweep}, {"record", a.record},
		} {
			if err := a.at("before " + step.name); err != nil {
				return err
			}
			if err := step.do(ctx); err != nil {
				if errors.Is(err, errTaken) {
					return err
				}
				var finding *ArchiveFinding
				if errors.As(err, &finding) {
					return &Failure{Step: step.name + " " + finding.Object, Code: finding.What, Err: finding}
				}
				return fail(step.name+" segment "+a.name.String(), err)
			}
			if err := a.at("after " + step.name); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *archiving) at(step string) error {
	fault.Point(step)
	if a.step == nil {
		return nil
	}
	return a.step(step, a.name)
}

// lock takes the segment, unless another worker has it or has recorded it since it
// was asked for.
func (a *archiving) lock(ctx context.Context) error {
	queries := db.New()
	if err := queries.StayOpen(ctx, a.tx); err != nil {
		return err
	}
	locked, err := queries.LockSegment(ctx, a.tx, a.name.String())
	if err != nil {
		return err
	}
	if !locked {
		return errTaken
	}
	open, err := queries.SegmentIsOpen(ctx, a.tx, db.SegmentIsOpenParams{Day: a.name.Day.Format(time.DateOnly), Part: a.row.Part})
	if err != nil {
		return err
	}
	if !open {
		return errTaken
	}
	if a.leaves, err = segment.ParseRuns(a.row.Leaves); err != nil {
		return err
	}
	a.schema, err = queries.SchemaVersion(ctx, a.tx)
	return err
}

// look sees whether an attempt before this one came as far as its manifest.
func (a *archiving) look(ctx context.Context) error {
	switch _, err := a.Store.Head(ctx, a.name.ManifestKey(), ""); {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	a.found = true
	a.run.Count("manifests_found", 1)
	return a.readManifest(ctx)
}

// stream compares the lines with their leaves; unless there is a manifest already,
// they go into an object on the way.
func (a *archiving) stream(ctx context.Context) error {
	if !a.found {
		return a.upload(ctx)
	}
	plain := &tally{sum: sha256.New()}
	err := a.lines(ctx, func(b *batch) error {
		_, _ = plain.Write(b.lines)
		return nil
	})
	a.sums.PlainBytes = plain.n
	plain.sum.Sum(a.sums.PlainSHA256[:0])
	return err
}

// tally counts and hashes.
type tally struct {
	sum hash.Hash
	n   int64
}

func (t *tally) Write(p []byte) (int, error) {
	t.n += int64(len(p))
	return t.sum.Write(p)
}

// lines calls take with all of the segment's, and learns of them what the manifest
// says.
func (a *archiving) lines(ctx context.Context, take func(*batch) error) error {
	events := a.leaves.Count()
	root, people := segment.NewRoot(), segment.NewPeople(events)
	shown := int64(0)
	s := &streamer{day: a.name.Day, part: a.name.Part, begin: func(ctx context.Context, work func(pgx.Tx) error) error {
		return InContext(ctx, a.Pool, a.archiveScope(), func(tx pgx.Tx) error {
			// Should this process die, its statements must not outlive it for long.
			if err := db.New().SetConnectionCheck(ctx, tx, milliseconds(a.config.DeadAfter)); err != nil {
				return err
			}
			// By the index on (xid, log_entry_id), in whose order the leaves are: rows are as
			// wide as entries, and sorting them would go by way of the disk.
			if _, err := tx.Exec(ctx, "set local enable_sort = off; set local enable_bitmapscan = off; set local max_parallel_workers_per_gather = 0; set local jit = off; set local plan_cache_mode = force_generic_plan"); err != nil {
				return err
			}
			return work(tx)
		})
	}}
	err := s.stream(ctx, a.tx, func(b *batch) error {
		added := make(chan struct{})
		go func() {
			for i := range b.hashes {
				root.Append(b.hashes[i])
			}
			people.Add(b.people...)
			close(added)
		}()
		defer func() { <-added }()
		if a.first.IsZero() || b.first.Before(a.first) {
			a.first = b.first
		}
		if b.last.After(a.last) {
			a.last = b.last
		}
		a.sums.Rows += int64(len(b.hashes))
		if a.sums.Rows-shown >= progressRows {
			shown = a.sums.Rows
			a.run.Progress("events", a.done+shown, 0)
		}
		return take(b)
	})
	if err != nil {
		return err
	}
	a.root, a.people = root.Sum(), people.Bytes()
	if a.sums.Rows != events {
		return &ArchiveFinding{Object: "segment " + a.name.String(), What: "the map does not have all its leaves", Do: "nothing was recorded or dropped; run pgcustody verify"}
	}
	return nil
}

// progressRows is how often progress is told.
const progressRows = 10_000

// upload streams lines → zstd → age → multipart upload.
func (a *archiving) upload(ctx context.Context) error {
	key := a.name.ObjectKey()
	if err := a.sweep(ctx); err != nil {
		return err
	}
	before, err := versionsOf(ctx, a.Store, key)
	if err != nil {
		return err
	}
	fault.Point("before upload")
	reader, pipe := io.Pipe()
	group, groupCtx := errgroup.WithContext(ctx)
	sent := false
	group.Go(func() error {
		err := a.seal(groupCtx, pipe)
		sent = err == nil
		_ = pipe.CloseWithError(err) // nil is the end of the object
		return err
	})
	var putErr error
	group.Go(func() error {
		var put store.PutResult
		put, putErr = a.Store.Put(groupCtx, key, reader, store.PutOptions{RetainUntil: a.row.RetainUntil, ContentType: segment.ContentType})
		a.version = put.Version
		// Whoever reads no further ends the writer.
		_ = reader.CloseWithError(cmp.Or[error](putErr, io.ErrClosedPipe))
		return putErr
	})
	if err = group.Wait(); err == nil || !sent || putErr == nil || ctx.Err() != nil {
		return err
	}
	// Everything was sent, and the answer may have been lost. What the store took
	// shows by its size, and then by its digest.
	after, lookErr := versionsOf(ctx, a.Store, key)
	if lookErr != nil {
		return err
	}
	for _, info := range slices.Backward(after) {
		known := slices.ContainsFunc(before, func(old store.Info) bool { return old.Version == info.Version })
		if !known && info.Size == a.sums.StoredBytes {
			a.version = info.Version
			a.run.Count("answers_lost", 1)
			return nil
		}
	}
	return err
}

// sweep ends unfinished uploads. We hold the segment's lock, so they are of somebody
// dead, or of a request of ours whose answer was lost.
func (a *archiving) sweep(ctx context.Context) error {
	for _, key := range []string{a.name.ObjectKey(), a.name.ManifestKey()} {
		swept, err := a.Store.Sweep(ctx, key)
		if swept > 0 {
			a.run.Count("uploads_swept", int64(swept))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// seal writes the object.
func (a *archiving) seal(ctx context.Context, to io.Writer) error {
	out, err := segment.NewWriter(to, a.Recipients.Keys)
	if err != nil {
		return err
	}
	err = a.lines(ctx, func(b *batch) error { return out.WriteLines(b.lines, int64(len(b.hashes))) })
	sums, closeErr := out.Close()
	if err != nil {
		return err
	}
	if closeErr == nil {
		a.sums = sums
		fault.Point("sent")
	}
	return closeErr
}

// readBack reads the stored object from its first to its last byte and holds it
// against what was sent, or against the manifest that was found, which is held
// against what the database sent.
func (a *archiving) readBack(ctx context.Context) error {
	key := a.name.ObjectKey()
	size, sum := a.sums.StoredBytes, a.sums.StoredSHA256
	if a.found {
		if ours := a.describe(); !a.manifest.SameEvents(ours) {
			return a.foreign(a.name.ManifestKey(), "manifest is not of what the database holds")
		}
		a.version, size, sum = a.manifest.ObjectVersion, a.manifest.StoredBytes, a.manifest.StoredSHA256
	}
	object, err := a.Store.Get(ctx, key, a.version)
	if err != nil {
		if a.found && errors.Is(err, store.ErrNotFound) {
			return a.foreign(key, "object that the manifest names is missing")
		}
		return err
	}
	defer object.Close()
	gotSize, got, err := segment.Digest(object)
	if err != nil {
		return err
	}
	if got != sum || gotSize != size {
		return a.foreign(key, "object is not what was sent")
	}
	return nil
}

// foreign is the finding about an object that is where ours should be.
func (a *archiving) foreign(key, what string) error {
	return &ArchiveFinding{Object: key, What: what,
		Do: "it was left as it is and nothing was recorded or dropped; find out who wrote it, hide its manifest under a delete marker and run again"}
}

// describe is the manifest as this attempt would write it.
func (a *archiving) describe() *segment.Manifest {
	return &segment.Manifest{
		Version: segment.ManifestVersion, EntryVersion: 1, SchemaVersion: a.schema, SoftwareVersion: softwareVersion(),
		Day: segment.Date(a.name.Day), Part: a.name.Part, Leaves: a.leaves, Root: a.root,
		Rows: a.sums.Rows, FirstOccurredAt: a.first, LastOccurredAt: a.last,
		ObjectKey: a.name.ObjectKey(), ObjectVersion: a.version,
		Compression: "zstd", Encryption: "age", Recipients: a.Recipients.Text,
		PlainBytes: a.sums.PlainBytes, PlainSHA256: a.sums.PlainSHA256,
		CompressedBytes: a.sums.CompressedBytes, CompressedSHA256: a.sums.CompressedSHA256,
		StoredBytes: a.sums.StoredBytes, StoredSHA256: a.sums.StoredSHA256,
		People: a.people, RetainUntil: a.row.RetainUntil.UTC(), ArchivedAt: time.Now().UTC(),
	}
}

// putManifest puts the manifest beside the object, unless it is there already.
func (a *archiving) putManifest(ctx context.Context) error {
	if a.found {
		return nil
	}
	versions, err := versionsOf(ctx, a.Store, a.name.ObjectKey())
	if err != nil {
		return err
	}
	manifest := a.describe()
	for _, info := range versions {
		if info.Version != a.version {
			manifest.SupersededVersions = append(manifest.SupersededVersions, info.Version)
		}
	}
	// Whoever lost the lock, because its session ended, must not go on beside another.
	if _, err := a.tx.Exec(ctx, "select 1"); err != nil {
		return err
	}
	document, err := manifest.Encode()
	if err != nil {
		return err
	}
	_, err = a.Store.Put(ctx, a.name.ManifestKey(), bytes.NewReader(document), store.PutOptions{
		RetainUntil: a.row.RetainUntil, ContentType: segment.ManifestContentType, IfNoneMatch: true,
	})
	if errors.Is(err, store.ErrExists) {
		return nil // it is compared
	}
	return err
}

// readBackManifest reads it as the store has it. Where it is another attempt's, that
// one's object is the segment's, and is read back too.
func (a *archiving) readBackManifest(ctx context.Context) error {
	if a.found {
		return nil
	}
	ours := a.version
	if err := a.readManifest(ctx); err != nil {
		return err
	}
	if a.manifest.ObjectVersion == ours && a.manifest.StoredSHA256 == a.sums.StoredSHA256 {
		if !a.manifest.SameEvents(a.describe()) {
			return a.foreign(a.name.ManifestKey(), "manifest is not what was sent")
		}
		return nil
	}
	a.found = true
	return a.readBack(ctx)
}

// readManifest reads the current one.
func (a *archiving) readManifest(ctx context.Context) error {
	object, err := a.Store.Get(ctx, a.name.ManifestKey(), "")
	if err != nil {
		return err
	}
	defer object.Close()
	var read bytes.Buffer
	a.manifest, err = segment.DecodeManifest(io.TeeReader(object, &read))
	if unread := new(store.Error); errors.As(err, &unread) {
		return err
	}
	if err != nil {
		return a.foreign(a.name.ManifestKey(), "manifest cannot be read")
	}
	a.document = read.Bytes()
	return nil
}

// lockObjects makes sure that the store holds both under lock long enough: an
// earlier attempt may have locked them for a shorter time.
func (a *archiving) lockObjects(ctx context.Context) error {
	if slices.Contains(a.config.Accept, store.NoLock) {
		a.retained = a.row.RetainUntil // as long as nobody deletes them
		return nil
	}
	for _, object := range []struct{ key, version string }{{a.name.ObjectKey(), a.manifest.ObjectVersion}, {a.name.ManifestKey(), ""}} {
		info, err := a.Store.Head(ctx, object.key, object.version)
		if err != nil {
			return err
		}
		if !info.LockedUntil(a.row.RetainUntil) {
			if err := a.Store.Extend(ctx, object.key, info.Version, a.row.RetainUntil); err != nil {
				return err
			}
			if info, err = a.Store.Head(ctx, object.key, info.Version); err != nil {
				return err
			}
		}
		if !info.LockedUntil(a.row.RetainUntil) {
			return &ArchiveFinding{Object: object.key, What: "object is not locked long enough",
				Do: "run pgcustody store check; nothing was recorded or dropped"}
		}
		if a.retained.IsZero() || info.RetainUntil.Before(a.retained) {
			a.retained = info.RetainUntil
		}
	}
	return nil
}

// record puts the segment on record.
func (a *archiving) record(ctx context.Context) error {
	digest := sha256.Sum256(a.document)
	err := InContext(ctx, a.Pool, a.archiveScope(), func(tx pgx.Tx) error {
		_, err := db.New().RecordSegment(ctx, tx, db.RecordSegmentParams{
			Day: a.name.Day.Format(time.DateOnly), Part: a.row.Part,
			ObjectKey: a.name.ObjectKey(), ManifestKey: a.name.ManifestKey(),
			Manifest: a.document, ManifestSha256: digest[:], RetainUntil: a.retained, People: a.manifest.People,
		})
		return err
	})
	if err != nil {
		return err
	}
	a.run.Count("segments", 1)
	a.run.Count("events", a.sums.Rows)
	a.run.Count("objects", 2)
	a.run.Count("plain_bytes", a.manifest.PlainBytes)
	a.run.Bytes(a.manifest.StoredBytes + int64(len(a.document)))
	a.Log.Info("segment archived", "segment", a.name.String(), "events", a.sums.Rows, "plain_bytes", a.manifest.PlainBytes,
		"stored_bytes", a.manifest.StoredBytes, "retain_until", a.retained)
	return nil
}
