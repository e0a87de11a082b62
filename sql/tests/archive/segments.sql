-- Closed days become segments: of leaves, each in one; a segment is recorded when its object was read back, and only
-- with a manifest that says of it what the ledger says.
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
select results_eq($$select a.day, a.part, a.rows from custody.archive_due() a where a.day < '2002-01-01'$$, $$values ('2001-01-31'::date, null::int, 1::bigint), ('2001-02-01', null, 2)$$, 'archive_due shows what would be opened');
create temp table opened as select * from custody.open_segments();
select results_eq($$select o.day, o.part, o.events from opened o where o.day < '2002-01-01' order by 1$$, $$values ('2001-01-31'::date, 1, 1::bigint), ('2001-02-01', 1, 2)$$, 'each day with events has its segment');
select ok(o.retain_until >= greatest((o.day + 1)::timestamp at time zone 'UTC', now()) + interval '7 years', 'to be locked as the policy asks from its opening on, since somebody chose the time') from opened o where o.day < '2002-01-01';
select is((select count(*) from custody.open_segments()), (select count(*) from opened), 'opening again opens nothing');
select results_eq($$select a.day, a.part, a.rows from custody.archive_due() a where a.day < '2002-01-01'$$, $$values ('2001-01-31'::date, 1, 1::bigint), ('2001-02-01', 1, 2)$$, 'archive_due shows what is open');
select is((select count(*) from custody.open_segments(p_limit => 1)), 1::bigint, 'no more than p_limit are returned');
select results_eq($$select count(*), sum(octet_length(l.xids)) / 8, sum(octet_length(l.entry_ids)) / 16, sum(octet_length(l.hashes)) / 32 from custody.segment_leaves('2001-02-01', 1, null, 100) l$$,
  $$values (1::bigint, 2::bigint, 2::bigint, 2::bigint)$$, 'segment_leaves gives its leaves');
reset session authorization;
select results_eq($$select substr(l.hashes, n * 32 + 1, 32), encode(substr(l.entry_ids, n * 16 + 1, 16), 'hex')::uuid, substr(l.xids, n * 8 + 1, 8) from custody.segment_leaves('2001-02-01', 1, null, 100) l, generate_series(0, 1) n$$,
  $$select custody_data.leaf_hash(a), a.log_entry_id, int8send(a.xid::text::bigint) from custody_data.audit_logs a where a.tenant_id = 'segments' and a.occurred_at >= '2001-02-01 00:00:00+00' and a.occurred_at < '2001-03-01 00:00:00+00' order by a.xid$$, 'which are those of its events');
set local session authorization custody_runner;
select is((select l.first_leaf from custody.segment_leaves('2001-02-01', 1, (select lower(s.leaves) + 1 from custody.archive_segments s where s.day = '2001-02-01'), 1) l),
  (select lower(s.leaves) + 1 from custody.archive_segments s where s.day = '2001-02-01'), 'from the leaf that is asked for');
select is((select count(*) from custody.segment_leaves('2001-02-01', 1, (select upper(s.leaves) from custody.archive_segments s where s.day = '2001-02-01'), 1) l), 0::bigint, 'and none behind the last');
select refuses($$select custody.segment_leaves('2001-02-01', 2, null, 1)$$, 'PC029', 'of a segment that was never opened');
select refuses($$select custody.segment_leaves('2001-02-01', 1, null, 0)$$, 'PC023', 'no slices');

-- The manifest that a worker would write, and what may be wrong with it.
create function pg_temp.manifest(p_day date, p_part int) returns jsonb language sql as $$
  select jsonb_build_object('version', 2, 'day', s.day, 'part', s.part, 'rows', s.events, 'object_key', 'k' || s.day || '.' || s.part, 'compression', 'zstd', 'encryption', 'age', 'recipients', '{age1x}'::text[],
    'leaves', (select jsonb_agg(jsonb_build_array(lower(u), upper(u) - lower(u)) order by u) from unnest(s.leaves) u), 'root', encode(sha256('root'), 'hex'),
    'plain_bytes', 10, 'compressed_bytes', 6, 'stored_bytes', 8, 'plain_sha256', encode(sha256('plain'), 'hex'), 'compressed_sha256', encode(sha256('z'), 'hex'), 'stored_sha256', encode(sha256('age'), 'hex'),
    'first_occurred_at', s.day || 'T00:00:00Z', 'last_occurred_at', s.day || 'T23:59:59.999999Z', 'people', encode(decode(repeat('ff', 128), 'hex'), 'base64'))
  from custody.archive_segments s where s.day = p_day and s.part = p_part
