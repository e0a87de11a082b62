-- What is no consent is refused by a code of its own and leaves nothing behind.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('consent_refused');
set local session authorization custody_app;
select enter('consent_refused', 'clerk') /* $1 */;

select refuses($$select custody.record_consent('', 'mail', true, '1')$$, 'PC003', 'an empty user_id');
select refuses($$select custody.record_consent('ada', null, true, '1')$$, 'PC023', 'no purpose');
select refuses($$select custody.record_consent('ada', ' ', true, '1')$$, 'PC023', 'a blank purpose');
select refuses($$select custody.record_consent('ada', repeat('x', 129), true, '1')$$, 'PC023', 'a purpose of 129 characters');
select refuses($$select custody.record_consent('ada', 'x' || repeat(' ', 128), true, '1')$$, 'PC023', 'blanks count');
select refuses($$select custody.record_consent('ada', 'mail', null, '1')$$, 'PC023', 'neither given nor withdrawn');
select refuses($$select custody.record_consent('ada', 'mail', true, null)$$, 'PC023', 'no policy version');
select refuses($$select custody.record_consent('ada', 'mail', true, '')$$, 'PC023', 'an empty policy version');
select refuses($$select custody.record_consent('ada', 'mail', true, repeat('1', 65))$$, 'PC023', 'a policy version of 65 characters');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', 'because')$$, 'PC008', 'an unknown legal basis');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', null)$$, 'PC008', 'no legal basis');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', 'Consent')$$, 'PC008', 'a legal basis in another case');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', p_occurred_at => 'infinity')$$, 'PC009', 'never');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', p_occurred_at => '-infinity')$$, 'PC009', 'always');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', p_occurred_at => '1969-12-31 23:59:59+00')$$, 'PC009', 'before 1970');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', p_occurred_at => now() + interval '25 hours')$$, 'PC009', 'more than a day ahead');
select refuses($$select custody.record_consent('ada', 'mail', true, '1', p_evidence => '{"a": "\u0000"}')$$, '22P05', 'a NUL character');
select is(rows_of('consent_refused', 'identities') + rows_of('consent_refused', 'consent_records') + rows_of('consent_refused', 'audit_logs'), 0::bigint,
  'nothing was left behind');
select * from finish();
rollback;
