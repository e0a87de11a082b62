package sql_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Events of every admissible time come in at once: imports of long ago, of the first and
// last instants of months and days, live events of yesterday and of a day ahead, while
// months are made for them and while somebody attaches one by hand. Each is stored, and
// ends in one segment: that of its day, once the day has closed.
func TestEventsOfAnyTimeHaveTheirPlace(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	now := time.Now().UTC().Truncate(time.Microsecond) // as Postgres keeps it; it would round
	today := now.Truncate(24 * time.Hour)
	var past []time.Time
	for _, at := range []string{
		"1970-01-01T00:00:00Z", "1970-01-31T23:59:59.999999Z", "1970-02-01T00:00:00Z", "1999-12-31T23:59:59.999999Z", "2000-01-01T00:00:00Z",
		"2000-02-29T12:00:00Z", "2004-02-29T23:59:59.999999Z", "2004-03-01T00:00:00Z", "2011-05-15T12:00:00Z",
	} {
		parsed, err := time.Parse(time.RFC3339Nano, at)
		require.NoError(t, err)
		past = append(past, parsed)
	}
	month := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	past = append(past, month, month.Add(-time.Microsecond), today, today.Add(-time.Microsecond))
	live := []time.Time{now, now.Add(-23 * time.Hour), now.Add(23 * time.Hour), today}

	_, err := b.admin.Exec(t.Context(), `create table public.quarter (like custody_data.audit_logs including all);
		alter table custody_data.audit_logs attach partition public.quarter for values from ('2011-04-01 00:00+00') to ('2011-07-01 00:00+00')`)
	require.NoError(t, err)

	const importers, appenders = 4, 3
	given := make([]map[uuid.UUID]time.Time, importers+appenders)
	var calls []func()
	errs := make([]error, len(given))
	for i := range given {
		given[i] = map[uuid.UUID]time.Time{}
		if i < importers {
			s := b.session(t, "custody_runner")
			calls = append(calls, func() {
				for j := range past {
					at := past[(j+i*3)%len(past)] // in an order of its own
					id := uuid.New()
					given[i][id] = at
					if _, err := s.tryRun(t.Context(), tenant, "", fmt.Sprintf(`select custody.ensure_audit_partitions('%[2]s', '%[2]s');
						insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
						values ('acme', '%[1]s', '%[2]s', gen_random_uuid(), 'account.login', gen_random_uuid())`, id, at.Format(time.RFC3339Nano))); err != nil {
						errs[i] = err
						return
					}
				}
			})
			continue
		}
		s := b.session(t, "custody_app")
		calls = append(calls, func() {
			for _, at := range live {
				id := uuid.New()
				given[i][id] = at
				if _, err := s.tryRun(t.Context(), tenant, "", fmt.Sprintf(`select custody.record_audit_event('account.login', p_log_entry_id => '%s', p_occurred_at => '%s')`, id, at.Format(time.RFC3339Nano))); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	together(calls...)
	for _, err := range errs {
		require.NoError(t, err)
	}

	// What other tests have under way delays the sealer.
	runner := b.session(t, "custody_runner")
	require.Eventually(t, func() bool {
		runner.run(t, "system", `select custody.seal_audit_log(100000)`)
		return ask[bool](t, b, `select coalesce((select sum(pg_catalog.octet_length(e.xids)) / 8 from custody_data.ledger_entries e), 0) = (select count(*) from custody_data.audit_logs)`)
	}, 3*time.Minute, 10*time.Millisecond)
	runner.run(t, "system", fmt.Sprintf(`select custody.open_segments('%s')`, today.Format(time.DateOnly)))

	type place struct {
		ID  uuid.UUID
		Day time.Time
	}
	placed := map[uuid.UUID][]time.Time{}
	require.NoError(t, runner.tryBegin(t.Context(), "", "system", ""))
	rows, err := runner.Query(t.Context(), `
		select pg_catalog.encode(pg_catalog.substr(l.entry_ids, n * 16 + 1, 16), 'hex')::uuid, s.day
		from custody.archive_segments s
		cross join lateral custody.segment_leaves(s.day, s.part, null, 10000) l
		cross join lateral pg_catalog.generate_series(0, pg_catalog.octet_length(l.entry_ids) / 16 - 1) n`)
	require.NoError(t, err)
	for rows.Next() {
		var p place
		require.NoError(t, rows.Scan(&p.ID, &p.Day))
		placed[p.ID] = append(placed[p.ID], p.Day)
	}
	require.NoError(t, rows.Err())
	runner.rollback(t)

	stored := 0
	for _, events := range given {
		for id, at := range events {
			stored++
			require.True(t, at.Equal(ask[time.Time](t, b, `select occurred_at from custody_data.audit_logs where log_entry_id = $1::text::uuid`, id.String())), "%s is stored", at)
			if day := at.Truncate(24 * time.Hour); day.Before(today) {
				require.Equal(t, []time.Time{day}, placed[id], "%s is in the segment of its day, and in no other", at)
			} else {
				require.Empty(t, placed[id], "the day of %s has not closed", at)
			}
		}
	}
	require.Equal(t, importers*len(past)+appenders*len(live), stored)
	require.Equal(t, importers, ask[int](t, b, `select count(*) from public.quarter where $1 <> ''`, "x"), "those of the quarter are where somebody made a place for them")
}
