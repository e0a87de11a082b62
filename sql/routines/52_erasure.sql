-- Erasure: plan, search for residue, erase in one transaction, certify, verify, replay after a restore.
-- control: GDPR Art. 17, 19, 5(2); ISO 27001 A.8.10; SOC 2 P4.3
-- reviewed by: privacy officer, DBA, auditor
--
-- What erasing deletes: profile, preferences, conversations. What it keeps, pseudonymous because user_id is
-- emptied: consent records and the audit trail, without a row of them being touched. The data keys of the person are
-- destroyed in the same transaction, and with them what is sealed in rows that stay, in archives and in backups. None of
-- it needs the tenant's key-encryption key; only to search for a person's e-mail address, number and name a transaction
-- must be unlocked, and the certificate says what was searched for. Lock order: holds of the
-- tenant (shared), request, identity (for update), rows. release_hold goes the same way: holds, then requests.

create or replace function custody_data.identifiers_of(p_identity_id uuid)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_row custody_data.user_profiles;
  v_profile text[];
begin
  if custody_data.is_unlocked() then
    select p.* into v_row from custody_data.user_profiles p where p.tenant_id = custody.current_tenant() and p.identity_id = p_identity_id;
    v_profile := custody_data.open_values(p_identity_id, 'user_profiles', p_identity_id::text, array['email', 'phone', 'full_name'],
      array[v_row.email, v_row.phone, v_row.full_name]::bytea[]);
  end if;
  return (
    select coalesce(array_agg(distinct v.value), '{}')
    from (
      select i.user_id as value from custody_data.identities i
      where i.tenant_id = custody.current_tenant() and i.identity_id = p_identity_id and i.user_id is not null
      union all
      select x.value from unnest(v_profile) x (value) where char_length(btrim(x.value)) >= 6
    ) v);
end
$$;
revoke all on function custody_data.identifiers_of(uuid) from public;
comment on function custody_data.identifiers_of(uuid) is 'What names a person directly: user_id, and, where the transaction is unlocked, e-mail, telephone number and name of at least 6 characters.';

create or replace function custody_data.searched_for()
returns text[]
language sql
stable
parallel restricted
return case when custody_data.is_unlocked() then array['user_id', 'email', 'phone', 'full_name'] else array['user_id'] end;
revoke all on function custody_data.searched_for() from public;
comment on function custody_data.searched_for() is 'Which identifiers identifiers_of has in this transaction.';

create or replace function custody_data.identifier_pattern(p_identifiers text[])
returns text
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Whole words, as text and as JSON writes them; of fewer than 4 characters only as a whole text or JSON string.
  -- A word goes on over _ and -, so that a number is not found in a uuid or a time.
  return (
    select '(' || string_agg(
      case when char_length(e.value) < 4 then '^' || q.plain || '$'
        else '(^|[^[:alnum:]_-])(' || q.plain || case when q.json <> q.plain then '|' || q.json else '' end || ')([^[:alnum:]_-]|$)' end, '|') || ')'
    from unnest(p_identifiers) e (value)
    cross join lateral (select
      regexp_replace(e.value, '([][\\.^$*+?(){}|/-])', '\\\1', 'g') as plain,
      regexp_replace(btrim(to_json(e.value)::text, '"'), '([][\\.^$*+?(){}|/-])', '\\\1', 'g') as json) q);
end
$$;
revoke all on function custody_data.identifier_pattern(text[]) from public;
comment on function custody_data.identifier_pattern(text[]) is 'A regular expression that finds identifiers in text, without regard to case.';

create or replace function custody_data.identifier_needles(p_identifiers text[])
returns text[]
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Of each the longest piece that stands the same in text and in JSON, and of which lower case under the collation
  -- C is the same as under any; a short one with the quotes around it.
  return (
    select array_agg(case when char_length(e.value) < 4 and char_length(p.piece) = char_length(e.value) then '"' || p.piece || '"' else p.piece end)
    from unnest(p_identifiers) e (value)
    cross join lateral (
      select lower(x.piece collate "C") as piece
      from string_to_table((
        select string_agg(case when c.value !~ '[[:cntrl:]"\\]' and (ascii(c.value) < 128 or lower(c.value) = upper(c.value)) then c.value else E'\n' end, '' order by c.n)
        from regexp_split_to_table(e.value, '') with ordinality c (value, n)), E'\n') x (piece)
      order by char_length(x.piece) desc limit 1) p);
end
$$;
revoke all on function custody_data.identifier_needles(text[]) from public;
comment on function custody_data.identifier_needles(text[]) is
'Pieces of identifiers, for a test that is much cheaper than identifier_pattern and misses nothing that it finds: strpos in lower case under the collation C, in text that has quotes around each value.';

