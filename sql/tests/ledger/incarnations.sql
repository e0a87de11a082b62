-- Another life of the database: everything visible gets exactly one leaf, whatever its transaction's number; leaves that
-- only the bucket has are taken over.
begin;
set local search_path = tap, testing;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('life');
create function pg_temp.event(p_xid bigint) returns uuid language sql as $$
  insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, xid)
  values ('life', custody_data.new_entry_id(), now(), '01a1fd93-0000-4000-8000-000000000002', 'account.login', p_xid::text::xid8) returning log_entry_id;
$$;
create function pg_temp.leaves() returns text[] language sql as $$
  select array_agg(coalesce((select 'x' || l.xid from custody_data.audit_logs a where a.log_entry_id = l.entry_id and a.tenant_id = 'life'), case when l.xid = 0 then 'lost' else 'system' end) order by l.leaf_index) from custody_data.leaves_between(0, 9223372036854775806) l;
$$;
select pg_temp.event(x) from unnest(array[20, 21, 22]) x;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is(custody.seal_audit_log() -> 'sealed', '3', 'three events');
reset session authorization;
create temp table anchored as select (select t.hashes from custody_data.ledger_tiles t where t.level = 0) as hashes;
grant select on anchored to public;

-- Restored into another cluster: numbers above and below those of this one.
select pg_temp.event(x) from unnest(array[19, 21]) x;
select pg_temp.event(9000000000);
insert into custody_data.incarnations (system_identifier, timeline, opened_at) values (1, 1, clock_timestamp() + interval '1 hour');
set local session authorization custody_runner;
select is((custody.seal_audit_log() -> 'opened')::boolean, true, 'the sealer notices that it is in another cluster');
reset session authorization;
select is(pg_temp.leaves(), array['x20', 'x21', 'x22', 'x19', 'x21', 'system', 'system', 'x9000000000'], 'and seals whatever has no leaf: its own events about the two lives too');
select is((select array_agg(s.kind order by s.first_leaf) from custody_data.ledger_stretches s), array['sealed', 'swept'], 'as swept');
select is((last_event('system', 'incarnation.open')).metadata -> 'observed' ->> 'guess', 'restored_or_copied', 'and says what it takes it for');
select is((last_event('system', 'incarnation.open')).metadata -> 'observed' ->> 'system_identifier_before', '1', 'and why');
set local session authorization custody_runner;
select is(custody.seal_audit_log() -> 'sealed', '0', 'nothing twice');
select is_empty('select * from custody.verify_ledger()', 'the ledger agrees with itself');
-- When this cluster's numbers come to those of the other, their events are passed over.
reset session authorization;
update custody_data.ledger_heads set sealed_to = '20';
select pg_temp.event(20);
set local session authorization custody_runner;
select is(custody.seal_audit_log() -> 'sealed', '1', 'where numbers repeat only the new one is sealed');
select is((select s.unsealed_events from custody.sealing_status() s), 0::bigint, 'and nothing else waits');

-- Set back: the bucket has leaves that the database has not.
select refuses(format('select custody.take_over_leaves(%s)', a), 'PC023', format('take_over_leaves(%s)', a))
from unnest(array['null, '''', ''{}''', '-1, '''', ''{}''', '1, ''\x00'', ''{}''', '1, null, ''{}''', '1, '''', null', '1, '''', ''[]''']) a;
select refuses($$select custody.take_over_leaves(100, '', '{}')$$, 'PC041', 'keeping more than there is');
select custody.set_context('life', 'runner');
select refuses($$select custody.take_over_leaves(1, '', '{}')$$, 'PC015', 'taking over in the context of a tenant');
select custody.set_context('system', 'runner');
-- of three leaves in the bucket the third is of an event that is here and was sealed later; the second of none
select custody.take_over_leaves(1, sha256('x') || substr(hashes, 65, 32), '{"anchored": 3}') as took from anchored \gset
select is(:'took'::jsonb - 'tree_size', '{"kept": 1, "taken": 2, "found": 1, "lost": 1}', 'leaves are taken over');
reset session authorization;
select is((pg_temp.leaves())[1:3], array['x20', 'lost', 'x22'], 'where the bucket has them');
select is((select array_agg(distinct l.n) from (select count(*) as n from custody_data.leaves_between(1, 9223372036854775806) group by xid, entry_id) l), array[1::bigint], 'and every event has one leaf');
select is((select count(*) from custody_data.audit_logs a where not exists (select from custody_data.leaves_between(1, 9223372036854775806) l where l.entry_id = a.log_entry_id and l.xid = a.xid::text::bigint) and a.action <> 'ledger.take_over'), 0::bigint, 'none has none');
select is((select array_agg(s.kind order by s.first_leaf) from custody_data.ledger_stretches s), array['sealed', 'lost', 'swept'], 'the stretches say how');
select is((last_event('system', 'ledger.take_over')).metadata, '{"kept": 1, "taken": 2, "found": 1, "lost": 1, "segments": []}', 'which is an event');
set local session authorization custody_runner;
select is_empty('select * from custody.verify_ledger()', 'the ledger agrees with itself');
select is((custody.ledger_head() ->> 'tree_size')::bigint, (:'took'::jsonb ->> 'tree_size')::bigint, 'and goes on from there');
select is(custody.record_checkpoint(1, 3, custody.ledger_root(3), 'n', 'k', null, now()), true, 'what a checkpoint covers');
select refuses($$select custody.take_over_leaves(2, '', '{}')$$, 'PC020', 'is not cut off');

-- A number that no server gets to breaks nothing, and is found.
reset session authorization;
savepoint greatest;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, xid)
values ('life', gen_random_uuid(), now(), '01a1fd93-0000-4000-8000-000000000002', 'account.login', '18446744073709551615');
set local session authorization custody_runner;
select is((select array_agg(v.kind) from custody.verify_ledger() v), array['event_unsealed'], 'a made-up number');
select lives_ok($$select custody.open_incarnation('{"test": true}'), custody.seal_audit_log(), custody.sealing_status(), custody.take_over_leaves(3, '', '{}')$$, 'does not stop the sealer');
select is((select array_agg(v.kind) from custody.verify_ledger() v), array['event_unsealed'], 'and is not sealed');
reset session authorization;
set local role custody_admin;
select custody.set_context('system', 'dba');
select is(custody.adopt_events('a restore'), 0::bigint, 'nor adopted');
reset role;
rollback to greatest;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
reset session authorization;

-- The transaction counter was set back.
reset session authorization;
update custody_data.ledger_heads set sealed_to = '9999999999';
set local session authorization custody_runner;
select refuses($$select custody.seal_audit_log()$$, 'PC041', 'a counter that was set back');
select refuses($$select custody.open_segments()$$, 'PC041', 'which is not archived either');
-- A subscription writes the trail.
reset session authorization;
set client_min_messages = error;
create subscription leaf_sub connection 'dbname=nowhere' publication p with (connect = false, enabled = false, slot_name = none, create_slot = false);
update pg_subscription set subenabled = true where subname = 'leaf_sub';
insert into pg_subscription_rel (srsubid, srrelid, srsubstate) select s.oid, 'custody_data.audit_logs'::regclass, 'r' from pg_subscription s where s.subname = 'leaf_sub';
set local session authorization custody_runner;
select refuses($$select custody.seal_audit_log()$$, 'PC039', 'where a subscription writes the trail');
select refuses($$select custody.open_segments()$$, 'PC039', 'which is not archived there');
select * from finish();
rollback;
