-- name: ArchiveDue :many
select d.day::date as day, coalesce(d.part, 0)::integer as part, d.rows::bigint as rows, d.retain_until::timestamptz as retain_until
from custody.archive_due() d;

-- name: ArchiveSegments :many
-- Recorded segments whose objects should be there, oldest first.
select s.day, s.part, s.object_key::text as object_key, s.manifest_key::text as manifest_key, s.events, s.plain_bytes::bigint as plain_bytes,
  s.compressed_bytes::bigint as compressed_bytes, s.stored_bytes::bigint as stored_bytes, s.plain_sha256, s.compressed_sha256, s.stored_sha256,
  s.manifest_sha256, s.root_hash, s.first_occurred_at::timestamptz as first_occurred_at, s.last_occurred_at::timestamptz as last_occurred_at,
  s.recipients, s.retain_until::timestamptz as retain_until, s.recorded_at::timestamptz as recorded_at, (s.superseded_at is not null)::boolean as superseded,
  s.legal_hold
from custody.archive_segments s
where s.recorded_at is not null and s.expired_at is null
order by s.day, s.part;

-- name: ArchivedSince :many
-- Segments that were recorded, or have expired, at or after a time.
select s.object_key::text as object_key, s.manifest_key::text as manifest_key, s.manifest_sha256, s.retain_until::timestamptz as retain_until,
  s.recorded_at::timestamptz as recorded_at, (s.expired_at is not null)::boolean as expired,
  (case when s.expired_at is not null then s.leaves::text else '' end)::text as leaves
from custody.archive_segments s
where s.recorded_at >= @since or s.expired_at >= @since
order by s.recorded_at, s.day, s.part;

-- name: AuditMonths :many
-- A partition that was attached by hand may have no bounds in time.
select m.partition_name, coalesce(m.range_from, '0001-01-01')::timestamptz as range_from, coalesce(m.range_to, '0001-01-01')::timestamptz as range_to,
  m.state, m.rows, coalesce(m.rows_kept, 0)::bigint as rows_kept, coalesce(m.detail, '')::text as detail
from custody.audit_months() m;

-- name: DropArchivedPartitions :many
select d.partition_name, d.range_from, d.range_to, d.rows_dropped, d.rows_kept, d.dropped_at
from custody.drop_archived_partitions(@max_months) d;

-- name: ExpireSegments :many
select s.day, s.part, s.object_key::text as object_key, s.manifest_key::text as manifest_key, s.events, s.stored_bytes::bigint as stored_bytes
from custody.expire_segments(@max_segments) s;

-- name: FindSegments :many
-- Days as text, empty for no bound.
select s.day, s.part, s.object_key::text as object_key, s.manifest_key::text as manifest_key, s.manifest_sha256, s.events,
  s.plain_bytes::bigint as plain_bytes, s.stored_bytes::bigint as stored_bytes,
  s.first_occurred_at::timestamptz as first_occurred_at, s.last_occurred_at::timestamptz as last_occurred_at
from custody.find_segments(nullif(@from_day::text, '')::date, nullif(@to_day::text, '')::date,
  sqlc.narg(identity_id)::uuid, sqlc.narg(log_entry_id)::uuid, sqlc.narg(tenant)::text) s;

-- name: HeldSegments :many
-- Whose objects the store is to put under legal hold (wanted), or to free from it.
select h.day::date as day, h.part, h.object_key, h.manifest_key, h.wanted, s.manifest_sha256
from custody.held_segments() h
join custody.archive_segments s on s.day = h.day and s.part = h.part;

-- name: LockSegment :one
-- One worker at a time streams a segment; the lock ends with the transaction.
select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('pgcustody.segment.' || @name::text, 0))::boolean as locked;

-- name: OpenArchiveSegments :many
select s.day, s.part
from custody.archive_segments s
where s.recorded_at is null and s.superseded_at is null
order by s.day, s.part;

-- name: OpenSegments :many
select s.day, s.part, s.events, s.leaves::text as leaves, s.retain_until::timestamptz as retain_until
from custody.open_segments(p_limit => @max_segments) s;

-- name: RecordSegment :one
select s.recorded_at::timestamptz as recorded_at
from custody.record_segment(
  (sqlc.arg(day)::text)::date, @part, @object_key, @manifest_key, @manifest::jsonb, @manifest_sha256, @retain_until, @people) s;

-- name: RecordSegmentGone :one
select custody.record_segment_gone((sqlc.arg(day)::text)::date, @part)::boolean as changed;

-- name: RecordSegmentHold :one
select custody.record_segment_hold((sqlc.arg(day)::text)::date, @part, @is_on)::boolean as changed;

-- name: SchemaVersion :one
select max(m.version)::bigint as version from custody_data.schema_migrations m;

-- name: SegmentIsOpen :one
select exists (
  select from custody.archive_segments s
  where s.day = (sqlc.arg(day)::text)::date and s.part = @part and s.recorded_at is null and s.superseded_at is null)::boolean as open;

-- name: SegmentLeaves :many
-- 8, 16 and 32 bytes a leaf, of leaves that follow one another.
select l.first_leaf, l.xids, l.entry_ids, l.hashes
from custody.segment_leaves((sqlc.arg(day)::text)::date, @part, @from_leaf, @max_slices) l;

-- name: SetConnectionCheck :exec
-- The server ends a statement of this transaction once it notices that the client is gone.
select pg_catalog.set_config('client_connection_check_interval', @check_interval::text, true);

-- name: StayOpen :exec
-- A transaction that holds a lock while its worker reads and writes the store.
select pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true);
