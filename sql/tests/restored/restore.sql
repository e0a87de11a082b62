-- Fetching from the archive is an event before it begins and when it is over; what is let in is what was sealed and
-- what was asked for, is marked, and goes when its time is over.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('restored'), tenant('restored_2');
set local session authorization custody_runner;
select enter('restored', 'ada') /* $1 */;
select custody_data.require_actor();
select enter('restored_2', 'bob') /* $1 */;
select custody_data.require_actor();
reset session authorization;

-- Entries with all that they can have, as the archive has them, and their hashes in a tile far ahead.
create function pg_temp.event(p_tenant text, p_changes jsonb default '{}') returns custody_data.audit_logs language sql as $$
  select jsonb_populate_record(null::custody_data.audit_logs, jsonb_build_object(
    'tenant_id', p_tenant, 'log_entry_id', '01a1fd93-0000-7000-8000-000000000001', 'occurred_at', '2001-03-01T10:00:00.000001Z', 'recorded_at', '2001-03-01T10:00:01Z',
    'actor_id', gen_random_uuid(), 'action', 'account.login', 'result', 'success', 'metadata', '{}'::jsonb, 'db_role', 'custody_app', 'xid', '18446744073709551615') || p_changes);
$$;
create temp table archived as
select e.leaf, e.event, custody.audit_entry(e.event) as entry
from (values
  (256000000000, pg_temp.event('restored', jsonb_build_object('actor_id', identity('restored', 'ada')))),
  (256000000001, pg_temp.event('restored', jsonb_build_object('subject_id', identity('restored', 'ada'), 'action', 'phi.access', 'log_entry_id', '01a1fd93-0000-7000-8000-000000000002', 'resource_type', 'document',
    'resource_id', E'd "1"\n\u00e4\\', 'purpose', 'care', 'metadata', jsonb '{"b": [1, 1.50, 1e3], "a": null}', 'personal', testing.any_sealed(), 'import_id', gen_random_uuid(), 'occurred_at', '2001-03-01T23:59:59.999999Z'))),
  (256000000002, pg_temp.event('restored_2')),
  (256000000003, pg_temp.event('restored', '{"occurred_at": "2001-03-02T00:00:00Z"}'))) e (leaf, event);
grant select on archived to public;
insert into custody_data.ledger_tiles (level, tile_index, hashes)
select 0, 1000000000, string_agg(sha256('\x00'::bytea || convert_to(a.entry, 'UTF8')), '' order by a.leaf) from archived a;
insert into custody_data.archive_segments (day, part, leaves, events, object_key, manifest_key, plain_bytes, compressed_bytes, stored_bytes, plain_sha256, compressed_sha256, stored_sha256, manifest_sha256,
  root_hash, first_occurred_at, last_occurred_at, people, recipients, retain_until, recorded_at)
values ('2001-03-01', 1, '{[256000000000,256000000100)}', 100, 'audit-archives/segment', 'm', 1, 1, 1, sha256('p'), sha256('c'), sha256('s'), sha256('m'),
  sha256('r'), '2001-03-01', '2001-03-01', decode(repeat('00', 128), 'hex'), '{age1x}', '2040-01-01', now());

-- Refused before anything is on record.
set local session authorization custody_audit;
select enter('restored', 'auditor') /* $1 */;
select refuses($$select custody.begin_restore('2001-03-02', '2001-03-01', p_reason => 'x')$$, 'PC009', 'a range that ends before it begins');
select refuses($$select custody.begin_restore('2001-03-01', 'infinity', p_reason => 'x')$$, 'PC009', 'an endless one');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02')$$, 'PC023', 'no reason');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'x', p_keep => interval '31 days')$$, 'PC023', 'longer than the policy allows');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'x', p_keep => interval '0')$$, 'PC023', 'no time at all');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', 'restored_2', p_reason => 'x')$$, 'PC015', 'another tenant''s events');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'x') from custody.set_context('restored', 'auditor', null, 'ada')$$, 'PC015', 'confined to one person');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'x') from set_config('custody.tenant', '', true)$$, 'PC001', 'no context');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', p_identity => gen_random_uuid(), p_reason => 'x')$$, 'PC023', 'a person of no tenant');
select is((select count(*) from events('restored', 'archive.restore')), 0::bigint, 'none of it is an event');

