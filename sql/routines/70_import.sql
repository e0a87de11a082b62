-- Import: from a caller's temporary staging table into a table of record, in one statement a table.
-- control: GDPR Art. 5(1)(d), (f) and 30; HIPAA 164.312(c)(1); ISO 27001 A.8.15
-- reviewed by: DBA
--
-- The runner opens a transaction and a context, calls prepare_import, fills the staging table by COPY (which
-- row-level security does not allow on the tables themselves), calls the import function of the table, then
-- finish_import, and commits: a file is in as a whole or not at all. All of it runs with the caller's rights.
-- It must: the staging tables are the caller's, and a view or a trigger of the caller's in their place would
-- run as the owner inside a definer function.
--
-- The transaction is unlocked: what is personal is sealed on its way from the staging table, which is temporary and so
-- in no log and no backup. Conversations, of which there are many and long ones, come sealed: the runner claims the
-- identities of a file (custody_data.claim_identities) and their data keys (custody.claim_data_keys) before it fills the
-- staging table.
--
-- Lines that cannot be imported go to pg_temp.import_refusals. With p_skip_refused they are left out there for
-- the caller to fetch, otherwise the first of them is raised.
-- locks: one import of a table of a tenant at a time (advisory); identities FOR KEY SHARE in order of user_id.

