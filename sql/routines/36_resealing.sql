-- Rotation of data keys and of the index key: what they sealed in tables that change is sealed anew.
-- control: GDPR Art. 32(1)(d); HIPAA 164.312(a)(2)(iv); ISO 27001 A.8.24; NIST SP 800-57 part 1, 5.3.6 and 8.2.3
-- reviewed by: security, DBA
--
-- A person's data key is replaced and every value of theirs in profiles, preferences and conversations sealed under
-- the new one in one transaction, so there is nothing half-done to go on with. Values in append-only tables (evidence
-- of consents, personal parts of events) keep their version for life, and the archive has them too, so the old version
-- stays until the last of them has expired (custody.expire_data_keys). Resealing is no change of a record: versions,
-- updated_at and the trail's record events say nothing of it, the trail has key.rotate instead.
--
-- The index key is the tenant's. With a new version of it (custody.rotate_index_key) new values are indexed under it and
-- searches look under both, until custody.reindex_profiles has gone through all profiles and destroys the old one.
-- locks: a person whose values are sealed anew is locked FOR UPDATE for that batch; whoever writes about them waits.

create or replace function custody_data.reseal_values(
  p_identity_id uuid, p_table text, p_row text, p_columns text[], p_sealed bytea[], p_key bytea, p_key_version integer, p_old_key bytea, p_old_version integer
)
returns bytea[]
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody.current_tenant();
  v_sealed bytea[] := p_sealed;
  v_place bytea;
  v_version integer;
  v_old_key bytea := p_old_key;
  v_old_version integer := p_old_version;
begin
  for i in 1 .. cardinality(p_columns) loop
    continue when p_sealed[i] is null;
    v_version := custody_data.sealed_key_version(p_sealed[i]);
    continue when v_version = p_key_version;
    if v_version <> v_old_version then
      v_old_key := custody_data.data_key(p_identity_id, v_version);
      v_old_version := v_version;
    end if;
    v_place := custody_data.sealing_place(v_tenant, p_identity_id, p_table, p_columns[i], p_row);
    v_sealed[i] := custody_data.seal_bytes(p_key, p_key_version, v_place, custody_data.open_bytes(v_old_key, v_place, p_sealed[i]));
  end loop;
  return v_sealed;
end
$$;
revoke all on function custody_data.reseal_values(uuid, text, text, text[], bytea[], bytea, integer, bytea, integer) from public;
comment on function custody_data.reseal_values(uuid, text, text, text[], bytea[], bytea, integer, bytea, integer) is
'Values of one row, sealed under a version of the identity''s data key. p_old_key: the key of p_old_version, under which most of them are.';

create or replace function custody_data.store_resealed_conversations(p_rows custody_data.conversations[])
returns void
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  update custody_data.conversations c set title = n.title, messages = n.messages
  from unnest(p_rows) n
  where c.tenant_id = n.tenant_id and c.identity_id = n.identity_id and c.conversation_id = n.conversation_id;
$$;
revoke all on function custody_data.store_resealed_conversations(custody_data.conversations[]) from public;
comment on function custody_data.store_resealed_conversations(custody_data.conversations[]) is 'Writes the sealed values of conversations back.';

-- definer: makes keys, and writes the tables of record
create or replace function custody.rotate_data_keys(p_created_before timestamptz, p_limit integer default 50, p_after uuid default null)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- a few people by their keys, whatever is known of the tables
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_fields constant text[] := custody_data.profile_fields();
  v_ids uuid[];
  v_id uuid;
  v_old_version integer;
  v_old_key bytea;
  v_version integer;
  v_key bytea;
  v_sealed bytea[];
  v_profile custody_data.user_profiles;
  v_profiles custody_data.user_profiles[] := array[]::custody_data.user_profiles[];
  v_setting custody_data.user_preferences;
  v_settings custody_data.user_preferences[] := array[]::custody_data.user_preferences[];
  v_conversation custody_data.conversations;
  v_conversations custody_data.conversations[] := array[]::custody_data.conversations[];
  v_bytes bigint := 0;
  v_identities bigint := 0;
  v_values bigint := 0;
