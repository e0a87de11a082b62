-- An open request is extended once, by two months, before it is due; it is cancelled while it is open.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('extend_request');
select tenant('extend_request_2');
set local session authorization custody_app;
select enter('extend_request', 'clerk') /* $1 */;
select custody.put_profile(u, '{}') from unnest(array['ada', 'bob']) u;
select enter('extend_request', 'ada', null, 'ada') /* $1 */;
select custody.request_erasure('ada', null, '11111111-1111-4111-8111-111111111111'), custody.request_export('ada', null, '22222222-2222-4222-8222-222222222222');

set local session authorization custody_dpo;
select enter('extend_request', 'dpo') /* $1 */;
select is(custody.extend_request('11111111-1111-4111-8111-111111111111', 'many systems'), now() + interval '1 month' + interval '2 months', 'extend_request returns when it is due');
select row_eq($$select r.due_at, r.extended_at, r.extension_reason, r.status from custody.requests r where r.request_id = '11111111-1111-4111-8111-111111111111'$$,
  row (now() + interval '1 month' + interval '2 months', now(), 'many systems'::text, 'received'::text), 'when and why are on record');
select is((last_event('extend_request', 'request.extend')).metadata, '{"kind": "erasure", "request_id": "11111111-1111-4111-8111-111111111111"}', 'the extension is an event');
select refuses($$select custody.extend_request('11111111-1111-4111-8111-111111111111', 'again')$$, 'PC018', 'a second time');
select refuses($$select custody.extend_request('22222222-2222-4222-8222-222222222222', ' ')$$, 'PC023', 'without a reason');
select refuses($$select custody.extend_request('22222222-2222-4222-8222-222222222222', repeat('x', 2001))$$, 'PC023', 'with a reason of 2001 characters');
select refuses($$select custody.extend_request('99999999-9999-4999-8999-999999999999', 'x')$$, 'PC016', 'an unknown request');
select refuses($$select custody.extend_request(null, 'x')$$, 'PC016', 'no request');

select is(custody.cancel_request('22222222-2222-4222-8222-222222222222', 'changed mind'), 'cancelled', 'cancel_request returns the status');
select row_eq($$select r.status, r.closed_at, r.close_reason from custody.requests r where r.request_id = '22222222-2222-4222-8222-222222222222'$$, row ('cancelled'::text, now(), 'changed mind'::text), 'when and why are on record');
select is(custody.cancel_request('22222222-2222-4222-8222-222222222222', 'other'), 'cancelled', 'cancelling again');
select is((select count(*) from events('extend_request', 'request.cancel')), 1::bigint, 'changes nothing');
select refuses($$select custody.extend_request('22222222-2222-4222-8222-222222222222', 'x')$$, 'PC018', 'a cancelled request is not extended');
select refuses($$select custody.complete_export('22222222-2222-4222-8222-222222222222', 1)$$, 'PC018', 'nor completed');
select refuses($$select custody.export_items('22222222-2222-4222-8222-222222222222')$$, 'PC018', 'nor carried out');
select refuses($$select custody.cancel_request('99999999-9999-4999-8999-999999999999')$$, 'PC016', 'an unknown request');

select set_config('testing.late', request('extend_request', 'bob', 'export')::text, true);
reset session authorization;
update custody_data.requests set due_at = now() - interval '1 second' where request_id = current_setting('testing.late')::uuid;
set local session authorization custody_dpo;
select refuses($$select custody.extend_request(current_setting('testing.late')::uuid, 'too late')$$, 'PC018', 'an overdue request is not extended');

-- An export is done once its file has been stored.
select refuses($$select custody.complete_export('11111111-1111-4111-8111-111111111111', 1)$$, 'PC018', 'an erasure is no export');
select refuses($$select custody.complete_export('99999999-9999-4999-8999-999999999999', 1)$$, 'PC016', 'an unknown export');
select lives_ok($$select custody.complete_export(current_setting('testing.late')::uuid, 77)$$, 'an export is completed');
select is(custody.request_status(current_setting('testing.late')::uuid) ->> 'status', 'done', 'then it is done');
select is((last_event('extend_request', 'request.complete')).metadata, jsonb_build_object('kind', 'export', 'bytes', 77, 'request_id', current_setting('testing.late')), 'the completion is an event');
select lives_ok($$select custody.complete_export(current_setting('testing.late')::uuid, 78)$$, 'completing again');
select is((select count(*) from events('extend_request', 'request.complete')), 1::bigint, 'changes nothing');
select refuses($$select custody.cancel_request(current_setting('testing.late')::uuid)$$, 'PC018', 'what is done is not cancelled');

select enter('extend_request_2', 'dpo') /* $1 */;
select refuses($$select custody.extend_request('11111111-1111-4111-8111-111111111111', 'x')$$, 'PC016', 'another tenant''s request is unknown');
select refuses($$select custody.cancel_request('11111111-1111-4111-8111-111111111111')$$, 'PC016', 'for cancelling too');
set local session authorization custody_app;
select enter('extend_request', 'clerk') /* $1 */;
select refuses($$select custody.cancel_request('11111111-1111-4111-8111-111111111111')$$, 'PC015', 'an application cancels for its subject alone');
select refuses($$select custody.extend_request('11111111-1111-4111-8111-111111111111', 'x')$$, 'PC015', 'and extends for it alone');
select enter('extend_request', 'bob', null, 'bob') /* $1 */;
select refuses($$select custody.cancel_request('11111111-1111-4111-8111-111111111111')$$, 'PC016', 'another''s request is unknown');
select refuses($$select custody.extend_request('11111111-1111-4111-8111-111111111111', 'x')$$, 'PC016', 'for extending too');
select enter('extend_request', 'ada', null, 'ada') /* $1 */;
select refuses($$select custody.extend_request('11111111-1111-4111-8111-111111111111', 'x')$$, 'PC018', 'one''s own is known, and was extended before');
select is(custody.cancel_request('11111111-1111-4111-8111-111111111111'), 'cancelled', 'one''s own is cancelled');

reset session authorization;
set local role custody_owner;
select enter('extend_request', 'owner') /* $1 */;
select refuses($$update custody_data.requests set due_at = now() where status = 'cancelled'$$, 'PC020', 'a closed request is final');
reset role;
insert into custody_data.requests (tenant_id, kind, identity_id, requested_by) values ('extend_request', 'erasure', identity('extend_request', 'bob'), identity('extend_request', 'bob'));
set local role custody_owner;
select refuses(format('update custody_data.requests set %s where status = %L', c, 'received'), 'PC030', format('an open one keeps: %s', c))
from unnest(array['kind = ''export''', 'identity_id = gen_random_uuid()', 'reason = ''x''', 'requested_by = gen_random_uuid()', 'received_at = now() + interval ''1 day''', 'xid = ''5''', 'request_id = gen_random_uuid()']) c;
select refuses($$delete from custody_data.requests$$, 'PC020', 'requests are never deleted');
select * from finish();
rollback;
