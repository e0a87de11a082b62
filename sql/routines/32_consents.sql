-- Consents: who agreed to what, when, under which text, and who took it back.
-- control: GDPR Art. 6(1), 7(1) and 7(3), 13(2)(c)
-- reviewed by: privacy officer, DBA
--
-- A record is never changed: a withdrawal is a record of its own. For each person and purpose the newest
-- record by occurred_at is in force. The evidence is sealed, so whoever gives or reads evidence has to unlock first.

create or replace function custody_data.open_evidence(p_row custody_data.consent_records)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.open_text(p_row.identity_id, 'consent_records', 'evidence', p_row.consent_id::text, p_row.evidence)::jsonb;
end
$$;
revoke all on function custody_data.open_evidence(custody_data.consent_records) from public;
grant execute on function custody_data.open_evidence(custody_data.consent_records) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.open_evidence(custody_data.consent_records) is 'The evidence of a consent record; null where there is none, and where the person has been erased. Errors: PC001, PC015, PC033, PC035.';

create or replace view custody.consents with (security_invoker = true) as
select c.tenant_id, c.identity_id, c.consent_id, c.purpose, c.granted, c.policy_version, c.legal_basis, custody_data.open_evidence(c) as evidence,
  c.occurred_at, c.recorded_at,
  lead(c.occurred_at) over w as replaced_at,
  c.granted and lead(c.occurred_at) over w is null as in_force
from custody_data.consent_records c
window w as (partition by c.tenant_id, c.identity_id, c.purpose order by c.occurred_at, c.recorded_at, c.consent_id);
grant select on custody.consents to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on view custody.consents is 'Consent records with the time at which the next one replaced them, and whether they are a grant in force. Evidence is read unlocked.';

-- definer: as put_profile
create or replace function custody.record_consent(
  p_user_id text,
  p_purpose text,
  p_granted boolean,
  p_policy_version text,
  p_legal_basis text default 'consent',
  p_evidence jsonb default null,
  p_occurred_at timestamptz default null,
  p_consent_id uuid default null
)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_id constant uuid := coalesce(p_consent_id, gen_random_uuid());
  v_identity_id uuid;
  v_sealed bytea[];
  v_first custody_data.consent_records;
  v_values text[];
begin
  if coalesce(btrim(p_purpose), '') = '' or char_length(p_purpose) > 128 or coalesce(char_length(p_policy_version), 0) not between 1 and 64 or p_granted is null then
    raise exception using
      errcode = 'PC023',
      message = 'invalid consent',
      detail = 'The purpose, the policy version or granted is missing or too long.',
      hint = 'Give a purpose of 1 to 128 and a policy version of 1 to 64 characters, and true or false.';
  end if;
  if p_legal_basis is null or p_legal_basis not in
      ('consent', 'contract', 'legal_obligation', 'vital_interests', 'public_task', 'legitimate_interests') then
    raise exception using
      errcode = 'PC008',
      message = format('unknown legal basis %s', coalesce(quote_literal(left(p_legal_basis, 64)), 'null')),
      hint = 'Give consent, contract, legal_obligation, vital_interests, public_task or legitimate_interests (GDPR Art. 6(1)).';
  end if;
  if p_occurred_at is not null and (not isfinite(p_occurred_at) or p_occurred_at < '1970-01-01 00:00:00+00' or p_occurred_at > now() + interval '24 hours') then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range',
      detail = 'occurred_at is infinite, before 1970, or more than a day ahead.',
      hint = 'Give the time at which the person decided, or leave it out for now.';
  end if;
  v_identity_id := custody_data.claim_person(p_user_id);
  if p_evidence is not null then
    v_sealed := custody_data.seal_values(v_identity_id, 'consent_records', v_id::text, array['evidence'], array[p_evidence::text]);
  end if;
  -- Two retries at once: the second waits for the first and then finds its record.
  insert into custody_data.consent_records
    (tenant_id, consent_id, identity_id, purpose, granted, policy_version, legal_basis, evidence, occurred_at)
  values (v_tenant, v_id, v_identity_id, p_purpose, p_granted, p_policy_version, p_legal_basis, v_sealed[1], coalesce(p_occurred_at, clock_timestamp()))
  on conflict (tenant_id, consent_id) do nothing;
  if not found then
    select c.* into v_first from custody_data.consent_records c where c.tenant_id = v_tenant and c.consent_id = v_id;
    if v_first.identity_id = v_identity_id then
      v_values := custody_data.open_unseen(v_first.identity_id, 'consent_records', v_id::text, array['evidence'], array[v_first.evidence]);
    end if;
    if (v_first.identity_id, v_first.purpose, v_first.granted, v_first.policy_version, v_first.legal_basis, v_first.evidence is null,
        coalesce(p_occurred_at, v_first.occurred_at))
      is distinct from (v_identity_id, p_purpose, p_granted, p_policy_version, p_legal_basis, p_evidence is null, v_first.occurred_at)
      or v_values[1]::jsonb is distinct from p_evidence then
      raise exception using
        errcode = 'PC010',
        message = format('consent_id %s was given before with other content', v_id),
        detail = 'The first record stands.',
        hint = 'Draw a new id for a new decision; retry an old one with the same content.';
    end if;
  end if;
  return v_id;
