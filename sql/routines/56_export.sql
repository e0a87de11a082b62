-- Export: everything that the database holds about a person, with purpose, basis, retention and source of each part.
-- control: GDPR Art. 15(1), 15(3), 20; HIPAA 164.524
-- reviewed by: privacy officer, DBA
--
-- The same items in two forms: one JSON document for a call (export_subject), a stream for the export job,
-- which writes files of any size (export_items).

create or replace view custody.export_item with (security_invoker = true) as
select ''::text as part, ''::text as kind, '{}'::jsonb as body
where false;
comment on view custody.export_item is 'Shape of export_items: kind head (about the whole document, part empty), part (purpose, basis, retention, source of a part) or item (one value of it).';

create or replace function custody_data.export_parts()
returns text[]
language sql
immutable
parallel safe
return array['profile', 'preferences', 'consents', 'conversations', 'audit_events', 'requests'];
revoke all on function custody_data.export_parts() from public;
comment on function custody_data.export_parts() is 'The parts of an export, in order; profile and preferences are one value, the others lists.';

create or replace function custody_data.export_head(p_identity_id uuid)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'format', 'pgcustody export, version 1',
    'tenant_id', i.tenant_id,
    'user_id', i.user_id,
    'exported_at', custody_data.entry_time(now()),
    'known_since', custody_data.entry_time(i.created_at),
    'audit_events_complete_from', custody_data.entry_time(custody.audit_complete_from()),
    'holders', (select coalesce(jsonb_agg(h.holder order by h.holder), '[]') from custody_data.holders h where h.tenant_id = i.tenant_id and h.retired_at is null),
    'rights', 'Rectification, erasure, restriction, objection, portability (GDPR Art. 16 to 21); complaint to a supervisory authority (Art. 77).')
  from custody_data.identities i
  where i.tenant_id = custody.current_tenant() and i.identity_id = p_identity_id;
$$;
revoke all on function custody_data.export_head(uuid) from public;
comment on function custody_data.export_head(uuid) is 'What an export says about itself.';

create or replace function custody_data.export_about(p_part text)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('purpose', a.purpose, 'basis', a.basis, 'source', a.source, 'retention', coalesce(
    (select jsonb_build_object('keep', p.keep::text, 'basis', p.basis) from custody.retention_policies p where p.class = a.class),
    jsonb_build_object('until', case a.part when 'requests' then 'as long as the trail' else 'deletion or erasure' end)))
  from (values
    ('profile', 'To know and reach the person.', 'contract (GDPR Art. 6(1)(b))', 'The person, through the application.', null),
    ('preferences', 'To serve the person as they wish.', 'contract (GDPR Art. 6(1)(b))', 'The person, through the application.', null),
    ('consents', 'To prove what was agreed to.', 'legal_obligation (GDPR Art. 6(1)(c), 7(1))', 'The person, through the application.', 'consent'),
    ('conversations', 'To continue and answer the conversation.', 'contract (GDPR Art. 6(1)(b))', 'The person, through the application.', 'conversations'),
    ('audit_events', 'To prove who did what, for security and accountability.', 'legal_obligation (GDPR Art. 6(1)(c), 5(2), 32)', 'Recorded by the application and by the database.', 'audit'),
    ('requests', 'To answer the person in time.', 'legal_obligation (GDPR Art. 6(1)(c), 12)', 'The person, or a privacy officer for the person.', null)
  ) a (part, purpose, basis, source, class)
  where a.part = p_part;
$$;
revoke all on function custody_data.export_about(text) from public;
comment on function custody_data.export_about(text) is 'Purpose, legal basis, retention and source of a part of an export.';

