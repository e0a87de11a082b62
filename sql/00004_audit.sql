-- The audit trail, partitioned by month.
-- control: HIPAA 164.312(b), 164.316(b)(2); ISO 27001 A.8.15; SOC 2 CC7.2; GDPR Art. 5(2), 30
-- reviewed by: DBA, auditor
--
-- Appending takes no foreign key, no row trigger and no lock that another appender waits for. xid says which
-- transaction wrote a row: readers that must miss nothing (the archive, later the sealer) walk by (xid, id)
-- below the oldest running transaction. There is no DEFAULT partition: custody.ensure_audit_partitions makes
-- a missing month apart and attaches it. There is no CHECK constraint: Postgres reads each one from the catalog's
-- text again for every statement, which cost a third of an insert, and its error writes the row to the server's
-- log. The policy audit_logs_writers_insert holds the same rules for whoever inserts directly.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.audit_logs (
  tenant_id custody_data.tenant_name not null,
  log_entry_id uuid not null,
  occurred_at timestamptz not null,
  recorded_at timestamptz not null default pg_catalog.clock_timestamp(),
  actor_id uuid not null,
  subject_id uuid,
  action text collate "C" not null,
  resource_type text collate "C",
  resource_id text collate "C",
  result text collate "C" not null default 'success',
  purpose text,
  metadata jsonb not null default '{}',
  personal custody_data.sealed_value,
  import_id uuid,
  db_role text not null default session_user,
  xid xid8 not null default pg_catalog.pg_current_xact_id(),
  constraint audit_logs_pkey primary key (tenant_id, log_entry_id, occurred_at)
) partition by range (occurred_at);
create index audit_logs_occurred_at_idx on custody_data.audit_logs (tenant_id, occurred_at, log_entry_id);
create index audit_logs_subject_id_idx on custody_data.audit_logs (tenant_id, subject_id, occurred_at) where subject_id is not null;
create index audit_logs_actor_id_idx on custody_data.audit_logs (tenant_id, actor_id, occurred_at);
create index audit_logs_xid_idx on custody_data.audit_logs (xid, log_entry_id);
comment on table custody_data.audit_logs is 'Who did what to what, when and why: append-only, partitioned by month of occurred_at in UTC. Archived the day after, in Postgres for the policy audit_hot, kept for the policy audit in all.';
comment on column custody_data.audit_logs.log_entry_id is 'Drawn by the server (time-ordered, RFC 9562 version 7) or given by the client.';
comment on column custody_data.audit_logs.occurred_at is 'When it happened, as the caller says: at most a day ahead of recorded_at, and more than a day before it only for imports.';
comment on column custody_data.audit_logs.recorded_at is 'When the row was written, by the server''s clock. Nobody may give it.';
comment on column custody_data.audit_logs.actor_id is 'Identity that acted.';
comment on column custody_data.audit_logs.subject_id is 'Identity of the person that the event is about.';
comment on column custody_data.audit_logs.resource_id is 'What was acted on. A known user_id of the tenant is stored as the identity_id.';
comment on column custody_data.audit_logs.metadata is 'Facts about the event that identify nobody; its keys are on the action''s list.';
comment on column custody_data.audit_logs.personal is 'Client address, free text and whatever else is about a person: a JSON object, sealed under the data key of the subject, or of the actor where there is no subject. @custody{"sensitivity":"content","retention":"audit"}';
comment on column custody_data.audit_logs.import_id is 'The import that brought the event; empty for live events.';
comment on column custody_data.audit_logs.db_role is 'Login that wrote the row. Nobody may give it.';
comment on column custody_data.audit_logs.xid is 'Transaction that wrote the row. Nobody may give it.';

create table custody_data.audit_entry_ids (
  tenant_id custody_data.tenant_name not null,
  log_entry_id uuid not null,
  occurred_at timestamptz not null,
  recorded_at timestamptz not null default pg_catalog.clock_timestamp(),
  content bytea not null,
  constraint audit_entry_ids_pkey primary key (tenant_id, log_entry_id),
  constraint audit_entry_ids_content_is_a_sha256_check check (pg_catalog.octet_length(content) = 32)
);
create index audit_entry_ids_recorded_at_idx on custody_data.audit_entry_ids (tenant_id, recorded_at);
comment on table custody_data.audit_entry_ids is 'The log_entry_ids that clients gave in the last 90 days (policy entry_ids): a partitioned table cannot keep them unique.';
comment on column custody_data.audit_entry_ids.content is 'SHA-256 of what the client said but for the personal part, so that a retry is told from a clash.';

-- +goose Down
drop table custody_data.audit_entry_ids, custody_data.audit_logs cascade;
