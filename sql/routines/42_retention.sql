-- Retention: how long each class is kept, what is due, and its deletion in batches.
-- control: GDPR Art. 5(1)(e), 30(1)(f); HIPAA 164.316(b)(2)(i); ISO 27001 A.8.10
-- reviewed by: privacy officer, DBA
--
-- Policies are rows; the job only loops over enforce_retention until it returns 0. Whole months of the trail
-- leave through custody.drop_archived_partitions, which the archive job calls.

create or replace view custody.retention_policies with (security_invoker = true) as
select distinct on (p.class)
  coalesce(custody.current_tenant(), p.tenant_id::text) as tenant_id, p.class, p.keep, p.basis, p.tenant_id <> 'system' as own, p.set_by, p.set_at
from custody_data.retention_policies p
where p.tenant_id in (custody.current_tenant(), 'system')
order by p.class, p.tenant_id = 'system';
grant select on custody.retention_policies to custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor, custody_admin;
comment on view custody.retention_policies is 'The policy of each class that holds for the tenant in context: its own (own) or the shared one.';

-- definer: policies are written by this function alone
create or replace function custody.set_retention_policy(p_class text, p_keep interval, p_basis text)
returns interval
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_before interval;
begin
  v_before := custody_data.keep_of(p_class);
  if p_class = 'audit_hot' and v_tenant <> 'system' then
    raise exception using errcode = 'PC012', message = 'policy audit_hot holds for the whole database',
      hint = 'Set it in the context of tenant system: months are shared by all tenants.';
  end if;
  if p_keep is null or p_keep <= interval '0' or p_keep > interval '100 years' or coalesce(btrim(p_basis), '') = '' or char_length(p_basis) > 1000 then
    raise exception using errcode = 'PC023', message = 'a policy needs an interval of at most 100 years and a legal basis',
      hint = 'For example: interval ''6 years'', and the law or contract that asks for it.';
  end if;
  insert into custody_data.retention_policies as p (tenant_id, class, keep, basis, set_by)
  values (v_tenant, p_class, p_keep, p_basis, custody_data.require_actor())
  on conflict (tenant_id, class) do update set keep = excluded.keep, basis = excluded.basis, set_by = excluded.set_by, set_at = now();
  perform custody_data.append_event('retention.policy', 'retention_policy', p_class, 'success',
    jsonb_build_object('class', p_class, 'keep', p_keep::text, 'keep_before', v_before::text, 'basis', p_basis), null);
  return v_before;
end
$$;
revoke all on function custody.set_retention_policy(text, interval, text) from public;
grant execute on function custody.set_retention_policy(text, interval, text) to custody_privacy, custody_admin;
comment on function custody.set_retention_policy(text, interval, text) is
'Sets how long the tenant in context keeps a class and returns how long it was kept before. In tenant system it sets the shared policy.
p_class: audit, audit_hot (tenant system only), consent, conversations, entry_ids, erased_ids, restored; key_age, kek_generation and key_backup for keys. p_keep: from the end that the class defines, at most 100 years. p_basis: legal basis, 1 to 1000 characters.
Errors: PC001, PC012 unknown policy, PC015, PC023. Callers: custody_privacy, custody_admin.';

create or replace function custody_data.keep_of(p_class text)
returns interval
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_keep interval;
begin
  select p.keep into v_keep from custody_data.retention_policies p
  where p.class = p_class and p.tenant_id in (custody.current_tenant(), 'system')
  order by p.tenant_id = 'system' limit 1;
  if v_keep is null then
    raise exception using
      errcode = 'PC012',
      message = format('unknown retention policy %s', coalesce(quote_literal(left(p_class, 64)), 'null')),
      hint = 'custody.retention_policies names them all.';
  end if;
  return v_keep;
end
$$;
revoke all on function custody_data.keep_of(text) from public;
grant execute on function custody_data.keep_of(text) to custody_worker, custody_privacy, custody_auditor;
comment on function custody_data.keep_of(text) is 'How long the tenant in context keeps a class; PC012 for an unknown one.';

