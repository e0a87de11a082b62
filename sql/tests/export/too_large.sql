-- Beyond its bound an export names the export job, before it is built.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('export_large');
set local session authorization custody_app;
select enter('export_large', 'clerk') /* $1 */;
-- 3 MB that do not compress
select custody.save_conversation('ada', 'c' || n, jsonb_build_array(jsonb_build_object('role', 'user', 'text', (select string_agg(gen_random_uuid()::text, '') from generate_series(1, 28000))))) from generate_series(1, 3) n;
select refuses($$select custody.export_subject('ada', 2000000)$$, 'PC015', 'an application without a subject is told nothing of the size');
set local session authorization custody_dpo;
select enter('export_large', 'dpo') /* $1 */;
select refuses($$select custody.export_subject('ada', 2000000)$$, 'PC022', 'conversations beyond the bound');
select throws_like($$select custody.export_subject('ada', 2000000)$$, 'export too large: more than 2000000 bytes', 'the message says what the bound is');
select ok(octet_length(custody.export_subject('ada')::text) > 3000000, 'the default bound is 64 MiB');
select * from finish();
rollback;
