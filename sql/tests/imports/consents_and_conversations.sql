-- Consents and conversations are imported in one statement each; the same file again adds nothing.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('import_consents');
set local session authorization custody_app;
select enter('import_consents', 'clerk') /* $1 */;
select custody.record_consent('ada', 'mail', true, '1', p_occurred_at => '2020-01-01 00:00:00+00', p_consent_id => '11111111-1111-4111-8111-111111111111');
set local session authorization custody_runner;
select enter('import_consents', 'runner') /* $1 */;
select refuses($$select custody.import_consents()$$, 'PC023', 'without preparing, consents');
select refuses($$select custody.import_conversations()$$, 'PC023', 'without preparing, conversations');

create function pg_temp.stage_consents() returns void language plpgsql as $$
begin
  perform custody.prepare_import('consent_records');
  insert into pg_temp.staged_consent_records values
    (1, '11111111-1111-4111-8111-111111111111', 'ada', 'mail', true, '1', 'consent', null, '2020-01-01 00:00:00+00'), (2, '22222222-2222-4222-8222-222222222222', 'ada', 'mail', false, '1', 'consent', '{"a": 1}', '2021-01-01 00:00:00+00'),
    (3, null, 'bob', 'mail', true, '1', 'contract', null, '2015-01-01 00:00:00+00'), (4, null, 'bob', 'mail', true, '1', 'contract', null, '2015-01-01 00:00:00+00'), (5, null, 'bob', 'mail', true, '2', 'contract', null, '2015-01-01 00:00:00+00');
end
$$;
select pg_temp.stage_consents();
select is(custody.import_consents(), '{"added": 3, "changed": 0, "unchanged": 2, "refused": 0}', 'three are new, one is there, one is on an earlier line');
select is(custody.has_consent('ada', 'mail'), false, 'the withdrawal counts');
select is(custody.has_consent('bob', 'mail'), true, 'the grant counts');
select pg_temp.stage_consents();
select is(custody.import_consents(), '{"added": 0, "changed": 0, "unchanged": 5, "refused": 0}', 'the same again adds nothing, those without an id neither');
select custody.prepare_import('consent_records');
insert into pg_temp.staged_consent_records values (1, '11111111-1111-4111-8111-111111111111', 'ada', 'mail', false, '1', 'consent', null, '2020-01-01 00:00:00+00'),
  (2, '33333333-3333-4333-8333-333333333333', 'ada', 'post', true, '1', 'consent', null, '2020-01-01 00:00:00+00'), (3, '33333333-3333-4333-8333-333333333333', 'bob', 'post', true, '1', 'consent', null, '2020-01-01 00:00:00+00');
select refuses($$select custody.import_consents()$$, 'PC010', 'an id with other content');
select is(custody.import_consents(true), '{"added": 1, "changed": 0, "unchanged": 0, "refused": 2}', 'or the others');
select results_eq($$select r.line, r.code, r.field from pg_temp.import_refusals r order by 1$$, $$values (1::bigint, 'PC010'::text, 'consent_id'::text), (3, 'PC010', 'consent_id')$$, 'than in the table or on an earlier line');
select custody.prepare_import('consent_records');
insert into pg_temp.staged_consent_records values (1, null, '', 'mail', true, '1', 'consent', null, '2020-01-01 00:00:00+00');
select refuses($$select custody.import_consents()$$, 'PC003', 'an empty user_id');

create function pg_temp.sealed(p_user_id text, p_column text, p_row text, p_value text) returns bytea language sql as $$
  select custody.seal_value(i.identity_id, 'conversations', p_column, p_row, p_value) from custody_data.claim_identities(array[p_user_id]) i $$;
