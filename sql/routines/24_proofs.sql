-- Proofs of the audit ledger: roots, inclusion, consistency; recorded checkpoints; the ledger's self-check.
-- control: HIPAA 164.312(c)(2); SOC 2 CC7.2; ISO 27001 A.8.15; GDPR Art. 5(2)
-- reviewed by: auditor, DBA
--
-- Everything here is computed from the tiles, by RFC 6962 sections 2.1.1 and 2.1.2. A proof says that an event is
-- in the tree that a signed checkpoint names, so none is made for what no checkpoint covers. Who checks a proof needs
-- neither this database nor its functions.

create or replace function custody_data.tile_hashes(p_level integer, p_first bigint, p_count integer)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hashes bytea := ''::bytea;
begin
  if p_count > 0 then
    select substr(t.hashes, (p_first % 256 * 32 + 1)::integer, p_count * 32) into v_hashes
    from custody_data.ledger_tiles t
    where t.tenant_id = 'system' and t.level = p_level and t.tile_index = p_first / 256;
    if octet_length(v_hashes) is distinct from p_count * 32 then
      raise exception using
        errcode = 'PC041',
        message = format('the ledger lacks hashes of tile %s of level %s', p_first / 256, p_level),
        hint = 'Tiles are never deleted. Run pgcustody verify and have the case looked at.';
    end if;
  end if;
  return v_hashes;
end
$$;
revoke all on function custody_data.tile_hashes(integer, bigint, integer) from public;
comment on function custody_data.tile_hashes(integer, bigint, integer) is 'p_count hashes of a level from the one at p_first on, of one tile. Errors: PC041 hashes are missing.';

create or replace function custody_data.node_hash(p_height integer, p_index bigint)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_folds constant integer := p_height % 8;
begin
  return custody_data.fold_hashes(custody_data.tile_hashes(p_height / 8, p_index << v_folds, 1 << v_folds), v_folds);
end
$$;
revoke all on function custody_data.node_hash(integer, bigint) from public;
comment on function custody_data.node_hash(integer, bigint) is 'Root of the complete subtree of 2^p_height leaves that begins at leaf p_index * 2^p_height. Errors: PC041 hashes are missing.';

create or replace function custody_data.height_of(p_leaves bigint)
returns integer
language sql
immutable
parallel safe
return pg_catalog.length(pg_catalog.ltrim((p_leaves - 1)::bit(64)::text, '0'));
revoke all on function custody_data.height_of(bigint) from public;
comment on function custody_data.height_of(bigint) is 'Height of a tree of so many leaves. RFC 6962 splits it at 2 to the power of one less.';

create or replace function custody_data.subtree_hash(p_from bigint, p_to bigint)
returns bytea
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_leaves constant bigint := p_to - p_from;
  v_split bigint;
begin
  if v_leaves & (v_leaves - 1) = 0 and p_from % v_leaves = 0 then
    return custody_data.node_hash(custody_data.height_of(v_leaves), p_from / v_leaves);
  end if;
  v_split := 1::bigint << (custody_data.height_of(v_leaves) - 1);
  return sha256('\x01'::bytea || custody_data.subtree_hash(p_from, p_from + v_split) || custody_data.subtree_hash(p_from + v_split, p_to));
end
$$;
revoke all on function custody_data.subtree_hash(bigint, bigint) from public;
comment on function custody_data.subtree_hash(bigint, bigint) is 'MTH(D[p_from:p_to]) of RFC 6962 section 2.1, of at least one leaf.';

