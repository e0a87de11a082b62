-- Profiles and preferences: put, patch, get, delete, find.
-- control: GDPR Art. 5(1)(d), 15, 16, 17; HIPAA 164.526
-- reviewed by: DBA, backend engineers
--
-- put and patch return the new version; p_if_version makes a change depend on the version that was read, so
-- that no update is lost. All values are sealed, so whoever reads or writes them has to unlock first. Those that write
-- run with the owner's rights, for whom row-level security holds as for the caller: nobody else can write the tables,
-- and so nobody can store what is not sealed. A value that stays as it was has the same bytes: what a record event
-- names as changed has changed.

create or replace function custody_data.merge_patch(p_target jsonb, p_patch jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_result jsonb;
  v_key text;
  v_value jsonb;
begin
  if jsonb_typeof(p_patch) is distinct from 'object' then
    return p_patch;
  end if;
  v_result := case when jsonb_typeof(p_target) = 'object' then p_target else '{}'::jsonb end;
  for v_key, v_value in select e.key, e.value from jsonb_each(p_patch) e loop
    if v_value = 'null' then
      v_result := v_result - v_key;
    else
      v_result := v_result || jsonb_build_object(v_key, custody_data.merge_patch(v_result -> v_key, v_value));
    end if;
  end loop;
  return v_result;
end
$$;
revoke all on function custody_data.merge_patch(jsonb, jsonb) from public;
comment on function custody_data.merge_patch(jsonb, jsonb) is 'JSON merge patch, RFC 7396.';

create or replace function custody_data.check_profile(p_profile jsonb)
returns jsonb
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fields constant text[] := array['full_name', 'email', 'phone', 'organisation', 'title', 'address', 'city', 'region', 'postal_code', 'country'];
  v_profile jsonb;
  v_field text;
begin
  if p_profile is null or jsonb_typeof(p_profile) <> 'object' then
    raise exception using errcode = 'PC023', message = 'invalid profile: not a JSON object', hint = 'Give an object of profile fields.';
  end if;
  -- What get_profile adds may come back with it.
  v_profile := p_profile - array['user_id', 'version', 'created_at', 'updated_at'];
  if v_profile - (v_fields || array['attributes']) <> '{}' then
    raise exception using
      errcode = 'PC023',
      message = 'invalid profile: unknown field',
      detail = format('%s fields are unknown.', (select count(*) from jsonb_object_keys(v_profile - (v_fields || array['attributes'])))),
      hint = format('Fields: %s; anything else goes into the object attributes.', array_to_string(v_fields, ', '));
  end if;
  foreach v_field in array v_fields loop
    if jsonb_typeof(v_profile -> v_field) not in ('string', 'null') or char_length(v_profile ->> v_field) > 1000 then
      raise exception using
        errcode = 'PC023',
        message = format('invalid profile: field %s', v_field),
        detail = 'It is not a string of at most 1000 characters.',
        hint = 'Give a string, or null to empty the field.';
    end if;
  end loop;
  if jsonb_typeof(v_profile -> 'attributes') not in ('object', 'null') then
    raise exception using errcode = 'PC023', message = 'invalid profile: field attributes', detail = 'It is not an object.', hint = 'Give an object or null.';
  end if;
  return v_profile;
end
$$;
revoke all on function custody_data.check_profile(jsonb) from public;
comment on function custody_data.check_profile(jsonb) is 'The profile fields of a JSON object; PC023 names the field that is wrong.';

create or replace function custody_data.profile_fields()
returns text[]
language sql
immutable
parallel safe
return array['full_name', 'email', 'phone', 'organisation', 'title', 'address', 'city', 'region', 'postal_code', 'country', 'attributes'];
revoke all on function custody_data.profile_fields() from public;
grant execute on function custody_data.profile_fields() to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.profile_fields() is 'The sealed columns of user_profiles, in their order.';

create or replace function custody_data.sealed_profile(p_row custody_data.user_profiles)
returns bytea[]
language sql
immutable
parallel safe
return array[(p_row).full_name, (p_row).email, (p_row).phone, (p_row).organisation, (p_row).title, (p_row).address, (p_row).city, (p_row).region,
  (p_row).postal_code, (p_row).country, (p_row).attributes]::bytea[];
revoke all on function custody_data.sealed_profile(custody_data.user_profiles) from public;
grant execute on function custody_data.sealed_profile(custody_data.user_profiles) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.sealed_profile(custody_data.user_profiles) is 'The sealed values of a profile, in the order of profile_fields.';

create or replace function custody_data.open_profile(p_row custody_data.user_profiles)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.open_values(p_row.identity_id, 'user_profiles', p_row.identity_id::text, custody_data.profile_fields(), custody_data.sealed_profile(p_row));
end
$$;
revoke all on function custody_data.open_profile(custody_data.user_profiles) from public;
grant execute on function custody_data.open_profile(custody_data.user_profiles) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.open_profile(custody_data.user_profiles) is 'The values of a profile, in the order of profile_fields. Errors: PC001, PC015, PC033, PC035.';

create or replace function custody_data.profile_object(p_values text[])
returns jsonb
language sql
stable -- as what it calls, so that callers take it in
parallel safe
return pg_catalog.jsonb_build_object(
  'full_name', p_values[1], 'email', p_values[2], 'phone', p_values[3], 'organisation', p_values[4], 'title', p_values[5],
  'address', p_values[6], 'city', p_values[7], 'region', p_values[8], 'postal_code', p_values[9], 'country', p_values[10],
  'attributes', p_values[11]::jsonb);
revoke all on function custody_data.profile_object(text[]) from public;
grant execute on function custody_data.profile_object(text[]) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.profile_object(text[]) is 'The values of a profile as a JSON object of its fields.';

-- definer: makes the tenant's index key, for imports too
create or replace function custody_data.seal_profile(p_identity_id uuid, p_row custody_data.user_profiles, p_values text[])
returns custody_data.user_profiles
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_row custody_data.user_profiles := p_row;
  v_indexes bytea[];
  v_sealed constant bytea[] := custody_data.seal_values(p_identity_id, 'user_profiles', p_identity_id::text, custody_data.profile_fields(), p_values);
begin
  v_row.identity_id := p_identity_id;
  v_row.full_name := v_sealed[1];
  v_row.email := v_sealed[2];
  v_row.phone := v_sealed[3];
  v_row.organisation := v_sealed[4];
  v_row.title := v_sealed[5];
  v_row.address := v_sealed[6];
  v_row.city := v_sealed[7];
  v_row.region := v_sealed[8];
  v_row.postal_code := v_sealed[9];
  v_row.country := v_sealed[10];
  v_row.attributes := v_sealed[11];
  if v_sealed[2] is distinct from p_row.email::bytea or v_sealed[3] is distinct from p_row.phone::bytea then
    perform custody_data.claim_data_key('00000000-0000-0000-0000-000000000000');
    v_indexes := custody_data.blind_indexes('email', p_values[2]);
    v_row.email_index := v_indexes[1];
    v_indexes := custody_data.blind_indexes('phone', p_values[3]);
    v_row.phone_index := v_indexes[1];
  end if;
  return v_row;
end
$$;
revoke all on function custody_data.seal_profile(uuid, custody_data.user_profiles, text[]) from public;
grant execute on function custody_data.seal_profile(uuid, custody_data.user_profiles, text[]) to custody_worker;
comment on function custody_data.seal_profile(uuid, custody_data.user_profiles, text[]) is
'A row of user_profiles with values in the order of profile_fields, sealed and indexed; p_row is the row that is there, or null. Errors: PC001, PC021, PC033.';

create or replace function custody_data.write_profile(p_identity_id uuid, p_row custody_data.user_profiles, p_profile jsonb)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_row custody_data.user_profiles;
  v_version integer;
begin
  if p_profile ->> 'email' is not null then
    perform custody_data.require_unique(p_identity_id, 'email', p_profile ->> 'email');
  end if;
  if p_profile ->> 'phone' is not null then
    perform custody_data.require_unique(p_identity_id, 'phone', p_profile ->> 'phone');
  end if;
  v_row := custody_data.seal_profile(p_identity_id, p_row, array[p_profile ->> 'full_name', p_profile ->> 'email', p_profile ->> 'phone',
    p_profile ->> 'organisation', p_profile ->> 'title', p_profile ->> 'address', p_profile ->> 'city', p_profile ->> 'region',
    p_profile ->> 'postal_code', p_profile ->> 'country', nullif(p_profile -> 'attributes', 'null')::text]);
  if p_row.identity_id is null then
    insert into custody_data.user_profiles as p
      (tenant_id, identity_id, full_name, email, phone, organisation, title, address, city, region, postal_code, country, attributes,
        email_index, phone_index)
    values (v_tenant, p_identity_id, v_row.full_name, v_row.email, v_row.phone, v_row.organisation, v_row.title, v_row.address, v_row.city,
      v_row.region, v_row.postal_code, v_row.country, v_row.attributes, v_row.email_index, v_row.phone_index)
    on conflict do nothing
    returning p.version into v_version;
  else
    update custody_data.user_profiles p set
      full_name = v_row.full_name, email = v_row.email, phone = v_row.phone, organisation = v_row.organisation, title = v_row.title,
      address = v_row.address, city = v_row.city, region = v_row.region, postal_code = v_row.postal_code, country = v_row.country,
      attributes = v_row.attributes, email_index = v_row.email_index, phone_index = v_row.phone_index
    where p.tenant_id = v_tenant and p.identity_id = p_identity_id
    returning p.version into v_version;
  end if;
  return v_version;
end
$$;
revoke all on function custody_data.write_profile(uuid, custody_data.user_profiles, jsonb) from public;
comment on function custody_data.write_profile(uuid, custody_data.user_profiles, jsonb) is
'Writes the fields of a profile over p_row, which is locked; where p_row is null it adds one. Returns the version; null where another transaction added one first. Errors: PC001, PC021, PC033, PC038.';

-- definer: profiles are written by functions alone
create or replace function custody.put_profile(p_user_id text, p_profile jsonb)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_profile constant jsonb := custody_data.check_profile(p_profile);
  v_identity_id uuid;
  v_row custody_data.user_profiles;
  v_version integer;
begin
  if p_profile ? 'user_id' and p_profile ->> 'user_id' is distinct from p_user_id then
    raise exception using errcode = 'PC023', message = 'invalid profile: it names another user_id', hint = 'Leave user_id out of the profile.';
  end if;
  perform custody_data.require_kek();
  v_identity_id := custody_data.claim_person(p_user_id);
  perform custody_data.lock_unique_fields();
  loop
    select p.* into v_row from custody_data.user_profiles p where p.tenant_id = v_tenant and p.identity_id = v_identity_id for update;
    v_version := custody_data.write_profile(v_identity_id, v_row, v_profile);
    exit when v_version is not null;
  end loop;
  return v_version;
end
$$;
revoke all on function custody.put_profile(text, jsonb) from public;
grant execute on function custody.put_profile(text, jsonb) to custody_readwrite;
comment on function custody.put_profile(text, jsonb) is
'Stores the whole profile of a person, who is made known where missing, and returns its version (1 for the first). Fields that are left out are emptied.
p_profile: object of full_name, email, phone, organisation, title, address, city, region, postal_code, country (strings up to 1000 characters or null) and attributes (object). user_id, version and times, as get_profile gives them, are passed over.
Errors: PC001, PC003, PC015, PC023, PC026 isolation level, where a field is unique, PC033 locked, PC035 altered, PC038 an e-mail address or telephone number is taken. Callers: custody_readwrite.';

create or replace function custody_data.check_version(p_version integer, p_if_version integer, p_what text)
returns void
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_if_version is not null and p_version is distinct from p_if_version then
    raise exception using
      errcode = 'PC014',
      message = format('stale version of the %s', p_what),
      detail = format('It has version %s, the caller read version %s.', p_version, p_if_version),
      hint = 'Read it again and repeat the change.';
  end if;
end
$$;
revoke all on function custody_data.check_version(integer, integer, text) from public;
comment on function custody_data.check_version(integer, integer, text) is 'Raises PC014 where p_if_version is given and is not the version.';

create or replace function custody_data.unknown_record(p_what text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'PC011',
    message = format('unknown person: no %s there', p_what),
    detail = 'The tenant in context knows no such person, or nothing of that kind about the person.',
    hint = format('Store the %s first.', p_what);
end
$$;
revoke all on function custody_data.unknown_record(text) from public;
comment on function custody_data.unknown_record(text) is 'Raises PC011.';

-- definer: profiles are written by functions alone
create or replace function custody.patch_profile(p_user_id text, p_changes jsonb, p_if_version integer default null)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_identity_id uuid;
  v_row custody_data.user_profiles;
begin
  v_identity_id := custody_data.require_person(p_user_id);
  if p_changes is null or jsonb_typeof(p_changes) <> 'object' then
    raise exception using errcode = 'PC023', message = 'invalid changes: not a JSON object', hint = 'Give a JSON merge patch (RFC 7396).';
  end if;
  perform custody_data.lock_unique_fields();
  select p.* into v_row from custody_data.user_profiles p
  where p.tenant_id = custody.current_tenant() and p.identity_id = v_identity_id
  for update;
  if not found then
    perform custody_data.unknown_record('profile');
  end if;
  perform custody_data.check_version(v_row.version, p_if_version, 'profile');
  perform custody_data.require_kek();
  return custody_data.write_profile(v_identity_id, v_row,
    custody_data.check_profile(custody_data.merge_patch(custody_data.profile_object(
      custody_data.open_unseen(v_identity_id, 'user_profiles', v_identity_id::text, custody_data.profile_fields(), custody_data.sealed_profile(v_row))), p_changes)));
end
$$;
revoke all on function custody.patch_profile(text, jsonb, integer) from public;
grant execute on function custody.patch_profile(text, jsonb, integer) to custody_readwrite;
comment on function custody.patch_profile(text, jsonb, integer) is
'Merges changes into the profile (JSON merge patch, RFC 7396: null empties a field) and returns the new version.
p_if_version: only where the profile still has this version.
Errors: PC001, PC003, PC011 no such person or profile, PC014 stale version, PC015, PC023, PC026 isolation level, where a field is unique, PC033 locked, PC035 altered, PC038 taken. Callers: custody_readwrite.';

create or replace function custody.get_profile(p_user_id text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_row custody_data.user_profiles;
begin
  perform custody_data.check_user_id(p_user_id);
  select p.* into v_row
  from custody_data.user_profiles p
  where p.tenant_id = v_tenant and p.identity_id = custody_data.find_identity(p_user_id);
  if not found then
    return null;
  end if;
  return jsonb_build_object('user_id', p_user_id, 'version', v_row.version, 'created_at', v_row.created_at, 'updated_at', v_row.updated_at)
    || custody_data.profile_object(custody_data.open_profile(v_row));
end
$$;
revoke all on function custody.get_profile(text) from public;
grant execute on function custody.get_profile(text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.get_profile(text) is
'The profile as a JSON object: user_id, the fields of put_profile (null where empty), version, created_at, updated_at; null for the unknown and for what the context may not see.
Errors: PC001, PC003, PC033 locked, PC035 altered, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

-- definer: as put_profile
create or replace function custody.delete_profile(p_user_id text)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  delete from custody_data.user_profiles p
  where p.tenant_id = v_tenant and p.identity_id = custody_data.find_identity(p_user_id);
  return found;
end
$$;
revoke all on function custody.delete_profile(text) from public;
grant execute on function custody.delete_profile(text) to custody_readwrite;
comment on function custody.delete_profile(text) is
'Deletes the profile and returns whether there was one. Not an erasure: see custody.request_erasure.
Errors: PC001, PC003, PC032 under a legal hold. Callers: custody_readwrite.';

-- definer: who is found is recorded, as what is opened is
create or replace function custody.find_subject(p_email text default null, p_phone text default null, p_limit integer default 100, p_after text default null)
returns setof text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_columns constant text[] := array_remove(array[case when p_email is not null then 'email' end, case when p_phone is not null then 'phone' end], null);
  v_emails bytea[];
  v_phones bytea[];
  v_found record;
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 and go on with p_after.';
  end if;
  if p_email is null and p_phone is null then
    raise exception using errcode = 'PC023', message = 'nothing to look for', hint = 'Give p_email, p_phone or both.';
  end if;
  v_emails := case when p_email is not null then custody_data.blind_indexes('email', p_email) end;
  v_phones := case when p_phone is not null then custody_data.blind_indexes('phone', p_phone) end;
  for v_found in
    select i.user_id, i.identity_id
    from custody_data.user_profiles p
    join custody_data.identities i on i.tenant_id = p.tenant_id and i.identity_id = p.identity_id
    where p.tenant_id = v_tenant
      and (v_emails is null or p.email_index = any (v_emails)) and (v_phones is null or p.phone_index = any (v_phones))
      and (p_after is null or i.user_id > p_after)
    order by i.user_id
    limit p_limit
  loop
    -- To say whose an address is says what their address is.
    perform custody_data.record_read(v_found.identity_id, 'user_profiles', v_columns, 1);
    return next v_found.user_id;
  end loop;
end
$$;
revoke all on function custody.find_subject(text, text, integer, text) from public;
grant execute on function custody.find_subject(text, text, integer, text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.find_subject(text, text, integer, text) is
'The user_ids whose profile has this e-mail address and this telephone number, in their order. Each found is a read of theirs, recorded before any is returned.
p_email: compared without case and surrounding blanks, in Unicode NFKC. p_phone: compared in E.164 where both say their country, else by their digits. Either may be left out. p_limit: 1 to 10000. p_after: the last user_id, to go on.
Errors: PC001, PC023, PC033 locked, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody_data.check_preferences(p_preferences jsonb)
returns void
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_preferences is null or jsonb_typeof(p_preferences) <> 'object' then
    raise exception using errcode = 'PC023', message = 'invalid preferences: not a JSON object', hint = 'Give an object.';
  end if;
end
$$;
revoke all on function custody_data.check_preferences(jsonb) from public;
comment on function custody_data.check_preferences(jsonb) is 'Raises PC023 for what is not a JSON object.';

create or replace function custody_data.open_preferences(p_row custody_data.user_preferences)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.open_text(p_row.identity_id, 'user_preferences', 'preferences', p_row.identity_id::text, p_row.preferences)::jsonb;
end
$$;
revoke all on function custody_data.open_preferences(custody_data.user_preferences) from public;
grant execute on function custody_data.open_preferences(custody_data.user_preferences) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.open_preferences(custody_data.user_preferences) is 'The settings of a row. Errors: PC001, PC015, PC033, PC035.';

create or replace function custody_data.seal_preferences(p_identity_id uuid, p_preferences jsonb)
returns bytea
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_sealed constant bytea[] := custody_data.seal_values(p_identity_id, 'user_preferences', p_identity_id::text, array['preferences'], array[p_preferences::text]);
begin
  return v_sealed[1];
end
$$;
revoke all on function custody_data.seal_preferences(uuid, jsonb) from public;
comment on function custody_data.seal_preferences(uuid, jsonb) is 'Settings sealed. Errors: PC001, PC021, PC033.';

-- definer: as put_profile
create or replace function custody.put_preferences(p_user_id text, p_preferences jsonb)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_identity_id uuid;
  v_sealed bytea;
  v_version integer;
begin
  perform custody_data.check_preferences(p_preferences), custody_data.require_kek();
  v_identity_id := custody_data.claim_person(p_user_id);
  v_sealed := custody_data.seal_preferences(v_identity_id, p_preferences);
  insert into custody_data.user_preferences as p (tenant_id, identity_id, preferences)
  values (v_tenant, v_identity_id, v_sealed)
  on conflict (tenant_id, identity_id) do update set preferences = excluded.preferences
  returning p.version into v_version;
  return v_version;
end
$$;
revoke all on function custody.put_preferences(text, jsonb) from public;
grant execute on function custody.put_preferences(text, jsonb) to custody_readwrite;
comment on function custody.put_preferences(text, jsonb) is
'Stores all settings of a person, a JSON object, and returns their version (1 for the first).
Errors: PC001, PC003, PC015, PC023, PC033 locked, PC035 an altered data key. Callers: custody_readwrite.';

-- definer: as put_profile
create or replace function custody.patch_preferences(p_user_id text, p_changes jsonb, p_if_version integer default null)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_identity_id uuid;
  v_row custody_data.user_preferences;
begin
  v_identity_id := custody_data.require_person(p_user_id);
  perform custody_data.check_preferences(p_changes);
  select p.* into v_row from custody_data.user_preferences p
  where p.tenant_id = custody.current_tenant() and p.identity_id = v_identity_id
  for update;
  if not found then
    perform custody_data.unknown_record('preferences');
  end if;
  perform custody_data.check_version(v_row.version, p_if_version, 'preferences');
  perform custody_data.require_kek();
  v_row.preferences := custody_data.seal_preferences(v_identity_id,
    custody_data.merge_patch(custody_data.open_preferences(v_row), p_changes));
  update custody_data.user_preferences p set preferences = v_row.preferences
  where p.tenant_id = v_row.tenant_id and p.identity_id = v_identity_id
  returning p.version into v_row.version;
  return v_row.version;
end
$$;
revoke all on function custody.patch_preferences(text, jsonb, integer) from public;
grant execute on function custody.patch_preferences(text, jsonb, integer) to custody_readwrite;
comment on function custody.patch_preferences(text, jsonb, integer) is
'Merges changes into the settings (JSON merge patch, RFC 7396) and returns the new version. p_if_version: only where they still have this version.
Errors: PC001, PC003, PC011, PC014, PC015, PC023, PC033 locked, PC035 altered. Callers: custody_readwrite.';

create or replace function custody.get_preferences(p_user_id text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_row custody_data.user_preferences;
begin
  perform custody_data.check_user_id(p_user_id);
  select p.* into v_row
  from custody_data.user_preferences p
  where p.tenant_id = v_tenant and p.identity_id = custody_data.find_identity(p_user_id);
  return custody_data.open_preferences(v_row);
end
$$;
revoke all on function custody.get_preferences(text) from public;
grant execute on function custody.get_preferences(text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.get_preferences(text) is
'The settings of a person as they were put; null for the unknown and for what the context may not see.
Errors: PC001, PC003, PC033 locked, PC035 altered, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

-- definer: as put_profile
create or replace function custody.delete_preferences(p_user_id text)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  delete from custody_data.user_preferences p
  where p.tenant_id = v_tenant and p.identity_id = custody_data.find_identity(p_user_id);
  return found;
end
$$;
revoke all on function custody.delete_preferences(text) from public;
grant execute on function custody.delete_preferences(text) to custody_readwrite;
comment on function custody.delete_preferences(text) is
'Deletes the settings and returns whether there were any.
Errors: PC001, PC003, PC032 under a legal hold. Callers: custody_readwrite.';
