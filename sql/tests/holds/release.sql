-- A hold is released with a reason, once; what it alone kept waiting goes on.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('release_hold');
select tenant('release_hold_2');
set local session authorization custody_app;
select enter('release_hold', 'clerk') /* $1 */;
select custody.put_profile(u, '{}') from unnest(array['ada', 'bob']) u;
select set_config('testing.ada', request('release_hold', 'ada')::text, true), set_config('testing.bob', request('release_hold', 'bob')::text, true);

set local session authorization custody_dpo;
select enter('release_hold', 'dpo') /* $1 */;
select set_config('testing.tenant', custody.place_hold('{"tenant": true}', 'case 1', 'litigation')::text, true);
select set_config('testing.person', custody.place_hold('{"user_id": "ada"}', 'case 1', 'litigation')::text, true);
select is(custody.erase_subject(current_setting('testing.ada')::uuid) ->> 'status', 'held', 'an erasure is held');
select is(custody.erase_subject(current_setting('testing.bob')::uuid) ->> 'status', 'held', 'so is another');
select is_empty($$select custody.due_requests('erasure')$$, 'nothing is due');

select is(custody.release_hold(current_setting('testing.tenant')::uuid, 'settled'), 1, 'released, it returns how many requests it alone had kept waiting');
select results_eq($$select r.identity_id, r.status from custody.requests r order by r.status$$, $$values (identity('release_hold', 'ada'), 'held'::text), (identity('release_hold', 'bob'), 'received')$$,
  'they are received again; what another hold keeps waits on');
select row_eq($$select h.active, h.released_at, h.released_by, h.release_reason from custody.holds h where h.hold_id = current_setting('testing.tenant')::uuid$$,
  row (false, now(), identity('release_hold', 'dpo'), 'settled'::text), 'the view shows by whom and why');
select is((last_event('release_hold', 'hold.release')).metadata, jsonb_build_object('hold_id', current_setting('testing.tenant'), 'scope', 'tenant', 'requests_resumed', 1, 'reason', 'settled'), 'the release is an event');
select is(custody.release_hold(current_setting('testing.person')::uuid, 'settled'), 1, 'the other one too');
select is((last_event('release_hold', 'hold.release')).subject_id, identity('release_hold', 'ada'), 'an event about its person');
select is((select count(*) from custody.due_requests('erasure')), 2::bigint, 'both requests are due');
select lives_ok($$select custody.place_hold('{"user_id": "ada"}', 'case 1', 'again')$$, 'after its release the same hold can be placed again');

select refuses($$select custody.release_hold(current_setting('testing.tenant')::uuid, 'again')$$, 'PC024', 'a hold that was released before');
select refuses($$select custody.release_hold('33333333-3333-4333-8333-333333333333', 'x')$$, 'PC024', 'an unknown hold');
select refuses($$select custody.release_hold(null, 'x')$$, 'PC024', 'no hold');
select refuses($$select custody.release_hold('33333333-3333-4333-8333-333333333333', ' ')$$, 'PC023', 'no reason');
select refuses($$select custody.release_hold('33333333-3333-4333-8333-333333333333', repeat('x', 2001))$$, 'PC023', 'a reason of 2001 characters');
select enter('release_hold_2', 'dpo') /* $1 */;
select refuses($$select custody.release_hold(current_setting('testing.person')::uuid, 'x')$$, 'PC024', 'another tenant''s hold');
select enter('release_hold', 'dpo', null, 'ada') /* $1 */;
select refuses($$select custody.release_hold(current_setting('testing.person')::uuid, 'x')$$, 'PC015', 'in a context of one person');
set local session authorization custody_runner;
set local role custody_worker;
select enter('release_hold', 'runner') /* $1 */;
select refuses($$select custody.release_hold(current_setting('testing.person')::uuid, 'x')$$, '42501', 'the worker releases none');
reset role;
reset session authorization;
set local role custody_owner;
select enter('release_hold', 'owner') /* $1 */;
select refuses($$update custody_data.legal_holds set reason = 'other' where released_at is null$$, 'PC030', 'what a hold says never changes');
select refuses($$update custody_data.legal_holds set identity_id = null where released_at is null$$, 'PC030', 'nor whom it covers');
select refuses($$update custody_data.legal_holds set until_at = now() where released_at is not null$$, 'PC020', 'a released one is final');
select refuses($$update custody_data.legal_holds set released_at = null where released_at is not null$$, 'PC020', 'and stays released');
select refuses($$delete from custody_data.legal_holds$$, 'PC020', 'holds are never deleted');
select * from finish();
rollback;
