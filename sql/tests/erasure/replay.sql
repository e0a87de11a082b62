-- After a restore the erasures since the backup are repeated from their certificates, as often as one likes.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('replay');
select tenant('replay_2');
set local session authorization custody_app;
select enter('replay', 'clerk') /* $1 */;
select custody.put_profile(u, '{"full_name": "Full Name"}'), custody.put_preferences(u, '{}'), custody.save_conversation(u, 'c1', '[{"role": "user", "text": "x"}]') from unnest(array['ada', 'bob', 'cy']) u;
select set_config('testing.' || u, identity('replay', u)::text, true) from unnest(array['ada', 'bob', 'cy']) u;
-- A certificate as the locked store holds it, from a time that the backup does not know.
create function pg_temp.certificate(p_identity text, p_request text) returns jsonb language sql as $$
  select jsonb_build_object('version', 1, 'tenant_id', 'replay', 'request_id', p_request, 'identity_id', p_identity, 'requested_at', now() - interval '2 days', 'erased_at', now() - interval '1 day',
    'issued_at', now() - interval '1 day', 'deleted', '{"user_profiles": 1}'::jsonb, 'kept', '[]'::jsonb, 'residue', '[]'::jsonb, 'residue_basis', null, 'audit_event', gen_random_uuid(),
    'status', 'complete', 'external_holders', '[{"holder": "crm"}]'::jsonb);
$$;
select set_config('testing.certificates', jsonb_build_array(pg_temp.certificate(current_setting('testing.ada'), '11111111-1111-4111-8111-111111111111'),
  pg_temp.certificate(current_setting('testing.bob'), '22222222-2222-4222-8222-222222222222'), pg_temp.certificate('99999999-9999-4999-8999-999999999999', '33333333-3333-4333-8333-333333333333'))::text, true);
-- The backup brought a hold and an open request of theirs back.
reset session authorization;
insert into custody_data.requests (tenant_id, request_id, kind, identity_id, requested_by, received_at, due_at)
values ('replay', '22222222-2222-4222-8222-222222222222', 'erasure', current_setting('testing.bob')::uuid, current_setting('testing.bob')::uuid, now() - interval '2 days', now() + interval '28 days');
set local session authorization custody_dpo;
select enter('replay', 'dpo') /* $1 */;
select custody.place_hold('{"user_id": "bob"}', 'case 1', 'litigation'), custody.place_hold('{"user_id": "cy"}', 'case 1', 'litigation');

set local session authorization custody_runner;
select enter('replay', 'runner') /* $1 */;
select is(custody.replay_erasures('[]'), '{"replayed": 0, "standing": 0, "unknown": 0, "held": []}', 'none');
select is(custody.replay_erasures(current_setting('testing.certificates')::jsonb), '{"replayed": 1, "standing": 0, "unknown": 1, "held": ["22222222-2222-4222-8222-222222222222"]}',
  'one is repeated, one waits for a hold that the backup brought back, one person is newer than the backup');
set local role custody_worker;
select refuses($$select custody.replay_erasures(current_setting('testing.certificates')::jsonb, 'erased before')$$, 'PC015', 'the worker releases no hold');
reset role;
select ok(identity('replay', 'bob') is not null, 'so nothing was done');
set local session authorization custody_dpo;
select is(custody.replay_erasures(current_setting('testing.certificates')::jsonb, 'erased before the restore'), '{"replayed": 1, "standing": 1, "unknown": 1, "held": []}', 'a privacy officer does, with a reason');
select is((last_event('replay', 'hold.release')).subject_id, current_setting('testing.bob')::uuid, 'which is an event');
set local session authorization custody_runner;
select is(identity('replay', 'ada'), null, 'the user_id is empty');
select is(identity('replay', 'bob'), null, 'of both');
reset session authorization;
select results_eq($$select i.erased_at from custody_data.identities i where i.identity_id in (current_setting('testing.ada')::uuid, current_setting('testing.bob')::uuid)$$,
  $$values (now() - interval '1 day'), (now() - interval '1 day')$$, 'erased when they were erased');
