package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/google/uuid"

	"pgcustody/jobs/segment"
)

const (
	// windows is the memory for leaves that are waited for.
	windows = 8 << 20
	// strayRows bounds how many rows without a leaf are kept, behind the horizon and
	// beyond it; strayBytes how much of what stands in them.
	strayRows  = 50_000
	strayBytes = 8 << 20
	// clockSlack is by how much the clocks of server and signer may differ.
	clockSlack = 5 * time.Minute
)

// leaf as the map places it.
type leaf struct {
	key   key
	index int64
	day   int32 // since 2000-01-01
	hash  Hash
}

// cursor walks over the leaves of a stretch.
type cursor struct {
	t         *tree
	stretch   *stretch
	next, end int64
	window    int
	leaves    []leaf
	buffer    []leaf // in which they are, but for those that were put in order
	keys      []byte
	hashes    []byte
}

// fill reads on until half a window of leaves waits, or the stretch ends. Leaves
// that are not in order are left out: what the map says of them is wrong, they would
// hold up those behind them, and they are found by their hash in the end.
func (c *cursor) fill() error {
	if len(c.leaves) > c.window/2 || c.next >= c.end {
		return nil
	}
	room := min(int64(c.window-len(c.leaves)), c.end-c.next)
	if c.buffer == nil {
		c.buffer = make([]leaf, c.window)
	}
	c.leaves = c.buffer[:copy(c.buffer, c.leaves)]
	if int64(len(c.keys)) < room*keyWidth {
		c.keys, c.hashes = make([]byte, room*keyWidth), make([]byte, room*int64(hashWidth))
	}
	n, err := c.t.keys.read(c.keys[:room*keyWidth], c.next)
	if err == nil {
		_, err = c.t.leaves.read(c.hashes[:n*int64(hashWidth)], c.next)
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("leaf %d is not in the temporary file", c.next)
	}
	sorted := true
	for i := range n {
		var l leaf
		l.key.xid = binary.BigEndian.Uint64(c.keys[i*keyWidth:])
		copy(l.key.id[:], c.keys[i*keyWidth+8:])
		l.day = int32(binary.BigEndian.Uint32(c.keys[i*keyWidth+24:])) //nolint:gosec // two's complement
		if l.key == (key{}) {
			continue // lost, or not in the map
		}
		l.index = c.next + i
		copy(l.hash[:], c.hashes[i*int64(hashWidth):])
		if k := len(c.leaves); k > 0 && c.leaves[k-1].key.compare(l.key) > 0 {
			sorted = false
		}
		c.leaves = append(c.leaves, l)
	}
	c.next += n
	if !sorted {
		c.leaves = longestAscending(c.leaves)
	}
	return nil
}

