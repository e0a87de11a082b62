package verify_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
	"pgcustody/jobs/verify"
)

func TestMain(m *testing.M) {
	verify.ReadBy(64) // by both sessions, few as the events are
	goleak.VerifyTestMain(m)
}

// places at which an event is tampered with.
const (
	archived = "archived"
	hot      = "hot"
	tail     = "tail"
)

// at is an event of a tenant's at a place.
func (f *fixture) at(place string) event {
	f.Helper()
	from, step := map[string]int{archived: 40, hot: len(f.events) / 2, tail: len(f.events) - 2}[place], 1
	if place == tail {
		step = -1
	}
	for i := from; ; i += step {
		if f.events[i].tenant == "acme" {
			return f.events[i]
		}
	}
}

const thisRow = " where log_entry_id = $1 and occurred_at = $2"

// case of a tampering: what is done, and what must be found. $1 and $2 of a
// statement are the event's id and time.
type tampering struct {
	name   string
	places []string
	do     func(f *fixture, e event)
	// found lists what told writes, of the event at a place.
	found  func(f *fixture, e event, place string) []string
	status int
	// anchored has the rest sealed and anchored afterwards.
	anchored bool
	change   []func(*verify.Options)
}

var everywhere = []string{archived, hot, tail}

// row is a finding about an event.
func row(kind verify.Kind, e event, fields string) string {
	s := fmt.Sprintf("%s %d %s", kind, e.leaf, e.id)
	if fields != "" {
		s += " " + fields
	}
	return s
}

// changes is a case in which a statement changes one row.
func changes(field, statement string) tampering {
	return tampering{name: field + " changed", places: everywhere,
		do: func(f *fixture, e event) { f.exec(statement+thisRow, e.id, e.occurred) },
		found: func(_ *fixture, e event, place string) []string {
			if place != archived && field != "xid" && field != "log_entry_id" {
				return []string{row(verify.RowChanged, e, "")}
			}
			return []string{row(verify.RowChanged, e, field)}
		}}
}

const update = "update custody_data.audit_logs set "

func only(kind verify.Kind) func(*fixture, event, string) []string {
	return func(_ *fixture, e event, _ string) []string { return []string{row(kind, e, "")} }
}

func just(findings ...string) func(*fixture, event, string) []string {
	return func(*fixture, event, string) []string { return findings }
}

// other is the event two after, of the same tenant.
func (f *fixture) after(e event) event {
	step := int64(1)
	if e.leaf+10 > int64(len(f.events)) {
		step = -1
	}
	for leaf := e.leaf + step; ; leaf += step {
		if o := f.events[leaf]; o.tenant == e.tenant && o.xid != e.xid {
			return o
		}
	}
}

