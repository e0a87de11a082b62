-- A search knows e-mail address, telephone number and name only where it is unlocked; plan, search and certificate say what was
-- searched for, the certificate what both the search and the erasure looked for.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('searched_for');
set local session authorization custody_app;
select enter('searched_for', 'clerk') /* $1 */;
select custody.put_profile(u, jsonb_build_object('full_name', 'Full Name of ' || u, 'email', format('adr%s%s@example.org', length(u), right(u, 1)), 'phone', '+49 30 555 ' || u)) from unnest(array['locked', 'unlocked', 'first', 'then', 'never', 'named']) u;
select custody.record_audit_event('phi.access', 'document', 'letter to ADR5D@example.org');
select set_config('testing.' || u, request('searched_for', u)::text, true) from unnest(array['locked', 'unlocked', 'first', 'then', 'never', 'named']) u;
create function pg_temp.request(p_user text) returns uuid language sql as $$ select current_setting('testing.' || p_user)::uuid $$;
\set user_id '["user_id"]'
\set all '["user_id", "email", "phone", "full_name"]'

set local session authorization custody_dpo;
select custody.set_context('searched_for', 'dpo');
select is(custody.plan_erasure('named') -> 'residue_searched_for', :'user_id', 'a locked plan searches for the user_id');
select is(custody.plan_erasure('named') -> 'residue', '[]', 'and finds no address');
select is(custody.search_residue(pg_temp.request('named')), '[]', 'nor does a locked search');
select is((last_event('searched_for', 'request.search')).metadata -> 'searched_for', :'user_id', 'which says so');
select is((select r.residue_searched_for from custody_data.requests r where r.request_id = pg_temp.request('named')), array['user_id'], 'in the request too');
select custody.search_residue(pg_temp.request(u)) from unnest(array['locked', 'then']) u;
select is(custody.erase_subject(pg_temp.request('locked')) -> 'residue_searched_for', :'user_id', 'searched and erased while locked');

select enter('searched_for', 'dpo') /* $1 */;
select is(custody.plan_erasure('named') -> 'residue_searched_for', :'all', 'an unlocked plan searches for all');
select is(custody.plan_erasure('named') -> 'residue', '[{"rows": 1, "table": "audit_logs", "column": "resource_id"}]', 'and finds the address');
select is(custody.search_residue(pg_temp.request('named')), '[{"rows": 1, "table": "audit_logs", "column": "resource_id"}]', 'so does an unlocked search');
select is((select r.residue_searched_for from custody_data.requests r where r.request_id = pg_temp.request('named')), array['user_id', 'email', 'phone', 'full_name'], 'which is noted');
select refuses($$select custody.erase_subject(pg_temp.request('named'))$$, 'PC019', 'so that it cannot be certified without a basis');
select is(custody.erase_subject(pg_temp.request('then')) -> 'residue_searched_for', :'user_id', 'searched while locked, erased unlocked: the address was not looked for before');
select custody.search_residue(pg_temp.request(u)) from unnest(array['unlocked', 'first']) u;
select is(custody.erase_subject(pg_temp.request('unlocked')) -> 'residue_searched_for', :'all', 'searched and erased unlocked');
select is(custody.erase_subject(pg_temp.request('never')) -> 'residue_searched_for', :'all', 'not searched before, erased unlocked: all of it was looked at then');
select custody.set_context('searched_for', 'dpo');
select is(custody.erase_subject(pg_temp.request('first')) -> 'residue_searched_for', :'user_id', 'searched unlocked, erased while locked: the address was not looked for since');
select is(custody.get_certificate(pg_temp.request('first')) -> 'residue_searched_for', :'user_id', 'the certificate keeps it');
select is((select c -> 'form' from jsonb_array_elements(custody.get_certificate(pg_temp.request('first')) -> 'kept') c where c ->> 'table' = 'consent_records'), '"pseudonymous; evidence unreadable, its key is destroyed"', 'and says what became of evidence');
select is((select c -> 'form' from jsonb_array_elements(custody.get_certificate(pg_temp.request('first')) -> 'kept') c where c ->> 'table' = 'audit_logs'), '"pseudonymous; personal part unreadable, its key is destroyed"', 'and of personal parts');
select * from finish();
rollback;
