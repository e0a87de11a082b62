package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/google/uuid"
)

// resolve names what did not fit: rows without a leaf and leaves without a row.
func (c *check) resolve(ctx context.Context, d *database) error {
	if err := c.pair(d); err != nil {
		return err
	}
	if err := c.explainMissing(d); err != nil {
		return err
	}
	c.explainStrays(d)
	c.checkBounds()
	return ctx.Err()
}

// pair finds leaves by their hash: a row whose leaf is there, but not where the map
// puts it, was not changed.
func (c *check) pair(d *database) error {
	t, r := &c.tree, &c.rows
	byHash := map[Hash][]*stray{}
	for _, list := range [][]stray{r.behind, r.beyond} {
		for i := range list {
			byHash[list[i].hash] = append(byHash[list[i].hash], &list[i])
		}
	}
	if len(byHash) == 0 {
		return nil
	}
	keys := make([]byte, 4096*keyWidth)
	disordered, first := int64(0), int64(0)
	err := t.leaves.each(0, t.total, func(from int64, records []byte) error {
		n, err := t.keys.read(keys[:min(int64(len(records)/hashWidth), max(t.size-from, 0))*keyWidth], from)
		if err != nil {
			return err
		}
		for i := int64(0); i < int64(len(records)/hashWidth); i++ {
			index := from + i
			hash := Hash(records[i*int64(hashWidth) : (i+1)*int64(hashWidth)])
			waiting := byHash[hash]
			if len(waiting) == 0 || r.seen.has(index) {
				continue
			}
			s := waiting[0]
			byHash[hash] = waiting[1:]
			s.paired = true
			if s.key.xid >= r.horizon {
				r.unsealed--
			}
			r.seen.set(index)
			c.report.Events++
			switch {
			case index >= t.size, t.unmapped.has(index), i >= n:
				// Set back, or the map's tile is named already.
			case rawKey(keys[i*keyWidth:(i+1)*keyWidth]) != s.key:
				t.misplaced(index)
				c.find(Finding{Kind: MapChanged, Leaf: &index, Event: &s.key.id, Object: fmt.Sprintf("ledger_entries %d", index/tileWidth),
					Detail: "the leaf is this event's, and the map says that it is another's"})
			case slices.ContainsFunc(c.stretchesOf(d), func(s stretch) bool { return s.kind == kindLost && index >= s.from && index < s.to }):
				// As they were in the bucket, whatever their stretches were then.
			default:
				if disordered == 0 {
					first = index
				}
				disordered++
			}
		}
		return nil
	})
	if err == nil && disordered > 0 && c.report.Counts[MapChanged] == 0 {
		c.find(Finding{Kind: StretchesChanged, Leaf: &first, Object: "ledger_stretches",
			Detail: fmt.Sprintf("%d leaves are not in the order of the stretch that they are said to be in: a stretch's record was removed or changed", disordered)})
	}
	return err
}