func rowTamperings() []tampering {
	list := []tampering{
		changes("actor_id", update+"actor_id = gen_random_uuid()"),
		changes("subject_id", update+"subject_id = null"),
		changes("action", update+"action = 'phi.export'"),
		changes("resource_type", update+"resource_type = 'image'"),
		changes("resource_id", update+"resource_id = resource_id || '0'"),
		changes("result", update+"result = 'denied'"),
		changes("purpose", update+"purpose = null"),
		changes("metadata", update+`metadata = metadata || '{"n": 10000}'`),
		changes("personal", update+"personal = null"),
		changes("import_id", update+"import_id = gen_random_uuid()"),
		changes("db_role", update+"db_role = 'postgres'"),
		changes("recorded_at", update+"recorded_at = recorded_at + interval '1 microsecond'"),
		changes("tenant_id", update+"tenant_id = 'globex'"),
		changes("occurred_at", update+"occurred_at = occurred_at - interval '1 microsecond'"),
		changes("xid", update+"xid = (xid::text::bigint + 1)::text::xid8"),
		changes("log_entry_id", update+"log_entry_id = gen_random_uuid()"),
		{name: "xid changed to one that is yet to come", places: everywhere,
			do:    func(f *fixture, e event) { f.exec(update+"xid = '900000000000'"+thisRow, e.id, e.occurred) },
			found: func(_ *fixture, e event, _ string) []string { return []string{row(verify.RowChanged, e, "xid")} }},
		{name: "row deleted", places: everywhere,
			do:    func(f *fixture, e event) { f.exec("delete from custody_data.audit_logs"+thisRow, e.id, e.occurred) },
			found: only(verify.RowMissing)},
		{name: "rows swapped", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec(`update custody_data.audit_logs a set actor_id = b.actor_id, subject_id = b.subject_id, resource_id = b.resource_id, metadata = b.metadata, personal = b.personal
					from custody_data.audit_logs b where a.log_entry_id in ($1, $2) and b.log_entry_id in ($1, $2) and a.log_entry_id <> b.log_entry_id`, e.id, f.after(e).id)
			},
			found: func(f *fixture, e event, place string) []string {
				fields := ""
				if place == archived {
					fields = "actor_id,subject_id,resource_id,metadata,personal"
				}
				return []string{row(verify.RowChanged, e, fields), row(verify.RowChanged, f.after(e), fields)}
			}},
		{name: "last rows deleted", places: []string{tail},
			do: func(f *fixture, _ event) {
				for _, e := range f.events[len(f.events)-5:] {
					f.exec("delete from custody_data.audit_logs where log_entry_id = $1", e.id)
				}
			},
			found: func(f *fixture, _ event, _ string) (list []string) {
				for _, e := range f.events[len(f.events)-5:] {
					list = append(list, row(verify.RowMissing, e, ""))
				}
				return list
			}},
		{name: "row inserted behind the horizon", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, action, xid)
					values ('acme', $1, $2, $2, gen_random_uuid(), 'phi.access', $3::text::xid8)`, forged, e.occurred, fmt.Sprint(e.xid))
			},
			found: just("row_inserted " + forged.String())},
		{name: "row inserted that the index does not have", places: []string{hot},
			do: func(f *fixture, e event) {
				// The index of the month's table; a new session takes notice.
				const index = `update pg_catalog.pg_index x set indisready = $1, indisvalid = $1 from pg_catalog.pg_class c
					where c.oid = x.indexrelid and x.indrelid = $2::text::regclass and pg_catalog.pg_get_indexdef(c.oid) like '%(xid, log_entry_id)'`
				f.exec(index, false, "custody_data."+month(e))
				f.connect()
				f.exec(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, action, xid)
					values ('acme', $1, $2, $2, gen_random_uuid(), 'phi.access', $3::text::xid8)`, forged, e.occurred, fmt.Sprint(e.xid))
				f.exec(index, true, "custody_data."+month(e))
				f.connect()
			},
			found: just("row_inserted "+forged.String(), "rows_hidden audit_logs")},
		{name: "row inserted ahead of the server", places: []string{hot},
			do: func(f *fixture, e event) {
				f.exec(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, xid)
					values ('acme', $1, $2, gen_random_uuid(), 'phi.access', '900000000000')`, forged, e.occurred)
			},
			found: just("xid_beyond " + forged.String())},
		{name: "row inserted backdated and sealed", places: []string{hot},
			do: func(f *fixture, e event) {
				f.seal()
				f.exec(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, action)
					values ('acme', $1, $2::timestamptz - interval '1 hour', $2::timestamptz - interval '1 hour', gen_random_uuid(), 'phi.access')`, forged, e.occurred)
				f.seal()
			},
			found: func(f *fixture, _ event, _ string) []string {
				return []string{fmt.Sprintf("backdated %d %s #3", len(f.events)+5, forged)}
			}},
		{name: "partition detached", places: []string{archived},
			do: func(f *fixture, e event) {
				f.exec("alter table custody_data.audit_logs detach partition custody_data.audit_logs_" + e.occurred.UTC().Format("2006_01"))
			},
			found: wholeMonth},
		{name: "partition truncated", places: []string{archived},
			do: func(f *fixture, e event) {
				f.exec("alter table custody_data.audit_logs_" + e.occurred.UTC().Format("2006_01") + " disable trigger all")
				f.exec("truncate custody_data.audit_logs_" + e.occurred.UTC().Format("2006_01"))
			},
			found: wholeMonth},
		{name: "partition replaced by a changed copy", places: everywhere,
			do: func(f *fixture, e event) {
				name := "custody_data.audit_logs_" + e.occurred.UTC().Format("2006_01")
				var bounds string
				require.NoError(f, f.conn.QueryRow(f.Context(), "select pg_get_expr(relpartbound, oid) from pg_class where oid = $1::text::regclass", name).Scan(&bounds))
				f.exec("alter table custody_data.audit_logs detach partition " + name)
				f.exec("create table custody_data.copied (like " + name + " including all)")
				f.exec("insert into custody_data.copied select * from " + name)
				f.exec("update custody_data.copied set result = 'failure'"+thisRow, e.id, e.occurred)
				f.exec("alter table custody_data.audit_logs attach partition custody_data.copied " + bounds)
			},
			found: func(_ *fixture, e event, place string) []string {
				if place == archived {
					return []string{row(verify.RowChanged, e, "result")}
				}
				return []string{row(verify.RowChanged, e, "")}
			}},
		{name: "functions that show the old value", places: everywhere,
			do: func(f *fixture, e event) {
				var was string
				require.NoError(f, f.conn.QueryRow(f.Context(), "select custody.audit_entry(a) from custody_data.audit_logs a"+thisRow, e.id, e.occurred).Scan(&was))
				f.exec(update+"result = 'failure'"+thisRow, e.id, e.occurred)
				f.exec(`create or replace function custody.audit_entry(p_row custody_data.audit_logs) returns text language sql stable parallel safe return '` + doubled(was) + `'`)
				f.exec(`create or replace view custody.audit_entries as select a.tenant_id, a.occurred_at, a.xid, a.recorded_at, a.log_entry_id, custody.audit_entry(a) as entry from custody_data.audit_logs a`)
			},
			found: func(_ *fixture, e event, place string) []string {
				if place == archived {
					return []string{row(verify.RowChanged, e, "result")}
				}
				return []string{row(verify.RowChanged, e, "")}
			}},
		{name: "row hidden from the verifier's role", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec("create policy hide on custody_data.audit_logs as restrictive for select to custody_backup using (log_entry_id <> '" + e.id.String() + "')")
			},
			found:  only(verify.RowMissing),
			change: []func(*verify.Options){asBackup}},
		{name: "row deleted and said to be lost", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec("delete from custody_data.audit_logs"+thisRow, e.id, e.occurred)
				f.setMap(e.leaf, 0, uuid.Nil)
				f.exec(`insert into custody_data.ledger_stretches (first_leaf, kind, incarnation_id) select $1, 'lost', incarnation_id from custody_data.ledger_heads`, e.leaf)
				f.exec(`insert into custody_data.ledger_stretches (first_leaf, kind, incarnation_id) select $1, 'sealed', incarnation_id from custody_data.ledger_heads`, e.leaf+1)
			},
			found: func(_ *fixture, e event, place string) []string {
				if place == archived {
					return []string{row(verify.RowMissing, e, "")}
				}
				return []string{fmt.Sprintf("row_missing %d", e.leaf)} // which event it was, nothing tells any more
			}},
	}
	return list
}

