-- verify_erasure finds what stands although it must not: before the erasure by the identifiers, after it by the
-- identity.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('verify_erasure');
set local session authorization custody_app;
select enter('verify_erasure', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select set_config('testing.ada', identity('verify_erasure', 'ada')::text, true), set_config('testing.request', request('verify_erasure', 'ada')::text, true);
set local session authorization custody_runner;
select enter('verify_erasure', 'runner') /* $1 */;
create function pg_temp.found() returns text language sql as $$
  select coalesce(string_agg(format('%s.%s %s', f ->> 'table', f ->> 'column', f ->> 'rows'), ', ' order by f::text), 'clean')
  from jsonb_array_elements(custody.verify_erasure(current_setting('testing.request')::uuid) -> 'findings') f;
$$;
select is(pg_temp.found(), 'clean', 'before the erasure the identifiers stand nowhere');
select custody.erase_subject(current_setting('testing.request')::uuid);
select is(pg_temp.found(), 'clean', 'after it nothing hangs on the identity');

-- What only somebody with the guards off can do.
reset session authorization;
alter table custody_data.user_profiles disable trigger user;
alter table custody_data.user_preferences disable trigger user;
alter table custody_data.conversations disable trigger user;
alter table custody_data.identities disable trigger user;
alter table custody_data.erasure_certificates disable trigger user;
insert into custody_data.user_profiles (tenant_id, identity_id) values ('verify_erasure', current_setting('testing.ada')::uuid);
select is(pg_temp.found(), 'user_profiles.* 1', 'a profile');
insert into custody_data.user_preferences (tenant_id, identity_id, preferences) values ('verify_erasure', current_setting('testing.ada')::uuid, any_sealed());
insert into custody_data.conversations (tenant_id, identity_id, conversation_id, messages, message_count, started_at, last_message_at)
values ('verify_erasure', current_setting('testing.ada')::uuid, 'c', any_sealed(), 0, now(), now());
select is(pg_temp.found(), 'conversations.* 1, user_preferences.* 1, user_profiles.* 1', 'preferences and conversations');
update custody_data.identities set user_id = 'ada', erased_at = null where identity_id = current_setting('testing.ada')::uuid;
select matches(pg_temp.found(), 'identities.user_id 1', 'a user_id');
delete from custody_data.erasure_certificates where tenant_id = 'verify_erasure';
select matches(pg_temp.found(), 'erasure_certificates.* 1', 'a certificate that is missing');
select is((custody.verify_erasure(current_setting('testing.request')::uuid) ->> 'clean')::boolean, false, 'it is not clean');
select * from finish();
rollback;
