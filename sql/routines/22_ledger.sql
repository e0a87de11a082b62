-- The audit ledger: sealing events into a Merkle tree, roots, proofs, and what is asked of its state.
-- control: HIPAA 164.312(b), (c)(1)-(2); SOC 2 CC7.2; ISO 27001 A.8.15; GDPR Art. 5(1)(f), 5(2)
-- reviewed by: auditor, DBA
--
-- Leaf: SHA-256 of a byte 0 and the canonical entry (20_audit.sql). Node: SHA-256 of a byte 1, the left and the right
-- hash. The tree is that of RFC 6962 section 2.1, its tiles those of C2SP tlog-tiles.
--
-- Which events are sealed next is decided by transactions, not by times or ids, which transactions that commit late
-- fall behind: all events with an xid from where the last batch ended to the oldest transaction that still runs, in
-- the order of (xid, log_entry_id). Whatever ended, ended; whatever has not ended is above. A prepared transaction or a
-- long one anywhere in the cluster delays sealing (custody.sealing_status names it), and loses nothing.
--
-- Transaction numbers mean nothing in another life of the database (custody_data.incarnations). Where a new one
-- began, one sweep seals every visible event that has no leaf, whatever its number. Until the new life's numbers have
-- passed all those, each batch is compared with the leaves that there are.
--
-- locks: an advisory lock, which one sealer holds to the end of its batch; others return at once. Appenders wait for
-- nothing here.

create or replace function custody_data.next_xid(p_xid xid8)
returns xid8
language sql
immutable
parallel safe
return (p_xid::text::bigint + 1)::text::xid8;
revoke all on function custody_data.next_xid(xid8) from public;
comment on function custody_data.next_xid(xid8) is 'The transaction number after another: xid8 has no arithmetic.';

create or replace function custody_data.leaf_hash(p_row custody_data.audit_logs)
returns bytea
language sql
stable
parallel safe
return pg_catalog.sha256('\x00'::bytea || pg_catalog.convert_to(custody.audit_entry(p_row), 'UTF8'));
revoke all on function custody_data.leaf_hash(custody_data.audit_logs) from public;
grant execute on function custody_data.leaf_hash(custody_data.audit_logs) to custody_worker;
comment on function custody_data.leaf_hash(custody_data.audit_logs) is 'The leaf hash of an event, 32 bytes (RFC 6962 section 2.1).';

create or replace function custody_data.fold_hashes(p_hashes bytea, p_times integer)
returns bytea
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  -- in memory: of a value in TOAST each slice would be read again
  v_hashes bytea := p_hashes || '';
  v_parents bytea;
begin
  -- Expressions in a loop: a query for each level costs more than the hashing.
  for i in 1 .. p_times loop
    v_parents := '';
    for n in 0 .. octet_length(v_hashes) / 64 - 1 loop
      v_parents := v_parents || sha256('\x01'::bytea || substr(v_hashes, n * 64 + 1, 64));
    end loop;
    v_hashes := v_parents || substr(v_hashes, octet_length(v_hashes) / 64 * 64 + 1);
  end loop;
  return v_hashes;
end
$$;
revoke all on function custody_data.fold_hashes(bytea, integer) from public;
comment on function custody_data.fold_hashes(bytea, integer) is 'Nodes above a row of hashes, p_times levels up: of up to 2^p_times hashes their root. An odd last one goes up as it is.';

create or replace function custody_data.append_hashes(p_level integer, p_first bigint, p_hashes bytea[])
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_hashes constant bytea := (select string_agg(h.hash, '') from unnest(p_hashes) h (hash));
  v_roots bytea[];
