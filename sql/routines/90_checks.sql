-- Control views: whether the guards stand as this schema put them up.
-- control: SOC 2 CC4.1, CC7.1; ISO 27001 A.8.9, A.5.36; HIPAA 164.308(a)(8)
-- reviewed by: DBA, auditor
--
-- No guard stops the owner from DDL, and on Postgres 15 a role with CREATEROLE can make itself a member of
-- the owner. What they did is found here. A clean database shows no row.

create or replace view custody_check.personal_columns with (security_invoker = true) as
select c.relname::text as table_name, a.attname::text as column_name,
  pg_catalog.btrim(pg_catalog.split_part(d.description, '@custody', 1)) as description,
  substring(d.description from '@custody({.*})')::jsonb ->> 'sensitivity' as sensitivity,
  substring(d.description from '@custody({.*})')::jsonb ->> 'retention' as retention,
  a.atttypid = 'custody_data.sealed_value'::regtype as sealed
from pg_catalog.pg_class c
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
join pg_catalog.pg_description d on d.classoid = 'pg_catalog.pg_class'::regclass and d.objoid = c.oid and d.objsubid = a.attnum
where c.relnamespace = 'custody_data'::regnamespace and not c.relispartition and d.description like '%@custody{%';
grant select on custody_check.personal_columns to custody_admin, custody_auditor, custody_worker, custody_privacy;
grant usage on schema custody_check to custody_privacy;
comment on view custody_check.personal_columns is 'Every column that holds personal data, with its sensitivity and retention class, as its comment says, and whether its values are sealed. Not sealed are the external ids, by which people are found, blind indexes, and reasons that must name nobody.';

