-- A wrong or missing tenant, actor or subject is refused by a code of its own.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('context_refused');
set local session authorization custody_app;

select refuses($$select custody.set_context(null, 'clerk')$$, 'PC002', 'no tenant');
select refuses($$select custody.set_context('', 'clerk')$$, 'PC002', 'an empty tenant');
select refuses($$select custody.set_context('nowhere', 'clerk')$$, 'PC002', 'a tenant that is not registered');
select refuses($$select custody.set_context('Context_Refused', 'clerk')$$, 'PC002', 'a tenant in another case');
select refuses($$select custody.set_context('context_refused ', 'clerk')$$, 'PC002', 'a tenant with a blank behind it');
select refuses($$select custody.set_context('x'' or true', 'clerk')$$, 'PC002', 'what is no name at all');

select refuses($$select custody.set_context('context_refused', null)$$, 'PC003', 'no actor');
select refuses($$select custody.set_context('context_refused', '')$$, 'PC003', 'an empty actor');
select refuses($$select custody.set_context('context_refused', '   ')$$, 'PC003', 'a blank actor');
select refuses($$select custody.set_context('context_refused', repeat('x', 257))$$, 'PC003', 'an actor of 257 characters');
select refuses($$select custody.set_context('context_refused', 'clerk', null, '')$$, 'PC003', 'an empty subject');
select refuses($$select custody.set_context('context_refused', 'clerk', null, repeat('x', 257))$$, 'PC003', 'a subject of 257 characters');

select refuses($$select custody.set_context('system', 'clerk')$$, 'PC015', 'tenant system for an application');
set local session authorization custody_reports;
select refuses($$select custody.set_context('system', 'clerk')$$, 'PC015', 'tenant system for reports');
set local session authorization custody_dpo;
select refuses($$select custody.set_context('system', 'clerk')$$, 'PC015', 'tenant system for a privacy officer');
set local session authorization custody_audit;
select lives_ok($$select custody.set_context('system', 'clerk')$$, 'tenant system is for auditors');
set local session authorization custody_runner;
select lives_ok($$select custody.set_context('system', 'clerk')$$, 'tenant system is for the worker');
set local session authorization custody_dump;
select refuses($$select custody.set_context('context_refused', 'clerk')$$, '42501', 'backups need no context');

reset session authorization;
set local session authorization custody_app;
select custody.set_context('context_refused', 'clerk');
select refuses($$select custody.set_context('nowhere', 'clerk')$$, 'PC002', 'a second context is looked at as the first');
select * from finish();
rollback;