begin
  insert into custody_data.ledger_tiles as t (level, tile_index, hashes)
  select p_level, n.n, substr(v_hashes, (greatest(n.n * 256 - p_first, 0) * 32 + 1)::integer, ((n.n + 1) * 256 - greatest(n.n * 256, p_first))::integer * 32)
  from generate_series(p_first / 256, (p_first + cardinality(p_hashes) - 1) / 256) n (n)
  on conflict (tenant_id, level, tile_index) do update set hashes = t.hashes || excluded.hashes;
  -- The roots of the tiles that are full now are the next hashes of the level above.
  v_roots := array(
    select custody_data.fold_hashes(t.hashes, 8)
    from custody_data.ledger_tiles t
    where t.tenant_id = 'system' and t.level = p_level
      and t.tile_index >= p_first / 256 and t.tile_index < (p_first + cardinality(p_hashes)) / 256
    order by t.tile_index);
  if v_roots <> '{}' then
    perform custody_data.append_hashes(p_level + 1, p_first / 256, v_roots);
  end if;
end
$$;
revoke all on function custody_data.append_hashes(integer, bigint, bytea[]) from public;
comment on function custody_data.append_hashes(integer, bigint, bytea[]) is 'Appends hashes to a level of the tree, of which the first gets the index p_first, and the roots of tiles that get full to the levels above.';

