-- Who read this person's record, what did this actor read, how much is read where; each question is an event.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('access_a'), tenant('access_b');
select populate('access_a', 'ada'), populate('access_b', 'ada') /* $1 */;
set local session authorization custody_app;
select enter('access_a', 'nurse') /* $1 */;
select custody.record_audit_event('account.login', 'account', u, p_subject_user_id => u) from unnest(array['bob', 'nurse']) u;
reset session authorization;
insert into custody_data.identities (tenant_id, kind, user_id) values ('access_a', 'service', 'robot');
create function pg_temp.read(p_tenant text, p_actor text, p_person text, p_minutes integer, p_purpose text default 'treatment', p_object text default 'custody_data.user_profiles',
  p_kind text default 'read', p_class text default 'READ') returns void language sql as $$
  insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, action, object_name, login, role, actor_id, identity_id, purpose, rows, client, session_id)
  values (p_tenant, now(), 7, p_minutes, now() - p_minutes * interval '1 minute', p_kind, p_class, 'record.read', p_object, 'custody_app', 'custody_readwrite', testing.identity(p_tenant, p_actor),
    testing.identity(p_tenant, p_person), p_purpose, 1, '192.0.2.1', 'x.y');
$$;
select pg_temp.read('access_a', 'nurse', 'bob', 10), pg_temp.read('access_a', 'nurse', 'ada', 20, 'billing', 'custody_data.conversations'), pg_temp.read('access_a', 'robot', 'bob', 30, 'recall'),
  pg_temp.read('access_a', 'bob', 'bob', 40, null), pg_temp.read('access_a', 'nurse', 'bob', 50, 'treatment', 'custody_data.user_profiles', 'statement', 'READ'),
  pg_temp.read('access_a', 'nurse', 'bob', 3000, 'long ago'), pg_temp.read('access_a', 'nurse', null, 60, 'clean up', 'custody_data.user_profiles', 'statement', 'WRITE'),
  pg_temp.read('access_b', 'clerk', 'ada', 10, 'elsewhere');

set local session authorization custody_audit;
select custody.set_context('access_a', 'auditor', 'complaint 7');
select results_eq($$select a.actor collate "default", a.purpose collate "default", a.kind collate "default" from custody.access_to_person(now() - interval '1 day', now(), 'bob') a$$,
  $$values ('nurse', 'treatment', 'read'), ('robot', 'recall', 'read'), ('bob', null, 'read'), ('nurse', 'treatment', 'statement')$$, 'who read this person''s record, newest first, and for what purpose');
select row_eq($$select e.metadata, e.subject_id, e.purpose, e.resource_type collate "default" from last_event('access_a', 'access.read') e$$,
  row (jsonb_build_object('question', 'person', 'from', custody_data.entry_time(now() - interval '1 day'), 'to', custody_data.entry_time(now()), 'rows', 4, 'by_person', true, 'by_actor', false),
    identity('access_a', 'bob'), 'complaint 7'::text, 'access_events'::text), 'the question is an event about the person, with its bounds and how much was the answer');
select is((select count(*) from custody.access_to_person(now() - interval '1 day', now(), null, identity('access_a', 'bob'))), 4::bigint, 'by identity');
select is((select count(*) from custody.access_to_person(now() - interval '30 minutes', now() - interval '10 minutes', 'bob')), 1::bigint, 'p_from is in, p_to is not');
select is((select count(*) from custody.access_to_person(now() - interval '1 day', now(), 'bob', p_limit => 2)), 2::bigint, 'as many as asked for');
select results_eq($$select a.subject collate "default", a.object_name collate "default" from custody.access_by_actor(now() - interval '1 day', now(), 'nurse') a$$,
  $$values ('bob', 'custody_data.user_profiles'), ('ada', 'custody_data.conversations'), ('bob', 'custody_data.user_profiles')$$, 'what this actor read, and not what they wrote');
select row_eq($$select e.metadata ->> 'question', e.metadata -> 'by_actor', e.subject_id from last_event('access_a', 'access.read') e$$, row ('actor'::text, 'true'::jsonb, identity('access_a', 'nurse')), 'an event about the actor');
select results_eq($$select s.object_name collate "default", s.role collate "default", sum(s.reads)::bigint, sum(s.rows)::bigint, max(s.people) >= 1 from custody.access_summary(now() - interval '1 day', now()) s where s.object_name like '%conversations' group by 1, 2$$,
  $$values ('custody_data.conversations', 'custody_readwrite', 1::bigint, 1::bigint, true)$$, 'reads by table and role');
select is((select sum(s.reads) from custody.access_summary(now() - interval '1 day', now()) s), 5::numeric, 'of the tenant alone');
select is((select count(*) from custody.access_summary(now() - interval '1 day', now()) s where s.hour <> date_trunc('hour', s.hour)), 0::bigint, 'by hour');
select refuses($$select custody.access_of_subject(now() - interval '1 day', now(), 'bob')$$, '42501', 'auditors hand nothing out');

