-- Keys: unlocking for one transaction, data keys of identities, sealing and opening.
-- control: GDPR Art. 25, 32(1)(a); HIPAA 164.312(a)(2)(iv), (d); ISO 27001 A.8.24; SOC 2 CC6.1
-- reviewed by: security, DBA
--
-- The key-encryption key comes as a bound parameter of custody.unlock and stays in a setting of the transaction. Here
-- as in 15_sealing.sql keys are touched by expressions of PL/pgSQL alone. The functions that read wrapped keys run with
-- the owner's rights; they give keys to each other, and to a caller only as they are wrapped (custody.claim_data_keys, for
-- imports): to open those takes the key-encryption key, which the caller has given.

create or replace function custody_data.leaking_settings()
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_found text[] := array[]::text[];
begin
  if current_setting('log_parameter_max_length_on_error') <> '0' then
    v_found := v_found || 'log_parameter_max_length_on_error'::text;
  end if;
  if current_setting('log_parameter_max_length') <> '0' and (current_setting('log_statement') in ('all', 'mod')
      or current_setting('log_min_duration_statement') <> '-1' or current_setting('log_min_duration_sample') <> '-1'
      or current_setting('log_transaction_sample_rate') <> '0') then
    v_found := v_found || 'log_parameter_max_length'::text;
  end if;
  if current_setting('pgaudit.log_parameter', true) = 'on' then
    v_found := v_found || 'pgaudit.log_parameter'::text;
  end if;
  if coalesce(current_setting('auto_explain.log_min_duration', true), '-1') <> '-1' then
    if current_setting('auto_explain.log_nested_statements', true) = 'on' then
      v_found := v_found || 'auto_explain.log_nested_statements'::text;
    end if;
    if current_setting('auto_explain.log_verbose', true) = 'on' then
      v_found := v_found || 'auto_explain.log_verbose'::text;
    end if;
    -- from Postgres 16 on, and -1 (all of it) unless set
    if coalesce(current_setting('auto_explain.log_parameter_max_length', true), '0') <> '0' then
      v_found := v_found || 'auto_explain.log_parameter_max_length'::text;
    end if;
  end if;
  if current_setting('debug_print_parse') = 'on' then
    v_found := v_found || 'debug_print_parse'::text;
  end if;
  if current_setting('debug_print_rewritten') = 'on' then
    v_found := v_found || 'debug_print_rewritten'::text;
  end if;
  if current_setting('debug_print_plan') = 'on' then
    v_found := v_found || 'debug_print_plan'::text;
  end if;
  return v_found;
end
$$;
revoke all on function custody_data.leaking_settings() from public;
grant execute on function custody_data.leaking_settings() to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on function custody_data.leaking_settings() is 'Names of the settings of this session under which a bound parameter would be written to the server log.';

create or replace function custody_data.refuse_exposed_key(p_key bytea)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_settings constant text[] := custody_data.leaking_settings();
  v_query constant text := current_query();
begin
  -- An error would be logged together with the parameters of its statement, which is what must not happen: here alone
  -- the call is refused in silence, and the first that needs the key says why.
  if 'log_parameter_max_length_on_error' = any (v_settings) then
    return true;
  end if;
  if cardinality(v_settings) > 0 then
    raise exception using
      errcode = 'PC036',
      message = format('key refused: under %s it would be in the server log', array_to_string(v_settings, ', ')),
      detail = 'The key was not looked at, but the setting may have logged this very call.',
      hint = 'Turn the setting off for this login or database (log_parameter_max_length = 0, the others off), look whether the log has the key, and rotate it where it has.';
  end if;
  if v_query !~ '\$[0-9]' or (octet_length(p_key) > 0
      and (position(encode(p_key, 'hex') in lower(v_query)) > 0 or position(translate(encode(p_key, 'base64'), E'\n', '') in v_query) > 0)) then
    raise exception using
      errcode = 'PC036',
      message = 'key refused: it came as a literal, not as a bound parameter',
      detail = 'The text of a statement is shown in pg_stat_activity and written to logs.',
      hint = 'Bind it: select custody.unlock($1). Rotate this key: it may be in the server log now.';
  end if;
  -- auto_explain shows conditions, and what is sorted or grouped by, with the values bound in them. It does so at the end
  -- of a statement, which an error here has not.
  if coalesce(current_setting('auto_explain.log_min_duration', true), '-1') <> '-1'
      and v_query ~* '\m(where|having|order|group|distinct|over|join|union|intersect|except|merge)\M' then
    raise exception using
      errcode = 'PC036',
      message = 'key refused: auto_explain would write it into the server log',
      detail = 'The statement has more in it than the call, and its plan is logged with what it compares and sorts by.',
      hint = 'Unlock by a statement of its own: select custody.unlock($1).';
  end if;
  return false;
