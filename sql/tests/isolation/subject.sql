-- A context with a subject shows that person's rows and no others, of every table, view and function.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('one_subject');
select populate('one_subject', 'ada') /* $1 */;
select enter('one_subject', 'clerk') /* $1 */;
select custody.put_profile('bob', '{"full_name": "Bob"}'), custody.put_preferences('bob', '{}'), custody.record_consent('bob', 'mail', true, '1'), custody.save_conversation('bob', 'b1', '[{"role": "user", "text": "x"}]');
select custody.record_audit_event('phi.access', 'document', 'd', p_subject_user_id => 'bob');
select request('one_subject', 'bob');
select set_config('testing.ada', identity('one_subject', 'ada')::text, true);
insert into custody_data.erasure_certificates (tenant_id, request_id, identity_id, certificate) values ('one_subject', gen_random_uuid(), identity('one_subject', 'bob'), '{}');

-- Rows of others that a role sees.
create function pg_temp.others(p_role text, p_relation text, p_column text) returns text language plpgsql as $$
declare
  v_own bigint;
  v_others bigint;
begin
  perform set_config('role', p_role, true);
  execute format('select count(*) filter (where t.%1$I = $1), count(*) filter (where t.%1$I is distinct from $1) from %2$s t', p_column, p_relation) into v_own, v_others using current_setting('testing.ada')::uuid;
  perform set_config('role', 'none', true);
  return format('%s own, %s of others', case when v_own > 0 then 'some' else 'no' end, v_others);
end
$$;
create temp table readable as
select g.name as role, c.oid::regclass::text as relation, a.attname::text as col from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'identity_id' cross join (select name from groups union all values ('custody_owner')) g
where c.relnamespace in ('custody_data'::regnamespace, 'custody'::regnamespace) and c.relkind in ('r', 'v') and has_table_privilege(g.name, c.oid, 'select') and not c.relispartition and c.relname not in ('legal_holds', 'holds', 'archive_restores', 'canaries', 'identities', 'export_item', 'wrapped_data_key') and g.name <> 'custody_backup';
grant select on readable to public;
select enter('one_subject', 'clerk', null, 'ada') /* $1 */;
select is(pg_temp.others(r.role, r.relation, r.col), 'some own, 0 of others', format('%s in %s', r.role, r.relation)) from readable r order by r.relation, r.role;
select ok((select count(distinct relation) from readable) >= 9, 'that was every table and view of people');

-- What belongs to nobody is hidden.
create function pg_temp.rows_in(p_role text, p_relation text) returns bigint language plpgsql as $$
declare
  v_rows bigint;
begin
  perform set_config('role', p_role, true);
  execute format('select count(*) from %s', p_relation) into v_rows;
  perform set_config('role', 'none', true);
  return v_rows;
end
$$;
select is(pg_temp.rows_in('custody_privacy', t), 0::bigint, format('nothing in %s', t)) from unnest(array['custody_data.holders', 'custody_data.erasure_notices', 'custody_data.legal_holds', 'custody.holds',
  'custody_data.job_runs', 'custody.job_runs', 'custody_data.imports', 'custody_data.archive_segments', 'custody.archive_segments', 'custody_data.archive_restores', 'custody.archive_restores', 'custody_data.restored_events', 'custody.restored_events',
  'custody_data.log_sources', 'custody_data.log_batches', 'custody_data.log_findings', 'custody_data.log_sinks', 'custody_data.log_spool',
  'custody_data.alerts', 'custody.alerts']) t;
select is(pg_temp.rows_in('custody_auditor', t), 0::bigint, format('nothing in %s', t)) from unnest(array['custody_data.canaries', 'custody_data.actor_settings', 'custody_data.detection_rules', 'custody.detection_rules']) t;
select is(pg_temp.rows_in(g, 'custody_data.identities'), 2::bigint, format('%s sees the person and the actor alone', g)) from unnest(array['custody_readonly', 'custody_readwrite', 'custody_worker', 'custody_privacy', 'custody_auditor']) g;
select is(pg_temp.others('custody_worker', 'custody_data.audit_logs', 'subject_id'), 'some own, 0 of others', 'the trail, as the worker sees it') where not exists (select from events('one_subject') e where e.actor_id = current_setting('testing.ada')::uuid);
set local role custody_worker;
select is((select count(*) from custody_data.audit_logs a where current_setting('testing.ada')::uuid not in (a.subject_id, a.actor_id)), 0::bigint, 'no event is about or by somebody else');
reset role;

-- A person without a row yet sees nothing at all, rather than everything.
select enter('one_subject', 'clerk', null, 'never seen') /* $1 */;
select is(pg_temp.others(r.role, r.relation, r.col), 'no own, 0 of others', format('confined to somebody new, %s sees nothing in %s', r.role, r.relation)) from readable r order by r.relation, r.role;
-- A confinement that was tampered with shows less, not more.
set local session authorization custody_app;
select enter('one_subject', 'clerk', null, 'ada') /* $1 */;
select set_config('custody.subject_id', '', true);
select is((select count(*) from custody_data.user_profiles), 0::bigint, 'without its identity a confinement shows nothing');
select set_config('custody.subject_id', 'x', true);
select refuses('select count(*) from custody_data.user_profiles', '22P02', 'what is no identity is an error');
select * from finish();
rollback;
