-- What is tried on past data: a baseline that nobody has kept yet comes out of the data itself.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('detect_past');
insert into custody_data.identities (tenant_id, user_id) select 'detect_past', u from unnest(array['steady', 'sudden', 'newcomer', 'twice', 'once']) u;
create function pg_temp.day(p_actor text, p_days_ago integer, p_rows integer, p_people integer, p_object text default 'custody_data.user_profiles', p_different integer default null) returns void language sql as $$
  insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, object_name, login, actor_id, identity_id, rows, session_id)
  select 'detect_past', now(), (random() * 1e15)::bigint, n, date_trunc('hour', now()) - p_days_ago * interval '1 day' - interval '30 minutes' + n * interval '1 millisecond', 'read', 'READ', p_object, 'custody_app',
    testing.identity('detect_past', p_actor), md5('person ' || n % coalesce(p_different, p_people))::uuid, p_rows / p_people, 'x.y'
  from generate_series(1, p_people) n;
$$;
create function pg_temp.found(p_rule text) returns text language sql as $$
  select coalesce(string_agg(i.user_id || case when d.rule = 'first_table' then ' ' || (d.detail ->> 'object') else '' end, ', ' order by i.user_id), 'nothing')
  from custody.detect(now() - interval '1 hour', now() + interval '1 second', true) d left join custody_data.identities i on i.identity_id = d.actor_id where d.rule = p_rule;
$$;
select custody.set_context('system', 'watch', 'detection');
update custody_data.detection_rules set enabled = rule in ('bulk_rows', 'bulk_people', 'first_table');
select is((select count(*) from custody_data.access_baselines), 0::bigint, 'nobody is known');

-- A fortnight, and then a day of 5000 rows and 200 people: a little less, and a little more, than three times what was usual.
select pg_temp.day('steady', n, 1700, 67), pg_temp.day('sudden', n, 1600, 50) from generate_series(1, 14) n;
select is(pg_temp.found('bulk_rows') || '; ' || pg_temp.found('bulk_people'), 'nothing; nothing', 'what is usual is nothing');
select pg_temp.day('steady', 0, 5000, 200), pg_temp.day('sudden', 0, 5000, 200);
select is(pg_temp.found('bulk_rows') || '; ' || pg_temp.found('bulk_people'), 'sudden; sudden', 'who read much all the time does what they do');
select pg_temp.day('newcomer', 0, 5000, 200);
select is(pg_temp.found('bulk_rows') || '; ' || pg_temp.found('bulk_people'), 'newcomer, sudden; newcomer, sudden', 'who has no past has nothing to be measured by');
-- The other way round it is no excuse.
select pg_temp.day('newcomer', -1, 4975, 199);
select alike(pg_temp.found('bulk_rows'), '%newcomer%', 'what comes after excuses nothing');

-- Of several hours the newest of many people is found, whatever was before and after.
select pg_temp.day(u, 2, 1, 200), pg_temp.day(u, 0, 1, 700, p_different => d) from (values ('twice', 700), ('once', 199)) v (u, d);
select results_eq($$select i.user_id::text collate "default", d.detail -> 'people', d.events from custody.detect(now() - interval '1 hour', now() + interval '1 second', true) d join custody_data.identities i on i.identity_id = d.actor_id
  where d.rule = 'bulk_people' and i.user_id in ('twice', 'once') order by 1$$, $$values ('once', '200'::jsonb, 200::bigint), ('twice', '700', 700)$$, 'one finding for each');

-- A table that was never read in what is looked at.
select pg_temp.day('steady', 0, 1, 1, 'custody_data.conversations'), pg_temp.day('newcomer', 0, 1, 1, 'custody_data.conversations');
select is(pg_temp.found('first_table'), 'steady custody_data.conversations', 'is a first one for who has read for days, and not for who came today');
select * from finish();
rollback;
