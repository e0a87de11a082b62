-- Copies out of the archive are hidden when their time is over and deleted in batches, held or not; the record of the
-- restore stays. Until then they are looked through like the trail when a person is erased.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('restored_expiry');
set local session authorization custody_runner;
select enter('restored_expiry', 'adalove') /* $1 */;
select custody_data.require_actor();
reset session authorization;
create function pg_temp.copies(p_expires timestamptz, p_leaves int[], p_resource text default 'file') returns void language sql as $$
  insert into custody_data.restored_events (tenant_id, restore_id, leaf_index, log_entry_id, occurred_at, recorded_at, actor_id, action, resource_type, resource_id, result, metadata, db_role, xid, entry, restored_from, expires_at)
  select 'restored_expiry', '00000000-0000-4000-8000-000000000001', n, gen_random_uuid(), '2001-03-01', '2001-03-01', gen_random_uuid(), 'phi.access', 'document', p_resource, 'success', '{}', 'x', '5',
    '{"resource_id":' || to_json(p_resource) || '}', 'audit-archives/x', p_expires
  from unnest(p_leaves) n;
$$;
select pg_temp.copies(now() - interval '1 microsecond', '{1, 2, 3}'), pg_temp.copies(now() + interval '1 minute', '{4}');
set local session authorization custody_dpo;
select enter('restored_expiry', 'dpo') /* $1 */;
select custody.place_hold('{"tenant": true}', 'case 1', 'litigation');
select results_eq('select e.leaf_index from custody.restored_events e', 'values (4::bigint)', 'the view shows none that has expired');
select row_eq($$select d.relation, d.due_rows, d.held_rows from custody.retention_due d where d.class = 'restored'$$, row ('restored_events'::text, 3::bigint, 0::bigint), 'three are due, though all of the tenant is held');
select is((select d.due_rows from custody.retention_due_at(now() + interval '1 hour') d where d.class = 'restored'), 4::bigint, 'and soon another');
set local session authorization custody_runner;
select enter('restored_expiry', 'runner') /* $1 */;
select is(custody.enforce_retention('restored', 2), 2::bigint, 'a batch');
select is(custody.enforce_retention('restored', 2), 1::bigint, 'the rest');
select is(custody.enforce_retention('restored', 2), 0::bigint, 'nothing is left to do');
select is((select count(*) from events('restored_expiry', 'retention.run')), 2::bigint, 'each batch is an event');
select is(rows_of('restored_expiry', 'restored_events'), 1::bigint, 'what has time left stays');

reset session authorization;
select refuses($$update custody_data.restored_events set action = 'x'$$, 'PC020', 'a copy is not changed');
select refuses($$truncate custody_data.restored_events$$, 'PC020', 'nor do all go at once');
select custody.set_context('restored_expiry', 'dpo');
select set_config('testing.restore', custody.begin_restore('2001-03-01', '2001-03-02', p_reason => 'because of adalove')::text, true);
select refuses($$delete from custody_data.archive_restores$$, 'PC020', 'the record of a restore stays');
select refuses($$truncate custody_data.archive_restores$$, 'PC020', 'whoever would have it gone');
select refuses($$update custody_data.archive_restores set reason = 'x'$$, 'PC030', 'as it was written');
select custody.finish_restore(current_setting('testing.restore')::uuid, 0, 0);
select refuses($$update custody_data.archive_restores set rows = 1$$, 'PC020', 'and ended');

select pg_temp.copies(now() + interval '1 day', '{5}', 'letter to AdaLove, page 2');
set local session authorization custody_dpo;
select enter('restored_expiry', 'dpo') /* $1 */;
select is((select string_agg(format('%s.%s %s', f ->> 'table', f ->> 'column', f ->> 'rows'), ', ' order by f::text) from jsonb_array_elements(custody.plan_erasure('adalove') -> 'residue') f),
  'archive_restores.reason 1, audit_logs.metadata 1, restored_events.resource_id 1', 'identifiers of a person are found in copies and reasons');
select * from finish();
rollback;
