-- Conversations go when their policy's time after the last message has passed, in batches, each an event.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('retain_conversations');
select tenant('retain_conversations_2');
set local session authorization custody_app;
create function pg_temp.save(p_user_id text, p_id text, p_age interval) returns text language sql as $$
  select custody.save_conversation(p_user_id, p_id, jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'x', 'at', custody_data.entry_time(now() - p_age))));
$$;
select enter('retain_conversations_2', 'clerk') /* $1 */;
select pg_temp.save('ada', 'other tenant', '200 days');
select enter('retain_conversations', 'clerk') /* $1 */;
select pg_temp.save('ada', 'old' || n, make_interval(days => 90 + n)) from generate_series(1, 5) n;
select pg_temp.save('bob', 'old6', '96 days');
select pg_temp.save('bob', 'at the limit', '90 days');
select pg_temp.save('bob', 'new', '89 days');

set local session authorization custody_runner;
select enter('retain_conversations', 'runner') /* $1 */;
select row_eq($$select d.class, d.relation, d.keep, d.due_rows, d.held_rows, d.oldest_at from custody.retention_due d where d.class = 'conversations'$$,
  row ('conversations'::text, 'conversations'::text, interval '90 days', 6::bigint, 0::bigint, now() - interval '96 days'), 'retention_due shows what would go');
select is((select d.due_rows from custody.retention_due_at(now() + interval '1 second') d where d.class = 'conversations'), 7::bigint, 'retention_due_at what will');
select is((select d.due_rows from custody.retention_due_at(now() + interval '10 days') d where d.class = 'conversations'), 8::bigint, 'and later');
select is((select d.due_rows from custody.retention_due_at(now() - interval '10 days') d where d.class = 'conversations'), 0::bigint, 'and would have gone');
select is(rows_of('retain_conversations', 'conversations'), 8::bigint, 'looking deletes nothing');

select is(custody.enforce_retention('conversations', 4), 4::bigint, 'a batch');
select results_eq($$select c.conversation_id collate "default" from custody_data.conversations c order by 1$$, array['at the limit', 'new', 'old1', 'old2'], 'the oldest first');
select row_eq($$select e.resource_type collate "default", e.resource_id collate "default", e.result collate "default", e.metadata - 'basis' from last_event('retain_conversations', 'retention.run') e$$,
  row ('retention_policy'::text, 'conversations'::text, 'success'::text, jsonb_build_object('class', 'conversations', 'rows', 4, 'keep', '90 days', 'as_of', custody_data.entry_time(now()))),
  'the batch is an event with class, rows and policy');
select isnt((last_event('retain_conversations', 'retention.run')).metadata ->> 'basis', null, 'and its basis');
select is((select count(*) from events('retain_conversations', 'record.delete')), 2::bigint, 'and each person''s rows are one');
select is(custody.enforce_retention('conversations', 4), 2::bigint, 'the rest');
select is(custody.enforce_retention('conversations', 4), 0::bigint, 'then nothing is left to do');
select is((select count(*) from events('retain_conversations', 'retention.run')), 2::bigint, 'which is no event');
select is(rows_of('retain_conversations_2', 'conversations'), 1::bigint, 'another tenant''s stay');
select is(custody.enforce_retention('conversations', 4, now() - interval '1 year'), 0::bigint, 'nor is there anything as of a year ago');

-- A tenant's own policy goes before the shared one.
set local session authorization custody_dpo;
select enter('retain_conversations', 'dpo') /* $1 */;
select custody.set_retention_policy('conversations', interval '10 days', 'contract');
set local session authorization custody_runner;
select enter('retain_conversations', 'runner') /* $1 */;
select custody.approve_retention_change(c.change_id) from custody.retention_changes c where c.status = 'proposed';
select is((select d.due_rows from custody.retention_due d where d.class = 'conversations'), 2::bigint, 'by its own policy more is due');
select is(custody.enforce_retention('conversations', 100), 2::bigint, 'and goes');
select is((last_event('retain_conversations', 'retention.run')).metadata ->> 'basis', 'contract', 'on its own basis');
select is((last_event('retain_conversations', 'retention.run')).metadata ->> 'keep', '10 days', 'after its own time');
select * from finish();
rollback;
