-- Questions about reading: who read this person's record, what did this actor read, how much is read where.
-- control: HIPAA 164.312(b), 164.528; GDPR Art. 5(2), 15(1)(c), 32; ISO 27001 A.8.15; SOC 2 CC7.2
-- reviewed by: privacy officer, auditor, DBA
--
-- Asking is itself an event (access.read), so it needs a transaction that may write. A person is named by user_id, or by
-- identity where the user_id is gone. What is asked about comes out of access_events, which has the policy access's time;
-- what is older the batches in the store have. A person's own list says when, why and what, and whether it was somebody
-- of the staff, a program or the person; who of the staff, it does not (CJEU C-579/21: not owed as a rule, and those people
-- have rights too).

create or replace view custody.access_record with (security_invoker = true) as
select null::timestamptz as occurred_at, ''::text as kind, null::text as action, null::text as object_name, null::bigint as rows, null::text as purpose,
  null::text as actor, null::uuid as actor_id, null::text as actor_pseudonym, null::text as login, null::text as role, null::text as subject, null::uuid as subject_id,
  null::inet as client, ''::text as session_id, null::boolean as rolled_back
where false;
comment on view custody.access_record is
'Shape of access_to_person and access_by_actor. kind: read, a record was opened; statement, one in a context confined to the person, or as pgaudit logged it. actor, subject: user_ids, empty once erased or where there is none. rolled_back: whether the transaction was; what was shown had been shown.';

create or replace function custody_data.check_access_question(p_from timestamptz, p_to timestamptz, p_limit integer)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_from is null or p_to is null or not isfinite(p_from) or not isfinite(p_to) or p_to <= p_from then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range: the question needs p_from before p_to, both finite',
      hint = 'Bound it in time: access events are kept for the policy access.';
  end if;
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000, and an earlier p_to to go on.';
  end if;
end
$$;
revoke all on function custody_data.check_access_question(timestamptz, timestamptz, integer) from public;
comment on function custody_data.check_access_question(timestamptz, timestamptz, integer) is 'Errors: PC009, PC023.';

create or replace function custody_data.access_party(p_user_id text, p_identity_id uuid)
returns uuid
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  if (p_user_id is null) = (p_identity_id is null) then
    raise exception using errcode = 'PC023', message = 'the question names nobody, or two', hint = 'Give p_user_id, or p_identity_id where the user_id is gone.';
  end if;
  if p_user_id is not null then
    return custody_data.require_person(p_user_id);
  end if;
  if custody.has_subject() and p_identity_id is distinct from custody.current_subject_id() then
    raise exception using
      errcode = 'PC015',
      message = 'this transaction is confined to another person',
      hint = 'Name the subject of the context, or set a context without p_subject.';
  end if;
  if not exists (select from custody_data.identities i where i.tenant_id = v_tenant and i.identity_id = p_identity_id) then
    raise exception using errcode = 'PC011', message = 'unknown person', detail = 'The tenant has no such identity.', hint = 'Correct the identity.';
  end if;
  return p_identity_id;
end
$$;
revoke all on function custody_data.access_party(text, uuid) from public;
comment on function custody_data.access_party(text, uuid) is 'The identity that a question names by user_id or identity. Errors: PC001, PC003, PC011, PC015, PC023.';

create or replace function custody_data.record_question(p_question text, p_from timestamptz, p_to timestamptz, p_rows bigint, p_about uuid)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A rollback takes the event back, the line not.
  perform custody_data.write_line('read', 'access_events', null, array_remove(array[p_about], null), p_rows);
  perform custody_data.append_event('access.read', 'access_events', null, 'success',
    jsonb_build_object('question', p_question, 'from', custody_data.entry_time(p_from), 'to', custody_data.entry_time(p_to), 'rows', p_rows,
      'by_person', p_question in ('person', 'own'), 'by_actor', p_question = 'actor'), p_about);
end
$$;
revoke all on function custody_data.record_question(text, timestamptz, timestamptz, bigint, uuid) from public;
comment on function custody_data.record_question(text, timestamptz, timestamptz, bigint, uuid) is 'Says in the server log that a question was asked, and appends its event: which, about whom, and how many rows were the answer.';

-- definer: asking is an event, which auditors append through functions alone
create or replace function custody.access_to_person(
  p_from timestamptz, p_to timestamptz, p_user_id text default null, p_identity_id uuid default null, p_limit integer default 1000
)
returns setof custody.access_record
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_identity_id uuid;
  v_count bigint;