create or replace function custody_data.inclusion_path(p_leaf bigint, p_size bigint)
returns bytea[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_level integer := 0;
  v_index bigint := p_leaf;
  v_nodes bigint := p_size;
  -- the node behind v_nodes whose subtree is not complete; empty where there is none
  v_edge bytea := ''::bytea;
  v_row bytea;
  v_path bytea[] := array[]::bytea[];
begin
  -- Of each level one tile is hashed up, and beside it the one at the right edge: node by node, down from the root, most
  -- tiles would be read eight times.
  while v_nodes + sign(octet_length(v_edge)) > 1 loop
    v_edge := custody_data.tile_hashes(v_level, v_nodes / 256 * 256, (v_nodes % 256)::integer) || v_edge;
    v_row := case when v_index / 256 = v_nodes / 256 then v_edge else custody_data.tile_hashes(v_level, v_index / 256 * 256, 256) end;
    for n in 0 .. 7 loop
      if octet_length(v_row) / 32 > (v_index % 256 >> n) # 1 then
        v_path := v_path || substr(v_row, ((v_index % 256 >> n) # 1)::integer * 32 + 1, 32);
      end if;
      v_row := custody_data.fold_hashes(v_row, 1);
    end loop;
    v_edge := case when v_index / 256 = v_nodes / 256 then v_row else custody_data.fold_hashes(v_edge, 8) end;
    v_level := v_level + 1;
    v_index := v_index / 256;
    v_nodes := v_nodes / 256;
  end loop;
  return v_path;
end
$$;
revoke all on function custody_data.inclusion_path(bigint, bigint) from public;
comment on function custody_data.inclusion_path(bigint, bigint) is 'PATH(p_leaf, D[p_size]) of RFC 6962 section 2.1.1. Errors: PC041 hashes are missing.';

create or replace function custody_data.consistency_path(p_old bigint, p_new bigint)
returns bytea[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_from bigint := 0;
  v_to bigint := p_new;
  v_split bigint;
  v_path bytea[] := array[]::bytea[];
begin
  while p_old < v_to loop
    v_split := v_from + (1::bigint << (custody_data.height_of(v_to - v_from) - 1));
    if p_old <= v_split then
      v_path := custody_data.subtree_hash(v_split, v_to) || v_path;
      v_to := v_split;
    else
      v_path := custody_data.subtree_hash(v_from, v_split) || v_path;
      v_from := v_split;
    end if;
  end loop;
  -- The old tree as a whole is known to whoever asks.
  if v_from > 0 then
    v_path := custody_data.subtree_hash(v_from, v_to) || v_path;
  end if;
  return v_path;
end
$$;
revoke all on function custody_data.consistency_path(bigint, bigint) from public;
comment on function custody_data.consistency_path(bigint, bigint) is 'PROOF(p_old, D[p_new]) of RFC 6962 section 2.1.2, of 1 <= p_old <= p_new leaves. Errors: PC041 hashes are missing.';

create or replace function custody_data.hashes_json(p_hashes bytea[])
returns jsonb
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(jsonb_agg(encode(h.hash, 'base64') order by h.n), '[]') from unnest(p_hashes) with ordinality h (hash, n);
$$;
revoke all on function custody_data.hashes_json(bytea[]) from public;
comment on function custody_data.hashes_json(bytea[]) is 'Hashes in base64 as a JSON array.';

-- definer: the tree is read for every tenant
create or replace function custody.ledger_root(p_tree_size bigint)
returns bytea
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_size constant bigint := coalesce((select h.tree_size from custody_data.ledger_heads h where h.tenant_id = 'system'), 0);
begin
  perform custody_data.require_context();
  if p_tree_size is null or p_tree_size not between 0 and v_size then
    raise exception using errcode = 'PC023', message = 'invalid p_tree_size', detail = format('The ledger has %s leaves.', v_size), hint = 'Give 0 to that many.';
  end if;
  return case p_tree_size when 0 then sha256('') else custody_data.subtree_hash(0, p_tree_size) end;
end
$$;
revoke all on function custody.ledger_root(bigint) from public;
grant execute on function custody.ledger_root(bigint) to custody_worker, custody_auditor, custody_privacy;
comment on function custody.ledger_root(bigint) is
'Root hash, 32 bytes, of the ledger''s first p_tree_size leaves (RFC 6962 section 2.1; SHA-256 of nothing for none).
Errors: PC001, PC023, PC041 hashes are missing. Callers: custody_worker, custody_auditor, custody_privacy.';

-- definer: reads the sealer's place
create or replace function custody.ledger_head()
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_head custody_data.ledger_heads;
  v_incarnation custody_data.incarnations;
begin
  perform custody_data.require_all_tenants('ledger');
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  select i.* into v_incarnation from custody_data.incarnations i where i.incarnation_id = v_head.incarnation_id;
  return jsonb_build_object('tree_size', coalesce(v_head.tree_size, 0), 'root', encode(custody.ledger_root(coalesce(v_head.tree_size, 0)), 'base64'),
    'incarnation_id', v_head.incarnation_id, 'opened_at', custody_data.entry_time(v_incarnation.opened_at),
    'system_identifier', v_incarnation.system_identifier::text, 'timeline', v_incarnation.timeline,
    'sealed_to', coalesce(v_head.sealed_to, '0')::text, 'sealed_at', custody_data.entry_time(v_head.sealed_at),
    'next_xid', pg_snapshot_xmax(pg_current_snapshot())::text,
    'waiting_since', (select custody_data.entry_time(s.oldest_recorded_at) from custody.sealing_status() s),
    'retain_until', custody_data.entry_time(custody_data.retain_until(now()) + interval '24 hours'));
end
$$;
revoke all on function custody.ledger_head() from public;
grant execute on function custody.ledger_head() to custody_worker, custody_auditor;
comment on function custody.ledger_head() is
'Where the ledger stands, for who signs it: {"tree_size", "root" in base64, "incarnation_id", "opened_at", "system_identifier", "timeline", "sealed_to" the transaction up to which all events have leaves, "sealed_at", "next_xid" the first transaction that was not begun, "waiting_since" the time of the oldest event without a leaf, "retain_until" until when what is anchored now is to be locked, with a day to spare}; what is not there is null.
Errors: PC001, PC015 outside tenant system, PC026, PC041. Callers: custody_worker, custody_auditor.';

-- definer: checkpoints are written by this function alone
create or replace function custody.record_checkpoint(
  p_number bigint, p_tree_size bigint, p_root_hash bytea, p_note text, p_object_key text, p_retain_until timestamptz, p_anchored_at timestamptz
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_first custody_data.ledger_checkpoints;
begin
  perform custody_data.require_all_tenants('ledger');
  if p_number is null or p_number < 1 or p_note is null or p_object_key is null or p_anchored_at is null then
    raise exception using errcode = 'PC023', message = 'a checkpoint is recorded whole', hint = 'Give its number from 1 on, its note, the key of its object and the time of anchoring.';
  end if;
  if p_root_hash is distinct from custody.ledger_root(p_tree_size) then
    raise exception using
      errcode = 'PC041',
      message = format('checkpoint %s has another root than the ledger', p_number),
      detail = format('Of %s leaves.', p_tree_size),
      hint = 'What is in the bucket counts. Run pgcustody verify and have the case looked at.';
  end if;
  insert into custody_data.ledger_checkpoints (number, tree_size, root_hash, note, object_key, retain_until, anchored_at)
  values (p_number, p_tree_size, p_root_hash, p_note, p_object_key, p_retain_until, p_anchored_at)
  on conflict do nothing;
  if found then
    return true;
  end if;
  select c.* into v_first from custody_data.ledger_checkpoints c where c.tenant_id = 'system' and c.number = p_number;
  if (v_first.tree_size, v_first.root_hash, v_first.note) is distinct from (p_tree_size, p_root_hash, p_note) then
    raise exception using
      errcode = 'PC041',
      message = format('checkpoint %s was recorded with other content', p_number),
      hint = 'What is in the bucket counts. Run pgcustody verify and have the case looked at.';
  end if;
  return false;
end
$$;
revoke all on function custody.record_checkpoint(bigint, bigint, bytea, text, text, timestamptz, timestamptz) from public;
grant execute on function custody.record_checkpoint(bigint, bigint, bytea, text, text, timestamptz, timestamptz) to custody_worker;
comment on function custody.record_checkpoint(bigint, bigint, bytea, text, text, timestamptz, timestamptz) is
'Records a signed checkpoint that is in the bucket, so that proofs can be made for what it covers; false where it is recorded already. It is no event: a log of anchors in the log would make it grow with every anchor.
p_number: of its object. p_root_hash: 32 bytes, compared with the tiles. p_note: the signed note. p_retain_until: end of the object''s lock.
Errors: PC001, PC015 outside tenant system, PC023, PC026, PC041 another root than the ledger''s, or other content than before. Callers: custody_worker.';

create or replace function custody_data.require_checkpoint(p_covers bigint, p_tree_size bigint default null)
returns custody_data.ledger_checkpoints
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_checkpoint custody_data.ledger_checkpoints;
begin
  select c.* into v_checkpoint
  from custody_data.ledger_checkpoints c
  where c.tenant_id = 'system' and (p_tree_size is null or c.tree_size = p_tree_size) and c.tree_size >= p_covers
  order by c.tree_size desc, c.number desc limit 1;
  if v_checkpoint.number is null then
    raise exception using
      errcode = 'PC040',
      message = case when p_tree_size is null then 'no signed checkpoint covers that event yet' else format('no signed checkpoint of %s leaves covers that', p_tree_size) end,
      hint = case when p_tree_size is null then 'Checkpoints are anchored by pgcustody anchor, as a rule each minute: ask again after the next one. custody.sealing_status says what delays sealing.'
        else 'Give the size of a checkpoint: custody.ledger_checkpoints lists them.' end;
  end if;
  return v_checkpoint;
end
$$;
revoke all on function custody_data.require_checkpoint(bigint, bigint) from public;
comment on function custody_data.require_checkpoint(bigint, bigint) is 'The newest signed checkpoint, or the one of p_tree_size leaves, that covers the first p_covers leaves. Errors: PC040.';

create or replace function custody_data.find_leaf(p_log_entry_id uuid, p_occurred tstzrange, p_xid xid8, p_hash bytea)
returns bigint
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_sort = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_id constant bytea := uuid_send(p_log_entry_id);
  v_xid bigint;
begin
  -- No server gets this far, and nothing of it is sealed.
  if p_xid >= '9223372036854775807' then
    return null;
  end if;
  v_xid := p_xid::text::bigint;
  -- What the sealer has not come to has no leaf, unless a restore or an adoption brought it: to look for it would be to
  -- go back over the whole map.
  if exists (
    select from custody_data.ledger_heads h
    where h.tenant_id = 'system' and h.sealed_to > h.taken_until
      and (p_xid > h.sealed_to or (p_xid = h.sealed_to and h.sealed_to_entry_id is null))
  ) then
    return null;
  end if;
  -- The transaction tells the tile where an import mixed all times, the time where one wrote many tiles. Ids are in memory
  -- before they are taken apart: each slice would be read from TOAST. Tiles come by the index, from the likeliest on.
  if v_xid is not null then
    return (
      select e.tile_index * 256 + n.n
      from (
        select m.tile_index, m.entry_ids || '' as entry_ids
        from custody_data.ledger_entries m
        where m.tenant_id = 'system' and m.first_xid <= v_xid and m.last_xid >= v_xid
          and m.first_occurred_at <= upper(p_occurred) and m.last_occurred_at >= lower(p_occurred)
          and position(v_id in m.entry_ids) > 0
        order by m.first_xid desc
        offset 0
      ) e
      cross join lateral generate_series(0, octet_length(e.entry_ids) / 16 - 1) n (n)
      where substr(e.entry_ids, n.n * 16 + 1, 16) = v_id
        and (p_hash is null or exists (
          select from custody_data.ledger_tiles t
          where t.tenant_id = 'system' and t.level = 0 and t.tile_index = e.tile_index and substr(t.hashes, n.n * 32 + 1, 32) = p_hash))
      limit 1);
  end if;
  return (
    select e.tile_index * 256 + n.n
    from (
      select m.tile_index, m.entry_ids || '' as entry_ids
      from custody_data.ledger_entries m
      where m.tenant_id = 'system' and m.first_occurred_at <= upper(p_occurred) and m.last_occurred_at >= lower(p_occurred)
        and position(v_id in m.entry_ids) > 0
      order by m.first_occurred_at desc
      offset 0
    ) e
    cross join lateral generate_series(0, octet_length(e.entry_ids) / 16 - 1) n (n)
    where substr(e.entry_ids, n.n * 16 + 1, 16) = v_id
      and (p_hash is null or exists (
        select from custody_data.ledger_tiles t
        where t.tenant_id = 'system' and t.level = 0 and t.tile_index = e.tile_index and substr(t.hashes, n.n * 32 + 1, 32) = p_hash))
    limit 1);
end
$$;
revoke all on function custody_data.find_leaf(uuid, tstzrange, xid8, bytea) from public;
comment on function custody_data.find_leaf(uuid, tstzrange, xid8, bytea) is 'Index of the leaf of an event that occurred then, of this transaction and with this leaf hash where they are given; null where there is none.';

create or replace function custody_data.time_in_id(p_log_entry_id uuid)
returns tstzrange
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case when substr(p_log_entry_id::text, 15, 1) = '7'
      and ('x0000' || replace(left(p_log_entry_id::text, 13), '-', ''))::bit(64)::bigint < 253402300800000 then (
    -- an event is dated when its id is drawn, or in the instant before
    select tstzrange(t.drawn - interval '1 second', t.drawn + interval '1 second')
    from (select 'epoch'::timestamptz + ('x0000' || replace(left(p_log_entry_id::text, 13), '-', ''))::bit(64)::bigint * interval '1 millisecond' as drawn) t)
  end;
$$;
revoke all on function custody_data.time_in_id(uuid) from public;
comment on function custody_data.time_in_id(uuid) is 'When an event occurred whose id the server drew (RFC 9562 version 7), to the second; null for other ids.';

create or replace function custody_data.leaf_of(p_log_entry_id uuid, p_occurred_at timestamptz, out is_known boolean, out is_altered boolean, out leaf_index bigint)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_event custody_data.audit_logs;
begin
  select a.* into v_event
  from custody_data.audit_logs a
  where a.tenant_id = custody.current_tenant() and a.log_entry_id = p_log_entry_id and (p_occurred_at is null or a.occurred_at = p_occurred_at)
  order by a.occurred_at desc limit 1;
  is_altered := false;
  if v_event.log_entry_id is not null then
    is_known := true;
    leaf_index := custody_data.find_leaf(p_log_entry_id, tstzrange(v_event.occurred_at, v_event.occurred_at, '[]'), v_event.xid, custody_data.leaf_hash(v_event));
    is_altered := leaf_index is null and custody_data.find_leaf(p_log_entry_id, tstzrange(v_event.occurred_at, v_event.occurred_at, '[]'), null, null) is not null;
  elsif not custody.has_subject() then
    -- It may be in the archive alone: whoever has it there has its id, its time and its content.
    leaf_index := custody_data.find_leaf(p_log_entry_id,
      case when p_occurred_at is null then custody_data.time_in_id(p_log_entry_id) else tstzrange(p_occurred_at, p_occurred_at, '[]') end, null, null);
    is_known := leaf_index is not null;
  end if;
end
$$;
revoke all on function custody_data.leaf_of(uuid, timestamptz) from public;
comment on function custody_data.leaf_of(uuid, timestamptz) is 'Whether an event is known in the context, whether it is another than was sealed, and the index of its leaf; null where it has none.';

create or replace function custody_data.inclusion_json(p_leaf bigint, p_checkpoint custody_data.ledger_checkpoints)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('leaf_index', p_leaf, 'tree_size', p_checkpoint.tree_size, 'leaf_hash', encode(custody_data.node_hash(0, p_leaf), 'base64'),
    'hashes', custody_data.hashes_json(custody_data.inclusion_path(p_leaf, p_checkpoint.tree_size)), 'checkpoint', p_checkpoint.note);
$$;
revoke all on function custody_data.inclusion_json(bigint, custody_data.ledger_checkpoints) from public;
comment on function custody_data.inclusion_json(bigint, custody_data.ledger_checkpoints) is 'The proof that a leaf is in the tree of a checkpoint, as inclusion_proof returns it.';

-- definer: the tree is read for every tenant, the event by the rules of the context
create or replace function custody.inclusion_proof(p_log_entry_id uuid, p_occurred_at timestamptz default null, p_tree_size bigint default null)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_event record;
begin
  v_event := custody_data.leaf_of(p_log_entry_id, p_occurred_at);
  if v_event.is_altered then
    raise exception using
      errcode = 'PC041',
      message = format('event %s is not what was sealed', p_log_entry_id),
      hint = 'It, or its leaf, was altered. Run pgcustody verify and have the case looked at.';
  end if;
  if v_event.is_known is not true then
    raise exception using
      errcode = 'PC042',
      message = 'unknown event',
      detail = format('Tenant %s has no event %s%s.', v_tenant, p_log_entry_id, case when p_occurred_at is not null then ' of that time' else '' end),
      hint = 'Of an event that is in the archive alone, and whose id the client gave, give the time as well.';
  end if;
  return custody_data.inclusion_json(v_event.leaf_index, custody_data.require_checkpoint(coalesce(v_event.leaf_index + 1, 9223372036854775807), p_tree_size));
end
$$;
revoke all on function custody.inclusion_proof(uuid, timestamptz, bigint) from public;
grant execute on function custody.inclusion_proof(uuid, timestamptz, bigint) to custody_readwrite, custody_worker, custody_privacy, custody_auditor;
comment on function custody.inclusion_proof(uuid, timestamptz, bigint) is
'Proof that an event of the tenant is in the tree of a signed checkpoint: {"leaf_index", "tree_size", "leaf_hash", "hashes", "checkpoint"}, hashes in base64 from the leaf up (RFC 6962 section 2.1.1), checkpoint the signed note. Who checks it needs the event''s canonical entry, whose hash the leaf is.
p_occurred_at: of the event; needed where it is in the archive alone and the client gave its id. p_tree_size: of the checkpoint; default the newest.
Errors: PC001, PC041 the event is not what was sealed, PC042 unknown event, PC040 no checkpoint covers it yet. Callers: custody_readwrite, custody_worker, custody_privacy, custody_auditor.';

-- definer: as inclusion_proof
create or replace function custody.consistency_proof(p_old_size bigint, p_new_size bigint)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old custody_data.ledger_checkpoints;
  v_new custody_data.ledger_checkpoints;
begin
  perform custody_data.require_context();
  if p_old_size is null or p_new_size is null or p_old_size not between 1 and p_new_size then
    raise exception using errcode = 'PC023', message = 'invalid p_old_size or p_new_size', hint = 'Give the sizes of two checkpoints, the smaller first; of an empty tree there is nothing to prove.';
  end if;
  v_old := custody_data.require_checkpoint(p_old_size, p_old_size);
  v_new := custody_data.require_checkpoint(p_new_size, p_new_size);
  return jsonb_build_object('old_size', p_old_size, 'new_size', p_new_size,
    'hashes', custody_data.hashes_json(custody_data.consistency_path(p_old_size, p_new_size)), 'old_checkpoint', v_old.note, 'new_checkpoint', v_new.note);
end
$$;
revoke all on function custody.consistency_proof(bigint, bigint) from public;
grant execute on function custody.consistency_proof(bigint, bigint) to custody_readwrite, custody_worker, custody_privacy, custody_auditor;
comment on function custody.consistency_proof(bigint, bigint) is
'Proof that the tree of one signed checkpoint begins with that of another: {"old_size", "new_size", "hashes", "old_checkpoint", "new_checkpoint"}, hashes in base64 in the order of RFC 6962 section 2.1.2.
p_old_size, p_new_size: sizes of checkpoints, 1 or more, the smaller first.
Errors: PC001, PC023, PC041 hashes are missing, PC040 no checkpoint of that size. Callers: custody_readwrite, custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.ledger_checkpoints with (security_invoker = true) as
select c.number, c.tree_size, c.root_hash, c.note, c.object_key, c.retain_until, c.anchored_at
from custody_data.ledger_checkpoints c;
grant select on custody.ledger_checkpoints to custody_worker, custody_auditor, custody_privacy;
comment on view custody.ledger_checkpoints is 'Signed checkpoints as recorded here; what counts is in the bucket. Readers: custody_worker, custody_auditor, custody_privacy.';

create or replace view custody.ledger_finding with (security_invoker = true) as
select ''::text as kind, 0::bigint as leaf_index, null::uuid as log_entry_id, ''::text as detail
where false;
comment on view custody.ledger_finding is 'Shape of verify_ledger. kind: event_altered, event_missing, event_unsealed, leaf_repeated, tile_altered, checkpoint_mismatch.';

-- definer: reads the trail of all tenants
create or replace function custody.verify_ledger(p_from bigint default 0)
returns setof custody.ledger_finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_head custody_data.ledger_heads;
  -- Of this cluster's transactions only this one's own events can lie at or beyond the snapshot's end and be seen.
  v_beyond constant xid8 := greatest(pg_snapshot_xmax(pg_current_snapshot()), custody_data.next_xid(pg_current_xact_id_if_assigned()));
begin
  perform custody_data.require_all_tenants('ledger');
  if p_from is null or p_from < 0 then
    raise exception using errcode = 'PC023', message = 'invalid p_from', hint = 'Give the index of a leaf, 0 for all.';
  end if;
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  return query
  with leaves as materialized (
    select l.leaf_index, l.xid, l.entry_id, substr(t.hashes, (l.leaf_index % 256 * 32 + 1)::integer, 32) as hash
    from custody_data.leaves_between(1, 9223372036854775806) l
    join custody_data.ledger_tiles t on t.tenant_id = 'system' and t.level = 0 and t.tile_index = l.leaf_index / 256
    where l.leaf_index >= p_from
  ), events as materialized (
    select case when a.xid < '9223372036854775806' then a.xid::text::bigint end as xid, a.xid as xid8, a.log_entry_id, custody_data.leaf_hash(a) as hash, a.occurred_at
    from custody_data.audit_logs a
  ),
  -- By the hash too: one transaction may have written events of two tenants with the same id.
  leaves_alone as (
    select l.* from leaves l where not exists (select from events e where e.xid = l.xid and e.log_entry_id = l.entry_id and e.hash = l.hash)
  ), events_alone as (
    select e.* from events e where not exists (select from leaves l where l.xid = e.xid and l.entry_id = e.log_entry_id and l.hash = e.hash)
  )
  select case when e.log_entry_id is null then 'event_missing' when l.leaf_index is null then 'event_unsealed' else 'event_altered' end,
    l.leaf_index, coalesce(l.entry_id, e.log_entry_id), null::text
  from leaves_alone l
  full join events_alone e on e.xid = l.xid and e.log_entry_id = l.entry_id
  -- what is waiting to be sealed
  where not (l.leaf_index is null and (p_from > 0 or (e.xid8 >= coalesce(v_head.sealed_to, '0') and e.xid8 < v_beyond)))
    -- what was dropped after archiving
    and not (e.log_entry_id is null and exists (
      select from custody_data.partition_drops d
      join custody_data.ledger_entries m on m.tenant_id = 'system' and m.tile_index = l.leaf_index / 256
      where m.first_occurred_at < d.range_to and m.last_occurred_at >= d.range_from))
  union all
  select 'leaf_repeated', max(l.leaf_index), l.entry_id, null
  from leaves l
  group by l.xid, l.entry_id, l.hash having count(*) > 1;
  return query
  select 'tile_altered', (t.tile_index * 256) << (8 * t.level), null::uuid, format('tile %s of level %s', t.tile_index, t.level)
  from custody_data.ledger_tiles t
  where octet_length(t.hashes) = 8192 and custody_data.fold_hashes(t.hashes, 8) is distinct from (
    select substr(u.hashes, (t.tile_index % 256 * 32 + 1)::integer, 32)
    from custody_data.ledger_tiles u
    where u.tenant_id = 'system' and u.level = t.level + 1 and u.tile_index = t.tile_index / 256);
  return query
  select 'checkpoint_mismatch', c.tree_size, null::uuid, format('checkpoint %s of %s leaves', c.number, c.tree_size)
  from custody_data.ledger_checkpoints c
  where c.tree_size > coalesce(v_head.tree_size, 0) or c.root_hash is distinct from custody.ledger_root(c.tree_size);
end
$$;
revoke all on function custody.verify_ledger(bigint) from public;
grant execute on function custody.verify_ledger(bigint) to custody_worker, custody_auditor;
comment on function custody.verify_ledger(bigint) is
'Self-check: compares events, leaves, tiles and recorded checkpoints with each other, in this database and by its own functions; returns what does not fit, no row where all does. It finds accidents. Against somebody who may change this database it proves nothing: that is what pgcustody verify is for.
p_from: leaves from this index on.
Errors: PC001, PC015 outside tenant system, PC023, PC026, PC041. Callers: custody_worker, custody_auditor.';
