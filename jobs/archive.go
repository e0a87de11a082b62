package jobs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"golang.org/x/sync/errgroup"

	"pgcustody/db"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// ArchiveArgs asks for one run of the archive: the events of closed days go to
// the store, and months whose events are all there leave Postgres.
type ArchiveArgs struct{}

func (ArchiveArgs) Kind() string { return "archive" }

func (ArchiveArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 5, UniqueOpts: once()}
}

// ArchiveConfig says how patient the archive is.
type ArchiveConfig struct {
	// Timeout bounds one run; what is left, the next takes. Default 2 hours.
	Timeout time.Duration
	// Again is when a run comes again that has no store; default 1 h.
	Again time.Duration
	// OthersWait is how long a run waits for segments that another worker streams,
	// before it leaves them to that worker or the next run; default 30 s. The
	// database notices after DeadAfter, default 5 s, that a worker died.
	OthersWait, DeadAfter time.Duration
	// DropLockTimeout is how long dropping a month may wait for the trail's lock;
	// whoever appends waits behind it. Default 500 ms.
	DropLockTimeout time.Duration
	// DropPause is the wait after a drop that did not get its lock, doubled each
	// time; DropAttempts in a row before the months are left to the next run.
	// Defaults 2 s and 5.
	DropPause    time.Duration
	DropAttempts int
	// Accept names findings about the store in spite of which it is written to
	// (store.FindingNames).
	Accept []string
}

func (c ArchiveConfig) withDefaults() ArchiveConfig {
	c.Timeout = cmp.Or(c.Timeout, 2*time.Hour)
	c.Again = cmp.Or(c.Again, time.Hour)
	c.OthersWait = cmp.Or(c.OthersWait, 30*time.Second)
	c.DeadAfter = cmp.Or(c.DeadAfter, 5*time.Second)
	c.DropLockTimeout = cmp.Or(c.DropLockTimeout, 500*time.Millisecond)
	c.DropPause = cmp.Or(c.DropPause, 2*time.Second)
	c.DropAttempts = cmp.Or(c.DropAttempts, 5)
	return c
}

// ArchiveWorker archives closed days. For each segment: the entries are streamed
// into a locked object that nobody else has written, the object is read back and
// compared with what the database sent, a manifest goes beside it and is read
// back too, and only then the segment is on record. Objects are never written
// over: a run that finds the objects of one that was killed compares them with
// the database and goes on from there, and two runs at once end with the same
// objects.
type ArchiveWorker struct {
	river.WorkerDefaults[ArchiveArgs]
	Deps

	// step is told where a run is; an error ends it there, for tests.
	step func(step string, name segment.Name) error
}

func (w *ArchiveWorker) Timeout(*river.Job[ArchiveArgs]) time.Duration {
	return w.Config.Archive.withDefaults().Timeout
}

// ArchiveFinding is what is wrong with the archive itself: an object that is not
// what it should be. It names the object, and nothing that stands in it.
type ArchiveFinding struct {
	Object, What, Do string
}

func (f *ArchiveFinding) Error() string {
	s := f.Object + ": " + f.What
	if f.Do != "" {
		s += ": " + f.Do
	}
	return s
}

// ExitCode is that of a failed check.
func (f *ArchiveFinding) ExitCode() int { return 4 }

const archivePurpose = "archive"

func (w *ArchiveWorker) Work(ctx context.Context, job *river.Job[ArchiveArgs]) error {
	config := w.Config.Archive.withDefaults()
	return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
		if w.Store == nil {
			return later(job, config.Again, &Failure{Step: "archive", Code: "no store: set PGCUSTODY_STORE"})
		}
		if err := w.archive(ctx, run, config); err != nil {
			return err
		}
		return w.drop(ctx, run, config)
	})
}

// segmentsAtOnce is how many open segments are asked for at a time.
const segmentsAtOnce = 100

func (w *ArchiveWorker) archive(ctx context.Context, run *Run, config ArchiveConfig) error {
	checked, done := false, int64(0)
	var branch string
	var waitUntil time.Time
	for {
		var open []db.OpenSegmentsRow
		err := InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) (err error) {
			if open, err = db.New().OpenSegments(ctx, tx, segmentsAtOnce); err != nil {
				return err
			}
			in, err := db.New().ArchiveBranch(ctx, tx)
			branch = in.Branch
			return err
		})
		if err != nil {
			return fail("open segments", err)
		}
		if len(open) == 0 {
			return nil
		}
		if !checked {
			// Settings are not believed; what could be deleted again is not archived.
			findings, err := w.Store.Check(ctx)
			if err == nil {
				err = store.Accept(findings, config.Accept)
			}
			if err != nil {
				return fail("check store", err)
			}
			checked = true
		}
		left := 0
		for _, row := range open {
			a := &archiving{ArchiveWorker: w, run: run, config: config, name: segment.NewName(row.Day, int(row.Part)), row: row, done: done}
			a.name.Branch = branch
			switch err := a.work(ctx); {
			case errors.Is(err, errTaken):
				left++
			case err != nil:
				return err
			}
			done += a.sent.rows
		}
		switch {
		case left < len(open):
			waitUntil = time.Time{}
		case waitUntil.IsZero():
			waitUntil = time.Now().Add(config.OthersWait)
		case time.Now().After(waitUntil):
			// Whoever streams them records them, or the next run does.
			run.Count("segments_of_others", int64(left))
			return nil
		}
		if left == len(open) {
			if err := sleep(ctx, min(time.Second, config.OthersWait)); err != nil {
				return err
			}
		}
	}
}

