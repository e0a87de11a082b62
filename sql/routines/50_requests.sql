-- Requests of data subjects: received, extended, cancelled, listed.
-- control: GDPR Art. 12(3)-(4), 15, 17, 20; HIPAA 164.524(b)
-- reviewed by: privacy officer, DBA
--
-- A request is committed before anything is done about it, and has a month. Applications make requests for
-- the person that their context is confined to, privacy officers for anybody.

create or replace view custody.requests with (security_invoker = true) as
select r.tenant_id, r.request_id, r.kind, r.identity_id, r.status, r.reason, r.requested_by, r.received_at, r.due_at,
  r.extended_at, r.extension_reason, r.closed_at, r.close_reason, r.residue_searched_at, r.residue_rows,
  r.status in ('received', 'held') and r.due_at < pg_catalog.now() as overdue
from custody_data.requests r;
grant select on custody.requests to custody_worker, custody_privacy, custody_auditor;
comment on view custody.requests is 'Requests of the tenant, with whether each is overdue. Readers: custody_worker, custody_privacy, custody_auditor.';

create or replace function custody_data.receive_request(p_kind text, p_user_id text, p_reason text, p_request_id uuid)
returns uuid
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_id constant uuid := coalesce(p_request_id, gen_random_uuid());
  v_identity_id uuid;
  v_first custody_data.requests;
begin
  if not (custody.has_subject() or custody_data.caller_is('custody_privacy')) then
    raise exception using
      errcode = 'PC015',
      message = format('role %s may not make requests for others', custody_data.caller_role()),
      detail = 'The context names no subject, and the role is not a member of custody_privacy.',
      hint = 'Give set_context the p_subject that asks, or let a privacy officer make the request.';
  end if;
  if char_length(p_reason) > 2000 then
    raise exception using errcode = 'PC023', message = 'invalid reason', hint = 'Give at most 2000 characters that do not name the person.';
  end if;
  -- A retry after the person was erased must find its request, although the user_id is gone.
  select r.* into v_first from custody_data.requests r where r.tenant_id = v_tenant and r.request_id = p_request_id;
  if found and v_first.kind = p_kind and v_first.kind = 'erasure' then
    -- An erasure that is under way has the identity: its end is waited for.
    perform 1 from custody_data.identities i where i.tenant_id = v_tenant and i.identity_id = v_first.identity_id for key share;
    select r.* into v_first from custody_data.requests r where r.tenant_id = v_tenant and r.request_id = p_request_id;
    if v_first.status = 'done' then
      return v_first.request_id;
    end if;
  end if;
  v_identity_id := custody_data.require_person(p_user_id);
  -- No role can change it afterwards, and the trail keeps it.
  if p_reason is not null and p_reason ~* custody_data.identifier_pattern(custody_data.identifiers_of(v_identity_id)) then
    raise exception using errcode = 'PC023', message = 'invalid reason: it names the person', hint = 'Give a reason of at most 2000 characters that does not name the person.';
  end if;
  insert into custody_data.requests (tenant_id, request_id, kind, identity_id, reason, requested_by)
  values (v_tenant, v_id, p_kind, v_identity_id, p_reason, custody_data.require_actor())
  on conflict (tenant_id, request_id) do nothing;
  if not found then
    select r.* into v_first from custody_data.requests r where r.tenant_id = v_tenant and r.request_id = v_id;
    if (v_first.kind, v_first.identity_id) is distinct from (p_kind, v_identity_id) then
      raise exception using
        errcode = 'PC010',
        message = format('request_id %s was given before for another request', v_id),
        detail = 'The first request stands.',
        hint = 'Draw a new id for a new request.';
    end if;
    return v_id;
  end if;
  perform custody_data.append_event('request.receive', 'request', v_id::text, 'success',
    jsonb_strip_nulls(jsonb_build_object('request_id', v_id, 'kind', p_kind, 'reason', p_reason)), v_identity_id);
  return v_id;
end
$$;
revoke all on function custody_data.receive_request(text, text, text, uuid) from public;
comment on function custody_data.receive_request(text, text, text, uuid) is 'What request_erasure and request_export have in common.';

