-- Logins whose context is checked, and the keys that authenticate contexts, tokens and log lines.
-- control: HIPAA 164.312(a)(2)(i), (d); ISO 27001 A.5.16, A.5.17, A.8.5; SOC 2 CC6.1; GDPR Art. 32
-- reviewed by: DBA, security
--
-- A login without a live row here is in free mode: it says itself for whom and by whom it works. The keys are the
-- owner's alone: no role has a policy on them but the owner, so that a dump by custody_backup has none of them.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.logins (
  tenant_id custody_data.tenant_name not null,
  role_name text collate "C" not null,
  mode text collate "C" not null,
  actor_id uuid,
  purposes text[],
  registered_at timestamptz not null default pg_catalog.clock_timestamp(),
  ended_at timestamptz,
  constraint logins_pkey primary key (tenant_id, role_name),
  constraint logins_mode_is_known_check check (mode in ('person', 'token', 'retired')),
  constraint logins_person_has_an_actor_check check ((mode = 'person') = (actor_id is not null)),
  constraint logins_purposes_are_a_persons_check check (purposes is null or mode = 'person'),
  constraint logins_token_is_of_tenant_system_check check (mode <> 'token' or tenant_id = 'system')
);
create index logins_role_name_idx on custody_data.logins (role_name);
comment on table custody_data.logins is 'Logins whose context is checked: a person''s, bound to actor, tenant and purposes; an application''s in token mode; a retired one, which gets none. A login without a live row is in free mode. Rows end and are never deleted.';
comment on column custody_data.logins.tenant_id is 'The person''s tenant; system for token mode, where the token says which.';
comment on column custody_data.logins.role_name is 'The role that logs in. By name, which a restore keeps.';
comment on column custody_data.logins.mode is 'person, token or retired.';
comment on column custody_data.logins.actor_id is 'The identity as which a person''s login acts.';
comment on column custody_data.logins.purposes is 'The only purposes that a person''s login may give; null for any.';
comment on column custody_data.logins.ended_at is 'Since when the row says nothing any more.';

alter table custody_data.logins enable row level security, force row level security;
create policy logins_all_select on custody_data.logins for select to custody_admin, custody_worker, custody_privacy, custody_auditor
  using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
comment on policy logins_all_select on custody_data.logins is 'Who may see: the tenant in context, where rows are its own.';
create policy logins_owner_all on custody_data.logins to custody_owner using (true);
comment on policy logins_owner_all on custody_data.logins is 'The check of a context comes before there is one.';
create policy logins_backup_select on custody_data.logins for select to custody_backup using (true);
comment on policy logins_backup_select on custody_data.logins is 'pg_dump --enable-row-security reads every row.';
grant select on custody_data.logins to custody_admin, custody_worker, custody_privacy, custody_auditor, custody_backup;

create table custody_keys.context_keys (
  tenant_id custody_data.tenant_name not null default 'system',
  kid text collate "C" not null,
  kind text collate "C" not null,
  for_tenant custody_data.tenant_name,
  server text collate "C",
  secret bytea,
  created_at timestamptz not null default pg_catalog.clock_timestamp(),
  retired_at timestamptz,
  constraint context_keys_pkey primary key (tenant_id, kid),
  constraint context_keys_kind_is_known_check check (kind in ('context', 'token', 'line')),
  constraint context_keys_kid_length_is_1_to_128_check check (pg_catalog.char_length(kid) between 1 and 128),
  constraint context_keys_secret_has_32_bytes_check check (pg_catalog.octet_length(secret) >= 32),
  constraint context_keys_live_has_a_secret_check check (retired_at is not null or secret is not null),
  constraint context_keys_retired_has_no_secret_check check (retired_at is null or secret is null or kind = 'line'),
  constraint context_keys_server_is_of_context_keys_check check ((kind = 'context') = (server is not null)),
  constraint context_keys_tenant_is_of_token_keys_check check (for_tenant is null or kind = 'token')
)
-- The old version of a retired row has the secret.
with (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
comment on table custody_keys.context_keys is 'Secrets of 32 bytes and more: context keys authenticate the settings of one transaction, token keys the tokens of applications, line keys our lines in the server log. Read by the owner''s functions alone, not in dumps: a server makes context keys anew after each start, token keys are registered again after a restore.';
comment on column custody_keys.context_keys.tenant_id is 'Always system: they are looked up before there is a tenant.';
comment on column custody_keys.context_keys.kind is 'context, token or line.';
comment on column custody_keys.context_keys.for_tenant is 'The only tenant for which a token under this key may speak; null for any.';
comment on column custody_keys.context_keys.server is 'Start of the server, and database, for which a context key was made: valid there alone.';
comment on column custody_keys.context_keys.retired_at is 'Since when it makes nothing any more. The secret is forgotten then; that of a line key 35 days later.';

-- What a session remembers that it cannot write: the secret that its contexts are signed with, as two numbers. The owner's
-- functions set them in the memory of the server process and put 1 into the sequences themselves at once. Unlogged, so that
-- nothing of it is in the log of changes, on standbys and in base backups.
create unlogged sequence custody_keys.session_secret_1 minvalue -9223372036854775808 start 1;
create unlogged sequence custody_keys.session_secret_2 minvalue -9223372036854775808 start 1;
comment on sequence custody_keys.session_secret_1 is 'Half of the secret of each session''s contexts, in the memory of its server process: read by custody_data.session_secret.';
comment on sequence custody_keys.session_secret_2 is 'The other half of session_secret_1.';

alter table custody_keys.context_keys enable row level security, force row level security;
create policy context_keys_owner_all on custody_keys.context_keys to custody_owner using (true);
comment on policy context_keys_owner_all on custody_keys.context_keys is 'The owner''s functions. For nobody else is there a policy, so that nobody else sees a row.';
-- Without the grant pg_dump would stop; without a policy it finds nothing. The sequences have no policies, so nobody reads
-- them: who could would see what sessions draw, and its own session's secret. A dump is made with --no-unlogged-table-data.
grant select on custody_keys.context_keys to custody_backup;

create trigger a_reject_delete before delete or truncate on custody_data.logins
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_data.logins
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'role_name');
create trigger z_list_logins after insert or update on custody_data.logins
  for each statement execute function custody_data.tg_list_logins();
alter table custody_data.logins enable always trigger a_reject_delete, enable always trigger a_reject_key_change, enable always trigger z_list_logins;
create trigger a_reject_delete before delete or truncate on custody_keys.context_keys
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_keys.context_keys
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'kid', 'kind', 'for_tenant', 'server', 'created_at', '=retired_at');
alter table custody_keys.context_keys enable always trigger a_reject_delete, enable always trigger a_reject_key_change;

-- +goose Down
drop table custody_keys.context_keys, custody_data.logins cascade;
drop sequence custody_keys.session_secret_1, custody_keys.session_secret_2 cascade;
