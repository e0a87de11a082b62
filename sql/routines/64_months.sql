-- The archive, months: how archived months of the trail leave Postgres.
-- control: HIPAA 164.312(b), (c)(1), 164.316(b)(2)(i); ISO 27001 A.8.10, A.8.13, A.8.15; SOC 2 CC7.2, A1.2
-- reviewed by: DBA, auditor
--
-- An event may go when it is in a segment that was recorded a week ago or before and whose leaves a signed checkpoint
-- covers (where there are checkpoints: what they cover is never cut off), its hot period is over and no hold
-- covers it. A month goes as a whole, by swap: what may not go (late, held, not archived, not sealed) is copied as it is
-- into a new partition, which takes the place of the old one. So one hold does not keep a month, and no row is deleted.
-- A month of which more than half would be copied stays as it is until less is.
--
-- Events and leaves are matched by transaction, id and day; what was dropped before is counted too, so that an event that
-- is missing from the trail, or was slipped in, is noticed before its month goes. They are not matched by their hashes:
-- each line was held against its leaf when it was archived, and what goes is the row, of which the archive has what was
-- sealed. A row that a superuser altered since goes as well, and with it a trace of the alteration: pgcustody verify, which
-- does read every row, finds it before, and is to run more often than months go.
--
-- locks: one session at a time, by an advisory lock. SHARE on each month that is about to go, so that no event comes in
-- behind the count: appenders write to the months of now, and only an import of old events waits. Then, after everything
-- slow is done, the sealer's advisory lock and ACCESS EXCLUSIVE on the trail, for as long as it takes to detach, attach and
-- drop. The caller sets lock_timeout, because appenders queue behind a waiting lock.

create or replace view custody.audit_month with (security_invoker = true) as
select ''::text as partition_name, null::timestamptz as range_from, null::timestamptz as range_to, ''::text as state,
  0::bigint as rows, 0::bigint as rows_kept, ''::text as detail
where false;
comment on view custody.audit_month is
'Shape of audit_months. state: hot; due, may leave, but for rows_kept; unarchived (more than half of its events are in no segment that was recorded a week ago, or that no checkpoint covers), recent (were imported within the hot period), held (are under legal hold); mismatch (the trail does not hold what its segments say); foreign (attached by hand, with other bounds or another name: passed over). rows: counted of months past the hot period, else estimated. detail: what stays, or what is wrong.';

create or replace function custody_data.audit_partitions()
returns setof custody.audit_month
language sql
stable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO'
as $$
  -- The bounds, not the name, say what a partition holds: somebody may have attached one by hand.
  select m.name, m.range_from, m.range_to, case when m.is_ours then 'hot' else 'foreign' end, m.rows, null::bigint,
    case when not m.is_ours then 'not made by custody.ensure_audit_partitions' end
  from (
    select case when c.relnamespace = 'custody_data'::regnamespace then c.relname::text else c.relnamespace::regnamespace || '.' || c.relname end as name,
      b.bounds[1]::timestamptz as range_from, b.bounds[2]::timestamptz as range_to, greatest(c.reltuples, 0)::bigint as rows,
      c.relkind = 'r' and not i.inhdetachpending and pg_get_userbyid(c.relowner) = 'custody_owner' and c.relnamespace = 'custody_data'::regnamespace
        and c.relname = 'audit_logs_' || to_char(b.bounds[1]::timestamptz at time zone 'UTC', 'YYYY_MM')
        and b.bounds[1]::timestamptz at time zone 'UTC' = date_trunc('month', b.bounds[1]::timestamptz at time zone 'UTC')
        and b.bounds[2]::timestamptz at time zone 'UTC' = b.bounds[1]::timestamptz at time zone 'UTC' + interval '1 month' is true as is_ours
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join lateral (
      select regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \(''([^'']+)''\) TO \(''([^'']+)''\)$') as bounds
    ) b
    where i.inhparent = 'custody_data.audit_logs'::regclass
  ) m
  order by m.range_from, m.name;
$$;
revoke all on function custody_data.audit_partitions() from public;
comment on function custody_data.audit_partitions() is 'The partitions of the trail, oldest first; without bounds where they are not two times.';

create or replace function custody_data.hot_period()
returns interval
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select greatest(custody_data.keep_of('audit_hot'), interval '7 days');
$$;
revoke all on function custody_data.hot_period() from public;
comment on function custody_data.hot_period() is 'How long events stay in Postgres: the policy audit_hot, never less than a week.';

