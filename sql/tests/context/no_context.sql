-- Every function of the API, called by every role that may call it, says PC001 without a context and with an
-- empty one; none of them gives or changes anything.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('no_context');
select populate('no_context') /* $1 */;

create function pg_temp.needs_none(p_name text) returns boolean language sql immutable return p_name in (
  'set_context', 'begin_context', 'register_tenant', 'list_tenants', 'ensure_audit_partitions', 'audit_entry', 'has_subject',
  'current_tenant', 'current_actor', 'current_actor_id', 'current_purpose', 'current_subject', 'current_subject_id',
  'segment_may_hold'); -- which reads nothing

select is(attempt(g.name, call_of(f.oid)), 'PC001', format('%s refuses %s without a context', f.name, g.name))
from functions f, groups g
where f.schema = 'custody' and not pg_temp.needs_none(f.name) and has_function_privilege(g.name, f.oid, 'execute')
order by f.name, g.name;

-- What any role can do by itself: empty settings are no context either.
set local custody.tenant = '';
set local custody.actor = '';
set local custody.actor_id = '';
set local custody.subject = '';
set local custody.subject_id = '';
select is(attempt(g.name, call_of(f.oid)), 'PC001', format('%s refuses %s in an empty context', f.name, g.name))
from functions f, groups g
where f.schema = 'custody' and not pg_temp.needs_none(f.name) and has_function_privilege(g.name, f.oid, 'execute')
order by f.name, g.name;

set local session authorization custody_runner;
select throws_ok($$select custody.get_profile('ada')$$, 'PC001', 'no context: this call needs a tenant and an actor', 'the message names what is missing');
create function pg_temp.hint() returns text language plpgsql as $$
declare
  v_hint text;
begin
  perform custody.get_profile('ada');
exception when sqlstate 'PC001' then
  get stacked diagnostics v_hint = pg_exception_hint;
  return v_hint;
end
$$;
select matches(pg_temp.hint(), '^begin; select custody.set_context\(.*commit', 'the hint is begin; set_context; call; commit');
select * from finish();
rollback;