// errTaken says that another worker streams the segment.
var errTaken = errors.New("another worker has the segment")

// archiving is the work on one segment.
type archiving struct {
	*ArchiveWorker
	run    *Run
	config ArchiveConfig
	name   segment.Name
	row    db.OpenSegmentsRow
	from   segment.XID // window, the second exclusive
	to     segment.XID
	done   int64 // events of the segments before

	schema int64        // version of the database
	sent   sent         // what the database sent
	stored segment.Sums // what was read back
	// object and manifest are as the store reports them, document is the manifest
	// as it was read back.
	object, manifest store.Info
	document         []byte
}

// sent is what is known of a segment's entries once the database has sent all.
type sent struct {
	rows, bytes int64
	sha256      segment.SHA256
	first, last time.Time
}

func (a *archiving) work(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"stream", a.stream}, {"read back", a.readBack}, {"put manifest", a.putManifest}, {"record", a.record},
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
}

func (a *archiving) at(step string) error {
	if a.step == nil {
		return nil
	}
	return a.step(step, a.name)
}

// stream writes the object, unless it is there already; either way the entries
// pass from the database, so that what is stored can be compared with them.
func (a *archiving) stream(ctx context.Context) error {
	return InContext(ctx, a.Pool, a.archiveScope(), func(tx pgx.Tx) error {
		// Should this process die, its lock must not outlive it until COPY has sorted.
		if err := db.New().SetConnectionCheck(ctx, tx, milliseconds(a.config.DeadAfter)); err != nil {
			return err
		}
		locked, err := db.New().LockSegment(ctx, tx, a.name.String())
		if err != nil {
			return err
		}
		if !locked {
			return errTaken
		}
		if a.schema, err = db.New().SchemaVersion(ctx, tx); err != nil {
			return err
		}
		_, err = a.Store.Head(ctx, a.name.ObjectKey(), "")
		switch {
		case errors.Is(err, store.ErrNotFound):
			return a.upload(ctx, tx)
		case err != nil:
			return err
		}
		// An attempt that was killed wrote it.
		a.run.Count("objects_found", 1)
		return a.compute(ctx, tx)
	})
}

// upload streams COPY → zstd → multipart upload.
func (a *archiving) upload(ctx context.Context, tx pgx.Tx) error {
	// We hold the segment's lock, so an unfinished upload is of somebody dead.
	swept, err := a.Store.Sweep(ctx, a.name.ObjectKey())
	if err != nil {
		return err
	}
	if swept > 0 {
		a.run.Count("uploads_swept", int64(swept))
	}

	reader, pipe := io.Pipe()
	group, groupCtx := errgroup.WithContext(ctx)
	var copied bool
	group.Go(func() error {
		err := a.compress(groupCtx, tx, pipe)
		copied = err == nil
		_ = pipe.CloseWithError(err) // nil is the end of the object
		return err
	})
	var putErr error
	group.Go(func() error {
		_, putErr = a.Store.Put(groupCtx, a.name.ObjectKey(), reader, store.PutOptions{
			RetainUntil: a.row.RetainUntil, ContentType: segment.ContentType, IfNoneMatch: true,
		})
		// Whoever reads no further ends the writer.
		_ = reader.CloseWithError(cmp.Or[error](putErr, io.ErrClosedPipe))
		return putErr
	})
	err = group.Wait()
	if copied && errors.Is(putErr, store.ErrExists) {
		// The store took the object and its answer was lost, or it was there after
		// all. What is there is compared like any other.
		return nil
	}
	return err
}

func (a *archiving) compress(ctx context.Context, tx pgx.Tx, to io.Writer) error {
	out, err := segment.NewWriter(to)
	if err != nil {
		return err
	}
	if err := a.copyEntries(ctx, tx, out.WriteEntry); err != nil {
		return err
	}
	sums, err := out.Close()
	if err != nil {
		return err
	}
	a.sent.rows, a.sent.bytes, a.sent.sha256 = sums.Rows, sums.PlainBytes, sums.PlainSHA256
	return nil
}

