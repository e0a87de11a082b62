-- name: ServerLog :one
-- What the server's log has to be read by.
select pg_catalog.current_setting('log_timezone')::text as zone, pg_catalog.current_database()::text as database;

-- name: LogSource :one
select s.source, s.format, s.file_name, s.file_offset, s.file_head, s.file_tail, s.state, s.last_line_at
from custody_data.log_sources s where s.tenant_id = 'system' and s.source = @source;

-- name: LogSources :many
select s.source, s.format, s.file_name, s.file_offset, s.last_line_at, s.updated_at
from custody_data.log_sources s where s.tenant_id = 'system' order by s.source;

-- name: LastLogBatch :one
select b.number, b.manifest_sha256 from custody_data.log_batches b where b.tenant_id = 'system' order by b.number desc limit 1;

-- name: LogBatches :many
-- From a number on, in order.
select b.* from custody_data.log_batches b where b.tenant_id = 'system' and b.number >= @from_number order by b.number limit @up_to;

-- name: RecentLogBatches :many
select b.* from custody_data.log_batches b where b.tenant_id = 'system' order by b.number desc limit @up_to;

-- name: RecentLogFindings :many
select f.found_at, f.source, f.batch, f.kind, f.session_id, f.line_from, f.line_to, f.occurrences, f.occurred_at, f.detail
from custody_data.log_findings f where f.tenant_id = 'system' order by f.found_at desc, f.finding_id limit @up_to;

-- name: ShippedLogsUntil :one
-- Whole seconds: stores keep no parts of one.
select pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() + custody_data.keep_of('shipped_logs'))::timestamptz as retain_until;

-- name: RecordLogBatch :exec
select custody.record_log_batch(@batch::jsonb, @state::bytea, sqlc.narg(spool)::bytea);

-- name: AddAccessEvents :one
select custody.add_access_events(@batch::bigint, @tenants::text[], @kinds::text[], @classes::text[], @actions::text[], @objects::text[], @logins::text[], @roles::text[], @actors::text[],
  @purposes::text[], @clients::text[], @applications::text[], @sessions::text[], @states::text[],
  @sorts::integer[], @lines::integer[], @parts::integer[], @occurred_at::timestamptz[], @people::text[], @counts::bigint[], @vxids::text[], @xacts::bigint[], @event_lines::text[], @event_xids::bigint[])::bigint as rows;

-- name: LogSinks :many
select s.sink, s.batch, s.line, s.trail_leaf, s.sent_lines, s.sent_at, s.failed_at, s.failures, s.last_error
from custody_data.log_sinks s where s.tenant_id = 'system' order by s.sink;

-- name: LogSpool :one
-- The first batch from a number on that is still there.
select p.number, p.compressed from custody_data.log_spool p where p.tenant_id = 'system' and p.number >= @from_number order by p.number limit 1;

-- name: MarkSink :exec
select custody.mark_sink(@sink, @batch, @line, @trail_leaf, @sent, sqlc.narg(error));

-- name: TrimLogSpool :one
select custody.trim_log_spool(@sinks::text[], @source)::bigint as rows;

-- name: DueLogBatches :many
select b.* from custody.due_log_batches(@up_to) b;

-- name: MarkLogBatchDeleted :exec
select custody.mark_log_batch_deleted(@number);

-- name: AddLogFindings :one
select custody.add_log_findings(@source, @findings::jsonb)::bigint as rows;

-- name: DropAccessMonths :many
select m::text as month from custody.drop_access_months(@max_months) m;

-- name: EnsureAccessPartitions :one
select custody_data.ensure_access_partitions(@from_at, @to_at)::bigint as created;

-- name: LinesAreOurs :one
-- A letter for each: t, f, and ? where nobody can tell.
select pg_catalog.array_to_string(custody_data.lines_are_ours(@messages::text[], @sessions::text[]), '', '?')::text as ours;

-- name: ReconcileLogs :many
select r.kind::text as kind, r.findings::bigint as findings from custody.reconcile_logs(@since, @until) r;

-- name: LedgerSize :one
select coalesce(max(h.tree_size), 0)::bigint as tree_size from custody_data.ledger_heads h where h.tenant_id = 'system';

-- name: SealedEntries :many
select e.leaf::bigint as leaf, e.entry::text as entry from custody.sealed_entries(@from_leaf, @to_leaf) e;