create or replace function custody_data.held_events(p_from timestamptz, p_to timestamptz)
returns table (row_id tid)
language sql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
  -- One look for each way of being held, so that each has its index.
  select a.ctid
  from custody_data.active_holds() h
  join custody_data.audit_logs a on a.tenant_id = h.tenant_id
  where h.scope = 'tenant' and a.occurred_at >= p_from and a.occurred_at < p_to
  union
  select a.ctid
  from custody_data.active_holds() h
  join custody_data.audit_logs a on a.tenant_id = h.tenant_id and a.subject_id = h.identity_id
  where h.scope = 'person' and a.occurred_at >= p_from and a.occurred_at < p_to
  union
  select a.ctid
  from custody_data.active_holds() h
  join custody_data.audit_logs a on a.tenant_id = h.tenant_id and a.actor_id = h.identity_id
  where h.scope = 'person' and a.occurred_at >= p_from and a.occurred_at < p_to
  union
  select a.ctid
  from custody_data.active_holds() h
  join custody_data.audit_logs a on a.tenant_id = h.tenant_id
    and a.log_entry_id = case when h.table_name = 'audit_logs' then h.row_id::uuid end
  where h.scope = 'row' and h.table_name = 'audit_logs' and a.occurred_at >= p_from and a.occurred_at < p_to;
$$;
revoke all on function custody_data.held_events(timestamptz, timestamptz) from public;
comment on function custody_data.held_events(timestamptz, timestamptz) is 'Where in the partition of p_from to p_to the events stand that a legal hold of any tenant covers.';

create or replace function custody_data.archived_leaves(p_from timestamptz, p_to timestamptz, p_recorded_before timestamptz)
returns table (day date, leaves int8multirange, events bigint)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- What a signed checkpoint covers is never cut off; where there are none, nobody cuts.
  select s.day, s.leaves, s.events
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.recorded_at < p_recorded_before and s.superseded_at is null
    and s.day >= (p_from at time zone 'UTC')::date and s.day < (p_to at time zone 'UTC')::date
    and upper(s.leaves) <= coalesce(nullif(custody_data.anchored_leaves(), 0), 9223372036854775807);
$$;
revoke all on function custody_data.archived_leaves(timestamptz, timestamptz, timestamptz) from public;
comment on function custody_data.archived_leaves(timestamptz, timestamptz, timestamptz) is 'Leaves of the days from p_from to p_to in segments that were recorded before p_recorded_before, and whose leaves nobody can cut off any more.';

create or replace function custody_data.archived_events(p_from timestamptz, p_to timestamptz, p_recorded_before timestamptz)
returns table (day date, xid bytea, entry_id bytea)
language sql
stable
-- What the planner would make of the runs and tiles is a hundred thousand times as much, and a hash table to match.
rows 1000000
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
  select s.day, substr(t.xids, l.n * 8 + 1, 8), substr(t.entry_ids, l.n * 16 + 1, 16)
  from custody_data.archived_leaves(p_from, p_to, p_recorded_before) s
  cross join lateral unnest(s.leaves) u (run)
  cross join lateral generate_series(lower(u.run) / 256, (upper(u.run) - 1) / 256) n (tile)
  -- In memory before they are taken apart, by the key, and once a tile: hence first and last stand here.
  cross join lateral (
    select (select e.xids || '' from custody_data.ledger_entries e where e.tenant_id = 'system' and e.tile_index = n.tile) as xids,
      (select e.entry_ids || '' from custody_data.ledger_entries e where e.tenant_id = 'system' and e.tile_index = n.tile) as entry_ids,
      (greatest(lower(u.run), n.tile * 256) % 256)::integer as first, (least(upper(u.run), n.tile * 256 + 256) - n.tile * 256 - 1)::integer as last
    offset 0
  ) t
  cross join lateral generate_series(t.first, t.last) l (n);
$$;
revoke all on function custody_data.archived_events(timestamptz, timestamptz, timestamptz) from public;
comment on function custody_data.archived_events(timestamptz, timestamptz, timestamptz) is 'Which events the leaves are that archived_leaves returns: transaction and id as the map has them.';