-- definer: requests are written by these functions alone
create or replace function custody.request_erasure(p_user_id text, p_reason text default null, p_request_id uuid default null)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.receive_request('erasure', p_user_id, p_reason, p_request_id);
end
$$;
revoke all on function custody.request_erasure(text, text, uuid) from public;
grant execute on function custody.request_erasure(text, text, uuid) to custody_readwrite, custody_privacy;
comment on function custody.request_erasure(text, text, uuid) is
'Records that a person is to be erased (GDPR Art. 17) and returns the request_id. Commit it; then erase_subject, by the job or by hand, carries it out.
p_reason: up to 2000 characters that do not name the person. p_request_id: retried with the same id it is one request.
Errors: PC001, PC003, PC010 id of another request, PC011 unknown person, PC015, PC023. Callers: custody_readwrite for the subject of its context, custody_privacy for anybody.';

-- definer: as request_erasure
create or replace function custody.request_export(p_user_id text, p_reason text default null, p_request_id uuid default null)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.receive_request('export', p_user_id, p_reason, p_request_id);
end
$$;
revoke all on function custody.request_export(text, text, uuid) from public;
grant execute on function custody.request_export(text, text, uuid) to custody_readwrite, custody_privacy;
comment on function custody.request_export(text, text, uuid) is
'Records that a person asks for their data (GDPR Art. 15, 20) and returns the request_id; the export job carries it out.
p_reason: up to 2000 characters that do not name the person. p_request_id: retried with the same id it is one request.
Errors: PC001, PC003, PC010, PC011, PC015, PC023. Callers: custody_readwrite for the subject of its context, custody_privacy for anybody.';

create or replace function custody_data.require_request(p_request_id uuid, p_kind text default null)
returns custody_data.requests
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_request custody_data.requests;
begin
  select r.* into v_request from custody_data.requests r
  where r.tenant_id = v_tenant and r.request_id = p_request_id
  for update;
  if not found then
    raise exception using
      errcode = 'PC016',
      message = format('unknown request %s', coalesce(p_request_id::text, 'null')),
      detail = 'The tenant in context has no such request, or the context is confined to another person.',
      hint = 'See custody.list_requests.';
  end if;
  if p_kind is not null and v_request.kind <> p_kind then
    raise exception using
      errcode = 'PC018',
      message = format('request %s is of kind %s, not %s', p_request_id, v_request.kind, p_kind),
      hint = 'Name a request of the right kind.';
  end if;
  return v_request;
end
$$;
revoke all on function custody_data.require_request(uuid, text) from public;
comment on function custody_data.require_request(uuid, text) is 'A request of the tenant in context, locked; PC016, PC018.';

-- definer: applications see the state of their subject's request without reading the table
create or replace function custody.request_status(p_request_id uuid)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  if not (custody.has_subject() or custody_data.caller_is('custody_privacy') or custody_data.caller_is('custody_worker') or custody_data.caller_is('custody_auditor')) then
    raise exception using
      errcode = 'PC015',
      message = format('role %s may not look at the requests of others', custody_data.caller_role()),
      hint = 'Give set_context the p_subject that asks.';
  end if;
  return (
    select jsonb_build_object('request_id', r.request_id, 'kind', r.kind, 'status', r.status, 'received_at', r.received_at, 'due_at', r.due_at,
      'extended_at', r.extended_at, 'extension_reason', r.extension_reason, 'closed_at', r.closed_at, 'overdue', r.status in ('received', 'held') and r.due_at < now(),
      'notices_open', (select count(*) from custody_data.erasure_notices n where n.tenant_id = r.tenant_id and n.request_id = r.request_id and n.acknowledged_at is null))
    from custody_data.requests r where r.tenant_id = v_tenant and r.request_id = p_request_id);
end
$$;
revoke all on function custody.request_status(uuid) from public;
grant execute on function custody.request_status(uuid) to custody_readwrite, custody_privacy, custody_worker, custody_auditor;
comment on function custody.request_status(uuid) is
'State of a request as a JSON object: request_id, kind, status (received, held, done, cancelled), received_at, due_at, extended_at, extension_reason, closed_at, overdue, notices_open; null for the unknown and for another person''s.
Errors: PC001, PC015. Callers: custody_readwrite for the subject of its context, custody_privacy, custody_worker, custody_auditor.';