end
$$;
revoke all on function custody_data.refuse_exposed_key(bytea) from public;
comment on function custody_data.refuse_exposed_key(bytea) is
'Raises PC036 where a key that came with this call is, or is about to be, somewhere it must not be. Returns whether the call must be refused without an error.';

create or replace function custody_data.kek_check_value(p_tenant text, p_kek bytea)
returns bytea
language sql
stable -- as what it calls, so that callers take it in
parallel safe
return substr(custody_data.hmac_sha512(pg_catalog.convert_to('pgcustody: key-encryption key of ' || p_tenant, 'UTF8'), p_kek), 1, 16);
revoke all on function custody_data.kek_check_value(text, bytea) from public;
comment on function custody_data.kek_check_value(text, bytea) is 'What tells a tenant''s key from others without opening anything.';

create or replace function custody_data.find_kek(p_tenant text, p_kek bytea)
returns integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_check_value bytea;
  v_known record;
begin
  if octet_length(p_kek) = 64 then
    v_check_value := custody_data.kek_check_value(p_tenant, p_kek);
    for v_known in
      select k.kek_version, k.check_value from custody_keys.key_encryption_keys k
      where k.tenant_id = p_tenant and k.retired_at is null
      order by k.kek_version desc
    loop
      if v_known.check_value = v_check_value then
        return v_known.kek_version;
      end if;
    end loop;
  end if;
  return null;
end
$$;
revoke all on function custody_data.find_kek(text, bytea) from public;
comment on function custody_data.find_kek(text, bytea) is 'Version of a key-encryption key that is valid for a tenant, or null.';

-- definer: reads what the keys are told by
create or replace function custody.unlock(p_kek bytea)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_version integer;
begin
  perform set_config('custody.kek', '', true), set_config('custody.kek_version', '', true);
  if custody_data.refuse_exposed_key(p_kek) then
    perform set_config('custody.kek_version', 'refused', true);
    return null;
  end if;
  v_version := custody_data.find_kek(v_tenant, p_kek);
  if v_version is null then
    raise exception using
      errcode = 'PC034',
      message = format('wrong key for tenant %s', v_tenant),
      detail = case when octet_length(p_kek) = 64 then 'It is none of the tenant''s valid key-encryption keys.'
        else format('A key has 64 bytes, this one has %s.', coalesce(octet_length(p_kek)::text, 'none')) end,
      hint = 'Give the tenant''s key-encryption key as bytes; pgcustody keys list names the versions that are valid.';
  end if;
  perform set_config('custody.kek_version', v_version::text, true);
  -- part of an expression, as it must be
  return case when set_config('custody.kek', encode(p_kek, 'hex'), true) is not null then v_version end;
end
$$;
revoke all on function custody.unlock(bytea) from public;
grant execute on function custody.unlock(bytea) to custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor;
comment on function custody.unlock(bytea) is
'Opens the sealed columns of the tenant in context until the transaction ends, or until another context is set, and returns the version of the key.
p_kek: the tenant''s key-encryption key, 64 bytes, as a bound parameter. Returns null, and what needs the key raises PC033, where log_parameter_max_length_on_error is on: an error here would log the key.
Errors: PC001, PC034 wrong key, PC036 the key came as a literal or a setting would write it to the log. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor.';

create or replace function custody_data.require_kek()
returns integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version constant text := coalesce(current_setting('custody.kek_version', true), '');
begin
  if v_version in ('', 'refused') or coalesce(current_setting('custody.kek', true), '') = '' then
    raise exception using
      errcode = 'PC033',
      message = format('locked: no key for tenant %s in this transaction', custody_data.require_context()),
      detail = case v_version when 'refused' then 'custody.unlock was refused: log_parameter_max_length_on_error is on, and an error would have logged the key.'
        else 'Personal columns are sealed, and custody.unlock was not called after set_context.' end,
      hint = case v_version when 'refused' then 'alter role … set log_parameter_max_length_on_error = 0, then connect again.'
        else 'begin; select custody.set_context(…); select custody.unlock($1); call; commit.' end;
  end if;
  return v_version::integer;
end
$$;
revoke all on function custody_data.require_kek() from public;
comment on function custody_data.require_kek() is 'Version of the key-encryption key of this transaction. Errors: PC033 without one.';

create or replace function custody_data.is_unlocked()
returns boolean
language sql
stable
parallel restricted
return coalesce(pg_catalog.current_setting('custody.kek', true), '') <> '';
revoke all on function custody_data.is_unlocked() from public;
grant execute on function custody_data.is_unlocked() to custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor;
comment on function custody_data.is_unlocked() is 'Whether this transaction has a key-encryption key.';

