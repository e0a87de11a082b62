-- Detection: rules over access events and the catalog, planted people, alerts.
-- control: HIPAA 164.308(a)(1)(ii)(D), 164.308(a)(6)(ii), 164.312(b); SOC 2 CC7.2, CC7.3; ISO 27001 A.5.25, A.8.15, A.8.16; GDPR Art. 32, 33
-- reviewed by: security, DBA, privacy officer
--
-- A rule is a row of detection_rules and a function here with the arguments
--
--   p_rule    its row: threshold and look_back
--   p_from    what was shipped from here on is new (by recorded_at: a late log is new when it comes)
--   p_to      up to here
--   p_seen    what more than one rule looks at, computed once a run: access events since an hour before p_from, counted by
--             actor, login, role, client, object and hour; what each actor read in each hour; findings of custody_check
--
-- that returns rows of detection_finding. Events are read once, and a rule that needs single ones finds them by an index:
-- that is what detection may cost. What is counted stands in memory meanwhile: some 400 bytes for each actor, login, client,
-- object and hour, a gigabyte at most (Postgres refuses more: try a shorter time). A finding whose newest event was known is
-- no news, so runs may overlap; they do, since a transaction that ships may end after the run that should have seen it.
--
-- Logs say what was done by class and command, not in words (literals are dropped): that a role became superuser, a
-- trigger was disabled or a setting changed is found in the catalog, by comparing, and the log says who was at work.
-- locks: an advisory lock, one run at a time.

