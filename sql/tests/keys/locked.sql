-- While a transaction is locked nothing personal is read and nothing that would have to be sealed is stored; what says nothing
-- about a person beyond the rest of the row needs no key.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('locked');
set local session authorization custody_app;
select enter('locked', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada", "email": "ada@example.org"}'), custody.put_profile('eve', '{}'), custody.put_preferences('ada', '{"a": 1}'), custody.save_conversation('ada', 'c', '[{"role": "user", "text": "x"}]', 'T');
select custody.record_consent('ada', 'mail', true, '1', p_evidence => '{"form": 7}');
select set_config('testing.event', custody.record_audit_event('phi.access', 'account', 'ada', p_personal => '{"ip": "::1"}')::text, true);
set local session authorization custody_dpo;
select enter('locked', 'dpo') /* $1 */;
select set_config('testing.export', request('locked', 'ada', 'export')::text, true), set_config('testing.request', request('locked', 'ada')::text, true);
create function pg_temp.counted() returns text language sql security definer as $$
  select string_agg(format('%s %s', t.name, testing.rows_of('locked', t.name)), ', ' order by t.name) from testing.tables t where exists (
    select from pg_attribute a where a.attrelid = t.oid and a.attname = 'tenant_id' and not a.attisdropped) $$;
select set_config('testing.before', pg_temp.counted(), true);

set local session authorization custody_app;
select custody.set_context('locked', 'clerk');
select refuses($$select custody.put_profile('ada', '{"full_name": "Other"}')$$, 'PC033', 'a profile put');
select refuses($$select custody.put_profile('new', '{"full_name": "Other"}')$$, 'PC033', 'that of somebody new');
select refuses($$select custody.put_profile('new', '{}')$$, 'PC033', 'an empty one');
select refuses($$select custody.patch_profile('ada', '{"full_name": "Other"}')$$, 'PC033', 'a profile patched');
select refuses($$select custody.patch_profile('eve', '{"full_name": "Other"}')$$, 'PC033', 'an empty one');
select refuses($$select custody.get_profile('ada')$$, 'PC033', 'a profile read');
select refuses($$select custody.find_subject('ada@example.org')$$, 'PC033', 'somebody found by e-mail');
select refuses($$select custody.find_subject(p_phone => '+4930123456')$$, 'PC033', 'by telephone number');
select refuses($$select custody.put_preferences('ada', '{"a": 2}')$$, 'PC033', 'preferences put');
select refuses($$select custody.put_preferences('new', '{}')$$, 'PC033', 'those of somebody new');
select refuses($$select custody.patch_preferences('ada', '{"a": 2}')$$, 'PC033', 'preferences patched');
select refuses($$select custody.get_preferences('ada')$$, 'PC033', 'preferences read');
select refuses($$select custody.record_consent('ada', 'post', true, '1', p_evidence => '{"form": 8}')$$, 'PC033', 'a consent with evidence');
select refuses($$select custody.record_consent('new', 'post', true, '1', p_evidence => 'null')$$, 'PC033', 'evidence that is JSON null');
select refuses($$select custody.current_consents('ada')$$, 'PC033', 'consents with evidence');
select refuses($$select custody.consent_history('ada')$$, 'PC033', 'their history');
select refuses($$select custody.save_conversation('ada', 'c', '[{"role": "user", "text": "y"}]')$$, 'PC033', 'a conversation saved');
select refuses($$select custody.save_conversation('new', null, '[{"role": "user", "text": "y"}]')$$, 'PC033', 'a new one');
select refuses($$select custody.append_message('ada', 'c', '{"role": "user", "text": "y"}')$$, 'PC033', 'a message appended');
select refuses($$select custody.update_conversation('ada', 'c', 'U')$$, 'PC033', 'a title set');
select refuses($$select custody.update_conversation('ada', 'c', null)$$, 'PC033', 'or emptied');
select refuses($$select custody.get_conversation('ada', 'c')$$, 'PC033', 'a conversation read');
select refuses($$select custody.list_conversations('ada')$$, 'PC033', 'titles listed');
select refuses($$select custody.record_audit_event('account.login', p_subject_user_id => 'new', p_personal => '{"ip": "::1"}')$$, 'PC033', 'an event with a personal part');
select refuses($$select custody.record_audit_events('[{"action": "account.login"}, {"action": "account.login", "personal": {"ip": "::1"}}]')$$, 'PC033', 'among others');
-- What is past them.
select refuses($$select p.* from custody_data.user_profiles p where custody_data.open_profile(p) is not null$$, 'PC033', 'the helper of the readers');
select refuses($$select c.evidence from custody.consents c$$, 'PC033', 'the view of consents');
select refuses($$select s.title from custody.conversation_summaries s$$, 'PC033', 'the view of conversations');

set local session authorization custody_dpo;
select custody.set_context('locked', 'dpo');
select refuses($$select custody.audit_events(now() - interval '1 day', now() + interval '1 day')$$, 'PC033', 'personal parts of events');
select refuses($$select custody.audit_event(current_setting('testing.event')::uuid)$$, 'PC033', 'that of one');
select refuses($$select custody.export_subject('ada')$$, 'PC033', 'an export');
select refuses($$select custody.export_items(current_setting('testing.export')::uuid)$$, 'PC033', 'item by item');

set local session authorization custody_runner;
select custody.set_context('locked', 'runner');
select refuses($$select custody_data.blind_indexes('email', 'ada@example.org')$$, 'PC033', 'an index computed');
select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id, full_name) values (1, 'new', 'New');
select refuses($$select custody.import_profiles()$$, 'PC033', 'profiles imported');
select custody.prepare_import('user_preferences');
insert into pg_temp.staged_user_preferences values (1, 'new', '{}');
select refuses($$select custody.import_preferences()$$, 'PC033', 'preferences imported');
select refuses($$select custody.claim_data_keys('{}')$$, 'PC033', 'keys claimed, as an import of conversations begins');
select custody.prepare_import('consent_records');
insert into pg_temp.staged_consent_records values (1, null, 'new', 'mail', true, '1', 'consent', '{"form": 7}', now());
select refuses($$select custody.import_consents()$$, 'PC033', 'evidence imported');
select custody.prepare_import('audit_logs');
insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), now(), 'new', null, 'account.login', null, null, 'success', null, '{}', '{"ip": "::1"}');
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC033', 'personal parts imported');
select is(pg_temp.counted(), current_setting('testing.before'), 'nothing of it is stored');
select is(identity('locked', 'new'), null, 'and nobody became known');

