-- Requests are listed oldest first, by status and page by page; request_status says how one stands.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('list_requests');
select tenant('list_requests_2');
set local session authorization custody_app;
select enter('list_requests', 'clerk') /* $1 */;
select custody.put_profile(u, '{}') from unnest(array['ada', 'bob', 'cy', 'di', 'eve']) u;
reset session authorization;
insert into custody_data.requests (tenant_id, request_id, kind, identity_id, status, requested_by, received_at, due_at, closed_at)
select 'list_requests', ('11111111-1111-4111-8111-11111111111' || n)::uuid, k, identity('list_requests', u), s, identity('list_requests', u),
  now() - make_interval(days => a), now() + make_interval(days => 30 - a), case when s in ('done', 'cancelled') then now() end
from (values (1, 'erasure', 'ada', 'done', 50), (2, 'export', 'ada', 'received', 40), (3, 'erasure', 'bob', 'held', 20), (4, 'erasure', 'cy', 'received', 10), (5, 'erasure', 'di', 'received', 10),
  (6, 'export', 'eve', 'cancelled', 5)) r (n, k, u, s, a);

set local session authorization custody_audit;
select enter('list_requests', 'auditor') /* $1 */;
create function pg_temp.listed(p_status text default null, p_limit int default 100, p_after int default null) returns text language sql as $$
  select string_agg(right(l.request_id::text, 1), '' order by l.n) from (
    select r.request_id, row_number() over () as n from custody.list_requests(p_status, p_limit, ('11111111-1111-4111-8111-11111111111' || p_after)::uuid) r) l;
$$;
select is(pg_temp.listed(), '123456', 'all, the oldest first');
select row_eq($$select e.metadata, e.subject_id, e.actor_id from last_event('list_requests', 'request.read') e$$, row ('{"rows": 6}'::jsonb, null::uuid, identity('list_requests', 'auditor')), 'which is an event');
select is(pg_temp.listed('received'), '245', 'by status');
select is((last_event('list_requests', 'request.read')).metadata, '{"rows": 3, "status": "received"}', 'and says so');
select is(pg_temp.listed('held'), '3', 'held');
select is(pg_temp.listed(p_limit => 4), '1234', 'a page');
select is(pg_temp.listed(p_limit => 4, p_after => 4), '56', 'the next page, within one instant');
select is(pg_temp.listed(p_limit => 4, p_after => 6), null, 'and none after the last');
select is((select count(*) from custody.list_requests() r where r.overdue), 1::bigint, 'what is open and past its time is overdue, what is closed is not');
select is((custody.request_status('11111111-1111-4111-8111-111111111112') ->> 'overdue')::boolean, true, 'request_status says so too');
select is((custody.request_status('11111111-1111-4111-8111-111111111111') ->> 'overdue')::boolean, false, 'of one that is done it does not');
select is(custody.request_status('99999999-9999-4999-8999-999999999999'), null, 'null for the unknown');
select is(custody.request_status(null), null, 'null for null');
select refuses($$select custody.list_requests(p_limit => 0)$$, 'PC023', 'a page of none');
select refuses($$select custody.list_requests(p_limit => 10001)$$, 'PC023', 'a page of 10001');
select refuses($$select custody.list_requests(p_limit => null)$$, 'PC023', 'a page without a limit');
select refuses($$select custody.list_requests('open')$$, 'PC023', 'an unknown status');

set local session authorization custody_runner;
select enter('list_requests', 'runner') /* $1 */;
create function pg_temp.due(p_kind text, p_limit int default 100, p_before timestamptz default now()) returns text language sql as $$
  select string_agg(right(l.request_id::text, 1), '' order by l.n) from (select r.request_id, row_number() over () as n from custody.due_requests(p_kind, p_limit, p_before) r) l;
$$;
select is(pg_temp.due('erasure'), '345', 'open erasures are due, the most urgent first, one whose hold has ended among them');
select is(pg_temp.due('export'), '2', 'open exports');
select is(pg_temp.due('erasure', 1), '3', 'no more than p_limit');
select is(pg_temp.due('erasure', 100, now() - interval '15 days'), '3', 'only those that were received before');
select is(pg_temp.due('erasure', 100, now() - interval '1 year'), null, 'or none');
select refuses($$select custody.due_requests('rectification')$$, 'PC023', 'an unknown kind');
select refuses($$select custody.due_requests(null)$$, 'PC023', 'no kind');
select refuses($$select custody.due_requests('erasure', 0)$$, 'PC023', 'none of them');
select refuses($$select custody.due_requests('erasure', 10001)$$, 'PC023', 'more than 10000 of them');

set local session authorization custody_dpo;
select enter('list_requests', 'dpo') /* $1 */;
select custody.place_hold('{"user_id": "bob"}', 'case 1', 'litigation');
select is((select count(*) from custody.due_requests('erasure')), 2::bigint, 'under a hold it is not due');
select enter('list_requests', 'dpo', null, 'ada') /* $1 */;
select is(pg_temp.listed(), '12', 'in a context of one person, that person''s');
select enter('list_requests_2', 'dpo') /* $1 */;
select is(pg_temp.listed(), null, 'another tenant has none of them');
select is(custody.request_status('11111111-1111-4111-8111-111111111112'), null, 'nor knows one by its id');
set local session authorization custody_app;
select enter('list_requests', 'clerk') /* $1 */;
select refuses($$select custody.request_status('11111111-1111-4111-8111-111111111112')$$, 'PC015', 'an application asks for its subject alone');
select refuses($$select custody.list_requests()$$, 'PC015', 'and lists its alone');
select enter('list_requests', 'clerk', null, 'ada') /* $1 */;
select is(custody.request_status('11111111-1111-4111-8111-111111111112') ->> 'status', 'received', 'its subject''s');
select is(custody.request_status('11111111-1111-4111-8111-111111111113'), null, 'another''s is unknown');
select is(pg_temp.listed(), '12', 'the list is that person''s');
select is((last_event('list_requests', 'request.read')).subject_id, identity('list_requests', 'ada'), 'an event about them');
select is(pg_temp.listed(p_after => 1), '2', 'page by page');
select * from finish();
rollback;
