-- A file that was imported whole is known by its digest, for its table and tenant.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('known_file'), tenant('known_file_2');
set local session authorization custody_runner;
select enter('known_file', 'runner') /* $1 */;
select custody.finish_import(gen_random_uuid(), 'user_profiles', sha256('whole'), 3, 3, 0, 0), custody.finish_import(gen_random_uuid(), 'user_profiles', sha256('in part'), 3, 2, 0, 1);
select refuses($$select custody.import_known('user_profiles', sha256('whole'))$$, 'PC023', 'without preparing');
select custody.prepare_import('user_profiles'), custody.prepare_import('conversations');
select is(custody.import_known('user_profiles', sha256('whole')), true, 'one that was imported whole');
select is(custody.import_known('user_profiles', sha256('in part')), false, 'not one of which lines were rejected');
select is(custody.import_known('user_profiles', sha256('other')), false, 'nor another');
select is(custody.import_known('user_profiles', null), false, 'nor none');
select is(custody.import_known('conversations', sha256('whole')), false, 'nor for another table');
select enter('known_file_2', 'runner') /* $1 */;
select is(custody.import_known('user_profiles', sha256('whole')), false, 'nor for another tenant');
select * from finish();
rollback;
