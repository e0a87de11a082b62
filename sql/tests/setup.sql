-- What the cases need, committed once into a database that is a test's own: pgTAP and a few helpers, each in
-- a schema that no product object refers to, and the partitions of the months around now.
-- reviewed by: whoever reviews the cases
--
-- Run as a superuser. Helpers that look behind row-level security run with the superuser's rights, so that a
-- case can go on as the role that it is about.

create schema tap;
create extension pgtap with schema tap;
grant usage on schema tap to public;

-- Cases define functions of their own in pg_temp, and attackers are given what an unhardened database gives.
do $$
begin
  execute format('grant temporary on database %I to public', current_database());
end
$$;

create schema testing;
grant usage on schema testing to public;
comment on schema testing is 'Helpers of the pgTAP cases.';

-- A case that appends an event must not wait for another that makes the month.
select custody.ensure_audit_partitions(now() - interval '1 month', now() + interval '1 month');
select custody_data.ensure_access_partitions(now(), now() + interval '1 month');

-- Keys of the cases. Cases are text that psql sends, so a key that is bound is bound by dollar, and the text that
-- pg_stat_activity shows must name a parameter: hence the $1 in comments of cases that unlock.
create function testing.kek(p_tenant text, p_version integer default 1) returns bytea
language sql
immutable
return sha512(convert_to('key of ' || p_tenant || ' ' || p_version, 'UTF8'));

-- Tenants are named after the case that has them: cases run side by side. Each has a key unless the case is about keys.
create function testing.tenant(p_tenant text, p_with_key boolean default true) returns void
language sql
security definer
begin atomic
  insert into custody_data.tenants (tenant_id, name) values (p_tenant, p_tenant);
  insert into custody_keys.key_encryption_keys (tenant_id, kek_version, reference, check_value)
  select p_tenant, 1, 'test:1', custody_data.kek_check_value(p_tenant, testing.kek(p_tenant)) where p_with_key;
end;

create function testing.unlock(p_tenant text, p_version integer default 1) returns integer
language plpgsql
as $$
declare
  v_version integer;
begin
  execute 'select custody.unlock($1)' into v_version using testing.kek(p_tenant, p_version);
  return v_version;
end
$$;

create function testing.has_key(p_tenant text) returns boolean
language sql
security definer
return exists (select from custody_keys.key_encryption_keys k where k.tenant_id = p_tenant);

-- The context of a case, unlocked where its role may and its tenant has a key. The case has a $1 in a comment.
create function testing.enter(p_tenant text, p_actor text, p_purpose text default null, p_subject text default null) returns void
language plpgsql
as $$
begin
  perform custody.set_context(p_tenant, p_actor, p_purpose, p_subject);
  if has_function_privilege('custody.unlock(bytea)', 'execute') and testing.has_key(p_tenant) then
    perform testing.unlock(p_tenant);
  end if;
end
$$;

create function testing.register_kek(p_tenant text, p_version integer default 1) returns integer
language plpgsql
as $$
declare
  v_version integer;
begin
  execute 'select custody.register_kek($1, $2, $3)' into v_version
  using testing.kek(p_tenant, p_version), 'test:' || p_version, case when p_version > 1 then testing.kek(p_tenant, p_version - 1) end;
  return v_version;
end
$$;

-- What the tables take for a sealed value, though no key opens it.
create function testing.any_sealed() returns bytea
language sql
immutable
return '\x01'::bytea || decode(repeat('00', 68), 'hex');

create function testing.identity(p_tenant text, p_user_id text) returns uuid
language sql
security definer
return (select i.identity_id from custody_data.identities i where i.tenant_id = p_tenant and i.user_id = p_user_id);

-- The trail as it is, in the order in which it was written.
create function testing.events(p_tenant text, p_action text default null) returns setof custody_data.audit_logs
language sql
security definer
begin atomic
  select a.* from custody_data.audit_logs a
  where a.tenant_id = p_tenant and (p_action is null or a.action = p_action)
  order by a.recorded_at, a.log_entry_id;
end;

create function testing.last_event(p_tenant text, p_action text) returns custody_data.audit_logs
language sql
security definer
return (select e from testing.events(p_tenant, p_action) e order by e.recorded_at desc, e.log_entry_id desc limit 1);

create function testing.rows_of(p_tenant text, p_table text) returns bigint
language plpgsql
security definer
as $$
declare
  v_rows bigint;
begin
  execute format('select count(*) from custody_data.%I t where t.tenant_id = $1', p_table) into v_rows using p_tenant;
  return v_rows;
end
$$;

-- A request as an earlier transaction left it: erase_subject wants it committed, and a case is one transaction.
create function testing.request(p_tenant text, p_user_id text, p_kind text default 'erasure') returns uuid
language plpgsql
security definer
as $$
declare
  v_request_id uuid;
begin
  insert into custody_data.requests (tenant_id, kind, identity_id, requested_by, xid)
  select i.tenant_id, p_kind, i.identity_id, i.identity_id, '3'
  from custody_data.identities i
  where i.tenant_id = p_tenant and i.user_id = p_user_id
  returning request_id into strict v_request_id;
  return v_request_id;
