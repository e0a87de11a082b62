-- Restored events: fetching from the archive is recorded, and what is let in is what was sealed.
-- control: HIPAA 164.308(a)(7)(ii)(B), 164.312(b), (c)(1); GDPR Art. 5(1)(e), 5(2); SOC 2 CC7.3; ISO 27001 A.8.15
-- reviewed by: DBA, auditor, privacy officer
--
-- Who holds an identity (the age key) of the archive reads it with pgcustody archive restore. The beginning is an event
-- that is committed before the first line is handed out, the end another one with the counts. Into the database a line
-- comes only if the ledger has its hash as that leaf, whoever brings it.

create or replace function custody_data.parse_entry_time(p_text text)
returns timestamptz
language sql
stable
parallel safe
return case when p_text like '-%' and p_text <> '-infinity' then (substr(p_text, 2) || ' BC')::timestamptz else p_text::timestamptz end;
revoke all on function custody_data.parse_entry_time(text) from public;
comment on function custody_data.parse_entry_time(text) is 'The time that entry_time wrote.';

-- definer: records are written by these functions alone
create or replace function custody.begin_restore(
  p_from timestamptz,
  p_to timestamptz,
  p_tenant text default null,
  p_identity uuid default null,
  p_log_entry_id uuid default null,
  p_action text default null,
  p_reason text default null,
  p_keep interval default null
)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_of_tenant constant text := coalesce(p_tenant, nullif(v_tenant, 'system'));
  v_keep constant interval := custody_data.keep_of('restored');
  v_restore custody_data.archive_restores;
begin
  if p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_to <= p_from then
    raise exception using errcode = 'PC009', message = 'time out of range: a restore needs p_from before p_to, both finite',
      hint = 'Bound it in time: only the segments between are read.';
  end if;
  if v_tenant <> 'system' and v_of_tenant <> v_tenant then
    raise exception using errcode = 'PC015', message = 'the events of another tenant are not for this context',
      hint = 'Set the context of that tenant.';
  end if;
  if p_identity is not null and v_of_tenant is null then
    raise exception using errcode = 'PC023', message = 'a person is of one tenant', hint = 'Give p_tenant, or set the context of the tenant.';
  end if;
  if coalesce(btrim(p_reason), '') = '' or char_length(p_reason) > 2000 then
    raise exception using errcode = 'PC023', message = 'a restore needs a reason', hint = 'Say in 1 to 2000 characters why the events are needed, without naming the person.';
  end if;
  if p_keep <= interval '0' or p_keep > v_keep then
    raise exception using errcode = 'PC023', message = 'invalid p_keep', detail = format('The policy restored allows %s.', v_keep),
      hint = 'Give a time that is not longer, or leave it out for as long as the policy allows.';
  end if;
  insert into custody_data.archive_restores (tenant_id, range_from, range_to, of_tenant, identity_id, log_entry_id, action, reason, restored_by, expires_at)
  values (v_tenant, p_from, p_to, v_of_tenant, p_identity, p_log_entry_id, p_action, p_reason, custody_data.require_actor(), now() + coalesce(p_keep, v_keep))
  returning * into v_restore;
  perform custody_data.append_event('archive.restore', 'audit_logs', null, 'success', jsonb_strip_nulls(jsonb_build_object(
    'restore_id', v_restore.restore_id, 'from', custody_data.entry_time(p_from), 'to', custody_data.entry_time(p_to), 'tenant', v_of_tenant,
    'by_person', p_identity is not null, 'log_entry_id', p_log_entry_id, 'action', p_action, 'reason', p_reason,
    'expires_at', custody_data.entry_time(v_restore.expires_at))), p_identity);
  return v_restore.restore_id;
end
$$;
revoke all on function custody.begin_restore(timestamptz, timestamptz, text, uuid, uuid, text, text, interval) from public;
grant execute on function custody.begin_restore(timestamptz, timestamptz, text, uuid, uuid, text, text, interval) to custody_worker, custody_privacy, custody_auditor;
comment on function custody.begin_restore(timestamptz, timestamptz, text, uuid, uuid, text, text, interval) is
'Records that events are fetched from the archive, by whom and why, and returns the id of the restore; an event (archive.restore). Commit before a line is handed out.
p_from (inclusive), p_to (exclusive): bounds of occurred_at. p_tenant: events of this tenant alone; in tenant system null stands for all. p_identity: events about or by this identity; needs a tenant. p_log_entry_id, p_action: only these. p_reason: 1 to 2000 characters, names nobody. p_keep: for how long rows of custody.restored_events stay, at most and by default the policy restored.
Errors: PC001, PC009, PC015 another tenant, or confined to one person, PC023. Callers: custody_worker, custody_privacy, custody_auditor.';

