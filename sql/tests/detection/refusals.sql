-- Detection runs read committed; canaries are planted and removed for a whole tenant, and a profile needs its key.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
select tenant('detection_refusals');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select refuses($$select custody.detect()$$, 'PC026', 'a snapshot would hide what was shipped meanwhile');
set local session authorization custody_audit;
select custody.set_context('detection_refusals', 'auditor');
select refuses($$select custody.plant_canary('mata-hari', '{"full_name": "Mata Hari"}')$$, 'PC033', 'a profile while the tenant is locked');
select custody.set_context('detection_refusals', 'auditor', null, 'ada');
select refuses($$select custody.remove_canary('00000000-0000-4000-8000-000000000001')$$, 'PC015', 'confined to one person');
select * from finish();
rollback;
