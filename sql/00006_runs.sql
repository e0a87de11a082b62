-- What the runner did: job runs, imports, archive segments, dropped partitions, incarnations of the database.
-- control: HIPAA 164.308(a)(1)(ii)(D), 164.312(b); ISO 27001 A.8.13, A.8.15; SOC 2 CC7.2, A1.2
-- reviewed by: DBA, operator
--
-- River deletes finished jobs after a day, so its rows are no evidence: each job writes its own run here.
-- A run is written twice, at its start and at its end; a segment when it is opened, recorded, and when its objects go.
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

create table custody_data.archive_heads (
  tenant_id custody_data.tenant_name not null default 'system',
  opened_to bigint not null default 0,
  days_end date not null default '1970-01-01',
  first_open bigint not null default 0,
  holds uuid[] not null default '{}',
  constraint archive_heads_pkey primary key (tenant_id),
  constraint archive_heads_first_open_is_looked_at_check check (first_open >= 0 and first_open <= opened_to)
);
comment on table custody_data.archive_heads is 'How far the archive is: one row. What is opened next costs what is new.';
comment on column custody_data.archive_heads.opened_to is 'So many leaves of the ledger were looked at.';
comment on column custody_data.archive_heads.days_end is 'Of those, all of days before this one have a segment, but for lost leaves.';
comment on column custody_data.archive_heads.first_open is 'No leaf below this one is still without a segment, but for lost leaves.';
comment on column custody_data.archive_heads.holds is 'Legal holds that stood at the last look: every segment with a hold_wanted was compared with them.';

create table custody_data.archive_segments (
  tenant_id custody_data.tenant_name not null default 'system',
  day date not null,
  part integer not null,
  leaves int8multirange not null,
  events bigint not null,
  opened_at timestamptz not null default pg_catalog.clock_timestamp(),
  object_key text,
  manifest_key text,
  plain_bytes bigint,
  compressed_bytes bigint,
  stored_bytes bigint,
  plain_sha256 bytea,
  compressed_sha256 bytea,
  stored_sha256 bytea,
  manifest_sha256 bytea,
  root_hash bytea,
  first_occurred_at timestamptz,
  last_occurred_at timestamptz,
  people bytea,
  recipients text[],
  retain_until timestamptz,
  recorded_at timestamptz,
  superseded_at timestamptz,
  hold_wanted boolean,
  legal_hold boolean not null default false,
  expired_at timestamptz,
  objects_deleted_at timestamptz,
  constraint archive_segments_pkey primary key (tenant_id, day, part),
  constraint archive_segments_part_starts_at_1_check check (part >= 1),
  constraint archive_segments_leaves_are_not_empty_check check (not pg_catalog.isempty(leaves) and events > 0),
  constraint archive_segments_recorded_whole_check check (recorded_at is null or (
    object_key is not null and manifest_key is not null and plain_bytes is not null and compressed_bytes is not null and stored_bytes is not null
    and plain_sha256 is not null and compressed_sha256 is not null and stored_sha256 is not null and manifest_sha256 is not null
    and root_hash is not null and first_occurred_at is not null and last_occurred_at is not null
    and (people is not null or objects_deleted_at is not null) and recipients is not null and retain_until is not null)),
  constraint archive_segments_goes_in_order_check check (
    (expired_at is null or recorded_at is not null) and (objects_deleted_at is null or expired_at is not null))
);
create index archive_segments_open_idx on custody_data.archive_segments (tenant_id, day, part) where recorded_at is null and superseded_at is null;
create index archive_segments_retain_until_idx on custody_data.archive_segments (tenant_id, retain_until) where objects_deleted_at is null;
create index archive_segments_holds_idx on custody_data.archive_segments (tenant_id, day, part)
  where recorded_at is not null and objects_deleted_at is null and (hold_wanted is null or hold_wanted or legal_hold);
-- Random bits, of which a few are read: compressed, all of them would be.
alter table custody_data.archive_segments alter column people set storage external;
comment on table custody_data.archive_segments is 'Which events are in which locked object: the leaves of a UTC day, as the ledger has them. Open until the stored object was read back and checked; then its facts never change, and it stays when the objects are gone.';
comment on column custody_data.archive_segments.leaves is 'Indexes of its leaves, in the order of its lines; no other segment that is not superseded has one of them.';
comment on column custody_data.archive_segments.root_hash is 'Root (RFC 6962 section 2.1) over the leaf hashes of its own lines.';
comment on column custody_data.archive_segments.people is 'Bloom filter over the tenants and identities of its events, by which custody.segment_may_hold passes over it; empty once its objects are gone.';
comment on column custody_data.archive_segments.superseded_at is 'When its leaves were cut off (custody.take_over_leaves): it stands for nothing any more, and its events get other leaves and another segment.';
comment on column custody_data.archive_segments.hold_wanted is 'Whether a legal hold covers what it may hold; empty until somebody looked (custody.held_segments).';
comment on column custody_data.archive_segments.legal_hold is 'Whether the store has its objects under legal hold.';
comment on column custody_data.archive_segments.expired_at is 'When its retention had ended and its objects were given free to be deleted.';

create table custody_data.partition_drops (
  tenant_id custody_data.tenant_name not null default 'system',
  partition_name text not null,
  range_from timestamptz not null,
  range_to timestamptz not null,
  rows_dropped bigint not null,
  rows_kept bigint not null default 0,
  dropped_at timestamptz not null default pg_catalog.clock_timestamp(),
  constraint partition_drops_pkey primary key (tenant_id, partition_name, dropped_at)
);
create index partition_drops_range_to_idx on custody_data.partition_drops (tenant_id, range_to desc);
comment on table custody_data.partition_drops is 'Months of the audit trail that left Postgres after their archive was proved: append-only.';
comment on column custody_data.partition_drops.rows_kept is 'Events that may not go yet, and stand in a new partition of the month.';

-- +goose Down
drop table custody_data.partition_drops, custody_data.archive_segments, custody_data.archive_heads, custody_data.incarnations, custody_data.imports, custody_data.job_runs cascade;
