-- The archive: which events go into which object, the record of each, and the end of archived months.
-- control: HIPAA 164.312(b), (c)(1), 164.316(b)(2)(i); ISO 27001 A.8.10, A.8.13, A.8.15; SOC 2 CC7.2, A1.2
-- reviewed by: DBA, auditor
--
-- A segment covers the events of one UTC day that transactions in [xid_from, xid_to) wrote, from the first to
-- the last of them, as far as they were recorded before it was opened and no earlier part of the day has them.
-- All are sealed (22_ledger.sql) and so older than the oldest transaction that still runs: no row can come into a
-- window any more. A cursor on time or id would lose the rows of transactions that commit late, these windows lose
-- none. Rows that arrive later for an archived day make the next part of that day.
--
-- Finding what is new costs as much as is new: rows from the newest xid_to on, by the index on xid, and the
-- days that have ended since. Transaction numbers mean nothing in another cluster, so where the database finds
-- itself in one (custody_data.incarnations) it looks at every row once. From then on windows of both clusters
-- overlap, and the time of recording tells their rows apart.
--
-- locks: open_segments and drop_archived_partitions take turns by advisory locks. Dropping a month takes ACCESS
-- EXCLUSIVE on the trail, first the parent, then the partition, after everything slow is done; the caller sets
-- lock_timeout, because appenders queue behind a waiting lock.

create or replace function custody_data.segment_retain_until(p_day date)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- The longest policy of any tenant, from the end of the day on: a segment holds events of all tenants.
  select greatest(
    max(((p_day + 1)::timestamp + p.keep) at time zone 'UTC'),
    (now() at time zone 'UTC' + interval '30 days') at time zone 'UTC')
  from custody_data.retention_policies p
  where p.class = 'audit';
$$;
revoke all on function custody_data.segment_retain_until(date) from public;
comment on function custody_data.segment_retain_until(date) is 'Until when a day''s object must at least be locked, if it is recorded now: the end of the policy audit, and 30 days from now.';

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

create or replace function custody_data.next_xid(p_xid xid8)
returns xid8
language sql
immutable
parallel safe
return (p_xid::text::bigint + 1)::text::xid8;
revoke all on function custody_data.next_xid(xid8) from public;
comment on function custody_data.next_xid(xid8) is 'The transaction number after another: xid8 has no arithmetic.';

create or replace function custody.segment_entries(p_day date, p_part integer)
returns setof custody.audit_entries
language sql
stable
begin atomic
  -- In SQL-standard form, which the planner takes into the caller's query.
  select e.*
  from custody_data.archive_segments s
  join custody.audit_entries e
    on e.xid >= s.xid_from and e.xid < s.xid_to and e.recorded_at < s.opened_at
    and e.occurred_at >= p_day::timestamp at time zone 'UTC' and e.occurred_at < (p_day + 1)::timestamp at time zone 'UTC'
  -- in a sub-select, which is asked before the rows: without a context there are none to ask it for
  where (select custody_data.require_context()) is not null
    and s.tenant_id = 'system' and s.day = p_day and s.part = p_part
    and not exists (
      select from custody_data.archive_segments b
      where b.tenant_id = 'system' and b.day = p_day and b.part < p_part
        and e.xid >= b.xid_from and e.xid < b.xid_to and e.recorded_at < b.opened_at);
end;
revoke all on function custody.segment_entries(date, integer) from public;
grant execute on function custody.segment_entries(date, integer) to custody_worker;
comment on function custody.segment_entries(date, integer) is
'The events of a segment with their entries, in no order: those of its day and window that were recorded before it was opened and that no earlier part of the day has.
Runs with the caller''s rights: in the context of tenant system the events of all tenants.
Errors: PC001. Callers: custody_worker.';

create or replace function custody_data.uncovered_window(p_day date, p_from xid8, p_to xid8, p_recorded_before timestamptz)
returns table (day date, xid_from xid8, xid_to xid8, rows bigint, recorded_until timestamptz)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with segments as materialized (
    select s.xid_from, s.xid_to, s.opened_at from custody_data.archive_segments s where s.tenant_id = 'system' and s.day = p_day
  )
  select p_day, min(a.xid), custody_data.next_xid(max(a.xid)), count(*), max(a.recorded_at)
  from custody_data.audit_logs a
  where a.occurred_at >= p_day::timestamp at time zone 'UTC' and a.occurred_at < (p_day + 1)::timestamp at time zone 'UTC'
    and a.xid >= p_from and (p_to is null or a.xid < p_to)
    and (p_recorded_before is null or a.recorded_at < p_recorded_before)
    and not exists (select from segments s where a.xid >= s.xid_from and a.xid < s.xid_to and a.recorded_at < s.opened_at)
  having count(*) > 0;