create or replace function custody_data.unarchived_events(p_from timestamptz, p_to timestamptz, p_recorded_before timestamptz)
returns table (row_id tid)
language sql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
-- A nested loop over events and leaves takes hours for a million of them.
set enable_nestloop = off
set enable_hashjoin = on
set work_mem = '64MB'
set jit = off
as $$
  select a.ctid
  from custody_data.audit_logs a
  where a.occurred_at >= p_from and a.occurred_at < p_to
    and not exists (
      select from custody_data.archived_events(p_from, p_to, p_recorded_before) k
      where k.entry_id = uuid_send(a.log_entry_id) and k.xid = case when a.xid < '9223372036854775806' then int8send(a.xid::text::bigint) end
        and k.day = (a.occurred_at at time zone 'UTC')::date);
$$;
revoke all on function custody_data.unarchived_events(timestamptz, timestamptz, timestamptz) from public;
comment on function custody_data.unarchived_events(timestamptz, timestamptz, timestamptz) is 'Where in the partition of p_from to p_to the events stand that are in no such segment as archived_leaves returns.';

create or replace function custody_data.kept_events(p_from timestamptz, p_to timestamptz, p_as_of timestamptz)
returns table (row_id tid, is_unarchived boolean, is_recent boolean, is_held boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
  select k.row_id, bool_or(k.why = 'unarchived'), bool_or(k.why = 'recent'), bool_or(k.why = 'held')
  from (
    select u.row_id, 'unarchived' as why from custody_data.unarchived_events(p_from, p_to, greatest(p_as_of, now()) - interval '7 days') u
    union all
    -- Who imports events chooses their time.
    select a.ctid, 'recent'
    from custody_data.audit_logs a
    where a.occurred_at >= p_from and a.occurred_at < p_to
      and a.import_id is not null and a.recorded_at > (p_as_of at time zone 'UTC' - custody_data.hot_period()) at time zone 'UTC'
    union all
    select h.row_id, 'held' from custody_data.held_events(p_from, p_to) h
  ) k
  group by k.row_id;
$$;
revoke all on function custody_data.kept_events(timestamptz, timestamptz, timestamptz) from public;
comment on function custody_data.kept_events(timestamptz, timestamptz, timestamptz) is 'Where in the partition of p_from to p_to the events stand that may not leave with it, and why.';

create or replace function custody_data.assess_month(
  p_from timestamptz, p_to timestamptz, p_as_of timestamptz, out state text, out rows_here bigint, out rows_kept bigint, out detail text
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_archived bigint;
  v_unarchived bigint;
  v_recent bigint;
  v_held bigint;
begin
  select count(*) into rows_here from custody_data.audit_logs a where a.occurred_at >= p_from and a.occurred_at < p_to;
  select coalesce(sum(s.events), 0) into v_archived from custody_data.archived_leaves(p_from, p_to, greatest(p_as_of, now()) - interval '7 days') s;
  -- Not all of their events are here any more.
  v_archived := v_archived - coalesce((
    select sum(d.rows_dropped) from custody_data.partition_drops d
    where d.tenant_id = 'system' and d.range_from >= p_from and d.range_to <= p_to), 0);
  if (rows_here - v_archived) * 2 > rows_here then
    state := 'unarchived';
    rows_kept := rows_here - greatest(v_archived, 0);
    detail := format('%s events are in no segment that was recorded a week ago and is anchored', rows_kept);
    return;
  end if;

  select count(*), count(*) filter (where k.is_unarchived), count(*) filter (where k.is_recent), count(*) filter (where k.is_held)
  into rows_kept, v_unarchived, v_recent, v_held
  from custody_data.kept_events(p_from, p_to, p_as_of) k;
  if rows_here - v_unarchived <> v_archived then
    state := 'mismatch';
    rows_kept := null;
    detail := format('its segments hold %s events that have not left, the trail %s of them', v_archived, rows_here - v_unarchived);
    return;
  end if;
  state := case
    when rows_kept * 2 <= rows_here then 'due'
    when v_held >= greatest(v_recent, v_unarchived) then 'held'
    when v_recent >= v_unarchived then 'recent'
    else 'unarchived' end;
  detail := nullif(concat_ws(', ',
    case when v_unarchived > 0 then format('%s events are in no segment that was recorded a week ago and is anchored', v_unarchived) end,
    case when v_recent > 0 then format('%s were imported within the hot period', v_recent) end,
    case when v_held > 0 then format('%s are under legal hold', v_held) end), '');
end
$$;
revoke all on function custody_data.assess_month(timestamptz, timestamptz, timestamptz) from public;
comment on function custody_data.assess_month(timestamptz, timestamptz, timestamptz) is
'Whether a month past the hot period may leave, how many of its events would stay, and why.';

-- definer: reads the trail of all tenants
create or replace function custody.audit_months(p_as_of timestamptz default pg_catalog.now())
returns setof custody.audit_month
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_month custody.audit_month;
  v_assessed record;
begin
  perform custody_data.require_all_tenants('archive');
  if p_as_of is null or not isfinite(p_as_of) then
    raise exception using errcode = 'PC009', message = 'time out of range: p_as_of', hint = 'Give a finite time.';
  end if;
  for v_month in select m.* from custody_data.audit_partitions() m loop
    if v_month.state = 'hot' and (v_month.range_to at time zone 'UTC' + custody_data.hot_period()) at time zone 'UTC' <= p_as_of then
      v_assessed := custody_data.assess_month(v_month.range_from, v_month.range_to, p_as_of);
      v_month.state := v_assessed.state;
      v_month.rows := v_assessed.rows_here;
      v_month.rows_kept := v_assessed.rows_kept;
      v_month.detail := v_assessed.detail;
    end if;
    return next v_month;
  end loop;
end
$$;
revoke all on function custody.audit_months(timestamptz) from public;
grant execute on function custody.audit_months(timestamptz) to custody_worker, custody_auditor;
comment on function custody.audit_months(timestamptz) is
'The months of the trail in Postgres, oldest first, and what keeps each or that it may leave. Compares the events of those past the hot period with their leaves.
p_as_of: may lie ahead. Errors: PC001, PC009, PC015 outside tenant system, PC026. Callers: custody_worker, custody_auditor.';

create or replace function custody_data.copy_month(p_month custody.audit_month, p_as_of timestamptz)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name constant text := p_month.partition_name || '_kept';
  v_rows bigint;
begin
  perform custody_data.make_month(v_name, p_month.range_from at time zone 'UTC');
  execute format('insert into custody_data.%I select a.* from custody_data.audit_logs a
    where a.occurred_at >= $1 and a.occurred_at < $2 and a.tableoid = $3
      and a.ctid in (select k.row_id from custody_data.kept_events($1, $2, $4) k)', v_name)
  using p_month.range_from, p_month.range_to, format('custody_data.%I', p_month.partition_name)::regclass, p_as_of;
  get diagnostics v_rows = row_count;
  if v_rows <> p_month.rows_kept then
    -- The month is locked: what keeps its events is not.
    raise exception using
      errcode = '55P03',
      message = format('what keeps events of month %s changed while they were copied', p_month.partition_name),
      detail = format('%s events were to stay, %s were found.', p_month.rows_kept, v_rows),
      hint = 'Nothing was dropped. Call it again.';
  end if;
  perform custody_data.guard_month(v_name, p_month.partition_name);
  -- So that attaching it reads none of it.
  execute format('alter table custody_data.%I add constraint in_its_month check (occurred_at is not null and occurred_at >= %L and occurred_at < %L)', v_name,
    to_char(p_month.range_from at time zone 'UTC', 'YYYY-MM-DD" 00:00:00+00"'), to_char(p_month.range_to at time zone 'UTC', 'YYYY-MM-DD" 00:00:00+00"'));
end
$$;
revoke all on function custody_data.copy_month(custody.audit_month, timestamptz) from public;
comment on function custody_data.copy_month(custody.audit_month, timestamptz) is 'Copies the events of a month that may not leave as they are into a table of their own, ready to take its place.';

-- definer: drops partitions, which only the owner may
create or replace function custody.drop_archived_partitions(p_limit integer default 1, p_as_of timestamptz default pg_catalog.now())
returns setof custody_data.partition_drops
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_month custody.audit_month;
  v_months custody.audit_month[] := array[]::custody.audit_month[];
  v_assessed record;
  v_holds uuid[];
  v_life uuid;
  v_drop custody_data.partition_drops;
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
  -- One at a time: two that lock months and then wait for the trail's lock would wait for each other.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.partition_drops', 0));
  v_holds := array(select h.hold_id from custody_data.active_holds() h order by h.hold_id);
  v_life := (select h.incarnation_id from custody_data.ledger_heads h where h.tenant_id = 'system');

  -- What is slow comes before the lock.
  for v_month in
    select m.* from custody_data.audit_partitions() m
    where m.state = 'hot' and (m.range_to at time zone 'UTC' + custody_data.hot_period()) at time zone 'UTC' <= p_as_of
  loop
    exit when cardinality(v_months) >= p_limit;
    -- What stays as it is, is not locked. A look beside an import may see half of it.
    v_assessed := custody_data.assess_month(v_month.range_from, v_month.range_to, p_as_of);
    continue when v_assessed.state not in ('due', 'mismatch');
    execute format('lock table only custody_data.%I in share mode', v_month.partition_name);
    v_assessed := custody_data.assess_month(v_month.range_from, v_month.range_to, p_as_of);
    if v_assessed.state = 'mismatch' then
      raise exception using
        errcode = 'PC029',
        message = format('month %s does not hold what its archive says', v_month.partition_name),
        detail = v_assessed.detail || '.',
        hint = 'Rows came or went behind the archive''s back. Nothing was dropped; run pgcustody archive verify and have the case looked at.',
        schema = 'custody_data', table = v_month.partition_name;
    end if;
    continue when v_assessed.state <> 'due';
    v_month.rows := v_assessed.rows_here;
    v_month.rows_kept := v_assessed.rows_kept;
    if v_month.rows_kept > 0 then
      perform custody_data.copy_month(v_month, p_as_of);
    end if;
    v_months := v_months || v_month;
  end loop;
  if cardinality(v_months) = 0 then
    return;
  end if;

  -- Nobody cuts leaves off from here on; who did so meanwhile began another life.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
  lock table only custody_data.audit_logs in access exclusive mode;
  -- Whoever places a hold appends an event, so nobody is half-way now. The months are locked, so nothing came in.
  if v_holds <> array(select h.hold_id from custody_data.active_holds() h order by h.hold_id)
      or v_life is distinct from (select h.incarnation_id from custody_data.ledger_heads h where h.tenant_id = 'system') then
    raise exception using
      errcode = '55P03',
      message = 'a legal hold was placed or released meanwhile, or leaves were taken over',
      hint = 'Nothing was dropped. Call it again.';
  end if;
  foreach v_month in array v_months loop
    execute format('alter table custody_data.audit_logs detach partition custody_data.%I', v_month.partition_name);
    execute format('drop table custody_data.%I', v_month.partition_name);
    if v_month.rows_kept > 0 then
      execute format('alter table custody_data.%I rename to %I', v_month.partition_name || '_kept', v_month.partition_name);
      perform custody_data.attach_month(v_month.partition_name, v_month.range_from at time zone 'UTC');
      execute format('alter table custody_data.%I drop constraint in_its_month', v_month.partition_name);
    end if;
    insert into custody_data.partition_drops (partition_name, range_from, range_to, rows_dropped, rows_kept)
    values (v_month.partition_name, v_month.range_from, v_month.range_to, v_month.rows - v_month.rows_kept, v_month.rows_kept)
    returning * into v_drop;
    perform custody_data.append_event('partition.drop', 'partition', v_month.partition_name, 'success',
      jsonb_build_object('partition', v_month.partition_name, 'rows', v_drop.rows_dropped, 'rows_kept', v_drop.rows_kept,
        'range_from', custody_data.entry_time(v_month.range_from), 'range_to', custody_data.entry_time(v_month.range_to)), null);
    return next v_drop;
  end loop;
end
$$;
revoke all on function custody.drop_archived_partitions(integer, timestamptz) from public;
grant execute on function custody.drop_archived_partitions(integer, timestamptz) to custody_worker;
comment on function custody.drop_archived_partitions(integer, timestamptz) is
'Drops the oldest months of the trail that ended more than audit_hot (at least a week) before p_as_of, of whose events at least half may go: those in a segment that was recorded a week ago, not imported within the hot period, and under no legal hold. What may not go stands in a new partition of the same month afterwards. Returns what it dropped, no row when nothing may go; months that something keeps are passed over: custody.audit_months says by what. Each drop is an event (partition.drop) of the same transaction.
Set lock_timeout before: appenders queue behind a waiting lock, so it should not wait long; on 55P03, which a hold that is placed meanwhile raises too, try again later. Imports into the month wait until the end.
p_limit: 1 to 100 months. p_as_of: not in the future.
Errors: PC001, PC009, PC015 outside tenant system, PC023, PC026, PC029 a month does not hold what its segments say. Callers: custody_worker.';
