package jobs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"pgcustody/db"
	"pgcustody/jobs/fault"
	"pgcustody/jobs/lean"
	"pgcustody/jobs/logship"
	"pgcustody/jobs/serverlog"
	"pgcustody/jobs/store"
)

// ShipArgs asks for one shift of shipping: what the server has logged goes into the
// store, and what is asked about into access_events.
type ShipArgs struct{}

func (ShipArgs) Kind() string { return "ship" }

// InsertOpts lets a second one in, as SealArgs does and for the same reason: the
// database lets one of them record a batch, and the other begins again behind it.
func (ShipArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueLogs, MaxAttempts: 1}
}

// shipShift is how long a job ships before the next one does, see sealShift.
const shipShift = 30 * time.Second

// ShipConfig says which log is shipped, and how.
type ShipConfig struct {
	// Source is the directory of the server's log, or "server": through the connection.
	// Empty: nothing is shipped.
	Source string
	// Name of the server in batches and findings; default "server".
	Name string
	// Encoder says what is believed, and what is passed on of statements and messages.
	Encoder serverlog.EncoderOptions
	// Location is log_timezone; nil asks the server.
	Location *time.Location
	// Sinks take the lines too, each in its own time.
	Sinks []logship.Sink
	// SinkTrail sends the sinks the events of the audit trail too, once they are sealed.
	SinkTrail bool
	// Accept as ArchiveConfig.Accept.
	Accept []string
}

func (c ShipConfig) name() string { return cmp.Or(c.Name, "server") }

// errNoLog says that nothing can be shipped as things are.
var errNoLog = errors.New("no log to ship")

// ShipWorker ships; like SealWorker it is always at work and records failures alone.
type ShipWorker struct {
	river.WorkerDefaults[ShipArgs]
	Deps
	quiet quiet
}

func (w *ShipWorker) Timeout(*river.Job[ShipArgs]) time.Duration { return jobTimeout }

func (w *ShipWorker) Work(ctx context.Context, job *river.Job[ShipArgs]) error {
	if ownQueue(job.Queue) {
		return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
			return fail("ship", ShipLogs(ctx, w.Deps, run.Count))
		})
	}
	begun := time.Now()
	late := begun.Sub(job.ScheduledAt) > shipShift
	for {
		counts := map[string]int64{}
		err := ShipLogs(ctx, w.Deps, func(name string, n int64) { counts[name] += n })
		if err != nil {
			return recordFailure(ctx, &w.quiet, w.Deps, job, fail("ship", err))
		}
		w.quiet.well()
		w.Metrics.observe(Report{Job: "ship", Status: "succeeded", EndedAt: time.Now(), Counts: counts, Bytes: counts["log_bytes"]})
		every := cmp.Or(w.Config.Schedule.Ship, 5*time.Second)
		if late || time.Since(begun)+every >= shipShift {
			return nil
		}
		select {
		case <-ctx.Done():
			return fail("ship", ctx.Err())
		case <-w.Stopping:
			return nil
		case <-time.After(every):
		}
	}
}

// ShipLogs ships all that the server has logged by now.
func ShipLogs(ctx context.Context, d Deps, count func(string, int64)) error {
	s := &shipping{Deps: d, config: d.Config.Ship, count: count}
	switch {
	case s.config.Source == "":
		return fmt.Errorf("%w: no source is configured", errNoLog)
	case d.Store == nil:
		return fmt.Errorf("%w: no store is configured", errNoLog)
	case len(d.Recipients.Keys) == 0:
		return fmt.Errorf("%w: no archive recipients are configured", errNoLog)
	}
	defer lean.Heap()()
	findings, err := d.Store.CheckSettings(ctx)
	if err == nil {
		err = store.Accept(findings, s.config.Accept)
	}
	if err != nil {
		return fail("check store", err)
	}
	if s.config.Source != "server" {
		return s.all(ctx, logship.Dir(s.config.Source))
	}
	// One session for all of the reading.
	return s.through(ctx, func(conn *pgxpool.Conn) error { return s.all(ctx, logship.Server{Conn: conn}) })
}

func (d Deps) through(ctx context.Context, work func(*pgxpool.Conn) error) error {
	conn, err := d.Pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Release()
	return work(conn)
}

// shipping is one run.
type shipping struct {
	Deps
	config ShipConfig
	// database is whose reads are looked for in the log.
	database string
	count    func(string, int64)

	known  bool // whether the log has been shipped before
	format serverlog.Format
	place  logship.Place
	last   time.Time
	state  *logship.State
	memory logship.Memory
	// sent are the stretches on their way into store and database, the oldest first.
	sent []*transit
}

