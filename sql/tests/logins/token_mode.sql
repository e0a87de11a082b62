-- A login in token mode gets a context by a token alone: what it sets by hand shows no row, takes none, and every function
-- says that there is no context.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('token_mode');
select populate('token_mode') /* $1 */;
create function pg_temp.b64(p_bytes bytea) returns text language sql as $$ select translate(encode(p_bytes, 'base64'), E'+/=\n', '-_') $$;
create function pg_temp.token(p_sub text default 'clerk', p_subject text default null) returns text language sql as $$
  select i.t || '.' || pg_temp.b64(public.hmac(convert_to(i.t, 'UTF8'), sha256('mode'), 'sha256'))
  from (select pg_temp.b64('{"alg":"HS256","kid":"mode"}') || '.' || pg_temp.b64(convert_to(jsonb_strip_nulls(jsonb_build_object('tenant', 'token_mode', 'sub', p_sub, 'subject', p_subject, 'purpose', 'support',
    'exp', extract(epoch from clock_timestamp()) + 300))::text, 'UTF8'))) i (t)
$$;
set local role custody_admin;
select enter('system', 'root') /* $1 */;
select custody.register_token_key('mode', sha256('mode')) /* $1 */;
select lives_ok(format('select custody.require_tokens(%L)', l), format('token mode for %s', l)) from unnest(array['custody_app', 'custody_reports', 'custody_runner', 'custody_dpo', 'custody_audit']) l;
select is((last_event('system', 'login.tokens')).metadata, '{"login": "custody_audit", "required": true}', 'which is an event');
select set_eq('select l.role_name from custody.logins l where l.mode = ''token''', array['custody_app', 'custody_reports', 'custody_runner', 'custody_dpo', 'custody_audit'], 'the view says so');
reset role;

create function pg_temp.read_only_token() returns void language plpgsql as $$
begin
  set local session authorization custody_app;
  perform set_config('transaction_read_only', 'on', true);
  perform custody.begin_context(pg_temp.token());
end
$$;
select refuses($$select pg_temp.read_only_token()$$, 'PC062', 'read only, before there is a key');

-- What becomes of a statement in a session of a login that sets everything by hand.
create function pg_temp.forged(p_login text, p_sql text) returns text language plpgsql as $$
declare
  v_result text;
begin
  perform set_config('session_authorization', p_login, true),
    set_config('custody.tenant', 'token_mode', true), set_config('custody.actor', 'clerk', true), set_config('custody.actor_id', identity('token_mode', 'clerk')::text, true),
    set_config('custody.purpose', 'support', true), set_config('custody.subject', '', true), set_config('custody.subject_id', '', true),
    set_config('custody.mac', gen_random_uuid() || '.' || repeat('0', 64), true);
  execute p_sql into v_result;
  raise exception using errcode = 'T0000', message = coalesce(v_result, 'null');
exception when others then
  return case sqlstate when 'T0000' then sqlerrm else sqlstate end;
end
$$;
create function pg_temp.needs_none(p_name text) returns boolean language sql immutable return p_name in (
  'set_context', 'begin_context', 'register_tenant', 'list_tenants', 'ensure_audit_partitions', 'audit_entry', 'has_subject',
  'current_tenant', 'current_actor', 'current_actor_id', 'current_purpose', 'current_subject', 'current_subject_id', 'segment_may_hold');
