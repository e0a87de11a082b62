-- A month leaves Postgres when it is past the hot period: its events that are in segments recorded a week ago, one for
-- one, and under no hold. The others stay, as they are, in a new partition; under every TimeZone.
begin;
set local search_path = tap, testing;
set local client_min_messages = warning;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('months');
set local session authorization custody_runner;
select enter('months', 'runner') /* $1 */;
select custody_data.require_actor(), custody.ensure_audit_partitions('2001-02-01 00:00:00+00', '2001-04-01 00:00:00+00');
reset session authorization;
create function pg_temp.event(p_id uuid, p_at timestamptz, p_xid text, p_subject uuid default null, p_recorded_at timestamptz default '2001-06-01 00:00:00+00') returns void language sql as $$
  insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action, import_id, db_role, xid)
  values ('months', p_id, p_at, p_recorded_at, identity('months', 'runner'), p_subject, 'account.login', gen_random_uuid(), 'importer', p_xid::xid8)
$$;
select pg_temp.event('11111111-1111-4111-8111-111111111111', '2001-03-31 23:30:00+00', '5'), pg_temp.event('11111111-1111-4111-8111-222222222222', '2001-03-31 23:40:00+00', '5', '00000000-0000-4000-8000-000000000001'),
  pg_temp.event('11111111-1111-4111-8111-333333333333', '2001-03-01 00:00:00+00', '6'), pg_temp.event('22222222-2222-4222-8222-222222222222', '2001-04-15 00:00:00+00', '6');
-- As the worker records it, and as if that had been a while ago.
create function pg_temp.record(p_day date, p_ago interval default '8 days') returns void language plpgsql security definer as $$
begin
  alter table custody_data.archive_segments disable trigger user;
  update custody_data.archive_segments s set object_key = 'k', manifest_key = 'm', plain_bytes = 1, compressed_bytes = 1, stored_bytes = 1, plain_sha256 = '', compressed_sha256 = '', stored_sha256 = '', manifest_sha256 = '', root_hash = '',
    first_occurred_at = now(), last_occurred_at = now(), people = '', recipients = '{}', retain_until = now(), recorded_at = now() - p_ago where s.day = p_day;
  alter table custody_data.archive_segments enable always trigger a_reject_key_change;
  alter table custody_data.archive_segments enable always trigger a_reject_delete;
end
$$;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
create function pg_temp.state(p_month text) returns text language sql as $$ select concat_ws(' ', m.state, m.rows, m.rows_kept) from custody.audit_months() m where m.partition_name = 'audit_logs_' || p_month $$;
select is(pg_temp.state('2001_03'), 'unarchived 3 3', 'events in no segment');
select is((select count(*) from custody.audit_months() m where m.range_to > now() and m.state <> 'hot'), 0::bigint, 'months of now and later are hot');
select is(pg_temp.state('2001_02'), 'due 0 0', 'a month without events may go');
select set_eq($$select d.partition_name from custody.drop_archived_partitions(10) d where d.partition_name like 'audit_logs_2001%'$$, array['audit_logs_2001_02'], 'which goes alone');
select count(*) from custody.open_segments() \g /dev/null
select is(pg_temp.state('2001_03'), 'unarchived 3 3', 'segments that are not recorded');
select pg_temp.record('2001-03-31', '6 days 23 hours'), pg_temp.record('2001-03-01', '6 days 23 hours'), pg_temp.record('2001-04-15') \g /dev/null
select is(pg_temp.state('2001_03'), 'unarchived 3 3', 'nor any that was recorded less than a week ago');
select pg_temp.record('2001-03-31'), pg_temp.record('2001-03-01') \g /dev/null
select is(pg_temp.state('2001_03'), 'due 3 0', 'then it may go');

-- Holds, under a TimeZone in which the month ends elsewhere.
create function pg_temp.held(p_scope jsonb, p_timezone text) returns text language plpgsql as $$
declare
  v_hold uuid;
  v_state text;
  v_dropped text;
