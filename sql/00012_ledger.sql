-- The audit ledger: one Merkle tree over the audit trail of the whole database, and its signed checkpoints.
-- control: HIPAA 164.312(b), (c)(1)-(2); SOC 2 CC7.2; ISO 27001 A.8.15; GDPR Art. 5(1)(f), 5(2)
-- reviewed by: DBA, auditor
--
-- Appending an event touches nothing here. A sealer comes behind: it takes the events of transactions that have
-- ended and appends the hash of each as a leaf. Tiles are kept for good, 32 bytes an event, so that payloads may
-- leave and every older proof and checkpoint still verifies. Which event is which leaf is kept beside the tiles,
-- 256 a row.
--
-- The tree is that of RFC 6962, in the tiles of C2SP tlog-tiles: a tile of level 0 holds up to 256 leaf hashes, one
-- of level n + 1 the roots of up to 256 full tiles of level n.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.ledger_tiles (
  tenant_id custody_data.tenant_name not null default 'system',
  level smallint not null,
  tile_index bigint not null,
  hashes bytea not null,
  constraint ledger_tiles_pkey primary key (tenant_id, level, tile_index),
  constraint ledger_tiles_hashes_are_whole_check check (
    pg_catalog.octet_length(hashes) >= 32 and pg_catalog.octet_length(hashes) <= 8192 and pg_catalog.octet_length(hashes) % 32 = 0)
);
-- Hashes do not compress, and a node needs a slice of them.
alter table custody_data.ledger_tiles alter column hashes set storage external;
comment on table custody_data.ledger_tiles is 'Hashes of the Merkle tree, in the tiles of C2SP tlog-tiles: only the last tile of a level grows, and none is ever deleted.';
comment on column custody_data.ledger_tiles.hashes is '1 to 256 hashes of 32 bytes, from left to right.';

create table custody_data.ledger_entries (
  tenant_id custody_data.tenant_name not null default 'system',
  tile_index bigint not null,
  xids bytea not null,
  entry_ids bytea not null,
  days bytea not null,
  first_xid bigint not null,
  last_xid bigint not null,
  first_occurred_at timestamptz not null,
  last_occurred_at timestamptz not null,
  constraint ledger_entries_pkey primary key (tenant_id, tile_index),
  constraint ledger_entries_are_pairs_check check (
    pg_catalog.octet_length(entry_ids) >= 16 and pg_catalog.octet_length(entry_ids) <= 4096
    and pg_catalog.octet_length(entry_ids) = 2 * pg_catalog.octet_length(xids)
    and pg_catalog.octet_length(entry_ids) = 4 * pg_catalog.octet_length(days) and pg_catalog.octet_length(entry_ids) % 16 = 0)
);
alter table custody_data.ledger_entries alter column entry_ids set storage external;
-- Transactions and days are mostly the same from leaf to leaf, and are compressed only where a row is longer than this.
alter table custody_data.ledger_entries set (toast_tuple_target = 512);
-- The last tile is written anew with each batch, and at the usual fifth of a table what vacuum has not come to would
-- take more room than the ledger is allowed.
alter table custody_data.ledger_tiles set (toast.autovacuum_vacuum_threshold = 1000, toast.autovacuum_vacuum_scale_factor = 0.02);
alter table custody_data.ledger_entries set (toast.autovacuum_vacuum_threshold = 1000, toast.autovacuum_vacuum_scale_factor = 0.02);
-- Whoever looks for an event goes back from where the tiles begin too late, and as a rule the first is it. Ranges under
-- GiST would not be asked: their operators are not leakproof, so row-level security keeps them from an index, for the
-- owner's functions too.
create index ledger_entries_first_xid_idx on custody_data.ledger_entries (tenant_id, first_xid);
create index ledger_entries_first_occurred_at_idx on custody_data.ledger_entries (tenant_id, first_occurred_at);
comment on table custody_data.ledger_entries is 'Which events the leaves of a tile of level 0 are: finds the leaf of an event. What it says is checked against the leaves, never believed.';
comment on column custody_data.ledger_entries.xids is 'xid of each leaf''s event, 8 bytes each, in the order of leaves; 0 for a lost leaf.';
comment on column custody_data.ledger_entries.entry_ids is 'log_entry_id of each leaf''s event, 16 bytes each; zeros for a lost leaf.';
comment on column custody_data.ledger_entries.days is 'UTC day of each leaf''s event, 4 bytes each, days since 2000-01-01 as Postgres sends a date; -infinity (80000000) for a lost leaf. What the archive knows days by.';
comment on column custody_data.ledger_entries.first_xid is 'The least of xids.';
comment on column custody_data.ledger_entries.last_xid is 'The greatest of xids.';
comment on column custody_data.ledger_entries.first_occurred_at is 'The least occurred_at of the events; -infinity for lost leaves, whose times nobody knows.';
comment on column custody_data.ledger_entries.last_occurred_at is 'The greatest occurred_at of the events; infinity for lost leaves.';

