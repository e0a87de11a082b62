-- Tenants are registered and listed by the worker.
begin;
set local search_path = tap, testing;
select no_plan();
set local session authorization custody_runner;

select is(custody.register_tenant('tenants_new', 'New & Co.'), 'tenants_new', 'register_tenant returns the name');
select is((select t.name from custody.list_tenants() t where t.tenant_id = 'tenants_new'), 'New & Co.', 'the tenant is listed');
select is(custody.current_tenant(), 'system', 'the transaction is then in the context of tenant system');
select is((last_event('system', 'tenant.register')).metadata, '{"tenant": "tenants_new"}', 'the registration is an event of tenant system');
select is((last_event('system', 'tenant.register')).db_role, 'custody_runner', 'by the login that did it');

select is(custody.register_tenant('tenants_new', 'Other'), 'tenants_new', 'registering again returns the name');
select is((select t.name from custody.list_tenants() t where t.tenant_id = 'tenants_new'), 'New & Co.', 'and leaves the tenant as it is');
select is((select count(*) from events('system', 'tenant.register') e where e.metadata ->> 'tenant' = 'tenants_new'), 1::bigint, 'without another event');
select is(custody.register_tenant('tenants_unnamed', '  '), 'tenants_unnamed', 'a tenant without a name');
select is((select t.name from custody.list_tenants() t where t.tenant_id = 'tenants_unnamed'), 'tenants_unnamed', 'is called by its id');
select results_eq('select t.tenant_id::text from custody.list_tenants() t', 'select t.tenant_id::text from custody.list_tenants() t order by 1', 'the list is in order');

select refuses($$select custody.register_tenant(null, 'x')$$, 'PC023', 'no name');
select refuses($$select custody.register_tenant('', 'x')$$, 'PC023', 'an empty name');
select refuses($$select custody.register_tenant('Upper', 'x')$$, 'PC023', 'upper case');
select refuses($$select custody.register_tenant('-x', 'x')$$, 'PC023', 'a dash in front');
select refuses($$select custody.register_tenant(repeat('x', 64), 'x')$$, 'PC023', 'a name of 64 characters');
select is(custody.register_tenant(repeat('x', 63), 'x'), repeat('x', 63), 'a name may have 63');

select custody.set_context('tenants_new', 'clerk');
select is((select count(*) from custody_data.tenants), 1::bigint, 'a context shows its own tenant alone');
set local session authorization custody_app;
select refuses($$select custody.register_tenant('tenants_app', 'x')$$, '42501', 'applications do not register tenants');
select refuses($$select * from custody.list_tenants()$$, '42501', 'applications do not list tenants');
select * from finish();
rollback;
