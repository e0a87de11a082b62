-- Conversations are listed without their bodies, page by page, and deleted.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('list_conversations');
set local session authorization custody_app;
select enter('list_conversations', 'clerk') /* $1 */;
-- c1 to c3 ended at the same instant, c4 later
select custody.save_conversation('ada', 'c' || n, jsonb_build_array(jsonb_build_object('role', 'user', 'text', n::text, 'at', a)), 'T' || n)
from (values (1, '2026-03-01T10:00:00Z'), (2, '2026-03-01T10:00:00Z'), (3, '2026-03-01T10:00:00Z'), (4, '2026-03-02T10:00:00Z')) v (n, a);
select custody.save_conversation('bob', 'b1', '[{"role": "user", "text": "x"}]');

select results_eq($$select l.conversation_id collate "default" from custody.list_conversations('ada') l$$, array['c4', 'c3', 'c2', 'c1'], 'the newest first, in a fixed order');
select columns_are('custody', 'conversation_summaries',
  array['tenant_id', 'identity_id', 'conversation_id', 'title', 'message_count', 'started_at', 'last_message_at', 'version', 'updated_at'], 'without bodies');
select results_eq($$select l.conversation_id collate "default" from custody.list_conversations('ada', 2) l$$, array['c4', 'c3'], 'a page');
select results_eq($$select l.conversation_id collate "default" from custody.list_conversations('ada', 2, '2026-03-01 10:00:00+00', 'c3') l$$, array['c2', 'c1'], 'the next page, within one instant');
select is_empty($$select custody.list_conversations('ada', 2, '2026-03-01 10:00:00+00', 'c1')$$, 'and none after the last');
select is_empty($$select custody.list_conversations('ada', 2, '2026-03-01 10:00:00+00')$$, 'without p_before_id rows of the instant are passed over');
select is_empty($$select custody.list_conversations('eve')$$, 'somebody who was never seen has none');
select refuses($$select custody.list_conversations('ada', 0)$$, 'PC023', 'a page of none');
select refuses($$select custody.list_conversations('ada', 10001)$$, 'PC023', 'a page of 10001');
select refuses($$select custody.list_conversations('ada', null)$$, 'PC023', 'a page without a limit');
select refuses($$select custody.list_conversations(null)$$, 'PC003', 'the conversations of nobody');

select is(custody.delete_conversation('ada', 'c1'), true, 'delete_conversation says that there was one');
select is(custody.delete_conversation('ada', 'c1'), false, 'deleting again finds none');
select is(custody.delete_conversation('ada', 'b1'), false, 'a conversation of somebody else is not found');
select is(custody.get_conversation('bob', 'b1') is not null, true, 'and stays');
select refuses($$select custody.delete_conversation('', 'c1')$$, 'PC003', 'the conversation of nobody');

set local session authorization custody_dpo;
select enter('list_conversations', 'dpo') /* $1 */;
select custody.place_hold('{"table": "conversations", "row": "c2"}', 'case 1', 'litigation');
set local session authorization custody_app;
select enter('list_conversations', 'clerk') /* $1 */;
select refuses($$select custody.delete_conversation('ada', 'c2')$$, 'PC032', 'a conversation under hold');
select is(custody.delete_conversation('ada', 'c3'), true, 'another one of the person goes');

select enter('list_conversations', 'clerk', null, 'bob') /* $1 */;
select is_empty($$select custody.list_conversations('ada')$$, 'in a context of somebody else there are none');
select is(custody.get_conversation('ada', 'c4'), null, 'nor one by its id');
select is(custody.delete_conversation('ada', 'c4'), false, 'nor is one deleted');
select refuses($$select custody.save_conversation('ada', 'c4', '[{"role": "user", "text": "x"}]')$$, 'PC015', 'or saved');
select refuses($$select custody.append_message('ada', 'c4', '{"role": "user", "text": "x"}')$$, 'PC015', 'or added to');
select refuses($$select custody.update_conversation('ada', 'c4', 'x')$$, 'PC015', 'or renamed');
select results_eq($$select l.conversation_id collate "default" from custody.list_conversations('bob') l$$, array['b1'], 'one''s own are there');
select * from finish();
rollback;
