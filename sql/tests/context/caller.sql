-- Inside a SECURITY DEFINER function the caller is still known: the role of SET ROLE, or else the login.
begin;
set local search_path = tap, testing;
select no_plan();
create function testing.whoami() returns text language sql security definer set search_path = pg_catalog return custody_data.caller_role();
create function testing.am_i(p_role text) returns boolean language sql security definer set search_path = pg_catalog return custody_data.caller_is(p_role);
alter function testing.whoami() owner to custody_owner;
alter function testing.am_i(text) owner to custody_owner;

set local session authorization custody_runner;
select is(whoami(), 'custody_runner', 'the login, where no role was set');
select ok(am_i('custody_worker'), 'the runner is a worker');
select ok(am_i('custody_privacy'), 'the runner may do what privacy officers may');
set local role custody_worker;
select is(whoami(), 'custody_worker', 'the role that was set');
select ok(not am_i('custody_privacy'), 'a role that was set counts alone');
reset role;
set local session authorization custody_app;
select is(whoami(), 'custody_app', 'the application''s login');
select ok(not am_i('custody_privacy'), 'an application is no privacy officer');
select ok(not am_i('custody_owner'), 'nor the owner, as which the function runs');
select * from finish();
rollback;
