-- Each rule: an example that fires, and a near miss that does not.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('detect_a'), tenant('detect_b');

-- What the shipper would have written: p_n events of an actor, a second apart.
create function pg_temp.shipped(p_tenant text, p_actor text, p_n integer default 1, p_at timestamptz default now() - interval '5 minutes', p_kind text default 'read',
  p_object text default 'custody_data.user_profiles', p_people integer default 1, p_rows bigint default 1, p_login text default 'custody_app', p_client inet default null,
  p_class text default 'READ', p_action text default 'record.read', p_recorded timestamptz default now()) returns void language sql as $$
  insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, action, object_name, login, role, actor_id, identity_id, rows, client, session_id)
  select p_tenant, p_recorded, (random() * 1e15)::bigint, n, p_at + n * interval '1 millisecond', p_kind, p_class, p_action, p_object, p_login, p_login,
    case when p_actor is not null then md5(p_tenant || p_actor)::uuid end, case when p_kind = 'read' then md5((n % p_people)::text)::uuid end, p_rows, p_client, 'x.y'
  from generate_series(1, p_n) n;
$$;
create function pg_temp.actor(p_tenant text, p_actor text, p_kind text default 'person') returns uuid language sql as $$
  insert into custody_data.identities (tenant_id, identity_id, kind, user_id) values (p_tenant, md5(p_tenant || p_actor)::uuid, p_kind, p_actor) returning identity_id;
$$;
-- What a rule alone finds: keys and how many events.
create function pg_temp.finds(p_rule text, p_from timestamptz default now() - interval '1 hour', p_to timestamptz default now() + interval '1 second') returns text language plpgsql as $$
declare
  v_others constant text[] := array(select r.rule from custody_data.detection_rules r where r.enabled and r.rule <> p_rule);
  v_found text;
begin
  update custody_data.detection_rules set enabled = false where rule = any (v_others);
  select coalesce(string_agg(format('%s %s %s', d.tenant_id, coalesce(i.user_id, d.object_key), d.events), ', ' order by d.tenant_id, coalesce(i.user_id, d.object_key)), 'nothing') into v_found
  from custody.detect(p_from, p_to, true) d left join custody_data.identities i on i.identity_id = d.actor_id;
  update custody_data.detection_rules set enabled = true where rule = any (v_others);
  return v_found;
end
$$;
select custody.set_context('system', 'watch', 'detection');
select pg_temp.actor('detect_a', n) from unnest(array['clerk-1', 'clerk-2', 'clerk-3', 'clerk-4', 'clerk-5', 'clerk-6', 'clerk-7', 'nurse', 'berliner', 'tokyoite', 'sleeper', 'newcomer']) n;
select pg_temp.actor('detect_a', 'robot', 'service');

