-- What detection expects is said by administrators, and each word of it is an event.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('expects_a'), tenant('expects_b');
create role expects_admin login in role custody_admin;
set local session authorization expects_admin;
select custody.set_context('expects_a', 'admin');
select refuses($$select custody.set_detection_rule('canary', 2)$$, 'PC015', 'rules are those of all tenants');
select refuses($$select custody.set_detection_networks('custody_app', '{10.0.0.0/8}')$$, 'PC015', 'so are networks');
select custody.set_actor_hours('ada', 'America/New_York', '08:00', '16:30');
select row_eq($$select s.time_zone, s.work_from, s.work_to, s.work_days from custody_data.actor_settings s$$, row ('America/New_York'::text, time '08:00', time '16:30', '{1,2,3,4,5}'::smallint[]), 'hours are an actor''s');
select row_eq($$select e.subject_id, e.metadata from last_event('expects_a', 'detection.configure') e$$,
  row (identity('expects_a', 'ada'), '{"days": [1, 2, 3, 4, 5], "hours": "08:00:00 to 16:30:00", "everybody": false, "time_zone": "America/New_York"}'::jsonb), 'an event about the actor');
select refuses(format('select custody.set_actor_hours(%L, %L, %L, %L, %L)', 'ada', z, f, t, d), 'PC023', format('hours %s %s %s %s', z, f, t, d))
from (values ('Mars/Olympus', '08:00', '16:00', '{1}'), ('UTC', '16:00', '08:00', '{1}'), ('UTC', '08:00', '08:00', '{1}'), ('UTC', null, '08:00', '{1}'), ('UTC', '08:00', '16:00', '{}'), ('UTC', '08:00', '16:00', '{8}'), ('UTC', '08:00', '16:00', null)) v (z, f, t, d);
select refuses($$select custody.set_actor_hours('', 'UTC')$$, 'PC003', 'of nobody');
select custody.set_context('expects_b', 'admin');
select is((select count(*) from custody_data.actor_settings), 0::bigint, 'another tenant does not see them');
select custody.set_context('expects_a', 'admin', null, 'ada');
select refuses($$select custody.set_actor_hours('ada', 'UTC')$$, 'PC015', 'confined to one person');
select custody.set_context('expects_a', 'admin');
select custody.set_actor_hours('ada', null);
select is((select count(*) from custody_data.actor_settings), 0::bigint, 'without a time zone they end');

select custody.set_context('system', 'admin');
select custody.set_detection_rule('canary', 2, interval '2 hours', 'high', false);
select row_eq($$select r.threshold, r.look_back, r.severity::text collate "default", r.enabled from custody.detection_rules r where r.rule = 'canary'$$, row (2::bigint, interval '2 hours', 'high'::text, false), 'a rule is changed');
select custody.set_detection_rule('canary', p_enabled => true);
select row_eq($$select r.threshold, r.severity::text collate "default", r.enabled from custody.detection_rules r where r.rule = 'canary'$$, row (2::bigint, 'high'::text, true), 'what is not named stays');
select refuses(format('select custody.set_detection_rule(%L, %L, %L, %L)', 'canary', t, l, s), 'PC023', format('rule %s %s %s', t, l, s))
from (values ('0', null, null), ('-1', null, null), (null, '0', null), (null, '-1 day', null), (null, '2 years', null), (null, null, 'fatal')) v (t, l, s);
select refuses($$select custody.set_detection_rule('nonesuch')$$, 'PC075', 'an unknown rule');
select refuses($$select custody.set_detection_rule(null)$$, 'PC075', 'no rule');
select custody.set_detection_networks('custody_app', '{10.0.0.0/8,::1}');
select row_eq($$select e.metadata from last_event('system', 'detection.configure') e$$, row ('{"role": "custody_app", "networks": ["10.0.0.0/8", "::1"]}'::jsonb), 'networks are an event');
select refuses(format('select custody.set_detection_networks(%L, %L)', r, n), 'PC023', format('networks of %s: %s', r, n)) from (values ('nonesuch', '{10.0.0.0/8}'), (null, '{10.0.0.0/8}'), ('custody_app', '{null}')) v (r, n);
select refuses($$select custody.set_detection_networks('custody_app', array_fill('10.0.0.0/8'::inet, '{257}'))$$, 'PC023', '257 of them');

-- Each rule has its function, its words, and a control.
reset session authorization;
select ok(to_regprocedure(format('custody_data.%I(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input)', r.function_name)) is not null, format('rule %s has its function', r.rule)) from custody_data.detection_rules r;
select is((select count(*) from custody_data.detection_rules r where '' in (r.title, r.description) or r.control !~ 'HIPAA|SOC|ISO|GDPR' or r.description !~ '\.$'), 0::bigint, 'says what it is, and for which control');
select is((select count(*) from custody_data.detection_rules), 17::bigint, 'there are seventeen');
select * from finish();
rollback;
