-- Conversations: saved as a whole or message by message, kept for the policy after the last message.
-- control: GDPR Art. 5(1)(c), (e), 15, 17
-- reviewed by: DBA, backend engineers
--
-- A conversation is named by its person and its id, so nobody learns from an id that is taken that somebody
-- else has a conversation of that name. Title and messages are sealed, as 30_profiles.sql says of profiles.

create or replace view custody.conversation_summaries with (security_invoker = true) as
select c.tenant_id, c.identity_id, c.conversation_id,
  custody_data.open_text(c.identity_id, 'conversations', 'title', c.conversation_id, c.title) collate "default" as title, c.message_count, c.started_at, c.last_message_at, c.version, c.updated_at
from custody_data.conversations c;
grant select on custody.conversation_summaries to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on view custody.conversation_summaries is 'Conversations without their messages. Titles are read unlocked.';

create or replace function custody_data.check_messages(p_messages jsonb)
returns jsonb
language plpgsql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now constant timestamptz := now();
  v_wrong bigint;
  v_messages jsonb;
begin
  if p_messages is null or jsonb_typeof(p_messages) <> 'array' or jsonb_array_length(p_messages) = 0 then
    raise exception using errcode = 'PC023', message = 'invalid messages: not a JSON array with a message', hint = 'Give an array of {"role", "text", "at"}.';
  end if;
  select min(e.n) into v_wrong
  from jsonb_array_elements(p_messages) with ordinality as e (value, n)
  where coalesce(jsonb_typeof(e.value) <> 'object'
    or jsonb_typeof(e.value -> 'role') <> 'string' or jsonb_typeof(e.value -> 'text') <> 'string'
    or char_length(e.value ->> 'role') not between 1 and 64
    or (e.value ? 'at' and jsonb_typeof(e.value -> 'at') not in ('string', 'null'))
    -- not whatever Postgres takes for a time: "tomorrow", or an hour of the session's TimeZone
    or coalesce(e.value ->> 'at' !~ '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)$', false), true);
  if v_wrong is not null then
    raise exception using
      errcode = 'PC023',
      message = format('invalid message %s', v_wrong),
      detail = 'A message needs a role of 1 to 64 characters and a text, both strings; at is a time in ISO 8601 with an offset, or left out.',
      hint = 'Give an array of {"role", "text", "at"}.';
  end if;
  -- A message without a time gets that of the transaction.
  select jsonb_agg(case when e.value ->> 'at' is null
      then e.value || jsonb_build_object('at', custody_data.entry_time(v_now)) else e.value end order by e.n)
  into v_messages
  from jsonb_array_elements(p_messages) with ordinality as e (value, n);
  if exists (
    select from jsonb_array_elements(v_messages) e
    where not isfinite((e.value ->> 'at')::timestamptz) or (e.value ->> 'at')::timestamptz < '1970-01-01 00:00:00+00'
      or (e.value ->> 'at')::timestamptz > v_now + interval '24 hours'
  ) then
    raise exception using
      errcode = 'PC009',
      message = 'time out of range',
      detail = 'The time of a message is infinite, before 1970, or more than a day ahead.',
      hint = 'Give the time in ISO 8601 with an offset.';
  end if;
  return v_messages;
end
$$;
revoke all on function custody_data.check_messages(jsonb) from public;
comment on function custody_data.check_messages(jsonb) is 'The messages, each with a time; PC023 or PC009 for what is wrong.';

create or replace function custody_data.check_conversation_id(p_conversation_id text)
returns void
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(char_length(p_conversation_id), 0) not between 1 and 256 then
    raise exception using errcode = 'PC023', message = 'invalid conversation_id', hint = 'Give 1 to 256 characters.';
  end if;
end
$$;
revoke all on function custody_data.check_conversation_id(text) from public;
comment on function custody_data.check_conversation_id(text) is 'Raises PC023 for an id that is null, empty or longer than 256 characters.';

create or replace function custody_data.unknown_conversation()
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'PC027',
    message = 'unknown conversation',
    detail = 'The person has no conversation of that id, or retention or erasure has deleted it.',
    hint = 'Look with custody.list_conversations, or save it first.';
end
$$;
revoke all on function custody_data.unknown_conversation() from public;
comment on function custody_data.unknown_conversation() is 'Raises PC027.';

create or replace function custody_data.open_conversation(p_row custody_data.conversations)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return custody_data.open_values(p_row.identity_id, 'conversations', p_row.conversation_id, array['title', 'messages'], array[p_row.title, p_row.messages]::bytea[]);
end
$$;
revoke all on function custody_data.open_conversation(custody_data.conversations) from public;
grant execute on function custody_data.open_conversation(custody_data.conversations) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody_data.open_conversation(custody_data.conversations) is 'Title and messages of a conversation. Errors: PC001, PC015, PC033, PC035.';

create or replace function custody_data.check_title(p_title text)
returns void
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if char_length(p_title) > 1000 then
    raise exception using errcode = 'PC023', message = 'invalid title', hint = 'Give at most 1000 characters.';
  end if;