create or replace view custody_check.findings with (security_invoker = true) as
with tables as (
  select c.oid, c.relname::text as name, c.relkind, c.relispartition, c.relrowsecurity, c.relforcerowsecurity, c.relowner, c.relacl
  from pg_catalog.pg_class c
  where c.relnamespace in ('custody_data'::regnamespace, 'custody_keys'::regnamespace) and c.relkind in ('r', 'p')
), expected_guards (name, trigger_name) as (
  select t.name, 'a_reject_mutation' as trigger_name from tables t
  where t.name in ('audit_logs', 'erasure_certificates', 'stored_certificates', 'imports', 'incarnations', 'partition_drops', 'consent_records', 'restored_events', 'log_findings') or t.name ~ '^(audit_logs|access_events)_[0-9]{4}_[0-9]{2}$'
  union all
  select t.name, 'a_reject_row_mutation' as trigger_name from tables t
  where t.name in ('audit_logs', 'erasure_certificates', 'stored_certificates', 'imports', 'incarnations', 'partition_drops', 'log_findings') or t.name ~ '^audit_logs_[0-9]{4}_[0-9]{2}$'
  union all
  select t.name, 'a_reject_delete' as trigger_name from tables t
  where t.name in ('tenants', 'identities', 'requests', 'legal_holds', 'holders', 'erasure_notices', 'job_runs', 'archive_heads', 'archive_segments', 'archive_restores',
    'audit_actions', 'audit_resource_types', 'retention_policies', 'retention_changes', 'key_encryption_keys', 'data_keys', 'logins', 'context_keys',
    'access_events', 'log_sources', 'log_batches', 'log_sinks', 'canaries', 'detection_rules', 'detection_heads')
  union all
  select t.name, g.trigger_name from tables t
  cross join (values ('a_reject_truncate'), ('a_require_live_identity'), ('a_reject_held'), ('z_audit_insert'), ('z_audit_update'), ('z_audit_delete')) g (trigger_name)
  where t.name in ('user_profiles', 'user_preferences', 'conversations')
  union all
  values ('retention_policies', 'a_require_approval'), ('consent_records', 'a_reject_early_delete'), ('consent_records', 'a_require_live_identity'), ('consent_records', 'a_reject_held'),
    ('consent_records', 'z_audit_insert'), ('consent_records', 'z_audit_delete'), ('audit_entry_ids', 'a_reject_truncate'), ('erased_user_ids', 'a_reject_truncate'), ('wrapped_keys', 'a_reject_truncate'),
    ('key_encryption_keys', 'a_reject_key_change'), ('data_keys', 'a_reject_key_change'), ('wrapped_keys', 'a_reject_key_change'), ('context_keys', 'a_reject_key_change'), ('logins', 'a_reject_key_change'), ('logins', 'z_list_logins'),
    ('access_events', 'a_reject_row_delete'), ('access_events', 'a_reject_key_change'), ('log_batches', 'a_reject_key_change'), ('log_sources', 'a_reject_key_change'), ('log_spool', 'a_reject_truncate'),
    ('alerts', 'a_reject_key_change'), ('alerts', 'a_reject_truncate'), ('alerts', 'a_reject_early_delete'), ('canaries', 'a_reject_key_change'), ('detection_rules', 'a_reject_key_change'), ('detection_networks', 'a_reject_truncate'), ('actor_settings', 'a_reject_truncate')
), -- Settings under which a key, bound as a parameter, is written to the server's log: of this session, and of others.
exposing (place, setting) as (
  select 'this session', l.setting from pg_catalog.unnest(custody_data.leaking_settings()) l (setting)
  union
  select coalesce(pg_catalog.pg_get_userbyid(nullif(s.setrole, 0)), 'every login'), pg_catalog.split_part(c.entry, '=', 1)
  from pg_catalog.pg_db_role_setting s
  cross join lateral pg_catalog.unnest(s.setconfig) c (entry)
  where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
    and case pg_catalog.split_part(c.entry, '=', 1)
      when 'log_parameter_max_length' then pg_catalog.split_part(c.entry, '=', 2) <> '0'
      when 'log_parameter_max_length_on_error' then pg_catalog.split_part(c.entry, '=', 2) <> '0'
      when 'auto_explain.log_parameter_max_length' then pg_catalog.split_part(c.entry, '=', 2) <> '0'
      else pg_catalog.split_part(c.entry, '=', 1) in ('pgaudit.log_parameter', 'auto_explain.log_nested_statements', 'auto_explain.log_verbose',
          'debug_print_parse', 'debug_print_rewritten', 'debug_print_plan')
        -- as it was written, which may be cut short
        and pg_catalog.lower(pg_catalog.split_part(c.entry, '=', 2)) in ('on', 'true', 'tru', 'tr', 't', 'yes', 'ye', 'y', '1') end
  union
  -- whose statements are logged, with what is bound in them, where nothing says that it is not
  select coalesce(pg_catalog.pg_get_userbyid(nullif(s.setrole, 0)), 'every login'), 'log_parameter_max_length, under ' || pg_catalog.split_part(c.entry, '=', 1)
  from pg_catalog.pg_db_role_setting s
  cross join lateral pg_catalog.unnest(s.setconfig) c (entry)
  where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
    and c.entry ~* '^(log_statement=(all|mod)|log_min_duration_(statement|sample)=(?!-1$)|log_transaction_sample_rate=(?!0$))'
    and not exists (select from pg_catalog.pg_db_role_setting o where o.setrole in (0, s.setrole) and o.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
      and 'log_parameter_max_length=0' = any (o.setconfig))
    and not exists (select from pg_catalog.pg_settings g where g.name = 'log_parameter_max_length' and g.source in ('default', 'configuration file', 'command line') and g.setting = '0')
)
select 'rls-forced' as id, 'Row-level security is not enabled and forced' as title, 'error' as level, 'HIPAA 164.312(a)(1)' as control,
  t.name as object, pg_catalog.format('enabled %s, forced %s', t.relrowsecurity, t.relforcerowsecurity) as detail,
  pg_catalog.format('alter table %s enable row level security, force row level security', t.oid::regclass) as remediation
from tables t where not (t.relrowsecurity and t.relforcerowsecurity)
union all
select 'guard-missing', 'A guard is missing', 'error', 'HIPAA 164.312(b)', g.name, pg_catalog.format('trigger %s', g.trigger_name),
  'Find out who dropped it and when; put it back as in sql/00009_guards.sql'
from expected_guards g
where not exists (
  select from tables t join pg_catalog.pg_trigger r on r.tgrelid = t.oid where t.name = g.name and r.tgname = g.trigger_name)
