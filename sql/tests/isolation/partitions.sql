-- A partition is read through the trail alone: by its own name it is refused to every login, and shows the owner
-- nothing, whatever the context.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('isolated_partitions');
select populate('isolated_partitions') /* $1 */;
create function pg_temp.rows_in(p_role text, p_partition text) returns text language plpgsql as $$
declare
  v_rows text;
begin
  perform set_config('role', p_role, true);
  execute format('select count(*) from custody_data.%I', p_partition) into v_rows;
  perform set_config('role', 'none', true);
  return v_rows;
exception when insufficient_privilege then
  return 'refused';
end
$$;
select ok(sum(pg_temp.rows_in('custody_backup', p.name)::int) > 0, 'backups see events in the partitions') from partitions p;
select enter('isolated_partitions', 'clerk') /* $1 */;
select is(pg_temp.rows_in(l.name, p.name), 'refused', format('%s does not read %s', l.name, p.name)) from partitions p, logins l where l.name <> 'custody_dump';
select is(pg_temp.rows_in('custody_owner', p.name), '0', format('the owner sees nothing in %s', p.name)) from partitions p;
select is(pg_temp.rows_in('custody_admin', p.name), '0', format('nor does who may act as the owner in %s', p.name)) from partitions p;
select custody.set_context('system', 'worker');
select is(pg_temp.rows_in('custody_owner', p.name), '0', format('in tenant system neither, in %s', p.name)) from partitions p;
select is(pg_temp.rows_in('custody_worker', p.name), 'refused', format('the worker, who reads the trail there, does not read %s', p.name)) from partitions p;

-- A new one is as closed as the others, from its first moment on.
set local session authorization custody_runner;
select enter('isolated_partitions', 'runner') /* $1 */;
select custody.ensure_audit_partitions('1999-05-01 00:00:00+00', '1999-05-01 00:00:00+00');
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
select 'isolated_partitions', gen_random_uuid(), '1999-05-05 00:00:00+00', custody_data.require_actor(), 'account.login', gen_random_uuid();
select refuses('select * from custody_data.audit_logs_1999_05', '42501', 'a new partition is refused to who made it');
select refuses('insert into custody_data.audit_logs_1999_05 (tenant_id) values (null)', '42501', 'and takes nothing past the trail');
reset session authorization;
select is(pg_temp.rows_in('custody_owner', 'audit_logs_1999_05'), '0', 'the owner sees nothing in it');
select is(pg_temp.rows_in('custody_backup', 'audit_logs_1999_05'), '1', 'backups see it');
select * from finish();
rollback;
