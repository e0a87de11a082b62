-- Which classes of statements a value of pgaudit.log has logged; what a login is, and by whose word; who may ask.
begin;
set local search_path = tap, testing;
set local client_min_messages = warning;
select no_plan();
select is(custody_data.audit_classes(v), c, v) from (values
  ('none', '{}'::text[]), ('', '{}'), (null, '{}'), ('read, ddl, role', '{ddl,read,role}'), (' READ ,Write', '{read,write}'), ('read, read', '{read}'),
  ('all', '{ddl,function,misc,misc_set,read,role,write}'), ('all, -read', '{ddl,function,misc,misc_set,role,write}'), ('-read, all', '{ddl,function,misc,misc_set,read,role,write}'),
  ('read, -all, role', '{role}'), ('misc', '{misc}'), ('misc_set', '{misc_set}'), ('all, none', '{ddl,function,misc,misc_set,read,role,write}'), ('nonsense', '{}')) x (v, c);

create function pg_temp.kind(p_login text) returns text language sql as $$ select concat_ws(' ', l.kind, case when l.wholly then 'wholly' end) from custody_data.logins_here() l where l.login = p_login $$;
select is(pg_temp.kind('custody_app'), 'application', 'by its comment');
select is(pg_temp.kind('custody_dump'), 'application wholly', 'backups read partitions, which have no marks');
select is(pg_temp.kind('custody_super'), 'superuser wholly', 'a superuser is one, whatever else is said');
comment on role custody_app is 'The shop.';
select is(pg_temp.kind('custody_app'), 'unregistered wholly', 'nobody says what it is');
comment on role custody_app is 'Of the shop. @custody{ "login" : "application" }';
select is(pg_temp.kind('custody_app'), 'application', 'by its comment again');
insert into custody_data.logins (tenant_id, role_name, mode, actor_id) values ('system', 'custody_app', 'person', gen_random_uuid());
select is(pg_temp.kind('custody_app'), 'person wholly', 'a row comes before the comment');
update custody_data.logins set mode = 'retired', actor_id = null where role_name = 'custody_app';
select is(pg_temp.kind('custody_app'), 'retired wholly', 'a retired login is still listened to');
update custody_data.logins set mode = 'token' where role_name = 'custody_app';
select is(pg_temp.kind('custody_app'), 'application', 'in token mode');
update custody_data.logins set ended_at = now() where role_name = 'custody_app';
comment on role custody_app is null;
select is(pg_temp.kind('custody_app'), 'unregistered wholly', 'a row that ended says nothing');
alter role custody_app nologin;
select is(pg_temp.kind('custody_app'), null, 'what cannot log in is not listed');

select is(attempt(g, format('select * from %s', v)), case when g in ('custody_auditor', 'custody_worker', 'custody_privacy') then 'ok' else '42501' end, format('%s asks for %s', g, v))
from (select name as g from groups) g cross join (values ('custody_check.log_findings'), ('custody_check.logins')) w (v);
select is((select count(*) from custody_check.log_findings f where f.level not in ('error', 'warning') or '' in (f.title, f.control, f.object, f.detail, f.remediation) or f.control !~ 'HIPAA|SOC|ISO|GDPR'), 0::bigint, 'each says what, which control, and what to do');
select * from finish();
rollback;