create or replace function custody_data.append_leaves(
  p_kind text, p_hashes bytea[], p_xids bigint[], p_entry_ids uuid[], p_occurred_at timestamptz[]
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_head custody_data.ledger_heads;
  v_last custody_data.ledger_stretches;
begin
  -- Aggregates would pass over it, and every later leaf would stand for another event.
  if array_position(p_hashes, null) is not null then
    raise exception using
      errcode = 'PC041',
      message = format('event %s has no canonical entry', p_entry_ids[array_position(p_hashes, null)]),
      detail = 'A column is null that never is.',
      hint = 'Nothing is sealed beyond it. Run pgcustody verify and have the case looked at.';
  end if;
  select h.* into strict v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  select s.* into v_last from custody_data.ledger_stretches s where s.tenant_id = 'system' order by s.first_leaf desc limit 1;
  if (v_last.kind, v_last.incarnation_id) is distinct from (p_kind, v_head.incarnation_id) or p_kind = 'adopted' then
    insert into custody_data.ledger_stretches (first_leaf, kind, incarnation_id) values (v_head.tree_size, p_kind, v_head.incarnation_id);
  end if;
  perform custody_data.append_hashes(0, v_head.tree_size, p_hashes);
  insert into custody_data.ledger_entries as e (tile_index, xids, entry_ids, days, first_xid, last_xid, first_occurred_at, last_occurred_at)
  select n.n, l.xids, l.entry_ids, l.days, l.first_xid, l.last_xid, l.first_occurred_at, l.last_occurred_at
  from generate_series(v_head.tree_size / 256, (v_head.tree_size + cardinality(p_hashes) - 1) / 256) n (n)
  cross join lateral (select greatest(n.n * 256 - v_head.tree_size, 0) + 1 as first, (n.n + 1) * 256 - v_head.tree_size as last) s
  -- An aggregate without GROUP BY takes its input as it comes, which costs less than to sort it.
  cross join lateral (
    select string_agg(int8send(x.xid), '') as xids, string_agg(uuid_send(x.entry_id), '') as entry_ids,
      string_agg(date_send(coalesce((x.occurred_at at time zone 'UTC')::date, '-infinity')), '') as days,
      min(x.xid) as first_xid, max(x.xid) as last_xid,
      coalesce(min(x.occurred_at), '-infinity') as first_occurred_at, coalesce(max(x.occurred_at), 'infinity') as last_occurred_at
    from unnest(p_xids[s.first:s.last], p_entry_ids[s.first:s.last], p_occurred_at[s.first:s.last]) x (xid, entry_id, occurred_at)
  ) l
  on conflict (tenant_id, tile_index) do update set xids = e.xids || excluded.xids, entry_ids = e.entry_ids || excluded.entry_ids, days = e.days || excluded.days,
    first_xid = least(e.first_xid, excluded.first_xid), last_xid = greatest(e.last_xid, excluded.last_xid),
    first_occurred_at = least(e.first_occurred_at, excluded.first_occurred_at), last_occurred_at = greatest(e.last_occurred_at, excluded.last_occurred_at);
  update custody_data.ledger_heads h set tree_size = h.tree_size + cardinality(p_hashes), sealed_at = clock_timestamp() where h.tenant_id = 'system';
end
$$;
revoke all on function custody_data.append_leaves(text, bytea[], bigint[], uuid[], timestamptz[]) from public;
comment on function custody_data.append_leaves(text, bytea[], bigint[], uuid[], timestamptz[]) is 'Appends leaves and says which events they are, and of which days (null: nobody knows); opens a stretch where the last one is of another kind or life.';

create or replace function custody_data.leaves_between(p_from bigint, p_to bigint)
returns table (leaf_index bigint, xid bigint, entry_id uuid)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select e.tile_index * 256 + n, ('x' || encode(substr(e.xids, n * 8 + 1, 8), 'hex'))::bit(64)::bigint, encode(substr(e.entry_ids, n * 16 + 1, 16), 'hex')::uuid
  -- Fetched once a tile: a slice of what is stored out of line costs as much as the whole.
  from (
    select t.tile_index, t.xids || ''::bytea as xids, t.entry_ids || ''::bytea as entry_ids
    from custody_data.ledger_entries t
    where t.tenant_id = 'system' and t.first_xid <= p_to and t.last_xid >= p_from
    offset 0
  ) e
  cross join lateral generate_series(0, octet_length(e.xids) / 8 - 1) n
  -- whole bytes compare as the numbers do
  where substr(e.xids, n * 8 + 1, 8) between int8send(p_from) and int8send(p_to);
$$;
revoke all on function custody_data.leaves_between(bigint, bigint) from public;
comment on function custody_data.leaves_between(bigint, bigint) is 'Leaves of events whose xid lies between two, both inclusive; lost leaves have xid 0.';

create or replace function custody_data.without_leaves(p_xids bigint[], p_entry_ids uuid[])
returns integer[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
-- Whatever the caller set: a nested loop over events and leaves takes hours for a million of them.
set enable_nestloop = off
set enable_hashjoin = on
set enable_sort = on
set enable_bitmapscan = on
set jit = off
as $$
begin
  return array(
    select l.n
    from unnest(p_xids, p_entry_ids) with ordinality l (xid, entry_id, n)
    where not exists (
      select from custody_data.leaves_between(p_xids[1], p_xids[cardinality(p_xids)]) s where s.xid = l.xid and s.entry_id = l.entry_id)
    order by l.n);
end
$$;
revoke all on function custody_data.without_leaves(bigint[], uuid[]) from public;
comment on function custody_data.without_leaves(bigint[], uuid[]) is 'Which of some events, in the order of their xids, have no leaf: their places.';

create or replace function custody_data.seal_batch(
  p_kind text, p_from xid8, p_after uuid, p_below xid8, p_limit bigint, p_look boolean,
  out rows_read bigint, out rows_sealed bigint, out last_xid xid8, out last_entry_id uuid
)
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
set enable_sort = off
set enable_bitmapscan = off
as $$
declare
  v_hashes bytea[];
  v_xids bigint[];
  v_ids uuid[];
  v_times timestamptz[];
  v_new integer[];
begin
  -- Events of one transaction with the same id (of different tenants) go together: hence WITH TIES. Aggregates without
  -- GROUP BY take their input as the subquery orders it.
  select array_agg(b.hash), array_agg(b.xid::text::bigint), array_agg(b.log_entry_id), array_agg(b.occurred_at)
  into v_hashes, v_xids, v_ids, v_times
  from (
    select x.*
    from (
      select custody_data.leaf_hash(a) as hash, a.xid, a.log_entry_id, a.occurred_at, a.tenant_id
      from custody_data.audit_logs a
      where a.xid >= p_from and (p_below is null or a.xid < p_below)
        -- as a row, so that the index goes to where a batch ended inside a long transaction
        and (p_after is null or (a.xid, a.log_entry_id) > (p_from, p_after))
      order by a.xid, a.log_entry_id
      fetch first p_limit rows with ties
    ) x
    order by x.xid, x.log_entry_id, x.tenant_id, x.occurred_at
  ) b;
  rows_read := coalesce(cardinality(v_hashes), 0);
  rows_sealed := rows_read;
  if rows_read = 0 then
    return;
  end if;
  last_xid := v_xids[rows_read]::text::xid8;
  last_entry_id := v_ids[rows_read];
  if p_look then
    v_new := custody_data.without_leaves(v_xids, v_ids);
    rows_sealed := cardinality(v_new);
    if rows_sealed = 0 then
      return;
    end if;
    if rows_sealed < rows_read then
      v_hashes := array(select v_hashes[n] from unnest(v_new) with ordinality x (n, o) order by x.o);
      v_xids := array(select v_xids[n] from unnest(v_new) with ordinality x (n, o) order by x.o);
      v_ids := array(select v_ids[n] from unnest(v_new) with ordinality x (n, o) order by x.o);
      v_times := array(select v_times[n] from unnest(v_new) with ordinality x (n, o) order by x.o);
    end if;
  end if;
  perform custody_data.append_leaves(p_kind, v_hashes, v_xids, v_ids, v_times);
end
$$;
revoke all on function custody_data.seal_batch(text, xid8, uuid, xid8, bigint, boolean) from public;
comment on function custody_data.seal_batch(text, xid8, uuid, xid8, bigint, boolean) is
'Seals up to p_limit events in the order of (xid, log_entry_id), from p_from and after p_after to below p_below (null: all). p_look: leaves out those that have leaves. Returns how many it read and sealed, and the last it read.';

create or replace function custody_data.sweep_events(p_kind text, p_from xid8, p_below xid8)
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch record;
  -- No server gets this far: what somebody numbered beyond is left to be found, and breaks no arithmetic.
  v_below constant xid8 := least(p_below, '9223372036854775806');
  v_from xid8 := p_from;
  v_after uuid;
  v_sealed bigint := 0;
begin
  loop
    v_batch := custody_data.seal_batch(p_kind, v_from, v_after, v_below, 50000, true);
    v_sealed := v_sealed + v_batch.rows_sealed;
    exit when v_batch.rows_read < 50000;
    v_from := v_batch.last_xid;
    v_after := v_batch.last_entry_id;
  end loop;
  return v_sealed;
end
$$;
revoke all on function custody_data.sweep_events(text, xid8, xid8) from public;
comment on function custody_data.sweep_events(text, xid8, xid8) is 'Seals every visible event from p_from to below p_below that has no leaf, as a stretch of this kind; returns how many.';

create or replace function custody_data.live_in(p_incarnation custody_data.incarnations)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_horizon constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
  v_max xid8;
begin
  update custody_data.ledger_heads h set incarnation_id = p_incarnation.incarnation_id where h.tenant_id = 'system';
  -- In this order: others go on writing, and whatever is seen first has a number below the one that comes next.
  select max(a.xid) into v_max from custody_data.audit_logs a where a.xid < '9223372036854775806';
  if exists (select from custody_data.ledger_heads h where h.tenant_id = 'system' and h.tree_size = 0)
      and coalesce(v_max, '0') <= greatest(pg_snapshot_xmax(pg_current_snapshot()), pg_current_xact_id()) then
    -- Nothing here was sealed, or written anywhere else.
    update custody_data.ledger_heads h set sealed_to = '0', sealed_to_entry_id = null, taken_until = '0' where h.tenant_id = 'system';
    return;
  end if;
  perform custody_data.sweep_events('swept', '0', null);
  -- Whatever has a leaf by now and a number that this life has not come to would get another when it comes there.
  select greatest(max(e.last_xid)::text::xid8, (select max(a.xid) from custody_data.audit_logs a where a.xid < '9223372036854775806')) into v_max
  from custody_data.ledger_entries e;
  update custody_data.ledger_heads h
  set sealed_to = v_horizon, sealed_to_entry_id = null, taken_until = coalesce(v_max, '0')
  where h.tenant_id = 'system';
end
$$;
revoke all on function custody_data.live_in(custody_data.incarnations) from public;
comment on function custody_data.live_in(custody_data.incarnations) is 'Sweeps, and lets the sealer go on with this life''s transaction numbers.';

-- definer: reads the trail of all tenants and writes the tree, which no role may
create or replace function custody.seal_audit_log(p_limit bigint default 10000)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_head custody_data.ledger_heads;
  v_incarnation custody_data.incarnations;
  v_opened boolean := false;
  v_horizon xid8;
  v_batch record;
  v_size bigint;
begin
  perform custody_data.require_all_tenants('ledger');
  if p_limit is null or p_limit not between 1 and 1000000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 1000000 events at a time.';
  end if;
  if pg_is_in_recovery() or exists (
    select from pg_subscription_rel r
    join pg_subscription s on s.oid = r.srsubid
    where s.subenabled and r.srrelid in (select t.relid from pg_partition_tree('custody_data.audit_logs') t)
  ) then
    raise exception using
      errcode = 'PC039',
      message = 'nothing is sealed here',
      detail = case when pg_is_in_recovery() then 'The server is in recovery.' else 'A subscription writes the audit trail: its rows carry the numbers of another server''s transactions.' end,
      hint = 'Seal where the events are written; here once the server was promoted, or the subscription was dropped.';
  end if;
  if not pg_try_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0)) then
    return jsonb_build_object('sealed', 0, 'more', false, 'busy', true);
  end if;
  v_incarnation := custody.open_incarnation();
  insert into custody_data.ledger_heads default values on conflict do nothing;
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  v_size := v_head.tree_size;
  if v_head.incarnation_id is distinct from v_incarnation.incarnation_id then
    v_opened := true;
    perform custody_data.live_in(v_incarnation);
    select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  end if;
  -- Before events are read, and after another life was opened, which may have sealed further: what has ended now is
  -- seen by every later statement.
  v_horizon := pg_snapshot_xmin(pg_current_snapshot());
  if v_horizon < v_head.sealed_to then
    raise exception using
      errcode = 'PC041',
      message = 'the ledger is ahead of this server''s transactions',
      detail = format('Events are sealed to transaction %s, the server is at %s.', v_head.sealed_to, v_horizon),
      hint = 'The cluster''s transaction counter was set back, though neither its identifier nor its timeline changed. Run pgcustody verify and have the case looked at.';
  end if;

  v_batch := custody_data.seal_batch('sealed', v_head.sealed_to, v_head.sealed_to_entry_id, v_horizon, p_limit, v_head.sealed_to <= v_head.taken_until);
  if v_batch.rows_read >= p_limit then
    update custody_data.ledger_heads h set sealed_to = v_batch.last_xid, sealed_to_entry_id = v_batch.last_entry_id where h.tenant_id = 'system';
  elsif v_batch.rows_read > 0 then
    update custody_data.ledger_heads h set sealed_to = v_horizon, sealed_to_entry_id = null where h.tenant_id = 'system';
  end if;
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  return jsonb_build_object('sealed', v_head.tree_size - v_size, 'tree_size', v_head.tree_size, 'more', v_batch.rows_read >= p_limit, 'busy', false,
    'incarnation_id', v_incarnation.incarnation_id, 'opened', v_opened);
