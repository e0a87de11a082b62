-- The archive runs read committed: at a stricter level it could not see what ended while it waited.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select refuses($$select custody.open_segments()$$, 'PC026', 'opening');
select refuses($$select custody.archive_due()$$, 'PC026', 'what is due');
select refuses($$select custody.audit_months()$$, 'PC026', 'the months');
select refuses($$select custody.segment_leaves('2001-01-01', 1, 0, 1)$$, 'PC026', 'leaves of a segment');
select refuses($$select custody.find_segments(null, null)$$, 'PC026', 'finding');
select refuses($$select custody.held_segments()$$, 'PC026', 'what is held');
select refuses($$select custody.record_segment_hold('2001-01-01', 1, true)$$, 'PC026', 'holding');
select refuses($$select custody.expire_segments()$$, 'PC026', 'expiring');
select refuses($$select custody.record_segment_gone('2001-01-01', 1)$$, 'PC026', 'deleting');
select refuses($$select custody.drop_archived_partitions()$$, 'PC026', 'dropping');
select refuses($$select custody.record_segment('2001-01-01', 1, 'k', 'm', '{}', sha256('x'), now(), '')$$, 'PC026', 'recording');
select * from finish();
rollback;
