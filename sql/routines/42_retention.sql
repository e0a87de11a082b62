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

create or replace view custody.retention_changes with (security_invoker = true) as
select c.tenant_id, c.change_id, c.class, c.keep, c.keep_before, c.basis,
  coalesce(c.decision, case when c.expires_at <= pg_catalog.now() then 'expired' else 'proposed' end) as status,
  c.proposed_by, c.proposed_login, c.proposed_at, c.expires_at, c.decided_by, c.decided_login, c.decided_at, c.reason
from custody_data.retention_changes c;
grant select on custody.retention_changes to custody_worker, custody_privacy, custody_auditor, custody_admin;
comment on view custody.retention_changes is 'Changes of retention policies of the tenant in context with the status of each: proposed, set, approved, rejected, withdrawn, replaced or expired. Readers: custody_worker, custody_privacy, custody_auditor, custody_admin.';

create or replace function custody_data.shortens(p_class text, p_keep interval, p_before interval)
returns boolean
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  -- Not by comparing intervals, for which a year has 360 days: 361 days would pass for longer. Shorter is what ends
  -- sooner from any day of four years, counted forwards, as ends of policies are, or backwards, as what is due is.
  -- Policies for keys say when keys change, not how long data is kept; what is restored is a copy.
  select p_class not in ('key_age', 'kek_generation', 'key_backup', 'restored') and exists (
    select from (select timestamp '2000-01-01' + d * interval '1 day' as at from generate_series(0, 1460) d) s
    where s.at + p_keep < s.at + p_before or s.at - p_keep > s.at - p_before);
$$;
revoke all on function custody_data.shortens(text, interval, interval) from public;
comment on function custody_data.shortens(text, interval, interval) is 'Whether keeping a class for p_keep lets anything go sooner than p_before does. Policies for keys never do, no data goes by them, nor does that for copies out of the archive.';

