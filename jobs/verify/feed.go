package verify

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// rangeLeaves is about how many rows are asked for at once, where two sessions read.
var rangeLeaves int64 = 4096

// A session reads ahead as many chunks, which is more than such a range takes.
const chunkBytes, chunksAhead = 64 << 10, 32

// feed reads the rows of the trail in the order of their keys by two sessions of one
// snapshot: while those of one range are held against their leaves, the server gets
// those of the next ready.
type feed struct {
	sessions [2]*database
	// bounds are the transactions at which ranges end, ascending. They come from the map
	// and may be false: together the ranges are everything all the same.
	bounds []uint64
}

// rangeOf is the n-th range.
func (f *feed) rangeOf(n int) string {
	var and string
	if n > 0 {
		and = " and a.xid > '" + strconv.FormatUint(f.bounds[n-1], 10) + "'"
	}
	if n < len(f.bounds) {
		and += " and a.xid <= '" + strconv.FormatUint(f.bounds[n], 10) + "'"
	}
	return and
}

// copyTo streams a query's rows, whose text is that of query around each range.
func (f *feed) copyTo(ctx context.Context, columns int, query func(and string) string, each func(fields [][]byte) error) error {
	group, ctx := errgroup.WithContext(ctx)
	streams := make([]chan []byte, len(f.bounds)+1)
	for n := range streams {
		streams[n] = make(chan []byte, chunksAhead)
	}
	var used [2]chan []byte
	for s, session := range f.sessions {
		used[s] = make(chan []byte, chunksAhead)
		for range chunksAhead {
			used[s] <- nil
		}
		group.Go(func() error {
			for n := s; n < len(streams); n += 2 {
				w := &chunks{ctx: ctx, used: used[s], full: streams[n]}
				if _, err := session.Conn().PgConn().CopyTo(ctx, w, "copy ("+query(f.rangeOf(n))+") to stdout (format binary)"); err != nil {
					return err
				}
				if err := w.send(); err != nil {
					return err
				}
				close(streams[n])
			}
			return nil
		})
	}
	group.Go(func() error {
		for n, stream := range streams {
			reader := &copyReader{columns: columns, each: each}
			for ended := false; !ended; {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case chunk, more := <-stream:
					if ended = !more; ended {
						break
					}
					if _, err := reader.Write(chunk); err != nil {
						return err
					}
					used[n%2] <- chunk[:0]
				}
			}
			if err := reader.close(); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// chunks writes into chunks that were used before, and waits for one where the
// reader is behind.
type chunks struct {
	ctx        context.Context //nolint:containedctx // a writer's
	used, full chan []byte
	chunk      []byte
}

func (w *chunks) Write(p []byte) (int, error) {
	if w.chunk != nil && len(w.chunk)+len(p) > cap(w.chunk) {
		if err := w.send(); err != nil {
			return 0, err
		}
	}
	if w.chunk == nil {
		select {
		case w.chunk = <-w.used:
		case <-w.ctx.Done():
			return 0, w.ctx.Err()
		}
		if cap(w.chunk) < len(p) || cap(w.chunk) > 2*max(chunkBytes, len(p)) {
			w.chunk = make([]byte, 0, max(chunkBytes, len(p)))
		}
	}
	w.chunk = append(w.chunk, p...)
	return len(p), nil
}

func (w *chunks) send() error {
	if w.chunk == nil {
		return nil
	}
	select {
	case w.full <- w.chunk:
		w.chunk = nil
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// feed returns what reads the trail by two sessions; nil where it is short, or where
// there can be no second session: then one has to do.
func (c *check) feed(ctx context.Context, d *database, from uint64) *feed {
	t := &c.tree
	f := &feed{sessions: [2]*database{d}}
	record := make([]byte, keyWidth)
	for i := c.from() + rangeLeaves; i < t.size; i += rangeLeaves {
		if n, err := t.keys.read(record, i); err != nil || n == 0 {
			break
		}
		if xid := binary.BigEndian.Uint64(record); xid > from {
			f.bounds = append(f.bounds, xid)
		}
	}
	slices.Sort(f.bounds)
	f.bounds = slices.Compact(f.bounds)
	if len(f.bounds) == 0 {
		return nil
	}
	second, err := c.secondSession(ctx, d)
	if err != nil {
		c.note("rows were read by one session, which is slower: a second one: %v", err)
		return nil
	}
	f.sessions[1] = second
	return f
}

func (f *feed) close(ctx context.Context) {
	_ = f.sessions[1].Conn().Close(context.WithoutCancel(ctx))
}

// secondSession has the snapshot of the first, and its rights.
func (c *check) secondSession(ctx context.Context, d *database) (_ *database, err error) {
	var snapshot *string
	var role string
	if err := d.QueryRow(ctx, "select case when not pg_catalog.pg_is_in_recovery() then pg_catalog.pg_export_snapshot() end, current_user::text").Scan(&snapshot, &role); err != nil {
		return nil, err
	}
	if snapshot == nil {
		return nil, fmt.Errorf("a server in recovery hands out no snapshot")
	}
	conn, err := pgx.ConnectConfig(ctx, d.Conn().Config().Copy())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, err
	}
	for _, statement := range []string{
		"set transaction snapshot '" + *snapshot + "'",
		"set local role " + pgx.Identifier{role}.Sanitize(),
		// Whoever waits for the trail waits for the first session, and this one for him.
		"set local lock_timeout = '2s'",
		lockTrail,
		"set local lock_timeout = 0",
	} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return nil, err
		}
	}
	if err := c.settle(ctx, tx, nil); err != nil {
		return nil, err
	}
	return &database{Tx: tx}, nil
}