-- A day of one tenant, by its auditor.
set local session authorization custody_audit;
select enter('restored', 'auditor', 'enquiry') /* $1 */;
create function pg_temp.add(p_leaves bigint[], p_key text default 'audit-archives/segment', p_restore uuid default current_setting('testing.restore')::uuid, p_more text default '') returns bigint language sql as $$
  select custody.add_restored_events(p_restore, p_key, p_leaves, array(select a.entry || p_more from archived a join unnest(p_leaves) with ordinality l (leaf, n) on l.leaf = a.leaf order by l.n));
$$;
select set_config('testing.restore', custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'case 7')::text, true);
select is((last_event('restored', 'archive.restore')).metadata - 'expires_at', jsonb_build_object('restore_id', current_setting('testing.restore'), 'from', '2001-03-01T00:00:00.000000Z', 'to', '2001-03-02T00:00:00.000000Z',
  'tenant', 'restored', 'by_person', false, 'reason', 'case 7'), 'the beginning is an event that says what was asked');
select is(pg_temp.add('{256000000000, 256000000001}'), 2::bigint, 'two are let in');
select is(pg_temp.add('{256000000001, 256000000000}'), 0::bigint, 'again, in whatever order, they are there');
select refuses($$select pg_temp.add('{256000000000}', p_more => ' ')$$, 'PC041', 'an entry that is not byte for byte what was sealed');
select refuses($$select custody.add_restored_events(current_setting('testing.restore')::uuid, 'audit-archives/segment', '{256000000001}', array(select a.entry from archived a where a.leaf = 256000000000))$$, 'PC041', 'the entry of another leaf');
select refuses($$select custody.add_restored_events(current_setting('testing.restore')::uuid, 'audit-archives/segment', '{256000000099}', '{"{}"}')$$, 'PC041', 'a leaf that the ledger has not come to');
select refuses($$select pg_temp.add('{256000000000}', 'audit-archives/other')$$, 'PC029', 'an object that no segment has');
select refuses($$select custody.add_restored_events(current_setting('testing.restore')::uuid, 'audit-archives/segment', '{256000000000, 256000000100}', '{"{}", "{}"}')$$, 'PC029', 'a leaf that is not of its segment');
select refuses($$select pg_temp.add('{256000000003}')$$, 'PC023', 'an event of another day than was asked for');
select refuses($$select pg_temp.add('{256000000002}')$$, 'PC023', 'of another tenant');
select refuses($$select pg_temp.add('{256000000000}', p_restore => gen_random_uuid())$$, 'PC023', 'for a restore that is not there');
select refuses($$select pg_temp.add('{}')$$, 'PC023', 'nothing');
select refuses($$select pg_temp.add('{256000000000, null}')$$, 'PC023', 'of no leaf');
select refuses($$select pg_temp.add('{256000000000}') from custody.set_context('restored', 'auditor', null, 'ada')$$, 'PC015', 'by a session that is confined to one person');
select refuses($$select pg_temp.add('{256000000000}') from set_config('custody.tenant', '', true)$$, 'PC001', 'without a context');
select enter('restored', 'auditor') /* $1 */;

-- Every column is that of the event, and every row says where it is from.
select results_eq($$select e.leaf_index, to_jsonb(e) - array['restored_from', 'restore_id', 'expires_at', 'leaf_index', 'entry'], e.entry from custody.restored_events e order by 1$$,
  $$select a.leaf, to_jsonb(a.event), a.entry from archived a where a.leaf < 256000000002 order by 1$$, 'the rows are the events');
