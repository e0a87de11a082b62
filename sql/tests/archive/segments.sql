-- Closed days become segments: of events whose transactions have ended, each event in one; a segment is recorded
-- when its object was read back, and only if it holds what the trail holds.
begin;
set local search_path = tap, testing;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('segments');
-- Events of three days, of transactions that have ended.
set local session authorization custody_runner;
select enter('segments', 'runner') /* $1 */;
select custody_data.require_actor(), custody.ensure_audit_partitions('2001-01-01 00:00:00+00', '2001-02-01 00:00:00+00');
reset session authorization;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id, xid)
select 'segments', gen_random_uuid(), tt, identity('segments', 'runner'), 'account.login', gen_random_uuid(), x::text::xid8
from (values ('2001-01-31 23:59:59.999999+00', 5), ('2001-02-01 00:00:00+00', 6), ('2001-02-01 12:00:00+00', 7)) v (t, x), lateral (select v.t::timestamptz) tt (tt);

set local session authorization custody_runner;
select custody.set_context('system', 'runner');
create temp table opened as select * from custody.open_segments();
select results_eq($$select o.day, o.part from opened o where o.day < '2002-01-01' order by 1$$, $$values ('2001-01-31'::date, 1), ('2001-02-01', 1)$$, 'each day with events has its segment');
select ok(o.xid_from <= '5' and o.xid_to > '5', 'whose window has its transactions') from opened o where o.day = '2001-01-31';
select ok(o.retain_until >= (o.day + 1)::timestamp at time zone 'UTC' + interval '7 years' and o.retain_until >= now() + interval '30 days', 'to be locked as the policy asks, and a month from now') from opened o where o.day < '2002-01-01';
select is((select count(*) from custody.open_segments()), (select count(*) from opened), 'opening again opens nothing');
select is((select count(*) from custody.segment_entries('2001-02-01', 1)), 2::bigint, 'segment_entries gives the events of one');
select ok(bool_and(jsonb_typeof(e.entry::jsonb) = 'object'), 'with their entries') from custody.segment_entries('2001-02-01', 1) e;
select results_eq($$select a.day, a.part, a.rows from custody.archive_due() a where a.day < '2002-01-01'$$, $$values ('2001-01-31'::date, 1, 1::bigint), ('2001-02-01', 1, 2)$$, 'archive_due shows what is open');
select is((select count(*) from custody.open_segments(p_limit => 1)), 1::bigint, 'no more than p_limit are returned');

create function pg_temp.record(p_rows bigint default 2, p_key text default 'audit-archives/2001/02/audit-logs-2001-02-01.jsonl.zst', p_until timestamptz default now() + interval '8 years', p_manifest jsonb default '{}',
  p_first timestamptz default '2001-02-01 00:00:00+00', p_last timestamptz default '2001-02-01 12:00:00+00', p_part int default 1, p_bytes bigint default 10) returns timestamptz language sql as $$
  select r.recorded_at from custody.record_segment('2001-02-01', p_part, p_key, p_key || '.manifest.json', p_rows, p_bytes, 5, sha256('plain'), sha256('stored'), p_first, p_last, p_until,
    jsonb_build_object('object_key', p_key, 'rows', p_rows, 'plain_sha256', encode(sha256('plain'), 'hex'), 'stored_sha256', encode(sha256('stored'), 'hex')) || p_manifest) r;
$$;
select refuses($$select pg_temp.record(p_rows => 3)$$, 'PC029', 'another number of events than the trail has');
select refuses($$select pg_temp.record(p_first => '2001-02-01 00:00:01+00')$$, 'PC029', 'another first event');
select refuses($$select pg_temp.record(p_last => '2001-02-01 13:00:00+00')$$, 'PC029', 'another last event');
select refuses($$select pg_temp.record(p_manifest => '{"rows": 3}')$$, 'PC029', 'a manifest that does not fit');
select refuses($$select pg_temp.record(p_manifest => '{"plain_sha256": "00"}')$$, 'PC029', 'a manifest of another object');
select refuses($$select pg_temp.record(p_until => now() + interval '29 days')$$, 'PC029', 'a lock that ends too early');
select refuses($$select pg_temp.record(p_part => 2)$$, 'PC029', 'a segment that was never opened');
select refuses($$select pg_temp.record(p_key => null)$$, 'PC023', 'half a record');
select refuses($$select custody.record_segment('2001-02-01', 1, 'k', 'm', 2, 10, 5, '\x00', sha256('x'), now(), now(), now(), '{}')$$, 'PC023', 'a digest that is none');
select is((select s.recorded_at from custody.archive_segments s where s.day = '2001-02-01'), null, 'none of it recorded anything');
select isnt(pg_temp.record(), null, 'the segment is recorded');
select is((last_event('system', 'archive.segment')).metadata - 'retain_until', '{"day": "2001-02-01", "part": 1, "rows": 2, "bytes": 10, "stored_bytes": 5}', 'which is an event');
select isnt(pg_temp.record(), null, 'the same again');
select is((select count(*) from events('system', 'archive.segment') e where e.resource_id = '2001-02-01.1'), 1::bigint, 'changes nothing');
select refuses($$select pg_temp.record(p_bytes => 11)$$, 'PC029', 'with other content it is refused');
select is((select count(*) from custody.open_segments() o where o.day = '2001-02-01'), 0::bigint, 'a recorded segment is not open');

-- A late event of an archived day makes its next part.
reset session authorization;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id, xid)
values ('segments', gen_random_uuid(), '2001-02-01 10:00:00+00', identity('segments', 'runner'), 'account.login', gen_random_uuid(), (select max(s.xid_to) from custody_data.archive_segments s));
set local session authorization custody_runner;
select results_eq($$select o.day, o.part from custody.open_segments() o where o.day = '2001-02-01'$$, $$values ('2001-02-01'::date, 2)$$, 'a late event makes the next part');
select is((select count(*) from custody.segment_entries('2001-02-01', 2)), 1::bigint, 'with that event alone');
select is((select count(*) from custody.segment_entries('2001-02-01', 1)), 2::bigint, 'the first part is what it was');
set local session authorization custody_audit;
select enter('segments', 'auditor') /* $1 */;
select is((select count(*) from custody.archive_segments s where s.day = '2001-02-01'), 2::bigint, 'every tenant''s auditor sees the segments');
select refuses($$select custody.open_segments()$$, '42501', 'and opens none');
select * from finish();
rollback;
