-- name: AuditEntry :one
-- The canonical entry of an event of the tenant, which must be the context's.
select e.log_entry_id, e.entry::text as entry
from custody.audit_entries e
where e.tenant_id = @tenant and e.log_entry_id = @log_entry_id and (sqlc.narg(occurred_at)::timestamptz is null or e.occurred_at = sqlc.narg(occurred_at))
order by e.occurred_at desc limit 1;

-- name: ConsistencyProof :one
select custody.consistency_proof(@old_size, @new_size)::jsonb as proof;

-- name: InclusionProof :one
select custody.inclusion_proof(@log_entry_id, sqlc.narg(occurred_at))::jsonb as proof;

-- name: LastCheckpoint :one
select coalesce(max(c.number), 0)::bigint as number from custody.ledger_checkpoints c;

-- name: LatestCheckpoint :many
-- The newest checkpoint on record, if there is one.
select c.number, c.tree_size, c.anchored_at from custody.ledger_checkpoints c order by c.number desc limit 1;

-- name: LedgerCheckpoint :one
select c.note from custody.ledger_checkpoints c where c.number = @number;

-- name: LedgerHead :one
select custody.ledger_head()::jsonb as head;

-- name: LedgerTile :one
select t.hashes from custody_data.ledger_tiles t where t.tenant_id = 'system' and t.level = @level and t.tile_index = @tile_index;

-- name: RecordCheckpoint :one
select custody.record_checkpoint(@number, @tree_size, @root_hash, @note, @object_key, @retain_until, @anchored_at)::boolean as recorded;

-- name: SealAuditLog :one
select custody.seal_audit_log(@max_events)::jsonb as outcome;

-- name: SealingStatus :one
select s.unsealed_events::bigint as unsealed_events, coalesce(extract(epoch from s.age), 0)::float8 as age_seconds,
  coalesce(s.holder_kind, '')::text as holder_kind, coalesce(s.holder, '')::text as holder, coalesce(s.holder_database, '')::text as holder_database,
  s.holder_since
from custody.sealing_status() s;

-- name: TakeOverLeaves :one
select custody.take_over_leaves(@kept, @hashes, @observed)::jsonb as outcome;
