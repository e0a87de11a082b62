-- Months of access events: made ahead, of recorded_at in UTC, closed to everybody, dropped as a whole when the policy lets them go.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('access_months');
select populate('access_months') /* $1 */;
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is(custody_data.ensure_access_partitions(now(), now() + interval '1 month'), 0, 'those of the setup are there');
select is(custody_data.ensure_access_partitions(date_trunc('month', now() at time zone 'UTC') at time zone 'UTC' + interval '2 months 5 days', date_trunc('month', now() at time zone 'UTC') at time zone 'UTC' + interval '3 months'), 2, 'two more');
select is((last_event('system', 'partition.create')).metadata, jsonb_build_object('partitions', array[
  'access_events_' || to_char(now() at time zone 'UTC' + interval '2 months' - interval '1 day' * (extract(day from now() at time zone 'UTC') - 1)::int, 'YYYY_MM'),
  'access_events_' || to_char(now() at time zone 'UTC' + interval '3 months' - interval '1 day' * (extract(day from now() at time zone 'UTC') - 1)::int, 'YYYY_MM')]), 'which is an event');
select refuses(format('select custody_data.ensure_access_partitions(%s)', a), 'PC009', a) from unnest(array['null, now()', 'now(), null', 'now(), now() - interval ''1 day''', '''-infinity'', now()',
  'now(), ''infinity''', 'now() - interval ''3 days'', now()', 'now(), now() + interval ''14 months''']) a;

-- Months of long ago, as they stand after years.
reset session authorization;
do $$
begin
  for m in 1 .. 3 loop
    execute format('create table custody_data.access_events_2020_0%s (like custody_data.access_events including all)', m);
    execute format('alter table custody_data.access_events_2020_0%s owner to custody_owner', m);
    execute format('alter table custody_data.access_events attach partition custody_data.access_events_2020_0%1$s for values from (''2020-0%1$s-01 00:00:00+00'') to (''2020-0%2$s-01 00:00:00+00'')', m, m + 1);
  end loop;
end
$$;
insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, session_id) values ('access_months', '2020-01-15 00:00:00+00', 1, 1, now(), 'logon', 'x.y');
set local session authorization custody_runner;
select custody.set_context('system', 'runner');
select is_empty($$select custody.drop_access_months(p_as_of => '2021-01-31 23:59:59+00')$$, 'kept for twelve months after its end');
select results_eq($$select custody.drop_access_months(p_as_of => '2021-02-01 00:00:00+00')$$, $$values ('access_events_2020_01'::text)$$, 'then it goes');
select is((last_event('system', 'retention.run')).metadata - 'rows', '{"class": "access", "as_of": "2021-02-01T00:00:00.000000Z", "keep": "1 year", "basis": "HIPAA 45 CFR 164.308(a)(1)(ii)(D), PCI DSS 10.5.1: access events in Postgres, to be reviewed and asked about"}', 'which is an event');
select is(to_regclass('custody_data.access_events_2020_01'), null, 'and is gone');
select results_eq($$select custody.drop_access_months()$$, $$values ('access_events_2020_02'::text)$$, 'one a call: each is a transaction of its own');
select results_eq($$select custody.drop_access_months(100)$$, $$values ('access_events_2020_03'::text)$$, 'or more');
select is_empty($$select custody.drop_access_months()$$, 'those of now stay');
select refuses(format('select custody.drop_access_months(%s)', n), 'PC023', n || ' months') from unnest(array['null', '0', '101']) n;
select refuses($$select custody.drop_access_months(p_as_of => null)$$, 'PC009', 'at no time');
select refuses($$select custody.drop_access_months(p_as_of => now() + interval '1 day')$$, 'PC009', 'nor ahead of time');
select enter('access_months', 'runner') /* $1 */;
select refuses($$select custody.drop_access_months()$$, 'PC015', 'not in the context of a tenant');
select set_config('custody.tenant', '', true);
select refuses($$select custody.drop_access_months()$$, 'PC001', 'nor in none');
reset session authorization;

-- What stands in a month says rolled_back once, and nothing else ever again.
set local role custody_admin;
select custody.set_context('system', 'owner');
set local role custody_owner;
select refuses($$update custody_data.access_events set login = 'x'$$, 'PC030', 'a row does not change');
select lives_ok($$update custody_data.access_events set rolled_back = true$$, 'that it was rolled back is said');
select refuses($$update custody_data.access_events set rolled_back = false$$, 'PC020', 'once');
select refuses($$delete from custody_data.access_events$$, 'PC020', 'no row is deleted');
select * from finish();
rollback;
