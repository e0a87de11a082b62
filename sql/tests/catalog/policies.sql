-- The policies: which stand on which table, for whom and for what; each calls its helpers in a sub-select, which
-- runs once a statement, and shows nothing without a context.
begin;
set local search_path = tap, testing;
select no_plan();
create temp view policies as
select c.relname::text as tbl, p.polname::text as name, p.polpermissive, p.polcmd::text as cmd, array(select pg_get_userbyid(r)::text from unnest(p.polroles) r where r <> 0 order by 1) as roles,
  pg_get_expr(p.polqual, p.polrelid) as qual, pg_get_expr(p.polwithcheck, p.polrelid) as checked, obj_description(p.oid, 'pg_policy') as comment
from pg_policy p join pg_class c on c.oid = p.polrelid
where c.relnamespace = 'custody_data'::regnamespace;

select set_eq('select p.name, p.cmd, p.roles::text from policies p where p.name !~ ''_backup_select$''', $$
  with page (name, cmd, roles) as (
  select t || '_all_all', '*', '{}' from unnest(array['user_profiles', 'user_preferences', 'consent_records', 'conversations', 'audit_entry_ids', 'erased_user_ids', 'identities', 'tenants', 'requests', 'erasure_certificates', 'stored_certificates',
    'holders', 'erasure_notices', 'legal_holds', 'retention_changes', 'job_runs', 'imports', 'archive_restores', 'restored_events',
    'log_sources', 'log_batches', 'log_findings', 'log_sinks', 'log_spool',
    'detection_rules', 'detection_heads', 'detection_networks', 'actor_settings', 'access_baselines', 'canaries', 'alerts']) t
  union all select t || '_all_select', 'r', '{}' from unnest(array['audit_logs', 'audit_actions', 'audit_resource_types', 'retention_policies', 'incarnations', 'archive_heads', 'archive_segments', 'partition_drops', 'schema_migrations', 'schema_steps',
    'ledger_tiles', 'ledger_entries', 'ledger_stretches', 'ledger_heads', 'ledger_checkpoints',
    'access_events']) t
  union all select t || '_owner_all', '*', '{custody_owner}' from unnest(array['actor_settings', 'access_baselines', 'canaries', 'alerts']) t
  union all values ('alerts_system_select', 'r', '{custody_auditor,custody_worker}')
  union all values ('access_events_system_select', 'r', '{custody_auditor,custody_owner,custody_worker}'), ('access_events_owner_insert', 'a', '{custody_owner}'), ('access_events_owner_update', 'w', '{custody_owner}')
  union all select t || '_owner_all', '*', '{custody_owner}' from unnest(array['ledger_tiles', 'ledger_entries', 'ledger_stretches', 'ledger_heads', 'ledger_checkpoints']) t
  union all select t || '_all_insert', 'a', '{}' from unnest(array['audit_logs', 'audit_actions', 'audit_resource_types', 'retention_policies', 'incarnations', 'archive_heads', 'archive_segments', 'partition_drops']) t
  union all select t || '_all_update', 'w', '{}' from unnest(array['audit_actions', 'audit_resource_types', 'retention_policies', 'archive_heads', 'archive_segments']) t
  union all values ('audit_logs_worker_insert', 'a', '{custody_worker}'), ('audit_logs_worker_select', 'r', '{custody_owner,custody_worker}'),
    ('audit_logs_writers_insert', 'a', '{custody_privacy,custody_readwrite,custody_worker}'), ('holders_owner_select', 'r', '{custody_owner}'),
    ('identities_subject_all', '*', '{custody_auditor,custody_privacy,custody_readonly,custody_readwrite,custody_worker}'), ('legal_holds_owner_select', 'r', '{custody_owner}'),
    ('requests_owner_select', 'r', '{custody_owner}'), ('restored_events_owner_insert', 'a', '{custody_owner}'), ('restored_events_worker_select', 'r', '{custody_owner,custody_worker}'), ('retention_policies_system_select', 'r', '{custody_owner}'), ('tenants_owner_all', '*', '{custody_owner}'), ('logins_owner_all', '*', '{custody_owner}'), ('logins_all_select', 'r', '{custody_admin,custody_auditor,custody_privacy,custody_worker}'), ('schema_migrations_owner_all', '*', '{custody_owner}'), ('schema_steps_owner_all', '*', '{custody_owner}')
  ) select name, cmd, roles from page$$, 'the policies are those of the page');
select set_eq('select p.tbl, p.name, p.cmd, p.roles::text, p.qual from policies p where p.name ~ ''_backup_select$''',
  $$select n, n || '_backup_select' as policy, 'r' as cmd, '{custody_backup}' as roles, 'true' as qual from (select name from tables where name not like 'schema\_%' union all select name from partitions) t (n)$$, 'backups read all rows of every table and partition, and no more');
select is_empty($$select p.name from policies p where p.comment is null and p.tbl not in (select name from partitions)$$, 'each has a comment');
select is_empty($$select p.name from policies p where not p.polpermissive and p.name not in ('identities_subject_all', 'audit_logs_writers_insert')$$, 'all but two permit');
select is((select bool_or(p.polpermissive) from policies p where p.name in ('identities_subject_all', 'audit_logs_writers_insert')), false, 'which restrict');

select is_empty($$select p.name, h from policies p, unnest(array['current_tenant', 'current_actor_id', 'current_subject_id', 'has_subject', 'writes_system']) h
  where regexp_count(concat(p.qual, ' ', p.checked), h || '\(\)') <> regexp_count(concat(p.qual, ' ', p.checked), 'SELECT custody(_data)?\.' || h || '\(\)')$$, 'no helper is called outside of a sub-select');
select is_empty($$select p.name from policies p where p.name !~ '_backup_select$|^schema_|^tenants_owner_all$|^logins_owner_all$|^incarnations_all_insert$'
  and (coalesce(p.qual, 'current_tenant') || coalesce(p.checked, 'current_tenant')) !~ 'current_tenant|has_subject'$$, 'no policy opens a table without asking for the context');
select is_empty($$select p.name, p.qual, p.checked from policies p where (p.qual = 'true' or p.checked = 'true')
  and p.name not in ('tenants_owner_all', 'logins_owner_all', 'incarnations_all_insert', 'schema_migrations_all_select', 'schema_migrations_owner_all', 'schema_steps_all_select', 'schema_steps_owner_all') and p.name !~ '_backup_select$'$$, 'only those are true for every row');
select is_empty($$select p.name from policies p where concat(p.qual, p.checked) ~ 'current_setting|current_user|session_user'$$, 'none reads settings or users by itself');
select is_empty($$select p.tbl from policies p where p.tbl in (select name from partitions) and p.name !~ '_backup_select$'$$, 'partitions show nothing but to backups');
select set_eq($$select p.polname::text, pg_get_expr(p.polqual, p.polrelid), p.polroles::regrole[]::text from pg_policy p where p.polrelid = 'custody_keys.context_keys'::regclass$$,
  $$values ('context_keys_owner_all', 'true', '{custody_owner}')$$, 'keys of contexts and tokens are shown to nobody but the owner, backups included');
select * from finish();
rollback;