union all
select 'guard-disabled', 'A guard is not ENABLE ALWAYS', 'error', 'HIPAA 164.312(b)', t.name, pg_catalog.format('trigger %s is in state %s', r.tgname, r.tgenabled),
  pg_catalog.format('alter table %s enable always trigger %I', t.oid::regclass, r.tgname)
from tables t join pg_catalog.pg_trigger r on r.tgrelid = t.oid
where not r.tgisinternal and r.tgenabled <> 'A'
union all
select 'guard-replaced', 'A guard calls another function than its own', 'error', 'HIPAA 164.312(b)', t.name,
  pg_catalog.format('trigger %s calls %s', r.tgname, r.tgfoid::regprocedure), 'Put it back as in sql/00009_guards.sql'
from tables t join pg_catalog.pg_trigger r on r.tgrelid = t.oid
join pg_catalog.pg_proc p on p.oid = r.tgfoid
where not r.tgisinternal and (p.pronamespace <> 'custody_data'::regnamespace or p.proname not like 'tg\_%'
  -- before each update, delete and truncate, whatever it touches
  or (t.relispartition and r.tgname = 'a_reject_mutation' and (p.proname <> 'tg_reject_mutation' or r.tgtype <> 58 or r.tgqual is not null)))
union all
select 'partition-detached', 'A month of the trail is not attached', 'error', 'HIPAA 164.312(b)', t.name, 'its events are out of sight',
  'alter table custody_data.audit_logs attach partition …; find out who detached it'
from tables t where t.name ~ '^audit_logs_[0-9]{4}_[0-9]{2}$' and not t.relispartition
union all
select 'partition-foreign', 'The trail has a partition that was not made by custody.ensure_audit_partitions', 'error', 'HIPAA 164.312(b)',
  n.nspname || '.' || c.relname, 'its name is not that of a month', 'Find out who attached it'
from pg_catalog.pg_inherits i
join pg_catalog.pg_class c on c.oid = i.inhrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
-- by names, whose text does not depend on the search_path
where i.inhparent = 'custody_data.audit_logs'::regclass and not (n.nspname = 'custody_data' and c.relname ~ '^audit_logs_[0-9]{4}_[0-9]{2}$')
union all
select 'partition-ahead', 'The trail has no partition for next month', 'warning', 'SOC 2 A1.2', 'audit_logs', 'appending makes it, in the first transaction that needs it',
  'pgcustody run partitions; see why the job did not'
where pg_catalog.to_regclass('custody_data.audit_logs_' || pg_catalog.to_char((pg_catalog.now() + interval '1 month') at time zone 'UTC', 'YYYY_MM')) is null
union all
select 'owner', 'An object does not belong to custody_owner', 'error', 'SOC 2 CC6.1', o.name, pg_catalog.format('owner %s', pg_catalog.pg_get_userbyid(o.owner)),
  'alter … owner to custody_owner'
from (
  select t.name, t.relowner as owner from tables t
  union all
  select p.oid::regprocedure::text, p.proowner from pg_catalog.pg_proc p where p.pronamespace in ('custody'::regnamespace, 'custody_data'::regnamespace)
  union all
  select c.oid::regclass::text, c.relowner from pg_catalog.pg_class c where c.relnamespace in ('custody'::regnamespace, 'custody_check'::regnamespace) and c.relkind in ('v', 'm')
) o
where pg_catalog.pg_get_userbyid(o.owner) <> 'custody_owner'
union all
select 'owner-login', 'custody_owner can log in or is a superuser', 'error', 'SOC 2 CC6.1', r.rolname, 'the owner is nobody', 'alter role custody_owner nologin nosuperuser'
from pg_catalog.pg_roles r where r.rolname = 'custody_owner' and (r.rolcanlogin or r.rolsuper)
union all
select 'migrator-open', 'A login can act as custody_owner', 'warning', 'SOC 2 CC8.1', r.rolname, 'between migrations nobody should',
  pg_catalog.format('alter role %I nologin', r.rolname)
