package retrieve

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// bed is a database with an archive.
type bed struct {
	*log
	pool  *pgxpool.Pool // of the runner
	super *pgx.Conn
	db    Database
}

func inContext(pool *pgxpool.Pool) Database {
	return Database{In: func(ctx context.Context, tenant string, work func(pgx.Tx) error) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := db.New().SetContext(ctx, tx, db.SetContextParams{Tenant: tenant, Actor: "enquirer"}); err != nil {
				return err
			}
			return work(tx)
		})
	}}
}

// newBed seals and archives days of events: each by bob about nobody, those of day 3
// and 7 by ada or about her too, all in two tenants.
func newBed(t *testing.T, days, events int) *bed {
	t.Helper()
	d := stacktest.DB(t)
	b := &bed{log: newLog(t), pool: d.Pool(t, "custody_runner"), super: d.Conn(t, stack.Superuser)}
	b.db = inContext(b.pool)
	exec := func(sql string, args ...any) {
		t.Helper()
		_, err := b.super.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	last := theDay.AddDate(0, 0, days)
	exec(`insert into custody_data.tenants (tenant_id, name) values ('acme', 'Acme'), ('other', 'Other')`)
	exec(`insert into custody_data.identities (tenant_id, identity_id, kind, user_id) values ('acme', $1, 'person', 'ada'), ('acme', $2, 'person', 'bob')`, ada, bob)
	exec(`select custody.ensure_audit_partitions($1, $2)`, theDay, last)
	for n := range days {
		exec(`insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, metadata, import_id)
			select case n % 4 when 3 then 'other' else 'acme' end, gen_random_uuid(), $1::timestamptz + n * interval '1 second', case when $5 and n % 10 = 1 then $2::uuid else $3::uuid end,
			  case when $5 and n % 10 = 2 then $2::uuid end, case n % 2 when 0 then 'phi.access' else 'account.login' end, 'document', E'file "' || n || E'"\n', jsonb_build_object('count', n), gen_random_uuid()
			from generate_series(0, $4 - 1) n`, theDay.AddDate(0, 0, n), ada, bob, events, n == 3 || n == 7)
	}
	type open struct {
		Day    time.Time
		Part   int
		Leaves string
		Retain time.Time
	}
	var segments []open
	// Whoever else has a transaction open in the cluster delays sealing.
	require.Eventually(t, func() bool {
		var sealed int64
		require.NoError(t, b.db.In(t.Context(), system, func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), `select (custody.seal_audit_log(1000000) ->> 'tree_size')::bigint`).Scan(&sealed)
		}))
		return sealed >= int64(days*events)
	}, time.Minute, 20*time.Millisecond)
	require.NoError(t, b.db.In(t.Context(), system, func(tx pgx.Tx) error {
		rows, err := tx.Query(t.Context(), `select s.day, s.part, s.leaves::text, s.retain_until from custody.open_segments() s where s.day < '2026-06-01'`)
		if err != nil {
			return err
		}
		segments, err = pgx.CollectRows(rows, pgx.RowToStructByPos[open])
		return err
	}))
	require.Len(t, segments, days)
	rows, err := b.super.Query(t.Context(), `select l.leaf_index, custody.audit_entry(a) from custody_data.leaves_between(1, 9223372036854775806) l
		join custody_data.audit_logs a on a.xid::text::bigint = l.xid and a.log_entry_id = l.entry_id order by 1`)
	require.NoError(t, err)
	var leaf int64
	var entry string
	_, err = pgx.ForEachRow(rows, []any{&leaf, &entry}, func() error {
		require.Equal(t, int64(len(b.leaves)), leaf)
		b.seal([]byte(entry))
		return nil
	})
	require.NoError(t, err)
	for _, s := range segments {
		runs, err := segment.ParseRuns(s.Leaves)
		require.NoError(t, err)
		var leaves []int64
		for leaf := range runs.All() {
			leaves = append(leaves, leaf)
		}
		m, object := b.pack(s.Day, s.Part, leaves)
		m.RetainUntil = s.Retain.UTC()
		m.ObjectVersion = b.put(m.ObjectKey, object)
		text, err := m.Encode()
		require.NoError(t, err)
		b.put(m.Name().ManifestKey(), text)
		sum := sha256.Sum256(text)
		require.NoError(t, b.db.In(t.Context(), system, func(tx pgx.Tx) error {
			_, err := db.New().RecordSegment(t.Context(), tx, db.RecordSegmentParams{
				Day: s.Day.Format(time.DateOnly), Part: int32(s.Part), ObjectKey: m.ObjectKey, ManifestKey: m.Name().ManifestKey(), //nolint:gosec // small
				Manifest: text, ManifestSha256: sum[:], RetainUntil: s.Retain, People: m.People,
			})
			return err
		}))
	}
	return b
}

