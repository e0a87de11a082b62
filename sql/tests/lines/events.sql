-- The copy of a read in the trail: one for a transaction, person, table and columns, where the transaction may write.
-- The line itself is in the server's log: sql/lines_test.go.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('line_events');
create function pg_temp.reads() returns setof jsonb language sql security definer as $$
  select jsonb_build_object('type', e.resource_type, 'subject', i.user_id) || e.metadata - 'line' from testing.events('line_events', 'record.read') e
  join custody_data.identities i on i.tenant_id = e.tenant_id and i.identity_id = e.subject_id $$;
set local role custody_readwrite;
select enter('line_events', 'clerk', 'support') /* $1 */;
select custody.put_profile('pat', '{"full_name": "Pat", "email": "pat@example.org"}'), custody.put_profile('kim', '{"full_name": "Kim"}'), custody.put_preferences('pat', '{"theme": "dark"}');
select custody.save_conversation('pat', 'c' || n, '[{"role": "user", "text": "hello"}]', 'Title') from generate_series(1, 5) n;
select custody.record_consent('pat', 'mail', true, '1', p_evidence => '{"form": 1}', p_consent_id => '00000000-0000-4000-8000-00000000000c');
select custody.record_audit_event('account.login', p_log_entry_id => '00000000-0000-4000-8000-00000000000a', p_personal => '{"source_ip": "192.0.2.1"}');

-- Functions that show a value to nobody.
select custody.patch_profile('pat', '{"city": "Bern"}'), custody.append_message('pat', 'c1', '{"role": "user", "text": "again"}');
select custody.record_consent('pat', 'mail', true, '1', p_evidence => '{"form": 1}', p_consent_id => '00000000-0000-4000-8000-00000000000c');
select custody.record_audit_event('account.login', p_log_entry_id => '00000000-0000-4000-8000-00000000000a', p_personal => '{"source_ip": "192.0.2.1"}');
select is_empty('select pg_temp.reads()', 'what returns no value is no read');
select is(custody.get_preferences('kim'), null, 'nor what is not there');
select is_empty('select pg_temp.reads()', 'is no read');

select custody.get_profile('pat'), custody.get_profile('pat'), custody.get_profile('kim');
select custody.get_profile('pat');
select bag_eq('select pg_temp.reads()', array['{"rows": 1, "type": "user_profiles", "columns": ["full_name", "email", "city"], "subject": "pat"}', '{"rows": 1, "type": "user_profiles", "columns": ["full_name"], "subject": "kim"}']::jsonb[],
  'each person once');
select count(*) from custody.conversation_summaries s where s.title like '%';
select is((select count(*) from pg_temp.reads() r where r ->> 'type' = 'conversations'), 1::bigint, 'a list of one person''s rows is one');
select custody.get_conversation('pat', 'c1');
select is((select count(*) from pg_temp.reads() r where r ->> 'type' = 'conversations'), 2::bigint, 'other columns are another');
select custody.current_consents('pat');
select is((select count(*) from pg_temp.reads() r where r ->> 'type' = 'consent_records'), 1::bigint, 'evidence too');
select is((last_event('line_events', 'record.read')).purpose collate "default", 'support', 'with the purpose');
select ok((last_event('line_events', 'record.read')).metadata ->> 'line' ~ '^[0-9a-f]{16}$', 'and what finds its line');

-- What a session sets does not keep a read from being recorded; at worst it is recorded twice.
create function pg_temp.count_after(p_lines text) returns bigint language plpgsql as $$
declare
  v_before constant bigint := (select count(*) from pg_temp.reads());
begin
  perform set_config('custody.lines', p_lines, true), custody.get_profile('kim');
  return (select count(*) from pg_temp.reads()) - v_before;
