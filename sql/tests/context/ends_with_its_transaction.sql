-- A context ends with its transaction: behind a pooler the next client of the connection must not inherit it.
-- The tenant is the shipped one, because this case commits; nothing is written.
begin;
set local search_path = tap, testing;
select no_plan();
select is(current_setting('custody.tenant', true), null, 'the settings are not there at first');
commit;

begin;
set local search_path = tap, testing;
set local session authorization custody_runner;
select custody.set_context('system', 'worker', 'a purpose', 'ada');
select is(custody.current_tenant(), 'system', 'the context stands in its transaction');
commit;

begin;
set local search_path = tap, testing;
set local session authorization custody_runner;
select is(current_setting('custody.tenant', true), '', 'a setting that was local once reads as empty, not null');
select is(custody.current_tenant(), null, 'which is no tenant');
select is(custody.current_actor(), null, 'and no actor');
select is(custody.current_actor_id(), null, 'and no identity of one');
select is(custody.current_purpose(), null, 'and no purpose');
select ok(not custody.has_subject(), 'and no subject');
select refuses($$select custody.get_profile('ada')$$, 'PC001', 'so the call is refused, as it is in autocommit');
select throws_like($$select custody.get_profile('ada')$$, '%no context%', 'the error says what is missing');
select * from finish();
rollback;
