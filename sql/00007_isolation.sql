-- Row-level security: enabled and forced on every table, one tenant at a time, nothing without a context.
-- control: HIPAA 164.312(a)(1); ISO 27001 A.8.3; SOC 2 CC6.1, CC6.6; GDPR Art. 32
-- reviewed by: DBA, security
--
-- The policies hold for the owner too, and so inside SECURITY DEFINER functions. Each calls its helpers in a
-- sub-select, which runs once a statement. A session whose context names a data subject sees that person's
-- rows only. custody_backup reads everything by a policy of its own, on the partitions too, because pg_dump
-- reads each of them; nobody else has a grant on a partition.
-- locks: create policy takes ACCESS EXCLUSIVE on its table, for an instant. rewrite cost: none.

-- +goose Up
-- Tables of one tenant's people: rows of the tenant in context, of its subject where it names one.
alter table custody_data.user_profiles enable row level security, force row level security;
create policy user_profiles_all_all on custody_data.user_profiles
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
create policy user_profiles_backup_select on custody_data.user_profiles for select to custody_backup using (true);

alter table custody_data.user_preferences enable row level security, force row level security;
create policy user_preferences_all_all on custody_data.user_preferences
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
create policy user_preferences_backup_select on custody_data.user_preferences for select to custody_backup using (true);

-- Update and delete of append-only tables are let through to their guards, which say no aloud.
alter table custody_data.consent_records enable row level security, force row level security;
create policy consent_records_all_all on custody_data.consent_records
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
create policy consent_records_backup_select on custody_data.consent_records for select to custody_backup using (true);

alter table custody_data.conversations enable row level security, force row level security;
create policy conversations_all_all on custody_data.conversations
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
create policy conversations_backup_select on custody_data.conversations for select to custody_backup using (true);

-- The audit trail: an event is written under the actor in context or by an import; the worker reads all
-- tenants in the context of tenant system, where it archives and drops whole months.
alter table custody_data.audit_logs enable row level security, force row level security;
create policy audit_logs_all_select on custody_data.audit_logs for select
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject())
      or subject_id = (select custody.current_subject_id()) or actor_id = (select custody.current_subject_id())));
create policy audit_logs_all_insert on custody_data.audit_logs for insert
  with check (tenant_id = (select custody.current_tenant())
    and actor_id = (select custody.current_actor_id())
    and (not (select custody.has_subject()) or subject_id is null or subject_id = (select custody.current_subject_id())));
create policy audit_logs_worker_insert on custody_data.audit_logs for insert to custody_worker
  with check (tenant_id = (select custody.current_tenant()) and import_id is not null);
-- What an event must be, for those who insert rows themselves: what CHECK constraints would say. The owner's
-- functions say it with errors of their own.
create policy audit_logs_writers_insert on custody_data.audit_logs as restrictive for insert
  to custody_readwrite, custody_worker, custody_privacy
  with check (result in ('success', 'failure', 'denied', 'partial')
    and pg_catalog.jsonb_typeof(metadata) = 'object'
    and (resource_id is null or pg_catalog.char_length(resource_id) between 1 and 1024)
    and occurred_at >= '1970-01-01 00:00:00+00' and pg_catalog.isfinite(occurred_at)
    and occurred_at <= recorded_at + interval '24 hours'
    -- only imports are late
    and (import_id is not null or occurred_at >= recorded_at - interval '24 hours'));
create policy audit_logs_worker_select on custody_data.audit_logs for select to custody_worker, custody_owner
  using ((select custody.current_tenant()) = 'system');
create policy audit_logs_backup_select on custody_data.audit_logs for select to custody_backup using (true);

alter table custody_data.audit_entry_ids enable row level security, force row level security;
create policy audit_entry_ids_all_all on custody_data.audit_entry_ids
  using (tenant_id = (select custody.current_tenant()));
create policy audit_entry_ids_backup_select on custody_data.audit_entry_ids for select to custody_backup using (true);

-- Who is who. Under a subject the application's roles see that person and the actor; the owner's functions
-- see the tenant, since they must find other identities (a holder of a role, the resource of an event).
alter table custody_data.identities enable row level security, force row level security;
create policy identities_all_all on custody_data.identities
  using (tenant_id = (select custody.current_tenant()));
create policy identities_subject_all on custody_data.identities as restrictive
  to custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor
  using (not (select custody.has_subject())
    or identity_id in ((select custody.current_subject_id()), (select custody.current_actor_id())));
create policy identities_backup_select on custody_data.identities for select to custody_backup using (true);

-- Tenants: one's own; the owner's functions list them for the runner.
alter table custody_data.tenants enable row level security, force row level security;
create policy tenants_all_all on custody_data.tenants using (tenant_id = (select custody.current_tenant()));
create policy tenants_owner_all on custody_data.tenants to custody_owner using (true);
create policy tenants_backup_select on custody_data.tenants for select to custody_backup using (true);

