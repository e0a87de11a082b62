-- Profiles and preferences: put, patch, get, delete, find.
-- control: GDPR Art. 5(1)(d), 15, 16, 17; HIPAA 164.526
-- reviewed by: DBA, backend engineers
--
-- put and patch return the new version; p_if_version makes a change depend on the version that was read, so
-- that no update is lost. The functions run with the caller's rights: row-level security decides what is seen.

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
grant execute on function custody_data.merge_patch(jsonb, jsonb) to custody_readwrite, custody_worker;
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
grant execute on function custody_data.check_profile(jsonb) to custody_readwrite, custody_worker;
comment on function custody_data.check_profile(jsonb) is 'The profile fields of a JSON object; PC023 names the field that is wrong.';

create or replace function custody.put_profile(p_user_id text, p_profile jsonb)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_profile constant jsonb := custody_data.check_profile(p_profile);
  v_identity_id uuid;
  v_version integer;
begin
  if p_profile ? 'user_id' and p_profile ->> 'user_id' is distinct from p_user_id then
    raise exception using errcode = 'PC023', message = 'invalid profile: it names another user_id', hint = 'Leave user_id out of the profile.';
  end if;
  v_identity_id := custody_data.claim_person(p_user_id);
  insert into custody_data.user_profiles as p
    (tenant_id, identity_id, full_name, email, phone, organisation, title, address, city, region, postal_code, country, attributes)
  values (v_tenant, v_identity_id, v_profile ->> 'full_name', v_profile ->> 'email', v_profile ->> 'phone', v_profile ->> 'organisation',
    v_profile ->> 'title', v_profile ->> 'address', v_profile ->> 'city', v_profile ->> 'region', v_profile ->> 'postal_code',
    v_profile ->> 'country', nullif(v_profile -> 'attributes', 'null'))
  on conflict (tenant_id, identity_id) do update set
    full_name = excluded.full_name, email = excluded.email, phone = excluded.phone, organisation = excluded.organisation,
    title = excluded.title, address = excluded.address, city = excluded.city, region = excluded.region,
    postal_code = excluded.postal_code, country = excluded.country, attributes = excluded.attributes
  returning p.version into v_version;
  return v_version;
end
$$;
revoke all on function custody.put_profile(text, jsonb) from public;
grant execute on function custody.put_profile(text, jsonb) to custody_readwrite;
comment on function custody.put_profile(text, jsonb) is
'Stores the whole profile of a person, who is made known where missing, and returns its version (1 for the first). Fields that are left out are emptied.
p_profile: object of full_name, email, phone, organisation, title, address, city, region, postal_code, country (strings up to 1000 characters or null) and attributes (object). user_id, version and times, as get_profile gives them, are passed over.
Errors: PC001, PC003, PC015, PC023. Callers: custody_readwrite.';

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
grant execute on function custody_data.check_version(integer, integer, text) to custody_readwrite, custody_worker;
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
grant execute on function custody_data.unknown_record(text) to custody_readwrite, custody_worker;
comment on function custody_data.unknown_record(text) is 'Raises PC011.';

create or replace function custody.patch_profile(p_user_id text, p_changes jsonb, p_if_version integer default null)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_identity_id uuid;
  v_row custody_data.user_profiles;
  v_profile jsonb;
begin
  v_identity_id := custody_data.require_person(p_user_id);
  if p_changes is null or jsonb_typeof(p_changes) <> 'object' then
    raise exception using errcode = 'PC023', message = 'invalid changes: not a JSON object', hint = 'Give a JSON merge patch (RFC 7396).';
  end if;
  select p.* into v_row from custody_data.user_profiles p
  where p.tenant_id = custody.current_tenant() and p.identity_id = v_identity_id
  for update;
  if not found then
    perform custody_data.unknown_record('profile');
  end if;
  perform custody_data.check_version(v_row.version, p_if_version, 'profile');
  v_profile := custody_data.check_profile(custody_data.merge_patch(
    to_jsonb(v_row) - array['tenant_id', 'identity_id', 'email_index', 'version', 'created_at', 'updated_at'], p_changes));
  update custody_data.user_profiles p set
    full_name = v_profile ->> 'full_name', email = v_profile ->> 'email', phone = v_profile ->> 'phone',
    organisation = v_profile ->> 'organisation', title = v_profile ->> 'title', address = v_profile ->> 'address',
    city = v_profile ->> 'city', region = v_profile ->> 'region', postal_code = v_profile ->> 'postal_code',
    country = v_profile ->> 'country', attributes = nullif(v_profile -> 'attributes', 'null')
  where p.tenant_id = v_row.tenant_id and p.identity_id = v_identity_id
  returning p.version into v_row.version;
  return v_row.version;
