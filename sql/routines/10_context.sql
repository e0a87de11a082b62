-- Context: for whom, by whom and why a transaction runs.
-- control: HIPAA 164.312(a)(1), (d); SOC 2 CC6.1; ISO 27001 A.5.15; GDPR Art. 5(1)(b) (purpose limitation)
-- reviewed by: DBA, security
--
-- All session state is local to the transaction, so it works behind a transaction pooler and cannot outlive
-- its transaction. A setting that was local once reads '' afterwards, not null: hence nullif.
--
-- Every function of pgcustody has a fixed search_path of pg_catalog, pg_temp. Naming pg_temp last matters:
-- with an empty search_path Postgres looks for types and tables in pg_temp first, and a caller's temporary
-- domain named text would run the caller's code as the owner. One-line helpers have a SQL-standard body
-- instead, which is bound to its objects when it is created and which the planner can inline.
--
-- Any role can set any custom setting. For a login in free mode the settings are believed; for the others, listed in
-- custody_data.logins, they hold only with a MAC over them that set_context or begin_context made for this login, this
-- server process and this transaction (11_logins.sql). Every function below asks for it by itself: a statement that
-- changes a setting half-way must not be believed by what is evaluated later. The list of logins is a function, which
-- the planner takes in, so that free mode pays nothing for it; each change of the table writes it anew.

-- definer: whoever changes the table of logins, the function is the owner's
create or replace function custody_data.tg_list_logins()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if custody_data.live_logins() is distinct from custody_data.checked_logins() then
    perform pg_advisory_xact_lock(hashtextextended('pgcustody.logins', 0));
    perform custody_data.write_checked_logins(custody_data.live_logins());
  end if;
  return null;
end
$$;
comment on function custody_data.tg_list_logins() is 'Statement trigger of logins: writes checked_logins anew.';

-- definer: the list is compared by those who see findings
create or replace function custody_data.live_logins()
returns name[]
language plpgsql -- so that it may come before the table
volatile -- sees what was committed while its caller waited
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select distinct l.role_name::name from custody_data.logins l where l.ended_at is null order by 1);
end
$$;
revoke all on function custody_data.live_logins() from public;
grant execute on function custody_data.live_logins() to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on function custody_data.live_logins() is 'Names of the logins whose context is checked, as the table has them.';

