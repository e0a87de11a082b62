-- The trail is read newest first, by person and action, page by page within its times; the reading is an event.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('reading_trail');
set local session authorization custody_app;
select enter('reading_trail', 'clerk', 'p') /* $1 */;
select custody.record_audit_event(a, 'document', 'd' || n, p_subject_user_id => s, p_occurred_at => clock_timestamp() - make_interval(mins => 60 - n), p_personal => '{"ip": "192.0.2.1"}')
from (values (1, 'account.login', null), (2, 'phi.access', 'ada'), (3, 'phi.access', 'bob'), (4, 'phi.update', 'ada'), (5, 'account.logout', null)) e (n, a, s);
select enter('reading_trail', 'ada') /* $1 */;
select custody.record_audit_event('phi.disclose', 'document', 'd6', p_occurred_at => clock_timestamp() - interval '54 minutes');
select set_config('testing.from', (now() - interval '2 hours')::text, true), set_config('testing.to', (clock_timestamp() - interval '10 minutes')::text, true);

create function pg_temp.page(p_user_id text default null, p_action text default null, p_limit int default 100, p_cursor text default null) returns setof custody.audit_trail
language sql as $$
  select t.* from custody.audit_events(current_setting('testing.from')::timestamptz, current_setting('testing.to')::timestamptz, p_user_id, p_action, p_limit, p_cursor) t;
$$;

set local session authorization custody_dpo;
select enter('reading_trail', 'dpo', 'audit') /* $1 */;
select results_eq($$select p.resource_id collate "default" from pg_temp.page() p$$, array['d6', 'd5', 'd4', 'd3', 'd2', 'd1'], 'all, the newest first');
select row_eq($$select p.actor collate "default", p.subject collate "default", p.action collate "default", p.purpose, p.personal, p.complete_from from pg_temp.page() p where p.resource_id = 'd2'$$,
  row ('clerk'::text, 'ada'::text, 'phi.access'::text, 'p'::text, '{"ip": "192.0.2.1"}'::jsonb, null::timestamptz), 'with actor and subject by their user_ids');
select results_eq($$select p.resource_id collate "default" from pg_temp.page('ada') p$$, array['d6', 'd4', 'd2'], 'about or by a person');
select results_eq($$select p.resource_id collate "default" from pg_temp.page(p_action => 'phi.access') p$$, array['d3', 'd2'], 'of an action');
select results_eq($$select p.resource_id collate "default" from pg_temp.page('ada', 'phi.access') p$$, array['d2'], 'of both');
select is_empty($$select pg_temp.page(p_action => 'no.such.action')$$, 'of an unknown action there are none');

create temp table pages as
with recursive pages (n, ids, cursor) as (
  select 1, array_agg(p.resource_id collate "default"), (array_agg(p.cursor))[2] from pg_temp.page(p_limit => 2) p
  union all
  select n + 1, (select array_agg(p.resource_id collate "default") from pg_temp.page(p_limit => 2, p_cursor => l.cursor) p), (select max(p.cursor) from (select p.cursor from pg_temp.page(p_limit => 2, p_cursor => l.cursor) p offset 1) p)
  from pages l where l.cursor is not null
)
select n, ids from pages;
select results_eq('select ids from pages order by n', $$values (array['d6', 'd5']), (array['d4', 'd3']), (array['d2', 'd1']), (null::text[])$$, 'page by page, none twice and none left out');

-- Reading is an event, and shows who looked for what.
select is((last_event('reading_trail', 'audit.read')).db_role, 'custody_dpo', 'the reading is an event of the reader');
select enter('reading_trail', 'dpo', 'complaint 7') /* $1 */;
select is((select count(*) from pg_temp.page('ada', 'phi.access')), 1::bigint, 'a reading');
select row_eq($$select e.metadata, e.subject_id, e.purpose from last_event('reading_trail', 'audit.read') e$$,
  row (jsonb_build_object('rows', 1, 'by_person', true, 'action', 'phi.access', 'from', custody_data.entry_time(current_setting('testing.from')::timestamptz),
    'to', custody_data.entry_time(current_setting('testing.to')::timestamptz)), identity('reading_trail', 'ada'), 'complaint 7'::text),
  'with the bounds, how many rows it gave, about whom and for what purpose');

set local session authorization custody_audit;
select enter('reading_trail', 'auditor') /* $1 */;
select is((select count(*) from pg_temp.page()), 6::bigint, 'auditors read the trail');
select is((select count(*) from pg_temp.page() p where p.personal is not null), 0::bigint, 'without the personal part');
select ok(rows_of('reading_trail', 'audit_logs') > 10, 'each reading adds an event');
select results_eq($$select p.resource_id collate "default" from custody.audit_events((select e.occurred_at from events('reading_trail') e where e.resource_id = 'd3'),
  (select e.occurred_at from events('reading_trail') e where e.resource_id = 'd5')) p$$, array['d4', 'd3'], 'p_from is in, p_to is not');

set local session authorization custody_app;
select enter('reading_trail', 'clerk') /* $1 */;
select refuses($$select pg_temp.page()$$, 'PC015', 'an application does not read the trail of all');
select enter('reading_trail', 'clerk', null, 'ada') /* $1 */;
select results_eq($$select p.resource_id collate "default" from pg_temp.page() p$$, array['d6', 'd4', 'd2'], 'of its subject it does');
select is_empty($$select pg_temp.page(p_action => 'account.login')$$, 'and sees nobody else''s');
select refuses($$select pg_temp.page('bob')$$, 'PC015', 'nor by name');
select is((select count(*) from pg_temp.page() p where p.personal is not null), 0::bigint, 'without the personal part');

set local session authorization custody_dpo;
select enter('reading_trail', 'dpo') /* $1 */;
select refuses($$select pg_temp.page('never seen')$$, 'PC011', 'of somebody who was never seen');
select refuses($$select custody.audit_events(now() - interval '1 hour', now(), '')$$, 'PC003', 'of nobody');
select refuses($$select custody.audit_events(null, now())$$, 'PC009', 'without a beginning');
select refuses($$select custody.audit_events(now(), null)$$, 'PC009', 'without an end');
select refuses($$select custody.audit_events(now(), now())$$, 'PC009', 'of no time');
select refuses($$select custody.audit_events(now(), now() - interval '1 hour')$$, 'PC009', 'backwards');
select refuses($$select custody.audit_events('-infinity', now())$$, 'PC009', 'from ever');
select refuses($$select custody.audit_events(now(), 'infinity')$$, 'PC009', 'for ever');
select refuses($$select pg_temp.page(p_limit => 0)$$, 'PC023', 'a page of none');
select refuses($$select pg_temp.page(p_limit => 10001)$$, 'PC023', 'a page of 10001');
select refuses($$select pg_temp.page(p_limit => null)$$, 'PC023', 'a page without a limit');
select refuses($$select pg_temp.page(p_cursor => '')$$, 'PC023', 'an empty cursor');
select refuses($$select pg_temp.page(p_cursor => '1.x')$$, 'PC023', 'a cursor that is none');
select refuses($$select pg_temp.page(p_cursor => '1.11111111-1111-4111-8111-111111111111; select')$$, 'PC023', 'a cursor with more behind it');
set local session authorization custody_reports;
select enter('reading_trail', 'analyst', null, 'ada') /* $1 */;
select refuses($$select pg_temp.page()$$, '42501', 'reports do not read the trail');
set local session authorization custody_runner;
set local role custody_worker;
select enter('reading_trail', 'runner', null, 'ada') /* $1 */;
select refuses($$select pg_temp.page()$$, '42501', 'nor does the worker');
select * from finish();
rollback;
