-- Batches of the server's log follow each other without a gap, each an event; the place moves with them; rows go with their
-- batch alone; findings, sinks and spool are the runner's; objects go when lock and policy let them.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('batches');
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
-- A batch as the runner says it; what is given goes before.
create function pg_temp.batch(p_more jsonb default '{}') returns timestamptz language sql as $$
  select custody.record_log_batch(jsonb_build_object('source', 'db1', 'format', 'jsonlog', 'file_name', 'a.json', 'to_offset', 100,
    'to_head', encode(sha256('h'), 'hex'), 'to_tail', encode(sha256('t'), 'hex'), 'number', 1, 'batch_file', 'a.json', 'batch_from', 0, 'batch_to', 100, 'object_key', 'server-logs/1', 'manifest_key', 'server-logs/1m',
    'sha256', encode(sha256('s'), 'hex'), 'compressed_sha256', encode(sha256('p'), 'hex'), 'manifest_sha256', encode(sha256('m1'), 'hex'), 'previous_sha256', repeat('00', 32),
    'lines', 3, 'bytes', 100, 'stored_bytes', 50, 'retain_until', '2020-01-01T00:00:00Z', 'last_occurred_at', '2026-01-02T00:00:00Z') || p_more, '\x01', '\x02')
$$;
create function pg_temp.events(p_batch bigint) returns bigint language sql as $$
  select custody.add_access_events(p_batch, '{batches,""}', '{read,connect}', '{READ,""}', '{record.read,""}', '{custody_data.user_profiles,""}', '{dr,""}', '{dr,""}',
    '{~0123456789abcdef,""}', '{care,""}', '{192.0.2.1,""}', '{app,""}', '{a.b,a.b}', '{"",""}',
    '{1,2}', '{1,2}', '{}', array[now(), now()], array[gen_random_uuid()::text, ''], '{2,-1}', '{3/7,""}', '{1795305600000000,0}', '{0123456789abcdef,""}', '{4711,0}')
$$;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is(pg_temp.batch('{"findings": [{"kind": "gap", "session_id": "a.b", "line_from": 2, "line_to": 4, "occurrences": 3}]}'), now(), 'the first batch');
select is((last_event('system', 'log.ship')).metadata, jsonb_build_object('batch', 1, 'source', 'db1', 'object_key', 'server-logs/1', 'sha256', encode(sha256('s'), 'hex'), 'manifest_sha256', encode(sha256('m1'), 'hex'),
  'previous_sha256', repeat('00', 32), 'lines', 3, 'bytes', 100, 'findings', 1), 'is an event');
select row_eq($$select f.kind collate "default", f.batch, f.session_id collate "default", f.line_from, f.line_to, f.occurrences from custody_data.log_findings f where f.source = 'db1'$$, row ('gap'::text, 1::bigint, 'a.b'::text, 2::bigint, 4::bigint, 3::bigint), 'with its finding');
select row_eq($$select s.file_name collate "default", s.file_offset, s.last_line_at from custody_data.log_sources s where s.source = 'db1'$$, row ('a.json'::text, 100::bigint, '2026-01-02 00:00:00+00'::timestamptz), 'and the place');
select is(pg_temp.events(1), 2::bigint, 'rows go with it');
select row_eq($$select e.tenant_id::text collate "default", e.kind collate "default", e.actor_id, e.actor_pseudonym collate "default", e.rows, e.client, e.xact_at, e.event_line collate "default", e.event_xid, e.state_code collate "default" from custody_data.access_events e where e.line = 1$$,
  row ('batches'::text, 'read'::text, null::uuid, '~0123456789abcdef'::text, 2::bigint, '192.0.2.1'::inet, '2026-11-22 00:00:00+00'::timestamptz, '0123456789abcdef'::text, '4711'::xid8, null::text), 'of a tenant');
select row_eq($$select e.tenant_id::text collate "default", e.kind collate "default", e.actor_pseudonym collate "default", e.rows, e.client, e.xact_at from custody_data.access_events e where e.line = 2$$,
  row ('system'::text, 'connect'::text, null::text, null::bigint, null::inet, null::timestamptz), 'or of none');
select results_eq($$select custody.add_access_events(1, '{batches}', '{statement}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{a.b}', '{""}',
  '{1,1}', '{3,4}', '{}', array[now(), now()], '{}', '{}', '{}', '{}', '{}', '{}')$$, $$values (2::bigint)$$, 'many of one sort');
select throws_ok($$select custody.add_access_events(1, '{batches}', '{statement}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{""}', '{a.b}', '{""}',
  '{1,2}', '{5,6}', '{}', array[now(), now()], '{}', '{}', '{}', '{}', '{}', '{}')$$, '23502', null, 'none of no sort');