end
$$;

-- What becomes of a statement under a role: ok or the SQLSTATE. Nothing of it stays.
create function testing.attempt(p_role text, p_sql text) returns text
language plpgsql
as $$
begin
  perform pg_catalog.set_config('role', p_role, true);
  execute p_sql;
  raise exception using errcode = 'T0000';
exception when others then
  return case sqlstate when 'T0000' then 'ok' else sqlstate end;
end
$$;

-- The statement is refused with this SQLSTATE; one of class PC says what to do about it.
create function testing.refuses(p_sql text, p_sqlstate text, p_description text) returns text
language plpgsql
as $$
declare
  v_sqlstate text := 'none';
  v_message text := 'the statement ran';
  v_hint text := '';
begin
  begin
    execute p_sql;
  exception when others then
    get stacked diagnostics v_sqlstate = returned_sqlstate, v_message = message_text, v_hint = pg_exception_hint;
  end;
  if v_sqlstate <> p_sqlstate then
    return fail(p_description) || E'\n' || diag(format('wanted %s, got %s: %s', p_sqlstate, v_sqlstate, v_message));
  elsif p_sqlstate like 'PC%' and v_hint = '' then
    return fail(p_description) || E'\n' || diag(format('%s without a hint: %s', v_sqlstate, v_message));
  end if;
  return pass(p_description);
end
$$;

-- A call of a function with every argument null, or each the same awkward value of its type.
create function testing.call_of(p_function regprocedure, p_values jsonb default '{}') returns text
language sql
stable
begin atomic
  select format('select %s.%I(%s)', p.pronamespace::regnamespace, p.proname, (
    select string_agg(format('%L::%s', p_values ->> format_type(a.type, null), format_type(a.type, null)), ', ' order by a.n)
    from unnest(p.proargtypes::oid[]) with ordinality a (type, n)))
  from pg_proc p where p.oid = p_function;
end;

-- Every table has rows of the tenant, each written the way it is written.
create function testing.populate(p_tenant text, p_user_id text default 'ada') returns void
language plpgsql
security definer
as $$
declare
  v_request_id uuid;
  v_import_id constant uuid := gen_random_uuid();
  v_restore_id uuid;
begin
  perform testing.enter(p_tenant, 'clerk', 'populate');
  perform custody.put_profile(p_user_id, jsonb_build_object('full_name', 'Ada of ' || p_tenant, 'email', 'ada@' || p_tenant || '.example'));
  perform custody.put_preferences(p_user_id, '{"theme": "dark"}');
  perform custody.record_consent(p_user_id, 'newsletter', true, '2026-01');
  perform custody.save_conversation(p_user_id, 'first', jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'hello from ' || p_tenant)));
  perform custody.record_audit_event('account.login', 'account', p_user_id, p_log_entry_id => gen_random_uuid(), p_personal => '{"source_ip": "192.0.2.1"}');
  perform custody.register_action(p_tenant || '.act', '{}', 'an action');
  perform custody.register_resource_type(p_tenant || '.thing', 'a thing');
  perform custody.set_retention_policy('conversations', interval '1 year', 'contract');
  perform custody.register_holder('crm', null, 'a CRM');
  perform custody.place_hold(jsonb_build_object('user_id', p_user_id), 'case 1', 'litigation');
  v_request_id := custody.request_erasure(p_user_id, 'asked for');
  insert into custody_data.erasure_certificates (tenant_id, request_id, identity_id, certificate)
  values (p_tenant, v_request_id, testing.identity(p_tenant, p_user_id), '{}');
  insert into custody_data.stored_certificates (tenant_id, request_id, object_key) values (p_tenant, v_request_id, 'erasure-certificates/x');
  insert into custody_data.erased_user_ids (tenant_id, request_id, user_id_index) values (p_tenant, v_request_id, decode(repeat('00', 36), 'hex'));
  insert into custody_data.erasure_notices (tenant_id, request_id, holder, user_id) values (p_tenant, v_request_id, 'crm', p_user_id);
  insert into custody_data.logins (tenant_id, role_name, mode, ended_at) values (p_tenant, 'nobody', 'retired', now());
  perform custody.finish_run(custody.start_run('import'), 'succeeded');
  perform custody.finish_import(v_import_id, 'user_profiles', sha256('x'), 1, 1, 0, 0);
  insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, login, identity_id, session_id)
  values (p_tenant, now(), 1, 1, now(), 'read', 'custody_app', testing.identity(p_tenant, p_user_id), 'x.y');
  insert into custody_data.actor_settings values (p_tenant, testing.identity(p_tenant, p_user_id), 'UTC', '08:00', '16:00', '{1}');
  insert into custody_data.access_baselines values (p_tenant, testing.identity(p_tenant, p_user_id), 'custody_data.user_profiles', '2020-01-01', 1, 1);
  insert into custody_data.canaries (tenant_id, identity_id, planted_by) values (p_tenant, gen_random_uuid(), testing.identity(p_tenant, 'clerk'));
  insert into custody_data.alerts (tenant_id, rule, severity, object_key, first_at, last_at, recorded_to, events, detail, closed_at, closed_by, close_reason, state)
  values (p_tenant, 'bulk_rows', 'high', 'nobody', now(), now(), now(), 1, '{}', now(), testing.identity(p_tenant, 'clerk'), 'populated', 'closed');
  v_restore_id := custody.begin_restore(now() - interval '1 year', now() + interval '1 day', p_reason => 'an enquiry');
  insert into custody_data.restored_events (tenant_id, restore_id, leaf_index, log_entry_id, occurred_at, recorded_at, actor_id, subject_id, action,
    resource_type, resource_id, result, metadata, personal, db_role, xid, entry, restored_from, expires_at)
  select a.tenant_id, v_restore_id, 1, a.log_entry_id, a.occurred_at, a.recorded_at, a.actor_id, a.subject_id, a.action,
    a.resource_type, a.resource_id, a.result, a.metadata, a.personal, a.db_role, a.xid, custody.audit_entry(a), 'audit-archives/x', now() + interval '1 day'
  from testing.last_event(p_tenant, 'account.login') a;
  perform set_config('custody.tenant', '', true), set_config('custody.actor', '', true), set_config('custody.actor_id', '', true),
    set_config('custody.purpose', '', true), set_config('custody.kek', '', true), set_config('custody.kek_version', '', true);
