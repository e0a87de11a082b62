-- A read whose event is there was committed, one whose event is not was rolled back; an event without its line, and a
-- statement on a table of record without a context, are findings, once a day.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('reconciled');
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select enter('reconciled', 'clerk') /* $1 */;
select set_config('testing.ada', coalesce(nullif(current_setting('testing.ada', true), ''), gen_random_uuid()::text), true);
-- Events of an hour ago: of lines 1 and 9.
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, metadata)
select 'reconciled', gen_random_uuid(), now() - interval '1 hour', custody_data.require_actor(), current_setting('testing.ada')::uuid, 'record.read', 'user_profiles', jsonb_build_object('line', l)
from unnest(array['aaaaaaaaaaaaaaa1', 'aaaaaaaaaaaaaaa9']) l;
insert into custody_data.log_sources (source, format, file_name, file_offset, file_head, file_tail, state, last_line_at) values ('db1', 'jsonlog', 'x', 1, sha256(''), sha256(''), '', now());
insert into custody_data.log_batches (number, source, file_name, file_from, file_to, object_key, manifest_key, sha256, compressed_sha256, manifest_sha256, previous_sha256, lines, bytes, stored_bytes, first_occurred_at, recorded_at, expires_at)
values (1, 'db1', 'x', 0, 1, 'x', 'y', sha256(''), sha256(''), sha256(''), sha256(''), 1, 1, 1, now() - interval '2 hours', now(), now());
insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, object_name, login, identity_id, actor_pseudonym, session_id, event_line, event_xid) values
  ('reconciled', now(), 1, 1, now() - interval '1 hour', 'read', 'READ', 'custody_data.user_profiles', 'dr', current_setting('testing.ada')::uuid, '~1', 'a.b', 'aaaaaaaaaaaaaaa1', '3'),
  ('reconciled', now(), 1, 2, now() - interval '1 hour', 'read', 'READ', 'custody_data.user_profiles', 'dr', current_setting('testing.ada')::uuid, '~1', 'a.b', 'aaaaaaaaaaaaaaa2', '3'),
  ('reconciled', now(), 1, 3, now() - interval '1 hour', 'read', 'READ', 'custody_data.user_profiles', 'dr', current_setting('testing.ada')::uuid, '~1', 'a.b', 'read only', null),
  ('reconciled', now(), 1, 8, now() - interval '1 hour', 'read', 'READ', 'custody_data.user_profiles', 'dr', current_setting('testing.ada')::uuid, '~1', 'a.b', 'standby', null),
  -- of a transaction that has not ended, as it has not begun: other sessions of the server do not get that far
  ('reconciled', now(), 1, 9, now() - interval '1 hour', 'read', 'READ', 'custody_data.user_profiles', 'dr', current_setting('testing.ada')::uuid, '~1', 'a.b', 'aaaaaaaaaaaaaaa3', (pg_current_xact_id()::text::bigint + 1000000000)::text::xid8),
  -- of longer ago than events are sure to be in Postgres
  ('reconciled', now(), 1, 10, now() - interval '100 days', 'read', 'READ', 'custody_data.user_profiles', 'dr', current_setting('testing.ada')::uuid, '~1', 'a.b', 'aaaaaaaaaaaaaaa4', '3'),
  ('system', now(), 1, 4, now() - interval '1 hour', 'statement', 'READ', 'custody_data.user_profiles', 'postgres', null, null, 'c.d', null, null),
  ('system', now(), 1, 5, now() - interval '1 hour', 'statement', 'READ', 'custody_data.user_profiles', 'postgres', null, null, 'c.d', null, null),
  ('reconciled', now(), 1, 6, now() - interval '1 hour', 'statement', 'READ', 'custody_data.user_profiles', 'dr', null, '~1', 'a.b', null, null),
  ('system', now(), 1, 7, now() - interval '1 hour', 'statement', 'READ', 'public.other', 'postgres', null, null, 'c.d', null, null);
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select results_eq($$select r.kind, r.findings from custody.reconcile_logs(now() - interval '1 minute', now()) r$$, $$values ('statement_without_row'::text, 0::bigint), ('row_without_line', 0), ('rolled_back', 0)$$, 'nothing of this minute');
select is((select e.rolled_back from custody_data.access_events e where e.line = 2), true, 'but what was open before is decided');
select results_eq($$select r.kind, r.findings from custody.reconcile_logs(now() - interval '101 days', now()) r$$, $$values ('statement_without_row'::text, 1::bigint), ('row_without_line', 1), ('rolled_back', 1)$$, 'what has one and not the other');
select results_eq($$select e.line, e.rolled_back from custody_data.access_events e where e.kind = 'read' order by 1$$, $$values (1, false), (2, true), (3, null), (8, null), (9, null), (10, null)$$, 'a read says what became of it; one that writes no event, and one whose transaction is open, nothing');
select results_eq($$select f.kind collate "default", f.occurrences, f.session_id collate "default", f.detail - 'first_event' from custody_data.log_findings f order by f.kind$$, $$values
  ('row_without_line'::text, 1::bigint, null::text, '{"table": "user_profiles", "tenant": "reconciled"}'::jsonb), ('statement_without_row', 2, 'c.d', '{"login": "postgres", "table": "custody_data.user_profiles"}')$$, 'findings');
