-- Requests of data subjects, erasure certificates, holders outside Postgres, legal holds, retention policies.
-- control: GDPR Art. 5(1)(e), 12(3), 15, 17, 19, 20; FRCP 37(e) (legal hold); HIPAA 164.316(b)(2)(i)
-- reviewed by: DBA, privacy officer
--
-- A request is a row of its own, committed before anything is done about it. Certificates are evidence and
-- append-only. A notice carries the person's external id until its holder has acknowledged: the holder could
-- not know whom to forget otherwise.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.requests (
  tenant_id custody_data.tenant_name not null,
  request_id uuid not null default pg_catalog.gen_random_uuid(),
  kind text not null,
  identity_id uuid not null,
  status text not null default 'received',
  reason text,
  requested_by uuid not null,
  received_at timestamptz not null default pg_catalog.now(),
  due_at timestamptz not null default pg_catalog.now() + interval '1 month',
  extended_at timestamptz,
  extension_reason text,
  closed_at timestamptz,
  close_reason text,
  residue_searched_at timestamptz,
  residue_searched_xid xid8,
  residue_searched_for text[],
  residue_rows bigint,
  xid xid8 not null default pg_catalog.pg_current_xact_id(),
  constraint requests_pkey primary key (tenant_id, request_id),
  constraint requests_kind_is_known_check check (kind in ('erasure', 'export')),
  constraint requests_status_is_known_check check (status in ('received', 'held', 'done', 'cancelled')),
  constraint requests_closed_when_over_check check ((closed_at is not null) = (status in ('done', 'cancelled'))),
  constraint requests_reason_length_is_at_most_2000_check check (pg_catalog.char_length(reason) <= 2000)
);
create index requests_status_idx on custody_data.requests (tenant_id, kind, received_at) where status in ('received', 'held');
create index requests_identity_id_idx on custody_data.requests (tenant_id, identity_id);
create index requests_received_at_idx on custody_data.requests (tenant_id, received_at);
create index requests_closed_at_idx on custody_data.requests (tenant_id, closed_at) where closed_at is not null;
comment on table custody_data.requests is 'What data subjects asked for, when, and until when it is owed: one month, extended once by two (GDPR Art. 12(3)).';
comment on column custody_data.requests.reason is 'Why, in the requester''s words; must not name the person. @custody{"sensitivity":"content","retention":"requests"}';
comment on column custody_data.requests.extension_reason is 'Why the time was extended; must not name the person. @custody{"sensitivity":"content","retention":"requests"}';
comment on column custody_data.requests.close_reason is 'Why it was cancelled; must not name the person. @custody{"sensitivity":"content","retention":"requests"}';
comment on column custody_data.requests.residue_searched_for is 'What was searched for: user_id, and email, phone and full_name where the search had the key that opens the profile.';
comment on column custody_data.requests.residue_searched_xid is 'Every row written by a transaction before this one was searched for the person''s identifiers.';

create table custody_data.erasure_certificates (
  tenant_id custody_data.tenant_name not null,
  request_id uuid not null,
  identity_id uuid not null,
  issued_at timestamptz not null default pg_catalog.now(),
  certificate jsonb not null,
  constraint erasure_certificates_pkey primary key (tenant_id, request_id)
);
comment on table custody_data.erasure_certificates is 'What each erasure deleted and kept, and why: append-only, names nobody.';

create table custody_data.stored_certificates (
  tenant_id custody_data.tenant_name not null,
  request_id uuid not null,
  object_key text not null,
  stored_at timestamptz not null default pg_catalog.now(),
  constraint stored_certificates_pkey primary key (tenant_id, request_id)
);
comment on table custody_data.stored_certificates is 'Which certificates are under lock in the object store, from where a restore replays them: append-only.';

