-- name: EnforceRetention :one
-- One batch; 0 says that nothing is left.
select custody.enforce_retention(@class, @batch, coalesce(sqlc.narg(as_of)::timestamptz, pg_catalog.now()))::bigint as rows;

-- name: RetentionDue :many
select d.tenant_id, d.class, d.relation, d.keep, d.due_rows, d.held_rows, d.oldest_at
from custody.retention_due_at(coalesce(sqlc.narg(as_of)::timestamptz, pg_catalog.now())) d
order by d.class, d.relation;
