-- What the archive holds, and what a run would do: totals, months with their size and holds, segments whose lock has ended.
begin;
set local search_path = tap, testing;
select no_plan();
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('report');
set local session authorization custody_runner;
select enter('report', 'runner') /* $1 */;
select custody_data.require_actor(), custody.ensure_audit_partitions('2001-01-01 00:00:00+00', '2001-02-01 00:00:00+00'), custody.ensure_audit_partitions('2003-01-01 00:00:00+00', '2003-01-01 00:00:00+00');
reset session authorization;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id, xid)
select 'report', gen_random_uuid(), t::timestamptz, identity('report', 'runner'), 'account.login', gen_random_uuid(), '5' from unnest(array['2001-01-31 12:00:00+00', '2001-02-01 12:00:00+00']) t;
create function pg_temp.recorded(p_day date, p_leaf bigint, p_until timestamptz, p_events bigint default 10, p_hold boolean default false, p_gone timestamptz default null) returns void language sql as $$
  insert into custody_data.archive_segments (day, part, leaves, events, opened_at, object_key, manifest_key, plain_bytes, compressed_bytes, stored_bytes, plain_sha256, compressed_sha256, stored_sha256, manifest_sha256, root_hash,
    first_occurred_at, last_occurred_at, people, recipients, retain_until, recorded_at, legal_hold, expired_at, objects_deleted_at)
  values (p_day, 1, int8multirange(int8range(p_leaf, p_leaf + p_events)), p_events, p_day + interval '1 day', 'o' || p_day, 'm' || p_day, p_events * 100, p_events * 10, p_events * 11, sha256('a'), sha256('b'), sha256('c'), sha256('d'), sha256('e'),
    p_day, p_day, decode(repeat('00', 128), 'hex'), '{age1x}', p_until, p_day + interval '1 day', p_hold, p_gone, p_gone);
$$;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select row_eq($$select t.segments, t.objects, t.events, t.plain_bytes, t.compressed_bytes, t.stored_bytes, t.open_segments, t.held_segments, t.expired_segments, t.last_day from custody.archive_totals() t$$,
  row (0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, null::date), 'nothing is archived yet');
select count(*) from custody.open_segments();
select is((select t.oldest_unarchived_day from custody.archive_totals() t), '2001-01-31'::date, 'the oldest day that is in no recorded segment is known by its segment');
select is((select t.open_segments > 1 from custody.archive_totals() t), true, 'which is open, as others are');
reset session authorization;
-- Far away leaves: these segments are no others' business.
select pg_temp.recorded('2010-01-01', 9000000000, '2017-01-01'), pg_temp.recorded('2010-01-02', 9000001000, now() + interval '1 day', 90), pg_temp.recorded('2010-01-03', 9000002000, '2017-01-01', 5, true),
  pg_temp.recorded('2010-01-04', 9000003000, '2017-01-01', 7, false, now()), pg_temp.recorded('2003-01-15', 9000004000, '2017-01-01', 3), pg_temp.recorded((now() - interval '5 years')::date, 9000005000, now() - interval '1 hour', 2);
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select row_eq($$select t.segments, t.objects, t.events, t.plain_bytes, t.compressed_bytes, t.stored_bytes, t.held_segments, t.expired_segments, t.last_day from custody.archive_totals() t$$,
  row (5::bigint, 10::bigint, 110::bigint, 11000::bigint, 1100::bigint, 1210::bigint, 1::bigint, 1::bigint, (now() - interval '5 years')::date), 'what is recorded and not deleted is counted, each with its manifest');
select results_eq($$select p.day, p.state from custody.plan_expiry() p$$,
  $$values ('2003-01-15'::date, 'in_postgres'), ('2010-01-01', 'due'), ('2010-01-03', 'held'), ((now() - interval '5 years')::date, 'by_policy')$$, 'which objects would go, and what keeps the others');
select is((select count(*) from custody.plan_expiry(now() + interval '2 days')), 5::bigint, 'in two days one more is looked at');
select results_eq($$select e.day from custody.expire_segments(10) e$$, $$values ('2010-01-01'::date)$$, 'that is what expires');
select results_eq($$select p.day from custody.plan_expiry() p where p.state = 'due'$$, $$values ('2010-01-01'::date)$$, 'and is due until its objects are gone');

-- Months: those past the hot period with their holds.
select results_eq($$select p.partition_name, p.state, p.rows, p.held_by from custody.plan_months() p where p.range_from < '2002-01-01'$$,
  $$values ('audit_logs_2001_01', 'unarchived', 1::bigint, '{}'::text[]), ('audit_logs_2001_02', 'unarchived', 1, '{}')$$, 'two old months, whose events are not archived');
select ok(p.bytes > 8192, format('%s takes %s bytes on disk', p.partition_name, p.bytes)) from custody.plan_months() p where p.range_from < '2002-01-01';
select enter('report', 'dpo') /* $1 */;
select custody.place_hold('{"tenant": true}', 'case 7', 'litigation'), custody.place_hold('{"user_id": "runner"}', 'case 8', 'litigation');
select custody.set_context('system', 'runner');
select results_eq($$select p.held_by from custody.plan_months() p where p.range_from < '2002-01-01'$$, $$values (array['case 7', 'case 8']), (array['case 7', 'case 8'])$$, 'the holds that keep events of them are named');
select is_empty($$select p.partition_name from custody.plan_months() p where p.state = 'hot' and p.held_by <> '{}'$$, 'of months that are hot anyway they are not');
select row_eq($$select d.due_rows, d.held_rows, d.held_by from custody.retention_due d where d.relation = 'audit_logs_2001_01'$$, row (0::bigint, 1::bigint, array['case 7', 'case 8']), 'retention_due says the same');

select refuses($$select custody.plan_months('infinity')$$, 'PC009', 'at the end of time');
select refuses($$select custody.plan_expiry('infinity')$$, 'PC009', 'at the end of time');
select refuses($$select custody.plan_expiry(null)$$, 'PC009', 'at no time');
select enter('report', 'runner') /* $1 */;
select refuses($$select custody.archive_totals()$$, 'PC015', 'the archive is no single tenant''s');
select refuses($$select custody.plan_months()$$, 'PC015', 'nor are months');
select refuses($$select custody.plan_expiry()$$, 'PC015', 'nor segments');
set local session authorization custody_audit;
select custody.set_context('system', 'auditor');
select lives_ok($$select custody.archive_totals(), custody.plan_months(), custody.plan_expiry()$$, 'auditors look');
select * from finish();
rollback;
