-- What is personal is stored sealed for its place: it comes back as it was given, stands nowhere as text, and does not open in
-- another place, altered, or under another tenant's key.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('columns'), tenant('columns_2');
-- Where a text stands in the tables of the schemas, as it is or in lower case.
create function pg_temp.stands(p_text text) returns text[] language plpgsql security definer as $$
declare
  v_column record;
  v_found boolean;
  v_all text[] := '{}';
begin
  for v_column in
    select c.oid::regclass as relation, a.attname, a.atttypid in ('bytea'::regtype, 'custody_data.sealed_value'::regtype) as is_bytes
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace in ('custody_data'::regnamespace, 'custody_keys'::regnamespace) and c.relkind = 'r'
    order by 1, 2
  loop
    execute format(case when v_column.is_bytes
      then 'select exists (select from %1$s t where position(convert_to($1, ''UTF8'') in t.%2$I::bytea) > 0 or position(convert_to(lower($1), ''UTF8'') in t.%2$I::bytea) > 0)'
      else 'select exists (select from %1$s t where position(lower($1) in lower(t.%2$I::text)) > 0)' end, v_column.relation, v_column.attname)
    into v_found using p_text;
    if v_found then
      v_all := v_all || format('%s.%s', v_column.relation, v_column.attname);
    end if;
  end loop;
  return v_all;
end
$$;

-- Round trip.
\set profile '{"full_name": "Planted Name", "email": "Planted@Example.org", "phone": "+49 30 4711 0815", "organisation": "Planted Organisation", "title": "Planted Title", "address": "Planted Street 1\\n2nd floor", "city": "Planted City", "region": "Planted Region", "postal_code": "P-4711", "country": "Plantedland ß 🙂", "attributes": {"planted": ["Planted Attribute", null, 1.50]}}'
set local session authorization custody_app;
select enter('columns', 'clerk') /* $1 */;
select is(custody.put_profile('ada', :'profile'), 1, 'a profile');
select is(custody.get_profile('ada') - array['user_id', 'version', 'created_at', 'updated_at'], :'profile'::jsonb, 'comes back as it was put');
select is(custody.put_preferences('ada', '{"theme": "Planted Theme", "n": [1, null]}'), 1, 'preferences');
select is(custody.get_preferences('ada'), '{"theme": "Planted Theme", "n": [1, null]}', 'come back');
select set_config('testing.consent', custody.record_consent('ada', 'mail', true, '1', p_evidence => '{"form": "Planted Evidence"}')::text, true);
select is((select c.evidence from custody.current_consents('ada') c), '{"form": "Planted Evidence"}', 'evidence comes back');
select is((select c.evidence from custody.consent_history('ada') c), '{"form": "Planted Evidence"}', 'in the history too');
select custody.save_conversation('ada', 'c', '[{"role": "user", "text": "Planted Message", "at": "2026-01-01T00:00:00Z"}]', 'Planted Subject');
select custody.append_message('ada', 'c', '{"role": "bot", "text": "Planted Answer", "at": "2026-01-01T00:00:01Z"}');
select is(custody.get_conversation('ada', 'c') -> 'messages', '[{"role": "user", "text": "Planted Message", "at": "2026-01-01T00:00:00Z"}, {"role": "bot", "text": "Planted Answer", "at": "2026-01-01T00:00:01Z"}]', 'messages come back');
select is(custody.get_conversation('ada', 'c') ->> 'title', 'Planted Subject', 'and the title');
select is((select s.title from custody.list_conversations('ada') s), 'Planted Subject', 'which is listed');
select set_config('testing.event', custody.record_audit_event('phi.access', 'account', 'ada', p_personal => '{"note": "Planted Note"}')::text, true);
select set_config('testing.event_2', custody.record_audit_event('account.login', p_personal => '{"note": "Planted Login"}')::text, true);
set local session authorization custody_dpo;
select enter('columns', 'dpo') /* $1 */;
select results_eq($$select e.action collate "default", e.personal, e.personal_erased from custody.audit_events(now() - interval '1 day', now() + interval '1 day') e where e.personal_erased is not null order by 1$$,
  $$values ('account.login'::text, '{"note": "Planted Login"}'::jsonb, false), ('phi.access', '{"note": "Planted Note"}', false)$$, 'personal parts come back, that of an event without a subject too');
