-- Appending makes the month of its time where it is missing: by the API, and by every write to a table of record.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('appending');
-- As on the first of a month whose partitions nobody made: those of now are taken away.
alter table custody_data.audit_logs disable trigger user;
do $$
declare
  v_name text;
begin
  for v_name in select p.name from partitions p where p.parent = 'custody_data.audit_logs'::regclass loop
    execute format('alter table custody_data.audit_logs detach partition custody_data.%I', v_name);
    execute format('drop table custody_data.%I', v_name);
  end loop;
end
$$;
alter table custody_data.audit_logs enable always trigger a_reject_mutation;
select is_empty($$select name from partitions p where p.parent = 'custody_data.audit_logs'::regclass$$, 'there is no month at all');

set local session authorization custody_app;
select enter('appending', 'clerk') /* $1 */;
select lives_ok($$select custody.put_preferences('ada', '{}')$$, 'a write to a table of record');
select results_eq($$select p.name collate "default" from partitions p where p.parent = 'custody_data.audit_logs'::regclass$$, $$select 'audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM')$$, 'makes the month of now');
select is((select count(*) from events('appending', 'record.insert')), 1::bigint, 'and has its event there');
select is((select count(*) from events('appending', 'partition.create')), 1::bigint, 'beside that of the making');
select lives_ok($$select custody.record_audit_event('account.login', p_occurred_at => clock_timestamp() + interval '23 hours')$$, 'an event of tomorrow');
select ok(to_regclass('custody_data.audit_logs_' || to_char((now() + interval '23 hours') at time zone 'UTC', 'YYYY_MM')) is not null, 'has its month');

-- The worker makes months of the past for its imports.
set local session authorization custody_runner;
select enter('appending', 'runner') /* $1 */;
select refuses($$select custody_data.require_partition('2001-02-03 00:00:00+00')$$, 'PC009', 'a month of long ago is not made for an event');
select is(custody.ensure_audit_partitions('2001-02-03 00:00:00+00', '2001-02-03 00:00:00+00'), 1, 'but for an import');
select * from finish();
rollback;
