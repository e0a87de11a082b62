package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
)

// head is the row of ledger_heads.
type head struct {
	size        int64
	incarnation uuid.UUID
	sealedTo    uint64
}

// stretch is a row of ledger_stretches, with its end.
type stretch struct {
	from, to    int64
	kind        string
	incarnation uuid.UUID
}

const kindLost = "lost"

// database is one snapshot of the suspect.
type database struct {
	pgx.Tx

	head      head
	stretches []stretch
	// next is the first transaction that the server has not given out.
	next uint64
	// moved says that the server is not the one that the newest incarnation was
	// opened in: what a restore brought is not swept yet.
	moved bool
}

// inSnapshot runs work on one snapshot of the database.
func (c *check) inSnapshot(ctx context.Context, work func(*database) error) error {
	tx, err := c.Database.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	// Before there is a snapshot: a month that is dropped after it was taken would be
	// missing from the rows while the tree knew nothing of it.
	if _, err := tx.Exec(ctx, lockTrail); err != nil {
		return fmt.Errorf("prepare the snapshot: %w", err)
	}
	if err := c.settle(ctx, tx, c.note); err != nil {
		return err
	}
	return work(&database{Tx: tx})
}

const lockTrail = "lock table custody_data.audit_logs in access share mode"

// settle makes a session see what its login may see, and nothing else of the
// server's settings matter.
func (c *check) settle(ctx context.Context, tx pgx.Tx, note func(format string, args ...any)) error {
	for _, statement := range []string{
		"set local search_path = ''",
		"set local client_encoding = 'UTF8'",
		"set local statement_timeout = 0",
		"set local idle_in_transaction_session_timeout = 0",
		"set local jit = off",
	} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("prepare the snapshot: %w", err)
		}
	}
	var role string
	var sees, backup bool
	if err := tx.QueryRow(ctx, `select current_user::text,
		exists (select from pg_catalog.pg_roles r where r.rolname = current_user and (r.rolsuper or r.rolbypassrls)),
		exists (select from pg_catalog.pg_roles r where r.rolname = 'custody_backup' and pg_catalog.pg_has_role(r.oid, 'usage'))`).Scan(&role, &sees, &backup); err != nil {
		return fmt.Errorf("read the login's rights: %w", err)
	}
	if sees {
		// Then a policy that hides a row is an error, and none is hidden.
		if _, err := tx.Exec(ctx, "set local row_security = off"); err != nil {
			return fmt.Errorf("switch row-level security off: %w", err)
		}
		return nil
	}
	if note != nil {
		note("rows were read as %s sees them through row-level security: what a policy hides shows as row_missing", role)
	}
	if c.Prepare != nil && !backup {
		if err := c.Prepare(ctx, tx); err != nil {
			return fmt.Errorf("set the context: %w", err)
		}
	}
	return nil
}

func (c *check) verifyDatabase(ctx context.Context) error {
	return c.inSnapshot(ctx, func(d *database) error {
		for _, step := range []struct {
			name string
			do   func(context.Context, *database) error
		}{
			{"read the head of the ledger", c.readHead},
			{"read the map of the ledger", c.readMap},
			{"read the tiles of the ledger", c.readTiles},
			{"check the tree", c.checkTree},
			{"compare the records of checkpoints", c.compareCheckpointRecords},
			{"read the rows of the trail", c.readRows},
			{"read the archive", c.readArchive},
			{"look into what does not fit", c.resolve},
			{"compare the records of the archive", c.compareRecords},
		} {
			if err := step.do(ctx, d); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
		}
		return nil
	})
}

// copyTo streams a query's rows.
func (d *database) copyTo(ctx context.Context, columns int, query string, each func(fields [][]byte) error) error {
	reader := &copyReader{columns: columns, each: each}
	if _, err := d.Conn().PgConn().CopyTo(ctx, reader, "copy ("+query+") to stdout (format binary)"); err != nil {
		return err
	}
	return reader.close()
}

