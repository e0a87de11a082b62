-- A request is a row with a clock of one month: an application makes it for its subject, a privacy officer for
-- anybody. Retried with the same id it is one request.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('receive_request');
set local session authorization custody_app;
select enter('receive_request', 'clerk') /* $1 */;
select custody.put_profile(u, '{}') from unnest(array['ada', 'bob']) u;
select refuses($$select custody.request_erasure('ada')$$, 'PC015', 'an application without a subject asks for nobody');
select refuses($$select custody.request_export('ada')$$, 'PC015', 'for an export neither');

select enter('receive_request', 'ada', 'self-service', 'ada') /* $1 */;
select is(custody.request_erasure('ada', 'I leave', '11111111-1111-4111-8111-111111111111'), '11111111-1111-4111-8111-111111111111', 'for its subject it does');
select is(custody.request_status('11111111-1111-4111-8111-111111111111'), jsonb_build_object('request_id', '11111111-1111-4111-8111-111111111111', 'kind', 'erasure', 'status', 'received',
  'received_at', now(), 'due_at', now() + interval '1 month', 'extended_at', null, 'extension_reason', null, 'closed_at', null, 'overdue', false, 'notices_open', 0), 'the request is owed within a month');
select row_eq($$select e.resource_type collate "default", e.resource_id collate "default", e.subject_id, e.actor_id, e.metadata from last_event('receive_request', 'request.receive') e$$,
  row ('request'::text, '11111111-1111-4111-8111-111111111111'::text, identity('receive_request', 'ada'), identity('receive_request', 'ada'),
    '{"kind": "erasure", "reason": "I leave", "request_id": "11111111-1111-4111-8111-111111111111"}'::jsonb), 'its receipt is an event');
select is(custody.request_erasure('ada', 'I leave', '11111111-1111-4111-8111-111111111111'), '11111111-1111-4111-8111-111111111111', 'the same id again');
select is((select count(*) from events('receive_request', 'request.receive')), 1::bigint, 'is the same request');
select refuses($$select custody.request_export('ada', null, '11111111-1111-4111-8111-111111111111')$$, 'PC010', 'the id of an erasure for an export');
select refuses($$select custody.request_erasure('bob')$$, 'PC015', 'for somebody else');
select refuses($$select custody.request_export('bob')$$, 'PC015', 'an export of somebody else');
select isnt(custody.request_export('ada', repeat('x', 2000)), null, 'an export for oneself, with a reason of 2000 characters');
select refuses($$select custody.request_erasure('ada', repeat('x', 2001))$$, 'PC023', 'a reason of 2001 characters');
select refuses($$select custody.request_export('ada', repeat('x', 2001))$$, 'PC023', 'for an export too');

set local session authorization custody_dpo;
select enter('receive_request', 'dpo') /* $1 */;
select isnt(custody.request_erasure('bob'), null, 'a privacy officer asks for anybody');
select refuses($$select custody.request_erasure('bob', null, '11111111-1111-4111-8111-111111111111')$$, 'PC010', 'the id of somebody else''s request');
select refuses($$select custody.request_erasure('never seen')$$, 'PC011', 'somebody who was never seen');
select refuses($$select custody.request_export('never seen')$$, 'PC011', 'an export of somebody who was never seen');
select refuses($$select custody.request_erasure('')$$, 'PC003', 'nobody');
select refuses($$select custody.request_export(repeat('x', 257))$$, 'PC003', 'a user_id of 257 characters');
select is((select r.requested_by from custody.requests r where r.identity_id = identity('receive_request', 'bob')), identity('receive_request', 'dpo'), 'who asked is on record');

select enter('receive_request', 'bob', null, 'bob') /* $1 */;
select refuses($$select custody.request_erasure('bob', null, '11111111-1111-4111-8111-111111111111')$$, 'PC010', 'an id that is hidden is still not one''s own');
select is(custody.request_status('11111111-1111-4111-8111-111111111111'), null, 'and its request is unknown');
set local session authorization custody_runner;
set local role custody_worker;
select enter('receive_request', 'runner') /* $1 */;
select refuses($$select custody.request_erasure('bob')$$, '42501', 'the worker asks for nobody');
select * from finish();
rollback;