func (s *shipping) all(ctx context.Context, src logship.Source) error {
	if err := s.ask(ctx); err != nil {
		return fail("read log_timezone", err)
	}
	for tries := 0; ; {
		if s.state == nil {
			if err := s.load(ctx, src); err != nil || s.state == nil {
				return fail("read place", err)
			}
		}
		more, err := s.step(ctx, src)
		end := err != nil || !more || s.stopping()
		if end {
			// What came before is what failed first.
			err = cmp.Or(s.wait(0), err)
		}
		if err != nil {
			s.state = nil
			// Another run was faster.
			if refused(err, db.ErrLogMoved) && tries < 3 {
				tries++
				continue
			}
			return err
		}
		if end {
			return nil
		}
	}
}

func (s *shipping) tx(ctx context.Context, work func(pgx.Tx) error) error {
	return InContext(ctx, s.Pool, s.scope(SystemTenant, "ship"), work)
}

// ask reads what the server's log has to be read by.
func (s *shipping) ask(ctx context.Context) error {
	return s.tx(ctx, func(tx pgx.Tx) error {
		log, err := db.New().ServerLog(ctx, tx)
		if err != nil {
			return err
		}
		s.database = log.Database
		if s.config.Location == nil {
			// A zone of the server's that this machine does not know leaves times that have no offset unknown.
			s.config.Location, _ = time.LoadLocation(log.Zone)
		}
		return nil
	})
}