from pg_catalog.pg_roles r
where r.rolcanlogin and not r.rolsuper and pg_catalog.pg_has_role(r.oid, 'custody_owner', 'member')
union all
select 'public-grant', 'PUBLIC has a privilege on a table', 'error', 'HIPAA 164.308(a)(4)', t.name, x.privilege_type, pg_catalog.format('revoke %s on %s from public', x.privilege_type, t.oid::regclass)
from tables t cross join lateral pg_catalog.aclexplode(t.relacl) x where x.grantee = 0
union all
select 'partition-grant', 'A role other than custody_backup has a privilege on a partition', 'error', 'HIPAA 164.312(a)(1)', t.name,
  pg_catalog.format('%s has %s', x.grantee::regrole, x.privilege_type), pg_catalog.format('revoke %s on %s from %s', x.privilege_type, t.oid::regclass, x.grantee::regrole)
from tables t cross join lateral pg_catalog.aclexplode(t.relacl) x
where t.relispartition and x.grantee <> t.relowner and not (pg_catalog.pg_get_userbyid(x.grantee) = 'custody_backup' and x.privilege_type = 'SELECT')
union all
select 'public-execute', 'PUBLIC may call a function', 'error', 'HIPAA 164.308(a)(4)', p.oid::regprocedure::text, 'only the helpers of policies are for everybody',
  pg_catalog.format('revoke all on function %s from public', p.oid::regprocedure)
from pg_catalog.pg_proc p
cross join lateral pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) x
where p.pronamespace in ('custody'::regnamespace, 'custody_data'::regnamespace) and x.grantee = 0
  and p.proname not in ('current_tenant', 'current_actor', 'current_actor_id', 'current_purpose', 'current_subject', 'current_subject_id', 'has_subject', 'caller_role', 'caller_is', 'writes_system', 'checked_logins',
    'context_is_authentic', 'context_stands')
union all
select 'logins-unlisted', 'The logins whose context is checked are not those that are registered', 'error', 'HIPAA 164.312(d)', 'custody_data.checked_logins()',
  pg_catalog.format('registered %s, checked %s', l.live, custody_data.checked_logins()),
  'update custody_data.logins set mode = mode, as custody_owner: its trigger writes the list; find out who changed the function or disabled the trigger'
from (select custody_data.live_logins() as live) l
where l.live is distinct from custody_data.checked_logins()
union all
select 'login-gone', 'A registered login is no role of this server', 'warning', 'HIPAA 164.308(a)(3)(ii)(C)', l.name, 'renamed, it would be in free mode',
  'Find out what became of it; custody.retire_login, or custody.register_login under the new name'
from pg_catalog.unnest(custody_data.live_logins()) l (name)
where not exists (select from pg_catalog.pg_roles r where r.rolname = l.name)
union all
select 'search-path', 'A function has no fixed search_path', 'error', 'SOC 2 CC6.1', p.oid::regprocedure::text, coalesce(pg_catalog.array_to_string(p.proconfig, ', '), 'none'),
  pg_catalog.format('alter function %s set search_path = pg_catalog, pg_temp', p.oid::regprocedure)
from pg_catalog.pg_proc p
where p.pronamespace in ('custody'::regnamespace, 'custody_data'::regnamespace) and p.prosqlbody is null
  and not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)
union all
select 'view-invoker', 'A view runs with its owner''s rights', 'error', 'HIPAA 164.312(a)(1)', c.oid::regclass::text, 'row-level security of the caller does not hold in it',
  pg_catalog.format('alter view %s set (security_invoker = true)', c.oid::regclass)
from pg_catalog.pg_class c
where c.relnamespace in ('custody'::regnamespace, 'custody_check'::regnamespace) and c.relkind in ('v', 'm')
  and not coalesce(c.reloptions @> array['security_invoker=true'], false)
union all
select 'bypassrls', 'A login bypasses row-level security', 'warning', 'HIPAA 164.312(a)(1)', r.rolname, 'BYPASSRLS', pg_catalog.format('alter role %I nobypassrls', r.rolname)
from pg_catalog.pg_roles r where r.rolcanlogin and r.rolbypassrls and not r.rolsuper
union all
select 'unclassified', 'A column of a table of record says nothing of its class', 'warning', 'GDPR Art. 30(1)(c)', c.relname || '.' || a.attname, 'free text or JSON without a class or description',
  'comment on column …'
