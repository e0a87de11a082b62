-- The archive, months: the end of archived months of the trail in Postgres.
-- control: HIPAA 164.312(b), (c)(1), 164.316(b)(2)(i); ISO 27001 A.8.10, A.8.13, A.8.15; SOC 2 CC7.2, A1.2
-- reviewed by: DBA, auditor

create or replace view custody.audit_month with (security_invoker = true) as
select ''::text as partition_name, null::timestamptz as range_from, null::timestamptz as range_to, ''::text as state,
  0::bigint as rows, ''::text as detail
where false;
comment on view custody.audit_month is
'Shape of audit_months. state: hot; open (segments that are not recorded yet), unarchived (events in no segment), held (a legal hold covers an event) and mismatch (the trail does not hold what its segments say) keep a month; due: may be dropped. rows: counted for unarchived, mismatch and due, else estimated.';

create or replace function custody_data.audit_partitions()
returns setof custody.audit_month
language sql
stable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO'
as $$
  -- The bounds, not the name, say what a partition holds: somebody may have attached one by hand.
  select c.relname::text, b.bounds[1]::timestamptz, b.bounds[2]::timestamptz, 'hot'::text, greatest(c.reltuples, 0)::bigint, null::text
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  cross join lateral (
    select regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \(''([^'']+)''\) TO \(''([^'']+)''\)$') as bounds
  ) b
  where i.inhparent = 'custody_data.audit_logs'::regclass and not i.inhdetachpending and c.relkind = 'r'
    and c.relnamespace = 'custody_data'::regnamespace and b.bounds is not null
  order by 2;
$$;
revoke all on function custody_data.audit_partitions() from public;
comment on function custody_data.audit_partitions() is 'The partitions of the trail that have both bounds, oldest first.';

create or replace function custody_data.covering_segments(p_from timestamptz, p_to timestamptz)
returns setof custody_data.archive_segments
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Events that were archived before their month was dropped are not in the trail any more.
  select s.*
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.recorded_at is not null
    and s.day >= (p_from at time zone 'UTC')::date and s.day < (p_to at time zone 'UTC')::date
    and not exists (
      select from custody_data.partition_drops d
      where d.tenant_id = 'system' and d.range_from <= s.first_occurred_at and d.range_to > s.last_occurred_at
        and d.dropped_at >= s.recorded_at);
$$;
revoke all on function custody_data.covering_segments(timestamptz, timestamptz) from public;
comment on function custody_data.covering_segments(timestamptz, timestamptz) is 'Recorded segments whose events are still in the trail, of the days from p_from to p_to.';

create or replace function custody_data.assess_month(p_month custody.audit_month)
returns custody.audit_month
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_month custody.audit_month := p_month;
  v_rows bigint;
  v_unarchived bigint;
begin
  select format('%s segments, the first of %s', count(*), min(s.day)) into v_month.detail
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.recorded_at is null
    and s.day >= (v_month.range_from at time zone 'UTC')::date and s.day < (v_month.range_to at time zone 'UTC')::date
  having count(*) > 0;
  if found then
    v_month.state := 'open';
    return v_month;
  end if;
  if custody_data.month_is_held(v_month.range_from) then
    v_month.state := 'held';
    return v_month;
  end if;

  with segments as materialized (
    select s.* from custody_data.covering_segments(v_month.range_from, v_month.range_to) s
  ), found as materialized (
    select s.day, s.part, count(*) as rows
    from custody_data.audit_logs a
    left join segments s on s.day = (a.occurred_at at time zone 'UTC')::date and a.xid >= s.xid_from and a.xid < s.xid_to
      and a.recorded_at < s.opened_at
      and not exists (
        select from segments b
        where b.day = s.day and b.part < s.part and a.xid >= b.xid_from and a.xid < b.xid_to and a.recorded_at < b.opened_at)
    where a.occurred_at >= v_month.range_from and a.occurred_at < v_month.range_to
    group by s.day, s.part
  )
  select
    coalesce((select sum(f.rows) from found f), 0),
    coalesce((select f.rows from found f where f.day is null), 0),
    (select format('segment %s.%s holds %s events, the trail %s of them', s.day, s.part, s.rows_archived, coalesce(f.rows, 0))
      from segments s left join found f on f.day = s.day and f.part = s.part
      where s.rows_archived <> coalesce(f.rows, 0)
      order by s.day, s.part limit 1)
  into v_rows, v_unarchived, v_month.detail;
  v_month.rows := v_rows;
  if v_month.detail is not null then
    v_month.state := 'mismatch';
  elsif v_unarchived > 0 then
    v_month.state := 'unarchived';
    v_month.detail := format('%s events', v_unarchived);
  else
    v_month.state := 'due';
  end if;
  return v_month;
end
$$;
revoke all on function custody_data.assess_month(custody.audit_month) from public;
comment on function custody_data.assess_month(custody.audit_month) is 'Whether a month past the hot period may be dropped, or what keeps it; counts its events against its segments.';

-- definer: as open_segments
create or replace function custody.audit_months(p_as_of timestamptz default pg_catalog.now())
returns setof custody.audit_month
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hot interval;
  v_month custody.audit_month;