create or replace function custody_data.lock_policy(p_tenant text, p_class text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_read_committed();
  perform pg_advisory_xact_lock(hashtextextended(format('pgcustody.retention_policy %s %s', p_tenant, p_class), 0));
end
$$;
revoke all on function custody_data.lock_policy(text, text) from public;
comment on function custody_data.lock_policy(text, text) is 'Changes of one policy take turns, until the transaction ends. Raises PC026 at repeatable read and above.';

create or replace function custody_data.put_policy(p_change custody_data.retention_changes, p_replaces uuid)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into custody_data.retention_policies as p (tenant_id, class, keep, basis, set_by, set_at, change_id)
  values (p_change.tenant_id, p_change.class, p_change.keep, p_change.basis, p_change.proposed_by, p_change.decided_at, p_change.change_id)
  on conflict (tenant_id, class) do update
  set keep = excluded.keep, basis = excluded.basis, set_by = excluded.set_by, set_at = excluded.set_at, change_id = excluded.change_id;
  perform custody_data.append_event('retention.policy', 'retention_policy', p_change.class, 'success',
    jsonb_strip_nulls(jsonb_build_object('class', p_change.class, 'keep', p_change.keep::text, 'keep_before', p_change.keep_before::text,
      'basis', p_change.basis, 'change_id', p_change.change_id, 'replaces', p_replaces)), null);
end
$$;
revoke all on function custody_data.put_policy(custody_data.retention_changes, uuid) from public;
comment on function custody_data.put_policy(custody_data.retention_changes, uuid) is 'Puts a decided change into force, with its event.';

-- definer: policies and their changes are written by these functions alone
create or replace function custody.set_retention_policy(p_class text, p_keep interval, p_basis text)
returns custody_data.retention_changes
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_actor constant uuid := custody_data.require_actor();
  v_before interval := custody_data.keep_of(p_class);
  v_change custody_data.retention_changes;
  v_replaces uuid;
begin
  if p_class in ('audit_hot', 'access', 'shipped_logs') and v_tenant <> 'system' then
    raise exception using errcode = 'PC012', message = format('policy %s holds for the whole database', p_class),
      hint = 'Set it in the context of tenant system: months and batches are shared by all tenants.';
  end if;
  if p_keep is null or p_keep <= interval '0' or p_keep > interval '100 years' or coalesce(btrim(p_basis), '') = '' or char_length(p_basis) > 1000 then
    raise exception using errcode = 'PC023', message = 'a policy needs an interval of at most 100 years and a legal basis',
      hint = 'For example: interval ''6 years'', and the law or contract that asks for it.';
  end if;
  if p_class = 'audit_hot' and p_keep < interval '7 days' then
    raise exception using errcode = 'PC023', message = 'policy audit_hot is 7 days or more',
      hint = 'Events stay in Postgres for at least 7 days after their archive was proved.';
  end if;
  perform custody_data.lock_policy(v_tenant, p_class);
  v_before := custody_data.keep_of(p_class);

  -- Who decides next must see what it would change: an open proposal does not outlive a change of its policy.
  update custody_data.retention_changes c
  set decision = case when c.expires_at <= now() then 'expired' else 'replaced' end, decided_by = v_actor, decided_login = session_user, decided_at = now()
  where c.tenant_id = v_tenant and c.class = p_class and c.decision is null
  returning case c.decision when 'replaced' then c.change_id end into v_replaces;

  insert into custody_data.retention_changes as c (tenant_id, class, keep, keep_before, basis, proposed_by, decision, decided_by, decided_login, decided_at)
  select v_tenant, p_class, p_keep, v_before, p_basis, v_actor, d.decision,
    case when d.decision = 'set' then v_actor end, case when d.decision = 'set' then session_user end, case when d.decision = 'set' then now() end
  from (select case when not custody_data.shortens(p_class, p_keep, v_before) then 'set' end as decision) d
  returning c.* into v_change;
  if v_change.decision = 'set' then
    perform custody_data.put_policy(v_change, v_replaces);
  else
    perform custody_data.append_event('retention.propose', 'retention_policy', p_class, 'success',
      jsonb_strip_nulls(jsonb_build_object('class', p_class, 'keep', p_keep::text, 'keep_before', v_before::text, 'basis', p_basis,
        'change_id', v_change.change_id, 'replaces', v_replaces, 'expires_at', custody_data.entry_time(v_change.expires_at))), null);
    raise notice using
      message = format('policy %s stays at %s: change %s waits for the approval of a second person', p_class, v_before, v_change.change_id),
      hint = 'Somebody else, by another login: custody.approve_retention_change, within 30 days.';
  end if;
  return v_change;
end
$$;
revoke all on function custody.set_retention_policy(text, interval, text) from public;
grant execute on function custody.set_retention_policy(text, interval, text) to custody_privacy, custody_admin;
comment on function custody.set_retention_policy(text, interval, text) is
'Sets how long the tenant in context keeps a class, at once where nothing goes sooner by it (decision set). Where something would, nothing changes: the change that it returns has no decision and waits 30 days for custody.approve_retention_change by a second person. Either takes the place of an open proposal for the class. In tenant system it sets the shared policy.
p_class: audit, audit_hot (tenant system only, 7 days or more), consent, conversations, entry_ids, erased_ids, alerts (from when they were closed); access (months of access_events) and shipped_logs (batches of the log in the store; tenant system only); key_age, kek_generation and key_backup for keys, by which no data goes, and restored for copies, which are set at once. p_keep: from the end that the class defines, at most 100 years. p_basis: legal basis, 1 to 1000 characters.
Errors: PC001, PC012 unknown policy, PC015, PC023, PC026 isolation level. Callers: custody_privacy, custody_admin.';

create or replace function custody_data.require_open_change(p_change_id uuid)
returns custody_data.retention_changes
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_change custody_data.retention_changes;
begin
  perform custody_data.require_read_committed();
  select c.* into v_change from custody_data.retention_changes c where c.tenant_id = v_tenant and c.change_id = p_change_id;
  if found then
    -- The lock first, then the row as it is under it.
    perform custody_data.lock_policy(v_tenant, v_change.class);
    select c.* into v_change from custody_data.retention_changes c where c.tenant_id = v_tenant and c.change_id = p_change_id;
  end if;
  if v_change.change_id is null or v_change.decision is not null or v_change.expires_at <= now() then
    raise exception using
      errcode = 'PC044',
      message = format('no retention change %s to decide', coalesce(p_change_id::text, 'null')),
      detail = case
        when v_change.change_id is null then 'The tenant has no such change.'
        when v_change.decision is not null then format('It is %s since %s.', v_change.decision, custody_data.entry_time(v_change.decided_at))
        else format('It expired at %s.', custody_data.entry_time(v_change.expires_at)) end,
      hint = 'custody.retention_changes has them all; propose it again with custody.set_retention_policy.';
  end if;
  return v_change;
end
$$;
revoke all on function custody_data.require_open_change(uuid) from public;
comment on function custody_data.require_open_change(uuid) is 'The proposed change of that id, locked until the transaction ends; raises PC044 where it is unknown, decided or expired, PC026 at repeatable read and above.';

-- definer: as set_retention_policy
create or replace function custody.approve_retention_change(p_change_id uuid)
returns custody_data.retention_changes
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_change custody_data.retention_changes := custody_data.require_open_change(p_change_id);
  v_actor constant uuid := custody_data.require_actor();
  v_before constant interval := custody_data.keep_of(v_change.class);
begin
  if v_actor = v_change.proposed_by or session_user = v_change.proposed_login then
    raise exception using
      errcode = 'PC043',
      message = format('retention change %s needs the approval of a second person', p_change_id),
      detail = concat_ws(' ', case when v_actor = v_change.proposed_by then 'The actor in context proposed it.' end,
        case when session_user = v_change.proposed_login then format('It was proposed by login %s, which this session has too.', v_change.proposed_login) end),
      hint = 'Somebody else approves it, as another actor and by a login of their own.';
  end if;
  -- A shared policy may have changed under a tenant's proposal.
  if v_before::text <> v_change.keep_before::text then
    raise exception using
      errcode = 'PC044',
      message = format('retention change %s is overtaken', p_change_id),
      detail = format('It was proposed when policy %s kept for %s, which is %s now.', v_change.class, v_change.keep_before, v_before),
      hint = 'Propose it again with custody.set_retention_policy.';
  end if;
  update custody_data.retention_changes c
  set decision = 'approved', decided_by = v_actor, decided_login = session_user, decided_at = now()
  where c.tenant_id = v_change.tenant_id and c.change_id = p_change_id
  returning c.* into v_change;
  perform custody_data.append_event('retention.approve', 'retention_policy', v_change.class, 'success',
    jsonb_build_object('class', v_change.class, 'keep', v_change.keep::text, 'keep_before', v_change.keep_before::text, 'change_id', p_change_id), null);
  perform custody_data.put_policy(v_change, null);
  return v_change;
end
$$;
revoke all on function custody.approve_retention_change(uuid) from public;
grant execute on function custody.approve_retention_change(uuid) to custody_privacy, custody_admin;
comment on function custody.approve_retention_change(uuid) is
'Approves a shorter policy that somebody else proposed, which then holds: another actor, by another login of the database. Events: retention.approve and retention.policy.
Errors: PC001, PC015 confined to one person, PC026 isolation level, PC043 proposed by the same actor or login, PC044 unknown, decided, expired or overtaken. Callers: custody_privacy, custody_admin.';

-- definer: as set_retention_policy
create or replace function custody.reject_retention_change(p_change_id uuid, p_reason text)
returns custody_data.retention_changes
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_change custody_data.retention_changes;
  v_actor constant uuid := custody_data.require_actor();
begin
  if coalesce(char_length(btrim(p_reason)), 0) not between 1 and 1000 then
    raise exception using errcode = 'PC023', message = 'rejecting a change of a policy needs a reason', hint = 'Say why in 1 to 1000 characters, without naming a person.';
  end if;
  v_change := custody_data.require_open_change(p_change_id);
  update custody_data.retention_changes c
  set decision = case when v_actor = c.proposed_by then 'withdrawn' else 'rejected' end,
    decided_by = v_actor, decided_login = session_user, decided_at = now(), reason = p_reason
  where c.tenant_id = v_change.tenant_id and c.change_id = p_change_id
  returning c.* into v_change;
  perform custody_data.append_event(case v_change.decision when 'withdrawn' then 'retention.withdraw' else 'retention.reject' end,
    'retention_policy', v_change.class, 'success',
    jsonb_build_object('class', v_change.class, 'change_id', p_change_id, 'reason', p_reason), null);
  return v_change;
end
$$;
revoke all on function custody.reject_retention_change(uuid, text) from public;
grant execute on function custody.reject_retention_change(uuid, text) to custody_privacy, custody_admin;
comment on function custody.reject_retention_change(uuid, text) is
'Rejects a shorter policy that somebody proposed, or withdraws it where the actor in context proposed it. p_reason: why, 1 to 1000 characters, naming nobody.
Errors: PC001, PC015 confined to one person, PC023, PC026 isolation level, PC044 unknown, decided or expired. Callers: custody_privacy, custody_admin.';

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
returns table (identity_id uuid, conversation_id text, reference text)
language sql
stable
rows 10
set search_path = pg_catalog, pg_temp
as $$
  select h.identity_id, case h.scope when 'row' then h.row_id end, h.reference
  from custody_data.active_holds() h
  where h.tenant_id = custody.current_tenant()
    and (h.scope = 'person' or (h.scope = 'row' and h.table_name = 'conversations'));
$$;
revoke all on function custody_data.conversation_holds() from public;
comment on function custody_data.conversation_holds() is 'People and conversations of the tenant in context that holds cover; without a conversation_id, all of the person. A hold on the tenant is not among them.';

create or replace function custody_data.consent_holds()
returns table (identity_id uuid, purpose text, occurred_at timestamptz, recorded_at timestamptz, consent_id uuid, reference text)
language sql
stable
rows 10
set search_path = pg_catalog, pg_temp
as $$
  -- A held grant whose withdrawal went would be in force again, so a hold on a record keeps those after it too.
  select h.identity_id, c.purpose, c.occurred_at, c.recorded_at, c.consent_id, h.reference
  from custody_data.active_holds() h
  left join custody_data.consent_records c
    on c.tenant_id = h.tenant_id and c.identity_id = h.identity_id
    and c.consent_id = case when h.scope = 'row' and h.table_name = 'consent_records' then h.row_id::uuid end
  where h.tenant_id = custody.current_tenant() and (h.scope = 'person' or c.consent_id is not null);
$$;
revoke all on function custody_data.consent_holds() from public;
comment on function custody_data.consent_holds() is 'From which record on holds cover the consents of a person for a purpose; without a purpose, all of the person. A hold on the tenant is not among them.';

create or replace function custody_data.due_consents(p_tenant text, p_as_of timestamptz, p_keep interval, p_after uuid default null, p_to uuid default null)
returns table (consent_id uuid, identity_id uuid, purpose text, occurred_at timestamptz, recorded_at timestamptz)
language sql
stable
begin atomic
  -- In SQL-standard form, which the planner takes into the caller's query. What custody_data.expires_at
  -- says of one row, for all at once: one pass over the index by person and purpose, next to each record the one
  -- that follows it. The four days are for months of different length, which make adding a time to the end of a
  -- record another thing than taking it from p_as_of.
  select c.consent_id, c.identity_id, c.purpose, c.occurred_at, c.recorded_at
  from (
    select r.*, lag(r.occurred_at) over (partition by r.identity_id, r.purpose
      order by r.occurred_at desc, r.recorded_at desc, r.consent_id desc) as next_at
    from custody_data.consent_records r
    where r.tenant_id = p_tenant and r.occurred_at < p_as_of - p_keep + interval '4 days'
      and r.identity_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000') and r.identity_id <= coalesce(p_to, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  ) c
  left join custody_data.identities i on i.tenant_id = p_tenant and i.identity_id = c.identity_id and i.erased_at < p_as_of - p_keep + interval '4 days'
  where c.occurred_at < p_as_of - p_keep
    and least(case when c.granted then c.next_at else c.occurred_at end, i.erased_at) + p_keep < p_as_of;
end;
revoke all on function custody_data.due_consents(text, timestamptz, interval, uuid, uuid) from public;
comment on function custody_data.due_consents(text, timestamptz, interval, uuid, uuid) is 'Consent records that ended more than p_keep before p_as_of, held or not: withdrawals, grants that another record followed, and those of people erased since. Of the people after p_after up to p_to; null for all.';

create or replace function custody_data.delete_due_consents(p_tenant text, p_as_of timestamptz, p_keep interval, p_limit integer)
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Whether a record is due shows in the one that follows it, so it takes a walk over the people, some of them at a
  -- time. Each batch begins at a person by chance: then none walks what those before it walked in vain, and nothing
  -- has to be remembered from one to the next.
  c_last constant uuid := uuid 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  v_began constant uuid := gen_random_uuid();
  v_after uuid := v_began;
  v_to uuid;
  v_wrapped boolean := false;
  v_rows bigint := 0;
  v_deleted bigint;
begin
  loop
    select r.identity_id into v_to from custody_data.consent_records r
    where r.tenant_id = p_tenant and r.identity_id > v_after
    order by r.identity_id offset 10 * p_limit - 1 limit 1;
    v_to := least(coalesce(v_to, c_last), case when v_wrapped then v_began end);
    -- Oldest first: a withdrawal never goes before the grant that it ended.
    with held as materialized (
      select h.* from custody_data.consent_holds() h
    ), due as (
      select d.consent_id
      from custody_data.due_consents(p_tenant, p_as_of, p_keep, v_after, v_to) d
      where not exists (
        select from held h
        where h.identity_id = d.identity_id and (h.purpose is null or (h.purpose = d.purpose
          and (h.occurred_at, h.recorded_at, h.consent_id) <= (d.occurred_at, d.recorded_at, d.consent_id))))
      order by d.occurred_at, d.recorded_at, d.consent_id
      limit p_limit - v_rows
    )
    delete from custody_data.consent_records c using due d
    where c.tenant_id = p_tenant and c.consent_id = d.consent_id;
    get diagnostics v_deleted = row_count;
    v_rows := v_rows + v_deleted;
    exit when v_rows >= p_limit or (v_wrapped and v_to = v_began);
    v_wrapped := v_wrapped or v_to = c_last;
    v_after := case when v_to = c_last then '00000000-0000-0000-0000-000000000000' else v_to end;
  end loop;
  return v_rows;
end
$$;
revoke all on function custody_data.delete_due_consents(text, timestamptz, interval, integer) from public;
comment on function custody_data.delete_due_consents(text, timestamptz, interval, integer) is 'Deletes p_limit of the consent records that are due and not held, or as many as there are, person after person, of each the oldest first, and returns how many.';

create or replace view custody.retention_item with (security_invoker = true) as
select ''::text as tenant_id, ''::text as class, ''::text as relation, null::interval as keep, 0::bigint as due_rows, 0::bigint as held_rows,
  null::timestamptz as oldest_at, 0::bigint as due_bytes, '{}'::text[] as held_by
where false;
comment on view custody.retention_item is 'Shape of retention_due_at: for each class what would go and what holds keep, the oldest time among what would go, how much it is by estimate, and the references of the holds that keep something.';

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
  v_by_tenant text[];
begin
  if p_as_of is null or not isfinite(p_as_of) then
    raise exception using errcode = 'PC009', message = 'time out of range: p_as_of', hint = 'Give a finite time.';
  end if;
  -- Nobody has to read a row to know which hold on the whole tenant keeps it.
  v_by_tenant := array(select h.reference from custody_data.active_holds() h where h.scope = 'tenant' and h.tenant_id = v_tenant order by 1);
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
    count(*), (select count(*) from due) - count(*), min(f.at),
    -- As large as some of them are, as they are stored: reading all would read what they say.
    coalesce(count(*) * (
      select avg(150 + coalesce(pg_column_size(c.title), 0) + pg_column_size(c.messages))
      from (select d.* from due d limit 1000) d
      join custody_data.conversations c on c.tenant_id = v_tenant and c.identity_id = d.identity_id and c.conversation_id = d.conversation_id), 0)::bigint,
    (select v_by_tenant from due limit 1) || array(
      select distinct h.reference from held h
      where exists (select from due d where d.identity_id = h.identity_id and (h.conversation_id is null or h.conversation_id = d.conversation_id))
      order by 1)
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
    count(*), (select count(*) from due) - count(*), min(f.at),
    coalesce(count(*) * (
      select avg(200 + coalesce(pg_column_size(c.evidence), 0))
      from (select d.* from due d limit 1000) d
      join custody_data.consent_records c on c.tenant_id = v_tenant and c.consent_id = d.consent_id), 0)::bigint,
    (select v_by_tenant from due limit 1) || array(
      select distinct h.reference from held h
      where exists (
        select from due d where d.identity_id = h.identity_id and (h.purpose is null or (h.purpose = d.purpose
          and (h.occurred_at, h.recorded_at, h.consent_id) <= (d.occurred_at, d.recorded_at, d.consent_id))))
      order by 1)
  from free f;

  v_keep := custody_data.keep_of('entry_ids');
  return query
  select v_tenant, 'entry_ids'::text, 'audit_entry_ids'::text, v_keep, count(*), 0::bigint, min(e.recorded_at), count(*) * 120, '{}'::text[]
  from custody_data.audit_entry_ids e
  where e.tenant_id = v_tenant and e.recorded_at < p_as_of - v_keep;

  v_keep := custody_data.keep_of('erased_ids');
  return query
  select v_tenant, 'erased_ids'::text, 'erased_user_ids'::text, v_keep, count(*), 0::bigint, min(e.erased_at), count(*) * 130, '{}'::text[]
  from custody_data.erased_user_ids e
  where e.tenant_id = v_tenant and e.erased_at < p_as_of - v_keep;

  v_keep := custody_data.keep_of('alerts');
  return query
  with due as (
    select a.closed_at as at, v_all_held or exists (
        select from custody_data.active_holds() h where h.tenant_id = v_tenant and h.scope = 'person' and h.identity_id = a.actor_id) as held
    from custody_data.alerts a
    where a.tenant_id = v_tenant and a.closed_at < p_as_of - v_keep
  )
  select v_tenant, 'alerts'::text, 'alerts'::text, v_keep, count(*) filter (where not d.held), count(*) filter (where d.held), min(d.at) filter (where not d.held),
    count(*) filter (where not d.held) * 600, case when bool_or(d.held) then v_by_tenant else '{}' end || array(
      select distinct h.reference from custody_data.active_holds() h
      where h.tenant_id = v_tenant and h.scope = 'person'
        and exists (select from custody_data.alerts a where a.tenant_id = v_tenant and a.closed_at < p_as_of - v_keep and a.actor_id = h.identity_id)
      order by 1)
  from due d;

  -- Each copy says when it goes; a hold keeps what is in the archive, not copies of it.
  v_keep := custody_data.keep_of('restored');
  return query
  select v_tenant, 'restored'::text, 'restored_events'::text, v_keep, count(*), 0::bigint, min(e.restored_at), count(*) * 1000, '{}'::text[]
  from custody_data.restored_events e
  where e.tenant_id = v_tenant and e.expires_at < p_as_of;

  -- Months of the trail past the hot period, by the planner's estimate of their rows: counting them would read them all.
  return query
  select v_tenant, 'audit_hot'::text, m.partition_name, custody_data.hot_period(), greatest(m.rows - h.rows, 0), h.rows, m.range_from,
    pg_total_relation_size(format('custody_data.%I', m.partition_name)::regclass), h.held_by
  from custody_data.audit_partitions() m
  cross join lateral (
    select (select count(*) from custody_data.held_events(m.range_from, m.range_to)) as rows,
      array(select distinct custody_data.holds_in(m.range_from, m.range_to) order by 1) as held_by
  ) h
  where v_tenant = 'system' and m.state <> 'foreign'
    and (m.range_to at time zone 'UTC' + custody_data.hot_period()) at time zone 'UTC' <= p_as_of;
end
$$;
revoke all on function custody.retention_due_at(timestamptz) from public;
grant execute on function custody.retention_due_at(timestamptz) to custody_worker, custody_privacy, custody_auditor;
comment on function custody.retention_due_at(timestamptz) is
'What retention would take from the tenant in context at p_as_of, which may lie ahead, and what holds keep, by class: rows counted, bytes by estimate, and the references of the holds. In tenant system also the months of the trail past the hot period, by estimated rows and their size on disk.
Errors: PC001, PC009. Callers: custody_worker, custody_privacy, custody_auditor.';

create or replace view custody.retention_due with (security_invoker = true) as
select d.* from custody.retention_due_at(pg_catalog.now()) d;
grant select on custody.retention_due to custody_worker, custody_privacy, custody_auditor;
comment on view custody.retention_due is 'What retention would take now. Readers: custody_worker, custody_privacy, custody_auditor.';

create or replace function custody_data.holds_in(p_from timestamptz, p_to timestamptz)
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
  -- Each way of being held by its index, as in custody_data.held_events.
  select h.reference
  from custody_data.active_holds() h
  where case h.scope
    when 'tenant' then exists (
      select from custody_data.audit_logs a where a.tenant_id = h.tenant_id and a.occurred_at >= p_from and a.occurred_at < p_to)
    when 'person' then exists (
      select from custody_data.audit_logs a
      where a.tenant_id = h.tenant_id and a.subject_id = h.identity_id and a.occurred_at >= p_from and a.occurred_at < p_to)
      or exists (
      select from custody_data.audit_logs a
      where a.tenant_id = h.tenant_id and a.actor_id = h.identity_id and a.occurred_at >= p_from and a.occurred_at < p_to)
    else h.table_name = 'audit_logs' and exists (
      select from custody_data.audit_logs a
      where a.tenant_id = h.tenant_id and a.log_entry_id = case when h.table_name = 'audit_logs' then h.row_id::uuid end
        and a.occurred_at >= p_from and a.occurred_at < p_to) end;
$$;
revoke all on function custody_data.holds_in(timestamptz, timestamptz) from public;
comment on function custody_data.holds_in(timestamptz, timestamptz) is 'References of the holds that cover an event of the time from p_from to p_to. In tenant system, holds of all tenants.';

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
      if not v_all_held then
        v_rows := custody_data.delete_due_consents(v_tenant, p_as_of, v_keep, p_limit);
      end if;
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
    when 'alerts' then
      with due as (
        select a.alert_id from custody_data.alerts a
        where a.tenant_id = v_tenant and a.closed_at < p_as_of - v_keep and not v_all_held
          and not exists (select from custody_data.active_holds() h where h.tenant_id = v_tenant and h.scope = 'person' and h.identity_id = a.actor_id)
        order by a.closed_at
        limit p_limit
        for update of a skip locked
      )
      delete from custody_data.alerts a using due d
      where a.tenant_id = v_tenant and a.alert_id = d.alert_id;
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
p_class: conversations, consent, entry_ids, erased_ids, alerts, restored; audit, audit_hot, access and shipped_logs return 0, since whole months and objects go. p_limit: 1 to 100000 rows. p_as_of: not in the future.
Errors: PC001, PC009, PC012 unknown policy, PC015 confined to one person, PC023, PC026 isolation level. Callers: custody_worker, custody_privacy.';