func (c *check) readHead(ctx context.Context, d *database) error {
	var sealedTo, next string
	var incarnation *uuid.UUID
	err := d.QueryRow(ctx, `select h.tree_size, h.incarnation_id, h.sealed_to::text, pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text
		from custody_data.ledger_heads h where h.tenant_id = 'system'`).Scan(&d.head.size, &incarnation, &sealedTo, &next)
	if errors.Is(err, pgx.ErrNoRows) {
		c.find(Finding{Kind: HeadChanged, Object: "ledger_heads", Detail: "its row is missing, or hidden from the login"})
		err = d.QueryRow(ctx, "select 0, null, '0', pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text").Scan(&d.head.size, &incarnation, &sealedTo, &next)
	}
	if err != nil {
		return err
	}
	if incarnation != nil {
		d.head.incarnation = *incarnation
	}
	if d.head.sealedTo, err = strconv.ParseUint(sealedTo, 10, 64); err != nil {
		return err
	}
	if d.next, err = strconv.ParseUint(next, 10, 64); err != nil {
		return err
	}

	rows, err := d.Query(ctx, `select s.first_leaf, s.kind, s.incarnation_id from custody_data.ledger_stretches s
		where s.tenant_id = 'system' order by s.first_leaf limit $1`, maxStretches+1)
	if err != nil {
		return err
	}
	var s stretch
	if _, err := pgx.ForEachRow(rows, []any{&s.from, &s.kind, &s.incarnation}, func() error {
		d.stretches = append(d.stretches, s)
		return nil
	}); err != nil {
		return err
	}

	var here, there *string
	if err := d.QueryRow(ctx, `select s.system_identifier::text, (
			select i.system_identifier::text from custody_data.incarnations i order by i.opened_at desc limit 1)
		from pg_catalog.pg_control_system() s`).Scan(&here, &there); err != nil {
		return err
	}
	d.moved = there != nil && here != nil && *there != *here
	return nil
}

// maxStretches is more than a log can come to have; beyond it they are not told
// apart, which costs memory and no certainty.
const maxStretches = 4096

const (
	// keyWidth is that of a leaf's xid, id and day.
	keyWidth  = 28
	hashWidth = len(Hash{})
	// maxGap bounds how many missing tiles in a row are waited for.
	maxGap = 4096
)

// readMap takes over which event each leaf is said to be.
func (c *check) readMap(ctx context.Context, d *database) (err error) {
	if c.tree.keys, err = newSpool(keyWidth); err != nil {
		return err
	}
	t := &c.tree
	wrong := func(index int64, detail string) {
		c.find(Finding{Kind: MapChanged, Object: fmt.Sprintf("ledger_entries %d", index), Detail: detail})
	}
	buffer := make([]byte, tileWidth*keyWidth)
	next, last := int64(0), 0 // tile, and how many the last one had
	fill := func(n int) error {
		from := t.keys.count
		t.unmapped.add(from, from+int64(n))
		clear(buffer)
		t.bounds = append(t.bounds, [2]int64{math.MinInt64, math.MaxInt64})
		return t.keys.append(buffer[:n*keyWidth])
	}
	err = d.copyTo(ctx, 8, `select e.tile_index, e.xids, e.entry_ids, e.first_xid, e.last_xid, e.first_occurred_at, e.last_occurred_at, e.days
		from custody_data.ledger_entries e where e.tenant_id = 'system' order by e.tile_index`, func(f [][]byte) error {
		index := micros(f[0])
		n := len(f[1]) / 8
		if index < next || index > next+maxGap || n == 0 || n > tileWidth || len(f[1]) != 8*n || len(f[2]) != 16*n {
			wrong(index, "it is not of the form of a tile")
			return nil
		}
		if next > 0 && last < tileWidth {
			wrong(next-1, fmt.Sprintf("it has %d leaves and is not the last", last))
			t.unmapped.add(t.keys.count-int64(last), t.keys.count)
			if err := fill(tileWidth - last); err != nil {
				return err
			}
			t.bounds = t.bounds[:len(t.bounds)-1]
		}
		for ; next < index; next++ {
			wrong(next, "it is missing")
			if err := fill(tileWidth); err != nil {
				return err
			}
		}
		lowest, highest := uint64(math.MaxUint64), uint64(0)
		for i := range n {
			copy(buffer[i*keyWidth:], f[1][8*i:8*i+8])
			copy(buffer[i*keyWidth+8:], f[2][16*i:16*i+16])
			copy(buffer[i*keyWidth+24:], f[7][4*i:4*i+4])
			if xid := binary.BigEndian.Uint64(f[1][8*i:]); xid != 0 {
				lowest, highest = min(lowest, xid), max(highest, xid)
			}
		}
		if highest > 0 && (f[3] != nil && uint64(micros(f[3])) > lowest || f[4] != nil && uint64(micros(f[4])) < highest) { //nolint:gosec // not negative
			t.misranged = append(t.misranged, index)
		}
		bounds := [2]int64{math.MinInt64, math.MaxInt64}
		if f[5] != nil {
			bounds[0] = micros(f[5])
		}
		if f[6] != nil {
			bounds[1] = micros(f[6])
		}
		t.bounds = append(t.bounds, bounds)
		next, last = index+1, n
		return t.keys.append(buffer[:n*keyWidth])
	})
	if err != nil {
		return err
	}
	t.mapped = t.keys.count
	return nil
}

