-- Findings open alerts, fold into them, and are known again; people other than those they are about settle them.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('alerts_a'), tenant('alerts_b');
insert into custody_data.identities (tenant_id, user_id) values ('alerts_a', 'ada'), ('alerts_b', 'ada');
update custody_data.detection_rules set enabled = rule in ('canary', 'role_statement');

create function pg_temp.reads(p_tenant text, p_n integer, p_recorded timestamptz, p_actor text default 'ada', p_login text default 'custody_app') returns void language sql as $$
  insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, object_name, login, actor_id, identity_id, session_id)
  select p_tenant, p_recorded, (random() * 1e15)::bigint, n, p_recorded - interval '1 second', 'read', 'READ', 'custody_data.user_profiles', p_login, testing.identity(p_tenant, p_actor),
    (select c.identity_id from custody_data.canaries c where c.tenant_id = p_tenant), 'x.y'
  from generate_series(1, p_n) n;
$$;
create function pg_temp.detects(p_from timestamptz, p_to timestamptz, p_dry boolean default false) returns text language sql as $$
  select coalesce(string_agg(d.rule || ' ' || d.tenant_id || ' ' || d.outcome, ', ' order by d.rule, d.tenant_id), 'nothing') from custody.detect(p_from, p_to, p_dry) d;
$$;
create function pg_temp.alert(p_tenant text, p_rule text default 'canary') returns custody_data.alerts language sql security definer as $$
  select a from custody_data.alerts a where a.tenant_id = p_tenant and a.rule = p_rule order by a.opened_at desc limit 1;
$$;

-- Planting.
set local session authorization custody_audit;
select enter('alerts_a', 'auditor') /* $1 */;
select set_config('testing.canary', custody.plant_canary('mata-hari', '{"full_name": "Mata Hari"}')::text, true);
select row_eq($$select e.subject_id, e.resource_id collate "default", e.metadata from last_event('alerts_a', 'canary.plant') e$$, row (null::uuid, null::text, '{"profile": true}'::jsonb), 'the trail does not say who was planted');
select refuses($$select custody.plant_canary('ada')$$, 'PC023', 'nobody who is known is planted');
select refuses($$select custody.plant_canary('')$$, 'PC003', 'nor nobody');
select refuses($$select custody.remove_canary(gen_random_uuid())$$, 'PC076', 'only who was planted is removed');
select enter('alerts_b', 'auditor') /* $1 */;
select custody.plant_canary('mata-hari');
select refuses(format('select custody.remove_canary(%L)', current_setting('testing.canary')), 'PC076', 'not by another tenant');
select is((select count(*) from custody_data.canaries), 1::bigint, 'who sees its own alone');
select enter('alerts_b', 'auditor', null, 'ada') /* $1 */;
select refuses($$select custody.plant_canary('mata-hari-2')$$, 'PC015', 'confined to one person nobody is planted');

-- Opening and folding.
reset session authorization;
select is(attempt(g.name, 'select * from custody_data.canaries'), case when g.name in ('custody_auditor', 'custody_backup') then 'ok' else '42501' end, format('who is planted is told to %s', g.name)) from groups g;
select pg_temp.reads('alerts_a', 2, now() - interval '30 minutes'), pg_temp.reads('alerts_b', 1, now() - interval '30 minutes');
set local session authorization custody_runner;
select custody.set_context('system', 'runner', 'detection');
select is(pg_temp.detects(now() - interval '1 hour', now() - interval '20 minutes', true), 'canary alerts_a opened, canary alerts_b opened', 'a dry run says what it would open');
select is((select count(*) from custody_data.alerts) + (select count(*) from custody_data.detection_heads), 0::bigint, 'and writes nothing');
select is((select count(*) from events('system', 'alert.open')), 0::bigint, 'no event of one either');
select is((select e.metadata -> 'rows' from last_event('system', 'access.read') e), '2', 'but one of the question');
select is(pg_temp.detects(now() - interval '1 hour', now() - interval '20 minutes'), 'canary alerts_a opened, canary alerts_b opened', 'the run opens it');
select row_eq($$select a.rule collate "default", a.severity collate "default", a.state collate "default", a.actor_id, a.login collate "default", a.count, a.events, a.last_at, a.detail from pg_temp.alert('alerts_a') a$$,
  row ('canary'::text, 'critical'::text, 'open'::text, identity('alerts_a', 'ada'), 'custody_app'::text, 1::bigint, 2::bigint, now() - interval '30 minutes 1 second',
    jsonb_build_object('people', jsonb_build_array(current_setting('testing.canary')), 'objects', '["custody_data.user_profiles"]'::jsonb, 'purposes', null)), 'with who, how often, when and what');