create or replace function custody_data.access_groups(p_from timestamptz, p_to timestamptz)
returns custody_data.access_group[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
-- A minute is planned as a minute, and a month as a month, which is worth compiling for.
set plan_cache_mode = force_custom_plan
-- There are far fewer groups than the planner thinks: it would sort the events.
set enable_sort = off
set enable_incremental_sort = off
as $$
begin
  return (
    select coalesce(array_agg(row(g.*)::custody_data.access_group), '{}')
    from (
      select e.tenant_id, e.actor_id, e.actor_pseudonym, e.login, e.role, e.client, e.object_name, e.is_read, e.hour, count(*) as events,
        -- a line about several people says its rows once
        coalesce(sum(e.rows) filter (where e.part = 0), 0)::bigint as rows, count(e.identity_id) filter (where e.is_read) as people,
        count(*) filter (where e.is_read and e.identity_id = e.actor_id) as own, min(e.occurred_at) as first_at, max(e.occurred_at) as last_at, max(e.recorded_at) as recorded_to
      from (
        select e.tenant_id::text as tenant_id, e.actor_id, e.actor_pseudonym, e.login, e.role, e.client, e.object_name, e.kind = 'read' as is_read,
          date_bin('1 hour', e.occurred_at, 'epoch') as hour, least(e.rows, 2147483647)::integer as rows, e.part, e.identity_id, e.occurred_at, e.recorded_at
        from custody_data.access_events e
        where e.recorded_at >= p_from and e.recorded_at < p_to and (e.kind in ('read', 'authenticated', 'logon') or e.kind = 'statement' and e.class = 'READ')
        -- Or the planner takes an hour for as rare as the instants in it.
        offset 0
      ) e
      group by 1, 2, 3, 4, 5, 6, 7, 8, 9
    ) g);
end
$$;
revoke all on function custody_data.access_groups(timestamptz, timestamptz) from public;
comment on function custody_data.access_groups(timestamptz, timestamptz) is 'Reads and sessions that were shipped from p_from to p_to (exclusive), counted: the one look at all events that detection takes.';

create or replace function custody_data.actor_key(p_group custody_data.access_group)
returns text
language sql
immutable
parallel safe
return coalesce((p_group).actor_id::text, (p_group).actor_pseudonym, 'login ' || (p_group).login, 'nobody');
revoke all on function custody_data.actor_key(custody_data.access_group) from public;
comment on function custody_data.actor_key(custody_data.access_group) is 'Who acted: the identity, the pseudonym of one without identity, or the login.';

create or replace function custody_data.access_hours(p_groups custody_data.access_group[])
returns setof custody_data.access_hour
language sql
stable
set search_path = pg_catalog, pg_temp
-- as access_groups
set enable_sort = off
as $$
  -- Our own line and pgaudit's may tell of the same read: the larger counts. What people read of themselves does not.
  select g.tenant_id, custody_data.actor_key(g), (g.actor_id), min(g.login), g.object_name, g.hour, sum(g.events - g.own)::bigint,
    greatest(sum(g.rows - g.own) filter (where g.is_read), sum(g.rows) filter (where not g.is_read), 0)::bigint, sum(g.people - g.own)::bigint,
    min(g.first_at), max(g.last_at), max(g.recorded_to)
  from unnest(p_groups) g
  where g.object_name is not null and g.events > g.own
  group by 1, 2, 3, 5, 6;
$$;
revoke all on function custody_data.access_hours(custody_data.access_group[]) from public;
comment on function custody_data.access_hours(custody_data.access_group[]) is 'What each actor read of each object in each hour, other than of themselves.';

create or replace function custody_data.bulk_reads(p_from timestamptz, p_look_back interval, p_rows bigint, p_people bigint, p_hours custody_data.access_hour[])
returns setof custody_data.bulk_read
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with hours as materialized (
    select o.tenant_id, o.actor, o.actor_id, min(o.login) as login, o.hour, sum(o.events)::bigint as events, sum(o.rows)::bigint as rows, sum(o.people)::bigint as people,
      array_agg(o.object_name order by o.object_name) as objects, min(o.first_at) as first_at, max(o.last_at) as last_at, max(o.recorded_to) as recorded_to
    from unnest(p_hours) o
    group by 1, 2, 3, 5
  ), days as materialized (
    -- what past data that is tried says of the days before
    select d.tenant_id, d.actor, d.day, max(d.rows) over before as rows, max(d.people) over before as people
    from (
      select h.tenant_id, h.actor, (h.hour at time zone 'UTC')::date as day, max(h.rows) as rows, max(h.people) as people from hours h group by 1, 2, 3
    ) d
    window before as (partition by d.tenant_id, d.actor order by d.day range between p_look_back preceding and interval '1 day' preceding)
  ), much as materialized (
    select h.* from hours h where h.recorded_to >= p_from and (h.rows >= p_rows or h.people >= p_people)
  )
  select h.tenant_id, h.actor, h.actor_id, h.login, h.hour, h.events, h.rows, h.people,
    greatest(k.rows, d.rows, 0)::bigint, greatest(k.people, d.people, 0)::bigint, h.objects, h.first_at, h.last_at, h.recorded_to
  from much h
  join days d on d.tenant_id = h.tenant_id and d.actor = h.actor and d.day = (h.hour at time zone 'UTC')::date
  left join lateral (
    select max(x.rows) as rows, max(x.people) as people
    from (
      select sum(b.peak_rows) as rows, sum(b.peak_people) as people
      from custody_data.access_baselines b
      where b.tenant_id = h.tenant_id and b.actor = h.actor
        and b.day < (h.hour at time zone 'UTC')::date and b.day >= (h.hour at time zone 'UTC' - p_look_back)::date
      group by b.day
    ) x
  ) k on true;
$$;
revoke all on function custody_data.bulk_reads(timestamptz, interval, bigint, bigint, custody_data.access_hour[]) from public;
comment on function custody_data.bulk_reads(timestamptz, interval, bigint, bigint, custody_data.access_hour[]) is
'Hours in which an actor read as much, with the most that they read in an hour of the days before: rows and reads that name a person.';

create or replace function custody_data.detect_bulk_rows(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select b.tenant_id, b.actor, b.actor_id, b.login, b.events, b.first_at, b.last_at, b.recorded_to,
    jsonb_build_object('hour', b.hour, 'rows', b.rows, 'usual_rows', b.usual_rows, 'objects', b.objects)
  from custody_data.bulk_reads(p_from, p_rule.look_back, p_rule.threshold, null, p_seen.hours) b
  where b.rows > 3 * b.usual_rows;
$$;
revoke all on function custody_data.detect_bulk_rows(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_bulk_rows(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: an actor read at least threshold rows within one clock hour, and more than three times the most that they read in an hour of the days before (look_back). Folds by actor.';

create or replace function custody_data.detect_bulk_people(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hour record;
  v_people bigint;
  v_found custody_data.detection_finding;
begin
  -- Reads that name a person are at least as many as the people. Only where there are enough of them is it worth telling them
  -- apart, and of one actor only until there is a finding: the newest, which is what the alert keeps.
  for v_hour in
    select b.* from custody_data.bulk_reads(p_from, p_rule.look_back, null, p_rule.threshold, p_seen.hours) b where b.people > 3 * b.usual_people
    order by b.tenant_id, b.actor, b.recorded_to desc, b.hour desc
  loop
    continue when (v_hour.tenant_id, v_hour.actor) = (v_found.tenant_id, v_found.object_key);
    if v_hour.actor_id is not null then
      select count(*) into v_people
      from (
        select e.identity_id
        from custody_data.access_events e
        where e.tenant_id = v_hour.tenant_id and e.actor_id = v_hour.actor_id and e.occurred_at >= v_hour.first_at and e.occurred_at <= v_hour.last_at
          and e.recorded_at < p_to and e.kind = 'read' and e.identity_id <> e.actor_id
        group by e.identity_id
      ) p;
    else
      select count(distinct e.identity_id) into v_people
      from custody_data.access_events e
      where e.tenant_id = v_hour.tenant_id and e.actor_id is null and e.occurred_at >= v_hour.first_at and e.occurred_at <= v_hour.last_at
        and e.recorded_at < p_to and e.kind = 'read' and coalesce(e.actor_pseudonym, 'login ' || e.login, 'nobody') = v_hour.actor;
    end if;
    if v_people >= p_rule.threshold then
      v_found := row(v_hour.tenant_id, v_hour.actor, v_hour.actor_id, v_hour.login, v_hour.events, v_hour.first_at, v_hour.last_at, v_hour.recorded_to,
        jsonb_build_object('hour', v_hour.hour, 'people', v_people, 'reads', v_hour.people, 'usual_reads', v_hour.usual_people, 'objects', v_hour.objects))::custody_data.detection_finding;
      return next v_found;
    end if;
  end loop;
end
$$;
revoke all on function custody_data.detect_bulk_people(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_bulk_people(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: an actor read at least threshold different people within one clock hour, in more than three times as many reads as in any hour of the days before (look_back). Folds by actor.';

create or replace function custody_data.detect_after_hours(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select a.tenant_id, a.id::text, a.id, min(g.login), sum(g.events)::bigint, min(g.first_at), max(g.last_at), max(g.recorded_to),
    jsonb_build_object('time_zone', s.time_zone, 'from', min(s.work_from), 'to', min(s.work_to), 'objects', array_agg(distinct g.object_name) filter (where g.object_name is not null))
  from unnest(p_seen.groups) g
  -- Who logs in has no context yet, but a person's login is that person.
  left join custody_data.logins l on g.actor_id is null and l.role_name = g.login and l.mode = 'person' and l.ended_at is null
  cross join lateral (select coalesce(g.actor_id, l.actor_id) as id, coalesce(l.tenant_id::text, g.tenant_id) as tenant_id) a
  join lateral (
    -- their own, or those of the tenant
    select s.* from custody_data.actor_settings s
    where s.tenant_id = a.tenant_id and s.actor_id in (a.id, '00000000-0000-0000-0000-000000000000')
    order by s.actor_id = a.id desc
    limit 1
  ) s on true
  where a.id is not null and g.recorded_to >= p_from and g.events > g.own and exists (
    select from (values (g.first_at at time zone s.time_zone), (g.last_at at time zone s.time_zone)) t (at)
    where extract(isodow from t.at)::smallint <> all (s.work_days) or t.at::time < s.work_from or t.at::time >= s.work_to)
  group by a.tenant_id, a.id, s.time_zone
  having sum(g.events) >= p_rule.threshold;
$$;
revoke all on function custody_data.detect_after_hours(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_after_hours(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: an actor with hours (actor_settings: their own or those of the tenant) read outside them, in their time zone, or logged in by a login of their own (register_login); threshold events of clock hours in which they did. Folds by actor.';

create or replace function custody_data.detect_network(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with places as materialized (
    select g.tenant_id, g.login, g.role, g.client, sum(g.events)::bigint as events, min(g.first_at) as first_at, max(g.last_at) as last_at, max(g.recorded_to) as recorded_to
    from unnest(p_seen.groups) g
    where g.client is not null and g.recorded_to >= p_from
    group by 1, 2, 3, 4
  )
  select p.tenant_id, format('%s from %s', p.login, p.network), null::uuid, p.login, sum(p.events)::bigint, min(p.first_at), max(p.last_at), max(p.recorded_to),
    jsonb_build_object('network', p.network)
  from (
    select p.*, network(set_masklen(p.client, case family(p.client) when 4 then 24 else 48 end)) as network
    from places p
    -- Lists of the login, of the role that it took, and of the groups that it is a member of: any of them will do.
    cross join lateral (
      select bool_or(p.client <<= any (n.networks)) as expected
      from custody_data.detection_networks n
      where n.role_name in (p.login, p.role)
        or exists (select from pg_roles l join pg_roles r on r.rolname = n.role_name where l.rolname = p.login and not l.rolsuper and pg_has_role(l.oid, r.oid, 'member'))
    ) n
    where not n.expected
  ) p
  group by p.tenant_id, p.login, p.network
  having sum(p.events) >= p_rule.threshold;
$$;
revoke all on function custody_data.detect_network(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_network(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: threshold events of a login from an address that no list of it, or of a role of its, has (detection_networks); without a list anywhere is expected. Folds by login and network (/24, /48).';

create or replace function custody_data.detect_first_table(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with days as materialized (
    select h.tenant_id, h.actor, array_agg(distinct (h.hour at time zone 'UTC')::date) as days from unnest(p_seen.hours) h group by 1, 2
  ), objects as materialized (
    select h.tenant_id, h.actor, h.actor_id, h.object_name, min(h.login) as login, sum(h.events)::bigint as events, min(h.first_at) as first_at, max(h.last_at) as last_at,
      max(h.recorded_to) as recorded_to, (min(h.hour) at time zone 'UTC')::date as day
    from unnest(p_seen.hours) h
    group by 1, 2, 3, 4
  ), first_reads as materialized (
    select o.* from objects o
    where o.recorded_to >= p_from and not exists (
      select from custody_data.access_baselines b
      where b.tenant_id = o.tenant_id and b.actor = o.actor and b.object_name = o.object_name and b.day < o.day and b.day >= (o.day - p_rule.look_back)::date)
  )
  select o.tenant_id, o.actor || ' ' || o.object_name, o.actor_id, o.login, o.events, o.first_at, o.last_at, o.recorded_to, jsonb_build_object('object', o.object_name, 'known_days', k.known_days)
  from first_reads o
  join days d on d.tenant_id = o.tenant_id and d.actor = o.actor
  cross join lateral (
    select count(distinct x.day) as known_days
    from (
      select b.day from custody_data.access_baselines b where b.tenant_id = o.tenant_id and b.actor = o.actor and b.day < o.day and b.day >= (o.day - p_rule.look_back)::date
      union all
      select u.day from unnest(d.days) u (day) where u.day < o.day
    ) x
  ) k
  where k.known_days >= p_rule.threshold;
$$;
revoke all on function custody_data.detect_first_table(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_first_table(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: an actor who has read on at least threshold days of look_back reads a table for the first time in it. Folds by actor and table.';

create or replace function custody_data.detect_privileged_read(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with privileged as materialized (
    select r.rolname::text as name from pg_roles r
    where exists (select from pg_roles s where (s.rolsuper or s.rolbypassrls or s.rolname = 'custody_owner') and pg_has_role(r.oid, s.oid, 'member'))
  ), personal as materialized (
    select distinct 'custody_data.' || p.table_name as name from custody_check.personal_columns p
  )
  select g.tenant_id, g.login, null::uuid, g.login, sum(g.events)::bigint, min(g.first_at), max(g.last_at), max(g.recorded_to),
    jsonb_build_object('objects', array_agg(distinct g.object_name), 'rows', sum(g.rows))
  from unnest(p_seen.groups) g
  where g.recorded_to >= p_from and g.object_name in (select p.name from personal p)
    and (g.login in (select p.name from privileged p) or g.role in (select p.name from privileged p))
  group by g.tenant_id, g.login
  having sum(g.events) >= p_rule.threshold;
$$;
revoke all on function custody_data.detect_privileged_read(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_privileged_read(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: threshold reads of tables with personal columns by a superuser, a login that passes row-level security, the owner, or a member of one of these, as roles are now. Folds by login.';

create or replace function custody_data.detect_canary(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select e.tenant_id, coalesce(e.actor_id::text, e.actor_pseudonym, 'login ' || e.login, 'nobody'), e.actor_id, min(e.login), count(*), min(e.occurred_at), max(e.occurred_at), max(e.recorded_at),
    jsonb_build_object('people', array_agg(distinct e.identity_id), 'objects', array_agg(distinct e.object_name), 'purposes', array_agg(distinct e.purpose) filter (where e.purpose is not null))
  from custody_data.canaries c
  join custody_data.access_events e on e.tenant_id = c.tenant_id and e.identity_id = c.identity_id
  where e.recorded_at >= least(p_from, p_to - p_rule.look_back) and e.recorded_at < p_to and (c.removed_at is null or e.occurred_at < c.removed_at)
  group by e.tenant_id, 2, e.actor_id
  having count(*) >= p_rule.threshold and max(e.recorded_at) >= p_from;
$$;
revoke all on function custody_data.detect_canary(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_canary(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: threshold reads of people who were planted, within look_back. Folds by actor.';

create or replace function custody_data.detect_statements(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_class text, p_action text, p_object text)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select e.tenant_id, coalesce(e.login, 'nobody'), null::uuid, e.login, count(*), min(e.occurred_at), max(e.occurred_at), max(e.recorded_at),
    jsonb_build_object('actions', array_agg(distinct e.action), 'objects', array_agg(distinct e.object_name) filter (where e.object_name is not null))
  from custody_data.access_events e
  where e.recorded_at >= least(p_from, p_to - p_rule.look_back) and e.recorded_at < p_to and (e.class in ('DDL', 'ROLE', 'SETTING') or e.kind in ('logon_failed', 'forged'))
    and e.class = p_class and coalesce(e.action, '') ~ p_action and coalesce(e.object_name, '') ~ p_object
  group by e.tenant_id, 2, e.login
  having count(*) >= p_rule.threshold and max(e.recorded_at) >= p_from;
$$;
revoke all on function custody_data.detect_statements(custody_data.detection_rules, timestamptz, timestamptz, text, text, text) from public;
comment on function custody_data.detect_statements(custody_data.detection_rules, timestamptz, timestamptz, text, text, text) is 'Logged statements of a class whose command and object match, by login: threshold within look_back, one of them new.';

create or replace function custody_data.detect_definitions(p_definitions text[], p_match text)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'system', d.finding, null::uuid, null::text, 1::bigint, now(), now(), now(), jsonb_build_object('finding', split_part(d.finding, ' ', 1), 'object', substr(d.finding, position(' ' in d.finding) + 1))
  from unnest(p_definitions) d (finding)
  where d.finding ~ p_match;
$$;
revoke all on function custody_data.detect_definitions(text[], text) from public;
comment on function custody_data.detect_definitions(text[], text) is 'Findings of custody_check, as id and object with a blank between, that match.';

create or replace function custody_data.detect_role_statement(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select f.* from custody_data.detect_statements(p_rule, p_from, p_to, 'ROLE', '', '') f;
$$;
revoke all on function custody_data.detect_role_statement(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_role_statement(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: threshold statements that make, change or grant roles. Folds by login.';

create or replace function custody_data.detect_schema_statement(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select f.* from custody_data.detect_statements(p_rule, p_from, p_to, 'DDL', '', '(^| )custody(_[a-z]+)?($|\.)') f;
$$;
revoke all on function custody_data.detect_schema_statement(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_schema_statement(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: threshold DDL statements on our schemas; each migration is one. Folds by login.';

create or replace function custody_data.detect_trigger_disabled(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select f.* from custody_data.detect_definitions(p_seen.definitions, '^(guard-|changed trigger )') f
  union all
  select f.* from custody_data.detect_statements(p_rule, p_from, p_to, 'DDL', ' TRIGGER$', '(^| )custody(_[a-z]+)?($|\.)') f;
$$;
revoke all on function custody_data.detect_trigger_disabled(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_trigger_disabled(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: a guard is disabled, gone, replaced or changed (custody_check.findings), or threshold CREATE, ALTER or DROP TRIGGER on our tables were logged. Folds by finding and by login.';

create or replace function custody_data.detect_policy_changed(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select f.* from custody_data.detect_definitions(p_seen.definitions, '^(rls-forced|partition-policy|changed policy) ') f
  union all
  select f.* from custody_data.detect_statements(p_rule, p_from, p_to, 'DDL', ' POLICY$', '(^| )custody(_[a-z]+)?($|\.)') f;
$$;
revoke all on function custody_data.detect_policy_changed(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_policy_changed(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: row-level security is off, or a policy is not as the last migration left it (custody_check.findings), or threshold CREATE, ALTER or DROP POLICY on our tables were logged. Folds by finding and by login.';

create or replace function custody_data.detection_knows()
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    -- Whoever may become one is one: SET ROLE is all it takes.
    'superusers', (select coalesce(jsonb_agg(r.rolname order by r.rolname), '[]') from pg_roles r where exists (select from pg_roles s where s.rolsuper and pg_has_role(r.oid, s.oid, 'member'))),
    'bypassrls', (select coalesce(jsonb_agg(r.rolname order by r.rolname), '[]') from pg_roles r
      where not r.rolsuper and exists (select from pg_roles s where s.rolbypassrls and not s.rolsuper and pg_has_role(r.oid, s.oid, 'member'))),
    'owners', (select coalesce(jsonb_agg(r.rolname order by r.rolname), '[]') from pg_roles r where not r.rolsuper and r.rolname <> 'custody_owner' and pg_has_role(r.oid, 'custody_owner', 'member')),
    'settings', (
      select coalesce(jsonb_object_agg(s.place, s.setting), '{}')
      from (
        -- The server's own, and what roles and databases are given. What holds for this session alone is of neither.
        select s.name as place, s.reset_val as setting from pg_settings s
        where s.source not in ('database', 'user', 'database user', 'client', 'session')
          and s.name ~ '^(pgaudit\.|log_(statement|connections|disconnections|destination|line_prefix|min_|parameter|error_verbosity|rotation)|logging_collector$|shared_preload_libraries$|session_preload_libraries$)'
        union all
        select format('%s %s %s', coalesce((select d.datname::text from pg_database d where d.oid = x.setdatabase), 'every database'),
            coalesce((select r.rolname::text from pg_roles r where r.oid = x.setrole), 'every login'), split_part(c.setting, '=', 1)), split_part(c.setting, '=', 2)
        from pg_db_role_setting x cross join unnest(x.setconfig) c (setting)
        where x.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
          and c.setting ~ '^(pgaudit\.|log_|session_preload_libraries|local_preload_libraries)'
      ) s));
$$;
revoke all on function custody_data.detection_knows() from public;
comment on function custody_data.detection_knows() is 'Superusers, logins that pass row-level security, members of the owner, and settings of logging as they are now.';

create or replace function custody_data.detect_new_superuser(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'system', format('%s %s', k.kind, n.name), null::uuid, n.name, 1::bigint, now(), now(), now(), jsonb_build_object('role', n.name, 'power', k.kind)
  from custody_data.detection_heads h
  cross join (values ('superusers'), ('bypassrls'), ('owners')) k (kind)
  cross join lateral jsonb_array_elements_text(custody_data.detection_knows() -> k.kind) n (name)
  -- What stood when detection looked for the first time is nothing new.
  where p_to > now() - interval '5 minutes' and h.tenant_id = 'system' and h.known <> '{}' and not h.known -> k.kind ? n.name;
$$;
revoke all on function custody_data.detect_new_superuser(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_new_superuser(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: a role is a superuser, has BYPASSRLS, is the owner''s, or a member of one that is, and was not when detection last looked. Folds by role.';

create or replace function custody_data.detect_settings_changed(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'system', 'setting ' || coalesce(b.key, n.key), null::uuid, null::text, 1::bigint, now(), now(), now(),
    jsonb_strip_nulls(jsonb_build_object('setting', coalesce(b.key, n.key), 'was', b.value, 'is', n.value))
  from custody_data.detection_heads h
  cross join lateral (
    select b.key, b.value, n.key, n.value
    from jsonb_each_text(h.known -> 'settings') b
    full join jsonb_each_text(custody_data.detection_knows() -> 'settings') n on n.key = b.key
    -- Not every role sees each of the server's own.
    where b.value is distinct from n.value and (b.value is not null and n.value is not null or coalesce(b.key, n.key) like '% %')
  ) x (was_key, was, is_key, is_now)
  cross join lateral (select x.was_key as key, x.was as value) b
  cross join lateral (select x.is_key as key, x.is_now as value) n
  where p_to > now() - interval '5 minutes' and h.tenant_id = 'system' and h.known <> '{}'
  union all
  select f.* from custody_data.detect_definitions(p_seen.definitions, '^key-exposed ') f
  union all
  select f.* from custody_data.detect_statements(p_rule, p_from, p_to, 'DDL', '^ALTER (SYSTEM|DATABASE)$', '') f
  union all
  select f.* from custody_data.detect_statements(p_rule, p_from, p_to, 'SETTING', '', '^(pgaudit\.|log_|logging_|shared_preload_|session_preload_)') f;
$$;
revoke all on function custody_data.detect_settings_changed(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_settings_changed(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: a setting of pgaudit or of logging is not what it was when detection last looked, a setting would log keys (custody_check.findings), or threshold ALTER SYSTEM, ALTER DATABASE or changes of such a setting were logged. Folds by setting and by login.';

create or replace function custody_data.detect_failed_logins(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select b.tenant_id, b.object_key, null::uuid, min(b.login), max(b.n), min(b.occurred_at), max(b.occurred_at), max(b.recorded_at), jsonb_build_object('at_most', max(b.n), 'within', p_rule.look_back)
  from (
    select f.tenant_id, k.object_key, k.login, f.occurred_at, f.recorded_at,
      count(*) over (partition by f.tenant_id, k.object_key order by f.occurred_at range between p_rule.look_back preceding and current row) as n
    from custody_data.access_events f
    -- many attempts at one login, or from one place at many
    cross join lateral (
      values ('login ' || f.login, f.login), ('from ' || network(set_masklen(f.client, case family(f.client) when 4 then 24 else 48 end))::text, null)
    ) k (object_key, login)
    where f.recorded_at >= p_from - p_rule.look_back and f.recorded_at < p_to and (f.class in ('DDL', 'ROLE', 'SETTING') or f.kind in ('logon_failed', 'forged'))
      and f.kind = 'logon_failed' and k.object_key is not null
  ) b
  where b.n >= p_rule.threshold and b.recorded_at >= p_from
  group by b.tenant_id, b.object_key;
$$;
revoke all on function custody_data.detect_failed_logins(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_failed_logins(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: threshold failed logins within look_back, at one login or from one network (/24, /48). Folds by each.';

create or replace function custody_data.detect_sealing_behind(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'system', 'sealing', null::uuid, null::text, s.unsealed_events, s.oldest_recorded_at, now(), now(),
    jsonb_build_object('unsealed_events', s.unsealed_events, 'holder_kind', s.holder_kind, 'holder', s.holder, 'database', s.holder_database)
  from custody.sealing_status() s
  where p_to > now() - interval '5 minutes' and s.age > p_rule.look_back and s.unsealed_events >= p_rule.threshold;
$$;
revoke all on function custody_data.detect_sealing_behind(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_sealing_behind(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: at least threshold events of the trail have no leaf in the ledger, the oldest for longer than look_back.';

create or replace function custody_data.detect_shipping_behind(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'system', 'source ' || s.source, null::uuid, null::text, 1::bigint, s.updated_at, s.updated_at, now(), jsonb_build_object('source', s.source, 'last_line_at', s.last_line_at, 'shipped_at', s.updated_at)
  from custody_data.log_sources s
  where p_to > now() - interval '5 minutes' and s.updated_at < now() - p_rule.look_back;
$$;
revoke all on function custody_data.detect_shipping_behind(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_shipping_behind(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: of a source that was shipped before, nothing has been for longer than look_back. Folds by source.';

create or replace function custody_data.detect_log_finding(p_rule custody_data.detection_rules, p_from timestamptz, p_to timestamptz, p_seen custody_data.detection_input)
returns setof custody_data.detection_finding
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'system', f.kind || ' ' || f.source, null::uuid, null::text, sum(f.occurrences)::bigint, min(coalesce(f.occurred_at, f.found_at)), max(coalesce(f.occurred_at, f.found_at)), max(f.found_at),
    jsonb_build_object('kind', f.kind, 'source', f.source, 'batches', array_agg(distinct f.batch) filter (where f.batch is not null))
  from custody_data.log_findings f
  where f.found_at >= least(p_from, p_to - p_rule.look_back) and f.found_at < p_to
  group by f.kind, f.source
  having sum(f.occurrences) >= p_rule.threshold and max(f.found_at) >= p_from;
$$;
revoke all on function custody_data.detect_log_finding(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) from public;
comment on function custody_data.detect_log_finding(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) is
'Rule: threshold findings of one kind about the log of a source, forged lines, gaps and lost files among them (log_findings). Folds by kind and source.';

create or replace view custody.detection with (security_invoker = true) as
select ''::text as rule, ''::text as severity, ''::text as outcome, null::uuid as alert_id, ''::text as tenant_id, ''::text as object_key, null::uuid as actor_id,
  null::text as login, 0::bigint as events, null::timestamptz as first_at, null::timestamptz as last_at, '{}'::jsonb as detail
where false;
comment on view custody.detection is
'Shape of detect. outcome: opened an alert, folded into one, or known (found before, or closed since); of a dry run what it would be.';

-- definer: looks at all tenants, writes alerts
create or replace function custody.detect(p_from timestamptz default null, p_to timestamptz default null, p_dry_run boolean default false)
returns setof custody.detection
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- What is counted is to stay in memory, of which as much is taken as there is to count.
set work_mem = '256MB'
as $$
declare
  v_head custody_data.detection_heads;
  v_from timestamptz;
  v_to constant timestamptz := coalesce(p_to, clock_timestamp());
  v_until constant timestamptz := least(v_to, clock_timestamp());
  v_is_now constant boolean := v_to > now() - interval '5 minutes';
  v_seen custody_data.detection_input;
  v_rule custody_data.detection_rules;
  v_findings custody_data.detection_finding[];
  v_finding custody_data.detection_finding;
  v_alert custody_data.alerts;
  v_alert_id uuid;
  v_outcome text;
  v_count bigint := 0;
begin
  perform custody_data.require_all_tenants('detection');
  if not p_dry_run then
    perform custody_data.require_read_committed(), pg_advisory_xact_lock(hashtextextended('pgcustody.detection', 0));
  end if;
  select h.* into v_head from custody_data.detection_heads h where h.tenant_id = 'system';
  -- A batch is seen when its transaction ends, which may be after a later one's.
  v_from := coalesce(p_from, v_head.detected_to - interval '10 minutes', v_to - interval '1 hour');
  if not isfinite(v_from) or not isfinite(v_to) or v_to <= v_from or v_from < '1970-01-01 00:00:00+00' then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range: detect needs p_from before p_to, both finite',
      detail = format('From %s to %s.', v_from, v_to),
      hint = 'Leave both out to look at what is new.';
  end if;
  -- An hour that has begun is looked at as a whole.
  v_seen.groups := custody_data.access_groups(date_bin('1 hour', v_from, 'epoch') - interval '10 minutes', v_to);
  v_seen.hours := array(select h from custody_data.access_hours(v_seen.groups) h);
  -- How things stand now says nothing of the past.
  v_seen.definitions := case when v_is_now then array(select f.id || ' ' || f.object from custody_check.findings f) else '{}' end;

  for v_rule in
    select r.* from custody_data.detection_rules r where r.tenant_id = 'system' and r.enabled order by r.rule
  loop
    execute format('select coalesce(array_agg(f order by f.last_at, f.object_key), %L) from custody_data.%I($1, $2, $3, $4) f', '{}', v_rule.function_name)
    into v_findings using v_rule, v_from, v_to, v_seen;
    foreach v_finding in array v_findings
    loop
      select a.* into v_alert
      from custody_data.alerts a
      where a.tenant_id = v_finding.tenant_id and a.rule = v_rule.rule and a.object_key = v_finding.object_key
      order by a.closed_at is null desc, a.recorded_to desc
      limit 1;
      v_alert_id := v_alert.alert_id;
      v_outcome := case
        when v_alert.alert_id is not null and v_alert.recorded_to >= v_finding.recorded_to then 'known'
        when v_alert.alert_id is not null and v_alert.closed_at is null then 'folded'
        else 'opened' end;
      if v_outcome = 'opened' then
        v_alert_id := null;
      end if;
      if not p_dry_run and v_outcome = 'folded' then
        update custody_data.alerts a
        set last_at = greatest(a.last_at, v_finding.last_at), recorded_to = v_finding.recorded_to, count = a.count + 1, events = v_finding.events, detail = v_finding.detail
        where a.tenant_id = v_finding.tenant_id and a.alert_id = v_alert_id;
      elsif not p_dry_run and v_outcome = 'opened' then
        insert into custody_data.alerts (tenant_id, rule, severity, object_key, actor_id, login, first_at, last_at, recorded_to, events, detail)
        values (v_finding.tenant_id, v_rule.rule, v_rule.severity, v_finding.object_key, v_finding.actor_id, v_finding.login, v_finding.first_at, v_finding.last_at,
          v_finding.recorded_to, v_finding.events, v_finding.detail)
        returning alert_id into v_alert_id;
        perform custody_data.append_event('alert.open', 'alert', v_alert_id::text, 'success',
          jsonb_build_object('alert_id', v_alert_id, 'rule', v_rule.rule, 'severity', v_rule.severity, 'tenant', v_finding.tenant_id), null);
        perform pg_notify('pgcustody_alerts', json_build_object('alert_id', v_alert_id, 'severity', v_rule.severity)::text);
      end if;
      v_count := v_count + 1;
      return next row(v_rule.rule, v_rule.severity, v_outcome, v_alert_id, v_finding.tenant_id, v_finding.object_key, v_finding.actor_id, v_finding.login,
        v_finding.events, v_finding.first_at, v_finding.last_at, v_finding.detail)::custody.detection;
    end loop;
  end loop;

  if p_dry_run then
    -- Nothing else would tell that somebody asked who read what.
    perform custody_data.record_question('detect', v_from, v_to, v_count, null);
  else
    perform custody_data.keep_baselines(v_seen.hours);
    if v_head.detected_to is null or (v_head.detected_to at time zone 'UTC')::date < (v_until at time zone 'UTC')::date then
      delete from custody_data.access_baselines b where b.day < (v_until at time zone 'UTC' - interval '1 year')::date;
    end if;
    -- What lies between the last run and p_from nobody has looked at, nor at how things stand where the past was looked at.
    insert into custody_data.detection_heads as h (tenant_id, detected_to, known)
    values ('system', v_until, case when v_is_now then custody_data.detection_knows() else '{}' end)
    on conflict on constraint detection_heads_pkey do update
    set detected_to = case when v_from <= h.detected_to then greatest(h.detected_to, excluded.detected_to) else h.detected_to end,
      known = case when v_is_now then excluded.known else h.known end;
  end if;
end
$$;
revoke all on function custody.detect(timestamptz, timestamptz, boolean) from public;
grant execute on function custody.detect(timestamptz, timestamptz, boolean) to custody_worker, custody_auditor;
comment on function custody.detect(timestamptz, timestamptz, boolean) is
'Runs every rule that is enabled over what was shipped from p_from to p_to, opens alerts or folds into those that are not closed, and returns what was found. Each alert that is opened is an event, and a notification on pgcustody_alerts with its id and severity. Rules about how things stand (roles, settings, guards, sealing, shipping) look only where p_to is now. The next run begins where the last one that left nothing out has ended.
p_from: default ten minutes before the end of the last run, or an hour. p_to (exclusive): default now. p_dry_run: opens no alert and keeps nothing; the asking is an event (access.read).
Errors: PC001, PC009, PC015 outside tenant system, PC026 isolation level. Callers: custody_worker; custody_auditor.';

create or replace function custody_data.keep_baselines(p_hours custody_data.access_hour[])
returns void
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into custody_data.access_baselines as b (tenant_id, actor, object_name, day, peak_rows, peak_people)
  select h.tenant_id, h.actor, h.object_name, (h.hour at time zone 'UTC')::date, max(h.rows), max(h.people)
  from unnest(p_hours) h
  group by 1, 2, 3, 4
  on conflict on constraint access_baselines_pkey do update
  set peak_rows = greatest(b.peak_rows, excluded.peak_rows), peak_people = greatest(b.peak_people, excluded.peak_people)
  where b.peak_rows < excluded.peak_rows or b.peak_people < excluded.peak_people;
$$;
revoke all on function custody_data.keep_baselines(custody_data.access_hour[]) from public;
comment on function custody_data.keep_baselines(custody_data.access_hour[]) is 'Keeps what each actor read at most in an hour of each day. The same hour twice changes nothing.';

-- definer: rules are written by these functions alone
create or replace function custody.set_detection_rule(
  p_rule text, p_threshold bigint default null, p_look_back interval default null, p_severity text default null, p_enabled boolean default null
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_rule custody_data.detection_rules;
begin
  perform custody_data.require_all_tenants('set of detection rules');
  if p_threshold < 1 or p_look_back <= interval '0' or p_look_back > interval '1 year' or p_severity not in ('low', 'medium', 'high', 'critical') then
    raise exception using
      errcode = 'PC023',
      message = 'invalid threshold, look_back or severity',
      hint = 'Give a threshold of 1 or more, a time of at most a year, and low, medium, high or critical.';
  end if;
  update custody_data.detection_rules r
  set threshold = coalesce(p_threshold, r.threshold), look_back = coalesce(p_look_back, r.look_back), severity = coalesce(p_severity, r.severity),
    enabled = coalesce(p_enabled, r.enabled)
  where r.tenant_id = 'system' and r.rule = p_rule
  returning r.* into v_rule;
  if not found then
    raise exception using errcode = 'PC075', message = 'unknown rule', hint = 'See custody.detection_rules.';
  end if;
  perform custody_data.append_event('detection.configure', 'detection', p_rule, 'success',
    jsonb_build_object('rule', p_rule, 'threshold', v_rule.threshold, 'look_back', v_rule.look_back, 'severity', v_rule.severity, 'enabled', v_rule.enabled), null);
end
$$;
revoke all on function custody.set_detection_rule(text, bigint, interval, text, boolean) from public;
grant execute on function custody.set_detection_rule(text, bigint, interval, text, boolean) to custody_admin;
comment on function custody.set_detection_rule(text, bigint, interval, text, boolean) is
'Changes a rule of detection for all tenants; what is null stays. An event. Try a threshold before: it takes effect in the transaction, where custody.detect with p_dry_run says what it finds in past data.
p_rule: its name. p_threshold: from how many on it fires. p_look_back: its baseline, or the time in which events count together.
Errors: PC001, PC015 in another context than that of tenant system, PC023, PC075 unknown rule. Callers: custody_admin.';

-- definer: as set_detection_rule
create or replace function custody.set_detection_networks(p_role text, p_networks inet[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('list of networks');
  if p_role is null or not exists (select from pg_roles r where r.rolname = p_role) or array_position(p_networks, null) is not null or cardinality(p_networks) > 256 then
    raise exception using errcode = 'PC023', message = 'invalid role or networks', hint = 'Give the name of a role, and up to 256 networks, as in {192.0.2.0/24}; null or none of them ends the list.';
  end if;
  if coalesce(cardinality(p_networks), 0) = 0 then
    delete from custody_data.detection_networks n where n.tenant_id = 'system' and n.role_name = p_role;
  else
    insert into custody_data.detection_networks (role_name, networks) values (p_role, p_networks)
    on conflict on constraint detection_networks_pkey do update set networks = excluded.networks;
  end if;
  perform custody_data.append_event('detection.configure', 'detection', 'networks', 'success', jsonb_build_object('role', p_role, 'networks', coalesce(p_networks, '{}')), null);
end
$$;
revoke all on function custody.set_detection_networks(text, inet[]) from public;
grant execute on function custody.set_detection_networks(text, inet[]) to custody_admin;
comment on function custody.set_detection_networks(text, inet[]) is
'Says from which networks a login, or the members of a role, are expected; an address that any of its lists has is. An event.
p_role: name of the login or role. p_networks: null or empty for anywhere.
Errors: PC001, PC015 in another context than that of tenant system, PC023. Callers: custody_admin.';

-- definer: as set_detection_rule
create or replace function custody.set_actor_hours(
  p_actor text, p_time_zone text, p_from time default '07:00', p_to time default '20:00', p_days smallint[] default '{1,2,3,4,5}'
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_actor_id constant uuid := case when p_actor is null then '00000000-0000-0000-0000-000000000000'::uuid else custody_data.claim_identity(p_actor) end;
begin
  if p_time_zone is null then
    delete from custody_data.actor_settings s where s.tenant_id = v_tenant and s.actor_id = v_actor_id;
  elsif not exists (select from pg_timezone_names z where z.name = p_time_zone) or p_from is null or p_to is null or p_from >= p_to
      or p_days is null or not p_days <@ array[1, 2, 3, 4, 5, 6, 7]::smallint[] or cardinality(p_days) not between 1 and 7 then
    raise exception using
      errcode = 'PC023',
      message = 'invalid time zone, hours or days',
      hint = 'Give a name as in Europe/Berlin, a time before another, and days of the week from 1, Monday, to 7.';
  else
    insert into custody_data.actor_settings (tenant_id, actor_id, time_zone, work_from, work_to, work_days)
    values (v_tenant, v_actor_id, p_time_zone, p_from, p_to, p_days)
    on conflict on constraint actor_settings_pkey do update
    set time_zone = excluded.time_zone, work_from = excluded.work_from, work_to = excluded.work_to, work_days = excluded.work_days;
  end if;
  perform custody_data.append_event('detection.configure', 'detection', 'hours', 'success',
    jsonb_strip_nulls(jsonb_build_object('time_zone', p_time_zone, 'hours', case when p_time_zone is not null then p_from || ' to ' || p_to end, 'days', case when p_time_zone is not null then p_days end,
      'everybody', p_actor is null)), case when p_actor is not null then v_actor_id end);
end
$$;
revoke all on function custody.set_actor_hours(text, text, time, time, smallint[]) from public;
grant execute on function custody.set_actor_hours(text, text, time, time, smallint[]) to custody_admin;
comment on function custody.set_actor_hours(text, text, time, time, smallint[]) is
'Says when an actor of the tenant is expected to work, in their own time zone. An event.
p_actor: user_id; null for all of the tenant who have no hours of their own: give programs theirs, as in 00:00 to 24:00 on all days. p_time_zone: name of the IANA database; null ends the hours. p_from, p_to: on the same day. p_days: 1 is Monday.
Errors: PC001, PC003 invalid actor, PC015 confined to one person, PC023. Callers: custody_admin.';

-- definer: who is planted is written by these functions alone
create or replace function custody.plant_canary(p_user_id text, p_profile jsonb default null)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_identity_id uuid;
begin
  perform custody_data.check_user_id(p_user_id);
  if custody_data.find_identity(p_user_id) is not null then
    raise exception using errcode = 'PC023', message = 'invalid canary: the tenant knows that user_id', hint = 'Give one that nobody has: a planted person is a new one.';
  end if;
  if p_profile is not null then
    perform custody.put_profile(p_user_id, p_profile);
  end if;
  v_identity_id := custody_data.claim_identity(p_user_id);
  insert into custody_data.canaries (tenant_id, identity_id, planted_by) values (v_tenant, v_identity_id, custody_data.require_actor());
  -- About nobody: who reads the trail is not told who is planted.
  perform custody_data.append_event('canary.plant', 'detection', null, 'success', jsonb_build_object('profile', p_profile is not null), null);
  return v_identity_id;
end
$$;
revoke all on function custody.plant_canary(text, jsonb) from public;
grant execute on function custody.plant_canary(text, jsonb) to custody_auditor;
comment on function custody.plant_canary(text, jsonb) is
'Plants a person who does not exist, and returns its identity: whoever reads its records raises an alert. An event, which does not say who. Auditors do it, who read no personal data: who does is not to know.
p_user_id: one that nobody has. p_profile: as put_profile takes it, which needs the tenant''s key; without it the application makes records of the person as of any other.
Errors: PC001, PC003 invalid user_id, PC015 confined to one person, PC023 somebody has that user_id, PC033 locked. Callers: custody_auditor.';

-- definer: as plant_canary
create or replace function custody.remove_canary(p_identity_id uuid)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  update custody_data.canaries c set removed_at = clock_timestamp() where c.tenant_id = v_tenant and c.identity_id = p_identity_id and c.removed_at is null;
  if not found then
    raise exception using errcode = 'PC076', message = 'unknown canary', hint = 'Give the identity that plant_canary returned, of one that was not removed before.';
  end if;
  perform custody_data.append_event('canary.remove', 'detection', null, 'success', '{}', null);
end
$$;
revoke all on function custody.remove_canary(uuid) from public;
grant execute on function custody.remove_canary(uuid) to custody_auditor;
comment on function custody.remove_canary(uuid) is
'Ends the watch over a planted person; reads from before are still found. The person stays as any other: have it erased. An event.
Errors: PC001, PC015 confined to one person, PC076 unknown canary. Callers: custody_auditor.';

create or replace function custody_data.require_alert(p_alert_id uuid)
returns custody_data.alerts
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_alert custody_data.alerts;
begin
  select a.* into v_alert from custody_data.alerts a where a.tenant_id = v_tenant and a.alert_id = p_alert_id for update;
  if not found or v_alert.closed_at is not null then
    raise exception using
      errcode = 'PC077',
      message = 'unknown alert',
      detail = case when v_alert.closed_at is not null then 'It was closed before.' else 'The tenant has no such alert.' end,
      hint = 'See custody.alerts; one of tenant system is settled in its context.';
  end if;
  -- In free mode a session says itself who acts, but not as which login it came.
  if v_alert.actor_id = custody_data.require_actor() or v_alert.login in (session_user::text, custody_data.caller_role()) then
    raise exception using
      errcode = 'PC078',
      message = 'nobody settles an alert about themselves',
      detail = 'Its actor is that of the context, or its login that of this session.',
      hint = 'Somebody else acknowledges or closes it, by a login of their own.';
  end if;
  return v_alert;
end
$$;
revoke all on function custody_data.require_alert(uuid) from public;
comment on function custody_data.require_alert(uuid) is 'An alert that is not closed, locked, for somebody whom it is not about. Errors: PC001, PC015, PC077, PC078.';

-- definer: alerts are written by these functions alone
create or replace function custody.acknowledge_alert(p_alert_id uuid)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alert constant custody_data.alerts := custody_data.require_alert(p_alert_id);
begin
  if v_alert.acknowledged_at is null then
    update custody_data.alerts a set state = 'acknowledged', acknowledged_at = clock_timestamp(), acknowledged_by = custody_data.require_actor()
    where a.tenant_id = v_alert.tenant_id and a.alert_id = p_alert_id;
    perform custody_data.append_event('alert.acknowledge', 'alert', p_alert_id::text, 'success', jsonb_build_object('alert_id', p_alert_id, 'rule', v_alert.rule), null);
  end if;
end
$$;
revoke all on function custody.acknowledge_alert(uuid) from public;
grant execute on function custody.acknowledge_alert(uuid) to custody_auditor, custody_privacy;
comment on function custody.acknowledge_alert(uuid) is
'Says that somebody looks after an alert; it goes on folding. An event. Said again it changes nothing.
Errors: PC001, PC015 confined to one person, PC077 unknown or closed, PC078 it is about the caller. Callers: custody_auditor, custody_privacy.';

-- definer: as acknowledge_alert
create or replace function custody.close_alert(p_alert_id uuid, p_reason text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_alert constant custody_data.alerts := custody_data.require_alert(p_alert_id);
begin
  if coalesce(char_length(btrim(p_reason)), 0) not between 1 and 2000 then
    raise exception using errcode = 'PC023', message = 'closing an alert needs a reason', hint = 'Say what it was, in 1 to 2000 characters, without naming a person.';
  end if;
  update custody_data.alerts a
  set state = 'closed', closed_at = clock_timestamp(), closed_by = custody_data.require_actor(), close_reason = p_reason
  where a.tenant_id = v_alert.tenant_id and a.alert_id = p_alert_id;
  perform custody_data.append_event('alert.close', 'alert', p_alert_id::text, 'success', jsonb_build_object('alert_id', p_alert_id, 'rule', v_alert.rule, 'reason', p_reason), null);
end
$$;
revoke all on function custody.close_alert(uuid, text) from public;
grant execute on function custody.close_alert(uuid, text) to custody_auditor, custody_privacy;
comment on function custody.close_alert(uuid, text) is
'Closes an alert for good. What is found after it opens another. An event with the reason. p_reason: 1 to 2000 characters; must name nobody.
Errors: PC001, PC015 confined to one person, PC023 no reason, PC077 unknown or closed, PC078 it is about the caller. Callers: custody_auditor, custody_privacy.';

-- definer: alerts are written by these functions alone
create or replace function custody.mark_alert_sent(p_alert_id uuid, p_status text, p_delivered boolean)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_all_tenants('webhook of alerts');
  update custody_data.alerts a
  set attempts = a.attempts + 1, last_status = left(p_status, 200), sent_at = case when p_delivered then coalesce(a.sent_at, clock_timestamp()) else a.sent_at end
  where a.alert_id = p_alert_id;
end
$$;
revoke all on function custody.mark_alert_sent(uuid, text, boolean) from public;
grant execute on function custody.mark_alert_sent(uuid, text, boolean) to custody_worker;
comment on function custody.mark_alert_sent(uuid, text, boolean) is
'Records an attempt to send an alert. Errors: PC001, PC015 in another context than that of tenant system. Callers: custody_worker.';

create or replace view custody.alerts with (security_invoker = true) as
select a.tenant_id, a.alert_id, a.rule, a.severity, a.state, a.object_key, a.actor_id, i.user_id as actor, a.login, a.first_at, a.last_at, a.count, a.events, a.detail,
  a.opened_at, a.acknowledged_at, a.acknowledged_by, a.closed_at, a.closed_by, a.close_reason, a.sent_at, a.attempts, a.last_status
from custody_data.alerts a
left join custody_data.identities i on i.tenant_id = a.tenant_id and i.identity_id = a.actor_id;
grant select on custody.alerts to custody_worker, custody_privacy, custody_auditor;
comment on view custody.alerts is 'Alerts of the tenant in context, with the actor''s user_id; in tenant system, for custody_worker and custody_auditor, of all tenants. Readers: custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.detection_rules with (security_invoker = true) as
select r.rule, r.title, r.description, r.control, r.severity, r.look_back, r.threshold, r.enabled, r.function_name
from custody_data.detection_rules r;
grant select on custody.detection_rules to custody_admin, custody_worker, custody_auditor;
comment on view custody.detection_rules is 'The rules of detection, in the context of tenant system. Readers: custody_admin, custody_worker, custody_auditor.';