create or replace function custody_data.export_values(p_part text, p_identity_id uuid)
returns setof jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  case p_part
    when 'profile' then
      return query
      select custody_data.profile_object(custody_data.open_profile(p))
        || jsonb_build_object('version', p.version, 'created_at', p.created_at, 'updated_at', p.updated_at)
      from custody_data.user_profiles p where p.tenant_id = v_tenant and p.identity_id = p_identity_id;
    when 'preferences' then
      return query
      select custody_data.open_preferences(p) from custody_data.user_preferences p where p.tenant_id = v_tenant and p.identity_id = p_identity_id;
    when 'consents' then
      return query
      select to_jsonb(c) - array['tenant_id', 'identity_id']
      from custody.consents c where c.tenant_id = v_tenant and c.identity_id = p_identity_id
      order by c.occurred_at, c.consent_id;
    when 'conversations' then
      return query
      select to_jsonb(c) - array['tenant_id', 'identity_id']
        || (select jsonb_build_object('title', o.opened[1], 'messages', o.opened[2]::jsonb) from (select custody_data.open_conversation(c) as opened offset 0) o)
      from custody_data.conversations c where c.tenant_id = v_tenant and c.identity_id = p_identity_id
      order by c.started_at, c.conversation_id;
    when 'audit_events' then
      return query
      -- Of what the person did to somebody else, only that they did it: the rest is the other person's.
      select jsonb_strip_nulls(jsonb_build_object('log_entry_id', a.log_entry_id, 'occurred_at', custody_data.entry_time(a.occurred_at),
          'action', a.action, 'by_the_person', a.actor_id = p_identity_id, 'resource_type', a.resource_type,
          'resource_id', case when a.own then a.resource_id end, 'result', a.result, 'purpose', a.purpose))
          || case when a.own then jsonb_build_object('metadata', a.metadata) else '{}'::jsonb end
          || case when a.own and a.personal is not null then jsonb_build_object('personal',
            custody_data.open_text(coalesce(a.subject_id, a.actor_id), 'audit_logs', 'personal', a.log_entry_id::text, a.personal)::jsonb) else '{}'::jsonb end
      from (
        -- Two arms, so that each has an index.
        select s.*, true as own from custody_data.audit_logs s where s.tenant_id = v_tenant and s.subject_id = p_identity_id
        union all
        select s.*, s.subject_id is null from custody_data.audit_logs s where s.tenant_id = v_tenant and s.actor_id = p_identity_id and s.subject_id is distinct from p_identity_id
      ) a
      order by a.occurred_at, a.log_entry_id;
    when 'requests' then
      return query
      select to_jsonb(r) - array['tenant_id', 'identity_id', 'xid', 'residue_searched_xid', 'residue_searched_for', 'requested_by']
      from custody_data.requests r where r.tenant_id = v_tenant and r.identity_id = p_identity_id
      order by r.received_at, r.request_id;
  end case;
end
$$;
revoke all on function custody_data.export_values(text, uuid) from public;
comment on function custody_data.export_values(text, uuid) is 'What the database holds about a person, of one part of an export.';

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
  v_part text;
  v_data jsonb;
  v_document jsonb;
  v_counts jsonb := jsonb '{}';
  v_bytes bigint;
begin
  if not (custody.has_subject() or custody_data.caller_is('custody_privacy') or custody_data.caller_is('custody_worker')) then
    raise exception using
      errcode = 'PC015',
      message = format('role %s may not export the data of others', custody_data.caller_role()),
      hint = 'Give set_context the p_subject that asks, or let a privacy officer export.';
  end if;
  -- What can be large is looked at before it is built: stored sizes, and the least that an event takes.
  select coalesce(sum(pg_column_size(c.messages)), 0)
    + 200 * ((select count(*) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.subject_id = v_identity_id)
      + (select count(*) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.actor_id = v_identity_id and a.subject_id is distinct from v_identity_id))
  into v_bytes
  from custody_data.conversations c where c.tenant_id = v_tenant and c.identity_id = v_identity_id;
  if v_bytes > p_max_bytes then
    perform custody_data.export_too_large(p_max_bytes);
  end if;

  v_document := custody_data.export_head(v_identity_id);
  v_bytes := 0;
  foreach v_part in array custody_data.export_parts() loop
    select coalesce(jsonb_agg(e.value order by e.n), '[]') into v_data
    from custody_data.export_values(v_part, v_identity_id) with ordinality as e (value, n);
    v_bytes := v_bytes + octet_length(v_data::text);
    if v_bytes > p_max_bytes then
      perform custody_data.export_too_large(p_max_bytes);
    end if;
    v_counts := v_counts || jsonb_build_object(v_part, jsonb_array_length(v_data));
    if v_part in ('profile', 'preferences') then
      v_data := coalesce(v_data -> 0, 'null');
    end if;
    v_document := v_document || jsonb_build_object(v_part, jsonb_build_object('data', v_data) || custody_data.export_about(v_part));
  end loop;
  perform custody_data.append_event('account.export', 'identity', v_identity_id::text, 'success',
    jsonb_build_object('counts', v_counts, 'bytes', v_bytes), v_identity_id);
  return v_document;
