package sql_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// dropMonth swaps or drops one month and says how many events went and stayed.
const dropMonth = `select rows_dropped || ' ' || rows_kept from custody.drop_archived_partitions()`

// oldMonth is a month past the hot period, in 2001, with three events of acme, one about
// a person; all are in a segment that was recorded a week ago.
func (b *bed) oldMonth(t *testing.T, worker *session, person string) time.Time {
	t.Helper()
	month := time.Date(2001, 3, 1, 0, 0, 0, 0, time.UTC)
	worker.run(t, tenant, `select custody.ensure_audit_partitions('2001-03-01', '2001-03-01')`)
	_, err := b.admin.Exec(t.Context(), `
		insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action, import_id)
		select 'acme', gen_random_uuid(), $1::timestamptz + n * interval '1 hour', $1, gen_random_uuid(), case n when 1 then $2::uuid end, 'account.login', gen_random_uuid()
		from generate_series(1, 3) n`, month, b.identity(t, person))
	require.NoError(t, err)
	b.settle(t)
	require.Positive(t, b.archive(t, worker, map[string][]string{}))
	b.edit(t, `update custody_data.archive_segments set recorded_at = recorded_at - interval '8 days'`)
	return month
}

// monthRows counts what is left of it, and looks at whether anything else is.
func (b *bed) monthRows(t *testing.T) int {
	t.Helper()
	require.Zero(t, ask[int](t, b, `select count(*) from pg_catalog.pg_class where relname like 'audit\_logs\_%\_kept'`), "no copy is left behind")
	require.Empty(t, ask[[]string](t, b, `select coalesce(array_agg(concat_ws(' ', id, object, detail)), '{}') from custody_check.findings where object like 'audit\_logs%'`))
	return ask[int](t, b, `select count(*) from custody_data.audit_logs where occurred_at < '2002-01-01'`)
}

// A month leaves while others write. Serial orders: what is committed before the month
// goes stays in it; what comes later makes the month anew.
func TestAMonthLeavesWhileOthersWrite(t *testing.T) {
	t.Parallel()
	cases := map[string]func(t *testing.T, b *bed, dropper, importer, app, dpo *session, month time.Time){
		"a late event is under way": func(t *testing.T, b *bed, dropper, importer, app, _ *session, month time.Time) {
			importer.begin(t, "")
			importer.must(t, lateEvents(month.AddDate(0, 0, 20), 1))
			dropper.begin(t, "")
			dropper.must(t, setSystem)
			drop := dropper.send(t.Context(), dropMonth)
			b.requireWaiting(t, drop, importer)
			app.run(t, tenant, `select custody.record_audit_event('account.login')`) // waits for nobody
			importer.commit(t)
			out, err := drop.result(t)
			require.NoError(t, err)
			require.Equal(t, "3 1", out, "the late event stays")
			late := importer.send(t.Context(), `begin; `+`select custody.set_context('acme', 'custody_runner'); `+lateEvents(month.AddDate(0, 0, 21), 1)+`; commit`)
			b.requireWaiting(t, late, dropper)
			dropper.commit(t)
			_, err = late.result(t)
			require.NoError(t, err)
			require.Equal(t, 2, b.monthRows(t), "and the next goes where it is")
		},
		"a late event is the first of what comes after": func(t *testing.T, b *bed, dropper, importer, _, _ *session, month time.Time) {
			require.Equal(t, "3 0", dropper.run(t, "system", dropMonth))
			require.Zero(t, b.monthRows(t))
			importer.late(t, month, 2)
			require.Equal(t, 2, b.monthRows(t))
			require.Equal(t, "", dropper.run(t, "system", dropMonth))
		},
		"a hold is placed meanwhile": func(t *testing.T, b *bed, dropper, importer, _, dpo *session, month time.Time) {
			importer.begin(t, "")
			importer.must(t, lateEvents(month, 1))
			dropper.begin(t, "")
			dropper.must(t, setSystem)
			drop := dropper.send(t.Context(), dropMonth)
			b.requireWaiting(t, drop, importer)
			hold := dpo.run(t, tenant, `select custody.place_hold('{"user_id":"ada"}', 'case', 'claim')`)
			importer.rollback(t)
			_, err := drop.result(t)
			requireCode(t, err, "55P03")
			dropper.rollback(t)
			require.Equal(t, 3, b.monthRows(t), "nothing went")
			require.Equal(t, "2 1", dropper.run(t, "system", dropMonth), "again, and what is held stays")
			require.Equal(t, "", dropper.run(t, "system", dropMonth))
			dpo.run(t, tenant, `select custody.release_hold('`+hold+`', 'over')`)
			require.Equal(t, "1 0", dropper.run(t, "system", dropMonth), "until it is released")
			require.Zero(t, b.monthRows(t))
		},
		"leaves are taken over meanwhile": func(t *testing.T, b *bed, dropper, importer, _, _ *session, month time.Time) {
			importer.begin(t, "")
			importer.must(t, lateEvents(month, 1))
			dropper.begin(t, "")
			dropper.must(t, setSystem)
			drop := dropper.send(t.Context(), dropMonth)
			b.requireWaiting(t, drop, importer)
			_, err := b.admin.Exec(t.Context(), `update custody_data.ledger_heads set incarnation_id = pg_catalog.gen_random_uuid()`)
			require.NoError(t, err)
			importer.rollback(t)
			_, err = drop.result(t)
			requireCode(t, err, "55P03")
			dropper.rollback(t)
			require.Equal(t, 3, b.monthRows(t), "nothing went")
			require.Equal(t, "3 0", dropper.run(t, "system", dropMonth))
		},
		"an appender holds the trail": func(t *testing.T, b *bed, dropper, _, app, _ *session, _ time.Time) {
			app.begin(t, "")
			app.must(t, `select custody.record_audit_event('account.login')`)
			_, err := dropper.tryRun(t.Context(), "system", "", `set local lock_timeout = '200ms'; `+dropMonth)
			requireCode(t, err, "55P03")
			require.Equal(t, 3, b.monthRows(t))
			app.commit(t)
			require.Equal(t, "3 0", dropper.run(t, "system", dropMonth))
		},
		"the worker dies": func(t *testing.T, b *bed, dropper, _, app, dpo *session, _ time.Time) {
			dpo.run(t, tenant, `select custody.place_hold('{"user_id":"ada"}', 'case', 'claim')`)
			app.begin(t, "")
			app.must(t, `select custody.record_audit_event('account.login')`)
			dropper.begin(t, "")
			dropper.must(t, setSystem)
			drop := dropper.send(t.Context(), dropMonth)
			b.requireWaiting(t, drop, app)
			require.True(t, ask[bool](t, b, `select pg_catalog.pg_terminate_backend($1)`, int32(dropper.pid)))
			_, err := drop.result(t)
			require.Error(t, err)
			app.commit(t)
			require.Equal(t, 3, b.monthRows(t), "as if it had not begun")
			require.Equal(t, "2 1", b.session(t, runner).run(t, "system", dropMonth))
		},
		"two drop at once": func(t *testing.T, b *bed, dropper, importer, _, _ *session, _ time.Time) {
			out := make([]string, 2)
			errs := make([]error, 2)
			together(
				func() { out[0], errs[0] = dropper.tryRun(t.Context(), "system", "", dropMonth) },
				func() { out[1], errs[1] = importer.tryRun(t.Context(), "system", "", dropMonth) })
			require.NoError(t, errs[0])
			require.NoError(t, errs[1])
			require.ElementsMatch(t, []string{"3 0", ""}, out)
			require.Equal(t, 1, ask[int](t, b, `select count(*) from custody_data.partition_drops`))
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			worker, app, dpo := b.session(t, runner), b.session(t, "custody_app"), b.session(t, dpo)
			app.run(t, tenant, `select custody.record_consent('ada', 'service', true, '1')`)
			month := b.oldMonth(t, worker, "ada")
			c(t, b, worker, b.session(t, runner), app, dpo, month)
		})
	}
}

