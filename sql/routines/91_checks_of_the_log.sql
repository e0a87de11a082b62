-- Control views on the server's log: whether it keeps who read what, and who is here to read.
-- control: HIPAA 164.312(b), 164.308(a)(1)(ii)(D), 164.308(a)(3); SOC 2 CC7.2, CC6.1; ISO 27001 A.8.15, A.5.16
-- reviewed by: DBA, auditor
--
-- What the server logs is a superuser's to set, for the server, a database, a role, or a role in a database (the last
-- one wins). sql/pgaudit.sql sets what belongs to the database; what is missing, or set otherwise for somebody, is found
-- here, with the statement that mends it. A server without pgaudit has findings: it keeps record-level reads alone.
--
-- A login is a person's, an application's, a superuser's, retired, or unregistered: a row of custody_data.logins says so, or, for
-- an application in free mode, the role's comment, which takes a superuser or CREATEROLE: @custody{"login":"application"}.

create or replace function custody_data.audit_classes(p_log text)
returns text[]
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- Each name adds its class or takes it away, the last one wins; none adds nothing.
  select coalesce(array_agg(c.class order by c.class), '{}')
  from unnest(array['ddl', 'function', 'misc', 'misc_set', 'read', 'role', 'write']) c (class)
  where (select t.name not like '-%'
    from (select lower(btrim(s.name)), s.n from string_to_table(p_log, ',') with ordinality s (name, n)) t (name, n)
    where ltrim(t.name, '-') in (c.class, 'all')
    order by t.n desc
    limit 1);
$$;
revoke all on function custody_data.audit_classes(text) from public;
grant execute on function custody_data.audit_classes(text) to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on function custody_data.audit_classes(text) is 'The classes of statements that a value of pgaudit.log has logged.';

-- definer: rows of logins are each tenant's own, and here it matters only whether a login has one
create or replace function custody_data.logins_here()
returns table (login text, kind text, owner boolean, wholly boolean, excepted boolean)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select r.rolname::text, k.kind, k.owner,
    -- partitions, which only custody_backup reads, have no marks of object audit
    k.kind <> 'application' or k.owner or pg_has_role(r.oid, 'custody_backup', 'member'),
    exists (select from pg_db_role_setting s where s.setrole = r.oid and s.setdatabase = d.oid and 'pgaudit.log=ddl, role' = any (s.setconfig))
  from pg_roles r
  join pg_database d on d.datname = current_database()
  left join lateral (
    select l.mode from custody_data.logins l
    where l.role_name = r.rolname and l.ended_at is null
    order by l.mode = 'retired' desc, l.mode = 'token' desc
    limit 1) l on true
  cross join lateral (select
    case when r.rolsuper then 'superuser'
      when l.mode = 'token' then 'application'
      when l.mode is not null then l.mode
      when shobj_description(r.oid, 'pg_authid') ~ '@custody\{\s*"login"\s*:\s*"application"\s*\}' then 'application'
      else 'unregistered' end as kind,
    pg_has_role(r.oid, 'custody_owner', 'member') as owner) k
  where r.rolcanlogin and has_database_privilege(r.oid, d.oid, 'connect');
$$;
revoke all on function custody_data.logins_here() from public;
grant execute on function custody_data.logins_here() to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on function custody_data.logins_here() is 'Every login that may connect to this database: person, application, superuser, retired or unregistered; whether it may act as custody_owner; whether each of its statements is to be logged; whether pgaudit.sql has excepted it from that.';

create or replace view custody_check.logins with (security_invoker = true) as
select l.login, l.kind, l.owner as acts_as_owner, s.value as pgaudit_log,
  custody_data.audit_classes(s.value) as logged,
  array(select c.class
    from pg_catalog.unnest(case when l.wholly then array['ddl', 'misc_set', 'read', 'role', 'write'] else array['ddl', 'role'] end) c (class)
    where not c.class = any (custody_data.audit_classes(s.value))) as not_logged
