-- Profiles and preferences are imported in one statement each: new people are added, what differs is replaced, what is equal is
-- left alone; repeated lines are told apart; nobody's file changes another tenant.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('import_profiles'), tenant('import_profiles_2');
set local session authorization custody_app;
select enter('import_profiles_2', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"city": "other tenant"}');
select enter('import_profiles', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada", "attributes": {"a": 1}}'), custody.put_profile('bob', '{"full_name": "Bob"}'), custody.put_preferences('ada', '{"a": 1}');
set local session authorization custody_runner;
select enter('import_profiles', 'runner', 'migration') /* $1 */;

select refuses($$select custody.import_profiles()$$, 'PC023', 'without preparing, profiles');
select refuses($$select custody.import_preferences()$$, 'PC023', 'without preparing, preferences');
select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id, full_name, city, attributes) values
  (1, 'ada', 'Ada', null, '{"a": 1}'), (2, 'bob', 'Bob', 'Paris', null), (3, 'cy', 'Cy', null, null), (4, 'cy', 'Cy', null, null);
select is(custody.import_profiles(), '{"added": 1, "changed": 1, "unchanged": 2, "refused": 0}', 'one is new, one differs, one is equal, one is on an earlier line');
select is(custody.get_profile('bob') ->> 'city', 'Paris', 'what differed is replaced');
select is((custody.get_profile('ada') ->> 'version')::int, 1, 'what is equal is left alone');
select results_eq($$select e.action collate "default", e.subject_id, e.purpose from events('import_profiles') e where e.actor_id = identity('import_profiles', 'runner') and e.action <> 'record.read' order by 1$$,
  $$values ('record.insert'::text, identity('import_profiles', 'cy'), 'migration'::text), ('record.update', identity('import_profiles', 'bob'), 'migration')$$, 'each person''s change is an event');

select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id, full_name) values (1, 'di', 'Di'), (2, 'di', 'Other Di'), (3, 'ed', 'Ed');
select refuses($$select custody.import_profiles()$$, 'PC028', 'two lines of a person that say different things');
select is(custody.import_profiles(true), '{"added": 2, "changed": 0, "unchanged": 0, "refused": 1}', 'or the others, without the second');
select results_eq($$select r.line, r.code, r.field from pg_temp.import_refusals r$$, $$values (2::bigint, 'PC028'::text, 'user_id'::text)$$, 'which is left out there with its reason');
select is(custody.get_profile('di') ->> 'full_name', 'Di', 'the first line counts');
select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id) values (1, repeat('x', 257));
select refuses($$select custody.import_profiles()$$, 'PC003', 'a user_id of 257 characters');

select custody.prepare_import('user_preferences');
insert into pg_temp.staged_user_preferences values (1, 'ada', '{"a": 1}'), (2, 'bob', '{"b": 1}'), (3, 'bob', '{"b": 1}');
select is(custody.import_preferences(), '{"added": 1, "changed": 0, "unchanged": 2, "refused": 0}', 'preferences');
select custody.prepare_import('user_preferences');
insert into pg_temp.staged_user_preferences values (1, 'ada', '{"a": 2}'), (2, 'eve', '{"b": 1}'), (3, 'eve', '{"b": 2}');
select refuses($$select custody.import_preferences()$$, 'PC028', 'two lines that say different things');
select is(custody.import_preferences(true), '{"added": 1, "changed": 1, "unchanged": 0, "refused": 1}', 'or the others');
select custody.prepare_import('user_preferences');
insert into pg_temp.staged_user_preferences values (1, ' ', '{}');
select refuses($$select custody.import_preferences()$$, 'PC003', 'a blank user_id');

select refuses($$select custody.prepare_import('requests')$$, 'PC023', 'a table that is not imported');
select refuses($$select custody.prepare_import(null)$$, 'PC023', 'no table');
select enter('import_profiles', 'runner', null, 'ada') /* $1 */;
select refuses($$select custody.prepare_import('user_profiles')$$, 'PC015', 'in a context of one person');
select enter('import_profiles_2', 'runner') /* $1 */;
select is(custody.get_profile('ada') ->> 'city', 'other tenant', 'another tenant''s profile is as it was');

-- The run of it is on record.
select enter('import_profiles', 'runner') /* $1 */;
select lives_ok($$select custody.finish_import('11111111-1111-4111-8111-111111111111', 'user_profiles', sha256('x'), 4, 1, 1, 0)$$, 'finish_import');
select row_eq($$select i.table_name, i.rows_read, i.rows_added, i.rows_changed, i.rows_rejected, i.imported_at from custody_data.imports i$$, row ('user_profiles'::text, 4::bigint, 1::bigint, 1::bigint, 0::bigint, now()), 'keeps what was counted');
select row_eq($$select e.result collate "default", e.resource_id collate "default", e.metadata - 'file_sha256' from last_event('import_profiles', 'record.import') e$$,
  row ('success'::text, '11111111-1111-4111-8111-111111111111'::text, '{"table": "user_profiles", "rows": 4, "rows_added": 1, "rows_changed": 1, "rows_rejected": 0, "import_id": "11111111-1111-4111-8111-111111111111"}'::jsonb), 'as an event');
select custody.finish_import('22222222-2222-4222-8222-222222222222', 'user_profiles', sha256('x'), 4, 1, 1, 2);
select is((last_event('import_profiles', 'record.import')).result, 'partial', 'one with rejected lines is partial');
select custody.refuse_import('conversations', 'PC028');
select row_eq($$select e.result collate "default", e.metadata from last_event('import_profiles', 'record.import') e$$, row ('failure'::text, '{"table": "conversations", "error_code": "PC028"}'::jsonb), 'one that failed is a failure');
select refuses($$select custody.finish_import(null, 'user_profiles', sha256('x'), 1, 1, 0, 0)$$, 'PC023', 'an import without an id');
select refuses($$select custody.finish_import(gen_random_uuid(), 'user_profiles', 'x', 1, 1, 0, 0)$$, 'PC023', 'without a digest');
select enter('import_profiles', 'runner', null, 'ada') /* $1 */;
select refuses($$select custody.finish_import(gen_random_uuid(), 'user_profiles', sha256('x'), 1, 1, 0, 0)$$, 'PC015', 'in a context of one person');
set local session authorization custody_app;
select enter('import_profiles', 'clerk') /* $1 */;
select refuses($$select custody.prepare_import('user_profiles')$$, '42501', 'applications import nothing');
select * from finish();
rollback;
