-- Events of the past are imported under their own actors, in months that are made for them; the same file again adds nothing.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('import_events');
set local session authorization custody_app;
select enter('import_events', 'clerk') /* $1 */;
select custody.put_profile('bob', '{}');
select custody.record_audit_event('account.login', p_log_entry_id => '44444444-4444-4444-8444-444444444444');
set local session authorization custody_runner;
select enter('import_events', 'runner', 'migration') /* $1 */;
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC023', 'without preparing');

create function pg_temp.stage() returns void language plpgsql as $$
begin
  perform custody.prepare_import('audit_logs');
  insert into pg_temp.staged_audit_logs values
    (1, '11111111-1111-4111-8111-111111111111', '1998-06-30 23:59:59+00', 'ada', null, 'account.login', 'account', 'bob', 'failure', 'p', '{"source": "web"}', '{"ip": "::1"}'),
    (2, '22222222-2222-4222-8222-222222222222', '1998-07-01 00:00:00+00', 'bob', 'cy', 'phi.access', null, null, 'success', null, '{}', null),
    (3, '22222222-2222-4222-8222-222222222222', '1998-07-01 00:00:00+00', 'bob', 'cy', 'phi.access', null, null, 'success', null, '{}', null),
    (4, '33333333-3333-4333-8333-333333333333', '1998-07-02 00:00:00+00', 'runner', null, 'account.logout', 'document', 'some file', 'success', null, '{}', null);
end
$$;
select pg_temp.stage();
select is(custody.import_audit_events('99999999-9999-4999-8999-999999999999', sha256('file 1')), '{"added": 3, "changed": 0, "unchanged": 1, "refused": 0}', 'three events, one of them on two lines');
select ok(to_regclass('custody_data.audit_logs_1998_06') is not null and to_regclass('custody_data.audit_logs_1998_07') is not null, 'their months are made');
select row_eq($$select a.occurred_at, a.actor_id, a.subject_id, a.action collate "default", a.resource_id collate "default", a.result collate "default", a.purpose, a.metadata, custody.open_value(a.subject_id, 'audit_logs', 'personal', a.log_entry_id::text, a.personal)::jsonb, a.import_id, a.db_role
    from events('import_events') a where a.log_entry_id = '11111111-1111-4111-8111-111111111111'$$,
  row ('1998-06-30 23:59:59+00'::timestamptz, identity('import_events', 'ada'), identity('import_events', 'bob'), 'account.login'::text, identity('import_events', 'bob')::text, 'failure'::text, 'p'::text,
    '{"source": "web"}'::jsonb, '{"ip": "::1"}'::jsonb, '99999999-9999-4999-8999-999999999999'::uuid, 'custody_runner'::text), 'an event has its own actor and time, its resource by the identity, and its import');
select is((select a.subject_id from events('import_events') a where a.log_entry_id = '22222222-2222-4222-8222-222222222222'), identity('import_events', 'cy'), 'and its subject');
select pg_temp.stage();
select is(custody.import_audit_events('99999999-9999-4999-8999-999999999998', sha256('file 2')), '{"added": 0, "changed": 0, "unchanged": 4, "refused": 0}', 'the same again adds nothing');

select custody.prepare_import('audit_logs');
insert into pg_temp.staged_audit_logs values
  (1, '11111111-1111-4111-8111-111111111111', '1998-06-30 23:59:59+00', 'eve', null, 'account.login', 'account', 'bob', 'failure', 'p', '{"source": "web"}', '{"ip": "::1"}'),
  (2, '22222222-2222-4222-8222-222222222222', '1998-07-05 00:00:00+00', 'bob', 'cy', 'phi.access', null, null, 'success', null, '{}', null),
  (3, '44444444-4444-4444-8444-444444444444', '1998-07-05 00:00:00+00', 'bob', null, 'account.login', null, null, 'success', null, '{}', null),
  (4, '55555555-5555-4555-8555-555555555555', '1998-07-05 00:00:00+00', 'bob', null, 'account.login', null, null, 'success', null, '{}', null),
  (5, '55555555-5555-4555-8555-555555555555', '1998-07-05 00:00:00+00', 'ada', null, 'account.login', null, null, 'success', null, '{}', null);
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC010', 'an id with other content');
select is(custody.import_audit_events('99999999-9999-4999-8999-999999999997', sha256('x'), true), '{"added": 1, "changed": 0, "unchanged": 0, "refused": 4}', 'or the others');
select results_eq($$select r.line, r.code, r.field from pg_temp.import_refusals r order by 1$$, $$values (1::bigint, 'PC010'::text, 'log_entry_id'::text), (2, 'PC010', 'log_entry_id'), (3, 'PC010', 'log_entry_id'), (5, 'PC010', 'log_entry_id')$$,
  'than in the trail, at another time, as a live event, or on an earlier line');
select custody.prepare_import('audit_logs');
insert into pg_temp.staged_audit_logs values (1, gen_random_uuid(), '1998-07-05 00:00:00+00', 'bob', null, 'no.such', null, null, 'success', null, '{}', null);
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC004', 'an unknown action');
update pg_temp.staged_audit_logs set action = 'account.login', resource_type = 'spaceship';
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC005', 'an unknown resource type');
update pg_temp.staged_audit_logs set resource_type = null, user_id = repeat('x', 257);
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC003', 'a user_id of 257 characters');
update pg_temp.staged_audit_logs set user_id = 'bob', occurred_at = '1969-12-31 00:00:00+00';
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC009', 'an event before 1970');

-- A file that was imported whole is known by its digest, also when retention has taken its events.
select custody.finish_import('99999999-9999-4999-8999-999999999999', 'audit_logs', sha256('file 1'), 4, 3, 0, 0);
select custody.prepare_import('audit_logs');
insert into pg_temp.staged_audit_logs values (1, '66666666-6666-4666-8666-666666666666', '1997-07-05 00:00:00+00', 'bob', null, 'account.login', null, null, 'success', null, '{}', null);
select is(custody.import_audit_events(gen_random_uuid(), sha256('file 1')), '{"added": 0, "changed": 0, "unchanged": 1, "refused": 0}', 'a known file adds nothing');
select custody.prepare_import('audit_logs');
insert into pg_temp.staged_audit_logs values (1, '66666666-6666-4666-8666-666666666666', '1997-07-05 00:00:00+00', 'bob', null, 'account.login', null, null, 'success', null, '{}', null);
select is(custody.import_audit_events(gen_random_uuid(), sha256('file 3')), '{"added": 1, "changed": 0, "unchanged": 0, "refused": 0}', 'another does');
select * from finish();
rollback;