-- definer: applications list their subject's requests without reading the table; the reading is an event
create or replace function custody.list_requests(p_status text default null, p_limit integer default 100, p_after uuid default null)
returns setof custody.requests
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_count bigint;
begin
  if not (custody.has_subject() or custody_data.caller_is('custody_privacy') or custody_data.caller_is('custody_worker') or custody_data.caller_is('custody_auditor')) then
    raise exception using
      errcode = 'PC015',
      message = format('role %s may not look at the requests of others', custody_data.caller_role()),
      hint = 'Give set_context the p_subject that asks.';
  end if;
  if p_limit is null or p_limit not between 1 and 10000 or (p_status is not null and p_status not in ('received', 'held', 'done', 'cancelled')) then
    raise exception using errcode = 'PC023', message = 'invalid p_limit or p_status', hint = 'Give 1 to 10000; received, held, done or cancelled.';
  end if;
  return query
  select r.* from custody.requests r
  where r.tenant_id = v_tenant and (p_status is null or r.status = p_status)
    and (not custody.has_subject() or r.identity_id = custody.current_subject_id())
    and (p_after is null or (r.received_at, r.request_id) > (
      select a.received_at, a.request_id from custody_data.requests a where a.tenant_id = v_tenant and a.request_id = p_after))
  order by r.received_at, r.request_id
  limit p_limit;
  get diagnostics v_count = row_count;
  -- A rollback takes the event back, the line not.
  perform custody_data.write_line('read', 'requests', null, array_remove(array[custody.current_subject_id()], null), v_count);
  if current_setting('transaction_read_only') = 'off' then
    perform custody_data.append_event('request.read', 'request', null, 'success',
      jsonb_strip_nulls(jsonb_build_object('rows', v_count, 'status', p_status)), custody.current_subject_id());
  end if;
end
$$;
revoke all on function custody.list_requests(text, integer, uuid) from public;
grant execute on function custody.list_requests(text, integer, uuid) to custody_readwrite, custody_privacy, custody_worker, custody_auditor;
comment on function custody.list_requests(text, integer, uuid) is
'Requests of the tenant, or of the subject of the context, oldest first, each with the user_id of whose it is. The reading is an event (request.read) with the number of rows, and a line of the server''s log, which is all there is READ ONLY.
p_status: received, held, done or cancelled only. p_limit: 1 to 10000. p_after: request_id of the last row of the page before.
Errors: PC001, PC015, PC023, PC063 the read cannot be recorded. Callers: custody_readwrite for the subject of its context, custody_privacy, custody_worker, custody_auditor.';

-- definer: as request_erasure
create or replace function custody.extend_request(p_request_id uuid, p_reason text)
returns timestamptz
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_request custody_data.requests;
begin
  perform custody_data.require_context();
  if not (custody.has_subject() or custody_data.caller_is('custody_privacy')) then
    raise exception using
      errcode = 'PC015',
      message = format('role %s may not extend the requests of others', custody_data.caller_role()),
      hint = 'Give set_context the p_subject that asks.';
  end if;
  v_request := custody_data.require_request(p_request_id);
  if coalesce(char_length(btrim(p_reason)), 0) not between 1 and 2000 then
    raise exception using errcode = 'PC023', message = 'an extension needs a reason', hint = 'Say why; the person must be told within the first month (GDPR Art. 12(3)).';
  end if;
  if v_request.status not in ('received', 'held') or v_request.extended_at is not null or v_request.due_at < now() then
    raise exception using
      errcode = 'PC018',
      message = format('request %s cannot be extended', p_request_id),
      detail = case when v_request.extended_at is not null then 'It was extended before.'
        when v_request.status not in ('received', 'held') then format('It is %s.', v_request.status) else 'It is overdue.' end,
      hint = 'An open request can be extended once, by two months, before it is due.';
  end if;
  update custody_data.requests r
  set extended_at = now(), extension_reason = p_reason, due_at = r.due_at + interval '2 months'
  where r.tenant_id = v_request.tenant_id and r.request_id = p_request_id
  returning r.due_at into v_request.due_at;
  perform custody_data.append_event('request.extend', 'request', p_request_id::text, 'success',
    jsonb_build_object('request_id', p_request_id, 'kind', v_request.kind), v_request.identity_id);
  return v_request.due_at;
