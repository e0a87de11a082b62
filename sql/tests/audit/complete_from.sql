-- The answer says from when on it is complete: the end of the newest month that went to the archive.
begin;
set local search_path = tap, testing;
set local client_min_messages = warning;
select no_plan();
select tenant('complete_from');
insert into custody_data.partition_drops (partition_name, range_from, range_to, rows_dropped) values
  ('audit_logs_2020_01', '2020-01-01 00:00:00+00', '2020-02-01 00:00:00+00', 1), ('audit_logs_2020_02', '2020-02-01 00:00:00+00', '2020-03-01 00:00:00+00', 1);
set local session authorization custody_app;
select enter('complete_from', 'clerk') /* $1 */;
select custody.record_audit_event('account.login', p_log_entry_id => '11111111-1111-4111-8111-111111111111');
select is(custody.audit_complete_from(), '2020-03-01 00:00:00+00', 'the end of the newest month that was dropped');
set local session authorization custody_audit;
select enter('complete_from', 'auditor') /* $1 */;
select is((select e.complete_from from custody.audit_events('2019-01-01', now() + interval '1 day', p_action => 'account.login') e), '2020-03-01 00:00:00+00', 'each row says so');
select is((custody.audit_event('11111111-1111-4111-8111-111111111111') ->> 'complete_from')::timestamptz, '2020-03-01 00:00:00+00', 'the single event too');
select custody.set_context('system', 'auditor');
select is(custody.audit_complete_from(), '2020-03-01 00:00:00+00', 'it is the same for all tenants');
select * from finish();
rollback;