end
$$;
revoke all on function custody.seal_audit_log(bigint) from public;
grant execute on function custody.seal_audit_log(bigint) to custody_worker;
comment on function custody.seal_audit_log(bigint) is
'Appends the leaves of up to p_limit (1 to 1000000) events to the ledger: of those whose transactions ended, in the order of (xid, log_entry_id). Where the database lives anew (another cluster, another timeline) all visible events without a leaf come first, in one transaction.
Returns {"sealed", "tree_size", "more", "busy", "incarnation_id", "opened"}: more, whether to call again at once; busy, whether another sealer is at work, and nothing was done. Commit after each call.
Errors: PC001, PC015 outside tenant system, PC023, PC026 isolation level, PC041 transaction counter set back, PC039 in recovery or under a subscription. Callers: custody_worker.';

-- definer: as seal_audit_log
create or replace function custody.adopt_events(p_reason text)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_head custody_data.ledger_heads;
  v_beyond xid8;
  v_max xid8;
  v_rows bigint;
begin
  perform custody_data.require_all_tenants('ledger');
  if char_length(coalesce(p_reason, '')) not between 1 and 1000 then
    raise exception using errcode = 'PC023', message = 'invalid p_reason', hint = 'Say in 1 to 1000 characters where the events came from; it is written into the trail, so name nobody.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  if v_head.incarnation_id is null then
    return 0;
  end if;
  v_rows := custody_data.sweep_events('adopted', '0', v_head.sealed_to);
  -- In one statement: what commits later is of this server's own transactions.
  select min(a.xid) into v_beyond from custody_data.audit_logs a
  where a.xid >= greatest(pg_snapshot_xmax(pg_current_snapshot()), custody_data.next_xid(pg_current_xact_id()));
  if v_beyond is not null then
    v_rows := v_rows + custody_data.sweep_events('adopted', v_beyond, null);
  end if;
  if v_rows > 0 then
    select max(a.xid) into v_max from custody_data.audit_logs a where a.xid >= v_beyond and a.xid < '9223372036854775806';
    update custody_data.ledger_heads h set taken_until = greatest(h.taken_until, v_max) where h.tenant_id = 'system';
    perform custody_data.append_event('ledger.adopt', null, null, 'success', jsonb_build_object('rows', v_rows, 'reason', p_reason), null);
  end if;
  return v_rows;
