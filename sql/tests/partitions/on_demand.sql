-- A missing month is made when an event needs it, apart from the trail, with its guards, and attached.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('on_demand');
set local session authorization custody_runner;
select enter('on_demand', 'runner') /* $1 */;

select is(custody.ensure_audit_partitions('2019-11-15 00:00:00+00', '2020-02-01 00:00:00+00'), 4, 'it returns how many it made, both ends included');
select is(custody.ensure_audit_partitions('2019-11-15 00:00:00+00', '2020-02-01 00:00:00+00'), 0, 'none where all are there');
select is(custody.ensure_audit_partitions('2020-02-29 23:59:59+00', '2020-03-01 00:00:00+00'), 1, 'only the one that is missing');
select results_eq($$select c.relname::text collate "default", pg_get_expr(c.relpartbound, c.oid) collate "default" from pg_class c where c.relname in ('audit_logs_2019_12', 'audit_logs_2020_02') order by 1$$,
  $$values ('audit_logs_2019_12'::text, 'FOR VALUES FROM (''2019-12-01 00:00:00+00'') TO (''2020-01-01 00:00:00+00'')'::text),
    ('audit_logs_2020_02', 'FOR VALUES FROM (''2020-02-01 00:00:00+00'') TO (''2020-03-01 00:00:00+00'')')$$, 'each is a month');
select is((last_event('on_demand', 'partition.create')).metadata, '{"partitions": ["audit_logs_2020_03"]}', 'the making is an event');
select is((select count(*) from events('on_demand', 'partition.create')), 2::bigint, 'where something was made');

-- What every new month has.
select results_eq($$select c.relrowsecurity, c.relforcerowsecurity, pg_get_userbyid(c.relowner)::text collate "default" from pg_class c where c.oid = 'custody_data.audit_logs_2020_01'::regclass$$,
  $$values (true, true, 'custody_owner'::text)$$, 'row-level security, enabled and forced, and the owner');
select results_eq($$select t.tgname::text collate "default", t.tgenabled, t.tgtype from pg_trigger t where t.tgrelid = 'custody_data.audit_logs_2020_01'::regclass and not t.tgisinternal order by 1$$,
  $$values ('a_reject_mutation'::text, 'A'::"char", 58::smallint), ('a_reject_row_mutation', 'A', 27::smallint)$$, 'the guards before update, delete and truncate of statements, before update and delete of rows, enabled always');
select results_eq($$select p.policyname::text collate "default", p.cmd collate "default", p.roles::text[] collate "default" from pg_policies p where p.tablename = 'audit_logs_2020_01'$$,
  $$values ('audit_logs_2020_01_backup_select'::text, 'SELECT'::text, '{custody_backup}'::text[])$$, 'the policy for backups');
select results_eq($$select pg_get_userbyid(x.grantee)::text collate "default", x.privilege_type from pg_class c, aclexplode(c.relacl) x where c.oid = 'custody_data.audit_logs_2020_01'::regclass and x.grantee <> c.relowner$$,
  $$values ('custody_backup'::text, 'SELECT'::text)$$, 'a grant to backups alone');
select is((select count(*) from pg_index i where i.indrelid = 'custody_data.audit_logs_2020_01'::regclass), (select count(*) from pg_index i where i.indrelid = 'custody_data.audit_logs'::regclass), 'all indexes');
select is((select count(*) from pg_inherits i join pg_index x on x.indexrelid = i.inhparent where x.indrelid = 'custody_data.audit_logs'::regclass and not exists (
  select from pg_inherits j where j.inhrelid = i.inhrelid and j.inhparent = i.inhparent)), 0::bigint, 'attached to those of the trail');
select isnt(obj_description('custody_data.audit_logs_2020_01'::regclass, 'pg_class'), null, 'and a comment');

-- By those who append.
set local session authorization custody_app;
select enter('on_demand', 'clerk') /* $1 */;
select refuses($$select custody.ensure_audit_partitions('2020-04-01 00:00:00+00', '2020-04-01 00:00:00+00')$$, '42501', 'appenders make no months of their choice');
select lives_ok($$select custody_data.require_partition(now() + interval '23 hours')$$, 'but those of their events');
select refuses($$select custody_data.require_partition(now() + interval '3 months')$$, 'PC009', 'and no others');
set local session authorization custody_reports;
select refuses($$select custody.ensure_audit_partitions(now(), now())$$, '42501', 'readers make none');

set local session authorization custody_runner;
select set_config('custody.tenant', '', true);
select is(custody.ensure_audit_partitions('2018-01-01 00:00:00+00', '2018-01-01 00:00:00+00'), 1, 'it needs no context');
select refuses($$select custody.ensure_audit_partitions(null, now())$$, 'PC009', 'without a beginning');
select refuses($$select custody.ensure_audit_partitions(now(), null)$$, 'PC009', 'without an end');
select refuses($$select custody.ensure_audit_partitions(now(), now() - interval '1 day')$$, 'PC009', 'backwards');
select refuses($$select custody.ensure_audit_partitions('-infinity', now())$$, 'PC009', 'from ever');
select refuses($$select custody.ensure_audit_partitions(now(), 'infinity')$$, 'PC009', 'for ever');
select refuses($$select custody.ensure_audit_partitions('1969-12-31 23:59:59+00', now())$$, 'PC009', 'before 1970');
select refuses($$select custody.ensure_audit_partitions(now(), now() + interval '14 months')$$, 'PC009', 'more than 13 months ahead');
select is((select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'custody_data.audit_logs'::regclass and pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT'), 0::bigint,
  'there is no default partition');
select * from finish();
rollback;