begin
  perform custody_data.require_kek(), custody_data.require_read_committed();
  if p_created_before is null or p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_created_before or p_limit', hint = 'Give a time, and 1 to 10000 people at a time.';
  end if;
  -- Whom somebody else has in hand is left to the next round.
  v_ids := array(
    select x.identity_id
    from (
      select i.identity_id
      from custody_keys.data_keys k
      join custody_data.identities i on i.tenant_id = k.tenant_id and i.identity_id = k.identity_id
      where k.tenant_id = v_tenant and k.destroyed_at is null and k.created_at < p_created_before and i.erased_at is null
        and k.identity_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
        and not exists (
          select from custody_keys.data_keys n
          where n.tenant_id = k.tenant_id and n.identity_id = k.identity_id and n.key_version > k.key_version)
      order by k.identity_id
      limit p_limit
      for update of i skip locked
    ) x);
  perform set_config('custody.resealing', 'on', true);
  foreach v_id in array v_ids loop
    select max(k.key_version) filter (where k.destroyed_at is null) into v_old_version
    from custody_keys.data_keys k where k.tenant_id = v_tenant and k.identity_id = v_id;
    -- What another round has done since the list was made is done.
    v_version := v_old_version + 1;
    continue when exists (
        select from custody_keys.data_keys k
        where k.tenant_id = v_tenant and k.identity_id = v_id and k.key_version = v_old_version and k.created_at >= p_created_before)
      or not custody_data.make_data_key(v_id, v_version);
    v_identities := v_identities + 1;
    v_old_key := custody_data.data_key(v_id, v_old_version);
    v_key := custody_data.data_key(v_id, v_version);

    select p.* into v_profile from custody_data.user_profiles p where p.tenant_id = v_tenant and p.identity_id = v_id;
    if found then
      v_sealed := array[v_profile.full_name, v_profile.email, v_profile.phone, v_profile.organisation, v_profile.title, v_profile.address,
        v_profile.city, v_profile.region, v_profile.postal_code, v_profile.country, v_profile.attributes]::bytea[];
      v_values := v_values + cardinality(array_remove(v_sealed, null));
      v_sealed := custody_data.reseal_values(v_id, 'user_profiles', v_id::text, v_fields, v_sealed, v_key, v_version, v_old_key, v_old_version);
      v_profile.full_name := v_sealed[1];
      v_profile.email := v_sealed[2];
      v_profile.phone := v_sealed[3];
      v_profile.organisation := v_sealed[4];
      v_profile.title := v_sealed[5];
      v_profile.address := v_sealed[6];
      v_profile.city := v_sealed[7];
      v_profile.region := v_sealed[8];
      v_profile.postal_code := v_sealed[9];
      v_profile.country := v_sealed[10];
      v_profile.attributes := v_sealed[11];
      if array_remove(v_sealed, null) <> '{}' then
        v_profiles := v_profiles || v_profile;
      end if;
    end if;

    select p.* into v_setting from custody_data.user_preferences p where p.tenant_id = v_tenant and p.identity_id = v_id;
    if found then
      v_sealed := custody_data.reseal_values(v_id, 'user_preferences', v_id::text, array['preferences'], array[v_setting.preferences]::bytea[],
        v_key, v_version, v_old_key, v_old_version);
      v_setting.preferences := v_sealed[1];
      v_settings := v_settings || v_setting;
      v_values := v_values + 1;
    end if;

    for v_conversation in select c.* from custody_data.conversations c where c.tenant_id = v_tenant and c.identity_id = v_id loop
      v_sealed := custody_data.reseal_values(v_id, 'conversations', v_conversation.conversation_id, array['title', 'messages'],
        array[v_conversation.title, v_conversation.messages]::bytea[], v_key, v_version, v_old_key, v_old_version);
      v_conversation.title := v_sealed[1];
      v_conversation.messages := v_sealed[2];
      v_conversations := v_conversations || v_conversation;
      v_values := v_values + 1 + (v_sealed[1] is not null)::integer;
      v_bytes := v_bytes + octet_length(v_sealed[2]);
      if v_bytes > 8388608 or cardinality(v_conversations) >= 500 then
        perform custody_data.store_resealed_conversations(v_conversations);
        v_conversations := array[]::custody_data.conversations[];
        v_bytes := 0;
      end if;
    end loop;
  end loop;

  update custody_data.user_profiles p set
    full_name = n.full_name, email = n.email, phone = n.phone, organisation = n.organisation, title = n.title, address = n.address,
    city = n.city, region = n.region, postal_code = n.postal_code, country = n.country, attributes = n.attributes
  from unnest(v_profiles) n
  where p.tenant_id = v_tenant and p.identity_id = n.identity_id;
  update custody_data.user_preferences p set preferences = n.preferences
  from unnest(v_settings) n
  where p.tenant_id = v_tenant and p.identity_id = n.identity_id;
  perform custody_data.store_resealed_conversations(v_conversations);
  perform set_config('custody.resealing', '', true);
  if v_identities > 0 then
    perform custody_data.append_event('key.rotate', 'key', null, 'success', jsonb_build_object('identities', v_identities, 'values', v_values), null);
  end if;
  return jsonb_build_object('identities', v_identities, 'values', v_values, 'last', case when cardinality(v_ids) = p_limit then v_ids[p_limit] end);
