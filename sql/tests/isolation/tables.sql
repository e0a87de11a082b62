-- A context shows its own tenant's rows, of every table, to every role that may read it; no context shows none.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('isolation_a'), tenant('isolation_b');
select populate('isolation_a'), populate('isolation_b'), populate_shared() /* $1 */;

-- How many rows of which tenants a role sees, in the context that stands.
create function pg_temp.seen(p_role text, p_relation text) returns text language plpgsql as $$
declare
  v_seen text;
begin
  perform set_config('role', p_role, true);
  execute format('select string_agg(format(%L, t.tenant, t.n), %L order by t.tenant) from (select coalesce(r.tenant_id, %L) as tenant, count(*) as n from %s r group by 1) t', '%s %s', ', ', '-', p_relation) into v_seen;
  perform set_config('role', 'none', true);
  return coalesce(v_seen, 'nothing');
exception when insufficient_privilege then
  return 'refused';
end
$$;
create temp table readable as
select g.name as role, format('custody_data.%I', t.name) as relation, t.name from tables t, (select name from groups union all values ('custody_owner'), ('custody_admin')) g
where t.name not like 'schema\_%' and has_table_privilege(g.name, t.oid, 'select');
grant select on readable to public;

select ok(rows_of('isolation_b', t.name) > 0, format('there is something to see in %s', t.name)) from tables t
where t.name not like 'schema\_%' and t.name not in ('incarnations', 'archive_heads', 'archive_segments', 'partition_drops', 'ledger_tiles', 'ledger_entries', 'ledger_stretches', 'ledger_heads', 'ledger_checkpoints')
  and t.name not in ('detection_rules', 'detection_heads', 'detection_networks')
  and t.name not in ('log_sources', 'log_batches', 'log_findings', 'log_sinks', 'log_spool');

select is(pg_temp.seen(r.role, r.relation), 'nothing', format('without a context %s sees nothing in %s', r.role, r.name)) from readable r
where r.role <> 'custody_backup' and not (r.name in ('tenants', 'logins') and r.role in ('custody_owner', 'custody_admin'));
select set_config('custody.tenant', '', true), set_config('custody.actor', '', true), set_config('custody.actor_id', '', true), set_config('custody.subject', '', true), set_config('custody.subject_id', '', true);
select is(pg_temp.seen(r.role, r.relation), 'nothing', format('in an empty context %s sees nothing in %s', r.role, r.name)) from readable r
where r.role <> 'custody_backup' and not (r.name in ('tenants', 'logins') and r.role in ('custody_owner', 'custody_admin'));
-- Settings that are no tenant's name, as anybody can make them.
select set_config('custody.tenant', '%', true);
select is(pg_temp.seen(r.role, r.relation), 'nothing', format('a pattern as tenant shows %s nothing of tenants in %s', r.role, r.name)) from readable r
where r.role <> 'custody_backup' and not (r.name in ('tenants', 'logins') and r.role in ('custody_owner', 'custody_admin'))
  and r.name not in ('audit_actions', 'audit_resource_types', 'retention_policies', 'incarnations', 'archive_heads', 'archive_segments', 'partition_drops', 'ledger_tiles', 'ledger_entries', 'ledger_stretches', 'ledger_heads', 'ledger_checkpoints');

-- A real context: its own rows, and what all tenants share.
select enter('isolation_a', 'clerk') /* $1 */;
select is(pg_temp.seen(r.role, r.relation),
  case when r.name in ('incarnations', 'archive_heads', 'archive_segments', 'partition_drops', 'ledger_tiles', 'ledger_entries', 'ledger_stretches', 'ledger_heads', 'ledger_checkpoints') then format('system %s', rows_of('system', r.name))
    when r.name in ('detection_rules', 'detection_heads', 'detection_networks') then 'nothing'
    when r.name in ('log_sources', 'log_batches', 'log_findings', 'log_sinks', 'log_spool') then 'nothing'
    when r.name in ('audit_actions', 'audit_resource_types', 'retention_policies') then format('isolation_a %s, system %s', rows_of('isolation_a', r.name), rows_of('system', r.name))
    when r.name = 'tenants' and r.role in ('custody_owner', 'custody_admin') then (select string_agg(format('%s 1', t.tenant_id), ', ' order by t.tenant_id) from custody_data.tenants t)
    when r.name = 'logins' and r.role in ('custody_owner', 'custody_admin') then (select string_agg(format('%s %s', l.tenant_id, l.n), ', ' order by l.tenant_id) from (select l.tenant_id, count(*) as n from custody_data.logins l group by 1) l)
    else format('isolation_a %s', rows_of('isolation_a', r.name)) end,
  format('in a context %s sees its tenant''s rows in %s', r.role, r.name))
from readable r where r.role <> 'custody_backup';

-- The same for views.
create temp table views as
select g.name as role, c.oid::regclass::text as relation from pg_class c, groups g
where c.relnamespace = 'custody'::regnamespace and c.relkind = 'v' and has_table_privilege(g.name, c.oid, 'select') and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id');
grant select on views to public;
select matches(pg_temp.seen(v.role, v.relation), '^isolation_a \d+$', format('%s sees its tenant''s rows in %s', v.role, v.relation)) from views v where v.relation not in ('custody.retention_due', 'custody.log_reconciliation');
select set_config('custody.tenant', '', true);
select is(pg_temp.seen(v.role, v.relation), 'nothing', format('without a context %s sees nothing in %s', v.role, v.relation)) from views v where v.relation <> 'custody.retention_due';

-- Backups read everything without one, children too.
select is((select sum(split_part(x, ' ', 2)::bigint)::bigint from unnest(string_to_array(pg_temp.seen('custody_backup', r.relation), ', ')) x), (select sum(rows_of(t, r.name))::bigint from unnest(array['isolation_a', 'isolation_b', 'system']) t),
  format('backups read all of %s', r.name))
from readable r where r.role = 'custody_backup' and r.name <> 'tenants';
select * from finish();
rollback;