$$;
revoke all on function custody_data.uncovered_window(date, xid8, xid8, timestamptz) from public;
comment on function custody_data.uncovered_window(date, xid8, xid8, timestamptz) is
'The window of the events of a day in [p_from, p_to), recorded before p_recorded_before, that no segment covers; no row where there are none. p_to, p_recorded_before null: no bound.';

create or replace function custody_data.unarchived_windows(p_before date, p_horizon xid8, p_opened_at timestamptz)
returns table (day date, xid_from xid8, xid_to xid8, rows bigint, recorded_until timestamptz)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
  v_from xid8;
  v_days_end date;
  v_ended timestamptz;
  v_before timestamptz;
  v_month timestamptz;
  v_day record;
begin
  -- All events below v_from on days before v_days_end are covered.
  select max(s.xid_to), max(s.day) + 1 into v_from, v_days_end
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.opened_at >= p_opened_at;
  if v_from > p_horizon then
    raise exception using
      errcode = 'PC029',
      message = 'the archive is ahead of this server''s transactions',
      detail = format('Segments reach transaction %s, the server is at %s.', v_from, p_horizon),
      hint = 'The cluster''s transaction counter or its clock was set back. Nothing was archived or dropped; have the case looked at.';
  end if;
  v_from := coalesce(v_from, '0');
  v_ended := coalesce(v_days_end, '-infinity')::timestamp at time zone 'UTC';
  v_before := p_before::timestamp at time zone 'UTC';
  v_month := date_trunc('month', v_ended at time zone 'UTC') at time zone 'UTC';

  for v_day in
    with recursive tenants as (
      -- From tenant to tenant by the index on tenant and time: the trail has none on time alone, and reading the
      -- month again for each of its days would cost more than what is new.
      (select a.tenant_id from custody_data.audit_logs a
      where v_days_end is not null and a.occurred_at >= v_month and a.occurred_at < v_before
      order by a.tenant_id limit 1)
      union all
      select (
        select a.tenant_id from custody_data.audit_logs a
        where a.tenant_id > t.tenant_id and a.occurred_at >= v_month and a.occurred_at < v_before
        order by a.tenant_id limit 1)
      from tenants t
      where t.tenant_id is not null
    )
    select d.day, min(d.first) as first, max(d.last) as last, sum(d.rows)::bigint as rows, max(d.recorded_until) as recorded_until
    from (
      -- late events of days that have segments, whoever asks for less, by the index on xid
      select (a.occurred_at at time zone 'UTC')::date as day, min(a.xid) as first, max(a.xid) as last, count(*) as rows,
        max(a.recorded_at) as recorded_until
      from custody_data.audit_logs a
      where a.xid >= v_from and a.xid < p_horizon and a.occurred_at < v_ended
      group by 1
      union all
      -- days that have ended since
      select n.*
      from tenants t
      cross join lateral (
        select (a.occurred_at at time zone 'UTC')::date, min(a.xid), max(a.xid), count(*), max(a.recorded_at)
        from custody_data.audit_logs a
        where a.tenant_id = t.tenant_id and a.occurred_at >= v_ended and a.occurred_at < v_before and a.xid < p_horizon
        group by 1
      ) n
      union all
      -- none was archived here before: every row is read
      select (a.occurred_at at time zone 'UTC')::date, min(a.xid), max(a.xid), count(*), max(a.recorded_at)
      from custody_data.audit_logs a
      where v_days_end is null and a.occurred_at < v_before and a.xid < p_horizon
      group by 1
    ) d
    group by d.day
    order by d.day
  loop
    if exists (
      select from custody_data.archive_segments s
      where s.tenant_id = 'system' and s.day = v_day.day and s.xid_to > v_day.first and s.xid_from <= v_day.last
    ) then
      -- Another cluster's numbers lie among this one's.
      return query select w.* from custody_data.uncovered_window(v_day.day, v_day.first, p_horizon, null) w;
    else
      day := v_day.day;
      xid_from := v_day.first;
      xid_to := custody_data.next_xid(v_day.last);
      rows := v_day.rows;
      recorded_until := v_day.recorded_until;
      return next;
    end if;
  end loop;
