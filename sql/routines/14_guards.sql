-- Trigger functions: the rules that hold whoever writes.
-- control: HIPAA 164.312(b), (c)(1); SOC 2 CC7.2; ISO 27001 A.8.15; GDPR Art. 5(1)(e)-(f), 17
-- reviewed by: DBA, auditor

create or replace function custody_data.tg_reject_mutation()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'PC020',
    message = format('%s of %I.%I refused: %s', lower(tg_op), tg_table_schema, tg_table_name,
      case when tg_name in ('a_reject_mutation', 'a_reject_row_mutation') then 'the table is append-only'
        when tg_name = 'a_reject_delete' then 'its rows are never deleted'
        else 'rows leave it one by one, through erasure and retention' end),
    hint = case tg_op when 'TRUNCATE' then 'Retention removes what is due: custody.enforce_retention, and for whole months custody.drop_archived_partitions.'
      else 'Record a new row that corrects the old one.' end,
    schema = tg_table_schema,
    table = tg_table_name;
end
$$;
comment on function custody_data.tg_reject_mutation() is 'Guard of statements and of rows: raises PC020 whatever the statement would touch.';

create or replace function custody_data.tg_reject_column_change()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old constant jsonb := to_jsonb(old);
  v_new constant jsonb := to_jsonb(new);
  v_column text;
begin
  foreach v_column in array tg_argv loop
    if v_column like '+%' then
      if v_old -> substr(v_column, 2) <> 'null'::jsonb and v_new is distinct from v_old then
        raise exception using
          errcode = 'PC020',
          message = format('a row of %I.%I is final: %s is set', tg_table_schema, tg_table_name, substr(v_column, 2)),
          hint = 'What is closed stays as it is: record a new row.',
          schema = tg_table_schema, table = tg_table_name, column = substr(v_column, 2);
      end if;
    elsif v_column like '=%' then
      if v_old -> substr(v_column, 2) <> 'null'::jsonb and v_new -> substr(v_column, 2) is distinct from v_old -> substr(v_column, 2) then
        raise exception using
          errcode = 'PC020',
          message = format('column %s of %I.%I is set once', substr(v_column, 2), tg_table_schema, tg_table_name),
          hint = 'What is recorded stays as it is: record a new row.',
          schema = tg_table_schema, table = tg_table_name, column = substr(v_column, 2);
      end if;
    elsif v_new -> v_column is distinct from v_old -> v_column then
      raise exception using
        errcode = 'PC030',
        message = format('column %s of %I.%I never changes', v_column, tg_table_schema, tg_table_name),
        hint = 'Delete the row and write another, where that is allowed.',
        schema = tg_table_schema, table = tg_table_name, column = v_column;
    end if;
  end loop;
  return new;
end
$$;
comment on function custody_data.tg_reject_column_change() is
'Row guard. Arguments: columns that never change (PC030); +column: once it is set nothing of the row changes (PC020); =column: once it is set it stays (PC020).';

-- Sealed under later keys a record is the same: its version does not count, and the trail has no event of it. Anybody may
-- set custody.resealing: it only says that the values are worth a look, which every other update is spared. Nothing but
-- resealing puts a value, or an index, under a later key.
create or replace function custody_data.sealed_later(p_old bytea, p_new bytea)
returns boolean
language sql
immutable
parallel safe
return p_new is not distinct from p_old
  or coalesce(substr(p_old, 1, 1) = '\x01' and substr(p_new, 1, 1) = '\x01' and substr(p_new, 2, 4) > substr(p_old, 2, 4), false);
revoke all on function custody_data.sealed_later(bytea, bytea) from public;
grant execute on function custody_data.sealed_later(bytea, bytea) to custody_worker;
comment on function custody_data.sealed_later(bytea, bytea) is 'Whether a sealed value is the same, or one under a later key.';

create or replace function custody_data.indexed_later(p_old bytea, p_new bytea)
returns boolean
language sql
immutable
parallel safe
return p_new is not distinct from p_old or coalesce(substr(p_new, 1, 4) > substr(p_old, 1, 4), false);
revoke all on function custody_data.indexed_later(bytea, bytea) from public;
grant execute on function custody_data.indexed_later(bytea, bytea) to custody_worker;
comment on function custody_data.indexed_later(bytea, bytea) is 'Whether a blind index is the same, or one under a later key.';

