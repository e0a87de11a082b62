-- Questions about reading name somebody who is known, a time that has a beginning and an end, and how much is wanted.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('access_refusals');
select populate('access_refusals', 'ada') /* $1 */;
set local session authorization custody_audit;
select custody.set_context('access_refusals', 'auditor');
select refuses($$select custody.access_to_person(now() - interval '1 day', now(), '')$$, 'PC003', 'about a blank name');
select refuses($$select custody.access_to_person(now(), now() - interval '1 day', 'ada')$$, 'PC009', 'an end before the beginning');
select refuses($$select custody.access_to_person(now() - interval '1 day', now())$$, 'PC023', 'about nobody');
select refuses($$select custody.access_to_person(now() - interval '1 day', now(), 'ada', p_limit => 0)$$, 'PC023', 'none wanted');
select refuses($$select custody.access_by_actor(now() - interval '1 day', now(), '')$$, 'PC003', 'of a blank actor');
select refuses($$select custody.access_by_actor(null, now(), 'ada')$$, 'PC009', 'no beginning');
select refuses($$select custody.access_by_actor(now() - interval '1 day', now(), 'nobody')$$, 'PC011', 'of an unknown actor');
select refuses($$select custody.access_by_actor(now() - interval '1 day', now())$$, 'PC023', 'of no actor');
select * from finish();
rollback;