select results_eq('select distinct e.restored_from, e.restore_id, e.expires_at from custody.restored_events e', $$values ('audit-archives/segment'::text, current_setting('testing.restore')::uuid, now() + interval '30 days')$$, 'and are marked');
select custody.finish_restore(current_setting('testing.restore')::uuid, 2, 1);
select is((select (r.rows, r.segments_read, r.reason, r.of_tenant)::text from custody.archive_restores r), '(2,1,"case 7",restored)', 'how it ended is on record');
select is((select e.metadata from events('restored', 'archive.restore') e where e.metadata ? 'rows'), jsonb_build_object('restore_id', current_setting('testing.restore'), 'rows', 2, 'segments', 1), 'and an event');
select custody.finish_restore(current_setting('testing.restore')::uuid, 3, 3);
select is((select r.rows from custody.archive_restores r), 2::bigint, 'for good');
select refuses($$select pg_temp.add('{256000000000}')$$, 'PC023', 'it takes no more');
select refuses($$select custody.finish_restore(gen_random_uuid(), 1, 1)$$, 'PC023', 'what is not there does not end');
select refuses($$select custody.finish_restore(current_setting('testing.restore')::uuid, -1, 1)$$, 'PC023', 'nor with less than nothing');
select refuses($$select custody.finish_restore(current_setting('testing.restore')::uuid, 1, 1) from custody.set_context('restored', 'auditor', null, 'ada')$$, 'PC015', 'nor for a session that is confined to one person');
select is((select count(*) from custody.restored_events e), 0::bigint, 'which sees no copy') from custody.set_context('restored', 'auditor', null, 'ada');
select refuses($$select custody.finish_restore(current_setting('testing.restore')::uuid, 1, 1) from set_config('custody.tenant', '', true)$$, 'PC001', 'nor without a context');

-- By person, id and action.
select enter('restored', 'auditor') /* $1 */;
select set_config('testing.restore', custody.begin_restore('2001-03-01', '2001-03-03', p_identity => identity('restored', 'ada'), p_reason => 'hers')::text, true);
select is(pg_temp.add('{256000000000, 256000000001}'), 2::bigint, 'those by a person and about them');
select refuses($$select pg_temp.add('{256000000003}')$$, 'PC023', 'no others');
select is((select e.subject_id from last_event('restored', 'archive.restore') e), identity('restored', 'ada'), 'the event is about the person');
select set_config('testing.restore', custody.begin_restore('2001-03-01', '2001-03-03', p_log_entry_id => '01a1fd93-0000-7000-8000-000000000002', p_reason => 'one')::text, true);
select refuses($$select pg_temp.add('{256000000000}')$$, 'PC023', 'another id');
select is(pg_temp.add('{256000000001}'), 1::bigint, 'the one');
select set_config('testing.restore', custody.begin_restore('2001-03-01', '2001-03-03', p_action => 'phi.access', p_reason => 'reads')::text, true);
select refuses($$select pg_temp.add('{256000000000}')$$, 'PC023', 'another action');
select is(pg_temp.add('{256000000001}'), 1::bigint, 'that action');

-- All tenants, in tenant system; each sees its own, and no longer than its own policy says.
set local session authorization custody_dpo;
select enter('restored_2', 'dpo') /* $1 */;
select custody.set_retention_policy('restored', interval '1 day', 'as little as will do');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'x', p_keep => interval '2 days')$$, 'PC023', 'a tenant''s own policy bounds its restores');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select set_config('testing.restore', custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'all')::text, true);
select is(pg_temp.add('{256000000000, 256000000001, 256000000002}'), 3::bigint, 'of all tenants');
select results_eq($$select e.tenant_id::text collate "default", count(*) from custody.restored_events e where e.restore_id = current_setting('testing.restore')::uuid group by 1 order by 1$$, $$values ('restored'::text, 2::bigint), ('restored_2', 1)$$, 'the worker sees them there');
set local session authorization custody_audit;
select custody.set_context('system', 'auditor');
select is((select count(*) from custody.restored_events e), 0::bigint, 'an auditor, as of the trail, in each tenant');
select enter('restored_2', 'auditor') /* $1 */;
select results_eq($$select e.tenant_id::text collate "default", e.expires_at from custody.restored_events e$$, $$values ('restored_2'::text, now() + interval '1 day')$$, 'which has its own, for as long as it allows');
select is((select count(*) from custody.archive_restores r), 0::bigint, 'and not the record of who asked for all');
select refuses($$select pg_temp.add('{256000000002}')$$, 'PC023', 'nobody adds to another context''s restore');
set local session authorization custody_app;
select enter('restored', 'clerk') /* $1 */;
select refuses($$select 1 from custody.restored_events$$, '42501', 'applications do not read copies');
select refuses($$select custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'x')$$, '42501', 'nor make any');
select * from finish();
rollback;
