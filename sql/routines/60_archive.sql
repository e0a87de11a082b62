-- The archive, segments: which events go into which object, and the record of each.
-- control: HIPAA 164.312(b), (c)(1), 164.316(b)(2)(i); ISO 27001 A.8.10, A.8.13, A.8.15; SOC 2 CC7.2, A1.2
-- reviewed by: DBA, auditor
--
-- A segment is a set of leaves of the ledger (22_ledger.sql), all of one UTC day: what is sealed has an index that
-- never changes, whatever clocks, transactions and restores do, and every leaf belongs to one segment. Which day a leaf
-- is of, the map of leaves says, so opening segments reads no event. Leaves that come for a day that has a segment make
-- the next part of that day. Lost leaves, whose events nobody has, belong to no segment.
--
-- Finding what is new costs as much as is new: leaves from custody_data.archive_heads on.
--
-- locks: open_segments takes the sealer's advisory lock, so that one opens at a time, and nobody seals or cuts leaves
-- off meanwhile. Appenders wait for nothing here.

create or replace function custody_data.audit_ends_at(p_from timestamptz)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- The longest policy of any tenant: a segment holds events of all tenants.
  select max((p_from at time zone 'UTC' + p.keep) at time zone 'UTC') from custody_data.retention_policies p where p.class = 'audit';
$$;
revoke all on function custody_data.audit_ends_at(timestamptz) from public;
comment on function custody_data.audit_ends_at(timestamptz) is 'End of the longest policy audit of any tenant, for what is kept from p_from on.';

create or replace function custody_data.retain_until(p_from timestamptz)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select greatest(custody_data.audit_ends_at(p_from), (now() at time zone 'UTC' + interval '30 days') at time zone 'UTC');
$$;
revoke all on function custody_data.retain_until(timestamptz) from public;
comment on function custody_data.retain_until(timestamptz) is 'Until when an object must at least be locked whose events are kept from p_from on, if it is recorded now: the end of the policy audit, and 30 days from now.';

create or replace function custody_data.segment_kept_from(p_segment custody_data.archive_segments)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Whoever imports events chooses their time, so those are kept from when they were recorded: before it was opened.
  select greatest(((p_segment).day + 1)::timestamp at time zone 'UTC', (p_segment).opened_at);
$$;
revoke all on function custody_data.segment_kept_from(custody_data.archive_segments) from public;
comment on function custody_data.segment_kept_from(custody_data.archive_segments) is 'From when on the policy audit counts for a segment: the end of its day, or its opening.';

create or replace function custody_data.segment_retain_until(p_day date, p_part integer)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select custody_data.retain_until(custody_data.segment_kept_from(s))
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.day = p_day and s.part = p_part;
$$;
revoke all on function custody_data.segment_retain_until(date, integer) from public;
comment on function custody_data.segment_retain_until(date, integer) is 'Until when a segment''s objects must at least be locked, if it is recorded now.';

create or replace function custody_data.check_archive_day(p_before date)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_before is null or not isfinite(p_before) or p_before > (now() at time zone 'UTC')::date then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range: only days that have ended are archived',
      detail = format('p_before is %s, today is %s (UTC).', coalesce(p_before::text, 'null'), (now() at time zone 'UTC')::date),
      hint = 'Give today or an earlier day.';
  end if;
end
$$;
revoke all on function custody_data.check_archive_day(date) from public;
comment on function custody_data.check_archive_day(date) is 'Raises PC009 for a day after today (UTC), or none.';

create or replace function custody_data.leaf_days(p_from bigint, p_to bigint)
returns table (day integer, leaves int8range)
language sql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
  select ('x' || encode(substr(t.days, p.first * 4 + 1, 4), 'hex'))::bit(32)::integer, int8range(t.tile_index * 256 + p.first, t.tile_index * 256 + p.first + p.leaves)
  from (
    -- fetched once a tile
    select e.tile_index, e.days || ''::bytea as days,
      greatest(p_from - e.tile_index * 256, 0)::integer as first, least(p_to - e.tile_index * 256, octet_length(e.days) / 4)::integer as last
    from custody_data.ledger_entries e
    where e.tenant_id = 'system' and e.tile_index >= p_from / 256 and e.tile_index <= (p_to - 1) / 256
    offset 0
  ) t
  -- As a rule all leaves of a tile are of one day, and a run as they are.
  cross join lateral (
    select substr(t.days, t.first * 4 + 1, (t.last - t.first) * 4)
      = decode(repeat(encode(substr(t.days, t.first * 4 + 1, 4), 'hex'), t.last - t.first), 'hex') as of_one_day
    offset 0
  ) d
  cross join lateral (
    select t.first, t.last - t.first as leaves where d.of_one_day
    union all
    select n, 1 from generate_series(t.first, t.last - 1) n where not d.of_one_day
  ) p
  where p_from < p_to and t.first < t.last;