from pg_catalog.pg_class c
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.oid in ('custody_data.user_profiles'::regclass, 'custody_data.user_preferences'::regclass, 'custody_data.conversations'::regclass)
  and a.atttypid in ('text'::regtype, 'jsonb'::regtype, 'custody_data.sealed_value'::regtype) and a.attname <> 'conversation_id' and pg_catalog.col_description(c.oid, a.attnum) is null
union all
-- The text of definitions differs between versions of Postgres.
select 'baseline-old', 'The definitions were last taken down under another version of Postgres', 'warning', 'SOC 2 CC8.1', 'custody_data.baseline()',
  pg_catalog.format('Postgres %s then', b.baseline ->> 'postgres'), 'pgcustody migrate up --force'
from (select custody_data.baseline() as baseline) b
where (b.baseline ->> 'postgres')::int is distinct from pg_catalog.current_setting('server_version_num')::int / 10000
union all
select 'changed', 'An object is not as the last migration left it', 'error', 'SOC 2 CC8.1', coalesce(d.object, b.object),
  case when d.object is null then 'it is gone' when b.object is null then 'it is new' else 'its definition, owner or rights differ' end,
  'Find out who changed it and when; sql/ says what it was, and pgcustody migrate up --force puts functions and views back'
from custody_data.definitions() d
full join (
  select o.key as object, o.value as digest
  from pg_catalog.jsonb_each_text(custody_data.baseline() -> 'objects') o
) b on b.object = d.object
where d.digest is distinct from b.digest
  and (custody_data.baseline() ->> 'postgres')::int = pg_catalog.current_setting('server_version_num')::int / 10000
union all
select 'backup-blind', 'Backups do not see all rows', 'error', 'HIPAA 164.308(a)(7)', t.name, 'no policy for custody_backup that is true for every row, or no grant',
  pg_catalog.format('create policy %I on custody_data.%I for select to custody_backup using (true); grant select on custody_data.%I to custody_backup', t.name || '_backup_select', t.name, t.name)
from tables t
where t.relispartition and not (pg_catalog.has_table_privilege('custody_backup', t.oid, 'select') and exists (
  select from pg_catalog.pg_policy p
  where p.polrelid = t.oid and p.polpermissive and p.polcmd in ('r', '*') and 'custody_backup' = any (select pg_catalog.pg_get_userbyid(o) from pg_catalog.unnest(p.polroles) o) and pg_catalog.pg_get_expr(p.polqual, p.polrelid) = 'true'))
union all
select 'partition-policy', 'A partition shows rows to others than backups', 'error', 'HIPAA 164.312(a)(1)', t.name, pg_catalog.format('policy %s', p.polname), pg_catalog.format('drop policy %I on %s', p.polname, t.oid::regclass)
from tables t join pg_catalog.pg_policy p on p.polrelid = t.oid
where t.relispartition and (select pg_catalog.string_agg(pg_catalog.pg_get_userbyid(o), ' ') from pg_catalog.unnest(p.polroles) o) <> 'custody_backup'
union all
select 'key-exposed', 'A setting writes keys to the server log', 'error', 'HIPAA 164.312(a)(2)(iv)', e.place, e.setting,
  'Turn it off (log_parameter_max_length and log_parameter_max_length_on_error: 0); rotate the keys that went by while it was on'
from exposing e
union all
select 'partition-rule', 'A rule rewrites statements on a partition', 'error', 'HIPAA 164.312(b)', t.name, pg_catalog.format('rule %s', w.rulename), pg_catalog.format('drop rule %I on %s', w.rulename, t.oid::regclass)
from tables t join pg_catalog.pg_rewrite w on w.ev_class = t.oid
where t.relispartition
order by 3, 1, 5;
grant select on custody_check.findings to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on view custody_check.findings is 'What does not stand as this schema put it up: id, title, level (error, warning), control, object, detail, remediation. Empty where all is well.';
