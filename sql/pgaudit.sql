-- pgaudit: what the server's log keeps of reads, DDL and role changes in this database.
-- control: HIPAA 164.312(b); SOC 2 CC7.2; ISO 27001 A.8.15, A.8.16
-- reviewed by: DBA, security
--
-- Needs more rights than migrations have: pgaudit must be in shared_preload_libraries, and its settings are a
-- superuser's. Run it by hand as a superuser, connected to this database; migrations apply it when they may
-- and report when they may not. Safe to run again: run it after each migration that adds personal columns.
--
-- Object audit: whoever reads a personal column is logged, because custody_pgaudit has SELECT on it. Values
-- stay out of the log: log_parameter is off, and nothing personal is ever part of a statement's text.
-- locks: none that matter. rewrite cost: none.

create extension if not exists pgaudit;

do $$
declare
  v_column record;
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = 'custody_pgaudit') then
    create role custody_pgaudit nologin;
    comment on role custody_pgaudit is 'Marks for pgaudit which columns are audited on reading. Nobody is a member of it.';
  end if;
  for v_column in
    select c.oid::regclass as relation, a.attname
    from pg_catalog.pg_class c
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    join pg_catalog.pg_description d on d.classoid = 'pg_catalog.pg_class'::regclass and d.objoid = c.oid and d.objsubid = a.attnum
    where c.relnamespace = 'custody_data'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
      and d.description like '%@custody{%'
  loop
    execute pg_catalog.format('grant select (%I) on %s to custody_pgaudit', v_column.attname, v_column.relation);
  end loop;

  execute pg_catalog.format('alter database %I set pgaudit.role = ''custody_pgaudit''', pg_catalog.current_database());
  execute pg_catalog.format('alter database %I set pgaudit.log = ''ddl, role''', pg_catalog.current_database());
  execute pg_catalog.format('alter database %I set pgaudit.log_catalog = off', pg_catalog.current_database());
  execute pg_catalog.format('alter database %I set pgaudit.log_relation = on', pg_catalog.current_database());
  execute pg_catalog.format('alter database %I set pgaudit.log_parameter = off', pg_catalog.current_database());
  execute pg_catalog.format('alter database %I set log_parameter_max_length = 0', pg_catalog.current_database());
  execute pg_catalog.format('alter database %I set log_parameter_max_length_on_error = 0', pg_catalog.current_database());
end
$$;
