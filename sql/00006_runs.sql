-- What the runner did: job runs, imports, archive segments, dropped partitions, incarnations of the database.
-- control: HIPAA 164.308(a)(1)(ii)(D), 164.312(b); ISO 27001 A.8.13, A.8.15; SOC 2 CC7.2, A1.2
-- reviewed by: DBA, operator
--
-- River deletes finished jobs after a day, so its rows are no evidence: each job writes its own run here.
-- Runs and segments are written twice, at their start and at their end, and never again.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.job_runs (
  tenant_id custody_data.tenant_name not null,
  run_id uuid not null default pg_catalog.gen_random_uuid(),
  job text collate "C" not null,
  river_job_id bigint,
  status text not null default 'running',
  started_at timestamptz not null default pg_catalog.clock_timestamp(),
  ended_at timestamptz,
  counts jsonb not null default '{}',
  bytes bigint not null default 0,
  error text,
  constraint job_runs_pkey primary key (tenant_id, run_id),
  constraint job_runs_status_is_known_check check (status in ('running', 'succeeded', 'failed')),
  constraint job_runs_ended_when_over_check check ((ended_at is null) = (status = 'running'))
);
create index job_runs_started_at_idx on custody_data.job_runs (tenant_id, started_at desc);
comment on table custody_data.job_runs is 'Every run of every job: what it counted, how it ended.';
comment on column custody_data.job_runs.error is 'What went wrong, by code and object; never personal data.';

create table custody_data.imports (
  tenant_id custody_data.tenant_name not null,
  import_id uuid not null default pg_catalog.gen_random_uuid(),
  run_id uuid,
  table_name text not null,
  file_sha256 bytea not null,
  rows_read bigint not null,
  rows_added bigint not null,
  rows_changed bigint not null default 0,
  rows_rejected bigint not null default 0,
  imported_at timestamptz not null default pg_catalog.now(),
  constraint imports_pkey primary key (tenant_id, import_id),
  constraint imports_file_sha256_is_a_sha256_check check (pg_catalog.octet_length(file_sha256) = 32)
);
comment on table custody_data.imports is 'Files that were imported, by digest, and what each added: append-only.';

create table custody_data.incarnations (
  tenant_id custody_data.tenant_name not null default 'system',
  incarnation_id uuid not null default pg_catalog.gen_random_uuid(),
  opened_at timestamptz not null default pg_catalog.clock_timestamp(),
  system_identifier bigint not null,
  timeline integer not null,
  observed jsonb not null default '{}',
  opened_xid xid8 not null default pg_catalog.pg_current_xact_id(),
  constraint incarnations_pkey primary key (tenant_id, incarnation_id)
);
create index incarnations_opened_at_idx on custody_data.incarnations (tenant_id, opened_at desc);
comment on table custody_data.incarnations is 'The lives of this database: in another cluster, or on another timeline of the same, transaction numbers of before mean nothing. Append-only.';
comment on column custody_data.incarnations.observed is 'What showed that a new life had begun: facts, and the likely cause as a guess.';

create table custody_data.archive_segments (
  tenant_id custody_data.tenant_name not null default 'system',
  day date not null,
  part integer not null,
  xid_from xid8 not null,
  xid_to xid8 not null,
  opened_at timestamptz not null default pg_catalog.clock_timestamp(),
  object_key text,
  manifest_key text,
  rows_archived bigint,
  plain_bytes bigint,
  stored_bytes bigint,
  plain_sha256 bytea,
  stored_sha256 bytea,
  first_occurred_at timestamptz,
  last_occurred_at timestamptz,
  retain_until timestamptz,
  manifest jsonb,
  recorded_at timestamptz,
  constraint archive_segments_pkey primary key (tenant_id, day, part),
  constraint archive_segments_part_starts_at_1_check check (part >= 1),
  constraint archive_segments_window_is_not_empty_check check (xid_to > xid_from),
  constraint archive_segments_recorded_whole_check check (recorded_at is null or (
    object_key is not null and manifest_key is not null and rows_archived is not null and plain_bytes is not null
    and stored_bytes is not null and plain_sha256 is not null and stored_sha256 is not null
    and first_occurred_at is not null and last_occurred_at is not null and retain_until is not null and manifest is not null))
);
create index archive_segments_open_idx on custody_data.archive_segments (tenant_id, day, part) where recorded_at is null;
create index archive_segments_xid_to_idx on custody_data.archive_segments (tenant_id, xid_to desc);
comment on table custody_data.archive_segments is 'Which events are in which locked object: those of the UTC day that transactions in [xid_from, xid_to) wrote before opened_at, less those of earlier parts of the day. Open until the stored object was read back and checked, unchangeable afterwards.';

create table custody_data.partition_drops (
  tenant_id custody_data.tenant_name not null default 'system',
  partition_name text not null,
  range_from timestamptz not null,
  range_to timestamptz not null,
  rows_dropped bigint not null,
  dropped_at timestamptz not null default pg_catalog.clock_timestamp(),
  constraint partition_drops_pkey primary key (tenant_id, partition_name, dropped_at)
);
create index partition_drops_range_to_idx on custody_data.partition_drops (tenant_id, range_to desc);
comment on table custody_data.partition_drops is 'Months of the audit trail that left Postgres after their archive was proved: append-only.';

-- +goose Down
drop table custody_data.partition_drops, custody_data.archive_segments, custody_data.incarnations, custody_data.imports, custody_data.job_runs cascade;
