-- In a context with a subject only that person's profile and preferences are read and written.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('confined_profiles');
set local session authorization custody_app;
select enter('confined_profiles', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"city": "London"}');
select custody.put_profile('bob', '{"city": "Paris"}');
select custody.put_preferences('bob', '{"a": 1}');
select custody.put_profile('clerk', '{}');

select enter('confined_profiles', 'clerk', null, 'ada') /* $1 */;
select is(custody.get_profile('ada') ->> 'city', 'London', 'one''s own profile');
select is(custody.get_profile('bob'), null, 'another''s is as unknown');
select is(custody.get_profile('clerk'), null, 'the actor''s too');
select is(custody.get_preferences('bob'), null, 'so are preferences');
select is(custody.delete_profile('bob'), false, 'another''s profile is not deleted');
select is(custody.delete_preferences('bob'), false, 'nor preferences');
select is(custody.put_profile('ada', '{"city": "Rome"}'), 2, 'one''s own is written');
select refuses($$select custody.put_profile('bob', '{}')$$, 'PC015', 'another''s is not put');
select refuses($$select custody.put_profile('new', '{}')$$, 'PC015', 'nobody new is made');
select refuses($$select custody.put_profile('clerk', '{}')$$, 'PC015', 'the actor''s is not put');
select refuses($$select custody.patch_profile('bob', '{}')$$, 'PC015', 'another''s is not patched');
select refuses($$select custody.put_preferences('bob', '{}')$$, 'PC015', 'another''s preferences are not put');
select refuses($$select custody.patch_preferences('bob', '{}')$$, 'PC015', 'nor patched');
select is((select count(*) from custody_data.user_profiles), 1::bigint, 'the table shows one row');
select results_eq('select i.user_id collate "default" from custody_data.identities i order by 1', array['ada', 'clerk'], 'of identities, the person and the actor');
select is((select count(*) from custody_data.user_preferences), 0::bigint, 'and no preferences of others');

select enter('confined_profiles', 'clerk', null, 'never seen') /* $1 */;
select is((select count(*) from custody_data.user_profiles), 0::bigint, 'confined to somebody without a row, nothing is seen');
select is(custody.put_profile('never seen', '{}'), 1, 'who may make the first');
select is((select count(*) from custody_data.user_profiles), 1::bigint, 'and then sees it');
select * from finish();
rollback;