begin
  perform set_config('timezone', p_timezone, true), set_config('session_authorization', 'custody_dpo', true), custody.set_context('months', 'dpo');
  v_hold := custody.place_hold(p_scope, 'case', 'litigation');
  perform set_config('session_authorization', 'custody_runner', true), custody.set_context('system', 'runner');
  v_state := pg_temp.state('2001_03') || ', ' || pg_temp.state('2001_04');
  select string_agg(concat_ws(' ', right(d.partition_name, 2), d.rows_dropped, d.rows_kept), ', ') into v_dropped from custody.drop_archived_partitions(10) d where d.partition_name like 'audit_logs_2001%';
  raise exception using errcode = 'T0000', message = concat_ws(' => ', v_state, v_dropped);
exception when sqlstate 'T0000' then
  return sqlerrm;
end
$$;
select is(pg_temp.held(s, z), case when s ? 'row' then 'due 3 1, due 1 0 => 03 2 1, 04 1 0' else 'held 3 3, held 1 1' end, format('%s under %s', s, z))
from unnest(array['{"tenant": true}', '{"user_id": "runner"}', '{"table": "audit_logs", "row": "11111111-1111-4111-8111-111111111111"}']::jsonb[]) s, unnest(array['UTC', 'America/New_York', 'Pacific/Kiritimati', 'Asia/Kolkata']) z;
select is(pg_temp.state('2001_03'), 'due 3 0', 'released, it may go');

-- The trail does not hold what its segments say: nothing is dropped.
reset session authorization;
alter table custody_data.audit_logs_2001_03 disable trigger user;
select custody.set_context('system', 'runner');
create function pg_temp.tampered(p_sql text) returns text language plpgsql as $$
declare
  v_state text;
  v_dropped text;
begin
  execute p_sql;
  perform set_config('session_authorization', 'custody_runner', true);
  v_state := pg_temp.state('2001_03');
  select d.rows_dropped || ' ' || d.rows_kept into v_dropped from custody.drop_archived_partitions(1) d where d.partition_name like 'audit_logs_2001_03%';
  raise exception using errcode = 'T0000', message = concat_ws(' => ', 'state', v_state, v_dropped);
exception when others then
  return case sqlstate when 'T0000' then sqlerrm else concat_ws(' ', sqlstate, v_state) end;
