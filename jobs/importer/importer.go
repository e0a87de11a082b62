// Package importer brings JSON Lines files into the tables of record.
//
// A file is read, checked and turned into rows by several goroutines, goes by binary COPY into a temporary table,
// and from there by one statement of the database's into the table of record. All of it is one transaction: a file
// is in as a whole, with its record, its run and its audit event, or not at all. Memory does not grow with the
// file, but for the people that a file of conversations is about: these are listed in a first pass, and what they said
// is sealed under their keys before it goes to the database.
package importer

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgcustody/db"
	"pgcustody/jobs"
)

// Config says what is imported for whom. Only Database and Tenant must be given.
type Config struct {
	// Database connects as a login with the role custody_worker.
	Database jobs.Beginner
	// Unlock gives an import its tenant's key; nil leaves it locked.
	Unlock *jobs.Unlocker
	Log    *slog.Logger
	// Tenant whose data the files hold; Actor is who imports them.
	Tenant, Actor string
	// Table of all files, where their names do not tell.
	Table string
	// Personal names fields of an event's metadata that move to its personal part.
	Personal []string
	// RegisterVocabulary adds actions, metadata keys and resource types that the vocabulary lacks.
	RegisterVocabulary bool
	// Rejects takes the lines that cannot be imported; without it the first one ends the import.
	Rejects *Rejects
	// Again imports a file although it was imported whole before. Whatever an erasure, retention or the application
	// has taken away or changed since comes back as the file has it.
	Again bool
	// Progress is called from time to time, from one goroutine at a time.
	Progress func(Progress)
	// Parsers is how many goroutines parse; by default one fewer than there are processors, at most four.
	Parsers int
	// Now is the time that no event may be a day ahead of; by default the clock's.
	Now time.Time
}

// Progress is how far the import of a file has come: Bytes of Size are read, where Size counts a file twice that is
// read twice; then the database takes Storing rows over, and does not say how many it has.
type Progress struct {
	File        string
	Bytes, Size int64
	Storing     int64
}

// Report is what the import of a file did.
type Report struct {
	File                    string    `json:"file"`
	Table                   string    `json:"table"`
	ImportID                uuid.UUID `json:"import_id"`
	RunID                   uuid.UUID `json:"run_id"`
	SHA256                  string    `json:"sha256"`
	Known                   bool      `json:"known"` // was imported whole before: nothing was looked at or changed
	Bytes                   int64     `json:"bytes"`
	RowsRead                int64     `json:"rows_read"`
	RowsAdded               int64     `json:"rows_added"`
	RowsChanged             int64     `json:"rows_changed"`
	RowsUnchanged           int64     `json:"rows_unchanged"`
	RowsRejected            int64     `json:"rows_rejected"`
	ActionsRegistered       int       `json:"actions_registered"`
	ResourceTypesRegistered int       `json:"resource_types_registered"`
	Seconds                 float64   `json:"seconds"`
	CopySeconds             float64   `json:"copy_seconds"` // of Seconds, until the database had every row
}

// A LineError is a line that cannot be imported, and with it its file.
type LineError struct {
	File  string
	Table string
	Line  int64
	Field string // dotted path; empty where the line is not a JSON object
	// Code is the SQLSTATE, of class PC, of what is wrong; Problem says it in words and quotes nothing personal.
	Code, Problem string
}

func (e *LineError) Error() string {
	return fmt.Sprintf("import %s: line %d%s: %s", e.File, e.Line, fieldPart(e.Field), e.Problem)
}

func fieldPart(field string) string {
	if field == "" {
		return ""
	}
	return ", field " + field
}

// Is lets errors.Is find the refusal by the database's own sentinels.
func (e *LineError) Is(target error) bool {
	return errors.Is(db.FromPg(&pgconn.PgError{Code: e.Code}), target)
}

// A FileError is a file that cannot be imported whatever its lines say.
type FileError struct {
	File, Problem string
	Changed       bool // while it was imported
}

func (e *FileError) Error() string { return e.File + ": " + e.Problem }

// attempts is how often a file is tried when other transactions were in the way.
const attempts = 3