create or replace function custody_data.tenant_is_held()
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from custody_data.active_holds() h where h.scope = 'tenant' and h.tenant_id = custody.current_tenant());
$$;
revoke all on function custody_data.tenant_is_held() from public;
comment on function custody_data.tenant_is_held() is 'Whether a hold covers all of the tenant in context.';

create or replace function custody_data.conversation_holds()
returns table (identity_id uuid, conversation_id text)
language sql
stable
rows 10
set search_path = pg_catalog, pg_temp
as $$
  select h.identity_id, case h.scope when 'row' then h.row_id end
  from custody_data.active_holds() h
  where h.tenant_id = custody.current_tenant()
    and (h.scope = 'person' or (h.scope = 'row' and h.table_name = 'conversations'));
$$;
revoke all on function custody_data.conversation_holds() from public;
comment on function custody_data.conversation_holds() is 'People and conversations of the tenant in context that holds cover; without a conversation_id, all of the person. A hold on the tenant is not among them.';

create or replace function custody_data.consent_holds()
returns table (identity_id uuid, purpose text, occurred_at timestamptz, recorded_at timestamptz, consent_id uuid)
language sql
stable
rows 10
set search_path = pg_catalog, pg_temp
as $$
  -- A held grant whose withdrawal went would be in force again, so a hold on a record keeps those after it too.
  select h.identity_id, c.purpose, c.occurred_at, c.recorded_at, c.consent_id
  from custody_data.active_holds() h
  left join custody_data.consent_records c
    on c.tenant_id = h.tenant_id and c.identity_id = h.identity_id
    and c.consent_id = case when h.scope = 'row' and h.table_name = 'consent_records' then h.row_id::uuid end
  where h.tenant_id = custody.current_tenant() and (h.scope = 'person' or c.consent_id is not null);
$$;
revoke all on function custody_data.consent_holds() from public;
comment on function custody_data.consent_holds() is 'From which record on holds cover the consents of a person for a purpose; without a purpose, all of the person. A hold on the tenant is not among them.';

create or replace function custody_data.due_consents(p_tenant text, p_as_of timestamptz, p_keep interval)
returns table (consent_id uuid, identity_id uuid, purpose text, occurred_at timestamptz, recorded_at timestamptz)
language sql
stable
begin atomic
  -- In SQL-standard form, which the planner takes into the caller's query. What custody_data.consent_expires_at
  -- says of one row, for all at once: one pass over the index by person and purpose, next to each record the one
  -- that follows it. The four days are for months of different length, which make adding a time to the end of a
  -- record another thing than taking it from p_as_of.
  select c.consent_id, c.identity_id, c.purpose, c.occurred_at, c.recorded_at
  from (
    select r.*, lag(r.occurred_at) over (partition by r.identity_id, r.purpose
      order by r.occurred_at desc, r.recorded_at desc, r.consent_id desc) as next_at
    from custody_data.consent_records r
    where r.tenant_id = p_tenant and r.occurred_at < p_as_of - p_keep + interval '4 days'
  ) c
  left join custody_data.identities i on i.tenant_id = p_tenant and i.identity_id = c.identity_id and i.erased_at < p_as_of - p_keep + interval '4 days'
  where c.occurred_at < p_as_of - p_keep
    and least(case when c.granted then c.next_at else c.occurred_at end, i.erased_at) + p_keep < p_as_of;
end;
revoke all on function custody_data.due_consents(text, timestamptz, interval) from public;
comment on function custody_data.due_consents(text, timestamptz, interval) is 'Consent records that ended more than p_keep before p_as_of, held or not: withdrawals, grants that another record followed, and those of people erased since.';

create or replace view custody.retention_item with (security_invoker = true) as
select ''::text as tenant_id, ''::text as class, ''::text as relation, null::interval as keep, 0::bigint as due_rows, 0::bigint as held_rows,
  null::timestamptz as oldest_at
where false;
comment on view custody.retention_item is 'Shape of retention_due_at: for each class what would go and what holds keep, and the oldest time among what would go.';

