-- name: ListLogins :many
select l.role_name::text as role_name, l.mode::text as mode, l.actor, l.purposes, l.registered_at, l.ended_at
from custody.logins l
where @ended::boolean or l.ended_at is null
order by l.role_name;

-- name: RegisterLogin :exec
select custody.register_login(@role, @actor, @tenant, sqlc.narg(purposes)::text[]);

-- name: RegisterTokenKey :one
select coalesce(custody.register_token_key(@kid, @key, sqlc.narg(tenant)), '')::text as kid;

-- name: RequireTokens :exec
select custody.require_tokens(@role, @required);

-- name: RetireLogin :exec
select custody.retire_login(@role);

-- name: RetireTokenKey :exec
select custody.retire_token_key(@kid);

-- name: RotateContextKey :one
select custody.rotate_context_key()::text as kid;
