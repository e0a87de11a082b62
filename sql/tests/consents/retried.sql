-- A consent recorded again with the same p_consent_id is one record; with other content it is refused.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('retried_consent');
select tenant('retried_consent_2');
set local session authorization custody_app;
select enter('retried_consent', 'clerk') /* $1 */;
\set id '11111111-1111-4111-8111-111111111111'

select is(custody.record_consent('ada', 'mail', true, '1', 'contract', '{"a": 1}', '2026-05-01 00:00:00+00', :'id'), :'id', 'the id is the client''s');
select is(custody.record_consent('ada', 'mail', true, '1', 'contract', '{"a": 1}', '2026-05-01 00:00:00+00', :'id'), :'id', 'a retry returns it');
select is(custody.record_consent('ada', 'mail', true, '1', 'contract', '{"a": 1}', '2026-05-01 02:00:00+02', :'id'), :'id', 'the same instant in another zone is the same');
select is(custody.record_consent('ada', 'mail', true, '1', 'contract', '{"a": 1}', null, :'id'), :'id', 'a retry that leaves the time to the server is the same');
select is(rows_of('retried_consent', 'consent_records'), 1::bigint, 'it is one record');
select is((select count(*) from events('retried_consent', 'record.insert') e where e.resource_type = 'consent_records'), 1::bigint, 'and one event');

select refuses(format('select custody.record_consent(%s, %L)', a, '11111111-1111-4111-8111-111111111111'), 'PC010', format('other content: %s', a))
from unnest(array[
  $$'bob', 'mail', true, '1', 'contract', '{"a": 1}', null$$, $$'ada', 'post', true, '1', 'contract', '{"a": 1}', null$$,
  $$'ada', 'mail', false, '1', 'contract', '{"a": 1}', null$$, $$'ada', 'mail', true, '2', 'contract', '{"a": 1}', null$$,
  $$'ada', 'mail', true, '1', 'consent', '{"a": 1}', null$$, $$'ada', 'mail', true, '1', 'contract', '{"a": 2}', null$$,
  $$'ada', 'mail', true, '1', 'contract', null, null$$, $$'ada', 'mail', true, '1', 'contract', '{"a": 1}', '2026-05-02 00:00:00+00'$$]) a;
select refuses($$select custody.record_consent('bob', 'mail', true, '1', p_consent_id => '11111111-1111-4111-8111-111111111111')$$, 'PC010', 'the id for somebody else');
select is(identity('retried_consent', 'bob'), null, 'who does not become known by it');

select enter('retried_consent_2', 'clerk') /* $1 */;
select lives_ok($$select custody.record_consent('bob', 'mail', true, '1', p_consent_id => '11111111-1111-4111-8111-111111111111')$$, 'another tenant has ids of its own');
select * from finish();
rollback;
