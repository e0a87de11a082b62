-- Lines of our own in the server's log: whose record was opened, by whom and why, and in which context a transaction ran.
-- control: HIPAA 164.312(b); GDPR Art. 5(2), 30, 32; SOC 2 CC7.2; ISO 27001 A.8.15
-- reviewed by: security, DBA, auditor
--
-- A line is the record of a read. It is written before any value is returned and no rollback takes it back; it is written
-- READ ONLY and on a standby too. The event record.read is its copy in the trail, where the transaction may write.
--
-- Format, version 1. The message of a record of the server log, at level LOG:
--   PGCUSTODY KID.MAC JSON
-- KID names a key of kind line in custody_keys.context_keys (36 characters), MAC is HMAC-SHA-256 under it, 64 digits in
-- hexadecimal, over the bytes of JSON in UTF-8 exactly as they stand. JSON is one line without spaces between its parts, an
-- object of these members in this order, those that are null left out:
--   v        1
--   what     context: a context was entered, where pgaudit logs statements to join with it; read: sealed values were opened
--   tenant   of the context
--   actor    identity of who acts, or, where the actor has none yet, ~ and 16 digits of an HMAC of the user_id: never a user_id
--   purpose  of the context, its first 1000 characters
--   subject  identity that the context is confined to
--   login    session_user
--   role     the role of SET ROLE, or the login
--   pid      of the server process
--   xact     start of the transaction in microseconds since 1970
--   and of a read:
--   table    of the values; wrapped_keys where data keys were given out, with which a caller opens values by itself
--   columns  of the values; of find_subject those that it looked in, since to say whose an address is says what theirs is
--   people   identities whose values they are, at most 1000; more make more lines
--   rows     how many are known to be opened when the line is written, at least
--   event    where the read has one: the transaction's id, whose event it is, without which it was rolled back; read only or standby
--            where none can be written, and this line is all there is
-- There is one line for a (transaction, context, person, table, columns); a second one where a rollback to a savepoint took
-- the memory of the first with it. The event has in metadata.line the first 16 digits of MAC.
--
-- What makes a line ours: its MAC, and that the session it stands in is the one it was made in. A session cannot learn its
-- start from a function of another's (see 11_logins.sql), nor cheaply the number of its virtual transaction, so the line has
-- pid and start of the transaction, and the record beside it what the server says of session and vxid: the session_id
-- of the log record (%c) is START.PID in hexadecimal, seconds since 1970; ours has that PID and a START not after xact. A
-- message that a session copies from another, or from its own process number's past, is not. One that a session repeats
-- while its transaction lasts says again what is true.
--
-- The key is the owner's, made by migrations or by the first transaction that needs one, rotated by
-- custody.rotate_context_key, which keeps the secret of a retired one for 35 days, so that logs that come late can be
-- checked; the kid stays, so that a line that comes later still is told from one under a key that never was. It is not in
-- dumps: after a restore, logs from before cannot be checked, and their keys never were. A key that a transaction made and
-- rolled back is unknown to the check: that happens once in a database's life at most, and is found as a forgery.
--
-- Test vector: under the secret sha256('pgcustody line'), of the kid 00000000-0000-4000-8000-000000000001,
--   {"v":1,"what":"context","tenant":"acme","actor":"~0123456789abcdef","purpose":"care","login":"app","role":"app","pid":4711,"xact":1795305600000000}
-- has the MAC f1952a12d710458c3487187d05ecb6ec5fabf79c35e742fadaa5b14287aa67c4, and is ours in the session 6b023080.1267.
--
-- The log record has more than the message: the server adds the statement of the client, with what literals it has
-- (log_min_error_statement = fatal keeps it out), and the context of the call. Bound values are not in it while
-- log_parameter_max_length_on_error is 0, as unlock demands. A session under client_min_messages = log sees its own lines.

