-- Temporary tables, views and types come before everything in a search_path that does not name pg_temp: ours names
-- it last, so a caller's temporary domain named text, or a table named as one of ours, is never looked at.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('temp_attack');
create table testing.trapped (what text, who text);
grant insert, select, delete on testing.trapped to public;
create function testing.trap(p_what text) returns boolean language plpgsql as $$
begin
  insert into testing.trapped values (p_what, current_user);
  return true;
end
$$;
set local session authorization custody_app;
create domain pg_temp.text as pg_catalog.text check (testing.trap('domain text'));
create domain pg_temp.jsonb as pg_catalog.jsonb check (testing.trap('domain jsonb'));
create domain pg_temp.uuid as pg_catalog.uuid check (testing.trap('domain uuid'));
create domain pg_temp.timestamptz as pg_catalog.timestamptz check (testing.trap('domain timestamptz'));
create domain pg_temp.xid8 as pg_catalog.xid8 check (testing.trap('domain xid8'));
create domain pg_temp.date as pg_catalog.date check (testing.trap('domain date'));
create function pg_temp.set_config(pg_catalog.text, pg_catalog.text, pg_catalog.bool) returns pg_catalog.text language sql as $$ select 'x' from testing.trap('function set_config') $$;
create function pg_temp.now() returns pg_catalog.timestamptz language sql as $$ select pg_catalog.clock_timestamp() from testing.trap('function now') $$;
create temp table identities (tenant_id pg_catalog.text, identity_id pg_catalog.uuid, user_id pg_catalog.text);
create temp table old_rows (tenant_id pg_catalog.text, identity_id pg_catalog.uuid, conversation_id pg_catalog.text);
create temp table new_rows (tenant_id pg_catalog.text, identity_id pg_catalog.uuid);
create temp view audit_logs as select testing.trap('view audit_logs');
create temp view legal_holds as select testing.trap('view legal_holds');
create temp view pg_class as select testing.trap('view pg_class');
create temp view pg_inherits as select testing.trap('view pg_inherits');
set local search_path = pg_temp, tap, testing;
select tap.ok('x'::pg_temp.text is not null, 'the domain runs its check');
select tap.is((select count(*) from testing.trapped where what = 'domain text'), 1::bigint, 'so the trap works');
set local search_path = '';
reset session authorization;
delete from testing.trapped;
set local session authorization custody_app;

-- pgTAP's own functions fall into it, so what was there before a call is taken away first.
create function pg_temp.try(p_sql pg_catalog.text) returns pg_catalog.text language plpgsql as $$
declare
  v_trapped pg_catalog.text;
begin
  perform pg_catalog.set_config('search_path', 'pg_temp', true);
  delete from testing.trapped;
  execute p_sql;
  v_trapped := (select pg_catalog.string_agg(distinct pg_catalog.concat(t.what, ' as ', t.who), ', ') from testing.trapped t);
  perform pg_catalog.set_config('search_path', 'tap, testing', true);
  return tap.is(v_trapped, null, p_sql);
exception when others then
  perform pg_catalog.set_config('search_path', 'tap, testing', true);
  return tap.fail(pg_catalog.format('%s: %s %s', p_sql, sqlstate, sqlerrm));
end
$$;
select pg_temp.try(c) from unnest(array[
  $$select custody.set_context('temp_attack', 'clerk', 'p')$$, $$select testing.unlock('temp_attack') /* $1 */$$, $$select custody.put_profile('ada', '{"full_name": "Ada"}')$$, $$select custody.patch_profile('ada', '{"city": "x"}')$$, $$select custody.record_consent('ada', 'mail', true, '1')$$,
  $$select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "x"}]')$$, $$select custody.append_message('ada', 'c1', '{"role": "user", "text": "x"}')$$, $$select custody.list_conversations('ada')$$,
  $$select custody.record_audit_event('account.login', p_log_entry_id => '22222222-2222-4222-8222-222222222222')$$, $$select custody.record_audit_events('[{"action": "account.login"}]')$$,
  $$select custody.delete_profile('ada')$$,
  $$select custody.set_context('temp_attack', 'ada', 'p', 'ada')$$, $$select testing.unlock('temp_attack') /* $1 */$$, $$select custody.request_export('ada', 'x')$$, $$select custody.export_subject('ada')$$,
  $$select custody.audit_events(pg_catalog.now() - interval '1 day', pg_catalog.now() + interval '1 day')$$]) c;
-- The transition tables of the guards are theirs, not the caller's temporary ones.
reset session authorization;
set local search_path = tap, testing;
set local session authorization custody_dpo;
select enter('temp_attack', 'dpo') /* $1 */;
select custody.place_hold('{"table": "conversations", "row": "c1"}', 'case 1', 'litigation');
set local session authorization custody_app;
select enter('temp_attack', 'clerk') /* $1 */;
select refuses($$delete from custody_data.conversations$$, '42501', 'the application has no other way to delete than functions');
select refuses($$select custody.delete_conversation('ada', 'c1')$$, 'PC032', 'a table named old_rows does not hide what is held');
set local session authorization custody_runner;
select enter('temp_attack', 'runner') /* $1 */;
select refuses($$insert into custody_data.user_preferences (tenant_id, identity_id, preferences) values ('temp_attack', '99999999-9999-4999-8999-999999999999', testing.any_sealed())$$, 'PC021', 'nor one named new_rows whom it is about');
-- As the owner nothing of it ran, by any statement of this case.
reset session authorization;
select is((select count(*) from testing.trapped t where t.who = 'custody_owner'), 0::bigint, 'the owner never fell into it');
select * from finish();
rollback;
