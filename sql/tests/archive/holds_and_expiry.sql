-- What a legal hold covers is held in the store; objects go when lock, policy and month have ended and nothing holds them.
begin;
set local search_path = tap, testing;
set local client_min_messages = warning;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('endings'), tenant('endings_other');
set local session authorization custody_runner;
select enter('endings', 'ada') /* $1 */;
select custody_data.require_actor(), custody.ensure_audit_partitions('2001-03-01 00:00:00+00', '2001-03-01 00:00:00+00');
select enter('endings', 'bob') /* $1 */;
select custody_data.require_actor();
select enter('endings', 'cid') /* $1 */;
select custody_data.require_actor();
reset session authorization;
-- An event a day: of nobody, about ada, by ada, with an id of the client's.
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action, import_id, xid)
select 'endings', ('11111111-1111-4111-8111-00000000000' || n)::uuid, '2001-03-01 12:00:00+00'::timestamptz + n * interval '1 day', '2001-06-01 00:00:00+00', case n when 3 then identity('endings', 'ada') else gen_random_uuid() end, case n when 2 then identity('endings', 'ada') end, 'account.login', gen_random_uuid(), '5'
from generate_series(1, 4) n;
-- As the worker records them, and as if that had been long ago.
create function pg_temp.people(p_day date) returns bytea language plpgsql as $$
declare
  v_filter bytea := decode(repeat('00', 128), 'hex');
  v_member text;
  v_bit bigint;
begin
  for v_member in
    select x from custody_data.audit_logs a, unnest(array[a.tenant_id::text, a.tenant_id || '/' || a.actor_id, a.tenant_id || '/' || a.subject_id]) x where (a.occurred_at at time zone 'UTC')::date = p_day and x is not null
  loop
    for n in 0 .. 7 loop
      v_bit := ('x' || encode(substr(sha256(convert_to(v_member, 'UTF8')), n * 4 + 1, 4), 'hex'))::bit(32)::bigint % 1024;
      v_filter := set_bit(v_filter, v_bit, 1);
    end loop;
  end loop;
  return v_filter;
end
$$;
select custody.set_context('system', 'runner');
set local session authorization custody_runner;
select count(*) from custody.open_segments() \g /dev/null
reset session authorization;
alter table custody_data.archive_segments disable trigger user;
update custody_data.archive_segments s set object_key = 'k' || s.day, manifest_key = 'm' || s.day, plain_bytes = 1, compressed_bytes = 1, stored_bytes = 1, plain_sha256 = '', compressed_sha256 = '', stored_sha256 = '', manifest_sha256 = '\x01', root_hash = '',
  first_occurred_at = now(), last_occurred_at = now(), people = pg_temp.people(s.day), recipients = '{}', retain_until = now() - interval '1 minute', recorded_at = '2001-06-01', opened_at = '2001-06-01' where s.day < '2002-01-01' and s.day <> '2001-03-05';
alter table custody_data.archive_segments enable always trigger a_reject_key_change;
alter table custody_data.archive_segments enable always trigger a_reject_delete;

create function pg_temp.held() returns text language sql as $$ select string_agg(extract(day from h.day) || case when h.wanted then '' else '-' end, ' ' order by h.day) from custody.held_segments() h where h.day < '2002-01-01' $$;
create function pg_temp.place(p_scope jsonb, p_tenant text default 'endings') returns uuid language plpgsql as $$
declare
  v_hold uuid;
begin
  perform set_config('session_authorization', 'custody_dpo', true), custody.set_context(p_tenant, 'dpo');
  v_hold := custody.place_hold(p_scope, 'case', 'litigation');
  perform set_config('session_authorization', 'custody_runner', true), custody.set_context('system', 'runner');
  return v_hold;
end
$$;
create function pg_temp.release(p_hold uuid) returns void language plpgsql as $$
begin
  perform set_config('session_authorization', 'custody_dpo', true), custody.set_context('endings', 'dpo');
  perform custody.release_hold(p_hold, 'over');
  perform set_config('session_authorization', 'custody_runner', true), custody.set_context('system', 'runner');
