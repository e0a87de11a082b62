-- Four of the five tables of record: profiles, preferences, consents, conversations.
-- control: GDPR Art. 5(1)(c)-(e), 7(1), 15, 17, 20; ISO 27001 A.5.34; SOC 2 P4
-- reviewed by: DBA, privacy officer
--
-- Personal columns stand apart from the others and carry a class in their comment:
--   @custody{"sensitivity": identifying | contact | content | evidence, "retention": class of the policy}
-- They are sealed (routines/15_sealing.sql) under the data key of the row's identity: without the tenant's
-- key-encryption key, which is not in the database, nobody reads them, and once the data key is destroyed nobody does.
-- There is no foreign key to identities: identities are never deleted, and what a foreign key cannot see,
-- that the identity has been erased, tg_require_live_identity checks under the row's lock for a whole
-- statement at once.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.user_profiles (
  tenant_id custody_data.tenant_name not null,
  identity_id uuid not null,
  full_name custody_data.sealed_value,
  email custody_data.sealed_value,
  phone custody_data.sealed_value,
  organisation custody_data.sealed_value,
  title custody_data.sealed_value,
  address custody_data.sealed_value,
  city custody_data.sealed_value,
  region custody_data.sealed_value,
  postal_code custody_data.sealed_value,
  country custody_data.sealed_value,
  attributes custody_data.sealed_value,
  email_index bytea,
  phone_index bytea,
  version integer not null default 1,
  created_at timestamptz not null default pg_catalog.now(),
  updated_at timestamptz not null default pg_catalog.now(),
  constraint user_profiles_pkey primary key (tenant_id, identity_id),
  constraint user_profiles_email_index_is_a_blind_index_check check (pg_catalog.octet_length(email_index) = 36),
  constraint user_profiles_phone_index_is_a_blind_index_check check (pg_catalog.octet_length(phone_index) = 36)
);
create index user_profiles_tenant_id_email_index_idx on custody_data.user_profiles (tenant_id, email_index) where email_index is not null;
create index user_profiles_tenant_id_phone_index_idx on custody_data.user_profiles (tenant_id, phone_index) where phone_index is not null;
comment on table custody_data.user_profiles is 'Who the person is and how to reach them. Kept until deleted or erased.';
comment on column custody_data.user_profiles.full_name is 'Name. @custody{"sensitivity":"identifying","retention":"until_erasure"}';
comment on column custody_data.user_profiles.email is 'E-mail address as given. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.phone is 'Telephone number as given. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.organisation is 'Organisation that the person acts for. @custody{"sensitivity":"identifying","retention":"until_erasure"}';
comment on column custody_data.user_profiles.title is 'Role or form of address. @custody{"sensitivity":"identifying","retention":"until_erasure"}';
comment on column custody_data.user_profiles.address is 'Street and number. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.city is 'City. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.region is 'Region or state. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.postal_code is 'Postal code. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.country is 'Country. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.attributes is 'What else the application keeps about the person, a JSON object. @custody{"sensitivity":"content","retention":"until_erasure"}';
comment on column custody_data.user_profiles.email_index is 'Blind index (routines/18_blind_indexes.sql) of the e-mail address: by it find_subject finds who has one, and nobody without the key learns which. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.phone_index is 'Blind index of the telephone number. @custody{"sensitivity":"contact","retention":"until_erasure"}';
comment on column custody_data.user_profiles.version is 'Counts changes, for p_if_version.';

create table custody_data.user_preferences (
  tenant_id custody_data.tenant_name not null,
  identity_id uuid not null,
  preferences custody_data.sealed_value not null,
  version integer not null default 1,
  created_at timestamptz not null default pg_catalog.now(),
  updated_at timestamptz not null default pg_catalog.now(),
  constraint user_preferences_pkey primary key (tenant_id, identity_id)
);
comment on table custody_data.user_preferences is 'Settings of a person. Kept until deleted or erased.';
comment on column custody_data.user_preferences.preferences is 'Settings, a JSON object. @custody{"sensitivity":"content","retention":"until_erasure"}';
comment on column custody_data.user_preferences.version is 'Counts changes, for p_if_version.';