end
$$;
revoke all on function custody.rotate_data_keys(timestamptz, integer, uuid) from public;
grant execute on function custody.rotate_data_keys(timestamptz, integer, uuid) to custody_worker;
comment on function custody.rotate_data_keys(timestamptz, integer, uuid) is
'Replaces the data keys of up to p_limit (1 to 10000) people of the tenant whose newest one was made before p_created_before, in the order of identities from p_after on, and seals their profiles, preferences and conversations anew.
Returns {"identities", "values", "last"}: how many people and values, and what to give as p_after to go on; null at the end. Call it, commit, and repeat to the end. Several may run at once. A person whom another transaction has locked is passed over.
Errors: PC001, PC015 confined to one person, PC023, PC026 isolation level, PC033 locked, PC034 retired meanwhile, PC035 a value was altered. Callers: custody_worker.';

-- definer: makes keys
create or replace function custody.rotate_index_key()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_nobody constant uuid := uuid '00000000-0000-0000-0000-000000000000';
  v_version integer;
  v_live bigint;
begin
  perform custody_data.require_kek();
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.keys.' || v_tenant, 0));
  select max(k.key_version), count(*) filter (where k.destroyed_at is null) into v_version, v_live
  from custody_keys.data_keys k
  where k.tenant_id = v_tenant and k.identity_id = v_nobody;
  if v_live > 1 then
    return v_version;
  end if;
  v_version := coalesce(v_version, 0) + 1;
  if custody_data.make_data_key(v_nobody, v_version) then
    perform custody_data.append_event('key.rotate', 'key', null, 'success', jsonb_build_object('index_key_version', v_version), null);
  end if;
  return v_version;
end
$$;
revoke all on function custody.rotate_index_key() from public;
grant execute on function custody.rotate_index_key() to custody_worker;
comment on function custody.rotate_index_key() is
'Makes a new key for the tenant''s blind indexes and returns its version; where the one before is still in use it changes nothing. Commit, then call reindex_profiles to its end.
Errors: PC001, PC015 confined to one person, PC033 locked, PC034 retired meanwhile. Callers: custody_worker.';

-- definer: writes profiles, destroys keys
create or replace function custody.reindex_profiles(p_limit integer default 500, p_after uuid default null)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_nobody constant uuid := uuid '00000000-0000-0000-0000-000000000000';
  v_rows custody_data.user_profiles[];
  v_row custody_data.user_profiles;
  v_values text[];
  v_normal text;
  v_email_key bytea;
  v_phone_key bytea;
  v_version integer;
  v_live bigint;
  v_prefix bytea;
  v_destroyed integer[] := array[]::integer[];
