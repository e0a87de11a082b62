-- A context writes its own tenant's rows: nobody puts a row into another tenant, moves one there, or reaches one.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('write_a'), tenant('write_b');
select populate('write_a'), populate('write_b', 'bob') /* $1 */;
create function pg_temp.digest(p_tenant text) returns text language plpgsql security definer as $$
declare
  v_all text := '';
  v_one text;
  v_table text;
begin
  for v_table in select t.name from testing.tables t where t.name not like 'schema\_%' order by 1 loop
    execute format('select md5(string_agg(r::text, %L order by r::text)) from custody_data.%I r where r.tenant_id = %L', ' ', v_table, p_tenant) into v_one;
    v_all := v_all || coalesce(v_one, '-');
  end loop;
  return md5(v_all);
end
$$;
select set_config('testing.b', pg_temp.digest('write_b'), true), set_config('testing.bob', identity('write_b', 'bob')::text, true);

create temp table statements as select s from unnest(array[
  format('insert into custody_data.user_profiles (tenant_id, identity_id) values (%L, %L)', 'write_b', current_setting('testing.bob')),
  format('insert into custody_data.user_preferences (tenant_id, identity_id, preferences) values (%L, %L, testing.any_sealed()) on conflict (tenant_id, identity_id) do update set preferences = excluded.preferences', 'write_b', current_setting('testing.bob')),
  format('insert into custody_data.consent_records (tenant_id, identity_id, purpose, granted, policy_version, legal_basis, occurred_at) values (%L, %L, %L, true, %L, %L, now())', 'write_b', current_setting('testing.bob'), 'p', '1', 'consent'),
  format('insert into custody_data.conversations (tenant_id, identity_id, conversation_id, messages, message_count, started_at, last_message_at) values (%L, %L, %L, testing.any_sealed(), 0, now(), now())', 'write_b', current_setting('testing.bob'), 'c'),
  format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values (%L, gen_random_uuid(), now(), %L, %L)', 'write_b', current_setting('testing.bob'), 'account.login'),
  format('insert into custody_data.audit_entry_ids (tenant_id, log_entry_id, occurred_at, content) values (%L, gen_random_uuid(), now(), sha256(%L))', 'write_b', 'x'),
  format('insert into custody_data.audit_actions (tenant_id, action, description) values (%L, %L, %L)', 'write_b', 'evil', 'evil'),
  format('insert into custody_data.audit_resource_types (tenant_id, resource_type, description) values (%L, %L, %L)', 'write_b', 'evil', 'evil')]) s;
grant select on statements to public;
set local session authorization custody_app;
select enter('write_a', 'clerk') /* $1 */;
select refuses(s, '42501', 'into another tenant: ' || left(s, 60)) from statements;
-- Profiles, preferences, consents and conversations are not the application's to write at all, of its own tenant neither.
select refuses(s, '42501', s) from unnest(array['insert into custody_data.user_profiles (tenant_id) select null where false', 'insert into custody_data.user_preferences (tenant_id) select null where false',
  'insert into custody_data.consent_records (tenant_id) select null where false', 'insert into custody_data.conversations (tenant_id) select null where false',
  'update custody_data.user_profiles set full_name = null where false', 'update custody_data.user_preferences set preferences = null where false', 'update custody_data.conversations set title = null where false',
  'delete from custody_data.user_profiles where false', 'delete from custody_data.user_preferences where false', 'delete from custody_data.conversations where false', 'delete from custody_data.consent_records where false']) s;
update custody_data.audit_actions set metadata_keys = '{evil}' where tenant_id = 'write_b';
-- Those who write them by their own right reach no other tenant's.
set local session authorization custody_runner;
select enter('write_a', 'runner') /* $1 */;
select refuses(s, '42501', 'by the worker into another tenant: ' || left(s, 60)) from statements;
-- A row of one's own tenant under another tenant's identity names nobody.
select refuses(format('insert into custody_data.user_profiles (tenant_id, identity_id) values (%L, %L)', 'write_a', current_setting('testing.bob')), 'PC021', 'another tenant''s identity is nobody here');
update custody_data.user_profiles set full_name = testing.any_sealed() where tenant_id = 'write_b' or identity_id = current_setting('testing.bob')::uuid;
update custody_data.conversations set title = testing.any_sealed() where identity_id = current_setting('testing.bob')::uuid;
update custody_data.user_preferences set preferences = testing.any_sealed() where tenant_id = 'write_b';
update custody_data.audit_actions set metadata_keys = '{evil}' where tenant_id = 'write_b';
select refuses($$update custody_data.user_profiles set tenant_id = 'write_b'$$, '42501', 'no row is moved');
reset session authorization;
set local role custody_owner;
select enter('write_a', 'owner') /* $1 */;
update custody_data.user_profiles set full_name = testing.any_sealed() where tenant_id = 'write_b';
update custody_data.requests set status = 'held' where tenant_id = 'write_b';
update custody_data.holders set endpoint = 'https://evil.example' where tenant_id = 'write_b';
delete from custody_data.conversations where tenant_id <> 'write_a';
delete from custody_data.user_profiles where tenant_id = 'write_b';
delete from custody_data.user_preferences where identity_id = current_setting('testing.bob')::uuid;
select refuses($$insert into custody_data.identities (tenant_id, user_id) values ('write_b', 'evil')$$, '42501', 'not even the owner makes somebody known in another tenant');
select refuses($$insert into custody_data.legal_holds (tenant_id, scope, reference, reason, placed_by) values ('write_b', 'tenant', 'x', 'x', gen_random_uuid())$$, '42501', 'or holds it');
select refuses($$insert into custody_data.erasure_certificates (tenant_id, request_id, identity_id, certificate) values ('write_b', gen_random_uuid(), gen_random_uuid(), '{}')$$, '42501', 'or certifies for it');
select refuses($$insert into custody_data.retention_policies (tenant_id, class, keep, basis) values ('write_b', 'consent', '20 years', 'x')$$, '42501', 'or sets its policy');
reset role;
select is(pg_temp.digest('write_b'), current_setting('testing.b'), 'nothing of the other tenant changed');
select * from finish();
rollback;
