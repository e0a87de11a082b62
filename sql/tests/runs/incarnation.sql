-- The database knows in which cluster it lives: a new one is recorded when the archive first runs in it.
begin;
set local search_path = tap, testing;
select no_plan();
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is((custody.open_incarnation()).system_identifier, (select c.system_identifier from pg_control_system() c), 'open_incarnation returns that of this cluster');
select is((select count(*) from events('system', 'incarnation.open')), 1::bigint, 'its opening is an event');
select is((custody.open_incarnation()).incarnation_id, (custody.open_incarnation()).incarnation_id, 'it is opened once');
select is((select count(*) from events('system', 'incarnation.open')), 1::bigint, 'with one event');
-- as a restore brings it from elsewhere
reset session authorization;
insert into custody_data.incarnations (system_identifier, timeline) values (1, 1);
set local session authorization custody_runner;
select is((custody.open_incarnation()).system_identifier, (select c.system_identifier from pg_control_system() c), 'after another cluster it is opened anew');
select is((select count(*) from custody_data.incarnations), 3::bigint, 'and the old ones stay on record');
set local session authorization custody_audit;
select custody.set_context('system', 'auditor');
select refuses('select custody.open_incarnation()', '42501', 'auditors open none');
select * from finish();
rollback;
