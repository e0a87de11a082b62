-- Sealing: every event whose transaction ended gets one leaf, in the order of (xid, log_entry_id); tiles and the map
-- hold what they should; what a signed checkpoint covers never changes.
begin;
set local search_path = tap, testing;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('leaf');
-- This case has one transaction, whose events are above the horizon: they are given numbers of transactions that ended.
create function pg_temp.events(p_count integer, p_xid bigint) returns void language sql as $$
  insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, xid)
  select 'leaf', custody_data.new_entry_id(), now(), '01a1fd93-0000-4000-8000-000000000002', 'account.login', (p_xid + n % 7)::text::xid8
  from generate_series(1, p_count) n;
$$;
create temp view seen as select a.*, row_number() over (order by a.xid, a.log_entry_id, a.tenant_id, a.occurred_at) - 1 as n from custody_data.audit_logs a;
grant select on seen to public;

set local session authorization custody_runner;
select refuses($$select custody.seal_audit_log()$$, 'PC001', 'sealing without a context');
select custody.set_context('leaf', 'runner');
select refuses($$select custody.seal_audit_log()$$, 'PC015', 'sealing in the context of a tenant');
select refuses($$select custody.sealing_status()$$, 'PC015', 'the state of sealing');
select refuses($$select custody.ledger_head()$$, 'PC015', 'the head');
select refuses($$select custody.record_checkpoint(1, 0, sha256(''), 'n', 'k', null, now())$$, 'PC015', 'a checkpoint');
select refuses($$select custody.verify_ledger()$$, 'PC015', 'the self-check');
select custody.set_context('system', 'runner');
select refuses(format('select custody.seal_audit_log(%s)', l), 'PC023', format('%s events', l)) from unnest(array['null', '0', '-1', '1000001']) l;
select refuses($$select custody.verify_ledger(-1)$$, 'PC023', 'from a leaf before the first');
select is(custody.ledger_head() -> 'tree_size', '0', 'no leaves yet');
select is(custody.ledger_root(0), sha256(''), 'the root of no leaves');
select refuses($$select custody.ledger_root(1)$$, 'PC023', 'the root of more leaves than there are');
reset session authorization;
select pg_temp.events(1000, 10);
set local session authorization custody_runner;
select is(custody.seal_audit_log(300) - array['incarnation_id'], '{"sealed": 300, "tree_size": 300, "more": true, "busy": false, "opened": true}', 'a batch');
select is((select s.unsealed_events > 700 from custody.sealing_status() s), true, 'the rest waits');
select is(custody.seal_audit_log(300) -> 'tree_size', '600', 'another');
select is(custody.seal_audit_log(1000) - array['incarnation_id'], '{"sealed": 400, "tree_size": 1000, "more": false, "busy": false, "opened": false}', 'the rest; what this transaction wrote, the opening of the incarnation, waits');
select is(custody.seal_audit_log(1000) -> 'sealed', '0', 'nothing is sealed twice');
reset session authorization;
select is((select sha256(string_agg(t.hashes, '' order by t.tile_index)) from custody_data.ledger_tiles t where t.level = 0),
  (select sha256(string_agg(sha256('\x00'::bytea || convert_to(custody.audit_entry(a), 'UTF8')), '' order by a.xid, a.log_entry_id)) from custody_data.audit_logs a where a.tenant_id = 'leaf'), 'leaves are hashes of entries, in order');
select is((select array_agg(octet_length(t.hashes) / 32 order by t.level, t.tile_index) from custody_data.ledger_tiles t), array[256, 256, 256, 232, 3], 'tiles are full but for the last of a level');
select is((select md5(array_agg((l.xid, l.entry_id)::text order by l.leaf_index)::text) from custody_data.leaves_between(1, 9999) l), (select md5(array_agg((a.xid::text::bigint, a.log_entry_id)::text order by a.xid, a.log_entry_id)::text) from custody_data.audit_logs a where a.tenant_id = 'leaf'),
  'the map says which event each leaf is');
select is((select array_agg((s.first_leaf, s.kind)::text) from custody_data.ledger_stretches s), array['(0,sealed)'], 'in one stretch');
set local session authorization custody_runner;
select is_empty('select * from custody.verify_ledger()', 'the ledger agrees with itself');
reset session authorization;

-- One transaction may write events of two tenants with the same id.
select tenant('leaf2');
update custody_data.ledger_heads set sealed_to = '20';
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, xid)
select x, '01a1fd93-0000-4000-8000-000000000009', now(), '01a1fd93-0000-4000-8000-000000000002', 'account.login', '20' from unnest(array['leaf', 'leaf2']) x;
set local session authorization custody_runner;
select is(custody.seal_audit_log(1) -> 'sealed', '2', 'they are sealed together');
select is_empty('select * from custody.verify_ledger()', 'as two events');
reset session authorization;

-- What comes in behind is not sealed but found, until an administrator adopts it.
select pg_temp.events(3, 10);
update custody_data.ledger_heads set sealed_to = '100', sealed_to_entry_id = null;
set local session authorization custody_runner;
select is(custody.seal_audit_log() -> 'sealed', '0', 'events behind the horizon are not sealed');
select is((select array_agg(distinct v.kind) || count(*)::text from custody.verify_ledger() v), array['event_unsealed', '3'], 'but found');
select refuses($$select custody.adopt_events('a restore')$$, '42501', 'the runner adopts nothing');
reset session authorization;
set local role custody_admin;
select custody.set_context('leaf', 'dba');
select refuses($$select custody.adopt_events('a restore')$$, 'PC015', 'adopting in the context of a tenant');
select custody.set_context('system', 'dba');
select refuses(format('select custody.adopt_events(%s)', r), 'PC023', 'adopting without a reason') from unnest(array['null', '''''']) r;
select is(custody.adopt_events('a restore'), 3::bigint, 'an administrator adopts them');
select is(custody.adopt_events('a restore'), 0::bigint, 'once');
reset role;
select is((last_event('system', 'ledger.adopt')).metadata, '{"rows": 3, "reason": "a restore"}', 'which is an event');
select is((select array_agg((s.first_leaf, s.kind)::text order by s.first_leaf) from custody_data.ledger_stretches s), array['(0,sealed)', '(1002,adopted)'], 'in a stretch of their own');
set local session authorization custody_runner;
select is_empty('select * from custody.verify_ledger()', 'and all is well');

