-- name: Unlock :one
-- 0 where the database refused the key without an error, which its log would have shown together with the key.
select coalesce(custody.unlock(@kek), 0)::integer as kek_version;

-- name: RegisterKEK :one
select coalesce(custody.register_kek(@kek, @reference, sqlc.narg(current)::bytea), 0)::integer as kek_version;

-- name: ListKEKs :many
select k.kek_version, k.reference, k.created_at, k.retired_at, k.data_keys, k.overdue from custody.list_keks() k;

-- name: RewrapKeys :one
select custody.rewrap_keys(@batch, sqlc.narg(after))::jsonb as result;

-- name: RetireKEK :one
select custody.retire_kek()::bigint as keys;
