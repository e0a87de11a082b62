-- A person who reads the trail sees what was done about them and what they did; of other people in it only that
-- they acted, or were acted on.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('confined_reading');
set local session authorization custody_app;
select enter('confined_reading', 'doctor') /* $1 */;
select custody.put_profile('bob', '{}');
select custody.record_audit_event('phi.access', 'health_record', 'about ada', p_subject_user_id => 'ada', p_metadata => '{"count": 1}', p_personal => '{"note": "of ada"}');
select enter('confined_reading', 'ada') /* $1 */;
select custody.record_audit_event('phi.access', 'account', 'bob', p_metadata => '{"count": 2}', p_personal => '{"note": "of bob"}');
select custody.record_audit_event('account.login', 'document', 'of nobody', p_metadata => '{"source": "web"}');
select enter('confined_reading', 'ada', null, 'ada') /* $1 */;

create temp table seen as select * from custody.audit_events(now() - interval '1 hour', now() + interval '1 hour');
select row_eq($$select s.actor collate "default", s.subject collate "default", s.resource_id collate "default", s.metadata from seen s where s.action = 'phi.access' and s.subject = 'ada'$$,
  row (null::text, 'ada'::text, 'about ada'::text, '{"count": 1}'::jsonb), 'what was done about them, without who did it by name');
select row_eq($$select s.actor collate "default", s.subject collate "default", s.subject_id, s.resource_id collate "default", s.metadata from seen s where s.action = 'phi.access' and s.actor = 'ada'$$,
  row ('ada'::text, null::text, null::uuid, null::text, '{}'::jsonb), 'what they did to somebody, without to whom and what');
select row_eq($$select s.actor collate "default", s.resource_id collate "default", s.metadata from seen s where s.action = 'account.login'$$, row ('ada'::text, 'of nobody'::text, '{"source": "web"}'::jsonb), 'what they did to nobody');
select is((select count(*) from seen s where s::text ~ 'bob|doctor|note'), 0::bigint, 'no other name, and nothing personal');
set local session authorization custody_dpo;
select enter('confined_reading', 'dpo', null, 'ada') /* $1 */;
select is((select count(*) from custody.audit_events(now() - interval '1 hour', now() + interval '1 hour') s where s::text ~ 'of bob'), 0::bigint, 'a privacy officer in their context neither');
-- An export, which a person is given, is the same.
set local session authorization custody_app;
select enter('confined_reading', 'ada', null, 'ada') /* $1 */;
create temp table exported as select e from jsonb_array_elements(custody.export_subject('ada') #> '{audit_events,data}') e;
select is((select count(*) from exported x where x.e::text ~ 'bob|doctor'), 0::bigint, 'an export names nobody else');
select is((select x.e -> 'personal' from exported x where x.e ->> 'resource_id' = 'about ada'), '{"note": "of ada"}', 'and has what is personal of the person');
select ok(exists (select from exported x where x.e ->> 'action' = 'phi.access' and (x.e ->> 'by_the_person')::boolean and not x.e ?| array['resource_id', 'personal']), 'what they did to others is there without the others');
select * from finish();
rollback;