// readTiles takes over the leaf hashes that the database has.
func (c *check) readTiles(ctx context.Context, d *database) (err error) {
	t := &c.tree
	if t.leaves, err = newSpool(hashWidth); err != nil {
		return err
	}
	var zeros [tileWidth * 32]byte
	next, last := int64(0), 0
	pad := func(n int) error {
		t.holes.add(t.leaves.count, t.leaves.count+int64(n))
		return t.leaves.append(zeros[:n*hashWidth])
	}
	err = d.copyTo(ctx, 2, `select t.tile_index, t.hashes from custody_data.ledger_tiles t
		where t.tenant_id = 'system' and t.level = 0 order by t.tile_index`, func(f [][]byte) error {
		index, n := micros(f[0]), len(f[1])/hashWidth
		if index < next || index > next+maxGap || n == 0 || n > tileWidth || len(f[1]) != n*hashWidth {
			c.findTile(0, index, "it is not of the form of a tile")
			return nil
		}
		if next > 0 && last < tileWidth {
			c.findTile(0, next-1, fmt.Sprintf("it has %d leaves and is not the last", last))
			t.holes.add(t.leaves.count-int64(last), t.leaves.count)
			if err := pad(tileWidth - last); err != nil {
				return err
			}
		}
		for ; next < index; next++ {
			c.findTile(0, next, "it is missing")
			if err := pad(tileWidth); err != nil {
				return err
			}
		}
		next, last = index+1, n
		if next%1024 == 0 {
			c.Show("tiles", next*tileWidth, d.head.size)
		}
		return t.leaves.append(f[1])
	})
	if err != nil {
		return err
	}
	return c.settleSize(d)
}

func (c *check) findTile(level int, index int64, detail string) {
	c.find(Finding{Kind: TileChanged, Object: fmt.Sprintf("ledger_tiles %d/%d", level, index), Detail: detail})
}