end
$$;
set local session authorization custody_runner;
select is(pg_temp.held(), null, 'no hold, nothing to hold');
select pg_temp.place('{"tenant": true}', 'endings_other') \g /dev/null
select is(pg_temp.held(), null, 'nor by a hold on a tenant without events');
select pg_temp.place('{"user_id": "bob"}') \g /dev/null
select is(pg_temp.held(), null, 'or on a person without events');
select pg_temp.place('{"tenant": true}') as hold \gset
select is(pg_temp.held(), '2 3 4', 'the days of a tenant, as far as they are recorded');
select pg_temp.release(:'hold') \g /dev/null
select pg_temp.place('{"user_id": "ada"}') as hold \gset
select is(pg_temp.held(), '3 4', 'the days of a person, by or about');
select results_eq($$select h.object_key, h.manifest_key from custody.held_segments() h where h.day < '2002-01-01'$$, $$values ('k2001-03-03', 'm2001-03-03'), ('k2001-03-04', 'm2001-03-04')$$, 'with their objects');
select is(custody.record_segment_hold('2001-03-03', 1, true), true, 'the store holds one');
select is((last_event('system', 'archive.hold')).metadata, '{"day": "2001-03-03", "part": 1, "on": true}', 'which is an event');
select is(custody.record_segment_hold('2001-03-03', 1, true), false, 'the same again is none');
select is(pg_temp.held(), '4', 'the other is still wanted');
select pg_temp.release(:'hold') \g /dev/null
select is(pg_temp.held(), '3-', 'released, the store is to let it go');
select is(custody.record_segment_hold('2001-03-03', 1, false), true, 'which it did');
select pg_temp.place('{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000001"}') as hold \gset
select is(pg_temp.held(), '2', 'the day of an event that is in the trail');
-- What was compared once is not read again: a filter that holds everybody and one that holds nobody change nothing.
select pg_temp.place('{"user_id": "ada"}') as other \gset
select is(pg_temp.held(), '2 3 4', 'a hold beside it');
reset session authorization;
update custody_data.archive_segments s set people = case when s.day = '2001-03-03' then decode(repeat('00', 128), 'hex') else decode(repeat('ff', 128), 'hex') end where s.day in ('2001-03-02', '2001-03-03', '2001-03-04');
update custody_data.archive_segments s set hold_wanted = false where s.day = '2001-03-04';
set local session authorization custody_runner;
select is(pg_temp.held(), '2 3', 'what was compared is not compared again');
select pg_temp.place('{"user_id": "cid"}') as third \gset
select is(pg_temp.held(), '2 3 4', 'but with what is new');
select pg_temp.release(:'third') \g /dev/null
select is(pg_temp.held(), '2 4', 'and, where one has ended, what was held with all that are left');
select pg_temp.release(:'other') \g /dev/null
reset session authorization;
update custody_data.archive_segments s set people = pg_temp.people(s.day), hold_wanted = null where s.day in ('2001-03-02', '2001-03-03', '2001-03-04');
set local session authorization custody_runner;
select is(pg_temp.held(), '2', 'a new segment is compared with every hold');
select refuses($$select custody.record_segment_hold('2001-03-05', 1, true)$$, 'PC029', 'holding what was never recorded');
select refuses($$select custody.record_segment_hold('2001-03-03', 1, null)$$, 'PC023', 'holding or not');

select is_empty($$select 1 from custody.expire_segments()$$, 'nothing expires whose month is here');
reset session authorization;
drop table custody_data.audit_logs_2001_03;
set local session authorization custody_runner;
select is(pg_temp.held(), '2', 'the day of an event that is in the archive alone');
select pg_temp.release(:'hold') \g /dev/null
select is(pg_temp.held(), null, 'which nobody holds any more');
set local session authorization custody_dpo;
select custody.set_context('endings', 'dpo');
select refuses(format('select custody.place_hold(%L, %L, %L)', s, 'case', 'litigation'), 'PC023', 'an event of the archive by ' || s)
from unnest(array['{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000001"}', '{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000001", "day": "2001-03-03"}',
  '{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000001", "day": "2001-03-32"}', '{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000001", "day": "2. March"}',
  '{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000004", "day": "2001-03-05"}', '{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000009", "day": "2001-03-02"}',
  '{"table": "conversations", "row": "c1", "day": "2001-03-02"}']) s;