-- Vocabulary and policies: one's own and the shared ones, which nobody but tenant system writes.
alter table custody_data.audit_actions enable row level security, force row level security;
create policy audit_actions_all_select on custody_data.audit_actions for select
  using (tenant_id in ((select custody.current_tenant()), 'system') and (select custody.current_tenant()) is not null);
create policy audit_actions_all_insert on custody_data.audit_actions for insert
  with check (tenant_id = (select custody.current_tenant()) and (tenant_id <> 'system' or (select custody_data.writes_system())));
create policy audit_actions_all_update on custody_data.audit_actions for update
  using (tenant_id = (select custody.current_tenant()) and (tenant_id <> 'system' or (select custody_data.writes_system())));
create policy audit_actions_backup_select on custody_data.audit_actions for select to custody_backup using (true);

alter table custody_data.audit_resource_types enable row level security, force row level security;
create policy audit_resource_types_all_select on custody_data.audit_resource_types for select
  using (tenant_id in ((select custody.current_tenant()), 'system') and (select custody.current_tenant()) is not null);
create policy audit_resource_types_all_insert on custody_data.audit_resource_types for insert
  with check (tenant_id = (select custody.current_tenant()) and (tenant_id <> 'system' or (select custody_data.writes_system())));
create policy audit_resource_types_all_update on custody_data.audit_resource_types for update
  using (tenant_id = (select custody.current_tenant()) and (tenant_id <> 'system' or (select custody_data.writes_system())));
create policy audit_resource_types_backup_select on custody_data.audit_resource_types for select to custody_backup using (true);

alter table custody_data.retention_policies enable row level security, force row level security;
create policy retention_policies_all_select on custody_data.retention_policies for select
  using (tenant_id in ((select custody.current_tenant()), 'system') and (select custody.current_tenant()) is not null);
create policy retention_policies_all_insert on custody_data.retention_policies for insert
  with check (tenant_id = (select custody.current_tenant()) and (tenant_id <> 'system' or (select custody_data.writes_system())));
create policy retention_policies_all_update on custody_data.retention_policies for update
  using (tenant_id = (select custody.current_tenant()) and (tenant_id <> 'system' or (select custody_data.writes_system())));
-- The archive locks a day for as long as any tenant's policy asks.
create policy retention_policies_system_select on custody_data.retention_policies for select to custody_owner
  using ((select custody.current_tenant()) = 'system');
create policy retention_policies_backup_select on custody_data.retention_policies for select to custody_backup using (true);

-- Governance: rows of the tenant, of the subject where the context names one.
alter table custody_data.requests enable row level security, force row level security;
create policy requests_all_all on custody_data.requests
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
-- An erasure that is done is nobody's any more: who asked for it under a subject finds it by its id.
create policy requests_owner_select on custody_data.requests for select to custody_owner
  using (tenant_id = (select custody.current_tenant()) and kind = 'erasure' and status = 'done');
create policy requests_backup_select on custody_data.requests for select to custody_backup using (true);

alter table custody_data.erasure_certificates enable row level security, force row level security;
create policy erasure_certificates_all_all on custody_data.erasure_certificates
  using (tenant_id = (select custody.current_tenant())
    and (not (select custody.has_subject()) or identity_id = (select custody.current_subject_id())));
create policy erasure_certificates_backup_select on custody_data.erasure_certificates for select to custody_backup using (true);

alter table custody_data.stored_certificates enable row level security, force row level security;
create policy stored_certificates_all_all on custody_data.stored_certificates using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
create policy stored_certificates_backup_select on custody_data.stored_certificates for select to custody_backup using (true);

alter table custody_data.erased_user_ids enable row level security, force row level security;
create policy erased_user_ids_all_all on custody_data.erased_user_ids using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
create policy erased_user_ids_backup_select on custody_data.erased_user_ids for select to custody_backup using (true);

alter table custody_data.holders enable row level security, force row level security;
create policy holders_all_all on custody_data.holders using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
-- Who asks for their own data is told who else has it.
create policy holders_owner_select on custody_data.holders for select to custody_owner using (tenant_id = (select custody.current_tenant()));
create policy holders_backup_select on custody_data.holders for select to custody_backup using (true);

alter table custody_data.erasure_notices enable row level security, force row level security;
create policy erasure_notices_all_all on custody_data.erasure_notices using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
create policy erasure_notices_backup_select on custody_data.erasure_notices for select to custody_backup using (true);

alter table custody_data.legal_holds enable row level security, force row level security;
create policy legal_holds_all_all on custody_data.legal_holds using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
create policy legal_holds_backup_select on custody_data.legal_holds for select to custody_backup using (true);
-- Dropping a month concerns the held rows of all tenants, so in tenant system all holds are seen.
-- The guards must see every hold of the tenant, a person's session too.
create policy legal_holds_owner_select on custody_data.legal_holds for select to custody_owner
  using ((select custody.current_tenant()) in (tenant_id, 'system'));

