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
create or replace function custody.drop_access_months(p_limit integer default 1, p_as_of timestamptz default now())
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
  if p_limit is null or p_limit not between 1 and 100 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 100 months.';
  end if;
  if p_as_of is null or not isfinite(p_as_of) or p_as_of > now() then
    raise exception using errcode = 'PC009', message = 'time out of range: p_as_of is in the future', hint = 'Nothing goes before its time.';
  end if;
  v_keep := custody_data.keep_of('access');
  for v_name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'custody_data.access_events'::regclass and c.relnamespace = 'custody_data'::regnamespace and c.relname ~ '^access_events_\d{4}_\d\d$'
      and (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' + v_keep) at time zone 'UTC' <= p_as_of
    order by c.relname
    limit p_limit
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
revoke all on function custody.drop_access_months(integer, timestamptz) from public;
grant execute on function custody.drop_access_months(integer, timestamptz) to custody_worker;
comment on function custody.drop_access_months(integer, timestamptz) is
'Drops the oldest months of access_events that ended longer ago than the policy access asks, and returns their names. Each is an event (retention.run, with the rows by the planner''s estimate) of the same transaction. Legal holds keep the trail and the records, and the batches stay in the store for shipped_logs: months here go all the same.
Set lock_timeout before, as for custody.drop_archived_partitions: a drop locks access_events, and who ships or asks queues behind it.
p_limit: 1 to 100 months. p_as_of: not in the future.
Errors: PC001, PC009, PC015 outside tenant system, PC023, PC026. Callers: custody_worker.';

-- definer: batches, places and findings are written by this function alone
create or replace function custody.record_log_batch(p_batch jsonb, p_state bytea, p_spool bytea default null)
returns timestamptz
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := now();
  v_source constant text := p_batch ->> 'source';
  v_number constant bigint := (p_batch ->> 'number')::bigint;
  v_place custody_data.log_sources;
  v_last record;
  v_findings bigint;
begin
  perform custody_data.require_all_tenants('shipping of logs');
  if v_source is null or p_state is null or not (p_batch ?& array['format', 'file_name', 'to_offset', 'to_head', 'to_tail']) then
    raise exception using errcode = 'PC023', message = 'a place needs its source, format, file, offset and digests', hint = 'Call it as the runner does.';
  end if;
  -- Batches have one number after the other, whatever their sources.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.log_batches', 0));
  select s.* into v_place from custody_data.log_sources s where s.tenant_id = 'system' and s.source = v_source;
  if (v_place.file_name, v_place.file_offset) is distinct from (p_batch ->> 'from_file', (p_batch ->> 'from_offset')::bigint) then
    raise exception using
      errcode = 'PC070',
      message = format('the log of %s has been shipped further by another run', v_source),
      detail = format('It is at byte %s of %s.', v_place.file_offset, v_place.file_name),
      hint = 'Nothing is lost: begin again from custody_data.log_sources.';
  end if;

  insert into custody_data.log_sources as s (source, format, file_name, file_offset, file_head, file_tail, state, last_line_at)
  values (v_source, p_batch ->> 'format', p_batch ->> 'file_name', (p_batch ->> 'to_offset')::bigint, decode(p_batch ->> 'to_head', 'hex'), decode(p_batch ->> 'to_tail', 'hex'),
    p_state, (p_batch ->> 'last_occurred_at')::timestamptz)
  on conflict (tenant_id, source) do update
  set file_name = excluded.file_name, file_offset = excluded.file_offset, file_head = excluded.file_head, file_tail = excluded.file_tail,
    state = excluded.state, last_line_at = greatest(s.last_line_at, excluded.last_line_at), updated_at = clock_timestamp();

  -- What a session repeats within a batch is one finding.
  insert into custody_data.log_findings (finding_id, source, batch, kind, session_id, line_from, line_to, occurrences, occurred_at, detail)
  select custody_data.new_entry_id(), v_source, v_number, f.kind, left(f.session_id, 64), f.line_from, f.line_to, coalesce(f.occurrences, 1), f.occurred_at, coalesce(f.detail, '{}')
  from jsonb_to_recordset(coalesce(p_batch -> 'findings', '[]')) f (kind text, session_id text, line_from bigint, line_to bigint, occurrences bigint, occurred_at timestamptz, detail jsonb);
  get diagnostics v_findings = row_count;

  if v_number is not null then
    select b.number, b.manifest_sha256 into v_last from custody_data.log_batches b where b.tenant_id = 'system' order by b.number desc limit 1;
    if v_number <> coalesce(v_last.number, 0) + 1
        or decode(p_batch ->> 'previous_sha256', 'hex') <> coalesce(v_last.manifest_sha256, decode(repeat('00', 32), 'hex')) then
      raise exception using
        errcode = 'PC071',
        message = format('batch %s of logs does not follow the one before', v_number),
        detail = format('The last one is %s.', coalesce(v_last.number, 0)),
        hint = 'Another run was faster: begin again.';
    end if;
    insert into custody_data.log_batches (number, source, file_name, file_from, file_to, object_key, manifest_key, sha256, compressed_sha256, manifest_sha256, previous_sha256,
      lines, bytes, stored_bytes, first_occurred_at, last_occurred_at, counts, recorded_at, expires_at)
    values (v_number, v_source, p_batch ->> 'batch_file', (p_batch ->> 'batch_from')::bigint, (p_batch ->> 'batch_to')::bigint, p_batch ->> 'object_key', p_batch ->> 'manifest_key',
      decode(p_batch ->> 'sha256', 'hex'), decode(p_batch ->> 'compressed_sha256', 'hex'), decode(p_batch ->> 'manifest_sha256', 'hex'), decode(p_batch ->> 'previous_sha256', 'hex'),
      (p_batch ->> 'lines')::bigint, (p_batch ->> 'bytes')::bigint, (p_batch ->> 'stored_bytes')::bigint,
      (p_batch ->> 'first_occurred_at')::timestamptz, (p_batch ->> 'last_occurred_at')::timestamptz, coalesce(p_batch -> 'counts', '{}'), v_now, (p_batch ->> 'retain_until')::timestamptz);
    perform custody_data.append_event('log.ship', 'log_batch', v_number::text, 'success', jsonb_build_object('batch', v_number, 'source', v_source,
      'object_key', p_batch -> 'object_key', 'sha256', p_batch -> 'sha256', 'manifest_sha256', p_batch -> 'manifest_sha256', 'previous_sha256', p_batch -> 'previous_sha256',
      'lines', p_batch -> 'lines', 'bytes', p_batch -> 'bytes', 'findings', v_findings), null);
    if p_spool is not null then
      insert into custody_data.log_spool (number, compressed) values (v_number, p_spool);
    end if;
    if to_regclass('custody_data.access_events_' || to_char(v_now at time zone 'UTC', 'YYYY_MM')) is null then
      perform custody_data.ensure_access_partitions(v_now, v_now);
    end if;
  end if;
  if v_findings > 0 then
    perform pg_notify('pgcustody_log_findings', json_build_object('source', v_source, 'batch', v_number, 'findings', v_findings)::text);
  end if;
  return v_now;
end
$$;
revoke all on function custody.record_log_batch(jsonb, bytea, bytea) from public;
grant execute on function custody.record_log_batch(jsonb, bytea, bytea) to custody_worker;
comment on function custody.record_log_batch(jsonb, bytea, bytea) is
'Records that the log of a source has been read up to a place, what was found on the way, and the batch that its lines went into, which lies in the store already. A batch is an event (log.ship) of the same transaction; findings are told on the channel pgcustody_log_findings. Returns the recorded_at of the batch, with which custody.add_access_events goes on in the same transaction.
p_batch: source, format; from_file and from_offset, the place that it goes on from; file_name, to_offset, to_head, to_tail, the new one; findings; and of a batch, which a place without lines has not: number, batch_file, batch_from, batch_to, object_key, manifest_key, sha256, compressed_sha256, manifest_sha256, previous_sha256, lines, bytes, stored_bytes, first_occurred_at, last_occurred_at, counts, retain_until. p_state: of the runner, to go on with. p_spool: the lines, for sinks.
Errors: PC001, PC015 outside tenant system, PC023, PC026 isolation level, PC070 another run was faster, PC071 the batch does not follow the last one. Callers: custody_worker.';

-- definer: access events are written by this function alone
create or replace function custody.add_access_events(
  p_batch bigint, p_tenants text[], p_kinds text[], p_classes text[], p_actions text[], p_objects text[], p_logins text[], p_roles text[], p_actors text[],
  p_purposes text[], p_clients text[], p_applications text[], p_sessions text[], p_states text[],
  p_sorts integer[], p_lines integer[], p_parts integer[], p_occurred_at timestamptz[], p_people text[], p_rows bigint[], p_vxids text[], p_xacts bigint[], p_event_lines text[], p_event_xids bigint[]
)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- A sort is looked up by its number: how many there are the planner cannot know.
set enable_nestloop = off
set enable_mergejoin = off
as $$
declare
  v_recorded_at timestamptz;
  v_rows bigint;
begin
  perform custody_data.require_all_tenants('shipping of logs');
  select b.recorded_at into v_recorded_at from custody_data.log_batches b where b.tenant_id = 'system' and b.number = p_batch;
  if v_recorded_at is distinct from now() then
    raise exception using
      errcode = 'PC072',
      message = format('batch %s of logs was not recorded in this transaction', coalesce(p_batch::text, 'null')),
      hint = 'Access events go with their batch: custody.record_log_batch comes first, in the same transaction.';
  end if;
  with sorts as materialized (
    select s.n, coalesce(nullif(s.tenant, ''), 'system')::custody_data.tenant_name as tenant_id, s.kind, nullif(s.class, '') as class, nullif(s.action, '') as action,
      nullif(s.object, '') as object_name, nullif(s.login, '') as login, nullif(s.role, '') as role,
      case when s.actor <> '' and left(s.actor, 1) <> '~' then s.actor::uuid end as actor_id, case when left(s.actor, 1) = '~' then s.actor end as actor_pseudonym,
      nullif(s.purpose, '') as purpose, nullif(s.client, '')::inet as client, nullif(s.application, '') as application, s.session, nullif(s.state, '') as state_code
    from unnest(p_tenants, p_kinds, p_classes, p_actions, p_objects, p_logins, p_roles, p_actors, p_purposes, p_clients, p_applications, p_sessions, p_states)
      with ordinality s (tenant, kind, class, action, object, login, role, actor, purpose, client, application, session, state, n)
  )
  insert into custody_data.access_events (tenant_id, recorded_at, batch, line, part, occurred_at, kind, class, action, object_name, login, role,
    actor_id, actor_pseudonym, purpose, identity_id, rows, client, application, session_id, vxid, xact_at, event_line, event_xid, state_code)
  select s.tenant_id, v_recorded_at, p_batch, u.line, coalesce(u.part, 0), u.occurred_at, s.kind, s.class, s.action, s.object_name, s.login, s.role,
    s.actor_id, s.actor_pseudonym, s.purpose, nullif(u.person, '')::uuid, nullif(u.n, -1), s.client, s.application, s.session, nullif(u.vxid, ''),
    case when u.xact > 0 then timestamptz 'epoch' + u.xact * interval '1 microsecond' end, nullif(u.event_line, ''),
    case when u.event_xid > 0 then u.event_xid::text::xid8 end, s.state_code
  from (
    -- In the list, not in FROM: there each array would be written down first.
    select unnest(p_sorts) as sort, unnest(p_lines) as line, unnest(p_parts) as part, unnest(p_occurred_at) as occurred_at, unnest(p_people) as person, unnest(p_rows) as n,
      unnest(p_vxids) as vxid, unnest(p_xacts) as xact, unnest(p_event_lines) as event_line, unnest(p_event_xids) as event_xid
  ) u
  -- A row of no sort has no kind, and is refused.
  left join sorts s on s.n = u.sort;
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;
revoke all on function custody.add_access_events(bigint, text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], integer[], integer[], integer[], timestamptz[], text[], bigint[], text[], bigint[], text[], bigint[]) from public;
grant execute on function custody.add_access_events(bigint, text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], integer[], integer[], integer[], timestamptz[], text[], bigint[], text[], bigint[], text[], bigint[]) to custody_worker;
comment on function custody.add_access_events(bigint, text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], text[], integer[], integer[], integer[], timestamptz[], text[], bigint[], text[], bigint[], text[], bigint[]) is
'Adds access events to a batch that the same transaction has recorded, and returns how many. What most of them have in common stands once: the arrays from p_tenants to p_states have one place for each sort of event; those from p_sorts on one for each event, the first of which says its sort, from 1. p_parts and the arrays from p_people on may be empty where no event has anything there. Empty texts, -1 rows, an xact of 0 and an event of transaction 0 are none; an actor that begins with ~ is a pseudonym. COPY is refused by Postgres under row-level security.
Errors: PC001, PC015 outside tenant system, PC026, PC072 the batch is not of this transaction. Callers: custody_worker.';

