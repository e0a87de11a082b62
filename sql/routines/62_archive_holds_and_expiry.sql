-- The archive, holds and end of life: which objects the store must not let go, and which may be deleted.
-- control: FRCP 37(e); GDPR Art. 5(1)(e), 17(3)(e); HIPAA 164.316(b)(2)(i); ISO 27001 A.8.10
-- reviewed by: privacy officer, legal, DBA
--
-- The store has legal holds of its own, which outlast a lock: what a hold of the database covers gets one. The worker
-- asks what is to change, changes it in the store, and says so. An object goes when its lock and the policy audit have
-- ended, Postgres has none of its month any more, and nothing holds it. The segment's row stays, with its leaves, and its
-- end is an event: so the events of a missing object are missed by nobody.
--
-- locks: rows of the segments alone.

create or replace function custody_data.hold_covers(p_hold custody_data.legal_holds, p_day date, p_leaves int8multirange, p_people bytea)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_hold.scope in ('tenant', 'person') then custody.segment_may_hold(p_people, p_hold.tenant_id, p_hold.identity_id)
    when p_hold.event_day = p_day then custody.segment_may_hold(p_people, p_hold.tenant_id, null) and custody_data.leaves_have(p_leaves, p_hold.row_id::uuid)
    else false end;
end
$$;
revoke all on function custody_data.hold_covers(custody_data.legal_holds, date, int8multirange, bytea) from public;
comment on function custody_data.hold_covers(custody_data.legal_holds, date, int8multirange, bytea) is 'Whether a segment may hold an event that a hold covers: of the held tenant, by or about the held person, or the held event itself, which is looked for on its day alone. p_leaves: none of a segment that was superseded, whose leaves are of other events now.';

create or replace function custody_data.look_for_holds()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_looked uuid[];
  v_holds uuid[];
  v_new uuid[];
begin
  -- One looks at a time: the answers and the holds they are answers to go together.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.segment_holds', 0));
  v_looked := (select h.holds from custody_data.archive_heads h where h.tenant_id = 'system');
  v_holds := array(
    select h.hold_id from custody_data.active_holds() h where h.scope in ('tenant', 'person') or h.table_name = 'audit_logs' order by h.hold_id);
  v_new := array(select unnest(v_holds) except select unnest(v_looked));

  -- What was looked at is compared with new holds alone; what is new, and what a hold that has ended may have covered, with all.
  if cardinality(v_new) > 0 then
    with holds as materialized (
      select h as hold from custody_data.active_holds() h where h.hold_id = any (v_new)
    )
    update custody_data.archive_segments s set hold_wanted = true
    where s.tenant_id = 'system' and s.recorded_at is not null and s.objects_deleted_at is null and not s.hold_wanted
      and exists (select from holds n where custody_data.hold_covers(n.hold, s.day, case when s.superseded_at is null then s.leaves end, s.people));
  end if;
  with holds as materialized (
    select h as hold from custody_data.active_holds() h where h.hold_id = any (v_holds)
  ), looked as materialized (
    select s.day, s.part, s.hold_wanted,
      exists (select from holds n where custody_data.hold_covers(n.hold, s.day, case when s.superseded_at is null then s.leaves end, s.people)) as wanted
    from custody_data.archive_segments s
    where s.tenant_id = 'system' and s.recorded_at is not null and s.objects_deleted_at is null
      and (s.hold_wanted is null or s.hold_wanted and not v_looked <@ v_holds)
  )
  update custody_data.archive_segments s set hold_wanted = l.wanted
  from looked l
  where s.tenant_id = 'system' and s.day = l.day and s.part = l.part and l.hold_wanted is distinct from l.wanted;
  update custody_data.archive_heads h set holds = v_holds where h.tenant_id = 'system' and h.holds <> v_holds;
end
$$;
revoke all on function custody_data.look_for_holds() from public;
comment on function custody_data.look_for_holds() is 'Notes which segments with objects a legal hold covers (hold_wanted). Reads the filters of segments that are new, with a new hold those of all, once, and with one that has ended those of the segments that were held.';

create or replace view custody.held_segment with (security_invoker = true) as
select null::date as day, 0 as part, ''::text as object_key, ''::text as manifest_key, false as wanted
where false;
comment on view custody.held_segment is 'Shape of held_segments. wanted: whether the store is to hold the objects, or to let them go.';

-- definer: reads the holds and segments of all tenants
create or replace function custody.held_segments()
returns setof custody.held_segment
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('archive');
  perform custody_data.look_for_holds();
  return query
  select s.day, s.part, s.object_key, s.manifest_key, s.hold_wanted
  from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.recorded_at is not null and s.objects_deleted_at is null
    and (s.hold_wanted is null or s.hold_wanted or s.legal_hold) and s.legal_hold <> s.hold_wanted
  order by s.day, s.part;
end
$$;
revoke all on function custody.held_segments() from public;
grant execute on function custody.held_segments() to custody_worker;
comment on function custody.held_segments() is
'Recorded segments whose objects are not under the store''s legal hold and should be, or are and should not, in order of day and part. A segment that may hold a held person''s events counts: one in a few hundred is held without need. What it found is noted, so that the next look costs what is new: segments, holds, and holds that have ended.
Errors: PC001, PC015 outside tenant system, PC026. Callers: custody_worker.';