create or replace function custody_data.tg_touch_profile()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('custody.resealing', true) = 'on' and current_user = 'custody_owner' and new is distinct from old
      and (new.tenant_id, new.identity_id, new.version, new.created_at, new.updated_at) = (old.tenant_id, old.identity_id, old.version, old.created_at, old.updated_at)
      and custody_data.sealed_later(old.full_name, new.full_name) and custody_data.sealed_later(old.email, new.email)
      and custody_data.sealed_later(old.phone, new.phone) and custody_data.sealed_later(old.organisation, new.organisation)
      and custody_data.sealed_later(old.title, new.title) and custody_data.sealed_later(old.address, new.address)
      and custody_data.sealed_later(old.city, new.city) and custody_data.sealed_later(old.region, new.region)
      and custody_data.sealed_later(old.postal_code, new.postal_code) and custody_data.sealed_later(old.country, new.country)
      and custody_data.sealed_later(old.attributes, new.attributes)
      and custody_data.indexed_later(old.email_index, new.email_index) and custody_data.indexed_later(old.phone_index, new.phone_index) then
    return new;
  end if;
  new.version := old.version + 1;
  new.updated_at := now();
  return new;
end
$$;
comment on function custody_data.tg_touch_profile() is 'Counts version up and sets updated_at on every update but a resealing.';

create or replace function custody_data.tg_touch_preferences()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('custody.resealing', true) = 'on' and current_user = 'custody_owner' and new is distinct from old
      and (new.tenant_id, new.identity_id, new.version, new.created_at, new.updated_at) = (old.tenant_id, old.identity_id, old.version, old.created_at, old.updated_at)
      and custody_data.sealed_later(old.preferences, new.preferences) then
    return new;
  end if;
  new.version := old.version + 1;
  new.updated_at := now();
  return new;
end
$$;
comment on function custody_data.tg_touch_preferences() is 'Counts version up and sets updated_at on every update but a resealing.';

create or replace function custody_data.tg_touch_conversation()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('custody.resealing', true) = 'on' and current_user = 'custody_owner' and new is distinct from old
      and (new.tenant_id, new.identity_id, new.conversation_id, new.message_count, new.started_at, new.last_message_at, new.version, new.created_at, new.updated_at)
        = (old.tenant_id, old.identity_id, old.conversation_id, old.message_count, old.started_at, old.last_message_at, old.version, old.created_at, old.updated_at)
      and custody_data.sealed_later(old.title, new.title) and custody_data.sealed_later(old.messages, new.messages) then
    return new;
  end if;
  new.version := old.version + 1;
  new.updated_at := now();
  return new;
end
$$;
comment on function custody_data.tg_touch_conversation() is 'Counts version up and sets updated_at on every update but a resealing.';

-- definer: the lock on identities needs UPDATE on it, which no role has
create or replace function custody_data.tg_require_live_identity()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_missing bigint;
begin
  with wanted as (
    select distinct n.tenant_id, n.identity_id from new_rows n
  ), live as (
    select i.tenant_id, i.identity_id
    from custody_data.identities i
    where (i.tenant_id, i.identity_id) in (select w.tenant_id, w.identity_id from wanted w) and i.erased_at is null
    for key share of i
  )
  select (select count(*) from wanted) - (select count(*) from live) into v_missing;
  if v_missing > 0 then
    raise exception using
      errcode = 'PC021',
      message = format('%s of %I.%I refused: subject erased', lower(tg_op), tg_table_schema, tg_table_name),
      detail = format('%s identities of the statement are erased or unknown.', v_missing),
      hint = 'Write through the functions of schema custody: they find the identity that the user_id has now.',
      schema = tg_table_schema,
      table = tg_table_name;
  end if;
  return null;
end
$$;
comment on function custody_data.tg_require_live_identity() is 'Statement guard: every new row is about an identity that is there and not erased (PC021), and stays so until commit.';