-- Runs and evidence of the runner.
alter table custody_data.job_runs enable row level security, force row level security;
create policy job_runs_all_all on custody_data.job_runs using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
create policy job_runs_backup_select on custody_data.job_runs for select to custody_backup using (true);

alter table custody_data.imports enable row level security, force row level security;
create policy imports_all_all on custody_data.imports using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()));
create policy imports_backup_select on custody_data.imports for select to custody_backup using (true);

-- Days, counts and object names of the archive are no tenant's secret: every tenant's auditor may read them.
alter table custody_data.incarnations enable row level security, force row level security;
create policy incarnations_all_select on custody_data.incarnations for select using ((select custody.current_tenant()) is not null);
create policy incarnations_all_insert on custody_data.incarnations for insert with check (true);
create policy incarnations_backup_select on custody_data.incarnations for select to custody_backup using (true);

alter table custody_data.archive_heads enable row level security, force row level security;
create policy archive_heads_all_select on custody_data.archive_heads for select
  using ((select custody.current_tenant()) is not null and not (select custody.has_subject()));
create policy archive_heads_all_insert on custody_data.archive_heads for insert with check (tenant_id = (select custody.current_tenant()));
create policy archive_heads_all_update on custody_data.archive_heads for update using (tenant_id = (select custody.current_tenant()));
create policy archive_heads_backup_select on custody_data.archive_heads for select to custody_backup using (true);

alter table custody_data.archive_segments enable row level security, force row level security;
create policy archive_segments_all_select on custody_data.archive_segments for select
  using ((select custody.current_tenant()) is not null and not (select custody.has_subject()));
create policy archive_segments_all_insert on custody_data.archive_segments for insert with check (tenant_id = (select custody.current_tenant()));
create policy archive_segments_all_update on custody_data.archive_segments for update using (tenant_id = (select custody.current_tenant()));
create policy archive_segments_backup_select on custody_data.archive_segments for select to custody_backup using (true);

alter table custody_data.partition_drops enable row level security, force row level security;
create policy partition_drops_all_select on custody_data.partition_drops for select
  using ((select custody.current_tenant()) is not null);
create policy partition_drops_all_insert on custody_data.partition_drops for insert with check (tenant_id = (select custody.current_tenant()));
create policy partition_drops_backup_select on custody_data.partition_drops for select to custody_backup using (true);

-- +goose StatementBegin
do $$
declare
  v_policy record;
begin
  for v_policy in select policyname, tablename from pg_catalog.pg_policies where schemaname = 'custody_data' loop
    continue when v_policy.tablename like 'schema\_%';
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_policy.policyname, v_policy.tablename, case
      when v_policy.policyname like '%\_backup\_select' then 'pg_dump --enable-row-security reads every row.'
      when v_policy.policyname like '%\_subject\_all' then 'A context confined to one person shows the application that person and the actor.'
      when v_policy.policyname = 'audit_logs_worker_insert' then 'Imports bring events under other actors than the one in context.'
      when v_policy.policyname = 'audit_logs_writers_insert' then 'Results, JSON objects, lengths and times are as they must be; only imports are late.'
      when v_policy.policyname = 'audit_logs_worker_select' then 'The archive reads all tenants, in the context of tenant system.'
      when v_policy.policyname = 'legal_holds_owner_select' then 'Guards and the dropping of months see every hold.'
      when v_policy.policyname = 'holders_owner_select' then 'An export names the holders, to the person too.'
      when v_policy.policyname = 'retention_policies_system_select' then 'The archive locks a day for as long as any tenant''s policy asks.'
      when v_policy.policyname = 'requests_owner_select' then 'Who asked for an erasure under a subject finds it by its id once the person is gone.'
      when v_policy.policyname = 'tenants_owner_all' then 'The functions that register and list tenants.'
      when v_policy.policyname like '%\_select' then 'Who may see: the tenant in context, where rows are its own, and what is shared.'
      when v_policy.policyname like '%\_insert' then 'New rows belong to the tenant in context.'
      when v_policy.policyname like '%\_update' then 'Only rows of the tenant in context change.'
      else 'Rows of the tenant in context, and of its subject where it names one; none without a context.' end);
  end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
declare
  v_policy record;
begin
  -- The migrator's own tables keep theirs: without them the owner would not see what to roll back.
  for v_policy in
    select * from pg_catalog.pg_policies where schemaname = 'custody_data' and tablename not like 'schema\_%'
  loop
    execute pg_catalog.format('drop policy %I on custody_data.%I', v_policy.policyname, v_policy.tablename);
  end loop;
end
$$;
-- +goose StatementEnd