end
$$;
revoke all on function custody.patch_profile(text, jsonb, integer) from public;
grant execute on function custody.patch_profile(text, jsonb, integer) to custody_readwrite;
comment on function custody.patch_profile(text, jsonb, integer) is
'Merges changes into the profile (JSON merge patch, RFC 7396: null empties a field) and returns the new version.
p_if_version: only where the profile still has this version.
Errors: PC001, PC003, PC011 no such person or profile, PC014 stale version, PC015, PC023. Callers: custody_readwrite.';

create or replace function custody.get_profile(p_user_id text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  return (
    select jsonb_build_object('user_id', p_user_id)
      || (to_jsonb(p) - array['tenant_id', 'identity_id', 'email_index'])
    from custody_data.user_profiles p
    where p.tenant_id = v_tenant and p.identity_id = custody_data.find_identity(p_user_id));
end
$$;
revoke all on function custody.get_profile(text) from public;
grant execute on function custody.get_profile(text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.get_profile(text) is
'The profile as a JSON object: user_id, the fields of put_profile (null where empty), version, created_at, updated_at; null for the unknown and for what the context may not see.
Errors: PC001, PC003. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody.delete_profile(p_user_id text)
returns boolean
language plpgsql
volatile
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

create or replace function custody.find_subject(p_email text, p_limit integer default 100, p_after text default null)
returns setof text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 and go on with p_after.';
  end if;
  return query
  select i.user_id
  from custody_data.user_profiles p
  join custody_data.identities i on i.tenant_id = p.tenant_id and i.identity_id = p.identity_id
  where p.tenant_id = v_tenant and p.email_index = lower(normalize(btrim(p_email), nfkc))
    and (p_after is null or i.user_id > p_after)
  order by i.user_id
  limit p_limit;
end
$$;
revoke all on function custody.find_subject(text, integer, text) from public;
grant execute on function custody.find_subject(text, integer, text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.find_subject(text, integer, text) is
'The user_ids whose profile has this e-mail address, compared without case and surrounding blanks, in Unicode NFKC; in their order.
p_limit: 1 to 10000. p_after: the last user_id, to go on.
Errors: PC001, PC023. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

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
grant execute on function custody_data.check_preferences(jsonb) to custody_readwrite, custody_worker;
comment on function custody_data.check_preferences(jsonb) is 'Raises PC023 for what is not a JSON object.';

create or replace function custody.put_preferences(p_user_id text, p_preferences jsonb)
returns integer
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_version integer;
begin
  perform custody_data.check_preferences(p_preferences);
  insert into custody_data.user_preferences as p (tenant_id, identity_id, preferences)
  values (v_tenant, custody_data.claim_person(p_user_id), p_preferences)
  on conflict (tenant_id, identity_id) do update set preferences = excluded.preferences
  returning p.version into v_version;
  return v_version;
end
$$;
revoke all on function custody.put_preferences(text, jsonb) from public;
grant execute on function custody.put_preferences(text, jsonb) to custody_readwrite;
comment on function custody.put_preferences(text, jsonb) is
'Stores all settings of a person, a JSON object, and returns their version (1 for the first).
Errors: PC001, PC003, PC015, PC023. Callers: custody_readwrite.';

create or replace function custody.patch_preferences(p_user_id text, p_changes jsonb, p_if_version integer default null)
returns integer
language plpgsql
volatile
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
  update custody_data.user_preferences p
  set preferences = custody_data.merge_patch(p.preferences, p_changes)
  where p.tenant_id = v_row.tenant_id and p.identity_id = v_identity_id
  returning p.version into v_row.version;
  return v_row.version;
end
$$;
revoke all on function custody.patch_preferences(text, jsonb, integer) from public;
grant execute on function custody.patch_preferences(text, jsonb, integer) to custody_readwrite;
comment on function custody.patch_preferences(text, jsonb, integer) is
'Merges changes into the settings (JSON merge patch, RFC 7396) and returns the new version. p_if_version: only where they still have this version.
Errors: PC001, PC003, PC011, PC014, PC015, PC023. Callers: custody_readwrite.';

create or replace function custody.get_preferences(p_user_id text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  return (
    select p.preferences from custody_data.user_preferences p
    where p.tenant_id = v_tenant and p.identity_id = custody_data.find_identity(p_user_id));
end
$$;
revoke all on function custody.get_preferences(text) from public;
grant execute on function custody.get_preferences(text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.get_preferences(text) is
'The settings of a person as they were put; null for the unknown and for what the context may not see.
Errors: PC001, PC003. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody.delete_preferences(p_user_id text)
returns boolean
language plpgsql
volatile
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
