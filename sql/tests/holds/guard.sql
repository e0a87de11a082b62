-- What a hold covers cannot be deleted by anybody, the owner included, whatever the statement touches beside it.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('hold_guard');
set local session authorization custody_app;
select enter('hold_guard', 'clerk') /* $1 */;
select custody.put_profile(u, '{}') from unnest(array['ada', 'bob']) u;
select custody.put_preferences(u, '{}') from unnest(array['ada', 'bob']) u;
select custody.save_conversation(u, 'c' || n, '[{"role": "user", "text": "x"}]') from unnest(array['ada', 'bob']) u, generate_series(1, 2) n;
select custody.record_consent('ada', 'mail', false, '1', p_occurred_at => now() - interval '9 years');
set local session authorization custody_dpo;
select enter('hold_guard', 'dpo') /* $1 */;
select custody.place_hold('{"user_id": "ada"}', 'case 1', 'litigation');
select custody.place_hold('{"table": "conversations", "row": "c1", "user_id": "bob"}', 'case 1', 'litigation');

set local session authorization custody_app;
select enter('hold_guard', 'clerk') /* $1 */;
select refuses(format('delete from custody_data.%I', t), '42501', format('an application deletes from %s through functions alone', t)) from unnest(array['user_profiles', 'user_preferences', 'conversations']) t;
select refuses($$select custody.delete_profile('ada')$$, 'PC032', 'a profile');
select refuses($$select custody.delete_preferences('ada')$$, 'PC032', 'preferences');
select refuses($$select custody.delete_conversation('ada', 'c2')$$, 'PC032', 'a conversation');
select refuses($$select custody.delete_conversation('bob', 'c1')$$, 'PC032', 'a row under hold');
select is(custody.delete_conversation('bob', 'c2'), true, 'what no hold covers goes');
select is(custody.delete_profile('bob'), true, 'a person without a hold');
-- In a context of one person, holds are hidden, and stand.
select enter('hold_guard', 'clerk', null, 'ada') /* $1 */;
select refuses($$select custody.delete_profile('ada')$$, 'PC032', 'in a context of the person');
select refuses($$select custody.delete_preferences('ada')$$, 'PC032', 'preferences there');

reset session authorization;
set local role custody_owner;
select enter('hold_guard', 'owner') /* $1 */;
select refuses(format('delete from custody_data.%I where identity_id = identity(%L, %L)', t, 'hold_guard', 'ada'), 'PC032', format('%s by the owner', t)) from unnest(array['user_profiles', 'user_preferences', 'conversations']) t;
select refuses($$delete from custody_data.conversations where conversation_id = 'c1' and identity_id = identity('hold_guard', 'bob')$$, 'PC032', 'a row under hold by the owner');
select refuses($$delete from custody_data.conversations$$, 'PC032', 'everything at once');
select enter('hold_guard', 'owner', null, 'ada') /* $1 */;
select refuses($$delete from custody_data.user_profiles$$, 'PC032', 'by the owner in a context of the person');
select enter('hold_guard', 'owner') /* $1 */;
select refuses($$delete from custody_data.consent_records$$, 'PC032', 'a consent whose retention has ended');
reset role;
set local session_replication_role = replica;
select refuses($$delete from custody_data.conversations where tenant_id = 'hold_guard'$$, 'PC032', 'by a superuser, with triggers off');
select is(rows_of('hold_guard', 'conversations'), 3::bigint, 'all of it stays');
select * from finish();
rollback;
