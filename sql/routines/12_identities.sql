-- Identities: from an external id to the identity that every other table refers to.
-- control: GDPR Art. 4(5), 17, 25; HIPAA 164.312(a)(2)(i)
-- reviewed by: DBA
--
-- claim_identity locks the row FOR KEY SHARE until the transaction ends; erase_subject takes it FOR UPDATE.
-- So an insert about a person either commits before the erasure, which then deletes it, or waits and finds
-- the id free: the person comes back as a new identity, never joined to the old one.

create or replace function custody_data.find_identity(p_user_id text)
returns uuid
language plpgsql -- which keeps its plan for the session
stable
parallel restricted
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select i.identity_id from custody_data.identities i
    where i.tenant_id = current_setting('custody.tenant', true) -- which the policy proves
      and i.user_id = p_user_id);
end
$$;
revoke all on function custody_data.find_identity(text) from public;
grant execute on function custody_data.find_identity(text) to
  custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor;
comment on function custody_data.find_identity(text) is 'Identity of a user_id of the tenant in context, or null.';

-- definer: row locks need UPDATE on identities, which no role has
create or replace function custody_data.claim_identity(p_user_id text, p_kind text default 'person')
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_identity_id uuid;
begin
  perform custody_data.check_user_id(p_user_id);
  if custody.has_subject() and p_user_id not in (custody.current_subject(), custody.current_actor()) then
    raise exception using
      errcode = 'PC015',
      message = 'this transaction is confined to another person',
      detail = 'set_context was given a subject, and the call names somebody else.',
      hint = 'Name the subject of the context, or set a context without p_subject.';
  end if;
  loop
    select i.identity_id into v_identity_id
    from custody_data.identities i
    where i.tenant_id = v_tenant and i.user_id = p_user_id
    for key share;
    exit when found;
    insert into custody_data.identities (tenant_id, user_id, kind)
    values (v_tenant, p_user_id, p_kind)
    on conflict (tenant_id, user_id) where user_id is not null do nothing
    returning identity_id into v_identity_id;
    exit when found;
  end loop;
  if p_user_id = custody.current_subject() then
    perform set_config('custody.subject_id', v_identity_id::text, true), custody_data.sign_context();
  end if;
  if p_user_id = custody.current_actor() then
    perform set_config('custody.actor_id', v_identity_id::text, true), custody_data.sign_context();
  end if;
  return v_identity_id;
end
$$;
revoke all on function custody_data.claim_identity(text, text) from public;
comment on function custody_data.claim_identity(text, text) is
'Identity of a user_id, made where it is missing, and kept from erasure until the transaction ends.
Errors: PC001, PC003, PC015 when the context is confined to another person.';

create or replace function custody_data.claim_person(p_user_id text)
returns uuid
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The actor, whom claim_identity lets through, is not whom the rows may be about.
  if custody.has_subject() and p_user_id is distinct from custody.current_subject() then
    perform custody_data.require_context(), custody_data.check_user_id(p_user_id);
    raise exception using
      errcode = 'PC015',
      message = 'this transaction is confined to another person',
      detail = 'set_context was given a subject, and the call names somebody else.',
      hint = 'Name the subject of the context, or set a context without p_subject.';
  end if;
  return custody_data.claim_identity(p_user_id);
end
$$;
revoke all on function custody_data.claim_person(text) from public;
comment on function custody_data.claim_person(text) is
'Identity of the person that a row will be about, as claim_identity.
Errors: PC001, PC003, PC015 when the context is confined to another person.';

-- definer: makes the actor's identity for roles that cannot insert one
create or replace function custody_data.require_actor()
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_context();
  return custody_data.claim_identity(
    custody.current_actor(),
    case when custody.current_tenant() = 'system' then 'service' else 'person' end);
end
$$;
revoke all on function custody_data.require_actor() from public;
grant execute on function custody_data.require_actor() to custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.require_actor() is 'Identity of the actor in context, made where it is missing; also set in the context. Errors: PC001.';

-- definer: locks identities, as above
create or replace function custody_data.require_person(p_user_id text)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_identity_id uuid;
begin
  perform custody_data.check_user_id(p_user_id);
  if custody.has_subject() and p_user_id <> custody.current_subject() then
    raise exception using
      errcode = 'PC015',
      message = 'this transaction is confined to another person',
      detail = 'set_context was given a subject, and the call names somebody else.',
      hint = 'Name the subject of the context, or set a context without p_subject.';
  end if;
  select i.identity_id into v_identity_id
  from custody_data.identities i
  where i.tenant_id = v_tenant and i.user_id = p_user_id
  for key share;
  if not found then
    raise exception using
      errcode = 'PC011',
      message = format('unknown person in tenant %s', v_tenant),
      detail = 'No identity of the tenant has that user_id: it was never seen, or it has been erased.',
      hint = 'Look for the person with custody.find_subject, or for the erasure with custody.list_requests.';
  end if;
  return v_identity_id;
end
$$;
revoke all on function custody_data.require_person(text) from public;
comment on function custody_data.require_person(text) is
'Identity of a known user_id, kept from erasure until the transaction ends.
Errors: PC001, PC003, PC011 unknown, PC015 when the context is confined to another person.';