end
$$;
select is(pg_temp.tampered($$delete from custody_data.audit_logs_2001_03 where log_entry_id = '11111111-1111-4111-8111-111111111111'$$), 'PC029 mismatch 2', 'an event is missing');
select is(pg_temp.tampered($$delete from custody_data.audit_logs_2001_03$$), 'PC029 mismatch 0', 'all of them are');
select is(pg_temp.tampered($$update custody_data.audit_logs_2001_03 set xid = '7' where xid = '6'$$), 'PC029 mismatch 3', 'an event is in another transaction');
select is(pg_temp.tampered($$update custody_data.audit_logs_2001_03 set log_entry_id = gen_random_uuid() where xid = '6'$$), 'PC029 mismatch 3', 'it has another id');
select is(pg_temp.tampered($$update custody_data.audit_logs_2001_03 set occurred_at = '2001-03-02' where xid = '6'$$), 'PC029 mismatch 3', 'it is of another day');
create function pg_temp.slip(p_xid text) returns text language sql as $$ select format('insert into custody_data.audit_logs_2001_03 select a.tenant_id, gen_random_uuid(), a.occurred_at, a.recorded_at, a.actor_id, a.subject_id, a.action, a.resource_type, a.resource_id, a.result, a.purpose, a.metadata,
  a.personal, a.import_id, a.db_role, %L from custody_data.audit_logs_2001_03 a where a.xid = ''6''', p_xid) $$;
select is(pg_temp.tampered(pg_temp.slip('6')), 'state => due 4 1 => 3 1', 'what was slipped in is not sealed, and stays');
select is(pg_temp.tampered(pg_temp.slip('18446744073709551615')), 'state => due 4 1 => 3 1', 'whatever transaction it says');
select is(pg_temp.tampered($$insert into custody_data.audit_logs_2001_03 select a.tenant_id || '2', a.log_entry_id, a.occurred_at, a.recorded_at, a.actor_id, a.subject_id, a.action, a.resource_type, a.resource_id, a.result, a.purpose, a.metadata,
  a.personal, a.import_id, a.db_role, a.xid from custody_data.audit_logs_2001_03 a where a.xid = '6'$$), 'PC029 mismatch 4', 'of another tenant, with the id and transaction of a sealed one: it does not pass for that');
select is(pg_temp.tampered($$alter table custody_data.audit_logs detach partition custody_data.audit_logs_2001_03; alter table custody_data.audit_logs attach partition custody_data.audit_logs_2001_03 for values from ('2001-03-01 00:00:00+00') to ('2001-03-31 23:59:59+00')$$), 'state => foreign 0', 'a partition with other bounds is passed over');
select is(pg_temp.tampered($$alter table custody_data.audit_logs_2001_03 rename to audit_logs_2001_03_mine$$), 'state', 'and one with another name');
select is(pg_temp.tampered($$alter table custody_data.audit_logs_2001_03 owner to custody_super$$), 'state => foreign 0', 'and one of somebody else');
create table custody_data.anything (like custody_data.audit_logs including all);
alter table custody_data.audit_logs attach partition custody_data.anything for values from ('infinity') to (maxvalue);
select results_eq($$select m.partition_name, m.range_from, m.state from custody.audit_months() m where m.state = 'foreign'$$, $$values ('anything'::text, null::timestamptz, 'foreign'::text)$$, 'and one without bounds in time, which is named');
alter table custody_data.audit_logs detach partition custody_data.anything;

-- A late event, in no segment yet, one that was imported not long ago, and one that is held: they stay as they are.
select pg_temp.event('11111111-1111-4111-8111-444444444444', '2001-03-05 00:00:00+00', '9'), pg_temp.event('11111111-1111-4111-8111-555555555555', '2001-03-05 00:00:00+00', '6', p_recorded_at => now() - interval '89 days') \g /dev/null
insert into custody_data.audit_logs_2001_03 select a.tenant_id, gen_random_uuid(), a.occurred_at, a.recorded_at, a.actor_id, a.subject_id, a.action, a.resource_type, a.resource_id, a.result, a.purpose, a.metadata,
  a.personal, a.import_id, a.db_role, '6' from custody_data.audit_logs_2001_03 a, generate_series(1, 2) where a.xid in ('5', '6') and a.recorded_at < '2002-01-01';
savepoint missing;
delete from custody_data.audit_logs_2001_03 where xid = '6';
set local session authorization custody_runner;
select refuses($$select custody.drop_archived_partitions()$$, 'PC029', 'what is missing stops the drop');
reset session authorization;
rollback to missing;
create temp table before as select a.* from custody_data.audit_logs_2001_03 a;
update custody_data.ledger_heads set sealed_to = '6', sealed_to_entry_id = null, taken_until = '100000000000';
set local session authorization custody_runner;
select count(*) from custody.open_segments() \g /dev/null
select pg_temp.record('2001-03-01'), pg_temp.record('2001-03-05'), pg_temp.record('2001-03-31') \g /dev/null
reset session authorization;
-- sealed since, in a segment of today
select pg_temp.event('11111111-1111-4111-8111-666666666666', '2001-03-06 00:00:00+00', '3') \g /dev/null
insert into before select a.* from custody_data.audit_logs_2001_03 a where a.xid = '3';
alter table custody_data.audit_logs_2001_03 enable always trigger a_reject_mutation;
select custody.set_context('months', 'dpo');
set local session authorization custody_dpo;
select custody.place_hold('{"table": "audit_logs", "row": "11111111-1111-4111-8111-222222222222"}', 'case', 'litigation') as hold \gset
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is(pg_temp.state('2001_03'), 'due 12 3', 'some of it stays');
select is((select m.detail from custody.audit_months() m where m.partition_name = 'audit_logs_2001_03'), '1 events are in no segment that was recorded a week ago, 1 were imported within the hot period, 1 are under legal hold', 'and why');
select refuses($$select custody.drop_archived_partitions(1, '-infinity')$$, 'PC009', 'as of ever');
select is_empty($$select custody.drop_archived_partitions(10, '2001-06-29 00:00:00+00')$$, 'within the hot period it stays');
select results_eq($$select d.partition_name, d.rows_dropped, d.rows_kept, d.range_from, d.range_to from custody.drop_archived_partitions(1) d where d.partition_name like 'audit_logs_2001%'$$,
  $$values ('audit_logs_2001_03'::text, 9::bigint, 3::bigint, '2001-03-01 00:00:00+00'::timestamptz, '2001-04-01 00:00:00+00'::timestamptz)$$, 'the oldest goes');
select is((last_event('system', 'partition.drop')).metadata, '{"partition": "audit_logs_2001_03", "rows": 9, "rows_kept": 3, "range_from": "2001-03-01T00:00:00.000000Z", "range_to": "2001-04-01T00:00:00.000000Z"}', 'which is an event');
select is((select count(*) from custody_data.partition_drops d where d.partition_name = 'audit_logs_2001_03' and d.rows_kept = 3), 1::bigint, 'and on record');
select is(custody.audit_complete_from(), '2001-04-01 00:00:00+00', 'from then on the trail is complete');
select is(pg_temp.state('2001_03'), 'held 3 3', 'what stayed is the month now');
select set_eq($$select d.partition_name from custody.drop_archived_partitions(1) d$$, array['audit_logs_2001_04'], 'which stays: the next one goes');
reset session authorization;
select set_eq($$select b.* from before b where b.log_entry_id in ('11111111-1111-4111-8111-222222222222', '11111111-1111-4111-8111-555555555555', '11111111-1111-4111-8111-666666666666')$$, $$select a.* from custody_data.audit_logs a where a.tenant_id = 'months' and a.occurred_at < '2001-04-01 00:00:00+00'$$, 'to the last column');
select is_empty($$select f.id, f.object, f.detail from custody_check.findings f where f.object like '%2001\_03%'$$, 'under every guard');
select is_empty($$select c.conname from pg_constraint c where c.conrelid = 'custody_data.audit_logs_2001_03'::regclass and c.contype = 'c'$$, 'and without a constraint');
select refuses($$delete from custody_data.audit_logs_2001_03$$, 'PC020', 'which is append-only');
select refuses($$truncate custody_data.audit_logs_2001_03$$, 'PC020', 'as a whole too');
select set_eq($$select regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING ', '') from pg_index i where i.indrelid = 'custody_data.audit_logs_2001_03'::regclass$$, $$select regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING ', '') from pg_index i where i.indrelid = 'custody_data.audit_logs'::regclass$$, 'with the indexes of a month');

-- What stayed leaves when nothing keeps it any more.
select custody.set_context('months', 'dpo');
set local session authorization custody_dpo;
select custody.release_hold(:'hold', 'over') \g /dev/null
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
reset session authorization;
update custody_data.ledger_heads set sealed_to = '2', sealed_to_entry_id = null;
set local session authorization custody_runner;
select count(*) from custody.open_segments() \g /dev/null
select pg_temp.record('2001-03-06') \g /dev/null
select is(pg_temp.state('2001_03'), 'due 3 1', 'its segment was recorded a week ago');
select is((select string_agg(concat_ws(' ', right(d.partition_name, 2), d.rows_dropped, d.rows_kept), ', ') from custody.drop_archived_partitions(10) d where d.partition_name like 'audit_logs_2001%'), '03 2 1', 'what stayed is swapped too');
select is((select count(*) from custody.drop_archived_partitions(10) d where d.partition_name like 'audit_logs_2001%'), 0::bigint, 'then none goes');
select * from finish();
rollback;