func (b *bed) options(q Query) Options {
	o := b.log.options(q)
	o.Catalog, o.Tree = b.db, b.db
	return o
}

// counting counts the objects that are read.
type counting struct {
	store.Store
	mu   sync.Mutex
	gets map[string]int
}

func (c *counting) Get(ctx context.Context, key, version string) (*store.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gets[key]++
	return c.Store.Get(ctx, key, version)
}

func (b *bed) count(t *testing.T, sql string, args ...any) (n int64) {
	t.Helper()
	require.NoError(t, b.super.QueryRow(t.Context(), sql, args...).Scan(&n))
	return n
}

func TestOnlyWhatCanHoldItIsRead(t *testing.T) {
	t.Parallel()
	b := newBed(t, 10, 400)
	whole := Query{From: theDay, To: theDay.AddDate(0, 0, 10)}
	id, err := b.db.Identity(t.Context(), "acme", "ada")
	require.NoError(t, err)
	require.Equal(t, ada, id)
	id, err = b.db.Identity(t.Context(), "acme", ada.String())
	require.NoError(t, err)
	require.Equal(t, ada, id)
	_, err = b.db.Identity(t.Context(), "other", "ada")
	require.ErrorIs(t, err, db.ErrUnknownPerson)

	get := func(t *testing.T, q Query) ([]string, Result, *counting) {
		t.Helper()
		o := b.options(q)
		c := &counting{Store: b.store, gets: map[string]int{}}
		o.Store = c
		lines, _, r, err := get(o)
		require.NoError(t, err)
		return lines, r, c
	}
	t.Run("a day", func(t *testing.T) {
		lines, r, c := get(t, Day(theDay.AddDate(0, 0, 4)))
		require.Len(t, lines, 400)
		require.Equal(t, 1, r.Segments)
		require.Len(t, c.gets, 2, "a manifest and an object")
		require.Equal(t, b.count(t, `select count(*) from custody_data.audit_logs a where custody.audit_entry(a) = any ($1)`, lines), int64(400))
	})
	t.Run("a person", func(t *testing.T) {
		q := whole
		q.Tenant, q.Identity = "acme", ada
		lines, r, c := get(t, q)
		require.Equal(t, b.count(t, `select count(*) from custody_data.audit_logs a where tenant_id = 'acme' and $1 in (actor_id, subject_id)`, ada), int64(len(lines)))
		require.NotEmpty(t, lines)
		require.Equal(t, 2, r.Segments, "day 3 and day 7")
		for key := range c.gets {
			require.True(t, strings.Contains(key, "-12.") || strings.Contains(key, "-16."), key)
		}
	})
	t.Run("an entry", func(t *testing.T) {
		var id uuid.UUID
		require.NoError(t, b.super.QueryRow(t.Context(), `select log_entry_id from custody_data.audit_logs where occurred_at = $1`, theDay.AddDate(0, 0, 6)).Scan(&id))
		q := whole
		q.Entry = id
		lines, r, _ := get(t, q)
		require.Len(t, lines, 1)
		require.Contains(t, lines[0], id.String())
		require.Equal(t, 1, r.Segments)
	})
	t.Run("an action in an hour of two days", func(t *testing.T) {
		lines, r, _ := get(t, Query{From: theDay.Add(24*time.Hour - time.Minute), To: theDay.Add(24*time.Hour + time.Minute), Action: "phi.access"})
		require.Len(t, lines, 30)
		require.Equal(t, 1, r.Segments, "the first day has no event so late, which the record knows")
	})
	t.Run("nothing", func(t *testing.T) {
		_, err := Run(t.Context(), b.options(Day(theDay.AddDate(1, 0, 0))), func(*Event) error { return nil })
		require.ErrorIs(t, err, ErrNothing)
	})
}

