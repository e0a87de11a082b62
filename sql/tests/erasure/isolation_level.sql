-- Erasure runs read committed: at a stricter level it could not see what was written while it waited.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
select tenant('erase_isolation');
set local session authorization custody_app;
select enter('erase_isolation', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select set_config('testing.request', request('erase_isolation', 'ada')::text, true);
set local session authorization custody_runner;
select enter('erase_isolation', 'runner') /* $1 */;
select refuses($$select custody.erase_subject(current_setting('testing.request')::uuid)$$, 'PC026', 'erasing');
select refuses($$select custody.replay_erasures('[]')$$, 'PC026', 'replaying');
select * from finish();
rollback;