create or replace function custody_data.expires_at(p_row custody_data.consent_records)
returns timestamptz
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- A grant ends with the next record for the same purpose or with the person's erasure; a withdrawal at once.
  select least(
      case when (p_row).granted then (
        select min(c.occurred_at) from custody_data.consent_records c
        where c.tenant_id = (p_row).tenant_id and c.identity_id = (p_row).identity_id and c.purpose = (p_row).purpose
          and (c.occurred_at, c.recorded_at, c.consent_id) > ((p_row).occurred_at, (p_row).recorded_at, (p_row).consent_id)
      ) else (p_row).occurred_at end,
      (select i.erased_at from custody_data.identities i where i.tenant_id = (p_row).tenant_id and i.identity_id = (p_row).identity_id)
    ) + (select p.keep from custody_data.retention_policies p
      where p.class = 'consent' and p.tenant_id in ((p_row).tenant_id, 'system')
      order by p.tenant_id = 'system' limit 1);
$$;
revoke all on function custody_data.expires_at(custody_data.consent_records) from public;
comment on function custody_data.expires_at(custody_data.consent_records) is 'When a consent record may go: its end plus the policy consent; null while it is in force.';

create or replace function custody_data.expires_at(p_row custody_data.alerts)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select (p_row).closed_at + (
    select p.keep from custody_data.retention_policies p
    where p.class = 'alerts' and p.tenant_id in ((p_row).tenant_id, 'system')
    order by p.tenant_id = 'system' limit 1);
$$;
revoke all on function custody_data.expires_at(custody_data.alerts) from public;
comment on function custody_data.expires_at(custody_data.alerts) is 'When an alert may go: its closing plus the policy alerts; null while it is not closed.';

create or replace function custody_data.tg_require_approval()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before interval;
begin
  if tg_op = 'UPDATE' then
    if (old.tenant_id, old.class) is distinct from (new.tenant_id, new.class) then
      raise exception using
        errcode = 'PC030',
        message = 'tenant_id and class of a retention policy never change',
        hint = 'Set the other policy: custody.set_retention_policy.',
        schema = tg_table_schema, table = tg_table_name;
    end if;
    v_before := old.keep;
  else
    -- A tenant's own policy takes the place of the shared one.
    select p.keep into v_before
    from custody_data.retention_policies p
    where p.class = new.class and p.tenant_id in (new.tenant_id::text, 'system')
    order by p.tenant_id = 'system' limit 1;
  end if;
  if custody_data.shortens(new.class, new.keep, v_before) and not exists (
    select from custody_data.retention_changes c
    where c.tenant_id = new.tenant_id and c.change_id = new.change_id and c.class = new.class and c.keep::text = new.keep::text
      and c.decision = 'approved' and c.decided_at = new.set_at
  ) then
    raise exception using
      errcode = 'PC043',
      message = format('policy %s is not shortened by one person alone', new.class),
      detail = format('It keeps for %s; %s is shorter.', v_before, new.keep),
      hint = 'Propose it with custody.set_retention_policy; somebody else approves it with custody.approve_retention_change.',
      schema = tg_table_schema, table = tg_table_name, column = 'keep';
  end if;
  return new;
end
$$;
comment on function custody_data.tg_require_approval() is
'Row guard of retention_policies: raises PC043 for a policy that shortens what held before, unless its change_id is a change of that class and length that a second person approved at the time of set_at.';

-- definer: reads policies, holds and identities whatever the role
-- stable: it sees the table as the statement found it. A grant that goes together with its withdrawal would
-- else be in force again for the instant between the two rows.
create or replace function custody_data.tg_reject_early_delete()
returns trigger
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_expires_at constant timestamptz := custody_data.expires_at(old);
begin
  if v_expires_at is null or v_expires_at >= now() then
    raise exception using
      errcode = 'PC020',
      message = format('delete of %I.%I refused: the row stays until its retention ends', tg_table_schema, tg_table_name),
      detail = case when v_expires_at is null then 'Its retention has not begun: a consent is in force, an alert is not closed.'
        else format('It is kept until %s.', v_expires_at at time zone 'UTC') end,
      hint = format('custody.enforce_retention(%L, …) deletes what is due.', tg_argv[0]),
      schema = tg_table_schema,
      table = tg_table_name;
  end if;
  return old;