func TestCopiesAreOnRecord(t *testing.T) {
	t.Parallel()
	b := newBed(t, 2, 5000)
	q := Query{From: theDay, To: theDay.AddDate(0, 0, 2), Tenant: "acme", Action: "phi.access"}
	restore, err := b.db.Begin(t.Context(), q, "case 7", time.Hour)
	require.NoError(t, err)
	table := restore.Table(t.Context())
	result, err := Run(t.Context(), b.options(q), table.Take)
	require.NoError(t, err)
	require.NoError(t, table.Flush())
	require.NoError(t, restore.Finish(t.Context(), result))
	require.EqualValues(t, 5000, result.Rows)

	require.EqualValues(t, 5000, b.count(t, `select count(*) from custody_data.restored_events e join custody_data.audit_logs a on a.tenant_id = e.tenant_id and a.log_entry_id = e.log_entry_id
		where e.entry = custody.audit_entry(a) and (e.occurred_at, e.recorded_at, e.actor_id, e.action, e.metadata, e.xid, e.resource_id) = (a.occurred_at, a.recorded_at, a.actor_id, a.action, a.metadata, a.xid, a.resource_id)
		  and e.restored_from like 'audit-archives/2026/03/audit-logs-2026-03-%.jsonl.zst.age' and e.expires_at <= now() + interval '1 hour'`))
	require.EqualValues(t, 1, b.count(t, `select count(*) from custody_data.archive_restores r where r.rows = 5000 and r.segments_read = 2 and r.of_tenant = 'acme' and r.finished_at is not null and r.reason = 'case 7'`))
	require.EqualValues(t, 2, b.count(t, `select count(*) from custody_data.audit_logs a where a.tenant_id = 'acme' and a.action = 'archive.restore'`))

	t.Run("again it changes nothing", func(t *testing.T) {
		again, err := b.db.Begin(t.Context(), q, "case 7 again", 0)
		require.NoError(t, err)
		for range 2 {
			table := again.Table(t.Context())
			_, err = Run(t.Context(), b.options(q), table.Take)
			require.NoError(t, err)
			require.NoError(t, table.Flush())
		}
		require.EqualValues(t, 5000, b.count(t, `select count(*) from custody_data.restored_events e where e.restore_id = $1`, again.ID))
	})
	t.Run("a batch that is refused ends it", func(t *testing.T) {
		over, err := b.db.Begin(t.Context(), q, "case 7 over", 0)
		require.NoError(t, err)
		require.NoError(t, over.Finish(t.Context(), Result{}))
		table := over.Table(t.Context())
		_, err = Run(t.Context(), b.options(q), table.Take)
		require.ErrorIs(t, db.FromPg(errors.Join(err, table.Flush())), db.ErrInvalidArgument)
		require.Zero(t, b.count(t, `select count(*) from custody_data.restored_events e where e.restore_id = $1`, over.ID))
	})
	t.Run("of all tenants", func(t *testing.T) {
		q := Day(theDay)
		all, err := b.db.Begin(t.Context(), q, "case 8", 0)
		require.NoError(t, err)
		table := all.Table(t.Context())
		_, err = Run(t.Context(), b.options(q), table.Take)
		require.NoError(t, err)
		require.NoError(t, table.Flush())
		require.EqualValues(t, 1250, b.count(t, `select count(*) from custody_data.restored_events e where e.restore_id = $1 and e.tenant_id = 'other'`, all.ID))
	})
	t.Run("no reason", func(t *testing.T) {
		_, err := b.db.Begin(t.Context(), q, " ", 0)
		require.ErrorIs(t, db.FromPg(err), db.ErrInvalidArgument)
	})
	t.Run("a leaf that was altered", func(t *testing.T) {
		_, err := b.super.Exec(t.Context(), `set session_replication_role = replica; alter table custody_data.ledger_tiles disable trigger all;
			update custody_data.ledger_tiles set hashes = set_byte(hashes, 32, get_byte(hashes, 32) # 1) where level = 0 and tile_index = 3`)
		require.NoError(t, err)
		_, err = Run(t.Context(), b.options(Day(theDay)), func(*Event) error { return nil })
		require.ErrorContains(t, err, fmt.Sprintf("is not what was sealed as leaf %d", 3*tileWidth+1))
	})
}
