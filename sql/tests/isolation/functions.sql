-- No function of the API gives or touches anything of another tenant, whoever calls it.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('functions_a'), tenant('functions_b');
select populate('functions_a'), populate('functions_b', 'bob') /* $1 */;
select set_config('testing.' || k, v, true) from (values
  ('request', (select r.request_id::text from custody_data.requests r where r.tenant_id = 'functions_b')),
  ('hold', (select h.hold_id::text from custody_data.legal_holds h where h.tenant_id = 'functions_b')),
  ('notice', (select n.notice_id::text from custody_data.erasure_notices n where n.tenant_id = 'functions_b')),
  ('restore', (select r.restore_id::text from custody_data.archive_restores r where r.tenant_id = 'functions_b')),
  ('run', (select r.run_id::text from custody_data.job_runs r where r.tenant_id = 'functions_b')),
  ('event', (select e.log_entry_id::text from events('functions_b', 'account.login') e)),
  ('consent', (select c.consent_id::text from custody_data.consent_records c where c.tenant_id = 'functions_b'))) v (k, v);

-- What a role gets: the first column of all rows, or the SQLSTATE. Nothing of it stays.
create function pg_temp.gets(p_role text, p_tenant text, p_sql text) returns text language plpgsql as $$
declare
  v_result text;
begin
  perform set_config('role', p_role, true), enter(p_tenant, 'clerk');
  execute format('select string_agg(coalesce(x::text, %L), %L) from (%s) q (x)', 'null', ', ', p_sql) into v_result;
  raise exception using errcode = 'T0000', message = coalesce(v_result, 'nothing');
exception when others then
  return case sqlstate when 'T0000' then sqlerrm else sqlstate end;
end
$$;
create temp table calls (role text, sql text, gets text);
insert into calls values
  ('custody_app', $$select custody.get_profile('bob')$$, 'null'), ('custody_app', $$select custody.get_preferences('bob')$$, 'null'), ('custody_app', $$select custody.get_conversation('bob', 'first')$$, 'null'),
  ('custody_app', $$select c.purpose from custody.current_consents('bob') c$$, 'nothing'), ('custody_app', $$select c.purpose from custody.consent_history('bob') c$$, 'nothing'),
  ('custody_app', $$select custody.has_consent('bob', 'newsletter')$$, 'false'), ('custody_app', $$select custody.find_subject('ada@functions_b.example')$$, 'nothing'),
  ('custody_app', $$select l.conversation_id from custody.list_conversations('bob') l$$, 'nothing'),
  ('custody_app', $$select custody.delete_profile('bob')$$, 'false'), ('custody_app', $$select custody.delete_preferences('bob')$$, 'false'), ('custody_app', $$select custody.delete_conversation('bob', 'first')$$, 'false'),
  ('custody_app', $$select custody.patch_profile('bob', '{}')$$, 'PC011'), ('custody_app', $$select custody.patch_preferences('bob', '{}')$$, 'PC011'),
  ('custody_app', $$select custody.append_message('bob', 'first', '{"role": "user", "text": "x"}')$$, 'PC011'), ('custody_app', $$select custody.update_conversation('bob', 'first', 'x')$$, 'PC011'),
  ('custody_app', $$select custody.record_audit_event('functions_b.act')$$, 'PC004'), ('custody_app', $$select custody.record_audit_event('account.login', 'functions_b.thing')$$, 'PC005'),
  ('custody_dpo', $$select e.log_entry_id from custody.audit_events(now() - interval '1 day', now() + interval '1 day', 'bob') e$$, 'PC011'),
  ('custody_dpo', $$select 1 from custody.audit_events(now() - interval '1 day', now() + interval '1 day') e where e.log_entry_id = current_setting('testing.event')::uuid$$, 'nothing'),
  ('custody_dpo', $$select 1 from custody.audit_events(now() - interval '1 day', now() + interval '1 day') e where e.personal::text || e.resource_id ~ 'functions_b'$$, 'nothing'),
  ('custody_dpo', $$select custody.audit_event(current_setting('testing.event')::uuid)$$, 'null'),
  ('custody_dpo', $$select custody.export_subject('bob')$$, 'PC011'), ('custody_dpo', $$select custody.plan_erasure('bob')$$, 'PC011'),
  ('custody_dpo', $$select custody.request_erasure('bob')$$, 'PC011'), ('custody_dpo', $$select custody.request_export('bob')$$, 'PC011'),
  ('custody_dpo', $$select custody.request_status(current_setting('testing.request')::uuid)$$, 'null'), ('custody_dpo', $$select 1 from custody.list_requests() r where r.request_id = current_setting('testing.request')::uuid$$, 'nothing'),
  ('custody_dpo', $$select custody.extend_request(current_setting('testing.request')::uuid, 'x')$$, 'PC016'), ('custody_dpo', $$select custody.cancel_request(current_setting('testing.request')::uuid)$$, 'PC016'),
  ('custody_dpo', $$select custody.erase_subject(current_setting('testing.request')::uuid)$$, 'PC016'), ('custody_dpo', $$select custody.search_residue(current_setting('testing.request')::uuid)$$, 'PC016'),
  ('custody_dpo', $$select custody.verify_erasure(current_setting('testing.request')::uuid)$$, 'PC016'), ('custody_dpo', $$select custody.get_certificate(current_setting('testing.request')::uuid)$$, 'null'),
  ('custody_dpo', $$select i.part from custody.export_items(current_setting('testing.request')::uuid) i$$, 'PC016'), ('custody_dpo', $$select custody.complete_export(current_setting('testing.request')::uuid, 1)$$, 'PC016'),
  ('custody_dpo', $$select 1 from custody.due_requests('erasure') r where r.request_id = current_setting('testing.request')::uuid$$, 'nothing'),
  ('custody_dpo', $$select custody.acknowledge_erasure(current_setting('testing.request')::uuid, 'crm')$$, 'PC025'), ('custody_dpo', $$select n.user_id from custody.pending_notices() n where n.user_id = 'bob'$$, 'nothing'),
  ('custody_dpo', $$select custody.release_hold(current_setting('testing.hold')::uuid, 'x')$$, 'PC024'), ('custody_dpo', $$select custody.place_hold('{"user_id": "bob"}', 'x', 'x')$$, 'PC011'),
  ('custody_dpo', $$select custody.place_hold(jsonb_build_object('table', 'consent_records', 'row', current_setting('testing.consent')), 'x', 'x')$$, 'PC023'),
  ('custody_dpo', $$select custody.place_hold(jsonb_build_object('table', 'audit_logs', 'row', current_setting('testing.event')), 'x', 'x')$$, 'PC023'),
  ('custody_dpo', $$select custody.begin_restore(now() - interval '1 day', now(), 'functions_b', p_reason => 'x')$$, 'PC015'),
  ('custody_dpo', $$select custody.add_restored_events(current_setting('testing.restore')::uuid, 'x', '{1}', '{x}')$$, 'PC023'), ('custody_dpo', $$select custody.finish_restore(current_setting('testing.restore')::uuid, 1, 1)$$, 'PC023'),
  ('custody_dpo', $$select 1 from custody.restored_events e where e.restore_id = current_setting('testing.restore')::uuid$$, 'nothing'), ('custody_dpo', $$select 1 from custody.archive_restores r where r.restore_id = current_setting('testing.restore')::uuid$$, 'nothing'),
  ('custody_runner', $$select custody.mark_notice_sent(current_setting('testing.notice')::uuid, 'x')$$, ''), ('custody_runner', $$select custody.finish_run(current_setting('testing.run')::uuid, 'failed')$$, ''),
  ('custody_audit', $$select 1 from custody.job_runs r where r.run_id = current_setting('testing.run')::uuid$$, 'nothing'), ('custody_audit', $$select 1 from custody.holds h where h.hold_id = current_setting('testing.hold')::uuid$$, 'nothing');