func (c *cursor) head() (*leaf, error) {
	for len(c.leaves) == 0 && c.next < c.end {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	if len(c.leaves) == 0 {
		return nil, nil
	}
	return &c.leaves[0], nil
}

func (c *cursor) pop() error {
	c.leaves = c.leaves[1:]
	return c.fill()
}

// longestAscending keeps as many leaves as are in order.
func longestAscending(leaves []leaf) []leaf {
	tails := []int{} // the last leaf of the best run of each length
	before := make([]int, len(leaves))
	for i := range leaves {
		at := sort.Search(len(tails), func(k int) bool { return leaves[tails[k]].key.compare(leaves[i].key) > 0 })
		before[i] = -1
		if at > 0 {
			before[i] = tails[at-1]
		}
		if at == len(tails) {
			tails = append(tails, i)
		} else {
			tails[at] = i
		}
	}
	kept := make([]leaf, len(tails))
	for k, i := len(tails)-1, tails[len(tails)-1]; k >= 0; k, i = k-1, before[i] {
		kept[k] = leaves[i]
	}
	return kept
}

// merge finds the leaf of each of a run of events that come in the order of their
// keys.
type merge struct {
	cursors []*cursor
	at      key
	group   []found // leaves of this key that are not taken
}

type found struct {
	leaf
	*stretch
}

func (t *tree) merge(stretches []stretch) *merge {
	m := &merge{}
	window := max(min(windows/max(len(stretches), 1)/(2*(keyWidth+hashWidth)), 8192), 64)
	for _, s := range stretches {
		m.cursors = append(m.cursors, &cursor{t: t, stretch: &s, next: s.from, end: s.to, window: window})
	}
	return m
}

// find returns the leaf of an event, or one with index -1.
func (m *merge) find(k key, hash *Hash) (found, error) {
	if k != m.at {
		m.at, m.group = k, m.group[:0]
		for _, c := range m.cursors {
			for {
				head, err := c.head()
				if err != nil {
					return found{}, err
				}
				if head == nil {
					break
				}
				order := head.key.compare(k)
				if order > 0 {
					break
				}
				if order == 0 {
					m.group = append(m.group, found{*head, c.stretch})
				}
				if err := c.pop(); err != nil {
					return found{}, err
				}
			}
		}
	}
	for i := range m.group {
		if m.group[i].hash == *hash {
			match := m.group[i]
			m.group = slices.Delete(m.group, i, i+1)
			return match, nil
		}
	}
	return found{leaf: leaf{index: -1}}, nil
}

// stray is a row whose leaf was not where the map puts it.
type stray struct {
	key      key
	hash     Hash
	occurred int64
	tenant   string
	entry    []byte // nil where there was no room
	paired   bool
}

// rows is what is known of the trail once all rows have passed.
type rows struct {
	seen     bitmap // leaves whose row is there
	archived bitmap // leaves whose entry is in the archive
	// behind the horizon, and beyond it: those that are waiting to be sealed, or
	// say so.
	behind, beyond       []stray
	behindMore, unsealed int64
	bytes                int
	horizon              uint64
	// latest is the time of the event that was recorded last.
	latest int64
	// times of the events of each tile, least and greatest.
	times [][2]int64
}

// stretchesOf lays the stretches over the tree, from one to the next.
func (c *check) stretchesOf(d *database) []stretch {
	t := &c.tree
	whole := []stretch{{from: 0, to: t.size, kind: "sealed", incarnation: d.head.incarnation}}
	if len(d.stretches) == 0 || len(d.stretches) > maxStretches {
		return whole
	}
	var laid []stretch
	if first := d.stretches[0].from; first > 0 {
		laid = append(laid, stretch{from: 0, to: min(first, t.size), kind: "sealed"})
	}
	for i, s := range d.stretches {
		s.to = t.size
		if i+1 < len(d.stretches) {
			s.to = min(d.stretches[i+1].from, t.size)
		}
		if s.from >= 0 && s.from < s.to {
			laid = append(laid, s)
		}
	}
	if len(laid) == 0 {
		return whole
	}
	return laid
}

func (c *check) readRows(ctx context.Context, d *database) error {
	c.setHorizon(d)
	c.report.Leaves = c.tree.size
	least := uint64(0)
	if c.Since != nil {
		var err error
		if least, err = c.leastXID(); err != nil {
			return err
		}
		c.report.From = c.from()
	}
	// By the index: what is sorted comes late, and waits on the server's disk.
	const byIndex = "set local enable_sort = off; set local enable_bitmapscan = off"
	if _, err := d.Exec(ctx, byIndex); err != nil {
		return err
	}
	f := c.feed(ctx, d, least)
	if f != nil {
		defer f.close(ctx)
		if _, err := f.sessions[1].Exec(ctx, byIndex); err != nil {
			return err
		}
	}
	found, counts := len(c.report.Findings), maps.Clone(c.report.Counts)
	read, err := c.readRowsOnce(ctx, d, f, least)
	if err != nil || c.Since != nil {
		return err
	}
	// An index can be made not to have a row. A plain scan has them all.
	if _, err := d.Exec(ctx, `set local enable_sort = on; set local enable_seqscan = on;
		set local enable_indexscan = off; set local enable_indexonlyscan = off`); err != nil {
		return err
	}
	var rows int64
	if err := d.QueryRow(ctx, "select count(*) from custody_data.audit_logs").Scan(&rows); err != nil || rows == read {
		return err
	}
	c.report.Findings, c.report.Counts = c.report.Findings[:found], counts
	c.find(Finding{Kind: RowsHidden, Object: "audit_logs", Detail: fmt.Sprintf("its index on xid has %d of %d rows: it was tampered with or is damaged; the rows were read without it", read, rows)})
	_, err = c.readRowsOnce(ctx, d, nil, least)
	return err
}

// readRowsOnce holds every row against the leaves, and returns how many there were.
func (c *check) readRowsOnce(ctx context.Context, d *database, f *feed, least uint64) (read int64, err error) {
	t := &c.tree
	c.rows = rows{seen: newBitmap(t.total), times: make([][2]int64, (t.size+tileWidth-1)/tileWidth), horizon: c.rows.horizon}
	r := &c.rows
	for i := range r.times {
		r.times[i] = [2]int64{math.MaxInt64, math.MinInt64}
	}
	c.report.Events = 0
	merge := t.merge(c.stretchesOf(d))
	if least > 0 {
		merge = t.mergeFrom(c.stretchesOf(d), key{xid: least})
	}
	dated := c.dating()
	var last key
	var buffer []byte
	var event row
	query := func(and string) string {
		if least > 0 {
			and += fmt.Sprintf(" and a.xid >= '%d'", least)
		}
		return "select " + columnList + " from custody_data.audit_logs a where true" + and + " order by a.xid, a.log_entry_id"
	}
	each := func(fields [][]byte) error {
		copy(event[:], fields)
		k, err := event.key()
		if err != nil {
			return err
		}
		if k.compare(last) < 0 {
			return fmt.Errorf("the server did not send rows in the order of xid and log_entry_id")
		}
		last = k
		buffer = appendEntry(append(buffer[:0], 0), &event)
		hash := sha256.Sum256(buffer)
		match, err := merge.find(k, &hash)
		if err != nil {
			return err
		}
		c.claims(&event)
		if match.index >= 0 {
			r.seen.set(match.index)
			c.report.Events++
			if match.day != dayOf(event.occurredAt()) {
				t.misplaced(match.index)
				c.find(Finding{Kind: MapChanged, Leaf: &match.index, Event: &k.id, Object: fmt.Sprintf("ledger_entries %d", match.index/tileWidth),
					Detail: "the map has it on another day, so that the archive would not take it with its own"})
			}
			times := &r.times[match.index/tileWidth]
			times[0], times[1] = min(times[0], event.occurredAt()), max(times[1], event.occurredAt())
			dated(&event, &match)
		} else {
			c.stray(k, &hash, &event, buffer[1:])
		}
		if read++; read%8192 == 0 {
			c.Show("events", read, t.size)
		}
		return nil
	}
	if f != nil {
		err = f.copyTo(ctx, columnCount, query, each)
	} else {
		err = d.copyTo(ctx, columnCount, query(""), each)
	}
	return read, err
}

// leastXID is the first transaction of which a row may be that of a leaf that was not
// verified yet, or wait for its leaf.
func (c *check) leastXID() (uint64, error) {
	least := c.Since.SealedTo
	err := c.tree.keys.each(c.from(), c.tree.size, func(_ int64, records []byte) error {
		for ; len(records) > 0; records = records[keyWidth:] {
			if xid := rawKey(records[:keyWidth]).xid; xid != 0 {
				least = min(least, xid)
			}
		}
		return nil
	})
	return least, err
}

// setHorizon decides up to which transaction every row must have its leaf: as the
// newest checkpoint says, or the head, whose word counts against the database.
func (c *check) setHorizon(d *database) {
	signed := uint64(0)
	if !c.tree.short && c.newest.incarnation == d.head.incarnation && !d.moved {
		signed = c.newest.sealedTo
		if d.head.sealedTo < signed {
			c.find(Finding{Kind: HeadChanged, Object: "ledger_heads",
				Detail: fmt.Sprintf("it says that all is sealed up to transaction %d; checkpoint %d was signed for %d", d.head.sealedTo, c.newest.number, signed)})
		}
	}
	c.rows.horizon = max(signed, d.head.sealedTo)
	if d.head.sealedTo > d.next && !d.moved {
		c.find(Finding{Kind: HeadChanged, Object: "ledger_heads",
			Detail: fmt.Sprintf("it says that all is sealed up to transaction %d, and the server has come to %d", d.head.sealedTo, d.next)})
		c.rows.horizon = signed
	}
	if d.moved {
		c.note("the server is another than the one that the newest incarnation was opened in: rows without a leaf wait for the sweep")
		c.rows.horizon = 0
	}
}

func (c *check) stray(k key, hash *Hash, event *row, entry []byte) {
	r := &c.rows
	s := stray{key: k, hash: *hash, occurred: event.occurredAt(), tenant: string(event[colTenantID])}
	list := &r.behind
	if k.xid >= r.horizon {
		r.unsealed++
		list = &r.beyond
	}
	if len(*list) >= strayRows {
		if list == &r.behind {
			r.behindMore++
		}
		return
	}
	if r.bytes+len(entry) <= strayBytes {
		r.bytes += len(entry)
		s.entry = bytes.Clone(entry)
	}
	*list = append(*list, s)
}

// dating tells of an event whether it says that it was recorded before a checkpoint,
// although its transaction had not begun then. That is before the checkpoint's own
// time, by the signer's clock, and before what was recorded last of all that it
// covers, by the server's: clocks that differ make no event late.
func (c *check) dating() func(event *row, match *found) {
	known := slices.Clone(c.checkpoints)
	slices.SortStableFunc(known, func(a, b checkpoint) int { return cmp.Compare(a.size, b.size) })
	bounds := make([]int64, 0, len(known)) // of those that cover no leaf from here on
	latest := int64(math.MinInt64)
	if c.Since != nil {
		latest = c.Since.Latest
	}
	return func(event *row, match *found) {
		recorded := micros(event[colRecordedAt])
		if match.kind != "sealed" || recorded == math.MinInt64 || recorded == math.MaxInt64 {
			return
		}
		for n := len(bounds); n < len(known) && known[n].size <= match.index; n++ {
			bounds = append(bounds, min(latest, micros2000(time.Unix(known[n].time, 0))))
		}
		latest = max(latest, recorded)
		c.rows.latest = latest
		// Of a transaction that was long at work the earlier ones tell.
		for i := len(bounds) - 1; i >= 0 && i > len(bounds)-64; i-- {
			cp := &known[i]
			if cp.size > match.index {
				continue
			}
			if cp.next == 0 || cp.incarnation != match.incarnation {
				return
			}
			if match.key.xid < cp.next {
				continue
			}
			// Before the first event that was sealed in its turn there is no bound.
			if bounds[i] != math.MinInt64 && recorded < bounds[i]-clockSlack.Microseconds() {
				c.find(Finding{Kind: Backdated, Leaf: &match.index, Event: &match.key.id, Checkpoint: &cp.number,
					Detail: "it says that it was recorded before the checkpoint, when its transaction had not begun"})
			}
			return
		}
	}
}

// segmentClaim is what the event says that records a segment.
type segmentClaim struct{ rows, bytes, stored int64 }

var (
	actionDrop        = []byte("partition.drop")
	actionSegment     = []byte("archive.segment")
	actionExpire      = []byte("archive.expire")
	actionIncarnation = []byte("incarnation.open")
	systemTenant      = []byte("system")
)

// claims takes over what an event says that was done to the trail. Events are what
// the tree vouches for; the records that say the same are held against them.
func (c *check) claims(event *row) {
	action := event[colAction]
	if len(action) < 14 || !bytes.Equal(event[colTenantID], systemTenant) {
		return
	}
	metadata := event[colMetadata]
	if len(metadata) > 0 {
		metadata = metadata[1:]
	}
	c.claim(action, string(event[colResourceID]), metadata)
}

func (c *check) claim(action []byte, resource string, metadata []byte) {
	switch {
	case bytes.Equal(action, actionDrop):
		c.drops[resource] = true
	case bytes.Equal(action, actionSegment):
		var said struct {
			Rows        int64 `json:"rows"`
			Bytes       int64 `json:"bytes"`
			StoredBytes int64 `json:"stored_bytes"`
		}
		if json.Unmarshal(metadata, &said) == nil {
			c.segmentEvents[resource] = segmentClaim{said.Rows, said.Bytes, said.StoredBytes}
		}
	case bytes.Equal(action, actionExpire):
		var said struct {
			Leaves segment.SHA256 `json:"leaves_sha256"`
		}
		if json.Unmarshal(metadata, &said) == nil {
			c.expire(resource, Hash(said.Leaves))
		}
	case bytes.Equal(action, actionIncarnation):
		var said struct {
			IncarnationID uuid.UUID `json:"incarnation_id"`
		}
		if json.Unmarshal(metadata, &said) == nil && said.IncarnationID != uuid.Nil {
			c.incarnationEvents[said.IncarnationID.String()] = true
		}
	}
}
