-- The audit trail: appending, partitions, the canonical entry, reading, vocabulary.
-- control: HIPAA 164.312(b); ISO 27001 A.8.15; SOC 2 CC7.2; GDPR Art. 5(2), 30
-- reviewed by: DBA, auditor
--
-- Appending looks identities up before it makes them, touches no row that another appender touches, and takes
-- no lock that another waits for.

create or replace function custody_data.new_entry_id()
returns uuid
language sql
volatile
parallel safe
return pg_catalog.encode(
  -- 48 bits of milliseconds over a random version 4 uuid, then the version's nibble set to 7
  pg_catalog.set_bit(pg_catalog.set_bit(
    overlay(pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
      placing substring(pg_catalog.int8send(pg_catalog.floor(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint) from 3)
      from 1 for 6),
    52, 1), 53, 1), 'hex')::uuid;
revoke all on function custody_data.new_entry_id() from public;
grant execute on function custody_data.new_entry_id() to custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.new_entry_id() is 'A new log_entry_id, ordered by time: RFC 9562 version 7.';

create or replace function custody_data.make_month(p_table text, p_month timestamp)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('create table custody_data.%I (like custody_data.audit_logs including all)', p_table);
  execute format('comment on table custody_data.%I is %L', p_table,
    format('Events of %s (UTC). Read and written through audit_logs alone.', to_char(p_month, 'YYYY-MM')));
end
$$;
revoke all on function custody_data.make_month(text, timestamp) from public;
comment on function custody_data.make_month(text, timestamp) is 'Makes the table of a month of the trail, apart from it.';

create or replace function custody_data.attach_part(p_table text, p_part tstzrange)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The bounds are written out in UTC: the text of a time depends on the session's DateStyle and TimeZone.
  execute format('alter table custody_data.audit_logs attach partition custody_data.%I for values from (%L) to (%L)', p_table,
    to_char(lower(p_part) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"+00"'), to_char(upper(p_part) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"+00"'));
end
$$;
revoke all on function custody_data.attach_part(text, tstzrange) from public;
comment on function custody_data.attach_part(text, tstzrange) is 'Attaches a table to the trail, for the events of some time.';

create or replace function custody_data.attach_month(p_table text, p_month timestamp)
returns void
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select custody_data.attach_part(p_table, tstzrange(p_month at time zone 'UTC', (p_month + interval '1 month') at time zone 'UTC'));
$$;
revoke all on function custody_data.attach_month(text, timestamp) from public;
comment on function custody_data.attach_month(text, timestamp) is 'Attaches the table of a month to the trail.';

create or replace function custody_data.month_without_place(p_month timestamp)
returns tstzmultirange
language sql
stable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO'
as $$
  -- By their bounds, not by their names: somebody may have attached or detached a partition by hand.
  select tstzmultirange(tstzrange(p_month at time zone 'UTC', (p_month + interval '1 month') at time zone 'UTC'))
    - coalesce(range_agg(tstzrange(nullif(btrim(b.bounds[1], ''''), 'MINVALUE')::timestamptz, nullif(btrim(b.bounds[2], ''''), 'MAXVALUE')::timestamptz)), '{}')
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
  cross join lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \((.+)\) TO \((.+)\)$') as bounds) b
  where i.inhparent = 'custody_data.audit_logs'::regclass and not i.inhdetachpending and b.bounds is not null;
$$;
revoke all on function custody_data.month_without_place(timestamp) from public;
comment on function custody_data.month_without_place(timestamp) is 'The times of a month for whose events the trail has no partition: none, or as a rule all of it.';

create or replace function custody_data.guard_month(p_table text, p_name text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('alter table custody_data.%I enable row level security, force row level security', p_table);
  execute format('create policy %I on custody_data.%I for select to custody_backup using (true)', p_name || '_backup_select', p_table);
  execute format('grant select on custody_data.%I to custody_backup', p_table);
  execute format('create trigger a_reject_mutation before update or delete or truncate on custody_data.%I
    for each statement execute function custody_data.tg_reject_mutation()', p_table);
  execute format('alter table custody_data.%I enable always trigger a_reject_mutation', p_table);
end
$$;
revoke all on function custody_data.guard_month(text, text) from public;
comment on function custody_data.guard_month(text, text) is 'Puts up on the table of a month what a partition does not inherit: row-level security, the policy of backups, the guard of statements. p_name: what the table will be called.';

-- definer: DDL on the trail; callers need no more than to append
create or replace function custody.ensure_audit_partitions(p_from timestamptz, p_to timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_month timestamp;
  v_part tstzrange;
  v_name text;
  v_made text[] := array[]::text[];
begin
  if p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_to < p_from
      or p_from < '1970-01-01 00:00:00+00' or p_to > now() + interval '13 months' then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range for partitions of the audit trail',
      detail = format('From %s to %s.', coalesce(p_from::text, 'null'), coalesce(p_to::text, 'null')),
      hint = 'Give a finite range between 1970 and 13 months from now.';
  end if;
  for v_month in
    select generate_series(date_trunc('month', p_from at time zone 'UTC'), date_trunc('month', p_to at time zone 'UTC'), interval '1 month')
  loop
    continue when isempty(custody_data.month_without_place(v_month));
    -- One maker at a time. Whoever waited looks again. Opening the partitions makes this session take notice of what
    -- others made before it inserts.
    perform pg_advisory_xact_lock(hashtextextended('pgcustody.partitions', 0));
    perform pg_relation_size(i.inhrelid) from pg_inherits i where i.inhparent = 'custody_data.audit_logs'::regclass;

    -- The whole month, unless somebody attached a part of it by hand, or detached it and its name is taken.
    for v_part in select u.part from unnest(custody_data.month_without_place(v_month)) u (part) loop
      select n.name into strict v_name
      from (
        select 1 as n, 'audit_logs_' || to_char(v_month, 'YYYY_MM') as name
        union all
        select n, format('audit_logs_%s_%s', to_char(v_month, 'YYYY_MM'), n) from generate_series(2, 1000) n
      ) n
      where not exists (select from pg_class c where c.relnamespace = 'custody_data'::regnamespace and c.relname = n.name)
      order by n.n
      limit 1;
      -- Made apart and attached: that locks the trail SHARE UPDATE EXCLUSIVE, which appenders do not notice.
      perform custody_data.make_month(v_name, v_month);
      perform custody_data.guard_month(v_name, v_name);
      perform custody_data.attach_part(v_name, v_part);
      v_made := v_made || v_name;
    end loop;
  end loop;
  if v_made <> '{}' and custody.current_tenant() is not null then
    perform custody_data.append_event('partition.create', 'partition', null, 'success', jsonb_build_object('partitions', v_made), null);
  end if;
  return cardinality(v_made);
end
$$;
revoke all on function custody.ensure_audit_partitions(timestamptz, timestamptz) from public;
grant execute on function custody.ensure_audit_partitions(timestamptz, timestamptz) to custody_worker, custody_admin;
comment on function custody.ensure_audit_partitions(timestamptz, timestamptz) is
'Makes the monthly partitions that p_from to p_to (both inclusive) need and returns how many it made; with a context the making is an event. Where somebody attached or detached a partition by hand, it makes one for what is left of the month, under another name where that of the month is taken.
Errors: PC009 for a range that is not finite, before 1970 or more than 13 months ahead.
Callers: custody_worker (daily, three months ahead), custody_admin. Appending makes the month of its own event where it is missing.';

-- definer: whoever appends makes the month that the event needs, and no other
create or replace function custody_data.require_partition(p_at timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regclass('custody_data.audit_logs_' || to_char(p_at at time zone 'UTC', 'YYYY_MM')) is null then
    if p_at is null or p_at not between now() - interval '25 hours' and now() + interval '25 hours' then
      raise exception using errcode = 'PC009', message = 'time out of range: no live event is that far from now',
        hint = 'Older months are made by custody.ensure_audit_partitions, for imports.';
    end if;
    perform custody.ensure_audit_partitions(p_at, p_at);
  end if;
end
$$;
revoke all on function custody_data.require_partition(timestamptz) from public;
grant execute on function custody_data.require_partition(timestamptz) to custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.require_partition(timestamptz) is 'Makes the month of a time within a day of now where it is missing. Errors: PC009.';

create or replace function custody_data.append_event(
  p_action text, p_resource_type text, p_resource_id text, p_result text, p_metadata jsonb, p_subject_id uuid
)
returns uuid
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  -- It has looked at the proof of all the settings, and nothing of the caller's runs before they are read.
  v_tenant constant text := custody_data.require_context();
  v_actor_id constant uuid := coalesce(nullif(current_setting('custody.actor_id', true), '')::uuid, custody_data.require_actor());
  v_purpose constant text := nullif(current_setting('custody.purpose', true), '');
  v_now constant timestamptz := clock_timestamp();
  v_id constant uuid := custody_data.new_entry_id();
begin
  perform custody_data.require_partition(v_now);
  insert into custody_data.audit_logs
    (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata)
  values
    (v_tenant, v_id, v_now, v_actor_id, p_subject_id, p_action, p_resource_type, p_resource_id, p_result, v_purpose, p_metadata);
  return v_id;
end
$$;
revoke all on function custody_data.append_event(text, text, text, text, jsonb, uuid) from public;
grant execute on function custody_data.append_event(text, text, text, text, jsonb, uuid) to custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.append_event(text, text, text, text, jsonb, uuid) is
'Appends an event of the shared vocabulary under the actor in context: for the functions of this schema, whose words are known to be right.';

create or replace function custody_data.event_content(
  p_occurred_at timestamptz, p_actor_id uuid, p_subject_id uuid, p_action text, p_resource_type text, p_resource_id text,
  p_result text, p_metadata jsonb, p_has_personal boolean
)
returns bytea
language sql
stable
parallel safe
return pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.jsonb_build_array(
  extract(epoch from p_occurred_at), p_actor_id, p_subject_id, p_action, p_resource_type, p_resource_id, p_result, p_metadata, p_has_personal)::text, 'UTF8'));
revoke all on function custody_data.event_content(timestamptz, uuid, uuid, text, text, text, text, jsonb, boolean) from public;
grant execute on function custody_data.event_content(timestamptz, uuid, uuid, text, text, text, text, jsonb, boolean) to custody_worker;
comment on function custody_data.event_content(timestamptz, uuid, uuid, text, text, text, text, jsonb, boolean) is
'SHA-256 of what a client said of an event, independent of TimeZone: tells a retry from a clash of log_entry_ids. Of the personal part it has only whether there is one: that is compared by opening it, so that no digest of it outlives its key.';

create or replace function custody_data.refuse_event(
  p_action text, p_resource_type text, p_resource_id text, p_result text, p_metadata jsonb, p_personal jsonb,
  p_keys text[], p_type_known boolean
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_keys is null then
    raise exception using
      errcode = 'PC004',
      message = format('unknown action %s', coalesce(quote_literal(left(p_action, 128)), 'null')),
      detail = 'Neither the tenant nor the shared vocabulary has it.',
      hint = 'Correct the name, or add it with custody.register_action.';
  end if;
  if not p_type_known then
    raise exception using
      errcode = 'PC005',
      message = format('unknown resource type %s', quote_literal(left(p_resource_type, 128))),
      detail = 'Neither the tenant nor the shared vocabulary has it.',
      hint = 'Correct the name, or add it with custody.register_resource_type.';
  end if;
  if char_length(p_resource_id) not between 1 and 1024 then
    raise exception using
      errcode = 'PC023',
      message = 'invalid resource_id',
      detail = format('It has %s characters.', char_length(p_resource_id)),
      hint = 'Give 1 to 1024 characters, or leave it out.';
  end if;
  if p_result is null or p_result not in ('success', 'failure', 'denied', 'partial') then
    raise exception using
      errcode = 'PC007',
      message = format('unknown result %s', coalesce(quote_literal(left(p_result, 64)), 'null')),
      hint = 'Give success, failure, denied or partial.';
  end if;
  if jsonb_typeof(p_metadata) <> 'object' then
    raise exception using
      errcode = 'PC023',
      message = 'invalid metadata: not a JSON object',
      detail = format('It is of type %s.', jsonb_typeof(p_metadata)),
      hint = 'Give an object whose keys are on the action''s list.';
  end if;
  if p_metadata - p_keys <> '{}' then
    raise exception using
      errcode = 'PC006',
      message = format('metadata key not allowed for action %s', p_action),
      detail = format('%s keys are not on its list, which is: %s.',
        (select count(*) from jsonb_object_keys(p_metadata - p_keys)), coalesce(nullif(array_to_string(p_keys, ', '), ''), 'empty')),
      hint = 'Put what is about a person into p_personal; add a key with custody.register_action.';
  end if;
  if jsonb_typeof(p_personal) <> 'object' then
    raise exception using
      errcode = 'PC023',
      message = 'invalid personal part: not a JSON object',
      detail = format('It is of type %s.', jsonb_typeof(p_personal)),
      hint = 'Give an object.';
  end if;
  raise exception using
    errcode = 'PC009',
    message = 'time out of range',
    detail = 'occurred_at is infinite, before 1970, or more than a day from now.',
    hint = 'Live events are recorded within a day; older ones come in with pgcustody import.';
end
$$;
revoke all on function custody_data.refuse_event(text, text, text, text, jsonb, jsonb, text[], boolean) from public;
comment on function custody_data.refuse_event(text, text, text, text, jsonb, jsonb, text[], boolean) is
'Raises what is wrong with an event that record_audit_event found unsound: the first of PC004, PC005, PC023, PC007, PC006, PC009.';

create or replace function custody_data.open_personal(p_row custody_data.audit_logs)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.open_text(coalesce(p_row.subject_id, p_row.actor_id), 'audit_logs', 'personal', p_row.log_entry_id::text, p_row.personal)::jsonb;
end
$$;
revoke all on function custody_data.open_personal(custody_data.audit_logs) from public;
grant execute on function custody_data.open_personal(custody_data.audit_logs) to custody_worker;
comment on function custody_data.open_personal(custody_data.audit_logs) is
'The personal part of an event; null where there is none, and where the person has been erased. Errors: PC001, PC033, PC035.';

create or replace function custody_data.same_personal(p_tenant text, p_log_entry_id uuid, p_occurred_at timestamptz, p_personal jsonb)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_subject constant text := current_setting('custody.subject', true);
  v_row custody_data.audit_logs;
  v_values text[];
  v_same boolean;
begin
  -- A context that is confined to one person does not see the events about nobody that it records.
  perform set_config('custody.subject', '', true), custody_data.sign_context();
  select a.* into v_row from custody_data.audit_logs a
  where a.tenant_id = p_tenant and a.log_entry_id = p_log_entry_id and a.occurred_at = p_occurred_at;
  -- One that is in the archive alone cannot be compared any more.
  v_same := not found;
  if not v_same then
    v_values := custody_data.open_unseen(coalesce(v_row.subject_id, v_row.actor_id), 'audit_logs', v_row.log_entry_id::text, array['personal'], array[v_row.personal]);
    v_same := v_values[1]::jsonb is not distinct from p_personal;
  end if;
  perform set_config('custody.subject', v_subject, true), custody_data.sign_context();
  return v_same;
end
$$;
revoke all on function custody_data.same_personal(text, uuid, timestamptz, jsonb) from public;
comment on function custody_data.same_personal(text, uuid, timestamptz, jsonb) is 'Whether an event has this personal part, as far as it is still here. Errors: PC033.';

-- definer: the words and people of an event are looked up whatever the caller sees of them; a context confined to one
-- person is checked below. With the caller's rights pgaudit would log two reads of user_id for each event.
create or replace function custody.record_audit_event(
  p_action text,
  p_resource_type text default null,
  p_resource_id text default null,
  p_result text default 'success',
  p_metadata jsonb default '{}',
  p_subject_user_id text default null,
  p_occurred_at timestamptz default null,
  p_log_entry_id uuid default null,
  p_personal jsonb default null
)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody.current_tenant();
  v_actor_id uuid := nullif(current_setting('custody.actor_id', true), '')::uuid;
  v_occurred_at constant timestamptz := coalesce(p_occurred_at, clock_timestamp());
  v_metadata constant jsonb := coalesce(p_metadata, '{}');
  v_keys text[];
  v_type_known boolean;
  v_resource_identity uuid;
  v_subject_id uuid;
  v_sound boolean;
  v_id uuid := p_log_entry_id;
  v_content bytea;
  v_first custody_data.audit_entry_ids;
  v_sealed bytea[];
begin
  if v_tenant is null or v_actor_id is null then
    v_actor_id := custody_data.require_actor();
  end if;

  -- One round of look-ups: the tenant's word goes before the shared one.
  select
    (select a.metadata_keys from custody_data.audit_actions a
      where a.tenant_id in (v_tenant, 'system') and a.action = p_action order by a.tenant_id = 'system' limit 1),
    p_resource_type is null or exists (
      select from custody_data.audit_resource_types t where t.tenant_id in (v_tenant, 'system') and t.resource_type = p_resource_type),
    (select i.identity_id from custody_data.identities i where i.tenant_id = v_tenant and i.user_id = p_resource_id),
    (select i.identity_id from custody_data.identities i where i.tenant_id = v_tenant and i.user_id = p_subject_user_id)
  into v_keys, v_type_known, v_resource_identity, v_subject_id;

  -- Each operator here is prepared anew in every transaction: what an event does not have is not looked at, and
  -- what is wrong with an unsound one is found out aside.
  v_sound := v_type_known and p_result in ('success', 'failure', 'denied', 'partial')
    and case when v_metadata @> '{}' then v_metadata - v_keys = '{}' end
    and (p_personal is null or p_personal @> '{}');
  if p_resource_id is not null then
    v_sound := v_sound and char_length(p_resource_id) between 1 and 1024;
  end if;
  if p_occurred_at is not null then
    v_sound := v_sound and p_occurred_at between clock_timestamp() - interval '24 hours' and clock_timestamp() + interval '24 hours';
  end if;
  if v_sound is not true then
    perform custody_data.refuse_event(p_action, p_resource_type, p_resource_id, p_result, v_metadata, p_personal, v_keys, v_type_known);
  end if;
  if p_subject_user_id is not null and v_subject_id is null then
    v_subject_id := custody_data.claim_identity(p_subject_user_id);
  end if;
  if nullif(current_setting('custody.subject', true), '') is not null then
    -- A resource that is another person must not be named either: stored as it stands it would be out of erasure's reach.
    if (coalesce(v_subject_id, v_resource_identity) is not null
          and coalesce(v_subject_id, v_resource_identity) is distinct from custody.current_subject_id())
        or (v_resource_identity is not null and v_resource_identity <> v_actor_id
          and v_resource_identity is distinct from custody.current_subject_id()) then
      raise exception using
        errcode = 'PC015',
        message = 'this transaction is confined to another person',
        detail = 'set_context was given a subject, and the event is about somebody else.',
        hint = 'Name the subject of the context, or set a context without p_subject.';
    end if;
  end if;
  v_subject_id := coalesce(v_subject_id, v_resource_identity);

  if to_regclass(to_char(v_occurred_at at time zone 'UTC', '"custody_data.audit_logs_"YYYY_MM')) is null then
    perform custody.ensure_audit_partitions(v_occurred_at, v_occurred_at);
  end if;

  if v_id is null then
    v_id := custody_data.new_entry_id();
  else
    v_content := custody_data.event_content(p_occurred_at, v_actor_id, v_subject_id, p_action,
      p_resource_type, coalesce(v_resource_identity::text, p_resource_id), p_result, v_metadata, p_personal is not null);
    insert into custody_data.audit_entry_ids (tenant_id, log_entry_id, occurred_at, content)
    values (v_tenant, v_id, v_occurred_at, v_content)
    on conflict do nothing;
    if not found then
      select e.* into v_first from custody_data.audit_entry_ids e where e.tenant_id = v_tenant and e.log_entry_id = v_id;
      if v_first.content = v_content and (p_personal is null
          or custody_data.same_personal(v_tenant, v_id, v_first.occurred_at, p_personal)) then
        return v_id;
      end if;
      -- The error takes every row of this transaction with it; the server's log keeps this line.
      raise log 'pgcustody: log_entry_id % of tenant % given again with other content by %', v_id, v_tenant, session_user;
      raise exception using
        errcode = 'PC010',
        message = format('log_entry_id %s was given before with other content', v_id),
        detail = 'The first event stands.',
        hint = 'Draw a new id for a new event; retry an old one with the same content.';
    end if;
  end if;

  if p_personal is not null then
    v_sealed := custody_data.seal_values(coalesce(v_subject_id, v_actor_id), 'audit_logs', v_id::text, array['personal'], array[p_personal::text]);
  end if;
  insert into custody_data.audit_logs
    (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata, personal)
  values
    (v_tenant, v_id, v_occurred_at, v_actor_id, v_subject_id, p_action, p_resource_type, coalesce(v_resource_identity::text, p_resource_id),
      p_result, nullif(current_setting('custody.purpose', true), ''), v_metadata, v_sealed[1]);
  return v_id;
end
$$;
revoke all on function custody.record_audit_event(text, text, text, text, jsonb, text, timestamptz, uuid, jsonb) from public;
grant execute on function custody.record_audit_event(text, text, text, text, jsonb, text, timestamptz, uuid, jsonb) to
  custody_readwrite, custody_worker, custody_privacy;
comment on function custody.record_audit_event(text, text, text, text, jsonb, text, timestamptz, uuid, jsonb) is
'Appends an event under the actor and purpose in context and returns its log_entry_id.
p_action, p_resource_type: words of the vocabulary. p_resource_id: what was acted on; a known user_id is stored as the identity. p_result: success, failure, denied, partial.
p_metadata: JSON object, keys from the action''s list, names nobody. p_personal: JSON object for whatever is about a person; it is sealed under the key of the subject, or of the actor where there is no subject, and unreadable once that person is erased. p_subject_user_id: whom it is about.
p_occurred_at: within a day of now; default now. p_log_entry_id: unique in the tenant for 90 days; the same id with the same content is the first event.
Errors: PC001, PC003, PC004 action, PC005 resource type, PC006 metadata key, PC007 result, PC009 time, PC010 id with other content, PC015 another person than the subject, PC023, PC033 a personal part while locked, PC035 altered.
Callers: custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody.record_audit_events(p_events jsonb)
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_event jsonb;
  v_count bigint := 0;
begin
  perform custody_data.require_context();
  if p_events is null or jsonb_typeof(p_events) <> 'array' then
    raise exception using
      errcode = 'PC023',
      message = 'invalid events: not a JSON array',
      hint = 'Give an array of objects with the parameter names of record_audit_event without p_.';
  end if;
  for v_event in select e.value from jsonb_array_elements(p_events) with ordinality as e (value, n) order by e.n loop
    v_count := v_count + 1;
    if jsonb_typeof(v_event) <> 'object'
        or v_event - array['action', 'resource_type', 'resource_id', 'result', 'metadata', 'subject_user_id', 'occurred_at', 'log_entry_id', 'personal'] <> '{}' then
      raise exception using
        errcode = 'PC023',
        message = format('invalid event %s of the array', v_count),
        detail = 'It is not an object, or has a member that record_audit_event does not take.',
        hint = 'Members: action, resource_type, resource_id, result, metadata, subject_user_id, occurred_at, log_entry_id, personal.';
    end if;
    if (v_event ->> 'occurred_at') !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)$' then
      raise exception using errcode = 'PC009', message = format('time out of range: occurred_at of event %s', v_count),
        hint = 'Give the time in ISO 8601 with an offset.';
    end if;
    if (v_event ->> 'log_entry_id') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
      raise exception using errcode = 'PC023', message = format('invalid log_entry_id of event %s', v_count), hint = 'Give a UUID.';
    end if;
    perform custody.record_audit_event(
      v_event ->> 'action', v_event ->> 'resource_type', v_event ->> 'resource_id', coalesce(v_event ->> 'result', 'success'),
      nullif(v_event -> 'metadata', 'null'), v_event ->> 'subject_user_id', (v_event ->> 'occurred_at')::timestamptz,
      (v_event ->> 'log_entry_id')::uuid, nullif(v_event -> 'personal', 'null'));
  end loop;
  return v_count;
end
$$;
revoke all on function custody.record_audit_events(jsonb) from public;
grant execute on function custody.record_audit_events(jsonb) to custody_readwrite, custody_worker, custody_privacy;
comment on function custody.record_audit_events(jsonb) is
'Appends the events of a JSON array, all or none, and returns how many. Each is an object with the parameter names of record_audit_event without p_; occurred_at in ISO 8601 with an offset.
Errors: those of record_audit_event, PC023. Callers: custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody.register_action(p_action text, p_metadata_keys text[], p_description text)
returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if p_action is null or p_action !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$' or p_metadata_keys is null or array_position(p_metadata_keys, null) is not null then
    raise exception using
      errcode = 'PC023',
      message = 'invalid action or metadata keys',
      hint = 'Name an action by 1 to 128 letters, digits, dots, colons, _ and -, and give an array of keys, which may be empty.';
  end if;
  insert into custody_data.audit_actions as a (tenant_id, action, metadata_keys, description)
  values (v_tenant, p_action, p_metadata_keys, coalesce(p_description, ''))
  on conflict (tenant_id, action) do update
    set metadata_keys = excluded.metadata_keys, description = excluded.description
    where (a.metadata_keys, a.description) is distinct from (excluded.metadata_keys, excluded.description);
  if found then
    perform custody_data.append_event('vocabulary.register', null, null, 'success',
      jsonb_build_object('action', p_action, 'metadata_keys', p_metadata_keys), null);
  end if;
  return p_action;
end
$$;
revoke all on function custody.register_action(text, text[], text) from public;
grant execute on function custody.register_action(text, text[], text) to custody_readwrite, custody_worker;
comment on function custody.register_action(text, text[], text) is
'Adds an action to the tenant''s vocabulary, or sets its keys and description, and returns it. The change is an event.
p_metadata_keys: keys that its metadata may carry; none of them for what is about a person.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_readwrite, custody_worker.';

create or replace function custody.register_resource_type(p_resource_type text, p_description text)
returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if p_resource_type is null or p_resource_type !~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$' then
    raise exception using
      errcode = 'PC023',
      message = 'invalid resource type',
      hint = 'Name it by 1 to 128 letters, digits, dots, colons, _ and -.';
  end if;
  insert into custody_data.audit_resource_types as t (tenant_id, resource_type, description)
  values (v_tenant, p_resource_type, coalesce(p_description, ''))
  on conflict (tenant_id, resource_type) do update
    set description = excluded.description
    where t.description is distinct from excluded.description;
  if found then
    perform custody_data.append_event('vocabulary.register', null, null, 'success', jsonb_build_object('resource_type', p_resource_type), null);
  end if;
  return p_resource_type;
end
$$;
revoke all on function custody.register_resource_type(text, text) from public;
grant execute on function custody.register_resource_type(text, text) to custody_readwrite, custody_worker;
comment on function custody.register_resource_type(text, text) is
'Adds a resource type to the tenant''s vocabulary and returns it. The change is an event.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_readwrite, custody_worker.';

-- Canonical entry, version 1: one line of JSON without spaces, in UTF-8, its members in this order, members that are
-- null left out. Two events that differ in any column have different entries.
--
--   member         column type   form                                                       left out
--   v              -             the number 1                                               never
--   log_entry_id   uuid          string, 36 characters in lower case                        never
--   occurred_at    timestamptz   string, time as below                                      never
--   recorded_at    timestamptz   string, time as below                                      never
--   tenant_id      text          string                                                     never
--   actor_id       uuid          string, 36 characters in lower case                        never
--   subject_id     uuid          string, 36 characters in lower case                        about nobody
--   action         text          string                                                     never
--   resource_type  text          string                                                     none was given
--   resource_id    text          string                                                     none was given
--   result         text          string                                                     never
--   purpose        text          string                                                     the context had none
--   metadata       jsonb         object as jsonb writes it: keys by length and then by      never
--                                bytes, ": " and ", " between, null members kept, numbers
--                                in full with the digits that they were given
--   personal       bytea         string, the sealed value in base64 (RFC 4648 section 4,    none was given
--                                padded, in one piece)
--   import_id      uuid          string, 36 characters in lower case                        the event was recorded live
--   db_role        text          string                                                     never
--   xid            xid8          string of decimal digits: 2^53 and more are no safe        never
--                                numbers in JSON
--
-- Time: UTC, YYYY-MM-DDTHH:MM:SS.UUUUUUZ with six digits of a second; years beyond 9999 have more digits, years before
-- Christ a minus before them; infinity and -infinity as these words.
-- String: \b \f \n \r \t \" and \\ are written so, other characters below U+0020 as \u00xx in lower case, all
-- others as they are. Not normalised: the code points are those of the column.
-- Files of such entries with their hashes are in testdata/entries.
--
-- Built by concatenation: the text of to_jsonb(row) changes with TimeZone and with later columns, and a jsonb object
-- costs half of the speed.
create or replace function custody_data.entry_time(p_at timestamptz)
returns text
language sql
stable
parallel safe
-- Nothing that a superuser may store is without an entry, or has that of another time.
return case when p_at >= '0001-01-01 00:00:00+00' and p_at < 'infinity'
  then pg_catalog.to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
  else coalesce('-' || pg_catalog.to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), p_at::text) end;
revoke all on function custody_data.entry_time(timestamptz) from public;
grant execute on function custody_data.entry_time(timestamptz) to custody_worker, custody_auditor, custody_privacy, custody_readonly, custody_readwrite;
comment on function custody_data.entry_time(timestamptz) is 'A time as canonical entries write it: UTC, ISO 8601, six digits, Z.';

create or replace function custody.audit_entry(p_row custody_data.audit_logs)
returns text
language sql
stable
parallel safe
return '{"v":1,"log_entry_id":"' || (p_row).log_entry_id::text
  || '","occurred_at":"' || custody_data.entry_time((p_row).occurred_at)
  || '","recorded_at":"' || custody_data.entry_time((p_row).recorded_at)
  || '","tenant_id":' || pg_catalog.to_json((p_row).tenant_id)::text
  || ',"actor_id":"' || (p_row).actor_id::text || '"'
  || coalesce(',"subject_id":"' || (p_row).subject_id::text || '"', '')
  || ',"action":' || pg_catalog.to_json((p_row).action)::text
  || coalesce(',"resource_type":' || pg_catalog.to_json((p_row).resource_type)::text, '')
  || coalesce(',"resource_id":' || pg_catalog.to_json((p_row).resource_id)::text, '')
  || ',"result":' || pg_catalog.to_json((p_row).result)::text
  || coalesce(',"purpose":' || pg_catalog.to_json((p_row).purpose)::text, '')
  || ',"metadata":' || (p_row).metadata::text
  || coalesce(',"personal":"' || pg_catalog.translate(pg_catalog.encode((p_row).personal, 'base64'), E'\n', '') || '"', '')
  || coalesce(',"import_id":"' || (p_row).import_id::text || '"', '')
  || ',"db_role":' || pg_catalog.to_json((p_row).db_role)::text
  || ',"xid":"' || (p_row).xid::text || '"}';
revoke all on function custody.audit_entry(custody_data.audit_logs) from public;
grant execute on function custody.audit_entry(custody_data.audit_logs) to custody_worker, custody_auditor, custody_privacy;
comment on function custody.audit_entry(custody_data.audit_logs) is
'Canonical entry of an event, version 1: a line of JSON with the members v, log_entry_id, occurred_at, recorded_at, tenant_id, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata, personal, import_id, db_role, xid, in this order, null members left out, times as UTC with six digits; personal is the sealed value in base64.
Callers: custody_worker, custody_auditor, custody_privacy.';

create or replace view custody.audit_entries with (security_invoker = true) as
select a.tenant_id, a.occurred_at, a.xid, a.recorded_at, a.log_entry_id, custody.audit_entry(a) as entry
from custody_data.audit_logs a;
grant select on custody.audit_entries to custody_worker;
comment on view custody.audit_entries is 'Each event with its canonical entry. Readers: custody_worker, all tenants in the context of tenant system.';

create or replace view custody.audit_trail with (security_invoker = true) as
select
  a.log_entry_id, a.occurred_at, a.recorded_at,
  -- A context confined to one person reads of the others only that they acted, or were acted on.
  case when own.actor then actor.user_id end as actor, a.actor_id,
  case when own.subject then subject.user_id end as subject, case when own.subject then a.subject_id end as subject_id,
  a.action, a.resource_type, case when own.subject then a.resource_id end as resource_id, a.result, a.purpose,
  case when own.subject then a.metadata else '{}'::jsonb end as metadata,
  -- audit_events and audit_event open it
  null::jsonb as personal, case when own.subject and a.personal is not null then false end as personal_erased, a.import_id,
  ((extract(epoch from a.occurred_at) * 1000000)::bigint::text || '.' || a.log_entry_id::text) as cursor,
  null::timestamptz as complete_from
from custody_data.audit_logs a
cross join lateral (select
  not custody.has_subject() or a.actor_id = custody.current_subject_id() as actor,
  not custody.has_subject() or a.subject_id is null or a.subject_id = custody.current_subject_id() as subject) own
left join custody_data.identities actor on actor.tenant_id = a.tenant_id and actor.identity_id = a.actor_id
left join custody_data.identities subject on subject.tenant_id = a.tenant_id and subject.identity_id = a.subject_id
-- in tenant system the functions that read through this view could see the events of all tenants
where a.tenant_id = (select custody.current_tenant());
comment on view custody.audit_trail is
'Shape of what audit_events returns: actor and subject are user_ids, empty once erased; personal is for custody_privacy alone, personal_erased says that there was a personal part which nobody can read any more, and is null where there was none; cursor goes into p_cursor; before complete_from only the archive is complete. Nobody selects from it: reading the trail is an event.';

-- definer: incarnations of the archive are read whatever the role
create or replace function custody.audit_complete_from()
returns timestamptz
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_context();
  return (select max(d.range_to) from custody_data.partition_drops d);
end
$$;
revoke all on function custody.audit_complete_from() from public;
grant execute on function custody.audit_complete_from() to custody_auditor, custody_privacy, custody_worker, custody_readwrite;
comment on function custody.audit_complete_from() is
'From when on Postgres holds every event: the end of the newest month that was dropped after archiving, or null where none was.
Errors: PC001. Callers: custody_auditor, custody_privacy, custody_worker, custody_readwrite.';

-- definer: the trail is read through this function alone, and reading it is an event
create or replace function custody.audit_events(
  p_from timestamptz,
  p_to timestamptz,
  p_user_id text default null,
  p_action text default null,
  p_limit integer default 100,
  p_cursor text default null
)
returns setof custody.audit_trail
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_with_personal constant boolean := custody_data.caller_is('custody_privacy');
  v_complete_from constant timestamptz := custody.audit_complete_from();
  v_identity_id uuid;
  v_before timestamptz := timestamptz 'infinity';
  v_before_id uuid;
  v_count bigint;
begin
  if not (custody_data.caller_is('custody_auditor') or custody_data.caller_is('custody_privacy') or custody.has_subject()) then
    raise exception using
      errcode = 'PC015',
      message = 'the audit trail is not for this role',
      detail = format('Role %s is not a member of custody_auditor or custody_privacy.', custody_data.caller_role()),
      hint = 'An application reads it for one person: give set_context a p_subject.';
  end if;
  if p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_to <= p_from then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range: audit_events needs p_from before p_to, both finite',
      hint = 'Bound the search in time: only the months between are read.';
  end if;
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 and go on with p_cursor.';
  end if;
  if p_user_id is not null then
    v_identity_id := custody_data.require_person(p_user_id);
  end if;
  if p_cursor is not null then
    if p_cursor !~ '^[0-9]{1,17}\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then
      raise exception using errcode = 'PC023', message = 'invalid p_cursor', hint = 'Give the cursor column of the last row.';
    end if;
    v_before := 'epoch'::timestamptz + split_part(p_cursor, '.', 1)::bigint * interval '1 microsecond';
    v_before_id := split_part(p_cursor, '.', 2)::uuid;
  end if;
  if v_complete_from > p_from then
    raise notice 'events before % are complete in the archive alone', custody_data.entry_time(v_complete_from);
  end if;

  return query
  select t.log_entry_id, t.occurred_at, t.recorded_at, t.actor, t.actor_id, t.subject, t.subject_id, t.action, t.resource_type,
    t.resource_id, t.result, t.purpose, t.metadata, o.personal,
    case when v_with_personal and t.personal_erased is not null then o.personal is null end, t.import_id, t.cursor, v_complete_from
  from (
    -- Two arms, so that each has an index; an event that the person did to themselves comes from the first.
    select a.* from custody.audit_trail a
    where a.occurred_at >= p_from and a.occurred_at < p_to and a.occurred_at <= v_before
      and (v_identity_id is null or a.subject_id = v_identity_id)
      and (p_action is null or a.action = p_action)
      and (v_before_id is null or (a.occurred_at, a.log_entry_id) < (v_before, v_before_id))
    union all
    select a.* from custody.audit_trail a
    where v_identity_id is not null and a.actor_id = v_identity_id and a.subject_id is distinct from v_identity_id
      and a.occurred_at >= p_from and a.occurred_at < p_to and a.occurred_at <= v_before
      and (p_action is null or a.action = p_action)
      and (v_before_id is null or (a.occurred_at, a.log_entry_id) < (v_before, v_before_id))
    order by occurred_at desc, log_entry_id desc
    limit p_limit
  ) t
  -- Opened for the rows of this page alone.
  cross join lateral (
    select (
      select custody_data.open_personal(a) from custody_data.audit_logs a
      where v_with_personal and t.personal_erased is not null
        and a.tenant_id = v_tenant and a.log_entry_id = t.log_entry_id and a.occurred_at = t.occurred_at) as personal
    offset 0) o
  order by t.occurred_at desc, t.log_entry_id desc;
  get diagnostics v_count = row_count;
  -- A rollback takes the event back, the line not.
  perform custody_data.write_line('read', 'audit_logs', null, array_remove(array[v_identity_id], null), v_count);
  perform custody_data.append_event('audit.read', 'audit_logs', null, 'success',
    jsonb_strip_nulls(jsonb_build_object('from', custody_data.entry_time(p_from), 'to', custody_data.entry_time(p_to),
      'rows', v_count, 'by_person', v_identity_id is not null, 'action', p_action)), v_identity_id);
end
$$;
revoke all on function custody.audit_events(timestamptz, timestamptz, text, text, integer, text) from public;
grant execute on function custody.audit_events(timestamptz, timestamptz, text, text, integer, text) to custody_auditor, custody_privacy, custody_readwrite;
comment on function custody.audit_events(timestamptz, timestamptz, text, text, integer, text) is
'Events of the tenant, newest first; the reading is itself an event (audit.read), so it needs a transaction that may write.
p_from (inclusive), p_to (exclusive): bounds of occurred_at. p_user_id: events about or by this person. p_action: this action only. p_limit: 1 to 10000. p_cursor: cursor of the last row of the page before.
Returns rows of custody.audit_trail; complete_from says from when on Postgres holds every event, and a notice says so where p_from lies before it.
Errors: PC001, PC003, PC009, PC011, PC015, PC023, PC033 personal parts while locked (custody_privacy alone is shown any), PC035 altered. Callers: custody_auditor, custody_privacy; custody_readwrite for a context confined to the subject.';

-- definer: as audit_events
create or replace function custody.audit_event(p_log_entry_id uuid)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_with_personal constant boolean := custody_data.caller_is('custody_privacy');
  v_event jsonb;
  v_subject_id uuid;
  v_personal jsonb;
begin
  if not (custody_data.caller_is('custody_auditor') or custody_data.caller_is('custody_privacy') or custody.has_subject()) then
    raise exception using
      errcode = 'PC015',
      message = 'the audit trail is not for this role',
      detail = format('Role %s is not a member of custody_auditor or custody_privacy.', custody_data.caller_role()),
      hint = 'An application reads it for one person: give set_context a p_subject.';
  end if;
  select to_jsonb(t) - array['cursor', 'personal', 'personal_erased'] || jsonb_build_object('complete_from', custody.audit_complete_from())
      || case when v_with_personal then jsonb_build_object('personal', null, 'personal_erased', t.personal_erased) else '{}'::jsonb end, t.subject_id
  into v_event, v_subject_id
  from custody.audit_trail t
  where t.log_entry_id = p_log_entry_id;
  if (v_event ->> 'personal_erased') is not null then
    select custody_data.open_personal(a) into v_personal
    from custody_data.audit_logs a
    where a.tenant_id = v_tenant and a.log_entry_id = p_log_entry_id;
    v_event := v_event || jsonb_build_object('personal', v_personal, 'personal_erased', v_personal is null);
  end if;
  perform custody_data.write_line('read', 'audit_logs', null, array_remove(array[v_subject_id], null), case when v_event is null then 0 else 1 end);
  perform custody_data.append_event('audit.read', 'audit_logs', p_log_entry_id::text, 'success',
    jsonb_build_object('rows', case when v_event is null then 0 else 1 end), v_subject_id);
  return v_event;
end
$$;
revoke all on function custody.audit_event(uuid) from public;
grant execute on function custody.audit_event(uuid) to custody_auditor, custody_privacy, custody_readwrite;
comment on function custody.audit_event(uuid) is
'One event as a JSON object with the columns of custody.audit_trail, or null for the unknown; the reading is itself an event.
Errors: PC001, PC015, PC033, PC035, as audit_events. Callers: custody_auditor, custody_privacy; custody_readwrite for a context confined to the subject.';