select is(rows_of('replay', 'user_profiles') + rows_of('replay', 'user_preferences') + rows_of('replay', 'conversations'), 3::bigint, 'what was to go is gone, the third person''s stays');
select results_eq($$select r.request_id, r.status, r.received_at from custody_data.requests r where r.tenant_id = 'replay' order by 1$$,
  $$values ('11111111-1111-4111-8111-111111111111'::uuid, 'done'::text, now() - interval '2 days'), ('22222222-2222-4222-8222-222222222222', 'done', now() - interval '2 days')$$, 'their requests are done');
select results_eq($$select h.identity_id, h.released_at is null from custody_data.legal_holds h where h.tenant_id = 'replay' order by 2$$,
  $$values (current_setting('testing.bob')::uuid, false), (current_setting('testing.cy')::uuid, true)$$, 'the hold is released; others stand');
select results_eq($$select e.metadata from events('replay', 'account.erase') e where e.subject_id = current_setting('testing.ada')::uuid$$,
  $$values ('{"request_id": "11111111-1111-4111-8111-111111111111", "replayed": true, "keys_destroyed": [1], "deleted": {"user_profiles": 1, "user_preferences": 1, "conversations": 1}}'::jsonb)$$, 'each is an event that says so');

set local session authorization custody_runner;
select is(custody.get_certificate('11111111-1111-4111-8111-111111111111') - array['status', 'external_holders', 'audit_event_proof'], (current_setting('testing.certificates')::jsonb -> 0) - array['status', 'external_holders'], 'the certificate is the old one');
select is((custody.verify_erasure('11111111-1111-4111-8111-111111111111') ->> 'clean')::boolean, true, 'verify_erasure finds nothing');
select is(custody.replay_erasures(current_setting('testing.certificates')::jsonb), '{"replayed": 0, "standing": 2, "unknown": 1, "held": []}', 'repeated, they stand');
select is((select count(*) from events('replay', 'account.erase')), 2::bigint, 'and nothing is done');
select is(custody.erase_subject('11111111-1111-4111-8111-111111111111'), custody.get_certificate('11111111-1111-4111-8111-111111111111'), 'erase_subject returns the certificate, too');

select refuses($$select custody.replay_erasures(null)$$, 'PC023', 'no certificates');
select refuses($$select custody.replay_erasures('{}')$$, 'PC023', 'one that is no array');
select refuses($$select custody.replay_erasures('[{}]')$$, 'PC023', 'a certificate of no tenant');
select refuses($$select custody.replay_erasures('[1]')$$, 'PC023', 'what is no certificate');
select refuses($$select custody.replay_erasures('[{"version": 2, "tenant_id": "replay"}]')$$, 'PC023', 'a certificate of another version');
select enter('replay_2', 'runner') /* $1 */;
select refuses($$select custody.replay_erasures(current_setting('testing.certificates')::jsonb)$$, 'PC023', 'another tenant''s certificates');

-- A hold on the whole tenant is not the replay's to release.
set local session authorization custody_dpo;
select enter('replay', 'dpo') /* $1 */;
select custody.place_hold('{"tenant": true}', 'case 2', 'litigation');
create function pg_temp.later() returns jsonb language sql as $$ select jsonb_build_array(pg_temp.certificate(current_setting('testing.cy'), '44444444-4444-4444-8444-444444444444')) $$;
select is(custody.replay_erasures(pg_temp.later()) -> 'held', '["44444444-4444-4444-8444-444444444444"]', 'under a hold on the tenant it waits');
select refuses($$select custody.replay_erasures(pg_temp.later(), 'all of them')$$, 'PC032', 'a reason does not release that one');
select is((select count(*) from custody.holds h where h.active), 2::bigint, 'nor, then, any other');
select refuses(format('select custody.replay_erasures(%L)', jsonb_build_array(pg_temp.certificate(current_setting('testing.cy'), '44444444-4444-4444-8444-444444444444') || c)), 'PC023', format('a certificate with %s', c))
from unnest(array['{"request_id": "x"}', '{"identity_id": null}', '{"erased_at": "never"}', '{"erased_at": "2999-01-01T00:00:00Z"}', '{"requested_at": "2999-01-01T00:00:00Z"}', '{"requested_at": null}']::jsonb[]) c;
set local session authorization custody_app;
select enter('replay', 'clerk') /* $1 */;
select refuses($$select custody.replay_erasures('[]')$$, '42501', 'applications replay none');
select * from finish();
rollback;