end
$$;
select is(pg_temp.count_after(current_setting('custody.lines')), 0::bigint, 'nothing new');
select is(pg_temp.count_after(''), 1::bigint, 'forgotten');
select is(pg_temp.count_after(repeat('0123456789abcdef', 40000)), 1::bigint, 'made up');
select custody.set_context('line_events', 'clerk', 'curiosity');
select unlock('line_events') /* $1 */;
select is(pg_temp.count_after(current_setting('custody.lines')), 1::bigint, 'in another context');
savepoint a;
select custody.set_context('line_events', 'clerk', 'savepoint');
select unlock('line_events') /* $1 */;
select is(pg_temp.count_after(current_setting('custody.lines')), 1::bigint, 'within a savepoint');
rollback to savepoint a;
select custody.set_context('line_events', 'clerk', 'savepoint');
select unlock('line_events') /* $1 */;
select is(pg_temp.count_after(current_setting('custody.lines')), 1::bigint, 'again when it was rolled back');

-- Confined to one person.
select enter('line_events', 'kim', 'me', 'kim') /* $1 */;
select is(pg_temp.count_after(''), 1::bigint, 'one''s own');

-- By a role that may only read.
reset role;
set local role custody_readonly;
select enter('line_events', 'reader', 'report') /* $1 */;
select is(custody.get_profile('kim') ->> 'full_name', 'Kim', 'a reader');
reset role;
select is(identity('line_events', 'reader'), (last_event('line_events', 'record.read')).actor_id, 'is known from then on');

-- READ ONLY there is no event, and without a key no reading.
create function pg_temp.read_only(p_sql text) returns text language plpgsql as $$
declare
  v_result text;
begin
  perform set_config('transaction_read_only', 'on', true);
  execute p_sql into v_result;
  raise exception using errcode = 'T0000', message = coalesce(v_result, 'null');
exception when sqlstate 'T0000' then
  return sqlerrm;
end
$$;
set local role custody_readwrite;
select enter('line_events', 'clerk', 'read only') /* $1 */;
select is(pg_temp.read_only($$select pg_temp.count_after('')$$), '0', 'read only there is no event');
reset role;
create temp table sealed as select p.identity_id, p.full_name, p.full_name::bytea as v from custody_data.user_profiles p where p.tenant_id = 'line_events' and p.identity_id = identity('line_events', 'kim');
grant select on sealed to public;
set local log_min_messages = fatal;
set local role custody_readwrite;
select enter('line_events', 'clerk', 'hidden') /* $1 */;
select refuses($$select custody.get_profile('pat')$$, 'PC063', 'under a setting that would hide it');
select refuses($$select custody.get_preferences('pat')$$, 'PC063', 'preferences');
select refuses($$select custody.get_conversation('pat', 'c1')$$, 'PC063', 'a conversation');
select refuses($$select custody.list_conversations('pat')$$, 'PC063', 'titles');
select refuses($$select custody.current_consents('pat')$$, 'PC063', 'evidence');
select refuses($$select custody.consent_history('pat')$$, 'PC063', 'all evidence');
select refuses($$select custody.find_subject('pat@example.org')$$, 'PC063', 'whose an address is');
select refuses($$select custody.open_value(s.identity_id, 'user_profiles', 'full_name', s.identity_id::text, s.v) from sealed s$$, 'PC063', 'nor a value');
select refuses($$select custody_data.open_values(s.identity_id, 'user_profiles', s.identity_id::text, '{full_name}', array[s.v]) from sealed s$$, 'PC063', 'nor a row');
reset role;
set local role custody_worker;
select enter('line_events', 'importer') /* $1 */;
select refuses($$select custody.claim_data_keys(array[s.identity_id]) from sealed s$$, 'PC063', 'nor keys');
select refuses($$select custody.list_requests()$$, 'PC063', 'nor requests');
reset role;
reset log_min_messages;
update custody_keys.context_keys set retired_at = now() where kind = 'line' and retired_at is null;
set local role custody_readwrite;
select enter('line_events', 'clerk', 'no key') /* $1 */;
select refuses($$select pg_temp.read_only($x$select custody.get_profile('kim')$x$)$$, 'PC063', 'read only, before there is a key');
select is(custody.get_profile('kim') ->> 'full_name', 'Kim', 'who may write makes one');
select is(pg_temp.read_only($$select custody.get_profile('kim') ->> 'full_name'$$), 'Kim', 'which serves then');
select * from finish();
rollback;
