-- pgaudit: what the server's log keeps of this database, and of whom.
-- control: HIPAA 164.312(b); SOC 2 CC7.2; ISO 27001 A.8.15, A.8.16; GDPR Art. 32(1)(b)
-- reviewed by: DBA, security
--
-- Needs more rights than migrations have: pgaudit must be in shared_preload_libraries, and its settings are a
-- superuser's. Run it by hand as a superuser, connected to this database; migrations apply it when they may
-- and report when they may not. Safe to run again: run it after each migration that adds personal columns, and when a
-- login of an application came or went. `pgcustody check` says what is missing, overridden or out of date.
--
-- Object audit, of everybody: whoever reads a personal column is logged, because custody_pgaudit has SELECT on it. Who
-- reads whole rows, as row_to_json(t) does, names no column: where personal values are not sealed, the table is marked.
-- Session audit, of everybody but applications: each statement that reads, writes, changes a setting, a role or the
-- schema. So a person's login needs no setting of its own, and what nobody has thought of is logged, superusers too.
-- Logins of applications (in token mode, or whose comment says @custody{"login":"application"}) are excepted, by a
-- setting of each in this database: of them DDL and roles are logged, and what object audit sees. A login that may act
-- as custody_owner is never excepted, nor one of custody_backup, which reads partitions by name: these have no marks.
--
-- Values stay out of the log: parameters are not logged, and nothing personal is ever part of a statement's text.
-- What belongs to the whole server (shared_preload_libraries, logging_collector, log_destination, log_connections,
-- log_disconnections, log_replication_commands) is not set here, since no transaction can: `pgcustody check` gives the statements.
-- locks: none that matter. rewrite cost: none.

create extension if not exists pgaudit;

do $$
declare
  v_column record;
  v_setting record;
  v_login record;
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = 'custody_pgaudit') then
    create role custody_pgaudit nologin;
    comment on role custody_pgaudit is 'Marks for pgaudit which columns are audited on reading. Nobody is a member of it.';
  end if;
  for v_column in
    select n.nspname, c.relname, a.attname, a.atttypid <> 'custody_data.sealed_value'::regtype as open
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where n.nspname in ('custody_data', 'custody_keys') and c.relkind in ('r', 'p') and not c.relispartition
      -- of keys every column: nobody but our functions is to read them
      and (n.nspname = 'custody_keys' or pg_catalog.col_description(c.oid, a.attnum) like '%@custody{%')
  loop
    execute pg_catalog.format('grant select (%I) on %I.%I to custody_pgaudit', v_column.attname, v_column.nspname, v_column.relname);
    if v_column.open then
      execute pg_catalog.format('grant select on %I.%I to custody_pgaudit', v_column.nspname, v_column.relname);
    end if;
  end loop;

  -- custody_check.log_findings has the same list.
  for v_setting in
    select s.name, s.value from (values
      ('pgaudit.role', 'custody_pgaudit'), ('pgaudit.log', 'read, write, ddl, role, misc_set'), ('pgaudit.log_catalog', 'off'), ('pgaudit.log_level', 'log'),
      ('pgaudit.log_parameter', 'off'), ('pgaudit.log_relation', 'on'), ('pgaudit.log_rows', 'off'), ('pgaudit.log_statement', 'on'), ('pgaudit.log_statement_once', 'off'),
      ('log_error_verbosity', 'verbose'), ('log_parameter_max_length', '0'), ('log_parameter_max_length_on_error', '0')) s (name, value)
  loop
    begin
      execute pg_catalog.format('alter database %I set %s = %L', pg_catalog.current_database(), v_setting.name, v_setting.value);
    exception when insufficient_privilege then
      -- Hosts that let a login set up pgaudit may keep the server's own settings to themselves.
      if v_setting.name like 'pgaudit.%' then
        raise;
      end if;
      raise notice '%: not permitted to set it in this database', v_setting.name;
    end;
  end loop;

  for v_login in
    select l.login, not l.wholly as excepted, l.excepted as was_excepted from custody_data.logins_here() l
  loop
    if v_login.excepted is distinct from v_login.was_excepted then
      begin
        execute pg_catalog.format(case when v_login.excepted then 'alter role %I in database %I set pgaudit.log = ''ddl, role''' else 'alter role %I in database %I reset pgaudit.log' end,
          v_login.login, pg_catalog.current_database());
      exception when insufficient_privilege then
        -- Too much is logged then, not too little; or pgcustody check says so.
        raise notice 'role %: not permitted to set pgaudit.log in this database', v_login.login;
      end;
    end if;
  end loop;
end
$$;