end
$$;
revoke all on function custody_data.unarchived_windows(date, xid8, timestamptz) from public;
comment on function custody_data.unarchived_windows(date, xid8, timestamptz) is
'Windows for the events of days before p_before that no segment covers and whose transactions lie below p_horizon. p_opened_at: since when the database has lived in this cluster; infinity if it has not been seen here.';

create or replace function custody_data.foreign_windows(p_recorded_before timestamptz)
returns table (day date, xid_from xid8, xid_to xid8, rows bigint, recorded_until timestamptz)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  -- Of this cluster's transactions only this one's own rows can lie at or beyond the snapshot's end and be seen.
  v_beyond constant xid8 := greatest(pg_snapshot_xmax(pg_current_snapshot()), custody_data.next_xid(pg_current_xact_id_if_assigned()));
begin
  -- The newest transaction is the first entry of each partition's index; as a rule that is all there is to read.
  if (select max(a.xid) from custody_data.audit_logs a) < v_beyond then
    return;
  end if;
  return query
  select w.*
  from (
    select distinct (a.occurred_at at time zone 'UTC')::date as day
    from custody_data.audit_logs a
    where a.xid >= v_beyond
  ) d
  cross join lateral custody_data.uncovered_window(d.day, v_beyond, null, p_recorded_before) w
  order by w.day;
end
$$;
revoke all on function custody_data.foreign_windows(timestamptz) from public;
comment on function custody_data.foreign_windows(timestamptz) is
'Windows for events whose transactions this cluster has not reached yet: a restore brought them, so those have ended. Days that have not ended are among them. p_recorded_before: events that another clock dated later wait until this cluster has come to their transactions.';

create or replace function custody_data.open_segment(p_day date, p_from xid8, p_to xid8, p_opened_at timestamptz)
returns void
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into custody_data.archive_segments (tenant_id, day, part, xid_from, xid_to, opened_at)
  select 'system', p_day, coalesce(max(s.part), 0) + 1, p_from, p_to, p_opened_at
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.day = p_day;
$$;
revoke all on function custody_data.open_segment(date, xid8, xid8, timestamptz) from public;
comment on function custody_data.open_segment(date, xid8, xid8, timestamptz) is 'Writes a window down as the next part of its day.';

-- definer: reads the trail of all tenants and writes segments, which no role may
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
  v_incarnation custody_data.incarnations;
  v_before timestamptz;
  v_horizon xid8;
  v_segment custody_data.archive_segments;
begin
  perform custody_data.require_all_tenants('archive');
  perform custody_data.check_archive_day(p_before);
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 segments.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.archive', 0));
  -- What goes has its leaf: a payload that left Postgres before could never be proved. As a rule the sealer has been here.
  loop
    exit when not (custody.seal_audit_log(100000) ->> 'more')::boolean;
  end loop;
  v_horizon := least(pg_snapshot_xmin(pg_current_snapshot()),
    coalesce((select h.sealed_to from custody_data.ledger_heads h where h.tenant_id = 'system'), '0'));

  v_incarnation := custody.open_incarnation();
  if not exists (select from custody_data.archive_segments s where s.tenant_id = 'system' and s.opened_at >= v_incarnation.opened_at) then
    -- What a restore brought belongs to the time before: its windows must not pass for this cluster's horizon,
    -- nor take in what this cluster will record under the same numbers.
    v_before := least(v_incarnation.opened_at - interval '1 microsecond', clock_timestamp());
    perform custody_data.open_segment(w.day, w.xid_from, w.xid_to, v_before)
    from custody_data.foreign_windows(v_before) w;
  end if;
  -- All events of these windows are settled: whatever the clock says, they were recorded before.
  perform custody_data.open_segment(w.day, w.xid_from, w.xid_to,
    greatest(clock_timestamp(), v_incarnation.opened_at, w.recorded_until + interval '1 microsecond'))
  from custody_data.unarchived_windows(p_before, v_horizon, v_incarnation.opened_at) w;

  for v_segment in
    select s.* from custody_data.archive_segments s
    where s.tenant_id = 'system' and s.recorded_at is null
    order by s.day, s.part
    limit p_limit
  loop
    v_segment.retain_until := custody_data.segment_retain_until(v_segment.day) + interval '24 hours';
    return next v_segment;
  end loop;