create or replace function custody_data.make_line_key()
returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kid constant text := gen_random_uuid()::text;
begin
  insert into custody_keys.context_keys (kid, kind, secret) values (v_kid, 'line', custody_data.random_bytes(32));
  return v_kid;
end
$$;
revoke all on function custody_data.make_line_key() from public;
comment on function custody_data.make_line_key() is 'Makes a key of log lines and returns its kid.';

create or replace function custody_data.line_key()
returns custody_keys.context_keys
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_found custody_keys.context_keys;
  v_kid text;
begin
  select k.* into v_found
  from custody_keys.context_keys k
  where k.tenant_id = 'system' and k.kind = 'line' and k.retired_at is null
  order by k.created_at desc, k.kid
  limit 1;
  if not found and current_setting('transaction_read_only') = 'off' then
    v_kid := custody_data.make_line_key();
    select k.* into v_found from custody_keys.context_keys k where k.tenant_id = 'system' and k.kid = v_kid;
  end if;
  return v_found;
end
$$;
revoke all on function custody_data.line_key() from public;
comment on function custody_data.line_key() is 'The key of log lines, made where there is none and the transaction may write; else null.';

create or replace function custody_data.write_line(p_what text, p_table text default null, p_columns text[] default null, p_people uuid[] default null, p_rows bigint default null, p_event boolean default null)
returns text
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key constant custody_keys.context_keys := custody_data.line_key();
  v_actor text := nullif(current_setting('custody.actor_id', true), '')::uuid;
  v_tenant constant text := current_setting('custody.tenant', true);
  v_written constant text := coalesce(current_setting('custody.lines', true), '');
  v_json text;
  v_mac text;
begin
  if v_key.secret is null or current_setting('log_min_messages') in ('fatal', 'panic') then
    if p_what = 'context' then
      return null;
    end if;
    raise exception using
      errcode = 'PC063',
      message = 'reading refused: its log line cannot be written',
      detail = case when v_key.secret is null then 'There is no key of log lines on this server yet, and the transaction is read only.'
        else 'log_min_messages is ' || current_setting('log_min_messages') || '.' end,
      hint = case when v_key.secret is null then 'Call custody.rotate_context_key on the primary.' else 'Put log_min_messages back for this login and database.' end;
  end if;
  if v_actor is null then
    -- Settings made by hand need not name anybody.
    if p_what = 'read' and coalesce(current_setting('custody.actor', true), '') = '' then
      raise exception using
        errcode = 'PC063',
        message = 'reading refused: its log line would name nobody',
        detail = 'The context has no actor.',
        hint = 'Call custody.set_context with who acts.';
    end if;
    v_actor := '~' || left(encode(custody_data.hmac_sha256(convert_to('actor ' || v_tenant || '/' || current_setting('custody.actor', true), 'UTF8'), v_key.secret), 'hex'), 16);
  end if;
  v_json := json_strip_nulls(json_build_object('v', 1, 'what', p_what, 'tenant', v_tenant, 'actor', v_actor,
    'purpose', left(nullif(current_setting('custody.purpose', true), ''), 1000), 'subject', nullif(current_setting('custody.subject_id', true), '')::uuid,
    'login', session_user, 'role', custody_data.caller_role(), 'pid', pg_backend_pid(), 'xact', (extract(epoch from transaction_timestamp()) * 1000000)::bigint,
    'table', p_table, 'columns', p_columns, 'people', p_people, 'rows', p_rows,
    'event', case when p_event then pg_current_xact_id()::text when pg_is_in_recovery() and not p_event then 'standby' when not p_event then 'read only' end))::text;
  v_mac := encode(custody_data.hmac_sha256(convert_to(v_json, 'UTF8'), v_key.secret), 'hex');
  if position(v_mac in v_written) > 0 then
    return null;
  end if;
  raise log using message = 'PGCUSTODY ' || v_key.kid || '.' || v_mac || ' ' || v_json;
  if p_what = 'read' then
    -- Any role can set it, but none can make a MAC that no line was written with. The newest 50 are remembered.
    perform set_config('custody.lines', v_mac || left(v_written, 49 * 64), true);
  end if;
  return v_mac;