create or replace function custody_data.previous_kek(p_tenant text, p_kek bytea, p_kek_version integer)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_previous bytea;
begin
  select k.previous into v_previous from custody_keys.key_encryption_keys k where k.tenant_id = p_tenant and k.kek_version = p_kek_version;
  if v_previous is null then
    return null;
  end if;
  return custody_data.open_bytes(p_kek,
    custody_data.sealing_place(p_tenant, '00000000-0000-0000-0000-000000000000', 'key_encryption_keys', 'previous', p_kek_version::text), v_previous);
end
$$;
revoke all on function custody_data.previous_kek(text, bytea, integer) from public;
comment on function custody_data.previous_kek(text, bytea, integer) is 'The key-encryption key before this one, while both are valid; else null.';

create or replace function custody_data.wrap_key(p_tenant text, p_identity_id uuid, p_key_version integer, p_key bytea, p_kek bytea, p_kek_version integer)
returns bytea
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.seal_bytes(p_kek, p_kek_version,
    custody_data.sealing_place(p_tenant, p_identity_id, 'wrapped_keys', 'wrapped', p_key_version::text), p_key);
end
$$;
revoke all on function custody_data.wrap_key(text, uuid, integer, bytea, bytea, integer) from public;
comment on function custody_data.wrap_key(text, uuid, integer, bytea, bytea, integer) is 'A data key sealed under a key-encryption key.';

create or replace function custody_data.unwrap_key(p_wrapped custody_keys.wrapped_keys)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kek_version constant integer := custody_data.require_kek();
  v_kek bytea := decode(current_setting('custody.kek'), 'hex');
begin
  if p_wrapped.kek_version < v_kek_version then
    v_kek := custody_data.previous_kek(p_wrapped.tenant_id, v_kek, v_kek_version);
  end if;
  return custody_data.open_bytes(v_kek,
    custody_data.sealing_place(p_wrapped.tenant_id, p_wrapped.identity_id, 'wrapped_keys', 'wrapped', p_wrapped.key_version::text), p_wrapped.wrapped);
end
$$;
revoke all on function custody_data.unwrap_key(custody_keys.wrapped_keys) from public;
comment on function custody_data.unwrap_key(custody_keys.wrapped_keys) is 'A data key, 64 bytes, of a copy that the key in hand or the one before it wrapped. Errors: PC033, PC035.';

-- definer: reads wrapped keys
create or replace function custody_data.data_key(p_identity_id uuid, p_key_version integer)
returns bytea
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := current_setting('custody.tenant', true); -- which the policies prove
  v_kek_version constant integer := custody_data.require_kek();
  v_wrapped custody_keys.wrapped_keys;
begin
  -- The newest copy that the key in hand can open: its own, or that of the version before it.
  select w.* into v_wrapped
  from custody_keys.wrapped_keys w
  where w.tenant_id = v_tenant and w.identity_id = p_identity_id and w.key_version = p_key_version and w.kek_version <= v_kek_version
  order by w.kek_version desc
  limit 1;
  if not found then
    if exists (select from custody_keys.data_keys k
        where k.tenant_id = v_tenant and k.identity_id = p_identity_id and k.key_version = p_key_version and k.destroyed_at is not null) then
      return null;
    end if;
    raise exception using
      errcode = 'PC035',
      message = 'sealed value refused',
      detail = format('Identity %s has no data key of version %s that the key-encryption key of version %s opens.', p_identity_id, p_key_version, v_kek_version),
      hint = 'Unlock with the newest key-encryption key; after a restore, restore the backup of the keys too.';
  end if;
  return custody_data.unwrap_key(v_wrapped);
end
$$;
revoke all on function custody_data.data_key(uuid, integer) from public;
comment on function custody_data.data_key(uuid, integer) is 'A data key of an identity, 64 bytes; null once it has been destroyed. Errors: PC033, PC035 no such version.';

create or replace function custody_data.make_data_keys(p_identity_ids uuid[], p_key_versions integer[])
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_kek_version constant integer := custody_data.require_kek();
  v_ids uuid[];
  v_versions integer[];
  v_key bytea;
  v_kek bytea;
  v_previous_kek bytea;
  v_wrapped bytea[];
  v_wrapped_before bytea[];