begin
  perform custody_data.require_all_tenants('archive');
  if p_as_of is null or not isfinite(p_as_of) then
    raise exception using errcode = 'PC009', message = 'time out of range: p_as_of', hint = 'Give a finite time.';
  end if;
  v_hot := custody_data.keep_of('audit_hot');
  for v_month in select m.* from custody_data.audit_partitions() m loop
    if (v_month.range_to at time zone 'UTC' + v_hot) at time zone 'UTC' <= p_as_of then
      v_month := custody_data.assess_month(v_month);
    end if;
    return next v_month;
  end loop;
end
$$;
revoke all on function custody.audit_months(timestamptz) from public;
grant execute on function custody.audit_months(timestamptz) to custody_worker, custody_auditor;
comment on function custody.audit_months(timestamptz) is
'The months of the trail in Postgres, oldest first, and what keeps each or that it may go. Counts the events of those past the hot period.
p_as_of: may lie ahead. Errors: PC001, PC009, PC015 outside tenant system, PC026. Callers: custody_worker, custody_auditor.';

-- definer: drops partitions, which only the owner may
create or replace function custody.drop_archived_partitions(p_limit integer default 1, p_as_of timestamptz default pg_catalog.now())
returns setof custody_data.partition_drops
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hot interval;
  v_month custody.audit_month;
  v_horizon xid8;
  v_holds uuid[];
  v_drop custody_data.partition_drops;
  v_dropped integer := 0;
begin
  perform custody_data.require_all_tenants('archive');
  if p_limit is null or p_limit not between 1 and 100 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 100 months.';
  end if;
  if p_as_of is null or not isfinite(p_as_of) or p_as_of > now() then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range: p_as_of is in the future',
      hint = 'Nothing goes before its time; custody.audit_months shows what would.';
  end if;
  v_hot := custody_data.keep_of('audit_hot');
  -- One at a time: two that read the trail and then wait for its lock would wait for each other.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.partition_drops', 0));

  for v_month in
    select m.* from custody_data.audit_partitions() m
    where (m.range_to at time zone 'UTC' + v_hot) at time zone 'UTC' <= p_as_of
  loop
    exit when v_dropped >= p_limit;
    -- What is slow comes before the lock. What can change until the lock is there is looked at again below.
    v_horizon := pg_snapshot_xmin(pg_current_snapshot());
    v_holds := array(select h.hold_id from custody_data.active_holds() h order by h.hold_id);
    v_month := custody_data.assess_month(v_month);
    if v_month.state = 'mismatch' then
      raise exception using
        errcode = 'PC029',
        message = format('month %s does not hold what its archive says', v_month.partition_name),
        detail = v_month.detail || '.',
        hint = 'Rows came or went behind the archive''s back. Nothing was dropped; run pgcustody archive verify and have the case looked at.',
        schema = 'custody_data', table = v_month.partition_name;
    end if;
    continue when v_month.state <> 'due';

    lock table only custody_data.audit_logs in access exclusive mode;
    continue when not exists (
      select from custody_data.audit_partitions() m
      where m.partition_name = v_month.partition_name and m.range_from = v_month.range_from and m.range_to = v_month.range_to);
    -- Whoever places a hold or appends an event holds a lock on the trail until it commits, so nobody is half-way now.
    continue when v_holds <> array(select h.hold_id from custody_data.active_holds() h order by h.hold_id);
    continue when exists (
      select from custody_data.audit_logs a
      where a.occurred_at >= v_month.range_from and a.occurred_at < v_month.range_to and a.xid >= v_horizon
        and not exists (
          select from custody_data.covering_segments(v_month.range_from, v_month.range_to) s
          where s.day = (a.occurred_at at time zone 'UTC')::date and a.xid >= s.xid_from and a.xid < s.xid_to
            and a.recorded_at < s.opened_at));

    execute format('alter table custody_data.audit_logs detach partition custody_data.%I', v_month.partition_name);
    execute format('drop table custody_data.%I', v_month.partition_name);
    insert into custody_data.partition_drops (partition_name, range_from, range_to, rows_dropped)
    values (v_month.partition_name, v_month.range_from, v_month.range_to, v_month.rows)
    returning * into v_drop;
    perform custody_data.append_event('partition.drop', 'partition', v_month.partition_name, 'success',
      jsonb_build_object('partition', v_month.partition_name, 'rows', v_month.rows,
        'range_from', custody_data.entry_time(v_month.range_from), 'range_to', custody_data.entry_time(v_month.range_to)), null);
    v_dropped := v_dropped + 1;
    return next v_drop;
  end loop;
end
$$;
revoke all on function custody.drop_archived_partitions(integer, timestamptz) from public;
grant execute on function custody.drop_archived_partitions(integer, timestamptz) to custody_worker;
comment on function custody.drop_archived_partitions(integer, timestamptz) is
'Drops the oldest months of the trail that ended more than audit_hot before p_as_of, whose events are all in recorded segments, one for one, and none under a legal hold; returns what it dropped, no row when nothing may go. Months that something keeps are passed over: custody.audit_months says by what. Each drop is an event (partition.drop) of the same transaction.
Set lock_timeout before: appenders queue behind a waiting lock, so it should not wait long; on 55P03 try again later.
p_limit: 1 to 100 months; one a transaction keeps the lock short. p_as_of: not in the future.
Errors: PC001, PC009, PC015 outside tenant system, PC023, PC026, PC029 a month does not hold what its segments say. Callers: custody_worker.';