from custody_data.logins_here() l (login, kind, owner, wholly, excepted)
join pg_catalog.pg_roles r on r.rolname = l.login
join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
cross join lateral (
  select coalesce((
    -- what is set for the role in the database comes before the role's, and that before the database's
    select pg_catalog.substr(c.entry, 13)
    from pg_catalog.pg_db_role_setting e cross join lateral pg_catalog.unnest(e.setconfig) c (entry)
    where e.setrole in (0, r.oid) and e.setdatabase in (0, d.oid) and c.entry like 'pgaudit.log=%'
    order by e.setrole <> 0 desc, e.setdatabase <> 0 desc
    limit 1), (
    select case when p.source in ('default', 'configuration file', 'command line') then p.setting else p.boot_val end
    from pg_catalog.pg_settings p where p.name = 'pgaudit.log'), 'none') as value
) s;
grant select on custody_check.logins to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on view custody_check.logins is 'Every login that may connect to this database: what it is (person, application, superuser, retired, unregistered), whether it may act as custody_owner, and which classes of its statements pgaudit logs and should log.';

create or replace view custody_check.log_findings with (security_invoker = true) as
with place as (
  select pg_catalog.current_database()::text as database, (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()) as oid,
    exists (select from pg_catalog.pg_settings p where p.name = 'pgaudit.log') as loaded,
    exists (select from pg_catalog.pg_extension e where e.extname = 'pgaudit') as installed
), wanted (name, value, fits, level, why) as (
  values
    ('pgaudit.role', 'custody_pgaudit', '^custody_pgaudit$', 'error', 'reads of personal columns are not logged'),
    ('pgaudit.log_level', 'log', '^log$', 'error', 'what is logged is not believed, or not logged'),
    ('pgaudit.log_rows', 'off', '^off$', 'error', 'COPY and cursors on personal columns are not logged'),
    ('pgaudit.log_statement', 'on', '^on$', 'error', 'it is not logged how it was read'),
    ('pgaudit.log_statement_once', 'off', '^off$', 'warning', 'a line alone does not say how it was read'),
    ('pgaudit.log_relation', 'on', '^on$', 'error', 'it is not logged which table a statement read'),
    ('log_error_verbosity', 'verbose', '^verbose$', 'error', 'lines cannot be told from those that somebody forged'),
    ('log_min_messages', 'warning', '^(?!log|fatal|panic)', 'error', 'what is audited, or what was refused, is not logged'),
    ('lc_messages', 'C', '^(C|POSIX|en)', 'warning', 'lines about connections are not understood'),
    ('session_replication_role', 'origin', '^(origin|local)$', 'warning', 'pgaudit does not say which object a statement of the schema was about'),
    -- from Postgres 17 on
    ('event_triggers', 'on', '^on$', 'warning', 'pgaudit does not say which object a statement of the schema was about')
), entries as (
  -- as it was written: in capitals, too, and names of booleans may be spelt otherwise
  select e.setrole, e.setdatabase, coalesce(pg_catalog.pg_get_userbyid(nullif(e.setrole, 0))::text, 'every login') as place,
    pg_catalog.split_part(c.entry, '=', 1) as name,
    case when pg_catalog.split_part(c.entry, '=', 1) in ('pgaudit.role', 'lc_messages') then pg_catalog.split_part(c.entry, '=', 2)
      when pg_catalog.split_part(c.entry, '=', 1) !~ '^(pgaudit\.log_|event_triggers$)' then pg_catalog.lower(pg_catalog.split_part(c.entry, '=', 2))
      when pg_catalog.lower(pg_catalog.split_part(c.entry, '=', 2)) ~ '^(on|t|tr|tru|true|y|ye|yes|1)$' then 'on'
      when pg_catalog.lower(pg_catalog.split_part(c.entry, '=', 2)) ~ '^(of|off|f|fa|fal|fals|false|n|no|0)$' then 'off'
      else pg_catalog.lower(pg_catalog.split_part(c.entry, '=', 2)) end as value
  from pg_catalog.pg_db_role_setting e cross join lateral pg_catalog.unnest(e.setconfig) c (entry)
  where e.setdatabase in (0, (select p.oid from place p)) and (e.setrole = 0 or exists (select from custody_data.logins_here() l (login, kind, owner, wholly, excepted) where l.login = pg_catalog.pg_get_userbyid(e.setrole)))
), groups (name) as (
  values ('custody_readonly'), ('custody_readwrite'), ('custody_admin'), ('custody_worker'), ('custody_privacy'), ('custody_auditor'), ('custody_backup')
)
select 'pgaudit-missing' as id, 'pgaudit is not at work' as title, 'error' as level, 'HIPAA 164.312(b)' as control, p.database as object,
  case when not p.loaded then 'it is not in shared_preload_libraries' else 'its extension is not in this database' end as detail,
  case when not p.loaded then 'Put pgaudit into shared_preload_libraries of postgresql.conf (on a managed host: the parameter group), restart, and run sql/pgaudit.sql as a superuser; without it only record-level reads are kept'
    else 'create extension pgaudit' end as remediation
