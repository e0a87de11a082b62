-- Legal holds: what must stay although erasure or retention would take it.
-- control: FRCP 37(e); GDPR Art. 17(3)(e), 18; HIPAA 164.530(j)
-- reviewed by: privacy officer, legal, DBA

-- definer: guards and erasure must see every hold of the tenant
create or replace function custody_data.active_holds()
returns setof custody_data.legal_holds
language sql
stable
security definer
rows 10
set search_path = pg_catalog, pg_temp
as $$
  select h.* from custody_data.legal_holds h
  where h.released_at is null and (h.until_at is null or h.until_at > now());
$$;
revoke all on function custody_data.active_holds() from public;
comment on function custody_data.active_holds() is 'Holds of the tenant in context that stand now; of all tenants in tenant system.';

create or replace view custody.holds with (security_invoker = true) as
select h.tenant_id, h.hold_id, h.scope, h.identity_id, h.table_name, h.row_id, h.reference, h.reason, h.placed_by, h.placed_at,
  h.until_at, h.released_at, h.released_by, h.release_reason,
  h.released_at is null and (h.until_at is null or h.until_at > pg_catalog.now()) as active, h.event_day
from custody_data.legal_holds h;
grant select on custody.holds to custody_privacy, custody_worker, custody_auditor;
comment on view custody.holds is 'All legal holds of the tenant, with whether each stands now. Readers: custody_privacy, custody_worker, custody_auditor.';

-- definer: holds are written by these functions alone
create or replace function custody.place_hold(p_scope jsonb, p_reference text, p_reason text, p_until timestamptz default null)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_table constant text := p_scope ->> 'table';
  v_row_id text := p_scope ->> 'row';
  v_user_id constant text := p_scope ->> 'user_id';
  v_scope text;
  v_identity_id uuid;
  v_hold_id uuid;
  v_matches bigint;
  v_day date;
begin
  v_scope := case
    when p_scope is null or jsonb_typeof(p_scope) <> 'object' then null
    when p_scope = '{"tenant": true}' then 'tenant'
    when p_scope ?& array['table', 'row'] and p_scope - array['table', 'row', 'user_id'] = '{}' then 'row'
    when p_scope ?& array['table', 'row', 'day'] and p_scope - array['table', 'row', 'day'] = '{}' and v_table = 'audit_logs' then 'row'
    when p_scope ? 'user_id' and p_scope - 'user_id' = '{}' then 'person'
  end;
  if v_scope is null then
    raise exception using
      errcode = 'PC023',
      message = 'invalid scope of a hold',
      hint = 'Give {"tenant": true}, {"user_id": "…"} or {"table": "…", "row": "…"}, for a conversation with its user_id, for an event that is in the archive alone with its day.';
  end if;
  if coalesce(btrim(p_reference), '') = '' or char_length(p_reference) > 256 or coalesce(btrim(p_reason), '') = '' or char_length(p_reason) > 2000 then
    raise exception using errcode = 'PC023', message = 'a hold needs a reference and a reason',
      hint = 'Give the number of the case and why it needs the data, without naming the person.';
  end if;
  if p_until is not null and (not isfinite(p_until) or p_until <= now()) then
    raise exception using errcode = 'PC009', message = 'time out of range: p_until is not in the future', hint = 'Leave it out for a hold without end.';
  end if;
  perform custody_data.require_read_committed();
  perform custody_data.lock_holds(v_tenant, true);

  if v_user_id is not null then
    v_identity_id := custody_data.require_person(v_user_id);
  end if;
  if v_scope = 'row' then
    case v_table
      when 'user_profiles', 'user_preferences' then
        -- such a row is named by its person
        v_identity_id := coalesce(v_identity_id, custody_data.require_person(v_row_id));
        v_row_id := v_identity_id::text;
        v_matches := 1;
      when 'conversations' then
        select count(*), (array_agg(c.identity_id))[1] into v_matches, v_identity_id
        from custody_data.conversations c
        where c.conversation_id = v_row_id and (v_identity_id is null or c.identity_id = v_identity_id);
      when 'consent_records' then
        v_row_id := lower(v_row_id);
        select count(*), (array_agg(c.identity_id))[1] into v_matches, v_identity_id
        from custody_data.consent_records c where c.consent_id::text = v_row_id;
      when 'audit_logs' then
        -- in the form in which ids are written, since the row's id is compared as text
        v_row_id := case when v_row_id ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then lower(v_row_id) end;
        select count(*), min((a.occurred_at at time zone 'UTC')::date) into v_matches, v_day
        from custody_data.audit_logs a where a.tenant_id = v_tenant and a.log_entry_id = v_row_id::uuid;
        if v_matches = 0 and p_scope ? 'day' then
          select count(distinct s.day), min(s.day) into v_matches, v_day
          from custody_data.archive_segments s
          where s.tenant_id = 'system' and s.recorded_at is not null and s.objects_deleted_at is null and s.superseded_at is null
            and to_char(s.day, 'YYYY-MM-DD') = p_scope ->> 'day' and custody.segment_may_hold(s.people, v_tenant, null)
            and custody_data.leaves_have(s.leaves, v_row_id::uuid);
        end if;
      else
        raise exception using errcode = 'PC023', message = format('no holds on table %s', quote_literal(left(v_table, 64))),
          hint = 'Tables: user_profiles, user_preferences, consent_records, conversations, audit_logs.';
    end case;
    if v_matches <> 1 then
      raise exception using
        errcode = 'PC023',
        message = format('the scope names %s rows of %s', v_matches, v_table),
        hint = case
          when v_matches > 1 then 'Add the user_id: two people have a conversation of that id.'
          when v_table = 'audit_logs' then 'Correct the row''s id; of an event that is in the archive alone give the day too (UTC), as in "2026-11-21".'
          else 'Correct the row''s id.' end;
    end if;
  end if;

  begin
    insert into custody_data.legal_holds (tenant_id, scope, identity_id, table_name, row_id, event_day, reference, reason, placed_by, until_at)
    values (v_tenant, v_scope, v_identity_id, v_table, v_row_id, v_day, p_reference, p_reason, custody_data.require_actor(), p_until)
    returning hold_id into v_hold_id;
  exception when unique_violation then
    raise exception using
      errcode = 'PC013',
      message = 'a hold of that reference and scope is there already',
      hint = 'See custody.holds; release it first to place another.';
  end;
  perform custody_data.append_event('hold.place', 'hold', v_hold_id::text, 'success',
    jsonb_strip_nulls(jsonb_build_object('hold_id', v_hold_id, 'scope', v_scope, 'table', v_table, 'until', custody_data.entry_time(p_until), 'reason', p_reason)),
    v_identity_id);
  return v_hold_id;
