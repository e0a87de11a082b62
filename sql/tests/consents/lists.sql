-- current_consents shows the newest decision of each purpose, consent_history all, page by page.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('consent_lists');
set local session authorization custody_app;
select enter('consent_lists', 'clerk') /* $1 */;
select custody.record_consent('ada', 'mail', true, '1', p_occurred_at => '2026-01-01 00:00:00+00');
select custody.record_consent('ada', 'mail', false, '1', p_occurred_at => '2026-02-01 00:00:00+00');
select custody.record_consent('ada', 'mail', true, '2', p_occurred_at => '2026-03-01 00:00:00+00');
select custody.record_consent('ada', 'ads', true, '1', p_occurred_at => '2026-01-15 00:00:00+00');
select custody.record_consent('ada', 'ads', false, '1', p_occurred_at => '2026-02-15 00:00:00+00');
select custody.record_consent('bob', 'mail', true, '1');

select results_eq($$select c.purpose collate "default", c.granted, c.in_force from custody.current_consents('ada') c$$,
  $$values ('ads'::text, false, false), ('mail', true, true)$$, 'the newest of each purpose, by purpose');
select results_eq($$select c.purpose collate "default", c.granted, c.replaced_at, c.in_force from custody.consent_history('ada') c$$,
  $$values ('mail'::text, true, null::timestamptz, true), ('ads', false, null, false), ('mail', false, '2026-03-01 00:00:00+00', false),
    ('ads', true, '2026-02-15 00:00:00+00', false), ('mail', true, '2026-02-01 00:00:00+00', false)$$,
  'all, the newest first, each with when it was replaced');
select results_eq($$select c.occurred_at from custody.consent_history('ada', 2) c$$, array['2026-03-01 00:00:00+00', '2026-02-15 00:00:00+00']::timestamptz[], 'a page');
select results_eq($$select c.occurred_at from custody.consent_history('ada', 2, '2026-02-15 00:00:00+00') c$$,
  array['2026-02-01 00:00:00+00', '2026-01-15 00:00:00+00']::timestamptz[], 'the next page');
select results_eq($$select c.occurred_at from custody.consent_history('ada', 2, '2026-01-15 00:00:00+00') c$$,
  array['2026-01-01 00:00:00+00']::timestamptz[], 'the last page');
select is_empty($$select custody.consent_history('ada', 2, '2026-01-01 00:00:00+00')$$, 'and none after it');
select is((select count(*) from custody.consent_history('ada', 10000)), 5::bigint, 'a page may have 10000');

-- Decisions of one instant.
select custody.record_consent('cy', 'p' || n, true, '1', p_occurred_at => '2026-01-01 00:00:00+00', p_consent_id => ('11111111-1111-4111-8111-11111111111' || n)::uuid) from generate_series(1, 3) n;
select results_eq($$select c.purpose collate "default" from custody.consent_history('cy', 2) c$$, array['p3', 'p2'], 'a page within one instant');
select results_eq($$select c.purpose collate "default" from custody.consent_history('cy', 2, '2026-01-01 00:00:00+00', '11111111-1111-4111-8111-111111111112') c$$, array['p1'], 'the next page');
select is_empty($$select custody.consent_history('cy', 2, '2026-01-01 00:00:00+00')$$, 'without p_before_id rows of the instant are passed over');
select refuses($$select custody.consent_history('ada', 0)$$, 'PC023', 'a page of none');
select refuses($$select custody.consent_history('ada', 10001)$$, 'PC023', 'a page of 10001');
select refuses($$select custody.consent_history('ada', null)$$, 'PC023', 'a page without a limit');
select refuses($$select custody.consent_history('')$$, 'PC003', 'the history of nobody');
select results_eq($$select c.purpose collate "default" from custody.current_consents('ada', 1) c union all select c.purpose from custody.current_consents('ada', 100, (select c.purpose from custody.current_consents('ada', 1) c)) c$$,
  $$select c.purpose collate "default" from custody.current_consents('ada') c$$, 'page by page too');
select refuses(format('select custody.current_consents(''ada'', %s)', l), 'PC023', format('p_limit %s', l)) from unnest(array['null', '0', '10001']) l;
select refuses($$select custody.current_consents('')$$, 'PC003', 'the consents of nobody');
select refuses($$select custody.has_consent('', 'mail')$$, 'PC003', 'the consent of nobody');
select is(custody.has_consent('ada', null), false, 'no purpose is no consent');

select enter('consent_lists', 'clerk', null, 'bob') /* $1 */;
select is(custody.has_consent('ada', 'mail'), false, 'in a context of somebody else there is no consent');
select is_empty($$select custody.current_consents('ada')$$, 'nor a list');
select is_empty($$select custody.consent_history('ada')$$, 'nor a history');
select is((select count(*) from custody.consents), 1::bigint, 'the view shows one''s own');
select refuses($$select custody.record_consent('ada', 'mail', true, '1')$$, 'PC015', 'and nothing is recorded for others');
select refuses($$select custody.record_consent('clerk', 'mail', true, '1')$$, 'PC015', 'the actor among them');
select * from finish();
rollback;