$$;
create function pg_temp.record(p_change jsonb default '{}', p_day date default '2001-02-01', p_part int default 1, p_key text default 'k2001-02-01.1', p_until timestamptz default now() + interval '8 years', p_people bytea default decode(repeat('ff', 128), 'hex')) returns timestamptz language sql as $$
  select r.recorded_at from custody.record_segment(p_day, p_part, p_key, p_key || '.manifest.json', coalesce(pg_temp.manifest(p_day, p_part), '{}') || p_change, sha256(convert_to((pg_temp.manifest(p_day, p_part) || p_change)::text, 'UTF8')), p_until, p_people) r
$$;
select refuses(format('select pg_temp.record(%L)', c), 'PC029', format('a manifest with %s', c)) from unnest(array['{"version": 1}', '{"compression": "gzip"}', '{"encryption": "none"}', '{"recipients": []}', '{"recipients": "age1x"}', '{"recipients": null}',
  '{"day": "2001-01-31"}', '{"day": "x"}', '{"part": 2}', '{"rows": 3}', '{"rows": "x"}', '{"leaves": [[0, 2]]}', '{"leaves": null}', '{"root": "00"}', '{"root": "x"}', '{"object_key": "x"}', '{"plain_bytes": 0}', '{"stored_bytes": null}', '{"compressed_bytes": -1}',
  '{"plain_sha256": "00"}', '{"compressed_sha256": null}', '{"stored_sha256": ""}', '{"first_occurred_at": "2001-01-31T23:59:59Z"}', '{"last_occurred_at": "2001-02-02T00:00:00Z"}', '{"first_occurred_at": "infinity"}', '{"people": ""}', '{"people": "/w=="}']) c;
select refuses($$select pg_temp.record(p_until => now() + interval '6 years 11 months')$$, 'PC029', 'a lock that ends too early');
select refuses($$select pg_temp.record(p_people => decode(repeat('00', 128), 'hex'))$$, 'PC029', 'another filter than in the manifest');
select refuses($$select custody.record_segment('2001-02-01', 2, 'k', 'm', '{}', sha256('x'), now(), '')$$, 'PC029', 'a segment that was never opened');
select refuses($$select custody.record_segment('2001-02-01', 1, null, 'm', '{}', sha256('x'), now(), '')$$, 'PC023', 'half a record');
select refuses($$select custody.record_segment('2001-02-01', 1, 'k', 'm', '{}', '\x00', now(), '')$$, 'PC023', 'a digest that is none');
select is((select s.recorded_at from custody.archive_segments s where s.day = '2001-02-01'), null, 'none of it recorded anything');
select isnt(pg_temp.record(), null, 'the segment is recorded');
select is((last_event('system', 'archive.segment')).metadata - array['retain_until', 'manifest_sha256'], '{"day": "2001-02-01", "part": 1, "rows": 2, "bytes": 10, "stored_bytes": 8}', 'which is an event');
select row_eq($$select s.plain_bytes, s.compressed_bytes, s.root_hash, s.recipients, s.last_occurred_at from custody.archive_segments s where s.day = '2001-02-01'$$, row (10::bigint, 6::bigint, sha256('root'), '{age1x}'::text[], '2001-02-01 23:59:59.999999+00'::timestamptz), 'with what the manifest says');
select isnt(pg_temp.record(), null, 'the same again');
select is((select count(*) from events('system', 'archive.segment') e where e.resource_id = '2001-02-01.1'), 1::bigint, 'changes nothing');
select refuses($$select pg_temp.record('{"plain_bytes": 11}')$$, 'PC029', 'with other content it is refused');
select is((select count(*) from custody.open_segments() o where o.day = '2001-02-01'), 0::bigint, 'a recorded segment is not open');

