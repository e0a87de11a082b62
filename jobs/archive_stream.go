package jobs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"pgcustody/db"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/verify"
)

// A segment is streamed by chunks of its leaves: one connection reads of which
// events the leaves are (the ledger's map and tiles), others read their rows, each a
// chunk at a time, and what they have found right goes on in the order of the leaves.
// Every line is held against its leaf on the way, so that what reaches the store is
// what was sealed, or nothing does. Memory is bounded by the batches that are under
// way.
const (
	// chunkLeaves is how many leaves' rows are read by one statement. Rows of the map
	// are of one tile at most; mapRows is how many are asked for at first, mostRows
	// where they are of few leaves each.
	chunkLeaves       = 1024
	mapRows, mostRows = chunkLeaves / 256, chunkLeaves
	// readsAtOnce is the number of connections that read rows, batchBytes how much of
	// their lines is handed on at a time, and batchesAhead how many batches of a
	// chunk may wait for the chunk before.
	readsAtOnce  = 3
	batchBytes   = 128 << 10
	batchesAhead = 4
)

// eventKey is by what the ledger's map knows an event.
type eventKey struct {
	xid uint64
	id  uuid.UUID
}

func (k eventKey) compare(other eventKey) int {
	return cmp.Or(cmp.Compare(k.xid, other.xid), bytes.Compare(k.id[:], other.id[:]))
}

// leaf is one of a segment, with the event that the map has for it.
type leaf struct {
	eventKey
	index int64
	hash  segment.SHA256
}

// chunk is a stretch of a segment's leaves whose events ascend.
type chunk struct {
	leaves []leaf
	out    chan *batch
}

// batch is a run of lines, with line feeds, that were compared with their leaves.
type batch struct {
	lines       []byte
	hashes      []segment.SHA256
	people      []segment.SHA256 // of whom the lines are, but for who was met a moment ago
	first, last time.Time
}

func (b *batch) reset() *batch {
	b.lines, b.hashes, b.people = b.lines[:0], b.hashes[:0], b.people[:0]
	b.first, b.last = time.Time{}, time.Time{}
	return b
}

// streamer streams the lines of one segment.
type streamer struct {
	day   time.Time
	part  int
	begin func(context.Context, func(pgx.Tx) error) error // a transaction that rows are read in
	spare chan *batch
}

// stream calls take with all batches, in order. leaves is the transaction that the
// map is read in.
func (s *streamer) stream(ctx context.Context, leaves pgx.Tx, take func(*batch) error) error {
	s.spare = make(chan *batch, (readsAtOnce+1)*batchesAhead)
	group, ctx := errgroup.WithContext(ctx)
	toRead, inOrder := make(chan *chunk), make(chan *chunk, readsAtOnce)
	group.Go(func() error {
		defer close(toRead)
		defer close(inOrder)
		return s.readMap(ctx, leaves, func(c *chunk) error {
			for _, to := range []chan<- *chunk{inOrder, toRead} {
				if err := send(ctx, to, c); err != nil {
					return err
				}
			}
			return nil
		})
	})
	for range readsAtOnce {
		group.Go(func() error {
			return s.begin(ctx, func(tx pgx.Tx) error {
				return s.readRows(ctx, tx.Conn().PgConn(), toRead)
			})
		})
	}
	group.Go(func() error {
		for {
			c, ok, err := receive(ctx, inOrder)
			if err != nil || !ok {
				return err
			}
			for {
				b, ok, err := receive(ctx, c.out)
				if err != nil {
					return err
				}
				if !ok {
					break
				}
				if err := take(b); err != nil {
					return err
				}
				select {
				case s.spare <- b:
				default:
				}
			}
		}
	})
	return group.Wait()
}