-- definer: places of sinks are written by this function alone
create or replace function custody.mark_sink(p_sink text, p_batch bigint, p_line bigint, p_trail_leaf bigint, p_sent bigint, p_error text default null)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('shipping of logs');
  if p_sink is null or p_batch is null or p_line is null or p_trail_leaf is null or p_sent is null then
    raise exception using errcode = 'PC023', message = 'a sink needs its name and its place', hint = 'Call it as the runner does.';
  end if;
  insert into custody_data.log_sinks as s (sink, batch, line, trail_leaf, sent_lines, sent_at, failed_at, failures, last_error)
  values (p_sink, p_batch, p_line, p_trail_leaf, p_sent, case when p_error is null then now() end, case when p_error is not null then now() end,
    (p_error is not null)::integer, left(p_error, 200))
  on conflict (tenant_id, sink) do update
  set batch = excluded.batch, line = excluded.line, trail_leaf = excluded.trail_leaf, sent_lines = s.sent_lines + excluded.sent_lines,
    sent_at = coalesce(excluded.sent_at, s.sent_at), failed_at = coalesce(excluded.failed_at, s.failed_at),
    failures = case when p_error is null then 0 else s.failures + 1 end, last_error = excluded.last_error, updated_at = clock_timestamp();
end
$$;
revoke all on function custody.mark_sink(text, bigint, bigint, bigint, bigint, text) from public;
grant execute on function custody.mark_sink(text, bigint, bigint, bigint, bigint, text) to custody_worker;
comment on function custody.mark_sink(text, bigint, bigint, bigint, bigint, text) is
'Says how far a sink is: the batch and how many lines of it, the leaf of the trail below which events were sent, how many lines were sent now, and the error that ended it. Errors: PC001, PC015 outside tenant system, PC023, PC026. Callers: custody_worker.';