// Run imports files, tables that others refer to first, and reports those that are in. The first file that fails
// ends it; what was imported before stays.
func Run(ctx context.Context, cfg Config, paths []string) ([]Report, error) {
	cfg.Actor = cmp.Or(cfg.Actor, "pgcustody")
	cfg.Parsers = cmp.Or(cfg.Parsers, min(max(runtime.GOMAXPROCS(0)-1, 1), 4))
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files := make([]file, len(paths))
	for i, path := range paths {
		var err error
		if files[i], err = cfg.look(path); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(files, func(a, b file) int { return a.table.rank - b.table.rank })

	reports := make([]Report, 0, len(files))
	for _, f := range files {
		var report Report
		err := error(nil)
		for range attempts {
			err = cfg.Unlock.With(ctx, cfg.Tenant, func(kek []byte) (err error) {
				report, err = cfg.importFile(ctx, f, kek)
				return err
			})
			if !errors.Is(db.FromPg(err), db.ErrConflict) {
				break
			}
		}
		if err != nil {
			// Interrupted in the middle of a COPY, what fails is the connection.
			if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
				err = errors.Join(ctx.Err(), err)
			}
			cfg.recordFailure(ctx, f, err)
			return reports, fmt.Errorf("import %s: %w", f.path, err)
		}
		cfg.Log.Info("file imported", "table", report.Table, "import_id", report.ImportID, "rows_added", report.RowsAdded,
			"rows_changed", report.RowsChanged, "rows_rejected", report.RowsRejected, "bytes", report.Bytes)
		reports = append(reports, report)
	}
	return reports, nil
}

// A file is one that was found to be there and to belong to a table.
type file struct {
	path  string
	table *table
	size  int64
}

func (cfg *Config) look(path string) (file, error) {
	name := cmp.Or(cfg.Table, TableOf(path))
	f := file{path: path, table: tables[name]}
	if f.table == nil {
		if cfg.Table != "" {
			return f, &FileError{File: path, Problem: fmt.Sprintf("there is no table %q to import into", cfg.Table)}
		}
		return f, &FileError{File: path, Problem: "its name begins with the name of no table"}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return f, &FileError{File: path, Problem: "there is no such file"}
	case err != nil:
		return f, &FileError{File: path, Problem: "cannot be read"}
	case !info.Mode().IsRegular():
		return f, &FileError{File: path, Problem: "is not a regular file"}
	}
	f.size = info.Size()
	return f, nil
}

func (cfg *Config) scope() jobs.Scope {
	return jobs.Scope{Tenant: cfg.Tenant, Actor: cfg.Actor, Purpose: "import", Isolation: pgx.ReadCommitted}
}

// importFile imports a file in one transaction, which is unlocked with kek.
func (cfg *Config) importFile(ctx context.Context, f file, kek []byte) (report Report, err error) {
	started := time.Now()
	source, err := os.Open(f.path)
	if err != nil {
		return report, &FileError{File: f.path, Problem: "cannot be read"}
	}
	defer source.Close()

	mark := cfg.Rejects.mark()
	report = Report{File: f.path, Table: f.table.name, ImportID: uuid.New()}
	scope := cfg.scope()
	scope.KEK = kek
	err = jobs.InContext(ctx, cfg.Database, scope, func(tx pgx.Tx) error {
		return cfg.importInto(ctx, tx, f, kek, source, started, &report)
	})
	if err != nil {
		return report, errors.Join(err, cfg.Rejects.rollback(mark))
	}
	report.Seconds = time.Since(started).Seconds()
	return report, nil
}

func (cfg *Config) importInto(ctx context.Context, tx pgx.Tx, f file, kek []byte, source io.ReadSeeker, started time.Time, report *Report) error {
	queries := db.New()
	var err error
	if report.RunID, err = queries.StartRun(ctx, tx, db.StartRunParams{Job: "import"}); err != nil {
		return fmt.Errorf("start run: %w", err)
	}
	if err := queries.PrepareImport(ctx, tx, f.table.name); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	stage := cfg.stage
	if f.table.survey != nil {
		stage = cfg.stageSealed
	}
	vocabulary, err := stage(ctx, tx, f, kek, source, report)
	if err != nil {
		return err
	}
	report.CopySeconds = time.Since(started).Seconds()
	sum, err := hex.DecodeString(report.SHA256)
	if err != nil {
		return err
	}
	if report.Known {
		report.RowsUnchanged = report.RowsRead - report.RowsRejected
	} else if err := cfg.storeRows(ctx, tx, f, source, sum, vocabulary, report); err != nil {
		return err
	}
	// The rejects are on disk before what was not rejected is in the table.
	if err := cfg.Rejects.sync(); err != nil {
		return err
	}

	if err := queries.FinishImport(ctx, tx, db.FinishImportParams{
		ImportID: report.ImportID, TableName: f.table.name, FileSha256: sum, RunID: report.RunID,
		RowsRead: report.RowsRead, RowsAdded: report.RowsAdded, RowsChanged: report.RowsChanged, RowsRejected: report.RowsRejected,
	}); err != nil {
		return fmt.Errorf("record import: %w", err)
	}
	numbers, err := json.Marshal(map[string]int64{
		"files": 1, "rows_read": report.RowsRead, "rows_added": report.RowsAdded, "rows_changed": report.RowsChanged,
		"rows_unchanged": report.RowsUnchanged, "rows_rejected": report.RowsRejected,
	})
	if err != nil {
		return err
	}
	if err := queries.FinishRun(ctx, tx, db.FinishRunParams{RunID: report.RunID, Status: "succeeded", Counts: numbers, Bytes: report.Bytes}); err != nil {
		return fmt.Errorf("finish run: %w", err)
	}
	return nil
}