-- definer: segments are written by these functions alone
create or replace function custody.record_segment_hold(p_day date, p_part integer, p_on boolean)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('archive');
  if p_on is null then
    raise exception using errcode = 'PC023', message = 'invalid p_on', hint = 'Say whether the store holds the objects.';
  end if;
  perform from custody_data.archive_segments s
  where s.tenant_id = 'system' and s.day = p_day and s.part = p_part and s.recorded_at is not null and s.objects_deleted_at is null
  for update;
  if not found then
    raise exception using
      errcode = 'PC029',
      message = format('segment %s.%s has no objects', p_day, p_part),
      hint = 'It was never recorded, or its objects were deleted: custody.held_segments says which to hold.';
  end if;
  update custody_data.archive_segments s set legal_hold = p_on
  where s.tenant_id = 'system' and s.day = p_day and s.part = p_part and s.legal_hold <> p_on;
  if found then
    perform custody_data.append_event('archive.hold', 'archive_segment', format('%s.%s', p_day, p_part), 'success',
      jsonb_build_object('day', p_day, 'part', p_part, 'on', p_on), null);
    return true;
  end if;
  return false;
end
$$;
revoke all on function custody.record_segment_hold(date, integer, boolean) from public;
grant execute on function custody.record_segment_hold(date, integer, boolean) to custody_worker;
comment on function custody.record_segment_hold(date, integer, boolean) is
'Records that the store holds the objects of a segment, or has let them go; false where that is on record. The change is an event (archive.hold).
Errors: PC001, PC015 outside tenant system, PC023, PC026, PC029 a segment without objects. Callers: custody_worker.';

-- definer: as record_segment_hold
create or replace function custody.expire_segments(p_limit integer default 100, p_as_of timestamptz default pg_catalog.now())
returns setof custody_data.archive_segments
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_segment custody_data.archive_segments;
begin
  perform custody_data.require_all_tenants('archive');
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 segments.';
  end if;
  if p_as_of is null or not isfinite(p_as_of) or p_as_of > now() then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range: p_as_of is in the future',
      hint = 'Nothing goes before its time.';
  end if;
  perform custody_data.look_for_holds();
  for v_segment in
    select s.*
    from custody_data.archive_segments s
    where s.tenant_id = 'system' and s.recorded_at is not null and s.objects_deleted_at is null
      and s.retain_until < p_as_of and not s.legal_hold and not s.hold_wanted
      and (s.expired_at is not null or (
        custody_data.audit_ends_at(custody_data.segment_kept_from(s)) < p_as_of
        and not exists (
          select from custody_data.audit_partitions() m
          where m.range_from is null or (m.range_from < (s.day + 1)::timestamp at time zone 'UTC' and m.range_to > s.day::timestamp at time zone 'UTC'))))
    order by s.day, s.part
    limit p_limit
    for update of s
  loop
    if v_segment.expired_at is null then
      update custody_data.archive_segments s set expired_at = clock_timestamp()
      where s.tenant_id = 'system' and s.day = v_segment.day and s.part = v_segment.part
      returning s.* into v_segment;
      perform custody_data.append_event('archive.expire', 'archive_segment', format('%s.%s', v_segment.day, v_segment.part), 'success',
        jsonb_build_object('day', v_segment.day, 'part', v_segment.part, 'rows', v_segment.events,
          'manifest_sha256', encode(v_segment.manifest_sha256, 'hex'), 'leaves_sha256', encode(sha256(convert_to(v_segment.leaves::text, 'UTF8')), 'hex'),
          'retain_until', custody_data.entry_time(v_segment.retain_until)), null);
    end if;
    v_segment.people := null;
    return next v_segment;
  end loop;
end
$$;
revoke all on function custody.expire_segments(integer, timestamptz) from public;
grant execute on function custody.expire_segments(integer, timestamptz) to custody_worker;
comment on function custody.expire_segments(integer, timestamptz) is
'Segments whose objects may be deleted: their lock and the longest policy audit of any tenant ended before p_as_of, Postgres has no partition of their month, neither the database nor the store holds them. Each is an event (archive.expire), with the SHA-256 of its manifest and of its leaves as text ({[0,5),[7,9)}). Those that expired before and were not deleted come again. Delete both objects in all versions after the commit, and call record_segment_gone.
p_limit: 1 to 10000 segments. p_as_of: not in the future.
Errors: PC001, PC009, PC015 outside tenant system, PC023, PC026. Callers: custody_worker.';

-- definer: as record_segment_hold
create or replace function custody.record_segment_gone(p_day date, p_part integer)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('archive');
  -- Who had events on that day, nobody needs to know any more.
  update custody_data.archive_segments s set objects_deleted_at = clock_timestamp(), people = null
  where s.tenant_id = 'system' and s.day = p_day and s.part = p_part and s.expired_at is not null and s.objects_deleted_at is null;
  if found then
    return true;
  end if;
  if not exists (select from custody_data.archive_segments s where s.tenant_id = 'system' and s.day = p_day and s.part = p_part and s.objects_deleted_at is not null) then
    raise exception using
      errcode = 'PC029',
      message = format('segment %s.%s has not expired', p_day, p_part),
      hint = 'Only objects of segments that custody.expire_segments returned are deleted.';
  end if;
  return false;
end
$$;
revoke all on function custody.record_segment_gone(date, integer) from public;
grant execute on function custody.record_segment_gone(date, integer) to custody_worker;
comment on function custody.record_segment_gone(date, integer) is
'Records that the objects of an expired segment were deleted; false where that is on record.
Errors: PC001, PC015 outside tenant system, PC026, PC029 not expired. Callers: custody_worker.';