-- definer: as begin_restore; a restore in tenant system brings events of all tenants
create or replace function custody.add_restored_events(p_restore_id uuid, p_object_key text, p_leaves bigint[], p_entries text[])
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_restore custody_data.archive_restores;
  v_leaf bigint;
  v_others bigint;
  v_added bigint;
begin
  select r.* into v_restore from custody_data.archive_restores r where r.tenant_id = v_tenant and r.restore_id = p_restore_id for key share;
  if not found or v_restore.finished_at is not null or v_restore.expires_at <= now() then
    raise exception using errcode = 'PC023', message = format('restore %s takes no events', coalesce(p_restore_id::text, 'null')),
      detail = case when v_restore.finished_at is not null then 'It is finished.' when v_restore.expires_at <= now() then 'It has expired.'
        else 'The tenant in context has no such restore.' end,
      hint = 'Begin another with custody.begin_restore.';
  end if;
  if cardinality(p_leaves) is distinct from cardinality(p_entries) or cardinality(p_leaves) is null or cardinality(p_leaves) not between 1 and 100000
      or array_position(p_leaves, null) is not null or array_position(p_entries, null) is not null then
    raise exception using errcode = 'PC023', message = 'invalid p_leaves or p_entries', hint = 'Give 1 to 100000 entries, and of each the index of its leaf.';
  end if;
  if not exists (
    select from custody_data.archive_segments s
    where s.tenant_id = 'system' and s.object_key = p_object_key and s.recorded_at is not null and s.superseded_at is null
      and s.leaves @> (select range_agg(int8range(l.leaf, l.leaf, '[]')) from unnest(p_leaves) l (leaf))
  ) then
    raise exception using errcode = 'PC029', message = 'no segment on record has that object and these leaves',
      hint = 'Give the object_key of a row of custody.archive_segments, and leaves of it.';
  end if;

  -- Each tile once: a slice of what is stored out of line costs as much as the whole.
  with tiles as materialized (
    select t.tile_index, t.hashes || ''::bytea as hashes
    from custody_data.ledger_tiles t
    where t.tenant_id = 'system' and t.level = 0 and t.tile_index in (select l.leaf / 256 from unnest(p_leaves) l (leaf))
  )
  select l.leaf into v_leaf
  from unnest(p_leaves, p_entries) l (leaf, entry)
  left join tiles t on t.tile_index = l.leaf / 256
  where substr(t.hashes, (l.leaf % 256 * 32 + 1)::integer, 32) is distinct from sha256('\x00'::bytea || convert_to(l.entry, 'UTF8'))
  limit 1;
  if found then
    raise exception using errcode = 'PC041', message = format('line for leaf %s is not what was sealed', v_leaf),
      hint = 'Nothing of this call was let in. Run pgcustody archive verify and have the case looked at.';
  end if;

  with lines as materialized (
    select x.leaf, x.entry, x.j ->> 'tenant_id' as tenant_id, (x.j ->> 'log_entry_id')::uuid as log_entry_id,
      custody_data.parse_entry_time(x.j ->> 'occurred_at') as occurred_at, custody_data.parse_entry_time(x.j ->> 'recorded_at') as recorded_at,
      (x.j ->> 'actor_id')::uuid as actor_id, (x.j ->> 'subject_id')::uuid as subject_id, x.j ->> 'action' as action,
      x.j ->> 'resource_type' as resource_type, x.j ->> 'resource_id' as resource_id, x.j ->> 'result' as result, x.j ->> 'purpose' as purpose,
      x.j -> 'metadata' as metadata, decode(x.j ->> 'personal', 'base64') as personal, (x.j ->> 'import_id')::uuid as import_id,
      x.j ->> 'db_role' as db_role, (x.j ->> 'xid')::xid8 as xid
    from (select l.leaf, l.entry, l.entry::jsonb as j from unnest(p_leaves, p_entries) l (leaf, entry) offset 0) x
  ), asked as materialized (
    select l.*, coalesce(l.occurred_at >= v_restore.range_from and l.occurred_at < v_restore.range_to
      and (v_restore.of_tenant is null or l.tenant_id = v_restore.of_tenant)
      and (v_restore.identity_id is null or l.actor_id = v_restore.identity_id or l.subject_id = v_restore.identity_id)
      and (v_restore.log_entry_id is null or l.log_entry_id = v_restore.log_entry_id)
      and (v_restore.action is null or l.action = v_restore.action), false) as fits
    from lines l
  ), added as (
    insert into custody_data.restored_events (tenant_id, restore_id, leaf_index, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action,
      resource_type, resource_id, result, purpose, metadata, personal, import_id, db_role, xid, entry, restored_from, expires_at)
    select a.tenant_id, p_restore_id, a.leaf, a.log_entry_id, a.occurred_at, a.recorded_at, a.actor_id, a.subject_id, a.action,
      a.resource_type, a.resource_id, a.result, a.purpose, a.metadata, a.personal, a.import_id, a.db_role, a.xid, a.entry, p_object_key,
      -- a tenant's own policy may be shorter than the shared one
      least(v_restore.expires_at, v_restore.begun_at + p.keep)
    from asked a
    left join custody_data.retention_policies p on p.tenant_id = a.tenant_id and p.class = 'restored'
    where a.fits
    on conflict do nothing
    returning 1
  )
  select (select count(*) from asked a where not a.fits), (select count(*) from added) into v_others, v_added;
  if v_others > 0 then
    raise exception using errcode = 'PC023', message = format('%s entries are not among what restore %s asked for', v_others, p_restore_id),
      hint = 'Nothing of this call was let in. Begin a restore that asks for them: its record says what was fetched.';
  end if;
  return v_added;