create table custody_data.ledger_stretches (
  tenant_id custody_data.tenant_name not null default 'system',
  first_leaf bigint not null,
  kind text collate "C" not null,
  incarnation_id uuid not null,
  begun_at timestamptz not null default pg_catalog.clock_timestamp(),
  constraint ledger_stretches_pkey primary key (tenant_id, first_leaf),
  constraint ledger_stretches_kind_is_known_check check (kind in ('sealed', 'swept', 'adopted', 'lost')),
  constraint ledger_stretches_first_leaf_is_not_negative_check check (first_leaf >= 0)
);
comment on table custody_data.ledger_stretches is 'Runs of leaves in the order of (xid, log_entry_id), each up to the next: sealed as transactions ended; swept when an incarnation was opened; adopted by an administrator; lost, taken over from the bucket without their events. Append-only.';

create table custody_data.ledger_heads (
  tenant_id custody_data.tenant_name not null default 'system',
  tree_size bigint not null default 0,
  incarnation_id uuid,
  sealed_to xid8 not null default '0',
  sealed_to_entry_id uuid,
  taken_until xid8 not null default '0',
  sealed_at timestamptz,
  constraint ledger_heads_pkey primary key (tenant_id),
  constraint ledger_heads_tree_size_is_not_negative_check check (tree_size >= 0)
);
comment on table custody_data.ledger_heads is 'How far the sealer is: one row.';
comment on column custody_data.ledger_heads.sealed_to is 'Every event of a lower xid that this incarnation wrote has its leaf; of this xid, those up to sealed_to_entry_id.';
comment on column custody_data.ledger_heads.taken_until is 'Up to this xid events may have leaves from before this incarnation: the sealer looks before it appends.';

create table custody_data.ledger_checkpoints (
  tenant_id custody_data.tenant_name not null default 'system',
  number bigint not null,
  tree_size bigint not null,
  root_hash bytea not null,
  note text not null,
  object_key text not null,
  retain_until timestamptz,
  anchored_at timestamptz not null,
  recorded_at timestamptz not null default pg_catalog.clock_timestamp(),
  constraint ledger_checkpoints_pkey primary key (tenant_id, number),
  constraint ledger_checkpoints_root_hash_is_a_sha256_check check (pg_catalog.octet_length(root_hash) = 32)
);
create index ledger_checkpoints_tree_size_idx on custody_data.ledger_checkpoints (tenant_id, tree_size);
comment on table custody_data.ledger_checkpoints is 'Signed checkpoints as the signer put them into the bucket: what proofs are made for. A copy for convenience, append-only; what counts is in the bucket.';
comment on column custody_data.ledger_checkpoints.number is 'Of the object: without gaps from 1.';
comment on column custody_data.ledger_checkpoints.note is 'The signed note, C2SP tlog-checkpoint.';

-- The tree belongs to no tenant: its hashes and counts tell nobody anything, and every tenant's proofs are made of it.
-- +goose StatementBegin
do $$
declare
  v_table text;
  v_trigger record;
begin
  foreach v_table in array array['ledger_tiles', 'ledger_entries', 'ledger_stretches', 'ledger_heads', 'ledger_checkpoints'] loop
    execute pg_catalog.format('alter table custody_data.%I enable row level security, force row level security', v_table);
    execute pg_catalog.format('create policy %I on custody_data.%I for select using ((select custody.current_tenant()) is not null and not (select custody.has_subject()))', v_table || '_all_select', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_all_select', v_table, 'Whoever has a context of a whole tenant and a right to the table.');
    execute pg_catalog.format('create policy %I on custody_data.%I to custody_owner using ((select custody.current_tenant()) is not null)', v_table || '_owner_all', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_owner_all', v_table, 'The functions that seal, and make proofs for every tenant.');
    execute pg_catalog.format('create policy %I on custody_data.%I for select to custody_backup using (true)', v_table || '_backup_select', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_backup_select', v_table, 'pg_dump --enable-row-security reads every row.');
    execute pg_catalog.format('grant select on custody_data.%I to custody_worker, custody_auditor, custody_privacy, custody_backup', v_table);
  end loop;

  -- What a signed checkpoint covers never changes; what it does not cover yet is cut off only where the bucket knows better.
  foreach v_table in array array['ledger_tiles', 'ledger_entries', 'ledger_stretches'] loop
    execute pg_catalog.format('create trigger a_keep_anchored before update or delete on custody_data.%I
      for each row execute function custody_data.%I()', v_table, replace(v_table, 'ledger_', 'tg_keep_'));
    execute pg_catalog.format('create trigger a_reject_truncate before truncate on custody_data.%I
      for each statement execute function custody_data.tg_reject_mutation()', v_table);
  end loop;
  create trigger a_reject_mutation before update or delete or truncate on custody_data.ledger_checkpoints
    for each statement execute function custody_data.tg_reject_mutation();
  create trigger a_reject_row_mutation before update or delete on custody_data.ledger_checkpoints
    for each row execute function custody_data.tg_reject_mutation();
  create trigger a_reject_delete before delete or truncate on custody_data.ledger_heads
    for each statement execute function custody_data.tg_reject_mutation();

  for v_trigger in
    select t.tgname, c.relname from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'custody_data'::regnamespace and c.relname like 'ledger\_%' and not t.tgisinternal
  loop
    execute pg_catalog.format('alter table custody_data.%I enable always trigger %I', v_trigger.relname, v_trigger.tgname);
  end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
drop table custody_data.ledger_checkpoints, custody_data.ledger_heads, custody_data.ledger_stretches, custody_data.ledger_entries, custody_data.ledger_tiles cascade;