func send[T any](ctx context.Context, to chan<- T, what T) error {
	select {
	case to <- what:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func receive[T any](ctx context.Context, from <-chan T) (what T, ok bool, err error) {
	select {
	case what, ok = <-from:
		return what, ok, nil
	case <-ctx.Done():
		return what, false, ctx.Err()
	}
}

// readMap reads the segment's leaves and gives them on in chunks.
func (s *streamer) readMap(ctx context.Context, tx pgx.Tx, give func(*chunk) error) error {
	next := int64(0)
	current := &chunk{}
	flush := func() error {
		if len(current.leaves) == 0 {
			return nil
		}
		current.out = make(chan *batch, batchesAhead)
		full := current
		current = &chunk{}
		return give(full)
	}
	for most := int32(mapRows); ; {
		rows, err := db.New().SegmentLeaves(ctx, tx, db.SegmentLeavesParams{
			Day: s.day.Format(time.DateOnly), Part: int32(s.part), FromLeaf: next, MaxSlices: most, //nolint:gosec // parts are few
		})
		if err != nil {
			return err
		}
		leaves := 0
		for _, row := range rows {
			n := len(row.Xids) / 8
			if row.FirstLeaf < next || n == 0 || len(row.Xids) != 8*n || len(row.EntryIds) != 16*n || len(row.Hashes) != 32*n {
				return fmt.Errorf("leaves from %d on are not of one length", row.FirstLeaf)
			}
			for i := range n {
				l := leaf{index: row.FirstLeaf + int64(i), hash: segment.SHA256(row.Hashes[32*i:])}
				l.xid, l.id = binary.BigEndian.Uint64(row.Xids[8*i:]), uuid.UUID(row.EntryIds[16*i:16*i+16])
				// Where another life of the database begins, or events were adopted, numbers start over.
				if k := len(current.leaves); k >= chunkLeaves || k > 0 && l.compare(current.leaves[k-1].eventKey) < 0 {
					if err := flush(); err != nil {
						return err
					}
				}
				if current.leaves == nil {
					current.leaves = make([]leaf, 0, chunkLeaves)
				}
				current.leaves = append(current.leaves, l)
			}
			next, leaves = row.FirstLeaf+int64(n), leaves+n
		}
		switch {
		case len(rows) < int(most):
			return flush()
		case leaves < chunkLeaves/2:
			most = min(2*most, mostRows)
		case leaves > chunkLeaves:
			most = max(most/2, mapRows)
		}
	}
}

// Rows are read in the order of the index on (xid, log_entry_id), in which the leaves
// are, by statements that are planned once a segment: to plan one costs as much as to
// read some hundreds of rows. The day stands in them, so that they know its partition.
// They are the raw columns: the server takes four times as long to write an entry as we
// do, and whether it is what was sealed its hash tells.
// An index scan to a pair of values goes on to the end of the first one's, which may
// be an import of millions: hence a statement of its own for one transaction's rows.
const (
	rowsOfDay = `
select %s
from custody_data.audit_logs e
where e.occurred_at >= '%s 00:00:00+00' and e.occurred_at < '%s 00:00:00+00' and %s
order by e.xid, e.log_entry_id`

	ofTransaction  = "pgcustody_rows_of_transaction"
	ofTransactions = "pgcustody_rows_of_transactions"
)

var rowsWhere = map[string]string{
	ofTransaction:  "e.xid = $1::xid8 and $3::xid8 = $1::xid8 and e.log_entry_id >= $2::uuid and e.log_entry_id <= $4::uuid",
	ofTransactions: "(e.xid, e.log_entry_id) >= ($1::xid8, $2::uuid) and (e.xid, e.log_entry_id) <= ($3::xid8, $4::uuid)",
}

// readRows reads the rows of chunks and gives their lines on in the order of their
// leaves.
func (s *streamer) readRows(ctx context.Context, conn *pgconn.PgConn, chunks <-chan *chunk) error {
	for name, where := range rowsWhere {
		query := fmt.Sprintf(rowsOfDay, strings.Join(verify.EntryColumns, ", "), s.day.Format(time.DateOnly), s.day.AddDate(0, 0, 1).Format(time.DateOnly), where)
		if _, err := conn.Prepare(ctx, name, query, nil); err != nil {
			return err
		}
		// The connection may be a pooler's, and the next one's before long.
		defer func() { _ = conn.Deallocate(context.WithoutCancel(ctx), name) }()
	}
	m := &matcher{ctx: ctx, streamer: s, hasher: segment.NewHasher(), members: segment.NewMembers()}
	for c := range chunks {
		if err := m.read(conn, c); err != nil {
			return err
		}
		close(c.out) // after an error the group's context ends who waits
	}
	return nil
}

var (
	binaryColumns = []int16{1} // all of them
	postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	errRowForm    = errors.New("the server sent something else than rows of the trail")
)

// eventRow is an event as Postgres sends it.
type eventRow struct {
	eventKey
	at time.Time
}

func decodeRow(columns [][]byte) (r eventRow, err error) {
	if len(columns) != len(verify.EntryColumns) {
		return r, errRowForm
	}
	id, at, xid := columns[0], columns[1], columns[len(columns)-1]
	if len(id) != 16 || len(at) != 8 || len(xid) != 8 {
		return r, errRowForm
	}
	r.id, r.xid = uuid.UUID(id), binary.BigEndian.Uint64(xid)
	// Microseconds since 2000.
	r.at = time.UnixMicro(postgresEpoch + int64(binary.BigEndian.Uint64(at))).UTC() //nolint:gosec // two's complement
	return r, nil
}

// matcher holds rows that come in the order of their keys against leaves in the
// same order.
type matcher struct {
	*streamer
	ctx     context.Context
	hasher  *segment.Hasher
	members *segment.Members

	chunk *chunk
	next  int    // leaf
	seen  bool   // whether a row of the next leaf's key came that was another
	out   *batch // being filled
	text  []byte // the entry of the row that is looked at
	// Leaves of one key are of events of several tenants, whose rows may come in
	// another order: those that came before their turn, by leaf.
	early map[int]earlyRow
}

type earlyRow struct {
	eventRow
	text []byte
}

// read reads the rows of a chunk. Those that are of no leaf of it are of other
// segments, or of none yet.
func (m *matcher) read(conn *pgconn.PgConn, c *chunk) error {
	m.chunk, m.next, m.seen = c, 0, false
	clear(m.early)
	first, last := c.leaves[0], c.leaves[len(c.leaves)-1]
	statement := ofTransactions
	if first.xid == last.xid {
		statement = ofTransaction
	}
	rows := conn.ExecPrepared(m.ctx, statement, [][]byte{
		strconv.AppendUint(nil, first.xid, 10), []byte(first.id.String()), strconv.AppendUint(nil, last.xid, 10), []byte(last.id.String()),
	}, nil, binaryColumns)
	for rows.NextRow() {
		columns := rows.Values()
		r, err := decodeRow(columns)
		if err == nil {
			err = m.row(r, columns)
		}
		if err != nil {
			_, _ = rows.Close() // reads what is left; the first error counts
			return err
		}
	}
	if _, err := rows.Close(); err != nil {
		return err
	}
	return m.end()
}

func (m *matcher) row(r eventRow, columns [][]byte) error {
	leaves := m.chunk.leaves
	for m.next < len(leaves) && leaves[m.next].compare(r.eventKey) < 0 {
		return m.missing()
	}
	if m.next == len(leaves) || leaves[m.next].compare(r.eventKey) > 0 {
		return nil
	}
	m.text = verify.AppendEntry(m.text[:0], columns)
	hash := m.hasher.Leaf(m.text)
	if hash == leaves[m.next].hash {
		if err := m.emit(r, m.text); err != nil {
			return err
		}
		for {
			waiting, ok := m.early[m.next]
			if !ok {
				return nil
			}
			delete(m.early, m.next)
			if err := m.emit(waiting.eventRow, waiting.text); err != nil {
				return err
			}
		}
	}
	for i := m.next + 1; i < len(leaves) && leaves[i].eventKey == r.eventKey; i++ {
		if _, taken := m.early[i]; hash == leaves[i].hash && !taken {
			if m.early == nil {
				m.early = map[int]earlyRow{}
			}
			m.early[i] = earlyRow{r, bytes.Clone(m.text)}
			return nil
		}
	}
	m.seen = true
	return nil
}

// emit gives the next leaf's line on.
func (m *matcher) emit(r eventRow, text []byte) error {
	if bytes.IndexByte(text, '\n') >= 0 {
		return fmt.Errorf("the entry of leaf %d holds a line feed", m.chunk.leaves[m.next].index)
	}
	entry, ok := segment.ParseEntry(text)
	if !ok {
		return fmt.Errorf("the entry of leaf %d is not of version 1", m.chunk.leaves[m.next].index)
	}
	if m.out != nil && len(m.out.lines)+len(text) >= cap(m.out.lines) {
		if err := m.flush(); err != nil {
			return err
		}
	}
	if m.out == nil {
		select {
		case b := <-m.spare:
			m.out = b.reset()
		default:
			m.out = &batch{lines: make([]byte, 0, batchBytes)}
		}
	}
	b := m.out
	b.lines = append(append(b.lines, text...), '\n')
	b.hashes = append(b.hashes, m.chunk.leaves[m.next].hash)
	b.people = m.members.Append(b.people, &entry)
	if b.first.IsZero() || r.at.Before(b.first) {
		b.first = r.at
	}
	if r.at.After(b.last) {
		b.last = r.at
	}
	m.next++
	m.seen = false
	return nil
}

func (m *matcher) flush() error {
	full := m.out
	m.out = nil
	return send(m.ctx, m.chunk.out, full)
}

func (m *matcher) end() error {
	if m.next < len(m.chunk.leaves) {
		return m.missing()
	}
	return m.flush()
}

// missing is the finding about the next leaf: its event is not in the trail as it
// was sealed.
func (m *matcher) missing() error {
	l := m.chunk.leaves[m.next]
	what := "is not in the trail"
	if m.seen {
		what = "is not in the trail as it was sealed"
	}
	return &ArchiveFinding{
		Object: fmt.Sprintf("day %s part %d", m.day.Format(time.DateOnly), m.part),
		What:   fmt.Sprintf("event %s of leaf %d %s", l.id, l.index, what),
		Do:     "nothing was recorded or dropped; run pgcustody verify, which says what was done to it",
	}
}
