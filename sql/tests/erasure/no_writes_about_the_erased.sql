-- Nothing is written about an identity that has been erased, or that never was, whoever writes.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('erased_writes');
set local session authorization custody_app;
select enter('erased_writes', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select set_config('testing.ada', identity('erased_writes', 'ada')::text, true), set_config('testing.request', request('erased_writes', 'ada')::text, true);
set local session authorization custody_runner;
select enter('erased_writes', 'runner') /* $1 */;
select custody.erase_subject(current_setting('testing.request')::uuid);

create function pg_temp.insert_into(p_table text, p_identity text) returns text language sql as $$
  select case p_table
    when 'user_profiles' then format('insert into custody_data.user_profiles (tenant_id, identity_id) values (%L, %L)', 'erased_writes', p_identity)
    when 'user_preferences' then format('insert into custody_data.user_preferences (tenant_id, identity_id, preferences) values (%L, %L, testing.any_sealed())', 'erased_writes', p_identity)
    when 'conversations' then format('insert into custody_data.conversations (tenant_id, identity_id, conversation_id, messages, message_count, started_at, last_message_at) values (%L, %L, %L, testing.any_sealed(), 0, now(), now())', 'erased_writes', p_identity, 'c')
    else format('insert into custody_data.consent_records (tenant_id, identity_id, purpose, granted, policy_version, legal_basis, occurred_at) values (%L, %L, %L, true, %L, %L, now())', 'erased_writes', p_identity, 'mail', '1', 'consent') end;
$$;
set local session authorization custody_app;
select enter('erased_writes', 'clerk') /* $1 */;
select refuses(pg_temp.insert_into(t, current_setting('testing.ada')), '42501', format('%s past the functions', t)) from unnest(array['user_profiles', 'user_preferences', 'conversations', 'consent_records']) t;
select refuses(format($$select custody.seal_value(%L, 't', 'c', 'r', 'x')$$, current_setting('testing.ada')), 'PC021', 'a value sealed for the erased');
set local session authorization custody_runner;
select enter('erased_writes', 'runner') /* $1 */;
select refuses(pg_temp.insert_into(t, current_setting('testing.ada')), 'PC021', format('%s about the erased', t)) from unnest(array['user_profiles', 'user_preferences', 'conversations', 'consent_records']) t;
select refuses(pg_temp.insert_into(t, '99999999-9999-4999-8999-999999999999'), 'PC021', format('%s about nobody', t)) from unnest(array['user_profiles', 'user_preferences', 'conversations', 'consent_records']) t;
reset session authorization;
set local role custody_owner;
select refuses(pg_temp.insert_into(t, current_setting('testing.ada')), 'PC021', format('%s by the owner', t)) from unnest(array['user_profiles', 'user_preferences', 'conversations', 'consent_records']) t;
select refuses(format('update custody_data.identities set user_id = %L, erased_at = null where identity_id = %L', 'ada', current_setting('testing.ada')), 'PC020', 'the owner brings nobody back');
select refuses(format('update custody_data.identities set erased_at = now() - interval ''1 day'' where identity_id = %L', current_setting('testing.ada')), 'PC020', 'nor says that it was earlier');
select refuses('delete from custody_data.identities', 'PC020', 'nor forgets that there was somebody');
select refuses('update custody_data.identities set identity_id = gen_random_uuid() where erased_at is null', 'PC030', 'an identity is for life');
select refuses($$update custody_data.identities set user_id = null where user_id = 'clerk'$$, '23514', 'nobody is half erased');
select refuses($$delete from custody_data.erasure_certificates$$, 'PC020', 'the certificate stays');
select refuses($$update custody_data.erasure_certificates set certificate = '{}'$$, 'PC020', 'as it is');
select * from finish();
rollback;
