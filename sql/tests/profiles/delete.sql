-- A profile is deleted; the person stays known, and a hold keeps the profile.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('delete_profile');
set local session authorization custody_app;
select enter('delete_profile', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada"}');

select is(custody.delete_profile('bob'), false, 'nobody of that name');
select is(custody.delete_profile('ada'), true, 'delete_profile says that there was one');
select is(custody.get_profile('ada'), null, 'it is gone');
select is(custody.delete_profile('ada'), false, 'deleting again finds none');
select ok(identity('delete_profile', 'ada') is not null, 'the person is still known');
select is(custody.put_profile('ada', '{}'), 1, 'a new profile starts with version 1');
select refuses($$select custody.delete_profile('')$$, 'PC003', 'an empty user_id');

set local session authorization custody_dpo;
select enter('delete_profile', 'dpo') /* $1 */;
select custody.place_hold('{"table": "user_profiles", "row": "ada"}', 'case 1', 'litigation');
set local session authorization custody_app;
select enter('delete_profile', 'clerk') /* $1 */;
select refuses($$select custody.delete_profile('ada')$$, 'PC032', 'a profile under hold');
select ok(custody.get_profile('ada') is not null, 'it stays');
select * from finish();
rollback;
