-- Rotation runs read committed: at a stricter level it could not see what was written while it waited.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
select tenant('keys_isolation');
set local session authorization custody_runner;
select enter('keys_isolation', 'runner') /* $1 */;
select refuses($$select custody.rotate_data_keys(now())$$, 'PC026', 'rotating data keys');
select refuses($$select custody.reindex_profiles()$$, 'PC026', 'indexing');
select refuses($$select custody.set_unique_fields('{email}')$$, 'PC026', 'making a field unique');
select * from finish();
rollback;
