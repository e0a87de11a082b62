-- A decision about consent is a record of its own: given, withdrawn, given again; none is ever changed.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('record_consent');
set local session authorization custody_app;
select enter('record_consent', 'clerk') /* $1 */;

select is(custody.has_consent('ada', 'newsletter'), false, 'has_consent is false for somebody who was never seen');
select is_empty($$select custody.current_consents('ada')$$, 'who has no consents');
select is_empty($$select custody.consent_history('ada')$$, 'and no history');
select isnt(custody.record_consent('ada', 'newsletter', true, '2026-01', p_evidence => '{"form": 7}'), null, 'record_consent returns the id');
select is(custody.has_consent('ada', 'newsletter'), true, 'a grant is consent');
select is(custody.has_consent('ada', 'profiling'), false, 'for its purpose alone');
select is(custody.has_consent('ada', 'newsletter', '2026-01'), true, 'under the policy version that is asked for');
select is(custody.has_consent('ada', 'newsletter', '2025-12'), true, 'and under a later one');
select is(custody.has_consent('ada', 'newsletter', '2026-02'), false, 'not under an earlier one');
select custody.record_consent('ada', 'newsletter', false, '2026-01');
select is(custody.has_consent('ada', 'newsletter'), false, 'a withdrawal ends it');
select custody.record_consent('ada', 'newsletter', true, '2026-03');
select is(custody.has_consent('ada', 'newsletter', '2026-02'), true, 'a new grant is consent again');
select is(rows_of('record_consent', 'consent_records'), 3::bigint, 'each decision is a record');

-- What a person decided earlier and is recorded later changes what was, not what is.
select custody.record_consent('ada', 'newsletter', false, '2026-03', p_occurred_at => now() - interval '1 year');
select is(custody.has_consent('ada', 'newsletter'), true, 'the newest decision counts, not the newest record');
select custody.record_consent('bob', 'newsletter', true, '1', p_occurred_at => now() + interval '23 hours');
select is(custody.has_consent('bob', 'newsletter'), true, 'a clock may be a day ahead');
select custody.record_consent('bob', 'old', true, '1', p_occurred_at => '1970-01-01 00:00:00+00');
select is(custody.has_consent('bob', 'old'), true, 'and a decision as old as 1970');

select lives_ok(format('select custody.record_consent(%L, %L, true, %L, %L)', 'cy', b || '-purpose', '1', b), format('legal basis %s', b))
from unnest(array['consent', 'contract', 'legal_obligation', 'vital_interests', 'public_task', 'legitimate_interests']) b;
select is((select c.legal_basis from custody.current_consents('bob') c where c.purpose = 'old'), 'consent', 'consent is the basis that is meant where none is named');

set local session authorization custody_reports;
select enter('record_consent', 'analyst') /* $1 */;
select is(custody.has_consent('ada', 'newsletter'), true, 'reports ask for consent');
select refuses($$select custody.record_consent('ada', 'newsletter', true, '1')$$, '42501', 'and record none');
select * from finish();
rollback;
