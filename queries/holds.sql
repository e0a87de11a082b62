-- name: ListHolds :many
select h.hold_id, h.scope, h.identity_id, h.table_name, h.row_id, h.reference, h.reason, h.placed_at, h.until_at,
  h.released_at, h.release_reason, h.active::boolean as active
from custody.holds h
where h.active or @released::boolean
order by h.placed_at, h.hold_id;

-- name: PlaceHold :one
select custody.place_hold(@scope, @reference, @reason, sqlc.narg(until_at))::uuid as hold_id;

-- name: ReleaseHold :one
select custody.release_hold(@hold_id, @reason)::bigint as resumed;