create table custody_data.consent_records (
  tenant_id custody_data.tenant_name not null,
  consent_id uuid not null default pg_catalog.gen_random_uuid(),
  identity_id uuid not null,
  purpose text collate "C" not null,
  granted boolean not null,
  policy_version text collate "C" not null,
  legal_basis text not null,
  evidence custody_data.sealed_value,
  occurred_at timestamptz not null,
  recorded_at timestamptz not null default pg_catalog.clock_timestamp(),
  xid xid8 not null default pg_catalog.pg_current_xact_id(),
  constraint consent_records_pkey primary key (tenant_id, consent_id),
  constraint consent_records_purpose_length_is_1_to_128_check check (pg_catalog.char_length(purpose) between 1 and 128),
  constraint consent_records_policy_version_length_is_1_to_64_check check (pg_catalog.char_length(policy_version) between 1 and 64),
  constraint consent_records_legal_basis_is_known_check check (legal_basis in
    ('consent', 'contract', 'legal_obligation', 'vital_interests', 'public_task', 'legitimate_interests')),
  constraint consent_records_occurred_at_is_finite_check check (occurred_at >= '1970-01-01 00:00:00+00' and pg_catalog.isfinite(occurred_at)),
  constraint consent_records_occurred_at_is_not_ahead_check check (occurred_at <= recorded_at + interval '24 hours')
);
create index consent_records_identity_id_purpose_idx on custody_data.consent_records
  (tenant_id, identity_id, purpose, occurred_at desc, recorded_at desc, consent_id desc) include (granted);
create index consent_records_occurred_at_idx on custody_data.consent_records (tenant_id, occurred_at);
comment on table custody_data.consent_records is 'Grants and withdrawals of consent, append-only (GDPR Art. 7(1)). Kept while in force and then for the policy consent; after erasure pseudonymous, and the evidence unreadable.';
comment on column custody_data.consent_records.evidence is 'What shows that consent was given or withdrawn. @custody{"sensitivity":"evidence","retention":"consent"}';
comment on column custody_data.consent_records.legal_basis is 'GDPR Art. 6(1): consent, contract, legal_obligation, vital_interests, public_task or legitimate_interests.';

create table custody_data.conversations (
  tenant_id custody_data.tenant_name not null,
  identity_id uuid not null,
  conversation_id text collate "C" not null,
  title custody_data.sealed_value,
  messages custody_data.sealed_value not null,
  message_count integer not null,
  started_at timestamptz not null,
  last_message_at timestamptz not null,
  version integer not null default 1,
  created_at timestamptz not null default pg_catalog.now(),
  updated_at timestamptz not null default pg_catalog.now(),
  constraint conversations_pkey primary key (tenant_id, identity_id, conversation_id),
  constraint conversations_id_length_is_1_to_256_check check (pg_catalog.char_length(conversation_id) between 1 and 256),
  constraint conversations_times_are_finite_check check (
    started_at >= '1970-01-01 00:00:00+00' and pg_catalog.isfinite(last_message_at) and started_at <= last_message_at)
);
create index conversations_last_message_at_idx on custody_data.conversations (tenant_id, last_message_at);
create index conversations_identity_id_last_message_at_idx on custody_data.conversations (tenant_id, identity_id, last_message_at desc, conversation_id desc);
comment on table custody_data.conversations is 'Conversations of a person. Kept for the policy conversations after the last message. An id is the person''s own: two people may use the same one.';
comment on column custody_data.conversations.title is 'Title. @custody{"sensitivity":"content","retention":"conversations"}';
comment on column custody_data.conversations.messages is 'Messages, a JSON array of {"role", "text", "at"}. @custody{"sensitivity":"content","retention":"conversations"}';
comment on column custody_data.conversations.version is 'Counts changes, for p_if_version.';

create type custody_data.touched_rows as (identity_id uuid, columns text[], row_ids text[]);
comment on type custody_data.touched_rows is 'Rows of one person that a statement wrote, and the columns that it changed: what a record event names.';
grant usage on type custody_data.touched_rows to public;

-- +goose Down
drop type custody_data.touched_rows cascade;
drop table custody_data.conversations, custody_data.consent_records, custody_data.user_preferences, custody_data.user_profiles cascade;