select is((last_event('system', 'log.reconcile')).metadata - 'from' - 'to', '{"findings": 2, "rolled_back": 1}', 'an event');
select results_eq($$select r.findings from custody.reconcile_logs(now() - interval '101 days', now()) r where r.kind <> 'rolled_back'$$, $$values (0::bigint), (0)$$, 'once a day');
select results_eq($$select v.kind, v.line from custody.log_reconciliation v order by 1, 2$$, $$values ('open'::text, 9), ('open', 10), ('read_only', 3), ('rolled_back', 2), ('standby', 8), ('statement_without_row', 4), ('statement_without_row', 5)$$, 'the view has them');
select refuses($$select custody.reconcile_logs(null, now())$$, 'PC009', 'from no time');
select refuses($$select custody.reconcile_logs(now(), now() - interval '1 day')$$, 'PC009', 'backwards');
select refuses($$select custody.reconcile_logs('-infinity', now())$$, 'PC009', 'from ever');
select enter('reconciled', 'runner') /* $1 */;
select refuses($$select custody.reconcile_logs(now() - interval '101 days', now())$$, 'PC015', 'in the context of a tenant');
select results_eq($$select v.kind, v.line from custody.log_reconciliation v order by 1, 2$$, $$values ('open'::text, 9), ('open', 10), ('read_only', 3), ('rolled_back', 2), ('standby', 8)$$, 'which has a view of its own rows');
select set_config('custody.tenant', '', true);
select refuses($$select custody.reconcile_logs(now() - interval '101 days', now())$$, 'PC001', 'or in none');
-- Of two logs the one that is further behind says how far it can be told; one that ended days ago says nothing.
reset session authorization;
select enter('reconciled', 'clerk') /* $1 */;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, metadata)
values ('reconciled', gen_random_uuid(), now() - interval '1 hour', custody_data.require_actor(), current_setting('testing.ada')::uuid, 'record.read', 'user_preferences', '{"line": "bbbbbbbbbbbbbbb1"}');
insert into custody_data.log_sources (source, format, file_name, file_offset, file_head, file_tail, state, last_line_at) values
  ('db2', 'jsonlog', 'x', 1, sha256(''), sha256(''), '', now() - interval '90 minutes'), ('db3', 'jsonlog', 'x', 1, sha256(''), sha256(''), '', now() - interval '2 days');
create function pg_temp.without_line() returns bigint language sql as $$
  select r.findings from custody.reconcile_logs(now() - interval '2 hours', now()) r where r.kind = 'row_without_line';
$$;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is(pg_temp.without_line(), 0::bigint, 'an event whose line may be in a log that is not shipped as far');
reset session authorization;
update custody_data.log_sources set last_line_at = now() where source = 'db2';
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is(pg_temp.without_line(), 1::bigint, 'and once it is');
select * from finish();
rollback;
