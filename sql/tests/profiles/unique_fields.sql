-- A tenant may want that no two of its people have the same e-mail address or telephone number: then nobody writes one that is
-- taken, whichever way it is written, and whoever has it may keep it.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('unique_fields'), tenant('unique_fields_2');
set local session authorization custody_app;
select enter('unique_fields_2', 'clerk') /* $1 */;
select custody.put_profile('other tenant', '{"email": "ada@example.org"}');
select enter('unique_fields', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"email": "Ada@example.org", "phone": "+49 30 123456"}'), custody.put_profile('eve', '{"email": " ada@EXAMPLE.org", "phone": "0049 30 123456"}'), custody.put_profile('bob', '{"email": "bob@example.org"}'), custody.put_profile('none', '{}'), custody.put_profile('none 2', '{}');

select refuses($$select custody.set_unique_fields('{email}')$$, 'PC038', 'two have the same address');
select refuses($$select custody.set_unique_fields('{phone}')$$, 'PC038', 'or number');
select refuses($$select custody.set_unique_fields('{phone,email}')$$, 'PC038', 'or both');
select refuses(format('select custody.set_unique_fields(%s)', f), 'PC023', f) from unnest(array['null', '''{full_name}''', '''{email,city}''', '''{null}''', '''{email,null}''', '''{Email}''']) f;
select is((select t.unique_fields from custody_data.tenants t where t.tenant_id = 'unique_fields'), '{}', 'nothing is set');
select custody.patch_profile('eve', '{"email": "eve@example.org"}');
select is(custody.set_unique_fields('{email,email}'), array['email'], 'now it can be');
select is((last_event('unique_fields', 'tenant.configure')).metadata, '{"unique_fields": ["email"]}', 'that is an event');
select is(custody.set_unique_fields('{email}'), array['email'], 'said again');
select is((select count(*) from events('unique_fields', 'tenant.configure')), 1::bigint, 'it is none');
select is((select t.unique_fields from custody_data.tenants t where t.tenant_id = 'unique_fields'), array['email'], 'it is set');

select refuses(format('select custody.put_profile(''bob'', jsonb_build_object(''email'', %L))', e), 'PC038', format('put by somebody else: %s', e)) from unnest(array['Ada@example.org', 'ada@example.org', '  ADA@EXAMPLE.ORG  ', U&'\FF21da@example.org']) e;
select refuses($$select custody.put_profile('bob', '{"email": "ada@example.org"}')$$, 'PC038', 'put');
select refuses($$select custody.put_profile('new', '{"email": "ada@example.org"}')$$, 'PC038', 'put by somebody new');
select is(identity('unique_fields', 'new'), null, 'who does not become known');
select refuses($$select custody.patch_profile('bob', '{"email": "ADA@example.org"}')$$, 'PC038', 'patched');
select refuses($$select custody.patch_profile('none', '{"email": "ADA@example.org"}')$$, 'PC038', 'patched where there was none');
select is(custody.get_profile('bob') ->> 'email', 'bob@example.org', 'nothing of it is stored');
select is(custody.put_profile('ada', '{"email": "Ada@example.org", "phone": "+49 30 123456", "city": "London"}'), 2, 'the one who has it keeps it');
select is(custody.patch_profile('ada', '{"email": "ADA@example.org"}'), 3, 'written otherwise, too');
select is(custody.patch_profile('ada', '{"city": "Rome"}'), 4, 'and changes what else there is');
select is(custody.put_profile('third', '{"phone": "+49 30 123456"}'), 1, 'another field is as free as it was');
select is(custody.put_profile('none 3', '{"email": "  "}'), 1, 'nothing is nobody''s');
select is(custody.put_profile('none 4', '{"email": ""}'), 1, 'and may be so twice');

-- Under a context that is confined to one person others are not seen, but stand in the way.
select enter('unique_fields', 'bob', null, 'bob') /* $1 */;
select is((select count(*) from custody_data.user_profiles), 1::bigint, 'confined');
select refuses($$select custody.patch_profile('bob', '{"email": "ada@example.org"}')$$, 'PC038', 'taken, in a context of one person');
select refuses($$select custody.put_profile('bob', '{"email": "ada@example.org"}')$$, 'PC038', 'put there');
select is(custody.patch_profile('bob', '{"email": "Bob@example.org"}'), 2, 'one''s own');
select is((select count(*) from custody_data.user_profiles), 1::bigint, 'and it is confined as before');
select is(custody.current_subject(), 'bob', 'to the same person');
select refuses($$select custody.set_unique_fields('{}')$$, 'PC015', 'which cannot change the rule');