-- Many rows: 5000 in an hour, and three times as many as in any hour before.
select pg_temp.shipped('detect_a', 'clerk-1', 50, p_rows => 100), pg_temp.shipped('detect_a', 'clerk-2', 49, p_rows => 100), pg_temp.shipped('detect_a', 'clerk-3', 50, p_rows => 100);
insert into custody_data.access_baselines values ('detect_a', md5('detect_aclerk-3'), 'custody_data.user_profiles', current_date - 3, 1700, 50);
update custody_data.access_baselines set actor = md5('detect_aclerk-3')::uuid::text where actor = md5('detect_aclerk-3');
select is(pg_temp.finds('bulk_rows'), 'detect_a clerk-1 50', '5000 rows fire; 4900 do not, nor 5000 of who reads 1700 on other days');
update custody_data.access_baselines set peak_rows = 1600 where actor = md5('detect_aclerk-3')::uuid::text;
select is(pg_temp.finds('bulk_rows'), 'detect_a clerk-1 50, detect_a clerk-3 50', 'of who reads 1600 they do');
update custody_data.access_baselines set day = current_date - 40 where actor = md5('detect_aclerk-3')::uuid::text;
select is(pg_temp.finds('bulk_rows'), 'detect_a clerk-1 50, detect_a clerk-3 50', 'what was before look_back does not count');
select pg_temp.shipped('detect_a', 'clerk-4', 30, p_rows => 100, p_at => date_trunc('hour', now()) - interval '2 minutes'), pg_temp.shipped('detect_a', 'clerk-4', 30, p_rows => 100, p_at => date_trunc('hour', now()) + interval '1 second');
select unalike(pg_temp.finds('bulk_rows'), '%clerk-4%', 'an hour is that of the clock');
-- Our own line and pgaudit's are of one read.
select pg_temp.shipped('detect_a', 'clerk-5', 30, p_rows => 100), pg_temp.shipped('detect_a', 'clerk-5', 30, p_rows => 100, p_kind => 'statement');
select unalike(pg_temp.finds('bulk_rows'), '%clerk-5%', 'lines that tell of the same read count once');
insert into custody_data.access_events (tenant_id, recorded_at, batch, line, part, occurred_at, kind, class, object_name, login, actor_id, identity_id, rows, session_id)
select 'detect_a', now(), 3, 1, n, now() - interval '5 minutes', 'read', 'READ', 'custody_data.user_profiles', 'custody_app', md5('detect_aclerk-6')::uuid, md5(n::text)::uuid, 2500, 'x.y' from generate_series(0, 1) n
union all select 'detect_a', now(), 3, 1 + n, 0, now() - interval '5 minutes', 'read', 'READ', 'custody_data.user_profiles', 'custody_app', md5('detect_aclerk-7')::uuid, md5('detect_aclerk-7')::uuid, 5000, 'x.y' from generate_series(1, 250) n;
select unalike(pg_temp.finds('bulk_rows'), '%clerk-6%', 'a line about two people says its rows once');
select unalike(pg_temp.finds('bulk_rows') || pg_temp.finds('bulk_people'), '%clerk-7%', 'what people read of themselves is nobody''s business');

-- Many people: 200 different ones.
select pg_temp.shipped('detect_b', 'nosy', 250, p_people => 200), pg_temp.shipped('detect_b', 'busy', 2000, p_people => 199);
select pg_temp.actor('detect_b', 'nosy'), pg_temp.actor('detect_b', 'busy');
select is(pg_temp.finds('bulk_people'), 'detect_b nosy 250', '200 people fire; 199, however often, do not');
insert into custody_data.access_baselines values ('detect_b', md5('detect_bnosy')::uuid::text, 'custody_data.user_profiles', current_date - 1, 1, 84);
select is(pg_temp.finds('bulk_people'), 'nothing', 'nor 200 of who reads 84 on other days');

-- Out of hours, where the actor is.
set local custody.tenant = 'detect_a';
select set_config('testing.monday', (date_trunc('week', now() at time zone 'UTC') - interval '1 week')::text, true);
select custody.set_actor_hours('berliner', 'Europe/Berlin'), custody.set_actor_hours('tokyoite', 'Asia/Tokyo', '09:00', '18:00'), custody.set_actor_hours('sleeper', 'Europe/Berlin', '00:00', '23:59', '{6,7}');
set local custody.tenant = 'system';
-- Monday, 08:00 in Berlin is 15:00 or 16:00 in Tokyo; 20:30 in Berlin is in the night there.
select pg_temp.shipped('detect_a', p, 3, (current_setting('testing.monday')::timestamp + time '08:00') at time zone 'Europe/Berlin') from unnest(array['berliner', 'tokyoite', 'sleeper', 'newcomer', 'robot']) p;
select is(pg_temp.finds('after_hours'), 'detect_a sleeper 3', 'a Monday morning is within the hours of who works then, and not of who works at the weekend');
select pg_temp.shipped('detect_a', p, 2, (current_setting('testing.monday')::timestamp + time '20:30') at time zone 'Europe/Berlin') from unnest(array['berliner', 'newcomer', 'robot']) p;
select is(pg_temp.finds('after_hours'), 'detect_a berliner 2, detect_a sleeper 3', 'half past eight in the evening is not, where they are; without hours nobody is late');
set local custody.tenant = 'detect_a';
select custody.set_actor_hours(null, 'UTC', '06:00', '17:00');
set local custody.tenant = 'system';
select matches(pg_temp.finds('after_hours'), 'berliner 2.*newcomer 2.*robot 2', 'the tenant''s hours are those of who has none');
set local custody.tenant = 'detect_a';
select custody.set_actor_hours('robot', 'UTC', '00:00', '24:00', '{1,2,3,4,5,6,7}');
set local custody.tenant = 'system';
select unalike(pg_temp.finds('after_hours'), '%robot%', 'programs are given theirs');