var forged = uuid.MustParse("00000000-0000-4000-8000-000000000001")

func doubled(s string) string { return string(bytes.ReplaceAll([]byte(s), []byte("'"), []byte("''"))) }

// wholeMonth is every event of the month of an event.
func wholeMonth(f *fixture, e event, _ string) (list []string) {
	for _, o := range f.events {
		if o.occurred.UTC().Format("2006_01") == e.occurred.UTC().Format("2006_01") && len(list) < 100 {
			list = append(list, row(verify.RowMissing, o, ""))
		}
	}
	return list
}

// asBackup verifies as a login that reads by the policies of custody_backup.
func asBackup(o *verify.Options) {
	conn := o.Database.(*pgx.Conn)
	login, err := pgx.Connect(context.Background(), backupURL(conn.Config().Database))
	if err != nil {
		panic(err)
	}
	o.Database = login
}

var backupURL = func(database string) string { panic("set by the test") }

// setMap says that a leaf is another event.
func (f *fixture) setMap(leaf int64, xid uint64, id uuid.UUID) {
	f.Helper()
	f.exec(`update custody_data.ledger_entries set xids = overlay(xids placing int8send($2) from $4), entry_ids = overlay(entry_ids placing uuid_send($3) from $5)
		where tile_index = $1`, leaf/256, int64(xid), id, int32(leaf%256*8+1), int32(leaf%256*16+1)) //nolint:gosec // small
}

// setLeaves writes level 0 anew, and with above every level.
func (f *fixture) setLeaves(leaves []tlog.Hash, above bool) {
	f.Helper()
	for level, hashes := range levels(leaves) {
		if level > 0 && !above {
			break
		}
		for index := 0; len(hashes) > 0; index++ {
			width := min(len(hashes), 256)
			f.exec("update custody_data.ledger_tiles set hashes = $3 where level = $1 and tile_index = $2", level, index, flat(hashes[:width]))
			hashes = hashes[width:]
		}
	}
}

// reseal makes a leaf that of its changed row.
func (f *fixture) reseal(e event) []tlog.Hash {
	f.Helper()
	leaves := f.leaves()
	var hash []byte
	require.NoError(f, f.conn.QueryRow(f.Context(), "select custody_data.leaf_hash(a) from custody_data.audit_logs a"+thisRow, e.id, e.occurred).Scan(&hash))
	leaves[e.leaf] = tlog.Hash(hash)
	return leaves
}

