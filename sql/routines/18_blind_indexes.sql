-- Blind indexes: finding a person by e-mail address or telephone number although both are sealed.
-- control: GDPR Art. 15, 25, 32(1)(a); HIPAA 164.312(a)(2)(iv); ISO 27001 A.8.24
-- reviewed by: security, DBA
--
-- The index of a value is
--   4 bytes   version of the tenant's index key, big-endian
--   32 bytes  the first half of HMAC-SHA-512 over the normalised value in UTF-8, under the field's key
-- and the field's key is HMAC-SHA-512 over 'pgcustody: blind index of user_profiles.FIELD' under the tenant's index key,
-- which is the data key of the nil identity. So two people with the same address have the same index, in one tenant and
-- one field; who has not got the tenant's key-encryption key can neither compute an index nor test a guess.
--
-- A user_id is indexed once its person has been erased, and only where the tenant wants it (custody.remember_erased).
--
-- While an index key is replaced (custody.rotate_index_key, custody.reindex_profiles) indexes of both versions are looked for.

create or replace function custody_data.normalize_email(p_email text)
returns text
language sql
immutable
parallel safe
return nullif(pg_catalog.lower(pg_catalog.btrim(normalize(p_email, nfkc))), '');
revoke all on function custody_data.normalize_email(text) from public;
grant execute on function custody_data.normalize_email(text) to custody_worker;
comment on function custody_data.normalize_email(text) is 'An e-mail address as addresses are compared: Unicode NFKC, without surrounding blanks, lower case; null where nothing is left.';

create or replace function custody_data.normalize_phone(p_phone text)
returns text
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  -- +49 (0)30 …: the zero is dialled at home only.
  v_text constant text := regexp_replace(btrim(normalize(p_phone, nfkc)), '^([+]|00)([0-9 ]+)[(]0[)]', '\1\2');
  v_digits constant text := regexp_replace(v_text, '[^0-9]', '', 'g');
begin
  return case
    when v_text like '+%' and char_length(v_digits) between 7 and 15 then '+' || v_digits
    when v_text like '00%' and char_length(v_digits) between 9 and 17 then '+' || substr(v_digits, 3)
    else nullif(v_digits, '') end;
end
$$;
revoke all on function custody_data.normalize_phone(text) from public;
grant execute on function custody_data.normalize_phone(text) to custody_worker;
comment on function custody_data.normalize_phone(text) is
'A telephone number as numbers are compared: E.164 where it says its country (+ or 00), else its digits; null where there is none.';

create or replace function custody_data.index_key(p_field text, p_version integer)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.hmac_sha512(convert_to('pgcustody: blind index of user_profiles.' || p_field, 'UTF8'),
    custody_data.data_key('00000000-0000-0000-0000-000000000000', p_version));
end
$$;
revoke all on function custody_data.index_key(text, integer) from public;
comment on function custody_data.index_key(text, integer) is 'A field''s key of a version of the tenant''s index key. Errors: PC001, PC033, PC035.';

create or replace function custody_data.blind_index(p_field_key bytea, p_version integer, p_normal text)
returns bytea
language sql
stable
parallel safe
return pg_catalog.int4send(p_version) || substr(custody_data.hmac_sha512(pg_catalog.convert_to(p_normal, 'UTF8'), p_field_key), 1, 32);
revoke all on function custody_data.blind_index(bytea, integer, text) from public;
comment on function custody_data.blind_index(bytea, integer, text) is 'Blind index of a normalised value under a field''s key; null of null.';

