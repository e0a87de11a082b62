-- A profile is put whole and given back whole: what is left out is emptied, and the version counts up.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('put_profile');
set local session authorization custody_app;
select enter('put_profile', 'clerk', 'support') /* $1 */;

select is(custody.get_profile('ada'), null, 'get_profile returns null for somebody who was never seen');
select is(custody.put_profile('ada', '{"full_name": "Ada Lovelace", "email": "Ada@Example.org", "phone": "+44 1", "organisation": "Engines Ltd",
  "title": "Countess", "address": "1 St James Sq", "city": "London", "region": "LDN", "postal_code": "SW1Y", "country": "GB", "attributes": {"vip": true}}'),
  1, 'the first put makes version 1');
select is(custody.get_profile('ada') - array['created_at', 'updated_at'],
  '{"user_id": "ada", "version": 1, "full_name": "Ada Lovelace", "email": "Ada@Example.org", "phone": "+44 1", "organisation": "Engines Ltd",
  "title": "Countess", "address": "1 St James Sq", "city": "London", "region": "LDN", "postal_code": "SW1Y", "country": "GB", "attributes": {"vip": true}}',
  'get_profile returns every field');
select ok(custody.get_profile('ada') ?& array['created_at', 'updated_at'], 'and the times');
select is(custody.put_profile('ada', '{"email": "ada@example.org"}'), 2, 'the second put makes version 2');
select is(custody.get_profile('ada') ->> 'full_name', null, 'a field that was left out is emptied');
select is(custody.get_profile('ada') -> 'attributes', 'null', 'attributes too');
select is(custody.put_profile('ada', custody.get_profile('ada')), 3, 'what get_profile gives can be put again');
select is(custody.put_profile('bob', '{}'), 1, 'an empty profile is a profile');
select is(custody.put_profile('cy', '{"full_name": null, "attributes": null}'), 1, 'null empties a field');
select is(rows_of('put_profile', 'user_profiles'), 3::bigint, 'three people have one');
select is(custody.put_profile('päivi', '{"full_name": "Päivi 🙂"}'), 1, 'user_ids and names are Unicode');
select is(custody.get_profile('päivi') ->> 'full_name', 'Päivi 🙂', 'and come back as they were');
select is(custody.put_profile('Ada', '{}'), 1, 'user_ids are told apart by case');

select refuses($$select custody.put_profile(null, '{}')$$, 'PC003', 'no user_id');
select refuses($$select custody.put_profile('', '{}')$$, 'PC003', 'an empty user_id');
select refuses($$select custody.put_profile('  ', '{}')$$, 'PC003', 'a blank user_id');
select refuses($$select custody.put_profile(repeat('x', 257), '{}')$$, 'PC003', 'a user_id of 257 characters');
select refuses($$select custody.put_profile('ada', null)$$, 'PC023', 'no profile');
select refuses($$select custody.put_profile('ada', '[]')$$, 'PC023', 'an array');
select refuses($$select custody.put_profile('ada', '"x"')$$, 'PC023', 'a string');
select refuses($$select custody.put_profile('ada', '{"shoe_size": 39}')$$, 'PC023', 'an unknown field');
select refuses($$select custody.put_profile('ada', '{"tenant_id": "other"}')$$, 'PC023', 'a column that is not a field');
select refuses($$select custody.put_profile('ada', '{"email": 5}')$$, 'PC023', 'a number for a string');
select refuses($$select custody.put_profile('ada', '{"email": {"a": 1}}')$$, 'PC023', 'an object for a string');
select refuses($$select custody.put_profile('ada', jsonb_build_object('city', repeat('x', 1001)))$$, 'PC023', 'a field of 1001 characters');
select refuses($$select custody.put_profile('ada', '{"attributes": []}')$$, 'PC023', 'attributes that are no object');
select refuses($$select custody.put_profile('ada', '{"user_id": "bob"}')$$, 'PC023', 'a profile of somebody else');
select refuses($$select custody.put_profile('ada', '{"full_name": ')$$, '22P02', 'what is not JSON');
select refuses($$select custody.put_profile('ada', '{"full_name": "a\u0000b"}')$$, '22P05', 'a NUL character');
select refuses($$select custody.get_profile('')$$, 'PC003', 'get_profile of an empty user_id');
select is((custody.get_profile('ada') ->> 'version')::int, 3, 'none of it changed anything');

set local session authorization custody_reports;
select enter('put_profile', 'analyst') /* $1 */;
select is((custody.get_profile('ada') ->> 'version')::int, 3, 'reports read profiles');
select refuses($$select custody.put_profile('ada', '{}')$$, '42501', 'and do not write them');
select * from finish();
rollback;
