-- name: EnsureAuditPartitions :one
select custody.ensure_audit_partitions(@from_at, @to_at)::bigint as created;