end
$$;
revoke all on function custody.export_subject(text, bigint) from public;
grant execute on function custody.export_subject(text, bigint) to custody_readwrite, custody_privacy, custody_worker;
comment on function custody.export_subject(text, bigint) is
'Everything in the database about a person as one JSON object: profile, preferences, consents, conversations, audit_events (about or by the person), requests, each as {"data", "purpose", "basis", "retention", "source"}, and who else holds data. The export is an event. Events before audit_events_complete_from are in the archive alone and not part of it.
p_max_bytes: bound, default 64 MiB.
Errors: PC001, PC003, PC011 unknown person, PC015, PC022 too large, PC033 locked, PC035 altered. Callers: custody_readwrite for the subject of its context, custody_privacy, custody_worker.';

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
  v_part text;
  v_rows bigint;
  v_counts jsonb := jsonb '{}';
begin
  v_request := custody_data.require_request(p_request_id, 'export');
  if v_request.status = 'cancelled' then
    raise exception using errcode = 'PC018', message = format('request %s is cancelled', p_request_id), hint = 'Make a new request.';
  end if;
  -- An erasure waits until the document is stored and this transaction has ended, so that it finds the document.
  perform 1 from custody_data.identities i
  where i.tenant_id = v_request.tenant_id and i.identity_id = v_request.identity_id
  for key share;
  if exists (
    select from custody_data.identities i
    where i.tenant_id = v_request.tenant_id and i.identity_id = v_request.identity_id and i.erased_at is not null
  ) then
    raise exception using
      errcode = 'PC021',
      message = format('the person of request %s has been erased', p_request_id),
      hint = 'Cancel the request: what is left names nobody.';
  end if;

  return query select '', 'head', custody_data.export_head(v_request.identity_id);
  foreach v_part in array custody_data.export_parts() loop
    return query select v_part, 'part', custody_data.export_about(v_part);
    return query select v_part, 'item', e.value from custody_data.export_values(v_part, v_request.identity_id) e (value);
    get diagnostics v_rows = row_count;
    v_counts := v_counts || jsonb_build_object(v_part, v_rows);
  end loop;
  perform custody_data.append_event('account.export', 'identity', v_request.identity_id::text, 'success',
    jsonb_build_object('request_id', p_request_id, 'counts', v_counts), v_request.identity_id);
end
$$;
revoke all on function custody.export_items(uuid) from public;
grant execute on function custody.export_items(uuid) to custody_privacy, custody_worker;
comment on function custody.export_items(uuid) is
'What export_subject returns about the person of an export request, item by item and of any size: first the head, then each part followed by its items. The export is an event of the same transaction; its bytes are those of complete_export. Run it at repeatable read, so that the parts are of one moment; an erasure of the person waits for the end of the transaction.
Errors: PC001, PC016, PC018 cancelled or not an export, PC021 erased, PC033 locked, PC035 altered; 40001 where an erasure was under way. Callers: custody_privacy, custody_worker.';

create or replace function custody.exports_of_erased(p_request_id uuid)
returns setof uuid
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  -- Whatever became of a request, its job may have stored a document.
  return query
  select x.request_id
  from custody_data.requests e
  join custody_data.requests x on x.tenant_id = e.tenant_id and x.identity_id = e.identity_id and x.kind = 'export'
  where e.tenant_id = v_tenant and e.request_id = p_request_id and e.kind = 'erasure' and e.status = 'done'
  order by x.request_id;
end
$$;
revoke all on function custody.exports_of_erased(uuid) from public;
grant execute on function custody.exports_of_erased(uuid) to custody_worker;
comment on function custody.exports_of_erased(uuid) is
'Export requests, done or not, of the person whom an erasure request that is done has erased: the erase job deletes their documents from the store. Nothing for a request that is unknown, open, or not an erasure.
Errors: PC001, PC015 confined to one person. Callers: custody_worker.';
