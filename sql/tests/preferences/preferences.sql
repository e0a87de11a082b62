-- Preferences: put whole, merged by patch, deleted.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('preferences');
set local session authorization custody_app;
select enter('preferences', 'clerk') /* $1 */;

select is(custody.get_preferences('ada'), null, 'get_preferences returns null for the unknown');
select is(custody.put_preferences('ada', '{"theme": "dark", "mail": {"news": true}}'), 1, 'the first put makes version 1');
select is(custody.get_preferences('ada'), '{"theme": "dark", "mail": {"news": true}}', 'they come back as they were put');
select is(custody.put_preferences('ada', '{"theme": "light", "mail": {"news": true}}'), 2, 'a put replaces all');
select is(custody.patch_preferences('ada', '{"mail": {"news": null, "digest": "weekly"}}'), 3, 'a patch merges');
select is(custody.get_preferences('ada'), '{"theme": "light", "mail": {"digest": "weekly"}}', 'as RFC 7396 says');
select is(custody.patch_preferences('ada', '{"theme": null}', 3), 4, 'p_if_version with the version that was read');
select is(custody.put_preferences('bob', '{}'), 1, 'no settings are settings');
select is(custody.delete_preferences('ada'), true, 'delete_preferences says that there were some');
select is(custody.get_preferences('ada'), null, 'they are gone');
select is(custody.delete_preferences('ada'), false, 'deleting again finds none');

select refuses($$select custody.put_preferences('', '{}')$$, 'PC003', 'an empty user_id');
select refuses($$select custody.put_preferences('ada', null)$$, 'PC023', 'no preferences');
select refuses($$select custody.put_preferences('ada', '[]')$$, 'PC023', 'an array');
select refuses($$select custody.put_preferences('ada', '{"a": "\u0000"}')$$, '22P05', 'a NUL character');
select refuses($$select custody.get_preferences(null)$$, 'PC003', 'no user_id');
select refuses($$select custody.delete_preferences('  ')$$, 'PC003', 'a blank user_id');
select refuses($$select custody.patch_preferences('bob', '{"a": 1}', 9)$$, 'PC014', 'a stale version');
select refuses($$select custody.patch_preferences('ada', '{"a": 1}')$$, 'PC011', 'somebody without preferences');
select refuses($$select custody.patch_preferences('eve', '{"a": 1}')$$, 'PC011', 'somebody who was never seen');
select refuses($$select custody.patch_preferences(repeat('x', 257), '{"a": 1}')$$, 'PC003', 'a user_id of 257 characters');
select refuses($$select custody.patch_preferences('bob', '"x"')$$, 'PC023', 'changes that are no object');
select is(custody.get_preferences('bob'), '{}', 'none of it changed anything');

set local session authorization custody_dpo;
select enter('preferences', 'dpo') /* $1 */;
select custody.place_hold('{"user_id": "bob"}', 'case 1', 'litigation');
select is(custody.get_preferences('bob'), '{}', 'privacy officers read preferences');
select refuses($$select custody.put_preferences('bob', '{}')$$, '42501', 'and do not write them');
set local session authorization custody_app;
select enter('preferences', 'clerk') /* $1 */;
select refuses($$select custody.delete_preferences('bob')$$, 'PC032', 'preferences under hold');
select * from finish();
rollback;