begin
  -- Shared until the transaction ends, so that the key-encryption key is not retired meanwhile.
  perform 1 from custody_keys.key_encryption_keys k
  where k.tenant_id = v_tenant and k.kek_version = v_kek_version and k.retired_at is null
  for share;
  if not found then
    raise exception using
      errcode = 'PC034',
      message = format('retired key of tenant %s', v_tenant),
      detail = format('Version %s was retired while this transaction had it.', v_kek_version),
      hint = 'Run the transaction again with the newest key-encryption key.';
  end if;
  with made as (
    insert into custody_keys.data_keys (tenant_id, identity_id, key_version)
    select v_tenant, m.identity_id, m.key_version from unnest(p_identity_ids, p_key_versions) m (identity_id, key_version)
    order by m.identity_id
    on conflict do nothing
    returning identity_id, key_version
  )
  select array_agg(m.identity_id), array_agg(m.key_version) into v_ids, v_versions from made m;
  v_kek := decode(current_setting('custody.kek'), 'hex');
  v_previous_kek := custody_data.previous_kek(v_tenant, v_kek, v_kek_version);
  for i in 1 .. coalesce(cardinality(v_ids), 0) loop
    v_key := custody_data.random_bytes(64);
    v_wrapped[i] := custody_data.wrap_key(v_tenant, v_ids[i], v_versions[i], v_key, v_kek, v_kek_version);
    if v_previous_kek is not null then
      v_wrapped_before[i] := custody_data.wrap_key(v_tenant, v_ids[i], v_versions[i], v_key, v_previous_kek, v_kek_version - 1);
    end if;
  end loop;
  insert into custody_keys.wrapped_keys (tenant_id, identity_id, key_version, kek_version, wrapped)
  select v_tenant, m.identity_id, m.key_version, v_kek_version, m.wrapped
  from unnest(v_ids, v_versions, v_wrapped) m (identity_id, key_version, wrapped);
  -- While the version before is valid too, who has only that one must be able to read.
  insert into custody_keys.wrapped_keys (tenant_id, identity_id, key_version, kek_version, wrapped)
  select v_tenant, m.identity_id, m.key_version, v_kek_version - 1, m.wrapped
  from unnest(v_ids, v_versions, v_wrapped_before) m (identity_id, key_version, wrapped)
  where m.wrapped is not null;
  return coalesce(cardinality(v_ids), 0);
end
$$;
revoke all on function custody_data.make_data_keys(uuid[], integer[]) from public;
comment on function custody_data.make_data_keys(uuid[], integer[]) is
'Makes versions of identities'' data keys and wraps them; returns how many, without those that another transaction has made meanwhile. Errors: PC001, PC033, PC034 retired meanwhile.';

create or replace function custody_data.make_data_key(p_identity_id uuid, p_key_version integer)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.make_data_keys(array[p_identity_id], array[p_key_version]) = 1;
end
$$;
revoke all on function custody_data.make_data_key(uuid, integer) from public;
comment on function custody_data.make_data_key(uuid, integer) is
'Makes a version of an identity''s data key and wraps it; false where another transaction has made it meanwhile. Errors: PC001, PC033, PC034 retired meanwhile.';

-- definer: makes keys
create or replace function custody_data.claim_data_key(p_identity_id uuid)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_version integer;
  v_last integer;
begin
  perform custody_data.require_kek();
  loop
    select max(k.key_version) filter (where k.destroyed_at is null), max(k.key_version) into v_version, v_last
    from custody_keys.data_keys k
    where k.tenant_id = v_tenant and k.identity_id = p_identity_id;
    exit when v_version is not null;
    if p_identity_id <> '00000000-0000-0000-0000-000000000000' then
      perform 1 from custody_data.identities i
      where i.tenant_id = v_tenant and i.identity_id = p_identity_id and i.erased_at is null
      for key share;
      if not found then
        raise exception using
          errcode = 'PC021',
          message = 'sealing refused: subject erased',
          detail = format('Identity %s is erased or unknown.', p_identity_id),
          hint = 'Write through the functions of schema custody: they find the identity that the user_id has now.';
      end if;
    end if;
    v_version := coalesce(v_last, 0) + 1;
    exit when custody_data.make_data_key(p_identity_id, v_version);
  end loop;
  return v_version;
end
$$;
revoke all on function custody_data.claim_data_key(uuid) from public;
comment on function custody_data.claim_data_key(uuid) is
'Version of the data key under which values of an identity are sealed now, made where it is missing. Errors: PC001, PC021 erased, PC033, PC034 retired meanwhile.';

create or replace view custody.wrapped_data_key with (security_invoker = true) as
select '00000000-0000-0000-0000-000000000000'::uuid as identity_id, 0::integer as key_version, ''::bytea as wrapped
where false;
comment on view custody.wrapped_data_key is
'Shape of claim_data_keys. wrapped: sealed value, version 1, of the 64 bytes of the data key under the key-encryption key; its place is TENANT/IDENTITY/wrapped_keys/wrapped/KEY_VERSION.';

-- definer: makes keys
create or replace function custody.claim_data_keys(p_identity_ids uuid[])
returns setof custody.wrapped_data_key
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan -- one person or a hundred thousand
set enable_nestloop = off -- what is known of tables that have just been filled says one
set work_mem = '64MB'
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_kek_version constant integer := custody_data.require_kek();
  v_kek constant bytea := decode(current_setting('custody.kek'), 'hex');
  v_key bytea;
  v_ids uuid[];
  v_versions integer[];
  v_live bigint;
  v_claimed custody.wrapped_data_key;