create table custody_data.erased_user_ids (
  tenant_id custody_data.tenant_name not null,
  request_id uuid not null,
  user_id_index bytea not null,
  erased_at timestamptz not null default pg_catalog.now(),
  constraint erased_user_ids_pkey primary key (tenant_id, request_id),
  constraint erased_user_ids_user_id_index_is_a_blind_index_check check (pg_catalog.octet_length(user_id_index) = 36)
);
create index erased_user_ids_user_id_index_idx on custody_data.erased_user_ids (tenant_id, user_id_index);
create index erased_user_ids_erased_at_idx on custody_data.erased_user_ids (tenant_id, erased_at);
comment on table custody_data.erased_user_ids is 'By which the key''s holder can recognise a later claim of somebody who was erased. Only where the tenant wants it; deleted after the policy erased_ids, and with the index key.';
comment on column custody_data.erased_user_ids.user_id_index is 'Blind index of the user_id. @custody{"sensitivity":"identifying","retention":"erased_ids"}';

create table custody_data.holders (
  tenant_id custody_data.tenant_name not null,
  holder text collate "C" not null,
  endpoint text,
  description text,
  registered_at timestamptz not null default pg_catalog.now(),
  retired_at timestamptz,
  constraint holders_pkey primary key (tenant_id, holder),
  constraint holders_holder_is_a_name_check check (holder ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$'),
  constraint holders_endpoint_is_http_check check (endpoint ~ '^https?://')
);
comment on table custody_data.holders is 'Systems outside Postgres that hold personal data and are told of each erasure (GDPR Art. 19).';
comment on column custody_data.holders.endpoint is 'URL that the notice is posted to; empty where people carry it.';

create table custody_data.erasure_notices (
  tenant_id custody_data.tenant_name not null,
  notice_id uuid not null default pg_catalog.gen_random_uuid(),
  request_id uuid not null,
  holder text collate "C" not null,
  user_id text collate "C",
  created_at timestamptz not null default pg_catalog.now(),
  sent_at timestamptz,
  attempts integer not null default 0,
  last_status text,
  acknowledged_at timestamptz,
  evidence jsonb,
  constraint erasure_notices_pkey primary key (tenant_id, notice_id),
  constraint erasure_notices_request_id_holder_key unique (tenant_id, request_id, holder),
  constraint erasure_notices_acknowledged_names_nobody_check check ((acknowledged_at is null) = (user_id is not null))
)
-- as identities
with (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
create index erasure_notices_open_idx on custody_data.erasure_notices (tenant_id, created_at) where acknowledged_at is null;
create index erasure_notices_acknowledged_at_idx on custody_data.erasure_notices (tenant_id, acknowledged_at) where acknowledged_at is not null;
comment on table custody_data.erasure_notices is 'The outbox of erasures: one notice for each holder, written in the erasure''s transaction.';
comment on column custody_data.erasure_notices.user_id is 'Whom the holder must forget; emptied by the acknowledgement. @custody{"sensitivity":"identifying","retention":"until_acknowledged"}';
comment on column custody_data.erasure_notices.evidence is 'What the holder answered; must not name the person. @custody{"sensitivity":"evidence","retention":"requests"}';

create table custody_data.legal_holds (
  tenant_id custody_data.tenant_name not null,
  hold_id uuid not null default pg_catalog.gen_random_uuid(),
  scope text not null,
  identity_id uuid,
  table_name text,
  row_id text,
  event_day date,
  reference text not null,
  reason text not null,
  placed_by uuid not null,
  placed_at timestamptz not null default pg_catalog.now(),
  until_at timestamptz,
  released_at timestamptz,
  released_by uuid,
  release_reason text,
  constraint legal_holds_pkey primary key (tenant_id, hold_id),
  constraint legal_holds_scope_is_known_check check (scope in ('tenant', 'person', 'row')),
  constraint legal_holds_scope_names_its_object_check check (
    (scope = 'tenant' and identity_id is null and table_name is null and row_id is null)
    or (scope = 'person' and identity_id is not null and table_name is null and row_id is null)
    or (scope = 'row' and table_name is not null and row_id is not null)),
  constraint legal_holds_event_has_its_day_check check ((event_day is not null) = (table_name is not distinct from 'audit_logs')),
  constraint legal_holds_reference_length_is_1_to_256_check check (pg_catalog.char_length(reference) between 1 and 256)
);
create unique index legal_holds_active_idx on custody_data.legal_holds
  (tenant_id, reference, scope, (coalesce(identity_id, '00000000-0000-0000-0000-000000000000'::uuid)), (coalesce(table_name, '')), (coalesce(row_id, '')))
  where released_at is null;
create index legal_holds_identity_id_idx on custody_data.legal_holds (tenant_id, identity_id) where released_at is null;
comment on table custody_data.legal_holds is 'Legal holds: while one stands, neither erasure nor retention takes what it covers. Rows are released, never deleted.';
comment on column custody_data.legal_holds.event_day is 'UTC day of a held event, by which the segments are found that can have it.';
comment on column custody_data.legal_holds.reference is 'Case or matter number; must not name the person. @custody{"sensitivity":"content","retention":"holds"}';
comment on column custody_data.legal_holds.reason is 'Why it was placed; must not name the person. @custody{"sensitivity":"content","retention":"holds"}';
comment on column custody_data.legal_holds.release_reason is 'Why it was released; must not name the person. @custody{"sensitivity":"content","retention":"holds"}';

create table custody_data.retention_policies (
  tenant_id custody_data.tenant_name not null,
  class text collate "C" not null,
  keep interval not null,
  basis text not null,
  set_by uuid,
  set_at timestamptz not null default pg_catalog.now(),
  change_id uuid,
  constraint retention_policies_pkey primary key (tenant_id, class),
  constraint retention_policies_class_is_known_check check (class in
    ('audit', 'audit_hot', 'consent', 'conversations', 'entry_ids', 'erased_ids', 'restored', 'key_age', 'kek_generation', 'key_backup',
     'access', 'shipped_logs', 'alerts')),
  constraint retention_policies_keep_is_positive_check check (keep > interval '0'),
  constraint retention_policies_audit_hot_is_7_days_or_more_check check (class <> 'audit_hot' or keep >= interval '7 days'),
  constraint retention_policies_basis_is_given_check check (pg_catalog.char_length(basis) between 1 and 1000)
);
comment on table custody_data.retention_policies is 'How long each class of data is kept and on what legal basis. Rows of tenant system hold for all; a tenant''s own row goes before.';
comment on column custody_data.retention_policies.change_id is 'The row of retention_changes that set it; empty for what is shipped.';

-- Longer is anybody's who has the right, shorter takes two: a change that shortens waits here for the second.
create table custody_data.retention_changes (
  tenant_id custody_data.tenant_name not null,
  change_id uuid not null default pg_catalog.gen_random_uuid(),
  class text collate "C" not null,
  keep interval not null,
  keep_before interval not null,
  basis text not null,
  proposed_by uuid not null,
  proposed_login text not null default session_user,
  proposed_at timestamptz not null default pg_catalog.now(),
  expires_at timestamptz not null default pg_catalog.now() + interval '30 days',
  decision text,
  decided_by uuid,
  decided_login text,
  decided_at timestamptz,
  reason text,
  constraint retention_changes_pkey primary key (tenant_id, change_id),
  constraint retention_changes_decision_is_known_check check (decision in ('set', 'approved', 'rejected', 'withdrawn', 'replaced', 'expired')),
  constraint retention_changes_decided_whole_check check (
    (decision is null) = (decided_at is null) and (decision is null) = (decided_by is null) and (decision is null) = (decided_login is null)),
  constraint retention_changes_approved_by_a_second_check check (decision <> 'approved' or (decided_by <> proposed_by and decided_login <> proposed_login)),
  constraint retention_changes_basis_is_given_check check (pg_catalog.char_length(basis) between 1 and 1000),
  constraint retention_changes_reason_length_is_at_most_1000_check check (pg_catalog.char_length(reason) <= 1000)
);
create unique index retention_changes_open_idx on custody_data.retention_changes (tenant_id, class) where decision is null;
create index retention_changes_proposed_at_idx on custody_data.retention_changes (tenant_id, proposed_at desc);
comment on table custody_data.retention_changes is 'Every change of a retention policy: who proposed it, who decided, by which logins. What shortens waits 30 days for the approval of a second person. Rows are decided once, never deleted.';
comment on column custody_data.retention_changes.reason is 'Why it was rejected or withdrawn; must not name the person. @custody{"sensitivity":"content","retention":"audit"}';

-- +goose Down
drop table custody_data.retention_changes, custody_data.retention_policies, custody_data.legal_holds, custody_data.erasure_notices, custody_data.holders,
  custody_data.erased_user_ids, custody_data.stored_certificates, custody_data.erasure_certificates, custody_data.requests cascade;