-- What is given up is free.
select enter('unique_fields', 'clerk') /* $1 */;
select custody.patch_profile('ada', '{"email": "ada2@example.org"}');
select is(custody.patch_profile('bob', '{"email": "ada@example.org"}'), 3, 'an address that another has given up');
select refuses($$select custody.patch_profile('ada', '{"email": "ada@example.org"}')$$, 'PC038', 'is taken then');
select custody.delete_profile('bob');
select is(custody.patch_profile('ada', '{"email": "ada@example.org"}') > 4, true, 'one of a deleted profile is free');
select set_config('testing.request', request('unique_fields', 'ada')::text, true);
set local session authorization custody_runner;
select enter('unique_fields', 'runner') /* $1 */;
select custody.erase_subject(current_setting('testing.request')::uuid);
set local session authorization custody_app;
select enter('unique_fields', 'clerk') /* $1 */;
select is(custody.put_profile('bob', '{"email": "ada@example.org"}'), 1, 'so is one of the erased');
select is(custody.put_profile('ada', '{"email": "third@example.org"}'), 1, 'who may come back with another');
select enter('unique_fields_2', 'clerk') /* $1 */;
select is(custody.put_profile('somebody', '{"email": "ada@example.org"}'), 1, 'in another tenant nothing is taken');

-- Imports.
set local session authorization custody_runner;
select enter('unique_fields', 'runner') /* $1 */;
select custody.prepare_import('user_profiles');
create function pg_temp.stage() returns void language sql as $$
  delete from pg_temp.staged_user_profiles;
  delete from pg_temp.import_refusals;
  insert into pg_temp.staged_user_profiles (line, user_id, email, phone) values (1, 'bob', 'ADA@example.org', null), (2, 'i1', 'ada@example.org', null), (3, 'i2', 'i2@example.org', '+49 30 1'), (4, 'i3', ' I2@example.org', '+49 30 1'),
    (5, 'i4', null, '+49 30 123456'), (6, 'i5', '', null), (7, 'i6', ' ', null);
$$;
select pg_temp.stage();
select refuses($$select custody.import_profiles()$$, 'PC038', 'an address that another person has');
select pg_temp.stage();
select is(custody.import_profiles(true), '{"added": 4, "changed": 1, "unchanged": 0, "refused": 2}', 'or the others');
select results_eq($$select r.line, r.code, r.field from pg_temp.import_refusals r order by 1$$, $$values (2::bigint, 'PC038'::text, 'email'::text), (4, 'PC038', 'email')$$, 'than in a profile or on an earlier line');
select is(custody.get_profile('bob') ->> 'email', 'ADA@example.org', 'a person''s own address is not refused');
select is(identity('unique_fields', 'i1'), null, 'who was refused is not known');
select custody.prepare_import('user_profiles');
select pg_temp.stage();
select is(custody.import_profiles(true), '{"added": 0, "changed": 0, "unchanged": 5, "refused": 2}', 'the same file again changes nothing');
select is(custody.set_unique_fields('{}'), '{}', 'the rule is lifted');
select custody.prepare_import('user_profiles');
select pg_temp.stage();
select is(custody.import_profiles(), '{"added": 2, "changed": 0, "unchanged": 5, "refused": 0}', 'and nothing is refused');
select refuses($$select custody.set_unique_fields('{email}')$$, 'PC038', 'and cannot come back before that is put right');
-- It needs no key.
select custody.set_context('unique_fields', 'runner');
select refuses($$select custody.set_unique_fields('{phone}')$$, 'PC038', 'without the key the same is seen');
reset session authorization;
select is((select t.unique_fields from custody_data.tenants t where t.tenant_id = 'unique_fields_2'), '{}', 'another tenant has no such rule');

-- Telephone numbers, and both.
set local session authorization custody_app;
select enter('unique_fields_2', 'clerk') /* $1 */;
select custody.delete_profile('somebody'), custody.put_profile('p1', '{"email": "p1@example.org", "phone": "+49 30 123456"}');
select is(custody.set_unique_fields('{phone,email}'), array['email', 'phone'], 'both');
select refuses($$select custody.put_profile('p2', '{"email": "p2@example.org", "phone": "0049 (0)30 123-456"}')$$, 'PC038', 'a number that is taken');
select refuses($$select custody.put_profile('p2', '{"email": "P1@example.org", "phone": "+49 30 1"}')$$, 'PC038', 'or an address');
select refuses($$select custody.patch_profile('other tenant', '{"phone": "+49 30 123456"}')$$, 'PC038', 'patched');
select is(custody.put_profile('p2', '{"email": "p2@example.org", "phone": "030 123456"}'), 1, 'a number that does not say its country is another one');
set local session authorization custody_runner;
select enter('unique_fields_2', 'runner') /* $1 */;
select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id, email, phone) values (1, 'p1', 'p1@example.org', '0049 30 123456'), (2, 'i1', 'i1@example.org', '+49 30 12 34 56'), (3, 'i2', 'p2@example.org', '030/123456'), (4, 'i3', 'i3@example.org', '+49 30 3');
select is(custody.import_profiles(true), '{"added": 1, "changed": 1, "unchanged": 0, "refused": 2}', 'an import, too');
select results_eq($$select r.line, r.code, r.field from pg_temp.import_refusals r order by 1, 3$$, $$values (2::bigint, 'PC038'::text, 'phone'::text), (3, 'PC038', 'email'), (3, 'PC038', 'phone')$$, 'by each field that is taken');
select * from finish();
rollback;
