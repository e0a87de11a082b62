-- Holds are placed and released read committed: at a stricter level a hold could not see what was deleted while it waited.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
select tenant('hold_isolation');
set local session authorization custody_dpo;
select enter('hold_isolation', 'dpo') /* $1 */;
select refuses($$select custody.place_hold('{"tenant": true}', 'case 1', 'litigation')$$, 'PC026', 'placing');
select refuses($$select custody.release_hold(gen_random_uuid(), 'over')$$, 'PC026', 'releasing');
select * from finish();
rollback;