begin
  perform custody_data.check_access_question(p_from, p_to, p_limit);
  v_identity_id := custody_data.access_party(p_user_id, p_identity_id);
  return query
  select e.occurred_at, e.kind::text, e.action::text, e.object_name::text, e.rows, e.purpose, a.user_id::text, e.actor_id, e.actor_pseudonym::text, e.login::text, e.role::text,
    s.user_id::text, e.identity_id, e.client, e.session_id::text, e.rolled_back
  from custody_data.access_events e
  left join custody_data.identities a on a.tenant_id = v_tenant and a.identity_id = e.actor_id
  left join custody_data.identities s on s.tenant_id = v_tenant and s.identity_id = e.identity_id
  where e.tenant_id = v_tenant and e.identity_id = v_identity_id and e.occurred_at >= p_from and e.occurred_at < p_to and e.kind in ('read', 'statement')
  order by e.occurred_at desc, e.batch desc, e.line desc
  limit p_limit;
  get diagnostics v_count = row_count;
  perform custody_data.record_question('person', p_from, p_to, v_count, v_identity_id);
end
$$;
revoke all on function custody.access_to_person(timestamptz, timestamptz, text, uuid, integer) from public;
grant execute on function custody.access_to_person(timestamptz, timestamptz, text, uuid, integer) to custody_auditor, custody_privacy;
comment on function custody.access_to_person(timestamptz, timestamptz, text, uuid, integer) is
'Who read this person''s records, when and for what purpose, newest first; the asking is an event (access.read) about the person.
p_from (inclusive), p_to (exclusive): when it was read. p_user_id or p_identity_id: the person. p_limit: 1 to 10000.
Errors: PC001, PC003, PC009, PC011 unknown person, PC015 confined to one person, PC023. Callers: custody_auditor, custody_privacy.';

-- definer: as access_to_person
create or replace function custody.access_by_actor(
  p_from timestamptz, p_to timestamptz, p_user_id text default null, p_identity_id uuid default null, p_limit integer default 1000
)
returns setof custody.access_record
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_actor_id uuid;
  v_count bigint;
begin
  perform custody_data.check_access_question(p_from, p_to, p_limit);
  v_actor_id := custody_data.access_party(p_user_id, p_identity_id);
  return query
  select e.occurred_at, e.kind::text, e.action::text, e.object_name::text, e.rows, e.purpose, a.user_id::text, e.actor_id, e.actor_pseudonym::text, e.login::text, e.role::text,
    s.user_id::text, e.identity_id, e.client, e.session_id::text, e.rolled_back
  from custody_data.access_events e
  left join custody_data.identities a on a.tenant_id = v_tenant and a.identity_id = e.actor_id
  left join custody_data.identities s on s.tenant_id = v_tenant and s.identity_id = e.identity_id
  where e.tenant_id = v_tenant and e.actor_id = v_actor_id and e.occurred_at >= p_from and e.occurred_at < p_to
    and (e.kind = 'read' or e.kind = 'statement' and e.class = 'READ')
  order by e.occurred_at desc, e.batch desc, e.line desc, e.part
  limit p_limit;
  get diagnostics v_count = row_count;
  perform custody_data.record_question('actor', p_from, p_to, v_count, v_actor_id);
end
$$;
revoke all on function custody.access_by_actor(timestamptz, timestamptz, text, uuid, integer) from public;
grant execute on function custody.access_by_actor(timestamptz, timestamptz, text, uuid, integer) to custody_auditor, custody_privacy;
comment on function custody.access_by_actor(timestamptz, timestamptz, text, uuid, integer) is
'What this actor read, of whom and for what purpose, newest first; the asking is an event (access.read) about the actor.
p_from (inclusive), p_to (exclusive): when it was read. p_user_id or p_identity_id: the actor. p_limit: 1 to 10000.
Errors: PC001, PC003, PC009, PC011 unknown person, PC015 confined to one person, PC023. Callers: custody_auditor, custody_privacy.';

create or replace view custody.access_count with (security_invoker = true) as
select ''::text as object_name, ''::text as role, null::timestamptz as hour, 0::bigint as reads, 0::bigint as rows, 0::bigint as people, 0::bigint as actors
where false;
comment on view custody.access_count is 'Shape of access_summary. hour: its beginning. reads: lines of the log; rows: as far as they say; people: different ones who are named; actors: different ones.';