// storeRows takes the staged rows, and the words in them, into the tables of record.
func (cfg *Config) storeRows(ctx context.Context, tx pgx.Tx, f file, source io.ReadSeeker, sum []byte, vocabulary *vocabulary, report *Report) error {
	if cfg.RegisterVocabulary {
		if err := vocabulary.write(ctx, tx, report); err != nil {
			return fmt.Errorf("register vocabulary: %w", err)
		}
	}

	if cfg.Progress != nil {
		cfg.Progress(Progress{File: f.path, Bytes: report.Bytes, Size: report.Bytes, Storing: report.RowsRead - report.RowsRejected})
	}
	if cfg.Again {
		sum = nil // which is that of no file
	}
	answer, err := f.table.store(ctx, tx, report.ImportID, sum, cfg.Rejects != nil)
	if err != nil {
		return refusal(f, err)
	}
	var counts struct{ Added, Changed, Unchanged, Refused int64 }
	if err := json.Unmarshal(answer, &counts); err != nil {
		return fmt.Errorf("read counts: %w", err)
	}
	report.RowsAdded, report.RowsChanged, report.RowsUnchanged = counts.Added, counts.Changed, counts.Unchanged
	if counts.Refused > 0 {
		if err := cfg.rejectRefused(ctx, tx, f, source, report.SHA256); err != nil {
			return err
		}
		report.RowsRejected += counts.Refused
	}
	return nil
}

// stage brings the good lines into the staging table, and finds out whether the file is known.
func (cfg *Config) stage(ctx context.Context, tx pgx.Tx, f file, _ []byte, source io.ReadSeeker, report *Report) (*vocabulary, error) {
	words := &known{}
	if f.table.name == auditTable {
		var err error
		if words, err = readVocabulary(ctx, tx); err != nil {
			return nil, fmt.Errorf("read vocabulary: %w", err)
		}
	}
	parsers := cfg.parsers(f, words)
	s, err := cfg.read(ctx, f, source, parsers, cfg.rejecter(f), copyTo(ctx, tx, f))
	if err != nil {
		return nil, err
	}
	report.note(s)
	all := parsers[0].vocab
	for _, p := range parsers[1:] {
		all.merge(p.vocab)
	}
	return all, cfg.lookFor(ctx, tx, f, report)
}

// stageSealed brings the good lines into the staging table with what is personal sealed. It goes through the file
// twice: the first pass says whom it is about, and whether the file is known, which ends it.
func (cfg *Config) stageSealed(ctx context.Context, tx pgx.Tx, f file, kek []byte, source io.ReadSeeker, report *Report) (*vocabulary, error) {
	// Nobody's keys, to be told at once that the transaction is locked.
	if _, err := db.New().ClaimDataKeys(ctx, tx, []string{}); err != nil {
		return nil, fmt.Errorf("claim data keys: %w", err)
	}
	parsers := cfg.parsers(f, &known{})
	userIDs, err := cfg.survey(ctx, f, source, parsers, report)
	if err != nil {
		return nil, err
	}
	if err := cfg.lookFor(ctx, tx, f, report); err != nil || report.Known {
		return parsers[0].vocab, err
	}
	people, err := claimPeople(ctx, tx, cfg.Tenant, kek, userIDs)
	if err != nil {
		return nil, err
	}
	defer people.wipe()
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read again: %w", err)
	}
	for _, p := range parsers {
		p.encode, p.people = f.table.encode, people
	}
	// The bad lines are those of the first pass.
	s, err := cfg.read(ctx, f, source, parsers, func(badLine) error { return nil }, copyTo(ctx, tx, f))
	if err != nil {
		return nil, err
	}
	if s.sum() != report.SHA256 || s.rejected != report.RowsRejected {
		return nil, fileChanged(f)
	}
	return parsers[0].vocab, nil
}

func (cfg *Config) parsers(f file, words *known) []*rowParser {
	now := cfg.Now
	if now.IsZero() {
		now = time.Now()
	}
	parsers := make([]*rowParser, cfg.Parsers)
	for i := range parsers {
		parsers[i] = newRowParser(f.table, now, cfg.Personal, newVocabulary(words, cfg.RegisterVocabulary))
	}
	return parsers
}