from place p where not (p.loaded and p.installed)
union all
select 'pgaudit-missing', 'pgaudit is not at work', 'error', 'HIPAA 164.312(b)', t.evtname, 'its event trigger is disabled: it does not say which object a statement of the schema was about',
  pg_catalog.format('alter event trigger %I enable', t.evtname)
from pg_catalog.pg_event_trigger t
where t.evtname like 'pgaudit\_%' and t.evtenabled not in ('O', 'A')
union all
select 'read-unmarked', 'Reading personal columns is not logged', 'error', 'HIPAA 164.312(b)', n.nspname || '.' || c.relname,
  pg_catalog.format('custody_pgaudit has no SELECT on %s', pg_catalog.string_agg(a.attname, ', ' order by a.attnum)), 'Run sql/pgaudit.sql as a superuser'
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname in ('custody_data', 'custody_keys') and c.relkind in ('r', 'p') and not c.relispartition
  and (n.nspname = 'custody_keys' or pg_catalog.col_description(c.oid, a.attnum) like '%@custody{%')
  and not exists (select from pg_catalog.aclexplode(a.attacl) x where x.privilege_type = 'SELECT' and x.grantee <> 0 and pg_catalog.pg_get_userbyid(x.grantee) = 'custody_pgaudit')
group by n.nspname, c.relname
union all
select distinct 'read-unmarked', 'Reading personal columns is not logged', 'error', 'HIPAA 164.312(b)', n.nspname || '.' || c.relname,
  'custody_pgaudit has no SELECT on the table: whole rows, as row_to_json reads them', 'Run sql/pgaudit.sql as a superuser'
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname in ('custody_data', 'custody_keys') and c.relkind in ('r', 'p') and not c.relispartition and a.atttypid <> 'custody_data.sealed_value'::regtype
  and (n.nspname = 'custody_keys' or pg_catalog.col_description(c.oid, a.attnum) like '%@custody{%')
  and not exists (select from pg_catalog.aclexplode(c.relacl) x where x.privilege_type = 'SELECT' and x.grantee <> 0 and pg_catalog.pg_get_userbyid(x.grantee) = 'custody_pgaudit')
union all
select 'mark-open', 'Somebody can act as the role that marks personal columns, and read them', 'error', 'HIPAA 164.312(a)(1)', coalesce(m.member::regrole::text, 'custody_pgaudit'),
  case when m.member is null then 'it can log in' else 'a member of custody_pgaudit' end,
  case when m.member is null then 'alter role custody_pgaudit nologin nosuperuser' else pg_catalog.format('revoke custody_pgaudit from %s', m.member::regrole) end
from pg_catalog.pg_roles r
left join pg_catalog.pg_auth_members m on m.roleid = r.oid
-- who made the role, from Postgres 16 on: a member that may only grant it
where r.rolname = 'custody_pgaudit' and (r.rolcanlogin or m.member is not null and pg_catalog.pg_has_role(m.member, r.oid, 'usage') and not (select o.rolsuper from pg_catalog.pg_roles o where o.oid = m.member))
union all
select distinct 'audit-class', 'Statements are not logged', 'error', 'HIPAA 164.312(b)', case when o.own is null then 'every login' else l.login end,
  pg_catalog.format('pgaudit.log is %s, without %s', l.pgaudit_log, pg_catalog.array_to_string(l.not_logged, ', ')),
  case when o.own is null then pg_catalog.format('alter database %I set pgaudit.log = ''read, write, ddl, role, misc_set''', p.database)
    else pg_catalog.format('alter role %I%s reset pgaudit.log', l.login, case when o.own <> 0 then pg_catalog.format(' in database %I', p.database) end) end
from custody_check.logins l
cross join place p
-- whether it is set for the login, and for which database
cross join lateral (select pg_catalog.max(e.setdatabase) as own from entries e where e.setrole = pg_catalog.quote_ident(l.login)::regrole and e.name = 'pgaudit.log') o
where p.loaded and pg_catalog.cardinality(l.not_logged) > 0
union all
select 'log-setting', 'A setting keeps reads from the log, or what it says of them', w.level, 'HIPAA 164.312(b)', e.place, pg_catalog.format('%s is %s: %s', w.name, e.value, w.why),
  pg_catalog.concat_ws(' ', case when e.setrole = 0 and e.setdatabase = 0 then 'alter role all' when e.setrole = 0 then pg_catalog.format('alter database %I', p.database)
    else pg_catalog.format('alter role %I', e.place) || case when e.setdatabase <> 0 then pg_catalog.format(' in database %I', p.database) else '' end end,
    case when e.setrole = 0 and e.setdatabase <> 0 then pg_catalog.format('set %s = %s', w.name, w.value) else pg_catalog.format('reset %s', w.name) end)
