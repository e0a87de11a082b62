-- In a context with a subject, events are about that person or about nobody.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('confined_events');
set local session authorization custody_app;
select enter('confined_events', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select custody.put_profile('bob', '{}');
select custody.put_profile('clerk', '{}');

select enter('confined_events', 'clerk', null, 'ada') /* $1 */;
select lives_ok($$select custody.record_audit_event('phi.access', p_subject_user_id => 'ada')$$, 'about the subject');
select lives_ok($$select custody.record_audit_event('phi.access', 'account', 'ada')$$, 'about the subject as a resource');
select lives_ok($$select custody.record_audit_event('account.login')$$, 'about nobody');
select refuses($$select custody.record_audit_event('phi.access', p_subject_user_id => 'bob')$$, 'PC015', 'about somebody else');
select refuses($$select custody.record_audit_event('phi.access', p_subject_user_id => 'new')$$, 'PC015', 'about somebody new');
select refuses($$select custody.record_audit_event('phi.access', p_subject_user_id => 'clerk')$$, 'PC015', 'about the actor');
select refuses($$select custody.record_audit_event('phi.access', 'account', 'bob')$$, 'PC015', 'about somebody else as a resource');
select refuses($$insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action)
  select 'confined_events', gen_random_uuid(), now(), custody.current_actor_id(), identity('confined_events', 'bob'), 'phi.access'$$, '42501', 'by one''s own right neither');
select is((select count(*) from events('confined_events', 'phi.access')), 2::bigint, 'only the subject''s are there');
select * from finish();
rollback;