-- definer: the spool is emptied by this function alone
create or replace function custody.trim_log_spool(p_sinks text[], p_source text)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_taken bigint;
  v_old bigint;
  v_rows bigint;
begin
  perform custody_data.require_all_tenants('shipping of logs');
  select coalesce(min(coalesce(s.batch, 0)), 0) into v_taken
  from unnest(p_sinks) n (sink) left join custody_data.log_sinks s on s.tenant_id = 'system' and s.sink = n.sink;
  if cardinality(p_sinks) = 0 then
    v_taken := 9223372036854775807;
  end if;
  select max(p.number) into v_old from custody_data.log_spool p where p.tenant_id = 'system' and p.recorded_at < now() - interval '7 days';
  if v_old >= v_taken then
    insert into custody_data.log_findings (finding_id, source, batch, kind, occurrences, detail)
    select custody_data.new_entry_id(), p_source, v_old, 'sink_behind', v_old - v_taken + 1, jsonb_build_object('sinks', p_sinks);
    perform pg_notify('pgcustody_log_findings', json_build_object('source', p_source, 'batch', v_old, 'findings', 1)::text);
  end if;
  delete from custody_data.log_spool p where p.tenant_id = 'system' and (p.number < v_taken or p.number <= v_old);
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;
revoke all on function custody.trim_log_spool(text[], text) from public;
grant execute on function custody.trim_log_spool(text[], text) to custody_worker;
comment on function custody.trim_log_spool(text[], text) is
'Lets go the batches in the spool that all the sinks named have taken, and those of a week ago: that a sink had not taken them is a finding (sink_behind). Returns how many went. Errors: PC001, PC015 outside tenant system, PC026. Callers: custody_worker.';