from entries e join wanted w on w.name = e.name cross join place p
where e.value !~ w.fits and (p.loaded or w.name not like 'pgaudit.%')
union all
-- of everybody for whom nothing else is set
select 'log-setting', 'A setting keeps reads from the log, or what it says of them', w.level, 'HIPAA 164.312(b)', 'every login',
  pg_catalog.format('%s is %s: %s', w.name, coalesce(s.value, 'hidden from this session by a setting of its own'), w.why),
  pg_catalog.format('alter database %I set %s = %s', p.database, w.name, w.value)
from wanted w
join pg_catalog.pg_settings g on g.name = w.name
-- of this database nothing is set, whatever was when this session began
cross join lateral (select case when g.source = 'session' then g.reset_val when g.source not in ('global', 'database', 'user', 'database user', 'client') then g.setting end as value) s
cross join place p
where coalesce(s.value !~ w.fits, true) and not exists (select from entries e where e.name = w.name and e.setrole = 0)
union all
select 'log-setting', 'A setting keeps reads from the log, or what it says of them', w.level, 'HIPAA 164.312(b)', 'this session', pg_catalog.format('%s is %s: %s', w.name, g.setting, w.why),
  pg_catalog.format('reset %s', w.name)
from wanted w join pg_catalog.pg_settings g on g.name = w.name
where g.source in ('session', 'client') and coalesce(g.setting, '') !~ w.fits
union all
select 'audit-session', 'Statements of this session are not logged', 'error', 'HIPAA 164.312(b)', l.login, pg_catalog.format('pgaudit.log was set to %s in this session', g.setting), 'reset pgaudit.log'
from custody_check.logins l join pg_catalog.pg_settings g on g.name = 'pgaudit.log'
where l.login = session_user and g.source in ('session', 'client') and not custody_data.audit_classes(l.pgaudit_log) <@ custody_data.audit_classes(g.setting)
union all
-- Who may set what only superusers may: as SET, which silences what comes after it, or for the whole server.
select 'parameter-granted', 'A login may keep its reads from the log, or have keys written to it', 'error', 'HIPAA 164.312(b)', l.login,
  pg_catalog.format('%s on %s', pg_catalog.string_agg(x.privilege_type, ', ' order by x.privilege_type), a.parname),
  pg_catalog.format('revoke all on parameter %s from %s', a.parname, case when x.grantee = 0 then 'public' else x.grantee::regrole::text end)
from pg_catalog.pg_parameter_acl a
cross join lateral pg_catalog.aclexplode(a.paracl) x
join custody_data.logins_here() l (login, kind, owner, wholly, excepted) on x.grantee = 0 or pg_catalog.pg_has_role(l.login, x.grantee, 'member')
where (a.parname ~ '^(pgaudit\.|auto_explain\.log_(nested|verbose|parameter)|log_(parameter|destination|directory|filename|(dis)?connections|replication|truncate)|logging_collector|(session|shared)_preload)'
    or a.parname in (select w.name from wanted w where w.level = 'error'))
  -- who acts as the owner sets pgaudit up, with these rights on a managed host, and is another finding
  and l.kind <> 'superuser' and not l.owner
