-- Tenants, the identities of people and services, and the vocabulary of the audit trail.
-- control: GDPR Art. 4(5) and 25 (pseudonymisation), Art. 17; HIPAA 164.312(a)(2)(i) (unique user identification)
-- reviewed by: DBA, privacy officer
--
-- identities is the only place where an external id stands. Every other table refers to identity_id; erasure
-- empties user_id, and what must be kept is pseudonymous from then on without a row of it being touched.
-- tenant_id comes first in every key, so that the schema can be distributed by tenant.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create domain custody_data.tenant_name as text collate "C"
  constraint tenant_name_is_a_slug_check check (value ~ '^[a-z0-9][a-z0-9_-]{0,62}$');
comment on domain custody_data.tenant_name is 'Name of a tenant: 1 to 63 characters of a-z, 0-9, _ and -, the first a letter or a digit.';
grant usage on type custody_data.tenant_name to public;

create domain custody_data.sealed_value as bytea
  constraint sealed_value_is_of_version_1_check check (pg_catalog.octet_length(value) >= 69 and pg_catalog.get_byte(value, 0) = 1);
comment on domain custody_data.sealed_value is 'A value sealed for the place where it stands, format of routines/15_sealing.sql. Text that somebody stores by mistake is no such value.';
grant usage on type custody_data.sealed_value to public;

create table custody_data.tenants (
  tenant_id custody_data.tenant_name not null,
  name text not null,
  unique_fields text[] not null default '{}',
  remember_erased boolean not null default false,
  created_at timestamptz not null default pg_catalog.now(),
  constraint tenants_pkey primary key (tenant_id),
  constraint tenants_unique_fields_are_indexed_check check (unique_fields <@ array['email', 'phone'])
);
comment on table custody_data.tenants is 'The organisations whose data this database keeps apart. The tenant system holds what belongs to none: the shared vocabulary, default retention policies, archive and partition runs.';
comment on column custody_data.tenants.unique_fields is 'Profile fields of which no two people of the tenant may have the same: email, phone.';
comment on column custody_data.tenants.remember_erased is 'Whether a keyed hash of an erased person''s user_id is kept, for the policy erased_ids.';

create table custody_data.identities (
  tenant_id custody_data.tenant_name not null,
  identity_id uuid not null default pg_catalog.gen_random_uuid(),
  kind text not null default 'person',
  user_id text collate "C",
  created_at timestamptz not null default pg_catalog.now(),
  erased_at timestamptz,
  constraint identities_pkey primary key (tenant_id, identity_id),
  constraint identities_kind_is_known_check check (kind in ('person', 'service', 'system')),
  constraint identities_user_id_length_is_1_to_256_check check (pg_catalog.char_length(user_id) between 1 and 256),
  constraint identities_erased_has_no_user_id_check check ((erased_at is null) = (user_id is not null))
)
-- The old version of an erased row has the user_id: vacuumed within minutes, however large the table is.
with (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
create unique index identities_tenant_id_user_id_idx on custody_data.identities (tenant_id, user_id) where user_id is not null;
create index identities_erased_at_idx on custody_data.identities (tenant_id, erased_at) where erased_at is not null;
comment on table custody_data.identities is 'Who a person, service or system is. Rows are never deleted: an erased identity keeps its identity_id and has no user_id.';
comment on column custody_data.identities.user_id is 'The application''s id of the person; empty after erasure. @custody{"sensitivity":"identifying","retention":"until_erasure"}';
comment on column custody_data.identities.kind is 'person, service or system.';
comment on column custody_data.identities.erased_at is 'When user_id was emptied.';

create table custody_data.audit_actions (
  tenant_id custody_data.tenant_name not null,
  action text collate "C" not null,
  metadata_keys text[] not null default '{}',
  description text not null,
  created_at timestamptz not null default pg_catalog.now(),
  constraint audit_actions_pkey primary key (tenant_id, action),
  constraint audit_actions_action_is_a_name_check check (action ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$')
);
comment on table custody_data.audit_actions is 'The actions that audit events may name, each with the metadata keys that it may carry. Rows of tenant system hold for all; a tenant may add its own.';

create table custody_data.audit_resource_types (
  tenant_id custody_data.tenant_name not null,
  resource_type text collate "C" not null,
  description text not null,
  created_at timestamptz not null default pg_catalog.now(),
  constraint audit_resource_types_pkey primary key (tenant_id, resource_type),
  constraint audit_resource_types_type_is_a_name_check check (resource_type ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$')
);
comment on table custody_data.audit_resource_types is 'The kinds of thing that audit events may be about. Rows of tenant system hold for all; a tenant may add its own.';

-- +goose Down
drop table custody_data.audit_resource_types, custody_data.audit_actions, custody_data.identities, custody_data.tenants cascade;
drop domain custody_data.sealed_value cascade;
drop domain custody_data.tenant_name cascade;