-- definer: as access_to_person
create or replace function custody.access_summary(p_from timestamptz, p_to timestamptz)
returns setof custody.access_count
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_count bigint;
begin
  perform custody_data.check_access_question(p_from, p_to, 1);
  return query
  select coalesce(e.object_name, '')::text, coalesce(e.role, e.login, '')::text, date_bin('1 hour', e.occurred_at, 'epoch'), count(*) filter (where e.part = 0),
    coalesce(sum(e.rows) filter (where e.part = 0), 0)::bigint, count(distinct e.identity_id) filter (where e.kind = 'read'), count(distinct coalesce(e.actor_id::text, e.actor_pseudonym, e.login))
  from custody_data.access_events e
  where e.tenant_id = v_tenant and e.occurred_at >= p_from and e.occurred_at < p_to and (e.kind = 'read' or e.kind = 'statement' and e.class = 'READ')
  group by 1, 2, 3
  order by 3, 1, 2;
  get diagnostics v_count = row_count;
  perform custody_data.record_question('summary', p_from, p_to, v_count, null);
end
$$;
revoke all on function custody.access_summary(timestamptz, timestamptz) from public;
grant execute on function custody.access_summary(timestamptz, timestamptz) to custody_auditor, custody_privacy;
comment on function custody.access_summary(timestamptz, timestamptz) is
'Reads of the tenant by table, role and hour; in tenant system, those of no tenant. The asking is an event (access.read).
p_from (inclusive), p_to (exclusive): when it was read.
Errors: PC001, PC009, PC015 confined to one person. Callers: custody_auditor, custody_privacy.';

create or replace view custody.own_access with (security_invoker = true) as
select null::timestamptz as occurred_at, null::text as object_name, null::text as purpose, ''::text as by_whom
where false;
comment on view custody.own_access is 'Shape of access_of_subject. by_whom: self, staff (a person of the organisation) or program; unknown where the actor has no identity, as of one who has only ever read where nothing can be written.';

-- definer: as access_to_person
create or replace function custody.access_of_subject(
  p_from timestamptz, p_to timestamptz, p_user_id text default null, p_identity_id uuid default null, p_limit integer default 1000
)
returns setof custody.own_access
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_identity_id uuid;
  v_count bigint;
begin
  if not (custody_data.caller_is('custody_privacy') or custody.has_subject()) then
    raise exception using
      errcode = 'PC015',
      message = 'who was read is not for this role',
      detail = format('Role %s is not a member of custody_privacy.', custody_data.caller_role()),
      hint = 'An application asks for one person: give set_context a p_subject.';
  end if;
  perform custody_data.check_access_question(p_from, p_to, p_limit);
  v_identity_id := custody_data.access_party(p_user_id, p_identity_id);
  return query
  select e.occurred_at, e.object_name::text, e.purpose,
    case when e.actor_id = v_identity_id then 'self' when a.kind = 'person' then 'staff' when a.kind is not null then 'program' else 'unknown' end
  from custody_data.access_events e
  left join custody_data.identities a on a.tenant_id = v_tenant and a.identity_id = e.actor_id
  where e.tenant_id = v_tenant and e.identity_id = v_identity_id and e.occurred_at >= p_from and e.occurred_at < p_to and e.kind = 'read'
  order by e.occurred_at desc, e.batch desc, e.line desc
  limit p_limit;
  get diagnostics v_count = row_count;
  perform custody_data.record_question('own', p_from, p_to, v_count, v_identity_id);
end
$$;
revoke all on function custody.access_of_subject(timestamptz, timestamptz, text, uuid, integer) from public;
grant execute on function custody.access_of_subject(timestamptz, timestamptz, text, uuid, integer) to custody_privacy, custody_readwrite;
comment on function custody.access_of_subject(timestamptz, timestamptz, text, uuid, integer) is
'A person''s own list, to be handed out (GDPR Art. 15): when and for what purpose which of their records were opened, and whether by the person, somebody of the staff or a program; not by whom. The asking is an event (access.read) about the person.
p_from (inclusive), p_to (exclusive): when it was read. p_user_id or p_identity_id: the person; of a confined context, its subject. p_limit: 1 to 10000.
Errors: PC001, PC003, PC009, PC011 unknown person, PC015 not for this role, or another person than the subject, PC023. Callers: custody_privacy; custody_readwrite for a context confined to the subject.';
