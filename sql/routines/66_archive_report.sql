-- The archive, reports: what a run would do, what holds keep, what the archive holds and costs.
-- control: HIPAA 164.312(b), 164.316(b)(2)(i); SOC 2 A1.1, CC7.2; GDPR Art. 5(2)
-- reviewed by: operator, auditor

create or replace view custody.archive_total with (security_invoker = true) as
select 0::bigint as segments, 0::bigint as objects, 0::bigint as events, 0::bigint as plain_bytes, 0::bigint as compressed_bytes, 0::bigint as stored_bytes,
  0::bigint as open_segments, 0::bigint as held_segments, 0::bigint as expired_segments, null::date as oldest_unarchived_day, null::date as last_day
where false;
comment on view custody.archive_total is
'Shape of archive_totals. segments, objects, events and bytes: of what is recorded and not deleted; objects: a segment and its manifest, without versions that were superseded. open_segments: not recorded yet. held_segments: under the store''s legal hold. expired_segments: whose objects are gone. oldest_unarchived_day: of the events that are in no recorded segment.';

-- definer: reads the ledger''s map of days
create or replace function custody.archive_totals()
returns setof custody.archive_total
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('archive');
  return query
  select count(*) filter (where s.recorded_at is not null and s.objects_deleted_at is null),
    2 * count(*) filter (where s.recorded_at is not null and s.objects_deleted_at is null),
    coalesce(sum(s.events) filter (where s.recorded_at is not null and s.objects_deleted_at is null), 0)::bigint,
    coalesce(sum(s.plain_bytes) filter (where s.objects_deleted_at is null), 0)::bigint,
    coalesce(sum(s.compressed_bytes) filter (where s.objects_deleted_at is null), 0)::bigint,
    coalesce(sum(s.stored_bytes) filter (where s.objects_deleted_at is null), 0)::bigint,
    count(*) filter (where s.recorded_at is null and s.superseded_at is null),
    count(*) filter (where s.legal_hold and s.objects_deleted_at is null),
    count(*) filter (where s.objects_deleted_at is not null),
    least(min(s.day) filter (where s.recorded_at is null and s.superseded_at is null), (
      select min(date '2000-01-01' + l.day)
      from custody_data.leaves_without_segment((select h.tree_size from custody_data.ledger_heads h where h.tenant_id = 'system')) l
      where l.day > -2147483648),
      (select min(u.day) from custody_data.unsealed_events(false, pg_snapshot_xmin(pg_current_snapshot())) u)),
    max(s.day) filter (where s.recorded_at is not null)
  from custody_data.archive_segments s
  where s.tenant_id = 'system';
end
$$;
revoke all on function custody.archive_totals() from public;
grant execute on function custody.archive_totals() to custody_worker, custody_auditor;
comment on function custody.archive_totals() is
'What the archive holds: one row. Costs what is new in the trail and the ledger, and a look at every segment''s row.
Errors: PC001, PC015 outside tenant system, PC026. Callers: custody_worker, custody_auditor.';

create or replace view custody.month_plan with (security_invoker = true) as
select ''::text as partition_name, null::timestamptz as range_from, null::timestamptz as range_to, ''::text as state, 0::bigint as rows,
  0::bigint as rows_kept, ''::text as detail, 0::bigint as bytes, '{}'::text[] as held_by
where false;
comment on view custody.month_plan is 'Shape of plan_months: as audit_months, with the size on disk and the references of the holds that cover an event of the month.';

-- definer: as archive_totals
create or replace function custody.plan_months(p_as_of timestamptz default pg_catalog.now())
returns setof custody.month_plan
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select m.partition_name, m.range_from, m.range_to, m.state, m.rows, m.rows_kept, m.detail,
    coalesce(pg_total_relation_size(to_regclass(case when m.partition_name like '%.%' then m.partition_name else format('custody_data.%I', m.partition_name) end)), 0),
    array(
      select distinct r from custody_data.holds_in(m.range_from, m.range_to) r
      where m.state not in ('hot', 'foreign') order by 1)
  from custody.audit_months(p_as_of) m;
end
$$;
revoke all on function custody.plan_months(timestamptz) from public;
grant execute on function custody.plan_months(timestamptz) to custody_worker, custody_auditor;
comment on function custody.plan_months(timestamptz) is
'The months of the trail in Postgres as custody.audit_months has them, with what each takes on disk and, past the hot period, by which holds events of it are kept.
p_as_of: may lie ahead. Errors: PC001, PC009, PC015 outside tenant system, PC026. Callers: custody_worker, custody_auditor.';

create or replace view custody.expiry_plan with (security_invoker = true) as
select null::date as day, 0 as part, 0::bigint as events, 0::bigint as stored_bytes, null::timestamptz as retain_until, ''::text as state
where false;
comment on view custody.expiry_plan is
'Shape of plan_expiry. state: due; held (a legal hold covers it, or the store holds it), in_postgres (its month is still there), by_policy (the lock has ended, the policy audit keeps it for longer).';

-- definer: as archive_totals
create or replace function custody.plan_expiry(p_as_of timestamptz default pg_catalog.now())
returns setof custody.expiry_plan
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('archive');
  if p_as_of is null or not isfinite(p_as_of) then
    raise exception using errcode = 'PC009', message = 'time out of range: p_as_of', hint = 'Give a finite time.';
  end if;
  return query
  with holds as materialized (
    select h as hold from custody_data.active_holds() h where h.scope in ('tenant', 'person') or h.table_name = 'audit_logs'
  )
  select s.day, s.part, s.events, s.stored_bytes, s.retain_until, case
    when s.legal_hold or exists (select from holds h where custody_data.hold_covers(h.hold, s.day, case when s.superseded_at is null then s.leaves end, s.people)) then 'held'
    when s.expired_at is not null then 'due'
    when custody_data.audit_ends_at(custody_data.segment_kept_from(s)) >= p_as_of then 'by_policy'
    when exists (
      select from custody_data.audit_partitions() m
      where m.range_from is null or (m.range_from < (s.day + 1)::timestamp at time zone 'UTC' and m.range_to > s.day::timestamp at time zone 'UTC')) then 'in_postgres'
    else 'due' end
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.recorded_at is not null and s.objects_deleted_at is null and s.retain_until < p_as_of
  order by s.day, s.part;
end
$$;
revoke all on function custody.plan_expiry(timestamptz) from public;
grant execute on function custody.plan_expiry(timestamptz) to custody_worker, custody_auditor;
comment on function custody.plan_expiry(timestamptz) is
'Segments whose lock has ended at p_as_of and whose objects are still there: which custody.expire_segments would let go, and what keeps the others.
p_as_of: may lie ahead. Errors: PC001, PC009, PC015 outside tenant system, PC026. Callers: custody_worker, custody_auditor.';