end
$$;
revoke all on function custody.open_segments(date, integer) from public;
grant execute on function custody.open_segments(date, integer) to custody_worker;
comment on function custody.open_segments(date, integer) is
'Seals what is not sealed, opens segments for all events of days before p_before that no segment covers and that have their leaves, and returns the open ones in order. retain_until: until when their objects must be locked, with a day to spare.
p_before: not after today (UTC). p_limit: 1 to 10000 segments returned; all are opened.
Errors: PC001, PC009, PC015 outside tenant system, PC023, PC026 isolation level, PC029 transaction counter set back, PC039 and PC041 where sealing is refused. Callers: custody_worker.';

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
  v_opened_at timestamptz;
  v_swept boolean;
begin
  perform custody_data.require_all_tenants('archive');
  perform custody_data.check_archive_day(p_before);
  select i.opened_at into v_opened_at
  from (
    select n.* from custody_data.incarnations n where n.tenant_id = 'system' order by n.opened_at desc limit 1
  ) i
  where (i.system_identifier, i.timeline) = (select c.system_identifier, custody_data.wal_timeline() from pg_control_system() c);
  v_swept := exists (select from custody_data.archive_segments s where s.tenant_id = 'system' and s.opened_at >= v_opened_at);

  return query
  select s.day, s.part, (select count(*) from custody.segment_entries(s.day, s.part)), custody_data.segment_retain_until(s.day)
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.recorded_at is null
  order by s.day, s.part;
  return query
  select w.day, null::integer, w.rows, custody_data.segment_retain_until(w.day)
  from (
    select f.* from custody_data.foreign_windows(coalesce(v_opened_at, clock_timestamp())) f where not v_swept
    union all
    select u.* from custody_data.unarchived_windows(
      p_before, pg_snapshot_xmin(pg_current_snapshot()), coalesce(v_opened_at, 'infinity')) u
  ) w
  order by w.day, w.xid_from;
end
$$;
revoke all on function custody.archive_due(date) from public;
grant execute on function custody.archive_due(date) to custody_worker, custody_auditor;
comment on function custody.archive_due(date) is
'What open_segments would return now, with the number of events of each, without opening anything.
p_before: not after today (UTC). Errors: PC001, PC009, PC015 outside tenant system, PC026, PC029. Callers: custody_worker, custody_auditor.';

-- definer: as open_segments
create or replace function custody.record_segment(
  p_day date,
  p_part integer,
  p_object_key text,
  p_manifest_key text,
  p_rows bigint,
  p_plain_bytes bigint,
  p_stored_bytes bigint,
  p_plain_sha256 bytea,
  p_stored_sha256 bytea,
  p_first_occurred_at timestamptz,
  p_last_occurred_at timestamptz,
  p_retain_until timestamptz,
  p_manifest jsonb
)
returns custody_data.archive_segments
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_segment custody_data.archive_segments;
  v_name constant text := format('%s.%s', p_day, p_part);
  v_rows bigint;
  v_first timestamptz;
  v_last timestamptz;
