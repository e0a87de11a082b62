-- name: Unlock :one
-- 0 where the database refused the key without an error, which its log would have shown together with the key.
select coalesce(custody.unlock(@kek), 0)::integer as kek_version;

-- name: RegisterKEK :one
select coalesce(custody.register_kek(@kek, @reference, sqlc.narg(current)::bytea), 0)::integer as kek_version;

-- name: CurrentKEK :many
select k.kek_version, k.reference from custody.current_kek() k;

-- name: ListKEKs :many
select k.kek_version, k.reference, k.created_at, k.retired_at, k.destroyed_at, k.data_keys, k.overdue from custody.list_keks() k;

-- name: RewrapKeys :one
select custody.rewrap_keys(@batch, sqlc.narg(after))::jsonb as result;

-- name: RetireKEK :one
select custody.retire_kek()::bigint as keys;

-- name: MarkKEKDestroyed :one
select custody.mark_kek_destroyed(@kek_version)::boolean as marked;

-- name: RotateDataKeys :one
select custody.rotate_data_keys(@created_before, @people, sqlc.narg(after))::jsonb as result;

-- name: RotateIndexKey :one
select custody.rotate_index_key()::integer as version;

-- name: ReindexProfiles :one
select custody.reindex_profiles(@profiles, sqlc.narg(after))::jsonb as result;

-- name: ExpireDataKeys :one
select custody.expire_data_keys()::bigint as keys;

-- name: ListKeyAges :many
select a.kind, a.keys, a.oldest, a.overdue from custody.list_key_ages() a;

-- name: ListSealedValues :many
select v.table_name, v.column_name, v.append_only, v.key_version, v.state, v.sealed_values from custody.list_sealed_values() v;

-- name: KeyPolicies :one
-- How long keys are in use, in seconds, and the time that the database has.
select extract(epoch from custody_data.keep_of('key_age'))::float8 as key_age, extract(epoch from custody_data.keep_of('kek_generation'))::float8 as kek_generation,
  extract(epoch from custody_data.keep_of('key_backup'))::float8 as key_backup, now()::timestamptz as now;