-- definer: counts for officers who may not read the rows
-- random_page_cost: what is due is few rows among many, by their indexes, as in enforce_retention
create or replace function custody.retention_due_at(p_as_of timestamptz)
returns setof custody.retention_item
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set random_page_cost = 1.1
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_all_held constant boolean := custody_data.tenant_is_held();
  v_keep interval;
begin
  if p_as_of is null or not isfinite(p_as_of) then
    raise exception using errcode = 'PC009', message = 'time out of range: p_as_of', hint = 'Give a finite time.';
  end if;
  v_keep := custody_data.keep_of('conversations');
  return query
  with held as materialized (
    select h.* from custody_data.conversation_holds() h
  ), due as materialized (
    select c.identity_id, c.conversation_id, c.last_message_at as at
    from custody_data.conversations c
    where c.tenant_id = v_tenant and c.last_message_at < p_as_of - v_keep
  ), free as (
    select d.at from due d
    where not v_all_held and not exists (
      select from held h
      where h.identity_id = d.identity_id and (h.conversation_id is null or h.conversation_id = d.conversation_id))
  )
  select v_tenant, 'conversations'::text, 'conversations'::text, v_keep,
    count(*), (select count(*) from due) - count(*), min(f.at)
  from free f;

  v_keep := custody_data.keep_of('consent');
  return query
  with held as materialized (
    select h.* from custody_data.consent_holds() h
  ), due as materialized (
    select d.* from custody_data.due_consents(v_tenant, p_as_of, v_keep) d
  ), free as (
    select d.occurred_at as at from due d
    where not v_all_held and not exists (
      select from held h
      where h.identity_id = d.identity_id and (h.purpose is null or (h.purpose = d.purpose
        and (h.occurred_at, h.recorded_at, h.consent_id) <= (d.occurred_at, d.recorded_at, d.consent_id))))
  )
  select v_tenant, 'consent'::text, 'consent_records'::text, v_keep,
    count(*), (select count(*) from due) - count(*), min(f.at)
  from free f;

  v_keep := custody_data.keep_of('entry_ids');
  return query
  select v_tenant, 'entry_ids'::text, 'audit_entry_ids'::text, v_keep, count(*), 0::bigint, min(e.recorded_at)
  from custody_data.audit_entry_ids e
  where e.tenant_id = v_tenant and e.recorded_at < p_as_of - v_keep;

  v_keep := custody_data.keep_of('erased_ids');
  return query
  select v_tenant, 'erased_ids'::text, 'erased_user_ids'::text, v_keep, count(*), 0::bigint, min(e.erased_at)
  from custody_data.erased_user_ids e
  where e.tenant_id = v_tenant and e.erased_at < p_as_of - v_keep;

  -- Each copy says when it goes; a hold keeps what is in the archive, not copies of it.
  v_keep := custody_data.keep_of('restored');
  return query
  select v_tenant, 'restored'::text, 'restored_events'::text, v_keep, count(*), 0::bigint, min(e.restored_at)
  from custody_data.restored_events e
  where e.tenant_id = v_tenant and e.expires_at < p_as_of;

  -- Months of the trail past the hot period, by the planner's estimate of their rows: counting them would read them all.
  return query
  select v_tenant, 'audit_hot'::text, p.name, custody_data.keep_of('audit_hot'),
    case when p.held then 0 else p.rows end, case when p.held then p.rows else 0 end, p.range_from
  from (
    select c.relname::text as name, greatest(c.reltuples, 0)::bigint as rows, m.range_from,
      custody_data.month_is_held(m.range_from) as held
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join lateral (select (to_date(substr(c.relname, 12), 'YYYY_MM')::timestamp at time zone 'UTC') as range_from) m
    where i.inhparent = 'custody_data.audit_logs'::regclass and v_tenant = 'system'
      and (m.range_from at time zone 'UTC' + interval '1 month') at time zone 'UTC' < p_as_of - custody_data.keep_of('audit_hot')
  ) p
  order by p.range_from;
