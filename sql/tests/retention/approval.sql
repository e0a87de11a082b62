-- A policy is shortened by two people alone: who proposes, and another actor by another login who approves. Each step
-- is an event; the owner's own hand meets a guard.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('approval');
select tenant('approval_2');
create function pg_temp.change(p_class text, p_keep interval) returns uuid language plpgsql as $$
declare
  v_change custody_data.retention_changes := custody.set_retention_policy(p_class, p_keep, 'minimisation');
begin
  perform set_config('testing.change', v_change.change_id::text, true);
  return case when v_change.decision is null then v_change.change_id end;
end
$$;
create function pg_temp.open_change() returns uuid language sql as $$ select current_setting('testing.change')::uuid $$;
create function pg_temp.keeps(p_class text) returns interval language sql as $$ select p.keep from custody.retention_policies p where p.class = p_class $$;
create function pg_temp.status() returns text language sql as $$ select c.status from custody.retention_changes c where c.change_id = pg_temp.open_change() $$;

set local session authorization custody_dpo;
select enter('approval', 'ann') /* $1 */;
select isnt(pg_temp.change('conversations', '30 days'), null, 'what shortens is a proposal');
select is(pg_temp.keeps('conversations'), interval '90 days', 'by which nothing changes');
select is(pg_temp.status(), 'proposed', 'it waits');
select row_eq($$select c.keep, c.keep_before, c.basis, c.proposed_by, c.proposed_login, c.expires_at - c.proposed_at from custody.retention_changes c$$,
  row (interval '30 days', interval '90 days', 'minimisation'::text, identity('approval', 'ann'), 'custody_dpo'::text, interval '30 days'), 'with who proposed it, by which login, for 30 days');
select is((last_event('approval', 'retention.propose')).metadata - 'expires_at',
  jsonb_build_object('class', 'conversations', 'keep', '30 days', 'keep_before', '90 days', 'basis', 'minimisation', 'change_id', pg_temp.open_change()), 'the proposal is an event');
select is_empty($$select * from events('approval', 'retention.policy')$$, 'and no policy was set');