end
$$;
revoke all on function custody.adopt_events(text) from public;
grant execute on function custody.adopt_events(text) to custody_admin;
comment on function custody.adopt_events(text) is
'Seals events that stand behind the sealer or ahead of this server''s transactions and have no leaf: a data-only restore or a logical copy brought them, or somebody inserted them. Look at them first. Returns how many; the adoption is an event (ledger.adopt).
p_reason: 1 to 1000 characters, names nobody.
Errors: PC001, PC015 outside tenant system, PC023, PC026. Callers: custody_admin.';

-- definer: as seal_audit_log
create or replace function custody.take_over_leaves(p_kept bigint, p_hashes bytea, p_observed jsonb)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_head custody_data.ledger_heads;
  v_level integer := 0;
  v_kept bigint := p_kept;
  v_hashes bytea[];
  v_xids bigint[];
  v_ids uuid[];
  v_times timestamptz[];
  v_found bigint;
  v_segments text[];
begin
  perform custody_data.require_all_tenants('ledger');
  if p_kept is null or p_kept < 0 or p_hashes is null or octet_length(p_hashes) % 32 <> 0 or jsonb_typeof(p_observed) is distinct from 'object' then
    raise exception using errcode = 'PC023', message = 'invalid p_kept, p_hashes or p_observed',
      hint = 'Give how many leaves the database and the bucket have in common, the hashes of those after them in the bucket, 32 bytes each, and a JSON object of what was observed.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.ledger', 0));
  insert into custody_data.ledger_heads default values on conflict do nothing;
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  if p_kept > v_head.tree_size then
    raise exception using errcode = 'PC041', message = format('the ledger has no %s leaves to keep', p_kept),
      detail = format('It has %s.', v_head.tree_size), hint = 'Compare the database with the bucket again.';
  end if;

  -- Leaves that the bucket does not know are cut off; their events are swept up again below.
  loop
    delete from custody_data.ledger_tiles t where t.tenant_id = 'system' and t.level = v_level and t.tile_index >= (v_kept + 255) / 256;
    update custody_data.ledger_tiles t set hashes = substr(t.hashes, 1, (v_kept % 256 * 32)::integer)
    where t.tenant_id = 'system' and t.level = v_level and t.tile_index = v_kept / 256 and octet_length(t.hashes) > v_kept % 256 * 32;
    v_level := v_level + 1;
    v_kept := v_kept / 256;
    exit when not exists (select from custody_data.ledger_tiles t where t.tenant_id = 'system' and t.level = v_level);
  end loop;
  delete from custody_data.ledger_entries e where e.tenant_id = 'system' and e.tile_index >= (p_kept + 255) / 256;
  update custody_data.ledger_entries e set xids = substr(e.xids, 1, (p_kept % 256 * 8)::integer), entry_ids = substr(e.entry_ids, 1, (p_kept % 256 * 16)::integer),
    days = substr(e.days, 1, (p_kept % 256 * 4)::integer)
  where e.tenant_id = 'system' and e.tile_index = p_kept / 256 and octet_length(e.xids) > p_kept % 256 * 8;
  delete from custody_data.ledger_stretches s where s.tenant_id = 'system' and s.first_leaf >= p_kept;
  v_segments := custody_data.supersede_segments(p_kept);

  update custody_data.ledger_heads h
  set tree_size = p_kept, incarnation_id = (custody.open_incarnation(p_observed || jsonb_build_object('kept', p_kept, 'cut', v_head.tree_size - p_kept, 'taken', octet_length(p_hashes) / 32))).incarnation_id
  where h.tenant_id = 'system';
  v_hashes := array(select substr(p_hashes, n * 32 + 1, 32) from generate_series(0, octet_length(p_hashes) / 32 - 1) n);
  if v_hashes <> '{}' then
    with unsealed as (
      select custody_data.leaf_hash(a) as hash, a.xid, a.log_entry_id, a.occurred_at
      from custody_data.audit_logs a
      where a.xid < '9223372036854775806' and not exists (
        select from custody_data.leaves_between(1, 9223372036854775806) s
        where s.xid = a.xid::text::bigint and s.entry_id = a.log_entry_id)
    ), taken as (
      select l.hash, l.n, coalesce(u.xid::text::bigint, 0) as xid, coalesce(u.log_entry_id, '00000000-0000-0000-0000-000000000000') as entry_id, u.occurred_at
      from unnest(v_hashes) with ordinality l (hash, n)
      left join unsealed u on u.hash = l.hash
    )
    select count(*) filter (where t.xid <> 0), array_agg(t.xid order by t.n), array_agg(t.entry_id order by t.n), array_agg(t.occurred_at order by t.n)
    into v_found, v_xids, v_ids, v_times
    from taken t;
    perform custody_data.append_leaves('lost', v_hashes, v_xids, v_ids, v_times);
  end if;
  perform custody_data.live_in(i) from custody_data.incarnations i
  where i.incarnation_id = (select h.incarnation_id from custody_data.ledger_heads h where h.tenant_id = 'system');
  perform custody_data.append_event('ledger.take_over', null, null, 'success', jsonb_build_object('kept', p_kept,
    'taken', cardinality(v_hashes), 'found', coalesce(v_found, 0), 'lost', cardinality(v_hashes) - coalesce(v_found, 0), 'segments', v_segments), null);
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  return jsonb_build_object('tree_size', v_head.tree_size, 'kept', p_kept, 'taken', cardinality(v_hashes),
    'found', coalesce(v_found, 0), 'lost', cardinality(v_hashes) - coalesce(v_found, 0));