end
$$;
revoke all on function custody.retention_due_at(timestamptz) from public;
grant execute on function custody.retention_due_at(timestamptz) to custody_worker, custody_privacy, custody_auditor;
comment on function custody.retention_due_at(timestamptz) is
'What retention would take from the tenant in context at p_as_of, which may lie ahead, and what holds keep, by class. In tenant system also the months of the trail past the hot period, by estimated rows.
Errors: PC001, PC009. Callers: custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.retention_due with (security_invoker = true) as
select d.* from custody.retention_due_at(pg_catalog.now()) d;
grant select on custody.retention_due to custody_worker, custody_privacy, custody_auditor;
comment on view custody.retention_due is 'What retention would take now. Readers: custody_worker, custody_privacy, custody_auditor.';

create or replace function custody_data.month_is_held(p_range_from timestamptz)
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  -- a month of UTC, whatever the session's TimeZone
  v_to constant timestamptz := (p_range_from at time zone 'UTC' + interval '1 month') at time zone 'UTC';
begin
  -- One look for each way of being held, so that each has its index; planned anew for the month, whose partition
  -- is then the only one.
  return exists (
      select from custody_data.active_holds() h
      join custody_data.audit_logs a on a.tenant_id = h.tenant_id
      where h.scope = 'tenant' and a.occurred_at >= p_range_from and a.occurred_at < v_to)
    or exists (
      select from custody_data.active_holds() h
      join custody_data.audit_logs a on a.tenant_id = h.tenant_id and a.subject_id = h.identity_id
      where h.scope = 'person' and a.occurred_at >= p_range_from and a.occurred_at < v_to)
    or exists (
      select from custody_data.active_holds() h
      join custody_data.audit_logs a on a.tenant_id = h.tenant_id and a.actor_id = h.identity_id
      where h.scope = 'person' and a.occurred_at >= p_range_from and a.occurred_at < v_to)
    or exists (
      select from custody_data.active_holds() h
      join custody_data.audit_logs a on a.tenant_id = h.tenant_id
        and a.log_entry_id = case when h.table_name = 'audit_logs' then h.row_id::uuid end
      where h.scope = 'row' and h.table_name = 'audit_logs' and a.occurred_at >= p_range_from and a.occurred_at < v_to);
end
$$;
revoke all on function custody_data.month_is_held(timestamptz) from public;
comment on function custody_data.month_is_held(timestamptz) is 'Whether a hold covers an event of the month that starts at p_range_from. In tenant system, holds of all tenants.';

create or replace function custody_data.require_read_committed()
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception using
      errcode = 'PC026',
      message = format('wrong isolation level %s', current_setting('transaction_isolation')),
      detail = 'What was locked may have changed since the snapshot of this transaction, and it could not see that.',
      hint = 'Call it in a transaction of its own, read committed.';
  end if;
end
$$;
revoke all on function custody_data.require_read_committed() from public;
comment on function custody_data.require_read_committed() is 'Raises PC026 at repeatable read and above: deletions must see what stands after their locks.';

-- definer: deletes rows that the worker itself may not delete
-- random_page_cost: a batch is to read by the indexes, whatever the disks are said to be
create or replace function custody.enforce_retention(p_class text, p_limit integer, p_as_of timestamptz default now())
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set random_page_cost = 1.1
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_keep constant interval := custody_data.keep_of(p_class);
  v_all_held boolean;
  v_rows bigint := 0;