-- What they refuse.
select refuses(format('select custody.%s(%s)', f, a), c, format('%s %s', f, a))
from unnest(array['access_to_person', 'access_by_actor']) f, (values ('null, now(), ''bob''', 'PC009'), ('now(), now(), ''bob''', 'PC009'), ('now(), ''infinity'', ''bob''', 'PC009'), ('now() - interval ''1 day'', now()', 'PC023'),
  ('now() - interval ''1 day'', now(), ''bob'', gen_random_uuid()', 'PC023'), ('now() - interval ''1 day'', now(), ''never seen''', 'PC011'), ('now() - interval ''1 day'', now(), null, gen_random_uuid()', 'PC011'),
  ('now() - interval ''1 day'', now(), ''''', 'PC003'), ('now() - interval ''1 day'', now(), ''bob'', p_limit => 0', 'PC023'), ('now() - interval ''1 day'', now(), ''bob'', p_limit => 10001', 'PC023')) v (a, c);
select refuses($$select custody.access_summary(null, now())$$, 'PC009', 'a summary of all times');
select custody.set_context('access_b', 'auditor');
select results_eq($$select a.purpose collate "default" from custody.access_to_person(now() - interval '1 day', now(), 'ada') a where a.purpose is not null$$, array['elsewhere'], 'another tenant''s people are others');
select refuses(format('select custody.access_to_person(now() - interval %L, now(), null, %L)', '1 day', identity('access_a', 'bob')), 'PC011', 'nor known by identity');
select custody.set_context('access_a', 'auditor', null, 'bob');
select refuses($$select custody.access_to_person(now() - interval '1 day', now(), 'bob')$$, 'PC015', 'confined to one person: who it was');
select refuses($$select custody.access_by_actor(now() - interval '1 day', now(), 'bob')$$, 'PC015', 'what one read');
select refuses($$select custody.access_summary(now() - interval '1 day', now())$$, 'PC015', 'the tenant''s reads');

-- One's own list.
set local session authorization custody_app;
select enter('access_a', 'bob', 'own list', 'bob') /* $1 */;
select results_eq($$select a.by_whom collate "default", a.purpose collate "default" from custody.access_of_subject(now() - interval '1 day', now(), 'bob') a$$,
  $$values ('staff', 'treatment'), ('program', 'recall'), ('self', null)$$, 'a person''s own list says when, why and whether by staff, a program or themselves');
select is((select count(*) from custody.access_of_subject(now() - interval '1 day', now(), null, identity('access_a', 'bob'))), 3::bigint, 'by identity');
select row_eq($$select e.metadata ->> 'question', e.subject_id from last_event('access_a', 'access.read') e$$, row ('own'::text, identity('access_a', 'bob')), 'an event too');
select refuses($$select custody.access_of_subject(now() - interval '1 day', now(), 'ada')$$, 'PC015', 'of nobody else');
select refuses(format('select custody.access_of_subject(now() - interval %L, now(), null, %L)', '1 day', identity('access_a', 'ada')), 'PC015', 'nor by identity');
select refuses($$select custody.access_of_subject(null, now(), 'bob')$$, 'PC009', 'of all times');
select refuses($$select custody.access_of_subject(now() - interval '1 day', now(), 'bob', p_limit => null)$$, 'PC023', 'without a limit');
select refuses($$select custody.access_of_subject(now() - interval '1 day', now())$$, 'PC023', 'of nobody');
select refuses($$select custody.access_to_person(now() - interval '1 day', now(), 'bob')$$, '42501', 'an application does not ask who it was');
select enter('access_a', 'nurse') /* $1 */;
select refuses($$select custody.access_of_subject(now() - interval '1 day', now(), 'bob')$$, 'PC015', 'nor for anybody without being confined');
set local session authorization custody_dpo;
select enter('access_a', 'dpo') /* $1 */;
select is((select count(*) from custody.access_of_subject(now() - interval '1 day', now(), 'bob')), 3::bigint, 'the officer hands it out');
select refuses($$select custody.access_of_subject(now() - interval '1 day', now(), 'never seen')$$, 'PC011', 'of people who are known');
select refuses($$select custody.access_of_subject(now() - interval '1 day', now(), '')$$, 'PC003', 'and have a name');
select is((select count(*) from custody.access_by_actor(now() - interval '1 day', now(), 'robot')), 1::bigint, 'and asks as the auditor does');
reset session authorization;
select pg_temp.read('access_b', 'passer-by', 'ada', 20, 'in passing');
set local session authorization custody_dpo;
select enter('access_b', 'dpo') /* $1 */;
select results_eq($$select a.by_whom collate "default", a.purpose collate "default" from custody.access_of_subject(now() - interval '1 day', now(), 'ada') a where a.purpose is not null$$,
  $$values ('staff', 'elsewhere'), ('unknown', 'in passing')$$, 'of an actor without identity nobody knows what they are');
select * from finish();
rollback;
