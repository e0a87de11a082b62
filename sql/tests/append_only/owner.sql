-- The owner, and a superuser, meet the guards: UPDATE, DELETE and TRUNCATE fail with PC020, on parents and
-- children, with session_replication_role set to replica too.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('append_owner');
select populate('append_owner'), populate_shared() /* $1 */;
create temp table append_only as
select format('custody_data.%I', n) as relation from unnest(array['audit_logs', 'erasure_certificates', 'stored_certificates', 'imports', 'incarnations', 'partition_drops'] || array(select p.name from partitions p)
  || array['log_findings']) n;
create temp table undeletable as
select format('custody_data.%I', n) as relation from unnest(array['tenants', 'identities', 'requests', 'legal_holds', 'holders', 'erasure_notices', 'job_runs', 'archive_heads', 'archive_segments', 'audit_actions', 'audit_resource_types', 'retention_policies', 'retention_changes']
  || array['access_events', 'log_sources', 'log_batches', 'log_findings', 'log_sinks']
  || array['canaries', 'detection_rules', 'detection_heads']) n;
create temp table statements as
select format(s, a.relation) as sql from append_only a, unnest(array['update %s set tenant_id = tenant_id', 'update only %s set tenant_id = tenant_id where false', 'delete from %s', 'delete from only %s where false', 'truncate %s', 'truncate only %s',
  'truncate %s cascade', 'truncate custody_data.audit_entry_ids, %s']) s where not (a.relation = 'custody_data.audit_logs' and s = 'truncate only %s')
union all select format(s, u.relation) from undeletable u, unnest(array['delete from %s', 'delete from only %s where false', 'truncate %s', 'truncate %s restart identity cascade']) s
union all select format('truncate custody_data.%s', t) from unnest(array['user_profiles', 'user_preferences', 'conversations', 'consent_records', 'audit_entry_ids']) t
union all values ('truncate custody_data.alerts'), ('delete from custody_data.alerts'), ('update custody_data.consent_records set granted = not granted'), ('update custody_data.consent_records set granted = false where false'),
  ('insert into custody_data.partition_drops (partition_name, range_from, range_to, rows_dropped) values (''x'', now(), now(), 1) on conflict (tenant_id, partition_name, dropped_at) do update set rows_dropped = 0'),
  ('insert into custody_data.consent_records (tenant_id, identity_id, purpose, granted, policy_version, legal_basis, occurred_at) values (''append_owner'', gen_random_uuid(), ''x'', true, ''1'', ''consent'', now()) on conflict (tenant_id, consent_id) do update set granted = false'),
  ('merge into custody_data.imports i using (select 1) s on true when matched then delete'), ('merge into custody_data.erasure_certificates c using (select 1) s on true when matched then update set certificate = ''{}''');
select enter('append_owner', 'owner') /* $1 */;
select is(attempt('custody_owner', s.sql), 'PC020', format('the owner: %s', s.sql)) from statements s;
select is(attempt('custody_admin', s.sql), 'PC020', format('who may act as the owner: %s', s.sql)) from statements s where s.sql like 'delete from custody%';
select is(attempt('custody_migrator', s.sql), 'PC020', format('the login that migrates: %s', s.sql)) from statements s where s.sql like 'update custody%';
select is(attempt('custody_super', s.sql), 'PC020', format('a superuser: %s', s.sql)) from statements s;
set local session_replication_role = replica;
select is(attempt('custody_super', s.sql), 'PC020', format('with triggers off: %s', s.sql)) from statements s;
select is(attempt('custody_owner', s.sql), 'PC020', format('the owner, with triggers off: %s', s.sql)) from statements s;
set local session_replication_role = local;
select is(attempt('custody_super', s.sql), 'PC020', format('as a replica would: %s', s.sql)) from statements s where s.sql like 'truncate custody%';
set local session_replication_role = origin;
select is(attempt('custody_owner', 'set local session_replication_role = replica'), '42501', 'the owner does not turn triggers off');
-- What the error says.
set local role custody_owner;
select throws_ok('delete from custody_data.audit_logs', 'PC020', 'delete of custody_data.audit_logs refused: the table is append-only');
select throws_ok('truncate custody_data.user_profiles', 'PC020', 'truncate of custody_data.user_profiles refused: rows leave it one by one, through erasure and retention');
select throws_ok('delete from custody_data.identities', 'PC020', 'delete of custody_data.identities refused: its rows are never deleted');
select refuses('delete from custody_data.audit_logs', 'PC020', 'and what to do instead');
select is_empty($$select c.relname from pg_class c where c.oid = 'custody_data.audit_logs'::regclass and not exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgname = 'a_reject_row_mutation' and t.tgenabled = 'A' and t.tgtype & 1 = 1)$$, 'rows that logical replication applies meet a guard of their own');
select * from finish();
rollback;