func ledgerTamperings() []tampering {
	tile := func(level int, index int64) string {
		return fmt.Sprintf("tile_changed ledger_tiles %d/%d", level, index)
	}
	fieldOf := func(e event, place string) string {
		if place == archived {
			return row(verify.RowChanged, e, "result")
		}
		return row(verify.RowChanged, e, "")
	}
	leafOf := func(e event) string { return fmt.Sprintf("leaf_changed %d", e.leaf) }
	return []tampering{
		{name: "leaf changed", places: everywhere,
			do: func(f *fixture, e event) {
				leaves := f.leaves()
				leaves[e.leaf][0] ^= 1
				f.setLeaves(leaves, false)
			},
			found: func(_ *fixture, e event, _ string) []string { return []string{leafOf(e)} }},
		{name: "leaf removed", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec("update custody_data.ledger_tiles set hashes = substr(hashes, 1, $2) || substr(hashes, $2 + 33) where level = 0 and tile_index = $1", e.leaf/256, int32(e.leaf%256*32)) //nolint:gosec // small
			},
			found: func(_ *fixture, e event, _ string) []string { return []string{tile(0, e.leaf/256)} }},
		{name: "leaf added", places: []string{tail},
			do: func(f *fixture, e event) {
				f.exec("update custody_data.ledger_tiles set hashes = hashes || sha256('x') where level = 0 and tile_index = $1", e.leaf/256)
			},
			found: func(_ *fixture, e event, _ string) []string { return []string{tile(0, e.leaf/256)} }},
		{name: "leaves of a tile swapped", places: everywhere,
			do: func(f *fixture, e event) {
				leaves := f.leaves()
				leaves[e.leaf], leaves[e.leaf+1] = leaves[e.leaf+1], leaves[e.leaf]
				f.setLeaves(leaves, false)
			},
			found: func(_ *fixture, e event, _ string) []string {
				return []string{leafOf(e), leafOf(event{leaf: e.leaf + 1})}
			}},
		{name: "tile of level 1 changed", places: []string{hot},
			do: func(f *fixture, _ event) {
				f.exec("update custody_data.ledger_tiles set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1) where level = 1")
			},
			found: just(tile(1, 0))},
		{name: "tile of level 1 deleted", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("delete from custody_data.ledger_tiles where level = 1") },
			found: just(tile(1, 0))},
		{name: "tile of level 0 deleted", places: []string{archived, hot},
			do: func(f *fixture, e event) {
				f.exec("delete from custody_data.ledger_tiles where level = 0 and tile_index = $1", e.leaf/256)
			},
			found: func(_ *fixture, e event, _ string) []string { return []string{tile(0, e.leaf/256)} }},
		{name: "map: id changed", places: everywhere,
			do:    func(f *fixture, e event) { f.setMap(e.leaf, e.xid, uuid.New()) },
			found: only(verify.MapChanged)},
		{name: "map: transaction changed to a low one", places: everywhere,
			do:    func(f *fixture, e event) { f.setMap(e.leaf, f.events[0].xid, e.id) },
			found: only(verify.MapChanged)},
		{name: "map: transaction changed to a high one", places: everywhere,
			do:    func(f *fixture, e event) { f.setMap(e.leaf, f.events[len(f.events)-1].xid+1, e.id) },
			found: only(verify.MapChanged)},
		{name: "map: day changed", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec("update custody_data.ledger_entries set days = overlay(days placing int4send(7000) from $2) where tile_index = $1", e.leaf/256, int32(e.leaf%256*4+1)) //nolint:gosec // small
			},
			found: only(verify.MapChanged)},
		{name: "map: leaves swapped", places: everywhere,
			do: func(f *fixture, e event) {
				o := f.after(e)
				f.setMap(e.leaf, o.xid, o.id)
				f.setMap(o.leaf, e.xid, e.id)
			},
			found: func(f *fixture, e event, _ string) []string {
				return []string{row(verify.MapChanged, e, ""), row(verify.MapChanged, f.after(e), "")}
			}},
		{name: "map: tile deleted", places: []string{archived, hot},
			do: func(f *fixture, e event) {
				f.exec("delete from custody_data.ledger_entries where tile_index = $1", e.leaf/256)
			},
			found: func(_ *fixture, e event, _ string) []string {
				return []string{fmt.Sprintf("map_changed ledger_entries %d", e.leaf/256)}
			}},
		{name: "map: ranges of a tile changed", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec("update custody_data.ledger_entries set last_occurred_at = first_occurred_at where tile_index = $1", e.leaf/256)
			},
			found: func(_ *fixture, e event, _ string) []string {
				return []string{fmt.Sprintf("map_changed ledger_entries %d", e.leaf/256)}
			}},
		{name: "row and leaf changed", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec(update+"result = 'failure'"+thisRow, e.id, e.occurred)
				f.setLeaves(f.reseal(e), false)
			},
			found: func(_ *fixture, e event, place string) []string { return []string{fieldOf(e, place), leafOf(e)} }},
		{name: "row, leaf and every tile changed", places: everywhere,
			do: func(f *fixture, e event) {
				f.exec(update+"result = 'failure'"+thisRow, e.id, e.occurred)
				f.setLeaves(f.reseal(e), true)
			},
			found: func(_ *fixture, e event, place string) []string { return []string{fieldOf(e, place), leafOf(e)} }},
		{name: "ledger rebuilt with a new key", places: everywhere,
			do: func(f *fixture, e event) {
				f.ownLog()
				f.exec(update+"result = 'failure'"+thisRow, e.id, e.occurred)
				leaves := f.reseal(e)
				f.setLeaves(leaves, true)
				stranger, _ := newSigner(f.TB)
				for _, c := range f.anchors {
					c.Root = rootOf(leaves[:c.Size])
					signed := sign(f.TB, stranger, c)
					f.put(ledger.CheckpointKey(origin, c.Number), []byte(signed))
					f.put(ledger.NewestKey(origin), []byte(signed))
					f.exec("update custody_data.ledger_checkpoints set note = $2, root_hash = $3 where number = $1", c.Number, signed, c.Root[:])
				}
			},
			found: func(f *fixture, e event, place string) []string {
				list := []string{fieldOf(e, place), leafOf(e), "checkpoint_changed log/" + origin + "/checkpoint"}
				for _, c := range f.anchors {
					list = append(list, fmt.Sprintf("checkpoint_changed #%d", c.Number), fmt.Sprintf("checkpoint_record_changed #%d", c.Number))
				}
				return list
			}},
		{name: "stretch said to be lost while the rows are there", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("update custody_data.ledger_stretches set kind = 'lost'") },
			found: just()},
		{name: "stretches shifted", places: []string{hot},
			do: func(f *fixture, e event) {
				f.exec("insert into custody_data.ledger_stretches (first_leaf, kind, incarnation_id) select $1, 'swept', incarnation_id from custody_data.ledger_heads", e.leaf)
			},
			found: just()},
		{name: "all said to be sealed", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("update custody_data.ledger_heads set sealed_to = '900000000000'") },
			found: just("head_changed ledger_heads")},
		{name: "head's size changed", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("update custody_data.ledger_heads set tree_size = tree_size + 100") },
			found: just("head_changed ledger_heads")},
		{name: "head's size set back", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("update custody_data.ledger_heads set tree_size = tree_size - 100") },
			found: just("head_changed ledger_heads")},
		{name: "head's horizon set back", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("update custody_data.ledger_heads set sealed_to = '4'") },
			found: just("head_changed ledger_heads")},
		{name: "checkpoint record: root", places: []string{hot},
			do: func(f *fixture, _ event) {
				f.exec("update custody_data.ledger_checkpoints set root_hash = sha256('x') where number = 2")
			},
			found: just("checkpoint_record_changed #2")},
		{name: "checkpoint record: note", places: []string{hot},
			do: func(f *fixture, _ event) {
				f.exec("update custody_data.ledger_checkpoints set note = note || ' ' where number = 1")
			},
			found: just("checkpoint_record_changed #1")},
		{name: "checkpoint record: size", places: []string{hot},
			do: func(f *fixture, _ event) {
				f.exec("update custody_data.ledger_checkpoints set tree_size = tree_size + 1 where number = 3")
			},
			found: just("checkpoint_record_changed #3")},
		{name: "checkpoint record deleted", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("delete from custody_data.ledger_checkpoints where number = 2") },
			found: just("checkpoint_record_changed #2")},
		{name: "checkpoint record invented", places: []string{hot},
			do: func(f *fixture, _ event) {
				f.exec("insert into custody_data.ledger_checkpoints (number, tree_size, root_hash, note, object_key, anchored_at) select 9, tree_size, root_hash, note, object_key, now() from custody_data.ledger_checkpoints where number = 3")
			},
			found: just("checkpoint_record_changed #9")},
	}
}