begin
  perform custody_data.require_all_tenants('archive');
  if p_day is null or p_part is null or p_object_key is null or p_manifest_key is null or p_rows is null or p_plain_bytes is null
      or p_stored_bytes is null or p_first_occurred_at is null or p_last_occurred_at is null or p_retain_until is null
      or p_manifest is null or octet_length(p_plain_sha256) is distinct from 32 or octet_length(p_stored_sha256) is distinct from 32 then
    raise exception using
      errcode = 'PC023',
      message = 'a segment is recorded whole',
      hint = 'Give every argument, and digests of 32 bytes.';
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
  if v_segment.recorded_at is not null then
    if (v_segment.object_key, v_segment.manifest_key, v_segment.rows_archived, v_segment.plain_bytes, v_segment.stored_bytes, v_segment.plain_sha256, v_segment.stored_sha256)
        is distinct from (p_object_key, p_manifest_key, p_rows, p_plain_bytes, p_stored_bytes, p_plain_sha256, p_stored_sha256) then
      raise exception using
        errcode = 'PC029',
        message = format('segment %s was recorded with other content', v_name),
        detail = format('Recorded: %s rows in %s. Given: %s rows in %s.', v_segment.rows_archived, v_segment.object_key, p_rows, p_object_key),
        hint = 'What is recorded stands; compare both objects.';
    end if;
    return v_segment;
  end if;

  if p_retain_until < custody_data.segment_retain_until(p_day) then
    raise exception using
      errcode = 'PC029',
      message = format('the lock of segment %s ends too early', v_name),
      detail = format('It ends %s; the policy asks for %s.', custody_data.entry_time(p_retain_until), custody_data.entry_time(custody_data.segment_retain_until(p_day))),
      hint = 'Lengthen the lock of both objects and record the segment again.';
  end if;
  if (p_manifest ->> 'object_key', p_manifest ->> 'rows', p_manifest ->> 'plain_sha256', p_manifest ->> 'stored_sha256')
      is distinct from (p_object_key, p_rows::text, encode(p_plain_sha256, 'hex'), encode(p_stored_sha256, 'hex')) then
    raise exception using
      errcode = 'PC029',
      message = format('the manifest of segment %s does not fit its object', v_name),
      hint = 'The manifest names another object, number of rows or digest.';
  end if;
  select count(*), min(e.occurred_at), max(e.occurred_at) into v_rows, v_first, v_last
  from custody.segment_entries(p_day, p_part) e;
  if (v_rows, v_first, v_last) is distinct from (p_rows, p_first_occurred_at, p_last_occurred_at) then
    raise exception using
      errcode = 'PC029',
      message = format('segment %s does not hold what the trail holds', v_name),
      detail = format('Archived: %s rows from %s to %s. In the trail: %s rows from %s to %s.',
        p_rows, custody_data.entry_time(p_first_occurred_at), custody_data.entry_time(p_last_occurred_at),
        v_rows, coalesce(custody_data.entry_time(v_first), '-'), coalesce(custody_data.entry_time(v_last), '-')),
      hint = 'Rows came or went behind the archive''s back. Nothing was recorded or dropped; have the case looked at.';
  end if;

  update custody_data.archive_segments s
  set object_key = p_object_key, manifest_key = p_manifest_key, rows_archived = p_rows, plain_bytes = p_plain_bytes,
    stored_bytes = p_stored_bytes, plain_sha256 = p_plain_sha256, stored_sha256 = p_stored_sha256,
    first_occurred_at = p_first_occurred_at, last_occurred_at = p_last_occurred_at, retain_until = p_retain_until,
    manifest = p_manifest, recorded_at = clock_timestamp()
  where s.tenant_id = 'system' and s.day = p_day and s.part = p_part
  returning s.* into v_segment;
  perform custody_data.append_event('archive.segment', 'archive_segment', v_name, 'success',
    jsonb_build_object('day', p_day, 'part', p_part, 'rows', p_rows, 'bytes', p_plain_bytes, 'stored_bytes', p_stored_bytes,
      'retain_until', custody_data.entry_time(p_retain_until)), null);
  return v_segment;
end
$$;
revoke all on function custody.record_segment(date, integer, text, text, bigint, bigint, bigint, bytea, bytea, timestamptz, timestamptz, timestamptz, jsonb) from public;
grant execute on function custody.record_segment(date, integer, text, text, bigint, bigint, bigint, bytea, bytea, timestamptz, timestamptz, timestamptz, jsonb) to custody_worker;
comment on function custody.record_segment(date, integer, text, text, bigint, bigint, bigint, bytea, bytea, timestamptz, timestamptz, timestamptz, jsonb) is
'Records that an open segment is in a locked object that was read back and compared; the same again changes nothing. Counts the rows of its window anew. The record is an event (archive.segment) of the same transaction.
p_day, p_part: the segment. p_retain_until: end of the objects'' lock as read from the store. p_manifest: as read back from the store.
Errors: PC001, PC015 outside tenant system, PC023, PC026, PC029 never opened, recorded with other content, lock too short, or not what the trail holds. Callers: custody_worker.';

create or replace view custody.archive_segments with (security_invoker = true) as
select s.day, s.part, s.xid_from, s.xid_to, s.opened_at, s.object_key, s.manifest_key, s.rows_archived, s.plain_bytes, s.stored_bytes,
  s.plain_sha256, s.stored_sha256, s.first_occurred_at, s.last_occurred_at, s.retain_until, s.manifest, s.recorded_at
from custody_data.archive_segments s;
grant select on custody.archive_segments to custody_worker, custody_auditor, custody_privacy;
comment on view custody.archive_segments is 'The archive''s segments; open ones have no recorded_at. Readers: custody_worker, custody_auditor, custody_privacy.';

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
