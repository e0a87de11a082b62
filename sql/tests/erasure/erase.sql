-- Erasure deletes profile, preferences and conversations, empties the user_id, keeps consents and the trail
-- pseudonymous without touching a row of them, and issues a certificate; called again it returns the same.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('erase');
set local session authorization custody_app;
select enter('erase', 'clerk') /* $1 */;
select custody.put_profile(u, jsonb_build_object('full_name', 'Full Name of ' || u, 'email', u || '@example.org')), custody.put_preferences(u, '{"a": 1}') from unnest(array['ada', 'bob']) u;
select custody.save_conversation(u, 'c' || n, '[{"role": "user", "text": "x"}]') from unnest(array['ada', 'bob']) u, generate_series(1, 3) n;
select custody.record_consent('ada', 'mail', true, '1', p_consent_id => '11111111-1111-4111-8111-111111111111');
select custody.record_audit_event('phi.access', 'account', 'ada', p_personal => '{"ip": "192.0.2.1"}');
select enter('erase', 'ada') /* $1 */;
select custody.record_audit_event('account.login');
select set_config('testing.ada', identity('erase', 'ada')::text, true), set_config('testing.request', request('erase', 'ada')::text, true);
create temp table trail as select e.*::text as event from events('erase') e;

set local session authorization custody_runner;
select enter('erase', 'runner', 'Art. 17') /* $1 */;
select is(custody.get_certificate(current_setting('testing.request')::uuid), null, 'before it there is no certificate');
select set_config('testing.certificate', custody.erase_subject(current_setting('testing.request')::uuid)::text, true);
create function pg_temp.certificate() returns jsonb language sql as $$ select current_setting('testing.certificate')::jsonb $$;

select is(pg_temp.certificate() - array['kept', 'audit_event', 'issued_at', 'erased_at', 'requested_at', 'backups_unreadable_from'], jsonb_build_object('version', 1, 'tenant_id', 'erase', 'request_id', current_setting('testing.request'),
  'identity_id', current_setting('testing.ada'), 'keys_destroyed', '[1]'::jsonb, 'user_id_remembered', false, 'deleted', '{"user_profiles": 1, "user_preferences": 1, "conversations": 3}'::jsonb, 'residue', '[]'::jsonb, 'residue_searched_for', '["user_id", "email", "phone", "full_name"]'::jsonb, 'residue_basis', null,
  'status', 'complete', 'external_holders', '[]'::jsonb, 'audit_event_proof', null), 'the certificate: request, identity, what was deleted');
select is((pg_temp.certificate() ->> 'backups_unreadable_from')::timestamptz, now() + interval '14 days', 'and when backups from before open nothing any more: a generation of the key, and the life of a backup of keys');
select is(array[pg_temp.certificate() ->> 'erased_at', pg_temp.certificate() ->> 'issued_at', pg_temp.certificate() ->> 'requested_at']::timestamptz[], array[now(), now(), now()], 'when it was asked for, done and issued');
select results_eq($$select k ->> 'table', (k ->> 'reason') is not null, (k ->> 'until')::timestamptz > now() from jsonb_array_elements(pg_temp.certificate() -> 'kept') k$$,
  $$values ('consent_records', true, true), ('audit_logs', true, true)$$, 'what was kept, why and until when');
select is((pg_temp.certificate() #>> '{kept,0,rows}')::int, 1, 'how many consents');
select is(pg_temp.certificate() ->> 'audit_event', (last_event('erase', 'account.erase')).log_entry_id::text, 'and the event of it');
select row_eq($$select e.result collate "default", e.resource_id collate "default", e.subject_id, e.purpose, e.metadata - 'kept' from last_event('erase', 'account.erase') e$$,
  row ('success'::text, current_setting('testing.ada'), current_setting('testing.ada')::uuid, 'Art. 17'::text,
    jsonb_build_object('request_id', current_setting('testing.request'), 'keys_destroyed', '[1]'::jsonb, 'deleted', '{"user_profiles": 1, "user_preferences": 1, "conversations": 3}'::jsonb, 'holders', '[]'::jsonb)), 'which says the same');

select is(identity('erase', 'ada'), null, 'nobody has the user_id');
reset session authorization;
select row_eq(format('select i.user_id collate "default", i.erased_at, i.kind from custody_data.identities i where i.identity_id = %L', current_setting('testing.ada')), row (null::text, now(), 'person'::text), 'the identity stays, without it');
select is((select count(*) from custody_data.user_profiles t where t.identity_id = current_setting('testing.ada')::uuid)
  + (select count(*) from custody_data.user_preferences t where t.identity_id = current_setting('testing.ada')::uuid)
  + (select count(*) from custody_data.conversations t where t.identity_id = current_setting('testing.ada')::uuid), 0::bigint, 'what was to go is gone');
select is(rows_of('erase', 'user_profiles') + rows_of('erase', 'user_preferences') + rows_of('erase', 'conversations'), 5::bigint, 'what is another person''s stays');
select is((select c.identity_id from custody_data.consent_records c where c.tenant_id = 'erase'), current_setting('testing.ada')::uuid, 'the consent stays under the identity');
select is_empty($$select t.event from trail t except select e.*::text from events('erase') e$$, 'no row of the trail was touched');
select is((select count(*) from events('erase') e where e.resource_id = 'ada' or e.metadata::text ~ '\mada\M'), 0::bigint, 'and none names the person');
select results_eq($$select e.resource_type collate "default" from events('erase', 'record.delete') e order by 1$$, array['conversations', 'user_preferences', 'user_profiles'], 'each deletion is an event');

set local session authorization custody_runner;
select is(custody.erase_subject(current_setting('testing.request')::uuid), pg_temp.certificate(), 'called again it returns the same certificate');
select is(custody.get_certificate(current_setting('testing.request')::uuid), pg_temp.certificate(), 'so does get_certificate');
select is((select count(*) from events('erase', 'account.erase')), 1::bigint, 'and does nothing');
select is(custody.verify_erasure(current_setting('testing.request')::uuid) - 'searched_at', jsonb_build_object('request_id', current_setting('testing.request'), 'status', 'done', 'clean', true, 'findings', '[]'::jsonb, 'notices_open', 0),
  'verify_erasure finds nothing');
select is(custody.request_status(current_setting('testing.request')::uuid) ->> 'status', 'done', 'the request is done');
select is((custody.request_status(current_setting('testing.request')::uuid) ->> 'closed_at')::timestamptz, now(), 'and closed');

-- A person can come back, and is never joined to who they were.
set local session authorization custody_app;
select enter('erase', 'clerk') /* $1 */;
select is(custody.get_profile('ada'), null, 'the person is unknown');
select is(custody.has_consent('ada', 'mail'), false, 'and has consented to nothing');
select is(custody.put_profile('ada', '{}'), 1, 'the same user_id can come back');
select isnt(identity('erase', 'ada'), current_setting('testing.ada')::uuid, 'as a new identity');
select is_empty($$select custody.consent_history('ada')$$, 'without the old history');
set local session authorization custody_dpo;
select enter('erase', 'dpo') /* $1 */;
select is(custody.request_erasure('ada', null, current_setting('testing.request')::uuid), current_setting('testing.request')::uuid, 'the old request retried is still the old one');
select isnt(custody.request_erasure('ada'), current_setting('testing.request')::uuid, 'and a new one is new');
select * from finish();
rollback;