end
$$;

-- Rows of the tables that the whole database shares.
create function testing.populate_shared() returns void
language sql
security definer
begin atomic
  insert into custody_data.incarnations (system_identifier, timeline) values (1, 1);
  insert into custody_data.ledger_tiles (level, tile_index, hashes) values (7, 0, decode(repeat('00', 32), 'hex'));
  insert into custody_data.ledger_entries (tile_index, xids, entry_ids, days, first_xid, last_xid, first_occurred_at, last_occurred_at)
  values (1000000000, decode(repeat('00', 8), 'hex'), decode(repeat('00', 16), 'hex'), date_send('2020-01-01'), 0, 0, '2020-01-01', '2020-01-01');
  insert into custody_data.ledger_stretches (first_leaf, kind, incarnation_id) values (1000000000000, 'lost', gen_random_uuid());
  insert into custody_data.ledger_heads default values on conflict do nothing;
  insert into custody_data.ledger_checkpoints (number, tree_size, root_hash, note, object_key, anchored_at)
  values (1000000000, 0, sha256(''), '', '', now());
  insert into custody_data.log_sources (source, format, file_name, file_offset, file_head, file_tail, state)
  values ('server', 'jsonlog', 'x.json', 0, sha256(''), sha256(''), '');
  insert into custody_data.log_batches (number, source, file_name, file_from, file_to, object_key, manifest_key, sha256, compressed_sha256, manifest_sha256, previous_sha256,
    lines, bytes, stored_bytes, recorded_at, expires_at)
  values (1000000000, 'server', 'x.json', 0, 1, 'x', 'y', sha256(''), sha256(''), sha256(''), sha256(''), 1, 1, 1, now(), now());
  insert into custody_data.log_findings (source, kind) values ('server', 'gap');
  insert into custody_data.log_sinks (sink) values ('siem');
  insert into custody_data.log_spool (number, compressed) values (1000000000, '');
  insert into custody_data.detection_heads default values on conflict do nothing;
  insert into custody_data.detection_networks (role_name, networks) values ('nobody', '{192.0.2.0/24}');
  insert into custody_data.archive_heads default values on conflict do nothing;
  insert into custody_data.archive_segments (day, part, leaves, events) values ('2020-01-01', 1, '{[256000000000,256000000001)}', 1);
  insert into custody_data.partition_drops (partition_name, range_from, range_to, rows_dropped)
  values ('audit_logs_2020_01', '2020-01-01 00:00:00+00', '2020-02-01 00:00:00+00', 1);
end;

-- Tables of the schema, partitions apart.
create view testing.tables as
select c.relname::text as name, c.oid
from pg_class c
where c.relnamespace = 'custody_data'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition;

create view testing.partitions as
select c.relname::text as name, c.oid, i.inhparent::regclass as parent
from pg_class c
join pg_inherits i on i.inhrelid = c.oid
where c.relnamespace = 'custody_data'::regnamespace and c.relispartition and c.relkind = 'r';

create view testing.functions as
select p.oid::regprocedure as signature, p.oid, p.pronamespace::regnamespace::text as schema, p.proname::text as name, p.prosecdef, p.prorettype
from pg_proc p
where p.pronamespace in ('custody'::regnamespace, 'custody_data'::regnamespace);

create view testing.groups (name) as
values ('custody_readonly'), ('custody_readwrite'), ('custody_worker'), ('custody_privacy'), ('custody_auditor'), ('custody_backup');

create view testing.logins (name) as
values ('custody_reports'), ('custody_app'), ('custody_runner'), ('custody_dpo'), ('custody_audit'), ('custody_dump');

grant select on all tables in schema testing to public;
