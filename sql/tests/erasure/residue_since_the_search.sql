-- A search notes how far it looked; the erasure looks at what came since, and at all of it where the database has
-- since moved to another cluster, in which the numbers of transactions mean nothing.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('residue_since');
set local session authorization custody_app;
select enter('residue_since', 'clerk') /* $1 */;
select custody.put_profile(u, '{}') from unnest(array['person1', 'person2', 'person3']) u;
select set_config('testing.' || u, request('residue_since', u)::text, true) from unnest(array['person1', 'person2', 'person3']) u;
set local session authorization custody_dpo;
select enter('residue_since', 'dpo') /* $1 */;
select set_config('testing.before', pg_snapshot_xmin(pg_current_snapshot())::text, true);
select is(custody.search_residue(current_setting('testing.' || u)::uuid), '[]', 'clean') from unnest(array['person1', 'person2', 'person3']) u;
-- Other sessions of the server end beside this case, so the horizon may move on while it runs.
select ok((select r.residue_searched_xid between current_setting('testing.before')::xid8 and pg_snapshot_xmin(pg_current_snapshot()) from custody_data.requests r where r.request_id = current_setting('testing.person1')::uuid), 'it noted how far it looked');
select is((select r.residue_rows from custody_data.requests r where r.request_id = current_setting('testing.person1')::uuid), 0::bigint, 'and how much it found');

-- Events that earlier transactions wrote, as a search that looked at them would have seen.
reset session authorization;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, resource_id, xid)
select 'residue_since', gen_random_uuid(), now(), identity('residue_since', 'clerk'), 'phi.access', 'x/' || u, '5' from unnest(array['person1', 'person2']) u;
set local session authorization custody_dpo;
select is(custody.erase_subject(current_setting('testing.person1')::uuid) ->> 'status', 'complete', 'what the search has seen is not looked at again');

set local session authorization custody_app;
select enter('residue_since', 'clerk') /* $1 */;
select custody.record_audit_event('phi.access', 'document', 'x/person3');
set local session authorization custody_dpo;
select enter('residue_since', 'dpo') /* $1 */;
select refuses($$select custody.erase_subject(current_setting('testing.person3')::uuid)$$, 'PC019', 'what came since is found');

reset session authorization;
insert into custody_data.incarnations (system_identifier, timeline) values (1, 1);
set local session authorization custody_dpo;
select refuses($$select custody.erase_subject(current_setting('testing.person2')::uuid)$$, 'PC019', 'in another cluster the search begins anew');
select * from finish();
rollback;