end
$$;
revoke all on function custody_data.write_line(text, text, text[], uuid[], bigint, boolean) from public;
comment on function custody_data.write_line(text, text, text[], uuid[], bigint, boolean) is
'Writes a line into the server log, in the format of sql/routines/19_lines.sql, and returns its MAC; null where this transaction has written the same one of a read. Errors: PC063 a read whose line cannot be written.';

create or replace function custody_data.record_read(p_identity_id uuid, p_table text, p_columns text[], p_rows bigint)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_writes constant boolean := current_setting('transaction_read_only') = 'off';
  v_mac constant text := custody_data.write_line('read', p_table, p_columns, array[p_identity_id], p_rows, v_writes);
begin
  if v_mac is not null and v_writes then
    perform custody_data.append_event('record.read', p_table, null, 'success',
      jsonb_build_object('columns', p_columns, 'rows', p_rows, 'line', left(v_mac, 16)), p_identity_id);
  end if;
end
$$;
revoke all on function custody_data.record_read(uuid, text, text[], bigint) from public;
comment on function custody_data.record_read(uuid, text, text[], bigint) is
'Records that sealed values of a person were opened: a line, and an event where the transaction may write. Called before the values are returned. Errors: PC063.';

-- definer: the keys are the owner's
create or replace function custody_data.lines_are_ours(p_messages text[], p_sessions text[])
returns boolean[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_results boolean[];
begin
  with given as materialized (
    select m.n, m.message, m.session, case when coalesce(k.retired_at > clock_timestamp() - interval '35 days', true) then k.secret end as secret, k.kid,
      m.message like 'PGCUSTODY ____________________________________.________________________________________________________________ {%' as formed,
      substr(m.message, 48, 64) as mac, convert_to(substr(m.message, 113), 'UTF8') as said
    from unnest(p_messages, p_sessions) with ordinality m (message, session, n)
    left join custody_keys.context_keys k on k.tenant_id = 'system' and k.kind = 'line' and k.kid = substr(m.message, 11, 36)
  ), made as materialized (
    -- Compared by their digests under the key: how long that takes tells nothing about the MACs.
    select g.n, g.session, g.formed and g.kid is not null and g.secret is null as unverified,
      case when coalesce(g.secret is not null and g.formed
          and sha256(g.secret || convert_to(g.mac, 'UTF8')) = sha256(g.secret || convert_to(encode(custody_data.hmac_sha256(g.said, g.secret), 'hex'), 'UTF8')), false)
        then convert_from(g.said, 'UTF8')::json end as line
    from given g
  )
  select array_agg(case
      when m.session is null or m.session !~ '^[0-9a-f]{1,15}\.[0-9a-f]{1,8}$' then false
      when m.unverified then null
      when m.line is null then false
      else ('x' || lpad(split_part(m.session, '.', 2), 16, '0'))::bit(64)::bigint = (m.line ->> 'pid')::bigint
        and ('x' || lpad(split_part(m.session, '.', 1), 16, '0'))::bit(64)::bigint <= (m.line ->> 'xact')::bigint / 1000000 end order by m.n)
  into v_results
  from made m;
  return coalesce(v_results, '{}');
end
$$;
revoke all on function custody_data.lines_are_ours(text[], text[]) from public;
grant execute on function custody_data.lines_are_ours(text[], text[]) to custody_worker;
comment on function custody_data.lines_are_ours(text[], text[]) is
'Which messages of log records, each with the session_id of its record (%c), are lines that this schema wrote in that session: their MAC is right under a key that is not retired for 35 days. Null where the key was retired longer ago: nobody can tell any more. Callers: custody_worker.';

do $$
begin
  if not exists (select from custody_keys.context_keys k where k.kind = 'line' and k.retired_at is null) then
    perform custody_data.make_line_key();
  end if;
end
$$;
