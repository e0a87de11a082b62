-- Shipping runs read committed: at a stricter level a batch would not see the one before it.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select refuses($$select custody.record_log_batch('{}', '\x01')$$, 'PC026', 'no batch');
select refuses($$select custody.add_access_events(1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')$$, 'PC026', 'no rows');
select refuses($$select custody.mark_sink('x', 1, 1, 1, 1)$$, 'PC026', 'no sink');
select refuses($$select custody.trim_log_spool('{}', 'x')$$, 'PC026', 'no spool');
select refuses($$select custody.add_log_findings('x', '[]')$$, 'PC026', 'no finding');
select refuses($$select custody.mark_log_batch_deleted(1)$$, 'PC026', 'no deletion');
select refuses($$select custody.reconcile_logs(now(), now())$$, 'PC026', 'no reconciliation');
select * from finish();
rollback;
