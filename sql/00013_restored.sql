-- Restored events: copies out of the archive, readable for a while, and who asked for them and why.
-- control: HIPAA 164.308(a)(7)(ii)(B), 164.312(b); GDPR Art. 5(1)(e), 15; ISO 27001 A.8.13; SOC 2 CC7.3
-- reviewed by: DBA, auditor, privacy officer
--
-- A copy is no part of the trail: nothing here is sealed, archived or proved again. Each row was held against the leaf
-- that its entry has in the ledger before it was let in, is never changed, and goes when its time is over, whatever
-- holds there are: what they cover stays in the archive. The record of a restore is evidence and stays.
-- locks: new tables only. rewrite cost: none.

-- +goose Up
create table custody_data.archive_restores (
  tenant_id custody_data.tenant_name not null,
  restore_id uuid not null default pg_catalog.gen_random_uuid(),
  range_from timestamptz not null,
  range_to timestamptz not null,
  of_tenant custody_data.tenant_name,
  identity_id uuid,
  log_entry_id uuid,
  action text collate "C",
  reason text not null,
  restored_by uuid not null,
  begun_at timestamptz not null default pg_catalog.now(),
  expires_at timestamptz not null,
  finished_at timestamptz,
  segments_read bigint,
  rows bigint,
  constraint archive_restores_pkey primary key (tenant_id, restore_id),
  constraint archive_restores_range_is_not_empty_check check (range_to > range_from),
  constraint archive_restores_reason_length_is_1_to_2000_check check (pg_catalog.char_length(reason) >= 1 and pg_catalog.char_length(reason) <= 2000),
  constraint archive_restores_finished_whole_check check ((finished_at is null) = (rows is null) and (finished_at is null) = (segments_read is null))
);
create index archive_restores_begun_at_idx on custody_data.archive_restores (tenant_id, begun_at desc);
comment on table custody_data.archive_restores is 'What was fetched from the archive: events of which time, tenant, person, id and action, for whom and why. Written at the beginning and at the end, never deleted.';
comment on column custody_data.archive_restores.of_tenant is 'Events of this tenant alone; empty where those of all tenants were asked for, in the context of tenant system.';
comment on column custody_data.archive_restores.reason is 'Why, in the words of whoever asked; must not name the person. @custody{"sensitivity":"content","retention":"audit"}';
comment on column custody_data.archive_restores.expires_at is 'When at the latest the rows in restored_events go; a tenant''s own policy restored may ask for sooner.';
comment on column custody_data.archive_restores.finished_at is 'Empty where it is under way, or was given up: what it had handed out until then is nowhere counted.';
comment on column custody_data.archive_restores.rows is 'How many events were handed out, into restored_events or to whoever asked.';

create table custody_data.restored_events (
  tenant_id custody_data.tenant_name not null,
  restore_id uuid not null,
  leaf_index bigint not null,
  log_entry_id uuid not null,
  occurred_at timestamptz not null,
  recorded_at timestamptz not null,
  actor_id uuid not null,
  subject_id uuid,
  action text collate "C" not null,
  resource_type text collate "C",
  resource_id text collate "C",
  result text collate "C" not null,
  purpose text,
  metadata jsonb not null,
  personal custody_data.sealed_value,
  import_id uuid,
  db_role text not null,
  xid xid8 not null,
  entry text not null,
  restored_from text not null,
  restored_at timestamptz not null default pg_catalog.now(),
  expires_at timestamptz not null,
  constraint restored_events_pkey primary key (tenant_id, restore_id, leaf_index)
);
create index restored_events_occurred_at_idx on custody_data.restored_events (tenant_id, occurred_at, log_entry_id);
create index restored_events_expires_at_idx on custody_data.restored_events (tenant_id, expires_at);
comment on table custody_data.restored_events is 'Events of the archive, copied back for a while; each was held against its leaf in the ledger. Deleted when they expire.';
comment on column custody_data.restored_events.leaf_index is 'Of the event in the ledger''s tree.';
comment on column custody_data.restored_events.personal is 'As in the trail, sealed there and opened as there: nobody opens it once the person has been erased. @custody{"sensitivity":"content","retention":"restored"}';
comment on column custody_data.restored_events.entry is 'The canonical entry, byte for byte as the archive has it: SHA-256 of a byte 0 and it is the leaf.';
comment on column custody_data.restored_events.restored_from is 'Key of the object in the archive.';

alter table custody_data.archive_restores enable row level security, force row level security;
create policy archive_restores_all_all on custody_data.archive_restores
  using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
comment on policy archive_restores_all_all on custody_data.archive_restores is 'Rows of the tenant in context, for whoever sees the whole tenant.';
create policy archive_restores_backup_select on custody_data.archive_restores for select to custody_backup using (true);
comment on policy archive_restores_backup_select on custody_data.archive_restores is 'pg_dump --enable-row-security reads every row.';

alter table custody_data.restored_events enable row level security, force row level security;
create policy restored_events_all_all on custody_data.restored_events
  using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
comment on policy restored_events_all_all on custody_data.restored_events is 'Rows of the tenant in context, for whoever sees the whole tenant.';
create policy restored_events_worker_select on custody_data.restored_events for select to custody_worker, custody_owner
  using ((select custody.current_tenant()) = 'system');
comment on policy restored_events_worker_select on custody_data.restored_events is 'As of the trail: the worker reads all tenants, in the context of tenant system.';
create policy restored_events_owner_insert on custody_data.restored_events for insert to custody_owner
  with check ((select custody.current_tenant()) = 'system');
comment on policy restored_events_owner_insert on custody_data.restored_events is 'A restore in the context of tenant system brings events of all tenants.';
create policy restored_events_backup_select on custody_data.restored_events for select to custody_backup using (true);
comment on policy restored_events_backup_select on custody_data.restored_events is 'pg_dump --enable-row-security reads every row.';

-- Written by functions alone.
grant select on custody_data.archive_restores, custody_data.restored_events to custody_worker, custody_privacy, custody_auditor, custody_backup;

create trigger a_reject_delete before delete or truncate on custody_data.archive_restores
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_data.archive_restores
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'restore_id', 'range_from', 'range_to', 'of_tenant', 'identity_id', 'log_entry_id', 'action', 'reason', 'restored_by', 'begun_at', 'expires_at', '+finished_at');
create trigger a_reject_mutation before update or truncate on custody_data.restored_events
  for each statement execute function custody_data.tg_reject_mutation();
alter table custody_data.archive_restores enable always trigger a_reject_delete;
alter table custody_data.archive_restores enable always trigger a_reject_key_change;
alter table custody_data.restored_events enable always trigger a_reject_mutation;

-- +goose Down
drop table custody_data.restored_events, custody_data.archive_restores cascade;
