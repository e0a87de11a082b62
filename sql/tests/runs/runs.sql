-- Each run of a job is on record from its start; how it ended is written once, a failure is an event.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('runs'), tenant('runs_2');
set local session authorization custody_runner;
select enter('runs', 'runner') /* $1 */;
\set run '11111111-1111-4111-8111-111111111111'
select is(custody.start_run('retention', 77, :'run'), :'run', 'start_run returns the id');
select is(custody.start_run('retention', 77, :'run'), :'run', 'the same id is the same run');
select row_eq($$select r.job collate "default", r.river_job_id, r.status, r.ended_at, r.counts, r.bytes, r.error from custody.job_runs r$$, row ('retention'::text, 77::bigint, 'running'::text, null::timestamptz, '{}'::jsonb, 0::bigint, null::text), 'it is running');
select lives_ok(format('select custody.finish_run(%L, %L, %L, 5)', :'run', 'succeeded', '{"rows": 3}'), 'finish_run');
select row_eq($$select r.status, r.counts, r.bytes, r.error, r.took >= interval '0' from custody.job_runs r$$, row ('succeeded'::text, '{"rows": 3}'::jsonb, 5::bigint, null::text, true), 'says what it counted');
select lives_ok(format('select custody.finish_run(%L, %L)', :'run', 'failed'), 'finishing again');
select is((select r.status from custody.job_runs r), 'succeeded', 'changes nothing');
select is(rows_of('runs', 'audit_logs'), 0::bigint, 'success is no event');
select set_config('testing.failed', custody.start_run('archive')::text, true);
select lives_ok($$select custody.finish_run(current_setting('testing.failed')::uuid, 'failed', null, null, repeat('PC029 ', 300))$$, 'a run that failed');
select row_eq($$select r.status, length(r.error), r.counts, r.bytes from custody.job_runs r where r.job = 'archive'$$, row ('failed'::text, 1000, '{}'::jsonb, 0::bigint), 'keeps its error, shortened');
select row_eq($$select e.result collate "default", e.metadata ->> 'job', length(e.metadata ->> 'error_code') from last_event('runs', 'job.fail') e$$, row ('failure'::text, 'archive'::text, 200), 'and is an event');
select lives_ok($$select custody.finish_run('99999999-9999-4999-8999-999999999999', 'failed')$$, 'an unknown run');
select is((select count(*) from events('runs', 'job.fail')), 1::bigint, 'is no event');

select refuses(format('select custody.start_run(%L)', j), 'PC023', format('job %s', coalesce(left(j, 20), 'null'))) from unnest(array[null, '', 'Upper', '7x', 'a b', repeat('x', 65)]) j;
select refuses(format('select custody.finish_run(%L, %L)', '11111111-1111-4111-8111-111111111111', s), 'PC023', format('status %s', coalesce(s, 'null'))) from unnest(array[null, '', 'running', 'done']) s;
select refuses($$select custody.start_run('')$$, 'PC023', 'a run without a name');
select refuses($$select custody.finish_run(null, 'running')$$, 'PC023', 'a run does not end in running');
select enter('runs', 'runner', null, 'ada') /* $1 */;
select refuses($$select custody.start_run('x')$$, 'PC015', 'in a context of one person');
select refuses($$select custody.finish_run('11111111-1111-4111-8111-111111111111', 'failed')$$, 'PC015', 'ending one too');
select enter('runs_2', 'runner') /* $1 */;
select is((select count(*) from custody.job_runs), 0::bigint, 'another tenant sees none of them');
select is(custody.start_run('retention', 1, :'run'), :'run', 'and has ids of its own');
set local session authorization custody_audit;
select enter('runs', 'auditor') /* $1 */;
select is((select count(*) from custody.job_runs), 2::bigint, 'auditors see runs');
select refuses($$select custody.start_run('x')$$, '42501', 'and start none');
select * from finish();
rollback;