end
$$;
comment on function custody_data.tg_reject_early_delete() is
'Row guard of consent_records and alerts: lets go only what the policy has released (PC020). Argument: the class of the policy.';

-- Holds are placed one at a time and against deletions of the tenant: whoever deletes shares this lock, whoever
-- places a hold takes it alone, so each sees the other's work or waits for it.
create or replace function custody_data.lock_holds(p_tenant text, p_exclusive boolean default false)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_exclusive then
    perform pg_advisory_xact_lock(hashtextextended('pgcustody.holds.' || p_tenant, 0));
    update custody_data.tenants t set name = t.name where t.tenant_id = p_tenant;
  else
    perform pg_advisory_xact_lock_shared(hashtextextended('pgcustody.holds.' || p_tenant, 0));
    -- A snapshot from before a hold would not show it: this row has changed since, and fails it with 40001.
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
      perform 1 from custody_data.tenants t where t.tenant_id = p_tenant for share;
    end if;
  end if;
end
$$;
revoke all on function custody_data.lock_holds(text, boolean) from public;
comment on function custody_data.lock_holds(text, boolean) is 'Lock between placing holds and deleting, for one tenant, until the transaction ends.';

-- definer: sees every hold, whatever the role and the subject
create or replace function custody_data.tg_reject_held()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_held bigint;
begin
  perform custody_data.lock_holds(custody_data.require_context());
  if exists (select from custody_data.legal_holds h where h.released_at is null and (h.until_at is null or h.until_at > now())) then
    execute format($q$
      select count(*) from old_rows r
      where exists (
        select from custody_data.active_holds() h
        where h.tenant_id = r.tenant_id and (h.scope = 'tenant'
          or (h.scope = 'person' and h.identity_id = r.identity_id)
          or (h.scope = 'row' and h.table_name = $1 and h.row_id = r.%I::text and h.identity_id is not distinct from r.identity_id))) $q$, tg_argv[0])
    into v_held using tg_table_name;
    if v_held > 0 then
      raise exception using
        errcode = 'PC032',
        message = format('delete from %I.%I refused: %s rows are under legal hold', tg_table_schema, tg_table_name, v_held),
        hint = 'See custody.holds; the deletion is possible once custody.release_hold has released them.',
        schema = tg_table_schema,
        table = tg_table_name;
    end if;
  end if;
  return null;
end
$$;
comment on function custody_data.tg_reject_held() is 'Statement guard: refuses to delete what a legal hold covers (PC032). Argument: the column that names a row within its person.';

