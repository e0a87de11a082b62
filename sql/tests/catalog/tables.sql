-- Every table and every partition: row-level security enabled and forced, the owner nobody's login, a comment, the
-- tenant first in the key, no foreign key, no default partition.
begin;
set local search_path = tap, testing;
select no_plan();
select set_eq('select name from tables', array['tenants', 'identities', 'user_profiles', 'user_preferences', 'consent_records', 'conversations', 'audit_logs', 'audit_entry_ids', 'audit_actions',
  'audit_resource_types', 'requests', 'erasure_certificates', 'stored_certificates', 'erased_user_ids', 'holders', 'erasure_notices', 'legal_holds', 'retention_policies', 'retention_changes', 'job_runs', 'imports', 'incarnations', 'archive_heads', 'archive_segments',
  'partition_drops', 'archive_restores', 'restored_events', 'ledger_tiles', 'ledger_entries', 'ledger_stretches', 'ledger_heads', 'ledger_checkpoints',
  'detection_rules', 'detection_heads', 'detection_networks', 'actor_settings', 'access_baselines', 'canaries', 'alerts',
  'access_events', 'log_sources', 'log_batches', 'log_findings', 'log_sinks', 'log_spool',
  'logins', 'schema_migrations', 'schema_steps'], 'these are the tables');
select ok(c.relrowsecurity, format('row-level security is enabled on %s', c.relname)) from pg_class c where c.relnamespace in ('custody_data'::regnamespace, 'custody_keys'::regnamespace) and c.relkind in ('r', 'p');
select ok(c.relforcerowsecurity, format('and forced on %s', c.relname)) from pg_class c where c.relnamespace in ('custody_data'::regnamespace, 'custody_keys'::regnamespace) and c.relkind in ('r', 'p');
select is(pg_get_userbyid(c.relowner), 'custody_owner', format('%s belongs to custody_owner', c.relname)) from pg_class c where c.relnamespace::regnamespace::text like 'custody%' and c.relkind in ('r', 'p', 'v', 'm', 'S');
select isnt(obj_description(c.oid, 'pg_class'), null, format('%s has a comment', c.relname)) from pg_class c where c.relnamespace::regnamespace::text like 'custody%' and c.relkind in ('r', 'p', 'v', 'm');
select is_empty($$select c.relname from pg_class c where c.relnamespace::regnamespace::text like 'custody%' and c.relkind not in ('r', 'p', 'v', 'S', 'i', 'I', 'c')$$, 'no materialised view or foreign table, which know no row-level security');

select is((select a.attname::text from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1] where k.conrelid = t.oid and k.contype = 'p'), 'tenant_id',
  format('tenant_id is first in the key of %s', t.name))
from tables t where t.name not like 'schema\_%';
select is((select format_type(a.atttypid, a.atttypmod) from pg_attribute a where a.attrelid = t.oid and a.attname = 'tenant_id' and a.attnotnull), 'custody_data.tenant_name', format('tenant_id of %s is a tenant''s name', t.name))
from tables t where t.name not like 'schema\_%';
select is_empty($$select k.conrelid::regclass, k.conname from pg_constraint k where k.contype = 'f' and k.connamespace::regnamespace::text like 'custody%'$$,
  'there is no foreign key, whose cascade would reach rows that the caller cannot see');
select is_empty($$select c.relname from pg_class c where c.relispartition and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT'$$, 'there is no default partition');
select is_empty($$select i.inhrelid::regclass from pg_inherits i join pg_class c on c.oid = i.inhparent where c.relnamespace = 'custody_data'::regnamespace and c.relkind = 'r'$$, 'no table inherits from another');
select is_empty($$select r.ev_class::regclass, r.rulename from pg_rewrite r join pg_class c on c.oid = r.ev_class where c.relnamespace = 'custody_data'::regnamespace$$, 'no rule rewrites a statement on a table');
select is_empty($$select c.conname from pg_constraint c where c.connamespace::regnamespace::text like 'custody%' and not c.convalidated$$, 'every constraint is validated');
select is((select count(*) from pg_index i join pg_class c on c.oid = i.indrelid where c.relnamespace = 'custody_data'::regnamespace and not i.indisvalid), 0::bigint, 'every index is valid');

-- A unique constraint must not tell one tenant what another has.
select is_empty($$select i.indexrelid::regclass from pg_index i join tables t on t.oid = i.indrelid join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
  where i.indisunique and a.attname <> 'tenant_id' and t.name not like 'schema\_%'$$, 'every unique index begins with the tenant');
-- The schemas.
select isnt(obj_description(n.oid, 'pg_namespace'), null, format('schema %s has a comment', n.nspname)) from pg_namespace n where n.nspname like 'custody%' or n.nspname = 'river';
select is(pg_get_userbyid(n.nspowner), 'custody_owner', format('schema %s belongs to custody_owner', n.nspname)) from pg_namespace n where n.nspname like 'custody%' or n.nspname = 'river';
select is_empty($$select n.nspname from pg_namespace n cross join aclexplode(n.nspacl) x where (n.nspname like 'custody%' or n.nspname = 'river') and x.grantee = 0$$, 'PUBLIC has no way into them');
select set_eq($$select c.relname::text from pg_class c join tables t on t.oid = c.oid where c.reloptions @> '{autovacuum_vacuum_threshold=0,autovacuum_vacuum_scale_factor=0}'$$, array['identities', 'erasure_notices'],
  'tables whose dead rows have a user_id in plaintext are vacuumed at once');
select * from finish();
rollback;