-- An event without an entry, which takes a superuser, stops the sealer; it does not move the leaves behind it.
reset session authorization;
select refuses($$select custody_data.append_leaves('sealed', array[sha256('a'), null], array[1, 2], array[gen_random_uuid(), gen_random_uuid()], array[now(), now()])$$, 'PC041', 'an event that has no entry');
set local session authorization custody_runner;

-- Checkpoints.
select refuses(format('select custody.record_checkpoint(%s)', a), 'PC023', format('record_checkpoint(%s)', a))
from unnest(array['0, 1000, sha256(''''), ''n'', ''k'', null, now()', '1, 1000, sha256(''''), null, ''k'', null, now()', '1, 1000, sha256(''''), ''n'', null, null, now()', '1, 2000, sha256(''''), ''n'', ''k'', null, now()']) a;
select refuses($$select custody.record_checkpoint(1, 1000, sha256(''), 'n', 'k', null, now())$$, 'PC041', 'a checkpoint of another root');
select is(custody.record_checkpoint(1, 1000, custody.ledger_root(1000), 'note', 'key', now(), now()), true, 'a checkpoint is recorded');
select is(custody.record_checkpoint(1, 1000, custody.ledger_root(1000), 'note', 'key', now(), now()), false, 'once');
select refuses($$select custody.record_checkpoint(1, 999, custody.ledger_root(999), 'note', 'key', now(), now())$$, 'PC041', 'another of the same number');
reset session authorization;
-- Here the guards hold the owner too.
select refuses(s, 'PC020', s) from unnest(array[
  'update custody_data.ledger_tiles set hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1) where level = 0 and tile_index = 3', 'delete from custody_data.ledger_tiles where level = 1',
  'update custody_data.ledger_tiles set tile_index = 9 where level = 0 and tile_index = 3', 'update custody_data.ledger_tiles set hashes = substr(hashes, 1, 32) where level = 0 and tile_index = 3',
  'update custody_data.ledger_entries set entry_ids = set_byte(entry_ids, 0, get_byte(entry_ids, 0) # 1)', 'update custody_data.ledger_entries set xids = set_byte(xids, 0, 9) where tile_index = 3',
  'delete from custody_data.ledger_entries where tile_index = 3', 'truncate custody_data.ledger_tiles', 'truncate custody_data.ledger_entries', 'truncate custody_data.ledger_stretches', 'truncate custody_data.ledger_heads',
  'delete from custody_data.ledger_stretches where first_leaf = 0', 'update custody_data.ledger_stretches set kind = ''lost'' where first_leaf = 0', 'delete from custody_data.ledger_heads',
  'delete from custody_data.ledger_checkpoints', 'update custody_data.ledger_checkpoints set note = ''''', 'truncate custody_data.ledger_checkpoints']) s;
-- What no checkpoint covers may still be cut off.
savepoint cut;
delete from custody_data.ledger_stretches where first_leaf = 1002;
update custody_data.ledger_tiles set hashes = substr(hashes, 1, 232 * 32) where level = 0 and tile_index = 3;
select pass('leaves behind the newest checkpoint may be cut off');
rollback to cut;

-- What the self-check finds.
set session_replication_role = replica;
alter table custody_data.audit_logs disable trigger all;
alter table custody_data.ledger_tiles disable trigger all;
create function pg_temp.finds(p_statement text, p_kinds text[], p_name text) returns text language plpgsql as $$
declare v_kinds text[];
begin
  begin
    execute p_statement;
    perform custody.set_context('system', 'audit');
    v_kinds := array(select v.kind from custody.verify_ledger() v order by 1);
    raise exception 'undone';
  exception when raise_exception then null;
  end;
  return tap.is(v_kinds, p_kinds, p_name);
end $$;
select 'custody_data.audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM') as child \gset
alter table :child disable trigger all;
select pg_temp.finds(format('update %s set result = ''failure'' where log_entry_id = %L', :'child', (select s.log_entry_id from seen s where s.n = 500)), array['event_altered'], 'an altered event');
select pg_temp.finds(format('delete from %s where log_entry_id = %L', :'child', (select s.log_entry_id from seen s where s.n = 500)), array['event_missing'], 'a missing event');
select pg_temp.finds('update custody_data.ledger_tiles set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1) where level = 0 and tile_index = 1', array['event_altered', 'tile_altered'], 'an altered leaf');
select pg_temp.finds($$update custody_data.ledger_heads set tree_size = tree_size; select custody_data.append_leaves('adopted', array[custody_data.leaf_hash(a)], array[a.xid::text::bigint], array[a.log_entry_id], array[a.occurred_at]) from custody_data.audit_logs a where a.tenant_id = 'leaf' limit 1$$, array['leaf_repeated'], 'a second leaf of an event');
select pg_temp.finds('update custody_data.ledger_tiles set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1) where level = 1', array['checkpoint_mismatch', 'tile_altered'], 'an altered tile');
select * from finish();
rollback;
