-- What the owner or a superuser does to the schema is found: each finding with an example that makes it, and with
-- what mends it. A clean database has none.
begin;
set local search_path = tap, testing;
set local client_min_messages = warning;
select no_plan();
-- whether the migrator's login is open is the stack's affair
create function pg_temp.found() returns text language sql as $$
  select coalesce(string_agg(format('%s %s', f.id, f.object), ', ' order by f.id, f.object), 'nothing') from custody_check.findings f where f.id <> 'migrator-open';
$$;
create function pg_temp.breaks(p_ddl text, p_found text, p_mend text default null) returns setof text language plpgsql as $$
begin
  execute p_ddl;
  return next is(pg_temp.found(), p_found, regexp_replace(p_ddl, '\s+', ' ', 'g'));
  if p_mend is not null then
    execute p_mend;
    return next is(pg_temp.found(), 'nothing', p_mend);
  end if;
exception when others then
  return next fail(format('%s: %s', p_ddl, sqlerrm));
end
$$;
-- Where the mend would be to write a definition anew, the example is undone.
create function pg_temp.finds(p_ddl text, p_found text) returns text language plpgsql as $$
declare
  v_found text;
begin
  execute p_ddl;
  v_found := pg_temp.found();
  raise exception using errcode = 'T0000';
exception when sqlstate 'T0000' then
  return is(v_found, p_found, regexp_replace(p_ddl, '\s+', ' ', 'g'));
end
$$;
select is(pg_temp.found(), 'nothing', 'a clean database has no findings');
select set_config('testing.month', 'audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM'), true);
create function pg_temp.month(p_text text) returns text language sql as $$ select replace(p_text, 'MONTH', current_setting('testing.month')) $$;

-- Keys in the server's log.
select pg_temp.breaks('set local pgaudit.log_parameter = on', 'key-exposed this session', 'set local pgaudit.log_parameter = off');
select pg_temp.breaks('alter role custody_app set log_parameter_max_length_on_error = -1', 'key-exposed custody_app', 'alter role custody_app reset log_parameter_max_length_on_error');
select pg_temp.breaks('alter role custody_app set debug_print_plan = on', 'key-exposed custody_app', 'alter role custody_app reset debug_print_plan');
select pg_temp.breaks('alter role all set pgaudit.log_parameter = on', 'key-exposed every login', 'alter role all reset pgaudit.log_parameter');
select pg_temp.breaks('alter role custody_app set log_parameter_max_length = 0', 'nothing', 'alter role custody_app reset log_parameter_max_length');
select pg_temp.finds('drop trigger a_reject_truncate on custody_keys.wrapped_keys', 'changed trigger custody_keys.wrapped_keys.a_reject_truncate, guard-missing wrapped_keys');

