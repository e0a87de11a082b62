-- The entry of an event is the same bytes whatever the reader's settings.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('entry_settings');
set local session authorization custody_app;
select enter('entry_settings', 'clerk', 'päivä') /* $1 */;
select custody.record_audit_event('phi.access', 'document', 'd', 'partial', '{"count": 1.10, "fields": {"z": 1, "a": [0.1, 1e-7, 12345678901234567890.5]}}', 'ada', null, null, '{"t": "\u00e4"}');
set local session authorization custody_runner;
select enter('entry_settings', 'runner') /* $1 */;

create function pg_temp.digest() returns text language sql as $$
  select encode(sha256(convert_to(string_agg(e.entry, E'\n' order by e.xid, e.log_entry_id), 'UTF8')), 'hex') from custody.audit_entries e where e.tenant_id = 'entry_settings' and e.entry ~ 'phi.access';
$$;
create function pg_temp.digest_with(p_name text, p_value text) returns text language plpgsql as $$
declare
  v_digest text;
begin
  perform set_config(p_name, p_value, true);
  v_digest := pg_temp.digest();
  perform set_config('search_path', 'tap, testing', true);
  return v_digest;
end
$$;
select set_config('testing.digest', pg_temp.digest(), true);
select matches(current_setting('testing.digest'), '^[0-9a-f]{64}$', 'there is an entry');
select is(pg_temp.digest_with(s.name, s.value), current_setting('testing.digest'), format('%s = %s', s.name, s.value))
from (values ('timezone', 'Asia/Kathmandu'), ('timezone', 'America/St_Johns'), ('timezone', 'Pacific/Kiritimati'), ('datestyle', 'SQL, DMY'), ('datestyle', 'German'), ('datestyle', 'Postgres, MDY'),
  ('intervalstyle', 'iso_8601'), ('intervalstyle', 'sql_standard'), ('extra_float_digits', '-15'), ('extra_float_digits', '3'), ('bytea_output', 'escape'),
  ('search_path', ''), ('search_path', 'pg_temp, tap, testing'), ('standard_conforming_strings', 'off'), ('quote_all_identifiers', 'on'), ('transform_null_equals', 'on'),
  ('xmlbinary', 'hex'), ('lc_numeric', 'C'), ('lc_time', 'C')) s (name, value);
select * from finish();
rollback;
