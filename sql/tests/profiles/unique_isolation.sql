-- Where something must be unique a transaction has to see what was committed while it waited: read committed alone does.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
select tenant('unique_isolation');
update custody_data.tenants set unique_fields = '{email}' where tenant_id = 'unique_isolation';
set local session authorization custody_app;
select enter('unique_isolation', 'clerk') /* $1 */;
select refuses($$select custody.set_unique_fields('{}')$$, 'PC026', 'the rule');
select refuses($$select custody.put_profile('ada', '{"email": "ada@example.org"}')$$, 'PC026', 'an address put');
select is(custody.put_profile('ada', '{"city": "London"}'), 1, 'what need not be unique');
select refuses($$select custody.patch_profile('ada', '{"email": "ada@example.org"}')$$, 'PC026', 'an address patched');
select enter('unique_isolation', 'ada', null, 'ada') /* $1 */;
select is(custody.put_profile('ada', '{"city": "Rome"}'), 2, 'in a context of one person too');
select refuses($$select custody.put_profile('ada', '{"email": "ada@example.org"}')$$, 'PC026', 'and an address there');
select * from finish();
rollback;