// explainMissing looks at every leaf whose row has not been seen.
func (c *check) explainMissing(d *database) error {
	t, r, a := &c.tree, &c.rows, &c.archive
	byID, byXID := map[uuid.UUID][]*stray{}, map[uint64][]*stray{}
	for _, list := range [][]stray{r.behind, r.beyond} {
		for i := range list {
			s := &list[i]
			if !s.paired {
				byID[s.key.id] = append(byID[s.key.id], s)
				byXID[s.key.xid] = append(byXID[s.key.xid], s)
			}
		}
	}
	kept := map[int64]key{} // archived leaves whose partition was not dropped
	for partition, month := range a.gone {
		if c.drops[partition] {
			continue
		}
		for _, l := range month.leaves {
			if kept[l.index] = l.key; l.key == (key{}) {
				kept[l.index] = a.keys[l.index]
			}
		}
		if more := month.count - int64(len(month.leaves)); more > 0 {
			c.report.Counts[RowMissing] += more
			c.note("%d more events of %s have no row, though the archive holds them and no event says that the partition was dropped", more, partition)
		}
	}

	var lost spans
	for _, s := range c.lostStretches(d) {
		lost.add(s.from, s.to)
	}
	var runs []*Finding // runs of lost leaves
	raw := make([]byte, keyWidth)
	for index := c.from(); index < t.size; index++ {
		if index&63 == 0 && r.seen[index>>6] == ^uint64(0) {
			index += 63
			continue
		}
		if r.seen.has(index) || t.holes.has(index) {
			continue
		}
		if _, err := t.keys.read(raw, index); err != nil {
			return err
		}
		k := rawKey(raw)
		unmapped := t.unmapped.has(index)
		var hash Hash
		if _, err := t.leaves.read(hash[:], index); err != nil {
			return err
		}
		if !unmapped && k != (key{}) {
			s, fields := c.recognise(k, &hash, byID, byXID)
			if s != nil {
				s.paired = true
				if s.key.xid >= r.horizon {
					r.unsealed--
				}
				if entry := a.entries[index]; entry != nil && s.entry != nil {
					fields = differingFields(entry, s.entry)
				}
				c.find(Finding{Kind: RowChanged, Leaf: &index, Event: &k.id, Fields: fields, Detail: c.anchoredDetail("its row is not what was sealed", index)})
				continue
			}
		}
		known, isKept := kept[index]
		switch {
		case r.archived.has(index) && !isKept:
			// Its month left Postgres, or a note counts it.
		case r.archived.has(index):
			c.find(Finding{Kind: RowMissing, Leaf: &index, Event: eventOf(known), Detail: "it has no row; the archive holds the entry, and no event says that the partition was dropped"})
		case k == key{} && !unmapped && lost.has(index):
			if n := len(runs); n > 0 && *runs[n-1].Last == index-1 {
				*runs[n-1].Last = index
				continue
			}
			from, to := index, index
			runs = append(runs, &Finding{Kind: LeavesLost, Leaf: &from, Last: &to,
				Detail: "taken over from the bucket without their events, when the database had been set back"})
		default:
			c.find(Finding{Kind: RowMissing, Leaf: &index, Event: eventOf(k), Detail: c.anchoredDetail("it has no row, and the archive does not hold the entry", index)})
		}
	}
	for _, run := range runs {
		if slices.ContainsFunc(c.KnownLost, func(l Leaves) bool { return l.First <= *run.Leaf && *run.Last <= l.Last }) {
			c.note("leaves %d to %d are lost, as is known: %s", *run.Leaf, *run.Last, run.Detail)
			continue
		}
		c.find(*run)
	}
	return nil
}

func eventOf(k key) *uuid.UUID {
	if k.id == uuid.Nil {
		return nil
	}
	return &k.id
}

func (c *check) anchoredDetail(text string, index int64) string {
	if index >= c.tree.anchored {
		return text + "; the leaf is not anchored yet"
	}
	return text
}

// recognise finds the row that a leaf's event has become. Of two members the map
// tells what they were: put back, they make the leaf's hash, which proves it.
func (c *check) recognise(k key, hash *Hash, byID map[uuid.UUID][]*stray, byXID map[uint64][]*stray) (*stray, []string) {
	for _, s := range byID[k.id] {
		if !s.paired && s.key == k {
			return s, nil
		}
	}
	was := func(s *stray, member, now, then string) bool {
		i := bytes.LastIndex(s.entry, []byte(`"`+member+`":"`+now+`"`))
		if member != "xid" {
			i = bytes.Index(s.entry, []byte(`"`+member+`":"`+now+`"`))
		}
		if i < 0 {
			return false
		}
		i += len(member) + 4
		entry := slices.Concat([]byte{0}, s.entry[:i], []byte(then), s.entry[i+len(now):])
		return sha256.Sum256(entry) == *hash
	}
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	for _, s := range byID[k.id] {
		if !s.paired && was(s, "xid", number(s.key.xid), number(k.xid)) {
			return s, []string{"xid"}
		}
	}
	for _, s := range byXID[k.xid] {
		if !s.paired && was(s, "log_entry_id", s.key.id.String(), k.id.String()) {
			return s, []string{"log_entry_id"}
		}
	}
	// The id alone: more than one column was changed, its xid among them.
	for _, s := range byID[k.id] {
		if !s.paired {
			return s, []string{"xid"}
		}
	}
	return nil, nil
}