-- definer: the keys are the owner's
create or replace function custody_data.blind_indexes(p_field text, p_value text)
returns bytea[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_nobody constant uuid := uuid '00000000-0000-0000-0000-000000000000';
  v_normal constant text := case p_field when 'email' then custody_data.normalize_email(p_value) when 'phone' then custody_data.normalize_phone(p_value) else p_value end;
  v_versions integer[];
  v_key bytea;
  v_indexes bytea[] := array[]::bytea[];
begin
  perform custody_data.require_kek();
  if v_normal is null then
    return v_indexes;
  end if;
  v_versions := array(
    select k.key_version from custody_keys.data_keys k
    where k.tenant_id = v_tenant and k.identity_id = v_nobody and k.destroyed_at is null
    order by k.key_version desc);
  for i in 1 .. cardinality(v_versions) loop
    v_key := custody_data.index_key(p_field, v_versions[i]);
    v_indexes := v_indexes || custody_data.blind_index(v_key, v_versions[i], v_normal);
  end loop;
  return v_indexes;
end
$$;
revoke all on function custody_data.blind_indexes(text, text) from public;
grant execute on function custody_data.blind_indexes(text, text) to custody_worker;
comment on function custody_data.blind_indexes(text, text) is
'Blind indexes of a value of field email or phone, normalised, or of a user_id: under the newest index key first, then under those that are being replaced; none of a value without substance, or before there is an index key. Errors: PC001, PC033.';

-- definer: under a context that is confined to one person, the others' profiles are looked at too
create or replace function custody_data.index_taken(p_identity_id uuid, p_field text, p_indexes bytea[])
returns boolean
language plpgsql
volatile -- sees what was committed while require_unique waited
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_subject constant text := current_setting('custody.subject', true);
  v_taken boolean;
begin
  perform set_config('custody.subject', '', true), custody_data.sign_context();
  select exists (
    select from custody_data.user_profiles p
    where p.tenant_id = v_tenant and p_field = 'email' and p.email_index = any (p_indexes) and p.identity_id <> p_identity_id
    union all
    select from custody_data.user_profiles p
    where p.tenant_id = v_tenant and p_field = 'phone' and p.phone_index = any (p_indexes) and p.identity_id <> p_identity_id)
  into v_taken;
  perform set_config('custody.subject', v_subject, true), custody_data.sign_context();
  return v_taken;
end
$$;
revoke all on function custody_data.index_taken(uuid, text, bytea[]) from public;
comment on function custody_data.index_taken(uuid, text, bytea[]) is 'Whether the profile of anybody else of the tenant has one of these indexes.';

create or replace function custody_data.lock_unique_fields()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform pg_advisory_xact_lock_shared(hashtextextended('pgcustody.profiles.' || v_tenant, 0));
  if current_setting('transaction_isolation') <> 'read committed' then
    -- Of a rule that is newer than this snapshot only a row lock tells: 40001.
    perform 1 from custody_data.tenants t where t.tenant_id = v_tenant for share;
  end if;
end
$$;
revoke all on function custody_data.lock_unique_fields() from public;
comment on function custody_data.lock_unique_fields() is
'Keeps the rule of unique fields as it is until the transaction ends. Before the row of a profile: imports and set_unique_fields have it before the rows, too. Errors: PC001; 40001 where the rule is newer than the snapshot.';

create or replace function custody_data.require_unique(p_identity_id uuid, p_field text, p_value text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_indexes bytea[];
begin
  if not exists (select from custody_data.tenants t where t.tenant_id = v_tenant and p_field = any (t.unique_fields)) then
    return;
  end if;
  perform custody_data.require_read_committed(), custody_data.claim_data_key('00000000-0000-0000-0000-000000000000');
  v_indexes := custody_data.blind_indexes(p_field, p_value);
  if cardinality(v_indexes) = 0 then
    return;
  end if;
  -- Whoever writes the same value waits here, and then sees this one's row.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.unique.' || v_tenant || encode(v_indexes[1], 'hex'), 0));
  if custody_data.index_taken(p_identity_id, p_field, v_indexes) then
    raise exception using
      errcode = 'PC038',
      message = format('%s is taken in tenant %s', p_field, v_tenant),
      detail = format('Another person''s profile has the same %s, and the tenant wants it unique.', p_field),
      hint = 'Find who has it with custody.find_subject, or leave the field empty.',
      schema = 'custody_data', table = 'user_profiles', column = p_field;
  end if;
end
$$;
revoke all on function custody_data.require_unique(uuid, text, text) from public;
comment on function custody_data.require_unique(uuid, text, text) is
'Once lock_unique_fields has been called: raises PC038 where another person of the tenant has the same value in a field that the tenant wants unique, and keeps others from writing it until the transaction ends. Errors: PC026, PC038.';

-- definer: tenants are written by functions alone
create or replace function custody.set_unique_fields(p_fields text[])
returns text[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_fields constant text[] := array(select distinct f from unnest(p_fields) f order by f);
  v_taken bigint;
begin
  perform custody_data.require_read_committed();
  if p_fields is null or not v_fields <@ array['email', 'phone'] or array_position(p_fields, null) is not null then
    raise exception using errcode = 'PC023', message = 'invalid fields', hint = 'Give an array of email and phone, which may be empty.';
  end if;
  if exists (
    select from custody_data.tenants t
    where t.tenant_id = v_tenant and v_fields <@ t.unique_fields and t.unique_fields <@ v_fields
  ) then
    return v_fields;
  end if;
  -- Whoever writes a profile under the old rule is waited for.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.profiles.' || v_tenant, 0));
  update custody_data.tenants t set unique_fields = v_fields where t.tenant_id = v_tenant;
  select count(*) into v_taken
  from (
    select from custody_data.user_profiles p where p.tenant_id = v_tenant and p.email_index is not null and 'email' = any (v_fields)
    group by p.email_index having count(*) > 1
    union all
    select from custody_data.user_profiles p where p.tenant_id = v_tenant and p.phone_index is not null and 'phone' = any (v_fields)
    group by p.phone_index having count(*) > 1
  ) d;
  if v_taken > 0 then
    raise exception using
      errcode = 'PC038',
      message = format('%s cannot be unique in tenant %s', array_to_string(v_fields, ', '), v_tenant),
      detail = format('%s values are in the profiles of more than one person.', v_taken),
      hint = 'Correct those profiles first, then say it again.';
  end if;
  perform custody_data.append_event('tenant.configure', null, null, 'success', jsonb_build_object('unique_fields', v_fields), null);
  return v_fields;
end
$$;
revoke all on function custody.set_unique_fields(text[]) from public;
grant execute on function custody.set_unique_fields(text[]) to custody_readwrite, custody_worker;
comment on function custody.set_unique_fields(text[]) is
'Says which profile fields no two people of the tenant may have the same (compared as find_subject does), and returns them. From then on put_profile, patch_profile and imports refuse what is taken. The change is an event.
p_fields: of email and phone; none lifts the rule. Run it while no index key is being replaced.
Errors: PC001, PC015 confined to one person, PC023, PC026 isolation level, PC038 some have the same value now. Callers: custody_readwrite, custody_worker.';