begin
  perform custody_data.require_kek(), custody_data.require_read_committed();
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 profiles at a time.';
  end if;
  select max(k.key_version), count(*) into v_version, v_live
  from custody_keys.data_keys k
  where k.tenant_id = v_tenant and k.identity_id = v_nobody and k.destroyed_at is null;
  -- With one key there is nothing under another.
  if v_live < 2 then
    return jsonb_build_object('version', v_version, 'profiles', 0, 'destroyed', jsonb '[]', 'over', true, 'last', null);
  end if;
  v_prefix := int4send(v_version);
  select array_agg(x.p order by (x.p).identity_id) into v_rows
  from (
    select p
    from custody_data.user_profiles p
    where p.tenant_id = v_tenant and p.identity_id > coalesce(p_after, v_nobody)
      and (substr(p.email_index, 1, 4) <> v_prefix or substr(p.phone_index, 1, 4) <> v_prefix)
    order by p.identity_id
    limit p_limit
    for update of p skip locked
  ) x;
  if v_rows is not null then
    v_email_key := custody_data.index_key('email', v_version);
    v_phone_key := custody_data.index_key('phone', v_version);
  end if;
  for i in 1 .. coalesce(cardinality(v_rows), 0) loop
    v_row := v_rows[i];
    v_values := custody_data.open_unseen(v_row.identity_id, 'user_profiles', v_row.identity_id::text, array['email', 'phone'], array[v_row.email, v_row.phone]::bytea[]);
    v_normal := custody_data.normalize_email(v_values[1]);
    v_row.email_index := custody_data.blind_index(v_email_key, v_version, v_normal);
    v_normal := custody_data.normalize_phone(v_values[2]);
    v_row.phone_index := custody_data.blind_index(v_phone_key, v_version, v_normal);
    v_rows[i] := v_row;
  end loop;
  perform set_config('custody.resealing', 'on', true);
  update custody_data.user_profiles p set email_index = n.email_index, phone_index = n.phone_index
  from unnest(v_rows) n
  where p.tenant_id = v_tenant and p.identity_id = n.identity_id;
  perform set_config('custody.resealing', '', true);
  if v_rows is null and p_after is null then
    -- Whoever writes a profile has this lock shared; from here on they see the new version alone.
    perform pg_advisory_xact_lock(hashtextextended('pgcustody.profiles.' || v_tenant, 0));
    if not exists (
      select from custody_data.user_profiles p
      where p.tenant_id = v_tenant and (substr(p.email_index, 1, 4) <> v_prefix or substr(p.phone_index, 1, 4) <> v_prefix)
    ) then
      with destroyed as (
        update custody_keys.data_keys k set destroyed_at = now()
        where k.tenant_id = v_tenant and k.identity_id = v_nobody and k.key_version < v_version and k.destroyed_at is null
        returning k.key_version
      )
      select coalesce(array_agg(d.key_version), '{}') into v_destroyed from destroyed d;
      delete from custody_keys.wrapped_keys w where w.tenant_id = v_tenant and w.identity_id = v_nobody and w.key_version < v_version;
      -- Nobody knows those ids any more, so they cannot be indexed anew.
      delete from custody_data.erased_user_ids e where e.tenant_id = v_tenant and substr(e.user_id_index, 1, 4) <> v_prefix;
    end if;
  end if;
  if v_rows is not null or v_destroyed <> '{}' then
    perform custody_data.append_event('key.rotate', 'key', null, 'success',
      jsonb_build_object('index_key_version', v_version, 'values', coalesce(cardinality(v_rows), 0), 'keys_destroyed', v_destroyed), null);
  end if;
  return jsonb_build_object('version', v_version, 'profiles', coalesce(cardinality(v_rows), 0), 'destroyed', v_destroyed, 'over', v_destroyed <> '{}',
    'last', case when cardinality(v_rows) = p_limit then (v_rows[p_limit]).identity_id end);
end
$$;
revoke all on function custody.reindex_profiles(integer, uuid) from public;
grant execute on function custody.reindex_profiles(integer, uuid) to custody_worker;
comment on function custody.reindex_profiles(integer, uuid) is
'Indexes up to p_limit (1 to 10000) profiles of the tenant anew that are not indexed under the newest index key, in the order of identities from p_after on. Where, asked from the beginning (p_after null), none is left, it destroys the older index keys, and with them what is remembered of erased people.
Returns {"version", "profiles", "destroyed", "over", "last"}: how many profiles, which versions of the key it destroyed, whether none but the newest is left, and what to give as p_after to go on. Call it, commit, and repeat from the beginning until it is over. Several may run at once: each passes over what another has locked.
Errors: PC001, PC015 confined to one person, PC023, PC026 isolation level, PC033 locked, PC035 a value was altered. Callers: custody_worker.';

