-- Once a person is erased, what was sealed about them in rows that stay opens for nobody, and readers say so.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('erased_columns');
\set event '11111111-1111-4111-8111-111111111111'
\set consent '22222222-2222-4222-8222-222222222222'
set local session authorization custody_app;
select enter('erased_columns', 'clerk') /* $1 */;
select custody.put_profile(u, jsonb_build_object('full_name', 'Name of ' || u, 'email', 'ada@example.org', 'phone', '+49 30 123456')), custody.put_preferences(u, '{}'), custody.save_conversation(u, 'c', '[{"role": "user", "text": "x"}]') from unnest(array['ada', 'bob']) u;
select custody.record_consent('ada', 'mail', true, '1', p_evidence => '{"form": 7}', p_consent_id => :'consent');
select custody.record_audit_event('phi.access', 'account', 'ada', p_personal => '{"note": "about ada"}', p_log_entry_id => :'event');
select custody.record_audit_event('phi.disclose', p_subject_user_id => 'bob', p_personal => '{"note": "about bob"}');
select custody.record_audit_event('phi.update', p_subject_user_id => 'ada');
select enter('erased_columns', 'ada') /* $1 */;
select custody.record_audit_event('account.login', p_personal => '{"note": "by ada"}');
select custody.record_audit_event('account.logout', p_subject_user_id => 'bob', p_personal => '{"note": "by ada about bob"}');
select set_config('testing.ada', identity('erased_columns', 'ada')::text, true), set_config('testing.request', request('erased_columns', 'ada')::text, true), set_config('testing.export', request('erased_columns', 'ada', 'export')::text, true);
-- Without the tenant's key: nobody needs it to erase.
set local session authorization custody_runner;
select custody.set_context('erased_columns', 'runner');
select is(custody.erase_subject(current_setting('testing.request')::uuid) -> 'keys_destroyed', '[1]', 'erased, with the data key');

set local session authorization custody_dpo;
select enter('erased_columns', 'dpo') /* $1 */;
select results_eq($$select e.action collate "default", e.personal, e.personal_erased from custody.audit_events(now() - interval '1 day', now() + interval '1 day') e where e.action ~ '^(phi|account.log)' order by 1$$,
  $$values ('account.login'::text, null::jsonb, true), ('account.logout', '{"note": "by ada about bob"}', false), ('phi.access', null, true), ('phi.disclose', '{"note": "about bob"}', false), ('phi.update', null, null)$$,
  'personal parts about the person, and of what the person did to nobody, are gone; another person''s and none are told from them');
select is(custody.audit_event(:'event') - array['occurred_at', 'recorded_at', 'actor', 'actor_id', 'subject_id'] @> '{"subject": null, "personal": null, "personal_erased": true}', true, 'of one event too');
select refuses($$select custody.export_subject('ada')$$, 'PC011', 'the person is unknown to an export');
select refuses($$select custody.export_items(current_setting('testing.export')::uuid)$$, 'PC021', 'and erased for one that was asked for');
set local session authorization custody_audit;
select enter('erased_columns', 'auditor') /* $1 */;
select is((select count(*) from custody.audit_events(now() - interval '1 day', now() + interval '1 day') e where e.personal is not null or e.personal_erased is not null), 0::bigint, 'auditors see neither');
set local session authorization custody_app;
select enter('erased_columns', 'clerk') /* $1 */;
select is(custody.get_profile('ada'), null, 'no profile');
select is(custody.get_preferences('ada'), null, 'no preferences');
select is(custody.get_conversation('ada', 'c'), null, 'no conversation');
select is_empty($$select custody.consent_history('ada')$$, 'no consents');
select results_eq($$select custody.find_subject('ada@example.org', '+49 30 123456')$$, array['bob'], 'the address and the number are the other''s alone');
select is((select c.evidence from custody.consents c where c.consent_id = :'consent'), null, 'the record that stays shows no evidence');
select is(custody.get_profile('bob') ->> 'full_name', 'Name of bob', 'another person''s opens');
-- The same ids again are those of somebody else.
select refuses($$select custody.record_consent('ada', 'mail', true, '1', p_evidence => '{"form": 7}', p_consent_id => '22222222-2222-4222-8222-222222222222')$$, 'PC010', 'the consent again');
select refuses($$select custody.record_audit_event('phi.access', 'account', 'ada', p_personal => '{"note": "about ada"}', p_log_entry_id => '11111111-1111-4111-8111-111111111111')$$, 'PC010', 'the event again');
-- The bytes are there: it is the key that is not.
reset session authorization;
select isnt((select c.evidence from custody_data.consent_records c where c.consent_id = :'consent'), null, 'evidence stays as bytes');
select is((select count(*) from events('erased_columns') e where e.personal is not null), 4::bigint, 'personal parts too');
select is((select count(*) from custody_keys.wrapped_keys w where w.identity_id = current_setting('testing.ada')::uuid), 0::bigint, 'no copy of the key is left');
select enter('erased_columns', 'superuser') /* $1 */;
select is((select custody_data.open_evidence(c) from custody_data.consent_records c where c.consent_id = :'consent'), null, 'a superuser opens nothing');
select is((select custody_data.open_personal(e) from events('erased_columns', 'phi.access') e), null, 'here neither');
-- A person who comes back has another key, which opens nothing of before.
set local session authorization custody_app;
select enter('erased_columns', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada again"}');
select is(custody.get_profile('ada') ->> 'full_name', 'Ada again', 'who comes back is somebody new');
select is((select c.evidence from custody.consents c where c.consent_id = :'consent'), null, 'with nothing of before');
select * from finish();
rollback;
