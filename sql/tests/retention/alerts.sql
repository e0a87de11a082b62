-- Closed alerts go in batches after the policy alerts; open ones stay, and so do those whose actor, or tenant, is under a hold.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('old_alerts');
insert into custody_data.identities (tenant_id, user_id) values ('old_alerts', 'ada'), ('old_alerts', 'dpo');
insert into custody_data.alerts (tenant_id, rule, severity, object_key, state, actor_id, first_at, last_at, recorded_to, events, detail, closed_at, closed_by, close_reason)
select 'old_alerts', 'network', 'high', 'key ' || n, case when n < 6 then 'closed' else 'open' end, case when n = 5 then identity('old_alerts', 'ada') end, t.at, t.at, t.at, 1, '{}',
  case when n < 6 then t.at end, case when n < 6 then identity('old_alerts', 'dpo') end, case when n < 6 then 'a colleague on a journey' end
from (values (1, '6 years 4 days'::interval), (2, '6 years 3 days'), (3, '6 years 2 days'), (4, '5 years'), (5, '6 years 1 day'), (6, '7 years')) v (n, age) cross join lateral (select now() - v.age as at) t;
create function pg_temp.left_over() returns text language sql as $$ select string_agg(a.object_key, ', ' order by a.object_key) from custody_data.alerts a where a.tenant_id = 'old_alerts' $$;

set local session authorization custody_dpo;
select enter('old_alerts', 'dpo') /* $1 */;
select set_config('testing.hold', custody.place_hold('{"user_id": "ada"}', 'case 1', 'claim of an employee')::text, true);
select row_eq($$select d.due_rows, d.held_rows, d.oldest_at, d.held_by from custody.retention_due d where d.class = 'alerts'$$, row (3::bigint, 1::bigint, now() - interval '6 years 4 days', array['case 1']), 'what is due, and what a hold keeps');
select is((select d.due_rows from custody.retention_due_at(now() - interval '3 days') d where d.class = 'alerts'), 1::bigint, 'as of another day');
select is(custody.enforce_retention('alerts', 2), 2::bigint, 'in batches');
select is((last_event('old_alerts', 'retention.run')).metadata - 'as_of' - 'basis', '{"class": "alerts", "keep": "6 years", "rows": 2}', 'each is an event');
select is(custody.enforce_retention('alerts', 2), 1::bigint, 'the rest');
select is(custody.enforce_retention('alerts', 2), 0::bigint, 'then nothing');
select is(pg_temp.left_over(), 'key 4, key 5, key 6', 'younger, held and open ones stay');
select custody.release_hold(current_setting('testing.hold')::uuid, 'settled');
select is(custody.enforce_retention('alerts', 2), 1::bigint, 'without its hold it goes');

-- Past the function nothing goes early.
reset session authorization;
select enter('old_alerts', 'owner') /* $1 */;
select is(attempt('custody_owner', format('delete from custody_data.alerts where object_key = %L', k)), 'PC020', k || ' is kept for the policy') from unnest(array['key 4', 'key 6']) k;
select * from finish();
rollback;
