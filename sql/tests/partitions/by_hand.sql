-- Partitions that somebody attached or detached by hand: events have a place all the same, wherever it is.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('by_hand');
create function pg_temp.attach(p_name text, p_from text, p_to text) returns void language plpgsql as $$
begin
  execute format('create table public.%I (like custody_data.audit_logs including all)', p_name);
  execute format('alter table custody_data.audit_logs attach partition public.%I for values from (%s) to (%s)', p_name, p_from, p_to);
end
$$;
create function pg_temp.bounds(p_like text) returns text[] language sql set datestyle = 'ISO' set timezone = 'UTC' as $$
  select array_agg(format('%s %s', c.relname, regexp_replace(pg_get_expr(c.relpartbound, c.oid), '''| 00:00:00\+00|FOR VALUES ', '', 'g')) order by c.relname)
  from pg_inherits i join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'custody_data.audit_logs'::regclass and c.relname like p_like
$$;
create function pg_temp.import(p_at timestamptz) returns text language sql as $$
  insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id)
  values ('by_hand', gen_random_uuid(), p_at, custody_data.require_actor(), 'account.login', gen_random_uuid())
  returning tableoid::regclass::text
$$;
-- All of two months, in one partition under another name; a part of a month; the beginning of time.
select pg_temp.attach('quarter', '''2011-04-01 00:00+00''', '''2011-07-01 00:00+00''');
select pg_temp.attach('middle', '''2012-03-10 00:00+00''', '''2012-03-20 12:00+00''');
select pg_temp.attach('ancient', 'minvalue', '''1980-05-15 00:00+00''');
set local session authorization custody_runner;
select enter('by_hand', 'runner') /* $1 */;
select is(custody.ensure_audit_partitions('2011-04-01 00:00:00+00', '2011-06-30 23:59:59+00'), 0, 'months that have a place need none');
select is(custody.ensure_audit_partitions('2011-03-01 00:00:00+00', '2011-07-01 00:00:00+00'), 2, 'those before and after do');
select is(pg_temp.bounds('audit\_logs\_2011\_%'), array['audit_logs_2011_03 FROM (2011-03-01) TO (2011-04-01)', 'audit_logs_2011_07 FROM (2011-07-01) TO (2011-08-01)'], 'and are made whole');
select is(custody.ensure_audit_partitions('2012-03-05 00:00:00+00', '2012-03-05 00:00:00+00'), 2, 'a month of which a part is taken gets what is left');
select is(pg_temp.bounds('audit\_logs\_2012\_%'), array['audit_logs_2012_03 FROM (2012-03-01) TO (2012-03-10)', 'audit_logs_2012_03_2 FROM (2012-03-20 12:00:00+00) TO (2012-04-01)'], 'before it and after it');
select is(custody.ensure_audit_partitions('2012-03-05 00:00:00+00', '2012-03-05 00:00:00+00'), 0, 'once');
select is(custody.ensure_audit_partitions('1970-01-01 00:00:00+00', '1980-05-31 00:00:00+00'), 1, 'what has no beginning covers all before');
select is(pg_temp.bounds('audit\_logs\_1980\_%'), array['audit_logs_1980_05 FROM (1980-05-15) TO (1980-06-01)'], 'but for the rest of its month');
select is(pg_temp.import(t), p, format('an event of %s', t)) from (values ('2011-05-01 00:00:00+00'::timestamptz, 'public.quarter'), ('2012-03-09 23:59:59.999999+00', 'custody_data.audit_logs_2012_03'), ('2012-03-10 00:00:00+00', 'public.middle'),
  ('2012-03-20 12:00:00+00', 'custody_data.audit_logs_2012_03_2'), ('1970-01-01 00:00:00+00', 'public.ancient'), ('1980-05-15 00:00:00+00', 'custody_data.audit_logs_1980_05')) v (t, p);
select is((select count(*) from custody_data.audit_logs a where a.import_id is not null), 6::bigint, 'all are in the trail');

-- The month of now, under another name: live events have it for their place.
reset session authorization;
do $$
begin
  execute format('alter table custody_data.audit_logs detach partition custody_data.%I', 'audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM'));
end
$$;
select pg_temp.attach('this_month', quote_literal(date_trunc('month', now() at time zone 'UTC') || '+00'), quote_literal(date_trunc('month', now() at time zone 'UTC') + interval '1 month' || '+00'));
do $$
begin
  execute format('alter table custody_data.%I rename to put_aside', 'audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM'));
end
$$;
set local session authorization custody_app;
select enter('by_hand', 'clerk') /* $1 */;
select isnt(custody.record_audit_event('account.login'), null, 'a live event');
select lives_ok($$select custody.put_preferences('ada', '{}')$$, 'and a write to a table of record');
reset session authorization;
select is((select count(*) from public.this_month), 2::bigint, 'are there');

-- Detached by hand: the job makes another place; what was detached is found by the checks.
select custody.ensure_audit_partitions('2013-01-10 00:00:00+00', '2013-01-10 00:00:00+00');
alter table custody_data.audit_logs detach partition custody_data.audit_logs_2013_01;
set local session authorization custody_runner;
select enter('by_hand', 'runner') /* $1 */;
select is(custody.ensure_audit_partitions('2013-01-10 00:00:00+00', '2013-01-10 00:00:00+00'), 1, 'a month that was detached is made anew');
select is(pg_temp.bounds('audit\_logs\_2013\_%'), array['audit_logs_2013_01_2 FROM (2013-01-01) TO (2013-02-01)'], 'under another name');
reset session authorization;
select set_eq($$select f.id, f.object from custody_check.findings f where f.id in ('partition-foreign', 'partition-detached')$$,
  $$values ('partition-foreign', 'public.quarter'), ('partition-foreign', 'public.middle'), ('partition-foreign', 'public.ancient'), ('partition-foreign', 'public.this_month'), ('partition-foreign', 'custody_data.audit_logs_2012_03_2'),
    ('partition-foreign', 'custody_data.audit_logs_2013_01_2'), ('partition-detached', 'audit_logs_2013_01')$$, 'the checks name all of them');
select * from finish();
rollback;