select row_eq($$select e.metadata from events('system', 'alert.open') e where e.metadata ->> 'tenant' = 'alerts_a'$$,
  row (jsonb_build_object('alert_id', (pg_temp.alert('alerts_a')).alert_id, 'rule', 'canary', 'severity', 'critical', 'tenant', 'alerts_a')), 'and is an event');
select is(pg_temp.detects(now() - interval '1 hour', now() - interval '20 minutes'), 'canary alerts_a known, canary alerts_b known', 'the same events are no news');
select is((pg_temp.alert('alerts_a')).count, 1::bigint, 'and do not count');
reset session authorization;
select pg_temp.reads('alerts_a', 3, now() - interval '15 minutes');
set local session authorization custody_runner;
select custody.set_context('system', 'runner', 'detection');
select is(pg_temp.detects(now() - interval '20 minutes', now() - interval '10 minutes'), 'canary alerts_a folded', 'later ones fold');
select row_eq($$select a.count, a.events, a.last_at, a.first_at from pg_temp.alert('alerts_a') a$$, row (2::bigint, 5::bigint, now() - interval '15 minutes 1 second', now() - interval '30 minutes 1 second'), 'into the alert that is there, with those of an hour');
select is((select count(*) from events('system', 'alert.open') e where e.metadata ->> 'tenant' = 'alerts_a'), 1::bigint, 'which is opened once');
-- Without times: what came since, and a little before.
select is((select h.detected_to from custody_data.detection_heads h), now() - interval '10 minutes', 'how far detection is, is kept');
select is(pg_temp.detects(null, null), 'canary alerts_a known', 'the next run begins ten minutes before');
select refuses($$select custody.detect('-infinity', now())$$, 'PC009', 'from ever');
select refuses($$select custody.detect(now(), now())$$, 'PC009', 'no time at all');
select custody.set_context('alerts_a', 'runner');
select refuses($$select custody.detect()$$, 'PC015', 'for one tenant');

-- Who sees and settles them.
set local session authorization custody_dpo;
select custody.set_context('alerts_b', 'dpo');
select results_eq('select a.tenant_id::text collate "default" from custody.alerts a', array['alerts_b'], 'a tenant sees its own');
select refuses(format('select custody.%s', c), 'PC077', c || ' of another tenant') from (select (pg_temp.alert('alerts_a')).alert_id as id) a, unnest(array[format('acknowledge_alert(%L)', a.id), format('close_alert(%L, %L)', a.id, 'x')]) c;
select custody.set_context('alerts_a', 'ada');
select refuses(format('select custody.acknowledge_alert(%L)', (pg_temp.alert('alerts_a')).alert_id), 'PC078', 'not who it is about');
select refuses(format('select custody.close_alert(%L, %L)', (pg_temp.alert('alerts_a')).alert_id, 'a mistake'), 'PC078', 'nor is it closed by them');
select custody.set_context('alerts_a', 'dpo', null, 'ada');
select is((select count(*) from custody.alerts), 0::bigint, 'confined to one person nobody sees any');
select refuses(format('select custody.acknowledge_alert(%L)', (pg_temp.alert('alerts_a')).alert_id), 'PC015', 'or acknowledges');
select refuses(format('select custody.close_alert(%L, %L)', (pg_temp.alert('alerts_a')).alert_id, 'x'), 'PC015', 'or closes');
select custody.set_context('alerts_a', 'dpo');
select row_eq('select a.actor::text collate "default", a.state::text collate "default" from custody.alerts a', row ('ada'::text, 'open'::text), 'the officer sees whom it is about');
select custody.acknowledge_alert((pg_temp.alert('alerts_a')).alert_id), custody.acknowledge_alert((pg_temp.alert('alerts_a')).alert_id);
select row_eq($$select a.state collate "default", a.acknowledged_by from pg_temp.alert('alerts_a') a$$, row ('acknowledged'::text, identity('alerts_a', 'dpo')), 'and acknowledges it');
select is((select count(*) from events('alerts_a', 'alert.acknowledge')), 1::bigint, 'once, as an event');
reset session authorization;
select pg_temp.reads('alerts_a', 1, now() - interval '9 minutes');
set local session authorization custody_runner;
select custody.set_context('system', 'runner', 'detection');
select is(pg_temp.detects(now() - interval '10 minutes', now() - interval '8 minutes'), 'canary alerts_a folded', 'what comes then folds into it');
select row_eq($$select a.state collate "default", a.count, a.acknowledged_by from pg_temp.alert('alerts_a') a$$, row ('acknowledged'::text, 3::bigint, identity('alerts_a', 'dpo')), 'and it stays acknowledged');
set local session authorization custody_audit;
select custody.set_context('alerts_a', 'auditor');
select refuses(format('select custody.close_alert(%L, %L)', (pg_temp.alert('alerts_a')).alert_id, r), 'PC023', 'without a reason') from unnest(array[null, ' ', repeat('x', 2001)]) r;
select custody.close_alert((pg_temp.alert('alerts_a')).alert_id, 'a drill');
select row_eq($$select a.state collate "default", a.closed_by, a.close_reason from pg_temp.alert('alerts_a') a$$, row ('closed'::text, identity('alerts_a', 'auditor'), 'a drill'::text), 'the auditor closes it with a reason');
select row_eq($$select e.metadata from last_event('alerts_a', 'alert.close') e$$, row (jsonb_build_object('alert_id', (pg_temp.alert('alerts_a')).alert_id, 'rule', 'canary', 'reason', 'a drill')), 'an event');
select refuses(format('select custody.close_alert(%L, %L)', (pg_temp.alert('alerts_a')).alert_id, 'x'), 'PC077', 'for good');
select refuses(format('select custody.acknowledge_alert(%L)', (pg_temp.alert('alerts_a')).alert_id), 'PC077', 'it is acknowledged no more');

