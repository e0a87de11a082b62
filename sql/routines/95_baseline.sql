-- What every object is at the end of a migration: custody_check.findings reports what is not so any more.
-- control: SOC 2 CC7.1, CC8.1; ISO 27001 A.8.9, A.8.32
-- reviewed by: DBA, auditor
--
-- Comes after every other routine. It is taken anew by each migration that applies the routines, and says what is
-- there then: look at custody_check.findings before migrating. It finds what was done, not who would hide it: whoever
-- may act as the owner can write another baseline, and the server's log of DDL and roles (pgaudit.sql) tells that.
-- locks: none. rewrite cost: none.

do $$
begin
  execute pg_catalog.format(
    $f$create or replace function custody_data.baseline()
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as %L$f$,
    pg_catalog.format(E'\n  select %L::jsonb;\n', pg_catalog.jsonb_build_object(
      'postgres', pg_catalog.current_setting('server_version_num')::int / 10000,
      'objects', (select pg_catalog.jsonb_object_agg(d.object, d.digest) from custody_data.definitions() d))));
end
$$;
