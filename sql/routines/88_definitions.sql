-- What the schema is made of, object by object, so that the control views can tell what is no longer as a
-- migration left it.
-- control: SOC 2 CC7.1, CC8.1; ISO 27001 A.8.9, A.8.32; HIPAA 164.308(a)(8)
-- reviewed by: DBA, auditor
--
-- A digest of each definition is kept by the last migration (95_baseline.sql). Months of the trail are left out, since
-- they come and go: custody_check.findings looks at them one by one. So are the marks of pgaudit, which a DBA sets.
-- locks: none. rewrite cost: none.

create or replace function custody_data.rights(p_acl aclitem[])
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- In an order that does not depend on who was granted first, and without who granted: a restore changes both.
  select string_agg(concat(case when x.grantee = 0 then 'public' else pg_get_userbyid(x.grantee) end, ' ', x.privilege_type, case when x.is_grantable then '*' end), ', '
    order by x.grantee = 0, pg_get_userbyid(x.grantee), x.privilege_type)
  from aclexplode(p_acl) x;
$$;
revoke all on function custody_data.rights(aclitem[]) from public;
grant execute on function custody_data.rights(aclitem[]) to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on function custody_data.rights(aclitem[]) is 'An access control list as text that two databases have in common.';

create or replace function custody_data.baseline()
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select '{}'::jsonb;
$$;
revoke all on function custody_data.baseline() from public;
grant execute on function custody_data.baseline() to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on function custody_data.baseline() is 'What definitions() said at the end of the last migration: the version of Postgres and the digest of each object. 95_baseline.sql writes it.';

create or replace function custody_data.definitions()
returns table (object text, digest text)
language sql
stable
-- the text of a definition depends on the search_path
set search_path = pg_catalog, pg_temp
as $$
  with schemas as (
    select n.oid, n.nspname from pg_namespace n where n.nspname in ('custody', 'custody_data', 'custody_keys', 'custody_check')
  ), relations as (
    select c.*, s.nspname || '.' || c.relname as name
    from pg_class c join schemas s on s.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and not c.relispartition and c.relname !~ '^audit_logs_[0-9]{4}_[0-9]{2}$'
  ), parts (object, part) as (
    select 'schema ' || s.nspname, concat_ws(' ', n.nspowner::regrole, custody_data.rights(coalesce(n.nspacl, acldefault('n', n.nspowner))))
    from schemas s join pg_namespace n on n.oid = s.oid
    union all
    select 'function ' || s.nspname || '.' || p.proname || '(' || coalesce((
        select string_agg(t.typname, ', ' order by a.n) from unnest(p.proargtypes::oid[]) with ordinality a (type, n) join pg_type t on t.oid = a.type), '') || ')',
      concat_ws(' ', p.prosrc, pg_get_function_sqlbody(p.oid), pg_get_function_result(p.oid), pg_get_function_arguments(p.oid), p.prolang::text, p.prokind, p.prosecdef, p.provolatile, p.proparallel,
        p.proconfig::text, p.proowner::regrole, custody_data.rights(coalesce(p.proacl, acldefault('f', p.proowner))))
    from pg_proc p join schemas s on s.oid = p.pronamespace
    -- which are written anew, the one by migrations, the other by each change of logins
    where p.oid not in ('custody_data.baseline()'::regprocedure, 'custody_data.checked_logins()'::regprocedure)
    union all
    select 'relation ' || r.name, concat_ws(' ', r.relkind, r.relrowsecurity, r.relforcerowsecurity, r.relpersistence, r.reloptions::text, r.relowner::regrole,
      (select string_agg(g, ', ') from unnest(string_to_array(custody_data.rights(coalesce(r.relacl, acldefault(case r.relkind when 'S' then 's' else 'r' end::"char", r.relowner))), ', ')) g
        where g not like 'custody\_pgaudit %'),
      case when r.relkind in ('v', 'm') then pg_get_viewdef(r.oid) end, pg_get_partkeydef(r.oid))
    from relations r
    union all
    select 'column ' || r.name || '.' || a.attname, concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid),
      (select string_agg(g, ', ') from unnest(string_to_array(custody_data.rights(a.attacl), ', ')) g where g not like 'custody\_pgaudit %'), col_description(r.oid, a.attnum))
    from relations r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all
    select 'policy ' || r.name || '.' || p.polname, concat_ws(' ', p.polcmd, p.polpermissive,
      (select string_agg(case when o.role = 0 then 'public' else pg_get_userbyid(o.role) end, ', ' order by pg_get_userbyid(o.role)) from unnest(p.polroles) o (role)), pg_get_expr(p.polqual, p.polrelid), '/', pg_get_expr(p.polwithcheck, p.polrelid))
    from relations r join pg_policy p on p.polrelid = r.oid
    union all
    select 'trigger ' || r.name || '.' || t.tgname, concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
    from relations r join pg_trigger t on t.tgrelid = r.oid where not t.tgisinternal
    union all
    select 'constraint ' || r.name || '.' || c.conname, concat_ws(' ', pg_get_constraintdef(c.oid), c.convalidated)
    from relations r join pg_constraint c on c.conrelid = r.oid
    union all
    select 'index ' || r.name || '.' || x.relname, concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisvalid)
    from relations r join pg_index i on i.indrelid = r.oid join pg_class x on x.oid = i.indexrelid
    union all
    select 'rule ' || r.name || '.' || w.rulename, pg_get_ruledef(w.oid)
    from relations r join pg_rewrite w on w.ev_class = r.oid where w.rulename <> '_RETURN'
    union all
    select 'child ' || r.name || '.' || i.inhrelid::regclass::text, ''
    from relations r join pg_inherits i on i.inhparent = r.oid where r.relkind = 'r'
    union all
    select 'domain ' || s.nspname || '.' || t.typname, concat_ws(' ', format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typcollation::regcollation,
      (select string_agg(pg_get_constraintdef(c.oid), ' ' order by c.conname) from pg_constraint c where c.contypid = t.oid), t.typowner::regrole)
    from pg_type t join schemas s on s.oid = t.typnamespace where t.typtype = 'd'
  )
  select p.object, encode(sha256(convert_to(p.part, 'UTF8')), 'hex') from parts p;
$$;
revoke all on function custody_data.definitions() from public;
grant execute on function custody_data.definitions() to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on function custody_data.definitions() is 'Every object of the schemas of pgcustody, partitions apart, with a digest of its definition, owner and rights.';
