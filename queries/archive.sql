-- name: ArchiveDue :many
select d.day::date as day, coalesce(d.part, 0)::integer as part, d.rows::bigint as rows, d.retain_until::timestamptz as retain_until
from custody.archive_due() d;

-- name: ArchiveSegments :many
-- Recorded segments, oldest first.
select s.day, s.part, s.object_key::text as object_key, s.manifest_key::text as manifest_key, s.rows_archived::bigint as rows,
  s.plain_bytes::bigint as plain_bytes, s.stored_bytes::bigint as stored_bytes, s.plain_sha256, s.stored_sha256,
  s.first_occurred_at::timestamptz as first_occurred_at, s.last_occurred_at::timestamptz as last_occurred_at,
  s.retain_until::timestamptz as retain_until, s.manifest::jsonb as manifest, s.recorded_at::timestamptz as recorded_at
from custody.archive_segments s
where s.recorded_at is not null
order by s.day, s.part;

-- name: AuditMonths :many
select m.partition_name, m.range_from::timestamptz as range_from, m.range_to::timestamptz as range_to, m.state, m.rows, coalesce(m.detail, '')::text as detail
from custody.audit_months() m;

-- name: DropArchivedPartitions :many
select d.partition_name, d.range_from, d.range_to, d.rows_dropped, d.dropped_at
from custody.drop_archived_partitions(@max_months) d;

-- name: LockSegment :one
-- One worker at a time streams a segment; the lock ends with the transaction.
select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('pgcustody.segment.' || @name::text, 0))::boolean as locked;

-- name: OpenArchiveSegments :many
select s.day, s.part
from custody.archive_segments s
where s.recorded_at is null
order by s.day, s.part;

-- name: OpenSegments :many
select s.day, s.part, s.xid_from::text as xid_from, s.xid_to::text as xid_to, s.retain_until::timestamptz as retain_until
from custody.open_segments(p_limit => @max_segments) s;

-- name: RecordSegment :one
select s.recorded_at::timestamptz as recorded_at
from custody.record_segment(
  (sqlc.arg(day)::text)::date, @part, @object_key, @manifest_key, @rows, @plain_bytes, @stored_bytes, @plain_sha256, @stored_sha256,
  @first_occurred_at, @last_occurred_at, @retain_until, @manifest::jsonb) s;

-- name: SchemaVersion :one
select max(m.version)::bigint as version from custody_data.schema_migrations m;

-- name: SetConnectionCheck :exec
-- The server ends a statement of this transaction once it notices that the client is gone.
select pg_catalog.set_config('client_connection_check_interval', @check_interval::text, true);
