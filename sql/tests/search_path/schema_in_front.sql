-- A schema of the caller's, first in the path, with functions and operators named as those of pg_catalog: no
-- function of ours calls one of them.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('path_attack');
create table testing.trapped (what text, who text);
grant insert, select on testing.trapped to public;
create schema evil authorization custody_app;
-- For every function of pg_catalog that our functions name, one with the same name and arguments.
set local check_function_bodies = off;
do $$
declare
  v_function record;
begin
  for v_function in
    select distinct on (p.proname, p.proargtypes) p.proname, pg_get_function_identity_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result
    from pg_proc p
    where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset and p.prorettype not in ('internal'::regtype, 'trigger'::regtype, 'void'::regtype)
      and 2281 <> all (p.proargtypes::oid[]) and p.provariadic = 0 and p.prorettype::regtype::text !~ '^any' and pg_get_function_identity_arguments(p.oid) !~ '"any"|any|cstring|INOUT|OUT'
      and p.proname in ('set_config', 'current_setting', 'format', 'btrim', 'char_length', 'lower', 'now', 'clock_timestamp', 'gen_random_uuid', 'jsonb_typeof', 'jsonb_build_object', 'to_char', 'date_trunc', 'isfinite',
        'octet_length', 'sha256', 'convert_to', 'encode', 'hashtextextended', 'pg_has_role', 'to_regclass', 'quote_literal', 'left', 'substr', 'split_part', 'pg_current_xact_id', 'pg_snapshot_xmin', 'pg_current_snapshot',
        'jsonb_array_length', 'regexp_replace', 'to_json', 'jsonb_strip_nulls', 'array_to_string', 'cardinality', 'array_position', 'normalize', 'age', 'timezone', 'uuid_send', 'int8send', 'set_bit', 'overlay', 'substring',
        'extract', 'length', 'texteq', 'textcat', 'to_jsonb', 'jsonb_build_array')
  loop
    begin
      execute format('create function evil.%I(%s) returns %s language plpgsql as $f$ begin insert into testing.trapped values (%L, current_user); return null; end $f$',
        v_function.proname, v_function.arguments, v_function.result, v_function.proname);
    exception when others then
      null; -- a polymorphic signature that cannot be copied
    end;
  end loop;
end
$$;
create function evil.eq(text, text) returns boolean language plpgsql as $$ begin insert into testing.trapped values ('= text', current_user); return true; end $$;
create function evil.eq(uuid, uuid) returns boolean language plpgsql as $$ begin insert into testing.trapped values ('= uuid', current_user); return true; end $$;
create function evil.lt(timestamptz, timestamptz) returns boolean language plpgsql as $$ begin insert into testing.trapped values ('< timestamptz', current_user); return true; end $$;
create function evil.cat(text, text) returns text language plpgsql as $$ begin insert into testing.trapped values ('|| text', current_user); return null; end $$;
create function evil.arrow(jsonb, text) returns text language plpgsql as $$ begin insert into testing.trapped values ('->> jsonb', current_user); return null; end $$;
create operator evil.= (leftarg = text, rightarg = text, function = evil.eq);
create operator evil.= (leftarg = uuid, rightarg = uuid, function = evil.eq);
create operator evil.< (leftarg = timestamptz, rightarg = timestamptz, function = evil.lt);
create operator evil.|| (leftarg = text, rightarg = text, function = evil.cat);
create operator evil.->> (leftarg = jsonb, rightarg = text, function = evil.arrow);
create table evil.identities (tenant_id text, identity_id uuid, user_id text);
create table evil.audit_logs (like custody_data.audit_logs);
create type evil.text as enum ('evil');
grant usage on schema evil to public;
select ok((select count(*) from pg_proc p where p.pronamespace = 'evil'::regnamespace) > 40, 'the trap is wide');

set local session authorization custody_app;
set local search_path = evil, pg_catalog;
select left('control', 3) is null as control \gset
set local search_path = tap, testing;
select is((select array_agg(t.what || ' as ' || t.who) from testing.trapped t), array['left as custody_app'], 'and works: an unqualified call falls into it');
reset session authorization;
delete from testing.trapped;

-- The whole API through it, as the application, the privacy officer and the runner.
create function pg_temp.run(p_login text, p_calls text[]) returns setof text language plpgsql as $$
declare
  v_call text;
begin
  perform pg_catalog.set_config('session_authorization', p_login, true);
  foreach v_call in array p_calls loop
    begin
      perform pg_catalog.set_config('search_path', 'evil, pg_catalog', true);
      execute v_call;
      perform pg_catalog.set_config('search_path', 'tap, testing', true);
      return next tap.pass(v_call);
    exception when others then
      perform pg_catalog.set_config('search_path', 'tap, testing', true);
      return next tap.fail(pg_catalog.format('%s: %s %s', v_call, sqlstate, sqlerrm));
    end;
  end loop;
