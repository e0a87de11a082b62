-- An event given again is compared with its personal part too, which is opened for it: no digest of it is kept.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('personal_retried');
\set id '11111111-1111-4111-8111-111111111111'
set local session authorization custody_app;
select enter('personal_retried', 'clerk') /* $1 */;
select custody.record_audit_event('phi.access', p_subject_user_id => 'ada', p_log_entry_id => :'id', p_personal => '{"ip": "::1", "n": 1.0}');
select is(custody.record_audit_event('phi.access', p_subject_user_id => 'ada', p_log_entry_id => :'id', p_personal => '{"n": 1.0, "ip": "::1"}'), :'id', 'the same again is the first');
select is((select count(*) from events('personal_retried', 'phi.access')), 1::bigint, 'and one event');
select refuses($$select custody.record_audit_event('phi.access', p_subject_user_id => 'ada', p_log_entry_id => '11111111-1111-4111-8111-111111111111', p_personal => '{"ip": "::2", "n": 1.0}')$$, 'PC010', 'another personal part');
select refuses($$select custody.record_audit_event('phi.access', p_subject_user_id => 'ada', p_log_entry_id => '11111111-1111-4111-8111-111111111111', p_personal => '{}')$$, 'PC010', 'an empty one');
select refuses($$select custody.record_audit_event('phi.access', p_subject_user_id => 'ada', p_log_entry_id => '11111111-1111-4111-8111-111111111111')$$, 'PC010', 'none');
select custody.record_audit_event('phi.update', p_subject_user_id => 'ada', p_log_entry_id => '22222222-2222-4222-8222-222222222222');
select refuses($$select custody.record_audit_event('phi.update', p_subject_user_id => 'ada', p_log_entry_id => '22222222-2222-4222-8222-222222222222', p_personal => '{}')$$, 'PC010', 'one where there was none');
-- Without a subject it is the actor's.
select custody.record_audit_event('account.login', p_log_entry_id => '33333333-3333-4333-8333-333333333333', p_personal => '{"ip": 1}');
select is(custody.record_audit_event('account.login', p_log_entry_id => '33333333-3333-4333-8333-333333333333', p_personal => '{"ip": 1}'), '33333333-3333-4333-8333-333333333333', 'an event about nobody again');
select refuses($$select custody.record_audit_event('account.login', p_log_entry_id => '33333333-3333-4333-8333-333333333333', p_personal => '{"ip": 2}')$$, 'PC010', 'with another personal part');
select enter('personal_retried', 'clerk', null, 'ada') /* $1 */;
select is(custody.record_audit_event('account.login', p_log_entry_id => '33333333-3333-4333-8333-333333333333', p_personal => '{"ip": 1}'), '33333333-3333-4333-8333-333333333333', 'in a context of one person too');
select refuses($$select custody.record_audit_event('account.login', p_log_entry_id => '33333333-3333-4333-8333-333333333333', p_personal => '{"ip": 2}')$$, 'PC010', 'though that person''s context does not see the event');
select is(custody.record_audit_event('phi.access', p_subject_user_id => 'ada', p_log_entry_id => :'id', p_personal => '{"n": 1.0, "ip": "::1"}'), :'id', 'one about the person');
select is(custody.current_subject(), 'ada', 'which is confined as before');
select refuses($$select custody.record_audit_event('account.login', p_subject_user_id => 'clerk')$$, 'PC015', 'to that person');
select custody.set_context('personal_retried', 'clerk');
select refuses($$select custody.record_audit_event('phi.access', p_subject_user_id => 'ada', p_log_entry_id => '11111111-1111-4111-8111-111111111111', p_personal => '{"n": 1.0, "ip": "::1"}')$$, 'PC033', 'while locked it is not compared');
select is(custody.record_audit_event('phi.update', p_subject_user_id => 'ada', p_log_entry_id => '22222222-2222-4222-8222-222222222222'), '22222222-2222-4222-8222-222222222222', 'one without a personal part is');
-- An event whose month is in the archive alone: its id is known, its personal part is not.
reset session authorization;
insert into custody_data.audit_entry_ids (tenant_id, log_entry_id, occurred_at, content)
select 'personal_retried', '44444444-4444-4444-8444-444444444444', now() - interval '60 days',
  custody_data.event_content(null, identity('personal_retried', 'clerk'), null, 'account.logout', null, null, 'success', '{}', true);
set local session authorization custody_app;
select enter('personal_retried', 'clerk') /* $1 */;
select is(custody.record_audit_event('account.logout', p_log_entry_id => '44444444-4444-4444-8444-444444444444', p_personal => '{"ip": 1}'), '44444444-4444-4444-8444-444444444444', 'it is accepted as the one of before');
select is((select count(*) from events('personal_retried', 'account.logout')), 0::bigint, 'and not written again');
select refuses($$select custody.record_audit_event('account.logout', p_log_entry_id => '44444444-4444-4444-8444-444444444444')$$, 'PC010', 'though not without a personal part');
reset session authorization;
select is((select count(*) from custody_data.audit_entry_ids e where e.tenant_id = 'personal_retried' and e.content = custody_data.event_content(null, identity('personal_retried', 'clerk'), identity('personal_retried', 'ada'), 'phi.access', null, null, 'success', '{}', true)), 1::bigint,
  'what is kept of the content says no more of the personal part than that there is one');
select * from finish();
rollback;
