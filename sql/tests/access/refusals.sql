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
-- Past the functions nobody is told whose records were read, from where or why: asking is an event.
reset session authorization;
select is(attempt(g, format('select %I from custody_data.access_events limit 0', c)), '42501', format('%s and %s', g, c))
from unnest(array['custody_auditor', 'custody_privacy', 'custody_readonly', 'custody_readwrite']) g, unnest(array['identity_id', 'purpose', 'client', 'application', 'action', 'rows', 'role', 'vxid', 'xact_at', 'state_code']) c;
select is(attempt(g, 'select * from custody_data.access_events limit 0'), '42501', g || ' and all of it') from unnest(array['custody_auditor', 'custody_privacy']) g;
select is(attempt(g, 'select * from custody.log_reconciliation limit 0'), 'ok', g || ' and what reconciliation shows') from unnest(array['custody_auditor', 'custody_privacy', 'custody_worker']) g;
select * from finish();
rollback;