begin
  if p_identity_ids is null or '00000000-0000-0000-0000-000000000000' = any (p_identity_ids) then
    raise exception using errcode = 'PC023', message = 'invalid p_identity_ids', hint = 'Give identities of people.';
  end if;
  select array_agg(m.identity_id), array_agg(m.key_version) into v_ids, v_versions
  from (
    select p.identity_id, coalesce(max(k.key_version), 0) + 1 as key_version
    from unnest(p_identity_ids) p (identity_id)
    left join custody_keys.data_keys k on k.tenant_id = v_tenant and k.identity_id = p.identity_id and k.identity_id = any (p_identity_ids)
    group by p.identity_id
    having count(*) filter (where k.key_version is not null and k.destroyed_at is null) = 0
  ) m;
  if v_ids is not null then
    perform 1 from (
      select from custody_data.identities i
      where i.tenant_id = v_tenant and i.identity_id = any (v_ids) and i.erased_at is null
      order by i.identity_id
      for key share
    ) locked;
    get diagnostics v_live = row_count;
    if v_live < cardinality(v_ids) then
      raise exception using
        errcode = 'PC021',
        message = 'sealing refused: subject erased',
        detail = format('%s identities are erased or unknown.', cardinality(v_ids) - v_live),
        hint = 'Claim the identities that the user_ids have now.';
    end if;
    perform custody_data.make_data_keys(v_ids, v_versions);
  end if;
  -- Who has keys can open what they sealed, here or elsewhere.
  for i in 0 .. (cardinality(p_identity_ids) - 1) / 1000 loop
    v_ids := p_identity_ids[i * 1000 + 1 : i * 1000 + 1000];
    if v_ids <> '{}' then
      perform custody_data.write_line('read', 'wrapped_keys', array['wrapped'], v_ids, cardinality(v_ids));
    end if;
  end loop;
  for v_claimed in
    select n.identity_id, n.key_version, w.wrapped
    from (
      select k.identity_id, max(k.key_version) as key_version
      from custody_keys.data_keys k
      where k.tenant_id = v_tenant and k.identity_id = any (p_identity_ids) and k.destroyed_at is null
      group by k.identity_id
    ) n
    left join custody_keys.wrapped_keys w
      on w.tenant_id = v_tenant and w.identity_id = n.identity_id and w.key_version = n.key_version and w.kek_version = v_kek_version
      and w.identity_id = any (p_identity_ids)
  loop
    if v_claimed.wrapped is null then
      -- Until a rotation comes by it, the version before is the only one that wraps it.
      v_key := custody_data.data_key(v_claimed.identity_id, v_claimed.key_version);
      v_claimed.wrapped := custody_data.wrap_key(v_tenant, v_claimed.identity_id, v_claimed.key_version, v_key, v_kek, v_kek_version);
    end if;
    return next v_claimed;
  end loop;
end
$$;
revoke all on function custody.claim_data_keys(uuid[]) from public;
grant execute on function custody.claim_data_keys(uuid[]) to custody_worker;
comment on function custody.claim_data_keys(uuid[]) is
'Data keys under which values of many people are sealed now, made where they are missing, for a caller that seals outside the database: each sealed under the key-encryption key that the transaction is unlocked with. The caller has claimed the identities, so that no erasure comes in between.
p_identity_ids: of people, in any order; an identity that is there twice is returned once.
Errors: PC001, PC015 confined to one person, PC021 erased or unknown, PC023, PC033 locked, PC034 retired meanwhile, PC035 no copy that the key opens, PC063 the keys'' giving out cannot be recorded. Callers: custody_worker.';

create or replace function custody_data.check_sealing_identity(p_identity_id uuid)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_context();
  if custody.has_subject() and p_identity_id is distinct from custody.current_subject_id() then
    raise exception using
      errcode = 'PC015',
      message = 'this transaction is confined to another person',
      detail = 'set_context was given a subject, and the call names somebody else.',
      hint = 'Name the subject of the context, or set a context without p_subject.';
  end if;
end
$$;
revoke all on function custody_data.check_sealing_identity(uuid) from public;
comment on function custody_data.check_sealing_identity(uuid) is 'Raises PC015 for another identity than the one that the context is confined to.';

create or replace function custody_data.require_data_key(p_identity_id uuid, p_key_version integer)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key constant bytea := custody_data.data_key(p_identity_id, p_key_version);
begin
  if v_key is null then
    -- An erasure destroyed it after it was claimed.
    raise exception using
      errcode = 'PC021',
      message = 'sealing refused: subject erased',
      detail = format('The data keys of identity %s were destroyed meanwhile.', p_identity_id),
      hint = 'Run the transaction again: it finds the identity that the user_id has now.';
  end if;
  return v_key;