end
$$;
revoke all on function custody.take_over_leaves(bigint, bytea, jsonb) from public;
grant execute on function custody.take_over_leaves(bigint, bytea, jsonb) to custody_worker;
comment on function custody.take_over_leaves(bigint, bytea, jsonb) is
'Sets the ledger back to the first p_kept leaves, appends leaves that the bucket has, and seals every visible event that then has no leaf, as a new incarnation: for a database that was set back, or copied, behind what was anchored. Those of the leaves whose events are here are known as such; the others stay as lost leaves. So one origin never forks.
p_hashes: leaf hashes, 32 bytes each, which the caller has proved against the newest checkpoint in the bucket. p_observed: JSON object of what showed it.
Returns {"tree_size", "kept", "taken", "found", "lost"}. Both the incarnation and the taking over are events.
Errors: PC001, PC015 outside tenant system, PC020 a recorded checkpoint covers what would be cut, PC023, PC026, PC041 more kept than there are. Callers: custody_worker.';

create or replace function custody_data.unsealed_events(p_whole boolean, p_below xid8)
returns table (day date, events bigint, oldest_recorded_at timestamptz)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
-- as without_leaves
set enable_nestloop = off
set enable_hashjoin = on
set enable_sort = on
set enable_bitmapscan = on
set jit = off
as $$
declare
  v_head custody_data.ledger_heads;
  v_from xid8;
  v_below constant xid8 := least(case when not p_whole then p_below end, '9223372036854775806');
  v_first xid8;
  v_last xid8;
