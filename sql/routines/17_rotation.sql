-- Rotation of key-encryption keys and the destruction of data keys.
-- control: GDPR Art. 17, 32(1)(d); HIPAA 164.310(d)(2)(i); ISO 27001 A.8.10, A.8.24; NIST SP 800-57 part 1, 5.3.6 and 8.3.4
-- reviewed by: security, DBA
--
-- A new key-encryption key is registered (custody.register_kek), what the old one wrapped is wrapped by it as well
-- (custody.rewrap_keys, in batches, as often as needed), then the old one is retired (custody.retire_kek). Until then
-- either one opens everything, so applications may change over whenever they like. No value is touched.

create or replace function custody_data.destroy_data_keys(p_identity_id uuid)
returns integer[]
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_versions integer[];
begin
  -- First the row that rewrap_keys locks, then, in a statement of its own, whatever it wrapped meanwhile.
  with destroyed as (
    update custody_keys.data_keys k set destroyed_at = now()
    where k.tenant_id = v_tenant and k.identity_id = p_identity_id and k.destroyed_at is null
    returning k.key_version
  )
  select coalesce(array_agg(d.key_version order by d.key_version), '{}') into v_versions from destroyed d;
  delete from custody_keys.wrapped_keys w where w.tenant_id = v_tenant and w.identity_id = p_identity_id;
  return v_versions;
end
$$;
revoke all on function custody_data.destroy_data_keys(uuid) from public;
comment on function custody_data.destroy_data_keys(uuid) is 'Destroys every data key of an identity and returns their versions: what they sealed is erased wherever it is, as far as no copy of the wrapped keys survives elsewhere.';

-- definer: wraps keys
create or replace function custody.rewrap_keys(p_limit integer default 1000, p_after uuid default null)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- in the order of the primary key from p_after on, and no further than the batch, whatever is known of the tables
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_material = off
set jit = off
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_version constant integer := custody_data.require_kek();
  v_kek bytea;
  v_old_kek bytea;
  v_keys custody_keys.wrapped_keys[];
  v_old custody_keys.wrapped_keys;
  v_place bytea;
  v_count integer;
begin
  if p_limit is null or p_limit not between 1 and 100000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 100000 keys at a time.';
  end if;
  v_kek := decode(current_setting('custody.kek'), 'hex');
  v_old_kek := custody_data.previous_kek(v_tenant, v_kek, v_version);
  if v_old_kek is null then
    return jsonb_build_object('kek_version', v_version, 'keys', 0, 'last', null);
  end if;
  -- The lock keeps an erasure waiting that is about to destroy one of these; what an erasure has, or another of these
  -- calls, is passed over.
  select array_agg(x.w) into v_keys
  from (
    select w
    from custody_keys.wrapped_keys w
    join custody_keys.data_keys k on k.tenant_id = w.tenant_id and k.identity_id = w.identity_id and k.key_version = w.key_version
    where w.tenant_id = v_tenant and w.kek_version = v_version - 1 and k.destroyed_at is null
      -- said of both, so that a merge of the two begins there in both
      and w.identity_id >= coalesce(p_after, '00000000-0000-0000-0000-000000000000')
      and k.identity_id >= coalesce(p_after, '00000000-0000-0000-0000-000000000000')
      and not exists (
        select from custody_keys.wrapped_keys n
        where n.tenant_id = w.tenant_id and n.identity_id = w.identity_id and n.key_version = w.key_version and n.kek_version = v_version)
    order by w.identity_id, w.key_version
    limit p_limit
    for no key update of k skip locked
  ) x;
  for i in 1 .. coalesce(cardinality(v_keys), 0) loop
    v_old := v_keys[i];
    v_place := custody_data.sealing_place(v_tenant, v_old.identity_id, 'wrapped_keys', 'wrapped', v_old.key_version::text);
    v_old.wrapped := custody_data.seal_bytes(v_kek, v_version, v_place, custody_data.open_bytes(v_old_kek, v_place, v_old.wrapped));
    v_keys[i] := v_old;
  end loop;
  insert into custody_keys.wrapped_keys (tenant_id, identity_id, key_version, kek_version, wrapped)
  select w.tenant_id, w.identity_id, w.key_version, v_version, w.wrapped from unnest(v_keys) w
  on conflict do nothing;
  get diagnostics v_count = row_count;
  if v_count > 0 then
    perform custody_data.append_event('key.rewrap', 'key', null, 'success', jsonb_build_object('kek_version', v_version, 'keys', v_count), null);
  end if;
  return jsonb_build_object('kek_version', v_version, 'keys', v_count, 'last', case when cardinality(v_keys) = p_limit then v_keys[p_limit].identity_id end);