// settleSize decides how many leaves the database has where head, tiles and map
// say different things: two against one.
func (c *check) settleSize(d *database) error {
	t := &c.tree
	byHead, byTiles, byMap := d.head.size, t.leaves.count, t.keys.count
	t.size = byTiles
	if byHead == byMap {
		t.size = byHead
	}
	if byTiles != t.size {
		tile := min(byTiles, t.size) / tileWidth
		c.findTile(0, tile, fmt.Sprintf("there are %d leaves; head and map say %d", byTiles, t.size))
		// Which of its hashes are in their places is not known.
		t.holes.add(tile*tileWidth, min(byTiles, t.size))
	}
	if byMap != t.size {
		c.find(Finding{Kind: MapChanged, Object: fmt.Sprintf("ledger_entries %d", min(byMap, t.size)/tileWidth),
			Detail: fmt.Sprintf("the map has %d leaves, the tiles have %d", byMap, t.size)})
	}
	if byHead != t.size {
		c.find(Finding{Kind: HeadChanged, Object: "ledger_heads", Detail: fmt.Sprintf("it says that there are %d leaves; tiles have %d", byHead, t.size)})
	}
	var zeros [4096]byte
	grow := func(s *spool, to int64, missing *spans) error {
		missing.add(s.count, to)
		for s.count < to {
			if err := s.append(zeros[:min(to-s.count, int64(len(zeros)/s.width))*int64(s.width)]); err != nil {
				return err
			}
		}
		return s.done()
	}
	return errors.Join(grow(t.leaves, t.size, &t.holes), grow(t.keys, t.size, &t.unmapped))
}

// compareCheckpointRecords holds the database's copy of the checkpoints against the
// bucket.
func (c *check) compareCheckpointRecords(ctx context.Context, d *database) error {
	if len(c.checkpoints) == 0 {
		return nil
	}
	wrong := func(number int64, detail string) {
		c.find(Finding{Kind: CheckpointRecordChanged, Checkpoint: &number, Object: fmt.Sprintf("ledger_checkpoints %d", number), Detail: detail})
	}
	i := 0
	absent := func(until int64) {
		for ; i < len(c.checkpoints) && c.checkpoints[i].number < until; i++ {
			known := c.checkpoints[i]
			// An anchor that was killed leaves the newest to the next one to record, and what was
			// set back has lost the later ones.
			if known.number == c.newest.number {
				c.note("checkpoint %d, the newest, is not on record in the database yet", known.number)
			} else if !c.tree.short && !c.lostWith(d, known.size, known.incarnation) {
				wrong(known.number, "the record is missing")
			}
		}
	}
	err := d.copyTo(ctx, 6, `select k.number, k.tree_size, k.root_hash, k.note, k.object_key, k.tenant_id from custody_data.ledger_checkpoints k
		where k.tenant_id = 'system' order by k.number`, func(f [][]byte) error {
		number := micros(f[0])
		if c.Since != nil && number < c.Since.Checkpoint {
			return nil
		}
		absent(number)
		if i == len(c.checkpoints) || c.checkpoints[i].number != number {
			if number > c.newest.number {
				return c.lateRecord(ctx, number, f, wrong)
			}
			if !c.foundCheckpoint(number) {
				wrong(number, "the bucket has no such checkpoint")
			}
			return nil
		}
		c.compareRecord(c.checkpoints[i], f, wrong)
		i++
		return nil
	})
	absent(math.MaxInt64)
	return err
}

func (c *check) compareRecord(known checkpoint, f [][]byte, wrong func(int64, string)) {
	switch {
	case sum256(f[3]) != known.note:
		wrong(known.number, "its note is not the one in the bucket")
	case micros(f[1]) != known.size:
		wrong(known.number, fmt.Sprintf("its tree_size is %d, the checkpoint says %d", micros(f[1]), known.size))
	case string(f[2]) != string(known.root[:]):
		wrong(known.number, "its root_hash is not that of the checkpoint")
	case string(f[4]) != ledger.CheckpointKey(c.Origin, known.number):
		wrong(known.number, "its object_key is not that of the checkpoint")
	}
}

// lateRecord looks at the record of a checkpoint that was not there when the bucket
// was listed.
func (c *check) lateRecord(ctx context.Context, number int64, f [][]byte, wrong func(int64, string)) error {
	content, _, err := get(ctx, c.Store, ledger.CheckpointKey(c.Origin, number), "", noteLimit)
	if errors.Is(err, store.ErrNotFound) {
		wrong(number, "the bucket has no such checkpoint")
		return nil
	}
	if err != nil {
		return err
	}
	if known, err := c.open(content, number); err == nil {
		c.compareRecord(known, f, wrong)
	} else {
		wrong(number, "what the bucket has under its number is no checkpoint")
	}
	return nil
}