// load reads how far the log has been shipped; the state is nil where there is none.
func (s *shipping) load(ctx context.Context, src logship.Source) error {
	var row db.LogSourceRow
	err := s.tx(ctx, func(tx pgx.Tx) (err error) {
		row, err = db.New().LogSource(ctx, tx, s.config.name())
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		files, err := src.List(ctx)
		if err != nil {
			return err
		}
		var ok bool
		if s.format, ok = logship.Choose(files); !ok {
			return nil
		}
		s.known, s.place, s.last = false, logship.Place{}, time.Time{}
		s.state, err = logship.ParseState(nil)
		return err
	case err != nil:
		return err
	}
	s.known, s.format = true, serverlog.JSON
	if row.Format == logship.FormatName(serverlog.CSV) {
		s.format = serverlog.CSV
	}
	s.place = logship.Place{File: row.FileName, FilePlace: serverlog.FilePlace{Offset: row.FileOffset}}
	copy(s.place.Head[:], row.FileHead)
	copy(s.place.Tail[:], row.FileTail)
	s.last = time.Time{}
	if row.LastLineAt != nil {
		s.last = *row.LastLineAt
	}
	s.state, err = logship.ParseState(row.State)
	return err
}

// stretch is what one step ships.
type stretch struct {
	region   logship.Region
	file     string // that the region is of
	from, to int64  // of it
	next     logship.Place
	findings []logship.Finding
}

// step ships at most one region, and tells whether there is more.
func (s *shipping) step(ctx context.Context, src logship.Source) (more bool, err error) {
	at, err := logship.Locate(ctx, src, s.format, s.place, s.last, s.state)
	if err != nil || at == nil {
		return false, fail("find log", err)
	}
	defer func() { _ = at.File.Close() }()
	from := at.Place.Offset
	for size := int64(logship.RegionBytes); ; size *= 2 {
		to := min(from+size, at.Size)
		region := logship.Region{Format: s.format, From: from, To: to}
		if size == logship.RegionBytes {
			if err := s.memory.Load(at.File, from, to); err != nil {
				return false, fail("read log", err)
			}
			region.Data, region.To = &s.memory, from+int64(len(s.memory.Data))
		} else {
			region.Data = at.File // one record, longer than what is held in memory
		}
		if region.To < to {
			return false, nil // it shrinks: the next run says so
		}
		done, err := s.ship(ctx, src, at, &stretch{region: region, file: at.Place.File, from: from, to: to, findings: at.Findings})
		if err != nil || done {
			return done && (to < at.Size || at.Complete), err
		}
		if to < at.Size {
			continue
		}
		// What is left has no end.
		if at.Complete && from < at.Size {
			return s.rest(ctx, src, at)
		}
		// The place may have moved without lines.
		if at.Place.File != s.place.File || at.Place.Offset != s.place.Offset || len(at.Findings) > 0 || !s.known {
			return false, s.record(ctx, &stretch{next: at.Place, findings: at.Findings}, nil, nil, nil)
		}
		return false, nil
	}
}

// rest ships the end of a file that ends within a record: with the beginning of the
// next file where that makes it whole, else as cut. While the next file may still bring
// what is missing it waits.
func (s *shipping) rest(ctx context.Context, src logship.Source, at *logship.Position) (more bool, err error) {
	tail := make([]byte, min(at.Size-at.Place.Offset, maxTail))
	if _, err := at.File.ReadAt(tail, at.Place.Offset); err != nil && !errors.Is(err, io.EOF) {
		return false, fail("read log", err)
	}
	part := &stretch{
		region: logship.Region{Format: s.format, Data: at.File, From: at.Place.Offset, To: at.Size, Complete: true},
		file:   at.Place.File, from: at.Place.Offset, to: at.Size, findings: at.Findings,
	}
	if at.Next != "" && at.Size-at.Place.Offset <= maxTail {
		next, err := src.Open(ctx, at.Next)
		if err != nil {
			return false, fail("open log", err)
		}
		defer next.Close()
		head := make([]byte, maxTail)
		n, err := next.ReadAt(head, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fail("read log", err)
		}
		end, open := joins(s.format, tail, head[:n])
		if open && at.Newest && n < maxTail {
			return false, nil
		}
		if end > 0 {
			mark, err := serverlog.MarkFile(next, end)
			if err != nil {
				return false, fail("mark log", err)
			}
			joined := append(tail, head[:end]...) //nolint:gocritic // the tail is needed no more
			part.region = logship.Region{Format: s.format, Data: &logship.Memory{Data: joined}, To: int64(len(joined)), Complete: true}
			part.next = logship.Place{File: at.Next, FilePlace: mark}
			if ended, err := serverlog.MarkFile(at.File, at.Size); err == nil {
				s.state.Finish(logship.Place{File: at.Place.File, FilePlace: ended})
			}
		}
	}
	_, err = s.ship(ctx, src, at, part)
	return true, err
}

const maxTail = 4 << 20

// joins tells where in head the record ends that begins with tail, 0 where the two are
// none; open, that neither has ended yet.
func joins(format serverlog.Format, tail, head []byte) (end int64, open bool) {
	read := func(src io.Reader) (ends int64, open bool) {
		reader := serverlog.NewReader(src, serverlog.Options{Format: format})
		var r serverlog.Record
		err := reader.Next(&r)
		if err == nil && r.Start == 0 {
			return r.End, false
		}
		return 0, err != nil && reader.Offset() == 0
	}
	// A head that is a record by itself ends nothing.
	if alone, _ := read(bytes.NewReader(head)); alone > 0 {
		return 0, false
	}
	end, open = read(io.MultiReader(bytes.NewReader(tail), bytes.NewReader(head)))
	return max(end-int64(len(tail)), 0), open
}

// ship makes a batch of a stretch and has it put into the store and recorded. It returns
// false where the stretch has no record's end.
func (s *shipping) ship(ctx context.Context, _ logship.Source, at *logship.Position, part *stretch) (bool, error) {
	object, err := logship.NewObject(s.Recipients.Keys, len(s.config.Sinks) > 0)
	if err != nil {
		return false, fail("begin batch", err)
	}
	batch, err := logship.Build(part.region, s.state, logship.Options{
		Encoder: s.config.Encoder, Location: s.config.Location, Database: s.database,
		Ours: func(messages, sessions []string) (string, error) { return s.ours(ctx, messages, sessions) },
	}, object.Write)
	if err = errors.Join(err, object.Close()); err != nil {
		return false, fail("read log", err)
	}
	if batch.End == part.region.From {
		return false, nil
	}
	if part.next.File == "" {
		mark, err := serverlog.MarkFile(at.File, batch.End)
		if err != nil {
			return false, fail("mark log", err)
		}
		part.next, part.to = logship.Place{File: part.file, FilePlace: mark}, batch.End
	}
	part.findings = append(part.findings, batch.Findings...)
	s.count("log_bytes", batch.Bytes)
	for name, n := range batch.Counts {
		s.count("lines_"+name, n)
	}
	for _, f := range part.findings {
		s.count("findings_"+f.Kind, f.N)
	}
	if batch.Lines == 0 {
		return true, s.record(ctx, part, batch, nil, nil)
	}
	m := &logship.Manifest{
		Version: 1, Source: s.config.name(), Format: logship.FormatName(s.format), File: part.file, From: part.from, To: part.to,
		SHA256: object.Sums.Stored, Compressed: object.Sums.Compressed, Lines: batch.Lines, Bytes: batch.Bytes, StoredBytes: int64(object.Stored.Len()),
		Counts: batch.Counts, Recipients: s.Recipients.Text,
	}
	if !batch.First.IsZero() {
		m.First, m.Last = &batch.First, &batch.Last
	}
	return true, s.record(ctx, part, batch, object, m)
}

// ours asks which messages are lines of the schema.
func (s *shipping) ours(ctx context.Context, messages, sessions []string) (ours string, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) (err error) {
		ours, err = db.New().LinesAreOurs(ctx, tx, db.LinesAreOursParams{Messages: messages, Sessions: sessions})
		return err
	})
	return ours, fail("check own lines", err)
}