create temp table login_groups (login text, groups text[]);
insert into login_groups values ('custody_app', '{custody_readwrite}'), ('custody_reports', '{custody_readonly}'), ('custody_runner', '{custody_worker,custody_privacy}'), ('custody_dpo', '{custody_privacy}'), ('custody_audit', '{custody_auditor}');
select is(pg_temp.forged(l.login, call_of(f.oid)), 'PC001', format('%s refuses %s', f.name, l.login))
from functions f, login_groups l
where f.schema = 'custody' and not pg_temp.needs_none(f.name) and has_function_privilege(l.login, f.oid, 'execute')
order by f.name, l.login;
select is(pg_temp.forged(l.login, format('select count(*) from custody_data.%I', t.name)), '0', format('%s sees nothing in %s', l.login, t.name))
from tables t, login_groups l
where t.name not like 'schema\_%' and has_table_privilege(l.login, t.oid, 'select')
order by t.name, l.login;
select is(pg_temp.forged('custody_app', $$insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values ('token_mode', gen_random_uuid(), now(), current_setting('custody.actor_id')::uuid, 'account.login') returning 1$$), '42501', 'an event of one''s own');
select is(pg_temp.forged('custody_runner', $$update custody_data.user_profiles set title = testing.any_sealed() returning 1$$), 'PC001', 'a change of others''');
select is(pg_temp.forged('custody_app', $$select concat_ws(' ', custody.current_tenant(), custody.current_actor(), custody.current_actor_id(), custody.current_purpose(), custody.current_subject(), custody.current_subject_id(), custody.has_subject())$$), 't', 'there is no context, and no whole tenant');
select is(pg_temp.forged('custody_app', $$select custody.set_context('token_mode', 'clerk', 'support')$$), 'PC061', 'set_context is not its way');
select is(pg_temp.forged('custody_app', $$select custody.begin_context('x')$$), 'PC060', 'a bad token neither');
select is(pg_temp.forged('custody_runner', $$select concat(custody.register_tenant('token_mode_2', 'x'), custody.current_tenant())$$), 'token_mode_2', 'the context of a registration is not left to it');
set local session authorization custody_app;
select refuses($$select custody.set_context('token_mode', 'clerk')$$, 'PC061', 'set_context says what to do');

-- With a token all of it works: reading, writing, people who are new to the tenant, retries, and what confines itself.
select custody.begin_context(pg_temp.token('a newcomer'));
select testing.unlock('token_mode') /* $1 */;
select is((select string_agg(distinct p.tenant_id, ' ') from custody_data.user_profiles p), 'token_mode', 'its tenant');
select lives_ok($$select custody.record_audit_event('account.login')$$, 'an event of an actor nobody knew');
select is(custody.current_actor_id(), identity('token_mode', 'a newcomer'), 'who is known then');
select lives_ok($$select custody.put_profile('new', '{"full_name": "N", "email": "n@example.org"}')$$, 'a profile');
select is(custody.get_profile('new') ->> 'full_name', 'N', 'can be read');
select lives_ok($$select custody.set_unique_fields('{email}')$$, 'a rule of the tenant');
select custody.begin_context(pg_temp.token('me', 'me'));
select testing.unlock('token_mode') /* $1 */;
select refuses($$select custody.put_profile('me', '{"email": "n@example.org"}')$$, 'PC038', 'under a subject another''s address is known as taken');
select lives_ok($$select custody.put_profile('me', '{"email": "me@example.org"}')$$, 'one''s own is not');
select is(custody.current_subject_id(), identity('token_mode', 'me'), 'the subject is known then');
select is((select count(*) from custody_data.user_profiles), 1::bigint, 'and is all that is seen');
select lives_ok($$select custody.record_audit_event('account.login', p_log_entry_id => '00000000-0000-4000-8000-00000000000a', p_personal => '{"source_ip": "192.0.2.1"}')$$, 'an event with an id');
select lives_ok($$select custody.record_audit_event('account.login', p_log_entry_id => '00000000-0000-4000-8000-00000000000a', p_personal => '{"source_ip": "192.0.2.1"}')$$, 'and again');
select is(custody.current_subject(), 'me', 'confined still');
set local custody.subject = '';
select is((select count(*) from custody_data.user_profiles), 0::bigint, 'who takes the subject away sees nothing');

-- Each policy asks once a statement.
select custody.begin_context(pg_temp.token());
create function pg_temp.plan(p_sql text) returns text language plpgsql as $$
declare
  v_line text;
  v_plan text := '';
begin
  for v_line in execute 'explain (costs off, verbose) ' || p_sql loop
    v_plan := v_plan || v_line || E'\n';
  end loop;
  return v_plan;