end
$$;
revoke all on function custody.rewrap_keys(integer, uuid) from public;
grant execute on function custody.rewrap_keys(integer, uuid) to custody_worker;
comment on function custody.rewrap_keys(integer, uuid) is
'Wraps up to p_limit (1 to 100000) data keys of the tenant, which the key-encryption key before this one wrapped, under the one that the transaction is unlocked with, in the order of identities, from p_after on.
Returns {"kek_version", "keys", "last"}: how many, and what to give as p_after to go on; null at the end. Call it, commit, and repeat to the end, then call retire_kek: it says whether some were made or locked meanwhile, which another round wraps. Several may run at once. keys is 0 where no rotation is under way.
Errors: PC001, PC015 confined to one person, PC023, PC033 locked, PC035. Callers: custody_worker.';

create or replace function custody_data.count_unwrapped(p_tenant text, p_kek_version integer)
returns bigint
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select count(*) from custody_keys.data_keys k
    where k.tenant_id = p_tenant and k.destroyed_at is null
      and not exists (
        select from custody_keys.wrapped_keys w
        where w.tenant_id = k.tenant_id and w.identity_id = k.identity_id and w.key_version = k.key_version and w.kek_version = p_kek_version));
end
$$;
revoke all on function custody_data.count_unwrapped(text, integer) from public;
comment on function custody_data.count_unwrapped(text, integer) is 'How many data keys of a tenant a key-encryption key does not wrap.';

-- definer: deletes wrapped keys
create or replace function custody.retire_kek()
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_version constant integer := custody_data.require_kek();
  v_left bigint;
  v_deleted bigint;
begin
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.keys.' || v_tenant, 0));
  -- Whoever makes a data key shares a lock on the key that wraps it: from here on nobody makes one for either.
  perform 1 from custody_keys.key_encryption_keys k where k.tenant_id = v_tenant and k.retired_at is null order by k.kek_version for update;
  update custody_keys.key_encryption_keys k set retired_at = now()
  where k.tenant_id = v_tenant and k.kek_version < v_version and k.retired_at is null;
  if not found then
    return 0;
  end if;
  v_left := custody_data.count_unwrapped(v_tenant, v_version);
  if v_left > 0 then
    raise exception using
      errcode = 'PC037',
      message = format('rotation of tenant %s is under way', v_tenant),
      detail = format('%s data keys are not wrapped by version %s yet.', v_left, v_version),
      hint = 'Call custody.rewrap_keys until nothing is left, then retire the old key again.';
  end if;
  delete from custody_keys.wrapped_keys w where w.tenant_id = v_tenant and w.kek_version < v_version;
  get diagnostics v_deleted = row_count;
  update custody_keys.key_encryption_keys k set previous = null where k.tenant_id = v_tenant and k.kek_version = v_version;
  perform custody_data.append_event('key.retire', 'key', null, 'success', jsonb_build_object('kek_version', v_version - 1, 'keys', v_deleted), null);
  return v_deleted;
end
$$;
revoke all on function custody.retire_kek() from public;
grant execute on function custody.retire_kek() to custody_worker;
comment on function custody.retire_kek() is
'Ends a rotation: the key-encryption key before the one that the transaction is unlocked with opens nothing any more and may be destroyed with its provider. Returns how many wrapped keys it deleted; 0 and no change where no rotation is under way.
Errors: PC001, PC015 confined to one person, PC033 locked, PC037 data keys are left. Callers: custody_worker.';