// lostStretches are the leaves that the database may say are lost: it lived in
// another incarnation when they were anchored. What it says for the time in which
// they were its own does not count.
func (c *check) lostStretches(d *database) (lost []stretch) {
	for _, s := range c.stretchesOf(d) {
		if s.kind != kindLost {
			continue
		}
		before, since := false, s.incarnation == d.head.incarnation
		for i := range c.checkpoints {
			known := &c.checkpoints[i]
			before = before || known.incarnation != s.incarnation && known.size >= s.to
			since = since || known.incarnation == s.incarnation
		}
		if before && since {
			lost = append(lost, s)
		}
	}
	return lost
}

// lostWith tells whether what was on record of a tree of that size, in an
// incarnation, was lost with leaves that the bucket gave back.
func (c *check) lostWith(d *database, size int64, incarnation uuid.UUID) bool {
	return slices.ContainsFunc(c.lostStretches(d), func(s stretch) bool {
		return size >= s.from && size <= s.to && incarnation != s.incarnation
	})
}

// explainStrays says what a row is that nothing explains.
func (c *check) explainStrays(d *database) {
	r := &c.rows
	for i := range r.behind {
		s := &r.behind[i]
		if s.paired {
			continue
		}
		kind, detail := RowInserted, fmt.Sprintf("a row of transaction %d that was never sealed, and all up to %d is: it was put in, or a restore brought it", s.key.xid, r.horizon)
		if s.key.xid >= d.next && !d.moved {
			kind, detail = XIDBeyond, fmt.Sprintf("a row of transaction %d, and the server has come to %d", s.key.xid, d.next)
		}
		c.find(Finding{Kind: kind, Event: &s.key.id, Detail: detail})
	}
	if r.behindMore > 0 {
		c.report.Counts[RowInserted] += r.behindMore
		c.note("%d more rows have no leaf; they were not looked into, and some may be changed ones that are named as missing", r.behindMore)
	}
	for i := range r.beyond {
		s := &r.beyond[i]
		if s.paired {
			continue
		}
		if s.key.xid >= d.next && !d.moved {
			r.unsealed--
			c.find(Finding{Kind: XIDBeyond, Event: &s.key.id, Detail: fmt.Sprintf("a row of transaction %d, and the server has come to %d", s.key.xid, d.next)})
		}
	}
	c.report.Unsealed = r.unsealed
}

// misplaced remembers that the map is wrong about a leaf.
func (t *tree) misplaced(index int64) {
	if t.wrong == nil {
		t.wrong = map[int64]bool{}
	}
	t.wrong[index/tileWidth] = true
}

// checkBounds holds the times that the map gives for each tile against the events.
func (c *check) checkBounds() {
	t, r := &c.tree, &c.rows
	for _, tile := range t.misranged {
		if !t.wrong[tile] {
			c.find(Finding{Kind: MapChanged, Object: fmt.Sprintf("ledger_entries %d", tile), Detail: "first_xid and last_xid do not hold its transactions"})
		}
	}
	for tile, times := range r.times {
		if times[0] == math.MaxInt64 || tile >= len(t.bounds) || t.unmapped.has(int64(tile)*tileWidth) {
			continue
		}
		if bounds := t.bounds[tile]; times[0] < bounds[0] || times[1] > bounds[1] {
			c.find(Finding{Kind: MapChanged, Object: fmt.Sprintf("ledger_entries %d", tile), Detail: "first_occurred_at and last_occurred_at do not hold its events"})
		}
	}
}
