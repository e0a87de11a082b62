-- The ids that clients gave are forgotten after 90 days; the events are not.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('retain_entry_ids');
insert into custody_data.audit_entry_ids (tenant_id, log_entry_id, occurred_at, recorded_at, content)
select 'retain_entry_ids', gen_random_uuid(), now(), now() - make_interval(days => d), sha256('x') from unnest(array[89, 90, 91, 92, 200]) d;
set local session authorization custody_runner;
select enter('retain_entry_ids', 'runner') /* $1 */;
select row_eq($$select d.due_rows, d.held_rows, d.oldest_at from custody.retention_due d where d.class = 'entry_ids'$$, row (3::bigint, 0::bigint, now() - interval '200 days'), 'three are due');
select is(custody.enforce_retention('entry_ids', 2), 2::bigint, 'a batch');
select is(custody.enforce_retention('entry_ids', 2), 1::bigint, 'the rest');
select is(custody.enforce_retention('entry_ids', 2), 0::bigint, 'nothing is left to do');
select is(rows_of('retain_entry_ids', 'audit_entry_ids'), 2::bigint, 'the newer ones stay');
select is((select count(*) from events('retain_entry_ids', 'retention.run')), 2::bigint, 'each batch is an event');
select is(custody.enforce_retention('audit', 10), 0::bigint, 'the trail itself does not go by rows');
select is(custody.enforce_retention('audit_hot', 10), 0::bigint, 'but by months, through the archive');
select * from finish();
rollback;
