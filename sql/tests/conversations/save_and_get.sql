-- A conversation is saved whole and given back whole; its times are those of its messages.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('save_conversation');
set local session authorization custody_app;
select enter('save_conversation', 'clerk') /* $1 */;

select is(custody.get_conversation('ada', 'c1'), null, 'get_conversation returns null for the unknown');
select is(custody.save_conversation('ada', 'c1',
  '[{"role": "user", "text": "second", "at": "2026-03-02T10:00:00Z"}, {"role": "assistant", "text": "first", "at": "2026-03-01T10:00:00+02:00", "tokens": 7}]', 'Hello'),
  'c1', 'save_conversation returns the id');
select is(custody.get_conversation('ada', 'c1') - array['created_at', 'updated_at', 'started_at', 'last_message_at'],
  '{"user_id": "ada", "conversation_id": "c1", "title": "Hello", "message_count": 2, "version": 1, "messages":
  [{"role": "user", "text": "second", "at": "2026-03-02T10:00:00Z"}, {"role": "assistant", "text": "first", "at": "2026-03-01T10:00:00+02:00", "tokens": 7}]}',
  'get_conversation returns it as it was saved');
select is((custody.get_conversation('ada', 'c1') ->> 'started_at')::timestamptz, '2026-03-01 08:00:00+00', 'it started with the first message');
select is((custody.get_conversation('ada', 'c1') ->> 'last_message_at')::timestamptz, '2026-03-02 10:00:00+00', 'and ended with the last');

select is(custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "new", "at": null}]'), 'c1', 'saved again it is replaced');
select is((custody.get_conversation('ada', 'c1') ->> 'version')::int, 2, 'in the next version');
select is(custody.get_conversation('ada', 'c1') -> 'title', 'null', 'the title went with it');
select is((custody.get_conversation('ada', 'c1') ->> 'last_message_at')::timestamptz, now(), 'a message without a time gets the transaction''s');
select matches(custody.get_conversation('ada', 'c1') #>> '{messages,0,at}', '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$', 'in UTC');

select is(custody.save_conversation('bob', 'c1', '[{"role": "user", "text": "mine"}]'), 'c1', 'two people may use the same id');
select is(custody.get_conversation('ada', 'c1') #>> '{messages,0,text}', 'new', 'and have each their own');
select matches(custody.save_conversation('bob', null, '[{"role": "user", "text": "x"}]'), '^[0-9a-f-]{36}$', 'an id is drawn where none is given');
select is(custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "v"}]', 'T', 2), 'c1', 'p_if_version with the version that was read');

select refuses($$select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "v"}]', 'T', 2)$$, 'PC014', 'a stale version');
select refuses($$select custody.save_conversation('ada', 'c9', '[{"role": "user", "text": "v"}]', 'T', 1)$$, 'PC014', 'a version of what is not there');
select refuses($$select custody.save_conversation('', 'c1', '[{"role": "user", "text": "v"}]')$$, 'PC003', 'an empty user_id');
select refuses($$select custody.save_conversation('ada', '', '[{"role": "user", "text": "v"}]')$$, 'PC023', 'an empty conversation_id');
select refuses($$select custody.save_conversation('ada', repeat('x', 257), '[{"role": "user", "text": "v"}]')$$, 'PC023', 'a conversation_id of 257 characters');
select refuses($$select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "v"}]', repeat('x', 1001))$$, 'PC023', 'a title of 1001 characters');
select refuses(format('select custody.save_conversation(%L, %L, %L)', 'ada', 'c1', m), 'PC023', format('messages: %s', coalesce(left(m, 60), 'null')))
from unnest(array[null, '[]', '{}', '"x"', 'null', '[1]', '[null]', '[{}]', '[{"role": "user"}]', '[{"text": "x"}]', '[{"role": 1, "text": "x"}]', '[{"role": "user", "text": 1}]',
  '[{"role": "", "text": "x"}]', '[{"role": null, "text": "x"}]', '[{"role": "user", "text": "x", "at": 5}]', '[{"role": "user", "text": "x", "at": "tomorrow"}]',
  '[{"role": "user", "text": "x", "at": "2026-03-01"}]', '[{"role": "user", "text": "x", "at": "2026-03-01T10:00:00"}]', '[{"role": "user", "text": "x", "at": "infinity"}]',
  '[{"role": "user", "text": "ok"}, {"role": "user", "text": null}]', format('[{"role": "%s", "text": "x"}]', repeat('r', 65))]) m;
select refuses($$select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "x", "at": "1969-12-31T23:59:59Z"}]')$$, 'PC009', 'a message before 1970');
select refuses($$select custody.save_conversation('ada', 'c1', jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'x', 'at', custody_data.entry_time(now() + interval '25 hours'))))$$,
  'PC009', 'a message more than a day ahead');
select refuses($$select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "x", "at": "2026-02-31T10:00:00Z"}]')$$, '22008', 'a day that is none');
select refuses($$select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "\u0000"}]')$$, '22P05', 'a NUL character');
select refuses($$select custody.get_conversation('', 'c1')$$, 'PC003', 'the conversation of nobody');
select is((custody.get_conversation('ada', 'c1') ->> 'version')::int, 3, 'none of it changed anything');
select * from finish();
rollback;
