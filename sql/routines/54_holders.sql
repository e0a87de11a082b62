-- Holders outside Postgres: who else has personal data, is told of each erasure, and acknowledges it.
-- control: GDPR Art. 17(2), 19, 28(3)(g)
-- reviewed by: privacy officer, DBA
--
-- The notice is a row of the erasure's own transaction; a job delivers it and tries again until the holder
-- has acknowledged. Until then it carries the user_id, because the holder could not know whom to forget.

-- definer: holders are written by this function alone
create or replace function custody.register_holder(p_name text, p_endpoint text default null, p_description text default null, p_retired boolean default false)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$' or (p_endpoint is not null and p_endpoint !~ '^https?://[^[:space:]]+$') then
    raise exception using
      errcode = 'PC023',
      message = 'invalid holder',
      hint = 'Name it by 1 to 128 letters, digits, dots, colons, _ and -, with an http or https endpoint or none.';
  end if;
  insert into custody_data.holders as h (tenant_id, holder, endpoint, description, retired_at)
  values (v_tenant, p_name, p_endpoint, p_description, case when p_retired then now() end)
  on conflict (tenant_id, holder) do update
    set endpoint = excluded.endpoint, description = excluded.description, retired_at = excluded.retired_at;
  perform custody_data.append_event('holder.register', 'holder', p_name, 'success', jsonb_build_object('holder', p_name), null);
  return p_name;
end
$$;
revoke all on function custody.register_holder(text, text, text, boolean) from public;
grant execute on function custody.register_holder(text, text, text, boolean) to custody_privacy;
comment on function custody.register_holder(text, text, text, boolean) is
'Registers a system outside Postgres that holds personal data, or changes it, and returns its name. Erasures from now on send it a notice.
p_endpoint: http or https URL that notices are posted to; null where people carry them. p_retired: it holds nothing any more and gets no notices.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_privacy.';

-- definer: notices are written by these functions alone
create or replace function custody.acknowledge_erasure(p_request_id uuid, p_holder text, p_evidence jsonb default null)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_notice custody_data.erasure_notices;
  v_identity_id uuid;
begin
  select n.* into v_notice from custody_data.erasure_notices n
  where n.tenant_id = v_tenant and n.request_id = p_request_id and n.holder = p_holder
  for update;
  if not found then
    raise exception using
      errcode = 'PC025',
      message = format('unknown holder %s for request %s', coalesce(quote_literal(left(p_holder, 128)), 'null'), coalesce(p_request_id::text, 'null')),
      detail = 'No notice of that erasure went to that holder.',
      hint = 'See external_holders of custody.get_certificate.';
  end if;
  if v_notice.acknowledged_at is null then
    select r.identity_id into v_identity_id from custody_data.requests r where r.tenant_id = v_tenant and r.request_id = p_request_id;
    update custody_data.erasure_notices n
    set acknowledged_at = now(), evidence = p_evidence, user_id = null
    where n.tenant_id = v_tenant and n.notice_id = v_notice.notice_id;
    perform custody_data.append_event('holder.acknowledge', 'holder', p_holder, 'success',
      jsonb_build_object('request_id', p_request_id, 'holder', p_holder), v_identity_id);
  end if;
  return case when exists (
    select from custody_data.erasure_notices n where n.tenant_id = v_tenant and n.request_id = p_request_id and n.acknowledged_at is null)
    then 'awaiting_holders' else 'complete' end;
end
$$;
revoke all on function custody.acknowledge_erasure(uuid, text, jsonb) from public;
grant execute on function custody.acknowledge_erasure(uuid, text, jsonb) to custody_privacy, custody_worker;
comment on function custody.acknowledge_erasure(uuid, text, jsonb) is
'Records that a holder has forgotten the person of an erasure, empties the notice, and returns the certificate''s status: awaiting_holders or complete. Calling it again changes nothing.
p_evidence: what the holder answered; names nobody.
Errors: PC001, PC015 confined to one person, PC025 unknown holder. Callers: custody_privacy, custody_worker.';

create or replace function custody.pending_notices(p_limit integer default 100)
returns setof custody_data.erasure_notices
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000.';
  end if;
  return query
  select n.* from custody_data.erasure_notices n
  where n.tenant_id = v_tenant and n.acknowledged_at is null
  order by n.created_at, n.notice_id
  limit p_limit;
end
$$;
revoke all on function custody.pending_notices(integer) from public;
grant execute on function custody.pending_notices(integer) to custody_worker, custody_privacy;
comment on function custody.pending_notices(integer) is 'Notices that no holder has acknowledged, oldest first. p_limit: 1 to 10000. Errors: PC001, PC023. Callers: custody_worker, custody_privacy.';

-- definer: as acknowledge_erasure
create or replace function custody.mark_notice_sent(p_notice_id uuid, p_status text, p_delivered boolean default true)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  update custody_data.erasure_notices n
  set attempts = n.attempts + 1, last_status = left(p_status, 200), sent_at = case when p_delivered then coalesce(n.sent_at, now()) else n.sent_at end
  where n.tenant_id = v_tenant and n.notice_id = p_notice_id and n.acknowledged_at is null;
end
$$;
revoke all on function custody.mark_notice_sent(uuid, text, boolean) from public;
grant execute on function custody.mark_notice_sent(uuid, text, boolean) to custody_worker;
comment on function custody.mark_notice_sent(uuid, text, boolean) is
'Records an attempt to deliver a notice. p_status: what came of it, a code that names nobody. p_delivered: whether the holder has it.
Errors: PC001. Callers: custody_worker.';
