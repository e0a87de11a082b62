-- An identifier is found as a whole word in text and in the strings of JSON: not in numbers, keys, uuids and times,
-- which it may look like. A short one is found only where it stands alone.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('residue_words');
select tenant('residue_words_2');
set local session authorization custody_app;
select enter('residue_words', 'clerk') /* $1 */;
select custody.register_action('words', array['count', 'columns', 'note', 'of'], 'a case of its own');
create function pg_temp.found(p_user_id text) returns text language sql as $$
  select coalesce(string_agg(format('%s.%s %s', f ->> 'table', f ->> 'column', f ->> 'rows'), ', ' order by f::text), 'none')
  from jsonb_array_elements(custody.plan_erasure(p_user_id) -> 'residue') f;
$$;
select custody.put_profile(u, '{}') from unnest(array['1001', '4711', 'nested', 'residue_words', '42', '7', 'o"neil\x', 'müller', 'Ådám']) u;
select custody.put_profile('by_name', '{"full_name": "Jürgen \"JM\" Groß", "email": "jg@mail.example", "phone": "+49 (170) 4711"}');

-- What looks like an identifier and is none.
select custody.record_audit_event('words', p_metadata => '{"count": 1001, "of": {"nested": 1}}');
select custody.record_audit_event('words', 'document', '3f2a1001-4711-4711-8111-1001aaaa4711');
select custody.record_audit_event('words', p_metadata => '{"of": ["3f2a1001-4711-4711-8111-aaaaaaaa4711", "4711-11-21T10:01:10.100100Z", "id_4711"], "columns": [1001, 4711, 42, 7]}');
select custody.record_audit_event('words', 'document', 'page 42 of 7', p_metadata => '{"note": "42 of 7"}');
reset session authorization;
insert into river.river_job (args, kind, max_attempts) values ('{"tenant": "residue_words", "count": 1001}', 'test', 1), ('{"tenant": "residue_words_2", "of": "1001"}', 'test', 1);
set local session authorization custody_dpo;
select enter('residue_words', 'dpo') /* $1 */;
select is(pg_temp.found(u), 'none', format('%s stands nowhere', u)) from unnest(array['1001', '4711', 'nested', 'residue_words', '42', '7', 'o"neil\x', 'müller', 'Ådám', 'by_name']) u;

-- What is one.
set local session authorization custody_app;
select enter('residue_words', 'clerk') /* $1 */;
select custody.record_audit_event('words', 'document', 'file/1001');
select custody.record_audit_event('words', p_metadata => '{"count": {"of": ["to 4711, by mail"]}}');
select custody.record_audit_event('words', p_metadata => '{"of": ["42"]}');
select custody.record_audit_event('words', p_metadata => '{"of": {"note": "7"}}');
select custody.record_audit_event('words', p_metadata => '{"note": "O\"Neil\\X called"}');
select custody.record_audit_event('words', 'document', 'Akte MÜLLER');
select custody.record_audit_event('words', 'document', 'ådÁm');
select custody.record_audit_event('words', p_metadata => '{"note": "for jürgen \"jm\" GROß"}');
select custody.record_audit_event('words', p_metadata => '{"note": "+49 (170) 4711"}');
select custody.record_audit_event('words', p_metadata => '{"note": "<JG@mail.example>"}');
set local session authorization custody_dpo;
select enter('residue_words', 'dpo') /* $1 */;
select is(pg_temp.found('1001'), 'audit_logs.resource_id 1', 'a number that stands alone');
select is(pg_temp.found('4711'), 'audit_logs.metadata 2', 'deep in JSON');
select is(pg_temp.found('42'), 'audit_logs.metadata 1', 'a short one as a whole string');
select is(pg_temp.found('7'), 'audit_logs.metadata 1', 'however deep');
select is(pg_temp.found('o"neil\x'), 'audit_logs.metadata 1', 'one that JSON writes otherwise');
select is(pg_temp.found('müller'), 'audit_logs.resource_id 1', 'whatever the case');
select is(pg_temp.found('Ådám'), 'audit_logs.resource_id 1', 'of every letter');
select is(pg_temp.found('by_name'), 'audit_logs.metadata 3', 'name, telephone number and e-mail address');
select * from finish();
rollback;