// rejecter takes bad lines to the rejects; nil where the first is fatal.
func (cfg *Config) rejecter(f file) func(badLine) error {
	if cfg.Rejects == nil {
		return nil
	}
	return func(bad badLine) error { return cfg.Rejects.add(f, bad) }
}

// copyTo takes rows into the staging table.
func copyTo(ctx context.Context, tx pgx.Tx, f file) func(io.Reader) error {
	return func(rows io.Reader) error {
		if _, err := tx.Conn().PgConn().CopyFrom(ctx, rows, "copy pg_temp.staged_"+f.table.name+" from stdin (format binary)"); err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		return nil
	}
}

// read goes through a file; take gets the rows that the parsers make of it.
func (cfg *Config) read(ctx context.Context, f file, source io.Reader, parsers []*rowParser, reject func(badLine) error, take func(io.Reader) error) (*stream, error) {
	s := newStream(ctx, source, parsers, reject, cfg.progress(f, parsers[0].people != nil))
	err := take(s)
	s.close()
	// What ended the stream is the reason; the server only says that the client gave up.
	if failed := s.failed(); failed != nil {
		var bad *errBadLine
		if errors.As(failed, &bad) {
			return nil, &LineError{File: f.path, Table: f.table.name, Line: bad.line, Field: bad.field, Code: bad.code, Problem: bad.problem.text}
		}
		return nil, failed
	}
	return s, err
}

// progress reports how much of a file COPY has taken, in the first pass over it or in the second.
func (cfg *Config) progress(f file, second bool) func(bytes int64) {
	if cfg.Progress == nil {
		return nil
	}
	return func(bytes int64) {
		size := max(f.size, bytes)
		if second {
			bytes += size
		}
		if f.table.survey != nil {
			size *= 2
		}
		cfg.Progress(Progress{File: f.path, Bytes: bytes, Size: size})
	}
}

// note takes over what a stream has found out of its file.
func (r *Report) note(s *stream) {
	r.SHA256, r.Bytes, r.RowsRead, r.RowsRejected = s.sum(), s.bytes, s.read, s.rejected
}

// lookFor finds out whether a file was imported whole before.
func (cfg *Config) lookFor(ctx context.Context, tx pgx.Tx, f file, report *Report) error {
	if cfg.Again {
		return nil
	}
	sum, err := hex.DecodeString(report.SHA256)
	if err != nil {
		return err
	}
	if report.Known, err = db.New().ImportKnown(ctx, tx, db.ImportKnownParams{TableName: f.table.name, FileSha256: sum}); err != nil {
		return fmt.Errorf("look for the file: %w", err)
	}
	return nil
}

func fileChanged(f file) error {
	return &FileError{File: f.path, Problem: "has changed while it was imported", Changed: true}
}

// refusal gives a line that the database refused its file.
func refusal(f file, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 || pg.Code[:2] != "PC" || pg.TableName != f.table.name || pg.ColumnName == "" {
		return fmt.Errorf("store: %w", err)
	}
	var line, refused int64
	if _, scanned := fmt.Sscanf(pg.Detail, "line=%d refused=%d", &line, &refused); scanned != nil {
		return fmt.Errorf("store: %w", err)
	}
	return &LineError{
		File: f.path, Table: f.table.name, Line: line, Field: pg.ColumnName, Code: pg.Code,
		Problem: strings.TrimPrefix(pg.Message, pg.ColumnName+": "),
	}
}

// recordFailure writes the failed run and its audit event, in a transaction of its own because that of the import
// is gone. It is as much as can be done: the import's own error goes first.
func (cfg *Config) recordFailure(ctx context.Context, f file, failure error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	code := jobs.Code(failure)
	text := f.table.name + ": " + code
	var bad *LineError
	if errors.As(failure, &bad) {
		code = bad.Code
		text = fmt.Sprintf("%s: line %d%s: %s", f.table.name, bad.Line, fieldPart(f.table.recorded(bad.Field)), code)
	}
	err := jobs.InContext(ctx, cfg.Database, cfg.scope(), func(tx pgx.Tx) error {
		queries := db.New()
		run, err := queries.StartRun(ctx, tx, db.StartRunParams{Job: "import"})
		if err != nil {
			return err
		}
		if err := queries.RefuseImport(ctx, tx, db.RefuseImportParams{TableName: f.table.name, ErrorCode: code}); err != nil {
			return err
		}
		return queries.FinishRun(ctx, tx, db.FinishRunParams{RunID: run, Status: "failed", Counts: json.RawMessage("{}"), Error: &text})
	})
	// Without a tenant or a right there is nothing to record it in, and the operator is told the same already.
	if err != nil && jobs.Code(err) != code {
		cfg.Log.Warn("failed import not recorded", "table", f.table.name, "error", jobs.Code(err))
	}
}
