-- Retention runs read committed: at a stricter level it could not see what changed while it waited.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
select tenant('retention_isolation');
set local session authorization custody_runner;
select enter('retention_isolation', 'runner') /* $1 */;
select refuses($$select custody.enforce_retention('conversations', 10)$$, 'PC026', 'at repeatable read');
select lives_ok($$select * from custody.retention_due$$, 'looking is possible');
select refuses($$select custody.set_retention_policy('consent', interval '8 years', 'x')$$, 'PC026', 'no policy is set');
select refuses($$select custody.approve_retention_change(gen_random_uuid())$$, 'PC026', 'nor a change approved');
select refuses($$select custody.reject_retention_change(gen_random_uuid(), 'x')$$, 'PC026', 'or rejected');
select custody.set_context('system', 'runner');
select refuses($$select custody.drop_access_months()$$, 'PC026', 'and no month goes');
select * from finish();
rollback;