select is(custody.audit_event(current_setting('testing.event')::uuid) -> 'personal', '{"note": "Planted Note"}', 'one by one');
select is((select count(distinct p) from regexp_matches(custody.export_subject('ada')::text, 'Planted[ @][A-Za-z]+', 'g') p), 14::bigint, 'an export has all of it, and nothing of the event that is about nobody');
-- An import seals as the functions do.
set local session authorization custody_runner;
select enter('columns', 'runner') /* $1 */;
select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id, full_name, email, attributes) values (1, 'importee', 'Planted Import', 'planted.import@example.org', '{"a": "Planted Import"}');
select custody.import_profiles();
select custody.prepare_import('user_preferences');
insert into pg_temp.staged_user_preferences values (1, 'importee', '{"a": "Planted Import"}');
select custody.import_preferences();
select custody.prepare_import('consent_records');
insert into pg_temp.staged_consent_records values (1, null, 'importee', 'mail', true, '1', 'consent', '{"form": "Planted Import"}', now());
select custody.import_consents();
select custody.prepare_import('conversations');
insert into pg_temp.staged_conversations
select 1, i.identity_id, 'c', custody.seal_value(i.identity_id, 'conversations', 'title', 'c', 'Planted Import'),
  custody.seal_value(i.identity_id, 'conversations', 'messages', 'c', '[{"at": "2026-01-01T00:00:00Z", "role": "user", "text": "Planted Import"}]'), 1, '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00'
