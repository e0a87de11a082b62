-- An event is recorded under the actor and purpose in context, with what only the server may say.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('record_event');
set local session authorization custody_app;
select enter('record_event', 'clerk', 'treatment') /* $1 */;

select lives_ok($$select custody.record_audit_event('phi.access', 'health_record', 'rec-7', 'denied', '{"count": 2, "fields": ["a"]}', 'ada',
  clock_timestamp() - interval '1 hour', null, '{"source_ip": "192.0.2.7"}')$$, 'an event');
select row_eq($$select e.actor_id, e.subject_id, e.action collate "default", e.resource_type collate "default", e.resource_id collate "default",
    e.result collate "default", e.purpose, e.metadata, custody.open_value(e.subject_id, 'audit_logs', 'personal', e.log_entry_id::text, e.personal)::jsonb, e.import_id, e.db_role, e.xid from events('record_event', 'phi.access') e$$,
  row (identity('record_event', 'clerk'), identity('record_event', 'ada'), 'phi.access'::text, 'health_record'::text, 'rec-7'::text, 'denied'::text,
    'treatment'::text, '{"count": 2, "fields": ["a"]}'::jsonb, '{"source_ip": "192.0.2.7"}'::jsonb, null::uuid, 'custody_app'::text, pg_current_xact_id()),
  'holds what was said, the actor and purpose of the context, the login and the transaction');
select ok(e.recorded_at between now() and clock_timestamp() and e.occurred_at between now() - interval '2 hours' and now(), 'and both times')
from events('record_event', 'phi.access') e;

select lives_ok($$select custody.record_audit_event('account.logout')$$, 'an action alone is an event');
select ok(e.subject_id is null and e.result = 'success' and e.metadata = '{}' and e.resource_type is null and e.personal is null and e.occurred_at >= now(), 'with what is meant by leaving the rest out')
from events('record_event', 'account.logout') e;
select is((select substr(e.log_entry_id::text, 15, 1) from events('record_event', 'account.logout') e), '7', 'its id is of version 7');
select is((select count(distinct custody_data.new_entry_id()) from generate_series(1, 1000)), 1000::bigint, 'ids differ');
select ok(('x' || substr(replace(i.id::text, '-', ''), 1, 12))::bit(48)::bigint - extract(epoch from clock_timestamp()) * 1000 between -1000 and 0,
  'and start with the time in milliseconds')
from (select custody_data.new_entry_id() as id) i;

select lives_ok(format('select custody.record_audit_event(%L, p_result => %L)', 'account.login', r), format('result %s', r))
from unnest(array['success', 'failure', 'denied', 'partial']) r;

-- Whoever has a user_id is stored as the identity, so that erasure reaches it.
select custody.put_profile('bob', '{}');
select custody.record_audit_event('phi.disclose', 'account', 'bob');
select results_eq($$select e.resource_id collate "default", e.subject_id from events('record_event', 'phi.disclose') e$$,
  $$select i::text, i from identity('record_event', 'bob') i$$, 'a resource_id that is a user_id is stored as the identity, who is then whom the event is about');
select custody.record_audit_event('phi.update', 'account', 'bob', p_subject_user_id => 'ada');
select results_eq($$select e.resource_id collate "default", e.subject_id from events('record_event', 'phi.update') e$$,
  $$select identity('record_event', 'bob')::text, identity('record_event', 'ada')$$, 'a subject that is named goes before');
select custody.record_audit_event('account.create', 'document', 'Bob');
select is((last_event('record_event', 'account.create')).resource_id, 'Bob', 'what is no user_id stays as it is');
select custody.record_audit_event('account.create', 'account', 'eve');
select is((last_event('record_event', 'account.create')).resource_id, 'eve', 'nobody becomes known by being a resource');
select is(identity('record_event', 'eve'), null, 'so there is no identity of that name');

set local session authorization custody_dpo;
select enter('record_event', 'dpo') /* $1 */;
select lives_ok($$select custody.record_audit_event('account.login')$$, 'privacy officers record events');
set local session authorization custody_runner;
select enter('record_event', 'runner') /* $1 */;
select lives_ok($$select custody.record_audit_event('account.login')$$, 'so does the worker');
set local session authorization custody_reports;
select enter('record_event', 'analyst') /* $1 */;
select refuses($$select custody.record_audit_event('account.login')$$, '42501', 'reports do not');
set local session authorization custody_audit;
select enter('record_event', 'auditor') /* $1 */;
select refuses($$select custody.record_audit_event('account.login')$$, '42501', 'nor do auditors');
select * from finish();
rollback;