end
$$;
select pg_temp.run('custody_app', array[
  $$select custody.set_context('path_attack', 'clerk', 'p')$$, $$select testing.unlock('path_attack') /* $1 */$$, $$select custody.put_profile('ada', '{"full_name": "Ada Ada", "email": "ada@example.org"}')$$, $$select custody.patch_profile('ada', '{"city": "x"}')$$,
  $$select custody.get_profile('ada')$$, $$select custody.find_subject('ada@example.org')$$, $$select custody.put_preferences('ada', '{}')$$, $$select custody.patch_preferences('ada', '{"a": 1}')$$, $$select custody.get_preferences('ada')$$,
  $$select custody.record_consent('ada', 'mail', true, '1', p_consent_id => '11111111-1111-4111-8111-111111111111')$$, $$select custody.has_consent('ada', 'mail', '1')$$, $$select custody.current_consents('ada')$$, $$select custody.consent_history('ada')$$,
  $$select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "x"}]')$$, $$select custody.append_message('ada', 'c1', '{"role": "user", "text": "x"}')$$, $$select custody.update_conversation('ada', 'c1', 't')$$,
  $$select custody.get_conversation('ada', 'c1')$$, $$select custody.list_conversations('ada')$$, $$select custody.delete_conversation('ada', 'c1')$$, $$select custody.record_audit_event('phi.access', 'document', 'd', p_metadata => '{"count": 1}', p_log_entry_id => '22222222-2222-4222-8222-222222222222')$$,
  $$select custody.record_audit_events('[{"action": "account.login"}]')$$, $$select custody.register_action('x.y', '{}', 'x')$$, $$select custody.register_resource_type('xy', 'x')$$,
  $$select custody.delete_preferences('ada')$$, $$select custody.set_unique_fields('{email,phone}')$$, $$select custody.patch_profile('ada', '{"email": "ada@example.com", "phone": "+49 30 123456"}')$$, $$select custody.find_subject(p_phone => '+4930123456')$$,
  $$select custody.record_consent('ada', 'mail', false, '1', p_evidence => '{"form": 7}')$$, $$select custody.record_audit_event('account.login', p_personal => '{"ip": "::1"}')$$,
  $$select custody.set_context('path_attack', 'ada', 'p', 'ada')$$, $$select testing.unlock('path_attack') /* $1 */$$, $$select custody.request_erasure('ada', 'x', '33333333-3333-4333-8333-333333333333')$$, $$select custody.request_status('33333333-3333-4333-8333-333333333333')$$,
  $$select custody.cancel_request('33333333-3333-4333-8333-333333333333')$$, $$select custody.export_subject('ada')$$, $$select custody.audit_events(pg_catalog.now() - interval '1 day', pg_catalog.now() + interval '1 day', 'ada')$$,
  $$select custody.audit_event('22222222-2222-4222-8222-222222222222')$$]);
reset session authorization;
select set_config('testing.request', request('path_attack', 'ada')::text, true);
select pg_temp.run('custody_runner', array[
  $$select custody.set_context('path_attack', 'runner')$$, $$select testing.unlock('path_attack') /* $1 */$$, $$select custody.plan_erasure('ada')$$, $$select custody.set_retention_policy('conversations', interval '1 day', 'x')$$, $$select custody.retention_due_at(pg_catalog.now())$$,
  $$select custody.enforce_retention('conversations', 10)$$, $$select custody.enforce_retention('consent', 10)$$, $$select custody.place_hold('{"user_id": "ada"}', 'case', 'x')$$, $$select custody.erase_subject(pg_catalog.current_setting('testing.request')::pg_catalog.uuid)$$,
  $$select custody.release_hold((select h.hold_id from custody.holds h), 'x')$$, $$select custody.register_holder('crm', 'https://x.example')$$, $$select custody.search_residue(pg_catalog.current_setting('testing.request')::pg_catalog.uuid)$$,
  $$select custody.erase_subject(pg_catalog.current_setting('testing.request')::pg_catalog.uuid)$$, $$select custody.acknowledge_erasure(pg_catalog.current_setting('testing.request')::pg_catalog.uuid, 'crm')$$, $$select custody.verify_erasure(pg_catalog.current_setting('testing.request')::pg_catalog.uuid)$$,
  $$select custody.get_certificate(pg_catalog.current_setting('testing.request')::pg_catalog.uuid)$$, $$select custody.finish_run(custody.start_run('x'), 'succeeded')$$, $$select custody.list_requests()$$, $$select custody.due_requests('erasure')$$,
  $$select custody.pending_notices()$$, $$select custody.prepare_import('user_profiles')$$, $$select custody.import_profiles()$$, $$select custody.prepare_import('audit_logs')$$,
  $$select custody.ensure_audit_partitions('2003-01-01 00:00:00+00', '2003-01-01 00:00:00+00')$$,
  $$select custody.set_context('system', 'runner')$$, $$select custody.open_segments()$$, $$select custody.audit_months()$$, $$select custody.archive_due()$$, $$select custody.drop_archived_partitions()$$]);
reset session authorization;
select is((select string_agg(distinct t.what || ' as ' || t.who, ', ') from testing.trapped t), null, 'nobody fell into the trap');
select * from finish();
rollback;