-- What was closed stays so, until something new comes.
set local session authorization custody_runner;
select custody.set_context('system', 'runner', 'detection');
select is(pg_temp.detects(now() - interval '1 hour', now() - interval '10 minutes'), 'canary alerts_a known, canary alerts_b known', 'what was closed is not opened by what it was about');
reset session authorization;
select pg_temp.reads('alerts_a', 1, now() - interval '5 minutes');
-- The login is known even where the actor is not, or says to be another.
insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, action, login, session_id)
select t, now() - interval '5 minutes', 9, row_number() over (), now() - interval '5 minutes', 'statement', 'ROLE', 'ALTER ROLE', l, 'x.y' from (values ('alerts_a', 'custody_dpo'), ('system', 'custody_audit')) v (t, l);
set local session authorization custody_runner;
select custody.set_context('system', 'runner', 'detection');
select is(pg_temp.detects(null, null), 'canary alerts_a opened, role_statement alerts_a opened, role_statement system opened', 'what came since opens another');
select is((select count(*) from custody.alerts), 5::bigint, 'the runner sees all of them');
set local session authorization custody_dpo;
select custody.set_context('alerts_a', 'somebody else');
select refuses(format('select custody.close_alert(%L, %L)', (pg_temp.alert('alerts_a', 'role_statement')).alert_id, 'x'), 'PC078', 'a login does not close an alert about itself, whoever it says to be');
set local session authorization custody_audit;
select custody.set_context('system', 'auditor');
select is((select count(*) from custody.alerts), 5::bigint, 'so does the auditor in tenant system');
select refuses(format('select custody.close_alert(%L, %L)', (pg_temp.alert('system', 'role_statement')).alert_id, 'x'), 'PC078', 'auditors neither');
select refuses(format('select custody.close_alert(%L, %L)', (pg_temp.alert('alerts_a')).alert_id, 'x'), 'PC077', 'an alert of a tenant is settled in its context');
select refuses($$select custody.set_detection_rule('canary', p_enabled => false)$$, '42501', 'nor switches rules off');

-- Rows stay.
reset session authorization;
set local role custody_owner;
select set_config('custody.tenant', 'system', true), set_config('custody.subject', '', true);
select refuses('delete from custody_data.alerts', 'PC020', 'the owner deletes no alert');
select refuses('update custody_data.alerts set severity = ''low''', 'PC030', 'nor makes one less severe');
select refuses('update custody_data.alerts set close_reason = ''y'' where state = ''closed''', 'PC020', 'nor writes another reason');
select refuses('update custody_data.alerts set state = ''open'', closed_at = null, closed_by = null, close_reason = null where state = ''closed''', 'PC020', 'nor opens one again');
select refuses('delete from custody_data.canaries', 'PC020', 'nor deletes who was planted');
reset role;

-- What the webhook did.
set local session authorization custody_runner;
select custody.set_context('system', 'runner', 'alert');
select custody.mark_alert_sent((pg_temp.alert('alerts_a')).alert_id, 'status 500', false), custody.mark_alert_sent((pg_temp.alert('alerts_a')).alert_id, 'sent', true);
select row_eq($$select a.attempts, a.last_status, a.sent_at is not null from pg_temp.alert('alerts_a') a$$, row (2, 'sent'::text, true), 'each attempt counts');
select custody.set_context('alerts_a', 'runner');
select refuses(format('select custody.mark_alert_sent(%L, %L, true)', gen_random_uuid(), 'sent'), 'PC015', 'in tenant system');
select * from finish();
rollback;