-- What needs no key.
update pg_temp.staged_audit_logs set personal = null;
select lives_ok($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'events without a personal part are imported');
select custody.prepare_import('consent_records');
insert into pg_temp.staged_consent_records values (1, null, 'new', 'mail', true, '1', 'consent', null, now());
select lives_ok($$select custody.import_consents()$$, 'consents without evidence, too');
set local session authorization custody_app;
select custody.set_context('locked', 'clerk');
select is(custody.get_profile('nobody'), null, 'the unknown have no profile');
select is(custody.get_profile('eve') ->> 'full_name', null, 'what is empty is read');
select is(custody.has_consent('ada', 'mail'), true, 'whether there is a consent');
select lives_ok($$select custody.record_consent('ada', 'mail', false, '1')$$, 'a withdrawal without evidence');
select lives_ok($$select custody.record_audit_event('account.login', p_subject_user_id => 'ada')$$, 'an event without a personal part');
select is(custody.delete_conversation('ada', 'c'), true, 'a conversation deleted');
select is(custody.delete_preferences('ada'), true, 'preferences deleted');
select is(custody.delete_profile('ada'), true, 'a profile deleted');
set local session authorization custody_audit;
select custody.set_context('locked', 'auditor');
select isnt_empty($$select 1 from custody.audit_events(now() - interval '1 day', now() + interval '1 day') e where e.log_entry_id = current_setting('testing.event')::uuid and e.personal is null and e.personal_erased is null$$,
  'the trail is read by auditors, who are not shown personal parts');
select ok(not custody.audit_event(current_setting('testing.event')::uuid) ?| array['personal', 'personal_erased'], 'nor in one event');
set local session authorization custody_runner;
select custody.set_context('locked', 'runner');
select is(custody.erase_subject(current_setting('testing.request')::uuid) ->> 'status', 'complete', 'and a person erased');
select * from finish();
rollback;