end
$$;
revoke all on function custody_data.check_title(text) from public;
comment on function custody_data.check_title(text) is 'Raises PC023 for a title of more than 1000 characters.';

create or replace function custody_data.lock_conversation(p_user_id text, p_conversation_id text, p_if_version integer)
returns custody_data.conversations
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_identity_id constant uuid := custody_data.require_person(p_user_id);
  v_row custody_data.conversations;
begin
  perform custody_data.check_conversation_id(p_conversation_id);
  select c.* into v_row from custody_data.conversations c
  where c.tenant_id = custody.current_tenant() and c.identity_id = v_identity_id and c.conversation_id = p_conversation_id
  for update;
  if not found then
    perform custody_data.unknown_conversation();
  end if;
  perform custody_data.check_version(v_row.version, p_if_version, 'conversation');
  perform custody_data.require_kek();
  return v_row;
end
$$;
revoke all on function custody_data.lock_conversation(text, text, integer) from public;
comment on function custody_data.lock_conversation(text, text, integer) is 'The row of a conversation, locked. Errors: PC001, PC003, PC011, PC014, PC015, PC023, PC027, PC033.';

-- definer: as put_profile
create or replace function custody.save_conversation(p_user_id text, p_conversation_id text, p_messages jsonb, p_title text default null, p_if_version integer default null)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_id constant text := coalesce(p_conversation_id, gen_random_uuid()::text);
  v_messages constant jsonb := custody_data.check_messages(p_messages);
  v_identity_id uuid;
  v_started_at timestamptz;
  v_last_message_at timestamptz;
  v_sealed bytea[];
  v_version integer;
begin
  perform custody_data.check_conversation_id(v_id), custody_data.check_title(p_title), custody_data.require_kek();
  select min((e.value ->> 'at')::timestamptz), max((e.value ->> 'at')::timestamptz) into v_started_at, v_last_message_at
  from jsonb_array_elements(v_messages) e;
  v_identity_id := custody_data.claim_person(p_user_id);
  if p_if_version is not null then
    select c.version into v_version from custody_data.conversations c
    where c.tenant_id = v_tenant and c.identity_id = v_identity_id and c.conversation_id = v_id
    for update;
    perform custody_data.check_version(v_version, p_if_version, 'conversation');
  end if;
  v_sealed := custody_data.seal_values(v_identity_id, 'conversations', v_id, array['title', 'messages'], array[p_title, v_messages::text]);
  insert into custody_data.conversations
    (tenant_id, identity_id, conversation_id, title, messages, message_count, started_at, last_message_at)
  values (v_tenant, v_identity_id, v_id, v_sealed[1], v_sealed[2], jsonb_array_length(v_messages), v_started_at, v_last_message_at)
  on conflict (tenant_id, identity_id, conversation_id) do update set
    title = excluded.title, messages = excluded.messages, message_count = excluded.message_count,
    started_at = excluded.started_at, last_message_at = excluded.last_message_at;
  return v_id;
end
$$;
revoke all on function custody.save_conversation(text, text, jsonb, text, integer) from public;
grant execute on function custody.save_conversation(text, text, jsonb, text, integer) to custody_readwrite;
comment on function custody.save_conversation(text, text, jsonb, text, integer) is
'Stores a whole conversation of a person and returns its id; one of that id is replaced.
p_conversation_id: 1 to 256 characters, null to draw one. p_messages: array of {"role", "text", "at"}; at in ISO 8601 with an offset, default now. p_title: up to 1000 characters. p_if_version: only where it still has this version.
Errors: PC001, PC003, PC009 time, PC014, PC015, PC023, PC033 locked, PC035 an altered data key. Callers: custody_readwrite.';

-- definer: as put_profile
create or replace function custody.append_message(p_user_id text, p_conversation_id text, p_message jsonb, p_if_version integer default null)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_row constant custody_data.conversations := custody_data.lock_conversation(p_user_id, p_conversation_id, p_if_version);
  v_message constant jsonb := custody_data.check_messages(jsonb_build_array(p_message));
  v_at constant timestamptz := (v_message -> 0 ->> 'at')::timestamptz;
  v_messages text[];
  v_sealed bytea[];
  v_count integer;
begin
  v_messages := custody_data.open_unseen(v_row.identity_id, 'conversations', p_conversation_id, array['messages'], array[v_row.messages]);
  v_messages[1] := (v_messages[1]::jsonb || v_message)::text;
  v_sealed := custody_data.seal_values(v_row.identity_id, 'conversations', p_conversation_id, array['messages'], v_messages);
  update custody_data.conversations c set
    messages = v_sealed[1], message_count = c.message_count + 1,
    started_at = least(c.started_at, v_at), last_message_at = greatest(c.last_message_at, v_at)
  where c.tenant_id = v_row.tenant_id and c.identity_id = v_row.identity_id and c.conversation_id = p_conversation_id
  returning c.message_count into v_count;
  return v_count;