select custody.set_context('endings_other', 'dpo');
select refuses($$select custody.place_hold('{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000001", "day": "2001-03-02"}', 'case', 'litigation')$$, 'PC023', 'one of another tenant');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select pg_temp.place('{"table": "audit_logs", "row": "11111111-1111-4111-8111-000000000001", "day": "2001-03-02"}') as hold \gset
select is(pg_temp.held(), '2', 'an event of the archive is held by its day');
select is_empty($$select 1 from custody.expire_segments(100, now() - interval '2 minutes')$$, 'or whose lock has not ended');
reset session authorization;
select custody.set_context('endings_other', 'dpo');
set local session authorization custody_dpo;
select custody.set_retention_policy('audit', '50 years', 'law') \g /dev/null
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is_empty($$select 1 from custody.expire_segments()$$, 'or that any tenant keeps longer');
set local session authorization custody_dpo;
select custody.set_context('endings_other', 'dpo');
select custody.set_retention_policy('audit', '7 years', 'law') \g /dev/null
set local session authorization custody_runner;
select custody.set_context('endings_other', 'runner');
select custody.approve_retention_change(c.change_id) from custody.retention_changes c where c.status = 'proposed' \g /dev/null
select custody.set_context('system', 'runner');
select custody.record_segment_hold('2001-03-04', 1, true) \g /dev/null
select results_eq($$select e.day, e.part, e.object_key, e.people from custody.expire_segments() e$$, $$values ('2001-03-03'::date, 1, 'k2001-03-03', null::bytea)$$, 'what neither the database nor the store holds expires');
select is((last_event('system', 'archive.expire')).metadata - 'retain_until', (select jsonb_build_object('day', s.day, 'part', 1, 'rows', 1, 'manifest_sha256', '01', 'leaves_sha256', encode(sha256(convert_to(format('{[%s,%s)}', lower(s.leaves), upper(s.leaves)), 'UTF8')), 'hex'))
  from custody.archive_segments s where s.day = '2001-03-03'), 'which is an event');
select is((select count(*) from custody.expire_segments()), 1::bigint, 'it comes again until its objects are gone');
select is((select count(*) from events('system', 'archive.expire')), 1::bigint, 'as no other event');
select is_empty($$select 1 from custody.find_segments('2001-03-03', '2001-03-03')$$, 'it is found no more');
select refuses($$select custody.record_segment_gone('2001-03-02', 1)$$, 'PC029', 'deleting what has not expired');
-- A hold comes between.
select pg_temp.place('{"tenant": true}') as other \gset
select is_empty($$select 1 from custody.expire_segments()$$, 'whoever holds what has expired is in time');
select is(pg_temp.held(), '2 3', 'the store is to hold it too');
select pg_temp.release(:'other') \g /dev/null
select is(custody.record_segment_gone('2001-03-03', 1), true, 'the objects are gone');
select is(custody.record_segment_gone('2001-03-03', 1), false, 'which is on record');
select is_empty($$select 1 from custody.expire_segments()$$, 'and done');
select refuses($$select custody.record_segment_hold('2001-03-03', 1, true)$$, 'PC029', 'holding what is gone');
reset session authorization;
select row_eq($$select s.people, s.events, s.manifest_key, s.objects_deleted_at is not null from custody_data.archive_segments s where s.day = '2001-03-03'$$, row (null::bytea, 1::bigint, 'm2001-03-03'::text, true), 'the row stays, but for who was in it');
select * from finish();
rollback;
