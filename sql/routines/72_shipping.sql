-- Shipping of the server's log: months of access_events, batches, places, findings, sinks.
-- control: HIPAA 164.312(b), 164.308(a)(1)(ii)(D); ISO 27001 A.8.15, A.8.16; SOC 2 CC7.2; GDPR Art. 5(1)(e), 5(2), 32
-- reviewed by: DBA, auditor
--
-- The runner reads the log, writes a batch to the store, and then calls custody.record_log_batch in a transaction in
-- which it also gives the batch's access events. One source is shipped by one session at a time.

-- definer: DDL on access_events; callers need no more than to ship
create or replace function custody_data.ensure_access_partitions(p_from timestamptz, p_to timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_month timestamp;
  v_name text;
  v_made text[] := array[]::text[];
begin
  if p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_to < p_from
      or p_from < now() - interval '2 days' or p_to > now() + interval '13 months' then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range for partitions of access events',
      detail = format('From %s to %s.', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a finite range from now to 13 months from now: rows are recorded when they are shipped.';
  end if;
  for v_month in
    select generate_series(date_trunc('month', p_from at time zone 'UTC'), date_trunc('month', p_to at time zone 'UTC'), interval '1 month')
  loop
    v_name := 'access_events_' || to_char(v_month, 'YYYY_MM');
    continue when to_regclass('custody_data.' || v_name) is not null;
    -- One maker at a time. Whoever waited looks again.
    perform pg_advisory_xact_lock(hashtextextended('pgcustody.access_partitions', 0));
    continue when to_regclass('custody_data.' || v_name) is not null;
    -- Made apart and attached: that locks the table SHARE UPDATE EXCLUSIVE, which readers and writers do not notice.
    execute format('create table custody_data.%I (like custody_data.access_events including all)', v_name);
    execute format('comment on table custody_data.%I is %L', v_name,
      format('Access events recorded in %s (UTC). Read and written through access_events alone.', to_char(v_month, 'YYYY-MM')));
    perform custody_data.guard_month(v_name, v_name);
    execute format('alter table custody_data.access_events attach partition custody_data.%I for values from (%L) to (%L)', v_name,
      to_char(v_month, 'YYYY-MM-DD HH24:MI:SS"+00"'), to_char(v_month + interval '1 month', 'YYYY-MM-DD HH24:MI:SS"+00"'));
    v_made := v_made || v_name;
  end loop;
  if v_made <> '{}' and custody.current_tenant() is not null then
    perform custody_data.append_event('partition.create', 'partition', null, 'success', jsonb_build_object('partitions', v_made), null);
  end if;
  return cardinality(v_made);
end
$$;
revoke all on function custody_data.ensure_access_partitions(timestamptz, timestamptz) from public;
grant execute on function custody_data.ensure_access_partitions(timestamptz, timestamptz) to custody_worker;
comment on function custody_data.ensure_access_partitions(timestamptz, timestamptz) is
'Makes the months of access_events from p_from to p_to, both inclusive, and returns how many it made; with a context the making is an event. Errors: PC009 for a range that is not finite, lies behind or more than 13 months ahead.';

-- definer: DDL on access_events
create or replace function custody.drop_access_months(p_as_of timestamptz default now())
returns setof text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_keep interval;
  v_name text;
  v_rows bigint;
begin
  perform custody_data.require_all_tenants('dropping of months');
  if p_as_of is null or not isfinite(p_as_of) or p_as_of > now() then
    raise exception using errcode = 'PC009', message = 'time out of range: p_as_of is in the future', hint = 'Nothing goes before its time.';
  end if;
  v_keep := custody_data.keep_of('access');
  for v_name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'custody_data.access_events'::regclass and c.relnamespace = 'custody_data'::regnamespace and c.relname ~ '^access_events_\d{4}_\d\d$'
      and (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' + v_keep) at time zone 'UTC' <= p_as_of
    order by c.relname
  loop
    select greatest(c.reltuples, 0)::bigint into v_rows from pg_class c where c.oid = format('custody_data.%I', v_name)::regclass;
    execute format('drop table custody_data.%I', v_name);
    perform custody_data.append_event('retention.run', 'retention_policy', 'access', 'success',
      jsonb_build_object('class', 'access', 'rows', v_rows, 'as_of', custody_data.entry_time(p_as_of), 'keep', v_keep::text,
        'basis', (select p.basis from custody_data.retention_policies p where p.class = 'access' and p.tenant_id = 'system')), null);
    return next v_name;
  end loop;
end
$$;
revoke all on function custody.drop_access_months(timestamptz) from public;
grant execute on function custody.drop_access_months(timestamptz) to custody_worker;
comment on function custody.drop_access_months(timestamptz) is
'Drops the months of access_events that ended longer ago than the policy access asks, and returns their names. Each is an event (retention.run, with the rows by the planner''s estimate) of the same transaction. Legal holds keep the trail and the records, and the batches stay in the store for shipped_logs: months here go all the same.
Errors: PC001, PC009, PC015 outside tenant system, PC026. Callers: custody_worker.';