-- Row-level security.
select pg_temp.breaks('alter table custody_data.user_profiles no force row level security', 'changed relation custody_data.user_profiles, rls-forced user_profiles', 'alter table custody_data.user_profiles force row level security');
select pg_temp.breaks('alter table custody_data.requests disable row level security', 'changed relation custody_data.requests, rls-forced requests', 'alter table custody_data.requests enable row level security');
select pg_temp.breaks(pg_temp.month('alter table custody_data.MONTH disable row level security'), pg_temp.month('rls-forced MONTH'), pg_temp.month('alter table custody_data.MONTH enable row level security'));
select pg_temp.breaks('create table custody_data.notes (tenant_id text)', 'changed column custody_data.notes.tenant_id, changed relation custody_data.notes, owner notes, rls-forced notes', 'drop table custody_data.notes');
select pg_temp.breaks('create policy evil on custody_data.user_profiles using (true)', 'changed policy custody_data.user_profiles.evil', 'drop policy evil on custody_data.user_profiles');
select pg_temp.finds('alter policy user_profiles_all_all on custody_data.user_profiles using (true)', 'changed policy custody_data.user_profiles.user_profiles_all_all');
select pg_temp.finds('drop policy identities_subject_all on custody_data.identities', 'changed policy custody_data.identities.identities_subject_all');
select pg_temp.breaks('alter policy user_profiles_backup_select on custody_data.user_profiles to custody_readonly', 'changed policy custody_data.user_profiles.user_profiles_backup_select', 'alter policy user_profiles_backup_select on custody_data.user_profiles to custody_backup');
select pg_temp.breaks(pg_temp.month('create policy evil on custody_data.MONTH using (true)'), pg_temp.month('partition-policy MONTH'), pg_temp.month('drop policy evil on custody_data.MONTH'));
select pg_temp.breaks(pg_temp.month('drop policy MONTH_backup_select on custody_data.MONTH'), pg_temp.month('backup-blind MONTH'), pg_temp.month('create policy MONTH_backup_select on custody_data.MONTH for select to custody_backup using (true)'));
-- Guards.
select pg_temp.breaks('alter table custody_data.audit_logs disable trigger a_reject_mutation', 'changed trigger custody_data.audit_logs.a_reject_mutation, guard-disabled audit_logs', 'alter table custody_data.audit_logs enable always trigger a_reject_mutation');
select pg_temp.breaks('alter table custody_data.consent_records enable trigger a_reject_mutation', 'changed trigger custody_data.consent_records.a_reject_mutation, guard-disabled consent_records', 'alter table custody_data.consent_records enable always trigger a_reject_mutation');
select pg_temp.breaks(pg_temp.month('alter table custody_data.MONTH disable trigger all'), pg_temp.month('guard-disabled MONTH, guard-disabled MONTH'), pg_temp.month('alter table custody_data.MONTH enable always trigger a_reject_mutation, enable always trigger a_reject_row_mutation'));
select pg_temp.finds('drop trigger a_reject_mutation on custody_data.imports', 'changed trigger custody_data.imports.a_reject_mutation, guard-missing imports');
select pg_temp.finds('drop trigger a_reject_delete on custody_data.legal_holds', 'changed trigger custody_data.legal_holds.a_reject_delete, guard-missing legal_holds');
select pg_temp.finds('drop trigger z_audit_update on custody_data.user_profiles', 'changed trigger custody_data.user_profiles.z_audit_update, guard-missing user_profiles');
select pg_temp.finds('drop trigger m_touch_row on custody_data.user_profiles', 'changed trigger custody_data.user_profiles.m_touch_row');
select pg_temp.finds(pg_temp.month('drop trigger a_reject_mutation on custody_data.MONTH'), pg_temp.month('guard-missing MONTH'));
select pg_temp.finds(pg_temp.month('create or replace trigger a_reject_mutation before update or delete or truncate on custody_data.MONTH for each statement execute function custody_data.tg_touch_profile(); alter table custody_data.MONTH enable always trigger a_reject_mutation'),
  pg_temp.month('guard-replaced MONTH'));
select pg_temp.finds(pg_temp.month('create or replace trigger a_reject_mutation before delete on custody_data.MONTH for each statement execute function custody_data.tg_reject_mutation(); alter table custody_data.MONTH enable always trigger a_reject_mutation'),
  pg_temp.month('guard-replaced MONTH'));
select pg_temp.finds('create or replace trigger a_reject_mutation before update or delete or truncate on custody_data.imports for each statement when (false) execute function custody_data.tg_reject_mutation(); alter table custody_data.imports enable always trigger a_reject_mutation',
  'changed trigger custody_data.imports.a_reject_mutation');