-- Networks, by login and by role.
select custody.set_detection_networks('custody_readwrite', '{10.0.0.0/8,2001:db8::/32}');
select pg_temp.shipped('detect_b', 'c', 1, p_client => '10.1.2.3'), pg_temp.shipped('detect_b', 'c', 1, p_client => '2001:db8::1'), pg_temp.shipped('detect_b', 'c', 1, p_client => '203.0.113.7', p_login => 'custody_reports'),
  pg_temp.shipped('detect_b', 'c', 1);
select is(pg_temp.finds('network'), 'nothing', 'from a network of the list, a socket, or by a login without a list: nothing');
select pg_temp.shipped('detect_b', 'c', 4, p_client => '203.0.113.7'), pg_temp.shipped('detect_b', 'c', 1, p_client => '203.0.113.8'), pg_temp.shipped('system', null, 1, p_client => '198.51.100.1', p_kind => 'authenticated', p_class => null, p_object => null);
select is(pg_temp.finds('network'), 'detect_b custody_app from 203.0.113.0/24 5, system custody_app from 198.51.100.0/24 1', 'from elsewhere it is found, logins too');
select custody.set_detection_networks('custody_app', '{203.0.113.0/24}');
select is(pg_temp.finds('network'), 'system custody_app from 198.51.100.0/24 1', 'a list of the login''s own adds to that of its role');
select custody.set_detection_networks('custody_app', null), custody.set_detection_networks('custody_readwrite', '{}');
select is(pg_temp.finds('network'), 'nothing', 'without lists everywhere is expected');

-- The first time.
insert into custody_data.access_baselines select 'detect_a', md5('detect_anurse')::uuid::text, 'custody_data.conversations', current_date - n, 5, 5 from generate_series(1, 5) n;
insert into custody_data.access_baselines select 'detect_a', md5('detect_anewcomer')::uuid::text, 'custody_data.conversations', current_date - n, 5, 5 from generate_series(1, 4) n;
select pg_temp.shipped('detect_a', 'nurse', 3, p_object => 'custody_data.consent_records'), pg_temp.shipped('detect_a', 'nurse', 3, p_object => 'custody_data.conversations');
select is(pg_temp.finds('first_table'), 'detect_a nurse 3', 'a table that the actor never read; not one that they read, nor of one who is known for four days alone');
insert into custody_data.access_baselines values ('detect_a', md5('detect_anurse')::uuid::text, 'custody_data.consent_records', current_date - 80, 1, 1);
select is(pg_temp.finds('first_table'), 'nothing', 'nor one that they read 80 days ago');

-- Superusers and the owner.
create role detect_root superuser login;
create role detect_deputy login in role custody_owner;
select is(pg_temp.finds('privileged_read'), 'nothing', 'applications read personal tables');
select pg_temp.shipped('system', null, 1, p_kind => 'statement', p_login => 'detect_root', p_object => 'pg_catalog.pg_class'), pg_temp.shipped('system', null, 1, p_kind => 'statement', p_login => 'detect_root', p_object => 'custody_data.tenants');
select is(pg_temp.finds('privileged_read'), 'nothing', 'superusers other tables');
select pg_temp.shipped('system', null, 2, p_kind => 'statement', p_login => 'detect_root'), pg_temp.shipped('system', null, 1, p_kind => 'statement', p_login => 'detect_deputy', p_object => 'custody_data.conversations');
select is(pg_temp.finds('privileged_read'), 'system detect_deputy 1, system detect_root 2', 'that a superuser reads personal tables, or a member of the owner, is found');
create role detect_shadow login;
select pg_temp.shipped('system', null, 1, p_kind => 'statement', p_login => 'detect_shadow');
select unalike(pg_temp.finds('privileged_read'), '%shadow%', 'another login is neither');
grant detect_root to detect_shadow;
select is(pg_temp.finds('privileged_read'), 'system detect_deputy 1, system detect_root 2, system detect_shadow 1', 'but who may become a superuser is');