create or replace function custody.due_log_batches(p_limit integer)
returns setof custody_data.log_batches
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_context();
  return query
    select b.* from custody_data.log_batches b
    where b.tenant_id = 'system' and b.deleted_at is null and b.expires_at < now() and b.recorded_at < now() - custody_data.keep_of('shipped_logs')
    order by b.expires_at
    limit p_limit;
end
$$;
revoke all on function custody.due_log_batches(integer) from public;
grant execute on function custody.due_log_batches(integer) to custody_worker;
comment on function custody.due_log_batches(integer) is 'Batches whose lock has ended and that the policy shipped_logs, as it is now, keeps no longer, p_limit of them at most, in the context of tenant system. Errors: PC001, PC012 no policy. Callers: custody_worker.';

-- definer: batches are written by these functions alone
create or replace function custody.mark_log_batch_deleted(p_number bigint)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch custody_data.log_batches;
begin
  perform custody_data.require_all_tenants('shipping of logs');
  update custody_data.log_batches b set deleted_at = now()
  where b.tenant_id = 'system' and b.number = p_number and b.deleted_at is null and b.expires_at < now() and b.recorded_at < now() - custody_data.keep_of('shipped_logs')
  returning b.* into v_batch;
  if not found then
    raise exception using
      errcode = 'PC073',
      message = format('batch %s of logs is not due', coalesce(p_number::text, 'null')),
      hint = 'custody.due_log_batches lists those that are.';
  end if;
  perform custody_data.append_event('log.expire', 'log_batch', p_number::text, 'success',
    jsonb_build_object('batch', p_number, 'object_key', v_batch.object_key, 'sha256', encode(v_batch.sha256, 'hex')), null);
