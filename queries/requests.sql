-- name: CancelRequest :exec
select custody.cancel_request(@request_id, @reason);

-- name: DueRequests :many
select r.request_id, r.received_at from custody.due_requests(@kind, @max_rows) r order by r.received_at;

-- name: ExtendRequest :exec
select custody.extend_request(@request_id, @reason);

-- name: ListRequests :many
select r.request_id, r.kind, r.status, r.received_at, r.due_at, r.extended_at, r.closed_at
from custody.list_requests(sqlc.narg(status), @max_rows, sqlc.narg(after)) r;

-- name: RequestErasure :one
select custody.request_erasure(@user_id, @reason, sqlc.narg(request_id))::uuid as request_id;

-- name: RequestExport :one
select custody.request_export(@user_id, @reason, sqlc.narg(request_id))::uuid as request_id;

-- name: RequestStatus :one
select custody.request_status(@request_id)::jsonb as status;