-- Planted people.
set local custody.tenant = 'detect_a';
select set_config('testing.canary', custody.plant_canary('mata-hari', '{"full_name": "Mata Hari"}')::text, true) /* $1 */ from (select testing.unlock('detect_a')) u;
set local custody.tenant = 'system';
select is(pg_temp.finds('canary'), 'nothing', 'nobody has read her');
insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, login, actor_id, identity_id, session_id)
values ('detect_b', now(), 2, 1, now(), 'read', 'READ', 'custody_app', md5('detect_anurse')::uuid, current_setting('testing.canary')::uuid, 'x.y');
select is(pg_temp.finds('canary'), 'nothing', 'nor is a person of another tenant her');
insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, login, actor_id, identity_id, session_id)
values ('detect_a', now(), 2, 2, now(), 'read', 'READ', 'custody_app', md5('detect_anurse')::uuid, current_setting('testing.canary')::uuid, 'x.y');
select is(pg_temp.finds('canary'), 'detect_a nurse 1', 'one reading is enough');
set local custody.tenant = 'detect_a';
select custody.remove_canary(current_setting('testing.canary')::uuid);
set local custody.tenant = 'system';
insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, login, actor_id, identity_id, session_id)
values ('detect_a', now(), 2, 3, clock_timestamp(), 'read', 'READ', 'custody_app', md5('detect_aclerk-1')::uuid, current_setting('testing.canary')::uuid, 'x.y');
select is(pg_temp.finds('canary'), 'detect_a nurse 1', 'once she is removed, later ones are not found');

-- Statements about roles and the schema.
select pg_temp.shipped('system', null, 1, p_kind => 'statement', p_class => 'DDL', p_action => 'CREATE TABLE', p_object => 'public.notes', p_login => 'dba'),
  pg_temp.shipped('system', null, 1, p_kind => 'statement', p_class => 'DDL', p_action => 'CREATE TABLE', p_object => 'public.custody_notes', p_login => 'dba');
select is(pg_temp.finds('role_statement') || '; ' || pg_temp.finds('schema_statement') || '; ' || pg_temp.finds('trigger_disabled') || '; ' || pg_temp.finds('policy_changed') || '; ' || pg_temp.finds('settings_changed'),
  'nothing; nothing; nothing; nothing; nothing', 'tables of others are theirs');
select pg_temp.shipped('system', null, 2, p_kind => 'statement', p_class => 'ROLE', p_action => 'ALTER ROLE', p_object => null, p_login => 'dba');
select is(pg_temp.finds('role_statement'), 'system dba 2', 'statements about roles');
select pg_temp.shipped('system', null, 1, p_kind => 'statement', p_class => 'DDL', p_action => 'ALTER TABLE', p_object => 'custody_data.user_profiles', p_login => 'dba');
select is(pg_temp.finds('schema_statement') || '; ' || pg_temp.finds('policy_changed'), 'system dba 1; nothing', 'DDL on our tables is found as such');
select pg_temp.shipped('system', null, 1, p_kind => 'statement', p_class => 'DDL', p_action => 'ALTER POLICY', p_object => 'user_profiles_all_all on custody_data.user_profiles', p_login => 'dba'),
  pg_temp.shipped('system', null, 1, p_kind => 'statement', p_class => 'DDL', p_action => 'DROP TRIGGER', p_object => 'a_reject_mutation on custody_data.audit_logs', p_login => 'dba'),
  pg_temp.shipped('system', null, 1, p_kind => 'statement', p_class => 'DDL', p_action => 'ALTER SYSTEM', p_object => null, p_login => 'dba'),
  pg_temp.shipped('system', null, 1, p_kind => 'message', p_class => 'SETTING', p_action => null, p_object => 'work_mem', p_login => 'app'),
  pg_temp.shipped('system', null, 1, p_kind => 'message', p_class => 'SETTING', p_action => null, p_object => 'pgaudit.log', p_login => 'sighup');
