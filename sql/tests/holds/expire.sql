-- A hold with an end ends by itself: guards, erasure and retention go on.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('expired_hold');
set local session authorization custody_app;
select enter('expired_hold', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select set_config('testing.request', request('expired_hold', 'ada')::text, true);
set local session authorization custody_dpo;
select enter('expired_hold', 'dpo') /* $1 */;
select custody.place_hold('{"user_id": "ada"}', 'case 1', 'litigation', now() + interval '1 hour');
select is(custody.erase_subject(current_setting('testing.request')::uuid) ->> 'status', 'held', 'while it stands the erasure is held');
select is((custody.plan_erasure('ada') ->> 'possible')::boolean, false, 'and the plan says so');
-- an hour passes
reset session authorization;
update custody_data.legal_holds set until_at = now() - interval '1 second' where tenant_id = 'expired_hold';
set local session authorization custody_dpo;
select is((select h.active from custody.holds h), false, 'the view says that it has ended');
select is((custody.plan_erasure('ada') ->> 'possible')::boolean, true, 'so does the plan');
select is((select count(*) from custody.due_requests('erasure')), 1::bigint, 'the request is due');
select is(custody.erase_subject(current_setting('testing.request')::uuid) ->> 'status', 'complete', 'and is carried out');
select * from finish();
rollback;
