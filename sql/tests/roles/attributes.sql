-- Group roles are nobody's login and have no power of their own; who is a member of whom.
begin;
set local search_path = tap, testing;
select no_plan();
select row_eq(format('select r.rolcanlogin, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolreplication from pg_roles r where r.rolname = %L', g),
  row (false, false, false, false, false, false), format('%s is a group and no more', g))
from unnest(array['custody_owner', 'custody_readonly', 'custody_readwrite', 'custody_admin', 'custody_worker', 'custody_privacy', 'custody_auditor', 'custody_backup']) g;
select row_eq(format('select r.rolcanlogin, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolreplication from pg_roles r where r.rolname = %L', l.name),
  row (true, false, false, false, false, false), format('%s is a login and no more', l.name)) from logins l;
select is(pg_has_role(l.name, g, 'member'), format('%s %s', l.name, g) in ('custody_app custody_readwrite', 'custody_reports custody_readonly', 'custody_runner custody_worker', 'custody_runner custody_privacy',
    'custody_dpo custody_privacy', 'custody_audit custody_auditor', 'custody_dump custody_backup'), format('%s as a member of %s', l.name, g))
from logins l, unnest(array['custody_owner', 'custody_readonly', 'custody_readwrite', 'custody_admin', 'custody_worker', 'custody_privacy', 'custody_auditor', 'custody_backup', 'pg_read_all_data', 'pg_write_all_data']) g;
set local session authorization custody_app;
select refuses(format('set local role %I', r), '42501', format('an application does not become %s', r)) from unnest(array['custody_owner', 'custody_admin', 'custody_migrator', 'custody_privacy', 'custody_dpo']) r;
set local session authorization custody_runner;
select refuses(format('set local role %I', r), '42501', format('the runner does not become %s', r)) from unnest(array['custody_owner', 'custody_admin', 'custody_migrator', 'custody_auditor', 'custody_backup']) r;
reset session authorization;
select isnt(shobj_description(r.oid, 'pg_authid'), null, format('%s has a comment', r.rolname)) from pg_roles r
where r.rolname in ('custody_owner', 'custody_readonly', 'custody_readwrite', 'custody_admin', 'custody_worker', 'custody_privacy', 'custody_auditor', 'custody_backup');
select * from finish();
rollback;