func recordTamperings() []tampering {
	segmentName := func(e event) string { return e.occurred.UTC().Format(time.DateOnly) + ".1" }
	aboutSegment := func(_ *fixture, e event, _ string) []string {
		return []string{"archive_record_false archive_segments " + segmentName(e)}
	}
	byDay := " where day = $1"
	day := func(e event) string { return e.occurred.UTC().Format(time.DateOnly) }
	change := func(name, set string) tampering {
		return tampering{name: "archive record: " + name, places: []string{archived},
			do: func(f *fixture, e event) {
				f.exec("update custody_data.archive_segments set "+set+" where day = $1::text::date", day(e))
			},
			found: aboutSegment}
	}
	_ = byDay
	return []tampering{
		change("digest", "stored_sha256 = sha256('x')"),
		change("count", "events = events + 1"),
		change("manifest", "manifest_sha256 = sha256('x')"),
		change("root", "root_hash = sha256('x')"),
		change("leaves", "leaves = '{[100000,100001)}'"),
		change("object", "object_key = object_key || 'x'"),
		change("expired", "expired_at = now(), objects_deleted_at = now()"),
		{name: "archive record deleted", places: []string{archived},
			do: func(f *fixture, e event) {
				f.exec("delete from custody_data.archive_segments where day = $1::text::date", day(e))
			},
			found: aboutSegment},
		{name: "archive record invented", places: []string{hot},
			do: func(f *fixture, e event) {
				f.exec(`insert into custody_data.archive_segments (day, part, leaves, events, opened_at, object_key, manifest_key, plain_bytes, compressed_bytes, stored_bytes, plain_sha256,
					compressed_sha256, stored_sha256, manifest_sha256, root_hash, first_occurred_at, last_occurred_at, people, recipients, retain_until, recorded_at)
					select day + 1, 1, leaves, events, opened_at, replace(object_key, day::text, (day + 1)::text), replace(manifest_key, day::text, (day + 1)::text), plain_bytes, compressed_bytes, stored_bytes,
					plain_sha256, compressed_sha256, stored_sha256, manifest_sha256, root_hash, first_occurred_at, last_occurred_at, people, recipients, retain_until, recorded_at
					from custody_data.archive_segments order by day desc limit 1`)
			},
			found: func(*fixture, event, string) []string {
				return []string{"archive_record_false archive_segments " + time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly) + ".1"}
			}},
		{name: "drop record invented", places: []string{archived},
			do: func(f *fixture, e event) {
				f.exec("insert into custody_data.partition_drops (partition_name, range_from, range_to, rows_dropped) values ($1, $2, $2, 150)", month(e), e.occurred)
			},
			found: func(_ *fixture, e event, _ string) []string {
				return []string{"drop_record_false partition_drops " + month(e)}
			}},
		{name: "drop record invented and the month gone", places: []string{archived},
			do: func(f *fixture, e event) {
				f.exec("insert into custody_data.partition_drops (partition_name, range_from, range_to, rows_dropped) values ($1, $2, $2, 150)", month(e), e.occurred)
				f.exec("drop table custody_data." + month(e))
			},
			found: func(f *fixture, e event, place string) []string {
				return append(wholeMonth(f, e, place), "drop_record_false partition_drops "+month(e))
			}},
		{name: "incarnation's identifier changed", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("update custody_data.incarnations set system_identifier = 42") },
			found: aboutIncarnation},
		{name: "incarnation's timeline changed", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("update custody_data.incarnations set timeline = 7") },
			found: aboutIncarnation},
		{name: "incarnation deleted", places: []string{hot},
			do:    func(f *fixture, _ event) { f.exec("delete from custody_data.incarnations") },
			found: aboutIncarnation},
		{name: "incarnation invented", places: []string{hot},
			do: func(f *fixture, _ event) {
				f.exec("insert into custody_data.incarnations (incarnation_id, system_identifier, timeline, observed) select $1, system_identifier, timeline, '{}' from custody_data.incarnations", forged)
			},
			found: just("incarnation_record_false incarnations " + forged.String())},
	}
}

