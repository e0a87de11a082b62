-- Each holder outside Postgres gets a notice in the erasure's own transaction; the certificate is complete when all
-- have acknowledged, and then no notice names the person any more.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('notices');
select tenant('notices_2');
set local session authorization custody_app;
select enter('notices', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select set_config('testing.request', request('notices', 'ada')::text, true);
set local session authorization custody_dpo;
select enter('notices', 'dpo') /* $1 */;
select custody.register_holder('crm', 'https://crm.example/erase'), custody.register_holder('cache'), custody.register_holder('old', p_retired => true);
select set_config('testing.certificate', custody.erase_subject(current_setting('testing.request')::uuid)::text, true);

select is(current_setting('testing.certificate')::jsonb ->> 'status', 'awaiting_holders', 'the erasure is done, the certificate waits');
select is(current_setting('testing.certificate')::jsonb -> 'external_holders',
  '[{"holder": "cache", "notified_at": null, "acknowledged_at": null, "evidence": null}, {"holder": "crm", "notified_at": null, "acknowledged_at": null, "evidence": null}]', 'it names the holders, without the retired');
select results_eq($$select n.holder collate "default", n.user_id collate "default", n.attempts from custody.pending_notices() n order by 1$$, $$values ('cache'::text, 'ada'::text, 0), ('crm', 'ada', 0)$$,
  'each has a notice that says whom to forget');
select is((select count(*) from custody.pending_notices(1)), 1::bigint, 'no more than p_limit');
select is((custody.request_status(current_setting('testing.request')::uuid) ->> 'notices_open')::int, 2, 'request_status counts them');
select is((custody.verify_erasure(current_setting('testing.request')::uuid) ->> 'notices_open')::int, 2, 'so does verify_erasure');
select refuses($$select custody.pending_notices(0)$$, 'PC023', 'none of them');
select refuses($$select custody.pending_notices(10001)$$, 'PC023', 'more than 10000 of them');
select refuses($$select custody.mark_notice_sent(gen_random_uuid(), 'x')$$, '42501', 'privacy officers send none');

set local session authorization custody_runner;
select enter('notices', 'runner') /* $1 */;
select set_config('testing.crm', (select n.notice_id from custody.pending_notices() n where n.holder = 'crm')::text, true);
select lives_ok($$select custody.mark_notice_sent(current_setting('testing.crm')::uuid, 'HTTP 503', false)$$, 'an attempt that failed');
select lives_ok($$select custody.mark_notice_sent(current_setting('testing.crm')::uuid, repeat('HTTP 202 ', 100))$$, 'one that succeeded');
select row_eq($$select n.attempts, length(n.last_status), n.sent_at from custody.pending_notices() n where n.holder = 'crm'$$, row (2, 200, now()), 'attempts are counted, the last one''s status is kept, shortened');
select is(custody.acknowledge_erasure(current_setting('testing.request')::uuid, 'crm', '{"ticket": 7}'), 'awaiting_holders', 'the first acknowledgement');
select is(custody.acknowledge_erasure(current_setting('testing.request')::uuid, 'cache'), 'complete', 'the last');
select is(custody.get_certificate(current_setting('testing.request')::uuid) ->> 'status', 'complete', 'completes the certificate');
select is(custody.get_certificate(current_setting('testing.request')::uuid) #> '{external_holders,1}',
  jsonb_build_object('holder', 'crm', 'notified_at', now(), 'acknowledged_at', now(), 'evidence', '{"ticket": 7}'::jsonb), 'which shows when and by what');
select is_empty('select custody.pending_notices()', 'nothing is left to send');
select is((select count(*) from custody_data.erasure_notices n where n.user_id is not null), 0::bigint, 'and no notice names the person');
select is((select array_agg(e.metadata ->> 'holder' order by e.metadata ->> 'holder') from events('notices', 'holder.acknowledge') e), array['cache', 'crm'], 'each acknowledgement is an event');
select is(custody.acknowledge_erasure(current_setting('testing.request')::uuid, 'crm', '{"other": 1}'), 'complete', 'acknowledging again');
select is(custody.get_certificate(current_setting('testing.request')::uuid) #> '{external_holders,1,evidence}', '{"ticket": 7}', 'changes nothing');
select is((select count(*) from events('notices', 'holder.acknowledge')), 2::bigint, 'and is no event');
select lives_ok($$select custody.mark_notice_sent(current_setting('testing.crm')::uuid, 'late')$$, 'a late attempt');
select is((select n.attempts from custody_data.erasure_notices n where n.holder = 'crm'), 2, 'changes nothing either');

select refuses($$select custody.acknowledge_erasure(current_setting('testing.request')::uuid, 'old')$$, 'PC025', 'a holder that had no notice');
select refuses($$select custody.acknowledge_erasure(current_setting('testing.request')::uuid, null)$$, 'PC025', 'no holder');
select refuses($$select custody.acknowledge_erasure('99999999-9999-4999-8999-999999999999', 'crm')$$, 'PC025', 'an unknown request');
select enter('notices_2', 'runner') /* $1 */;
select refuses($$select custody.acknowledge_erasure(current_setting('testing.request')::uuid, 'crm')$$, 'PC025', 'another tenant''s request');
select enter('notices', 'runner', null, 'bob') /* $1 */;
select refuses($$select custody.acknowledge_erasure(current_setting('testing.request')::uuid, 'crm')$$, 'PC015', 'in a context of one person');

reset session authorization;
set local role custody_owner;
select enter('notices', 'owner') /* $1 */;
select refuses($$update custody_data.erasure_notices set evidence = '{}'$$, 'PC020', 'an acknowledged notice is final');
select refuses($$delete from custody_data.erasure_notices$$, 'PC020', 'notices are never deleted');
select * from finish();
rollback;
