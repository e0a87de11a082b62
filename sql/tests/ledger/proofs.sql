-- Proofs: for whom, of what, and what they are without a checkpoint. That they are right is compared with other
-- programs' in Go.
begin;
set local search_path = tap, testing;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('proof');
select tenant('proof2');
create temp table ids as select n, ('01a1fd93-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid as id, ('2026-01-01 00:00:00+00'::timestamptz + n * interval '1 second') as at from generate_series(1, 600) n;
grant select on ids to public;
select custody.ensure_audit_partitions('2026-01-01', '2026-01-02');
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, xid)
select case when i.n = 600 then 'proof2' else 'proof' end, i.id, i.at, '01a1fd93-0000-4000-8000-000000000002', '01a1fd93-0000-4000-8000-000000000003', 'account.login', '10' from ids i;
select i.id as first, i.at as first_at from ids i where i.n = 1 \gset
select i.id as other, i.at as other_at from ids i where i.n = 600 \gset

set local session authorization custody_app;
select refuses(format('select custody.inclusion_proof(%L)', :'first'), 'PC001', 'a proof without a context');
select refuses($$select custody.consistency_proof(1, 2)$$, 'PC001', 'and of consistency');
select custody.set_context('proof', 'clerk');
select refuses(format('select custody.inclusion_proof(%L)', :'first'), 'PC040', 'a proof before the event was sealed');
select refuses($$select custody.inclusion_proof(gen_random_uuid())$$, 'PC042', 'a proof of nothing');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select custody.seal_audit_log(400);
set local session authorization custody_app;
select custody.set_context('proof', 'clerk');
select refuses(format('select custody.inclusion_proof(%L)', :'first'), 'PC040', 'a proof before there is a checkpoint');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select custody.record_checkpoint(1, 400, custody.ledger_root(400), 'note 1', 'k1', now(), now());
select custody.seal_audit_log(400);
select custody.record_checkpoint(2, 600, custody.ledger_root(600), 'note 2', 'k2', now(), now());
set local session authorization custody_app;
select custody.set_context('proof', 'clerk');
select is(custody.inclusion_proof(:'first') - array['hashes', 'leaf_hash'], '{"leaf_index": 0, "tree_size": 600, "checkpoint": "note 2"}', 'a proof for the newest checkpoint');
select is(jsonb_array_length(custody.inclusion_proof(:'first') -> 'hashes'), 10, 'of as many hashes as the tree is high');
select is(custody.inclusion_proof(:'first', p_tree_size => 400) - array['hashes', 'leaf_hash'], '{"leaf_index": 0, "tree_size": 400, "checkpoint": "note 1"}', 'and for an older one');
select refuses(format('select custody.inclusion_proof(%L, p_tree_size => 401)', :'first'), 'PC040', 'not for a size that was never signed');
select refuses(format('select custody.inclusion_proof(%L, p_tree_size => 400)', i.id), 'PC040', 'nor for one that does not cover the event') from ids i where i.n = 500;
select refuses(format('select custody.inclusion_proof(%L)', :'other'), 'PC042', 'another tenant''s event');
select is(custody.consistency_proof(400, 600) - 'hashes', '{"old_size": 400, "new_size": 600, "old_checkpoint": "note 1", "new_checkpoint": "note 2"}', 'consistency of two checkpoints');
select is(custody.consistency_proof(600, 600) -> 'hashes', '[]', 'of one with itself there is nothing to show');
select refuses(format('select custody.consistency_proof(%s)', a), 'PC023', format('consistency_proof(%s)', a)) from unnest(array['0, 600', '600, 400', 'null, 600', '400, null']) a;
select refuses(format('select custody.consistency_proof(%s)', a), 'PC040', format('consistency_proof(%s)', a)) from unnest(array['399, 600', '400, 601']) a;
select custody.set_context('proof', 'clerk', null, 'nobody');
select refuses(format('select custody.inclusion_proof(%L)', :'first'), 'PC042', 'an event about somebody else than the subject of the context');
select refuses(format('select custody.inclusion_proof(%L, %L)', :'first', :'first_at'), 'PC042', 'nor by its time');

-- An event that left Postgres is found by id and time.
reset session authorization;
set session_replication_role = replica;
alter table custody_data.audit_logs_2026_01 disable trigger all;
delete from custody_data.audit_logs_2026_01 where log_entry_id = :'first';
set session_replication_role = origin;
set local session authorization custody_app;
select custody.set_context('proof', 'clerk');
select refuses(format('select custody.inclusion_proof(%L)', :'first'), 'PC042', 'without its time it is not found');
select is(custody.inclusion_proof(:'first', :'first_at') -> 'leaf_index', '0', 'by its time it is');
select refuses(format('select custody.inclusion_proof(%L, %L)', :'first', '2025-01-01'), 'PC042', 'by another time it is not');
reset session authorization;
set session_replication_role = replica;
update custody_data.audit_logs_2026_01 set result = 'failure' where log_entry_id = (select i.id from ids i where i.n = 2);
set session_replication_role = origin;
set local session authorization custody_app;
select custody.set_context('proof', 'clerk');
select refuses(format('select custody.inclusion_proof(%L)', i.id), 'PC041', 'an event that is not what was sealed') from ids i where i.n = 2;
-- The certificate of an erasure has the proof of its event, once there is one.
reset session authorization;
select has_time from (select custody_data.time_in_id(custody_data.new_entry_id()) @> clock_timestamp() as has_time) t \gset
select ok(:'has_time', 'ids that the server draws say when');
select is(custody_data.time_in_id(gen_random_uuid()), null, 'others do not');
insert into custody_data.requests (tenant_id, request_id, kind, identity_id, requested_by, due_at, status, closed_at)
select 'proof', '01a1fd93-0000-4000-8000-00000000000a', 'erasure', '01a1fd93-0000-4000-8000-000000000003', '01a1fd93-0000-4000-8000-000000000002', now(), 'done', now();
insert into custody_data.erasure_certificates (tenant_id, request_id, identity_id, certificate)
select 'proof', '01a1fd93-0000-4000-8000-00000000000a', '01a1fd93-0000-4000-8000-000000000003', jsonb_build_object('audit_event', i.id) from ids i where i.n = 3;
set local session authorization custody_dpo;
select custody.set_context('proof', 'dpo');
select is((custody.get_certificate('01a1fd93-0000-4000-8000-00000000000a') -> 'audit_event_proof') - array['hashes', 'leaf_hash'], '{"leaf_index": 2, "tree_size": 600, "checkpoint": "note 2"}', 'a certificate has the proof of its event');
-- A tile that is gone.
reset session authorization;
alter table custody_data.ledger_tiles disable trigger all;
delete from custody_data.ledger_tiles where level = 1;
set local session authorization custody_app;
select custody.set_context('proof', 'clerk');
select refuses(format('select custody.inclusion_proof(%L)', i.id), 'PC041', 'tiles that are gone') from ids i where i.n = 599;
select refuses($$select custody.consistency_proof(400, 600)$$, 'PC041', 'and of consistency');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select refuses($$select custody.ledger_root(600)$$, 'PC041', 'and the root');
select refuses($$select custody.ledger_head()$$, 'PC041', 'and the head');
select refuses($$select custody.verify_ledger()$$, 'PC041', 'and the self-check');
select * from finish();
rollback;
