-- Every insert, update and delete on a table of record is an event: who, which table, which row, which columns,
-- and no values. It is so for every role that may write.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('writes');

-- What the last event of the table says, apart from its people.
create function pg_temp.last(p_table text) returns jsonb language sql as $$
  select jsonb_strip_nulls(jsonb_build_object('action', e.action, 'row', e.resource_id, 'metadata', nullif(e.metadata, '{}'), 'purpose', e.purpose, 'login', e.db_role,
    'actor', (select i.user_id from custody_data.identities i where i.identity_id = e.actor_id), 'subject', (select i.user_id from custody_data.identities i where i.identity_id = e.subject_id)))
  from events('writes') e where e.resource_type = p_table and e.action like 'record.%' order by e.recorded_at desc, e.log_entry_id desc limit 1;
$$;
set local session authorization custody_app;
select enter('writes', 'clerk', 'support') /* $1 */;

select custody.put_profile('ada', '{"full_name": "Ada Secret", "city": "London"}');
select is(pg_temp.last('user_profiles'), jsonb_build_object('action', 'record.insert', 'row', identity('writes', 'ada'), 'purpose', 'support', 'login', 'custody_app', 'actor', 'clerk', 'subject', 'ada'),
  'an inserted profile');
select custody.patch_profile('ada', '{"city": "Paris Secret", "phone": "Secret"}');
select is(pg_temp.last('user_profiles'), jsonb_build_object('action', 'record.update', 'row', identity('writes', 'ada'), 'metadata', '{"columns": ["city", "phone"]}'::jsonb, 'purpose', 'support',
  'login', 'custody_app', 'actor', 'clerk', 'subject', 'ada'), 'a changed profile, by the names of what changed');
select custody.patch_profile('ada', '{"email": "Secret@example.org"}');
select is(pg_temp.last('user_profiles') -> 'metadata', '{"columns": ["email", "email_index"]}', 'what is derived from it changes with it');
select custody.patch_profile('ada', '{}');
select is(pg_temp.last('user_profiles') -> 'metadata', '{"columns": []}', 'an update that changes nothing');
select custody.delete_profile('ada');
select is(pg_temp.last('user_profiles') ->> 'action', 'record.delete', 'a deleted profile');

select custody.put_preferences('ada', '{"theme": "secret"}');
select is(pg_temp.last('user_preferences') ->> 'action', 'record.insert', 'inserted preferences');
select custody.patch_preferences('ada', '{"theme": "secret2"}');
select is(pg_temp.last('user_preferences') -> 'metadata', '{"columns": ["preferences"]}', 'changed preferences');
select custody.delete_preferences('ada');
select is(pg_temp.last('user_preferences') ->> 'action', 'record.delete', 'deleted preferences');

select custody.record_consent('ada', 'mail', true, '1', p_evidence => '"Secret"', p_consent_id => '11111111-1111-4111-8111-111111111111');
select is(pg_temp.last('consent_records') - array['purpose', 'login', 'actor'], '{"action": "record.insert", "row": "11111111-1111-4111-8111-111111111111", "subject": "ada"}', 'a consent');

select custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "Secret"}]', 'Secret');
select is(pg_temp.last('conversations') - array['purpose', 'login', 'actor'], '{"action": "record.insert", "row": "c1", "subject": "ada"}', 'a saved conversation');
select custody.append_message('ada', 'c1', '{"role": "user", "text": "Secret"}');
select is(pg_temp.last('conversations') -> 'metadata', '{"columns": ["message_count", "messages"]}', 'a message');
select custody.update_conversation('ada', 'c1', 'Secret 2');
select is(pg_temp.last('conversations') -> 'metadata', '{"columns": ["title"]}', 'a title');
select custody.delete_conversation('ada', 'c1');
select is(pg_temp.last('conversations') - array['purpose', 'login', 'actor'], '{"action": "record.delete", "row": "c1", "subject": "ada"}', 'a deleted conversation');

select enter('writes', 'clerk') /* $1 */;
select custody.put_preferences('ada', '{}');

-- By the worker, through its imports' way of writing.
set local session authorization custody_runner;
select enter('writes', 'runner') /* $1 */;
insert into custody_data.user_profiles (tenant_id, identity_id, full_name) values ('writes', identity('writes', 'ada'), any_sealed());
select is(pg_temp.last('user_profiles'), jsonb_build_object('action', 'record.insert', 'row', identity('writes', 'ada'), 'login', 'custody_runner', 'actor', 'runner', 'subject', 'ada'), 'an insert by the worker');
update custody_data.user_profiles set city = any_sealed() where identity_id = identity('writes', 'ada');
select is(pg_temp.last('user_profiles') -> 'metadata', '{"columns": ["city"]}', 'an update by the worker');

-- By the owner, and by a superuser, who must say for whom, too.
reset session authorization;
set local role custody_owner;
select enter('writes', 'owner') /* $1 */;
update custody_data.user_profiles set city = set_byte(any_sealed(), 68, 1) where identity_id = identity('writes', 'ada');
select is(pg_temp.last('user_profiles') ->> 'actor', 'owner', 'an update by the owner');
update custody_data.user_preferences set preferences = any_sealed();
select is(pg_temp.last('user_preferences') -> 'metadata', '{"columns": ["preferences"]}', 'an update past the API');
delete from custody_data.user_preferences;
select is(pg_temp.last('user_preferences') ->> 'action', 'record.delete', 'a delete past the API');
reset role;
select set_config('custody.tenant', '', true);
select refuses($$update custody_data.user_profiles set city = any_sealed()$$, 'PC001', 'a superuser without a context does not write');

select is((select count(*) from events('writes') e where e.action like 'record.%' and (e.metadata::text || coalesce(e.resource_id, '') || coalesce(e.personal::text, '')) ~* 'secret'), 0::bigint, 'no event holds a value');
select * from finish();
rollback;
