-- Whatever time an entry has, it is read as it was written, under every setting.
begin;
set local search_path = tap, testing;
select no_plan();
create temp table times as
select t::timestamptz from unnest(array['2026-03-01 10:00:00.000001+02', '1970-01-01 00:00:00+00', '20260-03-01 10:00:00+00', '294276-12-31 23:59:59.999999+00', '0044-03-15 12:00:00+00 BC', '4713-01-01 00:00:00+00 BC', 'infinity', '-infinity']) t;
select is(custody_data.parse_entry_time(custody_data.entry_time(t)), t, format('%s', custody_data.entry_time(t))) from times;
set local timezone = 'Asia/Kolkata';
set local datestyle = 'SQL, DMY';
select is(custody_data.parse_entry_time(custody_data.entry_time(t)), t, format('%s, in another style and zone', t)) from times;
select is(custody_data.parse_entry_time(null), null, 'no time');
select * from finish();
rollback;
