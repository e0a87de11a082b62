package jobs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"
	"github.com/riverqueue/river"

	"pgcustody/db"
	"pgcustody/jobs/logship"
)

// SinksArgs asks for one shift of sending what was shipped to the sinks.
type SinksArgs struct{}

func (SinksArgs) Kind() string { return "sinks" }

func (SinksArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueSinks, MaxAttempts: 1}
}

// SinksWorker sends batches, and events of the trail, to each sink in its own time: a
// sink that fails keeps neither the others waiting nor the store.
type SinksWorker struct {
	river.WorkerDefaults[SinksArgs]
	Deps
	quiet quiet
}

func (w *SinksWorker) Timeout(*river.Job[SinksArgs]) time.Duration { return jobTimeout }

func (w *SinksWorker) Work(ctx context.Context, job *river.Job[SinksArgs]) error {
	begun := time.Now()
	for {
		counts, err := SendToSinks(ctx, w.Deps)
		w.Metrics.observe(Report{Job: "sinks", Status: "succeeded", EndedAt: time.Now(), Counts: counts})
		if err != nil {
			return recordFailure(ctx, &w.quiet, w.Deps, job, fail("send to sinks", err))
		}
		w.quiet.well()
		every := cmp.Or(w.Config.Schedule.Ship, 5*time.Second)
		if time.Since(begun)+every >= shipShift {
			return nil
		}
		select {
		case <-ctx.Done():
			return fail("send to sinks", ctx.Err())
		case <-w.Stopping:
			return nil
		case <-time.After(every):
		}
	}
}

// sinkChunk is about how much a sink is sent at once.
const sinkChunk = 512 << 10

// SendToSinks sends all sinks what they have not taken yet, and lets go what all have.
func SendToSinks(ctx context.Context, d Deps) (map[string]int64, error) {
	counts := map[string]int64{}
	var mu sync.Mutex
	var all error
	var group sync.WaitGroup
	names := []string{}
	for _, sink := range d.Config.Ship.Sinks {
		names = append(names, sink.Name())
		group.Go(func() {
			n, err := (&sending{Deps: d, sink: sink}).run(ctx)
			mu.Lock()
			defer mu.Unlock()
			counts["lines"] += n
			if err != nil {
				counts["failures"]++
				all = errors.Join(all, fail("send to "+sink.Name(), err))
			}
		})
	}
	group.Wait()
	err := InContext(ctx, d.Pool, d.scope(SystemTenant, "sinks"), func(tx pgx.Tx) error {
		_, err := db.New().TrimLogSpool(ctx, tx, db.TrimLogSpoolParams{Sinks: names, Source: d.Config.Ship.name()})
		return err
	})
	return counts, errors.Join(all, fail("trim spool", err))
}

// sending is the work for one sink.
type sending struct {
	Deps
	sink logship.Sink
	at   db.LogSinksRow
	sent int64
}

func (s *sending) tx(ctx context.Context, work func(pgx.Tx) error) error {
	return InContext(ctx, s.Pool, s.scope(SystemTenant, "sinks"), work)
}

func (s *sending) run(ctx context.Context) (int64, error) {
	err := s.tx(ctx, func(tx pgx.Tx) error {
		rows, err := db.New().LogSinks(ctx, tx)
		for _, row := range rows {
			if row.Sink == s.sink.Name() {
				s.at = row
			}
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	// Where it failed it is left alone for a while, longer each time.
	if s.at.Failures > 0 && s.at.FailedAt != nil && time.Since(*s.at.FailedAt) < min(time.Second<<min(s.at.Failures, 10), 5*time.Minute) {
		return 0, nil
	}
	if err := s.batches(ctx); err != nil {
		return s.sent, err
	}
	if s.Config.Ship.SinkTrail {
		return s.sent, s.trail(ctx)
	}
	return s.sent, nil
}

// batches sends what is in the spool from the sink's place on.
func (s *sending) batches(ctx context.Context) error {
	for !s.stopping() {
		var row db.LogSpoolRow
		err := s.tx(ctx, func(tx pgx.Tx) (err error) {
			row, err = db.New().LogSpool(ctx, tx, s.at.Batch)
			return err
		})
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if row.Number != s.at.Batch {
			s.at.Batch, s.at.Line = row.Number, 0
		}
		if err := s.batch(ctx, row.Compressed); err != nil {
			return err
		}
		// What comes behind it is next.
		s.at.Batch, s.at.Line = row.Number+1, 0
		if err := s.mark(ctx, 0, ""); err != nil {
			return err
		}
	}
	return nil
}

func (s *sending) batch(ctx context.Context, compressed []byte) error {
	r, err := zstd.NewReader(bytes.NewReader(compressed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	defer r.Close()
	lines := bufio.NewReaderSize(r, 64<<10)
	var chunk []byte
	var n, line int64
	flush := func() error {
		if n == 0 {
			return nil
		}
		if err := s.send(ctx, chunk, n); err != nil {
			return err
		}
		s.at.Line += n
		err := s.mark(ctx, n, "")
		chunk, n = chunk[:0], 0
		return err
	}
	for {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return flush()
		}
		if err != nil {
			return fmt.Errorf("read spool: %w", err)
		}
		if line++; line <= s.at.Line {
			continue
		}
		chunk = append(chunk, text...)
		if n++; len(chunk) >= sinkChunk {
			if err := flush(); err != nil {
				return err
			}
			line = s.at.Line
		}
	}
}

// send sends lines, and says in the sink's place that it would not take them.
func (s *sending) send(ctx context.Context, lines []byte, _ int64) error {
	err := s.sink.Send(ctx, lines)
	if err == nil {
		return nil
	}
	said := "failed"
	var known *logship.SinkError
	if errors.As(err, &known) {
		said = known.Said
	}
	return errors.Join(err, s.mark(ctx, 0, said))
}

func (s *sending) mark(ctx context.Context, n int64, failure string) error {
	err := s.tx(ctx, func(tx pgx.Tx) error {
		return db.New().MarkSink(ctx, tx, db.MarkSinkParams{Sink: s.sink.Name(), Batch: s.at.Batch, Line: s.at.Line, TrailLeaf: s.at.TrailLeaf, Sent: n, Error: optional(failure)})
	})
	s.sent += n
	return err
}

// trail sends the events that the ledger has sealed since, in the order of their leaves:
// each as the canonical entry that the archive has. The ledger's order misses none.
func (s *sending) trail(ctx context.Context) error {
	for !s.stopping() {
		var rows []db.SealedEntriesRow
		var size int64
		err := s.tx(ctx, func(tx pgx.Tx) (err error) {
			if size, err = db.New().LedgerSize(ctx, tx); err != nil {
				return err
			}
			rows, err = db.New().SealedEntries(ctx, tx, db.SealedEntriesParams{FromLeaf: s.at.TrailLeaf, ToLeaf: min(size, s.at.TrailLeaf+1024)})
			return err
		})
		if err != nil {
			return err
		}
		next := min(size, s.at.TrailLeaf+1024)
		if next <= s.at.TrailLeaf {
			return nil
		}
		var chunk []byte
		for _, row := range rows {
			chunk = append(append(chunk, row.Entry...), '\n')
		}
		if len(rows) > 0 {
			if err := s.send(ctx, chunk, int64(len(rows))); err != nil {
				return err
			}
		}
		s.at.TrailLeaf = next
		if err := s.mark(ctx, int64(len(rows)), ""); err != nil {
			return err
		}
	}
	return nil
}
