-- Nobody gives the transaction, the time of recording, the login or the import of an event, and nobody else's
-- name as the actor.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('server_columns');
create function pg_temp.append(p_column text default null, p_value text default null) returns text language sql as $$
  select format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action%s) values (%L, gen_random_uuid(), now(), custody.current_actor_id(), %L%s)',
    ', ' || p_column, 'server_columns', 'account.login', ', ' || quote_literal(p_value));
$$;
set local session authorization custody_app;
select enter('server_columns', 'clerk') /* $1 */;
select custody.put_preferences('ada', '{}');

select lives_ok(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values (%L, gen_random_uuid(), now(), %L, %L)',
  'server_columns', custody.current_actor_id(), 'account.login'), 'an event by the application''s own right');
select refuses(pg_temp.append('xid', '5'), '42501', 'with a transaction of one''s choice');
select refuses(pg_temp.append('recorded_at', '2026-01-01'), '42501', 'with a time of recording');
select refuses(pg_temp.append('db_role', 'custody_dpo'), '42501', 'with another login');
select refuses(pg_temp.append('import_id', '11111111-1111-4111-8111-111111111111'), '42501', 'with an import');
select refuses(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values (%L, gen_random_uuid(), now(), %L, %L)',
  'server_columns', identity('server_columns', 'ada'), 'account.login'), '42501', 'in somebody else''s name');
select refuses(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values (%L, gen_random_uuid(), now(), %L, %L)',
  'system', custody.current_actor_id(), 'account.login'), '42501', 'for another tenant');
select refuses(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values (%L, gen_random_uuid(), now() - interval ''25 hours'', %L, %L)',
  'server_columns', custody.current_actor_id(), 'account.login'), '42501', 'of more than a day ago');
select refuses(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values (%L, gen_random_uuid(), now() + interval ''25 hours'', %L, %L)',
  'server_columns', custody.current_actor_id(), 'account.login'), '42501', 'of more than a day ahead');
set local session authorization custody_dpo;
select enter('server_columns', 'clerk') /* $1 */;
select refuses(pg_temp.append('import_id', '11111111-1111-4111-8111-111111111111'), '42501', 'a privacy officer gives no import either');

set local session authorization custody_runner;
select enter('server_columns', 'clerk') /* $1 */;
select lives_ok(pg_temp.append('import_id', '11111111-1111-4111-8111-111111111111'), 'the worker gives an import');
select refuses(pg_temp.append('xid', '5'), '42501', 'but no transaction');
select refuses(pg_temp.append('recorded_at', '2026-01-01'), '42501', 'no time of recording');
select refuses(pg_temp.append('db_role', 'custody_dpo'), '42501', 'and no login');
select lives_ok(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id) values (%L, gen_random_uuid(), now(), %L, %L, gen_random_uuid())',
  'server_columns', identity('server_columns', 'ada'), 'account.login'), 'an import brings events of others');
select refuses(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, import_id) values (%L, gen_random_uuid(), now(), %L, %L, gen_random_uuid())',
  'system', identity('server_columns', 'ada'), 'account.login'), '42501', 'of its own tenant');

-- The same holds for consents: their transaction and time of recording are the server's.
set local session authorization custody_app;
select enter('server_columns', 'clerk') /* $1 */;
select refuses(format('insert into custody_data.consent_records (tenant_id, identity_id, purpose, granted, policy_version, legal_basis, occurred_at, %s) values (%L, %L, %L, true, %L, %L, now(), %s)',
  c, 'server_columns', identity('server_columns', 'ada'), 'mail', '1', 'consent', v), '42501', format('a consent with its own %s', c))
from (values ('xid', '''5'''), ('recorded_at', 'now()')) x (c, v);
select refuses(format('update custody_data.%I set %I = %s', t, c, v), '42501', format('%s of %s', c, t))
from (values ('user_profiles', 'version', '7'), ('user_profiles', 'created_at', 'now()'), ('user_profiles', 'updated_at', 'now()'), ('user_profiles', 'identity_id', 'gen_random_uuid()'),
  ('user_profiles', 'tenant_id', '''x'''), ('user_preferences', 'version', '7'), ('conversations', 'version', '7'), ('conversations', 'identity_id', 'gen_random_uuid()'),
  ('conversations', 'conversation_id', '''x''')) x (t, c, v);
select * from finish();
rollback;
