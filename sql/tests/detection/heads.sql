-- How far detection is moves on by runs that leave nothing out, and never past now; what it knew of how things stand, by runs
-- that look at it.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('detect_heads');
update custody_data.detection_rules set enabled = rule = 'new_superuser';
create function pg_temp.detects(p_from timestamptz, p_to timestamptz, p_dry boolean default false) returns text language sql as $$
  select coalesce(string_agg(d.object_key || ' ' || d.outcome, ', ' order by d.object_key), 'nothing') from custody.detect(p_from, p_to, p_dry) d;
$$;
create function pg_temp.head() returns timestamptz language sql as $$ select h.detected_to from custody_data.detection_heads h $$;
select custody.set_context('system', 'watch', 'detection');
select is(pg_temp.detects(now() - interval '2 hours', now() - interval '1 hour'), 'nothing', 'a first run');
select is(pg_temp.head(), now() - interval '1 hour', 'says how far it came');
select is((select h.known from custody_data.detection_heads h), '{}', 'and nothing of how things stand, at which it did not look');
select pg_temp.detects(now() - interval '30 minutes', now() - interval '20 minutes');
select is(pg_temp.head(), now() - interval '1 hour', 'one that begins later leaves half an hour out, which is still to be looked at');
select pg_temp.detects(now() - interval '5 days', now() - interval '4 days');
select is(pg_temp.head(), now() - interval '1 hour', 'one of long ago does not go back');
select is(pg_temp.detects(now() - interval '1 hour', now() - interval '10 minutes'), 'nothing', 'one that goes on');
select is(pg_temp.head(), now() - interval '10 minutes', 'does');

select pg_temp.detects(null, null);
select ok((select h.known ? 'superusers' from custody_data.detection_heads h), 'a look at now is kept');
create role heads_new_root superuser;
select is(pg_temp.detects(now() - interval '2 days', now() - interval '1 day'), 'nothing', 'a run over past data does not see who has come');
select is(pg_temp.detects(null, null, true), 'superusers heads_new_root opened', 'nor take for known whom nobody has been told of');
insert into custody_data.access_baselines values ('detect_heads', 'nurse', 'custody_data.user_profiles', current_date, 1, 1);
select is(pg_temp.detects(now() - interval '1 hour', now() + interval '3 years'), 'superusers heads_new_root opened', 'a run into the future');
select ok(pg_temp.head() <= clock_timestamp(), 'comes as far as now');
select is((select count(*) from custody_data.access_baselines b where b.tenant_id = 'detect_heads'), 1::bigint, 'and takes nothing for old that is not');
select is(pg_temp.detects(null, null), 'nothing', 'the next goes on, and knows who came');
select * from finish();
rollback;