group by l.login, a.parname, x.grantee
union all
select 'log-lost', w.title, w.level, w.control, g.name, pg_catalog.format('it is %s', g.setting), w.mend
from (values
  ('logging_collector', '^on$', 'The server''s log is not collected into files', 'error', 'HIPAA 164.312(b)', 'alter system set logging_collector = on, and restart; on a managed host the provider does that'),
  ('log_destination', 'jsonlog|csvlog', 'The server''s log is in no form that machines read', 'error', 'HIPAA 164.312(b)', 'alter system set log_destination = jsonlog; select pg_reload_conf()'),
  ('log_connections', '^(on|all|true|1)$|(?=.*receipt)(?=.*authentication)(?=.*authorization)', 'Connections and failed logins are not logged', 'error', 'HIPAA 164.308(a)(5)(ii)(C)', 'alter system set log_connections = on; select pg_reload_conf()'),
  ('log_disconnections', '^on$', 'Ends of sessions are not logged', 'warning', 'HIPAA 164.308(a)(5)(ii)(C)', 'alter system set log_disconnections = on; select pg_reload_conf()'),
  ('log_replication_commands', '^on$', 'Copies of the whole server are not logged', 'warning', 'HIPAA 164.312(b)', 'alter system set log_replication_commands = on; select pg_reload_conf()'),
  ('log_file_mode', '^0?[0-7][0145][0145]$', 'Others than the server may change the files of its log', 'error', 'HIPAA 164.312(c)(1)', 'alter system set log_file_mode = ''0600''; select pg_reload_conf()'),
  ('log_truncate_on_rotation', '^off$', 'A log file is emptied when its name comes again', 'warning', 'HIPAA 164.312(b)', 'alter system set log_truncate_on_rotation = off; select pg_reload_conf()')
) w (name, fits, title, level, control, mend)
join pg_catalog.pg_settings g on g.name = w.name
where g.setting !~ w.fits
union all
-- The collector goes on in a new file, which has the same name, again and again: some 0.3 ms a line, for which every session waits.
select 'log-slow', 'Each line of a large log file is a rotation, or may be', 'warning', 'ISO 27001 A.8.6', g.name,
  pg_catalog.format('it is %s, and %s', pg_catalog.current_setting(g.name), coalesce('log_filename, ' || f.setting || ', has the same name for a new file', 'log_filename is not shown to this login')),
  case when f.setting is null then pg_catalog.format('grant pg_read_all_settings to %I', session_user) else 'alter system set log_rotation_size = 0; select pg_reload_conf()' end
from pg_catalog.pg_settings g left join pg_catalog.pg_settings f on f.name = 'log_filename'
where g.name = 'log_rotation_size' and g.setting <> '0' and coalesce(f.setting !~ '%[EO]?[+crsSTX]', true)
union all
select 'login-unregistered', 'A login that works with personal data is nobody''s', 'error', 'HIPAA 164.312(a)(2)(i)', l.login,
  pg_catalog.format('member of %s; it says itself for whom and by whom it works', m.groups),
  pg_catalog.format('a person''s: custody.register_login(%L, actor, tenant); an application''s: custody.require_tokens(%L), or for free mode: comment on role %I is ''… @custody{"login":"application"}''', l.login, l.login, l.login)
from custody_data.logins_here() l (login, kind, owner, wholly, excepted)
cross join lateral (select pg_catalog.string_agg(g.name, ', ' order by g.name) as groups from groups g where pg_catalog.pg_has_role(l.login, g.name, 'member')) m
-- who can act as the owner is another finding
where l.kind = 'unregistered' and not l.owner and m.groups is not null
union all
select 'login-unregistered', 'A login that works with personal data is nobody''s', 'error', 'HIPAA 164.312(a)(2)(i)', r.rolname, 'REPLICATION: it copies the whole server',
  pg_catalog.format('alter role %I noreplication; or, where it is a standby''s or a backup''s: comment on role %I is ''… @custody{"login":"application"}''', r.rolname, r.rolname)
from pg_catalog.pg_roles r
where r.rolcanlogin and r.rolreplication and not r.rolsuper and not coalesce(pg_catalog.shobj_description(r.oid, 'pg_authid') ~ '@custody\{\s*"login"\s*:\s*"application"\s*\}', false)
union all
select 'copy-granted', 'A login reads or copies past the API', 'error', 'HIPAA 164.312(a)(1)', l.login, pg_catalog.format('member of %s', g.name),
  -- from itself, or from the role through which it has it
  pg_catalog.format('revoke %s from %s', g.name, (
    select m.member::regrole from pg_catalog.pg_auth_members m
    where m.roleid = g.name::regrole and pg_catalog.pg_has_role(l.login, m.member, 'member')
    order by pg_catalog.pg_get_userbyid(m.member) = l.login desc, m.member limit 1))
from custody_data.logins_here() l (login, kind, owner, wholly, excepted)
cross join (values ('pg_read_server_files'), ('pg_write_server_files'), ('pg_execute_server_program'), ('pg_read_all_data')) g (name)
where l.kind <> 'superuser' and pg_catalog.pg_has_role(l.login, g.name, 'member')
union all
select 'copy-granted', 'A login reads or copies past the API', 'error', 'HIPAA 164.312(a)(1)', l.login,
  pg_catalog.format('EXECUTE on %s: files of tables and of keys', p.oid::regprocedure),
  pg_catalog.format('revoke execute on function %s from %s', p.oid::regprocedure, case when x.grantee = 0 then 'public' else x.grantee::regrole::text end)