select is(pg_temp.finds('policy_changed') || '; ' || pg_temp.finds('trigger_disabled') || '; ' || pg_temp.finds('settings_changed'), 'system dba 1; system dba 1; system dba 1, system sighup 1',
  'policies, triggers and settings are found by their own rules');

-- Failed logins: ten within ten minutes.
select pg_temp.shipped('system', null, 9, p_kind => 'logon_failed', p_login => 'bob', p_class => null, p_object => null), pg_temp.shipped('system', null, 9, p_kind => 'logon_failed', p_login => 'bob', p_class => null, p_object => null, p_at => now() - interval '16 minutes');
select is(pg_temp.finds('failed_logins'), 'nothing', 'nine, and nine a quarter of an hour before');
select pg_temp.shipped('system', null, 1, p_kind => 'logon_failed', p_login => 'bob', p_class => null, p_object => null, p_at => now() - interval '14 minutes');
select is(pg_temp.finds('failed_logins'), 'system login bob 10', 'the tenth within ten minutes fires');
select pg_temp.shipped('system', null, 1, p_kind => 'logon_failed', p_login => 'user-' || n, p_class => null, p_object => null, p_client => ('192.0.2.' || n)::inet) from generate_series(1, 10) n;
select is(pg_temp.finds('failed_logins'), 'system from 192.0.2.0/24 10, system login bob 10', 'so do ten logins from one network');

-- How things stand, by comparing with what detection saw last.
select is(pg_temp.finds('new_superuser'), 'nothing', 'what stood when detection looked first is nothing new');
set local role custody_owner;
insert into custody_data.detection_heads (known) values (custody_data.detection_knows()) on conflict on constraint detection_heads_pkey do update set known = excluded.known;
reset role;
select is(pg_temp.finds('new_superuser') || '; ' || pg_temp.finds('settings_changed'), 'nothing; system dba 1, system sighup 1', 'nor what has not changed');
create role detect_plain login;
select is(pg_temp.finds('new_superuser'), 'nothing', 'a new role without power is none');
create role detect_new_root superuser;
create role detect_see_all bypassrls;
grant custody_owner to detect_plain;
select is(pg_temp.finds('new_superuser'), 'system bypassrls detect_see_all 1, system owners detect_plain 1, system superusers detect_new_root 1', 'superuser, BYPASSRLS and membership of the owner are');
create role detect_climber login in role detect_root;
create role detect_peeper login in role detect_see_all;
select matches(pg_temp.finds('new_superuser'), 'bypassrls detect_peeper 1, .*superusers detect_climber 1', 'and so is membership of who has it');
select is(pg_temp.finds('new_superuser', now() - interval '2 days', now() - interval '1 day'), 'nothing', 'how things stand now says nothing of yesterday');
alter role detect_plain set log_statement = 'none';
select alike(pg_temp.finds('settings_changed'), '%setting every database detect_plain log_statement 1%', 'a setting of logging for one login is found');
alter role detect_plain set work_mem = '5MB';
select unalike(pg_temp.finds('settings_changed'), '%work_mem%', 'others are not');
update custody_data.detection_heads set known = jsonb_set(known, '{settings,log_statement}', '"mod"');
select alike(pg_temp.finds('settings_changed'), '%setting log_statement 1%', 'nor is one of the server''s, however it was changed');

