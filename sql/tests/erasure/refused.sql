-- What erase_subject refuses; nothing is done then.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('erase_refused');
select tenant('erase_refused_2');
set local session authorization custody_app;
select enter('erase_refused', 'clerk') /* $1 */;
select custody.put_profile(u, '{}') from unnest(array['ada', 'bob']) u;
select set_config('testing.export', request('erase_refused', 'ada', 'export')::text, true), set_config('testing.erasure', request('erase_refused', 'ada')::text, true);
set local session authorization custody_dpo;
select enter('erase_refused', 'dpo') /* $1 */;

select refuses($$select custody.erase_subject('99999999-9999-4999-8999-999999999999')$$, 'PC016', 'an unknown request');
select refuses($$select custody.erase_subject(null)$$, 'PC016', 'no request');
select refuses($$select custody.erase_subject(current_setting('testing.export')::uuid)$$, 'PC018', 'a request for an export');
select refuses($$select custody.erase_subject(custody.request_erasure('bob'))$$, 'PC017', 'a request that is not committed');
select custody.cancel_request(current_setting('testing.erasure')::uuid);
select refuses($$select custody.erase_subject(current_setting('testing.erasure')::uuid)$$, 'PC018', 'a cancelled request');
select refuses($$select custody.search_residue(current_setting('testing.erasure')::uuid)$$, 'PC018', 'for which nothing is searched either');
select refuses($$select custody.search_residue(current_setting('testing.export')::uuid)$$, 'PC018', 'nor for an export');
select refuses($$select custody.search_residue('99999999-9999-4999-8999-999999999999')$$, 'PC016', 'nor for an unknown one');
select refuses($$select custody.verify_erasure('99999999-9999-4999-8999-999999999999')$$, 'PC016', 'an unknown request is not verified');
select refuses($$select custody.verify_erasure(current_setting('testing.export')::uuid)$$, 'PC018', 'nor an export');
select is(custody.get_certificate('99999999-9999-4999-8999-999999999999'), null, 'an unknown request has no certificate');
select is(custody.get_certificate(current_setting('testing.export')::uuid), null, 'an export has none');

select set_config('testing.open', request('erase_refused', 'bob')::text, true);
select enter('erase_refused', 'dpo', null, 'bob') /* $1 */;
select refuses($$select custody.erase_subject(current_setting('testing.open')::uuid)$$, 'PC015', 'in a context of one person, in which holders and the trail are hidden');
select refuses($$select custody.search_residue(current_setting('testing.open')::uuid)$$, 'PC015', 'searching too');
select refuses($$select custody.verify_erasure(current_setting('testing.open')::uuid)$$, 'PC015', 'verifying too');
select refuses($$select custody.replay_erasures('[]')$$, 'PC015', 'replaying too');
select enter('erase_refused_2', 'dpo') /* $1 */;
select refuses($$select custody.erase_subject(current_setting('testing.open')::uuid)$$, 'PC016', 'another tenant''s request is unknown');
select refuses($$select custody.search_residue(current_setting('testing.open')::uuid)$$, 'PC016', 'for searching too');
select refuses($$select custody.verify_erasure(current_setting('testing.open')::uuid)$$, 'PC016', 'for verifying too');

set local session authorization custody_app;
select enter('erase_refused', 'clerk', null, 'bob') /* $1 */;
select refuses($$select custody.erase_subject(current_setting('testing.open')::uuid)$$, '42501', 'applications erase nobody');
set local session authorization custody_audit;
select enter('erase_refused', 'auditor') /* $1 */;
select refuses($$select custody.erase_subject(current_setting('testing.open')::uuid)$$, '42501', 'nor do auditors');
select lives_ok($$select custody.verify_erasure(current_setting('testing.open')::uuid)$$, 'who verify');
select is(rows_of('erase_refused', 'user_profiles'), 2::bigint, 'nothing was done');
select * from finish();
rollback;