end
$$;
revoke all on function custody.extend_request(uuid, text) from public;
grant execute on function custody.extend_request(uuid, text) to custody_readwrite, custody_privacy;
comment on function custody.extend_request(uuid, text) is
'Extends an open request once by two months (GDPR Art. 12(3)) and returns the new due_at. p_reason: why, as the person is told.
Errors: PC001, PC015, PC016, PC018 not open, extended before or overdue, PC023. Callers: custody_readwrite for the subject of its context, custody_privacy.';

-- definer: as request_erasure
create or replace function custody.cancel_request(p_request_id uuid, p_reason text default null)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_request custody_data.requests;
begin
  perform custody_data.require_context();
  if not (custody.has_subject() or custody_data.caller_is('custody_privacy')) then
    raise exception using
      errcode = 'PC015',
      message = format('role %s may not cancel the requests of others', custody_data.caller_role()),
      hint = 'Give set_context the p_subject that asks.';
  end if;
  v_request := custody_data.require_request(p_request_id);
  if v_request.status = 'cancelled' then
    return v_request.status;
  end if;
  if v_request.status = 'done' then
    raise exception using
      errcode = 'PC018',
      message = format('request %s is done', p_request_id),
      hint = 'What was done stays done.';
  end if;
  update custody_data.requests r
  set status = 'cancelled', closed_at = now(), close_reason = p_reason
  where r.tenant_id = v_request.tenant_id and r.request_id = p_request_id;
  perform custody_data.append_event('request.cancel', 'request', p_request_id::text, 'success',
    jsonb_build_object('request_id', p_request_id, 'kind', v_request.kind), v_request.identity_id);
  return 'cancelled';
end
$$;
revoke all on function custody.cancel_request(uuid, text) from public;
grant execute on function custody.cancel_request(uuid, text) to custody_readwrite, custody_privacy;
comment on function custody.cancel_request(uuid, text) is
'Cancels an open request and returns its status; cancelling again changes nothing.
Errors: PC001, PC015, PC016, PC018 done before. Callers: custody_readwrite for the subject of its context, custody_privacy.';

-- definer: looks at holds
create or replace function custody.due_requests(p_kind text, p_limit integer default 100, p_received_before timestamptz default now())
returns setof custody.requests
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  if p_kind is null or p_kind not in ('erasure', 'export') or p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_kind or p_limit', hint = 'Give erasure or export; 1 to 10000.';
  end if;
  return query
  select r.* from custody.requests r
  where r.tenant_id = v_tenant and r.kind = p_kind and r.received_at <= p_received_before
    and (r.status = 'received' or (r.status = 'held' and cardinality(custody_data.holds_on(r.identity_id)) = 0))
  order by r.due_at, r.request_id
  limit p_limit;
end
$$;
revoke all on function custody.due_requests(text, integer, timestamptz) from public;
grant execute on function custody.due_requests(text, integer, timestamptz) to custody_worker, custody_privacy;
comment on function custody.due_requests(text, integer, timestamptz) is
'Open requests that can be carried out now, the most urgent first; held ones whose holds have ended are among them. p_kind: erasure or export. p_limit: 1 to 10000. p_received_before: leaves time to cancel.
Errors: PC001, PC023. Callers: custody_worker, custody_privacy.';

-- definer: as request_erasure
create or replace function custody.complete_export(p_request_id uuid, p_bytes bigint)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_request custody_data.requests;
begin
  v_request := custody_data.require_request(p_request_id, 'export');
  if v_request.status = 'done' then
    return;
  end if;
  if v_request.status = 'cancelled' then
    raise exception using errcode = 'PC018', message = format('request %s is cancelled', p_request_id), hint = 'Make a new request.';
  end if;
  update custody_data.requests r set status = 'done', closed_at = now()
  where r.tenant_id = v_request.tenant_id and r.request_id = p_request_id;
  perform custody_data.append_event('request.complete', 'request', p_request_id::text, 'success',
    jsonb_build_object('request_id', p_request_id, 'kind', 'export', 'bytes', p_bytes), v_request.identity_id);
end
$$;
revoke all on function custody.complete_export(uuid, bigint) from public;
grant execute on function custody.complete_export(uuid, bigint) to custody_worker, custody_privacy;
comment on function custody.complete_export(uuid, bigint) is
'Closes an export request once its file has been stored. p_bytes: size of the file. Calling it again changes nothing.
Errors: PC001, PC016, PC018. Callers: custody_worker, custody_privacy.';