$$;
revoke all on function custody_data.leaf_days(bigint, bigint) from public;
comment on function custody_data.leaf_days(bigint, bigint) is 'Leaves from p_from to below p_to in pieces of one day each, in no order. day: since 2000-01-01; the least integer for lost leaves.';

create or replace function custody_data.leaves_without_segment(p_to bigint)
returns table (day integer, leaves int8range, is_new boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with head as (
    select max(h.opened_to) as opened_to, max(h.first_open) as first_open, max(h.days_end) - date '2000-01-01' as days_end
    from custody_data.archive_heads h
    where h.tenant_id = 'system'
  )
  select d.day, d.leaves, false
  from head h
  cross join lateral custody_data.leaf_days(h.first_open, h.opened_to) d
  where d.day >= h.days_end
  union all
  select d.day, d.leaves, true
  from head h
  cross join lateral custody_data.leaf_days(coalesce(h.opened_to, 0), p_to) d;
$$;
revoke all on function custody_data.leaves_without_segment(bigint) from public;
comment on function custody_data.leaves_without_segment(bigint) is 'Leaves below p_to that have no segment, in pieces of one day each, in no order; lost leaves among them. is_new: nobody has looked at them yet.';

create or replace function custody_data.add_segments(p_day date, p_leaves int8multirange)
returns void
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into custody_data.archive_segments (day, part, leaves, events)
  select p_day, coalesce((select max(s.part) from custody_data.archive_segments s where s.tenant_id = 'system' and s.day = p_day), 0) + r.nth,
    range_agg(r.run), sum(upper(r.run) - lower(r.run))
  from (
    -- an import of all times in any order makes a run of almost every leaf
    select u.run, ((row_number() over (order by u.run) - 1) / 1000000 + 1)::integer as nth from unnest(p_leaves) u (run)
  ) r
  group by r.nth;
$$;
revoke all on function custody_data.add_segments(date, int8multirange) from public;
comment on function custody_data.add_segments(date, int8multirange) is 'Writes leaves down as the next part of their day, or as more parts where they have more than a million runs.';

-- definer: reads the ledger and writes segments, which no role may
create or replace function custody.open_segments(
  p_before date default (pg_catalog.now() at time zone 'UTC')::date,
  p_limit integer default 100
)
returns setof custody_data.archive_segments
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_head custody_data.archive_heads;
  v_size bigint;
  v_to bigint;
  v_days_end date;
  v_first_open bigint;
  v_leaves bigint;
  v_day record;
  v_segment custody_data.archive_segments;
begin
  perform custody_data.require_all_tenants('archive');
  perform custody_data.check_archive_day(p_before);
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 segments.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
  -- What goes has its leaf: a payload that left Postgres before could never be proved. As a rule the sealer has been here.
  for v_batch in 1 .. 10 loop
    exit when not (custody.seal_audit_log(100000) ->> 'more')::boolean;
  end loop;

  insert into custody_data.archive_heads default values on conflict do nothing;
  select h.* into v_head from custody_data.archive_heads h where h.tenant_id = 'system';
  v_size := (select h.tree_size from custody_data.ledger_heads h where h.tenant_id = 'system');
  if v_head.opened_to > v_size then
    raise exception using
      errcode = 'PC029',
      message = 'the archive is ahead of the ledger',
      detail = format('Segments were opened to leaf %s, the ledger has %s leaves.', v_head.opened_to, v_size),
      hint = 'Leaves are cut off by custody.take_over_leaves alone, which sets the archive back too. Nothing was archived or dropped; run pgcustody verify and have the case looked at.';
  end if;
  -- Whoever archives for the first time after years comes again.
  v_to := least(v_size, v_head.opened_to + 16777216);
  -- Late events of days that have segments, whoever asks for less.
  v_days_end := greatest(v_head.days_end, p_before);
  for v_day in
    with looked_at as materialized (
      select l.day, l.leaves, l.is_new from custody_data.leaves_without_segment(v_to) l
    )
    select null::date as day, null::int8multirange as leaves, sum(upper(l.leaves) - lower(l.leaves)) filter (where l.is_new) as looked_at,
      min(lower(l.leaves)) filter (where l.day >= v_days_end - date '2000-01-01') as first_open
    from looked_at l
    union all
    select date '2000-01-01' + l.day, range_agg(l.leaves), null, null
    from looked_at l
    where l.day < v_days_end - date '2000-01-01' and l.day > -2147483648
    group by l.day
    order by 1
  loop
    if v_day.day is not null then
      perform custody_data.add_segments(v_day.day, v_day.leaves);
    else
      v_leaves := coalesce(v_day.looked_at, 0);
      v_first_open := coalesce(v_day.first_open, v_to);
    end if;
  end loop;
  if v_leaves <> v_to - v_head.opened_to then
    raise exception using
      errcode = 'PC041',
      message = format('the ledger does not say which events leaves %s to %s are', v_head.opened_to, v_to - 1),
      detail = format('Of %s leaves it has the days of %s.', v_to - v_head.opened_to, v_leaves),
      hint = 'The map of leaves is never shortened. Nothing was archived; run pgcustody verify and have the case looked at.';
  end if;
  update custody_data.archive_heads h set opened_to = v_to, days_end = v_days_end, first_open = v_first_open
  where h.tenant_id = 'system' and (h.opened_to, h.days_end, h.first_open) is distinct from (v_to, v_days_end, v_first_open);

  for v_segment in
    select s.* from custody_data.archive_segments s
    where s.tenant_id = 'system' and s.recorded_at is null and s.superseded_at is null
    order by s.day, s.part
    limit p_limit
  loop
    v_segment.retain_until := custody_data.retain_until(custody_data.segment_kept_from(v_segment)) + interval '24 hours';
    return next v_segment;
  end loop;
end
$$;
revoke all on function custody.open_segments(date, integer) from public;
grant execute on function custody.open_segments(date, integer) to custody_worker;
comment on function custody.open_segments(date, integer) is
'Seals up to a million events that are not sealed, opens segments for all leaves of days before p_before that no segment has, and returns the open ones in order of day and part. retain_until: until when their objects must be locked, with a day to spare. Call it again until it returns none: of more than 16 million new leaves, or of more than a million events that were not sealed, the rest comes then.
p_before: not after today (UTC). p_limit: 1 to 10000 segments returned; all are opened.
Errors: PC001, PC009, PC015 outside tenant system, PC023, PC026 isolation level, PC029 ahead of the ledger, PC039 and PC041 where sealing is refused or the map of leaves is short. Callers: custody_worker.';

create or replace function custody_data.supersede_segments(p_kept bigint)
returns text[]
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_segment custody_data.archive_segments;
  v_rest int8multirange;
  v_names text[] := array[]::text[];
begin
  for v_segment in
    select s.* from custody_data.archive_segments s
    where s.tenant_id = 'system' and s.superseded_at is null and upper(s.leaves) > p_kept
    order by s.day, s.part
    for update
  loop
    update custody_data.archive_segments s set superseded_at = clock_timestamp()
    where s.tenant_id = 'system' and s.day = v_segment.day and s.part = v_segment.part;
    v_names := v_names || format('%s.%s', v_segment.day, v_segment.part);
    v_rest := v_segment.leaves * int8multirange(int8range(0, p_kept));
    if not isempty(v_rest) then
      perform custody_data.add_segments(v_segment.day, v_rest);
    end if;
  end loop;
  update custody_data.archive_heads h set opened_to = least(h.opened_to, p_kept), first_open = least(h.first_open, p_kept)
  where h.tenant_id = 'system';
  return v_names;
end
$$;
revoke all on function custody_data.supersede_segments(bigint) from public;
comment on function custody_data.supersede_segments(bigint) is
'For take_over_leaves: sets the archive back to the first p_kept leaves. A segment that has others stands for nothing any more, recorded or not: its object stays under its lock, what is left of it makes a part of its own. Returns the names of those, DAY.PART.';

create or replace view custody.archive_window with (security_invoker = true) as
select null::date as day, null::integer as part, 0::bigint as rows, null::timestamptz as retain_until
where false;
comment on view custody.archive_window is 'Shape of archive_due: events of a day that are in no object yet. part is empty where no segment was opened for them.';

-- definer: as open_segments
create or replace function custody.archive_due(p_before date default (pg_catalog.now() at time zone 'UTC')::date)
returns setof custody.archive_window
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before date;
  v_is_home boolean;
begin
  perform custody_data.require_all_tenants('archive');
  perform custody_data.check_archive_day(p_before);
  v_before := greatest(p_before, (select h.days_end from custody_data.archive_heads h where h.tenant_id = 'system'));
  -- Where the database has not been seen here, what it brought along is swept up first.
  v_is_home := exists (
    select from (select i.* from custody_data.incarnations i order by i.opened_at desc limit 1) i
    join custody_data.ledger_heads h on h.tenant_id = 'system' and h.incarnation_id = i.incarnation_id
    where (i.system_identifier, i.timeline) = (select c.system_identifier, custody_data.wal_timeline() from pg_control_system() c));

  return query
  select s.day, s.part, s.events, custody_data.retain_until(custody_data.segment_kept_from(s))
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.recorded_at is null and s.superseded_at is null
  order by s.day, s.part;
  return query
  select d.day, null::integer, sum(d.events)::bigint, custody_data.retain_until(now())
  from (
    select date '2000-01-01' + l.day as day, upper(l.leaves) - lower(l.leaves) as events
    from custody_data.leaves_without_segment((select h.tree_size from custody_data.ledger_heads h where h.tenant_id = 'system')) l
    where l.day < v_before - date '2000-01-01' and l.day > -2147483648
    union all
    select u.day, u.events
    from custody_data.unsealed_events(not v_is_home, pg_snapshot_xmin(pg_current_snapshot())) u
    where u.day < v_before
  ) d
  group by d.day
  order by d.day;
end
$$;
revoke all on function custody.archive_due(date) from public;
grant execute on function custody.archive_due(date) to custody_worker, custody_auditor;
comment on function custody.archive_due(date) is
'What is to be archived now, with the number of events: the open segments, and by day what open_segments would open, without opening anything.
p_before: not after today (UTC). Errors: PC001, PC009, PC015 outside tenant system, PC026. Callers: custody_worker, custody_auditor.';

create or replace view custody.segment_slice with (security_invoker = true) as
select 0::bigint as first_leaf, ''::bytea as xids, ''::bytea as entry_ids, ''::bytea as hashes
where false;
comment on view custody.segment_slice is 'Shape of segment_leaves: leaves that follow one another. xids: 8 bytes a leaf; entry_ids: 16; hashes: 32.';

-- definer: as open_segments
create or replace function custody.segment_leaves(p_day date, p_part integer, p_from_leaf bigint, p_limit integer)
returns setof custody.segment_slice
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
  v_segment custody_data.archive_segments;
  v_slice record;
begin
  perform custody_data.require_all_tenants('archive');
  if p_limit is null or p_limit not between 1 and 100000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 100000 slices.';
  end if;
  select s.* into v_segment from custody_data.archive_segments s where s.tenant_id = 'system' and s.day = p_day and s.part = p_part;
  if not found then
    raise exception using
      errcode = 'PC029',
      message = format('segment %s.%s was never opened', p_day, p_part),
      hint = 'custody.open_segments opens what is to be archived.';
  end if;
  for v_slice in
    select s.first_leaf, s.leaves,
      -- Each in a sub-select of its own: a slice is fetched of what is stored out of line, by the key. A quotient is no key:
      -- division is not leakproof, and row-level security keeps it from the index.
      (select substr(e.xids, (s.first_leaf % 256 * 8 + 1)::integer, s.leaves * 8)
        from custody_data.ledger_entries e where e.tenant_id = 'system' and e.tile_index = s.tile) as xids,
      (select substr(e.entry_ids, (s.first_leaf % 256 * 16 + 1)::integer, s.leaves * 16)
        from custody_data.ledger_entries e where e.tenant_id = 'system' and e.tile_index = s.tile) as entry_ids,
      (select substr(t.hashes, (s.first_leaf % 256 * 32 + 1)::integer, s.leaves * 32)
        from custody_data.ledger_tiles t where t.tenant_id = 'system' and t.level = 0 and t.tile_index = s.tile) as hashes
    from (
      select n.tile, greatest(r.first, n.tile * 256) as first_leaf, (least(r.behind, n.tile * 256 + 256) - greatest(r.first, n.tile * 256))::integer as leaves
      from (
        select greatest(lower(u.run), p_from_leaf) as first, upper(u.run) as behind
        from unnest(v_segment.leaves) u (run)
        where p_from_leaf is null or upper(u.run) > p_from_leaf
        order by u.run
        limit p_limit
      ) r
      -- of a long run no more tiles than are asked for
      cross join lateral generate_series(r.first / 256, least((r.behind - 1) / 256, r.first / 256 + p_limit)) n (tile)
      order by 2
      limit p_limit
    ) s
    order by s.first_leaf
  loop
    if (octet_length(v_slice.xids), octet_length(v_slice.entry_ids), octet_length(v_slice.hashes))
        is distinct from (v_slice.leaves * 8, v_slice.leaves * 16, v_slice.leaves * 32) then
      raise exception using
        errcode = 'PC041',
        message = format('the ledger lacks leaves of tile %s', v_slice.first_leaf / 256),
        detail = format('Segment %s.%s has %s leaves from %s on in it.', p_day, p_part, v_slice.leaves, v_slice.first_leaf),
        hint = 'Neither tiles nor the map of leaves are ever shortened. Nothing was recorded or dropped; run pgcustody verify and have the case looked at.';
    end if;
    return next row(v_slice.first_leaf, v_slice.xids, v_slice.entry_ids, v_slice.hashes)::custody.segment_slice;
  end loop;
end
$$;
revoke all on function custody.segment_leaves(date, integer, bigint, integer) from public;
grant execute on function custody.segment_leaves(date, integer, bigint, integer) to custody_worker, custody_auditor, custody_privacy;
comment on function custody.segment_leaves(date, integer, bigint, integer) is
'The leaves of a segment from leaf p_from_leaf (null: the first) on, in order, in slices that lie in one tile each: which events they are, and their hashes.
p_day, p_part: the segment. p_limit: 1 to 100000 slices; go on behind the last leaf. Each call passes over all runs of the segment, so ask for many slices where it has many runs.
Errors: PC001, PC015 outside tenant system, PC023, PC026, PC029 never opened, PC041 the ledger lacks leaves. Callers: custody_worker, custody_auditor, custody_privacy.';

create or replace function custody_data.read_manifest(p_manifest jsonb)
returns custody_data.archive_segments
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_segment custody_data.archive_segments;
begin
  v_segment.day := (p_manifest ->> 'day')::date;
  v_segment.part := (p_manifest ->> 'part')::integer;
  v_segment.events := (p_manifest ->> 'rows')::bigint;
  v_segment.object_key := p_manifest ->> 'object_key';
  v_segment.plain_bytes := (p_manifest ->> 'plain_bytes')::bigint;
  v_segment.compressed_bytes := (p_manifest ->> 'compressed_bytes')::bigint;
  v_segment.stored_bytes := (p_manifest ->> 'stored_bytes')::bigint;
  v_segment.plain_sha256 := decode(p_manifest ->> 'plain_sha256', 'hex');
  v_segment.compressed_sha256 := decode(p_manifest ->> 'compressed_sha256', 'hex');
  v_segment.stored_sha256 := decode(p_manifest ->> 'stored_sha256', 'hex');
  v_segment.root_hash := decode(p_manifest ->> 'root', 'hex');
  v_segment.first_occurred_at := (p_manifest ->> 'first_occurred_at')::timestamptz;
  v_segment.last_occurred_at := (p_manifest ->> 'last_occurred_at')::timestamptz;
  v_segment.people := decode(p_manifest ->> 'people', 'base64');
  v_segment.recipients := array(select jsonb_array_elements_text(p_manifest -> 'recipients'));
  return v_segment;
exception when data_exception then
  return null;
end
$$;
revoke all on function custody_data.read_manifest(jsonb) from public;
comment on function custody_data.read_manifest(jsonb) is 'What a manifest says of its segment, but for the leaves; null where it cannot be read.';

create or replace function custody_data.manifest_misfit(p_manifest jsonb, p_read custody_data.archive_segments, p_segment custody_data.archive_segments)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select min(m.name) filter (where m.fits is not true)
  from (
    values
      ('version', p_manifest -> 'version' = '2'),
      ('compression', p_manifest ->> 'compression' = 'zstd'),
      ('encryption', p_manifest ->> 'encryption' = 'age'),
      ('recipients', cardinality(p_read.recipients) > 0 and array_position(p_read.recipients, null) is null),
      ('day', p_read.day = p_segment.day),
      ('part', p_read.part = p_segment.part),
      ('rows', p_read.events = p_segment.events),
      ('leaves', p_manifest -> 'leaves' = (
        select jsonb_agg(jsonb_build_array(lower(u.run), upper(u.run) - lower(u.run)) order by u.run) from unnest(p_segment.leaves) u (run))),
      ('first_occurred_at', (p_read.first_occurred_at at time zone 'UTC')::date = p_segment.day),
      ('last_occurred_at', (p_read.last_occurred_at at time zone 'UTC')::date = p_segment.day and p_read.last_occurred_at >= p_read.first_occurred_at),
      ('plain_bytes', p_read.plain_bytes > 0),
      ('compressed_bytes', p_read.compressed_bytes > 0),
      ('stored_bytes', p_read.stored_bytes > 0),
      ('plain_sha256', octet_length(p_read.plain_sha256) = 32),
      ('compressed_sha256', octet_length(p_read.compressed_sha256) = 32),
      ('stored_sha256', octet_length(p_read.stored_sha256) = 32),
      ('root', octet_length(p_read.root_hash) = 32),
      ('people', octet_length(p_read.people) >= 128 and octet_length(p_read.people) & (octet_length(p_read.people) - 1) = 0)
  ) m (name, fits);
$$;
revoke all on function custody_data.manifest_misfit(jsonb, custody_data.archive_segments, custody_data.archive_segments) from public;
comment on function custody_data.manifest_misfit(jsonb, custody_data.archive_segments, custody_data.archive_segments) is 'The first member of a manifest, by name, that does not fit its segment; null where all do. p_read: as read_manifest has it.';

-- definer: as open_segments
create or replace function custody.record_segment(
  p_day date, p_part integer, p_object_key text, p_manifest_key text, p_manifest jsonb, p_manifest_sha256 bytea, p_retain_until timestamptz, p_people bytea
)
returns custody_data.archive_segments
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_segment custody_data.archive_segments;
  v_read custody_data.archive_segments;
  v_name constant text := format('%s.%s', p_day, p_part);
  v_retain_until timestamptz;
  v_misfit text;
begin
  perform custody_data.require_all_tenants('archive');
  if p_day is null or p_part is null or p_object_key is null or p_manifest_key is null or p_manifest is null
      or octet_length(p_manifest_sha256) is distinct from 32 or p_retain_until is null or p_people is null then
    raise exception using
      errcode = 'PC023',
      message = 'a segment is recorded whole',
      hint = 'Give every argument, and a digest of 32 bytes.';
  end if;
  select s.* into v_segment
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.day = p_day and s.part = p_part
  for update;
  if not found then
    raise exception using
      errcode = 'PC029',
      message = format('segment %s was never opened', v_name),
      hint = 'custody.open_segments opens what is to be archived.';
  end if;
  if v_segment.superseded_at is not null then
    raise exception using
      errcode = 'PC029',
      message = format('segment %s stands for nothing any more', v_name),
      detail = 'Its leaves were cut off, because the bucket has others in their places.',
      hint = 'Its events have another segment: custody.open_segments returns it. The object stays where it is, under its lock.';
  end if;
  if v_segment.recorded_at is not null then
    if (v_segment.object_key, v_segment.manifest_key, v_segment.manifest_sha256) is distinct from (p_object_key, p_manifest_key, p_manifest_sha256) then
      raise exception using
        errcode = 'PC029',
        message = format('segment %s was recorded with other content', v_name),
        detail = format('Recorded: %s, its manifest with SHA-256 %s. Given: %s, %s.',
          v_segment.object_key, encode(v_segment.manifest_sha256, 'hex'), p_object_key, encode(p_manifest_sha256, 'hex')),
        hint = 'What is recorded stands; compare both objects.';
    end if;
    return v_segment;
  end if;

  v_retain_until := custody_data.retain_until(custody_data.segment_kept_from(v_segment));
  if p_retain_until < v_retain_until then
    raise exception using
      errcode = 'PC029',
      message = format('the lock of segment %s ends too early', v_name),
      detail = format('It ends %s; the policy asks for %s.', custody_data.entry_time(p_retain_until), custody_data.entry_time(v_retain_until)),
      hint = 'Lengthen the lock of both objects and record the segment again.';
  end if;
  v_read := custody_data.read_manifest(p_manifest);
  v_misfit := case when v_read is null then 'its form'
    when v_read.object_key is distinct from p_object_key then 'object_key'
    when v_read.people is distinct from p_people then 'people'
    else custody_data.manifest_misfit(p_manifest, v_read, v_segment) end;
  if v_misfit is not null then
    raise exception using
      errcode = 'PC029',
      message = format('the manifest of segment %s does not fit it', v_name),
      detail = format('What does not fit: %s.', v_misfit),
      hint = 'Nothing was recorded. The object is of another segment, or of another version of pgcustody; compare it with what custody.segment_leaves returns.';
  end if;

  update custody_data.archive_segments s
  set object_key = p_object_key, manifest_key = p_manifest_key, manifest_sha256 = p_manifest_sha256, people = p_people,
    plain_bytes = v_read.plain_bytes, compressed_bytes = v_read.compressed_bytes, stored_bytes = v_read.stored_bytes,
    plain_sha256 = v_read.plain_sha256, compressed_sha256 = v_read.compressed_sha256, stored_sha256 = v_read.stored_sha256,
    root_hash = v_read.root_hash, first_occurred_at = v_read.first_occurred_at, last_occurred_at = v_read.last_occurred_at,
    recipients = v_read.recipients, retain_until = p_retain_until, recorded_at = clock_timestamp()
  where s.tenant_id = 'system' and s.day = p_day and s.part = p_part
  returning s.* into v_segment;
  perform custody_data.append_event('archive.segment', 'archive_segment', v_name, 'success',
    jsonb_build_object('day', p_day, 'part', p_part, 'rows', v_segment.events, 'bytes', v_segment.plain_bytes, 'stored_bytes', v_segment.stored_bytes,
      'manifest_sha256', encode(p_manifest_sha256, 'hex'), 'retain_until', custody_data.entry_time(p_retain_until)), null);
  return v_segment;
end
$$;
revoke all on function custody.record_segment(date, integer, text, text, jsonb, bytea, timestamptz, bytea) from public;
grant execute on function custody.record_segment(date, integer, text, text, jsonb, bytea, timestamptz, bytea) to custody_worker;
comment on function custody.record_segment(date, integer, text, text, jsonb, bytea, timestamptz, bytea) is
'Records that an open segment is in a locked object that was read back and compared; the same again changes nothing. What is recorded of it is what the manifest says, whose leaves, as [first, count] for each run in order, are those of the segment. The record is an event (archive.segment) of the same transaction.
p_day, p_part: the segment. p_manifest, p_manifest_sha256: as read back from the store, and the digest of its bytes. p_retain_until: end of the objects'' lock as read from the store. p_people: the filter that custody.segment_may_hold asks.
Errors: PC001, PC015 outside tenant system, PC023, PC026, PC029 never opened, superseded, recorded with other content, lock too short, or a manifest that does not fit. Callers: custody_worker.';

create or replace function custody.segment_may_hold(p_people bytea, p_tenant text, p_identity uuid)
returns boolean
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_digest constant bytea := sha256(convert_to(p_tenant || coalesce('/' || p_identity::text, ''), 'UTF8'));
  v_bits constant bigint := octet_length(p_people)::bigint * 8;
  v_bit bigint;
begin
  -- A Bloom filter of a power of two bits: each of 8 places is a number in the digest, big-endian, modulo the bits. Byte
  -- by byte, since it stands uncompressed (00006_runs.sql): of a large one eight pages are read, not all.
  if v_bits > 0 then
    for n in 0 .. 7 loop
      v_bit := ('x' || encode(substr(v_digest, n * 4 + 1, 4), 'hex'))::bit(32)::bigint & (v_bits - 1);
      if (get_byte(substr(p_people, (v_bit / 8 + 1)::integer, 1), 0) >> (v_bit % 8)::integer) & 1 = 0 then
        return false;
      end if;
    end loop;
  end if;
  return true;
end
$$;
revoke all on function custody.segment_may_hold(bytea, text, uuid) from public;
grant execute on function custody.segment_may_hold(bytea, text, uuid) to custody_worker, custody_auditor, custody_privacy;
comment on function custody.segment_may_hold(bytea, text, uuid) is
'Whether a segment with this filter may hold events of a tenant, or where p_identity is given, events about or by that identity; true where it has no filter. False is certain, true is not: one in a few hundred is mistaken.
The filter has m bits, m a power of two, at least 1024 and 12 for each member; members are the tenants, and TENANT/IDENTITY for actors and subjects, in UTF-8. Of a member''s SHA-256 each of the 8 big-endian numbers of 4 bytes modulo m is a bit that is set; bit b is in byte b / 8, its value there 1 << (b % 8).
Callers: custody_worker, custody_auditor, custody_privacy.';

create or replace function custody_data.leaves_of(p_log_entry_id uuid, p_from timestamptz, p_to timestamptz)
returns table (leaf bigint, day integer)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_sort = off
as $$
  select e.tile_index * 256 + n.n, ('x' || encode(substr(e.days, n.n * 4 + 1, 4), 'hex'))::bit(32)::integer
  from (
    select m.tile_index, m.entry_ids || '' as entry_ids, m.days || '' as days
    from custody_data.ledger_entries m
    where m.tenant_id = 'system' and m.first_occurred_at < p_to and m.last_occurred_at >= p_from
      and position(uuid_send(p_log_entry_id) in m.entry_ids) > 0
    offset 0
  ) e
  cross join lateral generate_series(0, octet_length(e.entry_ids) / 16 - 1) n (n)
  where substr(e.entry_ids, n.n * 16 + 1, 16) = uuid_send(p_log_entry_id);
$$;
revoke all on function custody_data.leaves_of(uuid, timestamptz, timestamptz) from public;
comment on function custody_data.leaves_of(uuid, timestamptz, timestamptz) is 'Leaves of events of this id, of whatever tenant, that occurred from p_from to before p_to, with their days since 2000-01-01.';

create or replace function custody_data.leaves_have(p_leaves int8multirange, p_log_entry_id uuid)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
  select exists (
    select from (
      select distinct n.tile from unnest(p_leaves) u (run)
      cross join lateral generate_series(lower(u.run) / 256, (upper(u.run) - 1) / 256) n (tile)
    ) t
    -- by the key, and fetched once a tile
    cross join lateral (
      select (select e.entry_ids || '' from custody_data.ledger_entries e where e.tenant_id = 'system' and e.tile_index = t.tile) as entry_ids
      offset 0
    ) e
    cross join lateral generate_series(0, octet_length(e.entry_ids) / 16 - 1) n (n)
    where position(uuid_send(p_log_entry_id) in e.entry_ids) > 0
      and substr(e.entry_ids, n.n * 16 + 1, 16) = uuid_send(p_log_entry_id) and p_leaves @> t.tile * 256 + n.n);
$$;
revoke all on function custody_data.leaves_have(int8multirange, uuid) from public;
comment on function custody_data.leaves_have(int8multirange, uuid) is 'Whether one of these leaves is of an event of this id, of whatever tenant: reads the map of their tiles alone.';

-- definer: as open_segments
create or replace function custody.find_segments(
  p_from date, p_to date, p_identity uuid default null, p_log_entry_id uuid default null, p_tenant text default null
)
returns setof custody_data.archive_segments
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_from constant timestamptz := coalesce(p_from::timestamp at time zone 'UTC', '-infinity');
  v_to constant timestamptz := coalesce((p_to + 1)::timestamp at time zone 'UTC', 'infinity');
  v_in_id constant tstzrange := custody_data.time_in_id(p_log_entry_id);
  v_leaves bigint[];
  v_segment custody_data.archive_segments;
begin
  perform custody_data.require_all_tenants('archive');
  if p_to < p_from then
    raise exception using errcode = 'PC009', message = 'time out of range: p_to is before p_from', hint = 'Give the first and the last day.';
  end if;
  if p_identity is not null and p_tenant is null then
    raise exception using errcode = 'PC023', message = 'an identity without its tenant', hint = 'Give p_tenant too.';
  end if;
  if p_log_entry_id is not null then
    -- An id that the server drew says when it happened; a client may give one that looks like it.
    v_leaves := array(select l.leaf from custody_data.leaves_of(p_log_entry_id, greatest(v_from, lower(v_in_id)), least(v_to, upper(v_in_id))) l);
    if v_leaves = '{}' and v_in_id is not null then
      v_leaves := array(select l.leaf from custody_data.leaves_of(p_log_entry_id, v_from, v_to) l);
    end if;
  end if;
  for v_segment in
    select s.* from custody_data.archive_segments s
    where s.tenant_id = 'system' and s.recorded_at is not null and s.expired_at is null and s.superseded_at is null
      and s.last_occurred_at >= v_from and s.first_occurred_at < v_to
      and (p_tenant is null or custody.segment_may_hold(s.people, p_tenant, p_identity))
      and (v_leaves is null or exists (select from unnest(v_leaves) l (leaf) where s.leaves @> l.leaf))
    order by s.day, s.part
  loop
    v_segment.people := null;
    return next v_segment;
  end loop;
end
$$;
revoke all on function custody.find_segments(date, date, uuid, uuid, text) from public;
grant execute on function custody.find_segments(date, date, uuid, uuid, text) to custody_worker, custody_auditor, custody_privacy;
comment on function custody.find_segments(date, date, uuid, uuid, text) is
'Recorded segments whose objects are still there and can hold such events, in order of day and part; their people are not shown.
p_from, p_to: first and last day (UTC), null without bound. p_tenant: with events of that tenant. p_identity: with events about or by that identity of p_tenant. p_log_entry_id: with an event of that id, known by its leaf; of an id that a client gave, give days too, or the whole map of leaves is read.
Errors: PC001, PC009, PC015 outside tenant system, PC023, PC026. Callers: custody_worker, custody_auditor, custody_privacy.';

create or replace view custody.archive_segments with (security_invoker = true) as
select s.day, s.part, s.leaves, s.events, s.opened_at, s.object_key, s.manifest_key, s.plain_bytes, s.compressed_bytes, s.stored_bytes,
  s.plain_sha256, s.compressed_sha256, s.stored_sha256, s.manifest_sha256, s.root_hash, s.first_occurred_at, s.last_occurred_at, s.recipients,
  s.retain_until, s.recorded_at, s.superseded_at, s.legal_hold, s.expired_at, s.objects_deleted_at
from custody_data.archive_segments s;
grant select on custody.archive_segments to custody_worker, custody_auditor, custody_privacy;
comment on view custody.archive_segments is 'The archive''s segments; open ones have no recorded_at. Readers: custody_worker, custody_auditor, custody_privacy.';
