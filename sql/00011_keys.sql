-- Keys: what opens the sealed columns, wrapped by keys that are not in the database.
-- control: GDPR Art. 17, 25, 32(1)(a); HIPAA 164.312(a)(2)(iv); ISO 27001 A.8.24; SOC 2 CC6.1; NIST SP 800-57 part 1
-- reviewed by: DBA, security
--
-- Each tenant has a key-encryption key (KEK) outside the database, in versions. Each identity has a data key, in
-- versions, of which the database holds copies that are wrapped by a KEK, one for each KEK that is valid. The
-- nil identity is set aside for the tenant itself. The tables are apart from the data, so that they can have backups of
-- their own with a shorter life.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_keys.key_encryption_keys (
  tenant_id custody_data.tenant_name not null,
  kek_version integer not null,
  reference text not null,
  check_value bytea not null,
  previous bytea,
  created_at timestamptz not null default pg_catalog.now(),
  retired_at timestamptz,
  destroyed_at timestamptz,
  constraint key_encryption_keys_pkey primary key (tenant_id, kek_version),
  constraint key_encryption_keys_version_is_positive_check check (kek_version > 0),
  constraint key_encryption_keys_destroyed_is_retired_check check (destroyed_at is null or retired_at is not null),
  constraint key_encryption_keys_reference_length_is_at_most_4096_check check (pg_catalog.char_length(reference) between 1 and 4096)
);
comment on table custody_keys.key_encryption_keys is 'Which key-encryption keys a tenant has had. The keys themselves are with their provider.';
comment on column custody_keys.key_encryption_keys.reference is 'What the provider needs to give the key: a name, or the key as the key service''s ciphertext. Opens nothing by itself.';
comment on column custody_keys.key_encryption_keys.check_value is 'HMAC by which a wrong key is told before it is used. Says nothing about the key.';
comment on column custody_keys.key_encryption_keys.destroyed_at is 'When its provider had forgotten it. The reference has nothing any more by which a provider finds it.';
comment on column custody_keys.key_encryption_keys.previous is 'The version before this one, sealed under this one, while both are valid: who has the new key opens what the old one wrapped.';

create table custody_keys.data_keys (
  tenant_id custody_data.tenant_name not null,
  identity_id uuid not null,
  key_version integer not null,
  created_at timestamptz not null default pg_catalog.now(),
  destroyed_at timestamptz,
  constraint data_keys_pkey primary key (tenant_id, identity_id, key_version),
  constraint data_keys_version_is_positive_check check (key_version > 0)
);
create index data_keys_created_at_idx on custody_keys.data_keys (tenant_id, created_at) where destroyed_at is null;
comment on table custody_keys.data_keys is 'Which data keys an identity has had. Rows stay for good, so that what a destroyed key sealed is known as erased.';
comment on column custody_keys.data_keys.destroyed_at is 'When its wrapped copies were deleted: from then on nothing that it sealed can be read.';

create table custody_keys.wrapped_keys (
  tenant_id custody_data.tenant_name not null,
  identity_id uuid not null,
  key_version integer not null,
  kek_version integer not null,
  wrapped bytea not null,
  constraint wrapped_keys_pkey primary key (tenant_id, identity_id, key_version, kek_version)
);
comment on table custody_keys.wrapped_keys is 'Data keys, each sealed under a key-encryption key. Deleted when the data key is destroyed, or when the key-encryption key is retired.';
comment on column custody_keys.wrapped_keys.wrapped is 'Sealed value, version 1, of the 64 bytes of the data key; its place is TENANT/IDENTITY/wrapped_keys/wrapped/KEY_VERSION, its key version the kek_version.';

alter table custody_keys.key_encryption_keys enable row level security, force row level security;
create policy key_encryption_keys_all_all on custody_keys.key_encryption_keys using (tenant_id = (select custody.current_tenant()));
create policy key_encryption_keys_backup_select on custody_keys.key_encryption_keys for select to custody_backup using (true);
alter table custody_keys.data_keys enable row level security, force row level security;
create policy data_keys_all_all on custody_keys.data_keys using (tenant_id = (select custody.current_tenant()));
create policy data_keys_backup_select on custody_keys.data_keys for select to custody_backup using (true);
alter table custody_keys.wrapped_keys enable row level security, force row level security;
create policy wrapped_keys_all_all on custody_keys.wrapped_keys using (tenant_id = (select custody.current_tenant()));
create policy wrapped_keys_backup_select on custody_keys.wrapped_keys for select to custody_backup using (true);

-- Functions reach the keys; of the roles only the backup reads them.
grant usage on schema custody_keys to custody_backup;
grant select on custody_keys.key_encryption_keys, custody_keys.data_keys, custody_keys.wrapped_keys to custody_backup;

create trigger a_reject_delete before delete or truncate on custody_keys.key_encryption_keys
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_keys.key_encryption_keys
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'kek_version', 'check_value', 'created_at', '+destroyed_at');
create trigger a_reject_delete before delete or truncate on custody_keys.data_keys
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_keys.data_keys
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'identity_id', 'key_version', 'created_at', '+destroyed_at');
create trigger a_reject_truncate before truncate on custody_keys.wrapped_keys
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_keys.wrapped_keys
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'identity_id', 'key_version', 'kek_version', 'wrapped');

-- +goose StatementBegin
do $$
declare
  v record;
begin
  for v in
    select c.relname, t.tgname from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'custody_keys'::regnamespace and not t.tgisinternal
  loop
    execute pg_catalog.format('alter table custody_keys.%I enable always trigger %I', v.relname, v.tgname);
  end loop;
  for v in select p.policyname, p.tablename from pg_catalog.pg_policies p where p.schemaname = 'custody_keys' loop
    execute pg_catalog.format('comment on policy %I on custody_keys.%I is %L', v.policyname, v.tablename, case
      when v.policyname like '%\_backup\_select' then 'pg_dump --enable-row-security reads every row.'
      else 'Keys of the tenant in context; none without a context.' end);
  end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
drop table custody_keys.wrapped_keys, custody_keys.data_keys, custody_keys.key_encryption_keys cascade;
revoke usage on schema custody_keys from custody_backup;
