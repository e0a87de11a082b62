-- The archive serves all tenants at once: it runs in tenant system, for days that have ended.
begin;
set local search_path = tap, testing;
select no_plan();
-- Cases run side by side, and one seals at a time.
select pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
select tenant('archive_refused');
set local session authorization custody_runner;
create function pg_temp.refused_everywhere(p_code text, p_what text) returns setof text language plpgsql as $$
begin
  return next refuses($q$select custody.open_segments()$q$, p_code, 'open_segments ' || p_what);
  return next refuses($q$select custody.archive_due()$q$, p_code, 'archive_due ' || p_what);
  return next refuses($q$select custody.audit_months()$q$, p_code, 'audit_months ' || p_what);
  return next refuses($q$select custody.segment_leaves('2001-01-01', 1, 0, 1)$q$, p_code, 'segment_leaves ' || p_what);
  return next refuses($q$select custody.find_segments(null, null)$q$, p_code, 'find_segments ' || p_what);
  return next refuses($q$select custody.held_segments()$q$, p_code, 'held_segments ' || p_what);
  return next refuses($q$select custody.record_segment_hold('2001-01-01', 1, true)$q$, p_code, 'record_segment_hold ' || p_what);
  return next refuses($q$select custody.expire_segments()$q$, p_code, 'expire_segments ' || p_what);
  return next refuses($q$select custody.record_segment_gone('2001-01-01', 1)$q$, p_code, 'record_segment_gone ' || p_what);
  return next refuses($q$select custody.drop_archived_partitions()$q$, p_code, 'drop_archived_partitions ' || p_what);
  return next refuses($q$select custody.record_segment('2001-01-01', 1, 'k', 'm', '{}', sha256('x'), now(), '')$q$, p_code, 'record_segment ' || p_what);
end
$$;
select enter('archive_refused', 'runner') /* $1 */;
select pg_temp.refused_everywhere('PC015', 'in a tenant''s context');
select refuses($$select custody.archive_due()$$, 'PC015', 'what is due, for a tenant');
select refuses($$select custody.audit_months()$$, 'PC015', 'the months, for a tenant');
select refuses($$select custody.drop_archived_partitions()$$, 'PC015', 'dropping, for a tenant');
select refuses($$select custody.open_segments()$$, 'PC015', 'opening, for a tenant');
select refuses($$select custody.record_segment('2001-01-01', 1, 'k', 'm', '{}', sha256('x'), now(), '')$$, 'PC015', 'recording, for a tenant');
select refuses($$select custody.segment_leaves('2001-01-01', 1, 0, 1)$$, 'PC015', 'segment_leaves, for a tenant');
select refuses($$select custody.find_segments(null, null)$$, 'PC015', 'find_segments, for a tenant');
select refuses($$select custody.held_segments()$$, 'PC015', 'held_segments, for a tenant');
select refuses($$select custody.record_segment_hold('2001-01-01', 1, true)$$, 'PC015', 'record_segment_hold, for a tenant');
select refuses($$select custody.expire_segments()$$, 'PC015', 'expire_segments, for a tenant');
select refuses($$select custody.record_segment_gone('2001-01-01', 1)$$, 'PC015', 'record_segment_gone, for a tenant');
select custody.set_context('system', 'runner', null, 'ada');
select pg_temp.refused_everywhere('PC015', 'in a context of one person');
select custody.set_context('system', 'runner');
select refuses($$select custody.open_segments((now() at time zone 'UTC')::date + 1)$$, 'PC009', 'a day that has not ended');
select refuses($$select custody.open_segments('infinity')$$, 'PC009', 'the last day');
select refuses($$select custody.open_segments(null)$$, 'PC009', 'no day');
select refuses($$select custody.archive_due((now() at time zone 'UTC')::date + 1)$$, 'PC009', 'what is due of a day that has not ended');
select refuses($$select custody.open_segments(p_limit => 0)$$, 'PC023', 'no segments');
select refuses($$select custody.open_segments(p_limit => 10001)$$, 'PC023', 'more than 10000 segments');
select refuses($$select custody.expire_segments(0)$$, 'PC023', 'expiring no segments');
select refuses($$select custody.expire_segments(1, now() + interval '1 second')$$, 'PC009', 'expiring before their time');
select refuses($$select custody.expire_segments(1, 'infinity')$$, 'PC009', 'expiring in the end');
select refuses($$select custody.audit_months('infinity')$$, 'PC009', 'months in the end');
select refuses($$select custody.drop_archived_partitions(0)$$, 'PC023', 'no months');
select refuses($$select custody.drop_archived_partitions(101)$$, 'PC023', 'more than 100 months');
select refuses($$select custody.drop_archived_partitions(1, now() + interval '1 second')$$, 'PC009', 'before their time');
select refuses($$select custody.drop_archived_partitions(1, 'infinity')$$, 'PC009', 'in the end');
-- The ledger is shorter than what was opened.
reset session authorization;
insert into custody_data.archive_heads (opened_to) values (9000000000);
set local session authorization custody_runner;
select refuses($$select custody.open_segments()$$, 'PC029', 'opening, ahead of the ledger');
select * from finish();
rollback;
