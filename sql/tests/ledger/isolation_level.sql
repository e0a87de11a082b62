-- Sealing runs read committed: at a stricter level it could not see what ended while it waited.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select refuses($$select custody.seal_audit_log()$$, 'PC026', 'sealing');
select refuses($$select custody.take_over_leaves(0, '', '{}')$$, 'PC026', 'taking over');
select refuses($$select custody.record_checkpoint(1, 0, sha256(''), 'n', 'k', null, now())$$, 'PC026', 'recording a checkpoint');
select refuses($$select custody.sealing_status()$$, 'PC026', 'the state of sealing');
select refuses($$select custody.ledger_head()$$, 'PC026', 'the head');
select refuses($$select custody.verify_ledger()$$, 'PC026', 'the self-check');
reset session authorization;
set local role custody_admin;
select custody.set_context('system', 'dba');
select refuses($$select custody.adopt_events('a restore')$$, 'PC026', 'adopting');
select * from finish();
rollback;
