-- name: BackendPID :one
select pg_catalog.pg_backend_pid()::integer as pid;

-- name: CancelBackend :one
select pg_catalog.pg_cancel_backend(@pid::integer)::boolean as sent;

-- name: WaitingFor :one
-- Who waits for a lock behind a session, and for how long the one that has waited longest.
select count(*)::bigint as sessions,
  coalesce(max(extract(epoch from pg_catalog.clock_timestamp() - l.waitstart)), 0)::float8 as seconds
from pg_catalog.pg_locks l
where not l.granted and @pid::integer = any (pg_catalog.pg_blocking_pids(l.pid));
