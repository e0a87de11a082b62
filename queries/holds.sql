-- name: PlaceHold :one
select custody.place_hold(@scope, @reference, @reason, sqlc.narg(until_at))::uuid as hold_id;

-- name: ReleaseHold :exec
select custody.release_hold(@hold_id, @reason);
