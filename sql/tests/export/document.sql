-- export_subject returns everything that the database holds about a person, with purpose, basis, retention and
-- source of each part, and is an event.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('export_subject');
set local session authorization custody_app;
select enter('export_subject', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada", "email": "ada@example.org"}'), custody.put_preferences('ada', '{"theme": "dark"}'), custody.put_preferences('bob', '{"theme": "bobs"}');
select custody.record_consent('ada', 'mail', true, '1', p_evidence => '{"form": 7}'), custody.record_consent('bob', 'bobs', true, '1');
select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "hi"}]', 'T'), custody.save_conversation('bob', 'c2', '[{"role": "user", "text": "bobs"}]');
select custody.record_audit_event('phi.access', 'document', 'd1', p_subject_user_id => 'ada', p_personal => '{"ip": "192.0.2.1"}');
select custody.record_audit_event('phi.access', 'document', 'd2', p_subject_user_id => 'bob');
select enter('export_subject', 'ada', null, 'ada') /* $1 */;
select custody.record_audit_event('account.login', p_metadata => '{"source": "web"}');
select custody.request_export('ada', 'curious', '11111111-1111-4111-8111-111111111111');
set local session authorization custody_dpo;
select enter('export_subject', 'dpo', 'Art. 15') /* $1 */;
select custody.register_holder('crm');

select set_config('testing.export', custody.export_subject('ada')::text, true);
create function pg_temp.export() returns jsonb language sql as $$ select current_setting('testing.export')::jsonb $$;
select is(pg_temp.export() - array['profile', 'preferences', 'consents', 'conversations', 'audit_events', 'requests', 'rights', 'known_since'], jsonb_build_object('format', 'pgcustody export, version 1', 'tenant_id', 'export_subject',
  'user_id', 'ada', 'exported_at', custody_data.entry_time(now()), 'audit_events_complete_from', null, 'holders', '["crm"]'::jsonb), 'what it is, of whom, and who else holds data');
select is((pg_temp.export() ->> 'known_since')::timestamptz, now(), 'since when the person is known');
select is((select array_agg(p.key order by p.key) from jsonb_each(pg_temp.export()) p where jsonb_typeof(p.value) = 'object'
    and p.value ->> 'purpose' is not null and p.value ->> 'basis' is not null and p.value ->> 'source' is not null and p.value ? 'retention' and p.value ? 'data'),
  array['audit_events', 'consents', 'conversations', 'preferences', 'profile', 'requests'], 'every part has its data, purpose, basis, retention and source');
select is(pg_temp.export() #>> '{profile,data,full_name}', 'Ada', 'the profile');
select is(pg_temp.export() #> '{preferences,data}', '{"theme": "dark"}', 'the preferences');
select is(pg_temp.export() #> '{consents,data,0,evidence}', '{"form": 7}', 'consents with their evidence');
select is(pg_temp.export() #> '{conversations,data,0,messages,0,text}', '"hi"', 'conversations with their messages');
select is((select array_agg(e ->> 'resource_id' order by e ->> 'resource_id') from jsonb_array_elements(pg_temp.export() #> '{audit_events,data}') e where e ->> 'action' = 'phi.access'), array['d1'], 'events about the person');
select is((select e -> 'personal' from jsonb_array_elements(pg_temp.export() #> '{audit_events,data}') e where e ->> 'resource_id' = 'd1'), '{"ip": "192.0.2.1"}', 'with their personal part');
select is((select (e ->> 'by_the_person')::boolean from jsonb_array_elements(pg_temp.export() #> '{audit_events,data}') e where e ->> 'action' = 'account.login'), true, 'and events by the person');
select is(pg_temp.export() #>> '{requests,data,0,request_id}', '11111111-1111-4111-8111-111111111111', 'requests');
select is(pg_temp.export() #>> '{conversations,retention,keep}', '90 days', 'how long each part is kept');
select is((select count(*) from jsonb_each_text(pg_temp.export()) t where t.value ~ 'bob|identity_id|email_index|xid'), 0::bigint, 'nothing of others, and no inner ids');
select row_eq($$select e.subject_id, e.purpose, e.metadata - 'bytes' from last_event('export_subject', 'account.export') e$$,
  row (identity('export_subject', 'ada'), 'Art. 15'::text, jsonb_build_object('counts', jsonb_build_object('profile', 1, 'preferences', 1, 'consents', 1, 'conversations', 1, 'requests', 1,
    'audit_events', jsonb_array_length(pg_temp.export() #> '{audit_events,data}')))), 'the export is an event with its counts');

select is(custody.export_subject('bob') #> '{profile,data}', 'null', 'what a person does not have is null');
select is(custody.export_subject('bob') #> '{requests,data}', '[]', 'or an empty list');
select lives_ok($$select custody.export_subject('ada', 1000000)$$, 'within the bound');
select refuses($$select custody.export_subject('ada', 1000)$$, 'PC022', 'beyond it');
select refuses($$select custody.export_subject('never seen')$$, 'PC011', 'somebody who was never seen');
select refuses($$select custody.export_subject('')$$, 'PC003', 'nobody');
select is((select count(*) from events('export_subject', 'account.export')), 4::bigint, 'what was refused is no event');

set local session authorization custody_app;
select enter('export_subject', 'clerk') /* $1 */;
select refuses($$select custody.export_subject('ada')$$, 'PC015', 'an application exports nobody');
select enter('export_subject', 'ada', null, 'ada') /* $1 */;
select is(custody.export_subject('ada') #> '{holders}', '["crm"]', 'but its subject, who is told the holders too');
select is((custody.export_subject('ada') -> 'audit_events' -> 'data') @> '[{"resource_id": "d1"}]', true, 'and the events');
select refuses($$select custody.export_subject('bob')$$, 'PC015', 'and nobody else');
set local session authorization custody_audit;
select enter('export_subject', 'auditor') /* $1 */;
select refuses($$select custody.export_subject('ada')$$, '42501', 'auditors export nobody');
set local session authorization custody_runner;
set local role custody_worker;
select enter('export_subject', 'runner') /* $1 */;
select is(custody.export_subject('ada') ->> 'user_id', 'ada', 'the worker exports');
select * from finish();
rollback;