create or replace function custody.prepare_import(p_table text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.require_context();
  if custody.has_subject() then
    raise exception using
      errcode = 'PC015',
      message = 'import refused: this transaction is confined to one person',
      hint = 'Set a context without p_subject.';
  end if;
  if to_regclass('pg_temp.import_refusals') is not null then
    drop table pg_temp.import_refusals, pg_temp.import_people, pg_temp.import_known, pg_temp.import_words, pg_temp.import_sealed;
  end if;
  if to_regclass(format('pg_temp.%I', 'staged_' || coalesce(p_table, ''))) is not null then
    execute format('drop table pg_temp.%I', 'staged_' || p_table);
  end if;
  create temporary table import_refusals (line bigint, code text, field text, problem text) on commit drop;
  create temporary table import_people (user_id text collate "C", identity_id uuid) on commit drop;
  create temporary table import_known (line bigint, same boolean) on commit drop;
  create temporary table import_words (action text, resource_type text, code text, field text) on commit drop;
  create temporary table import_sealed (line bigint, sealed bytea) on commit drop;
  case p_table
    when 'user_profiles' then
      create temporary table staged_user_profiles (
        line bigint, user_id text collate "C", full_name text, email text, phone text, organisation text, title text,
        address text, city text, region text, postal_code text, country text, attributes jsonb
      ) on commit drop;
    when 'user_preferences' then
      create temporary table staged_user_preferences (line bigint, user_id text collate "C", preferences jsonb) on commit drop;
    when 'consent_records' then
      create temporary table staged_consent_records (
        line bigint, consent_id uuid, user_id text collate "C", purpose text collate "C", granted boolean,
        policy_version text collate "C", legal_basis text, evidence jsonb, occurred_at timestamptz
      ) on commit drop;
    when 'conversations' then
      create temporary table staged_conversations (
        line bigint, identity_id uuid, conversation_id text collate "C", title bytea, messages bytea, message_count integer,
        started_at timestamptz, last_message_at timestamptz
      ) on commit drop;
    when 'audit_logs' then
      create temporary table staged_audit_logs (
        line bigint, log_entry_id uuid, occurred_at timestamptz, user_id text collate "C", subject_user_id text collate "C",
        action text collate "C", resource_type text collate "C", resource_id text collate "C", result text collate "C",
        purpose text, metadata jsonb, personal jsonb
      ) on commit drop;
    else
      raise exception using
        errcode = 'PC023',
        message = 'invalid table for import',
        hint = 'Give user_profiles, user_preferences, consent_records, conversations or audit_logs.';
  end case;
end
$$;
revoke all on function custody.prepare_import(text) from public;
grant execute on function custody.prepare_import(text) to custody_worker;
comment on function custody.prepare_import(text) is
'Makes the temporary tables that an import of p_table needs: staged_<table> for its rows, import_refusals for those that cannot be imported. They end with the transaction.
Errors: PC001, PC015, PC023 no such table. Callers: custody_worker.';

create or replace function custody_data.begin_import(p_table text)
returns custody_data.tenant_name
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.require_context()::custody_data.tenant_name;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using
      errcode = 'PC026',
      message = 'import needs the isolation level read committed',
      detail = format('It is %s, in which an import would not see what it waited for.', current_setting('transaction_isolation')),
      hint = 'begin isolation level read committed.';
  end if;
  if to_regclass(format('pg_temp.%I', 'staged_' || coalesce(p_table, ''))) is null then
    raise exception using
      errcode = 'PC023',
      message = format('no staging table for %s', p_table),
      hint = format('Call custody.prepare_import(%L) and fill pg_temp.staged_%s in the same transaction.', p_table, p_table);
  end if;
  -- A second import of the same file waits, and then finds every row there.
  perform pg_advisory_xact_lock(hashtextextended(format('pgcustody.import.%s.%s', v_tenant, p_table), 0));
  return v_tenant;
end
$$;
revoke all on function custody_data.begin_import(text) from public;
grant execute on function custody_data.begin_import(text) to custody_worker;
comment on function custody_data.begin_import(text) is 'Tenant of the context, once no other import of the table is under way. Errors: PC001, PC023, PC026.';

create or replace function custody.import_known(p_table text, p_file_sha256 bytea)
returns boolean
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.begin_import(p_table);
begin
  return exists (
    select from custody_data.imports m
    where m.tenant_id = v_tenant and m.table_name = p_table and m.file_sha256 = p_file_sha256 and m.rows_rejected = 0);
end
$$;
revoke all on function custody.import_known(text, bytea) from public;
grant execute on function custody.import_known(text, bytea) to custody_worker;
comment on function custody.import_known(text, bytea) is
'Whether a file was imported whole into p_table before. What is missing of it since, an erasure, retention or the application took away, and what differs, the application changed: the caller leaves both so. Keeps other imports of the table out until the transaction ends.
p_file_sha256: of the file.
Errors: PC001, PC023 no staging table, PC026. Callers: custody_worker.';

create or replace function custody_data.settle_repeated(p_table text, p_code text, p_key text, p_and_key text default null)
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant text := 'staged_' || p_table;
  v_and_key constant text := coalesce(p_and_key, p_key);
  v_found boolean;
  v_rows bigint;
begin
  if exists (select from pg_temp.import_refusals) then
    execute format('delete from pg_temp.%I s using pg_temp.import_refusals r where r.line = s.line', v_table);
  end if;
  execute format('select exists (select from pg_temp.%1$I where %2$I is not null group by %2$I, %3$I having count(*) > 1)', v_table, p_key, v_and_key)
  into v_found;
  if not v_found then
    return 0::bigint;
  end if;
  execute format($q$
    insert into pg_temp.import_refusals
    select s.line, %4$L, %3$L, format('is also on line %%s, with other content', f.line)
    from (select min(line) as line from pg_temp.%1$I where %2$I is not null group by %2$I, %3$I having count(*) > 1) first
    join pg_temp.%1$I f on f.line = first.line
    join pg_temp.%1$I s on s.%2$I = f.%2$I and s.%3$I = f.%3$I and s.line > f.line
    where to_jsonb(s) - 'line' <> to_jsonb(f) - 'line' $q$, v_table, p_key, v_and_key, p_code);
  execute format('delete from pg_temp.%I s using pg_temp.import_refusals r where r.line = s.line', v_table);
  execute format('delete from pg_temp.%1$I s using pg_temp.%1$I f where s.%2$I = f.%2$I and s.%3$I = f.%3$I and s.line > f.line',
    v_table, p_key, v_and_key);
  get diagnostics v_rows = row_count;
  return v_rows;
end
$$;
revoke all on function custody_data.settle_repeated(text, text, text, text) from public;
grant execute on function custody_data.settle_repeated(text, text, text, text) to custody_worker;
comment on function custody_data.settle_repeated(text, text, text, text) is
'Of staged lines with the same key keeps the first that is not refused: refuses the others where they say something else, else drops and counts them.';

create or replace function custody_data.settle_refused(p_table text, p_skip_refused boolean)
returns bigint
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_rows bigint;
  v_first record;
begin
  select count(distinct r.line) into v_rows from pg_temp.import_refusals r;
  if v_rows > 0 and not p_skip_refused then
    select r.* into v_first from pg_temp.import_refusals r order by r.line, r.field limit 1;
    raise exception using
      errcode = v_first.code,
      message = format('%s: %s', v_first.field, v_first.problem),
      detail = format('line=%s refused=%s', v_first.line, v_rows),
      hint = 'Correct the file, or import the other lines and keep these with --rejects.',
      schema = 'custody_data', table = p_table, column = v_first.field;
  end if;
  if v_rows > 0 then
    execute format('delete from pg_temp.%I s using pg_temp.import_refusals r where r.line = s.line', 'staged_' || p_table);
  end if;
  return v_rows;
end
$$;
revoke all on function custody_data.settle_refused(text, boolean) from public;
grant execute on function custody_data.settle_refused(text, boolean) to custody_worker;
comment on function custody_data.settle_refused(text, boolean) is 'Takes refused lines out of the staging table and counts them, or raises the first: COLUMN is its field, DETAIL its line and how many were refused.';

-- definer: row locks need UPDATE on identities, which no role has
create or replace function custody_data.claim_identities(p_user_ids text[])
returns setof custody_data.identities
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan -- the table grows between two calls, and the best plan changes with it
set work_mem = '64MB'
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.require_context()::custody_data.tenant_name;
begin
  if custody.has_subject() then
    raise exception using
      errcode = 'PC015',
      message = 'this transaction is confined to one person',
      hint = 'Set a context without p_subject.';
  end if;
  perform custody_data.check_user_id(u.user_id)
  from unnest(p_user_ids) u (user_id)
  where u.user_id is null or btrim(u.user_id) = '' or char_length(u.user_id) > 256;
  -- As claim_identity: what is erased between the two statements is made anew in the next round.
  loop
    insert into custody_data.identities (tenant_id, user_id)
    select v_tenant, u.user_id
    from (select distinct user_id collate "C" from unnest(p_user_ids) u (user_id)) u
    where not exists (select from custody_data.identities i where i.tenant_id = v_tenant and i.user_id = u.user_id)
    order by u.user_id
    on conflict (tenant_id, user_id) where user_id is not null do nothing;

    perform 1 from (
      select from custody_data.identities i
      where i.tenant_id = v_tenant and i.user_id = any (p_user_ids)
      order by i.user_id
      for key share
    ) locked;
    exit when not exists (
      select from unnest(p_user_ids) u (user_id)
      where not exists (select from custody_data.identities i where i.tenant_id = v_tenant and i.user_id = u.user_id collate "C"));
  end loop;
  return query
  select i.* from custody_data.identities i where i.tenant_id = v_tenant and i.user_id = any (p_user_ids);
end
$$;
revoke all on function custody_data.claim_identities(text[]) from public;
grant execute on function custody_data.claim_identities(text[]) to custody_worker;
comment on function custody_data.claim_identities(text[]) is
'Identities of many user_ids, made where they are missing, and kept from erasure until the transaction ends.
Errors: PC001, PC003, PC015 when the context is confined to one person.';

create or replace function custody_data.claim_staged(p_table text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_user_ids text[];
begin
  -- In order of user_id, so that two imports that share people never wait for each other in a circle.
  for v_user_ids in execute format($q$
    select array_agg(c.user_id order by c.user_id)
    from (
      select d.user_id, (row_number() over (order by d.user_id) - 1) / 100000 as chunk
      from (select distinct s.user_id from pg_temp.%I s) d
    ) c
    group by c.chunk
    order by c.chunk $q$, 'staged_' || p_table)
  loop
    insert into pg_temp.import_people (user_id, identity_id)
    select i.user_id, i.identity_id from custody_data.claim_identities(v_user_ids) i;
  end loop;
  analyze pg_temp.import_people;
end
$$;
revoke all on function custody_data.claim_staged(text) from public;
grant execute on function custody_data.claim_staged(text) to custody_worker;
comment on function custody_data.claim_staged(text) is 'Claims the identity of every user_id in a staging table and lists them in pg_temp.import_people.';

create or replace function custody_data.import_result(p_added bigint, p_changed bigint, p_unchanged bigint, p_refused bigint)
returns jsonb
language sql
immutable
parallel safe
return pg_catalog.jsonb_build_object('added', p_added, 'changed', p_changed, 'unchanged', p_unchanged, 'refused', p_refused);
revoke all on function custody_data.import_result(bigint, bigint, bigint, bigint) from public;
grant execute on function custody_data.import_result(bigint, bigint, bigint, bigint) to custody_worker;
comment on function custody_data.import_result(bigint, bigint, bigint, bigint) is 'What an import function returns: rows added, changed, unchanged and refused.';

create or replace function custody_data.refuse_taken()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_fields text[];
begin
  perform pg_advisory_xact_lock_shared(hashtextextended('pgcustody.profiles.' || v_tenant, 0));
  select t.unique_fields into v_fields from custody_data.tenants t where t.tenant_id = v_tenant;
  if v_fields = '{}' then
    return;
  end if;
  -- Alone from here on: nobody writes a profile that this import does not see.
  perform pg_advisory_xact_lock(hashtextextended('pgcustody.profiles.' || v_tenant, 0));
  insert into pg_temp.import_refusals
  select x.line, 'PC038', x.field, 'is in the profile of another person'
  from (
    select s.line, s.user_id, f.field, n.indexes, row_number() over (partition by f.field, f.value order by s.line) as nth
    from pg_temp.staged_user_profiles s
    cross join lateral (values ('email', custody_data.normalize_email(s.email)), ('phone', custody_data.normalize_phone(s.phone))) f (field, value)
    -- once a line, not once for every profile that it is compared with
    cross join lateral (select custody_data.blind_indexes(f.field, f.value) as indexes offset 0) n
    where f.value is not null and f.field = any (v_fields)
  ) x
  where x.nth > 1 or exists (
    select from custody_data.user_profiles p
    join custody_data.identities i on i.tenant_id = v_tenant and i.identity_id = p.identity_id
    where p.tenant_id = v_tenant and i.user_id <> x.user_id and x.field = 'email' and p.email_index = any (x.indexes)
  ) or exists (
    select from custody_data.user_profiles p
    join custody_data.identities i on i.tenant_id = v_tenant and i.identity_id = p.identity_id
    where p.tenant_id = v_tenant and i.user_id <> x.user_id and x.field = 'phone' and p.phone_index = any (x.indexes));
end
$$;
revoke all on function custody_data.refuse_taken() from public;
grant execute on function custody_data.refuse_taken() to custody_worker;
comment on function custody_data.refuse_taken() is
'Refuses staged profiles whose e-mail address or telephone number another person has, where the tenant wants it unique, and keeps others from writing profiles then until the transaction ends.';

create or replace function custody.import_profiles(p_skip_refused boolean default false)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set work_mem = '64MB'
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.begin_import('user_profiles');
  v_unchanged bigint;
  v_refused bigint;
  v_rows bigint;
  v_added bigint;
  v_changed bigint;
begin
  analyze pg_temp.staged_user_profiles (line, user_id);
  v_unchanged := custody_data.settle_repeated('user_profiles', 'PC028', 'user_id');
  perform custody_data.refuse_taken();
  v_refused := custody_data.settle_refused('user_profiles', p_skip_refused);
  -- Only profiles of people in the file are opened: hence offset 0.
  delete from pg_temp.staged_user_profiles s
  using (
    select t.line, p, array[t.full_name, t.email, t.phone, t.organisation, t.title, t.address, t.city, t.region, t.postal_code, t.country,
      t.attributes::text] as said
    from pg_temp.staged_user_profiles t
    join custody_data.identities i on i.tenant_id = v_tenant and i.user_id = t.user_id
    join custody_data.user_profiles p on p.tenant_id = v_tenant and p.identity_id = i.identity_id
    offset 0
  ) x
  where x.line = s.line
    and custody_data.same_values((x.p).identity_id, 'user_profiles', (x.p).identity_id::text, custody_data.profile_fields(), custody_data.sealed_profile(x.p), x.said);
  get diagnostics v_rows = row_count;
  v_unchanged := v_unchanged + v_rows;

  perform custody_data.claim_staged('user_profiles');
  with sealed as (
    select r.profile
    from pg_temp.staged_user_profiles s
    join pg_temp.import_people i on i.user_id = s.user_id
    left join custody_data.user_profiles p on p.tenant_id = v_tenant and p.identity_id = i.identity_id
    cross join lateral (select custody_data.seal_profile(i.identity_id, p, array[s.full_name, s.email, s.phone, s.organisation, s.title, s.address, s.city, s.region, s.postal_code, s.country, s.attributes::text]) as profile offset 0) r
  ), written as (
    insert into custody_data.user_profiles as p
      (tenant_id, identity_id, full_name, email, phone, organisation, title, address, city, region, postal_code, country, attributes,
        email_index, phone_index)
    select v_tenant, (x.profile).identity_id, (x.profile).full_name, (x.profile).email, (x.profile).phone, (x.profile).organisation,
      (x.profile).title, (x.profile).address, (x.profile).city, (x.profile).region, (x.profile).postal_code, (x.profile).country,
      (x.profile).attributes, (x.profile).email_index, (x.profile).phone_index
    from sealed x
    on conflict (tenant_id, identity_id) do update set
      full_name = excluded.full_name, email = excluded.email, phone = excluded.phone, organisation = excluded.organisation,
      title = excluded.title, address = excluded.address, city = excluded.city, region = excluded.region,
      postal_code = excluded.postal_code, country = excluded.country, attributes = excluded.attributes,
      email_index = excluded.email_index, phone_index = excluded.phone_index
    returning p.version
  )
  select count(*) filter (where w.version = 1), count(*) filter (where w.version > 1) into v_added, v_changed from written w;
  return custody_data.import_result(v_added, v_changed, v_unchanged, v_refused);
end
$$;
revoke all on function custody.import_profiles(boolean) from public;
grant execute on function custody.import_profiles(boolean) to custody_worker;
comment on function custody.import_profiles(boolean) is
'Imports pg_temp.staged_user_profiles: adds the profiles of new people, replaces profiles that differ, leaves equal ones alone. Returns {"added", "changed", "unchanged", "refused"}.
p_skip_refused: leave lines that cannot be imported in pg_temp.import_refusals rather than raise the first: a user_id on an earlier line with other content, an e-mail address or telephone number that another person has where the tenant wants it unique.
Errors: PC001, PC003, PC023, PC026, PC028, PC033 locked, PC035 altered, PC038. Callers: custody_worker.';

create or replace function custody.import_preferences(p_skip_refused boolean default false)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set work_mem = '64MB'
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.begin_import('user_preferences');
  v_unchanged bigint;
  v_refused bigint;
  v_rows bigint;
  v_added bigint;
  v_changed bigint;
begin
  analyze pg_temp.staged_user_preferences (line, user_id);
  v_unchanged := custody_data.settle_repeated('user_preferences', 'PC028', 'user_id');
  v_refused := custody_data.settle_refused('user_preferences', p_skip_refused);
  delete from pg_temp.staged_user_preferences s
  using (
    select t.line, p, t.preferences as said
    from pg_temp.staged_user_preferences t
    join custody_data.identities i on i.tenant_id = v_tenant and i.user_id = t.user_id
    join custody_data.user_preferences p on p.tenant_id = v_tenant and p.identity_id = i.identity_id
    offset 0
  ) x
  where x.line = s.line
    and custody_data.same_values((x.p).identity_id, 'user_preferences', (x.p).identity_id::text, array['preferences'], array[(x.p).preferences], array[x.said::text]);
  get diagnostics v_rows = row_count;
  v_unchanged := v_unchanged + v_rows;

  perform custody_data.claim_staged('user_preferences');
  with written as (
    insert into custody_data.user_preferences as p (tenant_id, identity_id, preferences)
    select v_tenant, i.identity_id,
      (custody_data.seal_values(i.identity_id, 'user_preferences', i.identity_id::text, array['preferences'], array[s.preferences::text]))[1]
    from pg_temp.staged_user_preferences s
    join pg_temp.import_people i on i.user_id = s.user_id
    on conflict (tenant_id, identity_id) do update set preferences = excluded.preferences
    returning p.version
  )
  select count(*) filter (where w.version = 1), count(*) filter (where w.version > 1) into v_added, v_changed from written w;
  return custody_data.import_result(v_added, v_changed, v_unchanged, v_refused);
end
$$;
revoke all on function custody.import_preferences(boolean) from public;
grant execute on function custody.import_preferences(boolean) to custody_worker;
comment on function custody.import_preferences(boolean) is
'Imports pg_temp.staged_user_preferences: adds the preferences of new people, replaces those that differ, leaves equal ones alone. Returns {"added", "changed", "unchanged", "refused"}.
p_skip_refused: leave a user_id that is on an earlier line with other content in pg_temp.import_refusals rather than raise the first.
Errors: PC001, PC003, PC023, PC026, PC028, PC033 locked, PC035 altered. Callers: custody_worker.';

create or replace function custody_data.consent_content_id(
  p_identity_id uuid, p_purpose text, p_granted boolean, p_policy_version text, p_legal_basis text, p_occurred_at timestamptz
)
returns uuid
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- The first 16 bytes of a SHA-256, with the bits of a version 8 uuid (RFC 9562).
  select encode(set_byte(set_byte(h.bytes, 6, get_byte(h.bytes, 6) & 15 | 128), 8, get_byte(h.bytes, 8) & 63 | 128), 'hex')::uuid
  from (
    select substring(sha256(convert_to(jsonb_build_array(p_identity_id, p_purpose, p_granted, p_policy_version, p_legal_basis,
      extract(epoch from p_occurred_at))::text, 'UTF8')) from 1 for 16) as bytes
  ) h;
$$;
revoke all on function custody_data.consent_content_id(uuid, text, boolean, text, text, timestamptz) from public;
grant execute on function custody_data.consent_content_id(uuid, text, boolean, text, text, timestamptz) to custody_worker;
comment on function custody_data.consent_content_id(uuid, text, boolean, text, text, timestamptz) is
'consent_id of an imported consent that came without one: a version 8 uuid from the SHA-256 of its content, so that the same line is the same record. The identity goes in, not the user_id, and the evidence does not: nobody can find out from the id who it was or what the evidence said.';

create or replace function custody.import_consents(p_skip_refused boolean default false)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set work_mem = '64MB'
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.begin_import('consent_records');
  v_unchanged bigint;
  v_refused bigint;
  v_staged bigint;
  v_added bigint;
begin
  analyze pg_temp.staged_consent_records (line, consent_id, user_id);
  -- Of a record whose person has been erased neither the person nor the evidence can be compared.
  insert into pg_temp.import_known (line, same)
  select s.line, (i.user_id = s.user_id or i.erased_at is not null)
    and (c.purpose, c.granted, c.policy_version, c.legal_basis, c.occurred_at, c.evidence is null)
      = (s.purpose, s.granted, s.policy_version, s.legal_basis, s.occurred_at, s.evidence is null)
    and (i.erased_at is not null or c.evidence is null or custody_data.same_values(c.identity_id, 'consent_records', c.consent_id::text, array['evidence'], array[c.evidence], array[s.evidence::text]))
  from pg_temp.staged_consent_records s
  join custody_data.consent_records c on c.tenant_id = v_tenant and c.consent_id = s.consent_id
  join custody_data.identities i on i.tenant_id = v_tenant and i.identity_id = c.identity_id;
  insert into pg_temp.import_known (line, same)
  select s.line, (c.evidence is null) = (s.evidence is null) and (c.evidence is null or custody_data.same_values(c.identity_id, 'consent_records', c.consent_id::text, array['evidence'], array[c.evidence], array[s.evidence::text]))
  from pg_temp.staged_consent_records s
  join custody_data.identities i on i.tenant_id = v_tenant and i.user_id = s.user_id
  join custody_data.consent_records c on c.tenant_id = v_tenant and c.consent_id = custody_data.consent_content_id(
    i.identity_id, s.purpose, s.granted, s.policy_version, s.legal_basis, s.occurred_at)
  where s.consent_id is null;
  insert into pg_temp.import_refusals
  select k.line, 'PC010', 'consent_id', 'was seen before with other content' from pg_temp.import_known k where not k.same;
  delete from pg_temp.staged_consent_records s using pg_temp.import_known k where k.line = s.line and k.same;
  get diagnostics v_unchanged = row_count;
  v_unchanged := v_unchanged + custody_data.settle_repeated('consent_records', 'PC010', 'consent_id');
  v_refused := custody_data.settle_refused('consent_records', p_skip_refused);

  perform custody_data.claim_staged('consent_records');
  update pg_temp.staged_consent_records s
  set consent_id = custody_data.consent_content_id(i.identity_id, s.purpose, s.granted, s.policy_version, s.legal_basis, s.occurred_at)
  from pg_temp.import_people i
  where i.user_id = s.user_id and s.consent_id is null;
  if found then
    v_unchanged := v_unchanged + custody_data.settle_repeated('consent_records', 'PC010', 'consent_id');
    v_refused := v_refused + custody_data.settle_refused('consent_records', p_skip_refused);
  end if;
  select count(*) into v_staged from pg_temp.staged_consent_records;
  with written as (
    insert into custody_data.consent_records
      (tenant_id, consent_id, identity_id, purpose, granted, policy_version, legal_basis, evidence, occurred_at)
    select v_tenant, s.consent_id, i.identity_id, s.purpose, s.granted, s.policy_version, s.legal_basis,
      case when s.evidence is not null then
        (custody_data.seal_values(i.identity_id, 'consent_records', s.consent_id::text, array['evidence'], array[s.evidence::text]))[1] end,
      s.occurred_at
    from pg_temp.staged_consent_records s
    join pg_temp.import_people i on i.user_id = s.user_id
    on conflict (tenant_id, consent_id) do nothing
    returning 1
  )
  select count(*) into v_added from written;
  if v_added < v_staged then
    raise exception using
      errcode = 'serialization_failure',
      message = 'consents of the same ids were recorded while the import ran',
      hint = 'Import the file again.';
  end if;
  return custody_data.import_result(v_added, 0, v_unchanged, v_refused);
end
$$;
revoke all on function custody.import_consents(boolean) from public;
grant execute on function custody.import_consents(boolean) to custody_worker;
comment on function custody.import_consents(boolean) is
'Imports pg_temp.staged_consent_records: adds the records that are not there. A record without a consent_id gets one from its content. Returns {"added", "changed": 0, "unchanged", "refused"}.
p_skip_refused: leave lines that cannot be imported in pg_temp.import_refusals rather than raise the first: a consent_id with other content than on an earlier line or in the table, or one of the same person, purpose, decision and time with other evidence.
Errors: PC001, PC003, PC010, PC023, PC026, PC033 evidence while locked, PC035 altered. Callers: custody_worker.';

create or replace function custody.import_conversations(p_skip_refused boolean default false)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set work_mem = '64MB'
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.begin_import('conversations');
  v_unchanged bigint;
  v_refused bigint;
  v_rows bigint;
  v_added bigint;
  v_changed bigint;
begin
  analyze pg_temp.staged_conversations (line, identity_id, conversation_id);
  v_unchanged := custody_data.settle_repeated('conversations', 'PC028', 'identity_id', 'conversation_id');
  v_refused := custody_data.settle_refused('conversations', p_skip_refused);
  -- Sealing has one outcome, so what says the same has the same bytes, unless an older data key sealed it.
  delete from pg_temp.staged_conversations s
  using custody_data.conversations c
  where c.tenant_id = v_tenant and c.identity_id = s.identity_id and c.conversation_id = s.conversation_id
    and (c.started_at, c.last_message_at, c.message_count, c.messages) = (s.started_at, s.last_message_at, s.message_count, s.messages)
    and c.title is not distinct from s.title;
  get diagnostics v_rows = row_count;
  v_unchanged := v_unchanged + v_rows;

  update custody_data.conversations c set
    title = s.title, messages = s.messages, message_count = s.message_count, started_at = s.started_at, last_message_at = s.last_message_at
  from pg_temp.staged_conversations s
  where c.tenant_id = v_tenant and c.identity_id = s.identity_id and c.conversation_id = s.conversation_id;
  get diagnostics v_changed = row_count;
  if v_changed > 0 then
    delete from pg_temp.staged_conversations s
    using custody_data.conversations c
    where c.tenant_id = v_tenant and c.identity_id = s.identity_id and c.conversation_id = s.conversation_id;
  end if;
  -- What is left is new: not asking for each row whether it is there saves a sixth of the time.
  begin
    insert into custody_data.conversations
      (tenant_id, identity_id, conversation_id, title, messages, message_count, started_at, last_message_at)
    select v_tenant, s.identity_id, s.conversation_id, s.title, s.messages, s.message_count, s.started_at, s.last_message_at
    from pg_temp.staged_conversations s;
    get diagnostics v_added = row_count;
  exception when unique_violation then
    raise exception using
      errcode = 'serialization_failure',
      message = 'conversations of the same ids were saved while the import ran',
      hint = 'Import the file again.';
  end;
  return custody_data.import_result(v_added, v_changed, v_unchanged, v_refused);
end
$$;
revoke all on function custody.import_conversations(boolean) from public;
grant execute on function custody.import_conversations(boolean) to custody_worker;
comment on function custody.import_conversations(boolean) is
'Imports pg_temp.staged_conversations: adds the conversations that are not there, replaces those that differ, leaves equal ones alone. Returns {"added", "changed", "unchanged", "refused"}. Title and messages are staged sealed, under the keys of claim_data_keys and for their place in the table, messages as the text of jsonb; values under an older key differ.
p_skip_refused: leave lines that cannot be imported in pg_temp.import_refusals rather than raise the first: a conversation on an earlier line with other content.
Errors: PC001, PC021 erased or unknown, PC023, PC026, PC028. Callers: custody_worker.';

create or replace function custody.import_audit_events(p_import_id uuid, p_file_sha256 bytea, p_skip_refused boolean default false)
returns jsonb
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set work_mem = '64MB'
as $$
declare
  v_tenant constant custody_data.tenant_name := custody_data.begin_import('audit_logs');
  v_unchanged bigint;
  v_refused bigint;
  v_rows bigint;
  v_added bigint;
  v_month record;
  v_user_ids text[];
begin
  analyze pg_temp.staged_audit_logs (line, log_entry_id, occurred_at, user_id, subject_user_id, action, resource_type, resource_id);
  insert into pg_temp.import_words (action, resource_type, code, field)
  select w.action, w.resource_type, case when w.known then 'PC005' else 'PC004' end, case when w.known then 'resource_type' else 'action' end
  from (
    select d.action, d.resource_type,
      exists (select from custody_data.audit_actions v where v.tenant_id in (v_tenant, 'system') and v.action = d.action) as known
    from (select distinct s.action, s.resource_type from pg_temp.staged_audit_logs s) d
  ) w
  where not w.known or (w.resource_type is not null and not exists (
    select from custody_data.audit_resource_types v where v.tenant_id in (v_tenant, 'system') and v.resource_type = w.resource_type));
  if found then
    insert into pg_temp.import_refusals
    select s.line, w.code, w.field, 'is not in the tenant''s vocabulary'
    from pg_temp.staged_audit_logs s
    join pg_temp.import_words w on w.action = s.action and w.resource_type is not distinct from s.resource_type;
  end if;

  -- Events that are there, by their key. The people of an event are compared by user_id, as far as they have one.
  insert into pg_temp.import_known (line, same)
  select s.line,
    (a.action, a.resource_type, a.result, a.purpose, a.metadata, a.personal is null)
      is not distinct from (s.action, s.resource_type, s.result, s.purpose, s.metadata, s.personal is null)
    and (a.personal is null or case when a.subject_id is null then actor.erased_at else subject.erased_at end is not null
      or custody_data.same_values(coalesce(a.subject_id, a.actor_id), 'audit_logs', a.log_entry_id::text, array['personal'], array[a.personal], array[s.personal::text]))
    and (actor.user_id = s.user_id or actor.erased_at is not null)
    and (a.resource_id is not distinct from s.resource_id or coalesce(resource.user_id = s.resource_id or resource.erased_at is not null, false))
    and case when s.subject_user_id is null then a.subject_id is null or a.subject_id::text = a.resource_id
      else coalesce(subject.user_id = s.subject_user_id or subject.erased_at is not null, false) end
  from pg_temp.staged_audit_logs s
  join custody_data.audit_logs a on a.tenant_id = v_tenant and a.log_entry_id = s.log_entry_id and a.occurred_at = s.occurred_at
  join custody_data.identities actor on actor.tenant_id = v_tenant and actor.identity_id = a.actor_id
  left join custody_data.identities subject on subject.tenant_id = v_tenant and subject.identity_id = a.subject_id
  left join custody_data.identities resource on resource.tenant_id = v_tenant and resource.identity_id =
    case when a.resource_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then a.resource_id::uuid end;

  -- Events of the last 90 days that have other times, or whose month is in the archive alone. Whoever is unknown
  -- now cannot be compared, and the personal part not either.
  insert into pg_temp.import_known (line, same)
  select s.line, e.occurred_at = s.occurred_at and (actor.identity_id is null or (s.subject_user_id is not null and subject.identity_id is null)
    or e.content = custody_data.event_content(s.occurred_at, actor.identity_id, coalesce(subject.identity_id, resource.identity_id),
      s.action, s.resource_type, coalesce(resource.identity_id::text, s.resource_id), s.result, s.metadata, s.personal is not null))
  from pg_temp.staged_audit_logs s
  join custody_data.audit_entry_ids e on e.tenant_id = v_tenant and e.log_entry_id = s.log_entry_id
  left join custody_data.identities actor on actor.tenant_id = v_tenant and actor.user_id = s.user_id
  left join custody_data.identities subject on subject.tenant_id = v_tenant and subject.user_id = s.subject_user_id
  left join custody_data.identities resource on resource.tenant_id = v_tenant and resource.user_id = s.resource_id
  where not exists (select from pg_temp.import_known k where k.line = s.line);

  insert into pg_temp.import_refusals
  select k.line, 'PC010', 'log_entry_id', 'was seen before with other content' from pg_temp.import_known k where not k.same;
  delete from pg_temp.staged_audit_logs s using pg_temp.import_known k where k.line = s.line and k.same;
  get diagnostics v_unchanged = row_count;
  v_unchanged := v_unchanged + custody_data.settle_repeated('audit_logs', 'PC010', 'log_entry_id');
  v_refused := custody_data.settle_refused('audit_logs', p_skip_refused);
  -- A file that was imported whole before has nothing new: what is missing of it, the archive has.
  if exists (
    select from custody_data.imports m
    where m.tenant_id = v_tenant and m.table_name = 'audit_logs' and m.file_sha256 = p_file_sha256 and m.rows_rejected = 0
  ) then
    delete from pg_temp.staged_audit_logs;
    get diagnostics v_rows = row_count;
    v_unchanged := v_unchanged + v_rows;
  end if;

  for v_month in
    select min(s.occurred_at) as first_at, max(s.occurred_at) as last_at
    from pg_temp.staged_audit_logs s
    group by date_trunc('month', s.occurred_at at time zone 'UTC')
    order by 1
  loop
    if v_month.first_at < '1970-01-01 00:00:00+00' or v_month.last_at > now() + interval '24 hours' then
      raise exception using
        errcode = 'PC009',
        message = 'time out of range in staged events',
        detail = 'A time is infinite, before 1970, or more than a day ahead.',
        hint = 'pgcustody import names the line.';
    end if;
    perform custody.ensure_audit_partitions(v_month.first_at, v_month.last_at);
  end loop;

  -- Whoever acts or is acted on gets an identity; a resource is one only where it has one, be it from this file.
  insert into pg_temp.import_people (user_id, identity_id)
  select u.user_id, i.identity_id
  from (
    select n.user_id, bool_or(n.needed) as needed
    from (
      select s.user_id, true as needed from pg_temp.staged_audit_logs s
      union all select s.subject_user_id, true from pg_temp.staged_audit_logs s where s.subject_user_id is not null
      union all select s.resource_id, false from pg_temp.staged_audit_logs s where s.resource_id is not null
    ) n
    group by n.user_id
  ) u
  left join custody_data.identities i on i.tenant_id = v_tenant and i.user_id = u.user_id
  where u.needed or i.identity_id is not null;
  select array_agg(p.user_id order by p.user_id) into v_user_ids from pg_temp.import_people p where p.identity_id is null;
  if v_user_ids is not null then
    delete from pg_temp.import_people p where p.identity_id is null;
    insert into pg_temp.import_people (user_id, identity_id)
    select i.user_id, i.identity_id from custody_data.claim_identities(v_user_ids) i;
  end if;
  analyze pg_temp.import_people;

  begin
    insert into custody_data.audit_entry_ids (tenant_id, log_entry_id, occurred_at, content)
    select v_tenant, s.log_entry_id, s.occurred_at, custody_data.event_content(s.occurred_at, actor.identity_id,
      coalesce(subject.identity_id, resource.identity_id), s.action, s.resource_type,
      coalesce(resource.identity_id::text, s.resource_id), s.result, s.metadata, s.personal is not null)
    from pg_temp.staged_audit_logs s
    join pg_temp.import_people actor on actor.user_id = s.user_id
    left join pg_temp.import_people subject on subject.user_id = s.subject_user_id
    left join pg_temp.import_people resource on resource.user_id = s.resource_id;
  exception when unique_violation then
    raise exception using
      errcode = 'serialization_failure',
      message = 'events of the same ids were recorded while the import ran',
      hint = 'Import the file again.';
  end;

  -- Personal parts are sealed person by person, a thousand at a time.
  insert into pg_temp.import_sealed (line, sealed)
  select x.line, x.sealed
  from (
    select p.identity_id, array_agg(p.line) as lines,
      custody_data.seal_column(p.identity_id, 'audit_logs', 'personal', array_agg(p.log_entry_id::text), array_agg(p.personal::text)) as sealed
    from (
      select coalesce(subject.identity_id, resource.identity_id, actor.identity_id) as identity_id, s.line, s.log_entry_id, s.personal,
        row_number() over (partition by coalesce(subject.identity_id, resource.identity_id, actor.identity_id)) / 1000 as part
      from pg_temp.staged_audit_logs s
      join pg_temp.import_people actor on actor.user_id = s.user_id
      left join pg_temp.import_people subject on subject.user_id = s.subject_user_id
      left join pg_temp.import_people resource on resource.user_id = s.resource_id
      where s.personal is not null
    ) p
    group by p.identity_id, p.part
  ) g
  cross join lateral unnest(g.lines, g.sealed) x (line, sealed);
  analyze pg_temp.import_sealed;

  -- In order of time: month after month, each with indexes small enough for the processor's cache.
  insert into custody_data.audit_logs
    (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata, personal, import_id)
  select v_tenant, s.log_entry_id, s.occurred_at, actor.identity_id, coalesce(subject.identity_id, resource.identity_id), s.action,
    s.resource_type, coalesce(resource.identity_id::text, s.resource_id), s.result, s.purpose, coalesce(s.metadata, '{}'),
    sealed.sealed, p_import_id
  from pg_temp.staged_audit_logs s
  join pg_temp.import_people actor on actor.user_id = s.user_id
  left join pg_temp.import_people subject on subject.user_id = s.subject_user_id
  left join pg_temp.import_people resource on resource.user_id = s.resource_id
  left join pg_temp.import_sealed sealed on sealed.line = s.line
  order by s.occurred_at;
  get diagnostics v_added = row_count;
  return custody_data.import_result(v_added, 0, v_unchanged, v_refused);
end
$$;
revoke all on function custody.import_audit_events(uuid, bytea, boolean) from public;
grant execute on function custody.import_audit_events(uuid, bytea, boolean) to custody_worker;
comment on function custody.import_audit_events(uuid, bytea, boolean) is
'Imports pg_temp.staged_audit_logs: adds the events whose log_entry_id is new, in partitions that it makes where they are missing. A resource_id that is a user_id of the tenant is stored as the identity, which is then the subject where the line names none. Returns {"added", "changed": 0, "unchanged", "refused"}.
p_import_id: marks the events, which is what permits times in the past. p_file_sha256: of the file; one that was imported whole before adds nothing, though retention may have taken its events.
p_skip_refused: leave lines that cannot be imported in pg_temp.import_refusals rather than raise the first: a log_entry_id with other content than on an earlier line or in the trail (people who have been erased are not compared), words that are not in the vocabulary.
Errors: PC001, PC003, PC004, PC005, PC009, PC010, PC023, PC026, PC033 personal parts while locked, PC035 altered. Callers: custody_worker.';

create or replace function custody.finish_import(
  p_import_id uuid, p_table text, p_file_sha256 bytea, p_rows_read bigint, p_rows_added bigint, p_rows_changed bigint, p_rows_rejected bigint,
  p_run_id uuid default null
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_whole_tenant();
begin
  if p_import_id is null or p_table is null or octet_length(p_file_sha256) is distinct from 32
      or p_rows_read is null or p_rows_added is null or p_rows_changed is null or p_rows_rejected is null then
    raise exception using errcode = 'PC023', message = 'an import is recorded whole', hint = 'Give every argument but p_run_id, and a digest of 32 bytes.';
  end if;
  insert into custody_data.imports
    (tenant_id, import_id, run_id, table_name, file_sha256, rows_read, rows_added, rows_changed, rows_rejected)
  values (v_tenant, p_import_id, p_run_id, p_table, p_file_sha256, p_rows_read, p_rows_added, p_rows_changed, p_rows_rejected);
  perform custody_data.append_event('record.import', p_table, p_import_id::text, case when p_rows_rejected > 0 then 'partial' else 'success' end,
    jsonb_build_object('table', p_table, 'rows', p_rows_read, 'rows_added', p_rows_added, 'rows_changed', p_rows_changed,
      'rows_rejected', p_rows_rejected, 'file_sha256', encode(p_file_sha256, 'hex'), 'import_id', p_import_id), null);
end
$$;
revoke all on function custody.finish_import(uuid, text, bytea, bigint, bigint, bigint, bigint, uuid) from public;
grant execute on function custody.finish_import(uuid, text, bytea, bigint, bigint, bigint, bigint, uuid) to custody_worker;
comment on function custody.finish_import(uuid, text, bytea, bigint, bigint, bigint, bigint, uuid) is
'Records an import and appends record.import to the trail, in the transaction of the import.
Errors: PC001, PC015 confined to one person, PC023. Callers: custody_worker.';

create or replace function custody.refuse_import(p_table text, p_error_code text)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform custody_data.append_event('record.import', p_table, null, 'failure',
    jsonb_build_object('table', p_table, 'error_code', p_error_code), null);
end
$$;
revoke all on function custody.refuse_import(text, text) from public;
grant execute on function custody.refuse_import(text, text) to custody_worker;
comment on function custody.refuse_import(text, text) is
'Appends the failure of an import to the trail, in a transaction of its own: that of the import is gone.
Errors: PC001. Callers: custody_worker.';
