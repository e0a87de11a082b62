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
select refuses($$delete from custody_data.user_profiles where identity_id = identity('hold_guard', 'ada')$$, 'PC032', 'a profile');
select refuses($$delete from custody_data.user_preferences where identity_id = identity('hold_guard', 'ada')$$, 'PC032', 'preferences');
select refuses($$delete from custody_data.conversations where identity_id = identity('hold_guard', 'ada')$$, 'PC032', 'conversations');
select refuses($$delete from custody_data.conversations where conversation_id = 'c1' and identity_id = identity('hold_guard', 'bob')$$, 'PC032', 'a row under hold');
select refuses($$delete from custody_data.conversations$$, 'PC032', 'everything at once');
select lives_ok($$delete from custody_data.conversations where conversation_id = 'c2' and identity_id = identity('hold_guard', 'bob')$$, 'what no hold covers goes');
select lives_ok($$delete from custody_data.user_profiles where identity_id = identity('hold_guard', 'bob')$$, 'a person without a hold');
-- In a context of one person, holds are hidden, and stand.
select enter('hold_guard', 'clerk', null, 'ada') /* $1 */;
select refuses($$delete from custody_data.user_profiles$$, 'PC032', 'in a context of the person');
select refuses($$select custody.delete_preferences('ada')$$, 'PC032', 'through the API');

reset session authorization;
set local role custody_owner;
select enter('hold_guard', 'owner') /* $1 */;
select refuses($$delete from custody_data.user_preferences$$, 'PC032', 'by the owner');
select refuses($$delete from custody_data.consent_records$$, 'PC032', 'a consent whose retention has ended');
reset role;
set local session_replication_role = replica;
select refuses($$delete from custody_data.conversations where tenant_id = 'hold_guard'$$, 'PC032', 'by a superuser, with triggers off');
select is(rows_of('hold_guard', 'conversations'), 3::bigint, 'all of it stays');
select * from finish();
rollback;
