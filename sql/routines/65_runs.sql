-- Runs of jobs, and the clusters that this database has lived in.
-- control: HIPAA 164.308(a)(1)(ii)(D); SOC 2 CC7.2; ISO 27001 A.8.15
-- reviewed by: operator, DBA

-- definer: runs are written by these functions alone
create or replace function custody.start_run(p_job text, p_river_job_id bigint default null, p_run_id uuid default null)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_run_id constant uuid := coalesce(p_run_id, gen_random_uuid());
begin
  if coalesce(p_job, '') !~ '^[a-z][a-z0-9_.-]{0,63}$' then
    raise exception using errcode = 'PC023', message = 'invalid name of a job', hint = 'Give 1 to 64 characters of a-z, 0-9, dots, _ and -.';
  end if;
  insert into custody_data.job_runs (tenant_id, run_id, job, river_job_id)
  values (v_tenant, v_run_id, p_job, p_river_job_id)
  on conflict (tenant_id, run_id) do nothing;
  return v_run_id;
end
$$;
revoke all on function custody.start_run(text, bigint, uuid) from public;
grant execute on function custody.start_run(text, bigint, uuid) to custody_worker;
comment on function custody.start_run(text, bigint, uuid) is
'Records that a run of a job began and returns its id; the same p_run_id is the same run.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_worker.';

-- definer: as start_run
create or replace function custody.finish_run(p_run_id uuid, p_status text, p_counts jsonb default '{}', p_bytes bigint default 0, p_error text default null)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_job text;
begin
  if p_status is null or p_status not in ('succeeded', 'failed') then
    raise exception using errcode = 'PC023', message = 'invalid status of a run', hint = 'Give succeeded or failed.';
  end if;
  update custody_data.job_runs r
  set status = p_status, ended_at = clock_timestamp(), counts = coalesce(p_counts, '{}'), bytes = coalesce(p_bytes, 0), error = left(p_error, 1000)
  where r.tenant_id = v_tenant and r.run_id = p_run_id and r.ended_at is null
  returning r.job into v_job;
  if found and p_status = 'failed' then
    perform custody_data.append_event('job.fail', null, null, 'failure', jsonb_build_object('job', v_job, 'error_code', left(p_error, 200)), null);
  end if;
end
$$;
revoke all on function custody.finish_run(uuid, text, jsonb, bigint, text) from public;
grant execute on function custody.finish_run(uuid, text, jsonb, bigint, text) to custody_worker;
comment on function custody.finish_run(uuid, text, jsonb, bigint, text) is
'Records how a run ended; a failed one is also an event. A run that has ended stays as it is.
p_status: succeeded or failed. p_counts: JSON object of numbers. p_bytes: bytes moved. p_error: codes and objects, never personal data.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_worker.';

create or replace view custody.job_runs with (security_invoker = true) as
select r.tenant_id, r.run_id, r.job, r.river_job_id, r.status, r.started_at, r.ended_at, r.ended_at - r.started_at as took, r.counts, r.bytes, r.error
from custody_data.job_runs r;
grant select on custody.job_runs to custody_worker, custody_privacy, custody_auditor;
comment on view custody.job_runs is 'Runs of jobs of the tenant in context. Readers: custody_worker, custody_privacy, custody_auditor.';

create or replace function custody_data.wal_timeline()
returns integer
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- As the write-ahead log says it: the control file shows the old timeline for seconds after a promotion.
  select case when not pg_is_in_recovery() then ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer end;
$$;
revoke all on function custody_data.wal_timeline() from public;
comment on function custody_data.wal_timeline() is 'The timeline on which this server writes; null in recovery.';

-- definer: incarnations are written by this function alone
create or replace function custody.open_incarnation(p_observed jsonb default null)
returns custody_data.incarnations
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_here constant bigint := (select c.system_identifier from pg_control_system() c);
  v_timeline constant integer := custody_data.wal_timeline();
  v_last custody_data.incarnations;
  v_observed jsonb := coalesce(p_observed, '{}');
  v_greatest xid8;
  v_next xid8;
begin
  perform custody_data.require_context();
  select i.* into v_last from custody_data.incarnations i order by i.opened_at desc limit 1;
  if p_observed is not null or (v_last.system_identifier, v_last.timeline) is distinct from (v_here, v_timeline) then
    perform pg_advisory_xact_lock(hashtextextended('pgcustody.incarnation', 0));
    select i.* into v_last from custody_data.incarnations i order by i.opened_at desc limit 1;
    if p_observed is not null or (v_last.system_identifier, v_last.timeline) is distinct from (v_here, v_timeline) then
      -- In this order: others go on writing, and whatever is seen first has a number below the one that comes next.
      select max(a.xid) into v_greatest from custody_data.audit_logs a;
      v_next := greatest(pg_snapshot_xmax(pg_current_snapshot()), custody_data.next_xid(pg_current_xact_id()));
      v_observed := jsonb_strip_nulls(jsonb_build_object(
        'system_identifier_before', v_last.system_identifier::text, 'timeline_before', v_last.timeline,
        'greatest_xid', case when v_greatest >= v_next then v_greatest::text end, 'next_xid', case when v_greatest >= v_next then v_next::text end,
        'guess', case
          when v_last.incarnation_id is null and v_greatest >= v_next then 'restored_or_copied'
          when v_last.incarnation_id is null then 'initial'
          when v_last.system_identifier <> v_here then 'restored_or_copied'
          when v_last.timeline <> v_timeline then 'promoted_or_recovered'
          else 'set_back_or_cloned' end)) || v_observed;
      -- Later than what another clock dated: what is older belongs to the lives before.
      insert into custody_data.incarnations (system_identifier, timeline, observed, opened_at)
      values (v_here, v_timeline, v_observed, greatest(clock_timestamp(), v_last.opened_at + interval '1 microsecond'))
      returning * into v_last;
      perform custody_data.append_event('incarnation.open', null, null, 'success', jsonb_build_object(
        'incarnation_id', v_last.incarnation_id, 'system_identifier', v_here::text, 'timeline', v_timeline, 'observed', v_observed), null);
    end if;
  end if;
  return v_last;
end
$$;
revoke all on function custody.open_incarnation(jsonb) from public;
grant execute on function custody.open_incarnation(jsonb) to custody_worker;
comment on function custody.open_incarnation(jsonb) is
'The incarnation of this database, opened where the cluster''s system identifier or the timeline of its write-ahead log is not the one that was last seen: transaction numbers of before say nothing about the rows of now.
p_observed: JSON object of facts by which the caller knows that a new life began although both are the same; it opens one in any case. Recorded beside it: identifier and timeline before, and the greatest transaction number of an event where it lies beyond the server''s next.
Errors: PC001. Callers: custody_worker.';