end
$$;
revoke all on function custody.record_consent(text, text, boolean, text, text, jsonb, timestamptz, uuid) from public;
grant execute on function custody.record_consent(text, text, boolean, text, text, jsonb, timestamptz, uuid) to custody_readwrite;
comment on function custody.record_consent(text, text, boolean, text, text, jsonb, timestamptz, uuid) is
'Records that a person gave (p_granted) or withdrew consent for a purpose under a version of the policy, and returns the consent_id. Retried with the same p_consent_id it is one record.
p_legal_basis: GDPR Art. 6(1). p_evidence: what shows it, a JSON value. p_occurred_at: when the person decided, not before 1970 and at most a day ahead; default now.
Errors: PC001, PC003, PC008 legal basis, PC009 time, PC010 id with other content, PC015, PC023, PC033 evidence while locked, PC035 altered. Callers: custody_readwrite.';

create or replace function custody.has_consent(p_user_id text, p_purpose text, p_min_policy_version text default null)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  return coalesce((
    select c.granted and (p_min_policy_version is null or c.policy_version >= p_min_policy_version)
    from custody_data.consent_records c
    where c.tenant_id = v_tenant and c.identity_id = custody_data.find_identity(p_user_id) and c.purpose = p_purpose
    order by c.occurred_at desc, c.recorded_at desc, c.consent_id desc
    limit 1), false);
end
$$;
revoke all on function custody.has_consent(text, text, text) from public;
grant execute on function custody.has_consent(text, text, text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.has_consent(text, text, text) is
'Whether the newest record for the purpose is a grant, under p_min_policy_version or later (compared as text, byte by byte); false for the unknown.
Errors: PC001, PC003. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody.current_consents(p_user_id text, p_limit integer default 1000, p_after text default null)
returns setof custody.consents
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 and go on with p_after.';
  end if;
  return query
  select c.* from custody.consents c
  where c.tenant_id = v_tenant and c.identity_id = custody_data.find_identity(p_user_id) and c.replaced_at is null
    and (p_after is null or c.purpose > p_after)
  order by c.purpose
  limit p_limit;
end
$$;
revoke all on function custody.current_consents(text, integer, text) from public;
grant execute on function custody.current_consents(text, integer, text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.current_consents(text, integer, text) is
'The newest record of each purpose, granted or withdrawn, by purpose.
p_limit: 1 to 10000. p_after: the purpose of the last row, to go on.
Errors: PC001, PC003, PC023, PC033 evidence while locked, PC035 altered, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody.consent_history(p_user_id text, p_limit integer default 1000, p_before timestamptz default null, p_before_id uuid default null)
returns setof custody.consents
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 and go on with p_before.';
  end if;
  return query
  select c.* from custody.consents c
  where c.tenant_id = v_tenant and c.identity_id = custody_data.find_identity(p_user_id)
    and c.occurred_at <= coalesce(p_before, 'infinity')
    and (p_before is null or c.occurred_at < p_before or c.consent_id < p_before_id)
  order by c.occurred_at desc, c.consent_id desc
  limit p_limit;
end
$$;
revoke all on function custody.consent_history(text, integer, timestamptz, uuid) from public;
grant execute on function custody.consent_history(text, integer, timestamptz, uuid) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.consent_history(text, integer, timestamptz, uuid) is
'All records of a person, newest first. p_limit: 1 to 10000. The page after a row: p_before its occurred_at and p_before_id its consent_id.
Errors: PC001, PC003, PC023, PC033 evidence while locked, PC035 altered, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';
