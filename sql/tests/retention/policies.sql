-- Policies: the shipped ones hold for all, a tenant's own goes before, each with its legal basis.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('policies');
select tenant('policies_2');
set local session authorization custody_dpo;
select enter('policies', 'dpo') /* $1 */;

select results_eq($$select p.class collate "default", p.keep, p.own from custody.retention_policies p order by 1$$,
  $$values ('access'::text, interval '12 months', false), ('alerts', interval '6 years', false),
    ('audit', interval '7 years', false), ('audit_hot', interval '90 days', false), ('consent', interval '7 years', false), ('conversations', interval '90 days', false),
    ('entry_ids', interval '90 days', false), ('erased_ids', interval '1 year', false), ('kek_generation', interval '7 days', false), ('key_age', interval '1 year', false), ('key_backup', interval '7 days', false), ('restored', interval '30 days', false),
    ('shipped_logs', interval '3 years', false)$$, 'what is shipped');
select is((select count(*) from custody.retention_policies p where coalesce(p.basis, '') = ''), 0::bigint, 'each has its basis');
select is((custody.set_retention_policy('conversations', interval '120 days', 'contract with the customer')).decision, 'set', 'what lengthens is set at once');
select row_eq($$select c.status, c.keep, c.keep_before, c.decided_by, c.decided_login from custody.retention_changes c$$,
  row ('set'::text, interval '120 days', interval '90 days', identity('policies', 'dpo'), 'custody_dpo'::text), 'and on record, with what held before');
select row_eq($$select p.tenant_id collate "default", p.keep, p.basis, p.own, p.set_by from custody.retention_policies p where p.class = 'conversations'$$,
  row ('policies'::text, interval '120 days', 'contract with the customer'::text, true, identity('policies', 'dpo')), 'the tenant''s own goes before');
select is((last_event('policies', 'retention.policy')).metadata - 'change_id', '{"class": "conversations", "keep": "120 days", "keep_before": "90 days", "basis": "contract with the customer"}', 'the change is an event');
select is((last_event('policies', 'retention.policy')).metadata ->> 'change_id', (select p.change_id::text from custody_data.retention_policies p where p.tenant_id = 'policies'), 'that names its row');
select is((custody.set_retention_policy('conversations', interval '120 days', 'other contract')).decision, 'set', 'another basis alone is set at once');
select enter('policies_2', 'dpo') /* $1 */;
select is((select p.keep from custody.retention_policies p where p.class = 'conversations'), interval '90 days', 'another tenant keeps the shared one');
select is((select count(*) from custody_data.retention_policies p where p.tenant_id <> 'system'), 0::bigint, 'and does not see the other''s');

select refuses($$select custody.set_retention_policy('dreams', interval '1 year', 'x')$$, 'PC012', 'an unknown policy');
select refuses($$select custody.set_retention_policy(null, interval '1 year', 'x')$$, 'PC012', 'no policy');
select refuses($$select custody.set_retention_policy('audit_hot', interval '1 year', 'x')$$, 'PC012', 'the hot period of one tenant');
select refuses($$select custody.set_retention_policy('shipped_logs', interval '6 years', 'x')$$, 'PC012', 'the log of one tenant');
select refuses($$select custody.set_retention_policy('consent', interval '0', 'x')$$, 'PC023', 'no time at all');
select refuses($$select custody.set_retention_policy('consent', interval '-1 year', 'x')$$, 'PC023', 'less than none');
select refuses($$select custody.set_retention_policy('consent', interval '101 years', 'x')$$, 'PC023', 'more than a hundred years');
select refuses($$select custody.set_retention_policy('consent', null, 'x')$$, 'PC023', 'no interval');
select refuses($$select custody.set_retention_policy('consent', interval '1 year', null)$$, 'PC023', 'no basis');
select refuses($$select custody.set_retention_policy('consent', interval '1 year', '  ')$$, 'PC023', 'a blank basis');
select refuses($$select custody.set_retention_policy('consent', interval '1 year', repeat('x', 1001))$$, 'PC023', 'a basis of 1001 characters');
select enter('policies', 'dpo', null, 'dpo') /* $1 */;
select refuses($$select custody.set_retention_policy('consent', interval '1 year', 'x')$$, 'PC015', 'in a context of one person');
select is(rows_of('policies_2', 'retention_policies'), 0::bigint, 'none of it changed anything');
set local session authorization custody_app;
select enter('policies', 'clerk') /* $1 */;
select refuses($$select custody.set_retention_policy('consent', interval '1 year', 'x')$$, '42501', 'applications set no policy');
select is((select count(*) from custody.retention_policies), 13::bigint, 'but see them');
set local session authorization custody_runner;
set local role custody_worker;
select enter('policies', 'runner') /* $1 */;
select refuses($$select custody.set_retention_policy('consent', interval '1 year', 'x')$$, '42501', 'nor does the worker');
-- The shared ones are set in tenant system, by who administers the database.
reset session authorization;
set local role custody_admin;
select custody.set_context('system', 'admin');
select refuses($$select custody.set_retention_policy('audit_hot', interval '167 hours', 'x')$$, 'PC023', 'a hot period of less than 7 days');
select is((custody.set_retention_policy('audit_hot', interval '120 days', 'operations')).keep_before, interval '90 days', 'the hot period, in tenant system');
select enter('policies_2', 'admin') /* $1 */;
select is((select p.keep from custody.retention_policies p where p.class = 'audit_hot'), interval '120 days', 'holds for all');
select * from finish();
rollback;