const setSystem = `select custody.set_context('system', 'custody_runner')`

// Segments are opened while events of days that are over come in and are sealed: every
// leaf of such a day is in one segment at the end.
func TestSegmentsAreOpenedOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	first := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -3)
	b.session(t, runner).run(t, tenant, `select custody.ensure_audit_partitions(now() - interval '3 days', now())`)
	sealer := b.session(t, runner)
	for n := range 3 {
		sealer.late(t, first.AddDate(0, 0, n), 50)
	}
	b.settle(t)
	sealer.run(t, "system", `select count(*) from custody.open_segments()`)
	var calls []func()
	for i, s := range b.sessions(t, runner, 3) {
		calls = append(calls, func() {
			for n := range 2 * rounds {
				s.late(t, first.AddDate(0, 0, (n+i)%3), 50)
			}
		})
	}
	for _, s := range b.sessions(t, runner, 2) {
		calls = append(calls, func() {
			for range rounds {
				s.run(t, "system", `select count(*) from custody.open_segments()`)
			}
		})
	}
	calls = append(calls, func() {
		for range 5 * rounds {
			sealer.run(t, "system", `select custody.seal_audit_log(300)`)
		}
	})
	together(calls...)
	b.settle(t)
	sealer.run(t, "system", `select count(*) from custody.open_segments()`)
	require.Equal(t, 3*50+3*2*rounds*50, ask[int](t, b, `select coalesce(sum(events), 0)::integer from custody_data.archive_segments`))
	require.Equal(t, []int{1}, ask[[]int](t, b, `
		select array_agg(distinct x.segments)
		from (
		  select (select count(*)::integer from custody_data.archive_segments s where s.leaves @> l.leaf_index and s.day = (a.occurred_at at time zone 'UTC')::date) as segments
		  from custody_data.audit_logs a
		  left join custody_data.leaves_between(1, 9223372036854775806) l on l.xid = a.xid::text::bigint and l.entry_id = a.log_entry_id
		  where a.occurred_at < date_trunc('day', now() at time zone 'UTC') at time zone 'UTC'
		) x`), "each event is in one segment, of its day")
	require.Greater(t, ask[int](t, b, `select min(p.parts)::integer from (select count(*) as parts from custody_data.archive_segments group by day) p`), 1, "late events make further parts")
}
