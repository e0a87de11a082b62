-- name: CancelRequest :one
select custody.cancel_request(@request_id, sqlc.narg(reason))::text as status;

-- name: CompleteExport :exec
select custody.complete_export(@request_id, @bytes);

-- name: DueRequests :many
select r.request_id
from custody.due_requests(@kind, @max_rows, pg_catalog.now() - pg_catalog.make_interval(secs => @grace_seconds)) r;

-- name: ExtendRequest :one
select custody.extend_request(@request_id, @reason)::timestamptz as due_at;

-- name: ListRequests :many
select r.request_id, r.kind, r.status, r.identity_id, r.received_at, r.due_at, r.extended_at, r.closed_at, r.overdue::boolean as overdue
from custody.list_requests(sqlc.narg(status), @max_rows, sqlc.narg(after)) r;

-- name: OpenErasures :many
select r.request_id
from custody_data.requests r
join custody_data.identities i on i.tenant_id = r.tenant_id and i.identity_id = r.identity_id
where i.user_id = @user_id::text and r.kind = 'erasure' and r.status in ('received', 'held')
order by r.received_at, r.request_id;

-- name: OpenRequestCounts :one
select count(*)::bigint as open, count(*) filter (where r.status = 'held')::bigint as held,
  count(*) filter (where r.due_at < pg_catalog.now())::bigint as overdue
from custody_data.requests r
where r.status in ('received', 'held');

-- name: ErasurePlanOfRequest :one
-- What an open erasure request would erase and keep.
select custody.plan_erasure(i.user_id)::jsonb as plan
from custody_data.requests r
join custody_data.identities i on i.tenant_id = r.tenant_id and i.identity_id = r.identity_id
where r.request_id = @request_id and r.kind = 'erasure' and r.status in ('received', 'held') and i.user_id is not null;

-- name: RequestErasure :one
select custody.request_erasure(@user_id, sqlc.narg(reason), sqlc.narg(request_id))::uuid as request_id;

-- name: RequestExport :one
select custody.request_export(@user_id, sqlc.narg(reason), sqlc.narg(request_id))::uuid as request_id;

-- name: RequestStatus :one
select custody.request_status(@request_id) as status;