func aboutIncarnation(f *fixture, _ event, _ string) []string {
	return []string{"incarnation_record_false incarnations " + f.anchors[0].IncarnationID.String()}
}

func month(e event) string { return "audit_logs_" + e.occurred.UTC().Format("2006_01") }

// setBack makes the database what it was when the tree had so many leaves.
func (f *fixture) setBack(size int64) {
	f.Helper()
	leaves := f.leaves()[:size]
	for _, e := range f.events[size:] {
		f.exec("delete from custody_data.audit_logs where log_entry_id = $1", e.id)
	}
	f.exec("delete from custody_data.ledger_tiles")
	for level, hashes := range levels(leaves) {
		for index := 0; len(hashes) > 0; index++ {
			width := min(len(hashes), 256)
			f.exec("insert into custody_data.ledger_tiles (level, tile_index, hashes) values ($1, $2, $3)", level, index, flat(hashes[:width]))
			hashes = hashes[width:]
		}
	}
	if (size-1)/256 < int64(len(f.events)-1)/256 {
		f.exec("delete from custody_data.ledger_entries where tile_index > $1", (size-1)/256)
	}
	f.exec("update custody_data.ledger_entries set xids = substr(xids, 1, $2), entry_ids = substr(entry_ids, 1, 2 * $2), days = substr(days, 1, $2 / 2) where tile_index = $1", (size-1)/256, int32((size-1)%256*8+8)) //nolint:gosec // small
	f.exec("update custody_data.ledger_heads set tree_size = $1, sealed_to = $2::text::xid8, sealed_to_entry_id = null", size, fmt.Sprint(f.events[size-1].xid+1))
	f.exec("delete from custody_data.ledger_checkpoints where tree_size > $1", size)
	f.exec("delete from custody_data.audit_logs where xid > $1::text::xid8", fmt.Sprint(f.events[size-1].xid))
}