create or replace function custody_data.write_checked_logins(p_logins name[])
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Stable, not immutable: a constant would stay in plans that sessions have.
  execute format('create or replace function custody_data.checked_logins() returns name[]
    language sql stable parallel safe return %L::pg_catalog.name[]', p_logins);
end
$$;
revoke all on function custody_data.write_checked_logins(name[]) from public;
comment on function custody_data.write_checked_logins(name[]) is 'Writes the function checked_logins.';

do $$
begin
  perform custody_data.write_checked_logins(custody_data.live_logins());
end
$$;
grant execute on function custody_data.checked_logins() to public;
comment on function custody_data.checked_logins() is 'Names of the logins whose context is checked: the live rows of custody_data.logins, written here by its trigger. Callable by everybody.';

do $$
begin
  -- Bound to pgcrypto where it is installed; the planner inlines it.
  execute pg_catalog.format($f$create or replace function custody_data.hmac_sha256(p_data bytea, p_key bytea) returns bytea
    language sql immutable parallel safe return %I.hmac(p_data, p_key, 'sha256')$f$,
    (select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'pgcrypto'));
end
$$;
revoke all on function custody_data.hmac_sha256(bytea, bytea) from public;
comment on function custody_data.hmac_sha256(bytea, bytea) is 'HMAC-SHA-256 (RFC 2104), 32 bytes.';

create or replace function custody_data.context_mac(p_secret bytea)
returns text
language sql
stable
parallel restricted
-- The text of an array quotes what it must, so no two contexts have the same one.
return pg_catalog.encode(custody_data.hmac_sha256(pg_catalog.convert_to(array[
  pg_catalog.current_setting('custody.tenant', true), pg_catalog.current_setting('custody.actor', true), pg_catalog.current_setting('custody.actor_id', true),
  pg_catalog.current_setting('custody.purpose', true), pg_catalog.current_setting('custody.subject', true), pg_catalog.current_setting('custody.subject_id', true),
  session_user::text, pg_catalog.pg_backend_pid()::text, extract(epoch from pg_catalog.transaction_timestamp())::text]::text, 'UTF8'), p_secret), 'hex');
revoke all on function custody_data.context_mac(bytea) from public;
comment on function custody_data.context_mac(bytea) is 'HMAC-SHA-256 over the settings of the context, the login, the server process and the start of the transaction, in hexadecimal.';

create or replace function custody_data.this_server()
returns text
language sql
stable
parallel safe
return extract(epoch from pg_catalog.pg_postmaster_start_time())::text || ' ' || pg_catalog.current_database();
revoke all on function custody_data.this_server() from public;
comment on function custody_data.this_server() is 'This database in this run of its server: what context keys are made for.';

create or replace function custody_data.session_secret()
returns bytea
language sql
volatile -- as what it calls, so that callers take it in
parallel restricted
return pg_catalog.int8send(pg_catalog.currval('custody_keys.session_secret_1')) || pg_catalog.int8send(pg_catalog.currval('custody_keys.session_secret_2'));
revoke all on function custody_data.session_secret() from public;
comment on function custody_data.session_secret() is 'The secret that signs the contexts of this session, where it has drawn one; else an error, 55000.';

create or replace function custody_data.same_text(p_made text, p_given text)
returns boolean
language sql
immutable
parallel safe
-- By digests first, which are numbers: how long that takes does not tell at which character they differ, and whoever finds a
-- text of the same digest, without being told anything on the way, has looked through half of 2^64.
return pg_catalog.hashtextextended(p_made, 0) = pg_catalog.hashtextextended(p_given, 0) and p_made = p_given;
revoke all on function custody_data.same_text(text, text) from public;
comment on function custody_data.same_text(text, text) is 'Whether a MAC that was given is the one that was made, in a time that tells nothing about either. Called with variables: for anything dearer the planner does not take it in.';

-- definer: reads the key
create or replace function custody_data.context_is_authentic()
returns boolean
language plpgsql
stable
parallel restricted
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_mac constant text := current_setting('custody.mac', true);
  v_kid text := 'session' || pg_backend_pid() || '.';
  v_server text;
  v_secret bytea;
  v_made text;
begin
  if starts_with(v_mac, v_kid) then
    v_made := v_kid || custody_data.context_mac(custody_data.session_secret());
    return custody_data.same_text(v_made, v_mac);
  end if;
  v_kid := split_part(v_mac, '.', 1);
  select k.server, k.secret into v_server, v_secret from custody_keys.context_keys k where k.tenant_id = 'system' and k.kid = v_kid;
  -- Token keys have no server, retired ones no secret. A standby has the keys of its primary.
  if v_secret is null or v_server is null or not (v_server = custody_data.this_server() or pg_is_in_recovery()) then
    return false;
  end if;
  v_made := v_kid || '.' || custody_data.context_mac(v_secret);
  return custody_data.same_text(v_made, v_mac);
end
$$;
revoke all on function custody_data.context_is_authentic() from public;
grant execute on function custody_data.context_is_authentic() to public;
comment on function custody_data.context_is_authentic() is 'Whether set_context or begin_context made the context that the settings say, in this transaction. Callable by everybody: policies depend on it.';

create or replace function custody_data.context_stands() returns boolean
language sql stable parallel restricted
return session_user <> all (custody_data.checked_logins()) or custody_data.context_is_authentic();
grant execute on function custody_data.context_stands() to public;
comment on function custody_data.context_stands() is 'Whether the settings of the context are to be believed. Callable by everybody: policies depend on it.';

create or replace function custody.current_tenant() returns text
language sql stable parallel restricted
return case when custody_data.context_stands() then nullif(pg_catalog.current_setting('custody.tenant', true), '') end;
grant execute on function custody.current_tenant() to public;
comment on function custody.current_tenant() is 'Tenant of the context, or null without one. Callable by everybody: policies depend on it.';

create or replace function custody.current_actor() returns text
language sql stable parallel restricted
return case when custody_data.context_stands() then nullif(pg_catalog.current_setting('custody.actor', true), '') end;
grant execute on function custody.current_actor() to public;
comment on function custody.current_actor() is 'The user_id that acts in this transaction, or null without a context. Callable by everybody.';

create or replace function custody.current_actor_id() returns uuid
language sql stable parallel restricted
return case when custody_data.context_stands() then nullif(pg_catalog.current_setting('custody.actor_id', true), '')::uuid end;
grant execute on function custody.current_actor_id() to public;
comment on function custody.current_actor_id() is 'Identity of the actor, or null where it has none yet. Callable by everybody: policies depend on it.';

create or replace function custody.current_purpose() returns text
language sql stable parallel restricted
return case when custody_data.context_stands() then nullif(pg_catalog.current_setting('custody.purpose', true), '') end;
grant execute on function custody.current_purpose() to public;
comment on function custody.current_purpose() is 'Purpose of this transaction, or null. Callable by everybody.';

create or replace function custody.current_subject() returns text
language sql stable parallel restricted
return case when custody_data.context_stands() then nullif(pg_catalog.current_setting('custody.subject', true), '') end;
grant execute on function custody.current_subject() to public;
comment on function custody.current_subject() is 'The user_id that this transaction is confined to, or null where it is not. Callable by everybody.';

create or replace function custody.has_subject() returns boolean
language sql stable parallel restricted
-- What is confined needs no proof; what is not does.
return nullif(pg_catalog.current_setting('custody.subject', true), '') is not null or not custody_data.context_stands();
grant execute on function custody.has_subject() to public;
comment on function custody.has_subject() is 'Whether this transaction is confined to one person. Callable by everybody: policies depend on it.';

create or replace function custody.current_subject_id() returns uuid
language sql stable parallel restricted
return case when custody_data.context_stands() then nullif(pg_catalog.current_setting('custody.subject_id', true), '')::uuid end;
grant execute on function custody.current_subject_id() to public;
comment on function custody.current_subject_id() is 'Identity of the person that this transaction is confined to; null where it is not, or where the person has no row yet. Callable by everybody: policies depend on it.';

create or replace function custody_data.caller_role() returns text
language sql stable parallel restricted
return coalesce(nullif(pg_catalog.current_setting('role'), 'none'), session_user::text);
grant execute on function custody_data.caller_role() to public;
comment on function custody_data.caller_role() is 'Who called, also inside a SECURITY DEFINER function: the role of SET ROLE, or else the login.';

create or replace function custody_data.caller_is(p_role text) returns boolean
language sql stable parallel restricted
return pg_catalog.pg_has_role(custody_data.caller_role(), p_role, 'member');
grant execute on function custody_data.caller_is(text) to public;
comment on function custody_data.caller_is(text) is 'Whether the caller is a member of a group role.';

create or replace function custody_data.writes_system() returns boolean
language sql stable parallel restricted
return custody_data.caller_is('custody_worker') or custody_data.caller_is('custody_admin') or custody_data.caller_is('custody_owner');
grant execute on function custody_data.writes_system() to public;
comment on function custody_data.writes_system() is 'Whether the caller may change what all tenants share: the setting that names the tenant is anybody''s to set, this is not.';

create or replace function custody_data.require_context()
returns text
language plpgsql
stable
parallel restricted
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody.current_tenant();
begin
  if v_tenant is null then
    raise exception using
      errcode = 'PC001',
      message = 'no context: this call needs a tenant and an actor',
      detail = 'custody.set_context was not called in this transaction, or the settings are not those that it made.',
      hint = 'begin; select custody.set_context(tenant, actor, …); call; commit. (A login in token mode: custody.begin_context($1).) The context ends with its transaction, so in autocommit it is gone before the call.';
  end if;
  -- Any role can set the setting; what is shared by all tenants is for those who may.
  if v_tenant = 'system' and not (custody_data.writes_system() or custody_data.caller_is('custody_auditor')) then
    raise exception using
      errcode = 'PC015',
      message = 'tenant system is not for this role',
      detail = format('Role %s is not a member of custody_worker, custody_admin or custody_auditor.', custody_data.caller_role()),
      hint = 'Call custody.set_context with the tenant whose data you work with.';
  end if;
  return v_tenant;
end
$$;
revoke all on function custody_data.require_context() from public;
grant execute on function custody_data.require_context() to
  custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor;
comment on function custody_data.require_context() is 'Tenant of the context; raises PC001 without one, PC015 for tenant system where the role may not.';

create or replace function custody_data.require_whole_tenant()
returns text
language plpgsql
stable
parallel restricted
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  if custody.has_subject() then
    raise exception using
      errcode = 'PC015',
      message = 'this transaction is confined to one person',
      detail = 'set_context was given a subject, and this call needs to see the whole tenant.',
      hint = 'Set a context without p_subject.';
  end if;
  return v_tenant;
end
$$;
revoke all on function custody_data.require_whole_tenant() from public;
grant execute on function custody_data.require_whole_tenant() to
  custody_readwrite, custody_worker, custody_privacy, custody_auditor;
comment on function custody_data.require_whole_tenant() is 'Tenant of the context; raises PC001 without one, PC015 where it is confined to one person.';

create or replace function custody_data.require_all_tenants(p_what text)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if custody_data.require_context() <> 'system' or custody.has_subject() then
    raise exception using
      errcode = 'PC015',
      message = format('the %s serves all tenants at once', p_what),
      detail = format('The context is that of tenant %s%s.', custody.current_tenant(), case when custody.has_subject() then ', confined to one person' else '' end),
      hint = 'Call it in the context of tenant system, without a subject.';
  end if;
  perform custody_data.require_read_committed();
end
$$;
revoke all on function custody_data.require_all_tenants(text) from public;
comment on function custody_data.require_all_tenants(text) is 'For what serves all tenants, the archive and the ledger: raises PC001 without a context, PC015 in another than that of tenant system, PC026 at another isolation level than read committed.';

create or replace function custody_data.check_user_id(p_user_id text, p_what text default 'user_id')
returns void
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_user_id is null or btrim(p_user_id) = '' or char_length(p_user_id) > 256 then
    raise exception using
      errcode = 'PC003',
      message = format('invalid %s', p_what),
      detail = case when p_user_id is null then 'It is null.' else format('It has %s characters.', char_length(p_user_id)) end,
      hint = 'Give 1 to 256 characters that are not all blank.';
  end if;
end
$$;
revoke all on function custody_data.check_user_id(text, text) from public;
grant execute on function custody_data.check_user_id(text, text) to
  custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor;
comment on function custody_data.check_user_id(text, text) is 'Raises PC003 for an external id that is null, blank or longer than 256 characters.';

create or replace function custody_data.leave_context()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A condition, which is quicker than a statement.
  if concat(set_config('custody.tenant', '', true), set_config('custody.actor', '', true), set_config('custody.actor_id', '', true),
    set_config('custody.purpose', '', true), set_config('custody.subject', '', true), set_config('custody.subject_id', '', true),
    set_config('custody.mac', '', true), set_config('custody.kek', '', true), set_config('custody.kek_version', '', true)) is null then
    return;
  end if;
end
$$;
revoke all on function custody_data.leave_context() from public;
comment on function custody_data.leave_context() is 'Ends the context that stands.';

create or replace function custody_data.enter_context(p_tenant text, p_actor text, p_purpose text default null, p_subject text default null)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_with custody_keys.context_keys;
  v_known boolean;
  v_actor_id uuid;
  v_subject_id uuid;
begin
  -- Nearly all there is to this function is the number of its statements and calls. (And counted repetitions in a regular expression cost more than all the rest.)
  if p_tenant is null or length(p_tenant) > 63 or p_tenant !~ '^[a-z0-9][a-z0-9_-]*$' then
    raise exception using
      errcode = 'PC002',
      message = 'unknown tenant',
      detail = case when coalesce(p_tenant, '') = '' then 'The tenant is missing.' else 'The name is not that of a tenant.' end,
      hint = 'Give the name of a tenant that custody.register_tenant has registered.';
  end if;
  if coalesce(btrim(p_actor), '') = '' or char_length(p_actor) > 256 then
    perform custody_data.check_user_id(p_actor, 'actor');
  end if;
  if p_subject is not null then
    perform custody_data.check_user_id(p_subject, 'subject');
  end if;
  if p_tenant = 'system' and not (custody_data.caller_is('custody_worker') or custody_data.caller_is('custody_admin')
      or custody_data.caller_is('custody_auditor')) then
    raise exception using
      errcode = 'PC015',
      message = 'tenant system is not for this role',
      detail = format('Role %s is not a member of custody_worker, custody_admin or custody_auditor.', custody_data.caller_role()),
      hint = 'Give the tenant whose data you work with.';
  end if;

  if session_user = any (custody_data.checked_logins()) then
    begin
      v_with.secret := custody_data.session_secret();
      v_with.kid := 'session' || pg_backend_pid();
    exception when object_not_in_prerequisite_state then
      v_with := custody_data.context_key();
    end;
  end if;
  -- Whatever context stood before ends here. (After an error it stands again only where the caller goes back to a savepoint.)
  -- Tenants and identities are read by their tenant and id, whose rows the owner sees in the context that is being entered.
  if concat(set_config('custody.tenant', p_tenant, true), set_config('custody.actor', p_actor, true), set_config('custody.actor_id', '', true),
    set_config('custody.purpose', coalesce(p_purpose, ''), true), set_config('custody.subject', '', true), set_config('custody.subject_id', '', true),
    set_config('custody.kek', '', true), set_config('custody.kek_version', '', true), set_config('custody.mac', '', true)) is not null and v_with.kid is not null then
    if set_config('custody.mac', v_with.kid || '.' || custody_data.context_mac(v_with.secret), true) is null then
      return;
    end if;
  end if;
  select i.identity_id into v_actor_id from custody_data.identities i where i.tenant_id = p_tenant and i.user_id = p_actor;
  if v_actor_id is null then
    select true into v_known from custody_data.tenants t where t.tenant_id = p_tenant;
  end if;
  -- Only a registered tenant has identities.
  if v_actor_id is null and v_known is null then
    perform custody_data.leave_context();
    raise exception using
      errcode = 'PC002',
      message = format('unknown tenant %s', p_tenant),
      detail = 'No tenant of that name is registered.',
      hint = 'Register it with custody.register_tenant, or correct the name.';
  end if;

  if p_subject is not null then
    select i.identity_id into v_subject_id from custody_data.identities i where i.tenant_id = p_tenant and i.user_id = p_subject;
  end if;
  if concat(set_config('custody.actor_id', coalesce(v_actor_id::text, ''), true),
    set_config('custody.subject', coalesce(p_subject, ''), true),
    set_config('custody.subject_id', coalesce(v_subject_id::text, ''), true)) is not null and v_with.kid is not null then
    if set_config('custody.mac', v_with.kid || '.' || custody_data.context_mac(v_with.secret), true) is null then
      return;
    end if;
  end if;
  -- To be joined with what pgaudit logs of this transaction, where it does.
  if coalesce(current_setting('pgaudit.role', true), '') <> '' or coalesce(current_setting('pgaudit.log', true), 'none') not in ('none', '') then
    perform custody_data.write_line('context');
  end if;
end
$$;
revoke all on function custody_data.enter_context(text, text, text, text) from public;
comment on function custody_data.enter_context(text, text, text, text) is
'Sets the context, whatever the mode of the login: for set_context and begin_context, which look at that, and for functions that enter a context of their own.
Errors: PC002, PC003, PC015 tenant system without the right, PC062.';

-- definer: the caller need not see the tables of tenants and identities to enter a context
create or replace function custody.set_context(
  p_tenant text,
  p_actor text,
  p_purpose text default null,
  p_subject text default null
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_checked constant boolean := session_user = any (custody_data.checked_logins());
  v_login custody_data.logins;
begin
  if v_checked then
    v_login := custody_data.checked_login(false);
  end if;
  -- A condition, which is quicker than a statement; it never holds.
  if (custody_data.enter_context(p_tenant, p_actor, p_purpose, p_subject) is null) is null then
    return;
  end if;
  if v_checked then
    perform custody_data.require_binding(v_login);
  end if;
end
$$;
revoke all on function custody.set_context(text, text, text, text) from public;
grant execute on function custody.set_context(text, text, text, text) to
  custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor;
comment on function custody.set_context(text, text, text, text) is
'Sets for whom, by whom and why this transaction runs; ends with the transaction.
p_tenant: registered tenant. p_actor: user_id that acts, 1 to 256 characters. p_purpose: why, free text that names nobody.
p_subject: confines the transaction to this user_id: only that person''s rows are seen, only that person may make requests.
Errors: PC002 unknown tenant, PC003 invalid actor or subject, PC015 tenant system without the right, PC061 another context than this login may have, PC062.
Callers: every group role but custody_backup.';

-- definer: tenants are written by this function alone
create or replace function custody.register_tenant(p_tenant text, p_name text)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_tenant is null or p_tenant !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then
    raise exception using
      errcode = 'PC023',
      message = 'invalid tenant name',
      hint = 'Give 1 to 63 characters of a-z, 0-9, _ and -, the first a letter or a digit.';
  end if;
  insert into custody_data.tenants (tenant_id, name)
  values (p_tenant, coalesce(nullif(btrim(p_name), ''), p_tenant))
  on conflict do nothing;
  if found then
    perform custody_data.enter_context('system', coalesce(custody.current_actor(), custody_data.caller_role()), 'tenant registration');
    perform custody_data.append_event('tenant.register', null, null, 'success', jsonb_build_object('tenant', p_tenant), null);
    -- A context that the login did not come by itself is not left to it.
    if session_user = any (custody_data.checked_logins()) then
      perform custody_data.leave_context();
    end if;
  end if;
  return p_tenant;
end
$$;
revoke all on function custody.register_tenant(text, text) from public;
grant execute on function custody.register_tenant(text, text) to custody_admin, custody_worker;
comment on function custody.register_tenant(text, text) is
'Registers a tenant and returns its name; a tenant that is there already is left as it is. Leaves the transaction in the context of tenant system where it added one, or without one where the login''s context is checked.
p_tenant: 1 to 63 characters of a-z, 0-9, _ and -. p_name: what people call it.
Errors: PC023 invalid name. Callers: custody_admin, custody_worker.';

-- definer: the runner works for each tenant in turn and must know which there are
create or replace function custody.list_tenants()
returns setof custody_data.tenants
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.* from custody_data.tenants t order by t.tenant_id;
$$;
revoke all on function custody.list_tenants() from public;
grant execute on function custody.list_tenants() to custody_admin, custody_worker;
comment on function custody.list_tenants() is 'All tenants, by name. Needs no context. Callers: custody_admin, custody_worker.';
