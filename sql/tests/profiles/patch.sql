-- patch_profile merges as RFC 7396 says, and p_if_version keeps an update from being lost.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('patch_profile');
set local session authorization custody_app;
select enter('patch_profile', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada", "city": "London", "attributes": {"a": {"b": 1, "c": 2}, "list": [1, 2]}}');

select is(custody.patch_profile('ada', '{"city": "Paris"}'), 2, 'a change makes the next version');
select is(custody.get_profile('ada') - array['created_at', 'updated_at'] @> '{"city": "Paris", "full_name": "Ada"}', true, 'what is not named stays');
select is(custody.patch_profile('ada', '{"city": null}'), 3, 'null empties a field');
select is(custody.get_profile('ada') -> 'city', 'null', 'the field is empty');
select is(custody.patch_profile('ada', '{"attributes": {"a": {"b": null, "d": 4}, "list": [3]}}'), 4, 'objects merge, everything else is replaced');
select is(custody.get_profile('ada') -> 'attributes', '{"a": {"c": 2, "d": 4}, "list": [3]}', 'to every depth');
select is(custody.patch_profile('ada', '{}'), 5, 'an empty change is a change');
select is(custody.patch_profile('ada', '{"city": "Rome"}', 5), 6, 'p_if_version with the version that was read');

select refuses($$select custody.patch_profile('ada', '{"city": "Oslo"}', 5)$$, 'PC014', 'a stale version');
select refuses($$select custody.patch_profile('ada', '{"city": "Oslo"}', 7)$$, 'PC014', 'a version that is not there yet');
select refuses($$select custody.patch_profile('ada', '{"city": "Oslo"}', -1)$$, 'PC014', 'a version that never was');
select refuses($$select custody.patch_profile('bob', '{"city": "Oslo"}')$$, 'PC011', 'somebody who was never seen');
select custody.put_preferences('cy', '{}');
select refuses($$select custody.patch_profile('cy', '{"city": "Oslo"}')$$, 'PC011', 'somebody without a profile');
select refuses($$select custody.patch_profile('', '{}')$$, 'PC003', 'an empty user_id');
select refuses($$select custody.patch_profile('ada', null)$$, 'PC023', 'no changes');
select refuses($$select custody.patch_profile('ada', '[1]')$$, 'PC023', 'changes that are no object');
select refuses($$select custody.patch_profile('ada', '{"shoe_size": 39}')$$, 'PC023', 'an unknown field');
select refuses($$select custody.patch_profile('ada', '{"city": 7}')$$, 'PC023', 'a field of another type');
select is(custody.get_profile('ada') ->> 'city', 'Rome', 'none of it changed anything');
select is((custody.get_profile('ada') ->> 'version')::int, 6, 'nor the version');

-- The examples of RFC 7396, Appendix A.
reset session authorization;
select is(custody_data.merge_patch(e.target, e.patch), e.result, format('%s merged with %s', e.target, e.patch))
from (values
  ('{"a":"b"}'::jsonb, '{"a":"c"}'::jsonb, '{"a":"c"}'::jsonb),
  ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
  ('{"a":"b"}', '{"a":null}', '{}'),
  ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
  ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
  ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
  ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
  ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
  ('["a","b"]', '["c","d"]', '["c","d"]'),
  ('{"a":"b"}', '["c"]', '["c"]'),
  ('{"a":"foo"}', 'null', 'null'),
  ('{"a":"foo"}', '"bar"', '"bar"'),
  ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
  ('[1,2]', '{"a":"b","c":null}', '{"a":"b"}'),
  ('{}', '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}')) e (target, patch, result);
select * from finish();
rollback;
