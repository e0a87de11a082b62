-- Who may be whom: logins of people, token mode of applications, and the keys of both.
-- control: HIPAA 164.312(a)(2)(i), (d); ISO 27001 A.5.16, A.5.17, A.8.5; SOC 2 CC6.1; GDPR Art. 32
-- reviewed by: security, DBA
--
-- A context whose login is checked carries a MAC in the setting custody.mac: KID.HEX, HMAC-SHA-256 over the settings and what
-- else context_mac of 10_context.sql names. It holds for this login, server process and transaction alone. (Postgres shows
-- the start of a process to the process's own role, and to functions of another owner as null; the secret stands for it.)
--
-- The secret is the session's own, of 16 random bytes, and KID then sessionPID: drawn by the first transaction of the session
-- that needs one and may write, and kept where no statement of the session can read or set it: what setval of a sequence
-- leaves in the memory of the server process is shown by currval alone, to who has a right on the sequence, which is the
-- owner; the sequence itself holds 1 again at once. The sequences are unlogged: their setval writes no WAL (tried with
-- pg_walinspect: not a byte; of a logged one whoever reads WAL, a standby or the archive of it, would have the secrets of
-- sessions that live), and base backups leave them out. Between the two calls the number is in a page of shared memory, which
-- whoever may SELECT the sequence can read: the owner, and a superuser, who can read the process as well. (Not backups, whose
-- role may SELECT the rest; a right on it that somebody was given, pg_read_all_data among them, is a finding.) So nobody looks
-- a key up for each statement, and it ends with the process. A session that has none yet and may not write, READ ONLY or on a
-- standby, signs with the key of the server instead, a context key: made by the first transaction that draws a secret and
-- finds none for this run of the server. Two at once make two. Rotation forgets all but the newest and the one before.
--
-- What is given is compared with what was made by same_text, which tells nothing by its time. A token is good in its one
-- spelling alone, and no member of it may be there twice: who builds tokens by joining strings would otherwise let a person
-- add a claim.
--
-- A token is a JWT (RFC 7519) in JWS compact form (RFC 7515), HS256, verified here and nowhere looked up. It is safest as a
-- bound parameter; as a literal it is in statistics and logs, and good for whoever reads them until it expires, which is
-- why none is accepted that lives for more than an hour.

create or replace function custody_data.context_key()
returns custody_keys.context_keys
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_server text;
  v_found custody_keys.context_keys;
begin
  if session_user <> all (custody_data.checked_logins()) then
    return null;
  end if;
  begin
    v_found.secret := int8send(currval('custody_keys.session_secret_1')) || int8send(currval('custody_keys.session_secret_2'));
    v_found.kid := 'session' || pg_backend_pid();
    return v_found;
  exception when object_not_in_prerequisite_state then
    v_server := custody_data.this_server(); -- the session has none yet
  end;
  select k.* into v_found
  from custody_keys.context_keys k
  where k.tenant_id = 'system' and k.kind = 'context' and k.retired_at is null and (k.server = v_server or pg_is_in_recovery())
  order by k.created_at desc, k.kid
  limit 1;
  if current_setting('transaction_read_only') = 'on' then
    if v_found.kid is null then
      raise exception using
        errcode = 'PC062',
        message = 'no context key on this server yet',
        detail = 'It is made by the first transaction since the server''s start that needs one, and this one is read only.',
        hint = 'Begin once without read only, or call custody.rotate_context_key on the primary.';
    end if;
    return v_found;
  end if;
  if v_found.kid is null then
    perform custody_data.make_context_key();
  end if;
  -- The first call of each two puts a number into the memory of this process, where it stays; the second takes it out of the
  -- sequence. An expression, as it must be.
  v_found.secret := custody_data.random_bytes(16);
  if setval('custody_keys.session_secret_1', ('x' || encode(substr(v_found.secret, 1, 8), 'hex'))::bit(64)::bigint) is not null
      and setval('custody_keys.session_secret_1', 1, false) is not null
      and setval('custody_keys.session_secret_2', ('x' || encode(substr(v_found.secret, 9, 8), 'hex'))::bit(64)::bigint) is not null
      and setval('custody_keys.session_secret_2', 1, false) is not null then
    v_found.kid := 'session' || pg_backend_pid();
  end if;
  return v_found;
end
$$;
revoke all on function custody_data.context_key() from public;
comment on function custody_data.context_key() is 'The secret that signs the contexts of this session, made where there is none; READ ONLY and on a standby, where the session has none yet, the key of the server. Null where the login is not checked. Errors: PC062.';

create or replace function custody_data.sign_context()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_with constant custody_keys.context_keys := custody_data.context_key();
  v_mac text;
begin
  if v_with.kid is not null then
    v_mac := v_with.kid || '.' || custody_data.context_mac(v_with.secret);
    perform set_config('custody.mac', v_mac, true);
  end if;
end
$$;
revoke all on function custody_data.sign_context() from public;
comment on function custody_data.sign_context() is 'Makes the MAC of the context that the settings say, where the login is checked: called by what has verified and changed them. Errors: PC062.';

create or replace function custody_data.make_context_key()
returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kid constant text := gen_random_uuid()::text;
begin
  insert into custody_keys.context_keys (kid, kind, server, secret)
  values (v_kid, 'context', custody_data.this_server(), custody_data.random_bytes(32));
  return v_kid;
end
$$;
revoke all on function custody_data.make_context_key() from public;
comment on function custody_data.make_context_key() is 'Makes a context key for this server and returns its kid.';

create or replace function custody_data.checked_login(p_has_token boolean)
returns custody_data.logins
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_login custody_data.logins;
begin
  -- Of two rows, which the functions below do not make, the stricter holds.
  select l.* into v_login
  from custody_data.logins l
  where l.role_name = session_user and l.ended_at is null
  order by l.mode = 'retired' desc, l.mode = 'token' desc
  limit 1;
  if v_login.mode = 'token' and not p_has_token then
    raise exception using
      errcode = 'PC061',
      message = format('login %s is in token mode', session_user),
      detail = 'It does not choose its context: a token does.',
      hint = 'begin; select custody.begin_context($1); call; commit.';
  elsif v_login.mode = 'retired' then
    raise exception using
      errcode = 'PC061',
      message = format('login %s is retired', session_user),
      detail = 'It gets no context any more.',
      hint = 'custody.register_login puts a person''s login back.';
  end if;
  return v_login;
end
$$;
revoke all on function custody_data.checked_login(boolean) from public;
comment on function custody_data.checked_login(boolean) is 'How the session''s login is registered. Raises PC061 where it is retired, and, without a token, where it is in token mode.';

create or replace function custody_data.require_binding(p_login custody_data.logins)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  -- The context was entered just now: it needs no proof.
  v_what constant text := case
    when p_login.tenant_id <> current_setting('custody.tenant') then 'tenant'
    when p_login.actor_id::text <> current_setting('custody.actor_id') then 'actor'
    when current_setting('custody.purpose') <> all (p_login.purposes) then 'purpose' end;
begin
  if p_login.mode = 'person' and v_what is not null then
    raise exception using
      errcode = 'PC061',
      message = format('login %s may not give this %s', session_user, v_what),
      detail = 'It is a person''s, bound to one tenant and actor, and to purposes where any are named.',
      hint = 'Give what custody.logins says of it; custody.register_login binds it otherwise.';
  end if;
end
$$;
revoke all on function custody_data.require_binding(custody_data.logins) from public;
comment on function custody_data.require_binding(custody_data.logins) is 'Raises PC061 where the context is not one that a person''s login is bound to.';

create or replace function custody_data.encode_base64url(p_bytes bytea)
returns text
language sql
immutable
parallel safe
return replace(replace(replace(rtrim(pg_catalog.encode(p_bytes, 'base64'), '='), E'\n', ''), '+', '-'), '/', '_');
revoke all on function custody_data.encode_base64url(bytea) from public;
comment on function custody_data.encode_base64url(bytea) is 'BASE64URL of RFC 7515, without padding.';

create or replace function custody_data.decode_base64url(p_text text)
returns bytea
language sql
immutable
parallel safe
return pg_catalog.decode(replace(replace(p_text, '-', '+'), '_', '/') || repeat('=', -pg_catalog.length(p_text) & 3), 'base64');
revoke all on function custody_data.decode_base64url(text) from public;
comment on function custody_data.decode_base64url(text) is 'The inverse of encode_base64url. It takes other spellings too, so what matters is encoded again and compared. Errors: 22023.';

create or replace function custody_data.decode_members(p_bytes bytea)
returns jsonb
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_text text;
  v_members jsonb;
begin
  v_text := convert_from(p_bytes, 'UTF8');
  v_members := v_text::jsonb;
  -- jsonb keeps the last of two members of one name.
  if jsonb_typeof(v_members) <> 'object' or (select count(*) <> count(distinct m.name) from json_object_keys(v_text::json) m (name)) then
    return null;
  end if;
  return v_members;
exception
  when data_exception or statement_too_complex or program_limit_exceeded then
    return null;
end
$$;
revoke all on function custody_data.decode_members(bytea) from public;
comment on function custody_data.decode_members(bytea) is 'A JSON object in UTF-8; null for whatever is none, or has two members of one name.';

create or replace function custody_data.read_token(p_token text)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_header constant text := split_part(p_token, '.', 1);
  v_payload constant text := split_part(p_token, '.', 2);
  v_tag constant text := split_part(p_token, '.', 3);
  v_bytes bytea;
  v_text text;
  v_members jsonb;
  v_kid text;
  v_secret bytea;
  v_for_tenant text;
  v_claims jsonb;
  v_now numeric;
begin
  -- The one spelling of each part: the bits left over at the end are zero.
  v_bytes := custody_data.decode_base64url(v_header);
  if octet_length(p_token) > 8192 or p_token <> v_header || '.' || v_payload || '.' || v_tag or custody_data.encode_base64url(v_bytes) <> v_header then
    return null;
  end if;
  -- As most write it, or else as JSON.
  v_text := encode(v_bytes, 'escape');
  v_kid := split_part(split_part(v_text, '"kid":"', 2), '"', 1);
  if v_text is null or position('\' in v_text) > 0 or v_text not in ('{"alg":"HS256","kid":"' || v_kid || '"}',
      '{"alg":"HS256","typ":"JWT","kid":"' || v_kid || '"}', '{"alg":"HS256","kid":"' || v_kid || '","typ":"JWT"}') then
    v_members := custody_data.decode_members(v_bytes);
    if v_members - '{alg,typ,kid}'::text[] is distinct from '{}' or v_members -> 'alg' is distinct from '"HS256"'
        or coalesce(v_members -> 'typ', '"JWT"') <> '"JWT"' or jsonb_typeof(v_members -> 'kid') is distinct from 'string' then
      return null;
    end if;
    v_kid := v_members ->> 'kid';
  end if;
  select k.secret, k.for_tenant into v_secret, v_for_tenant
  from custody_keys.context_keys k
  where k.tenant_id = 'system' and k.kid = v_kid and k.kind = 'token' and k.retired_at is null;
  v_text := custody_data.encode_base64url(custody_data.hmac_sha256(convert_to(v_header || '.' || v_payload, 'UTF8'), v_secret));
  if v_text is null or not custody_data.same_text(v_text, v_tag) then
    return null;
  end if;

  -- What follows whoever holds the key has written.
  v_bytes := custody_data.decode_base64url(v_payload);
  if custody_data.encode_base64url(v_bytes) <> v_payload then
    return null;
  end if;
  v_text := convert_from(v_bytes, 'UTF8');
  v_claims := v_text::jsonb;
  -- One expression, because each function that an expression names is looked up in every transaction.
  if (v_claims @@ '$.type() == "object" && $.tenant.type() == "string" && $.sub.type() == "string" && $.purpose.type() == "string" && $.exp.type() == "number"
      && (!exists ($.subject) || $.subject.type() == "string") && (!exists ($.nbf) || $.nbf.type() == "number") && (!exists ($.iat) || $.iat.type() == "number")') is not true
      or v_claims ->> 'tenant' <> v_for_tenant then
    return null;
  end if;
  -- jsonb keeps the last of two members of one name. The members that were looked at have so many quotes; where the text has
  -- no more, and none within a string, it has no other member.
  if position('\' in v_text) > 0 or length(v_text) - length(replace(v_text, '"', '')) <>
      14 + 4 * (v_claims ? 'subject')::integer + 2 * (v_claims ? 'nbf')::integer + 2 * (v_claims ? 'iat')::integer then
    if custody_data.decode_members(v_bytes) is null then
      return null;
    end if;
  end if;
  v_now := extract(epoch from clock_timestamp());
  if (v_claims ->> 'exp')::numeric <= v_now then
    return jsonb_build_object('refused', 'It has expired.');
  elsif (v_claims ->> 'nbf')::numeric > v_now + 30 or (v_claims ->> 'iat')::numeric > v_now + 30 then
    return jsonb_build_object('refused', 'It is not valid yet.');
  elsif (v_claims ->> 'exp')::numeric > v_now + 3630 then
    return null;
  end if;
  return v_claims;
exception
  when data_exception or statement_too_complex or program_limit_exceeded then
    return null;
end
$$;
revoke all on function custody_data.read_token(text) from public;
comment on function custody_data.read_token(text) is 'The claims of a good token; {"refused": why} for one that is not in its time; null for any other.';

-- definer: reads the keys, and sets the context
create or replace function custody.begin_context(p_token text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_checked constant boolean := session_user = any (custody_data.checked_logins());
  v_login custody_data.logins;
  v_claims jsonb;
begin
  if v_checked then
    v_login := custody_data.checked_login(true);
  end if;
  v_claims := custody_data.read_token(p_token);
  if v_claims is null or v_claims ? 'refused' then
    raise exception using
      errcode = 'PC060',
      message = 'token refused',
      detail = coalesce(v_claims ->> 'refused', 'It is none that was minted for this database.'),
      hint = 'Mint a new one: HS256 under a registered key with its kid; tenant, sub, purpose, exp within the hour; see sql/README.md.';
  end if;
  -- A condition, which is quicker than a statement; it never holds.
  if (custody_data.enter_context(v_claims ->> 'tenant', v_claims ->> 'sub', v_claims ->> 'purpose', v_claims ->> 'subject') is null) is null then
    return;
  end if;
  if v_login.mode = 'person' then
    perform custody_data.require_binding(v_login);
  end if;
end
$$;
revoke all on function custody.begin_context(text) from public;
grant execute on function custody.begin_context(text) to
  custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor;
comment on function custody.begin_context(text) is
'Sets the context that a token says, as set_context does; ends with the transaction. The only way for a login in token mode.
p_token: JWT, HS256, at most 8192 bytes, best as a bound parameter. Header: alg, kid, and typ JWT or none. Claims: tenant, sub (the actor), purpose, exp (at most an hour ahead); subject, nbf and iat where they are wanted; others are not looked at.
Errors: PC002 unknown tenant, PC003 invalid sub or subject, PC015 tenant system without the right, PC060 token refused, PC061 another context than this login may have, PC062.
Callers: custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor.';

create or replace function custody_data.check_role(p_role text)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_roles r where r.rolname = p_role and r.rolcanlogin and not r.rolsuper) then
    raise exception using
      errcode = 'PC023',
      message = 'invalid login',
      detail = 'No role of that name can log in, or it is a superuser, whom no check holds.',
      hint = 'Give the name of the role that the application or the person logs in as.';
  end if;
end
$$;
revoke all on function custody_data.check_role(text) from public;
comment on function custody_data.check_role(text) is 'Raises PC023 for what is no login, or a superuser.';

create or replace function custody_data.put_login(p_login custody_data.logins)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_read_committed(), pg_advisory_xact_lock(hashtextextended('pgcustody.logins', 0));
  update custody_data.logins l set ended_at = clock_timestamp()
  where l.role_name = p_login.role_name and l.tenant_id <> p_login.tenant_id and l.ended_at is null;
  insert into custody_data.logins (tenant_id, role_name, mode, actor_id, purposes)
  values (p_login.tenant_id, p_login.role_name, p_login.mode, p_login.actor_id, p_login.purposes)
  on conflict on constraint logins_pkey do update
  set mode = excluded.mode, actor_id = excluded.actor_id, purposes = excluded.purposes, registered_at = excluded.registered_at, ended_at = null;
end
$$;
revoke all on function custody_data.put_login(custody_data.logins) from public;
comment on function custody_data.put_login(custody_data.logins) is 'Makes a row of a login the one that holds. Errors: PC026.';

-- definer: logins are written by these functions alone
create or replace function custody.register_login(p_role text, p_actor text, p_tenant text, p_purposes text[] default null)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_actor_id uuid;
begin
  if p_tenant is distinct from v_tenant then
    raise exception using
      errcode = 'PC015',
      message = 'a login is registered in the context of its tenant',
      detail = format('The context is that of tenant %s.', v_tenant),
      hint = 'Call custody.set_context with the tenant of the login.';
  end if;
  perform custody_data.check_role(p_role);
  if p_purposes = '{}' or array_position(p_purposes, null) is not null or array_position(p_purposes, '') is not null then
    raise exception using errcode = 'PC023', message = 'invalid purposes', hint = 'Give an array of purposes, or null where any may be given.';
  end if;
  v_actor_id := custody_data.claim_identity(p_actor);
  perform custody_data.put_login(row(v_tenant, p_role, 'person', v_actor_id, p_purposes, null, null));
  perform custody_data.append_event('login.register', 'login', null, 'success',
    jsonb_strip_nulls(jsonb_build_object('login', p_role, 'purposes', p_purposes)), v_actor_id);
end
$$;
revoke all on function custody.register_login(text, text, text, text[]) from public;
grant execute on function custody.register_login(text, text, text, text[]) to custody_admin;
comment on function custody.register_login(text, text, text, text[]) is
'Binds the login of a person to an actor and a tenant: its sessions get that context by set_context, confined to a subject where they want, and no other. A login that was registered before is bound anew. An event.
p_role: name of the login. p_actor: the user_id as which it acts. p_tenant: the tenant of the context. p_purposes: the only purposes that it may give; null for any.
Errors: PC001, PC003 invalid actor, PC015 another tenant than that of the context, PC023 no login, or invalid purposes, PC026 isolation level. Callers: custody_admin.';

-- definer: logins are written by these functions alone
create or replace function custody.retire_login(p_role text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if not exists (select from custody_data.logins l where l.role_name = p_role and l.tenant_id = v_tenant and l.ended_at is null) then
    raise exception using
      errcode = 'PC023',
      message = 'no such login',
      detail = format('None of that name is registered in tenant %s.', v_tenant),
      hint = 'See custody.logins; a login in token mode is retired in the context of tenant system.';
  end if;
  perform custody_data.put_login(row(v_tenant, p_role, 'retired', null, null, null, null));
  perform custody_data.append_event('login.retire', 'login', null, 'success', jsonb_build_object('login', p_role), null);
end
$$;
revoke all on function custody.retire_login(text) from public;
grant execute on function custody.retire_login(text) to custody_admin;
comment on function custody.retire_login(text) is
'Retires a registered login: its sessions get no context any more; one that stands ends with its transaction. An event.
p_role: name of the login, registered in the tenant in context.
Errors: PC001, PC015 confined to one person, PC023 no such login, PC026 isolation level. Callers: custody_admin.';

-- definer: logins are written by these functions alone
create or replace function custody.require_tokens(p_role text, p_required boolean default true)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('mode of a login');
  if p_required then
    perform custody_data.check_role(p_role), custody_data.put_login(row('system', p_role, 'token', null, null, null, null));
  else
    update custody_data.logins l set ended_at = clock_timestamp() where l.role_name = p_role and l.ended_at is null;
    if not found then
      raise exception using errcode = 'PC023', message = 'no such login', detail = 'None of that name is registered.', hint = 'See custody.logins.';
    end if;
  end if;
  perform custody_data.append_event('login.tokens', 'login', null, 'success', jsonb_build_object('login', p_role, 'required', p_required), null);
end
$$;
revoke all on function custody.require_tokens(text, boolean) from public;
grant execute on function custody.require_tokens(text, boolean) to custody_admin;
comment on function custody.require_tokens(text, boolean) is
'Puts a login into token mode: its sessions get a context by custody.begin_context alone, from the next transaction on. With p_required false a login, whatever its mode, goes back to free mode. An event.
p_role: name of the login.
Errors: PC001, PC015 in another context than that of tenant system, PC023 no such login, PC026 isolation level. Callers: custody_admin.';

-- definer: keys are the owner's
create or replace function custody.register_token_key(p_kid text, p_key bytea, p_tenant text default null)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('set of token keys');
  if custody_data.refuse_exposed_key(p_key) then
    return null;
  end if;
  if p_kid is null or p_kid !~ '^[A-Za-z0-9._:-]{1,128}$' or exists (select from custody_keys.context_keys k where k.tenant_id = 'system' and k.kid = p_kid) then
    raise exception using
      errcode = 'PC023',
      message = 'invalid kid',
      detail = 'It is not a name, or there is or was a key of that name.',
      hint = 'Give a new name of 1 to 128 characters of A-Z, a-z, 0-9, ., _, : and -.';
  elsif p_tenant is not null and not exists (select from custody_data.tenants t where t.tenant_id = p_tenant) then
    raise exception using errcode = 'PC002', message = 'unknown tenant', hint = 'Register it with custody.register_tenant, or give null for a key that speaks for all tenants.';
  elsif octet_length(p_key) not between 32 and 128 or p_key is null then
    raise exception using
      errcode = 'PC034',
      message = 'weak token key',
      detail = format('A token key has 32 to 128 bytes, this one has %s.', coalesce(octet_length(p_key)::text, 'none')),
      hint = 'Give bytes from the random source of an operating system, bound as a parameter.';
  end if;
  -- A statement's parameters are what extensions log: the key goes by a setting.
  if set_config('custody.kek', encode(p_key, 'hex'), true) is not null then
    insert into custody_keys.context_keys (kid, kind, for_tenant, secret) values (p_kid, 'token', p_tenant, decode(current_setting('custody.kek'), 'hex'));
    perform set_config('custody.kek', '', true), set_config('custody.kek_version', '', true);
  end if;
  perform custody_data.append_event('token_key.register', 'key', null, 'success', jsonb_strip_nulls(jsonb_build_object('kid', p_kid, 'tenant', p_tenant)), null);
  return p_kid;
end
$$;
revoke all on function custody.register_token_key(text, bytea, text) from public;
grant execute on function custody.register_token_key(text, bytea, text) to custody_admin;
comment on function custody.register_token_key(text, bytea, text) is
'Makes a key of tokens known and returns its kid: tokens under it are good at once, beside those under others. An event. It is stored as it is, where no role reads it, and is not in dumps: register it again after a restore.
p_kid: what the header of its tokens names. p_key: 32 to 128 random bytes, bound. p_tenant: the only tenant for which its tokens speak; null for any. Returns null under log_parameter_max_length_on_error, as unlock does.
Errors: PC001, PC002 unknown tenant, PC015 in another context than that of tenant system, PC023 invalid kid, PC026 isolation level, PC034 weak key, PC036 exposed key. Callers: custody_admin.';

-- definer: keys are the owner's
create or replace function custody.retire_token_key(p_kid text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('set of token keys');
  update custody_keys.context_keys k set retired_at = clock_timestamp(), secret = null
  where k.tenant_id = 'system' and k.kid = p_kid and k.kind = 'token' and k.retired_at is null;
  if not found then
    raise exception using errcode = 'PC023', message = 'no such token key', detail = 'None of that kid is registered, or it is retired.', hint = 'Give the kid with which it was registered.';
  end if;
  perform custody_data.append_event('token_key.retire', 'key', null, 'success', jsonb_build_object('kid', p_kid), null);
end
$$;
revoke all on function custody.retire_token_key(text) from public;
grant execute on function custody.retire_token_key(text) to custody_admin;
comment on function custody.retire_token_key(text) is
'Forgets a key of tokens: those under it are refused from then on. Contexts that stand go on until their transaction ends. An event.
p_kid: its name, which is not used again.
Errors: PC001, PC015 in another context than that of tenant system, PC023 no such key, PC026 isolation level. Callers: custody_admin.';

-- definer: keys are the owner's
create or replace function custody.rotate_context_key()
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_previous text;
  v_kid text;
  v_line_kid text;
  v_retired bigint;
begin
  perform custody_data.require_all_tenants('context key'), pg_advisory_xact_lock(hashtextextended('pgcustody.context_key', 0));
  select k.kid into v_previous
  from custody_keys.context_keys k
  where k.tenant_id = 'system' and k.kind = 'context' and k.retired_at is null and k.server = custody_data.this_server()
  order by k.created_at desc, k.kid
  limit 1;
  v_kid := custody_data.make_context_key();
  update custody_keys.context_keys k set retired_at = clock_timestamp(), secret = null
  where k.tenant_id = 'system' and k.kind = 'context' and k.retired_at is null and k.kid <> v_kid and k.kid is distinct from v_previous;
  get diagnostics v_retired = row_count;
  v_line_kid := custody_data.make_line_key();
  update custody_keys.context_keys k set retired_at = clock_timestamp()
  where k.tenant_id = 'system' and k.kind = 'line' and k.retired_at is null and k.kid <> v_line_kid;
  update custody_keys.context_keys k set secret = null
  where k.tenant_id = 'system' and k.kind = 'line' and k.secret is not null and k.retired_at < clock_timestamp() - interval '35 days';
  perform custody_data.append_event('context_key.rotate', 'key', null, 'success', jsonb_build_object('kid', v_kid, 'retired', v_retired, 'line_kid', v_line_kid), null);
  return v_kid;
end
$$;
revoke all on function custody.rotate_context_key() from public;
grant execute on function custody.rotate_context_key() to custody_admin, custody_worker;
comment on function custody.rotate_context_key() is
'Replaces the keys of contexts and of log lines and returns the kid of the first. It signs the contexts of sessions that have not written yet: those under the key before go on, those under older ones, and under keys of other servers, end; those that a session''s own secret signs go on until their transaction ends. Lines under a key that is replaced can be checked for 35 days. An event. Each start of the server brings a new key of contexts by itself.
Errors: PC001, PC015 in another context than that of tenant system, PC026 isolation level. Callers: custody_admin, custody_worker.';

create or replace view custody.logins with (security_invoker = true) as
select l.tenant_id, l.role_name, l.mode, i.user_id as actor, l.purposes, l.registered_at, l.ended_at
from custody_data.logins l
left join custody_data.identities i on i.tenant_id = l.tenant_id and i.identity_id = l.actor_id;
grant select on custody.logins to custody_admin, custody_worker, custody_privacy, custody_auditor;
comment on view custody.logins is 'Logins of the tenant in context whose context is checked: person, token (of tenant system), retired; with ended_at, those that are no more.';