end
$$;
revoke all on function custody.place_hold(jsonb, text, text, timestamptz) from public;
grant execute on function custody.place_hold(jsonb, text, text, timestamptz) to custody_privacy;
comment on function custody.place_hold(jsonb, text, text, timestamptz) is
'Places a legal hold and returns its id; waits for deletions of the tenant that are under way.
p_scope: {"tenant": true}, {"user_id": "…"}, or {"table": "…", "row": "…"} (row: user_id for profiles and preferences, conversation_id with user_id where two people share it, consent_id, log_entry_id, with "day": "2026-11-21" where the event is in the archive alone). p_reference: case number, 1 to 256 characters. p_reason: why; neither names the person. p_until: when it ends by itself; default never.
Errors: PC001, PC003, PC009, PC011, PC013 there already, PC015 confined to one person, PC023, PC026 isolation level. Callers: custody_privacy.';

-- definer: as place_hold
create or replace function custody.release_hold(p_hold_id uuid, p_reason text)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_hold custody_data.legal_holds;
  v_resumed integer := 0;
  v_request record;
begin
  if coalesce(char_length(btrim(p_reason)), 0) not between 1 and 2000 then
    raise exception using errcode = 'PC023', message = 'releasing a hold needs a reason', hint = 'Say why the data is no longer needed.';
  end if;
  perform custody_data.require_read_committed();
  perform custody_data.lock_holds(v_tenant, true);
  select h.* into v_hold from custody_data.legal_holds h where h.tenant_id = v_tenant and h.hold_id = p_hold_id for update;
  if not found or v_hold.released_at is not null then
    raise exception using
      errcode = 'PC024',
      message = format('unknown hold %s', p_hold_id),
      detail = case when v_hold.released_at is not null then 'It was released before.' else 'The tenant has no such hold.' end,
      hint = 'See custody.holds.';
  end if;
  update custody_data.legal_holds h
  set released_at = now(), released_by = custody_data.require_actor(), release_reason = p_reason
  where h.tenant_id = v_tenant and h.hold_id = p_hold_id;

  -- What waited for this hold alone goes on.
  for v_request in
    select r.request_id, r.identity_id from custody_data.requests r where r.tenant_id = v_tenant and r.status = 'held'
  loop
    if cardinality(custody_data.holds_on(v_request.identity_id)) = 0 then
      update custody_data.requests r set status = 'received' where r.tenant_id = v_tenant and r.request_id = v_request.request_id;
      v_resumed := v_resumed + 1;
    end if;
  end loop;
  perform custody_data.append_event('hold.release', 'hold', p_hold_id::text, 'success',
    jsonb_build_object('hold_id', p_hold_id, 'scope', v_hold.scope, 'requests_resumed', v_resumed, 'reason', p_reason), v_hold.identity_id);
  return v_resumed;
end
$$;
revoke all on function custody.release_hold(uuid, text) from public;
grant execute on function custody.release_hold(uuid, text) to custody_privacy;
comment on function custody.release_hold(uuid, text) is
'Releases a hold and returns how many erasure requests it had kept waiting and now resume. p_reason: why, 1 to 2000 characters.
Errors: PC001, PC015 confined to one person, PC023, PC024 unknown or released, PC026 isolation level. Callers: custody_privacy.';

create or replace function custody_data.holds_on(p_identity_id uuid)
returns uuid[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select coalesce(array_agg(h.hold_id order by h.placed_at), '{}')
    from custody_data.legal_holds h
    where h.released_at is null and (h.until_at is null or h.until_at > now())
      and (h.scope = 'tenant' or h.identity_id = p_identity_id));
end
$$;
revoke all on function custody_data.holds_on(uuid) from public;
comment on function custody_data.holds_on(uuid) is 'Holds that keep a person of the tenant in context from erasure: on the tenant, the person, or a row about the person.';