-- definer: destroys keys
create or replace function custody.expire_data_keys(p_limit integer default 1000)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  -- What an old version sealed was recorded before the next one was made.
  v_before constant timestamptz := now() - custody_data.keep_of('audit') - interval '31 days';
  v_expired custody_keys.data_keys[];
  v_keys bigint;
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 keys at a time.';
  end if;
  perform custody_data.lock_holds(v_tenant);
  select array_agg(x.k) into v_expired
  from (
    select k
    from custody_keys.data_keys k
    where k.tenant_id = v_tenant and k.destroyed_at is null and k.identity_id <> '00000000-0000-0000-0000-000000000000'
      and k.created_at < v_before
      and exists (
        select from custody_keys.data_keys n
        where n.tenant_id = k.tenant_id and n.identity_id = k.identity_id and n.key_version = k.key_version + 1 and n.created_at < v_before)
      and not exists (
        select from custody_data.consent_records c
        where c.tenant_id = k.tenant_id and c.identity_id = k.identity_id and substr(c.evidence, 2, 4) = int4send(k.key_version))
      and not exists (
        select from custody_data.audit_logs a
        where a.tenant_id = k.tenant_id and a.subject_id = k.identity_id and substr(a.personal, 2, 4) = int4send(k.key_version))
      and not exists (
        select from custody_data.audit_logs a
        where a.tenant_id = k.tenant_id and a.subject_id is null and a.actor_id = k.identity_id and substr(a.personal, 2, 4) = int4send(k.key_version))
      -- what a hold keeps in the archive is to be read as well
      and custody_data.holds_on(k.identity_id) = '{}'
    order by k.created_at
    limit p_limit
  ) x;
  update custody_keys.data_keys k set destroyed_at = now()
  from unnest(v_expired) e
  where k.tenant_id = e.tenant_id and k.identity_id = e.identity_id and k.key_version = e.key_version and k.destroyed_at is null;
  get diagnostics v_keys = row_count;
  delete from custody_keys.wrapped_keys w using unnest(v_expired) e
  where w.tenant_id = e.tenant_id and w.identity_id = e.identity_id and w.key_version = e.key_version;
  if v_keys > 0 then
    perform custody_data.append_event('key.expire', 'key', null, 'success', jsonb_build_object('keys', v_keys), null);
  end if;
  return v_keys;
end
$$;
revoke all on function custody.expire_data_keys(integer) from public;
grant execute on function custody.expire_data_keys(integer) to custody_worker;
comment on function custody.expire_data_keys(integer) is
'Destroys up to p_limit (1 to 10000) data keys that were replaced so long ago that everything they sealed has expired: evidence and events in the database, in the archive (policy audit) and in backups. Returns how many; 0 at the end.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_worker.';

create or replace view custody.sealed_value_status with (security_invoker = true) as
select ''::text as table_name, ''::text as column_name, false as append_only, 0::integer as key_version, ''::text as state, 0::bigint as sealed_values
where false;
comment on view custody.sealed_value_status is
'Shape of list_sealed_values. state: current (under the newest data key of its person, an index under the newest index key), older, or erased (its key is destroyed). Values of append-only tables stay older for life.';

