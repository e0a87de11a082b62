package jobs

import (
	"cmp"
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// ArchiveArgs asks for one run of the archive: the events of closed days go to
// the store, and months whose events are all there leave Postgres.
type ArchiveArgs struct{}

func (ArchiveArgs) Kind() string { return "archive" }

func (ArchiveArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueBulk, MaxAttempts: 5, UniqueOpts: once()}
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

// ArchiveWorker archives closed days. For each segment: the lines are compared with
// their leaves and streamed into a locked, encrypted object, the object is read back
// and its digest compared with what was sent, a manifest goes beside it and is read
// back too, and only then the segment is on record. What is in the store is never
// changed. A run that finds the manifest of one that was killed compares it with the
// database and the object with the manifest, and goes on from there; an object
// without a manifest cannot be read by the worker and is known to nobody, so that the
// next attempt lays its own over it and says so in its manifest.
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
		if len(w.Recipients.Keys) == 0 {
			return later(job, config.Again, &Failure{Step: "archive", Code: "no recipients: the archive is always encrypted; set PGCUSTODY_ARCHIVE_RECIPIENTS to public keys of age, or to a file of them"})
		}
		return w.all(ctx, run, config)
	})
}

// all is one run. The rest goes on although something about one segment was found, so
// that one that does not hold keeps back itself alone.
func (w *ArchiveWorker) all(ctx context.Context, run *Run, config ArchiveConfig) error {
	var problems []error
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"archive", func(ctx context.Context) error { return w.archive(ctx, run, config) }},
		{"sweep", func(ctx context.Context) error { return w.sweep(ctx, run) }},
		{"hold", func(ctx context.Context) error { return w.hold(ctx, run) }},
		{"expire", func(ctx context.Context) error { return w.expire(ctx, run) }},
		{"index", func(ctx context.Context) error { return w.index(ctx, run) }},
		{"remove", func(ctx context.Context) error { return w.remove(ctx, run) }},
		{"drop", func(ctx context.Context) error { return w.drop(ctx, run) }},
		{"totals", func(ctx context.Context) error { return w.totals(ctx, run) }},
	} {
		err := timed(ctx, run, part.name, part.do)
		if err != nil {
			problems = append(problems, err)
		}
		if err != nil && !isFinding(err) {
			break
		}
	}
	return joined(problems)
}

// segmentsAtOnce is how many open segments are asked for at a time.
const segmentsAtOnce = 100

func (w *ArchiveWorker) archive(ctx context.Context, run *Run, config ArchiveConfig) error {
	checked, done := false, int64(0)
	failed, problems := map[segment.Name]bool{}, []error(nil)
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
			return joined(problems)
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
			if failed[a.name] {
				left++
				continue
			}
			switch err := a.work(ctx); {
			case errors.Is(err, errTaken):
				left++
			case isFinding(err):
				failed[a.name], problems = true, append(problems, err)
				left++
			case err != nil:
				return joined(append(problems, err))
			}
			done += a.sums.Rows
		}
		switch {
		case left == len(failed) && left == len(open):
			return joined(problems)
		case left < len(open):
			waitUntil = time.Time{}
		case waitUntil.IsZero():
			waitUntil = time.Now().Add(config.OthersWait)
		case time.Now().After(waitUntil):
			// Whoever streams them records them, or the next run does.
			run.Count("segments_of_others", int64(left-len(failed)))
			return joined(problems)
		}
		if left == len(open) {
			if err := sleep(ctx, min(time.Second, config.OthersWait)); err != nil {
				return err
			}
		}
	}
}

func isFinding(err error) bool {
	var finding *ArchiveFinding
	return errors.As(err, &finding)
}

// joined is one error of several, and one as it is.
func joined(problems []error) error {
	if len(problems) == 1 {
		return problems[0]
	}
	return errors.Join(problems...)
}

// sweep ends unfinished uploads of segments that nobody works at any more: a writer who
// had lost its session, and whom nobody waited for, may have begun one after its segment
// was on record. Those of open segments are for who has their lock.
func (w *ArchiveWorker) sweep(ctx context.Context, run *Run) error {
	keys, err := w.Store.Unfinished(ctx, segment.Prefix)
	if err != nil || len(keys) == 0 {
		return fail("look for unfinished uploads", err)
	}
	over := map[string]bool{}
	err = InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) error {
		in, err := db.New().ArchiveBranch(ctx, tx)
		if err != nil {
			return err
		}
		for _, key := range keys {
			name, err := segment.ParseKey(key)
			if err != nil || name.Branch != in.Branch {
				continue // another database's, which may be alive
			}
			open, err := db.New().SegmentIsOpen(ctx, tx, db.SegmentIsOpenParams{Day: name.Day.Format(time.DateOnly), Part: int32(name.Part)}) //nolint:gosec // parts are few
			if err != nil {
				return err
			}
			over[key] = !open
		}
		return nil
	})
	if err != nil {
		return fail("look for unfinished uploads", err)
	}
	for _, key := range keys {
		if !over[key] {
			continue
		}
		swept, err := w.Store.Sweep(ctx, key)
		if err != nil {
			return fail("end unfinished uploads", err)
		}
		run.Count("uploads_swept", int64(swept))
	}
	return nil
}

// drop drops the months whose events are all on record, and says what keeps the others
// that are past the hot period.
func (w *ArchiveWorker) drop(ctx context.Context, run *Run) error {
	done, err := w.dropMonths(ctx, run, w.archiveScope(), func(tx pgx.Tx) (months []string, counts map[string]int64, err error) {
		dropped, err := db.New().DropArchivedPartitions(ctx, tx, 1)
		counts = map[string]int64{}
		for _, month := range dropped {
			months = append(months, month.PartitionName)
			counts["events_dropped"] += month.RowsDropped
			counts["events_kept"] += month.RowsKept
		}
		return months, counts, err
	})
	if err != nil || !done {
		return err
	}
	return w.kept(ctx, run)
}

const (
	lockNotAvailable = "55P03"
	deadlockDetected = "40P01"
)

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