from custody_data.claim_identities(array['importee']) i;
select custody.import_conversations();
select custody.prepare_import('audit_logs');
insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), now() - interval '1 minute', 'clerk', 'importee', 'account.logout', null, null, 'success', null, '{}', '{"note": "Planted Import"}');
select custody.import_audit_events(gen_random_uuid(), sha256('x'));
select is(custody.get_profile('importee') ->> 'full_name', 'Planted Import', 'an imported profile');
select is(custody.get_preferences('importee'), '{"a": "Planted Import"}', 'preferences');
select is((select c.evidence from custody.current_consents('importee') c), '{"form": "Planted Import"}', 'evidence');
select is(custody.get_conversation('importee', 'c') #>> '{messages,0,text}', 'Planted Import', 'a conversation');
select is((select custody_data.open_personal(e) from events('columns', 'account.logout') e), '{"note": "Planted Import"}', 'a personal part');

reset session authorization;
select is(pg_temp.stands(t), '{}', format('%s stands nowhere', t)) from unnest(array['Planted', 'P-4711', '4711 0815', '493047110815', 'planted@example.org', 'ß 🙂']) t;
select is(pg_temp.stands('Importee'), array['custody_data.identities.user_id'], 'the search finds what is there');

-- An event of a change names what changed, and nothing else.
create function pg_temp.columns_of(p_table text) returns jsonb language sql as $$
  select e.metadata -> 'columns' from testing.events('columns', 'record.update') e where e.resource_type = p_table order by e.recorded_at desc, e.log_entry_id desc limit 1 $$;
set local session authorization custody_app;
select enter('columns', 'clerk') /* $1 */;
select custody.put_profile('ada', :'profile');
select is(pg_temp.columns_of('user_profiles'), '[]', 'a profile put as it was');
select custody.patch_profile('ada', '{"city": "Other City"}');
select is(pg_temp.columns_of('user_profiles'), '["city"]', 'one field patched');
select custody.patch_profile('ada', '{"attributes": {"planted": null}, "region": null}');
select is(pg_temp.columns_of('user_profiles'), '["attributes", "region"]', 'two others, of which one is emptied');
select custody.patch_profile('ada', '{"email": "PLANTED@example.org", "phone": "0049 (30) 4711-0815"}');
select is(pg_temp.columns_of('user_profiles'), '["email", "phone"]', 'the same address and number, written otherwise: their indexes stay');
select custody.patch_profile('ada', '{"email": "other@example.org", "phone": null}');
select is(pg_temp.columns_of('user_profiles'), '["email", "email_index", "phone", "phone_index"]', 'others change their indexes');
select custody.put_profile('ada', :'profile');
select is(pg_temp.columns_of('user_profiles'), '["attributes", "city", "email", "email_index", "phone", "phone_index", "region"]', 'a profile put with what had changed');
select custody.put_preferences('ada', '{"n": [1, null], "theme": "Planted Theme"}');
select is(pg_temp.columns_of('user_preferences'), '[]', 'preferences put as they were');
select custody.patch_preferences('ada', '{}');
select is(pg_temp.columns_of('user_preferences'), '[]', 'patched with nothing');
select custody.patch_preferences('ada', '{"theme": "Planted Other"}');
select is(pg_temp.columns_of('user_preferences'), '["preferences"]', 'or with something');
select custody.update_conversation('ada', 'c', 'Planted Subject');
select is(pg_temp.columns_of('conversations'), '[]', 'a title set as it was');
select custody.save_conversation('ada', 'c', custody.get_conversation('ada', 'c') -> 'messages', 'Planted Subject 2');
select is(pg_temp.columns_of('conversations'), '["title"]', 'another title, the same messages');
select custody.save_conversation('ada', 'c', custody.get_conversation('ada', 'c') -> 'messages');
select is(pg_temp.columns_of('conversations'), '["title"]', 'no title');
select is(custody.get_conversation('ada', 'c') -> 'title', 'null', 'which is gone');
select custody.save_conversation('ada', 'c', '[{"role": "user", "text": "Planted Message", "at": "2026-01-01T00:00:00Z"}, {"role": "bot", "text": "x", "at": "2026-01-01T00:00:01Z"}]');
select is(pg_temp.columns_of('conversations'), '["messages"]', 'another message');

-- Bytes that are somewhere else, or altered. What does so is a superuser's doing; whoever reads is told.
select custody.put_profile(u, jsonb_build_object('full_name', 'Name of ' || u, 'title', 'Title of ' || u)), custody.put_preferences(u, '{"a": 1}'),
  custody.save_conversation(u, 'c', '[{"role": "user", "text": "x"}]', 'T'), custody.save_conversation(u, 'd', '[{"role": "user", "text": "x"}]', 'T')
from unnest(array['bob', 'person', 'column', 'tenant', 'flipped', 'tag', 'version', 'cut']) u;
select enter('columns_2', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada"}'), custody.put_preferences('ada', '{}'), custody.save_conversation('ada', 'c', '[{"role": "user", "text": "x"}]', 'T');
reset session authorization;
select enter('columns', 'superuser') /* $1 */;
create function pg_temp.id(p_user text, p_tenant text default 'columns') returns uuid language sql as $$ select testing.identity(p_tenant, p_user) $$;
update custody_data.user_profiles p set full_name = o.full_name from custody_data.user_profiles o where p.identity_id = pg_temp.id('person') and o.identity_id = pg_temp.id('bob');
update custody_data.user_profiles p set full_name = p.title where p.identity_id = pg_temp.id('column');
update custody_data.user_profiles p set full_name = o.full_name from custody_data.user_profiles o where p.identity_id = pg_temp.id('tenant') and o.identity_id = pg_temp.id('ada', 'columns_2');
update custody_data.user_profiles p set full_name = set_byte(p.full_name, 24, get_byte(p.full_name, 24) # 1) where p.identity_id = pg_temp.id('flipped');
update custody_data.user_profiles p set full_name = set_byte(p.full_name, octet_length(p.full_name) - 1, get_byte(p.full_name, octet_length(p.full_name) - 1) # 128) where p.identity_id = pg_temp.id('tag');
update custody_data.user_profiles p set full_name = set_byte(p.full_name, 4, 9) where p.identity_id = pg_temp.id('version');
update custody_data.user_profiles p set full_name = substr(p.full_name || p.full_name, 1, octet_length(p.full_name) + 16) where p.identity_id = pg_temp.id('cut');
update custody_data.user_preferences p set preferences = o.preferences from custody_data.user_preferences o where p.identity_id = pg_temp.id('person') and o.identity_id = pg_temp.id('bob');
update custody_data.user_preferences p set preferences = o.full_name from custody_data.user_profiles o where p.identity_id = pg_temp.id('column') and o.identity_id = p.identity_id;
update custody_data.user_preferences p set preferences = o.preferences from custody_data.user_preferences o where p.identity_id = pg_temp.id('tenant') and o.identity_id = pg_temp.id('ada', 'columns_2');
update custody_data.user_preferences p set preferences = set_byte(p.preferences, 24, get_byte(p.preferences, 24) # 1) where p.identity_id = pg_temp.id('flipped');
update custody_data.conversations c set messages = o.messages from custody_data.conversations o where c.identity_id = pg_temp.id('person') and c.conversation_id = 'c' and o.identity_id = pg_temp.id('bob') and o.conversation_id = 'c';
update custody_data.conversations c set title = c.messages where c.identity_id = pg_temp.id('column') and c.conversation_id = 'c';
update custody_data.conversations c set messages = o.messages from custody_data.conversations o where c.identity_id = pg_temp.id('cut') and c.conversation_id = 'c' and o.identity_id = c.identity_id and o.conversation_id = 'd';
update custody_data.conversations c set title = o.title from custody_data.conversations o where c.identity_id = pg_temp.id('tenant') and c.conversation_id = 'c' and o.identity_id = pg_temp.id('ada', 'columns_2');
update custody_data.conversations c set title = set_byte(c.title, 24, get_byte(c.title, 24) # 1) where c.identity_id = pg_temp.id('flipped') and c.conversation_id = 'c';
insert into custody_data.consent_records (tenant_id, consent_id, identity_id, purpose, granted, policy_version, legal_basis, evidence, occurred_at)
select c.tenant_id, case v.u when 'flipped' then '33333333-3333-4333-8333-333333333333'::uuid else gen_random_uuid() end, pg_temp.id(v.u), 'copied', true, '1', 'consent', case v.u when 'flipped' then set_byte(c.evidence, 24, get_byte(c.evidence, 24) # 1) else c.evidence end, now()
from custody_data.consent_records c, (values ('ada'), ('bob'), ('flipped')) v (u) where c.consent_id = current_setting('testing.consent')::uuid;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, personal)
select 'columns', v.id::uuid, now(), a.actor_id, a.subject_id, 'account.login', a.personal
from events('columns') a, (values ('11111111-1111-4111-8111-111111111111')) v (id) where a.log_entry_id = current_setting('testing.event')::uuid;
insert into custody_data.audit_entry_ids (tenant_id, log_entry_id, occurred_at, content)
select a.tenant_id, a.log_entry_id, a.occurred_at, custody_data.event_content(null, a.actor_id, a.subject_id, 'account.login', null, null, 'success', '{}', true) from events('columns') a where a.log_entry_id = '11111111-1111-4111-8111-111111111111';

set local session authorization custody_app;
select enter('columns', 'clerk') /* $1 */;
select refuses(format($$select custody.get_profile(%L)$$, u), 'PC035', format('profile: %s', u)) from unnest(array['person', 'column', 'tenant', 'flipped', 'tag', 'version', 'cut']) u;
select refuses(format($$select custody.patch_profile(%L, '{"city": "x"}')$$, u), 'PC035', format('profile patched: %s', u)) from unnest(array['person', 'flipped']) u;
select refuses(format($$select custody.get_preferences(%L)$$, u), 'PC035', format('preferences: %s', u)) from unnest(array['person', 'column', 'tenant', 'flipped']) u;
select refuses(format($$select custody.get_conversation(%L, 'c')$$, u), 'PC035', format('conversation: %s', u)) from unnest(array['person', 'column', 'cut', 'tenant', 'flipped']) u;
select refuses(format($$select custody.list_conversations(%L)$$, u), 'PC035', format('titles: %s', u)) from unnest(array['column', 'tenant', 'flipped']) u;
select refuses(format($$select custody.current_consents(%L)$$, u), 'PC035', format('evidence: %s', u)) from unnest(array['ada', 'bob', 'flipped']) u;
select refuses(format($$select custody.consent_history(%L)$$, u), 'PC035', format('evidence in the history: %s', u)) from unnest(array['ada', 'bob', 'flipped']) u;
select is(custody.get_profile('bob') ->> 'full_name', 'Name of bob', 'what nobody touched opens');
-- What changes a part of it has to read it; a whole is put in its place.
select refuses($$select custody.patch_preferences('flipped', '{}')$$, 'PC035', 'preferences patched');
select refuses($$select custody.append_message('person', 'c', '{"role": "user", "text": "x"}')$$, 'PC035', 'a message after it');
savepoint replaced;
select lives_ok($$select custody.put_profile('flipped', '{"full_name": "Anew"}')$$, 'a profile put over it');
select is(custody.get_profile('flipped') ->> 'full_name', 'Anew', 'is whole again');
select lives_ok($$select custody.put_preferences('flipped', '{}')$$, 'preferences too');
select lives_ok($$select custody.update_conversation('flipped', 'c', 'x')$$, 'a title');
select is(custody.get_conversation('flipped', 'c') ->> 'title', 'x', 'which opens');
select lives_ok($$select custody.save_conversation('flipped', 'c', '[{"role": "user", "text": "x"}]')$$, 'a conversation');
select is(custody.get_conversation('flipped', 'c') -> 'messages' -> 0 ->> 'text', 'x', 'all of it');
rollback to replaced;
select refuses($$select custody.record_consent('flipped', 'copied', true, '1', p_evidence => '{"form": "Planted Evidence"}', p_consent_id => '33333333-3333-4333-8333-333333333333')$$, 'PC035', 'evidence that is compared with it');
select refuses($$select custody.record_audit_event('account.login', p_subject_user_id => 'ada', p_log_entry_id => '11111111-1111-4111-8111-111111111111', p_personal => '{"note": "x"}')$$, 'PC035', 'a personal part that is compared with it');
set local session authorization custody_dpo;
select enter('columns', 'dpo') /* $1 */;
select refuses($$select custody.audit_event('11111111-1111-4111-8111-111111111111')$$, 'PC035', 'the personal part of another event');
select refuses($$select custody.audit_events(now() - interval '1 day', now() + interval '1 day', 'ada')$$, 'PC035', 'in the list');
select refuses(format($$select custody.export_subject(%L)$$, u), 'PC035', format('an export: %s', u)) from unnest(array['person', 'flipped']) u;
select set_config('testing.export', request('columns', 'flipped', 'export')::text, true);
select refuses($$select custody.export_items(current_setting('testing.export')::uuid)$$, 'PC035', 'and item by item');

-- An erasure that would search for what stands there is refused while unlocked, and carried out while locked.
select set_config('testing.request', request('columns', 'flipped')::text, true);
select refuses($$select custody.plan_erasure('flipped')$$, 'PC035', 'a plan');
select refuses($$select custody.search_residue(current_setting('testing.request')::uuid)$$, 'PC035', 'a search');
select refuses($$select custody.verify_erasure(current_setting('testing.request')::uuid)$$, 'PC035', 'a verification');
select refuses($$select custody.erase_subject(current_setting('testing.request')::uuid)$$, 'PC035', 'an erasure');
select custody.set_context('columns', 'dpo');
select is(custody.erase_subject(current_setting('testing.request')::uuid) ->> 'status', 'complete', 'it is done while locked');
-- Imports open what they would replace.
set local session authorization custody_runner;
select enter('columns', 'runner') /* $1 */;
select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id, full_name) values (1, 'person', 'x');
select refuses($$select custody.import_profiles()$$, 'PC035', 'a profile imported over it');
select custody.prepare_import('user_preferences');
insert into pg_temp.staged_user_preferences values (1, 'person', '{}');
select refuses($$select custody.import_preferences()$$, 'PC035', 'preferences imported over it');
select custody.prepare_import('consent_records');
insert into pg_temp.staged_consent_records select 1, c.consent_id, 'bob', c.purpose, c.granted, c.policy_version, c.legal_basis, '{"form": 7}', c.occurred_at from custody_data.consent_records c where c.identity_id = pg_temp.id('bob');
select refuses($$select custody.import_consents()$$, 'PC035', 'evidence that is compared with it');
select custody.prepare_import('audit_logs');
insert into pg_temp.staged_audit_logs select 1, a.log_entry_id, a.occurred_at, 'clerk', 'ada', 'account.login', null, null, 'success', null, '{}', '{"note": "x"}' from events('columns') a where a.log_entry_id = '11111111-1111-4111-8111-111111111111';
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC035', 'a personal part that is compared with it');

-- In a context of one person nothing of another opens, whoever has kept its bytes.
set local session authorization custody_app;
select enter('columns', 'clerk') /* $1 */;
create temp table kept as select p.identity_id, p.full_name::bytea as v from custody_data.user_profiles p where p.identity_id = pg_temp.id('bob');
select is(custody_data.open_text(k.identity_id, 'user_profiles', 'full_name', k.identity_id::text, k.v), 'Name of bob', 'kept bytes open where everybody is seen') from kept k;
select enter('columns', 'clerk', null, 'ada') /* $1 */;
select refuses($$select custody_data.open_text(k.identity_id, 'user_profiles', 'full_name', k.identity_id::text, k.v) from kept k$$, 'PC015', 'not in a context of another person');
select refuses($$select custody_data.open_values(k.identity_id, 'user_profiles', k.identity_id::text, '{full_name}', array[k.v]) from kept k$$, 'PC015', 'nor a row of them');
select enter('columns', 'clerk', null, 'bob') /* $1 */;
select is(custody_data.open_text(k.identity_id, 'user_profiles', 'full_name', k.identity_id::text, k.v), 'Name of bob', 'in one of that person') from kept k;

-- Another tenant's key, forced upon the transaction, and another tenant's wrapped key.
set local session authorization custody_app;
select enter('columns', 'clerk') /* $1 */;
select refuses($$select testing.unlock('columns_2')$$, 'PC034', 'another tenant''s key is no key here, by $1');
select set_config('custody.kek', encode(kek('columns_2'), 'hex'), true);
select refuses($$select custody.get_profile('bob')$$, 'PC035', 'a profile under it');
select refuses($$select custody.put_profile('bob', '{"full_name": "x"}')$$, 'PC035', 'nor is anything sealed so that it says something else');
reset session authorization;
insert into custody_keys.data_keys (tenant_id, identity_id, key_version) values ('columns', pg_temp.id('bob'), 7);
insert into custody_keys.wrapped_keys select 'columns', pg_temp.id('bob'), 7, w.kek_version, w.wrapped from custody_keys.wrapped_keys w where w.tenant_id = 'columns_2' and w.identity_id = pg_temp.id('ada', 'columns_2');
set local session authorization custody_app;
select enter('columns', 'clerk') /* $1 */;
select refuses($$select custody.put_profile('bob', '{"full_name": "x"}')$$, 'PC035', 'a data key of another tenant');
select refuses($$select custody.put_preferences('bob', '{}')$$, 'PC035', 'under which no preferences are sealed');
select refuses($$select custody.save_conversation('bob', 'c', '[{"role": "user", "text": "x"}]')$$, 'PC035', 'nor a conversation');
select refuses($$select custody.update_conversation('bob', 'c', 'x')$$, 'PC035', 'nor a title');

-- The tables take nothing but sealed values.
set local session authorization custody_runner;
select enter('columns', 'runner') /* $1 */;
select refuses(format('update custody_data.%I set %I = convert_to(%L, %L) where identity_id = identity(%L, %L)', t, c, repeat('plain text ', 20), 'UTF8', 'columns', 'bob'), '23514', format('plain text in %s.%s', t, c))
from (values ('user_profiles', 'full_name'), ('user_profiles', 'email'), ('user_profiles', 'phone'), ('user_profiles', 'organisation'), ('user_profiles', 'title'), ('user_profiles', 'address'), ('user_profiles', 'city'),
  ('user_profiles', 'region'), ('user_profiles', 'postal_code'), ('user_profiles', 'country'), ('user_profiles', 'attributes'), ('user_preferences', 'preferences'), ('conversations', 'title'), ('conversations', 'messages')) v (t, c);
select refuses(format('insert into custody_data.user_profiles (tenant_id, identity_id, full_name) values (%L, identity(%L, %L), %L)', 'columns', 'columns', 'clerk', 'Ada Lovelace'), '23514', 'a plain name in a new profile');
select refuses(format('insert into custody_data.user_profiles (tenant_id, identity_id, full_name) values (%L, identity(%L, %L), %L)', 'columns', 'columns', 'clerk', substr(any_sealed(), 1, 68)), '23514', 'what is too short to be sealed');
select refuses(format('insert into custody_data.user_profiles (tenant_id, identity_id, email_index) values (%L, identity(%L, %L), %L)', 'columns', 'columns', 'clerk', 'ada@example.org'), '23514', 'a plain address for an index');
select refuses(format('insert into custody_data.consent_records (tenant_id, identity_id, purpose, granted, policy_version, legal_basis, evidence, occurred_at) values (%L, identity(%L, %L), %L, true, %L, %L, %L, now())', 'columns', 'columns', 'clerk', 'x', '1', 'consent', '{"form": 7}'), '23514', 'plain evidence');
select refuses(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, personal) values (%L, gen_random_uuid(), now(), identity(%L, %L), %L, %L)', 'columns', 'columns', 'clerk', 'account.login', '{"ip": 1}'), '23514', 'a plain personal part');
select * from finish();
rollback;