end
$$;
revoke all on function custody.mark_log_batch_deleted(bigint) from public;
grant execute on function custody.mark_log_batch_deleted(bigint) to custody_worker;
comment on function custody.mark_log_batch_deleted(bigint) is
'Says that the objects of a batch were deleted after their time; an event (log.expire). Errors: PC001, PC015 outside tenant system, PC026, PC073 not due. Callers: custody_worker.';

-- definer: findings are written by these functions alone
create or replace function custody.add_log_findings(p_source text, p_findings jsonb)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_rows bigint;
begin
  perform custody_data.require_all_tenants('shipping of logs');
  -- What was said within a day is not said again.
  insert into custody_data.log_findings (finding_id, source, batch, kind, session_id, line_from, line_to, occurrences, occurred_at, detail)
  select custody_data.new_entry_id(), p_source, f.batch, f.kind, left(f.session_id, 64), f.line_from, f.line_to, coalesce(f.occurrences, 1), f.occurred_at, coalesce(f.detail, '{}')
  from jsonb_to_recordset(coalesce(p_findings, '[]')) f (kind text, batch bigint, session_id text, line_from bigint, line_to bigint, occurrences bigint, occurred_at timestamptz, detail jsonb)
  where not exists (
    select from custody_data.log_findings k
    where k.tenant_id = 'system' and k.source = p_source and k.kind = f.kind and k.batch is not distinct from f.batch and k.detail = coalesce(f.detail, '{}')
      and k.session_id is not distinct from f.session_id and k.found_at > now() - interval '1 day');
  get diagnostics v_rows = row_count;
  if v_rows > 0 then
    perform pg_notify('pgcustody_log_findings', json_build_object('source', p_source, 'findings', v_rows)::text);
  end if;
  return v_rows;
end
$$;
revoke all on function custody.add_log_findings(text, jsonb) from public;
grant execute on function custody.add_log_findings(text, jsonb) to custody_worker;
comment on function custody.add_log_findings(text, jsonb) is
'Records findings that are of no batch''s reading: of files, and of the objects in the store. The same within a day is recorded once. Returns how many were. Errors: PC001, PC015 outside tenant system, PC026. Callers: custody_worker.';

create or replace function custody.sealed_entries(p_from bigint, p_to bigint)
returns table (leaf bigint, entry text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
-- nested loops by (xid, log_entry_id): what the planner would make of the map's arrays is far too much
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  perform custody_data.require_context();
  return query
    select l.leaf, e.entry
    from (
      select t.tile_index * 256 + i as leaf, encode(substr(t.entry_ids, i * 16 + 1, 16), 'hex')::uuid as log_entry_id,
        ('x' || encode(substr(t.xids, i * 8 + 1, 8), 'hex'))::bit(64)::bigint::text::xid8 as xid
      from custody_data.ledger_entries t
      cross join lateral generate_series(0, octet_length(t.entry_ids) / 16 - 1) i
      where t.tenant_id = 'system' and t.tile_index >= p_from / 256 and t.tile_index <= p_to / 256
    ) l
    join custody.audit_entries e on e.xid = l.xid and e.log_entry_id = l.log_entry_id
    where l.leaf >= p_from and l.leaf < p_to
    order by l.leaf;
end
$$;
revoke all on function custody.sealed_entries(bigint, bigint) from public;
grant execute on function custody.sealed_entries(bigint, bigint) to custody_worker;
comment on function custody.sealed_entries(bigint, bigint) is 'Canonical entries of the leaves from p_from to before p_to, those whose events are in Postgres still: of all tenants in the context of tenant system. What sinks are sent of the trail: in the order of leaves nothing is missed. Errors: PC001. Callers: custody_worker.';