-- definer: reads what is known of keys, not keys
create or replace function custody.list_sealed_values()
returns setof custody.sealed_value_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  return query
  with newest as materialized (
    select k.identity_id, max(k.key_version) as key_version, array_agg(k.key_version) as live
    from custody_keys.data_keys k
    where k.tenant_id = v_tenant and k.destroyed_at is null
    group by k.identity_id
  ), versions as (
    select 'user_profiles' as tbl, v.col, p.identity_id, substr(v.sealed, 2, 4) as version, count(*) as n
    from custody_data.user_profiles p
    cross join lateral (values ('full_name', p.full_name), ('email', p.email), ('phone', p.phone), ('organisation', p.organisation), ('title', p.title),
      ('address', p.address), ('city', p.city), ('region', p.region), ('postal_code', p.postal_code), ('country', p.country),
      ('attributes', p.attributes)) v (col, sealed)
    where p.tenant_id = v_tenant and v.sealed is not null
    group by 1, 2, 3, 4
    union all
    select 'user_profiles', v.col, uuid '00000000-0000-0000-0000-000000000000', substr(v.index, 1, 4), count(*)
    from custody_data.user_profiles p
    cross join lateral (values ('email_index', p.email_index), ('phone_index', p.phone_index)) v (col, index)
    where p.tenant_id = v_tenant and v.index is not null
    group by 1, 2, 3, 4
    union all
    select 'user_preferences', 'preferences', p.identity_id, substr(p.preferences, 2, 4), 1
    from custody_data.user_preferences p where p.tenant_id = v_tenant
    union all
    select 'conversations', v.col, c.identity_id, substr(v.sealed, 2, 4), count(*)
    from custody_data.conversations c
    cross join lateral (values ('title', c.title), ('messages', c.messages)) v (col, sealed)
    where c.tenant_id = v_tenant and v.sealed is not null
    group by 1, 2, 3, 4
    union all
    select 'consent_records', 'evidence', c.identity_id, substr(c.evidence, 2, 4), count(*)
    from custody_data.consent_records c
    where c.tenant_id = v_tenant and c.evidence is not null
    group by 1, 2, 3, 4
    union all
    select 'audit_logs', 'personal', coalesce(a.subject_id, a.actor_id), substr(a.personal, 2, 4), count(*)
    from custody_data.audit_logs a
    where a.tenant_id = v_tenant and a.personal is not null
    group by 1, 2, 3, 4
  ), numbered as (
    select v.tbl, v.col, v.identity_id, v.n,
      ((get_byte(v.version, 0) * 256 + get_byte(v.version, 1)) * 256 + get_byte(v.version, 2)) * 256 + get_byte(v.version, 3) as key_version
    from versions v
  )
  select x.tbl, x.col, x.tbl in ('consent_records', 'audit_logs'), x.key_version,
    case when d.key_version = x.key_version then 'current' when x.key_version = any (d.live) then 'older' else 'erased' end,
    sum(x.n)::bigint
  from numbered x
  left join newest d on d.identity_id = x.identity_id
  group by 1, 2, 3, 4, 5
  order by 3, 1, 2, 4, 5;
end
$$;
revoke all on function custody.list_sealed_values() from public;
grant execute on function custody.list_sealed_values() to custody_worker, custody_privacy, custody_auditor;
comment on function custody.list_sealed_values() is
'How many sealed values and blind indexes of the tenant stand under which version of their key, by table and column: the progress of a rotation. It reads every row.
Errors: PC001, PC015 confined to one person. Callers: custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.key_age_status with (security_invoker = true) as
select ''::text as kind, 0::bigint as keys, null::timestamptz as oldest, 0::bigint as overdue
where false;
comment on view custody.key_age_status is
'Shape of list_key_ages. kind: key_encryption, data, index. keys: how many seal now; oldest: when the oldest of them was made; overdue: how many are older than the policy key_age.';

-- definer: reads what is known of keys, not keys
create or replace function custody.list_key_ages()
returns setof custody.key_age_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_before constant timestamptz := now() - custody_data.keep_of('key_age');
begin
  return query
  -- While one replaces another, the new one.
  select 'key_encryption', count(*), min(e.created_at), count(*) filter (where e.created_at < v_before)
  from (
    select k.created_at from custody_keys.key_encryption_keys k
    where k.tenant_id = v_tenant and k.retired_at is null order by k.kek_version desc limit 1
  ) e
  union all
  select case when d.identity_id = '00000000-0000-0000-0000-000000000000' then 'index' else 'data' end,
    count(*), min(d.created_at), count(*) filter (where d.created_at < v_before)
  from (
    select distinct on (k.identity_id) k.identity_id, k.created_at
    from custody_keys.data_keys k
    where k.tenant_id = v_tenant and k.destroyed_at is null
    order by k.identity_id, k.key_version desc
  ) d
  group by 1
  order by 1;
end
$$;
revoke all on function custody.list_key_ages() from public;
grant execute on function custody.list_key_ages() to custody_worker, custody_privacy, custody_auditor;
comment on function custody.list_key_ages() is
'How old the keys of the tenant in context are that seal now, and how many are older than the policy key_age (default one year): rotate those.
Errors: PC001, PC015 confined to one person. Callers: custody_worker, custody_privacy, custody_auditor.';
