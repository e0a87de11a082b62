-- Which role may do what to which table: as a page to review, as the catalog has it, and as it turns out when tried.
begin;
set local search_path = tap, testing;
select no_plan();

-- s select, i insert, u update, d delete; nobody has truncate, references or trigger. Insert and update are by column,
-- and what is selected of archive_segments.
create temp table may (name text, readonly text, readwrite text, worker text, privacy text, auditor text, backup text);
insert into may values
  ('tenants',              's',   's',    's',   's',  's', 's'),
  ('identities',           's',   's',    's',   's',  's', 's'),
  ('user_profiles',        's',   's',    'siu', 's',  '',  's'),
  ('user_preferences',     's',   's',    'siu', 's',  '',  's'),
  ('consent_records',      's',   's',    'si',  's',  '',  's'),
  ('conversations',        's',   's',    'siu', 's',  '',  's'),
  ('audit_logs',           '',    'i',    'si',  'i',  '',  's'),
  ('erased_user_ids',      '',    '',     '',    '',   '',  's'),
  ('audit_entry_ids',      '',    '',     'si',  '',   '',  's'),
  ('audit_actions',        's',   'siu',  'siu', 's',  's', 's'),
  ('audit_resource_types', 's',   'siu',  'siu', 's',  's', 's'),
  ('logins',               '',    '',     's',   's',  's', 's'),
  ('requests',             '',    '',     's',   's',  's', 's'),
  ('erasure_certificates', '',    '',     's',   's',  's', 's'),
  ('stored_certificates', '',    '',     's',   's',  's', 's'),
  ('holders',              '',    '',     's',   's',  's', 's'),
  ('erasure_notices',      '',    '',     's',   's',  '',  's'),
  ('legal_holds',          '',    '',     's',   's',  's', 's'),
  ('retention_policies',   's',   's',    's',   's',  's', 's'),
  ('retention_changes',    '',    '',     's',   's',  's', 's'),
  ('job_runs',             '',    '',     's',   's',  's', 's'),
  ('imports',              '',    '',     'si',  's',  's', 's'),
  ('incarnations',         '',    '',     's',   's',  's', 's'),
  ('archive_heads',        '',    '',     's',   's',  's', 's'),
  ('archive_segments',     '',    '',     's',   's',  's', 's'),
  ('partition_drops',      '',    '',     's',   's',  's', 's'),
  ('archive_restores',     '',    '',     's',   's',  's', 's'),
  ('restored_events',      '',    '',     's',   's',  's', 's'),
  ('ledger_tiles',          '',    '',     's',   's',  's', 's'),
  ('ledger_entries',        '',    '',     's',   's',  's', 's'),
  ('ledger_stretches',      '',    '',     's',   's',  's', 's'),
  ('ledger_heads',          '',    '',     's',   's',  's', 's'),
  ('ledger_checkpoints',    '',    '',     's',   's',  's', 's'),
  ('access_events',         '',    '',     's',   's',  's', 's'),
  ('log_sources',           '',    '',     's',   's',  's', 's'),
  ('log_batches',           '',    '',     's',   's',  's', 's'),
  ('log_findings',          '',    '',     's',   's',  's', 's'),
  ('log_sinks',             '',    '',     's',   's',  's', 's'),
  ('log_spool',             '',    '',     's',   's',  's', 's'),
  ('detection_rules',       '',    '',     's',   '',   's', 's'),
  ('detection_heads',       '',    '',     's',   '',   's', 's'),
  ('detection_networks',    '',    '',     's',   '',   's', 's'),
  ('actor_settings',        '',    '',     's',   '',   's', 's'),
  ('access_baselines',      '',    '',     '',    '',   '',  's'),
  ('canaries',              '',    '',     '',    '',   's', 's'),
  ('alerts',                '',    '',     's',   's',  's', 's'),
  ('schema_migrations',    's',   's',    's',   's',  's', 's'),
  ('schema_steps',         's',   's',    's',   's',  's', 's');
create temp view page as
select m.name, r.role, r.rights from may m cross join lateral (values ('custody_readonly', m.readonly), ('custody_readwrite', m.readwrite), ('custody_worker', m.worker), ('custody_privacy', m.privacy),
  ('custody_auditor', m.auditor), ('custody_backup', m.backup)) r (role, rights);
select results_eq('select name collate "default" from tables order by 1', 'select name from may order by 1', 'every table is on the page');

