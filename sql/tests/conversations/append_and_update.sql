-- A conversation grows message by message, and its title changes.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('append_message');
set local session authorization custody_app;
select enter('append_message', 'clerk') /* $1 */;
select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "1", "at": "2026-03-01T10:00:00Z"}]');

select is(custody.append_message('ada', 'c1', '{"role": "assistant", "text": "2", "at": "2026-03-01T10:01:00Z"}'), 2, 'append_message returns how many there are');
select is((custody.get_conversation('ada', 'c1') ->> 'last_message_at')::timestamptz, '2026-03-01 10:01:00+00', 'the last message moves on');
select is(custody.append_message('ada', 'c1', '{"role": "user", "text": "0", "at": "2026-02-01T10:00:00Z"}'), 3, 'a message may be older');
select is((custody.get_conversation('ada', 'c1') ->> 'started_at')::timestamptz, '2026-02-01 10:00:00+00', 'then the conversation started earlier');
select is((custody.get_conversation('ada', 'c1') ->> 'last_message_at')::timestamptz, '2026-03-01 10:01:00+00', 'and did not end earlier');
select is(custody.append_message('ada', 'c1', '{"role": "user", "text": "3"}', 3), 4, 'p_if_version with the version that was read');
select is((custody.get_conversation('ada', 'c1') ->> 'last_message_at')::timestamptz, now(), 'a message without a time is of now');
select is(jsonb_array_length(custody.get_conversation('ada', 'c1') -> 'messages'), 4, 'all are there');
select is(custody.update_conversation('ada', 'c1', 'A title'), 5, 'update_conversation returns the version');
select is(custody.get_conversation('ada', 'c1') ->> 'title', 'A title', 'the title is set');
select is(custody.update_conversation('ada', 'c1', null, 5), 6, 'null empties it');
select is(custody.get_conversation('ada', 'c1') ->> 'title', null, 'the title is empty');

select refuses($$select custody.append_message('ada', 'c1', '{"role": "user", "text": "x"}', 1)$$, 'PC014', 'appending to a stale version');
select refuses($$select custody.append_message('ada', 'c2', '{"role": "user", "text": "x"}')$$, 'PC027', 'appending to an unknown conversation');
select refuses($$select custody.append_message('eve', 'c1', '{"role": "user", "text": "x"}')$$, 'PC011', 'appending for somebody who was never seen');
select refuses($$select custody.append_message('', 'c1', '{"role": "user", "text": "x"}')$$, 'PC003', 'appending for nobody');
select refuses($$select custody.append_message('ada', '', '{"role": "user", "text": "x"}')$$, 'PC023', 'appending to no conversation');
select refuses($$select custody.append_message('ada', 'c1', '{"role": "user"}')$$, 'PC023', 'appending no message');
select refuses($$select custody.append_message('ada', 'c1', null)$$, 'PC023', 'appending nothing');
select refuses($$select custody.append_message('ada', 'c1', '{"role": "user", "text": "x", "at": "1900-01-01T00:00:00Z"}')$$, 'PC009', 'appending a message of 1900');
select refuses($$select custody.update_conversation('ada', 'c1', 'x', 1)$$, 'PC014', 'a title for a stale version');
select refuses($$select custody.update_conversation('ada', 'c2', 'x')$$, 'PC027', 'a title for an unknown conversation');
select refuses($$select custody.update_conversation('eve', 'c1', 'x')$$, 'PC011', 'a title for somebody who was never seen');
select refuses($$select custody.update_conversation('', 'c1', 'x')$$, 'PC003', 'a title for nobody');
select refuses($$select custody.update_conversation('ada', 'c1', repeat('x', 1001))$$, 'PC023', 'a title of 1001 characters');
select is((custody.get_conversation('ada', 'c1') ->> 'version')::int, 6, 'none of it changed anything');
select * from finish();
rollback;