begin
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  v_from := case when p_whole then '0' else coalesce(v_head.sealed_to, '0') end;
  if v_head.tenant_id is null or (v_head.sealed_to > v_head.taken_until and not p_whole) then
    return query
    select (a.occurred_at at time zone 'UTC')::date, count(*), min(a.recorded_at)
    from custody_data.audit_logs a
    where a.xid >= v_from and a.xid < v_below and (v_head.sealed_to_entry_id is null or (a.xid, a.log_entry_id) > (v_from, v_head.sealed_to_entry_id))
    group by 1;
    return;
  end if;
  -- Some of them may have leaves from before this life. Of the map only their own transactions are read: after a restore
  -- the numbers up to taken_until are those of almost all leaves.
  select min(a.xid), max(a.xid) into v_first, v_last from custody_data.audit_logs a where a.xid >= v_from and a.xid < v_below;
  if v_first is not null then
    return query
    select (a.occurred_at at time zone 'UTC')::date, count(*), min(a.recorded_at)
    from custody_data.audit_logs a
    where a.xid >= v_first and a.xid <= v_last
      and (p_whole or v_head.sealed_to_entry_id is null or (a.xid, a.log_entry_id) > (v_from, v_head.sealed_to_entry_id))
      and not exists (
        select from custody_data.leaves_between(v_first::text::bigint, v_last::text::bigint) s
        where s.xid = a.xid::text::bigint and s.entry_id = a.log_entry_id)
    group by 1;
  end if;