-- Nobody goes on from where another has been.
select refuses($$select pg_temp.batch()$$, 'PC070', 'from a place that has moved');
select refuses($$select pg_temp.batch('{"from_file": "b.json", "from_offset": 100}')$$, 'PC070', 'from another file');
select refuses($$select pg_temp.batch('{"from_file": "a.json", "from_offset": 100, "number": 3}')$$, 'PC071', 'with a gap');
select refuses($$select pg_temp.batch('{"from_file": "a.json", "from_offset": 100, "number": 2}')$$, 'PC071', 'without the digest of the one before');
select refuses($$select custody.record_log_batch('{"source": "db1"}', '\x01')$$, 'PC023', 'without a place');
select refuses($$select custody.record_log_batch('{}', '\x01')$$, 'PC023', 'without a source');
select lives_ok($$select pg_temp.batch(jsonb_build_object('from_file', 'a.json', 'from_offset', 100, 'to_offset', 200, 'number', 2, 'previous_sha256', encode(sha256('m1'), 'hex')))$$, 'the next one');
select lives_ok($$select pg_temp.batch(jsonb_build_object('from_file', 'a.json', 'from_offset', 200, 'to_offset', 250, 'number', null))$$, 'a place without lines');
select is((select count(*) from custody_data.log_batches b where b.source = 'db1'), 2::bigint, 'is no batch');
select refuses($$select pg_temp.events(3)$$, 'PC072', 'rows of no batch');
select refuses($$select pg_temp.events(null)$$, 'PC072', 'or of none');

-- Sinks and the spool.
select is((select count(*) from custody_data.log_spool), 2::bigint, 'both batches wait for sinks');
select custody.mark_sink('siem', 2, 1, 0, 4);
select is(custody.trim_log_spool('{siem,other}', 'db1'), 0::bigint, 'until all have them');
select is(custody.trim_log_spool('{siem}', 'db1'), 1::bigint, 'then they go');
select custody.mark_sink('siem', 2, 2, 7, 1, 'HTTP 503');
select row_eq($$select s.batch, s.line, s.trail_leaf, s.sent_lines, s.failures, s.last_error from custody_data.log_sinks s where s.sink = 'siem'$$, row (2::bigint, 2::bigint, 7::bigint, 5::bigint, 1, 'HTTP 503'::text), 'a sink has a place of its own');
select refuses($$select custody.mark_sink(null, 1, 1, 1, 1)$$, 'PC023', 'a sink without a name');
reset session authorization;
update custody_data.log_spool set recorded_at = now() - interval '8 days';
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is(custody.trim_log_spool('{siem}', 'db1'), 1::bigint, 'after a week they go anyhow');
select is((select f.detail -> 'sinks' from custody_data.log_findings f where f.kind = 'sink_behind'), '["siem"]', 'which is a finding');

-- What is found again within a day is said once.
select is(custody.add_log_findings('db1', '[{"kind": "orphan", "detail": {"key": "x"}}, {"kind": "batch_without_object", "batch": 1}]'), 2::bigint, 'findings of the store');
select is(custody.add_log_findings('db1', '[{"kind": "orphan", "detail": {"key": "x"}}]'), 0::bigint, 'again');
select is(custody.add_log_findings('db1', '[{"kind": "orphan", "detail": {"key": "y"}}]'), 1::bigint, 'another');

-- Objects go when their lock has ended and the policy lets them.
select is_empty($$select custody.due_log_batches(10)$$, 'the policy keeps what is three years old or less');
select refuses($$select custody.mark_log_batch_deleted(1)$$, 'PC073', 'and what it keeps is not deleted');
reset session authorization;
alter table custody_data.log_batches disable trigger a_reject_key_change;
update custody_data.log_batches set recorded_at = now() - interval '3 years 1 day' where number = 1;
alter table custody_data.log_batches enable always trigger a_reject_key_change;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select results_eq($$select b.number from custody.due_log_batches(10) b$$, $$values (1::bigint)$$, 'after that it is due');
select custody.mark_log_batch_deleted(1);
select is((last_event('system', 'log.expire')).metadata, jsonb_build_object('batch', 1, 'object_key', 'server-logs/1', 'sha256', encode(sha256('s'), 'hex')), 'its going is an event');
select refuses($$select custody.mark_log_batch_deleted(1)$$, 'PC073', 'once');
select refuses($$select custody.mark_log_batch_deleted(null)$$, 'PC073', 'no batch');

-- Not in a tenant's context, nor in none.
create temp table calls (sql text);
insert into calls values ($$select pg_temp.batch()$$), ($$select pg_temp.events(1)$$), ($$select custody.mark_sink('siem', 1, 1, 1, 1)$$), ($$select custody.trim_log_spool('{}', 'x')$$), ($$select custody.add_log_findings('x', '[]')$$),
  ($$select custody.mark_log_batch_deleted(1)$$);
grant select on calls to public;
select enter('batches', 'runner') /* $1 */;
select refuses(c.sql, 'PC015', c.sql) from calls c;
select set_config('custody.tenant', '', true);
select refuses(c.sql, 'PC001', c.sql) from calls c;
select * from finish();
rollback;
