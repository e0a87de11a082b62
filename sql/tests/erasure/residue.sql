-- Where a person's identifiers stand although they must not, the erasure fails and says where; with a legal basis
-- for keeping them it goes on, and the certificate names both.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('residue');
set local session authorization custody_app;
select enter('residue', 'clerk') /* $1 */;
create function pg_temp.person(p_user_id text) returns void language sql as $$
  select custody.put_profile(p_user_id, jsonb_build_object('full_name', 'Full ' || p_user_id, 'email', p_user_id || '@mail.example', 'phone', '+1 (555) ' || md5(p_user_id)));
  select set_config('testing.' || p_user_id, request('residue', p_user_id)::text, true);
$$;
create function pg_temp.found(p_user_id text) returns text language sql as $$
  select coalesce(string_agg(format('%s.%s %s', f ->> 'table', f ->> 'column', f ->> 'rows'), ', ' order by f::text), 'none')
  from jsonb_array_elements(custody.search_residue(current_setting('testing.' || p_user_id)::uuid)) f;
$$;
select pg_temp.person('person' || n) from generate_series(1, 18) n;

-- One person for each place.
select custody.record_audit_event('phi.access', 'document', 'file of PERSON1, page 2');
select custody.record_audit_event('account.login', p_metadata => '{"source": "person2@mail.example"}');
select enter('residue', 'clerk', 'call person3 back') /* $1 */;
select custody.record_audit_event('account.logout');
select refuses($$select custody.request_erasure('person4', 'I, Person4, leave') from custody.set_context('residue', 'person4', null, 'person4')$$, 'PC023', 'a reason that names who asks');
select custody.request_erasure('person16', 'as person4 did') from custody.set_context('residue', 'person16', null, 'person16');
set local session authorization custody_dpo;
select enter('residue', 'dpo') /* $1 */;
select custody.extend_request(request('residue', 'person13'), 'waits for person5');
select custody.cancel_request(request('residue', 'person13'), 'asked by person6@mail.example');
select custody.release_hold(custody.place_hold('{"user_id": "person13"}', 'person7 v. Acme', 'case of person8'), 'person9 settled');
set local session authorization custody_runner;
select enter('residue', 'runner') /* $1 */;
select custody.finish_run(custody.start_run('import'), 'succeeded', '{"of": ["Full person10"]}');
select custody.finish_run(custody.start_run('import'), 'failed', p_error => 'could not mail person11');
reset session authorization;
insert into river.river_job (args, kind, max_attempts) values
  ('{"tenant": "residue", "who": "person12"}', 'test', 1), ('{"tenant": "residue_2", "who": "person12"}', 'test', 1);
set local session authorization custody_dpo;
select enter('residue', 'dpo') /* $1 */;
select custody.register_holder('crm');
select custody.set_retention_policy('conversations', interval '1 year', 'wish of person15');
select custody.reject_retention_change((custody.set_retention_policy('consent', interval '1 year', 'as person17 wants')).change_id, 'person18 changed his mind');

select is(pg_temp.found('person1'), 'audit_logs.resource_id 1', 'a resource id, in whatever case');
select is(pg_temp.found('person2'), 'audit_logs.metadata 1', 'metadata of an event, by the e-mail address');
select is(pg_temp.found('person3'), 'audit_logs.purpose 1', 'the purpose of an event');
select is(pg_temp.found('person4'), 'audit_logs.metadata 1, requests.reason 1', 'the reason of a request, and the event of it');
select is(pg_temp.found('person5'), 'requests.extension_reason 1', 'of its extension');
select is(pg_temp.found('person6'), 'requests.close_reason 1', 'of its end');
select is(pg_temp.found('person7'), 'legal_holds.reference 1', 'the reference of a hold');
select is(pg_temp.found('person8'), 'audit_logs.metadata 1, legal_holds.reason 1', 'its reason, and the event of it');
select is(pg_temp.found('person9'), 'audit_logs.metadata 1, legal_holds.release_reason 1', 'and that of its release');
select is(pg_temp.found('person10'), 'job_runs.counts 1', 'what a run says it counted, by the name');
select is(pg_temp.found('person11'), 'audit_logs.metadata 1, job_runs.error 1', 'its error, and the event of it');
select is(pg_temp.found('person12'), 'river_job.args, errors or metadata 1', 'a job of the queue, this tenant''s alone');
select is(pg_temp.found('person15'), 'audit_logs.metadata 1, retention_changes.basis 1, retention_policies.basis 1', 'the basis of a policy, and the event of it');
select is(pg_temp.found('person17'), 'audit_logs.metadata 1, retention_changes.basis 1', 'the basis of a policy that was proposed');
select is(pg_temp.found('person18'), 'audit_logs.metadata 1, retention_changes.reason 1', 'why it was withdrawn');
select is(pg_temp.found('person14'), 'none', 'somebody who stands nowhere');
select is(pg_temp.found('person13'), 'none', 'whole words only: person1 is not in person13');
select is((select count(*) from events('residue', 'request.search')), 17::bigint, 'each search is an event');
select is((last_event('residue', 'request.search')).metadata, jsonb_build_object('request_id', current_setting('testing.person13'), 'findings', '[]'::jsonb, 'rows', 0, 'searched_for', '["user_id", "email", "phone", "full_name"]'::jsonb), 'that says what was found, and names nobody');

select refuses($$select custody.erase_subject(current_setting('testing.person1')::uuid)$$, 'PC019', 'the erasure fails');
select throws_like($$select custody.erase_subject(current_setting('testing.person1')::uuid)$$, 'residue found%', 'and says why');
select refuses($$select custody.erase_subject(current_setting('testing.person1')::uuid, '  ')$$, 'PC019', 'a blank basis is none');
select is((custody.verify_erasure(current_setting('testing.person1')::uuid) ->> 'clean')::boolean, false, 'verify_erasure finds it too');
select is((custody.plan_erasure('person1') ->> 'possible')::boolean, false, 'and the plan');
select ok(identity('residue', 'person1') is not null, 'nothing was done');

select refuses($$select custody.erase_subject(current_setting('testing.person1')::uuid, 'as PERSON1 agreed')$$, 'PC023', 'a basis that names the person is none either');
select set_config('testing.certificate', custody.erase_subject(current_setting('testing.person1')::uuid, 'Art. 17(3)(b)')::text, true);
select is(current_setting('testing.certificate')::jsonb ->> 'residue_basis', 'Art. 17(3)(b)', 'with a basis it goes on');
select is(current_setting('testing.certificate')::jsonb #>> '{residue,0,column}', 'resource_id', 'the certificate says where');
select is((last_event('residue', 'account.erase')).metadata ->> 'residue_basis', 'Art. 17(3)(b)', 'so does the event');
select is(custody.erase_subject(current_setting('testing.person14')::uuid, 'not needed') ->> 'residue_basis', null, 'without residue no basis is named');
select custody.acknowledge_erasure(current_setting('testing.person14')::uuid, 'crm', '{"done": ["and told person16"]}');
select matches(pg_temp.found('person16'), 'erasure_notices.evidence 1', 'what a holder answered');

-- Without a search before, the erasure searches itself.
set local session authorization custody_app;
select enter('residue', 'clerk') /* $1 */;
select pg_temp.person('late');
select custody.record_audit_event('account.login', p_metadata => '{"source": "late@mail.example"}');
set local session authorization custody_runner;
select enter('residue', 'runner') /* $1 */;
select refuses($$select custody.erase_subject(current_setting('testing.late')::uuid)$$, 'PC019', 'what nobody searched for is found');
select * from finish();
rollback;
