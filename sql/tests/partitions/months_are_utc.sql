-- The bounds of months are those of UTC, whatever the maker's TimeZone and DateStyle, and a row goes by its instant.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('months_utc');
set local session authorization custody_runner;
select enter('months_utc', 'runner') /* $1 */;

create function pg_temp.make(p_year int, p_timezone text, p_datestyle text, p_at text) returns text language plpgsql as $$
begin
  perform set_config('timezone', p_timezone, true), set_config('datestyle', p_datestyle, true);
  perform custody.ensure_audit_partitions(p_at::timestamptz, p_at::timestamptz);
  perform set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, MDY', true);
  return (select string_agg(format('%s %s', p.name, pg_get_expr(c.relpartbound, c.oid)), '; ') from partitions p join pg_class c on c.oid = p.oid where p.name like 'audit_logs_' || p_year || '%');
end
$$;
select is(pg_temp.make(m.y, m.tz, m.ds, m.y || '-03-31 23:59:59.999999+00'),
  format('audit_logs_%s_03 FOR VALUES FROM (''%s-03-01 00:00:00+00'') TO (''%s-04-01 00:00:00+00'')', m.y, m.y, m.y), format('the last instant of March, made under %s and %s', m.tz, m.ds))
from (values (1981, 'America/New_York', 'ISO, MDY'), (1982, 'Pacific/Kiritimati', 'ISO, MDY'), (1983, 'Asia/Kolkata', 'SQL, DMY'), (1984, 'Asia/Kolkata', 'Postgres, MDY'),
  (1985, 'Europe/Berlin', 'German'), (1986, 'America/St_Johns', 'ISO, YMD'), (1987, 'Asia/Shanghai', 'SQL, MDY'), (1988, 'UTC', 'Postgres, DMY'), (1989, 'Antarctica/Troll', 'ISO, MDY')) m (y, tz, ds)
order by m.y;
select is(pg_temp.make(1991, 'Pacific/Kiritimati', 'ISO', '1991-04-01 00:00:00+00'), 'audit_logs_1991_04 FOR VALUES FROM (''1991-04-01 00:00:00+00'') TO (''1991-05-01 00:00:00+00'')',
  'the first instant of April belongs to April');

set local timezone = 'Pacific/Kiritimati';
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
select 'months_utc', gen_random_uuid(), t, custody_data.require_actor(), 'account.login', gen_random_uuid()
from unnest(array['1991-04-01 00:00:00+00', '1991-04-30 23:59:59.999999+00']::timestamptz[]) t;
set local timezone = 'UTC';
reset session authorization;
select is((select count(*) from custody_data.audit_logs_1991_04), 2::bigint, 'the first and last instant of a month are in it');
set local session authorization custody_runner;
select refuses($$insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
  values ('months_utc', gen_random_uuid(), '1991-05-01 00:00:00+00', custody.current_actor_id(), 'account.login', gen_random_uuid())$$, '23514', 'the next instant is not');
select * from finish();
rollback;