end
$$;
select is((select count(*) from regexp_matches(pg_temp.plan('select p.tenant_id from custody_data.user_profiles p'), 'context_is_authentic', 'g')), 3::bigint, 'three helpers in the plan of a table');
select doesnt_match(regexp_replace(pg_temp.plan('select p.tenant_id from custody_data.user_profiles p'), 'InitPlan[^\n]*\n *->  Result\n *Output:[^\n]*\n', '', 'g'), 'context_is_authentic', 'each an InitPlan');

-- Rotation: the key before holds, older ones do not.
select set_config('testing.mac', current_setting('custody.mac'), true);
reset session authorization;
set local role custody_worker;
select set_config('custody.mac', '', true);
reset role;
set local role custody_admin;
select set_config('testing.settings', concat_ws('|', current_setting('custody.tenant'), current_setting('custody.actor'), current_setting('custody.actor_id'), current_setting('custody.purpose')), true);
create function pg_temp.replayed() returns text language plpgsql as $$
declare
  v_settings constant text[] := string_to_array(current_setting('testing.settings'), '|');
begin
  perform custody_data.leave_context();
  perform set_config('session_authorization', 'custody_app', true), set_config('custody.tenant', v_settings[1], true), set_config('custody.actor', v_settings[2], true), set_config('custody.actor_id', v_settings[3], true),
    set_config('custody.purpose', v_settings[4], true), set_config('custody.mac', current_setting('testing.mac'), true);
  raise exception using errcode = 'T0000', message = coalesce(custody.current_tenant(), 'none');
exception when sqlstate 'T0000' then
  return sqlerrm;
end
$$;
reset role;
select is(pg_temp.replayed(), 'token_mode', 'a context that was signed');
set local role custody_admin;
select enter('system', 'root') /* $1 */;
select isnt(custody.rotate_context_key(), split_part(current_setting('testing.mac'), '.', 1), 'the key is replaced');
select is((last_event('system', 'context_key.rotate')).metadata -> 'retired', '0', 'which is an event');
reset role;
select is(pg_temp.replayed(), 'token_mode', 'stands under the key before');
set local role custody_admin;
select enter('system', 'root') /* $1 */;
select custody.rotate_context_key();
reset role;
select is(pg_temp.replayed(), 'token_mode', 'and stands on: the session signed it');
discard sequences;
select throws_ok('select pg_temp.replayed()', '55000', null, 'whose secret is in the memory of its process alone');
select is((select count(*) from custody_keys.context_keys k where k.kind = 'context' and k.secret is not null), 2::bigint, 'two keys are kept');

-- A key of another server, or of another database, is none.
update custody_keys.context_keys set retired_at = now(), secret = null where kind = 'context' and retired_at is null;
insert into custody_keys.context_keys (kid, kind, server, secret) values (gen_random_uuid(), 'context', 'another', sha256('x'));
set local session authorization custody_app;
select lives_ok(format('select custody.begin_context(%L)', pg_temp.token()), 'a token after a restore');
select throws_ok($$select currval('custody_keys.session_secret_1')$$, '42501', null, 'which the session cannot see');
select throws_ok($$select setval('custody_keys.session_secret_1', 1)$$, '42501', null, 'or set');
reset session authorization;
select is((select string_agg(c.relpersistence::text, '') from pg_class c where c.oid in ('custody_keys.session_secret_1'::regclass, 'custody_keys.session_secret_2'::regclass)), 'uu', 'what sets it is not in the WAL');
select is((select s.last_value from custody_keys.session_secret_1 s), 1::bigint, 'nor is it in the sequence');
select is((select s.last_value from custody_keys.session_secret_2 s), 1::bigint, 'in neither');
select is((select count(*) from custody_keys.context_keys k where k.kind = 'context' and k.server = custody_data.this_server() and k.secret is not null), 1::bigint, 'has a new key made');

-- Back to free mode.
set local role custody_admin;
select enter('system', 'root') /* $1 */;
select lives_ok($$select custody.require_tokens('custody_app', false)$$, 'tokens are not required any more');
reset role;
set local session authorization custody_app;
select lives_ok($$select custody.set_context('token_mode', 'clerk')$$, 'and set_context serves again');
select * from finish();
rollback;