func setBackTamperings() []tampering {
	short := func(f *fixture, size int64) string { return fmt.Sprintf("tree_short %d-%d #3", size, len(f.events)-1) }
	return []tampering{
		{name: "set back", places: []string{tail}, status: verify.StatusSetBack,
			do:    func(f *fixture, _ event) { f.setBack(650) },
			found: func(f *fixture, _ event, _ string) []string { return []string{short(f, 650)} }},
		{name: "set back to a checkpoint", places: []string{tail}, status: verify.StatusSetBack,
			do:    func(f *fixture, _ event) { f.setBack(f.anchors[1].Size) },
			found: func(f *fixture, _ event, _ string) []string { return []string{short(f, f.anchors[1].Size)} }},
		{name: "set back and changed", places: []string{hot, archived},
			do: func(f *fixture, e event) {
				f.setBack(650)
				f.exec(update+"result = 'failure'"+thisRow, e.id, e.occurred)
			},
			found: func(f *fixture, e event, place string) []string {
				fields := ""
				if place == archived {
					fields = "result"
				}
				return []string{short(f, 650), row(verify.RowChanged, e, fields)}
			}},
		{name: "set back and taken over from the bucket", places: []string{tail}, status: verify.StatusSetBack,
			do: func(f *fixture, _ event) {
				f.ownLog()
				lost := f.leaves()[650:]
				f.setBack(650)
				f.inSystem(func(tx pgx.Tx) error {
					_, err := tx.Exec(f.Context(), "select custody.take_over_leaves(650, $1, '{}')", flat(lost))
					return err
				})
				f.seal()
				f.anchor()
			},
			found: func(f *fixture, _ event, _ string) []string {
				return []string{fmt.Sprintf("leaves_lost 650-%d", len(f.events)-1)}
			}},
	}
}