end
$$;
revoke all on function custody.add_restored_events(uuid, text, bigint[], text[]) from public;
grant execute on function custody.add_restored_events(uuid, text, bigint[], text[]) to custody_worker, custody_privacy, custody_auditor;
comment on function custody.add_restored_events(uuid, text, bigint[], text[]) is
'Puts canonical entries into custody.restored_events, all or none, and returns how many were not there yet. Each must be what its restore asked for, and have its hash in the ledger as that leaf.
p_object_key: of the recorded segment that they are from. p_leaves: index of each entry''s leaf. p_entries: 1 to 100000 entries.
Errors: PC001, PC015 confined to one person, PC023, PC029 no segment has that object and these leaves, PC041 not what was sealed. Callers: custody_worker, custody_privacy, custody_auditor.';

-- definer: as begin_restore
create or replace function custody.finish_restore(p_restore_id uuid, p_rows bigint, p_segments bigint)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_identity_id uuid;
begin
  if p_rows is null or p_rows < 0 or p_segments is null or p_segments < 0 then
    raise exception using errcode = 'PC023', message = 'invalid p_rows or p_segments', hint = 'Give how many events were handed out, and how many segments were read.';
  end if;
  update custody_data.archive_restores r
  set finished_at = clock_timestamp(), rows = p_rows, segments_read = p_segments
  where r.tenant_id = v_tenant and r.restore_id = p_restore_id and r.finished_at is null
  returning r.identity_id into v_identity_id;
  if found then
    perform custody_data.append_event('archive.restore', 'audit_logs', null, 'success',
      jsonb_build_object('restore_id', p_restore_id, 'rows', p_rows, 'segments', p_segments), v_identity_id);
  elsif not exists (select from custody_data.archive_restores r where r.tenant_id = v_tenant and r.restore_id = p_restore_id) then
    raise exception using errcode = 'PC023', message = format('unknown restore %s', coalesce(p_restore_id::text, 'null')),
      hint = 'custody.archive_restores lists those of the tenant in context.';
  end if;
end
$$;
revoke all on function custody.finish_restore(uuid, bigint, bigint) from public;
grant execute on function custody.finish_restore(uuid, bigint, bigint) to custody_worker, custody_privacy, custody_auditor;
comment on function custody.finish_restore(uuid, bigint, bigint) is
'Records how a restore ended: how many events were handed out, and how many segments were read for them; an event (archive.restore). One that is finished stays as it is.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.archive_restores with (security_invoker = true) as
select r.tenant_id, r.restore_id, r.range_from, r.range_to, r.of_tenant, r.identity_id, r.log_entry_id, r.action, r.reason, r.restored_by,
  r.begun_at, r.finished_at, r.expires_at, r.segments_read, r.rows
from custody_data.archive_restores r;
grant select on custody.archive_restores to custody_worker, custody_privacy, custody_auditor;
comment on view custody.archive_restores is 'What was fetched from the archive in the context of this tenant, by whom and why. Readers: custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.restored_events with (security_invoker = true) as
select e.tenant_id, e.restored_from, e.restore_id, e.expires_at, e.leaf_index, e.log_entry_id, e.occurred_at, e.recorded_at, e.actor_id, e.subject_id,
  e.action, e.resource_type, e.resource_id, e.result, e.purpose, e.metadata, e.personal, e.import_id, e.db_role, e.xid, e.entry
from custody_data.restored_events e
where e.expires_at > pg_catalog.now();
grant select on custody.restored_events to custody_worker, custody_privacy, custody_auditor;
comment on view custody.restored_events is
'Events of the tenant in context that were fetched from the archive, until they expire: restored_from is the object that they are from, restore_id the row of custody.archive_restores that says for whom and why. Not the trail, which is custody.audit_events. personal is sealed as there. Readers: custody_worker (in tenant system of all tenants), custody_privacy, custody_auditor.';