grant select on calls to public;
select is(pg_temp.gets(c.role, 'functions_a', c.sql), c.gets, format('%s: %s', c.role, c.sql)) from calls c /* $1 */;
-- They are not refused for another reason: in their own tenant the reading ones give something.
select isnt(pg_temp.gets(c.role, 'functions_b', c.sql), c.gets, format('in its own tenant: %s', c.sql)) from calls c
where c.gets in ('null', 'nothing', 'false') and c.sql !~ 'current_consents|functions_b''|due_requests|personal::text' /* $1 */;
-- What retention would delete, and does, is the tenant's own.
select is(pg_temp.gets('custody_runner', 'functions_a', $$select sum(d.due_rows) from custody.retention_due_at(now() + interval '100 years') d$$), pg_temp.gets('custody_runner', 'functions_b', $$select sum(d.due_rows) from custody.retention_due_at(now() + interval '100 years') d$$),
  'what is due is counted for one tenant') /* $1 */;

-- In tenant system, for those who may enter it, there are no rows of tenants either.
select is(pg_temp.gets('custody_audit', 'system', $$select 1 from custody.audit_events(now() - interval '1 day', now() + interval '1 day', p_limit => 10000) e where e.log_entry_id = current_setting('testing.event')::uuid$$), 'nothing', 'the trail, read in tenant system') /* $1 */;
select is(pg_temp.gets('custody_audit', 'system', $$select custody.audit_event(current_setting('testing.event')::uuid)$$), 'null', 'an event of it') /* $1 */;
select is(pg_temp.gets('custody_runner', 'system', $$select custody.export_subject('bob')$$), 'PC011', 'an export') /* $1 */;
select is(pg_temp.gets('custody_runner', 'system', $$select custody.erase_subject(current_setting('testing.request')::uuid)$$), 'PC016', 'an erasure') /* $1 */;
select is(pg_temp.gets('custody_runner', 'system', $$select custody.get_profile('bob')$$), 'null', 'a profile') /* $1 */;
select ok(pg_temp.gets('custody_runner', 'system', $$select count(distinct e.tenant_id) from custody.audit_entries e$$)::int >= 2, 'the archive alone reads the entries of all tenants there') /* $1 */;
select * from finish();
rollback;
