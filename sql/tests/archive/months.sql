-- A month leaves Postgres when it is past the hot period, all its events are in recorded segments, one for one,
-- and no hold covers one of them; under every TimeZone.
begin;
set local search_path = tap, testing;
set local client_min_messages = warning;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('months');
set local session authorization custody_runner;
select enter('months', 'runner') /* $1 */;
select custody_data.require_actor(), custody.ensure_audit_partitions('2001-03-01 00:00:00+00', '2001-04-01 00:00:00+00');
reset session authorization;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, import_id, xid)
values ('months', '11111111-1111-4111-8111-111111111111', '2001-03-31 23:30:00+00', identity('months', 'runner'), null, 'account.login', gen_random_uuid(), '5'),
  ('months', '22222222-2222-4222-8222-222222222222', '2001-04-15 00:00:00+00', identity('months', 'runner'), null, 'account.login', gen_random_uuid(), '6');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
create function pg_temp.state(p_month text) returns text language sql as $$ select m.state from custody.audit_months() m where m.partition_name = 'audit_logs_' || p_month $$;
create function pg_temp.record(p_day date, p_at timestamptz, p_rows bigint default 1) returns void language sql as $$
  select custody.record_segment(p_day, 1, 'k' || p_day, 'm' || p_day, p_rows, 1, 1, sha256('plain'), sha256('stored'), p_at, p_at, now() + interval '8 years',
    jsonb_build_object('object_key', 'k' || p_day, 'rows', p_rows, 'plain_sha256', encode(sha256('plain'), 'hex'), 'stored_sha256', encode(sha256('stored'), 'hex')));
$$;
select is(pg_temp.state('2001_03'), 'unarchived', 'events in no segment');
select is((select count(*) from custody.audit_months() m where m.range_to > now() and m.state <> 'hot'), 0::bigint, 'months of now and later are hot');
select is_empty($$select 1 from custody.drop_archived_partitions(10) d where d.partition_name like 'audit_logs_2001%'$$, 'nothing of it goes');
select count(*) from custody.open_segments() \g /dev/null
select is(pg_temp.state('2001_03'), 'open', 'segments that are not recorded');
select pg_temp.record('2001-03-31', '2001-03-31 23:30:00+00'), pg_temp.record('2001-04-15', '2001-04-15 00:00:00+00');
select is(pg_temp.state('2001_03'), 'due', 'recorded, it may go');

-- Holds, under a TimeZone in which the month ends elsewhere.
create function pg_temp.held(p_scope jsonb, p_timezone text) returns text language plpgsql as $$
declare
  v_hold uuid;
  v_state text;
  v_dropped bigint;
begin
  perform set_config('timezone', p_timezone, true), set_config('session_authorization', 'custody_dpo', true), custody.set_context('months', 'dpo');
  v_hold := custody.place_hold(p_scope, 'case', 'litigation');
  perform set_config('session_authorization', 'custody_runner', true), custody.set_context('system', 'runner');
  v_state := pg_temp.state('2001_03') || ' ' || pg_temp.state('2001_04');
  v_dropped := (select count(*) from custody.drop_archived_partitions(10) d where d.partition_name = 'audit_logs_2001_03');
  raise exception using errcode = 'T0000', message = v_state || ' ' || v_dropped;
exception when sqlstate 'T0000' then
  return sqlerrm;
end
$$;
select is(pg_temp.held(s, z), case when s ? 'row' then 'held due 0' else 'held held 0' end, format('%s under %s', s, z))
from unnest(array['{"tenant": true}', '{"user_id": "runner"}', '{"table": "audit_logs", "row": "11111111-1111-4111-8111-111111111111"}']::jsonb[]) s, unnest(array['UTC', 'America/New_York', 'Pacific/Kiritimati', 'Asia/Kolkata']) z;
select is(pg_temp.state('2001_03'), 'due', 'released, it may go');

-- The trail does not hold what its segment says: nothing is dropped.
reset session authorization;
alter table custody_data.audit_logs_2001_03 disable trigger user;
select custody.set_context('system', 'runner');
create function pg_temp.tampered(p_sql text) returns text language plpgsql as $$
begin
  execute p_sql;
  perform set_config('session_authorization', 'custody_runner', true);
  perform custody.drop_archived_partitions(10);
  return 'dropped';
exception when others then
  return sqlstate;
end
$$;
select is(pg_temp.tampered($$delete from custody_data.audit_logs_2001_03$$), 'PC029', 'an event is missing');
select is(pg_temp.tampered($$update custody_data.audit_logs_2001_03 set xid = '7'$$), 'PC029', 'an event is in another transaction');
select is(pg_temp.tampered($$insert into custody_data.audit_logs_2001_03 select a.tenant_id, gen_random_uuid(), a.occurred_at, a.recorded_at, a.actor_id, a.subject_id, a.action, a.resource_type, a.resource_id, a.result, a.purpose, a.metadata,
  a.personal, a.import_id, a.db_role, a.xid from custody_data.audit_logs_2001_03 a$$), 'PC029', 'an event was slipped in');
delete from custody_data.audit_logs_2001_03;
set local session authorization custody_runner;
select refuses($$select custody.drop_archived_partitions(10)$$, 'PC029', 'all of them are missing');
select is(pg_temp.state('2001_03'), 'mismatch', 'audit_months says so, too');
reset session authorization;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id, xid, recorded_at)
select 'months', '11111111-1111-4111-8111-111111111111', '2001-03-31 23:30:00+00', identity('months', 'runner'), 'account.login', gen_random_uuid(), '5', now();
alter table custody_data.audit_logs_2001_03 enable always trigger a_reject_mutation;

set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select refuses($$select custody.drop_archived_partitions(1, '-infinity')$$, 'PC009', 'as of ever');
select is_empty($$select custody.drop_archived_partitions(10, '2001-06-29 00:00:00+00')$$, 'within the hot period it stays');
select results_eq($$select d.partition_name, d.rows_dropped, d.range_from, d.range_to from custody.drop_archived_partitions(1) d where d.partition_name like 'audit_logs_2001%'$$,
  $$values ('audit_logs_2001_03'::text, 1::bigint, '2001-03-01 00:00:00+00'::timestamptz, '2001-04-01 00:00:00+00'::timestamptz)$$, 'the oldest goes');
select is(to_regclass('custody_data.audit_logs_2001_03'), null, 'it is gone');
select is((last_event('system', 'partition.drop')).metadata, '{"partition": "audit_logs_2001_03", "rows": 1, "range_from": "2001-03-01T00:00:00.000000Z", "range_to": "2001-04-01T00:00:00.000000Z"}', 'which is an event');
select is((select count(*) from custody_data.partition_drops d where d.partition_name = 'audit_logs_2001_03'), 1::bigint, 'and on record');
select is(custody.audit_complete_from(), '2001-04-01 00:00:00+00', 'from then on the trail is complete');
select is((select count(*) from custody.drop_archived_partitions(10) d where d.partition_name = 'audit_logs_2001_04'), 1::bigint, 'then the next');
select is((select count(*) from custody.drop_archived_partitions(10) d where d.partition_name like 'audit_logs_2001%'), 0::bigint, 'then none');
select * from finish();
rollback;