// compute is compress for an object that is there already.
func (a *archiving) compute(ctx context.Context, tx pgx.Tx) error {
	sum := sha256.New()
	err := a.copyEntries(ctx, tx, func(entry []byte) error {
		sum.Write(entry)
		sum.Write([]byte{'\n'})
		a.sent.rows++
		a.sent.bytes += int64(len(entry)) + 1
		return nil
	})
	sum.Sum(a.sent.sha256[:0])
	return err
}

// copyEntries calls entry with each of the segment's in the order of its lines.
// Binary COPY gives the bytes as they are; its text form would escape them.
func (a *archiving) copyEntries(ctx context.Context, tx pgx.Tx, entry func([]byte) error) error {
	query := fmt.Sprintf(`copy (
select e.entry, e.occurred_at
from custody.segment_entries('%s', %d) e
order by e.xid, e.log_entry_id, e.tenant_id, e.occurred_at
) to stdout (format binary)`, a.name.Day.Format(time.DateOnly), a.name.Part)

	var rows int64
	decoder := &copyDecoder{row: func(text []byte, at time.Time) error {
		rows++
		if a.sent.first.IsZero() || at.Before(a.sent.first) {
			a.sent.first = at
		}
		if at.After(a.sent.last) {
			a.sent.last = at
		}
		if rows%progressRows == 0 {
			a.run.Progress("events", a.done+rows, 0)
		}
		return entry(text)
	}}
	tag, err := tx.Conn().PgConn().CopyTo(ctx, decoder, query)
	if err != nil {
		return err
	}
	if err := decoder.end(); err != nil {
		return err
	}
	if rows != tag.RowsAffected() {
		return fmt.Errorf("COPY sent %d rows and says %d", rows, tag.RowsAffected())
	}
	return nil
}

// progressRows is how often progress is told.
const progressRows = 10_000

// readBack reads the stored object from its first to its last byte and holds it
// against what the database sent.
func (a *archiving) readBack(ctx context.Context) error {
	key := a.name.ObjectKey()
	object, err := a.Store.Get(ctx, key, "")
	if err != nil {
		return err
	}
	defer object.Close()
	a.stored, err = segment.Read(object, nil)
	if errors.Is(err, segment.ErrDamaged) {
		return a.foreign(key, "object cannot be read")
	}
	if err != nil {
		return err
	}
	if a.stored.Rows != a.sent.rows || a.stored.PlainBytes != a.sent.bytes || a.stored.PlainSHA256 != a.sent.sha256 {
		return a.foreign(key, "object is not what the database holds")
	}
	a.object, err = a.lock(ctx, key, object.Info.Version)
	return err
}

// foreign is the finding about an object that is where ours should be.
func (a *archiving) foreign(key, what string) error {
	return &ArchiveFinding{Object: key, What: what,
		Do: "it was left as it is and nothing was recorded or dropped; find out who wrote it, hide it under a delete marker and run again"}
}

// lock makes sure that the store holds the version under lock long enough: an
// earlier attempt may have locked it for a shorter time.
func (a *archiving) lock(ctx context.Context, key, version string) (store.Info, error) {
	info, err := a.Store.Head(ctx, key, version)
	if err != nil {
		return info, err
	}
	if !info.LockedUntil(a.row.RetainUntil) {
		if err := a.Store.Extend(ctx, key, version, a.row.RetainUntil); err != nil {
			return info, err
		}
		if info, err = a.Store.Head(ctx, key, version); err != nil {
			return info, err
		}
	}
	if !info.LockedUntil(a.row.RetainUntil) {
		return info, &ArchiveFinding{Object: key, What: "object is not locked long enough",
			Do: "run pgcustody store check; nothing was recorded or dropped"}
	}
	return info, nil
}

// putManifest puts the manifest beside the object, unless it is there already,
// and reads it back.
func (a *archiving) putManifest(ctx context.Context) error {
	key := a.name.ManifestKey()
	manifest := &segment.Manifest{
		Version: segment.ManifestVersion, EntryVersion: 1, SchemaVersion: a.schema, SoftwareVersion: softwareVersion(),
		Day: segment.Date(a.name.Day), Part: a.name.Part, XIDFrom: a.from, XIDTo: a.to,
		Rows: a.sent.rows, FirstOccurredAt: a.sent.first, LastOccurredAt: a.sent.last,
		ObjectKey: a.name.ObjectKey(), ObjectVersion: a.object.Version, Compression: "zstd",
		PlainBytes: a.sent.bytes, PlainSHA256: a.sent.sha256, StoredBytes: a.stored.StoredBytes, StoredSHA256: a.stored.StoredSHA256,
		RetainUntil: a.object.RetainUntil.UTC(), ArchivedAt: time.Now().UTC(),
	}
	document, err := manifest.Encode()
	if err != nil {
		return err
	}
	_, err = a.Store.Put(ctx, key, bytes.NewReader(document), store.PutOptions{
		RetainUntil: a.row.RetainUntil, ContentType: segment.ManifestContentType, IfNoneMatch: true,
	})
	if err != nil && !errors.Is(err, store.ErrExists) {
		return err
	}

	object, err := a.Store.Get(ctx, key, "")
	if err != nil {
		return err
	}
	defer object.Close()
	var read bytes.Buffer
	stored, err := segment.DecodeManifest(io.TeeReader(object, &read))
	if unread := new(store.Error); errors.As(err, &unread) {
		return err
	}
	if err != nil || !stored.Same(manifest) {
		return a.foreign(key, "manifest does not fit the object")
	}
	a.document = read.Bytes()
	a.manifest, err = a.lock(ctx, key, object.Info.Version)
	return err
}