// transit is a stretch on its way: first into the store, behind the one before it, then,
// once that one is recorded, into the database.
type transit struct {
	// behind gets the batch that the next one goes behind, nil where the database is to say;
	// it is closed where nothing may.
	behind chan *lastBatch
	// done is closed when it is recorded, or will not be.
	done                 chan struct{}
	batches, rows, taken int64
	err                  error
}

// lastBatch is what the manifest of a batch says of the one before.
type lastBatch struct {
	number int64
	digest logship.SHA256
}

// onTheWay is how many stretches may be: one into the store, and one into the database.
const onTheWay = 2

var errBefore = errors.New("the batch before failed")

// record hands a stretch over: it goes into store and database while the next ones are
// read, as if it were there. One after the other: so batches keep their order. That it
// failed is said by a later call, or by wait, and nothing behind it is recorded; an object
// that is in the store by then is passed over by the next run.
func (s *shipping) record(ctx context.Context, part *stretch, batch *logship.Batch, object *logship.Object, m *logship.Manifest) error {
	if part.next.Offset == 0 {
		part.next.Head, part.next.Tail = sha256.Sum256(nil), sha256.Sum256(nil)
	}
	said := map[string]any{
		"source": s.config.name(), "format": logship.FormatName(s.format), "file_name": part.next.File, "to_offset": part.next.Offset,
		"to_head": hex.EncodeToString(part.next.Head[:]), "to_tail": hex.EncodeToString(part.next.Tail[:]), "findings": append([]logship.Finding{}, part.findings...),
	}
	if s.known {
		said["from_file"], said["from_offset"] = s.place.File, s.place.Offset
	}
	if batch != nil && !batch.Last.IsZero() {
		said["first_occurred_at"], said["last_occurred_at"] = batch.First, batch.Last
	}
	state, err := s.state.Marshal()
	if err != nil {
		return fail("write state", err)
	}
	if err := s.wait(onTheWay - 1); err != nil {
		return err
	}
	next := &transit{behind: make(chan *lastBatch, 1), done: make(chan struct{})}
	var before *transit
	if len(s.sent) > 0 {
		before = s.sent[len(s.sent)-1]
	}
	s.sent = append(s.sent, next)
	go func() {
		defer close(next.done)
		next.err = s.send(ctx, next, before, said, state, batch, object, m)
	}()
	s.known, s.place = true, part.next
	if batch != nil && batch.Last.After(s.last) {
		s.last = batch.Last
	}
	return nil
}

func (s *shipping) send(ctx context.Context, r, before *transit, said map[string]any, state []byte, batch *logship.Batch, object *logship.Object, m *logship.Manifest) error {
	defer close(r.behind)
	var last *lastBatch
	if before != nil {
		var ok bool
		if last, ok = <-before.behind; !ok {
			return errBefore
		}
	}
	last, err := s.put(ctx, said, object, m, last, r)
	if err == nil {
		r.behind <- last
	}
	if before != nil {
		if <-before.done; before.err != nil {
			return errBefore
		}
	}
	for tries := 1; ; tries++ {
		if err == nil {
			err = s.commit(ctx, said, state, batch, object, m, r)
		}
		// The shipping of another source took the number.
		if tries == 20 || !refused(err, db.ErrLogChain) {
			return err
		}
		_, err = s.put(ctx, said, object, m, nil, r)
	}
}