-- As the catalog has it, partitions among the tables.
select is(concat(case when has_any_column_privilege(p.role, t.oid, 'select') then 's' end, case when has_any_column_privilege(p.role, t.oid, 'insert') then 'i' end,
    case when has_any_column_privilege(p.role, t.oid, 'update') then 'u' end, case when has_table_privilege(p.role, t.oid, 'delete') then 'd' end,
    case when has_table_privilege(p.role, t.oid, 'truncate') then 't' end, case when has_any_column_privilege(p.role, t.oid, 'references') then 'r' end, case when has_table_privilege(p.role, t.oid, 'trigger') then 'g' end),
  p.rights, format('rights of %s on %s', p.role, p.name))
from pg_temp.page p join tables t on t.name = p.name order by p.name, p.role;
select is((select string_agg(format('%s %s', pg_get_userbyid(x.grantee), x.privilege_type), ', ') from pg_class c cross join aclexplode(c.relacl) x where c.oid = p.oid and x.grantee <> c.relowner), 'custody_backup SELECT',
  format('on partition %s backups alone have a right', p.name)) from partitions p;
select is((select count(*) from pg_class c cross join aclexplode(c.relacl) x where c.relnamespace = 'custody_data'::regnamespace and (x.grantee = 0 or (x.is_grantable and x.grantee <> c.relowner))), 0::bigint,
  'PUBLIC has nothing, and nobody may pass a right on');
select is(has_schema_privilege(g.name, 'custody_keys', 'usage'), g.name = 'custody_backup', format('%s and the way into the schema of keys', g.name)) from groups g;
select is_empty($$select c.relname, x.grantee::regrole, x.privilege_type from pg_class c cross join aclexplode(c.relacl) x where c.relnamespace = 'custody_keys'::regnamespace and x.grantee <> c.relowner and (x.grantee <> 'custody_backup'::regrole or x.privilege_type <> 'SELECT' or x.is_grantable)$$, 'keys are the owner''s, and read by the backup');
select is(has_schema_privilege(g.name, s, 'create'), false, format('%s creates nothing in %s', g.name, s)) from groups g, unnest(array['custody', 'custody_data', 'custody_keys', 'custody_check', 'river']) s;

-- As it turns out. Statements that touch no row ask for the right all the same.
create function pg_temp.column_of(p_table text, p_role text, p_privilege text) returns text language sql as $$
  select coalesce((select quote_ident(a.attname) from pg_attribute a where a.attrelid = format('custody_data.%I', p_table)::regclass and a.attnum > 0 and not a.attisdropped
    and has_column_privilege(p_role, a.attrelid, a.attnum, p_privilege) order by a.attnum limit 1), 'tenant_id');
$$;
select is(attempt(p.role, format('select 1 from custody_data.%I limit 0', p.name)) <> '42501', p.rights ~ 's', format('%s selects from %s', p.role, p.name)) from pg_temp.page p order by p.name, p.role;
select is(attempt(p.role, format('update custody_data.%I set %2$s = null where false', p.name, pg_temp.column_of(p.name, p.role, 'update'))) <> '42501', p.rights ~ 'u', format('%s updates %s', p.role, p.name))
from pg_temp.page p where p.name not like 'schema%' order by p.name, p.role;
select is(attempt(p.role, format('insert into custody_data.%I (%s) select null where false', p.name, pg_temp.column_of(p.name, p.role, 'insert'))) <> '42501', p.rights ~ 'i', format('%s inserts into %s', p.role, p.name))
from pg_temp.page p where p.name not like 'schema%' order by p.name, p.role;
select is(attempt(p.role, format('delete from custody_data.%I where false', p.name)) <> '42501', p.rights ~ 'd', format('%s deletes from %s', p.role, p.name)) from pg_temp.page p order by p.name, p.role;
select is(attempt(p.role, format('truncate custody_data.%I', p.name)), '42501', format('%s does not truncate %s', p.role, p.name)) from pg_temp.page p order by p.name, p.role;
select is(attempt(g.name, format(s, p.name)), case when s like 'select%' and g.name = 'custody_backup' then 'ok' else '42501' end, format('%s: %s', g.name, format(s, p.name)))
from partitions p, groups g, unnest(array['select 1 from custody_data.%I limit 0', 'insert into custody_data.%I (tenant_id) select null where false', 'update custody_data.%I set tenant_id = null where false',
  'delete from custody_data.%I where false', 'truncate custody_data.%I']) s;
select * from finish();
rollback;
