-- The canonical entry, version 1, byte for byte: fixed members in fixed order, null members left out,
-- the personal part as the base64 of its sealed value.
begin;
set local search_path = tap, testing;
select no_plan();
set local session authorization custody_runner;
create function pg_temp.entry(p_changes jsonb default '{}') returns text language sql as $$
  select custody.audit_entry(jsonb_populate_record(null::custody_data.audit_logs, jsonb_build_object(
    'tenant_id', 'acme', 'log_entry_id', '01a1fd93-0000-7000-8000-000000000001', 'occurred_at', '2026-03-01T10:00:00.000001+02:00', 'recorded_at', '2026-03-01T08:00:00Z',
    'actor_id', '01a1fd93-0000-4000-8000-000000000002', 'action', 'phi.access', 'result', 'success', 'metadata', '{}'::jsonb, 'db_role', 'custody_app', 'xid', '18446744073709551615') || p_changes));
$$;
select is(pg_temp.entry(),
  '{"v":1,"log_entry_id":"01a1fd93-0000-7000-8000-000000000001","occurred_at":"2026-03-01T08:00:00.000001Z","recorded_at":"2026-03-01T08:00:00.000000Z","tenant_id":"acme",'
  '"actor_id":"01a1fd93-0000-4000-8000-000000000002","action":"phi.access","result":"success","metadata":{},"db_role":"custody_app","xid":"18446744073709551615"}', 'the least that an event has');
select is(pg_temp.entry('{"subject_id": "01a1fd93-0000-4000-8000-000000000003", "resource_type": "document", "resource_id": "d \"1\"\n\u00e4\ud83d\ude42\\", "purpose": "care", "metadata": {"b": [1, 1.50, 1e3], "a": null},
  "personal": "\\x01fbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbfffbff", "import_id": "01a1fd93-0000-4000-8000-000000000004"}'),
  '{"v":1,"log_entry_id":"01a1fd93-0000-7000-8000-000000000001","occurred_at":"2026-03-01T08:00:00.000001Z","recorded_at":"2026-03-01T08:00:00.000000Z","tenant_id":"acme",'
  '"actor_id":"01a1fd93-0000-4000-8000-000000000002","subject_id":"01a1fd93-0000-4000-8000-000000000003","action":"phi.access","resource_type":"document",'
  '"resource_id":"d \"1\"\nä🙂\\","result":"success","purpose":"care","metadata":{"a": null, "b": [1, 1.50, 1000]},"personal":"Afv/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+//7//v/+/8=",'
  '"import_id":"01a1fd93-0000-4000-8000-000000000004","db_role":"custody_app","xid":"18446744073709551615"}', 'all that it can have; what is null within metadata stays');
select is(jsonb_typeof(pg_temp.entry('{"resource_id": "\u0001\u001f\u2028"}')::jsonb), 'object', 'an entry is JSON');
select is(pg_temp.entry('{"resource_id": "\u0001\u001f"}') ~ '"resource_id":"\\u0001\\u001f"', true, 'control characters are escaped');
select is(position(E'\n' in pg_temp.entry('{"resource_id": "a\nb\r"}')), 0, 'an entry is one line');
select is(pg_temp.entry('{"occurred_at": "1970-01-01T00:00:00Z"}') ~ '"occurred_at":"1970-01-01T00:00:00.000000Z"', true, 'the first time that there can be');
select is(pg_temp.entry('{"occurred_at": "20260-03-01T10:00:00Z"}') ~ '"occurred_at":"20260-03-01T10:00:00.000000Z"', true, 'years may have five digits');
select is(custody.audit_entry(null), null, 'no event is no entry');
select is((select string_agg(a.attname, ' ' order by a.attnum) from pg_attribute a where a.attrelid = 'custody_data.audit_logs'::regclass and a.attnum > 0 and not a.attisdropped),
  'tenant_id log_entry_id occurred_at recorded_at actor_id subject_id action resource_type resource_id result purpose metadata personal import_id db_role xid',
  'the entry has every column of the trail: a new one needs a new version');
select * from finish();
rollback;