// wait waits until no more than n stretches are on their way. After an error none is.
func (s *shipping) wait(n int) (err error) {
	for len(s.sent) > n || err != nil && len(s.sent) > 0 {
		r := s.sent[0]
		s.sent = s.sent[1:]
		<-r.done
		for name, n := range map[string]int64{"batches": r.batches, "events": r.rows, "numbers_taken": r.taken} {
			if n > 0 {
				s.count(name, n)
			}
		}
		err = cmp.Or(err, r.err)
	}
	return err
}

// put writes object and manifest of a batch, where there is one, behind the last one, and
// says so; where none is given the database says which is the last. It returns what the
// next one goes behind.
func (s *shipping) put(ctx context.Context, said map[string]any, object *logship.Object, m *logship.Manifest, behind *lastBatch, r *transit) (*lastBatch, error) {
	if object == nil {
		return behind, nil
	}
	err := s.tx(ctx, func(tx pgx.Tx) error {
		if behind == nil {
			last, err := db.New().LastLogBatch(ctx, tx)
			if err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			behind = &lastBatch{number: last.Number}
			copy(behind.digest[:], last.ManifestSha256)
		}
		var err error
		m.RetainUntil, err = db.New().ShippedLogsUntil(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fail("number batch", err)
	}
	m.Number, m.Previous = behind.number+1, behind.digest
	m.RetainUntil = m.RetainUntil.UTC()
	var manifestKey string
	for attempt := 1; ; attempt++ {
		m.ObjectKey, manifestKey = logship.Keys(m.Number, attempt)
		fault.Point("before put batch")
		_, err := s.Store.Put(ctx, m.ObjectKey, bytes.NewReader(object.Stored.Bytes()), store.PutOptions{
			RetainUntil: m.RetainUntil, ContentType: "application/octet-stream", IfNoneMatch: true,
		})
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrExists) || attempt == 1000 {
			return nil, fail("put batch", err)
		}
		r.taken++
	}
	fault.Point("after put batch")
	document, err := m.Document()
	if err != nil {
		return nil, fail("write manifest", err)
	}
	_, err = s.Store.Put(ctx, manifestKey, bytes.NewReader(document), store.PutOptions{RetainUntil: m.RetainUntil, ContentType: "application/json", IfNoneMatch: true})
	if err != nil {
		return nil, fail("put manifest", err)
	}
	fault.Point("after put manifest")
	digest := sha256.Sum256(document)
	for name, value := range map[string]any{
		"number": m.Number, "batch_file": m.File, "batch_from": m.From, "batch_to": m.To, "object_key": m.ObjectKey, "manifest_key": manifestKey,
		"sha256": m.SHA256, "compressed_sha256": m.Compressed, "manifest_sha256": hex.EncodeToString(digest[:]), "previous_sha256": m.Previous,
		"lines": m.Lines, "bytes": m.Bytes, "stored_bytes": m.StoredBytes, "counts": m.Counts, "retain_until": m.RetainUntil,
	} {
		said[name] = value
	}
	return &lastBatch{m.Number, digest}, nil
}

// commit moves the place, with the batch and its rows where there are any.
func (s *shipping) commit(ctx context.Context, said map[string]any, state []byte, batch *logship.Batch, object *logship.Object, m *logship.Manifest, r *transit) error {
	document, err := json.Marshal(said)
	if err != nil {
		return fail("write batch", err)
	}
	var spool []byte
	if object != nil && len(s.config.Sinks) > 0 {
		spool = object.Spool.Bytes()
	}
	fault.Point("before record batch")
	var rows int64
	err = s.tx(ctx, func(tx pgx.Tx) error {
		queries := db.New()
		if err := queries.RecordLogBatch(ctx, tx, db.RecordLogBatchParams{Batch: document, State: state, Spool: spool}); err != nil {
			return err
		}
		if object == nil {
			return nil
		}
		for _, piece := range batch.Rows {
			piece.Batch = m.Number
			n, err := queries.AddAccessEvents(ctx, tx, *piece)
			if err != nil {
				return err
			}
			rows += n
		}
		fault.Point("within record batch")
		return nil
	})
	if err != nil {
		return fail("record batch", err)
	}
	fault.Point("after record batch")
	if r.rows = rows; object != nil {
		r.batches = 1
		s.Log.Debug("shipped", "job", "ship", "batch", m.Number, "lines", m.Lines, "bytes", m.Bytes)
	}
	for _, f := range said["findings"].([]logship.Finding) { //nolint:forcetypeassert // record put it there
		s.Log.Warn("finding in the server's log", "job", "ship", "source", s.config.name(), "kind", f.Kind, "occurrences", f.N)
	}
	return nil
}