create or replace function custody_data.json_matches(p_json jsonb, p_pattern text)
returns boolean
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- Strings only: keys are a vocabulary, and no number names anybody.
  select exists (
    select from jsonb_path_query(p_json, 'strict $.** ? (@.type() == "string")') v where (v #>> '{}') collate "default" ~* p_pattern);
$$;
revoke all on function custody_data.json_matches(jsonb, text) from public;
comment on function custody_data.json_matches(jsonb, text) is 'Whether a string somewhere in a JSON value matches a regular expression, without regard to case.';

create or replace function custody_data.suspect_events(p_tenant text, p_needles text[])
returns table (resource_id text, purpose text, metadata jsonb)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off -- by an index on the tenant
set jit = off
as $$
begin
  return query
  select a.resource_id::text, a.purpose, a.metadata
  from custody_data.audit_logs a
  cross join lateral (
    select lower(('"' || coalesce(a.resource_id, '') || '" "' || coalesce(a.purpose, '') || '" ' || a.metadata::text) collate "C") as text
    offset 0) x
  where a.tenant_id = p_tenant
    and (a.resource_id is not null or a.purpose is not null or a.metadata <> '{}')
    -- at most user_id, e-mail, telephone and name
    and (strpos(x.text, p_needles[1]) > 0 or strpos(x.text, p_needles[2]) > 0
      or strpos(x.text, p_needles[3]) > 0 or strpos(x.text, p_needles[4]) > 0);
end
$$;
revoke all on function custody_data.suspect_events(text, text[]) from public;
comment on function custody_data.suspect_events(text, text[]) is 'Events of a tenant in whose resource, purpose or metadata one of up to four texts occurs somewhere.';

create or replace function custody_data.suspect_events(p_tenant text, p_needles text[], p_since_xid xid8)
returns table (resource_id text, purpose text, metadata jsonb)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
-- By the index on xid and by no other, whatever the statistics say: new transactions lie beyond them. They are few,
-- so that nothing is to be had from parallel workers, whose start takes longer than all of it.
set enable_seqscan = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
begin
  return query
  select a.resource_id::text, a.purpose, a.metadata
  from custody_data.audit_logs a
  cross join lateral (
    select lower(('"' || coalesce(a.resource_id, '') || '" "' || coalesce(a.purpose, '') || '" ' || a.metadata::text) collate "C") as text
    offset 0) x
  where a.xid >= p_since_xid and a.tenant_id || '' = p_tenant
    and (a.resource_id is not null or a.purpose is not null or a.metadata <> '{}')
    and (strpos(x.text, p_needles[1]) > 0 or strpos(x.text, p_needles[2]) > 0
      or strpos(x.text, p_needles[3]) > 0 or strpos(x.text, p_needles[4]) > 0);
end
$$;
revoke all on function custody_data.suspect_events(text, text[], xid8) from public;
comment on function custody_data.suspect_events(text, text[], xid8) is 'The same of events that were written by transactions from p_since_xid on.';

create or replace function custody_data.find_residue(p_identity_id uuid, p_since_xid xid8, p_since timestamptz)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_identifiers constant text[] := custody_data.identifiers_of(p_identity_id);
  v_pattern constant text := custody_data.identifier_pattern(v_identifiers);
  v_needles constant text[] := custody_data.identifier_needles(v_identifiers);
  -- a row bears the time at which its transaction began
  v_since constant timestamptz := p_since - interval '1 day';
  v_findings jsonb := jsonb '[]';
  v_rows bigint;
begin
  if v_pattern is null then
    return v_findings;
  end if;
  with suspects as materialized (
    select e.resource_id, e.purpose, e.metadata from custody_data.suspect_events(v_tenant, v_needles) e where p_since_xid is null
    union all
    select e.resource_id, e.purpose, e.metadata from custody_data.suspect_events(v_tenant, v_needles, p_since_xid) e where p_since_xid is not null
  )
  select v_findings || coalesce(jsonb_agg(jsonb_build_object('table', f.tbl, 'column', f.col, 'rows', f.n) order by f.tbl, f.col), '[]')
  into v_findings
  from (
    select 'audit_logs' as tbl, x.col, count(*) as n
    from suspects s
    cross join lateral (values
      ('resource_id', s.resource_id collate "default" ~* v_pattern), ('purpose', s.purpose ~* v_pattern),
      ('metadata', custody_data.json_matches(s.metadata, v_pattern))) x (col, found)
    where x.found
    group by x.col
    union all
    select 'requests', x.col, count(*)
    from custody_data.requests r
    cross join lateral (values ('reason', r.reason), ('extension_reason', r.extension_reason), ('close_reason', r.close_reason)) x (col, value)
    where r.tenant_id = v_tenant and x.value ~* v_pattern
      -- a reason is given with the request, while it is open, or when it is closed
      and (r.received_at >= v_since or r.status in ('received', 'held') or r.closed_at >= v_since)
    group by x.col
    union all
    -- of the person themselves: nobody else's consent is to a purpose that names them
    select 'consent_records', x.col, count(*)
    from custody_data.consent_records c
    cross join lateral (values ('purpose', c.purpose collate "default"), ('policy_version', c.policy_version collate "default")) x (col, value)
    where c.tenant_id = v_tenant and c.identity_id = p_identity_id and x.value ~* v_pattern
    group by x.col
    union all
    select 'legal_holds', x.col, count(*)
    from custody_data.legal_holds h
    cross join lateral (values ('row_id', h.row_id), ('reference', h.reference), ('reason', h.reason), ('release_reason', h.release_reason)) x (col, value)
    where h.tenant_id = v_tenant and x.value ~* v_pattern
    group by x.col
    union all
    select 'job_runs', x.col, count(*)
    from custody_data.job_runs j
    cross join lateral (values ('counts', custody_data.json_matches(j.counts, v_pattern)), ('error', j.error ~* v_pattern)) x (col, found)
    where j.tenant_id = v_tenant and j.started_at >= v_since and x.found
    group by x.col
    union all
    select 'erasure_notices', x.col, count(*)
    from custody_data.erasure_notices n
    cross join lateral (values ('last_status', n.last_status ~* v_pattern), ('evidence', custody_data.json_matches(n.evidence, v_pattern))) x (col, found)
    where n.tenant_id = v_tenant and (n.acknowledged_at is null or n.acknowledged_at >= v_since) and x.found
    group by x.col
    union all
    select 'archive_restores', 'reason', count(*)
    from custody_data.archive_restores r
    where r.tenant_id = v_tenant and r.begun_at >= v_since and r.reason ~* v_pattern
    having count(*) > 0
    union all
    -- copies of what the locked archive has, until they expire
    select 'restored_events', x.col, count(*)
    from custody_data.restored_events e
    cross join lateral (select lower(e.entry collate "C") as text offset 0) t
    cross join lateral (values
      ('resource_id', e.resource_id collate "default" ~* v_pattern), ('purpose', e.purpose ~* v_pattern),
      ('metadata', custody_data.json_matches(e.metadata, v_pattern))) x (col, found)
    where e.tenant_id = v_tenant and e.restored_at >= v_since and x.found
      and (strpos(t.text, v_needles[1]) > 0 or strpos(t.text, v_needles[2]) > 0
        or strpos(t.text, v_needles[3]) > 0 or strpos(t.text, v_needles[4]) > 0)
    group by x.col
    union all
    select 'retention_policies', 'basis', count(*)
    from custody_data.retention_policies p
    where p.tenant_id = v_tenant and p.basis ~* v_pattern
    having count(*) > 0
    union all
    select 'retention_changes', x.col, count(*)
    from custody_data.retention_changes c
    cross join lateral (values ('basis', c.basis), ('reason', c.reason)) x (col, value)
    where c.tenant_id = v_tenant and x.value ~* v_pattern
    group by x.col
  ) f;
  if to_regclass('river.river_job') is not null then
    -- The tenant's own jobs; that they name the tenant says nothing about a person.
    select count(*) into v_rows
    from river.river_job j
    where j.args ->> 'tenant' = v_tenant
      and (custody_data.json_matches(j.args - 'tenant', v_pattern) or custody_data.json_matches(j.metadata, v_pattern)
        or custody_data.json_matches(to_jsonb(j.errors), v_pattern));
    if v_rows > 0 then
      v_findings := v_findings || jsonb_build_object('table', 'river_job', 'column', 'args, errors or metadata', 'rows', v_rows);
    end if;
  end if;
  return v_findings;
end
$$;
revoke all on function custody_data.find_residue(uuid, xid8, timestamptz) from public;
comment on function custody_data.find_residue(uuid, xid8, timestamptz) is
'Where a person''s identifiers stand although they must not, by table and column with the number of rows: resource ids, metadata and purposes of the trail (of all of it, or where p_since_xid is given of what transactions from it on wrote), reasons of requests, holds and restores, copies out of the archive, what holders answered, bases of policies and reasons of their changes, job runs and River''s jobs of the tenant. Of JSON the strings, not keys and numbers. Names nobody.';

-- definer: reads what the caller may not
create or replace function custody.search_residue(p_request_id uuid)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_request custody_data.requests;
  v_horizon constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
  v_searched_at timestamptz;
  v_findings jsonb;
  v_rows bigint;
begin
  perform custody_data.require_whole_tenant();
  v_request := custody_data.require_request(p_request_id, 'erasure');
  if v_request.status in ('done', 'cancelled') then
    raise exception using errcode = 'PC018', message = format('request %s is %s', p_request_id, v_request.status),
      hint = 'verify_erasure looks at an erasure that is done.';
  end if;
  -- The numbers of transactions hold for the cluster that this is.
  perform custody.open_incarnation();
  v_searched_at := clock_timestamp();
  v_findings := custody_data.find_residue(v_request.identity_id, null, '-infinity');
  select coalesce(sum((f ->> 'rows')::bigint), 0) into v_rows from jsonb_array_elements(v_findings) f;
  update custody_data.requests r
  set residue_searched_at = v_searched_at, residue_searched_xid = v_horizon, residue_rows = v_rows,
    residue_searched_for = custody_data.searched_for()
  where r.tenant_id = v_request.tenant_id and r.request_id = p_request_id;
  perform custody_data.append_event('request.search', 'request', p_request_id::text, 'success',
    jsonb_build_object('request_id', p_request_id, 'findings', v_findings, 'rows', v_rows, 'searched_for', custody_data.searched_for()), v_request.identity_id);
  return v_findings;
end
$$;
revoke all on function custody.search_residue(uuid) from public;
grant execute on function custody.search_residue(uuid) to custody_privacy, custody_worker;
comment on function custody.search_residue(uuid) is
'Searches the whole tenant for the identifiers of the person of an open erasure request (user_id; e-mail, telephone number and name too where the transaction is unlocked) where they must not stand, and notes how far it looked, so that erase_subject need only look at what came since. It reads the trail once: run it before, outside of the erasure.
Returns an array of {"table", "column", "rows"}, empty where all is clean.
Errors: PC001, PC015 confined to one person, PC016, PC018, PC035 the profile was altered: search while locked. Callers: custody_privacy, custody_worker.';

create or replace function custody_data.kept_on_erasure(p_identity_id uuid)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody.current_tenant();
begin
  return jsonb_build_array(
    jsonb_build_object('table', 'consent_records',
      'rows', (select count(*) from custody_data.consent_records c where c.tenant_id = v_tenant and c.identity_id = p_identity_id),
      'reason', (select p.basis from custody.retention_policies p where p.class = 'consent'),
      'until', now() + custody_data.keep_of('consent'),
      'form', 'pseudonymous; evidence unreadable, its key is destroyed'),
    jsonb_build_object('table', 'audit_logs',
      'reason', (select p.basis from custody.retention_policies p where p.class = 'audit'),
      -- only an event that is ahead of its time can outlast those of now
      'until', greatest(
        (select max(a.occurred_at) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.subject_id = p_identity_id and a.occurred_at > now()),
        (select max(a.occurred_at) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.actor_id = p_identity_id and a.occurred_at > now()),
        now()) + custody_data.keep_of('audit'),
      'form', 'pseudonymous; personal part unreadable, its key is destroyed'));
end
$$;
revoke all on function custody_data.kept_on_erasure(uuid) from public;
comment on function custody_data.kept_on_erasure(uuid) is 'What an erasure keeps, with reason and until when.';

-- definer: counts what the caller may not read
create or replace function custody.plan_erasure(p_user_id text)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_identity_id constant uuid := custody_data.require_person(p_user_id);
  v_residue constant jsonb := custody_data.find_residue(v_identity_id, null, '-infinity');
  v_holds constant uuid[] := custody_data.holds_on(v_identity_id);
begin
  return jsonb_build_object(
    'identity_id', v_identity_id,
    'delete', jsonb_build_object(
      'user_profiles', (select count(*) from custody_data.user_profiles t where t.tenant_id = v_tenant and t.identity_id = v_identity_id),
      'user_preferences', (select count(*) from custody_data.user_preferences t where t.tenant_id = v_tenant and t.identity_id = v_identity_id),
      'conversations', (select count(*) from custody_data.conversations t where t.tenant_id = v_tenant and t.identity_id = v_identity_id)),
    'keep', custody_data.kept_on_erasure(v_identity_id),
    'audit_events', (select count(*) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.subject_id = v_identity_id)
      + (select count(*) from custody_data.audit_logs a where a.tenant_id = v_tenant and a.actor_id = v_identity_id and a.subject_id is distinct from v_identity_id),
    'holders', (select coalesce(jsonb_agg(h.holder order by h.holder), '[]') from custody_data.holders h where h.tenant_id = v_tenant and h.retired_at is null),
    'holds', to_jsonb(v_holds),
    'open_requests', (select coalesce(jsonb_agg(r.request_id order by r.received_at), '[]') from custody_data.requests r
      where r.tenant_id = v_tenant and r.identity_id = v_identity_id and r.status in ('received', 'held')),
    'residue', v_residue,
    'residue_searched_for', custody_data.searched_for(),
    'possible', cardinality(v_holds) = 0 and v_residue = '[]');
end
$$;
revoke all on function custody.plan_erasure(text) from public;
grant execute on function custody.plan_erasure(text) to custody_privacy, custody_worker;
comment on function custody.plan_erasure(text) is
'What erasing a person would do, without doing it: identity_id, delete (rows by table), keep (with reason and until), audit_events (rows), holders (to be told), holds, open_requests, residue (as search_residue finds it), residue_searched_for, possible.
Errors: PC001, PC003, PC011 unknown person, PC015 confined to one person, PC035 the profile was altered: plan while locked. Callers: custody_privacy, custody_worker.';

-- definer: tenants are written by functions alone
create or replace function custody.remember_erased(p_on boolean)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if p_on is null then
    raise exception using errcode = 'PC023', message = 'invalid p_on', hint = 'Give true or false.';
  end if;
  update custody_data.tenants t set remember_erased = p_on where t.tenant_id = v_tenant and t.remember_erased <> p_on;
  if not found then
    return p_on;
  end if;
  if not p_on then
    delete from custody_data.erased_user_ids e where e.tenant_id = v_tenant;
  end if;
  perform custody_data.append_event('tenant.configure', null, null, 'success', jsonb_build_object('remember_erased', p_on), null);
  return p_on;
end
$$;
revoke all on function custody.remember_erased(boolean) from public;
grant execute on function custody.remember_erased(boolean) to custody_privacy;
comment on function custody.remember_erased(boolean) is
'Says whether erasures from now on keep a keyed hash of the user_id, for the policy erased_ids, so that find_erased can recognise a later claim of the same person; off unless it is said, and turning it off forgets what is kept. The hash is personal data to whoever has the tenant''s key-encryption key. The change is an event.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_privacy.';

create or replace function custody_data.remember_user_id(p_request_id uuid, p_user_id text)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_indexes bytea[];
begin
  if p_user_id is null or not custody_data.is_unlocked()
      or not exists (select from custody_data.tenants t where t.tenant_id = v_tenant and t.remember_erased) then
    return false;
  end if;
  perform custody_data.claim_data_key('00000000-0000-0000-0000-000000000000');
  v_indexes := custody_data.blind_indexes('user_id', p_user_id);
  insert into custody_data.erased_user_ids (tenant_id, request_id, user_id_index) values (v_tenant, p_request_id, v_indexes[1]);
  return true;
end
$$;
revoke all on function custody_data.remember_user_id(uuid, text) from public;
comment on function custody_data.remember_user_id(uuid, text) is 'Keeps a keyed hash of a user_id, where the tenant wants it and the transaction is unlocked, and returns whether it did.';

-- definer: reads what no role may
create or replace function custody.find_erased(p_user_id text)
returns setof uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_requests uuid[];
  v_indexes bytea[];
begin
  perform custody_data.check_user_id(p_user_id);
  v_indexes := custody_data.blind_indexes('user_id', p_user_id);
  v_requests := array(
    select e.request_id from custody_data.erased_user_ids e
    where e.tenant_id = v_tenant and e.user_id_index = any (v_indexes)
    order by e.erased_at, e.request_id);
  perform custody_data.append_event('request.match', null, null, 'success', jsonb_build_object('requests', cardinality(v_requests)), null);
  return query select r from unnest(v_requests) r;
end
$$;
revoke all on function custody.find_erased(text) from public;
grant execute on function custody.find_erased(text) to custody_privacy;
comment on function custody.find_erased(text) is
'The requests by which somebody with this user_id was erased, as far as the tenant remembers them (custody.remember_erased). Nothing compares ids by itself; each look is an event that does not name the id.
Errors: PC001, PC003, PC015 confined to one person, PC033 locked. Callers: custody_privacy.';

-- definer: erases what the worker itself may not touch; compiling its statements takes longer than running them
create or replace function custody.erase_subject(p_request_id uuid, p_residue_basis text default null)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_request custody_data.requests;
  v_holds uuid[];
  v_residue jsonb;
  v_searched_for text[] := custody_data.searched_for();
  v_deleted jsonb;
  v_kept jsonb;
  v_user_id text;
  v_erased_at timestamptz;
  v_profiles bigint;
  v_preferences bigint;
  v_conversations bigint;
  v_keys integer[];
  v_remembered boolean;
  v_holders jsonb;
  v_event_id uuid;
begin
  perform custody_data.require_read_committed();
  perform custody_data.lock_holds(v_tenant);
  v_request := custody_data.require_request(p_request_id, 'erasure');
  if v_request.status = 'done' then
    return custody.get_certificate(p_request_id);
  end if;
  if v_request.status = 'cancelled' then
    raise exception using
      errcode = 'PC018',
      message = format('request %s is cancelled', p_request_id),
      hint = 'Make a new request.';
  end if;
  if v_request.xid = pg_current_xact_id() then
    raise exception using
      errcode = 'PC017',
      message = format('request %s is not committed yet', p_request_id),
      detail = 'It was made in this transaction: if the erasure failed, no record of the request would be left.',
      hint = 'Commit after request_erasure and erase in a transaction of its own.';
  end if;

  select i.user_id, i.erased_at into v_user_id, v_erased_at
  from custody_data.identities i
  where i.tenant_id = v_tenant and i.identity_id = v_request.identity_id
  for update;

  if p_residue_basis is not null and p_residue_basis ~* custody_data.identifier_pattern(custody_data.identifiers_of(v_request.identity_id)) then
    raise exception using
      errcode = 'PC023',
      message = 'invalid p_residue_basis: it names the person',
      hint = 'The certificate keeps it for good: name the law or the contract, not the person.';
  end if;

  v_holds := custody_data.holds_on(v_request.identity_id);
  if cardinality(v_holds) > 0 then
    if v_request.status <> 'held' then
      update custody_data.requests r set status = 'held' where r.tenant_id = v_tenant and r.request_id = p_request_id;
      perform custody_data.append_event('account.erase', 'request', p_request_id::text, 'denied',
        jsonb_build_object('request_id', p_request_id, 'holds', to_jsonb(v_holds)), v_request.identity_id);
    end if;
    return jsonb_build_object('request_id', p_request_id, 'status', 'held', 'holds', to_jsonb(v_holds));
  end if;

  -- Where search_residue has looked before, only what later transactions wrote is left to look at.
  -- In another cluster than it looked in, its transaction numbers mean nothing.
  if (custody.open_incarnation()).opened_at > v_request.residue_searched_at then
    v_request.residue_searched_xid := null;
    v_request.residue_searched_at := null;
  end if;
  -- What both searches looked for was looked for everywhere.
  if v_request.residue_searched_at is not null then
    v_searched_for := array(select f from unnest(v_searched_for) with ordinality as x (f, n) where f = any (v_request.residue_searched_for) order by n);
  end if;
  v_residue := custody_data.find_residue(v_request.identity_id, v_request.residue_searched_xid,
    coalesce(v_request.residue_searched_at, '-infinity'));
  if v_request.residue_rows > 0 then
    v_residue := v_residue || jsonb_build_object('table', 'found by search_residue', 'column', 'see event request.search', 'rows', v_request.residue_rows);
  end if;
  if v_residue <> '[]' and nullif(btrim(p_residue_basis), '') is null then
    raise exception using
      errcode = 'PC019',
      message = format('residue found: request %s cannot be certified', p_request_id),
      detail = (select string_agg(format('%s.%s: %s rows', f ->> 'table', f ->> 'column', f ->> 'rows'), '; ') from jsonb_array_elements(v_residue) f),
      hint = 'Remove the identifiers there and call custody.search_residue again. Where they stand in append-only rows that the law lets you keep, give that basis as p_residue_basis; the certificate names it.';
  end if;

  delete from custody_data.conversations t where t.tenant_id = v_tenant and t.identity_id = v_request.identity_id;
  get diagnostics v_conversations = row_count;
  delete from custody_data.user_preferences t where t.tenant_id = v_tenant and t.identity_id = v_request.identity_id;
  get diagnostics v_preferences = row_count;
  delete from custody_data.user_profiles t where t.tenant_id = v_tenant and t.identity_id = v_request.identity_id;
  get diagnostics v_profiles = row_count;
  v_deleted := jsonb_build_object('user_profiles', v_profiles, 'user_preferences', v_preferences, 'conversations', v_conversations);
  v_kept := custody_data.kept_on_erasure(v_request.identity_id);
  v_keys := custody_data.destroy_data_keys(v_request.identity_id);
  v_remembered := custody_data.remember_user_id(p_request_id, v_user_id);

  with notices as (
    insert into custody_data.erasure_notices (tenant_id, request_id, holder, user_id)
    select v_tenant, p_request_id, h.holder, v_user_id
    from custody_data.holders h
    where h.tenant_id = v_tenant and h.retired_at is null and v_user_id is not null
    returning holder
  )
  select coalesce(jsonb_agg(n.holder order by n.holder), '[]') into v_holders from notices n;

  v_event_id := custody_data.append_event('account.erase', 'identity', v_request.identity_id::text, 'success',
    jsonb_build_object('request_id', p_request_id, 'deleted', v_deleted, 'kept', v_kept, 'keys_destroyed', v_keys, 'holders', v_holders)
      || case when v_request.reason is not null then jsonb_build_object('reason', v_request.reason) else '{}'::jsonb end
      || case when v_residue <> '[]' then jsonb_build_object('residue_basis', p_residue_basis) else '{}'::jsonb end,
    v_request.identity_id);
  if v_erased_at is null then
    update custody_data.identities i set user_id = null, erased_at = now()
    where i.tenant_id = v_tenant and i.identity_id = v_request.identity_id
    returning i.erased_at into v_erased_at;
  end if;
  insert into custody_data.erasure_certificates (tenant_id, request_id, identity_id, certificate)
  values (v_tenant, p_request_id, v_request.identity_id, jsonb_build_object(
    'version', 1, 'tenant_id', v_tenant, 'request_id', p_request_id, 'identity_id', v_request.identity_id,
    'requested_at', v_request.received_at, 'erased_at', v_erased_at, 'deleted', v_deleted, 'kept', v_kept, 'keys_destroyed', v_keys,
    -- by then the key-encryption key of the time is destroyed, and the last backup of wrapped keys with it
    'backups_unreadable_from', case when v_keys <> '{}' then now() + custody_data.keep_of('kek_generation') + custody_data.keep_of('key_backup') end,
    'residue', v_residue,
    'residue_searched_for', v_searched_for, 'user_id_remembered', v_remembered, 'residue_basis', case when v_residue <> '[]' then p_residue_basis end, 'audit_event', v_event_id));
  update custody_data.requests r set status = 'done', closed_at = now()
  where r.tenant_id = v_tenant and r.request_id = p_request_id;
  return custody.get_certificate(p_request_id);
end
$$;
revoke all on function custody.erase_subject(uuid, text) from public;
grant execute on function custody.erase_subject(uuid, text) to custody_privacy, custody_worker;
comment on function custody.erase_subject(uuid, text) is
'Carries an erasure request out, all or nothing, and returns the certificate as get_certificate does; called again it returns the same one. Under a legal hold it deletes nothing and returns {"request_id", "status": "held", "holds": […]}: commit that, it is on record, and the request goes on when the hold ends.
p_residue_basis: where identifiers stand in rows that may be kept, the legal basis for keeping them; the certificate names it.
Errors: PC001, PC015 confined to one person, PC016, PC017 request not committed, PC018, PC019 residue found, PC023 the basis names the person, PC026 isolation level, PC035 the profile was altered: erase while locked; 55P03 under the caller''s lock_timeout. Callers: custody_privacy, custody_worker.';

-- definer: certificates name nobody, but the table is not for applications
create or replace function custody.get_certificate(p_request_id uuid)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_holders jsonb;
  v_open bigint;
  v_leaf bigint;
begin
  select (custody_data.leaf_of((c.certificate ->> 'audit_event')::uuid, null)).leaf_index into v_leaf
  from custody_data.erasure_certificates c
  where c.tenant_id = v_tenant and c.request_id = p_request_id;
  select coalesce(jsonb_agg(jsonb_build_object('holder', n.holder, 'notified_at', n.sent_at, 'acknowledged_at', n.acknowledged_at, 'evidence', n.evidence) order by n.holder), '[]'),
    count(*) filter (where n.acknowledged_at is null)
  into v_holders, v_open
  from custody_data.erasure_notices n
  where n.tenant_id = v_tenant and n.request_id = p_request_id;
  return (
    select c.certificate || jsonb_build_object('status', case when v_open = 0 then 'complete' else 'awaiting_holders' end,
      'issued_at', c.issued_at, 'external_holders', v_holders, 'audit_event_proof', (
        select custody_data.inclusion_json(v_leaf, k) from custody_data.ledger_checkpoints k
        where k.tenant_id = 'system' and k.tree_size > v_leaf order by k.tree_size desc, k.number desc limit 1))
    from custody_data.erasure_certificates c
    where c.tenant_id = v_tenant and c.request_id = p_request_id);
end
$$;
revoke all on function custody.get_certificate(uuid) from public;
grant execute on function custody.get_certificate(uuid) to custody_privacy, custody_worker, custody_auditor;
comment on function custody.get_certificate(uuid) is
'The certificate of an erasure: version, tenant_id, request_id, identity_id, requested_at, erased_at, issued_at, deleted (rows by table), kept (table, reason, until, form), keys_destroyed (versions of the identity''s data key), backups_unreadable_from (when, by the policies kek_generation and key_backup, no backup from before opens anything of the person any more), residue, residue_searched_for and residue_basis, user_id_remembered (whether a keyed hash of the user_id is kept for the policy erased_ids), audit_event, audit_event_proof (its inclusion proof; null until a signed checkpoint covers it), external_holders (holder, notified_at, acknowledged_at, evidence), status: complete once every holder has acknowledged, awaiting_holders before. Null for the unknown.
Errors: PC001. Callers: custody_privacy, custody_worker, custody_auditor.';

-- definer: looks at all of the tenant's
create or replace function custody.unstored_certificates(p_limit integer default 100, p_issued_before timestamptz default now())
returns setof uuid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if p_limit is null or p_limit not between 1 and 10000 or p_issued_before is null then
    raise exception using errcode = 'PC023', message = 'invalid p_limit or p_issued_before', hint = 'Give 1 to 10000, and a time.';
  end if;
  return query
  select c.request_id
  from custody_data.erasure_certificates c
  where c.tenant_id = v_tenant and c.issued_at <= p_issued_before
    and not exists (select from custody_data.stored_certificates s where s.tenant_id = c.tenant_id and s.request_id = c.request_id)
  order by c.issued_at, c.request_id
  limit p_limit;
end
$$;
revoke all on function custody.unstored_certificates(integer, timestamptz) from public;
grant execute on function custody.unstored_certificates(integer, timestamptz) to custody_worker, custody_privacy, custody_auditor;
comment on function custody.unstored_certificates(integer, timestamptz) is
'Requests that were erased and whose certificate is not known to be under lock in the object store, the oldest first: erased by SQL, or when the store was away. p_limit: 1 to 10000. p_issued_before: leaves the erasure''s own job time to store it.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_worker, custody_privacy, custody_auditor.';

-- definer: writes evidence
create or replace function custody.mark_certificate_stored(p_request_id uuid, p_object_key text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if p_object_key is null or char_length(p_object_key) not between 1 and 1024 then
    raise exception using errcode = 'PC023', message = 'invalid object key', hint = 'Give the key under which the store has the certificate, 1 to 1024 characters.';
  end if;
  if not exists (select from custody_data.erasure_certificates c where c.tenant_id = v_tenant and c.request_id = p_request_id) then
    raise exception using errcode = 'PC016', message = format('unknown request %s, or not erased', p_request_id), hint = 'Only an erasure that is done has a certificate.';
  end if;
  insert into custody_data.stored_certificates (tenant_id, request_id, object_key) values (v_tenant, p_request_id, p_object_key)
  on conflict do nothing;
end
$$;
revoke all on function custody.mark_certificate_stored(uuid, text) from public;
grant execute on function custody.mark_certificate_stored(uuid, text) to custody_worker;
comment on function custody.mark_certificate_stored(uuid, text) is
'Notes that the certificate of an erasure is under lock in the object store. Again, it changes nothing.
Errors: PC001, PC015 confined to one person, PC016, PC023. Callers: custody_worker.';

-- definer: looks where the caller may not
create or replace function custody.verify_erasure(p_request_id uuid)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_request custody_data.requests;
  v_findings jsonb;
  v_pending bigint;
begin
  v_request := custody_data.require_request(p_request_id, 'erasure');
  -- While the identifiers are known they are looked for; afterwards what hangs on the identity is.
  v_findings := custody_data.find_residue(v_request.identity_id, null, '-infinity');
  if v_request.status = 'done' then
    select v_findings || coalesce(jsonb_agg(jsonb_build_object('table', f.tbl, 'column', f.col, 'rows', f.n) order by f.tbl), '[]')
    into v_findings
    from (
      select 'identities' as tbl, 'user_id' as col, count(*) as n from custody_data.identities i
        where i.tenant_id = v_tenant and i.identity_id = v_request.identity_id and (i.user_id is not null or i.erased_at is null)
      union all select 'user_profiles', '*', count(*) from custody_data.user_profiles t where t.tenant_id = v_tenant and t.identity_id = v_request.identity_id
      union all select 'user_preferences', '*', count(*) from custody_data.user_preferences t where t.tenant_id = v_tenant and t.identity_id = v_request.identity_id
      union all select 'conversations', '*', count(*) from custody_data.conversations t where t.tenant_id = v_tenant and t.identity_id = v_request.identity_id
      union all select 'wrapped_keys', '*', count(*) from custody_keys.wrapped_keys w where w.tenant_id = v_tenant and w.identity_id = v_request.identity_id
      union all select 'erasure_certificates', '*', 1 where not exists (
        select from custody_data.erasure_certificates c where c.tenant_id = v_tenant and c.request_id = p_request_id)
    ) f
    where f.n > 0;
  end if;
  select count(*) into v_pending from custody_data.erasure_notices n
  where n.tenant_id = v_tenant and n.request_id = p_request_id and n.acknowledged_at is null;
  return jsonb_build_object('request_id', p_request_id, 'status', v_request.status, 'clean', v_findings = '[]',
    'findings', v_findings, 'notices_open', v_pending, 'searched_at', now());
end
$$;
revoke all on function custody.verify_erasure(uuid) from public;
grant execute on function custody.verify_erasure(uuid) to custody_privacy, custody_worker, custody_auditor;
comment on function custody.verify_erasure(uuid) is
'Looks for what an erasure should not leave: before it, the person''s identifiers in resource ids, metadata, purposes, reasons, run and job records; after it, whatever hangs on the identity. Returns request_id, status, clean, findings (table, column, rows), notices_open (holders that have not acknowledged and whose notice still names the person), searched_at.
Errors: PC001, PC015 confined to one person, PC016, PC018 not an erasure, PC035 the profile was altered: verify while locked. Callers: custody_privacy, custody_worker, custody_auditor.';

-- definer: as erase_subject
create or replace function custody.replay_erasures(p_certificates jsonb, p_release_reason text default null)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
  v_certificate jsonb;
  v_request_id uuid;
  v_identity custody_data.identities;
  v_replayed integer := 0;
  v_standing integer := 0;
  v_unknown integer := 0;
  v_held jsonb := jsonb '[]';
  v_hold record;
  v_deleted jsonb;
  v_keys integer[];
  v_rows bigint;
  v_table text;
begin
  perform custody_data.require_read_committed();
  if p_certificates is null or jsonb_typeof(p_certificates) <> 'array' then
    raise exception using errcode = 'PC023', message = 'invalid certificates: not a JSON array', hint = 'Give the certificates from the locked store as an array.';
  end if;
  if p_release_reason is not null and not custody_data.caller_is('custody_privacy') then
    raise exception using errcode = 'PC015', message = format('role %s may not release holds', custody_data.caller_role()),
      hint = 'Leave p_release_reason out, and let a privacy officer decide on the erasures that are listed as held.';
  end if;
  perform custody_data.lock_holds(v_tenant);
  for v_certificate in select e.value from jsonb_array_elements(p_certificates) e loop
    if v_certificate ->> 'tenant_id' is distinct from v_tenant or v_certificate ->> 'version' is distinct from '1' then
      raise exception using errcode = 'PC023', message = format('certificate of request %s is not of tenant %s and version 1', coalesce(v_certificate ->> 'request_id', 'unknown'), v_tenant),
        hint = 'Replay the certificates of each tenant in its own context.';
    end if;
    if coalesce(not ((v_certificate ->> 'request_id') ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        and (v_certificate ->> 'identity_id') ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        and (v_certificate ->> 'requested_at') ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T' and (v_certificate ->> 'erased_at') ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T'), true)
      or (v_certificate ->> 'requested_at')::timestamptz > (v_certificate ->> 'erased_at')::timestamptz
      or (v_certificate ->> 'erased_at')::timestamptz > now() then
      raise exception using errcode = 'PC023', message = format('invalid certificate of request %s', coalesce(left(v_certificate ->> 'request_id', 64), 'unknown')),
        detail = 'It needs request_id, identity_id, requested_at and erased_at, in that order of time and not in the future.',
        hint = 'Give certificates as the locked store holds them.';
    end if;
    v_request_id := (v_certificate ->> 'request_id')::uuid;
    select i.* into v_identity from custody_data.identities i
    where i.tenant_id = v_tenant and i.identity_id = (v_certificate ->> 'identity_id')::uuid
    for update;
    if not found then
      -- The backup is older than the person.
      v_unknown := v_unknown + 1;
      continue;
    end if;
    if v_identity.erased_at is not null and exists (
      select from custody_data.erasure_certificates c where c.tenant_id = v_tenant and c.request_id = v_request_id) then
      v_standing := v_standing + 1;
      -- a backup of the keys may be older than that of the data
      perform custody_data.destroy_data_keys(v_identity.identity_id);
      continue;
    end if;
    -- A hold that the backup brought back had been released before the erasure. That is for an officer to say.
    if cardinality(custody_data.holds_on(v_identity.identity_id)) > 0 and nullif(btrim(p_release_reason), '') is null then
      v_held := v_held || to_jsonb(v_request_id);
      continue;
    end if;
    for v_hold in
      update custody_data.legal_holds h
      set released_at = now(), released_by = custody_data.require_actor(), release_reason = p_release_reason
      where h.tenant_id = v_tenant and h.identity_id = v_identity.identity_id and h.released_at is null
      returning h.hold_id, h.scope
    loop
      perform custody_data.append_event('hold.release', 'hold', v_hold.hold_id::text, 'success',
        jsonb_build_object('hold_id', v_hold.hold_id, 'scope', v_hold.scope, 'reason', p_release_reason), v_identity.identity_id);
    end loop;
    -- Who has been told, and has acknowledged, since the backup was taken is not known here: all are told again.
    insert into custody_data.erasure_notices (tenant_id, request_id, holder, user_id)
    select v_tenant, v_request_id, h.holder, v_identity.user_id
    from custody_data.holders h
    where h.tenant_id = v_tenant and h.retired_at is null and v_identity.user_id is not null
    on conflict (tenant_id, request_id, holder) do nothing;
    v_deleted := '{}';
    foreach v_table in array array['conversations', 'user_preferences', 'user_profiles'] loop
      execute format('delete from custody_data.%I t where t.tenant_id = $1 and t.identity_id = $2', v_table) using v_tenant, v_identity.identity_id;
      get diagnostics v_rows = row_count;
      v_deleted := v_deleted || jsonb_build_object(v_table, v_rows);
    end loop;
    v_keys := custody_data.destroy_data_keys(v_identity.identity_id);
    if v_identity.erased_at is null then
      update custody_data.identities i set user_id = null, erased_at = (v_certificate ->> 'erased_at')::timestamptz
      where i.tenant_id = v_tenant and i.identity_id = v_identity.identity_id;
    end if;
    insert into custody_data.requests as r (tenant_id, request_id, kind, identity_id, status, requested_by, received_at, due_at, closed_at)
    values (v_tenant, v_request_id, 'erasure', v_identity.identity_id, 'done', custody_data.require_actor(),
      (v_certificate ->> 'requested_at')::timestamptz, (v_certificate ->> 'requested_at')::timestamptz + interval '1 month', now())
    on conflict (tenant_id, request_id) do update set status = 'done', closed_at = now() where r.status in ('received', 'held');
    insert into custody_data.erasure_certificates (tenant_id, request_id, identity_id, issued_at, certificate)
    values (v_tenant, v_request_id, v_identity.identity_id, coalesce((v_certificate ->> 'issued_at')::timestamptz, now()),
      v_certificate - array['status', 'issued_at', 'external_holders', 'audit_event_proof'])
    on conflict do nothing;
    perform custody_data.append_event('account.erase', 'identity', v_identity.identity_id::text, 'success',
      jsonb_build_object('request_id', v_request_id, 'deleted', v_deleted, 'keys_destroyed', v_keys, 'replayed', true), v_identity.identity_id);
    v_replayed := v_replayed + 1;
  end loop;
  return jsonb_build_object('replayed', v_replayed, 'standing', v_standing, 'unknown', v_unknown, 'held', v_held);
end
$$;
revoke all on function custody.replay_erasures(jsonb, text) from public;
grant execute on function custody.replay_erasures(jsonb, text) to custody_privacy, custody_worker;
comment on function custody.replay_erasures(jsonb, text) is
'Repeats, after a restore, the erasures of the tenant in context from their certificates (an array, as the locked store holds them), before anybody reads. Certificates are not authenticated here: take them from the locked store.
p_release_reason: why holds on such a person, which the backup brought back, are to be released; custody_privacy alone may say so. Without it their erasures wait and are listed.
Returns how many were replayed, were standing already, or name an identity that the backup does not know (unknown), and the request_ids that a hold keeps waiting (held). Safe to repeat.
Errors: PC001, PC015 confined to one person, PC023, PC026, PC032 while a hold on the tenant stands. Callers: custody_privacy, custody_worker.';