end
$$;
revoke all on function custody.append_message(text, text, jsonb, integer) from public;
grant execute on function custody.append_message(text, text, jsonb, integer) to custody_readwrite;
comment on function custody.append_message(text, text, jsonb, integer) is
'Adds a message, {"role", "text", "at"}, and returns how many there are now. p_if_version: only where the conversation still has this version.
Errors: PC001, PC003, PC009, PC011, PC014, PC015, PC023, PC027 unknown conversation, PC033 locked, PC035 altered. Callers: custody_readwrite.';

-- definer: as put_profile
create or replace function custody.update_conversation(p_user_id text, p_conversation_id text, p_title text, p_if_version integer default null)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_row constant custody_data.conversations := custody_data.lock_conversation(p_user_id, p_conversation_id, p_if_version);
  v_sealed constant bytea[] := custody_data.seal_values(v_row.identity_id, 'conversations', p_conversation_id, array['title'], array[p_title]);
  v_version integer;
begin
  perform custody_data.check_title(p_title);
  update custody_data.conversations c set title = v_sealed[1]
  where c.tenant_id = v_row.tenant_id and c.identity_id = v_row.identity_id and c.conversation_id = p_conversation_id
  returning c.version into v_version;
  return v_version;
end
$$;
revoke all on function custody.update_conversation(text, text, text, integer) from public;
grant execute on function custody.update_conversation(text, text, text, integer) to custody_readwrite;
comment on function custody.update_conversation(text, text, text, integer) is
'Sets the title, null to empty it, and returns the new version. p_if_version: only where the conversation still has this version.
Errors: PC001, PC003, PC011, PC014, PC015, PC023, PC027, PC033 locked, PC035 an altered data key. Callers: custody_readwrite.';

create or replace function custody.get_conversation(p_user_id text, p_conversation_id text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
  v_row custody_data.conversations;
  v_values text[];
begin
  perform custody_data.check_user_id(p_user_id);
  select c.* into v_row
  from custody_data.conversations c
  where c.tenant_id = v_tenant and c.identity_id = custody_data.find_identity(p_user_id) and c.conversation_id = p_conversation_id;
  if not found then
    return null;
  end if;
  v_values := custody_data.open_conversation(v_row);
  return jsonb_build_object('user_id', p_user_id, 'conversation_id', v_row.conversation_id, 'title', v_values[1], 'messages', v_values[2]::jsonb,
    'message_count', v_row.message_count, 'started_at', v_row.started_at, 'last_message_at', v_row.last_message_at,
    'version', v_row.version, 'created_at', v_row.created_at, 'updated_at', v_row.updated_at);
end
$$;
revoke all on function custody.get_conversation(text, text) from public;
grant execute on function custody.get_conversation(text, text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.get_conversation(text, text) is
'A conversation as a JSON object: user_id, conversation_id, title, messages, message_count, started_at, last_message_at, version, created_at, updated_at; null for the unknown and for what the context may not see.
Errors: PC001, PC003, PC033 locked, PC035 altered, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

create or replace function custody.list_conversations(p_user_id text, p_limit integer default 100, p_before timestamptz default null, p_before_id text default null)
returns setof custody.conversation_summaries
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception using errcode = 'PC023', message = 'invalid p_limit', hint = 'Give 1 to 10000 and go on with p_before.';
  end if;
  return query
  select s.* from custody.conversation_summaries s
  where s.tenant_id = v_tenant and s.identity_id = custody_data.find_identity(p_user_id)
    and s.last_message_at <= coalesce(p_before, 'infinity')
    and (p_before is null or s.last_message_at < p_before or s.conversation_id < p_before_id)
  order by s.last_message_at desc, s.conversation_id desc
  limit p_limit;
end
$$;
revoke all on function custody.list_conversations(text, integer, timestamptz, text) from public;
grant execute on function custody.list_conversations(text, integer, timestamptz, text) to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
comment on function custody.list_conversations(text, integer, timestamptz, text) is
'Conversations of a person without their messages, newest first. p_limit: 1 to 10000. The page after a row: p_before its last_message_at and p_before_id its conversation_id (without p_before_id rows of the same instant are passed over).
Errors: PC001, PC003, PC023, PC033 titles while locked, PC035 altered, PC063 the read cannot be recorded. Callers: custody_readonly, custody_readwrite, custody_worker, custody_privacy.';

-- definer: as put_profile
create or replace function custody.delete_conversation(p_user_id text, p_conversation_id text)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant constant text := custody_data.require_context();
begin
  perform custody_data.check_user_id(p_user_id);
  delete from custody_data.conversations c
  where c.tenant_id = v_tenant and c.identity_id = custody_data.find_identity(p_user_id) and c.conversation_id = p_conversation_id;
  return found;
end
$$;
revoke all on function custody.delete_conversation(text, text) from public;
grant execute on function custody.delete_conversation(text, text) to custody_readwrite;
comment on function custody.delete_conversation(text, text) is
'Deletes a conversation and returns whether there was one.
Errors: PC001, PC003, PC032 under a legal hold. Callers: custody_readwrite.';
