-- Leaves that the bucket does not know are cut off: the segments that had them stand for nothing any more, recorded or
-- not, and every event has one segment again.
begin;
set local search_path = tap, testing;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('superseded');
set local session authorization custody_runner;
select enter('superseded', 'runner') /* $1 */;
select custody_data.require_actor(), custody.ensure_audit_partitions('2001-01-01 00:00:00+00', '2001-02-01 00:00:00+00');
reset session authorization;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id, xid)
select 'superseded', gen_random_uuid(), v.t::timestamptz, identity('superseded', 'runner'), 'account.login', gen_random_uuid(), v.x::text::xid8
from (values ('2001-01-31 12:00:00+00', 5), ('2001-01-31 12:00:00+00', 6), ('2001-02-01 12:00:00+00', 7)) v (t, x);
create temp view segments as select s.day, s.part, s.leaves::text, s.superseded_at is not null as superseded, s.recorded_at is not null as recorded from custody_data.archive_segments s where s.day < '2002-01-01';
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select count(*) from custody.open_segments() \g /dev/null
reset session authorization;
select set_eq('select * from segments', $$values ('2001-01-31'::date, 1, '{[0,2)}', false, false), ('2001-02-01', 1, '{[2,3)}', false, false)$$, 'three events in two segments');
update custody_data.archive_segments set object_key = 'k', manifest_key = 'm', plain_bytes = 1, compressed_bytes = 1, stored_bytes = 1, plain_sha256 = '', compressed_sha256 = '', stored_sha256 = '', manifest_sha256 = '', root_hash = '',
  first_occurred_at = now(), last_occurred_at = now(), people = '', recipients = '{}', retain_until = now(), recorded_at = now() where day = '2001-02-01';
savepoint opened;

set local session authorization custody_runner;
select custody.take_over_leaves(1, sha256('x'), '{}') \g /dev/null
reset session authorization;
select set_eq('select * from segments', $$values ('2001-01-31'::date, 1, '{[0,2)}', true, false), ('2001-01-31', 2, '{[0,1)}', false, false), ('2001-02-01', 1, '{[2,3)}', true, true)$$, 'both are superseded, and what is left of the first is a part of its own');
select is((last_event('system', 'ledger.take_over')).metadata -> 'segments', '["2001-01-31.1", "2001-02-01.1"]', 'which the event says');
set local session authorization custody_runner;
select results_eq($$select o.day, o.part, o.events from custody.open_segments() o where o.day < '2002-01-01'$$, $$values ('2001-01-31'::date, 2, 1::bigint), ('2001-01-31', 3, 1), ('2001-02-01', 2, 1)$$, 'the events that were swept up have segments');
reset session authorization;
select set_eq($$select a.log_entry_id from custody_data.audit_logs a where a.tenant_id = 'superseded' and a.occurred_at < '2002-01-01'$$,
  $$select l.entry_id from custody_data.archive_segments s join custody_data.leaves_between(1, 9223372036854775806) l on s.leaves @> l.leaf_index where s.superseded_at is null and s.day < '2002-01-01'$$, 'all of them');
select is_empty($$select 1 from custody_data.archive_segments s join custody_data.archive_segments t on s.leaves && t.leaves and (s.day, s.part) < (t.day, t.part) where s.superseded_at is null and t.superseded_at is null$$, 'and none in two');
select is((select count(*) from custody_data.archive_segments s where s.leaves @> 1::bigint and s.superseded_at is null), 0::bigint, 'the lost leaf is in none');
set local session authorization custody_runner;
select refuses($$select custody.record_segment('2001-01-31', 1, 'k', 'm', '{}', sha256('x'), now() + interval '8 years', '')$$, 'PC029', 'a superseded segment is not recorded');
select is_empty($$select 1 from custody.find_segments('2001-01-01', '2001-12-31')$$, 'nor found');
select is((select string_agg(concat_ws(' ', m.state, m.rows, m.rows_kept), ', ' order by m.range_from) from custody.audit_months() m where m.partition_name like 'audit_logs_2001%'), 'unarchived 2 2, unarchived 1 1', 'and keeps its month');

-- Cut off where nothing of the archive is: nothing changes.
reset session authorization;
rollback to opened;
set local session authorization custody_runner;
select custody.take_over_leaves(3, '', '{}') \g /dev/null
reset session authorization;
select is_empty('select 1 from segments where superseded', 'leaves of no segment are cut off without one');
select is((select h.opened_to from custody_data.archive_heads h), 3::bigint, 'and are looked at again');
select * from finish();
rollback;