-- definer: writes what is known of keys
create or replace function custody.mark_kek_destroyed(p_kek_version integer)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if not exists (
    select from custody_keys.key_encryption_keys k
    where k.tenant_id = v_tenant and k.kek_version = p_kek_version and k.retired_at is not null
  ) then
    raise exception using
      errcode = 'PC023',
      message = format('invalid version %s of the key of tenant %s', coalesce(p_kek_version::text, 'null'), v_tenant),
      detail = 'It is unknown, or it has not been retired.',
      hint = 'Retire it with custody.retire_kek before the provider forgets it.';
  end if;
  update custody_keys.key_encryption_keys k
  set destroyed_at = now(), reference = regexp_replace(k.reference, '#[^#]*$', '#')
  where k.tenant_id = v_tenant and k.kek_version = p_kek_version and k.destroyed_at is null;
  if found then
    perform custody_data.append_event('key.destroy', 'key', null, 'success', jsonb_build_object('kek_version', p_kek_version), null);
    return true;
  end if;
  return false;
end
$$;
revoke all on function custody.mark_kek_destroyed(integer) from public;
grant execute on function custody.mark_kek_destroyed(integer) to custody_worker;
comment on function custody.mark_kek_destroyed(integer) is
'Notes that the provider has forgotten a retired key-encryption key, and takes out of its reference what is behind the last #, by which a provider finds a key. Returns whether that was new.
Errors: PC001, PC015 confined to one person, PC023 unknown or not retired. Callers: custody_worker.';

create or replace view custody.kek_status with (security_invoker = true) as
select 0::integer as kek_version, ''::text as reference, null::timestamptz as created_at, null::timestamptz as retired_at, null::timestamptz as destroyed_at,
  0::bigint as data_keys, false as overdue
where false;
comment on view custody.kek_status is
'Shape of list_keks. reference: by which the provider finds the key. data_keys: how many it wraps. overdue: in use for longer than p_max_age.';

-- definer: reads what is known of keys, not keys
create or replace function custody.list_keks(p_max_age interval default '1 year')
returns setof custody.kek_status
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  return query
  select k.kek_version, k.reference, k.created_at, k.retired_at, k.destroyed_at,
    (select count(*) from custody_keys.wrapped_keys w where w.tenant_id = k.tenant_id and w.kek_version = k.kek_version),
    k.retired_at is null and k.created_at < now() - p_max_age
  from custody_keys.key_encryption_keys k
  where k.tenant_id = v_tenant
  order by k.kek_version;
end
$$;
revoke all on function custody.list_keks(interval) from public;
grant execute on function custody.list_keks(interval) to custody_worker, custody_privacy, custody_auditor;
comment on function custody.list_keks(interval) is
'The key-encryption keys of the tenant in context, by version: the provider''s reference, since when, until when, when the provider had forgotten it, how many data keys it wraps, and whether it is in use and older than p_max_age.
Errors: PC001, PC015 confined to one person. Callers: custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.kek_reference with (security_invoker = true) as
select 0::integer as kek_version, ''::text as reference
where false;
comment on view custody.kek_reference is 'Shape of current_kek: the newest version, and by which the provider finds the key.';

-- definer: reads what is known of keys, not keys
create or replace function custody.current_kek()
returns setof custody.kek_reference
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  return query
  select k.kek_version, k.reference
  from custody_keys.key_encryption_keys k
  where k.tenant_id = v_tenant and k.retired_at is null
  order by k.kek_version desc
  limit 1;
end
$$;
revoke all on function custody.current_kek() from public;
grant execute on function custody.current_kek() to custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor;
comment on function custody.current_kek() is
'The newest key-encryption key of the tenant in context, for whoever is to unlock with it: its version and the provider''s reference, which opens nothing by itself. No row where the tenant has none.
Errors: PC001. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor.';
