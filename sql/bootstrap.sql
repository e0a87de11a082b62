-- Roles, schemas and their owner: the ground that every other file stands on.
-- control: GDPR Art. 25 and 32(1)(b), HIPAA 45 CFR 164.308(a)(4), ISO 27001 A.5.15, SOC 2 CC6.1 (least privilege)
-- reviewed by: DBA, security
--
-- Run by the migration login before the versioned files, each time, and safe to run again. The login needs
-- no superuser: it owns the database and may create roles. Roles belong to the whole cluster, so they are
-- looked up before they are made, and a second database of the same cluster finds them there.
-- locks: none on tables. rewrite cost: none.

do $$
declare
  v_role text;
  v_membership text[];
begin
  foreach v_role in array array[
    'custody_owner', 'custody_readonly', 'custody_readwrite', 'custody_admin',
    'custody_worker', 'custody_privacy', 'custody_auditor', 'custody_backup'
  ] loop
    if not exists (select from pg_catalog.pg_roles r where r.rolname = v_role) then
      begin
        execute pg_catalog.format('create role %I nologin', v_role);
      exception when duplicate_object or unique_violation then
        null; -- another database of this cluster made it in the meantime
      end;
    end if;
  end loop;

  -- Members of custody_admin may act as the owner; the login that migrates is such a member.
  foreach v_membership slice 1 in array array[
    ['custody_owner', 'custody_admin'],
    ['custody_admin', current_user::text]
  ] loop
    -- From Postgres 16 on a creator is a member that may grant the role but not use it.
    if not pg_catalog.pg_has_role(v_membership[2]::name, v_membership[1]::name, 'USAGE') then
      begin
        execute pg_catalog.format('grant %I to %I', v_membership[1], v_membership[2]);
      exception when unique_violation then
        null; -- granted by another database's migration in the meantime
      end;
    end if;
  end loop;
end
$$;

do $$
declare
  v_schema text;
begin
  foreach v_schema in array array['custody', 'custody_data', 'custody_keys', 'custody_check'] loop
    if not exists (select from pg_catalog.pg_namespace n where n.nspname = v_schema) then
      execute pg_catalog.format('create schema %I authorization custody_owner', v_schema);
    end if;
  end loop;
end
$$;

-- A function that somebody forgets to protect must not be callable by everybody. Only the form without
-- IN SCHEMA takes the built-in grant to PUBLIC away.
alter default privileges for role custody_owner revoke execute on functions from public;
alter default privileges for role custody_owner revoke usage on types from public;

-- AES-CBC and HMAC for sealed columns. The extension is trusted: who may create objects in the database may create
-- it. Where it is there already, in whatever schema, it is used where it is.
do $$
begin
  if not exists (select from pg_catalog.pg_extension e where e.extname = 'pgcrypto') then
    create extension if not exists pgcrypto with schema public;
  end if;
  -- A hardened database lets nobody into public.
  if not pg_catalog.has_schema_privilege('custody_owner', (select e.extnamespace from pg_catalog.pg_extension e where e.extname = 'pgcrypto'), 'usage') then
    execute (select pg_catalog.format('grant usage on schema %I to custody_owner', n.nspname)
      from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'pgcrypto');
  end if;
end
$$;

-- Imports stage in temporary tables, and a hardened database gives PUBLIC none.
do $$
begin
  if not pg_catalog.has_database_privilege('custody_worker', pg_catalog.current_database(), 'temporary') then
    execute pg_catalog.format('grant temporary on database %I to custody_worker', pg_catalog.current_database());
  end if;
end
$$;

grant usage on schema custody to
  custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor, custody_backup;
grant usage on schema custody_data to
  custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor, custody_backup;
grant usage on schema custody_check to custody_admin, custody_auditor, custody_worker;

do $$
begin
  if not exists (
    select from pg_catalog.pg_description d
    where d.classoid = 'pg_catalog.pg_namespace'::regclass and d.objoid = 'custody'::regnamespace
  ) then
    comment on schema custody is 'The API: the functions and views that people and programs call.';
    comment on schema custody_data is 'The tables of record, of governance and of evidence, their guards and helpers. Nothing here is called directly by applications.';
    comment on schema custody_keys is 'Wrapped data keys, apart from the data so that they can have backups of their own.';
    comment on schema custody_check is 'Control views: what a DBA or an auditor looks at to see that the guards stand.';
  end if;
end
$$;

-- Role comments need the right to alter the role, which the login has only for roles that it made itself.
do $$
declare
  v_comment text[];
begin
  foreach v_comment slice 1 in array array[
    ['custody_owner', 'Owns every object of pgcustody. Nobody logs in as it; row-level security is forced on it.'],
    ['custody_readonly', 'Reads the tables of record of the tenant in context.'],
    ['custody_readwrite', 'Applications: read and write the tables of record of the tenant in context and append audit events.'],
    ['custody_admin', 'Migrations and vocabulary: may act as custody_owner. Its login is NOLOGIN between migrations.'],
    ['custody_worker', 'The runner: imports, retention, archive, due requests.'],
    ['custody_privacy', 'Privacy officers: erasure, export, holds, retention policies, for anybody of the tenant.'],
    ['custody_auditor', 'Reads the audit trail and the evidence, changes nothing.'],
    ['custody_backup', 'Reads all rows by policies of its own, for pg_dump --enable-row-security.']
  ] loop
    if pg_catalog.shobj_description(v_comment[1]::regrole, 'pg_authid') is distinct from v_comment[2] then
      begin
        execute pg_catalog.format('comment on role %I is %L', v_comment[1], v_comment[2]);
      exception when insufficient_privilege then
        null;
      end;
    end if;
  end loop;
end
$$;
