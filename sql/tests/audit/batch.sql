-- record_audit_events appends an array of events, all or none.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('event_batch');
set local session authorization custody_app;
select enter('event_batch', 'clerk', 'batch') /* $1 */;

select is(custody.record_audit_events('[]'), 0::bigint, 'none are none');
select is(custody.record_audit_events(jsonb_build_array(
  '{"action": "account.login"}'::jsonb,
  jsonb_build_object('action', 'phi.access', 'resource_type', 'document', 'resource_id', 'd1', 'result', 'denied', 'metadata', '{"count": 3}'::jsonb,
    'subject_user_id', 'ada', 'occurred_at', custody_data.entry_time(clock_timestamp() - interval '1 hour'), 'log_entry_id', '11111111-1111-4111-8111-111111111111',
    'personal', '{"ip": "::1"}'::jsonb),
  '{"action": "account.logout", "metadata": null, "personal": null, "result": null}'::jsonb)), 3::bigint, 'it returns how many');
select row_eq($$select e.resource_id collate "default", e.result collate "default", e.metadata, custody.open_value(e.subject_id, 'audit_logs', 'personal', e.log_entry_id::text, e.personal)::jsonb, e.subject_id, e.log_entry_id, e.purpose from events('event_batch', 'phi.access') e$$,
  row ('d1'::text, 'denied'::text, '{"count": 3}'::jsonb, '{"ip": "::1"}'::jsonb, identity('event_batch', 'ada'), '11111111-1111-4111-8111-111111111111'::uuid, 'batch'::text),
  'each holds what was said');
select is((select e.result collate "default" from events('event_batch', 'account.logout') e), 'success', 'null is as left out');
select is(custody.record_audit_events(jsonb_build_array(jsonb_build_object('action', 'account.login', 'log_entry_id', '33333333-3333-4333-8333-333333333333'),
  jsonb_build_object('action', 'account.login', 'log_entry_id', '33333333-3333-4333-8333-333333333333'))), 2::bigint, 'a retry within the array');
select is((select count(*) from events('event_batch', 'account.login')), 2::bigint, 'is one event');

select refuses($$select custody.record_audit_events(null)$$, 'PC023', 'no array');
select refuses($$select custody.record_audit_events('{}')$$, 'PC023', 'an object');
select refuses($$select custody.record_audit_events('[1]')$$, 'PC023', 'an array of numbers');
select refuses($$select custody.record_audit_events('[null]')$$, 'PC023', 'an array of null');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "actor": "eve"}]')$$, 'PC023', 'a member that is no parameter');
select refuses($$select custody.record_audit_events('[{"action": "account.login"}, {"action": "no.such"}]')$$, 'PC004', 'one unknown action refuses all');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "metadata": {"email": "x"}}]')$$, 'PC006', 'a key that is not on the list');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "occurred_at": "never"}]')$$, 'PC009', 'a time that is none');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "log_entry_id": "7"}]')$$, 'PC023', 'an id that is no uuid');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "occurred_at": "tomorrow"}]')$$, 'PC009', 'a time that only Postgres understands');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "occurred_at": "2020-01-01T00:00:00Z"}]')$$, 'PC009', 'a time long ago');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "resource_type": "spaceship"}]')$$, 'PC005', 'an unknown resource type');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "result": "maybe"}]')$$, 'PC007', 'an unknown result');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "subject_user_id": ""}]')$$, 'PC003', 'an empty subject');
select refuses($$select custody.record_audit_events('[{"action": "account.login", "result": "denied", "log_entry_id": "33333333-3333-4333-8333-333333333333"}]')$$, 'PC010', 'an id with other content');
select is((select count(*) from events('event_batch') e where e.action <> 'record.read'), 4::bigint, 'nothing of it was appended');
select * from finish();
rollback;