end
$$;
revoke all on function custody_data.unsealed_events(boolean, xid8) from public;
comment on function custody_data.unsealed_events(boolean, xid8) is 'Committed events without a leaf, by day: those of transactions below p_below that the sealer has still to come to, or p_whole, all that are here.';

create or replace view custody.sealing_state with (security_invoker = true) as
select 0::bigint as unsealed_events, null::timestamptz as oldest_recorded_at, null::interval as age, null::xid8 as sealed_to, null::xid8 as horizon,
  ''::text as holder_kind, ''::text as holder, ''::text as holder_database, null::timestamptz as holder_since
where false;
comment on view custody.sealing_state is
'Shape of sealing_status. unsealed_events: committed events without a leaf yet; age: of the oldest of them. horizon: the oldest transaction that still runs; nothing from it on is sealed. holder_kind: session or prepared, empty where nothing holds the horizon back; holder: pid or gid; holder_since: where the role may see it.';

-- definer: counts events of all tenants
create or replace function custody.sealing_status()
returns setof custody.sealing_state
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_head custody_data.ledger_heads;
  v_horizon constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
  v_xid constant xid := (v_horizon::text::bigint & 4294967295)::text::xid;
begin
  perform custody_data.require_all_tenants('ledger');
  select h.* into v_head from custody_data.ledger_heads h where h.tenant_id = 'system';
  return query
  select u.events, u.oldest, clock_timestamp() - u.oldest, coalesce(v_head.sealed_to, '0'), v_horizon, b.kind, b.holder, b.datname, b.since
  from (
    select coalesce(sum(e.events), 0)::bigint as events, min(e.oldest_recorded_at) as oldest
    -- what is numbered beyond is nobody's of this server, and waits for no sealer
    from custody_data.unsealed_events(false, greatest(pg_snapshot_xmax(pg_current_snapshot()), custody_data.next_xid(pg_current_xact_id_if_assigned()))) e
  ) u
  left join lateral (
    select 'prepared' as kind, p.gid as holder, p.database::text as datname, p.prepared as since
    from pg_prepared_xacts p where p.transaction = v_xid
    union all
    select 'session', l.pid::text, s.datname::text, s.xact_start
    from pg_locks l left join pg_stat_activity s on s.pid = l.pid
    where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.transactionid = v_xid and l.pid is not null
    limit 1
  ) b on true;
end
$$;
revoke all on function custody.sealing_status() from public;
grant execute on function custody.sealing_status() to custody_worker, custody_auditor;
comment on function custody.sealing_status() is
'How far sealing lags behind the trail, and the transaction that holds it back: one row of custody.sealing_state.
Errors: PC001, PC015 outside tenant system, PC026. Callers: custody_worker, custody_auditor.';
