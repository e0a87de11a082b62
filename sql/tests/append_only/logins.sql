-- No login changes what is append-only: not a row, not all of them, not a partition, not a guard, on parents and
-- children alike.
begin;
set local search_path = tap, testing;
set local client_min_messages = error;
select no_plan();
select tenant('append_logins');
select populate('append_logins'), populate_shared() /* $1 */;
create temp table append_only as
select format('custody_data.%I', n) as relation from unnest(array['audit_logs', 'consent_records', 'erasure_certificates', 'stored_certificates', 'imports', 'incarnations', 'partition_drops'] || array(select p.name from partitions p)
  || array['log_findings']) n;
grant select on append_only to public;
create function pg_temp.tries(p_login text, p_sql text) returns text language plpgsql as $$
begin
  perform set_config('session_authorization', p_login, true), custody.set_context('append_logins', 'clerk');
  execute p_sql;
  raise exception using errcode = 'T0000';
exception when others then
  return case sqlstate when 'T0000' then 'ok' else sqlstate end;
end
$$;
-- a login for backups enters no context
create function pg_temp.tries_as_backup(p_sql text) returns text language sql as $$ select attempt('custody_dump', p_sql) $$;

select is(case l.name when 'custody_dump' then pg_temp.tries_as_backup(s) else pg_temp.tries(l.name, s) end, '42501', format('%s: %s', l.name, s))
from logins l, append_only a, lateral (values (format('update %s set tenant_id = tenant_id', a.relation)), (format('delete from %s', a.relation)), (format('truncate %s', a.relation)),
  (format('alter table %s disable trigger a_reject_mutation', a.relation)), (format('alter table %s disable trigger all', a.relation)), (format('drop trigger a_reject_mutation on %s', a.relation)),
  (format('alter table %s disable row level security', a.relation)), (format('alter table %s no force row level security', a.relation)), (format('alter table %s alter column tenant_id drop not null', a.relation)),
  (format('drop table %s', a.relation)), (format('create rule evil as on update to %s do instead nothing', a.relation)), (format('create policy evil on %s using (true)', a.relation)),
  (format('create trigger evil before insert on %s for each row execute function suppress_redundant_updates_trigger()', a.relation)), 
  -- without the right to pass it on, GRANT says so by a warning
  (format('do $x$ begin grant delete on %1$s to public; if not has_table_privilege(''custody_dump'', ''%1$s'', ''delete'') then raise insufficient_privilege; end if; end $x$', a.relation)),
  (format('lock table %s in access exclusive mode', a.relation)), (format('alter table %s owner to %I', a.relation, l.name))) v (s)
order by l.name, s;

select is(case l.name when 'custody_dump' then pg_temp.tries_as_backup(s) else pg_temp.tries(l.name, s) end, '42501', format('%s: %s', l.name, s))
from logins l, partitions p, lateral (values (format('alter table custody_data.audit_logs detach partition custody_data.%I', p.name)), (format('alter table custody_data.%I rename to gone', p.name)),
  (format('alter table custody_data.%I set schema public', p.name))) v (s);
select is(case l.name when 'custody_dump' then pg_temp.tries_as_backup(s) else pg_temp.tries(l.name, s) end, '42501', format('%s: %s', l.name, s))
from logins l, unnest(array['set local session_replication_role = replica', 'create or replace function custody_data.tg_reject_mutation() returns trigger language plpgsql as $x$ begin return null; end $x$',
  'drop function custody_data.tg_reject_mutation() cascade', 'alter function custody_data.tg_reject_mutation() set search_path = public', 'create table custody_data.audit_logs_evil partition of custody_data.audit_logs default',
  'drop schema custody_data cascade', 'create event trigger evil on ddl_command_start execute function custody_data.tg_reject_mutation()', 'alter role custody_owner login', 'grant custody_owner to custody_app',
  'alter database postgres set session_replication_role = replica', 'select lo_import(''/etc/hostname'')']) s;
-- By way of the rights that a role does have.
select is(pg_temp.tries('custody_app', s), '42501', s) from unnest(array[
  'insert into custody_data.consent_records (tenant_id, consent_id, identity_id, purpose, granted, policy_version, legal_basis, occurred_at) select tenant_id, consent_id, identity_id, purpose, false, policy_version, legal_basis, occurred_at from custody_data.consent_records on conflict (tenant_id, consent_id) do update set granted = excluded.granted',
  'merge into custody_data.consent_records c using (select 1) s on true when matched then delete', 'merge into custody_data.consent_records c using (select 1) s on true when matched then update set granted = false',
  'with gone as (delete from custody_data.consent_records returning 1) select 1', 'select 1 from custody_data.consent_records for update']) s;
select * from finish();
rollback;
