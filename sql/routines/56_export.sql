-- Export: everything that the database holds about a person, with purpose, basis, retention and source of each part.
-- control: GDPR Art. 15(1), 15(3), 20; HIPAA 164.524
-- reviewed by: privacy officer, DBA

-- definer: reads requests, holds and the trail, which the caller may not
create or replace function custody.export_subject(p_user_id text, p_max_bytes bigint default 67108864)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_identity_id constant uuid := custody_data.require_person(p_user_id);
  v_part jsonb;
  v_parts jsonb := jsonb '{}';
  v_bytes bigint := 0;
  v_counts jsonb := jsonb '{}';
  v_name text;
begin
  if not (custody.has_subject() or custody_data.caller_is('custody_privacy') or custody_data.caller_is('custody_worker')) then
    raise exception using
      errcode = 'PC015',
      message = format('role %s may not export the data of others', custody_data.caller_role()),
      hint = 'Give set_context the p_subject that asks, or let a privacy officer export.';
  end if;
  -- The trail can be large: its size is looked at before it is built.
  select v_bytes + coalesce(sum(pg_column_size(c.messages)), 0) into v_bytes
  from custody_data.conversations c where c.tenant_id = v_tenant and c.identity_id = v_identity_id;
  select v_bytes + 250 * (
      (select count(*) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.subject_id = v_identity_id)
      + (select count(*) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.actor_id = v_identity_id)) into v_bytes;
  if v_bytes > p_max_bytes then
    perform custody_data.export_too_large(p_max_bytes);
  end if;

  v_bytes := 0;
  foreach v_name in array array['profile', 'preferences', 'consents', 'conversations', 'audit_events', 'requests'] loop
    v_part := custody_data.export_part(v_name, v_identity_id);
    v_bytes := v_bytes + octet_length(v_part::text);
    if v_bytes > p_max_bytes then
      perform custody_data.export_too_large(p_max_bytes);
    end if;
    v_parts := v_parts || jsonb_build_object(v_name, v_part);
    v_counts := v_counts || jsonb_build_object(v_name, case jsonb_typeof(v_part -> 'data') when 'array' then jsonb_array_length(v_part -> 'data') when 'null' then 0 else 1 end);
  end loop;
  perform custody_data.append_event('account.export', 'identity', v_identity_id::text, 'success',
    jsonb_build_object('counts', v_counts, 'bytes', v_bytes), v_identity_id);
  return jsonb_build_object(
    'format', 'pgcustody export, version 1',
    'tenant_id', v_tenant,
    'user_id', p_user_id,
    'exported_at', custody_data.entry_time(now()),
    'known_since', (select custody_data.entry_time(i.created_at) from custody_data.identities i where i.tenant_id = v_tenant and i.identity_id = v_identity_id),
    'audit_events_complete_from', custody_data.entry_time(custody.audit_complete_from()),
    'holders', (select coalesce(jsonb_agg(h.holder order by h.holder), '[]') from custody_data.holders h where h.tenant_id = v_tenant and h.retired_at is null),
    'rights', 'Rectification, erasure, restriction, objection, portability (GDPR Art. 16 to 21); complaint to a supervisory authority (Art. 77).'
  ) || v_parts;
end
$$;
revoke all on function custody.export_subject(text, bigint) from public;
grant execute on function custody.export_subject(text, bigint) to custody_readwrite, custody_privacy, custody_worker;
comment on function custody.export_subject(text, bigint) is
'Everything in the database about a person as one JSON object: profile, preferences, consents, conversations, audit_events (about or by the person), requests, each as {"data", "purpose", "basis", "retention", "source"}, and who else holds data. The export is an event. What the archive holds beyond audit_events_complete_from is the export job''s.
p_max_bytes: bound, default 64 MiB.
Errors: PC001, PC003, PC011 unknown person, PC015, PC022 too large. Callers: custody_readwrite for the subject of its context, custody_privacy, custody_worker.';

create or replace function custody_data.export_too_large(p_max_bytes bigint)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'PC022',
    message = format('export too large: more than %s bytes', p_max_bytes),
    hint = 'Use custody.request_export: the export job writes a file of any size.';
