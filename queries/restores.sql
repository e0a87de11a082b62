-- name: AddRestoredEvents :one
select custody.add_restored_events(@restore_id, @object_key, @leaves::bigint[], @entries::text[])::bigint as added;

-- name: BeginRestore :one
select custody.begin_restore(@range_from, @range_to, sqlc.narg(of_tenant), sqlc.narg(identity_id), sqlc.narg(log_entry_id), sqlc.narg(action), @reason::text,
  (sqlc.narg(keep)::text)::interval)::uuid as restore_id;

-- name: FinishRestore :exec
select custody.finish_restore(@restore_id, @rows, @segments);

-- name: IdentityOf :one
-- Of a user_id, or of an identity itself: a person who was erased has no user_id any more.
select i.identity_id
from custody_data.identities i
where i.tenant_id = @tenant and (i.user_id = @user_id::text or i.identity_id = sqlc.narg(identity_id)::uuid)
order by i.user_id is not distinct from @user_id::text desc limit 1;

-- name: LedgerTiles :many
-- Tiles of level 0.
select t.tile_index, t.hashes
from custody_data.ledger_tiles t
where t.tenant_id = 'system' and t.level = 0 and t.tile_index = any (@tiles::bigint[]);