from pg_catalog.pg_proc p
cross join lateral pg_catalog.aclexplode(p.proacl) x
join custody_data.logins_here() l (login, kind, owner, wholly, excepted) on x.grantee = 0 or pg_catalog.pg_has_role(l.login, x.grantee, 'member')
where p.pronamespace = 'pg_catalog'::regnamespace and p.proname in ('pg_read_file', 'pg_read_binary_file', 'lo_import', 'lo_export') and l.kind <> 'superuser'
  -- with which the runner reads the log over its connection
  and not (p.oid = 'pg_catalog.pg_read_binary_file(text,bigint,bigint,boolean)'::regprocedure and l.kind = 'application' and pg_catalog.pg_has_role(l.login, 'custody_worker', 'member'))
  and not pg_catalog.pg_has_role(l.login, 'pg_read_server_files', 'member')
union all
select 'published', 'Rows with personal data or keys leave by logical replication', 'warning', 'HIPAA 164.312(a)(1)', t.pubname,
  pg_catalog.format('pgaudit says nothing of what it sends of %s', pg_catalog.string_agg(distinct pg_catalog.format('%s.%s', t.schemaname, coalesce(i.parent, t.tablename)), ', ')),
  pg_catalog.format('drop publication %I', t.pubname)
from pg_catalog.pg_publication_tables t
join pg_catalog.pg_namespace n on n.nspname = t.schemaname
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
left join lateral (select p.oid, p.relname::text as parent from pg_catalog.pg_inherits h join pg_catalog.pg_class p on p.oid = h.inhparent where h.inhrelid = c.oid) i on true
where n.nspname = 'custody_keys' or n.nspname = 'custody_data' and exists (
  select from pg_catalog.pg_description d where d.classoid = 'pg_catalog.pg_class'::regclass and d.objoid = coalesce(i.oid, c.oid) and d.description like '%@custody{%')
group by t.pubname
union all
select 'table-granted', 'Somebody has a right of its own on a table with personal data', 'error', 'HIPAA 164.308(a)(4)', x.grantee::regrole::text,
  pg_catalog.format('%s on %s.%s', x.privilege_type, n.nspname, c.relname), pg_catalog.format('revoke all on %I.%I from %s', n.nspname, c.relname, x.grantee::regrole)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
cross join lateral (
  select y.grantee, y.privilege_type from pg_catalog.aclexplode(c.relacl) y
  union
  select y.grantee, y.privilege_type from pg_catalog.pg_attribute a cross join lateral pg_catalog.aclexplode(a.attacl) y where a.attrelid = c.oid
) x
-- of sequences the secrets of sessions, which no group reads
where (n.nspname in ('custody_data', 'custody_keys') and c.relkind in ('r', 'p') or n.nspname = 'custody_keys' and c.relkind = 'S') and x.grantee not in (0, c.relowner)
  and pg_catalog.pg_get_userbyid(x.grantee) <> 'custody_pgaudit' and (c.relkind = 'S' or pg_catalog.pg_get_userbyid(x.grantee) not in (select g.name from groups g))
  and (n.nspname = 'custody_keys' or exists (select from pg_catalog.pg_description e where e.classoid = 'pg_catalog.pg_class'::regclass and e.objoid = c.oid and e.description like '%@custody{%'))
union all
select 'definer-foreign', 'A function reads with the rights of somebody who sees personal data', 'warning', 'HIPAA 164.312(b)', f.name,
  pg_catalog.format('security definer, owner %s: pgaudit does not log what it reads', pg_catalog.pg_get_userbyid(p.proowner)),
  pg_catalog.format('alter function %s security invoker', f.name)
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
-- whatever the search_path of who asks
cross join lateral (select pg_catalog.format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) as name) f
where p.prosecdef and n.nspname not in ('custody', 'custody_data', 'pg_catalog', 'information_schema')
  and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
  and pg_catalog.has_any_column_privilege(p.proowner, 'custody_data.identities', 'select')
order by 3, 1, 5, 6;
grant select on custody_check.log_findings to custody_admin, custody_auditor, custody_worker, custody_privacy;
comment on view custody_check.log_findings is 'Why the server''s log would not tell who read what, and which logins are here that should not be: id, title, level (error, warning), control, object, detail, remediation. Empty where all is well.';
