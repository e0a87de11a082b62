-- Hours are those of the actor's own clock, from the minute they begin to before the one they end, also where clocks change; a
-- login of a person's own counts as that person.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('detect_hours');
insert into custody_data.identities (tenant_id, user_id) select 'detect_hours', u from unnest(array['early', 'first', 'last', 'late', 'summer', 'winter', 'owl', 'day']) u;
create function pg_temp.shipped(p_actor text, p_at timestamptz, p_kind text default 'read', p_login text default 'custody_app') returns void language sql as $$
  insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, object_name, login, actor_id, identity_id, session_id)
  values (case when p_kind = 'read' then 'detect_hours' else 'system' end, now(), (random() * 1e15)::bigint, 1, p_at, p_kind, case when p_kind = 'read' then 'READ' end, case when p_kind = 'read' then 'custody_data.user_profiles' end,
    p_login, testing.identity('detect_hours', p_actor), case when p_kind = 'read' then gen_random_uuid() end, 'x.y');
$$;
create function pg_temp.found() returns text[] language sql as $$
  select coalesce(array_agg(concat_ws(' ', d.tenant_id, i.user_id) order by i.user_id), '{}') from custody.detect(now() - interval '1 hour', now() + interval '1 second', true) d
  left join custody_data.identities i on i.identity_id = d.actor_id
$$;
update custody_data.detection_rules set enabled = rule = 'after_hours';
select custody.set_context('detect_hours', 'admin');
select custody.set_actor_hours(null, 'Europe/Berlin', '07:00', '20:00', '{1,2,3,4,5,6,7}');
select custody.set_context('system', 'watch', 'detection');

select pg_temp.shipped('early', '2026-07-01 06:59:59.999999 Europe/Berlin'), pg_temp.shipped('first', '2026-07-01 07:00 Europe/Berlin'),
  pg_temp.shipped('last', '2026-07-01 19:59:59.999999 Europe/Berlin'), pg_temp.shipped('late', '2026-07-01 20:00 Europe/Berlin');
select is(pg_temp.found(), array['detect_hours early', 'detect_hours late'], 'from seven to before eight');
-- Half past five in the afternoon, UTC plus two hours and plus one: 05:30 UTC is half past seven in summer, half past six in winter.
select pg_temp.shipped('summer', '2026-07-01 05:30+00'), pg_temp.shipped('winter', '2026-12-01 05:30+00');
select is(pg_temp.found(), array['detect_hours early', 'detect_hours late', 'detect_hours winter'], 'in summer and in winter');

-- Who logs in has no context yet.
insert into custody_data.logins (tenant_id, role_name, mode, actor_id) select 'detect_hours', 'login of ' || u, 'person', identity('detect_hours', u) from unnest(array['owl', 'day']) u;
select pg_temp.shipped(null, '2026-07-01 03:00 Europe/Berlin', 'authenticated', 'login of owl'), pg_temp.shipped(null, '2026-07-01 09:00 Europe/Berlin', 'authenticated', 'login of day'),
  pg_temp.shipped(null, '2026-07-01 03:00 Europe/Berlin', 'authenticated', 'custody_app');
select is(pg_temp.found(), array['detect_hours early', 'detect_hours late', 'detect_hours owl', 'detect_hours winter'], 'a person''s login at three in the morning is the person''s, an application''s nobody''s');
update custody_data.logins set ended_at = now() where role_name = 'login of owl';
select is(pg_temp.found(), array['detect_hours early', 'detect_hours late', 'detect_hours winter'], 'nor one that was theirs');
select * from finish();
rollback;
