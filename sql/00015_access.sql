-- The server's log, shipped: who saw what and who came, row by row; the batches that went to the store; what is wrong with the log.
-- control: HIPAA 164.312(b), 164.308(a)(1)(ii)(D); ISO 27001 A.8.15, A.8.16; SOC 2 CC7.2; GDPR Art. 5(2), 32
-- reviewed by: DBA, auditor, privacy officer
--
-- What counts is in the store, under lock: a batch is an object there, numbered without gaps, each naming the digest of
-- the one before, and an event of the trail. access_events is the part of it that is asked about, for the policy access.
-- How far a source was read is kept in the transaction that stores what was read, so that nothing is taken twice or
-- left out, wherever a run is killed.
--
-- Months are those of recorded_at: no clock of a log makes a partition. Rows never change, but for rolled_back, which is
-- said once, when the reconciliation knows. Expired months are dropped.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.access_events (
  tenant_id custody_data.tenant_name not null,
  recorded_at timestamptz not null,
  batch bigint not null,
  line integer not null,
  part smallint not null default 0,
  occurred_at timestamptz not null,
  kind text collate "C" not null,
  class text collate "C",
  action text collate "C",
  object_name text collate "C",
  login text collate "C",
  role text collate "C",
  actor_id uuid,
  actor_pseudonym text collate "C",
  purpose text,
  identity_id uuid,
  rows bigint,
  client inet,
  application text,
  session_id text collate "C" not null,
  vxid text collate "C",
  xact_at timestamptz,
  event_line text collate "C",
  event_xid xid8,
  rolled_back boolean,
  state_code text collate "C",
  constraint access_events_pkey primary key (tenant_id, recorded_at, batch, line, part),
  constraint access_events_kind_is_known_check check (kind in
    ('read', 'statement', 'connect', 'authenticated', 'logon', 'logon_failed', 'logoff', 'forged', 'message'))
) partition by range (recorded_at);
create index access_events_identity_id_idx on custody_data.access_events (tenant_id, identity_id, occurred_at) where identity_id is not null;
create index access_events_actor_id_idx on custody_data.access_events (tenant_id, actor_id, occurred_at) where actor_id is not null;
-- A session's rows are found by their time: an index of sessions would cost shipping a fifth of its speed.
create index access_events_occurred_at_idx on custody_data.access_events using brin (occurred_at);
create index access_events_unreconciled_idx on custody_data.access_events (recorded_at) where event_xid is not null and rolled_back is null;
comment on table custody_data.access_events is 'Who read what, whose record it was, who came and who was refused: lines of the server''s log that are believed, and claims that are not (forged). Append-only, partitioned by month of recorded_at in UTC, kept for the policy access; the batches in the store have all lines.';
comment on column custody_data.access_events.tenant_id is 'As the transaction''s own line says; system where none does.';
comment on column custody_data.access_events.recorded_at is 'When its batch was recorded.';
comment on column custody_data.access_events.batch is 'Number of the batch.';
comment on column custody_data.access_events.line is 'Which line of the batch, from 1.';
comment on column custody_data.access_events.part is 'Which of the people of one line, from 0.';
comment on column custody_data.access_events.occurred_at is 'As the server logged it.';
comment on column custody_data.access_events.kind is 'read: a record was opened; statement: as pgaudit logged it; connect, authenticated, logon, logon_failed, logoff; forged: a line that claims to be one of these or ours and is not; message: a statement that failed, or a setting that changed.';
comment on column custody_data.access_events.class is 'pgaudit''s: READ, WRITE, DDL, ROLE, FUNCTION, MISC; READ for reads, SETTING where one changed.';
comment on column custody_data.access_events.action is 'Command tag; record.read for reads.';
comment on column custody_data.access_events.object_name is 'schema.table as pgaudit has it; the table of a read; the name of a setting.';
comment on column custody_data.access_events.login is 'Who authenticated, whatever SET ROLE said since.';
comment on column custody_data.access_events.role is 'As which role our functions were called.';
comment on column custody_data.access_events.actor_id is 'Identity that acted: the one in context in that transaction.';
comment on column custody_data.access_events.actor_pseudonym is 'Stands for an actor without an identity: keyed, never the user_id.';
comment on column custody_data.access_events.identity_id is 'Whose record was read; of a statement, the person to whom its context is confined.';
comment on column custody_data.access_events.rows is 'How many rows, as far as known: of the whole line.';
comment on column custody_data.access_events.client is 'Address of the client; empty for a Unix socket or a name. @custody{"sensitivity":"contact","retention":"access"}';
comment on column custody_data.access_events.application is 'application_name, the client''s own choice. @custody{"sensitivity":"content","retention":"access"}';
comment on column custody_data.access_events.session_id is 'Start and pid of the process, hexadecimal: %c of the log.';
comment on column custody_data.access_events.vxid is 'Virtual transaction, within its session.';
comment on column custody_data.access_events.xact_at is 'When the transaction began, where its own line says.';
comment on column custody_data.access_events.event_line is 'metadata.line of the event record.read that the transaction wrote; read only or standby where it could write none, and the line alone is the record.';
comment on column custody_data.access_events.event_xid is 'The transaction that wrote the event.';
comment on column custody_data.access_events.rolled_back is 'Of reads: whether the transaction was rolled back, and so left no event in the trail; empty until reconciled, and where there is no event_xid.';
comment on column custody_data.access_events.state_code is 'SQLSTATE of what failed.';

