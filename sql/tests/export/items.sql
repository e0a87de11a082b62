-- export_items is the same as export_subject, item by item, of any size, for a request.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('export_items');
set local session authorization custody_app;
select enter('export_items', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada"}'), custody.put_preferences('ada', '{"a": [1, 2]}');
select custody.record_consent('ada', p, true, '1') from unnest(array['mail', 'post']) p;
select custody.save_conversation('ada', 'c' || n, '[{"role": "user", "text": "x"}]') from generate_series(1, 3) n;
select set_config('testing.export', request('export_items', 'ada', 'export')::text, true), set_config('testing.erasure', request('export_items', 'ada', 'erasure')::text, true);
set local session authorization custody_runner;
select enter('export_items', 'runner') /* $1 */;

create temp table document as select custody.export_subject('ada') as d;
create temp table items as select i.*, row_number() over () as n from custody.export_items(current_setting('testing.export')::uuid) i;
select is((select i.kind || i.part from items i where i.n = 1), 'head', 'the head comes first');
select is((select i.body from items i where i.n = 1), (select d - array['profile', 'preferences', 'consents', 'conversations', 'audit_events', 'requests'] from document), 'it is the document without its parts');
select is((select array_agg(i.part order by i.n) from items i where i.kind = 'part'), array['profile', 'preferences', 'consents', 'conversations', 'audit_events', 'requests'], 'each part begins with what is said about it');
select is((select i.body from items i where i.kind = 'part' and i.part = p.key), p.value - 'data', format('%s is said to be the same', p.key))
from document, jsonb_each(d) p where p.key in ('profile', 'preferences', 'consents', 'conversations', 'audit_events', 'requests');
select is((select i.body from items i where i.kind = 'item' and i.part = p), d -> p -> 'data', format('the %s is the same', p)) from document, unnest(array['profile', 'preferences']) p;
select is((select jsonb_agg(i.body order by i.n) from items i where i.kind = 'item' and i.part = p), d -> p -> 'data', format('the items of %s are the same', p)) from document, unnest(array['consents', 'conversations', 'requests']) p;
select is((select jsonb_agg(i.body order by i.n) from items i where i.kind = 'item' and i.part = 'audit_events' and i.body ->> 'action' <> 'account.export' and i.body ->> 'action' <> 'record.read'),
  (select jsonb_agg(e.value) from jsonb_array_elements(d -> 'audit_events' -> 'data') e where e.value ->> 'action' <> 'record.read'), 'and those of the trail, but for the export itself and what it reads') from document;
select is((select count(*) from events('export_items', 'account.export') e where e.metadata ->> 'request_id' = current_setting('testing.export')), 1::bigint, 'the export is an event');

select refuses($$select custody.export_items(current_setting('testing.erasure')::uuid)$$, 'PC018', 'an erasure is no export');
select refuses($$select custody.export_items('99999999-9999-4999-8999-999999999999')$$, 'PC016', 'an unknown request');
select custody.erase_subject(current_setting('testing.erasure')::uuid);
select refuses($$select custody.export_items(current_setting('testing.export')::uuid)$$, 'PC021', 'the erased are not exported');
set local session authorization custody_app;
select enter('export_items', 'clerk', null, 'ada') /* $1 */;
select refuses($$select custody.export_items(current_setting('testing.export')::uuid)$$, '42501', 'applications stream no export');
select * from finish();
rollback;