-- Late events of an archived day make its next part, whoever asks for earlier days alone.
reset session authorization;
-- everything up to this transaction is sealed
update custody_data.ledger_heads set sealed_to = (sealed_to::text::bigint - 1)::text::xid8;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id, xid)
select 'segments', gen_random_uuid(), '2001-02-01 10:00:00+00', identity('segments', 'runner'), 'account.login', gen_random_uuid(), h.sealed_to from custody_data.ledger_heads h;
set local session authorization custody_runner;
select results_eq($$select o.day, o.part, o.events from custody.open_segments('2001-01-01') o where o.day = '2001-02-01'$$, $$values ('2001-02-01'::date, 2, 1::bigint)$$, 'a late event makes the next part');
select is((select range_agg(s.leaves) = range_agg(s.leaves) filter (where s.part = 1) from custody.archive_segments s where s.day = '2001-02-01'), false, 'with another leaf');

-- What holds what.
select results_eq($$select f.day, f.part from custody.find_segments(null, null) f where f.day < '2002-01-01'$$, $$values ('2001-02-01'::date, 1)$$, 'find_segments finds what is recorded');
select pg_temp.record(p_day => '2001-01-31', p_key => 'k2001-01-31.1') \g /dev/null
select results_eq($$select f.day, f.part from custody.find_segments('2001-01-31', '2001-02-01') f$$, $$values ('2001-01-31'::date, 1), ('2001-02-01', 1)$$, 'by the first and the last day');
select results_eq($$select f.day, f.part from custody.find_segments('2001-02-01', null) f where f.day < '2002-01-01'$$, $$values ('2001-02-01'::date, 1)$$, 'or one of them');
select is_empty($$select 1 from custody.find_segments('2001-02-02', '2001-12-31')$$, 'none of other days');
select is((select count(f.people) from custody.find_segments(null, null) f), 0::bigint, 'it does not show who is in them');
reset session authorization;
select results_eq(format('select f.day from custody.find_segments(null, null, null, %L) f', a.log_entry_id), format('values (%L::date)', (a.occurred_at at time zone 'UTC')::date), 'by the id of an event')
from custody_data.audit_logs a where a.tenant_id = 'segments' and a.xid < '8';
select is_empty(format('select 1 from custody.find_segments(%L, null, null, %L)', '2001-02-02', a.log_entry_id), 'with its days')
from custody_data.audit_logs a where a.tenant_id = 'segments' and a.xid = '6';
select is_empty($$select 1 from custody.find_segments(null, null, null, gen_random_uuid())$$, 'none of another event');
alter table custody_data.archive_segments disable trigger user;
update custody_data.archive_segments set people = decode(repeat('00', 128), 'hex') where day = '2001-01-31';
set local session authorization custody_runner;
select results_eq($$select f.day from custody.find_segments('2001-01-01', '2001-12-31', p_tenant => 'segments') f$$, $$values ('2001-02-01'::date)$$, 'a segment that cannot hold the tenant is passed over');
select results_eq($$select f.day from custody.find_segments('2001-01-01', '2001-12-31', gen_random_uuid(), p_tenant => 'segments') f$$, $$values ('2001-02-01'::date)$$, 'and one that cannot hold the person');
select refuses($$select custody.find_segments('2001-02-02', '2001-02-01')$$, 'PC009', 'the last day first');
select refuses($$select custody.find_segments(null, null, gen_random_uuid())$$, 'PC023', 'an identity of no tenant');

-- The ledger lost a tile of its map.
reset session authorization;
select custody.set_context('system', 'runner');
alter table custody_data.ledger_entries disable trigger user;
savepoint whole;
delete from custody_data.ledger_entries;
set local session authorization custody_runner;
select refuses($$select custody.segment_leaves('2001-02-01', 1, null, 1)$$, 'PC041', 'leaves that the map has not');
reset session authorization;
update custody_data.archive_heads set opened_to = opened_to - 1, first_open = 0;
set local session authorization custody_runner;
select refuses($$select custody.open_segments()$$, 'PC041', 'opening leaves that the map has not');
reset session authorization;
rollback to whole;

set local session authorization custody_audit;
select enter('segments', 'auditor') /* $1 */;
select is((select count(*) from custody.archive_segments s where s.day = '2001-02-01'), 2::bigint, 'every tenant''s auditor sees the segments');
select refuses($$select s.people from custody_data.archive_segments s$$, '42501', 'but not who is in them');
select refuses($$select custody.open_segments()$$, '42501', 'and opens none');
select * from finish();
rollback;