select pg_temp.finds('create function public.evil() returns trigger language plpgsql as $x$ begin return null; end $x$; create trigger evil before insert on custody_data.audit_logs for each row execute function public.evil();
  alter table custody_data.audit_logs enable always trigger evil', pg_temp.month('changed trigger custody_data.audit_logs.evil, guard-replaced audit_logs') || (select string_agg(', guard-replaced ' || p.name, '' order by p.name) from partitions p where p.parent = 'custody_data.audit_logs'::regclass));
select pg_temp.finds('create or replace function custody_data.tg_reject_mutation() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $x$ begin return null; end $x$', 'changed function custody_data.tg_reject_mutation()');
-- The trail's months.
select pg_temp.breaks(pg_temp.month('alter table custody_data.audit_logs detach partition custody_data.MONTH'), pg_temp.month('guard-missing MONTH, partition-detached MONTH'),
  (select pg_temp.month('alter table custody_data.audit_logs attach partition custody_data.MONTH ') || pg_get_expr(c.relpartbound, c.oid) from pg_class c where c.oid = pg_temp.month('custody_data.MONTH')::regclass));
select pg_temp.breaks('create table custody_data.elsewhere partition of custody_data.audit_logs for values from (''1980-01-01'') to (''1980-02-01''); alter table custody_data.elsewhere owner to custody_owner;
    alter table custody_data.elsewhere enable row level security, force row level security; create policy elsewhere_backup_select on custody_data.elsewhere for select to custody_backup using (true); grant select on custody_data.elsewhere to custody_backup',
  'partition-foreign custody_data.elsewhere', 'drop table custody_data.elsewhere');
select pg_temp.breaks(pg_temp.month('create rule evil as on insert to custody_data.MONTH do instead nothing'), pg_temp.month('partition-rule MONTH'), pg_temp.month('drop rule evil on custody_data.MONTH'));
select pg_temp.breaks('create rule evil as on insert to custody_data.audit_logs do instead nothing', 'changed rule custody_data.audit_logs.evil', 'drop rule evil on custody_data.audit_logs');
select pg_temp.breaks('do $x$ begin execute format(''drop table custody_data.%I'', ''audit_logs_'' || to_char((now() + interval ''1 month'') at time zone ''UTC'', ''YYYY_MM'')); end $x$', 'partition-ahead audit_logs', 'select custody.ensure_audit_partitions(now(), now() + interval ''1 month'')');
-- Owners and rights.
select pg_temp.breaks('alter table custody_data.holders owner to custody_admin', 'changed relation custody_data.holders, owner holders', 'alter table custody_data.holders owner to custody_owner');
select pg_temp.breaks('alter function custody.get_certificate(uuid) owner to custody_admin', 'changed function custody.get_certificate(uuid), owner custody.get_certificate(uuid)', 'alter function custody.get_certificate(uuid) owner to custody_owner');
-- Logins whose context is checked.
select pg_temp.breaks($$insert into custody_data.logins (tenant_id, role_name, mode) values ('system', 'nobody at all', 'token')$$, 'login-gone nobody at all', $$update custody_data.logins set ended_at = now() where role_name = 'nobody at all'$$);
select pg_temp.breaks($$create or replace function custody_data.checked_logins() returns name[] language sql stable parallel safe return '{custody_app}'::name[]$$, 'logins-unlisted custody_data.checked_logins()',
  $$update custody_data.logins set mode = mode$$);
select pg_temp.breaks('alter role custody_owner login', 'owner-login custody_owner', 'alter role custody_owner nologin');
select pg_temp.breaks('alter role custody_app bypassrls', 'bypassrls custody_app', 'alter role custody_app nobypassrls');
select pg_temp.breaks('grant select on custody_data.holders to public', 'changed relation custody_data.holders, public-grant holders', 'revoke select on custody_data.holders from public');
select pg_temp.breaks('grant delete on custody_data.audit_logs to custody_readwrite', 'changed relation custody_data.audit_logs', 'revoke delete on custody_data.audit_logs from custody_readwrite');
select pg_temp.breaks('grant update (evidence) on custody_data.consent_records to custody_readwrite', 'changed column custody_data.consent_records.evidence', 'revoke update (evidence) on custody_data.consent_records from custody_readwrite');
select pg_temp.breaks(pg_temp.month('grant select on custody_data.MONTH to custody_readonly'), pg_temp.month('partition-grant MONTH'), pg_temp.month('revoke select on custody_data.MONTH from custody_readonly'));
select pg_temp.breaks(pg_temp.month('revoke select on custody_data.MONTH from custody_backup'), pg_temp.month('backup-blind MONTH'), pg_temp.month('grant select on custody_data.MONTH to custody_backup'));
select pg_temp.breaks('grant execute on function custody.erase_subject(uuid, text) to public', 'changed function custody.erase_subject(uuid, text), public-execute custody.erase_subject(uuid,text)', 'revoke execute on function custody.erase_subject(uuid, text) from public');
select pg_temp.breaks('grant execute on function custody.erase_subject(uuid, text) to custody_readwrite', 'changed function custody.erase_subject(uuid, text)', 'revoke execute on function custody.erase_subject(uuid, text) from custody_readwrite');
select pg_temp.breaks('grant usage on schema custody_keys to custody_readwrite', 'changed schema custody_keys', 'revoke usage on schema custody_keys from custody_readwrite');
-- Functions, views and the rest.
select pg_temp.breaks('alter function custody.set_context(text, text, text, text) set search_path = public', 'changed function custody.set_context(text, text, text, text), search-path custody.set_context(text,text,text,text)',
  'alter function custody.set_context(text, text, text, text) set search_path = pg_catalog, pg_temp');
select pg_temp.breaks('alter function custody.get_profile(text) security definer', 'changed function custody.get_profile(text)', 'alter function custody.get_profile(text) security invoker');
select pg_temp.finds('create or replace function custody.current_tenant() returns text language sql stable parallel safe return ''acme''::text', 'changed function custody.current_tenant()');
select pg_temp.breaks('create function custody.evil() returns int language sql set search_path = pg_catalog, pg_temp as ''select 1''; alter function custody.evil() owner to custody_owner; revoke all on function custody.evil() from public', 'changed function custody.evil()', 'drop function custody.evil()');
select pg_temp.breaks('alter view custody.consents set (security_invoker = false)', 'changed relation custody.consents, view-invoker custody.consents', 'alter view custody.consents set (security_invoker = true)');
select pg_temp.finds('create or replace view custody.conversation_summaries with (security_invoker = true) as select c.tenant_id, c.identity_id, c.conversation_id, null::text as title, c.message_count, c.started_at, c.last_message_at, c.version, c.updated_at from custody_data.conversations c where c.version > 0',
  'changed relation custody.conversation_summaries');
select pg_temp.breaks('alter table custody_data.user_profiles add column shoe_size int', 'changed column custody_data.user_profiles.shoe_size', 'alter table custody_data.user_profiles drop column shoe_size');
select pg_temp.breaks('alter table custody_data.audit_logs alter column xid drop default', 'changed column custody_data.audit_logs.xid', 'alter table custody_data.audit_logs alter column xid set default pg_current_xact_id()');
select pg_temp.finds('alter table custody_data.identities drop constraint identities_kind_is_known_check', 'changed constraint custody_data.identities.identities_kind_is_known_check');
select pg_temp.breaks('create table public.child () inherits (custody_data.user_profiles)', 'changed child custody_data.user_profiles.public.child', 'drop table public.child');
select pg_temp.breaks('create index evil_idx on custody_data.holders (description)', 'changed index custody_data.holders.evil_idx', 'drop index custody_data.evil_idx');
select pg_temp.finds('comment on column custody_data.user_profiles.phone is null', 'changed column custody_data.user_profiles.phone, unclassified user_profiles.phone');
select pg_temp.finds('create or replace function custody_data.baseline() returns jsonb language sql immutable set search_path = pg_catalog, pg_temp as $x$ select ''{"postgres": 9, "objects": {}}''::jsonb $x$', 'baseline-old custody_data.baseline()');
select is(pg_temp.found(), 'nothing', 'in the end all is as it was');

-- The answer is the same whoever asks, and from wherever.
select is(attempt(g, 'select * from custody_check.findings'), case when g in ('custody_auditor', 'custody_worker', 'custody_privacy') then 'ok' else '42501' end, format('%s asks for findings', g)) from (select name as g from groups) g;
set local search_path = custody, custody_data, custody_check, tap, testing;
select is((select string_agg(f.id || ' ' || f.object, ', ') from custody_check.findings f where f.id <> 'migrator-open'), null, 'from a search_path with our schemas');
set local session authorization custody_audit;
select is((select string_agg(f.id || ' ' || f.object, ', ') from custody_check.findings f where f.id <> 'migrator-open'), null, 'by the auditor');
reset session authorization;
set local search_path = tap, testing;
select is((select count(*) from custody_check.findings f where f.level not in ('error', 'warning') or '' in (f.title, f.control, f.object, f.detail, f.remediation) or f.control !~ 'HIPAA|SOC|ISO|GDPR'), 0::bigint, 'each says what, which control, and what to do');
-- Roles belong to the cluster: logins of other tests, which are named after their databases, come and go.
alter role custody_migrator login;
select is((select string_agg(f.object, ', ') from custody_check.findings f where f.id = 'migrator-open' and f.object !~ '^sql_test_'), 'custody_migrator', 'an open login of the migrator is a warning');
alter role custody_migrator nologin;
select is((select string_agg(f.object, ', ') from custody_check.findings f where f.id = 'migrator-open' and f.object !~ '^sql_test_'), null, 'a closed one is none');
select * from finish();
rollback;