end
$$;
revoke all on function custody_data.export_too_large(bigint) from public;
comment on function custody_data.export_too_large(bigint) is 'Raises PC022.';

-- definer: as export_subject
create or replace function custody_data.export_part(p_part text, p_identity_id uuid)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_class constant text := case p_part when 'consents' then 'consent' when 'conversations' then 'conversations' when 'audit_events' then 'audit' end;
  v_data jsonb;
begin
  case p_part
    when 'profile' then
      select to_jsonb(p) - array['tenant_id', 'identity_id', 'email_index'] into v_data
      from custody_data.user_profiles p where p.tenant_id = v_tenant and p.identity_id = p_identity_id;
    when 'preferences' then
      select p.preferences into v_data from custody_data.user_preferences p where p.tenant_id = v_tenant and p.identity_id = p_identity_id;
    when 'consents' then
      select coalesce(jsonb_agg(to_jsonb(c) - array['tenant_id', 'identity_id'] order by c.occurred_at), '[]') into v_data
      from custody.consents c where c.tenant_id = v_tenant and c.identity_id = p_identity_id;
    when 'conversations' then
      select coalesce(jsonb_agg(to_jsonb(c) - array['tenant_id', 'identity_id'] order by c.started_at), '[]') into v_data
      from custody_data.conversations c where c.tenant_id = v_tenant and c.identity_id = p_identity_id;
    when 'audit_events' then
      select coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('log_entry_id', a.log_entry_id, 'occurred_at', custody_data.entry_time(a.occurred_at),
          'action', a.action, 'by_the_person', a.actor_id = p_identity_id, 'resource_type', a.resource_type, 'resource_id', a.resource_id,
          'result', a.result, 'purpose', a.purpose)) || jsonb_build_object('metadata', a.metadata)
          || case when a.personal is not null then jsonb_build_object('personal', a.personal) else '{}'::jsonb end order by a.occurred_at), '[]')
      into v_data
      from (
        select * from custody_data.audit_logs s where s.tenant_id = v_tenant and s.subject_id = p_identity_id
        union all
        select * from custody_data.audit_logs s where s.tenant_id = v_tenant and s.actor_id = p_identity_id and s.subject_id is distinct from p_identity_id
      ) a;
    when 'requests' then
      select coalesce(jsonb_agg(to_jsonb(r) - array['tenant_id', 'identity_id', 'xid', 'residue_searched_xid', 'requested_by'] order by r.received_at), '[]') into v_data
      from custody_data.requests r where r.tenant_id = v_tenant and r.identity_id = p_identity_id;
  end case;
  return jsonb_build_object(
    'data', v_data,
    'purpose', case p_part
      when 'profile' then 'To know and reach the person.' when 'preferences' then 'To serve the person as they wish.'
      when 'consents' then 'To prove what was agreed to.' when 'conversations' then 'To continue and answer the conversation.'
      when 'audit_events' then 'To prove who did what, for security and accountability.' else 'To answer the person in time.' end,
    'basis', case p_part
      when 'profile' then 'contract (GDPR Art. 6(1)(b))' when 'preferences' then 'contract (GDPR Art. 6(1)(b))'
      when 'consents' then 'legal_obligation (GDPR Art. 6(1)(c), 7(1))' when 'conversations' then 'contract (GDPR Art. 6(1)(b))'
      when 'audit_events' then 'legal_obligation (GDPR Art. 6(1)(c), 5(2), 32)' else 'legal_obligation (GDPR Art. 6(1)(c), 12)' end,
    'retention', case when v_class is null then jsonb_build_object('until', case p_part when 'requests' then 'as long as the trail' else 'deletion or erasure' end)
      else (select jsonb_build_object('keep', p.keep::text, 'basis', p.basis) from custody.retention_policies p where p.class = v_class) end,
    'source', case p_part when 'audit_events' then 'Recorded by the application and by the database.'
      when 'requests' then 'The person, or a privacy officer for the person.' else 'The person, through the application.' end);
end
$$;
revoke all on function custody_data.export_part(text, uuid) from public;
comment on function custody_data.export_part(text, uuid) is 'One part of an export with its purpose, legal basis, retention and source.';