-- Not by the same person, under whatever name.
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC043', 'nobody approves what they proposed');
select enter('approval', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC043', 'nor as another actor by the same login');
set local session authorization custody_runner;
select enter('approval', 'ann') /* $1 */;
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC043', 'nor as the same actor by another login');
set local session authorization custody_dpo;
set local role custody_privacy;
select enter('approval', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC043', 'nor by another role of the same login');
select is(pg_temp.keeps('conversations'), interval '90 days', 'so it holds as before');

-- Not by who may not, nor from elsewhere.
set local session authorization custody_app;
select enter('approval', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, '42501', 'applications approve nothing');
set local session authorization custody_audit;
select enter('approval', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, '42501', 'nor do auditors');
select is(pg_temp.status(), 'proposed', 'who see it');
set local session authorization custody_runner;
select enter('approval_2', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC044', 'another tenant has no such change');
select enter('approval', 'bob', null, 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC015', 'not in a context of one person');
select refuses($$select custody.reject_retention_change(pg_temp.open_change(), 'x')$$, 'PC015', 'nor is it rejected there');

-- By a second person.
select enter('approval', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(gen_random_uuid())$$, 'PC044', 'no such change');
select refuses($$select custody.approve_retention_change(null)$$, 'PC044', 'none at all');
select is((custody.approve_retention_change(pg_temp.open_change())).decision, 'approved', 'another actor by another login approves');
select row_eq($$select c.status, c.decided_by, c.decided_login, c.decided_at from custody.retention_changes c where c.change_id = pg_temp.open_change()$$,
  row ('approved'::text, identity('approval', 'bob'), 'custody_runner'::text, now()), 'which is on record');
select is(pg_temp.keeps('conversations'), interval '30 days', 'then it holds');
select row_eq($$select p.set_by, p.change_id from custody_data.retention_policies p where p.tenant_id = 'approval'$$, row (identity('approval', 'ann'), pg_temp.open_change()), 'as set by who proposed it, with its change');
select row_eq($$select e.actor_id, e.db_role, e.metadata from last_event('approval', 'retention.approve') e$$,
  row (identity('approval', 'bob'), 'custody_runner'::text, jsonb_build_object('class', 'conversations', 'keep', '30 days', 'keep_before', '90 days', 'change_id', pg_temp.open_change())), 'the approval is an event of who approved');
select is((last_event('approval', 'retention.policy')).metadata ->> 'change_id', pg_temp.open_change()::text, 'and so is the change of the policy');
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC044', 'once');
select refuses($$select custody.reject_retention_change(pg_temp.open_change(), 'too late')$$, 'PC044', 'what is approved is not rejected');
select is((select c.status from custody.retention_changes c where c.change_id = pg_temp.open_change()), 'approved', 'it stays on record');

-- Rejected, withdrawn, replaced.
select isnt(pg_temp.change('consent', '6 years'), null, 'bob proposes another');
select refuses($$select custody.reject_retention_change(pg_temp.open_change(), ' ')$$, 'PC023', 'no reason');
select refuses($$select custody.reject_retention_change(pg_temp.open_change(), repeat('x', 1001))$$, 'PC023', 'a reason of 1001 characters');
set local session authorization custody_dpo;
select enter('approval', 'ann') /* $1 */;
select is((custody.reject_retention_change(pg_temp.open_change(), 'claims may be raised')).decision, 'rejected', 'ann rejects it');
select is((last_event('approval', 'retention.reject')).metadata, jsonb_build_object('class', 'consent', 'change_id', pg_temp.open_change(), 'reason', 'claims may be raised'), 'which is an event');
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC044', 'what is rejected is not approved');
select isnt(pg_temp.change('consent', '5 years'), null, 'ann proposes one');
select is((custody.reject_retention_change(pg_temp.open_change(), 'a slip')).decision, 'withdrawn', 'and withdraws it');
select is((last_event('approval', 'retention.withdraw')).metadata ->> 'reason', 'a slip', 'which is an event');
select isnt(pg_temp.change('consent', '4 years'), null, 'and another');
select set_config('testing.first', pg_temp.open_change()::text, true);
select isnt(pg_temp.change('consent', '3 years'), null, 'in whose place she puts a third');
select is((last_event('approval', 'retention.propose')).metadata ->> 'replaces', current_setting('testing.first'), 'which is an event');
set local session authorization custody_runner;
select enter('approval', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change(current_setting('testing.first')::uuid)$$, 'PC044', 'the one before is over');
select is((custody.set_retention_policy('consent', interval '10 years', 'a new law')).decision, 'set', 'what lengthens waits for nobody');
select is((last_event('approval', 'retention.policy')).metadata ->> 'replaces', pg_temp.open_change()::text, 'and ends what was proposed');
select refuses($$select custody.approve_retention_change(pg_temp.open_change())$$, 'PC044', 'which nobody can approve now');
select is(pg_temp.keeps('consent'), interval '10 years', 'it is longer');
select results_eq($$select c.status, count(*) from custody.retention_changes c group by 1 order by 1$$, $$values ('approved', 1::bigint), ('rejected', 1::bigint), ('replaced', 2::bigint), ('set', 1::bigint), ('withdrawn', 1::bigint)$$, 'all are on record');

-- Overtaken, expired.
set local session authorization custody_dpo;
select enter('approval_2', 'ann') /* $1 */;
select isnt(pg_temp.change('conversations', '60 days'), null, 'a proposal of a tenant without a policy of its own');
reset session authorization;
set local role custody_admin;
select custody.set_context('system', 'admin');
select is((custody.set_retention_policy('conversations', interval '100 days', 'the shared one')).decision, 'set', 'the shared policy is lengthened');
select isnt(pg_temp.change('audit', '6 years'), null, 'to shorten the shared one takes two as well');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is((custody.approve_retention_change(pg_temp.open_change())).decision, 'approved', 'who may act for tenant system');
select is(pg_temp.keeps('audit'), interval '6 years', 'then it holds for all');
select enter('approval_2', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change((select c.change_id from custody.retention_changes c))$$, 'PC044', 'what the tenant''s proposal would change is another thing now');
reset session authorization;
insert into custody_data.retention_changes (tenant_id, class, keep, keep_before, basis, proposed_by, proposed_login, proposed_at, expires_at)
values ('approval_2', 'entry_ids', '10 days', '90 days', 'x', gen_random_uuid(), 'somebody', now() - interval '31 days', now() - interval '1 day');
set local session authorization custody_runner;
select enter('approval_2', 'bob') /* $1 */;
select refuses($$select custody.approve_retention_change((select c.change_id from custody.retention_changes c where c.status = 'expired'))$$, 'PC044', 'after 30 days it is over');
select refuses($$select custody.reject_retention_change((select c.change_id from custody.retention_changes c where c.status = 'expired'), 'x')$$, 'PC044', 'and not rejected any more');
select isnt(pg_temp.change('entry_ids', '10 days'), null, 'it is proposed again');
select is((last_event('approval_2', 'retention.propose')).metadata ->> 'replaces', null, 'in nobody''s place');

-- What is shorter: by days, not by intervals, for which a year has 360 of them.
reset session authorization;
select is(custody_data.shortens('consent', v.keep::interval, v.before::interval), v.shortens, format('%s instead of %s', v.keep, v.before))
from (values ('361 days', '1 year', true), ('365 days', '1 year', true), ('366 days', '1 year', false), ('1 year', '12 months', false), ('1 year', '365 days', false), ('1 year', '366 days', true),
  ('30 days', '1 month', true), ('31 days', '1 month', false), ('1 month', '30 days', true), ('1 month', '28 days', false), ('7 years', '7 years', false), ('7 years 1 day', '7 years', false),
  ('6 years 11 months', '7 years', true), ('89 days 23:59:59', '90 days', true), ('2160 hours', '90 days', false), ('100 years', '7 years', false), ('1 month', '1 month 1 day', true), ('1 second', '1 microsecond', false)) v (keep, before, shortens);
select is(custody_data.shortens(k, '1 day', '1 year'), false, format('%s: no data goes by it', k)) from unnest(array['key_age', 'kek_generation', 'key_backup']) k;
select is(custody_data.shortens(k, '1 day', '1 year'), true, format('%s: data go by it', k)) from unnest(array['audit', 'audit_hot', 'consent', 'conversations', 'entry_ids', 'erased_ids', 'alerts']) k;
set local session authorization custody_dpo;
select enter('approval', 'ann') /* $1 */;
select is((custody.set_retention_policy('key_age', interval '1 day', 'x')).decision, 'set', 'so policies for keys are set at once');

-- The owner, and a superuser, by their own hand.
reset session authorization;
set local role custody_owner;
select custody.set_context('approval', 'owner');
select refuses($$update custody_data.retention_policies set keep = '1 day' where tenant_id = 'approval' and class = 'consent'$$, 'PC043', 'the owner shortens no policy');
select refuses($$update custody_data.retention_policies set keep = '1 day', change_id = (select c.change_id from custody.retention_changes c where c.status = 'approved') where tenant_id = 'approval' and class = 'conversations'$$, 'PC043', 'nor with a change that approved something else');
select refuses($$insert into custody_data.retention_policies (tenant_id, class, keep, basis) values ('approval', 'erased_ids', '1 day', 'x')$$, 'PC043', 'nor by a row of the tenant');
select refuses($$insert into custody_data.retention_policies (tenant_id, class, keep, basis) values ('approval', 'consent', '1 day', 'x') on conflict (tenant_id, class) do update set keep = excluded.keep$$, 'PC043', 'nor in the place of one');
select refuses($$update custody_data.retention_policies set class = 'erased_ids' where tenant_id = 'approval' and class = 'conversations'$$, 'PC030', 'nor does a policy become that of another class');
select lives_ok($$update custody_data.retention_policies set keep = '11 years' where tenant_id = 'approval' and class = 'consent'$$, 'to lengthen it is harmless');
select refuses($$update custody_data.retention_changes set keep = '1 day'$$, 'PC030', 'what was proposed stays as it is');
select refuses($$update custody_data.retention_changes set reason = 'another' where decision is not null$$, 'PC020', 'what was decided is final');
select throws_ok($$insert into custody_data.retention_changes (tenant_id, class, keep, keep_before, basis, proposed_by, decision, decided_by, decided_login, decided_at) select 'approval', 'consent', '1 day', '1 year', 'x', i, 'approved', i, 'other', now() from gen_random_uuid() i$$,
  '23514', null, 'nor is a change approved by who proposed it');
select throws_ok($$insert into custody_data.retention_changes (tenant_id, class, keep, keep_before, basis, proposed_by, decision, decided_by, decided_login, decided_at) values ('approval', 'consent', '1 day', '1 year', 'x', gen_random_uuid(), 'approved', gen_random_uuid(), session_user, now())$$,
  '23514', null, 'or by the same login');
reset role;
select refuses($$update custody_data.retention_policies set keep = '1 day' where tenant_id = 'system' and class = 'consent'$$, 'PC043', 'a superuser meets the guard too');
set local session_replication_role = replica;
select refuses($$update custody_data.retention_policies set keep = '1 day' where tenant_id = 'system' and class = 'consent'$$, 'PC043', 'with triggers off as well');
select * from finish();
rollback;