create or replace function custody_data.refuse_anchored(p_operation text, p_table text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'PC020',
    message = format('%s of custody_data.%I refused: a signed checkpoint covers it', lower(p_operation), p_table),
    hint = 'The ledger only grows. Where it does not fit its events, run pgcustody verify and have the case looked at.',
    schema = 'custody_data', table = p_table;
end
$$;
revoke all on function custody_data.refuse_anchored(text, text) from public;
comment on function custody_data.refuse_anchored(text, text) is 'Raises PC020 for what a signed checkpoint covers.';

create or replace function custody_data.anchored_leaves()
returns bigint
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(max(c.tree_size), 0) from custody_data.ledger_checkpoints c where c.tenant_id = 'system';
$$;
revoke all on function custody_data.anchored_leaves() from public;
comment on function custody_data.anchored_leaves() is 'How many leaves the newest recorded checkpoint covers.';

create or replace function custody_data.tg_keep_tiles()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kept constant integer := least(greatest((custody_data.anchored_leaves() >> (8 * old.level)) - old.tile_index * 256, 0), 256);
begin
  if v_kept > 0 and (tg_op = 'DELETE' or (new.tenant_id, new.level, new.tile_index) <> (old.tenant_id, old.level, old.tile_index)
      or substr(new.hashes, 1, v_kept * 32) <> substr(old.hashes, 1, v_kept * 32)) then
    perform custody_data.refuse_anchored(tg_op, tg_table_name);
  end if;
  return coalesce(new, old);
end
$$;
comment on function custody_data.tg_keep_tiles() is 'Row guard of the ledger''s tiles: hashes that the newest signed checkpoint covers stay as they are (PC020).';

create or replace function custody_data.tg_keep_entries()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kept constant integer := least(greatest(custody_data.anchored_leaves() - old.tile_index * 256, 0), 256);
begin
  if v_kept > 0 and (tg_op = 'DELETE' or (new.tenant_id, new.tile_index) <> (old.tenant_id, old.tile_index)
      or substr(new.xids, 1, v_kept * 8) <> substr(old.xids, 1, v_kept * 8)
      or substr(new.entry_ids, 1, v_kept * 16) <> substr(old.entry_ids, 1, v_kept * 16)
      or substr(new.days, 1, v_kept * 4) <> substr(old.days, 1, v_kept * 4)) then
    perform custody_data.refuse_anchored(tg_op, tg_table_name);
  end if;
  return coalesce(new, old);
end
$$;
comment on function custody_data.tg_keep_entries() is 'Row guard of the ledger''s map: which events the leaves are that the newest signed checkpoint covers stays as it is (PC020).';

create or replace function custody_data.tg_keep_stretches()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'UPDATE' or old.first_leaf < custody_data.anchored_leaves() then
    perform custody_data.refuse_anchored(tg_op, tg_table_name);
  end if;
  return old;
end
$$;
comment on function custody_data.tg_keep_stretches() is 'Row guard of the ledger''s stretches: none changes, and none goes that begins before what the newest signed checkpoint covers ends (PC020).';

create or replace function custody_data.changed_columns(p_old jsonb, p_new jsonb)
returns text[]
language sql
immutable
parallel safe
return array(
  select o.key from pg_catalog.jsonb_each(p_old) o
  where o.value is distinct from p_new -> o.key and o.key <> all (array['version', 'updated_at'])
  order by o.key);
revoke all on function custody_data.changed_columns(jsonb, jsonb) from public;
grant execute on function custody_data.changed_columns(jsonb, jsonb) to custody_worker;
comment on function custody_data.changed_columns(jsonb, jsonb) is 'Names of the columns in which two versions of a row differ, without those that every update changes.';

create or replace function custody_data.append_record_events(p_operation text, p_table text, p_touched custody_data.touched_rows[])
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_actor_id constant uuid := coalesce(custody.current_actor_id(), custody_data.require_actor());
begin
  perform custody_data.require_partition(clock_timestamp());
  insert into custody_data.audit_logs
    (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata)
  select v_tenant, custody_data.new_entry_id(), clock_timestamp(), v_actor_id, t.identity_id, 'record.' || lower(p_operation), p_table,
    case when cardinality(t.row_ids) = 1 then t.row_ids[1] end, 'success', custody.current_purpose(),
    case
      when cardinality(t.row_ids) = 1 and t.columns is null then '{}'
      when cardinality(t.row_ids) = 1 then jsonb_build_object('columns', t.columns)
      when t.columns is null then jsonb_build_object('rows', cardinality(t.row_ids), 'row_ids', t.row_ids)
      else jsonb_build_object('columns', t.columns, 'rows', cardinality(t.row_ids), 'row_ids', t.row_ids)
    end
  from unnest(p_touched) t;
end
$$;
revoke all on function custody_data.append_record_events(text, text, custody_data.touched_rows[]) from public;
grant execute on function custody_data.append_record_events(text, text, custody_data.touched_rows[]) to custody_worker;
comment on function custody_data.append_record_events(text, text, custody_data.touched_rows[]) is
'Appends record.insert, record.update or record.delete to the trail: one event for each person that a statement touched (and, for updates, for each set of changed columns), naming every row and no value.';

-- One function for each shape of key, so that each trigger plans the one statement that it needs once a session.
create or replace function custody_data.tg_audit_people()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_hashjoin = on -- of old and new rows, whatever the caller has set
as $$
declare
  v_touched custody_data.touched_rows[];
begin
  if tg_op = 'INSERT' then
    select array_agg((n.identity_id, null, array[n.identity_id::text])::custody_data.touched_rows) into v_touched
    from new_rows n;
  elsif tg_op = 'DELETE' then
    select array_agg((o.identity_id, null, array[o.identity_id::text])::custody_data.touched_rows) into v_touched
    from old_rows o;
  else
    select array_agg((n.identity_id, x.columns, array[n.identity_id::text])::custody_data.touched_rows) into v_touched
    from new_rows n join old_rows o on o.tenant_id = n.tenant_id and o.identity_id = n.identity_id
    cross join lateral (select custody_data.changed_columns(to_jsonb(o), to_jsonb(n)) as columns offset 0) x
    -- what was resealed has the version that it had
    where n.version <> o.version;
  end if;
  perform custody_data.append_record_events(tg_op, tg_table_name, v_touched);
  return null;
end
$$;
comment on function custody_data.tg_audit_people() is 'Statement trigger of tables with one row a person: appends record events.';

create or replace function custody_data.tg_audit_conversations()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_hashjoin = on -- of old and new rows, whatever the caller has set
as $$
declare
  v_touched custody_data.touched_rows[];
begin
  if tg_op = 'INSERT' then
    select array_agg((g.identity_id, g.columns, g.row_ids)::custody_data.touched_rows) into v_touched
    from (select n.identity_id, null::text[] as columns, array_agg(n.conversation_id order by n.conversation_id) as row_ids from new_rows n group by n.identity_id) g;
  elsif tg_op = 'DELETE' then
    select array_agg((g.identity_id, g.columns, g.row_ids)::custody_data.touched_rows) into v_touched
    from (select o.identity_id, null::text[] as columns, array_agg(o.conversation_id order by o.conversation_id) as row_ids from old_rows o group by o.identity_id) g;
  else
    select array_agg((g.identity_id, g.columns, g.row_ids)::custody_data.touched_rows) into v_touched
    from (
      select c.identity_id, c.columns, array_agg(c.conversation_id order by c.conversation_id) as row_ids
      from (
        select n.identity_id, n.conversation_id, x.columns
        from new_rows n
        join old_rows o on o.tenant_id = n.tenant_id and o.identity_id = n.identity_id and o.conversation_id = n.conversation_id
        cross join lateral (select custody_data.changed_columns(to_jsonb(o), to_jsonb(n)) as columns offset 0) x
        -- what was resealed has the version that it had
        where n.version <> o.version
      ) c
      group by c.identity_id, c.columns
    ) g;
  end if;
  perform custody_data.append_record_events(tg_op, tg_table_name, v_touched);
  return null;
end
$$;
comment on function custody_data.tg_audit_conversations() is 'Statement trigger of conversations: appends record events.';

create or replace function custody_data.tg_audit_consents()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_touched custody_data.touched_rows[];
begin
  if tg_op = 'INSERT' then
    select array_agg((g.identity_id, g.columns, g.row_ids)::custody_data.touched_rows) into v_touched
    from (select n.identity_id, null::text[] as columns, array_agg(n.consent_id::text order by n.consent_id) as row_ids from new_rows n group by n.identity_id) g;
  else
    select array_agg((g.identity_id, g.columns, g.row_ids)::custody_data.touched_rows) into v_touched
    from (select o.identity_id, null::text[] as columns, array_agg(o.consent_id::text order by o.consent_id) as row_ids from old_rows o group by o.identity_id) g;
  end if;
  perform custody_data.append_record_events(tg_op, tg_table_name, v_touched);
  return null;
end
$$;
comment on function custody_data.tg_audit_consents() is 'Statement trigger of consent records, which are never updated: appends record events.';

do $$
declare
  v_function regprocedure;
begin
  -- Trigger functions are run by their triggers, never called.
  for v_function in
    select p.oid::regprocedure from pg_catalog.pg_proc p
    where p.pronamespace = 'custody_data'::regnamespace and p.prorettype = 'pg_catalog.trigger'::regtype
  loop
    execute pg_catalog.format('revoke all on function %s from public', v_function);
  end loop;
end
$$;