end
$$;
revoke all on function custody_data.require_data_key(uuid, integer) from public;
comment on function custody_data.require_data_key(uuid, integer) is 'A data key of an identity. Errors: PC001, PC021 destroyed, PC033, PC035 no such version.';

-- definer: the keys are the owner's
create or replace function custody_data.seal_values(p_identity_id uuid, p_table text, p_row text, p_columns text[], p_values text[])
returns bytea[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_kek_version constant integer := custody_data.require_kek();
  v_wrapped custody_keys.wrapped_keys;
  v_version integer;
  v_key bytea;
  v_sealed bytea[] := array_fill(null::bytea, array[cardinality(p_columns)]);
begin
  -- Its newest copy is that of the newest key: those that are destroyed have none.
  select w.* into v_wrapped
  from custody_keys.wrapped_keys w
  where w.tenant_id = v_tenant and w.identity_id = p_identity_id and w.kek_version <= v_kek_version
  order by w.key_version desc, w.kek_version desc
  limit 1;
  if found then
    v_version := v_wrapped.key_version;
    v_key := custody_data.unwrap_key(v_wrapped);
  else
    v_version := custody_data.claim_data_key(p_identity_id);
    v_key := custody_data.require_data_key(p_identity_id, v_version);
  end if;
  for i in 1 .. cardinality(p_columns) loop
    if p_values[i] is not null then
      v_sealed[i] := custody_data.seal_bytes(v_key, v_version,
        custody_data.sealing_place(v_tenant, p_identity_id, p_table, p_columns[i], p_row), convert_to(p_values[i], 'UTF8'));
    end if;
  end loop;
  return v_sealed;
end
$$;
revoke all on function custody_data.seal_values(uuid, text, text, text[], text[]) from public;
grant execute on function custody_data.seal_values(uuid, text, text, text[], text[]) to custody_worker;
comment on function custody_data.seal_values(uuid, text, text, text[], text[]) is 'Values of one row sealed, in the order of the columns; null stays null. Errors: PC001, PC021, PC033.';

-- definer: the keys are the owner's
create or replace function custody_data.seal_column(p_identity_id uuid, p_table text, p_column text, p_rows text[], p_values text[])
returns bytea[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_version constant integer := custody_data.claim_data_key(p_identity_id);
  v_key constant bytea := custody_data.require_data_key(p_identity_id, v_version);
  v_sealed bytea[] := array_fill(null::bytea, array[cardinality(p_rows)]);
begin
  for i in 1 .. cardinality(p_rows) loop
    if p_values[i] is not null then
      v_sealed[i] := custody_data.seal_bytes(v_key, v_version,
        custody_data.sealing_place(v_tenant, p_identity_id, p_table, p_column, p_rows[i]), convert_to(p_values[i], 'UTF8'));
    end if;
  end loop;
  return v_sealed;
end
$$;
revoke all on function custody_data.seal_column(uuid, text, text, text[], text[]) from public;
grant execute on function custody_data.seal_column(uuid, text, text, text[], text[]) to custody_worker;
comment on function custody_data.seal_column(uuid, text, text, text[], text[]) is 'Values of one column of one person sealed, in the order of the rows, with one look-up of the key; null stays null. Errors: PC001, PC021, PC033.';

create or replace function custody_data.open_unseen(p_identity_id uuid, p_table text, p_row text, p_columns text[], p_sealed bytea[])
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_values text[] := array_fill(null::text, array[cardinality(p_columns)]);
  v_sealed bytea;
  v_head bytea;
  v_key bytea;
  v_place bytea;
  v_plain bytea;
begin
  -- require_context has just looked at the proof.
  if nullif(current_setting('custody.subject', true), '') is not null then
    perform custody_data.check_sealing_identity(p_identity_id);
  end if;
  -- Only the last part of a place may have a slash: else it would have two names, and what is recorded of it a false one.
  if strpos(p_table, '/') > 0 or strpos(array_to_string(p_columns, ''), '/') > 0 then
    perform custody_data.refuse_sealed_value();
  end if;
  for i in 1 .. cardinality(p_columns) loop
    v_sealed := p_sealed[i];
    continue when v_sealed is null;
    -- format and version of the key
    if v_head is distinct from substr(v_sealed, 1, 5) then
      v_head := substr(v_sealed, 1, 5);
      v_key := custody_data.data_key(p_identity_id, custody_data.sealed_key_version(v_sealed));
    end if;
    continue when v_key is null;
    v_place := custody_data.sealing_place(v_tenant, p_identity_id, p_table, p_columns[i], p_row);
    v_plain := custody_data.open_bytes(v_key, v_place, v_sealed);
    v_values[i] := convert_from(v_plain, 'UTF8');
  end loop;
  return v_values;
end
$$;
revoke all on function custody_data.open_unseen(uuid, text, text, text[], bytea[]) from public;
comment on function custody_data.open_unseen(uuid, text, text, text[], bytea[]) is
'Values of one row opened for a function that shows them to nobody: it seals or indexes them anew, adds to them or compares them. No role may call it, and nothing records it. Errors: PC001, PC015 another person than the subject, PC033, PC035.';

-- definer: the keys are the owner's
create or replace function custody_data.open_values(p_identity_id uuid, p_table text, p_row text, p_columns text[], p_sealed bytea[])
returns text[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_values constant text[] := custody_data.open_unseen(p_identity_id, p_table, p_row, p_columns, p_sealed);
  v_opened text[] := array[]::text[];
begin
  for i in 1 .. cardinality(p_columns) loop
    if v_values[i] is not null then
      v_opened := v_opened || p_columns[i];
    end if;
  end loop;
  if v_opened <> '{}' then
    perform custody_data.record_read(p_identity_id, p_table, v_opened, 1);
  end if;
  return v_values;
end
$$;
revoke all on function custody_data.open_values(uuid, text, text, text[], bytea[]) from public;
grant execute on function custody_data.open_values(uuid, text, text, text[], bytea[]) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.open_values(uuid, text, text, text[], bytea[]) is
'Values of one row opened, in the order of the columns; null stays null, and what a destroyed key sealed is null. Before it returns them it records whose they are, in the server log and, where the transaction may write, in the trail. Errors: PC001, PC015 another person than the subject, PC033, PC035, PC063 the read cannot be recorded.';

-- definer: the keys are the owner's
create or replace function custody_data.same_values(p_identity_id uuid, p_table text, p_row text, p_columns text[], p_sealed bytea[], p_values text[])
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.open_unseen(p_identity_id, p_table, p_row, p_columns, p_sealed) = p_values;
end
$$;
revoke all on function custody_data.same_values(uuid, text, text, text[], bytea[], text[]) from public;
grant execute on function custody_data.same_values(uuid, text, text, text[], bytea[], text[]) to custody_worker;
comment on function custody_data.same_values(uuid, text, text, text[], bytea[], text[]) is
'Whether sealed values of one row are these, for imports: it shows none, and who may seal could tell as well by sealing what it has. Errors: PC001, PC015 another person than the subject, PC033, PC035.';

create or replace function custody_data.open_text(p_identity_id uuid, p_table text, p_column text, p_row text, p_sealed bytea)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_values text[];
begin
  if p_sealed is null then
    return null;
  end if;
  v_values := custody_data.open_values(p_identity_id, p_table, p_row, array[p_column], array[p_sealed]);
  return v_values[1];
end
$$;
revoke all on function custody_data.open_text(uuid, text, text, text, bytea) from public;
grant execute on function custody_data.open_text(uuid, text, text, text, bytea) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.open_text(uuid, text, text, text, bytea) is 'One value opened, as open_values does; null needs no key.';

-- definer: the keys are the owner's
create or replace function custody.seal_value(p_identity_id uuid, p_table text, p_column text, p_row text, p_value text)
returns bytea
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_sealed bytea[];
begin
  perform custody_data.check_sealing_identity(p_identity_id);
  if p_identity_id is null or p_table !~ '^[a-z_][a-z0-9_]{0,62}$' or p_column !~ '^[a-z_][a-z0-9_]{0,62}$' or p_table is null or p_column is null or p_row is null
      or p_identity_id = '00000000-0000-0000-0000-000000000000' then
    raise exception using errcode = 'PC023', message = 'invalid place of a sealed value',
      hint = 'Give the identity, the names of table and column as SQL writes them without quotes, and the row''s key.';
  end if;
  v_sealed := custody_data.seal_values(p_identity_id, p_table, p_row, array[p_column], array[p_value]);
  return v_sealed[1];
end
$$;
revoke all on function custody.seal_value(uuid, text, text, text, text) from public;
grant execute on function custody.seal_value(uuid, text, text, text, text) to custody_readwrite, custody_worker;
comment on function custody.seal_value(uuid, text, text, text, text) is
'Seals a value for one place, for columns of the application''s own: format of sql/routines/15_sealing.sql, key of the identity, which an erasure destroys. Null stays null.
p_identity_id: whom it is about. p_table, p_column: names of at most 63 of a-z, 0-9 and _. p_row: the row''s key as text.
Errors: PC001, PC015 another person than the subject, PC021 erased or unknown, PC023, PC033 locked. Callers: custody_readwrite, custody_worker.';

-- definer: the keys are the owner's
create or replace function custody.open_value(p_identity_id uuid, p_table text, p_column text, p_row text, p_sealed bytea)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_values text[];
begin
  perform custody_data.check_sealing_identity(p_identity_id);
  v_values := custody_data.open_values(p_identity_id, p_table, p_row, array[p_column], array[p_sealed]);
  if p_sealed is not null and v_values[1] is null then
    raise exception using
      errcode = 'PC021',
      message = 'opening refused: subject erased',
      detail = format('The key of identity %s that sealed the value has been destroyed.', p_identity_id),
      hint = 'The value is gone for good, here and in every backup and archive.';
  end if;
  return v_values[1];
end
$$;
revoke all on function custody.open_value(uuid, text, text, text, bytea) from public;
grant execute on function custody.open_value(uuid, text, text, text, bytea) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.open_value(uuid, text, text, text, bytea) is
'Opens what seal_value sealed for the same place. Null stays null.
Errors: PC001, PC015 another person than the subject, PC021 erased, PC033 locked, PC035 the value was altered or belongs to another place, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

-- definer: writes keys
create or replace function custody.register_kek(p_kek bytea, p_reference text, p_current bytea default null)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_current integer;
  v_valid integer;
  v_version integer;
  v_check_value bytea;
  v_previous bytea;
  v_seen bytea := ''::bytea;
begin
  if custody_data.refuse_exposed_key(p_kek) or (p_current is not null and custody_data.refuse_exposed_key(p_current)) then
    return null;
  end if;
  -- One after the other in a tenant.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.keys.' || v_tenant, 0));
  if octet_length(p_kek) = 64 then
    for i in 0 .. 63 loop
      if position(substr(p_kek, i + 1, 1) in v_seen) = 0 then
        v_seen := v_seen || substr(p_kek, i + 1, 1);
      end if;
    end loop;
  end if;
  -- 64 random bytes have fewer than 32 different ones once in more than 10^20 keys.
  if octet_length(v_seen) < 32 then
    raise exception using
      errcode = 'PC034',
      message = format('weak key for tenant %s', v_tenant),
      detail = 'A key has 64 bytes from the random source of an operating system or of a key service.',
      hint = 'pgcustody keys create makes one with its provider.';
  end if;
  if p_reference is null or char_length(p_reference) not between 1 and 4096 then
    raise exception using errcode = 'PC023', message = 'invalid reference of a key', hint = 'Give 1 to 4096 characters by which the provider finds the key.';
  end if;
  select max(k.kek_version) filter (where k.retired_at is null), count(*) filter (where k.retired_at is null), coalesce(max(k.kek_version), 0) + 1
  into v_current, v_valid, v_version
  from custody_keys.key_encryption_keys k
  where k.tenant_id = v_tenant;
  if v_valid > 1 then
    raise exception using
      errcode = 'PC037',
      message = format('rotation of tenant %s is under way', v_tenant),
      detail = format('Version %s has not replaced the one before it yet.', v_current),
      hint = 'Let pgcustody keys rotate end, then begin the next one.';
  end if;
  if custody_data.find_kek(v_tenant, p_kek) is not null then
    raise exception using errcode = 'PC034', message = format('key of tenant %s is there already', v_tenant),
      detail = format('It is version %s.', v_current), hint = 'A rotation needs a new key.';
  end if;
  if v_valid = 1 then
    if custody_data.find_kek(v_tenant, p_current) is distinct from v_current then
      raise exception using errcode = 'PC034', message = format('wrong key for tenant %s', v_tenant),
        detail = format('p_current is not the key-encryption key of version %s.', v_current),
        hint = 'A new version needs the one that it replaces, so that what that one wrapped can be wrapped anew.';
    end if;
    v_previous := custody_data.seal_bytes(p_kek, v_version,
      custody_data.sealing_place(v_tenant, '00000000-0000-0000-0000-000000000000', 'key_encryption_keys', 'previous', v_version::text), p_current);
  end if;
  v_check_value := custody_data.kek_check_value(v_tenant, p_kek);
  insert into custody_keys.key_encryption_keys (tenant_id, kek_version, reference, check_value, previous)
  values (v_tenant, v_version, p_reference, v_check_value, v_previous);
  perform custody_data.append_event('key.register', 'key', null, 'success', jsonb_build_object('kek_version', v_version), null);
  return v_version;
end
$$;
revoke all on function custody.register_kek(bytea, text, bytea) from public;
grant execute on function custody.register_kek(bytea, text, bytea) to custody_worker, custody_admin;
comment on function custody.register_kek(bytea, text, bytea) is
'Makes a key-encryption key known for the tenant in context and returns its version. The key is not stored; while it replaces another one, that one is stored sealed under it.
p_kek: 64 random bytes, bound. p_reference: by which the provider finds it. p_current: the valid key, where there is one, bound too. Returns null under log_parameter_max_length_on_error, as unlock does.
Errors: PC001, PC015 confined to one person, PC023, PC034 weak, wrong or known key, PC036 exposed key, PC037 rotation under way. Callers: custody_worker, custody_admin.';