create table custody_data.log_sources (
  tenant_id custody_data.tenant_name not null default 'system',
  source text collate "C" not null,
  format text collate "C" not null,
  file_name text collate "C" not null,
  file_offset bigint not null,
  file_head bytea not null,
  file_tail bytea not null,
  state bytea not null,
  last_line_at timestamptz,
  updated_at timestamptz not null default pg_catalog.clock_timestamp(),
  constraint log_sources_pkey primary key (tenant_id, source),
  constraint log_sources_source_is_a_name_check check (source ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$'),
  constraint log_sources_format_is_known_check check (format in ('jsonlog', 'csvlog')),
  constraint log_sources_file_offset_is_not_negative_check check (file_offset >= 0),
  constraint log_sources_digests_have_32_bytes_check check (pg_catalog.octet_length(file_head) = 32 and pg_catalog.octet_length(file_tail) = 32)
);
comment on table custody_data.log_sources is 'Logs that are shipped, and how far: which file, told by what stands in it, and from which byte the next batch begins.';
comment on column custody_data.log_sources.source is 'Name of the server whose log it is, in the names of objects too.';
comment on column custody_data.log_sources.file_head is 'SHA-256 of the first 4 kB of what was read of the file; file_tail of the last. Another file under the same name has others.';
comment on column custody_data.log_sources.state is 'What the lines to come are joined with and checked against: the last line and the context of each open session. The runner''s own form.';
comment on column custody_data.log_sources.last_line_at is 'Time of the last line that was shipped.';

create table custody_data.log_batches (
  tenant_id custody_data.tenant_name not null default 'system',
  number bigint not null,
  source text collate "C" not null,
  file_name text collate "C" not null,
  file_from bigint not null,
  file_to bigint not null,
  object_key text collate "C" not null,
  manifest_key text collate "C" not null,
  sha256 bytea not null,
  compressed_sha256 bytea not null,
  manifest_sha256 bytea not null,
  previous_sha256 bytea not null,
  lines bigint not null,
  bytes bigint not null,
  stored_bytes bigint not null,
  first_occurred_at timestamptz,
  last_occurred_at timestamptz,
  counts jsonb not null default '{}',
  recorded_at timestamptz not null,
  expires_at timestamptz not null,
  deleted_at timestamptz,
  constraint log_batches_pkey primary key (tenant_id, number),
  constraint log_batches_number_is_positive_check check (number > 0),
  constraint log_batches_range_is_not_backwards_check check (file_from >= 0 and file_to >= file_from),
  constraint log_batches_digests_have_32_bytes_check check (pg_catalog.octet_length(sha256) = 32 and pg_catalog.octet_length(compressed_sha256) = 32
    and pg_catalog.octet_length(manifest_sha256) = 32 and pg_catalog.octet_length(previous_sha256) = 32)
);
create index log_batches_source_idx on custody_data.log_batches (tenant_id, source, number);
create index log_batches_recorded_at_idx on custody_data.log_batches (tenant_id, recorded_at);
create index log_batches_expires_at_idx on custody_data.log_batches (tenant_id, expires_at) where deleted_at is null;
comment on table custody_data.log_batches is 'Batches of the server''s log that lie in the store, one row each, numbered without gaps from 1. Each is an event log.ship of the trail. Rows stay; deleted_at says when the objects went.';
comment on column custody_data.log_batches.file_from is 'First byte of the file that the batch has; file_to the byte behind the last.';
comment on column custody_data.log_batches.sha256 is 'Of the object as it is stored.';
comment on column custody_data.log_batches.compressed_sha256 is 'Of the zstd frame, as age -d gives it: the same lines give the same.';
comment on column custody_data.log_batches.manifest_sha256 is 'Of the manifest beside it, which says all of this.';
comment on column custody_data.log_batches.previous_sha256 is 'manifest_sha256 of the batch before; zeros for the first. The manifest has it too, so that the chain can be walked from the objects alone.';
comment on column custody_data.log_batches.counts is 'Lines by kind, and what was broken, cut, too long, in another encoding, forged.';
comment on column custody_data.log_batches.expires_at is 'Until when the store locks it: the policy shipped_logs when it was shipped.';

create table custody_data.log_findings (
  tenant_id custody_data.tenant_name not null default 'system',
  finding_id uuid not null default pg_catalog.gen_random_uuid(),
  source text collate "C" not null,
  batch bigint,
  kind text collate "C" not null,
  session_id text collate "C",
  line_from bigint,
  line_to bigint,
  occurrences bigint not null default 1,
  occurred_at timestamptz,
  found_at timestamptz not null default pg_catalog.clock_timestamp(),
  detail jsonb not null default '{}',
  constraint log_findings_pkey primary key (tenant_id, finding_id),
  constraint log_findings_kind_is_known_check check (kind in (
    'gap', 'repeat', 'reordered', 'lost_file', 'truncated', 'replaced', 'clock_back', 'broken', 'too_long', 'cut', 'bad_encoding', 'unknown_zone',
    'forged', 'unverified', 'statement_without_row', 'row_without_line', 'batch_without_object', 'batch_altered', 'orphan', 'sink_behind')),
  constraint log_findings_occurrences_is_positive_check check (occurrences > 0)
);
create index log_findings_found_at_idx on custody_data.log_findings (tenant_id, found_at desc);
create index log_findings_kind_idx on custody_data.log_findings (tenant_id, kind, source, found_at desc);
comment on table custody_data.log_findings is 'What is wrong with a log, with a line of it, or between log, trail and store: append-only. What repeats within a batch is one row (occurrences).';
comment on column custody_data.log_findings.kind is 'Of the log: gap, repeat, reordered (lines of a session), lost_file (removed before it was read), truncated, replaced, clock_back. Of lines: broken, too_long, cut, bad_encoding, unknown_zone, forged (claims to be pgaudit''s, the server''s or ours), unverified (ours under a key retired more than 35 days ago, or pgaudit''s in a log that names no source: nobody can tell). Of the reconciliation: statement_without_row, row_without_line, batch_without_object, batch_altered, orphan (an object that no batch names), sink_behind (batches were dropped that a sink had not taken).';
comment on column custody_data.log_findings.line_from is 'Line numbers within the session; bytes for truncated, too_long, broken and cut. line_to the last.';
comment on column custody_data.log_findings.occurred_at is 'Time of the line that showed it.';
comment on column custody_data.log_findings.detail is 'File, object, table or SQLSTATE, as the kind has it; nothing that a client wrote.';

create table custody_data.log_sinks (
  tenant_id custody_data.tenant_name not null default 'system',
  sink text collate "C" not null,
  batch bigint not null default 0,
  line bigint not null default 0,
  trail_leaf bigint not null default 0,
  sent_lines bigint not null default 0,
  sent_at timestamptz,
  failed_at timestamptz,
  failures integer not null default 0,
  last_error text,
  updated_at timestamptz not null default pg_catalog.clock_timestamp(),
  constraint log_sinks_pkey primary key (tenant_id, sink),
  constraint log_sinks_sink_is_a_name_check check (sink ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$')
);
comment on table custody_data.log_sinks is 'Where else batches and the application''s audit events are sent, and how far each is: its own place, so that none keeps another waiting, nor the store.';
comment on column custody_data.log_sinks.batch is 'The batch that is being sent, line its lines that were taken; all before it were.';
comment on column custody_data.log_sinks.trail_leaf is 'Events of the trail below this leaf were sent.';
comment on column custody_data.log_sinks.last_error is 'What the sink answered last: a status or a kind of error, no text of its own.';

create table custody_data.log_spool (
  tenant_id custody_data.tenant_name not null default 'system',
  number bigint not null,
  compressed bytea not null,
  recorded_at timestamptz not null default pg_catalog.clock_timestamp(),
  constraint log_spool_pkey primary key (tenant_id, number)
);
-- zstd leaves nothing to compress.
alter table custody_data.log_spool alter column compressed set storage external;
comment on table custody_data.log_spool is 'Batches that a sink has not taken yet: the runner cannot open them in the store, where they are encrypted to the archive''s recipients. Empty where there are no sinks; a batch goes when all have it, and after a week anyhow.';
comment on column custody_data.log_spool.compressed is 'The lines of the batch, zstd.';

-- +goose StatementBegin
do $$
declare
  v_table text;
begin
  -- The log is the server's, not a tenant's: it is shipped and looked at in tenant system.
  foreach v_table in array array['log_sources', 'log_batches', 'log_findings', 'log_sinks', 'log_spool'] loop
    execute pg_catalog.format('alter table custody_data.%I enable row level security, force row level security', v_table);
    execute pg_catalog.format('create policy %I on custody_data.%I using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()))', v_table || '_all_all', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_all_all', v_table, 'Rows of tenant system, in its context alone.');
    execute pg_catalog.format('create policy %I on custody_data.%I for select to custody_backup using (true)', v_table || '_backup_select', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_backup_select', v_table, 'pg_dump --enable-row-security reads every row.');
    execute pg_catalog.format('grant select on custody_data.%I to custody_worker, custody_privacy, custody_auditor, custody_backup', v_table);
  end loop;
end
$$;
-- +goose StatementEnd
alter table custody_data.access_events enable row level security, force row level security;
create policy access_events_all_select on custody_data.access_events for select
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
comment on policy access_events_all_select on custody_data.access_events is 'Who may see: the tenant in context; of a context confined to one person, reads of that person''s records.';
create policy access_events_system_select on custody_data.access_events for select to custody_worker, custody_auditor, custody_owner
  using ((select custody.current_tenant()) = 'system' and not (select custody.has_subject()));
comment on policy access_events_system_select on custody_data.access_events is 'Reconciliation and detection look at all tenants, in the context of tenant system.';
create policy access_events_owner_insert on custody_data.access_events for insert to custody_owner
  with check ((select custody.current_tenant()) = 'system');
comment on policy access_events_owner_insert on custody_data.access_events is 'A batch has lines of all tenants.';
create policy access_events_owner_update on custody_data.access_events for update to custody_owner
  using ((select custody.current_tenant()) = 'system');
comment on policy access_events_owner_update on custody_data.access_events is 'The reconciliation says what was rolled back, of all tenants.';
create policy access_events_backup_select on custody_data.access_events for select to custody_backup using (true);
comment on policy access_events_backup_select on custody_data.access_events is 'pg_dump --enable-row-security reads every row.';
-- Written by functions alone, and asked through functions that make an event of the question (76_access.sql): directly,
-- officers and auditors see what custody.log_reconciliation shows, which is not whose records were read, from where or why.
-- Who administers the database does not read who read what.
grant select on custody_data.access_events to custody_worker, custody_backup;
grant select (tenant_id, recorded_at, batch, line, part, occurred_at, kind, class, object_name, login, actor_id, actor_pseudonym, session_id, event_line, event_xid, rolled_back)
  on custody_data.access_events to custody_privacy, custody_auditor;

create trigger a_reject_delete before delete or truncate on custody_data.access_events
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_row_delete before delete on custody_data.access_events
  for each row execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_data.access_events
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'recorded_at', 'batch', 'line', 'part', 'occurred_at', 'kind', 'class', 'action', 'object_name',
    'login', 'role', 'actor_id', 'actor_pseudonym', 'purpose', 'identity_id', 'rows', 'client', 'application', 'session_id', 'vxid', 'xact_at', 'event_line', 'event_xid', 'state_code', '=rolled_back');
create trigger a_reject_delete before delete or truncate on custody_data.log_sources
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_data.log_sources
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'source', 'format');
create trigger a_reject_delete before delete or truncate on custody_data.log_batches
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_data.log_batches
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'number', 'source', 'file_name', 'file_from', 'file_to', 'object_key', 'manifest_key', 'sha256', 'compressed_sha256',
    'manifest_sha256', 'previous_sha256', 'lines', 'bytes', 'stored_bytes', 'first_occurred_at', 'last_occurred_at', 'counts', 'recorded_at', '+deleted_at');
create trigger a_reject_mutation before update or delete or truncate on custody_data.log_findings
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_row_mutation before update or delete on custody_data.log_findings
  for each row execute function custody_data.tg_reject_mutation();
create trigger a_reject_delete before delete or truncate on custody_data.log_sinks
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_truncate before truncate on custody_data.log_spool
  for each statement execute function custody_data.tg_reject_mutation();
alter table custody_data.access_events enable always trigger a_reject_delete, enable always trigger a_reject_row_delete, enable always trigger a_reject_key_change;
alter table custody_data.log_sources enable always trigger a_reject_delete, enable always trigger a_reject_key_change;
alter table custody_data.log_batches enable always trigger a_reject_delete, enable always trigger a_reject_key_change;
alter table custody_data.log_findings enable always trigger a_reject_mutation, enable always trigger a_reject_row_mutation;
alter table custody_data.log_sinks enable always trigger a_reject_delete;
alter table custody_data.log_spool enable always trigger a_reject_truncate;

-- +goose Down
drop table custody_data.log_spool, custody_data.log_sinks, custody_data.log_findings, custody_data.log_batches, custody_data.log_sources, custody_data.access_events cascade;