create function pg_temp.stage_conversations(p_text text) returns void language plpgsql as $$
begin
  perform custody.prepare_import('conversations');
  insert into pg_temp.staged_conversations
  select l, (select i.identity_id from custody_data.claim_identities(array[u]) i), c, pg_temp.sealed(u, 'title', c, 'T'),
    pg_temp.sealed(u, 'messages', c, jsonb_build_array(jsonb_build_object('role', 'user', 'text', t, 'at', '2020-01-01T00:00:00Z'))::text),
    1, '2020-01-01 00:00:00+00', '2020-01-01 00:00:00+00'
  from (values (1, 'ada', 'c1', 'x'), (2, 'ada', 'c2', 'x'), (3, 'bob', 'c1', p_text), (4, 'bob', 'c1', p_text)) v (l, u, c, t);
end
$$;
select pg_temp.stage_conversations('x');
select is(custody.import_conversations(), '{"added": 3, "changed": 0, "unchanged": 1, "refused": 0}', 'conversations');
select pg_temp.stage_conversations('y');
select is(custody.import_conversations(), '{"added": 0, "changed": 1, "unchanged": 3, "refused": 0}', 'what differs is replaced');
select is(custody.get_conversation('bob', 'c1') #>> '{messages,0,text}', 'y', 'with what the file says');
select pg_temp.stage_conversations('y');
select is(custody.import_conversations(), '{"added": 0, "changed": 0, "unchanged": 4, "refused": 0}', 'the same again changes nothing');
select pg_temp.stage_conversations('y');
update pg_temp.staged_conversations set title = pg_temp.sealed('bob', 'title', 'c1', 'other') where line = 4;
select refuses($$select custody.import_conversations()$$, 'PC028', 'two lines of a conversation that say different things');
select is(custody.import_conversations(true), '{"added": 0, "changed": 0, "unchanged": 3, "refused": 1}', 'or the others');
-- A change is of the columns that changed, whoever made the value that they had.
set local session authorization custody_app;
select enter('import_consents', 'clerk') /* $1 */;
select custody.append_message('bob', 'c1', '{"role": "user", "text": "z", "at": "2020-01-01T00:00:00Z"}'), custody.update_conversation('ada', 'c2', 'U');
select custody.save_conversation('ada', 'c1', '[{"text": "x", "at": "2020-01-01T00:00:00Z", "role": "user"}]', 'T');
set local session authorization custody_runner;
select enter('import_consents', 'runner') /* $1 */;
create function pg_temp.updates() returns setof text language sql as $$
  select format('%s %s', e.resource_id, e.metadata -> 'columns') from testing.events('import_consents', 'record.update') e where e.actor_id = testing.identity('import_consents', 'runner') $$;
select results_eq('select pg_temp.updates()', array['c1 ["messages"]'], 'so far messages alone were replaced');
select pg_temp.stage_conversations('y');
select is(custody.import_conversations(), '{"added": 0, "changed": 2, "unchanged": 2, "refused": 0}', 'what the application has changed is put back, what it has saved anew is the same');
select bag_eq('select pg_temp.updates()', array['c1 ["messages"]', 'c1 ["message_count", "messages"]', 'c2 ["title"]'], 'and the trail names the columns');
select pg_temp.stage_conversations('y');
update pg_temp.staged_conversations set identity_id = gen_random_uuid() where line = 1;
select refuses($$select custody.import_conversations()$$, 'PC021', 'an identity that is not there');

-- Whoever has been erased since does not make a file new, nor comes back by it.
select set_config('testing.request', request('import_consents', 'ada')::text, true);
select custody.erase_subject(current_setting('testing.request')::uuid);
select custody.prepare_import('consent_records');
insert into pg_temp.staged_consent_records values (1, '11111111-1111-4111-8111-111111111111', 'ada', 'mail', true, '1', 'consent', null, '2020-01-01 00:00:00+00');
select is(custody.import_consents(), '{"added": 0, "changed": 0, "unchanged": 1, "refused": 0}', 'a consent of the erased is the same record');
select is(identity('import_consents', 'ada'), null, 'and makes nobody known again');
select * from finish();
rollback;