-- Guards and policies.
alter table custody_data.audit_logs disable trigger a_reject_mutation;
select alike(pg_temp.finds('trigger_disabled'), '%guard-disabled audit_logs 1%', 'a guard that is down is found');
alter table custody_data.audit_logs enable always trigger a_reject_mutation;
select is(pg_temp.finds('trigger_disabled'), 'system dba 1', 'not one that stands again');
create policy evil on custody_data.user_profiles using (true);
select alike(pg_temp.finds('policy_changed'), '%changed policy custody_data.user_profiles.evil 1%', 'a new policy is found');
drop policy evil on custody_data.user_profiles;
select is(pg_temp.finds('policy_changed'), 'system dba 1', 'not when it is gone');

-- Sealing and shipping.
select is(pg_temp.finds('shipping_behind') || '; ' || pg_temp.finds('log_finding'), 'nothing; nothing', 'no source, no finding');
insert into custody_data.log_sources (source, format, file_name, file_offset, file_head, file_tail, state, updated_at)
select 'server-' || n, 'jsonlog', 'x', 0, sha256(''), sha256(''), '', now() - n * interval '14 minutes' from generate_series(1, 2) n;
select is(pg_temp.finds('shipping_behind'), 'system source server-2 1', 'a source that was last shipped 28 minutes ago is behind, one of 14 is not');
insert into custody_data.log_findings (source, kind, occurrences, found_at) values ('server-1', 'forged', 3, now()), ('server-1', 'gap', 1, now() - interval '2 hours');
select is(pg_temp.finds('log_finding'), 'system forged server-1 3', 'what is found about a log, when it was found');
select is(pg_temp.finds('sealing_behind'), 'nothing', 'events of a moment ago wait for nobody');
update custody_data.detection_rules set look_back = interval '1 microsecond' where rule = 'sealing_behind';
select alike(pg_temp.finds('sealing_behind'), 'system sealing%', 'those that wait for longer than they may do');
update custody_data.detection_rules set threshold = 1000000000 where rule = 'sealing_behind';
select is(pg_temp.finds('sealing_behind'), 'nothing', 'not when fewer wait than the threshold');

-- Threshold events within look_back, one of them new.
select pg_temp.shipped('system', null, 2, p_kind => 'statement', p_class => 'ROLE', p_action => 'GRANT ROLE', p_object => null, p_login => 'granter', p_recorded => greatest(now() - interval '30 minutes', date_trunc('month', now() at time zone 'UTC') at time zone 'UTC')),
  pg_temp.shipped('system', null, 1, p_kind => 'statement', p_class => 'ROLE', p_action => 'GRANT ROLE', p_object => null, p_login => 'granter');
update custody_data.detection_rules set threshold = 3, look_back = interval '1 second' where rule = 'role_statement';
select unalike(pg_temp.finds('role_statement', now()), '%granter%', 'three within half an hour are none of a second');
update custody_data.detection_rules set look_back = interval '1 hour' where rule = 'role_statement';
select alike(pg_temp.finds('role_statement', now()), '%granter 3%', 'but of an hour');
select unalike(pg_temp.finds('role_statement', now() + interval '1 microsecond'), '%granter%', 'and known when there is no new one');

-- Rules that are off find nothing; time is that of shipping.
select custody.set_detection_rule('canary', p_enabled => false);
select is(pg_temp.finds('canary'), 'nothing', 'a rule that is off finds nothing');
select custody.set_detection_rule('bulk_rows', 100000);
select is(pg_temp.finds('bulk_rows'), 'nothing', 'a threshold takes effect at once');
select row_eq($$select e.metadata from last_event('system', 'detection.configure') e$$, row ('{"rule": "bulk_rows", "enabled": true, "severity": "high", "look_back": "28 days", "threshold": 100000}'::jsonb), 'and is an event');
select is((select count(*) from custody_data.alerts), 0::bigint, 'a dry run opens no alert');
select row_eq($$select e.metadata - 'from' - 'to' from last_event('system', 'access.read') e$$, row ('{"question": "detect", "rows": 0, "by_person": false, "by_actor": false}'::jsonb), 'but that it was asked is an event');
select * from finish();
rollback;