// record puts the segment on record. custody.record_segment counts anew.
func (a *archiving) record(ctx context.Context) error {
	retained := a.object.RetainUntil
	if a.manifest.RetainUntil.Before(retained) {
		retained = a.manifest.RetainUntil
	}
	sum := sha256.Sum256(a.document)
	err := InContext(ctx, a.Pool, a.archiveScope(), func(tx pgx.Tx) error {
		_, err := db.New().RecordSegment(ctx, tx, db.RecordSegmentParams{
			Day: a.name.Day.Format(time.DateOnly), Part: int32(a.name.Part),
			ObjectKey: a.name.ObjectKey(), ManifestKey: a.name.ManifestKey(),
			Manifest: a.document, ManifestSha256: sum[:], RetainUntil: retained,
		})
		return err
	})
	if err != nil {
		return err
	}
	a.run.Count("segments", 1)
	a.run.Count("events", a.sent.rows)
	a.run.Bytes(a.stored.StoredBytes)
	a.Log.Info("segment archived", "segment", a.name.String(), "events", a.sent.rows, "plain_bytes", a.sent.bytes,
		"stored_bytes", a.stored.StoredBytes, "retain_until", retained)
	return nil
}

// drop drops the months whose events are all on record, one a transaction, and
// says what keeps the others that are past the hot period.
func (w *ArchiveWorker) drop(ctx context.Context, run *Run, config ArchiveConfig) error {
	pause := config.DropPause
	for attempt := 1; ; {
		var dropped []db.DropArchivedPartitionsRow
		scope := w.archiveScope()
		scope.LockTimeout = config.DropLockTimeout
		err := InContext(ctx, w.Pool, scope, func(tx pgx.Tx) (err error) {
			dropped, err = db.New().DropArchivedPartitions(ctx, tx, 1)
			return err
		})
		switch {
		case err == nil && len(dropped) == 0:
			return w.kept(ctx, run)
		case err == nil:
			attempt, pause = 1, config.DropPause
			for _, month := range dropped {
				run.Count("months_dropped", 1)
				run.Count("events_dropped", month.RowsDropped)
				w.Log.Info("month dropped", "partition", month.PartitionName, "events", month.RowsDropped)
			}
		case state(err) != lockNotAvailable && state(err) != deadlockDetected:
			return fail("drop month", err)
		case attempt >= config.DropAttempts:
			// Whoever holds the trail goes before: the next run tries again.
			run.Count("drops_put_off", 1)
			w.Log.Warn("month not dropped: the trail is busy", "attempts", attempt)
			return nil
		default:
			if err := sleep(ctx, pause); err != nil {
				return err
			}
			attempt++
			pause *= 2
		}
	}
}

const (
	lockNotAvailable = "55P03"
	deadlockDetected = "40P01"
)

// kept says which months are past the hot period and still there, and why.
func (w *ArchiveWorker) kept(ctx context.Context, run *Run) error {
	var months []db.AuditMonthsRow
	err := InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) (err error) {
		months, err = db.New().AuditMonths(ctx, tx)
		return err
	})
	if err != nil {
		return fail("look at months", err)
	}
	for _, month := range months {
		if month.State == "hot" || month.State == "due" {
			continue
		}
		run.Count("months_"+month.State, 1)
		w.Log.Info("month kept", "partition", month.PartitionName, "state", month.State, "detail", month.Detail)
	}
	return nil
}

// archiveScope is the context of tenant system. The archive's functions need to
// see what was committed a moment ago, whatever the server's default is.
func (w *ArchiveWorker) archiveScope() Scope {
	scope := w.scope(SystemTenant, archivePurpose)
	scope.Isolation = pgx.ReadCommitted
	return scope
}

// softwareVersion is the version of this program.
func softwareVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && (version == "" || version == "(devel)") {
			version = setting.Value
		}
	}
	return cmp.Or(version, "unknown")
}
