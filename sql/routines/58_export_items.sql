-- Export as a stream: what export_subject returns, item by item, for the export job, which writes files of any size.
-- control: GDPR Art. 15(1), 15(3), 20; HIPAA 164.524
-- reviewed by: privacy officer, DBA
--
-- The job puts the document together again; a test holds both forms equal.

create or replace view custody.export_item with (security_invoker = true) as
select ''::text as part, ''::text as kind, '{}'::jsonb as body
where false;
comment on view custody.export_item is 'Shape of export_items: kind head (about the whole document, part empty), part (purpose, basis, retention, source of a part) or item (one value of it).';

-- definer: as export_subject
create or replace function custody.export_items(p_request_id uuid)
returns setof custody.export_item
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_request custody_data.requests;
  v_identity custody_data.identities;
  v_part text;
  v_whole jsonb;
  v_rows bigint;
  v_counts jsonb := '{}';
begin
  v_request := custody_data.require_request(p_request_id, 'export');
  if v_request.status = 'cancelled' then
    raise exception using errcode = 'PC018', message = format('request %s is cancelled', p_request_id), hint = 'Make a new request.';
  end if;
  select i.* into v_identity from custody_data.identities i
  where i.tenant_id = v_request.tenant_id and i.identity_id = v_request.identity_id;
  if v_identity.erased_at is not null then
    raise exception using
      errcode = 'PC021',
      message = format('the person of request %s has been erased', p_request_id),
      hint = 'Cancel the request: what is left names nobody.';
  end if;

  return query select '', 'head', jsonb_build_object(
    'format', 'pgcustody export, version 1',
    'tenant_id', v_request.tenant_id,
    'user_id', v_identity.user_id,
    'exported_at', custody_data.entry_time(now()),
    'known_since', custody_data.entry_time(v_identity.created_at),
    'audit_events_complete_from', custody_data.entry_time(custody.audit_complete_from()),
    'holders', (select coalesce(jsonb_agg(h.holder order by h.holder), '[]') from custody_data.holders h where h.tenant_id = v_request.tenant_id and h.retired_at is null),
    'rights', 'Rectification, erasure, restriction, objection, portability (GDPR Art. 16 to 21); complaint to a supervisory authority (Art. 77).');

  foreach v_part in array array['profile', 'preferences', 'consents', 'conversations', 'audit_events', 'requests'] loop
    if v_part in ('conversations', 'audit_events') then
      -- What is said about a part is the same for everybody: nobody has this identity, so its data is empty.
      v_whole := custody_data.export_part(v_part, '00000000-0000-0000-0000-000000000000');
    else
      v_whole := custody_data.export_part(v_part, v_identity.identity_id);
    end if;
    return query select v_part, 'part', v_whole - 'data';
    case v_part
      when 'conversations' then
        return query
        select v_part, 'item', to_jsonb(c) - array['tenant_id', 'identity_id']
        from custody_data.conversations c
        where c.tenant_id = v_request.tenant_id and c.identity_id = v_identity.identity_id
        order by c.started_at;
      when 'audit_events' then
        return query
        select v_part, 'item', jsonb_strip_nulls(jsonb_build_object('log_entry_id', a.log_entry_id, 'occurred_at', custody_data.entry_time(a.occurred_at),
            'action', a.action, 'by_the_person', a.actor_id = v_identity.identity_id, 'resource_type', a.resource_type, 'resource_id', a.resource_id,
            'result', a.result, 'purpose', a.purpose)) || jsonb_build_object('metadata', a.metadata)
            || case when a.personal is not null then jsonb_build_object('personal', a.personal) else '{}'::jsonb end
        from (
          select * from custody_data.audit_logs s where s.tenant_id = v_request.tenant_id and s.subject_id = v_identity.identity_id
          union all
          select * from custody_data.audit_logs s where s.tenant_id = v_request.tenant_id and s.actor_id = v_identity.identity_id
            and s.subject_id is distinct from v_identity.identity_id
        ) a
        order by a.occurred_at;
      else
        return query
        select v_part, 'item', i.value
        from jsonb_array_elements(case jsonb_typeof(v_whole -> 'data')
          when 'array' then v_whole -> 'data' when 'null' then '[]' else jsonb_build_array(v_whole -> 'data') end) i;
    end case;
    get diagnostics v_rows = row_count;
    v_counts := v_counts || jsonb_build_object(v_part, v_rows);
  end loop;
  perform custody_data.append_event('account.export', 'identity', v_identity.identity_id::text, 'success',
    jsonb_build_object('request_id', p_request_id, 'counts', v_counts), v_identity.identity_id);
end
$$;
revoke all on function custody.export_items(uuid) from public;
grant execute on function custody.export_items(uuid) to custody_privacy, custody_worker;
comment on function custody.export_items(uuid) is
'What export_subject returns about the person of an export request, item by item and of any size: first the head, then each part followed by its items. The export is an event of the same transaction; its bytes are those of complete_export. Run it at repeatable read, so that the parts are of one moment.
Errors: PC001, PC016, PC018 cancelled or not an export, PC021 erased. Callers: custody_privacy, custody_worker.';