func bucketTamperings() []tampering {
	over := func(f *fixture, number int64, signed string) {
		f.put(ledger.CheckpointKey(origin, number), []byte(signed))
	}
	fork := func(f *fixture, number int64) string {
		c := f.anchors[number-1]
		c.Root = tlog.RecordHash([]byte("another tree"))
		return sign(f.TB, f.signer, c)
	}
	hide := func(f *fixture, key string) {
		bucket := f.store.(split).log.URL()[len("s3://"):]
		s3 := stacktest.Shared(f.TB).S3()
		_, err := s3.DeleteObject(f.Context(), deleteOf(bucket, key))
		require.NoError(f, err)
	}
	// without leaves objects out when the log is copied: what somebody did who broke the lock.
	rebuilt := func(f *fixture, change func(key string, content []byte) []byte) {
		f.only(change)
	}
	inPlace := func(name string, do func(f *fixture), found ...string) tampering {
		return tampering{name: name, places: []string{hot}, do: func(f *fixture, _ event) { do(f) }, found: just(found...)}
	}
	list := []tampering{}
	for number := int64(1); number <= 3; number++ {
		list = append(list,
			inPlace(fmt.Sprintf("checkpoint %d replaced by one over another root", number), func(f *fixture) {
				rebuilt(f, func(key string, content []byte) []byte {
					if key == ledger.CheckpointKey(origin, number) || number == 3 && key == ledger.NewestKey(origin) {
						return []byte(fork(f, number))
					}
					return content
				})
				f.exec("update custody_data.ledger_checkpoints set note = $2 where number = $1", number, fork(f, number))
				f.exec("update custody_data.ledger_checkpoints set root_hash = $2 where number = $1", number, forkRoot())
			}, fmt.Sprintf("checkpoint_forked #%d", number)),
			inPlace(fmt.Sprintf("another root put over checkpoint %d", number), func(f *fixture) { f.ownLog(); over(f, number, fork(f, number)) },
				fmt.Sprintf("checkpoint_forked #%d", number)),
			inPlace(fmt.Sprintf("a stranger's put over checkpoint %d", number), func(f *fixture) {
				f.ownLog()
				stranger, _ := newSigner(f.TB)
				over(f, number, sign(f.TB, stranger, f.anchors[number-1]))
			}, fmt.Sprintf("checkpoint_changed #%d", number)),
			inPlace(fmt.Sprintf("checkpoint %d put over itself", number), func(f *fixture) { f.ownLog(); over(f, number, f.notes[number-1]) },
				fmt.Sprintf("checkpoint_hidden #%d", number)),
			inPlace(fmt.Sprintf("delete marker over checkpoint %d", number), func(f *fixture) { f.ownLog(); hide(f, ledger.CheckpointKey(origin, number)) },
				fmt.Sprintf("checkpoint_hidden #%d", number)),
		)
	}
	return append(list,
		inPlace("an older one shown as the newest", func(f *fixture) { f.ownLog(); f.put(ledger.NewestKey(origin), []byte(f.notes[0])) }, "checkpoint_hidden #3"),
		inPlace("the newest hidden", func(f *fixture) { f.ownLog(); hide(f, ledger.NewestKey(origin)) }, "checkpoint_hidden #3"),
		inPlace("checkpoint 2 gone", func(f *fixture) {
			rebuilt(f, func(key string, content []byte) []byte {
				if key == ledger.CheckpointKey(origin, 2) {
					return nil
				}
				return content
			})
		}, "checkpoint_missing #2"),
		inPlace("checkpoint 2 unlocked", func(f *fixture) {
			f.unlocked = ledger.CheckpointKey(origin, 2)
			rebuilt(f, func(_ string, content []byte) []byte { return content })
		}, "checkpoint_unlocked #2"),
		tampering{name: "the newest too old", places: []string{hot}, do: func(*fixture, event) {}, found: just("stale_anchor #3"),
			change: []func(*verify.Options){func(o *verify.Options) { o.Now = func() time.Time { return time.Now().Add(3 * time.Hour) } }}},
	)
}

// TestTampering does each tampering to a database of its own and expects exactly
// what expected.md says, and no more.
func TestTampering(t *testing.T) {
	t.Parallel()
	backupURL = func(database string) string { return stacktest.Shared(t).URL("custody_dump", database) }
	copyOf(t)
	cases := slices.Concat(rowTamperings(), ledgerTamperings(), recordTamperings(), setBackTamperings(), bucketTamperings())
	// The sealer and the anchor go on after what is done to rows: they have no part in it.
	for _, c := range rowTamperings() {
		if c.name != "functions that show the old value" { // what they seal from then on is wrong as well
			c.anchored = true
			// A row near the end of the tree whose xid is changed to the next may be sealed once
			// more, and is no stranger then.
			c.places = slices.DeleteFunc(slices.Clone(c.places), func(place string) bool { return place == tail && c.name != "last rows deleted" })
			c.name += ", then anchored"
			cases = append(cases, c)
		}
	}
	for _, c := range cases {
		for _, place := range c.places {
			t.Run(c.name+"/"+place, func(t *testing.T) {
				t.Parallel()
				f := copyOf(t)
				if c.anchored {
					f.ownLog()
				}
				e := f.at(place)
				c.do(f, e)
				if c.anchored {
					f.seal()
					f.anchor()
				}
				report := f.verify(c.change...)
				want := c.found(f, e, place)
				slices.Sort(want)
				if want == nil {
					want = []string{}
				}
				require.Equal(t, want, told(report.Findings))
				status := c.status
				if status == 0 && len(want) > 0 {
					status = verify.StatusAltered
				}
				require.Equal(t, status, report.Status)
			})
		}
	}
}

var _ store.Store
