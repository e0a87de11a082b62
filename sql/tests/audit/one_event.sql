-- audit_event gives one event by its id, or null; the reading is an event.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('one_event');
select tenant('one_event_2');
\set id '11111111-1111-4111-8111-111111111111'
set local session authorization custody_app;
select enter('one_event', 'clerk', 'p') /* $1 */;
select custody.record_audit_event('phi.access', 'document', 'd1', p_metadata => '{"count": 1}', p_subject_user_id => 'ada', p_log_entry_id => :'id', p_personal => '{"ip": "192.0.2.1"}');

set local session authorization custody_dpo;
select enter('one_event', 'dpo') /* $1 */;
select is(custody.audit_event(:'id') - array['occurred_at', 'recorded_at'], jsonb_build_object('log_entry_id', :'id', 'actor', 'clerk', 'actor_id', identity('one_event', 'clerk'),
  'subject', 'ada', 'subject_id', identity('one_event', 'ada'), 'action', 'phi.access', 'resource_type', 'document', 'resource_id', 'd1', 'result', 'success', 'purpose', 'p',
  'metadata', '{"count": 1}'::jsonb, 'personal', '{"ip": "192.0.2.1"}'::jsonb, 'personal_erased', false, 'import_id', null, 'complete_from', null), 'the event with its columns');
select is((last_event('one_event', 'audit.read')).resource_id, :'id', 'the reading is an event about it');
select is((last_event('one_event', 'audit.read')).subject_id, identity('one_event', 'ada'), 'and about its person');
select is(custody.audit_event('22222222-2222-4222-8222-222222222222'), null, 'null for the unknown');
select is((last_event('one_event', 'audit.read')).metadata, '{"rows": 0}', 'which is an event too');
select is(custody.audit_event(null), null, 'null for null');

set local session authorization custody_audit;
select enter('one_event', 'auditor') /* $1 */;
select ok(not custody.audit_event(:'id') ? 'personal', 'auditors see it without the personal part');
select enter('one_event_2', 'auditor') /* $1 */;
select is(custody.audit_event(:'id'), null, 'another tenant''s event is unknown');
select custody.set_context('system', 'auditor');
select is(custody.audit_event(:'id'), null, 'in tenant system too');
select is_empty($$select 1 from custody.audit_events(now() - interval '1 day', now() + interval '1 day') e where e.log_entry_id = '11111111-1111-4111-8111-111111111111'$$, 'nor is it in the list there');

set local session authorization custody_app;
select enter('one_event', 'clerk') /* $1 */;
select refuses($$select custody.audit_event('11111111-1111-4111-8111-111111111111')$$, 'PC015', 'an application reads none');
select enter('one_event', 'clerk', null, 'ada') /* $1 */;
select is(custody.audit_event(:'id') ->> 'subject', 'ada', 'but of its subject');
select enter('one_event', 'clerk', null, 'bob') /* $1 */;
select is(custody.audit_event(:'id'), null, 'somebody else''s is unknown');
select * from finish();
rollback;
