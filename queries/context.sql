-- name: SetContext :exec
select custody.set_context(@tenant, @actor, sqlc.narg(purpose), sqlc.narg(subject));

-- name: SetTimeouts :exec
-- Until the end of the transaction; '' leaves the server's setting.
select
  pg_catalog.set_config('lock_timeout', coalesce(nullif(@lock_timeout::text, ''), pg_catalog.current_setting('lock_timeout')), true),
  pg_catalog.set_config('statement_timeout', coalesce(nullif(@statement_timeout::text, ''), pg_catalog.current_setting('statement_timeout')), true);