begin
  perform custody_data.require_read_committed();
  if p_limit is null or p_limit not between 1 and 100000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 100000 rows a batch.';
  end if;
  if p_as_of is null or not isfinite(p_as_of) or p_as_of > now() then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range: p_as_of is in the future',
      hint = 'Nothing goes before its time; custody.retention_due_at shows what would.';
  end if;
  perform custody_data.lock_holds(v_tenant);
  v_all_held := custody_data.tenant_is_held();

  case p_class
    when 'conversations' then
      with held as materialized (
        select h.* from custody_data.conversation_holds() h
      ), due as (
        select c.identity_id, c.conversation_id
        from custody_data.conversations c
        where c.tenant_id = v_tenant and c.last_message_at < p_as_of - v_keep and not v_all_held
          and not exists (
            select from held h
            where h.identity_id = c.identity_id and (h.conversation_id is null or h.conversation_id = c.conversation_id))
        order by c.last_message_at
        limit p_limit
        for update of c skip locked
      )
      delete from custody_data.conversations c using due d
      where c.tenant_id = v_tenant and c.identity_id = d.identity_id and c.conversation_id = d.conversation_id;
      get diagnostics v_rows = row_count;
    when 'consent' then
      -- Oldest first: a withdrawal never goes before the grant that it ended.
      with held as materialized (
        select h.* from custody_data.consent_holds() h
      ), due as (
        select d.consent_id
        from custody_data.due_consents(v_tenant, p_as_of, v_keep) d
        where not v_all_held and not exists (
          select from held h
          where h.identity_id = d.identity_id and (h.purpose is null or (h.purpose = d.purpose
            and (h.occurred_at, h.recorded_at, h.consent_id) <= (d.occurred_at, d.recorded_at, d.consent_id))))
        order by d.occurred_at, d.recorded_at, d.consent_id
        limit p_limit
      )
      delete from custody_data.consent_records c using due d
      where c.tenant_id = v_tenant and c.consent_id = d.consent_id;
      get diagnostics v_rows = row_count;
    when 'entry_ids' then
      with due as (
        select e.log_entry_id from custody_data.audit_entry_ids e
        where e.tenant_id = v_tenant and e.recorded_at < p_as_of - v_keep
        order by e.recorded_at
        limit p_limit
        for update skip locked
      )
      delete from custody_data.audit_entry_ids e using due d
      where e.tenant_id = v_tenant and e.log_entry_id = d.log_entry_id;
      get diagnostics v_rows = row_count;
    when 'erased_ids' then
      with due as (
        select e.request_id from custody_data.erased_user_ids e
        where e.tenant_id = v_tenant and e.erased_at < p_as_of - v_keep
        order by e.erased_at
        limit p_limit
        for update skip locked
      )
      delete from custody_data.erased_user_ids e using due d
      where e.tenant_id = v_tenant and e.request_id = d.request_id;
      get diagnostics v_rows = row_count;
    when 'restored' then
      with due as (
        select e.restore_id, e.leaf_index from custody_data.restored_events e
        where e.tenant_id = v_tenant and e.expires_at < p_as_of
        order by e.expires_at
        limit p_limit
        for update skip locked
      )
      delete from custody_data.restored_events e using due d
      where e.tenant_id = v_tenant and e.restore_id = d.restore_id and e.leaf_index = d.leaf_index;
      get diagnostics v_rows = row_count;
    else
      -- audit and audit_hot: whole months go, once their archive is proved (custody.drop_archived_partitions)
      null;
  end case;

  if v_rows > 0 then
    perform custody_data.append_event('retention.run', 'retention_policy', p_class, 'success',
      jsonb_build_object('class', p_class, 'rows', v_rows, 'as_of', custody_data.entry_time(p_as_of), 'keep', v_keep::text,
        'basis', (select p.basis from custody_data.retention_policies p where p.class = p_class and p.tenant_id in (v_tenant, 'system')
          order by p.tenant_id = 'system' limit 1)), null);
  end if;
  return v_rows;
end
$$;
revoke all on function custody.enforce_retention(text, integer, timestamptz) from public;
grant execute on function custody.enforce_retention(text, integer, timestamptz) to custody_worker, custody_privacy;
comment on function custody.enforce_retention(text, integer, timestamptz) is
'Deletes one batch of what is due in the tenant in context and returns how many rows went; 0 when nothing is left to do. What holds cover stays. A batch that deletes is an event (retention.run) of the same transaction.
p_class: conversations, consent, entry_ids, erased_ids, restored; audit and audit_hot return 0, since whole months go after archiving. p_limit: 1 to 100000 rows. p_as_of: not in the future.
Errors: PC001, PC009, PC012 unknown policy, PC015 confined to one person, PC023, PC026 isolation level. Callers: custody_worker, custody_privacy.';
